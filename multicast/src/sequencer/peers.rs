//! The other groups, as far as a primary must know them: where their primary probably is, whether it answers, and how far
//! their logs are.

use std::collections::BTreeMap;

use crate::ids::{Incarnation, LogIndex, ReplicaId};
use crate::membership::Membership;
use crate::time::Time;

/// Another group.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    members: Membership,
    /// Probably its primary.
    target: ReplicaId,
    /// Since when that one is asked in vain.
    target_since: Time,
    /// Since when the group leaves questions unanswered.
    unanswered_since: Option<Time>,
    /// When everything was last sent anew because the primary turned out to be another.
    redirected: Option<Time>,
    /// Commands with this group that are not through.
    pub(super) unfinished: usize,
    /// Its log is committed up to here at least, as one of its voters said …
    pub(super) reached: LogIndex,
    /// … and when any of them last said something of the kind.
    pub(super) reached_at: Time,
    pub(super) inquiry: Option<Inquiry>,
    /// When its voters were last asked how far it is: they tell of progress for a while from then on.
    pub(super) inquired_at: Option<Time>,
}

/// A question to all voters of a group: how far is your log?
#[derive(Clone, Debug)]
pub(super) struct Inquiry {
    pub(super) question: u64,
    /// Where the logs of those end that have answered.
    pub(super) lasts: BTreeMap<ReplicaId, LogIndex>,
}

impl Peer {
    pub(super) fn new(now: Time, members: &Membership) -> Self {
        Peer {
            target: first_voter(members),
            members: members.clone(),
            target_since: now,
            unanswered_since: None,
            redirected: None,
            unfinished: 0,
            reached: LogIndex::ZERO,
            reached_at: now,
            inquiry: None,
            inquired_at: None,
        }
    }

    pub(super) fn target(&self) -> ReplicaId {
        self.target
    }

    /// A question goes out. Whoever has left one unanswered for so long may not be the primary: tries the next.
    pub(super) fn ask(&mut self, now: Time, patience_ms: u64) -> ReplicaId {
        if self.unanswered_since.is_none() {
            self.unanswered_since = Some(now);
            self.target_since = now;
        } else if now.ms_since(self.target_since) >= patience_ms {
            self.aim(now, None);
        }
        self.target
    }

    /// It has other members than was known. True if the questions go to another from now on.
    pub(super) fn moved(&mut self, now: Time, members: &Membership) -> bool {
        self.members = members.clone();
        // What the old ones have answered says nothing about the new.
        self.inquiry = None;
        self.inquired_at = None;
        let is_lost = !self.is_among_voters(self.target);
        if is_lost {
            self.target = first_voter(members);
            self.target_since = now;
        }
        is_lost
    }

    pub(super) fn voters(&self) -> Vec<ReplicaId> {
        self.members.voters().map(|voter| voter.replica).collect()
    }

    pub(super) fn is_voter(&self, replica: ReplicaId, incarnation: Incarnation) -> bool {
        self.members.is_voter(replica, incarnation)
    }

    fn is_among_voters(&self, replica: ReplicaId) -> bool {
        self.members.voters().any(|voter| voter.replica == replica)
    }

    pub(super) fn version(&self) -> u64 {
        self.members.version
    }

    /// Any two sets of so many of its voters share one.
    pub(super) fn quorum_size(&self) -> usize {
        self.members.quorum_size()
    }

    /// True if a question of so long ago, or none, is all that its voters got.
    pub(super) fn last_inquired_before(&self, now: Time, interval_ms: u64) -> bool {
        self.inquired_at.is_none_or(|inquired_at| now.ms_since(inquired_at) >= interval_ms)
    }

    /// Its primary spoke. True if what was asked of another should be asked of it at once.
    pub(super) fn heard(&mut self, now: Time, from: ReplicaId, pause_ms: u64) -> bool {
        self.unanswered_since = None;
        std::mem::replace(&mut self.target, from) != from && self.may_redirect(now, pause_ms)
    }

    /// Two replicas that point at each other, or that both take themselves for primary, must not keep the network busy.
    fn may_redirect(&mut self, now: Time, pause_ms: u64) -> bool {
        let may = self.redirected.is_none_or(|redirected| now.ms_since(redirected) >= pause_ms);
        if may {
            self.redirected = Some(now);
        }
        may
    }

    /// A replica says that it is not primary. True if the questions should go to another at once.
    pub(super) fn not_primary(&mut self, now: Time, from: ReplicaId, hint: Option<ReplicaId>, pause_ms: u64) -> bool {
        if from != self.target {
            return false;
        }
        self.aim(now, hint.filter(|hint| *hint != from && self.is_among_voters(*hint)));
        self.may_redirect(now, pause_ms)
    }

    fn aim(&mut self, now: Time, hint: Option<ReplicaId>) {
        let voters = self.voters();
        let at = voters.iter().position(|&voter| voter == self.target).unwrap_or(voters.len() - 1);
        self.target = hint.unwrap_or(voters[(at + 1) % voters.len()]);
        self.target_since = now;
    }

    /// One command less. A group of which nothing is wanted owes no answer.
    pub(super) fn release(&mut self) {
        self.unfinished -= 1;
        if self.unfinished == 0 {
            self.unanswered_since = None;
        }
    }

    pub(super) fn silent_since(&self) -> Option<Time> {
        self.unanswered_since
    }

    pub(super) fn is_silent(&self, now: Time, silence_ms: u64) -> bool {
        self.unanswered_since.is_some_and(|since| now.ms_since(since) >= silence_ms)
    }
}

/// Whom to ask first. A group has voters: other memberships are not taken over.
fn first_voter(members: &Membership) -> ReplicaId {
    members.voters().next().map_or(ReplicaId(0), |voter| voter.replica)
}
