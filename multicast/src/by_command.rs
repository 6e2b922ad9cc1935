//! A map from commands to something: looked up far more often than it is walked through.

use std::collections::HashMap;

use crate::hash::BuildWordHasher;
use crate::ids::CommandId;

/// Values by command, without an order of their own: whoever needs one asks for them sorted.
#[derive(Clone, Debug)]
pub(crate) struct ByCommand<V>(HashMap<CommandId, V, BuildWordHasher>);

impl<V> ByCommand<V> {
    pub(crate) fn new() -> Self {
        ByCommand(HashMap::default())
    }

    pub(crate) fn get(&self, id: CommandId) -> Option<&V> {
        self.0.get(&id)
    }

    pub(crate) fn get_mut(&mut self, id: CommandId) -> Option<&mut V> {
        self.0.get_mut(&id)
    }

    pub(crate) fn contains(&self, id: CommandId) -> bool {
        self.0.contains_key(&id)
    }

    pub(crate) fn insert(&mut self, id: CommandId, value: V) {
        self.0.insert(id, value);
    }

    pub(crate) fn remove(&mut self, id: CommandId) -> Option<V> {
        self.0.remove(&id)
    }

    /// All ids, sorted.
    pub(crate) fn ids(&self) -> Vec<CommandId> {
        let mut ids: Vec<CommandId> = self.0.keys().copied().collect();
        ids.sort_unstable();
        ids
    }

    /// All, by id.
    pub(crate) fn sorted(&self) -> Vec<(CommandId, &V)> {
        let mut all: Vec<(CommandId, &V)> = self.0.iter().map(|(&id, value)| (id, value)).collect();
        all.sort_unstable_by_key(|(id, _)| *id);
        all
    }

    /// All, in no order: for what does not depend on one.
    pub(crate) fn unsorted(&self) -> impl Iterator<Item = (CommandId, &V)> {
        self.0.iter().map(|(&id, value)| (id, value))
    }

    #[cfg(feature = "explore")]
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }
}
