//! How a voter becomes primary.
//!
//! 1. A voter that hears no primary probes: it asks whether the others miss it too. This promises nothing, so a voter that
//!    was cut off or restarted does not depose a primary that works.
//! 2. With a quorum willing it chooses a ballot above all it knows, makes its own promise durable and campaigns.
//! 3. Voters promise, durably, and tell where their logs end. The most advanced log of the quorum holds every committed
//!    entry; a candidate with a lesser one fetches it from its owner, who has promised and so does not change it.
//! 4. Then it is primary, and starts the ballot with a `Noop`.

use std::collections::{BTreeMap, BTreeSet};

use super::entries::Slot;
use super::{HeldBack, ROUND_MAX, ReadFor, Replicator, Role};
use crate::ids::{Ballot, Incarnation, LogIndex, ReplicaId};
use crate::membership::{Member, Membership};
use crate::message::Message;
use crate::output::{Event, Output};
use crate::record::{Entry, Position, Record};
use crate::time::Time;

#[derive(Clone, Debug)]
pub(super) struct Probing {
    ballot: Ballot,
    willing: BTreeSet<(ReplicaId, Incarnation)>,
    /// When to ask again: at the start of a cluster the others may not be there yet.
    pub(super) retry_due: Time,
}

#[derive(Clone, Debug)]
pub(super) struct Candidate {
    ballot: Ballot,
    /// Of anybody; those count that the membership names.
    promises: BTreeMap<ReplicaId, (Incarnation, Position)>,
    fetching: Option<Fetching>,
    /// When to ask again what was not answered.
    pub(super) retry_due: Time,
}

/// The candidate takes over another voter's log.
#[derive(Clone, Copy, Debug)]
struct Fetching {
    from: ReplicaId,
    /// The candidate has that log up to here …
    after: LogIndex,
    /// … and it ends here.
    until: Position,
}

impl Replicator {
    pub(super) fn become_probing(&mut self) {
        let ballot = self.next_ballot();
        self.expect_primary();
        let retry_due = self.now.after_ms(self.timing.heartbeat_ms);
        if matches!(self.role, Role::Follower) && self.primary.is_some() {
            self.outputs.push_back(Output::Event(Event::BecameFollower { primary: None }));
        }
        self.role =
            Role::Probing(Probing { ballot, willing: BTreeSet::from([(self.me, self.incarnation)]), retry_due });
        self.send_probe(ballot);
        self.campaign_if_wanted();
    }

    /// Whoever may not lead and hears no primary asks whether it is a member still: nobody tells those that do not ask. Of the
    /// own log only that counts which is committed, as nobody else may have the rest.
    pub(super) fn ask_whether_member(&mut self) {
        self.expect_primary();
        let members = self.committed_membership();
        if self.expelled.is_none() && members.has(self.me, self.incarnation) {
            let (ballot, version, incarnation) = (self.next_ballot(), members.version, self.incarnation);
            self.send_to_others(&Message::Probe { ballot, incarnation, version });
        }
    }

    pub(super) fn probing_timeout(&mut self) {
        if !self.may_lead() {
            return self.become_follower(None);
        }
        if self.now >= self.election_due {
            return self.become_probing();
        }
        let Role::Probing(probing) = &mut self.role else { return };
        if self.now >= probing.retry_due {
            probing.retry_due = self.now.after_ms(self.timing.heartbeat_ms);
            let ballot = probing.ballot;
            self.send_probe(ballot);
        }
    }

    fn send_probe(&mut self, ballot: Ballot) {
        let (incarnation, version) = (self.incarnation, self.membership().version);
        self.send_to_others(&Message::Probe { ballot, incarnation, version });
    }

    pub(super) fn handle_probe(&mut self, from: ReplicaId, ballot: Ballot, incarnation: Incarnation, version: u64) {
        let members = self.memberships.committed(self.committed);
        // Whoever knows a later membership than this voter may be a member by that. Of two with one number the committed one
        // counts.
        let is_stranger = !members.has(from, incarnation);
        if (members.version > version && !members.is_voter(from, incarnation))
            || (members.version == version && is_stranger)
        {
            if is_stranger {
                let members = Membership::clone(members);
                self.send(from, Message::Members(members));
            }
            return;
        }
        let primary_works = match &self.role {
            Role::Primary(_) => true,
            // If the primary itself asks, it has restarted.
            Role::Follower | Role::Probing(_) | Role::Candidate(_) => {
                self.primary != Some(from)
                    && self
                        .primary_heard
                        .is_some_and(|heard| self.now.ms_since(heard) < self.timing.election_timeout_ms)
            }
        };
        let (promised, incarnation) = (self.promised, self.incarnation);
        self.send(from, Message::ProbeAnswer { ballot, willing: !primary_works, promised, incarnation });
    }

    pub(super) fn handle_willing(&mut self, from: ReplicaId, ballot: Ballot, incarnation: Incarnation) {
        if let Role::Probing(probing) = &mut self.role
            && probing.ballot == ballot
        {
            probing.willing.insert((from, incarnation));
            self.campaign_if_wanted();
        }
    }

