//! Copies of a group's state, for a member whose log cannot be helped any more: the primary sends all rows as they are at one
//! entry over a connection of their own; the receiver writes them beside its own state and takes that one's place in one step.
//!
//! Frames, sender to receiver: [`ToReceiver`]; at the end one [`ToSender`]. Nothing is kept of a copy that is interrupted: the
//! primary's core asks for another one. What waits to be sent is bounded by the connection's windows, so the slower side
//! sets the pace; threads of their own read and write, so neither a replica's thread nor the network's waits for a disk.

mod receive;
mod send;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

use bytes::Bytes;
use multicast::ids::{GroupId, Incarnation, LogIndex, ReplicaId};
use net::ChannelKind;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use crate::status::CopyStatus;

pub use receive::{Prepared, accept};
pub use send::{Sending, send};

/// The channel of a copy.
pub const COPY_CHANNEL: ChannelKind = ChannelKind::new(3, 1);

const VERSION: u8 = 1;
/// Rows are gathered until they have so many bytes.
const CHUNK_BYTES: usize = 512 << 10;
/// Whole replicas that are looked through at once.
const INSPECTIONS_MAX: usize = 4;
/// The longest frame: a chunk, and a row that is as long as can be.
const FRAME_BYTES_MAX: usize = 4 << 20;

/// To whoever gets a copy.
#[derive(Debug, Serialize, Deserialize)]
enum ToReceiver {
    /// First.
    Begin {
        /// Of which group.
        group: GroupId,
        /// For which disk.
        incarnation: Incarnation,
        /// Where in the log it stands: an encoded [`multicast::Snapshot`].
        snapshot: Bytes,
        /// What the group was founded with.
        charter: Bytes,
        /// About so many rows follow.
        rows: u64,
    },
    /// Then these.
    Rows {
        /// CRC32C of `rows`.
        crc: u32,
        /// Each: length of the key, length of the value (u32, little-endian), key, value.
        rows: Bytes,
    },
    /// Last.
    End {
        /// So many rows came.
        rows: u64,
        /// CRC32C of all that [`ToReceiver::Rows`] had.
        crc: u32,
    },
}

/// To whoever sent a copy.
#[derive(Debug, Serialize, Deserialize)]
enum ToSender {
    /// It is in place.
    Installed {
        /// The state stands there.
        index: LogIndex,
    },
    /// It is not, and why.
    Refused {
        /// For people.
        why: String,
    },
}

/// The copies of a node that are under way.
pub struct Copies {
    cancel: watch::Sender<bool>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    progress: Mutex<Vec<Arc<Progress>>>,
    /// Those who may look through rows at once.
    inspections: Arc<Semaphore>,
}

/// How far a copy is.
#[derive(Debug)]
pub struct Progress {
    group: GroupId,
    peer: ReplicaId,
    is_sent: bool,
    bytes: AtomicU64,
    rows: AtomicU64,
    rows_expected: AtomicU64,
}

impl Default for Copies {
    fn default() -> Copies {
        Copies {
            cancel: watch::Sender::new(false),
            threads: Mutex::default(),
            progress: Mutex::default(),
            inspections: Arc::new(Semaphore::new(INSPECTIONS_MAX)),
        }
    }
}

impl Copies {
    /// Runs one side of a copy, or whatever reads a whole state, on a thread of its own. Nothing is begun once the node ends.
    pub fn spawn(&self, name: String, run: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
        let mut threads = self.threads.lock();
        if *self.cancel.borrow() {
            return Err(std::io::Error::other("the node is stopping"));
        }
        threads.retain(|thread| !thread.is_finished());
        threads.push(std::thread::Builder::new().name(name).spawn(run)?);
        Ok(())
    }

    /// A turn to look through a replica's rows, if there is one left.
    pub fn inspection(&self) -> Option<OwnedSemaphorePermit> {
        self.inspections.clone().try_acquire_owned().ok()
    }

    /// Registers a copy for [`Copies::status`], as long as the guard lives. None if there is one of that kind: one at a time.
    fn begin(self: &Arc<Copies>, group: GroupId, peer: ReplicaId, is_sent: bool) -> Option<Guard> {
        let mut list = self.progress.lock();
        if list.iter().any(|known| known.group == group && known.is_sent == is_sent) {
            return None;
        }
        let progress = Arc::new(Progress {
            group,
            peer,
            is_sent,
            bytes: AtomicU64::new(0),
            rows: AtomicU64::new(0),
            rows_expected: AtomicU64::new(0),
        });
        list.push(progress.clone());
        Some(Guard { copies: self.clone(), progress })
    }

    /// Ends all copies, and waits until they have ended.
    pub fn end(&self) {
        self.cancel.send_replace(true);
        let threads = std::mem::take(&mut *self.threads.lock());
        for thread in threads {
            let _ = thread.join();
        }
    }

    /// When the node ends.
    pub async fn cancelled(&self) {
        // An error means that nobody can cancel any more.
        let _ = self.cancel.subscribe().wait_for(|&is_ending| is_ending).await;
    }

    /// Those of a group, for people.
    pub fn status(&self, group: u16) -> Vec<CopyStatus> {
        self.progress.lock().iter().filter(|copy| copy.group.0 == group).map(|copy| copy.status()).collect()
    }
}

impl Progress {
    fn add(&self, rows: u64, bytes: usize) {
        self.rows.fetch_add(rows, Ordering::Relaxed);
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn status(&self) -> CopyStatus {
        let (rows, expected) = (self.rows.load(Ordering::Relaxed), self.rows_expected.load(Ordering::Relaxed));
        CopyStatus {
            peer: self.peer.0,
            is_sent: self.is_sent,
            bytes: self.bytes.load(Ordering::Relaxed),
            rows,
            // The number of rows is an estimate.
            percent: rows.saturating_mul(100).checked_div(expected).unwrap_or(0).min(99),
        }
    }
}

/// A copy under way.
struct Guard {
    copies: Arc<Copies>,
    progress: Arc<Progress>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.copies.progress.lock().retain(|known| !Arc::ptr_eq(known, &self.progress));
    }
}
