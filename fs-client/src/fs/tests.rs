#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use metadata::op::{NewNode, RenameMode, SetAttr};
use metadata::types::{Attr, FileKind, InodeId, NodeRef};
use multicast::ids::{GroupId, LogIndex, VectorClock};
use proptest::prelude::*;

use super::file::OpenFile;
use super::{Created, Fs, NewEntry, Write};
use crate::config::Consistency;
use crate::errno::Errno;
use crate::testing::{Fate, MemCluster};

const ROOT: NodeRef = NodeRef { ino: InodeId::ROOT, kind: FileKind::Directory, home: GroupId::GLOBAL };

fn node(attr: &Attr) -> NodeRef {
    NodeRef { ino: attr.ino, kind: attr.kind, home: attr.home }
}

fn bytes(name: &str) -> Bytes {
    Bytes::copy_from_slice(name.as_bytes())
}

async fn make(fs: &Arc<Fs>, parent: NodeRef, name: &str, new: NewNode) -> Attr {
    let entry = NewEntry { node: new, mode: 0o755, uid: 0, gid: 0 };
    match fs.create(parent, &bytes(name), &entry).await.unwrap() {
        Created::New(attr) => attr,
        Created::Taken(dirent) => panic!("{name} is taken by {dirent:?}"),
    }
}

async fn make_file(fs: &Arc<Fs>, parent: NodeRef, name: &str) -> (NodeRef, Arc<OpenFile>) {
    let node = node(&make(fs, parent, name, NewNode::File).await);
    fs.table.open(node.ino, node.kind, node.home);
    (node, fs.table.file(node.ino).unwrap())
}

async fn write(fs: &Arc<Fs>, file: &Arc<OpenFile>, offset: u64, bytes: &[u8]) {
    fs.write_settled(file, Write { offset, bytes, append: false, kill_privileges: false }).await.unwrap();
}

async fn append(fs: &Arc<Fs>, file: &Arc<OpenFile>, bytes: &[u8]) {
    fs.write_settled(file, Write { offset: 0, bytes, append: true, kill_privileges: false }).await.unwrap();
}

fn run<T>(test: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap().block_on(test)
}

#[derive(Clone, Debug)]
enum Step {
    Write { offset: u64, len: usize, fill: u8 },
    Append { len: usize, fill: u8 },
    Truncate(u64),
    Read { offset: u64, len: u32 },
    Flush,
    Punch { offset: u64, len: u64 },
    Zero { offset: u64, len: u64 },
    Copy { from: u64, to: u64, len: u64 },
    Stat,
    Other,
}

const SPAN: u64 = 24 << 10;

fn step() -> impl Strategy<Value = Step> {
    let at = || prop_oneof![0..5000_u64, 0..SPAN];
    prop_oneof![
        6 => (at(), 1..6000_usize, any::<u8>()).prop_map(|(offset, len, fill)| Step::Write { offset, len, fill }),
        2 => (1..3000_usize, any::<u8>()).prop_map(|(len, fill)| Step::Append { len, fill }),
        1 => at().prop_map(Step::Truncate),
        5 => (at(), 1..9000_u32).prop_map(|(offset, len)| Step::Read { offset, len }),
        2 => Just(Step::Flush),
        1 => (at(), 1..6000_u64).prop_map(|(offset, len)| Step::Punch { offset, len }),
        1 => (at(), 1..6000_u64).prop_map(|(offset, len)| Step::Zero { offset, len }),
        1 => (0..SPAN / 2, SPAN / 2..SPAN, 1..SPAN / 2).prop_map(|(from, to, len)| Step::Copy { from, to, len }),
        1 => Just(Step::Stat),
        1 => Just(Step::Other),
    ]
}

fn pattern(len: usize, fill: u8) -> Vec<u8> {
    (0..len).map(|at| fill.wrapping_add(at as u8)).collect()
}

struct Model(Vec<u8>);

impl Model {
    fn put(&mut self, offset: u64, bytes: &[u8]) {
        let end = offset as usize + bytes.len();
        if self.0.len() < end {
            self.0.resize(end, 0);
        }
        self.0[offset as usize..end].copy_from_slice(bytes);
    }

    fn zero(&mut self, offset: u64, len: u64) {
        let (from, to) = ((offset as usize).min(self.0.len()), ((offset + len) as usize).min(self.0.len()));
        self.0[from..to].fill(0);
    }

    fn get(&self, offset: u64, len: u64) -> &[u8] {
        let from = (offset as usize).min(self.0.len());
        &self.0[from..(offset.saturating_add(len) as usize).min(self.0.len())]
    }
}

