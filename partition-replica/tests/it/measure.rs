//! Not run by default: `cargo nextest run --release -p partition-replica --run-ignored only --no-capture measure`.

use std::time::Instant;

use metadata::op::{FsOp, NewNode};
use metadata::protocol::{Reply, Request};
use multicast::ids::GroupId;

use crate::client::Client;
use crate::cluster::Cluster;

/// CPU time of the whole process: three nodes and the client.
fn cpu_ms() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    10 * (fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap())
}

#[test]
#[ignore = "a measurement"]
fn measure_creates_in_one_group() {
    let cluster = Cluster::start();
    let mut client = Client::open(&cluster, 1);
    let dirs: Vec<_> = (0..8)
        .map(|count| {
            let name = format!("d{count}");
            let parent = if count == 0 { client.placed_directory(&cluster, 1) } else { crate::client::ROOT };
            let node = NewNode::Directory { placement: Some(GroupId(1)) };
            if count == 0 { parent } else { client.create(&cluster, parent, &name, node, GroupId(1)) }
        })
        .collect();
    let primary = cluster.primary(GroupId(1)).unwrap();
    let mut count = 0_u64;
    for outstanding in [1, 16, 64, 256] {
        let (started, cpu) = (Instant::now(), cpu_ms());
        let flushes = |n| cluster.node(n).status().storage.log_flushes;
        let before: Vec<u64> = (1..=3).map(flushes).collect();
        let mut done = 0;
        while started.elapsed().as_secs() < 3 {
            let mut requests = Vec::new();
            for _ in 0..outstanding {
                count += 1;
                let op = FsOp::Create {
                    parent: dirs[count as usize % dirs.len()],
                    name: format!("file-{count}").into(),
                    node: NewNode::File,
                    mode: 0o644,
                    uid: 0,
                    gid: 0,
                    home: GroupId(1),
                };
                let command = client.command(&op);
                requests.push(Request::Update { group: GroupId(1), command });
            }
            for reply in client.pipeline(&cluster, primary.0, requests) {
                assert!(matches!(reply, Reply::Updated { outcome: Ok(_), .. }), "{reply:?}");
                done += 1;
            }
        }
        let (elapsed, cpu) = (started.elapsed(), cpu_ms() - cpu);
        let flushed: Vec<u64> = (1..=3).zip(before).map(|(n, before)| flushes(n) - before).collect();
        println!(
            "{outstanding:>4} outstanding: {:>7.0}/s, {:>6.2} ms a round, {:>6.1} us CPU each, flushes {flushed:?}",
            done as f64 / elapsed.as_secs_f64(),
            elapsed.as_secs_f64() * 1000.0 / (done as f64 / f64::from(outstanding)),
            cpu as f64 * 1000.0 / f64::from(done),
        );
    }
    let storage = cluster.node(1).status().storage;
    println!("all three nodes and the client: {} MiB resident", storage.resident_bytes >> 20);
    cluster.check_digests();
    let cpu = cpu_ms();
    std::thread::sleep(std::time::Duration::from_secs(3));
    println!("idle: {} ms CPU a second", (cpu_ms() - cpu) / 3);
}
