//! The cluster in virtual time: one queue of events, one thread, one seed.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BinaryHeap};

use bytes::Bytes;
use multicast::ids::{GroupId, Incarnation, LogIndex, ReplicaId, SessionId};

use crate::checks::ledger::Ledger;
use crate::client::Client;
use crate::clock::NodeClock;
use crate::copies::Parcel;
use crate::desk::AskId;
use crate::disk::Disk;
use crate::network::{End, Network};
use crate::operator::{Operator, new_replica};
use crate::options::{MS, Options};
use crate::planted::Bug;
use crate::replica::Replica;
use crate::rng::Rnd;
use crate::trace::Trace;
use crate::workload::Application;

/// A replica's address.
pub type Address = (GroupId, ReplicaId);

/// Why a run went wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Something happened that never may.
    Safety(String),
    /// Something did not happen that must.
    Liveness(String),
}

/// What may happen.
#[derive(Debug)]
pub enum Event {
    /// A message between replicas arrives.
    Deliver { from: Address, to: Address, bytes: Bytes },
    /// A client's attempt to connect arrives.
    Connect { client: usize, node: ReplicaId, connection: u64 },
    /// … and was answered.
    Connected { client: usize, node: ReplicaId, connection: u64 },
    /// A client's request arrives.
    ToNode { client: usize, node: ReplicaId, connection: u64, bytes: Bytes },
    /// A node's message to a client arrives.
    ToClient { client: usize, node: ReplicaId, connection: u64, bytes: Bytes },
    /// A client notices that a connection is gone.
    Lost { client: usize, node: ReplicaId, connection: u64 },
    /// A replica does what there is to do.
    Turn { node: ReplicaId, life: u64, group: GroupId },
    /// A replica's timer goes off.
    Timer { node: ReplicaId, life: u64, group: GroupId },
    /// A flush of a node's log is done.
    Flushed { node: ReplicaId, life: u64 },
    /// A replica's store is flushed.
    StoreFlushed { node: ReplicaId, life: u64, group: GroupId },
    /// A node tidies up.
    Housekeep { node: ReplicaId, life: u64 },
    /// A node's process starts.
    Start { node: ReplicaId },
    /// A node crashes.
    Crash { node: ReplicaId, life: u64 },
    /// A node that is to stop looks whether others lead.
    Stopping { node: ReplicaId, life: u64, until: u64 },
    /// An operator looks after disks.
    Maintain,
    /// A copy of a state is complete at its receiver.
    CopyArrives(Box<Parcel>),
    /// Its sender hears what became of it.
    CopySent { from: Address, life: u64, to: ReplicaId, installed: Option<LogIndex> },
    /// Some fault begins.
    Fault(FaultKind),
    /// A link works again.
    Heal { from: End, to: End },
    /// Faults are over.
    EndFaults,
    /// A client begins an operation.
    Begin { client: usize },
    /// A client's ask got no answer in time.
    TimedOut { client: usize, ask: AskId, attempt: u64 },
    /// A client tries an ask again.
    Retry { client: usize, ask: AskId, attempt: u64 },
    /// A client says that it is alive.
    KeepAlive { client: usize },
    /// Blobs are collected.
    Collect { group: GroupId },
}

/// Kinds of faults that come again and again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// Nodes crash.
    Crash,
    /// A node is frozen.
    Pause,
    /// Links are cut.
    Cut,
    /// A link is slow.
    SlowLink,
    /// A clock jumps.
    ClockJump,
    /// A client loses its connections.
    Disconnect,
    /// A disk is lost.
    Wipe,
    /// A bit of a log flips.
    FlipLog,
    /// A bit of a row flips.
    FlipRow,
    /// A disk has no room.
    FullDisk,
    /// A disk is slow.
    SlowDisk,
    /// An operator changes a group.
    Operate,
    /// A node is stopped in order.
    Stop,
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

/// One node: a process with its replicas, its disk and its clock.
pub struct Node {
    /// Its number.
    pub id: ReplicaId,
    /// Its replicas.
    pub replicas: BTreeMap<GroupId, Replica>,
    /// Its log.
    pub disk: Disk,
    /// Its clock.
    pub clock: NodeClock,
    /// Counts starts.
    pub life: u64,
    /// Its process runs.
    pub up: bool,
    /// It does nothing until then.
    pub paused_until: u64,
    /// Clients' connections.
    pub connections: BTreeMap<usize, u64>,
    /// What a flush takes, in microseconds.
    pub flush_us: u64,
    /// It has refused what is on its disk, and waits for another one.
    pub is_broken: bool,
    /// Its disk has no room until then.
    pub full_until: u64,
    /// Its disk takes its time until then.
    pub slow_until: u64,
}

