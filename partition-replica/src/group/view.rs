//! What the world sees of a replica: its state as of one log index, read under a lock that its thread takes for writing
//! while it moves on. Replies and events reach a client in the order of those steps.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use metadata::protocol::{Event, Reply, ToClient};
use metadata::read::{ReadAnswer, ReadOp};
use metadata::types::BlobId;
use multicast::Time;
use multicast::command::Key;
use multicast::ids::{GroupId, ReplicaId, SessionId};
use parking_lot::{Mutex, RwLock, RwLockReadGuard};
use replica::{Front, Interest, Parked, Tell, Verdict};
use tokio::sync::Notify;

use super::long::{Job, Limited, LongReads, ROWS_AT_ONCE};
use crate::clock::Clock;
use crate::config::Limits;
use crate::error::Error;
use crate::server::client::{Client, Ticket};
use crate::storage::state::{GroupState, StateSnapshot};

/// A read of what this replica has not applied yet waits so long for that: its commits are late by some milliseconds, and if
/// it is behind for another reason, others can answer. Well above what a busy machine delays.
const LAG_PATIENCE_NS: u64 = 200_000_000;

/// A read on its way.
pub type PendingRead = replica::PendingRead<Ticket>;

/// A replica's readable side.
pub struct View {
    group: GroupId,
    state: GroupState,
    clock: Clock,
    front: RwLock<Front>,
    /// Locked only while `front` is.
    interest: Mutex<Interest<Arc<Client>>>,
    parked: Mutex<Parked<Ticket>>,
    parked_count: AtomicUsize,
    rows_at_once: usize,
    pub(super) long: LongReads,
    /// Wakes whoever serves parked reads.
    pub progress: Notify,
}

impl View {
    /// Of a replica that has applied what `front` says.
    pub fn new(group: GroupId, state: GroupState, front: Front, limits: &Limits, clock: Clock) -> View {
        View {
            group,
            state,
            clock,
            front: RwLock::new(front),
            interest: Mutex::new(Interest::new(group, limits.interest_keys_max)),
            parked: Mutex::new(Parked::new(limits.parked_reads_max)),
            parked_count: AtomicUsize::new(0),
            rows_at_once: ROWS_AT_ONCE,
            long: LongReads::new(limits.parked_reads_max),
            progress: Notify::new(),
        }
    }

    /// Takes a step to a later state: nobody reads meanwhile. What clients must see in the order of steps is sent in it.
    /// Reads that waited for it are served by others.
    pub fn advance<R>(&self, step: impl FnOnce(&mut Front, &mut Interest<Arc<Client>>) -> R) -> R {
        let mut front = self.front.write();
        let result = step(&mut front, &mut self.interest.lock());
        drop(front);
        if self.parked_count.load(Ordering::Acquire) > 0 {
            self.progress.notify_one();
        }
        result
    }

    /// Nobody may read the state any more.
    pub fn close(&self) {
        self.advance(|front, interest| {
            (front.is_quarantined, front.primary) = (true, None);
            interest.end(front.applied, &mut |client, event| client.push(&ToClient::Event(event)));
        });
    }

    /// Another state takes this one's place. Clients that follow it have missed what changed: they are cut off, and come back.
    pub fn replace<R>(&self, step: impl FnOnce(&mut Front) -> R) -> R {
        self.advance(|front, interest| {
            interest.end(front.applied, &mut |client, _| client.end("a copy has taken the place of the state"));
            self.long.note_all();
            step(front)
        })
    }

    /// True if nobody may read the state.
    pub fn is_closed(&self) -> bool {
        self.front.read().is_quarantined
    }

    /// The next state differs in these keys: long reads are told. Called in a step.
    pub fn note_changed(&self, keys: &[Key]) {
        self.long.note(keys);
    }

    /// What goes with the state.
    pub fn front(&self) -> Front {
        self.front.read().clone()
    }

    /// Who is primary, as far as known.
    pub fn primary(&self) -> Option<ReplicaId> {
        self.front.read().primary
    }

