//! Bringing what was written into the metadata: blobs first, then one update that names them.
//!
//! A flush that fails for a reason that may pass (no quorum, no bucket) keeps the data: the caller is told, and the next
//! flush tries again. One that is refused (no space, file too big, file gone) drops the data: fsync or close says so, once.
//!
//! An update without an answer may have been executed, and may yet be. It keeps its id: the next flush asks for that very
//! update, which executes once, before anything else of the file goes out. So neither are appends doubled, nor do writes
//! come again over what others have written since. Only if its group has forgotten the session, or so much else was asked
//! of it that it need not remember, can nobody say any more what became of it: then a write at an offset is sent as a new
//! one (what others have written there meanwhile is lost, as if the write had come later), and appends count as lost.
//!
//! Small appends that end in blobs are not merged with what lies before them: where an append goes is decided when it
//! executes, and an update that replaced the file's tail would name the place where the tail was seen. Between the two
//! another append may have moved it, and there is no way to say "only if the tail is still this". Everything that is
//! buffered goes into one blob per flush instead.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use metadata::op::{Change, FsOp, WriteAt};
use metadata::outcome::OpError;
use metadata::types::{BLOB_BYTES_MAX, BlobId, BlobRange};

use super::facts::Facts;
use super::file::{Dirty, OpenFile, Unsettled};
use super::{Blobs, Fs, FsResult, blob_id, blob_range, told};
use crate::buffer::{Data, LOOSE, Segment, WriteBuffer};
use crate::errno::Errno;
use crate::error::Error;
use crate::volume::Update;

/// A segment of this length is a blob of its own; shorter ones share.
const ALONE_FROM: usize = 1 << 20;

/// Why a flush failed.
enum Failure {
    /// It may pass: the data stay.
    Kept(Errno),
    /// It will not: the data are dropped.
    Dropped(Errno),
    /// What the last command named is there or not: it will be asked for again. What comes behind it stays.
    Unsettled(Errno, Arc<Update>),
}

/// What was taken from a file's writers.
pub(super) struct Aside {
    buffer: Arc<WriteBuffer>,
    at: WriteAt,
    kill_privileges: bool,
}

/// What of it is not in the metadata yet.
struct Delivery {
    segments: Vec<Segment>,
    at: WriteAt,
    kill_privileges: bool,
    /// How many of the segments the last command names.
    sent: usize,
}

/// What became of one command.
enum Committed {
    Done,
    /// The bytes do not fit inline.
    NotInline,
    /// A blob was collected before the command arrived: a repeated one may come late.
    BlobGone(BlobId),
}

