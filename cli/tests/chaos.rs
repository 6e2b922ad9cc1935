//! Everything at once, for minutes or, by option, for hours: nodes and mounts are killed, nodes are paused, stopped and started,
//! regions are cut off from each other, a disk is lost, groups' members change, and all the while three mounts are worked on. At
//! the end nothing acknowledged is missing, all mounts show the same tree, the replicas agree, and `globalfs fsck` finds nothing.
//!
//! `GLOBALFS_CHAOS_SECONDS` says for how long (120), `GLOBALFS_TEST_SEED` repeats a run's choices.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Lines, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::cluster::{Cluster, Options, Part, REGIONS, binary, eventually};
use common::files::Random;
use common::journal::{Expected, Worker, check_all, check_locks, work_while, workers_that_expect};
use common::tree;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// What may become of calls while their group is cut off or has no quorum for longer than they wait.
const IN_VAIN: &[i32] = &[libc::ETIMEDOUT, libc::EHOSTUNREACH];
const NODES_PER_REGION: u64 = 3;
/// Faults go on for so long, then everything is healed and compared.
const ROUND: Duration = Duration::from_secs(40);
/// One in so many rounds loses a disk, the first one too. Another one only when all groups are whole again.
const ROUNDS_PER_LOST_DISK: u32 = 4;
/// A dead mount's locks end with its session, and that a minute after its death.
const LOCKS_LAST: Duration = Duration::from_secs(100);

/// Runs commands in a process that was started before anybody worked on the mounts. A child of this one would have its open
/// files, and when it closes them, waits for what they have not written yet: until a cut is mended that it was to mend.
struct Shell {
    process: Child,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Shell {
    fn new(cluster: &Cluster) -> Shell {
        let mut command = Command::new("sh");
        command.env("CONFIG", cluster.data().join("cluster.toml")).env("GLOBALFS", binary());
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let answers = BufReader::new(process.stdout.take().unwrap()).lines();
        Shell { process, answers }
    }

    /// The next line that a command prints.
    fn line_of(&mut self, command: &str) -> String {
        writeln!(self.process.stdin.as_mut().unwrap(), "{command}").unwrap();
        self.answers.next().expect("the shell runs").unwrap()
    }

    fn run(&mut self, command: &str) {
        let code = self.line_of(&format!("{command} >&2; echo $?"));
        assert_eq!(code, "0", "{command}");
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let _gone_already = self.process.kill();
        let _ended = self.process.wait();
    }
}

/// Who does all this to a cluster.
struct Fate<'a> {
    cluster: &'a Cluster,
    shell: Shell,
    random: Random,
    /// By mount, as [`Expected`] has it.
    deaths: BTreeMap<&'static str, Arc<AtomicU64>>,
    began: Instant,
}