async fn follow(steps: Vec<Step>) {
    let folder = tempfile::tempdir().unwrap();
    let cluster = MemCluster::new(1);
    let fs = cluster.fs(folder.path()).await;
    let other = cluster.fs(folder.path()).await;
    let (node, file) = make_file(&fs, ROOT, "f").await;
    let mut model = Model(Vec::new());
    for step in steps {
        match step {
            Step::Write { offset, len, fill } => {
                let bytes = pattern(len, fill);
                write(&fs, &file, offset, &bytes).await;
                model.put(offset, &bytes);
            }
            Step::Append { len, fill } => {
                let bytes = pattern(len, fill);
                append(&fs, &file, &bytes).await;
                model.put(model.0.len() as u64, &bytes);
            }
            Step::Truncate(size) => {
                let set = SetAttr { size: Some(size), ..SetAttr::default() };
                assert_eq!(fs.set_attr(node, set).await.unwrap().size, size);
                model.0.resize(size as usize, 0);
            }
            Step::Read { offset, len } => {
                let expected = model.get(offset, len.into());
                if let Some(read) = fs.read_cached(node, offset, len) {
                    assert_eq!(&read[..], expected, "cached");
                }
                assert_eq!(&fs.read(node, offset, len).await.unwrap()[..], expected);
            }
            Step::Flush => fs.flush(&file).await.unwrap(),
            Step::Punch { offset, len } => {
                let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
                fs.allocate(&file, offset, len, mode, false).await.unwrap();
                model.zero(offset, len);
            }
            Step::Zero { offset, len } => {
                fs.allocate(&file, offset, len, libc::FALLOC_FL_ZERO_RANGE, false).await.unwrap();
                model.zero(offset, len);
                if model.0.len() < (offset + len) as usize {
                    model.0.resize((offset + len) as usize, 0);
                }
            }
            Step::Copy { from, to, len } => {
                let copied = fs.copy_range((node, from), (&file, to), len, false).await.unwrap();
                let bytes = model.get(from, copied).to_vec();
                assert_eq!(bytes.len() as u64, copied);
                assert!(copied > 0 || from >= model.0.len() as u64);
                if copied > 0 {
                    model.put(to, &bytes);
                }
            }
            Step::Stat => {
                let attr = fs.stat(node).await.unwrap();
                assert_eq!(attr.size, model.0.len() as u64);
                assert!(!file.is_dirty());
            }
            Step::Other => {
                fs.flush(&file).await.unwrap();
                let seen = other.read(node, 0, SPAN as u32 * 4).await.unwrap();
                assert_eq!(&seen[..], &model.0[..], "another client");
            }
        }
        let attr = fs.attr(node).await.unwrap();
        assert_eq!(fs.show(&attr).size, model.0.len() as u64, "shown size");
    }
    fs.flush(&file).await.unwrap();
    let whole = fs.read(node, 0, SPAN as u32 * 4).await.unwrap();
    assert_eq!(&whole[..], &model.0[..]);
    assert_eq!(fs.dirty_bytes.load(Ordering::Relaxed), 0);
    check_seeks(&fs, node, &model).await;
}

/// Data and holes alternate, and what is said to be a hole is zero.
async fn check_seeks(fs: &Arc<Fs>, node: NodeRef, model: &Model) {
    let size = model.0.len() as u64;
    let mut at = 0;
    while at < size {
        let data = match fs.seek(node, at, false).await {
            Ok(data) => data,
            Err(errno) => {
                assert_eq!(errno, Errno::ENXIO);
                size
            }
        };
        assert!(data >= at);
        assert!(model.0[at as usize..data as usize].iter().all(|byte| *byte == 0));
        if data == size {
            break;
        }
        let hole = fs.seek(node, data, true).await.unwrap();
        assert!(hole > data && hole <= size);
        at = hole;
    }
    assert_eq!(fs.seek(node, size, true).await, Err(Errno::ENXIO));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, max_shrink_iters: 300, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn file_behaves_like_a_plain_array(steps in proptest::collection::vec(step(), 1..30)) {
        run(follow(steps));
    }
}

#[test]
fn small_file_is_created_written_and_closed_with_two_updates() {
    run(async {
        let folder = tempfile::tempdir().unwrap();
        let cluster = MemCluster::new(1);
        let fs = cluster.fs(folder.path()).await;
        make_file(&fs, ROOT, "warm").await;
        let before = cluster.counts().0;
        let (_, file) = make_file(&fs, ROOT, "f").await;
        write(&fs, &file, 0, &[1; 1024]).await;
        fs.flush(&file).await.unwrap();
        fs.flush(&file).await.unwrap();
        assert_eq!(cluster.counts().0 - before, 2);
        let blobs = walk(&folder.path().join("bucket/blobs"));
        assert_eq!(blobs, 0, "small files need no bucket");
    });
}

fn walk(folder: &std::path::Path) -> usize {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    let count = |entry: std::fs::DirEntry| if entry.path().is_dir() { walk(&entry.path()) } else { 1 };
    entries.map(|entry| count(entry.unwrap())).sum()
}

#[test]
fn big_sequential_write_becomes_whole_blobs_within_the_buffer() {
    run(async {
        let folder = tempfile::tempdir().unwrap();
        let cluster = MemCluster::new(1);
        let fs = cluster.fs(folder.path()).await;
        let (node, file) = make_file(&fs, ROOT, "big").await;
        let size = 37_u64 << 20;
        for at in 0..size >> 20 {
            write(&fs, &file, at << 20, &vec![at as u8; 1 << 20]).await;
            assert!(fs.dirty_bytes.load(Ordering::Relaxed) <= fs.limits.dirty_bytes_max / 2);
        }
        fs.flush(&file).await.unwrap();
        assert_eq!(walk(&folder.path().join("bucket/blobs")), 10);
        for at in 0..size >> 20 {
            let read = fs.read(node, at << 20, 1 << 20).await.unwrap();
            assert!(read.len() == 1 << 20 && read.iter().all(|byte| *byte == at as u8));
        }
    });
}

#[test]
fn failed_flush_keeps_the_data_and_tells_it_each_time() {
    run(async {
        let folder = tempfile::tempdir().unwrap();
        let cluster = MemCluster::new(1);
        let fs = cluster.fs(folder.path()).await;
        let (node, file) = make_file(&fs, ROOT, "f").await;
        for round in [3000_usize, 30_000] {
            write(&fs, &file, 0, &vec![round as u8; round]).await;
            cluster.cut.store(true, Ordering::Relaxed);
            assert_eq!(fs.flush(&file).await, Err(Errno::ETIMEDOUT));
            assert_eq!(fs.flush(&file).await, Err(Errno::ETIMEDOUT));
            write(&fs, &file, 10, b"later").await;
            cluster.cut.store(false, Ordering::Relaxed);
            fs.flush(&file).await.unwrap();
            let read = fs.read(node, 0, 60_000).await.unwrap();
            assert_eq!(
                (read.len(), &read[8..16]),
                (round, &[&[round as u8; 2][..], b"later", &[round as u8]].concat()[..])
            );
        }
    });
}

fn size(size: u64) -> SetAttr {
    SetAttr { size: Some(size), ..SetAttr::default() }
}

