//! A client behind a mount point.

use std::ffi::CString;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, UnmountFlags};
use tokio::runtime::Handle;

use crate::client::Client;
use crate::config::{MountConfig, MountOptions};
use crate::error::{Error, Result};
use crate::fs::Fs;
use crate::fuse::{self, Invalidations, REQUEST_BYTES_MAX, Served, Target};

const DEVICE: &str = "/dev/fuse";
/// The type that `mount` shows.
const FS_TYPE: &str = "fuse.globalfs";
/// After an orderly unmount the kernel lets go at once; after a lazy one when the last user is gone.
const LET_GO_PATIENCE: Duration = Duration::from_secs(2);

/// A mounted tree. Dropping it unmounts without waiting for anything; [`Mount::unmount`] is the orderly way.
#[derive(Debug)]
pub struct Mount {
    client: Client,
    face: Mounted,
}

/// The kernel's side of a mount.
#[derive(Debug)]
pub(crate) struct Mounted {
    mountpoint: PathBuf,
    served: Served,
    /// Mounted by the setuid helper, which must also undo it.
    by_helper: bool,
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
        let face = Mounted::start(client.fs().clone(), &config.options, mountpoint).await?;
        Ok(Mount { client, face })
    }

    /// The client behind it.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Waits until the kernel has let go of the mount: someone called `umount`, or [`Mount::unmount`] did.
    pub async fn wait(&self) -> Result<()> {
        self.face.wait().await;
        Ok(())
    }

    /// Flushes, unmounts (lazily if the mount is in use), closes the sessions; ends within the configured time.
    pub async fn unmount(self) -> Result<()> {
        // While the mount still answers: what is unmounted first flushes under the kernel's eyes.
        let flushed = self.client.flush().await;
        let unmounted = self.face.unmount().await;
        let closed = self.client.close().await;
        flushed.and(unmounted).and(closed)
    }
}

impl Mounted {
    /// Mounts and serves a file system.
    pub async fn start(fs: Arc<Fs>, options: &MountOptions, mountpoint: &Path) -> Result<Mounted> {
        let mountpoint = mountpoint.canonicalize().map_err(Error::kernel("finding the mount point"))?;
        let (options, path, runtime) = (options.clone(), mountpoint.clone(), Handle::current());
        let watched = fs.clone();
        // The kernel's handshake blocks.
        let served = tokio::task::spawn_blocking(move || {
            let target = mount(&path, &options)?;
            let by_helper = matches!(target, Target::Helper(_));
            let served = fuse::serve(fs, runtime, target, &options).map_err(|error| {
                if !by_helper {
                    let _ = rustix::mount::unmount(&path, UnmountFlags::DETACH);
                }
                Error::kernel("talking to the kernel")(error)
            })?;
            Ok::<_, Error>((served, by_helper))
        });
        let (served, by_helper) = served.await.map_err(|_| Error::Closing)??;
        Invalidations::start(served.notifier.clone())
            .map_err(Error::kernel("starting the thread that notifies the kernel"))?
            .attach(&watched);
        Ok(Mounted { mountpoint, served, by_helper })
    }

    /// Waits until the kernel has let go.
    pub async fn wait(&self) {
        let mut ended = self.served.ended.clone();
        let _ = ended.wait_for(|ended| *ended).await;
    }

    /// Unmounts, lazily if need be.
    pub async fn unmount(mut self) -> Result<()> {
        if *self.served.ended.borrow() {
            return Ok(());
        }
        if self.by_helper {
            let _ = self.served.unmounter.unmount();
        }
        let path = self.mountpoint.clone();
        let orderly = tokio::task::spawn_blocking(move || rustix::mount::unmount(&path, UnmountFlags::empty()));
        let done = matches!(tokio::time::timeout(LET_GO_PATIENCE, orderly).await, Ok(Ok(Ok(()))));
        if !done {
            self.detach();
        }
        let _ = tokio::time::timeout(LET_GO_PATIENCE, self.wait()).await;
        Ok(())
    }

    /// How often the kernel has asked that.
    #[cfg(test)]
    pub fn asked(&self, asked: fuse::Asked) -> u64 {
        self.served.counts.get(asked)
    }

