//! Operators and lost disks: members that come, go and come back, and copies of states.

use bytes::Bytes;
use multicast::ids::{GroupId, Incarnation, LogIndex, ReplicaId};
use multicast::{ChangeRefused, MemberChange, MemberRole, Membership, Snapshot};

use super::checks::Checks;
use super::node::Store;
use super::sim::{Address, Happening, MS, Sim};

impl Sim {
    /// All replicas of a group, members or not.
    pub fn replicas(&self, group: GroupId) -> Vec<ReplicaId> {
        self.nodes.keys().filter(|address| address.0 == group).map(|address| address.1).collect()
    }

    pub fn change_members(&mut self, address: Address, change: MemberChange) -> Result<LogIndex, ChangeRefused> {
        let mut changed = Err(ChangeRefused::NotPrimary { hint: None });
        self.on_core(address, |core, time| changed = core.change_membership(time, change));
        changed
    }

    /// What was committed may be another thing from now on.
    pub fn forget_records(&mut self) {
        self.checks = Checks::default();
    }

    pub fn force(&mut self, address: Address, act: impl FnOnce(&mut multicast::Core, multicast::Time)) {
        self.on_core(address, act);
    }

    pub fn hand_over(&mut self, address: Address) -> Option<ReplicaId> {
        let mut target = None;
        self.on_core(address, |core, time| target = core.hand_over(time));
        target
    }

    /// Its disk is lost, and it comes back with an empty one.
    pub fn wipe(&mut self, address: Address) -> Incarnation {
        let incarnation = Incarnation(self.rnd.next() | 1);
        self.crash(address);
        self.nodes.get_mut(&address).unwrap().wipe(incarnation);
        incarnation
    }

    /// True if every member has the disk that the membership names, and none is on its way to become a voter.
    pub fn is_settled(&self, group: GroupId, members: &Membership) -> bool {
        members.members.iter().all(|member| {
            member.role != MemberRole::Joining
                && self.nodes[&(group, member.replica)].config.incarnation == member.incarnation
        })
    }

    /// True if all replicas of the group run and have the same members in their logs, each with its own disk: then one voter
    /// of three may lose its disk, and nothing is lost.
    fn may_lose_a_disk(&self, primary: Address) -> bool {
        let members = self.core(primary).membership();
        let of_group = self.nodes.iter().filter(|(address, _)| address.0 == primary.0);
        let is_committed =
            self.core(primary).order().membership().map_or(0, |applied| applied.version) == members.version;
        is_committed
            && members.voters().count() >= 3
            && members
                .voters()
                .all(|voter| self.nodes[&(primary.0, voter.replica)].config.incarnation == voter.incarnation)
            && of_group.filter(|(address, _)| members.member(address.1).is_some()).all(|(_, node)| {
                node.frozen_until <= self.now
                    && node.core.as_ref().is_some_and(|core| core.membership().version == members.version)
            })
            && self
                .nodes
                .iter()
                .filter(|(address, _)| address.0 == primary.0)
                .all(|(_, node)| node.core.as_ref().is_some_and(|core| core.membership().version <= members.version))
    }

    pub(super) fn operate(&mut self) {
        let every = self.options.operator_every_ms;
        let groups: Vec<GroupId> = self.voters.keys().copied().collect();
        let group = *self.rnd.pick(&groups);
        if let Some(primary) = self.primary(group) {
            if self.faults {
                self.operate_on(primary)
            } else {
                self.replace_lost(primary)
            };
        }
        let next = self.rnd.range(1, every * 2) * MS;
        self.at(next, Happening::Operate);
    }

    fn replace_lost(&mut self, primary: Address) {
        let members = self.core(primary).membership().clone();
        let lost = members.members.iter().find_map(|member| {
            let incarnation = self.nodes[&(primary.0, member.replica)].config.incarnation;
            (incarnation != member.incarnation).then_some((member.replica, incarnation))
        });
        if let Some((replica, incarnation)) = lost {
            let _ = self.change_members(primary, MemberChange::Replace { replica, incarnation });
        }
    }

    fn operate_on(&mut self, primary: Address) {
        let group = primary.0;
        let members = self.core(primary).membership().clone();
        let replicas = self.replicas(group);
        let replica = *self.rnd.pick(&replicas);
        let incarnation = self.nodes[&(group, replica)].config.incarnation;
        let voters = members.voters().count();
        let has_lost =
            members.voters().any(|voter| self.nodes[&(group, voter.replica)].config.incarnation != voter.incarnation);
        if has_lost {
            // Whoever takes away another voter now, takes the quorum away.
            return self.replace_lost(primary);
        }
        let change = match (self.rnd.below(8), members.member(replica).map(|member| member.role)) {
            (0, _) => {
                self.hand_over(primary);
                return;
            }
            (1 | 2, Some(_)) if self.options.wipes && self.may_lose_a_disk(primary) => {
                self.wipe((group, replica));
                let down = self.rnd.range(1, 3_000) * MS;
                return self.at(down, Happening::Restart { node: (group, replica) });
            }
            (1 | 2, _) => return self.replace_lost(primary),
            (3, None) => MemberChange::AddLearner { replica, incarnation },
            (_, None) if voters < 5 => MemberChange::AddVoter { replica, incarnation },
            (3 | 4, Some(MemberRole::Learner)) => MemberChange::AddVoter { replica, incarnation },
            (_, Some(MemberRole::Learner | MemberRole::Joining)) if voters < 5 => MemberChange::Promote { replica },
            (5.., Some(MemberRole::Voter)) if voters > 2 => MemberChange::Remove { replica },
            (7, Some(_)) if voters > 2 => MemberChange::Remove { replica },
            _ => return,
        };
        let changed = self.change_members(primary, change);
        self.changes += u64::from(changed.is_ok());
    }

    pub(super) fn send_copy(&mut self, from: Address, life: u64, to: ReplicaId, incarnation: Incarnation) {
        let copied = self.nodes.get_mut(&from).unwrap().copy();
        let target = (from.0, to);
        let is_lost = self.no_copies || self.cuts.contains(&(from, target)) || (self.faults && self.rnd.chance(200));
        let delay = self.rnd.range(5, 500) * MS;
        match copied.filter(|_| !is_lost) {
            Some((snapshot, store)) => {
                let (snapshot, store) = (snapshot.encode(), Box::new(store));
                self.at(delay, Happening::Copied { from, life, to: target, incarnation, snapshot, store });
            }
            None => self.at(delay, Happening::CopySent { from, life, to, installed: None }),
        }
    }

    pub(super) fn install(
        &mut self,
        to: Address,
        incarnation: Incarnation,
        snapshot: &Bytes,
        store: Store,
    ) -> Option<LogIndex> {
        let snapshot = Snapshot::decode(snapshot).unwrap();
        let crashes = self.faults && self.options.crash_every_ms > 0 && self.rnd.chance(300);
        let node = self.nodes.get_mut(&to).unwrap();
        if node.config.incarnation != incarnation {
            return None;
        }
        let order = node.install(snapshot, store)?;
        let index = order.applied();
        self.copies += 1;
        if crashes {
            // The state is in its place, the log is not.
            self.crash(to);
            let down = self.rnd.range(1, 500) * MS;
            self.at(down, Happening::Restart { node: to });
        } else {
            self.on_core(to, |core, time| core.install_snapshot(time, order).unwrap());
        }
        Some(index)
    }
}
