//! Who belongs to the group, and how that changes: one voter at a time, by a record that counts as soon as it is in a log.
//!
//! Any quorum before a change shares a voter with any quorum after it. For that, the change before must be committed, and the
//! primary must have committed something in its own ballot: else a membership of an earlier ballot may be alive somewhere of
//! which this log knows nothing, two changes away.

use std::sync::Arc;

use super::primary::Follower;
use super::{ROUND_MAX, Replicator, Role};
use crate::ids::{Ballot, Incarnation, LogIndex, ReplicaId};
use crate::membership::{ChangeRefused, ForceRefused, Member, MemberChange, MemberRole, Membership};
use crate::message::Message;
use crate::output::{Event, Output};
use crate::record::Record;
use crate::time::Time;

/// A learner that lacks more than so many entries does not become a voter.
const PROMOTE_LAG_MAX: u64 = 1000;

/// A copy of the state that failed is sent again after so many heartbeats.
const TRANSFER_PAUSE: u64 = 5;

/// A forced ballot is above all that the lost voters may have promised: by so many rounds.
const FORCED_ROUNDS: u64 = 1 << 40;

/// Whether a follower is sent a copy of the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transfer {
    Possible,
    UnderWay,
    NotBefore(Time),
}

impl Replicator {
    /// The membership that counts: the latest in the log, committed or not.
    pub(crate) fn membership(&self) -> &Arc<Membership> {
        self.memberships.latest()
    }

    /// The latest one that is committed.
    pub(crate) fn committed_membership(&self) -> &Arc<Membership> {
        self.memberships.committed(self.committed)
    }

    /// True if this replica may be elected, as far as it knows.
    pub(super) fn may_lead(&self) -> bool {
        self.expelled.is_none()
            && self.too_far_behind.is_none()
            && self.membership().is_voter(self.me, self.incarnation)
    }

    pub(crate) fn is_expelled(&self) -> bool {
        self.expelled.is_some()
    }

    /// After each change of the membership that counts, and on becoming primary.
    pub(super) fn follow_membership(&mut self) {
        let membership = Arc::clone(self.memberships.latest());
        self.clocks.follow(&membership, self.me);
        let is_back = |version| membership.version > version && membership.has(self.me, self.incarnation);
        if self.expelled.is_some_and(is_back) {
            self.expelled = None;
        }
        let (me, now, committed) = (self.me, self.now, self.committed);
        let end = self.entries.last().index.next();
        let Role::Primary(primary) = &mut self.role else { return };
        let mut known = std::mem::take(&mut primary.followers);
        for member in membership.members.iter().filter(|member| member.replica != me) {
            let is_same = |follower: &Follower| {
                follower.member.replica == member.replica && follower.member.incarnation == member.incarnation
            };
            let follower = match known.iter().position(is_same) {
                Some(at) => known.swap_remove(at).with_role(member.role),
                // Most likely it has the same log; if not, it says so.
                None if member.is_voter() => Follower::new(*member, end, now),
                None => Follower::new(*member, committed.next(), Time::default()),
            };
            primary.followers.push(follower);
        }
        let own = usize::from(membership.is_voter(me, self.incarnation));
        primary.choose_spares(membership.quorum_size().saturating_sub(own));
    }

    /// Others say who is a member.
    pub(crate) fn handle_members(&mut self, members: &Membership) {
        // What the own log says beyond what is committed may be void, and another change with the same number.
        let is_refuted =
            self.membership().version > members.version && self.membership().has(self.me, self.incarnation);
        let is_news = members.version > self.committed_membership().version
            && !is_refuted
            && self.expelled.is_none_or(|version| version < members.version)
            && !members.has(self.me, self.incarnation);
        if !is_news {
            return;
        }
        self.expelled = Some(members.version);
        self.outputs.push_back(Output::Event(Event::Expelled { version: members.version }));
        if !matches!(self.role, Role::Follower) {
            self.become_follower(None);
        }
    }

