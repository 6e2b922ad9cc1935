//! One region's bucket: single attempts, no retries, no verification.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::{GetResult, ObjectStore, ObjectStoreExt, PutMode, PutOptions};
use tokio::time::timeout;

use crate::backoff::Backoff;
use crate::error::Cause;
use crate::{BlobId, BucketConfig, Error, ErrorClass, Result, connect};

/// Folder of the objects that [`Bucket::check`] writes.
const PROBE_FOLDER: &str = "probe";
/// How long each step of a check may take.
const CHECK_STEP_TIMEOUT: Duration = Duration::from_secs(10);
/// How often a step of a check is tried when the bucket has a passing fault.
const CHECK_ATTEMPTS_MAX: u32 = 3;
/// Longest explanation taken over from a bucket.
const REASON_LEN_MAX: usize = 300;

/// What S3 servers answer when it is not about the object but about the bucket or the way to it.
const MISCONFIGURED_CODES: [&str; 6] = [
    "NoSuchBucket",
    "InvalidBucketName",
    "PermanentRedirect",
    "AuthorizationHeaderMalformed",
    "IllegalLocationConstraintException",
    "MethodNotAllowed",
];

/// What servers answer when there is no room, beside the status 507.
const FULL_CODES: [&str; 2] = ["XMinioStorageFull", "InsufficientStorage"];
/// What they answer when a limit set by a person is reached.
const QUOTA_CODES: [&str; 3] = ["QuotaExceeded", "XMinioAdminBucketQuotaExceeded", "BucketQuotaExceeded"];

/// A folder or a bucket of an object store. Cheap to clone.
#[derive(Clone)]
pub struct Bucket {
    url: Arc<str>,
    store: Arc<dyn ObjectStore>,
    /// Look at the stored length after a put. Pointless for a folder, which was flushed by ourselves.
    verify_length: bool,
}

/// An object in a bucket, as [`crate::BlobStore::list`] finds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listed {
    /// A blob.
    Blob {
        /// Its name.
        id: BlobId,
        /// Its length in this bucket.
        len_bytes: u64,
        /// When it was put there.
        modified: SystemTime,
    },
    /// Something in the blobs' folder that is no blob.
    Foreign {
        /// Where it is.
        path: String,
    },
}

impl Bucket {
    /// The bucket of a configuration, after checking that it can be used (see [`Bucket::check`]).
    pub async fn open(config: &BucketConfig) -> Result<Bucket> {
        let bucket = Bucket::configure(config)?;
        bucket.check().await?;
        Ok(bucket)
    }

    /// The bucket of a configuration, without asking it anything: for buckets of other regions, which may be out of
    /// reach at the moment. A folder must exist (or `create` be set).
    pub fn configure(config: &BucketConfig) -> Result<Bucket> {
        connect::connect(config)
    }

    pub(crate) fn from_store(url: &str, store: Arc<dyn ObjectStore>, verify_length: bool) -> Bucket {
        Bucket { url: url.into(), store, verify_length }
    }

