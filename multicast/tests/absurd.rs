//! Well-formed nonsense: every message and every record, with numbers that no honest replica would say, in every role. A
//! replica drops it or takes it; it lives, and says no more than it should.

#![allow(clippy::unwrap_used)]

mod harness;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use harness::Rnd;
use harness::machine::TestMachine;
use multicast::command::{Command, Destination, Key, Mode};
use multicast::core::{Durable, SessionChange};
use multicast::ids::{Ballot, CommandId, GroupId, Incarnation, LogIndex, ReplicaId, SessionId, Timestamp, VectorClock};
use multicast::message::Facts;
use multicast::record::{Contribution, Rejection};
use multicast::{
    Config, Context, Contributions, Core, Entry, Machine, Member, MemberRole, Membership, Message, OrderState, Output,
    Position, Record, Refusal, Time,
};

const OWN: GroupId = GroupId(0);
const OTHER: GroupId = GroupId(1);
/// More than any one input may cause, batches of a whole window apart.
const OUTPUTS_MAX: usize = 600;

/// Draws values that are mostly small, so that they meet, and now and then absurd.
struct Absurd(Rnd);

impl Absurd {
    fn number(&mut self) -> u64 {
        let edge = [0, 1, 1 << 32, u64::MAX / 2, u64::MAX / 2 + 1, u64::MAX - 1, u64::MAX];
        if self.0.chance(150) { *self.0.pick(&edge) } else { self.0.below(12) }
    }

    fn flag(&mut self) -> bool {
        self.0.chance(500)
    }

    fn maybe<T>(&mut self, value: T) -> Option<T> {
        self.flag().then_some(value)
    }

    fn group(&mut self) -> GroupId {
        GroupId(if self.0.chance(50) { self.0.next() as u16 } else { self.0.below(3) as u16 })
    }

    fn replica(&mut self) -> ReplicaId {
        ReplicaId(if self.0.chance(50) { self.0.next() as u32 } else { self.0.range(1, 3) as u32 })
    }

    fn index(&mut self) -> LogIndex {
        LogIndex(self.number())
    }

    fn timestamp(&mut self) -> Timestamp {
        Timestamp(self.number())
    }

    fn ballot(&mut self) -> Ballot {
        let owner = self.replica();
        Ballot { round: self.number(), owner: if self.0.chance(50) { None } else { Some(owner) } }
    }

    fn position(&mut self) -> Position {
        Position { ballot: self.ballot(), index: self.index() }
    }

    fn id(&mut self) -> CommandId {
        CommandId { session: SessionId(self.0.range(1, 3)), sequence: self.number() }
    }

    fn clock(&mut self) -> VectorClock {
        let mut clock = VectorClock::new();
        for _ in 0..self.0.below(3) {
            clock.advance(self.group(), self.index());
            if self.flag() {
                clock.advance_effects(self.group(), self.index(), SessionId(self.0.below(4)));
            }
        }
        clock
    }

    fn mode(&mut self) -> Mode {
        *self.0.pick(&[Mode::Read, Mode::Add, Mode::Write])
    }

    fn command(&mut self) -> Arc<Command> {
        let mut groups: Vec<GroupId> = (0..self.0.range(0, 3)).map(|_| self.group()).collect();
        if self.0.chance(800) {
            groups.push(OWN);
            groups.sort_unstable();
            groups.dedup();
        }
        let destinations = groups.into_iter().map(|group| {
            let mut keys: Vec<u64> = (0..self.0.below(4)).map(|_| self.0.below(4)).collect();
            if self.0.chance(900) {
                keys.sort_unstable();
                keys.dedup();
            }
            Destination { group, footprint: keys.into_iter().map(|key| (Key(key), self.mode())).collect() }
        });
        let destinations = destinations.collect();
        Arc::new(Command {
            id: self.id(),
            acknowledged_below: self.number(),
            clock: self.clock(),
            destinations,
            payload: Bytes::from_static(b"payload"),
        })
    }

