//! Processes are killed at any moment: nothing acknowledged is lost, nothing is half done, nothing is done twice.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::fs::{self, File};
use std::io::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::cluster::{Cluster, Options, Part, REGIONS, eventually};
use common::files::{Random, StopAtEnd, create, exists};
use common::journal::{OF_DEAD_MOUNTS, check_all, work_while, workers};

#[test]
fn killed_nodes_lose_nothing_and_their_clients_wait() {
    let cluster = Cluster::up(Options::wan("geo3-fast").limit(400));
    let mut workers = workers(&cluster, &[], &[]);
    let mut random = Random::new(30);
    for round in 0..3 {
        work_while(&mut workers, |_| {
            for region in REGIONS {
                thread::sleep(Duration::from_millis(200 + random.below(1200)));
                let down = Duration::from_millis(random.below(2500));
                eprintln!("round {round}: kill {region}-1 for {down:?}");
                cluster.kill_for(&Part::Node(format!("{region}-1")), down);
            }
            thread::sleep(Duration::from_secs(2));
        });
        check_all(&cluster, &mut workers);
    }
    // Every client got on after each outage, on every group.
    for worker in &workers {
        assert!(worker.acknowledged > 50, "{} got only {} operations done", worker.name, worker.acknowledged);
    }
}

#[test]
fn killed_mounts_lose_nothing_acknowledged() {
    let cluster = Cluster::up(Options::default().limit(400));
    let mut workers = workers(&cluster, &["us", "ap"], OF_DEAD_MOUNTS);
    let mut random = Random::new(31);
    for round in 0..3 {
        work_while(&mut workers, |_| {
            for region in ["us", "ap"] {
                thread::sleep(Duration::from_millis(300 + random.below(1000)));
                eprintln!("round {round}: kill the mount of {region}");
                cluster.kill_for(&Part::Mount(region.into()), Duration::from_millis(random.below(800)));
            }
            thread::sleep(Duration::from_secs(1));
        });
        check_all(&cluster, &mut workers);
    }
}

#[test]
fn killing_everything_at_once_loses_nothing_acknowledged() {
    let mut cluster = Cluster::up(Options::default().limit(400));
    let mut workers = workers(&cluster, &REGIONS, OF_DEAD_MOUNTS);
    let mut random = Random::new(32);
    for round in 0..4 {
        let work = Duration::from_millis(1000 + random.below(1500));
        let again = Mutex::new(&mut cluster);
        work_while(&mut workers, |_| {
            thread::sleep(work);
            eprintln!("round {round}: kill everything");
            again.lock().unwrap().kill_all();
        });
        cluster.start();
        check_all(&cluster, &mut workers);
    }
}

#[test]
fn killed_followers_hold_up_nobody_and_three_nodes_survive_two_rounds_of_kills() {
    let cluster = Cluster::up(Options::default().nodes_per_region(3).limit(400));
    let mut workers = workers(&cluster, &[], &[]);
    // The preferred primary is a group's first voter: the other two go, one after the other.
    for follower in ["us-2", "eu-3"] {
        let directory = cluster.path("us", "us");
        let mut slowest = Duration::ZERO;
        thread::scope(|scope| {
            let killer = scope.spawn(|| {
                thread::sleep(Duration::from_millis(300));
                cluster.kill_for(&Part::Node(follower.into()), Duration::from_millis(3000));
            });
            let started = Instant::now();
            let mut number = 0;
            while !killer.is_finished() && started.elapsed() < Duration::from_secs(60) {
                number += 1;
                let before = Instant::now();
                create(&directory.join(format!("{follower}-{number}")), b"x").unwrap();
                slowest = slowest.max(before.elapsed());
            }
            eprintln!("{number} files while {follower} was down, the slowest after {slowest:?}");
        });
        assert!(slowest < Duration::from_secs(3), "a create waited {slowest:?} for a follower");
    }
    let mut random = Random::new(33);
    for _ in 0..2 {
        work_while(&mut workers, |_| {
            for _ in 0..3 {
                let victim = format!("{}-{}", REGIONS[random.below(3) as usize], 1 + random.below(3));
                eprintln!("kill {victim}");
                cluster.kill_for(&Part::Node(victim), Duration::from_millis(random.below(2000)));
            }
            thread::sleep(Duration::from_secs(1));
        });
        check_all(&cluster, &mut workers);
    }
}

