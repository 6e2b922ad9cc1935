//! Keys of prepared commands.

use std::collections::BTreeMap;

use crate::command::{Key, Mode};
use crate::ids::{CommandId, LogIndex};

/// Which unfinished commands touch which keys. Several may share a key: a `Prepare` never waits.
#[derive(Clone, Debug, Default)]
pub(crate) struct Locks {
    /// By key, then by the index of the `Prepare`.
    locks: BTreeMap<(Key, LogIndex), (CommandId, Mode)>,
}

impl Locks {
    pub(crate) fn lock(&mut self, id: CommandId, index: LogIndex, footprint: &[(Key, Mode)]) {
        for &(key, mode) in footprint {
            self.locks.insert((key, index), (id, mode));
        }
    }

    pub(crate) fn unlock(&mut self, index: LogIndex, footprint: &[(Key, Mode)]) {
        for &(key, _) in footprint {
            self.locks.remove(&(key, index));
        }
    }

    /// Those that will change the key and were prepared up to `last`, in the order of their `Prepare`s.
    fn changing_up_to(&self, key: Key, last: LogIndex) -> impl Iterator<Item = CommandId> + '_ {
        let locks = self.locks.range((key, LogIndex::ZERO)..=(key, last));
        locks.filter(|(_, (_, mode))| mode.changes()).map(|(_, &(id, _))| id)
    }

    pub(crate) fn blocking(&self, key: Key, client_index: LogIndex) -> Option<CommandId> {
        self.changing_up_to(key, client_index).next()
    }

    pub(crate) fn is_changing(&self, key: Key) -> bool {
        self.changing_up_to(key, LogIndex(u64::MAX)).next().is_some()
    }

    /// True if a command other than `id` will change the key.
    pub(crate) fn is_changing_beside(&self, key: Key, id: CommandId) -> bool {
        self.changing_up_to(key, LogIndex(u64::MAX)).any(|other| other != id)
    }

    pub(crate) fn changing(&self) -> impl Iterator<Item = (Key, LogIndex, CommandId)> + '_ {
        let changing = self.locks.iter().filter(|(_, (_, mode))| mode.changes());
        changing.map(|(&(key, index), &(id, _))| (key, index, id))
    }
}
