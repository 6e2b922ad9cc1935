//! The kernel's requests, one after the other. Each is: what does memory know; else ask, and reply from there.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, FileHandle, Filesystem, FopenFlags, Generation, INodeNo,
    KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLock, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr,
    Request, TimeOrNow, WriteFlags,
};
use metadata::op::{LockRange, NewNode, RenameMode, SetAttr, XattrCondition};
use metadata::types::{Attr, FileKind, InodeId, NAME_BYTES_MAX};

use super::convert::{file_attr, file_type, lock_kind, lock_number, name as to_name, new_node, permissions, set_time};
use super::places::Places;
use super::{Face, REQUEST_BYTES_MAX, configure, errno};
use crate::errno::Errno;
use crate::fs::file::OpenFile;
use crate::fs::{Created, Fs, FsResult, LockRequest, NewEntry, Write, Written};

/// The kernel keeps neither names nor attributes.
const TTL: Duration = Duration::ZERO;
/// The volume has no size of its own; programs want to see one: 1 PiB, 2^40 inodes.
const VOLUME_BLOCKS: u64 = 1 << 38;
const VOLUME_INODES: u64 = 1 << 40;
const STATFS_BLOCK_BYTES: u32 = 4096;
/// Inode numbers are never reused.
const GENERATION: Generation = Generation(0);

impl Face {
    fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.runtime.spawn(work);
    }

    /// An operation that creates an inode and shows it to the kernel.
    fn make(&self, parent: INodeNo, name: &OsStr, entry: NewEntry, reply: ReplyEntry) {
        let (fs, places, name) = (self.fs.clone(), self.places.clone(), to_name(name));
        self.spawn(async move {
            match fs.create(fs.table.directory(places.inode(parent.0)), &name, &entry).await {
                Ok(Created::New(attr)) => give_entry(&fs, &places, (parent, &name), &attr, reply),
                Ok(Created::Taken(_)) => reply.error(errno(Errno::EEXIST)),
                Err(error) => reply.error(errno(error)),
            }
        });
    }

    fn file(&self, ino: INodeNo) -> Result<Arc<OpenFile>, Errno> {
        self.fs.table.file(InodeId(ino.0)).ok_or(Errno::EBADF)
    }

    /// The inode behind the kernel's number of what may be a directory.
    fn ino(&self, number: INodeNo) -> InodeId {
        self.places.inode(number.0)
    }
}

/// Shows the kernel what it finds under a name.
fn give_entry(fs: &Fs, places: &Places, at: (INodeNo, &Bytes), attr: &Attr, reply: ReplyEntry) {
    fs.table.remember(attr);
    let mut shown = file_attr(&fs.show(attr));
    if attr.kind == FileKind::Directory {
        shown.ino = INodeNo(places.show(attr.ino, at.0.0, at.1));
    }
    reply.entry(&TTL, &shown, GENERATION);
}

fn give_empty(result: FsResult<()>, reply: ReplyEmpty) {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(errno(error)),
    }
}

fn give_xattr(result: FsResult<Bytes>, size: u32, reply: ReplyXattr) {
    match result {
        Ok(value) if size == 0 => reply.size(u32::try_from(value.len()).unwrap_or(u32::MAX)),
        Ok(value) if value.len() > size as usize => reply.error(errno(Errno::ERANGE)),
        Ok(value) => reply.data(&value),
        Err(error) => reply.error(errno(error)),
    }
}

/// Who asks.
#[derive(Clone, Copy)]
struct Caller {
    uid: u32,
}

impl Caller {
    fn of(request: &Request) -> Caller {
        Caller { uid: request.uid() }
    }

    /// Without `CAP_FSETID`; the kernel does not tell, but who is not root hardly has it.
    fn is_unprivileged(self) -> bool {
        self.uid != 0
    }

