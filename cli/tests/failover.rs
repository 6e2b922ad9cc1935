//! How long applications wait when a group's primary is killed, or stops in order; how long a voter needs to come back.
//! Figures for docs/benchmarks.md, no tests:
//!
//! `cargo test --release -p cli --test failover -- --ignored --nocapture --test-threads 1`. `GLOBALFS_RUNS` says how often (20),
//! `GLOBALFS_FAILOVER_JSON` names a file to which each measurement is added as a line of JSON.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::fs::{self, File};
use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::cluster::{Cluster, Options, Part, Process, binary, eventually};
use common::files::StopAtEnd;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

/// Updates that a voter misses while it is down.
const MISSED: u64 = 2000;
/// Files in the group whose voter loses its disk.
const FILES: u64 = 10_000;
/// The same where the rate is looked at meanwhile, which takes a while.
const FILES_MANY: u64 = 60_000;
/// So long the normal rate is measured.
const NORMAL: Duration = Duration::from_secs(5);
const PATIENCE: Duration = Duration::from_secs(60);

static NUMBER: AtomicU64 = AtomicU64::new(0);

fn up() -> Cluster {
    let cluster = Cluster::up(Options::default().nodes_per_region(3).limit(900));
    fs::create_dir(cluster.path("us", "us/files")).unwrap();
    cluster
}

fn send(process: &Process, signal: Signal) {
    kill_process(Pid::from_raw(process.pid).unwrap(), signal).unwrap();
}

/// The primary of the group `us`, once all its voters are up and have everything.
fn primary(cluster: &Cluster) -> Option<String> {
    let status = cluster.status();
    let group = status["groups"].as_array()?.iter().find(|group| group["name"] == "us")?;
    (group["voters_up"] == 3 && group["lag"].as_object()?.is_empty()).then_some(())?;
    Some(group["primary"].as_str()?.to_owned())
}

/// A voter of the group `us` that does not lead it.
fn follower(cluster: &Cluster) -> String {
    let primary = eventually(PATIENCE, "a primary", || primary(cluster));
    ["us-2", "us-3"].into_iter().find(|name| *name != primary).unwrap().to_owned()
}

fn create_one(cluster: &Cluster, region: &str) {
    let path = cluster.path(region, format!("us/files/{}", NUMBER.fetch_add(1, Ordering::Relaxed)));
    File::create_new(path).unwrap();
}

fn create_many(cluster: &Cluster, count: u64) {
    let end = NUMBER.load(Ordering::Relaxed) + count;
    thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                while NUMBER.load(Ordering::Relaxed) < end {
                    create_one(cluster, "us");
                }
            });
        }
    });
}

/// The longest that a create took, from shortly before until a while after the primary was sent this. None may fail.
fn pause(cluster: &Cluster, signal: Signal) -> Duration {
    let leader = eventually(PATIENCE, "a primary", || primary(cluster));
    let process = cluster.nodes()[&leader].clone();
    let up = cluster.process(&Part::Up);
    let (stop, slowest) = (AtomicBool::new(false), Mutex::new(Duration::ZERO));
    thread::scope(|scope| {
        let _stop = StopAtEnd(&stop);
        for region in ["us", "us", "eu"] {
            let (stop, slowest) = (&stop, &slowest);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let began = Instant::now();
                    create_one(cluster, region);
                    let took = began.elapsed();
                    let mut slowest = slowest.lock().unwrap();
                    *slowest = took.max(*slowest);
                }
            });
        }
        thread::sleep(Duration::from_millis(500));
        // It must not be back before another one leads.
        send(&up, Signal::STOP);
        send(&process, signal);
        thread::sleep(Duration::from_secs(3));
        send(&up, Signal::CONT);
    });
    slowest.into_inner().unwrap()
}

/// From the start of a node that has missed updates until it has them.
fn catch_up(cluster: &Cluster) -> Duration {
    let name = follower(cluster);
    let up = cluster.process(&Part::Up);
    send(&up, Signal::STOP);
    cluster.kill(&cluster.nodes()[&name]);
    create_many(cluster, MISSED);
    send(&up, Signal::CONT);
    eventually(PATIENCE, "the node to run", || cluster.nodes().get(&name).cloned());
    let began = Instant::now();
    eventually(PATIENCE, "the voter to have everything", || primary(cluster));
    began.elapsed()
}

/// Creates in a second, 16 at once, until that is so.
fn rate(cluster: &Cluster, what: &str, mut until: impl FnMut() -> bool) -> f64 {
    let (stop, began, before) = (AtomicBool::new(false), Instant::now(), NUMBER.load(Ordering::Relaxed));
    thread::scope(|scope| {
        let _stop = StopAtEnd(&stop);
        for _ in 0..16 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    create_one(cluster, "us");
                }
            });
        }
        // Asking costs something, too: as often in all cases.
        while !until() {
            assert!(began.elapsed() < PATIENCE, "waited in vain for {what}");
            thread::sleep(Duration::from_millis(200));
        }
        (NUMBER.load(Ordering::Relaxed) - before) as f64 / began.elapsed().as_secs_f64()
    })
}

