//! What multicast costs by itself: real processes over loopback, one per replica, with the node's log, links and mailbox
//! around the bare ordering core ([`partition_replica::bare`]). Each group's primary is asked by clients on its own thread.

mod lab;
mod load;
mod member;

use serde::{Deserialize, Serialize};

pub use lab::run_point;
pub use member::run_member;

/// One measurement.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// How many groups there are.
    pub groups: u16,
    /// How many voters each has, a process for each.
    pub voters: u32,
    /// How many groups a command of several groups concerns.
    pub destinations: u16,
    /// The share of such commands; the others concern the own group only.
    pub multi_share: f64,
    /// Closed loop: commands under way per process; those of followers are asked for at their group's primary.
    pub outstanding: usize,
    /// Open loop: commands per second and group, in place of the above.
    pub rate: Option<f64>,
    /// Bytes of a command's payload.
    pub payload: usize,
    /// Commands draw one of so many keys, and write it; none: each has its own.
    pub keys: Option<u64>,
    /// Whether the log is flushed to the disk.
    pub flush: bool,
    /// Emulated distances, each group in a region of its own: a preset or a file.
    pub wan: Option<String>,
    /// Not measured at first.
    pub warm_up_ms: u64,
    /// Measured.
    pub measure_ms: u64,
}

/// What was measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// Commands executed per second, in all groups together, each counted once.
    pub per_s: f64,
    /// CPU of all processes per command, in microseconds.
    pub cpu_us: f64,
    /// Commands of one group.
    pub local: Option<Latency>,
    /// Commands of several groups.
    pub multi: Option<Latency>,
    /// Declined or rejected, in the measured time.
    pub failed: u64,
    /// Open loop: not asked for, because too many were under way.
    pub missed: u64,
}

/// From asking until the reply leaves the primary; open loop: from when it was due. In milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// How many.
    pub count: u64,
    /// Half are faster.
    pub p50: f64,
    /// 95 % are faster.
    pub p95: f64,
    /// 99 % are faster.
    pub p99: f64,
}

/// What a member's process is told, in one line of JSON.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Plan {
    point: Point,
    /// Its number, from 1; its group is told by it.
    number: u32,
    /// All members' UDP ports on loopback, by number.
    ports: Vec<u16>,
    /// Where its log goes, beside its certificate.
    dir: std::path::PathBuf,
}

/// What it says in the end, in one line of JSON.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Report {
    cpu_us: f64,
    /// Microseconds and how often.
    local: Vec<(u64, u64)>,
    multi: Vec<(u64, u64)>,
    failed: u64,
    missed: u64,
}
