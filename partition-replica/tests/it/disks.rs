//! Disks that are lost: who comes back with an empty one is another member.

use std::time::{Duration, Instant};

use metadata::op::{FsOp, NewNode};
use metadata::protocol::{Reply, Request};
use multicast::ids::GroupId;
use partition_replica::{FirstStart, GroupStatus, Limits, Timeouts};

use crate::client::{Client, ROOT};
use crate::cluster::{Cluster, GROUPS, wait_until};
use crate::crashes::touch_root;

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

/// A row that makes no sense is met by a reader alone: no command asks for it. The node must not go on beside it.
#[test]
fn node_whose_reader_meets_a_bad_row_ends() {
    let cluster = Cluster::start();
    let mut client = Client::open(&cluster, 1);
    let dir = client.placed_directory(&cluster, 1);
    let file = client.create(&cluster, dir, "file", NewNode::File, dir.home);
    let node = cluster.voters(dir.home)[0];
    cluster.wait_for_primaries();
    cluster.check_digests();
    cluster.shut_down(node.0);
    let config = cluster.config(node.0);
    let spoilt = spoil_rows(&config.data_dir.join("state"), file.ino);
    assert!(spoilt > 0, "no row of {file:?}");
    cluster.start_configured(node.0, config);
    assert_eq!(cluster.node(node.0).failure(), None);
    let op = metadata::read::ReadOp::GetAttr { ino: file.ino };
    wait_until("the node has ended", || {
        let (group, session, clock) = (dir.home, client.session, client.clock.clone());
        let read = Request::Read { group, session, clock, linearizable: false, op: op.clone() };
        let reply = client.ask(&cluster, node, read);
        assert!(!matches!(reply, Some(Reply::Read { .. })), "{reply:?}");
        cluster.node(node.0).failure().is_some_and(|why| why.contains(partition_replica::STATE_IS_DAMAGED))
    });
    cluster.crash(node.0);
    cluster.wait_for_primaries();
    // The others go on.
    client.create(&cluster, dir, "another", NewNode::File, dir.home);
}

/// Writes something else into the rows of an inode, with right checksums. Returns into how many.
fn spoil_rows(folder: &std::path::Path, ino: metadata::types::InodeId) -> usize {
    let options = rocksdb::Options::default();
    let families = rocksdb::DB::list_cf(&options, folder).unwrap();
    let db = rocksdb::DB::open_cf(&options, folder, &families).unwrap();
    let mut spoilt = 0;
    for family in families.iter().filter_map(|name| db.cf_handle(name)) {
        let rows = db.iterator_cf(family, rocksdb::IteratorMode::Start).map(Result::unwrap);
        let keys: Vec<_> = rows.map(|(key, _)| key).filter(|key| key[1..] == ino.0.to_be_bytes()).collect();
        keys.iter().for_each(|key| db.put_cf(family, key, b"?").unwrap());
        db.flush_cf(family).unwrap();
        spoilt += keys.len();
    }
    spoilt
}

/// The log of a group has room for few entries.
fn with_short_logs() -> Cluster {
    let timeouts = Timeouts {
        election: Duration::from_millis(1000),
        state_flush: Duration::from_millis(300),
        ..Timeouts::default()
    };
    let limits = Limits {
        state_memory_bytes: 16 << 20,
        log_cache_bytes: 64 << 10,
        group_log_entries_max: 300,
        ..Limits::default()
    };
    Cluster::start_limited(timeouts, limits)
}

/// Symbolic links in the root, so long that a copy takes a while.
fn fill_root(cluster: &Cluster, client: &mut Client, count: usize) {
    let group = GroupId::GLOBAL;
    let primary = cluster.primary(group).unwrap();
    for batch in 0..count / 100 {
        let make = |client: &mut Client, at: usize| {
            let op = FsOp::Create {
                parent: ROOT,
                name: format!("link-{batch}-{at}").into(),
                node: NewNode::Symlink { target: vec![b'x'; 4000].into() },
                mode: 0o777,
                uid: 0,
                gid: 0,
                home: group,
            };
            Request::Update { group, command: client.command(&op) }
        };
        let requests = (0..100).map(|at| make(client, at)).collect();
        for reply in client.pipeline(cluster, primary.0, requests) {
            assert!(matches!(reply, Reply::Updated { outcome: Ok(_), .. }), "{reply:?}");
        }
    }
}

fn wait_for_cut(cluster: &Cluster, node: u32, above: u64) {
    let group = GroupId::GLOBAL;
    wait_until("the log was cut", || cluster.statuses(group)[&node].first_index > above);
}

