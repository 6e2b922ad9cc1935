//! One replica: the shipped ordering core and the shipped namespace, composed as the node's group driver composes them, but
//! on a store in memory and with everything that touches the world handed back as [`Act`]s.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use metadata::namespace::{Genesis, genesis};
use metadata::protocol::{Position, Reply, Request, ToClient};
use metadata::types::TimeNs;
use metadata::{MemStore, Namespace, Overlay, WriteSet, codec};
use multicast::command::{Command, Key};
use multicast::core::{Core, Durable, SessionChange};
use multicast::ids::{CommandId, GroupId, LogIndex, ReplicaId, SessionId};
use multicast::record::Rejection;
use multicast::{Change, Config, Decline, Message, OrderState, Output, Record, Refusal, Time, Writes};
use xxhash_rust::xxh3::xxh3_64;

use crate::checks::ledger::{Entry, Ledger};
use crate::disk::Disk;
use crate::executor::Executor;
use crate::options::MS;
use crate::planted::Bug;
use crate::view::{PendingRead, View};

/// What a client is told of a sequence below its session's floor.
pub const STALE: &str = "the client has acknowledged this sequence already";
/// Entries applied in one write of the store.
const APPLY_BATCH_MAX: usize = 64;
/// So long a request waits before its client must ask again.
const TICKET_AGE_MAX_NS: u64 = 10_000 * MS;
/// The digest of the ordering state costs a walk over all of it.
const ORDER_DIGEST_INTERVAL: u64 = 8;

/// Whom to answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    /// The client.
    pub client: usize,
    /// Its connection.
    pub connection: u64,
    /// Its request.
    pub request: u64,
    /// When it came.
    pub since: u64,
}

/// Something for the world to do, in this order.
#[derive(Debug)]
pub enum Act {
    /// Write to the log; tell the token once it is durable.
    Persist(u64, Writes),
    /// Send to another replica.
    Send((GroupId, ReplicaId), Message),
    /// Send to a client, if that connection still is.
    Tell(usize, u64, ToClient),
    /// Read the log back.
    ReadLog(LogIndex, usize),
    /// Worth a line in the trace.
    Note(String),
    /// Must never happen.
    Violation(String),
}

/// What survives the process, beside the log.
#[derive(Debug, Default)]
pub struct Saved {
    store: MemStore,
    order: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// One replica of one group.
pub struct Replica {
    /// Its core's configuration.
    pub config: Config,
    lease_ns: u64,
    saved: Saved,
    /// While its process lives.
    pub live: Option<Live>,
    bug: Option<Bug>,
}

/// What only lives in memory.
pub struct Live {
    /// The ordering core.
    pub core: Core,
    /// The state.
    pub store: MemStore,
    unflushed: WriteSet,
    unflushed_order: WriteSet,
    flushed: LogIndex,
    /// What readers see.
    pub view: View,
    updates: BTreeMap<CommandId, Ticket>,
    sessions: BTreeMap<SessionId, Vec<Ticket>>,
    linearize: Vec<PendingRead>,
    barriers: VecDeque<(LogIndex, PendingRead)>,
    heard: BTreeMap<SessionId, u64>,
    ready_since: Option<u64>,
    /// The planted bug: what was changed and nobody told.
    late: Vec<Key>,
    /// A turn is scheduled.
    pub woken: bool,
    /// When the timer that is set goes off.
    pub timer: Option<u64>,
    acts: Vec<Act>,
}

impl Replica {
    /// A replica that has never run.
    #[must_use]
    pub fn new(config: Config, lease_ns: u64, bug: Option<Bug>) -> Replica {
        Replica { config, lease_ns, saved: Saved::default(), live: None, bug }
    }

    fn group(&self) -> GroupId {
        self.config.group
    }

