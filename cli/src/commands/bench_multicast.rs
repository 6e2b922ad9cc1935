//! `globalfs bench multicast`: the ordering protocol alone, on real processes.

use std::path::PathBuf;

use clap::Args;
use geo_bench::multicast::{Figures, Latency, Point, run_member, run_point};
use serde_json::json;

use crate::exit::{Exit, Failure, OrExit, Result};
use crate::output::{Table, say, say_all, tell};
use crate::units::{ByteSize, TimeSpan};

/// How the program plays one member.
pub const MEMBER: [&str; 2] = ["bench", "multicast-member"];

/// Options.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  globalfs bench multicast                                        1, 2 and 3 destinations, 16 outstanding per process
  globalfs bench multicast --outstanding 1,4,16,64 --no-flush     written, not flushed to the disk
  globalfs bench multicast --destinations 1 --rate 2000,8000      open loop, commands per second and group
  globalfs bench multicast --destinations 2 --share 0,0.1 --wan geo3 --rate 300 --json

Each group has a process per voter on loopback, with the node's log, its QUIC links with mutual TLS, and the ordering core; \
commands execute nothing and conflict with nothing unless --keys is given. Each group's primary is asked by clients in its own \
process: in closed loop for as many commands as were outstanding if each of the group's processes had so many. Latency is from \
asking (open loop: from when it was due) until the reply is there.")]
pub struct MulticastArgs {
    /// Groups
    #[arg(long, default_value_t = 3, value_name = "N")]
    groups: u16,
    /// Voters of each group: 1, 3 or 5
    #[arg(long, default_value_t = 3, value_name = "N")]
    voters: u32,
    /// Groups that a command concerns; a run for each
    #[arg(long, value_delimiter = ',', default_value = "1,2,3", value_name = "N,N")]
    destinations: Vec<u16>,
    /// Share of commands that concern so many groups, the others one; a run for each
    #[arg(long, value_delimiter = ',', default_value = "1", value_name = "SHARE")]
    share: Vec<f64>,
    /// Closed loop: commands under way per process; a run for each
    #[arg(long, value_delimiter = ',', default_value = "16", value_name = "N,N")]
    outstanding: Vec<usize>,
    /// Open loop: commands per second and group; a run for each
    #[arg(long, value_delimiter = ',', value_name = "N,N")]
    rate: Vec<f64>,
    /// Length of a command's payload; a run for each
    #[arg(long, value_delimiter = ',', default_value = "64B", value_name = "SIZE")]
    payload: Vec<ByteSize>,
    /// Each command writes one of so many keys [default: each its own]
    #[arg(long, value_name = "N")]
    keys: Option<u64>,
    /// Do not flush the log to the disk
    #[arg(long)]
    no_flush: bool,
    /// Emulated distances between the groups: a preset (geo3) or a file
    #[arg(long, value_name = "PRESET|FILE")]
    wan: Option<String>,
    /// Measured time of each run
    #[arg(long, default_value = "3s", value_name = "TIME")]
    time: TimeSpan,
    /// Time before that
    #[arg(long, default_value = "1s", value_name = "TIME")]
    warm_up: TimeSpan,
    /// All runs so often, in turns; medians count
    #[arg(long, default_value_t = 3, value_name = "N")]
    runs: usize,
    /// Where logs go while it runs [default: a temporary folder]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

/// One process of it.
pub fn member() -> Result<Exit> {
    run_member().or_exit(Exit::Failed)?;
    Ok(Exit::Done)
}

/// Measures and reports.
pub fn run(args: &MulticastArgs) -> Result<Exit> {
    if args.runs == 0 {
        return Err(Failure::new(Exit::Usage, "--runs must be at least 1"));
    }
    let points = points(args);
    let program = std::env::current_exe().or_exit(Exit::Failed)?;
    let dir = args.dir.clone().unwrap_or_else(std::env::temp_dir);
    let dir = dir.join(format!("globalfs-multicast-{}", std::process::id()));
    let mut figures: Vec<Vec<Figures>> = vec![Vec::new(); points.len()];
    let load_before = load_average();
    for run in 1..=args.runs {
        for (at, point) in points.iter().enumerate() {
            if !args.json {
                tell!("run {run} of {}: {}", args.runs, name(point));
            }
            figures[at].push(run_point(point, &program, &MEMBER, &dir).or_exit(Exit::Failed)?);
        }
    }
    if args.json {
        let rows: Vec<_> = points
            .iter()
            .zip(&figures)
            .map(|(point, runs)| json!({ "point": point, "median": median(runs), "runs": runs }))
            .collect();
        say!("{}", json!({ "schema": 1, "load_average": [load_before, load_average()], "rows": rows }));
    } else {
        say_all(&as_text(&points, &figures));
        say!("load average {load_before} before, {} after", load_average());
    }
    Ok(Exit::Done)
}

fn points(args: &MulticastArgs) -> Vec<Point> {
    let mut points = Vec::new();
    let ms = |time: TimeSpan| u64::try_from(time.0.as_millis()).unwrap_or(u64::MAX);
    let loads: Vec<(usize, Option<f64>)> = match args.rate.as_slice() {
        [] => args.outstanding.iter().map(|&outstanding| (outstanding, None)).collect(),
        rates => rates.iter().map(|&rate| (1, Some(rate))).collect(),
    };
    for &destinations in &args.destinations {
        for &multi_share in &args.share {
            for payload in &args.payload {
                for &(outstanding, rate) in &loads {
                    points.push(Point {
                        groups: args.groups,
                        voters: args.voters,
                        destinations,
                        multi_share,
                        outstanding,
                        rate,
                        payload: usize::try_from(payload.0).unwrap_or(usize::MAX),
                        keys: args.keys,
                        flush: !args.no_flush,
                        wan: args.wan.clone(),
                        warm_up_ms: ms(args.warm_up),
                        measure_ms: ms(args.time),
                    });
                }
            }
        }
    }
    points
}

fn name(point: &Point) -> String {
    let load = match point.rate {
        Some(rate) => format!("{rate}/s"),
        None => format!("{} outstanding", point.outstanding),
    };
    format!("{} destinations ({}), {load}, {} B", point.destinations, point.multi_share, point.payload)
}

/// The run in the middle, by throughput.
fn median(runs: &[Figures]) -> Option<&Figures> {
    let mut sorted: Vec<&Figures> = runs.iter().collect();
    sorted.sort_by(|a, b| a.per_s.total_cmp(&b.per_s));
    sorted.get(sorted.len() / 2).copied()
}

fn as_text(points: &[Point], figures: &[Vec<Figures>]) -> String {
    let headings = [
        "destinations",
        "load",
        "payload",
        "per s",
        "least",
        "most",
        "CPU us",
        "local p50/p95/p99 ms",
        "multi p50/p95/p99 ms",
        "failed",
    ];
    let mut table = Table::new(headings).right(&[0, 2, 3, 4, 5, 6, 9]);
    for (point, runs) in points.iter().zip(figures) {
        let Some(middle) = median(runs) else { continue };
        let rates = || runs.iter().map(|run| run.per_s);
        let load = point.rate.map_or_else(|| format!("{}", point.outstanding), |rate| format!("{rate}/s"));
        let share = if point.multi_share < 1.0 { format!(" ({})", point.multi_share) } else { String::new() };
        table.row(vec![
            format!("{}{share}", point.destinations),
            load,
            point.payload.to_string(),
            format!("{:.0}", middle.per_s),
            format!("{:.0}", rates().fold(f64::INFINITY, f64::min)),
            format!("{:.0}", rates().fold(0.0, f64::max)),
            format!("{:.1}", middle.cpu_us),
            latency(middle.local),
            latency(middle.multi),
            (middle.failed + middle.missed).to_string(),
        ]);
    }
    table.render()
}

fn latency(latency: Option<Latency>) -> String {
    latency.map_or_else(String::new, |latency| format!("{:.2} / {:.2} / {:.2}", latency.p50, latency.p95, latency.p99))
}

/// Of the last minute.
fn load_average() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or_default().to_owned()
}
