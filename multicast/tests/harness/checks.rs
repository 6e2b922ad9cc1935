//! Checkers that watch from outside.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use bytes::Bytes;
use multicast::command::{Command, Key, Mode};
use multicast::ids::{CommandId, GroupId, LogIndex};
use multicast::record::Rejection;

use super::machine::Executed;

/// What clients saw, in the order of time.
#[derive(Clone, Debug)]
pub enum Seen {
    Submit { client: usize, id: CommandId, at: u64 },
    Reply { client: usize, id: CommandId, at: u64, result: Result<Bytes, Rejection>, group: GroupId },
    Read { client: usize, group: GroupId, key: Key, got: Option<CommandId> },
}

#[derive(Default)]
pub struct Checks {
    /// Hash of the record and digest of the state at each index of each group.
    records: HashMap<(GroupId, LogIndex), u64>,
    states: HashMap<(GroupId, LogIndex), u64>,
    pub seen: Vec<Seen>,
    pub commands: BTreeMap<CommandId, std::sync::Arc<Command>>,
}

impl Checks {
    pub fn applied(&mut self, group: GroupId, index: LogIndex, record: u64, state: Option<u64>) {
        let known = *self.records.entry((group, index)).or_insert(record);
        assert_eq!(known, record, "{group} has one record at {index}");
        if let Some(state) = state {
            let known = *self.states.entry((group, index)).or_insert(state);
            assert_eq!(known, state, "{group} has one state at {index}");
        }
    }

    /// The final check. `histories` are what each group executed, in order.
    pub fn finish(&self, histories: &BTreeMap<GroupId, Vec<Executed>>, classic: bool) {
        self.exactly_once(histories);
        self.joint_verdicts(histories);
        self.strictly_serializable(histories, classic);
        self.causal_reads(histories);
    }

    fn exactly_once(&self, histories: &BTreeMap<GroupId, Vec<Executed>>) {
        let mut executed: BTreeMap<(GroupId, CommandId), &Executed> = BTreeMap::new();
        for (&group, history) in histories {
            for entry in history {
                let again = executed.insert((group, entry.id), entry).is_some();
                assert!(!again, "{} executed once in {group}", entry.id);
            }
        }
        for (&(group, id), entry) in &executed {
            for other in &entry.groups {
                assert!(executed.contains_key(&(*other, id)), "{id} executed in {group}, so in {other}");
            }
        }
        let mut acknowledged: BTreeMap<CommandId, bool> = BTreeMap::new();
        for seen in &self.seen {
            let Seen::Reply { id, result, group, .. } = seen else { continue };
            let is_ok = result.is_ok();
            assert_eq!(*acknowledged.entry(*id).or_insert(is_ok), is_ok, "{id} has one fate");
            match (result, executed.get(&(*group, *id))) {
                (Ok(outcome), Some(entry)) => assert_eq!(*outcome, entry.outcome, "{id} told what it did"),
                (Ok(_), None) => panic!("{id} was acknowledged by {group} and lost"),
                (Err(rejection), Some(_)) => panic!("{id} was rejected ({rejection:?}) and executed"),
                (Err(_), None) => {}
            }
        }
    }

    fn joint_verdicts(&self, histories: &BTreeMap<GroupId, Vec<Executed>>) {
        let mut verdicts: BTreeMap<CommandId, (u64, u64)> = BTreeMap::new();
        for entry in histories.values().flatten() {
            let verdict = (entry.verdict, entry.timestamp);
            assert_eq!(*verdicts.entry(entry.id).or_insert(verdict), verdict, "{} has one verdict", entry.id);
        }
    }

    /// Conflict order in every group together with real time has no cycle.
    fn strictly_serializable(&self, histories: &BTreeMap<GroupId, Vec<Executed>>, classic: bool) {
        let mut edges: BTreeMap<CommandId, BTreeSet<CommandId>> = BTreeMap::new();
        let multi = |entry: &Executed| entry.groups.len() > 1;
        for history in histories.values() {
            for (at, earlier) in history.iter().enumerate() {
                for later in &history[at + 1..] {
                    let all_ordered = classic && (multi(earlier) || multi(later));
                    if all_ordered || conflict(&earlier.footprint, &later.footprint) {
                        edges.entry(earlier.id).or_default().insert(later.id);
                    }
                }
            }
        }
        let mut submitted: BTreeMap<CommandId, u64> = BTreeMap::new();
        let mut replied: BTreeMap<CommandId, u64> = BTreeMap::new();
        for seen in &self.seen {
            match seen {
                Seen::Submit { id, at, .. } => {
                    submitted.entry(*id).or_insert(*at);
                }
                Seen::Reply { id, at, result: Ok(_), .. } => {
                    replied.entry(*id).or_insert(*at);
                }
                Seen::Reply { .. } | Seen::Read { .. } => {}
            }
        }
        let executed: BTreeSet<CommandId> = histories.values().flatten().map(|entry| entry.id).collect();
        for (id, at) in replied.iter().filter(|(id, _)| executed.contains(id)) {
            for (other, began) in submitted.iter().filter(|(other, _)| executed.contains(other)) {
                if at < began {
                    edges.entry(*id).or_default().insert(*other);
                }
            }
        }
        assert_acyclic(&edges);
    }

