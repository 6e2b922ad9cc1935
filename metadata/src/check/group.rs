//! One group's rows by themselves.

use std::collections::{BTreeMap, BTreeSet};

use multicast::ids::{GroupId, SessionId};

use super::Violation;
use crate::error::Error;
use crate::rows::{
    self, BlobRow, COOKIE_RESERVED_MAX, Counters, Departing, DirentRow, ExtentRow, Grave, InodeRow, ListingRow,
    LockRow, Source,
};
use crate::store::{Store, row_hash, stored_digest};
use crate::types::{BlobId, FileKind, InodeId};
use crate::{keys, validate};

/// A group's rows, decoded.
pub(super) struct GroupRows {
    pub(super) group: GroupId,
    pub(super) inodes: BTreeMap<InodeId, InodeRow>,
    pub(super) dirents: BTreeMap<(InodeId, Vec<u8>), DirentRow>,
    pub(super) garbage: BTreeMap<u64, BlobId>,
    pub(super) references: BTreeMap<BlobId, u64>,
    pub(super) forwards: BTreeMap<InodeId, GroupId>,
    listings: BTreeMap<(InodeId, u64), ListingRow>,
    extents: BTreeMap<InodeId, Vec<(u64, ExtentRow)>>,
    targets: BTreeMap<InodeId, bytes::Bytes>,
    xattrs: BTreeMap<InodeId, (u32, u32)>,
    orphans: BTreeMap<InodeId, Vec<SessionId>>,
    sessions: BTreeSet<SessionId>,
    locks: BTreeMap<(InodeId, bool), Vec<LockRow>>,
    locked: BTreeSet<(SessionId, InodeId, bool)>,
    blobs: BTreeMap<Vec<u8>, BlobRow>,
    doubtful: BTreeMap<u64, BlobId>,
    graves: BTreeMap<InodeId, Grave>,
    closing: BTreeSet<SessionId>,
    departing: BTreeMap<InodeId, Departing>,
    arriving: BTreeSet<InodeId>,
    stale_copies: BTreeMap<InodeId, u64>,
    unfinished: u64,
    counters: Counters,
    digest_stored: u128,
    digest: u128,
}

impl GroupRows {
    pub(super) fn load<S: Store>(group: GroupId, store: &S) -> Result<Self, Error> {
        let mut all = GroupRows::empty(group);
        all.digest_stored = stored_digest(store)?;
        for kind in 1..keys::FOREIGN_KIND_MIN {
            for (key, value) in store.scan(&[kind], &[], usize::MAX)? {
                if key != keys::digest() {
                    all.digest = all.digest.wrapping_add(row_hash(&key, &value));
                    all.take(&key, &value)?;
                }
            }
        }
        all.bury();
        Ok(all)
    }

    fn empty(group: GroupId) -> Self {
        GroupRows {
            group,
            inodes: BTreeMap::new(),
            dirents: BTreeMap::new(),
            garbage: BTreeMap::new(),
            references: BTreeMap::new(),
            forwards: BTreeMap::new(),
            listings: BTreeMap::new(),
            extents: BTreeMap::new(),
            targets: BTreeMap::new(),
            xattrs: BTreeMap::new(),
            orphans: BTreeMap::new(),
            sessions: BTreeSet::new(),
            locks: BTreeMap::new(),
            locked: BTreeSet::new(),
            blobs: BTreeMap::new(),
            doubtful: BTreeMap::new(),
            graves: BTreeMap::new(),
            closing: BTreeSet::new(),
            departing: BTreeMap::new(),
            arriving: BTreeSet::new(),
            stale_copies: BTreeMap::new(),
            unfinished: 0,
            counters: Counters::default(),
            digest_stored: 0,
            digest: 0,
        }
    }

