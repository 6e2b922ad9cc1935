//! Which number the kernel knows a directory by.
//!
//! The kernel keeps one place for each directory that it knows. When another mount has moved a directory, a lookup finds it
//! at a second place, and the kernel moves it there itself, for which it needs a lock; inside a rename it holds that lock
//! already and fails with ESTALE, however often one tries. So a directory that turns up elsewhere than the kernel has it
//! gets a further number, as if it were another directory. The old number goes on working for those who hold it open.

use std::collections::HashMap;

use bytes::Bytes;
use metadata::types::InodeId;
use parking_lot::Mutex;

/// Further numbers begin here: inodes of group 65535, which cannot exist beside as many others.
const FURTHER_FIRST: u64 = 0xffff << 48;

/// See the module. Grows with the directories that the kernel keeps.
#[derive(Debug, Default)]
pub struct Places(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    /// Where the kernel has each directory, by inode.
    places: HashMap<u64, Place>,
    /// The same by place.
    at: HashMap<(u64, Bytes), u64>,
    /// What was handed out.
    numbers: HashMap<u64, Number>,
    further: u64,
}

#[derive(Debug)]
struct Place {
    number: u64,
    /// The parent's number.
    parent: u64,
    name: Bytes,
}

#[derive(Debug)]
struct Number {
    ino: u64,
    lookups: u64,
}

impl Places {
    /// The inode behind a number of the kernel's.
    pub fn inode(&self, number: u64) -> InodeId {
        if number < FURTHER_FIRST {
            return InodeId(number);
        }
        InodeId(self.0.lock().numbers.get(&number).map_or(number, |known| known.ino))
    }

    /// The number by which to show the kernel a directory that it finds under `name` in `parent` (a number), counted as
    /// handed out.
    pub fn show(&self, ino: InodeId, parent: u64, name: &Bytes) -> u64 {
        let mut known = self.0.lock();
        let number = match known.places.get(&ino.0) {
            Some(place) if place.parent == parent && place.name == *name => place.number,
            None if !known.numbers.contains_key(&ino.0) => ino.0,
            Some(_) | None => {
                known.further += 1;
                FURTHER_FIRST + known.further
            }
        };
        known.leave(ino.0);
        // A name shares its frame's memory with others.
        known.settle(ino.0, Place { number, parent, name: Bytes::copy_from_slice(name) });
        known.numbers.entry(number).or_insert(Number { ino: ino.0, lookups: 0 }).lookups += 1;
        number
    }

    /// The kernel has dropped `count` of what it was told of a number; answers whose that was.
    pub fn forget(&self, number: u64, count: u64) -> InodeId {
        let mut known = self.0.lock();
        let Some(handed) = known.numbers.get_mut(&number) else { return InodeId(number) };
        let ino = handed.ino;
        handed.lookups = handed.lookups.saturating_sub(count);
        if handed.lookups == 0 {
            known.numbers.remove(&number);
            if known.places.get(&ino).is_some_and(|place| place.number == number) {
                known.leave(ino);
            }
        }
        InodeId(ino)
    }

    /// The kernel has renamed something itself, and knows where it is.
    pub fn renamed(&self, from: (u64, &Bytes), to: (u64, &Bytes), exchanged: bool) {
        let mut known = self.0.lock();
        let [moved, replaced] = [from, to].map(|(parent, name)| {
            let ino = known.at.get(&(parent, name.clone())).copied()?;
            known.leave(ino).map(|place| (ino, place.number))
        });
        let back = replaced.filter(|_| exchanged).map(|known| (known, from));
        for ((ino, number), (parent, name)) in moved.map(|known| (known, to)).into_iter().chain(back) {
            known.settle(ino, Place { number, parent, name: Bytes::copy_from_slice(name) });
        }
    }
}

impl Known {
    fn leave(&mut self, ino: u64) -> Option<Place> {
        let place = self.places.remove(&ino)?;
        let at = (place.parent, place.name.clone());
        if self.at.get(&at) == Some(&ino) {
            self.at.remove(&at);
        }
        Some(place)
    }

    fn settle(&mut self, ino: u64, place: Place) {
        self.at.insert((place.parent, place.name.clone()), ino);
        self.places.insert(ino, place);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIR: InodeId = InodeId(77);
    const OTHER: InodeId = InodeId(78);

    fn name(text: &'static str) -> Bytes {
        Bytes::from_static(text.as_bytes())
    }

    #[test]
    fn directory_keeps_its_own_number_while_the_kernel_finds_it_where_it_was() {
        let places = Places::default();
        for _ in 0..3 {
            assert_eq!(places.show(DIR, 1, &name("a")), DIR.0);
        }
        assert_eq!(places.forget(DIR.0, 3), DIR);
        assert_eq!(places.show(DIR, 1, &name("b")), DIR.0, "the kernel had forgotten it");
        assert_eq!(places.inode(DIR.0), DIR);
    }

    #[test]
    fn directory_moved_by_others_gets_a_further_number_and_the_old_one_goes_on() {
        let places = Places::default();
        assert_eq!(places.show(DIR, 1, &name("a")), DIR.0);
        let further = places.show(DIR, 2, &name("b"));
        assert_ne!(further, DIR.0);
        assert_eq!((places.inode(further), places.inode(DIR.0)), (DIR, DIR));
        assert_eq!(places.show(DIR, 2, &name("b")), further);
        assert_eq!(places.forget(DIR.0, 1), DIR);
        assert_eq!(places.show(DIR, 2, &name("b")), further);
        assert_eq!(places.forget(further, 3), DIR);
        assert_eq!(places.show(DIR, 3, &name("c")), DIR.0, "nothing of it is known any more");
    }

    #[test]
    fn directory_whose_newer_number_is_forgotten_first_does_not_get_the_old_one_elsewhere() {
        let places = Places::default();
        places.show(DIR, 1, &name("a"));
        let further = places.show(DIR, 2, &name("b"));
        places.forget(further, 1);
        let third = places.show(DIR, 3, &name("c"));
        assert!(third != DIR.0 && third != further);
    }

    #[test]
    fn own_renames_and_exchanges_keep_numbers() {
        let places = Places::default();
        places.show(DIR, 1, &name("a"));
        places.show(OTHER, 2, &name("b"));
        places.renamed((1, &name("a")), (3, &name("c")), false);
        assert_eq!(places.show(DIR, 3, &name("c")), DIR.0);
        places.renamed((3, &name("c")), (2, &name("b")), true);
        assert_eq!(places.show(DIR, 2, &name("b")), DIR.0);
        assert_eq!(places.show(OTHER, 3, &name("c")), OTHER.0);
        // Over an empty directory, which is gone.
        places.renamed((2, &name("b")), (3, &name("c")), false);
        assert_eq!(places.show(DIR, 3, &name("c")), DIR.0);
        assert_ne!(places.show(OTHER, 4, &name("d")), OTHER.0);
    }
}
