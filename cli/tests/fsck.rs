//! `globalfs fsck` finds what is damaged, nothing else, and changes nothing unless it is told to.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, SystemTime};

use common::cluster::{Cluster, Options, REGIONS, eventually};
use common::disk;
use common::files::{Random, StopAtEnd, create};
use serde_json::Value;

/// The exit code, and what it said.
fn fsck(cluster: &Cluster, options: &[&str]) -> (i32, Value) {
    let output = cluster.globalfs(&[&["fsck", "--json"], options].concat());
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    let json = serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said} {errors}"));
    (output.status.code().unwrap(), json)
}

fn problems(said: &Value) -> Vec<(String, Option<String>)> {
    let problem = |problem: &Value| {
        let text = |key: &str| problem[key].as_str().map(str::to_owned);
        (text("what").unwrap(), text("path"))
    };
    said["problems"].as_array().unwrap().iter().map(problem).collect()
}

/// Names, lengths and times of all files below a folder.
fn listing(folder: &Path) -> BTreeMap<PathBuf, (u64, SystemTime)> {
    let (mut found, mut left) = (BTreeMap::new(), vec![folder.to_owned()]);
    while let Some(folder) = left.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let metadata = fs::metadata(&path).unwrap();
            if metadata.is_dir() {
                left.push(path);
            } else {
                found.insert(path, (metadata.len(), metadata.modified().unwrap()));
            }
        }
    }
    found
}

/// Names that come, go and move between groups.
fn disturb(cluster: &Cluster, region: &str, stop: &AtomicBool) -> u64 {
    let mut random = Random::new(REGIONS.iter().position(|other| *other == region).unwrap() as u64 + 3);
    let mut rounds = 0;
    while !stop.load(Ordering::Relaxed) {
        let home = |random: &mut Random| ["us/", "eu/", "ap/", ""][random.below(4) as usize];
        let at = |home: &str, name: String| cluster.path(region, format!("{home}work/{name}"));
        let file = at(home(&mut random), format!("{region}-{rounds}"));
        fs::write(&file, random.bytes(if rounds % 5 == 0 { 20_000 } else { 10 })).unwrap();
        let (moved, linked) =
            (at(home(&mut random), format!("{region}-{rounds}-b")), at("us/", format!("{region}-{rounds}-c")));
        fs::rename(&file, &moved).unwrap();
        fs::hard_link(&moved, &linked).unwrap();
        let folder = at(home(&mut random), format!("{region}-{rounds}-d"));
        fs::create_dir(&folder).unwrap();
        let elsewhere = at(home(&mut random), format!("{region}-{rounds}-e"));
        fs::rename(&folder, &elsewhere).unwrap();
        if rounds % 3 == 0 {
            fs::remove_file(&moved).unwrap();
            fs::remove_dir(&elsewhere).unwrap();
        }
        rounds += 1;
    }
    rounds
}

#[test]
fn cluster_in_use_is_clean_and_so_are_its_folders_after_a_stop() {
    let mut cluster = Cluster::up(Options::default());
    for home in ["us/", "eu/", "ap/", ""] {
        fs::create_dir(cluster.path("us", format!("{home}work"))).unwrap();
    }
    cluster.sync_all();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let _stop = StopAtEnd(&stop);
        let workers = REGIONS.map(|region| {
            scope.spawn({
                let (cluster, stop) = (&cluster, &stop);
                move || disturb(cluster, region, stop)
            })
        });
        for _ in 0..5 {
            let (code, said) = fsck(&cluster, &["--online"]);
            assert_eq!((code, problems(&said)), (0, vec![]), "{said}");
            assert_eq!(said["groups"].as_array().unwrap().len(), 4, "{said}");
            eprintln!("{} looks", said["looks"]);
        }
        stop.store(true, Ordering::Relaxed);
        let rounds: Vec<u64> = workers.into_iter().map(|worker| worker.join().unwrap()).collect();
        eprintln!("{rounds:?} rounds of work");
        assert!(rounds.iter().all(|rounds| *rounds > 3));
    });
    let output = cluster.globalfs(&["fsck"]);
    assert_eq!(output.status.code(), Some(9), "the nodes run");
    assert!(String::from_utf8_lossy(&output.stderr).contains("--online"));
    cluster.stop();
    let before = listing(&cluster.data().join("nodes"));
    let (code, said) = fsck(&cluster, &[]);
    assert_eq!((code, problems(&said)), (0, vec![]), "{said}");
    assert_eq!(listing(&cluster.data().join("nodes")), before, "looking has changed something");
    cluster.start();
    let (code, said) = fsck(&cluster, &["--online"]);
    assert_eq!((code, problems(&said)), (0, vec![]), "{said}");
    assert_eq!(said["looks"], 1, "nothing was going on: {said}");
}

/// The only blob that a file's writing has left in the bucket.
fn blob_of(cluster: &Cluster, name: &str) -> PathBuf {
    let bucket = cluster.data().join("buckets/us/blobs");
    let files = || if bucket.exists() { listing(&bucket) } else { BTreeMap::new() };
    let before = files();
    create(&cluster.path("us", "us/files").join(name), &Random::new(9).bytes(300_000)).unwrap();
    files().into_keys().find(|path| !before.contains_key(path)).expect("closed, and not in the bucket")
}

