//! The world's side of clients: connections, requests, retries, answers; as the mount's engine does it.

use std::collections::BTreeMap;

use metadata::codec;
use metadata::outcome::Outcome;
use metadata::protocol::{Position, Reply, Request, ToClient, ToNode};
use metadata::read::{ReadAnswer, ReadOp, ReadResult};
use metadata::types::{Attr, BlobId};
use multicast::Elsewhere;
use multicast::command::Command;
use multicast::ids::{CommandId, GroupId, LogIndex, ReplicaId};

use crate::checks::ledger::{How, Seen};
use crate::client::{Connection, Expect, Pending};
use crate::desk::{Answer, Ask, AskId};
use crate::kept::Answered;
use crate::network::End;
use crate::options::MS;
use crate::planted::Bug;
use crate::world::{Event, World};
use ::replica::STALE;

impl World {
    /// A client begins an operation, and thinks about the next.
    pub(crate) fn begin(&mut self, number: usize) {
        let mix = self.options.mix.clone();
        let client = &mut self.clients[number];
        if client.left > 0 && client.busy() < mix.concurrency {
            client.left -= 1;
            let application = client.application.clone();
            client.begin(application.operate());
            self.pump(number);
        }
        if self.clients[number].left > 0 {
            let delay = self.rnd.range(1, mix.think_ms) * MS;
            self.after(delay, Event::Begin { client: number });
        }
    }

    /// The collector looks at one group's garbage.
    pub(crate) fn collect(&mut self, group: GroupId) {
        let number = self.clients.len() - 1;
        if self.clients[..number].iter().all(crate::client::Client::is_done) && !self.faulty {
            return;
        }
        let client = &mut self.clients[number];
        if client.busy() == 0 {
            let application = client.application.clone();
            client.begin(application.collect(group, false));
            self.pump(number);
        }
        let delay = self.rnd.range(1, self.options.collect_every_ms * 2) * MS;
        self.after(delay, Event::Collect { group });
    }

    /// Lets a client's tasks go on, and begins what they ask for.
    fn pump(&mut self, number: usize) {
        loop {
            self.clients[number].poll();
            let mut any = false;
            loop {
                let next = self.clients[number].desk.borrow_mut().take();
                let Some((id, ask)) = next else { break };
                any = true;
                self.ask(number, id, ask);
            }
            if !any {
                return;
            }
        }
    }

    fn answer(&mut self, number: usize, id: AskId, answer: Answer) {
        self.clients[number].pending.remove(&id);
        self.clients[number].desk.borrow_mut().answer(id, answer);
    }

    fn ask(&mut self, number: usize, id: AskId, ask: Ask) {
        let (group, destinations) = match &ask {
            Ask::Upload => {
                let blob = self.upload(number);
                return self.answer(number, id, Answer::Uploaded(blob));
            }
            Ask::Delete(blobs) => {
                self.delete(blobs);
                return self.answer(number, id, Answer::Deleted);
            }
            Ask::Listed(listed) => {
                self.ledger.seen.push(Seen::Listed { client: number, listed: listed.clone() });
                return self.answer(number, id, Answer::Deleted);
            }
            Ask::Read { group, .. } => {
                self.ledger.seen.push(Seen::Asked { client: number, ask: id });
                if let Some(answer) = self.cached(number, id, &ask) {
                    return self.answer(number, id, answer);
                }
                (*group, Vec::new())
            }
            Ask::Update(op) => {
                let destinations = op.destinations();
                (self.coordinator(number, destinations.iter().map(|destination| destination.group)), destinations)
            }
        };
        let pending = Pending {
            ask,
            destinations,
            group,
            since: self.now,
            attempt: 0,
            command: None,
            uncertain: false,
            elsewhere: None,
        };
        self.clients[number].pending.insert(id, pending);
        self.try_ask(number, id);
    }

