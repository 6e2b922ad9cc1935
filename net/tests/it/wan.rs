use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use net::{
    Endpoint, FrameReceiver, FrameSender, LinkConfig, PeerLink,
    wan::{Matrix, Wan, WanSide, update_file, write_file},
};
use tokio::time::{sleep, timeout};

use crate::common::{Cluster, ECHO, frame, serve_echo};

const SOON: Duration = Duration::from_secs(20);

fn regions() -> Vec<String> {
    ["us", "eu", "ap"].map(String::from).into()
}

/// An echoing node in `eu`, and a member in `us` that is connected to it.
struct Pair {
    cluster: Cluster,
    wan: Arc<Wan>,
    node: Endpoint,
}

impl Pair {
    fn new(matrix: Matrix) -> Self {
        let (cluster, wan) = (Cluster::new(), Wan::fixed(matrix));
        let mut config = cluster.node_config("eu-1");
        config.wan = Some(WanSide::node(wan.clone(), "eu", vec![]));
        let node = Endpoint::bind(config).unwrap();
        serve_echo(node.clone());
        Pair { cluster, wan, node }
    }

    fn client(&self) -> Endpoint {
        let mut config = self.cluster.client_config("laptop");
        let nodes = vec![(self.node.local_addr(), "eu".into())];
        config.wan = Some(WanSide::client(self.wan.clone(), "us", nodes));
        Endpoint::bind(config).unwrap()
    }

    async fn open(&self, client: &Endpoint) -> (FrameSender, FrameReceiver) {
        let connection = client.connect(self.node.local_addr(), "eu-1").await.unwrap();
        connection.open(ECHO).await.unwrap()
    }

    fn change(&self, change: impl FnOnce(&mut Matrix)) {
        let mut matrix = (*self.wan.matrix()).clone();
        change(&mut matrix);
        self.wan.set(matrix).unwrap();
    }
}

async fn round_trip(sender: &FrameSender, receiver: &mut FrameReceiver) -> Duration {
    let begun = Instant::now();
    sender.send(frame("ping")).await.unwrap();
    timeout(SOON, receiver.recv()).await.unwrap().unwrap().unwrap();
    begun.elapsed()
}

/// The shortest of several: others use the machine too.
async fn best_round_trip(sender: &FrameSender, receiver: &mut FrameReceiver, rounds: usize) -> Duration {
    let mut best = Duration::MAX;
    for _ in 0..rounds {
        best = best.min(round_trip(sender, receiver).await);
    }
    best
}

