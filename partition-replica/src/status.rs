//! What a node tells people about itself. Serializes to JSON; fields are only added.

use std::collections::BTreeMap;

use multicast::core::{RoleName, Unfinished, Wait};
use multicast::membership::MemberRole;
use serde::{Deserialize, Serialize};

use crate::storage::wal::KeptBy;

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
    /// Collection of unreferenced blobs of the groups whose primary is here, once it has begun.
    #[serde(default)]
    pub collector: Option<CollectorStatus>,
}

/// Collection of blobs that nothing refers to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CollectorStatus {
    /// Blobs that wait for their deletion (more may wait behind those).
    pub waiting: u64,
    /// Blobs deleted since the start.
    pub collected: u64,
    /// Blobs deleted that were uploaded and never referred to, since the start.
    pub strays: u64,
    /// Why the last round did not delete what it should.
    pub problem: Option<String>,
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
    /// Bytes of log entries that the log itself keeps in memory; what the ordering core keeps is not counted.
    pub log_cache_bytes: u64,
    /// RocksDB's block cache, in bytes.
    pub state_cache_bytes: u64,
    /// RocksDB's write buffers, in bytes.
    pub state_buffer_bytes: u64,
    /// Bytes of state on disk.
    pub state_bytes: u64,
    /// The process's resident memory, in bytes.
    pub resident_bytes: u64,
    /// Bytes of log segments from which on it is too long.
    #[serde(default)]
    pub log_bytes_max: u64,
    /// The group whose entries keep the oldest segment, if there are more segments than needed.
    #[serde(default)]
    pub log_kept_by: Option<u16>,
    /// The log is too long: why, and what to do.
    #[serde(default)]
    pub log_problem: Option<String>,
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
    /// `primary`, `recovering` (primary, not up to date yet), `follower`, `candidate` or `quarantined`; `late` if its thread
    /// has not said in time, and then nothing else is known.
    pub role: String,
    /// The primary as far as known: its node's number.
    pub primary: Option<u32>,
    /// The ballot's round.
    pub ballot_round: u64,
    /// The ballot's owner.
    pub ballot_owner: Option<u32>,
    /// The voters, by node number.
    pub voters: Vec<u32>,
    /// All members by this replica's log, voters among them.
    #[serde(default)]
    pub members: Vec<MemberStatus>,
    /// Copies of the state under way.
    #[serde(default)]
    pub copies: Vec<CopyStatus>,
    /// Which of the node's disks this is: 0 is that of the founding, others are in hexadecimal.
    #[serde(default)]
    pub incarnation: String,
    /// Last log entry here.
    pub last_index: u64,
    /// The round of its ballot.
    #[serde(default)]
    pub last_ballot_round: u64,
    /// The owner of its ballot.
    #[serde(default)]
    pub last_ballot_owner: Option<u32>,
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
    /// Digests at recent indexes that are multiples of [`replica::DIGEST_INTERVAL`], for comparison between voters.
    pub digests: BTreeMap<u64, String>,
    /// Unfinished multi-group commands.
    pub unfinished: Vec<UnfinishedStatus>,
    /// On the primary: commands of this group alone that wait for one of those, the oldest …
    #[serde(default)]
    pub held: Vec<UnfinishedStatus>,
    /// … of so many.
    #[serde(default)]
    pub held_count: usize,
    /// On the primary: groups that do not answer. New commands with them are refused, so they wait where they come from.
    #[serde(default)]
    pub silent_groups: Vec<SilentGroup>,
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
    /// Deleted inodes and closed sessions of which something is still to be removed, in steps.
    #[serde(default)]
    pub removals_left: u64,
    /// Its state is not its group's, so it does nothing any more: why.
    #[serde(default)]
    pub quarantine: Option<String>,
}

/// A group that does not answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SilentGroup {
    /// Its number.
    pub group: u16,
    /// For how long, in ms.
    pub elapsed_ms: u64,
}

/// A member of a group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberStatus {
    /// Its node's number.
    pub node: u32,
    /// `voter`, `learner` or `joining` (a learner that is to be a voter).
    pub role: String,
    /// Which of the node's disks.
    pub incarnation: String,
}

/// A copy of a replica's state on its way.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyStatus {
    /// The other node's number.
    pub peer: u32,
    /// From here to there; else from there to here.
    pub is_sent: bool,
    /// Bytes so far.
    pub bytes: u64,
    /// Rows so far.
    pub rows: u64,
    /// Of the rows, by estimate.
    pub percent: u64,
}

/// A command that is under way.
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
    /// Whose it is: the session …
    #[serde(default)]
    pub session: String,
    /// … the client by its certificate (a mount's is its region's), if it was heard of here …
    #[serde(default)]
    pub client: Option<String>,
    /// … and what it says of itself: the machine, the mount point, the process.
    #[serde(default)]
    pub label: Option<String>,
}

