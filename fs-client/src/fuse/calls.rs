//! The kernel's requests, one after the other. Each is: what does memory know; else ask, and reply from there.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use bytes::Bytes;
use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, FileHandle, Filesystem, FopenFlags, INodeNo, KernelConfig,
    LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus,
    ReplyEmpty, ReplyEntry, ReplyLock, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow,
    WriteFlags,
};
use metadata::op::{LockRange, NewNode, RenameMode, SetAttr, XattrCondition};
use metadata::types::{FileKind, InodeId, NAME_BYTES_MAX};

use super::answers::{GENERATION, NOT_LENT, give_data, give_empty, give_xattr, lend_attr};
use super::convert::{file_attr, file_type, lock_kind, lock_number, name as to_name, new_node, permissions, set_time};
use super::counts::Asked;
use super::opening::{Caller, Opening, create_or_open, is_for_writing_only, kept_by_kernel};
use super::{Face, REQUEST_BYTES_MAX, configure, errno};
use crate::errno::Errno;
use crate::fs::file::OpenFile;
use crate::fs::{LockRequest, NewEntry, Write, Written};

/// The volume has no size of its own; programs want to see one: 1 PiB, 2^40 inodes.
const VOLUME_BLOCKS: u64 = 1 << 38;
const VOLUME_INODES: u64 = 1 << 40;
const STATFS_BLOCK_BYTES: u32 = 4096;

impl Face {
    fn file(&self, ino: INodeNo) -> Result<Arc<OpenFile>, Errno> {
        self.fs.table.file(InodeId(ino.0)).ok_or(Errno::EBADF)
    }

    /// The inode behind the kernel's number of what may be a directory.
    pub(super) fn ino(&self, number: INodeNo) -> InodeId {
        self.places.inode(number.0)
    }
}

