//! `globalfs bench geo`, `calibrate`, `report`: the geo-scalability lab.

use std::io::IsTerminal;
use std::path::PathBuf;

use clap::Args;
use geo_bench::costs::Calibration;
use geo_bench::experiments;
use geo_bench::report::{Checked, Report, compare};
use geo_bench::spec::{Experiment, Figure, Op, Ordering, Point, Scope, Sweep};

use crate::bench::geo::{self, GeoPlan};
use crate::bench::{geo_calibrate, geo_real};
use crate::exit::{Exit, Failure, OrExit, Result};
use crate::hint;
use crate::output::{Table, say, say_all, tell};
use crate::units::{ByteSize, TimeSpan};

/// Options of `bench geo`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  globalfs bench geo --experiment b --out b                throughput per region at 1, 3, 6 and 9 regions
  globalfs bench geo --experiment a,c,d,e,f,g --out all    everything else that comes with the program
  globalfs bench geo --regions 1,3 --ops create --rtt 80ms --locality 1,0.9 --out mine
  globalfs bench geo --experiment my.toml --out mine
  globalfs bench geo --real ./globalfs-data/mnt/us,./globalfs-data/mnt/eu,./globalfs-data/mnt/ap --rtt geo3 --voters 1 \
--rounds 3 --calibrate --out checked

Experiments: a throughput by operation, b regions, c latency by distance, d multi-group commands, e faults, f far readers, \
g what crosses the wide area, small. A simulation runs the real ordering and namespace code in virtual time; the same seed \
gives the same numbers. With --real the workloads run on mounts of a cluster, one per region in the order of --rtt, and the \
report compares them with the simulation. Operations: read, reread, stat, create, write, mkdir, chmod, rename, unlink, move.")]
pub struct GeoArgs {
    /// Experiments that come with the program, or files
    #[arg(long, value_delimiter = ',', value_name = "NAMES|FILES")]
    experiment: Vec<String>,
    /// How many regions
    #[arg(long, value_delimiter = ',', value_name = "N,N", default_value = "1,3")]
    regions: Vec<usize>,
    /// Distances: lan3, geo3, geo3-fast, ec2-9, a file, or a round trip for all pairs such as 80ms
    #[arg(long, value_delimiter = ',', value_name = "PRESET|FILE|TIME", default_value = "geo3")]
    rtt: Vec<String>,
    /// Operations, one run for each [default: read, create, write; all with --real]
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    ops: Vec<String>,
    /// Length of a file, up to 4KiB
    #[arg(long, default_value = "1KiB", value_name = "SIZE")]
    size: ByteSize,
    /// Share of operations in the own region's subtree, from 0 to 1
    #[arg(long, value_delimiter = ',', value_name = "SHARE", default_value = "1")]
    locality: Vec<f64>,
    /// Where the other operations are: remote or global
    #[arg(long, value_name = "PLACE", default_value = "remote")]
    elsewhere: String,
    /// Share of commands that move files between two regions' subtrees
    #[arg(long, value_delimiter = ',', value_name = "SHARE", default_value = "0")]
    multi_group: Vec<f64>,
    /// All commands conflict with each other: classic atomic multicast
    #[arg(long)]
    classic: bool,
    /// Voters of each region's group: 1, 3 or 5
    #[arg(long, default_value_t = 3, value_name = "N")]
    voters: usize,
    /// Applications in each region
    #[arg(long, default_value_t = 64, value_name = "N")]
    clients: usize,
    /// How long it is measured, in virtual time
    #[arg(long, default_value = "2s", value_name = "TIME")]
    duration: TimeSpan,
    /// The same seed gives the same numbers
    #[arg(long, default_value_t = 1, value_name = "S")]
    seed: u64,
    /// Runs at a time [default: as many as there are CPUs]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// What work costs, from `globalfs bench calibrate` [default: measured on a machine with 2 CPUs]
    #[arg(long, value_name = "FILE")]
    calibration: Option<PathBuf>,
    /// Mounts of a running cluster, one per region
    #[arg(long, value_delimiter = ',', value_name = "DIR,DIR")]
    real: Vec<PathBuf>,
    /// With --real: everything so often, in turns; medians count
    #[arg(long, default_value_t = 1, value_name = "N", requires = "real", value_parser = clap::value_parser!(u16).range(1..=100))]
    rounds: u16,
    /// With --real: measure what work costs before each round, in the folder of --out
    #[arg(long, requires = "real", conflicts_with = "calibration")]
    calibrate: bool,
    /// Where report.html, report.json and report.csv go
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// No progress bar
    #[arg(long)]
    quiet: bool,
}

