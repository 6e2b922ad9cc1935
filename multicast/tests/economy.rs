//! What is not said, and what need not be heard at once.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use multicast::core::{Durable, Unhurried};
use multicast::ids::{Ballot, GroupId, Incarnation, LogIndex, ReplicaId};
use multicast::{Config, Core, Entry, Inert, Message, OrderState, Output, Position, Record, Time};

const GROUP: GroupId = GroupId(0);
const ME: ReplicaId = ReplicaId(1);
const SECOND: ReplicaId = ReplicaId(2);
const THIRD: ReplicaId = ReplicaId(3);
const INCARNATION: Incarnation = Incarnation::GENESIS;

/// One of three voters.
fn core(replica: ReplicaId) -> Core {
    let groups = BTreeMap::from([(GROUP, vec![ME, SECOND, THIRD])]);
    Core::new(ms(0), Config::new(GROUP, replica, groups), Durable::default(), OrderState::new(GROUP)).unwrap()
}

fn ms(ms: u64) -> Time {
    Time(1 << 60).after_ms(ms)
}

/// What is sent, and the newest token.
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

fn appended(core: &mut Core, now: Time, from: ReplicaId, matched: u64) {
    let ballot = core.status().promised;
    let message = Message::Appended { ballot, matched: LogIndex(matched), incarnation: INCARNATION };
    core.handle_message(now, (GROUP, from), message);
}

/// Takes commands; its first entry is on all disks.
fn primary() -> Core {
    let mut core = core(ME);
    core.handle_timeout(ms(0));
    let (sent, _) = drain(&mut core);
    let Message::Probe { ballot, .. } = sent[0].1 else { panic!("{sent:?}") };
    let (willing, promised) = (true, Ballot::default());
    let answer = Message::ProbeAnswer { ballot, willing, promised, incarnation: INCARNATION };
    core.handle_message(ms(0), (GROUP, SECOND), answer);
    let (_, token) = drain(&mut core);
    core.handle_persisted(ms(0), token.unwrap());
    drain(&mut core);
    let (ballot, last) = (core.status().promised, Position::default());
    core.handle_message(ms(0), (GROUP, SECOND), Message::Clock { now_ns: ms(0).0 });
    core.handle_message(ms(0), (GROUP, SECOND), Message::Promise { ballot, last, incarnation: INCARNATION });
    let (_, token) = drain(&mut core);
    core.handle_persisted(ms(0), token.unwrap());
    appended(&mut core, ms(0), SECOND, 1);
    appended(&mut core, ms(0), THIRD, 1);
    assert!(core.can_apply());
    while core.apply_next(ms(0), &mut Inert).is_some() {}
    assert!(core.is_ready() && !core.can_apply());
    drain(&mut core);
    core
}

/// To whom something goes: how many entries, and up to where it is said to be committed.
fn appends(sent: &[(ReplicaId, Message)]) -> Vec<(ReplicaId, usize, u64)> {
    let append = |(to, message): &(ReplicaId, Message)| match message {
        Message::Append { entries, committed, .. } => (*to, entries.len(), committed.0),
        other => panic!("{other:?}"),
    };
    sent.iter().map(append).collect()
}

#[test]
fn news_of_a_commit_goes_with_the_next_entries_or_alone_after_a_moment_but_at_once_if_nothing_else_is_under_way() {
    let mut core = primary();
    core.handle_tick(ms(5));
    core.handle_tick(ms(5));
    let (sent, token) = drain(&mut core);
    assert_eq!(appends(&sent), [(SECOND, 2, 1), (THIRD, 2, 1)]);
    core.handle_persisted(ms(6), token.unwrap());
    appended(&mut core, ms(6), SECOND, 2);
    assert_eq!(drain(&mut core).0, []);
    assert_eq!(core.status().committed, LogIndex(2));
    assert_eq!(core.poll_timeout(), Some(ms(8)));
    core.handle_timeout(ms(8));
    assert_eq!(appends(&drain(&mut core).0), [(SECOND, 0, 2), (THIRD, 0, 2)]);
    appended(&mut core, ms(8), SECOND, 3);
    assert_eq!(appends(&drain(&mut core).0), [(SECOND, 0, 3), (THIRD, 0, 3)], "nothing else is under way");

    core.handle_tick(ms(10));
    core.handle_tick(ms(10));
    let (_, token) = drain(&mut core);
    core.handle_persisted(ms(10), token.unwrap());
    appended(&mut core, ms(10), SECOND, 4);
    assert_eq!(drain(&mut core).0, []);
    core.handle_tick(ms(11));
    assert_eq!(appends(&drain(&mut core).0), [(SECOND, 1, 4)]);
    core.handle_timeout(ms(15));
    assert_eq!(appends(&drain(&mut core).0), [(THIRD, 1, 4)]);
    assert!(core.poll_timeout().unwrap() > ms(15), "all have been told");
}

