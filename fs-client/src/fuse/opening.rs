//! Who may open what, and how the kernel treats the handle.

use std::sync::Arc;

use bytes::Bytes;
use fuser::{FopenFlags, Request};
use metadata::op::SetAttr;
use metadata::types::{Attr, FileKind, InodeId, NodeRef};

use crate::errno::Errno;
use crate::fs::{Created, Fs, FsResult, NewEntry};

/// Who asks.
#[derive(Clone, Copy)]
pub(super) struct Caller {
    uid: u32,
}

impl Caller {
    pub(super) fn of(request: &Request) -> Caller {
        Caller { uid: request.uid() }
    }

    /// Without `CAP_FSETID`; the kernel does not tell, but who is not root hardly has it.
    pub(super) fn is_unprivileged(self) -> bool {
        self.uid != 0
    }

    /// May it open an existing file so? Asked only when the file appeared between the kernel's own look and the
    /// creation; supplementary groups are not known here, so "no" may be wrong and makes the kernel look again.
    pub(super) fn may_open(self, attr: &Attr, flags: i32) -> bool {
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

/// A handle that the kernel does not know yet. If whoever opens it is interrupted, nobody else would close it.
pub(super) struct Opening {
    fs: Arc<Fs>,
    ino: Option<InodeId>,
}

impl Opening {
    pub(super) fn begin(fs: &Arc<Fs>, node: NodeRef) -> Opening {
        fs.table.open(node.ino, FileKind::File, node.home);
        Opening { fs: fs.clone(), ino: Some(node.ino) }
    }

    /// The kernel is told of it, or it is closed already.
    pub(super) fn end(mut self) {
        self.ino = None;
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        if let Some(ino) = self.ino {
            self.fs.close_handle(ino);
        }
    }
}

/// How the kernel shall treat a handle opened with these flags.
///
/// Through its page cache it cuts a write at the end of a page that it does not hold whole. Two parts of one append could then
/// be parted by an append from elsewhere, so handles for appending go past that cache: what `write` is given arrives at once.
/// So do all handles of a linearizable mount: each `read` asks.
pub(super) fn kept_by_kernel(flags: i32, fs: &Fs) -> FopenFlags {
    let is_past_cache = flags & libc::O_APPEND != 0 || fs.is_linearizable();
    if is_past_cache { FopenFlags::FOPEN_DIRECT_IO } else { FopenFlags::empty() }
}

/// Such a handle of a new file goes past the page cache, too: nobody has pages of that file, the kernel would drop them when it is
/// opened again, and before the first write through its cache it asks whether the file has capabilities.
pub(super) fn is_for_writing_only(flags: i32) -> bool {
    flags & libc::O_ACCMODE == libc::O_WRONLY
}

/// Creates a file (and says so), or opens the one that has appeared since the kernel looked.
pub(super) async fn create_or_open(
    fs: &Arc<Fs>,
    parent: InodeId,
    name: &Bytes,
    entry: &NewEntry,
    flags: i32,
    caller: Caller,
) -> FsResult<(Attr, bool)> {
    let parent = fs.table.directory(parent);
    if let Created::New(attr) = fs.create(parent, name, entry).await? {
        return Ok((attr, true));
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
        let node = NodeRef { ino: attr.ino, kind: attr.kind, home: attr.home };
        return Ok((fs.set_attr(node, set).await?, false));
    }
    Ok(((*attr).clone(), false))
}
