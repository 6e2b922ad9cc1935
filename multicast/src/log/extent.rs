//! How large the log on disk is, roughly: enough to say where to cut it off.

use std::collections::VecDeque;

use crate::ids::LogIndex;

/// The log on disk is cut at one of about so many places.
const MARKS: u64 = 64;

/// Bytes of the log, by stretches. What was there before a restart counts only by its number of entries.
#[derive(Clone, Debug)]
pub(crate) struct Extent {
    bytes_max: u64,
    entries_max: u64,
    /// The last index of each stretch, and its bytes.
    marks: VecDeque<(LogIndex, u64)>,
    /// Bytes behind the last mark.
    open: u64,
    bytes: u64,
}

impl Extent {
    pub(crate) fn new(bytes_max: u64, entries_max: u64) -> Self {
        Extent { bytes_max, entries_max, marks: VecDeque::new(), open: 0, bytes: 0 }
    }

    pub(crate) fn push(&mut self, index: LogIndex, len_bytes: usize) {
        self.open += len_bytes as u64;
        self.bytes += len_bytes as u64;
        if self.open > self.bytes_max / MARKS {
            self.marks.push_back((index, std::mem::take(&mut self.open)));
        }
    }

    /// The entries from `index` on are void; they had so many bytes.
    pub(crate) fn truncate_from(&mut self, index: LogIndex, len_bytes: usize) {
        while let Some(&(last, bytes)) = self.marks.back() {
            if last < index {
                break;
            }
            self.marks.pop_back();
            self.open += bytes;
        }
        self.open = self.open.saturating_sub(len_bytes as u64);
        self.bytes = self.bytes.saturating_sub(len_bytes as u64);
    }

    /// The entries below `index` are gone.
    pub(crate) fn drop_below(&mut self, index: LogIndex) {
        while let Some(&(last, bytes)) = self.marks.front() {
            if last >= index {
                break;
            }
            self.marks.pop_front();
            self.bytes -= bytes;
        }
    }

    /// Below which index the log must be dropped to be within its limits.
    pub(crate) fn cut(&self, last: LogIndex) -> LogIndex {
        let mut excess = self.bytes.saturating_sub(self.bytes_max);
        let mut by_bytes = LogIndex::ZERO;
        for &(index, bytes) in &self.marks {
            if excess == 0 {
                break;
            }
            excess = excess.saturating_sub(bytes);
            by_bytes = index;
        }
        by_bytes.max(LogIndex(last.0.saturating_sub(self.entries_max)))
    }
}
