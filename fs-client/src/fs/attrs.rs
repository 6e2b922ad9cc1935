//! Attributes, symlinks, xattrs, totals.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use metadata::op::{FsOp, SetAttr, XattrCondition};
use metadata::outcome::Done;
use metadata::read::{ReadAnswer, ReadOp};
use metadata::types::{Attr, FILE_BYTES_MAX, FileKind, InodeId, NodeRef};

use super::facts::Facts;
use super::file::OpenFile;
use super::{Fs, FsResult};
use crate::errno::Errno;

const USAGE_PATIENCE: Duration = Duration::from_secs(2);
const XATTR_NAME_MAX: usize = 255;
const XATTR_BYTES_MAX: usize = 64 << 10;

impl Fs {
    /// The attributes with what this mount has written and not flushed.
    pub fn show(&self, attr: &Attr) -> Attr {
        let mut shown = attr.clone();
        if attr.kind == FileKind::File
            && let Some(file) = self.table.file(attr.ino)
        {
            file.show(&mut shown);
        }
        shown
    }

    /// Attributes for stat(2), exact: what was written goes out first, so that size and times are final, unless the bucket
    /// takes nothing at the moment: then waiting is in vain.
    pub async fn stat(self: &Arc<Self>, node: NodeRef) -> FsResult<Attr> {
        if let Some(file) = self.table.file(node.ino)
            && file.is_dirty()
            && !self.is_bucket_failing()
        {
            // A stat tells nothing of failed writes; fsync and close do, also of those that it found.
            let _ = self.bring_home(&file).await;
        }
        self.attr(node).await.map(|attr| self.show(&attr))
    }

    /// setattr: chmod, chown, truncate, utimens.
    pub async fn set_attr(self: &Arc<Self>, node: NodeRef, set: SetAttr) -> FsResult<Attr> {
        if set.size.is_some_and(|size| size > FILE_BYTES_MAX) {
            return Err(Errno::EFBIG);
        }
        match self.table.file(node.ino).filter(|file| file.is_dirty()) {
            Some(file) if set.size == Some(0) => {
                // One that was cancelled half-way would leave the data neither here nor there.
                let fs = self.clone();
                let task = tokio::spawn(async move { fs.empty(node, &set, &file).await });
                return task.await.unwrap_or(Err(Errno::EIO));
            }
            Some(file) => {
                let brought = self.bring_home(&file).await;
                // What was dropped is told by fsync, and no longer in the way.
                if file.is_dirty() {
                    brought?;
                }
            }
            None => {}
        }
        self.send_attr(node, &set).await
    }

    /// Truncates to nothing: what was written and not flushed need not go out, but is forgotten only once that is done.
    async fn empty(&self, node: NodeRef, set: &SetAttr, file: &OpenFile) -> FsResult<Attr> {
        let _work = file.work.lock().await;
        // One that executes later would bring back what it wrote.
        self.settle_earlier(file).await?;
        let aside = self.set_aside(file);
        let result = self.send_attr(node, set).await;
        if let Some(aside) = aside {
            self.give_back(file, aside, result.is_ok());
        }
        result
    }

    async fn send_attr(&self, node: NodeRef, set: &SetAttr) -> FsResult<Attr> {
        let mut facts = Facts::new(self.timeouts.deadline);
        loop {
            let op = FsOp::SetAttr { node: facts.at_home(node), set: set.clone() };
            match self.update(op, &mut facts).await? {
                Some(Done::Node { attr, .. }) => return Ok(*attr),
                Some(_) => return Err(Errno::EIO),
                None => {}
            }
        }
    }

    /// A symlink's target.
    pub async fn read_link(&self, node: NodeRef) -> FsResult<Bytes> {
        if let Some(target) = self.volume.cache().target(node.home, node.ino) {
            return Ok(target);
        }
        match self.ask(node, ReadOp::ReadLink { ino: node.ino }).await? {
            ReadAnswer::Target(target) => Ok(target),
            _ => Err(Errno::EIO),
        }
    }

