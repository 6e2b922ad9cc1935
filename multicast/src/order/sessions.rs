//! Sessions: what makes a command execute once, however often and wherever it arrives.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{OrderState, SESSION_WINDOW};
use crate::command::Command;
use crate::ids::{CommandId, LogIndex};
use crate::order::rows::RowKey;
use crate::record::Rejection;

/// One open session.
#[derive(Clone, Debug, Default)]
pub(crate) struct Session {
    /// The client needs no replies below this sequence, and nothing below it will be executed any more.
    pub(crate) floor: u64,
    /// What was settled at or above the floor, in any order of sequences.
    pub(crate) replies: BTreeMap<u64, Stored>,
}

/// A settled command of a session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stored {
    /// What the id is bound to.
    pub(crate) binding: u64,
    /// Where it was settled: what the result tells is as of then, however late it is asked for again.
    pub(crate) index: LogIndex,
    pub(crate) result: Result<Bytes, Rejection>,
}

impl OrderState {
    /// True if the command's session leaves too many replies unacknowledged, counting what the command acknowledges. (Its
    /// sequences say nothing: they run over all groups, so each group sees them with gaps of any width.)
    pub(crate) fn session_is_full(&self, command: &Command) -> bool {
        let Some(session) = self.sessions.get(&command.id.session) else { return false };
        let floor = command.acknowledged_below.min(command.id.sequence);
        session.replies.len() >= SESSION_WINDOW && session.replies.range(floor..).count() >= SESSION_WINDOW
    }

    /// Keeps the reply if the session is open and may ask for it again, and drops those that it needs no more.
    pub(super) fn store_reply(
        &mut self,
        id: CommandId,
        binding: u64,
        result: Result<Bytes, Rejection>,
        acknowledged_below: u64,
    ) {
        let index = self.applied;
        let Some(session) = self.sessions.get_mut(&id.session) else { return };
        if id.sequence >= session.floor {
            session.replies.insert(id.sequence, Stored { binding, index, result });
            self.dirty.insert(RowKey::Reply(id));
        }
        // A client cannot have the reply to the command that it is sending.
        let floor = acknowledged_below.min(id.sequence);
        if floor <= session.floor {
            return;
        }
        session.floor = floor;
        self.dirty.insert(RowKey::Session(id.session));
        while let Some(entry) = session.replies.first_entry() {
            let sequence = *entry.key();
            if sequence >= floor {
                break;
            }
            entry.remove();
            self.dirty.insert(RowKey::Reply(CommandId { session: id.session, sequence }));
        }
    }
}
