//! What a client asks, one request after the other.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use metadata::codec;
use metadata::protocol::{Reply, Request, ToClient};
use multicast::core::SessionChange;
use multicast::ids::GroupId;
use net::FrameReceiver;

use super::client::{Client, InFlightMax, Kind, Ticket};
use crate::group::mailbox::Input;
use crate::group::view::PendingRead;
use crate::node::{Group, Shared};

/// Requests of one client in a row before others have their turn.
const RECEIVE_FRAMES_MAX: usize = 64;

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
            let (kind, updated) = kind(&message.body);
            match client.admit(message.request, frame.len(), kind, max).await {
                Some(ticket) => handle(shared, message.body, ticket),
                None => client.push(&ToClient::Reply { request: message.request, body: crowded(updated) }),
            }
        }
        tokio::task::yield_now().await;
    }
}

/// What a request counts as, and the group that it would change.
fn kind(request: &Request) -> (Kind, GroupId) {
    match request {
        Request::Update { group, .. } | Request::OpenSession { group, .. } | Request::CloseSession { group, .. } => {
            (Kind::Update, *group)
        }
        Request::KeepAlive { .. } | Request::Status => (Kind::Other, GroupId::GLOBAL),
        Request::Subscribe { group, .. } | Request::Read { group, .. } => (Kind::Other, *group),
    }
}

fn crowded(group: GroupId) -> Reply {
    Reply::Unavailable { group, why: "the client has too many updates under way".into() }
}

fn handle(shared: &Arc<Shared>, request: Request, ticket: Ticket) {
    match request {
        Request::OpenSession { group, session, label } => {
            tracing::info!(%group, %session, label, client = ticket.client().name(), "session opens");
            shared.keep_alives.note(session, Instant::now());
            to_thread(shared, group, ticket, |ticket| Input::Session { change: SessionChange::Open(session), ticket });
        }
        Request::CloseSession { group, session } => {
            to_thread(shared, group, ticket, |ticket| Input::Session { change: SessionChange::Close(session), ticket });
        }
        Request::KeepAlive { session } => {
            shared.keep_alives.note(session, Instant::now());
            ticket.reply(Reply::Alive);
        }
        Request::Subscribe { group, session } => {
            if let Some((group, ticket)) = find(shared, group, ticket) {
                group.view.subscribe(session, ticket);
            }
        }
        Request::Update { group, command } => {
            shared.keep_alives.note(command.id.session, Instant::now());
            to_thread(shared, group, ticket, |ticket| Input::Submit { command: Arc::new(command), ticket });
        }
        Request::Read { group, session, clock, linearizable, op } => {
            let deadline = Instant::now() + shared.config.timeouts.parked_read;
            let (index, effects) = (clock.index(group), clock.effects(group));
            let read = |ticket| PendingRead { ticket, session, index, effects, op, deadline };
            if linearizable {
                to_thread(shared, group, ticket, |ticket| Input::Linearize(read(ticket)));
            } else if let Some((group, ticket)) = find(shared, group, ticket) {
                // Answered here and now: microseconds, and no other thread need wake up.
                group.view.serve(read(ticket));
            }
        }
        Request::Status => {
            let shared = shared.clone();
            // Asks every replica's thread.
            tokio::task::spawn_blocking(move || match serde_json::to_vec(&shared.status()) {
                Ok(json) => ticket.reply(Reply::Status(Bytes::from(json))),
                Err(error) => ticket.reply(Reply::Invalid(error.to_string())),
            });
        }
    }
}

fn find(shared: &Shared, group: GroupId, ticket: Ticket) -> Option<(&Group, Ticket)> {
    match shared.groups.get(&group) {
        Some(found) => Some((found, ticket)),
        None => {
            ticket.reply(Reply::UnknownGroup { group });
            None
        }
    }
}

fn to_thread(shared: &Shared, group: GroupId, ticket: Ticket, input: impl FnOnce(Ticket) -> Input) {
    if let Some((found, ticket)) = find(shared, group, ticket) {
        found.mailbox.push(input(ticket));
    }
}
