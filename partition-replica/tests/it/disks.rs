//! Disks that are lost: who comes back with an empty one is another member.

use metadata::op::NewNode;
use multicast::ids::GroupId;
use partition_replica::{FirstStart, GroupStatus};

use crate::client::Client;
use crate::cluster::{Cluster, GROUPS, wait_until};

/// The node's disk is gone; it starts on an empty one.
pub fn start_on_new_disk(cluster: &Cluster, node: u32) {
    let config = cluster.config(node);
    std::fs::remove_dir_all(&config.data_dir).unwrap();
    cluster.start_configured(node, partition_replica::NodeConfig { first_start: FirstStart::NewDisk, ..config });
}

/// True if all groups have that disk of that node as a voter, by the logs of all nodes.
pub fn is_voter_everywhere(cluster: &Cluster, node: u32) -> bool {
    let groups = cluster.node(node).status().groups;
    let is_voter = |group: &GroupStatus| {
        let statuses = cluster.statuses(GroupId(group.group));
        statuses.len() == 3
            && statuses.values().all(|status| {
                let mut members = status.members.iter();
                members.any(|member| {
                    member.node == node && member.role == "voter" && member.incarnation == group.incarnation
                })
            })
    };
    groups.len() == usize::from(GROUPS) && groups.iter().all(is_voter)
}

#[test]
fn wiped_disk_is_not_counted_and_becomes_another_voter() {
    let cluster = Cluster::start();
    let mut client = Client::open(&cluster, 1);
    let dirs: Vec<_> = (1..4).map(|group| client.placed_directory(&cluster, group)).collect();
    let mut made = Vec::new();
    for count in 0..60 {
        let (dir, name) = (dirs[count % 3], format!("before-{count}"));
        made.push((dir, name.clone(), client.create(&cluster, dir, &name, NewNode::File, dir.home)));
    }
    for node in 1..=3 {
        cluster.crash(node);
        start_on_new_disk(&cluster, node);
        wait_until("the groups have taken the new disk in", || is_voter_everywhere(&cluster, node));
        for dir in &dirs {
            let name = format!("without-{node}");
            made.push((*dir, name.clone(), client.create(&cluster, *dir, &name, NewNode::File, dir.home)));
        }
    }
    // By now no disk of the founding is left.
    cluster.check_digests();
    for (dir, name, file) in &made {
        for node in 1..=3 {
            assert_eq!(client.lookup(&cluster, node, *dir, name), Some(*file), "{name} on node {node}");
        }
    }
    for node in 1..=3 {
        cluster.crash(node);
    }
    for node in 1..=3 {
        cluster.start_configured(
            node,
            partition_replica::NodeConfig { first_start: FirstStart::No, ..cluster.config(node) },
        );
    }
    cluster.wait_for_primaries();
    cluster.check_digests();
}

#[test]
fn new_disks_in_the_majority_form_no_quorum_and_show_nothing() {
    let cluster = Cluster::start();
    let mut client = Client::open(&cluster, 1);
    let dir = client.placed_directory(&cluster, 1);
    client.create(&cluster, dir, "acknowledged", NewNode::File, dir.home);
    for node in 1..=3 {
        cluster.crash(node);
    }
    // Those that have forgotten must not, as two of three, begin the group anew.
    for node in [1, 2] {
        start_on_new_disk(&cluster, node);
    }
    let group = dir.home;
    std::thread::sleep(3 * cluster.timeouts.election);
    assert_eq!(cluster.primary(group), None);
    let read = metadata::read::ReadOp::GetAttr { ino: metadata::types::InodeId::ROOT };
    let mut fresh = Client::connected_nowhere(&cluster, 7);
    let request = metadata::protocol::Request::Read {
        group: GroupId::GLOBAL,
        session: fresh.session,
        clock: fresh.clock.clone(),
        linearizable: false,
        op: read,
    };
    let reply = fresh.ask(&cluster, multicast::ids::ReplicaId(1), request);
    assert!(matches!(reply, Some(metadata::protocol::Reply::UnknownGroup { .. })), "{reply:?}");
}
