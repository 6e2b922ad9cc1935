//! A node's data directory: one process at a time, and only the node to which it belongs.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use multicast::ids::ReplicaId;
use rustix::fs::{FlockOperation, flock};

use crate::error::{Error, Result};

const FORMAT: u32 = 1;

/// A locked data directory.
#[derive(Debug)]
pub struct DataFolder {
    path: PathBuf,
    /// The lock goes with it.
    _lock: File,
}

impl DataFolder {
    /// Locks the directory, which is made if missing, and checks or writes its stamp.
    pub fn open(path: &Path, cluster: &str, node: ReplicaId) -> Result<DataFolder> {
        fs::create_dir_all(path).map_err(Error::file(path))?;
        let lock_path = path.join("lock");
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(&lock_path);
        let lock = lock.map_err(Error::file(&lock_path))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(Error::Locked { path: path.into() }),
            Err(error) => return Err(Error::File { path: lock_path, source: error.into() }),
        }
        let folder = DataFolder { path: path.into(), _lock: lock };
        folder.check_stamp(&format!("globalfs node data\nformat {FORMAT}\ncluster {cluster}\nnode {}\n", node.0))?;
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

    fn check_stamp(&self, expected: &str) -> Result<()> {
        let path = self.path.join("stamp");
        match fs::read_to_string(&path) {
            Ok(found) if found == expected => Ok(()),
            Ok(found) => {
                let (found, expected) = (found.trim().replace('\n', ", "), expected.trim().replace('\n', ", "));
                let problem = format!("holds \"{found}\", this node is \"{expected}\"");
                Err(Error::ForeignData { path: self.path.clone(), problem })
            }
            Err(error) if error.kind() == ErrorKind::NotFound => self.write_stamp(&path, expected),
            Err(source) => Err(Error::File { path, source }),
        }
    }

    fn write_stamp(&self, path: &Path, stamp: &str) -> Result<()> {
        if self.log().exists() || self.state().exists() {
            let problem = "there are data without the stamp that says whose they are".into();
            return Err(Error::ForeignData { path: self.path.clone(), problem });
        }
        let unfinished = self.path.join("stamp.new");
        let write = || {
            let mut file = File::create(&unfinished)?;
            file.write_all(stamp.as_bytes())?;
            file.sync_all()?;
            fs::rename(&unfinished, path)?;
            File::open(&self.path)?.sync_all()
        };
        write().map_err(Error::file(path))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn folder_in_use_or_of_another_node_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let open = |cluster, node| DataFolder::open(folder.path(), cluster, ReplicaId(node));
        let held = open("c", 1).unwrap();
        assert!(matches!(open("c", 1), Err(Error::Locked { .. })));
        drop(held);
        assert!(matches!(open("c", 2), Err(Error::ForeignData { .. })));
        assert!(matches!(open("d", 1), Err(Error::ForeignData { .. })));
        assert!(open("c", 1).is_ok());
        fs::create_dir(folder.path().join("log")).unwrap();
        fs::remove_file(folder.path().join("stamp")).unwrap();
        assert!(matches!(open("c", 1), Err(Error::ForeignData { .. })));
    }
}
