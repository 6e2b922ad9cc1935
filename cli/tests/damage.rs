//! What was written is lost or altered, in buckets and on nodes' disks: that is an error or mended, and never other bytes
//! than were written.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::cluster::{Cluster, Options, eventually, objects_with};
use common::disk;
use common::files::{Random, create, text};

/// All files below a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut left = vec![folder.to_owned()];
    while let Some(folder) = left.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { left.push(path) } else { found.push(path) }
        }
    }
    found
}

#[test]
fn lost_and_altered_blobs_are_errors_and_never_wrong_bytes() {
    let cluster = Cluster::up(Options::default());
    let content = Random::new(50).bytes(3 << 20);
    for name in ["altered", "shortened", "lost", "intact"] {
        let before = files(&cluster.data().join("buckets/us"));
        create(&cluster.path("us", "us").join(name), &content).unwrap();
        let blobs: Vec<_> =
            files(&cluster.data().join("buckets/us")).into_iter().filter(|path| !before.contains(path)).collect();
        assert!(!blobs.is_empty(), "closed, and not in the bucket");
        for blob in blobs {
            let mut bytes = fs::read(&blob).unwrap();
            match name {
                "altered" => {
                    let middle = bytes.len() / 2;
                    bytes[middle] ^= 1;
                    fs::write(&blob, bytes).unwrap();
                }
                "shortened" => fs::write(&blob, &bytes[..bytes.len() / 3]).unwrap(),
                "lost" => fs::remove_file(&blob).unwrap(),
                _ => {}
            }
        }
    }
    create(&cluster.path("us", "us/small"), b"needs no bucket").unwrap();
    cluster.sync_all();
    // A mount that has nothing of it in a cache.
    let reader = cluster.second_mount("eu", &["--deadline", "2s"]);
    for name in ["altered", "shortened", "lost"] {
        let started = Instant::now();
        let error = fs::read(reader.join("us").join(name)).map(|bytes| bytes.len()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EIO), "{name}: {error}");
        assert!(started.elapsed() < Duration::from_secs(15), "{name}: {:?}", started.elapsed());
        // Its name and attributes are there all the same.
        assert_eq!(fs::metadata(reader.join("us").join(name)).unwrap().len(), content.len() as u64);
    }
    assert!(fs::read(reader.join("us/intact")).unwrap() == content);
    assert_eq!(text(&reader.join("us/small")), "needs no bucket");
    // The writer has its own copy still.
    assert!(fs::read(cluster.path("us", "us/lost")).unwrap() == content);
    // Whoever writes it anew mends it.
    fs::write(reader.join("us/altered"), &content).unwrap();
    let mended = cluster.path("ap", "us/altered");
    eventually(Duration::from_secs(10), "the mended file", || (fs::read(&mended).ok()? == content).then_some(()));
}

/// What every replica of a group says, by its node.
fn replicas(cluster: &Cluster, group: u64) -> Vec<(u64, serde_json::Map<String, serde_json::Value>)> {
    let status = cluster.status();
    let nodes = objects_with(&status, &["node", "groups", "pid"]);
    let of_node = |node: &serde_json::Map<String, serde_json::Value>| {
        let found = node["groups"].as_array().unwrap().iter().find(|replica| replica["group"] == group)?;
        Some((node["node"].as_u64().unwrap(), found.as_object().unwrap().clone()))
    };
    nodes.into_iter().filter_map(of_node).collect()
}

#[test]
fn replica_whose_state_is_not_its_groups_is_rebuilt_from_the_others() {
    let mut cluster = Cluster::up(Options::default().nodes_per_region(3));
    create(&cluster.path("us", "us/before"), b"before").unwrap();
    let us = 1;
    assert_eq!(cluster.status()["groups"][us as usize]["name"], "us");
    cluster.stop();
    // The one that leads, and that mounts prefer to read.
    let node = cluster.data().join("nodes/us-1");
    let good = disk::rows(&node, us, &disk::DIGEST);
    disk::set_row(&node, us, &disk::DIGEST, Some(&[7; 16]));
    assert_ne!(disk::rows(&node, us, &disk::DIGEST), good);
    cluster.start();
    for number in 0..1200 {
        std::fs::write(cluster.path("us", format!("us/file-{number}")), b"x").unwrap();
    }
    let log = cluster.data().join("log/us-1.log");
    eventually(Duration::from_secs(60), "the damaged replica to be found out and rebuilt", || {
        let log = text(&log);
        let is_rebuilt = log.contains("it is quarantined") && log.contains("a copy has taken the place of the state");
        let is_sound = replicas(&cluster, us.into()).iter().all(|(_, replica)| replica["quarantine"].is_null());
        (is_rebuilt && is_sound).then_some(())
    });
    for number in 0..1200 {
        assert_eq!(text(&cluster.path("eu", format!("us/file-{number}"))), "x");
    }
    create(&cluster.path("us", "us/after"), b"after").unwrap();
    cluster.check_digests();
    // It stays so.
    cluster.stop();
    cluster.start();
    cluster.check_digests();
    assert_eq!(text(&cluster.path("ap", "us/before")), "before");
}

