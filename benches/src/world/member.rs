//! One replica around the shipped cores, on a store in memory: what the node's group driver does in a turn, without checks.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use metadata::namespace::{Genesis, genesis};
use metadata::outcome::{Errno, OpError};
use metadata::protocol::{Event, Position, Reply, Request, ToClient};
use metadata::read::ReadOp;
use metadata::types::TimeNs;
use metadata::{MemStore, Namespace, Overlay, codec};
use multicast::command::Key;
use multicast::core::{Core, Durable, SessionChange};
use multicast::ids::{CommandId, GroupId, LogIndex, ReplicaId, SessionId, VectorClock};
use multicast::{Change, Config, Decline, Entry, Message, OrderState, Output, Refusal, Time, Writes};

use crate::error::{Error, Result};

/// Entries applied in one write of the store, as in the node.
const APPLY_BATCH_MAX: usize = 512;
/// Bytes of a file that live in the metadata, as in a new volume.
const INLINE_BYTES_MAX: u32 = 4096;

/// Whom to answer.
#[derive(Clone, Copy, Debug)]
pub struct Ticket {
    /// The mount.
    pub mount: usize,
    /// Its request.
    pub request: u64,
}

/// What comes into a replica's mailbox.
#[derive(Debug)]
pub enum Input {
    /// From another replica.
    Message((GroupId, ReplicaId), Message),
    /// Durable up to here.
    Persisted(u64),
    /// From a client.
    Request(Ticket, Request),
}

/// What leaves a replica at one moment.
#[derive(Debug, Default)]
pub struct Round {
    /// Whose words these are: the replica's place in the world's list.
    pub from: usize,
    /// For the disk: the newest token and how many bytes.
    pub persist: Option<(u64, usize)>,
    /// For other replicas.
    pub sends: Vec<((GroupId, ReplicaId), Message)>,
    /// For mounts, in order.
    pub tells: Vec<(usize, ToClient)>,
}

impl Round {
    /// Nothing leaves.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.persist.is_none() && self.sends.is_empty() && self.tells.is_empty()
    }
}

struct ParkedRead {
    ticket: Ticket,
    index: LogIndex,
    effects: LogIndex,
    op: ReadOp,
}

/// One replica.
pub struct Member {
    /// Its group.
    pub group: GroupId,
    /// The ordering core.
    pub core: Core,
    store: MemStore,
    applied: LogIndex,
    dependencies: VectorClock,
    locked: BTreeMap<Key, LogIndex>,
    updates: BTreeMap<CommandId, Ticket>,
    sessions: BTreeMap<SessionId, Vec<Ticket>>,
    parked: Vec<ParkedRead>,
    /// Mounts that are told of every step.
    subscribers: Vec<usize>,
    log: VecDeque<Entry>,
    /// What waits for its next turn.
    pub inbox: Vec<Input>,
    out: Round,
}

impl Member {
    /// A replica that starts for the first time.
    ///
    /// # Errors
    /// If the configuration makes no sense.
    pub fn new(now: Time, config: Config) -> Result<Member> {
        let broken = |problem: String| Error::Broken(problem);
        let group = config.group;
        let mut store = MemStore::new();
        let mut overlay = Overlay::new(&store).map_err(|error| broken(error.to_string()))?;
        let start = Genesis { inline_bytes_max: INLINE_BYTES_MAX, uid: 0, gid: 0, mode: 0o755, time: TimeNs(1) };
        genesis(&mut overlay, group, &start).map_err(|error| broken(error.to_string()))?;
        let rows = overlay.into_writes();
        store.apply(rows);
        let core = Core::new(now, config, Durable::default(), OrderState::new(group));
        let core = core.map_err(|error| broken(error.to_string()))?;
        Ok(Member {
            group,
            core,
            store,
            applied: LogIndex::ZERO,
            dependencies: VectorClock::new(),
            locked: BTreeMap::new(),
            updates: BTreeMap::new(),
            sessions: BTreeMap::new(),
            parked: Vec::new(),
            subscribers: Vec::new(),
            log: VecDeque::new(),
            inbox: Vec::new(),
            out: Round::default(),
        })
    }

