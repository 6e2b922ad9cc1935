//! The write-ahead log of a node, shared by its groups: one thread writes, one flush per batch, and a batch is whatever
//! came while the previous flush ran.

mod format;
mod index;
mod recovery;
#[cfg(test)]
mod tests;
mod writer;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

use multicast::ids::{Ballot, GroupId, LogIndex};
use parking_lot::{Condvar, Mutex};

pub use self::format::WalRecord;
pub use self::index::{LogEntry, LogState};
pub use self::writer::WalConfig;
use self::writer::{Found, Tables, Writer};
use crate::error::{Error, Result};
use crate::storage::disk::Disk;

/// Called by the log's thread when a write is durable. Must be quick and must not wait for the log.
pub type Done = Box<dyn FnOnce() + Send>;

/// Called once when the log has failed; nothing is written any more from then on.
pub type OnFailure = Box<dyn FnOnce(Error) + Send>;

/// The version of all that is written here.
pub const FORMAT: u8 = format::SEGMENT_MAGIC[7];

/// Bytes that may wait for the writer; whoever comes then waits.
const QUEUE_BYTES_MAX: usize = 64 << 20;

/// Figures for people.
#[derive(Clone, Copy, Debug, Default)]
pub struct WalFigures {
    /// Bytes of segments on disk.
    pub bytes: u64,
    /// Segments on disk.
    pub segments: u64,
    /// Flushes since the start.
    pub flushes: u64,
    /// Records since the start.
    pub records: u64,
    /// Bytes of entries in memory.
    pub cache_bytes: u64,
    /// Whose entries keep the oldest segment, if that is not the one being written.
    pub kept_by: Option<KeptBy>,
}

/// Why the log is as long as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeptBy {
    /// The group with the oldest entry that is needed.
    pub group: GroupId,
    /// Its first entry.
    pub from: LogIndex,
    /// Bytes of its entries.
    pub bytes: u64,
}

/// The log of one node.
pub struct Wal {
    queue: Arc<Queue>,
    tables: Arc<Mutex<Tables>>,
    /// Held by whoever set [`QueueState::writing`].
    writer: Arc<Mutex<Writer>>,
    on_failure: Arc<Mutex<Option<OnFailure>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    /// So many flushes had been done, and one, when a mark was last asked for.
    marked: AtomicU64,
}

#[derive(Default)]
struct Queue {
    state: Mutex<QueueState>,
    work: Condvar,
    space: Condvar,
}

#[derive(Default)]
struct QueueState {
    records: Vec<WalRecord>,
    done: Vec<Done>,
    bytes: usize,
    /// Somebody writes.
    writing: bool,
    stop: bool,
    /// It stops as a crash would.
    abandoned: bool,
    failed: bool,
}

/// Reads a log that nobody writes, to see whether it is whole.
pub fn verify(disk: &dyn Disk, config: &WalConfig) -> Result<()> {
    recovery::read(disk, config).map(|_| ())
}

impl Wal {
    /// Reads the log back and starts its thread.
    pub fn open(disk: Arc<dyn Disk>, config: WalConfig, on_failure: OnFailure) -> Result<Wal> {
        let (tables, tail) = recovery::recover(&*disk, &config)?;
        let tables = Arc::new(Mutex::new(tables));
        let writer = Arc::new(Mutex::new(Writer::new(disk, config, tables.clone(), tail)?));
        let queue = Arc::new(Queue::default());
        let on_failure = Arc::new(Mutex::new(Some(on_failure)));
        let run = {
            let (queue, writer, on_failure) = (queue.clone(), writer.clone(), on_failure.clone());
            move || {
                let ended = catch_unwind(AssertUnwindSafe(|| run(&queue, &writer)));
                let error = match ended {
                    Ok(Ok(())) => return,
                    Ok(Err(error)) => error,
                    Err(_) => Error::State("the log's thread panicked".into()),
                };
                queue.fail();
                tell_failure(&on_failure, error);
            }
        };
        let thread = std::thread::Builder::new()
            .name("log".into())
            .spawn(run)
            .map_err(|source| Error::Thread { what: "the log's thread", source })?;
        let (thread, marked) = (Mutex::new(Some(thread)), AtomicU64::new(0));
        Ok(Wal { queue, tables, writer, on_failure, thread, marked })
    }