/// What part of its normal rate the group serves while one of its voters is rebuilt.
fn rate_while_rebuilding(cluster: &Cluster) -> (f64, f64, Duration) {
    let began = Instant::now();
    let is_whole = || cluster.is_whole().and_then(|()| primary(cluster)).is_some();
    let normal = rate(cluster, "time to pass", || {
        let _as_often = is_whole();
        began.elapsed() >= NORMAL
    });
    let mut meanwhile = 0.0;
    let took = rebuild_while(cluster, || meanwhile = rate(cluster, "the voter to be rebuilt", is_whole));
    (normal, meanwhile, took)
}

/// From the start of a node on a new disk until all its groups have it as a voter that has everything.
fn rebuild(cluster: &Cluster) -> Duration {
    rebuild_while(cluster, || {
        eventually(PATIENCE, "the voter to be rebuilt", || cluster.is_whole().and_then(|()| primary(cluster)));
    })
}

fn rebuild_while(cluster: &Cluster, wait: impl FnOnce()) -> Duration {
    let name = follower(cluster);
    let up = cluster.process(&Part::Up);
    send(&up, Signal::STOP);
    cluster.kill(&cluster.nodes()[&name]);
    fs::remove_dir_all(cluster.data().join("nodes").join(&name)).unwrap();
    let log = File::options().append(true).open(cluster.data().join(format!("log/{name}.log"))).unwrap();
    let mut command = Command::new(binary());
    command.arg("node").arg("--config").arg(cluster.data().join("cluster.toml"));
    command.args(["--name", &name, "--initialise"]);
    let mut node = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
    let began = Instant::now();
    wait();
    let took = began.elapsed();
    kill_process(Pid::from_child(&node), Signal::TERM).unwrap();
    node.wait().unwrap();
    send(&up, Signal::CONT);
    took
}

fn measure(what: &str, mut one: impl FnMut() -> Duration) {
    let runs: usize = std::env::var("GLOBALFS_RUNS").map_or(20, |text| text.parse().unwrap());
    let mut all: Vec<_> = (0..runs).map(|_| one()).collect();
    all.sort();
    // The least that so many in a hundred runs stay within.
    let at = |percent: usize| all[(runs * percent).div_ceil(100).max(1) - 1];
    println!("{what}, {runs} runs: least {:?}, median {:?}, p95 {:?}, most {:?}", all[0], at(50), at(95), at(100));
    if let Some(path) = std::env::var_os("GLOBALFS_FAILOVER_JSON") {
        let ms: Vec<_> = all.iter().map(|took| took.as_secs_f64() * 1000.0).collect();
        let of = |percent| at(percent).as_secs_f64() * 1000.0;
        let line = json!({ "what": what, "runs": runs, "median_ms": of(50), "p95_ms": of(95), "max_ms": of(100), "all_ms": ms });
        let mut file = File::options().create(true).append(true).open(path).unwrap();
        writeln!(file, "{line}").unwrap();
    }
}

#[test]
#[ignore = "a measurement"]
fn pause_when_a_primary_is_killed() {
    let cluster = up();
    measure("the longest create, primary killed", || pause(&cluster, Signal::KILL));
}

#[test]
#[ignore = "a measurement"]
fn pause_when_a_primary_stops() {
    let cluster = up();
    measure("the longest create, primary stopped in order", || pause(&cluster, Signal::TERM));
}

#[test]
#[ignore = "a measurement"]
fn catching_up() {
    let cluster = up();
    measure(&format!("a voter catches up {MISSED} creates"), || catch_up(&cluster));
}

#[test]
#[ignore = "a measurement"]
fn rebuilding() {
    let cluster = up();
    create_many(&cluster, FILES);
    measure(&format!("a voter is rebuilt, {FILES} files"), || rebuild(&cluster));
}

#[test]
#[ignore = "a measurement"]
fn serving_while_rebuilding() {
    let cluster = up();
    create_many(&cluster, FILES_MANY);
    let runs: usize = std::env::var("GLOBALFS_RUNS").map_or(5, |text| text.parse().unwrap());
    let mut parts = Vec::new();
    for _ in 0..runs {
        eventually(PATIENCE, "a whole cluster", || cluster.is_whole().and_then(|()| primary(&cluster)));
        let (normal, meanwhile, took) = rate_while_rebuilding(&cluster);
        println!("{normal:.0} creates/s, while a voter is rebuilt in {took:?} {meanwhile:.0}");
        parts.push(meanwhile / normal);
    }
    parts.sort_by(f64::total_cmp);
    println!("the part of the normal rate, {runs} runs: least {:.2}, median {:.2}", parts[0], parts[runs / 2]);
}
