//! Bringing what was written into the metadata: blobs first, then one update that names them.
//!
//! A flush that fails for a reason that may pass (no quorum, no bucket) keeps the data: the caller is told, and the next
//! flush tries again. One that is refused (no space, file too big, file gone) drops the data: fsync or close says so, once.
//!
//! An update without an answer may have been executed, and may yet be. Writing the same bytes to the same place again does
//! no harm to them (what others have written there meanwhile is lost, as if the write had come later); appending them again
//! would, so such appends are never repeated: they count as lost.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use metadata::op::{Change, FsOp, WriteAt};
use metadata::outcome::OpError;
use metadata::types::{BLOB_BYTES_MAX, BlobRange};

use super::facts::Facts;
use super::file::{Dirty, OpenFile};
use super::{Blobs, Fs, FsResult, blob_id, blob_range, told};
use crate::buffer::{Data, Segment, WriteBuffer};
use crate::errno::Errno;
use crate::error::Error;

/// A segment of this length is a blob of its own; shorter ones share.
const ALONE_FROM: usize = 1 << 20;

/// Why a flush failed.
enum Failure {
    /// It may pass: the data stay.
    Kept(Errno),
    /// It will not: the data are dropped.
    Dropped(Errno),
}

/// What was taken from a file's writers.
pub(super) struct Aside {
    buffer: Arc<WriteBuffer>,
    batch: Batch,
}

/// What one flush sends.
struct Batch {
    at: WriteAt,
    kill_privileges: bool,
}

impl Fs {
    /// Brings everything that was written to a file into the metadata, durably. Tells failures, also earlier ones that
    /// nobody has been told of. For fsync and close; others use [`Fs::bring_home`].
    pub async fn flush(self: &Arc<Self>, file: &Arc<OpenFile>) -> FsResult<()> {
        let brought = self.bring_home(file).await;
        let lost = file.with(&self.dirty_bytes, |dirty| dirty.lost.take());
        lost.map_or(brought, Err)
    }

    /// Brings what was written until now into the metadata. What is lost on the way stays to be told by [`Fs::flush`].
    pub(super) async fn bring_home(self: &Arc<Self>, file: &Arc<OpenFile>) -> FsResult<()> {
        if !file.is_dirty() {
            return Ok(());
        }
        // One that was cancelled half-way would leave the data neither here nor there.
        let (fs, file) = (self.clone(), file.clone());
        let task = tokio::spawn(async move { fs.flush_now(&file).await });
        task.await.unwrap_or(Err(Errno::EIO))
    }

    /// A flush that nobody waits for.
    pub(super) async fn flush_unasked(self: &Arc<Self>, file: &Arc<OpenFile>) {
        if self.flush_now(file).await.is_err() {
            // Kept: tried again later.
            file.with(&self.dirty_bytes, |dirty| dirty.since = dirty.is_dirty().then(Instant::now));
        }
    }

    /// True if what was written has waited for `after`.
    pub(super) fn is_due(&self, file: &OpenFile, after: Duration) -> bool {
        file.with(&self.dirty_bytes, |dirty| {
            let idle = dirty.flushing.is_none() && dirty.appending.is_none();
            idle && dirty.is_dirty() && dirty.since.is_some_and(|since| since.elapsed() >= after)
        })
    }

    /// Takes what was written away from the writers: readers see it still. To be given back under the same `work`.
    pub(super) fn set_aside(&self, file: &OpenFile) -> Option<Aside> {
        file.with(&self.dirty_bytes, |dirty| {
            dirty.since = None;
            let kill_privileges = std::mem::take(&mut dirty.kill_privileges);
            if !dirty.appends.is_empty() {
                let appends = Bytes::from(std::mem::take(&mut dirty.appends));
                dirty.appending = Some(appends.clone());
                let segment = Segment {
                    offset: 0,
                    len: appends.len() as u64,
                    data: Data::Frozen { chunk: u64::MAX, start: 0, bytes: appends },
                };
                let buffer = Arc::new(WriteBuffer::from_segments([segment]));
                return Some(Aside { buffer, batch: Batch { at: WriteAt::End, kill_privileges } });
            }
            if dirty.current.is_empty() {
                return None;
            }
            let buffer = Arc::new(dirty.current.take());
            dirty.flushing = Some(buffer.clone());
            Some(Aside { buffer, batch: Batch { at: WriteAt::Offsets, kill_privileges } })
        })
    }

