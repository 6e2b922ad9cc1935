//! Members that come and go, lost disks, copies of states, hand-over: each trap set up by hand.

#![allow(clippy::unwrap_used)]

mod harness;

use std::sync::Arc;

use bytes::Bytes;
use harness::sim::{Address, MS, Options, Sim};
use multicast::command::{Command, Destination, Key, Mode};
use multicast::ids::{CommandId, GroupId, Incarnation, ReplicaId, SessionId, VectorClock};
use multicast::{ChangeRefused, Entry, Event, ForceRefused, MemberChange, MemberRole, Message, Record};

const A: GroupId = GroupId(0);
const B: GroupId = GroupId(1);
const SESSION: SessionId = SessionId(7);

fn write(sequence: u64, groups: &[GroupId]) -> Arc<Command> {
    let footprint = |&group: &GroupId| Destination { group, footprint: vec![(Key(1), Mode::Write)].into() };
    Arc::new(Command {
        id: CommandId { session: SESSION, sequence },
        acknowledged_below: 0,
        clock: VectorClock::new(),
        destinations: groups.iter().map(footprint).collect(),
        payload: Bytes::from_static(b"payload"),
    })
}

fn cluster(voters: &[usize], spares: usize, adjust: impl Fn(&mut Options)) -> Sim {
    let mut options = Options { spares, ..Options::calm(voters) };
    adjust(&mut options);
    let mut sim = Sim::new(1, options);
    sim.settle();
    sim.open_everywhere(SESSION);
    sim
}

/// Submits at the group's primary; true if it was executed within so long.
fn executes(sim: &mut Sim, group: GroupId, command: &Arc<Command>, within_ms: u64) -> bool {
    let primary = sim.primary(group).unwrap();
    sim.submit(primary, command);
    sim.run_for_ms(within_ms);
    sim.replies.contains_key(&command.id)
}

fn replica(sim: &Sim, at: usize) -> Address {
    (A, sim.replicas(A)[at])
}

fn incarnation(sim: &Sim, address: Address) -> Incarnation {
    sim.nodes[&address].config.incarnation
}

/// Changes members at the primary, and waits until the change is committed.
fn change(sim: &mut Sim, group: GroupId, change: MemberChange) {
    let primary = sim.primary(group).unwrap();
    sim.change_members(primary, change).unwrap();
    sim.run_for_ms(2_000);
}

fn add_voter(sim: &mut Sim, address: Address) {
    let incarnation = incarnation(sim, address);
    change(sim, address.0, MemberChange::AddVoter { replica: address.1, incarnation });
    let primary = sim.primary(address.0).unwrap();
    assert!(sim.core(primary).membership().is_voter(address.1, incarnation), "it has caught up and counts");
}

fn add_learner(sim: &mut Sim, address: Address) {
    let incarnation = incarnation(sim, address);
    change(sim, address.0, MemberChange::AddLearner { replica: address.1, incarnation });
}

#[test]
fn hand_over_takes_less_than_100_ms() {
    let mut sim = cluster(&[3], 0, |_| {});
    let old = sim.primary(A).unwrap();
    let target = sim.hand_over(old).unwrap();
    let late = write(1, &[A]);
    sim.submit(old, &late);
    sim.run_for_ms(1);
    assert!(sim.declined.contains_key(&late.id), "nothing is taken that would get lost");
    sim.run_for_ms(99);
    assert_eq!(sim.primary(A), Some((A, target)));
    assert!(executes(&mut sim, A, &late, 20));
}

#[test]
fn hand_over_prefers_the_most_advanced() {
    let mut sim = cluster(&[3], 0, |_| {});
    let (old, second) = (sim.primary(A).unwrap(), replica(&sim, 1));
    sim.filter = Some(Box::new(move |_, to, message| {
        to == second && matches!(message, Message::Append { entries, .. } if !entries.is_empty())
    }));
    assert!(executes(&mut sim, A, &write(1, &[A]), 50));
    assert_eq!(sim.hand_over(old), Some(replica(&sim, 2).1));
    assert_eq!(sim.hand_over(second), None, "it is no primary");
}

