//! What is measured in one run, and its summary.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::spec::{Op, Point, Scope};

/// Latencies are kept to three digits, up to this one.
const LATENCY_NS_MAX: u64 = 600_000_000_000;
/// Points of a distribution that a report draws.
const QUANTILES: [f64; 19] =
    [0.0, 0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.97, 0.98, 0.99, 0.995, 0.999, 1.0];
/// One step of a timeline.
pub const TIMELINE_STEP_MS: u64 = 500;

/// The median; 0 of nothing.
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let half = values.len() / 2;
    match values.len() {
        0 => 0.0,
        odd if odd % 2 == 1 => values[half],
        _ => f64::midpoint(values[half - 1], values[half]),
    }
}

/// Latencies.
#[derive(Clone, Debug)]
pub struct Latencies(Histogram<u64>);

impl Default for Latencies {
    fn default() -> Self {
        let histogram = Histogram::new_with_bounds(1_000, LATENCY_NS_MAX, 3);
        Latencies(histogram.expect("these bounds are possible"))
    }
}

impl Latencies {
    /// One more.
    pub fn record(&mut self, latency_ns: u64) {
        self.0.saturating_record(latency_ns.max(1));
    }

    /// All of another one's.
    pub fn add(&mut self, other: &Latencies) {
        // Both have the same bounds.
        let added = self.0.add(&other.0);
        debug_assert!(added.is_ok(), "histograms of one kind can be added");
    }

    /// How many.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// A quantile in milliseconds, to the microsecond.
    #[must_use]
    pub fn quantile_ms(&self, quantile: f64) -> f64 {
        to_ms(self.0.value_at_quantile(quantile))
    }

    /// All figures of it.
    #[must_use]
    pub fn summary(&self) -> Summary {
        Summary {
            count: self.0.len(),
            mean_ms: to_ms(self.0.mean() as u64),
            p50_ms: self.quantile_ms(0.5),
            p95_ms: self.quantile_ms(0.95),
            p99_ms: self.quantile_ms(0.99),
            max_ms: to_ms(self.0.max()),
            quantiles_ms: QUANTILES.iter().map(|&quantile| (quantile, self.quantile_ms(quantile))).collect(),
        }
    }
}

fn to_ms(ns: u64) -> f64 {
    (ns as f64 / 1_000.0).round() / 1_000.0
}

/// A distribution in a few figures.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// How many.
    pub count: u64,
    /// Mean.
    pub mean_ms: f64,
    /// Median.
    pub p50_ms: f64,
    /// One in twenty exceeds it.
    pub p95_ms: f64,
    /// One in a hundred exceeds it.
    pub p99_ms: f64,
    /// The longest.
    pub max_ms: f64,
    /// Share of operations, and the latency that they do not exceed.
    pub quantiles_ms: Vec<(f64, f64)>,
}

/// One kind of operation in one kind of place.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OpResult {
    /// Which.
    pub op: Op,
    /// Where.
    pub scope: Scope,
    /// Of all regions together.
    pub per_second: f64,
    /// How long they took.
    pub latency: Summary,
}

/// One step of a timeline.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Moment {
    /// Since the measurement began.
    pub at_s: f64,
    /// Which region's applications.
    pub region: usize,
    /// What they got done.
    pub per_second: f64,
    /// Median latency of local operations that ended then.
    pub p50_ms: f64,
    /// … and one in a hundred.
    pub p99_ms: f64,
}

/// What crossed between regions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Wide {
    /// Frames per operation.
    pub messages_per_op: f64,
    /// Bytes of frames per operation, without the transport's own.
    pub bytes_per_op: f64,
}

/// How far behind a far region's replica is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Lag {
    /// From an entry's execution at the primary to its execution in the far region.
    pub applied: Summary,
    /// What a reader waits there who has just been told of the newest update, beyond an ordinary read.
    pub causal_wait: Summary,
    /// Reads answered there per second.
    pub reads_per_second: f64,
}

/// Threads of one kind, on all machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    /// Programs, and the mounts' threads towards the kernel.
    Kernel,
    /// The mounts' network threads.
    MountNetwork,
    /// The nodes' network threads.
    NodeNetwork,
    /// The replicas' threads.
    Replica,
    /// The nodes' log threads.
    Log,
    /// The emulation of distances.
    Emulation,
}

/// What came out of one point.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// Its settings.
    pub point: Point,
    /// By operation and place.
    pub ops: Vec<OpResult>,
    /// Operations per second of each region's applications.
    pub regions: Vec<f64>,
    /// If there is something to see.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub timeline: Vec<Moment>,
    /// What crossed between regions.
    pub wide: Wide,
    /// If there are far readers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lag: Option<Lag>,
    /// CPU per operation in microseconds, by the kind of thread.
    #[serde(default)]
    pub cpu_us_per_op: BTreeMap<Part, f64>,
    /// How often threads were woken per operation, by their kind. A real thread towards the kernel also sleeps between the requests of an
    /// operation, and a real log's thread while it flushes: these wakings are in no count here.
    #[serde(default)]
    pub wakes_per_op: BTreeMap<Part, f64>,
    /// Events that the simulation went through; zero if it was measured.
    pub events: u64,
}

impl Outcome {
    /// Operations per second of all regions.
    #[must_use]
    pub fn per_second(&self) -> f64 {
        self.regions.iter().sum()
    }

    /// Operations per second of a region, on average.
    #[must_use]
    pub fn per_region(&self) -> f64 {
        self.per_second() / self.regions.len().max(1) as f64
    }

    /// The results of an operation.
    #[must_use]
    pub fn of(&self, op: Op, scope: Scope) -> Option<&OpResult> {
        self.ops.iter().find(|found| found.op == op && found.scope == scope)
    }
}

