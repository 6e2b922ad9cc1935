//! Sessions: what makes a command execute once, however often and wherever it arrives.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{OrderState, SESSION_WINDOW};
use crate::command::Command;
use crate::ids::{CommandId, LogIndex, SessionId};
use crate::order::rows::RowKey;
use crate::record::Rejection;

/// One open session.
#[derive(Clone, Debug, Default)]
pub(crate) struct Session {
    /// Where it began. What has the same id and was settled before belongs to one that has ended.
    pub(crate) opened: LogIndex,
    /// The client needs no replies below this sequence, and nothing below it will be executed any more.
    pub(crate) floor: u64,
    /// What was settled at or above the floor, in any order of sequences.
    pub(crate) replies: BTreeMap<u64, Stored>,
}

/// What is left of a session that has ended: should it be opened again, nothing that it has executed executes once more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ended {
    /// Where it ended.
    pub(crate) index: LogIndex,
    /// Above every sequence of which this group had heard.
    pub(crate) floor: u64,
}

/// Ended sessions that a group remembers; at the bound the one that ended first goes. A client that comes back with an id so
/// old breaks the rule that ids are drawn anew.
const ENDED_MAX: usize = 16_384;

/// A settled command of a session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stored {
    /// What the id is bound to.
    pub(crate) binding: u64,
    /// Where it was settled: what the result tells is as of then, however late it is asked for again.
    pub(crate) index: LogIndex,
    pub(crate) result: Result<Bytes, Rejection>,
    /// The row that holds it, if one does.
    #[serde(skip)]
    pub(super) row: Option<LogIndex>,
}

impl OrderState {
    /// Remembers a session that has just been closed.
    pub(super) fn remember_ended(&mut self, id: SessionId, session: &Session) {
        let unfinished = self.prepared.unsorted().map(|(id, _)| id);
        let own = unfinished.chain(self.settled.unsorted().map(|(id, _)| id)).filter(|other| other.session == id);
        let last = session.replies.last_key_value().map(|(&sequence, _)| sequence);
        let heard_of = own.map(|own| own.sequence).chain(last).max();
        let floor = heard_of.map_or(0, |sequence| sequence.saturating_add(1)).max(session.floor);
        self.ended.insert(id, Ended { index: self.applied, floor });
        self.dirty.insert(RowKey::Ended(id));
        if self.ended.len() > ENDED_MAX {
            let first = self.ended.iter().min_by_key(|(id, ended)| (ended.index, **id)).map(|(&id, _)| id);
            first.into_iter().for_each(|id| self.forget_ended(id));
        }
    }

    /// The floor with which a session begins.
    pub(super) fn first_floor(&mut self, id: SessionId) -> u64 {
        let floor = self.ended.get(&id).map_or(0, |ended| ended.floor);
        self.forget_ended(id);
        floor
    }

    fn forget_ended(&mut self, id: SessionId) {
        if self.ended.remove(&id).is_some() {
            self.dirty.insert(RowKey::Ended(id));
        }
    }

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
            session.replies.insert(id.sequence, Stored { binding, index, result, row: None });
            self.note_reply(id);
        }
        self.raise_floor(id, acknowledged_below);
    }

    /// Drops what the client needs no more.
    fn raise_floor(&mut self, id: CommandId, acknowledged_below: u64) {
        let Some(session) = self.sessions.get_mut(&id.session) else { return };
        // A client cannot have the reply to the command that it is sending.
        let floor = acknowledged_below.min(id.sequence);
        if floor <= session.floor {
            return;
        }
        session.floor = floor;
        self.dirty.insert(RowKey::Session(id.session));
        while let Some(entry) = session.replies.first_entry() {
            if *entry.key() >= floor {
                break;
            }
            self.reply_rows.drop_reply(entry.remove().row, &mut self.dirty);
        }
    }
}
