//! Complete listings of small directories: a name that is not in its directory's listing is known to be nothing.
//!
//! A listing is a fact about one version of a directory ([`metadata::types::Attr::data_version`] counts the names that came
//! and went), so nobody need tell when it changes: it answers while the directory's own attributes are known and have its
//! version. Own updates carry it on. Between two versions that differ by as many names as this client has itself added or
//! taken away, nobody else has.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use metadata::types::InodeId;
use multicast::command::Key;
use multicast::ids::{GroupId, LogIndex};
use parking_lot::Mutex;

/// Longest listing that is asked for.
pub const ASKED_MAX: u64 = 1000;
/// Longest listing that is kept; own names make it grow. At the bound it is forgotten.
const NAMES_MAX: usize = 4096;
/// Listings kept; at the bound the least used go.
const LISTINGS_MAX: usize = 512;
/// Names in all listings, some 80 bytes each; at the bound none gets longer.
const TOTAL_MAX: usize = 200_000;
/// Where nobody keeps still, a listing is asked for only after so many names were looked for in vain.
const PATIENCE_MAX: u32 = 64;
/// A listing that has answered so often was worth asking for.
const WORTH_ANSWERS: u32 = 4;

type Place = (GroupId, Key);

/// See the module. Bounded.
#[derive(Debug)]
pub struct Listings {
    slots: quick_cache::sync::Cache<Place, Arc<Mutex<Listing>>>,
    wishes: quick_cache::sync::Cache<Place, Arc<Mutex<Wish>>>,
    total: Arc<AtomicUsize>,
}

/// The names of one directory.
#[derive(Debug)]
struct Listing {
    dir: InodeId,
    version: u64,
    /// The state that it was taken from, or the last own update that it knows.
    as_of: LogIndex,
    /// Names that own updates have added or taken away since `version`.
    pending: u64,
    names: HashSet<Box<[u8]>>,
    answers: u32,
    total: Arc<AtomicUsize>,
}

/// How many names were looked for in vain since a directory's listing was last asked for, and how many make it worth it.
#[derive(Debug)]
struct Wish {
    misses: u32,
    needed: u32,
}

/// A name that has come or gone.
#[derive(Clone, Copy, Debug)]
pub struct NameChange<'a> {
    /// Which.
    pub name: &'a Bytes,
    /// It is there now.
    pub is_there: bool,
}

impl Default for Listings {
    fn default() -> Self {
        Listings {
            slots: quick_cache::sync::Cache::new(LISTINGS_MAX),
            wishes: quick_cache::sync::Cache::new(LISTINGS_MAX),
            total: Arc::default(),
        }
    }
}

impl Listings {
    /// True if the directory, in this version, has certainly no such name.
    pub fn is_absent(&self, place: Place, dir: InodeId, version: u64, name: &[u8]) -> bool {
        let Some(slot) = self.slots.get(&place) else { return false };
        let mut listing = slot.lock();
        let knows = listing.dir == dir && listing.version == version && listing.pending == 0;
        let is_absent = knows && !listing.names.contains(name);
        listing.answers = listing.answers.saturating_add(u32::from(is_absent));
        is_absent
    }

    /// A name was looked for in vain. True if it is time to ask for the listing; the next time will be later, unless that
    /// proves useful.
    pub fn miss(&self, place: Place) -> bool {
        let wish = self.wishes.get(&place).unwrap_or_else(|| {
            let new = Arc::new(Mutex::new(Wish { misses: 0, needed: 1 }));
            self.wishes.insert(place, new.clone());
            new
        });
        let was_useful = || self.slots.get(&place).is_some_and(|slot| slot.lock().answers >= WORTH_ANSWERS);
        let mut wish = wish.lock();
        wish.misses += 1;
        if wish.misses < wish.needed && !was_useful() {
            return false;
        }
        wish.needed = if was_useful() { 1 } else { (wish.needed * 2).min(PATIENCE_MAX) };
        wish.misses = 0;
        true
    }

    /// A directory's complete listing.
    pub fn put(&self, place: Place, dir: InodeId, version: u64, as_of: LogIndex, names: HashSet<Box<[u8]>>) {
        if self.total.fetch_add(names.len(), Ordering::Relaxed) + names.len() > TOTAL_MAX {
            self.total.fetch_sub(names.len(), Ordering::Relaxed);
            return;
        }
        let total = self.total.clone();
        let listing = Listing { dir, version, as_of, pending: 0, names, answers: 0, total };
        self.slots.insert(place, Arc::new(Mutex::new(listing)));
    }

