use std::time::Duration;

use bytes::Bytes;
use net::{
    ChannelKind, Endpoint, EndpointConfig, Error, PeerName, Role, TrySendError,
    rpc::{Calls, Message},
};
use tokio::time::timeout;

use crate::common::{Cluster, ECHO, LOCAL, frame, open, serve_echo};

const SOON: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ping_pong_over_loopback_returns_each_frame() {
    let cluster = Cluster::new();
    let (node, client) = (cluster.echo("us-1"), cluster.client("laptop"));
    let (connection, sender, mut receiver) = open(&client, &node, "us-1").await;
    assert_eq!(connection.peer(), &PeerName::node("us-1"));
    for round in 0..200u32 {
        sender.send(Bytes::copy_from_slice(&round.to_le_bytes())).await.unwrap();
        assert_eq!(receiver.recv().await.unwrap().unwrap(), round.to_le_bytes()[..]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pipelined_echo_keeps_order_over_all_sizes() {
    let cluster = Cluster::new();
    let (node, client) = (cluster.echo("us-1"), cluster.client("laptop"));
    let (_connection, sender, mut receiver) = open(&client, &node, "us-1").await;
    let length = |at: usize| match at % 100 {
        0 => 100_000,
        n if n < 5 => 0,
        n => n * 50,
    };
    let sending = tokio::spawn(async move {
        for at in 0..5000 {
            sender.send(Bytes::from(vec![at as u8; length(at)])).await.unwrap();
        }
        sender
    });
    for at in 0..5000 {
        let frame = timeout(SOON, receiver.recv()).await.unwrap().unwrap().unwrap();
        assert_eq!(frame, vec![at as u8; length(at)], "frame {at}");
    }
    drop(sending.await.unwrap());
    assert!(timeout(SOON, receiver.recv()).await.unwrap().unwrap().is_none(), "the echo ends with us");
}

#[tokio::test]
async fn acceptor_sees_verified_peer_and_kind() {
    let cluster = Cluster::new();
    let (node, other, client) = (cluster.node("us-1"), cluster.node("us-2"), cluster.client("laptop"));
    let (_first, sender, _receiver) = open(&client, &node, "us-1").await;
    sender.send(frame("hello")).await.unwrap();
    let mut incoming = node.accept().await.unwrap();
    assert_eq!((incoming.peer.clone(), incoming.kind), (PeerName::client("laptop"), ECHO));
    assert_eq!(incoming.receiver.recv().await.unwrap().unwrap(), frame("hello"));
    let second = other.connect(node.local_addr(), "us-1").await.unwrap();
    let _channel = second.open(ChannelKind::new(1, 2)).await.unwrap();
    let incoming = node.accept().await.unwrap();
    assert_eq!((incoming.peer.to_string(), incoming.kind.version), ("node.us-2.globalfs".into(), 2));
}

#[tokio::test]
async fn sender_to_slow_peer_is_bounded_and_goes_on_when_read() {
    let cluster = Cluster::new();
    let (node, mut config) = (cluster.node("us-1"), cluster.client_config("laptop"));
    config.limits.queue_frames_max = 10;
    config.tuning.send_window_bytes = 100_000;
    let client = Endpoint::bind(config).unwrap();
    let (_connection, sender, _receiver) = open(&client, &node, "us-1").await;
    sender.send(frame("first")).await.unwrap();
    let mut incoming = node.accept().await.unwrap();
    let mut sent = 1;
    let large = Bytes::from(vec![1; 50_000]);
    loop {
        match sender.try_send(large.clone()) {
            Ok(()) => sent += 1,
            Err(TrySendError::Full(_)) if timeout(SOON / 20, sender.send(large.clone())).await.is_err() => break,
            Err(TrySendError::Full(_)) => sent += 1,
            Err(error) => panic!("{error:?}"),
        }
    }
    assert!(sent < 1000, "the receive window of a client bounds what the node holds");
    let waiting = tokio::spawn({
        let sender = sender.clone();
        async move { sender.send(frame("last")).await }
    });
    for _ in 0..sent {
        timeout(SOON, incoming.receiver.recv()).await.unwrap().unwrap().unwrap();
    }
    waiting.await.unwrap().unwrap();
    assert_eq!(incoming.receiver.recv().await.unwrap().unwrap(), frame("last"));
}

#[tokio::test]
async fn frame_above_limit_is_refused_on_both_sides() {
    let cluster = Cluster::new();
    let mut config = cluster.node_config("us-1");
    config.limits.frame_len_bytes_max = 1000;
    let node = Endpoint::bind(config).unwrap();
    let client = cluster.client("laptop");
    let (_connection, sender, _receiver) = open(&client, &node, "us-1").await;
    sender.send(Bytes::from(vec![0; 1001])).await.unwrap();
    let mut incoming = node.accept().await.unwrap();
    let error = incoming.receiver.recv().await.unwrap_err();
    assert!(matches!(error, Error::FrameTooLong { len_bytes: 1001, len_bytes_max: 1000 }), "{error}");
    assert_eq!(incoming.sender.try_send(Bytes::from(vec![0; 1001])), Err(TrySendError::TooLong));
    assert!(incoming.sender.send(Bytes::from(vec![0; 1001])).await.is_err());
}

#[tokio::test]
async fn sender_after_peer_dropped_receiver_fails() {
    let cluster = Cluster::new();
    let (node, client) = (cluster.node("us-1"), cluster.client("laptop"));
    let (connection, sender, mut receiver) = open(&client, &node, "us-1").await;
    sender.send(frame("x")).await.unwrap();
    drop(node.accept().await.unwrap());
    timeout(SOON, async {
        while sender.send(frame("y")).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
    assert!(sender.is_closed());
    assert!(receiver.recv().await.unwrap().is_none());
    assert!(!connection.is_closed(), "the connection outlives its channels");
}

#[tokio::test]
async fn endpoint_closed_tells_peers_at_once() {
    let cluster = Cluster::new();
    let (node, client) = (cluster.echo("us-1"), cluster.client("laptop"));
    let (connection, sender, mut receiver) = open(&client, &node, "us-1").await;
    sender.send(frame("x")).await.unwrap();
    receiver.recv().await.unwrap().unwrap();
    node.close().await;
    timeout(Duration::from_secs(2), connection.closed()).await.unwrap();
    assert!(receiver.recv().await.is_err());
    assert!(node.accept().await.is_none());
}

#[tokio::test]
async fn second_endpoint_on_same_address_fails_naming_it() {
    let cluster = Cluster::new();
    let node = cluster.node("us-1");
    let config = EndpointConfig { bind: node.local_addr(), ..cluster.node_config("us-2") };
    let error = Endpoint::bind(config).unwrap_err().to_string();
    assert!(error.contains(&node.local_addr().to_string()), "{error}");
    let client = EndpointConfig::node(LOCAL, cluster.identity(Role::Client, "laptop"));
    assert!(Endpoint::bind(client).is_err(), "a client's certificate may not serve");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_pipelined_get_their_own_replies_and_time_out() {
    let cluster = Cluster::new();
    let node = cluster.node("us-1");
    let server = node.clone();
    tokio::spawn(async move {
        let mut incoming = server.accept().await.unwrap();
        let mut held = Vec::new();
        while let Some(received) = incoming.receiver.recv().await.unwrap() {
            let Message::Request { id, body } = Message::decode(received).unwrap() else { panic!() };
            if body == "never" {
                continue;
            }
            // Answer in pairs and in reverse, with an event before.
            held.push(Message::Reply { id, body });
            if held.len() == 2 {
                incoming.sender.send(Message::Event { body: frame("event") }.encode()).await.unwrap();
                for reply in held.drain(..).rev() {
                    incoming.sender.send(reply.encode()).await.unwrap();
                }
            }
        }
    });
    let client = cluster.client("laptop");
    let (connection, sender, mut receiver) = open(&client, &node, "us-1").await;
    let calls = Calls::<Bytes>::new(100);
    let reading = tokio::spawn({
        let calls = calls.clone();
        async move {
            let mut events = 0;
            while let Ok(Some(frame)) = receiver.recv().await {
                match Message::decode(frame).unwrap() {
                    Message::Reply { id, body } => drop(calls.complete(id, body)),
                    Message::Event { .. } => events += 1,
                    Message::Request { .. } => panic!(),
                }
            }
            calls.fail("gone");
            events
        }
    });
    let mut replies = Vec::new();
    for at in 0..100u8 {
        let (id, reply) = calls.begin().unwrap();
        sender.send(Message::Request { id, body: Bytes::from(vec![at]) }.encode()).await.unwrap();
        replies.push(reply);
    }
    assert!(matches!(calls.begin(), Err(Error::Full(_))));
    for (at, reply) in replies.into_iter().enumerate() {
        assert_eq!(reply.within(SOON).await.unwrap(), vec![at as u8]);
    }
    let (id, reply) = calls.begin().unwrap();
    sender.send(Message::Request { id, body: frame("never") }.encode()).await.unwrap();
    assert!(matches!(reply.within(Duration::from_millis(50)).await, Err(Error::Timeout { .. })));
    assert_eq!(calls.waiting(), 0, "a call given up holds nothing");
    let (_, reply) = calls.begin().unwrap();
    connection.close("done");
    assert!(matches!(reply.within(SOON).await, Err(Error::Lost(reason)) if reason == "gone"));
    assert_eq!(reading.await.unwrap(), 50);
    assert!(calls.begin().is_err());
}

#[tokio::test]
async fn many_clients_are_served_up_to_the_limit() {
    let cluster = Cluster::new();
    let mut config = cluster.node_config("us-1");
    config.limits.client_connections_max = 3;
    let node = Endpoint::bind(config).unwrap();
    serve_echo(node.clone());
    let client = cluster.client("laptop");
    let mut open_channels = Vec::new();
    for _ in 0..3 {
        let (connection, sender, mut receiver) = open(&client, &node, "us-1").await;
        sender.send(frame("x")).await.unwrap();
        receiver.recv().await.unwrap().unwrap();
        open_channels.push((connection, sender, receiver));
    }
    assert_eq!(node.connections(), 3);
    let fourth = client.connect(node.local_addr(), "us-1").await.unwrap();
    let reason = timeout(SOON, fourth.closed()).await.unwrap().to_string();
    assert!(reason.contains("too many clients"), "{reason}");
    let peer = cluster.node("us-2");
    let (_connection, sender, mut receiver) = open(&peer, &node, "us-1").await;
    sender.send(frame("nodes still get in")).await.unwrap();
    receiver.recv().await.unwrap().unwrap();
}