    /// An xattr's value, if it may be given without asking.
    pub fn xattr_cached(&self, ino: InodeId, name: &[u8]) -> Option<FsResult<Bytes>> {
        let value = self.volume.cache().xattr(self.table.home(ino), ino, name)?;
        Some(value.ok_or(Errno::ENODATA))
    }

    /// An xattr's value.
    pub async fn xattr(&self, node: NodeRef, name: Bytes) -> FsResult<Bytes> {
        check_xattr(&name)?;
        // Most inodes have none, and the kernel asks before the first write to each: its attributes are worth more.
        if self.attr(node).await?.xattrs == 0 {
            return Err(Errno::ENODATA);
        }
        match self.ask(node, ReadOp::GetXattr { ino: node.ino, name }).await? {
            ReadAnswer::Xattr(value) => Ok(value),
            _ => Err(Errno::EIO),
        }
    }

    /// All xattrs' names, each ended by a zero byte.
    pub async fn xattr_names(&self, node: NodeRef) -> FsResult<Vec<u8>> {
        if self.volume.cache().attr(node.home, node.ino).is_some_and(|attr| attr.xattrs == 0) {
            return Ok(Vec::new());
        }
        let ReadAnswer::Xattrs(names) = self.ask(node, ReadOp::ListXattr { ino: node.ino }).await? else {
            return Err(Errno::EIO);
        };
        let mut list = Vec::new();
        for name in names {
            list.extend_from_slice(&name);
            list.push(0);
        }
        Ok(list)
    }

    /// setxattr(2).
    pub async fn set_xattr(&self, node: NodeRef, name: Bytes, value: Bytes, condition: XattrCondition) -> FsResult<()> {
        check_xattr(&name)?;
        if value.len() > XATTR_BYTES_MAX {
            return Err(Errno::E2BIG);
        }
        let mut facts = Facts::new(self.timeouts.deadline);
        loop {
            let op = FsOp::SetXattr { node: facts.at_home(node), name: name.clone(), value: value.clone(), condition };
            if self.update(op, &mut facts).await?.is_some() {
                return Ok(());
            }
        }
    }

    /// removexattr(2).
    pub async fn remove_xattr(&self, node: NodeRef, name: Bytes) -> FsResult<()> {
        check_xattr(&name)?;
        let mut facts = Facts::new(self.timeouts.deadline);
        loop {
            let op = FsOp::RemoveXattr { node: facts.at_home(node), name: name.clone() };
            if self.update(op, &mut facts).await?.is_some() {
                return Ok(());
            }
        }
    }

    /// Inodes and bytes in the group where an inode lives, or as last known: df(1) must not hang on a far region. Only a
    /// linearizable answer is never an old one.
    pub async fn usage(&self, node: NodeRef) -> FsResult<(u64, u64)> {
        if self.is_linearizable() {
            return match self.ask(node, ReadOp::Usage).await? {
                ReadAnswer::Usage { inodes, bytes } => Ok((inodes, bytes)),
                _ => Err(Errno::EIO),
            };
        }
        let patience = USAGE_PATIENCE.min(self.timeouts.deadline);
        let asked = tokio::time::timeout(patience, self.ask(node, ReadOp::Usage)).await;
        if let Ok(Ok(ReadAnswer::Usage { inodes, bytes })) = asked {
            self.usage.lock().insert(node.home, (inodes, bytes));
        }
        Ok(self.usage.lock().get(&node.home).copied().unwrap_or_default())
    }
}

fn check_xattr(name: &Bytes) -> FsResult<()> {
    if name.is_empty() || name.len() > XATTR_NAME_MAX {
        return Err(Errno::ERANGE);
    }
    // Access control lists are not enforced, so they are not accepted either.
    if name.starts_with(b"system.posix_acl_") {
        return Err(Errno::EOPNOTSUPP);
    }
    Ok(())
}
