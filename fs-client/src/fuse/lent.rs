//! What the kernel keeps of the cache, and how it is taken back.
//!
//! The kernel answers from what it was lent without asking. So whatever ends an entry of the cache must end the kernel's
//! copy, *before* the kernel is told anything that may depend on what came after. Three things see to that:
//!
//! * Only what a stream will tell about is lent, and marked before it is checked once more: either whoever changes it finds
//!   the mark, or the lender finds the change.
//! * [`Borrower::keys_changed`] takes back, on the stream's own task, before the stream's position moves on.
//! * Every answer passes [`KernelCaches::settle`], after it is computed: while something is lent of a group whose stream is
//!   behind the clock, or is another than the lender's, the answer waits a moment for the stream, and then takes back all
//!   that is lent of the group.
//!
//! A notification of attributes alone takes no lock that a request may hold. But the kernel looks for the inode first, and
//! waits for one that it is throwing away; that may wait for a read of the inode's pages, which is ours to answer. So files
//! are notified by a thread, and answers wait for it. Their patience with a notification that is under way is limited, as
//! an inode on its way out answers nobody; what waits behind it is then told by another thread.
//!
//! A kernel that does not know an inode cannot be told of it, and may just be about to learn of it from an answer of ours.
//! So the answer that makes it known lends nothing; and should it have forgotten in between, it is told again later.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::hash::BuildHasherDefault;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use metadata::footprint::{key_dirent, key_home, key_inode};
use metadata::types::{Attr, Dirent, FileKind, InodeId};
use multicast::command::Key;
use multicast::ids::GroupId;
use parking_lot::{Condvar, Mutex, RwLock};
use tokio::sync::Notify;

use super::device::Device;
use crate::cache::{Borrower, Cache};
use crate::config::KernelCache;
use crate::session::progress::{Epoch, Usable};
use crate::table::InoHasher;

/// So long the kernel may keep what it is lent. Nothing depends on it: it lets marks of what nobody asks for any more go.
const LIFETIME: Duration = Duration::from_secs(60);
/// A mark outlives what it stands for.
const MARK_SECONDS: u32 = 2 * LIFETIME.as_secs() as u32;
/// Attributes and names lent of one group; further ones are asked for each time.
const LENT_MAX: usize = 1 << 16;
/// So long answers wait for a stream that is behind the clock.
const STREAM_PATIENCE: Duration = Duration::from_millis(5);
const PAUSE: Duration = Duration::from_millis(1);
/// A notification that the kernel has not taken for so long is held up by the end of its inode: nobody waits for it.
const TELL_PATIENCE: Duration = Duration::from_millis(100);
/// Threads that are held up at once; then the others wait for them.
const HELD_UP_MAX: usize = 32;
/// How often marks are looked through, and lost streams are noticed while nobody asks anything.
const SWEEP_INTERVAL: Duration = Duration::from_secs(10);
/// What the kernel did not know is told again after these pauses, each ten times the one before.
const AGAIN_FIRST: Duration = Duration::from_millis(1);
const AGAIN_LAST: Duration = Duration::from_secs(1);
const AGAIN_MAX: usize = 1024;

type Marks = HashMap<u64, Mark, BuildHasherDefault<InoHasher>>;
type Names = HashSet<u64, BuildHasherDefault<InoHasher>>;

/// See the module.
#[derive(Debug)]
pub struct KernelCaches {
    mode: KernelCache,
    cache: Arc<Cache>,
    groups: RwLock<BTreeMap<GroupId, Arc<Lent>>>,
    device: OnceLock<Device>,
    /// The kernel knows [`Device::forget_names`].
    has_epochs: AtomicBool,
    started: Instant,
    queue: Mutex<Queue>,
    queued: Condvar,
    /// Who is just telling the kernel without the thread.
    telling: AtomicUsize,
    /// What the thread was given and is not through with.
    untold: AtomicUsize,
    progress: Notify,
    /// Notifications sent, of attributes and of names.
    told: [AtomicU64; 2],
}

/// What is lent of one group.
#[derive(Debug, Default)]
struct Lent {
    count: AtomicUsize,
    book: Mutex<Book>,
}

