//! What primaries of different groups tell each other.
//!
//! A primary tells each fact to the other destinations once, when it is committed. From then on whoever lacks something asks
//! for it, with back-off, and gets everything that the asked group's log says. So nothing is acknowledged as such, lost
//! messages cost time only, and a new primary needs to know nothing but its log.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::multi::Stage;
use super::proof::{INDEX_MAX, Reached};
use super::{Closing, Sequencer, TIMESTAMP_MAX, Turn, len_bytes};
use crate::command::Command;
use crate::ids::{CommandId, GroupId, ReplicaId, Timestamp};
use crate::machine::CONTRIBUTION_BYTES_MAX;
use crate::message::{Facts, Message};
use crate::order::{OrderState, Standing, Verdict};
use crate::output::{Event, Output};
use crate::record::{Contribution, Refusal, Rejection};

/// Timestamps that overtook their command: kept for so many commands; what does not fit is asked for later.
const EARLY_MAX: usize = 4096;

/// Questions beyond this are asked again later.
const CLOSING_MAX: usize = 1024;

/// A foreign primary's proposals are taken beyond the limit for clients by this factor, as other groups wait for them.
const FOREIGN_LOAD_FACTOR: usize = 2;

/// A group that has no room for a command is asked again after this long, then after twice as long, and so on.
const BUSY_AFTER_MS: u64 = 20;

/// Timestamps that came before their command.
#[derive(Clone, Debug)]
pub(super) struct Early {
    pub(super) binding: u64,
    pub(super) timestamps: BTreeMap<GroupId, Timestamp>,
}

impl Sequencer {
    /// A message from a replica of another group.
    pub(crate) fn handle_message(&mut self, turn: &mut Turn<'_>, from: (GroupId, ReplicaId), message: Message) {
        match message {
            Message::Propose { command } => {
                self.heard(turn, from);
                self.handle_propose(turn, from, &command);
            }
            Message::Facts(facts) => {
                self.heard(turn, from);
                self.handle_facts(turn, from, facts);
            }
            Message::NotPrimary { hint } => {
                let pause_ms = self.timing.heartbeat_ms;
                let Some(peer) = self.peers.get_mut(&from.0) else { return };
                if peer.not_primary(turn.now, from.1, hint, pause_ms) {
                    self.ask_again(turn, from.0);
                }
            }
            Message::Busy { id, binding } => {
                self.heard(turn, from);
                self.handle_busy(turn, id, binding);
            }
            Message::Reached { question, committed, last, version, incarnation } => {
                let answer = Reached { question, committed, last, version, incarnation };
                self.handle_reached(turn, from, answer);
            }
            _ => ignore(turn, from, "not a message between groups"),
        }
        self.run(turn);
    }

    fn heard(&mut self, turn: &mut Turn<'_>, from: (GroupId, ReplicaId)) {
        let pause_ms = self.timing.heartbeat_ms;
        let Some(peer) = self.peers.get_mut(&from.0) else { return };
        if peer.heard(turn.now, from.1, pause_ms) {
            // What was asked of the old primary may have been lost with it.
            self.ask_again(turn, from.0);
        }
    }