    /// What the client can answer by itself. Some questions are asked all the same.
    fn cached(&mut self, number: usize, id: AskId, ask: &Ask) -> Option<Answer> {
        let Ask::Read { group, op, linearizable: false } = ask else { return None };
        let client = &self.clients[number];
        let (op, answer) = client.kept.answer(*group, op)?;
        if self.rnd.chance(200) {
            return None;
        }
        let result = Ok(answer);
        self.trace.line(self.now, || format!("c{number} answers itself, of {group}: {op:?}: {result:?}"));
        // As of when, the answers of the group's states will tell.
        let (since, group, index) = (self.now, *group, self.ledger.last(*group));
        let how = How::Kept { told: self.clients[number].kept.position(group) };
        let seen = Seen::Read { ask: id, since, client: number, group, op, result: result.clone(), index, how };
        self.ledger.seen.push(seen);
        Some(Answer::Read(result))
    }

    fn upload(&mut self, number: usize) -> BlobId {
        let client = &mut self.clients[number];
        let blob = BlobId { origin: 0, writer: client.session.0, sequence: client.next_blob };
        client.next_blob += 1;
        self.ledger.blobs.insert(blob, true);
        blob
    }

    fn delete(&mut self, blobs: &[BlobId]) {
        for blob in blobs {
            self.ledger.blobs.insert(*blob, false);
        }
        if self.bug == Some(Bug::CollectReferenced) {
            let newest = self.ledger.blobs.iter().rev().find(|(_, there)| **there).map(|(&blob, _)| blob);
            if let Some(blob) = newest {
                self.ledger.blobs.insert(blob, false);
            }
        }
    }

    /// A group with a voter in the client's region, if there is one.
    fn coordinator(&self, number: usize, groups: impl Iterator<Item = GroupId>) -> GroupId {
        let region = self.options.clients.get(number).copied().unwrap_or(0);
        let is_near = |group: &GroupId| self.hosts(*group).iter().any(|id| self.options.nodes[id] == region);
        let groups: Vec<GroupId> = groups.collect();
        groups.iter().copied().find(is_near).or(groups.first().copied()).unwrap_or(GroupId::GLOBAL)
    }

    /// One try of an ask: registers the session first, where that is needed.
    fn try_ask(&mut self, number: usize, id: AskId) {
        let client = &mut self.clients[number];
        let Some(pending) = client.pending.get_mut(&id) else { return };
        pending.attempt += 1;
        let (attempt, group, session) = (pending.attempt, pending.group, client.session);
        let unregistered = pending.destinations.iter().map(|destination| destination.group);
        let unregistered = unregistered.into_iter().find(|group| !client.registered.contains(group));
        let effects = client.clock.effects(group);
        let expect = Expect { ask: id, attempt, opens: None, subscribes: None, effects };
        if let Some(group) = unregistered {
            let request = Request::OpenSession { group, session, label: String::new() };
            let node = self.primary(number, group);
            self.request(number, node, Expect { opens: Some(group), ..expect }, request);
        } else if let Some((op, linearizable)) = read_of(&pending.ask) {
            let clock = if self.bug == Some(Bug::SkipClock) { Default::default() } else { client.clock.clone() };
            let elsewhere = pending.elsewhere.take();
            let node = match elsewhere {
                Some(node) => node,
                None if linearizable => self.primary(number, group),
                None => self.reader(number, group),
            };
            if !linearizable && elsewhere.is_none() {
                self.subscribe(number, node, group);
            }
            self.request(number, node, expect, Request::Read { group, session, clock, linearizable, op });
        } else {
            let command = self.command(number, id);
            let node = self.primary(number, group);
            self.request(number, node, expect, Request::Update { group, command });
        }
        let patience = self.rnd.range(800, 3_000) * MS;
        self.after(patience, Event::TimedOut { client: number, ask: id, attempt });
    }

    /// Asks a replica for the stream of a group, unless it comes from there. In front of the read that may be cached.
    fn subscribe(&mut self, number: usize, node: ReplicaId, group: GroupId) {
        let connection = self.connection(number, node);
        let client = &mut self.clients[number];
        if client.kept.listens(group, (node, connection)) {
            return;
        }
        client.kept.ask_stream(group, (node, connection));
        let session = client.session;
        let expect =
            Expect { ask: AskId::MAX, attempt: 0, opens: None, subscribes: Some(group), effects: LogIndex::ZERO };
        self.request(number, node, expect, Request::Subscribe { group, session });
    }

