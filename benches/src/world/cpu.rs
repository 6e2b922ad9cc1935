//! Machines: a number of CPUs, threads with queues of jobs, first come first served.

use std::collections::VecDeque;

/// So long a thread keeps its CPU while others wait for one: what Linux grants on two CPUs (`base_slice_ns`: 0.7 ms, and as much
/// for each time that one can halve their number).
const SLICE_NS: u64 = 1_400_000;

/// A thread's number.
pub type ThreadId = usize;

/// What it takes until a thread runs its next job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// It runs already.
    Awake,
    /// It sleeps, and so does a processor.
    Idle,
    /// It sleeps; a processor that is busy comes to it.
    Busy,
}

struct Machine {
    idle: usize,
    ready: VecDeque<ThreadId>,
}

struct Thread<J> {
    machine: usize,
    /// Jobs, each with what waking the thread for it takes.
    jobs: VecDeque<(J, Wake)>,
    is_running: bool,
    is_ready: bool,
    /// Since when it has had a CPU that it keeps for its next job.
    runs_since: Option<u64>,
}

/// All machines. A thread runs one job at a time; a machine as many threads as it has CPUs.
pub struct Machines<J> {
    machines: Vec<Machine>,
    threads: Vec<Thread<J>>,
}

impl<J> Machines<J> {
    /// None yet.
    pub fn new() -> Machines<J> {
        Machines { machines: Vec::new(), threads: Vec::new() }
    }

    /// Another machine.
    pub fn add_machine(&mut self, cpus: usize) -> usize {
        self.machines.push(Machine { idle: cpus, ready: VecDeque::new() });
        self.machines.len() - 1
    }

    /// Another thread.
    pub fn add_thread(&mut self, machine: usize) -> ThreadId {
        self.threads.push(Thread {
            machine,
            jobs: VecDeque::new(),
            is_running: false,
            is_ready: false,
            runs_since: None,
        });
        self.threads.len() - 1
    }

    /// Gives a thread something to do.
    pub fn submit(&mut self, thread: ThreadId, job: J) {
        let found = &mut self.threads[thread];
        let machine = &self.machines[found.machine];
        let wake = match found.is_running || !found.jobs.is_empty() {
            true => Wake::Awake,
            false if machine.idle > machine.ready.len() => Wake::Idle,
            false => Wake::Busy,
        };
        found.jobs.push_back((job, wake));
        if !found.is_running && !found.is_ready {
            found.is_ready = true;
            self.machines[found.machine].ready.push_back(thread);
        }
    }

    /// True if a CPU of the thread's machine has nothing to do.
    pub fn has_idle(&self, thread: ThreadId) -> bool {
        self.machines[self.threads[thread].machine].idle > 0
    }

    /// The next job that a CPU of the thread's machine can begin: thread, job, whether the thread was asleep.
    pub fn begin(&mut self, now: u64, thread: ThreadId) -> Option<(ThreadId, J, Wake)> {
        let machine = &mut self.machines[self.threads[thread].machine];
        if machine.idle == 0 {
            return None;
        }
        let next = machine.ready.pop_front()?;
        let found = &mut self.threads[next];
        found.is_ready = false;
        let (job, wake) = found.jobs.pop_front()?;
        found.is_running = true;
        found.runs_since.get_or_insert(now);
        machine.idle -= 1;
        Some((next, job, wake))
    }

    /// The thread has done its job. It goes on with its next one, unless others have waited for long.
    /// `stays`: it has not slept in between, as one does that takes turns with a program.
    pub fn end(&mut self, now: u64, thread: ThreadId, stays: bool) {
        let found = &mut self.threads[thread];
        found.is_running = false;
        let machine = &mut self.machines[found.machine];
        machine.idle += 1;
        let has_more = !found.jobs.is_empty();
        found.runs_since = found.runs_since.filter(|since| has_more && stays && now - since < SLICE_NS);
        if has_more {
            found.is_ready = true;
            if found.runs_since.is_some() { machine.ready.push_front(thread) } else { machine.ready.push_back(thread) }
        }
    }
}
