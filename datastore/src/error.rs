//! What can go wrong, and what the caller should do about it.

use std::fmt;
use std::sync::Arc;

use crate::{BlobId, Region};

/// This crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The cause below an error; shared because one failed fetch answers all who waited for it.
pub(crate) type Cause = Arc<dyn std::error::Error + Send + Sync>;

/// What the caller should do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorClass {
    /// The environment failed, perhaps for a while: the same call may succeed later.
    Retry,
    /// The caller asked for something that can never work: wrong configuration, credentials, range or name.
    Caller,
    /// Every bucket was asked and none has the blob.
    Missing,
    /// Data was found, but none of it is what the metadata says.
    Corrupt,
}

/// An operation on blobs failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The configuration of a bucket makes no sense; found without asking the bucket.
    #[error("bucket {url}: {reason}")]
    Config {
        /// The bucket as configured, without secrets.
        url: String,
        /// What is wrong and what would be right.
        reason: String,
    },
    /// The bucket was asked and is not usable.
    #[error("bucket {url} is not usable: cannot {step}: {reason}; {advice}")]
    Unusable {
        /// The bucket as configured, without secrets.
        url: String,
        /// Which step of the check failed.
        step: &'static str,
        /// What the bucket said.
        reason: String,
        /// What to do about it.
        advice: String,
        /// Whether trying again later makes sense.
        class: ErrorClass,
    },
    /// No bucket is configured for a region that this call needs one of.
    #[error("no bucket is configured for {region}")]
    NoBucket {
        /// The region.
        region: Region,
    },
    /// The blob is longer than the limit.
    #[error("blob {id} is {len_bytes} bytes long, more than the limit of {len_bytes_max}")]
    TooLong {
        /// The blob.
        id: BlobId,
        /// Its length.
        len_bytes: u64,
        /// The longest allowed.
        len_bytes_max: u32,
    },
    /// The range is not inside the blob.
    #[error("bytes {start}..{end} are not inside blob {id} of {len_bytes} bytes")]
    OutOfRange {
        /// The blob.
        id: BlobId,
        /// First byte asked for.
        start: u32,
        /// One behind the last byte asked for.
        end: u32,
        /// The blob's length.
        len_bytes: u32,
    },
    /// Another blob with this name is in the bucket already. Blobs are immutable, it was left as it is.
    #[error("bucket {url} holds a different blob {id} already")]
    Conflict {
        /// The name.
        id: BlobId,
        /// The bucket.
        url: String,
    },
    /// The bucket did not take the blob.
    #[error("cannot put blob {id} into bucket {url} ({attempts} attempts in {elapsed_ms} ms): {reason}")]
    Put {
        /// The blob.
        id: BlobId,
        /// The bucket.
        url: String,
        /// How often it was tried.
        attempts: u32,
        /// For how long.
        elapsed_ms: u64,
        /// Why the last attempt failed.
        reason: String,
        /// Whether trying again later makes sense.
        class: ErrorClass,
        /// The last failure.
        #[source]
        source: Option<Cause>,
    },
    /// The bucket has no room for the blob. It is asked once: it answers so until somebody makes room.
    #[error("bucket {url} is full: {reason}")]
    Full {
        /// The bucket.
        url: String,
        /// By a limit that somebody has set.
        by_quota: bool,
        /// What it said.
        reason: String,
    },
    /// No bucket gave the blob.
    #[error("cannot read blob {id}: {}", TriedList(tried))]
    Get {
        /// The blob.
        id: BlobId,
        /// Where it was looked for, in order, and what was found there.
        tried: Arc<[Tried]>,
        /// Whether it is missing, corrupt or only out of reach.
        class: ErrorClass,
    },
    /// A bucket did not delete or list.
    #[error("cannot {step} in bucket {url}: {reason}")]
    Bucket {
        /// What was asked.
        step: &'static str,
        /// The bucket.
        url: String,
        /// What it said.
        reason: String,
        /// Whether trying again later makes sense.
        class: ErrorClass,
        /// The failure.
        #[source]
        source: Option<Cause>,
    },
    /// The cache's folder cannot be used.
    #[error("cache folder {folder}: cannot {step}: {source}")]
    Cache {
        /// The folder.
        folder: String,
        /// What was tried.
        step: &'static str,
        /// The system's error.
        #[source]
        source: Arc<std::io::Error>,
    },
    /// The upload buffer is full and did not become free before the deadline.
    #[error("the upload buffer of {bytes_max} bytes is full ({failed} blobs in it could not be uploaded)")]
    BufferFull {
        /// The buffer's size.
        bytes_max: usize,
        /// How many of the blobs in it failed and wait for a retry.
        failed: usize,
    },
    /// The blob was abandoned while someone waited for its upload.
    #[error("blob {id} was abandoned before it was uploaded")]
    Abandoned {
        /// The blob.
        id: BlobId,
    },
    /// The runtime is shutting down.
    #[error("blob {id}: the runtime is shutting down")]
    ShuttingDown {
        /// The blob.
        id: BlobId,
    },
}

impl Error {
    /// What the caller should do about it.
    #[must_use]
    pub fn class(&self) -> ErrorClass {
        match self {
            Error::Config { .. }
            | Error::NoBucket { .. }
            | Error::TooLong { .. }
            | Error::OutOfRange { .. }
            | Error::Abandoned { .. } => ErrorClass::Caller,
            Error::Conflict { .. } => ErrorClass::Corrupt,
            Error::Cache { .. } | Error::BufferFull { .. } | Error::Full { .. } | Error::ShuttingDown { .. } => {
                ErrorClass::Retry
            }
            Error::Unusable { class, .. }
            | Error::Put { class, .. }
            | Error::Get { class, .. }
            | Error::Bucket { class, .. } => *class,
        }
    }
}

/// One place where a blob was looked for in vain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tried {
    /// Whose bucket.
    pub region: Region,
    /// The bucket.
    pub url: String,
    /// How often it was asked.
    pub attempts: u32,
    /// What was found there the last time.
    pub reason: String,
}

struct TriedList<'a>(&'a [Tried]);

impl fmt::Display for TriedList<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("no bucket could be asked");
        }
        for (position, tried) in self.0.iter().enumerate() {
            let comma = if position == 0 { "" } else { "; " };
            write!(f, "{comma}{} ({}): {}", tried.url, tried.region, tried.reason)?;
            if tried.attempts > 1 {
                write!(f, " ({} attempts)", tried.attempts)?;
            }
        }
        Ok(())
    }
}
