//! What the ordering core costs by itself: all replicas of all groups in one thread, joined in memory, no codec but the
//! log's, no disk. `cargo bench -p multicast`.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, VecDeque};
use std::hint::black_box;
use std::sync::Arc;

use bytes::Bytes;
use multicast::command::{Command, Destination, Key, Mode};
use multicast::core::{Durable, SessionChange};
use multicast::ids::{CommandId, GroupId, ReplicaId, SessionId, VectorClock};
use multicast::{Config, Core, Inert, OrderState, Output, Time};

const SESSION: SessionId = SessionId(77);
/// Commands that are under way together, as in a busy node.
const BATCH: u64 = 48;
const MS: u64 = 1_000_000;
const ROUNDS: usize = 9;
const BATCHES: u64 = 100;

/// All replicas of so many groups.
struct Cluster {
    cores: BTreeMap<(GroupId, ReplicaId), Core>,
    now: u64,
    next: u64,
    executed: u64,
}

impl Cluster {
    fn new(groups: u16, voters: u32) -> Cluster {
        let voters_of = |group: u16| (1..=voters).map(|at| ReplicaId(u32::from(group) * 10 + at)).collect::<Vec<_>>();
        let all: BTreeMap<GroupId, Vec<ReplicaId>> =
            (0..groups).map(|group| (GroupId(group), voters_of(group))).collect();
        let mut cores = BTreeMap::new();
        for (&group, replicas) in &all {
            for &replica in replicas {
                let config = Config::new(group, replica, all.clone());
                let core = Core::new(Time(0), config, Durable::default(), OrderState::new(group)).unwrap();
                cores.insert((group, replica), core);
            }
        }
        let mut cluster = Cluster { cores, now: 0, next: 1, executed: 0 };
        while cluster.primaries().count() < usize::from(groups) {
            cluster.pass(10 * MS);
        }
        let primaries: Vec<_> = cluster.primaries().collect();
        for primary in primaries {
            let now = Time(cluster.now);
            cluster.cores.get_mut(&primary).unwrap().handle_session(now, SessionChange::Open(SESSION));
        }
        cluster.settle();
        cluster
    }

    fn primaries(&self) -> impl Iterator<Item = (GroupId, ReplicaId)> + '_ {
        self.cores.iter().filter(|(_, core)| core.is_ready()).map(|(&address, _)| address)
    }

    fn pass(&mut self, ns: u64) {
        self.now += ns;
        let now = Time(self.now);
        self.cores.values_mut().for_each(|core| core.handle_timeout(now));
        self.settle();
    }

    /// Everybody does everything until nothing is left. What one replica wants in a turn goes out together.
    fn settle(&mut self) {
        let now = Time(self.now);
        let mut turns: VecDeque<(GroupId, ReplicaId)> = self.cores.keys().copied().collect();
        while let Some(at) = turns.pop_front() {
            let core = self.cores.get_mut(&at).unwrap();
            let (mut newest, mut sends, mut busy) = (None, Vec::new(), false);
            while let Some(output) = core.poll_output() {
                busy = true;
                match output {
                    Output::Persist { token, .. } => newest = Some(token),
                    Output::Send { to, message } => sends.push((to, message)),
                    _ => {}
                }
            }
            if let Some(token) = newest {
                core.handle_persisted(now, token);
            }
            while let Some(applied) = core.apply_next(now, &mut Inert) {
                busy = true;
                self.executed += u64::from(applied.reply.is_some() && core.is_ready());
            }
            black_box(core.order_mut().drain_changes());
            for (to, message) in sends {
                self.cores.get_mut(&to).unwrap().handle_message(now, at, message);
                if !turns.contains(&to) {
                    turns.push_back(to);
                }
            }
            if busy && !turns.contains(&at) {
                turns.push_back(at);
            }
        }
    }

    /// A batch of commands for the first so many groups, none of which conflict, asked for at the first.
    fn batch(&mut self, destinations: u16, payload: usize) {
        self.now += MS / 10;
        let first = self.primaries().next().unwrap();
        let begin = self.next;
        for _ in 0..BATCH {
            let sequence = self.next;
            self.next += 1;
            let footprint = vec![(Key(sequence), Mode::Write)];
            let destination = |group| Destination { group: GroupId(group), footprint: footprint.clone().into() };
            let command = Arc::new(Command {
                id: CommandId { session: SESSION, sequence },
                acknowledged_below: begin,
                clock: VectorClock::new(),
                destinations: (0..destinations).map(destination).collect(),
                payload: Bytes::from(vec![7; payload]),
            });
            self.cores.get_mut(&first).unwrap().handle_submit(Time(self.now), command);
        }
        self.settle();
        if (begin / BATCH).is_multiple_of(64) {
            self.pass(50 * MS);
        }
    }
}

/// Microseconds of this thread per command, the median of several rounds.
fn cost_us(destinations: u16, voters: u32, payload: usize) -> f64 {
    let mut cluster = Cluster::new(destinations, voters);
    let before = cluster.executed;
    cluster.batch(destinations, payload);
    assert_eq!(cluster.executed - before, BATCH * u64::from(destinations), "everything executes everywhere");
    let mut rounds: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let began = cpu_us();
            (0..BATCHES).for_each(|_| cluster.batch(destinations, payload));
            (cpu_us() - began) / (BATCHES * BATCH) as f64
        })
        .collect();
    rounds.sort_by(f64::total_cmp);
    rounds[ROUNDS / 2]
}

fn cpu_us() -> f64 {
    let used = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    used.tv_sec as f64 * 1e6 + used.tv_nsec as f64 / 1e3
}

fn main() {
    println!("us of CPU per command, all replicas of all its groups together");
    for (destinations, voters, payload) in
        [(1, 1, 64), (1, 3, 64), (1, 3, 1024), (2, 1, 64), (2, 3, 64), (2, 3, 1024), (3, 3, 64)]
    {
        let us = cost_us(destinations, voters, payload);
        println!("{destinations} groups of {voters}, {payload:>4} B: {us:6.2}");
    }
}
