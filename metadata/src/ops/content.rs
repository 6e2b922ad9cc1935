//! A file's pieces: extents in blobs, preallocated zeros, and bytes held inline, side by side and never overlapping.

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};

use crate::error::Error;
use crate::namespace::Namespace;
use crate::rows::{BlobRow, ExtentRow, InodeRow, Source};
use crate::store::{Store, StoreMut};
use crate::types::{BlobId, InodeId};
use crate::{keys, rows};

const PAGE: usize = 256;

/// A piece with its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) source: Source,
}

impl Piece {
    /// The part of it within a range that it overlaps.
    fn cut(&self, start: u64, end: u64) -> Piece {
        let start = start.max(self.start);
        let end = end.min(self.end);
        let skipped = start - self.start;
        let source = match &self.source {
            Source::Zero => Source::Zero,
            Source::Blob(range) => {
                let mut range = *range;
                range.start = range.start.saturating_add(u32::try_from(skipped).unwrap_or(u32::MAX));
                Source::Blob(range)
            }
            Source::Inline(bytes) => {
                let from = usize::try_from(skipped).unwrap_or(usize::MAX).min(bytes.len());
                let to = usize::try_from(end - self.start).unwrap_or(usize::MAX).min(bytes.len());
                Source::Inline(bytes.slice(from..to))
            }
        };
        Piece { start, end, source }
    }
}

/// The pieces that end behind `offset`, in order, at most `limit`.
pub(crate) fn pieces_from<S: Store + ?Sized>(
    store: &S,
    ino: InodeId,
    offset: u64,
    limit: usize,
) -> Result<Vec<Piece>, Error> {
    let prefix = keys::of_inode(keys::EXTENT, ino);
    let rows = store.scan(&prefix, &keys::extent(ino, offset.saturating_add(1)), limit)?;
    let piece = |(key, value): (Vec<u8>, Vec<u8>)| {
        let row: ExtentRow = rows::decode(&key, &value)?;
        match keys::number_at(&key, prefix.len()).and_then(|end| Some((end, end.checked_sub(row.len)?))) {
            Some((end, start)) => Ok(Piece { start, end, source: row.source }),
            None => Err(Error::CorruptRow { key }),
        }
    };
    rows.into_iter().map(piece).collect()
}

/// Changes a file's pieces and keeps count of them; [`FileEdit::finish`] settles the blobs' reference counts and the
/// group's totals, and gives the inode back for its caller to write.
pub(crate) struct FileEdit<'n, S> {
    namespace: &'n mut Namespace<S>,
    row: InodeRow,
    allocated_before: u64,
    /// Nothing has happened to the file since it was made: it has no piece yet, nor any that is still to be removed.
    is_untouched: bool,
    references: BTreeMap<BlobId, i64>,
}

impl<'n, S: StoreMut> FileEdit<'n, S> {
    pub(crate) fn new(namespace: &'n mut Namespace<S>, row: InodeRow) -> Self {
        let allocated_before = row.attr.allocated;
        let is_untouched = row.extents == 0 && row.attr.ctime == row.attr.btime;
        FileEdit { namespace, row, allocated_before, is_untouched, references: BTreeMap::new() }
    }

    /// Makes a range a hole.
    pub(crate) fn clear(&mut self, start: u64, end: u64) -> Result<(), Error> {
        self.clear_some(start, end, usize::MAX).map(drop)
    }

    /// As [`FileEdit::clear`], from the range's start on, but takes at most `limit` pieces. How many: if fewer, then all.
    pub(crate) fn clear_some(&mut self, start: u64, end: u64, limit: usize) -> Result<usize, Error> {
        let mut from = start;
        let mut taken = 0;
        while self.row.extents > 0 && taken < limit {
            let wanted = PAGE.min(limit - taken);
            let page = pieces_from(&self.namespace.store, self.row.attr.ino, from, wanted)?;
            let is_last = page.len() < wanted;
            for piece in page {
                if piece.start >= end {
                    return Ok(taken);
                }
                from = piece.end;
                self.take(&piece)?;
                taken += 1;
                if piece.start < start {
                    self.add(piece.cut(piece.start, start))?;
                }
                if piece.end > end {
                    self.add(piece.cut(end, piece.end))?;
                    return Ok(taken);
                }
            }
            if is_last {
                break;
            }
        }
        Ok(taken)
    }

    /// Puts one piece in the place of what a range held.
    pub(crate) fn replace(&mut self, start: u64, len: u64, source: Source) -> Result<(), Error> {
        self.clear(start, start + len)?;
        self.add(Piece { start, end: start + len, source })
    }

    /// Makes the holes in a range zeros that hold space.
    pub(crate) fn allocate(&mut self, start: u64, end: u64) -> Result<(), Error> {
        let mut from = start;
        while from < end {
            let page = pieces_from(&self.namespace.store, self.row.attr.ino, from, PAGE)?;
            let Some(last) = page.last().map(|piece| piece.end).filter(|_| page.len() == PAGE) else {
                return self.fill_between(from, end, page);
            };
            self.fill_between(from, last.min(end), page)?;
            from = last;
        }
        Ok(())
    }

