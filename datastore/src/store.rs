//! The view over all regions' buckets: put, delete, list. Reading is in `fetch.rs`.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use object_store::path::Path;
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use crate::backoff::Backoff;
use crate::breaker::{Admission, Breaker};
use crate::bucket::{Failure, FailureKind};
use crate::fetch::Flights;
use crate::lru::Lru;
use crate::{BLOB_LEN_BYTES_MAX, BlobId, BlobRef, Bucket, Cache, Error, ErrorClass, Link, Listed, Region, Result};

/// How often data that is not what was expected is asked for again at one bucket: the line may have changed it.
pub(crate) const CORRUPT_ATTEMPTS_MAX: u32 = 2;
/// Deletions in one request.
const DELETE_BATCH: usize = 1000;
/// How often a deletion is tried; the collector comes back anyway.
const DELETE_ATTEMPTS_MAX: u32 = 3;

/// Limits of a [`BlobStore`]. Every wait ends by `deadline`.
#[derive(Clone, Debug)]
pub struct StoreLimits {
    /// Longest blob. Default 4 MiB.
    pub blob_len_bytes_max: u32,
    /// How long a put or a get goes on trying. Default 30 s.
    pub deadline: Duration,
    /// How long one request may take in all: with 4 MiB blobs, 10 s need 3.4 Mbit/s. Default 10 s.
    pub attempt_timeout: Duration,
    /// How long one request may take without any progress that can be seen. Default 5 s.
    pub stall_timeout: Duration,
    /// First pause after a failure; doubles. Default 50 ms.
    pub pause_first: Duration,
    /// Longest pause. Default 2 s.
    pub pause_max: Duration,
    /// Requests under way at one bucket; more wait. Default 32. Memory: none of its own.
    pub requests_max: usize,
    /// Bytes of blobs being fetched; more wait. Default 64 MiB. The main part of the store's memory.
    pub fetch_bytes_max: usize,
    /// Bytes of blobs kept in memory when the disk cache cannot take them. Default 16 MiB.
    pub memory_bytes_max: usize,
    /// Insert written blobs into the cache. Default yes.
    pub cache_writes: bool,
}

impl Default for StoreLimits {
    fn default() -> StoreLimits {
        StoreLimits {
            blob_len_bytes_max: BLOB_LEN_BYTES_MAX,
            deadline: Duration::from_secs(30),
            attempt_timeout: Duration::from_secs(10),
            stall_timeout: Duration::from_secs(5),
            pause_first: Duration::from_millis(50),
            pause_max: Duration::from_secs(2),
            requests_max: 32,
            fetch_bytes_max: 64 << 20,
            memory_bytes_max: 16 << 20,
            cache_writes: true,
        }
    }
}

/// How one bucket is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BucketStatus {
    /// Whose bucket.
    pub region: Region,
    /// The bucket.
    pub url: String,
    /// Failures since its last answer.
    pub failures: u32,
    /// It is left alone for some seconds after failures in a row.
    pub paused: bool,
    /// Its last failure, even if it recovered.
    pub last_failure: Option<String>,
}

/// All regions' buckets and the local cache. Cheap to clone.
#[derive(Clone)]
pub struct BlobStore {
    pub(crate) shared: Arc<Shared>,
}

pub(crate) struct Shared {
    pub(crate) local: Region,
    pub(crate) places: BTreeMap<Region, Place>,
    pub(crate) cache: Option<Cache>,
    pub(crate) link: Arc<dyn Link>,
    pub(crate) limits: StoreLimits,
    pub(crate) flights: Flights,
    pub(crate) fetch_budget: Semaphore,
    pub(crate) memory: Mutex<Memory>,
}

/// A bucket with what is known of its health.
pub(crate) struct Place {
    pub(crate) region: Region,
    pub(crate) bucket: Bucket,
    pub(crate) breaker: Breaker,
    pub(crate) requests: Semaphore,
    last_failure: Mutex<Option<String>>,
}

/// Blobs that the disk cache could not take.
pub(crate) struct Memory {
    blobs: Lru<BlobRef, Bytes>,
    bytes: usize,
}

