//! Processes are killed at any moment: nothing acknowledged is lost, nothing is half done, nothing is done twice.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::cluster::{Cluster, Options, Part, REGIONS, eventually, objects_with};
use common::files::{Random, StopAtEnd, create, exists, open_append};

/// What a path may hold: nothing or a content. More than one while an operation on it has not been acknowledged.
type Possible = Vec<Option<Vec<u8>>>;

/// One thread of work on one mount, which knows what it was told.
struct Worker {
    name: String,
    mount: PathBuf,
    random: Random,
    sequence: u64,
    /// Failures are expected: the mount itself is killed.
    fragile: bool,
    paths: BTreeMap<String, Possible>,
    /// Unacknowledged moves: the content is at exactly one of the two.
    moves: Vec<(String, String, Vec<u8>)>,
    /// Lines of the shared logs, by home, and whether they were acknowledged.
    lines: Vec<(&'static str, String, bool)>,
    acknowledged: u64,
    slowest: Duration,
}

const HOMES: [&str; 4] = ["us", "eu", "ap", ""];

impl Worker {
    fn new(cluster: &Cluster, region: &str, number: usize, fragile: bool) -> Worker {
        Worker {
            name: format!("{region}-{number}"),
            mount: cluster.mount(region),
            random: Random::new(number as u64 + 20),
            sequence: 0,
            fragile,
            paths: BTreeMap::new(),
            moves: Vec::new(),
            lines: Vec::new(),
            acknowledged: 0,
            slowest: Duration::ZERO,
        }
    }

    fn at(&self, path: &str) -> PathBuf {
        self.mount.join(path)
    }

    /// A new path that nobody else uses.
    fn fresh(&mut self, kind: &str) -> String {
        self.sequence += 1;
        let home = HOMES[self.random.below(4) as usize];
        format!("{home}/tasks/{kind}-{}-{}", self.name, self.sequence).trim_start_matches('/').to_owned()
    }

    /// A path of its own whose content is known.
    fn known(&mut self) -> Option<(String, Vec<u8>)> {
        let known = |(path, possible): (&String, &Possible)| match &possible[..] {
            [Some(content)] => Some((path.clone(), content.clone())),
            _ => None,
        };
        let all: Vec<_> = self.paths.iter().filter_map(known).collect();
        if all.is_empty() { None } else { Some(all[self.random.below(all.len() as u64) as usize].clone()) }
    }

    /// True if it was acknowledged. What may fail, and how, depends on what is being killed.
    fn judge<T>(&mut self, what: &str, started: Instant, result: io::Result<T>) -> bool {
        self.slowest = self.slowest.max(started.elapsed());
        let Err(error) = result else {
            self.acknowledged += 1;
            return true;
        };
        // ENOENT: between two mounts the path leads into the empty mount point.
        let allowed = [libc::ENOTCONN, libc::ECONNABORTED, libc::EIO, libc::EBADF, libc::ENOENT];
        let known = error.raw_os_error().is_some_and(|errno| allowed.contains(&errno));
        assert!(
            self.fragile && known,
            "{}: {what} failed after {:?}: {error}; an operation may have been executed twice or lost",
            self.name,
            started.elapsed()
        );
        // A dead mount fails at once: do not spin until it is back.
        thread::sleep(Duration::from_millis(50));
        false
    }

    fn step(&mut self) {
        match self.random.below(10) {
            0..=2 => self.create(),
            3 => self.replace(),
            4 | 5 => self.rename(),
            6 => self.remove(),
            _ => self.append(),
        }
    }

    fn create(&mut self) {
        let path = self.fresh("file");
        let len = if self.random.below(4) == 0 { 50_000 } else { 30 };
        let content = self.random.bytes(len);
        let started = Instant::now();
        // The name is new: EEXIST would mean that a retry found its own first execution.
        let result = create(&self.at(&path), &content);
        let done = self.judge(&format!("create {path}"), started, result);
        let unknown = vec![None, Some(Vec::new()), Some(content.clone())];
        self.paths.insert(path, if done { vec![Some(content)] } else { unknown });
    }

    fn replace(&mut self) {
        let Some((path, old)) = self.known() else { return };
        let content = self.random.bytes(100);
        let fresh = self.fresh("fresh");
        let started = Instant::now();
        let result = create(&self.at(&fresh), &content).and_then(|()| fs::rename(self.at(&fresh), self.at(&path)));
        if self.judge(&format!("replace {path}"), started, result) {
            self.paths.insert(path, vec![Some(content)]);
        } else {
            self.paths.insert(path, vec![Some(old), Some(content.clone())]);
            self.paths.insert(fresh, vec![None, Some(Vec::new()), Some(content)]);
        }
    }

