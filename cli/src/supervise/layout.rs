//! Where an embedded cluster keeps what.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::config::find;
use crate::exit::Result;

/// The folders of `globalfs up`.
#[derive(Clone, Debug)]
pub struct Layout {
    /// The data folder, absolute.
    pub data: PathBuf,
    /// The folder of the mount points, absolute.
    pub mounts: PathBuf,
}

impl Layout {
    /// The folders, created if missing.
    pub fn prepare(data: &Path, mounts: Option<&Path>) -> Result<Layout> {
        fs::create_dir_all(data).with_context(|| format!("data folder {}", data.display()))?;
        let data = fs::canonicalize(data).with_context(|| data.display().to_string())?;
        let mounts = match mounts {
            Some(mounts) => {
                fs::create_dir_all(mounts).with_context(|| format!("folder of mounts {}", mounts.display()))?;
                fs::canonicalize(mounts).with_context(|| mounts.display().to_string())?
            }
            None => data.join("mnt"),
        };
        let layout = Layout { data, mounts };
        for folder in [layout.data.join("log"), layout.run()] {
            fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        }
        Ok(layout)
    }

    /// `cluster.toml`.
    pub fn config(&self) -> PathBuf {
        self.data.join(find::FILE_NAME)
    }

    /// A process's log.
    pub fn log(&self, name: &str) -> PathBuf {
        self.data.join("log").join(format!("{name}.log"))
    }

    /// The folder of pid files.
    pub fn run(&self) -> PathBuf {
        self.data.join("run")
    }

    /// A process's pid file.
    pub fn pid_file(&self, name: &str) -> PathBuf {
        self.run().join(format!("{name}.pid"))
    }

    /// A region's mount point.
    pub fn mount_point(&self, region: &str) -> PathBuf {
        self.mounts.join(region)
    }

    /// A mount's blobs on disk.
    pub fn cache(&self, region: &str) -> PathBuf {
        self.data.join("cache").join(region)
    }
}
