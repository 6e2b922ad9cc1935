//! Copies of states, for members whose missing entries were dropped: all rows as they are at one entry travel beside
//! everything else, and take the place of the receiver's in one step.

use std::collections::BTreeMap;

use bytes::Bytes;
use metadata::MemStore;
use metadata::store::stored_digest;
use multicast::ids::{Incarnation, LogIndex, ReplicaId};
use multicast::{OrderState, Snapshot, Time};

use crate::checks::ledger::Ledger;
use crate::network::End;
use crate::options::MS;
use crate::planted::Bug;
use crate::replica::{Act, Replica};
use crate::shelf::Shelf;
use crate::world::{Address, Event, World};

/// A state on its way.
#[derive(Debug)]
pub struct Copy {
    snapshot: Bytes,
    store: MemStore,
    order: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// A copy and where it goes.
#[derive(Debug)]
pub struct Parcel {
    from: Address,
    life: u64,
    /// To that node.
    pub to: ReplicaId,
    incarnation: Incarnation,
    copy: Copy,
}

impl Replica {
    /// The state as it is now; none if it cannot be read, or another one is on its way.
    fn copy(&mut self) -> Option<Copy> {
        // What has become another state must not become a quorum's.
        if self.is_rotten() {
            return None;
        }
        let live = self.live.as_mut().filter(|live| !live.is_sending)?;
        let snapshot = live.ordering().snapshot()?.encode();
        let mut order = self.saved.order.clone();
        for (key, value) in &live.unflushed_order {
            match value {
                Some(value) => order.insert(key.clone(), value.clone()),
                None => order.remove(key),
            };
        }
        live.is_sending = true;
        Some(Copy { snapshot, store: live.store.rows.clone(), order })
    }

    /// Another replica's state in the place of the own one. `Err`: refused, and why. A crash in the middle leaves the old
    /// state, or the new one without its log.
    fn install(&mut self, copy: Copy, ledger: &mut Ledger) -> Result<OrderState, String> {
        let group = self.config.group;
        let live = self.live.as_mut().ok_or("it is down")?;
        let Copy { snapshot, store, mut order } = copy;
        let snapshot = Snapshot::decode(&snapshot).map_err(|error| error.to_string())?;
        live.ordering().check_snapshot(snapshot.entry.index).map_err(|refused| refused.to_string())?;
        if self.bug == Some(Bug::CopyWithoutOrder) {
            order.retain(|key, _| !matches!(key.first(), Some(b'p' | b'r')));
        }
        let mut loaded = OrderState::load(group, order.clone()).map_err(|error| error.to_string())?;
        loaded.begin_at(snapshot).map_err(|refused| refused.to_string())?;
        for (key, value) in loaded.drain_changes() {
            match value {
                Some(value) => order.insert(key, value),
                None => order.remove(&key),
            };
        }
        let digest = stored_digest(&store).map_err(|error| error.to_string())?;
        if self.bug != Some(Bug::Diverge) {
            ledger.installed(group, loaded.applied(), digest, loaded.digest());
        }
        let mut shelf = Shelf::default();
        shelf.rows = store;
        // The step: from here on a start begins with the copy.
        self.saved.place(shelf, order);
        self.rot_at = None;
        Ok(loaded)
    }

