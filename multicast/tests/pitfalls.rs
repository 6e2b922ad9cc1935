//! Each known trap of the protocol, set up by hand.

#![allow(clippy::unwrap_used)]

mod harness;

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use harness::sim::{MS, Options, Sim};
use multicast::command::{Command, Destination, Key, Mode};
use multicast::core::{SessionChange, Wait};
use multicast::ids::{CommandId, GroupId, LogIndex, SessionId, Timestamp, VectorClock};
use multicast::record::{Contribution, Rejection};
use multicast::{Context, Contributions, Decline, Machine, Message, OrderState, Record, Refusal};

const A: GroupId = GroupId(0);
const B: GroupId = GroupId(1);
const C: GroupId = GroupId(2);
const SESSION: SessionId = SessionId(7);

fn command(sequence: u64, footprints: &[(GroupId, u64, Mode)]) -> Arc<Command> {
    command_of(SESSION, sequence, footprints)
}

fn command_of(session: SessionId, sequence: u64, footprints: &[(GroupId, u64, Mode)]) -> Arc<Command> {
    let destinations = footprints
        .iter()
        .map(|&(group, key, mode)| Destination { group, footprint: vec![(Key(key), mode)].into() })
        .collect();
    Arc::new(Command {
        id: CommandId { session, sequence },
        acknowledged_below: 0,
        clock: VectorClock::new(),
        destinations,
        payload: Bytes::from_static(b"payload"),
    })
}

fn write_both(sequence: u64, key: u64) -> Arc<Command> {
    command(sequence, &[(A, key, Mode::Write), (B, key, Mode::Write)])
}

/// A calm cluster with an open session.
fn cluster(voters: &[usize]) -> Sim {
    let mut sim = Sim::new(1, Options::calm(voters));
    sim.settle();
    sim.open_everywhere(SESSION);
    sim
}

fn order_in(sim: &Sim, group: GroupId) -> Vec<u64> {
    sim.histories()[&group].iter().map(|executed| executed.id.sequence).collect()
}

fn submit(sim: &mut Sim, group: GroupId, command: &Arc<Command>) {
    let primary = sim.primary(group).unwrap();
    sim.submit(primary, command);
}

fn latency_ms(sim: &Sim, command: &Command, since: u64) -> u64 {
    (sim.replied_at[&command.id] - since) / MS
}

#[test]
fn single_group_command_costs_one_near_round_trip() {
    let mut sim = cluster(&[3, 3]);
    let (began, one) = (sim.now, command(1, &[(A, 1, Mode::Write)]));
    submit(&mut sim, A, &one);
    sim.run_for_ms(100);
    // 0.5 ms there, 1 ms of disk, 0.5 ms back.
    assert!(latency_ms(&sim, &one, began) <= 3, "{} ms", latency_ms(&sim, &one, began));
}

#[test]
fn multi_group_command_costs_one_wide_round_trip_beside_a_destination() {
    let mut sim = cluster(&[3, 3]);
    let (began, both) = (sim.now, write_both(1, 1));
    submit(&mut sim, A, &both);
    sim.run_for_ms(1_000);
    let latency = latency_ms(&sim, &both, began);
    assert!((80..=95).contains(&latency), "80 ms there and back, and three appends of 2 ms: {latency} ms");
}

#[test]
fn three_groups_commit_when_a_timestamp_overtakes_the_proposal() {
    let mut sim = cluster(&[1, 1, 1]);
    // C learns of the command late; B's timestamp is there before.
    let held = Rc::new(RefCell::new(0));
    let seen = Rc::clone(&held);
    sim.filter = Some(Box::new(move |_, to, message| {
        let first = to.0 == C && matches!(message, Message::Propose { .. }) && *seen.borrow() == 0;
        if first {
            *seen.borrow_mut() += 1;
        }
        first
    }));
    let all = command(1, &[(A, 1, Mode::Write), (B, 1, Mode::Write), (C, 1, Mode::Write)]);
    submit(&mut sim, A, &all);
    sim.run_for_ms(3_000);
    assert_eq!(order_in(&sim, C), [1]);
    assert_eq!(*held.borrow(), 1, "one proposal was lost");
}