    /// Writes records of one group; `done` is called when they are durable. Writes become durable in the order of these
    /// calls. Waits only if very much is queued. After a failure or [`Wal::stop`] nothing happens any more.
    pub fn submit(&self, records: Vec<WalRecord>, done: Done) {
        let bytes: usize = records.iter().map(WalRecord::encoded_len_max).sum();
        let mut state = self.queue.state.lock();
        while state.bytes > QUEUE_BYTES_MAX && !state.stop && !state.failed {
            self.queue.space.wait(&mut state);
        }
        if state.stop || state.failed {
            return;
        }
        let idle = state.done.is_empty() && !state.writing;
        if state.records.is_empty() {
            state.records = records;
        } else {
            state.records.extend(records);
        }
        state.done.push(done);
        state.bytes += bytes;
        drop(state);
        if idle {
            self.queue.work.notify_one();
        }
    }

    /// Lets the log tell of its last batch that it is durable, if that is still to be told: to be called now and then. While much
    /// is written each batch tells it of the one before.
    pub fn mark(&self) {
        let flushes = self.tables.lock().flushes + 1;
        if self.marked.swap(flushes, Ordering::Relaxed) != flushes {
            self.submit(Vec::new(), Box::new(|| {}));
        }
    }

    /// Drops all that a group's log holds, the promise too: its replica has ended for good. Waits until that is durable;
    /// false if the log has failed or ends.
    pub fn end_group(&self, group: GroupId) -> bool {
        if self.state(group) == LogState::default() {
            return true;
        }
        let (done, is_done) = std::sync::mpsc::channel();
        self.submit(vec![WalRecord::End { group }], Box::new(move || _ = done.send(())));
        is_done.recv().is_ok()
    }

    /// Writes records of one group in the caller's thread, if nothing else is written or waits, and returns true when they
    /// are durable: saves two changes of threads. Otherwise false: [`Wal::submit`] them. After a failure it is false, too.
    pub fn write_here(&self, records: &[WalRecord]) -> bool {
        let mut state = self.queue.state.lock();
        let is_busy = state.writing || !state.done.is_empty();
        // What follows a trim may take long.
        if is_busy || state.stop || state.failed || records.iter().any(WalRecord::lets_go) {
            return false;
        }
        state.writing = true;
        drop(state);
        let writing = Writing::begin(&self.queue);
        let written = self.writer.lock().write(records);
        match written {
            Ok(()) => writing.end(),
            Err(error) => {
                drop(writing);
                tell_failure(&self.on_failure, error);
                return false;
            }
        }
        true
    }

    /// What a group's log holds.
    #[must_use]
    pub fn state(&self, group: GroupId) -> LogState {
        self.tables.lock().logs.get(&group).map(index::GroupLog::state).unwrap_or_default()
    }

    /// The ballot of a durable entry (or of the last trimmed one).
    #[must_use]
    pub fn ballot(&self, group: GroupId, index: LogIndex) -> Option<Ballot> {
        self.tables.lock().logs.get(&group)?.ballot(index)
    }

    /// Durable entries from `from` to `through`, at least one and at most `bytes_max` bytes if there are any. Empty if
    /// `from` is trimmed or not yet durable.
    pub fn read(&self, group: GroupId, from: LogIndex, through: LogIndex, bytes_max: usize) -> Result<Vec<LogEntry>> {
        let mut found = Vec::new();
        {
            let tables = self.tables.lock();
            let Some(log) = tables.logs.get(&group) else { return Ok(Vec::new()) };
            let (mut index, mut bytes) = (from, 0);
            while index <= through
                && let Some(next) = tables.find(log, index)
            {
                bytes += next.len_bytes;
                if bytes > bytes_max && !found.is_empty() {
                    break;
                }
                found.push((index, next));
                index = index.next();
            }
        }
        let read =
            |(index, found): (LogIndex, Found)| Ok(LogEntry { index, ballot: found.ballot, bytes: found.read()? });
        found.into_iter().map(read).collect()
    }

