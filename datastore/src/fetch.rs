//! Reading: what is at hand, and else one fetch for all who want a blob.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::{BoxFuture, Shared as SharedFuture};
use object_store::path::Path;
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::backoff::Backoff;
use crate::breaker::Admission;
use crate::bucket::{Failure, FailureKind};
use crate::store::{CORRUPT_ATTEMPTS_MAX, Place, Shared};
use crate::{BlobRef, Error, ErrorClass, Region, Result, Tried};

/// A fetch under way.
pub(crate) type Flight = SharedFuture<BoxFuture<'static, Result<Bytes>>>;
/// The fetches under way. As many as blobs are being waited for; the data are bounded by the fetch budget.
pub(crate) type Flights = Mutex<HashMap<BlobRef, Flight>>;

impl Shared {
    /// A range of a blob from the cache or from memory; may read the disk.
    pub(crate) async fn read_kept(&self, blob: &BlobRef, range: Range<u32>) -> Option<Bytes> {
        if let Some(data) = self.try_read_kept(blob, range.clone()) {
            return Some(data);
        }
        let cache = self.cache.as_ref().filter(|cache| cache.contains(blob))?.clone();
        let blob = *blob;
        // A runtime that shuts down has no threads for it any more; the fetch will say so.
        tokio::task::spawn_blocking(move || cache.read(&blob, range)).await.ok().flatten()
    }

    /// As [`Shared::read_kept`], without waiting for the disk.
    pub(crate) fn try_read_kept(&self, blob: &BlobRef, range: Range<u32>) -> Option<Bytes> {
        if let Some(data) = self.cache.as_ref().and_then(|cache| cache.try_read(blob, range.clone())) {
            return Some(data);
        }
        let whole = self.memory.lock().get(blob)?;
        Some(whole.slice(range.start as usize..range.end as usize))
    }

    pub(crate) fn is_kept(&self, blob: &BlobRef) -> bool {
        self.cache.as_ref().is_some_and(|cache| cache.contains(blob)) || self.memory.lock().get(blob).is_some()
    }

    /// Keeps a verified blob: on the disk, and if that is not possible in memory.
    pub(crate) async fn keep(&self, blob: &BlobRef, data: &Bytes) {
        if let Some(cache) = self.cache.clone() {
            let (blob, data) = (*blob, data.clone());
            match tokio::task::spawn_blocking(move || cache.insert(&blob, &data)).await {
                Ok(Ok(())) => return,
                Ok(Err(error)) => tracing::warn!(%blob, %error, "the cache did not take a blob"),
                Err(_) => return,
            }
        }
        self.memory.lock().insert(*blob, data.clone(), self.limits.memory_bytes_max);
    }

    /// The whole blob from the buckets. One fetch serves all who ask while it is under way; it goes on when they have
    /// gone, so that an interrupted reader does not take it from the others.
    pub(crate) fn fetch(self: &Arc<Shared>, blob: &BlobRef) -> Flight {
        let (sender, receiver) = oneshot::channel();
        let id = blob.id;
        let flight = {
            let mut flights = self.flights.lock();
            if let Some(flight) = flights.get(blob) {
                return flight.clone();
            }
            let landed = receiver.map(move |landed| landed.unwrap_or(Err(Error::ShuttingDown { id })));
            let flight = landed.boxed().shared();
            flights.insert(*blob, flight.clone());
            flight
        };
        // Not under the lock: a runtime that shuts down drops the task, and with it the landing, on the spot.
        let (shared, landing) = (Arc::clone(self), Landing { shared: Arc::clone(self), blob: *blob });
        tokio::spawn(async move {
            let landing = landing;
            let _ = sender.send(shared.fetch_budgeted(&landing.blob).await);
        });
        flight
    }

    async fn fetch_budgeted(&self, blob: &BlobRef) -> Result<Bytes> {
        // An earlier flight may have landed between the caller's look and this one's start.
        if let Some(data) = self.read_kept(blob, 0..blob.len_bytes).await {
            return Ok(data);
        }
        let deadline = Instant::now() + self.limits.deadline;
        let Ok(Ok(_budget)) = timeout_at(deadline, self.fetch_budget.acquire_many(blob.len_bytes)).await else {
            let tried = Arc::from(Vec::new());
            return Err(Error::Get { id: blob.id, tried, class: ErrorClass::Retry });
        };
        let data = self.fetch_verified(blob, deadline).await?;
        self.keep(blob, &data).await;
        Ok(data)
    }

