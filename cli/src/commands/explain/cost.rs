//! The price of reads and updates in round trips between regions.
//!
//! An update of one group: to its primary, and from there to the nearest quorum. An update of several groups, asked for
//! at the primary of one of them: timestamps cross once, in both directions at the same time, and each group logs three
//! entries on its quorum; groups work side by side, so the slowest counts.

use multicast::ids::{GroupId, ReplicaId};
use net::wan::Matrix;

use crate::config::{Cluster, Group, Node};

/// Log entries of a multi-group command in each group.
const ENTRIES: f64 = 3.0;

/// What something costs at least.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Price {
    /// Round trips between regions, one after the other.
    pub round_trips: u32,
    /// The time that they take.
    pub ms: f64,
}

/// Who is where, and how far.
pub struct Distances<'a> {
    cluster: &'a Cluster,
    matrix: Option<Matrix>,
}

impl<'a> Distances<'a> {
    /// Without a matrix every way takes no time and is open.
    pub fn new(cluster: &'a Cluster, matrix: Option<Matrix>) -> Self {
        Distances { cluster, matrix }
    }

    /// A read that asks these groups one after the other, each at the nearest replica. `None` if one is cut off.
    pub fn read(&self, groups: &[GroupId], from: &str) -> Option<Price> {
        let mut price = Price { round_trips: 0, ms: 0.0 };
        for group in groups {
            let way =
                self.voters(*group).into_iter().filter_map(|voter| self.way(from, &voter.region)).min_by(shorter)?;
            price = price.and(way);
        }
        Some(price)
    }

    /// An update of these groups.
    pub fn update(&self, groups: &[GroupId], from: &str) -> Option<Price> {
        let primary = |group: &GroupId| self.voters(*group).first().map(|node| node.region.clone());
        // It is asked for at a primary in the client's own region, if there is one.
        let mut asked = None;
        for group in groups {
            let region = primary(group)?;
            if asked.is_none() || region == from {
                asked = Some(region);
            }
        }
        let asked = asked?;
        let to_primary = self.way(from, &asked)?;
        let mut quorum = Price { round_trips: 0, ms: 0.0 };
        let mut across = Price { round_trips: 0, ms: 0.0 };
        for group in groups {
            let region = primary(group)?;
            quorum = quorum.worse(self.quorum(*group, &region)?);
            across = across.worse(self.way(&asked, &region)?);
        }
        if groups.len() < 2 {
            return Some(to_primary.and(quorum));
        }
        let entries = Price { round_trips: quorum.round_trips * ENTRIES as u32, ms: quorum.ms * ENTRIES };
        Some(to_primary.and(across).and(entries))
    }

    /// Whether a quorum of the group's voters is outside a region.
    pub fn quorum_without(&self, group: GroupId, lost: &str) -> bool {
        let left = self.voters(group).iter().filter(|voter| voter.region != lost).count();
        left >= self.quorum_size(group)
    }

    /// Whether somebody outside a region can answer reads.
    pub fn readable_without(&self, group: GroupId, lost: &str) -> bool {
        self.voters(group).iter().any(|voter| voter.region != lost)
    }

    /// From the primary to the last voter that makes a quorum with it.
    fn quorum(&self, group: GroupId, primary: &str) -> Option<Price> {
        let voters = self.voters(group);
        let mut ways: Vec<Price> = voters.iter().skip(1).filter_map(|voter| self.way(primary, &voter.region)).collect();
        ways.sort_by(shorter);
        match self.quorum_size(group) {
            0 | 1 => Some(Price { round_trips: 0, ms: 0.0 }),
            quorum => ways.get(quorum - 2).copied(),
        }
    }

    /// The rule is the ordering core's own.
    fn quorum_size(&self, group: GroupId) -> usize {
        let voters: Vec<ReplicaId> = self.voters(group).iter().map(|node| node.id).collect();
        multicast::Membership::genesis(&voters).quorum_size()
    }

    fn way(&self, from: &str, to: &str) -> Option<Price> {
        let ms = match &self.matrix {
            Some(matrix) => (matrix.one_way(from, to)? + matrix.one_way(to, from)?).as_secs_f64() * 1e3,
            None => 0.0,
        };
        Some(Price { round_trips: u32::from(from != to), ms })
    }

