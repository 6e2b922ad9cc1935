//! Keys of prepared commands.

use std::collections::BTreeMap;

use crate::command::{Key, Mode};
use crate::ids::{CommandId, LogIndex};

/// Which unfinished commands touch which keys. Several may share a key: a `Prepare` never waits.
#[derive(Clone, Debug, Default)]
pub(crate) struct Locks {
    by_key: BTreeMap<Key, Vec<Lock>>,
}

#[derive(Clone, Copy, Debug)]
struct Lock {
    id: CommandId,
    /// The `Prepare`.
    index: LogIndex,
    mode: Mode,
}

impl Locks {
    pub(crate) fn lock(&mut self, id: CommandId, index: LogIndex, footprint: &[(Key, Mode)]) {
        for &(key, mode) in footprint {
            self.by_key.entry(key).or_default().push(Lock { id, index, mode });
        }
    }

    pub(crate) fn unlock(&mut self, id: CommandId, footprint: &[(Key, Mode)]) {
        for (key, _) in footprint {
            if let Some(locks) = self.by_key.get_mut(key) {
                locks.retain(|lock| lock.id != id);
                if locks.is_empty() {
                    self.by_key.remove(key);
                }
            }
        }
    }

    pub(crate) fn blocking(&self, key: Key, client_index: LogIndex) -> Option<CommandId> {
        let locks = self.by_key.get(&key)?;
        locks.iter().find(|lock| lock.index <= client_index && lock.mode.changes()).map(|lock| lock.id)
    }

    pub(crate) fn is_changing(&self, key: Key) -> bool {
        self.by_key.get(&key).is_some_and(|locks| locks.iter().any(|lock| lock.mode.changes()))
    }

    /// True if a command other than `id` will change the key.
    pub(crate) fn is_changing_beside(&self, key: Key, id: CommandId) -> bool {
        let is_other = |lock: &Lock| lock.id != id && lock.mode.changes();
        self.by_key.get(&key).is_some_and(|locks| locks.iter().any(is_other))
    }

    pub(crate) fn changing(&self) -> impl Iterator<Item = (Key, LogIndex, CommandId)> + '_ {
        self.by_key.iter().flat_map(|(&key, locks)| {
            locks.iter().filter(|lock| lock.mode.changes()).map(move |lock| (key, lock.index, lock.id))
        })
    }
}