    /// May it open an existing file so? Asked only when the file appeared between the kernel's own look and the
    /// creation; supplementary groups are not known here, so "no" may be wrong and makes the kernel look again.
    fn may_open(self, attr: &Attr, flags: i32) -> bool {
        if self.uid == 0 {
            return true;
        }
        let wanted = match flags & libc::O_ACCMODE {
            libc::O_RDONLY => 0o4,
            libc::O_WRONLY => 0o2,
            _ => 0o6,
        };
        self.uid == attr.uid && (attr.mode >> 6) & wanted == wanted
    }
}

/// How the kernel shall treat a handle opened with these flags.
///
/// Through its page cache it cuts a write at the end of a page that it does not hold whole. Two parts of one append could then
/// be parted by an append from elsewhere, so handles for appending go past that cache: what `write` is given arrives at once.
fn kept_by_kernel(flags: i32) -> FopenFlags {
    if flags & libc::O_APPEND != 0 { FopenFlags::FOPEN_DIRECT_IO } else { FopenFlags::empty() }
}

/// Creates a file, or opens the one that has appeared since the kernel looked.
async fn create_or_open(
    fs: &Arc<Fs>,
    parent: InodeId,
    name: &Bytes,
    entry: &NewEntry,
    flags: i32,
    caller: Caller,
) -> FsResult<Attr> {
    let parent = fs.table.directory(parent);
    if let Created::New(attr) = fs.create(parent, name, entry).await? {
        return Ok(attr);
    }
    if flags & libc::O_EXCL != 0 {
        return Err(Errno::EEXIST);
    }
    let attr = fs.lookup(parent, name).await?;
    if attr.kind != FileKind::File || !caller.may_open(&attr, flags) {
        // The kernel looks again and then checks, follows or refuses by itself.
        return Err(Errno::ESTALE);
    }
    if flags & libc::O_TRUNC != 0 {
        let set = SetAttr { size: Some(0), kill_privileges: caller.is_unprivileged(), ..SetAttr::default() };
        let node = metadata::types::NodeRef { ino: attr.ino, kind: attr.kind, home: attr.home };
        return fs.set_attr(node, set).await;
    }
    Ok((*attr).clone())
}

