//! Whole clusters: seeds that once failed, fresh ones, and bugs planted on purpose, which must be found.

#![allow(clippy::unwrap_used)]

use std::time::{Duration, SystemTime};

use sim::campaign::{Plan, Summary, play};
use sim::planted::Bug;
use sim::run::{Verdict, run};

fn campaign(first: u64, seeds: u64, bug: Option<Bug>) -> Summary {
    let plan = Plan { first, seeds, time: None, bug, threads: 2, stop_at_failure: true };
    play(&plan, |_| {})
}

fn assert_clean(summary: &Summary) {
    for failed in &summary.failed {
        println!("cargo run --release -p sim -- --seed {}  # {}: {}", failed.seed, failed.kind, failed.what);
    }
    assert!(summary.failed.is_empty(), "{} of {} runs failed", summary.failed.len(), summary.runs);
    assert!(summary.executed > 0 && summary.reads > 0);
}

/// What each of these once showed is in `docs/simulation.md`.
const REGRESSIONS: [u64; 9] = [10, 11, 20, 36, 87, 146, 229, 1970, 91_001_186];

#[test]
fn seeds_that_once_failed_are_clean() {
    for seed in REGRESSIONS {
        let outcome = run(seed, None, false);
        assert_eq!(outcome.verdict, Verdict::Clean, "seed {seed}");
    }
}

/// It would let the other group forget a command for which the new primary waits.
#[test]
fn woken_primary_does_not_close_what_it_has_not_heard_of() {
    assert_eq!(run(50_246, None, false).verdict, Verdict::Clean);
}

/// A client sees the directory that it has made, still to be executed by the parent's group, before one that a stranger
/// makes beside it and that the group puts first: no state of the group was ever so, and the client has missed nothing.
#[test]
fn own_update_may_be_seen_before_a_strangers_that_its_group_puts_first() {
    assert_eq!(run(701_632, None, false).verdict, Verdict::Clean);
}

#[test]
fn same_seed_gives_the_same_run() {
    for seed in 1..=12 {
        let (first, again, readable) = (run(seed, None, false), run(seed, None, false), run(seed, None, true));
        assert_eq!((first.trace_hash, first.events), (again.trace_hash, again.events), "seed {seed}");
        assert_eq!(first.trace_hash, readable.trace_hash, "writing the trace changes nothing, seed {seed}");
        assert!(first.lines.is_empty() && !readable.lines.is_empty());
    }
    assert_ne!(run(1, None, false).trace_hash, run(2, None, false).trace_hash);
}

/// Three hundred seeds that nobody has tried before; `SIM_FIRST` repeats a batch.
#[test]
fn fresh_seeds_are_clean() {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let first = std::env::var("SIM_FIRST").ok().and_then(|first| first.parse().ok());
    let first = first.unwrap_or_else(|| now.as_millis() as u64 * 1_000);
    println!("SIM_FIRST={first}");
    let summary = campaign(first, 300, None);
    assert_clean(&summary);
    assert!(summary.quarantined > 0, "some states rotted, and no group has noticed");
    assert!(summary.changes > 0 && summary.disks > 0 && summary.copies > 0, "operators did nothing");
    println!("{} histories searched, {} pieces too big", summary.histories_searched, summary.pieces_too_big);
    assert!(summary.histories_searched * 10 > summary.runs * 9, "most histories are small enough");
}

/// Within so many seeds from 1 each planted bug must be found.
const SEEDS_PER_BUG: u64 = 1_500;

#[test]
fn every_planted_bug_is_found() {
    let mut missed = Vec::new();
    for &bug in Bug::all() {
        // It takes two updates of the same two groups, and a third one's cache, within a round trip.
        let first = if bug == Bug::OwnHidesOthers { 2_000 } else { 1 };
        let summary = campaign(first, SEEDS_PER_BUG, Some(bug));
        match summary.failed.first() {
            Some(failed) => println!("{}: seed {}, {}", bug.name(), failed.seed, failed.kind),
            None => missed.push(bug.name()),
        }
    }
    assert!(missed.is_empty(), "no checker sees {missed:?}");
}