    fn rename(&mut self) {
        let Some((from, content)) = self.known() else { return };
        let to = self.fresh("moved");
        let started = Instant::now();
        // ENOENT would mean that a retry found its own first execution.
        let result = fs::rename(self.at(&from), self.at(&to));
        if self.judge(&format!("rename {from} to {to}"), started, result) {
            self.paths.insert(from, vec![None]);
            self.paths.insert(to, vec![Some(content)]);
        } else {
            self.paths.remove(&from);
            self.moves.push((from, to, content));
        }
    }

    fn remove(&mut self) {
        let Some((path, content)) = self.known() else { return };
        let started = Instant::now();
        let result = fs::remove_file(self.at(&path));
        let done = self.judge(&format!("remove {path}"), started, result);
        self.paths.insert(path, if done { vec![None] } else { vec![None, Some(content)] });
    }

    fn append(&mut self) {
        self.sequence += 1;
        let home = HOMES[self.random.below(4) as usize];
        let line = format!("{}-{:06}\n", self.name, self.sequence);
        let started = Instant::now();
        let result = open_append(&self.at(format!("{home}/tasks/log").trim_start_matches('/')))
            .and_then(|mut file| file.write_all(line.as_bytes()).and_then(|()| file.sync_all()));
        let done = self.judge("append", started, result);
        self.lines.push((home, line.trim_end().to_owned(), done));
    }

    /// Compares what a mount shows with what was acknowledged, and settles what was open.
    fn check(&mut self, cluster: &Cluster, region: &str) {
        let read = |path: &str| match fs::read(cluster.path(region, path)) {
            Ok(content) => Some(content),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => panic!("{region} cannot read {path}: {error}"),
        };
        for (path, possible) in &mut self.paths {
            let found = read(path);
            assert!(
                possible.contains(&found),
                "{}: {region} finds {path} with {:?} bytes; possible: {:?}",
                self.name,
                found.map(|content| content.len()),
                possible.iter().map(|one| one.as_ref().map(Vec::len)).collect::<Vec<_>>()
            );
            *possible = vec![found];
        }
        for (from, to, content) in self.moves.drain(..) {
            let found = [read(&from), read(&to)];
            let (old, new) = ([Some(content.clone()), None], [None, Some(content)]);
            assert!(found == old || found == new, "{}: {region} finds a half-done move of {from} to {to}", self.name);
            let [at_from, at_to] = found;
            self.paths.insert(from, vec![at_from]);
            self.paths.insert(to, vec![at_to]);
        }
    }
}

/// Every acknowledged line once, every other at most once, nothing else, nothing torn.
fn check_logs(cluster: &Cluster, region: &str, workers: &mut [Worker]) {
    for home in HOMES {
        let content = fs::read_to_string(cluster.path(region, format!("{home}/tasks/log"))).unwrap_or_default();
        let mut found: BTreeMap<&str, u32> = BTreeMap::new();
        for line in content.lines() {
            *found.entry(line).or_default() += 1;
        }
        for worker in &mut *workers {
            for (_, line, acknowledged) in worker.lines.iter_mut().filter(|(of, _, _)| *of == home) {
                let times = found.remove(line.as_str()).unwrap_or(0);
                let right = if *acknowledged { times == 1 } else { times <= 1 };
                assert!(right, "{region}: the log of /{home} has {times} times {line}, acknowledged: {acknowledged}");
                // Once there, it stays.
                *acknowledged |= times == 1;
            }
        }
        assert!(found.is_empty(), "{region}: the log of /{home} has lines that nobody wrote: {found:?}");
    }
}

fn check_all(cluster: &Cluster, workers: &mut [Worker]) {
    // What a dead client has begun over several groups is finished without it.
    eventually(Duration::from_secs(30), "all commands to finish", || {
        objects_with(&cluster.status(), &["destinations", "waiting_for"]).is_empty().then_some(())
    });
    cluster.sync_all();
    for region in REGIONS {
        for worker in &mut *workers {
            worker.check(cluster, region);
        }
        check_logs(cluster, region, workers);
    }
    cluster.check_digests();
    let done: u64 = workers.iter().map(|worker| worker.acknowledged).sum();
    let paths: usize = workers.iter().map(|worker| worker.paths.len()).sum();
    let slowest = workers.iter().map(|worker| worker.slowest).max().unwrap();
    eprintln!("checked: {done} acknowledged operations, {paths} paths, the slowest operation took {slowest:?}");
}

fn workers(cluster: &Cluster, fragile: &[&str]) -> Vec<Worker> {
    for home in HOMES {
        fs::create_dir(cluster.path("us", format!("{home}/tasks"))).unwrap();
    }
    cluster.sync_all();
    let all = REGIONS.iter().flat_map(|region| [(region, 0), (region, 1)]).enumerate();
    all.map(|(number, (region, _))| Worker::new(cluster, region, number, fragile.contains(region))).collect()
}

/// Lets all workers work while `disturb` does its worst.
fn work_while(workers: &mut [Worker], disturb: impl FnOnce()) {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let _stop = StopAtEnd(&stop);
        let running: Vec<_> = workers
            .iter_mut()
            .map(|worker| {
                let stop = &stop;
                scope.spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        worker.step();
                    }
                })
            })
            .collect();
        disturb();
        // A worker that failed is the news, not what the disturbance found.
        let _ended: Vec<_> = running.iter().map(|worker| worker.is_finished()).collect();
    });
}