    /// The rest of it, in memory. Clients that follow this replica have missed what changed.
    fn take_over(&mut self, time: Time, order: OrderState) {
        let (store, index) = (self.saved.store.clone(), order.applied());
        let Some(live) = &mut self.live else { return };
        live.store = store;
        live.unflushed.clear();
        live.unflushed_order.clear();
        live.flushed = index;
        live.view.cut_off(&mut live.acts);
        if let Err(refused) = live.core.install_snapshot(time, order, &mut live.view.front) {
            // The disk has it already.
            live.acts.push(Act::Violation(format!("a copy took the place of the state, but {refused}")));
        }
        live.is_outsider = false;
        live.look_at_members(&self.config);
    }
}

impl World {
    /// A core wants a copy of its state sent.
    pub(crate) fn send_copy(&mut self, from: Address, life: u64, to: ReplicaId, incarnation: Incarnation) {
        let Some(replica) = self.nodes.get_mut(&from.1).and_then(|node| node.replicas.get_mut(&from.0)) else { return };
        if replica.live.as_ref().is_some_and(|live| live.store.is_bad()) {
            return self.break_down(from.1, "a row that was to be copied does not fit its checksum");
        }
        let copy = replica.copy();
        let is_lost = self.faulty && self.rnd.chance(self.options.faults.lost_copies);
        let (a, b) = (End::Node(from.1), End::Node(to));
        let travel = self.network.delay(&mut self.rnd, &self.options, self.faulty, a, b);
        let delay = travel + self.rnd.range(1, 300) * MS;
        let cut = self.network.is_cut(a, b) || self.network.is_cut(b, a);
        match copy.filter(|_| !is_lost && !cut) {
            Some(copy) => {
                self.operator.copies_sent += 1;
                self.trace.line(self.now, || format!("{}/{} sends {to} a copy of its state", from.0, from.1));
                let parcel = Box::new(Parcel { from, life, to, incarnation, copy });
                self.after(delay, Event::CopyArrives(parcel));
            }
            None => self.after(delay, Event::CopySent { from, life, to, installed: None }),
        }
    }

    /// A copy is complete at its receiver.
    pub(crate) fn copy_arrives(&mut self, parcel: Parcel) {
        let Parcel { from, life, to, incarnation, copy } = parcel;
        let (a, b) = (End::Node(from.1), End::Node(to));
        let is_cut = self.network.is_cut(a, b) || self.network.is_cut(b, a);
        let installed = if is_cut { None } else { self.install_copy((from.0, to), incarnation, copy) };
        let delay = self.network.delay(&mut self.rnd, &self.options, self.faulty, b, a);
        self.after(delay, Event::CopySent { from, life, to, installed });
    }

    fn install_copy(&mut self, to: Address, incarnation: Incarnation, copy: Copy) -> Option<LogIndex> {
        let now = self.now;
        let target = self.nodes.get(&to.1).filter(|node| node.up).and_then(|node| node.replicas.get(&to.0));
        let is_there = target.is_some_and(|replica| replica.config.incarnation == incarnation);
        let dice = if self.faulty && self.options.faults.crash > 0 { self.rnd.below(1000) } else { 1000 };
        if !is_there {
            return None;
        }
        if dice < 100 {
            self.crash_for_a_while(to.1, "with a copy that is not in place");
            return None;
        }
        let node = self.nodes.get_mut(&to.1)?;
        let time = node.clock.time(now);
        let replica = node.replicas.get_mut(&to.0)?;
        let order = match replica.install(copy, &mut self.ledger) {
            Ok(order) => order,
            Err(why) => {
                self.trace.line(now, || format!("{}/{} does not take the copy: {why}", to.0, to.1));
                return None;
            }
        };
        let index = order.applied();
        if dice >= 300 {
            replica.take_over(time, order);
        }
        self.operator.copies_installed += 1;
        self.operator.newcomers.insert(to);
        self.trace.line(now, || format!("{}/{} has a copy of the state at {index} in place", to.0, to.1));
        if dice < 300 {
            // The state is in its place, the log is not.
            self.crash_for_a_while(to.1, "just behind a copy's step");
        }
        self.wake(to);
        Some(index)
    }

    /// A sender hears what became of its copy.
    pub(crate) fn copy_sent(&mut self, from: Address, life: u64, to: ReplicaId, installed: Option<LogIndex>) {
        let now = self.now;
        let Some(node) = self.nodes.get_mut(&from.1).filter(|node| node.up && node.life == life) else { return };
        let time = node.clock.time(now);
        if let Some(live) = node.replicas.get_mut(&from.0).and_then(|replica| replica.live.as_mut()) {
            live.is_sending = false;
            live.core.handle_snapshot_sent(time, to, installed);
        }
        self.wake(from);
    }
}
