//! What goes in steps, so that no entry of the log takes long: the content of deleted and cut files, the entries of
//! directories that have moved away, what closed sessions held.
//!
//! Whatever executes drains some more rows at its end, and so do ticks, which a primary logs while something is left. Until they
//! are drained, nobody sees them: rows of an inode count only while it is here, content only up to where it was cut, and sessions
//! only while they are open.

use multicast::ids::SessionId;

use super::content::FileEdit;
use crate::error::Error;
use crate::footprint::{key_inode, key_locks};
use crate::keys;
use crate::namespace::Namespace;
use crate::rows::{self, Grave, InodeRow, Unfinished};
use crate::store::StoreMut;
use crate::types::InodeId;
use crate::verdict::{Step, Stop};

/// Rows of an inode that go with the last session that held it; it may be one of many.
const AT_ONCE: usize = 2;

impl<S: StoreMut> Namespace<S> {
    pub(super) fn grave(&self, ino: InodeId) -> Result<Option<Grave>, Error> {
        // One row that every update looks at tells of all: as a rule there are no graves.
        if self.store.get(&keys::unfinished())?.is_none() {
            return Ok(None);
        }
        self.read(&keys::of_inode(keys::GRAVE, ino))
    }

    /// Leaves rows of an inode to later steps.
    pub(super) fn bury(&mut self, ino: InodeId, grave: &Grave) -> Result<(), Error> {
        let key = keys::of_inode(keys::GRAVE, ino);
        if self.store.get(&key)?.is_none() {
            self.count_unfinished(1)?;
        }
        self.put(key, rows::encode(grave))
    }

    /// Nothing of an inode is left to later steps.
    pub(super) fn unbury(&mut self, ino: InodeId) -> Result<(), Error> {
        let key = keys::of_inode(keys::GRAVE, ino);
        if self.store.get(&key)?.is_some() {
            self.count_unfinished(-1)?;
            self.remove(&key)?;
        }
        Ok(())
    }

    /// What was cut off a file must be gone before the file reaches there again.
    pub(super) fn check_cut(&self, row: &InodeRow, end: u64) -> Step<()> {
        match self.grave(row.attr.ino)? {
            Some(Grave::Content { from }) if end >= from => Err(Stop::again()),
            _ => Ok(()),
        }
    }

    fn count_unfinished(&mut self, change: i64) -> Result<(), Error> {
        let key = keys::unfinished();
        let mut unfinished: Unfinished = self.read(&key)?.unwrap_or_default();
        unfinished.count = unfinished.count.saturating_add_signed(change);
        if unfinished.count == 0 { self.remove(&key) } else { self.put(key, rows::encode(&unfinished)) }
    }

    /// Does a bounded part of what was left.
    pub(crate) fn drain(&mut self) -> Result<(), Error> {
        if self.store.get(&keys::unfinished())?.is_none() {
            return Ok(());
        }
        let mut left = self.step_rows;
        while left > 0 {
            let Some((key, value)) = self.store.scan(&[keys::GRAVE], &[], 1)?.pop() else { break };
            let ino = keys::number_at(&key, 1).map(InodeId).ok_or_else(|| Error::CorruptRow { key: key.clone() })?;
            let removed = self.drain_grave(ino, rows::decode(&key, &value)?, left)?;
            left = left.saturating_sub(removed + 1);
        }
        while left > 0 {
            let Some((key, value)) = self.store.scan(&[keys::CLOSING], &[], 1)?.pop() else { break };
            let session =
                keys::number_at(&key, 1).map(SessionId).ok_or_else(|| Error::CorruptRow { key: key.clone() })?;
            let from: InodeId = rows::decode(&key, &value)?;
            let released = self.drain_session(session, from, left)?;
            left = left.saturating_sub(released + 1);
        }
        Ok(())
    }

