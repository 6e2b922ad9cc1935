//! A node's data directory: one process at a time, and only the node to which it belongs.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use multicast::ids::ReplicaId;
use rustix::fs::{FlockOperation, flock};

use crate::error::{Error, Result};

const FORMAT: u32 = 2;
/// Whoever makes a cluster leaves a file of this name in the data directories of its nodes: the first start may initialise
/// them. It is gone afterwards, so that a directory that was emptied is not taken for a new one.
pub const INITIALISE_MARKER: &str = "initialise";

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
    fn text(&self) -> String {
        let Stamp { cluster, authority, node } = self;
        format!("globalfs node data\nformat {FORMAT}\ncluster {cluster}\nauthority {authority}\nnode {}\n", node.0)
    }
}

/// A locked data directory.
#[derive(Debug)]
pub struct DataFolder {
    path: PathBuf,
    /// The lock goes with it.
    _lock: File,
}

impl DataFolder {
    /// Locks the directory and checks its stamp. One without data gets its stamp if `initialise` or the marker in it says
    /// that this is the node's first start; else it is refused, for the node's disk may have been lost.
    pub fn open(path: &Path, stamp: &Stamp, initialise: bool) -> Result<DataFolder> {
        if initialise {
            fs::create_dir_all(path).map_err(Error::file(path))?;
        } else if !path.exists() {
            return Err(Error::NotInitialised { path: path.into() });
        }
        let lock_path = path.join("lock");
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(&lock_path);
        let lock = lock.map_err(Error::file(&lock_path))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(Error::Locked { path: path.into() }),
            Err(error) => return Err(Error::File { path: lock_path, source: error.into() }),
        }
        let folder = DataFolder { path: path.into(), _lock: lock };
        folder.check_stamp(&stamp.text(), initialise)?;
        Ok(folder)
    }

    /// Where the log lives.
    pub fn log(&self) -> PathBuf {
        self.path.join("log")
    }

    /// Where the state lives.
    pub fn state(&self) -> PathBuf {
        self.path.join("state")
    }

    fn check_stamp(&self, expected: &str, initialise: bool) -> Result<()> {
        let path = self.path.join("stamp");
        let marker = self.path.join(INITIALISE_MARKER);
        match fs::read(&path) {
            Ok(found) if found == expected.as_bytes() => {}
            Ok(found) => {
                let (found, expected) = (shown(&String::from_utf8_lossy(&found)), shown(expected));
                let problem = format!("holds \"{found}\", this node is \"{expected}\"");
                return Err(Error::ForeignData { path: self.path.clone(), problem });
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                if self.log().exists() || self.state().exists() {
                    let problem = "there are data without the stamp that says whose they are".into();
                    return Err(Error::ForeignData { path: self.path.clone(), problem });
                }
                if !initialise && !marker.exists() {
                    return Err(Error::NotInitialised { path: self.path.clone() });
                }
                self.write_stamp(&path, expected).map_err(Error::file(&path))?;
            }
            Err(source) => return Err(Error::File { path, source }),
        }
        match fs::remove_file(&marker) {
            Ok(()) => File::open(&self.path).and_then(|folder| folder.sync_all()).map_err(Error::file(&marker)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Err(source) => Err(Error::File { path: marker, source }),
        }
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
    fn folder_in_use_or_of_another_node_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let open = |cluster, authority, node| DataFolder::open(folder.path(), &stamp(cluster, authority, node), true);
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
        let open = |initialise| DataFolder::open(&folder, &stamp("c", "a", 1), initialise).map(|_| ());
        let refused = open(false).unwrap_err();
        assert!(matches!(refused, Error::NotInitialised { .. }));
        assert!(refused.to_string().contains("--initialise"), "{refused}");
        assert!(!folder.exists());
        fs::create_dir(&folder).unwrap();
        assert!(matches!(open(false), Err(Error::NotInitialised { .. })));
        fs::write(folder.join(INITIALISE_MARKER), b"").unwrap();
        open(false).unwrap();
        assert!(!folder.join(INITIALISE_MARKER).exists());
        open(false).unwrap();
        // The disk is lost.
        fs::remove_dir_all(&folder).unwrap();
        fs::create_dir(&folder).unwrap();
        assert!(matches!(open(false), Err(Error::NotInitialised { .. })));
        open(true).unwrap();
        open(false).unwrap();
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn folder_with_any_bytes_as_its_stamp_is_refused(bytes in proptest::collection::vec(any::<u8>(), 0..500)) {
            let folder = tempfile::tempdir().unwrap();
            fs::write(folder.path().join("stamp"), bytes).unwrap();
            let opened = DataFolder::open(folder.path(), &stamp("c", "a", 1), true);
            let refused = matches!(opened, Err(Error::ForeignData { .. }));
            prop_assert!(refused);
        }
    }
}
