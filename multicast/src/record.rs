//! What a group's log holds. Applying the records in order is the only way that replicated state changes.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use smallvec::{Array, SmallVec};

use crate::by_group::ByGroup;
use crate::command::Command;
use crate::error::Error;
use crate::ids::{Ballot, CommandId, GroupId, LogIndex, SessionId, Timestamp, VectorClock};
use crate::membership::Membership;

/// Version of the encoding of [`Record`], its first byte.
pub const RECORD_VERSION: u8 = 2;

/// The most bytes that one encoded record may have: room for a `Finish` with the largest contributions.
pub const RECORD_BYTES_MAX: usize = 16 << 20;

/// A place in a log together with the ballot of the entry there: equal positions mean equal logs up to there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Position {
    /// The ballot in which the entry was made. First, so that the order of positions is "how advanced a log is".
    pub ballot: Ballot,
    /// The slot.
    pub index: LogIndex,
}

/// One slot of a log as it lies on disk and travels. The record is encoded once, by the primary that made it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The slot.
    pub index: LogIndex,
    /// The ballot in which a primary put it there.
    pub ballot: Ballot,
    /// The encoded [`Record`].
    pub record: Bytes,
}

impl Entry {
    /// The entry's position.
    #[must_use]
    pub fn position(&self) -> Position {
        Position { ballot: self.ballot, index: self.index }
    }

    /// How many bytes it counts for in batches and windows.
    #[must_use]
    pub fn len_bytes(&self) -> usize {
        self.record.len() + ENTRY_OVERHEAD_BYTES
    }
}

/// What an entry costs beside its record.
const ENTRY_OVERHEAD_BYTES: usize = 32;

/// Why a group will never prepare a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    /// The session is not open in the group.
    UnknownSession,
    /// The client said that it needs no replies below a higher sequence any more.
    StaleSequence,
    /// The client leaves too many replies of the session unacknowledged.
    BeyondWindow,
    /// The id is bound to other destinations or another content.
    IdReused,
}

/// Who refused a command, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rejection {
    /// The destination that will never prepare it.
    pub by: GroupId,
    /// Why.
    pub reason: Refusal,
}

/// What one destination gives to a command of several groups, from its committed log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contribution {
    /// What the machine contributed.
    pub value: Bytes,
    /// Where in that group's log it was computed: whoever sees the effect has seen that group up to there …
    pub index: LogIndex,
    /// … and what that group's state depended on there.
    #[serde(deserialize_with = "crate::record::deserialize_shared")]
    pub depends_on: Arc<VectorClock>,
}

/// One log record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Record {
    /// Nothing: starts a ballot.
    Noop,
    /// A command of this group alone: executes.
    Single {
        /// The command.
        #[serde(deserialize_with = "crate::record::deserialize_shared")]
        command: Arc<Command>,
        /// Its place in the order.
        timestamp: Timestamp,
    },
    /// A command of several groups: locks its keys; the timestamp is a fact once this is committed.
    Prepare {
        /// The command.
        #[serde(deserialize_with = "crate::record::deserialize_shared")]
        command: Arc<Command>,
        /// This group's proposal.
        timestamp: Timestamp,
    },
    /// All destinations have prepared: computes this group's contribution, keeps the locks.
    Commit {
        /// The command.
        id: CommandId,
        /// The maximum of all proposals.
        timestamp: Timestamp,
    },
    /// All destinations have contributed: executes, unlocks.
    Finish {
        /// The command.
        id: CommandId,
        /// What the other destinations contributed.
        contributions: ByGroup<Contribution>,
    },
    /// This group will never prepare the command. Has no effect after its `Prepare`.
    Refuse {
        /// The command.
        id: CommandId,
        /// What the id was bound to in the proposal that is refused.
        binding: u64,
        /// The proposal's destinations, all of which must learn of it.
        groups: Vec<GroupId>,
        /// Why.
        reason: Refusal,
    },
    /// Another destination refused the command: unlocks.
    Abort {
        /// The command.
        id: CommandId,
        /// Who refused, and why.
        rejection: Rejection,
    },
    /// No destination needs anything of these any more: drops contributions and refusals.
    Forget {
        /// The commands.
        ids: Vec<CommandId>,
    },
    /// Opens a session.
    SessionOpen {
        /// The session.
        session: SessionId,
        /// When.
        timestamp: Timestamp,
    },
    /// Closes sessions, on request or because they expired.
    SessionClose {
        /// The sessions.
        sessions: Vec<SessionId>,
        /// When.
        timestamp: Timestamp,
    },
    /// Moves the replicated time of an idle group.
    Tick {
        /// When.
        timestamp: Timestamp,
    },
    /// The group's members from here on: it counts in each log as soon as it is there, committed or not.
    Config {
        /// The members.
        membership: Arc<Membership>,
    },
}

