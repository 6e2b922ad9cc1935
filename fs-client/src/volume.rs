//! The metadata as the file system logic sees them: updates and reads, and a cache that is kept right beside them.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use metadata::op::FsOp;
use metadata::operate::{Directory, Operation};
use metadata::outcome::Outcome;
use metadata::protocol::Reply;
use metadata::read::{ReadOp, ReadResult};
use metadata::types::InodeId;
use multicast::ids::{GroupId, ReplicaId, SessionId};
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::cache::Cache;
use crate::error::Result;
pub use crate::session::pending::Update;

/// A boxed future: remote operations are too slow for one allocation to matter.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Metadata of one cluster for one session.
pub trait Volume: Send + Sync + 'static {
    /// Orders and executes an update, once, before the deadline or not at all as far as the caller can know. The cache and
    /// the clock know of it before this returns.
    fn update(&self, op: FsOp) -> BoxFuture<'_, Result<Outcome>> {
        Box::pin(async move { self.settle(&Update::new(op)).await })
    }

    /// As [`Volume::update`]. If it fails, the same update can be asked for again, however late: it is not executed twice.
    /// [`Error::SessionLost`] and [`Error::Overtaken`] say that what became of it will never be known: from then on it is
    /// a new one.
    ///
    /// [`Error::SessionLost`]: crate::Error::SessionLost
    /// [`Error::Overtaken`]: crate::Error::Overtaken
    fn settle<'a>(&'a self, update: &'a Update) -> BoxFuture<'a, Result<Outcome>>;

    /// Asks a replica of `group` that has seen all that this client has.
    fn read(&self, group: GroupId, op: ReadOp) -> BoxFuture<'_, Result<ReadResult>>;

    /// What may be answered without asking.
    fn cache(&self) -> &Arc<Cache>;

    /// Who asks.
    fn session(&self) -> SessionId;

    /// Where news of orphans arrive.
    fn orphans(&self) -> &Arc<OrphanBox>;

    /// Registers the session in `group`, so that files held open there are kept for it. Returns at once when that was
    /// done before.
    fn open_session(&self, group: GroupId) -> BoxFuture<'_, Result<()>>;

    /// True if that was done.
    fn is_session_open(&self, group: GroupId) -> bool;

    /// False if nothing of `group` can be held for this session, because it was never registered there.
    fn may_hold(&self, group: GroupId) -> bool;

    /// Asks a node to do what an operator wants.
    fn operate(&self, node: ReplicaId, operation: Operation) -> BoxFuture<'_, Result<Reply>>;

    /// Who belongs to the groups, as far as a node knows.
    fn node_directory(&self, node: ReplicaId) -> BoxFuture<'_, Result<Directory>>;

    /// A node's status document.
    fn node_status(&self, node: ReplicaId) -> BoxFuture<'_, Result<Bytes>>;

    /// Ends the session everywhere it can be ended within the configured time.
    fn close(&self) -> BoxFuture<'_, ()>;
}

/// Inodes that have lost their last name and wait for this session's word. Grows at most to [`ORPHANS_MAX`]; what is
/// dropped at the bound is held until the session ends.
#[derive(Debug, Default)]
pub struct OrphanBox {
    news: Mutex<BTreeMap<GroupId, Vec<InodeId>>>,
    arrived: Notify,
}

/// Bound of an [`OrphanBox`], per group.
pub const ORPHANS_MAX: usize = 1 << 20;

impl OrphanBox {
    /// Puts news in.
    pub fn put(&self, group: GroupId, inodes: &[InodeId]) {
        if inodes.is_empty() {
            return;
        }
        let mut news = self.news.lock();
        let waiting = news.entry(group).or_default();
        if waiting.len() + inodes.len() > ORPHANS_MAX {
            tracing::warn!(%group, dropped = inodes.len(), "too many orphans at once");
            return;
        }
        waiting.extend_from_slice(inodes);
        drop(news);
        self.arrived.notify_one();
    }

    /// Takes all news, waiting for some.
    pub async fn take(&self) -> BTreeMap<GroupId, Vec<InodeId>> {
        loop {
            let news = std::mem::take(&mut *self.news.lock());
            if !news.is_empty() {
                return news;
            }
            self.arrived.notified().await;
        }
    }
}
