//! The lab's workloads through the kernel, on mounts of a running cluster, beside what the simulation says of them.

use std::fs;
use std::io;
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

use super::geo_op::perform;
use super::workload::write_small;
use super::{geo, geo_calibrate};
use crate::exit::{Exit, Failure, OrExit, Result};
use crate::output::tell;

/// Files that are read, looked at or removed once each, per application: in its own region, …
const ONCE: usize = 200;
/// … and elsewhere, where each takes long to make and to remove.
const ONCE_AFAR: usize = 60;
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
/// A group tells others of its progress, every few milliseconds, for ten seconds after somebody has asked them in turn. What
/// works in one group alone is not to be measured beside that; the simulation begins as quiet.
const QUIET: Duration = Duration::from_secs(11);
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
    /// What work costs …
    pub costs: Calibration,
    /// … unless it is measured before each round, in this folder.
    pub calibrate: Option<PathBuf>,
    /// How often everything is measured.
    pub rounds: usize,
    /// Of the simulation.
    pub seed: u64,
    /// Tell what is going on.
    pub progress: bool,
}

/// Runs all workloads on the mounts and in the simulation. Ctrl-C keeps what is done.
pub fn run(plan: &RealPlan) -> Result<Report> {
    let stop = Arc::new(AtomicBool::new(false));
    let _watch = super::run::watch_interrupt(stop.clone())?;
    let names = names(plan)?;
    let (works, begun) = (works(plan), Instant::now());
    let mut report = geo::empty(plan.costs.clone(), plan.seed, false);
    let mut found = Vec::new();
    'rounds: for round in 0..plan.rounds {
        if let Some(disk) = &plan.calibrate {
            report.conditions.calibration = calibrated(plan, disk)?;
        }
        let site = Site::prepare(plan, (&names, &works), round)?;
        // Each mount has been everywhere.
        let mut last = Scope::Cross;
        for &work in &works {
            let Work { op, scope, clients, .. } = work;
            if stop.load(Ordering::Relaxed) {
                report.conditions.interrupted = true;
                break 'rounds;
            }
            if plan.progress {
                tell!("round {} of {}: {} {} x{clients}", round + 1, plan.rounds, op.name(), scope.name());
            }
            // A mount that comes from another scope, or has made files for another region, has asked two groups in turn.
            let is_alone = matches!(scope, Scope::Local | Scope::Global);
            let settles = last != scope || needs_another_author(op);
            last = scope;
            let settle = if is_alone && settles { QUIET } else { SETTLE };
            let (real, per_second) = site.measure(work, settle)?;
            let point = point(plan, op, scope, clients);
            let stopped = || stop.load(Ordering::Relaxed);
            let costs = &report.conditions.calibration;
            let played = geo_bench::world::play(&point, costs, plan.seed, &stopped).or_exit(Exit::Failed)?;
            let simulated = played.as_ref().and_then(|outcome| outcome.of(op, scope));
            let Some(simulated) = simulated else { continue };
            let real_ms = real.quantile_ms(0.5);
            found.push(Checked {
                rtt: plan.rtt.clone(),
                op,
                scope,
                clients,
                rounds: 1,
                real_ms,
                real_ms_range: (real_ms, real_ms),
                simulated_ms: simulated.latency.p50_ms,
                real_per_second: per_second,
                simulated_per_second: simulated.per_second,
            });
        }
    }
    report.validation = Checked::medians(&found);
    report.conditions.took_s = begun.elapsed().as_secs_f64();
    Ok(report)
}

/// The regions, by their mounts.
fn names(plan: &RealPlan) -> Result<Vec<String>> {
    let name = |mount: &PathBuf| mount.file_name().map(|name| name.to_string_lossy().into_owned());
    let names: Option<Vec<String>> = plan.mounts.iter().map(name).collect();
    let names = names.ok_or_else(|| Failure::new(Exit::Usage, "--real: mounts end with their region's name"))?;
    for (mount, name) in plan.mounts.iter().zip(&names) {
        if !mount.join(name).is_dir() {
            let problem = format!("--real: {} has no subtree {name:?}, as `globalfs up` makes it", mount.display());
            return Err(Failure::new(Exit::Usage, problem));
        }
    }
    Ok(names)
}

