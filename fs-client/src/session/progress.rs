//! What this client has seen, and how far the streams behind its cache have come.
//!
//! The rule that makes caching causal: what is cached of a group may answer only while the group's stream has reached
//! what this client has seen of it. Both are single numbers, so the check costs two loads.

use std::sync::atomic::{AtomicU64, Ordering};

use multicast::Elsewhere;
use multicast::ids::{GroupId, LogIndex, SessionId, VectorClock};
use parking_lot::Mutex;

/// The clock and the stream positions of one client.
#[derive(Debug)]
pub struct Progress {
    session: SessionId,
    groups: Box<[GroupProgress]>,
    /// What is handed on as it was told: effects, and components of groups that the configuration does not name.
    told: Mutex<VectorClock>,
}

#[derive(Debug)]
struct GroupProgress {
    id: GroupId,
    seen: AtomicU64,
    /// Stream position plus one; zero is "no stream".
    position: AtomicU64,
    /// Counts what makes entries void: an entry of an earlier one is.
    epoch: AtomicU64,
    /// Counts beginnings and ends of streams: what comes late of an earlier one is ignored.
    stream: AtomicU64,
    /// What was prepared up to there has executed at or before a position of the present stream.
    settled: AtomicU64,
    /// Up to there updates of several groups may be prepared here whose effect the client has seen elsewhere, and this
    /// group's stream says nothing of prepared updates.
    effects: AtomicU64,
    /// The same of updates of others: of its own ones a client knows what they change.
    foreign: AtomicU64,
}

/// A stretch of a stream in which a cached entry is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Epoch(u64);

/// What may answer now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usable {
    /// Entries of this stretch.
    pub epoch: Epoch,
    /// That were asked for by who had seen these effects. Others may be older than an effect that was seen, until the stream
    /// has come to where that has executed; then it has told what that changed.
    pub floor: LogIndex,
}

/// One stream of one group, from its beginning to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamId(u64);

impl Progress {
    /// Nothing seen of these groups by this session, whose own updates do not make void what it knows.
    pub fn new(session: SessionId, groups: impl IntoIterator<Item = GroupId>) -> Progress {
        let mut groups: Vec<GroupProgress> = groups
            .into_iter()
            .map(|id| GroupProgress {
                id,
                seen: AtomicU64::new(0),
                position: AtomicU64::new(0),
                epoch: AtomicU64::new(0),
                stream: AtomicU64::new(0),
                settled: AtomicU64::new(0),
                effects: AtomicU64::new(0),
                foreign: AtomicU64::new(0),
            })
            .collect();
        groups.sort_by_key(|group| group.id);
        Progress { session, groups: groups.into(), told: Mutex::default() }
    }

    fn group(&self, id: GroupId) -> Option<&GroupProgress> {
        let at = self.groups.binary_search_by_key(&id, |group| group.id).ok()?;
        self.groups.get(at)
    }

    /// Which entries may answer now, if any. Ask before looking for the entry: one that is found afterwards has survived
    /// every invalidation up to what had been seen here.
    #[must_use]
    pub fn usable(&self, group: GroupId) -> Option<Usable> {
        let group = self.group(group)?;
        let seen = group.seen.load(Ordering::Acquire);
        let foreign = group.foreign.load(Ordering::Acquire);
        let epoch = Epoch(group.epoch.load(Ordering::Acquire));
        let is_settled = foreign <= group.settled.load(Ordering::Acquire);
        let floor = if is_settled { LogIndex::ZERO } else { LogIndex(foreign) };
        (group.position.load(Ordering::Acquire) > seen).then_some(Usable { epoch, floor })
    }

    /// The present stream and its position.
    #[must_use]
    pub fn stream(&self, group: GroupId) -> Option<(Epoch, LogIndex)> {
        let group = self.group(group)?;
        let epoch = group.epoch.load(Ordering::Acquire);
        let position = group.position.load(Ordering::Acquire);
        Some((Epoch(epoch), LogIndex(position.checked_sub(1)?)))
    }

