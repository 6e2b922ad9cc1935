//! The replica as a value.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use metadata::operate::Refusal;
use metadata::protocol::Reply;
use metadata::{Error, Namespace, Overlay, Store};
use multicast::command::{Command, Key};
use multicast::core::{Core, SessionChange};
use multicast::ids::{CommandId, GroupId, Incarnation, LogIndex, ReplicaId, SessionId};
use multicast::{
    Applied, Change, ChangeRefused, Decline, Entry, Event, ForceRefused, InstallRefused, MemberChange, Membership,
    Message, OrderState, Time, Writes,
};

use crate::apply::{Apply, Batch, Step, changes_locks};
use crate::client::{Tell, Ticket};
use crate::digests::{Digests, Divergence};
use crate::front::{Front, PendingRead, locked_keys};
use crate::interest::{Interest, PROGRESS_PAUSE_MS};
use crate::leases::Leases;
use crate::replies::{StepEnd, Waiting};
use crate::taught;

/// Members compare their states at multiples of this index.
pub const DIGEST_INTERVAL: u64 = 1000;

/// Between ticks that go on with what is left to be removed: whatever else executes goes on with it, too.
const TICK_PAUSE_MS: u64 = 20;

/// How often a quarantined replica asks for a copy of its group's state.
const ASK_COPY_PAUSE_MS: u64 = 1000;

/// What a replica does beyond ordering.
#[derive(Clone, Copy, Debug)]
pub struct ReplicaConfig {
    /// Its group.
    pub group: GroupId,
    /// How long a session may be silent.
    pub session_lease_ms: u64,
    /// Most entries applied in one write of the store: readers wait for no more than that.
    pub batch_entries_max: usize,
    /// At multiples of this index the group's members compare their states: the same on all of them.
    pub digest_interval: u64,
}

/// Something for the driver to do, in this order.
#[derive(Debug)]
pub enum Output<T> {
    /// Make durable, then tell [`ReplicaCore::handle_persisted`].
    Persist {
        /// Telling a token tells all before it.
        token: u64,
        /// What.
        writes: Writes,
    },
    /// Send; may get lost.
    Send {
        /// To that replica of that group.
        to: (GroupId, ReplicaId),
        /// What.
        message: Message,
    },
    /// Read the log, hand what is found to [`ReplicaCore::handle_log_read`] before anything is dropped from the log.
    ReadLog {
        /// From there on.
        from: LogIndex,
        /// About so many bytes.
        bytes_max: usize,
    },
    /// Send a copy of the state, see [`multicast::snapshot`], then call [`ReplicaCore::handle_snapshot_sent`].
    SendSnapshot {
        /// To that replica of this group …
        to: ReplicaId,
        /// … with that disk.
        incarnation: Incarnation,
    },
    /// Serve as any other read: what it waited for has been applied.
    Serve(PendingRead<T>),
    /// Readers are to be told who is primary now.
    Primary(Option<ReplicaId>),
    /// [`ReplicaCore::tell_progress`] is to be called, while nobody reads.
    Progress,
    /// This replica's state is not its group's: nobody may read it, now or after a restart. It does nothing but ask for a
    /// copy, until one is in the place of its state.
    Quarantine(String),
    /// Worth a line in a log.
    Note(Note),
}

/// What happened, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// In the ordering core.
    Ordering(Event),
    /// A session was silent for too long, and is closed.
    SessionExpired(SessionId),
}

/// A replica: its ordering core, and whatever depends on its order.
///
/// A turn of its driver: hand in all inputs (`handle_*`), then [`ReplicaCore::handle_turn`]; do what
/// [`ReplicaCore::poll_output`] says; [`ReplicaCore::execute`] a batch, and if there was one, write its [`Step`], move the
/// readers' [`Front`] on with [`ReplicaCore::publish`], and before anybody reads it tell clients what
/// [`ReplicaCore::poll_tell`] says; until nothing is left. Time never goes back.
#[derive(Debug)]
pub struct ReplicaCore<T: Ticket> {
    config: ReplicaConfig,
    ordering: Core,
    waiting: Waiting<T>,
    /// Reads of this turn that must see everything executed before they came.
    linearize: Vec<PendingRead<T>>,
    /// Reads that wait for a record appended after they came to be applied in the same reign.
    barriers: VecDeque<(LogIndex, PendingRead<T>)>,
    outputs: VecDeque<Output<T>>,
    told_primary: Option<ReplicaId>,
    ready_since: Option<Time>,
    digests: Digests,
    /// Why this replica does nothing but ask for a copy, if so.
    quarantine: Option<String>,
    /// When it asks next.
    ask_copy_at: Time,
    executed: u64,
    /// When to see whether something is left to be removed, and to log a tick if so.
    tick_at: Option<Time>,
    /// When clients that ask nothing hear how far the state is.
    progress_at: Option<Time>,
}