impl Fate<'_> {
    fn says(&self, what: &str) {
        eprintln!("{:6.1} s: {what}", self.began.elapsed().as_secs_f64());
    }

    fn region(&mut self) -> &'static str {
        REGIONS[self.random.below(3) as usize]
    }

    fn node(&mut self) -> String {
        format!("{}-{}", self.region(), 1 + self.random.below(NODES_PER_REGION))
    }

    fn time(&mut self, most_ms: u64) -> Duration {
        Duration::from_millis(self.random.below(most_ms))
    }

    /// One misfortune, and its end.
    fn strikes(&mut self) {
        match self.random.below(12) {
            0..=2 => self.kills_a_node(),
            3 => self.kills_a_region(),
            4..=6 => {
                let time = self.time(6000);
                self.pauses_a_node(time);
            }
            7 => self.kills_a_mount(),
            8 => {
                let node = self.node();
                self.says(&format!("stop {node} in order"));
                if let Some(process) = self.cluster.nodes().get(&node) {
                    signal(process.pid, Signal::TERM);
                }
            }
            _ => self.cuts(),
        }
        thread::sleep(self.time(3000));
    }

    fn kills_a_node(&mut self) {
        let (node, down) = (self.node(), self.time(4000));
        self.says(&format!("kill {node} for {down:?}"));
        // It may be on its way up after a misfortune before.
        if self.cluster.nodes().contains_key(&node) {
            self.cluster.kill_for(&Part::Node(node), down);
        }
    }

    fn kills_a_region(&mut self) {
        let region = self.region();
        self.says(&format!("kill all nodes of {region}"));
        for (name, process) in self.cluster.nodes() {
            if name.starts_with(region) {
                self.cluster.kill(&process);
            }
        }
    }

    /// Frozen for a while: it wakes up and does not know. Never a mount: whoever touches a mount whose process is stopped waits
    /// in the kernel, be it the shell in which one wants to see why.
    fn pauses_a_node(&mut self, time: Duration) {
        let node = self.node();
        self.says(&format!("pause {node} for {time:?}"));
        let Some(process) = self.cluster.nodes().remove(&node) else { return };
        signal(process.pid, Signal::STOP);
        thread::sleep(time);
        signal(process.pid, Signal::CONT);
    }

    fn kills_a_mount(&mut self) {
        let (region, down) = (self.region(), self.time(1500));
        self.says(&format!("kill the mount of {region} for {down:?}"));
        let deaths = Arc::clone(&self.deaths[region]);
        deaths.fetch_add(1, Ordering::SeqCst);
        self.cluster.kill_for(&Part::Mount(region.into()), down);
        deaths.fetch_add(1, Ordering::SeqCst);
    }

    fn cuts(&mut self) {
        let one = self.random.below(3) as usize;
        let (one, other, time) = (REGIONS[one], REGIONS[(one + 1) % 3], self.time(6000));
        self.says(&format!("cut {one} from {other} for {time:?}"));
        self.shell.run(&format!("$GLOBALFS --config $CONFIG wan cut {one} {other}"));
        // Something else happens meanwhile.
        match self.random.below(3) {
            0 => self.pauses_a_node(time),
            1 => {
                self.kills_a_node();
                thread::sleep(time);
            }
            _ => thread::sleep(time),
        }
        self.shell.run("$GLOBALFS --config $CONFIG wan heal");
    }

    /// An operator changes a group's members, and does not look at what else happens.
    fn changes_members(&mut self) {
        let (region, other) = (self.random.below(3) as usize, self.node());
        let (region, next) = (REGIONS[region], REGIONS[(region + 1) % 3]);
        let change = match (self.random.below(2), &other[..2] == region) {
            (0, _) => format!("group replace global {region}-1 {region}-2"),
            (_, false) => format!("group add-learner {region} {other}"),
            (_, true) => format!("group add-voter {region} {next}-3"),
        };
        self.says(&format!("globalfs {change}"));
        let log = self.cluster.data().join("log/group.log");
        let command = format!("timeout 60 $GLOBALFS --config $CONFIG {change} >> {} 2>&1 &", log.display());
        assert_eq!(self.shell.line_of(&format!("{command} echo begun")), "begun");
    }

    /// Every group gets back the members with which it was founded, however far the change has come.
    fn restores_members(&mut self) {
        assert_eq!(self.shell.line_of("wait; echo ended"), "ended");
        let cluster = self.cluster;
        // Whoever is down may have a replica that nobody speaks of.
        eventually(Duration::from_secs(60), "all nodes to answer", || {
            let status = cluster.status();
            status["nodes"].as_array()?.iter().all(|node| node["status"].is_object()).then_some(())
        });
        for group in ["global", "us", "eu", "ap"] {
            let founders = match group {
                "global" => REGIONS.map(|region| format!("{region}-1")),
                region => ["1", "2", "3"].map(|number| format!("{region}-{number}")),
            };
            eventually(Duration::from_secs(90), &format!("the founders of {group} to be its members again"), || {
                let members = members(cluster, group)?;
                let Some((change, node)) = out_of_place(&members, &founders) else { return Some(()) };
                let output = cluster.globalfs(&["group", change, group, &node, "--timeout", "30s"]);
                let why = String::from_utf8_lossy(&output.stderr).into_owned();
                eprintln!("group {change} {group} {node}: {} {why}", output.status);
                None
            });
        }
    }

    /// A node's disk is lost, and replaced by an empty one.
    fn wipes_a_disk(&mut self) {
        let name = self.node();
        self.says(&format!("wipe the disk of {name}"));
        let folder = self.cluster.data().join("nodes").join(&name);
        // Its supervisor must not start it before the new disk is formatted.
        let up = self.cluster.process(&Part::Up).pid;
        signal(up, Signal::STOP);
        if let Some(process) = self.cluster.nodes().get(&name) {
            self.cluster.kill(process);
        }
        fs::remove_dir_all(&folder).unwrap();
        self.formats(&name);
        signal(up, Signal::CONT);
    }

    fn formats(&mut self, name: &str) {
        let log = self.cluster.data().join(format!("log/{name}.log"));
        let start = format!("$GLOBALFS node --config $CONFIG --name {name} --initialise 2>> {}", log.display());
        let line = self.shell.line_of(&format!("{start} & wait $!"));
        assert!(line.starts_with("ready"), "{name} on its new disk: {line}");
        let process = self.cluster.process(&Part::Node(name.into()));
        signal(process.pid, Signal::TERM);
        eventually(Duration::from_secs(10), "the new disk's first node to end", || (!process.is_alive()).then_some(()));
    }
}