/// What is measured, in this order.
fn works(plan: &RealPlan) -> Vec<Work> {
    let regions = plan.mounts.len();
    let mut works: Vec<_> = LOADED_WORKS.into_iter().map(|(op, scope)| (op, scope, LOADED)).collect();
    for scope in [Scope::Local, Scope::Remote, Scope::Global] {
        works.extend(Op::ALL.into_iter().filter(|&op| op != Op::Move).map(|op| (op, scope, 1)));
    }
    works.push((Op::Move, Scope::Cross, 1));
    works.retain(|&(op, scope, _)| {
        let is_possible = regions > 1 || matches!(scope, Scope::Local | Scope::Global);
        is_possible && (plan.ops.is_empty() || plan.ops.contains(&op))
    });
    // What needs pauses together, so that there are few of them.
    works.sort_by_key(|&(op, scope, _)| (scope, needs_another_author(op)));
    works.into_iter().enumerate().map(|(number, (op, scope, clients))| Work { number, op, scope, clients }).collect()
}

/// What is read for the first time must have been written by another mount.
fn needs_another_author(op: Op) -> bool {
    matches!(op, Op::Read | Op::Stat)
}

/// What work costs now.
fn calibrated(plan: &RealPlan, disk: &Path) -> Result<Calibration> {
    if plan.progress {
        tell!("measuring what work costs");
    }
    fs::create_dir_all(disk).with_context(|| format!("making {}", disk.display()))?;
    let found = geo_calibrate::measure(disk, true)?;
    found.missing.iter().for_each(|note| tell!("globalfs: {note}"));
    Ok(found.costs)
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

/// What is measured at a time.
#[derive(Clone, Copy)]
struct Work {
    number: usize,
    op: Op,
    scope: Scope,
    /// Applications per region.
    clients: usize,
}

impl Work {
    /// In whose subtrees the applications of a region work; none is the global one.
    fn groups(self, region: usize, regions: usize) -> Vec<Option<usize>> {
        match self.scope {
            Scope::Local | Scope::Cross => vec![Some(region)],
            Scope::Remote => (1..regions).map(|step| Some((region + step) % regions)).collect(),
            Scope::Global => vec![None],
        }
    }

    /// … and where else they move files.
    fn others(self, region: usize, regions: usize) -> Vec<Option<usize>> {
        let count = if self.scope == Scope::Cross { regions } else { 1 };
        (1..count).map(|step| Some((region + step) % regions)).collect()
    }
}

/// Our folders on the mounts, each work's its own: what one leaves must not make the next one's folders large. Removed at the end.
struct Site<'a> {
    plan: &'a RealPlan,
    names: &'a [String],
    works: &'a [Work],
    tag: String,
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
        // Where it is near; and all at once, as what the global group has is near nobody.
        let folder =
            |(work, region, group): (_, _, Option<usize>)| self.folder_of(work, group.unwrap_or(0), region, group);
        let folders: Vec<PathBuf> = self.folders().map(folder).collect();
        std::thread::scope(|scope| {
            for part in 0..MAKERS {
                let own = folders.iter().skip(part).step_by(MAKERS);
                scope.spawn(move || own.cloned().for_each(remove));
            }
        });
    }
}

