//! Results as JSON, CSV and one HTML page, and the comparison of two.

mod figures;
mod page;
pub mod svg;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::costs::Calibration;
use crate::error::{Error, Result};
use crate::spec::{Experiment, Op, Point, Scope};
use crate::stats::{Outcome, median};

pub use page::html;

/// Version of the JSON.
pub const SCHEMA: u32 = 1;

/// Under which conditions figures came about.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Conditions {
    /// Simulated in virtual time, or measured on mounts.
    pub simulated: bool,
    /// Of the simulation.
    pub seed: u64,
    /// Of the program.
    pub commit: String,
    /// When, in UTC.
    pub date: String,
    /// Where it ran.
    pub machine: String,
    /// How long that took, in seconds.
    pub took_s: f64,
    /// What work costs.
    pub calibration: Calibration,
    /// Ended early: some points are missing.
    pub interrupted: bool,
}

/// One experiment's results.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Part {
    /// The question.
    pub experiment: Experiment,
    /// Its answers, in the order of the points.
    pub outcomes: Vec<Outcome>,
}

/// One line of simulator against reality.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Checked {
    /// Distances.
    pub rtt: String,
    /// Which operation.
    pub op: Op,
    /// Where.
    pub scope: Scope,
    /// Applications per region.
    pub clients: usize,
    /// How often it was measured; the figures are medians.
    #[serde(default = "once")]
    pub rounds: usize,
    /// Median on mounts.
    pub real_ms: f64,
    /// … of the fastest and the slowest round.
    #[serde(default)]
    pub real_ms_range: (f64, f64),
    /// … and in the simulation.
    pub simulated_ms: f64,
    /// Operations per second on mounts.
    pub real_per_second: f64,
    /// … and in the simulation.
    pub simulated_per_second: f64,
}

fn once() -> usize {
    1
}

impl Checked {
    /// One line for each workload of several rounds: medians of what each round has.
    #[must_use]
    pub fn medians(rounds: &[Checked]) -> Vec<Checked> {
        let mut lines: Vec<Vec<&Checked>> = Vec::new();
        for found in rounds {
            let is_same = |line: &&mut Vec<&Checked>| {
                let first = line[0];
                (&first.rtt, first.op, first.scope, first.clients) == (&found.rtt, found.op, found.scope, found.clients)
            };
            match lines.iter_mut().find(is_same) {
                Some(line) => line.push(found),
                None => lines.push(vec![found]),
            }
        }
        let merged = |line: Vec<&Checked>| {
            let all = |of: fn(&Checked) -> f64| median(line.iter().map(move |found| of(found)));
            let real = || line.iter().map(|found| found.real_ms);
            let range = (real().fold(f64::INFINITY, f64::min), real().fold(0.0, f64::max));
            Checked {
                rounds: line.len(),
                real_ms: all(|found| found.real_ms),
                real_ms_range: range,
                simulated_ms: all(|found| found.simulated_ms),
                real_per_second: all(|found| found.real_per_second),
                simulated_per_second: all(|found| found.simulated_per_second),
                ..line[0].clone()
            }
        };
        lines.into_iter().map(merged).collect()
    }

    /// Simulated median by real one.
    #[must_use]
    pub fn median_ratio(&self) -> f64 {
        self.simulated_ms / self.real_ms.max(1e-6)
    }

    /// Simulated throughput by real one.
    #[must_use]
    pub fn throughput_ratio(&self) -> f64 {
        self.simulated_per_second / self.real_per_second.max(1e-6)
    }
}

/// Everything of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// See [`SCHEMA`].
    pub schema: u32,
    /// Under which conditions.
    pub conditions: Conditions,
    /// By experiment.
    pub parts: Vec<Part>,
    /// Simulator against reality, if that was compared.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub validation: Vec<Checked>,
}

impl Report {
    /// From a file.
    ///
    /// # Errors
    /// If it is none.
    pub fn load(path: &Path) -> Result<Report> {
        let bad = |problem: String| Error::File { path: path.into(), problem };
        let bytes = std::fs::read(path).map_err(|error| bad(error.to_string()))?;
        let report: Report = serde_json::from_slice(&bytes).map_err(|error| bad(error.to_string()))?;
        if report.schema != SCHEMA {
            return Err(bad(format!("version {} of a report; this program knows {SCHEMA}", report.schema)));
        }
        Ok(report)
    }

    /// Writes `report.json`, `report.csv` and `report.html` into a folder, which is made.
    ///
    /// # Errors
    /// If that fails.
    pub fn save(&self, folder: &Path) -> Result<()> {
        let bad = |error: std::io::Error| Error::File { path: folder.into(), problem: error.to_string() };
        std::fs::create_dir_all(folder).map_err(bad)?;
        let json = serde_json::to_vec_pretty(self).map_err(|error| Error::Invalid(error.to_string()))?;
        for (name, bytes) in
            [("report.json", json), ("report.csv", csv(self).into()), ("report.html", html(self).into())]
        {
            std::fs::write(folder.join(name), bytes).map_err(bad)?;
        }
        Ok(())
    }
}

