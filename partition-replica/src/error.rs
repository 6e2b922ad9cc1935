//! The crate's one error type, sorted by what the caller should do.

use std::io;
use std::path::PathBuf;

use multicast::ids::GroupId;

/// How the message of [`Error::CorruptState`] begins.
pub const STATE_IS_DAMAGED: &str = "the state store is damaged";

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a node cannot start or cannot go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another process works on the data directory.
    #[error("{}: another node process is running on this data directory", path.display())]
    Locked {
        /// The directory.
        path: PathBuf,
    },
    /// There is nothing in the data directory, and nobody said that this is the node's first start.
    #[error(
        "{}: this node has no data here. If its disk is only missing, mount it. If the disk is lost, or the node is new to \
         its cluster, start it once with --initialise: it begins anew, and its groups take it in as another member. Only at \
         the very first start of the whole cluster use --found", path.display()
    )]
    NotInitialised {
        /// The directory.
        path: PathBuf,
    },
    /// The data directory was written by a version that encodes what is in it otherwise.
    #[error(
        "{}: the data have format {found}, this version of globalfs works with format {spoken}. Nothing is damaged, and \
         nothing was changed: start the node with the version that wrote them", path.display()
    )]
    OtherFormat {
        /// The directory.
        path: PathBuf,
        /// Its format.
        found: u32,
        /// This program's format.
        spoken: u32,
    },
    /// The data directory belongs to another node or cluster.
    #[error("{}: {problem}", path.display())]
    ForeignData {
        /// The directory.
        path: PathBuf,
        /// What differs.
        problem: String,
    },
    /// What is on disk is not what was written.
    #[error(
        "{file} at offset {offset}: {problem}; keep this node stopped, the group's other voters go on without it (see \"A node whose disk is lost or damaged\" in docs/operations.md)"
    )]
    Corrupt {
        /// The file.
        file: String,
        /// Where.
        offset: u64,
        /// What is wrong.
        problem: String,
    },
    /// A write to the log or its flush failed: what is on disk is not known any more, so the node must not go on.
    #[error(
        "the write-ahead log failed at {file}: {source}; nothing was acknowledged that is not on disk. Make room or look at the disk, then start the node again"
    )]
    LogFailed {
        /// The file.
        file: String,
        /// Why.
        source: io::Error,
    },
    /// The state store's files are not what was written.
    #[error(
        "the state store is damaged: {0}; keep this node stopped, the group's other voters go on without it (see \"A node whose disk is lost or damaged\" in docs/operations.md)"
    )]
    CorruptState(String),
    /// The state store failed.
    #[error(
        "the state store failed: {0}; what was acknowledged is in the log. Make room or look at the disk, then start the node again"
    )]
    State(String),
    /// The state of a group makes no sense.
    #[error("the state of group {group} is damaged: {problem}")]
    DamagedState {
        /// The group.
        group: GroupId,
        /// What is wrong.
        problem: String,
    },
    /// The configuration makes no sense.
    #[error("configuration: {0}")]
    Config(String),
    /// The network layer refused.
    #[error(transparent)]
    Net(#[from] net::Error),
    /// A thread could not be started.
    #[error("starting {what}: {source}")]
    Thread {
        /// Which.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The node is stopping.
    #[error("the node is stopping")]
    Stopping,
}

/// What a caller should do about an [`Error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorClass {
    /// Try again later.
    Retry,
    /// The caller's settings or files are at fault.
    Caller,
    /// Data are damaged: a human must look.
    Corrupt,
    /// This process must end; a restart recovers.
    Fatal,
}

impl Error {
    /// What to do about it.
    #[must_use]
    pub fn class(&self) -> ErrorClass {
        match self {
            Error::Locked { .. } | Error::Stopping => ErrorClass::Retry,
            Error::File { .. }
            | Error::OtherFormat { .. }
            | Error::ForeignData { .. }
            | Error::Config(_)
            | Error::Net(_) => ErrorClass::Caller,
            Error::Corrupt { .. }
            | Error::CorruptState(_)
            | Error::DamagedState { .. }
            | Error::NotInitialised { .. } => ErrorClass::Corrupt,
            Error::LogFailed { .. } | Error::State(_) | Error::Thread { .. } => ErrorClass::Fatal,
        }
    }

    /// What a store below a namespace has come upon. It gives this crate's errors as text.
    pub(crate) fn of_store(error: &metadata::Error) -> Error {
        let text = error.to_string();
        match (error, text.split_once(STATE_IS_DAMAGED)) {
            (metadata::Error::CorruptRow { .. }, _) => Error::CorruptState(text),
            (_, Some((_, why))) => {
                let why = why.split("; keep this node stopped").next().unwrap_or(why);
                Error::CorruptState(why.trim_start_matches(": ").to_owned())
            }
            (_, None) => Error::State(text),
        }
    }

    pub(crate) fn file(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Error {
        let path = path.into();
        move |source| Error::File { path, source }
    }
}
