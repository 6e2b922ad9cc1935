//! What a voter may say, and when: one core, messages by hand.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use bytes::Bytes;
use multicast::core::Durable;
use multicast::ids::{Ballot, GroupId, Incarnation, LogIndex, ReplicaId};
use multicast::{Config, Core, Entry, Inert, Message, OrderState, Output, Position, Record, Time};

const GROUP: GroupId = GroupId(0);
const ME: ReplicaId = ReplicaId(1);
const SECOND: ReplicaId = ReplicaId(2);
const THIRD: ReplicaId = ReplicaId(3);

fn ballot(round: u64, owner: ReplicaId) -> Ballot {
    Ballot { round, owner: Some(owner) }
}

fn entry(index: u64, ballot: Ballot) -> Entry {
    Entry { index: LogIndex(index), ballot, record: Record::Noop.encode() }
}

/// The voter `replica` of three; the first is preferred.
fn core(replica: ReplicaId, durable: Durable) -> Core {
    let groups = BTreeMap::from([(GROUP, vec![ME, SECOND, THIRD])]);
    Core::new(Time(0), Config::new(GROUP, replica, groups), durable, OrderState::new(GROUP)).unwrap()
}

fn drain(core: &mut Core) -> (Vec<(ReplicaId, Message)>, Option<u64>) {
    let (mut sent, mut token) = (Vec::new(), None);
    while let Some(output) = core.poll_output() {
        match output {
            Output::Send { message: Message::Clock { .. }, .. } => {}
            Output::Send { to, message } => sent.push((to.1, message)),
            Output::Persist { token: last, .. } => token = Some(last),
            _ => {}
        }
    }
    (sent, token)
}

fn append(ballot: Ballot, previous: Position, entries: Vec<Entry>) -> Message {
    Message::Append { ballot, previous, entries, committed: LogIndex::ZERO, everywhere: LogIndex::ZERO }
}

#[test]
fn c5_promise_is_told_only_when_durable() {
    let mut core = core(ME, Durable::default());
    core.handle_message(Time(1), (GROUP, SECOND), Message::Campaign { ballot: ballot(1, SECOND) });
    let (sent, token) = drain(&mut core);
    assert!(sent.is_empty(), "{sent:?}");
    core.handle_persisted(Time(2), token.unwrap());
    let (sent, _) = drain(&mut core);
    assert_eq!(
        sent,
        [(
            SECOND,
            Message::Promise {
                ballot: ballot(1, SECOND),
                last: Position::default(),
                incarnation: Incarnation::GENESIS
            }
        )]
    );
}

#[test]
fn c5_append_is_acknowledged_only_when_durable() {
    let mut core = core(ME, Durable::default());
    let first = ballot(1, SECOND);
    core.handle_message(Time(1), (GROUP, SECOND), append(first, Position::default(), vec![entry(1, first)]));
    let (sent, token) = drain(&mut core);
    assert!(sent.is_empty(), "{sent:?}");
    core.handle_persisted(Time(2), token.unwrap());
    let (sent, _) = drain(&mut core);
    assert_eq!(
        sent,
        [(SECOND, Message::Appended { ballot: first, matched: LogIndex(1), incarnation: Incarnation::GENESIS })]
    );
}

#[test]
fn c3_append_of_an_older_ballot_after_a_promise_is_refused() {
    let mut core = core(ME, Durable::default());
    let (old, new) = (ballot(1, SECOND), ballot(2, THIRD));
    core.handle_message(Time(1), (GROUP, THIRD), Message::Campaign { ballot: new });
    let (_, token) = drain(&mut core);
    core.handle_persisted(Time(2), token.unwrap());
    drain(&mut core);
    core.handle_message(Time(3), (GROUP, SECOND), append(old, Position::default(), vec![entry(1, old)]));
    let (sent, token) = drain(&mut core);
    assert_eq!(sent, [(SECOND, Message::Outbid { promised: new })]);
    assert_eq!(token, None, "nothing was written");
    assert_eq!(core.status().last, LogIndex::ZERO);
}

