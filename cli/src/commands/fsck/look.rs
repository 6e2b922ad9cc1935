//! One look at all groups and buckets.

use std::collections::{BTreeMap, BTreeSet};

use metadata::check::{About, Cross, Seen, Violation};
use metadata::types::InodeId;
use multicast::ids::GroupId;
use partition_replica::inspect::Standing;

use super::report::{Looked, Problem, Stored};
use super::{failed, spill::Spill};
use crate::config::Cluster;
use crate::exit::Result;

/// Paths are looked for of so many inodes.
const PATHS_MAX: usize = 1000;

/// What was seen so far.
pub struct Look<'c> {
    cluster: &'c Cluster,
    cross: Cross<Spill>,
    /// By group: the replica whose facts were taken, and where it stands.
    taken: BTreeMap<GroupId, (String, Standing)>,
    rows: BTreeMap<GroupId, u64>,
    /// Contradictions within a group, by the replicas that have them.
    wrong: BTreeMap<Violation, Vec<String>>,
    stored: Vec<Stored>,
}

impl<'c> Look<'c> {
    pub fn new(cluster: &'c Cluster) -> Self {
        let cross = Cross::new(Spill::default());
        Look {
            cluster,
            cross,
            taken: BTreeMap::new(),
            rows: BTreeMap::new(),
            wrong: BTreeMap::new(),
            stored: Vec::new(),
        }
    }

    /// What a node's replica of a group shows; `facts` of one replica of each group only.
    pub fn see(
        &mut self,
        (group, node): (GroupId, &str),
        facts: bool,
        seen: Seen,
    ) -> std::result::Result<(), metadata::Error> {
        match seen {
            Seen::Rows(rows) => *self.rows.entry(group).or_default() += if facts { rows } else { 0 },
            Seen::Wrong { about, what } => {
                self.wrong.entry(Violation { group, about, what }).or_default().push(node.to_owned());
            }
            fact if facts => self.cross.add(group, fact)?,
            _ => {}
        }
        Ok(())
    }

    /// The facts of a group are all there.
    pub fn took(&mut self, group: GroupId, node: &str, standing: Standing) {
        self.taken.insert(group, (node.to_owned(), standing));
    }

    /// A blob that is in a bucket.
    pub fn store(&mut self, seen: Seen) -> std::result::Result<(), metadata::Error> {
        self.cross.add(GroupId::GLOBAL, seen)
    }

    /// All blobs of a region's bucket are there.
    pub fn stored(&mut self, origin: u16, stored: Stored) {
        self.cross.listed(origin);
        self.stored.push(stored);
    }

    /// No command of several groups is half executed in what was seen.
    pub fn is_of_one_moment(&self) -> bool {
        Standing::are_of_one_moment(self.taken.iter().map(|(group, (_, standing))| (*group, standing)))
    }

    /// Everything has been seen: what follows from it, and what is wrong.
    pub fn conclude(mut self) -> Result<Looked> {
        let mut found = self.wrong;
        if self.cluster.groups.iter().any(|group| !self.taken.contains_key(&group.id)) {
            self.cross.lacks_groups();
        }
        self.cross
            .finish(&mut |violation| {
                found.entry(violation).or_default();
            })
            .map_err(failed)?;
        let inodes = found.keys().filter_map(|violation| match violation.about {
            About::Inode(ino) => Some(ino),
            About::Group | About::Blob(_) => None,
        });
        let inodes: BTreeSet<InodeId> = inodes.take(PATHS_MAX).collect();
        let paths = self.cross.paths(&inodes).map_err(failed)?;
        let cluster = self.cluster;
        let problem = |(violation, nodes): (Violation, Vec<String>)| {
            let Violation { group, about, what } = violation;
            let path = match about {
                About::Inode(ino) => paths.get(&ino).cloned(),
                About::Group | About::Blob(_) => None,
            };
            let name = cluster.group_name(group);
            let on = if nodes.is_empty() { String::new() } else { format!(" (on {})", nodes.join(", ")) };
            ((group, about), Problem { group: Some(name), what: format!("{what}{on}"), path, on: nodes })
        };
        for orphan in self.cross.orphans() {
            if let Some(stored) = self.stored.iter_mut().find(|stored| stored.number == orphan.blob.origin) {
                stored.add_orphan(*orphan);
            }
        }
        let rows = self.rows;
        let groups = self.taken.into_iter().map(|(group, (node, standing))| {
            (cluster.group_name(group), node, standing.index.0, rows.get(&group).copied().unwrap_or_default())
        });
        Ok(Looked { groups: groups.collect(), found: found.into_iter().map(problem).collect(), buckets: self.stored })
    }
}