    fn handle_propose(&mut self, turn: &mut Turn<'_>, from: (GroupId, ReplicaId), command: &Arc<Command>) {
        let (id, binding) = (command.id, command.binding());
        let concerns_both = command.footprint(self.group).is_some() && command.footprint(from.0).is_some();
        if !concerns_both || !self.is_well_formed(command) {
            return ignore(turn, from, "proposal that is malformed or not for this group");
        }
        if let Some(multi) = self.multis.get(id) {
            if multi.binding == binding {
                return self.answer(turn, from, id, binding);
            }
            let rejection = Rejection { by: self.group, reason: Refusal::IdReused };
            return answer_rejected(turn, from, id, binding, rejection);
        }
        if self.singles.contains_key(&id) {
            return;
        }
        match turn.order.standing(id, binding) {
            // Its keys are locked where it comes from, so it should not have to wait for the next regular attempt.
            Standing::New if !self.takes_foreign(command) => turn.send(from, Message::Busy { id, binding }),
            Standing::New if turn.order.session_is_full(command) => {
                self.refuse(turn, command, Refusal::BeyondWindow);
            }
            Standing::New => self.prepare(turn, command),
            Standing::Refused(Refusal::UnknownSession) => self.refuse(turn, command, Refusal::UnknownSession),
            // These never change again, so they need no record.
            Standing::Refused(reason) => {
                answer_rejected(turn, from, id, binding, Rejection { by: self.group, reason });
            }
            Standing::Rejected(rejection) => answer_rejected(turn, from, id, binding, rejection),
            Standing::Executed(_) => turn.send(from, Message::Facts(closed(id, binding))),
            Standing::Prepared | Standing::Settled => self.answer(turn, from, id, binding),
        }
    }

    fn takes_foreign(&self, command: &Command) -> bool {
        self.load.commands < self.limits.in_flight_max * FOREIGN_LOAD_FACTOR
            && self.load.bytes + len_bytes(command) <= self.limits.in_flight_bytes_max * FOREIGN_LOAD_FACTOR
    }

    /// The other group is alive and has no room: it is asked again soon, then less soon.
    fn handle_busy(&mut self, turn: &mut Turn<'_>, id: CommandId, binding: u64) {
        let resend_ms = self.timing.resend_ms;
        let Some(multi) = self.multis.get_mut(id) else { return };
        if multi.binding != binding || multi.stage != Stage::Preparing {
            return;
        }
        multi.busy_after_ms = (multi.busy_after_ms * 2).max(BUSY_AFTER_MS).min(resend_ms);
        let after_ms = multi.busy_after_ms;
        self.rearm(id, turn.now, after_ms);
    }

    fn handle_facts(&mut self, turn: &mut Turn<'_>, from: (GroupId, ReplicaId), facts: Facts) {
        let (id, binding) = (facts.id, facts.binding);
        if facts.timestamp.is_some_and(|timestamp| timestamp > TIMESTAMP_MAX) {
            return ignore(turn, from, "timestamp of a far future");
        }
        if facts.contribution.as_ref().is_some_and(|contribution| !self.is_reasonable(contribution)) {
            return ignore(turn, from, "contribution that is too large, or of unknown groups");
        }
        let Some(multi) = self.multis.get_mut(id).filter(|multi| multi.binding == binding) else {
            return self.handle_facts_of_unknown(turn, from, &facts);
        };
        let Some(told) = multi.others.get_mut(from.0) else {
            return ignore(turn, from, "facts from a group that is no destination");
        };
        told.closed |= facts.closed;
        let wants_contribution = matches!(multi.stage, Stage::Preparing | Stage::Ordered | Stage::Committing);
        if facts.contribution.is_some() && told.contribution.is_none() && wants_contribution {
            told.contribution = facts.contribution;
            self.awake.push_back(id);
        }
        if let Some(timestamp) = facts.timestamp {
            self.learn_timestamp(id, from.0, timestamp);
        }
        if let Some(rejection) = facts.refused {
            self.abort(turn, id, rejection);
        }
        if facts.ask {
            self.answer(turn, from, id, binding);
        }
        self.forget_if_closed(turn, id);
    }

    fn is_reasonable(&self, contribution: &Contribution) -> bool {
        let is_known = |group: GroupId| group == self.group || self.peers.contains_key(&group);
        contribution.value.len() <= CONTRIBUTION_BYTES_MAX
            && contribution.index <= INDEX_MAX
            && contribution.depends_on.claims().all(|(group, index)| is_known(group) && index <= INDEX_MAX)
    }

