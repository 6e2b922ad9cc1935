//! What a client is told at its start. Parsing files is the caller's business; here the values are checked.

use std::collections::BTreeSet;
use std::time::Duration;

use multicast::ids::{GroupId, ReplicaId};

use crate::error::{Error, Result};

/// One node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeInfo {
    /// Its number: the identity of its replicas.
    pub number: ReplicaId,
    /// Its name, as in its certificate.
    pub name: String,
    /// Its region.
    pub region: String,
    /// `host:port` where it listens.
    pub address: String,
}

/// One group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupInfo {
    /// Its number.
    pub id: GroupId,
    /// Its name.
    pub name: String,
    /// The nodes that it was founded with, the preferred primary first. They may be none any more.
    pub voters: Vec<ReplicaId>,
}

/// Bounds of one client; each names what happens at the bound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes written and not yet uploaded or sent, over all files; writers wait at the bound. Default 64 MiB.
    pub dirty_bytes_max: usize,
    /// Entries of the metadata cache; at the bound the least used go. About 300 bytes each. Default 200,000.
    pub cache_entries_max: usize,
    /// Updates under way in each group; further ones wait. Default 1,024.
    pub updates_max: usize,
    /// Reads under way in each group; further ones wait. Default 4,096.
    pub reads_max: usize,
    /// Files up to this length travel in the metadata. The nodes' setting must not be smaller. Default 4 KiB.
    pub inline_bytes_max: u32,
    /// Changes in one write command; a larger flush is sent in several. Default 512.
    pub changes_max: usize,
    /// Blobs fetched ahead of a sequential reader. Default 3.
    pub read_ahead_blobs: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            dirty_bytes_max: 64 << 20,
            cache_entries_max: 200_000,
            updates_max: 1024,
            reads_max: 4096,
            inline_bytes_max: 4096,
            changes_max: 512,
            read_ahead_blobs: 3,
        }
    }
}

/// Times of one client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// An operation that is not answered for so long fails with `ETIMEDOUT`, unless it is to wait. Default 30 s.
    pub deadline: Duration,
    /// A request that is not answered for so long is sent again, a read to another replica. Default 8 s.
    pub attempt: Duration,
    /// Sessions are kept alive so often. Default 10 s.
    pub keep_alive: Duration,
    /// Written data go out after so long even if nobody asks. Default 5 s.
    pub flush_after: Duration,
    /// At the end, so long may flushing and closing take. Default 5 s.
    pub close: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Timeouts {
            deadline: Duration::from_secs(30),
            attempt: Duration::from_secs(8),
            keep_alive: Duration::from_secs(10),
            flush_after: Duration::from_secs(5),
            close: Duration::from_secs(5),
        }
    }
}

/// How new an answer must be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Consistency {
    /// It has what this client has seen, and all that led to it; it comes from memory or the nearest replica.
    #[default]
    Causal,
    /// It has everything that was acknowledged anywhere before the question: asked of the group's primary, which asks its
    /// quorum. Nothing is answered from memory.
    Linearizable,
}

/// What becomes of operations that need a group that cannot be reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnCut {
    /// They wait, until the group is back or the one who asked is interrupted.
    Block,
    /// They fail at the deadline, and at once where the group has been silent for that long.
    #[default]
    Error,
}

/// As long as anybody can wait.
const FOREVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// A client's view of the cluster and its bounds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientConfig {
    /// The region where this client runs.
    pub region: String,
    /// All nodes.
    pub nodes: Vec<NodeInfo>,
    /// All groups.
    pub groups: Vec<GroupInfo>,
    /// For people who look at sessions: which mount on which host.
    pub label: String,
    /// Bounds.
    pub limits: Limits,
    /// Times.
    pub timeouts: Timeouts,
    /// How new answers must be.
    pub consistency: Consistency,
    /// What becomes of operations that need a group that cannot be reached.
    pub on_cut: OnCut,
}

impl ClientConfig {
    /// The defaults for a cluster.
    #[must_use]
    pub fn new(region: impl Into<String>, nodes: Vec<NodeInfo>, groups: Vec<GroupInfo>) -> ClientConfig {
        ClientConfig {
            region: region.into(),
            nodes,
            groups,
            label: String::new(),
            limits: Limits::default(),
            timeouts: Timeouts::default(),
            consistency: Consistency::default(),
            on_cut: OnCut::default(),
        }
    }

    /// How long an operation of an application may wait for groups.
    #[must_use]
    pub fn patience(&self) -> Duration {
        match self.on_cut {
            OnCut::Block => FOREVER,
            OnCut::Error => self.timeouts.deadline,
        }
    }

    /// Refuses what cannot work.
    pub fn check(&self) -> Result<()> {
        let fail = |why: String| Err(Error::Config(why));
        let numbers: BTreeSet<ReplicaId> = self.nodes.iter().map(|node| node.number).collect();
        if numbers.len() != self.nodes.len() {
            return fail("two nodes share a number".into());
        }
        let mut ids = BTreeSet::new();
        for group in &self.groups {
            if !ids.insert(group.id) {
                return fail(format!("group number {} is given twice", group.id));
            }
            if group.voters.is_empty() {
                return fail(format!("group {} has no voters", group.name));
            }
        }
        if !ids.contains(&GroupId::GLOBAL) {
            return fail("there is no group 0, which holds the root directory".into());
        }
        if self.limits.dirty_bytes_max < 2 * metadata::types::BLOB_BYTES_MAX as usize {
            return fail("the write buffer must hold at least two blobs (8 MiB)".into());
        }
        Ok(())
    }
}

/// How a mount looks to the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountOptions {
    /// The source that `mount` shows.
    pub source: String,
    /// Other users than the one who mounts may use it.
    pub allow_other: bool,
    /// Nothing may be changed.
    pub read_only: bool,
    /// Device nodes work.
    pub dev: bool,
    /// Set-id bits work.
    pub suid: bool,
    /// Programs may be executed.
    pub exec: bool,
    /// Threads that take requests from the kernel. Default 2.
    pub threads: usize,
    /// What the kernel may answer by itself.
    pub kernel_cache: KernelCache,
}

/// What the kernel may keep and answer without asking, until it is told that others have changed it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KernelCache {
    /// File pages only.
    Off,
    /// Attributes too.
    #[default]
    Attributes,
    /// Names too (Linux 6.16 or newer). When others change a name that was looked up, the kernel drops *all* names of the
    /// mount, and with them whatever is mounted on top of its directories.
    Names,
}

impl Default for MountOptions {
    fn default() -> Self {
        MountOptions {
            source: "globalfs".into(),
            allow_other: true,
            read_only: false,
            dev: true,
            suid: true,
            exec: true,
            threads: 2,
            kernel_cache: KernelCache::default(),
        }
    }
}

/// Everything that [`crate::Mount`] needs to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountConfig {
    /// The cluster and the client's bounds.
    pub client: ClientConfig,
    /// The kernel's side.
    pub options: MountOptions,
}
