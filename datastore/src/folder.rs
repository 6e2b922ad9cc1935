//! A folder as a bucket whose puts are durable when they return.
//!
//! The library's local store can flush too, but a crash of it leaves half-written files beside the objects, and of two
//! writers that need the same new sub-folder the second does not wait until its creation is on disk. Reading, listing
//! and deleting are the library's.
//!
//! A put writes `tmp/<unique>`, flushes it, renames it to its place (never over another object, unless asked), and
//! flushes the folder. A temporary file is locked by its writer for as long as it lives, so whoever opens the bucket
//! next can tell and remove what a crash has left.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use futures::stream::BoxStream;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMode,
    PutMultipartOptions, PutOptions, PutPayload, PutResult,
};
use parking_lot::Mutex;
use rustix::fs::{AtFlags, CWD, FlockOperation, RenameFlags, flock, linkat, renameat_with};

const STORE: &str = "folder";
/// Where files are written before they get their names.
const TEMPORARY: &str = "tmp";
/// How often a put starts again when somebody removes folders between its steps.
const PUT_ATTEMPTS_MAX: u32 = 3;
/// Sub-folders remembered as durable; blobs need 256.
const DURABLE_FOLDERS_MAX: usize = 1024;

/// See the module.
#[derive(Debug)]
pub(crate) struct FolderStore {
    local: LocalFileSystem,
    folder: Arc<Folder>,
}

#[derive(Debug)]
struct Folder {
    root: PathBuf,
    /// The folder itself, to notice when its disk is not mounted any more.
    identity: (u64, u64),
    /// Sub-folders whose own entries this process has flushed.
    durable: Mutex<BTreeSet<PathBuf>>,
}

impl FolderStore {
    /// The bucket in an existing folder. Removes what crashed writers have left.
    pub(crate) fn open(root: &FilePath) -> io::Result<FolderStore> {
        let root = root.canonicalize()?;
        let local = LocalFileSystem::new_with_prefix(&root).map_err(io::Error::other)?;
        let identity = identity(&root)?;
        let folder = Folder { root, identity, durable: Mutex::new(BTreeSet::new()) };
        folder.remove_leftovers();
        Ok(FolderStore { local, folder: Arc::new(folder) })
    }
}

impl Folder {
    fn put(&self, target: &FilePath, payload: &PutPayload, overwrite: bool) -> io::Result<()> {
        let parent = target.parent().unwrap_or(&self.root);
        let mut attempts = 1;
        loop {
            self.ensure_present()?;
            match self.put_once(parent, target, payload, overwrite) {
                // A sub-folder was removed by someone who tidied up.
                Err(error) if error.kind() == ErrorKind::NotFound && attempts < PUT_ATTEMPTS_MAX => {
                    self.durable.lock().clear();
                    attempts += 1;
                }
                other => return other,
            }
        }
    }

    fn put_once(&self, parent: &FilePath, target: &FilePath, payload: &PutPayload, overwrite: bool) -> io::Result<()> {
        self.make_durable_folder(parent)?;
        let temporary = Temporary::create(&self.root.join(TEMPORARY))?;
        for piece in payload.iter() {
            (&temporary.file).write_all(piece)?;
        }
        temporary.file.sync_data()?;
        let renamed = if overwrite { std::fs::rename(&temporary.path, target) } else { temporary.rename_new(target) };
        match renamed {
            Ok(()) => flush_folder(parent),
            Err(error) => {
                if error.kind() == ErrorKind::AlreadyExists {
                    // Whoever put it may not have come to this yet, and our caller will count on it.
                    flush_folder(parent)?;
                }
                Err(error)
            }
        }
    }

    fn ensure_present(&self) -> io::Result<()> {
        match identity(&self.root) {
            Ok(found) if found == self.identity => Ok(()),
            _ => Err(io::Error::other("the folder is gone or another one is in its place; is its disk mounted?")),
        }
    }

    /// Creates a sub-folder and flushes the entries on the way to it, once in this process whoever created it.
    fn make_durable_folder(&self, folder: &FilePath) -> io::Result<()> {
        if folder == self.root || self.durable.lock().contains(folder) {
            return Ok(());
        }
        let parent = folder.parent().unwrap_or(&self.root);
        self.make_durable_folder(parent)?;
        match std::fs::create_dir(folder) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
            _ => flush_folder(parent)?,
        }
        let mut durable = self.durable.lock();
        if durable.len() >= DURABLE_FOLDERS_MAX {
            durable.clear();
        }
        durable.insert(folder.to_path_buf());
        Ok(())
    }

    fn remove_leftovers(&self) {
        let folder = self.root.join(TEMPORARY);
        // Keeps writers out that have created their file and not yet locked it.
        let Ok(gate) = File::open(&folder) else { return };
        if flock(&gate, FlockOperation::LockExclusive).is_err() {
            return;
        }
        let Ok(entries) = std::fs::read_dir(&folder) else { return };
        for entry in entries.flatten() {
            let Ok(file) = File::open(entry.path()) else { continue };
            if flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
                tracing::debug!(path = %entry.path().display(), "remove a file that a crashed writer left");
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }
}