fn wait_for_catch_up(cluster: &Cluster, node: u32) {
    wait_until("it has caught up", || {
        let statuses = cluster.statuses(GroupId::GLOBAL);
        let committed = statuses.values().map(|status| status.committed_index).max();
        statuses.get(&node).is_some_and(|status| Some(status.applied_index) == committed)
    });
}

#[test]
fn follower_whose_entries_were_dropped_gets_a_copy_of_the_state_while_the_group_serves() {
    let cluster = with_short_logs();
    let mut client = Client::open(&cluster, 1);
    touch_root(&cluster, &mut client, 200);
    let group = GroupId::GLOBAL;
    let primary = cluster.primary(group).unwrap().0;
    let lagging = 1 + primary % 3;
    cluster.crash(lagging);
    fill_root(&cluster, &mut client, 2000);
    wait_for_cut(&cluster, primary, 1000);
    cluster.start_node(lagging);
    let file = client.create(&cluster, ROOT, "meanwhile", NewNode::File, group);
    wait_for_catch_up(&cluster, lagging);
    assert!(cluster.statuses(group)[&lagging].first_index > 1000, "by the log it could not");
    assert_eq!(client.lookup(&cluster, lagging, ROOT, "meanwhile"), Some(file));
    cluster.check_digests();
    // What took the place of the old state is there after a crash, and counts.
    for node in 1..=3 {
        cluster.crash(node);
    }
    let other = (1..=3).find(|&node| node != lagging && node != primary).unwrap();
    cluster.start_node(lagging);
    cluster.start_node(other);
    cluster.wait_for_primaries();
    assert_eq!(client.lookup(&cluster, lagging, ROOT, "meanwhile"), Some(file));
    client.create(&cluster, ROOT, "afterwards", NewNode::File, group);
    cluster.start_node(primary);
    cluster.check_digests();
}

#[test]
fn wiped_disk_gets_a_copy_though_its_node_is_killed_again_and_again_meanwhile() {
    let cluster = with_short_logs();
    let mut client = Client::open(&cluster, 1);
    let group = GroupId::GLOBAL;
    fill_root(&cluster, &mut client, 4000);
    let primary = cluster.primary(group).unwrap().0;
    let wiped = 1 + primary % 3;
    cluster.crash(wiped);
    touch_root(&cluster, &mut client, 600);
    wait_for_cut(&cluster, primary, 1000);
    start_on_new_disk(&cluster, wiped);
    let mut interrupted = 0;
    let started = Instant::now();
    while interrupted < 3 && started.elapsed() < Duration::from_secs(20) {
        let is_receiving = |status: &GroupStatus| status.copies.iter().any(|copy| !copy.is_sent && copy.rows > 0);
        if cluster.statuses(group).get(&wiped).is_some_and(is_receiving) {
            cluster.crash(wiped);
            cluster.start_node(wiped);
            interrupted += 1;
        }
        if is_voter_everywhere(&cluster, wiped) {
            break;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    println!("interrupted {interrupted} times");
    assert!(interrupted > 0, "no copy was seen under way");
    wait_until("the groups have taken the new disk in", || is_voter_everywhere(&cluster, wiped));
    wait_for_catch_up(&cluster, wiped);
    assert!(client.lookup(&cluster, wiped, ROOT, "link-0-0").is_some());
    cluster.check_digests();
}

#[test]
fn node_that_stops_in_order_hands_its_groups_over() {
    // Nobody stands for election within this test after its start.
    let timeouts = Timeouts { election: Duration::from_secs(6), ..Timeouts::default() };
    let cluster = Cluster::start_with(timeouts);
    let mut client = Client::open(&cluster, 1);
    let groups = || (0..GROUPS).map(GroupId);
    let leaving = cluster.primary(GroupId::GLOBAL).unwrap().0;
    let led: Vec<GroupId> =
        groups().filter(|&group| cluster.primary(group).is_some_and(|node| node.0 == leaving)).collect();
    let started = Instant::now();
    cluster.shut_down(leaving);
    cluster.wait_for_primaries();
    let paused = started.elapsed();
    client.create(&cluster, ROOT, "without-a-pause", NewNode::File, GroupId::GLOBAL);
    println!("{led:?} handed over after {paused:?}");
    assert!(paused < Duration::from_secs(4), "{paused:?}: that was an election's timeout");
    cluster.start_node(leaving);
    cluster.check_digests();
}
