//! Updates: each names all that it touches, so that its footprint is known before it is ordered.

use bytes::Bytes;
use multicast::ids::GroupId;
use serde::{Deserialize, Serialize};

use crate::types::{BlobRange, Extent, FileKind, InodeId, NodeRef, TimeNs};

/// What a new inode is to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NewNode {
    /// An empty regular file.
    File,
    /// An empty directory; `placement` overrides what it would inherit from its parent.
    Directory {
        /// Where the directory and its children are homed; `None` inherits.
        placement: Option<GroupId>,
    },
    /// A symbolic link.
    Symlink {
        /// Its target, any bytes but zero.
        target: Bytes,
    },
    /// A named pipe.
    Fifo,
    /// A Unix-domain socket's name.
    Socket,
    /// A character device.
    CharDevice {
        /// Device number.
        rdev: u32,
    },
    /// A block device.
    BlockDevice {
        /// Device number.
        rdev: u32,
    },
}

/// A time to set (`utimensat`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SetTime {
    /// `UTIME_NOW`: the time at which the update executes.
    Now,
    /// This one.
    At(TimeNs),
}

/// What `setattr` changes; `None` leaves as is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetAttr {
    /// Permission bits.
    pub mode: Option<u16>,
    /// Owner.
    pub uid: Option<u32>,
    /// Owning group.
    pub gid: Option<u32>,
    /// Length: cuts or extends with a hole.
    pub size: Option<u64>,
    /// Access time.
    pub atime: Option<SetTime>,
    /// Modification time.
    pub mtime: Option<SetTime>,
    /// Clear set-user-id and (where group-executable) set-group-id, as a write by an unprivileged process does.
    pub kill_privileges: bool,
}

/// New content for a range of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// These bytes, held in the metadata. All inline bytes of a file together stay within the volume's inline limit: an
    /// update that would exceed it is `Stale` with the file's attributes, and the client sends its bytes as
    /// [`Change::Blob`]. Blobs and inline ranges live side by side in one file: nobody has to rewrite another's bytes.
    Inline {
        /// Where in the file.
        offset: u64,
        /// The bytes.
        bytes: Bytes,
    },
    /// A range of a blob that is in its origin's bucket already.
    Blob {
        /// Where in the file.
        offset: u64,
        /// How many bytes.
        len: u64,
        /// Which.
        source: BlobRange,
        /// The blob was written for this update. Else it is shared from another extent (`copy_file_range`), and must still
        /// be referenced in this group: if not the outcome is `Stale` and the client copies the bytes.
        fresh: bool,
    },
    /// Punch a hole; never extends the file.
    Hole {
        /// Where in the file.
        offset: u64,
        /// How many bytes.
        len: u64,
    },
    /// Make the range zeros that hold space (`FALLOC_FL_ZERO_RANGE`). Does not lengthen the file: `size_min` does, unless
    /// the caller said `FALLOC_FL_KEEP_SIZE`.
    Zero {
        /// Where in the file.
        offset: u64,
        /// How many bytes.
        len: u64,
    },
    /// Preallocate: holes in the range become zeros that hold space. Does not lengthen the file: `size_min` does, unless
    /// the caller said `FALLOC_FL_KEEP_SIZE`.
    Allocate {
        /// Where in the file.
        offset: u64,
        /// How many bytes.
        len: u64,
    },
}

/// Where a write goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum WriteAt {
    /// The changes' own offsets.
    Offsets,
    /// The changes' offsets count from the end of the file as it is when the update executes (`O_APPEND`).
    End,
}

/// `rename`'s flags (renameat2(2)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RenameMode {
    /// Replace what is there.
    Replace,
    /// `RENAME_NOREPLACE`.
    NoReplace,
    /// `RENAME_EXCHANGE`.
    Exchange,
}

/// A step of an ancestor chain, from a directory towards the root: `dir`'s parent is `parent`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ancestor {
    /// The directory.
    pub dir: NodeRef,
    /// Its parent, as the client saw it.
    pub parent: InodeId,
}

/// A byte-range lock's kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LockKind {
    /// Shared.
    Read,
    /// Exclusive.
    Write,
}

/// A byte-range lock: `fcntl` locks name ranges, `flock` the whole range of a space of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockRange {
    /// First byte.
    pub start: u64,
    /// Last byte, included.
    pub end: u64,
}