#[test]
fn append_of_unknown_fate_is_asked_for_again_and_is_there_once() {
    run(async {
        let folder = tempfile::tempdir().unwrap();
        let cluster = MemCluster::new(1);
        let fs = cluster.fs(folder.path()).await;
        let (node, file) = make_file(&fs, ROOT, "f").await;
        let mut expected = Vec::new();
        for (round, len) in [4, 9000].into_iter().enumerate() {
            for fate in [Fate::AnswerLost, Fate::Late] {
                let part = vec![b'a' + round as u8; len];
                append(&fs, &file, &part).await;
                cluster.doom([fate]);
                assert_eq!(fs.flush(&file).await, Err(Errno::ETIMEDOUT));
                append(&fs, &file, b"later").await;
                cluster.deliver_late();
                fs.flush(&file).await.unwrap();
                expected.extend([&part[..], b"later"].concat());
                assert_eq!(&fs.read(node, 0, 1 << 20).await.unwrap()[..], &expected[..], "{fate:?}");
            }
        }
        // Nobody can say any more: told once, and never repeated.
        append(&fs, &file, b"lost").await;
        cluster.doom([Fate::AnswerLost, Fate::SessionLost]);
        assert_eq!(fs.flush(&file).await, Err(Errno::ETIMEDOUT));
        append(&fs, &file, b"!").await;
        assert_eq!(fs.flush(&file).await, Err(Errno::EIO));
        fs.flush(&file).await.unwrap();
        assert_eq!(&fs.read(node, 0, 1 << 20).await.unwrap()[..], &[&expected[..], b"lost!"].concat()[..]);
        assert_eq!(fs.dirty_bytes.load(Ordering::Relaxed), 0);
    });
}

#[test]
fn write_of_unknown_fate_does_not_come_again_over_what_others_wrote_since() {
    run(async {
        let folder = tempfile::tempdir().unwrap();
        let cluster = MemCluster::new(1);
        let (fs, other) = (cluster.fs(folder.path()).await, cluster.fs(folder.path()).await);
        let (node, file) = make_file(&fs, ROOT, "f").await;
        other.table.open(node.ino, node.kind, node.home);
        let other_file = other.table.file(node.ino).unwrap();
        for len in [100_usize, 100_000] {
            for fate in [Fate::AnswerLost, Fate::Late] {
                write(&fs, &file, 0, &vec![1; len]).await;
                cluster.doom([fate]);
                assert_eq!(fs.flush(&file).await, Err(Errno::ETIMEDOUT));
                assert_eq!(fs.read(node, 0, 10).await.unwrap()[..], [1; 10], "its writer sees it meanwhile");
                assert!(file.is_dirty());
                cluster.deliver_late();
                write(&other, &other_file, 10, &[2; 10]).await;
                other.flush(&other_file).await.unwrap();
                write(&fs, &file, 30, &[3; 10]).await;
                fs.flush(&file).await.unwrap();
                let read = fs.read(node, 0, 1 << 20).await.unwrap();
                assert_eq!(read.len(), len);
                assert_eq!((read[10], read[20], read[30], read[40]), (2, 1, 3, 1), "{len} {fate:?}");
            }
        }
    });
}

#[test]
fn write_in_several_commands_goes_on_behind_the_one_that_was_not_answered() {
    run(async {
        let folder = tempfile::tempdir().unwrap();
        let cluster = MemCluster::new(1);
        let mut config = cluster.config();
        config.limits.changes_max = 2;
        let store = crate::testing::store(folder.path()).await;
        let fs = Fs::start(cluster.client(), &config, Some(store));
        let (node, file) = make_file(&fs, ROOT, "f").await;
        let work = file.work.lock().await;
        for part in 0..5_u8 {
            let bytes = [part + 1; 5000];
            let write =
                Write { offset: u64::from(part) * 10_000, bytes: &bytes, append: false, kill_privileges: false };
            fs.write(&file, write).unwrap();
        }
        drop(work);
        cluster.trips();
        cluster.doom([Fate::Answered, Fate::Late]);
        assert_eq!(fs.flush(&file).await, Err(Errno::ETIMEDOUT));
        fs.flush(&file).await.unwrap();
        assert_eq!(cluster.trips(), ["Write 0"; 4], "two, the second of them again, and one more");
        cluster.deliver_late();
        let read = fs.read(node, 0, 1 << 20).await.unwrap();
        assert!(
            (0..5).all(|part| read[part * 10_000] == part as u8 + 1 && read[part * 10_000 + 4999] == part as u8 + 1)
        );
        assert!(!file.is_dirty());
    });
}

#[test]
fn truncate_waits_for_what_became_of_a_write_before_it() {
    run(async {
        let folder = tempfile::tempdir().unwrap();
        let cluster = MemCluster::new(1);
        let fs = cluster.fs(folder.path()).await;
        let (node, file) = make_file(&fs, ROOT, "f").await;
        write(&fs, &file, 0, b"content").await;
        cluster.doom([Fate::Late]);
        assert_eq!(fs.flush(&file).await, Err(Errno::ETIMEDOUT));
        assert_eq!(fs.set_attr(node, size(0)).await.unwrap().size, 0);
        cluster.deliver_late();
        assert_eq!(fs.read(node, 0, 100).await.unwrap().len(), 0, "it has not come back");
    });
}

/// A file system over a bucket that fails when told to.
fn with_faulty_bucket(cluster: &Arc<MemCluster>, folder: &std::path::Path) -> (Arc<Fs>, datastore::faulty::Faults) {
    use datastore::{BlobStore, Cache, CacheConfig, Direct, Region, StoreLimits};
    let (bucket, faults) = datastore::faulty::memory_bucket("b");
    let cache = Cache::open(CacheConfig::new(folder.join("cache"))).unwrap();
    let limits = StoreLimits { deadline: std::time::Duration::from_millis(300), ..StoreLimits::default() };
    let store = BlobStore::new(Region(0), [(Region(0), bucket)], Some(cache), Arc::new(Direct), limits).unwrap();
    (Fs::start(cluster.client(), &cluster.config(), Some(store)), faults)
}

