//! What the world sees of a replica: the shipped rules of reading, parking and telling, without the locks that a node puts
//! around them. Bugs are planted by what the rules are shown.

use std::sync::Arc;

use ::replica::{Connection, Front, Interest, Parked, PendingRead, Tell, Verdict};
use metadata::protocol::{Event, Reply, ToClient};
use metadata::read::{ReadAnswer, ReadOp};
use multicast::ids::{GroupId, LogIndex, SessionId};
use multicast::{OrderState, Time};

use crate::planted::Bug;
use crate::replica::{Act, Ticket, tell};
use crate::shelf::Shelf;

/// Keys noted of all sessions; few enough that some runs come to the bound.
const INTEREST_KEYS_MAX: usize = 40;
const PARKED_READS_MAX: usize = 64;

/// A client's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// The client.
    pub client: usize,
    /// Its connection: no other one has this number.
    pub connection: u64,
}

impl Connection for Link {
    fn number(&self) -> u64 {
        self.connection
    }

    fn is_cut_off(&self) -> bool {
        false
    }
}

impl ::replica::Ticket for Ticket {
    type Client = Link;

    fn client(&self) -> &Link {
        &self.link
    }
}

/// One replica's readable side.
#[derive(Debug)]
pub struct View {
    group: GroupId,
    /// See there.
    pub front: Front,
    /// See there.
    pub interest: Interest<Link>,
    parked: Parked<Ticket>,
    bug: Option<Bug>,
}

impl View {
    /// Of a replica that starts.
    #[must_use]
    pub fn new(group: GroupId, order: &OrderState, bug: Option<Bug>) -> View {
        let interest = Interest::new(group, INTEREST_KEYS_MAX);
        View { group, front: Front::of(order), interest, parked: Parked::new(PARKED_READS_MAX), bug }
    }

    /// Starts a session's stream.
    pub fn subscribe(&mut self, session: SessionId, ticket: Ticket, acts: &mut Vec<Act>) {
        let body = if let Some(refusal) = self.front.refusal(self.group) {
            refusal
        } else if self.interest.subscribe(session, ticket.link) {
            Reply::Session(self.front.position())
        } else {
            Reply::Unavailable { group: self.group, why: "the connection has too many streams".into() }
        };
        acts.push(tell(ticket, body));
    }

    /// Nobody may read the state any more.
    pub fn close(&mut self, acts: &mut Vec<Act>) {
        (self.front.is_quarantined, self.front.primary) = (true, None);
        self.interest.end(self.front.applied, &mut |link, event| acts.push(said(Tell::Event(*link, event))));
    }

    /// Another state takes this one's place: clients that follow it come back later.
    pub fn cut_off(&mut self, acts: &mut Vec<Act>) {
        self.interest.end(self.front.applied, &mut |link, _| acts.push(Act::CutOff(*link)));
    }

    /// Answers a read, or parks it.
    pub fn serve(&mut self, store: &Shelf, mut read: PendingRead<Ticket>, acts: &mut Vec<Act>) {
        if self.bug == Some(Bug::ReadBehindClock) {
            read.index = LogIndex::ZERO;
        }
        if let Some(read) = self.answer(store, read, acts) {
            acts.extend(self.parked.park(read, &self.front).map(said));
        }
    }

    /// Answers what can be answered now, and what has waited for too long.
    pub fn serve_parked(&mut self, time: Time, store: &Shelf, acts: &mut Vec<Act>) {
        let ready = self.parked.take_ready(time, self.front.applied, &mut |told| acts.push(said(told)));
        for read in ready {
            self.serve(store, read, acts);
        }
    }

    fn answer(&mut self, store: &Shelf, read: PendingRead<Ticket>, acts: &mut Vec<Act>) -> Option<PendingRead<Ticket>> {
        if let Some(refusal) = self.front.refusal(self.group) {
            acts.push(tell(read.ticket, refusal));
            return None;
        }
        let front = self.shown();
        let keys = read.op.keys();
        if front.holds_back(&read, &keys) {
            return Some(read);
        }
        let from = self.beginning(store, &read.op);
        let result = match metadata::answer::read(store, self.group, &from) {
            Ok(result) => result,
            Err(error) => {
                let why = format!("{}: a read failed: {error}", self.group);
                acts.push(if store.is_bad() { Act::Damaged(why) } else { Act::Violation(why) });
                return None;
            }
        };
        let verdict = read.conclude(self.group, (&front, &front), |_| false, keys, result);
        let Verdict::Answer(body, noted) = verdict else { return Some(read) };
        if let Some(keys) = noted {
            let tell = &mut |link: &Link, event: Event| acts.push(said(Tell::Event(*link, event)));
            self.interest.note(read.session, &read.ticket.link, &keys, front.applied, tell);
        }
        acts.push(tell(read.ticket, body));
        None
    }

    /// The question, or, with the planted bug, one that forgets where a listing was.
    fn beginning(&self, store: &Shelf, op: &ReadOp) -> ReadOp {
        let mut op = op.clone();
        if let (Some(Bug::ListAnew), ReadOp::ReadDir { dir, after, .. }) = (self.bug, &mut op) {
            let all = ReadOp::ReadDir { dir: *dir, after: 0, limit: 1000, plus: false };
            if let Ok(Ok(ReadAnswer::Entries { entries, .. })) = metadata::answer::read(store, self.group, &all)
                && !entries.iter().any(|entry| entry.cookie == *after)
            {
                *after = 0;
            }
        }
        op
    }

    fn shown(&self) -> Front {
        let mut front = self.front.clone();
        if matches!(self.bug, Some(Bug::ReadPastLocks | Bug::ReadBehindClock)) {
            front.locked = Arc::default();
        }
        front
    }
}

/// What the rules tell a client.
pub fn said(told: Tell<Ticket>) -> Act {
    match told {
        Tell::Reply(ticket, body) => tell(ticket, body),
        Tell::Event(link, event) => Act::Tell(link.client, link.connection, ToClient::Event(event)),
    }
}
