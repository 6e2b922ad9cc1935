//! The engine against scripted nodes, over real connections.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, UdpSocket};

use metadata::codec::{decode_op, decode_to_node, encode_to_client};
use metadata::footprint::key_dirent;
use metadata::operate::{Directory, GroupMembers};
use metadata::outcome::Done;
use metadata::protocol::{CLIENT_CHANNEL_KIND, CLIENT_PROTOCOL_VERSION, Event, Position, ToClient, ToNode};
use metadata::read::ReadAnswer;
use metadata::types::{FileKind, InodeId, NodeRef};
use multicast::Membership;
use multicast::ids::LogIndex;
use net::{ChannelKind, ClusterCa, EndpointConfig, Role};
use tokio::sync::mpsc;

use super::*;
use crate::config::{GroupInfo, NodeInfo};

const G: GroupId = GroupId::GLOBAL;
const DIR: NodeRef = NodeRef { ino: InodeId::ROOT, kind: FileKind::Directory, home: G };

/// What a node does with a request: messages to send, in order. `None` breaks the connection.
type Script = Box<dyn FnMut(ToNode) -> Option<Vec<ToClient>> + Send>;

struct World {
    ca: ClusterCa,
    nodes: Vec<NodeInfo>,
    endpoints: Vec<Endpoint>,
    /// What endpoints are other than usual.
    tune: fn(&mut EndpointConfig),
}

impl World {
    fn new() -> World {
        let ca = ClusterCa::create("test").unwrap();
        World { ca, nodes: Vec::new(), endpoints: Vec::new(), tune: |_| {} }
    }

    /// Starts a node that follows a script.
    fn node(&mut self, number: u32, region: &str, script: Script) {
        let port = self.serve(number, 0, script);
        self.know(number, region, port);
    }

    fn know(&mut self, number: u32, region: &str, port: u16) {
        let (name, address) = (format!("n{number}"), format!("127.0.0.1:{port}"));
        self.nodes.push(NodeInfo { number: ReplicaId(number), name, region: region.into(), address });
    }

    /// Gives the port.
    fn serve(&mut self, number: u32, port: u16, script: Script) -> u16 {
        let identity = self.ca.issue(Role::Node, &format!("n{number}")).unwrap();
        let mut config = EndpointConfig::node((Ipv4Addr::LOCALHOST, port).into(), identity);
        (self.tune)(&mut config);
        let endpoint = Endpoint::bind(config).unwrap();
        let port = endpoint.local_addr().port();
        self.endpoints.push(endpoint.clone());
        let script = Arc::new(Mutex::new(script));
        tokio::spawn(async move {
            while let Some(mut incoming) = endpoint.accept().await {
                let version = u8::try_from(CLIENT_PROTOCOL_VERSION).unwrap();
                assert_eq!(incoming.kind, ChannelKind::new(CLIENT_CHANNEL_KIND, version));
                let script = script.clone();
                tokio::spawn(async move {
                    while let Ok(Some(frame)) = incoming.receiver.recv().await {
                        let answers = script.lock()(decode_to_node(&frame).unwrap());
                        let Some(answers) = answers else { return incoming.connection.close("broken") };
                        for answer in answers {
                            incoming.sender.send(encode_to_client(&answer)).await.unwrap();
                        }
                    }
                });
            }
        });
        port
    }

    fn client(&self, deadline: Duration) -> Arc<Engine> {
        self.client_with(deadline, |_| {})
    }

    fn client_with(&self, deadline: Duration, change: impl FnOnce(&mut ClientConfig)) -> Arc<Engine> {
        let voters = self.nodes.iter().map(|node| node.number).collect();
        let group = GroupInfo { id: G, name: "global".into(), voters };
        let mut config = ClientConfig::new("here", self.nodes.clone(), vec![group]);
        config.timeouts.deadline = deadline;
        config.timeouts.attempt = deadline / 4;
        change(&mut config);
        let identity = self.ca.issue(Role::Client, "c").unwrap();
        let mut endpoint = EndpointConfig::client(identity);
        (self.tune)(&mut endpoint);
        Engine::start(config, &Endpoint::bind(endpoint).unwrap()).unwrap()
    }
}

