//! The lab's world: virtual time, one queue of events, machines whose CPUs, disks and links take as long as was measured.
//!
//! What replicas decide is decided by the shipped cores ([`member`]); every message travels in its wire encoding. What a
//! node's threads cost is the cost model ([`crate::costs`]): a network thread, a thread per replica and a log thread per
//! node, on as many CPUs as the machine has; one disk flush at a time, and what is written meanwhile rides on the next.

mod cpu;
mod member;
mod mount;
mod nodes;
mod setup;
mod traffic;

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};

use bytes::Bytes;
use multicast::Time;
use multicast::ids::{GroupId, ReplicaId};

use self::cpu::{Machines, ThreadId, Wake};
use self::member::Round;
pub(crate) use self::member::{Input, Link, Member, Ticket};
pub(crate) use self::mount::root;
use self::mount::{Client, Dirs, Lock, Mount};
use crate::costs::Calibration;
use crate::distances::Distances;
use crate::error::{Error, Result};
use crate::random::Random;
use crate::spec::{Fault, Point};
use crate::stats::{Outcome, Part, Recorder};

/// A microsecond.
const US: u64 = 1_000;
/// A millisecond.
const MS: u64 = 1_000_000;
/// Where clocks start.
const EPOCH_NS: u64 = 1_700_000_000_000_000_000;
/// How long the cluster may take until all directories are made.
const SETUP_MS_MAX: u64 = 600_000;
/// After a sleep the end of one operation and the beginning of the next one find nothing in the processor's caches.
const COLD_JOBS: u32 = 2;
const HOUSEKEEP_NS: u64 = 300 * MS;
const SWEEP_NS: u64 = 50 * MS;
/// When the fault comes and how long a cut lasts, in measured time.
pub const FAULT_AT_MS: u64 = 10_000;
/// See [`FAULT_AT_MS`].
pub const CUT_MS: u64 = 30_000;

/// Either end of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum End {
    /// A node, by its place in the list.
    Node(usize),
    /// A mount.
    Mount(usize),
}

/// What one frame batch carries.
pub(crate) enum Load {
    /// From replica to replica: sender, receiver, message.
    Peer(Vec<((GroupId, ReplicaId), usize, Bytes)>),
    /// A request, and whether it only reads.
    Request(Bytes, bool),
    /// Replies and events.
    Told(Vec<Bytes>),
}

pub(crate) struct Frame {
    from: End,
    to: End,
    load: Load,
    /// The sender's thread, if nothing is between it and the receiver.
    waker: Option<ThreadId>,
}

/// What a thread does.
pub(crate) enum Job {
    /// Takes a batch of frames in.
    Arrived(Box<Frame>),
    /// Sends what a replica said.
    Post(usize, Box<Round>),
    /// A replica's turn.
    Turn(usize),
    /// A node's log is written; then it is flushed.
    Log(usize),
    /// The program, the kernel and the mount's threads towards it: requests that memory answers.
    Fuse(usize),
    /// … and those that the program does not wait for: how many, and whether the kernel is told of a change.
    Late(u32, bool),
    /// A mount asks a node.
    Call(usize),
    /// The emulated network holds a batch of frames.
    Hold,
}

impl Job {
    /// Only its own thread works on it: others go on before it is through, and it may have the next job at once. The kernel's
    /// requests are a program and a thread of the mount that take turns, and wait for each other.
    fn is_alone(&self) -> bool {
        matches!(self, Job::Arrived(_) | Job::Post(..) | Job::Turn(_) | Job::Log(_) | Job::Call(_))
    }

    /// Whose CPU it takes.
    fn part(&self) -> Part {
        match self {
            Job::Arrived(frame) => match frame.to {
                End::Node(_) => Part::NodeNetwork,
                End::Mount(_) => Part::MountNetwork,
            },
            Job::Post(..) => Part::NodeNetwork,
            Job::Turn(_) => Part::Replica,
            Job::Log(_) => Part::Log,
            Job::Fuse(_) | Job::Late(..) => Part::Kernel,
            Job::Call(_) => Part::MountNetwork,
            Job::Hold => Part::Emulation,
        }
    }
}

pub(crate) enum Event {
    /// What a thread's job is for is done.
    Done(ThreadId, Job),
    /// Its thread is free.
    Finished {
        thread: ThreadId,
        stays: bool,
    },
    Arrive(Box<Frame>),
    Leave(usize, Box<Round>),
    Flushed(usize),
    /// A replica's thread has flushed by itself.
    FlushedHere(usize),
    Timer(usize),
    Begin(usize),
    Again(usize, u64),
    Sweep,
    Housekeep,
    Fault,
    Heal,
    Measure,
}

