//! Deletes blobs that nothing refers to any more: the node of a group's primary reads which, has them deleted, and logs that
//! they are gone. A node that dies in between leaves them in the list: deleting again does no harm. What must hold before a
//! blob is deleted is said in `metadata`, where `Collected` is executed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use metadata::codec;
use metadata::op::FsOp;
use metadata::protocol::Reply;
use metadata::types::BlobId;
use multicast::command::Command;
use multicast::core::SessionChange;
use multicast::ids::{CommandId, GroupId, SessionId, VectorClock};

use crate::group::mailbox::Input;
use crate::node::Shared;
use crate::replicas::Group;
use crate::server::client::Client;
use crate::status::CollectorStatus;

/// Blobs of a group that are looked at in one round: those beyond wait.
const LIST_BLOBS_MAX: u32 = 1024;
/// Blobs that are deleted together.
const BATCH_BLOBS_MAX: usize = 256;
/// A blob that could not be deleted is left alone for so long: it may be in use in another group for years.
const RETRY: Duration = Duration::from_secs(600);
const REPLY_TIMEOUT: Duration = Duration::from_secs(30);

/// Deletes blobs from all buckets that may hold them, after it has made sure that no group refers to them or ever will.
pub trait BlobDeleter: Send + Sync {
    /// Tries to delete these, which are garbage in `group`. May block.
    fn delete(&self, group: GroupId, blobs: &[BlobId]) -> Deleted;

    /// How many blobs it has deleted besides, that no group ever knew.
    fn strays(&self) -> u64 {
        0
    }
}

/// What became of blobs that were to be deleted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Deleted {
    /// Those that are certainly gone, also those that were not there.
    pub gone: Vec<BlobId>,
    /// Why others are not, for people. Empty if they are in use: there is nothing wrong with that.
    pub problem: Option<String>,
    /// True if the others may be tried again soon.
    pub again: bool,
}

/// When blobs are collected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CollectorTimes {
    /// How often the lists are looked at. Default 20 s.
    pub interval: Duration,
    /// How long a blob stays after it was first seen in a list: readers may still be at it. Default 10 min.
    pub grace: Duration,
    /// Blobs that one node deletes in a second, at most. Default 100.
    pub blobs_per_second: u32,
}

impl Default for CollectorTimes {
    fn default() -> Self {
        CollectorTimes { interval: Duration::from_secs(20), grace: Duration::from_secs(600), blobs_per_second: 100 }
    }
}

pub(crate) struct Collector {
    shared: Arc<Shared>,
    deleter: Arc<dyn BlobDeleter>,
    times: CollectorTimes,
    client: Arc<Client>,
    replies: Receiver<Reply>,
    session: SessionId,
    sequence: u64,
    /// From when on each blob's grace counts.
    seen: BTreeMap<GroupId, BTreeMap<BlobId, Instant>>,
    collected: u64,
}

impl Collector {
    pub fn new(shared: Arc<Shared>, deleter: Arc<dyn BlobDeleter>, times: CollectorTimes) -> Collector {
        let (answer, replies) = mpsc::sync_channel(16);
        let client = Client::local(shared.clients.next_number(), answer);
        let session = SessionId(crate::random_u64());
        let (sequence, seen) = (0, BTreeMap::new());
        Collector { shared, deleter, times, client, replies, session, sequence, seen, collected: 0 }
    }

    /// Until the node ends.
    pub fn run(mut self) {
        while !self.shared.wait_for_end(self.times.interval) {
            let shared = self.shared.clone();
            let mut problem = None;
            for group in shared.replicas.all() {
                let id = group.id;
                if group.view.primary() != Some(shared.config.number) {
                    self.seen.remove(&id);
                } else if let Err(why) = self.collect(id, &group) {
                    tracing::info!(group = %id, why, "collection put off");
                    problem = Some(format!("group {id}: {why}"));
                }
            }
            let waiting = self.seen.values().map(|blobs| blobs.len() as u64).sum();
            let status = CollectorStatus { waiting, collected: self.collected, strays: self.deleter.strays(), problem };
            *shared.collector.lock() = Some(status);
        }
    }

