//! Reads a log back.
//!
//! A crash can tear only the batch that was being written: the next one, and the mark that stands in for it while there is none,
//! are written after that one's flush. So an invalid batch is the torn tail if no later header follows it anywhere; else it is
//! damage, which is never passed over.

use std::sync::Arc;

use super::format::{ALIGNMENT, BATCH_HEADER_LEN, BatchHeader, RecordReader, SEGMENT_HEADER_LEN, SegmentHeader, align};
use super::index::{Position, group_of};
use super::writer::{Segment, Tables, Tail, WalConfig};
use crate::error::{Error, Result};
use crate::storage::disk::Disk;

pub(super) struct Recovery<'a> {
    config: &'a WalConfig,
    tables: Tables,
    /// The number that the next batch must have; `None` before the first.
    next: Option<u64>,
    /// Behind the last valid batch: (segment, offset).
    end: Option<(u64, u64)>,
    /// Where the first invalid batch was found, and why it is invalid.
    torn: Option<(u64, u64, String)>,
    /// What the torn batch left: (segment, from, to).
    debris: Vec<(u64, u64, u64)>,
}

/// Reads all segments, and changes nothing.
pub(super) fn read<'c>(disk: &dyn Disk, config: &'c WalConfig) -> Result<Recovery<'c>> {
    let mut recovery =
        Recovery { config, tables: Tables::default(), next: None, end: None, torn: None, debris: Vec::new() };
    recovery.open_segments(disk)?;
    for segment in recovery.tables.segments.values().cloned().collect::<Vec<_>>() {
        recovery.read_segment(&segment)?;
    }
    recovery.check_gaps()?;
    Ok(recovery)
}

/// Reads all segments. No tail: there is no log yet.
pub(super) fn recover(disk: &dyn Disk, config: &WalConfig) -> Result<(Tables, Option<Tail>)> {
    let recovery = read(disk, config)?;
    let Some(&first) = recovery.tables.segments.keys().next() else {
        return Ok((recovery.tables, None));
    };
    let (number, offset) = recovery.end.unwrap_or((first, SEGMENT_HEADER_LEN));
    let segment = recovery.tables.segments[&number].clone();
    recovery.clear_debris()?;
    // What a killed process wrote may be in the page cache only. It counts from now on, so it must be durable.
    for segment in recovery.tables.segments.values() {
        segment.file.sync().map_err(Error::file(Segment::name(segment.header.number)))?;
    }
    if let Some((torn, offset, problem)) = &recovery.torn {
        tracing::info!(segment = torn, offset, %problem, "dropped the log's torn tail, which was never acknowledged");
    }
    let tail = Tail { segment, offset, batch_number: recovery.next.unwrap_or(1) };
    Ok((recovery.tables, Some(tail)))
}

