//! The ordered key-value store that the namespace lives in: a trait, its in-memory twin, and an overlay that collects
//! what a batch of log entries writes.

use std::cell::RefCell;
use std::collections::BTreeMap;

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
    /// What the base was seen to hold. Every written key is in here.
    seen: RefCell<BTreeMap<Vec<u8>, Option<Vec<u8>>>>,
    writes: WriteSet,
}

impl<'a, B: Store + ?Sized> Overlay<'a, B> {
    /// Nothing written yet.
    pub fn new(base: &'a B) -> Result<Self, Error> {
        let base_digest = stored_digest(base)?;
        Ok(Overlay { base, base_digest, seen: RefCell::default(), writes: WriteSet::new() })
    }

    /// True if nothing was written.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.writes.is_empty()
    }

    /// How many rows were written.
    #[must_use]
    pub fn len(&self) -> usize {
        self.writes.len()
    }

    /// The digest of the base's rows with the changes.
    #[must_use]
    pub fn digest(&self) -> u128 {
        let seen = self.seen.borrow();
        let mut digest = self.base_digest;
        for (key, value) in &self.writes {
            if let Some(Some(old)) = seen.get(key) {
                digest = digest.wrapping_sub(row_hash(key, old));
            }
            if let Some(new) = value {
                digest = digest.wrapping_add(row_hash(key, new));
            }
        }
        digest
    }

    /// What the base must be given, the digest's row with it. Rows that ended as they were are left out.
    #[must_use]
    pub fn into_writes(self) -> WriteSet {
        let digest = self.digest();
        let seen = self.seen.into_inner();
        let mut writes = self.writes;
        writes.retain(|key, value| seen.get(key) != Some(value));
        if digest != self.base_digest {
            writes.insert(keys::digest(), Some(digest.to_be_bytes().to_vec()));
        }
        writes
    }

    fn see(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Error> {
        if let Some(value) = self.seen.borrow().get(key) {
            return Ok(value.clone());
        }
        let value = self.base.get(key)?;
        self.seen.borrow_mut().insert(key.to_vec(), value.clone());
        Ok(value)
    }
}

impl<B: Store + ?Sized> Store for Overlay<'_, B> {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Error> {
        match self.writes.get(key) {
            Some(value) => Ok(value.clone()),
            None => self.see(key),
        }
    }

    fn scan(&self, prefix: &[u8], start: &[u8], limit: usize) -> Result<Vec<Row>, Error> {
        let mut rows: Vec<Row> = Vec::new();
        let mut from = start.max(prefix).to_vec();
        while rows.len() < limit {
            let wanted = limit - rows.len();
            let page = self.base.scan(prefix, &from, wanted)?;
            // A full page says nothing about what lies behind it: merge only up to its end, then ask on.
            let page_end = if page.len() < wanted { None } else { page.last().map(|(key, _)| key.clone()) };
            let written = self
                .writes
                .range(from..)
                .take_while(|(key, _)| key.starts_with(prefix) && page_end.as_ref().is_none_or(|end| *key <= end));
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
        self.see(&key)?;
        self.writes.insert(key, Some(value));
        Ok(())
    }

    fn delete(&mut self, key: &[u8]) -> Result<(), Error> {
        self.see(key)?;
        self.writes.insert(key.to_vec(), None);
        Ok(())
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