    /// Facts about something that is not under way here: not yet, or not any more.
    fn handle_facts_of_unknown(&mut self, turn: &mut Turn<'_>, from: (GroupId, ReplicaId), facts: &Facts) {
        let (id, binding) = (facts.id, facts.binding);
        if facts.closed {
            if facts.ask {
                self.close_unknown(turn, from, id, binding);
            }
            return;
        }
        let standing = turn.order.standing(id, binding);
        match standing {
            Standing::Rejected(rejection) if facts.ask => answer_rejected(turn, from, id, binding, rejection),
            Standing::Refused(reason @ (Refusal::StaleSequence | Refusal::IdReused)) if facts.ask => {
                answer_rejected(turn, from, id, binding, Rejection { by: self.group, reason });
            }
            Standing::Settled if facts.ask => self.answer(turn, from, id, binding),
            Standing::New => self.keep_early(from.0, facts),
            _ => {}
        }
    }

    /// Another group is through with something that is not under way here, and may forget it once this group needs nothing of it.
    fn close_unknown(&mut self, turn: &mut Turn<'_>, from: (GroupId, ReplicaId), id: CommandId, binding: u64) {
        let is_passed = match turn.order.standing(id, binding) {
            Standing::Executed(_) | Standing::Rejected(_) => true,
            // A later log says the same.
            Standing::Refused(Refusal::StaleSequence | Refusal::IdReused) => true,
            _ => false,
        };
        if is_passed {
            return turn.send(from, Message::Facts(closed(id, binding)));
        }
        // Either it is long forgotten, or it was prepared under a newer primary, of which this one has not heard, and waits
        // there for what the other group would forget. An entry that commits in this ballot tells.
        if self.closing.len() < CLOSING_MAX {
            self.handle_tick(turn);
            self.closing.push_back(Closing { after: turn.log.last().index, to: from, id, binding });
        }
    }

    /// Answers those who asked before an entry that is applied by now: this was the primary then.
    pub(super) fn close_confirmed(&mut self, turn: &mut Turn<'_>) {
        while let Some(closing) = self.closing.front() {
            if closing.after > turn.order.applied() {
                break;
            }
            if let Some(Closing { to, id, binding, .. }) = self.closing.pop_front()
                && !self.multis.contains(id)
            {
                turn.send(to, Message::Facts(closed(id, binding)));
            }
        }
    }

    fn keep_early(&mut self, from: GroupId, facts: &Facts) {
        let Some(timestamp) = facts.timestamp else { return };
        let fresh = || Early { binding: facts.binding, timestamps: BTreeMap::new() };
        let early = self.early.entry(facts.id).or_insert_with(fresh);
        if early.binding == facts.binding && self.peers.contains_key(&from) {
            early.timestamps.insert(from, timestamp);
        }
        if self.early.len() > EARLY_MAX {
            self.early.pop_first();
        }
    }

    /// Asks for everything that a command lacks, and comes back to it later.
    pub(super) fn resend(&mut self, turn: &mut Turn<'_>, id: CommandId) {
        let Some(multi) = self.multis.get(id) else { return };
        let after_ms = multi.resend_after_ms;
        let lacking: Vec<GroupId> =
            multi.others.iter().filter(|(_, told)| multi.lacks(told)).map(|(group, _)| group).collect();
        for group in lacking {
            self.ask_about(turn, id, group);
        }
        let next_ms = after_ms.saturating_mul(2).min(self.timing.resend_ms_max);
        self.rearm(id, turn.now, after_ms);
        if let Some(multi) = self.multis.get_mut(id) {
            multi.resend_after_ms = next_ms;
        }
    }

    /// Asks a group again for everything that is lacking of it.
    pub(super) fn ask_again(&mut self, turn: &mut Turn<'_>, group: GroupId) {
        let lacks = |multi: &super::Multi| multi.others.get(group).is_some_and(|told| multi.lacks(told));
        let mut ids: Vec<CommandId> =
            self.multis.unsorted().filter(|(_, multi)| lacks(multi)).map(|(id, _)| id).collect();
        ids.sort_unstable();
        for id in ids {
            self.ask_about(turn, id, group);
        }
    }

