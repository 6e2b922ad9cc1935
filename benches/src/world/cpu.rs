//! Machines: a number of CPUs, threads with queues of jobs, first come first served.
//!
//! Whoever is ready gets the next CPU that is free. Not so on a machine that *packs*: kernels made for virtual machines that share
//! their host's processors put a thread on the CPU of whoever wakes it, as long as that one is not busy enough, though another
//! one sleeps. Else it stays where it was. There each CPU has a queue of its own, and only that the kernel compares
//! them now and then brings threads apart again.

use std::collections::VecDeque;

/// So long a thread keeps its CPU while others wait for one: what Linux grants on two CPUs (`base_slice_ns`: 0.7 ms, and as much
/// for each time that one can halve their number).
const SLICE_NS: u64 = 1_400_000;
/// What has been done counts half after so long, as in Linux (`PELT`).
const HALF_LIFE_NS: f64 = 32e6;

/// So often CPUs' queues are compared, as with each tick of Linux (`CONFIG_HZ=250`).
const BALANCE_NS: u64 = 4_000_000;

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

/// CPUs that share a queue.
struct Queue {
    idle: usize,
    ready: VecDeque<ThreadId>,
}

impl Queue {
    /// A CPU is free for one more.
    fn has_room(&self) -> bool {
        self.idle > self.ready.len()
    }
}

struct Machine {
    queues: Vec<Queue>,
    /// When the queues were compared.
    balanced: u64,
}

impl Machine {
    /// Now and then an idle CPU takes over a half of what waits for another one: returns which one. Unlike a tick, this comes with the
    /// first thread that waits after a pause.
    fn balance(&mut self, now: u64) -> Option<usize> {
        if now - self.balanced < BALANCE_NS {
            return None;
        }
        let to = self.queues.iter().position(Queue::has_room)?;
        let from = self.queues.iter().position(|queue| !queue.ready.is_empty())?;
        self.balanced = now;
        let keeps = self.queues[from].ready.len() / 2;
        self.queues[to].ready = self.queues[from].ready.split_off(keeps);
        Some(to)
    }
}

struct Thread<J> {
    machine: usize,
    /// Where it ran last, or waits.
    queue: usize,
    /// Jobs, each with what waking the thread for it takes.
    jobs: VecDeque<(J, Wake)>,
    is_running: bool,
    is_ready: bool,
    /// Since when it has had a CPU that it keeps for its next job.
    runs_since: Option<u64>,
    /// The share of one CPU that it has used of late, when that was, and since when it runs.
    used: (f64, u64),
}

impl<J> Thread<J> {
    /// The share of one CPU that it uses.
    fn load(&self, now: u64) -> f64 {
        let (share, at) = self.used;
        let left = 0.5_f64.powf(now.saturating_sub(at) as f64 / HALF_LIFE_NS);
        share * left + if self.is_running { 1.0 - left } else { 0.0 }
    }
}

/// All machines. A thread runs one job at a time; a machine as many threads as it has CPUs.
pub struct Machines<J> {
    machines: Vec<Machine>,
    threads: Vec<Thread<J>>,
    packs: f64,
}

impl<J> Machines<J> {
    /// None yet. `packs`: the share of a CPU up to which threads are left on it though another one is idle.
    pub fn new(packs: f64) -> Machines<J> {
        Machines { machines: Vec::new(), threads: Vec::new(), packs }
    }

    /// Another machine.
    pub fn add_machine(&mut self, cpus: usize) -> usize {
        let (count, each) = if self.packs > 0.0 { (cpus, 1) } else { (1, cpus) };
        let queues = (0..count).map(|_| Queue { idle: each, ready: VecDeque::new() }).collect();
        self.machines.push(Machine { queues, balanced: 0 });
        self.machines.len() - 1
    }

    /// Another thread.
    pub fn add_thread(&mut self, machine: usize) -> ThreadId {
        let queue = (self.threads.len() + 1) % self.machines[machine].queues.len();
        self.threads.push(Thread {
            machine,
            queue,
            jobs: VecDeque::new(),
            is_running: false,
            is_ready: false,
            runs_since: None,
            used: (0.0, 0),
        });
        self.threads.len() - 1
    }

    /// Gives a thread something to do. `waker`: the thread that does so, unless it is a timer or a device.
    pub fn submit(&mut self, now: u64, thread: ThreadId, job: J, waker: Option<ThreadId>) {
        let found = &self.threads[thread];
        let is_awake = found.is_running || !found.jobs.is_empty();
        let (machine, queue) = (found.machine, if is_awake { found.queue } else { self.place(now, thread, waker) });
        let queues = &mut self.machines[machine].queues;
        let wake = match is_awake {
            true => Wake::Awake,
            false if queues[queue].has_room() => Wake::Idle,
            false => Wake::Busy,
        };
        let found = &mut self.threads[thread];
        found.queue = queue;
        found.jobs.push_back((job, wake));
        if !found.is_running && !found.is_ready {
            found.is_ready = true;
            queues[queue].ready.push_back(thread);
        }
    }

    /// Where a thread that is woken is to run.
    fn place(&self, now: u64, thread: ThreadId, waker: Option<ThreadId>) -> usize {
        let found = &self.threads[thread];
        let queues = &self.machines[found.machine].queues;
        if queues.len() == 1 {
            return 0;
        }
        let near = waker.map(|waker| &self.threads[waker]).filter(|waker| waker.machine == found.machine);
        let near = near.map_or(found.queue, |waker| waker.queue);
        if self.load(now, found.machine, near, thread) + found.load(now) < self.packs {
            return near;
        }
        found.queue
    }

