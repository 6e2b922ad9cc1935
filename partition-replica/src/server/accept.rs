//! Who may open which channel, and the tasks behind them.

use std::sync::Arc;

use metadata::codec;
use metadata::protocol::{CLIENT_CHANNEL_KIND, CLIENT_PROTOCOL_VERSION};
use net::{Endpoint, Incoming, Role};

use super::client::Client;
use super::peers::{KNOCK_CHANNEL, PEER_CHANNEL};
use super::requests;
use crate::copy::{self, COPY_CHANNEL};
use crate::inspect::{self, INSPECT_CHANNEL};
use crate::node::Shared;

/// Takes channels until the endpoint is closed.
pub async fn accept(endpoint: Endpoint, shared: Arc<Shared>) {
    while let Some(incoming) = endpoint.accept().await {
        let (role, kind) = (incoming.peer.role, incoming.kind);
        if role == Role::Node && kind == PEER_CHANNEL {
            accept_peer(incoming, &shared);
        } else if role == Role::Node && kind == KNOCK_CHANNEL {
            hear_knock(&incoming, &shared);
        } else if role == Role::Node && kind == COPY_CHANNEL {
            accept_copy(incoming, &shared);
        } else if kind == INSPECT_CHANNEL {
            // Clients may read everything anyway.
            inspect::accept(incoming, &shared);
        } else if kind.kind == CLIENT_CHANNEL_KIND {
            // Nodes are clients, too: their collectors have to be heard by every group.
            accept_client(incoming, &shared);
        } else {
            refuse(&incoming, "no such channel for this certificate");
        }
    }
}

fn accept_peer(incoming: Incoming, shared: &Shared) {
    match shared.nodes.named(&incoming.peer.name).and_then(|node| shared.router.link(node.number)) {
        // The node with the smaller name dials, so that there is one connection for both directions.
        Some(link) if incoming.peer.name < shared.name => {
            link.attach(incoming);
        }
        Some(_) => refuse(&incoming, "this node dials, not its peer"),
        None => refuse(&incoming, "not a node of this cluster's configuration"),
    }
}

/// That node is there again.
fn hear_knock(incoming: &Incoming, shared: &Shared) {
    if let Some(link) = shared.nodes.named(&incoming.peer.name).and_then(|node| shared.router.link(node.number)) {
        link.redial();
    }
    incoming.connection.close("heard");
}

fn accept_copy(incoming: Incoming, shared: &Arc<Shared>) {
    match shared.nodes.named(&incoming.peer.name) {
        Some(node) => copy::accept(incoming, node.number, shared),
        None => refuse(&incoming, "not a node of this cluster's configuration"),
    }
}

fn accept_client(incoming: Incoming, shared: &Arc<Shared>) {
    if u16::from(incoming.kind.version) != CLIENT_PROTOCOL_VERSION {
        return refuse(&incoming, "another version of the client protocol");
    }
    if !shared.clients.admit() {
        return refuse(&incoming, "too many clients");
    }
    let Incoming { peer, sender, mut receiver, connection, .. } = incoming;
    // Only nodes have longer ones to say.
    receiver.limit_frames(codec::MESSAGE_BYTES_MAX);
    let client = Client::new(shared.clients.next_number(), peer, sender, connection.clone());
    let shared = shared.clone();
    tokio::spawn(async move {
        tokio::select! {
            () = requests::serve(&shared, &client, receiver) => {}
            // It may be waiting for room that only answers to this client could make.
            _ = connection.closed() => {}
        }
        client.cut_off();
        for group in shared.replicas.all() {
            group.view.unsubscribe(&client);
        }
        shared.clients.release();
        connection.close("done");
    });
}

fn refuse(incoming: &Incoming, why: &str) {
    tracing::warn!(peer = %incoming.peer, kind = incoming.kind.kind, why, "refused a channel");
    incoming.connection.close(why);
}