    /// Logs a change, as primary. Gives the entry's index.
    pub(crate) fn change_membership(&mut self, now: Time, change: MemberChange) -> Result<LogIndex, ChangeRefused> {
        self.now = now;
        let Role::Primary(primary) = &self.role else {
            return Err(ChangeRefused::NotPrimary { hint: self.primary(now) });
        };
        if self.committed < primary.start {
            return Err(ChangeRefused::NotReady);
        }
        if self.memberships.is_changing(self.committed) {
            return Err(ChangeRefused::UnderWay);
        }
        let next = self.membership().changed(change)?;
        if let MemberChange::Promote { replica } = change {
            self.check_promotion(replica)?;
        }
        let before = self.membership();
        let is_other = before.voters().count() != next.voters().count();
        if is_other && self.count_heard(&next) < next.quorum_size() {
            return Err(ChangeRefused::NoQuorumLeft);
        }
        let appended = self.append(Record::Config { membership: Arc::new(next) });
        // A primary that takes itself out needs nobody else's disk, or has it already.
        self.advance_committed();
        appended.ok_or(ChangeRefused::NotPrimary { hint: None })
    }

    fn follower(&self, replica: ReplicaId) -> Option<&Follower> {
        let Role::Primary(primary) = &self.role else { return None };
        primary.followers.iter().find(|follower| follower.member.replica == replica)
    }

    fn check_promotion(&self, replica: ReplicaId) -> Result<(), ChangeRefused> {
        let follower = self.follower(replica).ok_or(ChangeRefused::NotAMember(replica))?;
        if self.now.ms_since(follower.heard) >= 3 * self.timing.heartbeat_ms {
            return Err(ChangeRefused::Silent(replica));
        }
        let behind = self.committed.0.saturating_sub(follower.matched.0);
        // It must know that it is a member: one that was a voter before, and was removed, believes the removal else.
        let is_lagging = behind > PROMOTE_LAG_MAX || follower.matched < self.memberships.latest_at();
        if is_lagging { Err(ChangeRefused::Lagging { behind }) } else { Ok(()) }
    }

    /// How many voters of that membership answer, this one included.
    fn count_heard(&self, membership: &Membership) -> usize {
        let is_heard = |voter: &&Member| {
            let timeout_ms = self.timing.election_timeout_ms;
            let of = self.follower(voter.replica).filter(|follower| follower.member.incarnation == voter.incarnation);
            voter.replica == self.me || of.is_some_and(|follower| self.now.ms_since(follower.heard) < timeout_ms)
        };
        membership.voters().filter(is_heard).count()
    }

    /// What a primary does by itself: replaces voters that lost their disks, and makes voters of those that wait for it.
    pub(super) fn maintain_membership(&mut self) {
        let Role::Primary(primary) = &self.role else { return };
        let (now, patience_ms) = (self.now, self.timing.election_timeout_ms);
        let lost_disk = primary.followers.iter().find_map(|follower| {
            let (incarnation, since) = follower.stranger.filter(|_| self.auto_replace)?;
            let replica = follower.member.replica;
            (now.ms_since(since) >= patience_ms).then_some(MemberChange::Replace { replica, incarnation })
        });
        let joining = primary.followers.iter().find_map(|follower| {
            let Member { replica, role, .. } = follower.member;
            let is_ready = role == MemberRole::Joining && self.check_promotion(replica).is_ok();
            is_ready.then_some(MemberChange::Promote { replica })
        });
        if let Some(change) = lost_disk.or(joining) {
            // What is refused now is tried again with the next heartbeat.
            let _ = self.change_membership(now, change);
        }
    }

    /// A primary that is no voter any more has done its duty once that is committed.
    pub(super) fn leave_if_removed(&mut self) {
        let is_voter = self.membership().is_voter(self.me, self.incarnation);
        if is_voter || self.memberships.is_changing(self.committed) {
            return;
        }
        // Of the commit, too, the others should know.
        self.send_appends();
        self.hand_over(self.now);
        self.become_follower(None);
    }

