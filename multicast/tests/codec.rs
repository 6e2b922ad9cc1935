//! Bytes: what goes out comes back, what is nonsense is an error, and the format of today is the format of tomorrow.

#![allow(clippy::unwrap_used)]

mod harness;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use harness::Rnd;
use harness::sim::{Address, Options, Sim};
use multicast::command::{Command, Destination, Key, Mode};
use multicast::core::Durable;
use multicast::ids::{Ballot, CommandId, GroupId, Incarnation, LogIndex, ReplicaId, SessionId, Timestamp, VectorClock};
use multicast::message::Facts;
use multicast::record::{Contribution, Rejection};
use multicast::{
    Config, Core, Entry, Inert, Member, MemberRole, Membership, Message, OrderState, Output, Position, Record, Refusal,
    Snapshot, Time,
};
use proptest::prelude::*;

fn sample_command() -> Arc<Command> {
    let footprint = vec![(Key(3), Mode::Read), (Key(300), Mode::Add), (Key(u64::MAX), Mode::Write)];
    let destinations = vec![
        Destination { group: GroupId(0), footprint: footprint.into() },
        Destination { group: GroupId(2), footprint: vec![(Key(5), Mode::Write)].into() },
    ];
    Arc::new(Command {
        id: CommandId { session: SessionId(0x0102_0304_0506_0708), sequence: 9 },
        acknowledged_below: 7,
        clock: sample_clock(),
        destinations,
        payload: Bytes::from_static(b"op"),
    })
}

fn sample_clock() -> VectorClock {
    let mut clock: VectorClock = [(GroupId(1), LogIndex(200))].into_iter().collect();
    clock.advance_effects(GroupId(2), LogIndex(3), SessionId(7));
    clock
}

fn sample_contribution() -> Contribution {
    let depends_on: VectorClock = [(GroupId(2), LogIndex(4))].into_iter().collect();
    Contribution { value: Bytes::from_static(b"yes"), index: LogIndex(77), depends_on: depends_on.into() }
}

fn sample_records() -> Vec<Record> {
    let (command, id) = (sample_command(), sample_command().id);
    let (timestamp, session) = (Timestamp(1_000_000), id.session);
    let rejection = Rejection { by: GroupId(2), reason: Refusal::StaleSequence };
    vec![
        Record::Noop,
        Record::Single { command: Arc::clone(&command), timestamp },
        Record::Prepare { command, timestamp },
        Record::Commit { id, timestamp },
        Record::Finish { id, contributions: [(GroupId(2), sample_contribution())].into_iter().collect() },
        Record::Refuse { id, binding: 99, groups: vec![GroupId(0), GroupId(2)], reason: Refusal::UnknownSession },
        Record::Abort { id, rejection },
        Record::Forget { ids: vec![id] },
        Record::SessionOpen { session, timestamp },
        Record::SessionClose { sessions: vec![session], timestamp },
        Record::Tick { timestamp },
        Record::Config { membership: Arc::new(sample_members()) },
    ]
}

fn member(replica: u32, incarnation: u64, role: MemberRole) -> Member {
    Member { replica: ReplicaId(replica), incarnation: Incarnation(incarnation), role }
}

fn sample_members() -> Membership {
    let roles = [MemberRole::Voter, MemberRole::Learner, MemberRole::Joining];
    let members = (1..).zip(roles).map(|(at, role)| member(at, u64::from(at - 1) * 200, role)).collect();
    Membership { version: 300, members }
}