/// A replica tells of so many commands that wait for others.
const HELD_MAX: usize = 256;

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
    let members = status.membership.members.iter().map(|member| MemberStatus {
        node: member.replica.0,
        role: role_of(member.role).into(),
        incarnation: member.incarnation.to_string(),
    });
    let unfinished = core.unfinished();
    let held = core.held();
    GroupStatus {
        voters: status.membership.voters().map(|voter| voter.replica.0).collect(),
        members: members.collect(),
        incarnation: status.incarnation.to_string(),
        group: status.group.0,
        role: role.into(),
        primary: status.primary.map(|primary| primary.0),
        ballot_round: status.promised.round,
        ballot_owner: status.promised.owner.map(|owner| owner.0),
        last_index: status.last.0,
        last_ballot_round: status.last_ballot.round,
        last_ballot_owner: status.last_ballot.owner.map(|owner| owner.0),
        committed_index: status.committed.0,
        applied_index: status.applied.0,
        lag: lag.collect(),
        held_count: held.len(),
        held: held.iter().take(HELD_MAX).map(|held| of_held(held, &unfinished, now)).collect(),
        unfinished: unfinished.iter().map(|unfinished| of_unfinished(unfinished, now)).collect(),
        silent_groups: status
            .silent_groups
            .iter()
            .map(|&(group, since)| SilentGroup { group: group.0, elapsed_ms: now.ms_since(since) })
            .collect(),
        sessions: core.order().sessions().count(),
        ..GroupStatus::default()
    }
}

fn role_of(role: MemberRole) -> &'static str {
    match role {
        MemberRole::Voter => "voter",
        MemberRole::Learner => "learner",
        MemberRole::Joining => "joining",
    }
}

/// It waits for those groups that the one before it waits for.
fn of_held(held: &Unfinished, unfinished: &[Unfinished], now: multicast::Time) -> UnfinishedStatus {
    let before = held.waits_for.iter().find_map(|wait| match wait {
        Wait::Conflict(id) => unfinished.iter().find(|unfinished| unfinished.id == *id),
        _ => None,
    });
    let waiting_for = before.map(|before| of_unfinished(before, now).waiting_for).unwrap_or_default();
    UnfinishedStatus { waiting_for, ..of_unfinished(held, now) }
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
        session: unfinished.id.session.to_string(),
        client: None,
        label: None,
    }
}

/// Why the log is as long as it is, for people.
pub(crate) fn why_kept(kept: KeptBy, groups: &[GroupStatus], node_name: impl Fn(u32) -> String) -> String {
    let from = kept.from.0;
    let Some(group) = groups.iter().find(|group| group.group == kept.group.0) else {
        return format!("group {} needs its entries from {from} on", kept.group);
    };
    let name = if group.name.is_empty() { kept.group.to_string() } else { format!("{:?}", group.name) };
    let most = group.lag.iter().max_by_key(|(_, lag)| **lag).filter(|(_, lag)| **lag > 0);
    let why = match (most, group.primary) {
        _ if group.flushed_index <= from && group.flushed_index < group.applied_index => {
            "its state has not been flushed since".to_owned()
        }
        (Some((&voter, lag)), _) => {
            format!("its voter {} lacks {lag} entries: start that node, or look at its log", node_name(voter))
        }
        (None, Some(primary)) if group.role != "primary" => {
            format!("its primary {} has not said that all voters have them: look there", node_name(primary))
        }
        (None, Some(_)) => "its entries take most of the room".to_owned(),
        (None, None) => "it has no primary".to_owned(),
    };
    format!("group {name} needs its entries from {from} on; {why}")
}

#[cfg(test)]
mod tests {
    use multicast::ids::{GroupId, LogIndex};

    use super::*;

    #[test]
    fn log_that_is_kept_for_a_dead_voter_names_it() {
        let group = GroupStatus {
            group: 2,
            name: "eu".into(),
            role: "primary".into(),
            primary: Some(1),
            flushed_index: 100,
            applied_index: 100,
            lag: BTreeMap::from([(2, 0), (3, 93)]),
            ..GroupStatus::default()
        };
        let kept = KeptBy { group: GroupId(2), from: LogIndex(7), bytes: 1 };
        let said = why_kept(kept, std::slice::from_ref(&group), |number| format!("node-{number}"));
        assert!(said.contains("\"eu\"") && said.contains("node-3 lacks 93 entries"), "{said}");
        let follower = GroupStatus { role: "follower".into(), lag: BTreeMap::new(), ..group };
        let said = why_kept(kept, &[follower], |number| format!("node-{number}"));
        assert!(said.contains("primary node-1"), "{said}");
    }
}