    /// Lets the most advanced voter take over at once. Until it does, or a while has passed, this primary takes nothing new.
    pub(crate) fn hand_over(&mut self, now: Time) -> Option<ReplicaId> {
        self.now = now;
        let timeout_ms = self.timing.election_timeout_ms;
        let Role::Primary(primary) = &mut self.role else { return None };
        let voters = primary.followers.iter().filter(|follower| follower.member.is_voter());
        let heard = voters.filter(|follower| now.ms_since(follower.heard) < timeout_ms && follower.stranger.is_none());
        // Of equally advanced ones the one that the operator prefers.
        let target = heard.rev().max_by_key(|follower| follower.matched)?.member.replica;
        primary.handing_over = Some((target, now.after_ms(timeout_ms)));
        let ballot = primary.ballot;
        self.send_appends();
        self.send(target, Message::TakeOver { ballot });
        Some(target)
    }

    /// Who is about to take over.
    pub(crate) fn handing_over(&self, now: Time) -> Option<ReplicaId> {
        let Role::Primary(primary) = &self.role else { return None };
        primary.handing_over.filter(|(_, until)| *until > now).map(|(target, _)| target)
    }

    /// Makes this replica the group's only voter, without asking anybody. See [`crate::Core::force_membership`].
    pub(crate) fn force_membership(&mut self, now: Time, keep: &[ReplicaId]) -> Result<LogIndex, ForceRefused> {
        self.now = now;
        if self.primary(now).is_some() {
            return Err(ForceRefused::GroupLives);
        }
        let membership = self.membership();
        let own = membership.member(self.me).filter(|member| member.incarnation == self.incarnation);
        let own = *own.ok_or(ForceRefused::NotAMember)?;
        let forced = membership.forced(own, keep);
        let round = self.promised.round.max(self.round_seen).saturating_add(FORCED_ROUNDS);
        if round > ROUND_MAX || forced.version <= membership.version {
            return Err(ForceRefused::Exhausted);
        }
        let ballot = Ballot { round, owner: Some(self.me) };
        self.expelled = None;
        self.promised = ballot;
        self.disk.promise(ballot);
        self.start_ballot(ballot, Record::Config { membership: Arc::new(forced) });
        Ok(self.entries.last().index)
    }

    /// A follower needs what was dropped: only a copy of the state can help it.
    pub(super) fn help(&mut self, replica: ReplicaId, from: LogIndex) {
        let now = self.now;
        let Role::Primary(primary) = &mut self.role else { return };
        let mut followers = primary.followers.iter_mut();
        let Some(follower) = followers.find(|follower| follower.member.replica == replica) else { return };
        if !std::mem::replace(&mut follower.beyond_help, true) {
            self.outputs.push_back(Output::Event(Event::FollowerBeyondHelp { replica, from }));
        }
        let may_send = match follower.transfer {
            Transfer::Possible => true,
            Transfer::UnderWay => false,
            Transfer::NotBefore(time) => time <= now,
        };
        if may_send {
            follower.transfer = Transfer::UnderWay;
            let incarnation: Incarnation = follower.member.incarnation;
            self.outputs.push_back(Output::SendSnapshot { to: replica, incarnation });
        }
    }

    /// The copy was sent, and is in place up to `installed`; or it failed.
    pub(crate) fn snapshot_sent(&mut self, now: Time, replica: ReplicaId, installed: Option<LogIndex>) {
        self.now = now;
        let (last, first) = (self.entries.last().index, self.first_on_disk);
        let pause_ms = TRANSFER_PAUSE * self.timing.heartbeat_ms;
        let Role::Primary(primary) = &mut self.role else { return };
        let mut followers = primary.followers.iter_mut();
        let Some(follower) = followers.find(|follower| follower.member.replica == replica) else { return };
        if follower.transfer != Transfer::UnderWay {
            return;
        }
        follower.transfer = Transfer::NotBefore(now.after_ms(pause_ms));
        if let Some(index) = installed.filter(|&index| index >= first && index <= last && index > follower.matched) {
            follower.search_at(index.next());
        }
    }
}
