//! The thread of one replica. Each turn: take all inputs, let the core think, make durable and send what it says, apply
//! what is committed in one write of the store, tell the clients.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use metadata::types::InodeId;
use metadata::{Namespace, Overlay};
use multicast::command::Key;
use multicast::core::{Core, SessionChange};
use multicast::ids::{GroupId, LogIndex};
use multicast::{Applied, Change, Decline, Entry, Event, Output, Time, Writes};

use super::mailbox::{Input, Mailbox};
use super::replies::Waiting;
use super::session::KeepAlives;
use super::taught::BatchKeys;
use super::view::{Advance, LockedKeys, PendingRead, View};
use crate::clock::Clock;
use crate::error::{Error, Result};
use crate::server::peers::{Outbox, Router};
use crate::status::{DIGEST_INTERVAL, GroupStatus};
use crate::storage::state::GroupState;
use crate::storage::wal::{Wal, WalRecord};

/// Entries applied in one write of the store: readers wait for no more than that.
const APPLY_BATCH_MAX: usize = 512;
/// Rounds of one turn: inputs, heartbeats among them, do not wait for long while much is to be applied.
const ROUNDS_MAX: usize = 8;
/// Digests kept for comparison.
const DIGESTS_MAX: usize = 64;
/// Between ticks that go on with what is left to be removed: whatever else executes goes on with it, too.
const TICK_PAUSE: Duration = Duration::from_millis(20);
/// The thread looks at its timers at least so often.
const TURN_MAX: Duration = Duration::from_secs(1);

/// What a replica's thread works with.
pub struct DriverParts {
    /// Its group.
    pub group: GroupId,
    /// The group's name.
    pub name: String,
    /// How long a session may be silent.
    pub session_lease: Duration,
    /// The ordering core, as recovered.
    pub core: Core,
    /// The state, as recovered.
    pub state: GroupState,
    /// What readers see.
    pub view: Arc<View>,
    /// The way in.
    pub mailbox: Arc<Mailbox>,
    /// The node's log.
    pub wal: Arc<Wal>,
    /// The way to other replicas.
    pub router: Arc<Router>,
    /// When sessions were last heard of.
    pub keep_alives: Arc<KeepAlives>,
    /// The node's time.
    pub clock: Clock,
}

/// Entries that are applied in one step, each with its end in the keys that they changed.
#[derive(Default)]
struct Batch {
    entries: Vec<(Applied, usize)>,
    changed: BatchKeys,
    orphans: Vec<InodeId>,
}

/// A replica's thread.
pub struct Driver {
    parts: DriverParts,
    waiting: Waiting,
    /// Reads that wait for a record appended after they came to be applied in the same reign.
    barriers: VecDeque<(LogIndex, PendingRead)>,
    outbox: Outbox,
    ready_since: Option<Instant>,
    digests: BTreeMap<u64, u128>,
    executed: u64,
    /// When to see whether something is left to be removed, and to log a tick if so.
    tick_at: Option<Time>,
    /// The turn ended before everything was done.
    more: bool,
    stop: bool,
}

impl Driver {
    /// Around a recovered replica.
    pub fn new(parts: DriverParts) -> Driver {
        Driver {
            waiting: Waiting::new(parts.group),
            barriers: VecDeque::new(),
            outbox: Outbox::new(parts.group),
            ready_since: None,
            digests: BTreeMap::new(),
            executed: 0,
            tick_at: None,
            more: true,
            stop: false,
            parts,
        }
    }

    /// Runs until told to stop. An error is final for the node.
    pub fn run(mut self) -> Result<()> {
        let mut inputs = Vec::new();
        while !self.stop {
            let timeout = self.timeout();
            self.parts.mailbox.take(&mut inputs, timeout);
            self.turn(&mut inputs)?;
        }
        Ok(())
    }

    fn timeout(&self) -> Duration {
        if self.more {
            return Duration::ZERO;
        }
        let now = self.parts.clock.now();
        let due = self.parts.core.poll_timeout().into_iter().chain(self.tick_at).min();
        due.map_or(TURN_MAX, |due| Duration::from_nanos(due.0.saturating_sub(now.0))).min(TURN_MAX)
    }

