//! Whole verified blobs on the local disk.
//!
//! One file per blob, `xx/<blob>-<crc32c>-<length>`: the folder alone tells everything, so there is no index to keep
//! or to lose. Nothing is flushed: a file that a power cut left torn has the wrong length or, at its first use after a
//! start, the wrong checksum, and is dropped. A blob is only ever inserted after its checksum was compared.
//!
//! Reads are `pread` from files that the kernel keeps in its page cache. All functions but [`Cache::try_read`] and
//! [`Cache::try_read_into`] may block on the disk.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use parking_lot::Mutex;
use rustix::fs::{FlockOperation, flock};
use rustix::io::{Errno, ReadWriteFlags, preadv2};

use crate::lru::Lru;
use crate::{BlobId, BlobRef, Error, Result};

/// Held locked while the cache is open.
const LOCK: &str = "lock";
/// Where files are written before they get their names.
const TEMPORARY: &str = "tmp";
/// After the disk ran full, this part of the cache is given back.
const FULL_DISK_SHARE: u64 = 16;

/// Where in memory data are read to. An allocator puts large buffers 16 bytes behind a page's begin, and there the
/// kernel's copy is up to six times slower on some processors (measured on AMD Milan).
const ALIGNMENT: usize = 64;

/// Size of a cache.
#[derive(Clone, Debug)]
pub struct CacheConfig {
    /// Its folder; created when missing, used by one process at a time, and nothing else may be in it.
    pub folder: PathBuf,
    /// Bytes of blobs kept. Default 10 GiB.
    pub bytes_max: u64,
    /// Blobs kept, whatever their size. Each costs about 150 bytes of memory. Default 200,000 (30 MiB).
    pub blobs_max: usize,
    /// Files kept open. Default 256.
    pub open_files_max: usize,
}

impl CacheConfig {
    /// The defaults, in a folder.
    #[must_use]
    pub fn new(folder: impl Into<PathBuf>) -> CacheConfig {
        CacheConfig { folder: folder.into(), bytes_max: 10 << 30, blobs_max: 200_000, open_files_max: 256 }
    }
}

/// What a cache holds and did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheStatus {
    /// Blobs in it.
    pub blobs: usize,
    /// Their bytes, with those that are being written.
    pub bytes: u64,
    /// Files open.
    pub open_files: usize,
    /// Reads answered.
    pub hits: u64,
    /// Reads not answered.
    pub misses: u64,
    /// Blobs given up for room.
    pub evicted: u64,
    /// Files dropped because they were not what they should be.
    pub torn: u64,
}

/// See the module. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Cache {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    config: CacheConfig,
    index: Mutex<Index>,
    _lock: Locked,
}

/// The folder is this process's as long as this lives.
#[derive(Debug)]
struct Locked(File);

impl Drop for Locked {
    /// Not left to closing the file: a child that this process has forked and that has not begun its program yet has it open, too.
    fn drop(&mut self) {
        let _ = flock(&self.0, FlockOperation::Unlock);
    }
}

#[derive(Debug)]
struct Index {
    blobs: Lru<BlobId, Entry>,
    open: Lru<BlobId, Arc<File>>,
    status: CacheStatus,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    blob: BlobRef,
    /// The file was compared with its checksum in this process's life.
    verified: bool,
}

/// What the index knows of a blob.
enum Found {
    Nothing,
    Open(Arc<File>),
    Closed,
    Unverified,
}

