//! The replicated state of ordering: what every replica of a group knows after the same prefix of its log.

#[cfg(feature = "explore")]
mod explore;
mod locks;
mod reply_rows;
pub mod rows;
mod sessions;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use crate::by_command::ByCommand;
use crate::by_group::ByGroup;
use crate::command::{Command, Key};
use crate::ids::{CommandId, GroupId, LogIndex, SessionId, Timestamp, VectorClock};
use crate::machine::{CONTRIBUTION_BYTES_MAX, Context, Contributions, Machine};
use crate::membership::Membership;
use crate::output::{Applied, Change, Elsewhere, Reply};
use crate::record::{Contribution, Record, Refusal, Rejection};
use crate::snapshot::{InstallRefused, Snapshot};
use locks::Locks;
use reply_rows::ReplyRows;
use rows::{Dirty, RowKey};
use sessions::{Ended, Session};

/// How many replies a group keeps for a session until its client acknowledges them. A primary takes no more commands of a
/// session beyond that; what it had taken before is executed.
pub const SESSION_WINDOW: usize = 4096;

/// Sessions, prepared commands with their locks, contributions owed to other groups, clock and dependencies. A function of
/// the log's prefix; survives as rows of a key-value store.
#[derive(Clone, Debug)]
pub struct OrderState {
    group: GroupId,
    applied: LogIndex,
    clock: Timestamp,
    /// Shared with what has been contributed since it last changed.
    depends_on: Arc<VectorClock>,
    sessions: BTreeMap<SessionId, Session>,
    ended: BTreeMap<SessionId, Ended>,
    prepared: ByCommand<Prepared>,
    settled: ByCommand<Settled>,
    locks: Locks,
    /// None as long as it is the one of the founding.
    membership: Option<Arc<Membership>>,
    /// Where the state came from, if it was another replica's.
    copied: Option<Arc<Snapshot>>,
    /// Rows that differ from what was last drained.
    dirty: Dirty,
    /// Which rows hold replies.
    reply_rows: ReplyRows,
}

/// A command of several groups between its `Prepare` and its `Finish` or `Abort`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Prepared {
    #[serde(deserialize_with = "crate::record::deserialize_shared")]
    pub(crate) command: Arc<Command>,
    /// What the id is bound to: follows from the command, and is asked for more often.
    #[serde(skip)]
    pub(crate) binding: u64,
    /// This group's proposal.
    pub(crate) timestamp: Timestamp,
    /// The `Prepare`.
    pub(crate) index: LogIndex,
    pub(crate) committed: Option<Committed>,
}

/// What `Commit` added.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Committed {
    /// The final timestamp.
    pub(crate) timestamp: Timestamp,
    pub(crate) contribution: Contribution,
}

/// A command that this group is through with, but which another destination may still ask about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Settled {
    pub(crate) binding: u64,
    /// All destinations.
    #[serde(deserialize_with = "crate::record::deserialize_few")]
    pub(crate) groups: SmallVec<[GroupId; 4]>,
    pub(crate) verdict: Verdict,
}

/// How a command was settled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Verdict {
    /// Executed, with this group's proposal and contribution.
    Executed { timestamp: Timestamp, contribution: Contribution },
    /// This group refused it.
    Refused(Refusal),
}

/// What the replicated state says about a command id that comes with a binding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It may be executed here.
    New,
    /// Its keys are locked.
    Prepared,
    /// Executed or refused, and other destinations may still ask.
    Settled,
    /// Executed, and every destination knows.
    Executed(Bytes),
    /// Given up for good.
    Rejected(Rejection),
    /// It may not be executed here.
    Refused(Refusal),
}

impl OrderState {
    /// The state before the first entry.
    #[must_use]
    pub fn new(group: GroupId) -> Self {
        OrderState {
            group,
            applied: LogIndex::ZERO,
            clock: Timestamp::default(),
            depends_on: Arc::default(),
            sessions: BTreeMap::new(),
            ended: BTreeMap::new(),
            prepared: ByCommand::new(),
            settled: ByCommand::new(),
            locks: Locks::default(),
            membership: None,
            copied: None,
            dirty: Dirty::default(),
            reply_rows: ReplyRows::default(),
        }
    }

