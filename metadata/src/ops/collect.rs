//! The end of blobs: how groups make sure that nothing refers to one, and never will again, before it is deleted.
//!
//! A blob that was uploaded may be referred to late: a flush without an answer is repeated, perhaps in the group where the
//! file went meanwhile. And references travel between groups. So whoever wants to delete blobs that are garbage in a group
//!
//! 1. has every *other* group log [`Collected`](crate::op::FsOp::Collected): a group without a reference to the blob notes
//!    its writer and sequence as retired, and refuses fresh references to this and earlier blobs of that writer from then
//!    on (`BlobGone`: the client uploads again, under a new name). The blob's own group refuses them already, for as long
//!    as the garbage's row is there;
//! 2. asks every group for [`BlobsInUse`](crate::read::ReadOp::BlobsInUse). A group without references can only get one
//!    with an inode that moves there;
//! 3. has every group log something, and asks again. Groups count the files that departed and that arrived. If as many
//!    had departed by the second answers as had arrived by the first, then nothing was under way in between, and what no
//!    group referred to is free for ever;
//! 4. deletes the free ones, and then has the garbage's group log `Collected`, which drops its rows.
//!
//! Whoever stops on the way leaves the garbage's rows in place and begins again.

use crate::error::Error;
use crate::keys;
use crate::namespace::Namespace;
use crate::outcome::Done;
use crate::rows::{self, BlobRow, Moves, Retired};
use crate::store::{Store, StoreMut};
use crate::types::BlobId;
use crate::verdict::Step;

impl<S: StoreMut> Namespace<S> {
    /// Retires those of these blobs that nothing here refers to; their rows go.
    pub(crate) fn collected(&mut self, blobs: &[BlobId]) -> Step<Done> {
        for &blob in blobs {
            let key = keys::blob(blob);
            let row: Option<BlobRow> = self.read(&key)?;
            if row.is_some_and(|row| row.references > 0) {
                continue;
            }
            if let Some(row) = row {
                self.remove(&key)?;
                let kind = if row.beyond { keys::DOUBTFUL } else { keys::GARBAGE };
                if let Some(number) = row.garbage {
                    self.remove(&keys::numbered(kind, number))?;
                }
            }
            self.retire(blob)?;
        }
        Ok(Done::Nothing)
    }

    /// One number per writer, however many blobs: what it says of earlier ones only costs their writer another upload.
    fn retire(&mut self, blob: BlobId) -> Result<(), Error> {
        if self.is_retired(blob)? {
            return Ok(());
        }
        self.put(keys::retired(blob), rows::encode(&Retired { sequence: blob.sequence }))
    }

    /// True if it is too late for a first reference.
    pub(crate) fn is_retired(&self, blob: BlobId) -> Result<bool, Error> {
        let retired: Option<Retired> = self.read(&keys::retired(blob))?;
        Ok(retired.is_some_and(|retired| blob.sequence <= retired.sequence))
    }

    /// A file with blobs leaves.
    pub(super) fn note_departure(&mut self) -> Result<(), Error> {
        let moves = moves(&self.store)?;
        self.put(keys::moves(), rows::encode(&Moves { departed: moves.departed + 1, ..moves }))
    }

    /// A file with blobs has come.
    pub(super) fn note_arrival(&mut self) -> Result<(), Error> {
        let moves = moves(&self.store)?;
        self.put(keys::moves(), rows::encode(&Moves { arrived: moves.arrived + 1, ..moves }))
    }
}

/// How many files with blobs have come and gone.
pub(crate) fn moves<S: Store + ?Sized>(store: &S) -> Result<Moves, Error> {
    Ok(rows::read(store, &keys::moves())?.unwrap_or_default())
}