impl Record {
    /// The record as it is logged.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        self.encode_in(&mut BytesMut::new())
    }

    /// The record as it is logged, in memory that it shares with others.
    pub(crate) fn encode_in(&self, room: &mut BytesMut) -> Bytes {
        let payload = match self {
            Record::Single { command, .. } | Record::Prepare { command, .. } => command.payload.len(),
            _ => 0,
        };
        // Growing step by step is dear.
        room.reserve(192 + payload);
        room.put_u8(RECORD_VERSION);
        encode_behind(self, room);
        room.split().freeze()
    }

    /// Reads a logged record back.
    ///
    /// # Errors
    /// If the bytes are no record of this version.
    pub fn decode(bytes: &[u8]) -> Result<Record, Error> {
        let record = decode_versioned("log record", RECORD_VERSION, RECORD_BYTES_MAX, bytes)?;
        match &record {
            Record::Config { membership } if !membership.is_valid() => {
                let reason = "a membership that no group can have".to_owned();
                Err(Error::Malformed { what: "log record", len_bytes: bytes.len(), reason })
            }
            _ => Ok(record),
        }
    }
}

/// A buffer that begins with a version byte and need not grow up to `len` bytes: growing by doubling is dear.
pub(crate) fn room_for(version: u8, len: usize) -> Vec<u8> {
    let mut room = Vec::with_capacity(1 + len);
    room.push(version);
    room
}

/// Appends the postcard encoding of plain data.
pub(crate) fn encode_behind<T: Serialize + ?Sized, B: BufMut>(value: &T, buffer: &mut B) {
    let behind = Behind { buffer, gathered: [0; GATHERED_MAX], len: 0 };
    postcard::serialize_with_flavor(value, behind).expect("plain data always encodes");
}

/// Plain data is many small pieces: so many bytes of them go to the buffer together.
const GATHERED_MAX: usize = 64;

/// Where [`encode_behind`] writes.
struct Behind<'a, B> {
    buffer: &'a mut B,
    gathered: [u8; GATHERED_MAX],
    len: usize,
}

impl<B: BufMut> Behind<'_, B> {
    fn pass_on(&mut self) {
        self.buffer.put_slice(&self.gathered[..self.len]);
        self.len = 0;
    }
}

impl<B: BufMut> postcard::ser_flavors::Flavor for Behind<'_, B> {
    type Output = ();

    #[inline]
    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        if self.len == GATHERED_MAX {
            self.pass_on();
        }
        self.gathered[self.len] = byte;
        self.len += 1;
        Ok(())
    }

    #[inline]
    fn try_extend(&mut self, bytes: &[u8]) -> postcard::Result<()> {
        if self.len + bytes.len() > GATHERED_MAX {
            self.pass_on();
        }
        if bytes.len() > GATHERED_MAX {
            self.buffer.put_slice(bytes);
            return Ok(());
        }
        self.gathered[self.len..self.len + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
        Ok(())
    }

    fn finalize(mut self) -> postcard::Result<()> {
        self.pass_on();
        Ok(())
    }
}

/// A sequence of few. However many its sender claims, memory is taken as they come.
pub(crate) fn deserialize_few<'de, A: Array<Item: Deserialize<'de>>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<SmallVec<A>, D::Error> {
    struct Few<A>(PhantomData<A>);

    impl<'de, A: Array<Item: Deserialize<'de>>> Visitor<'de> for Few<A> {
        type Value = SmallVec<A>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a sequence")
        }

        fn visit_seq<S: SeqAccess<'de>>(self, mut sequence: S) -> Result<SmallVec<A>, S::Error> {
            let mut few = SmallVec::new();
            while let Some(item) = sequence.next_element()? {
                few.push(item);
            }
            Ok(few)
        }
    }

    deserializer.deserialize_seq(Few(PhantomData))
}

/// What is shared is made where it stays: serde itself would make a box first, and copy it.
pub(crate) fn deserialize_shared<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Arc<T>, D::Error> {
    T::deserialize(deserializer).map(Arc::new)
}

/// Decodes a postcard value behind a version byte; all of the bytes must be used.
pub(crate) fn decode_versioned<'a, T: Deserialize<'a>>(
    what: &'static str,
    known: u8,
    limit_bytes: usize,
    bytes: &'a [u8],
) -> Result<T, Error> {
    let len_bytes = bytes.len();
    if len_bytes > limit_bytes {
        return Err(Error::TooLarge { what, len_bytes, limit_bytes });
    }
    let malformed = |reason: String| Error::Malformed { what, len_bytes, reason };
    let (&found, body) = bytes.split_first().ok_or_else(|| malformed("empty".to_owned()))?;
    if found != known {
        return Err(Error::UnknownVersion { what, found, known });
    }
    let (value, rest) = postcard::take_from_bytes(body).map_err(|error| malformed(error.to_string()))?;
    if !rest.is_empty() {
        return Err(malformed(format!("{} bytes too many", rest.len())));
    }
    Ok(value)
}