    /// The same bucket with another store in front of its own.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn behind(&self, front: impl FnOnce(Arc<dyn ObjectStore>) -> Arc<dyn ObjectStore>) -> Bucket {
        Bucket { store: front(Arc::clone(&self.store)), ..self.clone() }
    }

    /// The bucket as configured; holds no secrets.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Writes, reads back and deletes a small object. The error names the bucket, the step and what to do.
    pub async fn check(&self) -> Result<()> {
        let id: u128 = rand::random();
        let path = Path::from(format!("{PROBE_FOLDER}/{id:032x}"));
        let content = Bytes::from(format!("GlobalFS looked whether it can use this bucket ({id:032x}).\n"));
        self.check_step("write to it", async || self.put_over(&path, content.clone()).await).await?;
        let read = self
            .check_step("read from it", async || {
                let read = self.read(&path, content.len() as u64, CHECK_STEP_TIMEOUT).await?;
                if read == content {
                    Ok(())
                } else {
                    Err(Failure::corrupt("it returned other bytes than were written"))
                }
            })
            .await;
        let deleted = self.check_step("delete from it", async || self.delete_one(&path).await).await;
        read.and(deleted)
    }

    async fn check_step(
        &self,
        step: &'static str,
        mut attempt: impl AsyncFnMut() -> Result<(), Failure>,
    ) -> Result<()> {
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(1));
        let mut attempts = 1;
        loop {
            let failure = match timeout(CHECK_STEP_TIMEOUT, attempt()).await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(failure)) => failure,
                Err(_) => Failure::slow(CHECK_STEP_TIMEOUT),
            };
            if failure.kind != FailureKind::Transient || attempts == CHECK_ATTEMPTS_MAX {
                let advice = failure.advice(&self.url);
                let class = failure.kind.class();
                return Err(Error::Unusable { url: self.url.to_string(), step, reason: failure.reason, advice, class });
            }
            attempts += 1;
            tokio::time::sleep(backoff.next_pause()).await;
        }
    }

    /// Puts an object that must not exist yet ([`FailureKind::Exists`]); it is durable when this returns.
    pub(crate) async fn put_new(&self, path: &Path, data: Bytes) -> Result<(), Failure> {
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        let put = self.store.put_opts(path, data.clone().into(), options).await;
        match put {
            // A store without conditional puts: look first. Two writers never share a name, so nobody comes between.
            Err(object_store::Error::NotImplemented { .. } | object_store::Error::NotSupported { .. }) => {
                match self.store.head(path).await {
                    Ok(_) => Err(Failure::new(FailureKind::Exists, "exists already")),
                    Err(object_store::Error::NotFound { .. }) => self.put_over(path, data).await,
                    Err(error) => Err(Failure::from(error)),
                }
            }
            Err(error) => Err(Failure::from(error)),
            Ok(_) => Ok(()),
        }
    }

    /// Puts an object over whatever is there.
    pub(crate) async fn put_over(&self, path: &Path, data: Bytes) -> Result<(), Failure> {
        self.store.put(path, data.into()).await?;
        Ok(())
    }

    /// Whether the length of the object just put is right, where that is worth a request.
    pub(crate) async fn verify_put(&self, path: &Path, len_bytes: u64) -> Result<(), Failure> {
        if !self.verify_length {
            return Ok(());
        }
        let stored = self.store.head(path).await?.size;
        if stored == len_bytes {
            return Ok(());
        }
        Err(Failure::corrupt(format!("it stored {stored} bytes of {len_bytes}")))
    }

    /// The whole object, which must be `len_bytes` long. Never holds more than that; fails when nothing arrives for
    /// `stall_timeout`.
    pub(crate) async fn read(&self, path: &Path, len_bytes: u64, stall_timeout: Duration) -> Result<Bytes, Failure> {
        let stalled = |_| Failure::slow(stall_timeout);
        let found: GetResult = timeout(stall_timeout, self.store.get(path)).await.map_err(stalled)??;
        if found.meta.size != len_bytes {
            return Err(Failure::corrupt(format!("it holds {} bytes instead of {len_bytes}", found.meta.size)));
        }
        let mut stream = found.into_stream();
        let mut whole = BytesMut::new();
        while let Some(piece) = timeout(stall_timeout, stream.next()).await.map_err(stalled)? {
            let piece = piece?;
            if whole.len() as u64 + piece.len() as u64 > len_bytes {
                return Err(Failure::corrupt(format!("it returned more than {len_bytes} bytes")));
            }
            if piece.len() as u64 == len_bytes {
                return Ok(piece);
            }
            if whole.capacity() == 0 {
                whole.reserve(usize::try_from(len_bytes).unwrap_or(0));
            }
            whole.extend_from_slice(&piece);
        }
        if whole.len() as u64 != len_bytes {
            return Err(Failure::corrupt(format!("it returned {} bytes of {len_bytes}", whole.len())));
        }
        Ok(whole.freeze())
    }

    /// Deletes one object; one that is not there is fine.
    pub(crate) async fn delete_one(&self, path: &Path) -> Result<(), Failure> {
        match self.store.delete(path).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(Failure::from(error)),
        }
    }

    /// Deletes many objects in as few requests as the store allows. `Ok` when none of them exists any more.
    pub(crate) async fn delete_all(&self, paths: Vec<Path>) -> Result<(), Failure> {
        let mut stream = self.store.delete_stream(futures::stream::iter(paths.into_iter().map(Ok)).boxed());
        let mut first = None;
        while let Some(deleted) = stream.next().await {
            match deleted {
                Ok(_) | Err(object_store::Error::NotFound { .. }) => {}
                Err(error) => first = first.or(Some(error)),
            }
        }
        first.map_or(Ok(()), |error| Err(Failure::from(error)))
    }

    /// The objects below `blobs/`, or below one shard of it.
    pub(crate) fn list(&self, shard: Option<u8>) -> BoxStream<'static, Result<Listed, Failure>> {
        let prefix = match shard {
            None => Path::from(BlobId::FOLDER),
            Some(shard) => Path::from(format!("{}/{shard:02x}", BlobId::FOLDER)),
        };
        self.store
            .list(Some(&prefix))
            .map(|found| {
                let meta = found?;
                Ok(match BlobId::from_object_path(meta.location.as_ref()) {
                    Ok(id) => Listed::Blob { id, len_bytes: meta.size, modified: meta.last_modified.into() },
                    Err(_) => Listed::Foreign { path: meta.location.to_string() },
                })
            })
            .boxed()
    }
}