    /// The command of an update: its id stays the same over all tries.
    fn command(&mut self, number: usize, id: AskId) -> Command {
        let client = &mut self.clients[number];
        let renew = self.bug == Some(Bug::RetryUnderNewSequence);
        let pending = client.pending.get(&id);
        if let Some(command) = pending.and_then(|pending| pending.command.clone()).filter(|_| !renew) {
            return command;
        }
        let sequence = client.next_sequence;
        client.next_sequence += 1;
        client.open_sequences.insert(sequence);
        let op = pending.and_then(Pending::update).cloned();
        let payload = op.as_ref().map(codec::encode_op).unwrap_or_default();
        let command = Command {
            id: CommandId { session: client.session, sequence },
            acknowledged_below: client.acknowledged_below(),
            clock: client.clock.clone(),
            destinations: pending.map(|pending| pending.destinations.clone()).unwrap_or_default(),
            payload,
        };
        if let Some(pending) = client.pending.get_mut(&id) {
            pending.command = Some(command.clone());
        }
        if let Some(op) = op.map(std::sync::Arc::new) {
            client.kept.expect(&command, &op);
            self.ledger.seen.push(Seen::Submitted { client: number, update: id, id: command.id, op });
        }
        command
    }

    fn primary(&mut self, number: usize, group: GroupId) -> ReplicaId {
        let known = self.clients[number].primaries.get(&group).copied();
        let astray = self.faulty && self.rnd.chance(20);
        match known {
            Some(primary) if !astray => primary,
            _ => {
                let hosts = self.hosts(group).to_vec();
                *self.rnd.pick(&hosts)
            }
        }
    }

    fn reader(&mut self, number: usize, group: GroupId) -> ReplicaId {
        let voters = self.hosts(group).to_vec();
        if let Some(&reader) = self.clients[number].readers.get(&group) {
            return reader;
        }
        let region = self.options.clients.get(number).copied().unwrap_or(0);
        let near: Vec<ReplicaId> = voters.iter().copied().filter(|id| self.options.nodes[id] == region).collect();
        let reader =
            if near.is_empty() || self.rnd.chance(200) { *self.rnd.pick(&voters) } else { *self.rnd.pick(&near) };
        self.clients[number].readers.insert(group, reader);
        reader
    }

    /// Sends a request, after connecting if need be.
    fn request(&mut self, number: usize, node: ReplicaId, expect: Expect, body: Request) {
        let connection = self.connection(number, node);
        let client = &mut self.clients[number];
        let request = client.next_request;
        client.next_request += 1;
        client.requests.insert(request, (expect, node, connection));
        self.post(number, node, connection, &ToNode { request, body });
    }

    fn post(&mut self, number: usize, node: ReplicaId, connection: u64, message: &ToNode) {
        let (from, to) = (End::Client(number), End::Node(node));
        if self.network.is_cut(from, to) || self.network.is_cut(to, from) {
            return self.break_connection(node, number, connection);
        }
        let bytes = codec::encode_to_node(message);
        let delay = self.network.stream(&mut self.rnd, &self.options, (self.now, self.faulty), from, to);
        self.after(delay, Event::ToNode { client: number, node, connection, bytes });
    }

    /// The connection to a node; a new one if there is none.
    fn connection(&mut self, number: usize, node: ReplicaId) -> u64 {
        if let Some(connection) = self.clients[number].connections.get(&node) {
            return connection.number;
        }
        self.connections += 1;
        let connection = self.connections;
        self.clients[number].connections.insert(node, Connection { number: connection, up: false });
        let (from, to) = (End::Client(number), End::Node(node));
        if !self.network.is_cut(from, to) {
            let delay = self.network.stream(&mut self.rnd, &self.options, (self.now, self.faulty), from, to);
            self.after(delay, Event::Connect { client: number, node, connection });
        }
        connection
    }

    /// A node has answered.
    pub(crate) fn connected(&mut self, number: usize, node: ReplicaId, connection: u64) {
        let found = self.clients[number].connections.get_mut(&node).filter(|found| found.number == connection);
        if let Some(found) = found {
            found.up = true;
        }
    }