/// A file without its final name; removed when dropped, unless it was renamed.
struct Temporary {
    file: File,
    path: PathBuf,
}

impl Temporary {
    fn create(folder: &FilePath) -> io::Result<Temporary> {
        let gate = match File::open(folder) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                // Never the root itself: it would come to life on the disk below a mount point.
                match std::fs::create_dir(folder) {
                    Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
                    _ => File::open(folder)?,
                }
            }
            other => other?,
        };
        // Not every file system has locks; without them leftovers stay, because their locks cannot be taken either.
        let _ = flock(&gate, FlockOperation::LockShared);
        let path = folder.join(format!("{:032x}", rand::random::<u128>()));
        let file = OpenOptions::new().write(true).create_new(true).open(&path)?;
        let _ = flock(&file, FlockOperation::LockExclusive);
        Ok(Temporary { file, path })
    }

    /// Renames unless the target exists.
    fn rename_new(&self, target: &FilePath) -> io::Result<()> {
        match renameat_with(CWD, &self.path, CWD, target, RenameFlags::NOREPLACE) {
            // Some network file systems do not know the flag.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {
                linkat(CWD, &self.path, CWD, target, AtFlags::empty())?;
                Ok(())
            }
            other => Ok(other?),
        }
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Device and inode of a folder.
fn identity(folder: &FilePath) -> io::Result<(u64, u64)> {
    let metadata = std::fs::metadata(folder)?;
    Ok((metadata.dev(), metadata.ino()))
}

fn flush_folder(folder: &FilePath) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

impl fmt::Display for FolderStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "folder {}", self.folder.root.display())
    }
}

#[async_trait]
impl ObjectStore for FolderStore {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> object_store::Result<PutResult> {
        let overwrite = match options.mode {
            PutMode::Overwrite => true,
            PutMode::Create => false,
            PutMode::Update(_) => {
                return Err(object_store::Error::NotImplemented {
                    operation: "conditional update".to_owned(),
                    implementer: self.to_string(),
                });
            }
        };
        // Also refuses names that would leave the folder.
        let path = self.local.path_to_filesystem(location)?;
        let folder = Arc::clone(&self.folder);
        let put = tokio::task::spawn_blocking(move || folder.put(&path, &payload, overwrite)).await?;
        match put {
            Ok(()) => Ok(PutResult { e_tag: None, version: None, extensions: Default::default() }),
            Err(source) if source.kind() == ErrorKind::AlreadyExists => {
                Err(object_store::Error::AlreadyExists { path: location.to_string(), source: source.into() })
            }
            Err(source) if source.kind() == ErrorKind::PermissionDenied => {
                Err(object_store::Error::PermissionDenied { path: location.to_string(), source: source.into() })
            }
            Err(source) => Err(object_store::Error::Generic { store: STORE, source: source.into() }),
        }
    }

    async fn put_multipart_opts(
        &self,
        _location: &Path,
        _options: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        Err(object_store::Error::NotImplemented {
            operation: "multipart upload".to_owned(),
            implementer: self.to_string(),
        })
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> object_store::Result<GetResult> {
        match self.local.get_opts(location, options).await {
            // A disk that is not mounted any more is an outage and says nothing about the blob.
            Err(error @ object_store::Error::NotFound { .. }) => match self.folder.ensure_present() {
                Ok(()) => Err(error),
                Err(source) => Err(object_store::Error::Generic { store: STORE, source: source.into() }),
            },
            other => other,
        }
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, object_store::Result<Path>>,
    ) -> BoxStream<'static, object_store::Result<Path>> {
        self.local.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        self.local.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> object_store::Result<ListResult> {
        self.local.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, _from: &Path, _to: &Path, _options: CopyOptions) -> object_store::Result<()> {
        Err(object_store::Error::NotImplemented { operation: "copy".to_owned(), implementer: self.to_string() })
    }
}

#[cfg(test)]
#[path = "folder_tests.rs"]
mod tests;