/// Everything.
pub struct World {
    /// Now, in nanoseconds.
    pub now: u64,
    queue: BinaryHeap<Scheduled>,
    scheduled: u64,
    /// The world's chance.
    pub rnd: Rnd,
    /// What this run is like.
    pub options: Options,
    /// All nodes.
    pub nodes: BTreeMap<ReplicaId, Node>,
    /// All clients. The last one is the collector.
    pub clients: Vec<Client>,
    /// What operators know and have done.
    pub operator: Operator,
    /// All links.
    pub network: Network,
    /// What was written down.
    pub ledger: Ledger,
    /// Faults last.
    pub faulty: bool,
    /// The planted bug.
    pub bug: Option<Bug>,
    /// What happened.
    pub trace: Trace,
    /// Connections so far.
    pub connections: u64,
}

impl World {
    /// A cluster that is about to start.
    #[must_use]
    pub fn new(seed: u64, options: Options, bug: Option<Bug>, readable: bool) -> World {
        let mut rnd = Rnd::new(seed, 2);
        let nodes = nodes(&mut rnd, &options, bug);
        let clients = clients(seed, &options, bug);
        let operator = Operator { hosts: options.groups.clone(), ..Operator::default() };
        let mut world = World {
            now: 0,
            queue: BinaryHeap::new(),
            scheduled: 0,
            rnd,
            options,
            nodes,
            clients,
            operator,
            network: Network::default(),
            ledger: Ledger::default(),
            faulty: true,
            bug,
            trace: Trace::new(readable),
            connections: 0,
        };
        world.schedule_beginning();
        world
    }

    fn schedule_beginning(&mut self) {
        let ids: Vec<ReplicaId> = self.nodes.keys().copied().collect();
        for node in ids {
            let delay = self.rnd.below(300 * MS);
            self.after(delay, Event::Start { node });
        }
        for client in 0..self.clients.len() {
            self.after(200 * MS, Event::Begin { client });
            self.after(0, Event::KeepAlive { client });
        }
        let faults = self.options.faults.clone();
        for (kind, every) in [
            (FaultKind::Crash, faults.crash),
            (FaultKind::Pause, faults.pause),
            (FaultKind::Cut, faults.cut),
            (FaultKind::SlowLink, faults.slow_link),
            (FaultKind::ClockJump, faults.clock_jump),
            (FaultKind::Disconnect, faults.disconnect),
            (FaultKind::Wipe, faults.wipe),
            (FaultKind::FlipLog, faults.flip_log),
            (FaultKind::FlipRow, faults.flip_row),
            (FaultKind::FullDisk, faults.full_disk),
            (FaultKind::SlowDisk, faults.slow_disk),
            (FaultKind::Operate, self.options.operators.change),
            (FaultKind::Stop, self.options.operators.stop),
        ] {
            if every > 0 {
                self.after(every * MS, Event::Fault(kind));
            }
        }
        if self.options.collect_every_ms > 0 {
            let groups: Vec<GroupId> = self.options.groups.keys().copied().collect();
            for group in groups {
                self.after(self.options.collect_every_ms * MS, Event::Collect { group });
            }
        }
        self.after(0, Event::Maintain);
        self.after(self.options.faults_until_ms * MS, Event::EndFaults);
    }

    /// Lets something happen later.
    pub fn after(&mut self, delay: u64, event: Event) {
        self.scheduled += 1;
        self.queue.push(Scheduled { at: self.now + delay, number: self.scheduled, event });
    }

    /// Runs until a time, or until something is wrong.
    ///
    /// # Errors
    /// What is wrong.
    pub fn run_until(&mut self, at: u64) -> Result<(), Failure> {
        while self.queue.peek().is_some_and(|scheduled| scheduled.at <= at) {
            let Some(Scheduled { at, event, .. }) = self.queue.pop() else { break };
            self.now = at;
            if let Some(until) = self.frozen(&event) {
                self.after(until - at, event);
                continue;
            }
            self.happen(event);
            if let Some(violation) = self.ledger.violations.first() {
                return Err(Failure::Safety(violation.clone()));
            }
        }
        self.now = self.now.max(at);
        Ok(())
    }

