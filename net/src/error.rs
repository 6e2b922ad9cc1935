//! The crate's one error type, sorted by what the caller should do.

use std::{io, net::SocketAddr, path::PathBuf};

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong with a file, a certificate, a connection or a frame.
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
    /// A file was read but its content is not what it should be.
    #[error("{}: {problem}", path.display())]
    BadFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, with a line where there is one.
        problem: String,
    },
    /// A name, address or setting given by the caller is not acceptable.
    #[error("{0}")]
    Invalid(String),
    /// Making or signing a certificate failed.
    #[error("certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    /// TLS could not be set up with the given identity.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// The UDP socket could not be made.
    #[error("UDP socket on {address}: {source}")]
    Socket {
        /// The local address asked for.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// A host name did not resolve.
    #[error("address {address}: {source}")]
    Resolve {
        /// `host:port` as given.
        address: String,
        /// Why.
        source: io::Error,
    },
    /// No connection to a node within the time allowed, or it was refused.
    #[error("connecting to {node} at {address}: {problem}")]
    Connect {
        /// The node's name.
        node: String,
        /// Where it was expected.
        address: SocketAddr,
        /// Why.
        problem: String,
    },
    /// The other side speaks another wire version or belongs to another cluster, or is not who it should be.
    #[error("refused: {0}")]
    Refused(String),
    /// The connection or the channel is gone.
    #[error("connection lost: {0}")]
    Lost(String),
    /// A frame is longer than the limit.
    #[error("frame of {len_bytes} bytes exceeds the limit of {len_bytes_max}")]
    FrameTooLong {
        /// Length announced or asked for.
        len_bytes: usize,
        /// The limit.
        len_bytes_max: usize,
    },
    /// The peer broke the framing or the hello.
    #[error("protocol: {0}")]
    Protocol(String),
    /// An encoded value could not be decoded, or is of an unknown version.
    #[error("decoding: {0}")]
    Decode(String),
    /// A value could not be encoded within its limit.
    #[error("encoding: {0}")]
    Encode(String),
    /// No answer within the time allowed.
    #[error("no answer within {elapsed_ms} ms")]
    Timeout {
        /// How long was waited.
        elapsed_ms: u64,
    },
    /// More calls or frames are waiting than allowed.
    #[error("{0} is full")]
    Full(&'static str),
}

/// What a caller should do about an [`Error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorClass {
    /// Try again, after a pause, or elsewhere.
    Retry,
    /// The caller's own arguments, files or settings are at fault.
    Caller,
    /// The peer is not acceptable or broke the protocol: drop the connection.
    Peer,
}

impl Error {
    /// What to do about it.
    pub fn class(&self) -> ErrorClass {
        match self {
            Error::Connect { .. } | Error::Resolve { .. } | Error::Lost(_) | Error::Timeout { .. } | Error::Full(_) => {
                ErrorClass::Retry
            }
            Error::File { .. }
            | Error::BadFile { .. }
            | Error::Invalid(_)
            | Error::Certificate(_)
            | Error::Tls(_)
            | Error::Socket { .. }
            | Error::Encode(_) => ErrorClass::Caller,
            Error::Refused(_) | Error::FrameTooLong { .. } | Error::Protocol(_) | Error::Decode(_) => ErrorClass::Peer,
        }
    }
}

impl From<quinn::ConnectionError> for Error {
    fn from(error: quinn::ConnectionError) -> Self {
        Error::Lost(error.to_string())
    }
}