    fn take(&mut self, key: &[u8], value: &[u8]) -> Result<(), Error> {
        let corrupt = || Error::CorruptRow { key: key.to_vec() };
        let number = |at| keys::number_at(key, at).ok_or_else(corrupt);
        let ino = number(1).map(InodeId);
        match key[0] {
            keys::INODE => drop(self.inodes.insert(ino?, rows::decode(key, value)?)),
            keys::DIRENT => drop(self.dirents.insert((ino?, key[9..].to_vec()), rows::decode(key, value)?)),
            keys::LISTING => drop(self.listings.insert((ino?, number(9)?), rows::decode(key, value)?)),
            keys::EXTENT => self.extents.entry(ino?).or_default().push((number(9)?, rows::decode(key, value)?)),
            keys::SYMLINK => drop(self.targets.insert(ino?, rows::decode(key, value)?)),
            keys::XATTR => {
                let (count, bytes) = self.xattrs.entry(ino?).or_default();
                *count += 1;
                *bytes += u32::try_from(key.len() - 9 + value.len()).map_err(|_| corrupt())?;
            }
            keys::ORPHAN => drop(self.orphans.insert(ino?, rows::decode(key, value)?)),
            keys::SESSION => drop(self.sessions.insert(SessionId(number(1)?))),
            keys::LOCKS => drop(self.locks.insert((ino?, key.last() == Some(&1)), rows::decode(key, value)?)),
            keys::LOCKED => {
                let locked = (SessionId(number(1)?), InodeId(number(9)?), key.last() == Some(&1));
                self.locked.insert(locked);
            }
            keys::BLOB => drop(self.blobs.insert(key.to_vec(), rows::decode(key, value)?)),
            keys::GARBAGE => drop(self.garbage.insert(number(1)?, rows::decode(key, value)?)),
            keys::DOUBTFUL => drop(self.doubtful.insert(number(1)?, rows::decode(key, value)?)),
            keys::FORWARD => drop(self.forwards.insert(ino?, rows::decode(key, value)?)),
            keys::BIRTHS => {}
            keys::RETIRED => drop(rows::decode::<rows::Retired>(key, value)?),
            keys::GRAVE => drop(self.graves.insert(ino?, rows::decode(key, value)?)),
            keys::CLOSING => drop(self.closing.insert(SessionId(number(1)?))),
            keys::DEPARTING => drop(self.departing.insert(ino?, rows::decode(key, value)?)),
            keys::ARRIVING => drop(self.arriving.insert(ino?)),
            keys::STALE_COPY => *self.stale_copies.entry(ino?).or_default() += 1,
            _ if key == keys::unfinished() => self.unfinished = rows::decode::<rows::Unfinished>(key, value)?.count,
            _ if key == keys::moves() => drop(rows::decode::<rows::Moves>(key, value)?),
            _ if key == keys::counters() => self.counters = rows::decode(key, value)?,
            _ if key == keys::volume() => drop(rows::decode::<rows::Volume>(key, value)?),
            _ => return Err(corrupt()),
        }
        Ok(())
    }

    /// Takes away what goes in steps and nobody sees: rows of inodes that are not here.
    fn bury(&mut self) {
        let unseen: BTreeSet<InodeId> = self
            .graves
            .iter()
            .filter(|(_, grave)| matches!(grave, Grave::Entries))
            .map(|(ino, _)| *ino)
            .chain(self.arriving.iter().copied())
            .collect();
        self.dirents.retain(|(dir, _), _| !unseen.contains(dir));
        self.listings.retain(|(dir, _), _| !unseen.contains(dir));
        for (ino, grave) in &self.graves {
            if let Grave::Inode(_) = grave {
                self.xattrs.remove(ino);
            }
        }
    }

    pub(super) fn check(&self, found: &mut Vec<Violation>) {
        let mut note = |what: String| found.push(Violation { group: self.group, what });
        if self.digest != self.digest_stored {
            note(format!("the digest is {:032x}, the rows' is {:032x}", self.digest_stored, self.digest));
        }
        for row in self.inodes.values() {
            self.check_inode(row, &mut note);
            self.check_content(row, &mut note);
        }
        self.check_entries(&mut note);
        self.check_strays(&mut note);
        self.check_orphans(&mut note);
        self.check_locks(&mut note);
        self.check_counters(&mut note);
        self.check_steps(&mut note);
    }

    fn check_steps(&self, note: &mut impl FnMut(String)) {
        let count = self.graves.len() + self.closing.len();
        if self.unfinished != count as u64 {
            note(format!("{} unfinished, but {count}", self.unfinished));
        }
        for (ino, grave) in &self.graves {
            let is_here = self.inodes.contains_key(ino);
            if is_here != matches!(grave, Grave::Content { .. } | Grave::StaleCopies) {
                note(format!("inode {ino} has the wrong grave {grave:?}"));
            }
            let extents = || self.extents.get(ino).map_or(0, Vec::len) as u64;
            if let Grave::Inode(row) = grave
                && row.extents != extents()
            {
                note(format!("the grave of {ino} miscounts its extents"));
            }
        }
        for ino in self.arriving.iter().filter(|ino| self.inodes.contains_key(ino)) {
            note(format!("directory {ino} is here and arriving"));
        }
        for (ino, departing) in &self.departing {
            if self.stale_copies.get(ino).copied().unwrap_or_default() != departing.stale {
                note(format!("directory {ino} miscounts its stale copies"));
            }
        }
        let noted = self.stale_copies.keys();
        for ino in noted.filter(|ino| !self.departing.contains_key(ino) && !self.graves.contains_key(ino)) {
            note(format!("stale copies of {ino}, which does not depart"));
        }
    }

