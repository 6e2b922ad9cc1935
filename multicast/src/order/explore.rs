//! What an exhaustive exploration needs to know of the replicated state.

use std::hash::{Hash, Hasher};

use super::{OrderState, Verdict};
use crate::explore::Kept;

impl OrderState {
    /// Everything here that may make a difference to the order of commands. Left out is: where in the log something stands
    /// and what it depends on (only readers and clients' clocks look at that); the clock, of which the sequencer has a later
    /// one; locks, which follow from the prepared commands; what is only written (`dirty`) or the same all the time (members).
    /// `kept` says what of the rest counts.
    pub(crate) fn hash_behaviour(&self, kept: Kept, state: &mut impl Hasher) {
        for (id, session) in &self.sessions {
            (id, session.floor, session.replies.len()).hash(state);
            for (sequence, stored) in &session.replies {
                (sequence, stored.binding, stored.result.is_ok()).hash(state);
            }
        }
        for (id, ended) in &self.ended {
            (id, ended.floor).hash(state);
        }
        self.prepared.len().hash(state);
        for (id, prepared) in self.prepared.sorted() {
            (id, kept.proposals.then_some(prepared.timestamp)).hash(state);
            if let Some(committed) = &prepared.committed {
                (committed.timestamp, &committed.contribution.value).hash(state);
            }
        }
        for (id, settled) in self.settled.sorted().into_iter().filter(|_| kept.settled) {
            (id, settled.binding).hash(state);
            if let Verdict::Executed { timestamp, contribution } = &settled.verdict {
                (timestamp, &contribution.value).hash(state);
            }
        }
    }
}
