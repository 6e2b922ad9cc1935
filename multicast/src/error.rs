//! What can go wrong around the core. What goes wrong inside a command is an outcome, not an error.

use thiserror::Error;

use crate::ids::LogIndex;

/// What the caller should do about an [`Error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorClass {
    /// The peer sent something that this version does not understand: drop it, keep the connection or not.
    Peer,
    /// What was read from disk contradicts itself: do not start this replica.
    Corrupt,
    /// The configuration makes no sense: tell the operator.
    Configuration,
}

/// An error of this crate.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Error {
    /// Bytes that are no message or record.
    #[error("{what} of {len_bytes} bytes cannot be decoded: {reason}")]
    Malformed {
        /// What they should have been.
        what: &'static str,
        /// How many there were.
        len_bytes: usize,
        /// Why they are not.
        reason: String,
    },
    /// Bytes of a version that this program does not know.
    #[error("{what} has version {found}, this program speaks {known}")]
    UnknownVersion {
        /// What it is.
        what: &'static str,
        /// The version found.
        found: u8,
        /// The version known.
        known: u8,
    },
    /// More bytes than a message or record may have.
    #[error("{what} has {len_bytes} bytes, the limit is {limit_bytes}")]
    TooLarge {
        /// What it is.
        what: &'static str,
        /// Its size.
        len_bytes: usize,
        /// The most it may have.
        limit_bytes: usize,
    },
    /// A row of the replicated state cannot be read back.
    #[error("a row of the replicated order state is corrupt: {0}")]
    CorruptRow(String),
    /// The log on disk has a hole, or does not reach the state that was made from it.
    #[error("the log on disk ends at {last}, the state was made from it up to {applied}, its oldest entry is {first}")]
    LogBehindState {
        /// The oldest entry that was found.
        first: LogIndex,
        /// The newest entry that was found.
        last: LogIndex,
        /// What the state has applied.
        applied: LogIndex,
    },
    /// The configuration contradicts itself.
    #[error("configuration: {0}")]
    Configuration(String),
}

impl Error {
    /// What the caller should do.
    #[must_use]
    pub fn class(&self) -> ErrorClass {
        match self {
            Error::Malformed { .. } | Error::UnknownVersion { .. } | Error::TooLarge { .. } => ErrorClass::Peer,
            Error::CorruptRow(_) | Error::LogBehindState { .. } => ErrorClass::Corrupt,
            Error::Configuration(_) => ErrorClass::Configuration,
        }
    }
}
