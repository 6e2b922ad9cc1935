//! Who waits for what, and what the core's words mean to a client.

use std::collections::BTreeMap;

use metadata::codec;
use metadata::protocol::{Position, Reply};
use multicast::ids::{CommandId, GroupId, LogIndex, ReplicaId, SessionId, VectorClock};
use multicast::record::Rejection;
use multicast::{Decline, Refusal};

use crate::server::client::Ticket;

/// Requests under way in one group, of clients that are connected here.
pub struct Waiting {
    group: GroupId,
    updates: BTreeMap<CommandId, Ticket>,
    sessions: BTreeMap<SessionId, Vec<Ticket>>,
}

impl Waiting {
    /// Nobody.
    pub fn new(group: GroupId) -> Waiting {
        Waiting { group, updates: BTreeMap::new(), sessions: BTreeMap::new() }
    }

    /// Waits for an update. An earlier request for the same one is not answered any more.
    pub fn add_update(&mut self, id: CommandId, ticket: Ticket) {
        self.updates.insert(id, ticket);
    }

    /// Waits for a session to open or close.
    pub fn add_session(&mut self, session: SessionId, ticket: Ticket) {
        self.sessions.entry(session).or_default().push(ticket);
    }

    /// An update is settled.
    pub fn settle_update(&mut self, reply: multicast::Reply, dependencies: &VectorClock) {
        let Some(ticket) = self.updates.remove(&reply.id) else { return };
        let body = match reply.result {
            Ok(outcome) => match codec::decode_outcome(&outcome) {
                Ok(outcome) => Reply::Updated { outcome, position: position(reply.index, dependencies) },
                Err(error) => Reply::Invalid(format!("the stored outcome cannot be read: {error}")),
            },
            Err(rejection) => refused(rejection),
        };
        ticket.reply(body);
    }

    /// A session is open, or closed.
    pub fn settle_session(&mut self, session: SessionId, index: LogIndex, dependencies: &VectorClock) {
        for ticket in self.sessions.remove(&session).unwrap_or_default() {
            ticket.reply(Reply::Session(position(index, dependencies)));
        }
    }

    /// An update was not taken.
    pub fn decline_update(&mut self, id: CommandId, reason: Decline) {
        if let Some(ticket) = self.updates.remove(&id) {
            ticket.reply(self.declined(reason));
        }
    }

    /// A session's change was not taken.
    pub fn decline_session(&mut self, session: SessionId, reason: Decline) {
        for ticket in self.sessions.remove(&session).unwrap_or_default() {
            ticket.reply(self.declined(reason));
        }
    }

    /// This replica is not primary any more: all ask the new one.
    pub fn send_to_primary(&mut self, primary: Option<ReplicaId>) {
        let updates = std::mem::take(&mut self.updates).into_values();
        let sessions = std::mem::take(&mut self.sessions).into_values().flatten();
        for ticket in updates.chain(sessions) {
            ticket.reply(Reply::NotPrimary { group: self.group, primary });
        }
    }

    /// Forgets clients that are gone.
    pub fn forget_gone(&mut self) {
        self.updates.retain(|_, ticket| !ticket.client().is_cut_off());
        self.sessions.retain(|_, tickets| {
            tickets.retain(|ticket| !ticket.client().is_cut_off());
            !tickets.is_empty()
        });
    }

    /// What a client hears when something is not taken.
    pub fn declined(&self, reason: Decline) -> Reply {
        let group = self.group;
        let unavailable = |group, why: &str| Reply::Unavailable { group, why: why.into() };
        match reason {
            Decline::NotPrimary { hint } => Reply::NotPrimary { group, primary: hint },
            Decline::NotReady => unavailable(group, "the group's new primary is not up to date yet"),
            Decline::Overloaded => unavailable(group, "too much is under way"),
            Decline::Unavailable { group } => unavailable(group, "the group does not answer"),
            Decline::WrongGroup => Reply::Invalid("the group is not among the command's destinations".into()),
            Decline::Malformed => Reply::Invalid("the command's destinations make no sense".into()),
            Decline::Refused(reason) => refused(Rejection { by: group, reason }),
        }
    }
}

fn refused(rejection: Rejection) -> Reply {
    match rejection.reason {
        Refusal::UnknownSession => Reply::UnknownSession { group: rejection.by },
        Refusal::StaleSequence => Reply::Invalid("the client has acknowledged this sequence already".into()),
        Refusal::BeyondWindow => Reply::Invalid("too many sequences are not acknowledged".into()),
        Refusal::IdReused => Reply::Invalid("the command's id was used for something else".into()),
    }
}

fn position(index: LogIndex, dependencies: &VectorClock) -> Position {
    Position { index, dependencies: dependencies.clone() }
}
