//! Telling the kernel that others have changed an open file.
//!
//! A notification may wait for a page that a request of ours holds, so it is sent from a thread of its own, never under
//! a lock, and nobody waits for it. Should it be late or lost, reads are right nevertheless: the kernel asks for the
//! attributes before each of them. It matters for mapped files.

use std::sync::Arc;

use crossbeam_channel::{Sender, TrySendError, bounded};
use fuser::{INodeNo, Notifier};
use metadata::types::InodeId;

use crate::fs::Fs;

/// Notifications that wait; further ones are dropped.
const WAITING_MAX: usize = 4096;

/// Where to send notifications.
#[derive(Clone, Debug)]
pub struct Invalidations {
    sender: Sender<InodeId>,
}

impl Invalidations {
    /// Starts the thread; it ends with the last sender.
    pub fn start(notifier: Notifier) -> std::io::Result<Invalidations> {
        let (sender, receiver) = bounded::<InodeId>(WAITING_MAX);
        std::thread::Builder::new().name("fuse-notify".into()).spawn(move || {
            for ino in receiver {
                // From the beginning to the end. That the kernel does not know the inode is no failure.
                if let Err(error) = notifier.inval_inode(INodeNo(ino.0), 0, 0) {
                    tracing::debug!(%ino, %error, "the kernel was not told of a change");
                }
            }
        })?;
        Ok(Invalidations { sender })
    }

    /// Tells of every open file that others change from now on.
    pub fn attach(self, fs: &Arc<Fs>) {
        let weak = Arc::downgrade(fs);
        fs.volume.cache().on_drop(Box::new(move |ino| {
            let Some(fs) = weak.upgrade() else { return };
            // What this mount itself is writing is in the kernel's pages already.
            if fs.table.file(ino).is_some_and(|file| !file.is_dirty()) {
                match self.sender.try_send(ino) {
                    Ok(()) | Err(TrySendError::Disconnected(_)) => {}
                    Err(TrySendError::Full(_)) => tracing::debug!(%ino, "too many notifications at once"),
                }
            }
        }));
    }
}
