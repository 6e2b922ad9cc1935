//! Members of groups come and go while mounts work: nothing acknowledged is missing, and all members have one state.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;

use common::cluster::{Cluster, Options, binary, eventually, objects_with};
use common::files::{create, exists, names, text};

/// Every region's second node hosts nothing at first: a region's group has one voter, `global` one in each region.
fn cluster(wan: &str) -> Cluster {
    Cluster::up(Options::wan(wan).nodes_per_region(2).limit(120))
}

/// A writer makes so many at least.
const FILES_MIN: usize = 60;

/// Makes files one after the other, all the time.
struct Writer {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<(Vec<PathBuf>, Duration)>,
}

impl Writer {
    fn start(folder: PathBuf) -> Writer {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let work = move || {
            let (mut made, mut slowest) = (Vec::new(), Duration::ZERO);
            fs::create_dir_all(&folder).unwrap();
            while !stopped.load(Ordering::Relaxed) || made.len() < FILES_MIN {
                let (path, begun) = (folder.join(format!("file-{}", made.len())), Instant::now());
                create(&path, content(&path).as_bytes()).unwrap();
                made.push(path);
                slowest = slowest.max(begun.elapsed());
                std::thread::sleep(Duration::from_millis(2));
            }
            (made, slowest)
        };
        Writer { stop, thread: std::thread::spawn(work) }
    }

    /// What it was told to be done.
    fn end(self) -> Vec<PathBuf> {
        self.stop.store(true, Ordering::Relaxed);
        let (made, slowest) = self.thread.join().unwrap();
        eprintln!("{} files made, the slowest in {slowest:?}", made.len());
        made
    }
}

/// Everything is there, as it was written.
fn check(made: &[PathBuf]) {
    for path in made {
        assert_eq!(text(path), content(path));
    }
}

/// The same in every mount.
fn content(path: &Path) -> String {
    format!("this is {}", path.file_name().unwrap().to_str().unwrap())
}

