//! What time it is, as a quorum sees it: one wrong clock must not drag the group's time.

use std::collections::BTreeMap;

use crate::ids::ReplicaId;
use crate::membership::Membership;
use crate::time::Time;

/// A voter tells the primary its time this often.
pub(super) const CLOCK_INTERVAL_MS: u64 = 1000;

/// How far the other voters' clocks are ahead of the own one, as far as known.
#[derive(Clone, Debug)]
pub(crate) struct Clocks {
    /// The other voters.
    voters: Vec<ReplicaId>,
    quorum_size: usize,
    skew_ns_max: i128,
    /// In nanoseconds; too small by the time that the news travelled.
    ahead: BTreeMap<ReplicaId, i128>,
    /// So far ahead is the last clock of the quorum that is furthest ahead. None while too few clocks are known.
    quorum_ahead: Option<i128>,
}

impl Clocks {
    pub(crate) fn new(skew_ms_max: u64) -> Self {
        let skew_ns_max = i128::from(skew_ms_max) * 1_000_000;
        Clocks { voters: Vec::new(), quorum_size: 1, skew_ns_max, ahead: BTreeMap::new(), quorum_ahead: Some(0) }
    }

    /// Whose clocks count from now on.
    pub(crate) fn follow(&mut self, membership: &Membership, me: ReplicaId) {
        self.voters = membership.voters().map(|member| member.replica).filter(|&voter| voter != me).collect();
        self.quorum_size = membership.quorum_size();
        self.ahead.retain(|replica, _| membership.member(*replica).is_some());
        self.find_quorum();
    }

    pub(crate) fn learn(&mut self, voter: ReplicaId, now: Time, theirs_ns: u64) {
        self.ahead.insert(voter, i128::from(theirs_ns) - i128::from(now.0));
        self.find_quorum();
    }

    fn find_quorum(&mut self) {
        let mut ahead: Vec<i128> = self.voters.iter().filter_map(|voter| self.ahead.get(voter)).copied().collect();
        ahead.push(0);
        ahead.sort_unstable_by(|a, b| b.cmp(a));
        self.quorum_ahead = ahead.get(self.quorum_size - 1).copied();
    }

    /// The own time, but no later than some quorum's clocks say, each of them, give or take the tolerated skew. None while
    /// too few clocks are known.
    pub(crate) fn trusted(&self, now: Time) -> Option<Time> {
        let latest = self.quorum_ahead?.saturating_add(self.skew_ns_max);
        let trusted = i128::from(now.0) + latest.min(0);
        Some(Time(u64::try_from(trusted).unwrap_or(0)))
    }
}
