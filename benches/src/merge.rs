//! A baseline that is a model, not code: local and global streams merged deterministically, as Multi-Ring Paxos does.
//!
//! Every region's replicas deliver from two streams, their own and a global one, one message of each in turn. Streams without
//! traffic are filled with skips: every [`SKIP_MS`] the coordinator of the global stream proposes as many as are missing to
//! the common rate. A local command is thus delivered when its own stream has decided it **and** the global stream's messages
//! of the same turn are known in the region. Drawn are only the moments at which commands come; queues are not modelled.

use crate::costs::Calibration;
use crate::distances::Distances;
use crate::error::Result;
use crate::random::Random;
use crate::spec::{Op, Point, Scope};
use crate::stats::{Outcome, Recorder};

/// Interval of the global coordinator's skips. Published configurations use 5 to 100 ms; this is the kindest.
pub const SKIP_MS: f64 = 5.0;
const DRAWS: usize = 20_000;
const MS: f64 = 1_000_000.0;

/// Draws the latencies of a point.
///
/// # Errors
/// If the distances make no sense.
pub fn play(point: &Point, costs: &Calibration, seed: u64) -> Result<Outcome> {
    point.check()?;
    let distances = Distances::load(&point.rtt, point.regions)?;
    let one_way = |a: usize, b: usize| distances.one_way_ns(a, b) as f64 / MS;
    let rtt = |a: usize, b: usize| one_way(a, b) + one_way(b, a);
    // The global stream has an acceptor in each of up to three regions; its coordinator is in the first.
    let acceptors = point.regions.min(3);
    let mut answers: Vec<f64> = (0..acceptors).map(|region| rtt(0, region)).collect();
    answers.sort_by(f64::total_cmp);
    let cpu = &costs.cpu_us;
    let flush_ms = (costs.disk.flush_us + costs.disk.flush_tail_us) / 1_000.0;
    let work_ms = (2.0 * cpu.packet + 2.0 * cpu.wake + cpu.order + cpu.execute + cpu.store_batch) / 1_000.0;
    let quorum_ms = answers[acceptors / 2].max(rtt(0, 0)) + flush_ms + work_ms;
    let decided_ms = |region: usize| quorum_ms + one_way(0, region);
    let local_ms = |region: usize| rtt(region, region) * 2.0 + flush_ms + work_ms;
    let mut random = Random::new(seed, 7);
    let mut recorder = Recorder::new(point.regions, false);
    recorder.since = Some(0);
    for draw in 0..DRAWS {
        let region = draw % point.regions;
        let wait_ms = random.unit() * SKIP_MS;
        let merged_ms = wait_ms + decided_ms(region);
        let op = point.ops.first().copied().unwrap_or(Op::Write);
        let (kind, latency_ms) = if random.chance(point.multi_group) {
            ((Op::Move, Scope::Cross), (one_way(region, 0) + decided_ms(region)).max(merged_ms))
        } else {
            ((op, Scope::Local), local_ms(region).max(merged_ms))
        };
        recorder.done(0, region, kind, (latency_ms * MS) as u64);
    }
    let mut outcome = recorder.outcome(point, 1_000_000_000, 0);
    // A closed loop: each application waits for its command.
    let mean = |outcome: &Outcome| {
        let total: u64 = outcome.ops.iter().map(|op| op.latency.count).sum();
        outcome.ops.iter().map(|op| op.latency.mean_ms * op.latency.count as f64).sum::<f64>() / total.max(1) as f64
    };
    let per_region = point.clients as f64 * 1_000.0 / (mean(&outcome) + point.think_ms).max(0.001);
    outcome.regions = vec![per_region.round(); point.regions];
    for op in &mut outcome.ops {
        let share = op.latency.count as f64 / DRAWS as f64;
        op.per_second = (per_region * point.regions as f64 * share).round();
    }
    Ok(outcome)
}