fn sample_messages() -> Vec<Message> {
    let ballot = Ballot { round: 300, owner: Some(ReplicaId(2)) };
    let position = Position { ballot, index: LogIndex(128) };
    let entry = Entry { index: LogIndex(129), ballot, record: Record::Noop.encode() };
    let facts = Facts {
        id: sample_command().id,
        binding: 99,
        timestamp: Some(Timestamp(5)),
        contribution: Some(sample_contribution()),
        refused: Some(Rejection { by: GroupId(1), reason: Refusal::IdReused }),
        closed: true,
        ask: false,
    };
    vec![
        Message::Probe { ballot, incarnation: Incarnation::GENESIS, version: 0 },
        Message::ProbeAnswer { ballot, willing: true, promised: Ballot::default(), incarnation: Incarnation::GENESIS },
        Message::Campaign { ballot },
        Message::Promise { ballot, last: position, incarnation: Incarnation::GENESIS },
        Message::Outbid { promised: ballot },
        Message::Fetch { ballot, after: LogIndex(1) },
        Message::Fetched { ballot, after: LogIndex(128), entries: vec![entry.clone()] },
        Message::Append {
            ballot,
            previous: position,
            entries: vec![entry],
            committed: LogIndex(100),
            everywhere: LogIndex(90),
        },
        Message::Appended { ballot, matched: LogIndex(129), incarnation: Incarnation::GENESIS },
        Message::AppendRefused {
            ballot,
            previous: LogIndex(128),
            retry_after: LogIndex(3),
            incarnation: Incarnation::GENESIS,
        },
        Message::TakeOver { ballot },
        Message::Propose { command: sample_command() },
        Message::Facts(facts),
        Message::NotPrimary { hint: Some(ReplicaId(3)) },
        Message::TooFarBehind { ballot, first: LogIndex(130) },
        Message::Clock { now_ns: 1_000_000 },
        Message::Busy { id: sample_command().id, binding: 99 },
        Message::HowFar { question: 7 },
        Message::Reached {
            question: 7,
            committed: LogIndex(200),
            last: LogIndex(201),
            version: 5,
            incarnation: Incarnation(1 << 63),
        },
        Message::Members(sample_members()),
        Message::AskMembers { version: 5 },
        Message::Digest { index: LogIndex(1000), digest: 77 },
        Message::AskCopy { incarnation: Incarnation(1), applied: LogIndex(1234) },
    ]
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn messages_and_records_come_back_as_they_were() {
    for message in sample_messages() {
        assert_eq!(Message::decode(&message.encode()).unwrap(), message);
    }
    for record in sample_records() {
        assert_eq!(Record::decode(&record.encode()).unwrap(), record);
    }
}

/// A state with a row of each kind, but for that of a copy: an open session and one that has ended, members, replies, a command
/// that has its contribution and one that is settled.
fn sample_rows() -> Vec<(Vec<u8>, Vec<u8>)> {
    let command = |sequence, groups: usize| {
        let mut command = Command::clone(&sample_command());
        command.id.sequence = sequence;
        command.destinations.truncate(groups);
        Arc::new(command)
    };
    let (single, prepared, settled) = (command(8, 1), command(9, 2), command(10, 2));
    let (session, timestamp) = (single.id.session, Timestamp(1_000_000));
    let contributions = [(GroupId(2), sample_contribution())].into_iter().collect();
    let records = [
        Record::SessionOpen { session: SessionId(7), timestamp },
        Record::SessionOpen { session, timestamp },
        Record::SessionClose { sessions: vec![SessionId(7)], timestamp },
        Record::Single { command: single, timestamp },
        Record::Prepare { command: Arc::clone(&prepared), timestamp },
        Record::Prepare { command: Arc::clone(&settled), timestamp },
        Record::Commit { id: prepared.id, timestamp },
        Record::Commit { id: settled.id, timestamp },
        Record::Finish { id: settled.id, contributions },
        Record::Config { membership: Arc::new(sample_members()) },
    ];
    let mut order = OrderState::new(GroupId(0));
    for (index, record) in (1..).map(LogIndex).zip(&records) {
        order.apply(index, record, &mut Inert);
    }
    order.drain_changes().into_iter().filter_map(|(key, value)| Some((key, value?))).collect()
}

#[test]
fn messages_records_and_rows_keep_their_bytes() {
    let messages: Vec<String> = sample_messages().iter().map(|message| hex(&message.encode())).collect();
    let records: Vec<String> = sample_records().iter().map(|record| hex(&record.encode())).collect();
    let rows: Vec<String> = sample_rows().iter().map(|(key, value)| format!("{} {}", hex(key), hex(value))).collect();
    let kinds: std::collections::BTreeSet<u8> = sample_rows().iter().map(|(key, _)| key[0]).collect();
    assert_eq!(kinds.len(), 7, "a row of each kind");
    let text = format!("{}\n\n{}\n\n{}\n", messages.join("\n"), records.join("\n"), rows.join("\n"));
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden.txt");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(path, &text).unwrap();
    }
    let golden = std::fs::read_to_string(path).unwrap();
    assert_eq!(text, golden, "a changed format needs a new version; then run with UPDATE_GOLDEN=1 and review the diff");
}