impl Filesystem for Face {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        configure(config);
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let dir = self.ino(parent);
        match self.fs.lookup_cached(dir, name.as_bytes()) {
            Some(Ok(attr)) => give_entry(&self.fs, &self.places, (parent, &to_name(name)), &attr, reply),
            Some(Err(error)) => reply.error(errno(error)),
            None => {
                let (fs, places, name) = (self.fs.clone(), self.places.clone(), to_name(name));
                self.spawn(async move {
                    match fs.lookup(fs.table.directory(dir), &name).await {
                        Ok(attr) => give_entry(&fs, &places, (parent, &name), &attr, reply),
                        Err(error) => reply.error(errno(error)),
                    }
                });
            }
        }
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        if ino.0 != InodeId::ROOT.0 {
            let ino = self.places.forget(ino.0, nlookup);
            self.fs.table.forget(ino, nlookup);
        }
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, fh: Option<FileHandle>, reply: ReplyAttr) {
        let ino = self.ino(ino);
        // With a handle the kernel wants to know whether its pages are good; without, stat(2) asks: that must be exact.
        let exact = fh.is_none() && self.fs.table.file(ino).is_some_and(|file| file.is_dirty());
        if !exact && let Some(attr) = self.fs.cached_attr(ino) {
            return reply.attr(&TTL, &file_attr(&self.fs.show(&attr)));
        }
        let fs = self.fs.clone();
        self.spawn(async move {
            let node = fs.node(ino);
            let attr = if exact { fs.stat(node).await } else { fs.attr(node).await.map(|attr| fs.show(&attr)) };
            match attr {
                Ok(attr) => reply.attr(&TTL, &file_attr(&attr)),
                Err(error) => reply.error(errno(error)),
            }
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
        self.spawn(async move {
            let result = if set == SetAttr::default() { fs.stat(node).await } else { fs.set_attr(node, set).await };
            match result {
                Ok(attr) => reply.attr(&TTL, &file_attr(&attr)),
                Err(error) => reply.error(errno(error)),
            }
        });
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        let fs = self.fs.clone();
        self.spawn(async move {
            match fs.read_link(fs.node(InodeId(ino.0))).await {
                Ok(target) => reply.data(&target),
                Err(error) => reply.error(errno(error)),
            }
        });
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
                self.make(parent, name, entry, reply);
            }
            Err(error) => reply.error(errno(error)),
        }
    }

    fn mkdir(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, _umask: u32, reply: ReplyEntry) {
        let node = NewNode::Directory { placement: None };
        let entry = NewEntry { node, mode: permissions(mode), uid: req.uid(), gid: req.gid() };
        self.make(parent, name, entry, reply);
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (fs, dir, name) = (self.fs.clone(), self.ino(parent), to_name(name));
        self.spawn(async move {
            give_empty(fs.remove(fs.table.directory(dir), &name, false).await, reply);
        });
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (fs, dir, name) = (self.fs.clone(), self.ino(parent), to_name(name));
        self.spawn(async move {
            give_empty(fs.remove(fs.table.directory(dir), &name, true).await, reply);
        });
    }

    fn symlink(&self, req: &Request, parent: INodeNo, link_name: &OsStr, target: &Path, reply: ReplyEntry) {
        let node = NewNode::Symlink { target: to_name(target.as_os_str()) };
        self.make(parent, link_name, NewEntry { node, mode: 0o777, uid: req.uid(), gid: req.gid() }, reply);
    }

    fn rename(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
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
        self.spawn(async move {
            let from = (fs.table.directory(places.inode(parent.0)), &name);
            let to = (fs.table.directory(places.inode(newparent.0)), &newname);
            let renamed = fs.rename(from, to, mode).await;
            if renamed.is_ok() {
                places.renamed((parent.0, &name), (newparent.0, &newname), mode == RenameMode::Exchange);
            }
            give_empty(renamed, reply);
        });
    }

    fn link(&self, _req: &Request, ino: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry) {
        let (fs, places, name) = (self.fs.clone(), self.places.clone(), to_name(newname));
        self.spawn(async move {
            let node = fs.node(InodeId(ino.0));
            match fs.link(node, fs.table.directory(places.inode(newparent.0)), &name).await {
                Ok(attr) => give_entry(&fs, &places, (newparent, &name), &attr, reply),
                Err(error) => reply.error(errno(error)),
            }
        });
    }

    fn open(&self, _req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let node = self.fs.node(self.ino(ino));
        let kept = kept_by_kernel(flags.0);
        self.fs.table.open(node.ino, FileKind::File, node.home);
        if self.fs.volume.is_session_open(node.home) {
            return reply.opened(FileHandle(0), kept);
        }
        let fs = self.fs.clone();
        self.spawn(async move {
            fs.ensure_session(node.home).await;
            reply.opened(FileHandle(0), kept);
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
        let (fs, dir, name) = (self.fs.clone(), self.ino(parent), to_name(name));
        let entry = NewEntry { node: NewNode::File, mode: permissions(mode), uid: req.uid(), gid: req.gid() };
        let caller = Caller::of(req);
        self.spawn(async move {
            match create_or_open(&fs, dir, &name, &entry, flags, caller).await {
                Ok(attr) => {
                    fs.table.open(attr.ino, FileKind::File, attr.home);
                    fs.table.remember(&attr);
                    let shown = file_attr(&fs.show(&attr));
                    reply.created(&TTL, &shown, GENERATION, FileHandle(0), kept_by_kernel(flags));
                }
                Err(error) => reply.error(errno(error)),
            }
        });
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let node = self.fs.node(self.ino(ino));
        let size = size.min(REQUEST_BYTES_MAX);
        // Reading ahead starts tasks, and this is the kernel's thread.
        let _context = self.runtime.enter();
        if let Some(bytes) = self.fs.read_cached(node, offset, size) {
            return reply.data(&bytes);
        }
        let fs = self.fs.clone();
        self.spawn(async move {
            match fs.read(node, offset, size).await {
                Ok(bytes) => reply.data(&bytes),
                Err(error) => reply.error(errno(error)),
            }
        });
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
        match self.fs.write(&file, write) {
            Ok(Written::Done) => reply.written(count),
            Err(error) => reply.error(errno(error)),
            Ok(Written::Settle) => {
                let fs = self.fs.clone();
                self.spawn(async move {
                    fs.settle(&file).await;
                    reply.written(count);
                });
            }
            Ok(Written::FlushFirst) => {
                let (fs, data) = (self.fs.clone(), data.to_vec());
                self.spawn(async move {
                    let write = Write { offset, bytes: &data, append, kill_privileges };
                    match fs.write_settled(&file, write).await {
                        Ok(()) => reply.written(count),
                        Err(error) => reply.error(errno(error)),
                    }
                });
            }
        }
    }

    fn flush(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, lock_owner: LockOwner, reply: ReplyEmpty) {
        let ino = InodeId(ino.0);
        let file = self.fs.table.file(ino).filter(|file| file.needs_flush());
        let locks = self.fs.holds_locks(ino, lock_owner.0);
        if file.is_none() && !locks {
            return reply.ok();
        }
        let fs = self.fs.clone();
        self.spawn(async move {
            let flushed = match file {
                Some(file) => fs.flush(&file).await,
                None => Ok(()),
            };
            let unlocked = if locks { fs.unlock_all(fs.node(ino), lock_owner.0).await } else { Ok(()) };
            give_empty(flushed.and(unlocked), reply);
        });
    }

    fn release(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        _flags: OpenFlags,
        lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        let ino = InodeId(ino.0);
        let file = self.fs.table.file(ino).filter(|file| file.is_dirty());
        let owner = lock_owner.map(|owner| owner.0).filter(|owner| self.fs.holds_locks(ino, *owner));
        if file.is_none() && owner.is_none() {
            self.fs.close_handle(ino);
            return reply.ok();
        }
        let fs = self.fs.clone();
        self.spawn(async move {
            if let Some(file) = file
                && let Err(error) = fs.flush(&file).await
            {
                tracing::error!(%ino, %error, "written data could not be brought home after the last close");
            }
            if let Some(owner) = owner {
                let _ = fs.unlock_all(fs.node(ino), owner).await;
            }
            fs.close_handle(ino);
            reply.ok();
        });
    }

    fn fsync(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        let Some(file) = self.fs.table.file(InodeId(ino.0)).filter(|file| file.needs_flush()) else {
            return reply.ok();
        };
        let fs = self.fs.clone();
        self.spawn(async move { give_empty(fs.flush(&file).await, reply) });
    }

    fn opendir(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let node = self.fs.table.directory(self.ino(ino));
        self.fs.table.open(node.ino, FileKind::Directory, node.home);
        reply.opened(FileHandle(self.open_dir(node.ino)), FopenFlags::empty());
    }

    fn readdir(&self, _req: &Request, _ino: INodeNo, fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let Some(dir) = self.dir(fh.0) else { return reply.error(errno(Errno::EBADF)) };
        let fs = self.fs.clone();
        self.spawn(async move {
            match fs.read_dir(&dir, offset, false).await {
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
            }
        });
    }

    fn readdirplus(&self, _req: &Request, ino: INodeNo, fh: FileHandle, offset: u64, mut reply: ReplyDirectoryPlus) {
        let Some(dir) = self.dir(fh.0) else { return reply.error(errno(Errno::EBADF)) };
        let (fs, places) = (self.fs.clone(), self.places.clone());
        self.spawn(async move {
            let entries = match fs.read_dir(&dir, offset, true).await {
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
                if reply.add(INodeNo(number), entry.offset, name, &TTL, &file_attr(&attr), GENERATION) {
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

    fn statfs(&self, _req: &Request, ino: INodeNo, reply: ReplyStatfs) {
        let (fs, ino) = (self.fs.clone(), self.ino(ino));
        self.spawn(async move {
            let (inodes, bytes) = fs.usage(fs.node(ino)).await;
            let free = VOLUME_BLOCKS.saturating_sub(bytes.div_ceil(u64::from(STATFS_BLOCK_BYTES)));
            let free_inodes = VOLUME_INODES.saturating_sub(inodes);
            let name_max = u32::try_from(NAME_BYTES_MAX).unwrap_or(u32::MAX);
            let block = STATFS_BLOCK_BYTES;
            reply.statfs(VOLUME_BLOCKS, free, free, VOLUME_INODES, free_inodes, block, name_max, block);
        });
    }

    fn setxattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let condition = match flags {
            libc::XATTR_CREATE => XattrCondition::Create,
            libc::XATTR_REPLACE => XattrCondition::Replace,
            _ => XattrCondition::Any,
        };
        let (fs, ino, name, value) = (self.fs.clone(), self.ino(ino), to_name(name), Bytes::copy_from_slice(value));
        self.spawn(async move {
            give_empty(fs.set_xattr(fs.node(ino), name, value, condition).await, reply);
        });
    }

    fn getxattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let ino = self.ino(ino);
        if let Some(result) = self.fs.xattr_cached(ino, name.as_bytes()) {
            return give_xattr(result, size, reply);
        }
        let (fs, name) = (self.fs.clone(), to_name(name));
        self.spawn(async move { give_xattr(fs.xattr(fs.node(ino), name).await, size, reply) });
    }

    fn listxattr(&self, _req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let (fs, ino) = (self.fs.clone(), self.ino(ino));
        self.spawn(async move {
            let names = fs.xattr_names(fs.node(ino)).await;
            give_xattr(names.map(Bytes::from), size, reply);
        });
    }

    fn removexattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (fs, ino, name) = (self.fs.clone(), self.ino(ino), to_name(name));
        self.spawn(async move { give_empty(fs.remove_xattr(fs.node(ino), name).await, reply) });
    }

    fn access(&self, _req: &Request, _ino: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        // The kernel checks modes itself (`default_permissions`).
        reply.ok();
    }

    fn getlk(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
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
        let request = LockRequest { owner: lock_owner.0, pid, thread: req.pid(), range, kind, wait: false };
        let (fs, ino) = (self.fs.clone(), self.ino(ino));
        self.spawn(async move {
            match fs.test_lock(fs.node(ino), request).await {
                Ok(None) => reply.locked(start, end, libc::F_UNLCK, 0),
                // A process of another mount means nothing here.
                Ok(Some(held)) => {
                    let pid = if held.session == fs.volume.session() { held.pid } else { 0 };
                    reply.locked(held.range.start, held.range.end, lock_number(held.kind), pid);
                }
                Err(error) => reply.error(errno(error)),
            }
        });
    }

    fn setlk(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
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
        let request = LockRequest { owner: lock_owner.0, pid, thread: req.pid(), range, kind, wait: sleep };
        let (fs, ino) = (self.fs.clone(), self.ino(ino));
        self.spawn(async move { give_empty(fs.lock(fs.node(ino), request).await, reply) });
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
        self.spawn(async move { give_empty(fs.allocate(&file, offset, length, mode, kill).await, reply) });
    }

    fn lseek(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        let hole = match whence {
            libc::SEEK_DATA => false,
            libc::SEEK_HOLE => true,
            // The kernel does the others itself.
            _ => return reply.error(errno(Errno::EINVAL)),
        };
        let Ok(offset) = u64::try_from(offset) else { return reply.error(errno(Errno::ENXIO)) };
        let fs = self.fs.clone();
        self.spawn(async move {
            match fs.seek(fs.node(InodeId(ino.0)), offset, hole).await {
                Ok(found) => reply.offset(i64::try_from(found).unwrap_or(i64::MAX)),
                Err(error) => reply.error(errno(error)),
            }
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
        self.spawn(async move {
            let source = fs.node(InodeId(ino_in.0));
            match fs.copy_range((source, offset_in), (&target, offset_out), len, kill).await {
                Ok(copied) => reply.written(u32::try_from(copied).unwrap_or(u32::MAX)),
                Err(error) => reply.error(errno(error)),
            }
        });
    }
}
