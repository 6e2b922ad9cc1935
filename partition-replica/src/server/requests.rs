//! What a client asks, one request after the other.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use metadata::codec;
use metadata::op::FsOp;
use metadata::outcome::{Errno, OpError};
use metadata::protocol::{Position, Reply, Request, ToClient};
use metadata::read::ReadOp;
use multicast::command::Command;
use multicast::core::SessionChange;
use multicast::ids::GroupId;
use net::FrameReceiver;

use super::client::{Client, InFlightMax, Kind, Ticket};
use super::operate;
use crate::config::Limits;
use crate::group::mailbox::{Burst, Input};
use crate::group::view::PendingRead;
use crate::node::Shared;
use crate::replicas::Group;

/// Requests of one client in a row before others have their turn.
const RECEIVE_FRAMES_MAX: usize = 64;

/// How soon a client that is behind is looked at again.
const DRAIN_PAUSE: Duration = Duration::from_millis(2);
/// An entry of a listing, with a name of middle length.
const ENTRY_BYTES: usize = 64;
/// An inode's attributes.
const ATTR_BYTES: usize = 100;
/// A file's attributes with inline bytes or some dozens of extents.
const CONTENT_BYTES: usize = 4096;

/// Serves a client until it goes, or breaks the protocol.
pub async fn serve(shared: &Arc<Shared>, client: &Arc<Client>, mut receiver: FrameReceiver) {
    let limits = &shared.config.limits;
    let max = InFlightMax { requests: limits.client_requests_max, bytes: limits.client_request_bytes_max };
    let mut frames = Vec::new();
    loop {
        match receiver.recv_many(&mut frames, RECEIVE_FRAMES_MAX).await {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) => {
                tracing::debug!(client = client.name(), %error, "client lost");
                return;
            }
        }
        let mut burst = Burst::default();
        for frame in frames.drain(..) {
            let message = match codec::decode_to_node(&frame) {
                Ok(message) => message,
                Err(error) => {
                    tracing::warn!(client = client.name(), %error, "cutting off a client that makes no sense");
                    return;
                }
            };
            if client.is_cut_off() {
                return;
            }
            if is_behind(client, limits) {
                burst.wake();
                drain(client, limits).await;
            }
            let (kind, updated) = kind(&message.body);
            let bytes = frame.len().max(reply_bytes(&message.body));
            let mut ticket = client.admit_now(message.request, bytes, kind, max);
            if ticket.is_none() {
                burst.wake();
                ticket = client.admit(message.request, bytes, kind, max).await;
            }
            match ticket {
                Some(ticket) => handle(shared, message.body, ticket, &mut burst),
                None => client.push(&ToClient::Reply {
                    request: message.request,
                    body: crowded(updated, "the client has too many updates under way"),
                }),
            }
        }
        drop(burst);
        tokio::task::yield_now().await;
    }
}

/// A client that reads slower than it asks is asked to wait: what it has under way still fits into the other half of its
/// queue.
async fn drain(client: &Client, limits: &Limits) {
    while is_behind(client, limits) && !client.is_cut_off() {
        tokio::time::sleep(DRAIN_PAUSE).await;
    }
}

fn is_behind(client: &Client, limits: &Limits) -> bool {
    let (frames, bytes) = client.queued();
    frames > limits.client_queue_frames_max / 2 || bytes > limits.client_queue_bytes_max / 2
}

/// What an answer may come to if it is longer than most.
fn reply_bytes(request: &Request) -> usize {
    match request {
        Request::Read { op: ReadOp::ReadDir { limit, plus, .. }, .. } => {
            let entries = usize::try_from(*limit).unwrap_or(usize::MAX).min(metadata::answer::ENTRIES_MAX);
            entries * if *plus { ENTRY_BYTES + ATTR_BYTES } else { ENTRY_BYTES }
        }
        Request::Read { op: ReadOp::Content { .. }, .. } => CONTENT_BYTES,
        Request::Read { .. }
        | Request::OpenSession { .. }
        | Request::CloseSession { .. }
        | Request::KeepAlive { .. }
        | Request::Subscribe { .. }
        | Request::Update { .. }
        | Request::Status
        | Request::Members
        | Request::Operate(_) => 0,
    }
}

/// What a request counts as, and the group that it would change.
fn kind(request: &Request) -> (Kind, GroupId) {
    match request {
        Request::Update { group, .. } | Request::OpenSession { group, .. } | Request::CloseSession { group, .. } => {
            (Kind::Update, *group)
        }
        Request::KeepAlive { .. } | Request::Status | Request::Members => (Kind::Other, GroupId::GLOBAL),
        Request::Operate(operation) => (Kind::Update, operation.group()),
        Request::Subscribe { group, .. } | Request::Read { group, .. } => (Kind::Other, *group),
    }
}

