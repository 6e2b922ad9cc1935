//! What a node tells people about itself. Serializes to JSON; fields are only added.

use std::collections::BTreeMap;

use multicast::core::{RoleName, Unfinished, Wait};
use serde::{Deserialize, Serialize};

/// One node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Its number.
    pub node: u32,
    /// Its name.
    pub name: String,
    /// Its region.
    pub region: String,
    /// Its process.
    pub pid: u32,
    /// Where it listens.
    pub listen: String,
    /// Since its start.
    pub uptime_ms: u64,
    /// Why it is about to stop, if it is.
    pub failure: Option<String>,
    /// Connected clients.
    pub clients: usize,
    /// Log, state and memory.
    pub storage: StorageStatus,
    /// Its links to other nodes, by name.
    pub peers: BTreeMap<String, PeerStatus>,
    /// Its replicas.
    pub groups: Vec<GroupStatus>,
}

/// A node's disk and memory figures.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StorageStatus {
    /// Bytes of log segments on disk.
    pub log_bytes: u64,
    /// Log segments.
    pub log_segments: u64,
    /// Batches written since the start: each is one flush.
    pub log_flushes: u64,
    /// Records written since the start.
    pub log_records: u64,
    /// Bytes of log entries in memory.
    pub log_cache_bytes: u64,
    /// RocksDB's block cache, in bytes.
    pub state_cache_bytes: u64,
    /// RocksDB's write buffers, in bytes.
    pub state_buffer_bytes: u64,
    /// Bytes of state on disk.
    pub state_bytes: u64,
    /// The process's resident memory, in bytes.
    pub resident_bytes: u64,
}

/// A link to another node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PeerStatus {
    /// Messages can be sent.
    pub connected: bool,
    /// Round trip, in microseconds.
    pub rtt_us: Option<u64>,
    /// Frames that could not be sent since the start.
    pub dropped_frames: u64,
    /// What was wrong last, for people.
    pub problem: Option<String>,
}

/// One replica.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GroupStatus {
    /// The group's number.
    pub group: u16,
    /// The group's name.
    pub name: String,
    /// `primary`, `recovering` (primary, not up to date yet), `follower` or `candidate`.
    pub role: String,
    /// The primary as far as known: its node's number.
    pub primary: Option<u32>,
    /// The ballot's round.
    pub ballot_round: u64,
    /// The ballot's owner.
    pub ballot_owner: Option<u32>,
    /// The voters, by node number.
    pub voters: Vec<u32>,
    /// Last log entry here.
    pub last_index: u64,
    /// Committed as far as known here.
    pub committed_index: u64,
    /// Applied here.
    pub applied_index: u64,
    /// Applied and safe without the log.
    pub flushed_index: u64,
    /// First log entry kept.
    pub first_index: u64,
    /// On the primary: how many entries each other voter is behind.
    pub lag: BTreeMap<u32, u64>,
    /// State digest at the applied index, in hexadecimal.
    pub digest: String,
    /// Digests at recent indexes that are multiples of [`DIGEST_INTERVAL`], for comparison between voters.
    pub digests: BTreeMap<u64, String>,
    /// Unfinished multi-group commands.
    pub unfinished: Vec<UnfinishedStatus>,
    /// Registered sessions.
    pub sessions: usize,
    /// Subscribed sessions.
    pub subscribers: usize,
    /// Keys noted that subscribers may cache.
    pub interest_keys: usize,
    /// Reads that wait.
    pub parked_reads: usize,
    /// Commands executed since the start.
    pub executed: u64,
}

/// Voters note their digests at multiples of this index.
pub const DIGEST_INTERVAL: u64 = 1000;

/// A multi-group command that is under way.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct UnfinishedStatus {
    /// Session and sequence.
    pub command: String,
    /// Its destination groups.
    pub destinations: Vec<u16>,
    /// What it waits for, in words.
    pub stage: String,
    /// The groups that it waits for.
    pub waiting_for: Vec<u16>,
    /// Its keys are locked here: whoever touches them waits too.
    pub locks_keys: bool,
    /// Since when, in ms.
    pub elapsed_ms: u64,
}

/// What a replica's core says about itself.
pub(crate) fn of_core(core: &multicast::Core, now: multicast::Time) -> GroupStatus {
    let status = core.status();
    let role = match status.role {
        RoleName::Follower => "follower",
        RoleName::Candidate => "candidate",
        RoleName::Recovering => "recovering",
        RoleName::Primary => "primary",
    };
    let lag =
        status.followers.iter().map(|follower| (follower.replica.0, status.last.0.saturating_sub(follower.matched.0)));
    GroupStatus {
        group: status.group.0,
        role: role.into(),
        primary: status.primary.map(|primary| primary.0),
        ballot_round: status.promised.round,
        ballot_owner: status.promised.owner.map(|owner| owner.0),
        last_index: status.last.0,
        committed_index: status.committed.0,
        applied_index: status.applied.0,
        lag: lag.collect(),
        unfinished: core.unfinished().iter().map(|unfinished| of_unfinished(unfinished, now)).collect(),
        sessions: core.order().sessions().count(),
        ..GroupStatus::default()
    }
}

fn of_unfinished(unfinished: &Unfinished, now: multicast::Time) -> UnfinishedStatus {
    let mut waiting_for = Vec::new();
    let mut stages = Vec::new();
    for wait in &unfinished.waits_for {
        let (stage, group) = match wait {
            Wait::OwnLog => ("own log".to_owned(), None),
            Wait::Timestamp(group) => ("timestamp".to_owned(), Some(group)),
            Wait::Conflict(id) => (format!("conflict with {id}"), None),
            Wait::Contribution(group) => ("contribution".to_owned(), Some(group)),
            Wait::Close(group) => ("close".to_owned(), Some(group)),
        };
        waiting_for.extend(group.map(|group| group.0));
        if !stages.contains(&stage) {
            stages.push(stage);
        }
    }
    UnfinishedStatus {
        command: unfinished.id.to_string(),
        destinations: unfinished.groups.iter().map(|group| group.0).collect(),
        stage: stages.join(", "),
        waiting_for,
        locks_keys: unfinished.locks_keys,
        elapsed_ms: now.ms_since(unfinished.since),
    }
}
