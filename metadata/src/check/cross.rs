//! All groups' rows together: names and inodes, parents and children, references and blobs.
//!
//! Facts are sorted into parts by the inode, or the blob, that they are about; what they say of one another is then looked at
//! part by part.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use multicast::ids::GroupId;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{About, Seen, Violation};
use crate::error::Error;
use crate::types::{BlobId, Dirent, FileKind, InodeId};

/// Into so many parts facts about inodes, and facts about blobs, are sorted.
pub const PARTS: usize = 64;
/// More directories one below the other are not followed when a path is looked for.
const DEPTH_MAX: usize = 128;

/// Keeps records in parts.
pub trait Heap {
    /// Adds to a part, one of `2 * PARTS`.
    ///
    /// # Errors
    /// If it cannot be kept.
    fn put(&mut self, part: usize, record: &[u8]) -> Result<(), Error>;

    /// All of a part, in the order in which it was put.
    ///
    /// # Errors
    /// If it cannot be read.
    fn part(&mut self, part: usize) -> Result<Vec<u8>, Error>;
}

/// In memory.
#[derive(Debug, Default)]
pub struct MemHeap {
    parts: BTreeMap<usize, Vec<u8>>,
}

impl Heap for MemHeap {
    fn put(&mut self, part: usize, record: &[u8]) -> Result<(), Error> {
        self.parts.entry(part).or_default().extend_from_slice(record);
        Ok(())
    }

    fn part(&mut self, part: usize) -> Result<Vec<u8>, Error> {
        Ok(self.parts.get(&part).cloned().unwrap_or_default())
    }
}

/// About an inode.
#[derive(Serialize, Deserialize)]
enum OfInode {
    At { group: GroupId, ino: InodeId, kind: FileKind, nlink: u32, parent: Option<InodeId> },
    Name { group: GroupId, dir: InodeId, name: Bytes, node: Dirent },
}

/// About a blob.
#[derive(Serialize, Deserialize)]
enum OfBlob {
    Reference { group: GroupId, blob: BlobId, ino: InodeId, len: u32 },
    Row { group: GroupId, blob: BlobId, references: u64, garbage: Option<(u64, bool)> },
    Garbage { group: GroupId, blob: BlobId, number: (u64, bool) },
    Stored { blob: BlobId, len: u64, is_new: bool },
}

struct Directory {
    ino: InodeId,
    parent: Option<InodeId>,
    group: GroupId,
}

/// A blob that is in its bucket, and that no group knows of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Orphan {
    /// Which.
    pub blob: BlobId,
    /// Its length.
    pub len: u64,
    /// Whoever put it there may be about to refer to it.
    pub is_new: bool,
}

/// Joins what was seen of all groups.
pub struct Cross<H> {
    heap: H,
    directories: Vec<Directory>,
    listed: BTreeSet<u16>,
    lacks_groups: bool,
    orphans: Vec<Orphan>,
}

impl<H: Heap> Cross<H> {
    /// Nothing was seen yet.
    pub fn new(heap: H) -> Cross<H> {
        Cross { heap, directories: Vec::new(), listed: BTreeSet::new(), lacks_groups: false, orphans: Vec::new() }
    }

    /// Not every group was looked at: what only all of them together tell is left out.
    pub fn lacks_groups(&mut self) {
        self.lacks_groups = true;
    }

    /// All blobs of the bucket of this origin are told as [`Seen::Stored`]: what is not, is not there.
    pub fn listed(&mut self, origin: u16) {
        self.listed.insert(origin);
    }

