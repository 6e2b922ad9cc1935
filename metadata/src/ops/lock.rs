//! Byte-range locks: fcntl(2) and flock(2), in lock spaces of their own.

use multicast::ids::SessionId;

use crate::error::Error;
use crate::namespace::Namespace;
use crate::op::{FsOp, LockKind, LockRange};
use crate::outcome::{Done, Errno, OpError};
use crate::rows::LockRow;
use crate::store::{Store, StoreMut};
use crate::types::InodeId;
use crate::verdict::{Rank, Refusal, Step, Stop};
use crate::{keys, rows};

/// Most locks of one space on one inode.
pub const LOCKS_MAX: usize = 1024;

impl<S: StoreMut> Namespace<S> {
    pub(crate) fn lock(&mut self, session: SessionId, op: &FsOp) -> Step<Done> {
        let FsOp::Lock { node, owner, flock, range, kind, pid } = op else {
            return Err(Stop::errno(Rank::Malformed, Errno::Malformed));
        };
        self.subject(*node)?;
        let key = keys::locks(node.ino, *flock);
        let mut held: Vec<LockRow> = self.read(&key)?.unwrap_or_default();
        if let Some(kind) = *kind {
            // Nobody would ever end the locks of a session that is not known here.
            if self.store.get(&keys::session(session))?.is_none() {
                return Err(Stop::errno(Rank::Limit, Errno::NoLocks));
            }
            let wanted = LockRow { range: *range, session, owner: *owner, kind, pid: *pid };
            if let Some(LockRow { session, pid, kind, range, .. }) = conflict(&open_locks(&self.store, &key)?, &wanted)
            {
                let error = OpError::LockHeld { session, pid, kind, range };
                return Err(Stop::Refused(Refusal { rank: Rank::Gone, error }));
            }
            release(&mut held, session, *owner, *range);
            acquire(&mut held, wanted);
        } else {
            release(&mut held, session, *owner, *range);
        }
        if held.len() > LOCKS_MAX {
            return Err(Stop::errno(Rank::Limit, Errno::NoLocks));
        }
        self.put_locks(node.ino, *flock, session, &held)?;
        Ok(Done::Nothing)
    }

    pub(super) fn remove_session_locks(&mut self, session: SessionId, ino: InodeId, flock: bool) -> Result<(), Error> {
        let mut held: Vec<LockRow> = self.read(&keys::locks(ino, flock))?.unwrap_or_default();
        held.retain(|lock| lock.session != session);
        self.put_locks(ino, flock, session, &held)
    }

    fn put_locks(&mut self, ino: InodeId, flock: bool, session: SessionId, held: &[LockRow]) -> Result<(), Error> {
        let index = keys::locked(session, ino, flock);
        if held.iter().any(|lock| lock.session == session) {
            self.put(index, Vec::new())?;
        } else {
            self.remove(&index)?;
        }
        let key = keys::locks(ino, flock);
        if held.is_empty() { self.remove(&key) } else { self.put(key, rows::encode(&held)) }
    }
}

/// The locks of one space on one inode; those of closed sessions that are not drained yet do not count.
pub(crate) fn open_locks<S: Store + ?Sized>(store: &S, key: &[u8]) -> Result<Vec<LockRow>, Error> {
    let mut held: Vec<LockRow> = rows::read(store, key)?.unwrap_or_default();
    if !held.is_empty() && store.get(&keys::unfinished())?.is_some() {
        let mut open = Vec::with_capacity(held.len());
        for lock in held {
            if store.get(&keys::closing(lock.session))?.is_none() {
                open.push(lock);
            }
        }
        held = open;
    }
    Ok(held)
}

/// The first lock of another owner that is in the way.
pub(crate) fn conflict(held: &[LockRow], wanted: &LockRow) -> Option<LockRow> {
    let in_the_way = |lock: &&LockRow| {
        (lock.session, lock.owner) != (wanted.session, wanted.owner)
            && overlaps(lock.range, wanted.range)
            && (lock.kind == LockKind::Write || wanted.kind == LockKind::Write)
    };
    held.iter().filter(in_the_way).min_by_key(|lock| (lock.range.start, lock.session, lock.owner)).copied()
}

/// Takes a range out of what an owner holds.
fn release(held: &mut Vec<LockRow>, session: SessionId, owner: u64, range: LockRange) {
    let mut kept = Vec::with_capacity(held.len() + 1);
    for lock in held.drain(..) {
        if (lock.session, lock.owner) != (session, owner) || !overlaps(lock.range, range) {
            kept.push(lock);
            continue;
        }
        if lock.range.start < range.start {
            kept.push(LockRow { range: LockRange { start: lock.range.start, end: range.start - 1 }, ..lock });
        }
        if lock.range.end > range.end {
            kept.push(LockRow { range: LockRange { start: range.end + 1, end: lock.range.end }, ..lock });
        }
    }
    *held = kept;
}

/// Adds a lock where its owner holds nothing, joined with neighbours of its kind.
fn acquire(held: &mut Vec<LockRow>, mut wanted: LockRow) {
    held.retain(|lock| {
        let same = (lock.session, lock.owner, lock.kind) == (wanted.session, wanted.owner, wanted.kind);
        let before = lock.range.end.checked_add(1) == Some(wanted.range.start);
        let after = wanted.range.end.checked_add(1) == Some(lock.range.start);
        if !same || !(before || after) {
            return true;
        }
        wanted.range.start = wanted.range.start.min(lock.range.start);
        wanted.range.end = wanted.range.end.max(lock.range.end);
        false
    });
    held.push(wanted);
    held.sort_by_key(|lock| (lock.range.start, lock.session, lock.owner));
}

fn overlaps(a: LockRange, b: LockRange) -> bool {
    a.start <= b.end && b.start <= a.end
}
