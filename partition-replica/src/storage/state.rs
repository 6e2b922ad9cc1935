//! The groups' states in RocksDB: one database per node, one column family per group. Nothing else names RocksDB.
//!
//! RocksDB's own log is off: every write carries the applied index, so after a crash a group's column family is some
//! earlier state, whole, and the write-ahead log is replayed from its index. Therefore the log may be cut only below
//! [`GroupState::flushed_index`].

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use metadata::keys::FOREIGN_KIND_MIN;
use metadata::store::{Row, Store, WriteSet};
use multicast::ids::{GroupId, LogIndex};
use parking_lot::{Mutex, RwLock};
use quick_cache::Weighter;
use quick_cache::sync::Cache;
use rocksdb::{
    BlockBasedOptions, BoundColumnFamily, Cache as BlockCache, ColumnFamilyDescriptor, DBCompressionType,
    DBWithThreadMode, Direction, FlushOptions, IteratorMode, MultiThreaded, Options, ReadOptions,
    SnapshotWithThreadMode, WriteBatch, WriteBufferManager, WriteOptions,
};

use crate::error::{Error, Result};

type Db = DBWithThreadMode<MultiThreaded>;

/// Part of RocksDB's memory that holds writes not yet flushed.
const BUFFER_SHARE: usize = 3;
/// Part of the memory that holds single rows in use: executing a command then seldom asks RocksDB.
const ROWS_SHARE: usize = 4;
const OPEN_FILES_MAX: i32 = 256;

/// Keys that begin so are the ordering's.
const ORDER: u8 = 0x40;
/// Keys that begin so are this module's own.
const META: u8 = 0xf0;
const APPLIED: &[u8] = &[META, 1];
const CHARTER: &[u8] = &[META, 2];
const QUARANTINE: &[u8] = &[META, 3];

/// Rows gathered for a copy are read ahead, and kept out of the cache.
const COPY_READAHEAD_BYTES: usize = 1 << 20;

const _: () = assert!(ORDER >= FOREIGN_KIND_MIN && META >= FOREIGN_KIND_MIN);

/// The states of a node's groups.
pub struct StateDb {
    db: Arc<Db>,
    cache: BlockCache,
    buffers: WriteBufferManager,
    row_cache_bytes: usize,
    memory_bytes: usize,
}

/// Figures for people, in bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct StateFigures {
    /// Block cache.
    pub cache_bytes: u64,
    /// Write buffers.
    pub buffer_bytes: u64,
    /// Files on disk.
    pub disk_bytes: u64,
}

impl StateDb {
    /// Opens the database and a column family for each of `groups`.
    pub fn open(folder: &Path, groups: &[GroupId], memory_bytes: usize) -> Result<StateDb> {
        let row_cache_bytes = memory_bytes / ROWS_SHARE / groups.len().max(1);
        let blocks = memory_bytes - memory_bytes / ROWS_SHARE;
        let cache = BlockCache::new_lru_cache(blocks);
        // Charged to the cache, so that both together stay within the setting.
        let buffers =
            WriteBufferManager::new_write_buffer_manager_with_cache(memory_bytes / BUFFER_SHARE, false, cache.clone());
        // Closing must not flush by itself: an orderly shutdown does so within its time, and a node that is dropped in a test
        // must lose what a crash would lose.
        let mut options =
            Options::default().get_options_from_string("avoid_flush_during_shutdown=true").map_err(failed)?;
        options.create_if_missing(true);
        options.create_missing_column_families(true);
        options.set_write_buffer_manager(&buffers);
        options.set_max_open_files(OPEN_FILES_MAX);
        options.set_max_background_jobs(2);
        options.set_max_total_wal_size(1 << 20);
        options.set_keep_log_file_num(2);
        options.set_max_log_file_size(1 << 20);
        options.set_stats_dump_period_sec(0);
        let families = known_families(&options, folder)
            .into_iter()
            .chain(groups.iter().map(|&group| family_name(group)))
            .collect::<std::collections::BTreeSet<_>>()
            .into_iter()
            .map(|name| ColumnFamilyDescriptor::new(name, family_options(&cache, memory_bytes)));
        let db = Db::open_cf_descriptors(&options, folder, families).map_err(failed)?;
        let db = StateDb { db: Arc::new(db), cache, buffers, row_cache_bytes, memory_bytes };
        let known = known_families(&options, folder);
        groups.iter().try_for_each(|&group| db.drop_leftovers(group, &known))?;
        Ok(db)
    }

