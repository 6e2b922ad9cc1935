//! The log's bytes on disk. Little-endian throughout.
//!
//! A segment: header (magic, version, number, salt, stamp; CRC32C), then batches at multiples of [`ALIGNMENT`].
//! A batch: header (magic, length, CRC32C, the header's own CRC32C, number), then records. The CRCs cover the segment's salt, the
//! number and the records, so that no bytes that a client chose, nor those of another segment, can pass for a batch or a header.
//!
//! A batch is written when the one before is durable. So a header alone, whatever became of its records, tells that all batches
//! before it were durable; and so that the last one can be told from a torn one, too, a header without records (a mark) is written
//! behind it, where the next batch will go.

use bytes::{BufMut, Bytes};
use multicast::ids::{Ballot, GroupId, LogIndex, ReplicaId};

/// Batches begin at multiples of a disk's sector: a torn write never touches an earlier batch's sectors.
pub const ALIGNMENT: u64 = 512;
/// Where the first batch of a segment begins.
pub const SEGMENT_HEADER_LEN: u64 = ALIGNMENT;
/// Before a batch's records.
pub const BATCH_HEADER_LEN: usize = 24;

/// Begins each segment. Its last byte is the version of all that is written here.
pub const SEGMENT_MAGIC: [u8; 8] = *b"GlFSlog\x02";
const BATCH_MAGIC: u32 = 0x6c46_b001;
const SEGMENT_HEADER_BYTES: usize = 8 + 8 + 8 + 8 + 4;

/// One change to one group's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WalRecord {
    /// An entry; whatever was at its index or behind it is gone.
    Append {
        /// Whose.
        group: GroupId,
        /// Where.
        index: LogIndex,
        /// In which ballot.
        ballot: Ballot,
        /// What.
        bytes: Bytes,
    },
    /// Everything from an index on is gone.
    Truncate {
        /// Whose.
        group: GroupId,
        /// First index that is gone.
        from: LogIndex,
    },
    /// A promise, and how far the log is known to be committed (a hint: it may lag).
    HardState {
        /// Whose.
        group: GroupId,
        /// The ballot promised.
        promised: Ballot,
        /// Committed at least up to here.
        committed: LogIndex,
    },
    /// Everything up to an index is not needed any more.
    Trim {
        /// Whose.
        group: GroupId,
        /// Last index that is gone.
        through: LogIndex,
        /// Its ballot.
        ballot: Ballot,
    },
    /// The replica has ended for good: entries, promise and all. What follows is another replica's, which begins anew.
    End {
        /// Whose.
        group: GroupId,
    },
}

impl WalRecord {
    /// True if what is before it in its group's log may go.
    pub fn lets_go(&self) -> bool {
        matches!(self, WalRecord::Trim { .. } | WalRecord::End { .. })
    }

    /// Upper bound of its encoded length.
    pub fn encoded_len_max(&self) -> usize {
        match self {
            WalRecord::Append { bytes, .. } => 40 + bytes.len(),
            _ => 40,
        }
    }

    /// Appends its bytes; returns where in `buffer` an entry's own bytes begin.
    pub fn encode(&self, buffer: &mut Vec<u8>) -> usize {
        match self {
            WalRecord::Append { group, index, ballot, bytes } => {
                head(buffer, 1, *group);
                buffer.put_u64_le(index.0);
                put_ballot(buffer, *ballot);
                let len = u32::try_from(bytes.len()).expect("a log entry is shorter than a frame");
                buffer.put_u32_le(len);
                buffer.put_slice(bytes);
                return buffer.len() - bytes.len();
            }
            WalRecord::Truncate { group, from } => {
                head(buffer, 2, *group);
                buffer.put_u64_le(from.0);
            }
            WalRecord::HardState { group, promised, committed } => {
                head(buffer, 3, *group);
                put_ballot(buffer, *promised);
                buffer.put_u64_le(committed.0);
            }
            WalRecord::Trim { group, through, ballot } => {
                head(buffer, 4, *group);
                buffer.put_u64_le(through.0);
                put_ballot(buffer, *ballot);
            }
            WalRecord::End { group } => head(buffer, 5, *group),
        }
        buffer.len()
    }
}

