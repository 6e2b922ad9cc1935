//! One supervisor per data folder.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::Path;

use anyhow::Context;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::exit::{Exit, Failure, Result};

/// Held while the supervisor lives, however it ends.
#[derive(Debug)]
pub struct DataLock {
    _file: File,
}

impl DataLock {
    /// Takes the lock, or tells who has it.
    pub fn take(run: &Path, data: &Path) -> Result<DataLock> {
        let path = run.join("up.pid");
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(false).open(&path);
        let mut file = file.with_context(|| path.display().to_string())?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                let mut holder = String::new();
                let _ = (&file).take(32).read_to_string(&mut holder);
                let holder = holder.trim();
                let who = if holder.is_empty() { String::new() } else { format!(" (pid {holder})") };
                let problem = format!("another `globalfs up` runs on {}{who}", data.display());
                return Err(Failure::new(Exit::Exists, problem));
            }
            Err(error) => return Err(anyhow::Error::from(error).context(path.display().to_string()).into()),
        }
        file.set_len(0)
            .and_then(|()| writeln!(file, "{}", std::process::id()))
            .with_context(|| path.display().to_string())?;
        Ok(DataLock { _file: file })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn second_lock_is_refused_until_the_first_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let first = DataLock::take(folder.path(), folder.path()).unwrap();
        let refused = DataLock::take(folder.path(), folder.path()).unwrap_err();
        assert_eq!(refused.exit, Exit::Exists);
        assert!(refused.error.to_string().contains(&std::process::id().to_string()));
        drop(first);
        DataLock::take(folder.path(), folder.path()).unwrap();
    }
}
