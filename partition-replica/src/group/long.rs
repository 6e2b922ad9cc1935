//! Reads that touch many rows: they run on threads of their own, on a snapshot, so that neither the network's thread nor the
//! replica's waits for them.
//!
//! What changes meanwhile is watched. If the answer's own keys did not, it is as good as one given now, and is noted as such.
//! Else it shows the state at which it began, and no client caches it: its event of a later state came before.

use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::Arc;

use metadata::protocol::{Event, Reply, ToClient};
use metadata::read::ReadResult;
use metadata::store::{Row, Store};
use multicast::command::Key;
use multicast::ids::SessionId;
use parking_lot::Mutex;
use replica::{Front, Watch};

use super::view::{PendingRead, View};
use crate::error::Error;
use crate::server::client::Client;
use crate::storage::state::{GroupState, StateSnapshot};

/// Rows that a read may touch where it arrives: a fraction of a millisecond.
pub const ROWS_AT_ONCE: usize = 256;
/// Threads of one replica that do nothing but long reads.
const READERS_MAX: usize = 2;
/// Orphans looked at in one go.
const ORPHAN_ROWS: usize = 1024;
/// A store that gives up after so many rows.
pub struct Limited<'s> {
    state: &'s GroupState,
    left: Cell<usize>,
    is_exhausted: Cell<bool>,
}

impl<'s> Limited<'s> {
    /// At most `rows` of `state`.
    pub fn new(state: &'s GroupState, rows: usize) -> Limited<'s> {
        Limited { state, left: Cell::new(rows), is_exhausted: Cell::new(false) }
    }

    /// True if more was asked for: the error that the reader got means nothing else.
    pub fn is_exhausted(&self) -> bool {
        self.is_exhausted.get()
    }

    fn take(&self, rows: usize) -> Result<(), metadata::Error> {
        match self.left.get().checked_sub(rows) {
            Some(left) => {
                self.left.set(left);
                Ok(())
            }
            None => {
                self.is_exhausted.set(true);
                Err(metadata::Error::StoreFailed("too many rows for one turn".into()))
            }
        }
    }
}

impl Store for Limited<'_> {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, metadata::Error> {
        self.take(1)?;
        self.state.get(key)
    }

    fn scan(&self, prefix: &[u8], start: &[u8], limit: usize) -> Result<Vec<Row>, metadata::Error> {
        let rows = self.state.scan(prefix, start, limit.min(self.left.get() + 1))?;
        self.take(rows.len())?;
        Ok(rows)
    }
}

/// The long reads of one replica.
pub struct LongReads {
    queue: Mutex<Queue>,
    waiting_max: usize,
    watches: Mutex<Vec<Arc<Mutex<Watch>>>>,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    readers: usize,
}

/// What waits for a thread.
pub enum Job {
    /// To be answered.
    Read(PendingRead),
    /// A session's stream has begun: it may have missed which orphans it holds.
    Orphans {
        /// The session.
        session: SessionId,
        /// Where its stream goes.
        client: Arc<Client>,
    },
}

impl LongReads {
    /// None; at most `waiting_max` wait for a thread.
    pub fn new(waiting_max: usize) -> LongReads {
        LongReads { queue: Mutex::default(), waiting_max, watches: Mutex::default() }
    }

    /// Queues a job if there is room.
    pub fn push(&self, job: impl FnOnce() -> Job) -> bool {
        let mut queue = self.queue.lock();
        let has_room = queue.jobs.len() < self.waiting_max;
        if has_room {
            queue.jobs.push_back(job());
        }
        has_room
    }

    /// The next state differs in these keys. Called while the view moves on.
    pub fn note(&self, keys: &[Key]) {
        for watch in &*self.watches.lock() {
            watch.lock().note(keys);
        }
    }

    /// The next state may differ in any key.
    pub fn note_all(&self) {
        for watch in &*self.watches.lock() {
            watch.lock().note_all();
        }
    }

    fn watch(&self) -> Arc<Mutex<Watch>> {
        let watch = Arc::default();
        self.watches.lock().push(Arc::clone(&watch));
        watch
    }

    fn forget(&self, watch: &Arc<Mutex<Watch>>) {
        self.watches.lock().retain(|known| !Arc::ptr_eq(known, watch));
    }