    /// Starts from what is on disk.
    ///
    /// # Errors
    /// If what is there makes no sense: a violation.
    pub fn start(&mut self, now: Time, disk: &Disk, parked_ns: u64) -> Result<(), String> {
        let group = self.group();
        let mut store = self.saved.store.clone();
        let mut unflushed = WriteSet::new();
        if store.rows().next().is_none() {
            unflushed = first_rows(&store, group).map_err(|error| error.to_string())?;
            store.apply(unflushed.clone());
        }
        let lost = |key: &[u8]| match self.bug {
            Some(Bug::LosePrepared) => key.first() == Some(&b'p'),
            Some(Bug::LoseReplies) => key.first() == Some(&b'r'),
            _ => false,
        };
        let rows = self.saved.order.iter().filter(|(key, _)| !lost(key));
        let rows: Vec<(Vec<u8>, Vec<u8>)> = rows.map(|(key, value)| (key.clone(), value.clone())).collect();
        let order = if rows.is_empty() { Ok(OrderState::new(group)) } else { OrderState::load(group, rows) };
        let order = order.map_err(|error| error.to_string())?;
        let image = disk.image(group);
        let first = image.entries.first_key_value().map_or(LogIndex::ZERO, |(&index, _)| index);
        let entries = image.entries.range(order.applied()..).map(|(_, entry)| entry.clone()).collect();
        let durable = Durable { promised: image.promised, first, entries };
        self.config.seed = self.config.seed.wrapping_add(1);
        let view = View::new(group, &order, parked_ns, self.bug);
        let flushed = order.applied();
        let core = Core::new(now, self.config.clone(), durable, order);
        let mut core = core.map_err(|error| error.to_string())?;
        core.restore_committed(image.committed);
        self.live = Some(Live {
            core,
            store,
            unflushed,
            unflushed_order: WriteSet::new(),
            flushed,
            view,
            updates: BTreeMap::new(),
            sessions: BTreeMap::new(),
            linearize: Vec::new(),
            barriers: VecDeque::new(),
            heard: BTreeMap::new(),
            ready_since: None,
            late: Vec::new(),
            woken: false,
            timer: None,
            acts: Vec::new(),
        });
        Ok(())
    }

    /// The process is gone.
    pub fn crash(&mut self) {
        self.live = None;
    }

    /// The store makes what was applied durable.
    pub fn flush_store(&mut self) {
        let Some(live) = &mut self.live else { return };
        self.saved.store.apply(std::mem::take(&mut live.unflushed));
        for (key, value) in std::mem::take(&mut live.unflushed_order) {
            match value {
                Some(value) => self.saved.order.insert(key, value),
                None => self.saved.order.remove(&key),
            };
        }
        live.flushed = live.core.order().applied();
    }

    /// A client's request to this group.
    pub fn handle_request(&mut self, (now, time): (u64, Time), ticket: Ticket, request: Request) {
        let bug = self.bug;
        let Some(live) = &mut self.live else { return };
        match request {
            Request::OpenSession { session, .. } => {
                live.heard.insert(session, now);
                live.sessions.entry(session).or_default().push(ticket);
                live.core.handle_session(time, SessionChange::Open(session));
            }
            Request::CloseSession { session, .. } => {
                live.sessions.entry(session).or_default().push(ticket);
                live.core.handle_session(time, SessionChange::Close(session));
            }
            Request::Subscribe { session, .. } => live.view.subscribe(session, ticket, &mut live.acts),
            Request::Update { command, .. } => {
                live.heard.insert(command.id.session, now);
                live.updates.insert(command.id, ticket);
                live.core.handle_submit(time, std::sync::Arc::new(strip(command, bug)));
            }
            Request::Read { session, clock, linearizable, op, group } => {
                let (index, effects) = (clock.index(group), clock.effects(group));
                let read = PendingRead { ticket, session, index, effects, op };
                if linearizable {
                    live.linearize.push(read);
                } else {
                    live.view.serve(now, &live.store, read, &mut live.acts);
                }
            }
            Request::KeepAlive { .. } | Request::Status => {}
        }
    }

    /// Notes that a session lives.
    pub fn keep_alive(&mut self, session: SessionId, now: u64) {
        if let Some(live) = &mut self.live {
            live.heard.insert(session, now);
        }
    }

    /// A step of what remains to be done: outputs, else one batch of committed entries. `None` if nothing was left.
    pub fn step(&mut self, now: u64, time: Time, disk: &Disk, ledger: &mut Ledger) -> Option<Vec<Act>> {
        let (bug, group) = (self.bug, self.group());
        let live = self.live.as_mut()?;
        live.append_barrier(time);
        live.do_outputs(group, bug);
        let applied = live.acts.is_empty() && live.apply(group, (now, time), disk, ledger, bug);
        let acts = std::mem::take(&mut live.acts);
        (applied || !acts.is_empty()).then_some(acts)
    }

