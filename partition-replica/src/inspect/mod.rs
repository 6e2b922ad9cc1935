//! Looking at a replica's rows, all of them, as of one log index: what a check of the whole file system is made of. Nothing is
//! changed.
//!
//! Of a running node over a connection of its own ([`ask`], [`accept`]): a thread goes through a snapshot and says what it sees
//! ([`metadata::check::Seen`]); who asks sets the pace. Of a node that does not run, from its data directory ([`StoppedNode`]).

mod ask;
mod serve;
mod stopped;

use bytes::Bytes;
use metadata::check::Seen;
use multicast::ids::{GroupId, LogIndex, VectorClock};
use net::ChannelKind;
use serde::{Deserialize, Serialize};

pub use ask::ask;
pub(crate) use serve::accept;
pub use stopped::{StoppedNode, StoppedReplica};

/// The channel of an inspection.
pub const INSPECT_CHANNEL: ChannelKind = ChannelKind::new(4, 1);

const VERSION: u8 = 2;
/// What is seen is gathered until it has about so many bytes.
const BATCH_BYTES: usize = 128 << 10;
/// The longest frame: a batch, and one thing more with the longest name.
const FRAME_BYTES_MAX: usize = 1 << 20;

/// Where a state that was looked at stands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// The log index that the rows reflect.
    pub index: LogIndex,
    /// Whatever was prepared up to there has executed in them.
    pub settled: LogIndex,
    /// What they depend on in other groups.
    pub dependencies: VectorClock,
    /// The digest that was kept with them.
    pub digest: u128,
    /// About so many rows.
    pub rows: u64,
}

impl Standing {
    /// True if these states, one of each group, are of one moment: no command of several groups has executed in one of them
    /// and is still to be executed in another.
    #[must_use]
    pub fn are_of_one_moment<'a>(states: impl IntoIterator<Item = (GroupId, &'a Standing)> + Clone) -> bool {
        let mut all = states.clone().into_iter();
        all.all(|(group, state)| {
            let mut others = states.clone().into_iter().filter(|(other, _)| *other != group);
            others.all(|(_, other)| other.dependencies.effects(group) <= state.settled)
        })
    }
}

/// To a node.
#[derive(Debug, Serialize, Deserialize)]
enum ToNode {
    /// Look at this group's replica.
    Inspect {
        /// Whose.
        group: GroupId,
        /// Tell facts, too, and not only what is wrong.
        facts: bool,
    },
}

/// From a node.
#[derive(Debug, Serialize, Deserialize)]
enum ToAsker {
    /// First.
    Begin(Standing),
    /// Then what is seen: postcard, one after the other.
    Seen(Bytes),
    /// Last.
    End,
    /// Or it came to nothing, and why.
    Failed {
        /// For people.
        why: String,
        /// What is on disk is not what was written.
        is_damage: bool,
    },
}

/// Why an inspection came to nothing.
#[derive(Debug, thiserror::Error)]
#[error("{why}")]
pub struct Failed {
    /// For people.
    pub why: String,
    /// What is on disk is not what was written.
    pub is_damage: bool,
}

impl Failed {
    fn new(why: impl std::fmt::Display) -> Failed {
        Failed { why: why.to_string(), is_damage: false }
    }
}

/// Gathers what is seen.
#[derive(Default)]
struct Batch {
    bytes: Vec<u8>,
    rows: u64,
}

impl Batch {
    fn add(&mut self, seen: &Seen, with_facts: bool) {
        match seen {
            Seen::Rows(rows) => self.rows += rows,
            Seen::Wrong { .. } => self.push(seen),
            _ if with_facts => self.push(seen),
            _ => {}
        }
    }

    fn push(&mut self, seen: &Seen) {
        let bytes = std::mem::take(&mut self.bytes);
        self.bytes = postcard::to_extend(seen, bytes).expect("what was seen, in memory, always encodes");
    }

    fn is_full(&self) -> bool {
        self.bytes.len() >= BATCH_BYTES || self.rows >= 1 << 14
    }

    fn take(&mut self) -> Bytes {
        let rows = std::mem::take(&mut self.rows);
        self.push(&Seen::Rows(rows));
        std::mem::take(&mut self.bytes).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_between_which_a_command_is_half_executed_are_not_of_one_moment() {
        let (a, b) = (GroupId(1), GroupId(2));
        let state = |settled, other, effects| {
            let mut dependencies = VectorClock::new();
            dependencies.advance_effects(other, LogIndex(effects), multicast::ids::SessionId(1));
            Standing { settled: LogIndex(settled), dependencies, ..Standing::default() }
        };
        let pair = |of_a, of_b| Standing::are_of_one_moment([(a, &of_a), (b, &of_b)]);
        assert!(pair(state(10, b, 7), state(7, a, 10)));
        assert!(!pair(state(10, b, 8), state(7, a, 10)), "a shows what b prepared at 8");
        assert!(!pair(state(9, b, 7), state(7, a, 10)));
    }
}
