//! The world's side of faults.

use multicast::ids::{GroupId, ReplicaId};

use crate::network::End;
use crate::options::MS;
use crate::world::{Event, FaultKind, World};

impl World {
    /// A fault of some kind begins, and the next of its kind is scheduled.
    pub(crate) fn fault(&mut self, kind: FaultKind) {
        if !self.faulty {
            return;
        }
        let faults = &self.options.faults;
        let every = match kind {
            FaultKind::Crash => faults.crash,
            FaultKind::Pause => faults.pause,
            FaultKind::Cut => faults.cut,
            FaultKind::SlowLink => faults.slow_link,
            FaultKind::ClockJump => faults.clock_jump,
            FaultKind::Disconnect => faults.disconnect,
            FaultKind::Wipe => faults.wipe,
            FaultKind::FlipLog => faults.flip_log,
            FaultKind::FlipRow => faults.flip_row,
            FaultKind::FullDisk => faults.full_disk,
            FaultKind::SlowDisk => faults.slow_disk,
            FaultKind::Operate => self.options.operators.change,
            FaultKind::Stop => self.options.operators.stop,
        };
        match kind {
            FaultKind::Crash => self.crash_some(),
            FaultKind::Pause => self.pause_one(),
            FaultKind::Cut => self.cut_some(),
            FaultKind::SlowLink => self.slow_one(),
            FaultKind::ClockJump => self.jump_one(),
            FaultKind::Disconnect => self.disconnect_one(),
            FaultKind::Wipe => self.wipe_one(),
            FaultKind::FlipLog => self.flip_log(),
            FaultKind::FlipRow => self.flip_row(),
            FaultKind::FullDisk => self.fill_disk(),
            FaultKind::SlowDisk => self.slow_disk(),
            FaultKind::Operate => self.operate(),
            FaultKind::Stop => self.stop_one(),
        }
        let delay = self.rnd.range(1, every * 2) * MS;
        self.after(delay, Event::Fault(kind));
    }

    fn node_ids(&self) -> Vec<ReplicaId> {
        self.nodes.keys().copied().collect()
    }

    fn crash_some(&mut self) {
        let all = self.node_ids();
        let first = *self.rnd.pick(&all);
        let mut victims = vec![first];
        if self.rnd.chance(120) {
            // All voters of a group at once, as when a region loses power.
            let groups: Vec<GroupId> = self.options.groups.keys().copied().collect();
            let group = *self.rnd.pick(&groups);
            victims = self.hosts(group).to_vec();
        }
        for id in victims {
            self.crash_for_a_while(id, "a fault");
        }
    }

    /// A frozen process: it does nothing, then goes on as if nothing had been.
    fn pause_one(&mut self) {
        let all = self.node_ids();
        let ready = |id: &ReplicaId| {
            let replicas = self.nodes.get(id).map(|node| node.replicas.values());
            let cores = replicas.into_iter().flatten().filter_map(|replica| replica.live.as_ref());
            cores.map(crate::replica::Live::ordering).any(multicast::Core::is_ready)
        };
        let primaries: Vec<ReplicaId> = all.iter().copied().filter(ready).collect();
        let from = if primaries.is_empty() || self.rnd.chance(300) { all } else { primaries };
        let id = *self.rnd.pick(&from);
        let lasts = self.rnd.range(1, self.options.faults.pause_ms_max) * MS;
        let now = self.now;
        // What waits for a frozen node waits until the time that is known now: with another one it would come out of order.
        if let Some(node) = self.nodes.get_mut(&id).filter(|node| node.up && node.paused_until <= now) {
            node.paused_until = now + lasts;
            self.trace.line(now, || format!("{id} is frozen for {} ms", lasts / MS));
        }
    }

