//! What must hold for the rows of all groups together when no update is under way: the tree is a tree, counts are exact,
//! nothing dangles.
//!
//! Each group's rows are looked at once, in windows of some inodes, and leave facts behind ([`check_group`]); facts of all
//! groups are then joined a part at a time ([`Cross`]). So a large namespace need not fit into memory: only its directories
//! do, and what is kept between the steps may be on a disk ([`Heap`]).

mod cross;
mod group;
mod window;

use std::collections::BTreeMap;
use std::fmt;

use bytes::Bytes;
use multicast::ids::GroupId;
use serde::{Deserialize, Serialize};

pub use cross::{Cross, Heap, MemHeap, Orphan, PARTS};

use crate::error::Error;
use crate::store::Store;
use crate::types::{BlobId, Dirent, FileKind, InodeId};

/// Rows of one kind that are read together.
const ROWS_AT_ONCE: usize = 2048;

/// Something that must never be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Violation {
    /// In which group's rows.
    pub group: GroupId,
    /// Of what.
    pub about: About,
    /// What.
    pub what: String,
}

/// What a [`Violation`] is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum About {
    /// The group as a whole.
    Group,
    /// An inode, or rows that belong to one.
    Inode(InodeId),
    /// A blob.
    Blob(BlobId),
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.group, self.what)
    }
}

/// What a look at one group's rows leaves behind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Seen {
    /// So many more rows were read.
    Rows(u64),
    /// The group's own rows contradict each other.
    Wrong {
        /// Of what.
        about: About,
        /// What.
        what: String,
    },
    /// An inode at home here.
    Inode {
        /// Which.
        ino: InodeId,
        /// Its kind.
        kind: FileKind,
        /// Its links, as it says.
        nlink: u32,
        /// A directory's parent, as it says.
        parent: Option<InodeId>,
    },
    /// A name in a directory at home here.
    Name {
        /// The directory.
        dir: InodeId,
        /// The name.
        name: Bytes,
        /// What it stands for.
        node: Dirent,
    },
    /// A piece of a file is in a blob.
    Reference {
        /// The file.
        ino: InodeId,
        /// The blob.
        blob: BlobId,
        /// The blob's length.
        len: u32,
    },
    /// What the group counts of a blob.
    Blob {
        /// Which.
        blob: BlobId,
        /// By how many pieces it is referred to.
        references: u64,
        /// Its number among the garbage, and whether that is the doubtful one.
        garbage: Option<(u64, bool)>,
    },
    /// A blob among the garbage.
    Garbage {
        /// Which.
        blob: BlobId,
        /// Its number, and whether that is the doubtful one's.
        number: (u64, bool),
    },
    /// Not in a group's rows but in a bucket.
    Stored {
        /// Which.
        blob: BlobId,
        /// Its length there.
        len: u64,
        /// It is so new that whoever put it there may be about to refer to it.
        is_new: bool,
    },
}

/// Looks at one group's rows, and says what it sees.
///
/// # Errors
/// If the rows cannot be read, or those of `see`.
pub fn check_group<S: Store + ?Sized>(
    group: GroupId,
    store: &S,
    see: &mut dyn FnMut(Seen) -> Result<(), Error>,
) -> Result<(), Error> {
    group::check(group, store, ROWS_AT_ONCE, see)
}

/// Looks at everything, in memory. An empty answer is a clean bill.
pub fn check<S: Store>(stores: &BTreeMap<GroupId, S>) -> Result<Vec<Violation>, Error> {
    let mut found = Vec::new();
    let mut cross = Cross::new(MemHeap::default());
    for (&group, store) in stores {
        check_group(group, store, &mut |seen| {
            if let Seen::Wrong { about, what } = seen {
                found.push(Violation { group, about, what });
                return Ok(());
            }
            cross.add(group, seen)
        })?;
    }
    cross.finish(&mut |violation| found.push(violation))?;
    Ok(found)
}
