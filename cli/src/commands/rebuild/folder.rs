//! The folder of a node that begins anew, which comes to that in steps. Where it is, a file in the folder says, and whoever starts
//! the node goes on from there: the power may go off between any two steps, and in the middle of one.
//!
//! 1. Everything that the replicas had is moved into a folder beside it. That is decided once, before the first file moves:
//!    nothing runs here until all are gone, so what made them dispensable stays true.
//! 2. The disk is a new one. It is formatted, and the node runs; but of what it is to its groups it knows only what the
//!    configuration says, until the other nodes have been asked.
//! 3. The file is gone. What had moved lies there for people to look at.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;
use serde::{Deserialize, Serialize};

use super::MARKER;
use crate::exit::{Exit, Failure, Result};

/// The file.
const NAME: &str = "anew";
/// What moves. The stamp first: data without it are refused by who does not know of all this, whereas an empty log under the old
/// stamp would pass for one that has promised nothing.
const MOVED: [&str; 5] = ["stamp", "log", "state", "replicas", MARKER];
const ASIDE: &str = "damaged-";

/// Where a folder is on its way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// What it holds is moved into this folder in it.
    SetAside(String),
    /// It is a new disk, whose groups have not all said what it is to them.
    NewDisk,
}

/// Where it is, if it is on that way.
pub fn step(data: &Path) -> Result<Option<Step>> {
    let path = data.join(NAME);
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Failure::from(anyhow::Error::from(error).context(path.display().to_string()))),
    };
    let step: Option<Step> = serde_json::from_slice(&text).ok();
    let is_sane = |step: &Step| match step {
        Step::SetAside(into) => into.strip_prefix(ASIDE).is_some_and(|time| time.parse::<u64>().is_ok()),
        Step::NewDisk => true,
    };
    step.filter(is_sane).map(Some).ok_or_else(|| {
        let problem = "this file says how far the node has come that begins anew; it is damaged. Start the node with an empty \
                       folder and --initialise";
        Failure::new(Exit::Problems, format!("{}: {problem}", path.display()))
    })
}

/// True if nothing that replicas have is there.
pub fn is_empty(data: &Path) -> bool {
    MOVED.iter().all(|name| !data.join(name).exists())
}

/// The first step: from now on all that the folder holds is to be moved away. Gives where to.
pub fn condemn(data: &Path) -> Result<String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let into = format!("{ASIDE}{now}");
    note(data, &Step::SetAside(into.clone()))?;
    Ok(into)
}

/// Moves all that is still there, after which the disk is a new one.
pub fn set_aside(data: &Path, into: &str) -> Result<PathBuf> {
    let aside = data.join(into);
    let doing = || format!("setting damaged files aside in {}", aside.display());
    fs::create_dir_all(&aside).with_context(doing)?;
    for name in MOVED {
        let from = data.join(name);
        if from.exists() {
            fs::rename(from, aside.join(name)).with_context(doing)?;
            sync(&aside).and_then(|()| sync(data)).with_context(doing)?;
        }
    }
    note(data, &Step::NewDisk)?;
    Ok(aside)
}

/// An empty folder becomes a new disk's.
pub fn prepare(data: &Path) -> Result {
    fs::create_dir_all(data).with_context(|| data.display().to_string())?;
    note(data, &Step::NewDisk)
}

/// The groups have all said what the node is to them.
pub fn finish(data: &Path) -> Result {
    let path = data.join(NAME);
    fs::remove_file(&path).and_then(|()| sync(data)).with_context(|| path.display().to_string())?;
    Ok(())
}

/// Durable on return: whoever starts the node next must know, also after a power loss.
pub fn mark(data: &Path, failure: &str) -> std::io::Result<()> {
    let mut file = File::create(data.join(MARKER))?;
    file.write_all(failure.as_bytes())?;
    file.sync_all()?;
    sync(data)
}

/// Durable on return; a crash leaves the old one or the new one.
fn note(data: &Path, step: &Step) -> Result {
    let (path, unfinished) = (data.join(NAME), data.join("anew.new"));
    let text = serde_json::to_vec(step).context("saying how far it is")?;
    let write = || {
        let mut file = File::create(&unfinished)?;
        file.write_all(&text)?;
        file.sync_all()?;
        fs::rename(&unfinished, &path)?;
        sync(data)
    };
    write().with_context(|| path.display().to_string())?;
    Ok(())
}

fn sync(folder: &Path) -> std::io::Result<()> {
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn folder(names: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for name in names {
            match *name {
                "log" | "state" => fs::create_dir(folder.path().join(name)).unwrap(),
                _ => fs::write(folder.path().join(name), name).unwrap(),
            }
        }
        folder
    }

    #[test]
    fn damaged_files_are_kept_aside_wherever_the_power_went_off() {
        // Not noted yet: everything is there, and is found damaged again.
        let begun = folder(&MOVED);
        fs::write(begun.path().join("anew.new"), b"{").unwrap();
        assert_eq!(step(begun.path()).unwrap(), None);
        let into = condemn(begun.path()).unwrap();
        assert_eq!(step(begun.path()).unwrap(), Some(Step::SetAside(into)));
        // From then on, whatever has moved, and also before there is a folder for it.
        for moved in 0..=MOVED.len() {
            let folder = folder(&[&MOVED[..], &["lock", "members"]].concat());
            let (data, into) = (folder.path(), condemn(folder.path()).unwrap());
            for name in &MOVED[..moved] {
                fs::create_dir_all(data.join(&into)).unwrap();
                fs::rename(data.join(name), data.join(&into).join(name)).unwrap();
            }
            let Some(Step::SetAside(found)) = step(data).unwrap() else { panic!("{moved} have moved") };
            let aside = set_aside(data, &found).unwrap();
            assert_eq!(aside, data.join(&into));
            assert!(MOVED.iter().all(|name| aside.join(name).exists()) && is_empty(data));
            assert!(data.join("lock").exists() && data.join("members").exists());
            assert_eq!(step(data).unwrap(), Some(Step::NewDisk));
            finish(data).unwrap();
            assert_eq!(step(data).unwrap(), None);
        }
    }

    #[test]
    fn new_disk_is_one_until_its_groups_have_spoken() {
        let parent = tempfile::tempdir().unwrap();
        let data = parent.path().join("node");
        assert!(is_empty(&data));
        prepare(&data).unwrap();
        assert!(is_empty(&data));
        assert_eq!(step(&data).unwrap(), Some(Step::NewDisk));
        fs::write(data.join("stamp"), b"formatted").unwrap();
        assert_eq!(step(&data).unwrap(), Some(Step::NewDisk));
        assert!(!is_empty(&data));
    }

    #[test]
    fn file_that_says_anything_else_is_refused() {
        let folder = folder(&MOVED);
        for text in ["", "\"old_disk\"", "{\"set_aside\":\"../x\"}", "{\"set_aside\":\"damaged-1/../..\"}", "\0\0"] {
            fs::write(folder.path().join(NAME), text).unwrap();
            assert_eq!(step(folder.path()).unwrap_err().exit, Exit::Problems, "{text}");
        }
    }
}
