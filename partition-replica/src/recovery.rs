//! From what is on disk to replicas that can start.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use metadata::Overlay;
use metadata::namespace::{genesis, volume};
use multicast::core::{Core, Durable};
use multicast::ids::{GroupId, Incarnation, LogIndex, ReplicaId};
use multicast::{Entry, OrderState};
use replica::Front;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use crate::clock::Clock;
use crate::config::{GroupInfo, NodeConfig};
use crate::error::{Error, Result};
use crate::storage::disk::RealDisk;
use crate::storage::folder::{DataFolder, Stamp};
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

/// Whose data this node's are.
pub fn stamp(config: &NodeConfig) -> Stamp {
    let authority = config.identity.fingerprint().to_string();
    Stamp { cluster: config.cluster_id.clone(), authority, node: config.number }
}

/// Opens the node's log.
pub fn open_log(folder: &DataFolder, config: &NodeConfig, on_failure: OnFailure) -> Result<Wal> {
    let path = folder.log();
    let disk = Arc::new(RealDisk::open(path.clone()).map_err(Error::file(path))?);
    Wal::open(disk, wal_config(folder, config), on_failure)
}

/// How the node's log is kept.
pub fn wal_config(folder: &DataFolder, config: &NodeConfig) -> WalConfig {
    let Stamp { cluster, authority, node } = stamp(config);
    let mut owner = format!("{cluster}/{authority}/{}", node.0);
    if folder.incarnation() != Incarnation::GENESIS {
        owner.push_str(&format!("/{}", folder.incarnation()));
    }
    WalConfig {
        segment_bytes: config.limits.log_segment_bytes,
        cache_bytes: config.limits.wal_cache_bytes(),
        stamp: xxh3_64(owner.as_bytes()),
        prepare_ahead: true,
    }
}

/// Opens the states of the groups with a replica here. What is left of others that have ended is deleted.
pub fn open_state(
    folder: &DataFolder,
    config: &NodeConfig,
    hosted: &BTreeMap<GroupId, Incarnation>,
    (gone, wal): (impl Iterator<Item = GroupId>, &Wal),
) -> Result<StateDb> {
    let groups: Vec<GroupId> = hosted.keys().copied().collect();
    let state = StateDb::open(&folder.state(), &groups, config.limits.state_memory_bytes)?;
    for group in gone {
        if wal.end_group(group) {
            state.remove(group)?;
        }
    }
    Ok(state)
}

