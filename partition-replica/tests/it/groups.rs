use metadata::op::{Change, FsOp, NewNode, WriteAt};
use metadata::outcome::{Done, Errno, OpError};
use metadata::protocol::{Reply, Request};
use metadata::read::{ReadAnswer, ReadOp};
use metadata::types::{BlobId, BlobRange, InodeId};
use multicast::ids::{GroupId, ReplicaId};

use crate::client::{Client, ROOT};
use crate::cluster::{Cluster, wait_until};

#[test]
fn names_made_through_one_node_are_found_through_all() {
    let cluster = Cluster::start();
    let mut client = Client::open(&cluster, 1);
    let file = client.create(&cluster, ROOT, "a", NewNode::File, GroupId::GLOBAL);
    for node in 1..=3 {
        assert_eq!(client.lookup(&cluster, node, ROOT, "a"), Some(file));
        assert_eq!(client.lookup(&cluster, node, ROOT, "b"), None);
    }
    cluster.check_digests();
}

#[test]
fn rename_across_groups_moves_the_name_on_all_nodes() {
    let cluster = Cluster::start();
    let mut client = Client::open(&cluster, 1);
    let (here, there) = (client.placed_directory(&cluster, 1), client.placed_directory(&cluster, 2));
    assert_eq!((here.home, there.home), (GroupId(1), GroupId(2)));
    let file = client.create(&cluster, here, "old", NewNode::File, GroupId(1));
    let moved = match client.rename(&cluster, (here, "old"), file, (there, "new")) {
        Ok(Done::Renamed { attr, .. }) => attr,
        other => panic!("{other:?}"),
    };
    assert_eq!(moved.ino, file.ino);
    for node in 1..=3 {
        assert_eq!(client.lookup(&cluster, node, here, "old"), None);
        assert_eq!(client.lookup(&cluster, node, there, "new").map(|found| found.ino), Some(file.ino));
    }
    cluster.check_digests();
}

#[test]
fn update_asked_for_twice_executes_once() {
    let cluster = Cluster::start();
    let mut client = Client::open(&cluster, 1);
    let op = |name: &str| FsOp::Create {
        parent: ROOT,
        name: name.to_owned().into(),
        node: NewNode::File,
        mode: 0o644,
        uid: 0,
        gid: 0,
        home: GroupId::GLOBAL,
    };
    let command = client.command(&op("once"));
    let (first, at) = client.submit(&cluster, &command);
    let (again, again_at) = client.submit(&cluster, &command);
    assert!(first.is_ok());
    assert_eq!((first, at.index), (again, again_at.index));
    let same_name = client.command(&op("once"));
    assert!(client.submit(&cluster, &same_name).0.is_err());
}

#[test]
fn update_without_a_session_is_refused_until_it_is_opened() {
    let cluster = Cluster::start();
    let mut client = Client::connected_nowhere(&cluster, 5);
    let op = FsOp::Create {
        parent: ROOT,
        name: "x".into(),
        node: NewNode::File,
        mode: 0o644,
        uid: 0,
        gid: 0,
        home: GroupId::GLOBAL,
    };
    let group = GroupId::GLOBAL;
    let command = client.command(&op);
    let reply = client.ask_primary(&cluster, group, &Request::Update { group, command });
    assert_eq!(reply, Reply::UnknownSession { group });
    client.open_session(&cluster, group);
    assert!(client.update(&cluster, &op).is_ok());
}

#[test]
fn unknown_group_is_named_in_the_reply() {
    let cluster = Cluster::start();
    let mut client = Client::connected_nowhere(&cluster, 1);
    let request = client.read_request(GroupId(77), ReadOp::Usage, false);
    assert_eq!(client.ask(&cluster, ReplicaId(1), request), Some(Reply::UnknownGroup { group: GroupId(77) }));
}