    fn voters(&self, group: GroupId) -> Vec<&'a Node> {
        let group: Option<&Group> = self.cluster.groups.get(usize::from(group.0));
        group.map(|group| self.cluster.voters(group).collect()).unwrap_or_default()
    }
}

impl Price {
    fn and(self, then: Price) -> Price {
        Price { round_trips: self.round_trips + then.round_trips, ms: self.ms + then.ms }
    }

    fn worse(self, other: Price) -> Price {
        Price { round_trips: self.round_trips.max(other.round_trips), ms: self.ms.max(other.ms) }
    }
}

fn shorter(a: &Price, b: &Price) -> std::cmp::Ordering {
    (a.round_trips, a.ms).partial_cmp(&(b.round_trips, b.ms)).unwrap_or(std::cmp::Ordering::Equal)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::config::template::{Plan, render};
    use crate::config::{Cluster, Limits, Volume};

    fn cluster() -> Cluster {
        let regions = ["us", "eu", "ap"].iter().enumerate();
        let regions =
            regions.map(|(at, name)| ((*name).to_owned(), vec![format!("127.0.0.1:{}", 4400 + at)])).collect();
        let plan = Plan {
            cluster: "demo".into(),
            regions,
            wan_file: None,
            limits: Limits::default(),
            volume: Volume::default(),
        };
        Cluster::parse(std::path::Path::new("/c/cluster.toml"), &render(&plan)).unwrap()
    }

    fn geo3(cluster: &Cluster) -> Distances<'_> {
        Distances::new(cluster, Some(Matrix::preset("geo3", &cluster.region_names()).unwrap()))
    }

    const GLOBAL: GroupId = GroupId(0);
    const US: GroupId = GroupId(1);
    const EU: GroupId = GroupId(2);

    #[test]
    fn reads_of_the_global_group_are_local_everywhere() {
        let cluster = cluster();
        let distances = geo3(&cluster);
        for region in ["us", "eu", "ap"] {
            assert_eq!(distances.read(&[GLOBAL], region).unwrap().round_trips, 0);
        }
        let far = distances.read(&[GLOBAL, EU], "us").unwrap();
        assert_eq!(far.round_trips, 1);
        assert!((far.ms - 70.2).abs() < 0.01, "{far:?}");
    }

    #[test]
    fn updates_cost_the_way_to_the_primary_and_its_quorum() {
        let cluster = cluster();
        let distances = geo3(&cluster);
        // The only voter is beside the client.
        assert_eq!(distances.update(&[EU], "eu").unwrap().round_trips, 0);
        // The global primary is in us; eu is its nearest voter. Ways inside a region count 0.2 ms.
        let near =
            |price: Price, round_trips: u32, ms: f64| price.round_trips == round_trips && (price.ms - ms).abs() < 1.0;
        assert!(near(distances.update(&[GLOBAL], "us").unwrap(), 1, 70.0));
        assert!(near(distances.update(&[GLOBAL], "ap").unwrap(), 2, 210.0));
        // Between us and eu, asked for in us: one crossing.
        assert_eq!(distances.update(&[US, EU], "us").unwrap().round_trips, 1);
        assert_eq!(distances.update(&[US, EU], "eu").unwrap().round_trips, 1);
    }

    #[test]
    fn lost_regions_take_their_own_groups_along_only() {
        let cluster = cluster();
        let distances = geo3(&cluster);
        assert!(distances.quorum_without(GLOBAL, "us") && distances.readable_without(GLOBAL, "us"));
        assert!(!distances.quorum_without(EU, "eu") && !distances.readable_without(EU, "eu"));
        assert!(distances.quorum_without(EU, "us"));
    }

    #[test]
    fn cut_links_have_no_price() {
        let cluster = cluster();
        let mut matrix = Matrix::preset("geo3", &cluster.region_names()).unwrap();
        matrix.cut("us", "eu").unwrap();
        let distances = Distances::new(&cluster, Some(matrix));
        assert_eq!(distances.read(&[EU], "us"), None);
        assert!((distances.update(&[GLOBAL], "us").unwrap().ms - 140.2).abs() < 0.01);
    }
}