    /// Forgets what was set aside, or puts it back.
    pub(super) fn give_back(&self, file: &OpenFile, aside: Aside, forget: bool) {
        let result = if forget { Ok(()) } else { Err(Failure::Kept(Errno::EIO)) };
        if forget {
            self.abandon(&aside.buffer);
        }
        let buffer = WriteBuffer::clone(&aside.buffer);
        file.with(&self.dirty_bytes, |dirty| self.conclude(dirty, buffer, &aside.batch, &result));
    }

    fn abandon(&self, dropped: &WriteBuffer) {
        if let Some(blobs) = &self.blobs {
            let ids: Vec<_> = dropped.blobs().into_iter().map(blob_id).collect();
            blobs.uploader.abandon(&ids);
        }
    }

    /// Flushes what is there at its start, and nothing that is written meanwhile: else a busy writer would keep it for ever.
    async fn flush_now(&self, file: &Arc<OpenFile>) -> FsResult<()> {
        let _work = file.work.lock().await;
        // Appends and other writes are never there together, so this is all.
        let Some(Aside { buffer, batch }) = self.set_aside(file) else { return Ok(()) };
        // What is uploaded on the way stays so, should the flush fail.
        let mut segments: Vec<Segment> = buffer.segments().cloned().collect();
        let result = self.deliver(file, &mut segments, &batch).await;
        let buffer = WriteBuffer::from_segments(segments);
        file.with(&self.dirty_bytes, |dirty| self.conclude(dirty, buffer, &batch, &result));
        result.map_err(|failure| match failure {
            Failure::Kept(errno) | Failure::Dropped(errno) => errno,
        })
    }

    fn conclude(&self, dirty: &mut Dirty, buffer: WriteBuffer, batch: &Batch, result: &Result<(), Failure>) {
        dirty.flushing = None;
        let appending = dirty.appending.take();
        match result {
            Ok(()) => {}
            Err(Failure::Dropped(errno)) => {
                self.abandon(&buffer);
                dirty.lost.get_or_insert(*errno);
            }
            Err(Failure::Kept(_)) => {
                dirty.kill_privileges |= batch.kill_privileges;
                dirty.since.get_or_insert_with(Instant::now);
                match appending {
                    Some(older) => {
                        self.abandon(&buffer);
                        let newer = std::mem::take(&mut dirty.appends);
                        dirty.appends = [&older[..], &newer].concat();
                    }
                    None => dirty.current.restore(buffer),
                }
            }
        }
    }

    /// Uploads and commits. `segments` become references as far as it gets.
    async fn deliver(&self, file: &OpenFile, segments: &mut [Segment], batch: &Batch) -> Result<(), Failure> {
        let mut facts = Facts::new(self.timeouts.deadline);
        if self.may_be_inline(file, segments, batch)
            && let Some(changes) = inline_changes(segments)
        {
            match self.commit(file, changes, batch, &mut facts).await {
                Ok(true) => return Ok(()),
                // Other bytes of the file are inline already: these become a blob.
                Ok(false) => {}
                Err(failure) => return Err(failure),
            }
        }
        let Some(blobs) = &self.blobs else { return Err(Failure::Dropped(Errno::EIO)) };
        let kept = |error| Failure::Kept(told(&Error::Data(error)));
        self.pack(blobs, segments).await.map_err(kept)?;
        let ids: Vec<_> = segments
            .iter()
            .filter_map(|segment| match &segment.data {
                Data::Blob(range) => Some(blob_id(range.blob)),
                Data::Memory(_) | Data::Frozen { .. } => None,
            })
            .collect();
        blobs.uploader.retry(&ids);
        blobs.uploader.flush(&ids).await.map_err(kept)?;
        let changes: Vec<Change> = segments.iter().filter_map(blob_change).collect();
        let mut first = true;
        for part in changes.chunks(self.limits.changes_max.max(1)) {
            let part_batch = Batch { at: batch.at, kill_privileges: batch.kill_privileges && first };
            first = false;
            if !self.commit(file, part.to_vec(), &part_batch, &mut facts).await? {
                return Err(Failure::Kept(Errno::EIO));
            }
        }
        Ok(())
    }

    fn may_be_inline(&self, file: &OpenFile, segments: &[Segment], batch: &Batch) -> bool {
        let max = u64::from(self.limits.inline_bytes_max);
        let last = segments.last().map_or(0, |segment| segment.offset + segment.len);
        let known = self.volume.cache().attr_hint(self.table.home(file.ino), file.ino).map_or(0, |attr| attr.size);
        match batch.at {
            WriteAt::Offsets => last.max(known) <= max,
            WriteAt::End => last + known <= max,
        }
    }