impl<T: Ticket> ReplicaCore<T> {
    /// Around a recovered ordering core.
    #[must_use]
    pub fn new(config: ReplicaConfig, ordering: Core) -> ReplicaCore<T> {
        ReplicaCore {
            config,
            ordering,
            waiting: Waiting::new(config.group),
            linearize: Vec::new(),
            barriers: VecDeque::new(),
            outputs: VecDeque::new(),
            told_primary: None,
            ready_since: None,
            digests: Digests::default(),
            quarantine: None,
            ask_copy_at: Time::default(),
            executed: 0,
            tick_at: None,
            progress_at: None,
        }
    }

    /// The ordering core, to look at.
    #[must_use]
    pub fn ordering(&self) -> &Core {
        &self.ordering
    }

    /// The namespace's digests at recent multiples of [`DIGEST_INTERVAL`].
    #[must_use]
    pub fn digests(&self) -> &BTreeMap<u64, u128> {
        self.digests.own()
    }

    /// Why this replica does nothing but ask for a copy, if so: its state is not its group's.
    #[must_use]
    pub fn quarantine(&self) -> Option<&str> {
        self.quarantine.as_deref()
    }

    /// On start: it was quarantined before, see [`Output::Quarantine`].
    pub fn restore_quarantine(&mut self, why: String) {
        self.quarantine = Some(why);
    }

    /// Commands executed since the start.
    #[must_use]
    pub fn executed(&self) -> u64 {
        self.executed
    }

    /// A message from another replica, as proven by its connection.
    pub fn handle_message(&mut self, now: Time, from: (GroupId, ReplicaId), message: Message) {
        match message {
            _ if self.quarantine.is_some() => {}
            Message::Digest { index, digest } => self.handle_digest(now, from, index, digest),
            Message::AskCopy { incarnation, applied } => self.handle_ask_copy(now, from, incarnation, applied),
            message => self.ordering.handle_message(now, from, message),
        }
    }

    /// The log is durable up to this token.
    pub fn handle_persisted(&mut self, now: Time, token: u64) {
        // Also in quarantine: what is on disk stays there, and nobody would tell again.
        self.ordering.handle_persisted(now, token);
    }

    /// What was found in the log; see [`Output::ReadLog`].
    pub fn handle_log_read(&mut self, now: Time, entries: Vec<Entry>) {
        self.ordering.handle_log_read(now, entries);
    }

    /// The copy that [`Output::SendSnapshot`] asked for is in place at its receiver, up to that index; or it failed.
    pub fn handle_snapshot_sent(&mut self, now: Time, to: ReplicaId, installed: Option<LogIndex>) {
        self.ordering.handle_snapshot_sent(now, to, installed);
    }

    /// A copy of another replica's state is in the place of the own one on this disk: see [`Core::install_snapshot`]. Clients
    /// that follow this replica's state have missed what changed, so they must begin anew.
    ///
    /// # Errors
    /// If it was not taken over. Nothing was changed here.
    pub fn install_snapshot(&mut self, now: Time, order: OrderState, front: &mut Front) -> Result<(), InstallRefused> {
        self.ordering.install_snapshot(now, order)?;
        // It is the group's state again.
        self.quarantine = None;
        self.digests.begin_anew();
        front.is_quarantined = false;
        let order = self.ordering.order();
        front.applied = order.applied();
        front.dependencies.clone_from(order.depends_on());
        front.locked = Arc::new(locked_keys(order));
        self.tick_soon(now);
        Ok(())
    }

    /// An operator changes the group's members: see [`Core::change_membership`].
    ///
    /// # Errors
    /// If nothing was logged.
    pub fn change_membership(&mut self, now: Time, change: MemberChange) -> Result<LogIndex, ChangeRefused> {
        self.ordering.change_membership(now, change)
    }

