//! What can go wrong around the namespace: never an answer to a client, always a reason to stop or to drop a message.

/// The environment failed, or bytes are not what they should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The medium below the store failed.
    #[error("the store failed: {0}")]
    StoreFailed(String),
    /// A row of the store cannot be decoded.
    #[error("the row with the key {key:02x?} is corrupt")]
    CorruptRow {
        /// Its key.
        key: Vec<u8>,
    },
    /// The store has no volume row: it was never initialised.
    #[error("the store holds no volume")]
    NoVolume,
    /// The store belongs to another group.
    #[error("the store belongs to {found}, not to {expected}")]
    OtherGroup {
        /// Whose it is.
        found: multicast::ids::GroupId,
        /// Whose it should be.
        expected: multicast::ids::GroupId,
    },
    /// Bytes of a message cannot be decoded.
    #[error("a message of {bytes} bytes cannot be decoded")]
    Undecodable {
        /// Its length.
        bytes: usize,
    },
    /// A message is longer than its kind may be.
    #[error("a message of {bytes} bytes exceeds the limit of {bytes_max}")]
    TooLong {
        /// Its length.
        bytes: usize,
        /// The limit.
        bytes_max: usize,
    },
}
