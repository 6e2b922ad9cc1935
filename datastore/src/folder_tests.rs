#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use bytes::Bytes;
use futures::StreamExt;

use super::*;
use std::time::Duration;

use crate::bucket::FailureKind;
use crate::{BlobId, Bucket, BucketConfig, Error, ErrorClass, Listed, Region};

/// Tells the child of the crash test where to put its blobs.
const CHILD_FOLDER: &str = "GLOBALFS_TEST_CHILD_FOLDER";

fn open(folder: &FilePath) -> Bucket {
    Bucket::configure(&BucketConfig::new(folder.to_str().unwrap())).unwrap()
}

fn path(sequence: u64) -> Path {
    Path::from(id(sequence).object_path())
}

fn id(sequence: u64) -> BlobId {
    BlobId::new(Region(0), 1, sequence)
}

fn leftovers(folder: &FilePath) -> usize {
    std::fs::read_dir(folder.join(TEMPORARY)).map_or(0, Iterator::count)
}

async fn listed(bucket: &Bucket) -> Vec<Listed> {
    let mut all: Vec<Listed> = bucket.list(None).map(|listed| listed.unwrap()).collect().await;
    all.sort_by_key(|listed| format!("{listed:?}"));
    all
}

#[tokio::test]
async fn folder_put_is_there_whole_and_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let bucket = Bucket::open(&BucketConfig::new(folder.path().to_str().unwrap())).await.unwrap();
    let data = Bytes::from(vec![7; 100_000]);
    bucket.put_new(&path(1), data.clone()).await.unwrap();
    assert_eq!(bucket.read(&path(1), 100_000, Duration::from_secs(5)).await.unwrap(), data);
    assert_eq!(std::fs::read(folder.path().join(id(1).object_path())).unwrap(), data);
    assert_eq!(leftovers(folder.path()), 0);
    assert_eq!(listed(&bucket).await.len(), 1);
}

#[tokio::test]
async fn folder_put_over_existing_object_only_on_demand() {
    let folder = tempfile::tempdir().unwrap();
    let bucket = open(folder.path());
    bucket.put_new(&path(1), Bytes::from_static(b"first")).await.unwrap();
    let failure = bucket.put_new(&path(1), Bytes::from_static(b"other")).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Exists);
    assert_eq!(bucket.read(&path(1), 5, Duration::from_secs(5)).await.unwrap(), "first");
    bucket.put_over(&path(1), Bytes::from_static(b"third")).await.unwrap();
    assert_eq!(bucket.read(&path(1), 5, Duration::from_secs(5)).await.unwrap(), "third");
    assert_eq!(leftovers(folder.path()), 0);
}

#[tokio::test]
async fn folder_leftover_files_are_ignored_and_removed_but_not_those_of_living_writers() {
    let folder = tempfile::tempdir().unwrap();
    let bucket = open(folder.path());
    bucket.put_new(&path(1), Bytes::from_static(b"whole")).await.unwrap();
    std::fs::write(folder.path().join(TEMPORARY).join("crashed"), b"ha").unwrap();
    let living = Temporary::create(&folder.path().join(TEMPORARY)).unwrap();
    assert_eq!(listed(&bucket).await.len(), 1);
    let bucket = open(folder.path());
    assert_eq!(leftovers(folder.path()), 1);
    assert!(living.path.exists());
    assert_eq!(listed(&bucket).await.len(), 1);
    drop(living);
    assert_eq!(leftovers(folder.path()), 0);
}

#[tokio::test]
async fn folder_cleaned_while_putting_starts_again() {
    let folder = tempfile::tempdir().unwrap();
    let bucket = open(folder.path());
    let done = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let cleaner = {
        let (done, folder) = (Arc::clone(&done), folder.path().to_path_buf());
        std::thread::spawn(move || {
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                FolderStore::open(&folder).unwrap();
                std::thread::sleep(Duration::from_micros(200));
            }
        })
    };
    for sequence in 0..100 {
        bucket.put_new(&path(sequence), Bytes::from(vec![1; 5000])).await.unwrap();
    }
    done.store(true, std::sync::atomic::Ordering::Relaxed);
    cleaner.join().unwrap();
    assert_eq!(listed(&bucket).await.len(), 100);
}