fn crowded(group: GroupId, why: &str) -> Reply {
    Reply::Unavailable { group, why: why.into() }
}

fn handle(shared: &Arc<Shared>, request: Request, ticket: Ticket, burst: &mut Burst) {
    match request {
        Request::OpenSession { group, session, label } => {
            let label = shared.whom.opens(session, ticket.client().name(), &label);
            tracing::info!(%group, %session, label, client = ticket.client().name(), "session opens");
            shared.leases.lock().note(session, shared.clock.now());
            to_thread(shared, group, ticket, burst, |ticket| Input::Session {
                change: SessionChange::Open(session),
                ticket,
            });
        }
        Request::CloseSession { group, session } => {
            shared.whom.ends(session);
            to_thread(shared, group, ticket, burst, |ticket| Input::Session {
                change: SessionChange::Close(session),
                ticket,
            });
        }
        Request::KeepAlive { session } => {
            shared.whom.lives(session, ticket.client().name());
            shared.leases.lock().note(session, shared.clock.now());
            ticket.reply(Reply::Alive);
        }
        Request::Subscribe { group, session } => {
            if let Some((group, ticket)) = find(shared, group, ticket) {
                group.view.subscribe(session, ticket);
            }
        }
        Request::Update { group, command } => {
            shared.leases.lock().note(command.id.session, shared.clock.now());
            if names_unknown_group(shared, &command) {
                let (outcome, position) = (Err(OpError::Errno(Errno::Invalid)), Position::default());
                return ticket.reply(Reply::Updated { outcome, position, is_noted: false, elsewhere: Vec::new() });
            }
            to_thread(shared, group, ticket, burst, |ticket| Input::Submit { command: Arc::new(command), ticket });
        }
        Request::Read { group, session, clock, linearizable, op } => {
            let patience = u64::try_from(shared.config.timeouts.parked_read.as_nanos()).unwrap_or(u64::MAX);
            let deadline = shared.clock.now() + patience;
            let (index, effects) = (clock.index(group), clock.effects(group));
            let read = |ticket| PendingRead { ticket, session, index, effects, op, deadline };
            if linearizable {
                to_thread(shared, group, ticket, burst, |ticket| Input::Linearize(read(ticket)));
            } else if let Some((group, ticket)) = find(shared, group, ticket) {
                // Answered here and now: microseconds, and no other thread need wake up.
                group.view.serve(read(ticket));
            }
        }
        Request::Status => {
            let shared = shared.clone();
            let Some(turn) = shared.clients.report() else {
                return ticket.reply(crowded(GroupId::GLOBAL, "too many ask for the node's state"));
            };
            // Asks every replica's thread.
            tokio::task::spawn_blocking(move || {
                match serde_json::to_vec(&shared.status()) {
                    Ok(json) => ticket.reply(Reply::Status(Bytes::from(json))),
                    Err(error) => ticket.reply(Reply::Invalid(error.to_string())),
                }
                drop(turn);
            });
        }
        Request::Members => ticket.reply(Reply::Members(operate::directory(shared))),
        Request::Operate(operation) => operate::handle(shared, operation, ticket),
    }
}

/// Nothing may be placed where nothing can live: that does not depend on the state, so it is never logged.
fn names_unknown_group(shared: &Shared, command: &Command) -> bool {
    let is_unknown = |group: GroupId| shared.config.groups.iter().all(|known| known.id != group);
    let placed = || match codec::decode_op(&command.payload) {
        Ok(FsOp::SetPlacement { placement, .. }) => Some(placement),
        _ => None,
    };
    command.groups().any(is_unknown) || (!command.is_multi_group() && placed().is_some_and(is_unknown))
}

fn find(shared: &Shared, group: GroupId, ticket: Ticket) -> Option<(Arc<Group>, Ticket)> {
    match shared.replicas.get(group) {
        Some(found) => Some((found, ticket)),
        None => {
            ticket.reply(Reply::UnknownGroup { group });
            None
        }
    }
}

fn to_thread(shared: &Shared, group: GroupId, ticket: Ticket, burst: &mut Burst, input: impl FnOnce(Ticket) -> Input) {
    if let Some((found, ticket)) = find(shared, group, ticket) {
        burst.push(&found.mailbox, input(ticket));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn client_that_reads_slower_than_it_asks_must_wait() {
        let limits = Limits { client_queue_frames_max: 4, ..Limits::default() };
        let client = Client::test(1);
        let alive = |request| client.push(&ToClient::Reply { request, body: Reply::Alive });
        alive(1);
        alive(2);
        let soon = |pauses| tokio::time::timeout(pauses * DRAIN_PAUSE, drain(&client, &limits));
        soon(1000).await.unwrap();
        alive(3);
        assert!(soon(10).await.is_err());
        client.taken();
        soon(1000).await.unwrap();
    }
}
