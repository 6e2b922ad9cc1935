//! Work on mounts while processes die, with a journal of what was acknowledged, which is compared with what mounts show.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::cluster::{Cluster, REGIONS, eventually, objects_with};
use super::counters::Counters;
use super::files::{Random, StopAtEnd, create, open_append};

/// What a path may hold: nothing or a content. More than one while an operation on it has not been acknowledged.
type Possible = Vec<Option<Content>>;

/// A file, or a folder with files.
#[derive(Clone, Debug)]
struct Content {
    /// The permissions, once they have been set.
    mode: Option<u32>,
    data: Data,
}

#[derive(Clone, Debug, PartialEq)]
enum Data {
    File(Vec<u8>),
    Directory(Files),
}

type Files = BTreeMap<String, Vec<u8>>;

impl Content {
    fn file(bytes: &[u8]) -> Content {
        Content { mode: None, data: Data::File(bytes.to_vec()) }
    }

    fn directory(files: &[(&str, &[u8])]) -> Content {
        let files = files.iter().map(|(name, bytes)| ((*name).to_owned(), bytes.to_vec())).collect();
        Content { mode: None, data: Data::Directory(files) }
    }

    fn is_directory(&self) -> bool {
        matches!(self.data, Data::Directory(_))
    }

    fn read(path: &Path) -> io::Result<Option<Content>> {
        let found = match fs::symlink_metadata(path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let data = if found.is_dir() {
            let read = |entry: fs::DirEntry| Ok((entry.file_name().into_string().unwrap(), fs::read(entry.path())?));
            Data::Directory(fs::read_dir(path)?.map(|entry| read(entry?)).collect::<io::Result<Files>>()?)
        } else {
            Data::File(fs::read(path)?)
        };
        Ok(Some(Content { mode: Some(found.permissions().mode() & 0o7777), data }))
    }

    /// True if this, which is known of a path, is what was found there.
    fn is(this: &Option<Content>, found: &Option<Content>) -> bool {
        match (this, found) {
            (None, None) => true,
            (Some(this), Some(found)) => {
                this.data == found.data && this.mode.is_none_or(|mode| found.mode == Some(mode))
            }
            _ => false,
        }
    }

    fn brief(this: &Option<Content>) -> String {
        let Some(content) = this else { return "nothing".into() };
        let data = match &content.data {
            Data::File(bytes) => format!("a file of {} bytes", bytes.len()),
            Data::Directory(files) => {
                let files: Vec<_> = files.iter().map(|(name, bytes)| format!("{name}: {}", bytes.len())).collect();
                format!("a directory with {files:?}")
            }
        };
        let mode = content.mode.map_or_else(|| "any".into(), |mode| format!("{mode:o}"));
        format!("{data}, mode {mode}")
    }

    /// All that a directory may be while its files are removed.
    fn with_less(&self) -> Possible {
        let Data::Directory(files) = &self.data else { return vec![Some(self.clone()), None] };
        let some_of = |set: u32| {
            let kept = files.iter().enumerate().filter(|(at, _)| set & (1 << at) != 0);
            let kept = kept.map(|(_, (name, bytes))| (name.clone(), bytes.clone())).collect();
            Some(Content { mode: self.mode, data: Data::Directory(kept) })
        };
        (0..1 << files.len()).map(some_of).chain([None]).collect()
    }
}

/// As the standard library's, but whose directory is gone all of a sudden is told so: its mount may have died.
fn remove_directory(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        fs::remove_file(entry?.path())?;
    }
    fs::remove_dir(path)
}

/// Which failures are expected on a mount.
#[derive(Clone)]
pub struct Expected {
    /// At any time.
    pub always: &'static [i32],
    /// How often the mount has been killed and has come back: odd while it is dead. What overlaps with that may fail as calls
    /// on dead mounts do.
    pub deaths: Arc<AtomicU64>,
}

impl Expected {
    pub fn always(errors: &'static [i32]) -> Expected {
        Expected { always: errors, deaths: Arc::default() }
    }

    fn covers(&self, error: &io::Error, deaths_before: u64) -> bool {
        let Some(errno) = error.raw_os_error() else { return false };
        let died = deaths_before % 2 == 1 || self.deaths.load(Ordering::SeqCst) != deaths_before;
        self.always.contains(&errno) || (died && OF_DEAD_MOUNTS.contains(&errno))
    }
}