    /// Fills what is between `pieces`, which are all that a range holds.
    fn fill_between(&mut self, start: u64, end: u64, pieces: Vec<Piece>) -> Result<(), Error> {
        let mut from = start;
        for piece in pieces {
            if piece.start.min(end) > from {
                self.add(Piece { start: from, end: piece.start.min(end), source: Source::Zero })?;
            }
            from = from.max(piece.end);
        }
        if from < end {
            self.add(Piece { start: from, end, source: Source::Zero })?;
        }
        Ok(())
    }

    /// Writes bytes that are held here, joined with inline neighbours.
    pub(crate) fn write_inline(&mut self, start: u64, bytes: &Bytes) -> Result<(), Error> {
        if bytes.is_empty() {
            return Ok(());
        }
        let end = start + bytes.len() as u64;
        let mut joined = Piece { start, end, source: Source::Inline(bytes.clone()) };
        let touching = if self.row.inline_bytes == 0 { Vec::new() } else { self.inline_around(start, end)? };
        let mut whole = BytesMut::new();
        if let Some((first, bytes)) = touching.first().filter(|(piece, _)| piece.start < start) {
            joined.start = first.start;
            let keep = usize::try_from(start - first.start).unwrap_or(usize::MAX).min(bytes.len());
            whole.extend_from_slice(&bytes[..keep]);
        }
        whole.extend_from_slice(bytes);
        if let Some((last, bytes)) = touching.last().filter(|(piece, _)| piece.end > end) {
            joined.end = last.end;
            let skip = usize::try_from(end - last.start).unwrap_or(usize::MAX).min(bytes.len());
            whole.extend_from_slice(&bytes[skip..]);
        }
        joined.source = Source::Inline(whole.freeze());
        self.clear(joined.start, joined.end)?;
        self.add(joined)
    }

    /// The inline pieces that overlap a range or touch its ends.
    fn inline_around(&self, start: u64, end: u64) -> Result<Vec<(Piece, Bytes)>, Error> {
        let mut found = Vec::new();
        let mut from = start.saturating_sub(1);
        loop {
            let page = pieces_from(&self.namespace.store, self.row.attr.ino, from, PAGE)?;
            let full = page.len() == PAGE;
            for piece in page {
                if piece.start > end {
                    return Ok(found);
                }
                from = piece.end;
                if let Source::Inline(bytes) = &piece.source {
                    let bytes = bytes.clone();
                    found.push((piece, bytes));
                }
            }
            if !full {
                return Ok(found);
            }
        }
    }

    /// Settles what the changes did beyond the file.
    pub(crate) fn finish(self) -> Result<InodeRow, Error> {
        for (blob, change) in &self.references {
            self.namespace.add_references(*blob, *change, false)?;
        }
        let signed = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        self.namespace.account(0, signed(self.row.attr.allocated) - signed(self.allocated_before))?;
        Ok(self.row)
    }

    fn add(&mut self, piece: Piece) -> Result<(), Error> {
        let len = piece.end - piece.start;
        self.row.extents += 1;
        self.row.attr.allocated = self.row.attr.allocated.saturating_add(len);
        match &piece.source {
            Source::Zero => {}
            Source::Blob(range) => *self.references.entry(range.blob).or_default() += 1,
            Source::Inline(bytes) => self.row.inline_bytes = self.row.inline_bytes.saturating_add(bytes.len() as u32),
        }
        let row = ExtentRow { len, source: piece.source };
        let (key, row) = (keys::extent(self.row.attr.ino, piece.end), rows::encode(&row));
        if self.is_untouched { self.namespace.put_new(key, row) } else { self.namespace.put(key, row) }
    }

    fn take(&mut self, piece: &Piece) -> Result<(), Error> {
        self.row.extents = self.row.extents.saturating_sub(1);
        self.row.attr.allocated = self.row.attr.allocated.saturating_sub(piece.end - piece.start);
        match &piece.source {
            Source::Zero => {}
            Source::Blob(range) => *self.references.entry(range.blob).or_default() -= 1,
            Source::Inline(bytes) => self.row.inline_bytes = self.row.inline_bytes.saturating_sub(bytes.len() as u32),
        }
        self.namespace.remove(&keys::extent(self.row.attr.ino, piece.end))
    }
}

impl<S: StoreMut> Namespace<S> {
    /// Changes how often a blob is referred to here. One that nothing refers to any more becomes garbage; `beyond` says
    /// that another group may refer to it.
    pub(super) fn add_references(&mut self, blob: BlobId, change: i64, beyond: bool) -> Result<(), Error> {
        let key = keys::blob(blob);
        let found: Option<BlobRow> = self.read(&key)?;
        // One that came and went within one update was never written down: it is garbage all the same.
        if change == 0 && found.is_some() {
            return Ok(());
        }
        let mut row = found.unwrap_or_default();
        row.references = row.references.saturating_add_signed(change);
        let kind = if row.beyond { keys::DOUBTFUL } else { keys::GARBAGE };
        match row.garbage {
            Some(number) if row.references > 0 => {
                self.remove(&keys::numbered(kind, number))?;
                row.garbage = None;
            }
            None if row.references == 0 => {
                let mut counters = self.counters()?;
                counters.garbage_last += 1;
                row.garbage = Some(counters.garbage_last);
                self.put_counters(&counters)?;
                self.put(keys::numbered(kind, counters.garbage_last), rows::encode(&blob))?;
            }
            Some(_) | None => {}
        }
        row.beyond |= beyond;
        self.put(key, rows::encode(&row))
    }
}
