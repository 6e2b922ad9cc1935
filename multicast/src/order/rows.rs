//! The replicated state as rows of a key-value store: only rows that changed are written.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::sessions::{Session, Stored};
use super::{OrderState, Prepared, Settled};
use crate::error::Error;
use crate::ids::{CommandId, GroupId, LogIndex, SessionId, Timestamp, VectorClock};
use crate::membership::Membership;

/// Version of the encoding of rows, the first byte of each value.
pub const ROW_VERSION: u8 = 4;

/// Names one row. Its order is that of the encoded keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum RowKey {
    /// `b`: the snapshot that this state came with. Each replica's own, so no part of the digest.
    Copied,
    /// `c`: the members, if they are others than at the founding.
    Members,
    /// `e` session: it has ended.
    Ended(SessionId),
    /// `m`: applied index, clock, dependencies.
    Meta,
    /// `o` id: settled, other destinations may ask.
    Settled(CommandId),
    /// `p` id: prepared.
    Prepared(CommandId),
    /// `r` index: replies, by the index as of which they were written down.
    Replies(LogIndex),
    /// `s` session: where it began, its floor.
    Session(SessionId),
}

/// Rows that differ from what was last drained.
#[derive(Clone, Debug, Default)]
pub(super) struct Dirty {
    /// Some perhaps more than once.
    keys: Vec<RowKey>,
    /// So many of them differ from each other; they come first.
    known: usize,
    /// [`RowKey::Meta`], which every entry changes, is not among them.
    is_meta: bool,
}

impl Dirty {
    pub(super) fn insert(&mut self, key: RowKey) {
        if key == RowKey::Meta {
            self.is_meta = true;
            return;
        }
        if self.keys.last() == Some(&key) {
            return;
        }
        self.keys.push(key);
        // Where nobody drains, rows that change often must not fill the memory.
        if self.keys.len() > 2 * self.known + DIRTY_ROOM {
            self.tidy();
        }
    }

    fn clear(&mut self) {
        self.keys.clear();
        (self.known, self.is_meta) = (0, false);
    }

    fn tidy(&mut self) {
        self.keys.sort_unstable();
        self.keys.dedup();
        self.known = self.keys.len();
    }

    /// By key, each once.
    fn take(&mut self) -> Vec<RowKey> {
        if std::mem::take(&mut self.is_meta) {
            self.keys.push(RowKey::Meta);
        }
        self.tidy();
        self.known = 0;
        let room = Vec::with_capacity(self.keys.len());
        std::mem::replace(&mut self.keys, room)
    }
}

/// So many keys are not looked through.
const DIRTY_ROOM: usize = 1024;

#[derive(Serialize, Deserialize)]
struct Meta {
    applied: LogIndex,
    clock: Timestamp,
    #[serde(deserialize_with = "crate::record::deserialize_shared")]
    depends_on: Arc<VectorClock>,
}

impl RowKey {
    fn encode(self) -> Vec<u8> {
        let words: &[u64] = match &self {
            RowKey::Settled(id) | RowKey::Prepared(id) => &[id.session.0, id.sequence],
            RowKey::Replies(index) => &[index.0],
            RowKey::Ended(session) | RowKey::Session(session) => &[session.0],
            RowKey::Copied | RowKey::Members | RowKey::Meta => &[],
        };
        let mut key = Vec::with_capacity(1 + 8 * words.len());
        key.push(self.tag());
        words.iter().for_each(|word| key.extend_from_slice(&word.to_be_bytes()));
        key
    }

    fn tag(self) -> u8 {
        match self {
            RowKey::Copied => b'b',
            RowKey::Members => b'c',
            RowKey::Ended(_) => b'e',
            RowKey::Meta => b'm',
            RowKey::Settled(_) => b'o',
            RowKey::Prepared(_) => b'p',
            RowKey::Replies(_) => b'r',
            RowKey::Session(_) => b's',
        }
    }

