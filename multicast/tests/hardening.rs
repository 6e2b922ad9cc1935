//! One member that is wrong, slow or dead must not spoil it for the others.

#![allow(clippy::unwrap_used)]

mod harness;

use std::sync::Arc;

use bytes::Bytes;
use harness::sim::{MS, Options, Sim};
use multicast::Decline;
use multicast::command::{Command, Destination, Key, Mode};
use multicast::ids::{CommandId, GroupId, LogIndex, SessionId, VectorClock};

const A: GroupId = GroupId(0);
const B: GroupId = GroupId(1);
const SESSION: SessionId = SessionId(7);
const YEAR_MS: u64 = 365 * 24 * 3_600_000;

fn command(sequence: u64, groups: &[GroupId], key: u64, clock: VectorClock) -> Arc<Command> {
    let footprint = vec![(Key(key), Mode::Write)];
    let destinations = groups.iter().map(|&group| Destination { group, footprint: footprint.clone().into() }).collect();
    let id = CommandId { session: SESSION, sequence };
    Arc::new(Command { id, acknowledged_below: 0, clock, destinations, payload: Bytes::from_static(b"payload") })
}

fn write(sequence: u64, groups: &[GroupId], key: u64) -> Arc<Command> {
    command(sequence, groups, key, VectorClock::new())
}

fn cluster(voters: &[usize], adjust: impl Fn(&mut multicast::Config)) -> Sim {
    let mut sim = Sim::new(1, Options::calm(voters));
    for node in sim.nodes.values_mut() {
        adjust(&mut node.config);
    }
    sim.settle();
    sim.open_everywhere(SESSION);
    sim
}

fn submit(sim: &mut Sim, group: GroupId, command: &Arc<Command>) {
    let primary = sim.primary(group).unwrap();
    sim.submit(primary, command);
}

fn seen_of(sim: &Sim, group: GroupId, of: GroupId) -> LogIndex {
    sim.core(sim.primary(group).unwrap()).order().depends_on().index(of)
}

fn last_of(sim: &Sim, group: GroupId) -> LogIndex {
    sim.core(sim.primary(group).unwrap()).status().last
}

#[test]
fn claim_of_what_does_not_exist_is_not_replicated() {
    let mut sim = cluster(&[3, 3], |_| {});
    let mut liar = VectorClock::new();
    liar.advance(B, LogIndex(u64::MAX));
    let mut worse = VectorClock::new();
    worse.advance_effects(B, LogIndex(last_of(&sim, B).0 + 1), SessionId(1));
    for (sequence, clock) in [(1, liar), (2, worse)] {
        let began = sim.now;
        let one = command(sequence, &[A], sequence, clock);
        submit(&mut sim, A, &one);
        sim.run_for_ms(1_000);
        assert!(sim.replies[&one.id].result.is_ok(), "what it came by innocently does not hurt a client");
        assert!(sim.replied_at[&one.id] - began < 90 * MS, "one round trip to the group in question");
        assert_eq!(seen_of(&sim, A, B), last_of(&sim, B), "as much as there is");
    }
}

#[test]
fn claim_of_more_than_this_group_has_heard_of_is_kept() {
    let mut sim = cluster(&[3, 3], |_| {});
    for sequence in 1..=20 {
        submit(&mut sim, B, &write(sequence, &[B], 1));
    }
    sim.run_for_ms(100);
    let (seen, began) = (last_of(&sim, B), sim.now);
    let clock: VectorClock = [(B, seen)].into_iter().collect();
    let first = command(21, &[A], 1, clock.clone());
    submit(&mut sim, A, &first);
    sim.run_for_ms(500);
    assert_eq!(seen_of(&sim, A, B), seen);
    assert!(sim.replied_at[&first.id] - began >= 80 * MS, "it was asked for");
    let (began, second) = (sim.now, command(22, &[A], 1, clock));
    submit(&mut sim, A, &second);
    sim.run_for_ms(500);
    assert!(sim.replied_at[&second.id] - began <= 3 * MS, "and is known now");
}

