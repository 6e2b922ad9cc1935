//! What each group contributes to the verdict on a command of several groups, and how the verdict follows: the same
//! function of the same contributions in every group.

use bytes::Bytes;
use multicast::ids::GroupId;
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::outcome::{Errno, Fact, OpError};
use crate::rows::{Copied, DirentRow, ExtentRow, InodeRow};
use crate::types::{Attr, Dirent, InodeId, TimeNs};

/// In what order refusals count: the first in this list decides, whichever group has it. What holds whatever the client
/// guessed comes before what says that a guess is out of date, and that before what follows from the guesses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum Rank {
    /// The request makes no sense.
    Malformed,
    /// A name that must be there is not.
    NameMissing,
    /// A name that must be free is not.
    NameTaken,
    /// An inode lives elsewhere.
    Moved,
    /// A guess is out of date.
    Stale,
    /// A directory would come to lie inside itself.
    Loop,
    /// A directory where none may be, or the reverse.
    Kind,
    /// A limit.
    Limit,
    /// A directory has entries.
    NotEmpty,
    /// An inode is gone.
    Gone,
}

/// Why a group says no.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Refusal {
    pub(crate) rank: Rank,
    pub(crate) error: OpError,
}

/// Why a step of an execution ends early.
#[derive(Debug)]
pub(crate) enum Stop {
    /// The update is refused.
    Refused(Refusal),
    /// Only a part was done, and stays done: the client asks again.
    Unfinished,
    /// The store failed.
    Failed(Error),
}

impl Stop {
    pub(crate) fn errno(rank: Rank, errno: Errno) -> Self {
        Stop::Refused(Refusal { rank, error: OpError::Errno(errno) })
    }

    pub(crate) fn stale(fact: Fact) -> Self {
        Stop::Refused(Refusal { rank: Rank::Stale, error: OpError::Stale(vec![fact]) })
    }

    /// Not yet: the client asks again.
    pub(crate) fn again() -> Self {
        Stop::Refused(Refusal { rank: Rank::Stale, error: OpError::Stale(Vec::new()) })
    }
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Stop::Failed(error)
    }
}

/// The result of a step of an execution.
pub(crate) type Step<T> = Result<T, Stop>;

/// Notes a refusal and goes on: all of them count, in the order of their ranks.
pub(crate) fn note<T>(refusals: &mut Vec<Refusal>, step: Step<T>) -> Result<Option<T>, Error> {
    match step {
        Ok(value) => Ok(Some(value)),
        Err(Stop::Failed(error)) => Err(error),
        Err(Stop::Refused(refusal)) => {
            refusals.push(refusal);
            Ok(None)
        }
        Err(Stop::Unfinished) => {
            refusals.push(Refusal { rank: Rank::Stale, error: OpError::Stale(Vec::new()) });
            Ok(None)
        }
    }
}

/// One group's part in a verdict.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Contribution {
    pub(crate) refusals: Vec<Refusal>,
    pub(crate) facts: Facts,
}

/// What a group knows that others need. Each is known by one group only.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Facts {
    /// The number of an inode to be born.
    pub(crate) fresh: Option<InodeId>,
    /// What new entries take over from their directories.
    pub(crate) parents: Vec<ParentFacts>,
    /// The directories whose entries change, as they are before it: so that every group can tell what becomes of them. None
    /// that another unfinished command is about to change, too; and others may change them before this one executes.
    pub(crate) directories: Vec<InodeRow>,
    /// The inodes that the command is about, as they are before it.
    pub(crate) nodes: Vec<Attr>,
    /// All there is of inodes that may move.
    pub(crate) freight: Vec<Freight>,
    /// Entries of a directory that are copied ahead of it.
    pub(crate) chunk: Option<Chunk>,
    /// How far a directory's entries have arrived ahead of it.
    pub(crate) ahead: Option<Copied>,
}

/// Entries in the order of their cookies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Chunk {
    pub(crate) entries: Vec<(Bytes, DirentRow)>,
    /// The last cookie.
    pub(crate) upto: u64,
    /// There are no more.
    pub(crate) end: bool,
}

/// What new entries take over from their directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ParentFacts {
    pub(crate) ino: InodeId,
    pub(crate) mode: u16,
    pub(crate) gid: u32,
    pub(crate) placement: GroupId,
}

/// All rows of an inode that may move to another group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Freight {
    pub(crate) row: InodeRow,
    /// By their ends.
    pub(crate) extents: Vec<(u64, ExtentRow)>,
    pub(crate) target: Option<Bytes>,
    pub(crate) xattrs: Vec<(Bytes, Bytes)>,
    /// A directory's entries, but for those that were copied ahead.
    pub(crate) entries: Vec<(Bytes, DirentRow)>,
    /// How far they were.
    pub(crate) copied: Option<Copied>,
    /// What has become of some of those, by their cookies.
    pub(crate) corrected: Vec<(u64, Option<(Bytes, Dirent)>)>,
}

impl Facts {
    pub(crate) fn node(&self, ino: InodeId) -> Option<&Attr> {
        self.nodes.iter().find(|attr| attr.ino == ino)
    }

    pub(crate) fn parent(&self, ino: InodeId) -> Option<&ParentFacts> {
        self.parents.iter().find(|parent| parent.ino == ino)
    }

    pub(crate) fn freight(&self, ino: InodeId) -> Option<&Freight> {
        self.freight.iter().find(|freight| freight.row.attr.ino == ino)
    }

    fn extend(&mut self, other: Facts) {
        self.fresh = self.fresh.or(other.fresh);
        self.parents.extend(other.parents);
        self.directories.extend(other.directories);
        self.nodes.extend(other.nodes);
        self.freight.extend(other.freight);
        self.chunk = self.chunk.take().or(other.chunk);
        self.ahead = self.ahead.or(other.ahead);
    }
}

/// What all groups agree on when none refuses.
#[derive(Debug)]
pub(crate) struct Joint {
    pub(crate) time: TimeNs,
    pub(crate) facts: Facts,
}

/// The verdict.
pub(crate) fn join(time: TimeNs, contributions: Vec<Contribution>) -> Result<Joint, OpError> {
    let mut joint = Joint { time, facts: Facts::default() };
    let mut refusals = Vec::new();
    for contribution in contributions {
        joint.facts.extend(contribution.facts);
        refusals.extend(contribution.refusals);
    }
    match refusals.iter().map(|refusal| refusal.rank).min() {
        None => Ok(joint),
        Some(rank) => Err(first_of(rank, refusals)),
    }
}

fn first_of(rank: Rank, refusals: Vec<Refusal>) -> OpError {
    let mut facts = Vec::new();
    for refusal in refusals.into_iter().filter(|refusal| refusal.rank == rank) {
        match refusal.error {
            OpError::Stale(more) => facts.extend(more),
            error => return error,
        }
    }
    OpError::Stale(facts)
}