#[test]
fn c19_learner_gets_what_is_committed_and_never_counts() {
    let mut sim = cluster(&[3], 1, |_| {});
    let (learner, primary) = (replica(&sim, 3), sim.primary(A).unwrap());
    add_learner(&mut sim, learner);
    assert_eq!(sim.core(learner).order().applied(), sim.core(primary).order().applied());
    // The voters' acknowledgements get lost, the learner's do not.
    sim.filter = Some(Box::new(move |from, _, message| from != learner && matches!(message, Message::Appended { .. })));
    assert!(!executes(&mut sim, A, &write(1, &[A]), 500));
    let (last, has) = (sim.core(primary).status().last, sim.core(learner).status().last);
    assert!(has < last && has == sim.core(primary).status().committed);
    sim.filter = None;
    sim.run_for_ms(5_000);
    assert!(executes(&mut sim, A, &write(2, &[A]), 500));
    assert_eq!(sim.core(learner).order().applied(), sim.core(sim.primary(A).unwrap()).order().applied());
}

#[test]
fn c5_wiped_voter_neither_votes_nor_counts() {
    let mut sim = cluster(&[3], 0, |_| {});
    let [first, second, third] = [0, 1, 2].map(|at| replica(&sim, at));
    sim.cut(first, third);
    sim.cut(second, third);
    assert!(executes(&mut sim, A, &write(1, &[A]), 100));
    // The command is on two disks. One of them is away, the other is lost: those that are left must not go on without it.
    sim.crash(first);
    sim.wipe(second);
    sim.restart(second);
    sim.heal();
    sim.run_for_ms(20_000);
    assert_eq!(sim.primary(A), None);
    sim.restart(first);
    sim.run_for_ms(20_000);
    assert!(executes(&mut sim, A, &write(2, &[A]), 100));
    let members = sim.core(sim.primary(A).unwrap()).membership().clone();
    assert!(members.is_voter(second.1, incarnation(&sim, second)), "{members:?}");
    let order: Vec<u64> = sim.histories()[&A].iter().map(|executed| executed.id.sequence).collect();
    assert_eq!(order, [1, 2]);
}

#[test]
fn wiped_voter_is_left_alone_unless_it_may_be_replaced() {
    let mut sim = cluster(&[3], 0, |options| options.auto_replace = false);
    let (primary, second) = (sim.primary(A).unwrap(), replica(&sim, 1));
    let incarnation = sim.wipe(second);
    sim.restart(second);
    sim.run_for_ms(10_000);
    assert_eq!(sim.core(primary).membership().version, 0);
    assert!(sim.core(primary).status().followers.iter().any(|follower| follower.other_disk == Some(incarnation)));
    let told = sim.events.iter().filter(|(_, event)| matches!(event, Event::DiskReplaced { .. })).count();
    assert_eq!(told, 1);
    change(&mut sim, A, MemberChange::Replace { replica: second.1, incarnation });
    assert!(sim.core(primary).membership().is_voter(second.1, incarnation));
}

/// Ongaro's single-server changes are safe only behind an entry of the primary's own ballot: here two primaries in a row have
/// each changed another thing, and without the rule their quorums would not share a voter.
#[test]
fn membership_changes_only_behind_an_entry_of_the_own_ballot_and_one_at_a_time() {
    let mut sim = cluster(&[3], 2, |_| {});
    let (learner, other) = (replica(&sim, 3), replica(&sim, 4));
    add_learner(&mut sim, learner);
    let target = sim.hand_over(sim.primary(A).unwrap()).unwrap();
    let next = (A, target);
    sim.filter = Some(Box::new(|_, _, message| matches!(message, Message::Appended { .. })));
    sim.run_for_ms(50);
    assert!(sim.core(next).status().role == multicast::core::RoleName::Recovering, "{:?}", sim.core(next).status());
    let promote = MemberChange::Promote { replica: learner.1 };
    assert_eq!(sim.change_members(next, promote), Err(ChangeRefused::NotReady));
    sim.filter = None;
    sim.run_for_ms(500);
    sim.change_members(next, MemberChange::Remove { replica: learner.1 }).unwrap();
    let incarnation = incarnation(&sim, other);
    let add = MemberChange::AddLearner { replica: other.1, incarnation };
    assert_eq!(sim.change_members(next, add), Err(ChangeRefused::UnderWay));
    sim.run_for_ms(100);
    assert!(sim.change_members(next, add).is_ok());
}

