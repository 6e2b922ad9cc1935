//! What clients claim to have seen of other groups.
//!
//! A command's clock becomes part of the replicated dependencies: whoever reads its effect must be able to read its causes.
//! A claim of more than there is would make all those readers wait for ever, so a primary logs only what is proven: what the
//! group's own state depends on already, or what a voter of the other group says to be committed there. If a client claims
//! more, the primary asks all voters of that group. Whoever the client has read from is among them and probably near, so
//! this takes no longer than a read there.
//!
//! Who is asked also tells of progress for a while, unasked (see [`crate::subscribers`]). A client that follows another
//! group's state hears of it from a replica there, so this primary does, too, at about that time: while clients' claims
//! move on it renews the question before the voters forget it, and the claims are proven when they come or with the next
//! progress. What is told unasked proves, but never clips: it may have been said before the command came.
//!
//! What nobody can have seen is clipped: anybody's reading of an index means that a quorum had it on disk, so that of the
//! voters of any quorum asked afterwards one has it. To clip such a claim loses no cause, and a client that came by it
//! innocently (from a group that was deceived) is not punished. If no quorum answers, an honest client must not wait for
//! the other group to come back: the claim is taken unless it is far beyond what that group can have done meanwhile.

use std::sync::Arc;

use super::peers::{Inquiry, Peer};
use super::{Sequencer, Turn, len_bytes};
use crate::command::Command;
use crate::ids::{CommandId, GroupId, Incarnation, LogIndex, ReplicaId};
use crate::message::Message;
use crate::output::Decline;
use crate::time::Time;

/// No honest log gets here; one beyond would break arithmetic.
pub(super) const INDEX_MAX: LogIndex = LogIndex(u64::MAX / 2);

/// What another group may have logged since it was last heard of, at the most: so much …
const UNSEEN_MAX: u64 = 1 << 20;

/// … and so much for every second.
const UNSEEN_PER_SECOND_MAX: u64 = 10_000;

/// Whether a command's clock must be proven.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Proof {
    Wanted,
    Waived,
}

/// A command that waits for the proof of its clock. Counts for the load; nothing of it is logged.
#[derive(Clone, Debug)]
pub(super) struct Unproven {
    command: Arc<Command>,
    /// Answers to later questions may judge it.
    serial: u64,
    due: Time,
}

/// What a voter of another group says of its log, see [`Message::Reached`].
pub(super) struct Reached {
    pub(super) question: u64,
    pub(super) committed: LogIndex,
    pub(super) last: LogIndex,
    pub(super) version: u64,
    pub(super) incarnation: Incarnation,
}

impl Sequencer {
    /// True if the command may be logged as it is; otherwise it is held for now.
    pub(super) fn prove(&mut self, turn: &mut Turn<'_>, command: &Arc<Command>) -> bool {
        let is_proven = self.is_proven(turn, command);
        if !is_proven {
            self.hold_unproven(turn, Arc::clone(command));
        }
        // After the question that the command itself may need: an older one could not judge it.
        self.stay_informed(turn, command);
        is_proven
    }

    fn is_proven(&self, turn: &Turn<'_>, command: &Command) -> bool {
        self.claims(turn, command).next().is_none()
    }

