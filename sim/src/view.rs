//! What the world sees of a replica: reads as of one log index, parked until it is reached, and the streams of events to
//! those who have read. The thinnest equivalent of the node's view and interest, without locks and sockets.

use std::collections::{BTreeMap, BTreeSet};

use metadata::MemStore;
use metadata::outcome::{Errno, OpError};
use metadata::protocol::{Event, Position, Reply, ToClient};
use metadata::read::ReadOp;
use metadata::types::InodeId;
use multicast::OrderState;
use multicast::command::Key;
use multicast::ids::{GroupId, LogIndex, ReplicaId, SessionId, VectorClock};

use crate::planted::Bug;
use crate::replica::{Act, Ticket, tell};

/// What goes with the state that can be read.
#[derive(Clone, Debug, Default)]
pub struct Front {
    /// The state reflects the log up to here.
    pub applied: LogIndex,
    /// What it depends on in other groups.
    pub dependencies: VectorClock,
    /// Keys that unfinished commands will change: since which index.
    pub locked: BTreeMap<Key, LogIndex>,
    /// Who is primary, as far as known.
    pub primary: Option<ReplicaId>,
}

/// A read on its way.
#[derive(Clone, Debug)]
pub struct PendingRead {
    /// Whom to answer.
    pub ticket: Ticket,
    /// Whose cache the answer goes into.
    pub session: SessionId,
    /// The reader has seen the group's log up to here.
    pub index: LogIndex,
    /// The reader may have seen effects of what this group prepared up to here.
    pub effects: LogIndex,
    /// The question.
    pub op: ReadOp,
}

/// One replica's readable side.
#[derive(Debug)]
pub struct View {
    group: GroupId,
    /// See there.
    pub front: Front,
    parked: Vec<PendingRead>,
    parked_ns: u64,
    subscribers: BTreeMap<SessionId, (usize, u64)>,
    interest: BTreeSet<(Key, SessionId)>,
    bug: Option<Bug>,
}

impl View {
    /// Of a replica that starts.
    #[must_use]
    pub fn new(group: GroupId, order: &OrderState, parked_ns: u64, bug: Option<Bug>) -> View {
        let mut view = View {
            group,
            front: Front::default(),
            parked: Vec::new(),
            parked_ns,
            subscribers: BTreeMap::new(),
            interest: BTreeSet::new(),
            bug,
        };
        view.advance(order);
        view
    }

    /// Moves on to what was applied.
    pub fn advance(&mut self, order: &OrderState) {
        self.front.applied = order.applied();
        self.front.dependencies.clone_from(order.depends_on());
        self.front.locked.clear();
        for (key, index, _) in order.changing_locks() {
            let first = self.front.locked.entry(key).or_insert(index);
            *first = index.min(*first);
        }
    }

    /// Starts a session's stream.
    pub fn subscribe(&mut self, session: SessionId, ticket: Ticket, acts: &mut Vec<Act>) {
        self.interest.retain(|&(_, reader)| reader != session);
        self.subscribers.insert(session, (ticket.client, ticket.connection));
        acts.push(tell(ticket, Reply::Session(self.position())));
    }

    /// Ends the streams of a connection.
    pub fn unsubscribe(&mut self, client: usize, connection: u64) {
        let ended: BTreeSet<SessionId> = self
            .subscribers
            .iter()
            .filter(|(_, subscriber)| **subscriber == (client, connection))
            .map(|(&session, _)| session)
            .collect();
        self.subscribers.retain(|session, _| !ended.contains(session));
        self.interest.retain(|(_, session)| !ended.contains(session));
    }

    /// Tells subscribers what has changed of what they have read, and how far this replica is.
    pub fn publish(&mut self, changed: &[Key], orphans: &[InodeId], acts: &mut Vec<Act>) {
        let mut invalidated: BTreeMap<SessionId, Vec<Key>> = BTreeMap::new();
        for &key in changed {
            let range = (key, SessionId(0))..=(key, SessionId(u64::MAX));
            let readers: Vec<SessionId> = self.interest.range(range).map(|&(_, session)| session).collect();
            for session in readers {
                self.interest.remove(&(key, session));
                invalidated.entry(session).or_default().push(key);
            }
        }
        for (session, &(client, connection)) in &self.subscribers {
            let event = Event {
                group: self.group,
                index: self.front.applied,
                invalidated: invalidated.remove(session).unwrap_or_default(),
                invalidate_all: false,
                orphans: orphans.to_vec(),
            };
            acts.push(Act::Tell(client, connection, ToClient::Event(event)));
        }
    }

    /// Answers a read, or parks it.
    pub fn serve(&mut self, now: u64, store: &MemStore, read: PendingRead, acts: &mut Vec<Act>) {
        if let Some(mut read) = self.answer(store, read, acts) {
            read.ticket.since = now;
            self.parked.push(read);
        }
    }

    /// Answers what can be answered now, and what has waited for too long.
    pub fn serve_parked(&mut self, now: u64, store: &MemStore, acts: &mut Vec<Act>) {
        for read in std::mem::take(&mut self.parked) {
            if now - read.ticket.since >= self.parked_ns {
                acts.push(tell(read.ticket, Reply::Behind { applied: self.front.applied }));
            } else if let Some(read) = self.answer(store, read, acts) {
                self.parked.push(read);
            }
        }
    }

    fn answer(&mut self, store: &MemStore, read: PendingRead, acts: &mut Vec<Act>) -> Option<PendingRead> {
        let mut keys = read.op.keys();
        let behind = self.front.applied < read.index && self.bug != Some(Bug::ReadBehindClock);
        if behind || self.blocks(&keys, read.effects) {
            return Some(read);
        }
        let mut result = match metadata::answer::read(store, self.group, &read.op) {
            Ok(result) => result,
            Err(error) => {
                acts.push(Act::Violation(format!("{}: a read failed: {error}", self.group)));
                return None;
            }
        };
        let missing = matches!(result, Err(OpError::Errno(Errno::StaleHandle)));
        if missing && self.blocks(&read.op.keys_if_missing(self.group), read.effects) {
            return Some(read);
        }
        if let Ok(answer) = &mut result {
            // What is attached must not be older than effects that the rest of the answer may show.
            let effects = read.effects.max(self.front.dependencies.effects(self.group));
            answer.detach(|key| self.blocks(&[key], effects));
            keys.extend(answer.attached());
        }
        if self.subscribers.get(&read.session) == Some(&(read.ticket.client, read.ticket.connection)) {
            self.interest.extend(keys.into_iter().map(|key| (key, read.session)));
        }
        acts.push(tell(read.ticket, Reply::Read { result, position: self.position() }));
        None
    }

    fn position(&self) -> Position {
        Position { index: self.front.applied, dependencies: self.front.dependencies.clone() }
    }

    fn blocks(&self, keys: &[Key], effects: LogIndex) -> bool {
        if matches!(self.bug, Some(Bug::ReadPastLocks | Bug::ReadBehindClock)) {
            return false;
        }
        keys.iter().any(|key| self.front.locked.get(key).is_some_and(|&at| at <= effects))
    }
}
