//! Operators: members that come, go and are promoted, primaries that hand over, nodes that are stopped in order, disks that
//! are replaced.

use std::collections::{BTreeMap, BTreeSet};

use multicast::core::RoleName;
use multicast::ids::{GroupId, Incarnation, ReplicaId};
use multicast::{Config, Core, MemberChange, MemberRole, Membership};

use crate::disk::Disk;
use crate::options::MS;
use crate::planted::Bug;
use crate::replica::{Live, Replica};
use crate::world::{Event, Node, World};

/// A node that stops waits for so long until others lead.
const HAND_OVER_NS: u64 = 300 * MS;
const LOOK_AGAIN_NS: u64 = 20 * MS;
/// An operator looks after lost disks so often.
const MAINTAIN_NS: u64 = 700 * MS;
/// A group grows to so many voters at most.
const VOTERS_MAX: usize = 5;

/// What operators know, and have done.
#[derive(Debug, Default)]
pub struct Operator {
    /// The nodes that host a replica of each group, as everybody is told.
    pub hosts: BTreeMap<GroupId, Vec<ReplicaId>>,
    /// Members that were no members at some time, or came with another disk.
    pub newcomers: BTreeSet<(GroupId, ReplicaId)>,
    /// Replicas that are to end once they are no members any more.
    pub removed: Vec<(GroupId, ReplicaId)>,
    /// Changes of memberships that were logged.
    pub changes: u64,
    /// Disks that began anew.
    pub wipes: u64,
    /// Replicas whose groups have found out that their states were others.
    pub quarantined: u64,
    /// Copies of states that were sent.
    pub copies_sent: u64,
    /// … and put in place.
    pub copies_installed: u64,
}

impl World {
    /// A group's primary.
    pub(crate) fn primary_of(&self, group: GroupId) -> Option<(ReplicaId, &Core)> {
        let cores = self.nodes.values().filter_map(|node| {
            let replica = node.replicas.get(&group)?;
            Some((node.id, replica.live.as_ref()?.ordering()))
        });
        cores.filter(|(_, core)| core.is_ready()).max_by_key(|(_, core)| core.status().promised)
    }

    /// True if the group goes on, with all that it has acknowledged, when this node's disk is lost: its members run, agree on
    /// who they are, are sound but perhaps for that one, and are enough.
    fn group_may_lose(&self, group: GroupId, id: ReplicaId) -> bool {
        let Some((_, core)) = self.primary_of(group) else { return false };
        let members = core.membership();
        let applied = core.order().membership().map_or(0, |applied| applied.version);
        if members.member(id).is_none() && applied == members.version {
            // Whoever left has nothing that counts, however ill the members are: else two nodes wait for each other, for ever.
            return self.is_newest(group, core);
        }
        let is_needed = members.member(id).is_some_and(multicast::Member::is_voter) && members.voters().count() < 3;
        let agrees = |live: &Live| live.ordering().membership().version == members.version;
        let has_newer = |node: &Node| {
            let live = node.replicas.get(&group).and_then(|replica| replica.live.as_ref());
            live.is_some_and(|live| live.ordering().membership().version > members.version)
        };
        !is_needed
            && applied == members.version
            && members.members.iter().all(|member| {
                let node = self.nodes.get(&member.replica).filter(|node| node.id != id);
                let is_sound = |node: &Node| {
                    let replica = node.replicas.get(&group);
                    let is_as_known = |replica: &Replica| {
                        replica.is_sound()
                            && replica.config.incarnation == member.incarnation
                            && replica.live.as_ref().is_some_and(agrees)
                    };
                    node.up && node.paused_until <= self.now && !node.is_damaged() && replica.is_some_and(is_as_known)
                };
                member.replica == id || node.is_some_and(is_sound)
            })
            && !self.nodes.values().any(has_newer)
    }

    /// True if nobody can lead the group, or have changed its members, behind the back of this primary, which has applied its
    /// membership: any later quorum shares a voter with those that are asked here.
    fn is_newest(&self, group: GroupId, core: &Core) -> bool {
        let promised = core.status().promised;
        core.membership().voters().all(|voter| {
            self.incarnation(group, voter.replica) == Some(voter.incarnation)
                && self.nodes.get(&voter.replica).is_some_and(|node| node.disk.durable(group).promised <= promised)
        })
    }

