//! Files as the log needs them, behind a trait so that tests can crash them between any two writes.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

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
    fn len(&self) -> u64;

    /// Fills `buffer` from `offset`.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;

    /// Overwrites; durable only after [`DiskFile::sync`].
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Makes all earlier writes durable.
    fn sync(&self) -> io::Result<()>;
}

/// A real folder.
#[derive(Debug)]
pub struct RealDisk {
    folder: PathBuf,
    is_read_only: bool,
}

static ZEROS: [u8; 1 << 20] = [0; 1 << 20];
const UNFINISHED: &str = ".new";

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
        Ok(Arc::new(RealFile { file, len }))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let file = OpenOptions::new().read(true).write(!self.is_read_only).open(self.folder.join(name))?;
        let len = file.metadata()?.len();
        Ok(Arc::new(RealFile { file, len }))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.folder.join(name))?;
        self.sync_folder()
    }
}

struct RealFile {
    file: File,
    len: u64,
}

impl DiskFile for RealFile {
    fn len(&self) -> u64 {
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
}
