//! Blobs for this crate's tests.

use bytes::Bytes;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use crate::{BlobId, BlobRef, Region};

/// A blob whose data follow from its name.
pub(crate) fn blob(origin: u16, sequence: u64, len: usize) -> (BlobRef, Bytes) {
    let id = BlobId::new(Region(origin), 0xfeed, sequence);
    let mut rng = SmallRng::seed_from_u64(sequence << 16 | u64::from(origin));
    let mut data = vec![0; len];
    rng.fill(&mut data[..]);
    (BlobRef::of(id, &data).expect("tests' blobs are short"), data.into())
}
