//! What an exhaustive exploration needs to know of a sequencer.

use std::collections::VecDeque;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use bytes::Bytes;

use super::multi::{Multi, Stage, Told};
use super::{Sequencer, Turn};
use crate::command::Command;
use crate::explore::{Kept, Place, Places};
use crate::ids::{LogIndex, Timestamp};
use crate::planted::Planted;
use crate::record::Contribution;

/// A planted mistake and what it needs to remember.
#[derive(Clone, Debug, Default)]
pub(super) struct Mistake {
    pub(super) planted: Option<Planted>,
    /// For [`Planted::PrepareWaits`].
    waiting: VecDeque<Arc<Command>>,
}

impl Told {
    /// For [`Planted::FinishEarly`].
    pub(super) fn assume_contribution(&mut self) {
        let nothing = || Contribution { value: Bytes::new(), index: LogIndex::ZERO, depends_on: Arc::default() };
        self.contribution.get_or_insert_with(nothing);
    }
}

impl Sequencer {
    pub(crate) fn plant(&mut self, planted: Option<Planted>) {
        self.mistake.planted = planted;
        self.conflicts.planted = planted;
    }

    pub(super) fn has(&self, planted: Planted) -> bool {
        self.mistake.planted == Some(planted)
    }

    /// True if the planted mistake makes this `Prepare` wait.
    pub(super) fn waits_before_prepare(&mut self, command: &Arc<Command>) -> bool {
        let last = Timestamp(u64::MAX);
        let waits = self.has(Planted::PrepareWaits) && self.conflicts.blocker(command, last).is_some();
        if waits {
            self.mistake.waiting.push_back(Arc::clone(command));
        }
        waits
    }

    pub(super) fn prepare_waiting(&mut self, turn: &mut Turn<'_>) {
        for command in std::mem::take(&mut self.mistake.waiting) {
            self.prepare(turn, &command);
        }
    }

    /// See [`crate::Core::places`].
    pub(crate) fn places(&self) -> Places {
        let held = self.held.iter().map(|(&id, held)| Place { id, bound: held.timestamp, lacks: Vec::new() });
        let is_waiting = |multi: &Multi| !matches!(multi.stage, Stage::Settled | Stage::Refusing | Stage::Aborting);
        let multis = self.multis.unsorted().filter(|(_, multi)| is_waiting(multi)).map(|(id, multi)| {
            let is_missing = |told: &Told| multi.stage == Stage::Preparing && told.timestamp.is_none();
            let lacks = multi.others.iter().filter(|(_, told)| is_missing(told)).map(|(group, _)| group).collect();
            Place { id, bound: multi.bound, lacks }
        });
        let mut waiting: Vec<Place> = held.chain(multis).collect();
        waiting.sort_by_key(|place| place.id);
        Places { clock: self.clock, waiting }
    }

    /// Everything here that may make a difference while time stands still and no message is lost. Left out is: what follows
    /// from the rest (`conflicts`, loads, counts of peers); what only time brings up (timers, when who was heard, what is to
    /// be forgotten); of a command what its stage does not look at any more; what `kept` says.
    pub(crate) fn hash_behaviour(&self, kept: Kept, state: &mut impl Hasher) {
        kept.clock.then_some(self.clock).hash(state);
        let mut singles: Vec<_> = self.singles.keys().collect();
        singles.sort_unstable();
        singles.hash(state);
        self.held.len().hash(state);
        for (id, held) in &self.held {
            (id, held.timestamp).hash(state);
        }
        self.multis.len().hash(state);
        for (id, multi) in self.multis.sorted() {
            (id, multi.stage as u8).hash(state);
            if !matches!(multi.stage, Stage::Settled | Stage::Refusing | Stage::Aborting) {
                multi.bound.hash(state);
            }
            for (group, told) in multi.others.iter() {
                (group, told.closed).hash(state);
                if multi.stage == Stage::Preparing {
                    told.timestamp.is_some().hash(state);
                }
                told.contribution.as_ref().map(|contribution| &contribution.value).hash(state);
            }
        }
        self.early.len().hash(state);
        for (id, early) in &self.early {
            (id, early.binding, &early.timestamps).hash(state);
        }
        (self.unproven.len(), self.closing.len(), self.awake.len()).hash(state);
        self.mistake.waiting.iter().for_each(|command| command.id.hash(state));
    }
}