/// Three replicas. The first is cut off from the others; in its log alone a change removes the last.
fn primary_with_a_change_of_its_own() -> (Sim, Address) {
    let mut sim = cluster(&[3], 0, |_| {});
    let [old, second, third] = [0, 1, 2].map(|at| replica(&sim, at));
    assert_eq!(sim.primary(A), Some(old));
    sim.cut(old, second);
    sim.cut(old, third);
    sim.change_members(old, MemberChange::Remove { replica: third.1 }).unwrap();
    sim.run_for_ms(5_000);
    (sim, old)
}

#[test]
fn uncommitted_change_falls_back_to_the_former_membership() {
    let (mut sim, old) = primary_with_a_change_of_its_own();
    assert_eq!(sim.core(old).membership().voters().count(), 2);
    assert!(executes(&mut sim, A, &write(1, &[A]), 500), "the others go on as three");
    sim.heal();
    sim.run_for_ms(3_000);
    assert_eq!(sim.core(old).membership().version, 0);
    assert_eq!(sim.core(old).membership().voters().count(), 3);
}

#[test]
fn primary_that_removes_itself_leaves_once_that_is_committed() {
    let mut sim = cluster(&[3], 0, |_| {});
    let old = sim.primary(A).unwrap();
    sim.change_members(old, MemberChange::Remove { replica: old.1 }).unwrap();
    sim.run_for_ms(100);
    let new = sim.primary(A).unwrap();
    assert_ne!(new, old);
    assert_eq!(sim.core(new).order().membership().unwrap().voters().count(), 2);
    assert!(executes(&mut sim, A, &write(1, &[A]), 100));
}

#[test]
fn removed_replica_disturbs_nobody() {
    let mut sim = cluster(&[3], 0, |_| {});
    let (primary, removed) = (sim.primary(A).unwrap(), replica(&sim, 2));
    change(&mut sim, A, MemberChange::Remove { replica: removed.1 });
    let promised = sim.core(primary).status().promised;
    for _ in 0..5 {
        sim.run_for_ms(3_000);
        sim.crash(removed);
        sim.restart(removed);
    }
    sim.run_for_ms(3_000);
    assert_eq!(sim.core(primary).status().promised, promised);
    assert!(sim.core(removed).status().is_expelled);
    assert_eq!(sim.core(removed).status().role, multicast::core::RoleName::Follower);
    // It may come back.
    add_voter(&mut sim, removed);
    assert!(!sim.core(removed).status().is_expelled);
}

