//! What can be said about an operation without looking at any state, and the limits on its size.

use std::collections::BTreeMap;

use crate::op::{Ancestor, Change, FsOp, NewNode, RenameMode};
use crate::outcome::Errno;
use crate::types::{BLOB_BYTES_MAX, FILE_BYTES_MAX, FileKind, InodeId, NAME_BYTES_MAX, NodeRef, SYMLINK_BYTES_MAX};

/// Most changes of one write.
pub const CHANGES_MAX: usize = 4096;
/// Most ancestors that one rename names.
pub const ANCESTORS_MAX: usize = 4096;
/// Most inodes released, or blobs collected, by one update.
pub const BATCH_MAX: usize = 1024;
/// Longest xattr name, in bytes.
pub const XATTR_NAME_BYTES_MAX: usize = 255;
/// Longest xattr value, in bytes.
pub const XATTR_VALUE_BYTES_MAX: usize = 64 << 10;
/// Most xattrs of one inode.
pub const XATTRS_MAX: u32 = 1024;
/// All xattrs of one inode, names and values, in bytes.
pub const XATTRS_BYTES_MAX: u32 = 256 << 10;

/// Refuses what makes no sense whatever the state is.
pub(crate) fn validate(op: &FsOp) -> Result<(), Errno> {
    match op {
        FsOp::Create { parent, name, node, home, .. } => {
            directory(*parent)?;
            entry_name(name)?;
            new_node(node)?;
            match node {
                NewNode::Directory { placement: Some(placement) } if placement != home => Err(Errno::Malformed),
                _ => Ok(()),
            }
        }
        FsOp::Link { parent, name, .. } | FsOp::Unlink { parent, name, .. } | FsOp::Rmdir { parent, name, .. } => {
            directory(*parent)?;
            entry_name(name)
        }
        FsOp::Rename { from_parent, from_name, to_parent, to_name, .. } => {
            directory(*from_parent)?;
            directory(*to_parent)?;
            entry_name(from_name)?;
            entry_name(to_name)?;
            rename_chains(op).map(|_| ()).ok_or(Errno::Malformed)
        }
        FsOp::SetAttr { set, .. } => match set.size {
            Some(size) if size > FILE_BYTES_MAX => Err(Errno::FileTooBig),
            _ => Ok(()),
        },
        FsOp::Write { changes, .. } => {
            if changes.len() > CHANGES_MAX {
                return Err(Errno::Malformed);
            }
            changes.iter().try_for_each(change)
        }
        FsOp::SetXattr { name, value, .. } => {
            xattr_name(name)?;
            if value.len() > XATTR_VALUE_BYTES_MAX { Err(Errno::TooBig) } else { Ok(()) }
        }
        FsOp::RemoveXattr { name, .. } => xattr_name(name),
        FsOp::Lock { range, .. } => {
            if range.start > range.end {
                return Err(Errno::Invalid);
            }
            Ok(())
        }
        FsOp::ReleaseOrphans { inodes, .. } => batch(inodes.len()),
        FsOp::Collected { blobs, .. } => batch(blobs.len()),
        FsOp::SetPlacement { dir, .. } => directory(*dir),
        FsOp::StageMove { dir, to, .. } => {
            directory(*dir)?;
            if dir.home == *to { Err(Errno::Invalid) } else { Ok(()) }
        }
        FsOp::CancelMove { .. } => Ok(()),
        FsOp::MoveInode { parent, name, node, to } => {
            directory(*parent)?;
            entry_name(name)?;
            if node.home == *to { Err(Errno::Invalid) } else { Ok(()) }
        }
    }
}

/// The chains of ancestors that a rename has to name.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Chains<'a> {
    /// From the new name's directory upwards, if the source is a directory that gets another parent.
    pub(crate) source: &'a [Ancestor],
    /// From the old name's directory upwards, if an exchanged target is a directory that gets another parent: as far as
    /// the other chain does not go the same way.
    pub(crate) target: &'a [Ancestor],
    /// The rest of that way, named by the other chain.
    pub(crate) target_rest: &'a [Ancestor],
}

