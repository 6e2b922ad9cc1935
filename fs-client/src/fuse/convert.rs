//! Between the kernel's words and ours.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use fuser::{FileAttr, FileType, INodeNo, TimeOrNow};
use metadata::op::{LockKind, NewNode, SetTime};
use metadata::types::{Attr, FileKind, TimeNs};

use crate::errno::Errno;

const BLOCK_BYTES: u64 = 512;
/// What programs take as a good size for a read or write.
const PREFERRED_IO_BYTES: u32 = 128 << 10;
const NANOS: i128 = 1_000_000_000;

pub fn file_type(kind: FileKind) -> FileType {
    match kind {
        FileKind::File => FileType::RegularFile,
        FileKind::Directory => FileType::Directory,
        FileKind::Symlink => FileType::Symlink,
        FileKind::Fifo => FileType::NamedPipe,
        FileKind::CharDevice => FileType::CharDevice,
        FileKind::BlockDevice => FileType::BlockDevice,
        FileKind::Socket => FileType::Socket,
    }
}

pub fn file_attr(attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(attr.ino.0),
        size: match attr.kind {
            // The number of entries; a directory that looks empty confuses some programs.
            FileKind::Directory => attr.size.saturating_mul(32).max(4096),
            _ => attr.size,
        },
        blocks: attr.allocated.div_ceil(BLOCK_BYTES),
        atime: system_time(attr.atime),
        mtime: system_time(attr.mtime),
        ctime: system_time(attr.ctime),
        crtime: system_time(attr.btime),
        kind: file_type(attr.kind),
        perm: attr.mode,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        blksize: PREFERRED_IO_BYTES,
        flags: 0,
    }
}

/// An answer that says that there is no such name.
pub fn nothing() -> FileAttr {
    FileAttr {
        ino: INodeNo(0),
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: FileType::RegularFile,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 0,
        flags: 0,
    }
}

fn system_time(time: TimeNs) -> SystemTime {
    let nanos = Duration::from_nanos(time.0.unsigned_abs());
    if time.0 >= 0 { UNIX_EPOCH + nanos } else { UNIX_EPOCH - nanos }
}

/// A time to set. Before 1970 fuser hands out the fraction with the wrong sign; this takes it back.
pub fn set_time(time: TimeOrNow) -> SetTime {
    let TimeOrNow::SpecificTime(time) = time else { return SetTime::Now };
    let nanos = match time.duration_since(UNIX_EPOCH) {
        Ok(after) => i128::from(after.as_secs()) * NANOS + i128::from(after.subsec_nanos()),
        Err(before) => {
            let before = before.duration();
            -i128::from(before.as_secs()) * NANOS + i128::from(before.subsec_nanos())
        }
    };
    let clamped = nanos.clamp(i128::from(i64::MIN), i128::from(i64::MAX));
    SetTime::At(TimeNs(i64::try_from(clamped).unwrap_or(i64::MAX)))
}

/// What mknod(2) wants.
pub fn new_node(mode: u32, rdev: u32) -> Result<NewNode, Errno> {
    match mode & libc::S_IFMT {
        0 | libc::S_IFREG => Ok(NewNode::File),
        libc::S_IFIFO => Ok(NewNode::Fifo),
        libc::S_IFSOCK => Ok(NewNode::Socket),
        libc::S_IFCHR => Ok(NewNode::CharDevice { rdev }),
        libc::S_IFBLK => Ok(NewNode::BlockDevice { rdev }),
        _ => Err(Errno::EINVAL),
    }
}

pub fn permissions(mode: u32) -> u16 {
    // Masked: fits.
    (mode & 0o7777) as u16
}

pub fn name(name: &std::ffi::OsStr) -> Bytes {
    Bytes::copy_from_slice(std::os::unix::ffi::OsStrExt::as_bytes(name))
}

/// A lock's kind; `None` unlocks.
pub fn lock_kind(kind: i32) -> Result<Option<LockKind>, Errno> {
    match kind {
        libc::F_RDLCK => Ok(Some(LockKind::Read)),
        libc::F_WRLCK => Ok(Some(LockKind::Write)),
        libc::F_UNLCK => Ok(None),
        _ => Err(Errno::EINVAL),
    }
}

pub fn lock_number(kind: LockKind) -> i32 {
    match kind {
        LockKind::Read => libc::F_RDLCK,
        LockKind::Write => libc::F_WRLCK,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn time_before_1970_keeps_its_fraction() {
        // utimensat(-1 s, 750 ms) means 250 ms before 1970; fuser makes 1.75 s before of it.
        let from_fuser = UNIX_EPOCH - Duration::new(1, 750_000_000);
        assert_eq!(set_time(TimeOrNow::SpecificTime(from_fuser)), SetTime::At(TimeNs(-250_000_000)));
        let shown = system_time(TimeNs(-250_000_000));
        assert_eq!(UNIX_EPOCH.duration_since(shown).unwrap(), Duration::from_millis(250));
        let after = UNIX_EPOCH + Duration::new(5, 6);
        assert_eq!(set_time(TimeOrNow::SpecificTime(after)), SetTime::At(TimeNs(5_000_000_006)));
        assert_eq!(set_time(TimeOrNow::Now), SetTime::Now);
    }

    #[test]
    fn mode_of_a_directory_is_no_node() {
        assert_eq!(new_node(libc::S_IFIFO | 0o600, 0), Ok(NewNode::Fifo));
        assert_eq!(new_node(libc::S_IFCHR, 7), Ok(NewNode::CharDevice { rdev: 7 }));
        assert_eq!(new_node(libc::S_IFDIR, 0), Err(Errno::EINVAL));
    }
}
