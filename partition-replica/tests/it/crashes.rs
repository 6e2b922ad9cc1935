use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use metadata::op::{FsOp, NewNode, SetAttr};
use metadata::protocol::{Reply, Request};
use metadata::read::{ReadAnswer, ReadOp};
use metadata::types::NodeRef;
use multicast::ids::{GroupId, ReplicaId};
use partition_replica::{Error, Limits, Node, Timeouts};

use crate::client::{Client, ROOT};
use crate::cluster::{Cluster, wait_until};

#[test]
fn nothing_acknowledged_is_lost_when_all_nodes_crash_again_and_again() {
    let cluster = Cluster::start();
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
    let cluster = Cluster::start();
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
            statuses.len() == 4
                && statuses.iter().all(|group| {
                    let committed =
                        cluster.statuses(GroupId(group.group)).values().map(|other| other.committed_index).max();
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
    let cluster = Cluster::start();
    let mut client = Client::open(&cluster, 1);
    let file = client.create(&cluster, ROOT, "a", NewNode::File, GroupId::GLOBAL);
    // A majority is enough for an answer: the others have it when they have it.
    wait_until("every replica has applied something", || {
        (1..=3).all(|node| cluster.node(node).status().groups.iter().all(|group| group.applied_index > 0))
    });
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
            alive.ask(&cluster, ReplicaId(node), Request::KeepAlive { session });
        }
        (0..4).all(|group| cluster.statuses(GroupId(group)).values().all(|status| status.sessions == 1))
    });
    alive.create(&cluster, ROOT, "still-here", NewNode::File, GroupId::GLOBAL);
}

/// What one client has made: (directory, name) → file.
type Files = BTreeMap<(usize, String), NodeRef>;

/// Creates and renames across groups until told to stop. Every outcome is checked: a command that executed twice, or not at
/// all, shows.
fn work(cluster: &Cluster, client: &mut Client, dirs: &[NodeRef], stop: &AtomicBool) -> Files {
    let mut files = Files::new();
    for count in 0_usize.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let at = count % dirs.len();
        if count % 3 != 2 || files.is_empty() {
            let name = format!("c{}-{count}", client.session);
            let file = client.create(cluster, dirs[at], &name, NewNode::File, dirs[at].home);
            files.insert((at, name), file);
        } else {
            let ((from, name), mut file) = files.pop_first().unwrap();
            let to = (from + 1) % dirs.len();
            let new = format!("{name}-r{count}");
            match client.rename(cluster, (dirs[from], &name), file, (dirs[to], &new)) {
                Ok(metadata::outcome::Done::Renamed { attr, .. }) => file.home = attr.home,
                other => panic!("{name}: {other:?}"),
            }
            files.insert((to, new), file);
        }
    }
    files
}

#[test]
fn commands_under_way_while_nodes_crash_execute_exactly_once() {
    let cluster = Cluster::start();
    let mut first = Client::open(&cluster, 1);
    let dirs: Vec<_> = (1..4).map(|group| first.placed_directory(&cluster, group)).collect();
    let stop = AtomicBool::new(false);
    let all: Files = std::thread::scope(|scope| {
        let workers: Vec<_> = (2..6)
            .map(|session| {
                let (cluster, dirs, stop) = (&cluster, &dirs, &stop);
                scope.spawn(move || work(cluster, &mut Client::open(cluster, session), dirs, stop))
            })
            .collect();
        let started = Instant::now();
        for round in 0_u32.. {
            std::thread::sleep(Duration::from_millis(300));
            let victims = if round % 4 == 3 { 1..=3 } else { 1 + round % 3..=1 + round % 3 };
            victims.clone().for_each(|node| cluster.crash(node));
            std::thread::sleep(Duration::from_millis(u64::from(round % 3) * 700));
            victims.for_each(|node| cluster.start_node(node));
            cluster.wait_for_primaries();
            if started.elapsed() > Duration::from_secs(12) {
                break;
            }
        }
        stop.store(true, Ordering::Relaxed);
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    });
    println!("{} files", all.len());
    let mut reader = Client::open(&cluster, 9);
    cluster.check_digests();
    for (at, dir) in dirs.iter().enumerate() {
        let mut found = Files::new();
        let mut after = 0;
        loop {
            let op = ReadOp::ReadDir { dir: dir.ino, after, limit: 1000, plus: false };
            let Ok(ReadAnswer::Entries { entries, end }) = reader.read(&cluster, 1 + at as u32, dir.home, op) else {
                panic!()
            };
            after = entries.last().map_or(after, |entry| entry.cookie);
            for entry in entries {
                found.insert((at, String::from_utf8(entry.name.to_vec()).unwrap()), entry.dirent);
            }
            if end {
                break;
            }
        }
        let expected: Files =
            all.iter().filter(|((dir, _), _)| *dir == at).map(|(key, &file)| (key.clone(), file)).collect();
        assert_eq!(found, expected);
    }
}

/// `count` updates of the root, many at a time, through its primary.
pub fn touch_root(cluster: &Cluster, client: &mut Client, count: usize) {
    let group = GroupId::GLOBAL;
    let primary = cluster.primary(group).unwrap();
    let touch = FsOp::SetAttr { node: ROOT, set: SetAttr { mode: Some(0o755), ..SetAttr::default() } };
    for _ in 0..count / 100 {
        let requests = (0..100).map(|_| Request::Update { group, command: client.command(&touch) }).collect();
        for reply in client.pipeline(cluster, primary.0, requests) {
            assert!(matches!(reply, Reply::Updated { outcome: Ok(_), .. }), "{reply:?}");
        }
    }
}

#[test]
fn log_is_cut_once_all_voters_have_it_and_the_state_is_flushed() {
    let timeouts = Timeouts { state_flush: Duration::from_millis(300), ..Timeouts::default() };
    let limits = Limits { state_memory_bytes: 16 << 20, log_cache_bytes: 64 << 10, ..Limits::default() };
    let cluster = Cluster::start_limited(timeouts, limits);
    let mut client = Client::open(&cluster, 1);
    let group = GroupId::GLOBAL;
    let first = |node: u32| cluster.statuses(group)[&node].first_index;
    touch_root(&cluster, &mut client, 1000);
    wait_until("all have cut their log", || (1..=3).all(|node| first(node) > 900));

    // What a node misses stays in the others' logs, and is read back from disk for it.
    let primary = cluster.primary(group).unwrap();
    let lagging = 1 + primary.0 % 3;
    cluster.crash(lagging);
    touch_root(&cluster, &mut client, 3000);
    std::thread::sleep(Duration::from_millis(1500));
    assert!(first(primary.0) < 1200, "the log is kept for the voter that is away");
    cluster.start_node(lagging);
    wait_until("all have cut their log again", || (1..=3).all(|node| first(node) > 3900));
    cluster.check_digests();
    for node in 1..=3 {
        cluster.crash(node);
    }
    for node in 1..=3 {
        cluster.start_node(node);
    }
    cluster.wait_for_primaries();
    cluster.check_digests();
}
