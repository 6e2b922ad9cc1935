//! A node's data directory: one process at a time, and only the node to which it belongs.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use metadata::{codec, rows};
use multicast::ids::{Incarnation, ReplicaId};
use multicast::order;
use multicast::record::RECORD_VERSION;
use rustix::fs::{FlockOperation, flock};

use crate::config::FirstStart;
use crate::error::{Error, Result};
use crate::storage::wal;

/// How what is in a data directory is encoded. It stands in the stamp, which is read before anything else: data of another
/// format are refused as such there, and not taken for damaged ones later.
const FORMAT: u32 = 5;
const _: () = assert!(
    matches!((FORMAT, wal::FORMAT, RECORD_VERSION, order::rows::ROW_VERSION, rows::ROW_VERSION), (5, 2, 2, 4, 1))
        && matches!((codec::VERSION, codec::OUTCOME_VERSION, codec::CONTRIBUTION_VERSION), (1, 2, 2)),
    "all of these are on disks: whoever raises one raises FORMAT, and renews the list"
);
const TITLE: &str = "globalfs node data\nformat ";
const INCARNATION: &str = "incarnation ";
/// Whoever makes a cluster leaves a file of this name in the data directories of its nodes: the first start takes part in its
/// founding. It is gone afterwards, so that a directory that was emptied is not taken for one of the founding.
pub const INITIALISE_MARKER: &str = "initialise";
/// The file that says which groups have a replica here.
pub const HOSTING: &str = "replicas";
/// The file that says who belongs to the groups, as far as known.
pub const MEMBERS: &str = "members";

/// Whose data a directory holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// The cluster's name.
    pub cluster: String,
    /// Fingerprint of the cluster's authority: two clusters may have the same name.
    pub authority: String,
    /// The node.
    pub node: ReplicaId,
}

impl Stamp {
    /// As it is written. A disk of the founding does not say so: an incarnation is an addition, and a program that does not
    /// know of it must not take the disk for one of the founding.
    fn text(&self, incarnation: Incarnation) -> String {
        let Stamp { cluster, authority, node } = self;
        let mut text = format!("{TITLE}{FORMAT}\ncluster {cluster}\nauthority {authority}\nnode {}\n", node.0);
        if incarnation != Incarnation::GENESIS {
            text.push_str(&format!("{INCARNATION}{:016x}\n", incarnation.0));
        }
        text
    }

    /// The incarnation that these bytes name, if they are this stamp.
    fn read(&self, found: &[u8]) -> Option<Incarnation> {
        let found = std::str::from_utf8(found).ok()?;
        let end = found.strip_prefix(self.text(Incarnation::GENESIS).as_str())?;
        if end.is_empty() {
            return Some(Incarnation::GENESIS);
        }
        let number = u64::from_str_radix(end.strip_prefix(INCARNATION)?.trim_end(), 16).ok()?;
        let incarnation = Incarnation(number);
        (number != 0 && self.text(incarnation) == found).then_some(incarnation)
    }

    /// What to say about a directory whose stamp is another one.
    fn refused(&self, path: &Path, found: &[u8]) -> Error {
        let found = String::from_utf8_lossy(found);
        let path = path.into();
        let format = found.strip_prefix(TITLE).and_then(|rest| rest.lines().next()?.parse().ok());
        match format {
            Some(format) if format != FORMAT => Error::OtherFormat { path, found: format, spoken: FORMAT },
            _ => {
                let expected = self.text(Incarnation::GENESIS);
                let problem = format!("holds \"{}\", this node is \"{}\"", shown(&found), shown(&expected));
                Error::ForeignData { path, problem }
            }
        }
    }
}

/// A locked data directory.
#[derive(Debug)]
pub struct DataFolder {
    path: PathBuf,
    incarnation: Incarnation,
    _lock: FolderLock,
}

/// A data directory that no other process uses as long as this lives.
#[derive(Debug)]
pub struct FolderLock(File);

impl FolderLock {
    /// Locks the directory, which must exist, or says that another process has it.
    pub fn take(path: &Path) -> Result<FolderLock> {
        let lock_path = path.join("lock");
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(&lock_path);
        let lock = lock.map_err(Error::file(&lock_path))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(FolderLock(lock)),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(Error::Locked { path: path.into() }),
            Err(error) => Err(Error::File { path: lock_path, source: error.into() }),
        }
    }
}

impl Drop for FolderLock {
    /// Not left to closing the file: a child that this process has forked and that has not begun its program yet has it open, too.
    fn drop(&mut self) {
        let _ = flock(&self.0, FlockOperation::Unlock);
    }
}