    /// Until when the node that this event is for does nothing.
    fn frozen(&self, event: &Event) -> Option<u64> {
        let node = match event {
            Event::Deliver { to, .. } => to.1,
            Event::Connect { node, .. }
            | Event::ToNode { node, .. }
            | Event::Turn { node, .. }
            | Event::Timer { node, .. }
            | Event::Flushed { node, .. }
            | Event::StoreFlushed { node, .. }
            | Event::Stopping { node, .. }
            | Event::Housekeep { node, .. } => *node,
            Event::CopyArrives(parcel) => parcel.to,
            Event::CopySent { from, .. } => from.1,
            Event::Connected { .. }
            | Event::ToClient { .. }
            | Event::Lost { .. }
            | Event::Start { .. }
            | Event::Crash { .. }
            | Event::Maintain
            | Event::Fault(_)
            | Event::Heal { .. }
            | Event::EndFaults
            | Event::Begin { .. }
            | Event::TimedOut { .. }
            | Event::Retry { .. }
            | Event::KeepAlive { .. }
            | Event::Collect { .. } => return None,
        };
        self.nodes.get(&node).map(|node| node.paused_until).filter(|&until| until > self.now)
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Deliver { from, to, bytes } => self.deliver(from, to, &bytes),
            Event::Connect { client, node, connection } => self.connect(client, node, connection),
            Event::Connected { client, node, connection } => self.connected(client, node, connection),
            Event::ToNode { client, node, connection, bytes } => self.hear_client(client, node, connection, &bytes),
            Event::ToClient { client, node, connection, bytes } => self.hear_node(client, node, connection, &bytes),
            Event::Lost { client, node, connection } => self.lost(client, node, connection),
            Event::Turn { node, life, group } => self.turn(node, life, group),
            Event::Timer { node, life, group } => self.timer(node, life, group),
            Event::Flushed { node, life } => self.flushed(node, life),
            Event::StoreFlushed { node, life, group } => self.store_flushed(node, life, group),
            Event::Housekeep { node, life } => self.housekeep(node, life),
            Event::Start { node } => self.start(node),
            Event::Crash { node, life } => self.crash_again(node, life),
            Event::Stopping { node, life, until } => self.stopping(node, life, until),
            Event::Maintain => self.maintain(),
            Event::CopyArrives(parcel) => self.copy_arrives(*parcel),
            Event::CopySent { from, life, to, installed } => self.copy_sent(from, life, to, installed),
            Event::Fault(kind) => self.fault(kind),
            Event::Heal { from, to } => {
                self.trace.line(self.now, || format!("{from} -> {to} works again"));
                self.network.heal(from, to);
            }
            Event::EndFaults => self.end_faults(),
            Event::Begin { client } => self.begin(client),
            Event::TimedOut { client, ask, attempt } => self.timed_out(client, ask, attempt),
            Event::Retry { client, ask, attempt } => self.retry(client, ask, attempt),
            Event::KeepAlive { client } => self.keep_alive(client),
            Event::Collect { group } => self.collect(group),
        }
    }

    /// Something that never may has happened.
    pub fn violate(&mut self, what: String) {
        self.trace.line(self.now, || format!("VIOLATION {what}"));
        self.ledger.violations.push(what);
    }
}

fn nodes(rnd: &mut Rnd, options: &Options, bug: Option<Bug>) -> BTreeMap<ReplicaId, Node> {
    let mut nodes = BTreeMap::new();
    for &id in options.nodes.keys() {
        let mut replicas = BTreeMap::new();
        for (&group, _) in options.groups.iter().filter(|(_, voters)| voters.contains(&id)) {
            replicas.insert(group, new_replica(options, group, (id, Incarnation::GENESIS), rnd.next(), bug));
        }
        let drift = options.faults.drift_ppm as i64;
        let drift = rnd.range(0, 2 * options.faults.drift_ppm) as i64 - drift;
        let ahead = rnd.below(options.faults.clock_skew_ms * MS + 1);
        // It may be set back at restarts, but nothing is before the epoch.
        let clock = NodeClock::new(ahead + 1_000_000 * MS, drift);
        let flush_us = *rnd.pick(&[100, 500, 4_000]);
        let node = Node {
            id,
            replicas,
            disk: Disk::default(),
            clock,
            life: 0,
            up: false,
            paused_until: 0,
            connections: BTreeMap::new(),
            flush_us,
            is_broken: false,
            full_until: 0,
            slow_until: 0,
        };
        nodes.insert(id, node);
    }
    nodes
}

fn clients(seed: u64, options: &Options, bug: Option<Bug>) -> Vec<Client> {
    let all: Vec<GroupId> = options.groups.keys().copied().collect();
    let groups = options.groups.len() as u16;
    let count = options.clients.len() + 1;
    let client = |number: usize| {
        let mut rnd = Rnd::new(seed, 100 + number as u64);
        let session = SessionId(rnd.next());
        let operations = if number + 1 == count { 0 } else { options.operations };
        let mix = options.mix.clone();
        Client::new(number, session, rnd, operations, (&all, bug), |hands| Application::new(hands, mix.clone(), groups))
    };
    (0..count).map(client).collect()
}
