//! A node that does not run.

use std::collections::BTreeMap;
use std::path::PathBuf;

use metadata::check::{Seen, check_group};
use multicast::OrderState;

use multicast::ids::{CommandId, GroupId, Incarnation};

use super::Standing;
use super::serve::is_damage;
use crate::config::{GroupInfo, NodeConfig};
use crate::error::{Error, Result};
use crate::recovery::{self, is_member};
use crate::storage::disk::RealDisk;
use crate::storage::folder::DataFolder;
use crate::storage::hosting::Hosting;
use crate::storage::state::{GroupState, StateDb};
use crate::storage::wal;

/// The data directory of a node that does not run, and does not start as long as this lives. Nothing in it is changed.
pub struct StoppedNode {
    folder: DataFolder,
    config: NodeConfig,
    state: Option<StateDb>,
}

/// A replica of a stopped node.
pub struct StoppedReplica {
    /// Of which group.
    pub group: GroupId,
    /// Where it stands.
    pub standing: Standing,
    /// Multi-group commands that are unfinished in it.
    pub unfinished: Vec<CommandId>,
    /// Why nobody may read it, if so.
    pub quarantine: Option<String>,
    state: GroupState,
}

impl StoppedNode {
    /// Locks the directory.
    ///
    /// # Errors
    /// If a node runs on it, or it has no data or another node's.
    pub fn open(config: NodeConfig) -> Result<StoppedNode> {
        // A first start would write the stamp.
        if !config.data_dir.join("stamp").exists() {
            return Err(Error::NotInitialised { path: config.data_dir });
        }
        let folder = DataFolder::open(&config.data_dir, &recovery::stamp(&config), config.first_start)?;
        Ok(StoppedNode { folder, config, state: None })
    }

    /// Reads the whole log.
    ///
    /// # Errors
    /// If it is damaged; a torn tail is none.
    pub fn check_log(&self) -> Result<()> {
        let path = self.folder.log();
        if !path.exists() {
            return Ok(());
        }
        wal::verify(&RealDisk::read_only(path), &recovery::wal_config(&self.folder, &self.config))
    }

    /// Its replicas, of those groups that it hosts and that have been founded here.
    ///
    /// # Errors
    /// If what is there cannot be read or makes no sense.
    pub fn replicas(&mut self) -> Result<Vec<StoppedReplica>> {
        let path: PathBuf = self.folder.state();
        if !path.exists() {
            return Ok(Vec::new());
        }
        let state = StateDb::open_read_only(&path, self.config.limits.state_memory_bytes)?;
        let mut replicas = Vec::new();
        let disk = self.folder.incarnation();
        let hosted = Hosting::open(self.folder.hosting(), disk)?.groups(&self.config, disk);
        for info in &self.config.groups {
            let Some(&incarnation) = hosted.get(&info.id).filter(|_| state.has(info.id)) else { continue };
            let group = state.group(info.id)?;
            if group.charter()?.is_some() {
                replicas.extend(replica((&self.config, info), incarnation, group)?);
            }
        }
        self.state = Some(state);
        Ok(replicas)
    }
}

/// None if the group has not taken it in yet.
fn replica(
    (config, info): (&NodeConfig, &GroupInfo),
    incarnation: Incarnation,
    state: GroupState,
) -> Result<Option<StoppedReplica>> {
    let group = info.id;
    let damaged = |error: &dyn std::fmt::Display| state.damaged(error.to_string());
    let rows = state.order_rows()?;
    let order = if rows.is_empty() { Ok(OrderState::new(group)) } else { OrderState::load(group, rows) };
    let order = order.map_err(|error| damaged(&error))?;
    let applied = state.applied_index()?;
    if order.applied() != applied {
        return Err(state.damaged(format!("order at index {}, rows at {applied}", order.applied())));
    }
    if !is_member(&order, info, (config.number, incarnation)) {
        return Ok(None);
    }
    let standing = Standing {
        index: applied,
        settled: order.executed_through(),
        dependencies: order.depends_on().clone(),
        digest: metadata::store::stored_digest(&state).map_err(|error| damaged(&error))?,
        rows: state.rows_estimate(),
    };
    let mut unfinished = BTreeMap::new();
    unfinished.extend(order.changing_locks().map(|(_, index, id)| (index, id)));
    let unfinished = unfinished.into_values().collect();
    Ok(Some(StoppedReplica { group, standing, unfinished, quarantine: state.quarantined()?, state }))
}

impl StoppedReplica {
    /// Looks at all rows.
    ///
    /// # Errors
    /// If they cannot be read, or `see` refuses.
    pub fn inspect(
        &self,
        see: &mut dyn FnMut(Seen) -> Result<(), metadata::Error>,
    ) -> std::result::Result<(), super::Failed> {
        let checked = check_group(self.group, &self.state, see);
        checked.map_err(|error| super::Failed { why: error.to_string(), is_damage: is_damage(&error) })
    }
}
