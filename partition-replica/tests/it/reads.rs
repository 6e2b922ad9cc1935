use std::time::Duration;

use metadata::footprint::key_dirent;
use metadata::op::NewNode;
use metadata::protocol::{Reply, ToClient};
use metadata::read::{ReadAnswer, ReadOp};
use metadata::types::InodeId;
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
            ToClient::Reply { body: Reply::Read { position, .. }, .. } => {
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
    for count in 0..100 {
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
    assert_eq!(listings[0].len(), 100);
    assert!(listings.windows(2).all(|pair| pair[0] == pair[1]));
    cluster.check_digests();
}
