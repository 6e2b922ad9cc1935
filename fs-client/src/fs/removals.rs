//! Files whose last name this mount is removing, and those who open them meanwhile.
//!
//! Whether the mount holds a file open is said when its removal is asked for. Who opens it between then and the answer has
//! to wait for the answer: the file may be gone, and then was opened too late.

use std::collections::HashMap;
use std::sync::Arc;

use metadata::types::{InodeId, NodeRef};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::{Fs, FsResult};
use crate::errno::Errno;

/// Removals under way; as many as callers at most.
#[derive(Debug, Default)]
pub struct Removals {
    going: Mutex<HashMap<InodeId, Going>>,
}

#[derive(Debug)]
struct Going {
    count: usize,
    /// Closed when the last has ended.
    ended: watch::Sender<()>,
}

/// A removal under way; dropping it ends it.
#[derive(Debug)]
pub struct Removal {
    fs: Arc<Fs>,
    ino: InodeId,
    /// The mount has it open.
    pub keep_open: bool,
}

impl Drop for Removal {
    fn drop(&mut self) {
        let mut going = self.fs.removals.going.lock();
        if let Some(entry) = going.get_mut(&self.ino) {
            entry.count -= 1;
            if entry.count == 0 {
                going.remove(&self.ino);
            }
        }
    }
}

impl Fs {
    /// A name of the inode is about to be removed.
    pub(super) fn begin_removal(self: &Arc<Self>, ino: InodeId) -> Removal {
        {
            let mut going = self.removals.going.lock();
            going.entry(ino).or_insert_with(|| Going { count: 0, ended: watch::channel(()).0 }).count += 1;
        }
        // Afterwards: who opens it from now on sees that it is being removed, and who did so before is seen here.
        Removal { fs: self.clone(), ino, keep_open: self.table.is_open(ino) }
    }

    /// True if [`Fs::settle_open`] has to be called for a file that was just opened.
    pub fn is_being_removed(&self, ino: InodeId) -> bool {
        self.removals.going.lock().contains_key(&ino)
    }

    /// A file was opened while it was being removed: says, when that has ended, whether it is there still. If it is not,
    /// the handle is closed again.
    pub async fn settle_open(self: &Arc<Self>, node: NodeRef) -> FsResult<()> {
        let ended = self.removals.going.lock().get(&node.ino).map(|going| going.ended.subscribe());
        if let Some(mut ended) = ended {
            // Fails when it has ended.
            let _ = ended.changed().await;
        }
        match self.attr(node).await {
            Err(error @ (Errno::ESTALE | Errno::ENOENT)) => {
                self.close_handle(node.ino);
                Err(error)
            }
            // Whatever else is in the way will be told to who uses the handle.
            Ok(_) | Err(_) => Ok(()),
        }
    }
}
