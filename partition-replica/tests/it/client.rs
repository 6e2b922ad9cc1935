//! The least that a client must do.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use metadata::codec;
use metadata::op::{FsOp, NewNode, RenameMode};
use metadata::outcome::{Done, Outcome};
use metadata::protocol::{CLIENT_CHANNEL_KIND, CLIENT_PROTOCOL_VERSION, Position, Reply, Request, ToClient, ToNode};
use metadata::read::{ReadAnswer, ReadOp, ReadResult};
use metadata::types::{Dirent, FileKind, InodeId, NodeRef};
use multicast::command::Command;
use multicast::ids::{CommandId, GroupId, ReplicaId, SessionId, VectorClock};
use net::{ChannelKind, Connection, Endpoint, FrameSender};
use parking_lot::Mutex;
use tokio::runtime::Runtime;
use tokio::sync::oneshot;

use crate::cluster::{Cluster, SOON};

pub const ROOT: NodeRef = NodeRef { ino: InodeId::ROOT, kind: FileKind::Directory, home: GroupId::GLOBAL };

pub struct Client {
    runtime: Runtime,
    endpoint: Endpoint,
    pub session: SessionId,
    pub clock: VectorClock,
    sequence: u64,
    requests: AtomicU64,
    channels: BTreeMap<ReplicaId, Channel>,
    primaries: BTreeMap<GroupId, ReplicaId>,
}

struct Channel {
    sender: FrameSender,
    connection: Connection,
    shared: Arc<Incoming>,
}

#[derive(Default)]
struct Incoming {
    waiting: Mutex<BTreeMap<u64, oneshot::Sender<Reply>>>,
    /// Everything that came, in order.
    log: Mutex<Vec<ToClient>>,
}

impl Client {
    /// With its session open in all groups.
    pub fn open(cluster: &Cluster, session: u64) -> Client {
        let mut client = Client::connected_nowhere(cluster, session);
        for group in 0..crate::cluster::GROUPS {
            client.open_session(cluster, GroupId(group));
        }
        client
    }

    pub fn connected_nowhere(cluster: &Cluster, session: u64) -> Client {
        Client::with_certificate(cluster, session, &format!("client-{session}"))
    }

    /// Who shows a certificate of that name.
    pub fn with_certificate(cluster: &Cluster, session: u64, name: &str) -> Client {
        let runtime = net::runtime("client").unwrap();
        let endpoint = {
            let _inside = runtime.enter();
            Endpoint::bind(cluster.client_endpoint(name)).unwrap()
        };
        Client {
            runtime,
            endpoint,
            session: SessionId(session),
            clock: VectorClock::new(),
            sequence: 0,
            requests: AtomicU64::new(0),
            channels: BTreeMap::new(),
            primaries: BTreeMap::new(),
        }
    }

    pub fn open_session(&mut self, cluster: &Cluster, group: GroupId) {
        let (session, label) = (self.session, "test".to_owned());
        let body = Request::OpenSession { group, session, label };
        match self.ask_primary(cluster, group, &body) {
            Reply::Session(position) => self.learn(group, &position),
            other => panic!("{other:?}"),
        }
    }

    /// Who was a group's primary when it answered last.
    pub fn primary(&self, group: GroupId) -> u32 {
        self.primaries[&group].0
    }

    pub fn subscribe(&mut self, cluster: &Cluster, node: u32, group: GroupId) -> Position {
        let session = self.session;
        match self.ask(cluster, ReplicaId(node), Request::Subscribe { group, session }) {
            Some(Reply::Session(position)) => position,
            other => panic!("{other:?}"),
        }
    }

    pub fn learn(&mut self, group: GroupId, position: &Position) {
        self.clock.advance(group, position.index);
        self.clock.merge(&position.dependencies);
    }

