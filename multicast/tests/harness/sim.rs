//! The cluster under one seed.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::sync::Arc;

use bytes::Bytes;
use multicast::command::{Command, Key};
use multicast::core::SessionChange;
use multicast::ids::{CommandId, GroupId, Incarnation, LogIndex, ReplicaId, SessionId, VectorClock};
use multicast::{Change, Config, Decline, Limits, Message, Output, Refusal, Reply, Timing};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::Rnd;
use super::checks::{Checks, Seen};
use super::client::{Client, Mix};
use super::machine::Executed;
use super::node::{Node, Store};

pub const MS: u64 = 1_000_000;
const US: u64 = 1_000;

pub type Address = (GroupId, ReplicaId);
pub type Filter = Box<dyn FnMut(Address, Address, &Message) -> bool>;

/// What one run is like; drawn from the seed unless a test says otherwise.
#[derive(Clone, Debug)]
pub struct Options {
    pub voters: Vec<usize>,
    pub classic: bool,
    pub clients: usize,
    pub commands_per_client: u64,
    pub mix: Mix,
    /// Base one-way delay between two groups' sites and inside a group, in µs.
    pub wide_us: u64,
    pub near_us: u64,
    pub loss_per_mille: u64,
    pub duplication_per_mille: u64,
    pub reorder: bool,
    pub crash_every_ms: u64,
    pub cut_every_ms: u64,
    /// So often some group's primary is crashed or frozen.
    pub primary_every_ms: u64,
    pub faults_until_ms: u64,
    pub skew_ms: u64,
    pub log_tail_bytes: usize,
    pub batch_bytes: usize,
    /// Clients that forget to open their session in one group, per mille.
    pub forgetful_per_mille: u64,
    pub close_per_mille: u64,
    /// Every delay is its base, every sync takes a millisecond.
    pub steady: bool,
    /// Replicas of each group that are no members at first.
    pub spares: usize,
    /// So often an operator changes some group's members, or a disk is lost.
    pub operator_every_ms: u64,
    pub wipes: bool,
    pub auto_replace: bool,
    /// Logs are cut when they have more entries.
    pub log_entries_max: u64,
}

impl Options {
    pub fn draw(rnd: &mut Rnd) -> Self {
        let groups = *rnd.pick(&[1, 2, 2, 3, 3, 4]);
        let voters = (0..groups).map(|_| *rnd.pick(&[1, 3, 3, 3, 5])).collect();
        let keys = *rnd.pick(&[1, 2, 3, 8]);
        let faults = rnd.chance(850);
        Options {
            voters,
            classic: rnd.chance(150),
            clients: rnd.range(2, 6) as usize,
            commands_per_client: rnd.range(5, 30),
            mix: Mix {
                groups,
                keys,
                keys_per_group_max: rnd.range(1, keys.min(3)),
                single_per_mille: *rnd.pick(&[100, 500, 900]),
                read_per_mille: *rnd.pick(&[0, 100, 400]),
                add_per_mille: *rnd.pick(&[0, 200, 600]),
            },
            wide_us: *rnd.pick(&[200, 5_000, 40_000, 150_000]),
            near_us: *rnd.pick(&[50, 500, 10_000]),
            loss_per_mille: if faults { *rnd.pick(&[0, 10, 50, 150]) } else { 0 },
            duplication_per_mille: if faults { *rnd.pick(&[0, 20, 200]) } else { 0 },
            reorder: faults && rnd.chance(400),
            crash_every_ms: if faults { *rnd.pick(&[0, 300, 1_000, 4_000]) } else { 0 },
            cut_every_ms: if faults { *rnd.pick(&[0, 500, 3_000]) } else { 0 },
            primary_every_ms: 0,
            faults_until_ms: rnd.range(2_000, 15_000),
            skew_ms: *rnd.pick(&[0, 5, 500, 20_000]),
            log_tail_bytes: *rnd.pick(&[1, 2_000, 1 << 20]),
            batch_bytes: *rnd.pick(&[100, 2_000, 1 << 20]),
            forgetful_per_mille: *rnd.pick(&[0, 0, 300]),
            close_per_mille: *rnd.pick(&[0, 0, 300]),
            steady: false,
            spares: 0,
            operator_every_ms: 0,
            wipes: false,
            auto_replace: true,
            log_entries_max: 16 << 20,
        }
    }

