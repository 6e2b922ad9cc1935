//! Which of a session's commands are under way.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use multicast::ids::GroupId;
use parking_lot::Mutex;

/// A group remembers only so many replies of a session. So a command that waits to be asked for again, while so many
/// others of one of its groups have begun, is given up: else those others would have to wait for it. A quarter of what a
/// group remembers (4,096): the rest is for commands that are being asked for.
const OVERTAKEN_MAX: u64 = 1024;

/// Hands out sequence numbers and knows below which one no reply is needed any more. Pure.
///
/// A command's acknowledgement counts in its own groups only. So one that a group does not answer holds up the window of
/// that group, and of no other.
#[derive(Debug)]
pub struct SequenceWindow {
    next: u64,
    open: BTreeMap<u64, Open>,
    /// Open ones that nobody asks for now, but somebody may again.
    parked: BTreeSet<u64>,
    /// How many commands of each group have begun.
    begun: BTreeMap<GroupId, u64>,
}

#[derive(Debug)]
struct Open {
    /// Its groups, each with how many of that group had begun before.
    groups: Vec<(GroupId, u64)>,
}

impl Default for SequenceWindow {
    fn default() -> Self {
        SequenceWindow { next: 1, open: BTreeMap::new(), parked: BTreeSet::new(), begun: BTreeMap::new() }
    }
}

impl SequenceWindow {
    /// The next command's sequence; it counts as under way until [`SequenceWindow::finish`].
    pub fn begin(&mut self, groups: impl IntoIterator<Item = GroupId>) -> u64 {
        let sequence = self.next;
        self.next += 1;
        let mut open = Open { groups: Vec::new() };
        for group in groups {
            let begun = self.begun.entry(group).or_default();
            open.groups.push((group, *begun));
            *begun += 1;
        }
        self.open.insert(sequence, open);
        self.give_up_overtaken();
        sequence
    }

    /// The reply has arrived, or nobody will ask for it any more.
    pub fn finish(&mut self, sequence: u64) {
        self.open.remove(&sequence);
        self.parked.remove(&sequence);
    }

    /// Nobody asks for it now.
    pub fn park(&mut self, sequence: u64) {
        if self.open.contains_key(&sequence) {
            self.parked.insert(sequence);
        }
    }

    /// It is asked for again. False if it was given up: its reply may be gone.
    pub fn resume(&mut self, sequence: u64) -> bool {
        self.parked.remove(&sequence);
        self.open.contains_key(&sequence)
    }

    /// Every command below that concerns one of these groups is finished.
    #[must_use]
    pub fn acknowledged_below(&self, groups: &[GroupId]) -> u64 {
        let concerns = |open: &Open| open.groups.iter().any(|(group, _)| groups.contains(group));
        let first = self.open.iter().find(|(_, open)| concerns(open));
        first.map_or(self.next, |(sequence, _)| *sequence)
    }

    fn give_up_overtaken(&mut self) {
        if self.parked.is_empty() {
            return;
        }
        let (open, begun) = (&self.open, &self.begun);
        let is_overtaken = |sequence: &u64| {
            let groups = open.get(sequence).map_or(&[][..], |open| &open.groups);
            groups.iter().any(|(group, before)| begun.get(group).copied().unwrap_or(0) - before > OVERTAKEN_MAX)
        };
        let overtaken: Vec<u64> = self.parked.iter().copied().filter(is_overtaken).collect();
        for sequence in overtaken {
            self.finish(sequence);
        }
    }

    /// How many are under way.
    #[cfg(test)]
    fn open_count(&self) -> usize {
        self.open.len()
    }
}

/// A command that is under way until this is dropped.
#[derive(Debug)]
pub struct Turn {
    window: Arc<Mutex<SequenceWindow>>,
    /// Its sequence.
    pub sequence: u64,
    /// What it acknowledges.
    pub acknowledged_below: u64,
}

impl Turn {
    /// The next command, of these groups.
    pub fn begin(window: &Arc<Mutex<SequenceWindow>>, groups: &[GroupId]) -> Turn {
        let mut open = window.lock();
        let sequence = open.begin(groups.iter().copied());
        let acknowledged_below = open.acknowledged_below(groups);
        drop(open);
        Turn { window: window.clone(), sequence, acknowledged_below }
    }

    /// See [`SequenceWindow::park`].
    pub fn park(&self) {
        self.window.lock().park(self.sequence);
    }

    /// See [`SequenceWindow::resume`].
    pub fn resume(&self) -> bool {
        self.window.lock().resume(self.sequence)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.window.lock().finish(self.sequence);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    const A: GroupId = GroupId(0);
    const B: GroupId = GroupId(1);

    #[test]
    fn window_empty_acknowledges_everything_begun() {
        let mut window = SequenceWindow::default();
        assert_eq!(window.acknowledged_below(&[A]), 1);
        let (first, second) = (window.begin([A]), window.begin([A]));
        assert_eq!((first, second, window.acknowledged_below(&[A])), (1, 2, 1));
        window.finish(second);
        assert_eq!(window.acknowledged_below(&[A]), 1);
        window.finish(first);
        assert_eq!(window.acknowledged_below(&[A]), 3);
    }

    #[test]
    fn window_of_one_group_does_not_wait_for_another() {
        let mut window = SequenceWindow::default();
        let far = window.begin([B]);
        let near = window.begin([A]);
        window.finish(near);
        assert_eq!((window.acknowledged_below(&[A]), window.acknowledged_below(&[B])), (3, far));
        assert_eq!(window.acknowledged_below(&[A, B]), far);
    }

    #[test]
    fn parked_command_is_given_up_only_when_its_own_group_has_gone_on() {
        let mut window = SequenceWindow::default();
        let (kept, asked) = (window.begin([B]), window.begin([B]));
        window.park(kept);
        let pass = |window: &mut SequenceWindow, group| {
            let sequence = window.begin([group]);
            window.finish(sequence);
        };
        (0..4 * OVERTAKEN_MAX).for_each(|_| pass(&mut window, A));
        assert!(window.resume(kept));
        window.park(kept);
        (0..OVERTAKEN_MAX).for_each(|_| pass(&mut window, B));
        assert!(!window.resume(kept), "its reply may be forgotten");
        assert_eq!(window.acknowledged_below(&[B]), asked, "who is asked for stays");
    }

    proptest! {
        #[test]
        fn window_floor_never_passes_an_open_command(
            steps in proptest::collection::vec((any::<bool>(), any::<u8>(), 1..4_u8), 0..200),
        ) {
            let mut window = SequenceWindow::default();
            let mut open: Vec<(u64, Vec<GroupId>)> = Vec::new();
            let mut floors = [0, 0];
            for (begin, pick, groups) in steps {
                if begin || open.is_empty() {
                    let groups: Vec<GroupId> = [A, B].into_iter().filter(|group| groups & (1 << group.0) != 0).collect();
                    open.push((window.begin(groups.clone()), groups));
                } else {
                    window.finish(open.swap_remove(pick as usize % open.len()).0);
                }
                for (floor, group) in floors.iter_mut().zip([A, B]) {
                    let now = window.acknowledged_below(&[group]);
                    prop_assert!(now >= *floor, "the floor went back");
                    prop_assert!(open.iter().all(|(sequence, of)| *sequence >= now || !of.contains(&group)));
                    prop_assert!(window.acknowledged_below(&[A, B]) <= now);
                    *floor = now;
                }
                prop_assert_eq!(window.open_count(), open.len());
            }
        }
    }
}