#[derive(Debug, Default)]
struct Book {
    /// While this may answer, or more, they hold.
    from: Option<Usable>,
    /// By the key under which the inode changes.
    attrs: Marks,
    /// Keys of names, and of the directories that hold them.
    names: Names,
}

#[derive(Clone, Copy, Debug)]
struct Mark {
    /// The kernel's number.
    number: u64,
    /// It has pages: told by the thread.
    is_file: bool,
    /// Seconds since the start.
    since: u32,
}

/// What is to be told at once.
#[derive(Debug)]
struct Taken {
    numbers: Vec<u64>,
    names: bool,
}

impl Taken {
    fn is_any(&self) -> bool {
        self.names || !self.numbers.is_empty()
    }
}

#[derive(Debug, Default)]
struct Queue {
    /// The last that was handed out.
    turn: u64,
    waiting: VecDeque<Item>,
    /// Under way, by turn, and since when.
    going: BTreeMap<u64, Instant>,
    again: Vec<Again>,
    held_up: usize,
    closed: bool,
}

/// A number to be told by the thread.
#[derive(Clone, Copy, Debug)]
struct Item {
    turn: u64,
    number: u64,
    /// Before the next try, should the kernel not know it.
    pause: Duration,
}

impl Queue {
    fn put(&mut self, number: u64, pause: Duration) {
        self.turn += 1;
        self.waiting.push_back(Item { turn: self.turn, number, pause });
    }

    /// The first that is not told.
    fn first(&self) -> Option<u64> {
        self.going.keys().next().copied().into_iter().chain(self.waiting.front().map(|item| item.turn)).min()
    }
}

#[derive(Clone, Copy, Debug)]
struct Again {
    number: u64,
    due: Instant,
    pause: Duration,
}

impl KernelCaches {
    /// Lends from `cache`; nothing before [`KernelCaches::start`].
    pub fn new(mode: KernelCache, cache: Arc<Cache>) -> Arc<KernelCaches> {
        Arc::new(KernelCaches {
            mode,
            cache,
            groups: RwLock::default(),
            device: OnceLock::new(),
            has_epochs: AtomicBool::new(false),
            started: Instant::now(),
            queue: Mutex::default(),
            queued: Condvar::new(),
            telling: AtomicUsize::new(0),
            untold: AtomicUsize::new(0),
            progress: Notify::new(),
            told: Default::default(),
        })
    }

    /// Begins to lend: from now on the kernel can be told. Its thread ends after [`KernelCaches::stop`].
    pub fn start(self: &Arc<Self>, device: Device) -> std::io::Result<()> {
        if self.mode == KernelCache::Off {
            return Ok(());
        }
        if self.mode == KernelCache::Names {
            match device.forget_names() {
                Ok(()) => self.has_epochs.store(true, Ordering::Release),
                Err(error) => tracing::info!(%error, "the kernel cannot be told of changed names, so it keeps none"),
            }
        }
        self.cache.lend_to(Arc::new(Listener(Arc::downgrade(self))));
        self.start_thread()?;
        let _ = self.device.set(device);
        Ok(())
    }

    fn start_thread(self: &Arc<Self>) -> std::io::Result<()> {
        let caches = self.clone();
        std::thread::Builder::new().name("fuse-lent".into()).spawn(move || caches.run()).map(|_| ())
    }

    /// The kernel has let go.
    pub fn stop(&self) {
        self.queue.lock().closed = true;
        self.queued.notify_all();
        let [attrs, names] = [0, 1].map(|kind: usize| self.told[kind].load(Ordering::Relaxed));
        tracing::info!(attrs, names, "notifications to the kernel");
    }

    /// How long the kernel may keep these attributes, which it will know by `number`. `is_known`: it knows that number.
    pub fn lend_attr(&self, number: u64, attr: &Attr, is_known: bool) -> Duration {
        let Some(usable) = self.cache.usable(attr.home).filter(|_| is_known && self.device.get().is_some()) else {
            return Duration::ZERO;
        };
        let is_current = || self.cache.noted_attr(attr.home, attr.ino).is_some_and(|now| *now == *attr);
        if !is_current() {
            return Duration::ZERO;
        }
        let (lent, key) = (self.lent(attr.home), key_inode(attr.ino).0);
        let mark = Mark { number, is_file: attr.kind == FileKind::File, since: self.seconds() };
        if !lent.mark_attr(usable, key, mark) {
            return Duration::ZERO;
        }
        // Whoever changes it from here on finds the mark.
        if is_current() && self.cache.usable(attr.home) == Some(usable) { LIFETIME } else { Duration::ZERO }
    }

