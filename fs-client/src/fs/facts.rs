//! What refused updates have taught one operation, so that its next try names the right things.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use metadata::outcome::{Fact, OpError};
use metadata::types::{BlobId, Dirent, InodeId, NodeRef};
use multicast::ids::GroupId;

use crate::errno::Errno;
use crate::fs::FsResult;
use crate::table::Table;

/// Tries of one operation at once; then it pauses between them.
const EAGER_TRIES: u32 = 3;

/// See the module.
#[derive(Debug)]
pub struct Facts {
    names: BTreeMap<(InodeId, Bytes), Option<Dirent>>,
    parents: BTreeMap<InodeId, InodeId>,
    placements: BTreeMap<InodeId, GroupId>,
    homes: BTreeMap<InodeId, GroupId>,
    /// Something about an inode's attributes was in the way: for a write, that the file does not fit inline.
    pub attr_refused: bool,
    /// A blob may not be referred to any more, nor may earlier ones of its writer: upload or copy the bytes.
    pub blob_gone: Option<BlobId>,
    tries: u32,
    deadline: Instant,
}

impl Facts {
    /// Nothing learned; gives up after `patience`.
    pub fn new(patience: Duration) -> Facts {
        Facts {
            names: BTreeMap::new(),
            parents: BTreeMap::new(),
            placements: BTreeMap::new(),
            homes: BTreeMap::new(),
            attr_refused: false,
            blob_gone: None,
            tries: 0,
            deadline: Instant::now() + patience,
        }
    }

    /// True in the first try: what is cached may be used.
    pub fn is_first_try(&self) -> bool {
        self.tries == 0
    }

    /// True when there is no more time.
    pub fn is_late(&self) -> bool {
        Instant::now() >= self.deadline
    }

    /// Learns from a refusal, or gives the application's answer.
    pub async fn learn(&mut self, table: &Table, error: OpError) -> FsResult<()> {
        match error {
            OpError::Stale(facts) => facts.into_iter().for_each(|fact| self.note(fact)),
            OpError::Moved { ino, home } => {
                table.moved(ino, home);
                self.homes.insert(ino, home);
            }
            OpError::Errno(_) | OpError::Exists(_) | OpError::LockHeld { .. } => return Err(Errno::from(&error)),
        }
        self.tries += 1;
        if Instant::now() >= self.deadline {
            return Err(Errno::ETIMEDOUT);
        }
        if self.tries > EAGER_TRIES {
            let pause = Duration::from_millis(1 << self.tries.min(8));
            tokio::time::sleep(pause).await;
        }
        Ok(())
    }

    fn note(&mut self, fact: Fact) {
        match fact {
            Fact::Name { parent, name, dirent } => {
                self.names.insert((parent, Bytes::copy_from_slice(&name)), dirent);
            }
            Fact::Parent { dir, parent } => {
                self.parents.insert(dir, parent);
            }
            Fact::Placement { dir, placement } => {
                self.placements.insert(dir, placement);
            }
            Fact::BlobGone(blob) => self.blob_gone = Some(blob),
            Fact::Attr(attr) => {
                self.homes.insert(attr.ino, attr.home);
                self.attr_refused = true;
            }
        }
    }

    /// The inode where it was last heard of.
    pub fn at_home(&self, node: NodeRef) -> NodeRef {
        NodeRef { home: self.homes.get(&node.ino).copied().unwrap_or(node.home), ..node }
    }

    /// What a name stands for, if that was told.
    pub fn name(&self, parent: InodeId, name: &Bytes) -> Option<Option<Dirent>> {
        self.names.get(&(parent, name.clone())).copied()
    }

    /// A directory's parent, if that was told.
    pub fn parent(&self, dir: InodeId) -> Option<InodeId> {
        self.parents.get(&dir).copied()
    }

    /// A directory's placement, if that was told.
    pub fn placement(&self, dir: InodeId) -> Option<GroupId> {
        self.placements.get(&dir).copied()
    }
}