    /// Requests that are too old, sessions that are silent, log that nobody needs. Returns where to trim the log.
    pub fn housekeep(&mut self, now: u64, time: Time, disk: &Disk) -> Option<LogIndex> {
        let (bug, lease_ns) = (self.bug, self.lease_ns);
        let group = self.group();
        let live = self.live.as_mut()?;
        live.forget_old(group, now, time);
        live.expire_sessions(now, time, lease_ns);
        live.view.serve_parked(now, &live.store, &mut live.acts);
        let everywhere =
            if bug == Some(Bug::TrimTooEarly) { LogIndex(u64::MAX) } else { live.core.truncatable_below() };
        let keep = everywhere.min(live.flushed);
        disk.has(group, keep).then(|| {
            live.core.truncate_below(keep);
            keep
        })
    }
}

/// The first rows of a group: the same on all its replicas.
fn first_rows(store: &MemStore, group: GroupId) -> Result<WriteSet, metadata::Error> {
    let mut overlay = Overlay::new(store)?;
    let start = Genesis { inline_bytes_max: 64, uid: 0, gid: 0, mode: 0o755, time: TimeNs(1) };
    genesis(&mut overlay, group, &start)?;
    Ok(overlay.into_writes())
}

/// What a client that forgets keys would send.
fn strip(mut command: Command, bug: Option<Bug>) -> Command {
    for destination in &mut command.destinations {
        match bug {
            Some(Bug::IgnoreReadKeys) => destination.footprint.retain(|(_, mode)| mode.changes()),
            Some(Bug::IgnoreConflicts) => destination.footprint.clear(),
            _ => {}
        }
    }
    command
}

impl Live {
    fn do_outputs(&mut self, group: GroupId, bug: Option<Bug>) {
        while let Some(output) = self.core.poll_output() {
            match output {
                Output::Persist { token, writes } => {
                    if bug == Some(Bug::ReplyBeforeCommit) {
                        self.reply_early(group, &writes);
                    }
                    self.acts.push(Act::Persist(token, writes));
                }
                Output::Send { to, message } => self.acts.push(Act::Send(to, message)),
                Output::Reply(reply) => self.settle_update(group, reply),
                Output::Declined { id, reason } => {
                    if let Some(ticket) = self.updates.remove(&id) {
                        self.acts.push(tell(ticket, declined(group, reason)));
                    }
                }
                Output::SessionDeclined { session, reason } => {
                    for ticket in self.sessions.remove(&session).unwrap_or_default() {
                        self.acts.push(tell(ticket, declined(group, reason)));
                    }
                }
                Output::ReadLog { from, bytes_max } => self.acts.push(Act::ReadLog(from, bytes_max)),
                Output::Event(event) => self.note_event(group, event),
            }
        }
    }

    fn note_event(&mut self, group: GroupId, event: multicast::Event) {
        use multicast::Event;
        match event {
            Event::BecameReady { .. } => self.ready_since = None,
            Event::BecameFollower { primary } => {
                self.ready_since = None;
                let updates = std::mem::take(&mut self.updates).into_values();
                let sessions = std::mem::take(&mut self.sessions).into_values().flatten();
                let reads = self.barriers.drain(..).map(|(_, read)| read.ticket);
                for ticket in updates.chain(sessions).chain(reads) {
                    self.acts.push(tell(ticket, Reply::NotPrimary { group, primary }));
                }
            }
            Event::IgnoredMessage { from, reason } => {
                // Honest replicas may be late, never wrong.
                self.acts.push(Act::Violation(format!("{group} ignored a message from {from:?}: {reason}")));
            }
            Event::FollowerBeyondHelp { replica, from } => {
                self.acts.push(Act::Violation(format!("{replica} of {group} needs entry {from}, which is gone")));
            }
            Event::BecamePrimary { .. } => {}
        }
        self.view.front.primary = self.core.primary();
        self.acts.push(Act::Note(format!("{event:?}")));
    }