    /// No read misses a write in its causal past, which goes through replies, reads, and what a command depended on in any of
    /// its groups.
    fn causal_reads(&self, histories: &BTreeMap<GroupId, Vec<Executed>>) {
        let numbers: BTreeMap<CommandId, usize> = self.commands.keys().enumerate().map(|(at, &id)| (id, at)).collect();
        let ids: Vec<CommandId> = self.commands.keys().copied().collect();
        // Writes of each key in order, and for each command the writers that it saw in each of its groups.
        let mut writes: BTreeMap<(GroupId, Key), Vec<CommandId>> = BTreeMap::new();
        let mut saw: Vec<BTreeSet<usize>> = vec![BTreeSet::new(); ids.len()];
        for (&group, history) in histories {
            let mut last: BTreeMap<Key, CommandId> = BTreeMap::new();
            for entry in history {
                for (key, mode) in &entry.footprint {
                    if *mode != Mode::Add
                        && let Some(writer) = last.get(key)
                    {
                        saw[numbers[&entry.id]].insert(numbers[writer]);
                    }
                    if *mode == Mode::Write {
                        last.insert(*key, entry.id);
                        writes.entry((group, *key)).or_default().push(entry.id);
                    }
                }
            }
        }
        let position = |group: GroupId, key: Key, id: CommandId| {
            writes.get(&(group, key)).and_then(|order| order.iter().position(|&writer| writer == id))
        };
        let mut pasts: BTreeMap<usize, BTreeSet<usize>> = BTreeMap::new();
        let mut snapshots: BTreeMap<usize, BTreeSet<usize>> = BTreeMap::new();
        for seen in &self.seen {
            match seen {
                Seen::Submit { client, id, .. } => {
                    let past = pasts.entry(*client).or_default().clone();
                    snapshots.entry(numbers[id]).or_insert(past);
                }
                Seen::Reply { client, id, result: Ok(_), .. } => {
                    let causes = causes_of(numbers[id], &snapshots, &saw);
                    pasts.entry(*client).or_default().extend(causes);
                }
                Seen::Reply { .. } => {}
                Seen::Read { client, group, key, got } => {
                    let past = pasts.entry(*client).or_default();
                    let got_at = got.map(|got| position(*group, *key, got).expect("what was read was written"));
                    for &cause in past.iter() {
                        if let Some(at) = position(*group, *key, ids[cause]) {
                            assert!(
                                got_at.is_some_and(|got_at| got_at >= at),
                                "client {client} read {key:?} of {group} as {got:?} and missed its cause {}",
                                ids[cause]
                            );
                        }
                    }
                    if let Some(got) = got {
                        let causes = causes_of(numbers[got], &snapshots, &saw);
                        past.extend(causes);
                    }
                }
            }
        }
    }
}

fn causes_of(command: usize, snapshots: &BTreeMap<usize, BTreeSet<usize>>, saw: &[BTreeSet<usize>]) -> BTreeSet<usize> {
    let mut causes = BTreeSet::from([command]);
    let mut open = vec![command];
    while let Some(next) = open.pop() {
        for &cause in snapshots.get(&next).into_iter().flatten() {
            causes.insert(cause);
        }
        for &writer in &saw[next] {
            if causes.insert(writer) || !snapshots.contains_key(&writer) {
                open.push(writer);
            }
        }
    }
    causes
}

pub fn conflict(a: &[(Key, Mode)], b: &[(Key, Mode)]) -> bool {
    a.iter().any(|(key, mode)| b.iter().any(|(other, theirs)| key == other && mode.conflicts(*theirs)))
}

fn assert_acyclic(edges: &BTreeMap<CommandId, BTreeSet<CommandId>>) {
    let mut incoming: BTreeMap<CommandId, usize> = BTreeMap::new();
    for (&from, targets) in edges {
        incoming.entry(from).or_default();
        for &to in targets {
            *incoming.entry(to).or_default() += 1;
        }
    }
    let mut free: Vec<CommandId> = incoming.iter().filter(|(_, count)| **count == 0).map(|(&id, _)| id).collect();
    let mut done = 0;
    while let Some(id) = free.pop() {
        done += 1;
        for target in edges.get(&id).into_iter().flatten() {
            let count = incoming.get_mut(target).unwrap();
            *count -= 1;
            if *count == 0 {
                free.push(*target);
            }
        }
    }
    assert_eq!(done, incoming.len(), "conflicts and real time agree on one order");
}
