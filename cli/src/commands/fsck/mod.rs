//! `globalfs fsck`: looks at everything that a cluster has, and says what should not be.

mod buckets;
mod look;
mod offline;
mod online;
mod rebuild;
mod report;
mod spill;

use clap::Args;

use crate::args::Globals;
use crate::config::find;
use crate::exit::{Exit, Failure, Result};
use crate::units::TimeSpan;

/// Options.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  globalfs fsck --online                                  a cluster that runs, while it is used
  globalfs fsck --online --json | jq '.problems[]'
  globalfs --config /etc/globalfs/cluster.toml fsck       the folders of nodes that are stopped, on this machine
  globalfs fsck --node us-1                               one node's folder only
  globalfs fsck --online --repair                         says what --repair --yes would do
  globalfs fsck --online --repair --yes

Looked at are: names, inodes and link counts of all groups together; the pieces of files and the blobs in the regions' buckets (that they
are there and have their length; reading a file checks its bytes); each replica's rows against its digest, and the digests of a group's
replicas against each other; commands that are not finished; of stopped nodes also the checksums of logs and tables.

Nothing is changed without --repair --yes. Memory: about 40 bytes for each directory, and 100 MiB; what is beyond that is put aside in
the folder for temporary files, some 50 bytes for each name, inode and piece of a file.

Exit code 0 if all is well, 5 if something is wrong, 6 if nothing wrong was found but something could not be looked at.")]
pub struct FsckArgs {
    /// A cluster that runs; else the data folders of stopped nodes
    #[arg(long)]
    online: bool,
    /// One JSON object
    #[arg(long)]
    json: bool,
    /// Only this node's folder; may be given several times [default: every node whose folder is on this machine]
    #[arg(long, value_name = "NAME", conflicts_with = "online")]
    node: Vec<String>,
    /// Mend what can be mended while the cluster runs: delete blobs that nothing refers to, have replicas with wrong rows rebuilt
    /// from their groups
    #[arg(long, requires = "online")]
    repair: bool,
    /// Do it, and not only say what would be done
    #[arg(long, requires = "repair")]
    yes: bool,
    /// A command that is unfinished for longer is a problem
    #[arg(long, value_name = "TIME", default_value = "60s")]
    patience: TimeSpan,
    /// How long to wait for a node, or for a part of an answer
    #[arg(long, value_name = "TIME", default_value = "30s")]
    timeout: TimeSpan,
}

/// Looks, and says what was found.
pub fn run(globals: &Globals, args: &FsckArgs) -> Result<Exit> {
    let (cluster, region) = find::cluster_and_region(globals.config.as_deref(), None)?;
    let report = if args.online {
        online::run(&cluster, region.as_deref(), args)?
    } else {
        for name in &args.node {
            cluster.node(name)?;
        }
        offline::run(&cluster, &args.node)?
    };
    report.say(args.json);
    Ok(report.verdict())
}

fn failed(error: impl std::fmt::Display) -> Failure {
    Failure::new(Exit::Failed, error)
}