fn at(index: u64) -> Position {
    Position { index: LogIndex(index), ..Position::default() }
}

fn reply(request: u64, body: Reply) -> ToClient {
    ToClient::Reply { request, body }
}

/// What every well-behaved node says to everything but updates and reads.
fn ordinary(message: &ToNode) -> Option<Vec<ToClient>> {
    let body = match message.body {
        Request::OpenSession { .. } | Request::CloseSession { .. } | Request::Subscribe { .. } => Reply::Session(at(0)),
        Request::KeepAlive { .. } => Reply::Alive,
        Request::Members => Reply::Members(Directory::default()),
        Request::Update { .. } | Request::Read { .. } | Request::Status | Request::Operate(_) => return None,
    };
    Some(vec![reply(message.request, body)])
}

fn an_update() -> FsOp {
    FsOp::ReleaseOrphans { home: G, inodes: vec![InodeId(5)] }
}

fn updated(request: u64, index: u64) -> ToClient {
    reply(
        request,
        Reply::Updated { outcome: Ok(Done::Nothing), position: at(index), is_noted: false, elsewhere: Vec::new() },
    )
}

const PATIENT: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn update_follows_the_hint_to_the_primary() {
    let mut world = World::new();
    let redirect = |message: ToNode| {
        Some(vec![reply(message.request, Reply::NotPrimary { group: G, primary: Some(ReplicaId(2)) })])
    };
    world.node(1, "here", Box::new(redirect));
    let execute = |message: ToNode| ordinary(&message).or_else(|| Some(vec![updated(message.request, 7)]));
    world.node(2, "there", Box::new(execute));
    let engine = world.client(PATIENT);
    assert_eq!(engine.update(an_update()).await.unwrap(), Ok(Done::Nothing));
    assert_eq!(engine.clock().index(G), LogIndex(7));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_waits_for_a_silent_node_while_others_live() {
    let mut world = World::new();
    // Its connection would last.
    world.tune = |config| config.tuning.idle_timeout = Duration::from_secs(120);
    let (go, may_go) = std::sync::mpsc::channel::<()>();
    let frozen = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    {
        let _inside = frozen.enter();
        let freeze = move |message: ToNode| {
            ordinary(&message).or_else(|| {
                // The only thread of its network.
                let _ = may_go.recv();
                Some(Vec::new())
            })
        };
        world.node(1, "here", Box::new(freeze));
    }
    let execute = |message: ToNode| ordinary(&message).or_else(|| Some(vec![updated(message.request, 7)]));
    world.node(2, "there", Box::new(execute));
    let engine = world.client_with(PATIENT, |config| config.timeouts.attempt = PATIENT);
    assert_eq!(engine.update(an_update()).await.unwrap(), Ok(Done::Nothing));
    assert!(!engine.may_be_up(ReplicaId(1)) && engine.may_be_up(ReplicaId(2)));

    // It was only busy.
    drop(go);
    while !engine.may_be_up(ReplicaId(1)) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    frozen.shutdown_background();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn node_that_another_one_names_is_connected_to_although_it_was_dead() {
    let mut world = World::new();
    // What has met a dead node is not repeated, and not given up either.
    world.tune = |config| {
        config.tuning.initial_rtt = PATIENT;
        config.limits.handshake_timeout = 10 * PATIENT;
    };
    let dead = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = dead.local_addr().unwrap().port();
    world.know(1, "here", port);
    let (asked, was_asked) = tokio::sync::oneshot::channel();
    let mut asked = Some(asked);
    let redirect = move |message: ToNode| {
        let is_update = matches!(message.body, Request::Update { .. } | Request::OpenSession { .. });
        asked.take_if(|_| is_update).into_iter().for_each(|asked| _ = asked.send(()));
        Some(vec![reply(message.request, Reply::NotPrimary { group: G, primary: Some(ReplicaId(1)) })])
    };
    world.node(2, "there", Box::new(redirect));
    let engine = world.client(PATIENT);
    let update = tokio::spawn({
        let engine = engine.clone();
        async move { engine.update(an_update()).await }
    });
    was_asked.await.unwrap();
    let mut datagram = [0; 2048];
    assert!(dead.recv(&mut datagram).unwrap() > 0, "it was tried");
    drop(dead);
    let execute = |message: ToNode| ordinary(&message).or_else(|| Some(vec![updated(message.request, 7)]));
    world.serve(1, port, Box::new(execute));
    assert_eq!(update.await.unwrap().unwrap(), Ok(Done::Nothing));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn update_keeps_its_id_over_lost_connections_and_refusals() {
    let mut world = World::new();
    let (seen, mut asked) = mpsc::unbounded_channel();
    let mut tries = 0;
    let script = move |message: ToNode| {
        if let Request::Update { command, .. } = &message.body {
            seen.send((command.id, decode_op(&command.payload).unwrap())).unwrap();
            tries += 1;
            return match tries {
                // Perhaps executed, perhaps not: nobody knows.
                1 => None,
                2 => {
                    let unavailable = Reply::Unavailable { group: G, why: "busy".into() };
                    Some(vec![reply(message.request, unavailable)])
                }
                // Swallowed: the attempt times out.
                3 => Some(Vec::new()),
                _ => Some(vec![updated(message.request, 3)]),
            };
        }
        ordinary(&message)
    };
    world.node(1, "here", Box::new(script));
    let engine = world.client(Duration::from_secs(6));
    assert_eq!(engine.update(an_update()).await.unwrap(), Ok(Done::Nothing));
    let mut ids = Vec::new();
    while let Ok((id, op)) = asked.try_recv() {
        assert_eq!(op, an_update());
        ids.push(id);
    }
    // On a slow machine another attempt may time out.
    assert!(ids.len() >= 4, "{ids:?}");
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn update_of_an_expired_session_opens_it_again_under_a_new_sequence() {
    let mut world = World::new();
    let (mut opened, mut sequences) = (0, BTreeSet::new());
    let script = move |message: ToNode| match &message.body {
        Request::OpenSession { .. } => {
            opened += 1;
            ordinary(&message)
        }
        Request::Update { command, .. } => {
            assert!(sequences.insert(command.id.sequence), "a refused sequence is not used again");
            assert!(command.acknowledged_below <= command.id.sequence);
            Some(vec![match opened {
                1 => reply(message.request, Reply::UnknownSession { group: G }),
                _ => updated(message.request, 2),
            }])
        }
        _ => ordinary(&message),
    };
    world.node(1, "here", Box::new(script));
    let engine = world.client(PATIENT);
    assert_eq!(engine.update(an_update()).await.unwrap(), Ok(Done::Nothing));
    assert_eq!(engine.update(an_update()).await.unwrap(), Ok(Done::Nothing));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn update_that_nobody_answers_ends_at_the_deadline() {
    let mut world = World::new();
    let silent = |message: ToNode| ordinary(&message).or(Some(Vec::new()));
    world.node(1, "here", Box::new(silent));
    let engine = world.client(Duration::from_secs(2));
    let started = Instant::now();
    let error = engine.update(an_update()).await.unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
    assert_eq!(Errno::from(&error), Errno::ETIMEDOUT);
    assert!(started.elapsed() < Duration::from_secs(4));
}

fn lookup() -> ReadOp {
    ReadOp::Lookup { parent: DIR.ino, name: Bytes::from_static(b"x") }
}

fn applied(index: u64, invalidated: Vec<multicast::command::Key>, orphans: Vec<InodeId>) -> ToClient {
    ToClient::Event(Event { invalidated, orphans, ..Event::quiet(G, LogIndex(index)) })
}

fn nothing_found(request: u64, index: u64) -> ToClient {
    reply(request, Reply::Read { result: Ok(ReadAnswer::Lookup(None)), position: at(index) })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replica_that_does_not_know_of_the_registration_yet_is_read_nevertheless() {
    let mut world = World::new();
    let script = |message: ToNode| match &message.body {
        Request::OpenSession { .. } => Some(vec![reply(message.request, Reply::Session(at(9)))]),
        Request::Read { clock, .. } if clock.index(G) > LogIndex(8) => {
            Some(vec![reply(message.request, Reply::Behind { applied: LogIndex(8) })])
        }
        Request::Read { .. } => Some(vec![nothing_found(message.request, 8)]),
        _ => ordinary(&message),
    };
    world.node(1, "here", Box::new(script));
    let engine = world.client(Duration::from_secs(2));
    Volume::open_session(&*engine, G).await.unwrap();
    assert!(engine.is_session_open(G));
    assert_eq!(engine.read(G, lookup()).await.unwrap(), Ok(ReadAnswer::Lookup(None)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn read_goes_elsewhere_when_the_near_replica_is_behind() {
    let mut world = World::new();
    let behind = |message: ToNode| {
        ordinary(&message).or_else(|| Some(vec![reply(message.request, Reply::Behind { applied: LogIndex(1) })]))
    };
    world.node(1, "here", Box::new(behind));
    let current = |message: ToNode| ordinary(&message).or_else(|| Some(vec![nothing_found(message.request, 9)]));
    world.node(2, "there", Box::new(current));
    let engine = world.client(PATIENT);
    let answer = engine.read(G, lookup()).await.unwrap();
    assert_eq!(answer, Ok(ReadAnswer::Lookup(None)));
    assert_eq!(engine.clock().index(G), LogIndex(9));
    let cached = engine.cache().dirent(G, DIR.ino, b"x");
    assert_eq!(cached, None, "no stream of ours keeps right what another replica has said");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn near_replica_that_was_away_is_not_read_before_it_says_that_it_has_caught_up() {
    let mut world = World::new();
    let (reads, applied) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(1)));
    let (counted, now) = (reads.clone(), applied.clone());
    let near = move |message: ToNode| match message.body {
        Request::Read { .. } if counted.fetch_add(1, Ordering::Relaxed) == 0 => None,
        Request::Read { .. } => Some(vec![nothing_found(message.request, 9)]),
        Request::Members => {
            let members = Membership::genesis(&[ReplicaId(1), ReplicaId(2)]);
            let applied = Some(LogIndex(now.load(Ordering::Relaxed)));
            let groups = vec![GroupMembers { group: G, members, applied }];
            Some(vec![reply(message.request, Reply::Members(Directory { groups, nodes: Vec::new() }))])
        }
        _ => ordinary(&message),
    };
    world.node(1, "here", Box::new(near));
    let far = |message: ToNode| ordinary(&message).or_else(|| Some(vec![nothing_found(message.request, 9)]));
    world.node(2, "there", Box::new(far));
    let engine = world.client(PATIENT);
    engine.read(G, lookup()).await.unwrap().unwrap();
    assert_eq!((engine.clock().index(G), reads.load(Ordering::Relaxed)), (LogIndex(9), 1));
    let link = engine.link(ReplicaId(1)).unwrap();
    while link.generation() != Some(link::Generation(2)) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for _ in 0..5 {
        engine.read(G, ReadOp::Usage).await.unwrap().unwrap();
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert_eq!(reads.load(Ordering::Relaxed), 1, "it lacks what has been seen elsewhere");
    applied.store(9, Ordering::Relaxed);
    let begun = Instant::now();
    while reads.load(Ordering::Relaxed) == 1 {
        assert!(begun.elapsed() < PATIENT);
        engine.read(G, ReadOp::Usage).await.unwrap().unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn read_is_cached_until_the_stream_says_otherwise_or_breaks() {
    let mut world = World::new();
    let mut reads = 0;
    let script = move |message: ToNode| match &message.body {
        Request::Read { .. } => {
            reads += 1;
            Some(match reads {
                1 => vec![applied(4, Vec::new(), Vec::new()), nothing_found(message.request, 4)],
                // An event overtakes the answer to another question.
                2 => {
                    let event = applied(5, vec![key_dirent(DIR.ino, b"x")], vec![InodeId(77)]);
                    let usage = ReadAnswer::Usage { inodes: 1, bytes: 1 };
                    let answer = Reply::Read { result: Ok(usage), position: at(5) };
                    vec![event, reply(message.request, answer)]
                }
                3 => vec![nothing_found(message.request, 5)],
                _ => return None,
            })
        }
        _ => ordinary(&message),
    };
    world.node(1, "here", Box::new(script));
    let engine = world.client(Duration::from_secs(3));
    let cached = || engine.cache().dirent(G, DIR.ino, b"x");
    engine.read(G, lookup()).await.unwrap().unwrap();
    assert_eq!(cached(), Some(None), "the subscription goes before the first read");
    engine.read(G, ReadOp::Usage).await.unwrap().unwrap();
    assert_eq!(cached(), None, "invalidated before the answer that depends on it");
    assert_eq!(engine.orphans().take().await, [(G, vec![InodeId(77)])].into_iter().collect());
    engine.read(G, lookup()).await.unwrap().unwrap();
    assert_eq!(cached(), Some(None));
    engine.read(G, lookup()).await.unwrap_err();
    assert_eq!(cached(), None, "the stream is lost");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn update_without_an_answer_keeps_its_id_however_late_it_is_asked_for_again() {
    let mut world = World::new();
    let (seen, mut asked) = mpsc::unbounded_channel();
    let is_silent = Arc::new(AtomicBool::new(true));
    let silent = is_silent.clone();
    let script = move |message: ToNode| match &message.body {
        Request::Update { command, .. } => {
            seen.send((command.id.sequence, command.acknowledged_below)).unwrap();
            // Only the first is never answered.
            let swallow = silent.load(Ordering::Relaxed) && command.id.sequence == 1;
            Some(if swallow { Vec::new() } else { vec![updated(message.request, 5)] })
        }
        // Somebody looks whether the group is there, as the first update is not answered.
        Request::Read { .. } => Some(vec![usage(message.request, 5)]),
        _ => ordinary(&message),
    };
    world.node(1, "here", Box::new(script));
    let engine = world.client(Duration::from_secs(2));
    let update = Update::new(an_update());
    assert!(matches!(engine.settle(&update).await, Err(Error::Timeout { .. })));
    assert!(update.is_uncertain());
    engine.update(an_update()).await.unwrap().unwrap();
    is_silent.store(false, Ordering::Relaxed);
    assert_eq!(engine.settle(&update).await.unwrap(), Ok(Done::Nothing));
    drop(update);
    engine.update(an_update()).await.unwrap().unwrap();
    let mut sequences = Vec::new();
    while let Ok(command) = asked.try_recv() {
        sequences.push(command);
    }
    sequences.dedup();
    assert_eq!(sequences, [(1, 1), (2, 1), (1, 1), (3, 3)], "(sequence, acknowledged below)");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn update_of_unknown_fate_is_not_repeated_in_a_new_session() {
    let mut world = World::new();
    let (mut opened, mut executed) = (0, Vec::new());
    let script = move |message: ToNode| match &message.body {
        Request::OpenSession { .. } => {
            opened += 1;
            ordinary(&message)
        }
        Request::Update { command, .. } => Some(match (opened, command.id.sequence) {
            (1, 1) => Vec::new(),
            (1, _) => vec![reply(message.request, Reply::UnknownSession { group: G })],
            (_, sequence) => {
                assert_ne!(sequence, 1, "the new session would execute it again");
                executed.push(sequence);
                vec![updated(message.request, 5)]
            }
        }),
        // Somebody looks whether the group is there, as the first update is not answered.
        Request::Read { .. } => Some(vec![usage(message.request, 5)]),
        _ => ordinary(&message),
    };
    world.node(1, "here", Box::new(script));
    let engine = world.client(Duration::from_secs(2));
    let update = Update::new(an_update());
    assert!(matches!(engine.settle(&update).await, Err(Error::Timeout { .. })));
    // Finds out that the session has expired, and opens it again.
    engine.update(an_update()).await.unwrap().unwrap();
    assert!(matches!(engine.settle(&update).await, Err(Error::SessionLost { .. })));
    assert!(!update.is_uncertain(), "from now on it is a new one");
    assert_eq!(engine.settle(&update).await.unwrap(), Ok(Done::Nothing));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn update_that_a_former_primary_may_have_logged_is_uncertain() {
    let mut world = World::new();
    let mut tries = 0;
    let script = move |message: ToNode| match &message.body {
        Request::Update { .. } => {
            tries += 1;
            Some(vec![reply(
                message.request,
                match tries {
                    1 => Reply::NotPrimary { group: G, primary: None },
                    _ => Reply::UnknownSession { group: G },
                },
            )])
        }
        _ => ordinary(&message),
    };
    world.node(1, "here", Box::new(script));
    let error = world.client(PATIENT).update(an_update()).await.unwrap_err();
    assert!(matches!(error, Error::SessionLost { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn voters_that_name_each_other_are_not_asked_all_the_time() {
    let mut world = World::new();
    let asked = Arc::new(AtomicU64::new(0));
    for (number, other) in [(1, 2), (2, 1)] {
        let asked = asked.clone();
        let redirect = move |message: ToNode| match &message.body {
            Request::OpenSession { .. } => {
                asked.fetch_add(1, Ordering::Relaxed);
                let primary = Some(ReplicaId(other));
                Some(vec![reply(message.request, Reply::NotPrimary { group: G, primary })])
            }
            _ => ordinary(&message),
        };
        world.node(number, "here", Box::new(redirect));
    }
    let engine = world.client(Duration::from_secs(2));
    assert!(matches!(engine.update(an_update()).await, Err(Error::Timeout { .. })));
    let asked = asked.load(Ordering::Relaxed);
    assert!((4..40).contains(&asked), "{asked}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn token_is_adopted_only_when_its_state_was_reached() {
    let mut world = World::new();
    let applied = Arc::new(AtomicU64::new(3));
    let now = applied.clone();
    let script = move |message: ToNode| match &message.body {
        Request::Read { clock, .. } => {
            let applied = LogIndex(now.load(Ordering::Relaxed));
            Some(vec![reply(
                message.request,
                match clock.index(G) > applied {
                    true => Reply::Behind { applied },
                    false => {
                        let usage = ReadAnswer::Usage { inodes: 1, bytes: 1 };
                        Reply::Read { result: Ok(usage), position: at(applied.0) }
                    }
                },
            )])
        }
        _ => ordinary(&message),
    };
    world.node(1, "here", Box::new(script));
    let engine = world.client(Duration::from_secs(1));
    let token: VectorClock = [(G, LogIndex(9)), (GroupId(7), LogIndex(4))].into_iter().collect();
    assert!(matches!(engine.adopt(&token).await, Err(Error::Timeout { .. })));
    assert_eq!(engine.clock().index(G), LogIndex(0), "a token of another world must not stop this one");
    engine.read(G, ReadOp::Usage).await.unwrap().unwrap();
    applied.store(9, Ordering::Relaxed);
    engine.adopt(&token).await.unwrap();
    assert_eq!((engine.clock().index(G), engine.clock().index(GroupId(7))), (LogIndex(9), LogIndex(4)));
}

#[tokio::test]
async fn subscription_that_cannot_be_sent_is_asked_for_again() {
    let mut world = World::new();
    world.node(1, "here", Box::new(|_| Some(Vec::new())));
    let engine = world.client(Duration::from_secs(5));
    let link = engine.link(ReplicaId(1)).unwrap();
    // There is no connection, as if its queue were full.
    let asked = |generation| Some((ReplicaId(1), link::Generation(generation)));
    let group = engine.group(G).unwrap();
    group.stream.lock().asked = asked(1);
    link::Handler::handle_connected(&*engine.shared, &link, link::Generation(2));
    assert_eq!(*group.stream.lock(), Stream::default());
    // What another connection was asked for meanwhile stays.
    group.stream.lock().asked = asked(4);
    engine.shared.subscribe(G, &link, link::Generation(3));
    assert_eq!(group.stream.lock().asked, asked(4));
}

fn usage(request: u64, index: u64) -> ToClient {
    let usage = ReadAnswer::Usage { inodes: 1, bytes: 1 };
    reply(request, Reply::Read { result: Ok(usage), position: at(index) })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn linearizable_read_goes_to_the_primary_and_is_asked_each_time() {
    let mut world = World::new();
    let local = |message: ToNode| match &message.body {
        Request::Read { linearizable, .. } => {
            assert!(*linearizable);
            Some(vec![reply(message.request, Reply::NotPrimary { group: G, primary: Some(ReplicaId(2)) })])
        }
        _ => ordinary(&message),
    };
    world.node(1, "here", Box::new(local));
    let mut reads = 0;
    let primary = move |message: ToNode| match &message.body {
        Request::Read { linearizable, .. } => {
            assert!(*linearizable);
            reads += 1;
            Some(vec![usage(message.request, reads)])
        }
        _ => ordinary(&message),
    };
    world.node(2, "there", Box::new(primary));
    let engine = world.client_with(PATIENT, |config| config.consistency = Consistency::Linearizable);
    for index in 1..4 {
        engine.read(G, ReadOp::Usage).await.unwrap().unwrap();
        assert_eq!(engine.clock().index(G), LogIndex(index), "the primary was asked");
    }
    assert!(engine.cache().usable(G).is_none());
}

/// A node that swallows reads and updates while it is told to.
fn sulking(world: &mut World) -> Arc<AtomicBool> {
    let sulks = Arc::new(AtomicBool::new(true));
    let told = sulks.clone();
    let script = move |message: ToNode| match &message.body {
        Request::Read { .. } | Request::Update { .. } if told.load(Ordering::Relaxed) => Some(Vec::new()),
        Request::Read { .. } => Some(vec![usage(message.request, 5)]),
        Request::Update { .. } => Some(vec![updated(message.request, 5)]),
        _ => ordinary(&message),
    };
    world.node(1, "here", Box::new(script));
    sulks
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_one_deadline_a_silent_group_is_refused_at_once_until_it_answers() {
    let mut world = World::new();
    let sulks = sulking(&mut world);
    let engine = world.client(Duration::from_millis(800));
    let update = Update::new(an_update());
    let (read, settled) = tokio::join!(engine.read(G, ReadOp::Usage), engine.settle(&update));
    assert!(matches!(read, Err(Error::Timeout { .. })), "{read:?}");
    assert!(matches!(settled, Err(Error::Timeout { .. })), "{settled:?}");
    tokio::time::sleep(Duration::from_millis(800)).await;
    let started = Instant::now();
    for _ in 0..10 {
        assert!(matches!(engine.read(G, ReadOp::Usage).await, Err(Error::Unreachable { group: G, .. })));
        assert!(matches!(engine.settle(&update).await, Err(Error::Unreachable { group: G, .. })));
    }
    assert!(started.elapsed() < Duration::from_millis(400), "{:?}", started.elapsed());
    assert!(update.is_uncertain(), "it keeps its id");
    sulks.store(false, Ordering::Relaxed);
    let answered = async {
        while engine.read(G, ReadOp::Usage).await.is_err() || engine.settle(&update).await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), answered).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_to_wait_waits_beyond_the_deadline_and_then_goes_on() {
    let mut world = World::new();
    let sulks = sulking(&mut world);
    let engine = world.client_with(Duration::from_millis(400), |config| config.on_cut = OnCut::Block);
    let heal = async {
        tokio::time::sleep(Duration::from_millis(1500)).await;
        sulks.store(false, Ordering::Relaxed);
    };
    let started = Instant::now();
    let (read, updated, ()) = tokio::join!(engine.read(G, ReadOp::Usage), engine.update(an_update()), heal);
    read.unwrap().unwrap();
    updated.unwrap().unwrap();
    assert!(started.elapsed() >= Duration::from_millis(1500));
}
