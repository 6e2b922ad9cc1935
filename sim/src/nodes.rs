//! The world's side of nodes: turns, disks, starts and crashes.

use metadata::codec;
use metadata::protocol::{Reply, Request, ToClient};
use multicast::Message;
use multicast::ids::{GroupId, LogIndex, ReplicaId};

use crate::network::End;
use crate::options::{MS, US};
use crate::planted::Bug;
use crate::replica::{Act, Broken, Ticket, tell};
use crate::view::Link;
use crate::world::{Address, Event, Node, World};

/// Steps of one turn: other events come in between if more is to be done.
const STEPS_MAX: usize = 64;
const HOUSEKEEP_NS: u64 = 300 * MS;

impl World {
    /// The node, if it runs and is in this life.
    fn alive(&mut self, node: ReplicaId, life: u64) -> Option<&mut Node> {
        self.nodes.get_mut(&node).filter(|node| node.up && node.life == life)
    }

    /// A node's process starts, unless its disk is not what was written.
    pub(crate) fn start(&mut self, id: ReplicaId) {
        let now = self.now;
        let ignores_checksums = self.bug == Some(Bug::IgnoreLogChecksum);
        let Some(node) = self.nodes.get_mut(&id).filter(|node| !node.up && !node.is_broken) else { return };
        (node.up, node.life) = (true, node.life + 1);
        let life = node.life;
        let time = node.clock.time(now);
        if ignores_checksums {
            node.disk.drop_bad();
        }
        let bad =
            node.disk.first_bad().map(|(group, index)| format!("entry {index} of {group} does not fit its checksum"));
        let mut broken = bad.map(Broken::Damaged);
        for replica in node.replicas.values_mut() {
            if broken.is_none() {
                broken = replica.start(time, &node.disk).err();
            }
        }
        let groups: Vec<GroupId> = node.replicas.keys().copied().collect();
        self.trace.line(now, || format!("{id} starts, life {life}"));
        self.trace.event(now, 1, u64::from(id.0), &[]);
        match broken {
            Some(Broken::Damaged(why)) => return self.break_down(id, &why),
            Some(Broken::Senseless(why)) => return self.violate(format!("{id} cannot start: {why}")),
            None => {}
        }
        for group in groups {
            self.begin_replica(id, life, group);
        }
        self.after(HOUSEKEEP_NS, Event::Housekeep { node: id, life });
    }

    /// A replica has started.
    pub(crate) fn begin_replica(&mut self, id: ReplicaId, life: u64, group: GroupId) {
        self.after(0, Event::Turn { node: id, life, group });
        let delay = self.rnd.range(1, self.options.store_flush_ms) * MS;
        self.after(delay, Event::StoreFlushed { node: id, life, group });
    }

    /// A node crashes, and is back some time later.
    pub(crate) fn crash_for_a_while(&mut self, id: ReplicaId, why: &str) {
        self.crash(id, why);
        let down = self.rnd.range(1, self.options.faults.down_ms_max.max(1)) * MS;
        self.after(down, Event::Start { node: id });
    }

    /// A node's process is gone, with all that was not on disk.
    pub(crate) fn crash(&mut self, id: ReplicaId, why: &str) {
        let now = self.now;
        let back_ms = if self.faulty { self.options.faults.clock_back_ms } else { 0 };
        let Some(node) = self.nodes.get_mut(&id).filter(|node| node.up) else { return };
        node.up = false;
        node.paused_until = 0;
        node.disk.crash(&mut self.rnd);
        node.replicas.values_mut().for_each(crate::replica::Replica::crash);
        node.clock.set_back(now, self.rnd.below(back_ms + 1) * MS);
        let connections = std::mem::take(&mut node.connections);
        for (client, connection) in connections {
            let delay = self.rnd.range(1, 1_500) * MS;
            self.after(delay, Event::Lost { client, node: id, connection });
        }
        self.trace.line(now, || format!("{id} crashes: {why}"));
        self.trace.event(now, 2, u64::from(id.0), &[]);
    }

    /// A node crashes, and is back soon.
    pub(crate) fn crash_again(&mut self, id: ReplicaId, life: u64) {
        if self.faulty && self.alive(id, life).is_some() {
            self.crash(id, "just after a promise");
            let down = self.rnd.range(1, 100) * MS;
            self.after(down, Event::Start { node: id });
            if self.rnd.chance(500) {
                // Whoever was cut off, such as the primary of before, is back at the same moment.
                self.network.heal_all();
            }
        }
    }

