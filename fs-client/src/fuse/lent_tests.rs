#![allow(clippy::unwrap_used)]

use std::os::fd::OwnedFd;

use metadata::op::{FsOp, NewNode};
use metadata::read::{ReadAnswer, ReadOp};
use metadata::types::NodeRef;
use multicast::ids::LogIndex;
use rustix::fs::{OFlags, fcntl_setfl};

use super::*;
use crate::testing::{MemCluster, MemVolume};
use crate::volume::Volume;

const G: GroupId = GroupId::GLOBAL;
const ROOT: NodeRef = NodeRef { ino: InodeId::ROOT, kind: FileKind::Directory, home: G };

/// Takes down what the kernel would be told.
struct Kernel {
    caches: Arc<KernelCaches>,
    heard: OwnedFd,
    volume: Arc<MemVolume>,
    cluster: Arc<MemCluster>,
}

impl Kernel {
    fn new() -> Kernel {
        let cluster = MemCluster::new(2);
        let volume = cluster.client();
        let (heard, told) = std::io::pipe().unwrap();
        fcntl_setfl(&heard, OFlags::NONBLOCK).unwrap();
        let caches = KernelCaches::new(KernelCache::Attributes, volume.cache().clone());
        caches.start(Device::of(&told).unwrap()).unwrap();
        Kernel { caches, heard: heard.into(), volume, cluster }
    }

    async fn root(&self) -> Attr {
        match self.volume.read(G, ReadOp::GetAttr { ino: InodeId::ROOT }).await.unwrap() {
            Ok(ReadAnswer::Attr(attr)) => *attr,
            other => panic!("{other:?}"),
        }
    }

    async fn lend_root(&self) {
        let root = self.root().await;
        assert_eq!(self.caches.lend_attr(1, &root, true), LIFETIME);
    }

    /// The inodes whose attributes were taken back since this was last asked.
    fn told(&self) -> Vec<u64> {
        let mut bytes = [0; 4096];
        let len = rustix::io::read(&self.heard, &mut bytes).unwrap_or(0);
        bytes[..len].chunks(40).map(|message| u64::from_ne_bytes(message[16..24].try_into().unwrap())).collect()
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        self.caches.stop();
    }
}

fn run<T>(test: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap().block_on(test)
}

#[test]
fn only_what_is_known_current_and_noted_is_lent() {
    run(async {
        let kernel = Kernel::new();
        let root = kernel.root().await;
        assert_eq!(kernel.caches.lend_attr(1, &root, false), Duration::ZERO, "the kernel cannot be told of it");
        let other = Attr { mode: 0, ..root.clone() };
        assert_eq!(kernel.caches.lend_attr(1, &other, true), Duration::ZERO, "not what the cache has");
        let unknown = Attr { ino: InodeId(99), ..root.clone() };
        assert_eq!(kernel.caches.lend_attr(99, &unknown, true), Duration::ZERO, "nobody would tell");
        assert_eq!(kernel.caches.lend_attr(1, &root, true), LIFETIME);
        assert_eq!(kernel.caches.lend_attr(7, &root, true), Duration::ZERO, "lent under another number");
        kernel.caches.forget(G, InodeId::ROOT);
        assert_eq!(kernel.caches.lend_attr(7, &root, true), LIFETIME);
        assert!(kernel.told().is_empty());
    });
}

#[test]
fn change_by_others_is_told_before_anything_newer_is() {
    run(async {
        let kernel = Kernel::new();
        kernel.lend_root().await;
        let op =
            FsOp::Create { parent: ROOT, name: "f".into(), node: NewNode::File, mode: 0o644, uid: 0, gid: 0, home: G };
        kernel.cluster.client().update(op).await.unwrap().unwrap();
        assert_eq!(kernel.told(), [1], "a directory, so not by the thread");
        assert!(kernel.caches.is_settled());
        kernel.lend_root().await;
    });
}

#[test]
fn clock_ahead_of_the_stream_takes_everything_back_unless_the_stream_comes_soon() {
    run(async {
        let kernel = Kernel::new();
        kernel.lend_root().await;
        let progress = kernel.volume.cache().progress();
        progress.see(G, LogIndex(1000));
        assert!(!kernel.caches.is_settled());
        let soon = async {
            tokio::time::sleep(Duration::from_millis(1)).await;
            progress.advance_stream(G, LogIndex(1000));
        };
        tokio::join!(kernel.caches.settle(), soon);
        assert!(kernel.caches.is_settled() && kernel.told().is_empty());
        progress.see(GroupId(1), LogIndex(7));
        assert!(kernel.caches.is_settled(), "nothing of that group is lent");
        progress.see(G, LogIndex(1001));
        kernel.caches.settle().await;
        assert_eq!(kernel.told(), [1]);
        assert!(kernel.caches.is_settled(), "nothing is lent any more");
        let root = kernel.root().await;
        assert_eq!(kernel.caches.lend_attr(1, &root, true), Duration::ZERO, "behind the clock");
    });
}

#[test]
fn effect_seen_elsewhere_or_a_lost_stream_takes_everything_back() {
    run(async {
        let kernel = Kernel::new();
        kernel.lend_root().await;
        let mut effects = multicast::ids::VectorClock::new();
        effects.advance_effects(G, LogIndex(0), multicast::ids::SessionId(1));
        effects.advance_effects(G, LogIndex(1), multicast::ids::SessionId(1));
        assert!(kernel.volume.cache().progress().depend(&effects).is_empty());
        kernel.volume.cache().progress().advance_stream(G, LogIndex(1));
        assert!(!kernel.caches.is_settled(), "it may be older than the effect");
        kernel.caches.settle().await;
        assert_eq!(kernel.told(), [1]);
        let kernel = Kernel::new();
        kernel.lend_root().await;
        kernel.volume.cache().end_stream(G);
        kernel.caches.settle().await;
        assert_eq!(kernel.told(), [1]);
    });
}

#[test]
fn file_on_its_way_out_holds_up_neither_answers_for_long_nor_what_others_are_told() {
    run(async {
        let (heard, told) = std::io::pipe().unwrap();
        fcntl_setfl(&heard, OFlags::NONBLOCK).unwrap();
        let caches = KernelCaches::new(KernelCache::Attributes, MemCluster::new(1).client().cache().clone());
        caches.start(Device::of(&told).unwrap()).unwrap();
        // Full, so whoever tells something waits.
        fcntl_setfl(&told, OFlags::NONBLOCK).unwrap();
        while rustix::io::write(&told, &[0; 40]).is_ok() {}
        fcntl_setfl(&told, OFlags::empty()).unwrap();
        for number in [5, 6] {
            caches.take(vec![Mark { number, is_file: true, since: 0 }], false);
        }
        assert!(!caches.is_settled());
        caches.settle().await;
        assert!(caches.is_settled());
        assert_eq!(caches.queue.lock().held_up, 2, "the second did not wait behind the first");
        let mut numbers = Vec::new();
        let started = Instant::now();
        while started.elapsed() < Duration::from_secs(5) && numbers.len() < 3 {
            let mut message = [0; 40];
            if rustix::io::read(&heard, &mut message).is_ok_and(|len| len == 40) {
                let number = u64::from_ne_bytes(message[16..24].try_into().unwrap());
                numbers.extend((number > 0).then_some(number));
            } else if numbers.len() == 2 {
                caches.take(vec![Mark { number: 7, is_file: true, since: 0 }], false);
                caches.settle().await;
            }
        }
        numbers.sort_unstable();
        assert_eq!((numbers, caches.queue.lock().held_up), (vec![5, 6, 7], 0));
        caches.stop();
    });
}
