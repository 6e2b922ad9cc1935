//! One command of several groups on its way through this group.

use std::sync::Arc;

use super::conflicts::Conflicts;
use super::{Sequencer, Turn, len_bytes};
use crate::by_group::ByGroup;
use crate::command::Command;
use crate::core::{Unfinished, Wait};
use crate::ids::{CommandId, GroupId, Timestamp};
use crate::message::Message;
use crate::order::{OrderState, Prepared, Settled, Verdict};
use crate::output::{Applied, Decline, Output};
#[cfg(feature = "explore")]
use crate::planted::Planted;
use crate::record::{Contribution, Record, Refusal, Rejection};
use crate::time::Time;

/// How many forgettable ids are worth a record of their own at once.
const FORGET_BATCH: usize = 256;

#[derive(Clone, Debug)]
pub(super) struct Multi {
    pub(super) binding: u64,
    /// Gone once settled.
    pub(super) command: Option<Arc<Command>>,
    pub(super) stage: Stage,
    /// The largest timestamp known: a lower bound of the final one.
    pub(super) bound: Timestamp,
    /// What the other destinations have told.
    pub(super) others: ByGroup<Told>,
    since: Time,
    pub(super) resend_due: Time,
    /// When [`Sequencer::timers`] will look at it: not later than that.
    looked_at: Option<Time>,
    pub(super) resend_after_ms: u64,
    /// How long it last waited for a group without room.
    pub(super) busy_after_ms: u64,
    /// What it counts for in the load; zero once settled.
    load_bytes: usize,
}

/// How far a command is. Records are named when they are logged here, committed or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// `Prepare` is logged; not all timestamps are known.
    Preparing,
    /// The final timestamp is known; conflicting commands come first.
    Ordered,
    /// `Commit` is logged; not all contributions are known.
    Committing,
    /// `Finish` is logged.
    Finishing,
    /// `Abort` is logged.
    Aborting,
    /// `Refuse` is logged.
    Refusing,
    /// Executed or refused, and applied; others may not be through.
    Settled,
}

/// What another destination has told of its log.
#[derive(Clone, Debug, Default)]
pub(super) struct Told {
    pub(super) timestamp: Option<Timestamp>,
    pub(super) contribution: Option<Contribution>,
    pub(super) closed: bool,
}

impl Multi {
    fn new(now: Time, binding: u64, stage: Stage, others: impl Iterator<Item = GroupId>) -> Self {
        Multi {
            binding,
            command: None,
            stage,
            bound: Timestamp::default(),
            others: others.map(|group| (group, Told::default())).collect(),
            since: now,
            resend_due: now,
            looked_at: None,
            resend_after_ms: 0,
            busy_after_ms: 0,
            load_bytes: 0,
        }
    }

    /// True if this command waits for something that `told`'s group has not told.
    pub(super) fn lacks(&self, told: &Told) -> bool {
        match self.stage {
            Stage::Preparing => told.timestamp.is_none(),
            Stage::Committing => told.contribution.is_none(),
            Stage::Settled => !told.closed,
            Stage::Ordered | Stage::Finishing | Stage::Aborting | Stage::Refusing => false,
        }
    }

    fn lacks_nothing(&self) -> bool {
        !self.others.iter().any(|(_, told)| self.lacks(told))
    }

    pub(super) fn describe(
        &self,
        id: CommandId,
        own: GroupId,
        conflicts: &Conflicts,
        order: &OrderState,
    ) -> Unfinished {
        let mut groups: Vec<GroupId> = self.others.groups().chain([own]).collect();
        groups.sort_unstable();
        let lacking = |wait: fn(GroupId) -> Wait| {
            let lacking = self.others.iter().filter(|(_, told)| self.lacks(told));
            lacking.map(|(group, _)| wait(group)).collect::<Vec<Wait>>()
        };
        let waits_for = match self.stage {
            Stage::Preparing => lacking(Wait::Timestamp),
            Stage::Ordered => conflicts.blocker_of(id).map(Wait::Conflict).into_iter().collect(),
            Stage::Committing => lacking(Wait::Contribution),
            Stage::Settled => lacking(Wait::Close),
            Stage::Finishing | Stage::Aborting | Stage::Refusing => vec![Wait::OwnLog],
        };
        let locks_keys = order.prepared().contains(id);
        Unfinished { id, groups, since: self.since, locks_keys, waits_for }
    }
}