    fn check_inode(&self, row: &InodeRow, note: &mut impl FnMut(String)) {
        let attr = &row.attr;
        let ino = attr.ino;
        let directory = attr.kind == FileKind::Directory;
        if attr.home != self.group {
            note(format!("inode {ino} says that its home is {}", attr.home));
        }
        if !directory && attr.placement != attr.home {
            note(format!("inode {ino} is placed elsewhere but is no directory"));
        }
        if directory != attr.parent.is_some() {
            note(format!("inode {ino} has the parent {:?} but is a {:?}", attr.parent, attr.kind));
        }
        if self.xattrs.get(&ino).copied().unwrap_or_default() != (attr.xattrs, row.xattr_bytes) {
            note(format!("inode {ino} miscounts its xattrs"));
        }
        if row.xattr_bytes > validate::XATTRS_BYTES_MAX {
            note(format!("inode {ino} has too many xattrs"));
        }
        let target = self.targets.get(&ino).map(|target| target.len() as u64);
        if target != (attr.kind == FileKind::Symlink).then_some(attr.size) {
            note(format!("inode {ino} of kind {:?} and size {} has a target of {target:?}", attr.kind, attr.size));
        }
        if self.orphans.contains_key(&ino) != (attr.nlink == 0) {
            note(format!(
                "inode {ino} has {} links and is{} an orphan",
                attr.nlink,
                if attr.nlink == 0 { " not" } else { "" }
            ));
        }
        if self.forwards.contains_key(&ino) {
            note(format!("inode {ino} is here and forwarded"));
        }
        if !directory {
            return;
        }
        let names = || self.dirents.range((ino, Vec::new())..).take_while(|((dir, _), _)| *dir == ino);
        let subdirectories = names().filter(|(_, entry)| entry.node.kind == FileKind::Directory).count();
        if attr.size != names().count() as u64 {
            note(format!("directory {ino} says it has {} entries, but has {}", attr.size, names().count()));
        }
        if attr.nlink != 0 && attr.nlink as usize != 2 + subdirectories {
            note(format!("directory {ino} has {} links and {subdirectories} subdirectories", attr.nlink));
        }
    }

    fn check_content(&self, row: &InodeRow, note: &mut impl FnMut(String)) {
        let ino = row.attr.ino;
        let none = Vec::new();
        let extents = self.extents.get(&ino).unwrap_or(&none);
        let (mut allocated, mut inline, mut last) = (0, 0, 0);
        for (end, extent) in extents {
            match end.checked_sub(extent.len) {
                Some(start) if start >= last && extent.len > 0 => {}
                _ => note(format!("inode {ino} has a wrong extent that ends at {end}")),
            }
            last = *end;
            allocated += extent.len;
            match &extent.source {
                Source::Zero => {}
                Source::Blob(range) => {
                    if u64::from(range.start) + extent.len > u64::from(range.blob_len) {
                        note(format!("inode {ino} refers to more than a blob has"));
                    }
                }
                Source::Inline(bytes) => {
                    inline += bytes.len();
                    if bytes.len() as u64 != extent.len {
                        note(format!("inode {ino} has inline bytes of a wrong length"));
                    }
                }
            }
            let is_cut = matches!(self.graves.get(&ino), Some(Grave::Content { from }) if *end > *from);
            if matches!(extent.source, Source::Blob(_) | Source::Inline(_)) && *end > row.attr.size && !is_cut {
                note(format!("inode {ino} has bytes behind its end"));
            }
        }
        if (extents.len() as u64, allocated, inline) != (row.extents, row.attr.allocated, row.inline_bytes as usize) {
            if row.attr.kind == FileKind::Directory && extents.is_empty() {
                return;
            }
            note(format!("inode {ino} miscounts its content"));
        }
    }

    fn check_entries(&self, note: &mut impl FnMut(String)) {
        for ((dir, name), entry) in &self.dirents {
            let listed = self.listings.get(&(*dir, entry.cookie));
            if listed.is_none_or(|row| row.name != *name || row.node != entry.node) {
                note(format!("the name {:?} in {dir} is not listed as it is", name.escape_ascii().to_string()));
            }
            let cookies = self.inodes.get(dir).map_or(0, |row| row.cookie_last);
            if entry.cookie <= COOKIE_RESERVED_MAX || entry.cookie > cookies {
                note(format!("the name {:?} in {dir} has a wrong cookie", name.escape_ascii().to_string()));
            }
            if self.inodes.get(dir).is_none_or(|row| row.attr.kind != FileKind::Directory) {
                note(format!("the name {:?} is in {dir}, which is no directory", name.escape_ascii().to_string()));
            }
        }
        if self.dirents.len() != self.listings.len() {
            note(format!("{} names, but {} listed", self.dirents.len(), self.listings.len()));
        }
    }