#[test]
fn claims_about_a_group_that_is_cut_off_do_not_stop_honest_clients() {
    let mut sim = cluster(&[3, 3], |_| {});
    for sequence in 1..=20 {
        submit(&mut sim, B, &write(sequence, &[B], 1));
    }
    sim.run_for_ms(100);
    let seen = last_of(&sim, B);
    sim.cut_groups(A, B);
    let honest = command(21, &[A], 1, [(B, seen)].into_iter().collect());
    submit(&mut sim, A, &honest);
    let liar = command(22, &[A], 2, [(B, LogIndex(1 << 40))].into_iter().collect());
    submit(&mut sim, A, &liar);
    sim.run_for_ms(2_000);
    assert!(sim.replies[&honest.id].result.is_ok());
    assert_eq!(sim.declined[&liar.id], Decline::Unavailable { group: B });
    assert_eq!(seen_of(&sim, A, B), seen);
    let primary = sim.primary(A).unwrap();
    assert_eq!(sim.core(primary).status().in_flight, 0);
}

#[test]
fn primary_with_a_wrong_clock_does_not_drag_time() {
    let mut sim = Sim::new(1, Options::calm(&[3, 3]));
    let wrong = (A, sim.voters[&A][0]);
    let right = 1_000_000 * MS;
    sim.nodes.get_mut(&wrong).unwrap().skew += YEAR_MS * MS;
    sim.settle();
    assert_eq!(sim.primary(A), Some(wrong));
    sim.open_everywhere(SESSION);
    submit(&mut sim, A, &write(1, &[A], 1));
    submit(&mut sim, A, &write(2, &[A, B], 2));
    sim.run_for_ms(1_000);
    for group in [A, B] {
        let executed = sim.histories()[&group].last().unwrap().timestamp;
        assert!(
            executed < sim.now + right + 10_000 * MS,
            "{group}: {} s ahead",
            (executed - sim.now - right) / MS / 1000
        );
        assert!(executed > right, "time does not stand still");
    }
}

#[test]
fn proposal_that_finds_no_room_is_made_again_soon() {
    let mut sim = Sim::new(1, Options::calm(&[1, 1]));
    for (address, node) in &mut sim.nodes {
        node.config.limits.in_flight_max = if address.0 == B { 2 } else { 100 };
        node.config.timing.resend_ms = 5_000;
    }
    sim.options.wide_us = 1_000;
    sim.settle();
    sim.open_everywhere(SESSION);
    // B has room for four at a time, and these take few milliseconds.
    let began = sim.now;
    let commands: Vec<_> = (1..=8).map(|sequence| write(sequence, &[A, B], sequence)).collect();
    for command in &commands {
        submit(&mut sim, A, command);
    }
    sim.run_for_ms(20_000);
    for command in &commands {
        let waited = sim.replied_at[&command.id] - began;
        assert!(waited < 500 * MS, "{} took {} ms", command.id, waited / MS);
    }
    let primary = sim.primary(A).unwrap();
    assert!(sim.core(primary).status().silent_groups.is_empty());
}

#[test]
fn idle_group_has_its_kept_entries_written_again() {
    let mut sim = cluster(&[3], |_| {});
    for sequence in 1..=20 {
        submit(&mut sim, A, &write(sequence, &[A], 1));
    }
    sim.run_for_ms(2_000);
    for address in sim.nodes.keys().copied().collect::<Vec<_>>() {
        sim.nodes.get_mut(&address).unwrap().flush();
        let last = sim.core(address).status().last;
        assert_eq!(sim.nodes[&address].wal.entries.len(), 1, "only the entry that others match against is kept");
        assert!(!sim.rewrite_kept(address, 1), "it is larger than that");
        assert!(sim.rewrite_kept(address, 1 << 20));
        sim.run_for_ms(100);
        assert_eq!(sim.nodes[&address].wal.newest_from, last);
        sim.crash(address);
        sim.restart(address);
        sim.run_for_ms(5_000);
    }
    let one = write(21, &[A], 1);
    submit(&mut sim, A, &one);
    sim.run_for_ms(1_000);
    assert!(sim.replies.contains_key(&one.id));
}