#[test]
fn room_of_failed_uploads_comes_back_however_their_data_go() {
    use datastore::faulty::{Fault, Operation};
    run(async {
        let folder = tempfile::tempdir().unwrap();
        let cluster = MemCluster::new(1);
        let (fs, faults) = with_faulty_bucket(&cluster, folder.path());
        let status = || fs.blobs.as_ref().unwrap().uploader.status();
        let dirty = || fs.dirty_bytes.load(Ordering::Relaxed);
        for round in 0..4 {
            let (node, file) = make_file(&fs, ROOT, &format!("f{round}")).await;
            faults.always(Operation::Put, Some(Fault::Deny));
            // A whole blob, and some that share one.
            write(&fs, &file, 0, &vec![1; 4 << 20]).await;
            write(&fs, &file, 5 << 20, &[1; 10_000]).await;
            write(&fs, &file, 6 << 20, &[1; 10_000]).await;
            assert_eq!(fs.flush(&file).await, Err(Errno::EIO));
            assert!(status().bytes > 4 << 20, "{:?}", status());
            match round {
                // Overwritten, as writers do that try again.
                0 => {
                    for _ in 0..3 {
                        write(&fs, &file, 0, &vec![2; 7 << 20]).await;
                        assert_eq!(fs.flush(&file).await, Err(Errno::EIO));
                        assert!(status().bytes <= 8 << 20, "{:?}", status());
                    }
                    faults.heal();
                    fs.flush(&file).await.unwrap();
                    let read = fs.read(node, 3 << 20, 4 << 20).await.unwrap();
                    assert!(read.iter().all(|byte| *byte == 2) && read.len() == 4 << 20);
                }
                1 => drop(fs.set_attr(node, size(0)).await.unwrap()),
                // Given up: what was not even tried to be flushed as well.
                2 => {
                    write(&fs, &file, 1 << 20, &[3; 1000]).await;
                    assert!(dirty() > 0);
                }
                // The last flush fails, too.
                _ => {
                    write(&fs, &file, 8 << 20, &[3; 1000]).await;
                    assert_eq!(fs.flush(&file).await, Err(Errno::EIO));
                }
            }
            fs.close_handle(node.ino);
            assert_eq!((status().bytes, status().failed, dirty()), (0, 0, 0), "round {round}");
            drop(file);
        }
    });
}

#[test]
fn file_that_is_closed_while_nobody_answers_leaves_nothing_behind() {
    run(async {
        let folder = tempfile::tempdir().unwrap();
        let cluster = MemCluster::new(1);
        let fs = cluster.fs(folder.path()).await;
        for at_end in [false, true] {
            let (node, file) = make_file(&fs, ROOT, &format!("f{at_end}")).await;
            cluster.cut.store(true, Ordering::Relaxed);
            match at_end {
                true => append(&fs, &file, &[1; 50_000]).await,
                false => write(&fs, &file, 0, &[1; 50_000]).await,
            }
            assert_eq!(fs.flush(&file).await, Err(Errno::ETIMEDOUT));
            assert!(file.is_dirty());
            fs.close_handle(node.ino);
            cluster.cut.store(false, Ordering::Relaxed);
            assert!(!file.is_dirty());
            assert_eq!(fs.dirty_bytes.load(Ordering::Relaxed), 0);
        }
    });
}

/// What background questions have to say, too.
async fn quiet() {
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
}

/// As the kernel does before it creates or renames: is the name free?
async fn look(fs: &Arc<Fs>, dir: NodeRef, name: &str) -> bool {
    match fs.lookup_cached(dir.ino, name.as_bytes()) {
        Some(found) => found.is_ok(),
        None => fs.lookup(dir, &bytes(name)).await.is_ok(),
    }
}

/// Two directories in two far groups, whose mount is warm.
async fn far_directories(fs: &Arc<Fs>, cluster: &Arc<MemCluster>) -> [NodeRef; 2] {
    let mut dirs = [ROOT; 2];
    fs.table.remember(&fs.attr(ROOT).await.unwrap());
    for (group, dir) in [1, 2].into_iter().zip(&mut dirs) {
        let placed = NewNode::Directory { placement: Some(GroupId(group)) };
        let attr = make(fs, ROOT, &format!("g{group}"), placed).await;
        fs.table.remember(&attr);
        *dir = node(&attr);
        make(fs, *dir, "before", NewNode::File).await;
        // The first name that is not there makes the mount learn all that are.
        assert!(!look(fs, *dir, "none").await);
    }
    quiet().await;
    cluster.trips();
    dirs
}

#[test]
fn warm_operations_in_far_groups_cost_one_request_each() {
    run(async {
        let folder = tempfile::tempdir().unwrap();
        let cluster = MemCluster::new(3);
        let fs = cluster.fs(folder.path()).await;
        let [a, b] = far_directories(&fs, &cluster).await;
        let costs = |expected: &'static [&'static str]| {
            let cluster = cluster.clone();
            async move {
                quiet().await;
                assert_eq!(cluster.trips(), expected);
            }
        };

        assert!(!look(&fs, a, "f").await);
        let (f, file) = make_file(&fs, a, "f").await;
        write(&fs, &file, 0, b"small").await;
        fs.flush(&file).await.unwrap();
        fs.close_handle(f.ino);
        costs(&["Create 1", "Write 1"]).await;

        assert_eq!(fs.stat(f).await.unwrap().size, 5);
        assert_eq!(fs.stat(a).await.unwrap().size, 2, "the directory");
        costs(&[]).await;

        assert!(!look(&fs, a, "second").await);
        let second = node(&make(&fs, a, "second", NewNode::File).await);
        assert!(look(&fs, a, "second").await);
        costs(&["Create 1"]).await;

        assert!(look(&fs, a, "second").await && !look(&fs, a, "third").await);
        fs.rename((a, &bytes("second")), (a, &bytes("third")), RenameMode::Replace).await.unwrap();
        assert!(!look(&fs, a, "second").await && look(&fs, a, "third").await);
        costs(&["Rename 1"]).await;

        assert!(look(&fs, a, "third").await && !look(&fs, b, "moved").await);
        fs.rename((a, &bytes("third")), (b, &bytes("moved")), RenameMode::Replace).await.unwrap();
        costs(&["Rename 1+2"]).await;

        assert!(look(&fs, a, "f").await);
        fs.remove(a, &bytes("f"), false).await.unwrap();
        assert!(!look(&fs, a, "f").await && !look(&fs, a, "third").await);
        costs(&["Unlink 1"]).await;
        assert_eq!(fs.attr(second).await.unwrap().home, GroupId(2));
    });
}

