//! What a node is told at its start. Parsing files is the caller's business; here the values are checked.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use multicast::ids::{GroupId, ReplicaId};

use crate::error::{Error, Result};

/// What becomes of a data directory without data. The default, to refuse it, is right for all starts but the first: a voter that
/// has lost its disk has forgotten what it promised, and must not pass for the one that promised it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FirstStart {
    /// It is refused, unless it has a file named [`INITIALISE_MARKER`](crate::INITIALISE_MARKER): then the cluster is being
    /// founded.
    #[default]
    No,
    /// The cluster is being founded, and this node has never run: its replicas are the voters that the configuration names.
    /// A lie here makes a voter of one that has forgotten what it promised.
    Founding,
    /// The node's disk is new, its groups may exist for long: its replicas are others than those on the disk before. They
    /// count once the groups have taken them in.
    NewDisk,
}

/// One node's view of the cluster.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// This node's number: with its disk's incarnation, the identity of all its replicas.
    pub number: ReplicaId,
    /// Where log and state live.
    pub data_dir: PathBuf,
    /// Whether a data directory that is empty or missing may be made this node's.
    pub first_start: FirstStart,
    /// UDP address to listen on.
    pub listen: SocketAddr,
    /// Names the cluster for ever; data of another cluster are refused.
    pub cluster_id: String,
    /// All nodes of the cluster, this one included.
    pub nodes: Vec<NodeInfo>,
    /// All groups of the cluster, those without a replica here included.
    pub groups: Vec<GroupInfo>,
    /// What the volume starts with. Counts only on a group's first start, and must then be equal on all nodes.
    pub genesis: metadata::namespace::Genesis,
    /// This node's certificate and key; its name must be this node's.
    pub identity: net::Identity,
    /// Emulated distances, if any.
    pub wan: Option<std::sync::Arc<net::wan::Wan>>,
    /// Bounds.
    pub limits: Limits,
    /// Times.
    pub timeouts: Timeouts,
}

/// One node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeInfo {
    /// Its number.
    pub number: ReplicaId,
    /// Its name, as in its certificate.
    pub name: String,
    /// `host:port` where it listens.
    pub address: String,
    /// Its region.
    pub region: String,
}

/// One group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupInfo {
    /// Its number.
    pub id: GroupId,
    /// Its name.
    pub name: String,
    /// The nodes that it was founded with: 1, 3 or 5, the preferred primary first. They may be none any more.
    pub voters: Vec<ReplicaId>,
}

/// Bounds of one node; each names what happens at the bound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Memory for RocksDB's caches and write buffers in all, in bytes.
    pub state_memory_bytes: usize,
    /// Log entries kept in memory as long as some member lacks them, per group, in bytes; older ones are read from disk.
    pub log_cache_bytes: usize,
    /// One segment file of the log, in bytes; also its smallest unit of deletion.
    pub log_segment_bytes: u64,
    /// The log on disk, in bytes: beyond it status and log tell why, for what keeps it (a voter that is away) must not be cut
    /// off without being asked.
    pub log_bytes_max: u64,
    /// One group's log on disk, in bytes and in entries: beyond it its oldest part goes although a voter may lack it, which
    /// then gets a copy of the state.
    pub group_log_bytes_max: u64,
    /// See above.
    pub group_log_entries_max: u64,
    /// Clients at a time; further ones are refused.
    pub clients_max: usize,
    /// Requests of one client under way; at the bound its channel is not read any further.
    pub client_requests_max: usize,
    /// Bytes of one client's requests under way; as above.
    pub client_request_bytes_max: usize,
    /// Frames queued to one client; at the bound it is disconnected.
    pub client_queue_frames_max: usize,
    /// Bytes queued to one client; as above.
    pub client_queue_bytes_max: usize,
    /// Keys noted per group that subscribed sessions may cache; at the bound the oldest half is invalidated.
    pub interest_keys_max: usize,
    /// Reads that wait for a replica to catch up, per group; further ones are answered `Behind`.
    pub parked_reads_max: usize,
    /// Submissions that wait for a group's thread; further ones are answered `Unavailable`.
    pub group_submissions_max: usize,
    /// Bytes of peers' messages that wait for a group's thread; further ones are dropped (peers repeat).
    pub group_message_bytes_max: usize,
    /// The members of a group compare their states at multiples of this log index. The same on all nodes.
    pub digest_interval: u64,
}