impl Fs {
    /// Brings everything that was written to a file into the metadata, durably. Tells failures, also earlier ones that
    /// nobody has been told of. For fsync and close; others use [`Fs::bring_home`].
    pub async fn flush(self: &Arc<Self>, file: &Arc<OpenFile>) -> FsResult<()> {
        let brought = self.bring_home(file).await;
        let lost = self.with_dirty(file, |dirty| dirty.lost.take());
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
            self.with_dirty(file, |dirty| dirty.since = dirty.is_dirty().then(Instant::now));
        }
    }

    /// True if what was written has waited for `after`.
    pub(super) fn is_due(&self, file: &OpenFile, after: Duration) -> bool {
        self.with_dirty(file, |dirty| {
            !dirty.is_flushing() && dirty.is_dirty() && dirty.since.is_some_and(|since| since.elapsed() >= after)
        })
    }

    /// Looks at or changes what was written. Blobs that are overwritten on the way, perhaps before they were in a bucket,
    /// give their room back.
    pub(super) fn with_dirty<T>(&self, file: &OpenFile, change: impl FnOnce(&mut Dirty) -> T) -> T {
        let (result, overwritten) = file.with(&self.dirty_bytes, |dirty| {
            let result = change(dirty);
            (result, dirty.current.take_overwritten())
        });
        self.abandon(overwritten);
        result
    }

    /// The last handle of a file is closed. What could not be brought home is lost; its room is not.
    pub(super) fn close_file(&self, file: &OpenFile) {
        let blobs = self.with_dirty(file, Dirty::close);
        self.abandon(blobs);
    }

    /// Takes what was written away from the writers: readers see it still. To be given back under the same `work`, and
    /// after [`Fs::settle_earlier`].
    pub(super) fn set_aside(&self, file: &OpenFile) -> Option<Aside> {
        self.with_dirty(file, |dirty| {
            dirty.since = None;
            let kill_privileges = std::mem::take(&mut dirty.kill_privileges);
            if !dirty.appends.is_empty() {
                let appends = Bytes::from(std::mem::take(&mut dirty.appends));
                dirty.appending = Some(appends.clone());
                let buffer = Arc::new(WriteBuffer::from_segments([appended(appends)]));
                return Some(Aside { buffer, at: WriteAt::End, kill_privileges });
            }
            if dirty.current.is_empty() {
                return None;
            }
            let buffer = Arc::new(dirty.current.take());
            dirty.flushing = Some(buffer.clone());
            Some(Aside { buffer, at: WriteAt::Offsets, kill_privileges })
        })
    }

    /// Forgets what was set aside, or puts it back.
    pub(super) fn give_back(&self, file: &OpenFile, aside: Aside, forget: bool) {
        let delivery = Delivery::of(aside);
        if forget {
            self.abandon(blobs_of(&delivery.segments));
        }
        let result = if forget { Ok(()) } else { Err(Failure::Kept(Errno::EIO)) };
        let _ = self.conclude(file, delivery, result);
    }

    fn abandon(&self, dropped: Vec<BlobId>) {
        if let Some(blobs) = &self.blobs
            && !dropped.is_empty()
        {
            let ids: Vec<_> = dropped.into_iter().map(blob_id).collect();
            blobs.uploader.abandon(&ids);
        }
    }

    /// Flushes what is there at its start, and nothing that is written meanwhile: else a busy writer would keep it for ever.
    async fn flush_now(&self, file: &Arc<OpenFile>) -> FsResult<()> {
        let _work = file.work.lock().await;
        self.settle_earlier(file).await?;
        // Appends and other writes are never there together, so this is all.
        let Some(aside) = self.set_aside(file) else { return Ok(()) };
        let mut delivery = Delivery::of(aside);
        let result = self.deliver(file, &mut delivery).await;
        file.is_new.store(false, Ordering::Relaxed);
        // What was brought home or uploaded on the way stays so, should the flush fail.
        self.conclude(file, delivery, result)
    }

    /// Finds out what became of an earlier command that was not answered. Called under `work`, before anything else goes
    /// out. Fails only if nobody answers again.
    pub(super) async fn settle_earlier(&self, file: &OpenFile) -> FsResult<()> {
        let earlier = self.with_dirty(file, |dirty| {
            let segments = match (&dirty.appending, &dirty.flushing) {
                (Some(appends), _) => vec![appended(appends.clone())],
                (None, Some(flushing)) => flushing.segments().cloned().collect(),
                (None, None) => Vec::new(),
            };
            Some((dirty.unsettled.clone()?, segments))
        });
        let Some((earlier, segments)) = earlier else { return Ok(()) };
        let Unsettled { update, at, kill_privileges } = &*earlier;
        let result = match self.volume.settle(update).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error @ (OpError::Stale(_) | OpError::Moved { .. }))) => {
                // Nothing was done: it goes out again with the rest.
                let learned = Facts::new(self.timeouts.deadline).learn(&self.table, error).await;
                Err(Failure::Kept(learned.err().unwrap_or(Errno::EIO)))
            }
            Ok(Err(error)) => Err(Failure::Dropped(Errno::from(&error))),
            Err(error) => Err(failure(&error, update, *at)),
        };
        let unanswered = match &result {
            Err(Failure::Unsettled(errno, _)) => Err(*errno),
            Ok(()) | Err(Failure::Kept(_) | Failure::Dropped(_)) => Ok(()),
        };
        let delivery = Delivery { sent: segments.len(), segments, at: *at, kill_privileges: *kill_privileges };
        let _ = self.conclude(file, delivery, result);
        unanswered
    }

    /// Lets the writers know how a flush has ended, and gives them back what was not delivered.
    fn conclude(&self, file: &OpenFile, delivery: Delivery, result: Result<(), Failure>) -> FsResult<()> {
        let (dropped, result) = self.with_dirty(file, |dirty| conclude(dirty, delivery, result));
        self.abandon(dropped);
        result
    }

    /// Uploads and commits. What is delivered leaves `delivery`; the rest become references as far as it gets.
    async fn deliver(&self, file: &OpenFile, delivery: &mut Delivery) -> Result<(), Failure> {
        let mut facts = Facts::new(self.timeouts.deadline);
        if self.may_be_inline(file, delivery)
            && let Some(changes) = inline_changes(&delivery.segments)
        {
            delivery.sent = delivery.segments.len();
            if let Committed::Done = self.commit(file, changes, delivery, &mut facts).await? {
                return Ok(());
            }
            // Other bytes of the file are inline already: these become a blob.
        }
        self.upload(delivery).await?;
        while !delivery.segments.is_empty() {
            delivery.sent = delivery.segments.len().min(self.limits.changes_max.max(1));
            let changes = delivery.segments[..delivery.sent].iter().filter_map(blob_change).collect();
            match self.commit(file, changes, delivery, &mut facts).await? {
                Committed::Done => {}
                Committed::NotInline => return Err(Failure::Kept(Errno::EIO)),
                Committed::BlobGone(gone) => {
                    self.take_back(delivery, gone).await?;
                    self.upload(delivery).await?;
                    continue;
                }
            }
            delivery.segments.drain(..delivery.sent);
            delivery.kill_privileges = false;
        }
        Ok(())
    }

    /// Brings all bytes into the bucket.
    async fn upload(&self, delivery: &mut Delivery) -> Result<(), Failure> {
        let Some(blobs) = &self.blobs else { return Err(Failure::Dropped(Errno::EIO)) };
        let uploaded = async {
            self.pack(blobs, &mut delivery.segments).await?;
            let ids: Vec<_> = blobs_of(&delivery.segments).into_iter().map(blob_id).collect();
            blobs.uploader.retry(&ids);
            blobs.uploader.flush(&ids).await
        };
        self.note_bucket(uploaded.await).map_err(Failure::Kept)
    }

    /// Remembers whether the bucket takes blobs.
    pub(super) fn note_bucket<T>(&self, result: datastore::Result<T>) -> FsResult<T> {
        let result = result.map_err(|error| told(&Error::Data(error)));
        self.bucket_errno.store(result.as_ref().err().map_or(0, |errno| errno.0), Ordering::Relaxed);
        result
    }

    /// True if the bucket has not taken the last blobs.
    pub(super) fn is_bucket_failing(&self) -> bool {
        self.bucket_errno.load(Ordering::Relaxed) != 0
    }

    /// True if that was because it has no room.
    pub(super) fn is_bucket_full(&self) -> bool {
        let errno = Errno(self.bucket_errno.load(Ordering::Relaxed));
        matches!(errno, Errno::ENOSPC | Errno::EDQUOT)
    }

    /// Takes bytes back out of blobs that may not be referred to any more, to be uploaded under other names. They are in the
    /// cache, or in the bucket until they are deleted there; if they are nowhere, what was written is lost.
    async fn take_back(&self, delivery: &mut Delivery, gone: BlobId) -> Result<(), Failure> {
        for at in 0..delivery.segments.len() {
            let segment = &delivery.segments[at];
            let Data::Blob(range) = segment.data else { continue };
            if range.blob.writer != gone.writer || range.blob.sequence > gone.sequence {
                continue;
            }
            let bytes = match self.blob_bytes(&range, segment.len).await {
                Ok(bytes) => bytes,
                Err(Error::Data(error)) if error.class() == datastore::ErrorClass::Retry => {
                    return Err(Failure::Kept(told(&Error::Data(error))));
                }
                Err(error) => return Err(Failure::Dropped(told(&error))),
            };
            delivery.segments[at].data = Data::Frozen { chunk: LOOSE, start: 0, bytes };
        }
        Ok(())
    }

    fn may_be_inline(&self, file: &OpenFile, delivery: &Delivery) -> bool {
        let max = u64::from(self.limits.inline_bytes_max);
        let last = delivery.segments.last().map_or(0, |segment| segment.offset + segment.len);
        let known = self.volume.cache().attr_hint(self.table.home(file.ino), file.ino).map_or(0, |attr| attr.size);
        match delivery.at {
            WriteAt::Offsets => last.max(known) <= max,
            WriteAt::End => last + known <= max,
        }
    }

    /// One command.
    async fn commit(
        &self,
        file: &OpenFile,
        changes: Vec<Change>,
        delivery: &Delivery,
        facts: &mut Facts,
    ) -> Result<Committed, Failure> {
        loop {
            let update = Arc::new(Update::new(FsOp::Write {
                node: facts.at_home(self.node(file.ino)),
                at: delivery.at,
                changes: changes.clone(),
                size_min: 0,
                mtime: None,
                kill_privileges: delivery.kill_privileges,
            }));
            match self.volume.settle(&update).await {
                Ok(Ok(_)) => return Ok(Committed::Done),
                Ok(Err(error @ (OpError::Stale(_) | OpError::Moved { .. }))) => {
                    facts.learn(&self.table, error).await.map_err(Failure::Kept)?;
                    if std::mem::take(&mut facts.attr_refused)
                        && changes.iter().any(|change| matches!(change, Change::Inline { .. }))
                    {
                        return Ok(Committed::NotInline);
                    }
                    if let Some(gone) = facts.blob_gone.take() {
                        return Ok(Committed::BlobGone(gone));
                    }
                }
                Ok(Err(error)) => return Err(Failure::Dropped(Errno::from(&error))),
                Err(error) => return Err(failure(&error, &update, delivery.at)),
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
            if self.update(op, &mut facts).await?.is_some() || facts.blob_gone.is_some() {
                return Ok(facts);
            }
        }
    }
}

