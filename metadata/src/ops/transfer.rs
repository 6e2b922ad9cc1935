//! Directories too big to move to another group at once.
//!
//! Their entries are copied ahead in steps, while the directory stays where it is and its updates go on:
//!
//! 1. [`StageMove`](crate::op::FsOp::StageMove) copies some entries, in the order of their cookies, to the group where the
//!    directory is to live. Nobody sees them there: the inode is not there.
//! 2. What changes meanwhile is either behind the last copied cookie, as all new entries are, or was copied: then the old
//!    home notes its cookie as stale.
//! 3. [`MoveInode`](crate::op::FsOp::MoveInode) moves the inode with the entries behind the last copied cookie, and those
//!    that were noted. If these are too many still, it is refused, and more is copied ahead.
//! 4. The old home drops its entries in steps.
//!
//! A transfer that nobody goes on with ends when the directory is removed, when too much of its copy becomes stale, or when
//! somebody says so ([`CancelMove`](crate::op::FsOp::CancelMove)): whoever begins another one and finds it in the way.

use multicast::ids::GroupId;

use crate::error::Error;
use crate::keys;
use crate::namespace::Namespace;
use crate::op::FsOp;
use crate::outcome::{Done, Errno};
use crate::rows::{self, Arriving, Copied, Departing, DirentRow, Grave, ListingRow};
use crate::store::StoreMut;
use crate::types::{FileKind, InodeId, NodeRef};
use crate::verdict::{Chunk, Contribution, Freight, Joint, Rank, Step, Stop, note};

/// Most bytes of names in one step.
pub(super) const STEP_BYTES_MAX: usize = 256 << 10;

/// A step of a transfer, taken out of its operation.
#[derive(Clone, Copy)]
struct Stage {
    dir: NodeRef,
    to: GroupId,
    transfer: u64,
    after: u64,
}

impl Stage {
    fn of(op: &FsOp) -> Option<Self> {
        let FsOp::StageMove { dir, to, transfer, after } = *op else { return None };
        Some(Stage { dir, to, transfer, after })
    }

    fn copied(&self) -> Copied {
        Copied { transfer: self.transfer, upto: self.after }
    }
}

impl<S: StoreMut> Namespace<S> {
    pub(crate) fn check_stage(&self, op: &FsOp, part: &mut Contribution) -> Result<(), Error> {
        let Some(stage) = Stage::of(op) else { return Ok(()) };
        if stage.dir.home == self.group {
            let checked = self.check_departing(stage);
            part.facts.chunk = note(&mut part.refusals, checked)?;
        }
        if stage.to == self.group {
            let checked = self.check_arriving(stage);
            note(&mut part.refusals, checked)?;
        }
        Ok(())
    }

    fn check_departing(&self, stage: Stage) -> Step<Chunk> {
        let row = self.directory(stage.dir)?;
        if row.attr.ino == InodeId::ROOT {
            return Err(Stop::errno(Rank::Kind, Errno::Busy));
        }
        let departing: Option<Departing> = self.read(&keys::of_inode(keys::DEPARTING, stage.dir.ino))?;
        let matches = match departing {
            None => stage.after == 0 && self.grave(stage.dir.ino)?.is_none(),
            Some(found) => found.copied == stage.copied() && found.to == stage.to,
        };
        if !matches {
            return Err(Stop::errno(Rank::Limit, Errno::Busy));
        }
        Ok(self.chunk(stage.dir.ino, stage.after)?)
    }

    fn check_arriving(&self, stage: Stage) -> Step<()> {
        let arriving: Option<Arriving> = self.read(&keys::of_inode(keys::ARRIVING, stage.dir.ino))?;
        match arriving {
            None if stage.after != 0 => Err(Stop::errno(Rank::Limit, Errno::Busy)),
            // Its entries from an earlier stay are not all gone.
            None if self.grave(stage.dir.ino)?.is_some() => Err(Stop::again()),
            None => Ok(()),
            Some(found) if found.copied == stage.copied() => Ok(()),
            Some(_) => Err(Stop::errno(Rank::Limit, Errno::Busy)),
        }
    }

    /// The entries behind a cookie: as many as one step takes.
    fn chunk(&self, ino: InodeId, after: u64) -> Result<Chunk, Error> {
        let prefix = keys::of_inode(keys::LISTING, ino);
        let page = self.store.scan(&prefix, &keys::listing(ino, after.saturating_add(1)), self.step_rows)?;
        let mut chunk = Chunk { entries: Vec::new(), upto: after, end: page.len() < self.step_rows };
        let mut bytes = 0;
        for (key, value) in page {
            let row: ListingRow = rows::decode(&key, &value)?;
            let cookie = keys::number_at(&key, prefix.len()).ok_or(Error::CorruptRow { key })?;
            bytes += row.name.len();
            if bytes > STEP_BYTES_MAX {
                chunk.end = false;
                break;
            }
            chunk.entries.push((row.name, DirentRow { node: row.node, cookie }));
            chunk.upto = cookie;
        }
        Ok(chunk)
    }

    pub(crate) fn apply_stage(&mut self, op: &FsOp, joint: &Joint) -> Result<Option<Done>, Error> {
        let (Some(stage), Some(chunk)) = (Stage::of(op), &joint.facts.chunk) else { return Ok(None) };
        let ino = stage.dir.ino;
        let copied = Copied { transfer: stage.transfer, upto: chunk.upto };
        if stage.dir.home == self.group {
            let key = keys::of_inode(keys::DEPARTING, ino);
            let stale = self.read::<Departing>(&key)?.map_or(0, |before| before.stale);
            self.put(key, rows::encode(&Departing { to: stage.to, copied, stale }))?;
        }
        if stage.to == self.group {
            for (name, row) in &chunk.entries {
                self.put_entry(ino, name, *row)?;
            }
            self.put(keys::of_inode(keys::ARRIVING, ino), rows::encode(&Arriving { copied }))?;
        }
        Ok(Some(Done::Staged { upto: chunk.upto, end: chunk.end }))
    }

