//! One replica with its disk: a driver of a core in virtual time.

use std::collections::{BTreeMap, VecDeque};

use multicast::core::Durable;
use multicast::ids::{Ballot, GroupId, Incarnation, LogIndex, ReplicaId};
use multicast::{Config, Core, Entry, OrderState, Snapshot, Time, Writes};

use super::Rnd;
use super::machine::TestMachine;

/// What a write-ahead log holds after a crash.
#[derive(Clone, Debug, Default)]
pub struct Wal {
    pub promised: Ballot,
    pub committed: LogIndex,
    pub entries: BTreeMap<LogIndex, Entry>,
    /// The entries below are in an old file, those from here on in the newest one.
    pub newest_from: LogIndex,
}

impl Wal {
    pub fn write(&mut self, writes: Writes) {
        if let Some(promised) = writes.promised {
            assert!(promised > self.promised || !writes.rewrite.is_empty(), "a promise only grows");
            self.promised = promised;
        }
        if let Some((promised, committed)) = writes.committed {
            assert_eq!(promised, self.promised, "what goes with it is what holds");
            assert!(committed > self.committed, "what is committed only grows");
            assert!(
                writes.begin_at.is_none() && self.entries.last_key_value().is_some_and(|(&last, _)| last >= committed),
                "it is on disk"
            );
            self.committed = committed;
        }
        if let Some(index) = writes.begin_at {
            assert_eq!(writes.append.first().map(|entry| entry.index), Some(index), "the new log has a beginning");
            self.entries.clear();
            self.newest_from = index;
        }
        if let Some(from) = writes.truncate_from {
            assert!(from > self.committed, "what is committed stays");
            self.entries.split_off(&from);
        }
        if let Some(first) = writes.rewrite.first() {
            let kept: Vec<&Entry> = self.entries.range(first.index..).map(|(_, entry)| entry).collect();
            assert_eq!(kept, writes.rewrite.iter().collect::<Vec<_>>(), "what is kept is written again, all of it");
            self.newest_from = first.index;
        }
        for entry in writes.append {
            if let Some((last, _)) = self.entries.last_key_value() {
                assert_eq!(entry.index, last.next(), "appends are dense");
            }
            self.entries.insert(entry.index, entry);
        }
    }
}

/// What the key-value store holds after a crash.
#[derive(Clone, Debug, Default)]
pub struct Store {
    pub rows: BTreeMap<Vec<u8>, Vec<u8>>,
    pub machine: TestMachine,
    pub applied: LogIndex,
}

impl Store {
    fn write(&mut self, changes: Vec<(Vec<u8>, Option<Vec<u8>>)>) {
        for (key, value) in changes {
            match value {
                Some(value) => self.rows.insert(key, value),
                None => self.rows.remove(&key),
            };
        }
    }
}

pub struct Node {
    pub config: Config,
    pub skew: u64,
    pub core: Option<Core>,
    pub machine: TestMachine,
    pub wal: Wal,
    /// Given to the disk, not durable: token and writes.
    pub under_way: VecDeque<(u64, Writes)>,
    pub disk_busy: bool,
    pub flushed: Store,
    pub restarts: u64,
    /// A drain is scheduled.
    pub woken: bool,
    pub timer: Option<u64>,
    pub disk_us: u64,
    /// It stands still, and then goes on as if nothing had been.
    pub frozen_until: u64,
}

impl Node {
    pub fn new(config: Config, skew: u64, disk_us: u64) -> Self {
        Node {
            config,
            skew,
            core: None,
            machine: TestMachine::default(),
            wal: Wal::default(),
            under_way: VecDeque::new(),
            disk_busy: false,
            flushed: Store::default(),
            restarts: 0,
            woken: false,
            timer: None,
            disk_us,
            frozen_until: 0,
        }
    }

    pub fn address(&self) -> (GroupId, ReplicaId) {
        (self.config.group, self.config.replica)
    }

    pub fn time(&self, now: u64) -> Time {
        Time(now + self.skew)
    }

    pub fn start(&mut self, now: u64) {
        let rows = self.flushed.rows.clone();
        let order = OrderState::load(self.config.group, rows).unwrap();
        assert_eq!(order.applied(), self.flushed.applied, "rows and machine are one batch");
        self.machine = self.flushed.machine.clone();
        let first = self.wal.entries.first_key_value().map_or(LogIndex::ZERO, |(&index, _)| index);
        let entries = self.wal.entries.values().filter(|entry| entry.index >= order.applied()).cloned().collect();
        let durable = Durable { promised: self.wal.promised, first, entries };
        self.config.seed = self.config.seed.wrapping_add(1);
        let mut core = Core::new(self.time(now), self.config.clone(), durable, order).unwrap();
        core.restore_committed(self.wal.committed);
        self.core = Some(core);
        self.frozen_until = 0;
        self.restarts += 1;
        self.timer = None;
        self.woken = false;
    }

    /// Loses memory, and of the unsynced writes all but a random prefix.
    pub fn crash(&mut self, rnd: &mut Rnd) {
        self.core = None;
        let kept = rnd.below(self.under_way.len() as u64 + 1);
        for _ in 0..kept {
            let (_, writes) = self.under_way.pop_front().unwrap();
            self.wal.write(writes);
        }
        self.under_way.clear();
        self.disk_busy = false;
    }

    /// The disk has finished its oldest batches.
    pub fn synced(&mut self, count: usize) -> u64 {
        let mut token = 0;
        for _ in 0..count {
            let (synced, writes) = self.under_way.pop_front().unwrap();
            self.wal.write(writes);
            token = synced;
        }
        token
    }

    /// The store makes what was applied durable, and the log is cut.
    pub fn flush(&mut self) {
        let Some(core) = &mut self.core else { return };
        self.flushed.write(core.order_mut().drain_changes());
        self.flushed.machine = self.machine.clone();
        self.flushed.applied = core.order().applied();
        let keep = core.truncatable_below().min(self.flushed.applied);
        if self.wal.entries.contains_key(&keep) {
            core.truncate_below(keep);
            self.wal.entries = self.wal.entries.split_off(&keep);
        }
    }

    /// Its state as it is now, for another replica.
    pub fn copy(&mut self) -> Option<(Snapshot, Store)> {
        self.flush();
        Some((self.core.as_ref()?.snapshot()?, self.flushed.clone()))
    }

    /// Another replica's state in the place of the own one, in one step; or nothing, if it is of no use.
    pub fn install(&mut self, snapshot: Snapshot, mut store: Store) -> Option<OrderState> {
        let core = self.core.as_ref()?;
        core.check_snapshot(store.applied).ok()?;
        let mut order = OrderState::load(self.config.group, store.rows.clone()).unwrap();
        order.begin_at(snapshot).unwrap();
        store.write(order.drain_changes());
        self.machine = store.machine.clone();
        self.flushed = store;
        Some(order)
    }

    /// Its disk is replaced by an empty one.
    pub fn wipe(&mut self, incarnation: Incarnation) {
        assert!(self.core.is_none(), "it is down");
        self.wal = Wal::default();
        self.flushed = Store::default();
        self.config.incarnation = incarnation;
    }

    pub fn read_log(&self, from: LogIndex, bytes_max: usize) -> Vec<Entry> {
        let mut entries = Vec::new();
        let mut bytes = 0;
        for (index, entry) in self.wal.entries.range(from..) {
            if index.0 != from.0 + entries.len() as u64 || (bytes > 0 && bytes + entry.len_bytes() > bytes_max) {
                break;
            }
            bytes += entry.len_bytes();
            entries.push(entry.clone());
        }
        entries
    }
}
