//! `globalfs bench`: measures any file systems side by side; the lab is in [`super::bench_geo`].

use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::json;

use super::{bench_geo, bench_multicast};
use crate::bench::{self, Plan, Workload};
use crate::exit::{Exit, Failure, Result};
use crate::hint;
use crate::output::{Table, bold, say, say_all, tell};
use crate::units::{ByteSize, TimeSpan};

/// Options.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  globalfs bench fs /mnt/globalfs/eu /var/tmp      side by side
  globalfs bench geo --experiment b --out b        throughput per region at 1, 3, 6 and 9 regions
  globalfs bench multicast --outstanding 1,16      the ordering protocol alone
  globalfs bench report a/report.json b/report.json")]
pub struct BenchArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Measure the file systems that directories are in
    Fs(FsArgs),
    /// Simulate a cluster over 1 to 9 regions, or compare one that runs with its simulation
    Geo(bench_geo::GeoArgs),
    /// Measure the ordering protocol alone, on real processes
    Multicast(bench_multicast::MulticastArgs),
    /// One process of that
    #[command(hide = true)]
    MulticastMember,
    /// Measure what work costs on this machine, for `bench geo`
    Calibrate(bench_geo::CalibrateArgs),
    /// Compare two reports of `bench geo`
    Report(bench_geo::ReportArgs),
}

#[derive(Debug, Args)]
#[command(after_help = format!("Examples:
  globalfs bench fs /mnt/globalfs/eu
  globalfs bench fs ./globalfs-data/mnt/us/us ./globalfs-data/mnt/us/eu /var/tmp    side by side
  globalfs bench fs /mnt/globalfs/eu --only create,stat --threads 8 --time 10s --json

Each workload runs in a directory of its own, once for each number of threads, until its time or its count is used up, \
and is removed afterwards. With several directories `rename-across` moves files from each to the next; where they are \
different file systems it is left out. Latencies are in microseconds.

Workloads: {}", Workload::names().join(", ")))]
struct FsArgs {
    /// Directories to work in
    #[arg(required = true)]
    dirs: Vec<PathBuf>,
    /// How many threads; several runs with several numbers
    #[arg(long, value_delimiter = ',', default_value = "1,16", value_name = "N,N")]
    threads: Vec<usize>,
    /// At most so long per workload and number of threads
    #[arg(long, default_value = "5s", value_name = "TIME")]
    time: TimeSpan,
    /// At most so many operations per thread, workload and number of threads
    #[arg(long, default_value_t = 20_000, value_name = "N")]
    count: u64,
    /// Length of the file that is written and read in one go
    #[arg(long, default_value = "256MiB", value_name = "SIZE")]
    size: ByteSize,
    /// Only these workloads
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    only: Vec<String>,
    /// One JSON object
    #[arg(long)]
    json: bool,
    /// No progress bar
    #[arg(long)]
    quiet: bool,
}

const THREADS_MAX: usize = 1024;

/// Measures and reports.
pub fn run(args: &BenchArgs) -> Result<Exit> {
    match &args.action {
        Action::Fs(args) => run_fs(args),
        Action::Geo(args) => bench_geo::run(args),
        Action::Multicast(args) => bench_multicast::run(args),
        Action::MulticastMember => bench_multicast::member(),
        Action::Calibrate(args) => bench_geo::calibrate(args),
        Action::Report(args) => bench_geo::report(args),
    }
}

fn run_fs(args: &FsArgs) -> Result<Exit> {
    let plan = plan(args)?;
    let report = bench::run(&plan)?;
    if args.json {
        say!("{}", as_json(args, &report));
    } else {
        say_all(&as_text(&report));
    }
    for problem in &report.problems {
        tell!("globalfs: {problem}");
    }
    Ok(match (report.interrupted, report.problems.is_empty()) {
        (true, _) => Exit::Interrupted,
        (false, true) => Exit::Done,
        (false, false) => Exit::Partly,
    })
}

fn plan(args: &FsArgs) -> Result<Plan> {
    let usage = |problem: String| Failure::new(Exit::Usage, problem);
    if let Some(bad) = args.threads.iter().find(|threads| !(1..=THREADS_MAX).contains(*threads)) {
        return Err(usage(format!("--threads {bad}: 1 to {THREADS_MAX} are possible")));
    }
    if args.time.0 < Duration::from_millis(10) || args.count == 0 {
        return Err(usage("--time must be at least 10ms and --count at least 1".into()));
    }
    let mut workloads = Vec::new();
    for name in &args.only {
        let unknown = || usage(format!("no workload {name:?}{}", hint::suggestion(name, Workload::names())));
        workloads.push(Workload::by_name(name).ok_or_else(unknown)?);
    }
    if workloads.is_empty() {
        workloads = Workload::ALL.to_vec();
    }
    for dir in &args.dirs {
        if !dir.is_dir() {
            return Err(usage(format!("{} is not a directory", dir.display())));
        }
    }
    Ok(Plan {
        dirs: args.dirs.clone(),
        threads: args.threads.clone(),
        time: args.time.0,
        count: args.count,
        size: args.size.0.max(1),
        workloads,
        progress: !args.quiet && !args.json && std::io::stderr().is_terminal(),
    })
}

fn as_text(report: &bench::Report) -> String {
    let mut text = String::new();
    for dir in &report.dirs {
        let mut table =
            Table::new(["workload", "threads", "ops", "ops/s", "p50 us", "p99 us", "MiB/s"]).right(&[1, 2, 3, 4, 5, 6]);
        for row in report.rows.iter().filter(|row| row.dir == *dir) {
            table.row(vec![
                row.workload.name().into(),
                row.threads.to_string(),
                row.ops.to_string(),
                rounded(row.ops_per_s()),
                row.p50_us.to_string(),
                row.p99_us.to_string(),
                row.mib_per_s().map(rounded).unwrap_or_default(),
            ]);
        }
        text.push_str(&format!("{}\n{}\n", bold(&dir.display().to_string()), table.render()));
    }
    text
}

/// Three digits are all that a measurement like this is worth.
fn rounded(value: f64) -> String {
    match value {
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    }
}

fn as_json(args: &FsArgs, report: &bench::Report) -> serde_json::Value {
    let rows: Vec<_> = report
        .rows
        .iter()
        .map(|row| {
            json!({
                "dir": row.dir, "workload": row.workload.name(), "threads": row.threads, "ops": row.ops,
                "seconds": row.elapsed.as_secs_f64(), "ops_per_s": row.ops_per_s(), "p50_us": row.p50_us,
                "p99_us": row.p99_us, "bytes": row.bytes, "mib_per_s": row.mib_per_s(),
            })
        })
        .collect();
    json!({
        "schema": 1, "time": args.time, "count": args.count, "size": args.size, "rows": rows,
        "problems": report.problems, "interrupted": report.interrupted,
    })
}
