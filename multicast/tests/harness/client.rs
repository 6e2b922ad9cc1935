//! Clients: sessions, concurrent commands out of order, retries at any replica, causal reads.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use multicast::command::{Command, Destination, Key, Mode};
use multicast::ids::{CommandId, GroupId, ReplicaId, SessionId, VectorClock};

use super::Rnd;

pub struct Client {
    pub session: SessionId,
    /// Where its session is open, as far as it knows.
    pub open: BTreeSet<GroupId>,
    /// Where it wants it to be.
    pub wants_open: BTreeSet<GroupId>,
    pub clock: VectorClock,
    pub next_sequence: u64,
    pub outstanding: BTreeMap<u64, Arc<Command>>,
    pub left: u64,
    pub reading: bool,
    pub hints: BTreeMap<GroupId, ReplicaId>,
    pub concurrency: usize,
}

/// What commands look like in this run.
#[derive(Clone, Debug)]
pub struct Mix {
    pub groups: u16,
    pub keys: u64,
    pub keys_per_group_max: u64,
    pub single_per_mille: u64,
    pub read_per_mille: u64,
    pub add_per_mille: u64,
}

impl Client {
    pub fn is_done(&self) -> bool {
        self.left == 0 && self.outstanding.is_empty() && !self.reading
    }

    pub fn is_open(&self) -> bool {
        self.wants_open.is_subset(&self.open)
    }

    pub fn hint(&self, group: GroupId, voters: &[ReplicaId]) -> ReplicaId {
        self.hints.get(&group).copied().unwrap_or(voters[0])
    }

    pub fn next_command(&mut self, rnd: &mut Rnd, mix: &Mix) -> Arc<Command> {
        let count = if rnd.chance(mix.single_per_mille) { 1 } else { rnd.range(1, u64::from(mix.groups.min(4))) };
        let mut groups: Vec<u16> = (0..mix.groups).collect();
        rnd.shuffle(&mut groups);
        groups.truncate(count as usize);
        groups.sort_unstable();
        let destinations = groups.into_iter().map(|group| {
            let mut keys: Vec<u64> = (1..=mix.keys).collect();
            rnd.shuffle(&mut keys);
            keys.truncate(rnd.range(1, mix.keys_per_group_max) as usize);
            keys.sort_unstable();
            let mut mode = || {
                if rnd.chance(mix.add_per_mille) {
                    Mode::Add
                } else if rnd.chance(300) {
                    Mode::Read
                } else {
                    Mode::Write
                }
            };
            Destination { group: GroupId(group), footprint: keys.into_iter().map(|key| (Key(key), mode())).collect() }
        });
        let destinations = destinations.collect();
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        let command = Arc::new(Command {
            id: CommandId { session: self.session, sequence },
            acknowledged_below: self.outstanding.first_key_value().map_or(sequence, |(&first, _)| first),
            clock: self.clock.clone(),
            destinations,
            payload: Bytes::from(format!("payload {sequence}")),
        });
        self.outstanding.insert(sequence, Arc::clone(&command));
        command
    }
}
