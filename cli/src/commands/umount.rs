//! `globalfs umount`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use crate::exit::{Exit, Failure, Result};
use crate::mounts;

/// How long the mount table may take to follow.
const PATIENCE: Duration = Duration::from_secs(5);

/// Options.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  globalfs umount /mnt/globalfs
  globalfs umount --force /mnt/globalfs      also if it is in use, or its process is dead or hangs")]
pub struct UmountArgs {
    /// Where it is mounted
    mountpoint: PathBuf,
    /// Take it away from those who use it; calls under way fail. What was closed or synced is safe
    #[arg(long, short)]
    force: bool,
}

/// Unmounts. Never looks into the mount: it may be dead.
pub fn run(args: &UmountArgs) -> Result<Exit> {
    let shown = args.mountpoint.display();
    let entry = mounts::mounted_at(&args.mountpoint)?;
    let Some(entry) = entry.filter(|entry| entry.fs_type == mounts::FS_TYPE) else {
        return Err(Failure::new(Exit::Failed, format!("no GlobalFS is mounted at {shown}")));
    };
    if args.force {
        mounts::detach_all(&entry.point)?;
        return Ok(Exit::Done);
    }
    if let Err(error) = mounts::detach_idle(&entry) {
        if error.kind() == std::io::ErrorKind::ResourceBusy {
            return Err(Failure::new(Exit::Exists, format!("{shown} is in use; --force unmounts it nevertheless")));
        }
        return Err(anyhow::Error::from(error).context(format!("unmount {shown}")).into());
    }
    if !mounts::wait_unmounted(&entry.point, PATIENCE)? {
        return Err(Failure::new(Exit::TimedOut, format!("{shown} is still mounted")));
    }
    Ok(Exit::Done)
}
