//! Deletes blobs that nothing refers to any more: the node of a group's primary reads which, has them deleted, and logs that
//! they are gone. A node that dies in between leaves them in the list: deleting again does no harm.

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
use crate::node::{Group, Shared};
use crate::server::client::Client;

/// Blobs in one round of one group.
const ROUND_BLOBS_MAX: u32 = 512;
const REPLY_TIMEOUT: Duration = Duration::from_secs(30);

/// Deletes blobs from all buckets that may hold them.
pub trait BlobDeleter: Send + Sync {
    /// Tries to delete these and returns those that are certainly gone (also those that were not there). May block.
    fn delete(&self, blobs: &[BlobId]) -> Vec<BlobId>;
}

/// When blobs are collected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CollectorTimes {
    /// How often the lists are looked at. Default 20 s.
    pub interval: Duration,
    /// How long a blob stays after it was first seen in a list: readers may still be at it. Default 10 min.
    pub grace: Duration,
}

impl Default for CollectorTimes {
    fn default() -> Self {
        CollectorTimes { interval: Duration::from_secs(20), grace: Duration::from_secs(600) }
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
    seen: BTreeMap<GroupId, BTreeMap<BlobId, Instant>>,
}

impl Collector {
    pub fn new(shared: Arc<Shared>, deleter: Arc<dyn BlobDeleter>, times: CollectorTimes) -> Collector {
        let (answer, replies) = mpsc::sync_channel(16);
        let client = Client::local(shared.clients.next_number(), answer);
        let session = SessionId(crate::random_u64());
        Collector { shared, deleter, times, client, replies, session, sequence: 0, seen: BTreeMap::new() }
    }

    /// Until the node ends.
    pub fn run(mut self) {
        while !self.shared.wait_for_end(self.times.interval.min(self.shared.config.timeouts.session_lease / 3)) {
            self.shared.keep_alives.note(self.session, Instant::now());
            let shared = self.shared.clone();
            for (&id, group) in &shared.groups {
                if group.view.primary() != Some(shared.config.number) {
                    self.seen.remove(&id);
                } else if let Err(why) = self.collect(id, group) {
                    tracing::debug!(group = %id, why, "collection put off");
                }
            }
        }
    }

    fn collect(&mut self, id: GroupId, group: &Group) -> Result<(), &'static str> {
        let garbage = group.view.garbage(ROUND_BLOBS_MAX).ok_or("the list cannot be read")?;
        let now = Instant::now();
        let seen = self.seen.entry(id).or_default();
        seen.retain(|blob, _| garbage.contains(blob));
        let grace = self.times.grace;
        let due: Vec<BlobId> =
            garbage.into_iter().filter(|&blob| now.duration_since(*seen.entry(blob).or_insert(now)) >= grace).collect();
        if due.is_empty() {
            return Ok(());
        }
        let blobs = self.deleter.delete(&due);
        if blobs.is_empty() {
            return Err("nothing could be deleted");
        }
        let count = blobs.len();
        self.log(id, group, FsOp::Collected { home: id, blobs })?;
        tracing::info!(group = %id, count, "blobs collected");
        Ok(())
    }

    fn log(&mut self, id: GroupId, group: &Group, op: FsOp) -> Result<(), &'static str> {
        match self.submit(group, &op)? {
            Reply::Updated { outcome: Ok(_), .. } => return Ok(()),
            Reply::UnknownSession { group: unknown } if unknown == id => {}
            _ => return Err("the group did not take it"),
        }
        let change = SessionChange::Open(self.session);
        group.mailbox.push(Input::Session { change, ticket: self.client.local_ticket() });
        match self.wait()? {
            Reply::Session(_) => {}
            _ => return Err("the group opened no session"),
        }
        match self.submit(group, &op)? {
            Reply::Updated { outcome: Ok(_), .. } => Ok(()),
            _ => Err("the group did not take it"),
        }
    }

    fn submit(&mut self, group: &Group, op: &FsOp) -> Result<Reply, &'static str> {
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

    fn wait(&mut self) -> Result<Reply, &'static str> {
        match self.replies.recv_timeout(REPLY_TIMEOUT) {
            Ok(reply) => Ok(reply),
            // A late answer must not pass for the next one's.
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                let (answer, replies) = mpsc::sync_channel(16);
                self.client.cut_off();
                self.client = Client::local(self.shared.clients.next_number(), answer);
                self.replies = replies;
                Err("no answer in time")
            }
        }
    }
}
