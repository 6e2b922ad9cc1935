//! What nothing refers to any more leaves the buckets, and nothing else does.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use common::cluster::{Cluster, Options, Part, REGIONS};
use common::files::Random;

const BLOB: usize = 200_000;

/// The blobs in all buckets.
fn blobs(cluster: &Cluster) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders: Vec<PathBuf> =
        REGIONS.iter().map(|region| cluster.data().join("buckets").join(region).join("blobs")).collect();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            if entry.path().is_dir() { folders.push(entry.path()) } else { found.push(entry.path()) }
        }
    }
    found
}

fn wait_for_blobs(cluster: &Cluster, count: usize) {
    let started = Instant::now();
    loop {
        let found = blobs(cluster);
        if found.len() == count {
            return;
        }
        assert!(
            started.elapsed() < Duration::from_secs(60),
            "{} blobs instead of {count}; {}",
            found.len(),
            cluster.status()["nodes"]
        );
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn check(cluster: &Cluster, files: &BTreeMap<String, Vec<u8>>) {
    cluster.sync_all();
    for region in REGIONS {
        for (path, content) in files {
            let found = fs::read(cluster.path(region, path)).unwrap_or_else(|error| panic!("{region} {path}: {error}"));
            assert!(found == *content, "{region} reads {path} otherwise than it was written");
        }
    }
}

/// A cluster whose garbage goes soon.
fn cluster(settings: &[(&str, &str)]) -> Cluster {
    let mut cluster = Cluster::up(Options::default());
    cluster.stop();
    let file = cluster.data().join("cluster.toml");
    let mut text = fs::read_to_string(&file).unwrap();
    for (key, value) in settings {
        let line = text.lines().find(|line| line.starts_with(&format!("{key} = "))).unwrap().to_owned();
        text = text.replace(&line, &format!("{key} = {value}"));
    }
    fs::write(&file, text).unwrap();
    // Caches must not answer for what has left the buckets.
    fs::remove_dir_all(cluster.data().join("cache")).unwrap();
    cluster.start();
    cluster
}

#[test]
fn buckets_shrink_to_what_is_referenced_also_when_a_node_is_killed() {
    let cluster = cluster(&[("collect", "\"2s\"")]);
    let mut random = Random::new(7);
    let mut files = BTreeMap::new();
    let mut write = |path: &str, region: &str, files: &mut BTreeMap<String, Vec<u8>>| {
        let content = random.bytes(BLOB);
        fs::write(cluster.path(region, path), &content).unwrap();
        files.insert(path.to_owned(), content);
    };
    for (region, other) in [("us", "eu"), ("eu", "ap"), ("ap", "us")] {
        for number in 0..6 {
            write(&format!("{region}/file-{number}"), region, &mut files);
        }
        // Overwritten, removed, moved to another group, and overwritten there.
        write(&format!("{region}/file-0"), region, &mut files);
        fs::remove_file(cluster.path(region, format!("{region}/file-1"))).unwrap();
        files.remove(&format!("{region}/file-1")).unwrap();
        for number in [2, 3] {
            let (from, to) = (format!("{region}/file-{number}"), format!("{other}/from-{region}-{number}"));
            fs::rename(cluster.path(region, &from), cluster.path(region, &to)).unwrap();
            let content = files.remove(&from).unwrap();
            files.insert(to, content);
        }
        write(&format!("{other}/from-{region}-2"), region, &mut files);
    }
    // Every file is one blob.
    wait_for_blobs(&cluster, files.len());
    check(&cluster, &files);

    for region in REGIONS {
        for number in 4..6 {
            write(&format!("{region}/file-{number}"), region, &mut files);
        }
    }
    // In the middle of it a node dies, and its supervisor starts it again.
    cluster.kill(&cluster.process(&Part::Node("us-1".into())));
    for region in REGIONS {
        write(&format!("{region}/last"), region, &mut files);
    }
    wait_for_blobs(&cluster, files.len());
    check(&cluster, &files);
    cluster.check_digests();
    for (path, _) in std::mem::take(&mut files) {
        fs::remove_file(cluster.path("eu", path)).unwrap();
    }
    wait_for_blobs(&cluster, 0);
    let collected = |node: &serde_json::Value| node["status"]["collector"]["collected"].as_u64().unwrap_or_default();
    let nodes = cluster.status()["nodes"].as_array().unwrap().clone();
    assert!(nodes.iter().map(collected).sum::<u64>() > 0, "{nodes:?}");
}

/// As a client leaves it that dies between upload and update.
fn stray(cluster: &Cluster, region: &str, sequence: u64, age: Duration) -> PathBuf {
    let id = datastore::BlobId::new(datastore::Region(0), 0xdead, sequence);
    let path = cluster.data().join("buckets").join(region).join(id.object_path());
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, b"never referred to").unwrap();
    fs::File::options().write(true).open(&path).unwrap().set_modified(SystemTime::now() - age).unwrap();
    path
}

#[test]
fn sweep_deletes_old_strays_and_neither_young_ones_nor_what_is_in_use() {
    let cluster = cluster(&[("sweep_rate", "100000"), ("stray", "\"1h\"")]);
    let mut random = Random::new(8);
    let (used, content) = (cluster.path("us", "us/used"), random.bytes(BLOB));
    fs::write(&used, &content).unwrap();
    for blob in blobs(&cluster) {
        let ago = SystemTime::now() - Duration::from_secs(86_400);
        fs::File::options().write(true).open(&blob).unwrap().set_modified(ago).unwrap();
    }
    let old = stray(&cluster, "us", 5, Duration::from_secs(7200));
    let young = stray(&cluster, "us", 6, Duration::from_secs(60));
    let started = Instant::now();
    let gone = |path: &Path| !path.exists();
    while !gone(&old) {
        assert!(started.elapsed() < Duration::from_secs(150), "the stray is still there");
        std::thread::sleep(Duration::from_millis(200));
    }
    assert!(!gone(&young));
    assert!(fs::read(cluster.seen("ap", &used)).unwrap() == content);
}