struct Scheduled {
    at: u64,
    number: u64,
    event: Event,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Scheduled {}

impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Scheduled {
    /// The earliest is the greatest: the heap gives out its greatest.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.number).cmp(&(self.at, self.number))
    }
}

/// A node's process.
pub(crate) struct Node {
    id: ReplicaId,
    region: usize,
    up: bool,
    net: ThreadId,
    log: ThreadId,
    members: Vec<usize>,
    /// Written and not under a flush: replica, token, bytes.
    unflushed: Vec<(usize, u64, usize)>,
    flushing: Vec<(usize, u64)>,
    is_logging: bool,
    /// Where its log is.
    disk: usize,
    /// When its last flush began.
    flushed: u64,
    /// Replicas that have mail, and are woken when the network's thread has taken all in.
    burst: BTreeSet<usize>,
}

/// What the thread of a replica is about to do.
#[derive(Clone, Copy, Default)]
struct MemberThread {
    /// It runs, or is about to.
    woken: bool,
    /// Its turn ended before everything was done.
    more: bool,
    /// Its timer.
    timer: u64,
    /// It flushes by itself: the token, and how many bytes.
    flushes: Option<(u64, usize)>,
    /// It goes on after that.
    resumed: bool,
}

/// Everything.
pub struct World<'a> {
    point: &'a Point,
    costs: &'a Calibration,
    distances: Distances,
    now: u64,
    queue: BinaryHeap<Scheduled>,
    scheduled: u64,
    random: Random,
    machines: Machines<Job>,
    /// The thread that does what happens now.
    waker: Option<ThreadId>,
    nodes: Vec<Node>,
    /// Flushes that each is at.
    disks: Vec<usize>,
    node_of: BTreeMap<ReplicaId, usize>,
    members: Vec<Member>,
    member_at: Vec<(usize, ThreadId)>,
    member_of: BTreeMap<(GroupId, ReplicaId), usize>,
    threads: Vec<MemberThread>,
    /// The voters.
    groups: BTreeMap<GroupId, Vec<ReplicaId>>,
    /// Who only follows.
    learners: BTreeMap<GroupId, Vec<ReplicaId>>,
    left_to_add: BTreeMap<GroupId, Vec<ReplicaId>>,
    /// Where an emulated network does its work, if the network is emulated.
    emulation: Option<ThreadId>,
    mounts: Vec<Mount>,
    clients: Vec<Client>,
    /// Who has a lock of a mount's kernel, and who waits for it.
    locks: BTreeMap<(usize, Lock), VecDeque<usize>>,
    dirs: Dirs,
    script: setup::Script,
    sent_until: BTreeMap<End, u64>,
    /// Jobs that a thread towards the kernel has done since it slept.
    runs: BTreeMap<ThreadId, u32>,
    arrived: BTreeMap<(End, End), u64>,
    /// Since when a region is cut off, and since when it works again.
    cut: Option<(usize, u64)>,
    stopped: Vec<bool>,
    down_since: u64,
    recorder: Recorder,
    failure: Option<Error>,
    /// Newest index that the first region's writers were told of, and when it reaches the far region.
    tokens: VecDeque<(u64, u64)>,
    token: u64,
    finished: bool,
}

/// Plays a point. `stop` is asked now and then.
///
/// # Errors
/// If the point makes no sense, or the cores broke a promise; `Ok(None)` if it was stopped.
pub fn play(point: &Point, costs: &Calibration, seed: u64, stop: &dyn Fn() -> bool) -> Result<Option<Outcome>> {
    point.check()?;
    let world = World::new(point, costs, seed)?;
    world.run(stop)
}

