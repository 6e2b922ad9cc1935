//! The ordered key-value store that the namespace lives in: a trait, its in-memory twin, and an overlay that collects
//! what a batch of log entries writes.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use xxhash_rust::xxh3::Xxh3;

use crate::error::Error;
use crate::keys;

/// A key and its value.
pub type Row = (Vec<u8>, Vec<u8>);
/// What a batch writes: a value to put, or `None` to delete.
pub type WriteSet = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

/// Reading an ordered key-value store. Keys are ordered bytewise.
pub trait Store {
    /// The value of `key`.
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Error>;

    /// Rows whose keys begin with `prefix` and are not below `start`, in order, at most `limit`.
    fn scan(&self, prefix: &[u8], start: &[u8], limit: usize) -> Result<Vec<Row>, Error>;
}

/// Writing one. An error may mean that what was there could not be read first.
pub trait StoreMut: Store {
    /// Sets the value of `key`.
    fn put(&mut self, key: Vec<u8>, value: Vec<u8>) -> Result<(), Error>;

    /// As [`StoreMut::put`], where the caller knows that there is no such row: nobody needs to look.
    fn put_new(&mut self, key: Vec<u8>, value: Vec<u8>) -> Result<(), Error> {
        self.put(key, value)
    }

    /// Removes `key`, if it is there.
    fn delete(&mut self, key: &[u8]) -> Result<(), Error>;
}

impl<S: Store + ?Sized> Store for &S {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Error> {
        (**self).get(key)
    }

    fn scan(&self, prefix: &[u8], start: &[u8], limit: usize) -> Result<Vec<Row>, Error> {
        (**self).scan(prefix, start, limit)
    }
}

/// A store in memory, for tests and simulation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemStore {
    rows: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl MemStore {
    /// An empty store.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Applies what an [`Overlay`] collected.
    pub fn apply(&mut self, writes: WriteSet) {
        for (key, value) in writes {
            match value {
                Some(value) => self.rows.insert(key, value),
                None => self.rows.remove(&key),
            };
        }
    }

    /// All rows, in order.
    pub fn rows(&self) -> impl Iterator<Item = (&[u8], &[u8])> + '_ {
        self.rows.iter().map(|(key, value)| (key.as_slice(), value.as_slice()))
    }
}

impl Store for MemStore {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Error> {
        Ok(self.rows.get(key).cloned())
    }

    fn scan(&self, prefix: &[u8], start: &[u8], limit: usize) -> Result<Vec<Row>, Error> {
        let from = start.max(prefix).to_vec();
        let rows = self.rows.range(from..).take_while(|(key, _)| key.starts_with(prefix)).take(limit);
        Ok(rows.map(|(key, value)| (key.clone(), value.clone())).collect())
    }
}

impl StoreMut for MemStore {
    fn put(&mut self, key: Vec<u8>, value: Vec<u8>) -> Result<(), Error> {
        self.rows.insert(key, value);
        Ok(())
    }

    fn delete(&mut self, key: &[u8]) -> Result<(), Error> {
        self.rows.remove(key);
        Ok(())
    }
}

/// A view of a store with changes on top that the store does not have yet. Made for one batch of log entries: what it
/// wrote goes into the store at once, then it is dropped.
///
/// It keeps the state digest: the wrapping sum of every row's hash, so that it does not depend on the order of writes and
/// costs no more than what was written. The digest's own row is not part of it.
#[derive(Debug)]
pub struct Overlay<'a, B: ?Sized> {
    base: &'a B,
    base_digest: u128,
    cells: RefCell<BTreeMap<Vec<u8>, Cell>>,
}

/// A key that was looked at or written.
#[derive(Debug)]
struct Cell {
    /// What the base holds.
    before: Option<Vec<u8>>,
    /// What was written last.
    written: Option<Option<Vec<u8>>>,
}

impl Cell {
    fn value(&self) -> &Option<Vec<u8>> {
        self.written.as_ref().unwrap_or(&self.before)
    }
}

impl<'a, B: Store + ?Sized> Overlay<'a, B> {
    /// Nothing written yet.
    pub fn new(base: &'a B) -> Result<Self, Error> {
        let base_digest = stored_digest(base)?;
        Ok(Overlay { base, base_digest, cells: RefCell::default() })
    }

    /// The digest of the base's rows with the changes.
    #[must_use]
    pub fn digest(&self) -> u128 {
        let mut digest = self.base_digest;
        for (key, cell) in self.cells.borrow().iter() {
            let Some(written) = &cell.written else { continue };
            if let Some(old) = &cell.before {
                digest = digest.wrapping_sub(row_hash(key, old));
            }
            if let Some(new) = written {
                digest = digest.wrapping_add(row_hash(key, new));
            }
        }
        digest
    }

