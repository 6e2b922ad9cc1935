//! What a core wants of its driver.

use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::command::Command;
use crate::ids::{Ballot, CommandId, GroupId, Incarnation, LogIndex, ReplicaId, SessionId};
use crate::membership::Membership;
use crate::message::Message;
use crate::record::{Entry, Refusal, Rejection};

/// One thing for the driver to do. In the order given.
#[derive(Clone, Debug)]
pub enum Output {
    /// Make durable, in the order of tokens, then tell [`crate::Core::handle_persisted`]. Nothing that depends on it is
    /// given out before.
    Persist {
        /// Grows by one each time. Telling a token tells all before it.
        token: u64,
        /// What.
        writes: Writes,
    },
    /// Send; may get lost.
    Send {
        /// To that replica of that group.
        to: (GroupId, ReplicaId),
        /// What.
        message: Message,
    },
    /// A submitted command had been executed before: here is its reply again.
    Reply(Reply),
    /// A submitted command was not taken. Nothing of it was logged here; it may be submitted again, under the same id,
    /// unless the reason says otherwise.
    Declined {
        /// The command.
        id: CommandId,
        /// Why.
        reason: Decline,
    },
    /// Opening or closing a session was not taken.
    SessionDeclined {
        /// The session.
        session: SessionId,
        /// Why.
        reason: Decline,
    },
    /// Read entries from the log on disk, from this index on, up to about so many bytes (at least one entry), and hand
    /// them to [`crate::Core::handle_log_read`]; none if it cannot. One at a time.
    ReadLog {
        /// The first.
        from: LogIndex,
        /// About how many bytes.
        bytes_max: usize,
    },
    /// A member of this group needs entries that were dropped: send it a copy of this replica's state, with
    /// [`crate::Core::snapshot`] in front, beside everything else; then, whatever became of it, call
    /// [`crate::Core::handle_snapshot_sent`]. Asked for once until then.
    SendSnapshot {
        /// To that replica …
        to: ReplicaId,
        /// … with that disk.
        incarnation: Incarnation,
    },
    /// For status, logs, tests.
    Event(Event),
}

/// What must reach the disk together, before the token is told. In the order of the fields.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Writes {
    /// The highest ballot promised.
    pub promised: Option<Ballot>,
    /// Known by now, to be kept beside the ballot that is promised by then: the log on disk is committed up to this index.
    /// Told only with something else that must be written.
    pub committed: Option<(Ballot, LogIndex)>,
    /// The whole log is void, and begins anew at this index, with the first of those to append: the state was replaced by
    /// another replica's. In one piece with what is here.
    pub begin_at: Option<LogIndex>,
    /// Entries from this index on are void.
    pub truncate_from: Option<LogIndex>,
    /// All entries that are kept, dense, up to the end of the log on disk: to be written again where new ones go, so that
    /// the old place can be freed. In one piece with what is here: after a crash they are there once or twice, never gone.
    /// See [`crate::Core::rewrite_kept`].
    pub rewrite: Vec<Entry>,
    /// Entries to append, dense.
    pub append: Vec<Entry>,
}

/// The reply to a client's command. Goes to the command's session, wherever that is connected now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The command.
    pub id: CommandId,
    /// The client's clock must cover this index of the group after the reply, beside the group's dependency vector.
    pub index: LogIndex,
    /// The machine's outcome; or it was not and will not be executed, under this id.
    pub result: Result<Bytes, Rejection>,
    /// What it means for whoever has seen other groups; empty for one of this group alone, and when asked for again.
    pub elsewhere: Vec<Elsewhere>,
}

/// What the effect of a command of several groups, seen in one of them, says about another destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Elsewhere {
    /// The other destination.
    pub group: GroupId,
    /// Its state as of there went into the outcome; the command is locked there.
    pub index: LogIndex,
}

/// Why a command or session was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decline {
    /// This replica is not the primary; perhaps that one is.
    NotPrimary {
        /// Who, as far as known.
        hint: Option<ReplicaId>,
    },
    /// This replica has just become primary and is not up to date yet. Ask again soon.
    NotReady,
    /// Too much is in flight. Ask again later.
    Overloaded,
    /// That destination has not answered for a while; new commands for it would only lock their keys.
    Unavailable {
        /// The silent one.
        group: GroupId,
    },
    /// This group is not among the destinations.
    WrongGroup,
    /// Destinations or footprint are not sorted, name unknown groups, or are too large.
    Malformed,
    /// It will never be executed under this id.
    Refused(Refusal),
}

/// A change of state that is worth telling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// This replica is primary of the ballot.
    BecamePrimary {
        /// The ballot.
        ballot: Ballot,
    },
    /// … has applied all that went before, and takes commands now.
    BecameReady {
        /// The ballot.
        ballot: Ballot,
    },
    /// This replica is not primary (any more). What was logged may or may not be executed: clients ask the new primary.
    BecameFollower {
        /// Whom it follows, if known.
        primary: Option<ReplicaId>,
    },
    /// A message from a peer made no sense and was dropped.
    IgnoredMessage {
        /// From.
        from: (GroupId, ReplicaId),
        /// Why.
        reason: &'static str,
    },
    /// A voter lags so far behind that the entries which it needs were dropped: only a copy of another voter's state could
    /// help it. Told by the primary, and, with its own number, by the voter itself; once, until it is better.
    FollowerBeyondHelp {
        /// The voter.
        replica: ReplicaId,
        /// What it needs.
        from: LogIndex,
    },
    /// Another group's members are others than this replica knew: see [`crate::Core::directory`].
    PeerMembers {
        /// That group.
        group: GroupId,
        /// The version known now.
        version: u64,
    },
    /// A member of this group came back with another disk: the old one's entries and promises are gone. Told by the
    /// primary, once for each disk.
    DiskReplaced {
        /// The member.
        replica: ReplicaId,
        /// Its new disk.
        incarnation: Incarnation,
    },
    /// The primary's log is another than what this replica knows to be committed: a membership was forced upon a replica that
    /// had less. This one takes nothing any more, and must come back with an empty disk. Told once in a ballot.
    Contradicted {
        /// Where.
        index: LogIndex,
    },
    /// This replica is no member of its group any more.
    Expelled {
        /// By this version of the membership, or one before.
        version: u64,
    },
}

/// What applying one entry did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// The entry.
    pub index: LogIndex,
    /// What changed.
    pub change: Change,
    /// A reply for the client, if the entry settles a command. Every replica produces it; whoever has the client
    /// connected sends it, usually the primary.
    pub reply: Option<Reply>,
}

/// What an applied entry changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Nothing to see.
    Nothing,
    /// The command executed. One of several groups also released its keys.
    Executed(Arc<Command>),
    /// The command's keys are locked from this index on.
    Locked(Arc<Command>),
    /// All destinations have prepared the command; its keys stay locked.
    Committed(CommandId),
    /// The command was given up and its keys were released.
    Aborted(Arc<Command>),
    /// This group will never prepare the command.
    Refused(CommandId),
    /// The record had no effect: the command had been settled before.
    Skipped(CommandId),
    /// A session was opened, or was open already.
    SessionOpened(SessionId),
    /// Sessions were closed.
    SessionsClosed(Vec<SessionId>),
    /// The group's members are these from now on.
    Members(Arc<Membership>),
}