    /// Half-made copies, and states that were replaced.
    fn drop_leftovers(&self, group: GroupId, known: &[String]) -> Result<()> {
        let (live, first) = (live_family(&self.db, group)?, family_name(group));
        let is_of_group =
            |name: &&String| **name == first || name.strip_prefix(&first).is_some_and(|end| end.starts_with('-'));
        for name in known.iter().filter(is_of_group).filter(|name| **name != live) {
            self.db.drop_cf(name).map_err(failed)?;
        }
        Ok(())
    }

    /// One group's state.
    pub fn group(&self, group: GroupId) -> Result<GroupState> {
        let state = GroupState {
            db: self.db.clone(),
            family: Arc::new(RwLock::new(live_family(&self.db, group)?)),
            flushing: Arc::default(),
            making: (self.cache.clone(), self.memory_bytes),
            group,
            flushed: Arc::new(AtomicU64::new(0)),
            rows: Arc::new(Cache::with_weighter(
                (self.row_cache_bytes / 200).max(64),
                self.row_cache_bytes as u64,
                RowWeight,
            )),
        };
        let applied = state.applied_index()?;
        // Nothing is in write buffers yet: what can be read is on disk.
        state.flushed.store(applied.0, Ordering::Release);
        Ok(state)
    }

    /// Figures for people.
    #[must_use]
    pub fn figures(&self) -> StateFigures {
        let live = self.db.live_files().map(|files| files.iter().map(|file| file.size as u64).sum());
        StateFigures {
            cache_bytes: self.cache.get_usage() as u64,
            buffer_bytes: self.buffers.get_usage() as u64,
            disk_bytes: live.unwrap_or_default(),
        }
    }

    /// Ends flushes and compactions, so that a process can end at once.
    pub fn stop_background_work(&self) {
        self.db.cancel_all_background_work(false);
    }
}

/// One group's state. Clones are handles.
#[derive(Clone)]
pub struct GroupState {
    db: Arc<Db>,
    /// Another one once a copy has taken its place.
    family: Arc<RwLock<String>>,
    /// Held while a column family is flushed, so that none is dropped meanwhile.
    flushing: Arc<Mutex<()>>,
    /// What a column family is made with.
    making: (BlockCache, usize),
    group: GroupId,
    flushed: Arc<AtomicU64>,
    rows: Arc<RowCache>,
}

impl std::fmt::Debug for GroupState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "GroupState({})", self.group)
    }
}

impl GroupState {
    /// A row's value, from memory if it was used lately. That there is none is remembered, too: some are looked for each time.
    fn row(&self, key: &[u8]) -> Result<Option<Bytes>> {
        if let Some(value) = self.rows.get(key) {
            return Ok(value);
        }
        let row = self.db.get_pinned_cf(&self.family()?, key).map_err(failed)?;
        let value = row.map(|value| Bytes::copy_from_slice(&value));
        self.rows.insert(key.into(), value.clone());
        Ok(value)
    }

