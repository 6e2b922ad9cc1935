//! What must reach the disk, in which order, and what waits for it.

use std::collections::VecDeque;

use crate::ids::{Ballot, LogIndex};
use crate::output::Writes;
use crate::record::Entry;

/// Collects the writes of one driver turn, and knows how far the disk is.
#[derive(Clone, Debug)]
pub(crate) struct Disk<W> {
    pending: Writes,
    /// The token of the last batch given out; the pending one gets the next.
    issued: u64,
    persisted: u64,
    /// The end of the log in each batch that is under way.
    under_way: VecDeque<(u64, LogIndex)>,
    /// The end of the log on disk.
    durable: LogIndex,
    /// What the disk was told to be committed.
    committed_told: LogIndex,
    /// What may be told only when a token is durable; tokens ascend.
    held_back: VecDeque<(u64, W)>,
}

impl<W> Disk<W> {
    pub(crate) fn new(durable: LogIndex) -> Self {
        Disk {
            pending: Writes::default(),
            issued: 0,
            persisted: 0,
            under_way: VecDeque::new(),
            durable,
            committed_told: LogIndex::ZERO,
            held_back: VecDeque::new(),
        }
    }

    pub(crate) fn durable(&self) -> LogIndex {
        self.durable
    }

    pub(crate) fn restore_committed(&mut self, committed: LogIndex) {
        self.committed_told = committed;
    }

    pub(crate) fn append(&mut self, entry: Entry) {
        self.pending.append.push(entry);
    }

    pub(crate) fn promise(&mut self, ballot: Ballot) {
        self.pending.promised = Some(ballot);
    }

    pub(crate) fn truncate_from(&mut self, index: LogIndex) {
        self.pending.append.retain(|entry| entry.index < index);
        self.pending.rewrite.retain(|entry| entry.index < index);
        let from = self.pending.truncate_from.map_or(index, |from| from.min(index));
        self.pending.truncate_from = Some(from);
        let last = LogIndex(index.0 - 1);
        self.durable = self.durable.min(last);
        for (_, end) in &mut self.under_way {
            *end = (*end).min(last);
        }
    }

    /// The log begins anew with this entry.
    pub(crate) fn begin_at(&mut self, entry: Entry) {
        self.pending.append.clear();
        self.pending.rewrite.clear();
        self.pending.truncate_from = None;
        self.pending.begin_at = Some(entry.index);
        self.durable = LogIndex::ZERO;
        for (_, end) in &mut self.under_way {
            *end = LogIndex::ZERO;
        }
        self.append(entry);
    }

    /// Writes all that is kept again. False if that cannot be now.
    pub(crate) fn rewrite(&mut self, promised: Ballot, mut kept: Vec<Entry>) -> bool {
        if self.pending.truncate_from.is_some() || self.pending.begin_at.is_some() || !self.pending.rewrite.is_empty() {
            return false;
        }
        let new = self.pending.append.first().map(|entry| entry.index);
        kept.retain(|entry| new.is_none_or(|new| entry.index < new));
        self.pending.promised = Some(promised);
        self.pending.rewrite = kept;
        true
    }

    pub(crate) fn holds_nothing_back(&self) -> bool {
        self.held_back.is_empty()
    }

    /// Lets `what` wait for everything written so far; gives it back if nothing is outstanding.
    #[must_use]
    pub(crate) fn hold_back(&mut self, what: W) -> Option<W> {
        let token = if self.pending == Writes::default() { self.issued } else { self.issued + 1 };
        if token <= self.persisted {
            return Some(what);
        }
        self.held_back.push_back((token, what));
        None
    }

    /// The batch of this turn, if anything is to be written; with it goes the news of what is committed. Only of what is on
    /// disk: behind that there may still be entries that this batch voids.
    pub(crate) fn take_batch(
        &mut self,
        last: LogIndex,
        promised: Ballot,
        committed: LogIndex,
    ) -> Option<(u64, Writes)> {
        if self.pending == Writes::default() {
            return None;
        }
        let committed = committed.min(self.durable);
        if committed > self.committed_told {
            self.committed_told = committed;
            self.pending.committed = Some((promised, committed));
        }
        self.issued += 1;
        self.under_way.push_back((self.issued, last));
        Some((self.issued, std::mem::take(&mut self.pending)))
    }

    /// Everything up to `token` is durable: what was held back for it.
    pub(crate) fn persisted(&mut self, token: u64) -> Vec<W> {
        assert!(token <= self.issued, "no token is told before it was given out");
        self.persisted = self.persisted.max(token);
        while let Some(&(under_way, end)) = self.under_way.front() {
            if under_way > token {
                break;
            }
            self.under_way.pop_front();
            self.durable = self.durable.max(end);
        }
        let count = self.held_back.iter().take_while(|(needs, _)| *needs <= token).count();
        self.held_back.drain(..count).map(|(_, what)| what).collect()
    }
}
