//! What the world sees of a replica: its state as of one log index, read under a lock that its thread takes for writing
//! while it moves on. Replies and events reach a client in the order of those steps.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use metadata::outcome::{Errno, OpError};
use metadata::protocol::{Position, Reply};
use metadata::read::{ReadAnswer, ReadOp};
use metadata::types::{BlobId, InodeId};
use multicast::command::Key;
use multicast::ids::{GroupId, LogIndex, ReplicaId, SessionId, VectorClock};
use parking_lot::{Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};
use tokio::sync::Notify;

use super::interest::Interest;
use super::long::{Job, Limited, LongReads, ROWS_AT_ONCE};
use crate::config::Limits;
use crate::server::client::{Client, Ticket};
use crate::storage::state::GroupState;

/// Keys that unfinished commands will change: key → the first log index at which one was prepared.
pub type LockedKeys = BTreeMap<Key, LogIndex>;

/// A replica's readable side.
pub struct View {
    group: GroupId,
    state: GroupState,
    front: RwLock<Front>,
    /// Locked only while `front` is.
    interest: Mutex<Interest>,
    parked: Mutex<Vec<PendingRead>>,
    parked_count: AtomicUsize,
    parked_max: usize,
    rows_at_once: usize,
    pub(super) long: LongReads,
    /// Wakes whoever serves parked reads.
    pub progress: Notify,
}

/// What goes with the state that can be read.
#[derive(Clone, Debug, Default)]
pub struct Front {
    /// The state reflects the log up to here.
    pub applied: LogIndex,
    /// What it depends on in other groups.
    pub dependencies: VectorClock,
    /// What must not be read by those who have seen that it is about to change.
    pub locked: Arc<LockedKeys>,
    /// Who is primary, as far as known.
    pub primary: Option<ReplicaId>,
}

/// A read on its way.
#[derive(Debug)]
pub struct PendingRead {
    /// Whom to answer.
    pub ticket: Ticket,
    /// Whose cache the answer goes into.
    pub session: SessionId,
    /// The reader has seen the group's log up to here.
    pub index: LogIndex,
    /// The reader may have seen effects, elsewhere, of what this group prepared up to here.
    pub effects: LogIndex,
    /// The question.
    pub op: ReadOp,
    /// From then on the answer is `Behind`.
    pub deadline: Instant,
}

impl PendingRead {
    /// As asked by somebody who has seen the log up to `index`, and what was prepared up to there at work: it may have executed
    /// in another group already.
    #[must_use]
    pub fn not_before(mut self, index: LogIndex) -> PendingRead {
        self.index = self.index.max(index);
        self.effects = self.effects.max(index);
        self
    }
}

impl View {
    /// Of a replica that has applied what `front` says.
    pub fn new(group: GroupId, state: GroupState, front: Front, limits: &Limits) -> View {
        View {
            group,
            state,
            front: RwLock::new(front),
            interest: Mutex::new(Interest::new(group, limits.interest_keys_max)),
            parked: Mutex::default(),
            parked_count: AtomicUsize::new(0),
            parked_max: limits.parked_reads_max,
            rows_at_once: ROWS_AT_ONCE,
            long: LongReads::new(limits.parked_reads_max),
            progress: Notify::new(),
        }
    }