impl fmt::Debug for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bucket").field("url", &self.url).finish_non_exhaustive()
    }
}

/// What kind of answer a bucket gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FailureKind {
    /// No answer, or an error of the bucket's own: may pass.
    Transient,
    /// As [`FailureKind::Transient`], and the link to the bucket is known to be cut: asking cost nothing.
    Unreachable,
    /// The object is not there.
    Missing,
    /// We may not.
    Denied,
    /// The bucket itself is not there, or is named, located or addressed wrongly.
    Misconfigured,
    /// What it has or returned is not what was asked for.
    Corrupt,
    /// An object of that name is there already.
    Exists,
    /// It has no room: it says so at once, and will again until somebody makes some.
    Full,
    /// As [`FailureKind::Full`], by a limit that somebody has set.
    OverQuota,
}

impl FailureKind {
    pub(crate) fn class(self) -> ErrorClass {
        match self {
            FailureKind::Transient | FailureKind::Unreachable | FailureKind::Full | FailureKind::OverQuota => {
                ErrorClass::Retry
            }
            FailureKind::Missing => ErrorClass::Missing,
            FailureKind::Denied | FailureKind::Misconfigured => ErrorClass::Caller,
            FailureKind::Corrupt | FailureKind::Exists => ErrorClass::Corrupt,
        }
    }
}

/// One attempt failed.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) kind: FailureKind,
    /// In words, without secrets.
    pub(crate) reason: String,
    /// It was a timeout.
    pub(crate) slow: bool,
    /// It had so little time that this says nothing about the bucket.
    pub(crate) hurried: bool,
    pub(crate) cause: Option<Cause>,
}

impl Failure {
    pub(crate) fn new(kind: FailureKind, reason: impl Into<String>) -> Failure {
        Failure { kind, reason: reason.into(), slow: false, hurried: false, cause: None }
    }

    pub(crate) fn corrupt(reason: impl Into<String>) -> Failure {
        Failure::new(FailureKind::Corrupt, reason)
    }

    pub(crate) fn slow(waited: Duration) -> Failure {
        let reason = format!("no answer within {:.1} s", waited.as_secs_f64());
        Failure { slow: true, ..Failure::new(FailureKind::Transient, reason) }
    }

