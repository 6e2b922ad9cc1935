//! The end of a log in memory, decoded: everything that is not applied, and a tail of what is, for followers that lag.

use std::collections::VecDeque;

use crate::error::Error;
use crate::ids::{Ballot, LogIndex};
use crate::record::{Entry, Position, Record};

/// A dense run of entries up to the end of the log.
#[derive(Clone, Debug)]
pub(crate) struct Entries {
    entries: VecDeque<Entry>,
    /// Of the last so many of them, those that are not applied; followers need only the bytes.
    records: VecDeque<Record>,
    /// The index before the first entry.
    before: LogIndex,
    len_bytes: usize,
}

/// An entry that has been made or read just now.
#[derive(Clone, Debug)]
pub(crate) struct Slot {
    pub(crate) entry: Entry,
    pub(crate) record: Record,
}

impl Slot {
    /// # Errors
    /// If the entry's bytes are no record.
    pub(crate) fn decode(entry: Entry) -> Result<Slot, Error> {
        let record = Record::decode(&entry.record)?;
        Ok(Slot { entry, record })
    }
}

impl Entries {
    /// # Errors
    /// If the entries are not dense, do not reach `applied`, or are no records from there on.
    pub(crate) fn load(entries: Vec<Entry>, applied: LogIndex) -> Result<Self, Error> {
        let first = entries.first().map_or(LogIndex(1), |entry| entry.index);
        let last = entries.last().map_or(LogIndex::ZERO, |entry| entry.index);
        let dense = entries.iter().zip(first.0..).all(|(entry, index)| entry.index.0 == index);
        if !dense || first.0 == 0 || first > applied.next() || last < applied {
            return Err(Error::LogBehindState { first, last, applied });
        }
        let len_bytes = entries.iter().map(Entry::len_bytes).sum();
        if let Some(entry) = entries.iter().find(|entry| entry.index == applied) {
            // Goes into copies.
            Record::decode(&entry.record)?;
        }
        let unapplied = entries.iter().filter(|entry| entry.index > applied);
        let records = unapplied.map(|entry| Record::decode(&entry.record)).collect::<Result<_, _>>()?;
        Ok(Entries { entries: entries.into(), records, before: LogIndex(first.0 - 1), len_bytes })
    }

    /// The log begins anew with this one, which is applied.
    pub(crate) fn begin_at(entry: Entry) -> Self {
        let (before, len_bytes) = (LogIndex(entry.index.0 - 1), entry.len_bytes());
        Entries { entries: VecDeque::from([entry]), records: VecDeque::new(), before, len_bytes }
    }

    /// The end of the log.
    pub(crate) fn last(&self) -> Position {
        match self.entries.back() {
            Some(entry) => entry.position(),
            None => Position { ballot: Ballot::default(), index: self.before },
        }
    }

    pub(crate) fn get(&self, index: LogIndex) -> Option<&Entry> {
        let at = index.0.checked_sub(self.before.0 + 1)?;
        self.entries.get(usize::try_from(at).ok()?)
    }

    /// The records that are not applied, with their indexes.
    pub(crate) fn unapplied(&self) -> impl Iterator<Item = (LogIndex, &Record)> {
        (self.applied().0 + 1..).map(LogIndex).zip(&self.records)
    }

    /// Takes the next record out, to be applied.
    pub(crate) fn take_record(&mut self) -> Option<Record> {
        self.records.pop_front()
    }

    /// Everything up to `index` is applied.
    pub(crate) fn skip_applied(&mut self, index: LogIndex) {
        let skipped = index.0.saturating_sub(self.applied().0).min(self.records.len() as u64);
        self.records.drain(..skipped as usize);
    }

    fn applied(&self) -> LogIndex {
        LogIndex(self.last().index.0 - self.records.len() as u64)
    }

    /// The position at `index`, if it is in memory or the beginning of all logs.
    pub(crate) fn position(&self, index: LogIndex) -> Option<Position> {
        if index == LogIndex::ZERO {
            return Some(Position::default());
        }
        self.get(index).map(Entry::position)
    }

    /// The index before the run of entries of one ballot that `index` belongs to, as far as it is in memory.
    pub(crate) fn before_run(&self, index: LogIndex) -> LogIndex {
        let ballot = self.position(index).map(|position| position.ballot);
        let mut first = index;
        while first > self.before && self.position(first).map(|position| position.ballot) == ballot {
            first = LogIndex(first.0 - 1);
        }
        first
    }

    /// Entries from `index` on, at least one and then up to so many bytes; none beyond the end.
    pub(crate) fn batch(&self, index: LogIndex, bytes_max: usize) -> Vec<Entry> {
        let mut batch = Vec::new();
        let mut len_bytes = 0;
        let mut next = index;
        while let Some(entry) = self.get(next) {
            len_bytes += entry.len_bytes();
            if len_bytes > bytes_max && !batch.is_empty() {
                break;
            }
            batch.push(entry.clone());
            next = next.next();
        }
        batch
    }

    pub(crate) fn push(&mut self, slot: Slot) {
        assert_eq!(slot.entry.index, self.last().index.next(), "a log has no holes");
        self.len_bytes += slot.entry.len_bytes();
        self.entries.push_back(slot.entry);
        self.records.push_back(slot.record);
    }

    /// Drops `index` and all behind it; tells how many bytes that were.
    pub(crate) fn truncate_from(&mut self, index: LogIndex) -> usize {
        let before_bytes = self.len_bytes;
        assert!(index > self.before, "what is cut off lies in memory");
        while self.entries.back().is_some_and(|entry| entry.index >= index) {
            let entry = self.entries.pop_back().expect("just seen");
            self.records.pop_back();
            self.len_bytes -= entry.len_bytes();
        }
        before_bytes - self.len_bytes
    }

    /// Drops the oldest entries below `index` while there are more bytes than wanted, and those below `everywhere`, which
    /// nobody will ask for: memory that is used again soon costs much less than memory that is not.
    pub(crate) fn trim(&mut self, index: LogIndex, everywhere: LogIndex, bytes_max: usize) {
        while let Some(oldest) = self.entries.front() {
            let is_wanted = self.len_bytes <= bytes_max && oldest.index >= everywhere;
            if is_wanted || oldest.index >= index {
                return;
            }
            self.len_bytes -= oldest.len_bytes();
            self.before = oldest.index;
            self.entries.pop_front();
        }
    }
}