    /// Begins a step to a later state: nobody reads until the guard is gone.
    pub fn advance(&self) -> Advance<'_> {
        Advance { view: self, front: self.front.write() }
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
        self.interest.lock().unsubscribe(client);
    }

    /// Answers a read, or parks it until the replica has come so far.
    pub fn serve(&self, read: PendingRead) {
        let front = self.front.read();
        if let Some(read) = self.answer(read, &front) {
            self.park(read, &front);
            // Its deadline may be the first.
            self.progress.notify_one();
        }
    }

    /// Answers a read if it is short, or gives it back if it must wait.
    fn answer(&self, read: PendingRead, front: &Front) -> Option<PendingRead> {
        let mut keys = read.op.keys();
        if front.applied < read.index || front.blocks(&keys, read.effects) {
            return Some(read);
        }
        let rows = Limited::new(&self.state, self.rows_at_once);
        let mut result = match metadata::answer::read(&rows, self.group, &read.op) {
            Ok(result) => result,
            Err(_) if rows.is_exhausted() => {
                self.postpone(read);
                return None;
            }
            Err(error) => {
                self.fail(read.ticket, &error);
                return None;
            }
        };
        let missing = matches!(result, Err(OpError::Errno(Errno::StaleHandle)));
        if missing && front.blocks(&read.op.keys_if_missing(self.group), read.effects) {
            return Some(read);
        }
        if let Ok(answer) = &mut result {
            // What is attached must not be older than effects that the rest of the answer may show.
            let effects = read.effects.max(front.dependencies.effects(self.group));
            answer.detach(|key| front.blocks(&[key], effects));
            keys.extend(answer.attached());
        }
        self.note(&read, &keys, front);
        read.ticket.reply(Reply::Read { result, position: front.position() });
        None
    }

    /// Notes what a reader is about to learn, while `front` is locked.
    pub(super) fn note(&self, read: &PendingRead, keys: &[Key], front: &Front) {
        self.interest.lock().note(read.session, read.ticket.client(), keys, front.applied);
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

    pub(super) fn fail(&self, ticket: Ticket, error: &dyn std::fmt::Display) {
        tracing::error!(group = %self.group, %error, "a read failed");
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

    /// Blobs that nothing refers to; nothing if the state cannot be read.
    pub fn garbage(&self, limit: u32) -> Option<Vec<BlobId>> {
        let _front = self.front.read();
        match metadata::answer::read(&self.state, self.group, &ReadOp::Garbage { limit }) {
            Ok(Ok(ReadAnswer::Garbage(blobs))) => Some(blobs),
            _ => None,
        }
    }

    /// Called on the network's runtime when `progress` was made or time has passed. Returns the next deadline, if any read
    /// still waits.
    pub fn serve_parked(self: &Arc<View>, now: Instant) -> Option<Instant> {
        self.start_readers();
        if self.parked_count.load(Ordering::Acquire) == 0 {
            return None;
        }
        let applied = self.front.read().applied;
        let ready: Vec<PendingRead> = {
            let mut parked = self.parked.lock();
            let (ready, rest) = std::mem::take(&mut *parked)
                .into_iter()
                .partition(|read| read.index <= applied || read.deadline <= now);
            *parked = rest;
            self.parked_count.store(parked.len(), Ordering::Release);
            ready
        };
        for read in ready {
            if read.deadline <= now {
                read.ticket.reply(Reply::Behind { applied });
            } else if !read.ticket.client().is_cut_off() {
                let front = self.front.read();
                if let Some(read) = self.answer(read, &front) {
                    self.park(read, &front);
                }
            }
        }
        self.start_readers();
        self.parked.lock().iter().map(|read| read.deadline).min()
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
        if parked.len() >= self.parked_max {
            drop(parked);
            return read.ticket.reply(Reply::Behind { applied: front.applied });
        }
        parked.push(read);
        self.parked_count.store(parked.len(), Ordering::Release);
    }
}

impl Front {
    pub(super) fn position(&self) -> Position {
        Position { index: self.applied, dependencies: self.dependencies.clone() }
    }

    /// True if whoever may have seen `effects` of prepared commands must not yet look at one of these keys.
    pub(super) fn blocks(&self, keys: &[Key], effects: LogIndex) -> bool {
        !self.locked.is_empty() && keys.iter().any(|key| self.locked.get(key).is_some_and(|&at| at <= effects))
    }
}

/// A step to a later state. Whatever must be seen by clients in the order of steps is sent under it.
pub struct Advance<'a> {
    view: &'a View,
    /// To be set to what the step leads to.
    pub front: RwLockWriteGuard<'a, Front>,
}

