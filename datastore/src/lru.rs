//! A map that knows which entry was used longest ago.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;

/// An entry used within this many uses is not moved again: a reader that goes through one blob in small steps would
/// otherwise rewrite the order at every step.
const RECENT: u64 = 8;

/// See the module. The caller bounds it with [`Lru::pop_oldest`].
#[derive(Debug)]
pub(crate) struct Lru<K, V> {
    entries: HashMap<K, (u64, V)>,
    order: BTreeMap<u64, K>,
    next_tick: u64,
}

impl<K: Hash + Eq + Copy, V> Lru<K, V> {
    pub(crate) fn new() -> Lru<K, V> {
        Lru { entries: HashMap::new(), order: BTreeMap::new(), next_tick: 0 }
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Looks without counting as a use.
    pub(crate) fn peek(&self, key: &K) -> Option<&V> {
        self.entries.get(key).map(|(_, value)| value)
    }

    /// Looks, which counts as a use.
    pub(crate) fn get(&mut self, key: &K) -> Option<&mut V> {
        let (tick, value) = self.entries.get_mut(key)?;
        if *tick + RECENT < self.next_tick {
            self.order.remove(tick);
            self.order.insert(self.next_tick, *key);
            *tick = self.next_tick;
            self.next_tick += 1;
        }
        Some(value)
    }

    /// Adds or replaces an entry as the newest.
    pub(crate) fn insert(&mut self, key: K, value: V) -> Option<V> {
        let replaced = self.entries.insert(key, (self.next_tick, value));
        if let Some((tick, _)) = &replaced {
            self.order.remove(tick);
        }
        self.order.insert(self.next_tick, key);
        self.next_tick += 1;
        replaced.map(|(_, value)| value)
    }

    pub(crate) fn remove(&mut self, key: &K) -> Option<V> {
        let (tick, value) = self.entries.remove(key)?;
        self.order.remove(&tick);
        Some(value)
    }

    pub(crate) fn pop_oldest(&mut self) -> Option<(K, V)> {
        let (_, key) = self.order.pop_first()?;
        let (_, value) = self.entries.remove(&key)?;
        Some((key, value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lru_oldest_unused_goes_first() {
        let mut lru = Lru::new();
        for key in 0..20_u32 {
            lru.insert(key, key);
        }
        assert_eq!(lru.get(&0), Some(&mut 0));
        assert_eq!(lru.peek(&1), Some(&1));
        assert_eq!(lru.insert(2, 22), Some(2));
        assert_eq!(lru.remove(&3), Some(3));
        let order: Vec<u32> = std::iter::from_fn(|| lru.pop_oldest()).map(|(key, _)| key).collect();
        assert_eq!(order[..2], [1, 4]);
        assert_eq!(order[order.len() - 3..], [19, 0, 2]);
        assert_eq!(lru.len(), 0);
    }
}
