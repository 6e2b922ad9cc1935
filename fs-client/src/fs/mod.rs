//! POSIX operations over inodes, on any [`Volume`]. Knows nothing of FUSE.

pub mod file;

mod attrs;
mod dirs;
mod facts;
mod flights;
mod flush;
mod listing;
mod locks;
mod names;
mod ranges;
mod read;
mod removals;
mod write;

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use datastore::{BlobRef, BlobStore, Region, Uploader, UploaderConfig};
use metadata::op::FsOp;
use metadata::outcome::{Done, OpError};
use metadata::read::{ReadAnswer, ReadOp};
use metadata::types::{Attr, BlobId, BlobRange, FileKind, InodeId, NodeRef};
use multicast::ids::GroupId;
use parking_lot::Mutex;

use crate::config::{ClientConfig, Consistency, Limits, Timeouts};
use crate::errno::Errno;
use crate::error::{Error, Result};
use crate::table::Table;
use crate::volume::Volume;
use facts::Facts;

pub use dirs::Directory;
pub use locks::LockRequest;
pub use names::{Created, NewEntry};
pub use write::{Write, Written};

/// Result of an operation, for an application.
pub type FsResult<T> = std::result::Result<T, Errno>;

/// How often an inode that keeps moving is followed.
const MOVES_MAX: u32 = 16;
/// While an answer is on its way: before it is looked whether what is kept may answer by now; longer each time.
const LOOK_PAUSE_MIN: Duration = Duration::from_millis(1);
const LOOK_PAUSE_MAX: Duration = Duration::from_millis(20);
/// Before a release without an answer is asked for again.
const ORPHAN_AGAIN: Duration = Duration::from_secs(1);
/// Orphans are given up in batches: so long others may join.
const ORPHAN_PAUSE: Duration = Duration::from_millis(50);
/// Bound of [`Unlinked`].
const UNLINKED_MAX: usize = 8192;
/// Orphans in one command.
const ORPHANS_MAX: usize = 1024;

/// One client's file system.
pub struct Fs {
    pub(crate) volume: Arc<dyn Volume>,
    pub(crate) table: Table,
    pub(crate) limits: Limits,
    /// As configured, but the deadline is what operations of applications have: perhaps none.
    timeouts: Timeouts,
    /// What has to end by itself has this one.
    deadline: Duration,
    /// How new answers must be.
    pub(crate) consistency: Consistency,
    blobs: Option<Blobs>,
    /// Bytes in memory, over all files.
    dirty_bytes: AtomicUsize,
    /// Why the bucket did not take the last blobs; zero if it did.
    bucket_errno: AtomicI32,
    locks: locks::Held,
    attr_flights: flights::Flights,
    unlinked: Mutex<Unlinked>,
    removals: removals::Removals,
    /// Groups that are still asked to register the session, though nobody waits for it any more.
    unregistered: Arc<Mutex<BTreeSet<GroupId>>>,
    /// Totals of groups, as last heard.
    usage: Mutex<BTreeMap<GroupId, (u64, u64)>>,
}

/// Who has answered a question.
enum Told<T> {
    /// What was kept, once it might.
    Known(T),
    /// A replica.
    Asked(ReadAnswer),
}

/// Where file data go to and come from.
struct Blobs {
    store: BlobStore,
    uploader: Uploader,
    next: AtomicU64,
}

impl std::fmt::Debug for Fs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fs").field("session", &self.volume.session()).finish_non_exhaustive()
    }
}

impl Fs {
    /// A file system over a volume. Must be called inside a tokio runtime.
    pub fn start(volume: Arc<dyn Volume>, config: &ClientConfig, store: Option<BlobStore>) -> Arc<Fs> {
        let half = config.limits.dirty_bytes_max / 2;
        let blobs = store.map(|store| {
            let uploader = UploaderConfig {
                buffer_bytes_max: half,
                submit_deadline: config.timeouts.deadline,
                ..UploaderConfig::default()
            };
            Blobs { uploader: Uploader::new(store.clone(), uploader), store, next: AtomicU64::new(1) }
        });
        let fs = Arc::new(Fs {
            volume,
            table: Table::default(),
            limits: config.limits.clone(),
            timeouts: Timeouts { deadline: config.patience(), ..config.timeouts.clone() },
            deadline: config.timeouts.deadline,
            consistency: config.consistency,
            blobs,
            dirty_bytes: AtomicUsize::new(0),
            bucket_errno: AtomicI32::new(0),
            locks: locks::Held::default(),
            attr_flights: flights::Flights::default(),
            unlinked: Mutex::default(),
            removals: removals::Removals::default(),
            unregistered: Arc::default(),
            usage: Mutex::default(),
        });
        spawn_orphan_keeper(&fs);
        spawn_flusher(&fs);
        fs
    }