#[test]
fn voters_that_no_commit_waits_for_get_fewer_portions_and_are_those_that_were_slower() {
    let mut core = primary();
    let to = |sent: &[(ReplicaId, Message)]| -> Vec<_> {
        appends(sent).into_iter().map(|(to, entries, _)| (to, entries)).collect()
    };
    let tick_at = |core: &mut Core, at: u64| {
        core.handle_tick(ms(at));
        let (sent, token) = drain(core);
        (to(&sent), token.unwrap())
    };
    assert_eq!(tick_at(&mut core, 5).0, [(SECOND, 1), (THIRD, 1)], "nothing was sent lately");
    assert_eq!(tick_at(&mut core, 5).0, [(SECOND, 1)]);
    let (sent, token) = tick_at(&mut core, 6);
    assert_eq!(sent, [(SECOND, 1)]);
    assert_eq!(core.poll_timeout(), Some(ms(10)));
    core.handle_timeout(ms(10));
    assert_eq!(to(&drain(&mut core).0), [(THIRD, 2)]);
    core.handle_persisted(ms(10), token);
    // The second is silent, so a commit comes by the third.
    appended(&mut core, ms(11), THIRD, 4);
    assert_eq!(core.status().committed, LogIndex(4));
    drain(&mut core);
    assert_eq!(tick_at(&mut core, 11).0, [(SECOND, 1), (THIRD, 1)]);
    assert_eq!(tick_at(&mut core, 12).0, [(THIRD, 1)]);
    core.handle_timeout(ms(16));
    assert_eq!(to(&drain(&mut core).0), [(SECOND, 1)]);
}

#[test]
fn what_moves_nothing_on_may_wait() {
    let mut core = primary();
    let idle = core.unhurried();
    assert_eq!(idle, Unhurried { persisted: true, appended_through: LogIndex(1) });
    core.handle_tick(ms(1));
    let (_, token) = drain(&mut core);
    let under_way = core.unhurried();
    assert_eq!(under_way, Unhurried { persisted: true, appended_through: LogIndex(1) });
    appended(&mut core, ms(2), SECOND, 2);
    drain(&mut core);
    assert!(!core.unhurried().persisted, "the own disk is what a quorum waits for");
    core.handle_persisted(ms(3), token.unwrap());
    drain(&mut core);
    let done = core.unhurried();
    assert_eq!(done, Unhurried { persisted: true, appended_through: LogIndex(2) });
    // A quorum of followers is ahead of the own disk: what is committed waits for that.
    core.handle_tick(ms(4));
    drain(&mut core);
    appended(&mut core, ms(5), SECOND, 3);
    appended(&mut core, ms(5), THIRD, 3);
    drain(&mut core);
    assert_eq!(core.status().committed, LogIndex(3));
    assert!(!core.unhurried().persisted);
}

#[test]
fn followers_hear_everything_at_once_and_a_search_is_not_left_lying() {
    assert_eq!(core(ME).unhurried(), Unhurried::default());
    let mut core = primary();
    core.handle_tick(ms(1));
    drain(&mut core);
    let (ballot, previous) = (core.status().promised, LogIndex(1));
    let refused = Message::AppendRefused { ballot, previous, retry_after: LogIndex(0), incarnation: INCARNATION };
    core.handle_message(ms(1), (GROUP, THIRD), refused);
    drain(&mut core);
    assert_eq!(core.unhurried().appended_through, LogIndex(1), "old news: it had that");
    core.handle_tick(ms(2));
    drain(&mut core);
    let refused =
        Message::AppendRefused { ballot, previous: LogIndex(2), retry_after: LogIndex(1), incarnation: INCARNATION };
    core.handle_message(ms(2), (GROUP, THIRD), refused);
    drain(&mut core);
    assert_eq!(core.unhurried().appended_through, LogIndex::ZERO);
}

#[test]
fn mere_news_is_not_answered_and_a_heartbeat_is() {
    let mut core = core(ME);
    let ballot = Ballot { round: 1, owner: Some(SECOND) };
    let entry = Entry { index: LogIndex(1), ballot, record: Record::Noop.encode() };
    let append = |previous: Position, entries: Vec<Entry>, committed: u64| Message::Append {
        ballot,
        previous,
        entries,
        committed: LogIndex(committed),
        everywhere: LogIndex::ZERO,
    };
    let first = Position { ballot, index: LogIndex(1) };
    core.handle_message(ms(1), (GROUP, SECOND), append(Position::default(), vec![entry.clone()], 0));
    let (_, token) = drain(&mut core);
    core.handle_persisted(ms(2), token.unwrap());
    let answer = (SECOND, Message::Appended { ballot, matched: LogIndex(1), incarnation: INCARNATION });
    assert_eq!(drain(&mut core).0, std::slice::from_ref(&answer));
    core.handle_message(ms(3), (GROUP, SECOND), append(first, vec![], 1));
    assert_eq!(drain(&mut core).0, []);
    assert_eq!(core.status().committed, LogIndex(1), "heard all the same");
    core.handle_message(ms(4), (GROUP, SECOND), append(Position::default(), vec![entry], 1));
    assert_eq!(drain(&mut core).0, std::slice::from_ref(&answer), "whoever sends entries wants to know");
    core.handle_message(ms(110), (GROUP, SECOND), append(first, vec![], 1));
    assert_eq!(drain(&mut core).0, [answer]);
}