impl Sequencer {
    /// Everything that the replicated state knows of and that is not through; asks the other groups about it.
    pub(super) fn rebuild(&mut self, turn: &mut Turn<'_>) {
        for (id, prepared) in turn.order.prepared().sorted() {
            self.rebuild_prepared(turn.now, id, prepared);
        }
        for (id, settled) in turn.order.settled().sorted() {
            self.rebuild_settled(turn.now, id, settled);
        }
        for id in self.multis.ids() {
            self.awake.push_back(id);
            self.rearm(id, turn.now, 0);
        }
        self.run(turn);
    }

    fn rebuild_prepared(&mut self, now: Time, id: CommandId, prepared: &Prepared) {
        let command = &prepared.command;
        let (stage, bound) = match &prepared.committed {
            Some(committed) => (Stage::Committing, committed.timestamp),
            None => (Stage::Preparing, prepared.timestamp),
        };
        self.insert_multi(now, id, prepared.binding, stage, command.groups());
        self.attach_command(command, bound);
    }

    fn rebuild_settled(&mut self, now: Time, id: CommandId, settled: &Settled) {
        self.insert_multi(now, id, settled.binding, Stage::Settled, settled.groups.iter().copied());
    }

    /// A client's command for several groups.
    pub(super) fn begin_multi(&mut self, turn: &mut Turn<'_>, command: Arc<Command>) {
        let (now, own) = (turn.now, self.group);
        for group in command.groups().filter(|&group| group != own) {
            let Some(peer) = self.peers.get(&group) else { return turn.decline(command.id, Decline::Malformed) };
            // Nobody has heard of it yet, so nothing is left behind.
            if peer.is_silent(now, self.timing.silence_ms) {
                return turn.decline(command.id, Decline::Unavailable { group });
            }
            if peer.unfinished >= self.limits.unfinished_per_group_max {
                return turn.decline(command.id, Decline::Overloaded);
            }
        }
        for group in command.groups().filter(|&group| group != own) {
            self.ask(turn, group, Message::Propose { command: Arc::clone(&command) });
        }
        self.prepare(turn, &command);
    }

    /// Logs the `Prepare`, which never waits.
    pub(super) fn prepare(&mut self, turn: &mut Turn<'_>, command: &Arc<Command>) {
        #[cfg(feature = "explore")]
        if self.waits_before_prepare(command) {
            return;
        }
        let id = command.id;
        let timestamp = self.next_timestamp(turn);
        turn.append(Record::Prepare { command: Arc::clone(command), timestamp });
        let binding = command.binding();
        self.insert_multi(turn.now, id, binding, Stage::Preparing, command.groups());
        self.attach_command(command, timestamp);
        if let Some(early) = self.early.remove(&id).filter(|early| early.binding == binding) {
            for (group, timestamp) in early.timestamps {
                self.learn_timestamp(id, group, timestamp);
            }
        }
    }

    /// Logs that this group will never prepare the command.
    pub(super) fn refuse(&mut self, turn: &mut Turn<'_>, command: &Command, reason: Refusal) {
        let (id, binding) = (command.id, command.binding());
        turn.append(Record::Refuse { id, binding, groups: command.groups().collect(), reason });
        self.insert_multi(turn.now, id, binding, Stage::Refusing, command.groups());
    }

    fn insert_multi(
        &mut self,
        now: Time,
        id: CommandId,
        binding: u64,
        stage: Stage,
        groups: impl Iterator<Item = GroupId>,
    ) {
        let own = self.group;
        let multi = Multi::new(now, binding, stage, groups.filter(|&group| group != own));
        for group in multi.others.groups() {
            if let Some(peer) = self.peers.get_mut(&group) {
                peer.unfinished += 1;
            }
        }
        self.multis.insert(id, multi);
        self.rearm(id, now, self.timing.resend_ms);
    }

