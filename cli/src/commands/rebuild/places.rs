//! What a node is to its groups, by what the other nodes say: they remember what it has lost.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use fs_client::Client;
use metadata::operate::Directory;
use multicast::Membership;
use multicast::ids::GroupId;
use partition_replica::status::{GroupStatus, NodeStatus};
use tokio::runtime::Handle;

use super::folder;
use crate::commands::client::Wishes;
use crate::commands::place;
use crate::config::{Cluster, Node};
use crate::exit::{Exit, Result};
use crate::output::tell;

/// For one node's answer.
const TIMEOUT: Duration = Duration::from_secs(3);
/// Between two rounds of questions, at first and later.
const PAUSES: std::ops::RangeInclusive<Duration> = Duration::from_millis(500)..=Duration::from_secs(15);

/// What a node is to a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A member: of the configuration's making, or an operator's.
    Member,
    /// None, or none any more: these are.
    Outside(Membership),
}

/// What another node says.
#[derive(Clone, Debug, Default)]
pub struct Told {
    pub status: NodeStatus,
    /// Also of groups of which it has no replica.
    pub directory: Directory,
}

/// Of a node that asks the others.
pub fn wishes(me: &Node) -> Wishes {
    Wishes::of_node(me, "start", TIMEOUT)
}

/// What these nodes say, by number; who does not answer is missing.
pub async fn ask(client: &Client, nodes: impl Iterator<Item = &Node>) -> BTreeMap<u32, Told> {
    let ask = nodes.map(|node| async move {
        let document = tokio::time::timeout(TIMEOUT, client.node_status(node.id)).await.ok()?.ok()?;
        let directory = tokio::time::timeout(TIMEOUT, client.node_directory(node.id)).await.ok()?.ok()?;
        Some((node.id.0, Told { status: serde_json::from_slice::<NodeStatus>(&document).ok()?, directory }))
    });
    futures::future::join_all(ask).await.into_iter().flatten().collect()
}

/// The replicas of a group, each with its node.
pub fn replicas(group: u16, told: &BTreeMap<u32, Told>) -> impl Iterator<Item = (u32, &GroupStatus)> + '_ {
    let of_group =
        move |told: &'_ Told| -> Option<usize> { told.status.groups.iter().position(|replica| replica.group == group) };
    told.iter().filter_map(move |(node, told)| Some((*node, &told.status.groups[of_group(told)?])))
}

/// The group's primary, the latest if several think so.
pub fn primary(group: u16, told: &BTreeMap<u32, Told>) -> Option<&GroupStatus> {
    let primaries = replicas(group, told).map(|(_, replica)| replica).filter(|replica| replica.role == "primary");
    primaries.max_by_key(|replica| replica.ballot_round)
}

/// What the node is to a group, if that has a primary.
fn place(me: &Node, group: GroupId, told: &BTreeMap<u32, Told>) -> Option<Place> {
    let is_logged = primary(group.0, told)?.members.iter().any(|member| member.node == me.id.0);
    // What the primary's log says may not be committed yet, and be void.
    match newest_members(group, told)? {
        members if !is_logged && members.member(me.id).is_none() => Some(Place::Outside(members.clone())),
        _ => Some(Place::Member),
    }
}

fn newest_members(group: GroupId, told: &BTreeMap<u32, Told>) -> Option<&Membership> {
    let known = told.values().flat_map(|told| &told.directory.groups).filter(|known| known.group == group);
    known.map(|known| &known.members).max_by_key(|members| members.version)
}

/// A node that has begun on a new disk. Which replicas it is to have, beyond what the configuration says, it asks the others while
/// it runs: they may be on their way up, too, and what is right of the configuration must not wait for them.
#[derive(Debug)]
pub struct Newcomer {
    data: PathBuf,
    said: mpsc::Receiver<Said>,
    has_failed: bool,
}

#[derive(Debug)]
enum Said {
    Is(GroupId, Place),
    /// All groups have spoken.
    All,
}

impl Newcomer {
    /// Begins to ask.
    pub fn begin(cluster: &Cluster, me: &Node, data: &Path, runtime: Handle) -> std::io::Result<Newcomer> {
        let (say, said) = mpsc::channel();
        let (cluster, me) = (cluster.clone(), me.clone());
        let ask = move || {
            let asked = runtime.block_on(place::with_client(&cluster, &wishes(&me), async |client| {
                ask_all(client, &cluster, &me, &say).await;
                Ok(Exit::Done)
            }));
            if let Err(failure) = asked {
                tracing::error!(why = failure.message(), "the other nodes cannot be asked which replicas belong here");
            }
        };
        std::thread::Builder::new().name("newcomer".into()).spawn(ask)?;
        Ok(Newcomer { data: data.into(), said, has_failed: false })
    }

