//! The values of the namespace's rows: one version byte, then postcard.

use bytes::Bytes;
use multicast::ids::{GroupId, SessionId};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::op::{LockKind, LockRange};
use crate::store::Store;
use crate::types::{Attr, BlobRange, Dirent, TimeNs};

/// Version of the encoding of rows, the first byte of each value.
pub const ROW_VERSION: u8 = 1;

/// What holds for the whole volume; written once, equal in every group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// The group that this store belongs to.
    pub group: GroupId,
    /// Most bytes of one file that live in the metadata.
    pub inline_bytes_max: u32,
}

/// A group's running numbers and totals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// The last inode number given out.
    pub inode_last: u64,
    /// The last number of a garbage row.
    pub garbage_last: u64,
    /// Inodes at home here.
    pub inodes: u64,
    /// Bytes that they hold.
    pub bytes: u64,
}

/// An inode, and what only its home needs to know about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InodeRow {
    /// What the world sees.
    pub attr: Attr,
    /// When its mtime was last set, to whatever: updates that only add to a directory may execute in another order than
    /// their times, and the newest must win.
    pub modified: TimeNs,
    /// A directory's last cookie.
    pub cookie_last: u64,
    /// How many extent rows a file has.
    pub extents: u64,
    /// How many of its bytes are inline.
    pub inline_bytes: u32,
    /// Bytes of all xattrs' names and values.
    pub xattr_bytes: u32,
}

impl InodeRow {
    /// Without entries, content, xattrs.
    #[must_use]
    pub fn new(attr: Attr) -> Self {
        let modified = attr.mtime;
        InodeRow { attr, modified, cookie_last: COOKIE_RESERVED_MAX, extents: 0, inline_bytes: 0, xattr_bytes: 0 }
    }
}

/// Cookies up to this one stand for the start, `.` and `..`.
pub const COOKIE_RESERVED_MAX: u64 = 2;

/// A name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirentRow {
    /// What it stands for.
    pub node: Dirent,
    /// Its place in the listing.
    pub cookie: u64,
}

/// A name in the order of cookies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListingRow {
    /// The name.
    pub name: Bytes,
    /// What it stands for, repeated so that a listing is one scan.
    pub node: Dirent,
}

/// A piece of a file; its end is in its key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExtentRow {
    /// How many bytes; never zero.
    pub len: u64,
    /// Where they are.
    pub source: Source,
}

/// Where a piece's bytes are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Source {
    /// Preallocated: zeros that hold space.
    Zero,
    /// In a blob.
    Blob(BlobRange),
    /// Here.
    Inline(Bytes),
}

/// A byte-range lock that is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockRow {
    /// First and last byte.
    pub range: LockRange,
    /// By which session.
    pub session: SessionId,
    /// By which owner within it.
    pub owner: u64,
    /// Its kind.
    pub kind: LockKind,
    /// The process.
    pub pid: u32,
}

/// How often a blob is referred to in this group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobRow {
    /// By how many extents.
    pub references: u64,
    /// It has come from another group, or some of its references have gone to one: others may refer to it as well.
    pub beyond: bool,
    /// Its number among the garbage, if nothing refers to it.
    pub garbage: Option<u64>,
}

/// Up to which of its blobs a writer may not refer to one for the first time any more. Stays when the writer is gone: it
/// may come back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retired {
    /// The last one.
    pub sequence: u64,
}

/// How many files with blobs have changed their home.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moves {
    /// From here.
    pub departed: u64,
    /// To here.
    pub arrived: u64,
}

/// What is left of something that is gone, and goes in steps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Grave {
    /// A deleted inode's content and xattrs.
    Inode(Box<InodeRow>),
    /// A file's content behind this offset, which was cut off.
    Content {
        /// The offset.
        from: u64,
    },
    /// The entries of a directory that is not here.
    Entries,
    /// What was noted of a directory's entries for a transfer that has ended.
    StaleCopies,
}

/// How much goes in steps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unfinished {
    /// Graves and closing sessions.
    pub count: u64,
}

/// How far a directory's entries were copied ahead of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Copied {
    /// In which transfer.
    pub transfer: u64,
    /// Up to this cookie.
    pub upto: u64,
}

/// A directory whose entries are copied ahead to another group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Departing {
    /// The group.
    pub to: GroupId,
    /// How far.
    pub copied: Copied,
    /// How many of them have changed since.
    pub stale: u64,
}

/// A directory whose entries were copied here ahead of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Arriving {
    /// How far.
    pub copied: Copied,
}

/// Most rows fit, and growing by doubling from nothing costs more than a few bytes too many.
const ROOM: usize = 128;

/// Encodes a row's value.
pub(crate) fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    let mut room = Vec::with_capacity(ROOM);
    room.push(ROW_VERSION);
    postcard::to_extend(value, room).expect("a row in memory always encodes")
}

/// Decodes a row's value.
pub(crate) fn decode<T: DeserializeOwned>(key: &[u8], bytes: &[u8]) -> Result<T, Error> {
    let decoded = match bytes.split_first() {
        Some((&ROW_VERSION, body)) => postcard::take_from_bytes(body).ok(),
        _ => None,
    };
    match decoded {
        Some((value, [])) => Ok(value),
        _ => Err(Error::CorruptRow { key: key.to_vec() }),
    }
}

/// Reads and decodes one row.
pub(crate) fn read<T: DeserializeOwned, S: Store + ?Sized>(store: &S, key: &[u8]) -> Result<Option<T>, Error> {
    match store.get(key)? {
        None => Ok(None),
        Some(bytes) => decode(key, &bytes).map(Some),
    }
}