#[test]
fn names_in_a_directory_that_is_known_as_a_whole_are_right_whoever_changes_them() {
    run(async {
        let folder = tempfile::tempdir().unwrap();
        let cluster = MemCluster::new(3);
        let (fs, other) = (cluster.fs(folder.path()).await, cluster.fs(folder.path()).await);
        let [a, _] = far_directories(&fs, &cluster).await;
        for round in 0..20 {
            let name = format!("f{round}");
            assert!(!look(&fs, a, &name).await);
            make(&other, a, &name, NewNode::File).await;
            assert!(look(&fs, a, &name).await, "another has made it");
            make(&fs, a, &format!("own{round}"), NewNode::File).await;
            other.remove(a, &bytes(&name), false).await.unwrap();
            assert!(!look(&fs, a, &name).await);
            assert!(look(&fs, a, &format!("own{round}")).await);
        }
    });
}

#[test]
fn failed_truncate_keeps_what_was_written() {
    run(async {
        let folder = tempfile::tempdir().unwrap();
        let cluster = MemCluster::new(1);
        let fs = cluster.fs(folder.path()).await;
        let (node, file) = make_file(&fs, ROOT, "f").await;
        for to in [0, 3] {
            write(&fs, &file, 0, b"content").await;
            cluster.cut.store(true, Ordering::Relaxed);
            assert_eq!(fs.set_attr(node, size(to)).await, Err(Errno::ETIMEDOUT));
            cluster.cut.store(false, Ordering::Relaxed);
            fs.flush(&file).await.unwrap();
            assert_eq!(&fs.read(node, 0, 100).await.unwrap()[..], b"content");
            write(&fs, &file, 5, b"more").await;
            assert_eq!(fs.set_attr(node, size(to)).await.unwrap().size, to);
            assert!(!file.is_dirty());
            assert_eq!(&fs.read(node, 0, 100).await.unwrap()[..], &b"con"[..to as usize]);
        }
        append(&fs, &file, b"!").await;
        cluster.cut.store(true, Ordering::Relaxed);
        assert_eq!(fs.set_attr(node, size(0)).await, Err(Errno::ETIMEDOUT));
        cluster.cut.store(false, Ordering::Relaxed);
        assert_eq!(&fs.read(node, 0, 100).await.unwrap()[..], b"con!");
    });
}

/// A file whose inode is gone, though the mount has it open.
async fn make_stale(fs: &Arc<Fs>, name: &str) -> (NodeRef, Arc<OpenFile>) {
    let (node, file) = make_file(fs, ROOT, name).await;
    fs.remove(ROOT, &bytes(name), false).await.unwrap();
    fs.release_orphans(node.home, vec![node.ino]).await;
    (node, file)
}

#[test]
fn dropped_data_are_told_by_the_next_fsync_whoever_found_out() {
    run(async {
        let folder = tempfile::tempdir().unwrap();
        let cluster = MemCluster::new(1);
        let fs = cluster.fs(folder.path()).await;
        let (node, file) = make_stale(&fs, "f").await;
        for round in 0..3 {
            write(&fs, &file, 0, b"content").await;
            match round {
                0 => drop(fs.stat(node).await),
                1 => fs.flush_unasked(&file).await,
                _ => drop(fs.set_attr(node, size(1)).await),
            }
            assert!(!file.is_dirty());
            drop(fs.stat(node).await);
            fs.settle(&file).await;
            assert_eq!(fs.flush(&file).await, Err(Errno::ESTALE));
            fs.flush(&file).await.unwrap();
        }
    });
}

#[test]
fn write_that_fails_has_taken_nothing() {
    run(async {
        let cluster = MemCluster::new(1);
        let fs = Fs::start(cluster.client(), &cluster.config(), None);
        let (_, file) = make_file(&fs, ROOT, "f").await;
        let part = vec![1; 1 << 20];
        let write = |append, offset| Write { offset, bytes: &part, append, kill_privileges: false };
        let held = |file: &Arc<OpenFile>| file.with(&fs.dirty_bytes, |dirty| dirty.memory_bytes());
        // A flush hangs: what is taken meanwhile is bounded.
        let work = file.work.lock().await;
        for _ in 0..4 {
            assert_ne!(fs.write(&file, write(true, 0)), Ok(super::Written::FlushFirst));
        }
        assert_eq!(fs.write(&file, write(true, 0)), Ok(super::Written::FlushFirst));
        assert_eq!(held(&file), 4 << 20);
        drop(work);
        let _ = fs.flush(&file).await;
        let (_, other) = make_file(&fs, ROOT, "other").await;
        let _work = other.work.lock().await;
        let mut taken = 0_u64;
        while fs.write(&other, write(false, (taken * 2) << 20)).unwrap() != super::Written::FlushFirst {
            taken += 1;
        }
        assert_eq!(held(&other) as u64, taken << 20);
        assert!(held(&other) <= (fs.limits.dirty_bytes_max / 2) + part.len());
        assert_ne!(fs.write(&file, write(false, 0)), Ok(super::Written::FlushFirst), "another file writes through");
    });
}

#[test]
fn flush_takes_what_was_there_at_its_start() {
    run(async {
        let folder = tempfile::tempdir().unwrap();
        let cluster = MemCluster::new(1);
        let fs = cluster.fs(folder.path()).await;
        let (_, file) = make_file(&fs, ROOT, "f").await;
        let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let writer = std::thread::spawn({
            let (fs, file, stop) = (fs.clone(), file.clone(), stop.clone());
            move || {
                while !stop.load(Ordering::Relaxed) {
                    let write = Write { offset: 0, bytes: b"busy", append: false, kill_privileges: false };
                    fs.write(&file, write).unwrap();
                }
            }
        });
        for _ in 0..20 {
            tokio::time::timeout(std::time::Duration::from_secs(3), fs.flush(&file)).await.unwrap().unwrap();
        }
        stop.store(true, Ordering::Relaxed);
        writer.join().unwrap();
    });
}

