//! Uploading in the background, within a bounded buffer.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::timeout;

use crate::{BlobId, BlobRef, BlobStore, Error, Result};

/// Limits of an [`Uploader`].
#[derive(Clone, Debug)]
pub struct UploaderConfig {
    /// Bytes of blobs that are not uploaded yet; a writer waits when it is full. Default 64 MiB.
    pub buffer_bytes_max: usize,
    /// Blobs on their way at once. Default 8.
    pub parallel_max: usize,
    /// How long a writer waits for room. Default 30 s.
    pub submit_deadline: Duration,
}

impl Default for UploaderConfig {
    fn default() -> UploaderConfig {
        UploaderConfig { buffer_bytes_max: 64 << 20, parallel_max: 8, submit_deadline: Duration::from_secs(30) }
    }
}

/// What an uploader holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UploaderStatus {
    /// Blobs waiting or on their way.
    pub pending: usize,
    /// Blobs that failed and wait for [`Uploader::retry`] or [`Uploader::abandon`].
    pub failed: usize,
    /// Bytes of both.
    pub bytes: usize,
}

/// Puts blobs in the background, several at a time, in any order. Keeps each until it is in the bucket or abandoned.
/// Cheap to clone.
#[derive(Clone)]
pub struct Uploader {
    shared: Arc<Shared>,
}

struct Shared {
    store: BlobStore,
    config: UploaderConfig,
    buffer: Arc<Semaphore>,
    parallel: Semaphore,
    uploads: Mutex<BTreeMap<BlobId, Upload>>,
}

/// One blob that is not in the bucket yet.
struct Upload {
    blob: BlobRef,
    data: Bytes,
    /// Watched by those who flush.
    state: watch::Sender<State>,
    /// Its part of the buffer.
    _room: OwnedSemaphorePermit,
}

#[derive(Clone, Debug)]
enum State {
    Going,
    Done,
    Failed(Error),
    Abandoned,
}

impl Uploader {
    /// An uploader into the local region's bucket of `store`.
    #[must_use]
    pub fn new(store: BlobStore, config: UploaderConfig) -> Uploader {
        // One blob must always fit.
        let buffer_bytes_max =
            config.buffer_bytes_max.max(store.shared.limits.blob_len_bytes_max as usize).min(u32::MAX as usize);
        let config = UploaderConfig { buffer_bytes_max, ..config };
        Uploader {
            shared: Arc::new(Shared {
                store,
                buffer: Arc::new(Semaphore::new(buffer_bytes_max)),
                parallel: Semaphore::new(config.parallel_max.clamp(1, Semaphore::MAX_PERMITS)),
                config,
                uploads: Mutex::new(BTreeMap::new()),
            }),
        }
    }

    /// Takes a blob and starts its upload. Returns its reference as soon as there is room in the buffer, long before it
    /// is uploaded: commit the reference only after [`Uploader::flush`]. A name must not be submitted twice.
    ///
    /// While the buffer is full, what failed in it is tried again; a bucket without room ends the waiting at once.
    pub async fn submit(&self, id: BlobId, data: Bytes) -> Result<BlobRef> {
        let shared = &self.shared;
        let blob = shared.store.describe(id, &data)?;
        let room = timeout(shared.config.submit_deadline, self.room(blob.len_bytes)).await.unwrap_or(Ok(None))?;
        let Some(room) = room else {
            let failed = self.status().failed;
            return Err(Error::BufferFull { bytes_max: shared.config.buffer_bytes_max, failed });
        };
        let (state, _) = watch::channel(State::Going);
        let upload = Upload { blob, data: data.clone(), state, _room: room };
        if shared.uploads.lock().insert(id, upload).is_some() {
            tracing::error!(blob = %id, "a blob's name was submitted twice");
        }
        self.start(blob, data);
        Ok(blob)
    }