    /// The same for all groups of a node.
    pub(crate) fn may_lose_a_disk(&self, id: ReplicaId) -> bool {
        let groups = self.nodes.get(&id).map(|node| node.replicas.keys().copied().collect::<Vec<_>>());
        groups.unwrap_or_default().into_iter().all(|group| self.group_may_lose(group, id))
    }

    /// True if this replica has missed a part of its group's history for good reason: then it may lack what was dropped.
    pub(crate) fn is_newcomer(&self, group: GroupId, id: ReplicaId) -> bool {
        let is_founder = self.options.groups.get(&group).is_some_and(|voters| voters.contains(&id));
        !is_founder || self.operator.newcomers.contains(&(group, id))
    }

    /// An operator does something to some group.
    pub(crate) fn operate(&mut self) {
        let groups: Vec<GroupId> = self.options.groups.keys().copied().collect();
        let group = *self.rnd.pick(&groups);
        let Some((primary, core)) = self.primary_of(group) else { return };
        let members = core.membership().clone();
        let all: Vec<ReplicaId> = self.nodes.keys().copied().collect();
        let hosts = self.hosts(group).to_vec();
        let id = if self.rnd.chance(650) { *self.rnd.pick(&hosts) } else { *self.rnd.pick(&all) };
        let dice = self.rnd.below(8);
        if dice == 0 {
            return self.hand_over(group, primary);
        }
        if self.nodes.get(&id).is_none_or(|node| !node.up || node.is_damaged()) {
            return;
        }
        let known = self.incarnation(group, id);
        let incarnation = known.unwrap_or(Incarnation(self.rnd.next() | 1));
        // Whoever takes a voter away while another one is lost, takes the quorum away.
        let may_shrink = members.voters().count() > 2 && self.is_whole(group, &members);
        let Some(change) = change_of(dice, &members, (id, incarnation), may_shrink) else { return };
        self.host(group, id, incarnation);
        self.change_members(group, primary, change);
    }

    fn is_whole(&self, group: GroupId, members: &Membership) -> bool {
        members.members.iter().all(|member| {
            let node = self.nodes.get(&member.replica);
            member.role != MemberRole::Joining
                && self.incarnation(group, member.replica) == Some(member.incarnation)
                && node
                    .is_some_and(|node| !node.is_damaged() && node.replicas.get(&group).is_some_and(Replica::is_sound))
        })
    }

    /// The nodes that host a group.
    pub(crate) fn hosts(&self, group: GroupId) -> &[ReplicaId] {
        self.operator.hosts.get(&group).map_or(&[], Vec::as_slice)
    }

    /// Which one the node's replica of that group is.
    pub(crate) fn incarnation(&self, group: GroupId, id: ReplicaId) -> Option<Incarnation> {
        Some(self.nodes.get(&id)?.replicas.get(&group)?.config.incarnation)
    }

    /// A node hosts a group from now on, as a stranger at first.
    fn host(&mut self, group: GroupId, id: ReplicaId, incarnation: Incarnation) {
        if self.hosts(group).contains(&id) {
            return;
        }
        let (now, seed) = (self.now, self.rnd.next());
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let mut replica = new_replica(&self.options, group, (id, incarnation), seed, self.bug);
        let (life, time) = (node.life, node.clock.time(now));
        let started = if node.up { replica.start(time, &node.disk) } else { Ok(()) };
        node.replicas.insert(group, replica);
        self.operator.hosts.entry(group).or_default().push(id);
        self.trace.line(now, || format!("{id} hosts {group} from now on"));
        match started {
            Ok(()) => self.begin_replica(id, life, group),
            Err(why) => self.violate(format!("{id} cannot host {group}: {why:?}")),
        }
    }

    fn change_members(&mut self, group: GroupId, primary: ReplicaId, change: MemberChange) -> bool {
        let now = self.now;
        let Some(node) = self.nodes.get_mut(&primary) else { return false };
        let time = node.clock.time(now);
        let Some(live) = node.replicas.get_mut(&group).and_then(|replica| replica.live.as_mut()) else { return false };
        let changed = live.core.change_membership(time, change);
        self.trace.line(now, || format!("operator at {group}/{primary}: {change:?}: {changed:?}"));
        if changed.is_ok() {
            self.operator.changes += 1;
            self.operator.newcomers.insert((group, change.replica()));
            if matches!(change, MemberChange::Remove { .. }) && self.rnd.chance(500) {
                self.operator.removed.push((group, change.replica()));
            }
        }
        self.wake((group, primary));
        changed.is_ok()
    }