#[test]
fn appends_of_two_clients_interleave_whole() {
    run(async {
        let folder = tempfile::tempdir().unwrap();
        let cluster = MemCluster::new(1);
        let (one, two) = (cluster.fs(folder.path()).await, cluster.fs(folder.path()).await);
        let (node, file) = make_file(&one, ROOT, "log").await;
        two.table.open(node.ino, node.kind, node.home);
        let file_two = two.table.file(node.ino).unwrap();
        for round in 0..20 {
            append(&one, &file, format!("one {round:04}\n").as_bytes()).await;
            append(&two, &file_two, format!("two {round:04}\n").as_bytes()).await;
            if round % 3 == 0 {
                one.flush(&file).await.unwrap();
            }
        }
        one.flush(&file).await.unwrap();
        two.flush(&file_two).await.unwrap();
        let read = one.read(node, 0, 1 << 16).await.unwrap();
        let text = std::str::from_utf8(&read).unwrap();
        for who in ["one", "two"] {
            let lines: Vec<&str> = text.lines().filter(|line| line.starts_with(who)).collect();
            let expected: Vec<String> = (0..20).map(|round| format!("{who} {round:04}")).collect();
            assert_eq!(lines, expected);
        }
    });
}

#[test]
fn names_are_found_cached_and_invalidated_across_clients_and_groups() {
    run(async {
        let folder = tempfile::tempdir().unwrap();
        let cluster = MemCluster::new(3);
        let (one, two) = (cluster.fs(folder.path()).await, cluster.fs(folder.path()).await);
        let placed = |group| NewNode::Directory { placement: Some(GroupId(group)) };
        let a = node(&make(&one, ROOT, "a", placed(1)).await);
        let b = node(&make(&one, ROOT, "b", placed(2)).await);
        assert_eq!((a.home, b.home), (GroupId(1), GroupId(2)));
        let f = make(&one, a, "f", NewNode::File).await;
        assert_eq!(f.home, GroupId(1));
        assert_eq!(two.lookup(a, &bytes("f")).await.unwrap().ino, f.ino);
        two.table.remember(&two.attr(a).await.unwrap());
        assert!(two.lookup_cached(a.ino, b"f").unwrap().is_ok());
        assert_eq!(two.lookup(b, &bytes("g")).await, Err(Errno::ENOENT));

        one.rename((a, &bytes("f")), (b, &bytes("g")), RenameMode::Replace).await.unwrap();
        assert_eq!(two.lookup(a, &bytes("f")).await, Err(Errno::ENOENT));
        let moved = two.lookup(b, &bytes("g")).await.unwrap();
        assert_eq!((moved.ino, moved.home), (f.ino, GroupId(2)));
        assert_eq!(two.attr(node(&f)).await.unwrap().home, GroupId(2), "asked for where it was");

        // A directory is moved without its content.
        let d = node(&make(&one, a, "d", NewNode::Directory { placement: None }).await);
        make(&one, d, "inner", NewNode::File).await;
        two.rename((a, &bytes("d")), (b, &bytes("d")), RenameMode::NoReplace).await.unwrap();
        assert_eq!(one.attr(d).await.unwrap().parent, Some(b.ino));
        let deep = node(&make(&one, d, "deep", NewNode::Directory { placement: None }).await);
        let into_itself = two.rename((b, &bytes("d")), (deep, &bytes("x")), RenameMode::Replace).await;
        assert_eq!(into_itself, Err(Errno::EINVAL));
        assert_eq!(one.remove(b, &bytes("d"), true).await, Err(Errno::ENOTEMPTY));
        assert_eq!(one.remove(b, &bytes("d"), false).await, Err(Errno::EISDIR));
        one.remove(b, &bytes("g"), false).await.unwrap();
        assert_eq!(two.lookup(b, &bytes("g")).await, Err(Errno::ENOENT));
    });
}

#[test]
fn unlinked_file_lives_until_the_last_close_anywhere() {
    run(async {
        let folder = tempfile::tempdir().unwrap();
        let cluster = MemCluster::new(1);
        let (one, two) = (cluster.fs(folder.path()).await, cluster.fs(folder.path()).await);
        let (node, file) = make_file(&one, ROOT, "f").await;
        write(&one, &file, 0, b"still here").await;
        one.flush(&file).await.unwrap();
        two.remove(ROOT, &bytes("f"), false).await.unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        assert_eq!(one.stat(node).await.unwrap().nlink, 0);
        write(&one, &file, 10, b", and growing").await;
        one.flush(&file).await.unwrap();
        assert_eq!(&one.read(node, 0, 100).await.unwrap()[..], b"still here, and growing");
        one.close_handle(node.ino);
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        assert_eq!(one.attr(node).await, Err(Errno::ESTALE));
    });
}

#[test]
fn file_that_is_opened_while_it_is_being_removed_is_kept_or_not_opened() {
    run(async {
        let folder = tempfile::tempdir().unwrap();
        let cluster = MemCluster::new(1);
        let fs = cluster.fs(folder.path()).await;
        for opened_before in [false, true] {
            let name = if opened_before { "before" } else { "meanwhile" };
            let node = node(&make(&fs, ROOT, name, NewNode::File).await);
            if opened_before {
                fs.table.open(node.ino, node.kind, node.home);
            }
            let removal = fs.begin_removal(node.ino);
            assert_eq!(removal.keep_open, opened_before);
            fs.table.open(node.ino, node.kind, node.home);
            assert!(fs.is_being_removed(node.ino));
            let opening = tokio::spawn({
                let fs = fs.clone();
                async move { fs.settle_open(node).await }
            });
            quiet().await;
            assert!(!opening.is_finished(), "nobody knows yet");
            // A removal that was asked for when the file was open or not, as said.
            let op = metadata::op::FsOp::Unlink {
                parent: ROOT,
                name: bytes(name),
                target: node,
                keep_open: removal.keep_open,
            };
            fs.volume.update(op).await.unwrap().unwrap();
            drop(removal);
            let expected = if opened_before { Ok(()) } else { Err(Errno::ESTALE) };
            assert_eq!(opening.await.unwrap(), expected);
            assert_eq!(fs.table.is_open(node.ino), opened_before);
            assert!(!fs.is_being_removed(node.ino));
        }
    });
}

