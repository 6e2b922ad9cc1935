//! Writes batches and turns segments. Synchronous: the thread around it is in `mod.rs`.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

use bytes::Bytes;
use multicast::ids::{Ballot, GroupId, LogIndex};
use parking_lot::Mutex;

use super::format::{self, BATCH_HEADER_LEN, BatchHeader, SEGMENT_HEADER_LEN, SegmentHeader, WalRecord};
use super::index::{GroupLog, Logs, Position, group_of};
use crate::error::{Error, Result};
use crate::storage::disk::{Disk, DiskFile};

/// Entries are written again only if the log has at least so many segments behind the one that they keep.
const QUIET_SEGMENTS_MIN: u64 = 3;
/// Entries that are more than this part of a segment are not written again: their group is not quiet, or a follower needs
/// them.
const QUIET_SHARE: u64 = 8;
const ENTRY_HEADER_BYTES: u64 = 40;

/// How a log is written.
#[derive(Clone, Debug)]
pub struct WalConfig {
    /// Bytes of one segment file.
    pub segment_bytes: u64,
    /// Bytes of entries kept in memory, per group.
    pub cache_bytes: usize,
    /// Hash of cluster and node: another's log is refused.
    pub stamp: u64,
    /// Make the next segment beside the writing. Off in tests that count writes.
    pub prepare_ahead: bool,
}

/// A segment file.
#[derive(Clone)]
pub(super) struct Segment {
    pub header: SegmentHeader,
    pub file: Arc<dyn DiskFile>,
}

impl Segment {
    pub fn name(number: u64) -> String {
        format!("log-{number:016x}")
    }

    pub fn number_of(name: &str) -> Option<u64> {
        u64::from_str_radix(name.strip_prefix("log-")?, 16).ok()
    }

    fn create(disk: &dyn Disk, number: u64, stamp: u64, len: u64) -> io::Result<Segment> {
        let salt = crate::random_u64();
        let header = SegmentHeader { number, salt, stamp };
        let file = disk.create(&Segment::name(number), &header.encode(), len)?;
        Ok(Segment { header, file })
    }
}

/// What writer and readers share.
#[derive(Default)]
pub(super) struct Tables {
    pub logs: Logs,
    pub segments: BTreeMap<u64, Segment>,
    pub flushes: u64,
    pub records: u64,
}

/// An entry that was found under the tables' lock, to be read without it.
pub(super) struct Found {
    pub ballot: Ballot,
    pub len_bytes: usize,
    bytes: FoundBytes,
}

enum FoundBytes {
    Cached(Bytes),
    OnDisk(Segment, Position),
}

impl Tables {
    /// An entry of one of its groups.
    pub fn find(&self, log: &GroupLog, index: LogIndex) -> Option<Found> {
        let (position, ballot) = (log.position(index)?, log.ballot(index)?);
        let bytes = log.cached(index).cloned().map_or_else(
            || {
                let segment = self.segments.get(&u64::from(position.segment)).cloned();
                FoundBytes::OnDisk(segment.expect("a segment with live entries is kept"), position)
            },
            FoundBytes::Cached,
        );
        Some(Found { ballot, len_bytes: position.len as usize, bytes })
    }
}

impl Found {
    /// Its bytes, as they were written.
    pub fn read(self) -> Result<Bytes> {
        match self.bytes {
            FoundBytes::Cached(bytes) => Ok(bytes),
            FoundBytes::OnDisk(segment, position) => segment.read(position),
        }
    }
}

impl Segment {
    /// An entry's bytes, as they were written.
    pub fn read(&self, position: Position) -> Result<Bytes> {
        let name = || Segment::name(self.header.number);
        let mut bytes = vec![0; position.len as usize];
        self.file
            .read_at(u64::from(position.offset), &mut bytes)
            .map_err(|source| Error::LogFailed { file: name(), source })?;
        if crc32c::crc32c(&bytes) != position.crc32c {
            let problem = "a log entry is not what was written".into();
            return Err(Error::Corrupt { file: name(), offset: u64::from(position.offset), problem });
        }
        Ok(bytes.into())
    }
}

pub(super) struct Writer {
    disk: Arc<dyn Disk>,
    config: WalConfig,
    tables: Arc<Mutex<Tables>>,
    current: Segment,
    offset: u64,
    batch_number: u64,
    /// The batch that the last mark was written behind is the one before this.
    marked: u64,
    spare: Option<JoinHandle<io::Result<Segment>>>,
    buffer: Vec<u8>,
    starts: Vec<usize>,
}