    /// One command. False if the bytes do not fit inline.
    async fn commit(
        &self,
        file: &OpenFile,
        changes: Vec<Change>,
        batch: &Batch,
        facts: &mut Facts,
    ) -> Result<bool, Failure> {
        loop {
            let op = FsOp::Write {
                node: facts.at_home(self.node(file.ino)),
                at: batch.at,
                changes: changes.clone(),
                size_min: 0,
                mtime: None,
                kill_privileges: batch.kill_privileges,
            };
            match self.volume.update(op).await {
                Ok(Ok(_)) => return Ok(true),
                Ok(Err(error @ (OpError::Stale(_) | OpError::Moved { .. }))) => {
                    facts.learn(&self.table, error).await.map_err(Failure::Kept)?;
                    if std::mem::take(&mut facts.attr_refused)
                        && changes.iter().any(|change| matches!(change, Change::Inline { .. }))
                    {
                        return Ok(false);
                    }
                }
                Ok(Err(error)) => return Err(Failure::Dropped(Errno::from(&error))),
                // Executed or not: a second append would be seen twice. See the module.
                Err(error) if batch.at == WriteAt::End && may_have_happened(&error) => {
                    return Err(Failure::Dropped(told(&error)));
                }
                Err(error) => return Err(Failure::Kept(told(&error))),
            }
        }
    }

    /// Hands everything that is in memory to the uploader: long segments as they are, short ones together.
    async fn pack(&self, blobs: &Blobs, segments: &mut [Segment]) -> datastore::Result<()> {
        let writer = self.volume.session().0;
        let mut packed: Vec<usize> = Vec::new();
        let mut pack: Vec<u8> = Vec::new();
        for at in 0..segments.len() {
            let Data::Frozen { bytes, .. } = &segments[at].data else { continue };
            let bytes = bytes.clone();
            if bytes.len() >= ALONE_FROM {
                let blob = blobs.uploader.submit(blobs.new_id(writer), bytes).await?;
                segments[at].data = Data::Blob(blob_range(&blob));
                continue;
            }
            if pack.len() + bytes.len() > BLOB_BYTES_MAX as usize {
                submit_pack(blobs, writer, segments, &mut packed, &mut pack).await?;
            }
            packed.push(at);
            pack.extend_from_slice(&bytes);
        }
        submit_pack(blobs, writer, segments, &mut packed, &mut pack).await
    }

    /// A change that is no write: hole, zeros, preallocation, shared blobs. What was written before goes out first.
    pub(super) async fn change(
        self: &Arc<Self>,
        file: &Arc<OpenFile>,
        changes: Vec<Change>,
        size_min: u64,
        kill_privileges: bool,
    ) -> FsResult<Facts> {
        self.bring_home(file).await?;
        let _work = file.work.lock().await;
        let mut facts = Facts::new(self.timeouts.deadline);
        loop {
            let op = FsOp::Write {
                node: facts.at_home(self.node(file.ino)),
                at: WriteAt::Offsets,
                changes: changes.clone(),
                size_min,
                mtime: None,
                kill_privileges,
            };
            if self.update(op, &mut facts).await?.is_some() || facts.blob_gone {
                return Ok(facts);
            }
        }
    }
}

/// False if an update that failed so was certainly never sent.
fn may_have_happened(error: &Error) -> bool {
    !matches!(error, Error::Closing | Error::Config(_) | Error::Posix(_))
}

async fn submit_pack(
    blobs: &Blobs,
    writer: u64,
    segments: &mut [Segment],
    packed: &mut Vec<usize>,
    pack: &mut Vec<u8>,
) -> datastore::Result<()> {
    if pack.is_empty() {
        return Ok(());
    }
    let blob = blobs.uploader.submit(blobs.new_id(writer), Bytes::from(std::mem::take(pack))).await?;
    let mut start = 0;
    for at in packed.drain(..) {
        let segment = &mut segments[at];
        segment.data = Data::Blob(BlobRange { start, ..blob_range(&blob) });
        // Packs are never longer than a blob.
        start += segment.len as u32;
    }
    Ok(())
}

/// All as inline bytes, if all of it is in memory.
fn inline_changes(segments: &[Segment]) -> Option<Vec<Change>> {
    segments
        .iter()
        .map(|segment| match &segment.data {
            Data::Frozen { bytes, .. } => Some(Change::Inline { offset: segment.offset, bytes: bytes.clone() }),
            Data::Memory(_) | Data::Blob(_) => None,
        })
        .collect()
}

fn blob_change(segment: &Segment) -> Option<Change> {
    match &segment.data {
        Data::Blob(range) => {
            Some(Change::Blob { offset: segment.offset, len: segment.len, source: *range, fresh: true })
        }
        Data::Memory(_) | Data::Frozen { .. } => None,
    }
}
