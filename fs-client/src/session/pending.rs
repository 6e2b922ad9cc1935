//! One update and, once it was sent, the id under which it was: whoever asks again asks under the same id, and it executes
//! once, also if the first answer never came.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use metadata::codec::encode_op;
use metadata::op::FsOp;
use multicast::command::Destination;
use multicast::ids::{GroupId, SessionId, VectorClock};
use multicast::{command::Command, ids::CommandId};
use parking_lot::Mutex;

use super::window::Turn;

/// See the module. As long as it lives, its groups keep its reply; so who needs none any more drops it.
#[derive(Debug)]
pub struct Update {
    /// What is asked for.
    pub op: Arc<FsOp>,
    /// Its groups, and what it touches there.
    pub destinations: Arc<[Destination]>,
    payload: Bytes,
    sent: Mutex<Option<Arc<Sent>>>,
}

/// What was sent of an [`Update`].
#[derive(Debug)]
pub struct Sent {
    /// The command.
    pub command: Command,
    /// Which registration of the session each of its groups had, in order.
    pub registrations: Vec<u64>,
    /// An attempt went out and its fate is not known.
    uncertain: AtomicBool,
    turn: Turn,
}

impl Update {
    /// One that was not sent yet.
    #[must_use]
    pub fn new(op: FsOp) -> Update {
        let (destinations, payload) = (op.destinations().into(), encode_op(&op));
        Update { op: Arc::new(op), destinations, payload, sent: Mutex::new(None) }
    }

    /// Its groups.
    #[must_use]
    pub fn groups(&self) -> Vec<GroupId> {
        self.destinations.iter().map(|destination| destination.group).collect()
    }

    /// True if it may have been executed, or may yet be, without our knowing.
    #[must_use]
    pub fn is_uncertain(&self) -> bool {
        self.sent.lock().as_ref().is_some_and(|sent| sent.is_uncertain())
    }

    /// What was sent already, else what `begin` and these say. The clock is that of the first attempt.
    pub fn sent(
        &self,
        session: SessionId,
        clock: impl FnOnce() -> VectorClock,
        registrations: impl FnOnce() -> Vec<u64>,
        begin: impl FnOnce() -> Turn,
    ) -> Arc<Sent> {
        let mut sent = self.sent.lock();
        if let Some(sent) = &*sent {
            return sent.clone();
        }
        let turn = begin();
        let command = Command {
            id: CommandId { session, sequence: turn.sequence },
            acknowledged_below: turn.acknowledged_below,
            clock: clock(),
            destinations: self.destinations.to_vec(),
            payload: self.payload.clone(),
        };
        let registrations = registrations();
        let new = Arc::new(Sent { command, registrations, uncertain: AtomicBool::new(false), turn });
        *sent = Some(new.clone());
        new
    }

    /// Its id is of no use any more: the next attempt is a new command.
    pub fn forget_id(&self) {
        *self.sent.lock() = None;
    }

    /// Nobody asks now. It keeps its id if that matters.
    pub fn rest(&self) {
        let mut sent = self.sent.lock();
        match &*sent {
            Some(known) if known.is_uncertain() => known.turn.park(),
            _ => *sent = None,
        }
    }
}

impl Sent {
    /// An attempt may have reached a replica's log.
    pub fn become_uncertain(&self) {
        self.uncertain.store(true, Ordering::Relaxed);
    }

    /// See [`Update::is_uncertain`].
    #[must_use]
    pub fn is_uncertain(&self) -> bool {
        self.uncertain.load(Ordering::Relaxed)
    }

    /// Which registration `group`, one of its `groups`, had.
    #[must_use]
    pub fn registration(&self, groups: &[GroupId], group: GroupId) -> u64 {
        let at = groups.iter().position(|known| *known == group);
        at.and_then(|at| self.registrations.get(at)).copied().unwrap_or(u64::MAX)
    }

    /// It is asked for again. False if its groups need not remember it any more.
    #[must_use]
    pub fn resume(&self) -> bool {
        self.turn.resume()
    }
}