    /// True if that stream has begun and not ended. Beginnings and ends, and whoever relies on this, take turns.
    #[must_use]
    pub fn is_current(&self, group: GroupId, stream: StreamId) -> bool {
        self.group(group).is_some_and(|group| group.stream.load(Ordering::Acquire) == stream.0)
    }

    /// A stream begins (complete from `position` on); what was cached before is void.
    pub fn begin_stream(&self, group: GroupId, position: LogIndex) -> StreamId {
        let Some(group) = self.group(group) else { return StreamId(0) };
        group.position.store(0, Ordering::Release);
        group.settled.store(0, Ordering::Release);
        group.epoch.fetch_add(1, Ordering::AcqRel);
        let stream = group.stream.fetch_add(1, Ordering::AcqRel) + 1;
        group.position.store(position.0 + 1, Ordering::Release);
        StreamId(stream)
    }

    /// The stream is lost.
    pub fn end_stream(&self, group: GroupId) {
        if let Some(group) = self.group(group) {
            group.position.store(0, Ordering::Release);
            group.settled.store(0, Ordering::Release);
            group.epoch.fetch_add(1, Ordering::AcqRel);
            group.stream.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// The stream goes on, but what was cached before is void.
    pub fn void(&self, group: GroupId) {
        if let Some(group) = self.group(group) {
            group.epoch.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// Every invalidation up to `position` has been applied.
    pub fn advance_stream(&self, group: GroupId, position: LogIndex) {
        if let Some(group) = self.group(group) {
            group.position.fetch_max(position.0 + 1, Ordering::AcqRel);
        }
    }

    /// Has seen `group` up to `index`.
    pub fn see(&self, group: GroupId, index: LogIndex) {
        match self.group(group) {
            Some(group) => {
                group.seen.fetch_max(index.0, Ordering::AcqRel);
            }
            None => {
                self.told.lock().advance(group, index);
            }
        }
    }

    /// The present stream of `group` has come to a state in which everything that was prepared up to `index` has executed:
    /// whatever its entries say while it has, they say after those.
    pub fn settle(&self, group: GroupId, index: LogIndex) {
        if let Some(group) = self.group(group) {
            group.settled.fetch_max(index.0, Ordering::AcqRel);
        }
    }

    /// An answer depends on these. Where it shows effects of updates that another group has prepared, what is cached of that
    /// group may be older than they are: until the stream is behind them, only what is asked for from now on counts. Returns the
    /// groups of which it may show, besides, own updates that nobody has answered yet: what those change there is void.
    #[must_use]
    pub fn depend(&self, dependencies: &VectorClock) -> Vec<GroupId> {
        let mut shown = Vec::new();
        for (id, index) in dependencies.iter() {
            self.see(id, index);
        }
        // Before what is cached is judged by them: a question asked from then on names them.
        if dependencies.iter_effects().next().is_some() {
            let mut told = self.told.lock();
            dependencies.iter_effects().for_each(|(id, _)| told.merge_effects(dependencies, id));
        }
        for (id, index) in dependencies.iter_effects() {
            let Some(group) = self.group(id) else { continue };
            let others = dependencies.effects_beside(id, self.session);
            let is_known = index.0 <= group.effects.fetch_max(index.0, Ordering::AcqRel);
            // The newest own one that is known may hide older ones, of others or without an answer.
            let foreign = if is_known { others } else { index };
            group.foreign.fetch_max(foreign.0, Ordering::AcqRel);
            if foreign < index && group.settled.load(Ordering::Acquire) < index.0 {
                shown.push(id);
            }
        }
        shown
    }

    /// An own update that another group has answered is to execute in this one. What it changes there is void, and the caller
    /// sees to that; what else the answer shows, [`Progress::depend`] does.
    pub fn see_own(&self, own: &Elsewhere) {
        if let Some(group) = self.group(own.group) {
            self.told.lock().advance_effects(own.group, own.index, self.session);
            group.effects.fetch_max(own.index.0, Ordering::AcqRel);
            group.seen.fetch_max(own.index.0, Ordering::AcqRel);
        }
    }

    /// What is cached of `group` must have been asked for by a client whose clock had reached these effects.
    #[must_use]
    pub fn floor(&self, group: GroupId) -> LogIndex {
        let Some(group) = self.group(group) else { return LogIndex::ZERO };
        let effects = group.effects.load(Ordering::Acquire);
        if effects <= group.settled.load(Ordering::Acquire) { LogIndex::ZERO } else { LogIndex(effects) }
    }

    /// Commands that `group` has prepared up to here may have been seen executed elsewhere.
    #[must_use]
    pub fn effects(&self, group: GroupId) -> LogIndex {
        LogIndex(self.group(group).map_or(0, |group| group.effects.load(Ordering::Acquire)))
    }

    /// How far `group` was seen.
    #[must_use]
    pub fn seen(&self, group: GroupId) -> LogIndex {
        LogIndex(self.group(group).map_or(0, |group| group.seen.load(Ordering::Acquire)))
    }

    /// The clock.
    #[must_use]
    pub fn clock(&self) -> VectorClock {
        let mut clock = self.told.lock().clone();
        for group in &self.groups {
            let seen = group.seen.load(Ordering::Acquire);
            clock.advance(group.id, LogIndex(seen));
        }
        clock
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const G: GroupId = GroupId(3);
    const OWN: SessionId = SessionId(5);
    const OTHER: SessionId = SessionId(6);

    #[test]
    fn usable_only_with_a_stream_that_reached_the_clock() {
        let progress = Progress::new(OWN, [GroupId(0), G]);
        assert_eq!(progress.usable(G), None, "no stream");
        let first = progress.begin_stream(G, LogIndex(0));
        let epoch = progress.usable(G).unwrap();
        progress.see(G, LogIndex(5));
        assert_eq!(progress.usable(G), None, "behind");
        progress.advance_stream(G, LogIndex(4));
        assert_eq!(progress.usable(G), None, "still behind");
        progress.advance_stream(G, LogIndex(5));
        assert_eq!(progress.usable(G), Some(epoch));
        progress.void(G);
        assert_ne!(progress.usable(G), Some(epoch));
        assert!(progress.is_current(G, first), "its entries are void, but it goes on");
        progress.end_stream(G);
        assert_eq!(progress.usable(G), None);
        assert!(!progress.is_current(G, first));
        let second = progress.begin_stream(G, LogIndex(0));
        assert!(progress.is_current(G, second) && !progress.is_current(G, first));
        progress.end_stream(G);
        assert_eq!(progress.usable(GroupId(9)), None, "unknown group");
    }

    #[test]
    fn effect_seen_elsewhere_silences_what_is_cached_until_the_stream_has_passed_it() {
        let progress = Progress::new(OWN, [GroupId(0), G]);
        progress.begin_stream(G, LogIndex(10));
        let before = progress.usable(G).unwrap();
        assert_eq!(before.floor, LogIndex::ZERO);
        assert!(progress.depend(&[(G, LogIndex(6))].into_iter().collect()).is_empty());
        assert_eq!(progress.usable(G), Some(before), "an index is no effect");
        let mut dependencies = VectorClock::new();
        dependencies.advance_effects(G, LogIndex(7), OTHER);
        assert!(progress.depend(&dependencies).is_empty());
        let after = progress.usable(G).unwrap();
        assert_eq!((after.epoch, after.floor), (before.epoch, LogIndex(7)));
        assert_eq!((progress.effects(G), progress.effects(GroupId(0))), (LogIndex(7), LogIndex(0)));
        assert!(progress.depend(&dependencies).is_empty());
        assert_eq!(progress.usable(G), Some(after), "no news");
        assert_eq!(progress.seen(G), LogIndex(7));
        assert_eq!(progress.clock(), shows(&[(7, OTHER)]));
        progress.settle(G, LogIndex(6));
        assert_eq!(progress.usable(G), Some(after), "not yet");
        progress.settle(G, LogIndex(7));
        assert_eq!(progress.usable(G), Some(before), "what has changed was told meanwhile");
    }

    /// What depends on these effects, each of somebody.
    fn shows(effects: &[(u64, SessionId)]) -> VectorClock {
        let mut dependencies = VectorClock::new();
        effects.iter().for_each(|&(index, by)| dependencies.advance_effects(G, LogIndex(index), by));
        dependencies
    }

    #[test]
    fn own_update_makes_nothing_else_void_unless_its_answer_shows_other_effects() {
        let progress = Progress::new(OWN, [G]);
        progress.begin_stream(G, LogIndex(10));
        assert!(progress.depend(&shows(&[(4, OTHER)])).is_empty());
        let before = progress.usable(G).unwrap();
        progress.see_own(&Elsewhere { group: G, index: LogIndex(7) });
        let _ = progress.depend(&shows(&[(4, OTHER), (7, OWN)]));
        assert_eq!((progress.usable(G), progress.effects(G)), (Some(before), LogIndex(7)));
        for (effects, floor) in [([(7, OWN), (6, OTHER)], 6), ([(7, OWN), (8, OTHER)], 8)] {
            let _ = progress.depend(&shows(&effects));
            assert_eq!(progress.usable(G).unwrap().floor, LogIndex(floor));
        }
        let _ = progress.depend(&shows(&[(9, OWN)]));
        assert_eq!(progress.usable(G).unwrap().floor, LogIndex(9), "no answer has told of it");
    }

    #[test]
    fn own_update_hides_nothing_that_came_before_it() {
        let progress = Progress::new(OWN, [G]);
        progress.begin_stream(G, LogIndex(10));
        progress.see_own(&Elsewhere { group: G, index: LogIndex(7) });
        assert_eq!(progress.depend(&shows(&[(7, OWN)])), [G], "of older own ones it cannot be known");
        assert_eq!(progress.usable(G).unwrap().floor, LogIndex::ZERO);
        let _ = progress.depend(&shows(&[(7, OWN), (5, OTHER)]));
        assert_eq!(progress.usable(G).unwrap().floor, LogIndex(5));
        assert_eq!(progress.clock(), shows(&[(7, OWN), (5, OTHER)]), "whom it is told to must know");
        progress.settle(G, LogIndex(7));
        assert!(progress.depend(&shows(&[(7, OWN)])).is_empty(), "what has changed was told meanwhile");
    }

    #[test]
    fn effect_that_the_stream_has_passed_voids_nothing_until_the_stream_ends() {
        let progress = Progress::new(OWN, [G]);
        progress.begin_stream(G, LogIndex(10));
        progress.settle(G, LogIndex(10));
        let before = progress.usable(G).unwrap();
        let mut dependencies = VectorClock::new();
        dependencies.advance_effects(G, LogIndex(9), OTHER);
        assert!(progress.depend(&dependencies).is_empty());
        assert_eq!((progress.usable(G), progress.floor(G)), (Some(before), LogIndex(0)));
        assert_eq!(progress.effects(G), LogIndex(9), "who is asked must know");
        progress.end_stream(G);
        progress.begin_stream(G, LogIndex(9));
        assert_eq!(progress.floor(G), LogIndex(9));
    }

    #[test]
    fn clock_hands_on_unknown_groups() {
        let progress = Progress::new(OWN, [G]);
        let other = [(G, LogIndex(2)), (GroupId(9), LogIndex(7))].into_iter().collect();
        assert!(progress.depend(&other).is_empty());
        progress.see(G, LogIndex(1));
        assert_eq!(progress.clock(), other);
        assert_eq!(progress.seen(G), LogIndex(2));
    }
}