/// Options of `bench calibrate`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  globalfs bench calibrate --out calibration.toml

Measures the cores, the codecs, messages, disk flushes and, if this machine can mount, a cluster of one node, thread by \
thread. Takes about half a minute. The machine should be idle.")]
pub struct CalibrateArgs {
    /// Where the figures go
    #[arg(long, value_name = "FILE", default_value = "calibration.toml")]
    out: PathBuf,
    /// A folder on the disk that will hold logs
    #[arg(long, value_name = "DIR", default_value = ".")]
    disk: PathBuf,
    /// Do not start a cluster: keep what was measured elsewhere for mounts and stores
    #[arg(long)]
    no_mount: bool,
}

/// Options of `bench report`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  globalfs bench report before/report.json after/report.json")]
pub struct ReportArgs {
    /// The first run
    a: PathBuf,
    /// The second run
    b: PathBuf,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

/// Runs experiments and writes the report.
pub fn run(args: &GeoArgs) -> Result<Exit> {
    let costs = match &args.calibration {
        Some(path) => Calibration::load(path).or_exit(Exit::Config)?,
        None => Calibration::checked_in(),
    };
    let progress = !args.quiet && std::io::stderr().is_terminal();
    let report = if args.real.is_empty() {
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        let plan = GeoPlan {
            experiments: experiments(args)?,
            costs,
            seed: args.seed,
            threads: args.threads.unwrap_or(cpus),
            out: args.out.clone(),
            progress,
        };
        geo::run(&plan)?
    } else {
        let plan = geo_real::RealPlan {
            mounts: args.real.clone(),
            rtt: args.rtt.first().cloned().unwrap_or_default(),
            ops: ops(args)?,
            voters: args.voters,
            time: args.duration.0,
            size: args.size.0 as usize,
            costs,
            calibrate: args.calibrate.then(|| args.out.clone()),
            rounds: usize::from(args.rounds),
            seed: args.seed,
            progress,
        };
        let report = geo_real::run(&plan)?;
        report.save(&args.out).or_exit(Exit::Failed)?;
        report
    };
    say_all(&as_text(&report));
    say!("{}", args.out.join("report.html").display());
    Ok(if report.conditions.interrupted { Exit::Interrupted } else { Exit::Done })
}

fn experiments(args: &GeoArgs) -> Result<Vec<Experiment>> {
    if !args.experiment.is_empty() {
        return args.experiment.iter().map(|name| experiments::find(name).or_exit(Exit::Usage)).collect();
    }
    let usage = |problem: String| Failure::new(Exit::Usage, problem);
    let asked = ops(args)?;
    let ops = if asked.is_empty() { vec![Op::Read, Op::Create, Op::Write] } else { asked };
    let elsewhere = Scope::by_name(&args.elsewhere).filter(|scope| matches!(scope, Scope::Remote | Scope::Global));
    let elsewhere = elsewhere.ok_or_else(|| usage(format!("--elsewhere {}: remote or global", args.elsewhere)))?;
    let base = Point {
        size: usize::try_from(args.size.0).unwrap_or(usize::MAX),
        elsewhere,
        ordering: if args.classic { Ordering::Classic } else { Ordering::ConflictAware },
        voters: args.voters,
        clients: args.clients,
        duration_ms: u64::try_from(args.duration.0.as_millis()).unwrap_or(u64::MAX),
        ..Point::default()
    };
    let sweep = Sweep {
        regions: args.regions.clone(),
        rtt: args.rtt.clone(),
        ops,
        locality: args.locality.clone(),
        multi_group: args.multi_group.clone(),
        ..Sweep::default()
    };
    let figure = if args.regions.len() > 1 { Figure::Normalised } else { Figure::Bars };
    let experiment = Experiment {
        name: "custom".into(),
        title: "As asked for on the command line".into(),
        question: "Settings are with each number below.".into(),
        caveat: String::new(),
        figure,
        base,
        sweep,
    };
    let points = experiment.points().or_exit(Exit::Usage)?;
    if points.is_empty() {
        return Err(usage("nothing to run: one region has no others".into()));
    }
    Ok(vec![experiment])
}

/// The operations that are asked for; none if none are.
fn ops(args: &GeoArgs) -> Result<Vec<Op>> {
    let unknown = |name: &String| {
        let problem = format!("no operation {name:?}{}", hint::suggestion(name, Op::ALL.map(Op::name)));
        Failure::new(Exit::Usage, problem)
    };
    args.ops.iter().map(|name| Op::by_name(name).ok_or_else(|| unknown(name))).collect()
}

fn as_text(report: &Report) -> String {
    let mut text = String::new();
    for part in &report.parts {
        let heading = ["settings", "operation", "ops/s/region", "p50 ms", "p95 ms", "p99 ms"];
        let mut table = Table::new(heading).right(&[2, 3, 4, 5]);
        for outcome in &part.outcomes {
            for op in &outcome.ops {
                table.row(vec![
                    outcome.point.label(),
                    format!("{} {}", op.op.name(), op.scope.name()),
                    format!("{:.0}", op.per_second / outcome.point.regions as f64),
                    format!("{:.2}", op.latency.p50_ms),
                    format!("{:.2}", op.latency.p95_ms),
                    format!("{:.2}", op.latency.p99_ms),
                ]);
            }
        }
        text.push_str(&format!("{}\n{}\n", part.experiment.title, table.render()));
    }
    if !report.validation.is_empty() {
        let heading = [
            "operation",
            "applications",
            "real p50",
            "least–most",
            "simulated",
            "ratio",
            "real ops/s",
            "simulated",
            "ratio",
        ];
        let mut table = Table::new(heading).right(&[1, 2, 3, 4, 5, 6, 7, 8]);
        for line in &report.validation {
            table.row(vec![
                format!("{} {}", line.op.name(), line.scope.name()),
                line.clients.to_string(),
                format!("{:.2}", line.real_ms),
                format!("{:.2}–{:.2}", line.real_ms_range.0, line.real_ms_range.1),
                format!("{:.2}", line.simulated_ms),
                format!("{:.2}", line.median_ratio()),
                format!("{:.0}", line.real_per_second),
                format!("{:.0}", line.simulated_per_second),
                format!("{:.2}", line.throughput_ratio()),
            ]);
        }
        let within = |ratio: fn(&Checked) -> f64, most: f64| {
            report.validation.iter().filter(|line| (ratio(line) - 1.0).abs() <= most).count()
        };
        text.push_str(&format!(
            "Simulator against reality\n{}\n{} of {} medians agree within 15 %, {} throughputs within 25 %\n",
            table.render(),
            within(Checked::median_ratio, 0.15),
            report.validation.len(),
            within(Checked::throughput_ratio, 0.25)
        ));
    }
    text
}

/// Measures this machine.
pub fn calibrate(args: &CalibrateArgs) -> Result<Exit> {
    let found = geo_calibrate::measure(&args.disk, !args.no_mount)?;
    let text = found.costs.to_text().or_exit(Exit::Failed)?;
    std::fs::write(&args.out, &text).map_err(|error| anyhow::anyhow!("{}: {error}", args.out.display()))?;
    say_all(&text);
    for note in found.missing.iter().chain(&found.checks) {
        tell!("globalfs: {note}");
    }
    Ok(if found.missing.is_empty() { Exit::Done } else { Exit::Partly })
}

/// Compares two runs.
pub fn report(args: &ReportArgs) -> Result<Exit> {
    let a = Report::load(&args.a).or_exit(Exit::Usage)?;
    let b = Report::load(&args.b).or_exit(Exit::Usage)?;
    let lines = compare(&a, &b);
    if lines.is_empty() {
        return Err(Failure::new(Exit::Problems, "the two runs have no point in common"));
    }
    if args.json {
        say!("{}", serde_json::json!({ "schema": 1, "lines": lines }));
        return Ok(Exit::Done);
    }
    let heading = ["point", "ops/s A", "ops/s B", "B/A", "p50 A", "p50 B", "B/A", "p99 A", "p99 B", "B/A"];
    let mut table = Table::new(heading).right(&[1, 2, 3, 4, 5, 6, 7, 8, 9]);
    for line in lines {
        let mut cells = vec![line.what];
        for ((a, b), digits) in [(line.per_second, 0), (line.p50_ms, 2), (line.p99_ms, 2)] {
            let ratio = if a > 0.0 { format!("{:.2}", b / a) } else { "–".into() };
            cells.extend([format!("{a:.digits$}"), format!("{b:.digits$}"), ratio]);
        }
        table.row(cells);
    }
    say_all(&table.render());
    Ok(Exit::Done)
}
