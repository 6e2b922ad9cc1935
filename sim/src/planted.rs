//! Bugs planted on purpose, one at a time: a checker that cannot fail is worthless. None is active unless a run asks for
//! it; all sit in the simulator's own driver and wrappers, so that the shipped code stays as it is.

use clap::ValueEnum;

/// A planted bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Bug {
    /// A replica tells its core that writes are durable before they are flushed.
    AcknowledgeBeforeFlush,
    /// Promises never reach the disk.
    ForgetPromise,
    /// The primary answers an update when it logs it, not when it is committed.
    ReplyBeforeCommit,
    /// Commands leave out the keys that they only read.
    IgnoreReadKeys,
    /// Commands declare no keys at all: nothing conflicts.
    IgnoreConflicts,
    /// A client asks again under a new sequence.
    RetryUnderNewSequence,
    /// A client sends no clock with its reads.
    SkipClock,
    /// A replica answers reads from whatever state it has.
    ReadBehindClock,
    /// A replica reads past prepared commands of which the reader has seen the effect.
    ReadPastLocks,
    /// A refused update teaches the client's clock nothing.
    ForgetRefusal,
    /// The log is trimmed as soon as the store has flushed, whatever followers lack.
    TrimTooEarly,
    /// Prepared commands with their contributions do not survive a restart.
    LosePrepared,
    /// Sessions' replies do not survive a restart.
    LoseReplies,
    /// Execution takes the time from the replica's own clock.
    OwnTime,
    /// A replica applies one committed command in a hundred twice.
    ExecuteTwice,
    /// One replica of each group executes some commands another way. Checkers do not look: the group must find out.
    Diverge,
    /// A stream's position runs ahead of its invalidations.
    InvalidateLate,
    /// A client answers from its cache although the stream has not reached its clock.
    CacheBehindClock,
    /// A client keeps what it cached of a group when it learns of effects of commands prepared there.
    CachePastEffects,
    /// A client knows of effects only the newest: an own update hides what others have committed before it.
    OwnHidesOthers,
    /// A client keeps what an own update changes in a group that does not answer.
    KeepOwnElsewhere,
    /// A client takes the first piece of a directory's listing for all of it.
    PieceForWhole,
    /// A piece of a listing begins at the directory's beginning if the entry that it was to follow is gone.
    ListAnew,
    /// A node whose disk was lost keeps its number, and votes as the one that promised.
    WipedVotes,
    /// Learners are asked for their votes, and these count as voters'.
    LearnerVotes,
    /// Whoever is to become a voter becomes one before it has caught up, and counts as if it had.
    PromoteUnready,
    /// A change of members counts as committed when it is logged: the next one may follow at once.
    ChangeUncommitted,
    /// The log is trimmed behind what the own store has flushed.
    TrimUnflushed,
    /// The log that was there stays below a copy of a state.
    KeepOldLog,
    /// A copy of a state lacks what is prepared and what was answered.
    CopyWithoutOrder,
    /// Entries that do not fit their checksums are taken for a torn tail, wherever they are.
    IgnoreLogChecksum,
    /// Rows are served without a look at their checksums.
    ServeBadRows,
    /// The collector deletes blobs that are still referred to.
    CollectReferenced,
}

impl Bug {
    /// All of them.
    #[must_use]
    pub fn all() -> &'static [Bug] {
        Bug::value_variants()
    }

    /// As on the command line.
    #[must_use]
    pub fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }
}