/// An update. Who asks (the session) is in the command around it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FsOp {
    /// Creates an inode and its name: open(2) with `O_CREAT`, mkdir(2), symlink(2), mknod(2).
    Create {
        /// The directory.
        parent: NodeRef,
        /// The new name.
        name: Bytes,
        /// What to create.
        node: NewNode,
        /// Permission bits, umask applied.
        mode: u16,
        /// Owner.
        uid: u32,
        /// Owning group, unless the parent's set-group-id bit says otherwise.
        gid: u32,
        /// Where the inode will live: the parent's placement as the client saw it, or the new directory's own.
        home: GroupId,
    },
    /// link(2): a further name for `node`, not a directory.
    Link {
        /// The inode.
        node: NodeRef,
        /// The directory of the new name.
        parent: NodeRef,
        /// The new name.
        name: Bytes,
    },
    /// unlink(2).
    Unlink {
        /// The directory.
        parent: NodeRef,
        /// The name.
        name: Bytes,
        /// What the name was seen to stand for.
        target: NodeRef,
        /// The client holds the inode open: it is a holder of what becomes an orphan.
        keep_open: bool,
    },
    /// rmdir(2).
    Rmdir {
        /// The directory that holds the name.
        parent: NodeRef,
        /// The name.
        name: Bytes,
        /// The empty directory.
        target: NodeRef,
        /// The client holds the directory open.
        keep_open: bool,
    },
    /// rename(2), renameat2(2).
    Rename {
        /// The old name's directory.
        from_parent: NodeRef,
        /// The old name.
        from_name: Bytes,
        /// What the old name was seen to stand for.
        source: NodeRef,
        /// The new name's directory.
        to_parent: NodeRef,
        /// The new name.
        to_name: Bytes,
        /// What the new name was seen to stand for, if anything.
        target: Option<NodeRef>,
        /// Flags.
        mode: RenameMode,
        /// If a directory moves to another parent: the chain from `to_parent` (included) up to the root (not included).
        /// For an exchange of which the target is a directory, also the chain of `from_parent`, up to where it meets the
        /// first: no directory is named twice. Empty otherwise.
        ancestors: Vec<Ancestor>,
        /// The client holds the replaced target open.
        keep_open: bool,
    },
    /// chmod(2), chown(2), truncate(2), utimensat(2).
    SetAttr {
        /// The inode.
        node: NodeRef,
        /// The changes.
        set: SetAttr,
    },
    /// New content: write(2), fallocate(2), copy_file_range(2); what one flush collected.
    Write {
        /// The file.
        node: NodeRef,
        /// How offsets count.
        at: WriteAt,
        /// In order; later ones win.
        changes: Vec<Change>,
        /// The file is at least this long afterwards (with [`WriteAt::End`]: counted from the old end). Zero: the changes
        /// alone decide.
        size_min: u64,
        /// `mtime` to set; `None` is the time of execution.
        mtime: Option<TimeNs>,
        /// As [`SetAttr::kill_privileges`].
        kill_privileges: bool,
    },
    /// setxattr(2).
    SetXattr {
        /// The inode.
        node: NodeRef,
        /// Full name, such as `user.colour`.
        name: Bytes,
        /// Value, up to 64 KiB.
        value: Bytes,
        /// `XATTR_CREATE` (fail if it exists), `XATTR_REPLACE` (fail if it does not), or neither.
        condition: XattrCondition,
    },
    /// removexattr(2).
    RemoveXattr {
        /// The inode.
        node: NodeRef,
        /// Full name.
        name: Bytes,
    },
    /// Tries to take, change or drop a byte-range lock; never waits: the outcome names a holder in the way.
    Lock {
        /// The inode.
        node: NodeRef,
        /// The owner within the session (the kernel's lock owner).
        owner: u64,
        /// True for flock(2): its own lock space.
        flock: bool,
        /// The range.
        range: LockRange,
        /// What to hold; `None` unlocks.
        kind: Option<LockKind>,
        /// The process, for F_GETLK.
        pid: u32,
    },
    /// This session has none of these orphans open (any more).
    ReleaseOrphans {
        /// Their home group.
        home: GroupId,
        /// Which; unknown ones are passed over.
        inodes: Vec<InodeId>,
    },
    /// Sets a directory's placement: where children that are created from now on will live.
    SetPlacement {
        /// The directory.
        dir: NodeRef,
        /// The group.
        placement: GroupId,
    },
    /// Moves an inode's home (with its content, xattrs, for a directory its dirents) to another group; its name stays.
    MoveInode {
        /// The directory that holds its (only) name.
        parent: NodeRef,
        /// The name.
        name: Bytes,
        /// The inode, with its present home.
        node: NodeRef,
        /// Its new home.
        to: GroupId,
    },
    /// A collector deletes, or has deleted, these blobs: those that nothing in the group refers to are not to be referred
    /// to any more, and their rows go.
    Collected {
        /// The group.
        home: GroupId,
        /// The blobs.
        blobs: Vec<crate::types::BlobId>,
    },
    /// Copies some entries of a directory to a group, ahead of a [`FsOp::MoveInode`] that could not take all at once.
    StageMove {
        /// The directory.
        dir: NodeRef,
        /// The group.
        to: GroupId,
        /// Names the transfer: any number, the same in all its steps.
        transfer: u64,
        /// The last cookie that was copied; zero begins.
        after: u64,
    },
    /// Ends what a transfer of a directory left in one group.
    CancelMove {
        /// The group.
        home: GroupId,
        /// The directory.
        dir: InodeId,
    },
}