    /// How long the kernel may keep what a name in a directory stands for.
    pub fn lend_name(&self, home: GroupId, parent: InodeId, name: &[u8], dirent: Option<Dirent>) -> Duration {
        if !self.has_epochs.load(Ordering::Acquire) || self.device.get().is_none() {
            return Duration::ZERO;
        }
        let Some(usable) = self.cache.usable(home) else { return Duration::ZERO };
        let is_current = || self.cache.noted_dirent(home, parent, name) == Some(dirent);
        if !is_current() || !self.lent(home).mark_name(usable, key_dirent(parent, name).0, key_home(parent).0) {
            return Duration::ZERO;
        }
        if is_current() && self.cache.usable(home) == Some(usable) { LIFETIME } else { Duration::ZERO }
    }

    /// The kernel has forgotten an inode.
    pub fn forget(&self, home: GroupId, ino: InodeId) {
        if let Some(lent) = self.groups.read().get(&home) {
            lent.change(|book| book.attrs.remove(&key_inode(ino).0));
        }
    }

    /// True if all that is lent still holds: an answer that was computed before this was asked may be given.
    pub fn is_settled(&self) -> bool {
        // The books first: who takes marks out of them is telling before that shows.
        self.groups.read().iter().all(|(group, lent)| lent.holds(self.cache.usable(*group)))
            && self.telling.load(Ordering::Acquire) == 0
            && self.untold.load(Ordering::Acquire) == 0
    }