/// Where writing goes on.
pub(super) struct Tail {
    pub segment: Segment,
    pub offset: u64,
    pub batch_number: u64,
}

impl Writer {
    /// Goes on behind `tail`, or begins a new log.
    pub fn new(
        disk: Arc<dyn Disk>,
        config: WalConfig,
        tables: Arc<Mutex<Tables>>,
        tail: Option<Tail>,
    ) -> Result<Writer> {
        let tail = match tail {
            Some(tail) => tail,
            None => {
                let segment = Segment::create(&*disk, 1, config.stamp, config.segment_bytes)
                    .map_err(|source| failed(1, source))?;
                tables.lock().segments.insert(1, segment.clone());
                Tail { segment, offset: SEGMENT_HEADER_LEN, batch_number: 1 }
            }
        };
        Ok(Writer {
            disk,
            config,
            tables,
            current: tail.segment,
            offset: tail.offset,
            batch_number: tail.batch_number,
            marked: 0,
            spare: None,
            buffer: Vec::new(),
            starts: Vec::new(),
        })
    }

    /// Makes the records durable, in order, and enters them in the tables. One flush, but for very large writes. An error
    /// is final: nobody knows what is on disk.
    pub fn write(&mut self, records: &[WalRecord]) -> Result<()> {
        let mut rest = records;
        while !rest.is_empty() {
            let room = (self.config.segment_bytes / 2) as usize;
            let (mut count, mut bytes) = (0, 0);
            for record in rest {
                bytes += record.encoded_len_max();
                if count > 0 && bytes > room {
                    break;
                }
                count += 1;
            }
            let (now, later) = rest.split_at(count);
            self.write_batch(now)?;
            rest = later;
        }
        Ok(())
    }

    /// Notes behind the last batch that it is durable, so that damage to it is not taken for a torn tail. The next batch takes
    /// the place. Not flushed: it costs no more than a copy into the page cache, and survives the process at once, a loss of
    /// power once the system has written it by itself.
    pub fn mark(&mut self) -> Result<()> {
        let has_room = self.offset + format::ALIGNMENT <= self.current.file.len_bytes();
        if self.marked == self.batch_number || !has_room {
            return Ok(());
        }
        let mark = BatchHeader::mark(self.current.header.salt, self.batch_number);
        let written = self.current.file.write_at(self.offset, &mark);
        self.marked = self.batch_number;
        written.map_err(|source| failed(self.current.header.number, source))
    }

    fn write_batch(&mut self, records: &[WalRecord]) -> Result<()> {
        self.encode(records);
        // A mark must have room behind it.
        let end = format::align(self.offset + self.buffer.len() as u64) + format::ALIGNMENT;
        if end > self.current.file.len_bytes() {
            self.turn_segment()?;
            let mut with_state = Vec::new();
            for (&group, log) in &self.tables.lock().logs {
                log.hard_state(group, &mut with_state);
            }
            with_state.extend_from_slice(records);
            self.encode(&with_state);
            self.flush()?;
            self.enter(&with_state)
        } else {
            self.flush()?;
            self.enter(records)
        }
    }

    fn encode(&mut self, records: &[WalRecord]) {
        self.buffer.clear();
        self.starts.clear();
        self.buffer.resize(BATCH_HEADER_LEN, 0);
        for record in records {
            let start = record.encode(&mut self.buffer);
            self.starts.push(start);
        }
    }

    fn flush(&mut self) -> Result<()> {
        BatchHeader::seal(&mut self.buffer, self.current.header.salt, self.batch_number);
        let file = &self.current.file;
        file.write_durably(self.offset, &self.buffer).map_err(|source| failed(self.current.header.number, source))
    }

    /// Enters what has just been flushed in the tables.
    fn enter(&mut self, records: &[WalRecord]) -> Result<()> {
        let segment = u32::try_from(self.current.header.number).expect("fewer than 2^32 segments");
        let mut tables = self.tables.lock();
        for (record, &start) in records.iter().zip(&self.starts) {
            let position = Position::of(record, segment, (self.offset + start as u64) as u32);
            let log = tables.logs.entry(group_of(record)).or_default();
            let applied = log.apply(record, position, self.config.cache_bytes);
            assert_eq!(applied, Ok(()), "a group writes its log in order");
        }
        tables.flushes += 1;
        tables.records += records.len() as u64;
        drop(tables);
        self.offset = format::align(self.offset + self.buffer.len() as u64);
        self.batch_number += 1;
        Ok(())
    }