/// Exit code and message of a command that is refused.
fn refused(cluster: &Cluster, arguments: &[&str]) -> (i32, String) {
    let output = cluster.globalfs(arguments);
    assert!(!output.status.success(), "{arguments:?}");
    (output.status.code().unwrap(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// Node → role of a group's members, as `globalfs group list` has them.
fn members(cluster: &Cluster, group: &str) -> BTreeMap<String, String> {
    let output = cluster.globalfs(&["group", "list", group, "--json"]);
    let listed: Value = serde_json::from_slice(&output.stdout).unwrap();
    let member = |member: &Value| {
        Some((member["node"].as_str()?.to_owned(), member["role"].as_str().filter(|role| *role != "none")?.to_owned()))
    };
    listed["groups"][0]["members"].as_array().unwrap().iter().filter_map(member).collect()
}

fn roles(expected: &[(&str, &str)]) -> BTreeMap<String, String> {
    expected.iter().map(|(node, role)| ((*node).to_owned(), (*role).to_owned())).collect()
}

/// Replicas that have applied the same have the same state; all of a group get there.
fn check_digests(cluster: &Cluster) {
    eventually(Duration::from_secs(30), "all members to be equal", || {
        let status = cluster.status();
        let mut states: BTreeMap<u64, Vec<(u64, String)>> = BTreeMap::new();
        let mut digests: BTreeMap<(u64, String), String> = BTreeMap::new();
        for replica in objects_with(&status, &["group", "applied_index", "digest", "digests"]) {
            let (group, applied) = (replica["group"].as_u64().unwrap(), replica["applied_index"].as_u64().unwrap());
            states.entry(group).or_default().push((applied, replica["digest"].as_str().unwrap().to_owned()));
            for (index, digest) in replica["digests"].as_object().unwrap() {
                let digest = digest.as_str().unwrap().to_owned();
                let known = digests.entry((group, index.clone())).or_insert_with(|| digest.clone());
                assert_eq!(*known, digest, "group {group} differs at {index}");
            }
        }
        states.values().all(|states| states.windows(2).all(|pair| pair[0] == pair[1])).then_some(())
    });
}

/// A group of the node's status document, if the node has a replica of it.
fn replica(cluster: &Cluster, node: &str, group: &str) -> Option<Value> {
    let status = cluster.status();
    let nodes = status["nodes"].as_array().unwrap();
    let found = nodes.iter().find(|known| known["name"] == node)?;
    found["status"]["groups"].as_array()?.iter().find(|known| known["name"] == group).cloned()
}

fn mount_as(cluster: &Cluster, region: &str, path: &Path) -> PathBuf {
    cluster.mount(region).join(path.strip_prefix(cluster.mount("us")).unwrap())
}

#[test]
fn learner_in_another_region_is_read_there_while_that_is_cut_off_and_leaves_nothing() {
    let mut cluster = cluster("geo3-fast");
    let writer = Writer::start(cluster.mount("us").join("us/work"));
    let (code, why) = refused(&cluster, &["group", "add-learner", "us", "ap-7"]);
    assert!(code == 3 && why.contains("ap-"), "{code} {why}");
    let said = cluster.globalfs_ok(&["group", "add-learner", "us", "ap-2"]);
    assert!(said.contains("ap-2 is a learner of group us"), "{said}");
    let (code, why) = refused(&cluster, &["group", "add-learner", "us", "ap-2"]);
    assert!(code == 9 && why.contains("already"), "{code} {why}");
    assert_eq!(members(&cluster, "us"), roles(&[("us-1", "voter"), ("ap-2", "learner")]));
    let made = writer.end();
    let newest = mount_as(&cluster, "ap", made.last().unwrap());
    eventually(Duration::from_secs(10), "the newest file in ap", || exists(&newest).then_some(()));
    // The mount learns of the learner by itself; from then on its reads need nobody far away.
    eventually(Duration::from_secs(15), "the mount in ap to follow the learner", || {
        let subscribers = replica(&cluster, "ap-2", "us")?["subscribers"].as_u64()?;
        (subscribers > 0).then_some(())
    });
    cluster.cut("ap", "*");
    let folder = cluster.mount("ap").join("us/work");
    let begun = Instant::now();
    assert_eq!(names(&folder).len(), made.len());
    for path in made.iter().step_by(7) {
        assert_eq!(text(&mount_as(&cluster, "ap", path)), content(path));
    }
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    cluster.heal();
    cluster.stop();
    cluster.start();
    assert_eq!(members(&cluster, "us"), roles(&[("us-1", "voter"), ("ap-2", "learner")]));
    create(&cluster.mount("us").join("us/after"), b"after").unwrap();
    eventually(Duration::from_secs(10), "the learner to follow again", || {
        exists(&cluster.mount("ap").join("us/after")).then_some(())
    });
    check_digests(&cluster);
    let (code, why) = refused(&cluster, &["group", "remove-voter", "us", "ap-2"]);
    assert!(code == 9 && why.contains("remove-learner"), "{code} {why}");
    cluster.globalfs_ok(&["group", "remove-learner", "us", "ap-2"]);
    assert_eq!(members(&cluster, "us"), roles(&[("us-1", "voter")]));
    assert_eq!(replica(&cluster, "ap-2", "us"), None);
    check(&made.iter().map(|path| mount_as(&cluster, "ap", path)).collect::<Vec<_>>());
}

#[test]
fn voters_are_replaced_by_fresh_nodes_while_mounts_write_and_everything_restarts() {
    let mut cluster = cluster("lan3");
    let writers = [Writer::start(cluster.mount("us").join("us/work")), Writer::start(cluster.mount("us").join("root"))];
    cluster.globalfs_ok(&["group", "replace", "us", "us-1", "us-2"]);
    assert_eq!(members(&cluster, "us"), roles(&[("us-2", "voter")]));
    for (old, new) in [("us-1", "us-2"), ("eu-1", "eu-2"), ("ap-1", "ap-2")] {
        cluster.globalfs_ok(&["group", "replace", "global", old, new]);
    }
    assert_eq!(members(&cluster, "global"), roles(&[("us-2", "voter"), ("eu-2", "voter"), ("ap-2", "voter")]));
    let made: Vec<PathBuf> = writers.into_iter().flat_map(Writer::end).collect();
    check(&made);
    check_digests(&cluster);
    assert!(replica(&cluster, "us-1", "us").is_none() && replica(&cluster, "eu-1", "global").is_none());
    // By now the configuration names nobody who is still there.
    cluster.kill_all();
    cluster.start();
    check(&made);
    check(&made.iter().map(|path| mount_as(&cluster, "eu", path)).collect::<Vec<_>>());
    create(&cluster.mount("eu").join("us/after"), b"after").unwrap();
    fs::rename(cluster.mount("eu").join("us/after"), cluster.mount("eu").join("eu/after")).unwrap();
    assert_eq!(members(&cluster, "global"), roles(&[("us-2", "voter"), ("eu-2", "voter"), ("ap-2", "voter")]));
    check_digests(&cluster);
}

#[test]
fn voter_is_removed_while_another_is_down_only_if_a_quorum_is_left() {
    let cluster = cluster("lan3");
    let writer = Writer::start(cluster.mount("us").join("eu/work"));
    cluster.globalfs_ok(&["group", "add-voter", "eu", "eu-2"]);
    let added = cluster.globalfs_ok(&["group", "add-learner", "eu", "us-2", "--json"]);
    let added: Value = serde_json::from_str(&added).unwrap();
    assert!(added["schema"] == 1 && added["members"].as_array().unwrap().len() == 3, "{added}");
    cluster.globalfs_ok(&["group", "promote", "eu", "us-2"]);
    assert_eq!(members(&cluster, "eu"), roles(&[("eu-1", "voter"), ("eu-2", "voter"), ("us-2", "voter")]));
    let (code, why) = refused(&cluster, &["group", "recover", "eu", "--from", "eu-1", "--yes"]);
    assert!(code == 9 && why.contains("it lives"), "{code} {why}");
    cluster.kill_for_good(&["eu-2"]);
    // Long enough for the primary to miss it.
    std::thread::sleep(Duration::from_secs(3));
    let (code, why) = refused(&cluster, &["group", "remove-voter", "eu", "us-2"]);
    assert!(code == 4 && why.contains("stand still"), "{code} {why}");
    cluster.globalfs_ok(&["group", "remove-voter", "eu", "eu-2"]);
    assert_eq!(members(&cluster, "eu"), roles(&[("eu-1", "voter"), ("us-2", "voter")]));
    cluster.release_supervisor();
    eventually(Duration::from_secs(20), "eu-2 to be back", || replica(&cluster, "eu-2", "eu").map(drop));
    // It comes back as nobody; the same command again deletes what it has.
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(members(&cluster, "eu"), roles(&[("eu-1", "voter"), ("us-2", "voter")]));
    cluster.globalfs_ok(&["group", "remove-voter", "eu", "eu-2"]);
    assert_eq!(replica(&cluster, "eu-2", "eu"), None);
    let made = writer.end();
    check(&made);
    check(&made.iter().map(|path| mount_as(&cluster, "eu", path)).collect::<Vec<_>>());
    check_digests(&cluster);
}

#[test]
fn group_whose_region_is_lost_goes_on_from_its_learner_when_an_operator_says_so() {
    let cluster = cluster("lan3");
    let writer = Writer::start(cluster.mount("us").join("us/work"));
    cluster.globalfs_ok(&["group", "add-learner", "us", "eu-2"]);
    let made = writer.end();
    let in_eu: Vec<PathBuf> = made.iter().map(|path| mount_as(&cluster, "eu", path)).collect();
    check(&in_eu);
    cluster.kill_for_good(&["us-1", "us-2"]);
    fs::remove_dir_all(cluster.data().join("nodes/us-1")).unwrap();
    std::thread::sleep(Duration::from_secs(3));
    let (code, why) = refused(&cluster, &["group", "recover", "us", "--from", "eu-2"]);
    assert!(code == 2 && why.contains("What may be lost") && why.contains("--yes"), "{code} {why}");
    let (code, why) = refused(&cluster, &["group", "recover", "us", "--from", "eu-1", "--yes"]);
    assert!(code == 9 && why.contains("no replica"), "{code} {why}");
    let (code, why) = refused(&cluster, &["group", "recover", "us", "--from", "eu-2", "--keep", "ap-2", "--yes"]);
    assert!(code == 9 && why.contains("ap-2 is no member"), "{code} {why}");
    cluster.globalfs_ok(&["group", "recover", "us", "--from", "eu-2", "--yes"]);
    assert_eq!(members(&cluster, "us"), roles(&[("eu-2", "voter")]));
    check(&in_eu);
    let folder = cluster.mount("eu").join("us/work");
    eventually(Duration::from_secs(20), "the group to take updates again", || create(&folder.join("after"), b"x").ok());
    // The region is built anew, and takes part again.
    cluster.globalfs_ok(&["group", "add-voter", "us", "ap-2"]);
    assert_eq!(members(&cluster, "us"), roles(&[("eu-2", "voter"), ("ap-2", "voter")]));
    create(&folder.join("with two"), b"x").unwrap();
    check_digests(&cluster);
}

/// Alters the first batch of a node's log; others follow.
fn damage_log(cluster: &Cluster, node: &str) {
    let log = cluster.data().join("nodes").join(node).join("log");
    let segments = fs::read_dir(log).unwrap().map(|entry| entry.unwrap().path());
    let segment = segments.min().unwrap();
    let mut bytes = fs::read(&segment).unwrap();
    bytes[512 + 40] ^= 1;
    fs::write(&segment, bytes).unwrap();
}

/// A voter of the group on another disk than that of the founding, as the group's members know it.
fn is_voter_anew(cluster: &Cluster, node: &str, group: &str) -> Option<()> {
    let replica = replica(cluster, node, group)?;
    let is_it = |member: &&Value| member["incarnation"] == replica["incarnation"] && member["role"] == "voter";
    let log = text(&cluster.data().join(format!("log/{node}.log")));
    let is_known = replica["members"].as_array()?.iter().any(|member| is_it(&member));
    (is_known && log.contains("it begins anew, as on a new disk")).then_some(())
}

#[test]
fn damaged_nodes_are_what_their_groups_say_and_not_what_the_configuration_says() {
    let mut cluster = cluster("lan3");
    let writers = [Writer::start(cluster.mount("us").join("us/work")), Writer::start(cluster.mount("us").join("root"))];
    cluster.globalfs_ok(&["group", "replace", "us", "us-1", "us-2"]);
    for node in ["eu-2", "ap-2"] {
        cluster.globalfs_ok(&["group", "add-voter", "us", node]);
    }
    let made: Vec<PathBuf> = writers.into_iter().flat_map(Writer::end).collect();
    cluster.stop();
    // By the configuration `us` is lost without us-1, and eu-2 is in no group.
    damage_log(&cluster, "us-1");
    damage_log(&cluster, "eu-2");
    cluster.start();
    for (node, group) in [("us-1", "global"), ("eu-2", "us")] {
        eventually(Duration::from_secs(60), "the damaged node to vote again", || is_voter_anew(&cluster, node, group));
    }
    assert_eq!(members(&cluster, "us"), roles(&[("us-2", "voter"), ("eu-2", "voter"), ("ap-2", "voter")]));
    eventually(Duration::from_secs(10), "us-1 to end what only the configuration gives it", || {
        replica(&cluster, "us-1", "us").is_none().then_some(())
    });
    check(&made);
    check_digests(&cluster);
    cluster.globalfs_ok(&["group", "replace", "eu", "eu-1", "ap-2"]);
    cluster.stop();
    damage_log(&cluster, "ap-2");
    let (code, why) = refused(&cluster, &["node", "--name", "ap-2"]);
    assert!(code == 5 && why.contains("it is the only voter of group eu"), "{code} {why}");
    assert!(cluster.data().join("nodes/ap-2/stamp").exists() && cluster.data().join("nodes/ap-2/log").exists());
}

/// A node that the supervisor knows nothing of; its process ends with the value.
struct ExtraNode(Child);

impl ExtraNode {
    fn start(cluster: &Cluster, name: &str) -> ExtraNode {
        let log = fs::File::create(cluster.folder().join(format!("{name}.log"))).unwrap();
        let mut command = Command::new(binary());
        command.arg("--config").arg(cluster.data().join("cluster.toml")).args(["node", "--name", name, "--initialise"]);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.starts_with("ready"), "{line}");
        ExtraNode(child)
    }
}

impl Drop for ExtraNode {
    fn drop(&mut self) {
        let _gone_already = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The node's disk is replaced by an empty one.
fn start_on_new_disk(cluster: &Cluster, name: &str) -> ExtraNode {
    cluster.kill_for_good(&[name]);
    fs::remove_dir_all(cluster.data().join("nodes").join(name)).unwrap();
    ExtraNode::start(cluster, name)
}

#[test]
fn node_on_a_new_disk_gets_back_what_operators_had_given_it_and_nothing_else() {
    let cluster = cluster("lan3");
    let writer = Writer::start(cluster.mount("us").join("us/work"));
    cluster.globalfs_ok(&["group", "add-learner", "us", "eu-2"]);
    for node in ["eu-2", "us-2"] {
        cluster.globalfs_ok(&["group", "add-voter", "eu", node]);
    }
    let before = ["us", "eu"].map(|group| replica(&cluster, "eu-2", group).unwrap()["incarnation"].clone());
    let second = start_on_new_disk(&cluster, "eu-2");
    for (group, role, before) in [("us", "learner", &before[0]), ("eu", "voter", &before[1])] {
        eventually(Duration::from_secs(60), "the new disk to be what the old one was", || {
            let replica = replica(&cluster, "eu-2", group)?;
            let is_it = |member: &Value| member["incarnation"] == replica["incarnation"] && member["role"] == role;
            (replica["incarnation"] != *before && replica["members"].as_array()?.iter().any(is_it)).then_some(())
        });
    }
    cluster.globalfs_ok(&["group", "remove-voter", "eu", "eu-1"]);
    let first = start_on_new_disk(&cluster, "eu-1");
    eventually(Duration::from_secs(60), "eu-1 to vote in what it is a member of, and in that alone", || {
        let status = cluster.status();
        let groups =
            status["nodes"].as_array()?.iter().find(|node| node["name"] == "eu-1")?["status"]["groups"].clone();
        let [replica] = groups.as_array()?.as_slice() else { return None };
        let is_it = |member: &Value| member["incarnation"] == replica["incarnation"] && member["role"] == "voter";
        (replica["name"] == "global" && replica["members"].as_array()?.iter().any(is_it)).then_some(())
    });
    for node in ["eu-1", "eu-2"] {
        let is_on_its_way = cluster.data().join("nodes").join(node).join("anew");
        eventually(Duration::from_secs(20), "all groups to have spoken", || (!is_on_its_way.exists()).then_some(()));
    }
    let made = writer.end();
    drop((first, second));
    cluster.release_supervisor();
    for node in ["eu-1", "eu-2"] {
        eventually(Duration::from_secs(20), "it to be back", || {
            replica(&cluster, node, "global").or(replica(&cluster, node, "us"))
        });
    }
    assert_eq!(members(&cluster, "us"), roles(&[("us-1", "voter"), ("eu-2", "learner")]));
    assert_eq!(members(&cluster, "eu"), roles(&[("eu-2", "voter"), ("us-2", "voter")]));
    check(&made.iter().map(|path| mount_as(&cluster, "eu", path)).collect::<Vec<_>>());
    check_digests(&cluster);
}

#[test]
fn node_is_added_to_a_running_cluster_drained_and_removed() {
    let cluster = cluster("lan3");
    let address = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    cluster.globalfs_ok(&["node", "add", "eu-3", "--region", "eu", "--address", &address]);
    let (code, why) = refused(&cluster, &["node", "add", "eu-3", "--region", "eu", "--address", "127.0.0.1:1"]);
    assert!(code == 9 && why.contains("already"), "{code} {why}");
    let node = ExtraNode::start(&cluster, "eu-3");
    let writer = Writer::start(cluster.mount("us").join("eu/work"));
    cluster.globalfs_ok(&["group", "replace", "eu", "eu-1", "eu-3"]);
    assert_eq!(members(&cluster, "eu"), roles(&[("eu-3", "voter")]));
    cluster.globalfs_ok(&["group", "add-learner", "us", "eu-3"]);
    let (code, why) = refused(&cluster, &["node", "remove", "eu-3"]);
    assert!(code == 9 && why.contains("drain it first"), "{code} {why}");
    cluster.globalfs_ok(&["node", "drain", "eu-3", "--to", "eu-2"]);
    assert_eq!(members(&cluster, "eu"), roles(&[("eu-2", "voter")]));
    assert_eq!(members(&cluster, "us"), roles(&[("us-1", "voter")]));
    cluster.globalfs_ok(&["node", "remove", "eu-3"]);
    drop(node);
    let made = writer.end();
    check(&made.iter().map(|path| mount_as(&cluster, "eu", path)).collect::<Vec<_>>());
    let (code, why) = refused(&cluster, &["group", "add-learner", "eu", "eu-3"]);
    assert!(code == 3 && why.contains("no node"), "{code} {why}");
    check_digests(&cluster);
}

#[test]
fn voter_is_replaced_in_a_group_that_cannot_have_more() {
    let cluster = Cluster::up(Options::default().nodes_per_region(3).limit(240));
    let writer = Writer::start(cluster.path("us", "us/full"));
    for node in ["eu-1", "eu-2", "ap-1", "ap-2"] {
        cluster.globalfs_ok(&["group", "add-voter", "us", node]);
    }
    let voters = |nodes: [&str; 7]| roles(&nodes.map(|node| (node, "voter")));
    assert_eq!(members(&cluster, "us"), voters(["us-1", "us-2", "us-3", "eu-1", "eu-2", "ap-1", "ap-2"]));
    let (code, said) = refused(&cluster, &["group", "add-voter", "us", "ap-3"]);
    assert_eq!(code, 9, "{said}");
    let (code, said) = refused(&cluster, &["group", "replace", "us", "ap-2", "ap-3", "--no-wait"]);
    assert!(code == 9 && said.contains("nothing was changed"), "{code}: {said}");
    cluster.globalfs_ok(&["group", "replace", "us", "ap-2", "ap-3"]);
    assert_eq!(members(&cluster, "us"), voters(["us-1", "us-2", "us-3", "eu-1", "eu-2", "ap-1", "ap-3"]));
    // Half done: the old one has gone, the new one only follows.
    cluster.globalfs_ok(&["group", "remove-voter", "us", "eu-2"]);
    cluster.globalfs_ok(&["group", "add-learner", "us", "ap-2"]);
    cluster.globalfs_ok(&["group", "replace", "us", "eu-2", "ap-2"]);
    assert_eq!(members(&cluster, "us"), voters(["us-1", "us-2", "us-3", "eu-1", "ap-1", "ap-2", "ap-3"]));
    check(&writer.end());
    check_digests(&cluster);
}