    /// One try; nothing if the node does not answer.
    pub fn ask(&mut self, cluster: &Cluster, node: ReplicaId, body: Request) -> Option<Reply> {
        let request = self.requests.fetch_add(1, Ordering::Relaxed);
        let message = codec::encode_to_node(&ToNode { request, body });
        let channel = self.channel(cluster, node)?;
        let (answer, answered) = oneshot::channel();
        channel.shared.waiting.lock().insert(request, answer);
        channel.sender.try_send(message).ok()?;
        let connection = channel.connection.clone();
        let wait = async move {
            tokio::select! {
                reply = answered => reply.ok(),
                _ = connection.closed() => None,
                () = tokio::time::sleep(Duration::from_secs(10)) => None,
            }
        };
        let reply = self.runtime.block_on(wait);
        if reply.is_none() {
            self.channels.remove(&node);
        }
        reply
    }

    /// Tries until the group's primary has answered.
    pub fn ask_primary(&mut self, cluster: &Cluster, group: GroupId, body: &Request) -> Reply {
        let deadline = Instant::now() + SOON;
        let voters = cluster.nodes_to_ask(group);
        for attempt in 0.. {
            let node = self.primaries.get(&group).copied().unwrap_or(voters[attempt % voters.len()]);
            match self.ask(cluster, node, body.clone()) {
                Some(Reply::NotPrimary { primary: Some(primary), .. }) if primary != node => {
                    self.primaries.insert(group, primary);
                }
                None | Some(Reply::NotPrimary { .. } | Reply::Unavailable { .. } | Reply::UnknownGroup { .. }) => {
                    self.primaries.remove(&group);
                    std::thread::sleep(Duration::from_millis(50));
                }
                Some(reply) => {
                    self.primaries.insert(group, node);
                    return reply;
                }
            }
            assert!(Instant::now() < deadline, "no answer in time to {body:?}");
        }
        unreachable!()
    }

    pub fn command(&mut self, op: &FsOp) -> Command {
        self.sequence += 1;
        Command {
            id: CommandId { session: self.session, sequence: self.sequence },
            acknowledged_below: self.sequence,
            clock: self.clock.clone(),
            destinations: op.destinations(),
            payload: codec::encode_op(op),
        }
    }

    pub fn submit(&mut self, cluster: &Cluster, command: &Command) -> (Outcome, Position) {
        let group = command.destinations[0].group;
        match self.ask_primary(cluster, group, &Request::Update { group, command: command.clone() }) {
            Reply::Updated { outcome, position, .. } => {
                self.learn(group, &position);
                (outcome, position)
            }
            other => panic!("{other:?}"),
        }
    }

    pub fn update(&mut self, cluster: &Cluster, op: &FsOp) -> Outcome {
        let command = self.command(op);
        self.submit(cluster, &command).0
    }

    pub fn create(&mut self, cluster: &Cluster, parent: NodeRef, name: &str, node: NewNode, home: GroupId) -> NodeRef {
        let name = name.to_owned().into();
        let op = FsOp::Create { parent, name, node, mode: 0o755, uid: 0, gid: 0, home };
        match self.update(cluster, &op) {
            Ok(Done::Node { attr, .. }) => NodeRef { ino: attr.ino, kind: attr.kind, home: attr.home },
            other => panic!("{other:?}"),
        }
    }

    /// A directory below the root that is placed on its own group.
    pub fn placed_directory(&mut self, cluster: &Cluster, group: u16) -> NodeRef {
        let placement = Some(GroupId(group));
        self.create(cluster, ROOT, &format!("g{group}"), NewNode::Directory { placement }, GroupId(group))
    }

    pub fn rename(
        &mut self,
        cluster: &Cluster,
        from: (NodeRef, &str),
        source: NodeRef,
        to: (NodeRef, &str),
    ) -> Outcome {
        let op = FsOp::Rename {
            from_parent: from.0,
            from_name: from.1.to_owned().into(),
            source,
            to_parent: to.0,
            to_name: to.1.to_owned().into(),
            target: None,
            mode: RenameMode::Replace,
            ancestors: Vec::new(),
            keep_open: false,
        };
        self.update(cluster, &op)
    }