    /// Nothing goes wrong.
    pub fn calm(voters: &[usize]) -> Self {
        Options {
            voters: voters.to_vec(),
            classic: false,
            clients: 0,
            commands_per_client: 0,
            mix: Mix {
                groups: voters.len() as u16,
                keys: 3,
                keys_per_group_max: 2,
                single_per_mille: 500,
                read_per_mille: 0,
                add_per_mille: 0,
            },
            wide_us: 40_000,
            near_us: 500,
            loss_per_mille: 0,
            duplication_per_mille: 0,
            reorder: false,
            crash_every_ms: 0,
            cut_every_ms: 0,
            primary_every_ms: 0,
            faults_until_ms: 0,
            skew_ms: 0,
            log_tail_bytes: 1 << 20,
            batch_bytes: 1 << 20,
            forgetful_per_mille: 0,
            close_per_mille: 0,
            steady: true,
            spares: 0,
            operator_every_ms: 0,
            wipes: false,
            auto_replace: true,
            log_entries_max: 16 << 20,
        }
    }
}

#[derive(Debug)]
pub(super) enum Happening {
    Deliver { from: Address, to: Address, bytes: Bytes },
    Drain { node: Address, life: u64 },
    Timer { node: Address, life: u64 },
    Synced { node: Address, life: u64 },
    LogRead { node: Address, life: u64, from: LogIndex, bytes_max: usize },
    Flush { node: Address },
    Crash,
    StrikePrimary,
    Restart { node: Address },
    Cut,
    Heal { from: Address, to: Address },
    HealAll,
    Step { client: usize },
    Retry { client: usize, sequence: u64 },
    RetryOpen { client: usize, group: GroupId },
    Submit { node: Address, command: Arc<Command> },
    Session { node: Address, change: SessionChange },
    Answer { client: usize, from: Address, reply: Reply, seen: VectorClock },
    Declined { client: usize, from: Address, id: CommandId, reason: Decline },
    SessionAnswer { client: usize, from: Address, result: Result<(), Decline> },
    Read { client: usize, node: Address, key: Key },
    Operate,
    Copied { from: Address, life: u64, to: Address, incarnation: Incarnation, snapshot: Bytes, store: Box<Store> },
    CopySent { from: Address, life: u64, to: ReplicaId, installed: Option<LogIndex> },
}

pub struct Sim {
    pub now: u64,
    pub rnd: Rnd,
    pub options: Options,
    queue: BinaryHeap<Reverse<(u64, u64)>>,
    happenings: BTreeMap<u64, Happening>,
    serial: u64,
    pub nodes: BTreeMap<Address, Node>,
    pub voters: BTreeMap<GroupId, Vec<ReplicaId>>,
    pub clients: Vec<Client>,
    by_session: BTreeMap<SessionId, usize>,
    pub(super) cuts: BTreeSet<(Address, Address)>,
    last_delivery: BTreeMap<(Address, Address), u64>,
    pub(super) faults: bool,
    pub checks: Checks,
    pub trace: u64,
    /// Replies as they reached no client in particular: for tests that submit by hand.
    pub replies: BTreeMap<CommandId, Reply>,
    pub replied_at: BTreeMap<CommandId, u64>,
    pub declined: BTreeMap<CommandId, Decline>,
    pub events: Vec<(Address, multicast::Event)>,
    /// Drops what it says yes to.
    pub filter: Option<Filter>,
    /// Memberships logged and states copied.
    pub changes: u64,
    pub copies: u64,
    /// All copies fail.
    pub no_copies: bool,
    /// A membership was forced: what is committed may get lost.
    pub is_forced: bool,
}

