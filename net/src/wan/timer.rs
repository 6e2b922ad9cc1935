//! What is due when: one thread, asleep on a timer of the kernel until the earliest entry.

use std::{
    cmp::Ordering,
    collections::BinaryHeap,
    io,
    os::fd::OwnedFd,
    sync::{Arc, OnceLock, Weak},
    thread,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};

/// Entries due this soon after the thread has woken are run with the others: saves wake-ups under load.
pub(crate) const SLACK: Duration = Duration::from_micros(30);
/// More than this is dropped, like a router's full queue.
const BYTES_MAX: usize = 64 << 20;

/// "Nice" value of the thread.
const PRIORITY: i32 = -15;

/// Something to do later.
pub(crate) trait Job: Send {
    /// Does it.
    fn run(self: Box<Self>);
    /// What it counts for in the queue's bound.
    fn len_bytes(&self) -> usize;
}

/// Jobs by due time.
pub(crate) struct DelayQueue {
    state: Mutex<State>,
    timer: OnceLock<Option<Arc<OwnedFd>>>,
    this: Weak<DelayQueue>,
}

#[derive(Default)]
struct State {
    heap: BinaryHeap<Entry>,
    bytes: usize,
    sequence: u64,
    armed: Option<Instant>,
}

struct Entry {
    due: Instant,
    /// Keeps the order of entries that are due together.
    sequence: u64,
    job: Box<dyn Job>,
}

impl DelayQueue {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new_cyclic(|this| DelayQueue { state: Mutex::default(), timer: OnceLock::new(), this: this.clone() })
    }

    /// Runs `job` at `due`, on the queue's own thread; false if the queue is full and the job was dropped.
    pub(crate) fn schedule(&self, due: Instant, job: Box<dyn Job>) -> bool {
        let Some(timer) = self.timer.get_or_init(|| self.start()) else {
            // No timer to be had: late is better than never.
            job.run();
            return true;
        };
        let mut state = self.state.lock();
        let bytes = job.len_bytes();
        if state.bytes + bytes > BYTES_MAX {
            return false;
        }
        state.bytes += bytes;
        state.sequence += 1;
        let sequence = state.sequence;
        state.heap.push(Entry { due, sequence, job });
        if state.armed.is_none_or(|armed| due < armed) {
            state.armed = Some(due);
            arm(timer, due);
        }
        true
    }

    fn start(&self) -> Option<Arc<OwnedFd>> {
        let timer = rustix::time::timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC);
        let timer = Arc::new(timer.inspect_err(|error| tracing::error!(%error, "no timer for delays")).ok()?);
        let (queue, descriptor) = (self.this.clone(), timer.clone());
        let spawned = thread::Builder::new().name("wan-delay".into()).spawn(move || run(&queue, &descriptor));
        spawned.inspect_err(|error| tracing::error!(%error, "no thread for delays")).ok().map(|_| timer)
    }

    /// Takes what is due and arms the timer for the rest.
    fn take_due(&self, timer: &OwnedFd, due: &mut Vec<Box<dyn Job>>) {
        let horizon = Instant::now() + SLACK;
        let mut state = self.state.lock();
        while state.heap.peek().is_some_and(|entry| entry.due <= horizon) {
            let Some(entry) = state.heap.pop() else { break };
            state.bytes -= entry.job.len_bytes();
            due.push(entry.job);
        }
        state.armed = state.heap.peek().map(|entry| entry.due);
        if let Some(next) = state.armed {
            arm(timer, next);
        }
    }
}

impl Drop for DelayQueue {
    fn drop(&mut self) {
        // Lets the thread see that the queue is gone.
        if let Some(Some(timer)) = self.timer.get() {
            arm(timer, Instant::now());
        }
    }
}

impl std::fmt::Debug for DelayQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "DelayQueue({} held)", self.state.lock().heap.len())
    }
}

fn run(queue: &Weak<DelayQueue>, timer: &OwnedFd) {
    // A real network does not wait for a processor: go first where we are privileged.
    let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), PRIORITY);
    let (mut expirations, mut due) = ([0; 8], Vec::new());
    loop {
        match rustix::io::read(timer, &mut expirations) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return tracing::error!(error = %io::Error::from(error), "timer for delays failed"),
        }
        let Some(queue) = queue.upgrade() else { return };
        queue.take_due(timer, &mut due);
        due.drain(..).for_each(|job| job.run());
    }
}

fn arm(timer: &OwnedFd, due: Instant) {
    // Zero would disarm.
    let wait = due.saturating_duration_since(Instant::now()).max(Duration::from_nanos(1));
    let value = Timespec { tv_sec: wait.as_secs() as i64, tv_nsec: i64::from(wait.subsec_nanos()) };
    let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: value };
    if let Err(error) = rustix::time::timerfd_settime(timer, TimerfdTimerFlags::empty(), &once) {
        tracing::error!(%error, "timer for delays failed");
    }
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    /// The heap gives the greatest first, which is to be the earliest.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.due, other.sequence).cmp(&(self.due, self.sequence))
    }
}