    fn hand_over(&mut self, group: GroupId, id: ReplicaId) {
        let now = self.now;
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let time = node.clock.time(now);
        let Some(live) = node.replicas.get_mut(&group).and_then(|replica| replica.live.as_mut()) else { return };
        if let Some(target) = live.core.hand_over(time) {
            self.trace.line(now, || format!("{group}/{id} hands over to {target}"));
        }
        self.wake((group, id));
    }

    /// A node is to stop in order.
    pub(crate) fn stop_one(&mut self) {
        let up: Vec<ReplicaId> = self.nodes.values().filter(|node| node.up).map(|node| node.id).collect();
        let Some(id) = self.rnd.choose(up) else { return };
        let Some(node) = self.nodes.get(&id) else { return };
        let (life, groups) = (node.life, node.replicas.keys().copied().collect::<Vec<_>>());
        self.trace.line(self.now, || format!("{id} is to stop"));
        for group in groups {
            self.hand_over(group, id);
        }
        let until = self.now + HAND_OVER_NS;
        self.after(0, Event::Stopping { node: id, life, until });
    }

    /// It waits for others to lead, then stops: all that was written is durable.
    pub(crate) fn stopping(&mut self, id: ReplicaId, life: u64, until: u64) {
        let Some(node) = self.nodes.get_mut(&id).filter(|node| node.up && node.life == life) else { return };
        let leads = |replica: &Replica| {
            let role = replica.live.as_ref().map(|live| live.ordering().status().role);
            matches!(role, Some(RoleName::Primary | RoleName::Recovering))
        };
        if self.now < until && node.replicas.values().any(leads) {
            return self.after(LOOK_AGAIN_NS, Event::Stopping { node: id, life, until });
        }
        node.disk.flush_all();
        node.replicas.values_mut().for_each(Replica::flush_store);
        self.crash_for_a_while(id, "stopped in order");
    }

    /// Some disk is lost.
    pub(crate) fn wipe_one(&mut self) {
        let quarantined = |node: &&Node| node.replicas.values().any(Replica::is_quarantined);
        let ids: Vec<ReplicaId> = self.nodes.keys().copied().collect();
        let ill: Vec<ReplicaId> = self.nodes.values().filter(quarantined).map(|node| node.id).collect();
        let from = if ill.is_empty() || self.rnd.chance(300) { ids } else { ill };
        let id = *self.rnd.pick(&from);
        let holds = self.nodes.get(&id).is_some_and(|node| !node.replicas.is_empty());
        if holds && self.may_go_bad(id) {
            self.wipe(id, "a disk is lost");
            let down = self.rnd.range(1, 3_000) * MS;
            self.after(down, Event::Start { node: id });
        }
    }

    /// A node begins anew with an empty disk, as another member of its groups.
    pub(crate) fn wipe(&mut self, id: ReplicaId, why: &str) {
        self.crash(id, why);
        let keeps_number = self.bug == Some(Bug::WipedVotes);
        let Some(node) = self.nodes.get_mut(&id) else { return };
        node.is_broken = false;
        node.disk = Disk::default();
        for (&group, replica) in &mut node.replicas {
            let drawn = Incarnation(self.rnd.next() | 1);
            replica.wipe(if keeps_number { replica.config.incarnation } else { drawn });
            self.operator.newcomers.insert((group, id));
        }
        self.operator.wipes += 1;
        self.trace.line(self.now, || format!("{id} has an empty disk"));
        self.trace.event(self.now, 8, u64::from(id.0), &[]);
    }

    /// Those that are no members any more end, with all that they have.
    fn end_removed(&mut self) {
        for (group, id) in std::mem::take(&mut self.operator.removed) {
            let Some((_, core)) = self.primary_of(group) else { continue };
            // It may have been taken in again.
            let is_gone = core.order().membership().is_some_and(|members| members.member(id).is_none())
                && core.membership().member(id).is_none();
            let Some(node) = self.nodes.get_mut(&id).filter(|node| node.up && is_gone) else { continue };
            node.replicas.remove(&group);
            node.disk.forget(group);
            self.operator.hosts.entry(group).or_default().retain(|host| *host != id);
            self.trace.line(self.now, || format!("the replica of {group} at {id} ends"));
        }
    }