    fn ask_about(&mut self, turn: &mut Turn<'_>, id: CommandId, group: GroupId) {
        let Some(multi) = self.multis.get(id) else { return };
        let mut facts = own_facts(turn.order, id, multi.binding);
        let propose = multi.stage == Stage::Preparing;
        let command = multi.command.clone();
        if let Some(command) = command.filter(|_| propose) {
            self.ask(turn, group, Message::Propose { command });
        }
        if !propose || facts.timestamp.is_some() {
            facts.ask = true;
            self.ask(turn, group, Message::Facts(facts));
        }
    }

    /// Sends something that wants an answer to where the group's primary probably is.
    pub(super) fn ask(&mut self, turn: &mut Turn<'_>, group: GroupId, message: Message) {
        let patience_ms = self.timing.resend_ms;
        if let Some(peer) = self.peers.get_mut(&group) {
            let target = peer.ask(turn.now, patience_ms);
            turn.send((group, target), message);
        }
    }

    /// Tells the other destinations what the log says.
    pub(super) fn tell_all(&mut self, turn: &mut Turn<'_>, id: CommandId) {
        let Some(multi) = self.multis.get(id) else { return };
        let mut facts = own_facts(turn.order, id, multi.binding);
        if multi.stage == Stage::Settled {
            // They have the rest already, or will ask for it.
            (facts.timestamp, facts.contribution) = (None, None);
        }
        for group in multi.others.groups() {
            if let Some(peer) = self.peers.get(&group) {
                turn.send((group, peer.target()), Message::Facts(facts.clone()));
            }
        }
    }

    pub(super) fn tell_rejection(&mut self, turn: &mut Turn<'_>, id: CommandId, rejection: Rejection) {
        let Some(multi) = self.multis.get(id) else { return };
        for group in multi.others.groups() {
            if let Some(peer) = self.peers.get(&group) {
                answer_rejected(turn, (group, peer.target()), id, multi.binding, rejection);
            }
        }
    }

    fn answer(&mut self, turn: &mut Turn<'_>, to: (GroupId, ReplicaId), id: CommandId, binding: u64) {
        turn.send(to, Message::Facts(own_facts(turn.order, id, binding)));
    }
}

/// Everything that the applied log says about a command.
fn own_facts(order: &OrderState, id: CommandId, binding: u64) -> Facts {
    let nothing = Facts { id, binding, timestamp: None, contribution: None, refused: None, closed: false, ask: false };
    if let Some(prepared) = order.prepared().get(id) {
        let contribution = prepared.committed.as_ref().map(|committed| committed.contribution.clone());
        return Facts { timestamp: Some(prepared.timestamp), contribution, ..nothing };
    }
    match order.settled().get(id).map(|settled| &settled.verdict) {
        Some(Verdict::Executed { timestamp, contribution }) => {
            let contribution = Some(contribution.clone());
            Facts { timestamp: Some(*timestamp), contribution, closed: true, ..nothing }
        }
        Some(Verdict::Refused(reason)) => {
            let refused = Some(Rejection { by: order.group(), reason: *reason });
            Facts { refused, closed: true, ..nothing }
        }
        None => nothing,
    }
}

fn closed(id: CommandId, binding: u64) -> Facts {
    Facts { id, binding, timestamp: None, contribution: None, refused: None, closed: true, ask: false }
}

fn answer_rejected(turn: &mut Turn<'_>, to: (GroupId, ReplicaId), id: CommandId, binding: u64, rejection: Rejection) {
    turn.send(to, Message::Facts(Facts { refused: Some(rejection), ..closed(id, binding) }));
}

fn ignore(turn: &mut Turn<'_>, from: (GroupId, ReplicaId), reason: &'static str) {
    turn.outputs.push_back(Output::Event(Event::IgnoredMessage { from, reason }));
}