#[test]
fn log_is_cut_by_size_and_who_needs_it_is_told() {
    for by_bytes in [false, true] {
        let mut sim = cluster(&[3], |config| {
            let limits = &mut config.limits;
            (limits.log_tail_bytes, limits.append_batch_bytes) = (1, 200);
            if by_bytes {
                limits.log_bytes_max = 3_000;
            } else {
                limits.log_entries_max = 30;
            }
        });
        sim.no_copies = true;
        let dead = (A, sim.voters[&A][2]);
        sim.crash(dead);
        for sequence in 1..=200 {
            submit(&mut sim, A, &write(sequence, &[A], 1));
            sim.run_for_ms(5);
        }
        let primary = sim.primary(A).unwrap();
        sim.nodes.get_mut(&primary).unwrap().flush();
        let kept = sim.nodes[&primary].wal.entries.len();
        assert!((5..=80).contains(&kept), "{kept} entries are kept");
        sim.restart(dead);
        sim.run_for_ms(3_000);
        assert!(sim.core(dead).status().too_far_behind.is_some(), "the voter knows");
        let told = sim.events.iter().filter(
            |(_, event)| matches!(event, multicast::Event::FollowerBeyondHelp { replica, .. } if *replica == dead.1),
        );
        assert_eq!(told.count(), 2, "itself and the primary say so, once");
        let followers = sim.core(primary).status().followers;
        assert_eq!(followers.iter().map(|follower| follower.beyond_help).collect::<Vec<_>>(), [false, true]);
        // It takes no part, and does not lead; the others go on.
        let one = write(201, &[A], 1);
        submit(&mut sim, A, &one);
        sim.run_for_ms(1_000);
        assert!(sim.replies.contains_key(&one.id));
        sim.crash(primary);
        sim.run_for_ms(20_000);
        assert!(sim.core(dead).order().applied() < LogIndex(20));
        assert!(!sim.core(dead).is_ready());
        sim.restart(primary);
        sim.run_for_ms(20_000);
        let two = write(202, &[A], 1);
        submit(&mut sim, A, &two);
        sim.run_for_ms(1_000);
        assert!(sim.replies.contains_key(&two.id));
    }
}

#[test]
fn restarted_voter_applies_what_it_knew_to_be_committed() {
    let mut sim = cluster(&[3], |_| {});
    for sequence in 1..=50 {
        submit(&mut sim, A, &write(sequence, &[A], 1));
        sim.run_for_ms(5);
    }
    let alone = (A, sim.voters[&A][1]);
    for address in sim.nodes.keys().copied().collect::<Vec<_>>() {
        sim.crash(address);
    }
    let flushed = sim.nodes[&alone].flushed.applied;
    sim.restart(alone);
    sim.run_for_ms(100);
    let applied = sim.core(alone).order().applied();
    assert!(applied.0 >= 45 && applied > flushed, "{applied} applied, {flushed} before");
}

#[test]
fn hint_is_given_only_while_it_is_sure() {
    let mut sim = cluster(&[3], |_| {});
    let primary = sim.primary(A).unwrap();
    let follower = (A, sim.voters[&A][1]);
    assert_eq!(sim.core(follower).primary(), Some(primary.1));
    sim.crash(primary);
    sim.cut(follower, (A, sim.voters[&A][2]));
    sim.run_for_ms(4_000);
    let one = write(1, &[A], 1);
    sim.submit(follower, &one);
    sim.run_for_ms(10);
    assert_eq!(sim.declined[&one.id], Decline::NotPrimary { hint: None });
}
