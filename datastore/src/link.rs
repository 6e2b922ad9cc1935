//! The distance between regions, when it is emulated on one machine.

use async_trait::async_trait;

use crate::Region;

/// Called once before each request to another region's bucket; sleeps for as long as the request and its answer would
/// travel, or refuses when the link is cut. Real deployments use [`Direct`].
#[async_trait]
pub trait Link: Send + Sync + 'static {
    /// A request from `from` to the bucket of `to` that moves about `bytes` of payload in either direction.
    async fn cross(&self, from: Region, to: Region, bytes: usize) -> Result<(), Unreachable>;
}

/// The link to another region is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{to} cannot be reached from {from}")]
pub struct Unreachable {
    /// Where the request came from.
    pub from: Region,
    /// Where it should have gone.
    pub to: Region,
}

/// No emulation: the network is as far as it is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Direct;

#[async_trait]
impl Link for Direct {
    async fn cross(&self, _from: Region, _to: Region, _bytes: usize) -> Result<(), Unreachable> {
        Ok(())
    }
}
