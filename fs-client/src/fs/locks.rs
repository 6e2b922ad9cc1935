//! Byte-range locks. The namespace holds them; here is who waits, and what this mount must give back.

use std::collections::HashMap;
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
const GIVE_BACK_PAUSE: Duration = Duration::from_millis(500);
/// The whole of a file.
const WHOLE: LockRange = LockRange { start: 0, end: i64::MAX as u64 };

/// Owners that hold something through this mount, or are about to.
///
/// The kernel's name of an owner is made of an address. For flock(2) that is the open file's, and as closing waits for nobody,
/// the next file that is opened may have the same name while the lock of the one before is still being given back. For the
/// namespace the two are one. So what is done for one owner of one inode is done one after the other, and a handle that is
/// closed gives back what it took itself, not what a later one has taken over.
#[derive(Debug, Default)]
pub struct Held {
    owners: Mutex<HashMap<(InodeId, u64), Owner>>,
    /// A lock of this mount was given back: waiters need not finish their pause.
    released: Notify,
}

#[derive(Debug, Default)]
struct Owner {
    /// The handle that has taken a lock most lately, if one is held or may be.
    handle: Option<u64>,
    /// Whose turn it is.
    turn: Arc<tokio::sync::Mutex<()>>,
    /// Calls that wait for it or have it.
    calls: usize,
}

/// A call for an owner.
struct Call<'a> {
    held: &'a Held,
    key: (InodeId, u64),
    turn: Arc<tokio::sync::Mutex<()>>,
}

impl Held {
    fn begin(&self, key: (InodeId, u64)) -> Call<'_> {
        let mut owners = self.owners.lock();
        let owner = owners.entry(key).or_default();
        owner.calls += 1;
        Call { held: self, key, turn: owner.turn.clone() }
    }

    fn contains(&self, key: (InodeId, u64)) -> bool {
        self.owners.lock().contains_key(&key)
    }
}

impl Call<'_> {
    fn handle(&self) -> Option<u64> {
        self.held.owners.lock().get(&self.key).and_then(|owner| owner.handle)
    }

    /// In its turn: what the namespace has answered.
    fn note(&self, request: &LockRequest) {
        let is_whole = request.range == WHOLE;
        if let Some(owner) = self.held.owners.lock().get_mut(&self.key) {
            match request.kind {
                Some(_) => owner.handle = Some(request.handle),
                None if is_whole => owner.handle = None,
                None => {}
            }
        }
        if request.kind.is_none() {
            self.held.released.notify_waiters();
        }
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        let mut owners = self.held.owners.lock();
        if let Some(owner) = owners.get_mut(&self.key) {
            owner.calls -= 1;
            if owner.calls == 0 && owner.handle.is_none() {
                owners.remove(&self.key);
            }
        }
    }
}