    fn collect(&mut self, id: GroupId, group: &Group) -> Result<(), String> {
        let garbage = group.view.garbage(LIST_BLOBS_MAX).ok_or("the list cannot be read")?;
        let now = Instant::now();
        let seen = self.seen.entry(id).or_default();
        seen.retain(|blob, _| garbage.contains(blob));
        let grace = self.times.grace;
        let due = garbage.into_iter().filter(|&blob| {
            // Those that are left alone are "seen" in the future.
            let since = *seen.entry(blob).or_insert(now);
            since <= now && now.duration_since(since) >= grace
        });
        let due: Vec<BlobId> = due.collect();
        for batch in due.chunks(BATCH_BLOBS_MAX) {
            self.collect_batch(id, group, batch)?;
            let pause = Duration::from_secs(1) * batch.len() as u32 / self.times.blobs_per_second.max(1);
            if self.shared.wait_for_end(pause) || group.view.primary() != Some(self.shared.config.number) {
                break;
            }
        }
        Ok(())
    }

    fn collect_batch(&mut self, id: GroupId, group: &Group, batch: &[BlobId]) -> Result<(), String> {
        let Deleted { gone, problem, again } = self.deleter.delete(id, batch);
        if !again {
            let seen = self.seen.entry(id).or_default();
            for blob in batch.iter().filter(|blob| !gone.contains(blob)) {
                seen.insert(*blob, Instant::now() + RETRY);
            }
        }
        if !gone.is_empty() {
            let count = gone.len();
            self.log(id, group, FsOp::Collected { home: id, blobs: gone.clone() })?;
            let seen = self.seen.entry(id).or_default();
            seen.retain(|blob, _| !gone.contains(blob));
            self.collected += count as u64;
            tracing::info!(group = %id, count, "blobs collected");
        }
        problem.map_or(Ok(()), Err)
    }

    /// Under a session that lasts no longer: every open session delays the end of unlinked files.
    fn log(&mut self, id: GroupId, group: &Group, op: FsOp) -> Result<(), String> {
        self.change_session(group, SessionChange::Open(self.session))?;
        let reply = self.submit(group, &op);
        self.change_session(group, SessionChange::Close(self.session))?;
        match reply? {
            Reply::Updated { outcome: Ok(_), .. } => Ok(()),
            other => Err(format!("group {id} did not take it: {other:?}")),
        }
    }

    fn change_session(&mut self, group: &Group, change: SessionChange) -> Result<(), String> {
        group.mailbox.push(Input::Session { change, ticket: self.client.local_ticket() });
        match self.wait()? {
            Reply::Session(_) => Ok(()),
            other => Err(format!("no session: {other:?}")),
        }
    }

    fn submit(&mut self, group: &Group, op: &FsOp) -> Result<Reply, String> {
        self.sequence += 1;
        let command = Arc::new(Command {
            id: CommandId { session: self.session, sequence: self.sequence },
            acknowledged_below: self.sequence,
            clock: VectorClock::new(),
            destinations: op.destinations(),
            payload: codec::encode_op(op),
        });
        group.mailbox.push(Input::Submit { command, ticket: self.client.local_ticket() });
        self.wait()
    }

    fn wait(&mut self) -> Result<Reply, String> {
        match self.replies.recv_timeout(REPLY_TIMEOUT) {
            Ok(reply) => Ok(reply),
            // A late answer must not pass for the next one's.
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                let (answer, replies) = mpsc::sync_channel(16);
                self.client.cut_off();
                self.client = Client::local(self.shared.clients.next_number(), answer);
                self.replies = replies;
                Err("no answer in time".into())
            }
        }
    }
}