impl Sim {
    pub fn new(seed: u64, options: Options) -> Self {
        let mut rnd = Rnd::new(seed);
        let voters: BTreeMap<GroupId, Vec<ReplicaId>> = options
            .voters
            .iter()
            .enumerate()
            .map(|(group, &count)| {
                let group = group as u16;
                (GroupId(group), (0..count as u32).map(|at| ReplicaId(u32::from(group) * 10 + at + 1)).collect())
            })
            .collect();
        let mut nodes = BTreeMap::new();
        for (&group, replicas) in &voters {
            let last = replicas.last().unwrap().0;
            let spares = (1..=options.spares as u32).map(|at| ReplicaId(last + at));
            for replica in replicas.iter().copied().chain(spares) {
                let mut config = Config::new(group, replica, voters.clone());
                config.classic = options.classic;
                config.seed = rnd.next();
                config.auto_replace = options.auto_replace;
                if !replicas.contains(&replica) {
                    config.incarnation = Incarnation(rnd.next() | 1);
                }
                config.limits = Limits {
                    log_tail_bytes: options.log_tail_bytes,
                    append_batch_bytes: options.batch_bytes,
                    log_entries_max: options.log_entries_max,
                    ..Limits::default()
                };
                config.timing = Timing { return_ms: 3_000, ..Timing::default() };
                let skew = 1_000_000 * MS + rnd.below(options.skew_ms * MS + 1);
                let disk_us = *rnd.pick(&[100, 1_000, 8_000]);
                nodes.insert((group, replica), Node::new(config, skew, disk_us));
            }
        }
        let mut sim = Sim {
            now: 0,
            rnd,
            options,
            queue: BinaryHeap::new(),
            happenings: BTreeMap::new(),
            serial: 0,
            nodes,
            voters,
            clients: Vec::new(),
            by_session: BTreeMap::new(),
            cuts: BTreeSet::new(),
            last_delivery: BTreeMap::new(),
            faults: true,
            checks: Checks::default(),
            trace: 0,
            replies: BTreeMap::new(),
            replied_at: BTreeMap::new(),
            declined: BTreeMap::new(),
            events: Vec::new(),
            filter: None,
            changes: 0,
            copies: 0,
            no_copies: false,
            is_forced: false,
        };
        let addresses: Vec<Address> = sim.nodes.keys().copied().collect();
        for address in addresses {
            let delay = sim.rnd.below(300 * MS);
            sim.at(delay, Happening::Restart { node: address });
            sim.at(delay + 100 * MS, Happening::Flush { node: address });
        }
        for client in 0..sim.options.clients {
            sim.add_client(client);
        }
        let (crash, cut, until) = (sim.options.crash_every_ms, sim.options.cut_every_ms, sim.options.faults_until_ms);
        if crash > 0 {
            sim.at(crash * MS, Happening::Crash);
        }
        if cut > 0 {
            sim.at(cut * MS, Happening::Cut);
        }
        if sim.options.operator_every_ms > 0 {
            sim.at(sim.options.operator_every_ms * MS, Happening::Operate);
        }
        if sim.options.primary_every_ms > 0 {
            sim.at(sim.options.primary_every_ms * MS, Happening::StrikePrimary);
        }
        sim.at(until * MS, Happening::HealAll);
        sim
    }

    fn add_client(&mut self, client: usize) {
        let session = SessionId(self.rnd.next());
        let mut wants_open: BTreeSet<GroupId> = self.voters.keys().copied().collect();
        if self.rnd.chance(self.options.forgetful_per_mille) && wants_open.len() > 1 {
            wants_open.pop_last();
        }
        for &group in &wants_open {
            self.at(0, Happening::RetryOpen { client, group });
        }
        self.by_session.insert(session, client);
        self.clients.push(Client {
            session,
            open: BTreeSet::new(),
            wants_open,
            clock: VectorClock::new(),
            next_sequence: 1,
            outstanding: BTreeMap::new(),
            left: self.options.commands_per_client,
            reading: false,
            hints: BTreeMap::new(),
            concurrency: self.rnd.range(1, 4) as usize,
        });
        self.at(500 * MS, Happening::Step { client });
    }

    pub(super) fn at(&mut self, delay: u64, happening: Happening) {
        self.serial += 1;
        self.queue.push(Reverse((self.now + delay, self.serial)));
        self.happenings.insert(self.serial, happening);
    }

    /// One event. False if there is none.
    pub fn step(&mut self) -> bool {
        let Some(Reverse((at, serial))) = self.queue.pop() else { return false };
        let happening = self.happenings.remove(&serial).unwrap();
        self.now = self.now.max(at);
        self.trace = xxh3_64_with_seed(format!("{at} {happening:?}").as_bytes(), self.trace);
        self.happen(happening);
        true
    }

    pub fn run_until(&mut self, at: u64) {
        while self.queue.peek().is_some_and(|Reverse((due, _))| *due <= at) {
            self.step();
        }
        self.now = self.now.max(at);
    }

    pub fn run_for_ms(&mut self, duration_ms: u64) {
        self.run_until(self.now + duration_ms * MS);
    }

    /// When the node that this concerns wakes up, if it is frozen.
    fn wakes_at(&self, happening: &Happening) -> Option<u64> {
        let node = match happening {
            Happening::Deliver { to: node, .. }
            | Happening::Copied { to: node, .. }
            | Happening::CopySent { from: node, .. }
            | Happening::Drain { node, .. }
            | Happening::Timer { node, .. }
            | Happening::Synced { node, .. }
            | Happening::LogRead { node, .. }
            | Happening::Flush { node }
            | Happening::Submit { node, .. }
            | Happening::Session { node, .. } => node,
            _ => return None,
        };
        Some(self.nodes[node].frozen_until).filter(|&until| until > self.now)
    }