    /// The share of a CPU that its threads use, but for one of them.
    fn load(&self, now: u64, machine: usize, queue: usize, without: ThreadId) -> f64 {
        let others = self.threads.iter().enumerate().filter(|(at, _)| *at != without).map(|(_, thread)| thread);
        let here = others.filter(|thread| thread.machine == machine && thread.queue == queue);
        here.map(|thread| thread.load(now)).sum()
    }

    /// True if a thread has something to do beside what it does now.
    pub fn has_more(&self, thread: ThreadId) -> bool {
        !self.threads[thread].jobs.is_empty()
    }

    /// True if a CPU of the thread's machine has nothing to do.
    pub fn has_idle(&self, thread: ThreadId) -> bool {
        self.machines[self.threads[thread].machine].queues.iter().any(|queue| queue.idle > 0)
    }

    /// The next job that a CPU of the thread's machine can begin: thread, job, whether the thread was asleep.
    pub fn begin(&mut self, now: u64, thread: ThreadId) -> Option<(ThreadId, J, Wake)> {
        let machine = self.threads[thread].machine;
        let (queue, next) = self.next(now, machine)?;
        let found = &mut self.threads[next];
        found.is_ready = false;
        // It may have waited for another one.
        found.queue = queue;
        let (job, wake) = found.jobs.pop_front()?;
        found.used = (found.load(now), now);
        found.is_running = true;
        found.runs_since.get_or_insert(now);
        self.machines[machine].queues[queue].idle -= 1;
        Some((next, job, wake))
    }

    /// A CPU that is free and who waits for it.
    fn next(&mut self, now: u64, machine: usize) -> Option<(usize, ThreadId)> {
        let found = &mut self.machines[machine];
        let waits = |queue: &Queue| queue.idle > 0 && !queue.ready.is_empty();
        let at = found.queues.iter().position(waits).or_else(|| found.balance(now))?;
        Some((at, found.queues[at].ready.pop_front()?))
    }

    /// The thread has done its job. It goes on with its next one, unless others have waited for long.
    /// `stays`: it has not slept in between, as one does that takes turns with a program.
    pub fn end(&mut self, now: u64, thread: ThreadId, stays: bool) {
        let found = &mut self.threads[thread];
        found.used = (found.load(now), now);
        found.is_running = false;
        let queues = &mut self.machines[found.machine].queues;
        queues[found.queue].idle += 1;
        let has_more = !found.jobs.is_empty();
        found.runs_since = found.runs_since.filter(|since| has_more && stays && now - since < SLICE_NS);
        if !has_more {
            return;
        }
        found.is_ready = true;
        if found.runs_since.is_some() {
            return queues[found.queue].ready.push_front(thread);
        }
        // One that takes turns with a program is woken again, or its time is up: where all are busy it goes where fewer wait. It does not
        // run away from whoever it has woken to a CPU that sleeps.
        let waiting = |at: &usize| queues[*at].ready.len();
        let fewest = (0..queues.len()).filter(|&at| queues[at].idle == 0).min_by_key(waiting);
        if let Some(fewest) = fewest.filter(|fewest| waiting(fewest) < waiting(&found.queue)) {
            found.queue = fewest;
        }
        queues[found.queue].ready.push_back(thread);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACKS: f64 = 0.7;

    /// Two CPUs, and a thread placed on each: the first one is at work.
    fn pair(packs: f64) -> (Machines<&'static str>, ThreadId, ThreadId) {
        let mut machines = Machines::new(packs);
        let machine = machines.add_machine(2);
        let (a, b) = (machines.add_thread(machine), machines.add_thread(machine));
        machines.submit(0, a, "first", None);
        assert_eq!(machines.begin(0, a), Some((a, "first", Wake::Idle)));
        (machines, a, b)
    }

    #[test]
    fn whoever_is_ready_gets_a_free_cpu() {
        let (mut machines, a, b) = pair(0.0);
        machines.submit(1_000, b, "second", Some(a));
        assert_eq!(machines.begin(1_000, b), Some((b, "second", Wake::Idle)));
    }

    #[test]
    fn thread_stays_with_its_waker_on_a_machine_that_packs() {
        let (mut machines, a, b) = pair(PACKS);
        machines.submit(1_000, b, "second", Some(a));
        assert_eq!(machines.begin(1_000, b), None);
        assert!(machines.has_idle(b));
        machines.end(2_000, a, false);
        assert_eq!(machines.begin(2_000, b), Some((b, "second", Wake::Busy)));
    }

    #[test]
    fn thread_stays_where_it_was_when_its_waker_has_much_to_do() {
        let (mut machines, a, b) = pair(PACKS);
        // Two half-lives: three quarters.
        let now = 2 * HALF_LIFE_NS as u64;
        machines.submit(now, b, "second", Some(a));
        assert_eq!(machines.begin(now, b), Some((b, "second", Wake::Idle)));
    }

    #[test]
    fn timer_wakes_a_thread_where_it_was() {
        let (mut machines, _, b) = pair(PACKS);
        machines.submit(1_000, b, "second", None);
        assert_eq!(machines.begin(1_000, b), Some((b, "second", Wake::Idle)));
    }

    #[test]
    fn idle_cpu_takes_over_what_has_waited_for_a_tick() {
        let (mut machines, a, b) = pair(PACKS);
        machines.submit(1_000, b, "second", Some(a));
        assert_eq!(machines.begin(BALANCE_NS - 1, b), None);
        assert_eq!(machines.begin(BALANCE_NS, b), Some((b, "second", Wake::Busy)));
        assert!(!machines.has_idle(b));
    }
}
