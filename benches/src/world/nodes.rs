//! The nodes' side: mailboxes, turns, logs, what is sent.

use std::collections::BTreeMap;

use metadata::codec;
use metadata::protocol::{Request, ToClient};
use multicast::Message;
use multicast::ids::{GroupId, ReplicaId};

use super::member::{Executed, Input, Link, Round, Ticket};
use super::{End, Event, Frame, Job, Load, MS, World, ns};
use crate::error::Error;

/// Rounds of one turn, as in the node.
const ROUNDS_MAX: usize = 8;
/// Linux counts the time of files in these steps, by default (`CONFIG_HZ=250`).
const TICK_NS: f64 = 4e6;

impl World<'_> {
    /// A batch of frames has been taken apart.
    pub(crate) fn take_in(&mut self, frame: Frame) {
        match (frame.load, frame.from, frame.to) {
            (Load::Peer(messages), ..) => {
                for (from, member, bytes) in messages {
                    match Message::decode(&bytes) {
                        Ok(message) => self.gather(member, Input::Message(from, message)),
                        Err(error) => self.broke(Error::Broken(error.to_string())),
                    }
                }
            }
            (Load::Request(bytes, _), End::Mount(mount), End::Node(node)) => self.requested(mount, node, &bytes),
            (Load::Told(messages), End::Node(_), End::Mount(mount)) => {
                for bytes in messages {
                    match codec::decode_to_client(&bytes) {
                        Ok(ToClient::Reply { request, body }) => self.replied(mount, request, body),
                        Ok(ToClient::Event(_)) => {}
                        Err(error) => self.broke(Error::Broken(error.to_string())),
                    }
                }
            }
            (Load::Request(..) | Load::Told(_), ..) => {}
        }
    }

    /// Puts something into a replica's mailbox, and wakes its thread.
    fn give(&mut self, member: usize, input: Input) {
        if !self.nodes[self.member_at[member].0].up {
            return;
        }
        self.members[member].put(self.now, input);
        self.rest(member);
    }

    /// … when the network's thread has taken in what there is.
    fn gather(&mut self, member: usize, input: Input) {
        let node = self.member_at[member].0;
        if self.nodes[node].up {
            self.members[member].put(self.now, input);
            self.nodes[node].burst.insert(member);
        }
    }

    /// Lets a replica's thread take its next turn.
    pub(crate) fn wake(&mut self, at: usize) {
        if !std::mem::replace(&mut self.threads[at].woken, true) {
            self.submit(self.member_at[at].1, Job::Turn(at));
        }
    }

    /// Lets a thread that has nothing to do sleep until something is worth waking it.
    pub(crate) fn rest(&mut self, at: usize) {
        if self.threads[at].woken {
            return;
        }
        let member = &self.members[at];
        let mail = member.mail_due(self.now);
        let timeout = member.core.poll_timeout().map(|due| due.0.saturating_sub(super::EPOCH_NS));
        let Some(due) = mail.into_iter().chain(timeout).min() else { return };
        if due <= self.now {
            return self.wake(at);
        }
        let timer = &mut self.threads[at].timer;
        if *timer > due || *timer <= self.now {
            *timer = due;
            self.after(due - self.now, Event::Timer(at));
        }
    }

    fn requested(&mut self, mount: usize, node: usize, bytes: &[u8]) {
        let request = match codec::decode_to_node(bytes) {
            Ok(request) => request,
            Err(error) => return self.broke(Error::Broken(error.to_string())),
        };
        if !self.nodes[node].up {
            return;
        }
        let ticket = Ticket { mount: Link(mount), request: request.request };
        let id = self.nodes[node].id;
        let group = match &request.body {
            Request::OpenSession { group, .. }
            | Request::CloseSession { group, .. }
            | Request::Subscribe { group, .. }
            | Request::Update { group, .. }
            | Request::Read { group, .. } => *group,
            Request::KeepAlive { .. } | Request::Status | Request::Members | Request::Operate(_) => return,
        };
        let Some(&member) = self.member_of.get(&(group, id)) else {
            return self.broke(Error::Broken(format!("{id} was asked for {group}")));
        };
        match request.body {
            Request::Subscribe { session, .. } => self.members[member].subscribe(session, mount),
            Request::Read { session, clock, op, .. } => {
                let time = self.time();
                match self.members[member].read(time, ticket, session, &clock, op) {
                    Ok(answer) => self.answer(node, mount, &answer),
                    Err(error) => self.broke(error),
                }
            }
            body => self.gather(member, Input::Request(ticket, body)),
        }
    }

    fn answer(&mut self, node: usize, mount: usize, answer: &[ToClient]) {
        if answer.is_empty() {
            return;
        }
        let messages: Vec<_> = answer.iter().map(codec::encode_to_client).collect();
        let bytes = messages.iter().map(bytes::Bytes::len).sum();
        self.transmit(End::Node(node), End::Mount(mount), bytes, Load::Told(messages));
    }

    /// A replica's turn: all that waits, then what the core says, then what is committed; returns what it costs. What
    /// leaves it leaves when the turn has come that far.
    pub(crate) fn turn(&mut self, at: usize, waking: f64) -> f64 {
        let time = self.time();
        let (node, _) = self.member_at[at];
        if !self.nodes[node].up {
            self.members[at].drop_mail();
            return 0.0;
        }
        let cpu = self.costs.cpu_us.clone();
        let resumed = std::mem::replace(&mut self.threads[at].resumed, false);
        let mut cost = if resumed { 0.0 } else { waking + cpu.turn };
        for input in self.members[at].take_mail(self.now) {
            let is_command = self.members[at].take(time, input);
            cost += if is_command { cpu.order } else { cpu.message };
        }
        if let Err(error) = self.members[at].begin_turn(time) {
            self.broke(error);
        }
        let mut more = true;
        for _ in 0..ROUNDS_MAX {
            let said = self.members[at].outputs(time);
            let said = self.release(node, at, said, cost);
            if self.threads[at].flushes.is_some() {
                cost += cpu.log_batch;
                break;
            }
            let applied = match self.members[at].apply(time) {
                Ok(applied) => applied,
                Err(error) => {
                    self.broke(error);
                    Executed::default()
                }
            };
            if applied.entries > 0 {
                cost += applied.entries as f64 * cpu.execute;
                // Clients are told before the state is written.
                let told = self.members[at].told();
                self.release(node, at, Ok(told), cost);
                let updates = applied.updates().map(|op| cpu.store_update_of(op) - cpu.store_update);
                cost += cpu.store_batch + applied.entries as f64 * cpu.store_update + updates.sum::<f64>();
                self.note_progress(at, ns(cost));
            }
            if !said && applied.entries == 0 {
                more = false;
                break;
            }
        }
        self.threads[at].more = more;
        cost
    }

    fn release(&mut self, node: usize, at: usize, round: Result<Round, Error>, cost: f64) -> bool {
        let mut round = match round {
            Ok(round) => round,
            Err(error) => {
                self.broke(error);
                return false;
            }
        };
        if round.is_empty() {
            return false;
        }
        round.from = at;
        let found = &mut self.nodes[node];
        let is_primary = self.members[at].ordering().primary() == Some(found.id);
        // A follower has nothing better to do than to flush by itself.
        if !is_primary && !found.is_logging && found.unflushed.is_empty() {
            self.threads[at].flushes = round.persist.take();
            found.is_logging = self.threads[at].flushes.is_some();
        }
        self.after(ns(cost), Event::Leave(node, Box::new(round)));
        true
    }

    /// A replica's turn is over.
    pub(crate) fn after_turn(&mut self, at: usize) {
        if !self.nodes[self.member_at[at].0].up {
            return;
        }
        if let Some((_, bytes)) = self.threads[at].flushes {
            let took = self.occupy_disk(self.member_at[at].0, bytes);
            return self.after(took, Event::FlushedHere(at));
        }
        self.threads[at].woken = false;
        if std::mem::take(&mut self.threads[at].more) {
            return self.wake(at);
        }
        self.rest(at);
    }

    /// A replica's thread goes on behind its own flush.
    pub(crate) fn flushed_here(&mut self, at: usize) {
        let (node, thread) = self.member_at[at];
        self.disks[self.nodes[node].disk] -= 1;
        let Some((token, _)) = self.threads[at].flushes.take() else { return };
        if !self.nodes[node].up {
            return;
        }
        self.nodes[node].is_logging = false;
        let time = self.time();
        self.members[at].take(time, Input::Persisted(token));
        self.threads[at].resumed = true;
        self.submit(thread, Job::Turn(at));
        self.log_on(node);
    }

    pub(crate) fn wake_for_timer(&mut self, at: usize) {
        if self.threads[at].timer == self.now && self.nodes[self.member_at[at].0].up {
            self.wake(at);
        }
    }

    /// What a replica said is handed to the log's and the network's thread.
    pub(crate) fn leave(&mut self, node: usize, round: Box<Round>) {
        if !self.nodes[node].up {
            return;
        }
        // The flush begins before anything is sent.
        if let Some((token, bytes)) = round.persist {
            self.nodes[node].unflushed.push((round.from, token, bytes));
        }
        self.log_on(node);
        if !round.sends.is_empty() || !round.tells.is_empty() {
            let net = self.nodes[node].net;
            self.submit(net, Job::Post(node, round));
        }
    }

    fn log_on(&mut self, node: usize) {
        let found = &mut self.nodes[node];
        if !found.unflushed.is_empty() && !std::mem::replace(&mut found.is_logging, true) {
            let log = found.log;
            self.submit(log, Job::Log(node));
        }
    }

    /// The log's thread has written what there was: it is flushed.
    pub(crate) fn begin_flush(&mut self, node: usize) {
        let written = std::mem::take(&mut self.nodes[node].unflushed);
        let bytes: usize = written.iter().map(|(_, _, bytes)| bytes).sum();
        self.nodes[node].flushing = written.into_iter().map(|(member, token, _)| (member, token)).collect();
        let took = self.occupy_disk(node, bytes);
        self.after(took, Event::Flushed(node));
    }

    /// A flush begins; returns how long it takes.
    fn occupy_disk(&mut self, node: usize, bytes: usize) -> u64 {
        let costs = &self.costs.disk;
        let transfer_us = bytes as f64 / (costs.mib_per_s * 1.048_576);
        let found = &mut self.nodes[node];
        let since = self.now - std::mem::replace(&mut found.flushed, self.now);
        let stamp_us = if self.random.chance(since as f64 / TICK_NS) { costs.flush_stamp_us } else { 0.0 };
        let others = &mut self.disks[found.disk];
        let beside_us = *others as f64 * costs.flush_beside_us;
        *others += 1;
        ns(costs.flush_us + transfer_us + stamp_us + beside_us + self.random.exponential(costs.flush_tail_us))
    }

    pub(crate) fn flushed(&mut self, node: usize) {
        self.disks[self.nodes[node].disk] -= 1;
        let found = &mut self.nodes[node];
        if !found.up {
            return;
        }
        found.is_logging = false;
        let newest: BTreeMap<usize, u64> = std::mem::take(&mut found.flushing).into_iter().collect();
        for (member, token) in newest {
            self.give(member, Input::Persisted(token));
        }
        self.log_on(node);
    }

    /// The network's thread has put it together: it goes out, one batch to each receiver.
    pub(crate) fn post(&mut self, node: usize, round: Round) {
        if !self.nodes[node].up {
            return;
        }
        let from = (self.members[round.from].group, self.nodes[node].id);
        let mut peers: BTreeMap<ReplicaId, (usize, Vec<_>)> = BTreeMap::new();
        for ((to_group, to), message) in round.sends {
            let Some(&member) = self.member_of.get(&(to_group, to)) else { continue };
            if to == from.1 {
                self.give(member, Input::Message(from, message));
                continue;
            }
            let bytes = message.encode();
            let (total, messages) = peers.entry(to).or_default();
            *total += bytes.len();
            messages.push((from, member, bytes));
        }
        for (to, (bytes, messages)) in peers {
            let to = End::Node(self.node_of[&to]);
            self.transmit(End::Node(node), to, bytes, Load::Peer(messages));
        }
        let mut mounts: BTreeMap<usize, (usize, Vec<_>)> = BTreeMap::new();
        for (mount, message) in round.tells {
            let bytes = codec::encode_to_client(&message);
            let (total, messages) = mounts.entry(mount).or_default();
            *total += bytes.len();
            messages.push(bytes);
        }
        for (mount, (bytes, messages)) in mounts {
            self.transmit(End::Node(node), End::Mount(mount), bytes, Load::Told(messages));
        }
    }

    /// Notes when entries of the first region's group are executed, for the lag of the far region.
    fn note_progress(&mut self, at: usize, cost: u64) {
        if self.point.far_readers == 0 || self.members[at].group != GroupId(1) || self.recorder.since.is_none() {
            return;
        }
        let index = self.members[at].applied().0;
        let now = self.now + cost;
        let region = self.nodes[self.member_at[at].0].region;
        if region == 0 && self.members[at].ordering().is_ready() {
            self.recorder.executed.insert(index, now);
        } else if self.is_far(at) {
            // Everything up to this index is executed here now; batches need not end alike.
            let later = self.recorder.executed.split_off(&(index + 1));
            for (_, executed) in std::mem::replace(&mut self.recorder.executed, later) {
                self.recorder.lag.record(now.saturating_sub(executed));
            }
        }
    }

    /// The replica in the far region.
    fn is_far(&self, at: usize) -> bool {
        let far = self.learners.get(&GroupId(1)).and_then(|learners| learners.first());
        far.is_some_and(|id| self.member_of.get(&(GroupId(1), *id)) == Some(&at))
    }

    /// How long a delay between two regions is.
    pub(crate) fn one_way(&self, a: usize, b: usize) -> u64 {
        self.distances.one_way_ns(a, b).max(MS / 100)
    }
}
