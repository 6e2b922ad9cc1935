//! Which GlobalFS mounts there are, and getting rid of them.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::mount::{UnmountFlags, unmount};

/// The type that the mount table shows.
pub const FS_TYPE: &str = "fuse.globalfs";
/// Mounts stacked on one point that are taken off before giving up.
const STACKED_MAX: usize = 64;

/// One line of the mount table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountEntry {
    /// Where.
    pub point: PathBuf,
    /// `REGION@CONFIG`, as the mount command was told.
    pub source: OsString,
    /// The type, [`FS_TYPE`] for ours.
    pub fs_type: String,
    /// Minor device number: FUSE's connection number.
    pub minor: u32,
}

impl MountEntry {
    /// Region and configuration of one of our mounts.
    pub fn origin(&self) -> Option<(String, PathBuf)> {
        if self.fs_type != FS_TYPE {
            return None;
        }
        parse_source(self.source.to_str()?)
    }
}

/// What a mount is called in the mount table and in fstab.
pub fn source(region: &str, config: &Path) -> String {
    format!("{region}@{}", config.display())
}

/// Reads `REGION@CONFIG`.
pub fn parse_source(text: &str) -> Option<(String, PathBuf)> {
    let (region, config) = text.split_once('@')?;
    net::pki::check_name(region).ok()?;
    Some((region.into(), config.into()))
}

/// Everything mounted in this namespace.
pub fn table() -> anyhow::Result<Vec<MountEntry>> {
    let text = fs::read("/proc/self/mountinfo").context("/proc/self/mountinfo")?;
    Ok(text.split(|&byte| byte == b'\n').filter_map(parse_line).collect())
}

/// The mount at exactly this point, the uppermost if there are several.
pub fn mounted_at(point: &Path) -> anyhow::Result<Option<MountEntry>> {
    let point = absolute(point);
    Ok(table()?.into_iter().rfind(|entry| entry.point == point))
}

/// Our mount that holds a path: the one with the longest mount point.
pub fn holding(path: &Path) -> anyhow::Result<Option<MountEntry>> {
    let path = absolute(path);
    let table = table()?;
    let held = table.into_iter().filter(|entry| path.starts_with(&entry.point));
    Ok(held.max_by_key(|entry| entry.point.as_os_str().len()).filter(|entry| entry.fs_type == FS_TYPE))
}

/// Absolute and without `.`, `..` or symlinks in the parent; never asks the last component, which may hang.
pub fn absolute(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.into());
    match (path.parent().map(fs::canonicalize), path.file_name()) {
        (Some(Ok(parent)), Some(name)) => parent.join(name),
        _ => path,
    }
}

/// Takes off every GlobalFS mount at this point, also dead and busy ones. Answers how many there were.
pub fn detach_all(point: &Path) -> anyhow::Result<usize> {
    let mut detached = 0;
    while let Some(entry) = mounted_at(point)? {
        if entry.fs_type != FS_TYPE || detached == STACKED_MAX {
            break;
        }
        abort(&entry);
        match unmount(&entry.point, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => detached += 1,
            // Somebody else was faster.
            Err(rustix::io::Errno::INVAL) => {}
            Err(error) => return Err(error).with_context(|| format!("unmount {}", entry.point.display())),
        }
    }
    Ok(detached)
}

/// Unmounts if nobody uses it.
pub fn detach_idle(entry: &MountEntry) -> io::Result<()> {
    Ok(unmount(&entry.point, UnmountFlags::NOFOLLOW)?)
}

/// Waits until nothing of ours is mounted there.
pub fn wait_unmounted(point: &Path, patience: Duration) -> anyhow::Result<bool> {
    let until = Instant::now() + patience;
    while mounted_at(point)?.is_some_and(|entry| entry.fs_type == FS_TYPE) {
        if Instant::now() >= until {
            return Ok(false);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(true)
}

/// Ends the kernel's connection to the mount's process, so that calls stuck in it fail. Best effort: the control file
/// system may not be mounted.
pub fn abort(entry: &MountEntry) {
    let _ = fs::write(format!("/sys/fs/fuse/connections/{}/abort", entry.minor), b"1");
}

fn parse_line(line: &[u8]) -> Option<MountEntry> {
    let mut fields = line.split(|&byte| byte == b' ');
    let device = std::str::from_utf8(fields.nth(2)?).ok()?;
    let point = unescape(fields.nth(1)?);
    let mut rest = fields.skip_while(|field| *field != b"-").skip(1);
    let fs_type = String::from_utf8_lossy(rest.next()?).into_owned();
    let source = unescape(rest.next()?);
    let minor = device.split_once(':')?.1.parse().ok()?;
    Some(MountEntry { point: point.into(), source, fs_type, minor })
}

/// The kernel writes blanks, tabs, newlines and backslashes as three octal digits.
fn unescape(field: &[u8]) -> OsString {
    let mut bytes = Vec::with_capacity(field.len());
    let mut at = 0;
    while at < field.len() {
        let digits = field.get(at + 1..at + 4).filter(|_| field[at] == b'\\');
        let digits = digits.and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                at += 4;
            }
            None => {
                bytes.push(field[at]);
                at += 1;
            }
        }
    }
    OsString::from_vec(bytes)
}

/// True if nothing is in the folder.
pub fn is_empty(folder: &Path) -> io::Result<bool> {
    Ok(fs::read_dir(folder)?.next().is_none())
}

/// The path of something inside a mount, as the volume names it (`/eu/photos`).
pub fn volume_path(entry: &MountEntry, path: &Path) -> anyhow::Result<String> {
    let path = absolute(path);
    let inside = path.strip_prefix(&entry.point).unwrap_or(Path::new(""));
    let inside = inside.to_str().with_context(|| format!("{:?} is not UTF-8", inside.as_os_str().as_bytes()))?;
    Ok(format!("/{inside}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn mountinfo_line_with_blanks_is_read() {
        let line = br"36 35 0:57 / /mnt/a\040b rw,nosuid shared:1 - fuse.globalfs eu@/etc/x\040y.toml rw,user_id=0";
        let entry = parse_line(line).unwrap();
        assert_eq!(entry.point, Path::new("/mnt/a b"));
        assert_eq!(entry.minor, 57);
        assert_eq!(entry.origin().unwrap(), ("eu".into(), PathBuf::from("/etc/x y.toml")));
        assert!(parse_line(b"garbage").is_none());
    }

    #[test]
    fn source_reads_back() {
        let source = source("eu", Path::new("/etc/globalfs/cluster.toml"));
        assert_eq!(parse_source(&source), Some(("eu".into(), "/etc/globalfs/cluster.toml".into())));
        assert_eq!(parse_source("no-region"), None);
        assert_eq!(parse_source("/x@y"), None);
    }

    #[test]
    fn volume_path_counts_from_the_mount() {
        let entry = MountEntry { point: "/".into(), source: "x".into(), fs_type: FS_TYPE.into(), minor: 1 };
        assert_eq!(volume_path(&entry, Path::new("/usr/share")).unwrap(), "/usr/share");
        assert_eq!(volume_path(&entry, Path::new("/")).unwrap(), "/");
    }
}