/// What may fail on a mount that is killed. ENOENT: between two mounts the path leads into the empty mount point.
pub const OF_DEAD_MOUNTS: &[i32] = &[libc::ENOTCONN, libc::ECONNABORTED, libc::EIO, libc::EBADF, libc::ENOENT];

pub const HOMES: [&str; 4] = ["us", "eu", "ap", ""];

/// A path below the mount of something in a home's folder for this work.
pub fn in_home(home: &str, name: &str) -> String {
    format!("{home}/tasks/{name}").trim_start_matches('/').to_owned()
}

/// When a call began, and how often its mount had died.
struct Began {
    at: Instant,
    deaths: u64,
}

/// One thread of work on one mount, which knows what it was told.
pub struct Worker {
    pub name: String,
    mount: PathBuf,
    random: Random,
    sequence: u64,
    expected: Expected,
    counters: Arc<Counters>,
    paths: BTreeMap<String, Possible>,
    /// Unacknowledged moves: the content is at exactly one of the two.
    moves: Vec<(String, String, Content)>,
    /// Lines of the shared logs, by home, and whether they were acknowledged.
    lines: Vec<(&'static str, String, bool)>,
    pub acknowledged: u64,
    /// Failures that were expected.
    pub failed: u64,
    slowest: Duration,
}

impl Worker {
    fn at(&self, path: &str) -> PathBuf {
        self.mount.join(path)
    }

    /// A new path that nobody else uses.
    fn fresh(&mut self, kind: &str) -> String {
        self.sequence += 1;
        let home = HOMES[self.random.below(4) as usize];
        in_home(home, &format!("{kind}-{}-{}", self.name, self.sequence))
    }

    /// A path of its own whose content is known.
    fn known(&mut self, wanted: impl Fn(&Content) -> bool) -> Option<(String, Content)> {
        let known = |(path, possible): (&String, &Possible)| match &possible[..] {
            [Some(content)] if wanted(content) => Some((path.clone(), content.clone())),
            _ => None,
        };
        let all: Vec<_> = self.paths.iter().filter_map(known).collect();
        if all.is_empty() { None } else { Some(all[self.random.below(all.len() as u64) as usize].clone()) }
    }

    fn begin(&self) -> Began {
        Began { deaths: self.expected.deaths.load(Ordering::SeqCst), at: Instant::now() }
    }

    /// True if it was acknowledged. What may fail, and how, depends on what is being killed.
    fn judge<T>(&mut self, what: &str, began: &Began, result: io::Result<T>) -> bool {
        let took = began.at.elapsed();
        self.slowest = self.slowest.max(took);
        let Err(error) = result else {
            self.acknowledged += 1;
            return true;
        };
        assert!(
            self.expected.covers(&error, began.deaths),
            "{}: {what} failed after {took:?}: {error}; an operation may have been executed twice or lost",
            self.name,
        );
        self.failed += 1;
        // A dead mount fails at once: do not spin until it is back.
        thread::sleep(Duration::from_millis(50));
        false
    }

    fn step(&mut self) {
        match self.random.below(14) {
            0..=2 => self.create(),
            3 => self.replace(),
            4 | 5 => self.rename(),
            6 => self.remove(),
            7 => self.make_directory(),
            8 => self.set_mode(),
            9 | 10 => self.count(),
            _ => self.append(),
        }
    }

    fn create(&mut self) {
        let path = self.fresh("file");
        let len = if self.random.below(4) == 0 { 50_000 } else { 30 };
        let bytes = self.random.bytes(len);
        let began = self.begin();
        // The name is new: EEXIST would mean that a retry found its own first execution.
        let result = create(&self.at(&path), &bytes);
        let done = self.judge(&format!("create {path}"), &began, result);
        let (empty, full) = (Some(Content::file(&[])), Some(Content::file(&bytes)));
        self.paths.insert(path, if done { vec![full] } else { vec![None, empty, full] });
    }