    /// Starts a session's stream on a connection. The answer tells the index from which on it is complete. Orphans that the
    /// session holds, and of which an earlier stream may not have told, are told soon.
    pub fn subscribe(&self, session: SessionId, ticket: Ticket) {
        let front = self.front.read();
        if let Some(refusal) = front.refusal(self.group) {
            return ticket.reply(refusal);
        }
        let client = ticket.client().clone();
        let busy = |why: &str| Reply::Unavailable { group: self.group, why: why.into() };
        if !self.long.push(|| Job::Orphans { session, client: client.clone() }) {
            return ticket.reply(busy("too much waits for this replica's readers"));
        }
        self.progress.notify_one();
        if !self.interest.lock().subscribe(session, client) {
            return ticket.reply(busy("the connection has too many streams"));
        }
        ticket.reply(Reply::Session(front.position()));
    }

    /// Ends the streams of a connection.
    pub fn unsubscribe(&self, client: &Client) {
        let _front = self.front.read();
        self.interest.lock().unsubscribe(client.number());
    }

    /// Answers a read, or parks it until the replica has come so far.
    pub fn serve(&self, mut read: PendingRead) {
        let front = self.front.read();
        if front.applied < read.index {
            read.deadline = read.deadline.min(self.clock.now() + LAG_PATIENCE_NS);
        }
        if let Some(read) = self.answer(read, &front) {
            self.park(read, &front);
            // Its deadline may be the first.
            self.progress.notify_one();
        }
    }

    /// Answers a read if it is short, or gives it back if it must wait.
    fn answer(&self, read: PendingRead, front: &Front) -> Option<PendingRead> {
        if let Some(refusal) = front.refusal(self.group) {
            read.ticket.reply(refusal);
            return None;
        }
        let keys = read.op.keys();
        if front.holds_back(&read, &keys) {
            return Some(read);
        }
        let rows = Limited::new(&self.state, self.rows_at_once);
        match metadata::answer::read(&rows, self.group, &read.op) {
            Ok(result) => {
                let verdict = read.conclude(self.group, (front, front), |_| false, keys, result);
                self.settle(read, front, verdict)
            }
            Err(_) if rows.is_exhausted() => {
                self.postpone(read);
                None
            }
            Err(error) => {
                self.fail(read.ticket, Error::of_store(&error));
                None
            }
        }
    }

    /// Answers a read, while `front` is locked, or gives it back if it must wait.
    pub(super) fn settle(&self, read: PendingRead, front: &Front, verdict: Verdict) -> Option<PendingRead> {
        let Verdict::Answer(body, noted) = verdict else { return Some(read) };
        let body = front.refusal(self.group).unwrap_or(body);
        if let Some(keys) = noted {
            let client = read.ticket.client();
            let tell = &mut |client: &Arc<Client>, event: Event| client.push(&ToClient::Event(event));
            self.interest.lock().note(read.session, client, &keys, front.applied, tell);
        }
        read.ticket.reply(body);
        None
    }

    /// Leaves a long read to threads of its own.
    fn postpone(&self, read: PendingRead) {
        let mut read = Some(read);
        if self.long.push(|| Job::Read(read.take().expect("a job is made once"))) {
            self.progress.notify_one();
        }
        if let Some(read) = read {
            let why = "too many long reads".into();
            read.ticket.reply(Reply::Unavailable { group: self.group, why });
        }
    }

    /// A row that is not what was written ends the node, as it does when a command comes upon it.
    pub(super) fn fail(&self, ticket: Ticket, error: Error) {
        let failed: crate::Result<()> = self.state.noted(Err(error));
        if let Err(error) = failed {
            tracing::error!(group = %self.group, %error, "a read failed");
        }
        let why = "this replica's state cannot be read".into();
        ticket.reply(Reply::Unavailable { group: self.group, why });
    }

    pub(super) fn group(&self) -> GroupId {
        self.group
    }

    pub(super) fn state(&self) -> &GroupState {
        &self.state
    }

