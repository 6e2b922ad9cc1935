//! A map from groups to something, for few groups: one piece of memory or none of its own, where a tree would take a large
//! node for each.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use smallvec::SmallVec;

use crate::ids::GroupId;

/// So much room is made on the word of whoever sends it.
const ROOM_MAX: usize = 8;

/// Values by group, in the order of the groups. So many are `INLINE`, where the map itself is. Encoded like any other map; in
/// another order it is refused.
#[derive(Clone, PartialEq, Eq)]
pub struct ByGroup<V, const INLINE: usize = 0>(SmallVec<[(GroupId, V); INLINE]>);

impl<V, const INLINE: usize> ByGroup<V, INLINE> {
    /// Empty.
    #[must_use]
    pub fn new() -> Self {
        ByGroup(SmallVec::new())
    }

    /// Empty, with room for so many.
    #[must_use]
    pub(crate) fn with_room(count: usize) -> Self {
        ByGroup(SmallVec::with_capacity(count))
    }

    /// How many there are.
    #[must_use]
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    fn find(&self, group: GroupId) -> Result<usize, usize> {
        // Few enough to look at one after the other, and often added in order.
        match self.0.iter().position(|(at, _)| *at >= group) {
            Some(slot) if self.0[slot].0 == group => Ok(slot),
            Some(slot) => Err(slot),
            None => Err(self.0.len()),
        }
    }

    /// The group's value.
    #[must_use]
    pub fn get(&self, group: GroupId) -> Option<&V> {
        self.find(group).ok().map(|slot| &self.0[slot].1)
    }

    /// The group's value.
    pub fn get_mut(&mut self, group: GroupId) -> Option<&mut V> {
        self.find(group).ok().map(|slot| &mut self.0[slot].1)
    }

    /// Sets the group's value.
    pub fn insert(&mut self, group: GroupId, value: V) {
        match self.find(group) {
            Ok(slot) => self.0[slot].1 = value,
            Err(slot) => self.0.insert(slot, (group, value)),
        }
    }

    /// Takes the group's value out.
    pub fn remove(&mut self, group: GroupId) -> Option<V> {
        self.find(group).ok().map(|slot| self.0.remove(slot).1)
    }

    /// All, by group.
    pub fn iter(&self) -> impl Iterator<Item = (GroupId, &V)> + Clone {
        self.0.iter().map(|(group, value)| (*group, value))
    }

    /// All, by group.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (GroupId, &mut V)> {
        self.0.iter_mut().map(|(group, value)| (*group, value))
    }

    /// The groups.
    pub fn groups(&self) -> impl Iterator<Item = GroupId> + Clone {
        self.0.iter().map(|(group, _)| *group)
    }
}

impl<V, const INLINE: usize> Default for ByGroup<V, INLINE> {
    fn default() -> Self {
        ByGroup::new()
    }
}

impl<V: fmt::Debug, const INLINE: usize> fmt::Debug for ByGroup<V, INLINE> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl<V, const INLINE: usize> FromIterator<(GroupId, V)> for ByGroup<V, INLINE> {
    fn from_iter<T: IntoIterator<Item = (GroupId, V)>>(values: T) -> Self {
        let values = values.into_iter();
        let mut map = ByGroup::with_room(values.size_hint().1.unwrap_or_default().min(ROOM_MAX));
        values.for_each(|(group, value)| map.insert(group, value));
        map
    }
}

impl<V: Serialize, const INLINE: usize> Serialize for ByGroup<V, INLINE> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter())
    }
}

impl<'de, V: Deserialize<'de>, const INLINE: usize> Deserialize<'de> for ByGroup<V, INLINE> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Ascending(PhantomData))
    }
}

struct Ascending<V, const INLINE: usize>(PhantomData<V>);

impl<'de, V: Deserialize<'de>, const INLINE: usize> Visitor<'de> for Ascending<V, INLINE> {
    type Value = ByGroup<V, INLINE>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map by group, in order")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut values: SmallVec<[(GroupId, V); INLINE]> =
            SmallVec::with_capacity(map.size_hint().unwrap_or_default().min(ROOM_MAX));
        while let Some((group, value)) = map.next_entry::<GroupId, V>()? {
            if values.last().is_some_and(|(last, _)| *last >= group) {
                return Err(A::Error::custom("groups out of order"));
            }
            values.push((group, value));
        }
        Ok(ByGroup(values))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn map_is_encoded_like_any_other_and_refused_out_of_order() {
        let tree: BTreeMap<GroupId, u64> = [(GroupId(7), 1), (GroupId(2), 300), (GroupId(500), 0)].into();
        let map: ByGroup<u64> = tree.iter().rev().map(|(&group, &value)| (group, value)).collect();
        let bytes = postcard::to_allocvec(&tree).unwrap();
        assert_eq!(postcard::to_allocvec(&map).unwrap(), bytes);
        assert_eq!(postcard::from_bytes::<ByGroup<u64>>(&bytes).unwrap(), map);
        assert!(map.iter().map(|(group, value)| (group, *value)).eq(tree));
        for wrong in [[2u8, 3, 0, 2, 0], [2, 3, 0, 3, 0]] {
            assert!(postcard::from_bytes::<ByGroup<u64>>(&wrong).is_err());
        }
        assert!(postcard::from_bytes::<ByGroup<u64>>(&[255, 255, 3, 1, 0]).is_err());
    }

    #[test]
    fn map_finds_what_was_put_in() {
        let mut map: ByGroup<u8> = [(GroupId(3), 3), (GroupId(1), 1), (GroupId(3), 4)].into_iter().collect();
        assert_eq!((map.get(GroupId(3)), map.get(GroupId(2))), (Some(&4), None));
        *map.get_mut(GroupId(1)).unwrap() += 1;
        assert_eq!((map.remove(GroupId(1)), map.remove(GroupId(1))), (Some(2), None));
        assert!(map.groups().eq([GroupId(3)]));
    }
}