fn assert_between(what: Duration, low_ms: f64, high_ms: f64) {
    let ms = what.as_secs_f64() * 1e3;
    assert!((low_ms..high_ms).contains(&ms), "{ms} ms is not in {low_ms}..{high_ms} ms");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn client_sees_the_round_trip_of_its_region_both_ways() {
    let pair = Pair::new(Matrix::preset("geo3", &regions()).unwrap());
    let client = pair.client();
    let (sender, mut receiver) = pair.open(&client).await;
    assert_between(best_round_trip(&sender, &mut receiver, 4).await, 69.0, 140.0);
    pair.change(|matrix| matrix.set_rtt("us", "eu", Duration::from_millis(10)).unwrap());
    best_round_trip(&sender, &mut receiver, 2).await;
    assert_between(best_round_trip(&sender, &mut receiver, 10).await, 9.0, 50.0);
    // One direction is the sender's, the other the receiver's.
    pair.change(|matrix| matrix.set_one_way("eu", "us", Duration::from_millis(45)).unwrap());
    assert_between(best_round_trip(&sender, &mut receiver, 4).await, 49.0, 120.0);
    pair.change(|matrix| matrix.set_rtt("us", "eu", Duration::ZERO).unwrap());
    best_round_trip(&sender, &mut receiver, 2).await;
    assert_between(best_round_trip(&sender, &mut receiver, 50).await, 0.0, 8.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_delay_what_they_send_to_each_other() {
    let cluster = Cluster::new();
    let wan = Wan::fixed(Matrix::preset("geo3-fast", &regions()).unwrap());
    // Addresses must be known before: bind to find free ports.
    let addresses = ["us-1", "eu-1"].map(|name| cluster.node(name).local_addr());
    sleep(Duration::from_millis(200)).await;
    let nodes = vec![(addresses[0], "us".to_owned()), (addresses[1], "eu".to_owned())];
    let [us, eu] = ["us", "eu"].map(|region| {
        let at = usize::from(region == "eu");
        let mut config = cluster.node_config(&format!("{region}-1"));
        config.bind = addresses[at];
        config.wan = Some(WanSide::node(wan.clone(), region, nodes.clone()));
        Endpoint::bind(config).unwrap()
    });
    serve_echo(eu.clone());
    let connection = us.connect(eu.local_addr(), "eu-1").await.unwrap();
    let (sender, mut receiver) = connection.open(ECHO).await.unwrap();
    assert_between(best_round_trip(&sender, &mut receiver, 10).await, 6.8, 50.0);
    assert_eq!(wan.one_way("us", "eu"), Some(Duration::from_micros(3500)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cut_stops_everything_in_flight_and_heal_resumes() {
    let pair = Pair::new(Matrix::preset("geo3-fast", &regions()).unwrap());
    pair.change(|matrix| matrix.set_rtt("us", "eu", Duration::from_millis(400)).unwrap());
    let client = pair.client();
    let (sender, mut receiver) = pair.open(&client).await;
    round_trip(&sender, &mut receiver).await;
    sender.send(frame("in flight")).await.unwrap();
    sleep(Duration::from_millis(20)).await;
    pair.change(|matrix| matrix.cut("us", "eu").unwrap());
    assert_eq!(pair.wan.one_way("us", "eu"), None);
    assert!(timeout(Duration::from_millis(800), receiver.recv()).await.is_err(), "lost on its way");
    pair.change(|matrix| {
        matrix.heal();
        matrix.set_rtt("us", "eu", Duration::from_millis(10)).unwrap();
    });
    assert_eq!(timeout(SOON, receiver.recv()).await.unwrap().unwrap().unwrap(), frame("in flight"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_way_cut_blocks_only_that_direction() {
    let cluster = Cluster::new();
    let wan = Wan::fixed(Matrix::flat(&regions()).unwrap());
    let node = cluster.node("eu-1");
    let mut config = cluster.client_config("laptop");
    config.wan = Some(WanSide::client(wan.clone(), "us", vec![(node.local_addr(), "eu".into())]));
    let client = Endpoint::bind(config).unwrap();
    let connection = client.connect(node.local_addr(), "eu-1").await.unwrap();
    let (sender, mut receiver) = connection.open(ECHO).await.unwrap();
    sender.send(frame("first")).await.unwrap();
    let mut incoming = node.accept().await.unwrap();
    incoming.receiver.recv().await.unwrap().unwrap();
    let mut matrix = (*wan.matrix()).clone();
    matrix.cut_one_way("eu", "us").unwrap();
    wan.set(matrix).unwrap();
    sender.send(frame("there")).await.unwrap();
    assert_eq!(timeout(SOON, incoming.receiver.recv()).await.unwrap().unwrap().unwrap(), frame("there"));
    incoming.sender.send(frame("back")).await.unwrap();
    assert!(timeout(Duration::from_millis(500), receiver.recv()).await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn link_through_long_cut_is_lost_within_idle_timeout_and_returns() {
    let pair = Pair::new(Matrix::flat(&regions()).unwrap());
    let mut config = pair.cluster.node_config("us-1");
    config.wan = Some(WanSide::client(pair.wan.clone(), "us", vec![(pair.node.local_addr(), "eu".into())]));
    config.tuning.idle_timeout = Duration::from_millis(800);
    config.tuning.keep_alive = Duration::from_millis(200);
    let own = Endpoint::bind(config).unwrap();
    let (link, mut receiver) =
        PeerLink::dial(&own, pair.node.local_addr().to_string(), "eu-1", ECHO, LinkConfig::default());
    link.send(frame("a"));
    timeout(SOON, receiver.recv()).await.unwrap().unwrap();
    pair.change(|matrix| matrix.cut("us", "*").unwrap());
    let begun = Instant::now();
    while link.is_connected() {
        assert!(begun.elapsed() < Duration::from_secs(5));
        sleep(Duration::from_millis(10)).await;
    }
    assert!(link.send(frame("b")));
    pair.change(Matrix::heal);
    assert_eq!(timeout(SOON, receiver.recv()).await.unwrap().unwrap(), frame("b"));
    assert_eq!(link.status().connects, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn loss_and_jitter_slow_down_but_lose_nothing() {
    let mut matrix = Matrix::flat(&regions()).unwrap();
    matrix.set_rtt("us", "eu", Duration::from_millis(4)).unwrap();
    matrix.set_loss("us", "eu", 3.0).unwrap();
    matrix.set_jitter("us", "eu", Duration::from_millis(3)).unwrap();
    let pair = Pair::new(matrix);
    let client = pair.client();
    let (sender, mut receiver) = pair.open(&client).await;
    tokio::spawn(async move {
        for at in 0..3000u32 {
            sender.send(Bytes::from(at.to_le_bytes().repeat(100))).await.unwrap();
        }
        std::future::pending::<()>().await;
    });
    for at in 0..3000u32 {
        let frame = timeout(SOON, receiver.recv()).await.unwrap().unwrap().unwrap();
        assert_eq!(frame, at.to_le_bytes().repeat(100));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bulk_over_long_fat_link_is_not_capped_by_windows() {
    let pair = Pair::new(Matrix::preset("geo3", &regions()).unwrap());
    let client = pair.client();
    let (sender, mut receiver) = pair.open(&client).await;
    let (count, length) = (24, 1 << 20);
    // Congestion control needs some round trips to find the bandwidth.
    let begun = Instant::now();
    tokio::spawn(async move {
        for _ in 0..count {
            sender.send(Bytes::from(vec![7; length])).await.unwrap();
        }
        std::future::pending::<()>().await;
    });
    for _ in 0..count {
        assert_eq!(timeout(SOON, receiver.recv()).await.unwrap().unwrap().unwrap().len(), length);
    }
    let elapsed = begun.elapsed();
    assert!(elapsed < Duration::from_secs(10), "{count} MiB echoed took {elapsed:?}");
}

#[test]
fn file_changed_is_followed_and_bad_versions_are_not_used() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("wan");
    assert!(Wan::watch(&path).is_err());
    write_file(&path, &Matrix::preset("geo3", &regions()).unwrap()).unwrap();
    let wan = Wan::watch(&path).unwrap();
    assert_eq!(wan.one_way("us", "eu"), Some(Duration::from_millis(35)));
    let until = |expected| {
        let begun = Instant::now();
        while wan.one_way("us", "eu") != expected {
            assert!(begun.elapsed() < SOON);
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    update_file(&path, |matrix| matrix.cut("us", "eu")).unwrap();
    until(None);
    assert!(update_file(&path, |matrix| matrix.cut("us", "mars")).is_err());
    std::fs::write(&path, "regions us eu\n").unwrap();
    std::thread::sleep(Duration::from_millis(150));
    std::fs::write(&path, "nonsense\n").unwrap();
    std::thread::sleep(Duration::from_millis(150));
    assert_eq!(wan.one_way("us", "eu"), None, "what was valid stays");
    let mut matrix = Matrix::preset("geo3", &regions()).unwrap();
    matrix.set_rtt("us", "eu", Duration::from_millis(80)).unwrap();
    write_file(&path, &matrix).unwrap();
    until(Some(Duration::from_millis(40)));
    assert_eq!(wan.one_way("mars", "us"), Some(Duration::ZERO));
}

#[tokio::test]
async fn endpoint_in_unknown_region_fails() {
    let cluster = Cluster::new();
    let wan = Wan::fixed(Matrix::flat(&regions()).unwrap());
    let mut config = cluster.client_config("laptop");
    config.wan = Some(WanSide::client(wan, "mars", vec![]));
    let error = Endpoint::bind(config).unwrap_err().to_string();
    assert!(error.contains("mars") && error.contains("us, eu, ap"), "{error}");
}