impl World<'_> {
    fn run(mut self, stop: &dyn Fn() -> bool) -> Result<Option<Outcome>> {
        while let Some(Scheduled { at, event, .. }) = self.queue.pop() {
            self.now = at;
            self.waker = None;
            self.happen(event);
            if let Some(failure) = self.failure.take() {
                return Err(failure);
            }
            if self.finished {
                let measured = self.point.duration_ms * MS;
                return Ok(Some(self.recorder.outcome(self.point, measured, self.scheduled)));
            }
            if self.recorder.since.is_none() && self.now > SETUP_MS_MAX * MS {
                return Err(Error::Broken("the cluster did not come up".into()));
            }
            if self.scheduled.is_multiple_of(4096) && stop() {
                return Ok(None);
            }
        }
        Err(Error::Broken("nothing happens any more".into()))
    }

    fn time(&self) -> Time {
        Time(EPOCH_NS + self.now)
    }

    pub(crate) fn after(&mut self, delay: u64, event: Event) {
        self.scheduled += 1;
        self.queue.push(Scheduled { at: self.now + delay, number: self.scheduled, event });
    }

    fn broke(&mut self, why: Error) {
        self.failure.get_or_insert(why);
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Done(thread, job) => {
                self.waker = Some(thread);
                let end = self.network_of(&job);
                self.complete(job);
                if let Some(end) = end
                    && !self.machines.has_more(thread)
                {
                    self.end_burst(end);
                }
            }
            Event::Finished { thread, stays } => {
                self.machines.end(self.now, thread, stays);
                self.dispatch(thread);
            }
            Event::Arrive(frame) => self.arrive(frame),
            Event::Leave(node, round) => {
                self.waker = Some(self.member_at[round.from].1);
                self.leave(node, round);
            }
            Event::Flushed(node) => self.flushed(node),
            Event::FlushedHere(member) => self.flushed_here(member),
            Event::Timer(member) => self.wake_for_timer(member),
            Event::Begin(client) => self.begin(client),
            Event::Again(client, attempt) => {
                if self.clients[client].attempt == attempt {
                    self.ask(client);
                }
            }
            Event::Sweep => self.sweep(),
            Event::Housekeep => {
                self.members.iter_mut().for_each(Member::housekeep);
                self.after(HOUSEKEEP_NS, Event::Housekeep);
            }
            Event::Fault => self.fault(),
            Event::Heal => self.cut = None,
            Event::Measure => self.measure(),
        }
    }

    /// Gives a thread a job, and begins whatever its machine has a CPU for.
    pub(crate) fn submit(&mut self, thread: ThreadId, job: Job) {
        self.machines.submit(self.now, thread, job, self.waker);
        self.dispatch(thread);
    }

    fn dispatch(&mut self, thread: ThreadId) {
        while let Some((thread, job, wake)) = self.machines.begin(self.now, thread) {
            let is_idle = self.machines.has_idle(thread);
            let (cost_us, job) = self.start(job, wake, is_idle);
            self.recorder.used(job.part(), cost_us);
            if wake != Wake::Awake {
                self.recorder.woke(job.part());
            }
            let stays = job.is_alone();
            let after = if stays { self.costs.machine.ahead } else { 0.0 };
            self.after(ns(cost_us * (1.0 - after)), Event::Done(thread, job));
            self.after(ns(cost_us), Event::Finished { thread, stays });
        }
    }

    /// What a job costs. A replica's turn happens at its start; everything else when it hands on.
    fn start(&mut self, job: Job, wake: Wake, is_idle: bool) -> (f64, Job) {
        let cpu = &self.costs.cpu_us;
        let waking = match wake {
            Wake::Awake => 0.0,
            Wake::Idle => cpu.wake,
            Wake::Busy => cpu.switch,
        };
        let cost = match &job {
            Job::Arrived(frame) => {
                let packet = if wake == Wake::Awake { 0.0 } else { cpu.packet };
                packet
                    + match &frame.load {
                        Load::Peer(messages) => messages.len() as f64 * cpu.frame,
                        Load::Request(_, false) => cpu.frame + cpu.request,
                        // Answered in the same go.
                        Load::Request(_, true) => 2.0 * (cpu.frame + cpu.request) + cpu.read,
                        Load::Told(messages) => messages.len() as f64 * (cpu.frame + cpu.request),
                    }
            }
            Job::Post(_, round) => {
                let peers: BTreeSet<_> = round.sends.iter().map(|((_, id), _)| id).collect();
                let mounts: BTreeSet<_> = round.tells.iter().map(|(mount, _)| mount).collect();
                let tells = round.tells.len() as f64;
                (peers.len() + mounts.len()) as f64 * cpu.packet
                    + (round.sends.len() as f64 + tells) * cpu.frame
                    + tells * cpu.request / 2.0
            }
            Job::Turn(member) => {
                let member = *member;
                // The end of a flush wakes it, and is measured with that.
                let waking = if self.threads[member].resumed { 0.0 } else { waking };
                return (self.turn(member, waking), job);
            }
            Job::Log(_) => cpu.log_batch,
            Job::Fuse(client) => {
                let run = self.runs.entry(self.clients[*client].fuse).or_default();
                *run = if wake == Wake::Awake { *run + 1 } else { 1 };
                let is_cold = *run <= COLD_JOBS;
                return (self.fuse_cost(*client, waking, is_idle, is_cold), job);
            }
            Job::Late(requests, is_told) => f64::from(*requests) * cpu.fuse + if *is_told { cpu.lent } else { 0.0 },
            // What is asked while the thread is awake goes with the rest.
            Job::Call(_) => cpu.mount_call + cpu.frame + if wake == Wake::Awake { 0.0 } else { cpu.packet },
            // Those that are due together are let go together.
            Job::Hold => return (if wake == Wake::Awake { cpu.frame } else { cpu.hold }, job),
        };
        (waking + cost, job)
    }

    fn complete(&mut self, job: Job) {
        match job {
            Job::Arrived(frame) => self.take_in(*frame),
            Job::Post(node, round) => self.post(node, *round),
            Job::Turn(member) => self.after_turn(member),
            Job::Log(node) => self.begin_flush(node),
            Job::Fuse(client) => self.served(client),
            Job::Call(client) => self.call(client),
            Job::Late(..) | Job::Hold => {}
        }
    }

    /// Whose network's thread does this.
    fn network_of(&self, job: &Job) -> Option<End> {
        match job {
            Job::Arrived(frame) => Some(frame.to),
            Job::Post(node, _) => Some(End::Node(*node)),
            Job::Call(client) => Some(End::Mount(self.clients[*client].mount)),
            _ => None,
        }
    }

    /// The network's thread of a process has nothing to do any more: what it has taken in is looked at, what it has is sent. A node's wakes
    /// its replicas after so many frames of one connection already.
    fn end_burst(&mut self, end: End) {
        match end {
            End::Node(node) => {
                let members = std::mem::take(&mut self.nodes[node].burst);
                members.into_iter().for_each(|member| self.rest(member));
            }
            End::Mount(mount) => {
                for (to, bytes, load) in std::mem::take(&mut self.mounts[mount].outbox) {
                    self.transmit(end, End::Node(to), bytes, load);
                }
            }
        }
    }

    fn region(&self, end: End) -> usize {
        match end {
            End::Node(node) => self.nodes[node].region,
            End::Mount(mount) => self.mounts[mount].region,
        }
    }

    /// Nothing gets through.
    pub(crate) fn is_cut(&self, a: usize, b: usize) -> bool {
        self.cut.is_some_and(|(region, _)| a != b && (a == region || b == region))
    }

    /// Puts a batch of frames on the way.
    pub(crate) fn transmit(&mut self, from: End, to: End, bytes: usize, load: Load) {
        let (a, b) = (self.region(from), self.region(to));
        if a != b {
            self.recorder.crosses(bytes);
        }
        if self.is_cut(a, b) {
            return;
        }
        let wire = (bytes as f64 * 8_000.0 / self.costs.network.mbit_per_s) as u64;
        let sent = self.sent_until.entry(from).or_default();
        *sent = (*sent).max(self.now) + wire;
        let mut at = *sent + ns(self.costs.network.path_us);
        let nearest = at;
        at += match self.emulation {
            None => self.distances.one_way_ns(a, b),
            Some(thread) => {
                let hold = self.distances.hold_ns(a, b);
                if hold > 0 {
                    self.submit(thread, Job::Hold);
                }
                hold + if hold > 0 { ns(self.costs.network.hold_late_us) } else { 0 }
            }
        };
        let jitter = self.distances.jitter_ns(a, b);
        if jitter > 0 {
            at += self.random.below(jitter);
        }
        let last = self.arrived.entry((from, to)).or_default();
        *last = at.max(*last);
        let delay = *last - self.now;
        let waker = self.waker.filter(|_| at == nearest);
        self.after(delay, Event::Arrive(Box::new(Frame { from, to, load, waker })));
    }

    fn arrive(&mut self, frame: Box<Frame>) {
        self.waker = frame.waker;
        let thread = match frame.to {
            End::Node(node) if !self.nodes[node].up => return,
            End::Node(node) => self.nodes[node].net,
            End::Mount(mount) => self.mounts[mount].net,
        };
        self.submit(thread, Job::Arrived(frame));
    }

    fn fault(&mut self) {
        self.down_since = self.now;
        let last = self.point.regions - 1;
        match self.point.fault {
            Fault::None => {}
            Fault::PrimaryDies => {
                let group = GroupId(1);
                let primary = self.members.iter().find(|member| member.group == group && member.ordering().is_ready());
                let id = primary.and_then(|member| member.ordering().primary());
                if let Some(&node) = id.and_then(|id| self.node_of.get(&id)) {
                    self.nodes[node].up = false;
                }
            }
            Fault::RegionCut => {
                self.cut = Some((last, self.now));
                self.after(CUT_MS * MS, Event::Heal);
            }
            Fault::RegionDies => {
                self.stopped[last] = true;
                self.nodes.iter_mut().filter(|node| node.region == last).for_each(|node| node.up = false);
            }
        }
    }

    fn measure(&mut self) {
        if self.recorder.since.is_some() {
            self.finished = true;
            return;
        }
        self.recorder.since = Some(self.now);
        self.after(self.point.duration_ms * MS, Event::Measure);
        if self.point.fault != Fault::None {
            self.after(FAULT_AT_MS * MS, Event::Fault);
            self.after(FAULT_AT_MS * MS, Event::Sweep);
        }
    }
}

fn ns(us: f64) -> u64 {
    (us * US as f64).round() as u64
}