    fn campaign_if_wanted(&mut self) {
        let Role::Probing(probing) = &self.role else { return };
        let membership = self.membership();
        let willing = membership.voters().filter(|voter| probing.willing.contains(&(voter.replica, voter.incarnation)));
        if willing.count() >= membership.quorum_size() {
            self.become_candidate();
        }
    }

    pub(super) fn become_candidate(&mut self) {
        let ballot = self.next_ballot();
        self.promised = ballot;
        self.disk.promise(ballot);
        self.expect_primary();
        let retry_due = self.now.after_ms(self.timing.heartbeat_ms);
        self.role = Role::Candidate(Candidate { ballot, promises: BTreeMap::new(), fetching: None, retry_due });
        for voter in self.other_voters() {
            self.send_when_durable(voter, Message::Campaign { ballot });
        }
        if let Some(HeldBack::OwnPromise(ballot)) = self.disk.hold_back(HeldBack::OwnPromise(ballot)) {
            self.own_promise_is_durable(ballot);
        }
    }

    pub(super) fn own_promise_is_durable(&mut self, ballot: Ballot) {
        let last = self.entries.last();
        self.handle_promise((self.me, self.incarnation), ballot, last);
    }

    pub(super) fn handle_campaign(&mut self, from: ReplicaId, ballot: Ballot) {
        if ballot.owner != Some(from) || ballot.round > ROUND_MAX {
            return self.ignore(from, "campaigns in a ballot of another");
        }
        if self.expelled.is_some() {
            return;
        }
        if ballot < self.promised {
            let promised = self.promised;
            return self.send_when_durable(from, Message::Outbid { promised });
        }
        if ballot > self.promised {
            self.promised = ballot;
            self.disk.promise(ballot);
            self.clock_told = None;
            self.become_follower(None);
        }
        self.tell_clock(from);
        let (last, incarnation) = (self.entries.last(), self.incarnation);
        self.send_when_durable(from, Message::Promise { ballot, last, incarnation });
    }

    pub(super) fn handle_promise(&mut self, from: (ReplicaId, Incarnation), ballot: Ballot, last: Position) {
        let Role::Candidate(candidate) = &mut self.role else { return };
        if candidate.ballot != ballot {
            return;
        }
        candidate.promises.insert(from.0, (from.1, last));
        if candidate.fetching.is_none() {
            self.lead_if_promised();
        }
    }

    /// Leads, if a quorum of those voters has promised that the own log names, and none of them has a more advanced log. A
    /// log that is taken over may name others, who must then be asked, too.
    fn lead_if_promised(&mut self) {
        let Role::Candidate(candidate) = &self.role else { return };
        // The own promise must be among them: what this voter promised binds it only once durable.
        if !candidate.promises.contains_key(&self.me) {
            return;
        }
        if !self.may_lead() {
            return self.leave_to_others();
        }
        let membership = self.memberships.latest();
        let promised = |voter: &Member| {
            let (incarnation, position) = candidate.promises.get(&voter.replica)?;
            (*incarnation == voter.incarnation).then_some((*position, voter.replica))
        };
        let promises: Vec<(Position, ReplicaId)> = membership.voters().filter_map(promised).collect();
        if promises.len() < membership.quorum_size() {
            return;
        }
        let (ballot, own) = (candidate.ballot, self.entries.last());
        let best = promises.into_iter().filter(|(position, _)| *position > own).max();
        #[cfg(feature = "explore")]
        let best = best.filter(|_| self.planted != Some(crate::planted::Planted::OwnLogWins));
        let Some((until, from)) = best else { return self.start_ballot(ballot, Record::Noop) };
        let after = self.committed;
        let Role::Candidate(candidate) = &mut self.role else { return };
        candidate.fetching = Some(Fetching { from, after, until });
        self.fetch();
    }

    fn fetch(&mut self) {
        let Role::Candidate(candidate) = &mut self.role else { return };
        candidate.retry_due = self.now.after_ms(self.timing.heartbeat_ms);
        if let Some(fetching) = candidate.fetching {
            let ballot = candidate.ballot;
            self.send(fetching.from, Message::Fetch { ballot, after: fetching.after });
        }
    }

    pub(super) fn handle_fetch(&mut self, from: ReplicaId, ballot: Ballot, after: LogIndex) {
        if ballot != self.promised || ballot.owner != Some(from) {
            return;
        }
        // If the candidate lacks what was dropped here it will see from the first entry that it got.
        let after = after.max(LogIndex(self.first_on_disk.0 - 1));
        let first = LogIndex(after.0.saturating_add(1));
        let entries = self.entries.batch(first, self.limits.append_batch_bytes);
        if !entries.is_empty() {
            self.send(from, Message::Fetched { ballot, after, entries });
        } else if self.reading.is_none() && first <= self.entries.last().index {
            self.read_log(ReadFor::Candidate { candidate: from, ballot, after }, first);
        }
    }