/// What no group can have never gets beyond the decoder, whoever says it.
#[test]
fn absurd_memberships_and_snapshots_are_no_records_nor_messages() {
    let voters = |count: u32| (1..=count).map(|at| member(at, 0, MemberRole::Voter)).collect::<Vec<_>>();
    let learners = |count: u32| (101..=100 + count).map(|at| member(at, 0, MemberRole::Learner));
    let membership = |version, members: Vec<Member>| Membership { version, members };
    let mut many = voters(7);
    many.extend(learners(57));
    let possible = [membership(0, voters(1)), membership(u64::MAX / 2, voters(7)), membership(1, many.clone())];
    many.extend(learners(1));
    many.last_mut().unwrap().replica = ReplicaId(1000);
    let twice = vec![member(1, 0, MemberRole::Voter), member(1, 1, MemberRole::Learner)];
    let absurd = [
        membership(0, Vec::new()),
        membership(0, learners(3).collect()),
        membership(0, voters(8)),
        membership(0, twice),
        membership(0, many),
        membership(u64::MAX, voters(3)),
    ];
    let decodes = |membership: &Membership| {
        let record = Record::decode(&Record::Config { membership: Arc::new(membership.clone()) }.encode()).is_ok();
        let message = Message::decode(&Message::Members(membership.clone()).encode()).is_ok();
        assert_eq!(record, message, "{membership:?}");
        record
    };
    assert!(possible.iter().all(decodes));
    assert!(!absurd.iter().any(decodes));

    let entry = Entry { index: LogIndex(7), ballot: Ballot { round: 3, owner: None }, record: Record::Noop.encode() };
    let snapshot = Snapshot { ballot: Ballot { round: 4, owner: Some(ReplicaId(1)) }, entry };
    assert_eq!(Snapshot::decode(&snapshot.encode()).unwrap(), snapshot);
    let altered = |alter: fn(&mut Snapshot)| {
        let mut absurd = snapshot.clone();
        alter(&mut absurd);
        assert!(Snapshot::decode(&absurd.encode()).is_err(), "{absurd:?}");
    };
    altered(|snapshot| snapshot.entry.index = LogIndex::ZERO);
    altered(|snapshot| snapshot.entry.index = LogIndex(u64::MAX));
    altered(|snapshot| snapshot.entry.ballot.round = 5);
    altered(|snapshot| snapshot.ballot.round = u64::MAX);
    altered(|snapshot| snapshot.entry.record = Bytes::from_static(b"none"));
}

#[test]
fn unknown_version_rest_and_size_are_errors() {
    let mut bytes = Message::NotPrimary { hint: None }.encode().to_vec();
    bytes.push(0);
    assert!(Message::decode(&bytes).is_err(), "bytes too many");
    bytes.pop();
    assert!(Message::decode(&bytes).is_ok());
    bytes[0] = 9;
    assert!(matches!(Message::decode(&bytes), Err(multicast::Error::UnknownVersion { found: 9, .. })));
    let huge = vec![1; multicast::message::MESSAGE_BYTES_MAX + 1];
    assert!(matches!(Message::decode(&huge), Err(multicast::Error::TooLarge { .. })));
    assert!(Message::decode(&[]).is_err());
}

#[test]
fn binding_of_a_command_is_its_destinations_and_payload() {
    let command = sample_command();
    let mut other = Command::clone(&command);
    (other.acknowledged_below, other.clock) = (0, VectorClock::new());
    assert_eq!(command.binding(), other.binding());
    other.destinations[1].group = GroupId(3);
    assert_ne!(command.binding(), other.binding());
    let mut other = Command::clone(&command);
    other.payload = Bytes::from_static(b"po");
    assert_ne!(command.binding(), other.binding());
    assert_eq!(command.binding(), 17_703_706_169_372_978_671, "the binding is on disk: it must never change");
}

proptest! {
    #[test]
    fn decoders_random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let mut bytes = bytes;
        let _ = Message::decode(&bytes);
        let _ = Record::decode(&bytes);
        if let Some(first) = bytes.first_mut() {
            *first = multicast::message::MESSAGE_VERSION;
        }
        let _ = Message::decode(&bytes);
        if let Some(first) = bytes.first_mut() {
            *first = multicast::record::RECORD_VERSION;
        }
        let _ = Record::decode(&bytes);
        let key = bytes.get(..bytes.len() / 2).unwrap_or_default().to_vec();
        let _ = OrderState::load(GroupId(0), [(key, bytes.clone())]);
        for (tag, len) in [(b'm', 1), (b'o', 17), (b'p', 17), (b'r', 9)] {
            let _ = OrderState::load(GroupId(0), [(vec![tag; len], bytes.clone())]);
        }
    }
}

