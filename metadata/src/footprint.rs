//! What an update touches in which group, and what a read looks at: keys for ordering, blocking and invalidation.
//!
//! | key | stands for | written by | added to by |
//! | --- | --- | --- | --- |
//! | dirent (directory, name) | what a name stands for | whatever makes, drops or changes the name | |
//! | inode | attributes, content, xattrs; a directory's listing | whatever changes the inode itself | changes of a directory's entries |
//! | home | that the inode exists, and where | removal, moves between groups | |
//! | parent (directory) | a directory's place in the tree | its removal, renames to another parent, moves | |
//! | locks | byte-range locks | lock operations | |
//! | transfer (directory) | how far its entries were copied ahead to another group | steps of its transfer, moves | |
//! | births (group, shard) | the numbers of inodes that are born here at the wish of another group | such creations | |

use std::collections::BTreeMap;

use multicast::command::{Destination, Key, Mode};
use multicast::ids::GroupId;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::birth::{Birth, BirthShard};
use crate::op::{FsOp, RenameMode};
use crate::read::ReadOp;
use crate::types::{FileKind, InodeId, NodeRef};

const SEED: u64 = 0x476c_6f62_616c_4653;

/// An inode's attributes, content and xattrs; for a directory also its listing: every change of an entry adds to it.
#[must_use]
pub fn key_inode(ino: InodeId) -> Key {
    key(1, ino.0, &[])
}

/// What a name in a directory stands for.
#[must_use]
pub fn key_dirent(parent: InodeId, name: &[u8]) -> Key {
    key(2, parent.0, name)
}

/// A directory's place in the tree: its parent pointer.
#[must_use]
pub fn key_parent(dir: InodeId) -> Key {
    key(3, dir.0, &[])
}

/// That an inode exists, and in which group.
#[must_use]
pub fn key_home(ino: InodeId) -> Key {
    key(4, ino.0, &[])
}

/// An inode's byte-range locks.
#[must_use]
pub fn key_locks(ino: InodeId) -> Key {
    key(5, ino.0, &[])
}

/// Inodes that are being born in a group at the wish of another.
#[must_use]
pub fn key_births(group: GroupId, shard: BirthShard) -> Key {
    key(6, u64::from(group.0), &[shard.0])
}

/// How far a directory's entries were copied ahead to another group.
#[must_use]
pub fn key_transfer(dir: InodeId) -> Key {
    key(7, dir.0, &[])
}

fn key(tag: u8, id: u64, name: &[u8]) -> Key {
    let mut bytes = Vec::with_capacity(9 + name.len());
    bytes.push(tag);
    bytes.extend_from_slice(&id.to_be_bytes());
    bytes.extend_from_slice(name);
    Key(xxh3_64_with_seed(&bytes, SEED))
}

#[derive(Default)]
struct Footprint(BTreeMap<GroupId, BTreeMap<Key, Mode>>);

impl Footprint {
    fn touch(&mut self, group: GroupId, key: Key, mode: Mode) {
        let keys = self.0.entry(group).or_default();
        // Who both reads and adds conflicts with both.
        let joint = keys.get(&key).map_or(mode, |&before| if before == mode { mode } else { Mode::Write });
        keys.insert(key, joint);
    }

    /// A name comes, goes or changes.
    fn entry(&mut self, parent: NodeRef, name: &[u8]) {
        self.touch(parent.home, key_dirent(parent.ino, name), Mode::Write);
        self.touch(parent.home, key_inode(parent.ino), Mode::Add);
    }

    /// An inode changes in a way that may end or move it.
    fn whole(&mut self, group: GroupId, ino: InodeId) {
        self.touch(group, key_inode(ino), Mode::Write);
        self.touch(group, key_home(ino), Mode::Write);
    }

    /// An inode's last name may go.
    fn removed(&mut self, node: NodeRef) {
        self.whole(node.home, node.ino);
        if node.kind == FileKind::Directory {
            self.touch(node.home, key_parent(node.ino), Mode::Write);
        }
    }

    /// An inode gets another name. What is not a directory may move its home to where that name lives. A directory stays,
    /// and what goes on inside it goes on.
    fn renamed(&mut self, node: NodeRef, to_parent: NodeRef, reparents: bool) {
        if node.kind != FileKind::Directory {
            self.whole(node.home, node.ino);
            self.whole(to_parent.home, node.ino);
            return;
        }
        self.touch(node.home, key_inode(node.ino), Mode::Add);
        if reparents {
            self.touch(node.home, key_parent(node.ino), Mode::Write);
        }
    }

    fn destinations(self) -> Vec<Destination> {
        let groups = self.0.into_iter();
        groups.map(|(group, keys)| Destination { group, footprint: keys.into_iter().collect() }).collect()
    }
}