#[test]
fn c1_clock_after_primary_change_is_beyond_what_was_executed() {
    let mut sim = cluster(&[3, 3]);
    let both = write_both(1, 1);
    submit(&mut sim, A, &both);
    sim.run_for_ms(1_000);
    let final_timestamp = sim.histories()[&A][0].timestamp;
    let old = sim.primary(A).unwrap();
    sim.crash(old);
    sim.run_for_ms(5_000);
    let after = command(2, &[(A, 1, Mode::Write)]);
    submit(&mut sim, A, &after);
    sim.run_for_ms(1_000);
    let history = &sim.histories()[&A];
    assert!(history[1].timestamp > final_timestamp);
}

#[test]
fn c6_command_that_a_reader_caused_comes_after_what_it_read() {
    let mut sim = Sim::new(1, Options::calm(&[1, 1]));
    // A's clock is far ahead of B's, so A's timestamp decides.
    for (address, node) in &mut sim.nodes {
        node.skew += if address.0 == A { 20_000 * MS } else { 0 };
    }
    sim.settle();
    sim.open_everywhere(SESSION);
    let both = write_both(1, 1);
    submit(&mut sim, A, &both);
    while !sim.replies.contains_key(&both.id) {
        assert!(sim.step());
    }
    let later = command(2, &[(B, 1, Mode::Write)]);
    submit(&mut sim, B, &later);
    sim.run_for_ms(1_000);
    assert_eq!(order_in(&sim, B), [1, 2]);
}

#[test]
fn c7_id_with_other_destinations_is_refused_and_the_first_binding_executes() {
    let mut sim = cluster(&[3, 3, 3]);
    let first = write_both(1, 1);
    let second = command(1, &[(A, 1, Mode::Write), (C, 1, Mode::Write)]);
    submit(&mut sim, A, &first);
    sim.run_for_ms(10);
    let at_c = sim.primary(C).unwrap();
    sim.submit(at_c, &second);
    sim.run_for_ms(5_000);
    assert_eq!((order_in(&sim, A), order_in(&sim, B), order_in(&sim, C)), (vec![1], vec![1], vec![]));
    let again = command(1, &[(A, 2, Mode::Write)]);
    submit(&mut sim, A, &again);
    sim.run_for_ms(100);
    assert_eq!(order_in(&sim, A), [1]);
    assert!(sim.primary(C).is_some_and(|primary| sim.core(primary).unfinished().is_empty()));
}

#[test]
fn c8_unknown_session_is_an_error_not_a_second_execution() {
    let mut sim = cluster(&[1, 1]);
    let stranger = command_of(SessionId(99), 1, &[(A, 1, Mode::Write)]);
    submit(&mut sim, A, &stranger);
    let one = command(1, &[(A, 1, Mode::Write)]);
    submit(&mut sim, A, &one);
    sim.run_for_ms(100);
    assert_eq!(sim.declined[&stranger.id], Decline::Refused(Refusal::UnknownSession));
    let primary = sim.primary(A).unwrap();
    sim.change_session(primary, SessionChange::Close(SESSION));
    sim.run_for_ms(100);
    sim.submit(primary, &one);
    sim.run_for_ms(100);
    assert_eq!(sim.declined[&one.id], Decline::Refused(Refusal::UnknownSession));
    assert_eq!(order_in(&sim, A), [1]);
}

#[test]
fn c8_session_opened_again_executes_nothing_twice() {
    let mut sim = cluster(&[1, 1]);
    let (one, both) = (command(1, &[(A, 1, Mode::Write)]), write_both(2, 1));
    submit(&mut sim, A, &one);
    submit(&mut sim, A, &both);
    sim.run_for_ms(3_000);
    for group in [A, B] {
        let primary = sim.primary(group).unwrap();
        sim.change_session(primary, SessionChange::Close(SESSION));
        sim.run_for_ms(500);
        sim.change_session(primary, SessionChange::Open(SESSION));
        sim.run_for_ms(500);
    }
    for late in [&one, &both] {
        submit(&mut sim, A, late);
        sim.run_for_ms(1_000);
        assert_eq!(sim.declined[&late.id], Decline::Refused(Refusal::StaleSequence));
    }
    let next = write_both(3, 1);
    submit(&mut sim, A, &next);
    sim.run_for_ms(3_000);
    assert_eq!((order_in(&sim, A), order_in(&sim, B)), (vec![1, 2, 3], vec![2, 3]));
}

