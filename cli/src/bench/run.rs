//! Runs workloads on threads, within time and count, and cleans up.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use anyhow::Context;
use hdrhistogram::Histogram;
use indicatif::{ProgressBar, ProgressStyle};

use super::workload::{Worker, Workload};
use super::{Plan, Report, Row};
use crate::exit::Result;
use crate::output::tell;

/// Latencies are kept with three digits, up to ten minutes.
const LATENCY_US_MAX: u64 = 600_000_000;
const LATENCY_DIGITS: u8 = 3;
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);
/// Our folders in the directories under test begin so.
const FOLDER: &str = "globalfs-bench";

/// What one thread measured.
struct Measured {
    latencies: Histogram<u64>,
    ops: u64,
    bytes: u64,
    started: Instant,
    ended: Instant,
}

/// Measures everything planned. What cannot be measured is told and passed over.
pub fn run(plan: &Plan) -> Result<Report> {
    let interrupted = Arc::new(AtomicBool::new(false));
    let _watch = watch_interrupt(interrupted.clone())?;
    let bar = progress_bar(plan);
    let mut report = Report { dirs: plan.dirs.clone(), ..Report::default() };
    for (at, dir) in plan.dirs.iter().enumerate() {
        let homes = Home::make(dir).and_then(|home| Ok((home, Home::make(&plan.dirs[(at + 1) % plan.dirs.len()])?)));
        let (home, across) = match homes {
            Ok(homes) => homes,
            Err(error) => {
                report.problems.push(format!("{error:#}"));
                continue;
            }
        };
        let site = Site { plan, dir, home: &home.path, across: &across.path, interrupted: &interrupted, bar: &bar };
        for &workload in &plan.workloads {
            for (turn, &threads) in plan.threads.iter().enumerate() {
                let threads = if workload.single_threaded() { 1 } else { threads };
                let pointless = (workload.single_threaded() && turn > 0) || skipped(plan, workload);
                if !pointless && !interrupted.load(Ordering::Relaxed) {
                    bar.set_message(format!("{} {} x{threads}", dir.display(), workload.name()));
                    match site.measure(workload, threads) {
                        Ok(row) => report.rows.push(row),
                        // Between file systems nothing is renamed.
                        Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {}
                        Err(error) => report.problems.push(format!("{}: {}: {error}", dir.display(), workload.name())),
                    }
                }
                bar.inc(1);
            }
        }
    }
    bar.finish_and_clear();
    report.interrupted = interrupted.load(Ordering::Relaxed);
    Ok(report)
}

/// Across needs somewhere else to go.
fn skipped(plan: &Plan, workload: Workload) -> bool {
    workload == Workload::RenameAcross && plan.dirs.len() < 2
}

/// Where it is measured.
struct Site<'a> {
    plan: &'a Plan,
    dir: &'a Path,
    /// Our folder in `dir`.
    home: &'a Path,
    /// Our folder in the next directory.
    across: &'a Path,
    interrupted: &'a AtomicBool,
    bar: &'a ProgressBar,
}

impl Site<'_> {
    fn measure(&self, workload: Workload, threads: usize) -> io::Result<Row> {
        let mut cleaned = Vec::new();
        let mut workers = Vec::new();
        for thread in 0..threads {
            let folder = self.home.join(format!("{}-{thread}", workload.name()));
            let other = self.across.join(format!("{}-{thread}-across", workload.name()));
            fs::create_dir(&folder)?;
            cleaned.push(Cleaned(folder.clone()));
            if workload == Workload::RenameAcross {
                fs::create_dir(&other)?;
                cleaned.push(Cleaned(other.clone()));
            }
            let count = if workload.moves_bytes() { u64::MAX } else { self.plan.count };
            workers.push(Worker::new(workload, folder, other, count, self.plan.size));
        }
        let measured = self.on_threads(workload, workers)?;
        merge(self.dir, workload, threads, &measured)
    }

    fn on_threads(&self, workload: Workload, workers: Vec<Worker>) -> io::Result<Vec<Measured>> {
        let done = AtomicU64::new(0);
        let barrier = Barrier::new(workers.len());
        let threads = workers.len();
        std::thread::scope(|scope| {
            let start = |mut worker: Worker| {
                let (barrier, done, interrupted, time) = (&barrier, &done, self.interrupted, self.plan.time);
                scope.spawn(move || {
                    let until = Instant::now() + time;
                    let prepared = worker.prepare(|| Instant::now() < until && !interrupted.load(Ordering::Relaxed));
                    // Also after a failure: the others wait here.
                    barrier.wait();
                    prepared.and_then(|()| work(&mut worker, time, interrupted, done))
                })
            };
            let handles: Vec<_> = workers.into_iter().map(start).collect();
            while self.plan.progress && handles.iter().any(|handle| !handle.is_finished()) {
                std::thread::sleep(PROGRESS_INTERVAL);
                let (dir, name, ops) = (self.dir.display(), workload.name(), done.load(Ordering::Relaxed));
                self.bar.set_message(format!("{dir} {name} x{threads}: {ops} ops"));
            }
            let joined =
                handles.into_iter().map(|handle| handle.join().map_err(|_| io::Error::other("a thread panicked"))?);
            joined.collect()
        })
    }
}

