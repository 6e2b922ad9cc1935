//! Immutable blobs in regions' buckets: cache, upload, verification.
//!
//! The way of a blob: [`Uploader`] takes it from a writer, [`BlobStore`] puts it into the writer's region's [`Bucket`]
//! and into the local [`Cache`]; its [`BlobRef`] (name, length, checksum) goes into the metadata. A reader hands that
//! reference to [`BlobStore::get`], which tries the cache, its own region's bucket, the origin's bucket and then the
//! other regions', and believes no bucket: only bytes of the right length and checksum ever leave this crate.
//!
//! Nothing here starts a runtime. Every `async` function must be polled inside a tokio runtime with time (and I/O, for
//! buckets over the network) enabled.

mod backoff;
mod breaker;
mod bucket;
mod cache;
mod config;
mod connect;
mod error;
#[cfg(any(test, feature = "testing"))]
pub mod faulty;
mod fetch;
mod folder;
mod id;
mod link;
mod lru;
#[cfg(test)]
mod s3_tests;
mod store;
#[cfg(test)]
mod testing;
mod uploader;

pub use bucket::{Bucket, Listed};
pub use cache::{Cache, CacheConfig, CacheStatus};
pub use config::BucketConfig;
pub use error::{Error, ErrorClass, Result, Tried};
pub use id::{BlobId, BlobRef, InvalidBlobName, Region};
pub use link::{Direct, Link, Unreachable};
pub use store::{BlobStore, BucketStatus, StoreLimits};
pub use uploader::{Uploader, UploaderConfig, UploaderStatus};

/// Longest blob that is stored or fetched unless [`StoreLimits`] says otherwise: 4 MiB.
pub const BLOB_LEN_BYTES_MAX: u32 = 4 << 20;
