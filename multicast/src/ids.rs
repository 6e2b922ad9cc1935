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

/// "Has seen": group → log index. A missing group stands for index zero.
///
/// Beside what was seen of each group's log it knows, for each group, the newest `Prepare` there of a command of several
/// groups whose *effect* was seen in another one: whoever carries it must not read past that command's keys there. What was
/// merely logged there, and executed nowhere yet, holds up no reader.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VectorClock {
    seen: ByGroup<LogIndex>,
    effects: ByGroup<LogIndex>,
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
        self.effects.get(group).copied().unwrap_or(LogIndex::ZERO)
    }

    /// Notes that `group`'s log has been seen up to `index`; never goes back. True if that was news.
    pub fn advance(&mut self, group: GroupId, index: LogIndex) -> bool {
        raise(&mut self.seen, group, index)
    }

    /// Notes that the effect of a command which `group` prepared at `index` has been seen elsewhere.
    pub fn advance_effects(&mut self, group: GroupId, index: LogIndex) {
        raise(&mut self.effects, group, index);
        raise(&mut self.seen, group, index);
    }

    /// Takes the larger index of each group.
    pub fn merge(&mut self, other: &VectorClock) {
        for (group, &index) in other.seen.iter() {
            self.advance(group, index);
        }
        for (group, &index) in other.effects.iter() {
            self.advance_effects(group, index);
        }
    }

    /// Takes back what this clock claims of `group` beyond `index`.
    pub(crate) fn clip(&mut self, group: GroupId, index: LogIndex) {
        for components in [&mut self.seen, &mut self.effects] {
            if let Some(component) = components.get_mut(group) {
                *component = index.min(*component);
                if *component == LogIndex::ZERO {
                    components.remove(group);
                }
            }
        }
    }

    /// The most that this clock claims of each group.
    pub(crate) fn claims(&self) -> impl Iterator<Item = (GroupId, LogIndex)> + '_ {
        self.iter().chain(self.iter_effects())
    }

    /// True if this clock has seen all that `other` has.
    #[must_use]
    pub fn covers(&self, other: &VectorClock) -> bool {
        other.seen.iter().all(|(group, &index)| self.index(group) >= index)
            && other.effects.iter().all(|(group, &index)| self.effects(group) >= index)
    }

    /// What was seen of each group's log, by group.
    pub fn iter(&self) -> impl Iterator<Item = (GroupId, LogIndex)> + '_ {
        self.seen.iter().map(|(group, &index)| (group, index))
    }

    /// The newest effects, by group; see [`VectorClock::effects`].
    pub fn iter_effects(&self) -> impl Iterator<Item = (GroupId, LogIndex)> + '_ {
        self.effects.iter().map(|(group, &index)| (group, index))
    }
}

fn raise(components: &mut ByGroup<LogIndex>, group: GroupId, index: LogIndex) -> bool {
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