    /// What the command's clock claims beyond what is known.
    fn claims<'a>(
        &'a self,
        turn: &'a Turn<'_>,
        command: &'a Command,
    ) -> impl Iterator<Item = (GroupId, LogIndex, &'a Peer)> + 'a {
        command.clock.claims().filter_map(|(group, index)| {
            let peer = self.peers.get(&group)?;
            let known = peer.reached.max(turn.order.depends_on().index(group));
            (index > known).then_some((group, index, peer))
        })
    }

    fn hold_unproven(&mut self, turn: &mut Turn<'_>, command: Arc<Command>) {
        self.serial += 1;
        self.load.add(len_bytes(&command));
        let (id, serial, due) = (command.id, self.serial, turn.now.after_ms(self.timing.resend_ms.saturating_mul(2)));
        self.proof_due.get_or_insert(turn.now.after_ms(self.timing.resend_ms));
        let groups: Vec<GroupId> = self.claims(turn, &command).map(|(group, ..)| group).collect();
        self.unproven.insert(id, Unproven { command, serial, due });
        for group in groups {
            let resend_ms = self.timing.resend_ms;
            let is_open = |peer: &Peer| peer.inquiry.is_some() && !peer.last_inquired_before(turn.now, resend_ms);
            if self.peers.get(&group).is_some_and(|peer| !is_open(peer)) {
                self.inquire(turn, group);
            }
        }
    }

    pub(super) fn take_unproven(&mut self, id: CommandId) -> Option<Unproven> {
        let unproven = self.unproven.remove(&id)?;
        self.load.remove(len_bytes(&unproven.command));
        Some(unproven)
    }

    /// Asks in the background for what later commands will claim, while claims of a group move on. One that the group's state
    /// depends on already is no sign of it: a client carries all that it has ever seen.
    fn stay_informed(&mut self, turn: &mut Turn<'_>, command: &Command) {
        let renew_ms = self.timing.subscription_ms / 2;
        for (group, index) in command.clock.claims() {
            let moves = index > turn.order.depends_on().index(group);
            if moves && self.peers.get(&group).is_some_and(|peer| peer.last_inquired_before(turn.now, renew_ms)) {
                self.inquire(turn, group);
            }
        }
    }

    /// Asks all voters of a group, anew.
    fn inquire(&mut self, turn: &mut Turn<'_>, group: GroupId) {
        self.serial += 1;
        let question = self.serial;
        let Some(peer) = self.peers.get_mut(&group) else { return };
        peer.inquired_at = Some(turn.now);
        peer.inquiry = Some(Inquiry { question, lasts: std::collections::BTreeMap::new() });
        for voter in peer.voters() {
            turn.send((group, voter), Message::HowFar { question });
        }
    }

    pub(super) fn handle_reached(
        &mut self,
        turn: &mut Turn<'_>,
        from: (GroupId, ReplicaId),
        Reached { question, committed, last, version, incarnation }: Reached,
    ) {
        let group = from.0;
        let Some(peer) = self.peers.get_mut(&group) else { return };
        if committed > INDEX_MAX || last > INDEX_MAX {
            return;
        }
        peer.reached = peer.reached.max(committed);
        peer.reached_at = turn.now;
        if version > peer.version() {
            turn.send(from, Message::AskMembers { version: peer.version() });
        }
        // Under a membership that is not known here another quorum may have decided; but then one of any quorum of this
        // one has it in its log.
        let counts = version <= peer.version() && peer.is_voter(from.1, incarnation);
        let quorum_size = peer.quorum_size();
        let reached = peer.reached;
        let asked = peer.inquiry.as_mut().filter(|inquiry| counts && inquiry.question == question);
        let judged = asked.and_then(|inquiry| {
            inquiry.lasts.insert(from.1, last);
            let longest = inquiry.lasts.values().max().copied()?;
            (inquiry.lasts.len() >= quorum_size).then_some(longest.max(reached))
        });
        if let Some(longest) = judged {
            peer.inquiry = None;
            self.clip_claims(group, question, longest);
        }
        self.release_proven(turn);
        if judged.is_some() && self.waits_for_more(turn, group, question) {
            self.inquire(turn, group);
        }
    }

    /// Whoever asked before the question cannot have seen more than this of the group.
    fn clip_claims(&mut self, group: GroupId, question: u64, longest: LogIndex) {
        for unproven in self.unproven.values_mut().filter(|unproven| unproven.serial < question) {
            if unproven.command.clock.claims().any(|(of, index)| of == group && index > longest) {
                Arc::make_mut(&mut unproven.command).clock.clip(group, longest);
            }
        }
    }

    /// Lets those go on that are proven by now, as they came.
    fn release_proven(&mut self, turn: &mut Turn<'_>) {
        let proven = self.unproven.iter().filter(|(_, unproven)| self.is_proven(turn, &unproven.command));
        let mut proven: Vec<(u64, CommandId)> = proven.map(|(&id, unproven)| (unproven.serial, id)).collect();
        proven.sort_unstable();
        for (_, id) in proven {
            if let Some(unproven) = self.take_unproven(id) {
                self.submit(turn, unproven.command, Proof::Waived);
            }
        }
    }

    /// True if something that came after the question waits for this group.
    fn waits_for_more(&self, turn: &Turn<'_>, group: GroupId, question: u64) -> bool {
        let mut later = self.unproven.values().filter(|unproven| unproven.serial > question);
        later.any(|unproven| self.claims(turn, &unproven.command).any(|(of, ..)| of == group))
    }

    /// Asks again, and ends the waiting of those that have waited for long.
    pub(super) fn proof_timeout(&mut self, turn: &mut Turn<'_>) {
        self.proof_due = None;
        self.release_proven(turn);
        let due: Vec<CommandId> =
            self.unproven.iter().filter(|(_, unproven)| unproven.due <= turn.now).map(|(&id, _)| id).collect();
        for id in due {
            let Some(unproven) = self.take_unproven(id) else { continue };
            let implausible = self.claims(turn, &unproven.command).find(|(group, index, peer)| {
                let silent_s = turn.now.ms_since(peer.reached_at) / 1000;
                let known = peer.reached.max(turn.order.depends_on().index(*group));
                index.0
                    > known.0.saturating_add(UNSEEN_MAX).saturating_add(silent_s.saturating_mul(UNSEEN_PER_SECOND_MAX))
            });
            match implausible.map(|(group, ..)| group) {
                Some(group) => turn.decline(id, Decline::Unavailable { group }),
                None => self.submit(turn, unproven.command, Proof::Waived),
            }
        }
        let mut groups: Vec<GroupId> = Vec::new();
        for unproven in self.unproven.values() {
            groups.extend(self.claims(turn, &unproven.command).map(|(group, ..)| group));
        }
        groups.sort_unstable();
        groups.dedup();
        if !groups.is_empty() {
            self.proof_due = Some(turn.now.after_ms(self.timing.resend_ms));
        }
        for group in groups {
            self.inquire(turn, group);
        }
        self.run(turn);
    }
}