    /// An operator gives up the group's lost voters: see [`Core::force_membership`].
    ///
    /// # Errors
    /// If nothing was logged.
    pub fn force_membership(
        &mut self,
        now: Time,
        named: (ReplicaId, Incarnation),
        keep: &[ReplicaId],
    ) -> Result<LogIndex, ForceRefused> {
        self.ordering.force_membership(now, named, keep)
    }

    /// Another voter takes over, as this one is about to stop: see [`Core::hand_over`].
    pub fn hand_over(&mut self, now: Time) -> Option<ReplicaId> {
        self.ordering.hand_over(now)
    }

    /// Another group's members, from elsewhere: see [`Core::learn_members`].
    pub fn learn_members(&mut self, now: Time, group: GroupId, members: Membership) {
        self.ordering.learn_members(now, group, members);
    }

    /// This group's members, from elsewhere: see [`Core::hear_removal`].
    pub fn hear_removal(&mut self, now: Time, members: &Membership) {
        self.ordering.hear_removal(now, members);
    }

    /// A client's update.
    pub fn handle_update(&mut self, now: Time, command: Arc<Command>, ticket: T) {
        let Some(ticket) = self.admit(ticket) else { return };
        self.waiting.add_update(now, command.id, ticket);
        self.ordering.handle_submit(now, command);
    }

    /// A client's session begins or ends.
    pub fn handle_session(&mut self, now: Time, change: SessionChange, ticket: T) {
        let Some(ticket) = self.admit(ticket) else { return };
        let (SessionChange::Open(session) | SessionChange::Close(session)) = change;
        self.waiting.add_session(now, session, ticket);
        self.ordering.handle_session(now, change);
    }

    /// A read that must see everything that was executed before now.
    pub fn handle_linearize(&mut self, read: PendingRead<T>) {
        match &self.quarantine {
            Some(_) => self.waiting.reply(read.ticket, Reply::UnknownGroup { group: self.config.group }),
            None => self.linearize.push(read),
        }
    }

    /// Whoever asks a replica that is none any more goes elsewhere.
    fn admit(&mut self, ticket: T) -> Option<T> {
        if self.quarantine.is_none() {
            return Some(ticket);
        }
        self.waiting.reply(ticket, Reply::UnknownGroup { group: self.config.group });
        None
    }

    /// All inputs of a turn are in: does what is due.
    ///
    /// # Errors
    /// If the state cannot be read.
    pub fn handle_turn(&mut self, now: Time, store: &impl Store) -> Result<(), Error> {
        if self.quarantine.is_some() {
            self.ask_copy(now);
            return Ok(());
        }
        self.append_barrier(now);
        if self.ordering.poll_timeout().is_some_and(|due| due <= now) {
            self.ordering.handle_timeout(now);
        }
        if self.tick_at.is_some_and(|due| due <= now) {
            self.tick_at = None;
            // What is removed in steps goes on in an idle group, too.
            if metadata::namespace::left_for_later(store)? > 0 && self.ordering.is_ready() {
                self.ordering.handle_tick(now);
            }
        }
        if self.progress_at.is_some_and(|due| due <= now) {
            self.progress_at = None;
            self.outputs.push_back(Output::Progress);
        }
        Ok(())
    }

    /// Now and then: requests that have waited for too long, sessions that are silent.
    pub fn handle_housekeeping(&mut self, now: Time, leases: &Leases) {
        if self.quarantine.is_some() {
            return;
        }
        for id in self.waiting.forget_old(now) {
            self.ordering.handle_withdraw(now, id);
        }
        let Some(since) = self.ready_since.filter(|_| self.ordering.is_ready()) else { return };
        let sessions = self.ordering.order().sessions();
        for session in leases.expired(sessions, now, since, self.config.session_lease_ms) {
            self.outputs.push_back(Output::Note(Note::SessionExpired(session)));
            self.ordering.handle_session(now, SessionChange::Close(session));
        }
    }

    /// The log below this index is needed neither for other voters nor for a store that has flushed up to there. The entry at
    /// the flushed index stays: it tells where the log goes on.
    #[must_use]
    pub fn log_needed_from(&self, flushed: LogIndex) -> LogIndex {
        if self.quarantine.is_some() {
            return LogIndex::ZERO;
        }
        self.ordering.truncatable_below().min(flushed)
    }

    /// The log below this index is gone.
    pub fn handle_trimmed(&mut self, below: LogIndex) {
        self.ordering.truncate_below(below);
    }