#[test]
fn changes_that_make_no_sense_are_refused() {
    let mut sim = cluster(&[3, 1], 1, |_| {});
    let (primary, spare) = (sim.primary(A).unwrap(), replica(&sim, 3));
    let (replica, disk) = (spare.1, incarnation(&sim, spare));
    let mut refused = |address, change| sim.change_members(address, change).unwrap_err();
    let promote = MemberChange::Promote { replica };
    assert_eq!(refused(primary, promote), ChangeRefused::NotAMember(replica));
    assert_eq!(refused(primary, MemberChange::Remove { replica }), ChangeRefused::NotAMember(replica));
    let again = MemberChange::AddVoter { replica: primary.1, incarnation: Incarnation::GENESIS };
    assert_eq!(refused(primary, again), ChangeRefused::AlreadyThere(primary.1));
    let other = MemberChange::AddLearner { replica: primary.1, incarnation: Incarnation(9) };
    assert_eq!(refused(primary, other), ChangeRefused::OtherDisk(primary.1));
    assert!(matches!(refused(spare, promote), ChangeRefused::NotPrimary { .. }));
    let only = sim.primary(B).unwrap();
    assert_eq!(sim.change_members(only, MemberChange::Remove { replica: only.1 }), Err(ChangeRefused::LastVoter));
    // A learner that is not there, then one that lacks what makes it a member.
    sim.crash(spare);
    sim.change_members(primary, MemberChange::AddLearner { replica, incarnation: disk }).unwrap();
    sim.run_for_ms(100);
    assert_eq!(sim.change_members(primary, promote), Err(ChangeRefused::Silent(replica)));
    // With one voter down, the other two are needed.
    let second = self::replica(&sim, 1);
    sim.crash(self::replica(&sim, 2));
    sim.run_for_ms(1_500);
    let remove = MemberChange::Remove { replica: second.1 };
    assert_eq!(sim.change_members(primary, remove), Err(ChangeRefused::NoQuorumLeft));
}

#[test]
fn c17_copy_of_a_state_has_what_is_under_way() {
    let mut sim = cluster(&[3, 1], 0, |options| options.log_entries_max = 5);
    let (lagging, b) = (replica(&sim, 2), sim.primary(B).unwrap());
    sim.crash(lagging);
    // Prepared in A, answered by nobody for long.
    sim.cut_groups(A, B);
    let both = write(1, &[A, B]);
    assert!(!executes(&mut sim, A, &both, 10));
    for sequence in 2..60 {
        let mut other = Command::clone(&write(sequence, &[A]));
        other.destinations[0].footprint[0].0 = Key(2);
        sim.submit(sim.primary(A).unwrap(), &Arc::new(other));
        sim.run_for_ms(50);
    }
    sim.run_for_ms(5_000);
    sim.restart(lagging);
    sim.run_for_ms(5_000);
    assert!(sim.copies >= 1, "it needs what was dropped");
    let primary = sim.primary(A).unwrap();
    assert_eq!(sim.core(lagging).order().applied(), sim.core(primary).order().applied());
    assert_eq!(sim.core(lagging).order().changing_locks().count(), 1);
    assert_eq!(sim.core(lagging).order().digest(), sim.core(primary).order().digest());
    // The one that has it from the copy goes on with it.
    sim.crash(primary);
    sim.crash(replica(&sim, 1));
    sim.restart(replica(&sim, 1));
    sim.heal();
    sim.run_for_ms(20_000);
    assert!(sim.histories()[&A].iter().any(|executed| executed.id == both.id));
    assert!(sim.nodes[&b].machine.history.iter().any(|executed| executed.id == both.id));
}

#[test]
fn copy_that_is_of_no_use_changes_nothing() {
    let mut sim = cluster(&[3], 0, |_| {});
    let follower = replica(&sim, 1);
    let (snapshot, store) = sim.nodes.get_mut(&replica(&sim, 0)).unwrap().copy().unwrap();
    assert!(sim.nodes.get_mut(&follower).unwrap().install(snapshot.clone(), store).is_none(), "it has all that");
    let mut order = multicast::OrderState::new(A);
    assert!(order.begin_at(snapshot).is_err(), "the rows are of another place in the log");
}

