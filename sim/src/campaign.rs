//! Many seeds: a few threads, each playing whole runs; results in any order, a summary at the end.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::planted::Bug;
use crate::run::{Outcome, Verdict, run};

/// What to run.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// The first seed.
    pub first: u64,
    /// At most so many.
    pub seeds: u64,
    /// Not longer than this; the runs under way end.
    pub time: Option<Duration>,
    /// The planted bug.
    pub bug: Option<Bug>,
    /// Threads.
    pub threads: usize,
    /// Stop at the first failure.
    pub stop_at_failure: bool,
}

/// A run that failed.
#[derive(Clone, Debug, Serialize)]
pub struct Failed {
    /// The seed.
    pub seed: u64,
    /// `safety`, `liveness` or `crash`.
    pub kind: &'static str,
    /// What was wrong.
    pub what: String,
}

/// What came out.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Summary {
    /// Runs.
    pub runs: u64,
    /// Failed runs, by seed.
    pub failed: Vec<Failed>,
    /// Events.
    pub events: u64,
    /// Commands executed.
    pub executed: u64,
    /// Reads answered.
    pub reads: u64,
    /// Replicas quarantined.
    pub quarantined: u64,
    /// Changes of memberships.
    pub changes: u64,
    /// Disks that were replaced by empty ones.
    pub disks: u64,
    /// Copies of states put in place.
    pub copies: u64,
    /// Histories of clients that the black-box search has decided as a whole.
    pub histories_searched: u64,
    /// Pieces of others that it has decided.
    pub pieces_searched: u64,
    /// Pieces that were too big for it.
    pub pieces_too_big: u64,
    /// Virtual time.
    pub simulated_hours: f64,
    /// Real time.
    pub wall_seconds: f64,
    /// Virtual hours in an hour.
    pub simulated_hours_per_hour: f64,
}

impl Summary {
    /// Of one run.
    #[must_use]
    pub fn of(outcome: &Outcome) -> Summary {
        let mut summary = Summary::default();
        summary.add(outcome);
        summary
    }

    fn add(&mut self, outcome: &Outcome) {
        self.runs += 1;
        self.events += outcome.events;
        self.executed += outcome.executed;
        self.reads += outcome.reads;
        self.quarantined += outcome.quarantined;
        self.changes += outcome.changes;
        self.disks += outcome.disks;
        self.copies += outcome.copies;
        self.histories_searched += outcome.searched.whole;
        self.pieces_searched += outcome.searched.pieces;
        self.pieces_too_big += outcome.searched.too_big;
        self.simulated_hours += outcome.simulated_ms as f64 / 3_600_000.0;
        if let Some((kind, what)) = outcome.verdict.failure() {
            self.failed.push(Failed { seed: outcome.seed, kind, what: what.to_owned() });
        }
    }

    fn finish(&mut self, began: Instant) {
        self.wall_seconds = began.elapsed().as_secs_f64();
        self.simulated_hours_per_hour = self.simulated_hours / (self.wall_seconds / 3600.0).max(f64::MIN_POSITIVE);
        self.failed.sort_by_key(|failed| failed.seed);
    }

    /// 0: all is well; 10: a safety failure; 11: a liveness failure; 12: a panic. The worst one counts.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        let code = |failed: &Failed| match failed.kind {
            "safety" => 10,
            "liveness" => 11,
            _ => 12,
        };
        self.failed.iter().map(code).min().unwrap_or(0)
    }
}

impl Verdict {
    /// What kind of failure, and what was wrong.
    #[must_use]
    pub fn failure(&self) -> Option<(&'static str, &str)> {
        match self {
            Verdict::Clean => None,
            Verdict::Safety(what) => Some(("safety", what)),
            Verdict::Liveness(what) => Some(("liveness", what)),
            Verdict::Crash(what) => Some(("crash", what)),
        }
    }
}

/// Runs a plan; `each` is told of every run.
pub fn play(plan: &Plan, each: impl Fn(&Outcome) + Sync) -> Summary {
    let began = Instant::now();
    let next = AtomicU64::new(0);
    let summary = Mutex::new(Summary::default());
    std::thread::scope(|scope| {
        for _ in 0..plan.threads.max(1) {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let over = plan.time.is_some_and(|time| began.elapsed() >= time);
                    if at >= plan.seeds || over {
                        return;
                    }
                    let outcome = run(plan.first.wrapping_add(at), plan.bug, false);
                    each(&outcome);
                    if outcome.verdict != Verdict::Clean && plan.stop_at_failure {
                        next.store(plan.seeds, Ordering::Relaxed);
                    }
                    match summary.lock() {
                        Ok(mut summary) => summary.add(&outcome),
                        Err(_) => return,
                    }
                }
            });
        }
    });
    let mut summary = summary.into_inner().unwrap_or_default();
    summary.finish(began);
    summary
}
