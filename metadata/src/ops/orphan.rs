//! Inodes without a name that someone may still hold open; sessions; the end of inodes.

use multicast::ids::SessionId;

use super::content::FileEdit;
use crate::error::Error;
use crate::footprint::{key_home, key_inode, key_locks};
use crate::namespace::Namespace;
use crate::outcome::Done;
use crate::rows::{Grave, InodeRow, LockRow};
use crate::store::StoreMut;
use crate::types::{FileKind, InodeId};
use crate::verdict::Step;
use crate::{keys, rows};

impl<S: StoreMut> Namespace<S> {
    /// An inode has lost its last name: every session may hold it open, the one that took the name only if it says so.
    pub(super) fn orphan(&mut self, row: InodeRow, session: SessionId, holder: Option<SessionId>) -> Result<(), Error> {
        let mut holders = self.sessions()?;
        holders.retain(|known| *known != session || holder == Some(session));
        if holders.is_empty() {
            return self.delete_inode(row, self.step_rows);
        }
        self.put_inode(&row)?;
        self.changes.orphans.push(row.attr.ino);
        self.put(keys::of_inode(keys::ORPHAN, row.attr.ino), rows::encode(&holders))
    }

    pub(crate) fn release_orphans(&mut self, session: SessionId, inodes: &[InodeId]) -> Step<Done> {
        let at_once = self.step_rows / inodes.len().max(1);
        for &ino in inodes {
            self.release_orphan(session, ino, at_once)?;
        }
        Ok(Done::Nothing)
    }

    pub(super) fn release_orphan(&mut self, session: SessionId, ino: InodeId, at_once: usize) -> Result<(), Error> {
        let key = keys::of_inode(keys::ORPHAN, ino);
        let Some(mut holders) = self.read::<Vec<SessionId>>(&key)? else { return Ok(()) };
        let Ok(at) = holders.binary_search(&session) else { return Ok(()) };
        holders.remove(at);
        if !holders.is_empty() {
            return self.put(key, rows::encode(&holders));
        }
        self.remove(&key)?;
        let row = self.owned_inode(ino)?;
        self.delete_inode(row, at_once)?;
        self.changes.keys.extend([key_inode(ino), key_home(ino), key_locks(ino)]);
        Ok(())
    }

    /// Removes an inode that has no name and no holder; if it has more rows than may go at once, they go in steps.
    fn delete_inode(&mut self, row: InodeRow, at_once: usize) -> Result<(), Error> {
        let ino = row.attr.ino;
        for flock in [false, true] {
            self.drop_locks(ino, flock)?;
        }
        if row.attr.kind == FileKind::Symlink {
            self.remove(&keys::of_inode(keys::SYMLINK, ino))?;
        }
        self.remove(&keys::inode(ino))?;
        self.account(-1, 0)?;
        let departing = keys::of_inode(keys::DEPARTING, ino);
        let was_departing = row.attr.kind == FileKind::Directory && self.store.get(&departing)?.is_some();
        if was_departing {
            self.remove(&departing)?;
        }
        let rows = row.extents.saturating_add(u64::from(row.attr.xattrs));
        if was_departing || rows > at_once as u64 || self.grave(ino)?.is_some() {
            return self.bury(ino, &Grave::Inode(Box::new(row)));
        }
        if row.attr.xattrs > 0 {
            for (key, _) in self.rows_of(keys::XATTR, ino)? {
                self.remove(&key)?;
            }
        }
        if row.extents > 0 {
            let mut edit = FileEdit::new(self, row);
            edit.clear(0, u64::MAX)?;
            edit.finish()?;
        }
        Ok(())
    }

    fn drop_locks(&mut self, ino: InodeId, flock: bool) -> Result<(), Error> {
        let key = keys::locks(ino, flock);
        let Some(held) = self.read::<Vec<LockRow>>(&key)? else { return Ok(()) };
        for lock in held {
            self.remove(&keys::locked(lock.session, ino, flock))?;
        }
        self.remove(&key)
    }

    fn sessions(&self) -> Result<Vec<SessionId>, Error> {
        let rows = self.store.scan(&[keys::SESSION], &[], usize::MAX)?;
        let session = |key: Vec<u8>| keys::number_at(&key, 1).map(SessionId).ok_or(Error::CorruptRow { key });
        rows.into_iter().map(|(key, _)| session(key)).collect()
    }

    pub(crate) fn forget_session(&mut self, session: SessionId) -> Result<(), Error> {
        let key = keys::session(session);
        if self.store.get(&key)?.is_none() {
            return Ok(());
        }
        self.remove(&key)?;
        self.begin_closing(session)
    }
}