#[test]
fn other_groups_find_members_that_have_all_moved() {
    let mut sim = cluster(&[1, 3], 3, |_| {});
    let replicas = sim.replicas(B);
    for &replica in &replicas[3..] {
        add_voter(&mut sim, (B, replica));
    }
    // While A is away.
    let a = sim.primary(A).unwrap();
    for &replica in &replicas[..3] {
        let cut: Vec<Address> = sim.nodes.keys().copied().filter(|address| address.0 == B).collect();
        cut.into_iter().for_each(|address| sim.cut(a, address));
        change(&mut sim, B, MemberChange::Remove { replica });
    }
    sim.heal();
    // The first that was removed is gone for good, the others know who has come.
    sim.crash((B, replicas[0]));
    sim.run_for_ms(2_000);
    let both = write(1, &[A, B]);
    sim.submit(a, &both);
    sim.run_for_ms(10_000);
    assert!(sim.replies.contains_key(&both.id));
    let known = &sim.core(a).directory()[&B];
    assert!(replicas[..3].iter().all(|&replica| known.member(replica).is_none()), "{known:?}");
    assert!(sim.events.iter().any(|(at, event)| *at == a && matches!(event, Event::PeerMembers { group: B, .. })));
    let second = write(2, &[A, B]);
    assert!(executes(&mut sim, B, &second, 1_000));
}

#[test]
fn learner_leads_after_its_group_is_lost_only_by_force() {
    let mut sim = cluster(&[3], 2, |_| {});
    let (learner, spectator) = (replica(&sim, 3), replica(&sim, 4));
    add_learner(&mut sim, learner);
    assert!(executes(&mut sim, A, &write(1, &[A]), 500));
    let named = (learner.1, incarnation(&sim, learner));
    let voters: Vec<ReplicaId> = sim.voters[&A].clone();
    assert_eq!(force(&mut sim, learner, named, &[]), Err(ForceRefused::GroupLives));
    for &voter in &voters {
        sim.crash((A, voter));
    }
    sim.run_for_ms(10_000);
    assert_eq!(sim.primary(A), None, "it does not lead by itself");
    assert_eq!(force(&mut sim, learner, (voters[0], Incarnation::GENESIS), &[]), Err(ForceRefused::OtherReplica));
    let stranger = (spectator.1, incarnation(&sim, spectator));
    assert_eq!(force(&mut sim, spectator, stranger, &[]), Err(ForceRefused::NotAMember));
    force(&mut sim, learner, named, &[voters[1]]).unwrap();
    sim.run_for_ms(2_000);
    assert_eq!(sim.primary(A), Some(learner));
    assert!(executes(&mut sim, A, &write(2, &[A]), 500));
    let order: Vec<u64> = sim.histories()[&A].iter().map(|executed| executed.id.sequence).collect();
    assert_eq!(order, [1, 2]);
    // The one that may come back follows, and counts in the end; one that may not is told to stop.
    sim.restart((A, voters[1]));
    sim.run_for_ms(5_000);
    sim.restart((A, voters[2]));
    sim.run_for_ms(10_000);
    assert_eq!(sim.primary(A), Some(learner));
    let members = sim.core(learner).membership().clone();
    let roles: Vec<(ReplicaId, MemberRole)> =
        members.members.iter().map(|member| (member.replica, member.role)).collect();
    assert_eq!(roles, [(learner.1, MemberRole::Voter), (voters[1], MemberRole::Voter)]);
    assert!(sim.core((A, voters[2])).status().is_expelled);
    assert!(executes(&mut sim, A, &write(3, &[A]), 500));
}

/// The survivor had less than another one that may come back: what that one has more is gone, and it must not pretend to agree.
#[test]
fn forced_group_is_not_joined_by_a_log_that_contradicts_it() {
    let mut sim = cluster(&[3], 0, |options| options.log_tail_bytes = 1);
    let [first, second, third] = [0, 1, 2].map(|at| replica(&sim, at));
    sim.crash(third);
    for sequence in 1..=20 {
        assert!(executes(&mut sim, A, &write(sequence, &[A]), 50));
    }
    sim.run_for_ms(500);
    sim.crash(first);
    sim.crash(second);
    sim.restart(third);
    sim.run_for_ms(5_000);
    sim.is_forced = true;
    sim.forget_records();
    force(&mut sim, third, (third.1, Incarnation::GENESIS), &[second.1]).unwrap();
    sim.run_for_ms(2_000);
    assert!(executes(&mut sim, A, &write(100, &[A]), 500) || sim.declined.contains_key(&write(100, &[A]).id));
    sim.restart(second);
    sim.run_for_ms(10_000);
    let told = sim.events.iter().filter(|(_, event)| matches!(event, Event::Contradicted { .. })).count();
    assert!(told >= 1);
    let role = sim.core(third).membership().member(second.1).unwrap().role;
    assert_eq!(role, MemberRole::Joining, "it does not count");
    // With an empty disk it is welcome.
    let incarnation = sim.wipe(second);
    sim.restart(second);
    sim.run_for_ms(10_000);
    assert!(sim.core(third).membership().is_voter(second.1, incarnation));
    assert_eq!(sim.core(third).order().digest(), sim.core(second).order().digest());
}

