//! Which waiting command comes before which, by key.

use std::collections::{BTreeSet, HashMap, VecDeque};
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
#[derive(Clone, Debug)]
pub(super) struct Conflicts {
    group: GroupId,
    classic: bool,
    /// What waits at each key, first come first.
    by_key: HashMap<Key, Queue, BuildWordHasher>,
    waiting: HashMap<CommandId, (Timestamp, Arc<Command>), BuildWordHasher>,
    #[cfg(feature = "explore")]
    pub(super) planted: Option<crate::planted::Planted>,
}

/// What waits at one key, by mode: many that commute with each other cost no more than one.
#[derive(Clone, Debug, Default)]
struct Queue {
    reads: Places,
    adds: Places,
    writes: Places,
}

/// Places in order. As a rule there is one, which needs no memory of its own.
#[derive(Clone, Debug, Default)]
struct Places {
    first: Option<Place>,
    rest: BTreeSet<Place>,
}

impl Places {
    fn first(&self) -> Option<Place> {
        self.first
    }

    fn insert(&mut self, place: Place) {
        match self.first {
            Some(first) if first < place => _ = self.rest.insert(place),
            Some(first) if first > place => {
                self.rest.insert(first);
                self.first = Some(place);
            }
            _ => self.first = Some(place),
        }
    }

    fn remove(&mut self, place: Place) {
        if self.first == Some(place) {
            self.first = self.rest.pop_first();
        } else {
            self.rest.remove(&place);
        }
    }

    fn iter(&self) -> impl Iterator<Item = Place> + '_ {
        self.first.iter().chain(&self.rest).copied()
    }
}

impl Queue {
    fn of(&mut self, mode: Mode) -> &mut Places {
        match mode {
            Mode::Read => &mut self.reads,
            Mode::Add => &mut self.adds,
            Mode::Write => &mut self.writes,
        }
    }

    /// The first of each mode that there is.
    fn firsts(&self) -> impl Iterator<Item = (Place, Mode)> + '_ {
        let by_mode = [(&self.reads, Mode::Read), (&self.adds, Mode::Add), (&self.writes, Mode::Write)];
        by_mode.into_iter().filter_map(|(places, mode)| places.first().map(|place| (place, mode)))
    }

    fn is_empty(&self) -> bool {
        self.firsts().next().is_none()
    }

    /// The first of those that conflict with a mode, if it comes before this place.
    fn blocker(&self, mode: Mode, place: Place) -> Option<CommandId> {
        let conflicting = self.firsts().filter(|(first, theirs)| theirs.conflicts(mode) && *first < place);
        conflicting.min().map(|((_, id), _)| id)
    }

    /// After something of `mode` left its place: those at the head that no other keeps waiting at this key, if it was that
    /// one that kept them.
    fn wake_heads(&self, mode: Mode, wake: &mut VecDeque<CommandId>) {
        let Some(((_, head), head_mode)) = self.firsts().min() else { return };
        if !head_mode.conflicts(mode) {
            return;
        }
        let alike = match head_mode {
            Mode::Read => &self.reads,
            Mode::Add => &self.adds,
            Mode::Write => return wake.push_back(head),
        };
        let others = self.firsts().filter(|(_, theirs)| theirs.conflicts(head_mode)).map(|(place, _)| place).min();
        wake.extend(alike.iter().take_while(|place| others.is_none_or(|other| *place < other)).map(|(_, id)| id));
    }
}

impl Conflicts {
    pub(super) fn new(group: GroupId, classic: bool) -> Self {
        Conflicts {
            group,
            classic,
            by_key: HashMap::default(),
            waiting: HashMap::default(),
            #[cfg(feature = "explore")]
            planted: None,
        }
    }

    pub(super) fn insert(&mut self, command: &Arc<Command>, timestamp: Timestamp) {
        for &(key, mode) in footprint(self.group, self.classic, command) {
            #[cfg(feature = "explore")]
            if mode == Mode::Read && self.planted == Some(crate::planted::Planted::ReadsIgnored) {
                continue;
            }
            self.by_key.entry(key).or_default().of(mode).insert((timestamp, command.id));
        }
        self.waiting.insert(command.id, (timestamp, Arc::clone(command)));
    }

    /// Takes a command out; those that it may have kept waiting go to `wake`.
    pub(super) fn remove(&mut self, id: CommandId, wake: &mut VecDeque<CommandId>) {
        let Some((timestamp, command)) = self.waiting.remove(&id) else { return };
        for &(key, mode) in footprint(self.group, self.classic, &command) {
            let Some(queue) = self.by_key.get_mut(&key) else { continue };
            queue.of(mode).remove((timestamp, id));
            if queue.is_empty() {
                self.by_key.remove(&key);
            } else {
                queue.wake_heads(mode, wake);
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
            queue.of(mode).remove((before, id));
            queue.of(mode).insert((timestamp, id));
            queue.wake_heads(mode, wake);
        }
    }

    /// A conflicting command that comes before a new one at this place.
    pub(super) fn blocker(&self, command: &Command, timestamp: Timestamp) -> Option<CommandId> {
        if self.waiting.is_empty() {
            return None;
        }
        let place = (timestamp, command.id);
        footprint(self.group, self.classic, command)
            .iter()
            .find_map(|&(key, mode)| self.by_key.get(&key)?.blocker(mode, place))
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