    fn happen(&mut self, happening: Happening) {
        if let Some(until) = self.wakes_at(&happening) {
            return self.at(until - self.now, happening);
        }
        match happening {
            Happening::Deliver { from, to, bytes } => {
                let message = Message::decode(&bytes).unwrap();
                self.on_core(to, |core, time| core.handle_message(time, from, message));
            }
            Happening::Drain { node, life } => {
                if self.nodes[&node].restarts == life {
                    self.drain(node);
                }
            }
            Happening::Timer { node, life } => {
                if self.nodes[&node].restarts == life {
                    self.nodes.get_mut(&node).unwrap().timer = None;
                    self.on_core(node, |core, time| core.handle_timeout(time));
                }
            }
            Happening::Synced { node, life } => self.synced(node, life),
            Happening::LogRead { node, life, from, bytes_max } => {
                if self.nodes[&node].restarts == life {
                    let entries = self.nodes[&node].read_log(from, bytes_max);
                    self.on_core(node, |core, time| core.handle_log_read(time, entries));
                }
            }
            Happening::Flush { node } => {
                self.nodes.get_mut(&node).unwrap().flush();
                let delay = self.rnd.range(20, 2_000) * MS;
                self.at(delay, Happening::Flush { node });
            }
            Happening::Crash => self.crash_some(),
            Happening::StrikePrimary => self.strike_primary(),
            Happening::Restart { node } => self.restart(node),
            Happening::Cut => self.cut_some(),
            Happening::Heal { from, to } => {
                self.cuts.remove(&(from, to));
            }
            Happening::HealAll => {
                self.faults = false;
                self.cuts.clear();
            }
            Happening::Step { client } => self.client_step(client),
            Happening::Retry { client, sequence } => self.client_retry(client, sequence),
            Happening::RetryOpen { client, group } => self.client_open(client, group),
            Happening::Submit { node, command } => {
                self.on_core(node, |core, time| core.handle_submit(time, command));
            }
            Happening::Session { node, change } => {
                self.on_core(node, |core, time| core.handle_session(time, change));
            }
            Happening::Answer { client, from, reply, seen } => self.client_answer(client, from, reply, &seen),
            Happening::Declined { client, from, id, reason } => self.client_declined(client, from, id, reason),
            Happening::SessionAnswer { client, from, result } => {
                let group = from.0;
                let client = &mut self.clients[client];
                match result {
                    Ok(()) => {
                        client.open.insert(group);
                    }
                    Err(Decline::NotPrimary { hint: Some(hint) }) => {
                        client.hints.insert(group, hint);
                    }
                    Err(_) => {
                        client.hints.remove(&group);
                    }
                }
            }
            Happening::Read { client, node, key } => self.client_read(client, node, key),
            Happening::Operate => self.operate(),
            Happening::Copied { from, life, to, incarnation, snapshot, store } => {
                let installed = self.install(to, incarnation, &snapshot, *store);
                let delay = self.rnd.range(1, 20) * MS;
                self.at(delay, Happening::CopySent { from, life, to: to.1, installed });
            }
            Happening::CopySent { from, life, to, installed } => {
                if self.nodes[&from].restarts == life {
                    self.on_core(from, |core, time| core.handle_snapshot_sent(time, to, installed));
                }
            }
        }
    }

    // Nodes.

    pub(super) fn on_core(&mut self, address: Address, act: impl FnOnce(&mut multicast::Core, multicast::Time)) {
        let node = self.nodes.get_mut(&address).unwrap();
        let time = node.time(self.now);
        let Some(core) = &mut node.core else { return };
        act(core, time);
        if !node.woken {
            node.woken = true;
            let life = node.restarts;
            let delay = self.rnd.below(100 * US);
            self.at(delay, Happening::Drain { node: address, life });
        }
    }

    /// What a driver does after its inputs.
    fn drain(&mut self, address: Address) {
        let life = self.nodes[&address].restarts;
        loop {
            let mut idle = true;
            let node = self.nodes.get_mut(&address).unwrap();
            node.woken = false;
            let Some(core) = &mut node.core else { return };
            let mut outputs = Vec::new();
            while let Some(output) = core.poll_output() {
                outputs.push(output);
            }
            for output in outputs {
                idle = false;
                self.output(address, life, output);
            }
            while self.apply(address) {
                idle = false;
            }
            if idle {
                break;
            }
        }
        let node = self.nodes.get_mut(&address).unwrap();
        let Some(core) = &node.core else { return };
        if let Some(due) = core.poll_timeout() {
            let due = due.0.saturating_sub(node.skew).max(self.now);
            if node.timer.is_none_or(|timer| timer > due) {
                node.timer = Some(due);
                let delay = due - self.now;
                self.at(delay, Happening::Timer { node: address, life });
            }
        }
    }

