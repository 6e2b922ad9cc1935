//! What clients have just seen of another group is known to be true without asking each time.

#![allow(clippy::unwrap_used)]

mod harness;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use harness::sim::{MS, Options, Sim};
use multicast::Message;
use multicast::command::{Command, Destination, Key, Mode};
use multicast::ids::{CommandId, GroupId, LogIndex, SessionId, VectorClock};
use multicast::message::UNASKED;

const A: GroupId = GroupId(0);
const B: GroupId = GroupId(1);
const SESSION: SessionId = SessionId(7);
const ONE_WAY_MS: u64 = 35;
const ROUND_TRIP: u64 = 2 * ONE_WAY_MS * MS;
/// A command of A takes so long if nothing is to be proven.
const LOCAL: u64 = 3 * MS;

/// Two groups, B busy or not, and a client beside A that hears of B's progress.
struct World {
    sim: Sim,
    sequence: u64,
    /// What is committed in B, and when the client will know.
    news: VecDeque<(u64, LogIndex)>,
    known: LogIndex,
    /// What the groups told each other.
    messages: Rc<RefCell<Vec<Message>>>,
}

/// What the client claims.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Claims {
    None,
    /// What it has heard of.
    Moving,
    /// The same all the time.
    Old(LogIndex),
}

impl World {
    fn new() -> Self {
        let mut options = Options::calm(&[3, 3]);
        options.wide_us = ONE_WAY_MS * 1_000;
        let mut sim = Sim::new(1, options);
        sim.settle();
        sim.open_everywhere(SESSION);
        let mut world = World {
            sim,
            sequence: 0,
            news: VecDeque::new(),
            known: LogIndex::ZERO,
            messages: Rc::new(RefCell::new(Vec::new())),
        };
        world.drop_if(|_| false);
        world
    }

    /// Notes what the groups tell each other, and loses some of it.
    fn drop_if(&mut self, is_lost: fn(&Message) -> bool) {
        let messages = Rc::clone(&self.messages);
        self.sim.filter = Some(Box::new(move |from, to, message| {
            if from.0 != to.0 {
                messages.borrow_mut().push(message.clone());
            }
            from.0 != to.0 && is_lost(message)
        }));
    }

    fn submit(&mut self, group: GroupId, claimed: Option<LogIndex>) -> CommandId {
        self.sequence += 1;
        let id = CommandId { session: SESSION, sequence: self.sequence };
        let clock: VectorClock = claimed.into_iter().map(|index| (B, index)).collect();
        let command = Arc::new(Command {
            id,
            acknowledged_below: self.sequence.saturating_sub(500),
            clock,
            destinations: vec![Destination { group, footprint: vec![(Key(self.sequence), Mode::Write)].into() }],
            payload: Bytes::from_static(b"payload"),
        });
        let primary = self.sim.primary(group).unwrap();
        self.sim.submit(primary, &command);
        id
    }

    /// B commits about 200 entries a second, or none; the client submits 50 commands a second. Returns how long each of these
    /// took.
    fn drive(&mut self, duration_ms: u64, b_is_busy: bool, claims: Claims) -> Vec<u64> {
        let mut submitted: Vec<(CommandId, u64)> = Vec::new();
        // Out of step with each other, and with what is told every 10 ms.
        let mut submits_at = 0;
        for step in 0..duration_ms {
            if b_is_busy && self.sim.rnd.chance(200) {
                self.submit(B, None);
            }
            if step % 20 == 0 {
                submits_at = step + self.sim.rnd.below(20);
            }
            if step == submits_at {
                let claimed = match claims {
                    Claims::None => None,
                    Claims::Moving => Some(self.known),
                    Claims::Old(index) => Some(index),
                };
                submitted.push((self.submit(A, claimed), self.sim.now));
            }
            self.sim.run_for_ms(1);
            let committed = self.sim.core(self.sim.primary(B).unwrap()).status().committed;
            let delay = ONE_WAY_MS * MS + self.sim.rnd.below(2 * MS);
            self.news.push_back((self.sim.now + delay, committed));
            while self.news.front().is_some_and(|(at, _)| *at <= self.sim.now) {
                self.known = self.known.max(self.news.pop_front().unwrap().1);
            }
        }
        self.sim.run_for_ms(2_000);
        submitted.into_iter().map(|(id, at)| self.sim.replied_at[&id] - at).collect()
    }

    fn seen_by_a(&self) -> LogIndex {
        self.sim.core(self.sim.primary(A).unwrap()).order().depends_on().index(B)
    }

    fn take_messages(&self) -> Vec<Message> {
        self.messages.take()
    }
}