/// One replica from state and log. On its group's first start the state gets its first rows.
pub fn open_replica(
    config: &NodeConfig,
    (info, incarnation): (&GroupInfo, Incarnation),
    db: &StateDb,
    wal: &Wal,
    clock: Clock,
) -> Result<Replica> {
    let state = db.group(info.id)?;
    let applied = state.applied_index()?;
    match state.charter()? {
        Some(charter) => check_charter(config, info, &state, &charter)?,
        None => found_group(config, info, &state, wal)?,
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
    let mut front = Front::of(&order);
    front.is_quarantined = !is_member(&order, info, (config.number, incarnation));
    let durable = durable(info.id, applied, wal)?;
    let mut core = Core::new(clock.now(), core_config(config, info.id, incarnation), durable, order)
        .map_err(|error| state.damaged(error.to_string()))?;
    core.restore_committed(wal.state(info.id).committed);
    Ok(Replica { state, core, front })
}

/// True if the replica is a member of its group, as of that state. Before that it may be empty, and nobody reads it.
pub fn is_member(order: &OrderState, info: &GroupInfo, (me, incarnation): (ReplicaId, Incarnation)) -> bool {
    match order.membership() {
        Some(members) => members.has(me, incarnation),
        None => incarnation == Incarnation::GENESIS && info.voters.contains(&me),
    }
}

/// A group's first start: the volume's first rows, and with them for ever what they were made from.
fn found_group(config: &NodeConfig, info: &GroupInfo, state: &GroupState, wal: &Wal) -> Result<()> {
    if state.applied_index()? > LogIndex::ZERO || wal.state(info.id).last.0 > LogIndex::ZERO {
        return Err(state.damaged("there is a log, but the rows that the group began with are missing"));
    }
    let damaged = |error: metadata::Error| state.damaged(error.to_string());
    let mut overlay = Overlay::new(state).map_err(damaged)?;
    genesis(&mut overlay, info.id, &config.genesis).map_err(damaged)?;
    state.found(overlay.into_writes(), &Charter::new(config, info).encode())
}

/// What is on disk counts. Other voters than those that the group has would make other quorums.
fn check_charter(config: &NodeConfig, info: &GroupInfo, state: &GroupState, found: &[u8]) -> Result<()> {
    let found: Charter = serde_json::from_slice(found)
        .map_err(|error| state.damaged(format!("what the group was founded with cannot be read: {error}")))?;
    let expected = Charter::new(config, info);
    let members = |charter: &Charter| charter.voters.iter().copied().collect::<BTreeSet<u32>>();
    if members(&found) != members(&expected) {
        let (has, wanted) = (&found.voters, &expected.voters);
        return Err(Error::Config(format!(
            "group {}: it has the voters {has:?} (numbers of nodes), the configuration says {wanted:?}; a group's voters \
             cannot be changed by editing the configuration: give it back the old ones",
            info.name
        )));
    }
    if found.genesis() != expected.genesis() {
        tracing::warn!(
            group = %info.id, ?found, configured = ?expected,
            "the volume was made with other settings than are configured now: those that it was made with count"
        );
    }
    Ok(())
}

/// What a group was founded with: JSON in its state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Charter {
    /// Numbers of the voters, the preferred primary first.
    voters: Vec<u32>,
    inline_bytes_max: u32,
    uid: u32,
    gid: u32,
    mode: u16,
    created_ns: i64,
}

impl Charter {
    fn new(config: &NodeConfig, info: &GroupInfo) -> Charter {
        let start = &config.genesis;
        Charter {
            voters: info.voters.iter().map(|voter| voter.0).collect(),
            inline_bytes_max: start.inline_bytes_max,
            uid: start.uid,
            gid: start.gid,
            mode: start.mode,
            created_ns: start.time.0,
        }
    }

    fn genesis(&self) -> (u32, u32, u32, u16, i64) {
        (self.inline_bytes_max, self.uid, self.gid, self.mode, self.created_ns)
    }

    /// Its bytes on disk.
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("numbers always encode")
    }
}

fn durable(group: GroupId, applied: LogIndex, wal: &Wal) -> Result<Durable> {
    let log = wal.state(group);
    let first = log.trimmed.0.next();
    let entries = wal.read(group, applied.max(first), log.last.0, usize::MAX)?;
    let entries =
        entries.into_iter().map(|entry| Entry { index: entry.index, ballot: entry.ballot, record: entry.bytes });
    Ok(Durable { promised: log.promised, first, entries: entries.collect() })
}

pub(crate) fn core_config(config: &NodeConfig, group: GroupId, incarnation: Incarnation) -> multicast::Config {
    let groups = config.groups.iter().map(|group| (group.id, group.voters.clone())).collect();
    let mut core = multicast::Config::new(group, config.number, groups);
    core.incarnation = incarnation;
    let ms = |duration: std::time::Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    core.timing.heartbeat_ms = ms(config.timeouts.heartbeat);
    core.timing.election_timeout_ms = ms(config.timeouts.election);
    core.timing.resend_ms = ms(config.timeouts.resend);
    core.timing.resend_ms_max = core.timing.resend_ms_max.max(core.timing.resend_ms);
    core.timing.silence_ms = ms(config.timeouts.group_silence);
    core.limits.log_bytes_max = config.limits.group_log_bytes_max;
    core.limits.log_entries_max = config.limits.group_log_entries_max;
    core.limits.log_tail_bytes = config.limits.log_cache_bytes;
    core
}
