//! Whom to ask. Pure: who is up is told.

use multicast::ids::ReplicaId;

/// One voter of a group, seen from this client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Voter {
    /// Which.
    pub id: ReplicaId,
    /// It is in the client's own region.
    pub local: bool,
}

/// What is known of a group's voters.
#[derive(Clone, Debug)]
pub struct Route {
    voters: Vec<Voter>,
    primary: Option<ReplicaId>,
}

impl Route {
    /// The voters in the configuration's order, the preferred primary first.
    #[must_use]
    pub fn new(voters: Vec<Voter>) -> Route {
        Route { voters, primary: None }
    }

    /// All voters.
    #[must_use]
    pub fn voters(&self) -> Vec<ReplicaId> {
        self.voters.iter().map(|voter| voter.id).collect()
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

    /// The replica to read from and to subscribe to: one that is up; near; the primary, whose state is newest; the first.
    #[must_use]
    pub fn reader(&self, is_up: impl Fn(ReplicaId) -> bool) -> Option<ReplicaId> {
        let guess = self.primary.or_else(|| self.voters.first().map(|voter| voter.id));
        let rank = |voter: &Voter| (is_up(voter.id), voter.local, Some(voter.id) == guess);
        // `max_by_key` would take the last of equals.
        self.voters.iter().rev().max_by_key(|voter| rank(voter)).map(|voter| voter.id)
    }

    /// Another replica than `instead`, for a read that it could not serve.
    #[must_use]
    pub fn other_reader(&self, instead: ReplicaId, is_up: impl Fn(ReplicaId) -> bool) -> Option<ReplicaId> {
        let rank = |voter: &Voter| (is_up(voter.id), Some(voter.id) == self.primary, voter.local);
        self.voters
            .iter()
            .rev()
            .filter(|voter| voter.id != instead)
            .max_by_key(|voter| rank(voter))
            .map(|voter| voter.id)
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
        Route::new(voters.iter().map(|&(id, local)| Voter { id: ReplicaId(id), local }).collect())
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
