//! What replicas tell each other.
//!
//! Inside a group (voter to voter):
//!
//! | message | who, when | what it promises |
//! | --- | --- | --- |
//! | `Probe` | a voter that misses its primary, before it campaigns | nothing |
//! | `ProbeAnswer` | the probed voter, at once | nothing; willing if it misses its primary too |
//! | `Campaign` | a voter that a quorum is willing to follow; its own promise is durable | nothing |
//! | `Promise` | a voter, once its promise is durable | takes nothing from lower ballots any more; its log ends there |
//! | `Outbid` | a voter that promised a higher ballot | nothing; makes the sender give up |
//! | `Fetch` | a candidate whose log is not the most advanced of its quorum | nothing |
//! | `Fetched` | a voter that promised the candidate's ballot | these entries are in its log there |
//! | `Append` | the primary: entries, heartbeat and commit index in one | everything up to `committed` is on a quorum |
//! | `Appended` | a follower, once durable | its log equals the primary's up to `matched`, and is on disk |
//! | `AppendRefused` | a follower that lacks the entry before the first | nothing; says where its log ends |
//! | `TakeOver` | a primary to the preferred one, once that is up to date | nothing; asks it to campaign |
//! | `TooFarBehind` | a primary or the owner of the best log, to a voter that needs what was dropped | nothing |
//! | `Clock` | a voter to the primary or candidate that it answers, now and then | nothing |
//! | `Members` | a replica to one that probes and is no member any more | these are the members, committed |
//!
//! Between groups (primary to primary); a fact is committed in the sender's log, so it holds whoever is primary:
//!
//! | message | who, when | what it promises |
//! | --- | --- | --- |
//! | `Propose` | a primary that takes or has prepared a command, to destinations that have not told their timestamp | nothing |
//! | `Facts` | a destination, when a fact about a command is committed, or when asked | each fact in it, for ever |
//! | `NotPrimary` | a replica that got either of these and is no primary | nothing; says who may be |
//! | `Busy` | a primary that has no room for a proposed command | nothing; asks to be asked again soon |
//! | `HowFar` | a primary whose clients see ever more of a group, to all its voters: when one has seen more than is known, and now and then | nothing |
//! | `Reached` | a voter, whatever it is in its group: at once, and for a while whenever more is committed | all up to `committed` is; its disk has nothing behind `last` |
//! | `Members` | a primary whose group's members have changed, to all replicas that it knows; any replica beside `NotPrimary`, or when asked | these are its group's members, committed |
//! | `AskMembers` | a replica that hears one which it does not know, or of a newer membership | nothing |

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use crate::command::Command;
use crate::error::Error;
use crate::ids::{Ballot, CommandId, Incarnation, LogIndex, ReplicaId, Timestamp};
use crate::membership::Membership;
use crate::record::{Contribution, Entry, Position, Rejection, decode_versioned, encode_behind};

/// Version of the encoding of [`Message`], its first byte. Variants and fields are only ever appended with a new version.
pub const MESSAGE_VERSION: u8 = 4;

/// The most bytes that one encoded message may have.
pub const MESSAGE_BYTES_MAX: usize = 20 << 20;

/// In place of a question's number: the sender tells by itself, so this is no answer to anything.
pub const UNASKED: u64 = 0;

/// One message. See the module's table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message {
    /// Would you follow me?
    Probe {
        /// The round of probing, to match answers.
        ballot: Ballot,
        /// The sender's disk.
        incarnation: Incarnation,
        /// The version of the membership in its log.
        version: u64,
    },
    /// Answers `Probe`.
    ProbeAnswer {
        /// The probe's.
        ballot: Ballot,
        /// Yes.
        willing: bool,
        /// The highest ballot that the answering voter has promised.
        promised: Ballot,
        /// The sender's disk.
        incarnation: Incarnation,
    },
    /// Follow me in this ballot.
    Campaign {
        /// The ballot.
        ballot: Ballot,
    },
    /// Answers `Campaign`.
    Promise {
        /// The campaign's.
        ballot: Ballot,
        /// The end of the voter's log.
        last: Position,
        /// The disk that the promise is on: another one promises nothing.
        incarnation: Incarnation,
    },
    /// Answers anything of a ballot below the promised one.
    Outbid {
        /// The higher ballot.
        promised: Ballot,
    },
    /// Give me your log behind this index.
    Fetch {
        /// The candidate's ballot.
        ballot: Ballot,
        /// The last index that the candidate has of it.
        after: LogIndex,
    },
    /// Answers `Fetch`.
    Fetched {
        /// The candidate's ballot.
        ballot: Ballot,
        /// Just before the first entry. Later than asked if the log was dropped up to there: the candidate must have the
        /// first entry, or it is too far behind.
        after: LogIndex,
        /// The entries; none if they cannot be read.
        entries: Vec<Entry>,
    },
    /// Entries, heartbeat, commit index.
    Append {
        /// The primary's ballot.
        ballot: Ballot,
        /// The position just before the first entry.
        previous: Position,
        /// The entries, dense. May be empty.
        entries: Vec<Entry>,
        /// Everything up to here is on a quorum.
        committed: LogIndex,
        /// Every member has everything up to here on disk.
        everywhere: LogIndex,
    },
    /// Answers `Append`.
    Appended {
        /// The append's.
        ballot: Ballot,
        /// The log equals the primary's up to here and is durable.
        matched: LogIndex,
        /// … on this disk.
        incarnation: Incarnation,
    },
    /// Answers `Append`.
    AppendRefused {
        /// The append's.
        ballot: Ballot,
        /// Where the append wanted to begin, to match answers.
        previous: LogIndex,
        /// The primary should try behind this index: it is in this log, or known to be committed.
        retry_after: LogIndex,
        /// The sender's disk.
        incarnation: Incarnation,
    },
    /// Campaign now, without probing.
    TakeOver {
        /// The ballot of the primary that says so.
        ballot: Ballot,
    },
    /// Prepare this, please.
    Propose {
        /// The command.
        #[serde(deserialize_with = "crate::record::deserialize_shared")]
        command: Arc<Command>,
    },
    /// What the sender's log says about a command.
    Facts(Facts),
    /// Not me.
    NotPrimary {
        /// Who, as far as known.
        hint: Option<ReplicaId>,
    },
    /// What you lack was dropped.
    TooFarBehind {
        /// The sender's ballot.
        ballot: Ballot,
        /// The oldest entry that the sender has.
        first: LogIndex,
    },
    /// What time it is.
    Clock {
        /// By the sender's clock, in nanoseconds since the Unix epoch.
        now_ns: u64,
    },
    /// Not now: too much is under way. Answers `Propose`.
    Busy {
        /// The proposed command.
        id: CommandId,
        /// … and what its id is bound to.
        binding: u64,
    },
    /// How far is your group's log? And for a while from now on, please.
    HowFar {
        /// To match answers. Not [`UNASKED`].
        question: u64,
    },
    /// Answers `HowFar`, or tells of progress to who has asked lately.
    Reached {
        /// The question's, or [`UNASKED`].
        question: u64,
        /// Committed up to here at least.
        committed: LogIndex,
        /// The end of the sender's log on disk.
        last: LogIndex,
        /// The version of the membership that this log ends with, committed or not.
        version: u64,
        /// The sender's disk.
        incarnation: Incarnation,
    },
    /// My group's members, as my log has them committed.
    Members(Membership),
    /// Who are your group's members, if you know of a newer version?
    AskMembers {
        /// The one that is known.
        version: u64,
    },
    /// What the machine's state at an index came to, between the replicas of a group. For the driver: the core takes no notice.
    Digest {
        /// The index.
        index: LogIndex,
        /// The state's digest behind it.
        digest: u128,
    },
    /// My state is not the group's: send me a copy of yours. For the driver, like `Digest`.
    AskCopy {
        /// The sender's disk.
        incarnation: Incarnation,
        /// Its state is of this index: only a later one can take its place.
        applied: LogIndex,
    },
}

