//! A node's log on disk: one file for all its groups, flushed in batches. A crash loses what was not flushed, but for a
//! random prefix of records; a record that was torn fails its checksum and ends the log there.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use multicast::ids::{Ballot, GroupId, LogIndex};
use multicast::{Entry, Writes};
use xxhash_rust::xxh3::xxh3_64;

use crate::planted::Bug;
use crate::rng::Rnd;

/// What the log holds of one group.
#[derive(Clone, Debug, Default)]
pub struct LogImage {
    /// The highest ballot promised.
    pub promised: Ballot,
    /// The entries up to here were known to be committed.
    pub committed: LogIndex,
    /// Entries, dense.
    pub entries: BTreeMap<LogIndex, Entry>,
}

/// One record of the file.
#[derive(Clone, Debug)]
enum LogRecord {
    Promise(GroupId, Ballot),
    Committed(GroupId, LogIndex),
    VoidFrom(GroupId, LogIndex),
    Append(GroupId, Entry),
    /// Entries below this index are gone.
    Trim(GroupId, LogIndex),
}

#[derive(Clone, Debug)]
struct Batch {
    /// Whom to tell that it is durable.
    tells: Option<(GroupId, u64)>,
    records: Vec<LogRecord>,
}

/// One node's disk.
#[derive(Debug, Default)]
pub struct Disk {
    durable: BTreeMap<GroupId, LogImage>,
    /// What the process sees: the durable image with everything written since.
    written: BTreeMap<GroupId, LogImage>,
    waiting: VecDeque<Batch>,
    /// So many of the waiting batches are covered by the flush under way.
    flushing: usize,
    /// Durable entries that are not what was written any more.
    bad: BTreeSet<(GroupId, LogIndex)>,
}

impl Disk {
    /// Writes, without a flush.
    pub fn write(&mut self, group: GroupId, token: u64, writes: Writes) {
        let mut records = Vec::with_capacity(writes.append.len() + 2);
        records.extend(writes.promised.map(|ballot| LogRecord::Promise(group, ballot)));
        records.extend(writes.committed.map(|(_, index)| LogRecord::Committed(group, index)));
        if let Some(first) = writes.begin_at {
            records.extend([LogRecord::VoidFrom(group, first), LogRecord::Trim(group, first)]);
        }
        records.extend(writes.truncate_from.map(|from| LogRecord::VoidFrom(group, from)));
        records.extend(writes.rewrite.into_iter().map(|entry| LogRecord::Append(group, entry)));
        records.extend(writes.append.into_iter().map(|entry| LogRecord::Append(group, entry)));
        self.submit(Batch { tells: Some((group, token)), records });
    }

    /// Drops entries below `keep`.
    pub fn trim(&mut self, group: GroupId, keep: LogIndex) {
        self.submit(Batch { tells: None, records: vec![LogRecord::Trim(group, keep)] });
    }

    /// What is written anew, or gone, is not bad any more.
    fn heal(&mut self, record: &LogRecord) {
        match record {
            LogRecord::VoidFrom(group, from) => self.bad.retain(|(of, index)| of != group || index < from),
            LogRecord::Trim(group, keep) => self.bad.retain(|(of, index)| of != group || index >= keep),
            LogRecord::Append(group, entry) => {
                self.bad.remove(&(*group, entry.index));
            }
            LogRecord::Promise(..) | LogRecord::Committed(..) => {}
        }
    }

    fn submit(&mut self, batch: Batch) {
        for record in &batch.records {
            apply(&mut self.written, record);
        }
        self.waiting.push_back(batch);
    }

    /// Begins a flush of all that was written; false if there is nothing to flush or one is under way.
    pub fn begin_flush(&mut self) -> bool {
        if self.flushing > 0 || self.waiting.is_empty() {
            return false;
        }
        self.flushing = self.waiting.len();
        true
    }

    /// All that a group has here is gone.
    pub fn forget(&mut self, group: GroupId) {
        self.durable.remove(&group);
        self.written.remove(&group);
        self.bad.retain(|(of, _)| *of != group);
        for batch in &mut self.waiting {
            batch.records.retain(|record| group_of(record) != group);
            // Another replica of that group may be there when the flush is done.
            batch.tells = batch.tells.filter(|(of, _)| *of != group);
        }
    }

    /// Makes all that was written durable.
    pub fn flush_all(&mut self) {
        self.flushing = self.waiting.len();
        self.end_flush(None);
    }

    /// A bit flips in some durable entry, by its place, counted around.
    pub fn flip(&mut self, place: u64) -> Option<(GroupId, LogIndex)> {
        let entries = || {
            let of = |(&group, image): (&GroupId, &'_ LogImage)| {
                image.entries.keys().map(|&index| (group, index)).collect::<Vec<_>>()
            };
            self.durable.iter().flat_map(of)
        };
        let at = place.checked_rem(entries().count() as u64)?;
        let entry = entries().nth(usize::try_from(at).ok()?)?;
        self.bad.insert(entry);
        Some(entry)
    }

    /// The first entry that a start comes upon and that is not what was written. Places that were freed are not looked at.
    #[must_use]
    pub fn first_bad(&self) -> Option<(GroupId, LogIndex)> {
        let is_there = |(group, index): &&(GroupId, LogIndex)| {
            self.durable.get(group).is_some_and(|image| image.entries.contains_key(index))
        };
        self.bad.iter().find(is_there).copied()
    }

    /// True if there is such an entry.
    #[must_use]
    pub fn is_bad(&self) -> bool {
        self.first_bad().is_some()
    }

    /// True if [`Disk::read`] comes upon an entry that is not what was written.
    #[must_use]
    pub fn is_bad_from(&self, group: GroupId, from: LogIndex) -> bool {
        self.bad.range((group, from)..).next().is_some_and(|(of, _)| *of == group) && self.is_bad()
    }