    fn attach_command(&mut self, command: &Arc<Command>, bound: Timestamp) {
        let Some(multi) = self.multis.get_mut(command.id) else { return };
        multi.command = Some(Arc::clone(command));
        multi.bound = bound;
        multi.load_bytes = len_bytes(command);
        self.load.add(multi.load_bytes);
        self.conflicts.insert(command, bound);
    }

    pub(super) fn learn_timestamp(&mut self, id: CommandId, group: GroupId, timestamp: Timestamp) {
        let Some(multi) = self.multis.get_mut(id) else { return };
        let Some(told) = multi.others.get_mut(group) else { return };
        if multi.stage != Stage::Preparing || told.timestamp.is_some() {
            return;
        }
        told.timestamp = Some(timestamp);
        #[cfg(feature = "explore")]
        let timestamp = if self.mistake.planted == Some(Planted::OwnTimestamp) { multi.bound } else { timestamp };
        multi.bound = multi.bound.max(timestamp);
        self.conflicts.move_to(id, multi.bound, &mut self.awake);
        self.awake.push_back(id);
    }

    /// Goes as far as facts and conflicts allow.
    pub(super) fn advance_multi(&mut self, turn: &mut Turn<'_>, id: CommandId) {
        #[cfg(feature = "explore")]
        let clock = self.clock;
        let Some(multi) = self.multis.get_mut(id) else { return };
        let before = multi.stage;
        if multi.stage == Stage::Preparing && multi.lacks_nothing() {
            multi.stage = Stage::Ordered;
            // Whatever comes from now on comes after it.
            self.clock = self.clock.max(multi.bound);
        }
        #[cfg(feature = "explore")]
        if self.mistake.planted == Some(Planted::ClockStays) {
            self.clock = clock;
        }
        let is_blocked = multi.stage == Stage::Ordered && self.conflicts.blocker_of(id).is_some();
        #[cfg(feature = "explore")]
        let is_blocked = is_blocked && self.mistake.planted != Some(Planted::CommitOvertakes);
        if multi.stage == Stage::Ordered && !is_blocked {
            multi.stage = Stage::Committing;
            turn.append(Record::Commit { id, timestamp: multi.bound });
        }
        #[cfg(feature = "explore")]
        if multi.stage == Stage::Committing && self.mistake.planted == Some(Planted::FinishEarly) {
            multi.others.iter_mut().for_each(|(_, told)| told.assume_contribution());
        }
        if multi.stage == Stage::Committing && multi.lacks_nothing() {
            multi.stage = Stage::Finishing;
            let take = |(group, told): (GroupId, &mut Told)| told.contribution.take().map(|taken| (group, taken));
            let contributions = multi.others.iter_mut().filter_map(take).collect();
            turn.append(Record::Finish { id, contributions });
            self.conflicts.remove(id, &mut self.awake);
        }
        if multi.stage != before {
            self.rearm(id, turn.now, self.timing.resend_ms);
        }
    }

    /// Another destination will never prepare it, so it will never be executed anywhere.
    pub(super) fn abort(&mut self, turn: &mut Turn<'_>, id: CommandId, rejection: Rejection) {
        let Some(multi) = self.multis.get_mut(id) else { return };
        if multi.stage == Stage::Preparing {
            multi.stage = Stage::Aborting;
            turn.append(Record::Abort { id, rejection });
            self.conflicts.remove(id, &mut self.awake);
        }
    }

    pub(super) fn multi_locked(&mut self, turn: &mut Turn<'_>, id: CommandId) {
        self.tell_all(turn, id);
    }

    pub(super) fn multi_committed(&mut self, turn: &mut Turn<'_>, id: CommandId) {
        self.tell_all(turn, id);
    }

    pub(super) fn multi_executed(&mut self, turn: &mut Turn<'_>, id: CommandId) {
        self.settle(turn, id);
    }

    pub(super) fn multi_refused(&mut self, turn: &mut Turn<'_>, id: CommandId) {
        self.conflicts.remove(id, &mut self.awake);
        self.settle(turn, id);
    }

    fn settle(&mut self, turn: &mut Turn<'_>, id: CommandId) {
        self.release_load(id);
        let Some(multi) = self.multis.get_mut(id) else { return };
        multi.stage = Stage::Settled;
        multi.command = None;
        self.rearm(id, turn.now, self.timing.resend_ms);
        self.tell_all(turn, id);
        self.forget_if_closed(turn, id);
    }