    /// Removes some rows of one inode; how many.
    fn drain_grave(&mut self, ino: InodeId, grave: Grave, limit: usize) -> Result<usize, Error> {
        match grave {
            Grave::Inode(row) => {
                let (row, mut removed) = self.drain_content(*row, 0, limit)?;
                for kind in [keys::XATTR, keys::STALE_COPY] {
                    removed += self.remove_some(kind, ino, limit - removed)?;
                }
                if removed < limit {
                    self.unbury(ino)?;
                } else {
                    self.bury(ino, &Grave::Inode(Box::new(row)))?;
                }
                Ok(removed)
            }
            Grave::Content { from } => {
                let row = self.owned_inode(ino)?;
                let (row, removed) = self.drain_content(row, from, limit)?;
                self.put_inode(&row)?;
                // It has fewer blocks now.
                self.changes.keys.push(key_inode(ino));
                if removed < limit {
                    self.unbury(ino)?;
                }
                Ok(removed)
            }
            Grave::Entries => self.drain_kinds(ino, &[keys::DIRENT, keys::LISTING, keys::STALE_COPY], limit),
            Grave::StaleCopies => self.drain_kinds(ino, &[keys::STALE_COPY], limit),
        }
    }

    fn drain_kinds(&mut self, ino: InodeId, kinds: &[u8], limit: usize) -> Result<usize, Error> {
        let mut removed = 0;
        for &kind in kinds {
            removed += self.remove_some(kind, ino, limit - removed)?;
        }
        if removed < limit {
            self.unbury(ino)?;
        }
        Ok(removed)
    }

    fn drain_content(&mut self, row: InodeRow, from: u64, limit: usize) -> Result<(InodeRow, usize), Error> {
        let mut edit = FileEdit::new(self, row);
        let removed = edit.clear_some(from, u64::MAX, limit)?;
        Ok((edit.finish()?, removed))
    }

    /// Removes at most `limit` rows of an inode.
    fn remove_some(&mut self, kind: u8, ino: InodeId, limit: usize) -> Result<usize, Error> {
        if limit == 0 {
            return Ok(0);
        }
        let prefix = keys::of_inode(kind, ino);
        let page = self.store.scan(&prefix, &prefix, limit)?;
        for (key, _) in &page {
            self.remove(key)?;
        }
        Ok(page.len())
    }

    /// A session holds nothing any more; what it held is let go in steps.
    pub(super) fn begin_closing(&mut self, session: SessionId) -> Result<(), Error> {
        self.count_unfinished(1)?;
        self.put(keys::closing(session), rows::encode(&InodeId(0)))
    }

    /// Lets go of all that a session holds which is opened again.
    pub(crate) fn finish_closing(&mut self, session: SessionId) -> Result<(), Error> {
        while let Some(from) = self.read::<InodeId>(&keys::closing(session))? {
            self.drain_session(session, from, usize::MAX)?;
        }
        Ok(())
    }

    /// Lets go of some locks and orphans of a closed session: how many rows were looked at.
    fn drain_session(&mut self, session: SessionId, from: InodeId, limit: usize) -> Result<usize, Error> {
        let prefix = keys::locked_by(session);
        let locked = self.store.scan(&prefix, &prefix, limit)?;
        for (key, _) in &locked {
            let ino = keys::number_at(key, 9).map(InodeId).ok_or_else(|| Error::CorruptRow { key: key.clone() })?;
            self.remove_session_locks(session, ino, key.last() == Some(&1))?;
            self.changes.keys.push(key_locks(ino));
        }
        let limit_left = limit - locked.len();
        if limit_left == 0 {
            return Ok(limit);
        }
        let orphans = self.store.scan(&[keys::ORPHAN], &keys::of_inode(keys::ORPHAN, from), limit_left)?;
        let mut next = from;
        for (key, _) in &orphans {
            let ino = keys::number_at(key, 1).map(InodeId).ok_or_else(|| Error::CorruptRow { key: key.clone() })?;
            self.release_orphan(session, ino, AT_ONCE)?;
            next = InodeId(ino.0.saturating_add(1));
        }
        if orphans.len() < limit_left {
            self.remove(&keys::closing(session))?;
            self.count_unfinished(-1)?;
        } else {
            self.put(keys::closing(session), rows::encode(&next))?;
        }
        Ok(locked.len() + orphans.len())
    }
}