#[test]
fn c8_session_unknown_at_one_destination_aborts_everywhere() {
    let mut sim = cluster(&[3, 3]);
    let primary = sim.primary(B).unwrap();
    sim.change_session(primary, SessionChange::Close(SESSION));
    sim.run_for_ms(500);
    let both = write_both(1, 1);
    submit(&mut sim, A, &both);
    sim.run_for_ms(3_000);
    let rejection = Rejection { by: B, reason: Refusal::UnknownSession };
    assert_eq!(sim.replies[&both.id].result, Err(rejection));
    assert!(order_in(&sim, A).is_empty() && order_in(&sim, B).is_empty());
    // Nothing is left of it, and its keys are free.
    let next = command(2, &[(A, 1, Mode::Write)]);
    submit(&mut sim, A, &next);
    sim.run_for_ms(1_000);
    assert_eq!(order_in(&sim, A), [2]);
    for group in [A, B] {
        let primary = sim.primary(group).unwrap();
        assert!(sim.core(primary).unfinished().is_empty());
    }
}

#[test]
fn c9_retry_at_a_new_primary_is_answered_not_executed() {
    let mut sim = cluster(&[3]);
    let one = command(1, &[(A, 1, Mode::Write)]);
    submit(&mut sim, A, &one);
    sim.run_for_ms(200);
    let reply = sim.replies.remove(&one.id).unwrap();
    let old = sim.primary(A).unwrap();
    sim.crash(old);
    sim.run_for_ms(5_000);
    submit(&mut sim, A, &one);
    sim.run_for_ms(200);
    assert_eq!(sim.replies[&one.id].result, reply.result);
    assert_eq!(order_in(&sim, A), [1]);
}

#[test]
fn c10_cut_off_group_holds_only_the_keys_of_its_commands() {
    let mut sim = cluster(&[3, 3]);
    sim.cut_groups(A, B);
    let stuck = write_both(1, 1);
    submit(&mut sim, A, &stuck);
    sim.run_for_ms(100);
    for sequence in 2..50 {
        let (began, free) = (sim.now, command(sequence, &[(A, 2, Mode::Write)]));
        submit(&mut sim, A, &free);
        sim.run_for_ms(10);
        assert!(latency_ms(&sim, &free, began) <= 3);
    }
    let behind = command(50, &[(A, 1, Mode::Write)]);
    submit(&mut sim, A, &behind);
    sim.run_for_ms(6_000);
    assert!(!sim.replies.contains_key(&behind.id), "the key of the unfinished command is held");
    let primary = sim.primary(A).unwrap();
    let unfinished = sim.core(primary).unfinished();
    assert_eq!(unfinished.len(), 1);
    assert_eq!((unfinished[0].id, unfinished[0].locks_keys), (stuck.id, true));
    assert_eq!(unfinished[0].waits_for, [Wait::Timestamp(B)]);
    assert_eq!(sim.core(primary).status().silent_groups.len(), 1);
    // New commands for the silent group lock nothing.
    let refused = write_both(51, 3);
    submit(&mut sim, A, &refused);
    sim.run_for_ms(10);
    assert_eq!(sim.declined[&refused.id], Decline::Unavailable { group: B });
    sim.heal();
    sim.run_for_ms(8_000);
    assert!(sim.replies.contains_key(&stuck.id) && sim.replies.contains_key(&behind.id));
    let again = write_both(52, 3);
    submit(&mut sim, A, &again);
    sim.run_for_ms(1_000);
    assert!(sim.replies.contains_key(&again.id));
}

#[test]
fn c11_single_commands_do_not_wait_for_unrelated_multi_group_commands() {
    let mut sim = cluster(&[3, 3]);
    let mut slowest = 0;
    for round in 0..100 {
        let both = write_both(round * 2 + 1, round % 5);
        submit(&mut sim, A, &both);
        let (began, single) = (sim.now, command(round * 2 + 2, &[(A, 100 + round % 5, Mode::Write)]));
        submit(&mut sim, A, &single);
        sim.run_for_ms(7);
        slowest = slowest.max(latency_ms(&sim, &single, began));
    }
    assert!(slowest <= 3, "{slowest} ms");
}

#[test]
fn c13_crossing_commands_finish() {
    let mut sim = cluster(&[3, 3, 3]);
    for round in 0..20 {
        for (at, group) in [A, B, C].into_iter().enumerate() {
            let sequence = round * 3 + at as u64 + 1;
            let all = command(sequence, &[(A, 1, Mode::Write), (B, 1, Mode::Write), (C, 1, Mode::Write)]);
            submit(&mut sim, group, &all);
        }
        sim.run_for_ms(30);
    }
    sim.run_for_ms(20_000);
    assert_eq!(order_in(&sim, A).len(), 60);
    assert_eq!(order_in(&sim, A), order_in(&sim, B));
    assert_eq!(order_in(&sim, B), order_in(&sim, C));
}