#[test]
fn killed_nodes_lose_nothing_and_their_clients_wait() {
    let cluster = Cluster::up(Options::wan("geo3-fast").limit(400));
    let mut workers = workers(&cluster, &[]);
    let mut random = Random::new(30);
    for round in 0..3 {
        work_while(&mut workers, || {
            for region in REGIONS {
                thread::sleep(Duration::from_millis(200 + random.below(1200)));
                let down = Duration::from_millis(random.below(2500));
                eprintln!("round {round}: kill {region}-1 for {down:?}");
                cluster.kill_for(&Part::Node(format!("{region}-1")), down);
            }
            thread::sleep(Duration::from_secs(2));
        });
        check_all(&cluster, &mut workers);
    }
    // Every client got on after each outage, on every group.
    for worker in &workers {
        assert!(worker.acknowledged > 50, "{} got only {} operations done", worker.name, worker.acknowledged);
    }
}

#[test]
fn killed_mounts_lose_nothing_acknowledged() {
    let cluster = Cluster::up(Options::default().limit(400));
    let mut workers = workers(&cluster, &["us", "ap"]);
    let mut random = Random::new(31);
    for round in 0..3 {
        work_while(&mut workers, || {
            for region in ["us", "ap"] {
                thread::sleep(Duration::from_millis(300 + random.below(1000)));
                eprintln!("round {round}: kill the mount of {region}");
                cluster.kill_for(&Part::Mount(region.into()), Duration::from_millis(random.below(800)));
            }
            thread::sleep(Duration::from_secs(1));
        });
        check_all(&cluster, &mut workers);
    }
}

#[test]
fn killing_everything_at_once_loses_nothing_acknowledged() {
    let mut cluster = Cluster::up(Options::default().limit(400));
    let mut workers = workers(&cluster, &REGIONS);
    let mut random = Random::new(32);
    for round in 0..4 {
        let work = Duration::from_millis(1000 + random.below(1500));
        let again = Mutex::new(&mut cluster);
        work_while(&mut workers, || {
            thread::sleep(work);
            eprintln!("round {round}: kill everything");
            again.lock().unwrap().kill_all();
        });
        cluster.start();
        check_all(&cluster, &mut workers);
    }
}

#[test]
fn killed_followers_hold_up_nobody_and_three_nodes_survive_two_rounds_of_kills() {
    let cluster = Cluster::up(Options::default().nodes_per_region(3).limit(400));
    let mut workers = workers(&cluster, &[]);
    // The preferred primary is a group's first voter: the other two go, one after the other.
    for follower in ["us-2", "eu-3"] {
        let directory = cluster.path("us", "us");
        let mut slowest = Duration::ZERO;
        thread::scope(|scope| {
            let killer = scope.spawn(|| {
                thread::sleep(Duration::from_millis(300));
                cluster.kill_for(&Part::Node(follower.into()), Duration::from_millis(3000));
            });
            let started = Instant::now();
            let mut number = 0;
            while !killer.is_finished() && started.elapsed() < Duration::from_secs(60) {
                number += 1;
                let before = Instant::now();
                create(&directory.join(format!("{follower}-{number}")), b"x").unwrap();
                slowest = slowest.max(before.elapsed());
            }
            eprintln!("{number} files while {follower} was down, the slowest after {slowest:?}");
        });
        assert!(slowest < Duration::from_secs(3), "a create waited {slowest:?} for a follower");
    }
    let mut random = Random::new(33);
    for _ in 0..2 {
        work_while(&mut workers, || {
            for _ in 0..3 {
                let victim = format!("{}-{}", REGIONS[random.below(3) as usize], 1 + random.below(3));
                eprintln!("kill {victim}");
                cluster.kill_for(&Part::Node(victim), Duration::from_millis(random.below(2000)));
            }
            thread::sleep(Duration::from_secs(1));
        });
        check_all(&cluster, &mut workers);
    }
}