    /// The log has been applied up to here.
    #[must_use]
    pub fn applied(&self) -> LogIndex {
        self.applied
    }

    /// Takes in one thing; true if it was a client's command.
    pub fn take(&mut self, now: Time, input: Input) -> bool {
        match input {
            Input::Message(from, message) => self.core.handle_message(now, from, message),
            Input::Persisted(token) => self.core.handle_persisted(now, token),
            Input::Request(ticket, request) => return self.request(now, ticket, request),
        }
        false
    }

    fn request(&mut self, now: Time, ticket: Ticket, request: Request) -> bool {
        match request {
            Request::OpenSession { session, .. } => {
                self.sessions.entry(session).or_default().push(ticket);
                self.core.handle_session(now, SessionChange::Open(session));
            }
            Request::Update { command, .. } => {
                self.updates.insert(command.id, ticket);
                self.core.handle_submit(now, Arc::new(command));
                return true;
            }
            // Sessions of the lab live as long as their world.
            Request::CloseSession { .. }
            | Request::KeepAlive { .. }
            | Request::Status
            | Request::Members
            | Request::Operate(_) => {}
            Request::Subscribe { .. } | Request::Read { .. } => {}
        }
        false
    }

    /// Does what the core says.
    ///
    /// # Errors
    /// If it says what it never may.
    pub fn outputs(&mut self, now: Time) -> Result<Round> {
        while let Some(output) = self.core.poll_output() {
            match output {
                Output::Persist { token, writes } => {
                    let bytes = self.log(writes);
                    let before = self.out.persist.map_or(0, |(_, bytes)| bytes);
                    self.out.persist = Some((token, before + bytes));
                }
                Output::Send { to, message } => self.out.sends.push((to, message)),
                Output::Reply(reply) => self.settle(reply)?,
                Output::Declined { id, reason } => {
                    if let Some(ticket) = self.updates.remove(&id) {
                        self.tell(ticket, declined(self.group, reason));
                    }
                }
                Output::SessionDeclined { session, reason } => {
                    for ticket in self.sessions.remove(&session).unwrap_or_default() {
                        self.tell(ticket, declined(self.group, reason));
                    }
                }
                Output::ReadLog { from, bytes_max } => {
                    let entries = self.read_log(from, bytes_max);
                    self.core.handle_log_read(now, entries);
                }
                Output::SendSnapshot { to, .. } => {
                    return Err(Error::Broken(format!("{to} of {} lacks a log that nobody cut", self.group)));
                }
                Output::Event(event) => self.note(event)?,
            }
        }
        Ok(std::mem::take(&mut self.out))
    }

    fn log(&mut self, writes: Writes) -> usize {
        if let Some(from) = writes.truncate_from {
            while self.log.back().is_some_and(|entry| entry.index >= from) {
                self.log.pop_back();
            }
        }
        let mut bytes = 32;
        for entry in writes.append {
            bytes += entry.len_bytes();
            self.log.push_back(entry);
        }
        bytes
    }

    fn read_log(&self, from: LogIndex, bytes_max: usize) -> Vec<Entry> {
        let Some(first) = self.log.front().map(|entry| entry.index) else { return Vec::new() };
        let skip = usize::try_from(from.0.saturating_sub(first.0)).unwrap_or(usize::MAX);
        if from < first {
            return Vec::new();
        }
        let (mut entries, mut bytes) = (Vec::new(), 0);
        for entry in self.log.iter().skip(skip) {
            if bytes > 0 && bytes + entry.len_bytes() > bytes_max {
                break;
            }
            bytes += entry.len_bytes();
            entries.push(entry.clone());
        }
        entries
    }

