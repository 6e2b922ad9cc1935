//! Learning all names of a small directory, so that names that are not there need not be asked for one by one.

use std::sync::Arc;
use std::time::Duration;

use metadata::read::ReadOp;
use metadata::types::NodeRef;

use super::Fs;
use crate::listings::ASKED_MAX;

/// It is no use to those who wait longer.
const PATIENCE: Duration = Duration::from_secs(5);

impl Fs {
    /// A name was looked for in a directory and not found: the next one may be answered here.
    pub(super) fn learn_names(self: &Arc<Self>, dir: NodeRef) {
        if self.volume.cache().miss(dir.home, dir.ino) {
            let fs = self.clone();
            tokio::spawn(async move { tokio::time::timeout(PATIENCE, fs.ask_names(dir)).await });
        }
    }

    async fn ask_names(&self, dir: NodeRef) {
        // The attributes say which version of the directory the names will be of.
        let Ok(attr) = self.attr(dir).await else { return };
        if attr.size <= ASKED_MAX {
            // One more than is kept: a page that is full does not say whether it is the last.
            let limit = u32::try_from(ASKED_MAX).unwrap_or(u32::MAX).saturating_add(1);
            // The cache takes it from the stream.
            let _ = self.volume.read(dir.home, ReadOp::ReadDir { dir: dir.ino, after: 0, limit, plus: false }).await;
        }
    }
}