    fn replace(&mut self) {
        let Some((path, old)) = self.known(|content| !content.is_directory()) else { return };
        let bytes = self.random.bytes(100);
        let new = Content::file(&bytes);
        let fresh = self.fresh("fresh");
        let began = self.begin();
        let result = create(&self.at(&fresh), &bytes).and_then(|()| fs::rename(self.at(&fresh), self.at(&path)));
        if self.judge(&format!("replace {path}"), &began, result) {
            self.paths.insert(path, vec![Some(new)]);
        } else {
            self.paths.insert(path, vec![Some(old), Some(new.clone())]);
            self.paths.insert(fresh, vec![None, Some(Content::file(&[])), Some(new)]);
        }
    }

    /// Of a file, or of a folder with all that is in it; more often than not into another group.
    fn rename(&mut self) {
        let Some((from, content)) = self.known(|_| true) else { return };
        let to = self.fresh("moved");
        let began = self.begin();
        // ENOENT would mean that a retry found its own first execution.
        let result = fs::rename(self.at(&from), self.at(&to));
        if self.judge(&format!("rename {from} to {to}"), &began, result) {
            self.paths.insert(from, vec![None]);
            self.paths.insert(to, vec![Some(content)]);
        } else {
            self.paths.remove(&from);
            self.moves.push((from, to, content));
        }
    }

    fn remove(&mut self) {
        let Some((path, content)) = self.known(|content| !content.is_directory()) else { return };
        let began = self.begin();
        let result = fs::remove_file(self.at(&path));
        let done = self.judge(&format!("remove {path}"), &began, result);
        self.paths.insert(path, if done { vec![None] } else { vec![None, Some(content)] });
    }

    /// A folder with two files, one of them in the bucket; or one less, with all that is in it.
    fn make_directory(&mut self) {
        if let Some((path, content)) = self.known(Content::is_directory)
            && self.random.below(3) == 0
        {
            let began = self.begin();
            let result = remove_directory(&self.at(&path));
            let done = self.judge(&format!("remove the directory {path}"), &began, result);
            self.paths.insert(path, if done { vec![None] } else { content.with_less() });
            return;
        }
        let path = self.fresh("directory");
        let (small, large) = (self.random.bytes(20), self.random.bytes(9000));
        let began = self.begin();
        let at = self.at(&path);
        let result = fs::create_dir(&at)
            .and_then(|()| create(&at.join("large"), &large))
            .and_then(|()| create(&at.join("small"), &small));
        let steps: [&[(&str, &[u8])]; 5] = [
            &[],
            &[("large", b"")],
            &[("large", &large)],
            &[("large", &large), ("small", b"")],
            &[("large", &large), ("small", &small)],
        ];
        let mut possible: Possible = steps.iter().map(|files| Some(Content::directory(files))).collect();
        if self.judge(&format!("make the directory {path}"), &began, result) {
            possible.drain(..possible.len() - 1);
        } else {
            possible.push(None);
        }
        self.paths.insert(path, possible);
    }

    fn set_mode(&mut self) {
        let Some((path, content)) = self.known(|_| true) else { return };
        let mode = 0o700 | self.random.below(0o100) as u32;
        let began = self.begin();
        let result = fs::set_permissions(self.at(&path), fs::Permissions::from_mode(mode));
        let changed = Some(Content { mode: Some(mode), ..content.clone() });
        let done = self.judge(&format!("set the mode of {path}"), &began, result);
        self.paths.insert(path, if done { vec![changed] } else { vec![Some(content), changed] });
    }

    fn append(&mut self) {
        self.sequence += 1;
        let home = HOMES[self.random.below(4) as usize];
        let line = format!("{}-{:06}\n", self.name, self.sequence);
        let began = self.begin();
        let result = open_append(&self.at(&in_home(home, "log")))
            .and_then(|mut file| file.write_all(line.as_bytes()).and_then(|()| file.sync_all()));
        let done = self.judge("append", &began, result);
        self.lines.push((home, line.trim_end().to_owned(), done));
    }

    /// One more, under a lock that all mounts share.
    fn count(&mut self) {
        let home = HOMES[self.random.below(4) as usize];
        let counters = Arc::clone(&self.counters);
        let began = self.begin();
        let result = counters.increment(&self.mount, home, &self.name);
        self.judge(&format!("count in /{home}"), &began, result);
    }

