//! What has been written to one file and is not in the metadata yet. Pure: uploads are someone else's business.
//!
//! Bytes collect in memory; what has grown to a whole blob is frozen, uploaded while the writer goes on, and from then on
//! held as a reference. A flush takes everything ([`WriteBuffer::take`]); should it fail, [`WriteBuffer::restore`] puts it
//! back below what was written since.

use std::collections::BTreeMap;

use bytes::Bytes;
use metadata::types::{BLOB_BYTES_MAX, BlobId, BlobRange};

const BLOB_LEN: usize = BLOB_BYTES_MAX as usize;
/// A segment that has grown to this length will probably fill a blob: room for one is taken at once.
const RESERVE_FROM: usize = 256 << 10;

/// Where written bytes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Data {
    /// In memory, still growing.
    Memory(Vec<u8>),
    /// In memory, on their way to a blob: the chunk's number, and this segment's part of it.
    Frozen {
        /// Which chunk.
        chunk: u64,
        /// Where in the chunk.
        start: u32,
        /// The bytes.
        bytes: Bytes,
    },
    /// In a blob that is uploaded or on its way.
    Blob(BlobRange),
}

/// A written range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Where in the file.
    pub offset: u64,
    /// How many bytes.
    pub len: u64,
    /// The bytes.
    pub data: Data,
}

impl Segment {
    fn end(&self) -> u64 {
        self.offset + self.len
    }

    /// The part in `from..to`, which lies within it.
    fn slice(&self, from: u64, to: u64) -> Segment {
        // Segments are never longer than a blob, so their inner offsets fit.
        let (skip, end) = ((from - self.offset) as usize, (to - self.offset) as usize);
        let data = match &self.data {
            Data::Memory(bytes) => Data::Memory(bytes[skip..end].to_vec()),
            Data::Frozen { chunk, start, bytes } => {
                Data::Frozen { chunk: *chunk, start: start + skip as u32, bytes: bytes.slice(skip..end) }
            }
            Data::Blob(range) => Data::Blob(BlobRange { start: range.start + skip as u32, ..*range }),
        };
        Segment { offset: from, len: to - from, data }
    }
}

/// A part of a read that written data answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Overlay {
    /// These bytes.
    Bytes(u64, Bytes),
    /// So many bytes of a blob.
    Blob(u64, u64, BlobRange),
}

/// See the module. Segments never overlap and are never longer than a blob.
#[derive(Clone, Debug, Default)]
pub struct WriteBuffer {
    segments: BTreeMap<u64, Segment>,
    memory_bytes: usize,
    next_chunk: u64,
    /// Where segments have grown to whole blobs; some may have been cut since.
    full: Vec<u64>,
    /// Blobs of which parts were overwritten.
    cut: Vec<BlobId>,
}

/// The chunk of bytes that a flush holds and no upload has been asked for.
pub const LOOSE: u64 = u64::MAX;

