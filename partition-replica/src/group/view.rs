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
use parking_lot::{Mutex, RwLock, RwLockWriteGuard};
use tokio::sync::Notify;

use super::interest::Interest;
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

    /// Starts a session's stream on a connection. The answer tells the index from which on it is complete.
    pub fn subscribe(&self, session: SessionId, ticket: Ticket) {
        let front = self.front.read();
        self.interest.lock().subscribe(session, ticket.client().clone());
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

    /// Answers a read, or gives it back if it must wait.
    fn answer(&self, read: PendingRead, front: &Front) -> Option<PendingRead> {
        let mut keys = read.op.keys();
        if front.applied < read.index || front.blocks(&keys, read.effects) {
            return Some(read);
        }
        let mut result = match metadata::answer::read(&self.state, self.group, &read.op) {
            Ok(result) => result,
            Err(error) => {
                tracing::error!(group = %self.group, %error, "a read failed");
                let why = "this replica's state cannot be read".into();
                read.ticket.reply(Reply::Unavailable { group: self.group, why });
                return None;
            }
        };
        let missing = matches!(result, Err(OpError::Errno(Errno::StaleHandle)));
        if missing && front.blocks(&read.op.keys_if_missing(self.group), read.effects) {
            return Some(read);
        }
        if let Ok(answer) = &mut result {
            answer.detach(|key| front.blocks(&[key], read.effects));
            keys.extend(answer.attached());
        }
        self.interest.lock().note(read.session, read.ticket.client(), &keys, front.applied);
        read.ticket.reply(Reply::Read { result, position: front.position() });
        None
    }

    /// Blobs that nothing refers to; nothing if the state cannot be read.
    pub fn garbage(&self, limit: u32) -> Option<Vec<BlobId>> {
        let _front = self.front.read();
        match metadata::answer::read(&self.state, self.group, &ReadOp::Garbage { limit }) {
            Ok(Ok(ReadAnswer::Garbage(blobs))) => Some(blobs),
            _ => None,
        }
    }

    /// Called when `progress` was made or time has passed. Returns the next deadline, if any read still waits.
    pub fn serve_parked(&self, now: Instant) -> Option<Instant> {
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
        self.parked.lock().iter().map(|read| read.deadline).min()
    }

    /// (subscribers, keys noted, reads parked), for people.
    pub fn figures(&self) -> (usize, usize, usize) {
        let _front = self.front.read();
        let interest = self.interest.lock();
        (interest.subscribers(), interest.keys(), self.parked_count.load(Ordering::Relaxed))
    }

    /// Called while `front` is locked, so that no progress is missed.
    fn park(&self, read: PendingRead, front: &Front) {
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
    fn position(&self) -> Position {
        Position { index: self.applied, dependencies: self.dependencies.clone() }
    }

    /// True if whoever may have seen `effects` of prepared commands must not yet look at one of these keys.
    fn blocks(&self, keys: &[Key], effects: LogIndex) -> bool {
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
    use metadata::protocol::ToClient;
    use metadata::types::{InodeId, TimeNs};
    use metadata::{Overlay, WriteSet};

    use super::*;
    use crate::storage::state::StateDb;

    const GROUP: GroupId = GroupId::GLOBAL;

    pub struct Fixture {
        pub view: View,
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
        Fixture { view: View::new(GROUP, state, front, limits), _db: db, _folder: folder }
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

    #[test]
    fn read_ahead_of_the_replica_waits_until_it_has_caught_up_and_comes_behind_its_event() {
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
