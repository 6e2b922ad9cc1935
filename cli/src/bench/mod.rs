//! Measures file systems through their system calls, on threads of their own.

pub mod geo;
pub mod geo_calibrate;
mod geo_op;
pub mod geo_real;
mod run;
mod workload;

use std::path::PathBuf;
use std::time::Duration;

pub use run::run;
pub use workload::Workload;

/// What to measure.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Where.
    pub dirs: Vec<PathBuf>,
    /// With how many threads, one run for each.
    pub threads: Vec<usize>,
    /// At most so long per run.
    pub time: Duration,
    /// At most so many operations per thread and run.
    pub count: u64,
    /// Length of the large file, in bytes.
    pub size: u64,
    /// What.
    pub workloads: Vec<Workload>,
    /// Show a bar on stderr.
    pub progress: bool,
}

/// One run's result.
#[derive(Clone, Debug)]
pub struct Row {
    /// Where.
    pub dir: PathBuf,
    /// What.
    pub workload: Workload,
    /// With how many threads.
    pub threads: usize,
    /// Operations done.
    pub ops: u64,
    /// Bytes moved, where that counts.
    pub bytes: u64,
    /// From the first thread's start to the last one's end.
    pub elapsed: Duration,
    /// Median latency.
    pub p50_us: u64,
    /// Latency that one in a hundred exceeds.
    pub p99_us: u64,
}

impl Row {
    /// Throughput.
    pub fn ops_per_s(&self) -> f64 {
        self.ops as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }

    /// Bytes per time, where that counts.
    pub fn mib_per_s(&self) -> Option<f64> {
        let seconds = self.elapsed.as_secs_f64().max(1e-9);
        self.workload.moves_bytes().then(|| self.bytes as f64 / f64::from(1 << 20) / seconds)
    }
}

/// All results.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// The directories, as given.
    pub dirs: Vec<PathBuf>,
    /// In the order in which they were measured.
    pub rows: Vec<Row>,
    /// What could not be measured, and why.
    pub problems: Vec<String>,
    /// Ctrl-C came; what was measured before is here.
    pub interrupted: bool,
}
