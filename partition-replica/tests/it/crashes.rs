use std::time::Duration;

use metadata::op::NewNode;
use multicast::ids::{GroupId, ReplicaId};
use partition_replica::{Error, Node, Timeouts};

use crate::client::{Client, ROOT};
use crate::cluster::{Cluster, wait_until};

#[test]
fn nothing_acknowledged_is_lost_when_all_nodes_crash_again_and_again() {
    let mut cluster = Cluster::start();
    let mut client = Client::open(&cluster, 1);
    let dirs = [client.placed_directory(&cluster, 1), client.placed_directory(&cluster, 2)];
    let mut made = Vec::new();
    for round in 0..4 {
        for count in 0..25 {
            let (dir, name) = (dirs[count % 2], format!("r{round}-{count}"));
            made.push((dir, name.clone(), client.create(&cluster, dir, &name, NewNode::File, dir.home)));
        }
        for node in 1..=3 {
            cluster.crash(node);
        }
        for node in 1..=3 {
            cluster.start_node(node);
        }
        cluster.wait_for_primaries();
        for (dir, name, file) in &made {
            let node = 1 + round % 3;
            assert_eq!(client.lookup(&cluster, node, *dir, name), Some(*file), "{name} after crash {round}");
        }
    }
    cluster.check_digests();
}

#[test]
fn majority_goes_on_without_any_one_node_and_takes_it_back() {
    let mut cluster = Cluster::start();
    let mut client = Client::open(&cluster, 1);
    let dirs: Vec<_> = (1..4).map(|group| client.placed_directory(&cluster, group)).collect();
    for node in 1..=3 {
        cluster.crash(node);
        for dir in &dirs {
            client.create(&cluster, *dir, &format!("without-{node}"), NewNode::File, dir.home);
        }
        cluster.start_node(node);
        wait_until("the node has caught up", || {
            let statuses = cluster.node(node).status().groups;
            statuses.len() == 4 && statuses.iter().all(|group| {
                let committed = cluster.statuses(GroupId(group.group)).values().map(|other| other.committed_index).max();
                Some(group.applied_index) == committed
            })
        });
        for dir in &dirs {
            assert!(client.lookup(&cluster, node, *dir, &format!("without-{node}")).is_some());
        }
    }
    cluster.check_digests();
}

#[test]
fn node_shut_down_in_order_starts_where_it_ended() {
    let mut cluster = Cluster::start();
    let mut client = Client::open(&cluster, 1);
    let file = client.create(&cluster, ROOT, "a", NewNode::File, GroupId::GLOBAL);
    for node in 1..=3 {
        cluster.shut_down(node);
    }
    for node in 1..=3 {
        cluster.start_node(node);
        let status = cluster.node(node).status();
        assert!(status.groups.iter().all(|group| group.flushed_index > 0), "state was flushed");
    }
    cluster.wait_for_primaries();
    assert_eq!(client.lookup(&cluster, 2, ROOT, "a"), Some(file));
    cluster.check_digests();
}

#[test]
fn data_directory_in_use_or_of_another_node_is_refused() {
    let cluster = Cluster::start();
    let config = cluster.config(1);
    let message = Node::start(config.clone()).unwrap_err().to_string();
    assert!(message.contains("another node process is running"), "{message}");
    let mut other = cluster.config(2);
    other.data_dir = config.data_dir.with_file_name("elsewhere");
    std::fs::create_dir_all(&other.data_dir).unwrap();
    std::fs::copy(config.data_dir.join("stamp"), other.data_dir.join("stamp")).unwrap();
    assert!(matches!(Node::start(other), Err(Error::ForeignData { .. })));
}

#[test]
fn session_of_a_silent_client_expires_and_a_live_one_stays() {
    let lease = Duration::from_millis(2500);
    let cluster = Cluster::start_with(Timeouts { session_lease: lease, ..Timeouts::default() });
    let (_silent, mut alive) = (Client::open(&cluster, 1), Client::open(&cluster, 2));
    wait_until("the silent client's session has expired", || {
        for node in 1..=3 {
            let session = alive.session;
            alive.ask(&cluster, ReplicaId(node), metadata::protocol::Request::KeepAlive { session });
        }
        (0..4).all(|group| cluster.statuses(GroupId(group)).values().all(|status| status.sessions == 1))
    });
    alive.create(&cluster, ROOT, "still-here", NewNode::File, GroupId::GLOBAL);
}