#[tokio::test]
async fn folder_gone_is_an_outage_and_is_not_created_again() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("bucket");
    std::fs::create_dir(&folder).unwrap();
    let bucket = open(&folder);
    bucket.put_new(&path(1), Bytes::from_static(b"data")).await.unwrap();
    std::fs::rename(&folder, parent.path().join("elsewhere")).unwrap();
    let failure = bucket.read(&path(1), 4, Duration::from_secs(5)).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Transient, "{}", failure.reason);
    let failure = bucket.put_new(&path(2), Bytes::from_static(b"data")).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Transient, "{}", failure.reason);
    assert!(!folder.exists());
    // Another disk in its place is not ours either.
    std::fs::create_dir(&folder).unwrap();
    let failure = bucket.put_new(&path(2), Bytes::from_static(b"data")).await.unwrap_err();
    assert!(failure.reason.contains("mounted"), "{}", failure.reason);
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 0);
    std::fs::remove_dir(&folder).unwrap();
    std::fs::rename(parent.path().join("elsewhere"), &folder).unwrap();
    assert_eq!(bucket.read(&path(1), 4, Duration::from_secs(5)).await.unwrap(), "data");
    bucket.put_new(&path(2), Bytes::from_static(b"data")).await.unwrap();
}

#[tokio::test]
async fn folder_missing_or_no_folder_is_a_clear_error() {
    let parent = tempfile::tempdir().unwrap();
    let missing = parent.path().join("missing");
    let error = Bucket::configure(&BucketConfig::new(missing.to_str().unwrap())).unwrap_err();
    assert_eq!(error.class(), ErrorClass::Caller);
    assert!(error.to_string().contains("missing") && error.to_string().contains("does not exist"), "{error}");
    let created = BucketConfig { create: true, ..BucketConfig::new(missing.to_str().unwrap()) };
    Bucket::open(&created).await.unwrap();
    let file = parent.path().join("file");
    std::fs::write(&file, b"").unwrap();
    let error = Bucket::configure(&BucketConfig::new(format!("file://{}", file.display()))).unwrap_err();
    assert!(error.to_string().contains("not a folder"), "{error}");
}

#[tokio::test]
async fn folder_that_cannot_be_written_fails_its_check() {
    let folder = tempfile::tempdir().unwrap();
    let bucket = open(folder.path());
    // A file where a folder is needed: works for root too, whom permissions do not stop.
    std::fs::write(folder.path().join("probe"), b"").unwrap();
    let error = bucket.check().await.unwrap_err();
    let Error::Unusable { step, .. } = &error else { panic!("{error}") };
    assert_eq!(*step, "write to it");
    assert!(error.to_string().contains(folder.path().to_str().unwrap()), "{error}");
}

#[tokio::test]
async fn folder_killed_writer_leaves_whole_blobs_only() {
    let folder = tempfile::tempdir().unwrap();
    let mut acknowledged = Vec::new();
    for round in 0..3_u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "folder::tests::crash_child", "--ignored", "--nocapture"])
            .env(CHILD_FOLDER, format!("{}:{round}", folder.path().display()))
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        while acknowledged.len() < 30 * (round as usize + 1) {
            let line = lines.next().expect("the child runs until it is killed").unwrap();
            if let Some(name) = line.strip_prefix("put ") {
                acknowledged.push(name.parse::<BlobId>().unwrap());
            }
        }
        child.kill().unwrap();
        child.wait().unwrap();
        acknowledged
            .extend(lines.map_while(Result::ok).filter_map(|line| line.strip_prefix("put ")?.parse::<BlobId>().ok()));
    }
    let bucket = open(folder.path());
    assert_eq!(leftovers(folder.path()), 0);
    for id in &acknowledged {
        let data = child_data(*id);
        let read = bucket.read(&Path::from(id.object_path()), data.len() as u64, Duration::from_secs(5)).await;
        assert_eq!(read.unwrap(), data);
    }
    for listed in listed(&bucket).await {
        let Listed::Blob { id, len_bytes, .. } = listed else { panic!("{listed:?}") };
        assert_eq!(len_bytes, child_data(id).len() as u64, "unacknowledged, but whole");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "run by folder_killed_writer_leaves_whole_blobs_only"]
async fn crash_child() {
    let Ok(argument) = std::env::var(CHILD_FOLDER) else { return };
    let (folder, writer) = argument.rsplit_once(':').unwrap();
    let (bucket, writer): (Bucket, u64) = (open(FilePath::new(folder)), writer.parse().unwrap());
    futures::stream::iter(0..)
        .for_each_concurrent(8, |sequence| {
            let bucket = bucket.clone();
            async move {
                let id = BlobId::new(Region(0), writer, sequence);
                bucket.put_new(&Path::from(id.object_path()), child_data(id)).await.unwrap();
                println!("put {id}");
            }
        })
        .await;
}

fn child_data(id: BlobId) -> Bytes {
    Bytes::from(vec![(id.sequence % 251) as u8; 20_000 + (id.sequence as usize * 7919) % 300_000])
}
