//! What can go wrong outside the simulated world.

use std::path::PathBuf;

/// An experiment that cannot be run or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A setting makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// A file cannot be used.
    #[error("{}: {problem}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        problem: String,
    },
    /// The cores said something that they never may.
    #[error("the simulated cluster broke: {0}")]
    Broken(String),
}

/// Shorthand.
pub type Result<T> = std::result::Result<T, Error>;
