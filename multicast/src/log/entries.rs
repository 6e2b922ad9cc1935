//! The end of a log in memory, decoded: everything that is not applied, and a tail of what is, for followers that lag.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::error::Error;
use crate::ids::{Ballot, LogIndex};
use crate::record::{Entry, Position, Record};

/// A dense run of entries up to the end of the log.
#[derive(Clone, Debug)]
pub(crate) struct Entries {
    slots: VecDeque<Slot>,
    /// The index before the first slot.
    before: LogIndex,
    len_bytes: usize,
}

#[derive(Clone, Debug)]
pub(crate) struct Slot {
    pub(crate) entry: Entry,
    /// Until it is applied; followers need only the bytes.
    pub(crate) record: Option<Arc<Record>>,
}

impl Slot {
    /// # Errors
    /// If the entry's bytes are no record.
    pub(crate) fn decode(entry: Entry) -> Result<Slot, Error> {
        let record = Arc::new(Record::decode(&entry.record)?);
        Ok(Slot { entry, record: Some(record) })
    }
}

impl Entries {
    /// # Errors
    /// If the entries are not dense, are no records, or do not reach `applied`.
    pub(crate) fn load(entries: Vec<Entry>, applied: LogIndex) -> Result<Self, Error> {
        let first = entries.first().map_or(LogIndex(1), |entry| entry.index);
        let last = entries.last().map_or(LogIndex::ZERO, |entry| entry.index);
        let dense = entries.iter().zip(first.0..).all(|(entry, index)| entry.index.0 == index);
        if !dense || first.0 == 0 || first > applied.next() || last < applied {
            return Err(Error::LogBehindState { first, last, applied });
        }
        let len_bytes = entries.iter().map(Entry::len_bytes).sum();
        let slots = entries.into_iter().map(Slot::decode).collect::<Result<VecDeque<_>, _>>()?;
        Ok(Entries { slots, before: LogIndex(first.0 - 1), len_bytes })
    }

    /// The log begins anew with this one.
    pub(crate) fn begin_at(slot: Slot) -> Self {
        let (before, len_bytes) = (LogIndex(slot.entry.index.0 - 1), slot.entry.len_bytes());
        Entries { slots: VecDeque::from([slot]), before, len_bytes }
    }

    /// The end of the log.
    pub(crate) fn last(&self) -> Position {
        match self.slots.back() {
            Some(slot) => slot.entry.position(),
            None => Position { ballot: Ballot::default(), index: self.before },
        }
    }

    pub(crate) fn get(&self, index: LogIndex) -> Option<&Slot> {
        let at = index.0.checked_sub(self.before.0 + 1)?;
        self.slots.get(usize::try_from(at).ok()?)
    }

    /// Takes the record out of the slot, to be applied.
    pub(crate) fn take_record(&mut self, index: LogIndex) -> Option<Arc<Record>> {
        let at = index.0.checked_sub(self.before.0 + 1)?;
        self.slots.get_mut(usize::try_from(at).ok()?)?.record.take()
    }

    /// The position at `index`, if it is in memory or the beginning of all logs.
    pub(crate) fn position(&self, index: LogIndex) -> Option<Position> {
        if index == LogIndex::ZERO {
            return Some(Position::default());
        }
        self.get(index).map(|slot| slot.entry.position())
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
        while let Some(slot) = self.get(next) {
            len_bytes += slot.entry.len_bytes();
            if len_bytes > bytes_max && !batch.is_empty() {
                break;
            }
            batch.push(slot.entry.clone());
            next = next.next();
        }
        batch
    }

    pub(crate) fn push(&mut self, slot: Slot) {
        assert_eq!(slot.entry.index, self.last().index.next(), "a log has no holes");
        self.len_bytes += slot.entry.len_bytes();
        self.slots.push_back(slot);
    }

    /// Drops `index` and all behind it; tells how many bytes that were.
    pub(crate) fn truncate_from(&mut self, index: LogIndex) -> usize {
        let before_bytes = self.len_bytes;
        assert!(index > self.before, "what is cut off lies in memory");
        while self.slots.back().is_some_and(|slot| slot.entry.index >= index) {
            let slot = self.slots.pop_back().expect("just seen");
            self.len_bytes -= slot.entry.len_bytes();
        }
        before_bytes - self.len_bytes
    }

    /// Drops the oldest entries below `index` while there are more bytes than wanted.
    pub(crate) fn trim(&mut self, index: LogIndex, bytes_max: usize) {
        while self.len_bytes > bytes_max && self.slots.front().is_some_and(|slot| slot.entry.index < index) {
            let slot = self.slots.pop_front().expect("just seen");
            self.len_bytes -= slot.entry.len_bytes();
            self.before = slot.entry.index;
        }
    }
}