    /// An operator looks after what primaries do not do by themselves.
    pub(crate) fn maintain(&mut self) {
        self.end_removed();
        let groups: Vec<GroupId> = self.options.groups.keys().copied().collect();
        let by_hand = !self.options.operators.auto_replace;
        for group in groups.into_iter().filter(|_| by_hand) {
            let Some((primary, core)) = self.primary_of(group) else { continue };
            let lost = core.membership().members.iter().find_map(|member| {
                let found = self.incarnation(group, member.replica)?;
                (found != member.incarnation).then_some((member.replica, found))
            });
            if let Some((replica, incarnation)) = lost {
                self.change_members(group, primary, MemberChange::Replace { replica, incarnation });
            }
        }
        let broken: Vec<ReplicaId> = self.nodes.values().filter(|node| node.is_broken).map(|node| node.id).collect();
        for id in broken {
            if self.may_lose_a_disk(id) {
                self.wipe(id, "its disk is replaced");
                let down = self.rnd.range(1, 1_000) * MS;
                self.after(down, Event::Start { node: id });
            }
        }
        self.after(MAINTAIN_NS, Event::Maintain);
    }
}

/// What becomes of a node's part in a group.
fn change_of(
    dice: u64,
    members: &Membership,
    (replica, incarnation): (ReplicaId, Incarnation),
    may_shrink: bool,
) -> Option<MemberChange> {
    // Whoever waits to become one counts: beyond the most that a group may have it would wait until another one goes.
    let voters = members.members.iter().filter(|member| member.role != MemberRole::Learner).count();
    let role = members.member(replica).map(|member| member.role);
    Some(match (dice, role) {
        (1..=3, None) => MemberChange::AddLearner { replica, incarnation },
        (_, None) if voters < VOTERS_MAX => MemberChange::AddVoter { replica, incarnation },
        (1..=2, Some(MemberRole::Learner)) if voters < VOTERS_MAX => MemberChange::AddVoter { replica, incarnation },
        (3..=5, Some(MemberRole::Joining)) => MemberChange::Promote { replica },
        (3..=5, Some(MemberRole::Learner)) if voters < VOTERS_MAX => MemberChange::Promote { replica },
        (6.., Some(MemberRole::Learner | MemberRole::Joining)) => MemberChange::Remove { replica },
        (4.., Some(MemberRole::Voter)) if may_shrink => MemberChange::Remove { replica },
        _ => return None,
    })
}

/// A replica that has never run.
pub(crate) fn new_replica(
    options: &crate::options::Options,
    group: GroupId,
    (id, incarnation): (ReplicaId, Incarnation),
    seed: u64,
    bug: Option<Bug>,
) -> Replica {
    let mut config = Config::new(group, id, options.groups.clone());
    config.seed = seed;
    config.incarnation = incarnation;
    config.auto_replace = options.operators.auto_replace;
    config.timing = options.timing;
    config.limits = options.limits;
    Replica::new(config, options, bug)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::options::Options;

    /// A node that refuses its disk waited for a member of a group that it had left, in whose rows a bit had flipped: nobody
    /// comes upon that row, and so the other groups of that node waited for ever.
    #[test]
    fn who_has_left_a_group_needs_no_sound_members_there() {
        let (seed, group, voters) = (1..)
            .find_map(|seed| {
                let groups = Options::calm(seed).groups;
                groups.into_iter().find(|(_, voters)| voters.len() == 3).map(|(group, voters)| (seed, group, voters))
            })
            .unwrap();
        let mut world = World::new(seed, Options::calm(seed), None, false);
        world.run_until(3_000 * MS).unwrap();
        let (primary, _) = world.primary_of(group).unwrap();
        let others: Vec<ReplicaId> = voters.into_iter().filter(|&id| id != primary).collect();
        let [gone, ill] = others[..] else { unreachable!("three voters") };
        assert!(world.change_members(group, primary, MemberChange::Remove { replica: gone }));
        assert!(!world.group_may_lose(group, gone), "the change may still be lost");
        world.run_until(5_000 * MS).unwrap();
        assert!(world.nodes.get_mut(&ill).unwrap().replicas.get_mut(&group).unwrap().flip_row(0, false).is_some());
        assert!(world.group_may_lose(group, gone));
        assert!(!world.group_may_lose(group, primary));
    }
}