impl Limits {
    /// What the log itself keeps of each group's newest entries. Little: the ordering core has them in memory by itself as long
    /// as anybody may ask for them, and memory that is used again soon costs less than memory that is not.
    pub(crate) fn wal_cache_bytes(&self) -> usize {
        self.log_cache_bytes / 8
    }
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            state_memory_bytes: 64 << 20,
            log_cache_bytes: 8 << 20,
            log_segment_bytes: 32 << 20,
            log_bytes_max: 1 << 30,
            group_log_bytes_max: 4 << 30,
            group_log_entries_max: 16 << 20,
            clients_max: 1024,
            client_requests_max: 1024,
            client_request_bytes_max: 16 << 20,
            client_queue_frames_max: 16_384,
            client_queue_bytes_max: 32 << 20,
            interest_keys_max: 200_000,
            parked_reads_max: 4096,
            group_submissions_max: 8192,
            group_message_bytes_max: 64 << 20,
            digest_interval: replica::DIGEST_INTERVAL,
        }
    }
}

/// Times of one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// A follower that hears nothing from its primary for so long stands for election.
    pub election: Duration,
    /// An idle primary speaks up so often.
    pub heartbeat: Duration,
    /// What is unanswered between groups is repeated after so long.
    pub resend: Duration,
    /// A primary refuses new commands to a group that has been silent for so long.
    pub group_silence: Duration,
    /// A session that has not been kept alive for so long is expired.
    pub session_lease: Duration,
    /// A read waits so long for its replica to catch up, then is answered `Behind`.
    pub parked_read: Duration,
    /// State is flushed at least so often, so that the log can be cut.
    pub state_flush: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Timeouts {
            election: Duration::from_millis(600),
            heartbeat: Duration::from_millis(120),
            resend: Duration::from_millis(500),
            group_silence: Duration::from_secs(5),
            session_lease: Duration::from_secs(60),
            parked_read: Duration::from_secs(5),
            state_flush: Duration::from_secs(60),
        }
    }
}

/// The longest log record and as much of others.
const LOG_SEGMENT_BYTES_MIN: u64 = 24 << 20;
const LOG_SEGMENT_BYTES_MAX: u64 = 1 << 30;

impl NodeConfig {
    /// This node's own entry.
    pub fn node(&self) -> Result<&NodeInfo> {
        self.nodes
            .iter()
            .find(|node| node.number == self.number)
            .ok_or_else(|| Error::Config(format!("node {} is not among the cluster's nodes", self.number)))
    }

    /// The groups with a voter here.
    pub fn local_groups(&self) -> impl Iterator<Item = &GroupInfo> {
        self.groups.iter().filter(|group| group.voters.contains(&self.number))
    }

    pub(crate) fn check(&self) -> Result<()> {
        let me = self.node()?;
        let identity = self.identity.peer_name();
        if identity.role != net::Role::Node || identity.name != me.name {
            return Err(Error::Config(format!("the certificate is for {identity}, this node is {}", me.name)));
        }
        let problem = self.check_nodes().or_else(|| self.check_groups()).or_else(|| self.check_limits());
        problem.map_or(Ok(()), |problem| Err(Error::Config(problem)))
    }

    fn check_nodes(&self) -> Option<String> {
        let (mut numbers, mut names, mut addresses) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        for node in &self.nodes {
            if !numbers.insert(node.number) || !names.insert(&node.name) || !addresses.insert(&node.address) {
                return Some(format!("node {} shares its number, name or address with another", node.name));
            }
        }
        None
    }

    fn check_groups(&self) -> Option<String> {
        let mut seen = BTreeSet::new();
        for group in &self.groups {
            let voters: BTreeSet<_> = group.voters.iter().collect();
            if !seen.insert(group.id) {
                return Some(format!("group number {} is given twice", group.id));
            }
            if voters.len() != group.voters.len() || !matches!(voters.len(), 1 | 3 | 5) {
                return Some(format!("group {}: 1, 3 or 5 different voters are needed", group.name));
            }
        }
        if !seen.contains(&GroupId::GLOBAL) {
            return Some("there is no group 0, which holds the root directory".into());
        }
        None
    }

    fn check_limits(&self) -> Option<String> {
        let limits = &self.limits;
        if limits.log_segment_bytes < LOG_SEGMENT_BYTES_MIN || limits.log_segment_bytes > LOG_SEGMENT_BYTES_MAX {
            return Some("a log segment must have 24 MiB to 1 GiB".into());
        }
        if limits.state_memory_bytes < 8 << 20 {
            return Some("the state store needs at least 8 MiB of memory".into());
        }
        None
    }
}