#[test]
fn c17_group_restarted_from_its_rows_owes_what_it_owed() {
    let mut sim = cluster(&[3, 3]);
    // B's contribution never arrives, so A has committed and not finished.
    sim.filter = Some(Box::new(|from, _, message| {
        from.0 == B && matches!(message, Message::Facts(facts) if facts.contribution.is_some())
    }));
    let both = write_both(1, 1);
    submit(&mut sim, A, &both);
    sim.run_for_ms(2_000);
    let nodes: Vec<_> = sim.nodes.keys().copied().filter(|address| address.0 == A).collect();
    for &node in &nodes {
        sim.nodes.get_mut(&node).unwrap().flush();
        sim.crash(node);
        sim.restart(node);
    }
    sim.filter = None;
    sim.run_for_ms(10_000);
    assert_eq!((order_in(&sim, A), order_in(&sim, B)), (vec![1], vec![1]));
    for group in [A, B] {
        let primary = sim.primary(group).unwrap();
        assert!(sim.core(primary).unfinished().is_empty(), "{group} has nothing left to do");
    }
}

#[test]
fn c18_facts_leave_only_when_committed() {
    let mut sim = cluster(&[3, 1]);
    let told = Rc::new(RefCell::new(0));
    let count = Rc::clone(&told);
    // No append of A is acknowledged, so nothing commits there.
    sim.filter = Some(Box::new(move |from, to, message| {
        if from.0 == A && to.0 == B && matches!(message, Message::Facts(facts) if facts.timestamp.is_some()) {
            *count.borrow_mut() += 1;
        }
        from.0 == A && to.0 == A && matches!(message, Message::Appended { .. })
    }));
    let both = write_both(1, 1);
    submit(&mut sim, A, &both);
    sim.run_for_ms(900);
    assert_eq!(*told.borrow(), 0, "an uncommitted timestamp is no fact");
    sim.filter = None;
    sim.run_for_ms(10_000);
    assert!(order_in(&sim, B).len() <= 1);
}

#[test]
fn client_that_dies_after_its_first_primary_leaves_no_orphan() {
    let mut sim = cluster(&[3, 3]);
    // B gets the proposal, then A's primary dies before B's answer arrives; nobody retries.
    let both = write_both(1, 1);
    submit(&mut sim, A, &both);
    sim.run_for_ms(45);
    let primary = sim.primary(A).unwrap();
    sim.crash(primary);
    sim.run_for_ms(15_000);
    assert_eq!(order_in(&sim, A), order_in(&sim, B));
    for group in [A, B] {
        let primary = sim.primary(group).unwrap();
        assert!(sim.core(primary).unfinished().is_empty());
    }
}

#[test]
fn preferred_primary_returns_when_it_is_up_to_date() {
    let mut sim = cluster(&[3]);
    let preferred = (A, sim.voters[&A][0]);
    assert_eq!(sim.primary(A), Some(preferred));
    sim.crash(preferred);
    sim.run_for_ms(5_000);
    assert!(sim.primary(A).is_some_and(|primary| primary != preferred));
    sim.restart(preferred);
    sim.run_for_ms(8_000);
    assert_eq!(sim.primary(A), Some(preferred));
}

#[test]
fn restarted_follower_does_not_depose_a_primary_that_works() {
    let mut sim = cluster(&[3]);
    let promised = sim.core(sim.primary(A).unwrap()).status().promised;
    let follower = (A, sim.voters[&A][2]);
    for _ in 0..5 {
        sim.crash(follower);
        sim.run_for_ms(3_000);
        sim.restart(follower);
        sim.run_for_ms(1_000);
    }
    assert_eq!(sim.core(sim.primary(A).unwrap()).status().promised, promised);
}

