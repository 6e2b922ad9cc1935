//! Names: lookup, create, link, unlink, rename.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use metadata::op::{Ancestor, FsOp, NewNode, RenameMode};
use metadata::outcome::{Done, OpError};
use metadata::read::{ReadAnswer, ReadOp};
use metadata::types::{Attr, Dirent, FileKind, InodeId, NAME_BYTES_MAX, NodeRef, SYMLINK_BYTES_MAX};
use multicast::ids::GroupId;

use super::facts::Facts;
use super::{Fs, FsResult, Told, told};
use crate::errno::Errno;

/// Deepest chain of directories that is followed; deeper ones are a loop.
const DEPTH_MAX: usize = 16_384;
/// A name that is replaced while it is looked up is looked up again so often.
const LOOKUPS_MAX: u32 = 8;

/// So often a directory that goes on changing is copied ahead of its move.
const STAGE_ROUNDS_MAX: u32 = 8;
/// Before a transfer is tried again that another one's remains were in the way of.
const STAGE_PAUSE: Duration = Duration::from_millis(50);

/// What [`Fs::create`] makes.
#[derive(Clone, Debug)]
pub struct NewEntry {
    /// What.
    pub node: NewNode,
    /// Permission bits, umask applied.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Owning group.
    pub gid: u32,
}

/// What [`Fs::create`] found.
#[derive(Debug)]
pub enum Created {
    /// It is new.
    New(Attr),
    /// The name was taken.
    Taken(Dirent),
}

impl Fs {
    fn facts(&self) -> Facts {
        Facts::new(self.timeouts.deadline)
    }

    /// What a name stands for, if that may be answered without asking.
    pub fn lookup_cached(&self, parent: InodeId, name: &[u8]) -> Option<FsResult<Arc<Attr>>> {
        if name.len() > NAME_BYTES_MAX {
            return Some(Err(Errno::ENAMETOOLONG));
        }
        let cache = self.volume.cache();
        match cache.dirent(self.table.home(parent), parent, name)? {
            Some(dirent) => cache.attr(dirent.home, dirent.ino).map(Ok),
            None => Some(Err(Errno::ENOENT)),
        }
    }

    /// What a name stands for.
    pub async fn lookup(self: &Arc<Self>, parent: NodeRef, name: &Bytes) -> FsResult<Arc<Attr>> {
        check_name(name)?;
        for _ in 0..LOOKUPS_MAX {
            let (dirent, attr) =
                self.find(parent, name, &Facts::new(self.timeouts.deadline)).await?.ok_or(Errno::ENOENT)?;
            if let Some(attr) = attr {
                return Ok(attr);
            }
            match self.attr(dirent).await {
                // It was removed in between: the name tells what is there now.
                Err(Errno::ESTALE | Errno::ENOENT) => {}
                other => return other,
            }
        }
        Err(Errno::ESTALE)
    }

    /// A directory entry, with the inode if it is at hand.
    async fn find(
        self: &Arc<Self>,
        parent: NodeRef,
        name: &Bytes,
        facts: &Facts,
    ) -> FsResult<Option<(Dirent, Option<Arc<Attr>>)>> {
        if let Some(told) = facts.name(parent.ino, name) {
            return Ok(told.map(|dirent| (dirent, None)));
        }
        let parent = facts.at_home(parent);
        let cache = self.volume.cache();
        if let Some(dirent) = cache.dirent(parent.home, parent.ino, name) {
            return Ok(dirent.map(|dirent| (dirent, cache.attr(dirent.home, dirent.ino))));
        }
        let known = || cache.dirent(parent.home, parent.ino, name);
        match self.ask_unless(parent, ReadOp::Lookup { parent: parent.ino, name: name.clone() }, known).await? {
            Told::Known(dirent) => Ok(dirent.map(|dirent| (dirent, cache.attr(dirent.home, dirent.ino)))),
            Told::Asked(ReadAnswer::Lookup(None)) => {
                self.learn_names(parent);
                Ok(None)
            }
            Told::Asked(ReadAnswer::Lookup(Some((dirent, attr)))) => Ok(Some((dirent, attr.map(Arc::from)))),
            Told::Asked(_) => Err(Errno::EIO),
        }
    }