    pub(super) fn multi_aborted(&mut self, turn: &mut Turn<'_>, id: CommandId, applied: &Applied) {
        if let Some(Err(rejection)) = applied.reply.as_ref().map(|reply| &reply.result) {
            self.tell_rejection(turn, id, *rejection);
        }
        self.remove_multi(id);
    }

    /// A record of it had no effect. If nothing is known of it, nothing is to be done about it.
    pub(super) fn multi_skipped(&mut self, turn: &mut Turn<'_>, id: CommandId) {
        if !turn.order.prepared().contains(id) && !turn.order.settled().contains(id) {
            self.conflicts.remove(id, &mut self.awake);
            self.remove_multi(id);
        }
    }

    /// The client asks again for something that is under way or was refused.
    pub(super) fn submitted_again(&mut self, turn: &mut Turn<'_>, id: CommandId, binding: u64) {
        let Some(multi) = self.multis.get(id) else { return };
        if multi.binding != binding {
            return turn.outputs.push_back(Output::Declined { id, reason: Decline::Refused(Refusal::IdReused) });
        }
        if multi.stage == Stage::Settled {
            let reason = match turn.order.settled().get(id).map(|settled| &settled.verdict) {
                Some(Verdict::Refused(reason)) => *reason,
                Some(Verdict::Executed { .. }) | None => Refusal::UnknownSession,
            };
            turn.decline(id, Decline::Refused(reason));
        }
    }

    pub(super) fn forget_if_closed(&mut self, turn: &mut Turn<'_>, id: CommandId) {
        let closed = self.multis.get(id).is_some_and(|multi| multi.stage == Stage::Settled && multi.lacks_nothing());
        if !closed {
            return;
        }
        self.remove_multi(id);
        self.forgettable.push(id);
        if self.forgettable.len() >= FORGET_BATCH {
            self.forget(turn);
        } else {
            self.forget_due.get_or_insert(turn.now.after_ms(self.timing.forget_ms));
        }
    }

    pub(super) fn forget(&mut self, turn: &mut Turn<'_>) {
        self.forget_due = None;
        let ids = std::mem::take(&mut self.forgettable);
        turn.append(Record::Forget { ids });
    }

    fn release_load(&mut self, id: CommandId) {
        if let Some(multi) = self.multis.get_mut(id) {
            let bytes = std::mem::take(&mut multi.load_bytes);
            if bytes > 0 {
                self.load.remove(bytes);
            }
        }
    }

    fn remove_multi(&mut self, id: CommandId) {
        self.release_load(id);
        let Some(multi) = self.multis.remove(id) else { return };
        if let Some(at) = multi.looked_at {
            self.timers.remove(&(at, id));
        }
        for group in multi.others.groups() {
            if let Some(peer) = self.peers.get_mut(&group) {
                peer.release();
            }
        }
    }

    /// Sets the time when what is missing is asked for.
    pub(super) fn rearm(&mut self, id: CommandId, now: Time, after_ms: u64) {
        let Some(multi) = self.multis.get_mut(id) else { return };
        multi.resend_after_ms = after_ms.max(self.timing.resend_ms);
        multi.resend_due = now.after_ms(after_ms);
        self.look_at_when_due(id);
    }

    /// What is put off, as it is at each step, keeps its place among the timers until that has come.
    fn look_at_when_due(&mut self, id: CommandId) {
        let Some(multi) = self.multis.get_mut(id) else { return };
        let due = multi.resend_due;
        match multi.looked_at {
            Some(at) if at <= due => return,
            Some(at) => _ = self.timers.remove(&(at, id)),
            None => {}
        }
        multi.looked_at = Some(due);
        self.timers.insert((due, id));
    }

    /// The timers have come to this one. True if it is due; else they will come back.
    pub(super) fn is_due(&mut self, id: CommandId, now: Time) -> bool {
        let Some(multi) = self.multis.get_mut(id) else { return false };
        multi.looked_at = None;
        let is_due = multi.resend_due <= now;
        if !is_due {
            self.look_at_when_due(id);
        }
        is_due
    }
}
