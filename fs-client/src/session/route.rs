//! Whom to ask. Pure: who is up is told.

use std::collections::BTreeSet;

use multicast::ids::ReplicaId;

/// One member of a group, seen from this client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Which.
    pub id: ReplicaId,
    /// It is in the client's own region.
    pub local: bool,
}

/// What is known of a group's members.
#[derive(Clone, Debug)]
pub struct Route {
    version: u64,
    voters: Vec<Seen>,
    /// Members that only follow.
    learners: Vec<Seen>,
    /// Those of them that have lately shown to be about as far as the group.
    ready: BTreeSet<ReplicaId>,
    /// Voters that were away, or have said that they are behind, and have not shown since that they are not.
    lagging: BTreeSet<ReplicaId>,
    primary: Option<ReplicaId>,
}

impl Route {
    /// The voters in the configuration's order, the preferred primary first.
    #[must_use]
    pub fn new(voters: Vec<Seen>) -> Route {
        let (ready, lagging) = (BTreeSet::new(), BTreeSet::new());
        Route { version: 0, voters, learners: Vec::new(), ready, lagging, primary: None }
    }

    /// Learns who the members are; true if that was news.
    pub fn learn_members(&mut self, version: u64, voters: Vec<Seen>, learners: Vec<Seen>) -> bool {
        let knows_more = voters.len() + learners.len() > self.voters.len() + self.learners.len();
        if version < self.version || (version == self.version && !knows_more) || voters.is_empty() {
            return false;
        }
        self.ready.retain(|ready| learners.iter().any(|learner| learner.id == *ready));
        self.lagging.retain(|lagging| voters.iter().any(|voter| voter.id == *lagging));
        self.primary = self.primary.filter(|primary| voters.iter().any(|voter| voter.id == *primary));
        (self.version, self.voters, self.learners) = (version, voters, learners);
        true
    }

    /// Whether a member is about as far as the group, or not.
    pub fn note_ready(&mut self, id: ReplicaId, is_ready: bool) {
        if is_ready && self.learners.iter().any(|learner| learner.id == id) {
            self.ready.insert(id);
        } else {
            self.ready.remove(&id);
        }
        if !is_ready && self.voters.iter().any(|voter| voter.id == id) {
            self.lagging.insert(id);
        } else {
            self.lagging.remove(&id);
        }
    }

    /// True if others are read as long as it has not shown that it is as far as they are.
    #[must_use]
    pub fn is_lagging(&self, id: ReplicaId) -> bool {
        self.lagging.contains(&id)
    }

    /// The voters of which that is so.
    #[must_use]
    pub fn lagging(&self) -> Vec<ReplicaId> {
        self.lagging.iter().copied().collect()
    }

    /// All voters.
    #[must_use]
    pub fn voters(&self) -> Vec<ReplicaId> {
        self.voters.iter().map(|voter| voter.id).collect()
    }

    /// The learners in the client's region.
    #[must_use]
    pub fn near_learners(&self) -> Vec<ReplicaId> {
        self.learners.iter().filter(|learner| learner.local).map(|learner| learner.id).collect()
    }

    /// True if a voter is in the client's region.
    #[must_use]
    pub fn is_local(&self) -> bool {
        self.voters.iter().any(|voter| voter.local)
    }

    /// The last known primary.
    #[must_use]
    pub fn primary(&self) -> Option<ReplicaId> {
        self.primary
    }

    /// Learns who is primary; true if that was news. Names of strangers are ignored.
    pub fn learn_primary(&mut self, primary: ReplicaId) -> bool {
        let known = self.voters.iter().any(|voter| voter.id == primary);
        if !known || self.primary == Some(primary) {
            return false;
        }
        self.primary = Some(primary);
        true
    }

    /// The replica to read from and to subscribe to: one that is up; not behind; near; the primary, whose state is newest; the
    /// first.
    #[must_use]
    pub fn reader(&self, is_up: impl Fn(ReplicaId) -> bool) -> Option<ReplicaId> {
        let guess = self.primary.or_else(|| self.voters.first().map(|voter| voter.id));
        let rank =
            |member: &&Seen| (is_up(member.id), !self.is_lagging(member.id), member.local, Some(member.id) == guess);
        self.readers().max_by_key(rank).map(|member| member.id)
    }

    /// Another replica than `instead`, for a read that it could not serve.
    #[must_use]
    pub fn other_reader(&self, instead: ReplicaId, is_up: impl Fn(ReplicaId) -> bool) -> Option<ReplicaId> {
        let is_primary = |id| Some(id) == self.primary;
        let rank =
            |member: &&Seen| (is_up(member.id), !self.is_lagging(member.id), is_primary(member.id), member.local);
        self.readers().filter(|member| member.id != instead).max_by_key(rank).map(|member| member.id)
    }

    /// Who may be read, the first last: `max_by_key` takes the last of equals.
    fn readers(&self) -> impl Iterator<Item = &Seen> {
        let ready = self.learners.iter().filter(|learner| self.ready.contains(&learner.id));
        ready.rev().chain(self.voters.iter().rev())
    }

    /// Whom to send the `attempt`-th try of an update: the known primary if it is up, else one voter after the other
    /// until one knows.
    #[must_use]
    pub fn target(&self, attempt: u32, is_up: impl Fn(ReplicaId) -> bool) -> Option<ReplicaId> {
        if let Some(primary) = self.primary
            && is_up(primary)
        {
            return Some(primary);
        }
        let up: Vec<ReplicaId> = self.voters.iter().map(|voter| voter.id).filter(|id| is_up(*id)).collect();
        let candidates = if up.is_empty() { self.voters.iter().map(|voter| voter.id).collect() } else { up };
        candidates.get(attempt as usize % candidates.len().max(1)).copied()
    }