/// What a destination's log says about a command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// The command.
    pub id: CommandId,
    /// What its id is bound to: destinations and content. Facts about another binding are not facts about this command.
    pub binding: u64,
    /// Prepared, with this proposal.
    pub timestamp: Option<Timestamp>,
    /// Committed, with this contribution.
    pub contribution: Option<Contribution>,
    /// Will never be prepared by the sender: it, or somebody whose refusal it has logged, refused.
    pub refused: Option<Rejection>,
    /// The sender has executed or given up the command (or never had it) and needs nothing about it any more.
    pub closed: bool,
    /// The sender wants to know what the receiver's log says.
    pub ask: bool,
}

/// How an encoded [`Message::Append`] begins, behind the version.
const APPEND_TAG: u8 = 7;

/// A [`Message::Append`] as it came.
#[derive(Deserialize)]
struct TaggedAppend<'a> {
    _tag: u8,
    ballot: Ballot,
    previous: Position,
    #[serde(borrow)]
    entries: Vec<BorrowedEntry<'a>>,
    committed: LogIndex,
    everywhere: LogIndex,
}

/// An [`Entry`] as it came.
#[derive(Deserialize)]
struct BorrowedEntry<'a> {
    index: LogIndex,
    ballot: Ballot,
    record: &'a [u8],
}

/// The entries come into one piece of memory: they are dropped together, too. They have it for themselves: kept for long, they
/// must not keep what else has come.
fn decode_append(bytes: &Bytes) -> Result<Message, Error> {
    let append: TaggedAppend<'_> = decode_versioned("message", MESSAGE_VERSION, MESSAGE_BYTES_MAX, bytes)?;
    let TaggedAppend { ballot, previous, entries, committed, everywhere, .. } = append;
    let share = |BorrowedEntry { index, ballot, record }| Entry { index, ballot, record: bytes.slice_ref(record) };
    let entries = entries.into_iter().map(share).collect();
    Ok(Message::Append { ballot, previous, entries, committed, everywhere })
}

impl Message {
    /// The message as it travels.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut buffer = BytesMut::new();
        self.encode_behind(&mut buffer);
        buffer.freeze()
    }

    /// Appends the message as it travels.
    pub fn encode_behind(&self, buffer: &mut BytesMut) {
        let records = match self {
            Message::Append { entries, .. } => entries.iter().map(|entry| entry.record.len() + 32).sum(),
            _ => 0,
        };
        // Growing step by step is dear.
        buffer.reserve(128 + records);
        buffer.put_u8(MESSAGE_VERSION);
        encode_behind(self, buffer);
    }

    /// Reads a message.
    ///
    /// # Errors
    /// If the bytes are no message of this version, or too many.
    pub fn decode(bytes: &[u8]) -> Result<Message, Error> {
        if bytes.get(1) == Some(&APPEND_TAG) && bytes.len() <= MESSAGE_BYTES_MAX {
            return decode_append(&Bytes::copy_from_slice(bytes));
        }
        let message = decode_versioned("message", MESSAGE_VERSION, MESSAGE_BYTES_MAX, bytes)?;
        match &message {
            Message::Members(membership) if !membership.is_valid() => {
                let reason = "a membership that no group can have".to_owned();
                Err(Error::Malformed { what: "message", len_bytes: bytes.len(), reason })
            }
            _ => Ok(message),
        }
    }
}
