//! The lab's workloads through the kernel, on mounts of a running cluster, beside what the simulation says of them.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use geo_bench::costs::Calibration;
use geo_bench::random::Random;
use geo_bench::report::{Checked, Report};
use geo_bench::spec::{Op, Point, Scope};
use geo_bench::stats::Latencies;

use super::geo;
use crate::exit::{Exit, Failure, OrExit, Result};
use crate::output::tell;

/// Files that are read, looked at or removed once each, per application.
const ONCE: usize = 60;
/// Threads that make them.
const MAKERS: usize = 16;
/// Applications per region under load.
const LOADED: usize = 8;
/// … and what they do.
const LOADED_WORKS: [(Op, Scope); 6] = [
    (Op::Create, Scope::Local),
    (Op::Write, Scope::Local),
    (Op::Rename, Scope::Local),
    (Op::Reread, Scope::Local),
    (Op::Create, Scope::Remote),
    (Op::Write, Scope::Remote),
];
/// A replica in another region may be a moment behind the one that has acknowledged.
const SETTLE: Duration = Duration::from_millis(500);
/// So often a folder is emptied before it counts as one that cannot be.
const REMOVE_TRIES: usize = 5;

/// What to compare.
pub struct RealPlan {
    /// One mount per region; its last component is the region's name, which is also its subtree's.
    pub mounts: Vec<PathBuf>,
    /// The distances that the cluster emulates, or has.
    pub rtt: String,
    /// Only these operations, if there are any.
    pub ops: Vec<Op>,
    /// Voters of each region's group.
    pub voters: usize,
    /// At most so long per workload.
    pub time: Duration,
    /// Bytes of a file.
    pub size: usize,
    /// What work costs.
    pub costs: Calibration,
    /// Of the simulation.
    pub seed: u64,
    /// Tell what is going on.
    pub progress: bool,
}

/// Runs all workloads on the mounts and in the simulation. Ctrl-C keeps what is done.
pub fn run(plan: &RealPlan) -> Result<Report> {
    let stop = Arc::new(AtomicBool::new(false));
    let _watch = super::run::watch_interrupt(stop.clone())?;
    let regions = plan.mounts.len();
    let begun = Instant::now();
    let mut report = geo::empty(plan.costs.clone(), plan.seed, false);
    let site = Site::prepare(plan)?;
    let mut works: Vec<_> = LOADED_WORKS.into_iter().map(|(op, scope)| (op, scope, LOADED)).collect();
    for scope in [Scope::Local, Scope::Remote, Scope::Global] {
        let alone = regions == 1 && scope == Scope::Remote;
        works.extend(Op::ALL.into_iter().filter(|&op| op != Op::Move && !alone).map(|op| (op, scope, 1)));
    }
    if regions > 1 {
        works.push((Op::Move, Scope::Cross, 1));
    }
    works.retain(|&(op, scope, _)| {
        (plan.ops.is_empty() || plan.ops.contains(&op)) && (regions > 1 || scope != Scope::Remote)
    });
    // Whoever works in two groups in turn makes each tell the other of its progress, for some seconds: what does not, and needs no
    // file that another region has made, comes first.
    works.sort_by_key(|&(op, scope, _)| (scope, matches!(op, Op::Read | Op::Stat)));
    for (op, scope, clients) in works {
        if stop.load(Ordering::Relaxed) {
            report.conditions.interrupted = true;
            break;
        }
        if plan.progress {
            tell!("{} {} x{clients}", op.name(), scope.name());
        }
        let (real, per_second) = site.measure(op, scope, clients)?;
        let point = point(plan, op, scope, clients);
        let stopped = || stop.load(Ordering::Relaxed);
        let played = geo_bench::world::play(&point, &plan.costs, plan.seed, &stopped).or_exit(Exit::Failed)?;
        let simulated = played.as_ref().and_then(|outcome| outcome.of(op, scope));
        let Some(simulated) = simulated else { continue };
        report.validation.push(Checked {
            rtt: plan.rtt.clone(),
            op,
            scope,
            clients,
            real_ms: real.quantile_ms(0.5),
            simulated_ms: simulated.latency.p50_ms,
            real_per_second: per_second,
            simulated_per_second: simulated.per_second,
        });
    }
    report.conditions.took_s = begun.elapsed().as_secs_f64();
    Ok(report)
}

/// The same in the simulation.
fn point(plan: &RealPlan, op: Op, scope: Scope, clients: usize) -> Point {
    Point {
        regions: plan.mounts.len(),
        rtt: plan.rtt.clone(),
        voters: plan.voters,
        clients,
        mounts: 1,
        ops: vec![op],
        locality: if scope == Scope::Local { 1.0 } else { 0.0 },
        elsewhere: scope,
        size: plan.size,
        warmup_ms: 1_000,
        duration_ms: 2_000,
        one_machine: true,
        one_folder: true,
        ..Point::default()
    }
}