    pub(super) fn lock_front(&self) -> RwLockReadGuard<'_, Front> {
        self.front.read()
    }

    /// The state as it is now, and what goes with it.
    pub fn snapshot(&self) -> crate::Result<(Front, StateSnapshot<'_>)> {
        let front = self.front.read();
        Ok((front.clone(), self.state.snapshot()?))
    }

    /// Blobs that nothing refers to; nothing if the state cannot be read.
    pub fn garbage(&self, limit: u32) -> Option<Vec<BlobId>> {
        let _front = self.front.read();
        match metadata::answer::read(&self.state, self.group, &ReadOp::Garbage { limit }) {
            Ok(Ok(ReadAnswer::Garbage(blobs))) => Some(blobs),
            Ok(_) => None,
            Err(error) => self.state.noted(Err(Error::of_store(&error))).ok(),
        }
    }

    /// Called on the network's runtime when `progress` was made or time has passed. Returns the next deadline, if any read
    /// still waits.
    pub fn serve_parked(self: &Arc<View>) -> Option<Time> {
        self.start_readers();
        if self.parked_count.load(Ordering::Acquire) == 0 {
            return None;
        }
        let applied = self.front.read().applied;
        let ready = {
            let mut parked = self.parked.lock();
            let ready = parked.take_ready(self.clock.now(), applied, &mut tell);
            self.parked_count.store(parked.len(), Ordering::Release);
            ready
        };
        for read in ready {
            let front = self.front.read();
            if let Some(read) = self.answer(read, &front) {
                self.park(read, &front);
            }
        }
        self.start_readers();
        self.parked.lock().deadline()
    }

    pub(super) fn now(&self) -> Time {
        self.clock.now()
    }

    /// (subscribers, keys noted, reads parked), for people.
    pub fn figures(&self) -> (usize, usize, usize) {
        let _front = self.front.read();
        let interest = self.interest.lock();
        (interest.subscribers(), interest.keys(), self.parked_count.load(Ordering::Relaxed))
    }

    /// Called while `front` is locked, so that no progress is missed.
    pub(super) fn park(&self, read: PendingRead, front: &Front) {
        let mut parked = self.parked.lock();
        let refused = parked.park(read, front);
        self.parked_count.store(parked.len(), Ordering::Release);
        drop(parked);
        refused.into_iter().for_each(tell);
    }
}

/// Tells a client what the rules say.
pub fn tell(said: Tell<Ticket>) {
    match said {
        Tell::Reply(ticket, body) => ticket.reply(body),
        Tell::Event(client, event) => client.push(&ToClient::Event(event)),
    }
}