impl Delivery {
    fn of(aside: Aside) -> Delivery {
        let Aside { buffer, at, kill_privileges } = aside;
        Delivery { segments: buffer.segments().cloned().collect(), at, kill_privileges, sent: 0 }
    }
}

/// What an update without an answer means for the data that it named.
fn failure(error: &Error, update: &Arc<Update>, at: WriteAt) -> Failure {
    let errno = told(error);
    match error {
        _ if update.is_uncertain() => Failure::Unsettled(errno, update.clone()),
        // Perhaps executed, and nobody will ever know: a second append might be seen twice.
        Error::SessionLost { .. } | Error::Overtaken { .. } if at == WriteAt::End => Failure::Dropped(errno),
        _ => Failure::Kept(errno),
    }
}

/// Also returns the blobs that nothing refers to any more.
fn conclude(dirty: &mut Dirty, delivery: Delivery, result: Result<(), Failure>) -> (Vec<BlobId>, FsResult<()>) {
    let Delivery { mut segments, at, kill_privileges, sent } = delivery;
    dirty.unsettled = None;
    dirty.flushing = None;
    let appending = dirty.appending.take();
    let failure = match result {
        Ok(()) => return (Vec::new(), Ok(())),
        Err(failure) => failure,
    };
    let (Failure::Kept(errno) | Failure::Dropped(errno) | Failure::Unsettled(errno, _)) = &failure;
    let told = Err(*errno);
    if dirty.is_closed {
        return (blobs_of(&segments), told);
    }
    let mut dropped = Vec::new();
    match (failure, appending) {
        (Failure::Dropped(errno), _) => {
            dirty.lost.get_or_insert(errno);
            return (blobs_of(&segments), told);
        }
        (Failure::Kept(_), Some(older)) => {
            dropped = blobs_of(&segments);
            let newer = std::mem::take(&mut dirty.appends);
            dirty.appends = [&older[..], &newer].concat();
            dirty.kill_privileges |= kill_privileges;
        }
        (Failure::Kept(_), None) => {
            dirty.current.restore(WriteBuffer::from_segments(segments));
            dirty.kill_privileges |= kill_privileges;
        }
        (Failure::Unsettled(_, update), appending) => {
            dirty.unsettled = Some(Arc::new(Unsettled { update, at, kill_privileges }));
            dirty.appending = appending;
            if at == WriteAt::Offsets {
                dirty.current.restore(WriteBuffer::from_segments(segments.drain(sent..)));
                dirty.flushing = Some(Arc::new(WriteBuffer::from_segments(segments)));
            }
        }
    }
    dirty.since.get_or_insert_with(Instant::now);
    (dropped, told)
}

fn appended(bytes: Bytes) -> Segment {
    let len = bytes.len() as u64;
    Segment { offset: 0, len, data: Data::Frozen { chunk: LOOSE, start: 0, bytes } }
}

/// The blobs that segments refer to, each once.
fn blobs_of(segments: &[Segment]) -> Vec<BlobId> {
    let mut blobs: Vec<BlobId> = segments
        .iter()
        .filter_map(|segment| match &segment.data {
            Data::Blob(range) => Some(range.blob),
            Data::Memory(_) | Data::Frozen { .. } => None,
        })
        .collect();
    blobs.sort_unstable();
    blobs.dedup();
    blobs
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