    /// Applies the next entry. Deterministic; on every replica, also on those that only follow.
    ///
    /// # Panics
    /// If `index` is not the one behind [`OrderState::applied`]: executing a log with a hole would be silent corruption.
    pub fn apply(&mut self, index: LogIndex, record: &Record, machine: &mut dyn Machine) -> Applied {
        assert_eq!(index, self.applied.next(), "entries of {} are applied in order, each once", self.group);
        self.applied = index;
        self.dirty.insert(RowKey::Meta);
        let (change, reply) = match record {
            Record::Noop => (Change::Nothing, None),
            Record::Single { command, timestamp } => self.apply_single(command, *timestamp, machine),
            Record::Prepare { command, timestamp } => self.apply_prepare(command, *timestamp),
            Record::Commit { id, timestamp } => (self.apply_commit(*id, *timestamp, machine), None),
            Record::Finish { id, contributions } => self.apply_finish(*id, contributions, machine),
            Record::Refuse { id, binding, groups, reason } => (self.apply_refuse(*id, *binding, groups, *reason), None),
            Record::Abort { id, rejection } => self.apply_abort(*id, *rejection),
            Record::Forget { ids } => (self.apply_forget(ids), None),
            Record::SessionOpen { session, timestamp } => (self.apply_open(*session, *timestamp, machine), None),
            Record::SessionClose { sessions, timestamp } => (self.apply_close(sessions, *timestamp, machine), None),
            Record::Tick { timestamp } => {
                self.raise_clock(*timestamp);
                machine.tick(&self.context(*timestamp));
                (Change::Nothing, None)
            }
            Record::Config { membership } => {
                self.membership = Some(Arc::clone(membership));
                self.dirty.insert(RowKey::Members);
                (Change::Members(Arc::clone(membership)), None)
            }
        };
        Applied { index, change, reply }
    }

    fn apply_single(
        &mut self,
        command: &Arc<Command>,
        timestamp: Timestamp,
        machine: &mut dyn Machine,
    ) -> (Change, Option<Reply>) {
        self.raise_clock(timestamp);
        let binding = command.binding();
        let reply = match self.standing(command.id, binding) {
            Standing::New => {
                let outcome = machine.execute(&self.context_of(timestamp, command), command, &Contributions::new());
                self.merge_dependencies(&command.clock);
                self.store_reply(command.id, binding, Ok(outcome.clone()), command.acknowledged_below);
                let reply = Reply { id: command.id, index: self.applied, result: Ok(outcome), elsewhere: Vec::new() };
                return (Change::Executed(Arc::clone(command)), Some(reply));
            }
            Standing::Prepared | Standing::Settled => return (Change::Skipped(command.id), None),
            Standing::Executed(_) | Standing::Rejected(_) => self.stored_reply(command.id, binding),
            Standing::Refused(reason) => {
                let result = Err(Rejection { by: self.group, reason });
                Some(Reply { id: command.id, index: self.applied, result, elsewhere: Vec::new() })
            }
        };
        (Change::Skipped(command.id), reply)
    }

    fn apply_prepare(&mut self, command: &Arc<Command>, timestamp: Timestamp) -> (Change, Option<Reply>) {
        self.raise_clock(timestamp);
        let (id, binding) = (command.id, command.binding());
        match self.standing(id, binding) {
            Standing::New => {
                let footprint = command.footprint(self.group).unwrap_or(&[]);
                self.locks.lock(id, self.applied, footprint);
                let prepared =
                    Prepared { command: Arc::clone(command), binding, timestamp, index: self.applied, committed: None };
                self.prepared.insert(id, prepared);
                self.dirty.insert(RowKey::Prepared(id));
                (Change::Locked(Arc::clone(command)), None)
            }
            // The primary saw this coming too late: what it would have refused is refused here.
            Standing::Refused(reason @ (Refusal::UnknownSession | Refusal::StaleSequence)) => {
                let groups: Vec<GroupId> = command.groups().collect();
                let change = self.apply_refuse(id, binding, &groups, reason);
                let result = Err(Rejection { by: self.group, reason });
                (change, Some(Reply { id, index: self.applied, result, elsewhere: Vec::new() }))
            }
            Standing::Refused(Refusal::IdReused | Refusal::BeyondWindow)
            | Standing::Prepared
            | Standing::Settled
            | Standing::Executed(_)
            | Standing::Rejected(_) => (Change::Skipped(id), None),
        }
    }

