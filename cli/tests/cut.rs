//! A region is cut off in the middle of a cross-region operation: only what touches its names waits.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::fs::{self, File, Permissions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use common::cluster::{Cluster, Options, eventually, objects_with};
use common::files::{create, exists, median, names, open_append, refused, text};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
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

/// Whether a group has commands that it has not executed yet: others on their keys wait for them.
fn holds_keys(cluster: &Cluster, group: &str) -> bool {
    let status = cluster.status();
    let of_it = status["groups"].as_array().unwrap().iter().filter(|one| one["name"] == group);
    let commands = of_it.flat_map(|group| objects_with(group, &["destinations", "locks_keys"]));
    commands.map(|command| &command["locks_keys"]).any(|holds| *holds == Value::Bool(true))
}

/// Starts renames of `old` until one of them is caught by a cut between us and eu while it holds its keys in us. (A little
/// later us has executed it, holds nothing any more, and only waits for eu to say the same.)
fn rename_caught_by_a_cut(cluster: &Cluster, from: &Path, to: &Path) -> (PathBuf, PathBuf, thread::JoinHandle<()>) {
    for attempt in 0..20 {
        let (old, new) = (from.join(format!("moving-{attempt}")), to.join(format!("moved-{attempt}")));
        create(&old, b"moving").unwrap();
        let (from, to) = (old.clone(), new.clone());
        let rename = thread::spawn(move || fs::rename(from, to).unwrap());
        while !rename.is_finished() && unfinished(cluster).is_empty() {}
        cluster.cut("us", "eu");
        thread::sleep(Duration::from_millis(1500));
        if !rename.is_finished() && holds_keys(cluster, "us") {
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
    let same_file = beside.join(old.file_name().unwrap());
    let behind = thread::spawn(move || fs::set_permissions(same_file, Permissions::from_mode(0o640)));
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
    // Before the rename or after it: then the file is not there any more.
    let _either = behind.join().unwrap();
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

#[test]
fn files_stay_open_over_a_cut_that_is_longer_than_a_session_without_their_locks_and_removed_ones_are_gone() {
    let mut cluster = Cluster::up(Options::default());
    cluster.stop();
    let config = cluster.data().join("cluster.toml");
    let before = fs::read_to_string(&config).unwrap();
    let session = before.lines().find(|line| line.starts_with("session = ")).unwrap();
    fs::write(&config, before.replace(session, "session = \"2s\"")).unwrap();
    cluster.start();
    let far = cluster.path("us", "eu/expired");
    fs::create_dir(&far).unwrap();
    let open = |name: &str| {
        let mut file = File::options().read(true).write(true).create(true).truncate(true).open(far.join(name)).unwrap();
        file.write_all(b"before ").unwrap();
        file.sync_all().unwrap();
        file
    };
    let (mut plain, mut removed, locked) = (open("plain"), open("removed"), open("locked"));
    let mut append = open_append(&far.join("plain")).unwrap();
    flock(&locked, FlockOperation::NonBlockingLockExclusive).unwrap();
    let near = cluster.seen("eu", &far);
    let elsewhere = File::open(near.join("locked")).unwrap();
    flock(&elsewhere, FlockOperation::NonBlockingLockExclusive).unwrap_err();
    fs::remove_file(near.join("removed")).unwrap();
    cluster.cut("us", "eu");
    // Locks and removed files are given back: the session has ended.
    eventually(Duration::from_secs(20), "the lock to be given back", || {
        flock(&elsewhere, FlockOperation::NonBlockingLockExclusive).ok()
    });
    cluster.heal();
    eventually(Duration::from_secs(20), "the region to be seen again", || fs::metadata(far.join("plain")).ok());
    plain.write_all(b"after").unwrap();
    plain.sync_all().unwrap();
    append.write_all(b", and more").unwrap();
    append.sync_all().unwrap();
    assert_eq!(text(&far.join("plain")), "before after, and more");
    flock(&locked, FlockOperation::NonBlockingLockExclusive).unwrap_err();
    drop(elsewhere);
    flock(&locked, FlockOperation::LockExclusive).unwrap();
    removed.rewind().unwrap();
    refused(removed.read(&mut [0; 10]), Errno::STALE);
}
