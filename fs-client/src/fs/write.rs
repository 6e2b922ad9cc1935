//! Taking over writes. What collects here goes out in `flush.rs`.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use bytes::Bytes;
use metadata::types::{BLOB_BYTES_MAX, FILE_BYTES_MAX};

use super::file::OpenFile;
use super::{Fs, FsResult, blob_range};
use crate::errno::Errno;

/// Appends that have grown to this length go out.
const APPEND_BYTES_MAX: usize = 1 << 20;

/// Appends beyond this are not taken: they go out as one blob.
const APPENDS_MAX: usize = BLOB_BYTES_MAX as usize;

/// One write(2).
#[derive(Clone, Copy, Debug)]
pub struct Write<'a> {
    /// Where; without meaning for an append.
    pub offset: u64,
    /// What.
    pub bytes: &'a [u8],
    /// `O_APPEND`.
    pub append: bool,
    /// The writer may not keep set-id bits.
    pub kill_privileges: bool,
}

/// What is left to do before a write may be acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// Nothing.
    Done,
    /// [`Fs::settle`]: make room.
    Settle,
    /// Nothing was taken yet: [`Fs::flush`] first, then write again.
    FlushFirst,
}

impl Fs {
    /// Takes over a write. Never waits.
    pub fn write(&self, file: &OpenFile, write: Write<'_>) -> FsResult<Written> {
        let end = write.offset.checked_add(write.bytes.len() as u64).ok_or(Errno::EFBIG)?;
        if !write.append && end > FILE_BYTES_MAX || write.append && write.bytes.len() > APPENDS_MAX {
            return Err(Errno::EFBIG);
        }
        let written = self.with_dirty(file, |dirty| {
            // Where an append goes is known only when it executes, so the two kinds do not mix.
            let mixes = match write.append {
                true => !dirty.current.is_empty() || dirty.flushing.is_some(),
                false => !dirty.appends.is_empty() || dirty.appending.is_some(),
            };
            // What is taken stays, whatever becomes of its flush: so there must be room before. Files that have nothing here
            // write through: they need not wait for one that cannot be flushed.
            let appends = dirty.appends.len() + dirty.appending.as_ref().map_or(0, Bytes::len);
            let too_long = write.append && appends + write.bytes.len() > APPENDS_MAX;
            let no_room = dirty.memory_bytes() > 0 && self.is_full();
            // A bucket without room says so at once: what cannot go there is not taken either, until it goes.
            let is_long = dirty.memory_bytes() > self.limits.inline_bytes_max as usize;
            if mixes || too_long || no_room || (is_long && self.is_bucket_full()) {
                return Written::FlushFirst;
            }
            dirty.kill_privileges |= write.kill_privileges;
            dirty.since.get_or_insert_with(Instant::now);
            if write.append {
                dirty.appends.extend_from_slice(write.bytes);
                if dirty.appends.len() >= APPEND_BYTES_MAX { Written::Settle } else { Written::Done }
            } else {
                dirty.current.write(write.offset, write.bytes);
                let many = dirty.current.count() > self.limits.changes_max;
                if dirty.current.has_full() || many { Written::Settle } else { Written::Done }
            }
        });
        Ok(if self.is_full() && written == Written::Done { Written::Settle } else { written })
    }

    /// Writes and does what is left to do. Fails only if nothing was taken: what was taken and cannot be flushed is told by
    /// fsync, as an application that repeats a failed write must not write twice.
    pub async fn write_settled(self: &Arc<Self>, file: &Arc<OpenFile>, write: Write<'_>) -> FsResult<()> {
        loop {
            match self.write(file, write)? {
                Written::Done => return Ok(()),
                Written::Settle => {
                    self.settle(file).await;
                    return Ok(());
                }
                Written::FlushFirst if self.is_full() => self.make_room(file).await?,
                Written::FlushFirst => {
                    let brought = self.bring_home(file).await;
                    // What was dropped is told by fsync, and no longer in the way.
                    if file.is_dirty() {
                        brought?;
                    }
                }
            }
        }
    }

    /// Uploads whole blobs, flushes what has grown too long and, when the mount's buffer is full, until it is not. Writers
    /// wait here. What fails stays to be flushed.
    pub async fn settle(self: &Arc<Self>, file: &Arc<OpenFile>) {
        let uploaded = self.upload_full(file).await;
        let (appends, many) = self.with_dirty(file, |dirty| {
            (dirty.appends.len() >= APPEND_BYTES_MAX, dirty.current.count() > self.limits.changes_max)
        });
        if uploaded.is_ok() && (appends || many) && self.bring_home(file).await.is_err() {
            return;
        }
        let _ = self.make_room(file).await;
    }

    fn is_full(&self) -> bool {
        self.dirty_bytes.load(Ordering::Relaxed) > self.limits.dirty_bytes_max / 2
    }

    /// Flushes until the mount's buffer has room, or this file has nothing in it.
    async fn make_room(self: &Arc<Self>, file: &Arc<OpenFile>) -> FsResult<()> {
        while self.is_full() {
            let bytes = |file: &Arc<OpenFile>| self.with_dirty(file, |dirty| dirty.memory_bytes());
            let Some(largest) = self.table.files().into_iter().max_by_key(bytes) else { return Ok(()) };
            if bytes(&largest) == 0 {
                return Ok(());
            }
            // Another file's failure is told to those who use that file.
            let flushed = self.bring_home(&largest).await;
            if Arc::ptr_eq(&largest, file) {
                flushed?;
            } else if flushed.is_err() {
                return self.bring_home(file).await;
            }
        }
        Ok(())
    }

    async fn upload_full(&self, file: &OpenFile) -> FsResult<()> {
        let Some(blobs) = &self.blobs else { return Ok(()) };
        let _work = file.work.lock().await;
        loop {
            let Some((chunk, bytes)) = self.with_dirty(file, |dirty| dirty.current.freeze_full()) else {
                return Ok(());
            };
            let id = blobs.new_id(self.volume.session().0);
            let submitted = blobs.uploader.submit(id, bytes).await;
            let is_wanted = self.with_dirty(file, |dirty| match &submitted {
                Ok(blob) => dirty.current.become_blob(chunk, blob_range(blob)),
                Err(_) => {
                    dirty.current.thaw(chunk);
                    true
                }
            });
            if !is_wanted {
                blobs.uploader.abandon(&[id]);
            }
            // That it is taken says nothing of the bucket.
            if submitted.is_err() {
                self.note_bucket(submitted)?;
            }
        }
    }
}