    fn turn(&mut self, inputs: &mut Vec<Input>) -> Result<()> {
        let now = self.parts.clock.now();
        let mut linearize = Vec::new();
        for input in inputs.drain(..) {
            match input {
                Input::Message { from, message, .. } => self.parts.core.handle_message(now, from, message),
                Input::Persisted(token) => self.parts.core.handle_persisted(now, token),
                Input::Submit { command, ticket } => {
                    self.waiting.add_update(command.id, ticket);
                    self.parts.core.handle_submit(now, command);
                }
                Input::Session { change, ticket } => {
                    let (SessionChange::Open(session) | SessionChange::Close(session)) = change;
                    self.waiting.add_session(session, ticket);
                    self.parts.core.handle_session(now, change);
                }
                Input::Linearize(read) => linearize.push(read),
                Input::Housekeep => self.housekeep(),
                Input::Report(report) => report(self.status()),
                Input::Stop => self.stop = true,
            }
        }
        self.append_barrier(linearize);
        if self.parts.core.poll_timeout().is_some_and(|due| due <= now) {
            self.parts.core.handle_timeout(now);
        }
        if self.tick_at.is_some_and(|due| due <= now) {
            self.tick_at = None;
            self.go_on_removing(now)?;
        }
        // Applying lets the core say more, and what it says may let more be applied.
        self.more = true;
        for _ in 0..ROUNDS_MAX {
            let said = self.do_outputs()?;
            let applied = self.apply()?;
            if !said && !applied {
                self.more = false;
                break;
            }
        }
        Ok(())
    }

    /// Does what the core wants; true if it wanted anything.
    fn do_outputs(&mut self) -> Result<bool> {
        let mut records = Vec::new();
        let mut newest = None;
        let mut any = false;
        while let Some(output) = self.parts.core.poll_output() {
            any = true;
            match output {
                Output::Persist { token, writes } => {
                    log_records(self.parts.group, writes, &mut records);
                    newest = Some(token);
                }
                Output::Send { to, message } => self.parts.router.post(&mut self.outbox, to, message),
                Output::Reply(reply) => {
                    let dependencies = self.parts.core.order().depends_on();
                    self.waiting.settle_update(reply, dependencies);
                }
                Output::Declined { id, reason } => self.waiting.decline_update(id, reason),
                Output::SessionDeclined { session, reason } => self.waiting.decline_session(session, reason),
                Output::ReadLog { from, bytes_max } => self.read_log(from, bytes_max)?,
                Output::Event(event) => self.note_event(event),
            }
        }
        if let Some(token) = newest {
            // The flush begins while this thread goes on.
            let mailbox = self.parts.mailbox.clone();
            let done = Box::new(move || mailbox.push(Input::Persisted(token)));
            self.parts.wal.submit(records, done);
        }
        if any {
            self.parts.router.flush(&mut self.outbox);
        }
        Ok(any)
    }

    /// Applies a batch of what is committed; true if there was anything.
    fn apply(&mut self) -> Result<bool> {
        let now = self.parts.clock.now();
        let damaged = |error: metadata::Error| Error::State(error.to_string());
        let overlay = Overlay::new(&self.parts.state).map_err(damaged)?;
        let mut namespace = Namespace::open(self.parts.group, overlay).map_err(damaged)?;
        let mut batch = Batch::default();
        while batch.entries.len() < APPLY_BATCH_MAX {
            let Some(applied) = self.parts.core.apply_next(now, &mut namespace) else { break };
            if applied.index.0.is_multiple_of(DIGEST_INTERVAL) {
                self.digests.insert(applied.index.0, namespace.store().digest());
            }
            let changes = namespace.take_changes();
            batch.orphans.extend(changes.orphans);
            batch.entries.push((applied, batch.changed.push(changes.keys)));
        }
        if batch.entries.is_empty() {
            return Ok(false);
        }
        if let Some(error) = namespace.failure() {
            return Err(Error::State(error.to_string()));
        }
        while self.digests.len() > DIGESTS_MAX {
            self.digests.pop_first();
        }
        let is_left = metadata::namespace::left_for_later(namespace.store()).map_err(damaged)? > 0;
        let writes = namespace.into_store().into_writes();
        self.publish(batch, writes)?;
        if is_left {
            self.tick_soon(now);
        }
        self.serve_barriers();
        Ok(true)
    }

