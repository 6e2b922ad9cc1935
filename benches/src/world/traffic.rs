//! The mounts' side: what applications begin, whom their mounts ask, what they make of answers.

use metadata::codec;
use metadata::outcome::OpError;
use metadata::protocol::{Position, Reply, Request, ToNode};
use multicast::ids::{GroupId, ReplicaId};

use super::mount::{Asked, Lock, Step, told, write};
use super::setup::group_of;
use super::{End, Event, Job, Load, MS, SWEEP_NS, World};
use crate::error::Error;
use crate::spec::{Op, Scope};

/// Pauses between attempts double from the first to the second.
const PAUSE_NS: (u64, u64) = (10 * MS, 200 * MS);
/// A node that has something to answer and sends nothing at all is not waited for: looked at every 200 ms.
const SILENCE_NS: u64 = 700 * MS;
/// An attempt waits so long for an answer.
const ATTEMPT_NS: u64 = 8_000 * MS;
/// Outcomes that applications of the lab never cause.
const UNEXPECTED: &str = "an operation of the lab was refused";

impl World<'_> {
    /// An application begins its next operation.
    pub(crate) fn begin(&mut self, at: usize) {
        if at == 0 {
            return self.next_dir();
        }
        let region = self.mounts[self.clients[at].mount].region;
        if self.stopped[region] {
            return;
        }
        if self.clients[at].wants.is_none() {
            let wants = self.choose(at, region);
            self.clients[at].wants = Some(wants);
        }
        let Some((_, _, group)) = self.clients[at].wants else { return };
        let (Some(&own), Some(&dir)) = (self.dirs.get(&(region, group_of(region))), self.dirs.get(&(region, group)))
        else {
            return self.broke(Error::Broken("there is no such directory".into()));
        };
        let (now, size) = (self.now, self.point.size);
        let client = &mut self.clients[at];
        client.doing = client.plan(now, size, own, dir).map(|doing| super::mount::Doing {
            scope: client.wants.map_or(Scope::Local, |(_, scope, _)| scope),
            ..doing
        });
        self.ask(at);
    }

    fn choose(&mut self, at: usize, region: usize) -> (Op, Scope, GroupId) {
        let (point, client) = (self.point, &mut self.clients[at]);
        if client.far_reader {
            return (Op::Stat, Scope::Remote, group_of(0));
        }
        let others = point.regions as u64 - 1;
        let other = |draw: u64| group_of((region + 1 + draw as usize) % point.regions);
        if point.ops == [Op::Move] || client.random.chance(point.multi_group) {
            // Always the same one: the file wanders between two directories.
            return (Op::Move, Scope::Cross, other(at as u64 % others.max(1)));
        }
        let op = point.ops[client.random.below(point.ops.len() as u64) as usize];
        if client.random.chance(point.locality) || (others == 0 && point.elsewhere != Scope::Global) {
            return (op, Scope::Local, group_of(region));
        }
        match point.elsewhere {
            Scope::Global => (op, Scope::Global, GroupId::GLOBAL),
            Scope::Local => (op, Scope::Local, group_of(region)),
            Scope::Remote | Scope::Cross => {
                let draw = client.random.below(others);
                (op, Scope::Remote, other(draw))
            }
        }
    }

    /// What the program, the kernel and the mount's threads towards it do until a node must be asked, or to the end.
    pub(crate) fn fuse_cost(&self, at: usize, waking: f64, is_idle: bool, is_cold: bool) -> f64 {
        let cpu = &self.costs.cpu_us;
        let Some(doing) = self.clients[at].doing.as_ref() else { return 0.0 };
        let Some(Step::Kernel { requests, returns }) = doing.steps.front() else { return 0.0 };
        // The program and the mount take turns, each waking the other one.
        let turns = match (is_idle, is_cold) {
            (true, _) => cpu.fuse_idle,
            (false, true) => cpu.fuse_cold,
            // With others in the kernel the mount's thread finds their requests, and does not sleep.
            (false, false) if self.mounts[self.clients[at].mount].in_kernel > 1 => 0.0,
            (false, false) => cpu.switch,
        };
        let returning = if *returns { waking + cpu.fuse_call } else { 0.0 };
        let let_in = if doing.was_locked_out { waking } else { 0.0 };
        let_in + returning + f64::from(*requests) * (cpu.fuse + turns)
    }

    /// The kernel's requests have been answered from memory.
    pub(crate) fn served(&mut self, at: usize) {
        self.mounts[self.clients[at].mount].in_kernel -= 1;
        if let Some(doing) = &mut self.clients[at].doing {
            doing.steps.pop_front();
            doing.was_locked_out = false;
        }
        self.ask(at);
    }

    /// An application comes to a lock of its kernel.
    fn lock(&mut self, at: usize, lock: Lock) {
        let waiting = self.locks.entry((self.clients[at].mount, lock)).or_default();
        waiting.push_back(at);
        let is_free = waiting.len() == 1;
        if let Some(doing) = &mut self.clients[at].doing {
            doing.was_locked_out |= !is_free;
        }
        if is_free {
            self.let_in(at);
        }
    }

    fn let_in(&mut self, at: usize) {
        if let Some(doing) = &mut self.clients[at].doing {
            doing.steps.pop_front();
        }
        self.ask(at);
    }

    fn unlock(&mut self, at: usize, lock: Lock) {
        let held = (self.clients[at].mount, lock);
        let waiting = self.locks.entry(held).or_default();
        waiting.pop_front();
        match waiting.front().copied() {
            Some(next) => self.let_in(next),
            None => drop(self.locks.remove(&held)),
        }
        if let Some(doing) = &mut self.clients[at].doing {
            doing.steps.pop_front();
        }
        self.ask(at);
    }

    /// Begins the next step of an operation, or ends it.
    pub(crate) fn ask(&mut self, at: usize) {
        let client = &mut self.clients[at];
        client.attempt += 1;
        let Some(doing) = &client.doing else { return };
        let (thread, job) = match doing.steps.front() {
            None => return self.finish(at),
            Some(&Step::Lock(lock)) => return self.lock(at, lock),
            Some(&Step::Unlock(lock)) => return self.unlock(at, lock),
            Some(Step::Kernel { .. }) => {
                self.mounts[client.mount].in_kernel += 1;
                (client.fuse, Job::Fuse(at))
            }
            Some(Step::Read(..) | Step::Update(_) | Step::Fill) => (self.mounts[client.mount].net, Job::Call(at)),
        };
        self.submit(thread, job);
    }

    /// A mount asks a node for the next step.
    pub(crate) fn call(&mut self, at: usize) {
        let Some(doing) = &mut self.clients[at].doing else { return };
        let size = self.point.size;
        if let (Some(Step::Fill), Some(node)) = (doing.steps.front(), doing.told) {
            doing.steps[0] = write(node, size);
        }
        match doing.steps.front().cloned() {
            None | Some(Step::Kernel { .. } | Step::Lock(_) | Step::Unlock(_)) => {}
            Some(Step::Fill) => self.broke(Error::Broken("there is no file to fill".into())),
            Some(Step::Read(group, op)) => {
                let mount = self.clients[at].mount;
                let node = self.reader(at, group);
                self.subscribe(mount, group, node);
                let (session, mut clock) = (self.mounts[mount].session, self.mounts[mount].clock.clone());
                if self.clients[at].far_reader {
                    clock = self.far_clock(at, clock);
                }
                let body = Request::Read { group, session, clock, linearizable: false, op };
                self.request(at, node, None, body);
            }
            Some(Step::Update(op)) => self.update(at, &op),
        }
    }

    /// Every second far reader has just been told, by whoever wrote it, of the newest update.
    fn far_clock(&mut self, at: usize, mut clock: multicast::ids::VectorClock) -> multicast::ids::VectorClock {
        while self.tokens.front().is_some_and(|&(arrives, _)| arrives <= self.now) {
            if let Some((_, index)) = self.tokens.pop_front() {
                self.token = self.token.max(index);
            }
        }
        if at.is_multiple_of(2) {
            clock.advance(group_of(0), multicast::ids::LogIndex(self.token));
        }
        clock
    }

    fn update(&mut self, at: usize, op: &metadata::op::FsOp) {
        let mount = self.clients[at].mount;
        let destinations = op.destinations();
        let unknown = destinations.iter().map(|destination| destination.group);
        let unknown = unknown.into_iter().find(|group| !self.mounts[mount].registered.contains(group));
        if let Some(group) = unknown {
            let node = self.primary(at, group);
            let body = Request::OpenSession { group, session: self.mounts[mount].session, label: String::new() };
            return self.request(at, node, Some(group), body);
        }
        let known = self.clients[at].doing.as_ref().and_then(|doing| doing.command.clone());
        let command = known.unwrap_or_else(|| self.mounts[mount].command(op));
        let group = self.coordinator(at, command.groups());
        if let Some(doing) = &mut self.clients[at].doing {
            doing.command = Some(command.clone());
        }
        let node = self.primary(at, group);
        self.request(at, node, None, Request::Update { group, command });
    }

    /// A group whose primary is in the region, else one with a voter there, else the first.
    fn coordinator(&self, at: usize, groups: impl Iterator<Item = GroupId>) -> GroupId {
        let mount = &self.mounts[self.clients[at].mount];
        let is_near =
            |id: &ReplicaId| self.node_of.get(id).is_some_and(|&node| self.nodes[node].region == mount.region);
        let groups: Vec<GroupId> = groups.collect();
        let own = groups.iter().find(|group| mount.primaries.get(*group).is_some_and(is_near));
        let near = || groups.iter().find(|group| self.groups[*group].iter().any(is_near));
        own.or_else(near).or(groups.first()).copied().unwrap_or(GroupId::GLOBAL)
    }

    fn primary(&self, at: usize, group: GroupId) -> ReplicaId {
        let (client, voters) = (&self.clients[at], &self.groups[&group]);
        let known = self.mounts[client.mount].primaries.get(&group).copied();
        known.unwrap_or_else(|| voters[client.failures as usize % voters.len()])
    }

    /// As mounts choose: the primary if it is near, else a replica that is, else the primary.
    fn reader(&self, at: usize, group: GroupId) -> ReplicaId {
        let client = &self.clients[at];
        let region = self.mounts[client.mount].region;
        let learners = self.learners.get(&group).into_iter().flatten();
        let near: Vec<ReplicaId> = self.groups[&group]
            .iter()
            .chain(learners)
            .copied()
            .filter(|id| self.nodes[self.node_of[id]].region == region && self.nodes[self.node_of[id]].up)
            .collect();
        let primary = self.primary(at, group);
        match near.len() {
            0 => primary,
            _ if near.contains(&primary) && client.failures == 0 => primary,
            len => near[client.failures as usize % len],
        }
    }

    fn subscribe(&mut self, mount: usize, group: GroupId, node: ReplicaId) {
        if self.mounts[mount].subscribed.insert(group) {
            let body = Request::Subscribe { group, session: self.mounts[mount].session };
            let bytes = codec::encode_to_node(&ToNode { request: 0, body });
            let to = End::Node(self.node_of[&node]);
            self.transmit(End::Mount(mount), to, bytes.len(), Load::Request(bytes, false));
        }
    }

    fn request(&mut self, at: usize, node: ReplicaId, opens: Option<GroupId>, body: Request) {
        let client = &self.clients[at];
        let (mount, attempt) = (client.mount, client.attempt);
        let is_read = matches!(body, Request::Read { .. });
        let request = self.mounts[mount].note(Asked { client: at, attempt, node, at: self.now, opens });
        let bytes = codec::encode_to_node(&ToNode { request, body });
        let load = (self.node_of[&node], bytes.len(), Load::Request(bytes, is_read));
        self.mounts[mount].outbox.push(load);
    }

    /// An answer has come.
    pub(crate) fn replied(&mut self, mount: usize, request: u64, body: Reply) {
        let Some(asked) = self.mounts[mount].requests.remove(&request) else { return };
        let at = asked.client;
        if self.clients[at].attempt != asked.attempt {
            return;
        }
        match body {
            Reply::Session(position) => {
                let Some(group) = asked.opens else { return };
                self.see(mount, group, &position);
                self.mounts[mount].registered.insert(group);
                self.mounts[mount].primaries.insert(group, asked.node);
                let reader = self.reader(at, group);
                self.subscribe(mount, group, reader);
                self.ask(at);
            }
            Reply::Updated { outcome, position, .. } => self.updated(at, &asked, outcome, &position),
            Reply::Read { result, position } => self.was_read(at, result, &position),
            Reply::NotPrimary { group, primary } => {
                let known = self.mounts[mount].primaries.get(&group).copied();
                match primary {
                    Some(primary) => self.mounts[mount].primaries.insert(group, primary),
                    None => self.mounts[mount].primaries.remove(&group),
                };
                if primary.is_some() && primary != known && primary != Some(asked.node) {
                    self.ask(at);
                } else {
                    self.retry(at);
                }
            }
            Reply::Unavailable { .. } | Reply::Behind { .. } => self.retry(at),
            Reply::UnknownSession { group } => {
                self.mounts[mount].registered.remove(&group);
                self.ask(at);
            }
            other => self.broke(Error::Broken(format!("a mount was told {other:?}"))),
        }
    }

    fn retry(&mut self, at: usize) {
        let client = &mut self.clients[at];
        client.failures += 1;
        let pause = (PAUSE_NS.0 << client.failures.min(10)).min(PAUSE_NS.1);
        let attempt = client.attempt;
        self.after(pause, Event::Again(at, attempt));
    }

    fn see(&mut self, mount: usize, group: GroupId, position: &Position) {
        let clock = &mut self.mounts[mount].clock;
        clock.merge(&position.dependencies);
        clock.advance(group, position.index);
    }

    fn updated(&mut self, at: usize, asked: &Asked, outcome: metadata::outcome::Outcome, position: &Position) {
        let mount = self.clients[at].mount;
        let Some(doing) = &mut self.clients[at].doing else { return };
        let Some(command) = doing.command.take() else { return };
        match &outcome {
            Ok(done) => doing.told = told(done).or(doing.told),
            Err(error) => {
                let why = format!("{UNEXPECTED}: {:?}: {error:?}", doing.op);
                return self.broke(Error::Broken(why));
            }
        }
        doing.steps.pop_front();
        self.mounts[mount].settled(command.id.sequence);
        // It answers as of the group that was asked.
        let group = self.coordinator(at, command.groups());
        self.see(mount, group, position);
        self.mounts[mount].primaries.insert(group, asked.node);
        if self.point.far_readers > 0 && group == group_of(0) {
            let arrives = self.now + self.one_way(0, self.point.regions - 1);
            self.tokens.push_back((arrives, position.index.0));
        }
        self.clients[at].failures = 0;
        self.ask(at);
    }

    fn was_read(&mut self, at: usize, result: metadata::read::ReadResult, position: &Position) {
        let mount = self.clients[at].mount;
        let far = self.clients[at].far_reader;
        let Some(doing) = &mut self.clients[at].doing else { return };
        match result {
            Ok(_) => {}
            Err(OpError::Moved { .. } | OpError::Errno(_)) if far => {}
            Err(error) => {
                let why = format!("{UNEXPECTED}: {:?}: {error:?}", doing.op);
                return self.broke(Error::Broken(why));
            }
        }
        let group = match doing.steps.pop_front() {
            Some(Step::Read(group, _)) => group,
            _ => return,
        };
        if !far {
            self.see(mount, group, position);
        }
        self.clients[at].failures = 0;
        self.ask(at);
    }

    fn finish(&mut self, at: usize) {
        let Some(doing) = self.clients[at].doing.take() else { return };
        if at == 0 {
            return self.made_dir(doing.told);
        }
        let client = &mut self.clients[at];
        // What it lent to the kernel has changed.
        let is_told = matches!(doing.op, Op::Write | Op::Chmod | Op::Rename | Op::Unlink | Op::Move);
        if doing.late > 0 || is_told {
            let fuse = client.fuse;
            self.submit(fuse, Job::Late(doing.late, is_told));
        }
        let client = &mut self.clients[at];
        client.finish(&doing);
        let far = client.far_reader;
        let region = self.mounts[client.mount].region;
        if doing.prepares {
            self.recorder.prepared(doing.since, self.now);
            return self.after(0, Event::Begin(at));
        }
        client.wants = None;
        let latency = self.now - doing.since;
        if far {
            self.recorder.far_read(latency, at.is_multiple_of(2));
        } else {
            self.recorder.done(self.now, region, (doing.op, doing.scope), latency);
        }
        let pause = match self.point.think_ms {
            think_ms if think_ms > 0.0 && !far => (self.clients[at].random.exponential(think_ms) * MS as f64) as u64,
            _ => 0,
        };
        self.after(pause, Event::Begin(at));
    }

    /// Requests to nodes that do not answer are given up, when a mount would.
    pub(crate) fn sweep(&mut self) {
        let now = self.now;
        let mut lost = Vec::new();
        for (number, mount) in self.mounts.iter().enumerate() {
            for (&request, asked) in &mount.requests {
                let node = &self.nodes[self.node_of[&asked.node]];
                let unreachable = !node.up || self.is_cut(mount.region, node.region);
                let patience =
                    if unreachable { self.down_since.max(asked.at) + SILENCE_NS } else { asked.at + ATTEMPT_NS };
                if now >= patience {
                    lost.push((number, request));
                }
            }
        }
        for (mount, request) in lost {
            let Some(asked) = self.mounts[mount].requests.remove(&request) else { continue };
            self.mounts[mount].primaries.retain(|_, primary| *primary != asked.node);
            if self.clients[asked.client].attempt == asked.attempt {
                self.retry(asked.client);
            }
        }
        self.after(SWEEP_NS, Event::Sweep);
    }
}