    /// Makes a new inode with a name.
    pub async fn create(self: &Arc<Self>, parent: NodeRef, name: &Bytes, entry: &NewEntry) -> FsResult<Created> {
        check_name(name)?;
        if let NewNode::Symlink { target } = &entry.node
            && target.len() > SYMLINK_BYTES_MAX
        {
            return Err(Errno::ENAMETOOLONG);
        }
        let mut facts = self.facts();
        loop {
            let parent = facts.at_home(parent);
            let home = match (&entry.node, facts.placement(parent.ino)) {
                (NewNode::Directory { placement: Some(placement) }, _) => *placement,
                (_, Some(told)) => told,
                (_, None) => match self.table.placement(parent.ino) {
                    Some(guess) => guess,
                    None => self.attr(parent).await.map_err(gone)?.placement,
                },
            };
            let op = FsOp::Create {
                parent,
                name: name.clone(),
                node: entry.node.clone(),
                mode: entry.mode,
                uid: entry.uid,
                gid: entry.gid,
                home,
            };
            match self.volume.update(op).await.map_err(|error| told(&error))? {
                Ok(Done::Node { attr, .. }) => {
                    self.expect_attr(parent);
                    return Ok(Created::New(*attr));
                }
                Ok(_) => return Err(Errno::EIO),
                Err(OpError::Exists(dirent)) => return Ok(Created::Taken(dirent)),
                Err(error) => facts.learn(&self.table, error).await.map_err(gone)?,
            }
        }
    }

    /// link(2).
    pub async fn link(&self, node: NodeRef, parent: NodeRef, name: &Bytes) -> FsResult<Attr> {
        check_name(name)?;
        if node.kind == FileKind::Directory {
            return Err(Errno::EPERM);
        }
        let mut facts = self.facts();
        loop {
            let op = FsOp::Link { node: facts.at_home(node), parent: facts.at_home(parent), name: name.clone() };
            match self.update(op, &mut facts).await.map_err(gone)? {
                Some(Done::Node { attr, .. }) => return Ok(*attr),
                Some(_) => return Err(Errno::EIO),
                None => {}
            }
        }
    }

    /// unlink(2), or rmdir(2) if `directory`.
    pub async fn remove(self: &Arc<Self>, parent: NodeRef, name: &Bytes, directory: bool) -> FsResult<()> {
        check_name(name)?;
        let whose = parent;
        let mut facts = self.facts();
        loop {
            let (target, _) = self.find(parent, name, &facts).await.map_err(gone)?.ok_or(Errno::ENOENT)?;
            let target = facts.at_home(target);
            match (directory, target.kind) {
                (false, FileKind::Directory) => return Err(Errno::EISDIR),
                (true, FileKind::Directory) | (false, _) => {}
                (true, _) => return Err(Errno::ENOTDIR),
            }
            let removal = self.begin_removal(target.ino);
            let (parent, name, keep_open) = (facts.at_home(parent), name.clone(), removal.keep_open);
            let op = if directory {
                FsOp::Rmdir { parent, name, target, keep_open }
            } else {
                FsOp::Unlink { parent, name, target, keep_open }
            };
            match self.update(op, &mut facts).await.map_err(gone)? {
                Some(Done::Removed { attr, .. }) => {
                    self.expect_attr(facts.at_home(whose));
                    self.mind_orphan(&attr, keep_open);
                    return Ok(());
                }
                Some(_) => return Ok(()),
                None => {}
            }
        }
    }