/// What is counted while a run lasts.
#[derive(Debug, Default)]
pub struct Recorder {
    /// Since when it counts; `None` while it warms up.
    pub since: Option<u64>,
    latencies: BTreeMap<(Op, Scope), Latencies>,
    regions: Vec<u64>,
    timeline: BTreeMap<(u64, usize), (u64, Latencies)>,
    with_timeline: bool,
    /// Frames between regions.
    pub wide_messages: u64,
    /// Their bytes.
    pub wide_bytes: u64,
    /// When the primary executed an entry.
    pub executed: BTreeMap<u64, u64>,
    /// Lag of the far replica.
    pub lag: Latencies,
    /// Reads in the far region that carry the newest clock.
    pub causal_reads: Latencies,
    /// … and those that carry none.
    pub plain_reads: Latencies,
    far_reads: u64,
    used_us: BTreeMap<Part, f64>,
    woken: BTreeMap<Part, u64>,
    /// Time that applications spent on what their operations need to be there.
    prepared_ns: u64,
}

impl Recorder {
    /// Of a run.
    #[must_use]
    pub fn new(regions: usize, with_timeline: bool) -> Recorder {
        Recorder { regions: vec![0; regions], with_timeline, ..Recorder::default() }
    }

    /// An operation of an application is done.
    pub fn done(&mut self, now: u64, region: usize, (op, scope): (Op, Scope), latency_ns: u64) {
        let Some(since) = self.since else { return };
        self.latencies.entry((op, scope)).or_default().record(latency_ns);
        self.regions[region] += 1;
        if self.with_timeline {
            let step = (now - since) / (TIMELINE_STEP_MS * 1_000_000);
            let moment = self.timeline.entry((step, region)).or_default();
            moment.0 += 1;
            if scope == Scope::Local {
                moment.1.record(latency_ns);
            }
        }
    }

    /// An application has made what its next operation needs: that is no part of the measured time.
    pub fn prepared(&mut self, since: u64, now: u64) {
        if let Some(begun) = self.since {
            self.prepared_ns += now - since.max(begun);
        }
    }

    /// A thread was at work.
    pub fn used(&mut self, part: Part, cpu_us: f64) {
        if self.since.is_some() {
            *self.used_us.entry(part).or_default() += cpu_us;
        }
    }

    /// A thread that slept has been woken.
    pub fn woke(&mut self, part: Part) {
        if self.since.is_some() {
            *self.woken.entry(part).or_default() += 1;
        }
    }

    /// A read in the far region is done.
    pub fn far_read(&mut self, latency_ns: u64, causal: bool) {
        if self.since.is_some() {
            self.far_reads += 1;
            let kind = if causal { &mut self.causal_reads } else { &mut self.plain_reads };
            kind.record(latency_ns);
        }
    }

    /// A frame goes between regions.
    pub fn crosses(&mut self, bytes: usize) {
        if self.since.is_some() {
            self.wide_messages += 1;
            self.wide_bytes += bytes as u64;
        }
    }

    /// The figures.
    #[must_use]
    pub fn outcome(self, point: &Point, measured_ns: u64, events: u64) -> Outcome {
        let applications = (point.clients * point.regions).max(1) as f64;
        let seconds = (measured_ns as f64 - self.prepared_ns as f64 / applications).max(1.0) / 1e9;
        let rate = |count: u64| (count as f64 / seconds * 10.0).round() / 10.0;
        let total: u64 = self.regions.iter().sum();
        let each = |count: u64| (count as f64 / total.max(1) as f64 * 1_000.0).round() / 1_000.0;
        let each_us = |used_us: f64| (used_us / total.max(1) as f64 * 10.0).round() / 10.0;
        let ops = self.latencies.iter().map(|(&(op, scope), latencies)| OpResult {
            op,
            scope,
            per_second: rate(latencies.count()),
            latency: latencies.summary(),
        });
        let step_s = TIMELINE_STEP_MS as f64 / 1_000.0;
        let mut timeline = Vec::new();
        if self.with_timeline {
            let steps = measured_ns / (TIMELINE_STEP_MS * 1_000_000);
            let empty = (0, Latencies::default());
            for step in 0..steps {
                for region in 0..self.regions.len() {
                    let (count, latencies) = self.timeline.get(&(step, region)).unwrap_or(&empty);
                    timeline.push(Moment {
                        at_s: (step as f64 + 0.5) * step_s,
                        region,
                        per_second: *count as f64 / step_s,
                        p50_ms: latencies.quantile_ms(0.5),
                        p99_ms: latencies.quantile_ms(0.99),
                    });
                }
            }
        }
        let lag = (point.far_readers > 0).then(|| {
            let usual_ns = (self.plain_reads.quantile_ms(0.5) * 1e6) as u64;
            let mut wait = Latencies::default();
            for value in self.causal_reads.0.iter_recorded() {
                let waited = value.value_iterated_to().saturating_sub(usual_ns);
                (0..value.count_at_value()).for_each(|_| wait.record(waited));
            }
            Lag { applied: self.lag.summary(), causal_wait: wait.summary(), reads_per_second: rate(self.far_reads) }
        });
        Outcome {
            point: point.clone(),
            ops: ops.collect(),
            regions: self.regions.iter().map(|&count| rate(count)).collect(),
            timeline,
            wide: Wide { messages_per_op: each(self.wide_messages), bytes_per_op: each(self.wide_bytes) },
            lag,
            cpu_us_per_op: self.used_us.iter().map(|(&part, &used)| (part, each_us(used))).collect(),
            wakes_per_op: self.woken.iter().map(|(&part, &woken)| (part, each(woken))).collect(),
            events,
        }
    }
}