    /// A message between replicas arrives.
    pub(crate) fn deliver(&mut self, from: Address, to: Address, bytes: &[u8]) {
        self.trace.event(self.now, 3, u64::from(to.0.0) << 32 | u64::from(to.1.0), bytes);
        let message = match Message::decode(bytes) {
            Ok(message) => message,
            Err(error) => return self.violate(format!("a message of {from:?} cannot be read: {error}")),
        };
        self.trace.line(self.now, || format!("{}/{} -> {}/{}: {}", from.0, from.1, to.0, to.1, brief(&message)));
        let now = self.now;
        let Some(node) = self.nodes.get_mut(&to.1).filter(|node| node.up) else { return };
        let time = node.clock.time(now);
        if let Some(live) = node.replicas.get_mut(&to.0).and_then(|replica| replica.live.as_mut()) {
            live.core.handle_message(time, from, message);
        }
        self.look_at_quorums(to);
        self.wake(to);
    }

    /// Schedules a turn, if none is. What comes until then is handled with it.
    pub(crate) fn wake(&mut self, (group, id): Address) {
        let delay = self.rnd.below(100 * US);
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let life = node.life;
        let Some(live) = node.replicas.get_mut(&group).and_then(|replica| replica.live.as_mut()) else { return };
        if !std::mem::replace(&mut live.woken, true) {
            self.after(delay, Event::Turn { node: id, life, group });
        }
    }

    /// A replica does what there is to do.
    pub(crate) fn turn(&mut self, id: ReplicaId, life: u64, group: GroupId) {
        if let Some(live) = self.live((group, id), life) {
            live.woken = false;
        }
        for _ in 0..STEPS_MAX {
            let now = self.now;
            let Some(node) = self.nodes.get_mut(&id).filter(|node| node.up && node.life == life) else { return };
            let time = node.clock.time(now);
            let Some(replica) = node.replicas.get_mut(&group) else { return };
            let Some(acts) = replica.step(time, &node.disk, &mut self.ledger) else {
                return self.set_timer((group, id), life);
            };
            for act in acts {
                if self.faulty && self.rnd.below(1_000_000) < self.options.faults.crash_in_turn {
                    return self.crash_for_a_while(id, "in the middle of a turn");
                }
                self.act((group, id), life, act);
                if self.alive(id, life).is_none() {
                    return;
                }
            }
        }
        self.wake((group, id));
    }

    fn live(&mut self, (group, id): Address, life: u64) -> Option<&mut crate::replica::Live> {
        self.alive(id, life)?.replicas.get_mut(&group)?.live.as_mut()
    }

    fn set_timer(&mut self, address: Address, life: u64) {
        let now = self.now;
        let Some(clock) = self.nodes.get(&address.1).map(|node| node.clock) else { return };
        let Some(live) = self.live(address, life) else { return };
        let Some(due) = live.core.poll_timeout() else { return };
        let delay = clock.delay_until(now, due);
        if live.timer.is_none_or(|timer| timer > now + delay || timer <= now) {
            live.timer = Some(now + delay);
            self.after(delay, Event::Timer { node: address.1, life, group: address.0 });
        }
    }

    /// A replica's timer goes off.
    pub(crate) fn timer(&mut self, id: ReplicaId, life: u64, group: GroupId) {
        let now = self.now;
        let Some(live) = self.live((group, id), life) else { return };
        live.timer = None;
        self.trace.event(now, 4, u64::from(id.0), &[]);
        self.turn(id, life, group);
    }

    fn act(&mut self, address: Address, life: u64, act: Act) {
        let (group, id) = address;
        match act {
            Act::Persist(token, mut writes) => {
                match self.bug {
                    Some(Bug::ChangeUncommitted) => self.believe_change(address, &writes),
                    Some(Bug::KeepOldLog) => writes.begin_at = None,
                    _ => {}
                }
                if writes.promised.is_some() && self.faulty && self.rnd.chance(self.options.faults.crash_after_promise)
                {
                    let delay = self.rnd.range(1, 30) * MS;
                    self.after(delay, Event::Crash { node: id, life });
                }
                let Some(node) = self.nodes.get_mut(&id) else { return };
                node.disk.write(group, token, writes);
                self.look_at_log(group, id);
                if self.bug == Some(Bug::AcknowledgeBeforeFlush)
                    && let Some(time) = self.nodes.get(&id).map(|node| node.clock.time(self.now))
                {
                    if let Some(live) = self.live(address, life) {
                        live.core.handle_persisted(time, token);
                    }
                    self.look_at_quorums(address);
                }
                self.flush(id, life);
            }
            Act::Send(to, message) => {
                for (from, to, message) in self.forge(address, to, message) {
                    self.send(from, to, &message);
                }
            }
            Act::Tell(client, connection, message) => self.tell(id, client, connection, &message),
            // At once, as the node does: trimming does not come in between.
            Act::ReadLog(from, bytes_max) => self.log_read(address, life, from, bytes_max),
            Act::SendCopy(to, incarnation) => self.send_copy(address, life, to, incarnation),
            Act::CutOff(link) => self.break_connection(id, link.client, link.connection),
            Act::Damaged(why) => self.break_down(id, &why),
            Act::BeyondHelp(replica, from) => {
                // Whoever began with a copy has no log from before, as primary too. A follower says only what it was told.
                let has_reason = replica == id || self.is_newcomer(group, replica) || self.is_newcomer(group, id);
                if !self.options.cuts_logs() && !has_reason {
                    self.violate(format!("{replica} of {group} needs entry {from}, which is gone"));
                }
            }
            Act::Quarantined(why) => {
                self.operator.quarantined += 1;
                self.trace.line(self.now, || format!("{group}/{id} is quarantined: {why}"));
            }
            Act::Note(what) => self.trace.line(self.now, || format!("{group}/{id}: {what}")),
            Act::Violation(what) => self.violate(what),
        }
    }

