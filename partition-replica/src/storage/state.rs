//! The groups' states in RocksDB: one database per node, one column family per group. Nothing else names RocksDB.
//!
//! RocksDB's own log is off: every write carries the applied index, so after a crash a group's column family is some
//! earlier state, whole, and the write-ahead log is replayed from its index. Therefore the log may be cut only below
//! [`GroupState::flushed_index`].

mod copy;
mod family;

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use metadata::keys::FOREIGN_KIND_MIN;
use metadata::store::{Row, Store, WriteSet};
use multicast::ids::{GroupId, LogIndex};
use parking_lot::{Mutex, RwLock};
use quick_cache::Weighter;
use quick_cache::sync::Cache;
use rocksdb::{
    BoundColumnFamily, Cache as BlockCache, ColumnFamilyDescriptor, DBWithThreadMode, Direction, FlushOptions,
    IteratorMode, MultiThreaded, Options, ReadOptions, SnapshotWithThreadMode, WriteBatch, WriteBufferManager,
    WriteOptions,
};

pub use copy::{CopiedRows, StagedState};
use family::{family_name, family_options, is_of_group, known_families, live_family, pointer};

use crate::error::{Error, ErrorClass, Result};

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

    /// Opens the database of a node that does not run, to be looked at only.
    pub fn open_read_only(folder: &Path, memory_bytes: usize) -> Result<StateDb> {
        let cache = BlockCache::new_lru_cache(memory_bytes / 2);
        let buffers = WriteBufferManager::new_write_buffer_manager_with_cache(1 << 20, false, cache.clone());
        let mut options = Options::default();
        options.set_max_open_files(OPEN_FILES_MAX);
        let families = known_families(&options, folder).into_iter();
        let families = families.map(|name| ColumnFamilyDescriptor::new(name, family_options(&cache, memory_bytes)));
        let db = Db::open_cf_descriptors_read_only(&options, folder, families, false).map_err(failed)?;
        Ok(StateDb { db: Arc::new(db), cache, buffers, row_cache_bytes: memory_bytes / ROWS_SHARE, memory_bytes })
    }

    /// True if there is something of that group.
    pub fn has(&self, group: GroupId) -> bool {
        live_family(&self.db, group).is_ok_and(|name| self.db.cf_handle(&name).is_some())
    }

    /// Makes room for a group that is new here.
    pub fn add(&self, group: GroupId) -> Result<()> {
        let name = live_family(&self.db, group)?;
        if self.db.cf_handle(&name).is_none() {
            self.db.create_cf(&name, &family_options(&self.cache, self.memory_bytes)).map_err(failed)?;
        }
        Ok(())
    }

    /// Deletes all that is here of a group, copies that were not finished included.
    pub fn remove(&self, group: GroupId) -> Result<()> {
        let known = known_families(&Options::default(), self.db.path());
        for name in known.iter().filter(|name| is_of_group(name, group)) {
            if self.db.cf_handle(name).is_some() {
                self.db.drop_cf(name).map_err(failed)?;
            }
        }
        let mut options = WriteOptions::default();
        options.set_sync(true);
        self.db.delete_opt(pointer(group), &options).map_err(failed)
    }

    /// Half-made copies, and states that were replaced.
    fn drop_leftovers(&self, group: GroupId, known: &[String]) -> Result<()> {
        let live = live_family(&self.db, group)?;
        for name in known.iter().filter(|name| is_of_group(name, group) && **name != live) {
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
            damage: Arc::default(),
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
    /// Somebody has come upon rows that are not what was written.
    damage: Arc<OnceLock<String>>,
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

    /// Passes a result on. If it tells of damage, the replica's thread will see that, wherever it was found, and end the node.
    pub fn noted<T>(&self, result: Result<T>) -> Result<T> {
        if let Err(error) = &result
            && error.class() == ErrorClass::Corrupt
        {
            tracing::error!(group = %self.group, %error, "the state is damaged");
            let _known_already = self.damage.set(match error {
                Error::CorruptState(why) => why.clone(),
                other => other.to_string(),
            });
        }
        result
    }

    /// Fails if anybody has found damage.
    pub fn check(&self) -> Result<()> {
        self.damage.get().map_or(Ok(()), |why| Err(Error::CorruptState(why.clone())))
    }

    /// The error for rows that make no sense.
    #[must_use]
    pub fn damaged(&self, problem: impl Into<String>) -> Error {
        Error::DamagedState { group: self.group, problem: problem.into() }
    }

    fn family(&self) -> Result<Arc<BoundColumnFamily<'_>>> {
        self.db.cf_handle(&self.family.read()).ok_or_else(|| self.damaged("its column family is gone"))
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

fn failed(error: rocksdb::Error) -> Error {
    match error.kind() {
        rocksdb::ErrorKind::Corruption => Error::CorruptState(error.into_string()),
        _ => Error::State(error.into_string()),
    }
}

#[cfg(test)]
mod tests;

#[cfg(test)]
mod damage;

#[cfg(test)]
mod measure;
