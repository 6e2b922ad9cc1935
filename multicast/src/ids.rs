//! Identities that every crate shares. Each is a newtype: an index of one kind never passes for another.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::by_group::ByGroup;

/// A replica group: the replicas that order and hold one part of the namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct GroupId(pub u16);

impl GroupId {
    /// The group that holds the root directory.
    pub const GLOBAL: GroupId = GroupId(0);
}

impl fmt::Display for GroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "g{}", self.0)
    }
}

/// One replica of a group: the number of the node that hosts it. Which of that node's disks it is, the [`Incarnation`] says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ReplicaId(pub u32);

impl fmt::Display for ReplicaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "r{}", self.0)
    }
}

/// Which disk of a node holds a replica: a replica whose disk was lost comes back with another one, and so is another member.
/// One that forgot its promises must not pass for the one that gave them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Incarnation(pub u64);

impl Incarnation {
    /// A disk that was formatted when the group was founded. All later ones are drawn at random, and are not zero.
    pub const GENESIS: Incarnation = Incarnation(0);
}

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

/// A Paxos round. Totally ordered; durable before it is answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Ballot {
    /// The round; higher wins.
    pub round: u64,
    /// Breaks ties between voters that chose the same round. `None` only in the ballot before the first.
    pub owner: Option<ReplicaId>,
}

/// A slot in one group's log, from 1, dense. Zero is "before the first entry".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LogIndex(pub u64);

impl LogIndex {
    /// Before the first entry.
    pub const ZERO: LogIndex = LogIndex(0);

    /// The slot after this one.
    #[must_use]
    pub fn next(self) -> LogIndex {
        LogIndex(self.0.saturating_add(1))
    }
}

impl fmt::Display for LogIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A group's proposal for a command's place in the order (Skeen 1985); the final one is the maximum over destinations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Timestamp(pub u64);

/// A client's session: drawn at random by the client (64 bits), registered in a group by a logged command before use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SessionId(pub u64);

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// What makes a command execute exactly once: its session and the session's own counter, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct CommandId {
    /// Who asked.
    pub session: SessionId,
    /// The how-manieth command of that session, over all groups.
    pub sequence: u64,
}

impl fmt::Display for CommandId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.session, self.sequence)
    }
}

/// What a vector clock says of each group. That of a command knows few groups as a rule, and is copied, sent and dropped with
/// it; one of more than fit in has memory of its own.
type Components<V> = ByGroup<V, 3>;

/// "Has seen": group → log index. A missing group stands for index zero.
///
/// Beside what was seen of each group's log it knows, for each group, the newest command of several groups which that one has
/// committed and whose *effect* was seen in another one: whoever carries it must not read past that command's keys there. What was
/// merely logged there, and executed nowhere yet, holds up no reader. Whose command it is stands there too, and the newest of
/// everybody else: a client knows what its own have changed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VectorClock {
    seen: Components<LogIndex>,
    effects: Components<Effect>,
}

/// The newest effect, and the newest one by anybody else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Effect {
    index: LogIndex,
    by: SessionId,
    others: LogIndex,
}

impl Effect {
    /// The newest one that is not that session's.
    fn beside(&self, session: SessionId) -> LogIndex {
        if self.by == session { self.others } else { self.index }
    }

    /// For each session, what is beside it in either.
    fn merge(&self, other: &Effect) -> Effect {
        // One group commits one command at an index; who claims something else is believed nothing in particular.
        let (newer, older) =
            if (self.index, self.by) >= (other.index, other.by) { (self, other) } else { (other, self) };
        Effect { others: newer.others.max(older.beside(newer.by)), ..*newer }
    }
}

impl VectorClock {
    /// A clock that has seen nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// How far this clock has seen `group`'s log.
    #[must_use]
    pub fn index(&self, group: GroupId) -> LogIndex {
        self.seen.get(group).copied().unwrap_or(LogIndex::ZERO)
    }

    /// Commands prepared in `group` up to here may have been seen executed elsewhere.
    #[must_use]
    pub fn effects(&self, group: GroupId) -> LogIndex {
        self.effects.get(group).map_or(LogIndex::ZERO, |effect| effect.index)
    }

    /// The same, without the commands of a session.
    #[must_use]
    pub fn effects_beside(&self, group: GroupId, session: SessionId) -> LogIndex {
        self.effects.get(group).map_or(LogIndex::ZERO, |effect| effect.beside(session))
    }

    /// Notes that `group`'s log has been seen up to `index`; never goes back. True if that was news.
    pub fn advance(&mut self, group: GroupId, index: LogIndex) -> bool {
        raise(&mut self.seen, group, index)
    }

    /// Notes that the effect of a command of that session which `group` committed at `index` has been seen elsewhere.
    pub fn advance_effects(&mut self, group: GroupId, index: LogIndex, by: SessionId) {
        self.merge_effect(group, &Effect { index, by, others: LogIndex::ZERO });
    }