    /// Begins to flush a node's log, if it is idle.
    fn flush(&mut self, id: ReplicaId, life: u64) {
        let slow = self.faulty && self.rnd.chance(self.options.faults.slow_flush);
        let Some(node) = self.nodes.get_mut(&id) else { return };
        if node.disk.begin_flush() {
            let base = node.flush_us * US * if slow { 100 } else { 1 };
            let stalls = if node.slow_until > self.now { self.rnd.range(100, 2_000) * MS } else { 0 };
            let delay = self.rnd.range(base / 2, base * 2) + stalls;
            self.after(delay, Event::Flushed { node: id, life });
        }
    }

    /// A flush is done, or has failed.
    pub(crate) fn flushed(&mut self, id: ReplicaId, life: u64) {
        let (now, bug) = (self.now, self.bug);
        let fails = self.faulty && self.rnd.below(1_000_000) < self.options.faults.flush_failure;
        let Some(node) = self.alive(id, life) else { return };
        if fails || node.full_until > now {
            // Nobody knows what is on disk: the process stops, nothing is acknowledged.
            return self.crash_for_a_while(id, "a flush failed");
        }
        let told = node.disk.end_flush(bug);
        let time = node.clock.time(now);
        self.trace.event(now, 5, u64::from(id.0), &[]);
        for (group, token) in told {
            if let Some(live) = self.live((group, id), life)
                && bug != Some(Bug::AcknowledgeBeforeFlush)
            {
                live.core.handle_persisted(time, token);
            }
            self.look_at_quorums((group, id));
            self.wake((group, id));
        }
        self.flush(id, life);
    }

    /// A read of the log is done.
    pub(crate) fn log_read(&mut self, address: Address, life: u64, from: LogIndex, bytes_max: usize) {
        let (group, id) = address;
        let (now, bug) = (self.now, self.bug);
        let Some(node) = self.alive(id, life) else { return };
        if node.disk.is_bad_from(group, from) && bug != Some(Bug::IgnoreLogChecksum) {
            return self.break_down(id, "an entry that was read back does not fit its checksum");
        }
        let (entries, time) = (node.disk.read(group, from, bytes_max), node.clock.time(now));
        if let Some(live) = self.live(address, life) {
            live.core.handle_log_read(time, entries);
        }
        self.wake(address);
    }

    /// A store is flushed.
    pub(crate) fn store_flushed(&mut self, id: ReplicaId, life: u64, group: GroupId) {
        let now = self.now;
        let Some(node) = self.alive(id, life) else { return };
        if node.full_until > now {
            return self.crash_for_a_while(id, "the state could not be flushed");
        }
        if let Some(replica) = node.replicas.get_mut(&group) {
            replica.flush_store();
        }
        let delay = self.rnd.range(1, self.options.store_flush_ms) * MS;
        self.after(delay, Event::StoreFlushed { node: id, life, group });
    }

    /// A node tidies up.
    pub(crate) fn housekeep(&mut self, id: ReplicaId, life: u64) {
        let now = self.now;
        let Some(node) = self.alive(id, life) else { return };
        let time = node.clock.time(now);
        let groups: Vec<GroupId> = node.replicas.keys().copied().collect();
        for group in groups {
            let Some(node) = self.nodes.get_mut(&id) else { return };
            let Some(replica) = node.replicas.get_mut(&group) else { continue };
            if let Some(keep) = replica.housekeep(time, &node.disk) {
                node.disk.trim(group, keep);
            }
            self.wake((group, id));
        }
        self.flush(id, life);
        self.after(HOUSEKEEP_NS, Event::Housekeep { node: id, life });
    }