impl Recovery<'_> {
    fn open_segments(&mut self, disk: &dyn Disk) -> Result<()> {
        let names = disk.list().map_err(Error::file("the log's folder"))?;
        let mut numbers: Vec<u64> = names.iter().filter_map(|name| Segment::number_of(name)).collect();
        numbers.sort_unstable();
        for (&number, expected) in numbers.iter().zip(numbers.first().copied().unwrap_or(1)..) {
            let name = Segment::name(number);
            if number != expected {
                return Err(corrupt(expected, 0, "this segment is missing"));
            }
            let file = disk.open(&name).map_err(Error::file(&name))?;
            let mut head = vec![0; SEGMENT_HEADER_LEN.min(file.len_bytes()) as usize];
            file.read_at(0, &mut head).map_err(Error::file(&name))?;
            let header = SegmentHeader::decode(&head).map_err(|problem| corrupt(number, 0, problem))?;
            if header.number != number {
                return Err(corrupt(number, 0, format!("the segment calls itself {}", header.number)));
            }
            if header.stamp != self.config.stamp {
                let problem = "this log belongs to another node or cluster".into();
                return Err(Error::ForeignData { path: name.into(), problem });
            }
            self.tables.segments.insert(number, Segment { header, file: Arc::clone(&file) });
        }
        Ok(())
    }

    fn read_segment(&mut self, segment: &Segment) -> Result<()> {
        let number = segment.header.number;
        let mut bytes = vec![0; usize::try_from(segment.file.len_bytes()).unwrap_or(usize::MAX)];
        segment.file.read_at(0, &mut bytes).map_err(Error::file(Segment::name(number)))?;
        let mut offset = SEGMENT_HEADER_LEN;
        if self.torn.is_none() {
            offset = self.read_batches(segment, &bytes)?;
        }
        self.refuse_what_follows_torn(segment, &bytes, offset)?;
        let rest = bytes.get(offset as usize..).unwrap_or_default();
        if let Some(last) = rest.iter().rposition(|&byte| byte != 0) {
            self.debris.push((number, offset, offset + last as u64 + 1));
        }
        Ok(())
    }

    /// What is written next may be shorter than the torn batch, and the remains would then look like damage.
    fn clear_debris(&self) -> Result<()> {
        for &(number, from, to) in &self.debris {
            let zeros = vec![0; usize::try_from(to - from).unwrap_or(usize::MAX)];
            self.tables.segments[&number].file.write_at(from, &zeros).map_err(Error::file(Segment::name(number)))?;
        }
        Ok(())
    }

    /// Returns where the valid batches end.
    fn read_batches(&mut self, segment: &Segment, bytes: &[u8]) -> Result<u64> {
        let number = segment.header.number;
        let mut offset = SEGMENT_HEADER_LEN;
        loop {
            let (header, records) = match batch_at(bytes, offset, segment.header.salt) {
                Ok(batch) => batch,
                Err(problem) => {
                    self.note_invalid(number, offset, bytes, problem);
                    return Ok(offset);
                }
            };
            // A log that has nothing but a mark is new.
            let expected = self.next.or(header.is_mark().then_some(1));
            if expected.is_some_and(|next| next != header.number) {
                let problem = format!("batch {} where {:?} was expected", header.number, expected);
                return Err(corrupt(number, offset, problem));
            }
            if header.is_mark() {
                // The next batch went elsewhere, or its first sector has not reached the disk.
                let behind = offset + BATCH_HEADER_LEN as u64;
                self.note_invalid(number, behind, bytes, "a batch without its beginning");
                return Ok(behind);
            }
            self.apply_batch(number, offset, records)?;
            self.next = Some(header.number + 1);
            offset = align(offset + (BATCH_HEADER_LEN + records.len()) as u64);
            self.end = Some((number, offset));
        }
    }

    fn note_invalid(&mut self, number: u64, offset: u64, bytes: &[u8], problem: &str) {
        // Zeros are simply the end: the rest of a segment is often too short for the next batch.
        let rest = bytes.get(offset as usize..).unwrap_or_default();
        if rest.iter().any(|&byte| byte != 0) {
            self.torn = Some((number, offset, problem.to_owned()));
        }
    }

    fn apply_batch(&mut self, number: u64, offset: u64, records: &[u8]) -> Result<()> {
        let mut reader = RecordReader::new(records);
        loop {
            let (record, start) = match reader.next() {
                Ok(Some(record)) => record,
                Ok(None) => return Ok(()),
                Err(problem) => return Err(corrupt(number, offset, problem)),
            };
            let start = offset as usize + BATCH_HEADER_LEN + start;
            let position = Position::of(&record, number as u32, start as u32);
            let log = self.tables.logs.entry(group_of(&record)).or_default();
            log.apply(&record, position, self.config.cache_bytes)
                .map_err(|problem| corrupt(number, offset, format!("group {}: {problem}", group_of(&record))))?;
        }
    }

    /// A torn batch is the last thing that was written.
    fn refuse_what_follows_torn(&self, segment: &Segment, bytes: &[u8], from: u64) -> Result<()> {
        let Some((torn, torn_offset, problem)) = &self.torn else { return Ok(()) };
        for head in bytes.get(align(from) as usize..).unwrap_or_default().chunks(ALIGNMENT as usize) {
            let later = BatchHeader::decode(segment.header.salt, head).map(|header| header.number);
            // Without any batch before it nobody knows the torn one's number: it was the first of a new log, or is damaged.
            if later.is_some_and(|later| later > self.next.unwrap_or(1)) {
                let problem = format!("{problem}, though it was durable before what follows was written");
                return Err(corrupt(*torn, *torn_offset, problem));
            }
        }
        Ok(())
    }

    fn check_gaps(&self) -> Result<()> {
        for (group, log) in &self.tables.logs {
            if let Some((first, last)) = log.gap() {
                let oldest = self.tables.segments.keys().next().copied().unwrap_or(1);
                let problem = format!("entries {first} to {last} of group {group} are missing before this segment");
                return Err(corrupt(oldest, 0, problem));
            }
        }
        Ok(())
    }
}

fn batch_at(bytes: &[u8], offset: u64, salt: u64) -> Result<(BatchHeader, &[u8]), &'static str> {
    let offset = usize::try_from(offset).unwrap_or(usize::MAX);
    let (head, rest) =
        bytes.get(offset..).and_then(|rest| rest.split_at_checked(BATCH_HEADER_LEN)).ok_or("no room for a batch")?;
    let header = BatchHeader::decode(salt, head).ok_or("no batch header")?;
    let records = rest.get(..header.len as usize).ok_or("a batch reaches beyond its segment")?;
    if header.fits(salt, records) { Ok((header, records)) } else { Err("a batch's checksum does not fit") }
}

fn corrupt(segment: u64, offset: u64, problem: impl Into<String>) -> Error {
    Error::Corrupt { file: Segment::name(segment), offset, problem: problem.into() }
}