    /// What a person should do about it.
    fn advice(&self, url: &str) -> String {
        let folder = !url.contains("://") || url.starts_with("file:");
        let advice = match self.kind {
            FailureKind::Denied if folder => "give this user read and write permission on the folder",
            FailureKind::Denied => {
                "check the credentials (environment or `credentials_file`) and that they may read, write, list and \
                 delete there"
            }
            FailureKind::Missing | FailureKind::Misconfigured if folder => "create the folder",
            FailureKind::Missing | FailureKind::Misconfigured => {
                "create the bucket, or correct its name, `endpoint` or `region`"
            }
            FailureKind::Full => "make room",
            FailureKind::OverQuota => "make room, or raise the quota",
            FailureKind::Corrupt | FailureKind::Exists => {
                "this is no dependable object store, or something between here and it changes the data"
            }
            FailureKind::Transient | FailureKind::Unreachable if self.reason.contains("169.254.169.254") => {
                "no credentials were found and this machine has no cloud identity: set them in the environment (for S3 \
                 AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY) or name a `credentials_file`"
            }
            FailureKind::Transient | FailureKind::Unreachable if folder => "check the disk",
            FailureKind::Transient | FailureKind::Unreachable => {
                "check that the server runs, and `endpoint`, `region` and the network"
            }
        };
        advice.to_owned()
    }
}

impl From<object_store::Error> for Failure {
    fn from(error: object_store::Error) -> Failure {
        use object_store::Error as E;
        let text = error.to_string();
        let code = between(&text, "<Code>", "</Code>").unwrap_or_default();
        let kind = match &error {
            _ if MISCONFIGURED_CODES.contains(&code) => FailureKind::Misconfigured,
            E::NotFound { .. } => FailureKind::Missing,
            E::AlreadyExists { .. } | E::Precondition { .. } => FailureKind::Exists,
            _ if QUOTA_CODES.contains(&code) => FailureKind::OverQuota,
            E::PermissionDenied { .. } | E::Unauthenticated { .. } => FailureKind::Denied,
            _ if FULL_CODES.contains(&code) || text.contains("507 Insufficient Storage") => FailureKind::Full,
            _ => system_failure(&error),
        };
        Failure { cause: Some(Arc::new(error)), ..Failure::new(kind, explain(&text)) }
    }
}

/// What the system said to a folder, if it did.
fn system_failure(error: &(dyn std::error::Error + 'static)) -> FailureKind {
    use std::io::ErrorKind;
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref::<std::io::Error>() {
            return match io.kind() {
                ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => FailureKind::Denied,
                ErrorKind::StorageFull => FailureKind::Full,
                ErrorKind::QuotaExceeded => FailureKind::OverQuota,
                _ => FailureKind::Transient,
            };
        }
        cause = error.source();
    }
    FailureKind::Transient
}

/// A store's error in one short line: of an XML answer its code and message, URLs without their queries (signatures).
pub(crate) fn explain(text: &str) -> String {
    let line = match (between(text, "<Code>", "</Code>"), between(text, "<Message>", "</Message>")) {
        (Some(code), Some(message)) => format!("{code}: {message}"),
        (Some(code), None) => code.to_owned(),
        (None, _) => text.to_owned(),
    };
    let words: Vec<&str> = line.split_whitespace().map(without_query).collect();
    let mut line = words.join(" ");
    if let Some((end, _)) = line.char_indices().nth(REASON_LEN_MAX) {
        line.truncate(end);
        line.push('…');
    }
    line
}

fn between<'a>(text: &'a str, start: &str, end: &str) -> Option<&'a str> {
    let rest = &text[text.find(start)? + start.len()..];
    Some(&rest[..rest.find(end)?])
}

fn without_query(word: &str) -> &str {
    if word.contains("://") { word.split('?').next().unwrap_or(word) } else { word }
}
