//! One group's rows by themselves, some inodes at a time.

use std::collections::{BTreeMap, BTreeSet};

use multicast::ids::{GroupId, SessionId};

use super::window::{self, Cursor, Tally, next_window};
use super::{About, Seen};
use crate::error::Error;
use crate::rows::{
    self, BlobRow, COOKIE_RESERVED_MAX, Counters, Departing, DirentRow, ExtentRow, Grave, InodeRow, ListingRow,
    LockRow, Source,
};
use crate::store::{Row, Store, stored_digest};
use crate::types::{Attr, BlobId, FileKind, InodeId};
use crate::{keys, validate};

/// What is known of a group beside the rows of inodes.
#[derive(Default)]
struct Common {
    sessions: BTreeSet<SessionId>,
    closing: BTreeSet<SessionId>,
    locked: BTreeSet<(SessionId, InodeId, bool)>,
    unfinished: u64,
    counters: Counters,
}

/// Sums over all inodes.
#[derive(Default)]
struct Sums {
    inodes: u64,
    bytes: u64,
    graves: u64,
    locked: BTreeSet<(SessionId, InodeId, bool)>,
}

/// Looks at all rows of a group, so many of each kind at once.
pub(super) fn check<S: Store + ?Sized>(
    group: GroupId,
    store: &S,
    rows_at_once: usize,
    see: &mut dyn FnMut(Seen) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut tally = Tally::default();
    let digest_stored = stored_digest(store)?;
    let (mut common, mut sums) = (Common::default(), Sums::default());
    for kind in (1..keys::FOREIGN_KIND_MIN).filter(|kind| !window::OF_INODES.contains(kind)) {
        let mut cursor = Cursor::new(store, kind, rows_at_once);
        loop {
            let rows = cursor.page(&mut tally)?;
            if rows.is_empty() {
                break;
            }
            for (key, value) in rows.iter().filter(|(key, _)| *key != keys::digest()) {
                match common.take(key, value) {
                    Ok(None) => {}
                    Ok(Some(fact)) => see(fact)?,
                    Err(error) => see(unreadable(key, error)?)?,
                }
            }
            see(Seen::Rows(rows.len() as u64))?;
        }
    }
    let mut cursors = window::OF_INODES.map(|kind| Cursor::new(store, kind, rows_at_once));
    while let Some(rows) = next_window(&mut cursors, &mut tally)? {
        check_window(group, &rows, &common, &mut sums, see)?;
        see(Seen::Rows(rows.len() as u64))?;
    }
    let wrong = |what: String| Seen::Wrong { about: About::Group, what };
    if tally.digest != digest_stored {
        see(wrong(format!("the digest is {digest_stored:032x}, the rows' is {:032x}", tally.digest)))?;
    }
    if sums.locked != common.locked {
        see(wrong("the index of locks by session is wrong".to_owned()))?;
    }
    let Sums { inodes, bytes, graves, .. } = sums;
    if (common.counters.inodes, common.counters.bytes) != (inodes, bytes) {
        see(wrong(format!("{:?}, but {inodes} inodes and {bytes} bytes", common.counters)))?;
    }
    let count = graves + common.closing.len() as u64;
    if common.unfinished != count {
        see(wrong(format!("{} unfinished, but {count}", common.unfinished)))?;
    }
    Ok(())
}

fn unreadable(key: &[u8], error: Error) -> Result<Seen, Error> {
    let about = match key.split_first() {
        Some((kind, _)) if window::OF_INODES.contains(kind) => {
            keys::number_at(key, 1).map_or(About::Group, |ino| About::Inode(InodeId(ino)))
        }
        _ => About::Group,
    };
    match error {
        Error::CorruptRow { key } => {
            let what = format!("the row {} cannot be read", key.escape_ascii());
            Ok(Seen::Wrong { about, what })
        }
        error => Err(error),
    }
}

