//! What a primary may do only with a majority behind it is compared with the disks themselves, at once: it leads if most voters
//! have promised its ballot, and it commits what most voters have. And a log on disk has no holes.

use multicast::ids::{Ballot, GroupId, LogIndex, ReplicaId};
use multicast::{Member, Membership};

use crate::disk::LogImage;
use crate::world::{Address, World};

/// How far a primary was looked at.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    ballot: Ballot,
    committed: LogIndex,
}

impl World {
    /// Call it after all that may have let a replica lead or commit, before its membership becomes another one.
    pub(crate) fn look_at_quorums(&mut self, address: Address) {
        let (group, id) = address;
        let Some(node) = self.nodes.get(&id) else { return };
        let Some(live) = node.replicas.get(&group).and_then(|replica| replica.live.as_ref()) else { return };
        let core = live.ordering();
        if core.primary() != Some(id) {
            return;
        }
        let (status, seen) = (core.status(), live.seen);
        let (ballot, committed) = (status.promised, status.committed);
        if seen.ballot < ballot && !self.most(group, &status.membership, |image| image.promised >= ballot) {
            return self.violate(format!("{id} leads {group} in {ballot:?}, which most voters have not promised"));
        }
        // What was committed before it led was so by another quorum. What it has not logged itself is looked at with what
        // follows.
        let is_own = seen.ballot == ballot && seen.committed < committed;
        let entry = node.disk.ballot(group, committed).filter(|_| is_own);
        if let Some(of) = entry {
            let has = |image: &LogImage| {
                let first = image.entries.first_key_value().map(|(&index, _)| index);
                let is_dropped = first.is_some_and(|first| first > committed);
                is_dropped || image.entries.get(&committed).is_some_and(|entry| entry.ballot == of)
            };
            if !self.most(group, &status.membership, has) {
                return self
                    .violate(format!("{id} takes {committed} of {group} for committed, which most voters lack"));
            }
        }
        let node = self.nodes.get_mut(&id).and_then(|node| node.replicas.get_mut(&group));
        if let Some(live) = node.and_then(|replica| replica.live.as_mut()) {
            live.seen = Seen { ballot, committed };
        }
    }

    /// True if that is so on the disks of most voters. Of a disk that is gone nothing can be said: it may have been so.
    fn most(&self, group: GroupId, members: &Membership, holds: impl Fn(&LogImage) -> bool) -> bool {
        let is_so = |voter: &&Member| {
            let is_there = self.incarnation(group, voter.replica) == Some(voter.incarnation);
            let node = self.nodes.get(&voter.replica).filter(|_| is_there);
            node.is_none_or(|node| holds(&node.disk.durable(group)))
        };
        members.voters().filter(is_so).count() >= members.quorum_size()
    }

    /// After each write.
    pub(crate) fn look_at_log(&mut self, group: GroupId, id: ReplicaId) {
        let hole = self.nodes.get(&id).and_then(|node| node.disk.hole(group));
        if let Some((from, until)) = hole {
            self.violate(format!("the log of {group} at {id} goes from {from} to {until}, and has less in between"));
        }
    }
}

/// At the end: what a log has of what its replica has applied is what the group has applied.
///
/// # Errors
/// What is wrong.
pub fn check(world: &World) -> Result<(), String> {
    for (node, &group, replica) in
        world.nodes.values().flat_map(|node| node.replicas.iter().map(move |(group, replica)| (node, group, replica)))
    {
        let Some(live) = &replica.live else { continue };
        let applied = live.ordering().order().applied();
        for (index, record) in node.disk.records(group, applied) {
            if world.ledger.record(group, index).is_some_and(|known| known != record) {
                return Err(format!("the log of {group} at {} has something else at {index}", node.id));
            }
        }
    }
    Ok(())
}