    /// Takes what was seen of a group.
    ///
    /// # Errors
    /// If it cannot be kept.
    pub fn add(&mut self, group: GroupId, seen: Seen) -> Result<(), Error> {
        match seen {
            Seen::Rows(_) | Seen::Wrong { .. } => Ok(()),
            Seen::Inode { ino, kind, nlink, parent } => {
                if kind == FileKind::Directory && nlink > 0 {
                    self.directories.push(Directory { ino, parent, group });
                }
                self.put(part_of_inode(ino), &OfInode::At { group, ino, kind, nlink, parent })
            }
            Seen::Name { dir, name, node } => {
                self.put(part_of_inode(node.ino), &OfInode::Name { group, dir, name, node })
            }
            Seen::Reference { ino, blob, len } => {
                self.put(part_of_blob(blob), &OfBlob::Reference { group, blob, ino, len })
            }
            Seen::Blob { blob, references, garbage } => {
                self.put(part_of_blob(blob), &OfBlob::Row { group, blob, references, garbage })
            }
            Seen::Garbage { blob, number } => self.put(part_of_blob(blob), &OfBlob::Garbage { group, blob, number }),
            Seen::Stored { blob, len, is_new } => self.put(part_of_blob(blob), &OfBlob::Stored { blob, len, is_new }),
        }
    }

    fn put<T: Serialize>(&mut self, part: usize, record: &T) -> Result<(), Error> {
        let bytes = postcard::to_allocvec(record).expect("a fact in memory always encodes");
        self.heap.put(part, &bytes)
    }

    fn part<T: DeserializeOwned>(&mut self, part: usize) -> Result<Vec<T>, Error> {
        let bytes = self.heap.part(part)?;
        let (mut rest, mut records) = (bytes.as_slice(), Vec::new());
        while !rest.is_empty() {
            let taken = postcard::take_from_bytes(rest);
            let (record, left) =
                taken.map_err(|_| Error::StoreFailed("facts that were put aside are damaged".into()))?;
            records.push(record);
            rest = left;
        }
        Ok(records)
    }

    /// Looks at everything. What is wrong is told as it is found.
    ///
    /// # Errors
    /// If what was put aside cannot be read.
    pub fn finish(&mut self, found: &mut dyn FnMut(Violation)) -> Result<(), Error> {
        if !self.lacks_groups {
            for part in 0..PARTS {
                check_names(&self.part(part)?, found);
            }
            self.check_parents(found);
        }
        for part in PARTS..2 * PARTS {
            let facts: Vec<OfBlob> = self.part(part)?;
            self.check_blobs(&facts, found);
        }
        Ok(())
    }

    /// Blobs that no group knows of; empty unless all groups were looked at.
    pub fn orphans(&self) -> &[Orphan] {
        &self.orphans
    }

    /// Every directory that has a name hangs below the root.
    fn check_parents(&mut self, found: &mut dyn FnMut(Violation)) {
        self.directories.sort_unstable_by_key(|directory| directory.ino);
        let all = &self.directories;
        let place = |ino: InodeId| all.binary_search_by_key(&ino, |directory| directory.ino).ok();
        if place(InodeId::ROOT).is_none() {
            let what = "there is no root".to_owned();
            found(Violation { group: GroupId::GLOBAL, about: About::Group, what });
        }
        // Whether it hangs below the root; not known yet: none.
        let mut hangs: Vec<Option<bool>> = vec![None; all.len()];
        for start in 0..all.len() {
            let (mut way, mut at) = (Vec::new(), Some(start));
            let verdict = loop {
                let Some(here) = at else { break false };
                if let Some(known) = hangs[here] {
                    break known;
                }
                if all[here].ino == InodeId::ROOT {
                    hangs[here] = Some(true);
                    break true;
                }
                // Met again on this way, it is a circle.
                hangs[here] = Some(false);
                way.push(here);
                at = all[here].parent.and_then(place);
            };
            for here in way {
                hangs[here] = Some(verdict);
            }
        }
        for (directory, _) in all.iter().zip(&hangs).filter(|(_, hangs)| **hangs != Some(true)) {
            let (group, ino) = (directory.group, directory.ino);
            let what = format!("directory {ino} does not hang below the root");
            found(Violation { group, about: About::Inode(ino), what });
        }
    }

