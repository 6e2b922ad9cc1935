//! The crate's one error type, sorted by what the caller should do.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use multicast::ids::GroupId;

use crate::errno::Errno;

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong. Cheap to clone: one failed flush is told to all who wait for it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The namespace's answer, or what the client itself must answer, for the application.
    #[error("{0}")]
    Posix(Errno),
    /// No answer before the operation's deadline.
    #[error("no answer from group {group} within {elapsed_ms} ms: {why}")]
    Timeout {
        /// The group asked.
        group: GroupId,
        /// How long was waited.
        elapsed_ms: u64,
        /// The last obstacle.
        why: String,
    },
    /// A group has not answered for longer than the deadline, so it was not asked.
    #[error("group {group} cannot be reached since {silent_ms} ms; nothing was asked of it")]
    Unreachable {
        /// The group.
        group: GroupId,
        /// Since when.
        silent_ms: u64,
    },
    /// The session was forgotten by a group while an update was under way: it may have been executed.
    #[error("group {group} has forgotten this session; whether the update was executed is not known")]
    SessionLost {
        /// The group.
        group: GroupId,
    },
    /// So many later updates were answered that a group need not remember what became of this one.
    #[error("so much was asked of group {group} since that what became of an unanswered update is not known any more")]
    Overtaken {
        /// The group.
        group: GroupId,
    },
    /// A node refused a request as senseless: client and node do not fit together.
    #[error("node {node} refused a request: {why}")]
    Refused {
        /// Which.
        node: String,
        /// Why.
        why: String,
    },
    /// A blob could not be written or read.
    #[error(transparent)]
    Data(#[from] datastore::Error),
    /// The network layer failed for good.
    #[error("network: {0}")]
    Net(#[source] Arc<net::Error>),
    /// The configuration cannot work.
    #[error("{0}")]
    Config(String),
    /// The mount point cannot be used.
    #[error("mount point {}: {why}", path.display())]
    MountPoint {
        /// Which.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// The kernel refused the mount or the unmount.
    #[error("{step}: {source}")]
    Kernel {
        /// What was tried.
        step: &'static str,
        /// The system's error.
        source: Arc<io::Error>,
    },
    /// The client is closing.
    #[error("the client is closing")]
    Closing,
}

/// What a caller should do about an [`Error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorClass {
    /// Answer the application.
    Application,
    /// Try again later.
    Retry,
    /// Correct settings or arguments.
    Caller,
    /// Look for damage.
    Corrupt,
}

impl Error {
    /// What to do about it.
    #[must_use]
    pub fn class(&self) -> ErrorClass {
        match self {
            Error::Posix(_) => ErrorClass::Application,
            Error::Timeout { .. }
            | Error::Unreachable { .. }
            | Error::SessionLost { .. }
            | Error::Overtaken { .. }
            | Error::Closing
            | Error::Net(_) => ErrorClass::Retry,
            Error::Config(_) | Error::MountPoint { .. } | Error::Kernel { .. } | Error::Refused { .. } => {
                ErrorClass::Caller
            }
            Error::Data(error) => match error.class() {
                datastore::ErrorClass::Corrupt => ErrorClass::Corrupt,
                datastore::ErrorClass::Caller => ErrorClass::Caller,
                _ => ErrorClass::Retry,
            },
        }
    }

    pub(crate) fn kernel(step: &'static str) -> impl Fn(io::Error) -> Error {
        move |source| Error::Kernel { step, source: Arc::new(source) }
    }
}

impl From<Errno> for Error {
    fn from(errno: Errno) -> Self {
        Error::Posix(errno)
    }
}

impl From<net::Error> for Error {
    fn from(error: net::Error) -> Self {
        Error::Net(Arc::new(error))
    }
}
