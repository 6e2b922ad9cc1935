//! fallocate, lseek, copy_file_range.

use std::sync::Arc;

use metadata::op::Change;
use metadata::types::{FILE_BYTES_MAX, NodeRef};

use super::file::OpenFile;
use super::write::Write;
use super::{Fs, FsResult};
use crate::content::Source;
use crate::errno::Errno;

/// Bytes copied by one call when blobs cannot be shared; the caller asks again for the rest.
const COPY_BYTES_MAX: u64 = 4 << 20;
/// Bytes shared by one call.
const SHARE_BYTES_MAX: u64 = 1 << 30;

const KNOWN_MODES: i32 = libc::FALLOC_FL_KEEP_SIZE | libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_ZERO_RANGE;

impl Fs {
    /// fallocate(2).
    pub async fn allocate(
        self: &Arc<Self>,
        file: &Arc<OpenFile>,
        offset: u64,
        len: u64,
        mode: i32,
        kill_privileges: bool,
    ) -> FsResult<()> {
        if mode & !KNOWN_MODES != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        let end = offset.checked_add(len).filter(|end| *end <= FILE_BYTES_MAX).ok_or(Errno::EFBIG)?;
        if len == 0 {
            return Err(Errno::EINVAL);
        }
        let keep_size = mode & libc::FALLOC_FL_KEEP_SIZE != 0;
        let change = match mode & (libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_ZERO_RANGE) {
            0 => Change::Allocate { offset, len },
            libc::FALLOC_FL_PUNCH_HOLE if keep_size => Change::Hole { offset, len },
            libc::FALLOC_FL_ZERO_RANGE => Change::Zero { offset, len },
            _ => return Err(Errno::EOPNOTSUPP),
        };
        let size_min = if keep_size { 0 } else { end };
        self.change(file, vec![change], size_min, kill_privileges).await.map(drop)
    }

    /// lseek(2) with `SEEK_DATA` or `SEEK_HOLE`.
    pub async fn seek(self: &Arc<Self>, node: NodeRef, offset: u64, hole: bool) -> FsResult<u64> {
        if let Some(file) = self.table.file(node.ino) {
            self.bring_home(&file).await?;
        }
        let mut at = offset;
        loop {
            let map = self.map(node, at, at.saturating_add(1), false).await?;
            let size = map.attr.size;
            if at >= size {
                // Walked there over data: the end is a hole. Asked for there: nothing to find.
                return if at > offset && hole { Ok(size) } else { Err(Errno::ENXIO) };
            }
            let known = map.known_to().min(size);
            for piece in map.pieces(at, known) {
                if piece.offset > at {
                    // A gap before the piece.
                    return Ok(if hole { at } else { piece.offset });
                }
                if !hole {
                    return Ok(at);
                }
                at = piece.end();
            }
            if at < known {
                // A gap behind the last piece.
                if hole {
                    return Ok(at);
                }
                at = known;
            }
            if at >= size {
                return if hole { Ok(size) } else { Err(Errno::ENXIO) };
            }
        }
    }

    /// copy_file_range(2): shares blobs where both files live in one group, else copies bytes. May copy less than asked
    /// for, as the system call may.
    pub async fn copy_range(
        self: &Arc<Self>,
        from: (NodeRef, u64),
        to: (&Arc<OpenFile>, u64),
        len: u64,
        kill_privileges: bool,
    ) -> FsResult<u64> {
        if let Some(file) = self.table.file(from.0.ino) {
            self.bring_home(&file).await?;
        }
        let wanted = len.min(SHARE_BYTES_MAX).min(FILE_BYTES_MAX.saturating_sub(to.1));
        if wanted == 0 {
            return if len == 0 { Ok(0) } else { Err(Errno::EFBIG) };
        }
        let map = self.map(from.0, from.1, from.1.saturating_add(wanted), false).await?;
        let end = from.1.saturating_add(wanted).min(map.attr.size).min(map.known_to());
        if from.1 >= end {
            return Ok(0);
        }
        let target = self.node(to.0.ino);
        if target.home == map.attr.home
            && let Some((changes, copied)) = self.shared_changes(&map, from.1, end, to.1)
        {
            let facts = self.change(to.0, changes, to.1 + copied, kill_privileges).await?;
            if facts.blob_gone.is_none() {
                return Ok(copied);
            }
        }
        let len = (end - from.1).min(COPY_BYTES_MAX);
        let bytes = self.read(from.0, from.1, u32::try_from(len).unwrap_or(u32::MAX)).await?;
        let write = Write { offset: to.1, bytes: &bytes, append: false, kill_privileges };
        self.write_settled(to.0, write).await?;
        Ok(bytes.len() as u64)
    }

    /// Changes that share what `from..end` refers to; `None` if there are inline bytes, which cannot be shared.
    fn shared_changes(
        &self,
        map: &crate::content::FileMap,
        from: u64,
        end: u64,
        to: u64,
    ) -> Option<(Vec<Change>, u64)> {
        let (mut changes, mut at) = (Vec::new(), from);
        for piece in map.pieces(from, end) {
            if changes.len() + 2 > self.limits.changes_max {
                return Some((changes, at - from));
            }
            if piece.offset > at {
                changes.push(Change::Hole { offset: to + (at - from), len: piece.offset - at });
            }
            let offset = to + (piece.offset - from);
            changes.push(match piece.source {
                Source::Blob(source) => Change::Blob { offset, len: piece.len, source, fresh: false },
                Source::Zeros => Change::Zero { offset, len: piece.len },
                Source::Inline(_) => return None,
            });
            at = piece.end();
        }
        if at < end {
            changes.push(Change::Hole { offset: to + (at - from), len: end - at });
        }
        Some((changes, end - from))
    }
}