impl BlobStore {
    /// The store of a process in region `local`. Fails when that region has no bucket.
    pub fn new(
        local: Region,
        buckets: impl IntoIterator<Item = (Region, Bucket)>,
        cache: Option<Cache>,
        link: Arc<dyn Link>,
        limits: StoreLimits,
    ) -> Result<BlobStore> {
        let place = |(region, bucket)| {
            let requests = Semaphore::new(limits.requests_max.clamp(1, Semaphore::MAX_PERMITS));
            (region, Place { region, bucket, breaker: Breaker::new(), requests, last_failure: Mutex::new(None) })
        };
        let places: BTreeMap<Region, Place> = buckets.into_iter().map(place).collect();
        if !places.contains_key(&local) {
            return Err(Error::NoBucket { region: local });
        }
        // One blob must always fit, or it would wait for ever.
        let fetch_budget = limits.fetch_bytes_max.max(limits.blob_len_bytes_max as usize).min(u32::MAX as usize);
        Ok(BlobStore {
            shared: Arc::new(Shared {
                local,
                places,
                cache,
                link,
                limits,
                flights: Mutex::new(HashMap::new()),
                fetch_budget: Semaphore::new(fetch_budget),
                memory: Mutex::new(Memory { blobs: Lru::new(), bytes: 0 }),
            }),
        })
    }

    /// The region of this process.
    #[must_use]
    pub fn local(&self) -> Region {
        self.shared.local
    }

    /// Whether a region's bucket is known here.
    #[must_use]
    pub fn knows(&self, region: Region) -> bool {
        self.shared.places.contains_key(&region)
    }

    /// The local cache, if there is one.
    #[must_use]
    pub fn cache(&self) -> Option<&Cache> {
        self.shared.cache.as_ref()
    }

    /// How the buckets are doing, by region.
    #[must_use]
    pub fn status(&self) -> Vec<BucketStatus> {
        let status = |place: &Place| BucketStatus {
            region: place.region,
            url: place.bucket.url().to_owned(),
            failures: place.breaker.failures(),
            paused: place.breaker.is_closed_off(),
            last_failure: place.last_failure.lock().clone(),
        };
        self.shared.places.values().map(status).collect()
    }

    /// Puts a blob into the local region's bucket; it is durable when this returns its checksum. Putting the same blob
    /// again is fine, putting another one under a name that is taken is [`Error::Conflict`].
    pub async fn put(&self, id: BlobId, data: Bytes) -> Result<u32> {
        let blob = self.describe(id, &data)?;
        self.put_described(&blob, data).await?;
        Ok(blob.crc32c)
    }

    /// The reference of a blob that is yet to be put; fails when it is too long.
    pub fn describe(&self, id: BlobId, data: &[u8]) -> Result<BlobRef> {
        let len_bytes_max = self.shared.limits.blob_len_bytes_max;
        let too_long = || Error::TooLong { id, len_bytes: data.len() as u64, len_bytes_max };
        BlobRef::of(id, data).filter(|blob| blob.len_bytes <= len_bytes_max).ok_or_else(too_long)
    }

    pub(crate) async fn put_described(&self, blob: &BlobRef, data: Bytes) -> Result<()> {
        let shared = &self.shared;
        let cached = async {
            if shared.limits.cache_writes {
                shared.keep(blob, &data).await;
            }
        };
        let (put, ()) = tokio::join!(shared.put(blob, data.clone()), cached);
        put
    }

    /// A range of a blob. Returns data only if the whole blob has the length and checksum of `blob`.
    pub async fn get(&self, blob: &BlobRef, range: Range<u32>) -> Result<Bytes> {
        self.check_range(blob, &range)?;
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        if let Some(data) = self.shared.read_kept(blob, range.clone()).await {
            return Ok(data);
        }
        let whole = self.shared.fetch(blob).await?;
        Ok(whole.slice(range.start as usize..range.end as usize))
    }

    /// A range of a blob if it is at hand without waiting for disk or network. Never blocks: for threads that answer
    /// on the spot what they can.
    #[must_use]
    pub fn try_get(&self, blob: &BlobRef, range: Range<u32>) -> Option<Bytes> {
        self.check_range(blob, &range).ok()?;
        if range.is_empty() {
            return Some(Bytes::new());
        }
        self.shared.try_read_kept(blob, range)
    }

    /// As [`BlobStore::try_get`], into a buffer that is filled whole or not at all (its content is then undefined).
    #[must_use]
    pub fn try_get_into(&self, blob: &BlobRef, offset: u32, buffer: &mut [u8]) -> bool {
        match &self.shared.cache {
            Some(cache) => cache.try_read_into(blob, offset, buffer),
            None => false,
        }
    }

