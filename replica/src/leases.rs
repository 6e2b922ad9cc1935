//! When sessions were last heard of.

use std::collections::BTreeMap;

use multicast::Time;
use multicast::ids::SessionId;

/// Sessions that can be noted; a client that makes up more of them only pushes out others' notes, and those get the benefit
/// of the doubt for one more lease.
const SESSIONS_MAX: usize = 200_000;

/// When a node last heard of each session, for whichever of its replicas are primaries.
#[derive(Debug, Default)]
pub struct Leases {
    heard: BTreeMap<SessionId, Time>,
}

impl Leases {
    /// Heard of it just now.
    pub fn note(&mut self, session: SessionId, now: Time) {
        if self.heard.len() >= SESSIONS_MAX && !self.heard.contains_key(&session) {
            self.heard.pop_first();
        }
        self.heard.insert(session, now);
    }

    /// Forgets sessions that have been silent for so long that all replicas know it.
    pub fn forget_silent(&mut self, now: Time, silence_ms: u64) {
        self.heard.retain(|_, heard| now.ms_since(*heard) < silence_ms);
    }

    /// Those of `sessions` that have been silent for longer than the lease, which began at `since` for those unheard of.
    pub fn expired(
        &self,
        sessions: impl Iterator<Item = SessionId>,
        now: Time,
        since: Time,
        lease_ms: u64,
    ) -> Vec<SessionId> {
        if now.ms_since(since) <= lease_ms {
            return Vec::new();
        }
        let last = |session| self.heard.get(&session).copied().unwrap_or(since).max(since);
        sessions.filter(|&session| now.ms_since(last(session)) > lease_ms).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn session_silent_for_longer_than_the_lease_expires_but_not_in_a_new_primary_s_first_lease() {
        let at = |seconds: u64| Time(7).after_ms(seconds * 1000);
        let mut known = Leases::default();
        let (silent, alive) = (SessionId(1), SessionId(2));
        known.note(silent, at(0));
        known.note(alive, at(90));
        let expired = |now, since| known.expired([silent, alive].into_iter(), at(now), at(since), 60_000);
        assert_eq!(expired(59, 0), []);
        assert_eq!(expired(100, 0), [silent]);
        assert_eq!(expired(100, 50), []);
        assert_eq!(expired(151, 0), [silent, alive]);
    }
}
