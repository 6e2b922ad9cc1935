//! A small cluster on loopback.

use std::net::{Ipv4Addr, SocketAddr};

use bytes::Bytes;
use net::{ChannelKind, ClusterCa, Connection, Endpoint, EndpointConfig, FrameReceiver, FrameSender, Identity, Role};

pub const ECHO: ChannelKind = ChannelKind::new(7, 1);
pub const LOCAL: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

pub struct Cluster {
    pub ca: ClusterCa,
}

impl Cluster {
    pub fn new() -> Self {
        Cluster { ca: ClusterCa::create("test").unwrap() }
    }

    pub fn identity(&self, role: Role, name: &str) -> Identity {
        self.ca.issue(role, name).unwrap()
    }

    pub fn node_config(&self, name: &str) -> EndpointConfig {
        EndpointConfig::node(LOCAL, self.identity(Role::Node, name))
    }

    pub fn client_config(&self, name: &str) -> EndpointConfig {
        EndpointConfig { bind: LOCAL, ..EndpointConfig::client(self.identity(Role::Client, name)) }
    }

    pub fn node(&self, name: &str) -> Endpoint {
        Endpoint::bind(self.node_config(name)).unwrap()
    }

    pub fn client(&self, name: &str) -> Endpoint {
        Endpoint::bind(self.client_config(name)).unwrap()
    }

    /// A node that echoes every frame.
    pub fn echo(&self, name: &str) -> Endpoint {
        let node = self.node(name);
        serve_echo(node.clone());
        node
    }
}

pub fn serve_echo(node: Endpoint) {
    tokio::spawn(async move {
        while let Some(incoming) = node.accept().await {
            tokio::spawn(async move {
                let (sender, mut receiver) = (incoming.sender, incoming.receiver);
                let mut frames = Vec::new();
                while receiver.recv_many(&mut frames, 1024).await.is_ok_and(|count| count > 0) {
                    for frame in frames.drain(..) {
                        if sender.send(frame).await.is_err() {
                            return;
                        }
                    }
                }
            });
        }
    });
}

pub async fn open(client: &Endpoint, node: &Endpoint, name: &str) -> (Connection, FrameSender, FrameReceiver) {
    let connection = client.connect(node.local_addr(), name).await.unwrap();
    let (sender, receiver) = connection.open(ECHO).await.unwrap();
    (connection, sender, receiver)
}

pub fn frame(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}
