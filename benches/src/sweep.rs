//! Plays the points of an experiment, several at a time. Each has a thread; results are in the points' order.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering as Atomic};

use crate::costs::Calibration;
use crate::error::Result;
use crate::merge;
use crate::spec::{Ordering, Point};
use crate::stats::Outcome;
use crate::world;

/// What all points share.
#[derive(Clone, Copy, Debug)]
pub struct Settings<'a> {
    /// What work costs.
    pub costs: &'a Calibration,
    /// The seed of every point.
    pub seed: u64,
    /// Points at a time.
    pub threads: usize,
}

/// Plays all points. `stop` ends it early; `done` is told of each point. A point that was not finished is `None`.
///
/// # Errors
/// The first point's that failed, in their order.
pub fn run(
    points: &[Point],
    settings: Settings<'_>,
    stop: &AtomicBool,
    done: &(dyn Fn(&Point) + Sync),
) -> Result<Vec<Option<Outcome>>> {
    let next = AtomicUsize::new(0);
    let found: Mutex<Vec<Option<Result<Option<Outcome>>>>> = Mutex::new(points.iter().map(|_| None).collect());
    // The long ones first: the last thread must not begin with them.
    let mut order: Vec<usize> = (0..points.len()).collect();
    order.sort_by_key(|&at| std::cmp::Reverse(points[at].regions));
    let work = || {
        while !stop.load(Atomic::Relaxed) {
            let Some(&at) = order.get(next.fetch_add(1, Atomic::Relaxed)) else { return };
            let outcome = one(&points[at], settings, &|| stop.load(Atomic::Relaxed));
            if let Ok(mut found) = found.lock() {
                found[at] = Some(outcome);
            }
            done(&points[at]);
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..settings.threads.clamp(1, points.len().max(1)) {
            scope.spawn(work);
        }
    });
    let found = found.into_inner().unwrap_or_default();
    found.into_iter().map(|outcome| outcome.unwrap_or(Ok(None))).collect()
}

fn one(point: &Point, settings: Settings<'_>, stop: &dyn Fn() -> bool) -> Result<Option<Outcome>> {
    match point.ordering {
        Ordering::DeterministicMerge => merge::play(point, settings.costs, settings.seed).map(Some),
        Ordering::ConflictAware | Ordering::Classic => world::play(point, settings.costs, settings.seed, stop),
    }
}