    /// rename(2), renameat2(2).
    pub async fn rename(
        self: &Arc<Self>,
        from: (NodeRef, &Bytes),
        to: (NodeRef, &Bytes),
        mode: RenameMode,
    ) -> FsResult<()> {
        check_name(from.1)?;
        check_name(to.1)?;
        let mut facts = self.facts();
        loop {
            let (source, _) = self.find(from.0, from.1, &facts).await.map_err(gone)?.ok_or(Errno::ENOENT)?;
            let target = self.find(to.0, to.1, &facts).await.map_err(gone)?.map(|(dirent, _)| facts.at_home(dirent));
            let source = facts.at_home(source);
            let (from_parent, to_parent) = (facts.at_home(from.0), facts.at_home(to.0));
            match (mode, &target) {
                (RenameMode::NoReplace, Some(_)) if facts.is_first_try() => return Err(Errno::EEXIST),
                (RenameMode::Exchange, None) => return Err(Errno::ENOENT),
                // Two names of one inode both stay, but the two were seen at different times: the namespace decides.
                _ => {}
            }
            let ancestors = self.ancestors_of_rename(&facts, mode, from_parent, source, to_parent, target).await?;
            let replaced = target.filter(|_| mode == RenameMode::Replace);
            let removal = replaced.map(|target| self.begin_removal(target.ino));
            let keep_open = removal.as_ref().is_some_and(|removal| removal.keep_open);
            let op = FsOp::Rename {
                from_parent,
                from_name: from.1.clone(),
                source,
                to_parent,
                to_name: to.1.clone(),
                target,
                mode,
                ancestors,
                keep_open,
            };
            match self.update(op, &mut facts).await.map_err(gone)? {
                Some(Done::Renamed { attr, target, .. }) => {
                    self.table.moved(attr.ino, attr.home);
                    if let Some(target) = target {
                        self.table.moved(target.ino, target.home);
                        self.mind_orphan(&target, keep_open);
                    }
                    return Ok(());
                }
                Some(_) => return Ok(()),
                None => {}
            }
        }
    }

    /// The chains that make sure that no directory becomes its own ancestor.
    async fn ancestors_of_rename(
        &self,
        facts: &Facts,
        mode: RenameMode,
        from_parent: NodeRef,
        source: NodeRef,
        to_parent: NodeRef,
        target: Option<Dirent>,
    ) -> FsResult<Vec<Ancestor>> {
        let mut chain = Vec::new();
        if from_parent.ino == to_parent.ino {
            return Ok(chain);
        }
        if source.kind == FileKind::Directory {
            chain = self.ancestors(facts, to_parent).await?;
            if chain.iter().any(|step| step.dir.ino == source.ino) || to_parent.ino == source.ino {
                return Err(Errno::EINVAL);
            }
        }
        if mode == RenameMode::Exchange
            && let Some(target) = target
            && target.kind == FileKind::Directory
        {
            for step in self.ancestors(facts, from_parent).await? {
                if step.dir.ino == target.ino {
                    return Err(Errno::EINVAL);
                }
                if chain.iter().any(|known| known.dir.ino == step.dir.ino) {
                    // From here on both go the same way. What another look would say of it may be another time's.
                    break;
                }
                chain.push(step);
            }
        }
        Ok(chain)
    }

    /// The chain of parents from `dir` (included) to the root (not included).
    async fn ancestors(&self, facts: &Facts, dir: NodeRef) -> FsResult<Vec<Ancestor>> {
        let mut chain: Vec<Ancestor> = Vec::new();
        let mut next = facts.at_home(dir);
        while next.ino != InodeId::ROOT {
            if chain.len() > DEPTH_MAX {
                return Err(Errno::EIO);
            }
            let told = facts.parent(next.ino);
            let cached = || self.volume.cache().attr(next.home, next.ino)?.parent;
            if let Some(parent) = told.or_else(cached) {
                chain.push(Ancestor { dir: next, parent });
                next = facts.at_home(self.table.directory(parent));
                continue;
            }
            let ReadAnswer::Ancestors(steps) = self.ask(next, ReadOp::Ancestors { dir: next.ino }).await? else {
                return Err(Errno::EIO);
            };
            let before = chain.len();
            for (dirent, parent) in steps {
                if dirent.ino == InodeId::ROOT || dirent.ino != next.ino {
                    break;
                }
                let parent = facts.parent(dirent.ino).unwrap_or(parent);
                chain.push(Ancestor { dir: dirent, parent });
                next = facts.at_home(self.table.directory(parent));
            }
            if chain.len() == before {
                return Err(Errno::ESTALE);
            }
        }
        Ok(chain)
    }