fn work(worker: &mut Worker, time: Duration, interrupted: &AtomicBool, done: &AtomicU64) -> io::Result<Measured> {
    let latencies = Histogram::new_with_bounds(1, LATENCY_US_MAX, LATENCY_DIGITS).map_err(io::Error::other)?;
    let started = Instant::now();
    let mut measured = Measured { latencies, ops: 0, bytes: 0, started, ended: started };
    while measured.ended - started < time && measured.ops < worker.count() && !interrupted.load(Ordering::Relaxed) {
        let begun = measured.ended;
        let Some(bytes) = worker.step(measured.ops)? else { break };
        measured.ended = Instant::now();
        let latency_us = (measured.ended - begun).as_micros().min(u128::from(LATENCY_US_MAX)) as u64;
        measured.latencies.saturating_record(latency_us.max(1));
        measured.ops += 1;
        measured.bytes += bytes;
        done.fetch_add(1, Ordering::Relaxed);
    }
    Ok(measured)
}

fn merge(dir: &Path, workload: Workload, threads: usize, measured: &[Measured]) -> io::Result<Row> {
    let mut latencies =
        Histogram::<u64>::new_with_bounds(1, LATENCY_US_MAX, LATENCY_DIGITS).map_err(io::Error::other)?;
    for one in measured {
        latencies.add(&one.latencies).map_err(io::Error::other)?;
    }
    let first = measured.iter().map(|one| one.started).min();
    let last = measured.iter().map(|one| one.ended).max();
    let elapsed = first.zip(last).map_or(Duration::ZERO, |(first, last)| last - first);
    Ok(Row {
        dir: dir.into(),
        workload,
        threads,
        ops: measured.iter().map(|one| one.ops).sum(),
        bytes: measured.iter().map(|one| one.bytes).sum(),
        elapsed,
        p50_us: latencies.value_at_quantile(0.5),
        p99_us: latencies.value_at_quantile(0.99),
    })
}

/// A folder of our own in a directory under test.
struct Home {
    path: PathBuf,
}

impl Home {
    fn make(dir: &Path) -> anyhow::Result<Home> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = dir.join(format!("{FOLDER}-{}-{number}", std::process::id()));
        fs::create_dir(&path).with_context(|| path.display().to_string())?;
        Ok(Home { path })
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        remove(&self.path);
    }
}

/// Removed when the workload is done, also after an error.
struct Cleaned(PathBuf);

impl Drop for Cleaned {
    fn drop(&mut self) {
        remove(&self.0);
    }
}

fn remove(path: &Path) {
    if let Err(error) = fs::remove_dir_all(path) {
        tell!("globalfs: {} is left behind: {error}", path.display());
    }
}

fn progress_bar(plan: &Plan) -> ProgressBar {
    if !plan.progress {
        return ProgressBar::hidden();
    }
    let runs = plan.dirs.len() * plan.workloads.len() * plan.threads.len();
    let bar = ProgressBar::new(runs as u64);
    if let Ok(style) = ProgressStyle::with_template("{bar:24} {pos}/{len}  {msg}") {
        bar.set_style(style);
    }
    bar
}

/// Sets the flag on Ctrl-C and SIGTERM, so that what was made is removed.
pub(super) fn watch_interrupt(interrupted: Arc<AtomicBool>) -> Result<tokio::runtime::Runtime> {
    let runtime = crate::commands::service::runtime()?;
    let inside = runtime.enter();
    for (kind, name) in crate::commands::service::signals() {
        let mut stream = tokio::signal::unix::signal(kind).with_context(|| format!("handling {name}"))?;
        let interrupted = interrupted.clone();
        runtime.spawn(async move {
            while stream.recv().await.is_some() {
                interrupted.store(true, Ordering::Relaxed);
            }
        });
    }
    drop(inside);
    Ok(runtime)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn plan(dirs: Vec<PathBuf>) -> Plan {
        Plan {
            dirs,
            threads: vec![1, 3],
            time: Duration::from_millis(100),
            count: 7,
            size: (2 << 20) + 5,
            workloads: Workload::ALL.to_vec(),
            progress: false,
        }
    }

    #[test]
    fn every_workload_counts_and_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let dirs = ["a", "b"].map(|name| folder.path().join(name));
        dirs.iter().for_each(|dir| fs::create_dir(dir).unwrap());
        let report = run(&plan(dirs.to_vec())).unwrap();
        assert_eq!(report.problems, Vec::<String>::new());
        // Two directories; nine workloads with one and with three threads, two with one only.
        assert_eq!(report.rows.len(), 2 * (9 * 2 + 2));
        for row in &report.rows {
            assert!(row.ops > 0, "{row:?}");
            assert!(row.workload.moves_bytes() || row.ops <= 7 * row.threads as u64, "{row:?}");
            if row.workload.moves_bytes() {
                assert_eq!(row.bytes, (2 << 20) + 5);
            }
        }
        for dir in dirs {
            assert_eq!(fs::read_dir(dir).unwrap().count(), 0);
        }
    }

    #[test]
    fn one_directory_has_no_across_and_errors_are_told() {
        let folder = tempfile::tempdir().unwrap();
        let plan = Plan { workloads: vec![Workload::RenameAcross], ..plan(vec![folder.path().into()]) };
        assert!(run(&plan).unwrap().rows.is_empty());
        let plan = Plan { dirs: vec!["/proc".into()], ..plan };
        assert_eq!(run(&plan).unwrap().problems.len(), 1);
    }
}