    fn check_blobs(&mut self, facts: &[OfBlob], found: &mut dyn FnMut(Violation)) {
        let mut blobs: BTreeMap<BlobId, BlobFacts> = BTreeMap::new();
        for fact in facts {
            match *fact {
                OfBlob::Reference { group, blob, ino, len } => {
                    let counts = blobs.entry(blob).or_default().groups.entry(group).or_default();
                    counts.counted += 1;
                    counts.referrer = Some((ino, len));
                }
                OfBlob::Row { group, blob, references, garbage } => {
                    blobs.entry(blob).or_default().groups.entry(group).or_default().row = Some((references, garbage));
                }
                OfBlob::Garbage { group, blob, number } => {
                    blobs.entry(blob).or_default().groups.entry(group).or_default().filed.push(number);
                }
                OfBlob::Stored { blob, len, is_new } => blobs.entry(blob).or_default().stored = Some((len, is_new)),
            }
        }
        for (blob, facts) in blobs {
            facts.check(blob, self.listed.contains(&blob.origin), found);
            if let (Some((len, is_new)), true, false) = (facts.stored, facts.groups.is_empty(), self.lacks_groups) {
                self.orphans.push(Orphan { blob, len, is_new });
            }
        }
    }

    /// Where inodes are in the tree: a path for each that has one.
    ///
    /// # Errors
    /// If what was put aside cannot be read.
    pub fn paths(&mut self, wanted: &BTreeSet<InodeId>) -> Result<BTreeMap<InodeId, String>, Error> {
        let mut names: BTreeMap<InodeId, (InodeId, Bytes)> = BTreeMap::new();
        let mut open: BTreeSet<InodeId> = wanted.clone();
        for _ in 0..DEPTH_MAX {
            open.retain(|ino| *ino != InodeId::ROOT && !names.contains_key(ino));
            if open.is_empty() {
                break;
            }
            let parts: BTreeSet<usize> = open.iter().map(|ino| part_of_inode(*ino)).collect();
            let mut next = BTreeSet::new();
            for part in parts {
                for fact in self.part::<OfInode>(part)? {
                    if let OfInode::Name { dir, name, node, .. } = fact
                        && open.contains(&node.ino)
                    {
                        names.entry(node.ino).or_insert((dir, name));
                        next.insert(dir);
                    }
                }
            }
            open = next;
        }
        let path = |&ino: &InodeId| {
            let (mut at, mut path) = (ino, String::new());
            for _ in 0..DEPTH_MAX {
                if at == InodeId::ROOT {
                    return Some((ino, if path.is_empty() { "/".to_owned() } else { path }));
                }
                let (dir, name) = names.get(&at)?;
                path = format!("/{}{path}", String::from_utf8_lossy(name));
                at = *dir;
            }
            None
        };
        Ok(wanted.iter().filter_map(path).collect())
    }
}

#[derive(Default)]
struct BlobFacts {
    groups: BTreeMap<GroupId, Counts>,
    stored: Option<(u64, bool)>,
}

/// What one group says of a blob.
#[derive(Default)]
struct Counts {
    /// References found, and by which file.
    counted: u64,
    referrer: Option<(InodeId, u32)>,
    /// References as counted by the group, and its number among the garbage.
    row: Option<(u64, Option<(u64, bool)>)>,
    /// Its numbers among the garbage, as found there.
    filed: Vec<(u64, bool)>,
}