    /// How to name an inode that the kernel knows.
    pub fn node(&self, ino: InodeId) -> NodeRef {
        NodeRef { ino, kind: self.table.kind(ino).unwrap_or(FileKind::File), home: self.table.home(ino) }
    }

    /// Attributes as the metadata have them, if they may be given without asking.
    pub fn cached_attr(&self, ino: InodeId) -> Option<Arc<Attr>> {
        self.volume.cache().attr(self.table.home(ino), ino)
    }

    /// Attributes as the metadata have them.
    pub async fn attr(&self, node: NodeRef) -> FsResult<Arc<Attr>> {
        if let Some(attr) = self.volume.cache().attr(node.home, node.ino) {
            return Ok(attr);
        }
        if self.is_linearizable() {
            // What others have asked may have been answered before this was asked.
            return self.ask_attr(node).await;
        }
        self.attr_flights.fly(self, node).await
    }

    /// True if every question must be asked, and none may share an answer.
    pub(crate) fn is_linearizable(&self) -> bool {
        self.consistency == Consistency::Linearizable
    }

    /// After which what must end does.
    pub(crate) fn deadline(&self) -> Duration {
        self.deadline
    }

    /// The kernel will ask for these attributes soon, as it does for a directory's after each change in it.
    fn expect_attr(self: &Arc<Self>, node: NodeRef) {
        if !self.is_linearizable() && self.volume.cache().attr(node.home, node.ino).is_none() {
            let fs = self.clone();
            tokio::spawn(async move {
                let _ = fs.attr_flights.fly(&fs, node).await;
            });
        }
    }

    async fn ask_attr(&self, node: NodeRef) -> FsResult<Arc<Attr>> {
        let known = || self.volume.cache().attr(node.home, node.ino);
        match self.ask_unless(node, ReadOp::GetAttr { ino: node.ino }, known).await? {
            Told::Known(attr) => Ok(attr),
            Told::Asked(ReadAnswer::Attr(attr)) => Ok(Arc::from(attr)),
            Told::Asked(_) => Err(Errno::EIO),
        }
    }

    /// Asks, unless what is kept may answer before the answer comes, perhaps from far away. A stream is behind what was seen for a
    /// moment only, and tells what an own update has done in a group that has not answered it.
    async fn ask_unless<T>(&self, node: NodeRef, op: ReadOp, known: impl Fn() -> Option<T>) -> FsResult<Told<T>> {
        let mut asking = std::pin::pin!(self.ask(node, op));
        let mut pause = LOOK_PAUSE_MIN;
        loop {
            if let Ok(answer) = tokio::time::timeout(pause, &mut asking).await {
                return answer.map(Told::Asked);
            }
            if let Some(known) = known() {
                return Ok(Told::Known(known));
            }
            pause = (pause + LOOK_PAUSE_MIN).min(LOOK_PAUSE_MAX);
        }
    }

    /// Asks about an inode where it lives, wherever it moves.
    async fn ask(&self, node: NodeRef, op: ReadOp) -> FsResult<ReadAnswer> {
        let mut home = node.home;
        for _ in 0..MOVES_MAX {
            match self.volume.read(home, op.clone()).await.map_err(|error| told(&error))? {
                Ok(answer) => return Ok(answer),
                Err(OpError::Moved { ino, home: now }) if ino == node.ino => {
                    self.table.moved(ino, now);
                    home = now;
                }
                Err(error) => return Err(Errno::from(&error)),
            }
        }
        Err(Errno::ESTALE)
    }

