//! Where each group's entries are: positions of all, the newest also in memory.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use multicast::ids::{Ballot, GroupId, LogIndex};

use super::format::WalRecord;

/// Beyond what any log reaches; indexes can be counted up from here without another look.
const INDEX_MAX: LogIndex = LogIndex(u64::MAX >> 1);

/// One log entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogEntry {
    /// Its slot.
    pub index: LogIndex,
    /// The ballot in which it was appended.
    pub ballot: Ballot,
    /// The record.
    pub bytes: Bytes,
}

/// What a group's log promises, and its extent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogState {
    /// The ballot promised.
    pub promised: Ballot,
    /// Committed at least up to here.
    pub committed: LogIndex,
    /// Last index that has been trimmed, and its ballot.
    pub trimmed: (LogIndex, Ballot),
    /// Last entry, and its ballot.
    pub last: (LogIndex, Ballot),
}

/// Where an entry's bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    pub segment: u32,
    pub offset: u32,
    pub len: u32,
    /// Of the entry alone: what is read back years later goes to followers.
    pub crc32c: u32,
}

impl Position {
    /// Of a record whose own bytes begin at `offset`.
    pub fn of(record: &WalRecord, segment: u32, offset: u32) -> Position {
        let bytes: &[u8] = if let WalRecord::Append { bytes, .. } = record { bytes } else { &[] };
        Position { segment, offset, len: bytes.len() as u32, crc32c: crc32c::crc32c(bytes) }
    }
}

/// One group's log.
#[derive(Debug, Default)]
pub struct GroupLog {
    promised: Ballot,
    committed: LogIndex,
    trimmed: (LogIndex, Ballot),
    /// The largest index that a trim record named, and its ballot. While a log is read back whose oldest segments are gone,
    /// `trimmed` may run ahead of it.
    trim_proven: (LogIndex, Ballot),
    /// Of the entries behind `trimmed`, dense.
    positions: VecDeque<Position>,
    /// Ballots never fall along a log: (first index, ballot).
    ballots: VecDeque<(LogIndex, Ballot)>,
    /// The newest entries' bytes.
    cache: VecDeque<Bytes>,
    cache_bytes: usize,
}

impl GroupLog {
    pub fn state(&self) -> LogState {
        let last = self.last();
        LogState {
            promised: self.promised,
            committed: self.committed,
            trimmed: self.trimmed,
            last: (last, self.ballot(last).unwrap_or(self.trimmed.1)),
        }
    }

    pub fn last(&self) -> LogIndex {
        LogIndex(self.trimmed.0.0 + self.positions.len() as u64)
    }

    /// The ballot of an entry that is still there, or of the last one trimmed.
    pub fn ballot(&self, index: LogIndex) -> Option<Ballot> {
        if index == self.trimmed.0 {
            return Some(self.trimmed.1);
        }
        if index < self.trimmed.0 || index > self.last() {
            return None;
        }
        let run = self.ballots.partition_point(|&(first, _)| first <= index);
        self.ballots.get(run.checked_sub(1)?).map(|&(_, ballot)| ballot)
    }

    pub fn position(&self, index: LogIndex) -> Option<Position> {
        let slot = index.0.checked_sub(self.trimmed.0.0 + 1)?;
        self.positions.get(usize::try_from(slot).ok()?).copied()
    }

    pub fn cached(&self, index: LogIndex) -> Option<&Bytes> {
        let behind = usize::try_from(self.last().0.checked_sub(index.0)?).ok()?;
        self.cache.get(self.cache.len().checked_sub(behind + 1)?)
    }

    pub fn cache_bytes(&self) -> usize {
        self.cache_bytes
    }

    pub fn oldest_segment(&self) -> Option<u32> {
        self.positions.front().map(|position| position.segment)
    }

    /// How many bytes the entries have.
    pub fn live_bytes(&self) -> u64 {
        self.positions.iter().map(|position| u64::from(position.len)).sum()
    }

    /// The first and the last entry that are still there.
    pub fn live(&self) -> Option<(LogIndex, LogIndex)> {
        (!self.positions.is_empty()).then(|| (self.trimmed.0.next(), self.last()))
    }

    /// Takes a record in that is on disk; the error says why it cannot follow what is here.
    pub fn apply(&mut self, record: &WalRecord, position: Position, cache_bytes_max: usize) -> Result<(), String> {
        let far = match record {
            WalRecord::Append { index, .. } => *index,
            WalRecord::Truncate { from, .. } => *from,
            WalRecord::HardState { committed, .. } => *committed,
            WalRecord::Trim { through, .. } => *through,
            WalRecord::End { .. } => LogIndex::ZERO,
        };
        if far > INDEX_MAX {
            return Err(format!("no log has an entry {far}"));
        }
        match record {
            WalRecord::Append { index, ballot, bytes, .. } => {
                self.append(*index, *ballot, position)?;
                self.cache_push(bytes.clone(), cache_bytes_max);
            }
            WalRecord::Truncate { from, .. } => self.truncate(*from)?,
            WalRecord::HardState { promised, committed, .. } => {
                if *promised < self.promised {
                    return Err("a promise goes back".into());
                }
                self.promised = *promised;
                self.committed = self.committed.max(*committed);
            }
            WalRecord::Trim { through, ballot, .. } => {
                if *through >= self.trim_proven.0 {
                    self.trim_proven = (*through, *ballot);
                }
                self.trim(*through, *ballot);
            }
            WalRecord::End { .. } => *self = GroupLog::default(),
        }
        Ok(())
    }