    /// Moves the readable state on and tells the clients: events first, then replies.
    fn publish(&mut self, batch: Batch, writes: metadata::WriteSet) -> Result<()> {
        let order_rows = self.parts.core.order_mut().drain_changes();
        let order = self.parts.core.order();
        let locks_changed = batch.entries.iter().any(|(applied, _)| changes_locks(applied));
        let view = self.parts.view.clone();
        let mut step = view.advance();
        self.parts.state.write(writes, &order_rows, order.applied())?;
        step.front.applied = order.applied();
        step.front.dependencies.clone_from(order.depends_on());
        step.front.primary = self.parts.core.primary();
        if locks_changed {
            step.front.locked = Arc::new(locked_keys(order));
        }
        step.publish(batch.changed.all(), &batch.orphans);
        for (applied, end) in batch.entries {
            let is_changed = |key| batch.changed.is_changed_behind(end, key);
            self.settle(applied, &is_changed, &step);
        }
        step.finish();
        Ok(())
    }

    /// `is_changed`: a later entry of the step has changed that key, too.
    fn settle(&mut self, applied: Applied, is_changed: &dyn Fn(Key) -> bool, step: &Advance<'_>) {
        let dependencies = self.parts.core.order().depends_on();
        match &applied.change {
            Change::Executed(_) => self.executed += 1,
            Change::SessionOpened(session) => self.waiting.settle_session(*session, applied.index, dependencies),
            Change::SessionsClosed(sessions) => {
                for &session in sessions {
                    self.waiting.settle_session(session, applied.index, dependencies);
                }
            }
            Change::Nothing
            | Change::Locked(_)
            | Change::Committed(_)
            | Change::Aborted(_)
            | Change::Refused(_)
            | Change::Skipped(_) => {}
        }
        match (applied.reply, &applied.change) {
            (Some(reply), Change::Executed(command)) => {
                self.waiting.settle_executed(reply, command, is_changed, step);
            }
            (Some(reply), _) => self.waiting.settle_update(reply, dependencies),
            (None, _) => {}
        }
    }

    fn read_log(&mut self, from: LogIndex, bytes_max: usize) -> Result<()> {
        let (group, now) = (self.parts.group, self.parts.clock.now());
        let last = self.parts.wal.state(group).last.0;
        let entries = self.parts.wal.read(group, from, last, bytes_max)?;
        let entries =
            entries.into_iter().map(|entry| Entry { index: entry.index, ballot: entry.ballot, record: entry.bytes });
        self.parts.core.handle_log_read(now, entries.collect());
        Ok(())
    }

    fn note_event(&mut self, event: Event) {
        let group = self.parts.group;
        match event {
            Event::BecamePrimary { ballot } => tracing::info!(%group, ballot = ballot.round, "primary"),
            Event::BecameReady { ballot } => {
                tracing::info!(%group, ballot = ballot.round, "primary, up to date");
                self.ready_since = Some(Instant::now());
                self.tick_soon(self.parts.clock.now());
            }
            Event::BecameFollower { primary } => {
                tracing::info!(%group, primary = primary.map(|primary| primary.0), "follower");
                self.ready_since = None;
                self.waiting.send_to_primary(primary);
                for (_, read) in self.barriers.drain(..) {
                    read.ticket.reply(metadata::protocol::Reply::NotPrimary { group, primary });
                }
            }
            Event::IgnoredMessage { from, reason } => {
                tracing::debug!(%group, from_group = %from.0, replica = %from.1, reason, "ignored a message");
            }
            Event::FollowerBeyondHelp { replica, from } => {
                tracing::error!(%group, %replica, index = from.0, "a follower needs log entries that are gone");
            }
        }
        let primary = self.parts.core.primary();
        if self.parts.view.primary() != primary {
            let mut step = self.parts.view.advance();
            step.front.primary = primary;
            step.finish();
        }
    }

    /// One record for all reads of this turn that must see everything executed before they came. When this primary applies
    /// it in the same reign, a quorum has confirmed that nobody else appended in between.
    fn append_barrier(&mut self, reads: Vec<PendingRead>) {
        if reads.is_empty() {
            return;
        }
        let last = self.parts.core.status().last;
        if self.parts.core.is_ready() {
            self.parts.core.handle_tick(self.parts.clock.now());
        }
        let appended = self.parts.core.status().last > last;
        for read in reads {
            if appended {
                self.barriers.push_back((last.next(), read));
            } else {
                let status = self.parts.core.status();
                let own = status.primary == Some(status.replica);
                let reason = if own { Decline::NotReady } else { Decline::NotPrimary { hint: status.primary } };
                read.ticket.reply(self.waiting.declined(reason));
            }
        }
    }

    fn serve_barriers(&mut self) {
        let applied = self.parts.core.order().applied();
        while self.barriers.front().is_some_and(|&(index, _)| index <= applied) {
            let Some((index, read)) = self.barriers.pop_front() else { break };
            self.parts.view.serve(read.not_before(index));
        }
    }

