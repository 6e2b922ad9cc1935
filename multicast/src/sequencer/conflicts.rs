//! Which waiting command comes before which, by key.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use crate::command::{Command, Key, Mode};
use crate::hash::BuildWordHasher;
use crate::ids::{CommandId, GroupId, Timestamp};

/// Where a waiting command stands: the lower bound of its timestamp, then its id.
pub(super) type Place = (Timestamp, CommandId);

/// With one key for everything this is classic atomic multicast.
const EVERYTHING: &[(Key, Mode)] = &[(Key(0), Mode::Write)];

/// All commands that are not through: prepared ones of several groups, and held ones of this group alone. Costs nothing
/// while there are none, else a look-up for each key of a footprint.
#[derive(Debug)]
pub(super) struct Conflicts {
    group: GroupId,
    classic: bool,
    /// What waits at each key, first come first.
    by_key: HashMap<Key, BTreeMap<Place, Mode>, BuildWordHasher>,
    waiting: HashMap<CommandId, (Timestamp, Arc<Command>), BuildWordHasher>,
}

impl Conflicts {
    pub(super) fn new(group: GroupId, classic: bool) -> Self {
        Conflicts { group, classic, by_key: HashMap::default(), waiting: HashMap::default() }
    }

    pub(super) fn insert(&mut self, command: &Arc<Command>, timestamp: Timestamp) {
        for &(key, mode) in footprint(self.group, self.classic, command) {
            self.by_key.entry(key).or_default().insert((timestamp, command.id), mode);
        }
        self.waiting.insert(command.id, (timestamp, Arc::clone(command)));
    }

    /// Takes a command out; those that it may have kept waiting go to `wake`.
    pub(super) fn remove(&mut self, id: CommandId, wake: &mut VecDeque<CommandId>) {
        let Some((timestamp, command)) = self.waiting.remove(&id) else { return };
        for &(key, mode) in footprint(self.group, self.classic, &command) {
            let Some(queue) = self.by_key.get_mut(&key) else { continue };
            queue.remove(&(timestamp, id));
            if queue.is_empty() {
                self.by_key.remove(&key);
            } else {
                wake_heads(queue, mode, wake);
            }
        }
    }

    /// Moves a command to a later place; those that it may have kept waiting go to `wake`.
    pub(super) fn move_to(&mut self, id: CommandId, timestamp: Timestamp, wake: &mut VecDeque<CommandId>) {
        let Some((before, command)) = self.waiting.get_mut(&id) else { return };
        let before = std::mem::replace(before, timestamp);
        if before == timestamp {
            return;
        }
        for &(key, mode) in footprint(self.group, self.classic, command) {
            let Some(queue) = self.by_key.get_mut(&key) else { continue };
            queue.remove(&(before, id));
            queue.insert((timestamp, id), mode);
            wake_heads(queue, mode, wake);
        }
    }

    /// A conflicting command that comes before a new one at this place.
    pub(super) fn blocker(&self, command: &Command, timestamp: Timestamp) -> Option<CommandId> {
        if self.waiting.is_empty() {
            return None;
        }
        let place = (timestamp, command.id);
        footprint(self.group, self.classic, command).iter().find_map(|&(key, mode)| {
            let queue = self.by_key.get(&key)?;
            queue.range(..place).find(|(_, theirs)| theirs.conflicts(mode)).map(|((_, id), _)| *id)
        })
    }

    /// A conflicting command that comes before this waiting one.
    pub(super) fn blocker_of(&self, id: CommandId) -> Option<CommandId> {
        let (timestamp, command) = self.waiting.get(&id)?;
        self.blocker(command, *timestamp)
    }
}

fn footprint(group: GroupId, classic: bool, command: &Command) -> &[(Key, Mode)] {
    if classic { EVERYTHING } else { command.footprint(group).unwrap_or(&[]) }
}

/// After something of `mode` left its place: those at the head of the queue that no other keeps waiting at this key, if it
/// was that one that kept them.
fn wake_heads(queue: &BTreeMap<Place, Mode>, mode: Mode, wake: &mut VecDeque<CommandId>) {
    let mut heads = queue.iter();
    let Some((&(_, first), &head_mode)) = heads.next() else { return };
    if !head_mode.conflicts(mode) {
        return;
    }
    wake.push_back(first);
    let alike = heads.take_while(|(_, other)| !other.conflicts(head_mode));
    wake.extend(alike.map(|((_, id), _)| *id));
}