fn head(buffer: &mut Vec<u8>, kind: u8, group: GroupId) {
    buffer.put_u8(kind);
    buffer.put_u16_le(group.0);
}

fn put_ballot(buffer: &mut Vec<u8>, ballot: Ballot) {
    buffer.put_u64_le(ballot.round);
    buffer.put_u8(u8::from(ballot.owner.is_some()));
    buffer.put_u32_le(ballot.owner.map_or(0, |owner| owner.0));
}

/// Reads records from a batch's bytes. Every read is checked: a batch whose CRC fits may still be of another version.
pub struct RecordReader<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl<'a> RecordReader<'a> {
    /// Over a batch's records.
    pub fn new(bytes: &'a [u8]) -> Self {
        RecordReader { bytes, position: 0 }
    }

    /// The next record and where its entry's bytes begin; `None` at the end; an error if the bytes make no record.
    pub fn next(&mut self) -> Result<Option<(WalRecord, usize)>, &'static str> {
        if self.position == self.bytes.len() {
            return Ok(None);
        }
        self.record().map(Some).ok_or("a record is cut off or of an unknown kind")
    }

    fn record(&mut self) -> Option<(WalRecord, usize)> {
        let kind = self.take::<1>()?[0];
        let group = GroupId(u16::from_le_bytes(self.take()?));
        let record = match kind {
            1 => {
                let (index, ballot) = (self.index()?, self.ballot()?);
                let len = u32::from_le_bytes(self.take()?) as usize;
                let entry = self.bytes.get(self.position..self.position.checked_add(len)?)?;
                let start = self.position;
                self.position += len;
                let bytes = Bytes::copy_from_slice(entry);
                return Some((WalRecord::Append { group, index, ballot, bytes }, start));
            }
            2 => WalRecord::Truncate { group, from: self.index()? },
            3 => WalRecord::HardState { group, promised: self.ballot()?, committed: self.index()? },
            4 => WalRecord::Trim { group, through: self.index()?, ballot: self.ballot()? },
            5 => WalRecord::End { group },
            _ => return None,
        };
        Some((record, self.position))
    }

    fn index(&mut self) -> Option<LogIndex> {
        Some(LogIndex(u64::from_le_bytes(self.take()?)))
    }

    fn ballot(&mut self) -> Option<Ballot> {
        let round = u64::from_le_bytes(self.take()?);
        let [owned] = self.take()?;
        let owner = ReplicaId(u32::from_le_bytes(self.take()?));
        match owned {
            0 => Some(Ballot { round, owner: None }),
            1 => Some(Ballot { round, owner: Some(owner) }),
            _ => None,
        }
    }

    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let bytes = self.bytes.get(self.position..self.position + N)?;
        self.position += N;
        bytes.try_into().ok()
    }
}

/// A segment's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// The how-manieth segment of this log.
    pub number: u64,
    /// Drawn for this segment.
    pub salt: u64,
    /// Whose log it is: a hash of cluster and node.
    pub stamp: u64,
}

impl SegmentHeader {
    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(SEGMENT_HEADER_BYTES);
        bytes.put_slice(&SEGMENT_MAGIC);
        bytes.put_u64_le(self.number);
        bytes.put_u64_le(self.salt);
        bytes.put_u64_le(self.stamp);
        let crc = crc32c::crc32c(&bytes);
        bytes.put_u32_le(crc);
        bytes
    }

    /// Reads it back; the error says what is wrong.
    pub fn decode(bytes: &[u8]) -> Result<SegmentHeader, String> {
        let header: &[u8; SEGMENT_HEADER_BYTES] = bytes
            .get(..SEGMENT_HEADER_BYTES)
            .and_then(|header| header.try_into().ok())
            .ok_or("the segment header is cut off")?;
        if header[..7] != SEGMENT_MAGIC[..7] {
            return Err("this is not a log segment".into());
        }
        if header[7] != SEGMENT_MAGIC[7] {
            return Err(format!("log format {}, this program knows {}", header[7], SEGMENT_MAGIC[7]));
        }
        let word = |at: usize| u64::from_le_bytes(header[at..at + 8].try_into().expect("eight bytes"));
        let crc = u32::from_le_bytes(header[32..36].try_into().expect("four bytes"));
        if crc != crc32c::crc32c(&header[..32]) {
            return Err("the segment header's checksum does not fit".into());
        }
        Ok(SegmentHeader { number: word(8), salt: word(16), stamp: word(24) })
    }
}