    /// Starts fetching a blob that will be needed soon, unless it is at hand, being fetched already, or the fetch
    /// budget is in use.
    pub fn prefetch(&self, blob: &BlobRef) {
        let fits = self.shared.fetch_budget.available_permits() >= blob.len_bytes as usize;
        if fits && self.check_range(blob, &(0..blob.len_bytes)).is_ok() && !self.shared.is_kept(blob) {
            drop(self.shared.fetch(blob));
        }
    }

    /// Deletes blobs everywhere: in all regions' buckets and in the cache. A blob that is not there is fine. Returns
    /// those that may still exist somewhere, with the first reason.
    pub async fn delete(&self, ids: &[BlobId]) -> Vec<(BlobId, Error)> {
        let mut failed = BTreeMap::new();
        if let Some(cache) = self.shared.cache.clone() {
            let ids = ids.to_vec();
            let removed = tokio::task::spawn_blocking(move || ids.into_iter().for_each(|id| cache.remove(id))).await;
            if removed.is_err() {
                tracing::debug!("the cache was not cleaned: the runtime is shutting down");
            }
        }
        for place in self.shared.places.values() {
            for batch in ids.chunks(DELETE_BATCH) {
                for (id, error) in self.shared.delete_batch(place, batch).await {
                    failed.entry(id).or_insert(error);
                }
            }
        }
        failed.into_iter().collect()
    }

    /// The blobs in one region's bucket, or those of one shard ([`BlobId::shard`]), in no particular order. Ends after
    /// the first error.
    pub fn list(&self, region: Region, shard: Option<u8>) -> BoxStream<'static, Result<Listed>> {
        let store = self.clone();
        let state = Listing::Begin;
        futures::stream::unfold(state, move |state| {
            let store = store.clone();
            async move { state.next(&store.shared, region, shard).await }
        })
        .boxed()
    }

    fn check_range(&self, blob: &BlobRef, range: &Range<u32>) -> Result<()> {
        let len_bytes_max = self.shared.limits.blob_len_bytes_max;
        if blob.len_bytes > len_bytes_max {
            return Err(Error::TooLong { id: blob.id, len_bytes: u64::from(blob.len_bytes), len_bytes_max });
        }
        if range.start > range.end || range.end > blob.len_bytes {
            let Range { start, end } = *range;
            return Err(Error::OutOfRange { id: blob.id, start, end, len_bytes: blob.len_bytes });
        }
        Ok(())
    }
}

impl Shared {
    async fn put(&self, blob: &BlobRef, data: Bytes) -> Result<()> {
        let place = self.places.get(&self.local).ok_or(Error::NoBucket { region: self.local })?;
        let started = Instant::now();
        let deadline = started + self.limits.deadline;
        let path = Path::from(blob.id.object_path());
        let mut backoff = Backoff::new(self.limits.pause_first, self.limits.pause_max);
        let mut state = PutState { overwrite: false, different: 0 };
        let (mut attempts, mut last) = (0, None);
        loop {
            let Some(attempt) =
                self.request(place, deadline, 0, self.put_once(place, &path, blob, &data, &mut state)).await
            else {
                let failure = Failure::new(FailureKind::Transient, place.last_reason());
                return Err(put_error(blob, place, attempts, started, failure));
            };
            attempts += 1;
            let failure = match attempt {
                Ok(()) => return Ok(()),
                // Why it failed when it had time says more.
                Err(failure) if failure.hurried => last.take().unwrap_or(failure),
                Err(failure) => failure,
            };
            let again = match failure.kind {
                FailureKind::Transient | FailureKind::Unreachable => true,
                FailureKind::Corrupt => attempts < CORRUPT_ATTEMPTS_MAX,
                FailureKind::Exists if state.different < CORRUPT_ATTEMPTS_MAX => true,
                FailureKind::Exists => {
                    return Err(Error::Conflict { id: blob.id, url: place.bucket.url().to_owned() });
                }
                FailureKind::Missing
                | FailureKind::Denied
                | FailureKind::Misconfigured
                | FailureKind::Full
                | FailureKind::OverQuota => false,
            };
            let next = Instant::now() + backoff.next_pause();
            if !again || next >= deadline {
                if state.overwrite {
                    // What it stored instead must not stand in the way of a later attempt.
                    let _ = timeout(self.limits.stall_timeout, place.bucket.delete_one(&path)).await;
                }
                return Err(put_error(blob, place, attempts, started, failure));
            }
            tracing::debug!(blob = %blob.id, bucket = place.bucket.url(), reason = failure.reason, "put again");
            last = Some(failure);
            sleep_until(next).await;
        }
    }