    pub fn read_request(&self, group: GroupId, op: ReadOp, linearizable: bool) -> Request {
        Request::Read { group, session: self.session, clock: self.clock.clone(), linearizable, op }
    }

    /// From one node's replica, over a new connection if the node was restarted.
    pub fn read(&mut self, cluster: &Cluster, node: u32, group: GroupId, op: ReadOp) -> ReadResult {
        let request = self.read_request(group, op, false);
        for _ in 0..5 {
            match self.ask(cluster, ReplicaId(node), request.clone()) {
                Some(Reply::Read { result, position }) => {
                    self.learn(group, &position);
                    return result;
                }
                None => std::thread::sleep(Duration::from_millis(50)),
                other => panic!("{other:?}"),
            }
        }
        panic!("node {node} does not answer");
    }

    pub fn lookup(&mut self, cluster: &Cluster, node: u32, parent: NodeRef, name: &str) -> Option<Dirent> {
        let op = ReadOp::Lookup { parent: parent.ino, name: name.to_owned().into() };
        match self.read(cluster, node, parent.home, op) {
            Ok(ReadAnswer::Lookup(found)) => found.map(|(dirent, _)| dirent),
            other => panic!("{other:?}"),
        }
    }

    /// Everything that a node has sent, in order.
    pub fn received(&self, node: u32) -> Vec<ToClient> {
        self.channels[&ReplicaId(node)].shared.log.lock().clone()
    }

    /// Sends many requests at once and waits for all replies.
    pub fn pipeline(&mut self, cluster: &Cluster, node: u32, bodies: Vec<Request>) -> Vec<Reply> {
        let first = self.requests.fetch_add(bodies.len() as u64, Ordering::Relaxed);
        let channel = self.channel(cluster, ReplicaId(node)).unwrap();
        let (sender, shared) = (channel.sender.clone(), channel.shared.clone());
        self.runtime.block_on(async move {
            let mut answers = Vec::new();
            for (request, body) in (first..).zip(bodies) {
                let (answer, answered) = oneshot::channel();
                shared.waiting.lock().insert(request, answer);
                answers.push(answered);
                sender.send(codec::encode_to_node(&ToNode { request, body })).await.unwrap();
            }
            let mut replies = Vec::new();
            for answered in answers {
                replies.push(tokio::time::timeout(SOON, answered).await.unwrap().unwrap());
            }
            replies
        })
    }

    pub fn raw_channel(&mut self, cluster: &Cluster, node: u32) -> FrameSender {
        self.channel(cluster, ReplicaId(node)).unwrap().sender.clone()
    }

    fn channel(&mut self, cluster: &Cluster, node: ReplicaId) -> Option<&Channel> {
        if self.channels.get(&node).is_some_and(|channel| channel.connection.is_closed()) {
            self.channels.remove(&node);
        }
        if !self.channels.contains_key(&node) {
            let name = format!("node-{}", node.0);
            let kind = ChannelKind::new(CLIENT_CHANNEL_KIND, CLIENT_PROTOCOL_VERSION as u8);
            let address = cluster.address(node);
            let endpoint = self.endpoint.clone();
            let (connection, sender, mut receiver) = self.runtime.block_on(async {
                let connect = tokio::time::timeout(Duration::from_secs(2), endpoint.connect(address, &name));
                let connection = connect.await.ok()?.ok()?;
                let (sender, receiver) = connection.open(kind).await.ok()?;
                Some((connection, sender, receiver))
            })?;
            let shared = Arc::new(Incoming::default());
            let incoming = shared.clone();
            self.runtime.spawn(async move {
                while let Ok(Some(frame)) = receiver.recv().await {
                    let message = codec::decode_to_client(&frame).unwrap();
                    incoming.log.lock().push(message.clone());
                    if let ToClient::Reply { request, body } = message
                        && let Some(answer) = incoming.waiting.lock().remove(&request)
                    {
                        let _ = answer.send(body);
                    }
                }
                incoming.waiting.lock().clear();
            });
            self.channels.insert(node, Channel { sender, connection, shared });
        }
        self.channels.get(&node)
    }
}
