//! How a command ends: one exit code per kind of failure, the same in every release.

use std::fmt;
use std::io;

/// Exit codes. Scripts rely on the numbers: they are only ever added to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Done.
    Done = 0,
    /// Failed for a reason without a code of its own.
    Failed = 1,
    /// The command line makes no sense.
    Usage = 2,
    /// A configuration file, certificate or bucket is wrong or missing.
    Config = 3,
    /// No quorum, a node or region that cannot be reached.
    Unavailable = 4,
    /// The command worked and found problems.
    Problems = 5,
    /// Some of it was done.
    Partly = 6,
    /// Not permitted.
    NotPermitted = 7,
    /// It took longer than allowed.
    TimedOut = 8,
    /// Something exists already, or is in use.
    Exists = 9,
    /// Ended by Ctrl-C.
    Interrupted = 130,
}

/// The table that `--help` shows.
pub const EXIT_CODES: &str = "Exit codes:
  0  done                     6  partly done
  1  failed                   7  not permitted
  2  wrong usage              8  timed out
  3  bad configuration        9  exists or conflicts
  4  unavailable            130  interrupted
  5  problems found";

impl Exit {
    /// Every code.
    pub const ALL: [Exit; 11] = [
        Exit::Done,
        Exit::Failed,
        Exit::Usage,
        Exit::Config,
        Exit::Unavailable,
        Exit::Problems,
        Exit::Partly,
        Exit::NotPermitted,
        Exit::TimedOut,
        Exit::Exists,
        Exit::Interrupted,
    ];

    /// What a process of ours meant by its exit code.
    pub fn from_code(code: i32) -> Option<Exit> {
        Exit::ALL.into_iter().find(|exit| *exit as i32 == code)
    }
}

/// Why a command failed, and with which code it ends.
pub struct Failure {
    /// The code.
    pub exit: Exit,
    /// The reason, for people.
    pub error: anyhow::Error,
}

impl Failure {
    /// The message and its causes, each said once: many errors name their cause in their own message.
    pub fn message(&self) -> String {
        message(&self.error)
    }
}

/// An error and its causes in one line, without those that are said already.
pub fn message(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string).filter(|cause| !cause.is_empty()) {
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    text
}

/// What commands return.
pub type Result<T = ()> = std::result::Result<T, Failure>;

impl Failure {
    /// A failure with this code and message.
    pub fn new(exit: Exit, message: impl fmt::Display) -> Failure {
        Failure { exit, error: anyhow::anyhow!("{message}") }
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {:#}", self.exit, self.error)
    }
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Failure {
        let error = error.into();
        Failure { exit: exit_of(&error), error }
    }
}

fn exit_of(error: &anyhow::Error) -> Exit {
    let io_error = error.chain().find_map(|cause| cause.downcast_ref::<io::Error>());
    match io_error.map(io::Error::kind) {
        Some(io::ErrorKind::PermissionDenied) => Exit::NotPermitted,
        Some(io::ErrorKind::TimedOut) => Exit::TimedOut,
        Some(io::ErrorKind::AlreadyExists) => Exit::Exists,
        Some(io::ErrorKind::Interrupted) => Exit::Interrupted,
        _ => Exit::Failed,
    }
}

/// Gives an error a code.
pub trait OrExit<T> {
    /// This code, the error's own message.
    fn or_exit(self, exit: Exit) -> Result<T>;
    /// This code, and in front of the error's message what was being done.
    fn or_exit_with<M: fmt::Display + Send + Sync + 'static>(self, exit: Exit, doing: impl FnOnce() -> M) -> Result<T>;
}

impl<T, E: Into<anyhow::Error>> OrExit<T> for std::result::Result<T, E> {
    fn or_exit(self, exit: Exit) -> Result<T> {
        self.map_err(|error| Failure { exit, error: error.into() })
    }

    fn or_exit_with<M: fmt::Display + Send + Sync + 'static>(self, exit: Exit, doing: impl FnOnce() -> M) -> Result<T> {
        self.map_err(|error| Failure { exit, error: error.into().context(doing()) })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn io_error_kinds_choose_the_code() {
        let failure: Failure = io::Error::from(io::ErrorKind::PermissionDenied).into();
        assert_eq!(failure.exit, Exit::NotPermitted);
        let failure: Failure = anyhow::Error::from(io::Error::from(io::ErrorKind::TimedOut)).context("reading").into();
        assert_eq!(failure.exit, Exit::TimedOut);
        let failure: Failure = anyhow::anyhow!("plain").into();
        assert_eq!(failure.exit, Exit::Failed);
    }

    #[test]
    fn causes_are_said_once() {
        let cause = io::Error::from_raw_os_error(libc::EACCES);
        let named: Failure = anyhow::Error::from(cause).context("tls/node.key").into();
        assert_eq!(named.message(), "tls/node.key: Permission denied (os error 13)");
        let cause = io::Error::from_raw_os_error(libc::EACCES);
        let repeated = format!("tls/node.key: {cause}");
        let twice: Failure = anyhow::Error::from(cause).context(repeated).context("node").into();
        assert_eq!(twice.message(), "node: tls/node.key: Permission denied (os error 13)");
    }

    #[test]
    fn table_names_every_code() {
        for exit in Exit::ALL {
            let code = (exit as i32).to_string();
            assert!(EXIT_CODES.split_whitespace().any(|word| word == code), "{exit:?}");
        }
    }
}
