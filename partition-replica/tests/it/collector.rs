use std::sync::Arc;
use std::time::Duration;

use metadata::op::{Change, FsOp, NewNode, WriteAt};
use metadata::read::{ReadAnswer, ReadOp};
use metadata::types::{BlobId, BlobRange, NodeRef};
use multicast::ids::GroupId;
use parking_lot::Mutex;
use partition_replica::{BlobDeleter, CollectorTimes, Deleted};

use crate::client::{Client, ROOT};
use crate::cluster::{Cluster, wait_until};

#[derive(Default)]
struct Bucket {
    deleted: Mutex<Vec<BlobId>>,
}

impl BlobDeleter for Bucket {
    fn delete(&self, _: GroupId, blobs: &[BlobId]) -> Deleted {
        self.deleted.lock().extend(blobs);
        Deleted { gone: blobs.to_vec(), ..Deleted::default() }
    }
}

fn write_blob(cluster: &Cluster, client: &mut Client, node: NodeRef, blob: BlobId) {
    let source = BlobRange { blob, blob_len: 10_000, crc32c: 1, start: 0 };
    let changes = vec![Change::Blob { offset: 0, len: 10_000, source, fresh: true }];
    let op = FsOp::Write { node, at: WriteAt::Offsets, changes, size_min: 0, mtime: None, kill_privileges: false };
    assert!(client.update(cluster, &op).is_ok());
}

#[test]
fn blobs_are_deleted_once_nothing_refers_to_them_and_then_forgotten() {
    let cluster = Cluster::start();
    let mut client = Client::open(&cluster, 1);
    let bucket = Arc::new(Bucket::default());
    let times = CollectorTimes {
        interval: Duration::from_millis(100),
        grace: Duration::from_millis(300),
        blobs_per_second: 100,
    };
    for node in 1..=3 {
        cluster.node(node).collect(bucket.clone(), times).unwrap();
    }
    let file = client.create(&cluster, ROOT, "a", NewNode::File, GroupId::GLOBAL);
    let blob = |sequence| BlobId { origin: 0, writer: 1, sequence };
    write_blob(&cluster, &mut client, file, blob(1));
    write_blob(&cluster, &mut client, file, blob(2));
    wait_until("the overwritten blob is deleted", || !bucket.deleted.lock().is_empty());
    wait_until("it is forgotten on all nodes", || {
        (1..=3).all(|node| {
            let list = client.read(&cluster, node, GroupId::GLOBAL, ReadOp::Garbage { limit: 10 });
            matches!(list, Ok(ReadAnswer::Garbage(blobs)) if blobs.is_empty())
        })
    });
    assert_eq!(*bucket.deleted.lock(), [blob(1)]);
    wait_until("status tells of it", || {
        (1..=3).any(|node| cluster.node(node).status().collector.is_some_and(|status| status.collected == 1))
    });
    // A session of the collector's own must not outlive its round, or an unlinked file would wait for it.
    wait_until("only the client's session is left", || {
        cluster.statuses(GroupId::GLOBAL).values().all(|status| status.sessions == 1)
    });
    cluster.check_digests();
}