    fn refusal(&mut self) -> Refusal {
        use Refusal::{BeyondWindow, IdReused, StaleSequence, UnknownSession};
        *self.0.pick(&[UnknownSession, StaleSequence, BeyondWindow, IdReused])
    }

    fn rejection(&mut self) -> Rejection {
        Rejection { by: self.group(), reason: self.refusal() }
    }

    fn contribution(&mut self) -> Contribution {
        Contribution { value: Bytes::from_static(b"+"), index: self.index(), depends_on: self.clock().into() }
    }

    fn record(&mut self) -> Record {
        let (id, timestamp, session) = (self.id(), self.timestamp(), SessionId(self.0.range(1, 3)));
        match self.0.below(14) {
            0 => Record::Noop,
            1 => Record::Single { command: self.command(), timestamp },
            2 | 3 => Record::Prepare { command: self.command(), timestamp },
            4 => Record::Commit { id, timestamp },
            5 => {
                let contributions = (0..self.0.below(3)).map(|_| (self.group(), self.contribution())).collect();
                Record::Finish { id, contributions }
            }
            6 => {
                let groups = (0..self.0.below(4)).map(|_| self.group()).collect();
                Record::Refuse { id, binding: self.number(), groups, reason: self.refusal() }
            }
            7 => Record::Abort { id, rejection: self.rejection() },
            8 => Record::Forget { ids: (0..self.0.below(4)).map(|_| self.id()).collect() },
            9 | 10 => Record::SessionOpen { session, timestamp },
            11 => Record::SessionClose { sessions: vec![session, SessionId(1)], timestamp },
            12 => Record::Config { membership: std::sync::Arc::new(self.members()) },
            _ => Record::Tick { timestamp },
        }
    }

    fn entries(&mut self, after: LogIndex, ballot: Ballot) -> Vec<Entry> {
        let entries = (0..self.0.below(4)).map(|at| {
            let index = if self.0.chance(50) { self.index() } else { LogIndex(after.0.saturating_add(at + 1)) };
            let ballot = if self.0.chance(50) { self.ballot() } else { ballot };
            let record = if self.0.chance(20) { Bytes::from_static(b"\xff") } else { self.record().encode() };
            Entry { index, ballot, record }
        });
        entries.collect()
    }

    fn facts(&mut self) -> Facts {
        let (timestamp, contribution, rejection) = (self.timestamp(), self.contribution(), self.rejection());
        Facts {
            id: self.id(),
            binding: self.number(),
            timestamp: self.maybe(timestamp),
            contribution: self.maybe(contribution),
            refused: if self.0.chance(200) { Some(rejection) } else { None },
            closed: self.flag(),
            ask: self.flag(),
        }
    }

    fn incarnation(&mut self) -> Incarnation {
        if self.0.chance(700) { Incarnation::GENESIS } else { Incarnation(self.number()) }
    }

    /// Such as could be decoded.
    fn members(&mut self) -> Membership {
        loop {
            let count = self.0.range(1, 8);
            let roles = [MemberRole::Voter, MemberRole::Voter, MemberRole::Learner, MemberRole::Joining];
            let member =
                |_| Member { replica: self.replica(), incarnation: self.incarnation(), role: *self.0.pick(&roles) };
            let members = (0..count).map(member).collect();
            let membership = Membership { version: self.number() / 4, members };
            if membership.is_valid() {
                return membership;
            }
        }
    }

