//! `globalfs place`: where subtrees live.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};
use fs_client::{Client, Errno, Error};
use serde_json::json;
use tokio::time::Instant;

use super::client::{self, Wishes};
use super::service::{self, Parent};
use crate::args::Globals;
use crate::config::{Cluster, Placement, find};
use crate::exit::{Exit, Failure, Result};
use crate::mounts;
use crate::output::{Table, say, say_all};
use crate::units::TimeSpan;

const DIRECTORY_MODE: u16 = 0o755;
/// What a mount has just made may not have reached the replica that answers here.
const CATCH_UP: Duration = Duration::from_secs(5);
const CATCH_UP_PAUSE: Duration = Duration::from_millis(50);

/// Options.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  globalfs place list
  globalfs place set /mnt/globalfs/projects --group eu      a path in a mount
  globalfs --config cluster.toml place set /projects --group eu
  globalfs place apply                                      create the configuration's placements")]
pub struct PlaceArgs {
    #[command(subcommand)]
    action: Action,
    /// How long to wait for nodes
    #[arg(long, global = true, value_name = "TIME", default_value = "30s")]
    deadline: TimeSpan,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Place a directory on a group; what is in it moves there, also subtrees that were placed elsewhere
    #[command(after_help = "Examples:
  globalfs place set /mnt/globalfs/projects --group eu
  globalfs place set --no-move /mnt/globalfs/projects --group eu      only what is new lives there
  globalfs --config cluster.toml place set /projects --group eu       a path in the volume")]
    Set {
        /// The directory: a path in a mount, or with --config a path in the volume
        path: PathBuf,
        /// The group
        #[arg(long)]
        group: String,
        /// Only what is created from now on
        #[arg(long)]
        no_move: bool,
        /// What was done, as one JSON object
        #[arg(long)]
        json: bool,
    },
    /// List directories that are placed otherwise than their parents
    #[command(after_help = "Examples:
  globalfs place list
  globalfs place list --depth 5 --json | jq '.placements[] | select(.group == \"eu\") | .path'")]
    List {
        /// How many levels below the root to look
        #[arg(long, default_value_t = 2, value_name = "N")]
        depth: usize,
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
    /// Create the directories that the configuration places, where they are missing
    #[command(after_help = "Examples:\n  globalfs --config /etc/globalfs/cluster.toml place apply")]
    Apply {
        #[command(flatten)]
        parent: Parent,
    },
}

/// Runs one action with a client of its own.
pub fn run(globals: &Globals, args: &PlaceArgs) -> Result<Exit> {
    let runtime = service::runtime()?;
    match &args.action {
        Action::Set { path, group, no_move, json } => {
            let target = Target::find(globals, path)?;
            let group = target.cluster.group(group)?.clone();
            if target.path == "/" && !no_move {
                let problem = "the root stays where it is, and so do the subtrees placed below it; with --no-move what is \
                               created in it from now on lives on that group";
                return Err(Failure::new(Exit::Usage, problem));
            }
            let wishes = Wishes::tool(&target.cluster, target.region.as_deref(), args.deadline.0)?;
            runtime.block_on(with_client(&target.cluster, &wishes, async |client| {
                target.await_seen(client).await;
                let moved = client.set_placement(&target.path, group.id, !no_move).await;
                let moved = moved.map_err(|error| client::path_failure(&target.path, error))?;
                match json {
                    true => {
                        say!("{}", json!({ "schema": 1, "path": target.path, "group": group.name, "moved": moved }))
                    }
                    false => say!("{} is placed on group {}; {moved} inodes moved", target.path, group.name),
                }
                Ok(Exit::Done)
            }))
        }
        Action::List { depth, json } => {
            let (cluster, region) = find::cluster_and_region(globals.config.as_deref(), None)?;
            let wishes = Wishes::tool(&cluster, region.as_deref(), args.deadline.0)?;
            runtime.block_on(with_client(&cluster, &wishes, async |client| list(client, &cluster, *depth, *json).await))
        }
        Action::Apply { parent } => {
            parent.bind()?;
            let (cluster, region) = find::cluster_and_region(globals.config.as_deref(), None)?;
            let wishes = Wishes::tool(&cluster, region.as_deref(), args.deadline.0)?;
            runtime.block_on(with_client(&cluster, &wishes, async |client| {
                for placement in &cluster.placements {
                    apply(client, &cluster, placement).await?;
                }
                Ok(Exit::Done)
            }))
        }
    }
}

/// Connects, works, says goodbye.
pub async fn with_client(
    cluster: &Cluster,
    wishes: &Wishes,
    work: impl AsyncFnOnce(&Client) -> Result<Exit>,
) -> Result<Exit> {
    let client = client::connect(cluster, wishes)?;
    let done = work(&client).await;
    if let Err(error) = client.close().await {
        tracing::debug!(%error, "closing the client");
    }
    done
}

/// A path that a command was given, as the volume knows it.
pub struct Target {
    /// Its cluster.
    pub cluster: Cluster,
    /// The region of the mount, if the path is in one.
    pub region: Option<String>,
    /// The path in the volume.
    pub path: String,
    seen_in_mount: bool,
}

impl Target {
    /// A path in a mount, or with a configuration given a path in the volume.
    pub fn find(globals: &Globals, path: &Path) -> Result<Target> {
        if let Some(entry) = mounts::holding(path)? {
            let (region, config) = entry
                .origin()
                .ok_or_else(|| Failure::new(Exit::Config, "the mount does not name its configuration"))?;
            let cluster = Cluster::load(globals.config.as_deref().unwrap_or(&config))?;
            let seen_in_mount = path.symlink_metadata().is_ok();
            let path = mounts::volume_path(&entry, path)?;
            return Ok(Target { cluster, region: Some(region), path, seen_in_mount });
        }
        let text = path.to_str().filter(|text| text.starts_with('/'));
        let Some(text) = text else {
            let problem = format!("{} is neither in a mount nor an absolute path in the volume", path.display());
            return Err(Failure::new(Exit::Usage, problem));
        };
        let (cluster, region) = find::cluster_and_region(globals.config.as_deref(), None)?;
        Ok(Target { cluster, region, path: text.into(), seen_in_mount: false })
    }