    fn apply_commit(&mut self, id: CommandId, timestamp: Timestamp, machine: &mut dyn Machine) -> Change {
        let depends_on = Arc::clone(&self.depends_on);
        let is_contended = self.prepared.get(id).is_some_and(|prepared| {
            let footprint = prepared.command.footprint(self.group).unwrap_or(&[]);
            footprint.iter().any(|(key, mode)| mode.changes() && self.locks.is_changing_beside(*key, id))
        });
        let context = Context { is_contended, ..self.context(timestamp) };
        let Some(prepared) = self.prepared.get_mut(id) else { return Change::Skipped(id) };
        if prepared.committed.is_some() || timestamp < prepared.timestamp {
            return Change::Skipped(id);
        }
        let mut value = machine.contribute(&context, &prepared.command);
        if value.len() > CONTRIBUTION_BYTES_MAX {
            value = Bytes::new();
        }
        let contribution = Contribution { value, index: context.index, depends_on };
        prepared.committed = Some(Committed { timestamp, contribution });
        self.raise_clock(timestamp);
        self.dirty.insert(RowKey::Prepared(id));
        Change::Committed(id)
    }

    fn apply_finish(
        &mut self,
        id: CommandId,
        foreign: &ByGroup<Contribution>,
        machine: &mut dyn Machine,
    ) -> (Change, Option<Reply>) {
        let own = self.group;
        let complete = self.prepared.get(id).is_some_and(|prepared| {
            prepared.committed.is_some()
                && prepared.command.groups().all(|group| group == own || foreign.get(group).is_some())
        });
        let Some(prepared) = complete.then(|| self.remove_prepared(id)).flatten() else {
            return (Change::Skipped(id), None);
        };
        let Some(Committed { timestamp, contribution }) = prepared.committed else {
            return (Change::Skipped(id), None);
        };
        let (command, binding) = (prepared.command, prepared.binding);
        let mut values = Contributions::with_room(foreign.len() + 1);
        values.insert(own, contribution.value.clone());
        self.merge_dependencies(&command.clock);
        let others = || foreign.iter().filter(|(group, _)| *group != own);
        for (group, theirs) in others() {
            values.insert(group, theirs.value.clone());
            self.merge_dependencies(&theirs.depends_on);
        }
        let mut elsewhere = Vec::with_capacity(foreign.len());
        let depends_on = Arc::make_mut(&mut self.depends_on);
        for (group, theirs) in others() {
            elsewhere.push(Elsewhere { group, index: theirs.index });
            depends_on.advance_effects(group, theirs.index, id.session);
        }
        let outcome = machine.execute(&self.context_of(timestamp, &command), &command, &values);
        self.store_reply(id, binding, Ok(outcome.clone()), command.acknowledged_below);
        let verdict = Verdict::Executed { timestamp: prepared.timestamp, contribution };
        self.settled.insert(id, Settled { binding, groups: command.groups().collect(), verdict });
        self.dirty.insert(RowKey::Settled(id));
        let reply = Reply { id, index: self.applied, result: Ok(outcome), elsewhere };
        (Change::Executed(command), Some(reply))
    }

    fn apply_refuse(&mut self, id: CommandId, binding: u64, groups: &[GroupId], reason: Refusal) -> Change {
        let settled_before = self.prepared.contains(id)
            || self.settled.contains(id)
            || self.sessions.get(&id.session).is_some_and(|session| session.replies.contains_key(&id.sequence));
        if settled_before {
            return Change::Skipped(id);
        }
        // One that found no room may be asked for again, but this way nobody fills the session with refusals.
        if reason != Refusal::BeyondWindow {
            self.store_reply(id, binding, Err(Rejection { by: self.group, reason }), 0);
        }
        self.settled.insert(id, Settled { binding, groups: groups.into(), verdict: Verdict::Refused(reason) });
        self.dirty.insert(RowKey::Settled(id));
        Change::Refused(id)
    }