#[test]
fn directory_is_listed_in_pages_that_survive_removals() {
    run(async {
        let folder = tempfile::tempdir().unwrap();
        let cluster = MemCluster::new(2);
        let fs = cluster.fs(folder.path()).await;
        let dir = node(&make(&fs, ROOT, "dir", NewNode::Directory { placement: Some(GroupId(1)) }).await);
        for number in 0..1500 {
            make(&fs, dir, &format!("f{number}"), NewNode::File).await;
        }
        let open = super::Directory::new(dir.ino);
        fs.table.remember(&fs.attr(dir).await.unwrap());
        for plus in [false, true] {
            let (mut offset, mut names) = (0, Vec::new());
            loop {
                // The kernel's buffer takes only some at a time.
                let listed = fs.read_dir(&open, offset, plus).await.unwrap();
                let Some(last) = listed.iter().take(100).next_back() else { break };
                offset = last.offset;
                names.extend(listed.iter().take(100).map(|entry| String::from_utf8(entry.name.to_vec()).unwrap()));
            }
            assert_eq!(names.len(), 1502);
            assert_eq!(&names[..2], [".", ".."]);
            names.sort();
            names.dedup();
            assert_eq!(names.len(), 1502);
        }
        let first = fs.read_dir(&open, 0, false).await.unwrap();
        for number in 0..1500 {
            fs.remove(dir, &bytes(&format!("f{number}")), false).await.unwrap();
        }
        assert!(fs.read_dir(&open, first.last().unwrap().offset, false).await.unwrap().is_empty());
        assert_eq!(fs.read_dir(&open, 0, false).await.unwrap().len(), 2);
    });
}

#[test]
fn copy_shares_blobs_within_a_group_and_copies_across() {
    run(async {
        let folder = tempfile::tempdir().unwrap();
        let cluster = MemCluster::new(2);
        let fs = cluster.fs(folder.path()).await;
        let (source, file) = make_file(&fs, ROOT, "source").await;
        let content = pattern(100_000, 9);
        write(&fs, &file, 0, &content).await;
        fs.flush(&file).await.unwrap();
        let blobs = walk(&folder.path().join("bucket/blobs"));
        let (near, near_file) = make_file(&fs, ROOT, "near").await;
        assert_eq!(fs.copy_range((source, 10), (&near_file, 5), 1 << 20, false).await, Ok(99_990));
        assert_eq!(walk(&folder.path().join("bucket/blobs")), blobs, "shared");
        let dir = node(&make(&fs, ROOT, "dir", NewNode::Directory { placement: Some(GroupId(1)) }).await);
        let (far, far_file) = make_file(&fs, dir, "far").await;
        assert_eq!(fs.copy_range((source, 10), (&far_file, 5), 1 << 20, false).await, Ok(99_990));
        fs.flush(&far_file).await.unwrap();
        for copy in [near, far] {
            let read = fs.read(copy, 0, 1 << 20).await.unwrap();
            assert_eq!((&read[..5], &read[5..]), (&[0; 5][..], &content[10..]));
        }
    });
}

#[test]
fn repeated_write_of_a_collected_blob_is_uploaded_again_or_told_to_be_lost_once() {
    use metadata::op::FsOp;
    run(async {
        let folder = tempfile::tempdir().unwrap();
        let cluster = MemCluster::new(1);
        let fs = cluster.fs(folder.path()).await;
        let writer = fs.volume.session().0;
        let blob = |sequence| metadata::types::BlobId { origin: 0, writer, sequence };
        for is_append in [false, true] {
            let (node, file) = make_file(&fs, ROOT, if is_append { "a" } else { "b" }).await;
            let content = vec![7; 100_000];
            match is_append {
                true => append(&fs, &file, &content).await,
                false => write(&fs, &file, 0, &content).await,
            }
            cluster.doom([Fate::Late]);
            assert_eq!(fs.flush(&file).await, Err(Errno::ETIMEDOUT));
            let last = fs.blobs.as_ref().unwrap().next.load(Ordering::Relaxed) - 1;
            let collected = FsOp::Collected { home: GroupId::GLOBAL, blobs: vec![blob(last)] };
            fs.volume.update(collected).await.unwrap().unwrap();
            write(&fs, &file, 200_000, b"later").await;
            fs.flush(&file).await.unwrap();
            let read = fs.read(node, 0, 1 << 20).await.unwrap();
            assert_eq!((read.len(), &read[..100_000]), (200_005, &content[..]));
        }
        let (node, file) = make_file(&fs, ROOT, "c").await;
        write(&fs, &file, 0, &[8; 100_000]).await;
        cluster.doom([Fate::Late]);
        assert_eq!(fs.flush(&file).await, Err(Errno::ETIMEDOUT));
        let blobs = fs.blobs.as_ref().unwrap();
        let last = blob(blobs.next.load(Ordering::Relaxed) - 1);
        let collected = FsOp::Collected { home: GroupId::GLOBAL, blobs: vec![last] };
        fs.volume.update(collected).await.unwrap().unwrap();
        assert!(blobs.store.delete(&[super::blob_id(last)]).await.is_empty());
        assert_eq!(fs.flush(&file).await, Err(Errno::EIO));
        fs.flush(&file).await.unwrap();
        assert_eq!(fs.read(node, 0, 10).await.unwrap().len(), 0);
    });
}

