//! A region is cut off in the middle of a cross-region operation: only what touches its names waits.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use common::cluster::{Cluster, Options, eventually, objects_with};
use common::files::{create, exists, median, names, text};
use serde_json::Value;

/// How long updates in a region's own group take, each of them once: create, write, rename, list, remove.
fn local_updates(directory: &Path, tag: &str, rounds: usize) -> Vec<Duration> {
    let one = |round: usize| {
        let started = Instant::now();
        let (path, renamed) =
            (directory.join(format!("{tag}-{round}")), directory.join(format!("{tag}-{round}-renamed")));
        create(&path, b"local").unwrap();
        fs::rename(&path, &renamed).unwrap();
        assert_eq!(text(&renamed), "local");
        names(directory);
        fs::remove_file(&renamed).unwrap();
        started.elapsed()
    };
    (0..rounds).map(one).collect()
}

fn unfinished(cluster: &Cluster) -> Vec<Value> {
    let status = cluster.status();
    let commands = objects_with(&status, &["destinations", "waiting_for", "stage"]);
    commands.into_iter().map(|command| Value::Object(command.clone())).collect()
}

/// Starts renames of `old` until one of them is caught in its middle by a cut between us and eu.
fn rename_caught_by_a_cut(cluster: &Cluster, from: &Path, to: &Path) -> (PathBuf, PathBuf, thread::JoinHandle<()>) {
    for attempt in 0..20 {
        let (old, new) = (from.join(format!("moving-{attempt}")), to.join(format!("moved-{attempt}")));
        create(&old, b"moving").unwrap();
        let (from, to) = (old.clone(), new.clone());
        let rename = thread::spawn(move || fs::rename(from, to).unwrap());
        while !rename.is_finished() && unfinished(cluster).is_empty() {}
        cluster.cut("us", "eu");
        thread::sleep(Duration::from_millis(1500));
        if !rename.is_finished() && !unfinished(cluster).is_empty() {
            eprintln!("caught at attempt {attempt}: {:?}", unfinished(cluster));
            return (old, new, rename);
        }
        cluster.heal();
        cluster.globalfs_ok(&["wan", "delay", "us", "eu", "300ms"]);
        rename.join().unwrap();
    }
    panic!("no rename was caught in its middle");
}