    fn apply_abort(&mut self, id: CommandId, rejection: Rejection) -> (Change, Option<Reply>) {
        // After its `Commit` all destinations have prepared it, so nobody can have refused it.
        let may_abort = self.prepared.get(id).is_some_and(|prepared| prepared.committed.is_none());
        let Some(prepared) = may_abort.then(|| self.remove_prepared(id)).flatten() else {
            return (Change::Skipped(id), None);
        };
        let command = prepared.command;
        self.store_reply(id, prepared.binding, Err(rejection), command.acknowledged_below);
        let reply = Reply { id, index: self.applied, result: Err(rejection), elsewhere: Vec::new() };
        (Change::Aborted(command), Some(reply))
    }

    fn apply_forget(&mut self, ids: &[CommandId]) -> Change {
        for &id in ids {
            if self.settled.remove(id).is_some() {
                self.dirty.insert(RowKey::Settled(id));
            }
        }
        Change::Nothing
    }

    fn apply_open(&mut self, session: SessionId, timestamp: Timestamp, machine: &mut dyn Machine) -> Change {
        self.raise_clock(timestamp);
        if !self.sessions.contains_key(&session) {
            let floor = self.first_floor(session);
            self.sessions.insert(session, Session { opened: self.applied, floor, replies: BTreeMap::new() });
            self.dirty.insert(RowKey::Session(session));
            machine.session_opened(&self.context(timestamp), session);
        }
        Change::SessionOpened(session)
    }

    fn apply_close(&mut self, sessions: &[SessionId], timestamp: Timestamp, machine: &mut dyn Machine) -> Change {
        self.raise_clock(timestamp);
        let mut closed = Vec::new();
        for &id in sessions {
            let Some(session) = self.sessions.remove(&id) else { continue };
            self.dirty.insert(RowKey::Session(id));
            for stored in session.replies.values() {
                self.reply_rows.drop_reply(stored.row, &mut self.dirty);
            }
            self.remember_ended(id, &session);
            machine.session_closed(&self.context(timestamp), id);
            closed.push(id);
        }
        Change::SessionsClosed(closed)
    }

    /// What this state says about an id. Facts first: what has been prepared or settled stays so, whatever became of its
    /// session.
    pub(crate) fn standing(&self, id: CommandId, binding: u64) -> Standing {
        let bound = |found: u64, standing: Standing| {
            if found == binding { standing } else { Standing::Refused(Refusal::IdReused) }
        };
        if let Some(prepared) = self.prepared.get(id) {
            return bound(prepared.binding, Standing::Prepared);
        }
        if let Some(settled) = self.settled.get(id) {
            return bound(settled.binding, Standing::Settled);
        }
        let Some(session) = self.sessions.get(&id.session) else {
            return Standing::Refused(Refusal::UnknownSession);
        };
        if let Some(stored) = session.replies.get(&id.sequence) {
            let standing = match &stored.result {
                Ok(outcome) => Standing::Executed(outcome.clone()),
                Err(rejection) => Standing::Rejected(*rejection),
            };
            return bound(stored.binding, standing);
        }
        if id.sequence < session.floor { Standing::Refused(Refusal::StaleSequence) } else { Standing::New }
    }

    /// The reply to a command that was settled before, for a client that asks again, with the index at which it was: what is
    /// told must not pass for the newest state.
    pub(crate) fn stored_reply(&self, id: CommandId, binding: u64) -> Option<Reply> {
        let stored = self.sessions.get(&id.session)?.replies.get(&id.sequence)?;
        let reused = Rejection { by: self.group, reason: Refusal::IdReused };
        let result = if stored.binding == binding { stored.result.clone() } else { Err(reused) };
        Some(Reply { id, index: stored.index, result, elsewhere: Vec::new() })
    }

    fn remove_prepared(&mut self, id: CommandId) -> Option<Prepared> {
        let prepared = self.prepared.remove(id)?;
        self.locks.unlock(prepared.index, prepared.command.footprint(self.group).unwrap_or(&[]));
        self.dirty.insert(RowKey::Prepared(id));
        Some(prepared)
    }

    fn context(&self, timestamp: Timestamp) -> Context {
        Context { group: self.group, index: self.applied, timestamp, time_ns: timestamp.0, is_contended: false }
    }