/// Node → role of a group's members.
fn members(cluster: &Cluster, group: &str) -> Option<BTreeMap<String, String>> {
    let output = cluster.globalfs(&["group", "list", group, "--json"]);
    let listed: Value = serde_json::from_slice(&output.stdout).ok()?;
    let word = |value: &Value| value.as_str().map(str::to_owned);
    listed["groups"][0]["members"]
        .as_array()?
        .iter()
        .map(|one| Some((word(&one["node"])?, word(&one["role"])?)))
        .collect()
}

/// What is to be done next so that exactly the founders vote.
fn out_of_place(members: &BTreeMap<String, String>, founders: &[String; 3]) -> Option<(&'static str, String)> {
    let role = |node: &String| members.get(node).map(String::as_str);
    if let Some(founder) = founders.iter().find(|node| role(node) != Some("voter")) {
        return Some((if role(founder) == Some("learner") { "promote" } else { "add-voter" }, founder.clone()));
    }
    let (node, role) = members.iter().find(|(node, _)| !founders.contains(node))?;
    Some((if role == "voter" { "remove-voter" } else { "remove-learner" }, node.clone()))
}

fn signal(pid: i32, signal: Signal) {
    let _gone_already = kill_process(Pid::from_raw(pid).unwrap(), signal);
}

/// Names, attributes and contents are the same on all mounts.
fn check_trees(cluster: &Cluster) {
    cluster.sync_all();
    let trees = REGIONS.map(|region| tree::full_summary(&cluster.mount(region)));
    for (region, tree) in REGIONS.iter().zip(&trees).skip(1) {
        let paths: Vec<&PathBuf> = tree.keys().chain(trees[0].keys()).collect();
        let differ: Vec<_> = paths.into_iter().filter(|path| tree.get(*path) != trees[0].get(*path)).collect();
        assert!(differ.is_empty(), "{region} and us show different trees: {differ:?}");
    }
    assert!(trees[0].len() > 50, "{}", trees[0].len());
    eprintln!("{} paths are the same on all mounts", trees[0].len());
}

fn check_with_fsck(cluster: &Cluster, how: &[&str]) {
    let output = cluster.globalfs(&[&["fsck", "--json"], how].concat());
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{said} {}", String::from_utf8_lossy(&output.stderr));
}

fn heal_and_check(cluster: &Cluster, workers: &mut [Worker]) {
    let healed = Instant::now();
    eventually(Duration::from_secs(90), "all groups to be whole again", || cluster.is_whole());
    eprintln!("all groups are whole after {:?}", healed.elapsed());
    check_all(cluster, workers);
}

#[test]
fn nothing_acknowledged_is_lost_whatever_happens() {
    let seconds = std::env::var("GLOBALFS_CHAOS_SECONDS").map_or(120, |text| text.parse().unwrap());
    let mut random = Random::fresh();
    let options = Options::default().nodes_per_region(NODES_PER_REGION as u32).limit(seconds * 2 + 300);
    let mut cluster = Cluster::up(options);
    let deaths = RefCell::new(BTreeMap::new());
    let mut workers = workers_that_expect(&cluster, &mut random, |region| {
        let region = REGIONS.into_iter().find(|one| *one == region).unwrap();
        let deaths = Arc::clone(deaths.borrow_mut().entry(region).or_default());
        Expected { always: IN_VAIN, deaths }
    });
    let shell = Shell::new(&cluster);
    let mut fate = Fate { cluster: &cluster, shell, random, deaths: deaths.into_inner(), began: Instant::now() };
    let (mut left, mut rounds) = (Duration::from_secs(seconds), 0);
    while !left.is_zero() {
        let round = Instant::now();
        let time = ROUND.min(left);
        work_while(&mut workers, |one_has_failed| {
            fate.changes_members();
            if rounds % ROUNDS_PER_LOST_DISK == 0 {
                fate.strikes();
                fate.wipes_a_disk();
            }
            while round.elapsed() < time && !one_has_failed() {
                fate.strikes();
            }
        });
        left = left.saturating_sub(round.elapsed());
        rounds += 1;
        fate.restores_members();
        heal_and_check(&cluster, &mut workers);
    }
    check_trees(&cluster);
    check_with_fsck(&cluster, &["--online"]);
    check_locks(&cluster, &workers, LOCKS_LAST);
    for worker in &workers {
        assert!(worker.acknowledged > 50, "{} got only {} operations done", worker.name, worker.acknowledged);
    }
    cluster.stop();
    check_with_fsck(&cluster, &[]);
}