#[test]
fn cut_off_primary_declines_and_the_others_go_on() {
    let mut sim = cluster(&[3]);
    let old = sim.primary(A).unwrap();
    for at in 1..3 {
        let other = (A, sim.voters[&A][at]);
        sim.cut(old, other);
    }
    sim.run_for_ms(5_000);
    let one = command(1, &[(A, 1, Mode::Write)]);
    sim.submit(old, &one);
    sim.run_for_ms(100);
    assert!(matches!(sim.declined[&one.id], Decline::NotPrimary { .. }));
    submit(&mut sim, A, &one);
    sim.run_for_ms(100);
    assert_eq!(order_in(&sim, A), [1]);
}

#[test]
fn sequences_out_of_order_execute_once_each() {
    let mut sim = cluster(&[1]);
    for sequence in [5, 3, 4, 1, 3, 5] {
        let one = command(sequence, &[(A, 1, Mode::Add)]);
        submit(&mut sim, A, &one);
        sim.run_for_ms(10);
    }
    assert_eq!(order_in(&sim, A), [5, 3, 4, 1]);
    // The sequences between went to other groups.
    submit(&mut sim, A, &command(100_000, &[(A, 1, Mode::Add)]));
    sim.run_for_ms(10);
    assert_eq!(order_in(&sim, A), [5, 3, 4, 1, 100_000]);
}

#[test]
fn state_depends_on_what_its_clients_had_seen_in_other_groups() {
    let mut sim = cluster(&[1, 1, 1]);
    let mut sees = |sequence: u64, index: u64, footprints: &[(GroupId, u64, Mode)]| {
        let mut command = Command::clone(&command(sequence, footprints));
        command.clock.advance(C, LogIndex(index));
        let command = Arc::new(command);
        submit(&mut sim, A, &command);
        sim.run_for_ms(1_000);
        let seen = |group: GroupId| sim.core(sim.primary(group).unwrap()).order().depends_on().index(C).0;
        (seen(A), seen(B))
    };
    assert_eq!(sees(1, 1, &[(A, 1, Mode::Write)]), (1, 0));
    assert_eq!(sees(2, 2, &[(A, 1, Mode::Write), (B, 1, Mode::Write)]), (2, 2));
}

#[test]
fn reply_told_again_is_as_of_when_the_command_was_executed() {
    let mut sim = cluster(&[3]);
    let one = command(1, &[(A, 1, Mode::Write)]);
    submit(&mut sim, A, &one);
    sim.run_for_ms(100);
    let first = sim.replies.remove(&one.id).unwrap();
    submit(&mut sim, A, &command(2, &[(A, 1, Mode::Write)]));
    sim.run_for_ms(100);
    submit(&mut sim, A, &one);
    sim.run_for_ms(100);
    assert_eq!(sim.replies[&one.id], first);
}

#[test]
fn held_command_that_is_withdrawn_makes_room_and_may_come_again() {
    let mut sim = cluster(&[1, 1]);
    // A's lock stays for as long as B hears nothing.
    sim.filter = Some(Box::new(|_, to, _| to.0 == B));
    let both = write_both(1, 1);
    submit(&mut sim, A, &both);
    sim.run_for_ms(10);
    let held = command(2, &[(A, 1, Mode::Write)]);
    submit(&mut sim, A, &held);
    sim.run_for_ms(10);
    let primary = sim.primary(A).unwrap();
    assert_eq!(sim.core(primary).status().in_flight, 2);
    // What is logged stays.
    sim.withdraw(primary, both.id);
    sim.withdraw(primary, held.id);
    assert_eq!(sim.core(primary).status().in_flight, 1);
    submit(&mut sim, A, &held);
    sim.filter = None;
    sim.run_for_ms(10_000);
    // It comes first: B's timestamp is late.
    assert_eq!((order_in(&sim, A), order_in(&sim, B)), (vec![2, 1], vec![1]));
}

#[test]
fn session_that_acknowledges_nothing_is_declined_until_it_does() {
    let mut sim = cluster(&[1]);
    let full = multicast::order::SESSION_WINDOW as u64;
    for sequence in 1..=full {
        submit(&mut sim, A, &command(sequence, &[(A, 1, Mode::Add)]));
    }
    sim.run_for_ms(100);
    let mut next = Command::clone(&command(full + 1, &[(A, 1, Mode::Add)]));
    submit(&mut sim, A, &Arc::new(next.clone()));
    sim.run_for_ms(100);
    assert_eq!(sim.declined[&next.id], Decline::Overloaded);
    next.acknowledged_below = full;
    submit(&mut sim, A, &Arc::new(next.clone()));
    sim.run_for_ms(100);
    assert!(sim.replies[&next.id].result.is_ok());
}