impl Advance<'_> {
    /// Tells subscribers. Replies that depend on the step come after this.
    pub fn publish(&self, changed: &[Key], orphans: &[InodeId]) {
        self.view.long.note(changed);
        self.view.interest.lock().publish(self.front.applied, changed, orphans);
    }

    /// True if the session's stream runs over that connection.
    pub fn is_subscribed(&self, session: SessionId, client: &Client) -> bool {
        self.view.interest.lock().is_subscribed(session, client)
    }

    /// Notes what a session learns of the state that the step leads to; comes after [`Advance::publish`]. False if it has no
    /// stream over that connection.
    pub fn note(&self, session: SessionId, client: &Client, keys: &[Key]) -> bool {
        self.view.interest.lock().note(session, client, keys, self.front.applied)
    }

    /// Ends the step; reads that waited for it are served by others.
    pub fn finish(self) {
        let waiting = self.view.parked_count.load(Ordering::Acquire) > 0;
        let view = self.view;
        drop(self);
        if waiting {
            view.progress.notify_one();
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::Duration;

    use metadata::namespace::{Genesis, genesis};
    use metadata::op::{FsOp, NewNode};
    use metadata::outcome::Done;
    use metadata::protocol::ToClient;
    use metadata::types::{FileKind, InodeId, NodeRef, TimeNs};
    use metadata::{Namespace, Overlay, WriteSet};
    use multicast::command::Command;
    use multicast::ids::CommandId;

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
        Fixture { view: Arc::new(View::new(GROUP, state, front, limits)), _db: db, _folder: folder }
    }

    fn read(client: &Arc<Client>, request: u64, index: u64, deadline: Instant) -> PendingRead {
        let op = ReadOp::GetAttr { ino: InodeId::ROOT };
        let index = LogIndex(index);
        PendingRead { ticket: client.ticket(request), session: SessionId(1), index, effects: index, op, deadline }
    }

    fn advance(view: &View, index: u64, locked: &[(Key, u64)], changed: &[Key]) {
        let mut step = view.advance();
        view.state.write(WriteSet::new(), &[], LogIndex(index)).unwrap();
        step.front.applied = LogIndex(index);
        step.front.locked = Arc::new(locked.iter().map(|&(key, at)| (key, LogIndex(at))).collect());
        step.publish(changed, &[]);
        step.finish();
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

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn read_ahead_of_the_replica_waits_until_it_has_caught_up_and_comes_behind_its_event() {
        let Fixture { view, .. } = &fixture(&Limits::default());
        let client = Client::test(1);
        let later = Instant::now() + Duration::from_secs(60);
        view.subscribe(SessionId(1), client.ticket(1));
        view.serve(read(&client, 2, 3, later));
        view.serve(read(&client, 3, 5, later));
        assert_eq!(taken(&client), ["session at 3", "read 2 at 3"]);
        advance(view, 4, &[], &[]);
        assert_eq!(view.serve_parked(Instant::now()), Some(later));
        assert_eq!(taken(&client), ["event 4 -0"]);
        advance(view, 5, &[], &ReadOp::GetAttr { ino: InodeId::ROOT }.keys());
        assert_eq!(view.serve_parked(Instant::now()), None);
        assert_eq!(taken(&client), ["event 5 -1", "read 3 at 5"]);
    }

    #[test]
    fn read_of_a_locked_key_waits_only_for_those_who_may_have_seen_its_effect() {
        let Fixture { view, .. } = &fixture(&Limits::default());
        let client = Client::test(1);
        let later = Instant::now() + Duration::from_secs(60);
        let key = ReadOp::GetAttr { ino: InodeId::ROOT }.keys()[0];
        advance(view, 4, &[(key, 4)], &[]);
        view.serve(read(&client, 1, 3, later));
        view.serve(read(&client, 2, 4, later));
        // Has seen the log beyond the lock, but nothing elsewhere.
        view.serve(PendingRead { effects: LogIndex(3), ..read(&client, 3, 4, later) });
        view.serve_parked(Instant::now());
        assert_eq!(taken(&client), ["read 1 at 4", "read 3 at 4"]);
        advance(view, 5, &[], &[]);
        view.serve_parked(Instant::now());
        assert_eq!(taken(&client), ["read 2 at 5"]);
    }

    #[test]
    fn linearizable_read_waits_for_what_was_prepared_and_may_have_executed_elsewhere() {
        let Fixture { view, .. } = &fixture(&Limits::default());
        let client = Client::test(1);
        let later = Instant::now() + Duration::from_secs(60);
        let key = ReadOp::GetAttr { ino: InodeId::ROOT }.keys()[0];
        advance(view, 5, &[(key, 4)], &[]);
        // Its client knows of nothing; the barrier stands at 5.
        view.serve(read(&client, 1, 0, later).not_before(LogIndex(5)));
        assert_eq!(taken(&client), [""; 0]);
        advance(view, 6, &[], &[]);
        view.serve_parked(Instant::now());
        assert_eq!(taken(&client), ["read 1 at 6"]);
        // Prepared behind the barrier: whatever it does comes later.
        advance(view, 8, &[(key, 8)], &[]);
        view.serve(read(&client, 2, 0, later).not_before(LogIndex(7)));
        assert_eq!(taken(&client), ["read 2 at 8"]);
    }

    fn is_read_noted(view: &Arc<View>, client: &Arc<Client>, changed: &[Key], is_lost: bool) -> (Vec<String>, usize) {
        let long = view.begin_long(read(client, 1, 3, Instant::now() + Duration::from_secs(60))).unwrap();
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
        let later = Instant::now() + Duration::from_secs(60);
        for request in 1..=3 {
            view.serve(read(&client, request, 3, later));
        }
        let refused = taken(&client);
        assert!(
            matches!(&refused[..], [only] if only.contains("request: 3") && only.contains("Unavailable")),
            "{refused:?}"
        );
        assert_eq!(view.serve_parked(Instant::now()), None);
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
        let outcome = namespace.execute(TimeNs(2), &command, &BTreeMap::new());
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
        view.serve_parked(Instant::now());
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
        let outcome = namespace.execute(TimeNs(2), &command, &BTreeMap::new());
        let Ok(Ok(Done::Node { attr, .. })) = metadata::codec::decode_outcome(&outcome) else { panic!("not created") };
        view.state.write(namespace.into_store().into_writes(), &[], LogIndex(4)).unwrap();
        advance(view, 5, &[(metadata::footprint::key_inode(attr.ino), 5)], &[]);

        let client = Client::test(1);
        let attached = |request| {
            let op = ReadOp::ReadDir { dir: InodeId::ROOT, after: 0, limit: 10, plus: true };
            let later = Instant::now() + Duration::from_secs(60);
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
        let mut step = view.advance();
        step.front.dependencies.advance_effects(GROUP, LogIndex(5));
        step.finish();
        assert!(!attached(2), "what the state depends on has been executed elsewhere");
    }

    #[test]
    fn read_parked_beyond_its_deadline_or_the_bound_is_answered_behind() {
        let limits = Limits { parked_reads_max: 1, ..Limits::default() };
        let Fixture { view, .. } = &fixture(&limits);
        let client = Client::test(1);
        let soon = Instant::now() + Duration::from_millis(5);
        view.serve(read(&client, 1, 9, soon));
        view.serve(read(&client, 2, 9, soon));
        assert_eq!(taken(&client), ["behind 2 at 3"]);
        assert_eq!(view.serve_parked(soon), None);
        assert_eq!(taken(&client), ["behind 1 at 3"]);
    }
}
