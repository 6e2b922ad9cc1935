//! Blobs are deleted only when nothing refers to them and nothing will: the steps of a collector, and whoever comes between.
#![allow(clippy::unwrap_used)]

mod support;

use metadata::op::{Change, FsOp};
use metadata::outcome::{Fact, OpError, Outcome};
use metadata::read::{ReadAnswer, ReadOp};
use metadata::rows::Moves;
use metadata::types::{BlobId, BlobRange, NodeRef};
use multicast::ids::{GroupId, SessionId};
use support::{Cluster, ROOT, name};

const S: SessionId = SessionId(7);

fn cluster(groups: u16) -> Cluster {
    let mut cluster = Cluster::new(groups);
    cluster.open_session(S);
    cluster
}

fn blob(sequence: u64) -> BlobId {
    BlobId { origin: 1, writer: 5, sequence }
}

fn put(sequence: u64, fresh: bool) -> Vec<Change> {
    let source = BlobRange { blob: blob(sequence), blob_len: 1000, crc32c: 1, start: 0 };
    vec![Change::Blob { offset: 0, len: 100, source, fresh }]
}

fn hole() -> Vec<Change> {
    vec![Change::Hole { offset: 0, len: 100 }]
}

fn gone(sequence: u64) -> Outcome {
    Err(OpError::Stale(vec![Fact::BlobGone(blob(sequence))]))
}

fn collect(cluster: &mut Cluster, group: u16, sequence: u64) {
    cluster.submit(S, &FsOp::Collected { home: GroupId(group), blobs: vec![blob(sequence)] }).unwrap();
}

fn garbage(cluster: &Cluster, group: u16) -> Vec<u64> {
    match cluster.read(GroupId(group), &ReadOp::Garbage { limit: 10 }) {
        Ok(ReadAnswer::Garbage(blobs)) => blobs.into_iter().map(|blob| blob.sequence).collect(),
        other => panic!("{other:?}"),
    }
}

/// Whether something refers to the blob, whether it is garbage, and the group's moves.
fn in_use(cluster: &Cluster, group: u16, sequence: u64) -> (bool, bool, Moves) {
    match cluster.read(GroupId(group), &ReadOp::BlobsInUse { blobs: vec![blob(sequence)] }) {
        Ok(ReadAnswer::BlobsInUse { used, garbage, moves }) => (!used.is_empty(), !garbage.is_empty(), moves),
        other => panic!("{other:?}"),
    }
}

fn move_to(cluster: &mut Cluster, entry: &str, node: NodeRef, group: u16) -> NodeRef {
    let to = GroupId(group);
    cluster.submit(S, &FsOp::MoveInode { parent: ROOT, name: name(entry), node, to }).unwrap();
    NodeRef { home: to, ..node }
}

#[test]
fn collected_blob_is_never_referred_to_again_and_later_ones_of_its_writer_are_free_to_come() {
    let mut cluster = cluster(1);
    let file = cluster.mkfile(S, ROOT, "f");
    cluster.write(S, file, put(3, true)).unwrap();
    collect(&mut cluster, 0, 3);
    assert_eq!(in_use(&cluster, 0, 3), (true, false, Moves::default()), "what is in use is not collected");
    cluster.write(S, file, hole()).unwrap();
    assert_eq!(in_use(&cluster, 0, 3), (false, true, Moves::default()));
    collect(&mut cluster, 0, 3);
    assert_eq!(garbage(&cluster, 0), [0; 0]);
    // The flush that wrote it got no answer, and comes again.
    assert_eq!(cluster.write(S, file, put(3, true)), gone(3));
    assert_eq!(cluster.write(S, file, put(2, true)), gone(2), "one number stands for all that came before");
    cluster.write(S, file, put(4, true)).unwrap();
    cluster.close_session(S);
    cluster.open_session(S);
    assert_eq!(cluster.write(S, file, put(3, true)), gone(3), "a session that comes back may still have it in hand");
    cluster.check();
}

#[test]
fn collected_blob_is_refused_in_other_groups_too() {
    let mut cluster = cluster(2);
    let file = cluster.mkfile(S, ROOT, "f");
    cluster.write(S, file, put(1, true)).unwrap();
    cluster.write(S, file, hole()).unwrap();
    let file = move_to(&mut cluster, "f", file, 1);
    assert_eq!(garbage(&cluster, 0), [1]);
    collect(&mut cluster, 1, 1);
    assert_eq!(cluster.write(S, file, put(1, true)), gone(1), "the flush follows the file to its new home");
    collect(&mut cluster, 0, 1);
    cluster.check();
}

#[test]
fn blob_that_moved_is_in_use_where_it_went_and_its_garbage_is_listed_there() {
    let mut cluster = cluster(2);
    let file = cluster.mkfile(S, ROOT, "f");
    cluster.write(S, file, put(1, true)).unwrap();
    let file = move_to(&mut cluster, "f", file, 1);
    assert_eq!(in_use(&cluster, 0, 1), (false, false, Moves { departed: 1, arrived: 0 }));
    assert_eq!(in_use(&cluster, 1, 1), (true, false, Moves { departed: 0, arrived: 1 }));
    // Retired where nothing refers to it: coming back with its file is another matter.
    collect(&mut cluster, 0, 1);
    let file = move_to(&mut cluster, "f", file, 0);
    assert_eq!(in_use(&cluster, 0, 1), (true, false, Moves { departed: 1, arrived: 1 }));
    let file = move_to(&mut cluster, "f", file, 1);
    cluster.write(S, file, hole()).unwrap();
    assert_eq!(garbage(&cluster, 1), [1], "also what may be referred to elsewhere");
    collect(&mut cluster, 1, 1);
    assert_eq!(garbage(&cluster, 1), [0; 0]);
    cluster.check();
}

#[test]
fn file_without_blobs_counts_as_no_move() {
    let mut cluster = cluster(2);
    let file = cluster.mkfile(S, ROOT, "f");
    move_to(&mut cluster, "f", file, 1);
    assert_eq!(in_use(&cluster, 0, 1).2, Moves::default());
    assert_eq!(in_use(&cluster, 1, 1).2, Moves::default());
}