    /// Asks the buckets in order, again and again while one of them may yet answer.
    async fn fetch_verified(&self, blob: &BlobRef, deadline: Instant) -> Result<Bytes> {
        let path = Path::from(blob.id.object_path());
        let mut sources = self.sources(blob.id.origin);
        let mut backoff = Backoff::new(self.limits.pause_first, self.limits.pause_max);
        loop {
            let mut asked = false;
            let mut wait_until: Option<Instant> = None;
            for source in sources.iter_mut().filter(|source| source.hopeful()) {
                let permit = match source.place.breaker.admit() {
                    Admission::Go(permit) => permit,
                    Admission::Wait(until) => {
                        source.paused();
                        wait_until = Some(wait_until.map_or(until, |earlier| earlier.min(until)));
                        continue;
                    }
                };
                asked = true;
                source.attempts += 1;
                let attempt = self.fetch_once(source.place, &path, blob);
                let len = blob.len_bytes as usize;
                match self.request_admitted(source.place, permit, deadline, len, attempt).await {
                    Ok(data) => return Ok(data),
                    Err(failure) => source.failed(blob, failure),
                }
            }
            let now = Instant::now();
            let next = match wait_until {
                Some(until) if !asked => until,
                _ => now + backoff.next_pause(),
            };
            if next >= deadline || !sources.iter().any(Source::hopeful) {
                return Err(get_error(blob, &sources));
            }
            sleep_until(next).await;
        }
    }

    async fn fetch_once(&self, place: &Place, path: &Path, blob: &BlobRef) -> Result<Bytes, Failure> {
        let data = place.bucket.read(path, u64::from(blob.len_bytes), self.limits.stall_timeout).await?;
        if blob.matches(&data) {
            return Ok(data);
        }
        let found = crc32c::crc32c(&data);
        let reason = format!("it returned bytes with checksum {found:08x} instead of {:08x}", blob.crc32c);
        Err(Failure::corrupt(reason))
    }

    /// All buckets: ours first, then the origin's, then the others.
    fn sources(&self, origin: Region) -> Vec<Source<'_>> {
        let first = [self.local, origin];
        let named = first.iter().enumerate().filter(|(at, region)| !first[..*at].contains(region)).map(|(_, r)| r);
        let others = self.places.keys().filter(|region| !first.contains(region));
        named.chain(others).filter_map(|region| self.places.get(region)).map(Source::new).collect()
    }
}

/// Takes a flight off the list when its task ends, however it ends.
struct Landing {
    shared: Arc<Shared>,
    blob: BlobRef,
}

impl Drop for Landing {
    fn drop(&mut self) {
        self.shared.flights.lock().remove(&self.blob);
    }
}

/// One bucket in the course of a fetch.
struct Source<'a> {
    place: &'a Place,
    attempts: u32,
    corrupt: u32,
    last: Option<Failure>,
}

impl<'a> Source<'a> {
    fn new(place: &'a Place) -> Source<'a> {
        Source { place, attempts: 0, corrupt: 0, last: None }
    }

    /// Whether asking (again) may help.
    fn hopeful(&self) -> bool {
        match self.last.as_ref().map(|failure| failure.kind) {
            None | Some(FailureKind::Transient | FailureKind::Unreachable) => true,
            // No answer to a read, so no reason to give up.
            Some(FailureKind::Full | FailureKind::OverQuota) => true,
            Some(FailureKind::Corrupt) => self.corrupt < CORRUPT_ATTEMPTS_MAX,
            Some(FailureKind::Missing | FailureKind::Denied | FailureKind::Misconfigured | FailureKind::Exists) => {
                false
            }
        }
    }

    fn failed(&mut self, blob: &BlobRef, failure: Failure) {
        // Why it failed when it had time says more.
        if failure.hurried && self.last.is_some() {
            return;
        }
        if failure.kind == FailureKind::Corrupt {
            self.corrupt += 1;
            tracing::warn!(blob = %blob.id, bucket = self.place.bucket.url(), reason = failure.reason, "corrupt blob");
        }
        self.last = Some(failure);
    }

    /// It was not asked because it has failed too often of late.
    fn paused(&mut self) {
        if self.last.is_none() {
            let reason = format!("not asked, it has been failing: {}", self.place.last_reason());
            self.last = Some(Failure::new(FailureKind::Transient, reason));
        }
    }
}

fn get_error(blob: &BlobRef, sources: &[Source<'_>]) -> Error {
    let tried = sources.iter().map(|source| Tried {
        region: source.place.region,
        url: source.place.bucket.url().to_owned(),
        attempts: source.attempts,
        reason: match &source.last {
            Some(failure) if failure.kind == FailureKind::Missing => "it is not there".to_owned(),
            Some(failure) => failure.reason.clone(),
            None => "not asked before the deadline".to_owned(),
        },
    });
    let any = |kind| sources.iter().any(|source| source.last.as_ref().is_some_and(|failure| failure.kind == kind));
    // As long as one bucket may hold it, the blob is only out of reach.
    let class = if sources.iter().any(|source| source.last.is_none())
        || any(FailureKind::Transient)
        || any(FailureKind::Unreachable)
    {
        ErrorClass::Retry
    } else if any(FailureKind::Corrupt) {
        ErrorClass::Corrupt
    } else if any(FailureKind::Denied) || any(FailureKind::Misconfigured) {
        ErrorClass::Caller
    } else {
        ErrorClass::Missing
    };
    Error::Get { id: blob.id, tried: tried.collect(), class }
}