impl DataFolder {
    /// Locks the directory and checks its stamp. One without data gets its stamp if `first_start` or the marker in it says
    /// that it may; else it is refused, for the node's disk may have been lost.
    pub fn open(path: &Path, stamp: &Stamp, first_start: FirstStart) -> Result<DataFolder> {
        if first_start != FirstStart::No {
            fs::create_dir_all(path).map_err(Error::file(path))?;
        } else if !path.exists() {
            return Err(Error::NotInitialised { path: path.into() });
        }
        let lock = FolderLock::take(path)?;
        let mut folder = DataFolder { path: path.into(), incarnation: Incarnation::GENESIS, _lock: lock };
        folder.incarnation = folder.check_stamp(stamp, first_start)?;
        Ok(folder)
    }

    /// Which of the node's disks a directory is, by the stamp in it. Locks and changes nothing.
    pub fn disk_of(path: &Path, stamp: &Stamp) -> Result<Incarnation> {
        let file = path.join("stamp");
        let found = fs::read(&file).map_err(Error::file(&file))?;
        stamp.read(&found).ok_or_else(|| stamp.refused(path, &found))
    }

    /// Which of the node's disks this is, as was written when it was formatted.
    pub fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    /// Where the log lives.
    pub fn log(&self) -> PathBuf {
        self.path.join("log")
    }

    /// Where the state lives.
    pub fn state(&self) -> PathBuf {
        self.path.join("state")
    }

    /// Where is written which groups have a replica here.
    pub fn hosting(&self) -> PathBuf {
        self.path.join(HOSTING)
    }

    /// Where is written who belongs to the groups, as far as known.
    pub fn directory(&self) -> PathBuf {
        self.path.join(MEMBERS)
    }

    fn check_stamp(&self, stamp: &Stamp, first_start: FirstStart) -> Result<Incarnation> {
        let path = self.path.join("stamp");
        let marker = self.path.join(INITIALISE_MARKER);
        let incarnation = match fs::read(&path) {
            Ok(found) => stamp.read(&found).ok_or_else(|| stamp.refused(&self.path, &found))?,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                if self.log().exists() || self.state().exists() {
                    let problem = "there are data without the stamp that says whose they are".into();
                    return Err(Error::ForeignData { path: self.path.clone(), problem });
                }
                // Whoever says that the disk is a new one is believed before the marker, which may have been copied back.
                let incarnation = match first_start {
                    FirstStart::NewDisk => draw_incarnation(),
                    FirstStart::Founding => Incarnation::GENESIS,
                    FirstStart::No if marker.exists() => Incarnation::GENESIS,
                    FirstStart::No => return Err(Error::NotInitialised { path: self.path.clone() }),
                };
                self.write_stamp(&path, &stamp.text(incarnation)).map_err(Error::file(&path))?;
                incarnation
            }
            Err(source) => return Err(Error::File { path, source }),
        };
        match fs::remove_file(&marker) {
            Ok(()) => File::open(&self.path).and_then(|folder| folder.sync_all()).map_err(Error::file(&marker))?,
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(source) => return Err(Error::File { path: marker, source }),
        }
        Ok(incarnation)
    }

    /// Durable, the directory's own name included.
    fn write_stamp(&self, path: &Path, stamp: &str) -> std::io::Result<()> {
        let unfinished = self.path.join("stamp.new");
        let mut file = File::create(&unfinished)?;
        file.write_all(stamp.as_bytes())?;
        file.sync_all()?;
        fs::rename(&unfinished, path)?;
        File::open(&self.path)?.sync_all()?;
        match self.path.canonicalize()?.parent() {
            Some(parent) => File::open(parent)?.sync_all(),
            None => Ok(()),
        }
    }
}

/// One that no disk has had, and not that of the founding.
fn draw_incarnation() -> Incarnation {
    Incarnation(crate::random_u64().max(1))
}