    /// Executes an update; `Ok(None)` if it must be asked again with what was learned.
    async fn update(&self, op: FsOp, facts: &mut Facts) -> FsResult<Option<Done>> {
        match self.volume.update(op).await.map_err(|error| told(&error))? {
            Ok(done) => Ok(Some(done)),
            Err(error) => {
                facts.learn(&self.table, error).await?;
                Ok(None)
            }
        }
    }

    /// Registers the session where an open file must be kept for it; not being able to is no reason to fail. While a group is cut
    /// off, only the first who opens something there waits.
    pub async fn ensure_session(&self, group: GroupId) {
        if self.unregistered.lock().contains(&group) {
            return;
        }
        let volume = self.volume.clone();
        let mut asked = tokio::spawn(async move { volume.open_session(group).await });
        let patience = Duration::from_secs(2).min(self.timeouts.deadline);
        match tokio::time::timeout(patience, &mut asked).await {
            Ok(Ok(Ok(()))) => return,
            Ok(_) => {}
            Err(_) if self.unregistered.lock().insert(group) => {
                let unregistered = self.unregistered.clone();
                tokio::spawn(async move {
                    // How it ended, the next who opens something sees.
                    let _ = asked.await;
                    unregistered.lock().remove(&group);
                });
            }
            Err(_) => asked.abort(),
        }
        tracing::debug!(%group, "no session yet: files opened there are not kept when others unlink them");
    }

    /// Says that orphans are not held here any more; later, if nobody answers.
    async fn release_orphans(&self, home: GroupId, inodes: Vec<InodeId>) {
        for batch in inodes.chunks(ORPHANS_MAX) {
            let op = FsOp::ReleaseOrphans { home, inodes: batch.to_vec() };
            // Those of other groups wait for this.
            match tokio::time::timeout(self.deadline, self.volume.update(op)).await {
                Ok(Ok(_)) => {}
                Ok(Err(Error::Closing | Error::SessionLost { .. })) => return,
                failed => {
                    tracing::debug!(group = %home, ?failed, "orphans are released later");
                    let (orphans, batch) = (self.volume.orphans().clone(), batch.to_vec());
                    tokio::spawn(async move {
                        tokio::time::sleep(ORPHAN_AGAIN).await;
                        orphans.put(home, &batch);
                    });
                }
            }
        }
    }

    /// Called when the last name of inodes is gone, or the last handle of orphans.
    pub(crate) fn put_orphan(&self, home: GroupId, ino: InodeId) {
        self.volume.orphans().put(home, &[ino]);
    }

    /// A handle is closed.
    pub fn close_handle(&self, ino: InodeId) {
        let file = self.table.file(ino);
        if let Some(home) = self.table.close(ino).orphan_of {
            self.put_orphan(home, ino);
        }
        let is_kept = |file: &Arc<file::OpenFile>| self.table.file(ino).is_some_and(|now| Arc::ptr_eq(&now, file));
        if let Some(file) = file.filter(|file| !is_kept(file)) {
            self.close_file(&file);
        }
    }

    /// Flushes everything that was written; the first error is told, all files are tried.
    pub async fn flush_all(self: &Arc<Self>) -> FsResult<()> {
        let mut result = Ok(());
        let mut flushing = tokio::task::JoinSet::new();
        for file in self.table.files() {
            if file.needs_flush() {
                let fs = self.clone();
                flushing.spawn(async move { fs.flush(&file).await });
            }
        }
        while let Some(flushed) = flushing.join_next().await {
            result = result.and(flushed.unwrap_or(Err(Errno::EIO)));
        }
        result
    }

    /// As [`Fs::flush_all`], within the configured time.
    pub async fn flush_bounded(self: &Arc<Self>) -> Result<()> {
        match tokio::time::timeout(self.timeouts.close, self.flush_all()).await {
            Ok(result) => result.map_err(Error::Posix),
            Err(_) => Err(Error::Posix(Errno::ETIMEDOUT)),
        }
    }

    /// A directory that the kernel may not know: at home in `otherwise` unless something better is known.
    pub fn table_or(&self, ino: InodeId, otherwise: GroupId) -> NodeRef {
        let home = self.table.kind(ino).map_or(otherwise, |_| self.table.home(ino));
        NodeRef { ino, kind: FileKind::Directory, home }
    }