    /// The state as it is now, whatever is written later. Nobody may write in the meantime.
    pub fn snapshot(&self) -> Result<StateSnapshot<'_>> {
        Ok(StateSnapshot { family: self.family()?, snapshot: self.db.snapshot() })
    }

    /// About how many rows there are.
    pub fn rows_estimate(&self) -> u64 {
        let estimate = self.family().map(|family| self.db.property_int_value_cf(&family, "rocksdb.estimate-num-keys"));
        estimate.ok().and_then(|estimate| estimate.ok().flatten()).unwrap_or_default()
    }

    /// The ordering's rows, all of them.
    pub fn order_rows(&self) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let mut rows = self.range(&[ORDER], &[ORDER], usize::MAX)?;
        for (key, _) in &mut rows {
            key.remove(0);
        }
        Ok(rows)
    }

    fn range(&self, prefix: &[u8], start: &[u8], limit: usize) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let mode = IteratorMode::From(start.max(prefix), Direction::Forward);
        let rows = self.db.iterator_cf_opt(&self.family()?, range_options(prefix), mode).take(limit);
        rows.map(|row| row.map(|(key, value)| (key.into(), value.into())).map_err(failed)).collect()
    }

    /// Writes what a batch of log entries changed, atomically with the index that it leads to. Not durable before a flush;
    /// see the module. Nobody may read in the meantime.
    pub fn write(&self, namespace: WriteSet, order: &[(Vec<u8>, Option<Vec<u8>>)], applied: LogIndex) -> Result<()> {
        self.write_batch(WriteBatch::default(), namespace, order, applied)
    }

    fn write_batch(
        &self,
        mut batch: WriteBatch,
        namespace: WriteSet,
        order: &[(Vec<u8>, Option<Vec<u8>>)],
        applied: LogIndex,
    ) -> Result<()> {
        let family = self.family()?;
        let mut key = vec![ORDER];
        for (suffix, value) in order {
            key.truncate(1);
            key.extend_from_slice(suffix);
            match value {
                Some(value) => batch.put_cf(&family, &key, value),
                None => batch.delete_cf(&family, &key),
            }
        }
        for (key, value) in &namespace {
            match value {
                Some(value) => batch.put_cf(&family, key, value),
                None => batch.delete_cf(&family, key),
            }
        }
        batch.put_cf(&family, APPLIED, applied.0.to_le_bytes());
        let mut options = WriteOptions::default();
        options.disable_wal(true);
        self.db.write_opt(batch, &options).map_err(failed)?;
        for (key, value) in namespace {
            self.rows.insert(key.into(), value.map(Bytes::from));
        }
        Ok(())
    }

    /// Writes a group's first rows and what they were made from. Durable on return: nothing may be logged before.
    pub fn found(&self, namespace: WriteSet, charter: &[u8]) -> Result<()> {
        let mut batch = WriteBatch::default();
        batch.put_cf(&self.family()?, CHARTER, charter);
        self.write_batch(batch, namespace, &[], LogIndex::ZERO)?;
        self.flush_now()
    }

    /// What the group was founded with, once it has been.
    pub fn charter(&self) -> Result<Option<Vec<u8>>> {
        self.db.get_cf(&self.family()?, CHARTER).map_err(failed)
    }

    /// Writes down why nobody may read this state any more. Durable on return.
    pub fn quarantine(&self, why: &str) -> Result<()> {
        let mut options = WriteOptions::default();
        options.disable_wal(true);
        self.db.put_cf_opt(&self.family()?, QUARANTINE, why, &options).map_err(failed)?;
        self.flush_now()
    }

    /// Why nobody may read this state, if so.
    pub fn quarantined(&self) -> Result<Option<String>> {
        let row = self.db.get_cf(&self.family()?, QUARANTINE).map_err(failed)?;
        Ok(row.map(|why| String::from_utf8_lossy(&why).into_owned()))
    }

    /// The log index that the rows reflect.
    pub fn applied_index(&self) -> Result<LogIndex> {
        let Some(row) = self.db.get_pinned_cf(&self.family()?, APPLIED).map_err(failed)? else {
            return Ok(LogIndex::ZERO);
        };
        let index: [u8; 8] = row[..].try_into().map_err(|_| self.damaged("the applied index is not a number"))?;
        Ok(LogIndex(u64::from_le_bytes(index)))
    }

    /// Everything up to here is on disk without the log's help.
    #[must_use]
    pub fn flushed_index(&self) -> LogIndex {
        LogIndex(self.flushed.load(Ordering::Acquire))
    }

    /// Flushes; waits until that is done. `applied` has been written before.
    pub fn flush(&self, applied: LogIndex) -> Result<()> {
        if applied <= self.flushed_index() {
            return Ok(());
        }
        self.flush_now()?;
        self.flushed.fetch_max(applied.0, Ordering::AcqRel);
        Ok(())
    }

    fn flush_now(&self) -> Result<()> {
        let _flushing = self.flushing.lock();
        let mut options = FlushOptions::default();
        options.set_wait(true);
        self.db.flush_cf_opt(&self.family()?, &options).map_err(failed)
    }

    /// The error for rows that make no sense.
    #[must_use]
    pub fn damaged(&self, problem: impl Into<String>) -> Error {
        Error::DamagedState { group: self.group, problem: problem.into() }
    }

    fn family(&self) -> Result<Arc<BoundColumnFamily<'_>>> {
        self.db.cf_handle(&self.family.read()).ok_or_else(|| self.damaged("its column family is gone"))
    }

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