    /// Figures for people.
    #[must_use]
    pub fn figures(&self) -> WalFigures {
        let tables = self.tables.lock();
        WalFigures {
            bytes: tables.segments.values().map(|segment| segment.file.len_bytes()).sum(),
            segments: tables.segments.len() as u64,
            flushes: tables.flushes,
            records: tables.records,
            cache_bytes: tables.logs.values().map(|log| log.cache_bytes() as u64).sum(),
            kept_by: kept_by(&tables),
        }
    }

    /// Writes what is queued and ends the thread.
    pub fn stop(&self) {
        self.end(false);
    }

    /// Ends the thread without writing what is queued, as a crash would.
    pub fn abandon(&self) {
        self.end(true);
    }

    fn end(&self, drop_queued: bool) {
        {
            let mut state = self.queue.state.lock();
            state.stop = true;
            state.abandoned = drop_queued;
            if drop_queued {
                state.records.clear();
                state.done.clear();
            }
        }
        self.queue.work.notify_one();
        self.queue.space.notify_all();
        if let Some(thread) = self.thread.lock().take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Wal {
    fn drop(&mut self) {
        self.abandon();
    }
}

fn kept_by(tables: &Tables) -> Option<KeptBy> {
    let oldest = |(&group, log): (&GroupId, &index::GroupLog)| Some((log.oldest_segment()?, group, log.live()?.0));
    let (segment, group, from) = tables.logs.iter().filter_map(oldest).min()?;
    let newest = tables.segments.keys().next_back()?;
    let bytes = tables.logs.get(&group)?.live_bytes();
    (u64::from(segment) + 1 < *newest).then_some(KeptBy { group, from, bytes })
}

fn run(queue: &Queue, writer: &Mutex<Writer>) -> Result<()> {
    while let Some((records, done)) = next_batch(queue) {
        let writing = Writing::begin(queue);
        let mut writer = writer.lock();
        if records.is_empty() {
            writer.mark()?;
        }
        writer.write(&records)?;
        for done in done {
            done();
        }
        if records.iter().any(WalRecord::lets_go) {
            writer.move_quiet_entries()?;
            if let Err(error) = writer.remove_unneeded() {
                // Nothing is lost by a segment too many; the next trim tries again.
                tracing::warn!(%error, "an old log segment could not be removed");
            }
        }
        drop(writer);
        writing.end();
    }
    let is_over = {
        let state = queue.state.lock();
        state.abandoned || state.failed
    };
    if is_over { Ok(()) } else { writer.lock().mark() }
}

/// Somebody writes, and has set [`QueueState::writing`]. If it does not come to its end, nobody writes any more: what is on
/// disk is not known.
struct Writing<'a> {
    queue: &'a Queue,
    is_whole: bool,
}

impl Writing<'_> {
    fn begin(queue: &Queue) -> Writing<'_> {
        Writing { queue, is_whole: false }
    }

    fn end(mut self) {
        self.is_whole = true;
    }
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        if !self.is_whole {
            self.queue.fail();
        }
        let mut state = self.queue.state.lock();
        state.writing = false;
        let is_awaited = !state.done.is_empty() || state.stop;
        drop(state);
        if is_awaited {
            self.queue.work.notify_one();
        }
    }
}

fn tell_failure(on_failure: &Mutex<Option<OnFailure>>, error: Error) {
    let on_failure = on_failure.lock().take();
    if let Some(on_failure) = on_failure {
        on_failure(error);
    }
}

impl Queue {
    /// Whatever is queued is never written, and nobody waits any more.
    fn fail(&self) {
        let mut state = self.state.lock();
        state.failed = true;
        state.records.clear();
        state.done.clear();
        drop(state);
        self.space.notify_all();
    }
}

fn next_batch(queue: &Queue) -> Option<(Vec<WalRecord>, Vec<Done>)> {
    let mut state = queue.state.lock();
    while state.writing || state.done.is_empty() {
        if state.stop && !state.writing {
            return None;
        }
        queue.work.wait(&mut state);
    }
    state.writing = true;
    state.bytes = 0;
    let batch = (std::mem::take(&mut state.records), std::mem::take(&mut state.done));
    drop(state);
    queue.space.notify_all();
    Some(batch)
}