    fn merge_effect(&mut self, group: GroupId, effect: &Effect) {
        if effect.index == LogIndex::ZERO {
            return;
        }
        match self.effects.get_mut(group) {
            Some(known) => *known = known.merge(effect),
            None => self.effects.insert(group, *effect),
        }
        raise(&mut self.seen, group, effect.index);
    }

    /// Takes what `other` says of effects in `group`.
    pub fn merge_effects(&mut self, other: &VectorClock, group: GroupId) {
        if let Some(effect) = other.effects.get(group) {
            self.merge_effect(group, effect);
        }
    }

    /// Takes the larger index of each group.
    pub fn merge(&mut self, other: &VectorClock) {
        for (group, &index) in other.seen.iter() {
            self.advance(group, index);
        }
        for (group, effect) in other.effects.iter() {
            self.merge_effect(group, effect);
        }
    }

    /// Takes back what this clock claims of `group` beyond `index`.
    pub(crate) fn clip(&mut self, group: GroupId, index: LogIndex) {
        if let Some(seen) = self.seen.get_mut(group) {
            *seen = index.min(*seen);
        }
        if let Some(effect) = self.effects.get_mut(group) {
            effect.index = index.min(effect.index);
            effect.others = effect.index.min(effect.others);
        }
        if index == LogIndex::ZERO {
            self.seen.remove(group);
            self.effects.remove(group);
        }
    }

    /// The most that this clock claims of each group.
    pub(crate) fn claims(&self) -> impl Iterator<Item = (GroupId, LogIndex)> + '_ {
        self.iter().chain(self.iter_effects())
    }

    /// False if it cannot have come about by seeing.
    pub(crate) fn is_sound(&self) -> bool {
        self.effects.iter().all(|(_, effect)| effect.others <= effect.index && effect.index > LogIndex::ZERO)
    }

    /// What was seen of each group's log, by group.
    pub fn iter(&self) -> impl Iterator<Item = (GroupId, LogIndex)> + '_ {
        self.seen.iter().map(|(group, &index)| (group, index))
    }

    /// The newest effects, by group; see [`VectorClock::effects`].
    pub fn iter_effects(&self) -> impl Iterator<Item = (GroupId, LogIndex)> + '_ {
        self.effects.iter().map(|(group, effect)| (group, effect.index))
    }
}

fn raise(components: &mut Components<LogIndex>, group: GroupId, index: LogIndex) -> bool {
    match components.get_mut(group) {
        Some(component) => {
            let news = index > *component;
            *component = index.max(*component);
            news
        }
        None if index == LogIndex::ZERO => false,
        None => {
            components.insert(group, index);
            true
        }
    }
}

impl FromIterator<(GroupId, LogIndex)> for VectorClock {
    fn from_iter<T: IntoIterator<Item = (GroupId, LogIndex)>>(components: T) -> Self {
        let mut clock = VectorClock::new();
        for (group, index) in components {
            clock.advance(group, index);
        }
        clock
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    const G: GroupId = GroupId(1);

    fn clock(effects: &[(u64, u64)]) -> VectorClock {
        let mut clock = VectorClock::new();
        effects.iter().for_each(|&(index, by)| clock.advance_effects(G, LogIndex(index), SessionId(by)));
        clock
    }

    proptest! {
        /// Each index is of one session.
        #[test]
        fn effects_beside_a_session_are_the_newest_of_the_others(
            owners in prop::collection::vec(0..4_u64, 12),
            parts in prop::collection::vec(prop::collection::vec(1..12_usize, 0..6), 1..4),
            asked in 0..4_u64,
        ) {
            let of = |part: &[usize]| -> Vec<(u64, u64)> { part.iter().map(|&at| (at as u64, owners[at])).collect() };
            let mut merged = VectorClock::new();
            parts.iter().for_each(|part| merged.merge(&clock(&of(part))));
            let mut backwards = VectorClock::new();
            parts.iter().rev().for_each(|part| backwards.merge(&clock(&of(part))));
            prop_assert_eq!(&merged, &backwards);
            prop_assert!(merged.is_sound());
            let all = of(&parts.concat());
            let newest = |keep: &dyn Fn(u64) -> bool| {
                LogIndex(all.iter().filter(|(_, by)| keep(*by)).map(|(index, _)| *index).max().unwrap_or(0))
            };
            prop_assert_eq!(merged.effects(G), newest(&|_| true));
            prop_assert_eq!(merged.effects_beside(G, SessionId(asked)), newest(&|by| by != asked));
            prop_assert_eq!(merged.index(G), merged.effects(G));
        }
    }

    #[test]
    fn clipped_clock_claims_no_more_than_that() {
        let mut clipped = clock(&[(9, 1), (7, 2)]);
        clipped.clip(G, LogIndex(5));
        assert_eq!((clipped.index(G), clipped.effects(G)), (LogIndex(5), LogIndex(5)));
        assert_eq!(clipped.effects_beside(G, SessionId(1)), LogIndex(5));
        assert!(clipped.is_sound());
        clipped.clip(G, LogIndex::ZERO);
        assert_eq!(clipped, VectorClock::new());
    }
}
