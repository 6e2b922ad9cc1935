//! A GlobalFS node: the replicas of several groups over one write-ahead log and one state store, the server that answers
//! clients' updates and reads, and the streams that keep clients' caches right.
//!
//! * [`Node`], [`NodeConfig`], [`NodeStatus`]: all that a process needs to run one.
//! * `storage`: the log shared by the node's groups, and RocksDB (named nowhere else).
//! * `group`: one thread per replica that owns the ordering core and the namespace.
//! * `server`: peers' and clients' channels, sessions, reads, invalidation streams.

pub mod bare;
pub mod config;
mod copy;
pub mod error;
pub mod evidence;
pub mod inspect;
pub mod status;

mod clock;
mod collector;
mod group;
mod members;
mod node;
mod nodes;
mod recovery;
mod replicas;
mod server;
mod storage;

pub use collector::{BlobDeleter, CollectorTimes, Deleted};
pub use config::{FirstStart, GroupInfo, Limits, NodeConfig, NodeInfo, Timeouts};
pub use error::{Error, ErrorClass, Result, STATE_IS_DAMAGED};
pub use evidence::Evidence;
pub use node::Node;
pub use status::{
    CollectorStatus, CopyStatus, GroupStatus, MemberStatus, NodeStatus, PeerStatus, SilentGroup, StorageStatus,
    UnfinishedStatus,
};
pub use storage::disk::{Disk, DiskFile, RealDisk};
pub use storage::folder::{FolderLock, INITIALISE_MARKER};

/// A number that nobody can foresee.
pub(crate) fn random_u64() -> u64 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    RandomState::new().build_hasher().finish()
}
