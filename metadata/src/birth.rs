//! The numbers of inodes that are born in one group at the wish of another.
//!
//! A creation of which the name lives in one group and the inode in another needs the inode's number in both when it
//! executes. So the number must follow from state that the creation's footprint protects until then: not from the group's
//! running counter, but from one of a few counters with a key each, chosen by the name. They count in a space of their own:
//! the upper half of a group's inode numbers.

use multicast::ids::GroupId;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::error::Error;
use crate::keys;
use crate::namespace::Namespace;
use crate::store::StoreMut;
use crate::types::InodeId;

const SPACE_BIT: u32 = 47;
const SHARD_BITS: u32 = 6;
const NUMBER_BITS: u32 = SPACE_BIT - SHARD_BITS;
const SEED: u64 = 0x6269_7274_6873;

/// One of a group's counters for such births.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BirthShard(pub(crate) u8);

impl BirthShard {
    /// Whose turn it is for a name.
    #[must_use]
    pub fn of_name(parent: InodeId, name: &[u8]) -> Self {
        let hash = xxh3_64_with_seed(name, SEED ^ parent.0);
        BirthShard((hash >> (64 - SHARD_BITS)) as u8)
    }
}

/// Such an inode's number, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Birth {
    /// Whose number.
    pub shard: BirthShard,
    /// The number.
    pub number: u64,
}

impl Birth {
    /// `None` for an inode that was born at the wish of its own group.
    #[must_use]
    pub fn of_inode(ino: InodeId) -> Option<Self> {
        if ino.0 >> SPACE_BIT & 1 == 0 {
            return None;
        }
        let shard = ino.0 >> NUMBER_BITS & ((1 << SHARD_BITS) - 1);
        Some(Birth { shard: BirthShard(shard as u8), number: ino.0 & ((1 << NUMBER_BITS) - 1) })
    }

    /// The inode with this number.
    #[must_use]
    pub fn inode(self, group: GroupId) -> InodeId {
        InodeId::new(group, 1 << SPACE_BIT | u64::from(self.shard.0) << NUMBER_BITS | self.number)
    }
}

impl<S: StoreMut> Namespace<S> {
    /// The next number of a shard; it counts as given out once [`Namespace::note_birth`] has been told.
    pub(crate) fn next_birth(&self, shard: BirthShard) -> Result<Birth, Error> {
        Ok(Birth { shard, number: self.last_birth(shard)? + 1 })
    }

    pub(crate) fn note_birth(&mut self, birth: Birth) -> Result<(), Error> {
        self.put(keys::births(birth.shard.0), birth.number.to_be_bytes().to_vec())
    }

    /// True for a number that a creation under way may have been given.
    pub(crate) fn is_unborn(&self, ino: InodeId) -> Result<bool, Error> {
        match Birth::of_inode(ino) {
            Some(birth) if ino.birth_group() == self.group => Ok(birth.number > self.last_birth(birth.shard)?),
            _ => Ok(false),
        }
    }

    fn last_birth(&self, shard: BirthShard) -> Result<u64, Error> {
        let key = keys::births(shard.0);
        match self.store.get(&key)? {
            None => Ok(0),
            Some(value) => keys::number_at(&value, 0).ok_or(Error::CorruptRow { key }),
        }
    }
}
