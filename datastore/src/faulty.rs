//! Buckets with faults, for tests: slow, failing, truncating, lying, flaky.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use parking_lot::Mutex;

use crate::Bucket;

/// What a bucket is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    /// Put an object.
    Put,
    /// Get an object, or its length.
    Get,
    /// Delete objects.
    Delete,
    /// List objects.
    List,
}

/// How it fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Refuses with an error of its own.
    Fail,
    /// Does it and then reports a failure.
    LoseAnswer,
    /// Says that we may not.
    Deny,
    /// Says that there is no room.
    Full,
    /// Says that there is no such object.
    Lose,
    /// Does it, late.
    Delay(Duration),
    /// Never answers.
    Hang,
    /// Stores or returns the first half as if it were all.
    Truncate,
    /// Returns the first half of a body of which it promised all.
    Cut,
    /// Returns the first half of a body and then nothing more.
    Stall,
    /// Stores or returns one byte wrong.
    Flip,
    /// Returns more than there is.
    Grow,
}

/// The faults of one bucket, to be changed while it is used.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    plan: Arc<Mutex<Plan>>,
}

#[derive(Debug, Default)]
struct Plan {
    always: BTreeMap<Operation, Fault>,
    next: BTreeMap<Operation, VecDeque<Option<Fault>>>,
    requests: BTreeMap<Operation, u64>,
}

impl Faults {
    /// From now on every such operation has this fault (or none).
    pub fn always(&self, operation: Operation, fault: Option<Fault>) {
        let mut plan = self.plan.lock();
        match fault {
            Some(fault) => plan.always.insert(operation, fault),
            None => plan.always.remove(&operation),
        };
    }

    /// From now on every operation has this fault (or none).
    pub fn always_all(&self, fault: Option<Fault>) {
        for operation in [Operation::Put, Operation::Get, Operation::Delete, Operation::List] {
            self.always(operation, fault);
        }
    }

    /// The next operations of this kind have these faults, one each.
    pub fn next(&self, operation: Operation, faults: impl IntoIterator<Item = Option<Fault>>) {
        self.plan.lock().next.entry(operation).or_default().extend(faults);
    }

    /// Forgets all faults.
    pub fn heal(&self) {
        let mut plan = self.plan.lock();
        plan.always.clear();
        plan.next.clear();
    }

    /// How many requests of this kind came.
    #[must_use]
    pub fn requests(&self, operation: Operation) -> u64 {
        self.plan.lock().requests.get(&operation).copied().unwrap_or(0)
    }

    fn draw(&self, operation: Operation) -> Option<Fault> {
        let mut plan = self.plan.lock();
        *plan.requests.entry(operation).or_default() += 1;
        match plan.next.get_mut(&operation).and_then(VecDeque::pop_front) {
            Some(planned) => planned,
            None => plan.always.get(&operation).copied(),
        }
    }
}

/// A bucket in memory with faults in front.
#[must_use]
pub fn memory_bucket(name: &str) -> (Bucket, Faults) {
    with_faults(&Bucket::from_store(&format!("memory://{name}"), Arc::new(InMemory::new()), true))
}

/// The same bucket with faults in front.
#[must_use]
pub fn with_faults(bucket: &Bucket) -> (Bucket, Faults) {
    let faults = Faults::default();
    let front = Front { faults: faults.clone() };
    (bucket.behind(|inner| Arc::new(FaultyStore { inner, front })), faults)
}

#[derive(Debug)]
struct FaultyStore {
    inner: Arc<dyn ObjectStore>,
    front: Front,
}

#[derive(Clone, Debug)]
struct Front {
    faults: Faults,
}

impl Front {
    /// Applies what happens before the operation; what is left happens to its data or its answer.
    async fn before(&self, operation: Operation) -> Result<Option<Fault>> {
        let fault = self.faults.draw(operation);
        match fault {
            Some(Fault::Fail) => Err(injected()),
            Some(Fault::Deny) => {
                Err(Error::PermissionDenied { path: "injected".to_owned(), source: "injected denial".into() })
            }
            Some(Fault::Full) => {
                let full = std::io::Error::from(std::io::ErrorKind::StorageFull);
                Err(Error::Generic { store: "faulty", source: full.into() })
            }
            Some(Fault::Lose) => Err(Error::NotFound { path: "injected".to_owned(), source: "injected loss".into() }),
            Some(Fault::Delay(delay)) => {
                tokio::time::sleep(delay).await;
                Ok(None)
            }
            Some(Fault::Hang) => std::future::pending().await,
            other => Ok(other),
        }
    }
}

fn injected() -> Error {
    Error::Generic { store: "faulty", source: "injected failure".into() }
}

/// The data as the fault changes them.
fn spoil(data: &Bytes, fault: Option<Fault>) -> Bytes {
    let mut data = BytesMut::from(&data[..]);
    match fault {
        Some(Fault::Truncate | Fault::Cut | Fault::Stall) => data.truncate(data.len() / 2),
        Some(Fault::Flip) => {
            let middle = data.len() / 2;
            if let Some(byte) = data.get_mut(middle) {
                *byte ^= 0x40;
            }
        }
        Some(Fault::Grow) => data.extend_from_slice(b"more than there is"),
        _ => {}
    }
    data.freeze()
}

#[async_trait]
impl ObjectStore for FaultyStore {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        let fault = self.front.before(Operation::Put).await?;
        let payload = match fault {
            Some(Fault::Truncate | Fault::Flip | Fault::Grow) => spoil(&payload.into(), fault).into(),
            _ => payload,
        };
        let result = self.inner.put_opts(location, payload, options).await?;
        if fault == Some(Fault::LoseAnswer) { Err(injected()) } else { Ok(result) }
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let fault = self.front.before(Operation::Get).await?;
        if fault.is_none() || options.head {
            return self.inner.get_opts(location, options).await;
        }
        if fault == Some(Fault::LoseAnswer) {
            return Err(injected());
        }
        let mut found = self.inner.get_opts(location, options).await?;
        let (mut meta, attributes, range) = (found.meta.clone(), found.attributes.clone(), found.range.clone());
        let extensions = std::mem::take(&mut found.extensions);
        let data = spoil(&found.bytes().await?, fault);
        if fault == Some(Fault::Truncate) {
            meta.size = data.len() as u64;
        }
        let pieces = futures::stream::iter([Ok(data)]);
        let body =
            if fault == Some(Fault::Stall) { pieces.chain(futures::stream::pending()).boxed() } else { pieces.boxed() };
        Ok(GetResult { payload: GetResultPayload::Stream(body), meta, range, attributes, extensions })
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let (inner, front) = (Arc::clone(&self.inner), self.front.clone());
        let result = async move {
            match front.before(Operation::Delete).await {
                Ok(None) => inner.delete_stream(locations),
                Ok(Some(_)) => {
                    // It deletes, and nobody hears of it.
                    let deleted = inner.delete_stream(locations);
                    deleted.map(|_| Err(injected())).boxed()
                }
                Err(error) => futures::stream::iter([Err(error)]).boxed(),
            }
        };
        futures::stream::once(result).flatten().boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (listed, front) = (self.inner.list(prefix), self.front.clone());
        let result = async move {
            match front.before(Operation::List).await {
                Ok(None) => listed,
                Ok(Some(_)) => listed.take(1).chain(futures::stream::iter([Err(injected())])).boxed(),
                Err(error) => futures::stream::iter([Err(error)]).boxed(),
            }
        };
        futures::stream::once(result).flatten().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

impl fmt::Display for FaultyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "faulty {}", self.inner)
    }
}