impl Store for GroupState {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, metadata::error::Error> {
        Ok(self.row(key).map_err(store_failed)?.map(Vec::from))
    }

    fn scan(&self, prefix: &[u8], start: &[u8], limit: usize) -> Result<Vec<Row>, metadata::error::Error> {
        self.range(prefix, start, limit).map_err(store_failed)
    }
}

/// A group's state as it was at one index.
pub struct StateSnapshot<'s> {
    family: Arc<BoundColumnFamily<'s>>,
    snapshot: SnapshotWithThreadMode<'s, Db>,
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

impl Store for StateSnapshot<'_> {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, metadata::error::Error> {
        self.snapshot.get_cf(&self.family, key).map_err(|error| store_failed(failed(error)))
    }

    fn scan(&self, prefix: &[u8], start: &[u8], limit: usize) -> Result<Vec<Row>, metadata::error::Error> {
        let mode = IteratorMode::From(start.max(prefix), Direction::Forward);
        let rows = self.snapshot.iterator_cf_opt(&self.family, range_options(prefix), mode).take(limit);
        let row = |(key, value): (Box<[u8]>, Box<[u8]>)| (key.into(), value.into());
        rows.map(|found| found.map(row).map_err(|error| store_failed(failed(error)))).collect()
    }
}

fn range_options(prefix: &[u8]) -> ReadOptions {
    let mut options = ReadOptions::default();
    if let Some(end) = end_of(prefix) {
        options.set_iterate_upper_bound(end);
    }
    options.set_auto_readahead_size(false);
    options
}

fn store_failed(error: Error) -> metadata::error::Error {
    metadata::error::Error::StoreFailed(error.to_string())
}

/// The first key behind all that begin with `prefix`.
fn end_of(prefix: &[u8]) -> Option<Vec<u8>> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return Some(end);
        }
    }
    None
}

/// What a row costs in the cache of rows.
#[derive(Clone)]
struct RowWeight;

impl Weighter<Box<[u8]>, Option<Bytes>> for RowWeight {
    fn weight(&self, key: &Box<[u8]>, value: &Option<Bytes>) -> u64 {
        (key.len() + value.as_ref().map_or(0, Bytes::len) + 96) as u64
    }
}

type RowCache = Cache<Box<[u8]>, Option<Bytes>, RowWeight>;

fn family_options(cache: &BlockCache, memory_bytes: usize) -> Options {
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(cache);
    table.set_block_size(8 << 10);
    table.set_bloom_filter(10.0, false);
    // Index and filters count within the cache's bound too.
    table.set_cache_index_and_filter_blocks(true);
    table.set_pin_l0_filter_and_index_blocks_in_cache(true);
    table.set_format_version(5);
    let mut options = Options::default();
    options.set_block_based_table_factory(&table);
    options.set_compression_type(DBCompressionType::Lz4);
    options.set_write_buffer_size((memory_bytes / BUFFER_SHARE / 2).clamp(1 << 20, 64 << 20));
    // Most rows that are looked for here are new names and inodes: the filter says so without a search.
    options.set_memtable_prefix_bloom_ratio(0.05);
    options.set_memtable_whole_key_filtering(true);
    options.set_max_write_buffer_number(3);
    options.set_level_compaction_dynamic_level_bytes(true);
    options
}