#[test]
fn a_client_waits_for_its_node_and_goes_on() {
    let cluster = Cluster::up(Options::default());
    let us = Part::Node("us-1".into());
    create(&cluster.path("us", "us/before"), b"before").unwrap();
    cluster.sync_all();
    let waited = Duration::from_secs(4);
    let killed = &AtomicBool::new(false);
    thread::scope(|scope| {
        let _stop = StopAtEnd(killed);
        // One that opened its file before, one that reads, one that writes from afar.
        let mut opened = File::options().append(true).create(true).open(cluster.path("us", "us/opened")).unwrap();
        let wait = |killed: &AtomicBool| {
            while !killed.load(Ordering::Relaxed) {
                thread::sleep(Duration::from_millis(5));
            }
        };
        let writer = scope.spawn(move || {
            wait(killed);
            opened.write_all(b"after").and_then(|()| opened.sync_all())
        });
        let far = cluster.path("eu", "us/far");
        let far = scope.spawn(move || {
            wait(killed);
            create(&far, b"far")
        });
        // What does not live on that node goes on meanwhile.
        let elsewhere = cluster.path("eu", "eu/elsewhere");
        let other = scope.spawn(move || {
            wait(killed);
            thread::sleep(Duration::from_millis(500));
            let started = Instant::now();
            create(&elsewhere, b"elsewhere").map(|()| started.elapsed())
        });
        let process = cluster.process(&us);
        let stopper = scope.spawn(|| cluster.kill_for(&us, waited));
        eventually(Duration::from_secs(5), "the kill", || (!process.is_alive()).then_some(()));
        killed.store(true, Ordering::Relaxed);
        let elapsed = other.join().unwrap().unwrap();
        assert!(elapsed < Duration::from_secs(2), "an operation elsewhere took {elapsed:?}");
        writer.join().unwrap().unwrap();
        far.join().unwrap().unwrap();
        stopper.join().unwrap();
    });
    cluster.sync_all();
    for region in REGIONS {
        assert_eq!(fs::read(cluster.path(region, "us/opened")).unwrap(), b"after");
        assert!(exists(&cluster.path(region, "us/far")) && exists(&cluster.path(region, "us/before")));
    }
    cluster.check_digests();
}

#[test]
fn a_client_gives_up_at_its_deadline_and_recovers_by_itself() {
    let cluster = Cluster::up(Options::default());
    let impatient = cluster.second_mount("eu", &["--deadline", "2s"]);
    let (known, fresh) = (impatient.join("us/known"), impatient.join("us/fresh"));
    create(&known, b"known").unwrap();
    cluster.sync_all();
    let part = Part::Node("us-1".into());
    let process = cluster.process(&part);
    thread::scope(|scope| {
        let killer = scope.spawn(|| cluster.kill_for(&part, Duration::from_secs(9)));
        eventually(Duration::from_secs(5), "the kill", || (!process.is_alive()).then_some(()));
        let started = Instant::now();
        let error = create(&fresh, b"fresh").unwrap_err();
        let waited = started.elapsed();
        // The kernel may ask again, and then nobody waits any more.
        let known = [libc::ETIMEDOUT, libc::EHOSTUNREACH];
        assert!(known.contains(&error.raw_os_error().unwrap()), "{error}");
        assert!(waited > Duration::from_millis(1500) && waited < Duration::from_secs(6), "gave up after {waited:?}");
        // What lives elsewhere is not concerned.
        create(&impatient.join("eu/elsewhere"), b"elsewhere").unwrap();
        killer.join().unwrap();
    });
    eventually(Duration::from_secs(10), "the mount to recover", || fs::read(&known).ok());
    // What timed out may have happened or not, once.
    match create(&fresh, b"fresh") {
        Ok(()) => {}
        Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EEXIST), "{error}"),
    }
    assert!(exists(&impatient.join("us/fresh")));
}