    fn tick_soon(&mut self, now: Time) {
        if self.tick_at.is_none() && self.parts.core.is_ready() {
            self.tick_at = Some(Time(now.0 + TICK_PAUSE.as_nanos() as u64));
        }
    }

    /// What is removed in steps goes on in an idle group, too: its primary logs ticks until nothing is left.
    fn go_on_removing(&mut self, now: Time) -> Result<()> {
        let left = metadata::namespace::left_for_later(&self.parts.state);
        if left.map_err(|error| Error::State(error.to_string()))? > 0 && self.parts.core.is_ready() {
            self.parts.core.handle_tick(now);
        }
        Ok(())
    }

    fn housekeep(&mut self) {
        for id in self.waiting.forget_old(Instant::now()) {
            self.parts.core.handle_withdraw(self.parts.clock.now(), id);
        }
        self.expire_sessions();
        self.trim_log();
    }

    fn expire_sessions(&mut self) {
        let Some(since) = self.ready_since.filter(|_| self.parts.core.is_ready()) else { return };
        let (now, lease) = (Instant::now(), self.parts.session_lease);
        let sessions = self.parts.core.order().sessions();
        for session in self.parts.keep_alives.expired(sessions, now, since, lease) {
            tracing::info!(group = %self.parts.group, %session, "session expired");
            self.parts.core.handle_session(self.parts.clock.now(), SessionChange::Close(session));
        }
    }

    /// The log is needed for followers that lack it, and for what the store has not flushed. The entry at the flushed index
    /// stays: it tells where the log goes on.
    fn trim_log(&mut self) {
        let keep = self.parts.core.truncatable_below().min(self.parts.state.flushed_index());
        let trimmed = self.parts.wal.state(self.parts.group).trimmed.0;
        if keep.0 <= trimmed.0 + 1 {
            return;
        }
        let through = LogIndex(keep.0 - 1);
        let Some(ballot) = self.parts.wal.ballot(self.parts.group, through) else { return };
        let record = WalRecord::Trim { group: self.parts.group, through, ballot };
        self.parts.wal.submit(vec![record], Box::new(|| {}));
        self.parts.core.truncate_below(keep);
    }

    fn status(&self) -> GroupStatus {
        let mut status = crate::status::of_core(&self.parts.core, self.parts.clock.now());
        status.name.clone_from(&self.parts.name);
        status.flushed_index = self.parts.state.flushed_index().0;
        status.first_index = self.parts.wal.state(self.parts.group).trimmed.0.0 + 1;
        let digest = metadata::store::stored_digest(&self.parts.state).unwrap_or_default();
        status.digest = format!("{digest:032x}");
        status.digests = self.digests.iter().map(|(&index, digest)| (index, format!("{digest:032x}"))).collect();
        (status.subscribers, status.interest_keys, status.parked_reads) = self.parts.view.figures();
        status.executed = self.executed;
        status.removals_left = metadata::namespace::left_for_later(&self.parts.state).unwrap_or_default();
        status
    }
}

fn log_records(group: GroupId, writes: Writes, records: &mut Vec<WalRecord>) {
    if let Some((promised, committed)) = writes.committed {
        records.push(WalRecord::HardState { group, promised, committed });
    } else if let Some(promised) = writes.promised {
        records.push(WalRecord::HardState { group, promised, committed: LogIndex::ZERO });
    }
    if let Some(from) = writes.truncate_from {
        records.push(WalRecord::Truncate { group, from });
    }
    records.extend(writes.rewrite.into_iter().chain(writes.append).map(|entry| WalRecord::Append {
        group,
        index: entry.index,
        ballot: entry.ballot,
        bytes: entry.record,
    }));
}

fn changes_locks(applied: &Applied) -> bool {
    match &applied.change {
        Change::Locked(_) | Change::Aborted(_) => true,
        Change::Executed(command) => command.is_multi_group(),
        Change::Nothing
        | Change::Committed(_)
        | Change::Refused(_)
        | Change::Skipped(_)
        | Change::SessionOpened(_)
        | Change::SessionsClosed(_) => false,
    }
}

/// What readers must wait for, the first lock of each key.
pub fn locked_keys(order: &multicast::OrderState) -> LockedKeys {
    let mut locked = LockedKeys::new();
    for (key, index, _) in order.changing_locks() {
        let first = locked.entry(key).or_insert(index);
        *first = index.min(*first);
    }
    locked
}