    fn append(&mut self, index: LogIndex, ballot: Ballot, position: Position) -> Result<(), String> {
        if index > LogIndex::ZERO && self.is_behind_gap(index) {
            // The segments that held what came before are gone; the trim that allowed it follows later in the log, and
            // `gap` tells if it does not.
            self.skip_to(index);
        }
        if index <= self.trimmed.0 || index > self.last().next() {
            return Err(format!("entry {index} follows {}..={}", self.trimmed.0, self.last()));
        }
        self.truncate(index)?;
        if self.ballots.back().is_none_or(|&(_, newest)| newest != ballot) {
            self.ballots.push_back((index, ballot));
        }
        self.positions.push_back(position);
        Ok(())
    }

    /// Nothing is here but what comes from `first` on. The ballot of what is before is known if a trim record has named it.
    fn skip_to(&mut self, first: LogIndex) {
        self.trim(self.last(), Ballot::default());
        let before = LogIndex(first.0 - 1);
        let ballot = if before == self.trim_proven.0 { self.trim_proven.1 } else { Ballot::default() };
        self.trimmed = (before, ballot);
    }

    fn is_behind_gap(&self, index: LogIndex) -> bool {
        let first_after_gap = self.positions.is_empty() && index > self.trimmed.0.next();
        let rewritten_before_gap = self.trimmed.0 > self.trim_proven.0 && index <= self.trimmed.0;
        first_after_gap || rewritten_before_gap
    }

    /// Entries that should be there and are not: (first, last). To be asked when all of a log has been read.
    pub fn gap(&self) -> Option<(LogIndex, LogIndex)> {
        (self.trimmed.0 > self.trim_proven.0).then(|| (self.trim_proven.0.next(), self.trimmed.0))
    }

    fn truncate(&mut self, from: LogIndex) -> Result<(), String> {
        if from > self.last() {
            return Ok(());
        }
        if from <= self.trimmed.0 && from > self.trim_proven.0 {
            // Behind a gap: the entries that stay were in segments that are gone.
            self.skip_to(from);
            return Ok(());
        }
        if from <= self.trimmed.0 {
            return Err(format!("truncation from {from}, though all through {} is trimmed", self.trimmed.0));
        }
        let kept = usize::try_from(from.0 - self.trimmed.0.0 - 1).unwrap_or(usize::MAX);
        let dropped = self.positions.len() - kept;
        self.positions.truncate(kept);
        while self.ballots.back().is_some_and(|&(first, _)| first >= from) {
            self.ballots.pop_back();
        }
        for _ in 0..dropped {
            if let Some(bytes) = self.cache.pop_back() {
                self.cache_bytes -= bytes.len();
            }
        }
        Ok(())
    }

    fn trim(&mut self, through: LogIndex, ballot: Ballot) {
        if through <= self.trimmed.0 {
            if through == self.trimmed.0 {
                self.trimmed.1 = ballot;
            }
            return;
        }
        let gone = usize::try_from(through.0 - self.trimmed.0.0).unwrap_or(usize::MAX).min(self.positions.len());
        self.positions.drain(..gone);
        while self.cache.len() > self.positions.len() {
            if let Some(bytes) = self.cache.pop_front() {
                self.cache_bytes -= bytes.len();
            }
        }
        self.trimmed = (through, ballot);
        while self.ballots.len() > 1 && self.ballots[1].0 <= through.next() {
            self.ballots.pop_front();
        }
        if self.positions.is_empty() {
            self.ballots.clear();
        }
    }

    fn cache_push(&mut self, bytes: Bytes, cache_bytes_max: usize) {
        self.cache_bytes += bytes.len();
        self.cache.push_back(bytes);
        while self.cache_bytes > cache_bytes_max {
            let Some(oldest) = self.cache.pop_front() else { break };
            self.cache_bytes -= oldest.len();
        }
    }

    /// Records that restore promise, commit hint and trim in a segment of their own.
    pub fn hard_state(&self, group: GroupId, records: &mut Vec<WalRecord>) {
        let (through, ballot) = self.trimmed;
        records.push(WalRecord::HardState { group, promised: self.promised, committed: self.committed });
        if through > LogIndex::ZERO {
            records.push(WalRecord::Trim { group, through, ballot });
        }
    }
}

/// All logs of a node.
pub type Logs = BTreeMap<GroupId, GroupLog>;

/// The group that a record belongs to.
pub fn group_of(record: &WalRecord) -> GroupId {
    match record {
        WalRecord::Append { group, .. }
        | WalRecord::Truncate { group, .. }
        | WalRecord::HardState { group, .. }
        | WalRecord::Trim { group, .. }
        | WalRecord::End { group } => *group,
    }
}
