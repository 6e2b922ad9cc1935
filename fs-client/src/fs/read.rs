//! Reading: the metadata's map of the file, blobs, and over both what this mount has written.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use metadata::read::{ReadAnswer, ReadOp};
use metadata::types::{BlobRange, NodeRef};

use super::file::{OpenFile, Seen};
use super::{Fs, FsResult, blob_ref, told};
use crate::buffer::Overlay;
use crate::content::{FileMap, Piece, Source};
use crate::errno::Errno;
use crate::error::Error;

/// Content is asked for in stretches of this length at least, so that a sequential reader seldom asks.
const STRETCH_BYTES: u64 = 1 << 30;
/// A map that cannot be read because the file has changed is asked for anew so often.
const MAPS_MAX: u32 = 4;

impl Fs {
    /// Reads, if everything is at hand. Never waits.
    pub fn read_cached(&self, node: NodeRef, offset: u64, size: u32) -> Option<Bytes> {
        let file = self.table.file(node.ino);
        let to = offset.saturating_add(u64::from(size));
        let seen = file.as_ref().map(|file| file.seen(offset, to)).unwrap_or_default();
        if seen.has_appends {
            return None;
        }
        let map = self.volume.cache().map(node.home, node.ino)?;
        if !map.covers(offset, to) {
            return None;
        }
        let end = to.min(map.attr.size.max(seen.end));
        if offset >= end {
            return Some(Bytes::new());
        }
        let bytes = self.assemble_cached(&map, &seen, offset, end)?;
        if let Some(file) = &file {
            self.read_ahead(file, &map, offset, end);
        }
        Some(bytes)
    }

    /// Reads up to `size` bytes; fewer only at the end of the file.
    pub async fn read(self: &Arc<Self>, node: NodeRef, offset: u64, size: u32) -> FsResult<Bytes> {
        let file = self.table.file(node.ino);
        let to = offset.saturating_add(u64::from(size));
        let mut refused = Errno::EIO;
        for fresh in 0..MAPS_MAX {
            let mut seen = file.as_ref().map(|file| file.seen(offset, to)).unwrap_or_default();
            if seen.has_appends
                && let Some(file) = &file
            {
                // Only now is known where they are.
                self.bring_home(file).await?;
                seen = file.seen(offset, to);
            }
            let map = self.map(node, offset, to, fresh > 0).await?;
            let end = to.min(map.attr.size.max(seen.end));
            if offset >= end {
                return Ok(Bytes::new());
            }
            // A far answer may be cut short of what was asked for.
            let end = if map.covers(offset, end) { end } else { end.min(map.known_to()) };
            if let Some(file) = &file {
                self.read_ahead(file, &map, offset, end);
            }
            match self.assemble(&map, &seen, offset, end).await {
                Ok(bytes) if end < to && end < map.attr.size => return self.read_on(node, bytes, end, to).await,
                Ok(bytes) => return Ok(bytes),
                // The blob may be gone because others have replaced it: then the map has changed, too.
                Err(errno) => refused = errno,
            }
        }
        Err(refused)
    }

    async fn read_on(self: &Arc<Self>, node: NodeRef, head: Bytes, from: u64, to: u64) -> FsResult<Bytes> {
        let tail = Box::pin(self.read(node, from, u32::try_from(to - from).unwrap_or(u32::MAX))).await?;
        Ok([head, tail].concat().into())
    }

    /// The map of a file where it covers `offset`, and as far as one answer goes.
    pub(super) async fn map(&self, node: NodeRef, offset: u64, to: u64, fresh: bool) -> FsResult<Arc<FileMap>> {
        if !fresh
            && let Some(map) = self.volume.cache().map(node.home, node.ino)
            && map.covers(offset, to)
        {
            return Ok(map);
        }
        let len = STRETCH_BYTES.max(to - offset);
        let op = ReadOp::Content { ino: node.ino, offset, len };
        let ReadAnswer::Content { attr, content } = self.ask(node, op).await? else { return Err(Errno::EIO) };
        FileMap::new(*attr, content, offset, len).map(Arc::new).ok_or(Errno::EIO)
    }

    async fn assemble(&self, map: &FileMap, seen: &Seen, from: u64, to: u64) -> FsResult<Bytes> {
        if let Some(whole) = only_piece(map, seen, from, to) {
            return match whole.source {
                Source::Inline(bytes) => Ok(bytes),
                Source::Blob(range) => self.blob(&range, whole.len).await,
                Source::Zeros => Ok(vec![0; (to - from) as usize].into()),
            };
        }
        let mut buffer = vec![0; (to - from) as usize];
        for piece in map.pieces(from, to.min(map.attr.size)) {
            match &piece.source {
                Source::Inline(bytes) => put(&mut buffer, from, piece.offset, bytes),
                Source::Blob(range) => put(&mut buffer, from, piece.offset, &self.blob(range, piece.len).await?),
                Source::Zeros => {}
            }
        }
        for part in &seen.parts {
            match part {
                Overlay::Bytes(offset, bytes) => put(&mut buffer, from, *offset, bytes),
                Overlay::Blob(offset, len, range) => put(&mut buffer, from, *offset, &self.blob(range, *len).await?),
            }
        }
        Ok(buffer.into())
    }

