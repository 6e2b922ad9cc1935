//! For the exhaustive exploration in this crate's tests: planted mistakes, and what tells two cores apart.

use std::hash::{Hash, Hasher};

use crate::core::Core;
use crate::ids::{CommandId, GroupId, Timestamp};
use crate::planted::Planted;

/// What counts in [`Core::hash_behaviour`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kept {
    /// What is settled: others may ask for it again.
    pub settled: bool,
    /// This group's own timestamps: else all that lack them have been sent them, and get them.
    pub proposals: bool,
    /// The clock: else no command will get a timestamp here any more.
    pub clock: bool,
}

/// What a primary's clock and its waiting commands are to each other.
#[derive(Clone, Debug, Default)]
pub struct Places {
    /// What was last given to a command, or became the final timestamp of one.
    pub clock: Timestamp,
    /// All that wait here, for facts or for each other, by id.
    pub waiting: Vec<Place>,
}

/// Where a waiting command stands.
#[derive(Clone, Debug)]
pub struct Place {
    /// The command.
    pub id: CommandId,
    /// The largest timestamp of it that is known.
    pub bound: Timestamp,
    /// The groups whose timestamps are missing: of none if `bound` is the final one.
    pub lacks: Vec<GroupId>,
}

impl Core {
    /// Gets the protocol wrong from now on.
    pub fn plant(&mut self, planted: Planted) {
        self.log.plant(planted);
        self.planted = Some(planted);
        if let Some(sequencer) = &mut self.sequencer {
            sequencer.plant(Some(planted));
        }
    }

    /// What waits here, and where. Nothing on a replica that does not take commands.
    #[must_use]
    pub fn places(&self) -> Places {
        self.sequencer.as_ref().map(crate::sequencer::Sequencer::places).unwrap_or_default()
    }

    /// Hashes all that may make a difference to what this core does from now on, for a primary that is alone in its group,
    /// with everything on disk and applied, while time stands still and clients carry no clocks. The log then only grows: no
    /// rule looks back into it. `kept` says what else may be left out.
    ///
    /// # Panics
    /// If something is not on disk, not applied or not sent.
    pub fn hash_behaviour(&self, kept: Kept, state: &mut impl Hasher) {
        let status = self.status();
        assert!(status.applied == status.last && self.outputs.is_empty(), "everything is through");
        (status.group, status.role as u8, self.now).hash(state);
        self.order.hash_behaviour(kept, state);
        if let Some(sequencer) = &self.sequencer {
            sequencer.hash_behaviour(kept, state);
        }
    }
}
