//! From what is on disk to replicas that can start.

use std::sync::Arc;

use metadata::Overlay;
use metadata::namespace::{genesis, volume};
use multicast::core::{Core, Durable};
use multicast::ids::{GroupId, LogIndex};
use multicast::{Entry, OrderState};
use xxhash_rust::xxh3::xxh3_64;

use crate::clock::Clock;
use crate::config::{GroupInfo, NodeConfig};
use crate::error::{Error, Result};
use crate::group::view::Front;
use crate::storage::disk::RealDisk;
use crate::storage::folder::DataFolder;
use crate::storage::state::{GroupState, StateDb};
use crate::storage::wal::{OnFailure, Wal, WalConfig};

/// A replica as it starts.
pub struct Replica {
    /// Its state.
    pub state: GroupState,
    /// Its ordering core.
    pub core: Core,
    /// What readers see.
    pub front: Front,
}

/// Opens the node's log.
pub fn open_log(folder: &DataFolder, config: &NodeConfig, on_failure: OnFailure) -> Result<Wal> {
    let path = folder.log();
    let disk = Arc::new(RealDisk::open(path.clone()).map_err(Error::file(path))?);
    let stamp = xxh3_64(format!("{}/{}", config.cluster_id, config.number.0).as_bytes());
    let wal = WalConfig {
        segment_bytes: config.limits.log_segment_bytes,
        cache_bytes: config.limits.log_cache_bytes,
        stamp,
        prepare_ahead: true,
    };
    Wal::open(disk, wal, on_failure)
}

/// Opens the groups' states.
pub fn open_state(folder: &DataFolder, config: &NodeConfig) -> Result<StateDb> {
    let groups: Vec<GroupId> = config.local_groups().map(|group| group.id).collect();
    StateDb::open(&folder.state(), &groups, config.limits.state_memory_bytes)
}

/// One replica from state and log. On its group's first start the state gets its first rows.
pub fn open_replica(config: &NodeConfig, info: &GroupInfo, db: &StateDb, wal: &Wal, clock: Clock) -> Result<Replica> {
    let state = db.group(info.id)?;
    let applied = state.applied_index()?;
    if applied == LogIndex::ZERO {
        write_genesis(config, info.id, &state)?;
    }
    let found = volume(&state).map_err(|error| state.damaged(error.to_string()))?;
    if found.group != info.id {
        return Err(state.damaged(format!("its rows are of group {}", found.group)));
    }
    let rows = state.order_rows()?;
    let order = if rows.is_empty() { Ok(OrderState::new(info.id)) } else { OrderState::load(info.id, rows) };
    let order = order.map_err(|error| state.damaged(error.to_string()))?;
    if order.applied() != applied {
        return Err(state.damaged(format!("order at index {}, rows at {applied}", order.applied())));
    }
    let front = Front {
        applied,
        dependencies: order.depends_on().clone(),
        locked: Arc::new(crate::group::locked_keys(&order)),
        primary: None,
    };
    let durable = durable(info.id, applied, wal)?;
    let core = Core::new(clock.now(), core_config(config, info.id), durable, order)
        .map_err(|error| state.damaged(error.to_string()))?;
    Ok(Replica { state, core, front })
}

fn write_genesis(config: &NodeConfig, group: GroupId, state: &GroupState) -> Result<()> {
    let damaged = |error: metadata::Error| state.damaged(error.to_string());
    let mut overlay = Overlay::new(state).map_err(damaged)?;
    genesis(&mut overlay, group, &config.genesis).map_err(damaged)?;
    // Not flushed: after a crash the same rows are written again.
    state.write(overlay.into_writes(), &[], LogIndex::ZERO)
}

fn durable(group: GroupId, applied: LogIndex, wal: &Wal) -> Result<Durable> {
    let log = wal.state(group);
    let first = log.trimmed.0.next();
    let entries = wal.read(group, applied.max(first), log.last.0, usize::MAX)?;
    let entries =
        entries.into_iter().map(|entry| Entry { index: entry.index, ballot: entry.ballot, record: entry.bytes });
    Ok(Durable { promised: log.promised, first, entries: entries.collect() })
}

fn core_config(config: &NodeConfig, group: GroupId) -> multicast::Config {
    let groups = config.groups.iter().map(|group| (group.id, group.voters.clone())).collect();
    let mut core = multicast::Config::new(group, config.number, groups);
    let ms = |duration: std::time::Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    core.timing.heartbeat_ms = ms(config.timeouts.heartbeat);
    core.timing.election_timeout_ms = ms(config.timeouts.election);
    core.timing.resend_ms = ms(config.timeouts.resend);
    core.timing.resend_ms_max = core.timing.resend_ms_max.max(core.timing.resend_ms);
    core.timing.silence_ms = ms(config.timeouts.group_silence);
    core.limits.log_tail_bytes = config.limits.log_cache_bytes;
    core
}