    fn mind_orphan(&self, attr: &Attr, keep_open: bool) {
        if attr.nlink > 0 {
            return;
        }
        if !keep_open {
            self.unlinked.lock().insert(attr.ino);
        } else if !self.table.become_orphan(attr.ino) {
            // Closed in the meantime: nobody else will say so.
            self.put_orphan(attr.home, attr.ino);
        }
    }

    /// Sets a directory's placement.
    pub async fn set_placement(&self, dir: NodeRef, placement: GroupId) -> FsResult<()> {
        let mut facts = self.facts();
        loop {
            let op = FsOp::SetPlacement { dir: facts.at_home(dir), placement };
            if self.update(op, &mut facts).await?.is_some() {
                return Ok(());
            }
        }
    }

    /// Moves the inode of a name to another group; false if it is there already.
    pub async fn move_inode(self: &Arc<Self>, parent: NodeRef, name: &Bytes, to: GroupId) -> FsResult<bool> {
        let mut facts = self.facts();
        let (transfer, mut after, mut rounds) = (crate::session::random(), 0, 0);
        loop {
            let (node, _) = self.find(parent, name, &facts).await?.ok_or(Errno::ENOENT)?;
            let node = facts.at_home(node);
            if node.home == to {
                return Ok(false);
            }
            let op = FsOp::MoveInode { parent: facts.at_home(parent), name: name.clone(), node, to };
            if let Some(done) = self.update(op, &mut facts).await? {
                if let Done::Node { attr, .. } = done {
                    self.table.moved(attr.ino, attr.home);
                }
                return Ok(true);
            }
            if facts.attr_refused && facts.at_home(node).home == node.home {
                // It has other links or locks, or is too large to move in one step.
                if node.kind != FileKind::Directory || rounds == STAGE_ROUNDS_MAX {
                    return Err(Errno::EBUSY);
                }
                rounds += 1;
                facts.attr_refused = false;
                after = self.copy_ahead(node, to, transfer, after).await?;
            }
        }
    }

    /// Copies a directory's entries to another group ahead of it, from where that was left; up to which cookie.
    async fn copy_ahead(&self, dir: NodeRef, to: GroupId, transfer: u64, mut after: u64) -> FsResult<u64> {
        let mut facts = self.facts();
        let mut is_cleared = false;
        loop {
            match self.update(FsOp::StageMove { dir, to, transfer, after }, &mut facts).await {
                Ok(Some(Done::Staged { upto, end: true })) => return Ok(upto),
                // Each step has a deadline of its own.
                Ok(Some(Done::Staged { upto, .. })) => (after, facts, is_cleared) = (upto, self.facts(), false),
                Ok(Some(_)) => return Err(Errno::EIO),
                Ok(None) => {}
                // What another transfer has left, or this one, if it lost its way.
                Err(Errno::EBUSY) if !is_cleared => {
                    for home in [dir.home, to] {
                        self.update(FsOp::CancelMove { home, dir: dir.ino }, &mut facts).await?;
                    }
                    (after, is_cleared) = (0, true);
                }
                // The old copy goes in steps.
                Err(Errno::EBUSY) if !facts.is_late() => tokio::time::sleep(STAGE_PAUSE).await,
                Err(errno) => return Err(errno),
            }
        }
    }
}

/// A directory that is gone has no names.
fn gone(errno: Errno) -> Errno {
    if errno == Errno::ESTALE { Errno::ENOENT } else { errno }
}

pub(crate) fn check_name(name: &Bytes) -> FsResult<()> {
    match name.len() {
        0 => Err(Errno::ENOENT),
        len if len > NAME_BYTES_MAX => Err(Errno::ENAMETOOLONG),
        _ => Ok(()),
    }
}
