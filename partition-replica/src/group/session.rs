//! When sessions were last heard of.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use multicast::ids::SessionId;
use parking_lot::Mutex;

/// Sessions that can be noted; a client that makes up more of them only pushes out others' notes, and those get the benefit
/// of the doubt for one more lease.
const SESSIONS_MAX: usize = 200_000;

/// When this node last heard of each session, for whichever of its replicas are primaries.
#[derive(Default)]
pub struct KeepAlives {
    heard: Mutex<BTreeMap<SessionId, Instant>>,
}

impl KeepAlives {
    /// Heard of it just now.
    pub fn note(&self, session: SessionId, now: Instant) {
        let mut heard = self.heard.lock();
        if heard.len() >= SESSIONS_MAX && !heard.contains_key(&session) {
            heard.pop_first();
        }
        heard.insert(session, now);
    }

    /// Forgets sessions that have been silent for so long that all replicas know it.
    pub fn forget_silent(&self, now: Instant, silence: Duration) {
        self.heard.lock().retain(|_, heard| now.duration_since(*heard) < silence);
    }

    /// Those of `sessions` that have been silent for longer than the lease, which began at `since` for those unheard of.
    pub fn expired(
        &self,
        sessions: impl Iterator<Item = SessionId>,
        now: Instant,
        since: Instant,
        lease: Duration,
    ) -> Vec<SessionId> {
        if now.duration_since(since) <= lease {
            return Vec::new();
        }
        let heard = self.heard.lock();
        let last = |session| heard.get(&session).copied().unwrap_or(since).max(since);
        sessions.filter(|&session| now.duration_since(last(session)) > lease).collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn session_silent_for_longer_than_the_lease_expires_but_not_in_a_new_primary_s_first_lease() {
        let lease = Duration::from_secs(60);
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let known = KeepAlives::default();
        let (silent, alive) = (SessionId(1), SessionId(2));
        known.note(silent, at(0));
        known.note(alive, at(90));
        let expired = |now, since| known.expired([silent, alive].into_iter(), at(now), at(since), lease);
        assert_eq!(expired(59, 0), []);
        assert_eq!(expired(100, 0), [silent]);
        assert_eq!(expired(100, 50), []);
        assert_eq!(expired(151, 0), [silent, alive]);
    }
}
