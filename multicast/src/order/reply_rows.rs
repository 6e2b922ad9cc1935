//! Which row holds which reply. Most replies are dropped soon after they were stored, so with a row for each, most writes of
//! a busy group would be theirs. Those that were stored since rows were last drained share one; it goes with the last of them.

use std::collections::BTreeMap;

use super::OrderState;
use super::rows::{Dirty, RowKey};
use super::sessions::Stored;
use crate::ids::{CommandId, LogIndex};

/// Beyond so many rows the oldest gives what is left of it to the newest: a few replies that nobody acknowledges must not
/// keep all that was ever stored beside them.
const ROWS_MAX: usize = 1024;
/// So many replies are not looked through.
const FRESH_ROOM: usize = 1024;

/// The rows of replies.
#[derive(Clone, Debug, Default)]
pub(super) struct ReplyRows {
    /// In no row yet. Some are perhaps dropped again.
    fresh: Vec<CommandId>,
    /// So many of them were not, when that was last looked at.
    fresh_known: usize,
    /// By the log index as of which they were drained.
    rows: BTreeMap<LogIndex, Shared>,
}

#[derive(Clone, Debug, Default)]
struct Shared {
    /// What was written into it.
    replies: Vec<CommandId>,
    /// So many of them are still kept, and here.
    left: usize,
}

impl ReplyRows {
    /// A reply that was in this row is dropped; `None` if it was in none yet.
    pub(super) fn drop_reply(&mut self, row: Option<LogIndex>, dirty: &mut Dirty) {
        let Some(row) = row else { return };
        let Some(shared) = self.rows.get_mut(&row) else { return };
        shared.left -= 1;
        if shared.left == 0 {
            self.rows.remove(&row);
            dirty.insert(RowKey::Replies(row));
        }
    }
}

impl OrderState {
    /// A reply has come that is in no row yet.
    pub(super) fn note_reply(&mut self, id: CommandId) {
        self.reply_rows.fresh.push(id);
        // Where nobody drains, what was dropped must not fill the memory.
        if self.reply_rows.fresh.len() > 2 * self.reply_rows.fresh_known + FRESH_ROOM {
            let mut fresh = std::mem::take(&mut self.reply_rows.fresh);
            fresh.retain(|&id| self.reply(id).is_some());
            self.reply_rows.fresh_known = fresh.len();
            self.reply_rows.fresh = fresh;
        }
    }

    /// Puts replies that are in no row yet into one.
    pub(super) fn gather_replies(&mut self) {
        let mut moved = std::mem::take(&mut self.reply_rows.fresh);
        self.reply_rows.fresh_known = 0;
        let is_full = !moved.is_empty() && self.reply_rows.rows.len() >= ROWS_MAX;
        if let Some((row, oldest)) = is_full.then(|| self.reply_rows.rows.pop_first()).flatten() {
            self.dirty.insert(RowKey::Replies(row));
            let is_left = |id: &CommandId| self.reply(*id).is_some_and(|stored| stored.row == Some(row));
            moved.extend(oldest.replies.into_iter().filter(is_left));
        }
        let row = self.applied;
        moved.retain(|id| {
            let session = self.sessions.get_mut(&id.session);
            let stored = session.and_then(|session| session.replies.get_mut(&id.sequence));
            stored.is_some_and(|stored| stored.row.replace(row) != Some(row))
        });
        if !moved.is_empty() {
            self.keep_row(row, moved);
            self.dirty.insert(RowKey::Replies(row));
        }
    }

    /// This row holds these replies too.
    pub(super) fn keep_row(&mut self, row: LogIndex, replies: Vec<CommandId>) {
        let shared = self.reply_rows.rows.entry(row).or_default();
        shared.left += replies.len();
        shared.replies.extend(replies);
    }

    /// For a replica that keeps no rows.
    pub(super) fn forget_fresh_replies(&mut self) {
        self.reply_rows.fresh.clear();
        self.reply_rows.fresh_known = 0;
    }

    /// What a row is to hold; `None` if there is none.
    pub(super) fn replies_of_row(&self, row: LogIndex) -> Option<Vec<(CommandId, &Stored)>> {
        let shared = self.reply_rows.rows.get(&row)?;
        let here = |&id: &CommandId| Some((id, self.reply(id).filter(|stored| stored.row == Some(row))?));
        Some(shared.replies.iter().filter_map(here).collect())
    }

