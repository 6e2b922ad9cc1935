//! Calls on files that the standard library has no words for, and checks that name what they saw.

use std::fmt::Debug;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use rustix::fs::{CWD, FileType, Mode, RenameFlags, SeekFrom, Timespec, Timestamps};
use rustix::io::Errno;

use super::cluster::run;

/// The call must fail with exactly this errno.
#[track_caller]
pub fn refused<T: Debug, E: Into<io::Error>>(result: Result<T, E>, errno: Errno) {
    match result {
        Ok(answer) => panic!("expected {errno:?}, but it succeeded: {answer:?}"),
        Err(error) => {
            let error = error.into();
            assert_eq!(error.raw_os_error(), Some(errno.raw_os_error()), "expected {errno:?}, got {error:?}");
        }
    }
}

/// True if the path is there; any failure but ENOENT is one of the test.
#[track_caller]
pub fn exists(path: &Path) -> bool {
    match fs::symlink_metadata(path) {
        Ok(_) => true,
        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
        Err(error) => panic!("stat {}: {error}", path.display()),
    }
}

/// The names in a directory, sorted.
#[track_caller]
pub fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap_or_else(|error| panic!("list {}: {error}", directory.display()));
    let mut names: Vec<_> = entries
        .map(|entry| {
            let entry = entry.unwrap_or_else(|error| panic!("list {}: {error}", directory.display()));
            entry.file_name().to_string_lossy().into_owned()
        })
        .collect();
    names.sort();
    names
}

/// Writes a file that must not exist, and makes it durable.
pub fn create(path: &Path, content: &[u8]) -> io::Result<()> {
    let file = File::options().write(true).create_new(true).open(path)?;
    file.write_all_at(content, 0)?;
    file.sync_all()
}

/// A file's whole content as text.
#[track_caller]
pub fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("read {}: {error}", path.display()))
}

/// Opens for appending; creates.
pub fn open_append(path: &Path) -> io::Result<File> {
    File::options().append(true).create(true).open(path)
}

pub fn open_flags(path: &Path, flags: i32) -> io::Result<File> {
    File::options().read(true).write(true).custom_flags(flags).open(path)
}

pub fn rename_with(old: &Path, new: &Path, flags: RenameFlags) -> rustix::io::Result<()> {
    rustix::fs::renameat_with(CWD, old, CWD, new, flags)
}

pub fn make_node(path: &Path, kind: FileType, device: u64) -> rustix::io::Result<()> {
    rustix::fs::mknodat(CWD, path, kind, Mode::from_raw_mode(0o640), device)
}

pub fn seek_data(file: &File, from: u64) -> rustix::io::Result<u64> {
    rustix::fs::seek(file, SeekFrom::Data(from))
}

pub fn seek_hole(file: &File, from: u64) -> rustix::io::Result<u64> {
    rustix::fs::seek(file, SeekFrom::Hole(from))
}

pub fn set_times(path: &Path, accessed: Timespec, modified: Timespec) -> rustix::io::Result<()> {
    let times = Timestamps { last_access: accessed, last_modification: modified };
    rustix::fs::utimensat(CWD, path, &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW)
}

pub fn time(seconds: i64, nanoseconds: i64) -> Timespec {
    Timespec { tv_sec: seconds, tv_nsec: nanoseconds }
}

/// Runs a shell script as an unprivileged user; answers whether it succeeded and what it printed.
pub fn as_user(uid: u32, script: &str, argument: &Path) -> (bool, String) {
    use std::os::unix::process::CommandExt;
    let mut command = Command::new("sh");
    command.args(["-c", script, "sh"]).arg(argument).uid(uid).gid(uid).current_dir("/");
    let output = run(command, Duration::from_secs(30));
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

/// A file mapped shared, readable and writable.
pub struct SharedMap {
    start: *mut u8,
    len: usize,
}

#[allow(unsafe_code)]
impl SharedMap {
    pub fn new(file: &File, len: usize) -> io::Result<SharedMap> {
        let (access, descriptor) = (libc::PROT_READ | libc::PROT_WRITE, file.as_raw_fd());
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), len, access, libc::MAP_SHARED, descriptor, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(SharedMap { start: start.cast(), len })
    }

    pub fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: the mapping is `len` bytes long and lives as long as `self`, which is borrowed.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.len) }
    }

    /// msync(MS_SYNC): what was written is in the file.
    pub fn sync(&self) -> io::Result<()> {
        // SAFETY: the range is ours.
        let result = unsafe { libc::msync(self.start.cast(), self.len, libc::MS_SYNC) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

#[allow(unsafe_code)]
impl Drop for SharedMap {
    fn drop(&mut self) {
        // SAFETY: nobody can hold the slice any more.
        unsafe { libc::munmap(self.start.cast(), self.len) };
    }
}

/// Tells threads to stop when its scope ends, also by a panic.
pub struct StopAtEnd<'a>(pub &'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Pseudo-random numbers; the seed comes from `GLOBALFS_TEST_SEED` or the caller, and is printed.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        let seed = std::env::var("GLOBALFS_TEST_SEED").map_or(seed, |text| text.parse().unwrap());
        eprintln!("GLOBALFS_TEST_SEED={seed}");
        Random::of(seed)
    }

    /// As [`Random::new`], but other choices each time, unless the environment has a seed.
    pub fn fresh() -> Random {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        Random::new(u64::from(now.subsec_micros()) ^ (now.as_secs() << 20))
    }

    fn of(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// Further numbers, for somebody else.
    pub fn branch(&mut self) -> Random {
        Random::of(self.next())
    }

    pub fn next(&mut self) -> u64 {
        // xorshift64*
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        (self.next() >> 16) % bound
    }

    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len.div_ceil(8)).flat_map(|_| self.next().to_le_bytes()).take(len).collect()
    }
}

/// The middle one of some durations.
pub fn median(mut of: Vec<Duration>) -> Duration {
    of.sort();
    of[of.len() / 2]
}
