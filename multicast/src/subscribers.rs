//! Replicas of other groups that want to hear how far this group's log is.
//!
//! A client hears of what is committed here when it happens, and soon claims elsewhere to have seen it. If the primary there had
//! to ask only then, each such command would wait for an answer from far away. So whoever asks is told of progress for a while:
//! it knows about when the client does. No progress, no message, no timer.
//!
//! Most clients hear of what is committed from the primary, as the answer to an update, and a client that works in several
//! groups in turn claims that in the next one a moment later. So a primary tells sooner than others do, the sooner the fewer
//! listen: one message in a millisecond on average, however many they are.

use std::collections::BTreeMap;

use crate::config::Config;
use crate::ids::{GroupId, LogIndex, ReplicaId};
use crate::time::Time;

/// Who is told, and what all of them were told. Volatile: who hears nothing asks again.
#[derive(Clone, Debug)]
pub(crate) struct Subscribers {
    keep_ms: u64,
    pause_ms: u64,
    count_max: usize,
    /// When each subscription ends.
    ends: BTreeMap<(GroupId, ReplicaId), Time>,
    told: LogIndex,
    told_at: Option<Time>,
}

impl Subscribers {
    pub(crate) fn new(config: &Config) -> Self {
        Subscribers {
            keep_ms: config.timing.subscription_ms,
            pause_ms: config.timing.progress_ms,
            count_max: config.limits.subscribers_max,
            ends: BTreeMap::new(),
            told: LogIndex::ZERO,
            told_at: None,
        }
    }

    /// A replica asked, and is answered beside this. If there are too many, that is all that it gets.
    pub(crate) fn subscribe(&mut self, now: Time, replica: (GroupId, ReplicaId), committed: LogIndex) {
        if self.ends.len() >= self.count_max {
            self.ends.retain(|_, end| *end > now);
        }
        if self.ends.is_empty() {
            self.told = committed;
        }
        if self.ends.len() < self.count_max || self.ends.contains_key(&replica) {
            self.ends.insert(replica, now.after_ms(self.keep_ms));
        }
    }

    /// When they are to be told, if there is anything to tell.
    pub(crate) fn due(&self, committed: LogIndex, is_primary: bool) -> Option<Time> {
        let is_news = !self.ends.is_empty() && committed > self.told;
        let pause_ms = if is_primary { self.pause_ms.min(self.ends.len() as u64) } else { self.pause_ms };
        is_news.then(|| self.told_at.map_or(Time::default(), |told_at| told_at.after_ms(pause_ms)))
    }

    /// Whom to tell now.
    pub(crate) fn take_due(&mut self, now: Time, committed: LogIndex, is_primary: bool) -> Vec<(GroupId, ReplicaId)> {
        if self.due(committed, is_primary).is_none_or(|due| due > now) {
            return Vec::new();
        }
        self.ends.retain(|_, end| *end > now);
        self.told = committed;
        self.told_at = Some(now);
        self.ends.keys().copied().collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn subscribers(count_max: usize) -> Subscribers {
        let mut config = Config::new(GroupId(0), ReplicaId(1), BTreeMap::new());
        config.limits.subscribers_max = count_max;
        Subscribers::new(&config)
    }

    fn ms(ms: u64) -> Time {
        Time(1 << 60).after_ms(ms)
    }

    const ONE: (GroupId, ReplicaId) = (GroupId(1), ReplicaId(1));
    const TWO: (GroupId, ReplicaId) = (GroupId(1), ReplicaId(2));
    const THREE: (GroupId, ReplicaId) = (GroupId(2), ReplicaId(3));

    #[test]
    fn subscribers_are_told_of_progress_and_of_nothing_else() {
        let mut subscribers = subscribers(10);
        assert_eq!(subscribers.due(LogIndex(5), false), None, "nobody is there");
        subscribers.subscribe(ms(0), ONE, LogIndex(5));
        assert_eq!(subscribers.due(LogIndex(5), false), None, "that was the answer");
        assert_eq!(subscribers.take_due(ms(1), LogIndex(6), false), [ONE], "at once after a pause");
        assert_eq!(subscribers.due(LogIndex(6), false), None, "a group that rests is not woken");
        subscribers.subscribe(ms(2), TWO, LogIndex(6));
        assert_eq!(subscribers.due(LogIndex(7), false), Some(ms(11)));
        assert!(subscribers.take_due(ms(10), LogIndex(8), false).is_empty());
        assert_eq!(subscribers.take_due(ms(11), LogIndex(9), false), [ONE, TWO]);
    }

    #[test]
    fn primary_tells_few_subscribers_soon_and_many_as_rarely_as_others_do() {
        let mut subscribers = subscribers(100);
        subscribers.subscribe(ms(0), ONE, LogIndex(5));
        subscribers.subscribe(ms(0), THREE, LogIndex(5));
        assert_eq!(subscribers.take_due(ms(1), LogIndex(6), true), [ONE, THREE]);
        assert_eq!(subscribers.due(LogIndex(7), true), Some(ms(3)), "a millisecond for each");
        assert_eq!(subscribers.due(LogIndex(7), false), Some(ms(11)));
        for replica in 10..50 {
            subscribers.subscribe(ms(1), (GroupId(1), ReplicaId(replica)), LogIndex(7));
        }
        assert_eq!(subscribers.due(LogIndex(7), true), Some(ms(11)));
    }

    #[test]
    fn subscriptions_end_unless_renewed() {
        let mut subscribers = subscribers(10);
        subscribers.subscribe(ms(0), ONE, LogIndex(5));
        subscribers.subscribe(ms(0), TWO, LogIndex(5));
        subscribers.subscribe(ms(5_000), TWO, LogIndex(5));
        assert_eq!(subscribers.take_due(ms(10_000), LogIndex(6), false), [TWO]);
        assert!(subscribers.take_due(ms(15_000), LogIndex(7), false).is_empty());
        assert_eq!(subscribers.due(LogIndex(8), false), None);
    }

    #[test]
    fn subscribers_are_bounded() {
        let mut subscribers = subscribers(2);
        for replica in [ONE, TWO, THREE] {
            subscribers.subscribe(ms(0), replica, LogIndex(5));
        }
        subscribers.subscribe(ms(1), ONE, LogIndex(5));
        assert_eq!(subscribers.take_due(ms(2), LogIndex(6), false), [ONE, TWO], "whoever is in may stay");
        subscribers.subscribe(ms(10_000), THREE, LogIndex(6));
        assert_eq!(subscribers.take_due(ms(10_000), LogIndex(7), false), [ONE, THREE], "and leaves room in the end");
    }
}