impl<'a> Site<'a> {
    fn prepare(plan: &'a RealPlan, (names, works): (&'a [String], &'a [Work]), round: usize) -> Result<Site<'a>> {
        let site = Site { plan, names, works, tag: format!("globalfs-geo-{}-{round}", std::process::id()) };
        let make = |region: usize| {
            let own = site.folders().filter(|(_, whose, _)| *whose == region);
            own.map(|(work, _, group)| site.folder_of(work, region, region, group))
                .try_for_each(|folder| fs::create_dir(&folder).with_context(|| folder.display().to_string()))
        };
        std::thread::scope(|scope| {
            let make = &make;
            let handles: Vec<_> = (0..site.names.len()).map(|region| scope.spawn(move || make(region))).collect();
            let mut joined = handles.into_iter().map(|handle| handle.join());
            joined.try_for_each(|made| made.unwrap_or_else(|_| Err(anyhow!("a thread panicked"))))
        })?;
        Ok(site)
    }

    /// Work, region and group of each folder.
    fn folders(&self) -> impl Iterator<Item = (Work, usize, Option<usize>)> {
        let regions = self.names.len();
        self.works.iter().flat_map(move |&work| {
            let all = move |region| work.groups(region, regions).into_iter().chain(work.others(region, regions));
            (0..regions).flat_map(move |region| all(region).map(move |group| (work, region, group)))
        })
    }

    /// Through `mount`: where the applications of `region` work in a group's subtree; no group is the global one.
    fn folder_of(&self, work: Work, mount: usize, region: usize, group: Option<usize>) -> PathBuf {
        let at = &self.plan.mounts[mount];
        let own = format!("{}-{}-{region}", self.tag, work.number);
        group.map_or_else(|| at.join(&own), |group| at.join(&self.names[group]).join(&own))
    }

    /// `settle`: how long everything rests between what is made for it and the work itself.
    fn measure(&self, work: Work, settle: Duration) -> Result<(Latencies, f64)> {
        let Work { op, scope, clients, .. } = work;
        let count = self.names.len() * clients;
        let (start, made, over) = (Barrier::new(count), Barrier::new(count), AtomicBool::new(false));
        let results: Vec<io::Result<(Latencies, Duration)>> = std::thread::scope(|scope_of| {
            let application = |number: usize| {
                let (start, made, over) = (&start, &made, &over);
                scope_of.spawn(move || {
                    let worker = Worker::prepare(self, work, (number, count));
                    made.wait();
                    std::thread::sleep(settle);
                    start.wait();
                    worker?.work(self.plan.time, over)
                })
            };
            let handles: Vec<_> = (0..count).map(application).collect();
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
    fn prepare(site: &Site<'_>, work: Work, (number, of): (usize, usize)) -> io::Result<Worker> {
        let Work { op, scope, .. } = work;
        let regions = site.names.len();
        let (region, name) = (number % regions, format!("{}-{}-{of}-{number}", op.name(), scope.name()));
        let groups = work.groups(region, regions);
        let folders: Vec<PathBuf> = groups.iter().map(|&group| site.folder_of(work, region, region, group)).collect();
        let other = Some((region + 1 + number % (regions - 1).max(1)) % regions);
        let other = site.folder_of(work, region, region, other);
        let size = site.plan.size;
        let chance = Random::new(site.plan.seed, number as u64);
        let mut worker = Worker { op, size, folders, name, files: Vec::new(), other, chance };
        let once = needs_another_author(op) || op == Op::Unlink;
        let author = if needs_another_author(op) { (region + 1) % regions } else { region };
        let count = match scope {
            _ if !once => groups.len(),
            Scope::Local => ONCE,
            _ => ONCE_AFAR,
        };
        if matches!(op, Op::Create | Op::Mkdir) {
            return Ok(worker);
        }
        let paths = |mount: usize| -> Vec<PathBuf> {
            let folder = |at: usize| site.folder_of(work, mount, region, groups[at % groups.len()]);
            (0..count).map(|at| folder(at).join(format!("{}-{at}", worker.name))).collect()
        };
        make_all(&paths(author), size)?;
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
        let to = match self.op {
            Op::Move => {
                let there = if number.is_multiple_of(2) { &self.other } else { &self.folders[0] };
                there.join(format!("{}-moved-{number}", self.name))
            }
            _ => fresh,
        };
        let file = self.files.get(at).map_or(Path::new(""), PathBuf::as_path);
        perform(self.op, file, &to, (number, bytes))?;
        if matches!(self.op, Op::Rename | Op::Move) {
            self.files[at] = to;
        }
        Ok(true)
    }
}

fn make_all(paths: &[PathBuf], size: usize) -> io::Result<()> {
    let bytes = vec![b'x'; size];
    let part = |paths: &[PathBuf]| paths.iter().try_for_each(|path| write_small(path, &bytes));
    let part = &part;
    std::thread::scope(|scope| {
        let handles: Vec<_> =
            paths.chunks(paths.len().div_ceil(MAKERS).max(1)).map(|chunk| scope.spawn(move || part(chunk))).collect();
        let mut joined = handles.into_iter().map(|handle| handle.join());
        joined.try_for_each(|result| result.unwrap_or_else(|_| Err(io::Error::other("a thread panicked"))))
    })
}