    fn cut_some(&mut self) {
        let all = self.node_ids();
        let clients = self.clients.len();
        let (a, b) = (*self.rnd.pick(&all), *self.rnd.pick(&all));
        let (one_way, alone, regions) = (self.rnd.chance(250), self.rnd.chance(300), self.rnd.chance(300));
        let region_of = |id: ReplicaId| self.options.nodes.get(&id).copied();
        let is_side_a = |id: ReplicaId| if regions { region_of(id) == region_of(a) } else { id == a };
        let is_side_b = |id: ReplicaId| {
            let other = if regions { region_of(id) == region_of(b) } else { id == b };
            !is_side_a(id) && (alone || other)
        };
        let mut links: Vec<(End, End)> = Vec::new();
        for &x in all.iter().filter(|id| is_side_a(**id)) {
            links.extend(all.iter().filter(|id| is_side_b(**id)).map(|&y| (End::Node(x), End::Node(y))));
        }
        if self.rnd.chance(300) {
            let client = self.rnd.index(clients);
            links.push((End::Client(client), End::Node(a)));
        }
        let lasts = self.rnd.range(1, self.options.faults.cut_ms_max) * MS;
        for (x, y) in links {
            let (x, y) = if one_way && self.rnd.chance(500) { (y, x) } else { (x, y) };
            self.trace.line(self.now, || format!("{x} -> {y} is cut for {} ms, one way: {one_way}", lasts / MS));
            self.network.cut(x, y);
            self.after(lasts, Event::Heal { from: x, to: y });
            if !one_way {
                self.network.cut(y, x);
                self.after(lasts, Event::Heal { from: y, to: x });
            }
        }
    }

    fn slow_one(&mut self) {
        let all = self.node_ids();
        let (a, b) = (End::Node(*self.rnd.pick(&all)), End::Node(*self.rnd.pick(&all)));
        let (factor, lasts) = (self.rnd.range(3, 30), self.rnd.range(100, 3_000) * MS);
        self.network.slow_down(a, b, factor);
        self.after(lasts, Event::Heal { from: a, to: b });
    }

    fn jump_one(&mut self) {
        let all = self.node_ids();
        let id = *self.rnd.pick(&all);
        let by = self.rnd.range(1, self.options.faults.clock_jump_ms_max) * MS;
        let now = self.now;
        if let Some(node) = self.nodes.get_mut(&id) {
            node.clock.jump(now, by);
            self.trace.line(now, || format!("the clock of {id} jumps by {} ms", by / MS));
        }
    }

    fn disconnect_one(&mut self) {
        let client = self.rnd.index(self.clients.len());
        let connections: Vec<(ReplicaId, u64)> =
            self.clients[client].connections.iter().map(|(&node, connection)| (node, connection.number)).collect();
        for (node, connection) in connections {
            self.forget_connection(node, client, connection);
            self.lost(client, node, connection);
        }
    }

    /// From now on everything works, but that frozen nodes wake up when they would have: what is left must come to an end.
    pub(crate) fn end_faults(&mut self) {
        self.faulty = false;
        self.network.heal_all();
        self.trace.line(self.now, || "faults are over".to_owned());
        for id in self.node_ids() {
            let delay = self.rnd.below(500 * MS);
            self.after(delay, Event::Start { node: id });
            if let Some(node) = self.nodes.get_mut(&id) {
                (node.full_until, node.slow_until) = (0, 0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::options::Options;

    /// What waits for it is scheduled for that time: with another one later messages of a connection would come first.
    #[test]
    fn frozen_node_wakes_up_when_it_was_to() {
        let mut world = World::new(1, Options::draw(1), None, false);
        world.options.faults.pause_ms_max = 8_000;
        world.nodes.values_mut().for_each(|node| node.up = true);
        for _ in 0..20 {
            world.pause_one();
        }
        let until = |world: &World| world.nodes.values().map(|node| node.paused_until).collect::<Vec<_>>();
        let frozen = until(&world);
        assert!(frozen.iter().any(|&until| until > 0));
        (0..200).for_each(|_| world.pause_one());
        world.end_faults();
        let later = until(&world);
        assert!(frozen.iter().zip(&later).all(|(&was, &is)| was == 0 || was == is), "{frozen:?} {later:?}");
    }
}