    fn note(&mut self, event: multicast::Event) -> Result<()> {
        use multicast::Event;
        match event {
            Event::BecameFollower { primary } => {
                let group = self.group;
                let updates = std::mem::take(&mut self.updates).into_values();
                let sessions = std::mem::take(&mut self.sessions).into_values().flatten();
                for ticket in updates.chain(sessions).collect::<Vec<_>>() {
                    self.tell(ticket, Reply::NotPrimary { group, primary });
                }
                Ok(())
            }
            Event::IgnoredMessage { from, reason } => {
                Err(Error::Broken(format!("{} ignored a message of {from:?}: {reason}", self.group)))
            }
            Event::FollowerBeyondHelp { replica, from } => {
                Err(Error::Broken(format!("{replica} of {} lacks the log from {from}", self.group)))
            }
            Event::Expelled { .. } | Event::DiskReplaced { .. } | Event::Contradicted { .. } => {
                Err(Error::Broken(format!("the members of {} changed by themselves", self.group)))
            }
            Event::PeerMembers { .. } | Event::BecamePrimary { .. } | Event::BecameReady { .. } => Ok(()),
        }
    }

    /// Applies a batch of what is committed; how many entries that were.
    ///
    /// # Errors
    /// If the state is damaged.
    pub fn apply(&mut self, now: Time) -> Result<usize> {
        let broken = |error: metadata::Error| Error::Broken(error.to_string());
        let overlay = Overlay::new(&self.store).map_err(broken)?;
        let mut namespace = Namespace::open(self.group, overlay).map_err(broken)?;
        let mut batch = Vec::new();
        let mut locks_changed = false;
        while batch.len() < APPLY_BATCH_MAX {
            let Some(applied) = self.core.apply_next(now, &mut namespace) else { break };
            locks_changed |= match &applied.change {
                Change::Locked(_) | Change::Aborted(_) => true,
                Change::Executed(command) => command.is_multi_group(),
                _ => false,
            };
            batch.push(applied);
        }
        if batch.is_empty() {
            return Ok(0);
        }
        if let Some(error) = namespace.failure() {
            return Err(Error::Broken(error.to_string()));
        }
        let writes = namespace.into_store().into_writes();
        self.store.apply(writes);
        let order = self.core.order_mut();
        order.drain_changes();
        self.applied = order.applied();
        self.dependencies.clone_from(order.depends_on());
        if locks_changed {
            self.locked.clear();
            for (key, index, _) in self.core.order().changing_locks() {
                let first = self.locked.entry(key).or_insert(index);
                *first = index.min(*first);
            }
        }
        let count = batch.len();
        self.publish(batch)?;
        Ok(count)
    }

    /// Events first, then replies, then reads that waited.
    fn publish(&mut self, batch: Vec<multicast::Applied>) -> Result<()> {
        for &mount in &self.subscribers {
            let event =
                Event { settled: self.core.order().executed_through(), ..Event::quiet(self.group, self.applied) };
            self.out.tells.push((mount, ToClient::Event(event)));
        }
        for applied in batch {
            let dependencies = self.dependencies.clone();
            let position = Position { index: applied.index, dependencies, ..Position::default() };
            if let Change::SessionOpened(session) = applied.change {
                for ticket in self.sessions.remove(&session).unwrap_or_default() {
                    self.tell(ticket, Reply::Session(position.clone()));
                }
            }
            if let Some(reply) = applied.reply {
                self.settle(reply)?;
            }
        }
        for read in std::mem::take(&mut self.parked) {
            match self.answer(&read)? {
                Some(reply) => self.tell(read.ticket, reply),
                None => self.parked.push(read),
            }
        }
        Ok(())
    }

    fn settle(&mut self, reply: multicast::Reply) -> Result<()> {
        let Some(ticket) = self.updates.remove(&reply.id) else { return Ok(()) };
        let body = match reply.result {
            Ok(outcome) => {
                let outcome = codec::decode_outcome(&outcome).map_err(|error| Error::Broken(error.to_string()))?;
                let dependencies = self.core.order().depends_on().clone();
                let position = Position { index: reply.index, dependencies, ..Position::default() };
                Reply::Updated { outcome, position, is_noted: false, elsewhere: reply.elsewhere }
            }
            Err(rejection) => refused(rejection.by, rejection.reason),
        };
        self.tell(ticket, body);
        Ok(())
    }