impl Cache {
    /// Opens the cache in a folder and rebuilds its index from the files there. Blocks on the disk.
    pub fn open(config: CacheConfig) -> Result<Cache> {
        let cannot = |step: &'static str| {
            let folder = config.folder.display().to_string();
            move |source: io::Error| Error::Cache { folder, step, source: Arc::new(source) }
        };
        create_folder(&config.folder).map_err(cannot("create it"))?;
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(config.folder.join(LOCK));
        let lock = lock.map_err(cannot("open its lock"))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|error| {
            let in_use = error == Errno::WOULDBLOCK;
            let error = if in_use { io::Error::other("another process uses it") } else { error.into() };
            cannot("lock it")(error)
        })?;
        let temporary = config.folder.join(TEMPORARY);
        match std::fs::remove_dir_all(&temporary) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(cannot("clean it")(error)),
            _ => create_folder(&temporary).map_err(cannot("create a folder in it"))?,
        }
        let (found, torn) = scan(&config.folder).map_err(cannot("list it"))?;
        let mut index = Index { blobs: Lru::new(), open: Lru::new(), status: CacheStatus::default() };
        index.status.torn = torn;
        let mut victims = Vec::new();
        for blob in found {
            index.status.bytes += u64::from(blob.len_bytes);
            if let Some(twin) = index.blobs.insert(blob.id, Entry { blob, verified: false }) {
                index.status.bytes -= u64::from(twin.blob.len_bytes);
                victims.push(twin.blob);
            }
            index.make_room(&config, 0, &mut victims);
        }
        let cache = Cache { shared: Arc::new(Shared { config, index: Mutex::new(index), _lock: Locked(lock) }) };
        cache.unlink(&victims);
        Ok(cache)
    }

    /// Keeps a blob. `data` must be the blob (its checksum was compared, or computed from it).
    pub fn insert(&self, blob: &BlobRef, data: &[u8]) -> Result<()> {
        debug_assert_eq!(data.len() as u64, u64::from(blob.len_bytes));
        let len = u64::from(blob.len_bytes);
        let mut victims = Vec::new();
        {
            let mut index = self.shared.index.lock();
            match index.blobs.get(&blob.id) {
                Some(entry) if entry.blob == *blob && entry.verified => return Ok(()),
                Some(_) => index.forget(&blob.id, &mut victims),
                None => {}
            }
            if len > self.shared.config.bytes_max {
                drop(index);
                self.unlink(&victims);
                return Ok(());
            }
            index.make_room(&self.shared.config, len, &mut victims);
            index.status.bytes += len;
        }
        self.unlink(&victims);
        let written = self.write(blob, data);
        let mut victims = Vec::new();
        let mut index = self.shared.index.lock();
        let result = match written {
            Ok(file) => {
                // Someone else may have inserted it meanwhile: one file, counted once.
                if let Some(twin) = index.blobs.insert(blob.id, Entry { blob: *blob, verified: true }) {
                    index.status.bytes -= u64::from(twin.blob.len_bytes);
                    if twin.blob != *blob {
                        victims.push(twin.blob);
                    }
                }
                index.keep_open(blob.id, Arc::new(file), &self.shared.config);
                index.make_room(&self.shared.config, 0, &mut victims);
                Ok(())
            }
            Err(error) => {
                index.status.bytes -= len;
                if error.kind() == ErrorKind::StorageFull {
                    let give_back = (self.shared.config.bytes_max / FULL_DISK_SHARE).max(len);
                    index.give_back(give_back, &mut victims);
                }
                Err(self.error("write to it", error))
            }
        };
        drop(index);
        self.unlink(&victims);
        result
    }

    /// A range of a blob, if that takes no disk: verified before, and in the kernel's page cache.
    #[must_use]
    pub fn try_read(&self, blob: &BlobRef, range: Range<u32>) -> Option<Bytes> {
        let (mut data, start) = buffer_for(blob, &range)?;
        self.try_read_into(blob, range.start, &mut data[start..]).then(|| Bytes::from(data).slice(start..))
    }

    /// As [`Cache::try_read`], into a buffer that is filled whole or not at all (its content is then undefined). A
    /// buffer that begins on a multiple of 64 bytes is filled several times faster than one as allocators give it.
    #[must_use]
    pub fn try_read_into(&self, blob: &BlobRef, offset: u32, buffer: &mut [u8]) -> bool {
        let Found::Open(file) = self.find(blob) else { return false };
        if !inside(blob, offset, buffer.len()) || !read_without_waiting(&file, u64::from(offset), buffer) {
            return false;
        }
        self.shared.index.lock().status.hits += 1;
        true
    }

    /// A range of a blob. Verifies the blob at its first use after a start.
    #[must_use]
    pub fn read(&self, blob: &BlobRef, range: Range<u32>) -> Option<Bytes> {
        let (mut data, start) = buffer_for(blob, &range)?;
        self.read_into(blob, range.start, &mut data[start..]).then(|| Bytes::from(data).slice(start..))
    }

    /// As [`Cache::read`], into a buffer that is filled whole or not at all (its content is then undefined).
    #[must_use]
    pub fn read_into(&self, blob: &BlobRef, offset: u32, buffer: &mut [u8]) -> bool {
        let hit = inside(blob, offset, buffer.len()) && self.read_found(blob, offset, buffer);
        let mut index = self.shared.index.lock();
        if hit {
            index.status.hits += 1;
        } else {
            index.status.misses += 1;
        }
        hit
    }

    /// Whether a blob is kept (perhaps not yet verified).
    #[must_use]
    pub fn contains(&self, blob: &BlobRef) -> bool {
        self.shared.index.lock().blobs.peek(&blob.id).is_some_and(|entry| entry.blob == *blob)
    }

    /// Forgets a blob.
    pub fn remove(&self, id: BlobId) {
        let mut victims = Vec::new();
        self.shared.index.lock().forget(&id, &mut victims);
        self.unlink(&victims);
    }

    /// What it holds and did.
    #[must_use]
    pub fn status(&self) -> CacheStatus {
        let index = self.shared.index.lock();
        CacheStatus { blobs: index.blobs.len(), open_files: index.open.len(), ..index.status }
    }

    fn find(&self, blob: &BlobRef) -> Found {
        let mut index = self.shared.index.lock();
        let Some(entry) = index.blobs.get(&blob.id) else { return Found::Nothing };
        if entry.blob != *blob {
            return Found::Nothing;
        }
        if !entry.verified {
            return Found::Unverified;
        }
        match index.open.get(&blob.id) {
            Some(file) => Found::Open(Arc::clone(file)),
            None => Found::Closed,
        }
    }

    fn read_found(&self, blob: &BlobRef, offset: u32, buffer: &mut [u8]) -> bool {
        let (file, verified) = match self.find(blob) {
            Found::Nothing => return false,
            Found::Open(file) => (file, true),
            Found::Closed => match File::open(self.path(blob)) {
                Ok(file) => (Arc::new(file), true),
                Err(error) => return self.drop_unreadable(blob, &error),
            },
            Found::Unverified => match File::open(self.path(blob)) {
                Ok(file) => (Arc::new(file), false),
                Err(error) => return self.drop_unreadable(blob, &error),
            },
        };
        if !verified && !is_blob(&file, blob) {
            return self.drop_unreadable(blob, &"its checksum is wrong");
        }
        if let Err(error) = file.read_exact_at(buffer, u64::from(offset)) {
            return self.drop_unreadable(blob, &error);
        }
        let mut index = self.shared.index.lock();
        // It may have been removed while it was read: nothing to remember then.
        let Some(entry) = index.blobs.get(&blob.id).filter(|entry| entry.blob == *blob) else { return true };
        entry.verified = true;
        index.keep_open(blob.id, file, &self.shared.config);
        true
    }

    fn drop_unreadable(&self, blob: &BlobRef, reason: &dyn std::fmt::Display) -> bool {
        let mut victims = Vec::new();
        {
            let mut index = self.shared.index.lock();
            // When it was given up for room between our look and our read, nothing is wrong with it.
            if index.blobs.peek(&blob.id).is_some_and(|entry| entry.blob == *blob) {
                index.status.torn += 1;
                index.forget(&blob.id, &mut victims);
                tracing::warn!(%blob, %reason, "drop a file of the cache");
            }
        }
        self.unlink(&victims);
        false
    }

    fn write(&self, blob: &BlobRef, data: &[u8]) -> io::Result<File> {
        let temporary = self.shared.config.folder.join(TEMPORARY).join(format!("{:032x}", rand::random::<u128>()));
        let written = (|| {
            let mut file = OpenOptions::new().read(true).write(true).create_new(true).open(&temporary)?;
            file.write_all(data)?;
            let path = self.path(blob);
            match std::fs::rename(&temporary, &path) {
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    if let Some(folder) = path.parent() {
                        create_folder(folder)?;
                    }
                    std::fs::rename(&temporary, &path)?;
                }
                other => other?,
            }
            Ok(file)
        })();
        if written.is_err() {
            let _ = std::fs::remove_file(&temporary);
        }
        written
    }

    fn unlink(&self, victims: &[BlobRef]) {
        for blob in victims {
            let _ = std::fs::remove_file(self.path(blob));
        }
    }

    fn path(&self, blob: &BlobRef) -> PathBuf {
        self.shared.config.folder.join(format!("{:02x}", blob.id.shard())).join(file_name(blob))
    }

    fn error(&self, step: &'static str, source: io::Error) -> Error {
        Error::Cache { folder: self.shared.config.folder.display().to_string(), step, source: Arc::new(source) }
    }
}