impl FsOp {
    /// What it does to the entries of directories: which, what, and the links that the directory gains.
    pub(crate) fn entry_changes(&self) -> Vec<(NodeRef, EntryChange, i32)> {
        let link = |node: &NodeRef| i32::from(node.kind == FileKind::Directory);
        match self {
            FsOp::Create { parent, node, .. } => {
                let links = i32::from(matches!(node, NewNode::Directory { .. }));
                vec![(*parent, EntryChange::Insert, links)]
            }
            FsOp::Link { parent, .. } => vec![(*parent, EntryChange::Insert, 0)],
            FsOp::Unlink { parent, .. } => vec![(*parent, EntryChange::Remove, 0)],
            FsOp::Rmdir { parent, .. } => vec![(*parent, EntryChange::Remove, -1)],
            FsOp::Rename { from_parent, source, to_parent, target, mode, .. } => {
                let (moves, target) = (from_parent.ino != to_parent.ino, target.as_ref());
                let arrives = if moves { link(source) } else { 0 };
                match (mode, target) {
                    (RenameMode::Exchange, target) => {
                        let links = if moves { link(source) - target.map_or(0, link) } else { 0 };
                        vec![(*from_parent, EntryChange::Replace, -links), (*to_parent, EntryChange::Replace, links)]
                    }
                    (RenameMode::Replace, Some(target)) => vec![
                        (*from_parent, EntryChange::Remove, -arrives),
                        (*to_parent, EntryChange::Replace, arrives - link(target)),
                    ],
                    (RenameMode::Replace, None) | (RenameMode::NoReplace, _) => {
                        vec![(*from_parent, EntryChange::Remove, -arrives), (*to_parent, EntryChange::Insert, arrives)]
                    }
                }
            }
            FsOp::SetAttr { .. }
            | FsOp::Write { .. }
            | FsOp::SetXattr { .. }
            | FsOp::RemoveXattr { .. }
            | FsOp::Lock { .. }
            | FsOp::ReleaseOrphans { .. }
            | FsOp::SetPlacement { .. }
            | FsOp::MoveInode { .. }
            | FsOp::StageMove { .. }
            | FsOp::CancelMove { .. }
            | FsOp::Collected { .. } => Vec::new(),
        }
    }

    /// The directories whose entries or place it changes, and that outlive it.
    pub(crate) fn directories(&self) -> Vec<NodeRef> {
        match self {
            FsOp::Create { parent, .. }
            | FsOp::Link { parent, .. }
            | FsOp::Unlink { parent, .. }
            | FsOp::Rmdir { parent, .. } => vec![*parent],
            FsOp::Rename { from_parent, source, to_parent, target, mode, .. } => {
                let exchanged = target.filter(|_| *mode == RenameMode::Exchange);
                let moved = [Some(*source), exchanged].into_iter().flatten();
                let moved = moved.filter(|node| node.kind == FileKind::Directory);
                [*from_parent, *to_parent].into_iter().chain(moved).collect()
            }
            FsOp::SetAttr { .. }
            | FsOp::Write { .. }
            | FsOp::SetXattr { .. }
            | FsOp::RemoveXattr { .. }
            | FsOp::Lock { .. }
            | FsOp::ReleaseOrphans { .. }
            | FsOp::SetPlacement { .. }
            | FsOp::MoveInode { .. }
            | FsOp::StageMove { .. }
            | FsOp::CancelMove { .. }
            | FsOp::Collected { .. } => Vec::new(),
        }
    }
}

/// What becomes of an entry of a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EntryChange {
    /// A new name.
    Insert,
    /// The name stands for something else.
    Replace,
    /// The name goes.
    Remove,
}

/// When [`FsOp::SetXattr`] may act.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum XattrCondition {
    /// Always.
    Any,
    /// Only if there is none of that name.
    Create,
    /// Only if there is one of that name.
    Replace,
}

/// What an extent change leaves behind, for callers that need [`Extent`] beside [`Change`].
impl Change {
    /// The range of the file that it names.
    #[must_use]
    pub fn range(&self) -> (u64, u64) {
        match self {
            Change::Inline { offset, bytes } => (*offset, bytes.len() as u64),
            Change::Blob { offset, len, .. }
            | Change::Hole { offset, len }
            | Change::Zero { offset, len }
            | Change::Allocate { offset, len } => (*offset, *len),
        }
    }
}

impl From<Extent> for Change {
    fn from(extent: Extent) -> Self {
        match extent.source {
            Some(source) => Change::Blob { offset: extent.offset, len: extent.len, source, fresh: false },
            None => Change::Allocate { offset: extent.offset, len: extent.len },
        }
    }
}