/// A wish.
#[derive(Clone, Copy, Debug)]
pub struct LockRequest {
    /// The kernel's lock owner.
    pub owner: u64,
    /// The open file by which it asks.
    pub handle: u64,
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
        self.change_lock(node, request, None).await
    }

    /// `closed`: only if that handle was the last one to take a lock for this owner.
    async fn change_lock(self: &Arc<Self>, node: NodeRef, request: LockRequest, closed: Option<u64>) -> FsResult<()> {
        // What was written under a lock must be seen by who takes it next.
        if request.kind.is_none()
            && let Some(file) = self.table.file(node.ino)
            && file.is_dirty()
        {
            self.bring_home(&file).await?;
        }
        let call = self.locks.begin((node.ino, request.owner));
        let mut facts = Facts::new(self.timeouts.deadline);
        let mut pause = POLL_MIN;
        loop {
            let released = self.locks.released.notified();
            let turn = call.turn.lock().await;
            if request.kind.is_none()
                && call.handle().is_none_or(|handle| closed.is_some_and(|closed| closed != handle))
            {
                return Ok(());
            }
            let op = FsOp::Lock {
                node: facts.at_home(node),
                owner: request.owner,
                flock: false,
                range: request.range,
                kind: request.kind,
                pid: request.pid,
            };
            let answer = self.volume.update(op).await;
            // A lock that was asked for in vain may be there all the same: then too it must be given back.
            if matches!(answer, Ok(Ok(_))) || (answer.is_err() && request.kind.is_some()) {
                call.note(&request);
            }
            drop(turn);
            match answer.map_err(|error| told(&error))? {
                Ok(_) => return Ok(()),
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

    /// True if `owner` holds locks on the inode through this mount, or is about to.
    pub fn holds_locks(&self, ino: InodeId, owner: u64) -> bool {
        self.locks.contains((ino, owner))
    }

    /// Drops all locks of an owner, as close(2) does with those of fcntl(2).
    pub async fn unlock_all(self: &Arc<Self>, node: NodeRef, owner: u64) -> FsResult<()> {
        self.change_lock(node, unlock_whole(owner), None).await
    }

    /// Drops the locks that an open file holds by itself, once it is closed for good, as flock(2) says. Nobody else would do it
    /// as long as this mount lives: so for as long as no quorum answers, it is tried again.
    pub async fn unlock_closed(self: &Arc<Self>, node: NodeRef, owner: u64, handle: u64) {
        loop {
            match self.change_lock(node, unlock_whole(owner), Some(handle)).await {
                Err(Errno::ETIMEDOUT | Errno::EHOSTUNREACH) => tokio::time::sleep(GIVE_BACK_PAUSE).await,
                Ok(()) | Err(_) => return,
            }
        }
    }
}

fn unlock_whole(owner: u64) -> LockRequest {
    LockRequest { owner, handle: 0, pid: 0, thread: 0, range: WHOLE, kind: None, wait: false }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::atomic::Ordering;

    use bytes::Bytes;
    use metadata::op::NewNode;
    use metadata::types::FileKind;
    use multicast::ids::GroupId;

    use super::*;
    use crate::fs::{Created, NewEntry};
    use crate::testing::{Fate, MemCluster};

    const OWNER: u64 = 7;

    fn request(owner: u64, handle: u64) -> LockRequest {
        let kind = Some(LockKind::Write);
        LockRequest { owner, handle, pid: 1, thread: 0, range: WHOLE, kind, wait: false }
    }

    struct Fixture {
        _folder: tempfile::TempDir,
        cluster: Arc<MemCluster>,
        one: Arc<Fs>,
        other: Arc<Fs>,
        file: NodeRef,
    }

    impl Fixture {
        async fn new() -> Fixture {
            let folder = tempfile::tempdir().unwrap();
            let cluster = MemCluster::new(1);
            let (one, other) = (cluster.fs(folder.path()).await, cluster.fs(folder.path()).await);
            let root = NodeRef { ino: InodeId::ROOT, kind: FileKind::Directory, home: GroupId::GLOBAL };
            let entry = NewEntry { node: NewNode::File, mode: 0o644, uid: 0, gid: 0 };
            let Created::New(attr) = one.create(root, &Bytes::from_static(b"f"), &entry).await.unwrap() else {
                panic!("an empty tree has the name")
            };
            let file = NodeRef { ino: attr.ino, kind: attr.kind, home: attr.home };
            one.table.open(file.ino, file.kind, file.home);
            Fixture { _folder: folder, cluster, one, other, file }
        }

        async fn is_free(&self) -> bool {
            let taken = self.other.lock(self.file, request(1, 1)).await;
            if taken.is_ok() {
                self.other.unlock_all(self.file, 1).await.unwrap();
            }
            taken.is_ok()
        }
    }

    #[tokio::test]
    async fn lock_of_an_open_file_whose_owner_had_its_name_from_a_closed_one_stays_and_is_given_back() {
        let fixture = Fixture::new().await;
        let Fixture { one, file, .. } = &fixture;
        one.lock(*file, request(OWNER, 1)).await.unwrap();
        // Another one is opened at the same address and takes the lock, before the kernel says that the first was closed.
        one.lock(*file, request(OWNER, 2)).await.unwrap();
        one.unlock_closed(*file, OWNER, 1).await;
        assert!(!fixture.is_free().await, "the first one has given back the lock of the second");
        one.unlock_closed(*file, OWNER, 2).await;
        assert!(fixture.is_free().await, "nobody has given it back");
        assert!(!one.holds_locks(file.ino, OWNER));
    }

    #[tokio::test]
    async fn lock_taken_while_the_last_one_of_that_owner_is_given_back_is_known_to_be_held() {
        let fixture = Fixture::new().await;
        let Fixture { one, file, cluster, .. } = &fixture;
        one.lock(*file, request(OWNER, 1)).await.unwrap();
        cluster.doom([Fate::AnswerLate]);
        let (closing, node) = (one.clone(), *file);
        let closing = tokio::spawn(async move { closing.unlock_closed(node, OWNER, 1).await });
        tokio::time::sleep(Duration::from_millis(20)).await;
        one.lock(*file, request(OWNER, 2)).await.unwrap();
        closing.await.unwrap();
        assert!(!fixture.is_free().await && one.holds_locks(file.ino, OWNER));
        one.unlock_closed(*file, OWNER, 2).await;
        assert!(fixture.is_free().await, "nobody has given it back");
    }

    #[tokio::test]
    async fn lock_is_given_back_though_its_taking_was_not_answered_and_no_quorum_answers_now() {
        let fixture = Fixture::new().await;
        let Fixture { one, file, cluster, .. } = &fixture;
        cluster.doom([Fate::AnswerLost]);
        assert_eq!(one.lock(*file, request(OWNER, 1)).await, Err(Errno::ETIMEDOUT));
        assert!(!fixture.is_free().await);
        cluster.cut.store(true, Ordering::Relaxed);
        let (closing, node) = (one.clone(), *file);
        let closing = tokio::spawn(async move { closing.unlock_closed(node, OWNER, 1).await });
        tokio::time::sleep(Duration::from_millis(20)).await;
        cluster.cut.store(false, Ordering::Relaxed);
        closing.await.unwrap();
        assert!(fixture.is_free().await, "nobody has given it back");
    }
}
