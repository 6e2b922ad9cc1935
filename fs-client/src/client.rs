//! The tree by paths, without a mount: for the command line, for tests, for programs.

use bytes::Bytes;
use metadata::read::ListEntry;
use metadata::types::Attr;
use multicast::ids::{GroupId, ReplicaId, VectorClock};

use crate::config::ClientConfig;
use crate::error::{Error, Result};

/// A client of one cluster: sessions, caches, buffers. Acts as user 0. Cheap to clone; [`Client::close`] ends all clones.
#[derive(Clone, Debug)]
pub struct Client {
    _config: std::sync::Arc<ClientConfig>,
}

/// A directory whose placement differs from its parent's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placed {
    /// Absolute path.
    pub path: String,
    /// Where its children are homed.
    pub placement: GroupId,
    /// Where the directory itself lives.
    pub home: GroupId,
}

/// What [`Client::explain`] finds out about a path: the facts, from which `globalfs explain` tells costs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// The inode, if the path exists.
    pub attr: Option<Attr>,
    /// The directory that holds (or would hold) the last name.
    pub parent: Attr,
    /// The groups whose state a lookup from the root passes, in order, each once.
    pub lookup_groups: Vec<GroupId>,
    /// The groups that a create or unlink of the last name involves.
    pub name_groups: Vec<GroupId>,
    /// The groups that a write, chmod or truncate involves.
    pub write_groups: Vec<GroupId>,
}

impl Client {
    /// Connects lazily: succeeds without any node being up. Must be called inside a tokio runtime. Without a `store`
    /// files that are not inline cannot be read or written.
    pub fn connect(
        config: ClientConfig,
        endpoint: net::Endpoint,
        store: Option<datastore::BlobStore>,
    ) -> Result<Client> {
        config.check()?;
        let _ = (endpoint, store);
        Ok(Client { _config: std::sync::Arc::new(config) })
    }

    /// Waits until the root directory answers.
    pub async fn ready(&self) -> Result<()> {
        Err(Error::Closing)
    }

    /// An inode by its absolute path; symlinks are not followed.
    pub async fn stat(&self, path: &str) -> Result<Attr> {
        let _ = path;
        Err(Error::Closing)
    }

    /// Makes a directory; `placement` overrides what it would inherit.
    pub async fn mkdir(&self, path: &str, mode: u16, placement: Option<GroupId>) -> Result<Attr> {
        let _ = (path, mode, placement);
        Err(Error::Closing)
    }

    /// A directory's entries.
    pub async fn read_dir(&self, path: &str) -> Result<Vec<ListEntry>> {
        let _ = path;
        Err(Error::Closing)
    }

    /// Creates or replaces a file's content. Durable when it returns.
    pub async fn write_file(&self, path: &str, content: &[u8]) -> Result<Attr> {
        let _ = (path, content);
        Err(Error::Closing)
    }

    /// A file's content.
    pub async fn read_file(&self, path: &str) -> Result<Bytes> {
        let _ = path;
        Err(Error::Closing)
    }

    /// rename(2).
    pub async fn rename(&self, from: &str, to: &str) -> Result<()> {
        let _ = (from, to);
        Err(Error::Closing)
    }

    /// unlink(2), or rmdir(2) of a directory.
    pub async fn remove(&self, path: &str) -> Result<()> {
        let _ = path;
        Err(Error::Closing)
    }

    /// Places a directory on a group: what is created below it from now on lives there. With `move_content` what is
    /// there already follows in the background of this call; returns how many inodes were moved.
    pub async fn set_placement(&self, path: &str, group: GroupId, move_content: bool) -> Result<u64> {
        let _ = (path, group, move_content);
        Err(Error::Closing)
    }

    /// Directories placed otherwise than their parents, at most `depth` levels below the root.
    pub async fn placements(&self, depth: usize) -> Result<Vec<Placed>> {
        let _ = depth;
        Err(Error::Closing)
    }

    /// The facts behind `globalfs explain`.
    pub async fn explain(&self, path: &str) -> Result<Explanation> {
        let _ = path;
        Err(Error::Closing)
    }

    /// A node's status document (JSON).
    pub async fn node_status(&self, node: ReplicaId) -> Result<Bytes> {
        let _ = node;
        Err(Error::Closing)
    }

    /// What this client has seen: hand it to another one to make it see the same.
    pub fn clock(&self) -> VectorClock {
        VectorClock::new()
    }

    /// Makes all later reads see at least what `clock` has seen.
    pub async fn await_clock(&self, clock: &VectorClock) -> Result<()> {
        let _ = clock;
        Err(Error::Closing)
    }

    /// Flushes, closes sessions and connections; ends within the configured time.
    pub async fn close(&self) -> Result<()> {
        Ok(())
    }
}