#[test]
fn planted_damage_is_found_and_told_by_path() {
    let mut cluster = Cluster::up(Options::default());
    fs::create_dir(cluster.path("us", "us/files")).unwrap();
    let (lost, short) = (blob_of(&cluster, "lost"), blob_of(&cluster, "short"));
    blob_of(&cluster, "sound");
    fs::write(cluster.path("us", "us/files/hurt"), "inline").unwrap();
    let hurt = fs::metadata(cluster.path("us", "us/files/hurt")).unwrap().ino();
    assert_eq!(fsck(&cluster, &["--online"]).0, 0);

    fs::remove_file(lost).unwrap();
    fs::write(short, "short").unwrap();
    // Nobody ever referred to these; one is so new that somebody may be about to.
    let orphan = |sequence, age: u64| {
        let id = datastore::BlobId::new(datastore::Region(0), 77, sequence);
        let path = cluster.data().join("buckets/us").join(id.object_path());
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, "orphan").unwrap();
        let modified = SystemTime::now() - Duration::from_secs(age);
        fs::File::options().write(true).open(&path).unwrap().set_modified(modified).unwrap();
        path
    };
    let (old, new) = (orphan(1, 3 * 86400), orphan(2, 0));
    let (code, said) = fsck(&cluster, &["--online", "--repair"]);
    let found = problems(&said);
    assert_eq!(code, 5, "{said}");
    let is_told = |what: &str, path: Option<&str>| {
        let is_it = |(found, at): &(String, Option<String>)| found.contains(what) && at.as_deref() == path;
        found.iter().filter(|problem| is_it(problem)).count() == 1
    };
    assert!(is_told("which is not in its bucket", Some("/us/files/lost")), "{said}");
    assert!(is_told("which has 5 in its bucket", Some("/us/files/short")), "{said}");
    assert!(is_told("1 blobs (6B) in the bucket of region us that nothing refers to", None), "{said}");
    assert_eq!(found.len(), 3, "{said}");
    assert!(old.exists(), "nothing is changed without --yes");
    let (code, said) = fsck(&cluster, &["--online", "--repair", "--yes"]);
    assert_eq!(code, 5, "it says what it found: {said}");
    assert!(!old.exists() && new.exists(), "{said}");
    let (_, said) = fsck(&cluster, &["--online"]);
    assert_eq!(problems(&said).len(), 2, "{said}");

    cluster.stop();
    let node = cluster.data().join("nodes/us-1");
    let key = [&[4][..], &hurt.to_be_bytes()].concat();
    assert_eq!(disk::rows(&node, 1, &key).len(), 1);
    disk::set_row(&node, 1, &key, None);
    let check = |said: &Value| {
        let has = |what: &str| problems(said).into_iter().find(|(found, _)| found.contains(what));
        assert!(has("the digest is").is_some_and(|(what, _)| what.contains("us-1")), "{said}");
        let dangling = has("the name hurt in");
        assert!(dangling.is_some_and(|(_, path)| path.as_deref() == Some("/us/files/hurt")), "{said}");
    };
    let (code, said) = fsck(&cluster, &[]);
    assert_eq!(code, 5, "{said}");
    check(&said);
    let (code, said) = fsck(&cluster, &["--node", "eu-1"]);
    assert_eq!((code, problems(&said)), (6, vec![]), "a part, and that is sound: {said}");
    cluster.start();
    let (code, said) = fsck(&cluster, &["--online"]);
    assert_eq!(code, 5, "{said}");
    check(&said);
}

#[test]
fn replica_with_a_wrong_row_is_rebuilt_from_its_group_when_told_to() {
    let mut cluster = Cluster::up(Options::default().nodes_per_region(3));
    let path = cluster.path("us", "us/hurt");
    fs::write(&path, "inline").unwrap();
    let key = [&[4][..], &fs::metadata(&path).unwrap().ino().to_be_bytes()].concat();
    // One that follows, and the one that leads.
    for name in ["us-2", "us-1"] {
        cluster.stop();
        let node = cluster.data().join("nodes").join(name);
        assert_eq!(disk::rows(&node, 1, &key).len(), 1);
        disk::set_row(&node, 1, &key, None);
        cluster.start();
        eventually(Duration::from_secs(30), "a whole cluster", || cluster.is_whole());
        let is_wrong = |said: &Value| problems(said).iter().any(|(what, _)| what.contains(&format!("(on {name})")));
        let (code, said) = fsck(&cluster, &["--online", "--repair"]);
        assert!(code == 5 && is_wrong(&said), "{said}");
        assert!(said["repairs"].to_string().contains("would have the replica of group us on"), "{said}");
        let (code, said) = fsck(&cluster, &["--online"]);
        assert!(code == 5 && is_wrong(&said), "nothing is changed without --yes: {said}");
        let (code, said) = fsck(&cluster, &["--online", "--repair", "--yes"]);
        assert_eq!(code, 5, "it says what it found: {said}");
        let done = format!("the replica of group us on {name} was rebuilt from its group");
        assert!(said["repairs"].to_string().contains(&done), "{said}");
        eventually(Duration::from_secs(30), "a whole cluster", || cluster.is_whole());
        let (code, said) = fsck(&cluster, &["--online"]);
        assert_eq!((code, problems(&said)), (0, vec![]), "{said}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "inline");
    }
    cluster.check_digests();
}

#[test]
fn damaged_log_of_a_stopped_node_is_found() {
    let mut cluster = Cluster::up(Options::default());
    for number in 0..200 {
        fs::write(cluster.path("eu", format!("eu/{number}")), "x").unwrap();
    }
    cluster.stop();
    let segment = fs::read_dir(cluster.data().join("nodes/eu-1/log")).unwrap().map(|entry| entry.unwrap().path()).min();
    let segment = segment.unwrap();
    let mut bytes = fs::read(&segment).unwrap();
    // In the first of many batches: behind the header, and behind the batch's own.
    bytes[512 + 40] ^= 1;
    fs::write(&segment, bytes).unwrap();
    let (code, said) = fsck(&cluster, &[]);
    assert_eq!(code, 5, "{said}");
    assert!(problems(&said).iter().any(|(what, _)| what.contains("node eu-1: the log is damaged")), "{said}");
}
