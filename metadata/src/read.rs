//! Reads: answered by one replica of one group from its own state.

use bytes::Bytes;
use multicast::command::Key;
use multicast::ids::SessionId;
use serde::{Deserialize, Serialize};

use crate::footprint::key_inode;
use crate::op::{LockKind, LockRange};
use crate::outcome::OpError;
use crate::types::{Attr, Content, Dirent, InodeId};

/// A question to a replica of the group that holds the inode named first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReadOp {
    /// What a name stands for, with the inode if it lives in this group.
    Lookup {
        /// The directory.
        parent: InodeId,
        /// The name.
        name: Bytes,
    },
    /// An inode.
    GetAttr {
        /// Which.
        ino: InodeId,
    },
    /// A stretch of a directory, in the order of its cookies.
    ReadDir {
        /// The directory.
        dir: InodeId,
        /// Entries after this cookie; 0 starts.
        after: u64,
        /// At most so many.
        limit: u32,
        /// Also the attributes of inodes that live in this group.
        plus: bool,
    },
    /// A symlink's target.
    ReadLink {
        /// Which.
        ino: InodeId,
    },
    /// An inode and its content in a range: inline bytes, or extents.
    Content {
        /// Which.
        ino: InodeId,
        /// From here.
        offset: u64,
        /// So many bytes.
        len: u64,
    },
    /// One xattr's value.
    GetXattr {
        /// Which inode.
        ino: InodeId,
        /// Full name.
        name: Bytes,
    },
    /// All xattrs' names.
    ListXattr {
        /// Which inode.
        ino: InodeId,
    },
    /// The chain of parents from `dir` as far as it lives in this group.
    Ancestors {
        /// The directory.
        dir: InodeId,
    },
    /// F_GETLK: a lock that would be in the way.
    TestLock {
        /// Which inode.
        ino: InodeId,
        /// The owner within the session.
        owner: u64,
        /// flock(2)'s space.
        flock: bool,
        /// The range.
        range: LockRange,
        /// What one would like to hold.
        kind: LockKind,
        /// The asker.
        session: SessionId,
    },
    /// The group's totals for statfs(2).
    Usage,
    /// Blobs that nothing refers to any more, for the collector, oldest first.
    Garbage {
        /// At most so many.
        limit: u32,
    },
    /// Which of these blobs extents here refer to, for the collector; also those that are garbage here already.
    BlobsInUse {
        /// At most [`BATCH_MAX`](crate::validate::BATCH_MAX).
        blobs: Vec<crate::types::BlobId>,
    },
}

/// One entry of a directory listing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListEntry {
    /// Stable for the life of the entry and unique in its directory; never 0, 1 or 2.
    pub cookie: u64,
    /// The name.
    pub name: Bytes,
    /// What it stands for.
    pub dirent: Dirent,
    /// The inode, if asked for and at home here.
    pub attr: Option<Box<Attr>>,
}

/// The answer to a [`ReadOp`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReadAnswer {
    /// To `Lookup`: nothing has that name (`None`), or what it stands for, and its inode if at home here.
    Lookup(Option<(Dirent, Option<Box<Attr>>)>),
    /// To `GetAttr`.
    Attr(Box<Attr>),
    /// To `ReadDir`.
    Entries {
        /// By cookie.
        entries: Vec<ListEntry>,
        /// No further entries.
        end: bool,
    },
    /// To `ReadLink`.
    Target(Bytes),
    /// To `Content`.
    Content {
        /// The inode.
        attr: Box<Attr>,
        /// Its bytes in the range.
        content: Content,
    },
    /// To `GetXattr`.
    Xattr(Bytes),
    /// To `ListXattr`.
    Xattrs(Vec<Bytes>),
    /// To `Ancestors`: (directory, its parent), from the one asked for upwards; ends with the root or with the first
    /// directory whose parent lives elsewhere.
    Ancestors(Vec<(Dirent, InodeId)>),
    /// To `TestLock`: the first one in the way.
    Lock(Option<(SessionId, u32, LockKind, LockRange)>),
    /// To `Usage`.
    Usage {
        /// Inodes at home here.
        inodes: u64,
        /// Bytes that they hold.
        bytes: u64,
    },
    /// To `Garbage`.
    Garbage(Vec<crate::types::BlobId>),
    /// To `BlobsInUse`.
    BlobsInUse {
        /// Those that something refers to.
        used: Vec<crate::types::BlobId>,
        /// Those that nothing refers to any more: they are or will be collected from here.
        garbage: Vec<crate::types::BlobId>,
        /// How many files with blobs have departed and arrived.
        moves: crate::rows::Moves,
    },
}

/// The result of a read. Of [`OpError`] only `Errno` and `Moved` occur.
pub type ReadResult = Result<ReadAnswer, OpError>;

impl ReadAnswer {
    /// What the answer shows beyond what was asked for: attributes of inodes that came with their names. Each has a key of
    /// its own, to be noted for invalidation beside [`ReadOp::keys`].
    #[must_use]
    pub fn attached(&self) -> Vec<Key> {
        match self {
            ReadAnswer::Lookup(Some((dirent, Some(_)))) => vec![key_inode(dirent.ino)],
            ReadAnswer::Entries { entries, .. } => {
                let with_attr = entries.iter().filter(|entry| entry.attr.is_some());
                with_attr.map(|entry| key_inode(entry.dirent.ino)).collect()
            }
            ReadAnswer::Lookup(_)
            | ReadAnswer::Attr(_)
            | ReadAnswer::Target(_)
            | ReadAnswer::Content { .. }
            | ReadAnswer::Xattr(_)
            | ReadAnswer::Xattrs(_)
            | ReadAnswer::Ancestors(_)
            | ReadAnswer::Lock(_)
            | ReadAnswer::Usage { .. }
            | ReadAnswer::Garbage(_)
            | ReadAnswer::BlobsInUse { .. } => Vec::new(),
        }
    }

    /// Drops attached attributes of which `hidden` says so: an unfinished update that the reader may know of changes them.
    pub fn detach(&mut self, hidden: impl Fn(Key) -> bool) {
        let hide = |dirent: &Dirent, attr: &mut Option<Box<Attr>>| {
            if attr.is_some() && hidden(key_inode(dirent.ino)) {
                *attr = None;
            }
        };
        match self {
            ReadAnswer::Lookup(Some((dirent, attr))) => hide(dirent, attr),
            ReadAnswer::Entries { entries, .. } => {
                for entry in entries {
                    hide(&entry.dirent, &mut entry.attr);
                }
            }
            ReadAnswer::Lookup(None)
            | ReadAnswer::Attr(_)
            | ReadAnswer::Target(_)
            | ReadAnswer::Content { .. }
            | ReadAnswer::Xattr(_)
            | ReadAnswer::Xattrs(_)
            | ReadAnswer::Ancestors(_)
            | ReadAnswer::Lock(_)
            | ReadAnswer::Usage { .. }
            | ReadAnswer::Garbage(_)
            | ReadAnswer::BlobsInUse { .. } => {}
        }
    }
}