#[test]
fn full_bucket_is_told_at_once_loses_nothing_and_is_used_again_when_it_has_room() {
    use datastore::faulty::{Fault, Operation};
    run(async {
        let folder = tempfile::tempdir().unwrap();
        let cluster = MemCluster::new(1);
        let (fs, faults) = with_faulty_bucket(&cluster, folder.path());
        let (node, file) = make_file(&fs, ROOT, "f").await;
        faults.always(Operation::Put, Some(Fault::Full));
        let started = std::time::Instant::now();
        let part = |at: u64| vec![at as u8; 1 << 20];
        let mut taken = 0;
        let refused = loop {
            let bytes = part(taken);
            let write = Write { offset: taken << 20, bytes: &bytes, append: false, kill_privileges: false };
            match fs.write_settled(&file, write).await {
                Ok(()) => taken += 1,
                Err(error) => break error,
            }
        };
        assert_eq!(refused, Errno::ENOSPC);
        assert_eq!(fs.flush(&file).await, Err(Errno::ENOSPC));
        assert_eq!(fs.stat(node).await.unwrap().size, taken << 20);
        let (_, small) = make_file(&fs, ROOT, "small").await;
        write(&fs, &small, 0, b"inline").await;
        fs.flush(&small).await.unwrap();
        fs.remove(ROOT, &bytes("small"), false).await.unwrap();
        assert!(started.elapsed() < std::time::Duration::from_secs(3), "nobody waits: {:?}", started.elapsed());
        faults.heal();
        write(&fs, &file, taken << 20, &part(taken)).await;
        fs.flush(&file).await.unwrap();
        for at in 0..=taken {
            assert_eq!(fs.read(node, at << 20, 1 << 20).await.unwrap()[..], part(at)[..]);
        }
        assert!(!fs.is_bucket_failing());
    });
}

#[test]
fn release_of_an_orphan_without_an_answer_is_asked_for_again() {
    run(async {
        let cluster = MemCluster::new(1);
        let fs = Fs::start(cluster.client(), &cluster.config(), None);
        let node = node(&make(&fs, ROOT, "f", NewNode::File).await);
        cluster.cut.store(true, Ordering::Relaxed);
        fs.release_orphans(node.home, vec![node.ino]).await;
        cluster.cut.store(false, Ordering::Relaxed);
        cluster.trips();
        let until = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while !cluster.trips().iter().any(|trip| trip.starts_with("ReleaseOrphans")) {
            assert!(std::time::Instant::now() < until, "dropped");
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    });
}

#[test]
fn linearizable_reads_ask_each_time_and_share_no_answer() {
    run(async {
        let folder = tempfile::tempdir().unwrap();
        let cluster = MemCluster::new(1);
        *cluster.consistency.lock() = Consistency::Linearizable;
        let fs = cluster.fs(folder.path()).await;
        let (file, open) = make_file(&fs, ROOT, "f").await;
        write(&fs, &open, 0, b"old").await;
        fs.flush(&open).await.unwrap();
        let asked = |before: u64| cluster.counts().1 - before;
        for round in 0..3 {
            let before = cluster.counts().1;
            let (one, other) = tokio::join!(fs.attr(file), fs.attr(file));
            assert_eq!((one.unwrap().size, other.unwrap().size), (3, 3));
            assert_eq!(asked(before), 2, "attributes, round {round}");
            assert!(fs.cached_attr(file.ino).is_none() && fs.lookup_cached(ROOT.ino, b"f").is_none());
            assert!(fs.lookup_cached(ROOT.ino, b"none").is_none() && fs.read_cached(file, 0, 3).is_none());
            let before = cluster.counts().1;
            assert_eq!(fs.lookup(ROOT, &bytes("f")).await.unwrap().size, 3);
            assert_eq!(fs.lookup(ROOT, &bytes("none")).await.unwrap_err(), Errno::ENOENT);
            assert_eq!(fs.read(file, 0, 9).await.unwrap(), &b"old"[..]);
            fs.usage(ROOT).await.unwrap();
            assert!(asked(before) >= 4, "name, no name, content, usage, round {round}");
        }
    });
}

#[test]
fn only_the_first_who_opens_a_file_of_a_group_that_is_cut_off_waits_for_it() {
    run(async {
        let folder = tempfile::tempdir().unwrap();
        let cluster = MemCluster::new(1);
        let fs = cluster.fs(folder.path()).await;
        let waited = async || {
            let begun = std::time::Instant::now();
            fs.ensure_session(GroupId(0)).await;
            begun.elapsed()
        };
        cluster.cut.store(true, Ordering::Relaxed);
        waited().await;
        assert!(waited().await < std::time::Duration::from_millis(100));
        cluster.cut.store(false, Ordering::Relaxed);
        while !fs.unregistered.lock().is_empty() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        cluster.cut.store(true, Ordering::Relaxed);
        assert!(waited().await > std::time::Duration::from_millis(100), "it may be there again");
    });
}

/// An effect of a stranger's update was seen elsewhere: the group is asked, but its stream comes to it before the answer does.
#[test]
fn what_is_kept_answers_as_soon_as_the_stream_has_come_so_far() {
    run(async {
        let cluster = MemCluster::new(1);
        let client = cluster.client();
        let fs = Fs::start(client.clone(), &cluster.config(), None);
        make(&fs, ROOT, "dir", NewNode::Directory { placement: None }).await;
        let known = fs.lookup(ROOT, &bytes("dir")).await.unwrap();
        let far = LogIndex(1 << 20);
        client.settle_stream(ROOT.home, far);
        let mut effects = VectorClock::new();
        effects.advance_effects(ROOT.home, LogIndex(far.0 + 1), multicast::ids::SessionId(1));
        client.depend(&effects);
        cluster.mute.store(true, Ordering::Relaxed);
        cluster.trips();
        let lookup = tokio::spawn({
            let fs = fs.clone();
            async move { fs.lookup(ROOT, &bytes("dir")).await }
        });
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        assert!(!lookup.is_finished() && cluster.trips() == ["Lookup 0"]);
        client.settle_stream(ROOT.home, LogIndex(far.0 + 1));
        let answer = tokio::time::timeout(std::time::Duration::from_secs(10), lookup).await;
        assert_eq!(answer.unwrap().unwrap().unwrap().ino, known.ino);
    });
}
