//! What executing an update gave: data, replicated, the same on every replica.

use multicast::ids::{GroupId, SessionId};
use serde::{Deserialize, Serialize};

use crate::op::{LockKind, LockRange};
use crate::types::{Attr, Dirent, InodeId};

/// A POSIX failure that the namespace itself decides. `fs-client` maps it to the platform's errno in one table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Errno {
    /// ENOENT.
    NotFound,
    /// EEXIST.
    Exists,
    /// ENOTDIR.
    NotDirectory,
    /// EISDIR.
    IsDirectory,
    /// ENOTEMPTY.
    NotEmpty,
    /// EPERM.
    NotPermitted,
    /// EACCES.
    AccessDenied,
    /// EINVAL.
    Invalid,
    /// ENAMETOOLONG.
    NameTooLong,
    /// EMLINK.
    TooManyLinks,
    /// EFBIG.
    FileTooBig,
    /// ENOSPC.
    NoSpace,
    /// EDQUOT.
    QuotaExceeded,
    /// ENODATA.
    NoXattr,
    /// E2BIG.
    TooBig,
    /// ERANGE.
    OutOfRange,
    /// EOPNOTSUPP.
    NotSupported,
    /// EAGAIN of a lock that another holds (never for a lagging replica).
    Locked,
    /// ESTALE: the inode is gone.
    StaleHandle,
    /// EBUSY.
    Busy,
    /// EIO: the payload could not be understood.
    Malformed,
    /// ENOLCK: too many byte-range locks on one inode.
    NoLocks,
}

/// Why an update changed nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum OpError {
    /// The answer for the application.
    Errno(Errno),
    /// EEXIST, with what is there.
    Exists(Dirent),
    /// The client named a state that is no more. Here are the facts; it asks again under a new sequence.
    Stale(Vec<Fact>),
    /// The inode lives elsewhere now.
    Moved {
        /// Which inode.
        ino: InodeId,
        /// Its home.
        home: GroupId,
    },
    /// A lock is in the way.
    LockHeld {
        /// Who holds it.
        session: SessionId,
        /// The holder's process.
        pid: u32,
        /// Its kind.
        kind: LockKind,
        /// Its range.
        range: LockRange,
    },
}

/// Something that the client had wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fact {
    /// What a name stands for (`None`: nothing).
    Name {
        /// The directory.
        parent: InodeId,
        /// The name.
        name: bytes::Bytes,
        /// What it stands for.
        dirent: Option<Dirent>,
    },
    /// A directory's parent.
    Parent {
        /// The directory.
        dir: InodeId,
        /// Its parent.
        parent: InodeId,
    },
    /// A directory's placement.
    Placement {
        /// The directory.
        dir: InodeId,
        /// Where its children are homed.
        placement: GroupId,
    },
    /// A shared blob is not referenced in the group: copy the bytes.
    BlobGone(crate::types::BlobId),
    /// An inode's link count or size rules out what was asked (such as moving an inode that has other names).
    Attr(Box<Attr>),
}

/// What an update did. Every group that took part answers alike, but for [`Done::directories`]. Attributes of inodes that live
/// elsewhere are those that travelled in the contributions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Done {
    /// Nothing to tell.
    Nothing,
    /// Created, linked, set, written, moved: the inode as it is now, and for an append the offset where it went.
    Node {
        /// The inode.
        attr: Box<Attr>,
        /// Where an append's first byte went.
        appended_at: Option<u64>,
        /// See [`Done::directories`].
        directories: Vec<Attr>,
    },
    /// Unlinked or removed: what is left of the inode (`nlink` 0: gone or an orphan).
    Removed {
        /// The inode after.
        attr: Box<Attr>,
        /// See [`Done::directories`].
        directories: Vec<Attr>,
    },
    /// Renamed.
    Renamed {
        /// The moved inode; its `home` may have changed.
        attr: Box<Attr>,
        /// What was replaced or exchanged, as it is now.
        target: Option<Box<Attr>>,
        /// See [`Done::directories`].
        directories: Vec<Attr>,
    },
    /// Entries were copied ahead.
    Staged {
        /// Up to this cookie.
        upto: u64,
        /// There are no more for now.
        end: bool,
    },
}

impl Done {
    /// The directories that the update added to or took from, or gave another place: none if another update was about to
    /// change one of them too. Those that live in the answering group as they are there as of the reply's index; those that
    /// live elsewhere as their group will have them once the update has executed there, if nobody else changes them between
    /// its contribution and then. What the other fields say of a directory that was renamed may be older.
    #[must_use]
    pub fn directories(&self) -> &[Attr] {
        match self {
            Done::Nothing | Done::Staged { .. } => &[],
            Done::Node { directories, .. } | Done::Removed { directories, .. } | Done::Renamed { directories, .. } => {
                directories
            }
        }
    }

    /// The inodes that it is about.
    pub(crate) fn inodes_mut(&mut self) -> impl Iterator<Item = &mut Attr> {
        let (attr, target) = match self {
            Done::Nothing | Done::Staged { .. } => (None, None),
            Done::Node { attr, .. } | Done::Removed { attr, .. } => (Some(attr), None),
            Done::Renamed { attr, target, .. } => (Some(attr), target.as_mut()),
        };
        attr.into_iter().chain(target).map(|attr| &mut **attr)
    }

    pub(crate) fn with_directories(mut self, exact: Vec<Attr>) -> Self {
        match &mut self {
            Done::Nothing | Done::Staged { .. } => {}
            Done::Node { directories, .. } | Done::Removed { directories, .. } | Done::Renamed { directories, .. } => {
                *directories = exact;
            }
        }
        self
    }

    /// About one inode that is as `attr` says.
    pub(crate) fn node(attr: Attr) -> Self {
        Done::Node { attr: Box::new(attr), appended_at: None, directories: Vec::new() }
    }
}

/// The result of one update.
pub type Outcome = Result<Done, OpError>;