    /// Flushes and ends the session; ends within the configured time.
    pub async fn close(self: &Arc<Self>) -> Result<()> {
        let flushed = self.flush_bounded().await;
        let _ = tokio::time::timeout(self.timeouts.close, self.volume.close()).await;
        flushed
    }
}

/// What an application is told of an error; the log is told more.
pub(crate) fn told(error: &Error) -> Errno {
    let errno = Errno::from(error);
    match error {
        Error::Posix(_) => {}
        // As often as somebody asks, while a region is cut off.
        Error::Unreachable { .. } => tracing::debug!(%error, %errno, "an operation was refused"),
        _ => tracing::warn!(%error, %errno, "an operation failed"),
    }
    errno
}

/// Inodes that this client has unlinked without having them open: it holds none of them, and need not say so. The oldest
/// give way; for them it says so once more than needed.
#[derive(Debug, Default)]
struct Unlinked {
    inodes: HashSet<InodeId>,
    order: VecDeque<InodeId>,
}

impl Unlinked {
    fn insert(&mut self, ino: InodeId) {
        if self.inodes.insert(ino) {
            self.order.push_back(ino);
        }
        if self.order.len() > UNLINKED_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.inodes.remove(&oldest);
        }
    }

    fn remove(&mut self, ino: InodeId) -> bool {
        self.inodes.remove(&ino)
    }
}

fn spawn_orphan_keeper(fs: &Arc<Fs>) {
    let weak = Arc::downgrade(fs);
    let orphans = fs.volume.orphans().clone();
    tokio::spawn(async move {
        loop {
            let mut news = orphans.take().await;
            tokio::time::sleep(ORPHAN_PAUSE).await;
            let Some(fs) = weak.upgrade() else { return };
            // Groups that do not answer do not hold up others for longer than a deadline.
            let mut releases = tokio::task::JoinSet::new();
            for (home, inodes) in &mut news {
                inodes.sort_unstable();
                inodes.dedup();
                inodes.retain(|ino| !fs.table.become_orphan(*ino) && !fs.unlinked.lock().remove(*ino));
                if !inodes.is_empty() && fs.volume.may_hold(*home) {
                    let (fs, home, inodes) = (fs.clone(), *home, std::mem::take(inodes));
                    releases.spawn(async move { fs.release_orphans(home, inodes).await });
                }
            }
            drop(fs);
            releases.join_all().await;
        }
    });
}

/// Sends out what was written a while ago, so that a writer that never closes does not keep it to itself.
fn spawn_flusher(fs: &Arc<Fs>) {
    let weak = Arc::downgrade(fs);
    let after = fs.timeouts.flush_after;
    tokio::spawn(async move {
        let mut ticks = tokio::time::interval((after / 4).max(Duration::from_millis(50)));
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let Some(fs) = weak.upgrade() else { return };
            for file in fs.table.files() {
                if fs.is_due(&file, after) {
                    let fs = fs.clone();
                    tokio::spawn(async move { fs.flush_unasked(&file).await });
                }
            }
        }
    });
}

impl Blobs {
    fn new_id(&self, writer: u64) -> datastore::BlobId {
        datastore::BlobId::new(self.store.local(), writer, self.next.fetch_add(1, Ordering::Relaxed))
    }
}

pub(crate) fn blob_ref(range: &BlobRange) -> BlobRef {
    BlobRef { id: blob_id(range.blob), len_bytes: range.blob_len, crc32c: range.crc32c }
}

pub(crate) fn blob_id(blob: BlobId) -> datastore::BlobId {
    datastore::BlobId::new(Region(blob.origin), blob.writer, blob.sequence)
}

pub(crate) fn blob_range(blob: &BlobRef) -> BlobRange {
    let id = BlobId { origin: blob.id.origin.0, writer: blob.id.writer, sequence: blob.id.sequence };
    BlobRange { blob: id, blob_len: blob.len_bytes, crc32c: blob.crc32c, start: 0 }
}

#[cfg(test)]
mod tests;
