//! What a client may answer without asking: the rules of the mount's cache, over whole answers.
//!
//! An entry answers only while its group's stream has reached the client's clock, and until an invalidation of one of its
//! keys. Where the client learns of effects of commands that the group has prepared, everything older is void.

use std::collections::BTreeMap;

use metadata::protocol::{Event, Position};
use metadata::read::{ReadAnswer, ReadOp, ReadResult};
use multicast::Elsewhere;
use multicast::command::Key;
use multicast::ids::{GroupId, LogIndex, ReplicaId, VectorClock};

use crate::checks::ledger::{Place, place};
use crate::planted::Bug;

/// Where a group's news come from.
#[derive(Clone, Copy, Debug)]
struct Stream {
    node: ReplicaId,
    connection: u64,
    /// Every invalidation up to here has been applied; nothing before the stream has begun.
    position: Option<LogIndex>,
    /// What was prepared up to here has executed at or before the position.
    settled: LogIndex,
}

#[derive(Clone, Debug)]
struct Entry {
    keys: Vec<Key>,
    as_of: LogIndex,
    answer: ReadAnswer,
}

/// One client's cache.
#[derive(Debug, Default)]
pub struct Cache {
    streams: BTreeMap<GroupId, Stream>,
    entries: BTreeMap<Place, Entry>,
    /// What is cached of a group must have been asked for by a client that knew of these.
    effects: BTreeMap<GroupId, LogIndex>,
}

impl Cache {
    /// True if the group's news come, or will come, from there.
    #[must_use]
    pub fn listens(&self, group: GroupId, node: ReplicaId, connection: u64) -> bool {
        self.streams.get(&group).is_some_and(|stream| (stream.node, stream.connection) == (node, connection))
    }

    /// A stream was asked for; what an earlier one kept right is void.
    pub fn ask_stream(&mut self, group: GroupId, node: ReplicaId, connection: u64) {
        self.void(group);
        self.streams.insert(group, Stream { node, connection, position: None, settled: LogIndex::ZERO });
    }

    /// A stream begins, complete from there on. What was cached before is void: over the same connection it may have been asked
    /// for twice, and what was noted for the first one is forgotten there.
    pub fn begin_stream(&mut self, group: GroupId, node: ReplicaId, connection: u64, position: &Position) {
        if !self.listens(group, node, connection) {
            return;
        }
        self.void(group);
        let (position, settled) = (Some(position.index), position.settled);
        self.streams.insert(group, Stream { node, connection, position, settled });
    }

    /// A connection is gone, and the streams on it.
    pub fn lose(&mut self, node: ReplicaId, connection: u64) {
        let lost: Vec<GroupId> =
            self.streams.keys().copied().filter(|&group| self.listens(group, node, connection)).collect();
        for group in lost {
            self.streams.remove(&group);
            self.void(group);
        }
    }

    fn void(&mut self, group: GroupId) {
        self.entries.retain(|(of, _), _| *of != group);
    }

    /// News.
    pub fn apply(&mut self, node: ReplicaId, connection: u64, event: &Event) {
        let group = event.group;
        if !self.listens(group, node, connection) {
            return;
        }
        if event.invalidate_all {
            self.void(group);
        }
        let is_void =
            |entry: &Entry| entry.as_of < event.index && entry.keys.iter().any(|key| event.invalidated.contains(key));
        self.entries.retain(|(of, _), entry| *of != group || !is_void(entry));
        if let Some(stream) = self.streams.get_mut(&group)
            && let Some(position) = stream.position.as_mut()
        {
            *position = event.index.max(*position);
            stream.settled = event.settled.max(stream.settled);
        }
    }

    /// Nothing that was prepared up to there and that the stream says nothing of.
    fn settled(&self, group: GroupId) -> LogIndex {
        self.streams.get(&group).map_or(LogIndex::ZERO, |stream| stream.settled)
    }