/// Looks at all rows of some inodes.
fn check_window(
    group: GroupId,
    rows: &[Row],
    common: &Common,
    sums: &mut Sums,
    see: &mut dyn FnMut(Seen) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut window = Window::new(group, common);
    for (key, value) in rows {
        if let Err(error) = window.take(key, value) {
            see(unreadable(key, error)?)?;
        }
    }
    window.bury();
    let mut wrong = Vec::new();
    window.check(sums, &mut |about, what| wrong.push(Seen::Wrong { about, what }));
    wrong.into_iter().try_for_each(&mut *see)?;
    for row in window.inodes.values() {
        let Attr { ino, kind, nlink, parent, .. } = row.attr;
        see(Seen::Inode { ino, kind, nlink, parent })?;
    }
    for (ino, (_, extent)) in window.extents.iter().flat_map(|(ino, all)| all.iter().map(move |one| (ino, one))) {
        if let Source::Blob(range) = &extent.source {
            see(Seen::Reference { ino: *ino, blob: range.blob, len: range.blob_len })?;
        }
    }
    for ((dir, name), entry) in window.dirents {
        see(Seen::Name { dir, name: name.into(), node: entry.node })?;
    }
    Ok(())
}

impl Common {
    /// A row that belongs to no inode; what is to be told of it.
    fn take(&mut self, key: &[u8], value: &[u8]) -> Result<Option<Seen>, Error> {
        let corrupt = || Error::CorruptRow { key: key.to_vec() };
        let number = |at| keys::number_at(key, at).ok_or_else(corrupt);
        match key[0] {
            keys::SESSION => drop(self.sessions.insert(SessionId(number(1)?))),
            keys::CLOSING => drop(self.closing.insert(SessionId(number(1)?))),
            keys::LOCKED => {
                let locked = (SessionId(number(1)?), InodeId(number(9)?), key.last() == Some(&1));
                self.locked.insert(locked);
            }
            keys::BLOB => {
                let BlobRow { references, beyond, garbage } = rows::decode(key, value)?;
                let (blob, garbage) = (blob_of(key).ok_or_else(corrupt)?, garbage.map(|number| (number, beyond)));
                return Ok(Some(Seen::Blob { blob, references, garbage }));
            }
            kind @ (keys::GARBAGE | keys::DOUBTFUL) => {
                let number = (number(1)?, kind == keys::DOUBTFUL);
                return Ok(Some(Seen::Garbage { blob: rows::decode(key, value)?, number }));
            }
            keys::BIRTHS => {}
            keys::RETIRED => drop(rows::decode::<rows::Retired>(key, value)?),
            _ if key == keys::unfinished() => self.unfinished = rows::decode::<rows::Unfinished>(key, value)?.count,
            _ if key == keys::moves() => drop(rows::decode::<rows::Moves>(key, value)?),
            _ if key == keys::counters() => self.counters = rows::decode(key, value)?,
            _ if key == keys::volume() => drop(rows::decode::<rows::Volume>(key, value)?),
            _ => return Err(corrupt()),
        }
        Ok(None)
    }

    fn is_known(&self, session: SessionId) -> bool {
        self.sessions.contains(&session) || self.closing.contains(&session)
    }
}

/// Rows of some inodes, decoded: all of each.
struct Window<'c> {
    group: GroupId,
    common: &'c Common,
    inodes: BTreeMap<InodeId, InodeRow>,
    dirents: BTreeMap<(InodeId, Vec<u8>), DirentRow>,
    forwards: BTreeMap<InodeId, GroupId>,
    listings: BTreeMap<(InodeId, u64), ListingRow>,
    extents: BTreeMap<InodeId, Vec<(u64, ExtentRow)>>,
    targets: BTreeMap<InodeId, bytes::Bytes>,
    xattrs: BTreeMap<InodeId, (u32, u32)>,
    orphans: BTreeMap<InodeId, Vec<SessionId>>,
    locks: BTreeMap<(InodeId, bool), Vec<LockRow>>,
    graves: BTreeMap<InodeId, Grave>,
    departing: BTreeMap<InodeId, Departing>,
    arriving: BTreeSet<InodeId>,
    stale_copies: BTreeMap<InodeId, u64>,
}

