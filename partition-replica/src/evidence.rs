//! What a data folder still tells of its replicas when its log or state cannot be read.

use std::collections::{BTreeMap, BTreeSet};

use multicast::Membership;
use multicast::ids::GroupId;

use crate::config::NodeConfig;
use crate::error::Result;
use crate::members::Members;
use crate::recovery;
use crate::storage::folder::{DataFolder, HOSTING, MEMBERS};
use crate::storage::hosting::Hosting;

/// See the module.
#[derive(Debug)]
pub struct Evidence {
    /// The groups with a replica on this disk; none others' promises are on it. An error: that cannot be read either, and
    /// it may be any.
    pub hosted: Result<BTreeSet<GroupId>>,
    /// The groups' members where those are others than at the founding, as the node knew them last. A hint.
    pub members: BTreeMap<GroupId, Membership>,
}

impl Evidence {
    /// Reads it, and changes nothing.
    #[must_use]
    pub fn of(config: &NodeConfig) -> Evidence {
        let members = Members::open(config.data_dir.join(MEMBERS)).map(|members| members.all());
        Evidence { hosted: hosted(config), members: members.unwrap_or_default() }
    }
}

fn hosted(config: &NodeConfig) -> Result<BTreeSet<GroupId>> {
    let disk = DataFolder::disk_of(&config.data_dir, &recovery::stamp(config))?;
    let hosting = Hosting::open(config.data_dir.join(HOSTING), disk)?;
    Ok(hosting.groups(config, disk).into_keys().collect())
}