    async fn room(&self, len_bytes: u32) -> Result<Option<OwnedSemaphorePermit>> {
        let buffer = Arc::clone(&self.shared.buffer);
        if let Ok(room) = Arc::clone(&buffer).try_acquire_many_owned(len_bytes) {
            return Ok(Some(room));
        }
        let ids: Vec<BlobId> = self.shared.uploads.lock().keys().copied().collect();
        self.retry(&ids);
        let room = buffer.acquire_many_owned(len_bytes);
        let full = async {
            match self.flush(&ids).await {
                Err(error @ Error::Full { .. }) => error,
                // Whoever else has failed does so after a while only: there may be room meanwhile.
                Ok(()) | Err(_) => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            room = room => Ok(room.ok()),
            error = full => Err(error),
        }
    }

    /// Waits until the blobs are in the bucket. Reports the first failure (in the order of `ids`) after all of them
    /// have ended. Blobs that are not known are those uploaded already.
    pub async fn flush(&self, ids: &[BlobId]) -> Result<()> {
        let watching: Vec<(BlobId, watch::Receiver<State>)> = {
            let uploads = self.shared.uploads.lock();
            ids.iter().filter_map(|id| Some((*id, uploads.get(id)?.state.subscribe()))).collect()
        };
        let mut first = Ok(());
        for (id, mut state) in watching {
            let ended = match state.wait_for(|state| !matches!(state, State::Going)).await {
                Ok(state) => state.clone(),
                // The sender goes with the upload, after its last state was seen.
                Err(_) => State::Abandoned,
            };
            let result = match ended {
                State::Going | State::Done => Ok(()),
                State::Failed(error) => Err(error),
                State::Abandoned => Err(Error::Abandoned { id }),
            };
            first = first.and(result);
        }
        first
    }

    /// Starts the failed ones among these blobs again.
    pub fn retry(&self, ids: &[BlobId]) {
        for id in ids {
            let again = {
                let uploads = self.shared.uploads.lock();
                uploads.get(id).filter(|upload| matches!(*upload.state.borrow(), State::Failed(_))).map(|upload| {
                    upload.state.send_replace(State::Going);
                    (upload.blob, upload.data.clone())
                })
            };
            if let Some((blob, data)) = again {
                self.start(blob, data);
            }
        }
    }

    /// Gives these blobs up: their room is free at once, and who waits for them gets [`Error::Abandoned`]. What was
    /// uploaded nevertheless is for the collector.
    pub fn abandon(&self, ids: &[BlobId]) {
        let mut uploads = self.shared.uploads.lock();
        for id in ids {
            if let Some(upload) = uploads.remove(id) {
                upload.state.send_replace(State::Abandoned);
            }
        }
    }

    /// The data of a blob that is not uploaded yet: writers read what they wrote.
    #[must_use]
    pub fn pending(&self, id: BlobId) -> Option<Bytes> {
        self.shared.uploads.lock().get(&id).map(|upload| upload.data.clone())
    }

    /// What it holds.
    #[must_use]
    pub fn status(&self) -> UploaderStatus {
        let uploads = self.shared.uploads.lock();
        let mut status = UploaderStatus::default();
        for upload in uploads.values() {
            status.bytes += upload.data.len();
            match *upload.state.borrow() {
                State::Failed(_) => status.failed += 1,
                State::Going | State::Done | State::Abandoned => status.pending += 1,
            }
        }
        status
    }

    fn start(&self, blob: BlobRef, data: Bytes) {
        let shared = Arc::clone(&self.shared);
        tokio::spawn(async move {
            let mut report = Report { shared: &shared, id: blob.id, result: None };
            if let Ok(_turn) = shared.parallel.acquire().await
                && report.wanted()
            {
                report.result = Some(shared.store.put_described(&blob, data).await);
            }
        });
    }
}

/// Tells those who wait how an upload ended, also when the runtime drops it.
struct Report<'a> {
    shared: &'a Shared,
    id: BlobId,
    result: Option<Result<()>>,
}

impl Report<'_> {
    /// Nobody has abandoned it while it waited for its turn.
    fn wanted(&self) -> bool {
        self.shared.uploads.lock().contains_key(&self.id)
    }
}

impl Drop for Report<'_> {
    fn drop(&mut self) {
        let result = self.result.take().unwrap_or(Err(Error::ShuttingDown { id: self.id }));
        let mut uploads = self.shared.uploads.lock();
        match result {
            Ok(()) => {
                if let Some(upload) = uploads.remove(&self.id) {
                    upload.state.send_replace(State::Done);
                }
            }
            Err(error) => {
                if let Some(upload) = uploads.get(&self.id) {
                    upload.state.send_replace(State::Failed(error));
                }
            }
        }
    }
}

impl fmt::Debug for Uploader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Uploader").field("status", &self.status()).finish_non_exhaustive()
    }
}

#[cfg(test)]
#[path = "uploader_tests.rs"]
mod tests;