/// The first command waits for an answer, the others for the next progress at the most.
fn assert_only_the_first_waits(mut took: Vec<u64>) {
    assert!((ROUND_TRIP..ROUND_TRIP + LOCAL + 2 * MS).contains(&took[0]), "{} µs for the first", took[0] / 1000);
    assert!(took[1..].iter().all(|&took| took < ROUND_TRIP), "nobody else waits for a round trip");
    let (steady, median) = (*took[5..].iter().max().unwrap(), took.len() / 2);
    assert!(steady <= LOCAL + 12 * MS, "{} µs for one once that is known", steady / 1000);
    took.sort_unstable();
    assert!(took[median] <= LOCAL + 12 * MS, "{} µs in the median", took[median] / 1000);
}

#[test]
fn claims_of_what_was_just_seen_do_not_wait_for_an_answer() {
    let mut world = World::new();
    let took = world.drive(500, true, Claims::None);
    assert!(took.iter().all(|&took| took <= LOCAL), "{took:?}");
    world.take_messages();
    // Longer than two subscriptions.
    let took = world.drive(25_000, true, Claims::Moving);
    assert_only_the_first_waits(took);
    let told = world.take_messages();
    let unasked = told.iter().filter(|message| matches!(message, Message::Reached { question: UNASKED, .. })).count();
    // Two voters every 10 ms; the primary, with one to tell, every millisecond in which there is something to tell.
    assert!((2 * 50 * 25..=(2 * 100 + 1000) * 27).contains(&unasked), "{unasked} times unasked, by three voters");
    assert!(told.iter().all(|message| message.encode().len() <= 16), "it costs few bytes");
    world.sim.run_for_ms(30_000);
    assert_eq!(world.take_messages(), [], "who rests is silent");
}

#[test]
fn claims_of_a_slow_group_do_not_keep_up_questions() {
    let mut world = World::new();
    world.drive(500, true, Claims::None);
    let took = world.drive(2_000, true, Claims::Moving);
    assert_only_the_first_waits(took);
    world.take_messages();
    // B rests: what is claimed is known, however often it is claimed.
    let took = world.drive(20_000, false, Claims::Moving);
    assert!(took[5..].iter().all(|&took| took <= LOCAL));
    assert_eq!(world.take_messages().len(), 0);
}

#[test]
fn nobody_is_told_who_does_not_need_it() {
    let mut world = World::new();
    world.drive(3_000, true, Claims::None);
    assert_eq!(world.take_messages(), [], "nothing is claimed, nothing is asked");
    world.drive(3_000, true, Claims::Moving);
    assert_ne!(world.take_messages(), []);
    // Also old claims need no news.
    let old = world.known;
    world.drive(10_000, true, Claims::Old(old));
    assert_ne!(world.take_messages(), [], "not forgotten yet");
    let took = world.drive(10_000, true, Claims::Old(old));
    assert_eq!(world.take_messages(), []);
    assert!(took.iter().all(|&took| took <= LOCAL));
    // And if it begins again, it is as in the beginning.
    let took = world.drive(2_000, true, Claims::Moving);
    assert_only_the_first_waits(took);
}

#[test]
fn new_primary_asks_anew() {
    let mut world = World::new();
    world.drive(2_000, true, Claims::Moving);
    let old = world.sim.primary(A).unwrap();
    world.sim.crash(old);
    world.sim.run_for_ms(10_000);
    assert_ne!(world.sim.primary(A).unwrap(), old);
    world.drive(200, true, Claims::None);
    let took = world.drive(3_000, true, Claims::Moving);
    assert_only_the_first_waits(took);
}

#[test]
fn restarted_voters_are_asked_anew() {
    let mut world = World::new();
    world.drive(2_000, true, Claims::Moving);
    for voter in world.sim.voters[&B].clone() {
        world.sim.crash((B, voter));
        world.sim.restart((B, voter));
    }
    world.sim.settle();
    world.sim.run_for_ms(10_000);
    world.drive(200, true, Claims::None);
    let took = world.drive(12_000, true, Claims::Moving);
    assert_only_the_first_waits(took);
}

#[test]
fn what_is_told_unasked_proves_but_does_not_clip() {
    let mut world = World::new();
    world.drop_if(|message| matches!(message, Message::Reached { question, .. } if *question != UNASKED));
    world.drive(500, true, Claims::None);
    let took = world.drive(1_000, true, Claims::Moving);
    assert!(took.iter().all(|&took| took < ROUND_TRIP + 20 * MS), "no answer is needed: {took:?}");
    // All three voters tell of progress all the time, and none that there is nothing more.
    let (claimed, began) = (LogIndex(world.known.0 + 5_000), world.sim.now);
    let id = world.submit(A, Some(claimed));
    world.drive(2_000, true, Claims::None);
    assert!(world.sim.replied_at[&id] - began >= 1_000 * MS, "it was not proven");
    assert_eq!(world.seen_by_a(), claimed, "nor clipped, but taken as if nobody had answered");
}