/// Our folders on the mounts; removed at the end.
struct Site<'a> {
    plan: &'a RealPlan,
    names: Vec<String>,
    folder: String,
}

impl Drop for Site<'_> {
    fn drop(&mut self) {
        let remove = |folder: PathBuf| {
            let mut removed = fs::remove_dir_all(&folder);
            // What another mount has just moved here, this one may not have heard of when it listed the folder.
            for _ in 1..REMOVE_TRIES {
                if !removed.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::DirectoryNotEmpty) {
                    break;
                }
                std::thread::sleep(SETTLE);
                removed = fs::remove_dir_all(&folder);
            }
            if let Err(error) = removed
                && error.kind() != io::ErrorKind::NotFound
            {
                tell!("globalfs: {} is left behind: {error}", folder.display());
            }
        };
        std::thread::scope(|scope| {
            for region in 0..self.names.len() {
                for group in (0..self.names.len()).map(Some).chain([None]) {
                    // Where it is near: file after file at a distance takes minutes.
                    let folder = self.folder_of(group.unwrap_or(0), region, group);
                    scope.spawn(move || remove(folder));
                }
            }
        });
    }
}

impl<'a> Site<'a> {
    fn prepare(plan: &'a RealPlan) -> Result<Site<'a>> {
        let name = |mount: &PathBuf| mount.file_name().map(|name| name.to_string_lossy().into_owned());
        let names: Option<Vec<String>> = plan.mounts.iter().map(name).collect();
        let names = names.ok_or_else(|| Failure::new(Exit::Usage, "--real: mounts end with their region's name"))?;
        for (mount, name) in plan.mounts.iter().zip(&names) {
            if !mount.join(name).is_dir() {
                let problem = format!("--real: {} has no subtree {name:?}, as `globalfs up` makes it", mount.display());
                return Err(Failure::new(Exit::Usage, problem));
            }
        }
        let site = Site { plan, names, folder: format!("globalfs-geo-{}", std::process::id()) };
        for region in 0..site.names.len() {
            for group in (0..site.names.len()).map(Some).chain([None]) {
                let folder = site.folder_of(region, region, group);
                fs::create_dir(&folder).with_context(|| folder.display().to_string())?;
            }
        }
        Ok(site)
    }

    /// Through `mount`: where the applications of `region` work in a group's subtree; no group is the global one.
    fn folder_of(&self, mount: usize, region: usize, group: Option<usize>) -> PathBuf {
        let at = &self.plan.mounts[mount];
        let own = format!("{}-{region}", self.folder);
        group.map_or_else(|| at.join(&own), |group| at.join(&self.names[group]).join(&own))
    }

    fn measure(&self, op: Op, scope: Scope, clients: usize) -> Result<(Latencies, f64)> {
        let count = self.names.len() * clients;
        let (start, made, over) = (Barrier::new(count), Barrier::new(count), AtomicBool::new(false));
        let results: Vec<io::Result<(Latencies, Duration)>> = std::thread::scope(|scope_of| {
            let work = |number: usize| {
                let (start, made, over) = (&start, &made, &over);
                scope_of.spawn(move || {
                    let worker = Worker::prepare(self, op, scope, (number, count));
                    made.wait();
                    std::thread::sleep(SETTLE);
                    start.wait();
                    worker?.work(self.plan.time, over)
                })
            };
            let handles: Vec<_> = (0..count).map(work).collect();
            let joined = handles.into_iter().map(|handle| handle.join());
            joined.map(|result| result.unwrap_or_else(|_| Err(io::Error::other("a thread panicked")))).collect()
        });
        let (mut all, mut rate) = (Latencies::default(), 0.0);
        for result in results {
            let (own, took) = result.map_err(|error| anyhow!("{} {}: {error}", op.name(), scope.name()))?;
            rate += own.count() as f64 / took.as_secs_f64().max(1e-6);
            all.add(&own);
        }
        Ok((all, rate))
    }
}

/// One application.
struct Worker {
    op: Op,
    size: usize,
    /// Where it works.
    folders: Vec<PathBuf>,
    /// What it names its own.
    name: String,
    /// Files that are there, by folder.
    files: Vec<PathBuf>,
    /// The other end of moves.
    other: PathBuf,
    chance: Random,
}

impl Worker {
    fn prepare(site: &Site<'_>, op: Op, scope: Scope, (number, of): (usize, usize)) -> io::Result<Worker> {
        let regions = site.names.len();
        let (region, name) = (number % regions, format!("{}-{}-{of}-{number}", op.name(), scope.name()));
        let groups: Vec<Option<usize>> = match scope {
            Scope::Local | Scope::Cross => vec![Some(region)],
            Scope::Remote => (1..regions).map(|step| Some((region + step) % regions)).collect(),
            Scope::Global => vec![None],
        };
        let folders: Vec<PathBuf> = groups.iter().map(|&group| site.folder_of(region, region, group)).collect();
        let other = site.folder_of(region, region, Some((region + 1 + number % (regions - 1).max(1)) % regions));
        let size = site.plan.size;
        let chance = Random::new(site.plan.seed, number as u64);
        let mut worker = Worker { op, size, folders, name, files: Vec::new(), other, chance };
        let once = matches!(op, Op::Read | Op::Stat | Op::Unlink);
        // What is read for the first time must have been written by another mount.
        let author = if op == Op::Unlink { region } else { (region + 1) % regions };
        let count = if once { ONCE } else { groups.len() };
        if matches!(op, Op::Create | Op::Mkdir) {
            return Ok(worker);
        }
        let paths = |mount: usize| -> Vec<PathBuf> {
            let folder = |at: usize| site.folder_of(mount, region, groups[at % groups.len()]);
            (0..count).map(|at| folder(at).join(format!("{}-{at}", worker.name))).collect()
        };
        make_all(&paths(if once { author } else { region }), size)?;
        worker.files = paths(region);
        if op == Op::Reread {
            worker.files.iter().try_for_each(|path| fs::read(path).map(drop))?;
        }
        Ok(worker)
    }