    /// The client's clock has become this.
    pub fn depend(&mut self, clock: &VectorClock, bug: Option<Bug>) {
        for (group, index) in clock.iter_effects() {
            let settled = self.settled(group);
            let known = self.effects.entry(group).or_default();
            if index > *known && bug != Some(Bug::CachePastEffects) {
                *known = index;
                if index > settled {
                    self.void(group);
                }
            }
        }
    }

    /// An own update has executed in another group; it changes these keys in `own.group`. What else is cached of that stays, if
    /// the answer, with these dependencies, tells of no other effect there.
    pub fn depend_on_own(&mut self, dependencies: &VectorClock, own: &Elsewhere, changed: &[Key], bug: Option<Bug>) {
        let group = own.group;
        let is_kept =
            |entry: &Entry| bug == Some(Bug::KeepOwnElsewhere) || !entry.keys.iter().any(|key| changed.contains(key));
        self.entries.retain(|(of, _), entry| *of != group || is_kept(entry));
        let known = self.effects.get(&group).copied().unwrap_or_default().max(self.settled(group));
        let is_all = own.prior <= known && dependencies.effects(group) <= own.index.max(own.prior);
        if is_all {
            let effects = self.effects.entry(group).or_default();
            *effects = own.index.max(*effects);
        }
    }

    /// An answer, from where the stream comes from, to what was asked when the client knew of these effects.
    pub fn fill(&mut self, (node, connection): (ReplicaId, u64), group: GroupId, asked: LogIndex, read: Answered<'_>) {
        let Answered { op, result, as_of } = read;
        let Some(position) = self.streams.get(&group).and_then(|stream| stream.position) else { return };
        let effects = self.effects.get(&group).copied().unwrap_or_default();
        let late = as_of < position || (asked < effects && effects > self.settled(group));
        if late || !self.listens(group, node, connection) {
            return;
        }
        if let (ReadOp::Lookup { .. } | ReadOp::GetAttr { .. } | ReadOp::Content { .. }, Ok(answer)) = (op, result) {
            let mut answer = answer.clone();
            // What came with it has a key of its own.
            answer.detach(|_| true);
            self.entries.insert(place(group, op), Entry { keys: op.keys(), as_of, answer });
        }
    }

    /// The answer, if it may be given, and the index that it reflects.
    #[must_use]
    pub fn answer(
        &self,
        group: GroupId,
        op: &ReadOp,
        clock: &VectorClock,
        bug: Option<Bug>,
    ) -> Option<(ReadAnswer, LogIndex)> {
        let position = self.streams.get(&group)?.position?;
        if position < clock.index(group) && bug != Some(Bug::CacheBehindClock) {
            return None;
        }
        let entry = self.entries.get(&place(group, op))?;
        Some((entry.answer.clone(), entry.as_of))
    }
}

/// An answer that came.
#[derive(Clone, Copy, Debug)]
pub struct Answered<'a> {
    /// The question.
    pub op: &'a ReadOp,
    /// The answer.
    pub result: &'a ReadResult,
    /// Which state it reflects.
    pub as_of: LogIndex,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use metadata::types::InodeId;

    use super::*;

    /// The replica forgets what it noted for the first stream, so it will not tell of that.
    #[test]
    fn what_was_cached_before_a_stream_began_again_is_void() {
        let (group, node) = (GroupId(0), ReplicaId(1));
        let at = |index| Position { index: LogIndex(index), dependencies: VectorClock::new(), settled: LogIndex::ZERO };
        let op = ReadOp::Lookup { parent: InodeId(1), name: "a".into() };
        let mut cache = Cache::default();
        cache.ask_stream(group, node, 1);
        cache.begin_stream(group, node, 1, &at(5));
        let read = Answered { op: &op, result: &Ok(ReadAnswer::Lookup(None)), as_of: LogIndex(5) };
        cache.fill((node, 1), group, LogIndex::ZERO, read);
        assert!(cache.answer(group, &op, &VectorClock::new(), None).is_some());
        cache.begin_stream(group, node, 1, &at(5));
        assert!(cache.answer(group, &op, &VectorClock::new(), None).is_none());
    }
}