#[test]
fn overload_is_refused_not_queued() {
    let mut sim = Sim::new(1, Options::calm(&[3]));
    for node in sim.nodes.values_mut() {
        node.config.limits.in_flight_max = 10;
    }
    sim.settle();
    sim.open_everywhere(SESSION);
    for sequence in 1..=15 {
        let one = command(sequence, &[(A, sequence, Mode::Write)]);
        submit(&mut sim, A, &one);
    }
    sim.run_for_ms(100);
    assert_eq!(order_in(&sim, A).len(), 10);
    assert_eq!(sim.declined.values().filter(|reason| **reason == Decline::Overloaded).count(), 5);
    let next = command(16, &[(A, 1, Mode::Write)]);
    submit(&mut sim, A, &next);
    sim.run_for_ms(100);
    assert!(sim.replies.contains_key(&next.id), "there is room again");
}

#[test]
fn malformed_commands_are_declined() {
    let mut sim = cluster(&[1, 1]);
    let unsorted = command(1, &[(B, 1, Mode::Write), (A, 1, Mode::Write)]);
    let unknown_group = command(2, &[(A, 1, Mode::Write), (GroupId(9), 1, Mode::Write)]);
    let elsewhere = command(3, &[(B, 1, Mode::Write)]);
    for wrong in [&unsorted, &unknown_group, &elsewhere] {
        submit(&mut sim, A, wrong);
    }
    sim.run_for_ms(10);
    assert_eq!(sim.declined[&unsorted.id], Decline::Malformed);
    assert_eq!(sim.declined[&unknown_group.id], Decline::Malformed);
    assert_eq!(sim.declined[&elsewhere.id], Decline::WrongGroup);
}

/// Notes which commands executed beside an unfinished one that adds to the same key.
#[derive(Default)]
struct Contended(Vec<(u64, bool)>);

impl Machine for Contended {
    fn contribute(&mut self, _context: &Context, _command: &Command) -> Bytes {
        Bytes::new()
    }

    fn execute(&mut self, context: &Context, command: &Command, _: &Contributions) -> Bytes {
        self.0.push((command.id.sequence, context.is_contended));
        Bytes::new()
    }

    fn session_opened(&mut self, _context: &Context, _session: SessionId) {}

    fn session_closed(&mut self, _context: &Context, _session: SessionId) {}
}

#[test]
fn machine_is_told_when_an_unfinished_command_adds_to_the_same_key() {
    let mut state = OrderState::new(A);
    let mut machine = Contended::default();
    let both = command(1, &[(A, 5, Mode::Add), (B, 5, Mode::Add)]);
    let single = |sequence, key, mode| {
        let timestamp = Timestamp(10 + sequence);
        Record::Single { command: command(sequence, &[(A, key, mode)]), timestamp }
    };
    let foreign = Contribution { value: Bytes::new(), index: LogIndex(9), depends_on: Arc::default() };
    let records = [
        Record::SessionOpen { session: SESSION, timestamp: Timestamp(1) },
        single(2, 5, Mode::Add),
        Record::Prepare { command: both.clone(), timestamp: Timestamp(13) },
        single(3, 5, Mode::Add),
        single(4, 6, Mode::Add),
        single(5, 5, Mode::Read),
        Record::Commit { id: both.id, timestamp: Timestamp(20) },
        single(6, 5, Mode::Add),
        Record::Finish { id: both.id, contributions: [(B, foreign)].into_iter().collect() },
        single(7, 5, Mode::Add),
    ];
    for (index, record) in (1..).zip(&records) {
        state.apply(LogIndex(index), record, &mut machine);
    }
    let told = [(2, false), (3, true), (4, false), (5, false), (6, true), (1, false), (7, false)];
    assert_eq!(machine.0, told);
}

/// A frozen primary wakes up and does not know yet that others have gone on without it.
#[test]
fn client_that_has_seen_more_than_a_primary_is_sent_on_not_refused() {
    let mut sim = cluster(&[3]);
    let next = sim.core(sim.primary(A).unwrap()).status().last.next();
    let mut early = Command::clone(&command(1, &[(A, 1, Mode::Write)]));
    early.clock.advance(A, next);
    submit(&mut sim, A, &Arc::new(early.clone()));
    sim.run_for_ms(200);
    assert_eq!(sim.declined[&early.id], Decline::NotPrimary { hint: None });
}
