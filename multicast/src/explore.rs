//! For the exhaustive exploration in this crate's tests: planted mistakes, and what tells two cores apart.

use std::hash::{Hash, Hasher};

use crate::core::Core;
use crate::ids::{CommandId, GroupId};
use crate::planted::Planted;

impl Core {
    /// Gets the protocol wrong from now on.
    pub fn plant(&mut self, planted: Planted) {
        self.log.plant(planted);
        self.planted = Some(planted);
        if let Some(sequencer) = &mut self.sequencer {
            sequencer.plant(Some(planted));
        }
    }

    /// True if the timestamp of that group is missing, and another one, too: it leaves the clock as it is, so that whatever is asked
    /// for before or after it gets the same timestamps.
    #[must_use]
    pub fn lacks_more_than(&self, id: CommandId, group: GroupId) -> bool {
        self.sequencer.as_ref().is_some_and(|sequencer| sequencer.lacks_more_than(id, group))
    }

    /// Hashes all that may make a difference to what this core does from now on, for a primary that is alone in its group,
    /// with everything on disk and applied, while time stands still and clients carry no clocks. The log then only grows: no
    /// rule looks back into it. If other groups may ask again for what is settled, that counts, too.
    ///
    /// # Panics
    /// If something is not on disk, not applied or not sent.
    pub fn hash_behaviour(&self, others_may_ask: bool, state: &mut impl Hasher) {
        let status = self.status();
        assert!(status.applied == status.last && self.outputs.is_empty(), "everything is through");
        (status.group, status.role as u8, self.now).hash(state);
        self.order.hash_behaviour(others_may_ask, state);
        if let Some(sequencer) = &self.sequencer {
            sequencer.hash_behaviour(state);
        }
    }
}