impl FsOp {
    /// The groups that must agree on this update, and what it touches in each. Sorted as commands need it.
    #[must_use]
    pub fn destinations(&self) -> Vec<Destination> {
        let mut footprint = Footprint::default();
        match self {
            FsOp::Create { parent, name, home, .. } => {
                footprint.entry(*parent, name);
                if *home != parent.home {
                    let shard = BirthShard::of_name(parent.ino, name);
                    footprint.touch(*home, key_births(*home, shard), Mode::Write);
                }
            }
            FsOp::Link { node, parent, name } => {
                footprint.entry(*parent, name);
                footprint.touch(node.home, key_inode(node.ino), Mode::Write);
            }
            FsOp::Unlink { parent, name, target, .. } | FsOp::Rmdir { parent, name, target, .. } => {
                footprint.entry(*parent, name);
                footprint.removed(*target);
            }
            FsOp::Rename { .. } => self.touch_rename(&mut footprint),
            FsOp::SetAttr { node, .. }
            | FsOp::Write { node, .. }
            | FsOp::SetXattr { node, .. }
            | FsOp::RemoveXattr { node, .. }
            | FsOp::SetPlacement { dir: node, .. } => {
                footprint.touch(node.home, key_inode(node.ino), Mode::Write);
            }
            FsOp::Lock { node, .. } => {
                footprint.touch(node.home, key_inode(node.ino), Mode::Read);
                footprint.touch(node.home, key_locks(node.ino), Mode::Write);
            }
            FsOp::ReleaseOrphans { home, inodes } => {
                footprint.0.entry(*home).or_default();
                for &ino in inodes {
                    footprint.touch(*home, key_inode(ino), Mode::Write);
                }
            }
            FsOp::MoveInode { parent, name, node, to } => {
                footprint.entry(*parent, name);
                for group in [node.home, *to] {
                    footprint.whole(group, node.ino);
                    if node.kind == FileKind::Directory {
                        footprint.touch(group, key_parent(node.ino), Mode::Write);
                        footprint.touch(group, key_transfer(node.ino), Mode::Write);
                    }
                }
            }
            FsOp::StageMove { dir, to, .. } => {
                // While a step is on its way no entry may change; but readers need not wait.
                footprint.touch(dir.home, key_inode(dir.ino), Mode::Read);
                for group in [dir.home, *to] {
                    footprint.touch(group, key_transfer(dir.ino), Mode::Write);
                }
            }
            FsOp::CancelMove { home, dir } => footprint.touch(*home, key_transfer(*dir), Mode::Write),
            FsOp::Collected { home, .. } => {
                footprint.0.entry(*home).or_default();
            }
        }
        footprint.destinations()
    }

    fn touch_rename(&self, footprint: &mut Footprint) {
        let FsOp::Rename { from_parent, from_name, source, to_parent, to_name, target, mode, ancestors, .. } = self
        else {
            return;
        };
        footprint.entry(*from_parent, from_name);
        footprint.entry(*to_parent, to_name);
        let reparents = from_parent.ino != to_parent.ino;
        footprint.renamed(*source, *to_parent, reparents);
        match target {
            Some(target) if *mode == RenameMode::Exchange => footprint.renamed(*target, *from_parent, reparents),
            Some(target) => footprint.removed(*target),
            None => {}
        }
        for ancestor in ancestors {
            footprint.touch(ancestor.dir.home, key_parent(ancestor.dir.ino), Mode::Read);
        }
    }
}

impl ReadOp {
    /// What this read looks at: an unfinished update that changes one of these keys, and that the reader may know of,
    /// blocks it; an executed one invalidates its answer.
    #[must_use]
    pub fn keys(&self) -> Vec<Key> {
        match self {
            ReadOp::Lookup { parent, name } => vec![key_dirent(*parent, name), key_home(*parent)],
            ReadOp::GetAttr { ino }
            | ReadOp::ReadDir { dir: ino, .. }
            | ReadOp::ReadLink { ino }
            | ReadOp::Content { ino, .. }
            | ReadOp::GetXattr { ino, .. }
            | ReadOp::ListXattr { ino } => vec![key_inode(*ino)],
            ReadOp::Ancestors { dir } => vec![key_parent(*dir), key_home(*dir)],
            ReadOp::TestLock { ino, .. } => vec![key_locks(*ino), key_home(*ino)],
            ReadOp::Usage | ReadOp::Garbage { .. } | ReadOp::BlobsInUse { .. } => Vec::new(),
        }
    }

    /// What else blocks this read if the answer is that there is no such inode ([`crate::outcome::Errno::StaleHandle`]):
    /// it may be about to be
    /// born here, or to move here.
    #[must_use]
    pub fn keys_if_missing(&self, group: GroupId) -> Vec<Key> {
        match self {
            ReadOp::Lookup { parent: ino, .. }
            | ReadOp::GetAttr { ino }
            | ReadOp::ReadDir { dir: ino, .. }
            | ReadOp::ReadLink { ino }
            | ReadOp::Content { ino, .. }
            | ReadOp::GetXattr { ino, .. }
            | ReadOp::ListXattr { ino }
            | ReadOp::Ancestors { dir: ino }
            | ReadOp::TestLock { ino, .. } => match Birth::of_inode(*ino) {
                Some(birth) if ino.birth_group() == group => vec![key_births(group, birth.shard), key_home(*ino)],
                _ => vec![key_home(*ino)],
            },
            ReadOp::Usage | ReadOp::Garbage { .. } | ReadOp::BlobsInUse { .. } => Vec::new(),
        }
    }
}