    /// As anybody may say it. `last` and `promised` make some of it hit.
    fn message(&mut self, promised: Ballot, last: LogIndex) -> Message {
        let ballot = if self.flag() { promised } else { self.ballot() };
        match self.0.below(23) {
            0 => Message::Probe { ballot, incarnation: self.incarnation(), version: self.number() },
            1 => Message::ProbeAnswer {
                ballot,
                willing: self.flag(),
                promised: self.ballot(),
                incarnation: self.incarnation(),
            },
            2 => Message::Campaign { ballot },
            3 => Message::Promise { ballot, last: self.position(), incarnation: self.incarnation() },
            4 => Message::Outbid { promised: self.ballot() },
            5 => Message::Fetch { ballot, after: self.index() },
            6 => {
                let after = self.index();
                Message::Fetched { ballot, after, entries: self.entries(after, ballot) }
            }
            7 | 8 => {
                let mut previous = self.position();
                if self.flag() {
                    previous.index = last;
                }
                let entries = self.entries(previous.index, ballot);
                Message::Append { ballot, previous, entries, committed: self.index(), everywhere: self.index() }
            }
            9 => Message::Appended {
                ballot,
                matched: if self.flag() { last } else { self.index() },
                incarnation: self.incarnation(),
            },
            10 => Message::AppendRefused {
                ballot,
                previous: self.index(),
                retry_after: self.index(),
                incarnation: self.incarnation(),
            },
            11 => Message::TakeOver { ballot },
            12 => Message::Propose { command: self.command() },
            13 => Message::Facts(self.facts()),
            14 => Message::NotPrimary { hint: Some(self.replica()) },
            15 => Message::TooFarBehind { ballot, first: self.index() },
            16 => Message::Clock { now_ns: self.number() },
            17 => Message::Busy { id: self.id(), binding: self.number() },
            18 => Message::Members(self.members()),
            19 => Message::AskMembers { version: self.number() },
            21 => Message::AskCopy { incarnation: self.incarnation(), applied: self.index() },
            20 => Message::Digest { index: self.index(), digest: u128::from(self.number()) },
            _ if self.flag() => Message::HowFar { question: self.number() },
            _ => Message::Reached {
                question: self.number(),
                committed: self.index(),
                last: self.index(),
                version: self.number(),
                incarnation: self.incarnation(),
            },
        }
    }
}

/// The test machine without its own assertions, which hold for honest logs only.
struct Lenient(TestMachine);

impl Machine for Lenient {
    fn contribute(&mut self, context: &Context, command: &Command) -> Bytes {
        self.0.contribute(context, command)
    }

    fn execute(&mut self, context: &Context, command: &Command, _: &Contributions) -> Bytes {
        self.0.execute(context, command, &Contributions::new())
    }

    fn session_opened(&mut self, context: &Context, session: SessionId) {
        self.0.session_opened(context, session);
    }

    fn session_closed(&mut self, context: &Context, session: SessionId) {
        self.0.session_closed(context, session);
    }
}

fn groups() -> BTreeMap<GroupId, Vec<ReplicaId>> {
    let voters = |first: u32| (first..first + 3).map(ReplicaId).collect();
    BTreeMap::from([(OWN, voters(1)), (OTHER, voters(1)), (GroupId(2), voters(1))])
}

/// What a driver does after an input, with peers that help the core to every role. Returns how often it led.
fn drive(core: &mut Core, absurd: &mut Absurd, now: u64, machine: &mut Lenient) -> u32 {
    let mut outputs = 0;
    for _ in 0..3 {
        let mut token = None;
        while let Some(output) = core.poll_output() {
            outputs += 1;
            assert!(outputs <= OUTPUTS_MAX, "one input makes a core say so much");
            match output {
                Output::Persist { token: next, .. } => token = Some(next),
                Output::Send { to, message: Message::Probe { ballot, .. } } if absurd.flag() => {
                    let message = Message::ProbeAnswer {
                        ballot,
                        willing: true,
                        promised: Ballot::default(),
                        incarnation: Incarnation::GENESIS,
                    };
                    core.handle_message(Time(now), to, message);
                }
                Output::Send { to, message: Message::Campaign { ballot } } if absurd.0.chance(700) => {
                    core.handle_message(Time(now), to, Message::Clock { now_ns: now });
                    let last = if absurd.0.chance(800) { Position::default() } else { absurd.position() };
                    core.handle_message(
                        Time(now),
                        to,
                        Message::Promise { ballot, last, incarnation: Incarnation::GENESIS },
                    );
                }
                Output::Send { to, message: Message::Append { ballot, previous, entries, .. } }
                    if to.0 == OWN && absurd.0.chance(700) =>
                {
                    let matched = LogIndex(previous.index.0 + entries.len() as u64);
                    core.handle_message(
                        Time(now),
                        to,
                        Message::Appended { ballot, matched, incarnation: Incarnation::GENESIS },
                    );
                }
                Output::ReadLog { .. } => {
                    let (after, ballot) = (absurd.index(), absurd.ballot());
                    let entries = absurd.entries(after, ballot);
                    core.handle_log_read(Time(now), entries);
                }
                _ => {}
            }
        }
        if let Some(token) = token.filter(|_| absurd.0.chance(900)) {
            core.handle_persisted(Time(now), token);
        }
        while core.apply_next(Time(now), machine).is_some() {}
    }
    u32::from(core.is_ready())
}

