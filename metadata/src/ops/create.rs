//! open(2) with `O_CREAT`, mkdir(2), symlink(2), mknod(2).

use multicast::ids::GroupId;

use crate::birth::{Birth, BirthShard};
use crate::error::Error;
use crate::namespace::Namespace;
use crate::op::{FsOp, NewNode};
use crate::outcome::{Done, Fact};
use crate::rows::InodeRow;
use crate::store::StoreMut;
use crate::types::{Attr, FileKind, InodeId, NodeRef, TimeNs};
use crate::verdict::{Contribution, Joint, ParentFacts, Step, Stop, note};
use crate::{keys, rows};

const SET_GROUP_ID: u16 = 0o2000;

impl<S: StoreMut> Namespace<S> {
    pub(crate) fn check_create(&self, op: &FsOp, part: &mut Contribution) -> Result<(), Error> {
        let FsOp::Create { parent, name, node, home, .. } = op else { return Ok(()) };
        if parent.home == self.group {
            let checked = self.check_new_entry(*parent, name, node, *home);
            part.facts.parents.extend(note(&mut part.refusals, checked)?);
        }
        if *home == self.group && part.refusals.is_empty() {
            let ino = if parent.home == self.group {
                InodeId::new(self.group, self.counters()?.inode_last + 1)
            } else {
                self.next_birth(BirthShard::of_name(parent.ino, name))?.inode(self.group)
            };
            part.facts.fresh = Some(ino);
        }
        Ok(())
    }

    fn check_new_entry(&self, parent: NodeRef, name: &[u8], node: &NewNode, home: GroupId) -> Step<ParentFacts> {
        let dir = self.directory(parent)?;
        self.check_free(parent.ino, name)?;
        let Attr { ino, mode, gid, placement, .. } = dir.attr;
        let inherits = !matches!(node, NewNode::Directory { placement: Some(_) });
        if inherits && placement != home {
            return Err(Stop::stale(Fact::Placement { dir: ino, placement }));
        }
        Ok(ParentFacts { ino, mode, gid, placement })
    }

    pub(crate) fn apply_create(&mut self, op: &FsOp, joint: &Joint) -> Result<Option<Done>, Error> {
        let FsOp::Create { parent, name, node, home, .. } = op else { return Ok(None) };
        let (Some(ino), Some(dir)) = (joint.facts.fresh, joint.facts.parent(parent.ino)) else { return Ok(None) };
        let Some(attr) = born(op, ino, dir, joint.time) else { return Ok(None) };
        if parent.home == self.group {
            let links = i32::from(attr.kind == FileKind::Directory);
            let entry = NodeRef { ino, kind: attr.kind, home: *home };
            self.insert_entry(parent.ino, name, entry, links, joint.time)?;
        }
        if *home == self.group {
            self.note_number(ino)?;
            self.put_new(keys::inode(ino), rows::encode(&InodeRow::new(attr.clone())))?;
            if let NewNode::Symlink { target } = node {
                self.put_new(keys::of_inode(keys::SYMLINK, ino), rows::encode(target))?;
            }
            self.account(1, 0)?;
        }
        Ok(Some(Done::node(attr)))
    }

    fn note_number(&mut self, ino: InodeId) -> Result<(), Error> {
        if let Some(birth) = Birth::of_inode(ino) {
            return self.note_birth(birth);
        }
        let mut counters = self.counters()?;
        counters.inode_last += 1;
        self.put_counters(&counters)
    }
}

/// The new inode: the same in every group.
fn born(op: &FsOp, ino: InodeId, parent: &ParentFacts, now: TimeNs) -> Option<Attr> {
    let FsOp::Create { node, mode, uid, gid, home, .. } = op else { return None };
    let (kind, rdev, size) = match node {
        NewNode::File => (FileKind::File, 0, 0),
        NewNode::Directory { .. } => (FileKind::Directory, 0, 0),
        NewNode::Symlink { target } => (FileKind::Symlink, 0, target.len() as u64),
        NewNode::Fifo => (FileKind::Fifo, 0, 0),
        NewNode::Socket => (FileKind::Socket, 0, 0),
        NewNode::CharDevice { rdev } => (FileKind::CharDevice, *rdev, 0),
        NewNode::BlockDevice { rdev } => (FileKind::BlockDevice, *rdev, 0),
    };
    let directory = kind == FileKind::Directory;
    let inherits_group = parent.mode & SET_GROUP_ID != 0;
    let inherited_bit = if inherits_group && directory { SET_GROUP_ID } else { 0 };
    Some(Attr {
        ino,
        kind,
        mode: mode & 0o7777 | inherited_bit,
        nlink: if directory { 2 } else { 1 },
        uid: *uid,
        gid: if inherits_group { parent.gid } else { *gid },
        rdev,
        size,
        allocated: 0,
        atime: now,
        mtime: now,
        ctime: now,
        btime: now,
        home: *home,
        placement: *home,
        parent: directory.then_some(parent.ino),
        data_version: 0,
        xattrs: 0,
    })
}