    fn tell(&mut self, ticket: Ticket, body: Reply) {
        self.out.tells.push((ticket.mount, ToClient::Reply { request: ticket.request, body }));
    }

    /// Answers a read at once if that is possible, as the node's network thread does; else it is parked until a turn.
    ///
    /// # Errors
    /// If the state is damaged.
    pub fn read(&mut self, ticket: Ticket, clock: &VectorClock, op: ReadOp) -> Result<Option<Reply>> {
        let (index, effects) = (clock.index(self.group), clock.effects(self.group));
        let read = ParkedRead { ticket, index, effects, op };
        let reply = self.answer(&read)?;
        if reply.is_none() {
            self.parked.push(read);
        }
        Ok(reply)
    }

    fn answer(&self, read: &ParkedRead) -> Result<Option<Reply>> {
        let blocks = |keys: &[Key], effects: LogIndex| {
            !self.locked.is_empty() && keys.iter().any(|key| self.locked.get(key).is_some_and(|&at| at <= effects))
        };
        if self.applied < read.index || blocks(&read.op.keys(), read.effects) {
            return Ok(None);
        }
        let result = metadata::answer::read(&self.store, self.group, &read.op);
        let mut result = result.map_err(|error| Error::Broken(error.to_string()))?;
        let missing = matches!(result, Err(OpError::Errno(Errno::StaleHandle)));
        if missing && blocks(&read.op.keys_if_missing(self.group), read.effects) {
            return Ok(None);
        }
        if let Ok(answer) = &mut result {
            let effects = read.effects.max(self.dependencies.effects(self.group));
            answer.detach(|key| blocks(&[key], effects));
        }
        let dependencies = self.dependencies.clone();
        let position = Position { index: self.applied, dependencies, ..Position::default() };
        Ok(Some(Reply::Read { result, position }))
    }

    /// Starts to tell a mount of every step.
    pub fn subscribe(&mut self, mount: usize) {
        if !self.subscribers.contains(&mount) {
            self.subscribers.push(mount);
        }
    }

    /// Forgets the log that nobody needs.
    pub fn housekeep(&mut self) {
        let keep = self.core.truncatable_below().min(self.applied);
        let holds = |entry: Option<&Entry>| entry.map(|entry| entry.index);
        let (first, last) = (holds(self.log.front()), holds(self.log.back()));
        if first.is_some_and(|first| first < keep) && last.is_some_and(|last| last >= keep) {
            self.core.truncate_below(keep);
            while self.log.front().is_some_and(|entry| entry.index < keep) {
                self.log.pop_front();
            }
        }
    }
}

fn declined(group: GroupId, reason: Decline) -> Reply {
    let unavailable = |group, why: &str| Reply::Unavailable { group, why: why.into() };
    match reason {
        Decline::NotPrimary { hint } => Reply::NotPrimary { group, primary: hint },
        Decline::NotReady => unavailable(group, "not up to date yet"),
        Decline::Overloaded => unavailable(group, "too much is under way"),
        Decline::Unavailable { group } => unavailable(group, "the group does not answer"),
        Decline::WrongGroup => Reply::Invalid("the group is no destination".into()),
        Decline::Malformed => Reply::Invalid("the destinations make no sense".into()),
        Decline::Refused(reason) => refused(group, reason),
    }
}

fn refused(by: GroupId, reason: Refusal) -> Reply {
    match reason {
        Refusal::UnknownSession => Reply::UnknownSession { group: by },
        Refusal::StaleSequence => Reply::Invalid("stale".into()),
        Refusal::BeyondWindow => Reply::Invalid("too many unacknowledged".into()),
        Refusal::IdReused => Reply::Invalid("the id was used".into()),
    }
}
