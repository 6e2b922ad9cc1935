//! Files as the log needs them, behind a trait so that tests can crash them between any two writes.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use rustix::fs::OFlags;
use rustix::io::Errno;

/// A flat folder of preallocated files.
pub trait Disk: Send + Sync {
    /// The names of all files.
    fn list(&self) -> io::Result<Vec<String>>;

    /// Makes a file of `len` bytes that begins with `head` and is zero behind it. Durable, name and content, on return; after
    /// a crash before that the file is either whole or absent.
    fn create(&self, name: &str, head: &[u8], len: u64) -> io::Result<Arc<dyn DiskFile>>;

    /// Opens a file.
    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>>;

    /// Removes a file for good: durable on return.
    fn remove(&self, name: &str) -> io::Result<()>;
}

/// One file.
pub trait DiskFile: Send + Sync {
    /// Its length, which never changes.
    fn len_bytes(&self) -> u64;

    /// Fills `buffer` from `offset`.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;

    /// Overwrites; durable only after [`DiskFile::sync`].
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Makes all earlier writes durable.
    fn sync(&self) -> io::Result<()>;

    /// Overwrites, durably. What follows up to the next multiple of [`SECTOR`] may become zero.
    fn write_durably(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.write_at(offset, bytes)?;
        self.sync()
    }
}

/// What a disk writes as a whole.
pub const SECTOR: usize = 512;

/// A real folder.
#[derive(Debug)]
pub struct RealDisk {
    folder: PathBuf,
    is_read_only: bool,
}

static ZEROS: [u8; 1 << 20] = [0; 1 << 20];
const UNFINISHED: &str = ".new";
/// Memory that is kept between writes.
const ROOM_MAX: usize = 256 << 10;

impl RealDisk {
    /// The folder, made if missing. What a crashed [`Disk::create`] left is removed.
    pub fn open(folder: PathBuf) -> io::Result<RealDisk> {
        fs::create_dir_all(&folder)?;
        // The folder's own name must be durable before the first thing in it is acknowledged.
        if let Some(parent) = folder.canonicalize()?.parent() {
            File::open(parent)?.sync_all()?;
        }
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().ends_with(UNFINISHED) {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(RealDisk { folder, is_read_only: false })
    }

    /// A folder that is there, to be looked at only.
    pub fn read_only(folder: PathBuf) -> RealDisk {
        RealDisk { folder, is_read_only: true }
    }

    fn file(&self, name: &str, file: File, len: u64) -> io::Result<Arc<dyn DiskFile>> {
        let flags = (OFlags::DIRECT | OFlags::DSYNC).bits().cast_signed();
        // Not every file system can; then the page cache is between.
        let direct = OpenOptions::new().write(true).custom_flags(flags).open(self.folder.join(name));
        let direct = direct.ok().filter(|_| !self.is_read_only);
        Ok(Arc::new(RealFile { file, direct: direct.map(Direct::new), len }))
    }

    fn sync_folder(&self) -> io::Result<()> {
        File::open(&self.folder)?.sync_all()
    }
}

impl Disk for RealDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        names.sort();
        Ok(names)
    }

    fn create(&self, name: &str, head: &[u8], len: u64) -> io::Result<Arc<dyn DiskFile>> {
        let unfinished = self.folder.join(format!("{name}{UNFINISHED}"));
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&unfinished)?;
        // Zeros are written, not merely allocated: a later flush then has no extent to convert.
        let mut offset = 0;
        while offset < len {
            let part = ZEROS.len().min(usize::try_from(len - offset).unwrap_or(usize::MAX));
            file.write_all_at(&ZEROS[..part], offset)?;
            offset += part as u64;
        }
        file.write_all_at(head, 0)?;
        file.sync_all()?;
        fs::rename(&unfinished, self.folder.join(name))?;
        self.sync_folder()?;
        self.file(name, file, len)
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let file = OpenOptions::new().read(true).write(!self.is_read_only).open(self.folder.join(name))?;
        let len = file.metadata()?.len();
        self.file(name, file, len)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.folder.join(name))?;
        self.sync_folder()
    }
}

struct RealFile {
    file: File,
    direct: Option<Direct>,
    len: u64,
}

impl DiskFile for RealFile {
    fn len_bytes(&self) -> u64 {
        self.len
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn write_durably(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let padded = bytes.len().next_multiple_of(SECTOR);
        let fits = offset.is_multiple_of(SECTOR as u64) && offset + padded as u64 <= self.len;
        if let Some(direct) = self.direct.as_ref().filter(|_| fits)
            && direct.write(offset, bytes, padded)?
        {
            return Ok(());
        }
        self.write_at(offset, bytes)?;
        self.sync()
    }
}

/// The way past the page cache: one call writes and flushes, and no page is copied, marked and looked for again.
struct Direct {
    file: File,
    /// The disk's sectors are larger.
    is_refused: AtomicBool,
    /// Room for what is written, and to begin at a multiple of [`SECTOR`].
    room: Mutex<Vec<u8>>,
}

impl Direct {
    fn new(file: File) -> Direct {
        Direct { file, is_refused: AtomicBool::new(false), room: Mutex::default() }
    }

    /// False if this disk cannot do that; then nothing was written.
    fn write(&self, offset: u64, bytes: &[u8], padded: usize) -> io::Result<bool> {
        if self.is_refused.load(Ordering::Relaxed) {
            return Ok(false);
        }
        let mut room = self.room.lock();
        if room.len() < padded + SECTOR {
            room.resize(padded + SECTOR, 0);
        }
        let start = room.as_ptr().align_offset(SECTOR);
        let Some(aligned) = room.get_mut(start..start + padded) else { return Ok(false) };
        aligned[..bytes.len()].copy_from_slice(bytes);
        aligned[bytes.len()..].fill(0);
        let written = self.file.write_all_at(aligned, offset);
        if room.len() > ROOM_MAX {
            *room = Vec::new();
        }
        match written {
            Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {
                self.is_refused.store(true, Ordering::Relaxed);
                Ok(false)
            }
            written => written.map(|()| true),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn durable_writes_of_any_length_are_read_back_and_end_with_their_sector() {
        let folder = tempfile::tempdir().unwrap();
        let disk = RealDisk::open(folder.path().to_owned()).unwrap();
        // The last sector is not whole.
        let len = 3 * ROOM_MAX as u64 + 100;
        let file = disk.create("a", b"head", len).unwrap();
        let read = |file: &dyn DiskFile, offset, len| {
            let mut bytes = vec![1; len];
            file.read_at(offset, &mut bytes).unwrap();
            bytes
        };
        file.write_at(0, &[9; 3 * SECTOR]).unwrap();
        file.write_durably(SECTOR as u64, &[7; 100]).unwrap();
        assert_eq!(read(&*file, 0, SECTOR), [9; SECTOR]);
        assert_eq!(read(&*file, SECTOR as u64, 100), [7; 100]);
        assert_eq!(read(&*file, 2 * SECTOR as u64, SECTOR), [9; SECTOR]);
        // Larger than the memory that is kept, at no sector's begin, and in the sector that is not whole.
        for (offset, count) in [(SECTOR as u64, ROOM_MAX + 5), (77, 1000), (len - 100, 100)] {
            let bytes: Vec<u8> = (0..count).map(|at| at as u8).collect();
            file.write_durably(offset, &bytes).unwrap();
            assert_eq!(read(&*file, offset, count), bytes);
        }
        drop(file);
        let file = disk.open("a").unwrap();
        assert_eq!((file.len_bytes(), read(&*file, 77, 3)), (len, vec![0, 1, 2]));
    }
}