    /// Until the time is over, or one of them all has no files left: a region where everything is near must not count less.
    fn work(mut self, time: Duration, over: &AtomicBool) -> io::Result<(Latencies, Duration)> {
        let mut latencies = Latencies::default();
        let bytes = vec![b'x'; self.size];
        // The first of each kind opens sessions and streams.
        for number in 0..self.folders.len() {
            self.step(number, &bytes)?;
        }
        let begun = Instant::now();
        for number in self.folders.len().. {
            let since = Instant::now();
            if since - begun >= time || over.load(Ordering::Relaxed) {
                break;
            }
            if !self.step(number, &bytes)? {
                over.store(true, Ordering::Relaxed);
                break;
            }
            latencies.record(since.elapsed().as_nanos() as u64);
        }
        Ok((latencies, begun.elapsed()))
    }

    /// Where the next operation is: at first each place once, then by chance, as in the simulation. In turns, applications of
    /// several regions fall into step with each other.
    fn place(&mut self, number: usize) -> usize {
        let places = self.folders.len();
        if number < places { number } else { self.chance.below(places as u64) as usize }
    }

    fn step(&mut self, number: usize, bytes: &[u8]) -> io::Result<bool> {
        let place = self.place(number);
        let fresh = self.folders[place].join(format!("{}-new-{number}", self.name));
        let once = matches!(self.op, Op::Read | Op::Stat | Op::Unlink);
        let at = if once { number } else { place };
        if once && number >= self.files.len() {
            return Ok(false);
        }
        match self.op {
            Op::Create => make(&fresh, bytes)?,
            Op::Mkdir => fs::create_dir(fresh)?,
            Op::Read | Op::Reread => {
                let mut content = Vec::with_capacity(bytes.len());
                File::open(&self.files[at])?.read_to_end(&mut content)?;
                if content.len() != bytes.len() {
                    return Err(io::Error::other(format!("{} bytes instead of {}", content.len(), bytes.len())));
                }
            }
            Op::Stat => {
                fs::symlink_metadata(&self.files[at])?;
            }
            Op::Write => OpenOptions::new().write(true).open(&self.files[at])?.write_all(bytes)?,
            Op::Chmod => {
                let mode = if number.is_multiple_of(2) { 0o600 } else { 0o640 };
                fs::set_permissions(&self.files[at], fs::Permissions::from_mode(mode))?;
            }
            Op::Unlink => fs::remove_file(&self.files[at])?,
            Op::Rename => {
                fs::rename(&self.files[at], &fresh)?;
                self.files[at] = fresh;
            }
            Op::Move => {
                let there = if number.is_multiple_of(2) { &self.other } else { &self.folders[0] };
                let there = there.join(format!("{}-moved-{number}", self.name));
                fs::rename(&self.files[at], &there)?;
                self.files[at] = there;
            }
        }
        Ok(true)
    }
}

fn make(path: &Path, bytes: &[u8]) -> io::Result<()> {
    OpenOptions::new().write(true).create_new(true).open(path)?.write_all(bytes)
}

fn make_all(paths: &[PathBuf], size: usize) -> io::Result<()> {
    let bytes = vec![b'x'; size];
    let part = |paths: &[PathBuf]| paths.iter().try_for_each(|path| make(path, &bytes));
    let part = &part;
    std::thread::scope(|scope| {
        let handles: Vec<_> =
            paths.chunks(paths.len().div_ceil(MAKERS).max(1)).map(|chunk| scope.spawn(move || part(chunk))).collect();
        let mut joined = handles.into_iter().map(|handle| handle.join());
        joined.try_for_each(|result| result.unwrap_or_else(|_| Err(io::Error::other("a thread panicked"))))
    })
}