    fn apply(
        &mut self,
        group: GroupId,
        (now, time): (u64, Time),
        disk: &Disk,
        ledger: &mut Ledger,
        bug: Option<Bug>,
    ) -> bool {
        let Some((batch, writes, changes)) = self.execute(group, time, disk, ledger, bug) else { return false };
        let order_rows = self.core.order_mut().drain_changes();
        self.unflushed.extend(writes.clone());
        self.store.apply(writes);
        self.unflushed_order.extend(order_rows);
        let order = self.core.order();
        self.view.front.primary = self.core.primary();
        self.view.advance(order);
        let mut changed = std::mem::take(&mut self.late);
        if bug == Some(Bug::InvalidateLate) {
            self.late.clone_from(&changes.keys);
        } else {
            changed.extend(&changes.keys);
        }
        self.view.publish(&changed, &changes.orphans, &mut self.acts);
        for applied in batch {
            self.settle(group, applied);
        }
        self.view.serve_parked(now, &self.store, &mut self.acts);
        self.serve_barriers(now);
        true
    }

    fn execute(
        &mut self,
        group: GroupId,
        time: Time,
        disk: &Disk,
        ledger: &mut Ledger,
        bug: Option<Bug>,
    ) -> Option<(Vec<multicast::Applied>, WriteSet, metadata::Changes)> {
        let opened = Overlay::new(&self.store).and_then(|overlay| Namespace::open(group, overlay));
        let mut namespace = match opened {
            Ok(namespace) => namespace,
            Err(error) => {
                self.acts.push(Act::Violation(format!("the namespace of {group} cannot be opened: {error}")));
                return None;
            }
        };
        let mut batch = Vec::new();
        while batch.len() < APPLY_BATCH_MAX {
            let mut executor = Executor::new(&mut namespace, time, bug);
            let Some(applied) = self.core.apply_next(time, &mut executor) else { break };
            let index = applied.index;
            let order_digest = index.0.is_multiple_of(ORDER_DIGEST_INTERVAL).then(|| self.core.order().digest());
            let entry = Entry {
                group,
                index,
                record: disk.record(group, index).map(|record| xxh3_64(&record)),
                digest: namespace.store().digest(),
                order_digest,
                applied: &applied,
            };
            ledger.applied(&entry, namespace.store());
            batch.push(applied);
        }
        if let Some(error) = namespace.failure() {
            self.acts.push(Act::Violation(format!("the namespace of {group} failed: {error}")));
        }
        let changes = namespace.take_changes();
        (!batch.is_empty()).then(|| (batch, namespace.into_store().into_writes(), changes))
    }

    fn settle(&mut self, group: GroupId, applied: multicast::Applied) {
        let position = Position { index: applied.index, dependencies: self.core.order().depends_on().clone() };
        let sessions = match applied.change {
            Change::SessionOpened(session) => vec![session],
            Change::SessionsClosed(sessions) => sessions,
            Change::Nothing
            | Change::Executed(_)
            | Change::Locked(_)
            | Change::Committed(_)
            | Change::Aborted(_)
            | Change::Refused(_)
            | Change::Skipped(_) => Vec::new(),
        };
        for ticket in sessions.into_iter().flat_map(|session| self.sessions.remove(&session).unwrap_or_default()) {
            self.acts.push(tell(ticket, Reply::Session(position.clone())));
        }
        if let Some(reply) = applied.reply {
            self.settle_update(group, reply);
        }
    }

    fn settle_update(&mut self, group: GroupId, reply: multicast::Reply) {
        let Some(ticket) = self.updates.remove(&reply.id) else { return };
        let dependencies = self.core.order().depends_on().clone();
        let body = match reply.result {
            Ok(outcome) => match codec::decode_outcome(&outcome) {
                Ok(outcome) => {
                    Reply::Updated { outcome, position: Position { index: reply.index, dependencies }, is_noted: false }
                }
                Err(error) => {
                    return self.acts.push(Act::Violation(format!("{group}: an outcome is damaged: {error}")));
                }
            },
            Err(rejection) => refused(rejection),
        };
        self.acts.push(tell(ticket, body));
    }

    /// The planted bug: what is logged is executed on the side and answered.
    fn reply_early(&mut self, group: GroupId, writes: &Writes) {
        for entry in &writes.append {
            let Ok(Record::Single { command, timestamp }) = Record::decode(&entry.record) else { continue };
            let Some(ticket) = self.updates.remove(&command.id) else { continue };
            let Ok(overlay) = Overlay::new(&self.store) else { continue };
            let Ok(mut namespace) = Namespace::open(group, overlay) else { continue };
            let now = TimeNs(i64::try_from(timestamp.0).unwrap_or(i64::MAX));
            let outcome: Bytes = namespace.execute(now, &command, &BTreeMap::new());
            if let Ok(outcome) = codec::decode_outcome(&outcome) {
                let dependencies = self.core.order().depends_on().clone();
                let position = Position { index: entry.index, dependencies };
                self.acts.push(tell(ticket, Reply::Updated { outcome, position, is_noted: false }));
            }
        }
    }