    /// What the base must be given, the digest's row with it. Rows that ended as they were are left out.
    #[must_use]
    pub fn into_writes(self) -> WriteSet {
        let digest = self.digest();
        let changed = |(key, Cell { before, written }): (Vec<u8>, Cell)| {
            written.filter(|written| *written != before).map(|written| (key, written))
        };
        let mut writes: WriteSet = self.cells.into_inner().into_iter().filter_map(changed).collect();
        if digest != self.base_digest {
            writes.insert(keys::digest(), Some(digest.to_be_bytes().to_vec()));
        }
        writes
    }

    /// `before` tells what the base holds, if the key was neither looked at nor written.
    fn write(
        &mut self,
        key: Vec<u8>,
        value: Option<Vec<u8>>,
        before: impl FnOnce(&B, &[u8]) -> Result<Option<Vec<u8>>, Error>,
    ) -> Result<(), Error> {
        match self.cells.get_mut().entry(key) {
            Entry::Occupied(mut cell) => cell.get_mut().written = Some(value),
            Entry::Vacant(cell) => {
                let before = before(self.base, cell.key())?;
                cell.insert(Cell { before, written: Some(value) });
            }
        }
        Ok(())
    }
}

impl<B: Store + ?Sized> Store for Overlay<'_, B> {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Error> {
        if let Some(cell) = self.cells.borrow().get(key) {
            return Ok(cell.value().clone());
        }
        let before = self.base.get(key)?;
        self.cells.borrow_mut().insert(key.to_vec(), Cell { before: before.clone(), written: None });
        Ok(before)
    }

    fn scan(&self, prefix: &[u8], start: &[u8], limit: usize) -> Result<Vec<Row>, Error> {
        let mut rows: Vec<Row> = Vec::new();
        let mut from = start.max(prefix).to_vec();
        while rows.len() < limit {
            let wanted = limit - rows.len();
            let page = self.base.scan(prefix, &from, wanted)?;
            // A full page says nothing about what lies behind it: merge only up to its end, then ask on.
            let page_end = if page.len() < wanted { None } else { page.last().map(|(key, _)| key.clone()) };
            let cells = self.cells.borrow();
            let written = cells
                .range(from..)
                .take_while(|(key, _)| key.starts_with(prefix) && page_end.as_ref().is_none_or(|end| *key <= end))
                .filter_map(|(key, cell)| Some((key, cell.written.as_ref()?)));
            rows.extend(merge(page, written));
            match page_end {
                Some(end) => from = [end.as_slice(), &[0]].concat(),
                None => break,
            }
        }
        rows.truncate(limit);
        Ok(rows)
    }
}

impl<B: Store + ?Sized> StoreMut for Overlay<'_, B> {
    fn put(&mut self, key: Vec<u8>, value: Vec<u8>) -> Result<(), Error> {
        self.write(key, Some(value), |base, key| base.get(key))
    }

    fn put_new(&mut self, key: Vec<u8>, value: Vec<u8>) -> Result<(), Error> {
        self.write(key, Some(value), |_, _| Ok(None))
    }

    fn delete(&mut self, key: &[u8]) -> Result<(), Error> {
        self.write(key.to_vec(), None, |base, key| base.get(key))
    }
}

/// The digest that the store's last batch left; zero for an empty store.
pub fn stored_digest<S: Store + ?Sized>(store: &S) -> Result<u128, Error> {
    let key = keys::digest();
    match store.get(&key)? {
        None => Ok(0),
        Some(value) => match <[u8; 16]>::try_from(value.as_slice()) {
            Ok(bytes) => Ok(u128::from_be_bytes(bytes)),
            Err(_) => Err(Error::CorruptRow { key }),
        },
    }
}

/// One row's share in the digest.
#[must_use]
pub fn row_hash(key: &[u8], value: &[u8]) -> u128 {
    let mut hasher = Xxh3::new();
    hasher.update(&(key.len() as u64).to_be_bytes());
    hasher.update(key);
    hasher.update(value);
    hasher.digest128()
}

fn merge<'w>(page: Vec<Row>, written: impl Iterator<Item = (&'w Vec<u8>, &'w Option<Vec<u8>>)>) -> Vec<Row> {
    let mut merged = Vec::with_capacity(page.len());
    let mut page = page.into_iter().peekable();
    for (key, value) in written {
        while let Some(row) = page.next_if(|row| row.0 < *key) {
            merged.push(row);
        }
        page.next_if(|row| row.0 == *key);
        if let Some(value) = value {
            merged.push((key.clone(), value.clone()));
        }
    }
    merged.extend(page);
    merged
}