impl Index {
    /// Gives up the blobs used longest ago until `len` more bytes fit. Their files are the caller's to remove.
    fn make_room(&mut self, config: &CacheConfig, len: u64, victims: &mut Vec<BlobRef>) {
        while self.blobs.len() > config.blobs_max || self.status.bytes + len > config.bytes_max {
            if !self.evict_oldest(victims) {
                return;
            }
        }
    }

    fn give_back(&mut self, bytes: u64, victims: &mut Vec<BlobRef>) {
        let target = self.status.bytes.saturating_sub(bytes);
        while self.status.bytes > target && self.evict_oldest(victims) {}
    }

    fn evict_oldest(&mut self, victims: &mut Vec<BlobRef>) -> bool {
        let Some((id, entry)) = self.blobs.pop_oldest() else { return false };
        self.open.remove(&id);
        self.status.bytes -= u64::from(entry.blob.len_bytes);
        self.status.evicted += 1;
        victims.push(entry.blob);
        true
    }

    fn forget(&mut self, id: &BlobId, victims: &mut Vec<BlobRef>) {
        self.open.remove(id);
        if let Some(entry) = self.blobs.remove(id) {
            self.status.bytes -= u64::from(entry.blob.len_bytes);
            victims.push(entry.blob);
        }
    }