    /// An own update that executed at `index` has added and taken away names. `version`: the directory's afterwards, if
    /// that was told. `in_order`: told in the order of the stream that the listing may have come from.
    pub fn change(
        &self,
        place: Place,
        changes: &[NameChange<'_>],
        index: LogIndex,
        version: Option<u64>,
        in_order: bool,
    ) {
        let Some(slot) = self.slots.get(&place) else { return };
        let mut listing = slot.lock();
        if version.is_some_and(|version| listing.is_at(version)) {
            // The same update was told by another of its groups.
            listing.as_of = index.max(listing.as_of);
            return;
        }
        // What came out of order is in the listing already, or not: nobody can say.
        let is_news = index > listing.as_of || (in_order && index == listing.as_of);
        if !is_news || !listing.change(changes, index, version) {
            drop(listing);
            self.slots.remove(&place);
        }
    }
}

impl Listing {
    /// True if these are all names of that version.
    fn is_at(&self, version: u64) -> bool {
        self.version == version && self.pending == 0
    }

    /// False if it is of no use any more.
    fn change(&mut self, changes: &[NameChange<'_>], index: LogIndex, version: Option<u64>) -> bool {
        for change in changes {
            let (before, name) = (self.names.len(), &change.name[..]);
            if change.is_there {
                self.names.insert(name.into())
            } else {
                self.names.remove(name)
            };
            match self.names.len() {
                now if now > before => self.total.fetch_add(now - before, Ordering::Relaxed),
                now => self.total.fetch_sub(before - now, Ordering::Relaxed),
            };
        }
        self.as_of = index;
        self.pending += changes.len() as u64;
        if let Some(version) = version {
            if self.version + self.pending != version {
                return false;
            }
            self.version = version;
            self.pending = 0;
        }
        self.names.len() <= NAMES_MAX && self.total.load(Ordering::Relaxed) <= TOTAL_MAX
    }
}

impl Drop for Listing {
    fn drop(&mut self) {
        self.total.fetch_sub(self.names.len(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    const DIR: InodeId = InodeId(7);
    const PLACE: Place = (GroupId(1), Key(9));

    fn name(number: u8) -> Bytes {
        Bytes::from(vec![b'a' + number])
    }

    #[derive(Clone, Debug)]
    enum Step {
        /// Of this client or another; the reply tells the version or not.
        Change {
            name: u8,
            own: bool,
            told: bool,
        },
        List,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => (0..5_u8, prop::bool::weighted(0.8), any::<bool>())
                .prop_map(|(name, own, told)| Step::Change { name, own, told }),
            1 => Just(Step::List),
        ]
    }

    proptest! {
        #[test]
        fn name_that_is_there_is_never_absent(steps in proptest::collection::vec(step(), 1..60)) {
            let listings = Listings::default();
            let (mut names, mut version, mut answered) = (BTreeSet::new(), 0_u64, 0);
            for step in steps {
                match step {
                    Step::Change { name: number, own, told } => {
                        let is_there = names.insert(number) || !names.remove(&number);
                        version += 1;
                        if own {
                            let changes = [NameChange { name: &name(number), is_there }];
                            listings.change(PLACE, &changes, LogIndex(version), told.then_some(version), true);
                        }
                    }
                    Step::List => {
                        let held = names.iter().map(|number| name(*number)[..].into()).collect();
                        listings.put(PLACE, DIR, version, LogIndex(version), held);
                    }
                }
                for number in 0..5 {
                    let absent = listings.is_absent(PLACE, DIR, version, &name(number));
                    answered += u32::from(absent);
                    prop_assert!(!absent || !names.contains(&number));
                }
            }
            let _ = answered;
            drop(listings.slots.remove(&PLACE));
            prop_assert_eq!(listings.total.load(Ordering::Relaxed), 0);
        }
    }

    #[test]
    fn listing_is_carried_on_by_own_updates_and_lost_to_others() {
        let listings = Listings::default();
        listings.put(PLACE, DIR, 3, LogIndex(10), [name(0)[..].into()].into());
        let absent = |version, number| listings.is_absent(PLACE, DIR, version, &name(number));
        let came = |number, index, version| {
            let changes = [NameChange { name: &name(number), is_there: true }];
            listings.change(PLACE, &changes, LogIndex(index), version, true);
        };
        assert!(absent(3, 1) && !absent(3, 0) && !absent(4, 1));
        came(1, 11, Some(4));
        assert!(absent(4, 2) && !absent(4, 1));
        came(2, 12, None);
        assert!(!absent(4, 3) && !absent(5, 3), "not known until the version is");
        came(3, 13, Some(6));
        assert!(absent(6, 4));
        came(4, 14, Some(8));
        assert!(!absent(8, 5), "somebody else was there");
    }

    #[test]
    fn listing_is_asked_for_less_often_where_it_is_of_no_use() {
        let listings = Listings::default();
        let asked = (0..1000).filter(|_| listings.miss(PLACE)).count();
        assert!((6..30).contains(&asked), "{asked}");
        listings.put(PLACE, DIR, 1, LogIndex(1), HashSet::new());
        (0..WORTH_ANSWERS).for_each(|_| assert!(listings.is_absent(PLACE, DIR, 1, b"x")));
        assert!(listings.miss(PLACE));
    }
}
