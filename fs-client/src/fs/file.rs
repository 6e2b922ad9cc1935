//! An open file: what all its handles on this mount share.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use bytes::Bytes;
use metadata::op::WriteAt;
use metadata::types::{Attr, BlobId, InodeId};
use parking_lot::Mutex;

use crate::buffer::{Overlay, WriteBuffer};
use crate::errno::Errno;
use crate::volume::Update;

/// See the module.
#[derive(Debug)]
pub struct OpenFile {
    /// Which inode.
    pub ino: InodeId,
    /// Held by whoever uploads or flushes: flushes of one file go one after the other.
    pub work: tokio::sync::Mutex<()>,
    /// Where a sequential reader would go on.
    pub read_next: AtomicU64,
    /// It was made through this handle, and nothing was brought home yet: most such files are written next.
    pub is_new: AtomicBool,
    state: Mutex<Dirty>,
}

/// What was written and is not in the metadata yet.
#[derive(Debug, Default)]
pub struct Dirty {
    /// Not yet being flushed.
    pub current: WriteBuffer,
    /// Being flushed: older than `current`.
    pub flushing: Option<Arc<WriteBuffer>>,
    /// To be appended, in the order of the writes; never beside `current` or `flushing`.
    pub appends: Vec<u8>,
    /// Being appended.
    pub appending: Option<Bytes>,
    /// Nobody knows yet what became of what is in `flushing` or `appending`.
    pub unsettled: Option<Arc<Unsettled>>,
    /// A writer without privileges wrote: set-id bits must go.
    pub kill_privileges: bool,
    /// When the oldest of it was written.
    pub since: Option<Instant>,
    /// A flush that nobody waited for has lost data; told once.
    pub lost: Option<Errno>,
    /// The last handle is closed: what comes back from a flush is of no use to anybody.
    pub is_closed: bool,
    accounted: usize,
}

/// A command without an answer.
#[derive(Debug)]
pub struct Unsettled {
    /// To be asked for again.
    pub update: Arc<Update>,
    /// As it says.
    pub at: WriteAt,
    /// As it says.
    pub kill_privileges: bool,
}

/// What a read must lay over the metadata's content.
#[derive(Debug, Default)]
pub struct Seen {
    /// Parts in the order in which they win.
    pub parts: Vec<Overlay>,
    /// The file reaches at least here.
    pub end: u64,
    /// There are appends, whose place nobody knows yet.
    pub has_appends: bool,
}

impl OpenFile {
    /// Nothing written.
    pub fn new(ino: InodeId) -> OpenFile {
        OpenFile {
            ino,
            work: tokio::sync::Mutex::new(()),
            read_next: AtomicU64::new(0),
            is_new: AtomicBool::new(false),
            state: Mutex::default(),
        }
    }

    /// Looks at or changes what was written, and keeps the mount's account of it.
    pub fn with<T>(&self, account: &AtomicUsize, change: impl FnOnce(&mut Dirty) -> T) -> T {
        let mut state = self.state.lock();
        let result = change(&mut state);
        let now = state.memory_bytes();
        let before = std::mem::replace(&mut state.accounted, now);
        if now > before {
            account.fetch_add(now - before, Ordering::Relaxed);
        } else {
            account.fetch_sub(before - now, Ordering::Relaxed);
        }
        result
    }

    /// True if something is not in the metadata yet.
    pub fn is_dirty(&self) -> bool {
        self.state.lock().is_dirty()
    }

    /// True if its attributes will soon be others by what is written here.
    pub fn is_about_to_change(&self) -> bool {
        self.is_new.load(Ordering::Relaxed) || self.is_dirty()
    }

    /// True if there is something to bring home or to tell.
    pub fn needs_flush(&self) -> bool {
        let state = self.state.lock();
        state.is_dirty() || state.lost.is_some()
    }

    /// What a read of `from..to` must lay over.
    pub fn seen(&self, from: u64, to: u64) -> Seen {
        let state = self.state.lock();
        if !state.is_dirty() {
            return Seen::default();
        }
        let mut parts = state.flushing.as_ref().map(|flushing| flushing.overlay(from, to)).unwrap_or_default();
        parts.extend(state.current.overlay(from, to));
        Seen { parts, end: state.end(), has_appends: !state.appends.is_empty() || state.appending.is_some() }
    }

    /// The attributes as a writer on this mount sees them.
    pub fn show(&self, attr: &mut Attr) {
        let state = self.state.lock();
        if state.is_dirty() {
            let appended = state.appends.len() + state.appending.as_ref().map_or(0, Bytes::len);
            attr.size = (attr.size + appended as u64).max(state.end());
        }
    }
}

impl Dirty {
    /// True if something is not in the metadata yet.
    pub fn is_dirty(&self) -> bool {
        !self.current.is_empty() || self.flushing.is_some() || !self.appends.is_empty() || self.appending.is_some()
    }

    /// The first byte behind all written ones.
    pub fn end(&self) -> u64 {
        self.current.end().max(self.flushing.as_ref().map_or(0, |flushing| flushing.end()))
    }

    /// Bytes in memory that no uploader accounts for.
    pub fn memory_bytes(&self) -> usize {
        // What is on its way is gone soon, but not if nobody answers.
        let unsettled = self.appending.as_ref().filter(|_| self.unsettled.is_some()).map_or(0, Bytes::len);
        self.current.memory_bytes() + self.appends.capacity() + unsettled
    }

    /// True if a flush is at work on it.
    pub fn is_flushing(&self) -> bool {
        (self.flushing.is_some() || self.appending.is_some()) && self.unsettled.is_none()
    }

    /// Forgets everything but what a flush is at work on. Returns the blobs that nothing refers to any more.
    pub fn close(&mut self) -> Vec<BlobId> {
        self.is_closed = true;
        let current = std::mem::take(&mut self.current);
        self.appends = Vec::new();
        let mut blobs = current.blobs();
        if self.unsettled.take().is_some() {
            self.appending = None;
            blobs.extend(self.flushing.take().map(|flushing| flushing.blobs()).unwrap_or_default());
        }
        blobs
    }
}