    /// A connection is gone: what was asked on it is asked again.
    pub(crate) fn lost(&mut self, number: usize, node: ReplicaId, connection: u64) {
        let client = &mut self.clients[number];
        if client.connections.get(&node).is_none_or(|found| found.number != connection) {
            return;
        }
        client.connections.remove(&node);
        client.kept.lose((node, connection));
        client.primaries.retain(|_, primary| *primary != node);
        client.readers.retain(|_, reader| *reader != node);
        let (lost, kept) = std::mem::take(&mut client.requests)
            .into_iter()
            .partition(|(_, (_, at, on))| (*at, *on) == (node, connection));
        client.requests = kept;
        let lost: BTreeMap<u64, (Expect, ReplicaId, u64)> = lost;
        for (expect, _, _) in lost.into_values() {
            self.fail(number, expect.ask, expect.attempt, true);
        }
    }

    /// An ask got no answer in time.
    pub(crate) fn timed_out(&mut self, number: usize, id: AskId, attempt: u64) {
        let client = &mut self.clients[number];
        let current = client.pending.get(&id).is_some_and(|pending| pending.attempt == attempt);
        if !current {
            return;
        }
        let silent = client.requests.iter().find(|(_, (expect, _, _))| expect.ask == id && expect.attempt == attempt);
        let silent = silent.map(|(&request, &(_, node, connection))| (request, node, connection));
        if let Some((request, node, connection)) = silent {
            client.requests.remove(&request);
            client.primaries.retain(|_, primary| *primary != node);
            client.readers.retain(|_, reader| *reader != node);
            let never_up = client.connections.get(&node).is_some_and(|found| found.number == connection && !found.up);
            if never_up {
                self.lost(number, node, connection);
            }
        }
        self.fail(number, id, attempt, true);
    }

    /// A try has failed: there is another one, at once or after a pause.
    fn fail(&mut self, number: usize, id: AskId, attempt: u64, uncertain: bool) {
        let Some(pending) = self.clients[number].pending.get_mut(&id).filter(|pending| pending.attempt == attempt)
        else {
            return;
        };
        pending.attempt += 1;
        if uncertain {
            self.doubt(number, id);
        }
        let Some(pending) = self.clients[number].pending.get(&id) else { return };
        let attempt = pending.attempt;
        let pause = self.rnd.range(5, 300) * MS;
        self.after(pause, Event::Retry { client: number, ask: id, attempt });
    }

    /// What went out may have been logged.
    fn doubt(&mut self, number: usize, id: AskId) {
        if let Some(pending) = self.clients[number].pending.get_mut(&id) {
            pending.uncertain |= pending.command.is_some();
        }
    }

    /// A client tries again.
    pub(crate) fn retry(&mut self, number: usize, id: AskId, attempt: u64) {
        let pending = self.clients[number].pending.get(&id);
        if pending.is_some_and(|pending| pending.attempt == attempt) {
            self.try_ask(number, id);
        }
    }

    /// Sessions are kept alive wherever the client is connected, and it connects to all voters of its groups.
    pub(crate) fn keep_alive(&mut self, number: usize) {
        let session = self.clients[number].session;
        let groups: Vec<GroupId> = self.clients[number].registered.iter().copied().collect();
        for group in groups {
            for node in self.hosts(group).to_vec() {
                self.connection(number, node);
            }
        }
        let connections: Vec<(ReplicaId, u64)> =
            self.clients[number].connections.iter().map(|(&node, found)| (node, found.number)).collect();
        for (node, connection) in connections {
            self.post(number, node, connection, &ToNode { request: 0, body: Request::KeepAlive { session } });
        }
        self.after(self.options.session_lease_ms / 5 * MS, Event::KeepAlive { client: number });
    }