#[test]
fn linearizable_read_goes_through_the_primary_and_sees_others_updates_at_once() {
    let cluster = Cluster::start();
    let (mut writer, mut reader) = (Client::open(&cluster, 1), Client::open(&cluster, 2));
    for round in 0..20 {
        let name = format!("f{round}");
        writer.create(&cluster, ROOT, &name, NewNode::File, GroupId::GLOBAL);
        let op = ReadOp::Lookup { parent: InodeId::ROOT, name: name.into() };
        let request = reader.read_request(GroupId::GLOBAL, op, true);
        match reader.ask_primary(&cluster, GroupId::GLOBAL, &request) {
            Reply::Read { result: Ok(ReadAnswer::Lookup(Some(_))), .. } => {}
            other => panic!("{other:?}"),
        }
    }
    let follower =
        cluster.voters(GroupId::GLOBAL).into_iter().find(|&voter| Some(voter) != cluster.primary(GroupId::GLOBAL));
    let request = reader.read_request(GroupId::GLOBAL, ReadOp::Usage, true);
    let reply = reader.ask(&cluster, follower.unwrap(), request);
    assert!(matches!(reply, Some(Reply::NotPrimary { .. })), "{reply:?}");
}

#[test]
fn nothing_is_placed_on_a_group_that_is_not_there() {
    let cluster = Cluster::start();
    let mut client = Client::open(&cluster, 1);
    let nowhere = GroupId(77);
    let invalid = Err(OpError::Errno(Errno::Invalid));
    let placed = FsOp::Create {
        parent: ROOT,
        name: "placed".into(),
        node: NewNode::Directory { placement: Some(nowhere) },
        mode: 0o755,
        uid: 0,
        gid: 0,
        home: nowhere,
    };
    assert_eq!(client.update(&cluster, &placed), invalid);
    assert_eq!(client.update(&cluster, &FsOp::SetPlacement { dir: ROOT, placement: nowhere }), invalid);
    let node = client.create(&cluster, ROOT, "moved", NewNode::File, GroupId::GLOBAL);
    let moved = FsOp::MoveInode { parent: ROOT, name: "moved".into(), node, to: nowhere };
    assert_eq!(client.update(&cluster, &moved), invalid);
    let to = FsOp::SetPlacement { dir: ROOT, placement: GroupId(3) };
    assert!(client.update(&cluster, &to).is_ok());
    cluster.check_digests();
}

#[test]
fn what_is_removed_in_steps_goes_though_nobody_asks_for_anything() {
    const EXTENTS: u64 = 4000;
    let cluster = Cluster::start();
    let mut client = Client::open(&cluster, 1);
    let file = client.create(&cluster, ROOT, "fragments", NewNode::File, GroupId::GLOBAL);
    for part in 0..3 {
        let blob = |at: u64| {
            let blob = BlobId { origin: 1, writer: 1, sequence: at };
            let source = BlobRange { blob, blob_len: 10, crc32c: 1, start: 0 };
            Change::Blob { offset: at * 20, len: 10, source, fresh: true }
        };
        let changes = (part * EXTENTS..(part + 1) * EXTENTS).map(blob).collect();
        let at = WriteAt::Offsets;
        let op = FsOp::Write { node: file, at, changes, size_min: 0, mtime: None, kill_privileges: false };
        assert!(client.update(&cluster, &op).is_ok());
    }
    let unlink = FsOp::Unlink { parent: ROOT, name: "fragments".into(), target: file, keep_open: false };
    assert!(client.update(&cluster, &unlink).is_ok());
    let left = |node: u32| cluster.statuses(GroupId::GLOBAL)[&node].removals_left;
    assert!(left(cluster.primary(GroupId::GLOBAL).unwrap().0) > 0, "too little to need steps");
    wait_until("everything is removed everywhere", || (1..=3).all(|node| left(node) == 0));
    cluster.check_digests();
    // Then the group is as quiet as before.
    let applied = || cluster.statuses(GroupId::GLOBAL).values().map(|status| status.applied_index).max();
    let before = applied();
    std::thread::sleep(std::time::Duration::from_millis(200));
    assert_eq!(applied(), before);
}

#[test]
fn status_tells_of_every_group() {
    let cluster = Cluster::start();
    let mut client = Client::open(&cluster, 1);
    wait_until("node 2 has applied what its primaries have", || {
        cluster.node(2).status().groups.iter().all(|group| group.sessions == 1)
    });
    let Some(Reply::Status(json)) = client.ask(&cluster, ReplicaId(2), Request::Status) else { panic!() };
    let status: partition_replica::NodeStatus = serde_json::from_slice(&json).unwrap();
    assert_eq!((status.node, status.groups.len(), status.clients), (2, 4, 1));
    assert!(status.groups.iter().all(|group| group.sessions == 1 && group.primary.is_some()));
    assert!(status.peers.values().all(|peer| peer.connected));
    assert!(status.storage.log_flushes > 0 && status.storage.resident_bytes > 0);
}
