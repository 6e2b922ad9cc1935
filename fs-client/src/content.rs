//! What the metadata say about a file's bytes, cut into pieces that readers can walk.

use bytes::Bytes;
use metadata::types::{Attr, BlobRange, Content, Extent};

/// Where a piece's bytes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// In a blob, from `BlobRange::start` on.
    Blob(BlobRange),
    /// Here.
    Inline(Bytes),
    /// Zeros that hold space.
    Zeros,
}

/// A range of a file that is not a hole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Where in the file.
    pub offset: u64,
    /// How many bytes.
    pub len: u64,
    /// Its bytes.
    pub source: Source,
}

impl Piece {
    /// The first byte behind it.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.offset + self.len
    }

    /// The part of it in `from..to`, which overlaps it.
    #[must_use]
    pub fn slice(&self, from: u64, to: u64) -> Piece {
        let (from, to) = (from.max(self.offset), to.min(self.end()));
        let skipped = from - self.offset;
        let source = match &self.source {
            // A piece of a blob is never longer than a blob.
            Source::Blob(range) => Source::Blob(BlobRange { start: range.start + skipped as u32, ..*range }),
            Source::Inline(bytes) => Source::Inline(bytes.slice(skipped as usize..(to - self.offset) as usize)),
            Source::Zeros => Source::Zeros,
        };
        Piece { offset: from, len: to - from, source }
    }
}

/// A stretch of one file, as of one state of it.
#[derive(Clone, Debug)]
pub struct FileMap {
    /// The inode in that state.
    pub attr: Attr,
    from: u64,
    to: u64,
    /// Sorted, never overlapping, all within `from..to`.
    pieces: Vec<Piece>,
}

impl FileMap {
    /// From the answer to a question for `offset..offset + len`. Pieces that overlap, reach beyond a blob or beyond any
    /// file are a peer's mistake: `None`.
    #[must_use]
    pub fn new(attr: Attr, content: Content, offset: u64, len: u64) -> Option<FileMap> {
        let asked = offset.saturating_add(len);
        let (mut pieces, more) = match content {
            Content::Inline(bytes) => {
                let piece = Piece { offset: 0, len: bytes.len() as u64, source: Source::Inline(bytes) };
                let pieces = if piece.len == 0 { Vec::new() } else { vec![piece] };
                // All bytes are there, whatever was asked for.
                return Some(FileMap { attr, from: 0, to: u64::MAX, pieces });
            }
            Content::Extents { extents, more } => (from_extents(&extents), more),
            Content::Mixed { extents, inline, more } => {
                let mut pieces = from_extents(&extents);
                pieces.extend(inline.into_iter().map(|(offset, bytes)| Piece {
                    offset,
                    len: bytes.len() as u64,
                    source: Source::Inline(bytes),
                }));
                (pieces, more)
            }
        };
        pieces.retain(|piece| piece.len > 0);
        pieces.sort_by_key(|piece| piece.offset);
        let sane = |piece: &Piece| {
            let fits = match &piece.source {
                Source::Blob(range) => u64::from(range.start) + piece.len <= u64::from(range.blob_len),
                Source::Inline(_) | Source::Zeros => true,
            };
            fits && piece.offset.checked_add(piece.len).is_some()
        };
        let disjoint = pieces.windows(2).all(|pair| pair[0].end() <= pair[1].offset);
        if !pieces.iter().all(sane) || !disjoint {
            return None;
        }
        let to = if more { pieces.last().map_or(offset, Piece::end).min(asked) } else { asked };
        // An answer up to the file's end says that there is nothing behind it either.
        let to = if !more && to >= attr.size { u64::MAX } else { to };
        Some(FileMap { attr, from: offset, to, pieces })
    }

    /// The first byte behind what this map knows; `u64::MAX` if it knows the rest of the file.
    #[must_use]
    pub fn known_to(&self) -> u64 {
        self.to
    }

    /// True if every byte of `offset..end` is known to be in a piece or in none.
    #[must_use]
    pub fn covers(&self, offset: u64, end: u64) -> bool {
        self.from <= offset && end <= self.to
    }

    /// The parts of pieces in `from..to`, in order.
    pub fn pieces(&self, from: u64, to: u64) -> impl Iterator<Item = Piece> + '_ {
        let first = self.pieces.partition_point(|piece| piece.end() <= from);
        self.pieces[first..].iter().take_while(move |piece| piece.offset < to).map(move |piece| piece.slice(from, to))
    }

    /// The whole pieces that begin at or behind `from`.
    pub fn pieces_behind(&self, from: u64) -> impl Iterator<Item = &Piece> + '_ {
        let first = self.pieces.partition_point(|piece| piece.offset < from);
        self.pieces[first..].iter()
    }

    /// About how many bytes of memory it takes.
    #[must_use]
    pub fn weight(&self) -> usize {
        let inline = self.pieces.iter().map(|piece| match &piece.source {
            Source::Inline(bytes) => bytes.len(),
            Source::Blob(_) | Source::Zeros => 0,
        });
        self.pieces.len() * size_of::<Piece>() + inline.sum::<usize>() + size_of::<Self>()
    }
}

fn from_extents(extents: &[Extent]) -> Vec<Piece> {
    extents
        .iter()
        .map(|extent| Piece {
            offset: extent.offset,
            len: extent.len,
            source: extent.source.map_or(Source::Zeros, Source::Blob),
        })
        .collect()
}
