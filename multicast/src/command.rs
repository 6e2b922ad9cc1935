//! What is ordered: a command with its destinations and, for each, the keys that it touches.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;
use xxhash_rust::xxh3::xxh3_64;

use crate::ids::{CommandId, GroupId, VectorClock};

/// One thing that commands conflict over, as a 64-bit hash of its name. Two names that share a hash only wait for each
/// other without need.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Key(pub u64);

/// How a command touches a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Mode {
    /// Depends on it, leaves it. Commutes with itself.
    Read,
    /// Adds to it without depending on its value (a link count, a newer mtime). Commutes with itself.
    Add,
    /// Depends on it and changes it. Commutes with nothing.
    Write,
}

impl Mode {
    /// True if two commands that touch one key in these modes must execute in the same order everywhere.
    #[must_use]
    pub fn conflicts(self, other: Mode) -> bool {
        self == Mode::Write || self != other
    }

    /// True if a reader must not look past an unfinished command that touches its key so.
    #[must_use]
    pub fn changes(self) -> bool {
        self != Mode::Read
    }
}

/// Keys with how they are touched. Most commands touch no more than fit in without memory of their own.
pub type Footprint = SmallVec<[(Key, Mode); 4]>;

/// One destination group of a command and what the command touches there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Destination {
    /// The group.
    pub group: GroupId,
    /// The keys, sorted, each once with its strongest mode.
    #[serde(deserialize_with = "crate::record::deserialize_few")]
    pub footprint: Footprint,
}

/// A command as its client sent it. Its payload means nothing here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    /// Executes once under this id, wherever and how often it arrives.
    pub id: CommandId,
    /// The client needs no replies of its session below this sequence any more: groups may forget them, and refuse
    /// commands below it that they have not executed.
    pub acknowledged_below: u64,
    /// What the client had seen when it asked: whoever reads the effect must be able to read its causes.
    pub clock: VectorClock,
    /// At least one, sorted by group, each group once.
    pub destinations: Vec<Destination>,
    /// The operation, opaque here.
    pub payload: Bytes,
}

impl Command {
    /// The footprint in `group`, if that group is a destination.
    #[must_use]
    pub fn footprint(&self, group: GroupId) -> Option<&[(Key, Mode)]> {
        self.destinations
            .iter()
            .find(|destination| destination.group == group)
            .map(|destination| destination.footprint.as_slice())
    }

    /// The destination groups, in order.
    pub fn groups(&self) -> impl Iterator<Item = GroupId> + '_ {
        self.destinations.iter().map(|destination| destination.group)
    }

    /// What the id is bound to: a hash of destinations and payload. The same id with another binding is a client's
    /// mistake and is never executed. Clock and acknowledgement may differ between attempts.
    #[must_use]
    pub fn binding(&self) -> u64 {
        const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
        let mix = |hash: u64, word: u64| (hash.rotate_left(29) ^ word).wrapping_mul(FACTOR);
        let mut hash = xxh3_64(&self.payload);
        for destination in &self.destinations {
            hash = mix(hash, u64::from(destination.group.0));
            for &(key, mode) in &destination.footprint {
                hash = mix(mix(hash, key.0), mode as u64 + 1);
            }
        }
        hash ^ (hash >> 31)
    }

    /// True if more than one group must agree on it.
    #[must_use]
    pub fn is_multi_group(&self) -> bool {
        self.destinations.len() > 1
    }
}