    fn output(&mut self, address: Address, life: u64, output: Output) {
        match output {
            Output::Persist { token, writes } => {
                let node = self.nodes.get_mut(&address).unwrap();
                node.under_way.push_back((token, writes));
                self.sync_more(address);
            }
            Output::Send { to, message } => self.send(address, to, &message),
            Output::Reply(reply) => self.reply(address, reply),
            Output::Declined { id, reason } => {
                self.declined.insert(id, reason);
                if let Some(&client) = self.by_session.get(&id.session) {
                    self.tell_client(Happening::Declined { client, from: address, id, reason });
                }
            }
            Output::SessionDeclined { session, reason } => {
                if let Some(&client) = self.by_session.get(&session) {
                    self.tell_client(Happening::SessionAnswer { client, from: address, result: Err(reason) });
                }
            }
            Output::ReadLog { from, bytes_max } => {
                let delay = self.rnd.below(2 * MS);
                self.at(delay, Happening::LogRead { node: address, life, from, bytes_max });
            }
            Output::SendSnapshot { to, incarnation } => self.send_copy(address, life, to, incarnation),
            Output::Event(multicast::Event::IgnoredMessage { reason, .. }) => {
                // Honest replicas may be late, never wrong.
                panic!("{address:?} ignored a message: {reason}");
            }
            Output::Event(multicast::Event::Contradicted { index }) if !self.is_forced => {
                panic!("{address:?} has something else committed at {index}");
            }
            Output::Event(event) => self.events.push((address, event)),
        }
    }

    fn sync_more(&mut self, address: Address) {
        let node = self.nodes.get_mut(&address).unwrap();
        if node.disk_busy || node.under_way.is_empty() {
            return;
        }
        node.disk_busy = true;
        let (life, disk_us) = (node.restarts, node.disk_us);
        let slow = if self.rnd.chance(20) { 20 } else { 1 };
        let delay = if self.options.steady { MS } else { self.rnd.range(disk_us / 2, disk_us * 2) * US * slow };
        self.at(delay, Happening::Synced { node: address, life });
    }

    fn synced(&mut self, address: Address, life: u64) {
        let node = self.nodes.get_mut(&address).unwrap();
        if node.restarts != life || node.core.is_none() {
            return;
        }
        node.disk_busy = false;
        let count = self.rnd.range(1, node.under_way.len() as u64) as usize;
        let token = node.synced(count);
        self.on_core(address, |core, time| core.handle_persisted(time, token));
        self.sync_more(address);
    }

    fn apply(&mut self, address: Address) -> bool {
        let node = self.nodes.get_mut(&address).unwrap();
        let time = node.time(self.now);
        let Some(core) = &mut node.core else { return false };
        let Some(applied) = core.apply_next(time, &mut node.machine) else { return false };
        let entry = &node.wal.entries[&applied.index];
        let record = xxh3_64(&entry.record);
        let state = (applied.index.0 % 8 == 0).then(|| core.order().digest() ^ node.machine.digest);
        self.checks.applied(address.0, applied.index, record, state);
        let is_primary = core.is_ready();
        if let Some(reply) = applied.reply.filter(|_| is_primary) {
            self.reply(address, reply);
        }
        if let Change::SessionOpened(session) = applied.change
            && is_primary
            && let Some(&client) = self.by_session.get(&session)
        {
            self.tell_client(Happening::SessionAnswer { client, from: address, result: Ok(()) });
        }
        true
    }

    fn reply(&mut self, address: Address, reply: Reply) {
        let mut seen = self.nodes[&address].core.as_ref().unwrap().order().depends_on().clone();
        seen.advance(address.0, reply.index);
        self.replied_at.entry(reply.id).or_insert(self.now);
        self.replies.entry(reply.id).or_insert(reply.clone());
        if let Some(&client) = self.by_session.get(&reply.id.session) {
            self.tell_client(Happening::Answer { client, from: address, reply, seen });
        }
    }

    fn send(&mut self, from: Address, to: Address, message: &Message) {
        let lost = self.cuts.contains(&(from, to))
            || (self.faults && self.rnd.chance(self.options.loss_per_mille))
            || self.filter.as_mut().is_some_and(|filter| filter(from, to, message));
        if lost {
            return;
        }
        let copies = if self.faults && self.rnd.chance(self.options.duplication_per_mille) { 2 } else { 1 };
        for _ in 0..copies {
            let base = if from.0 == to.0 { self.options.near_us } else { self.options.wide_us };
            let slow = if self.rnd.chance(20) { 10 } else { 1 };
            let mut delay = self.rnd.range(base / 2, base * 3 / 2) * US * slow;
            if self.options.steady {
                delay = base * US;
            }
            if !self.options.reorder || !self.faults {
                let last = self.last_delivery.entry((from, to)).or_default();
                *last = (*last).max(self.now + delay);
                delay = *last - self.now;
            }
            self.at(delay, Happening::Deliver { from, to, bytes: message.encode() });
        }
    }