#[test]
fn c4_candidate_adopts_the_most_advanced_log_before_it_leads() {
    let mut core = core(ME, Durable::default());
    core.handle_timeout(Time(1));
    let (sent, _) = drain(&mut core);
    let Message::Probe { ballot: probe, .. } = sent[0].1 else { panic!("{sent:?}") };
    let willing = Message::ProbeAnswer {
        ballot: probe,
        willing: true,
        promised: ballot(4, THIRD),
        incarnation: Incarnation::GENESIS,
    };
    core.handle_message(Time(2), (GROUP, SECOND), willing);
    let (sent, token) = drain(&mut core);
    assert!(sent.is_empty(), "campaigns only when its own promise is durable: {sent:?}");
    core.handle_persisted(Time(3), token.unwrap());
    let (sent, _) = drain(&mut core);
    let Message::Campaign { ballot: mine } = sent[0].1 else { panic!("{sent:?}") };
    assert_eq!(mine, ballot(5, ME), "above all it knows");
    let before = ballot(4, THIRD);
    let last = Position { ballot: before, index: LogIndex(2) };
    core.handle_message(
        Time(4),
        (GROUP, SECOND),
        Message::Promise { ballot: mine, last, incarnation: Incarnation::GENESIS },
    );
    let (sent, _) = drain(&mut core);
    assert_eq!(sent, [(SECOND, Message::Fetch { ballot: mine, after: LogIndex::ZERO })]);
    assert!(!core.is_ready());
    let entries = vec![entry(1, before), entry(2, before)];
    core.handle_message(Time(5), (GROUP, SECOND), Message::Fetched { ballot: mine, after: LogIndex::ZERO, entries });
    drain(&mut core);
    let status = core.status();
    assert_eq!(status.last, LogIndex(3), "both entries, and the one that starts the ballot");
    assert_eq!(status.committed, LogIndex::ZERO);
}

#[test]
fn entry_of_an_earlier_ballot_commits_only_through_one_of_the_current() {
    let before = ballot(1, ME);
    let durable = Durable { promised: before, first: LogIndex(1), entries: vec![entry(1, before), entry(2, before)] };
    let mut core = core(ME, durable);
    core.handle_timeout(Time(1));
    let (sent, _) = drain(&mut core);
    let Message::Probe { ballot: probe, .. } = sent[0].1 else { panic!("{sent:?}") };
    let willing =
        Message::ProbeAnswer { ballot: probe, willing: true, promised: before, incarnation: Incarnation::GENESIS };
    core.handle_message(Time(2), (GROUP, SECOND), willing);
    let (_, token) = drain(&mut core);
    core.handle_persisted(Time(3), token.unwrap());
    drain(&mut core);
    let mine = ballot(2, ME);
    let last = Position { ballot: before, index: LogIndex(1) };
    core.handle_message(
        Time(4),
        (GROUP, SECOND),
        Message::Promise { ballot: mine, last, incarnation: Incarnation::GENESIS },
    );
    let (_, token) = drain(&mut core);
    core.handle_persisted(Time(5), token.unwrap());
    // The old entries are on a quorum now; the new one is not.
    core.handle_message(
        Time(6),
        (GROUP, SECOND),
        Message::Appended { ballot: mine, matched: LogIndex(2), incarnation: Incarnation::GENESIS },
    );
    drain(&mut core);
    assert_eq!(core.status().committed, LogIndex::ZERO);
    core.handle_message(
        Time(7),
        (GROUP, SECOND),
        Message::Appended { ballot: mine, matched: LogIndex(3), incarnation: Incarnation::GENESIS },
    );
    drain(&mut core);
    assert_eq!(core.status().committed, LogIndex(3));
}

