//! The workloads: what one thread does over and over, and what it finds prepared.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// Bytes of a small file.
const SMALL_LEN: usize = 1 << 10;
/// Entries of the directory that is listed.
const LIST_LEN: u64 = 1_000;
/// Files that are read or looked at in turns.
const KNOWN_FILES: u64 = 256;
/// One call of a sequential write or read.
const SEQUENTIAL_LEN: usize = 1 << 20;
/// Directories of a tree, and files in each.
const TREE_DIRS: u64 = 10;
const TREE_FILES: u64 = 10;

/// A kind of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Workload {
    /// create + write 1 KiB + close.
    Create,
    /// open + read 1 KiB + close.
    Read,
    /// stat of known files.
    Stat,
    /// List a directory of 1,000 entries.
    Readdir,
    /// Rename within a directory.
    Rename,
    /// Rename into the next directory given.
    RenameAcross,
    /// Append 1 KiB to a file and close it.
    Append,
    /// unlink.
    Unlink,
    /// Write a large file, 1 MiB at a time, and sync it.
    SequentialWrite,
    /// Read it.
    SequentialRead,
    /// Make and remove a tree of 10 directories with 10 small files each.
    Tree,
}

impl Workload {
    /// All, in the order in which they run.
    pub const ALL: [Workload; 11] = [
        Workload::Create,
        Workload::Read,
        Workload::Stat,
        Workload::Readdir,
        Workload::Rename,
        Workload::RenameAcross,
        Workload::Append,
        Workload::Unlink,
        Workload::SequentialWrite,
        Workload::SequentialRead,
        Workload::Tree,
    ];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Workload::Create => "create",
            Workload::Read => "read",
            Workload::Stat => "stat",
            Workload::Readdir => "readdir",
            Workload::Rename => "rename",
            Workload::RenameAcross => "rename-across",
            Workload::Append => "append",
            Workload::Unlink => "unlink",
            Workload::SequentialWrite => "seq-write",
            Workload::SequentialRead => "seq-read",
            Workload::Tree => "tree",
        }
    }

    /// All names.
    pub fn names() -> [&'static str; 11] {
        Workload::ALL.map(Workload::name)
    }

    /// By its name.
    pub fn by_name(name: &str) -> Option<Workload> {
        Workload::ALL.into_iter().find(|workload| workload.name() == name)
    }

    /// Whether bytes per second say something.
    pub fn moves_bytes(self) -> bool {
        matches!(self, Workload::SequentialWrite | Workload::SequentialRead)
    }

    /// Whether one thread is enough: the large file is written and read as a whole.
    pub fn single_threaded(self) -> bool {
        self.moves_bytes()
    }
}

/// One thread's place and its work there.
#[derive(Debug)]
pub struct Worker {
    workload: Workload,
    folder: PathBuf,
    /// Where `rename-across` goes.
    other: PathBuf,
    count: u64,
    /// Length of the large file.
    size: u64,
    /// How many small ones there are to read or look at.
    known_files: u64,
    buffer: Vec<u8>,
    /// The large file while it is written or read, and how far.
    large: Option<(File, u64)>,
}

impl Worker {
    /// A worker of a folder that exists, empty, like `other`. It will do at most `count` operations.
    pub fn new(workload: Workload, folder: PathBuf, other: PathBuf, count: u64, size: u64) -> Worker {
        let len = if workload.moves_bytes() { SEQUENTIAL_LEN } else { SMALL_LEN };
        // Not all zeros: some file systems know how to make those cheap.
        let buffer = (0..len).map(|at| (at * 31 % 251) as u8).collect();
        Worker { workload, folder, other, count, size, known_files: 1, buffer, large: None }
    }