    // Faults.

    fn crash_some(&mut self) {
        if !self.faults {
            return;
        }
        let every = self.options.crash_every_ms;
        let addresses: Vec<Address> = self.nodes.keys().copied().collect();
        let mut victims = vec![*self.rnd.pick(&addresses)];
        if self.rnd.chance(150) {
            let group = victims[0].0;
            victims = addresses.into_iter().filter(|address| address.0 == group).collect();
        }
        for victim in victims {
            self.crash(victim);
            let down = self.rnd.range(1, every * 4) * MS;
            self.at(down, Happening::Restart { node: victim });
        }
        let next = self.rnd.range(1, every * 2) * MS;
        self.at(next, Happening::Crash);
    }

    /// Crashes a primary, or freezes it for so long that the others choose another, or not quite so long; at times the next
    /// one as well.
    fn strike_primary(&mut self) {
        if !self.faults {
            return;
        }
        let every = self.options.primary_every_ms;
        let groups: Vec<GroupId> = self.voters.keys().copied().collect();
        let group = *self.rnd.pick(&groups);
        if let Some(primary) = self.primary(group) {
            if self.rnd.chance(500) {
                let duration = self.rnd.range(300, 5_000) * MS;
                self.freeze(primary, duration);
            } else {
                self.crash(primary);
                let down = self.rnd.range(1, every * 4) * MS;
                self.at(down, Happening::Restart { node: primary });
            }
        }
        let next = self.rnd.range(1, every * 2) * MS;
        self.at(next, Happening::StrikePrimary);
    }

    pub fn freeze(&mut self, address: Address, duration: u64) {
        self.nodes.get_mut(&address).unwrap().frozen_until = self.now + duration;
    }

    pub fn crash(&mut self, address: Address) {
        let mut rnd = self.rnd.clone();
        self.nodes.get_mut(&address).unwrap().crash(&mut rnd);
        self.rnd = rnd;
    }

    pub fn restart(&mut self, address: Address) {
        let now = self.now;
        let node = self.nodes.get_mut(&address).unwrap();
        if node.core.is_none() {
            node.start(now);
            let life = node.restarts;
            node.woken = true;
            self.at(0, Happening::Drain { node: address, life });
        }
    }

    fn cut_some(&mut self) {
        if !self.faults {
            return;
        }
        let addresses: Vec<Address> = self.nodes.keys().copied().collect();
        let (a, b) = (*self.rnd.pick(&addresses), *self.rnd.pick(&addresses));
        let whole_groups = self.rnd.chance(300);
        let one_way = self.rnd.chance(200);
        let alone = self.rnd.chance(300);
        for &from in &addresses {
            for &to in &addresses {
                let matches = |x: Address, y: Address| {
                    if whole_groups { x.0 == a.0 && y.0 == b.0 } else { x == a && (alone || y == b) }
                };
                if matches(from, to) || (!one_way && matches(to, from)) {
                    self.cuts.insert((from, to));
                }
            }
        }
        let every = self.options.cut_every_ms;
        let cuts: Vec<(Address, Address)> = self.cuts.iter().copied().collect();
        let lasting = self.rnd.range(1, every * 4) * MS;
        for (from, to) in cuts {
            self.at(lasting, Happening::Heal { from, to });
        }
        let next = self.rnd.range(1, every * 2) * MS;
        self.at(next, Happening::Cut);
    }

    pub fn cut(&mut self, from: Address, to: Address) {
        self.cuts.insert((from, to));
        self.cuts.insert((to, from));
    }

    pub fn cut_groups(&mut self, a: GroupId, b: GroupId) {
        let addresses: Vec<Address> = self.nodes.keys().copied().collect();
        for &from in addresses.iter().filter(|address| address.0 == a) {
            for &to in addresses.iter().filter(|address| address.0 == b) {
                self.cut(from, to);
            }
        }
    }

    pub fn heal(&mut self) {
        self.cuts.clear();
    }

    // Clients.

    fn tell_client(&mut self, happening: Happening) {
        if self.faults && self.rnd.chance(self.options.loss_per_mille) {
            return;
        }
        let delay = self.rnd.range(100, 3_000) * US;
        self.at(delay, happening);
    }

    fn tell_node(&mut self, happening: Happening) {
        self.tell_client(happening);
    }