#[test]
fn new_primary_does_not_ship_what_it_has_cut_off_but_not_yet_on_disk() {
    let (old, newer) = (ballot(1, ME), ballot(2, SECOND));
    let on_disk: Vec<Entry> = (1..=4).map(|index| entry(index, old)).collect();
    let groups = BTreeMap::from([(GROUP, vec![ME, SECOND, THIRD])]);
    let mut config = Config::new(GROUP, ME, groups);
    config.limits.log_tail_bytes = 1;
    let durable = Durable { promised: old, first: LogIndex(1), entries: on_disk.clone() };
    let mut core = Core::new(Time(0), config, durable, OrderState::new(GROUP)).unwrap();
    // Two entries are committed and applied; the first leaves the memory.
    core.restore_committed(LogIndex(2));
    while core.apply_next(Time(0), &mut Inert).is_some() {}
    core.handle_timeout(Time(1));
    let (sent, _) = drain(&mut core);
    let Message::Probe { ballot: probe, .. } = sent[0].1 else { panic!("{sent:?}") };
    core.handle_message(
        Time(2),
        (GROUP, SECOND),
        Message::ProbeAnswer { ballot: probe, willing: true, promised: newer, incarnation: Incarnation::GENESIS },
    );
    let (_, token) = drain(&mut core);
    core.handle_persisted(Time(3), token.unwrap());
    drain(&mut core);
    let mine = core.status().promised;
    let last = Position { ballot: newer, index: LogIndex(3) };
    core.handle_message(
        Time(4),
        (GROUP, SECOND),
        Message::Promise { ballot: mine, last, incarnation: Incarnation::GENESIS },
    );
    drain(&mut core);
    let entries = vec![entry(3, newer)];
    core.handle_message(Time(5), (GROUP, SECOND), Message::Fetched { ballot: mine, after: LogIndex(2), entries });
    let (_, truncating) = drain(&mut core);
    assert_eq!(core.status().last, LogIndex(4));
    // A follower lacks everything, so the log is read back, while the disk still has the old end.
    let refused = |previous: u64| Message::AppendRefused {
        ballot: mine,
        previous: LogIndex(previous),
        retry_after: LogIndex::ZERO,
        incarnation: Incarnation::GENESIS,
    };
    core.handle_message(Time(6), (GROUP, THIRD), refused(3));
    drain(&mut core);
    core.handle_message(
        Time(7),
        (GROUP, THIRD),
        Message::Appended { ballot: mine, matched: LogIndex::ZERO, incarnation: Incarnation::GENESIS },
    );
    let mut asked = None;
    while let Some(output) = core.poll_output() {
        if let Output::ReadLog { from, .. } = output {
            asked = Some(from);
        }
    }
    let from = asked.expect("reads the log back");
    // The read may also be answered only when the disk has the new end.
    core.handle_persisted(Time(8), truncating.unwrap());
    let read = on_disk.into_iter().filter(|entry| entry.index >= from).collect();
    core.handle_log_read(Time(9), read);
    let (sent, _) = drain(&mut core);
    let mut shipped = 0;
    for (to, message) in sent {
        if let Message::Append { entries, .. } = message
            && to == THIRD
        {
            shipped += entries.len();
            assert!(entries.iter().all(|entry| entry.index < LogIndex(3) || entry.ballot >= newer), "{entries:?}");
        }
    }
    assert!(shipped >= 2);
}

#[test]
fn log_with_a_hole_or_behind_its_state_does_not_start() {
    let groups = BTreeMap::from([(GROUP, vec![ME])]);
    let first = ballot(1, ME);
    let hole = vec![entry(1, first), entry(3, first)];
    let garbage = vec![Entry { record: Bytes::from_static(b"\xff\xff"), ..entry(1, first) }];
    for entries in [hole, garbage] {
        let durable = Durable { promised: first, first: LogIndex(1), entries };
        let config = Config::new(GROUP, ME, groups.clone());
        assert!(Core::new(Time(0), config, durable, OrderState::new(GROUP)).is_err());
    }
}