/// A batch's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchHeader {
    /// Bytes of records.
    pub len: u32,
    crc: u32,
    /// Counts the log's batches, without a gap.
    pub number: u64,
}

impl BatchHeader {
    /// Writes the header in front of the records that follow it in `batch`.
    pub fn seal(batch: &mut [u8], salt: u64, number: u64) {
        let (header, records) = batch.split_at_mut(BATCH_HEADER_LEN);
        let len = u32::try_from(records.len()).expect("a batch is shorter than a segment");
        header[..4].copy_from_slice(&BATCH_MAGIC.to_le_bytes());
        header[4..8].copy_from_slice(&len.to_le_bytes());
        header[8..12].copy_from_slice(&checksum(salt, number, records).to_le_bytes());
        header[16..24].copy_from_slice(&number.to_le_bytes());
        let own = header_checksum(salt, header);
        header[12..16].copy_from_slice(&own.to_le_bytes());
    }

    /// A header without records: all batches below this number are durable.
    pub fn mark(salt: u64, number: u64) -> [u8; BATCH_HEADER_LEN] {
        let mut mark = [0; BATCH_HEADER_LEN];
        BatchHeader::seal(&mut mark, salt, number);
        mark
    }

    /// Reads a header; `None` if there is none.
    pub fn decode(salt: u64, header: &[u8]) -> Option<BatchHeader> {
        let header = header.first_chunk::<BATCH_HEADER_LEN>()?;
        let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("four bytes"));
        let number = u64::from_le_bytes(header[16..24].try_into().expect("eight bytes"));
        let is_one = word(0) == BATCH_MAGIC && word(12) == header_checksum(salt, header);
        is_one.then(|| BatchHeader { len: word(4), crc: word(8), number })
    }

    /// True if it is no batch, but tells that those before are durable.
    pub fn is_mark(&self) -> bool {
        self.len == 0
    }

    /// True if these are its records.
    pub fn fits(&self, salt: u64, records: &[u8]) -> bool {
        records.len() == self.len as usize && checksum(salt, self.number, records) == self.crc
    }
}

fn checksum(salt: u64, number: u64, records: &[u8]) -> u32 {
    let crc = crc32c::crc32c_append(crc32c::crc32c(&salt.to_le_bytes()), &number.to_le_bytes());
    crc32c::crc32c_append(crc, records)
}

/// Of all of a header but this.
fn header_checksum(salt: u64, header: &[u8]) -> u32 {
    let crc = crc32c::crc32c_append(crc32c::crc32c(&salt.to_le_bytes()), &header[..12]);
    crc32c::crc32c_append(crc, &header[16..BATCH_HEADER_LEN])
}

/// The next multiple of [`ALIGNMENT`].
pub fn align(offset: u64) -> u64 {
    offset.next_multiple_of(ALIGNMENT)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn record_golden_bytes_hold() {
        let ballot = Ballot { round: 3, owner: Some(ReplicaId(7)) };
        let record =
            WalRecord::Append { group: GroupId(2), index: LogIndex(5), ballot, bytes: Bytes::from_static(b"xy") };
        let mut bytes = Vec::new();
        assert_eq!(record.encode(&mut bytes), bytes.len() - 2);
        assert_eq!(
            bytes,
            [1, 2, 0, 5, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 1, 7, 0, 0, 0, 2, 0, 0, 0, b'x', b'y']
        );
        assert_eq!(RecordReader::new(&bytes).next().unwrap().unwrap().0, record);
    }

    proptest! {
        #[test]
        fn reader_of_random_bytes_never_panics(bytes in proptest::collection::vec(0u8..6, 0..200)) {
            let mut reader = RecordReader::new(&bytes);
            while let Ok(Some(_)) = reader.next() {}
        }

        #[test]
        fn segment_header_of_random_bytes_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            prop_assert!(SegmentHeader::decode(&bytes).is_err());
        }
    }
}