    fn target(&mut self, client: usize, group: GroupId) -> Address {
        let replicas = self.replicas(group);
        let hint = self.clients[client].hint(group, &replicas);
        let replica = if self.rnd.chance(100) { *self.rnd.pick(&replicas) } else { hint };
        (group, replica)
    }

    fn client_open(&mut self, client: usize, group: GroupId) {
        if self.clients[client].open.contains(&group) {
            return;
        }
        let node = self.target(client, group);
        let change = SessionChange::Open(self.clients[client].session);
        self.tell_node(Happening::Session { node, change });
        let delay = self.rnd.range(200, 600) * MS;
        self.at(delay, Happening::RetryOpen { client, group });
    }

    fn client_step(&mut self, client: usize) {
        let state = &self.clients[client];
        if state.left == 0 {
            return;
        }
        if state.is_open() && state.outstanding.len() < state.concurrency && !state.reading {
            let mix = self.options.mix.clone();
            self.clients[client].left -= 1;
            if self.rnd.chance(mix.read_per_mille) {
                let group = GroupId(self.rnd.below(u64::from(mix.groups)) as u16);
                let replicas = self.replicas(group);
                let replica = *self.rnd.pick(&replicas);
                let key = Key(self.rnd.range(1, mix.keys));
                self.clients[client].reading = true;
                self.at(0, Happening::Read { client, node: (group, replica), key });
            } else {
                let command = self.clients[client].next_command(&mut self.rnd, &mix);
                self.checks.commands.insert(command.id, Arc::clone(&command));
                self.checks.seen.push(Seen::Submit { client, id: command.id, at: self.now });
                self.client_submit(client, &command);
            }
        }
        let delay = self.rnd.range(1, 60) * MS;
        self.at(delay, Happening::Step { client });
    }

    fn client_submit(&mut self, client: usize, command: &Arc<Command>) {
        let groups: Vec<GroupId> = command.groups().collect();
        let group = *self.rnd.pick(&groups);
        let node = self.target(client, group);
        self.tell_node(Happening::Submit { node, command: Arc::clone(command) });
        let sequence = command.id.sequence;
        let delay = self.rnd.range(200, 2_000) * MS;
        self.at(delay, Happening::Retry { client, sequence });
    }

    fn client_retry(&mut self, client: usize, sequence: u64) {
        let Some(command) = self.clients[client].outstanding.get(&sequence).cloned() else { return };
        if self.rnd.chance(300) {
            let groups: Vec<GroupId> = command.groups().collect();
            for group in groups {
                let replicas = self.replicas(group);
                let replica = *self.rnd.pick(&replicas);
                self.clients[client].hints.insert(group, replica);
            }
        }
        self.client_submit(client, &command);
    }

    fn client_answer(&mut self, client: usize, from: Address, reply: Reply, seen: &VectorClock) {
        let state = &mut self.clients[client];
        state.hints.insert(from.0, from.1);
        if state.outstanding.remove(&reply.id.sequence).is_none() {
            return;
        }
        state.clock.merge(seen);
        let (at, id, group) = (self.now, reply.id, from.0);
        self.checks.seen.push(Seen::Reply { client, id, at, result: reply.result, group });
        if self.faults && self.rnd.chance(self.options.close_per_mille) && self.clients[client].left == 0 {
            let node = self.target(client, group);
            let change = SessionChange::Close(self.clients[client].session);
            self.tell_node(Happening::Session { node, change });
        }
    }

    fn client_declined(&mut self, client: usize, from: Address, id: CommandId, reason: Decline) {
        let state = &mut self.clients[client];
        if !state.outstanding.contains_key(&id.sequence) {
            // An attempt of long ago, about something that the client has given up or done.
            return;
        }
        match reason {
            Decline::NotPrimary { hint: Some(hint) } => {
                state.hints.insert(from.0, hint);
            }
            Decline::NotPrimary { hint: None } => {
                state.hints.remove(&from.0);
            }
            Decline::NotReady | Decline::Overloaded | Decline::Unavailable { .. } => {}
            // It closed its session, or never opened it.
            Decline::Refused(Refusal::UnknownSession) => {
                state.outstanding.remove(&id.sequence);
            }
            Decline::WrongGroup | Decline::Malformed | Decline::Refused(_) => {
                panic!("{id} was declined: {reason:?}");
            }
        }
    }

