//! Runs experiments of the lab with a progress bar; Ctrl-C keeps what is done.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use geo_bench::costs::Calibration;
use geo_bench::report::{Conditions, Part, Report, SCHEMA};
use geo_bench::spec::Experiment;
use geo_bench::sweep::{self, Settings};
use indicatif::{ProgressBar, ProgressStyle};

use crate::exit::{Exit, OrExit, Result};

/// What to run.
pub struct GeoPlan {
    /// One after the other.
    pub experiments: Vec<Experiment>,
    /// What work costs.
    pub costs: Calibration,
    /// Of every point.
    pub seed: u64,
    /// Points at a time.
    pub threads: usize,
    /// Where the report goes after each experiment.
    pub out: PathBuf,
    /// Show a bar on stderr.
    pub progress: bool,
}

/// Runs all experiments. After each one the report is written.
pub fn run(plan: &GeoPlan) -> Result<Report> {
    let stop = Arc::new(AtomicBool::new(false));
    let _watch = super::run::watch_interrupt(stop.clone())?;
    let begun = Instant::now();
    let mut report = empty(plan.costs.clone(), plan.seed, true);
    for experiment in &plan.experiments {
        let points = experiment.points().or_exit(Exit::Usage)?;
        let bar = bar(points.len(), plan.progress);
        bar.set_message(experiment.title.clone());
        let settings = Settings { costs: &plan.costs, seed: plan.seed, threads: plan.threads };
        let done = |point: &geo_bench::spec::Point| {
            bar.set_message(format!("{}: {}", experiment.name, point.label()));
            bar.inc(1);
        };
        let outcomes = sweep::run(&points, settings, &stop, &done).or_exit(Exit::Failed)?;
        bar.finish_and_clear();
        let outcomes: Vec<_> = outcomes.into_iter().flatten().collect();
        report.conditions.interrupted = stop.load(Ordering::Relaxed);
        report.conditions.took_s = begun.elapsed().as_secs_f64();
        if !outcomes.is_empty() {
            report.parts.push(Part { experiment: experiment.clone(), outcomes });
        }
        report.save(&plan.out).or_exit(Exit::Failed)?;
        if report.conditions.interrupted {
            break;
        }
    }
    Ok(report)
}

/// A report without results.
pub fn empty(calibration: Calibration, seed: u64, simulated: bool) -> Report {
    let conditions = Conditions {
        simulated,
        seed,
        commit: commit(),
        date: now(),
        machine: machine(),
        took_s: 0.0,
        calibration,
        interrupted: false,
    };
    Report { schema: SCHEMA, conditions, parts: Vec::new(), validation: Vec::new() }
}

fn bar(points: usize, progress: bool) -> ProgressBar {
    if !progress {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(points as u64);
    if let Ok(style) = ProgressStyle::with_template("{bar:24} {pos}/{len} {elapsed} {wide_msg}") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(std::time::Duration::from_millis(500));
    bar
}

/// The commit of the program's sources, if it runs beside them.
fn commit() -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let git = |args: &[&str]| {
        let output = Command::new("git").arg("-C").arg(folder).args(args).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let version = env!("CARGO_PKG_VERSION");
    match git(&["rev-parse", "--short=10", "HEAD"]) {
        Some(commit) => {
            let changed =
                git(&["status", "--porcelain", "--untracked-files=no"]).is_some_and(|changes| !changes.is_empty());
            format!("{commit}{} ({version})", if changed { " with changes" } else { "" })
        }
        None => version.to_owned(),
    }
}

/// Processor, CPUs, memory, system.
pub fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let info = read("/proc/cpuinfo");
    let model = info.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("unknown processor");
    let model = model.trim_start_matches([' ', '\t', ':']).trim();
    let memory = read("/proc/meminfo");
    let kib = memory.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib: u64 = kib.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0);
    let release = read("/proc/sys/kernel/osrelease");
    format!("{cpus} CPUs, {model}, {} GiB, Linux {}", kib.div_ceil(1 << 20), release.trim())
}

/// The date and time in UTC.
pub fn now() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Days to a date of the Gregorian calendar, counted in eras of 400 years that begin in March.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year}-{month:02}-{day:02} {:02}:{:02} UTC", rest / 3600, rest / 60 % 60)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn report_of_a_small_experiment_is_written_and_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let plan = GeoPlan {
            experiments: vec![geo_bench::experiments::find("small").unwrap()],
            costs: Calibration::checked_in(),
            seed: 5,
            threads: 2,
            out: folder.path().into(),
            progress: false,
        };
        let report = run(&plan).unwrap();
        assert_eq!(Report::load(&folder.path().join("report.json")).unwrap(), report);
        let page = std::fs::read_to_string(folder.path().join("report.html")).unwrap();
        assert!(page.contains("<svg") && !page.contains("<script"));
        assert!(std::fs::read_to_string(folder.path().join("report.csv")).unwrap().lines().count() > 8);
        assert!(now().starts_with("20") && !machine().is_empty());
    }
}