/// What tells a point and an operation from others.
type Key = (String, Vec<String>);

fn settings(point: &Point) -> Vec<String> {
    vec![
        point.regions.to_string(),
        point.rtt.clone(),
        point.voters.to_string(),
        point.clients.to_string(),
        point.locality.to_string(),
        point.elsewhere.name().into(),
        point.multi_group.to_string(),
        point.ordering.name().into(),
        point.fault.name().into(),
        point.far_readers.to_string(),
    ]
}

/// All operations' figures as comma-separated values.
#[must_use]
pub fn csv(report: &Report) -> String {
    let mut out = String::from(
        "experiment,regions,rtt,voters,clients_per_region,locality,elsewhere,multi_group,ordering,fault,far_readers,op,\
         scope,count,ops_per_s,ops_per_s_per_region,mean_ms,p50_ms,p95_ms,p99_ms,max_ms,wan_messages_per_op,\
         wan_bytes_per_op\n",
    );
    for part in &report.parts {
        for outcome in &part.outcomes {
            for op in &outcome.ops {
                let (settings, latency) = (settings(&outcome.point).join(","), &op.latency);
                let _ = writeln!(
                    out,
                    "{},{settings},{},{},{},{},{:.1},{},{},{},{},{},{},{}",
                    part.experiment.name,
                    op.op.name(),
                    op.scope.name(),
                    latency.count,
                    op.per_second,
                    op.per_second / outcome.point.regions as f64,
                    latency.mean_ms,
                    latency.p50_ms,
                    latency.p95_ms,
                    latency.p99_ms,
                    latency.max_ms,
                    outcome.wide.messages_per_op,
                    outcome.wide.bytes_per_op
                );
            }
        }
    }
    out
}

/// One line of two runs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Compared {
    /// Which experiment, settings, operation.
    pub what: String,
    /// Throughput of the first, of the second.
    pub per_second: (f64, f64),
    /// Medians.
    pub p50_ms: (f64, f64),
    /// Tails.
    pub p99_ms: (f64, f64),
}

/// What two runs have in common, line by line.
#[must_use]
pub fn compare(a: &Report, b: &Report) -> Vec<Compared> {
    let lines = |report: &Report| {
        let mut found: BTreeMap<Key, (String, f64, f64, f64)> = BTreeMap::new();
        for part in &report.parts {
            for outcome in &part.outcomes {
                for op in &outcome.ops {
                    let mut key = settings(&outcome.point);
                    key.extend([op.op.name().into(), op.scope.name().into()]);
                    let what = format!(
                        "{}: {} ({} {})",
                        part.experiment.name,
                        outcome.point.label(),
                        op.op.name(),
                        op.scope.name()
                    );
                    let figures = (what, op.per_second, op.latency.p50_ms, op.latency.p99_ms);
                    found.insert((part.experiment.name.clone(), key), figures);
                }
            }
        }
        found
    };
    let (first, second) = (lines(a), lines(b));
    let both = first.into_iter().filter_map(|(key, a)| second.get(&key).map(|b| (a, b.clone())));
    both.map(|(a, b)| Compared { what: a.0, per_second: (a.1, b.1), p50_ms: (a.2, b.2), p99_ms: (a.3, b.3) }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_become_medians_with_the_range_of_what_was_measured() {
        let found = |op, (real_ms, simulated_ms): (f64, f64)| Checked {
            rtt: "geo3".into(),
            op,
            scope: Scope::Local,
            clients: 1,
            rounds: 1,
            real_ms,
            real_ms_range: (real_ms, real_ms),
            simulated_ms,
            real_per_second: 1_000.0 / real_ms,
            simulated_per_second: 1_000.0 / simulated_ms,
        };
        let rounds = [(2.0, 1.0), (8.0, 3.0), (4.0, 2.0)].map(|times| found(Op::Chmod, times));
        let other = [(1.0, 1.0), (2.0, 1.0)].map(|times| found(Op::Mkdir, times));
        let lines = Checked::medians(&[&rounds[..1], &other[..], &rounds[1..]].concat());
        assert_eq!(lines.len(), 2);
        let (chmod, mkdir) = (&lines[0], &lines[1]);
        assert_eq!((chmod.op, chmod.rounds, chmod.real_ms, chmod.real_ms_range), (Op::Chmod, 3, 4.0, (2.0, 8.0)));
        assert_eq!((chmod.simulated_ms, chmod.real_per_second, chmod.simulated_per_second), (2.0, 250.0, 500.0));
        assert_eq!((mkdir.op, mkdir.rounds, mkdir.real_ms, mkdir.real_ms_range), (Op::Mkdir, 2, 1.5, (1.0, 2.0)));
    }
}