    /// Makes what the work needs. Not measured. `more` says no when time is up; what is there then must do.
    pub fn prepare(&mut self, mut more: impl FnMut() -> bool) -> io::Result<()> {
        let wanted = match self.workload {
            Workload::Read | Workload::Stat => KNOWN_FILES.min(self.count),
            Workload::Readdir => LIST_LEN,
            Workload::Unlink => self.count,
            Workload::Rename | Workload::RenameAcross | Workload::Append => 1,
            Workload::SequentialRead => {
                write_large(&self.folder.join("large"), self.size, &self.buffer)?;
                0
            }
            Workload::Create | Workload::SequentialWrite | Workload::Tree => 0,
        };
        let mut made = 0;
        while made < wanted && (made == 0 || more()) {
            write_small(&self.file(made), &self.buffer)?;
            made += 1;
        }
        // The work repeats or ends at what there is.
        if wanted > 0 && matches!(self.workload, Workload::Unlink) {
            self.count = made;
        }
        self.known_files = made.max(1);
        Ok(())
    }

    /// How many operations it has to do at most.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The `number`-th operation. Answers how many bytes it moved, or `None` when there is nothing left to do.
    pub fn step(&mut self, number: u64) -> io::Result<Option<u64>> {
        if number >= self.count {
            return Ok(None);
        }
        match self.workload {
            Workload::Create => write_small(&self.file(number), &self.buffer)?,
            Workload::Read => {
                let mut file = File::open(self.file(number % self.known_files))?;
                let read = file.read(&mut self.buffer)?;
                if read != SMALL_LEN {
                    return Err(io::Error::other(format!("{read} bytes read instead of {SMALL_LEN}")));
                }
            }
            Workload::Stat => {
                fs::symlink_metadata(self.file(number % self.known_files))?;
            }
            Workload::Readdir => {
                let entries = fs::read_dir(&self.folder)?.count();
                if entries == 0 {
                    return Err(io::Error::other("the directory looks empty"));
                }
            }
            Workload::Rename => self.rename(number, &self.folder, &self.folder)?,
            Workload::RenameAcross => {
                let (from, to) =
                    if number.is_multiple_of(2) { (&self.folder, &self.other) } else { (&self.other, &self.folder) };
                self.rename(number, from, to)?;
            }
            Workload::Append => {
                let mut file = OpenOptions::new().append(true).open(self.file(0))?;
                file.write_all(&self.buffer)?;
            }
            Workload::Unlink => fs::remove_file(self.file(number))?,
            Workload::SequentialWrite => return self.write_on(),
            Workload::SequentialRead => return self.read_on(),
            Workload::Tree => self.tree(number)?,
        }
        Ok(Some(0))
    }

    fn file(&self, number: u64) -> PathBuf {
        self.folder.join(format!("f{number}"))
    }

    fn rename(&self, number: u64, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from.join(format!("f{number}")), to.join(format!("f{}", number + 1)))
    }

    fn write_on(&mut self) -> io::Result<Option<u64>> {
        let (file, done) = match &mut self.large {
            Some(large) => large,
            None => self.large.insert((File::create(self.folder.join("large"))?, 0)),
        };
        let len = (self.size - *done).min(self.buffer.len() as u64);
        if len == 0 {
            return Ok(None);
        }
        file.write_all(&self.buffer[..len as usize])?;
        *done += len;
        // Durability belongs to the price.
        if *done == self.size {
            file.sync_all()?;
        }
        Ok(Some(len))
    }

    fn read_on(&mut self) -> io::Result<Option<u64>> {
        let (file, done) = match &mut self.large {
            Some(large) => large,
            None => self.large.insert((File::open(self.folder.join("large"))?, 0)),
        };
        let read = file.read(&mut self.buffer)? as u64;
        *done += read;
        Ok((read > 0).then_some(read))
    }

    fn tree(&self, number: u64) -> io::Result<()> {
        let root = self.folder.join(format!("t{number}"));
        fs::create_dir(&root)?;
        for dir in 0..TREE_DIRS {
            let dir = root.join(format!("d{dir}"));
            fs::create_dir(&dir)?;
            for file in 0..TREE_FILES {
                write_small(&dir.join(format!("f{file}")), &self.buffer)?;
            }
        }
        fs::remove_dir_all(&root)
    }
}

/// Creates a file with this content.
pub fn write_small(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).open(path)?;
    file.write_all(bytes)
}

fn write_large(path: &Path, size: u64, buffer: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    let mut left = size;
    while left > 0 {
        let len = left.min(buffer.len() as u64);
        file.write_all(&buffer[..len as usize])?;
        left -= len;
    }
    file.sync_all()
}