    /// The primary did not behave like one: ask around again.
    pub fn forget_primary(&mut self, primary: ReplicaId) {
        if self.primary == Some(primary) {
            self.primary = None;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn route(voters: &[(u32, bool)]) -> Route {
        Route::new(seen(voters))
    }

    fn seen(members: &[(u32, bool)]) -> Vec<Seen> {
        members.iter().map(|&(id, local)| Seen { id: ReplicaId(id), local }).collect()
    }

    #[test]
    fn near_learner_is_read_once_it_is_ready_and_is_never_asked_to_update() {
        let mut route = route(&[(1, false), (2, false), (3, false)]);
        route.learn_primary(ReplicaId(1));
        assert!(route.learn_members(4, seen(&[(1, false), (2, false), (3, false)]), seen(&[(8, true), (9, false)])));
        assert_eq!(route.reader(|_| true), Some(ReplicaId(1)));
        route.note_ready(ReplicaId(9), true);
        assert_eq!(route.reader(|_| true), Some(ReplicaId(1)), "it is as far as the primary");
        route.note_ready(ReplicaId(8), true);
        assert_eq!(route.reader(|_| true), Some(ReplicaId(8)));
        assert_eq!(route.other_reader(ReplicaId(8), |_| true), Some(ReplicaId(1)));
        assert_eq!(route.target(0, |id| id == ReplicaId(8)), Some(ReplicaId(1)));
        assert!(!route.is_local() && !route.learn_primary(ReplicaId(8)));
        route.note_ready(ReplicaId(8), false);
        assert_eq!(route.reader(|_| true), Some(ReplicaId(1)));
    }

    #[test]
    fn voter_that_is_behind_is_read_only_if_there_is_no_other_until_it_shows_that_it_is_not() {
        let mut route = route(&[(1, true), (2, false), (3, false)]);
        route.note_ready(ReplicaId(1), false);
        assert_eq!((route.reader(|_| true), route.lagging()), (Some(ReplicaId(2)), vec![ReplicaId(1)]));
        assert_eq!(route.other_reader(ReplicaId(2), |_| true), Some(ReplicaId(3)));
        assert_eq!(route.reader(|id| id == ReplicaId(1)), Some(ReplicaId(1)), "late is better than never");
        assert_eq!(route.target(0, |_| true), Some(ReplicaId(1)), "it may lead nevertheless");
        route.note_ready(ReplicaId(1), true);
        assert_eq!((route.reader(|_| true), route.lagging()), (Some(ReplicaId(1)), Vec::new()));
        route.note_ready(ReplicaId(7), false);
        assert_eq!(route.lagging(), Vec::new(), "a stranger");
    }

    #[test]
    fn later_members_count_and_former_ones_are_not_asked_any_more() {
        let mut route = route(&[(1, true), (2, false), (3, false)]);
        route.learn_primary(ReplicaId(1));
        assert!(!route.learn_members(0, seen(&[(1, true)]), Vec::new()));
        assert!(route.learn_members(2, seen(&[(4, false), (5, true), (6, false)]), Vec::new()));
        assert!(!route.learn_members(2, seen(&[(7, true)]), Vec::new()));
        assert_eq!((route.primary(), route.reader(|_| true)), (None, Some(ReplicaId(5))));
        assert!(!route.learn_primary(ReplicaId(1)) && route.learn_primary(ReplicaId(6)));
        assert_eq!(route.target(0, |_| true), Some(ReplicaId(6)));
    }

    #[test]
    fn reader_prefers_up_then_near_then_primary_then_first() {
        let mut route = route(&[(1, false), (2, true), (3, true)]);
        assert_eq!(route.reader(|_| true), Some(ReplicaId(2)));
        route.learn_primary(ReplicaId(3));
        assert_eq!(route.reader(|_| true), Some(ReplicaId(3)));
        route.learn_primary(ReplicaId(1));
        assert_eq!(route.reader(|_| true), Some(ReplicaId(2)), "the primary is far");
        assert_eq!(route.reader(|id| id == ReplicaId(1)), Some(ReplicaId(1)));
        assert_eq!(route.reader(|_| false), Some(ReplicaId(2)));
        assert_eq!(route.other_reader(ReplicaId(2), |_| true), Some(ReplicaId(1)));
    }

    #[test]
    fn reader_without_near_voters_is_the_primary() {
        let mut route = route(&[(1, false), (2, false), (3, false)]);
        assert_eq!(route.reader(|_| true), Some(ReplicaId(1)));
        assert!(route.learn_primary(ReplicaId(2)));
        assert!(!route.learn_primary(ReplicaId(2)));
        assert!(!route.learn_primary(ReplicaId(9)), "a stranger");
        assert_eq!(route.reader(|_| true), Some(ReplicaId(2)));
    }

    #[test]
    fn target_asks_around_without_a_primary() {
        let mut route = route(&[(1, true), (2, true), (3, true)]);
        let asked: Vec<_> = (0..4).filter_map(|attempt| route.target(attempt, |_| true)).map(|id| id.0).collect();
        assert_eq!(asked, [1, 2, 3, 1]);
        route.learn_primary(ReplicaId(3));
        assert_eq!(route.target(0, |_| true), Some(ReplicaId(3)));
        assert_eq!(route.target(1, |id| id != ReplicaId(3)), Some(ReplicaId(2)), "the primary is down");
        assert_eq!(route.target(0, |_| false), Some(ReplicaId(1)), "nobody is known to be up");
        route.forget_primary(ReplicaId(3));
        assert_eq!(route.target(1, |_| true), Some(ReplicaId(2)));
    }
}
