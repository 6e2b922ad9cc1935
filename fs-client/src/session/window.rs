//! Which of a session's commands are under way.

use std::collections::BTreeSet;

/// Hands out sequence numbers and knows below which one no reply is needed any more. Pure.
#[derive(Debug)]
pub struct SequenceWindow {
    next: u64,
    open: BTreeSet<u64>,
}

impl Default for SequenceWindow {
    fn default() -> Self {
        SequenceWindow { next: 1, open: BTreeSet::new() }
    }
}

impl SequenceWindow {
    /// The next command's sequence; it counts as under way until [`SequenceWindow::finish`].
    pub fn begin(&mut self) -> u64 {
        let sequence = self.next;
        self.next += 1;
        self.open.insert(sequence);
        sequence
    }

    /// The reply has arrived, or nobody waits for it any more.
    pub fn finish(&mut self, sequence: u64) {
        self.open.remove(&sequence);
    }

    /// Every command below is finished.
    #[must_use]
    pub fn acknowledged_below(&self) -> u64 {
        self.open.first().copied().unwrap_or(self.next)
    }

    /// How many are under way.
    #[cfg(test)]
    fn open_count(&self) -> usize {
        self.open.len()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn window_empty_acknowledges_everything_begun() {
        let mut window = SequenceWindow::default();
        assert_eq!(window.acknowledged_below(), 1);
        let (first, second) = (window.begin(), window.begin());
        assert_eq!((first, second, window.acknowledged_below()), (1, 2, 1));
        window.finish(second);
        assert_eq!(window.acknowledged_below(), 1);
        window.finish(first);
        assert_eq!(window.acknowledged_below(), 3);
    }

    proptest! {
        #[test]
        fn window_floor_never_passes_an_open_command(steps in proptest::collection::vec(any::<(bool, u8)>(), 0..200)) {
            let mut window = SequenceWindow::default();
            let mut open: Vec<u64> = Vec::new();
            let mut floor = 0;
            for (begin, pick) in steps {
                if begin || open.is_empty() {
                    open.push(window.begin());
                } else {
                    window.finish(open.swap_remove(pick as usize % open.len()));
                }
                let now = window.acknowledged_below();
                prop_assert!(now >= floor, "the floor went back");
                prop_assert!(open.iter().all(|sequence| *sequence >= now));
                prop_assert_eq!(window.open_count(), open.len());
                floor = now;
            }
        }
    }
}
