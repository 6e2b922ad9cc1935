//! What a copy of a replica's state needs beside its rows, to become another replica's.
//!
//! The rows travel beside the core, as the driver likes: all rows of the machine and of the order, as they are at the entry
//! that [`crate::Core::snapshot`] names. The receiver loads the order from them and gives it the snapshot
//! ([`crate::OrderState::begin_at`]), writes the row that this makes beside the others, puts the whole in the place of its own
//! state in one step, and calls [`crate::Core::install_snapshot`]. After a crash right behind that step
//! [`crate::Core::new`] sees from the state where the log must begin. Whatever is interrupted can be begun again.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::error::Error;
use crate::ids::{Ballot, LogIndex};
use crate::record::{Entry, RECORD_BYTES_MAX, Record, decode_versioned};

/// Version of the encoding of [`Snapshot`], its first byte.
const SNAPSHOT_VERSION: u8 = 1;

/// Where a state stands in the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// The sender knew in this ballot that the entry is committed: whoever takes the state takes nothing of lower ones.
    pub ballot: Ballot,
    /// The last entry that the state has applied: the receiver's log begins with it.
    pub entry: Entry,
}

/// Why a state was not taken over. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum InstallRefused {
    /// The own state is as new.
    #[error("the own state is at {applied}, the copy at {copy}")]
    Stale {
        /// The own state's.
        applied: LogIndex,
        /// The copy's.
        copy: LogIndex,
    },
    /// A primary has all that there is.
    #[error("this replica is the group's primary")]
    Primary,
    /// The state is of another group, or does not say where in the log it stands, or contradicts itself.
    #[error("the copy does not say where in the log it stands")]
    Unfit,
}

impl Snapshot {
    /// As it travels.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let buffer =
            postcard::to_extend(self, vec![SNAPSHOT_VERSION]).expect("a snapshot of plain data always encodes");
        Bytes::from(buffer)
    }

    /// Reads what came.
    ///
    /// # Errors
    /// If the bytes are no snapshot of this version, or it makes no sense.
    pub fn decode(bytes: &[u8]) -> Result<Snapshot, Error> {
        let snapshot: Snapshot = decode_versioned("snapshot", SNAPSHOT_VERSION, 2 * RECORD_BYTES_MAX, bytes)?;
        Record::decode(&snapshot.entry.record)?;
        if !snapshot.is_plausible() {
            let reason = "an entry before the first, or of a later ballot".to_owned();
            return Err(Error::Malformed { what: "snapshot", len_bytes: bytes.len(), reason });
        }
        Ok(snapshot)
    }

    pub(crate) fn is_plausible(&self) -> bool {
        let index = self.entry.index;
        index > LogIndex::ZERO
            && index.0 <= u64::MAX / 2
            && self.entry.ballot <= self.ballot
            && self.ballot.round <= crate::log::ROUND_MAX
    }
}