fn known_families(options: &Options, folder: &Path) -> Vec<String> {
    // Fails if there is no database yet; a damaged one makes the opening itself fail, with a better message.
    Db::list_cf(options, folder).unwrap_or_default()
}

/// The row of the default column family that names a group's own, once that is not the first.
fn pointer(group: GroupId) -> String {
    format!("state of group {}", group.0)
}

fn live_family(db: &Db, group: GroupId) -> Result<String> {
    let name = db.get(pointer(group)).map_err(failed)?;
    Ok(name.map_or_else(|| family_name(group), |name| String::from_utf8_lossy(&name).into_owned()))
}

fn family_name(group: GroupId) -> String {
    format!("group-{}", group.0)
}

fn failed(error: rocksdb::Error) -> Error {
    match error.kind() {
        rocksdb::ErrorKind::Corruption => Error::CorruptState(error.into_string()),
        _ => Error::State(error.into_string()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const GROUP: GroupId = GroupId(3);

    fn open(folder: &Path) -> (StateDb, GroupState) {
        let db = StateDb::open(folder, &[GROUP], 16 << 20).unwrap();
        let state = db.group(GROUP).unwrap();
        (db, state)
    }

    fn put(state: &GroupState, key: &[u8], value: &[u8], applied: u64) {
        let rows = WriteSet::from([(key.to_vec(), Some(value.to_vec()))]);
        state.write(rows, &[(key.to_vec(), Some(value.to_vec()))], LogIndex(applied)).unwrap();
    }

    #[test]
    fn copy_takes_the_place_of_a_state_in_one_step_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let get = |state: &GroupState, key: &[u8]| Store::get(state, key).unwrap();
        let stage = |state: &GroupState, applied: u64| {
            let staged = state.stage().unwrap();
            staged.put(&[(Bytes::from_static(b"new"), Bytes::from(applied.to_string()))]).unwrap();
            staged.finish(&[(b"m".to_vec(), Some(b"order".to_vec()))], b"charter", LogIndex(applied)).unwrap();
            staged
        };
        {
            let (_db, state) = open(folder.path());
            put(&state, b"old", b"1", 3);
            state.flush(LogIndex(3)).unwrap();
            state.quarantine("it differs").unwrap();
            let _half_made = stage(&state, 8);
        }
        {
            let (_db, state) = open(folder.path());
            assert_eq!((get(&state, b"old"), get(&state, b"new")), (Some(b"1".to_vec()), None));
            assert_eq!(state.db.cf_handle("group-3-1").map(|_| ()), None, "what was half made is gone");
            for (applied, family) in [(9, "group-3-1"), (12, "group-3-2")] {
                let before = state.snapshot().unwrap();
                state.replace_by(&stage(&state, applied)).unwrap();
                state.drop_replaced().unwrap();
                assert_eq!((get(&state, b"old"), get(&state, b"new")), (None, Some(applied.to_string().into())));
                assert_eq!(*state.family.read(), family);
                assert_eq!(
                    (state.flushed_index(), state.applied_index().unwrap()),
                    (LogIndex(applied), LogIndex(applied))
                );
                assert_eq!(state.quarantined().unwrap(), None, "the mark went with the state that it was about");
                // Who reads what was replaced goes on to do so.
                assert_eq!(Store::get(&before, b"old").unwrap().is_some(), applied == 9);
                put(&state, b"later", b"2", applied + 1);
                state.flush(LogIndex(applied + 1)).unwrap();
            }
        }
        let (_db, state) = open(folder.path());
        assert_eq!(get(&state, b"new"), Some(b"12".to_vec()));
        assert_eq!(get(&state, b"later"), Some(b"2".to_vec()));
        assert_eq!(state.charter().unwrap(), Some(b"charter".to_vec()));
        assert!(state.order_rows().unwrap().contains(&(b"m".to_vec(), b"order".to_vec())));
        let rows: Vec<_> = state.snapshot().unwrap().all_rows().map(|row| row.unwrap().0).collect();
        assert!(rows.len() >= 3 && rows.iter().all(|key| !GroupState::is_own_key(key)), "{rows:?}");
    }

    #[test]
    fn quarantine_outlives_a_crash() {
        let folder = tempfile::tempdir().unwrap();
        let (db, state) = open(folder.path());
        put(&state, b"a", b"1", 1);
        assert_eq!(state.quarantined().unwrap(), None);
        state.quarantine("it differs").unwrap();
        db.stop_background_work();
        drop((db, state));
        let (_db, state) = open(folder.path());
        assert_eq!(state.quarantined().unwrap().unwrap(), "it differs");
        assert_eq!(state.order_rows().unwrap().len(), 1);
    }

    #[test]
    fn state_unflushed_is_lost_together_with_its_index() {
        let folder = tempfile::tempdir().unwrap();
        let (db, state) = open(folder.path());
        put(&state, b"a", b"1", 1);
        state.flush(LogIndex(1)).unwrap();
        put(&state, b"b", b"2", 2);
        assert_eq!(state.flushed_index(), LogIndex(1));
        assert_eq!(state.get(b"b").unwrap().unwrap(), b"2");
        db.stop_background_work();
        drop((state, db));
        let (_db, state) = open(folder.path());
        assert_eq!(state.applied_index().unwrap(), LogIndex(1));
        assert_eq!(state.flushed_index(), LogIndex(1));
        assert_eq!(state.get(b"a").unwrap().unwrap(), b"1");
        assert_eq!(state.get(b"b").unwrap(), None);
        assert_eq!(state.order_rows().unwrap(), [(b"a".to_vec(), b"1".to_vec())]);
    }

    #[test]
    fn rows_written_replace_rows_in_memory() {
        let folder = tempfile::tempdir().unwrap();
        let (_db, state) = open(folder.path());
        put(&state, b"a", b"1", 1);
        put(&state, b"a", b"2", 2);
        assert_eq!(state.get(b"a").unwrap().unwrap(), b"2");
        state.write(WriteSet::from([(b"a".to_vec(), None)]), &[], LogIndex(3)).unwrap();
        assert_eq!(state.get(b"a").unwrap(), None);
    }

    #[test]
    fn scan_stays_within_prefix_start_and_limit() {
        let folder = tempfile::tempdir().unwrap();
        let (_db, state) = open(folder.path());
        for key in [&b"a"[..], b"b1", b"b2", b"b3", b"c"] {
            put(&state, key, key, 1);
        }
        let keys = |prefix: &[u8], start: &[u8], limit| {
            let rows = state.scan(prefix, start, limit).unwrap();
            rows.into_iter().map(|(key, _)| String::from_utf8(key).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(keys(b"b", b"", 9), ["b1", "b2", "b3"]);
        assert_eq!(keys(b"b", b"b2", 9), ["b2", "b3"]);
        assert_eq!(keys(b"b", b"b2", 1), ["b2"]);
        assert_eq!(keys(b"b", b"c", 9), [""; 0]);
    }
}

#[cfg(test)]
mod damage {
    #![allow(clippy::unwrap_used)]
    use std::fs;

    use super::*;

    const GROUP: GroupId = GroupId(1);

    fn fill(folder: &Path) {
        let db = StateDb::open(folder, &[GROUP], 16 << 20).unwrap();
        let state = db.group(GROUP).unwrap();
        for number in 0..2000u32 {
            let row = (number.to_be_bytes().to_vec(), Some(vec![number as u8; 100]));
            state.write(WriteSet::from([row]), &[], LogIndex(u64::from(number) + 1)).unwrap();
        }
        state.flush(LogIndex(2000)).unwrap();
        db.stop_background_work();
    }

    /// Every row, or why not.
    fn rows(folder: &Path) -> Result<usize> {
        let db = StateDb::open(folder, &[GROUP], 16 << 20)?;
        let state = db.group(GROUP)?;
        let mut found = 0;
        for number in 0..2000u32 {
            let value = state.row(&number.to_be_bytes())?;
            assert!(value.is_none_or(|value| value == vec![number as u8; 100]), "another value than was written");
            found += 1;
        }
        Ok(found)
    }

    #[test]
    fn state_with_a_flipped_bit_in_a_table_is_an_error_that_says_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        fill(folder.path());
        let tables = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path());
        let mut tables = tables.filter(|path| path.extension().is_some_and(|end| end == "sst"));
        let table = tables.next().unwrap();
        let good = fs::read(&table).unwrap();
        for part in 1..10 {
            let mut bad = good.clone();
            bad[good.len() * part / 10] ^= 0x10;
            fs::write(&table, bad).unwrap();
            let Err(error) = rows(folder.path()) else { continue };
            assert_eq!(error.class(), crate::error::ErrorClass::Corrupt, "{error}");
            assert!(error.to_string().contains("keep this node stopped"), "{error}");
        }
        fs::write(&table, &good[..good.len() / 2]).unwrap();
        assert!(rows(folder.path()).is_err(), "half a table");
        fs::write(&table, good).unwrap();
        assert_eq!(rows(folder.path()).unwrap(), 2000);
    }

    #[test]
    fn applied_index_that_is_no_number_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let db = StateDb::open(folder.path(), &[GROUP], 16 << 20).unwrap();
        let state = db.group(GROUP).unwrap();
        for bytes in [&b""[..], b"1234567", b"123456789"] {
            let mut options = WriteOptions::default();
            options.disable_wal(true);
            state.db.put_cf_opt(&state.family().unwrap(), APPLIED, bytes, &options).unwrap();
            assert!(matches!(state.applied_index(), Err(Error::DamagedState { .. })));
        }
    }
}

