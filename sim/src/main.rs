//! `sim --seeds 1000`: plays whole clusters and says what went wrong.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use sim::campaign::{Failed, Plan, Summary, play};
use sim::planted::Bug;
use sim::run::{Verdict, run};

/// Plays whole clusters of GlobalFS in virtual time, each from one seed, with faults, and checks what they did.
///
/// Exit codes: 0 all is well, 10 something happened that never may (safety), 11 something did not happen that must
/// (liveness), 12 the code panicked, 2 wrong usage.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Play this seed alone and write its trace.
    #[arg(long, conflicts_with_all = ["seeds", "minutes"])]
    seed: Option<u64>,
    /// Play so many seeds [default: 100, or without end if --minutes is given].
    #[arg(long)]
    seeds: Option<u64>,
    /// The first of them.
    #[arg(long, default_value_t = 1)]
    first: u64,
    /// Stop after so many minutes.
    #[arg(long)]
    minutes: Option<f64>,
    /// Threads, each playing whole runs [default: one per CPU].
    #[arg(long)]
    threads: Option<usize>,
    /// Go on after failures.
    #[arg(long)]
    keep_going: bool,
    /// Plant a bug: some seed should find it.
    #[arg(long)]
    bug: Option<Bug>,
    /// Where traces go.
    #[arg(long, default_value = ".")]
    traces: PathBuf,
    /// Print the summary as JSON.
    #[arg(long)]
    json: bool,
}

fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    // Panics are results here: they are caught, and told with their seed.
    std::panic::set_hook(Box::new(|_| {}));
    match arguments.seed {
        Some(seed) => one(&arguments, seed),
        None => many(&arguments),
    }
}

fn one(arguments: &Arguments, seed: u64) -> anyhow::Result<ExitCode> {
    let outcome = run(seed, arguments.bug, true);
    let path = write_trace(&arguments.traces, seed, &outcome.lines)?;
    let summary = Summary::of(&outcome);
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&summary)?);
    } else {
        println!(
            "seed {seed}: {} ms, {} events, {} commands, {} reads, trace hash {:016x}, trace in {}",
            outcome.simulated_ms,
            outcome.events,
            outcome.executed,
            outcome.reads,
            outcome.trace_hash,
            path.display()
        );
        if let Some((kind, what)) = outcome.verdict.failure() {
            println!("{kind}: {what}");
        }
    }
    Ok(ExitCode::from(summary.exit_code()))
}

fn many(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let endless = arguments.minutes.is_some();
    let seeds = arguments.seeds.unwrap_or(if endless { u64::MAX - arguments.first } else { 100 });
    let threads = arguments.threads.or_else(|| std::thread::available_parallelism().ok().map(Into::into)).unwrap_or(1);
    let time = arguments.minutes.map(|minutes| Duration::from_secs_f64(minutes.max(0.0) * 60.0));
    let stop_at_failure = !arguments.keep_going;
    let plan = Plan { first: arguments.first, seeds, time, bug: arguments.bug, threads, stop_at_failure };
    let bar = if seeds < u64::MAX / 2 { ProgressBar::new(seeds) } else { ProgressBar::no_length() };
    let style = "{elapsed_precise} {bar:40} {pos}/{len} seeds, {per_sec}, {eta} to go {msg}";
    bar.set_style(ProgressStyle::with_template(style).context("the progress bar's template")?);
    let summary = play(&plan, |outcome| {
        bar.inc(1);
        if outcome.verdict != Verdict::Clean {
            bar.set_message(format!("seed {} failed", outcome.seed));
        }
    });
    bar.finish_and_clear();
    for failed in &summary.failed {
        tell(arguments, failed)?;
    }
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&summary)?);
    } else {
        println!(
            "{} runs, {} failed: {} commands, {} reads, {} events in {:.2} simulated hours, {:.1} s ({:.0} simulated hours per hour)",
            summary.runs,
            summary.failed.len(),
            summary.executed,
            summary.reads,
            summary.events,
            summary.simulated_hours,
            summary.wall_seconds,
            summary.simulated_hours_per_hour
        );
        println!(
            "{} changes of members, {} disks lost, {} copies of states, {} replicas quarantined",
            summary.changes, summary.disks, summary.copies, summary.quarantined
        );
        println!(
            "searched for linearizability: {} histories as a whole, {} pieces of others; {} pieces too big",
            summary.histories_searched, summary.pieces_searched, summary.pieces_too_big
        );
    }
    Ok(ExitCode::from(summary.exit_code()))
}

/// One line that reproduces a failure; the run is played again for its trace.
fn tell(arguments: &Arguments, failed: &Failed) -> anyhow::Result<()> {
    let bug = arguments.bug.map(|bug| format!(" --bug {}", bug.name())).unwrap_or_default();
    let outcome = run(failed.seed, arguments.bug, true);
    let path = write_trace(&arguments.traces, failed.seed, &outcome.lines)?;
    let what: String = failed.what.chars().take(400).collect();
    eprintln!(
        "cargo run --release -p sim -- --seed {}{bug}  # {}: {what} (trace: {})",
        failed.seed,
        failed.kind,
        path.display()
    );
    Ok(())
}

fn write_trace(folder: &Path, seed: u64, lines: &[String]) -> anyhow::Result<PathBuf> {
    let path = folder.join(format!("sim-{seed}.trace"));
    let mut text = lines.join("\n");
    text.push('\n');
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}