    async fn put_once(
        &self,
        place: &Place,
        path: &Path,
        blob: &BlobRef,
        data: &Bytes,
        state: &mut PutState,
    ) -> Result<(), Failure> {
        let len_bytes = u64::from(blob.len_bytes);
        let put = if state.overwrite {
            place.bucket.put_over(path, data.clone()).await
        } else {
            place.bucket.put_new(path, data.clone()).await
        };
        match put {
            Ok(()) => match place.bucket.verify_put(path, len_bytes).await {
                Err(failure) if failure.kind == FailureKind::Corrupt => {
                    // Nobody refers to it yet and the bucket took it from us: ours to correct.
                    state.overwrite = true;
                    Err(failure)
                }
                other => other,
            },
            // Our own earlier attempt, whose answer was lost, or another blob?
            Err(failure) if failure.kind == FailureKind::Exists => {
                match place.bucket.read(path, len_bytes, self.limits.stall_timeout).await {
                    Ok(existing) if blob.matches(&existing) => Ok(()),
                    Ok(_) => {
                        state.different += 1;
                        Err(failure)
                    }
                    Err(read) if read.kind == FailureKind::Corrupt => {
                        state.different += 1;
                        Err(failure)
                    }
                    Err(read) => Err(read),
                }
            }
            Err(failure) => Err(failure),
        }
    }

    /// One request to a bucket, when the bucket is to be asked: waits for its breaker, for a free slot and for the
    /// link. `None` when the deadline came first.
    async fn request<T>(
        &self,
        place: &Place,
        deadline: Instant,
        bytes: usize,
        attempt: impl Future<Output = Result<T, Failure>>,
    ) -> Option<Result<T, Failure>> {
        let permit = loop {
            match place.breaker.admit() {
                Admission::Go(permit) => break permit,
                Admission::Wait(until) if until >= deadline => return None,
                Admission::Wait(until) => sleep_until(until).await,
            }
        };
        Some(self.request_admitted(place, permit, deadline, bytes, attempt).await)
    }

    /// One request to a bucket that the breaker has admitted; tells the breaker how it went.
    pub(crate) async fn request_admitted<T>(
        &self,
        place: &Place,
        permit: crate::breaker::Permit<'_>,
        deadline: Instant,
        bytes: usize,
        attempt: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        let Ok(Ok(_slot)) = timeout_at(deadline, place.requests.acquire()).await else {
            return Err(Failure::new(FailureKind::Transient, "too many requests are waiting for it"));
        };
        let limit = deadline.min(Instant::now() + self.limits.attempt_timeout);
        let allowed = limit.saturating_duration_since(Instant::now());
        // What is left before the deadline may be next to nothing.
        let hurried = allowed < self.limits.attempt_timeout.min(self.limits.deadline) / 2;
        let result = timeout_at(limit, async {
            if place.region != self.local
                && let Err(cut) = self.link.cross(self.local, place.region, bytes).await
            {
                return Err(Failure::new(FailureKind::Unreachable, cut.to_string()));
            }
            attempt.await
        })
        .await
        .unwrap_or_else(|_| Err(Failure { hurried, ..Failure::slow(allowed) }));
        match &result {
            Ok(_) => permit.answered(),
            Err(failure) if failure.hurried => drop(permit),
            Err(failure) => {
                *place.last_failure.lock() = Some(failure.reason.clone());
                match failure.kind {
                    FailureKind::Transient => permit.failed(failure.slow),
                    // Asking again costs nothing, and a healed link is to be noticed at once.
                    FailureKind::Unreachable => drop(permit),
                    // One bad blob says nothing about the others.
                    FailureKind::Corrupt => drop(permit),
                    FailureKind::Missing
                    | FailureKind::Denied
                    | FailureKind::Misconfigured
                    | FailureKind::Exists
                    | FailureKind::Full
                    | FailureKind::OverQuota => permit.answered(),
                }
            }
        }
        result
    }

    /// Deletes a batch at once, or one by one when that does not work. Returns those that failed.
    async fn delete_batch(&self, place: &Place, ids: &[BlobId]) -> Vec<(BlobId, Error)> {
        let path = |id: &BlobId| Path::from(id.object_path());
        let deadline = Instant::now() + self.limits.deadline;
        let all = async || place.bucket.delete_all(ids.iter().map(path).collect()).await;
        let Err(failure) = self.try_to_delete(place, deadline, all).await else { return Vec::new() };
        if failure.kind == FailureKind::Unreachable || ids.len() == 1 {
            return ids.iter().map(|id| (*id, bucket_error(place, "delete", failure.clone()))).collect();
        }
        let mut failed = Vec::new();
        for id in ids {
            let one = async || place.bucket.delete_one(&path(id)).await;
            if let Err(failure) = self.try_to_delete(place, deadline, one).await {
                failed.push((*id, bucket_error(place, "delete", failure)));
            }
        }
        failed
    }