impl WriteBuffer {
    /// Nothing was written.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    /// Bytes in memory that no uploader accounts for yet.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.memory_bytes
    }

    /// How many segments there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.segments.len()
    }

    /// The first byte behind all written ones; zero if there are none.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.segments.last_key_value().map_or(0, |(_, segment)| segment.end())
    }

    /// Takes over a write.
    pub fn write(&mut self, offset: u64, mut bytes: &[u8]) {
        let mut offset = offset;
        if self.overwrite(offset, bytes) {
            return;
        }
        self.remove(offset, offset + bytes.len() as u64);
        while !bytes.is_empty() {
            let taken = match self.growing(offset) {
                Some(growing) => {
                    let room = BLOB_LEN - growing.len();
                    let part = &bytes[..room.min(bytes.len())];
                    if growing.len() < RESERVE_FROM && growing.len() + part.len() >= RESERVE_FROM {
                        growing.reserve_exact(room);
                    }
                    growing.extend_from_slice(part);
                    part.len()
                }
                None => {
                    let part = &bytes[..BLOB_LEN.min(bytes.len())];
                    if part.len() == BLOB_LEN {
                        self.full.push(offset);
                    }
                    self.put(Segment { offset, len: part.len() as u64, data: Data::Memory(part.to_vec()) });
                    offset += part.len() as u64;
                    bytes = &bytes[part.len()..];
                    continue;
                }
            };
            let (_, segment) = self.segments.range_mut(..offset).next_back().expect("the growing segment is there");
            segment.len += taken as u64;
            if segment.len == BLOB_LEN as u64 {
                self.full.push(segment.offset);
            }
            self.memory_bytes += taken;
            offset += taken as u64;
            bytes = &bytes[taken..];
        }
    }

    /// Takes a chunk that has grown to a whole blob: it is to be uploaded and then named by
    /// [`WriteBuffer::become_blob`].
    pub fn freeze_full(&mut self) -> Option<(u64, Bytes)> {
        while let Some(offset) = self.full.pop() {
            let is_full = |segment: &Segment| matches!(&segment.data, Data::Memory(bytes) if bytes.len() == BLOB_LEN);
            if self.segments.get(&offset).is_some_and(is_full) {
                return self.freeze(offset);
            }
        }
        None
    }

    /// True if [`WriteBuffer::freeze_full`] would probably find something.
    #[must_use]
    pub fn has_full(&self) -> bool {
        !self.full.is_empty()
    }

    /// A frozen chunk has been handed to the uploader under this name. False if all of it was overwritten meanwhile.
    #[must_use]
    pub fn become_blob(&mut self, chunk: u64, blob: BlobRange) -> bool {
        let mut found = false;
        for segment in self.segments.values_mut() {
            if let Data::Frozen { chunk: frozen, start, .. } = &segment.data
                && *frozen == chunk
            {
                segment.data = Data::Blob(BlobRange { start: blob.start + start, ..blob });
                found = true;
            }
        }
        found
    }

    /// The blobs that were overwritten since the last call, to the last byte: nothing here refers to them any more.
    pub fn take_overwritten(&mut self) -> Vec<BlobId> {
        if self.cut.is_empty() {
            return Vec::new();
        }
        let held = self.blobs();
        let mut gone = std::mem::take(&mut self.cut);
        gone.retain(|blob| held.binary_search(blob).is_err());
        gone.sort_unstable();
        gone.dedup();
        gone
    }

    /// A frozen chunk could not be handed over: it is ordinary memory again.
    pub fn thaw(&mut self, chunk: u64) {
        let mut thawed = 0;
        for segment in self.segments.values_mut() {
            if let Data::Frozen { chunk: frozen, bytes, .. } = &segment.data
                && *frozen == chunk
            {
                thawed += bytes.len();
                segment.data = Data::Memory(bytes.to_vec());
            }
        }
        self.memory_bytes += thawed;
    }

    /// Takes everything. The bytes no longer change, so that readers and uploads can share them.
    #[must_use]
    pub fn take(&mut self) -> WriteBuffer {
        let cut = std::mem::take(&mut self.cut);
        let taken = WriteBuffer { next_chunk: self.next_chunk, cut, ..WriteBuffer::default() };
        let mut taken = std::mem::replace(self, taken);
        for segment in taken.segments.values_mut() {
            if let Data::Memory(bytes) = &mut segment.data {
                let bytes = Bytes::from(std::mem::take(bytes));
                segment.data = Data::Frozen { chunk: LOOSE, start: 0, bytes };
            }
        }
        taken.memory_bytes = 0;
        taken.full.clear();
        taken
    }

    /// Puts back what a flush could not deliver; what was written since wins.
    pub fn restore(&mut self, mut older: WriteBuffer) {
        older.thaw(LOOSE);
        let newer = std::mem::replace(self, older);
        self.next_chunk = self.next_chunk.max(newer.next_chunk);
        self.full.clone_from(&newer.full);
        self.cut.extend(newer.cut);
        for segment in newer.segments.into_values() {
            self.remove(segment.offset, segment.end());
            self.put(segment);
        }
    }

    /// All segments, by offset.
    pub fn segments(&self) -> impl Iterator<Item = &Segment> {
        self.segments.values()
    }

    /// A buffer of such segments.
    pub fn from_segments(segments: impl IntoIterator<Item = Segment>) -> WriteBuffer {
        let mut buffer = WriteBuffer::default();
        for segment in segments {
            buffer.remove(segment.offset, segment.end());
            buffer.put(segment);
        }
        buffer
    }

    /// The blobs that it refers to, each once.
    #[must_use]
    pub fn blobs(&self) -> Vec<BlobId> {
        let mut blobs: Vec<BlobId> = self
            .segments
            .values()
            .filter_map(|segment| match &segment.data {
                Data::Blob(range) => Some(range.blob),
                Data::Memory(_) | Data::Frozen { .. } => None,
            })
            .collect();
        blobs.sort_unstable();
        blobs.dedup();
        blobs
    }

    /// What it answers of a read of `from..to`, in order.
    #[must_use]
    pub fn overlay(&self, from: u64, to: u64) -> Vec<Overlay> {
        let mut parts = Vec::new();
        for segment in self.touching(from, to) {
            let (start, end) = (segment.offset.max(from), segment.end().min(to));
            let (skip, stop) = ((start - segment.offset) as usize, (end - segment.offset) as usize);
            parts.push(match &segment.data {
                Data::Memory(bytes) => Overlay::Bytes(start, Bytes::copy_from_slice(&bytes[skip..stop])),
                Data::Frozen { bytes, .. } => Overlay::Bytes(start, bytes.slice(skip..stop)),
                Data::Blob(range) => {
                    Overlay::Blob(start, end - start, BlobRange { start: range.start + skip as u32, ..*range })
                }
            });
        }
        parts
    }

    fn touching(&self, from: u64, to: u64) -> impl Iterator<Item = &Segment> {
        let first = self.segments.range(..=from).next_back().filter(|(_, segment)| segment.end() > from);
        let begin = first.map_or(from, |(offset, _)| *offset);
        self.segments.range(begin..).map(|(_, segment)| segment).take_while(move |segment| segment.offset < to)
    }

    /// A rewrite within one segment in memory needs no cutting.
    fn overwrite(&mut self, offset: u64, bytes: &[u8]) -> bool {
        let Some((_, segment)) = self.segments.range_mut(..=offset).next_back() else { return false };
        if segment.end() < offset + bytes.len() as u64 {
            return false;
        }
        let skip = (offset - segment.offset) as usize;
        match &mut segment.data {
            Data::Memory(held) => {
                held[skip..skip + bytes.len()].copy_from_slice(bytes);
                true
            }
            Data::Frozen { .. } | Data::Blob(_) => false,
        }
    }

    /// The segment in memory that ends at `offset` and has room.
    fn growing(&mut self, offset: u64) -> Option<&mut Vec<u8>> {
        let (_, segment) = self.segments.range_mut(..offset).next_back()?;
        if segment.end() != offset {
            return None;
        }
        match &mut segment.data {
            Data::Memory(bytes) if bytes.len() < BLOB_LEN => Some(bytes),
            Data::Memory(_) | Data::Frozen { .. } | Data::Blob(_) => None,
        }
    }

    fn freeze(&mut self, offset: u64) -> Option<(u64, Bytes)> {
        let segment = self.segments.get_mut(&offset)?;
        let Data::Memory(bytes) = &mut segment.data else { return None };
        let bytes = Bytes::from(std::mem::take(bytes));
        let chunk = self.next_chunk;
        self.next_chunk += 1;
        self.memory_bytes -= bytes.len();
        segment.data = Data::Frozen { chunk, start: 0, bytes: bytes.clone() };
        Some((chunk, bytes))
    }

    fn put(&mut self, segment: Segment) {
        if let Data::Memory(bytes) = &segment.data {
            self.memory_bytes += bytes.len();
        }
        self.segments.insert(segment.offset, segment);
    }

    /// Forgets `from..to`, cutting what reaches beyond.
    fn remove(&mut self, from: u64, to: u64) {
        if from >= to {
            return;
        }
        let offsets: Vec<u64> = self.touching(from, to).map(|segment| segment.offset).collect();
        for offset in offsets {
            let Some(mut segment) = self.segments.remove(&offset) else { continue };
            match &segment.data {
                Data::Memory(bytes) => self.memory_bytes -= bytes.len(),
                Data::Blob(range) => self.cut.push(range.blob),
                Data::Frozen { .. } => {}
            }
            let end = segment.end();
            if end > to {
                self.put(segment.slice(to, end));
            }
            if offset < from {
                if let Data::Memory(bytes) = &mut segment.data {
                    bytes.truncate((from - offset) as usize);
                    segment.len = from - offset;
                    self.put(segment);
                } else {
                    self.put(segment.slice(offset, from));
                }
            }
        }
    }
}

#[cfg(test)]
#[path = "buffer_tests.rs"]
mod tests;