    /// An entry that may have been copied ahead has changed or gone.
    pub(super) fn note_stale_copy(&mut self, dir: InodeId, cookie: u64) -> Result<(), Error> {
        let key = keys::of_inode(keys::DEPARTING, dir);
        let Some(mut departing) = self.read::<Departing>(&key)? else { return Ok(()) };
        let stale = keys::stale_copy(dir, cookie);
        if cookie > departing.copied.upto || self.store.get(&stale)?.is_some() {
            return Ok(());
        }
        departing.stale += 1;
        if departing.stale > self.step_rows as u64 {
            return self.cancel_departure(dir);
        }
        self.put(stale, Vec::new())?;
        self.put(key, rows::encode(&departing))
    }

    pub(crate) fn cancel_move(&mut self, ino: InodeId) -> Step<Done> {
        self.cancel_departure(ino)?;
        self.cancel_arrival(ino)?;
        Ok(Done::Nothing)
    }

    fn cancel_departure(&mut self, ino: InodeId) -> Result<(), Error> {
        let key = keys::of_inode(keys::DEPARTING, ino);
        if self.store.get(&key)?.is_some() {
            self.remove(&key)?;
            self.bury(ino, &Grave::StaleCopies)?;
        }
        Ok(())
    }

    fn cancel_arrival(&mut self, ino: InodeId) -> Result<(), Error> {
        let key = keys::of_inode(keys::ARRIVING, ino);
        if self.store.get(&key)?.is_some() {
            self.remove(&key)?;
            self.bury(ino, &Grave::Entries)?;
        }
        Ok(())
    }

    /// What a directory has to take with it beyond what was copied ahead. `None` if that is too much.
    pub(super) fn load_entries(&self, freight: &mut Freight, to: GroupId) -> Result<Option<()>, Error> {
        let ino = freight.row.attr.ino;
        let departing: Option<Departing> = self.read(&keys::of_inode(keys::DEPARTING, ino))?;
        let departing = departing.filter(|departing| departing.to == to);
        freight.copied = departing.map(|departing| departing.copied);
        let chunk = self.chunk(ino, freight.copied.map_or(0, |copied| copied.upto))?;
        if !chunk.end {
            return Ok(None);
        }
        freight.entries = chunk.entries;
        if departing.is_none_or(|departing| departing.stale == 0) {
            return Ok(Some(()));
        }
        let mut bytes = 0;
        for (key, _) in self.rows_of(keys::STALE_COPY, ino)? {
            let cookie = keys::number_at(&key, 9).ok_or(Error::CorruptRow { key })?;
            let key = keys::listing(ino, cookie);
            let now: Option<ListingRow> = self.read(&key)?;
            bytes += now.as_ref().map_or(0, |row| row.name.len());
            freight.corrected.push((cookie, now.map(|row| (row.name, row.node))));
        }
        Ok((bytes <= STEP_BYTES_MAX).then_some(()))
    }

    /// What was copied here ahead of a directory, if it is still of use.
    pub(super) fn arrived_ahead(&self, ino: InodeId) -> Step<Option<Copied>> {
        let arriving: Option<Arriving> = self.read(&keys::of_inode(keys::ARRIVING, ino))?;
        if arriving.is_none() && self.grave(ino)?.is_some() {
            return Err(Stop::again());
        }
        Ok(arriving.map(|arriving| arriving.copied))
    }

    /// Makes what was copied ahead what it should be, and adds the rest.
    pub(super) fn unload_entries(&mut self, freight: &Freight) -> Result<(), Error> {
        let ino = freight.row.attr.ino;
        for (cookie, now) in &freight.corrected {
            let key = keys::listing(ino, *cookie);
            if let Some(copy) = self.read::<ListingRow>(&key)? {
                let entry = keys::dirent(ino, &copy.name);
                // The name may have been made anew since, and copied under another cookie.
                if self.read::<DirentRow>(&entry)?.is_some_and(|row| row.cookie == *cookie) {
                    self.remove(&entry)?;
                }
                self.remove(&key)?;
            }
            if let Some((name, node)) = now {
                self.put_entry(ino, name, DirentRow { node: *node, cookie: *cookie })?;
            }
        }
        for (name, entry) in &freight.entries {
            self.put_entry(ino, name, *entry)?;
        }
        self.remove(&keys::of_inode(keys::ARRIVING, ino))
    }

    /// Drops the entries of a directory that has left: at once if they are few.
    pub(super) fn drop_entries(&mut self, ino: InodeId, count: u64) -> Result<(), Error> {
        let key = keys::of_inode(keys::DEPARTING, ino);
        let was_transferred = self.store.get(&key)?.is_some();
        self.remove(&key)?;
        if was_transferred || count > self.step_rows as u64 || self.grave(ino)?.is_some() {
            return self.bury(ino, &Grave::Entries);
        }
        for kind in [keys::DIRENT, keys::LISTING] {
            for (key, _) in self.rows_of(kind, ino)? {
                self.remove(&key)?;
            }
        }
        Ok(())
    }
}

/// True if a directory's transfer got as far in its old home as in its new one.
pub(super) fn is_copied_alike(freight: &Freight, ahead: Option<Copied>) -> bool {
    freight.row.attr.kind != FileKind::Directory || freight.copied == ahead
}
