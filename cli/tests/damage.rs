//! Buckets lose and alter blobs: that is an error, and never other bytes than were written.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::cluster::{Cluster, Options, eventually};
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
