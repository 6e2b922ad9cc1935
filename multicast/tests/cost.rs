//! What a command costs the core, without network and disk. Run with `--ignored --nocapture`.

#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use multicast::command::{Command, Destination, Key, Mode};
use multicast::core::{Durable, SessionChange};
use multicast::ids::{CommandId, GroupId, ReplicaId, SessionId, VectorClock};
use multicast::{Config, Core, Inert, OrderState, Output, Time};

const GROUP: GroupId = GroupId(0);

struct Cluster {
    cores: Vec<Core>,
    now: u64,
    /// Time spent in each core, in ns.
    spent: Vec<u128>,
}

impl Cluster {
    fn new(voters: u32) -> Self {
        let replicas: Vec<ReplicaId> = (1..=voters).map(ReplicaId).collect();
        let groups = BTreeMap::from([(GROUP, replicas.clone())]);
        let core = |&replica: &ReplicaId| {
            let config = Config::new(GROUP, replica, groups.clone());
            Core::new(Time(0), config, Durable::default(), OrderState::new(GROUP)).unwrap()
        };
        let cores = replicas.iter().map(core).collect();
        Cluster { cores, now: 0, spent: vec![0; voters as usize] }
    }

    /// Everybody does everything until nothing is left.
    fn settle(&mut self) {
        let mut busy = true;
        while busy {
            busy = false;
            for at in 0..self.cores.len() {
                let began = Instant::now();
                let now = Time(self.now);
                let core = &mut self.cores[at];
                let (mut token, mut sends) = (0, Vec::new());
                while let Some(output) = core.poll_output() {
                    match output {
                        Output::Persist { token: last, .. } => token = last,
                        Output::Send { to, message } => sends.push((to, message)),
                        _ => {}
                    }
                }
                if token > 0 {
                    core.handle_persisted(now, token);
                }
                busy |= token > 0 || !sends.is_empty();
                while core.apply_next(now, &mut Inert).is_some() {
                    busy = true;
                }
                std::hint::black_box(core.order_mut().drain_changes());
                self.spent[at] += began.elapsed().as_nanos();
                for (to, message) in sends {
                    let target = to.1.0 as usize - 1;
                    let began = Instant::now();
                    self.cores[target].handle_message(now, (GROUP, ReplicaId(at as u32 + 1)), message);
                    self.spent[target] += began.elapsed().as_nanos();
                }
            }
        }
    }
}

#[test]
#[ignore = "a measurement"]
fn single_group_command_costs_microseconds() {
    for voters in [1, 3] {
        let mut cluster = Cluster::new(voters);
        while !cluster.cores[0].is_ready() {
            cluster.now += 10_000_000;
            for at in 0..cluster.cores.len() {
                cluster.cores[at].handle_timeout(Time(cluster.now));
            }
            cluster.settle();
        }
        let session = SessionId(77);
        cluster.cores[0].handle_session(Time(cluster.now), SessionChange::Open(session));
        cluster.settle();
        cluster.spent.fill(0);
        let (batches, batch) = (2_000, 50);
        for round in 0..batches {
            let commands: Vec<Arc<Command>> = (0..batch)
                .map(|at| {
                    let sequence = round * batch + at + 1;
                    let footprint = vec![(Key(1), Mode::Add), (Key(1000 + sequence), Mode::Write)];
                    Arc::new(Command {
                        id: CommandId { session, sequence },
                        acknowledged_below: (round * batch).max(1),
                        clock: VectorClock::new(),
                        destinations: vec![Destination { group: GROUP, footprint: footprint.into() }],
                        payload: Bytes::from(vec![7; 200]),
                    })
                })
                .collect();
            cluster.now += 10_000;
            let began = Instant::now();
            for command in commands {
                cluster.cores[0].handle_submit(Time(cluster.now), command);
            }
            cluster.spent[0] += began.elapsed().as_nanos();
            cluster.settle();
        }
        let count = u128::from(batches * batch);
        assert!(u128::from(cluster.cores[0].order().applied().0) > count);
        let each: Vec<u128> = cluster.spent.iter().map(|spent| spent / count).collect();
        println!("{voters} voters: ns per command in each core: {each:?}");
    }
}
