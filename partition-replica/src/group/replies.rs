//! Who waits for what, and what the core's words mean to a client.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use metadata::codec;
use metadata::protocol::{Position, Reply};
use multicast::ids::{CommandId, GroupId, LogIndex, ReplicaId, SessionId, VectorClock};
use multicast::record::Rejection;
use multicast::{Decline, Refusal};

use crate::server::client::Ticket;

/// So long a request waits before its client must ask again: longer than the client waits for an answer.
const TICKET_AGE_MAX: Duration = Duration::from_secs(10);

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

    /// Forgets clients that are gone, and answers those that have waited for too long: they ask again if they still want to
    /// know, else their places would be taken for as long as a lock stays. Returns the updates that nobody waits for.
    pub fn forget_old(&mut self, now: Instant) -> Vec<CommandId> {
        let group = self.group;
        let is_over = |ticket: &Ticket| {
            ticket.client().is_cut_off() || now.saturating_duration_since(ticket.since()) >= TICKET_AGE_MAX
        };
        let forgotten = self.updates.iter().filter(|(_, ticket)| is_over(ticket)).map(|(&id, _)| id);
        let forgotten: Vec<CommandId> = forgotten.collect();
        for id in &forgotten {
            if let Some(ticket) = self.updates.remove(id) {
                ticket.reply(expired(group));
            }
        }
        self.sessions.retain(|_, tickets| {
            tickets.extract_if(.., |ticket| is_over(ticket)).for_each(|ticket| ticket.reply(expired(group)));
            !tickets.is_empty()
        });
        forgotten
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

fn expired(group: GroupId) -> Reply {
    Reply::Unavailable { group, why: "the update waits for others".into() }
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use metadata::protocol::ToClient;

    use super::*;
    use crate::server::client::{Client, InFlightMax, Kind};

    #[tokio::test]
    async fn client_that_gave_up_gets_its_places_back_and_is_read_meanwhile() {
        let client = Client::test(1);
        let max = InFlightMax { requests: 1, bytes: 100 };
        let mut waiting = Waiting::new(GroupId::GLOBAL);
        let id = CommandId { session: SessionId(1), sequence: 1 };
        waiting.add_update(id, client.admit(1, 60, Kind::Update, max).await.unwrap());
        assert!(client.admit(2, 60, Kind::Update, max).await.is_none());
        drop(client.admit(3, 60, Kind::Other, max).await.unwrap());
        assert_eq!(waiting.forget_old(Instant::now()), []);
        assert_eq!(waiting.forget_old(Instant::now() + TICKET_AGE_MAX), [id]);
        let told = client.taken();
        assert!(matches!(told[..], [ToClient::Reply { request: 1, body: Reply::Unavailable { .. } }]), "{told:?}");
        assert!(client.admit(4, 60, Kind::Update, max).await.is_some());
    }
}