impl<'c> Window<'c> {
    fn new(group: GroupId, common: &'c Common) -> Self {
        Window {
            group,
            common,
            inodes: BTreeMap::new(),
            dirents: BTreeMap::new(),
            forwards: BTreeMap::new(),
            listings: BTreeMap::new(),
            extents: BTreeMap::new(),
            targets: BTreeMap::new(),
            xattrs: BTreeMap::new(),
            orphans: BTreeMap::new(),
            locks: BTreeMap::new(),
            graves: BTreeMap::new(),
            departing: BTreeMap::new(),
            arriving: BTreeSet::new(),
            stale_copies: BTreeMap::new(),
        }
    }

    fn take(&mut self, key: &[u8], value: &[u8]) -> Result<(), Error> {
        let corrupt = || Error::CorruptRow { key: key.to_vec() };
        let number = |at| keys::number_at(key, at).ok_or_else(corrupt);
        let ino = InodeId(number(1)?);
        match key[0] {
            keys::INODE => drop(self.inodes.insert(ino, rows::decode(key, value)?)),
            keys::DIRENT => drop(self.dirents.insert((ino, key[9..].to_vec()), rows::decode(key, value)?)),
            keys::LISTING => drop(self.listings.insert((ino, number(9)?), rows::decode(key, value)?)),
            keys::EXTENT => self.extents.entry(ino).or_default().push((number(9)?, rows::decode(key, value)?)),
            keys::SYMLINK => drop(self.targets.insert(ino, rows::decode(key, value)?)),
            keys::XATTR => {
                let (count, bytes) = self.xattrs.entry(ino).or_default();
                *count += 1;
                *bytes += u32::try_from(key.len() - 9 + value.len()).map_err(|_| corrupt())?;
            }
            keys::ORPHAN => drop(self.orphans.insert(ino, rows::decode(key, value)?)),
            keys::LOCKS => drop(self.locks.insert((ino, key.last() == Some(&1)), rows::decode(key, value)?)),
            keys::FORWARD => drop(self.forwards.insert(ino, rows::decode(key, value)?)),
            keys::GRAVE => drop(self.graves.insert(ino, rows::decode(key, value)?)),
            keys::DEPARTING => drop(self.departing.insert(ino, rows::decode(key, value)?)),
            keys::ARRIVING => drop(self.arriving.insert(ino)),
            keys::STALE_COPY => *self.stale_copies.entry(ino).or_default() += 1,
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

    fn check(&self, sums: &mut Sums, note: &mut impl FnMut(About, String)) {
        for row in self.inodes.values() {
            let mut of_inode = |what| note(About::Inode(row.attr.ino), what);
            self.check_inode(row, &mut of_inode);
            self.check_content(row, &mut of_inode);
        }
        self.check_entries(note);
        self.check_strays(note);
        self.check_orphans(note);
        self.check_locks(sums, note);
        self.check_steps(note);
        self.add_to(sums);
    }

    fn check_steps(&self, note: &mut impl FnMut(About, String)) {
        for (ino, grave) in &self.graves {
            let is_here = self.inodes.contains_key(ino);
            if is_here != matches!(grave, Grave::Content { .. } | Grave::StaleCopies) {
                note(About::Inode(*ino), format!("inode {ino} has the wrong grave {grave:?}"));
            }
            let extents = || self.extents.get(ino).map_or(0, Vec::len) as u64;
            if let Grave::Inode(row) = grave
                && row.extents != extents()
            {
                note(About::Inode(*ino), format!("the grave of {ino} miscounts its extents"));
            }
        }
        for ino in self.arriving.iter().filter(|ino| self.inodes.contains_key(ino)) {
            note(About::Inode(*ino), format!("directory {ino} is here and arriving"));
        }
        for (ino, departing) in &self.departing {
            if self.stale_copies.get(ino).copied().unwrap_or_default() != departing.stale {
                note(About::Inode(*ino), format!("directory {ino} miscounts its stale copies"));
            }
        }
        let noted = self.stale_copies.keys();
        for ino in noted.filter(|ino| !self.departing.contains_key(ino) && !self.graves.contains_key(ino)) {
            note(About::Inode(*ino), format!("stale copies of {ino}, which does not depart"));
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

    fn check_entries(&self, note: &mut impl FnMut(About, String)) {
        for ((dir, name), entry) in &self.dirents {
            let listed = self.listings.get(&(*dir, entry.cookie));
            if listed.is_none_or(|row| row.name != *name || row.node != entry.node) {
                note(
                    About::Inode(*dir),
                    format!("the name {:?} in {dir} is not listed as it is", name.escape_ascii().to_string()),
                );
            }
            let cookies = self.inodes.get(dir).map_or(0, |row| row.cookie_last);
            if entry.cookie <= COOKIE_RESERVED_MAX || entry.cookie > cookies {
                note(
                    About::Inode(*dir),
                    format!("the name {:?} in {dir} has a wrong cookie", name.escape_ascii().to_string()),
                );
            }
            if self.inodes.get(dir).is_none_or(|row| row.attr.kind != FileKind::Directory) {
                note(
                    About::Inode(*dir),
                    format!("the name {:?} is in {dir}, which is no directory", name.escape_ascii().to_string()),
                );
            }
        }
        if self.dirents.len() != self.listings.len() {
            note(About::Group, format!("{} names, but {} listed", self.dirents.len(), self.listings.len()));
        }
    }

    /// Rows of inodes that are not here.
    fn check_strays(&self, note: &mut impl FnMut(About, String)) {
        let is_buried = |ino: &&InodeId| matches!(self.graves.get(ino), Some(Grave::Inode(_)));
        let of_files = self.extents.keys().filter(|ino| !is_buried(ino));
        let of_any = self.targets.keys().chain(self.xattrs.keys()).chain(self.orphans.keys());
        let locks = self.locks.keys().map(|(ino, _)| ino);
        for ino in of_files.chain(of_any).chain(locks).filter(|ino| !self.inodes.contains_key(ino)) {
            note(About::Inode(*ino), format!("rows of inode {ino}, which is not here"));
        }
    }

    fn check_orphans(&self, note: &mut impl FnMut(About, String)) {
        for (ino, holders) in &self.orphans {
            if holders.is_empty() {
                note(About::Inode(*ino), format!("orphan {ino} has no holder"));
            }
            if !holders.is_sorted_by(|a, b| a < b) {
                note(About::Inode(*ino), format!("orphan {ino} has holders out of order"));
            }
            if holders.iter().any(|holder| !self.common.is_known(*holder)) {
                note(About::Inode(*ino), format!("orphan {ino} is held by a session that is not known"));
            }
        }
    }

    fn check_locks(&self, sums: &mut Sums, note: &mut impl FnMut(About, String)) {
        for ((ino, flock), held) in &self.locks {
            for (at, lock) in held.iter().enumerate() {
                sums.locked.insert((lock.session, *ino, *flock));
                if lock.range.start > lock.range.end || !self.common.is_known(lock.session) {
                    note(About::Inode(*ino), format!("inode {ino} has a wrong lock"));
                }
                let open: Vec<LockRow> = held[at + 1..]
                    .iter()
                    .filter(|lock| !self.common.closing.contains(&lock.session))
                    .copied()
                    .collect();
                if !self.common.closing.contains(&lock.session) && crate::ops::conflict(&open, lock).is_some() {
                    note(About::Inode(*ino), format!("inode {ino} has locks that exclude each other"));
                }
            }
        }
    }

    fn add_to(&self, sums: &mut Sums) {
        let buried = self.graves.values().map(|grave| match grave {
            Grave::Inode(row) => row.attr.allocated,
            Grave::Content { .. } | Grave::Entries | Grave::StaleCopies => 0,
        });
        sums.bytes += self.inodes.values().map(|row| row.attr.allocated).chain(buried).sum::<u64>();
        sums.inodes += self.inodes.len() as u64;
        sums.graves += self.graves.len() as u64;
    }
}

fn blob_of(key: &[u8]) -> Option<BlobId> {
    let origin = u16::from_be_bytes(key.get(1..3)?.try_into().ok()?);
    Some(BlobId { origin, writer: keys::number_at(key, 3)?, sequence: keys::number_at(key, 11)? })
}