    /// Rows of inodes that are not here.
    fn check_strays(&self, note: &mut impl FnMut(String)) {
        let is_buried = |ino: &&InodeId| matches!(self.graves.get(ino), Some(Grave::Inode(_)));
        let of_files = self.extents.keys().filter(|ino| !is_buried(ino));
        let of_any = self.targets.keys().chain(self.xattrs.keys()).chain(self.orphans.keys());
        let locks = self.locks.keys().map(|(ino, _)| ino);
        for ino in of_files.chain(of_any).chain(locks).filter(|ino| !self.inodes.contains_key(ino)) {
            note(format!("rows of inode {ino}, which is not here"));
        }
    }

    fn check_orphans(&self, note: &mut impl FnMut(String)) {
        for (ino, holders) in &self.orphans {
            if holders.is_empty() {
                note(format!("orphan {ino} has no holder"));
            }
            if !holders.is_sorted_by(|a, b| a < b) {
                note(format!("orphan {ino} has holders out of order"));
            }
            if holders.iter().any(|holder| !self.is_known(*holder)) {
                note(format!("orphan {ino} is held by a session that is not known"));
            }
        }
    }

    fn is_known(&self, session: SessionId) -> bool {
        self.sessions.contains(&session) || self.closing.contains(&session)
    }

    fn check_locks(&self, note: &mut impl FnMut(String)) {
        let mut locked = BTreeSet::new();
        for ((ino, flock), held) in &self.locks {
            for (at, lock) in held.iter().enumerate() {
                locked.insert((lock.session, *ino, *flock));
                if lock.range.start > lock.range.end || !self.is_known(lock.session) {
                    note(format!("inode {ino} has a wrong lock"));
                }
                let open: Vec<LockRow> =
                    held[at + 1..].iter().filter(|lock| !self.closing.contains(&lock.session)).copied().collect();
                if !self.closing.contains(&lock.session) && crate::ops::conflict(&open, lock).is_some() {
                    note(format!("inode {ino} has locks that exclude each other"));
                }
            }
        }
        if locked != self.locked {
            note("the index of locks by session is wrong".to_owned());
        }
    }

    fn check_counters(&self, note: &mut impl FnMut(String)) {
        let buried = self.graves.values().map(|grave| match grave {
            Grave::Inode(row) => row.attr.allocated,
            Grave::Content { .. } | Grave::Entries | Grave::StaleCopies => 0,
        });
        let bytes: u64 = self.inodes.values().map(|row| row.attr.allocated).chain(buried).sum();
        if (self.counters.inodes, self.counters.bytes) != (self.inodes.len() as u64, bytes) {
            note(format!("{:?}, but {} inodes and {bytes} bytes", self.counters, self.inodes.len()));
        }
        self.check_blobs(note);
    }

    fn check_blobs(&self, note: &mut impl FnMut(String)) {
        let mut numbered = 0;
        for (key, row) in &self.blobs {
            let blob = blob_of(key);
            let counted = self.references.get(&blob).copied().unwrap_or_default();
            if counted != row.references {
                note(format!("{blob:?} has {counted} references, not {}", row.references));
            }
            let heap = if row.beyond { &self.doubtful } else { &self.garbage };
            let filed = row.garbage.is_some_and(|number| heap.get(&number) == Some(&blob));
            if filed != (row.references == 0) || filed != row.garbage.is_some() {
                note(format!(
                    "{blob:?} has {} references and is{} garbage",
                    row.references,
                    if filed { "" } else { " not" }
                ));
            }
            numbered += usize::from(filed);
        }
        if numbered != self.garbage.len() + self.doubtful.len() {
            note("garbage that is no blob of this group".to_owned());
        }
        for blob in self.references.keys().filter(|blob| !self.blobs.contains_key(&keys::blob(**blob))) {
            note(format!("{blob:?} is not counted"));
        }
    }

    /// Counts the references of all extents.
    pub(super) fn count_references(&mut self) {
        for (_, extent) in self.extents.values().flatten() {
            if let Source::Blob(range) = &extent.source {
                *self.references.entry(range.blob).or_default() += 1;
            }
        }
    }
}

fn blob_of(key: &[u8]) -> BlobId {
    let origin = key.get(1..3).map_or(0, |bytes| u16::from_be_bytes([bytes[0], bytes[1]]));
    let number = |at| keys::number_at(key, at).unwrap_or_default();
    BlobId { origin, writer: number(3), sequence: number(11) }
}
