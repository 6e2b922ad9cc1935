//! Figures rather than checks: `cargo nextest run --release -p net --run-ignored only --no-capture`.

use std::time::{Duration, Instant};

use bytes::Bytes;
use net::{
    Endpoint, FrameReceiver, FrameSender,
    wan::{Matrix, Wan, WanSide},
};

use tokio::runtime::{Builder, Runtime};

use crate::common::{Cluster, ECHO, serve_echo};

const LENGTH: usize = 200;

fn cpu() -> Duration {
    let usage = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(usage.tv_sec as u64, usage.tv_nsec as u32)
}

/// A runtime of `workers` threads, or of one thread that does nothing else.
fn runtime(workers: usize) -> Runtime {
    match workers {
        0 => Builder::new_current_thread().enable_all().build().unwrap(),
        _ => Builder::new_multi_thread().worker_threads(workers).enable_all().build().unwrap(),
    }
}

/// A client of a node that echoes in a runtime of its own, as another process would.
async fn echoing(wan: Option<Matrix>, workers: usize) -> (Endpoint, FrameSender, FrameReceiver) {
    let cluster = Cluster::new();
    let wan = wan.map(Wan::fixed);
    let mut config = cluster.node_config("eu-1");
    config.wan = wan.clone().map(|wan| WanSide::node(wan, "eu", vec![]));
    let (bound, address) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        runtime(workers).block_on(async {
            let node = Endpoint::bind(config).unwrap();
            bound.send(node.local_addr()).unwrap();
            serve_echo(node);
            std::future::pending::<()>().await;
        });
    });
    let address = address.await.unwrap();
    let mut config = cluster.client_config("laptop");
    config.wan = wan.map(|wan| WanSide::client(wan, "us", vec![(address, "eu".into())]));
    let client = Endpoint::bind(config).unwrap();
    let connection = client.connect(address, "eu-1").await.unwrap();
    let (sender, receiver) = connection.open(ECHO).await.unwrap();
    (client, sender, receiver)
}

fn measure(name: &str, wan: Option<Matrix>, workers: usize, outstanding: usize, time: Duration) {
    let name = format!("{name}, {workers} workers");
    let runtime = runtime(workers);
    let measured = async move { measure_echo(&name, wan, workers, outstanding, time).await };
    runtime.block_on(async { tokio::spawn(measured).await.unwrap() });
}

async fn measure_echo(name: &str, wan: Option<Matrix>, workers: usize, outstanding: usize, time: Duration) {
    let (_client, sender, mut receiver) = echoing(wan, workers).await;
    let frame = Bytes::from(vec![1; LENGTH]);
    let mut sent = std::collections::VecDeque::new();
    let mut latencies = Vec::new();
    let mut frames = Vec::new();
    // Congestion window, MTU discovery and allocator settle first.
    for warm in [true, false] {
        let (begun, cpu_begun) = (Instant::now(), cpu());
        latencies.clear();
        while begun.elapsed() < time {
            while sent.len() < outstanding {
                sender.send(frame.clone()).await.unwrap();
                sent.push_back(Instant::now());
            }
            let count = receiver.recv_many(&mut frames, outstanding).await.unwrap();
            frames.clear();
            latencies.extend(sent.drain(..count).map(|at| at.elapsed()));
        }
        if warm {
            continue;
        }
        let (elapsed, cpu) = (begun.elapsed(), cpu() - cpu_begun);
        latencies.sort();
        let count = latencies.len();
        println!(
            "{name:>26} x{outstanding:<4} {:>8.0} op/s  p50 {:>7.1} us  p99 {:>8.1} us  CPU {:>6.2} us/op",
            count as f64 / elapsed.as_secs_f64(),
            latencies[count / 2].as_secs_f64() * 1e6,
            latencies[count * 99 / 100].as_secs_f64() * 1e6,
            cpu.as_secs_f64() * 1e6 / count as f64,
        );
    }
}

#[test]
#[ignore = "a measurement"]
fn echo_without_and_with_emulation() {
    let regions: Vec<String> = ["us", "eu", "ap"].map(String::from).into();
    let held = |rtt_us| {
        let mut matrix = Matrix::parse("regions us eu ap\nmin-hold 0\n").unwrap();
        matrix.set_rtt("us", "eu", Duration::from_micros(rtt_us)).unwrap();
        matrix
    };
    let preset = |name| Matrix::preset(name, &regions).unwrap();
    let time = Duration::from_millis(1500);
    for outstanding in [1, 16, 256] {
        measure("none", None, 1, outstanding, time);
        measure("lan3", Some(preset("lan3")), 1, outstanding, time);
        measure("200 us held", Some(held(200)), 1, outstanding, time);
        measure("500 us held", Some(held(500)), 1, outstanding, time);
        measure("geo3-fast 7 ms", Some(preset("geo3-fast")), 1, outstanding, time);
        measure("geo3 70 ms", Some(preset("geo3")), 1, outstanding, time);
    }
}

#[test]
#[ignore = "a measurement"]
fn echo_with_few_and_many_workers() {
    for outstanding in [1, 16, 256] {
        for workers in [0, 1, 2, 4] {
            measure("none", None, workers, outstanding, Duration::from_millis(1500));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
#[ignore = "a measurement"]
async fn bulk_without_and_with_emulation() {
    let regions: Vec<String> = ["us", "eu", "ap"].map(String::from).into();
    for name in [None, Some("lan3"), Some("geo3-fast"), Some("geo3")] {
        let (_client, sender, mut receiver) =
            echoing(name.map(|name| Matrix::preset(name, &regions).unwrap()), 1).await;
        let (begun, cpu_begun, count) = (Instant::now(), cpu(), 200);
        let sending = async {
            for _ in 0..count {
                sender.send(Bytes::from(vec![1; 1 << 20])).await.unwrap();
            }
        };
        let receiving = async {
            for _ in 0..count {
                receiver.recv().await.unwrap().unwrap();
            }
        };
        tokio::join!(sending, receiving);
        let (elapsed, cpu) = (begun.elapsed().as_secs_f64(), (cpu() - cpu_begun).as_secs_f64());
        println!(
            "{:>16} {:>6.1} MiB/s each way, CPU {:.2} ms/MiB each way",
            name.unwrap_or("none"),
            f64::from(count) / elapsed,
            cpu * 1e3 / f64::from(2 * count)
        );
    }
}