#[cfg(test)]
mod measure {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeMap;
    use std::time::Instant;

    use metadata::namespace::{Genesis, Namespace, genesis};
    use metadata::op::{FsOp, NewNode};
    use metadata::types::{FileKind, InodeId, NodeRef, TimeNs};
    use metadata::{Overlay, codec};
    use multicast::command::Command;
    use multicast::ids::{CommandId, SessionId, VectorClock};

    use super::*;

    fn resident_bytes() -> usize {
        let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
        statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
    }

    /// Inodes, and the memory beyond what the process had before. `INODES` and `MEMORY` (MiB) choose others.
    #[test]
    #[ignore = "a measurement"]
    fn measure_memory_of_many_inodes() {
        let number = |name, default| std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default);
        let (inodes, memory): (usize, usize) = (number("INODES", 400_000), number("MEMORY", 32) << 20);
        let folder = tempfile::tempdir().unwrap();
        let group = GroupId::GLOBAL;
        let db = StateDb::open(folder.path(), &[group], memory).unwrap();
        let state = db.group(group).unwrap();
        let before = resident_bytes();
        let mut overlay = Overlay::new(&state).unwrap();
        let start = Genesis { inline_bytes_max: 4096, uid: 0, gid: 0, mode: 0o755, time: TimeNs(1) };
        genesis(&mut overlay, group, &start).unwrap();
        state.write(overlay.into_writes(), &[], LogIndex(0)).unwrap();
        let parent = NodeRef { ino: InodeId::ROOT, kind: FileKind::Directory, home: group };
        let mut most = 0;
        for batch in 0..inodes / 500 {
            let mut namespace = Namespace::open(group, Overlay::new(&state).unwrap()).unwrap();
            for count in 0..500 {
                let name = format!("file-{batch}-{count}").into();
                let (node, home) = (NewNode::File, group);
                let op = FsOp::Create { parent, name, node, mode: 0o644, uid: 0, gid: 0, home };
                let command = Command {
                    id: CommandId { session: SessionId(1), sequence: 1 },
                    acknowledged_below: 0,
                    clock: VectorClock::new(),
                    destinations: op.destinations(),
                    payload: codec::encode_op(&op),
                };
                let outcome = namespace.execute(TimeNs(5), &command, &BTreeMap::new());
                assert!(codec::decode_outcome(&outcome).unwrap().is_ok());
            }
            state.write(namespace.into_store().into_writes(), &[], LogIndex(batch as u64 + 1)).unwrap();
            // Reads all over the place fill the caches.
            for inode in (1..=batch as u64 * 500).step_by(1009) {
                let op = metadata::read::ReadOp::GetAttr { ino: InodeId(inode) };
                metadata::answer::read(&state, group, &op).unwrap().unwrap();
            }
            most = most.max(resident_bytes() - before);
            if batch % 100 == 99 {
                let figures = db.figures();
                println!(
                    "{} inodes: {} MiB beyond the start, cache {} MiB, buffers {} MiB, rows {} MiB, on disk {} MiB",
                    (batch + 1) * 500,
                    (resident_bytes() - before) >> 20,
                    figures.cache_bytes >> 20,
                    figures.buffer_bytes >> 20,
                    state.rows.weight() >> 20,
                    figures.disk_bytes >> 20,
                );
            }
        }
        // Besides the setting: the allocator's slack, compactions' buffers, tables' handles.
        assert!(most < memory * 3 / 2 + (48 << 20), "{} MiB for a setting of {}", most >> 20, memory >> 20);
    }

    #[test]
    #[ignore = "a measurement"]
    fn measure_execution_of_creates() {
        let folder = tempfile::tempdir().unwrap();
        let group = GroupId::GLOBAL;
        let db = StateDb::open(folder.path(), &[group], 64 << 20).unwrap();
        let state = db.group(group).unwrap();
        let mut overlay = Overlay::new(&state).unwrap();
        let start = Genesis { inline_bytes_max: 4096, uid: 0, gid: 0, mode: 0o755, time: TimeNs(1) };
        genesis(&mut overlay, group, &start).unwrap();
        state.write(overlay.into_writes(), &[], LogIndex(0)).unwrap();
        let parent = NodeRef { ino: InodeId::ROOT, kind: FileKind::Directory, home: group };
        for batch in [1, 16, 64, 256] {
            let (mut execute, mut write) = (0, 0);
            let rounds = 20_480 / batch;
            for round in 0..rounds {
                let started = Instant::now();
                let mut namespace = Namespace::open(group, Overlay::new(&state).unwrap()).unwrap();
                for count in 0..batch {
                    let op = FsOp::Create {
                        parent,
                        name: format!("f{batch}-{round}-{count}").into(),
                        node: NewNode::File,
                        mode: 0o644,
                        uid: 0,
                        gid: 0,
                        home: group,
                    };
                    let command = Command {
                        id: CommandId { session: SessionId(1), sequence: 1 },
                        acknowledged_below: 0,
                        clock: VectorClock::new(),
                        destinations: op.destinations(),
                        payload: codec::encode_op(&op),
                    };
                    let outcome = namespace.execute(TimeNs(5), &command, &BTreeMap::new());
                    assert!(codec::decode_outcome(&outcome).unwrap().is_ok());
                }
                let writes = namespace.into_store().into_writes();
                execute += started.elapsed().as_micros();
                let started = Instant::now();
                state.write(writes, &[], LogIndex(1)).unwrap();
                write += started.elapsed().as_micros();
            }
            let each = |micros: u128| micros as f64 / 20_480.0;
            println!("batch of {batch}: execute {:.1} us, write {:.1} us each", each(execute), each(write));
        }
    }
}