#[cfg(test)]
pub(super) mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::Duration;

    use metadata::namespace::{Genesis, genesis};
    use metadata::op::{FsOp, NewNode};
    use metadata::outcome::Done;
    use metadata::types::{FileKind, InodeId, NodeRef, TimeNs};
    use metadata::{Namespace, Overlay, WriteSet};
    use multicast::Contributions;
    use multicast::command::Command;
    use multicast::ids::{CommandId, LogIndex, VectorClock};

    use super::*;
    use crate::storage::state::StateDb;

    const GROUP: GroupId = GroupId::GLOBAL;

    pub struct Fixture {
        pub view: Arc<View>,
        _db: StateDb,
        _folder: tempfile::TempDir,
    }

    pub fn fixture(limits: &Limits) -> Fixture {
        let folder = tempfile::tempdir().unwrap();
        let db = StateDb::open(folder.path(), &[GROUP], 16 << 20).unwrap();
        let state = db.group(GROUP).unwrap();
        let mut overlay = Overlay::new(&state).unwrap();
        let start = Genesis { inline_bytes_max: 4096, uid: 0, gid: 0, mode: 0o755, time: TimeNs(1) };
        genesis(&mut overlay, GROUP, &start).unwrap();
        state.write(overlay.into_writes(), &[], LogIndex(0)).unwrap();
        let front = Front { applied: LogIndex(3), ..Front::default() };
        Fixture { view: Arc::new(View::new(GROUP, state, front, limits, Clock::start())), _db: db, _folder: folder }
    }

    fn read(client: &Arc<Client>, request: u64, index: u64, deadline: Time) -> PendingRead {
        let op = ReadOp::GetAttr { ino: InodeId::ROOT };
        let index = LogIndex(index);
        PendingRead { ticket: client.ticket(request), session: SessionId(1), index, effects: index, op, deadline }
    }

    fn later() -> Time {
        Clock::start().now().after_ms(60_000)
    }

    fn advance(view: &View, index: u64, locked: &[(Key, u64)], changed: &[Key]) {
        view.advance(|front, interest| {
            view.state.write(WriteSet::new(), &[], LogIndex(index)).unwrap();
            front.applied = LogIndex(index);
            front.locked = Arc::new(locked.iter().map(|&(key, at)| (key, LogIndex(at))).collect());
            view.note_changed(changed);
            let tell = &mut |client: &Arc<Client>, event: Event| client.push(&ToClient::Event(event));
            interest.publish(front, changed, &[], Vec::new(), tell);
        });
    }

    /// What came: a number is the index of a reply to a read, text is everything else.
    fn taken(client: &Client) -> Vec<String> {
        let word = |message| match message {
            ToClient::Event(event) => format!("event {} -{}", event.index, event.invalidated.len()),
            ToClient::Reply { request, body: Reply::Read { position, .. } } => {
                format!("read {request} at {}", position.index)
            }
            ToClient::Reply { request, body: Reply::Behind { applied } } => format!("behind {request} at {applied}"),
            ToClient::Reply { body: Reply::Session(position), .. } => format!("session at {}", position.index),
            other @ ToClient::Reply { .. } => format!("{other:?}"),
        };
        client.taken().into_iter().map(word).collect()
    }

    /// The replica's thread looks at it in each turn, and ends the node.
    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn row_that_makes_no_sense_is_known_to_the_replica_whoever_reads_it() {
        let long = ReadOp::ReadDir { dir: InodeId::ROOT, after: 0, limit: 100, plus: true };
        for op in [ReadOp::GetAttr { ino: InodeId::ROOT }, long] {
            let Fixture { view, .. } = &fixture(&Limits::default());
            view.state.check().unwrap();
            let rows = metadata::Store::scan(&view.state, &[], &[], 1000).unwrap().into_iter();
            let rows = rows.filter(|(key, _)| key[0] < metadata::keys::FOREIGN_KIND_MIN);
            let bad: WriteSet = rows.map(|(key, _)| (key, Some(b"?".to_vec()))).collect();
            view.state.write(bad, &[], LogIndex(3)).unwrap();
            let client = Client::test(1);
            view.serve(PendingRead { op, ..read(&client, 1, 3, later()) });
            assert!(taken(&client)[0].contains("this replica's state cannot be read"));
            let error = view.state.check().unwrap_err().to_string();
            assert!(error.contains(crate::STATE_IS_DAMAGED) && error.contains("is corrupt"), "{error}");
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn read_ahead_of_the_replica_waits_until_it_has_caught_up_and_comes_behind_its_event() {
        let Fixture { view, .. } = &fixture(&Limits::default());
        let client = Client::test(1);
        let later = later();
        view.subscribe(SessionId(1), client.ticket(1));
        view.serve(read(&client, 2, 3, later));
        view.serve(read(&client, 3, 5, later));
        assert_eq!(taken(&client), ["session at 3", "read 2 at 3"]);
        advance(view, 4, &[], &[]);
        assert!(view.serve_parked().is_some_and(|deadline| deadline < later));
        assert_eq!(taken(&client), ["event 4 -0"]);
        advance(view, 5, &[], &ReadOp::GetAttr { ino: InodeId::ROOT }.keys());
        assert_eq!(view.serve_parked(), None);
        assert_eq!(taken(&client), ["event 5 -1", "read 3 at 5"]);
    }

    #[test]
    fn read_ahead_of_a_replica_that_does_not_catch_up_is_soon_sent_elsewhere_and_one_of_a_locked_key_is_not() {
        let Fixture { view, .. } = &fixture(&Limits::default());
        let (client, later) = (Client::test(1), later());
        advance(view, 4, &[(ReadOp::GetAttr { ino: InodeId::ROOT }.keys()[0], 4)], &[]);
        view.serve(read(&client, 1, 5, later));
        view.serve(read(&client, 2, 4, later));
        std::thread::sleep(Duration::from_nanos(LAG_PATIENCE_NS));
        assert_eq!(view.serve_parked(), Some(later));
        assert_eq!(taken(&client), ["behind 1 at 4"]);
    }

    #[test]
    fn read_of_a_locked_key_waits_only_for_those_who_may_have_seen_its_effect() {
        let Fixture { view, .. } = &fixture(&Limits::default());
        let client = Client::test(1);
        let later = later();
        let key = ReadOp::GetAttr { ino: InodeId::ROOT }.keys()[0];
        advance(view, 4, &[(key, 4)], &[]);
        view.serve(read(&client, 1, 3, later));
        view.serve(read(&client, 2, 4, later));
        // Has seen the log beyond the lock, but nothing elsewhere.
        view.serve(PendingRead { effects: LogIndex(3), ..read(&client, 3, 4, later) });
        view.serve_parked();
        assert_eq!(taken(&client), ["read 1 at 4", "read 3 at 4"]);
        advance(view, 5, &[], &[]);
        view.serve_parked();
        assert_eq!(taken(&client), ["read 2 at 5"]);
    }

    #[test]
    fn linearizable_read_waits_for_what_was_prepared_and_may_have_executed_elsewhere() {
        let Fixture { view, .. } = &fixture(&Limits::default());
        let client = Client::test(1);
        let later = later();
        let key = ReadOp::GetAttr { ino: InodeId::ROOT }.keys()[0];
        advance(view, 5, &[(key, 4)], &[]);
        // Its client knows of nothing; the barrier stands at 5.
        view.serve(read(&client, 1, 0, later).not_before(LogIndex(5)));
        assert_eq!(taken(&client), [""; 0]);
        advance(view, 6, &[], &[]);
        view.serve_parked();
        assert_eq!(taken(&client), ["read 1 at 6"]);
        // Prepared behind the barrier: whatever it does comes later.
        advance(view, 8, &[(key, 8)], &[]);
        view.serve(read(&client, 2, 0, later).not_before(LogIndex(7)));
        assert_eq!(taken(&client), ["read 2 at 8"]);
    }

    fn is_read_noted(view: &Arc<View>, client: &Arc<Client>, changed: &[Key], is_lost: bool) -> (Vec<String>, usize) {
        let long = view.begin_long(read(client, 1, 3, later())).unwrap();
        if is_lost {
            let many: Vec<Key> = (0..200_000).map(Key).collect();
            view.long.note(&many);
        }
        advance(view, view.front().applied.0 + 1, &[], changed);
        let result = metadata::answer::read(&view.state, GROUP, &ReadOp::GetAttr { ino: InodeId::ROOT });
        view.end_long(long, result);
        (taken(client), view.figures().1)
    }

    #[test]
    fn long_read_is_as_of_its_end_and_noted_unless_its_keys_changed_meanwhile() {
        let own = ReadOp::GetAttr { ino: InodeId::ROOT }.keys()[0];
        for (changed, is_lost, index, noted) in
            [(vec![], false, 4, 1), (vec![Key(1)], false, 4, 1), (vec![own], false, 3, 0), (vec![], true, 3, 0)]
        {
            let Fixture { view, .. } = &fixture(&Limits::default());
            let client = Client::test(1);
            view.subscribe(SessionId(1), client.ticket(9));
            taken(&client);
            let told = is_read_noted(view, &client, &changed, is_lost);
            assert_eq!(told, (vec!["event 4 -0".into(), format!("read 1 at {index}")], noted), "{changed:?}");
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn read_of_many_rows_is_answered_by_another_thread_and_only_so_many_wait() {
        let limits = Limits { parked_reads_max: 2, ..Limits::default() };
        let mut fixture = fixture(&limits);
        Arc::get_mut(&mut fixture.view).unwrap().rows_at_once = 0;
        let (view, client) = (&fixture.view, Client::test(1));
        let later = later();
        for request in 1..=3 {
            view.serve(read(&client, request, 3, later));
        }
        let refused = taken(&client);
        assert!(
            matches!(&refused[..], [only] if only.contains("request: 3") && only.contains("Unavailable")),
            "{refused:?}"
        );
        assert_eq!(view.serve_parked(), None);
        let mut told = Vec::new();
        while told.len() < 2 {
            tokio::time::sleep(Duration::from_millis(1)).await;
            told.extend(taken(&client));
        }
        told.sort();
        assert_eq!(told, ["read 1 at 3", "read 2 at 3"]);
    }

    fn execute(view: &View, session: u64, op: &FsOp) -> Done {
        let mut namespace = Namespace::open(GROUP, Overlay::new(&view.state).unwrap()).unwrap();
        let command = Command {
            id: CommandId { session: SessionId(session), sequence: 1 },
            acknowledged_below: 0,
            clock: VectorClock::new(),
            destinations: op.destinations(),
            payload: metadata::codec::encode_op(op),
        };
        namespace.session_opened(SessionId(1));
        namespace.session_opened(SessionId(2));
        let outcome = namespace.execute(TimeNs(2), &command, &Contributions::new());
        let writes = namespace.into_store().into_writes();
        view.state.write(writes, &[], view.front().applied).unwrap();
        metadata::codec::decode_outcome(&outcome).unwrap().unwrap()
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn stream_that_begins_tells_of_orphans_that_the_session_holds() {
        let Fixture { view, .. } = &fixture(&Limits::default());
        let parent = NodeRef { ino: InodeId::ROOT, kind: FileKind::Directory, home: GROUP };
        let (name, node): (bytes::Bytes, _) = ("n".into(), NewNode::File);
        let create = FsOp::Create { parent, name: name.clone(), node, mode: 0o644, uid: 0, gid: 0, home: GROUP };
        let Done::Node { attr, .. } = execute(view, 2, &create) else { panic!("not created") };
        let target = NodeRef { ino: attr.ino, kind: attr.kind, home: GROUP };
        execute(view, 2, &FsOp::Unlink { parent, name, target, keep_open: false });
        let (holder, other) = (Client::test(1), Client::test(2));
        view.subscribe(SessionId(1), holder.ticket(1));
        view.subscribe(SessionId(2), other.ticket(1));
        view.serve_parked();
        let mut told = Vec::new();
        while told.len() < 2 {
            tokio::time::sleep(Duration::from_millis(1)).await;
            told.extend(holder.taken());
        }
        assert!(matches!(&told[1], ToClient::Event(event) if event.orphans == [attr.ino]), "{told:?}");
        assert_eq!(taken(&other), ["session at 3"]);
    }

    #[test]
    fn stream_is_refused_when_too_much_waits() {
        let Fixture { view, .. } = &fixture(&Limits { parked_reads_max: 1, ..Limits::default() });
        let client = Client::test(1);
        view.subscribe(SessionId(1), client.ticket(1));
        view.subscribe(SessionId(2), client.ticket(2));
        let told = taken(&client);
        assert!(told[0] == "session at 3" && told[1].contains("Unavailable"), "{told:?}");
        assert_eq!(view.figures().0, 1);
    }

    #[test]
    fn attributes_that_an_effect_behind_the_state_is_about_to_change_are_not_attached() {
        let Fixture { view, .. } = &fixture(&Limits::default());
        let root = NodeRef { ino: InodeId::ROOT, kind: FileKind::Directory, home: GROUP };
        let (name, node) = (bytes::Bytes::from_static(b"f"), NewNode::File);
        let op = FsOp::Create { parent: root, name, node, mode: 0o644, uid: 0, gid: 0, home: GROUP };
        let command = Command {
            id: CommandId { session: SessionId(1), sequence: 1 },
            acknowledged_below: 1,
            clock: VectorClock::new(),
            destinations: op.destinations(),
            payload: metadata::codec::encode_op(&op),
        };
        let mut namespace = Namespace::open(GROUP, Overlay::new(&view.state).unwrap()).unwrap();
        let outcome = namespace.execute(TimeNs(2), &command, &Contributions::new());
        let Ok(Ok(Done::Node { attr, .. })) = metadata::codec::decode_outcome(&outcome) else { panic!("not created") };
        view.state.write(namespace.into_store().into_writes(), &[], LogIndex(4)).unwrap();
        advance(view, 5, &[(metadata::footprint::key_inode(attr.ino), 5)], &[]);

        let client = Client::test(1);
        let attached = |request| {
            let op = ReadOp::ReadDir { dir: InodeId::ROOT, after: 0, limit: 10, plus: true };
            let later = later();
            // Has seen nothing of it itself.
            view.serve(PendingRead { op, effects: LogIndex(0), ..read(&client, request, 0, later) });
            match client.taken().pop() {
                Some(ToClient::Reply {
                    body: Reply::Read { result: Ok(ReadAnswer::Entries { entries, .. }), .. },
                    ..
                }) => entries[0].attr.is_some(),
                other => panic!("{other:?}"),
            }
        };
        assert!(attached(1));
        view.advance(|front, _| front.dependencies.advance_effects(GROUP, LogIndex(5), SessionId(1)));
        assert!(!attached(2), "what the state depends on has been executed elsewhere");
    }

    #[test]
    fn read_parked_beyond_its_deadline_or_the_bound_is_answered_behind() {
        let limits = Limits { parked_reads_max: 1, ..Limits::default() };
        let Fixture { view, .. } = &fixture(&limits);
        let client = Client::test(1);
        let now = view.now();
        view.serve(read(&client, 1, 9, now));
        view.serve(read(&client, 2, 9, now));
        assert_eq!(taken(&client), ["behind 2 at 3"]);
        assert_eq!(view.serve_parked(), None);
        assert_eq!(taken(&client), ["behind 1 at 3"]);
    }
}