#[test]
fn only_conflicts_wait_while_a_region_is_cut_off() {
    let cluster = Cluster::up(Options::wan("geo3-fast"));
    let [us, eu] = ["us", "eu"].map(|region| cluster.path(region, format!("{region}/cut")));
    for directory in [&us, &eu] {
        fs::create_dir(directory).unwrap();
    }
    cluster.sync_all();
    // The kernel locks both directories of a rename for the mount that asks: others of the region must not feel it.
    let beside = cluster.second_mount("us", &[]).join("us/cut");
    let target = cluster.path("us", "eu/cut");
    create(&target.join("warm"), b"the way is known").unwrap();
    create(&us.join("same-directory"), b"same directory").unwrap();
    let elsewhere = cluster.path("us", "us/elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    let places = [("beside", &beside), ("elsewhere", &elsewhere), ("far", &eu)];
    let before = places.map(|(tag, directory)| median(local_updates(directory, tag, 30)));
    // Slow enough for the cut to fall into the middle.
    cluster.globalfs_ok(&["wan", "delay", "us", "eu", "300ms"]);
    let (old, new, rename) = rename_caught_by_a_cut(&cluster, &us, &target);

    // Both groups go on, in the same directories, at their normal speed.
    let during = thread::scope(|scope| {
        let all = places.map(|(tag, directory)| scope.spawn(move || local_updates(directory, tag, 30)));
        all.map(|one| one.join().unwrap())
    });
    let slowest = during.iter().flatten().max().unwrap();
    let during = during.each_ref().map(|all| median(all.clone()));
    eprintln!("medians before {before:?}, during the cut {during:?}, slowest {slowest:?}");
    for (before, during) in before.iter().zip(during) {
        assert!(during < *before * 4 + Duration::from_millis(40), "{before:?} before, {during:?} during the cut");
    }
    assert!(*slowest < Duration::from_secs(3), "an update waited {slowest:?}");
    assert_eq!(text(&beside.join("same-directory")), "same directory");
    // The third region reaches both; the shared directories too have a quorum without one of the two.
    assert!(names(&cluster.path("ap", "us/cut")).contains(&"same-directory".to_owned()));
    create(&cluster.path("ap", "ap/during"), b"during").unwrap();
    create(&cluster.path("ap", "during"), b"during").unwrap();

    // It is visible which command is unfinished and whom it waits for.
    assert!(!rename.is_finished(), "the rename ended during the cut");
    let waiting = unfinished(&cluster);
    let waits = |command: &Value| {
        let groups = command["waiting_for"].as_array().unwrap();
        groups.iter().any(|group| [Some(1), Some(2)].contains(&group.as_u64()))
    };
    assert!(waiting.iter().any(waits), "{waiting:?}");
    let shown = cluster.globalfs_ok(&["status"]);
    let mount = format!(":{} pid", cluster.mount("us").display());
    assert!(shown.contains("us (") && shown.contains(&mount), "{shown}");
    // Also what waits behind it, and for whom, in figures.
    let same_name = beside.join(old.file_name().unwrap());
    let behind = thread::spawn(move || fs::remove_file(same_name));
    eventually(Duration::from_secs(10), "a command that waits for the rename to be shown", || {
        let figures = cluster.globalfs_ok(&["status", "--metrics"]);
        let begin = "globalfs_commands_waiting{group=\"us\",waits_for=\"eu\",client=\"us\"";
        figures.lines().any(|line| line.starts_with(begin) && line.contains("second-us")).then_some(())
    });
    let held = cluster.status()["groups"].as_array().unwrap().iter().find(|group| group["name"] == "us").cloned();
    assert_eq!(held.map(|group| group["held_count"].clone()), Some(Value::from(1)));

    cluster.heal();
    let healed = Instant::now();
    rename.join().unwrap();
    let missing = behind.join().unwrap().unwrap_err();
    assert_eq!(missing.kind(), std::io::ErrorKind::NotFound, "the rename came first");
    eprintln!("finished {:?} after the healing", healed.elapsed());
    eventually(Duration::from_secs(20), "all commands to finish", || unfinished(&cluster).is_empty().then_some(()));
    cluster.sync_all();
    for region in ["us", "eu", "ap"] {
        let there = |path: &Path| cluster.seen(region, path);
        assert!(!exists(&there(&old)), "{region}");
        assert_eq!(text(&there(&new)), "moving", "{region}");
    }
    cluster.check_digests();
}

#[test]
fn a_region_that_was_cut_off_works_alone_and_catches_up() {
    let cluster = Cluster::up(Options::wan("geo3-fast"));
    for region in ["us", "eu", "ap"] {
        fs::create_dir(cluster.path(region, format!("{region}/alone"))).unwrap();
    }
    cluster.sync_all();
    cluster.cut("eu", "us");
    cluster.cut("eu", "ap");
    // Its own subtree goes on; what is replicated everywhere can be read there, and updated by the others.
    let durations = local_updates(&cluster.path("eu", "eu/alone"), "alone", 20);
    create(&cluster.path("eu", "eu/alone/kept"), b"kept").unwrap();
    assert!(names(&cluster.mount("eu")).contains(&"us".to_owned()));
    create(&cluster.path("us", "made-without-eu"), b"us").unwrap();
    eprintln!("median in the lonely region: {:?}", median(durations));
    cluster.heal();
    eventually(Duration::from_secs(30), "the lonely region to see what happened", || {
        exists(&cluster.path("eu", "made-without-eu")).then_some(())
    });
    eventually(Duration::from_secs(30), "the others to see what the lonely region did", || {
        exists(&cluster.path("us", "eu/alone/kept")).then_some(())
    });
    create(&cluster.path("eu", "us/alone/again"), b"again").unwrap();
    cluster.check_digests();
}