    /// A node's message arrives.
    pub(crate) fn hear_node(&mut self, number: usize, node: ReplicaId, connection: u64, bytes: &[u8]) {
        self.trace.event(self.now, 7, number as u64, bytes);
        let message = match codec::decode_to_client(bytes) {
            Ok(message) => message,
            Err(error) => return self.violate(format!("a reply cannot be read: {error}")),
        };
        self.trace.line(self.now, || format!("{node} -> c{number}: {message:?}"));
        let client = &mut self.clients[number];
        let Some(found) = client.connections.get_mut(&node).filter(|found| found.number == connection) else { return };
        found.up = true;
        match message {
            ToClient::Event(event) => {
                client.kept.apply((node, connection), &event);
                client.clock.merge(&client.kept.clock());
            }
            ToClient::Reply { request, body } => {
                let Some((expect, _, _)) = client.requests.remove(&request) else { return };
                if let (Some(group), Reply::Session(position)) = (expect.subscribes, &body) {
                    return client.kept.begin_stream(group, (node, connection), position);
                }
                let current = client.pending.get(&expect.ask).is_some_and(|found| found.attempt == expect.attempt);
                if current {
                    self.reply(number, node, expect, body);
                    self.pump(number);
                }
            }
        }
    }

    fn reply(&mut self, number: usize, node: ReplicaId, expect: Expect, body: Reply) {
        let Expect { ask, attempt, opens, .. } = expect;
        match body {
            Reply::Session(_) => {
                let Some(group) = opens else { return };
                let client = &mut self.clients[number];
                client.primaries.insert(group, node);
                client.registered.insert(group);
                self.try_ask(number, ask);
            }
            Reply::Updated { outcome, position, is_noted, elsewhere } => {
                self.keep_own(number, node, ask, (&outcome, &position, is_noted, &elsewhere));
                self.updated(number, node, ask, outcome, &position);
            }
            Reply::Read { result, position } => {
                self.fill(number, node, expect, &result, &position);
                self.was_read(number, ask, result, &position);
            }
            Reply::NotPrimary { group, primary } => {
                let client = &mut self.clients[number];
                let news = primary.is_some() && primary != client.primaries.get(&group).copied();
                match primary {
                    Some(primary) => client.primaries.insert(group, primary),
                    None => client.primaries.remove(&group),
                };
                if news && primary != Some(node) {
                    // Also told by a primary that has logged the command and then lost its ballot.
                    self.doubt(number, ask);
                    self.try_ask(number, ask);
                } else {
                    self.fail(number, ask, attempt, true);
                }
            }
            // A replica that is quarantined is none any more.
            Reply::UnknownGroup { group } => {
                let client = &mut self.clients[number];
                client.primaries.retain(|of, primary| (*of, *primary) != (group, node));
                client.readers.retain(|of, reader| (*of, *reader) != (group, node));
                self.fail(number, ask, attempt, true);
            }
            // Also told by one that has logged it long since.
            Reply::Unavailable { .. } => self.fail(number, ask, attempt, true),
            Reply::Behind { .. } => {
                self.read_elsewhere(number, node, ask);
                self.fail(number, ask, attempt, false);
            }
            Reply::UnknownSession { group } => self.session_lost(number, ask, group),
            // Its session ended and began anew behind this sequence: what became of it, nobody can tell.
            Reply::Invalid(why) if why == STALE && self.clients[number].was_expired => {
                self.answer(number, ask, Answer::Outcome(None));
            }
            Reply::Invalid(_) | Reply::Alive | Reply::Status(_) | Reply::Members(_) | Reply::Operated(_) => {
                self.violate(format!("client {number} was told by {node}: {body:?}"));
            }
        }
    }

    fn read_elsewhere(&mut self, number: usize, instead: ReplicaId, ask: AskId) {
        let Some(pending) = self.clients[number].pending.get(&ask) else { return };
        let others: Vec<ReplicaId> = self.hosts(pending.group).iter().copied().filter(|id| *id != instead).collect();
        let other = self.rnd.choose(others);
        if let Some(pending) = self.clients[number].pending.get_mut(&ask) {
            pending.elsewhere = other;
        }
    }

    fn see(&mut self, number: usize, group: GroupId, position: &Position) {
        let clock = &mut self.clients[number].clock;
        clock.merge(&position.dependencies);
        clock.advance(group, position.index);
        let client = &mut self.clients[number];
        client.kept.see(group, position);
        // What it has told of own updates.
        client.clock.merge(&client.kept.clock());
    }

    fn fill(&mut self, number: usize, node: ReplicaId, expect: Expect, result: &ReadResult, position: &Position) {
        let client = &mut self.clients[number];
        let Some(connection) = client.connections.get(&node).map(|found| found.number) else { return };
        let Some(pending) = client.pending.get(&expect.ask) else { return };
        let Some((op, false)) = read_of(&pending.ask) else { return };
        client.kept.read((node, connection), (pending.group, &op, expect.effects), result, position.index);
    }

