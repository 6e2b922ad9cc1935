//! The kernel's side: the only module that names fuser.
//!
//! What can be answered from memory is answered on the thread that took the request; everything else goes to tokio and
//! replies from there. What the kernel may keep and how it is taken back: `lent`. Pages of files are dropped when size or
//! time of change have changed: the kernel looks before each read, at what it was lent or by asking.

mod answers;
mod calls;
mod convert;
mod counts;
mod device;
mod lent;
mod notify;
mod opening;
mod places;

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use fuser::{FileHandle, InitFlags, KernelConfig, MountOption, Session, SessionACL};
use metadata::types::InodeId;
use parking_lot::Mutex;
use tokio::runtime::Handle;

use crate::config::{KernelCache, MountOptions};
use crate::errno::Errno;
use crate::fs::{Directory, Fs};

#[cfg(test)]
pub use counts::Asked;
use counts::Counts;
use device::Device;
use lent::KernelCaches;
pub use notify::Invalidations;
use places::Places;

/// Largest read or write in one request; the kernel's own limit unless raised by `fs.fuse.max_pages_limit`.
pub const REQUEST_BYTES_MAX: u32 = 1 << 20;

/// What the kernel talks to.
pub struct Face {
    fs: Arc<Fs>,
    runtime: Handle,
    places: Arc<Places>,
    caches: Arc<KernelCaches>,
    counts: Arc<Counts>,
    dirs: Mutex<HashMap<u64, Arc<Directory>>>,
    next_handle: AtomicU64,
}

/// A running session with the kernel.
#[derive(Debug)]
pub struct Served {
    /// True once the kernel has let go.
    pub ended: tokio::sync::watch::Receiver<bool>,
    /// Tells the kernel of changed files.
    pub notifier: fuser::Notifier,
    /// Undoes what the helper has mounted.
    pub unmounter: fuser::SessionUnmounter,
    /// What the kernel has asked.
    #[cfg(test)]
    pub counts: Arc<Counts>,
}

impl Face {
    fn new(fs: Arc<Fs>, runtime: Handle, kernel_cache: KernelCache) -> Face {
        // What the kernel answers by itself is never new enough for the one.
        let kernel_cache = if fs.is_linearizable() { KernelCache::Off } else { kernel_cache };
        Face {
            caches: KernelCaches::new(kernel_cache, fs.volume.cache().clone()),
            fs,
            runtime,
            places: Arc::default(),
            counts: Arc::default(),
            dirs: Mutex::default(),
            next_handle: AtomicU64::new(1),
        }
    }

    /// Nobody else's.
    fn next_handle(&self) -> FileHandle {
        FileHandle(self.next_handle.fetch_add(1, Ordering::Relaxed))
    }

    fn open_dir(&self, ino: InodeId) -> u64 {
        let FileHandle(handle) = self.next_handle();
        self.dirs.lock().insert(handle, Arc::new(Directory::new(ino)));
        handle
    }

    fn dir(&self, handle: u64) -> Option<Arc<Directory>> {
        self.dirs.lock().get(&handle).cloned()
    }
}

/// What is asked of the kernel at the start; what an old kernel lacks is done without.
fn configure(config: &mut KernelConfig) {
    let wanted = [
        // Attributes are fetched before each read, and pages dropped when they have changed.
        InitFlags::FUSE_AUTO_INVAL_DATA,
        InitFlags::FUSE_PARALLEL_DIROPS,
        InitFlags::FUSE_DO_READDIRPLUS,
        InitFlags::FUSE_READDIRPLUS_AUTO,
        InitFlags::FUSE_ASYNC_DIO,
        // Handles for appending go past the page cache; programs may map their files nevertheless.
        InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP,
        // Set-id bits are dropped here, atomically with the write; this also spares a getxattr before each write.
        InitFlags::FUSE_HANDLE_KILLPRIV_V2,
        InitFlags::FUSE_POSIX_LOCKS,
        InitFlags::FUSE_FLOCK_LOCKS,
    ];
    for flag in wanted {
        if config.add_capabilities(flag).is_err() {
            tracing::info!(?flag, "the kernel does not offer this");
        }
    }
    let _ = config.set_max_write(REQUEST_BYTES_MAX);
    let _ = config.set_max_background(64);
}

/// How the kernel is reached.
#[derive(Debug)]
pub enum Target {
    /// An opened device that is mounted already.
    Device(OwnedFd),
    /// Not mounted yet: the setuid helper `fusermount3` does it.
    Helper(PathBuf),
}

/// Serves the kernel until it lets go.
pub fn serve(fs: Arc<Fs>, runtime: Handle, target: Target, options: &MountOptions) -> std::io::Result<Served> {
    let mut config = fuser::Config::default();
    config.acl = if options.allow_other { SessionACL::All } else { SessionACL::Owner };
    config.n_threads = Some(options.threads.max(1));
    config.clone_fd = true;
    let face = Face::new(fs, runtime, options.kernel_cache);
    let (caches, counts) = (face.caches.clone(), face.counts.clone());
    let mut session = match target {
        Target::Device(device) => Session::from_fd(face, device, config.acl, config)?,
        Target::Helper(mountpoint) => {
            config.mount_options = helper_options(options);
            Session::new(face, mountpoint, &config)?
        }
    };
    let notifier = session.notifier();
    let unmounter = session.unmount_callable();
    caches.start(Device::of(&session)?)?;
    let (over, ended) = tokio::sync::watch::channel(false);
    #[cfg(test)]
    let counted = counts.clone();
    std::thread::Builder::new().name("fuse".into()).spawn(move || {
        if let Err(error) = session.run() {
            tracing::warn!(%error, "the session with the kernel has failed");
        }
        caches.stop();
        tracing::info!(requests = %counts, "the kernel has let go");
        over.send_replace(true);
    })?;
    Ok(Served {
        ended,
        notifier,
        unmounter,
        #[cfg(test)]
        counts: counted,
    })
}

fn helper_options(options: &MountOptions) -> Vec<MountOption> {
    let either = |yes, on, off| if yes { on } else { off };
    vec![
        MountOption::FSName(options.source.clone()),
        MountOption::Subtype("globalfs".into()),
        MountOption::DefaultPermissions,
        either(options.read_only, MountOption::RO, MountOption::RW),
        either(options.exec, MountOption::Exec, MountOption::NoExec),
    ]
}

fn errno(errno: Errno) -> fuser::Errno {
    fuser::Errno::from_i32(errno.0)
}

#[cfg(test)]
mod tests;
