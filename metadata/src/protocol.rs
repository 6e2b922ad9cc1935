//! What clients and nodes say to each other, on one framed channel per client and node.
//!
//! The order of what a node sends is significant: an [`ToClient::Event`] stands before every reply that depends on it.

use bytes::Bytes;
use multicast::Elsewhere;
use multicast::command::{Command, Key};
use multicast::ids::{GroupId, LogIndex, ReplicaId, SessionId, VectorClock};
use serde::{Deserialize, Serialize};

use crate::operate::{Directory, Operated, Operation};
use crate::outcome::{Done, Outcome};
use crate::read::{ReadOp, ReadResult};
use crate::types::InodeId;

/// Version of these messages; the channel's hello compares it.
pub const CLIENT_PROTOCOL_VERSION: u16 = 6;
/// The net channel kind of this protocol.
pub const CLIENT_CHANNEL_KIND: u8 = 1;

/// From a client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToNode {
    /// Comes back with the reply; unique on this connection.
    pub request: u64,
    /// What is asked.
    pub body: Request,
}

/// A client's request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Registers the session in a group (through its primary's log), or renews it.
    OpenSession {
        /// The group.
        group: GroupId,
        /// The session.
        session: SessionId,
        /// For people: which mount on which host.
        label: String,
    },
    /// Ends the session in a group: locks and orphans are released.
    CloseSession {
        /// The group.
        group: GroupId,
        /// The session.
        session: SessionId,
    },
    /// Keeps the session's lease in every group whose primary is on this node.
    KeepAlive {
        /// The session.
        session: SessionId,
    },
    /// Starts the stream of events of a group from this node's replica. The reply carries the index from which it is
    /// complete.
    Subscribe {
        /// The group.
        group: GroupId,
        /// The session.
        session: SessionId,
    },
    /// Orders and executes a command whose payload is an encoded [`crate::op::FsOp`].
    Update {
        /// The group whose primary shall see to it; one of the destinations.
        group: GroupId,
        /// The command.
        command: Command,
    },
    /// Reads.
    Read {
        /// The group.
        group: GroupId,
        /// The session, whose interest in what it may cache is noted if it is subscribed here.
        session: SessionId,
        /// What the client has seen.
        clock: VectorClock,
        /// Read what the group's primary has executed now, not merely what the client has seen.
        linearizable: bool,
        /// The question.
        op: ReadOp,
    },
    /// The state of this node and its replicas, for `globalfs status`: JSON.
    Status,
    /// Who belongs to the groups, as far as this node knows.
    Members,
    /// An operator's wish.
    Operate(Operation),
}

/// To a client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToClient {
    /// Answers one request.
    Reply {
        /// Whose.
        request: u64,
        /// With what.
        body: Reply,
    },
    /// A group's log has been applied up to `index` here.
    Event(Event),
}

/// News from a subscribed group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// The group.
    pub group: GroupId,
    /// Applied up to here.
    pub index: LogIndex,
    /// What the client must drop from its cache: keys that it has read and that have changed.
    pub invalidated: Vec<Key>,
    /// Drop everything of this group (the replica could not keep track).
    pub invalidate_all: bool,
    /// Inodes that lost their last name: say `ReleaseOrphans` when not open.
    pub orphans: Vec<InodeId>,
    /// As [`Position::settled`].
    pub settled: LogIndex,
    /// The session's own updates of several groups that have executed here, too, and that another group answers: as of
    /// `index` this holds, and the stream will tell when it changes.
    pub executed: Vec<Executed>,
    /// What the state depends on in other groups, if `executed` tells something of it.
    pub dependencies: VectorClock,
}

impl Event {
    /// Nothing but that the log has been applied up to there.
    #[must_use]
    pub fn quiet(group: GroupId, index: LogIndex) -> Event {
        Event {
            group,
            index,
            invalidated: Vec::new(),
            invalidate_all: false,
            orphans: Vec::new(),
            settled: LogIndex::ZERO,
            executed: Vec::new(),
            dependencies: VectorClock::new(),
        }
    }
}

/// What an own update has done in the group whose stream this is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Executed {
    /// The update's sequence in its session.
    pub sequence: u64,
    /// What it has done.
    pub done: Done,
}

/// How far a reply's group had come.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// The log index that the answer reflects: for an update the index at which it executed.
    pub index: LogIndex,
    /// What that state depends on in other groups.
    pub dependencies: VectorClock,
    /// Whatever the group has prepared up to this index has executed in that state.
    pub settled: LogIndex,
}

/// A node's reply.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// To `OpenSession`, `CloseSession`: logged and executed. To `Subscribe`: complete from here on.
    Session(Position),
    /// To `KeepAlive`.
    Alive,
    /// To `Update`: executed.
    Updated {
        /// With this outcome.
        outcome: Outcome,
        /// Where; if `is_noted`, as of which state the outcome still holds.
        position: Position,
        /// The session may cache what the outcome says as it may what it reads: the stream on this connection will tell
        /// when it changes.
        is_noted: bool,
        /// What it means for what is known of its other destinations.
        elsewhere: Vec<Elsewhere>,
    },
    /// To `Read`.
    Read {
        /// The answer.
        result: ReadResult,
        /// From which state.
        position: Position,
    },
    /// To `Status`: a JSON document.
    Status(Bytes),
    /// Another replica is (as far as known) the group's primary. Nothing was done.
    NotPrimary {
        /// The group.
        group: GroupId,
        /// Where to go, if known.
        primary: Option<ReplicaId>,
    },
    /// This replica has not yet applied what the client has seen; another may have.
    Behind {
        /// Applied so far.
        applied: LogIndex,
    },
    /// Not now: a group that takes part cannot be reached, or too much is under way. Nothing was done; ask again.
    Unavailable {
        /// Which group.
        group: GroupId,
        /// For people.
        why: String,
    },
    /// The session is not (or no longer) registered in this group. Nothing was done.
    UnknownSession {
        /// The group.
        group: GroupId,
    },
    /// This node has no replica of that group.
    UnknownGroup {
        /// The group.
        group: GroupId,
    },
    /// The request makes no sense; asking again will not help.
    Invalid(String),
    /// To `Members`.
    Members(Directory),
    /// To `Operate`.
    Operated(Operated),
}