    fn reply(&self, id: CommandId) -> Option<&Stored> {
        self.sessions.get(&id.session)?.replies.get(&id.sequence)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use bytes::Bytes;

    use super::*;
    use crate::Inert;
    use crate::ids::{GroupId, SessionId, Timestamp};
    use crate::order::sessions::Session;
    use crate::record::Record;

    type Rows = BTreeMap<Vec<u8>, Vec<u8>>;

    const BUSY: SessionId = SessionId(1);
    const IDLE: SessionId = SessionId(2);

    fn open() -> (OrderState, Rows) {
        let mut order = OrderState::new(GroupId(0));
        for session in [BUSY, IDLE] {
            order.sessions.insert(session, Session::default());
            order.dirty.insert(RowKey::Session(session));
        }
        (order, Rows::new())
    }

    fn step(order: &mut OrderState, session: SessionId, sequence: u64, acknowledged_below: u64) {
        order.applied = order.applied.next();
        order.dirty.insert(RowKey::Meta);
        let result = Ok(Bytes::from_static(b"done"));
        order.store_reply(CommandId { session, sequence }, sequence, result, acknowledged_below);
    }

    /// Applies the changes, and expects that the rows stand for the state. Returns the writes.
    fn drain(order: &mut OrderState, rows: &mut Rows) -> usize {
        let changes = order.drain_changes();
        let count = changes.len();
        for (key, value) in changes {
            match value {
                Some(value) => rows.insert(key, value),
                None => rows.remove(&key),
            };
        }
        let loaded = OrderState::load(GroupId(0), rows.clone()).unwrap();
        assert_eq!(loaded.digest(), order.digest());
        count
    }

    fn rows_of_replies(rows: &Rows) -> usize {
        rows.keys().filter(|key| key[0] == b'r').count()
    }

    #[test]
    fn replies_of_one_batch_share_a_row_which_goes_with_the_last() {
        let (mut order, mut rows) = open();
        (1..=20).for_each(|sequence| step(&mut order, BUSY, sequence, 0));
        // The sessions, the state's head, one row of replies.
        assert_eq!(drain(&mut order, &mut rows), 4);
        step(&mut order, BUSY, 21, 20);
        drain(&mut order, &mut rows);
        assert_eq!(rows_of_replies(&rows), 2, "one of the first is left");
        step(&mut order, BUSY, 22, 22);
        drain(&mut order, &mut rows);
        assert_eq!(rows_of_replies(&rows), 1);
        let mut order = OrderState::load(GroupId(0), rows.clone()).unwrap();
        step(&mut order, BUSY, 23, 23);
        drain(&mut order, &mut rows);
        assert_eq!(rows_of_replies(&rows), 1, "a loaded state knows which row held what");
    }

    #[test]
    fn reply_that_is_dropped_before_rows_are_drained_is_in_none() {
        let (mut order, mut rows) = open();
        (1..=20).for_each(|sequence| step(&mut order, BUSY, sequence, sequence));
        drain(&mut order, &mut rows);
        let held = order.replies_of_row(order.applied).unwrap();
        assert_eq!(held.iter().map(|(id, _)| id.sequence).collect::<Vec<_>>(), [20]);
    }

    #[test]
    fn reply_that_nobody_acknowledges_moves_on_instead_of_keeping_a_row_of_others() {
        let (mut order, mut rows) = open();
        step(&mut order, IDLE, 1, 0);
        for sequence in 1..=2 * ROWS_MAX as u64 {
            // Every other one stays unacknowledged for long.
            step(&mut order, BUSY, sequence, sequence / 2);
            for change in order.drain_changes() {
                match change {
                    (key, Some(value)) => rows.insert(key, value),
                    (key, None) => rows.remove(&key),
                };
            }
            assert!(rows_of_replies(&rows) <= ROWS_MAX);
        }
        drain(&mut order, &mut rows);
        assert!(order.reply(CommandId { session: IDLE, sequence: 1 }).is_some());
    }

    #[test]
    fn row_of_a_session_that_has_ended_or_gone_on_is_dropped_after_loading() {
        let (mut order, mut rows) = open();
        step(&mut order, BUSY, 1, 0);
        step(&mut order, IDLE, 1, 0);
        drain(&mut order, &mut rows);
        let mut other = order.clone();
        // As if the row had been written before the others.
        other.sessions.remove(&IDLE);
        other.sessions.get_mut(&BUSY).unwrap().floor = 2;
        other.dirty.insert(RowKey::Meta);
        for session in [BUSY, IDLE] {
            other.dirty.insert(RowKey::Session(session));
        }
        let row = rows.iter().find(|(key, _)| key[0] == b'r').map(|(key, value)| (key.clone(), value.clone())).unwrap();
        let changes = other.drain_changes();
        let rows = changes.into_iter().filter_map(|(key, value)| Some((key, value?))).chain([row.clone()]);
        let mut loaded = OrderState::load(GroupId(0), rows).unwrap();
        assert!(loaded.sessions[&BUSY].replies.is_empty());
        assert_eq!(loaded.drain_changes(), [(row.0, None)]);
    }

    /// Its client breaks the rule that ids are drawn anew, and the group has forgotten that the session ended.
    #[test]
    fn reply_to_a_session_that_has_ended_is_none_to_one_of_the_same_id() {
        let (mut order, mut rows) = open();
        step(&mut order, BUSY, 1, 0);
        step(&mut order, IDLE, 1, 0);
        drain(&mut order, &mut rows);
        let apply = |order: &mut OrderState, record| _ = order.apply(order.applied.next(), &record, &mut Inert);
        let timestamp = Timestamp::default();
        apply(&mut order, Record::SessionClose { sessions: vec![BUSY], timestamp });
        order.ended.clear();
        apply(&mut order, Record::SessionOpen { session: BUSY, timestamp });
        assert_eq!(order.sessions[&BUSY].floor, 0);
        drain(&mut order, &mut rows);
        assert_eq!(rows_of_replies(&rows), 1, "it still holds the other session's");
        step(&mut order, BUSY, 1, 0);
        drain(&mut order, &mut rows);
    }

    #[test]
    fn row_from_beyond_the_state_is_refused() {
        let (mut order, mut rows) = open();
        step(&mut order, BUSY, 1, 0);
        drain(&mut order, &mut rows);
        rows.remove(&b"m"[..]);
        let error = OrderState::load(GroupId(0), rows).unwrap_err().to_string();
        assert!(error.contains("replies"), "{error}");
    }

    #[test]
    fn replies_that_come_and_go_where_nobody_drains_leave_nothing_behind() {
        let (mut order, _) = open();
        (1..=10 * FRESH_ROOM as u64).for_each(|sequence| step(&mut order, BUSY, sequence, sequence));
        assert!(order.reply_rows.fresh.len() <= 2 * FRESH_ROOM);
    }
}