/// A stamp in one line; it may be anything that is called so.
fn shown(stamp: &str) -> String {
    stamp.trim().chars().take(300).collect::<String>().replace('\n', ", ")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn stamp(cluster: &str, authority: &str, node: u32) -> Stamp {
        Stamp { cluster: cluster.into(), authority: authority.into(), node: ReplicaId(node) }
    }

    #[test]
    fn folder_is_free_once_closed_though_a_forked_child_has_its_lock_open() {
        let folder = tempfile::tempdir().unwrap();
        let lock = FolderLock::take(folder.path()).unwrap();
        // As a child has it until it begins its program.
        let _inherited = lock.0.try_clone().unwrap();
        assert!(FolderLock::take(folder.path()).is_err());
        drop(lock);
        FolderLock::take(folder.path()).unwrap();
    }

    #[test]
    fn folder_in_use_or_of_another_node_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let open = |cluster, authority, node| {
            DataFolder::open(folder.path(), &stamp(cluster, authority, node), FirstStart::Founding)
        };
        let held = open("c", "a", 1).unwrap();
        assert!(matches!(open("c", "a", 1), Err(Error::Locked { .. })));
        drop(held);
        assert!(matches!(open("c", "a", 2), Err(Error::ForeignData { .. })));
        assert!(matches!(open("d", "a", 1), Err(Error::ForeignData { .. })));
        assert!(matches!(open("c", "b", 1), Err(Error::ForeignData { .. })), "same name, another authority");
        assert!(open("c", "a", 1).is_ok());
        fs::create_dir(folder.path().join("log")).unwrap();
        fs::remove_file(folder.path().join("stamp")).unwrap();
        assert!(matches!(open("c", "a", 1), Err(Error::ForeignData { .. })));
    }

    #[test]
    fn folder_without_data_is_initialised_once_and_on_demand_only() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("node");
        let open = |first| DataFolder::open(&folder, &stamp("c", "a", 1), first).map(|folder| folder.incarnation());
        let refused = open(FirstStart::No).unwrap_err();
        assert!(matches!(refused, Error::NotInitialised { .. }));
        assert!(refused.to_string().contains("--initialise"), "{refused}");
        assert!(!folder.exists());
        fs::create_dir(&folder).unwrap();
        assert!(matches!(open(FirstStart::No), Err(Error::NotInitialised { .. })));
        fs::write(folder.join(INITIALISE_MARKER), b"").unwrap();
        assert_eq!(open(FirstStart::No).unwrap(), Incarnation::GENESIS);
        assert!(!folder.join(INITIALISE_MARKER).exists());
        open(FirstStart::No).unwrap();
        // The disk is lost.
        fs::remove_dir_all(&folder).unwrap();
        fs::create_dir(&folder).unwrap();
        assert!(matches!(open(FirstStart::No), Err(Error::NotInitialised { .. })));
        let first = open(FirstStart::NewDisk).unwrap();
        assert_ne!(first, Incarnation::GENESIS, "a disk formatted later is not one of the founding");
        assert_eq!(open(FirstStart::No).unwrap(), first);
        assert_eq!(open(FirstStart::NewDisk).unwrap(), first, "it is formatted once");
        assert_eq!(open(FirstStart::Founding).unwrap(), first, "nor does it become one later");
        // Lost again, and a backup of the marker with it: the operator says that the disk is new.
        fs::remove_dir_all(&folder).unwrap();
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join(INITIALISE_MARKER), b"").unwrap();
        let second = open(FirstStart::NewDisk).unwrap();
        assert!(second != Incarnation::GENESIS && second != first);
        assert!(!folder.join(INITIALISE_MARKER).exists());
    }

    #[test]
    fn data_of_another_format_are_named_so_and_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let open = || DataFolder::open(folder.path(), &stamp("c", "a", 1), FirstStart::NewDisk);
        drop(open().unwrap());
        let path = folder.path().join("stamp");
        let now = fs::read_to_string(&path).unwrap();
        for format in [FORMAT - 1, FORMAT + 1] {
            let other = now.replace(&format!("format {FORMAT}\n"), &format!("format {format}\n"));
            assert_ne!(other, now);
            fs::write(&path, &other).unwrap();
            let refused = open().unwrap_err();
            assert!(
                matches!(refused, Error::OtherFormat { found, spoken: FORMAT, .. } if found == format),
                "{refused}"
            );
            assert_eq!(refused.class(), crate::ErrorClass::Caller, "nothing is damaged, so nothing may be set aside");
            assert_eq!(fs::read_to_string(&path).unwrap(), other);
        }
    }

    #[test]
    fn stamp_with_a_damaged_incarnation_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let open = || DataFolder::open(folder.path(), &stamp("c", "a", 1), FirstStart::NewDisk);
        drop(open().unwrap());
        let path = folder.path().join("stamp");
        let good = fs::read_to_string(&path).unwrap();
        for end in ["incarnation 0000000000000000\n", "incarnation 12\n", "incarnation \n", "incarnation", "x"] {
            let start = stamp("c", "a", 1).text(Incarnation::GENESIS);
            fs::write(&path, format!("{start}{end}")).unwrap();
            assert!(matches!(open(), Err(Error::ForeignData { .. })), "{end}");
        }
        fs::write(&path, good).unwrap();
        assert!(open().is_ok());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn folder_with_any_bytes_as_its_stamp_is_refused(bytes in proptest::collection::vec(any::<u8>(), 0..500)) {
            let folder = tempfile::tempdir().unwrap();
            fs::write(folder.path().join("stamp"), bytes).unwrap();
            let opened = DataFolder::open(folder.path(), &stamp("c", "a", 1), FirstStart::NewDisk);
            let refused = matches!(opened, Err(Error::ForeignData { .. }));
            prop_assert!(refused);
        }
    }
}