    fn keep_open(&mut self, id: BlobId, file: Arc<File>, config: &CacheConfig) {
        if self.open.get(&id).is_none() {
            self.open.insert(id, file);
        }
        while self.open.len() > config.open_files_max {
            self.open.pop_oldest();
        }
    }
}

/// The blobs whose files have the length that their names promise, oldest first; the other files are removed.
fn scan(folder: &Path) -> io::Result<(Vec<BlobRef>, u64)> {
    let mut found: Vec<(SystemTime, BlobRef)> = Vec::new();
    let mut torn = 0;
    for shard in 0..=u8::MAX {
        let entries = match std::fs::read_dir(folder.join(format!("{shard:02x}"))) {
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            let metadata = entry.metadata()?;
            let blob = entry.file_name().to_str().and_then(parse_file_name).filter(|blob| {
                blob.id.shard() == shard && metadata.is_file() && metadata.len() == u64::from(blob.len_bytes)
            });
            if let Some(blob) = blob {
                found.push((metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH), blob));
            } else {
                torn += 1;
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }
    found.sort_unstable();
    Ok((found.into_iter().map(|(_, blob)| blob).collect(), torn))
}

fn file_name(blob: &BlobRef) -> String {
    format!("{}-{:08x}-{:08x}", blob.id, blob.crc32c, blob.len_bytes)
}

fn parse_file_name(name: &str) -> Option<BlobRef> {
    let (rest, len_bytes) = name.rsplit_once('-')?;
    let (id, crc32c) = rest.rsplit_once('-')?;
    let blob = BlobRef {
        id: id.parse().ok()?,
        len_bytes: u32::from_str_radix(len_bytes, 16).ok()?,
        crc32c: u32::from_str_radix(crc32c, 16).ok()?,
    };
    (file_name(&blob) == name).then_some(blob)
}

fn create_folder(folder: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

fn inside(blob: &BlobRef, offset: u32, len: usize) -> bool {
    u64::from(offset) + len as u64 <= u64::from(blob.len_bytes)
}

/// Room for a range of a blob, and where in it the range is to begin.
fn buffer_for(blob: &BlobRef, range: &Range<u32>) -> Option<(Vec<u8>, usize)> {
    if !inside(blob, range.start, range.len()) {
        return None;
    }
    let mut data = vec![0; range.len() + ALIGNMENT];
    let start = data.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT);
    data.truncate(start + range.len());
    Some((data, start))
}

fn is_blob(file: &File, blob: &BlobRef) -> bool {
    let mut whole = vec![0; blob.len_bytes as usize];
    file.read_exact_at(&mut whole, 0).is_ok() && blob.matches(&whole)
}

/// Whether the buffer could be filled from the page cache.
fn read_without_waiting(file: &File, mut offset: u64, mut buffer: &mut [u8]) -> bool {
    while !buffer.is_empty() {
        let slices = &mut [io::IoSliceMut::new(buffer)];
        match preadv2(file, slices, offset, ReadWriteFlags::NOWAIT) {
            Ok(0) => return false,
            Ok(read) => {
                buffer = &mut buffer[read..];
                offset += read as u64;
            }
            Err(Errno::INTR) => {}
            Err(_) => return false,
        }
    }
    true
}

#[cfg(test)]
#[path = "cache_tests.rs"]
mod tests;
