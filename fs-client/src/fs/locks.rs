//! Byte-range locks. The namespace holds them; here is who waits, and what this mount must give back.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use metadata::op::{FsOp, LockKind, LockRange};
use metadata::outcome::OpError;
use metadata::read::{ReadAnswer, ReadOp};
use metadata::types::{InodeId, NodeRef};
use multicast::ids::SessionId;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::facts::Facts;
use super::{Fs, FsResult, told};
use crate::errno::Errno;
use crate::signals::has_signal;

const POLL_MIN: Duration = Duration::from_millis(10);
const POLL_MAX: Duration = Duration::from_millis(250);
/// The whole of a file.
const WHOLE: LockRange = LockRange { start: 0, end: i64::MAX as u64 };

/// Owners that hold something through this mount.
#[derive(Debug, Default)]
pub struct Held {
    owners: Mutex<HashSet<(InodeId, u64)>>,
    /// A lock of this mount was given back: waiters need not finish their pause.
    released: Notify,
}

/// A wish.
#[derive(Clone, Copy, Debug)]
pub struct LockRequest {
    /// The kernel's lock owner.
    pub owner: u64,
    /// The process that the lock belongs to.
    pub pid: u32,
    /// The thread that asks: its signals end the wait.
    pub thread: u32,
    /// The range.
    pub range: LockRange,
    /// What to hold; `None` unlocks.
    pub kind: Option<LockKind>,
    /// Wait for it.
    pub wait: bool,
}

/// What F_GETLK found in the way.
#[derive(Clone, Copy, Debug)]
pub struct TestedLock {
    /// Whose.
    pub session: SessionId,
    /// Its process.
    pub pid: u32,
    /// Its kind.
    pub kind: LockKind,
    /// Its range.
    pub range: LockRange,
}

impl Fs {
    /// Takes, changes or drops a lock; waits if asked to, until it is there or the asker is interrupted.
    pub async fn lock(self: &Arc<Self>, node: NodeRef, request: LockRequest) -> FsResult<()> {
        // What was written under a lock must be seen by who takes it next.
        if request.kind.is_none()
            && let Some(file) = self.table.file(node.ino)
            && file.is_dirty()
        {
            self.bring_home(&file).await?;
        }
        if request.kind.is_none() && !self.locks.owners.lock().contains(&(node.ino, request.owner)) {
            return Ok(());
        }
        let mut facts = Facts::new(self.timeouts.deadline);
        let mut pause = POLL_MIN;
        loop {
            let released = self.locks.released.notified();
            let op = FsOp::Lock {
                node: facts.at_home(node),
                owner: request.owner,
                flock: false,
                range: request.range,
                kind: request.kind,
                pid: request.pid,
            };
            match self.volume.update(op).await.map_err(|error| told(&error))? {
                Ok(_) => {
                    self.note_lock(node.ino, &request);
                    return Ok(());
                }
                Err(OpError::LockHeld { .. } | OpError::Errno(metadata::outcome::Errno::Locked)) => {
                    if !request.wait {
                        return Err(Errno::EAGAIN);
                    }
                    let _ = tokio::time::timeout(pause, released).await;
                    pause = (pause * 2).min(POLL_MAX);
                    if has_signal(request.thread) {
                        return Err(Errno::EINTR);
                    }
                }
                Err(error) => facts.learn(&self.table, error).await?,
            }
        }
    }

    /// As [`Fs::lock`], for somebody who may be gone before it is there: nobody would give it back.
    pub async fn lock_or_let_go(self: &Arc<Self>, node: NodeRef, request: LockRequest) -> FsResult<()> {
        let locked = self.lock(node, request).await;
        if locked.is_ok() && request.kind.is_some() && !self.table.is_open(node.ino) {
            self.unlock_all(node, request.owner).await?;
        }
        locked
    }

    fn note_lock(&self, ino: InodeId, request: &LockRequest) {
        match request.kind {
            Some(_) => {
                self.locks.owners.lock().insert((ino, request.owner));
            }
            None => {
                if request.range == WHOLE {
                    self.locks.owners.lock().remove(&(ino, request.owner));
                }
                self.locks.released.notify_waiters();
            }
        }
    }

    /// F_GETLK.
    pub async fn test_lock(&self, node: NodeRef, request: LockRequest) -> FsResult<Option<TestedLock>> {
        let Some(kind) = request.kind else { return Ok(None) };
        let op = ReadOp::TestLock {
            ino: node.ino,
            owner: request.owner,
            flock: false,
            range: request.range,
            kind,
            session: self.volume.session(),
        };
        match self.ask(node, op).await? {
            ReadAnswer::Lock(found) => {
                Ok(found.map(|(session, pid, kind, range)| TestedLock { session, pid, kind, range }))
            }
            _ => Err(Errno::EIO),
        }
    }

    /// True if `owner` holds locks on the inode through this mount.
    pub fn holds_locks(&self, ino: InodeId, owner: u64) -> bool {
        self.locks.owners.lock().contains(&(ino, owner))
    }

    /// Drops all locks of an owner, as close(2) does.
    pub async fn unlock_all(self: &Arc<Self>, node: NodeRef, owner: u64) -> FsResult<()> {
        let request = LockRequest { owner, pid: 0, thread: 0, range: WHOLE, kind: None, wait: false };
        self.lock(node, request).await
    }
}
