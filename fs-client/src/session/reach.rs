//! Which groups do not answer, and since when. Pure: what time it is is told.
//!
//! Who has waited for a group in vain should not be followed by others who wait as long each. So a group that is silent is
//! asked again and again on the side; while that fails, and has failed for longer than a deadline, nobody else asks.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use multicast::ids::GroupId;
use parking_lot::Mutex;
use tokio::sync::Notify;

/// What a group is needed for. Any replica may do for the one while there is no quorum for the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Purpose {
    /// A causal read: some replica.
    Read,
    /// An update, a session, a linearizable read: the primary and its quorum.
    Quorum,
}

/// See the module. Two entries for each group at most.
#[derive(Debug, Default)]
pub struct Reach {
    silent: Mutex<BTreeMap<(GroupId, Purpose), Silence>>,
    /// Something has fallen silent.
    pub news: Notify,
}

#[derive(Clone, Copy, Debug)]
struct Silence {
    since: Instant,
    /// It was asked on the side, in vain: not just the one who waited was unlucky.
    is_confirmed: bool,
}

impl Reach {
    /// Somebody waits for the group, in vain so far.
    pub fn miss(&self, group: GroupId, purpose: Purpose, since: Instant) {
        let new = Silence { since, is_confirmed: false };
        let mut silent = self.silent.lock();
        silent.entry((group, purpose)).or_insert(new);
        if purpose == Purpose::Quorum {
            // Perhaps no replica is there either: who reads next need not find that out once more.
            silent.entry((group, Purpose::Read)).or_insert(new);
        }
        drop(silent);
        self.news.notify_one();
    }

    /// It was asked on the side, in vain.
    pub fn confirm(&self, group: GroupId, purpose: Purpose) {
        if let Some(silence) = self.silent.lock().get_mut(&(group, purpose)) {
            silence.is_confirmed = true;
        }
    }

    /// It has answered.
    pub fn answered(&self, group: GroupId, purpose: Purpose) {
        let mut silent = self.silent.lock();
        if silent.is_empty() {
            return;
        }
        silent.remove(&(group, purpose));
        if purpose == Purpose::Quorum {
            // A quorum has replicas.
            silent.remove(&(group, Purpose::Read));
        }
    }

    /// What is to be asked on the side.
    pub fn silent(&self) -> Vec<(GroupId, Purpose)> {
        self.silent.lock().keys().copied().collect()
    }

    /// How long the group has been silent, if that is for longer than `patience` and certain.
    pub fn silent_for(&self, group: GroupId, purpose: Purpose, patience: Duration, now: Instant) -> Option<Duration> {
        let silent = self.silent.lock();
        let silence = silent.get(&(group, purpose)).filter(|silence| silence.is_confirmed)?;
        Some(now.saturating_duration_since(silence.since)).filter(|elapsed| *elapsed >= patience)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const G: GroupId = GroupId(1);
    const PATIENCE: Duration = Duration::from_secs(2);

    #[test]
    fn group_is_out_of_reach_when_it_was_silent_long_enough_and_asked_again() {
        let (reach, start) = (Reach::default(), Instant::now());
        let silent = |purpose, ms| reach.silent_for(G, purpose, PATIENCE, start + Duration::from_millis(ms));
        reach.miss(G, Purpose::Quorum, start);
        assert_eq!(silent(Purpose::Quorum, 5000), None, "one was unlucky, perhaps");
        reach.confirm(G, Purpose::Quorum);
        assert_eq!(silent(Purpose::Quorum, 1999), None, "too early");
        assert_eq!(silent(Purpose::Quorum, 2000), Some(PATIENCE));
        assert_eq!(silent(Purpose::Read, 5000), None, "a replica may answer without a quorum");
        assert_eq!(reach.silent(), [(G, Purpose::Read), (G, Purpose::Quorum)], "both are asked");
        reach.miss(G, Purpose::Quorum, start + Duration::from_secs(4));
        assert!(silent(Purpose::Quorum, 5000).is_some(), "the first counts");
        reach.answered(G, Purpose::Read);
        assert_eq!(reach.silent(), [(G, Purpose::Quorum)]);
        assert!(silent(Purpose::Quorum, 5000).is_some());
        reach.answered(G, Purpose::Quorum);
        assert_eq!(silent(Purpose::Quorum, 5000), None);
        assert!(reach.silent().is_empty());
    }
}
