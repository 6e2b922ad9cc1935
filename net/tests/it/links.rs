use std::{
    net::{SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use bytes::Bytes;
use net::{Endpoint, EndpointConfig, Error, LinkConfig, PeerLink};
use tokio::time::{sleep, timeout};

use crate::common::{Cluster, ECHO, frame, serve_echo};

const SOON: Duration = Duration::from_secs(15);

async fn restart(cluster: &Cluster, name: &str, bind: SocketAddr) -> Endpoint {
    loop {
        match Endpoint::bind(EndpointConfig { bind, ..cluster.node_config(name) }) {
            Ok(node) => return node,
            // The socket before it lingers a moment.
            Err(Error::Socket { .. }) => sleep(Duration::from_millis(10)).await,
            Err(error) => panic!("{error}"),
        }
    }
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < SOON, "{what}");
        sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn link_reconnects_after_peer_restarts_and_keeps_order() {
    let cluster = Cluster::new();
    let node = cluster.echo("us-2");
    let address = node.local_addr();
    let own = cluster.node("us-1");
    let (link, mut receiver) = PeerLink::dial(&own, address.to_string(), "us-2", ECHO, LinkConfig::default());
    assert!(link.send(frame("before the connection")));
    assert_eq!(timeout(SOON, receiver.recv()).await.unwrap().unwrap(), frame("before the connection"));
    assert!(link.is_connected() && link.status().rtt.is_some());

    node.close().await;
    drop(node);
    until("the loss is noticed", || !link.is_connected()).await;
    assert!(link.send(frame("meanwhile")));
    let status = link.status();
    assert!(status.connected_since.is_none() && status.queued == (1, 9), "{status:?}");
    sleep(Duration::from_millis(300)).await;
    assert!(link.status().last_error.is_some());

    serve_echo(restart(&cluster, "us-2", address).await);
    assert_eq!(timeout(SOON, receiver.recv()).await.unwrap().unwrap(), frame("meanwhile"));
    for at in 0..1000u32 {
        assert!(link.send(Bytes::copy_from_slice(&at.to_le_bytes())));
    }
    for at in 0..1000u32 {
        assert_eq!(timeout(SOON, receiver.recv()).await.unwrap().unwrap(), at.to_le_bytes()[..]);
    }
    assert_eq!((link.status().connects, link.status().dropped), (2, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn link_without_peer_drops_the_oldest_and_counts() {
    let cluster = Cluster::new();
    let own = cluster.node("us-1");
    let address = {
        let gone = cluster.node("us-2");
        let address = gone.local_addr();
        gone.close().await;
        address
    };
    let config = LinkConfig { backlog_frames_max: 3, ..LinkConfig::default() };
    let (link, mut receiver) = PeerLink::dial(&own, address.to_string(), "us-2", ECHO, config);
    let kept: Vec<bool> = ["a", "b", "c", "d", "e"].map(|text| link.send(frame(text))).into();
    assert_eq!(kept, [true, true, true, false, false]);
    assert_eq!(link.status().dropped, 2);
    serve_echo(restart(&cluster, "us-2", address).await);
    for expected in ["c", "d", "e"] {
        assert_eq!(timeout(SOON, receiver.recv()).await.unwrap().unwrap(), frame(expected));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn link_that_is_told_that_its_peer_is_there_dials_at_once() {
    let cluster = Cluster::new();
    let own = cluster.node("us-1");
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap();
    let hour = Duration::from_secs(3600);
    let config = LinkConfig {
        connect_timeout: Duration::from_millis(100),
        pause_min: hour,
        pause_max: hour,
        ..LinkConfig::default()
    };
    let (link, _receiver) = PeerLink::dial(&own, address.to_string(), "us-2", ECHO, config);
    until("an attempt fails", || link.status().last_error.is_some()).await;
    drop(silent);
    serve_echo(restart(&cluster, "us-2", address).await);
    // One attempt may be too short on a busy machine.
    let begun = Instant::now();
    while !link.is_connected() {
        assert!(begun.elapsed() < SOON);
        link.redial();
        sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn link_to_wrong_node_or_silent_address_never_connects() {
    let cluster = Cluster::new();
    let own = cluster.node("us-1");
    let imposter = cluster.echo("us-3");
    let config = LinkConfig::default();
    let (link, _receiver) = PeerLink::dial(&own, imposter.local_addr().to_string(), "us-2", ECHO, config.clone());
    until("an error is shown", || link.status().last_error.is_some()).await;
    assert!(!link.is_connected());
    let (nowhere, _receiver) = PeerLink::dial(&own, "no-such-host.invalid:1", "us-2", ECHO, config);
    until("an error is shown", || nowhere.status().last_error.is_some()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn passive_link_uses_the_connection_of_the_dialling_side() {
    let cluster = Cluster::new();
    let (first, second) = (cluster.node("us-1"), cluster.node("us-2"));
    let (dialling, mut at_first) =
        PeerLink::dial(&first, second.local_addr().to_string(), "us-2", ECHO, LinkConfig::default());
    let (passive, mut at_second) = PeerLink::passive("us-1", LinkConfig::default());
    assert!(passive.send(frame("early")));
    assert!(passive.attach(second.accept().await.unwrap()));
    assert!(dialling.send(frame("ping")));
    assert_eq!(timeout(SOON, at_second.recv()).await.unwrap().unwrap(), frame("ping"));
    assert_eq!(timeout(SOON, at_first.recv()).await.unwrap().unwrap(), frame("early"));
    assert!(passive.send(frame("pong")));
    assert_eq!(timeout(SOON, at_first.recv()).await.unwrap().unwrap(), frame("pong"));

    drop(dialling);
    until("the passive side notices", || !passive.is_connected()).await;
    assert!(timeout(SOON, at_first.recv()).await.unwrap().is_none());
    let (again, _at_first) =
        PeerLink::dial(&first, second.local_addr().to_string(), "us-2", ECHO, LinkConfig::default());
    assert!(passive.attach(timeout(SOON, second.accept()).await.unwrap().unwrap()));
    assert!(again.send(frame("again")));
    assert_eq!(timeout(SOON, at_second.recv()).await.unwrap().unwrap(), frame("again"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn link_whose_frames_nobody_reads_still_reconnects() {
    let cluster = Cluster::new();
    let mut node = cluster.echo("us-2");
    let own = cluster.node("us-1");
    let address = node.local_addr();
    let (link, _receiver) = PeerLink::dial(&own, address.to_string(), "us-2", ECHO, LinkConfig::default());
    for connects in 1..4 {
        until("it connects", || link.status().connects == connects && link.is_connected()).await;
        link.send(frame("x"));
        node.close().await;
        drop(node);
        until("the loss is noticed", || !link.is_connected()).await;
        node = restart(&cluster, "us-2", address).await;
        serve_echo(node.clone());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn passive_link_refuses_another_member() {
    let cluster = Cluster::new();
    let (own, other) = (cluster.node("us-1"), cluster.node("us-3"));
    let (passive, _receiver) = PeerLink::passive("us-2", LinkConfig::default());
    let (dialling, _frames) = PeerLink::dial(&other, own.local_addr().to_string(), "us-1", ECHO, LinkConfig::default());
    assert!(!passive.attach(own.accept().await.unwrap()));
    assert!(!passive.is_connected());
    until("the other side hears of it", || dialling.status().last_error.is_some()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn link_to_crashed_node_returns_as_soon_as_the_node_does() {
    let cluster = Cluster::new();
    let node_config = cluster.node_config("us-2");
    let mut config = cluster.node_config("us-1");
    config.tuning.idle_timeout = Duration::from_secs(300);
    config.tuning.keep_alive = Duration::from_millis(200);
    let own = Endpoint::bind(config).unwrap();
    let doomed = net::runtime("doomed").unwrap();
    let first = node_config.clone();
    let node = doomed
        .spawn(async move {
            let mut config = first;
            config.tuning.idle_timeout = Duration::from_secs(300);
            let node = Endpoint::bind(config).unwrap();
            serve_echo(node.clone());
            node
        })
        .await
        .unwrap();
    let address = node.local_addr();
    let (link, mut receiver) = PeerLink::dial(&own, address.to_string(), "us-2", ECHO, LinkConfig::default());
    link.send(frame("a"));
    timeout(SOON, receiver.recv()).await.unwrap().unwrap();
    // Nobody is told: the sockets are closed with the runtime's tasks.
    doomed.shutdown_background();
    drop(node);
    sleep(Duration::from_millis(300)).await;
    assert!(link.is_connected(), "nothing has told it otherwise");
    let again = loop {
        match Endpoint::bind(EndpointConfig { bind: address, ..node_config.clone() }) {
            Ok(node) => break node,
            Err(_) => sleep(Duration::from_millis(10)).await,
        }
    };
    serve_echo(again);
    until("the reset is heard", || link.status().connects == 2).await;
    link.send(frame("b"));
    assert_eq!(timeout(SOON, receiver.recv()).await.unwrap().unwrap(), frame("b"));
}