    fn detach(&mut self) {
        if !*self.served.ended.borrow()
            && let Err(error) = rustix::mount::unmount(&self.mountpoint, UnmountFlags::DETACH)
        {
            tracing::debug!(%error, "not unmounted");
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        self.detach();
    }
}

/// Mounts as root; others need the helper.
fn mount(path: &Path, options: &MountOptions) -> Result<Target> {
    let device = match open_device() {
        Ok(device) => device,
        Err(rustix::io::Errno::ACCESS | rustix::io::Errno::PERM) => return Ok(Target::Helper(path.to_owned())),
        Err(error) => return Err(Error::kernel("opening /dev/fuse")(error.into())),
    };
    let mut data = format!(
        "fd={},rootmode=40000,user_id={},group_id={},default_permissions,max_read={REQUEST_BYTES_MAX}",
        device.as_raw_fd(),
        rustix::process::getuid().as_raw(),
        rustix::process::getgid().as_raw(),
    );
    if options.allow_other {
        data.push_str(",allow_other");
    }
    let mut flags = MountFlags::NOATIME;
    for (unless, flag) in [
        (options.dev, MountFlags::NODEV),
        (options.suid, MountFlags::NOSUID),
        (options.exec, MountFlags::NOEXEC),
        (!options.read_only, MountFlags::RDONLY),
    ] {
        if !unless {
            flags |= flag;
        }
    }
    let data = CString::new(data).map_err(|error| Error::Config(error.to_string()))?;
    match rustix::mount::mount(options.source.as_str(), path, FS_TYPE, flags, Some(data.as_c_str())) {
        Ok(()) => Ok(Target::Device(device)),
        Err(rustix::io::Errno::PERM) => Ok(Target::Helper(path.to_owned())),
        Err(error) => Err(Error::kernel("mounting")(error.into())),
    }
}

fn open_device() -> rustix::io::Result<OwnedFd> {
    rustix::fs::open(DEVICE, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
}

/// Refuses a mount point that does not exist, is not an empty directory, or has something mounted on it. A dead mount of
/// ours is cleared away first.
pub fn check_mountpoint(path: &Path) -> Result<()> {
    let fail = |why: String| Error::MountPoint { path: path.to_owned(), why };
    let failed = |error: std::io::Error| fail(error.to_string());
    let at = locate(path).map_err(failed)?;
    if let Some(mounted) = mounted_at(&at).map_err(failed)? {
        let is_dead = std::fs::metadata(&at).is_err_and(|error| error.raw_os_error() == Some(libc::ENOTCONN));
        if !(is_dead && mounted.is_ours()) {
            return Err(fail(format!("{} ({}) is mounted there already", mounted.source, mounted.fs_type)));
        }
        tracing::info!(path = %at.display(), "clearing away a dead mount");
        rustix::mount::unmount(&at, UnmountFlags::DETACH).map_err(|error| failed(error.into()))?;
        // There may be another one below it.
        return check_mountpoint(path);
    }
    let metadata = std::fs::metadata(&at).map_err(failed)?;
    if !metadata.is_dir() {
        return Err(fail("not a directory".into()));
    }
    if std::fs::read_dir(&at).map_err(failed)?.next().is_some() {
        return Err(fail("the directory is not empty".into()));
    }
    Ok(())
}

/// The absolute path without symlinks; of a dead mount, whose own directory cannot be looked at, by way of its parent.
fn locate(path: &Path) -> std::io::Result<PathBuf> {
    match path.canonicalize() {
        Err(error) if error.raw_os_error() == Some(libc::ENOTCONN) => {
            let absolute = std::path::absolute(path)?;
            match (absolute.parent(), absolute.file_name()) {
                (Some(parent), Some(name)) => Ok(parent.canonicalize()?.join(name)),
                _ => Err(error),
            }
        }
        other => other,
    }
}

#[derive(Debug, PartialEq, Eq)]
struct MountInfo {
    source: String,
    fs_type: String,
}

impl MountInfo {
    fn is_ours(&self) -> bool {
        // The helper of some systems leaves the subtype out.
        self.fs_type == FS_TYPE || (self.fs_type == "fuse" && self.source.starts_with("globalfs"))
    }
}

/// What is mounted at exactly this path, the topmost one.
fn mounted_at(path: &Path) -> std::io::Result<Option<MountInfo>> {
    Ok(find_mount(&std::fs::read_to_string("/proc/self/mountinfo")?, path))
}

fn find_mount(mountinfo: &str, path: &Path) -> Option<MountInfo> {
    let parse = |line: &str| {
        let (before, after) = line.split_once(" - ")?;
        let at = unescape(before.split(' ').nth(4)?);
        let mut after = after.split(' ');
        let fs_type = after.next()?.to_owned();
        (Path::new(&at) == path).then(|| MountInfo { source: after.next().map(unescape).unwrap_or_default(), fs_type })
    };
    mountinfo.lines().filter_map(parse).next_back()
}

/// Space, tab, newline and backslash stand as octal numbers in mountinfo.
fn unescape(field: &str) -> String {
    let mut plain = String::with_capacity(field.len());
    let mut rest = field;
    while let Some(at) = rest.find('\\') {
        plain.push_str(&rest[..at]);
        let code = rest.get(at + 1..at + 4).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        let (character, skip) = code.map_or(('\\', 1), |code| (char::from(code), 4));
        plain.push(character);
        rest = &rest[at + skip..];
    }
    plain + rest
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const MOUNTS: &str = "\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw
40 22 0:36 / /mnt/a\\040b rw,nosuid - fuse.globalfs globalfs rw,user_id=0
41 40 0:37 / /mnt/a\\040b rw - tmpfs none rw
42 22 0:38 / /mnt/c rw - fuse globalfs rw
";

    #[test]
    fn mount_is_found_by_its_exact_path_and_the_topmost_counts() {
        let found = find_mount(MOUNTS, Path::new("/mnt/a b")).unwrap();
        assert_eq!(found, MountInfo { source: "none".into(), fs_type: "tmpfs".into() });
        assert!(!found.is_ours());
        assert!(find_mount(MOUNTS, Path::new("/mnt/c")).unwrap().is_ours());
        assert_eq!(find_mount(MOUNTS, Path::new("/mnt")), None);
    }

    #[test]
    fn mountpoint_must_be_an_empty_directory() {
        let folder = tempfile::tempdir().unwrap();
        check_mountpoint(folder.path()).unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        let why = |path: &Path| check_mountpoint(path).unwrap_err().to_string();
        assert!(why(folder.path()).contains("not empty"));
        assert!(why(&file).contains("not a directory"));
        assert!(why(&folder.path().join("none")).contains("No such file"));
        assert!(why(Path::new("/proc")).contains("mounted there already"));
    }
}
