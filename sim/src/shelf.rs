//! A store in memory whose rows may go bad: as with checksums, whoever comes across such a row gets an error, never its bytes.

use std::collections::BTreeSet;

use metadata::store::Row;
use metadata::{Error, MemStore, Store, WriteSet};

/// Rows, some of them bad.
#[derive(Clone, Debug, Default)]
pub struct Shelf {
    /// The rows as they should be.
    pub rows: MemStore,
    /// Keys of those that are not.
    bad: BTreeSet<Vec<u8>>,
}

impl Shelf {
    /// Writes; what is written anew is good again.
    pub fn apply(&mut self, writes: WriteSet) {
        self.bad.retain(|key| !writes.contains_key(key));
        self.rows.apply(writes);
    }

    /// The key at this place, counted around.
    #[must_use]
    pub fn key_at(&self, place: u64) -> Option<Vec<u8>> {
        let count = self.rows.rows().count() as u64;
        let (key, _) = self.rows.rows().nth(usize::try_from(place.checked_rem(count)?).ok()?)?;
        Some(key.to_vec())
    }

    /// A bit flips in that row: nobody gets it any more. Or, with checksums out of work, everybody gets that.
    pub fn flip(&mut self, key: &[u8], is_served: bool) {
        if !is_served {
            self.bad.insert(key.to_vec());
        } else if let Ok(Some(mut value)) = self.rows.get(key) {
            if let Some(last) = value.last_mut() {
                *last ^= 1;
            }
            self.rows.apply(WriteSet::from([(key.to_vec(), Some(value))]));
        }
    }

    /// True if some row is bad.
    #[must_use]
    pub fn is_bad(&self) -> bool {
        !self.bad.is_empty()
    }
}

fn bad_row() -> Error {
    Error::StoreFailed("a checksum does not fit".to_owned())
}

impl Store for Shelf {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Error> {
        if self.bad.contains(key) { Err(bad_row()) } else { self.rows.get(key) }
    }

    fn scan(&self, prefix: &[u8], start: &[u8], limit: usize) -> Result<Vec<Row>, Error> {
        let found = self.rows.scan(prefix, start, limit)?;
        if self.is_bad() && found.iter().any(|(key, _)| self.bad.contains(key)) {
            return Err(bad_row());
        }
        Ok(found)
    }
}