/// Messages of a real run, with who sent them to whom.
fn recorded() -> Vec<(Address, Address, Bytes)> {
    let recorded = Rc::new(RefCell::new(Vec::new()));
    let record = Rc::clone(&recorded);
    let mut options = Options::draw(&mut Rnd::new(3));
    (options.voters, options.clients, options.commands_per_client) = (vec![3, 3], 4, 20);
    (options.mix.groups, options.faults_until_ms, options.crash_every_ms) = (2, 5_000, 700);
    let mut sim = Sim::new(3, options);
    sim.filter = Some(Box::new(move |from, to, message| {
        record.borrow_mut().push((from, to, message.encode()));
        false
    }));
    sim.run_to_quiet(200_000);
    sim.filter = None;
    Rc::try_unwrap(recorded).unwrap().into_inner()
}

/// Whatever peers send, in whatever order, altered as they like: a replica drops it or takes it, and lives.
#[test]
fn core_altered_messages_never_panic() {
    let messages = recorded();
    let (mut taken, mut led, mut executed) = (0, 0, 0);
    let groups: BTreeMap<GroupId, Vec<ReplicaId>> = BTreeMap::from([
        (GroupId(0), vec![ReplicaId(1), ReplicaId(2), ReplicaId(3)]),
        (GroupId(1), vec![ReplicaId(11), ReplicaId(12), ReplicaId(13)]),
    ]);
    for seed in 0..60 {
        let mut rnd = Rnd::new(seed);
        // Either whatever comes, and peers that say yes to everything; or what a follower got, and how it came.
        let follows = seed % 2 == 0;
        let me = if follows { ReplicaId(2) } else { ReplicaId(1) };
        let config = Config::new(GroupId(0), me, groups.clone());
        let mut core = Core::new(Time(0), config, Durable::default(), OrderState::new(GroupId(0))).unwrap();
        let mut now = 0;
        let mut to_me = messages.iter().filter(|(_, to, _)| *to == (GroupId(0), me));
        for _ in 0..1_500 {
            now += rnd.below(if follows { 10_000_000 } else { 60_000_000 });
            let next = if follows { to_me.next() } else { Some(rnd.pick(&messages)) };
            let Some((from, _, bytes)) = next else { break };
            let mut bytes = bytes.to_vec();
            let alterations = if follows && rnd.chance(900) { 0 } else { rnd.below(3) };
            for _ in 0..alterations {
                let at = rnd.below(bytes.len() as u64) as usize;
                bytes[at] = if rnd.chance(500) { rnd.next() as u8 } else { bytes[at].wrapping_add(1) };
            }
            if let Ok(message) = Message::decode(&bytes) {
                taken += 1;
                core.handle_message(Time(now), *from, message);
            }
            if core.poll_timeout().is_some_and(|due| due <= Time(now)) {
                core.handle_timeout(Time(now));
            }
            let mut tokens = Vec::new();
            for _ in 0..3 {
                while let Some(output) = core.poll_output() {
                    match output {
                        Output::Persist { token, .. } => tokens.push(token),
                        // A peer may say yes to everything.
                        Output::Send { to, message: Message::Probe { ballot, .. } } if !follows && rnd.chance(300) => {
                            let promised = Ballot::default();
                            let message = Message::ProbeAnswer {
                                ballot,
                                willing: true,
                                promised,
                                incarnation: Incarnation::GENESIS,
                            };
                            core.handle_message(Time(now), to, message);
                        }
                        Output::Send { to, message: Message::Campaign { ballot } } if !follows && rnd.chance(300) => {
                            core.handle_message(Time(now), to, Message::Clock { now_ns: now });
                            let message = Message::Promise {
                                ballot,
                                last: Position::default(),
                                incarnation: Incarnation::GENESIS,
                            };
                            core.handle_message(Time(now), to, message);
                        }
                        Output::Send { to, message: Message::Append { ballot, previous, entries, .. } }
                            if rnd.chance(800) =>
                        {
                            let matched = LogIndex(previous.index.0 + entries.len() as u64);
                            core.handle_message(
                                Time(now),
                                to,
                                Message::Appended { ballot, matched, incarnation: Incarnation::GENESIS },
                            );
                        }
                        _ => {}
                    }
                }
                if let Some(token) = tokens.pop() {
                    core.handle_persisted(Time(now), token);
                }
                while core.apply_next(Time(now), &mut Inert).is_some() {
                    executed += 1;
                }
            }
            led += u32::from(core.is_ready());
        }
    }
    assert!(taken > 10_000 && led > 1_000 && executed > 500, "{taken} taken, {led} as primary, {executed} applied");
}