    /// What the mount shows this client must see too: waits until it does.
    pub async fn await_seen(&self, client: &Client) {
        if !self.seen_in_mount {
            return;
        }
        let until = Instant::now() + CATCH_UP;
        while let Err(Error::Posix(Errno::ENOENT)) = client.stat(&self.path).await {
            if Instant::now() >= until {
                return;
            }
            tokio::time::sleep(CATCH_UP_PAUSE).await;
        }
    }
}

async fn apply(client: &Client, cluster: &Cluster, placement: &Placement) -> Result {
    let created = client.mkdir(&placement.path, DIRECTORY_MODE, Some(placement.group)).await;
    match created {
        Ok(_) => {
            say!("{} created on group {}", placement.path, cluster.group_name(placement.group));
            Ok(())
        }
        // It belongs to its users now: its placement may have been changed on purpose.
        Err(Error::Posix(Errno::EEXIST)) => Ok(()),
        Err(error) => Err(client::path_failure(&placement.path, error)),
    }
}

async fn list(client: &Client, cluster: &Cluster, depth: usize, json: bool) -> Result<Exit> {
    let placed = client.placements(depth).await.map_err(client::client_failure)?;
    if json {
        let rows: Vec<_> = placed
            .iter()
            .map(|placed| {
                let (group, home) = (cluster.group_name(placed.placement), cluster.group_name(placed.home));
                json!({ "path": placed.path, "group": group, "home": home })
            })
            .collect();
        say!("{}", json!({ "schema": 1, "placements": rows }));
        return Ok(Exit::Done);
    }
    let mut table = Table::new(["path", "children live on", "lives on", "regions"]);
    for placed in &placed {
        let regions = cluster.groups.get(usize::from(placed.placement.0)).map(|group| cluster.group_regions(group));
        table.row(vec![
            placed.path.clone(),
            cluster.group_name(placed.placement),
            cluster.group_name(placed.home),
            regions.unwrap_or_default().join(","),
        ]);
    }
    say_all(&table.render());
    Ok(Exit::Done)
}
