//! What the kernel is shown, and how long it may keep that.

use std::ffi::OsStr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fuser::{FileAttr, Generation, INodeNo, ReplyData, ReplyEmpty, ReplyEntry, ReplyXattr, Request};
use metadata::types::{Attr, Dirent, FileKind};

use super::convert::{file_attr, name as to_name, nothing};
use super::counts::Asked;
use super::lent::KernelCaches;
use super::places::Places;
use super::{Face, errno};
use crate::errno::Errno;
use crate::fs::{Created, Fs, FsResult, NewEntry};
use crate::signals::interrupted;

/// What is not lent is asked for each time.
pub(super) const NOT_LENT: Duration = Duration::ZERO;
/// Inode numbers are never reused.
pub(super) const GENERATION: Generation = Generation(0);
impl Face {
    /// Does the work elsewhere, and answers when all that the kernel keeps agrees with the result.
    pub(super) fn answer<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
        give: impl FnOnce(T) + Send + 'static,
    ) {
        let caches = self.caches.clone();
        self.runtime.spawn(async move {
            let result = work.await;
            caches.settle().await;
            give(result);
        });
    }

    /// The same for somebody who may be interrupted. What is under way is dropped then: an update may be executed or not.
    pub(super) fn answer_to<T: Send + 'static>(
        &self,
        asker: &Request,
        work: impl Future<Output = FsResult<T>> + Send + 'static,
        give: impl FnOnce(FsResult<T>) + Send + 'static,
    ) {
        let thread = asker.pid();
        let work = async move {
            tokio::select! {
                biased;
                result = work => result,
                () = interrupted(thread) => Err(Errno::EINTR),
            }
        };
        self.answer(work, give);
    }

    /// The same, but the work goes on: half of it would be worse than nothing.
    pub(super) fn answer_anyway<T: Send + 'static>(
        &self,
        asker: &Request,
        work: impl Future<Output = FsResult<T>> + Send + 'static,
        give: impl FnOnce(FsResult<T>) + Send + 'static,
    ) {
        let work = self.runtime.spawn(work);
        self.answer_to(asker, async move { work.await.unwrap_or(Err(Errno::EIO)) }, give);
    }

    /// An operation that creates an inode and shows it to the kernel.
    pub(super) fn make(&self, asker: &Request, parent: INodeNo, name: &OsStr, entry: NewEntry, reply: ReplyEntry) {
        self.counts.add(Asked::Make);
        let (fs, dir, name) = (self.fs.clone(), self.ino(parent), to_name(name));
        let shown = self.shown(parent, &name);
        let work = async move {
            match fs.create(fs.table.directory(dir), &name, &entry).await? {
                Created::New(attr) => Ok(attr),
                Created::Taken(_) => Err(Errno::EEXIST),
            }
        };
        self.answer_to(asker, work, move |made| match made {
            Ok(attr) => shown.give_new(&attr, reply),
            Err(error) => reply.error(errno(error)),
        });
    }

    pub(super) fn remove(&self, asker: &Request, parent: INodeNo, name: &OsStr, directory: bool, reply: ReplyEmpty) {
        self.counts.add(Asked::Remove);
        let (fs, dir, name) = (self.fs.clone(), self.ino(parent), to_name(name));
        let work = async move { fs.remove(fs.table.directory(dir), &name, directory).await };
        self.answer_to(asker, work, move |removed| give_empty(removed, reply));
    }

    pub(super) fn shown(&self, parent: INodeNo, name: &Bytes) -> Shown {
        let (fs, places, caches) = (self.fs.clone(), self.places.clone(), self.caches.clone());
        Shown { fs, places, caches, parent, name: name.clone() }
    }
}

/// A name of which the kernel is told what it stands for.
pub(super) struct Shown {
    fs: Arc<Fs>,
    places: Arc<Places>,
    caches: Arc<KernelCaches>,
    /// The directory, by the kernel's number.
    parent: INodeNo,
    name: Bytes,
}

impl Shown {
    /// What was just made. The kernel takes this for the newest, whatever it is told meanwhile, so nothing is lent.
    pub(super) fn give_new(&self, attr: &Attr, reply: ReplyEntry) {
        self.fs.table.remember(attr);
        reply.entry(&NOT_LENT, &self.attr(attr), GENERATION);
    }

    /// What was found. `from_cache`: it was at hand.
    pub(super) fn give(&self, found: FsResult<Arc<Attr>>, from_cache: bool, reply: ReplyEntry) {
        match found {
            Ok(attr) => {
                let was_told = self.fs.table.remember(&attr);
                let shown = self.attr(&attr);
                let is_known = was_told && shown.ino.0 == attr.ino.0;
                let attr_ttl = lend_attr(&self.fs, &self.caches, shown.ino, &attr, is_known);
                let there = Dirent { ino: attr.ino, kind: attr.kind, home: attr.home };
                reply.entry_with_ttls(&attr_ttl, &self.lend_name(Some(there)), &shown, GENERATION);
            }
            // Most names that are looked up in vain are made next.
            Err(Errno::ENOENT) if from_cache => {
                let ttl = self.lend_name(None);
                if ttl.is_zero() {
                    reply.error(errno(Errno::ENOENT));
                } else {
                    reply.entry(&ttl, &nothing(), GENERATION);
                }
            }
            Err(error) => reply.error(errno(error)),
        }
    }

    pub(super) fn lend_name(&self, dirent: Option<Dirent>) -> Duration {
        let dir = self.places.inode(self.parent.0);
        self.caches.lend_name(self.fs.table.home(dir), dir, &self.name, dirent)
    }

    pub(super) fn attr(&self, attr: &Attr) -> FileAttr {
        let mut shown = file_attr(&self.fs.show(attr));
        if attr.kind == FileKind::Directory {
            shown.ino = INodeNo(self.places.show(attr.ino, self.parent.0, &self.name));
        }
        shown
    }
}

/// How long the kernel may keep an inode's attributes as the metadata have them: not while it is shown others, or will be soon.
pub(super) fn lend_attr(fs: &Fs, caches: &KernelCaches, number: INodeNo, attr: &Attr, is_known: bool) -> Duration {
    let file = || fs.table.file(attr.ino).filter(|_| attr.kind == FileKind::File);
    if file().is_some_and(|file| file.is_about_to_change()) {
        NOT_LENT
    } else {
        caches.lend_attr(number.0, attr, is_known)
    }
}

pub(super) fn give_data(result: FsResult<Bytes>, reply: ReplyData) {
    match result {
        Ok(bytes) => reply.data(&bytes),
        Err(error) => reply.error(errno(error)),
    }
}

pub(super) fn give_empty(result: FsResult<()>, reply: ReplyEmpty) {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(errno(error)),
    }
}

pub(super) fn give_xattr(result: FsResult<Bytes>, size: u32, reply: ReplyXattr) {
    match result {
        Ok(value) if size == 0 => reply.size(u32::try_from(value.len()).unwrap_or(u32::MAX)),
        Ok(value) if value.len() > size as usize => reply.error(errno(Errno::ERANGE)),
        Ok(value) => reply.data(&value),
        Err(error) => reply.error(errno(error)),
    }
}