    /// Begins and ends replicas as the groups have said since. True once there is nothing left to do.
    pub fn settle(&mut self, name: &str, node: &partition_replica::Node) -> Result<bool> {
        while let Ok(said) = self.said.try_recv() {
            let (group, done) = match said {
                Said::Is(group, Place::Member) => (group, node.host(group).map(drop)),
                // Not one that an operator has wanted here while the question was under way.
                Said::Is(group, Place::Outside(members)) => (group, node.unhost_unwanted(group, members)),
                // What has failed is missing as if its node were down; the next start tries again.
                Said::All if self.has_failed => return Ok(true),
                Said::All => return folder::finish(&self.data).map(|()| true),
            };
            if let Err(why) = done {
                tell!("globalfs: node {name}: group {group}: {why}");
                self.has_failed = true;
            }
        }
        Ok(false)
    }
}

/// Until every group has spoken, or nobody listens any more.
async fn ask_all(client: &Client, cluster: &Cluster, me: &Node, say: &mpsc::Sender<Said>) {
    let mut left: BTreeSet<GroupId> = cluster.groups.iter().map(|group| group.id).collect();
    let mut pause = *PAUSES.start();
    loop {
        // The node itself, too: it may be the primary that is to speak, once its group has taken it in.
        let told = ask(client, cluster.nodes.iter()).await;
        let places: Vec<_> = left.iter().filter_map(|&group| Some((group, place(me, group, &told)?))).collect();
        for (group, place) in places {
            left.remove(&group);
            if say.send(Said::Is(group, place)).is_err() {
                return;
            }
        }
        if left.is_empty() {
            let _nobody_listens = say.send(Said::All);
            return;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(*PAUSES.end());
    }
}

#[cfg(test)]
pub mod tests {
    #![allow(clippy::unwrap_used)]
    use metadata::operate::GroupMembers;
    use multicast::ids::ReplicaId;
    use partition_replica::status::MemberStatus;

    use super::*;

    /// Node 1.
    pub fn me() -> Node {
        let text = || "x".to_owned();
        Node { id: ReplicaId(1), name: text(), region: text(), address: text(), listen: None, data: PathBuf::new() }
    }

    /// A node with a replica of group 0.
    pub fn node(number: u32, role: &str, voters: &[u32]) -> (u32, Told) {
        let member = |&node: &u32| MemberStatus { node, role: "voter".into(), incarnation: "0".into() };
        let group = GroupStatus {
            name: "g".into(),
            role: role.into(),
            members: voters.iter().map(member).collect(),
            incarnation: "0".into(),
            ..GroupStatus::default()
        };
        let status = NodeStatus { node: number, groups: vec![group], ..NodeStatus::default() };
        let directory = Directory { groups: vec![members(0, voters)], nodes: Vec::new() };
        (number, Told { status, directory })
    }

    /// A group's members, as a directory has them.
    pub fn members(group: u16, voters: &[u32]) -> GroupMembers {
        let ids: Vec<ReplicaId> = voters.iter().map(|&voter| ReplicaId(voter)).collect();
        GroupMembers { group: GroupId(group), members: Membership::genesis(&ids), applied: None }
    }

    #[test]
    fn node_is_what_the_primary_says_and_outside_only_if_that_is_committed() {
        let place = |told: &[(u32, Told)]| place(&me(), GroupId(0), &told.iter().cloned().collect());
        assert_eq!(place(&[]), None);
        assert_eq!(place(&[node(2, "follower", &[1, 2])]), None, "it may have changed since");
        assert_eq!(place(&[node(2, "primary", &[1, 2])]), Some(Place::Member));
        let outside = Membership::genesis(&[ReplicaId(2)]);
        assert_eq!(place(&[node(2, "primary", &[2])]), Some(Place::Outside(outside)));
        // Removed in the primary's log, and it is not committed; added there, the same.
        let mut removing = node(2, "primary", &[2]);
        removing.1.directory.groups = vec![members(0, &[1, 2])];
        assert_eq!(place(&[removing]), Some(Place::Member));
        let mut adding = node(2, "primary", &[1, 2]);
        adding.1.directory.groups = vec![members(0, &[2])];
        assert_eq!(place(&[adding]), Some(Place::Member));
        // One that has just become primary has not applied what another one has.
        let mut other = node(3, "follower", &[2, 3]);
        other.1.directory.groups[0].members.version = 4;
        let (behind, newest) = (node(2, "primary", &[2, 3]), other.1.directory.groups[0].members.clone());
        assert_eq!(place(&[behind, other]), Some(Place::Outside(newest)));
    }
}