    fn decode(key: &[u8]) -> Result<RowKey, Error> {
        let corrupt = || Error::CorruptRow(format!("key {key:02x?}"));
        let (&tag, rest) = key.split_first().ok_or_else(corrupt)?;
        let word = |at: usize| -> Result<u64, Error> {
            let bytes = rest.get(at..at + 8).and_then(|bytes| <[u8; 8]>::try_from(bytes).ok()).ok_or_else(corrupt)?;
            Ok(u64::from_be_bytes(bytes))
        };
        let id = || Ok::<_, Error>(CommandId { session: SessionId(word(0)?), sequence: word(8)? });
        let expect_len = |len: usize| if rest.len() == len { Ok(()) } else { Err(corrupt()) };
        match tag {
            b'e' => expect_len(8).and_then(|()| word(0)).map(|session| RowKey::Ended(SessionId(session))),
            b'b' => expect_len(0).map(|()| RowKey::Copied),
            b'c' => expect_len(0).map(|()| RowKey::Members),
            b'm' => expect_len(0).map(|()| RowKey::Meta),
            b'o' => expect_len(16).and_then(|()| id()).map(RowKey::Settled),
            b'p' => expect_len(16).and_then(|()| id()).map(RowKey::Prepared),
            b'r' => expect_len(8).and_then(|()| word(0)).map(|index| RowKey::Replies(LogIndex(index))),
            b's' => expect_len(8).and_then(|()| word(0)).map(|session| RowKey::Session(SessionId(session))),
            _ => Err(corrupt()),
        }
    }
}

impl OrderState {
    /// The state that [`OrderState::drain_changes`] wrote, from all of its rows in any order.
    ///
    /// # Errors
    /// [`Error::CorruptRow`] for a row that this version did not write.
    pub fn load(group: GroupId, rows: impl IntoIterator<Item = (Vec<u8>, Vec<u8>)>) -> Result<Self, Error> {
        let mut state = OrderState::new(group);
        let mut replies: Vec<(LogIndex, Vec<(CommandId, Stored)>)> = Vec::new();
        for (key, value) in rows {
            match RowKey::decode(&key)? {
                RowKey::Meta => {
                    let meta: Meta = decode_value(&value)?;
                    (state.applied, state.clock, state.depends_on) = (meta.applied, meta.clock, meta.depends_on);
                }
                RowKey::Copied => state.copied = Some(Arc::new(decode_value(&value)?)),
                RowKey::Members => {
                    let membership: Membership = decode_value(&value)?;
                    if !membership.is_valid() {
                        return Err(Error::CorruptRow("a membership that no group can have".to_owned()));
                    }
                    state.membership = Some(Arc::new(membership));
                }
                RowKey::Session(session) => {
                    let (opened, floor) = decode_value(&value)?;
                    state.sessions.insert(session, Session { opened, floor, replies: BTreeMap::new() });
                }
                RowKey::Ended(session) => {
                    state.ended.insert(session, decode_value(&value)?);
                }
                RowKey::Replies(row) => replies.push((row, decode_value(&value)?)),
                RowKey::Settled(id) => {
                    state.settled.insert(id, decode_value(&value)?);
                }
                RowKey::Prepared(id) => {
                    let prepared: Prepared = decode_value(&value)?;
                    let binding = prepared.command.binding();
                    state.prepared.insert(id, Prepared { binding, ..prepared });
                }
            }
        }
        for (row, replies) in replies {
            state.load_replies(row, replies)?;
        }
        // In the order in which they were locked, as on a replica that never restarted.
        let mut prepared: Vec<&Prepared> = state.prepared.unsorted().map(|(_, prepared)| prepared).collect();
        prepared.sort_by_key(|prepared| prepared.index);
        for prepared in prepared {
            let footprint = prepared.command.footprint(group).unwrap_or(&[]);
            state.locks.lock(prepared.command.id, prepared.index, footprint);
        }
        Ok(state)
    }