    fn turn_segment(&mut self) -> Result<()> {
        let number = self.current.header.number + 1;
        let made = match self.spare.take() {
            Some(spare) => spare.join().unwrap_or_else(|_| Err(io::Error::other("making a segment panicked"))),
            None => self.reuse_or_create(number),
        };
        self.current = made.map_err(|source| failed(number, source))?;
        self.offset = SEGMENT_HEADER_LEN;
        self.tables.lock().segments.insert(number, self.current.clone());
        self.prepare_next();
        Ok(())
    }

    /// A segment made ahead before a restart is in the tables already.
    fn reuse_or_create(&self, number: u64) -> io::Result<Segment> {
        if let Some(segment) = self.tables.lock().segments.get(&number) {
            return Ok(segment.clone());
        }
        Segment::create(&*self.disk, number, self.config.stamp, self.config.segment_bytes)
    }

    fn prepare_next(&mut self) {
        let number = self.current.header.number + 1;
        if !self.config.prepare_ahead || self.tables.lock().segments.contains_key(&number) {
            return;
        }
        let (disk, stamp, len) = (self.disk.clone(), self.config.stamp, self.config.segment_bytes);
        let make = move || Segment::create(&*disk, number, stamp, len);
        // Without a thread the segment is made when it is needed.
        self.spare = std::thread::Builder::new().name("log-segment".into()).spawn(make).ok();
    }

    /// A quiet group's few entries would keep all segments behind theirs: they are written again, at the end, in one batch.
    /// Costs little, for it happens again only segments later. An error is final, as in [`Writer::write`].
    pub fn move_quiet_entries(&mut self) -> Result<()> {
        let again = self.quiet_entries()?;
        if again.is_empty() { Ok(()) } else { self.write_batch(&again) }
    }

    fn quiet_entries(&self) -> Result<Vec<WalRecord>> {
        // Only the writer removes segments, so that what was found can be read when the lock is gone.
        let read = |(group, index, found): (GroupId, LogIndex, Found)| {
            Ok(WalRecord::Append { group, index, ballot: found.ballot, bytes: found.read()? })
        };
        self.find_quiet().into_iter().map(read).collect()
    }

    fn find_quiet(&self) -> Vec<(GroupId, LogIndex, Found)> {
        let tables = self.tables.lock();
        let Some(&oldest) = tables.segments.keys().next() else { return Vec::new() };
        if self.current.header.number - oldest < QUIET_SEGMENTS_MIN {
            return Vec::new();
        }
        let keepers = || tables.logs.iter().filter(|(_, log)| log.oldest_segment().map(u64::from) == Some(oldest));
        let cost = |log: &GroupLog| {
            let count = log.live().map_or(0, |(first, last)| last.0 - first.0 + 1);
            log.live_bytes() + count * ENTRY_HEADER_BYTES
        };
        let bytes: u64 = keepers().map(|(_, log)| cost(log)).sum();
        if bytes > self.config.segment_bytes / QUIET_SHARE {
            return Vec::new();
        }
        let mut again = Vec::new();
        for (&group, log) in keepers() {
            let Some((first, last)) = log.live() else { continue };
            let all = (first.0..=last.0).map(LogIndex);
            again.extend(all.filter_map(|index| Some((group, index, tables.find(log, index)?))));
        }
        again
    }

    /// Removes segments in which no group needs anything any more, oldest first.
    pub fn remove_unneeded(&mut self) -> Result<()> {
        loop {
            let oldest = {
                let tables = self.tables.lock();
                let needed = tables.logs.values().filter_map(|log| log.oldest_segment().map(u64::from)).min();
                let needed = needed.unwrap_or(u64::MAX).min(self.current.header.number);
                match tables.segments.keys().next() {
                    Some(&oldest) if oldest < needed => oldest,
                    _ => return Ok(()),
                }
            };
            self.disk.remove(&Segment::name(oldest)).map_err(|source| failed(oldest, source))?;
            self.tables.lock().segments.remove(&oldest);
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if let Some(spare) = self.spare.take() {
            let _ = spare.join();
        }
    }
}

fn failed(number: u64, source: io::Error) -> Error {
    Error::LogFailed { file: Segment::name(number), source }
}