    /// Compares what a mount shows with what was acknowledged, and settles what was open.
    fn check(&mut self, cluster: &Cluster, region: &str) {
        let read = |path: &str| {
            let found = Content::read(&cluster.path(region, path));
            found.unwrap_or_else(|error| panic!("{region} cannot read {path}: {error}"))
        };
        for (path, possible) in &mut self.paths {
            let found = read(path);
            assert!(
                possible.iter().any(|this| Content::is(this, &found)),
                "{}: {region} finds at {path} {}; possible: {:?}",
                self.name,
                Content::brief(&found),
                possible.iter().map(Content::brief).collect::<Vec<_>>()
            );
            *possible = vec![found];
        }
        for (from, to, content) in self.moves.drain(..) {
            let found = [read(&from), read(&to)];
            let there = |at: usize| Content::is(&Some(content.clone()), &found[at]) && found[1 - at].is_none();
            assert!(there(0) || there(1), "{}: {region} finds a half-done move of {from} to {to}", self.name);
            let [at_from, at_to] = found;
            self.paths.insert(from, vec![at_from]);
            self.paths.insert(to, vec![at_to]);
        }
    }
}

/// Every acknowledged line once, every other at most once, nothing else, nothing torn.
fn check_logs(cluster: &Cluster, region: &str, workers: &mut [Worker]) {
    for home in HOMES {
        let content = fs::read_to_string(cluster.path(region, in_home(home, "log"))).unwrap_or_default();
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

/// Waits until everything has finished, then compares every journal with every mount, and the replicas with each other.
pub fn check_all(cluster: &Cluster, workers: &mut [Worker]) {
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
        workers[0].counters.check(&cluster.mount(region));
    }
    cluster.check_digests();
    let sum = |of: fn(&Worker) -> u64| workers.iter().map(of).sum::<u64>();
    let (done, failed, paths) =
        (sum(|worker| worker.acknowledged), sum(|worker| worker.failed), sum(|worker| worker.paths.len() as u64));
    let slowest = workers.iter().map(|worker| worker.slowest).max().unwrap();
    eprintln!("checked: {done} acknowledged operations, {failed} in vain, {paths} paths, the slowest took {slowest:?}");
}

/// Waits until every lock that the workers took is free.
pub fn check_locks(cluster: &Cluster, workers: &[Worker], patience: Duration) {
    workers[0].counters.check_locks(&cluster.mount("us"), patience);
}

/// Two workers on each mount. Those on mounts of these regions expect these failures.
pub fn workers(cluster: &Cluster, fragile: &[&str], allowed: &'static [i32]) -> Vec<Worker> {
    let mut random = Random::new(20);
    let of = |region: &str| Expected::always(if fragile.contains(&region) { allowed } else { &[] });
    workers_that_expect(cluster, &mut random, of)
}

/// Two workers on each mount, which expect what is said of its region.
pub fn workers_that_expect(cluster: &Cluster, random: &mut Random, of: impl Fn(&str) -> Expected) -> Vec<Worker> {
    for home in HOMES {
        fs::create_dir(cluster.path("us", in_home(home, ""))).unwrap();
        File::create(cluster.path("us", in_home(home, "log"))).unwrap();
    }
    cluster.sync_all();
    let counters: Arc<Counters> = Arc::default();
    let all = REGIONS.iter().flat_map(|region| [region, region]).enumerate();
    let worker = |(number, region): (usize, &&str)| Worker {
        name: format!("{region}-{number}"),
        mount: cluster.mount(region),
        random: random.branch(),
        sequence: 0,
        expected: of(region),
        counters: Arc::clone(&counters),
        paths: BTreeMap::new(),
        moves: Vec::new(),
        lines: Vec::new(),
        acknowledged: 0,
        failed: 0,
        slowest: Duration::ZERO,
    };
    all.map(worker).collect()
}

/// Lets all workers work while `disturb` does its worst, which is told when one of them has failed.
pub fn work_while(workers: &mut [Worker], disturb: impl FnOnce(&dyn Fn() -> bool)) {
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
        disturb(&|| running.iter().any(|worker| worker.is_finished()));
    });
}