impl BlobFacts {
    fn check(&self, blob: BlobId, is_listed: bool, found: &mut dyn FnMut(Violation)) {
        for (&group, counts) in &self.groups {
            let mut note = |what| found(Violation { group, about: About::Blob(blob), what });
            let Counts { counted, referrer, row, filed } = counts;
            match row {
                None if *counted > 0 => note(format!("{blob:?} is not counted")),
                None => {}
                Some((references, _)) if references != counted => {
                    note(format!("{blob:?} has {counted} references, not {references}"));
                }
                Some(_) => {}
            }
            let expected: Vec<(u64, bool)> = row.and_then(|(_, garbage)| garbage).into_iter().collect();
            let references = row.map_or(*counted, |(references, _)| references);
            if *filed != expected || filed.is_empty() != (references > 0) {
                let not = if filed.is_empty() { " not" } else { "" };
                note(format!("{blob:?} has {references} references and is{not} garbage"));
            }
            // What is doubtful here may well be used elsewhere.
            let is_garbage = filed.iter().any(|(_, is_doubtful)| !is_doubtful);
            if is_garbage && self.groups.iter().any(|(other, counts)| *other != group && counts.counted > 0) {
                note(format!("{blob:?} is garbage, but referred to"));
            }
            let Some((ino, len)) = *referrer else { continue };
            let mut lost = |what| found(Violation { group, about: About::Inode(ino), what });
            match self.stored {
                None if is_listed => lost(format!("inode {ino} refers to {blob:?}, which is not in its bucket")),
                Some((stored, _)) if stored != u64::from(len) => {
                    lost(format!("inode {ino} refers to {blob:?} of {len} bytes, which has {stored} in its bucket"));
                }
                _ => {}
            }
        }
    }
}

/// Every name stands for an inode at its home, and every inode has as many names as it says, in its parent.
fn check_names(facts: &[OfInode], found: &mut dyn FnMut(Violation)) {
    let mut homes: BTreeMap<InodeId, Vec<&OfInode>> = BTreeMap::new();
    let mut names: BTreeMap<InodeId, Vec<InodeId>> = BTreeMap::new();
    for fact in facts {
        match fact {
            OfInode::At { ino, .. } => homes.entry(*ino).or_default().push(fact),
            OfInode::Name { dir, node, .. } => names.entry(node.ino).or_default().push(*dir),
        }
    }
    for fact in facts {
        match fact {
            OfInode::Name { group, dir, name, node } => {
                let mut at = homes.get(&node.ino).into_iter().flatten();
                let is_there = at.any(
                    |fact| matches!(fact, OfInode::At { group, kind, .. } if *group == node.home && *kind == node.kind),
                );
                if !is_there {
                    let name = name.escape_ascii();
                    let what = format!("the name {name} in {dir} stands for {node:?}, which is not there");
                    found(Violation { group: *group, about: About::Inode(node.ino), what });
                }
            }
            OfInode::At { group, ino, kind, nlink, parent } => {
                let mut note = |what| found(Violation { group: *group, about: About::Inode(*ino), what });
                let dirs = names.get(ino).map_or(&[][..], Vec::as_slice);
                let expected = match kind {
                    FileKind::Directory => usize::from(*nlink > 0 && *ino != InodeId::ROOT),
                    _ => *nlink as usize,
                };
                if dirs.len() != expected {
                    note(format!("inode {ino} has {nlink} links but {} names", dirs.len()));
                }
                if let (FileKind::Directory, [dir]) = (kind, dirs)
                    && *parent != Some(*dir)
                {
                    note(format!("directory {ino} is in {dir} but says {parent:?}"));
                }
            }
        }
    }
    for (ino, at) in homes.iter().filter(|(_, at)| at.len() > 1) {
        if let Some(OfInode::At { group, .. }) = at.last() {
            let what = format!("inode {ino} lives in two groups");
            found(Violation { group: *group, about: About::Inode(*ino), what });
        }
    }
}

fn part_of_inode(ino: InodeId) -> usize {
    spread(ino.0)
}

fn part_of_blob(blob: BlobId) -> usize {
    PARTS + spread(blob.writer ^ blob.sequence.rotate_left(32) ^ u64::from(blob.origin))
}

/// Numbers that follow each other go to different parts.
fn spread(number: u64) -> usize {
    (number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 58) as usize
}

const _: () = assert!(PARTS == 1 << (64 - 58));