impl Filesystem for Face {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        configure(config);
        Ok(())
    }

    fn lookup(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.counts.add(Asked::Lookup);
        let (dir, name) = (self.ino(parent), to_name(name));
        let shown = self.shown(parent, &name);
        if let Some(found) = self.fs.lookup_cached(dir, &name)
            && self.caches.is_settled()
        {
            return shown.give(found, true, reply);
        }
        let fs = self.fs.clone();
        let work = async move { fs.lookup(fs.table.directory(dir), &name).await };
        self.answer_to(req, work, move |found| shown.give(found, false, reply));
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        self.counts.add(Asked::Forget);
        if ino.0 != InodeId::ROOT.0 {
            let ino = self.places.forget(ino.0, nlookup);
            if let Some(home) = self.fs.table.forget(ino, nlookup) {
                self.caches.forget(home, ino);
            }
        }
    }

    fn getattr(&self, req: &Request, number: INodeNo, fh: Option<FileHandle>, reply: ReplyAttr) {
        self.counts.add(Asked::GetAttr);
        let ino = self.ino(number);
        // With a handle the kernel wants to know whether its pages are good; without, stat(2) asks: that must be exact.
        let exact = fh.is_none() && self.fs.table.file(ino).is_some_and(|file| file.is_dirty());
        if !exact
            && let Some(attr) = self.fs.cached_attr(ino)
            && self.caches.is_settled()
        {
            let shown = file_attr(&self.fs.show(&attr));
            return reply.attr(&lend_attr(&self.fs, &self.caches, number, &attr, true), &shown);
        }
        let (fs, caches) = (self.fs.clone(), self.caches.clone());
        let asker = fs.clone();
        let work = async move {
            let node = asker.node(ino);
            if exact { asker.stat(node).await.map(Arc::new) } else { asker.attr(node).await }
        };
        self.answer_to(req, work, move |attr| match attr {
            Ok(attr) => {
                let shown = file_attr(&fs.show(&attr));
                reply.attr(&lend_attr(&fs, &caches, number, &attr, true), &shown);
            }
            Err(error) => reply.error(errno(error)),
        });
    }

    fn setattr(
        &self,
        req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        self.counts.add(Asked::SetAttr);
        let node = self.fs.node(self.ino(ino));
        // Set-id bits go when an owner changes, and when someone unprivileged changes the content.
        let owner = node.kind != FileKind::Directory && (uid.is_some() || gid.is_some());
        let set = SetAttr {
            mode: mode.map(permissions),
            uid,
            gid,
            size,
            atime: atime.map(set_time),
            mtime: mtime.map(set_time),
            kill_privileges: mode.is_none() && (owner || (size.is_some() && Caller::of(req).is_unprivileged())),
        };
        let fs = self.fs.clone();
        let work =
            async move { if set == SetAttr::default() { fs.stat(node).await } else { fs.set_attr(node, set).await } };
        self.answer_to(req, work, move |attr| match attr {
            // The kernel takes this for the newest, whatever it is told meanwhile.
            Ok(attr) => reply.attr(&NOT_LENT, &file_attr(&attr)),
            Err(error) => reply.error(errno(error)),
        });
    }

    fn readlink(&self, req: &Request, ino: INodeNo, reply: ReplyData) {
        self.counts.add(Asked::Other);
        let node = self.fs.node(InodeId(ino.0));
        let fs = self.fs.clone();
        self.answer_to(req, async move { fs.read_link(node).await }, move |target| give_data(target, reply));
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        match new_node(mode, rdev) {
            Ok(node) => {
                let entry = NewEntry { node, mode: permissions(mode), uid: req.uid(), gid: req.gid() };
                self.make(req, parent, name, entry, reply);
            }
            Err(error) => reply.error(errno(error)),
        }
    }

    fn mkdir(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, _umask: u32, reply: ReplyEntry) {
        let node = NewNode::Directory { placement: None };
        let entry = NewEntry { node, mode: permissions(mode), uid: req.uid(), gid: req.gid() };
        self.make(req, parent, name, entry, reply);
    }

    fn unlink(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.remove(req, parent, name, false, reply);
    }

    fn rmdir(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.remove(req, parent, name, true, reply);
    }

    fn symlink(&self, req: &Request, parent: INodeNo, link_name: &OsStr, target: &Path, reply: ReplyEntry) {
        let node = NewNode::Symlink { target: to_name(target.as_os_str()) };
        self.make(req, parent, link_name, NewEntry { node, mode: 0o777, uid: req.uid(), gid: req.gid() }, reply);
    }

    fn rename(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        self.counts.add(Asked::Rename);
        let mode = if flags.is_empty() {
            RenameMode::Replace
        } else if flags == RenameFlags::RENAME_NOREPLACE {
            RenameMode::NoReplace
        } else if flags == RenameFlags::RENAME_EXCHANGE {
            RenameMode::Exchange
        } else {
            return reply.error(errno(Errno::EINVAL));
        };
        let (fs, places, name, newname) = (self.fs.clone(), self.places.clone(), to_name(name), to_name(newname));
        let work = async move {
            let from = (fs.table.directory(places.inode(parent.0)), &name);
            let to = (fs.table.directory(places.inode(newparent.0)), &newname);
            fs.rename(from, to, mode).await?;
            places.renamed((parent.0, &name), (newparent.0, &newname), mode == RenameMode::Exchange);
            Ok(())
        };
        self.answer_to(req, work, move |renamed| give_empty(renamed, reply));
    }

    fn link(&self, req: &Request, ino: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry) {
        self.counts.add(Asked::Link);
        let (fs, dir, name) = (self.fs.clone(), self.ino(newparent), to_name(newname));
        let shown = self.shown(newparent, &name);
        let work = async move { fs.link(fs.node(InodeId(ino.0)), fs.table.directory(dir), &name).await };
        self.answer_to(req, work, move |linked| match linked {
            Ok(attr) => shown.give_new(&attr, reply),
            Err(error) => reply.error(errno(error)),
        });
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        self.counts.add(Asked::Open);
        let node = self.fs.node(self.ino(ino));
        let kept = kept_by_kernel(flags.0, &self.fs);
        let handle = self.next_handle();
        let opening = Opening::begin(&self.fs, node);
        let is_being_removed = self.fs.is_being_removed(node.ino);
        if self.fs.volume.is_session_open(node.home) && !is_being_removed {
            opening.end();
            return reply.opened(handle, kept);
        }
        let fs = self.fs.clone();
        let work = async move {
            fs.ensure_session(node.home).await;
            let opened = if is_being_removed { fs.settle_open(node).await } else { Ok(()) };
            opening.end();
            opened
        };
        self.answer_to(req, work, move |opened| match opened {
            Ok(()) => reply.opened(handle, kept),
            Err(error) => reply.error(errno(error)),
        });
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        self.counts.add(Asked::Create);
        let (fs, dir, name) = (self.fs.clone(), self.ino(parent), to_name(name));
        let entry = NewEntry { node: NewNode::File, mode: permissions(mode), uid: req.uid(), gid: req.gid() };
        let caller = Caller::of(req);
        let (kept, handle) = (kept_by_kernel(flags, &self.fs), self.next_handle());
        let kept_if_new = if is_for_writing_only(flags) { FopenFlags::FOPEN_DIRECT_IO } else { kept };
        let work = async move {
            let (attr, is_new) = create_or_open(&fs, dir, &name, &entry, flags, caller).await?;
            let node = metadata::types::NodeRef { ino: attr.ino, kind: attr.kind, home: attr.home };
            let opening = Opening::begin(&fs, node);
            if is_new && let Some(file) = fs.table.file(attr.ino) {
                file.is_new.store(true, Ordering::Relaxed);
            }
            let settled = if fs.is_being_removed(attr.ino) { fs.settle_open(node).await } else { Ok(()) };
            opening.end();
            // The kernel looks again and makes a new one.
            settled.map_err(|_| Errno::ESTALE)?;
            fs.table.remember(&attr);
            Ok::<_, Errno>((file_attr(&fs.show(&attr)), if is_new { kept_if_new } else { kept }))
        };
        self.answer_to(req, work, move |shown| match shown {
            Ok((shown, kept)) => reply.created(&NOT_LENT, &shown, GENERATION, handle, kept),
            Err(error) => reply.error(errno(error)),
        });
    }

    fn read(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.counts.add(Asked::Read);
        let node = self.fs.node(self.ino(ino));
        let size = size.min(REQUEST_BYTES_MAX);
        // Reading ahead starts tasks, and this is the kernel's thread.
        let _context = self.runtime.enter();
        if let Some(bytes) = self.fs.read_cached(node, offset, size)
            && self.caches.is_settled()
        {
            return reply.data(&bytes);
        }
        let fs = self.fs.clone();
        self.answer_to(req, async move { fs.read(node, offset, size).await }, move |bytes| give_data(bytes, reply));
    }

    fn write(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        self.counts.add(Asked::Write);
        let file = match self.file(ino) {
            Ok(file) => file,
            Err(error) => return reply.error(errno(error)),
        };
        // Requests are never longer than their buffer.
        let count = data.len() as u32;
        // What comes from a mapping has its place, whatever the handle's flags are.
        let mapped = write_flags.contains(WriteFlags::FUSE_WRITE_CACHE);
        let append = flags.0 & libc::O_APPEND != 0 && !mapped;
        let kill_privileges = write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
        let write = Write { offset, bytes: data, append, kill_privileges };
        // Past its page cache the kernel does not ask for that by itself.
        let is_synchronous = flags.0 & libc::O_DSYNC != 0 && !mapped;
        let written = match self.fs.write(&file, write) {
            Ok(Written::Done) if !is_synchronous => return reply.written(count),
            Ok(written) => written,
            Err(error) => return reply.error(errno(error)),
        };
        let fs = self.fs.clone();
        let data = if matches!(written, Written::FlushFirst) { data.to_vec() } else { Vec::new() };
        let work = async move {
            match written {
                Written::Done => {}
                Written::Settle => fs.settle(&file).await,
                Written::FlushFirst => {
                    let write = Write { offset, bytes: &data, append, kill_privileges };
                    fs.write_settled(&file, write).await?;
                }
            }
            if is_synchronous { fs.flush(&file).await } else { Ok(()) }
        };
        self.answer(work, move |written| match written {
            Ok(()) => reply.written(count),
            Err(error) => reply.error(errno(error)),
        });
    }

    fn flush(&self, req: &Request, ino: INodeNo, _fh: FileHandle, lock_owner: LockOwner, reply: ReplyEmpty) {
        self.counts.add(Asked::Flush);
        let ino = InodeId(ino.0);
        let file = self.fs.table.file(ino).filter(|file| file.needs_flush());
        let locks = self.fs.holds_locks(ino, lock_owner.0);
        if file.is_none() && !locks {
            return reply.ok();
        }
        let fs = self.fs.clone();
        let work = async move {
            let flushed = match file {
                Some(file) => fs.flush(&file).await,
                None => Ok(()),
            };
            let unlocked = if locks { fs.unlock_all(fs.node(ino), lock_owner.0).await } else { Ok(()) };
            flushed.and(unlocked)
        };
        self.answer_anyway(req, work, move |flushed| give_empty(flushed, reply));
    }

    fn release(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.counts.add(Asked::Release);
        let ino = InodeId(ino.0);
        let file = self.fs.table.file(ino).filter(|file| file.is_dirty());
        let owner = lock_owner.map(|owner| owner.0).filter(|owner| self.fs.holds_locks(ino, *owner));
        if file.is_none() && owner.is_none() {
            self.fs.close_handle(ino);
            return reply.ok();
        }
        let fs = self.fs.clone();
        let work = async move {
            if let Some(file) = file
                && let Err(error) = fs.flush(&file).await
            {
                tracing::error!(%ino, %error, "written data could not be brought home after the last close");
            }
            if let Some(owner) = owner {
                fs.unlock_closed(fs.node(ino), owner, fh.0).await;
            }
            fs.close_handle(ino);
        };
        self.answer(work, move |()| reply.ok());
    }

    fn fsync(&self, req: &Request, ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        self.counts.add(Asked::Fsync);
        let Some(file) = self.fs.table.file(InodeId(ino.0)).filter(|file| file.needs_flush()) else {
            return reply.ok();
        };
        let fs = self.fs.clone();
        self.answer_anyway(req, async move { fs.flush(&file).await }, move |flushed| give_empty(flushed, reply));
    }

    fn opendir(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.counts.add(Asked::OpenDir);
        let node = self.fs.table.directory(self.ino(ino));
        self.fs.table.open(node.ino, FileKind::Directory, node.home);
        reply.opened(FileHandle(self.open_dir(node.ino)), FopenFlags::empty());
    }

    fn readdir(&self, req: &Request, _ino: INodeNo, fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let Some(dir) = self.dir(fh.0) else { return reply.error(errno(Errno::EBADF)) };
        self.counts.add(Asked::ReadDir);
        let fs = self.fs.clone();
        self.answer_to(req, async move { fs.read_dir(&dir, offset, false).await }, move |listed| match listed {
            Ok(entries) => {
                for entry in entries {
                    let name = OsStr::from_bytes(&entry.name);
                    if reply.add(INodeNo(entry.ino.0), entry.offset, file_type(entry.kind), name) {
                        break;
                    }
                }
                reply.ok();
            }
            Err(error) => reply.error(errno(error)),
        });
    }

    fn readdirplus(&self, req: &Request, ino: INodeNo, fh: FileHandle, offset: u64, mut reply: ReplyDirectoryPlus) {
        let Some(dir) = self.dir(fh.0) else { return reply.error(errno(Errno::EBADF)) };
        self.counts.add(Asked::ReadDir);
        let (fs, places) = (self.fs.clone(), self.places.clone());
        let asker = fs.clone();
        self.answer_to(req, async move { asker.read_dir(&dir, offset, true).await }, move |listed| {
            let entries = match listed {
                Ok(entries) => entries,
                Err(error) => return reply.error(errno(error)),
            };
            for entry in entries {
                let name = OsStr::from_bytes(&entry.name);
                // The kernel uses nothing of `.` and `..` but their numbers.
                let dot = entry.attr.is_none();
                let attr = entry.attr.as_ref().map_or_else(|| entry.placeholder(), |attr| fs.show(attr));
                let counts = !dot && attr.kind == FileKind::Directory;
                let number = if counts { places.show(attr.ino, ino.0, &entry.name) } else { entry.ino.0 };
                if reply.add(INodeNo(number), entry.offset, name, &NOT_LENT, &file_attr(&attr), GENERATION) {
                    if counts {
                        places.forget(number, 1);
                    }
                    break;
                }
                if !dot {
                    fs.table.remember(&attr);
                }
            }
            reply.ok();
        });
    }

    fn releasedir(&self, _req: &Request, ino: INodeNo, fh: FileHandle, _flags: OpenFlags, reply: ReplyEmpty) {
        self.dirs.lock().remove(&fh.0);
        self.fs.close_handle(self.ino(ino));
        reply.ok();
    }

    fn fsyncdir(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        // Every change of a directory was durable before it was acknowledged.
        reply.ok();
    }

    fn statfs(&self, req: &Request, ino: INodeNo, reply: ReplyStatfs) {
        self.counts.add(Asked::Other);
        let (fs, ino) = (self.fs.clone(), self.ino(ino));
        self.answer_to(req, async move { fs.usage(fs.node(ino)).await }, move |usage| {
            let (inodes, bytes) = match usage {
                Ok(usage) => usage,
                Err(error) => return reply.error(errno(error)),
            };
            let free = VOLUME_BLOCKS.saturating_sub(bytes.div_ceil(u64::from(STATFS_BLOCK_BYTES)));
            let free_inodes = VOLUME_INODES.saturating_sub(inodes);
            let name_max = u32::try_from(NAME_BYTES_MAX).unwrap_or(u32::MAX);
            let block = STATFS_BLOCK_BYTES;
            reply.statfs(VOLUME_BLOCKS, free, free, VOLUME_INODES, free_inodes, block, name_max, block);
        });
    }

    fn setxattr(
        &self,
        req: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        self.counts.add(Asked::Xattr);
        let condition = match flags {
            libc::XATTR_CREATE => XattrCondition::Create,
            libc::XATTR_REPLACE => XattrCondition::Replace,
            _ => XattrCondition::Any,
        };
        let (fs, ino, name, value) = (self.fs.clone(), self.ino(ino), to_name(name), Bytes::copy_from_slice(value));
        let work = async move { fs.set_xattr(fs.node(ino), name, value, condition).await };
        self.answer_to(req, work, move |set| give_empty(set, reply));
    }

    fn getxattr(&self, req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        self.counts.add(Asked::Xattr);
        let ino = self.ino(ino);
        if let Some(result) = self.fs.xattr_cached(ino, name.as_bytes())
            && self.caches.is_settled()
        {
            return give_xattr(result, size, reply);
        }
        let (fs, name) = (self.fs.clone(), to_name(name));
        let work = async move { fs.xattr(fs.node(ino), name).await };
        self.answer_to(req, work, move |value| give_xattr(value, size, reply));
    }

    fn listxattr(&self, req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let (fs, ino) = (self.fs.clone(), self.ino(ino));
        self.counts.add(Asked::Xattr);
        let work = async move { fs.xattr_names(fs.node(ino)).await };
        self.answer_to(req, work, move |names| give_xattr(names.map(Bytes::from), size, reply));
    }

    fn removexattr(&self, req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (fs, ino, name) = (self.fs.clone(), self.ino(ino), to_name(name));
        self.counts.add(Asked::Xattr);
        let work = async move { fs.remove_xattr(fs.node(ino), name).await };
        self.answer_to(req, work, move |removed| give_empty(removed, reply));
    }

    fn access(&self, _req: &Request, _ino: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        // The kernel checks modes itself (`default_permissions`).
        reply.ok();
    }

    fn getlk(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        lock_owner: LockOwner,
        start: u64,
        end: u64,
        typ: i32,
        pid: u32,
        reply: ReplyLock,
    ) {
        let kind = match lock_kind(typ) {
            Ok(kind) => kind,
            Err(error) => return reply.error(errno(error)),
        };
        let range = LockRange { start, end };
        let request =
            LockRequest { owner: lock_owner.0, handle: fh.0, pid, thread: req.pid(), range, kind, wait: false };
        let (fs, ino) = (self.fs.clone(), self.ino(ino));
        self.counts.add(Asked::Lock);
        let asker = fs.clone();
        let work = async move { asker.test_lock(asker.node(ino), request).await };
        self.answer_to(req, work, move |found| match found {
            Ok(None) => reply.locked(start, end, libc::F_UNLCK, 0),
            // A process of another mount means nothing here.
            Ok(Some(held)) => {
                let pid = if held.session == fs.volume.session() { held.pid } else { 0 };
                reply.locked(held.range.start, held.range.end, lock_number(held.kind), pid);
            }
            Err(error) => reply.error(errno(error)),
        });
    }

    fn setlk(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        lock_owner: LockOwner,
        start: u64,
        end: u64,
        typ: i32,
        pid: u32,
        sleep: bool,
        reply: ReplyEmpty,
    ) {
        let kind = match lock_kind(typ) {
            Ok(kind) => kind,
            Err(error) => return reply.error(errno(error)),
        };
        let range = LockRange { start, end };
        let request =
            LockRequest { owner: lock_owner.0, handle: fh.0, pid, thread: req.pid(), range, kind, wait: sleep };
        let (fs, ino) = (self.fs.clone(), self.ino(ino));
        self.counts.add(Asked::Lock);
        let work = async move { fs.lock_or_let_go(fs.node(ino), request).await };
        self.answer_anyway(req, work, move |locked| give_empty(locked, reply));
    }

    fn fallocate(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let file = match self.file(ino) {
            Ok(file) => file,
            Err(error) => return reply.error(errno(error)),
        };
        let (fs, kill) = (self.fs.clone(), Caller::of(req).is_unprivileged());
        self.counts.add(Asked::Other);
        let work = async move { fs.allocate(&file, offset, length, mode, kill).await };
        self.answer_anyway(req, work, move |allocated| give_empty(allocated, reply));
    }

    fn lseek(&self, req: &Request, ino: INodeNo, _fh: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        let hole = match whence {
            libc::SEEK_DATA => false,
            libc::SEEK_HOLE => true,
            // The kernel does the others itself.
            _ => return reply.error(errno(Errno::EINVAL)),
        };
        let Ok(offset) = u64::try_from(offset) else { return reply.error(errno(Errno::ENXIO)) };
        let fs = self.fs.clone();
        self.counts.add(Asked::Other);
        let work = async move { fs.seek(fs.node(InodeId(ino.0)), offset, hole).await };
        self.answer_to(req, work, move |found| match found {
            Ok(found) => reply.offset(i64::try_from(found).unwrap_or(i64::MAX)),
            Err(error) => reply.error(errno(error)),
        });
    }

    fn copy_file_range(
        &self,
        req: &Request,
        ino_in: INodeNo,
        _fh_in: FileHandle,
        offset_in: u64,
        ino_out: INodeNo,
        _fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let target = match self.file(ino_out) {
            Ok(file) => file,
            Err(error) => return reply.error(errno(error)),
        };
        let (fs, kill) = (self.fs.clone(), Caller::of(req).is_unprivileged());
        self.counts.add(Asked::Other);
        let work = async move {
            let source = fs.node(InodeId(ino_in.0));
            fs.copy_range((source, offset_in), (&target, offset_out), len, kill).await
        };
        self.answer_anyway(req, work, move |copied| match copied {
            Ok(copied) => reply.written(u32::try_from(copied).unwrap_or(u32::MAX)),
            Err(error) => reply.error(errno(error)),
        });
    }
}