    fn client_read(&mut self, client: usize, node: Address, key: Key) {
        let clock = &self.clients[client].clock;
        let (index, effects) = (clock.index(node.0), clock.effects(node.0));
        let replica = &self.nodes[&node];
        let served = replica
            .core
            .as_ref()
            .is_some_and(|core| core.order().applied() >= index && core.order().blocked(key, effects).is_none());
        if !served {
            let replicas = self.replicas(node.0);
            let replica = *self.rnd.pick(&replicas);
            let delay = self.rnd.range(1, 20) * MS;
            return self.at(delay, Happening::Read { client, node: (node.0, replica), key });
        }
        let order = replica.core.as_ref().unwrap().order();
        let got = replica.machine.writers.get(&key).copied();
        let state = &mut self.clients[client];
        state.clock.merge(order.depends_on());
        state.clock.advance(node.0, order.applied());
        state.reading = false;
        self.checks.seen.push(Seen::Read { client, group: node.0, key, got });
    }

    // For tests that look and act by hand.

    pub fn primary(&self, group: GroupId) -> Option<Address> {
        let ready = |address: &&Address| {
            address.0 == group && self.nodes[*address].core.as_ref().is_some_and(multicast::Core::is_ready)
        };
        let highest = |address: &&Address| self.nodes[*address].core.as_ref().map(|core| core.status().promised);
        self.nodes.keys().filter(ready).max_by_key(highest).copied()
    }

    pub fn core(&self, address: Address) -> &multicast::Core {
        self.nodes[&address].core.as_ref().unwrap()
    }

    /// Waits until every group takes commands.
    pub fn settle(&mut self) {
        while !self.voters.keys().all(|&group| self.primary(group).is_some()) {
            self.run_for_ms(100);
        }
        self.run_for_ms(500);
    }

    pub fn submit(&mut self, address: Address, command: &Arc<Command>) {
        self.checks.commands.insert(command.id, Arc::clone(command));
        let command = Arc::clone(command);
        self.on_core(address, |core, time| core.handle_submit(time, command));
    }

    pub fn withdraw(&mut self, address: Address, id: CommandId) {
        self.on_core(address, |core, time| core.handle_withdraw(time, id));
    }

    pub fn rewrite_kept(&mut self, address: Address, bytes_max: usize) -> bool {
        let mut done = false;
        self.on_core(address, |core, _| done = core.rewrite_kept(bytes_max));
        done
    }

    pub fn open_everywhere(&mut self, session: SessionId) {
        let groups: Vec<GroupId> = self.voters.keys().copied().collect();
        for group in groups {
            let primary = self.primary(group).unwrap();
            self.on_core(primary, |core, time| core.handle_session(time, SessionChange::Open(session)));
        }
        self.run_for_ms(500);
    }

    pub fn change_session(&mut self, address: Address, change: SessionChange) {
        self.on_core(address, |core, time| core.handle_session(time, change));
    }

    /// Everyone is done, everything is applied everywhere, nothing is left over.
    pub fn is_quiet(&self) -> bool {
        !self.faults
            && self.clients.iter().all(Client::is_done)
            && self.voters.keys().all(|&group| {
                let Some(primary) = self.primary(group) else { return false };
                let last = self.core(primary).status().last;
                let members = self.core(primary).membership();
                self.core(primary).unfinished().is_empty()
                    && self.is_settled(group, members)
                    && self.core(primary).order().changing_locks().next().is_none()
                    && self
                        .nodes
                        .iter()
                        .filter(|(address, _)| address.0 == group && members.member(address.1).is_some())
                        .all(|(_, node)| node.core.as_ref().is_some_and(|core| core.order().applied() == last))
            })
    }

    /// Runs to the end and checks everything.
    pub fn run_to_quiet(&mut self, limit_ms: u64) {
        while !self.is_quiet() {
            let until = self.now + 200 * MS;
            self.run_until(until);
            if self.now > limit_ms * MS {
                panic!("not quiet after {limit_ms} ms: {}", self.describe());
            }
        }
        self.checks.finish(&self.histories(), self.options.classic);
    }

    pub fn histories(&self) -> BTreeMap<GroupId, Vec<Executed>> {
        let mut histories = BTreeMap::new();
        for (address, node) in &self.nodes {
            let history = node.machine.history.clone();
            let known = histories.entry(address.0).or_insert_with(|| history.clone());
            if history.len() > known.len() {
                *known = history;
            }
        }
        histories
    }

    pub fn describe(&self) -> String {
        let mut text = format!("at {} ms\n", self.now / MS);
        for (at, client) in self.clients.iter().enumerate() {
            let outstanding: Vec<&u64> = client.outstanding.keys().collect();
            text += &format!(
                "client {at} {} left {} outstanding {outstanding:?} reading {} open {:?}\n",
                client.session, client.left, client.reading, client.open
            );
        }
        for node in self.nodes.values() {
            if let Some(core) = &node.core {
                text += &format!("{:?}\n", core.status());
                for unfinished in core.unfinished() {
                    text += &format!("    {unfinished:?}\n");
                }
            }
        }
        text
    }
}