    /// What an own update's answer means for what is cached.
    fn keep_own(
        &mut self,
        number: usize,
        node: ReplicaId,
        ask: AskId,
        (outcome, position, is_noted, elsewhere): (&Outcome, &Position, bool, &[Elsewhere]),
    ) {
        let client = &mut self.clients[number];
        let Some(pending) = client.pending.get(&ask) else { return };
        let (Some(op), Some(command)) = (pending.update(), &pending.command) else { return };
        let Some(connection) = client.connections.get(&node).map(|found| found.number) else { return };
        let update = Answered { group: pending.group, op, command, outcome, position, is_noted, elsewhere };
        client.kept.updated((node, connection), &update);
    }

    fn updated(&mut self, number: usize, node: ReplicaId, ask: AskId, outcome: Outcome, position: &Position) {
        let client = &mut self.clients[number];
        let Some(pending) = client.pending.get(&ask) else { return };
        let (group, command) = (pending.group, pending.command.clone());
        client.primaries.insert(group, node);
        if let Some(command) = command {
            client.open_sequences.remove(&command.id.sequence);
            let replied =
                Seen::Replied { at: self.now, client: number, id: command.id, group, outcome: outcome.clone() };
            self.ledger.seen.push(replied);
        }
        if outcome.is_ok() || self.bug != Some(Bug::ForgetRefusal) {
            self.see(number, group, position);
        }
        self.answer(number, ask, Answer::Outcome(Some(outcome)));
    }

    fn was_read(&mut self, number: usize, ask: AskId, result: metadata::read::ReadResult, position: &Position) {
        let Some(pending) = self.clients[number].pending.get(&ask) else { return };
        let Some((op, linearizable)) = read_of(&pending.ask) else { return };
        let (group, since) = (pending.group, pending.since);
        let seen = Seen::Read {
            ask,
            since,
            client: number,
            group,
            op,
            result: result.clone(),
            index: position.index,
            how: if linearizable { How::AsOfNow } else { How::Asked },
        };
        self.ledger.seen.push(seen);
        for attr in attached(&result) {
            let (op, result) = (ReadOp::GetAttr { ino: attr.ino }, Ok(ReadAnswer::Attr(Box::new(attr))));
            let (client, index) = (number, position.index);
            let seen = Seen::Read { ask, since, client, group, op, result, index, how: How::Asked };
            self.ledger.seen.push(seen);
        }
        self.see(number, group, position);
        self.answer(number, ask, Answer::Read(result));
    }

    /// A group does not know the session: nothing was done there. It registers anew, unless an earlier try may have been
    /// executed: then nobody can know.
    fn session_lost(&mut self, number: usize, ask: AskId, group: GroupId) {
        let client = &mut self.clients[number];
        client.was_expired = true;
        client.registered.remove(&group);
        let Some(pending) = client.pending.get_mut(&ask) else { return };
        let (uncertain, command) = (pending.uncertain, pending.command.take());
        if let Some(command) = command {
            client.open_sequences.remove(&command.id.sequence);
        }
        if uncertain && pending.update().is_some() {
            self.answer(number, ask, Answer::Outcome(None));
        } else {
            self.try_ask(number, ask);
        }
    }
}

/// Attributes that came with names.
fn attached(result: &ReadResult) -> Vec<Attr> {
    match result {
        Ok(ReadAnswer::Lookup(Some((_, Some(attr))))) => vec![Attr::clone(attr)],
        Ok(ReadAnswer::Entries { entries, .. }) => {
            entries.iter().filter_map(|entry| entry.attr.as_deref().cloned()).collect()
        }
        _ => Vec::new(),
    }
}

fn read_of(ask: &Ask) -> Option<(metadata::read::ReadOp, bool)> {
    match ask {
        Ask::Read { op, linearizable, .. } => Some((op.clone(), *linearizable)),
        Ask::Update(_) | Ask::Upload | Ask::Delete(_) | Ask::Listed(_) => None,
    }
}
