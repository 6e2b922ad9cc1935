//! Disks that go bad: bits that flip in logs and rows, no room, long flushes. What the checksums of log and store tell ends the
//! process, and keeps it from starting; an operator then gives the node an empty disk. Never more goes bad than the groups
//! survive.

use multicast::ids::{GroupId, ReplicaId};

use crate::options::MS;
use crate::planted::Bug;
use crate::world::{Node, World};

/// A disk is full, or slow, for so long at most.
const TROUBLE_MS_MAX: u64 = 3_000;

impl Node {
    /// True if something on its disk is not what was written, noticed or not.
    #[must_use]
    pub fn is_damaged(&self) -> bool {
        self.is_broken || self.disk.is_bad() || self.replicas.values().any(|replica| replica.saved.store.is_bad())
    }
}

impl World {
    fn some_node_that_may_go(&mut self) -> Option<ReplicaId> {
        let ids: Vec<ReplicaId> =
            self.nodes.values().filter(|node| !node.replicas.is_empty()).map(|node| node.id).collect();
        let id = self.rnd.choose(ids)?;
        self.may_go_bad(id).then_some(id)
    }

    /// True if the node's groups survive it although they do not notice at once.
    pub(crate) fn may_go_bad(&self, id: ReplicaId) -> bool {
        let mut groups = self.nodes.get(&id).into_iter().flat_map(|node| node.replicas.keys());
        self.may_lose_a_disk(id) && !groups.any(|&group| self.is_second(group, id))
    }

    /// True for whoever is a member beside a single voter: it may become one that the group needs before anybody notices that
    /// it is lost.
    fn is_second(&self, group: GroupId, id: ReplicaId) -> bool {
        let members = self.primary_of(group).map(|(_, core)| core.membership());
        members.is_some_and(|members| {
            members.member(id).is_some()
                && members.voters().all(|voter| voter.replica != id)
                && members.voters().count() < 2
        })
    }

    /// A bit flips in a log.
    pub(crate) fn flip_log(&mut self) {
        let Some(id) = self.some_node_that_may_go() else { return };
        let place = self.rnd.next();
        let now = self.now;
        let Some(node) = self.nodes.get_mut(&id) else { return };
        if let Some((group, index)) = node.disk.flip(place) {
            self.trace.line(now, || format!("a bit flips in entry {index} of {group} in the log of {id}"));
            self.trace.event(now, 9, u64::from(id.0), &[]);
        }
    }

    /// A bit flips in a row.
    pub(crate) fn flip_row(&mut self) {
        let Some(id) = self.some_node_that_may_go() else { return };
        let (place, now, bug) = (self.rnd.next(), self.now, self.bug);
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let groups: Vec<GroupId> = node.replicas.keys().copied().collect();
        let group = *self.rnd.pick(&groups);
        let Some(replica) = node.replicas.get_mut(&group) else { return };
        if let Some(key) = replica.flip_row(place, bug == Some(Bug::ServeBadRows)) {
            self.trace.line(now, || format!("a bit flips in row {key:x?} of {group} at {id}"));
            self.trace.event(now, 10, u64::from(id.0), &[]);
        }
    }

    /// A disk has no room for a while.
    pub(crate) fn fill_disk(&mut self) {
        let lasts = self.rnd.range(1, TROUBLE_MS_MAX) * MS;
        let ids: Vec<ReplicaId> = self.nodes.keys().copied().collect();
        let (id, now) = (*self.rnd.pick(&ids), self.now);
        if let Some(node) = self.nodes.get_mut(&id) {
            node.full_until = now + lasts;
            self.trace.line(now, || format!("the disk of {id} is full for {} ms", lasts / MS));
        }
    }

    /// A disk takes its time for a while.
    pub(crate) fn slow_disk(&mut self) {
        let lasts = self.rnd.range(1, TROUBLE_MS_MAX) * MS;
        let ids: Vec<ReplicaId> = self.nodes.keys().copied().collect();
        let (id, now) = (*self.rnd.pick(&ids), self.now);
        if let Some(node) = self.nodes.get_mut(&id) {
            node.slow_until = now + lasts;
            self.trace.line(now, || format!("the disk of {id} is slow for {} ms", lasts / MS));
        }
    }

    /// A node's process has come upon what was not written so: it ends, and does not start again with this disk.
    pub(crate) fn break_down(&mut self, id: ReplicaId, why: &str) {
        self.crash(id, why);
        let now = self.now;
        if let Some(node) = self.nodes.get_mut(&id) {
            node.is_broken = true;
            self.trace.line(now, || format!("{id} refuses its disk: {why}"));
        }
    }
}