    fn assemble_cached(&self, map: &FileMap, seen: &Seen, from: u64, to: u64) -> Option<Bytes> {
        if let Some(whole) = only_piece(map, seen, from, to) {
            return match whole.source {
                Source::Inline(bytes) => Some(bytes),
                Source::Blob(range) => self.blob_at_hand(&range, whole.len),
                Source::Zeros => Some(vec![0; (to - from) as usize].into()),
            };
        }
        let mut buffer = vec![0; (to - from) as usize];
        for piece in map.pieces(from, to.min(map.attr.size)) {
            match &piece.source {
                Source::Inline(bytes) => put(&mut buffer, from, piece.offset, bytes),
                Source::Blob(range) => {
                    let at = (piece.offset - from) as usize;
                    self.blob_at_hand_into(range, &mut buffer[at..at + piece.len as usize])?;
                }
                Source::Zeros => {}
            }
        }
        for part in &seen.parts {
            match part {
                Overlay::Bytes(offset, bytes) => put(&mut buffer, from, *offset, bytes),
                Overlay::Blob(offset, len, range) => {
                    let at = (offset - from) as usize;
                    self.blob_at_hand_into(range, &mut buffer[at..at + *len as usize])?;
                }
            }
        }
        Some(buffer.into())
    }

    /// `len` bytes of a blob from where the range begins.
    pub(super) async fn blob(&self, range: &BlobRange, len: u64) -> FsResult<Bytes> {
        self.blob_bytes(range, len).await.map_err(|error| told(&error))
    }

    /// The same, with what is in the way.
    pub(super) async fn blob_bytes(&self, range: &BlobRange, len: u64) -> Result<Bytes, Error> {
        if let Some(bytes) = self.blob_pending(range, len) {
            return Ok(bytes);
        }
        let blobs = self.blobs.as_ref().ok_or(Error::Posix(Errno::EIO))?;
        // Pieces lie within their blobs.
        Ok(blobs.store.get(&blob_ref(range), range.start..range.start + len as u32).await?)
    }

    fn blob_at_hand(&self, range: &BlobRange, len: u64) -> Option<Bytes> {
        let blobs = self.blobs.as_ref()?;
        let kept = blobs.store.try_get(&blob_ref(range), range.start..range.start + len as u32);
        kept.or_else(|| self.blob_pending(range, len))
    }

    fn blob_at_hand_into(&self, range: &BlobRange, buffer: &mut [u8]) -> Option<()> {
        let blobs = self.blobs.as_ref()?;
        if blobs.store.try_get_into(&blob_ref(range), range.start, buffer) {
            return Some(());
        }
        buffer.copy_from_slice(&self.blob_at_hand(range, buffer.len() as u64)?);
        Some(())
    }

    /// A blob that is still on its way to the bucket.
    fn blob_pending(&self, range: &BlobRange, len: u64) -> Option<Bytes> {
        // Only this session's own blobs can be.
        if range.blob.writer != self.volume.session().0 {
            return None;
        }
        let bytes = self.blobs.as_ref()?.uploader.pending(super::blob_id(range.blob))?;
        let start = range.start as usize;
        (start + len as usize <= bytes.len()).then(|| bytes.slice(start..start + len as usize))
    }

    /// Fetches the next blobs when a sequential reader enters one.
    fn read_ahead(&self, file: &OpenFile, map: &FileMap, from: u64, to: u64) {
        let sequential = file.read_next.swap(to, Ordering::Relaxed) == from;
        let Some(blobs) = &self.blobs else { return };
        let enters = map.pieces_behind(from).next().is_some_and(|piece| piece.offset < to);
        if !sequential || !enters {
            return;
        }
        let ahead = map.pieces_behind(to).take(self.limits.read_ahead_blobs as usize);
        for piece in ahead {
            if let Source::Blob(range) = &piece.source {
                blobs.store.prefetch(&blob_ref(range));
            }
        }
    }
}

/// The piece that answers all of `from..to` alone, if one does.
fn only_piece(map: &FileMap, seen: &Seen, from: u64, to: u64) -> Option<Piece> {
    if !seen.parts.is_empty() || to > map.attr.size {
        return None;
    }
    let piece = map.pieces(from, to).next()?;
    (piece.offset == from && piece.len == to - from).then_some(piece)
}

fn put(buffer: &mut [u8], from: u64, offset: u64, bytes: &[u8]) {
    let at = (offset - from) as usize;
    buffer[at..at + bytes.len()].copy_from_slice(bytes);
}