/// Takes a rename's ancestors apart. `None` if they are not what the rename has to name, each directory once.
pub(crate) fn rename_chains(op: &FsOp) -> Option<Chains<'_>> {
    let FsOp::Rename { from_parent, source, to_parent, target, mode, ancestors, .. } = op else { return None };
    if ancestors.len() > ANCESTORS_MAX {
        return None;
    }
    let reparents = from_parent.ino != to_parent.ino;
    let mut chains = Chains::default();
    let mut rest = ancestors.as_slice();
    if reparents && source.kind == FileKind::Directory {
        (chains.source, _, rest) = chain(to_parent.ino, &[], rest)?;
    }
    let swapped = target.filter(|target| *mode == RenameMode::Exchange && target.kind == FileKind::Directory);
    if reparents && swapped.is_some() {
        (chains.target, chains.target_rest, rest) = chain(from_parent.ino, chains.source, rest)?;
    }
    rest.is_empty().then_some(chains)
}

/// Splits off the chain from `dir` to the root, or to where `known` goes on to the root: that part of the chain, the part of
/// `known`, and what is left.
fn chain<'a>(
    dir: InodeId,
    known: &'a [Ancestor],
    ancestors: &'a [Ancestor],
) -> Option<(&'a [Ancestor], &'a [Ancestor], &'a [Ancestor])> {
    let places: BTreeMap<InodeId, usize> = known.iter().map(|step| step.dir.ino).zip(0..).collect();
    let mut next = dir;
    let mut len = 0;
    while next != InodeId::ROOT {
        if let Some(&place) = places.get(&next) {
            let (own, left) = ancestors.split_at(len);
            return Some((own, &known[place..], left));
        }
        let step = ancestors.get(len)?;
        if step.dir.ino != next || step.dir.kind != FileKind::Directory {
            return None;
        }
        next = step.parent;
        len += 1;
    }
    let (own, left) = ancestors.split_at(len);
    Some((own, &[], left))
}

fn directory(node: NodeRef) -> Result<(), Errno> {
    if node.kind == FileKind::Directory { Ok(()) } else { Err(Errno::NotDirectory) }
}

fn entry_name(name: &[u8]) -> Result<(), Errno> {
    if name.len() > NAME_BYTES_MAX {
        return Err(Errno::NameTooLong);
    }
    if name.is_empty() || name == b"." || name == b".." || name.iter().any(|byte| matches!(byte, 0 | b'/')) {
        return Err(Errno::Invalid);
    }
    Ok(())
}

fn xattr_name(name: &[u8]) -> Result<(), Errno> {
    if name.is_empty() || name.len() > XATTR_NAME_BYTES_MAX {
        return Err(Errno::OutOfRange);
    }
    if name.contains(&0) { Err(Errno::Invalid) } else { Ok(()) }
}

fn new_node(node: &NewNode) -> Result<(), Errno> {
    let NewNode::Symlink { target } = node else { return Ok(()) };
    if target.is_empty() {
        return Err(Errno::NotFound);
    }
    if target.len() > SYMLINK_BYTES_MAX {
        return Err(Errno::NameTooLong);
    }
    if target.contains(&0) { Err(Errno::Invalid) } else { Ok(()) }
}

fn batch(len: usize) -> Result<(), Errno> {
    if len > BATCH_MAX { Err(Errno::Malformed) } else { Ok(()) }
}

fn change(change: &Change) -> Result<(), Errno> {
    let (offset, len) = change.range();
    if offset.checked_add(len).is_none_or(|end| end > FILE_BYTES_MAX) {
        return Err(Errno::FileTooBig);
    }
    match change {
        Change::Inline { .. } => Ok(()),
        Change::Blob { source, .. } => {
            let end = u64::from(source.start).checked_add(len);
            let inside = end.is_some_and(|end| end <= u64::from(source.blob_len));
            if len == 0 || !inside || source.blob_len > BLOB_BYTES_MAX { Err(Errno::Malformed) } else { Ok(()) }
        }
        Change::Hole { .. } | Change::Zero { .. } | Change::Allocate { .. } => {
            if len == 0 {
                return Err(Errno::Invalid);
            }
            Ok(())
        }
    }
}