    /// For a command that executes and holds no locks (any more).
    fn context_of(&self, timestamp: Timestamp, command: &Command) -> Context {
        let footprint = command.footprint(self.group).unwrap_or(&[]);
        let is_contended = footprint.iter().any(|(key, mode)| mode.changes() && self.locks.is_changing(*key));
        Context { is_contended, ..self.context(timestamp) }
    }

    fn raise_clock(&mut self, timestamp: Timestamp) {
        self.clock = self.clock.max(timestamp);
    }

    fn merge_dependencies(&mut self, seen: &VectorClock) {
        if seen.claims().next().is_none() {
            return;
        }
        let depends_on = Arc::make_mut(&mut self.depends_on);
        for (group, index) in seen.iter() {
            // A group's own index is told beside its vector.
            if group != self.group {
                depends_on.advance(group, index);
            }
        }
        // But that an effect of what is still locked here was seen elsewhere, only the vector tells.
        for (group, _) in seen.iter_effects() {
            depends_on.merge_effects(seen, group);
        }
    }

    /// Makes a state that was another replica's ready to become this one's: it, and its rows, say from now on where its log
    /// begins. See [`crate::snapshot`].
    ///
    /// # Errors
    /// [`InstallRefused::Unfit`] if the snapshot is not this state's.
    pub fn begin_at(&mut self, snapshot: Snapshot) -> Result<(), InstallRefused> {
        if snapshot.entry.index != self.applied || !snapshot.is_plausible() {
            return Err(InstallRefused::Unfit);
        }
        self.copied = Some(Arc::new(snapshot));
        self.dirty.insert(RowKey::Copied);
        Ok(())
    }

    pub(crate) fn copied(&self) -> Option<&Arc<Snapshot>> {
        self.copied.as_ref()
    }

    /// The group's members as of this state; none if they are those of the founding.
    #[must_use]
    pub fn membership(&self) -> Option<&Arc<Membership>> {
        self.membership.as_ref()
    }

    /// The group.
    #[must_use]
    pub fn group(&self) -> GroupId {
        self.group
    }

    /// The log prefix that this state was made from.
    #[must_use]
    pub fn applied(&self) -> LogIndex {
        self.applied
    }

    /// The largest timestamp of the prefix; also the replicated time in nanoseconds.
    #[must_use]
    pub fn clock(&self) -> Timestamp {
        self.clock
    }

    /// What a client must have seen of other groups' logs once it has seen this state.
    #[must_use]
    pub fn depends_on(&self) -> &VectorClock {
        &self.depends_on
    }

    /// Every command that was prepared here up to this index has executed in this state, or never will.
    #[must_use]
    pub fn executed_through(&self) -> LogIndex {
        let first = self.prepared.unsorted().map(|(_, prepared)| prepared.index).min();
        first.map_or(self.applied, |first| LogIndex(first.0.saturating_sub(1)))
    }

    /// The command, if it is prepared here and has not ended.
    #[must_use]
    pub fn unfinished(&self, id: CommandId) -> Option<&Arc<Command>> {
        self.prepared.get(id).map(|prepared| &prepared.command)
    }

    /// The unfinished command that a client must wait for before it reads `key`. `effects` is its clock's
    /// [`VectorClock::effects`] for this group.
    #[must_use]
    pub fn blocked(&self, key: Key, effects: LogIndex) -> Option<CommandId> {
        self.locks.blocking(key, effects)
    }

    /// The locks that block readers: key, index of the `Prepare`, command. By key.
    pub fn changing_locks(&self) -> impl Iterator<Item = (Key, LogIndex, CommandId)> + '_ {
        self.locks.changing()
    }

    /// True if the session is open.
    #[must_use]
    pub fn knows_session(&self, session: SessionId) -> bool {
        self.sessions.contains_key(&session)
    }

    /// The open sessions.
    pub fn sessions(&self) -> impl Iterator<Item = SessionId> + '_ {
        self.sessions.keys().copied()
    }

    pub(crate) fn session_count(&self) -> usize {
        self.sessions.len()
    }

    pub(crate) fn prepared(&self) -> &ByCommand<Prepared> {
        &self.prepared
    }

    pub(crate) fn settled(&self) -> &ByCommand<Settled> {
        &self.settled
    }
}