    /// One record for all reads that must see what was executed before they came.
    fn append_barrier(&mut self, time: Time) {
        let reads = std::mem::take(&mut self.linearize);
        if reads.is_empty() {
            return;
        }
        let last = self.core.status().last;
        if self.core.is_ready() {
            self.core.handle_tick(time);
        }
        let status = self.core.status();
        for read in reads {
            if status.last > last {
                self.barriers.push_back((last.next(), read));
            } else {
                let own = status.primary == Some(status.replica);
                let reason = if own { Decline::NotReady } else { Decline::NotPrimary { hint: status.primary } };
                self.acts.push(tell(read.ticket, declined(status.group, reason)));
            }
        }
    }

    fn serve_barriers(&mut self, now: u64) {
        let applied = self.core.order().applied();
        while self.barriers.front().is_some_and(|&(index, _)| index <= applied) {
            let Some((index, mut read)) = self.barriers.pop_front() else { break };
            read.index = read.index.max(index);
            self.view.serve(now, &self.store, read, &mut self.acts);
        }
    }

    fn forget_old(&mut self, group: GroupId, now: u64, time: Time) {
        let is_over = |ticket: &Ticket| now - ticket.since >= TICKET_AGE_MAX_NS;
        let expired = || Reply::Unavailable { group, why: "the update waits for others".into() };
        let old: Vec<CommandId> =
            self.updates.iter().filter(|(_, ticket)| is_over(ticket)).map(|(&id, _)| id).collect();
        for id in old {
            if let Some(ticket) = self.updates.remove(&id) {
                self.acts.push(tell(ticket, expired()));
            }
            self.core.handle_withdraw(time, id);
        }
        let acts = &mut self.acts;
        self.sessions.retain(|_, tickets| {
            tickets.extract_if(.., |ticket| is_over(ticket)).for_each(|ticket| acts.push(tell(ticket, expired())));
            !tickets.is_empty()
        });
    }

    fn expire_sessions(&mut self, now: u64, time: Time, lease_ns: u64) {
        if !self.core.is_ready() {
            self.ready_since = None;
            return;
        }
        let since = *self.ready_since.get_or_insert(now);
        if now - since <= lease_ns {
            return;
        }
        let heard = |session: &SessionId| self.heard.get(session).copied().unwrap_or(since).max(since);
        let silent: Vec<SessionId> =
            self.core.order().sessions().filter(|session| now - heard(session) > lease_ns).collect();
        for session in silent {
            self.acts.push(Act::Note(format!("session {session} expires")));
            self.core.handle_session(time, SessionChange::Close(session));
        }
    }
}

/// A reply to a client.
pub fn tell(ticket: Ticket, body: Reply) -> Act {
    Act::Tell(ticket.client, ticket.connection, ToClient::Reply { request: ticket.request, body })
}

fn declined(group: GroupId, reason: Decline) -> Reply {
    let unavailable = |group, why: &str| Reply::Unavailable { group, why: why.into() };
    match reason {
        Decline::NotPrimary { hint } => Reply::NotPrimary { group, primary: hint },
        Decline::NotReady => unavailable(group, "the group's new primary is not up to date yet"),
        Decline::Overloaded => unavailable(group, "too much is under way"),
        Decline::Unavailable { group } => unavailable(group, "the group does not answer"),
        Decline::WrongGroup => Reply::Invalid("the group is not among the command's destinations".into()),
        Decline::Malformed => Reply::Invalid("the command's destinations make no sense".into()),
        Decline::Refused(reason) => refused(Rejection { by: group, reason }),
    }
}

fn refused(rejection: Rejection) -> Reply {
    match rejection.reason {
        Refusal::UnknownSession => Reply::UnknownSession { group: rejection.by },
        Refusal::StaleSequence => Reply::Invalid(STALE.into()),
        Refusal::BeyondWindow => Reply::Invalid("too many sequences are not acknowledged".into()),
        Refusal::IdReused => Reply::Invalid("the command's id was used for something else".into()),
    }
}
