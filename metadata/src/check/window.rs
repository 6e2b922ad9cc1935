//! A group's rows that belong to inodes, some inodes at a time.

use std::collections::VecDeque;

use crate::error::Error;
use crate::keys;
use crate::store::{Row, Store, row_hash};

/// The kinds whose keys go on with an inode's number.
pub(super) const OF_INODES: [u8; 13] = [
    keys::INODE,
    keys::DIRENT,
    keys::LISTING,
    keys::EXTENT,
    keys::SYMLINK,
    keys::XATTR,
    keys::ORPHAN,
    keys::LOCKS,
    keys::FORWARD,
    keys::GRAVE,
    keys::DEPARTING,
    keys::STALE_COPY,
    keys::ARRIVING,
];

/// Reads rows of one kind in order, each once.
pub(super) struct Cursor<'s, S: ?Sized> {
    store: &'s S,
    kind: u8,
    next: Option<Vec<u8>>,
    rows: VecDeque<Row>,
    rows_at_once: usize,
}

/// What was read so far.
#[derive(Default)]
pub(super) struct Tally {
    /// The sum of the rows' hashes.
    pub digest: u128,
    /// Their number.
    pub rows: u64,
}

impl<'s, S: Store + ?Sized> Cursor<'s, S> {
    pub(super) fn new(store: &'s S, kind: u8, rows_at_once: usize) -> Self {
        Cursor { store, kind, next: Some(vec![kind]), rows: VecDeque::new(), rows_at_once }
    }

    fn fill(&mut self, tally: &mut Tally) -> Result<(), Error> {
        let Some(start) = self.next.take() else { return Ok(()) };
        let page = self.store.scan(&[self.kind], &start, self.rows_at_once)?;
        for (key, value) in page.iter().filter(|(key, _)| *key != keys::digest()) {
            tally.digest = tally.digest.wrapping_add(row_hash(key, value));
            tally.rows += 1;
        }
        if let Some((last, _)) = page.last().filter(|_| page.len() == self.rows_at_once) {
            self.next = Some([last.as_slice(), &[0]].concat());
        }
        self.rows.extend(page);
        Ok(())
    }

    /// The next page of rows, whatever they belong to; none at the end.
    pub(super) fn page(&mut self, tally: &mut Tally) -> Result<Vec<Row>, Error> {
        self.fill(tally)?;
        Ok(self.rows.drain(..).collect())
    }

    /// The inode below which all rows have been read; none if that is so for all inodes.
    fn complete_below(&self) -> Option<u64> {
        self.next.as_ref()?;
        self.rows.back().map(|(key, _)| inode_of(key))
    }
}

/// Rows whose keys are too short for an inode's number are taken with the first inode.
fn inode_of(key: &[u8]) -> u64 {
    keys::number_at(key, 1).unwrap_or_default()
}

/// All rows of the next inodes, kind after kind. None at the end. Holds no more than a page of each kind, or the rows of one
/// inode if these are more.
pub(super) fn next_window<S: Store + ?Sized>(
    cursors: &mut [Cursor<'_, S>],
    tally: &mut Tally,
) -> Result<Option<Vec<Row>>, Error> {
    for cursor in cursors.iter_mut().filter(|cursor| cursor.rows.is_empty()) {
        cursor.fill(tally)?;
    }
    let first = cursors.iter().filter_map(|cursor| cursor.rows.front()).map(|(key, _)| inode_of(key)).min();
    let Some(first) = first else { return Ok(None) };
    loop {
        let bound = cursors.iter().filter_map(Cursor::complete_below).min();
        // An inode with more rows than a page has.
        if bound.is_some_and(|bound| bound <= first) {
            for cursor in cursors.iter_mut().filter(|cursor| cursor.complete_below() == bound) {
                cursor.fill(tally)?;
            }
            continue;
        }
        let mut window = Vec::new();
        for cursor in cursors.iter_mut() {
            let end =
                bound.map_or(cursor.rows.len(), |bound| cursor.rows.partition_point(|(key, _)| inode_of(key) < bound));
            window.extend(cursor.rows.drain(..end));
        }
        return Ok(Some(window));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::store::{MemStore, StoreMut};
    use crate::types::InodeId;

    proptest! {
        #[test]
        fn windows_hold_every_row_once_and_each_inode_whole(
            rows in proptest::collection::btree_set((0..OF_INODES.len(), 0..20u64, 0..6u8), 0..200),
            rows_at_once in 1..20usize,
        ) {
            let mut store = MemStore::new();
            for (kind, ino, rest) in &rows {
                let mut key = keys::of_inode(OF_INODES[*kind], InodeId(*ino));
                key.push(*rest);
                store.put(key, vec![*rest]).unwrap();
            }
            let mut cursors = OF_INODES.map(|kind| Cursor::new(&store, kind, rows_at_once));
            let (mut tally, mut of_window, mut count) = (Tally::default(), BTreeMap::new(), 0);
            let mut number = 0;
            while let Some(window) = next_window(&mut cursors, &mut tally).unwrap() {
                prop_assert!(!window.is_empty());
                for (key, _) in window {
                    count += 1;
                    prop_assert_eq!(*of_window.entry(inode_of(&key)).or_insert(number), number);
                }
                number += 1;
            }
            prop_assert_eq!(count, rows.len());
            prop_assert_eq!(tally.rows, rows.len() as u64);
        }
    }
}