#[test]
fn node_with_a_damaged_log_or_table_begins_anew_if_its_groups_go_on_without_it() {
    let mut cluster = Cluster::up(Options::default().nodes_per_region(3));
    for number in 0..300 {
        for home in ["us", "eu", ""] {
            std::fs::write(cluster.path("us", home).join(format!("file-{number}")), "x").unwrap();
        }
    }
    cluster.stop();
    // In the first batch of the log; others follow.
    let nodes = cluster.data().join("nodes");
    let segment = files(&nodes.join("us-1/log")).into_iter().min().unwrap();
    let mut bytes = fs::read(&segment).unwrap();
    bytes[512 + 40] ^= 1;
    fs::write(&segment, bytes).unwrap();
    let tables = files(&nodes.join("eu-2/state"));
    for table in tables.iter().filter(|path| path.extension().is_some_and(|end| end == "sst")) {
        let bytes = fs::read(table).unwrap();
        fs::write(table, &bytes[..bytes.len() / 2]).unwrap();
    }
    cluster.start();
    for node in ["us-1", "eu-2"] {
        eventually(Duration::from_secs(90), "the damaged node to be a voter again", || {
            let status = cluster.status();
            let seen = objects_with(&status, &["node", "groups", "pid"]);
            let (_, of_node) =
                seen.iter().map(|seen| (&seen["name"], &seen["groups"])).find(|(name, _)| *name == node)?;
            let number = seen.iter().find(|seen| seen["name"] == node)?["node"].as_u64()?;
            let is_voter = |replica: &serde_json::Value| {
                let incarnation = &replica["incarnation"];
                let mut members = replica["members"].as_array().unwrap().iter();
                incarnation != "0"
                    && members.any(|m| m["node"] == number && m["role"] == "voter" && m["incarnation"] == *incarnation)
            };
            of_node.as_array()?.iter().all(is_voter).then_some(())
        });
        let kept = fs::read_dir(nodes.join(node)).unwrap().map(|entry| entry.unwrap().file_name());
        let kept: Vec<_> = kept.filter(|name| name.to_string_lossy().starts_with("damaged-")).collect();
        assert_eq!(kept.len(), 1, "{node}: {kept:?}");
        let log = text(&cluster.data().join(format!("log/{node}.log")));
        assert!(log.contains("it begins anew, as on a new disk"), "{log}");
    }
    cluster.check_digests();
    for home in ["us", "eu", ""] {
        for number in 0..300 {
            assert_eq!(text(&cluster.path("ap", home).join(format!("file-{number}"))), "x");
        }
    }
}

#[test]
fn damaged_node_that_is_needed_does_not_begin_anew() {
    let mut cluster = Cluster::up(Options::default());
    for number in 0..200 {
        std::fs::write(cluster.path("us", format!("us/file-{number}")), "x").unwrap();
    }
    cluster.stop();
    let node = cluster.data().join("nodes/us-1");
    let segment = files(&node.join("log")).into_iter().min().unwrap();
    let good = fs::read(&segment).unwrap();
    let mut bytes = good.clone();
    bytes[512 + 40] ^= 1;
    fs::write(&segment, bytes).unwrap();
    let output = cluster.globalfs(&["node", "--name", "us-1"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(5), "{said}");
    assert!(said.contains("does not begin anew by itself: it is the only voter of group us"), "{said}");
    assert!(node.join("stamp").exists() && node.join("log").exists(), "its files are where they were");
    fs::write(&segment, good).unwrap();
    cluster.start();
    assert_eq!(text(&cluster.path("eu", "us/file-7")), "x");
}