fn force(
    sim: &mut Sim,
    address: Address,
    named: (ReplicaId, Incarnation),
    keep: &[ReplicaId],
) -> Result<(), ForceRefused> {
    let mut forced = Ok(());
    sim.force(address, |core, time| forced = core.force_membership(time, named, keep).map(|_| ()));
    forced
}

#[test]
fn members_that_lag_hold_the_log_only_up_to_its_limit() {
    let mut sim = cluster(&[3], 1, |options| options.log_entries_max = 30);
    let learner = replica(&sim, 3);
    add_learner(&mut sim, learner);
    let primary = sim.primary(A).unwrap();
    sim.crash(learner);
    let has = sim.core(primary).order().applied();
    for sequence in 1..=20 {
        assert!(executes(&mut sim, A, &write(sequence, &[A]), 20));
    }
    assert!(sim.core(primary).truncatable_below() <= has, "it may still come back");
    for sequence in 21..=80 {
        assert!(executes(&mut sim, A, &write(sequence, &[A]), 20));
    }
    assert!(sim.core(primary).truncatable_below() > has, "not for ever");
    let until = sim.now + 20_000 * MS;
    sim.run_until(until);
    sim.restart(learner);
    sim.run_for_ms(5_000);
    assert_eq!(sim.core(learner).order().applied(), sim.core(primary).order().applied());
    assert!(sim.copies >= 1);
}

/// A learner, or a voter whose log ends with its own removal: neither probes to lead, and no primary speaks to them any more.
#[test]
fn removed_replica_that_cannot_lead_learns_of_it() {
    let mut sim = cluster(&[3], 1, |_| {});
    let (learner, voter) = (replica(&sim, 3), replica(&sim, 2));
    add_learner(&mut sim, learner);
    sim.crash(learner);
    change(&mut sim, A, MemberChange::Remove { replica: learner.1 });
    sim.restart(learner);
    sim.run_for_ms(5_000);
    assert!(sim.core(learner).status().is_expelled);
    // It has the record of its removal and hears no more: whether that is committed only others know.
    let primary = sim.primary(A).unwrap();
    sim.change_members(primary, MemberChange::Remove { replica: voter.1 }).unwrap();
    let entry = sim.core(primary).status().last;
    sim.crash(voter);
    sim.run_for_ms(2_000);
    let promised = sim.core(primary).status().promised;
    let record = Record::Config { membership: Arc::new(sim.core(primary).membership().clone()) }.encode();
    sim.nodes.get_mut(&voter).unwrap().wal.entries.insert(entry, Entry { index: entry, ballot: promised, record });
    sim.restart(voter);
    sim.run_for_ms(10_000);
    assert!(sim.core(voter).order().applied() < entry, "nobody has told it that this is committed");
    assert!(sim.core(voter).status().is_expelled);
}

/// Two changes with one number: its own, which nobody else has, and the one that counts.
#[test]
fn removed_replica_believes_others_though_its_log_has_another_change() {
    let (mut sim, old) = primary_with_a_change_of_its_own();
    sim.crash(old);
    change(&mut sim, A, MemberChange::Remove { replica: old.1 });
    sim.heal();
    sim.restart(old);
    sim.run_for_ms(10_000);
    assert!(sim.core(old).status().is_expelled);
}