    pub(super) fn handle_fetched(&mut self, from: ReplicaId, ballot: Ballot, after: LogIndex, entries: Vec<Entry>) {
        let Role::Candidate(candidate) = &self.role else { return };
        let Some(fetching) = candidate.fetching else { return };
        if candidate.ballot != ballot || fetching.from != from || after < fetching.after {
            return;
        }
        let first = entries.first().map(|entry| entry.position());
        // Where the owner has skipped something, the logs must be seen to agree.
        let agrees = first.is_some_and(|first| {
            let follows = first.index.0.checked_sub(1) == Some(after.0);
            let is_known = first.index <= self.committed || self.entries.position(first.index) == Some(first);
            follows && (after == fetching.after || is_known)
        });
        if !agrees {
            if let Some(first) = first {
                self.become_too_far_behind(first.index);
            }
            return self.leave_to_others();
        }
        let Some(reached) = self.take_entries(from, after, entries) else { return };
        if reached >= fetching.until.index {
            // Anything else than what was promised is no log to lead with.
            if self.entries.last() != fetching.until {
                return self.leave_to_others();
            }
            let Role::Candidate(candidate) = &mut self.role else { return };
            candidate.fetching = None;
            self.ask_silent_voters();
            return self.lead_if_promised();
        }
        let Role::Candidate(candidate) = &mut self.role else { return };
        candidate.fetching = Some(Fetching { after: reached, ..fetching });
        self.fetch();
    }

    /// It cannot be helped to lead.
    fn leave_to_others(&mut self) {
        self.become_follower(None);
        self.election_due = self.election_due.after_ms(2 * self.timing.election_timeout_ms);
    }

    /// Brings the log in line with entries that follow `after`, where both logs are known to agree. Gives the index of the
    /// last, or none if they make no sense.
    pub(super) fn take_entries(&mut self, from: ReplicaId, after: LogIndex, entries: Vec<Entry>) -> Option<LogIndex> {
        let dense = entries.iter().zip(after.0 + 1..).all(|(entry, index)| entry.index.0 == index);
        if !dense || entries.iter().any(|entry| entry.ballot > self.promised) {
            self.ignore(from, "entries with a hole or of the future");
            return None;
        }
        let reached = LogIndex(after.0 + entries.len() as u64);
        let is_new = |entry: &Entry| {
            let known = self.entries.position(entry.index);
            entry.index > self.committed && known != Some(entry.position())
        };
        let first_new = entries.iter().position(is_new).unwrap_or(entries.len());
        let new: Result<Vec<Slot>, _> = entries.into_iter().skip(first_new).map(Slot::decode).collect();
        let Ok(new) = new else {
            self.ignore(from, "entries that are no records");
            return None;
        };
        let Some(first) = new.first().map(|slot| slot.entry.index) else { return Some(reached) };
        if first <= self.entries.last().index {
            self.truncate_from(first);
        }
        for slot in new {
            self.push(slot);
        }
        Some(reached)
    }

    pub(super) fn candidate_timeout(&mut self) {
        if self.now >= self.election_due {
            return self.become_follower(None);
        }
        let Role::Candidate(candidate) = &mut self.role else { return };
        if self.now < candidate.retry_due {
            return;
        }
        candidate.retry_due = self.now.after_ms(self.timing.heartbeat_ms);
        if candidate.fetching.is_some() {
            return self.fetch();
        }
        if !self.may_lead() {
            return self.become_follower(None);
        }
        self.ask_silent_voters();
    }

    fn ask_silent_voters(&mut self) {
        let Role::Candidate(candidate) = &self.role else { return };
        if !candidate.promises.contains_key(&self.me) {
            return;
        }
        let ballot = candidate.ballot;
        let mut silent = self.other_voters();
        silent.retain(|voter| !candidate.promises.contains_key(voter));
        for voter in silent {
            self.send(voter, Message::Campaign { ballot });
        }
    }

    pub(super) fn handle_outbid(&mut self, from: ReplicaId, promised: Ballot) {
        if promised.round > ROUND_MAX {
            return self.ignore(from, "promised an absurd ballot");
        }
        self.see_round(promised);
        let own = match &self.role {
            Role::Candidate(candidate) => Some(candidate.ballot),
            Role::Primary(primary) => Some(primary.ballot),
            Role::Follower | Role::Probing(_) => None,
        };
        if own.is_some_and(|own| own < promised) {
            self.become_follower(None);
        }
    }

    /// The primary says that it is this voter's turn.
    pub(super) fn handle_take_over(&mut self, from: ReplicaId, ballot: Ballot) {
        let is_current = ballot == self.promised && ballot.owner == Some(from);
        if is_current && matches!(self.role, Role::Follower) && self.may_lead() {
            self.become_candidate();
        }
    }

    pub(super) fn see_round(&mut self, ballot: Ballot) {
        if ballot.round <= ROUND_MAX {
            self.round_seen = self.round_seen.max(ballot.round);
        }
    }

    fn next_ballot(&self) -> Ballot {
        Ballot { round: self.promised.round.max(self.round_seen) + 1, owner: Some(self.me) }
    }
}