    /// What a row tells of sessions that still want it: it may hold what was dropped beside what was not.
    fn load_replies(&mut self, row: LogIndex, replies: Vec<(CommandId, Stored)>) -> Result<(), Error> {
        if row > self.applied || replies.iter().any(|(_, stored)| stored.index > row) {
            return Err(Error::CorruptRow(format!("replies of entries behind those of their row, {row}")));
        }
        let mut kept = Vec::new();
        for (id, stored) in replies {
            let wants = |session: &&mut Session| id.sequence >= session.floor && stored.index > session.opened;
            let Some(session) = self.sessions.get_mut(&id.session).filter(wants) else { continue };
            if session.replies.insert(id.sequence, Stored { row: Some(row), ..stored }).is_some() {
                return Err(Error::CorruptRow(format!("two replies to {id}")));
            }
            kept.push(id);
        }
        if kept.is_empty() {
            self.dirty.insert(RowKey::Replies(row));
        } else {
            self.keep_row(row, kept);
        }
        Ok(())
    }

    /// The rows changed since the last call, by key: the new value, or none for a row that is gone. Write them in the same
    /// batch as the machine's, whose state then has the same applied index.
    pub fn drain_changes(&mut self) -> Vec<(Vec<u8>, Option<Vec<u8>>)> {
        self.gather_replies();
        let dirty = self.dirty.take();
        dirty.into_iter().map(|key| (key.encode(), self.row(key))).collect()
    }

    /// For a replica that keeps no rows: they are not made.
    pub fn discard_changes(&mut self) {
        self.dirty.clear();
        self.forget_fresh_replies();
    }

    /// A hash of the whole state, the same on all replicas that have applied the same prefix. Costs a walk over all rows.
    #[must_use]
    pub fn digest(&self) -> u64 {
        let sessions = self.sessions.keys().map(|&session| RowKey::Session(session));
        // Which row holds a reply is each replica's own.
        let replies = self.sessions.iter().flat_map(|(&session, state)| {
            state.replies.iter().map(move |(&sequence, stored)| encode_value(&(session, sequence, stored)))
        });
        let prepared = self.prepared.ids().into_iter().map(RowKey::Prepared);
        let settled = self.settled.ids().into_iter().map(RowKey::Settled);
        let ended = self.ended.keys().map(|&session| RowKey::Ended(session));
        let members = self.membership.iter().map(|_| RowKey::Members);
        let keys = members.chain([RowKey::Meta]).chain(ended).chain(sessions).chain(prepared).chain(settled);
        let rows = keys.flat_map(|key| [key.encode(), self.row(key).unwrap_or_default()]);
        rows.chain(replies).fold(0, |hash, bytes| xxh3_64_with_seed(&bytes, hash))
    }

    fn row(&self, key: RowKey) -> Option<Vec<u8>> {
        match key {
            RowKey::Copied => self.copied.as_deref().map(encode_value),
            RowKey::Members => self.membership.as_deref().map(encode_value),
            RowKey::Meta => Some(encode_value(&Meta {
                applied: self.applied,
                clock: self.clock,
                depends_on: Arc::clone(&self.depends_on),
            })),
            RowKey::Session(session) => {
                self.sessions.get(&session).map(|session| encode_value(&(session.opened, session.floor)))
            }
            RowKey::Ended(session) => self.ended.get(&session).map(encode_value),
            RowKey::Replies(row) => self.replies_of_row(row).as_ref().map(encode_value),
            RowKey::Settled(id) => self.settled.get(id).map(encode_value::<Settled>),
            RowKey::Prepared(id) => self.prepared.get(id).map(encode_value::<Prepared>),
        }
    }
}

fn encode_value<T: Serialize>(value: &T) -> Vec<u8> {
    let mut row = crate::record::room_for(ROW_VERSION, 160);
    crate::record::encode_behind(value, &mut row);
    row
}

fn decode_value<T: for<'a> Deserialize<'a>>(bytes: &[u8]) -> Result<T, Error> {
    crate::record::decode_versioned("order row", ROW_VERSION, usize::MAX, bytes)
        .map_err(|error| Error::CorruptRow(error.to_string()))
}