    fn send(&mut self, from: Address, to: Address, message: &Message) {
        let (a, b) = (End::Node(from.1), End::Node(to.1));
        let arrivals = self.network.datagram(&mut self.rnd, &self.options, (self.now, self.faulty), a, b);
        if arrivals.is_empty() {
            self.trace
                .line(self.now, || format!("{}/{} -> {}/{} lost: {}", from.0, from.1, to.0, to.1, brief(message)));
            return;
        }
        let bytes = message.encode();
        for delay in arrivals {
            self.after(delay, Event::Deliver { from, to, bytes: bytes.clone() });
        }
    }

    /// A node says something to a client, on the connection that is meant.
    fn tell(&mut self, node: ReplicaId, client: usize, connection: u64, message: &ToClient) {
        if self.nodes.get(&node).and_then(|node| node.connections.get(&client)) != Some(&connection) {
            return;
        }
        let (from, to) = (End::Node(node), End::Client(client));
        if self.network.is_cut(from, to) || self.network.is_cut(to, from) {
            return self.break_connection(node, client, connection);
        }
        let bytes = codec::encode_to_client(message);
        let delay = self.network.stream(&mut self.rnd, &self.options, (self.now, self.faulty), from, to);
        self.after(delay, Event::ToClient { client, node, connection, bytes });
    }

    /// Nothing gets through any more; the client notices some time later.
    pub(crate) fn break_connection(&mut self, node: ReplicaId, client: usize, connection: u64) {
        self.forget_connection(node, client, connection);
        let delay = self.rnd.range(300, 2_000) * MS;
        self.after(delay, Event::Lost { client, node, connection });
    }

    /// The node's side of a connection ends.
    pub(crate) fn forget_connection(&mut self, node: ReplicaId, client: usize, connection: u64) {
        let Some(node) = self.nodes.get_mut(&node) else { return };
        if node.connections.get(&client) != Some(&connection) {
            return;
        }
        node.connections.remove(&client);
        for live in node.replicas.values_mut().filter_map(|replica| replica.live.as_mut()) {
            live.view.interest.unsubscribe(connection);
        }
    }

    /// A client connects.
    pub(crate) fn connect(&mut self, client: usize, id: ReplicaId, connection: u64) {
        let Some(node) = self.nodes.get_mut(&id).filter(|node| node.up) else { return };
        let newer = node.connections.get(&client).is_some_and(|&known| known > connection);
        if newer {
            return;
        }
        if let Some(&old) = node.connections.get(&client) {
            self.forget_connection(id, client, old);
        }
        if let Some(node) = self.nodes.get_mut(&id) {
            node.connections.insert(client, connection);
        }
        let (from, to) = (End::Node(id), End::Client(client));
        if !self.network.is_cut(from, to) {
            let delay = self.network.stream(&mut self.rnd, &self.options, (self.now, self.faulty), from, to);
            self.after(delay, Event::Connected { client, node: id, connection });
        }
    }

    /// A client's request arrives.
    pub(crate) fn hear_client(&mut self, client: usize, id: ReplicaId, connection: u64, bytes: &[u8]) {
        let now = self.now;
        self.trace.event(now, 6, u64::from(id.0), bytes);
        let request = match codec::decode_to_node(bytes) {
            Ok(request) => request,
            Err(error) => return self.violate(format!("a request cannot be read: {error}")),
        };
        self.trace.line(now, || format!("c{client} -> {id}: {:?}", request.body));
        let Some(node) = self.nodes.get_mut(&id).filter(|node| node.up) else { return };
        if node.connections.get(&client) != Some(&connection) {
            return;
        }
        let ticket = Ticket { link: Link { client, connection }, request: request.request };
        let time = node.clock.time(now);
        let group = match &request.body {
            Request::KeepAlive { session } => {
                node.replicas.values_mut().for_each(|replica| replica.keep_alive(*session, time));
                return;
            }
            Request::OpenSession { group, .. }
            | Request::CloseSession { group, .. }
            | Request::Subscribe { group, .. }
            | Request::Update { group, .. }
            | Request::Read { group, .. } => *group,
            Request::Status | Request::Members | Request::Operate(_) => return,
        };
        match node.replicas.get_mut(&group) {
            Some(replica) => replica.handle_request(time, ticket, request.body),
            None => {
                let life = node.life;
                return self.act((group, id), life, tell(ticket, Reply::UnknownGroup { group }));
            }
        }
        self.wake((group, id));
    }
}

/// A message in a few words.
fn brief(message: &Message) -> String {
    let words = format!("{message:?}");
    words.chars().take(220).collect()
}
