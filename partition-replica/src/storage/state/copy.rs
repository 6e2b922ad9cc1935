//! Copies of a state: what is sent of one, and what takes the place of another in one step.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use metadata::store::WriteSet;
use multicast::ids::LogIndex;
use parking_lot::RwLock;
use quick_cache::sync::Cache;
use rocksdb::{IteratorMode, ReadOptions, WriteBatch, WriteOptions};

use super::family::{family_name, family_options, pointer};
use super::{CHARTER, GroupState, META, RowWeight, StateSnapshot, failed};
use crate::error::Result;

/// Rows gathered for a copy are read ahead, and kept out of the cache.
const COPY_READAHEAD_BYTES: usize = 1 << 20;

impl GroupState {
    /// True for keys of rows that belong to this disk, not to the group's state.
    pub fn is_own_key(key: &[u8]) -> bool {
        key.first() == Some(&META)
    }

    /// An empty state beside this one, which a copy is written to. What an earlier one left there is gone.
    pub fn stage(&self) -> Result<StagedState> {
        let live = self.family.read().clone();
        let first = family_name(self.group);
        let generation: u64 = match live.strip_prefix(&first).map(|end| end.trim_start_matches('-')) {
            Some("") => 0,
            Some(end) => end.parse().map_err(|_| self.damaged("its column family has a strange name"))?,
            None => return Err(self.damaged("its column family has a strange name")),
        };
        let name = format!("{first}-{}", generation.wrapping_add(1));
        if self.db.cf_handle(&name).is_some() {
            self.db.drop_cf(&name).map_err(failed)?;
        }
        let (cache, memory_bytes) = &self.making;
        self.db.create_cf(&name, &family_options(cache, *memory_bytes)).map_err(failed)?;
        Ok(StagedState {
            state: GroupState {
                family: Arc::new(RwLock::new(name)),
                flushing: Arc::default(),
                flushed: Arc::default(),
                rows: Arc::new(Cache::with_weighter(1, 1, RowWeight)),
                ..self.clone()
            },
        })
    }

    /// Takes over what a copy has written, in one step that a crash does or undoes as a whole. Nobody may read or write in the
    /// meantime. What was here before stays on disk until [`GroupState::drop_replaced`], or the next start.
    pub fn replace_by(&self, staged: &StagedState) -> Result<()> {
        let name = staged.state.family.read().clone();
        let applied = staged.state.applied_index()?;
        let mut options = WriteOptions::default();
        options.set_sync(true);
        self.db.put_opt(pointer(self.group), &name, &options).map_err(failed)?;
        *self.family.write() = name;
        self.rows.clear();
        self.flushed.store(applied.0, Ordering::Release);
        Ok(())
    }

    /// Frees what was replaced. Readers that still have a snapshot of it keep it until they are done.
    pub fn drop_replaced(&self) -> Result<()> {
        let _flushing = self.flushing.lock();
        let live = self.family.read().clone();
        let first = family_name(self.group);
        let generation: u64 = live.strip_prefix(&format!("{first}-")).and_then(|end| end.parse().ok()).unwrap_or(0);
        let before = match generation {
            0 => return Ok(()),
            1 => first,
            _ => format!("{first}-{}", generation - 1),
        };
        if self.db.cf_handle(&before).is_some() {
            self.db.drop_cf(&before).map_err(failed)?;
        }
        Ok(())
    }
}

/// A state that a copy is written to, beside the one that it is to replace.
pub struct StagedState {
    state: GroupState,
}

impl StagedState {
    /// To read what has come.
    pub fn state(&self) -> &GroupState {
        &self.state
    }

    /// Writes rows of a copy. Not durable before [`StagedState::finish`].
    pub fn put(&self, rows: &[(Bytes, Bytes)]) -> Result<()> {
        let family = self.state.family()?;
        let mut batch = WriteBatch::default();
        for (key, value) in rows {
            batch.put_cf(&family, key, value);
        }
        let mut options = WriteOptions::default();
        options.disable_wal(true);
        self.state.db.write_opt(batch, &options).map_err(failed)
    }

    /// Writes what is this replica's own. Durable on return, with all that came.
    pub fn finish(&self, order: &[(Vec<u8>, Option<Vec<u8>>)], charter: &[u8], applied: LogIndex) -> Result<()> {
        let mut batch = WriteBatch::default();
        batch.put_cf(&self.state.family()?, CHARTER, charter);
        self.state.write_batch(batch, WriteSet::new(), order, applied)?;
        self.state.flush_now()
    }
}

/// Rows for a copy.
pub type CopiedRows<'s> = Box<dyn Iterator<Item = Result<(Box<[u8]>, Box<[u8]>)>> + 's>;

impl StateSnapshot<'_> {
    /// All rows of the group's state: those that are not this disk's own.
    pub fn all_rows(&self) -> CopiedRows<'_> {
        let mut options = ReadOptions::default();
        options.set_iterate_upper_bound([META]);
        options.fill_cache(false);
        options.set_readahead_size(COPY_READAHEAD_BYTES);
        let rows = self.snapshot.iterator_cf_opt(&self.family, options, IteratorMode::Start);
        Box::new(rows.map(|row| row.map_err(failed)))
    }
}