    /// The planted bug: what does not fit its checksum is taken for a torn tail.
    pub fn drop_bad(&mut self) {
        for (group, index) in std::mem::take(&mut self.bad) {
            apply(&mut self.durable, &LogRecord::VoidFrom(group, index));
        }
        self.written = self.durable.clone();
    }

    /// The flush is done: the newest durable token of each group.
    pub fn end_flush(&mut self, bug: Option<Bug>) -> BTreeMap<GroupId, u64> {
        let mut told = BTreeMap::new();
        let done: Vec<Batch> = self.waiting.drain(..std::mem::take(&mut self.flushing)).collect();
        for batch in done {
            for record in &batch.records {
                if bug == Some(Bug::ForgetPromise) && matches!(record, LogRecord::Promise(..)) {
                    continue;
                }
                self.heal(record);
                apply(&mut self.durable, record);
            }
            told.extend(batch.tells);
        }
        told
    }

    /// The process is gone: of what was not flushed a random prefix of records stays.
    pub fn crash(&mut self, rnd: &mut Rnd) {
        let count: usize = self.waiting.iter().map(|batch| batch.records.len()).sum();
        let kept = rnd.index(count + 1);
        for record in self.waiting.iter().flat_map(|batch| &batch.records).take(kept) {
            apply(&mut self.durable, record);
        }
        self.waiting.clear();
        self.flushing = 0;
        self.written = self.durable.clone();
    }

    /// A group's log as the process sees it.
    #[must_use]
    pub fn image(&self, group: GroupId) -> LogImage {
        self.written.get(&group).cloned().unwrap_or_default()
    }

    /// What a crash would leave of it at least.
    #[must_use]
    pub fn durable(&self, group: GroupId) -> Cow<'_, LogImage> {
        self.durable.get(&group).map_or_else(|| Cow::Owned(LogImage::default()), Cow::Borrowed)
    }

    /// An entry's ballot.
    #[must_use]
    pub fn ballot(&self, group: GroupId, index: LogIndex) -> Option<Ballot> {
        self.written.get(&group)?.entries.get(&index).map(|entry| entry.ballot)
    }

    /// Where a group's log begins and ends, if it has not all that is in between.
    #[must_use]
    pub fn hole(&self, group: GroupId) -> Option<(LogIndex, LogIndex)> {
        let entries = &self.written.get(&group)?.entries;
        let ((&first, _), (&last, _)) = (entries.first_key_value()?, entries.last_key_value()?);
        ((last.0 - first.0 + 1) != entries.len() as u64).then_some((first, last))
    }

    /// Hashes of what is durable, up to an index.
    pub fn records(&self, group: GroupId, through: LogIndex) -> impl Iterator<Item = (LogIndex, u64)> + '_ {
        let entries = self.durable.get(&group).map(|image| image.entries.range(..=through));
        entries.into_iter().flatten().map(|(&index, entry)| (index, xxh3_64(&entry.record)))
    }

    /// Reads entries back, as [`multicast::Output::ReadLog`] asks.
    #[must_use]
    pub fn read(&self, group: GroupId, from: LogIndex, bytes_max: usize) -> Vec<Entry> {
        let Some(image) = self.written.get(&group) else { return Vec::new() };
        let mut entries: Vec<Entry> = Vec::new();
        let mut bytes = 0;
        for (index, entry) in image.entries.range(from..) {
            let is_next = index.0 == from.0 + entries.len() as u64;
            if !is_next || (bytes > 0 && bytes + entry.len_bytes() > bytes_max) {
                break;
            }
            bytes += entry.len_bytes();
            entries.push(entry.clone());
        }
        entries
    }

    /// An entry's record.
    #[must_use]
    pub fn record(&self, group: GroupId, index: LogIndex) -> Option<Bytes> {
        self.written.get(&group)?.entries.get(&index).map(|entry| entry.record.clone())
    }

    /// True if the entry is there.
    #[must_use]
    pub fn has(&self, group: GroupId, index: LogIndex) -> bool {
        self.written.get(&group).is_some_and(|image| image.entries.contains_key(&index))
    }
}

fn group_of(record: &LogRecord) -> GroupId {
    match record {
        LogRecord::Promise(group, _)
        | LogRecord::Committed(group, _)
        | LogRecord::VoidFrom(group, _)
        | LogRecord::Append(group, _)
        | LogRecord::Trim(group, _) => *group,
    }
}

fn apply(images: &mut BTreeMap<GroupId, LogImage>, record: &LogRecord) {
    match record {
        LogRecord::Promise(group, ballot) => {
            let image = images.entry(*group).or_default();
            image.promised = image.promised.max(*ballot);
        }
        LogRecord::Committed(group, index) => {
            let image = images.entry(*group).or_default();
            image.committed = image.committed.max(*index);
        }
        LogRecord::VoidFrom(group, from) => {
            images.entry(*group).or_default().entries.split_off(from);
        }
        LogRecord::Append(group, entry) => {
            images.entry(*group).or_default().entries.insert(entry.index, entry.clone());
        }
        LogRecord::Trim(group, keep) => {
            let image = images.entry(*group).or_default();
            image.entries = image.entries.split_off(keep);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// It would be told to another replica of the group, which began at the node in between.
    #[test]
    fn flush_of_what_is_forgotten_is_told_to_nobody() {
        let (gone, stays) = (GroupId(1), GroupId(2));
        let mut disk = Disk::default();
        disk.write(gone, 7, Writes::default());
        disk.write(stays, 3, Writes::default());
        assert!(disk.begin_flush());
        disk.forget(gone);
        assert_eq!(disk.end_flush(None), BTreeMap::from([(stays, 3)]));
    }
}