#[test]
fn a_client_waits_for_its_node_and_goes_on() {
    let cluster = Cluster::up(Options::default());
    let us = Part::Node("us-1".into());
    create(&cluster.path("us", "us/before"), b"before").unwrap();
    cluster.sync_all();
    let waited = Duration::from_secs(4);
    let killed = &AtomicBool::new(false);
    thread::scope(|scope| {
        let _stop = StopAtEnd(killed);
        // One that opened its file before, one that reads, one that writes from afar.
        let mut opened = File::options().append(true).create(true).open(cluster.path("us", "us/opened")).unwrap();
        let wait = |killed: &AtomicBool| {
            while !killed.load(Ordering::Relaxed) {
                thread::sleep(Duration::from_millis(5));
            }
        };
        let writer = scope.spawn(move || {
            wait(killed);
            opened.write_all(b"after").and_then(|()| opened.sync_all())
        });
        let far = cluster.path("eu", "us/far");
        let far = scope.spawn(move || {
            wait(killed);
            create(&far, b"far")
        });
        // What does not live on that node goes on meanwhile.
        let elsewhere = cluster.path("eu", "eu/elsewhere");
        let other = scope.spawn(move || {
            wait(killed);
            thread::sleep(Duration::from_millis(500));
            let started = Instant::now();
            create(&elsewhere, b"elsewhere").map(|()| started.elapsed())
        });
        let process = cluster.process(&us);
        let stopper = scope.spawn(|| cluster.kill_for(&us, waited));
        eventually(Duration::from_secs(5), "the kill", || (!process.is_alive()).then_some(()));
        killed.store(true, Ordering::Relaxed);
        let elapsed = other.join().unwrap().unwrap();
        assert!(elapsed < Duration::from_secs(2), "an operation elsewhere took {elapsed:?}");
        writer.join().unwrap().unwrap();
        far.join().unwrap().unwrap();
        stopper.join().unwrap();
    });
    cluster.sync_all();
    for region in REGIONS {
        assert_eq!(fs::read(cluster.path(region, "us/opened")).unwrap(), b"after");
        assert!(exists(&cluster.path(region, "us/far")) && exists(&cluster.path(region, "us/before")));
    }
    cluster.check_digests();
}

#[test]
fn a_client_gives_up_at_its_deadline_and_recovers_by_itself() {
    let cluster = Cluster::up(Options::default());
    let impatient = cluster.second_mount("eu", &["--deadline", "2s"]);
    let (known, fresh) = (impatient.join("us/known"), impatient.join("us/fresh"));
    create(&known, b"known").unwrap();
    cluster.sync_all();
    let part = Part::Node("us-1".into());
    let process = cluster.process(&part);
    thread::scope(|scope| {
        let killer = scope.spawn(|| cluster.kill_for(&part, Duration::from_secs(9)));
        eventually(Duration::from_secs(5), "the kill", || (!process.is_alive()).then_some(()));
        let started = Instant::now();
        let error = create(&fresh, b"fresh").unwrap_err();
        let waited = started.elapsed();
        // The kernel may ask again, and then nobody waits any more.
        let known = [libc::ETIMEDOUT, libc::EHOSTUNREACH];
        assert!(known.contains(&error.raw_os_error().unwrap()), "{error}");
        assert!(waited > Duration::from_millis(1500) && waited < Duration::from_secs(6), "gave up after {waited:?}");
        // What lives elsewhere is not concerned.
        create(&impatient.join("eu/elsewhere"), b"elsewhere").unwrap();
        killer.join().unwrap();
    });
    eventually(Duration::from_secs(10), "the mount to recover", || fs::read(&known).ok());
    // What timed out may have happened or not, once.
    match create(&fresh, b"fresh") {
        Ok(()) => {}
        Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EEXIST), "{error}"),
    }
    assert!(exists(&impatient.join("us/fresh")));
}