    /// Waits until that is so, or makes it so.
    pub async fn settle(self: &Arc<Self>) {
        if self.is_settled() {
            return;
        }
        let now = tokio::time::Instant::now;
        let until = now() + STREAM_PATIENCE;
        let groups: Vec<_> = self.groups.read().iter().map(|(group, lent)| (*group, lent.clone())).collect();
        for (group, lent) in groups {
            while !lent.holds(self.cache.usable(group)) {
                if !lent.waits_for(self.cache.stream(group), self.cache.usable(group)) || now() >= until {
                    self.take_back_all(&lent);
                    break;
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
        let given = self.queue.lock().turn;
        while self.telling.load(Ordering::Acquire) > 0 || self.is_untold(given) {
            let progress = self.progress.notified();
            if self.telling.load(Ordering::Acquire) > 0 || self.is_untold(given) {
                let _ = tokio::time::timeout(PAUSE, progress).await;
            }
        }
    }

    /// True if something up to this turn must be waited for. Sees to it that what is held up holds up nothing else.
    fn is_untold(self: &Arc<Self>, given: u64) -> bool {
        let mut queue = self.queue.lock();
        if queue.closed || queue.first().is_none_or(|first| first > given) {
            return false;
        }
        let held_up = queue.going.iter().find(|(_, since)| since.elapsed() >= TELL_PATIENCE).map(|(turn, _)| *turn);
        let Some(turn) = held_up else { return true };
        if queue.held_up >= HELD_UP_MAX || self.start_thread().is_err() {
            return false;
        }
        tracing::debug!("the kernel is slow to take a notification");
        queue.going.remove(&turn);
        queue.held_up += 1;
        self.untold.fetch_sub(1, Ordering::AcqRel);
        queue.first().is_some_and(|first| first <= given)
    }

    fn lent(&self, group: GroupId) -> Arc<Lent> {
        if let Some(lent) = self.groups.read().get(&group) {
            return lent.clone();
        }
        self.groups.write().entry(group).or_default().clone()
    }

    fn seconds(&self) -> u32 {
        u32::try_from(self.started.elapsed().as_secs()).unwrap_or(u32::MAX)
    }

    fn keys_changed(&self, group: GroupId, keys: &[Key]) {
        let lent = self.groups.read().get(&group).cloned();
        let Some(lent) = lent else { return };
        let taken = lent.change(|book| {
            let marks: Vec<Mark> = keys.iter().filter_map(|key| book.attrs.remove(&key.0)).collect();
            let names = keys.iter().any(|key| book.names.contains(&key.0));
            self.take(marks, names)
        });
        self.tell_taken(&taken);
    }

    /// All that is lent of a group is void.
    fn take_back_all(&self, lent: &Lent) {
        let taken = lent.change(|book| {
            book.from = None;
            let marks = std::mem::take(&mut book.attrs).into_values();
            // Too many to be told here.
            let marks = marks.map(|mark| Mark { is_file: true, ..mark }).collect();
            self.take(marks, !book.names.is_empty())
        });
        self.tell_taken(&taken);
    }

    /// What is taken out of a book, while it is locked: from the moment on that the book shows it no more, answers wait.
    fn take(&self, marks: Vec<Mark>, names: bool) -> Taken {
        let (files, others): (Vec<Mark>, Vec<Mark>) = marks.into_iter().partition(|mark| mark.is_file);
        if !files.is_empty() {
            let mut queue = self.queue.lock();
            files.iter().for_each(|mark| queue.put(mark.number, AGAIN_FIRST));
            self.untold.fetch_add(files.len(), Ordering::AcqRel);
            drop(queue);
            self.queued.notify_one();
        }
        let taken = Taken { numbers: others.into_iter().map(|mark| mark.number).collect(), names };
        if taken.is_any() {
            self.telling.fetch_add(1, Ordering::AcqRel);
        }
        taken
    }

    fn tell_taken(&self, taken: &Taken) {
        if !taken.is_any() {
            return;
        }
        if taken.names {
            self.take_back_names();
        }
        for &number in &taken.numbers {
            if !self.tell(number) {
                self.tell_again(Again { number, due: Instant::now() + AGAIN_FIRST, pause: AGAIN_FIRST });
            }
        }
        self.telling.fetch_sub(1, Ordering::AcqRel);
        self.progress.notify_waiters();
    }

    /// Names of all groups go at once.
    fn take_back_names(&self) {
        let groups: Vec<_> = self.groups.read().values().cloned().collect();
        for lent in groups {
            lent.change(|book| book.names.clear());
        }
        let Some(device) = self.device.get() else { return };
        self.told[1].fetch_add(1, Ordering::Relaxed);
        if let Err(error) = device.forget_names() {
            tracing::debug!(%error, "the kernel was not told of changed names");
        }
    }

    /// False if the kernel does not know it.
    fn tell(&self, number: u64) -> bool {
        let Some(device) = self.device.get() else { return true };
        self.told[0].fetch_add(1, Ordering::Relaxed);
        device.forget_attributes(number).unwrap_or_else(|error| {
            tracing::debug!(number, %error, "the kernel was not told of a change");
            true
        })
    }

    fn tell_again(&self, again: Again) {
        let mut queue = self.queue.lock();
        if queue.again.len() < AGAIN_MAX {
            queue.again.push(again);
        }
        drop(queue);
        self.queued.notify_one();
    }

    /// The thread.
    fn run(&self) {
        let mut swept = Instant::now();
        while let Some(item) = self.next_item(swept) {
            if let Some(Item { turn, number, pause }) = item {
                if !self.tell(number) && pause <= AGAIN_LAST {
                    self.tell_again(Again { number, due: Instant::now() + pause, pause });
                }
                if !self.has_told(turn) {
                    return;
                }
            }
            if swept.elapsed() >= SWEEP_INTERVAL {
                swept = Instant::now();
                self.sweep();
            }
        }
    }

    /// What to tell next, or nothing for now; `None` at the end.
    fn next_item(&self, swept: Instant) -> Option<Option<Item>> {
        let mut queue = self.queue.lock();
        if queue.waiting.is_empty() && !queue.closed {
            let next = queue.again.iter().map(|again| again.due).min();
            let until = (swept + SWEEP_INTERVAL).min(next.unwrap_or(swept + SWEEP_INTERVAL));
            self.queued.wait_until(&mut queue, until);
        }
        if queue.closed {
            return None;
        }
        let now = Instant::now();
        let (due, later): (Vec<Again>, Vec<Again>) = queue.again.drain(..).partition(|again| again.due <= now);
        queue.again = later;
        self.untold.fetch_add(due.len(), Ordering::AcqRel);
        due.iter().for_each(|again| queue.put(again.number, again.pause * 10));
        let item = queue.waiting.pop_front();
        if let Some(item) = item {
            queue.going.insert(item.turn, now);
        }
        Some(item)
    }

    /// False if that took so long that another thread is at work now.
    fn has_told(&self, turn: u64) -> bool {
        let mut queue = self.queue.lock();
        let in_time = queue.going.remove(&turn).is_some();
        if in_time {
            self.untold.fetch_sub(1, Ordering::AcqRel);
            drop(queue);
            self.progress.notify_waiters();
        } else {
            queue.held_up -= 1;
        }
        in_time
    }

    fn sweep(&self) {
        let now = self.seconds();
        let groups: Vec<_> = self.groups.read().iter().map(|(group, lent)| (*group, lent.clone())).collect();
        for (group, lent) in groups {
            if !lent.holds(self.cache.usable(group)) {
                self.take_back_all(&lent);
            }
            lent.change(|book| book.attrs.retain(|_, mark| mark.since.saturating_add(MARK_SECONDS) > now));
        }
    }
}

impl Lent {
    /// Changes the book and keeps the count.
    fn change<T>(&self, change: impl FnOnce(&mut Book) -> T) -> T {
        let mut book = self.book.lock();
        let result = change(&mut book);
        self.count.store(book.attrs.len() + book.names.len(), Ordering::Release);
        result
    }

    /// True if nothing is lent, or it is lent from the stream that may answer now.
    fn holds(&self, usable: Option<Usable>) -> bool {
        self.count.load(Ordering::Acquire) == 0 || {
            let book = self.book.lock();
            (book.attrs.is_empty() && book.names.is_empty()) || usable.is_some_and(|usable| book.is_within(usable))
        }
    }

    /// True if it may hold again in a moment: the stream is the lender's, and may not answer yet. For an effect that was seen
    /// elsewhere nobody waits here: it may come from far away.
    fn waits_for(&self, stream: Option<Epoch>, usable: Option<Usable>) -> bool {
        stream.is_some() && usable.is_none() && self.book.lock().from.map(|from| from.epoch) == stream
    }

    fn mark_attr(&self, usable: Usable, key: u64, mark: Mark) -> bool {
        self.change(|book| {
            let is_new = match book.attrs.get(&key) {
                // The kernel may know one inode by two numbers; it is lent under one.
                Some(known) if known.number != mark.number => return false,
                known => known.is_none(),
            };
            let may = book.may_lend(usable, usize::from(is_new));
            if may {
                book.attrs.insert(key, mark);
            }
            may
        })
    }

    fn mark_name(&self, usable: Usable, name: u64, home: u64) -> bool {
        self.change(|book| {
            let may = book.may_lend(usable, 2);
            if may {
                book.names.extend([name, home]);
            }
            may
        })
    }
}

impl Book {
    fn may_lend(&mut self, usable: Usable, more: usize) -> bool {
        let lent = self.attrs.len() + self.names.len();
        if lent == 0 {
            self.from = Some(usable);
        }
        let may = self.is_within(usable) && lent + more <= LENT_MAX;
        if may {
            // What holds under the lower floor need not hold under the higher one.
            self.from = Some(usable);
        }
        may
    }

    fn is_within(&self, usable: Usable) -> bool {
        self.from.is_some_and(|from| from.epoch == usable.epoch && from.floor >= usable.floor)
    }
}

/// What the cache calls; it must not keep the mount alive.
struct Listener(Weak<KernelCaches>);

impl Borrower for Listener {
    fn keys_changed(&self, group: GroupId, keys: &[Key]) {
        if let Some(caches) = self.0.upgrade() {
            caches.keys_changed(group, keys);
        }
    }

    fn group_void(&self, group: GroupId) {
        let Some(caches) = self.0.upgrade() else { return };
        let lent = caches.groups.read().get(&group).cloned();
        if let Some(lent) = lent {
            caches.take_back_all(&lent);
        }
    }
}

#[cfg(test)]
#[path = "lent_tests.rs"]
mod tests;
