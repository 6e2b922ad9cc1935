//! The namespace's own words: inodes, attributes, dirents, extents.

use std::fmt;

use bytes::Bytes;
use multicast::ids::GroupId;
use serde::{Deserialize, Serialize};

/// Largest name of one directory entry, in bytes (as ext4, XFS).
pub const NAME_BYTES_MAX: usize = 255;
/// Largest symlink target, in bytes, without the terminating zero (`PATH_MAX` - 1).
pub const SYMLINK_BYTES_MAX: usize = 4095;
/// Most links to one inode.
pub const LINKS_MAX: u32 = 65_000;
/// Largest file, in bytes.
pub const FILE_BYTES_MAX: u64 = i64::MAX as u64;
/// Largest blob, in bytes.
pub const BLOB_BYTES_MAX: u32 = 4 << 20;

const COUNTER_BITS: u32 = 48;

/// A global, permanent inode number: the group where the inode was born and that group's counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct InodeId(pub u64);

impl InodeId {
    /// The root directory: the first inode of the global group.
    pub const ROOT: InodeId = InodeId(1);

    /// The `counter`-th inode born in `group`. The counter fits 48 bits.
    #[must_use]
    pub fn new(group: GroupId, counter: u64) -> Self {
        debug_assert!(counter < 1 << COUNTER_BITS, "a group's inode counter fits 48 bits");
        InodeId(u64::from(group.0) << COUNTER_BITS | counter)
    }

    /// Where it was born: its home unless it has moved since.
    #[must_use]
    pub fn birth_group(self) -> GroupId {
        GroupId((self.0 >> COUNTER_BITS) as u16)
    }
}

impl fmt::Display for InodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Nanoseconds since 1970, replicated: chosen by a primary or given by `utimensat`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TimeNs(pub i64);

/// What an inode is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A named pipe.
    Fifo,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// A Unix-domain socket.
    Socket,
}

/// An inode as one names it in a request: which one, what it was seen to be, where it was seen to live. A group that knows
/// better answers [`crate::outcome::OpError::Stale`] or [`crate::outcome::OpError::Moved`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NodeRef {
    /// The inode.
    pub ino: InodeId,
    /// Its kind; never changes.
    pub kind: FileKind,
    /// The group that holds the inode.
    pub home: GroupId,
}

/// A directory entry's value: what a name stands for.
pub type Dirent = NodeRef;

/// All that `stat` shows, and what routing needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attr {
    /// The inode.
    pub ino: InodeId,
    /// Its kind.
    pub kind: FileKind,
    /// Permission, set-id and sticky bits (07777).
    pub mode: u16,
    /// Links; for a directory 2 + subdirectories.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Owning group.
    pub gid: u32,
    /// Device number of a device node, as the kernel encodes it; else zero.
    pub rdev: u32,
    /// Bytes: a file's length, a symlink's target length; for a directory the number of entries.
    pub size: u64,
    /// Bytes held by inline content, extents and preallocation (holes do not count).
    pub allocated: u64,
    /// Last access (updated only by `utimensat`: the volume behaves as mounted with `noatime`).
    pub atime: TimeNs,
    /// Last change of content.
    pub mtime: TimeNs,
    /// Last change of anything.
    pub ctime: TimeNs,
    /// Birth.
    pub btime: TimeNs,
    /// The group that holds the inode.
    pub home: GroupId,
    /// A directory's placement: where its new children's inodes are homed. Equals `home` for everything else.
    pub placement: GroupId,
    /// A directory's parent; the root is its own. `None` for other kinds.
    pub parent: Option<InodeId>,
    /// Counts changes of the content (not of times or modes): equal numbers mean equal bytes. Of a directory: how many
    /// names have come and gone; equal numbers mean the same names (though they may stand for something else).
    pub data_version: u64,
    /// How many xattrs it has: zero spares a round trip.
    pub xattrs: u32,
}

impl Attr {
    /// An inode of which only number, kind and home are known: root's, `rwxr-xr-x`, with one link and nothing in it, at time
    /// zero.
    #[must_use]
    pub fn blank(node: NodeRef) -> Attr {
        let time = TimeNs::default();
        Attr {
            ino: node.ino,
            kind: node.kind,
            mode: 0o755,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            size: 0,
            allocated: 0,
            atime: time,
            mtime: time,
            ctime: time,
            btime: time,
            home: node.home,
            placement: node.home,
            parent: None,
            data_version: 0,
            xattrs: 0,
        }
    }
}

/// A blob's name: immutable once written, never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct BlobId {
    /// The region whose bucket got it first, by its number in the cluster.
    pub origin: u16,
    /// The session that wrote it.
    pub writer: u64,
    /// That session's own counter.
    pub sequence: u64,
}

/// Where an extent's bytes are: a range of one blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobRange {
    /// The blob.
    pub blob: BlobId,
    /// The blob's whole length, in bytes.
    pub blob_len: u32,
    /// CRC32C of the whole blob.
    pub crc32c: u32,
    /// Where in the blob the extent's bytes begin.
    pub start: u32,
}

/// A byte range of a file. Extents of one file never overlap; what none covers is a hole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    /// Where in the file.
    pub offset: u64,
    /// How many bytes.
    pub len: u64,
    /// Its bytes; `None` is preallocated space that reads as zeros.
    pub source: Option<BlobRange>,
}

/// A file's bytes as the metadata hold them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Content {
    /// All bytes, held in the metadata. Never longer than the file; what is missing at its end reads as zeros.
    Inline(Bytes),
    /// The extents that touch the range that was asked for, by offset, and whether more follow.
    Extents {
        /// In order of their offsets.
        extents: Vec<Extent>,
        /// True if the answer was cut at its limit: ask again from the end of the last one.
        more: bool,
    },
    /// As `Extents`, and some ranges are held in the metadata: the two never overlap.
    Mixed {
        /// In order of their offsets.
        extents: Vec<Extent>,
        /// Offsets and bytes of the ranges held in the metadata, in order. All together within the inline limit.
        inline: Vec<(u64, Bytes)>,
        /// True if the answer was cut at its limit: ask again from the end of the last one of either.
        more: bool,
    },
}
