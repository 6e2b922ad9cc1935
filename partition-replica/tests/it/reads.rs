use std::time::Duration;

use metadata::footprint::{key_dirent, key_inode};
use metadata::op::{FsOp, NewNode, SetAttr};
use metadata::outcome::Done;
use metadata::protocol::{Reply, Request, ToClient};
use metadata::read::{ReadAnswer, ReadOp};
use metadata::types::{InodeId, NodeRef};
use multicast::command::{Command, Key};
use multicast::ids::{GroupId, LogIndex, ReplicaId};
use partition_replica::Timeouts;

use crate::client::{Client, ROOT};
use crate::cluster::Cluster;

#[test]
fn read_with_a_clock_ahead_of_the_replica_waits_for_it() {
    let cluster = Cluster::start_with(Timeouts { parked_read: Duration::from_millis(400), ..Timeouts::default() });
    let (mut reader, mut writer) = (Client::open(&cluster, 1), Client::open(&cluster, 2));
    let seen = writer.clock.index(GroupId::GLOBAL);
    reader.clock.advance(GroupId::GLOBAL, LogIndex(seen.0 + 1_000_000));
    let request = reader.read_request(GroupId::GLOBAL, ReadOp::Usage, false);
    let reply = reader.ask(&cluster, ReplicaId(1), request);
    assert!(matches!(reply, Some(Reply::Behind { .. })), "{reply:?}");

    // The writer's clock is what somebody else has learned of the write: no replica may answer without it.
    for round in 0..50 {
        let name = format!("f{round}");
        writer.create(&cluster, ROOT, &name, NewNode::File, GroupId::GLOBAL);
        for node in 1..=3 {
            assert!(writer.lookup(&cluster, node, ROOT, &name).is_some(), "round {round} at node {node}");
        }
    }
}

#[test]
fn invalidation_comes_before_every_reply_that_depends_on_it() {
    let cluster = Cluster::start();
    let (mut reader, mut writer) = (Client::open(&cluster, 1), Client::open(&cluster, 2));
    let group = GroupId::GLOBAL;
    for node in 1..=3 {
        let from = reader.subscribe(&cluster, node, group);
        reader.learn(group, &from);
    }
    for round in 0..30 {
        let name = format!("f{round}");
        let key = key_dirent(InodeId::ROOT, name.as_bytes());
        for node in 1..=3 {
            assert_eq!(reader.lookup(&cluster, node, ROOT, &name), None);
        }
        writer.create(&cluster, ROOT, &name, NewNode::File, group);
        // Cause before effect: the reader learns the writer's clock, as by a message between them.
        let clock = writer.clock.clone();
        reader.clock.merge(&clock);
        for node in 1..=3 {
            assert!(reader.lookup(&cluster, node, ROOT, &name).is_some());
            let seen = reader.received(node);
            let found = seen.iter().position(|message| match message {
                ToClient::Event(event) => event.invalidated.contains(&key),
                ToClient::Reply { .. } => false,
            });
            let found = found.expect("the name was read, so its change is told");
            let reply = seen.iter().rposition(|message| matches!(message, ToClient::Reply { .. })).unwrap();
            assert!(found < reply);
        }
    }
    for node in 1..=3 {
        check_stream(&reader.received(node), group);
    }
}

#[test]
fn outcome_of_an_update_may_be_cached_until_the_stream_tells_of_a_change() {
    let cluster = Cluster::start();
    let (mut author, mut other) = (Client::open(&cluster, 1), Client::open(&cluster, 2));
    let group = GroupId::GLOBAL;
    let node = author.primary(group);
    let create = |name: &str| FsOp::Create {
        parent: ROOT,
        name: name.to_owned().into(),
        node: NewNode::File,
        mode: 0o644,
        uid: 0,
        gid: 0,
        home: group,
    };
    let execute = |client: &mut Client, command: &Command| match client.ask_primary(
        &cluster,
        group,
        &Request::Update { group, command: command.clone() },
    ) {
        Reply::Updated { outcome: Ok(done), position, is_noted, .. } => (done, position, is_noted),
        other => panic!("{other:?}"),
    };
    let command = author.command(&create("before"));
    assert!(!execute(&mut author, &command).2, "there is no stream yet");
    let _ = author.subscribe(&cluster, node, group);
    assert!(!execute(&mut author, &command).2, "it executed before");

    let command = author.command(&create("file"));
    let (done, position, is_noted) = execute(&mut author, &command);
    assert!(is_noted);
    let Done::Node { attr, directories, .. } = done else { panic!("{done:?}") };
    assert_eq!(directories.len(), 1, "{directories:?}");
    check_stream(&author.received(node), group);
    let told = author.received(node).len();

    let file = NodeRef { ino: attr.ino, kind: attr.kind, home: attr.home };
    assert!(
        other
            .update(&cluster, &FsOp::SetAttr { node: file, set: SetAttr { mode: Some(0o600), ..SetAttr::default() } })
            .is_ok()
    );
    other.create(&cluster, ROOT, "neighbour", NewNode::File, group);
    // Both are applied there before this is answered.
    let clock = other.clock.clone();
    author.clock.merge(&clock);
    assert!(author.lookup(&cluster, node, ROOT, "neighbour").is_some());
    let received = author.received(node);
    let keys: Vec<Key> = received[told..]
        .iter()
        .flat_map(|message| match message {
            ToClient::Event(event) => event.invalidated.clone(),
            ToClient::Reply { .. } => Vec::new(),
        })
        .collect();
    assert!(keys.contains(&key_inode(attr.ino)) && keys.contains(&key_inode(InodeId::ROOT)), "{keys:?}");
    assert!(position.index > LogIndex::ZERO);
    check_stream(&received, group);
}

/// A reply that reflects an index stands behind the event that reaches it.
fn check_stream(messages: &[ToClient], group: GroupId) {
    let mut reached = LogIndex::ZERO;
    for message in messages {
        match message {
            ToClient::Event(event) if event.group == group => {
                assert!(event.index > reached, "events go on");
                reached = event.index;
            }
            ToClient::Reply { body: Reply::Session(position), .. } => reached = reached.max(position.index),
            ToClient::Reply {
                body: Reply::Read { position, .. } | Reply::Updated { position, is_noted: true, .. },
                ..
            } => {
                assert!(position.index <= reached, "{} before its event, at {reached}", position.index);
            }
            ToClient::Event(_) | ToClient::Reply { .. } => {}
        }
    }
}

#[test]
fn listing_of_many_names_is_the_same_everywhere() {
    let cluster = Cluster::start();
    let mut client = Client::open(&cluster, 1);
    let dir = client.placed_directory(&cluster, 3);
    // More than a read may look at where it arrives.
    for count in 0..300 {
        client.create(&cluster, dir, &format!("f{count}"), NewNode::File, GroupId(3));
    }
    let op = ReadOp::ReadDir { dir: dir.ino, after: 0, limit: 1000, plus: true };
    let mut listings = Vec::new();
    for node in 1..=3 {
        match client.read(&cluster, node, GroupId(3), op.clone()) {
            Ok(ReadAnswer::Entries { entries, end: true }) => listings.push(entries),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(listings[0].len(), 300);
    assert!(listings.windows(2).all(|pair| pair[0] == pair[1]));
    cluster.check_digests();
}