#[test]
fn core_absurd_inputs_in_every_role_never_panic() {
    let (mut led, mut applied) = (0, 0);
    for seed in 0..250 {
        let mut absurd = Absurd(Rnd::new(seed));
        let me = ReplicaId(absurd.0.range(1, 3) as u32);
        let mut config = Config::new(OWN, me, groups());
        config.limits.log_tail_bytes = *absurd.0.pick(&[1, 1 << 20]);
        config.limits.append_batch_bytes = *absurd.0.pick(&[1, 1 << 20]);
        let mut core = Core::new(Time(0), config, Durable::default(), OrderState::new(OWN)).unwrap();
        let mut machine = Lenient(TestMachine::default());
        let mut now = 0;
        for _ in 0..400 {
            now += absurd.0.below(40_000_000);
            let status = core.status();
            match absurd.0.below(20) {
                0 => core.handle_submit(Time(now), absurd.command()),
                1 => core.handle_session(Time(now), SessionChange::Open(SessionId(absurd.0.range(1, 3)))),
                2 => core.handle_session(Time(now), SessionChange::Close(SessionId(absurd.0.range(1, 9)))),
                3 => core.handle_withdraw(Time(now), absurd.id()),
                4 => core.truncate_below(core.truncatable_below()),
                5 => core.handle_tick(Time(now)),
                6 => assert!(!core.rewrite_kept(0) || status.last == LogIndex::ZERO),
                7..=12 if core.is_ready() => {
                    // From another group, as its primary.
                    let command = absurd.command();
                    let facts = Facts { binding: command.binding(), id: command.id, ..absurd.facts() };
                    let from = (OTHER, absurd.replica());
                    core.handle_message(Time(now), from, Message::Propose { command });
                    core.handle_message(Time(now), from, Message::Facts(facts));
                }
                _ => {
                    let from = (absurd.group(), absurd.replica());
                    let message = absurd.message(status.promised, status.last);
                    core.handle_message(Time(now), from, Message::decode(&message.encode()).unwrap());
                }
            }
            if core.poll_timeout().is_some_and(|due| due <= Time(now)) {
                core.handle_timeout(Time(now));
            }
            led += drive(&mut core, &mut absurd, now, &mut machine);
        }
        applied += core.order().applied().0;
    }
    assert!(led > 5_000 && applied > 2_000, "{led} turns as primary, {applied} applied");
}

#[test]
fn state_absurd_records_never_panic_and_come_back_from_rows() {
    for seed in 0..300 {
        let mut absurd = Absurd(Rnd::new(seed));
        let mut order = OrderState::new(OWN);
        let mut machine = Lenient(TestMachine::default());
        let mut rows: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
        for index in 1..120 {
            let record = Record::decode(&absurd.record().encode()).unwrap();
            order.apply(LogIndex(index), &record, &mut machine);
            if absurd.0.below(4) > 0 {
                continue;
            }
            for (key, value) in order.drain_changes() {
                match value {
                    Some(value) => rows.insert(key, value),
                    None => rows.remove(&key),
                };
            }
            let again = OrderState::load(OWN, rows.clone()).unwrap();
            assert_eq!(again.digest(), order.digest(), "seed {seed}, entry {index}");
        }
    }
}