    /// When [`ReplicaCore::handle_turn`] is due.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Time> {
        if self.quarantine.is_some() {
            return Some(self.ask_copy_at);
        }
        self.ordering.poll_timeout().into_iter().chain(self.tick_at).chain(self.progress_at).min()
    }

    /// What to do next.
    pub fn poll_output(&mut self, now: Time) -> Option<Output<T>> {
        loop {
            if let Some(output) = self.outputs.pop_front() {
                return Some(output);
            }
            if self.quarantine.is_some() {
                return None;
            }
            match self.ordering.poll_output()? {
                multicast::Output::Persist { token, writes } => return Some(Output::Persist { token, writes }),
                multicast::Output::Send { to, message } => return Some(Output::Send { to, message }),
                multicast::Output::ReadLog { from, bytes_max } => return Some(Output::ReadLog { from, bytes_max }),
                multicast::Output::SendSnapshot { to, incarnation } => {
                    return Some(Output::SendSnapshot { to, incarnation });
                }
                multicast::Output::Reply(reply) => {
                    self.waiting.settle_update(reply, self.ordering.order().depends_on());
                }
                multicast::Output::Declined { id, reason } => self.waiting.decline_update(id, reason),
                multicast::Output::SessionDeclined { session, reason } => {
                    self.waiting.decline_session(session, reason);
                }
                multicast::Output::Event(event) => self.handle_event(now, event),
            }
        }
    }

    /// What to tell clients next.
    pub fn poll_tell(&mut self) -> Option<Tell<T>> {
        self.waiting.poll_tell()
    }

    /// Executes a batch of what is committed, if there is anything.
    ///
    /// # Errors
    /// If the state cannot be read, or makes no sense: the replica cannot go on.
    pub fn execute<B: Store>(&mut self, now: Time, store: &B, apply: &mut impl Apply) -> Result<Option<Step>, Error> {
        if self.quarantine.is_some() || !self.ordering.can_apply() {
            return Ok(None);
        }
        let mut namespace = Namespace::open(self.config.group, Overlay::new(store)?)?;
        let mut batch = Batch::default();
        while batch.entries.len() < self.config.batch_entries_max {
            let Some(applied) = apply.apply_next(&mut self.ordering, now, &mut namespace) else { break };
            if applied.index.0.is_multiple_of(self.config.digest_interval) {
                self.tell_digest(applied.index, namespace.store().digest());
            }
            batch.push(applied, namespace.take_changes());
        }
        if batch.entries.is_empty() {
            return Ok(None);
        }
        if let Some(error) = namespace.failure() {
            return Err(Error::StoreFailed(error.to_string()));
        }
        if self.is_diverged(now) {
            return Ok(None);
        }
        if metadata::namespace::left_for_later(namespace.store())? > 0 {
            self.tick_soon(now);
        }
        let order_rows = self.ordering.order_mut().drain_changes();
        let (writes, applied) = (namespace.into_store().into_writes(), self.ordering.order().applied());
        self.progress_at.get_or_insert(now.after_ms(PROGRESS_PAUSE_MS));
        Ok(Some(Step { writes, order_rows, applied, batch }))
    }

    /// Moves what readers see on to a step that is written, and tells clients: events first, then replies. Nobody reads the
    /// state meanwhile, or before they are told. Returns the keys in which the state differs.
    pub fn publish(&mut self, step: Step, front: &mut Front, interest: &mut Interest<T::Client>) -> Vec<Key> {
        let Batch { entries, changed, orphans } = step.batch;
        let order = self.ordering.order();
        front.applied = step.applied;
        front.dependencies.clone_from(order.depends_on());
        front.settled = order.executed_through();
        front.primary = self.ordering.primary();
        self.told_primary = front.primary;
        if changes_locks(&entries) {
            front.locked = Arc::new(locked_keys(order));
        }
        let waiting = &mut self.waiting;
        let mut foreseen = Vec::new();
        for (at, (applied, end)) in entries.iter().enumerate() {
            match &applied.change {
                Change::Locked(command) => interest.expect(command.id.session),
                // Its client may hear of the outcome by another group, long before it executes here.
                Change::Committed(id) if interest.has_stream(id.session) => {
                    let finished = || entries[at..].iter().find_map(|(later, _)| executed(later, *id));
                    if let Some(command) = order.unfinished(*id).or_else(finished) {
                        let keys = taught::foretold(self.config.group, command).into_iter();
                        // What has changed behind it is told with this step, what has changed before it is not meant.
                        let (told, kept): (Vec<Key>, Vec<Key>) =
                            keys.partition(|&key| changed.is_changed_behind(*end, key));
                        let tell = &mut |client: &_, event| waiting.tell(client, event);
                        interest.foresee(id.session, &told, front.applied, tell);
                        foreseen.push((id.session, kept));
                    }
                }
                _ => {}
            }
        }
        let learned = waiting.learned(&entries, &changed, (front, interest));
        let tell = &mut |client: &_, event| waiting.tell(client, event);
        interest.publish(front, changed.all(), &orphans, learned, tell);
        for (session, keys) in foreseen {
            interest.foresee(session, &keys, front.applied, tell);
        }
        for (applied, end) in entries {
            let is_changed = |key| changed.is_changed_behind(end, key);
            self.settle(applied, StepEnd { front, interest, is_changed: &is_changed });
        }
        while self.barriers.front().is_some_and(|&(index, _)| index <= step.applied) {
            let Some((index, read)) = self.barriers.pop_front() else { break };
            self.outputs.push_back(Output::Serve(read.not_before(index)));
        }
        changed.into_all()
    }

    /// Tells clients that ask nothing how far the state is. Nobody reads meanwhile, as in [`ReplicaCore::publish`].
    pub fn tell_progress(&mut self, front: &Front, interest: &mut Interest<T::Client>) {
        let waiting = &mut self.waiting;
        interest.tell_progress(front, &mut |client, event| waiting.tell(client, event));
    }

    fn settle(&mut self, applied: Applied, mut end: StepEnd<'_, T>) {
        let dependencies = &end.front.dependencies;
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
            | Change::Skipped(_)
            | Change::Members(_) => {}
        }
        match (applied.reply, &applied.change) {
            (Some(reply), Change::Executed(command)) => self.waiting.settle_executed(reply, command, &mut end),
            (Some(reply), _) => self.waiting.settle_update(reply, dependencies),
            (None, _) => {}
        }
    }

    fn handle_event(&mut self, now: Time, event: Event) {
        match event {
            Event::BecameReady { .. } => {
                self.ready_since = Some(now);
                self.tick_soon(now);
            }
            Event::BecameFollower { primary } => {
                self.ready_since = None;
                let group = self.config.group;
                self.waiting.send_away(|| Reply::NotPrimary { group, primary });
                for (_, read) in self.barriers.drain(..) {
                    self.waiting.reply(read.ticket, Reply::NotPrimary { group: self.config.group, primary });
                }
            }
            Event::BecamePrimary { .. }
            | Event::IgnoredMessage { .. }
            | Event::FollowerBeyondHelp { .. }
            | Event::PeerMembers { .. }
            | Event::DiskReplaced { .. }
            | Event::Contradicted { .. }
            | Event::Expelled { .. } => {}
        }
        self.outputs.push_back(Output::Note(Note::Ordering(event)));
        let primary = self.ordering.primary();
        if self.told_primary != primary {
            self.told_primary = primary;
            self.outputs.push_back(Output::Primary(primary));
        }
    }

    /// Lets the other members compare their states with this one's.
    fn tell_digest(&mut self, index: LogIndex, digest: u128) {
        self.digests.note(index, digest);
        let (group, me) = (self.config.group, self.ordering.status().replica);
        for member in &self.ordering.membership().members {
            if member.replica != me {
                let (to, message) = ((group, member.replica), Message::Digest { index, digest });
                self.outputs.push_back(Output::Send { to, message });
            }
        }
    }

    fn handle_digest(&mut self, now: Time, from: (GroupId, ReplicaId), index: LogIndex, digest: u128) {
        let is_voter = |replica| self.ordering.membership().voters().any(|voter| voter.replica == replica);
        if from.0 == self.config.group && is_voter(from.1) {
            self.digests.hear(from.1, index, digest);
            self.is_diverged(now);
        }
    }

    /// True if a quorum has another state, which ends this replica: it might acknowledge and show what is not so.
    fn is_diverged(&mut self, now: Time) -> bool {
        let membership = self.ordering.membership();
        self.digests.retain(|replica| membership.voters().any(|voter| voter.replica == replica));
        let Some(found) = self.digests.divergence(membership.quorum_size()) else { return false };
        let Divergence { index, own, others } = found;
        let why = format!("at index {index} its state is {own:032x}, that of a quorum of its group is {others:032x}");
        self.give_up_state(now, why);
        true
    }

    /// An operator has seen that this replica's rows are not its group's: it gives them up, and gets a copy. One that leads lets
    /// another do so first. That the others are a quorum without this one is for the operator to see.
    ///
    /// # Errors
    /// If nothing was done, or not yet.
    pub fn rebuild(&mut self, now: Time, named: (ReplicaId, Incarnation)) -> Result<(), Refusal> {
        if self.quarantine.is_some() {
            return Ok(());
        }
        let status = self.ordering.status();
        if named != (status.replica, status.incarnation) {
            return Err(Refusal::Failed("another replica is meant".into()));
        }
        if !self.ordering.is_member() {
            return Err(Refusal::Failed("it is no member of its group".into()));
        }
        match status.primary {
            Some(primary) if primary != status.replica => {
                self.give_up_state(now, "an operator has found rows in it that are not what was written".into());
                Ok(())
            }
            Some(_) if self.ordering.hand_over(now).is_none() => {
                Err(Refusal::Failed("it leads its group, and nobody else can".into()))
            }
            Some(_) | None => Err(Refusal::Change(ChangeRefused::NotReady)),
        }
    }

    fn give_up_state(&mut self, now: Time, why: String) {
        self.quarantine = Some(why.clone());
        // Others lead from now on, and a copy from them must not be refused.
        self.ordering.step_down(now);
        let group = self.config.group;
        self.waiting.send_away(|| Reply::UnknownGroup { group });
        let barriers = self.barriers.drain(..).map(|(_, read)| read);
        for read in barriers.chain(self.linearize.drain(..)) {
            self.waiting.reply(read.ticket, Reply::UnknownGroup { group });
        }
        self.outputs.push_back(Output::Quarantine(why));
    }

    /// The members' primary is asked; who else hears it takes no notice.
    fn ask_copy(&mut self, now: Time) {
        if now < self.ask_copy_at {
            return;
        }
        self.ask_copy_at = now.after_ms(ASK_COPY_PAUSE_MS);
        let status = self.ordering.status();
        let message = Message::AskCopy { incarnation: status.incarnation, applied: self.ordering.order().applied() };
        for member in self.ordering.membership().members.iter().filter(|member| member.replica != status.replica) {
            let to = (self.config.group, member.replica);
            self.outputs.push_back(Output::Send { to, message: message.clone() });
        }
    }

    /// A member whose state is not the group's wants this one's.
    fn handle_ask_copy(&mut self, now: Time, from: (GroupId, ReplicaId), incarnation: Incarnation, applied: LogIndex) {
        let is_member = from.0 == self.config.group && self.ordering.membership().has(from.1, incarnation);
        if !is_member || !self.ordering.is_ready() {
            return;
        }
        if self.ordering.order().applied() > applied {
            self.outputs.push_back(Output::SendSnapshot { to: from.1, incarnation });
        } else if self.ordering.status().last <= applied {
            // It takes a later one only. By the time that it asks again there will be one.
            self.ordering.handle_tick(now);
        }
    }

    /// One record for all reads of this turn that must see everything executed before they came. When this primary applies
    /// it in the same reign, a quorum has confirmed that nobody else appended in between.
    fn append_barrier(&mut self, now: Time) {
        if self.linearize.is_empty() {
            return;
        }
        let last = self.ordering.status().last;
        if self.ordering.is_ready() {
            self.ordering.handle_tick(now);
        }
        let status = self.ordering.status();
        for read in std::mem::take(&mut self.linearize) {
            if status.last > last {
                self.barriers.push_back((last.next(), read));
            } else {
                let own = status.primary == Some(status.replica);
                let reason = if own { Decline::NotReady } else { Decline::NotPrimary { hint: status.primary } };
                self.waiting.decline(read.ticket, reason);
            }
        }
    }

    fn tick_soon(&mut self, now: Time) {
        if self.tick_at.is_none() && self.ordering.is_ready() {
            self.tick_at = Some(now.after_ms(TICK_PAUSE_MS));
        }
    }
}

/// The command, if that is its execution.
fn executed(applied: &Applied, id: CommandId) -> Option<&Arc<Command>> {
    match &applied.change {
        Change::Executed(command) if command.id == id => Some(command),
        _ => None,
    }
}
