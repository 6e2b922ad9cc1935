//! What the world sees of a replica: its state as of one log index, read under a lock that its thread takes for writing
//! while it moves on. Replies and events reach a client in the order of those steps.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use metadata::outcome::{Errno, OpError};
use metadata::protocol::{Position, Reply};
use metadata::read::ReadOp;
use metadata::types::InodeId;
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
    /// The question.
    pub op: ReadOp,
    /// From then on the answer is `Behind`.
    pub deadline: Instant,
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
        let keys = read.op.keys();
        if front.applied < read.index || front.blocks(&keys, read.index) {
            return self.park(read, &front);
        }
        let result = match metadata::read::answer(&self.state, &read.op) {
            Ok(result) => result,
            Err(error) => {
                tracing::error!(group = %self.group, %error, "a read failed");
                let why = "this replica's state cannot be read".into();
                return read.ticket.reply(Reply::Unavailable { group: self.group, why });
            }
        };
        let missing = matches!(result, Err(OpError::Errno(Errno::StaleHandle)));
        if missing && front.blocks(&read.op.keys_if_missing(self.group), read.index) {
            return self.park(read, &front);
        }
        self.interest.lock().note(read.session, read.ticket.client(), &keys, front.applied);
        read.ticket.reply(Reply::Read { result, position: front.position() });
    }

    /// Called when `progress` was made or time has passed. Returns the next deadline, if any read still waits.
    pub fn serve_parked(&self, now: Instant) -> Option<Instant> {
        if self.parked_count.load(Ordering::Acquire) == 0 {
            return None;
        }
        let applied = self.front.read().applied;
        let ready: Vec<PendingRead> = {
            let mut parked = self.parked.lock();
            let (ready, rest) =
                std::mem::take(&mut *parked).into_iter().partition(|read| read.index <= applied || read.deadline <= now);
            *parked = rest;
            self.parked_count.store(parked.len(), Ordering::Release);
            ready
        };
        for read in ready {
            if read.deadline <= now {
                read.ticket.reply(Reply::Behind { applied });
            } else if !read.ticket.client().is_cut_off() {
                self.serve(read);
            }
        }
        self.parked.lock().iter().map(|read| read.deadline).min()
    }

    /// (subscribers, keys noted, reads parked), for people.
    pub fn figures(&self) -> (usize, usize, usize) {
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
        drop(parked);
        // Its deadline may be the next one.
        self.progress.notify_one();
    }
}

impl Front {
    fn position(&self) -> Position {
        Position { index: self.applied, dependencies: self.dependencies.clone() }
    }

    /// True if whoever has seen the log up to `index` must not yet look at one of these keys.
    fn blocks(&self, keys: &[Key], index: LogIndex) -> bool {
        !self.locked.is_empty() && keys.iter().any(|key| self.locked.get(key).is_some_and(|&at| at <= index))
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