    /// How many readers should be started now; they count as running.
    fn wanted(&self) -> usize {
        let mut queue = self.queue.lock();
        let wanted = queue.jobs.len().min(READERS_MAX.saturating_sub(queue.readers));
        queue.readers += wanted;
        wanted
    }

    /// The next job for a running reader; without one it ends.
    fn next(&self) -> Option<Job> {
        let mut queue = self.queue.lock();
        let next = queue.jobs.pop_front();
        if next.is_none() {
            queue.readers -= 1;
        }
        next
    }
}

/// A long read under way.
pub struct LongRead<'v> {
    read: PendingRead,
    snapshot: StateSnapshot<'v>,
    front: Front,
    watch: Arc<Mutex<Watch>>,
}

impl View {
    /// Lets threads serve what waits for them. Called on the network's runtime.
    pub fn start_readers(self: &Arc<View>) {
        for _ in 0..self.long.wanted() {
            let view = self.clone();
            tokio::task::spawn_blocking(move || {
                while let Some(job) = view.long.next() {
                    match job {
                        Job::Read(read) => view.serve_long(read),
                        Job::Orphans { session, client } => view.tell_orphans(session, &client),
                    }
                }
            });
        }
    }

    fn serve_long(&self, read: PendingRead) {
        if read.ticket.client().is_cut_off() {
            return;
        }
        if let Some(long) = self.begin_long(read) {
            let result = metadata::answer::read(&long.snapshot, self.group(), &long.read.op);
            self.end_long(long, result);
        }
    }

    /// Tells a session which orphans it holds. Of those that come later its stream tells.
    fn tell_orphans(&self, session: SessionId, client: &Client) {
        let (index, snapshot) = {
            let front = self.lock_front();
            match self.state().snapshot() {
                Ok(snapshot) => (front.applied, snapshot),
                Err(error) => return self.fail_orphans(error),
            }
        };
        let mut after = None;
        while !client.is_cut_off() {
            match metadata::answer::orphans_held(&snapshot, session, after, ORPHAN_ROWS) {
                Ok((orphans, more)) => {
                    if !orphans.is_empty() {
                        let event = Event { orphans, ..Event::quiet(self.group(), index) };
                        client.push(&ToClient::Event(event));
                    }
                    after = more;
                }
                Err(error) => return self.fail_orphans(Error::of_store(&error)),
            }
            if after.is_none() {
                return;
            }
        }
    }

    fn fail_orphans(&self, error: Error) {
        let failed: crate::Result<()> = self.state().noted(Err(error));
        if let Err(error) = failed {
            tracing::error!(group = %self.group(), %error, "orphans not told");
        }
    }

    /// Takes a snapshot for it, or parks it.
    pub fn begin_long(&self, read: PendingRead) -> Option<LongRead<'_>> {
        let front = self.lock_front();
        if let Some(refusal) = front.refusal(self.group()) {
            read.ticket.reply(refusal);
            return None;
        }
        if read.deadline <= self.now() {
            read.ticket.reply(Reply::Behind { applied: front.applied });
            return None;
        }
        if front.holds_back(&read, &read.op.keys()) {
            self.park_again(read, &front);
            return None;
        }
        let snapshot = match self.state().snapshot() {
            Ok(snapshot) => snapshot,
            Err(error) => {
                self.fail(read.ticket, error);
                return None;
            }
        };
        Some(LongRead { read, snapshot, front: front.clone(), watch: self.long.watch() })
    }

    fn park_again(&self, read: PendingRead, front: &Front) {
        self.park(read, front);
        // Its deadline may be the first.
        self.progress.notify_one();
    }

    /// Answers.
    pub fn end_long(&self, long: LongRead<'_>, result: Result<ReadResult, metadata::Error>) {
        let LongRead { read, snapshot, front: before, watch } = long;
        drop(snapshot);
        let now = self.lock_front();
        self.long.forget(&watch);
        let result = match result {
            Ok(result) => result,
            Err(error) => return self.fail(read.ticket, Error::of_store(&error)),
        };
        let watch = watch.lock();
        let keys = read.op.keys();
        let verdict = read.conclude(self.group(), (&before, &now), |key| watch.is_changed(key), keys, result);
        if let Some(read) = self.settle(read, &now, verdict) {
            self.park_again(read, &now);
        }
    }
}
