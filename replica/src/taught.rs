//! What an update's reply teaches: the keys under which its client may cache what the outcome says. They are noted for the
//! session as those of a read are, if they still are as the outcome says in the state that the reply stands for.

use std::cell::OnceCell;
use std::collections::BTreeMap;

use bytes::Bytes;
use metadata::codec;
use metadata::footprint::{key_dirent, key_home, key_inode};
use metadata::op::FsOp;
use metadata::outcome::Done;
use metadata::types::{Attr, FileKind, NodeRef};
use multicast::command::{Command, Key};
use multicast::ids::GroupId;

/// What the client takes from an outcome, but for [`Done::directories`].
pub fn keys(group: GroupId, op: &FsOp, done: &Done) -> Vec<Key> {
    let mut keys = names(group, op);
    let is_kept = |attr: &Attr| attr.home == group && attr.nlink > 0;
    let kept = match done {
        Done::Nothing | Done::Staged { .. } => None,
        // Also of what has no name any more: whoever holds it open reads and writes it, and so do others.
        Done::Node { attr, .. } => Some(attr).filter(|attr| attr.home == group),
        Done::Removed { attr, .. } => Some(attr).filter(|attr| is_kept(attr)),
        // Of a renamed directory this is not the last word.
        Done::Renamed { attr, .. } => Some(attr).filter(|attr| is_kept(attr) && attr.kind != FileKind::Directory),
    };
    keys.extend(kept.map(|attr| key_inode(attr.ino)));
    keys
}

/// What the client may take from the outcome of a command that is committed here, whichever group tells it.
pub fn foretold(group: GroupId, command: &Command) -> Vec<Key> {
    let mut keys = codec::decode_op(&command.payload).map_or_else(|_| Vec::new(), |op| names(group, &op));
    let footprint = command.footprint(group).into_iter().flatten();
    keys.extend(footprint.filter(|(_, mode)| mode.changes()).map(|(key, _)| *key));
    keys
}

/// The names that it makes, changes or takes away.
fn names(group: GroupId, op: &FsOp) -> Vec<Key> {
    let mut keys = Vec::with_capacity(4);
    let mut name = |parent: &NodeRef, name: &Bytes| {
        if parent.home == group {
            keys.extend([key_dirent(parent.ino, name), key_home(parent.ino)]);
        }
    };
    match op {
        FsOp::Create { parent, name: child, .. }
        | FsOp::Link { parent, name: child, .. }
        | FsOp::Unlink { parent, name: child, .. }
        | FsOp::Rmdir { parent, name: child, .. } => name(parent, child),
        FsOp::Rename { from_parent, from_name, to_parent, to_name, .. } => {
            name(from_parent, from_name);
            name(to_parent, to_name);
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
        | FsOp::Collected { .. } => {}
    }
    keys
}

/// Drops what the outcome says of directories.
pub fn forget_directories(done: &mut Done) {
    match done {
        Done::Nothing | Done::Staged { .. } => {}
        Done::Node { directories, .. } | Done::Removed { directories, .. } | Done::Renamed { directories, .. } => {
            directories.clear();
        }
    }
}

/// The keys that the entries of one batch have changed, in their order.
#[derive(Debug, Default)]
pub struct BatchKeys {
    keys: Vec<Key>,
    /// Where each was changed last; made when it is first asked for.
    last: OnceCell<BTreeMap<Key, usize>>,
}

impl BatchKeys {
    /// The next entry has changed these. Returns how many have been changed up to and with it: its end.
    pub fn push(&mut self, changed: Vec<Key>) -> usize {
        self.keys.extend(changed);
        self.last.take();
        self.keys.len()
    }

    /// All of them. May repeat.
    pub fn all(&self) -> &[Key] {
        &self.keys
    }

    /// All of them, to keep.
    pub fn into_all(self) -> Vec<Key> {
        self.keys
    }

    /// True if an entry behind the one that ends there has changed it, too.
    pub fn is_changed_behind(&self, end: usize, key: Key) -> bool {
        if end == self.keys.len() {
            return false;
        }
        let last = self.last.get_or_init(|| self.keys.iter().enumerate().map(|(at, &key)| (key, at)).collect());
        last.get(&key).is_some_and(|&at| at >= end)
    }
}

#[cfg(test)]
mod tests {
    use metadata::op::WriteAt;
    use metadata::types::InodeId;

    use super::*;

    /// Its client caches what it becomes, and another one that has it open may change it.
    #[test]
    fn what_a_write_to_an_open_file_without_a_name_tells_is_noted() {
        let node = NodeRef { ino: InodeId(7), kind: FileKind::File, home: GroupId(1) };
        let attr = Attr { nlink: 0, ..Attr::blank(node) };
        let done = Done::Node { attr: Box::new(attr), appended_at: None, directories: Vec::new() };
        let op = FsOp::Write {
            node,
            at: WriteAt::Offsets,
            changes: Vec::new(),
            size_min: 1,
            mtime: None,
            kill_privileges: false,
        };
        assert_eq!(keys(GroupId(1), &op, &done), [key_inode(InodeId(7))]);
        assert!(keys(GroupId(2), &op, &done).is_empty());
    }

    #[test]
    fn key_is_changed_behind_an_entry_only_by_later_ones() {
        let mut changed = BatchKeys::default();
        let first = changed.push(vec![Key(1), Key(2)]);
        assert!(!changed.is_changed_behind(first, Key(1)));
        let second = changed.push(vec![Key(2), Key(3)]);
        let third = changed.push(Vec::new());
        let behind = |end, key| changed.is_changed_behind(end, Key(key));
        assert_eq!([1, 2, 3, 4].map(|key| behind(first, key)), [false, true, true, false]);
        assert_eq!([1, 2, 3, 4].map(|key| behind(second, key)), [false; 4]);
        assert_eq!([1, 2, 3, 4].map(|key| behind(third, key)), [false; 4]);
        assert_eq!(changed.all(), [1, 2, 2, 3].map(Key));
    }
}