    async fn try_to_delete(
        &self,
        place: &Place,
        deadline: Instant,
        mut attempt: impl AsyncFnMut() -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let mut backoff = Backoff::new(self.limits.pause_first, self.limits.pause_max);
        let mut attempts = 1;
        loop {
            let Some(deleted) = self.request(place, deadline, 0, attempt()).await else {
                return Err(Failure::new(FailureKind::Transient, place.last_reason()));
            };
            match deleted {
                Err(failure) if failure.kind == FailureKind::Transient && attempts < DELETE_ATTEMPTS_MAX => {
                    attempts += 1;
                    tokio::time::sleep(backoff.next_pause()).await;
                }
                other => return other,
            }
        }
    }
}

struct PutState {
    /// The bucket stored something else than it was given: put over it.
    overwrite: bool,
    /// How often another object was read under the name.
    different: u32,
}

impl Place {
    pub(crate) fn last_reason(&self) -> String {
        self.last_failure.lock().clone().unwrap_or_else(|| "no answer before the deadline".to_owned())
    }
}

impl Memory {
    pub(crate) fn get(&mut self, blob: &BlobRef) -> Option<Bytes> {
        self.blobs.get(blob).map(|data| data.clone())
    }

    pub(crate) fn insert(&mut self, blob: BlobRef, data: Bytes, bytes_max: usize) {
        self.bytes += data.len();
        if let Some(twin) = self.blobs.insert(blob, data) {
            self.bytes -= twin.len();
        }
        while self.bytes > bytes_max
            && let Some((_, data)) = self.blobs.pop_oldest()
        {
            self.bytes -= data.len();
        }
    }
}

/// The state of [`BlobStore::list`].
enum Listing {
    Begin,
    Going(BoxStream<'static, Result<Listed, Failure>>),
    End,
}

impl Listing {
    async fn next(self, shared: &Shared, region: Region, shard: Option<u8>) -> Option<(Result<Listed>, Listing)> {
        let fail = |error| Some((Err(error), Listing::End));
        let Some(place) = shared.places.get(&region) else {
            return match self {
                Listing::End => None,
                _ => fail(Error::NoBucket { region }),
            };
        };
        let mut stream = match self {
            Listing::End => return None,
            Listing::Going(stream) => stream,
            Listing::Begin => {
                if region != shared.local
                    && let Err(cut) = shared.link.cross(shared.local, region, 0).await
                {
                    let failure = Failure::new(FailureKind::Unreachable, cut.to_string());
                    return fail(bucket_error(place, "list", failure));
                }
                place.bucket.list(shard)
            }
        };
        match timeout(shared.limits.attempt_timeout, stream.next()).await {
            Ok(None) => None,
            Ok(Some(Ok(listed))) => Some((Ok(listed), Listing::Going(stream))),
            Ok(Some(Err(failure))) => fail(bucket_error(place, "list", failure)),
            Err(_) => fail(bucket_error(place, "list", Failure::slow(shared.limits.attempt_timeout))),
        }
    }
}

fn put_error(blob: &BlobRef, place: &Place, attempts: u32, started: Instant, failure: Failure) -> Error {
    if let FailureKind::Full | FailureKind::OverQuota = failure.kind {
        let by_quota = failure.kind == FailureKind::OverQuota;
        return Error::Full { url: place.bucket.url().to_owned(), by_quota, reason: failure.reason };
    }
    // A bucket that is not there is a configuration to correct, not a missing blob.
    let class = if failure.kind == FailureKind::Missing { ErrorClass::Caller } else { failure.kind.class() };
    Error::Put {
        id: blob.id,
        url: place.bucket.url().to_owned(),
        attempts,
        elapsed_ms: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
        reason: failure.reason,
        class,
        source: failure.cause,
    }
}

fn bucket_error(place: &Place, step: &'static str, failure: Failure) -> Error {
    Error::Bucket {
        step,
        url: place.bucket.url().to_owned(),
        reason: failure.reason,
        class: failure.kind.class(),
        source: failure.cause,
    }
}

impl fmt::Debug for BlobStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlobStore").field("local", &self.shared.local).finish_non_exhaustive()
    }
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
