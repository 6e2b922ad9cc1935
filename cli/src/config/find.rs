//! Which cluster a command means.

use std::path::Path;

use super::Cluster;
use crate::exit::{Exit, Failure, Result};
use crate::mounts;

/// Where `globalfs up` keeps everything unless told otherwise.
pub const DATA_DEFAULT: &str = "./globalfs-data";
/// The configuration in such a folder.
pub const FILE_NAME: &str = "cluster.toml";

/// The cluster of `--config` or `GLOBALFS_CONFIG`, else of the mount that holds `path` or the current folder, else of
/// the default data folder.
pub fn cluster(config: Option<&Path>, path: Option<&Path>) -> Result<Cluster> {
    cluster_and_region(config, path).map(|(cluster, _)| cluster)
}

/// As [`cluster`], with the region of the mount that told.
pub fn cluster_and_region(config: Option<&Path>, path: Option<&Path>) -> Result<(Cluster, Option<String>)> {
    if let Some(config) = config {
        return Ok((Cluster::load(config)?, None));
    }
    for place in path.into_iter().chain([Path::new(".")]) {
        if let Some((region, config)) = mounts::holding(place)?.and_then(|entry| entry.origin()) {
            return Ok((Cluster::load(&config)?, Some(region)));
        }
    }
    let default = Path::new(DATA_DEFAULT).join(FILE_NAME);
    if default.exists() {
        return Ok((Cluster::load(&default)?, None));
    }
    Err(Failure::new(
        Exit::Config,
        format!(
            "no cluster is named: give --config FILE or GLOBALFS_CONFIG, or run this inside a mount or beside {}",
            default.display()
        ),
    ))
}
