//! Exactly once, all or nothing, and one order: the executions of all groups together with what clients saw of time.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap};

use metadata::outcome::{Done, Outcome};
use multicast::command::{Footprint, Key, Mode};
use multicast::ids::{CommandId, GroupId};

use super::ledger::{Execution, Ledger, Seen};

/// Every executed command, with where it was executed.
#[derive(Debug)]
pub struct History<'a> {
    /// By number.
    pub ids: Vec<CommandId>,
    /// Numbers.
    pub numbers: HashMap<CommandId, usize>,
    /// By number: each group's execution.
    pub executions: Vec<BTreeMap<GroupId, &'a Execution>>,
}

impl<'a> History<'a> {
    /// From what was written down.
    ///
    /// # Errors
    /// If a group has executed something twice.
    pub fn new(ledger: &'a Ledger) -> Result<History<'a>, String> {
        let mut history = History { ids: Vec::new(), numbers: HashMap::new(), executions: Vec::new() };
        for (&group, executed) in &ledger.executed {
            for execution in executed {
                let id = execution.command.id;
                let number = *history.numbers.entry(id).or_insert_with(|| {
                    history.ids.push(id);
                    history.executions.push(BTreeMap::new());
                    history.ids.len() - 1
                });
                if history.executions[number].insert(group, execution).is_some() {
                    return Err(format!("{id} was executed twice in {group}"));
                }
            }
        }
        Ok(history)
    }

    /// An execution of the command, in its first group.
    #[must_use]
    pub fn first(&self, number: usize) -> Option<&'a Execution> {
        self.executions[number].values().next().copied()
    }

    /// Where the group executed the command.
    #[must_use]
    pub fn index(&self, number: usize, group: GroupId) -> Option<u64> {
        self.executions[number].get(&group).map(|execution| execution.index.0)
    }

    /// Executed once, in all of its groups, alike, as its client was told.
    ///
    /// # Errors
    /// What does not hold.
    pub fn check_once(&self, ledger: &Ledger) -> Result<(), String> {
        for (number, executions) in self.executions.iter().enumerate() {
            let id = self.ids[number];
            let Some(first) = self.first(number) else { continue };
            for group in first.command.groups() {
                let Some(other) = executions.get(&group) else {
                    return Err(format!("{id} was executed, but not in {group}"));
                };
                if !alike(&first.outcome, &other.outcome) {
                    return Err(format!("{id} ended {:?} and, in {group}, {:?}", first.outcome, other.outcome));
                }
            }
        }
        let mut updates: BTreeMap<(usize, u64), CommandId> = BTreeMap::new();
        for seen in &ledger.seen {
            match seen {
                Seen::Submitted { client, update, id, .. } if self.numbers.contains_key(id) => {
                    if let Some(other) = updates.insert((*client, *update), *id)
                        && other != *id
                    {
                        return Err(format!("one update of client {client} was executed as {other} and as {id}"));
                    }
                }
                Seen::Replied { id, group, outcome, client, .. } => {
                    let number = self.numbers.get(id);
                    let Some(executed) = number.and_then(|&number| self.executions[number].get(group)) else {
                        return Err(format!("{id} was acknowledged to client {client} by {group} and is lost"));
                    };
                    if !is_told(&executed.outcome, outcome) {
                        return Err(format!("{id} gave {:?}, client {client} was told {outcome:?}", executed.outcome));
                    }
                }
                Seen::Submitted { .. } | Seen::Asked { .. } | Seen::Read { .. } | Seen::Listed { .. } => {}
            }
        }
        Ok(())
    }

    /// One order of all commands that agrees with every group's order of conflicting ones and with real time.
    ///
    /// # Errors
    /// If there is none.
    pub fn order(&self, ledger: &Ledger) -> Result<Vec<usize>, String> {
        let mut graph = Graph::new(self.ids.len());
        for executed in ledger.executed.values() {
            self.add_conflicts(&mut graph, executed);
        }
        self.add_time(&mut graph, ledger);
        graph.sort(self.ids.len()).map_err(|left| {
            let some: Vec<String> = left.iter().take(6).map(|&number| self.ids[number].to_string()).collect();
            format!("no order of {} commands agrees with all groups and with time, such as {some:?}", left.len())
        })
    }

    fn add_conflicts(&self, graph: &mut Graph, executed: &[Execution]) {
        let mut touched: BTreeMap<Key, Touched> = BTreeMap::new();
        for execution in executed {
            let number = self.numbers[&execution.command.id];
            for (key, mode) in footprint(execution) {
                let before = touched.entry(key).or_default();
                before.written.iter().for_each(|&other| graph.add(other, number));
                if mode != Mode::Read {
                    before.read.iter().for_each(|&other| graph.add(other, number));
                }
                if mode != Mode::Add {
                    before.added.iter().for_each(|&other| graph.add(other, number));
                }
                match mode {
                    Mode::Read => before.read.push(number),
                    Mode::Add => before.added.push(number),
                    Mode::Write => *before = Touched { written: Some(number), ..Touched::default() },
                }
            }
        }
    }

    /// What was answered before something was asked comes before it. A chain of moments keeps the edges few.
    fn add_time(&self, graph: &mut Graph, ledger: &Ledger) {
        let mut moment = None;
        let mut begun = BTreeSet::new();
        for seen in &ledger.seen {
            match seen {
                Seen::Submitted { id, .. } => {
                    if let (Some(&number), Some(moment)) = (self.numbers.get(id), moment)
                        && begun.insert(number)
                    {
                        graph.add(moment, number);
                    }
                }
                Seen::Replied { id, .. } => {
                    let Some(&number) = self.numbers.get(id) else { continue };
                    let next = graph.vertex();
                    graph.add(number, next);
                    if let Some(moment) = moment {
                        graph.add(moment, next);
                    }
                    moment = Some(next);
                }
                Seen::Asked { .. } | Seen::Read { .. } | Seen::Listed { .. } => {}
            }
        }
    }
}

#[derive(Default)]
struct Touched {
    written: Option<usize>,
    read: Vec<usize>,
    added: Vec<usize>,
}

/// The footprint that the command should have had in the group where it was executed.
#[must_use]
pub fn footprint(execution: &Execution) -> Footprint {
    let destinations = execution.op.destinations();
    let own = destinations.into_iter().find(|destination| destination.group == execution.group);
    own.map(|destination| destination.footprint).unwrap_or_default()
}

/// A client is told what came out, perhaps without the directories: they may have changed since.
fn is_told(executed: &Outcome, told: &Outcome) -> bool {
    let (Ok(executed), Ok(told)) = (executed, told) else { return executed == told };
    let mut executed = executed.clone();
    if told.directories().is_empty() {
        match &mut executed {
            Done::Node { directories, .. } | Done::Removed { directories, .. } | Done::Renamed { directories, .. } => {
                directories.clear();
            }
            Done::Nothing | Done::Staged { .. } => {}
        }
    }
    executed == *told
}

/// The same verdict. Attributes of inodes that live elsewhere may differ.
fn alike(a: &Outcome, b: &Outcome) -> bool {
    match (a, b) {
        (Ok(_), Ok(_)) => true,
        (Err(a), Err(b)) => a == b,
        (Ok(_), Err(_)) | (Err(_), Ok(_)) => false,
    }
}

struct Graph {
    out: Vec<Vec<usize>>,
    incoming: Vec<usize>,
}

impl Graph {
    fn new(count: usize) -> Graph {
        Graph { out: vec![Vec::new(); count], incoming: vec![0; count] }
    }

    fn vertex(&mut self) -> usize {
        self.out.push(Vec::new());
        self.incoming.push(0);
        self.out.len() - 1
    }

    fn add(&mut self, from: usize, to: usize) {
        if from != to {
            self.out[from].push(to);
            self.incoming[to] += 1;
        }
    }

    /// Vertices below `count` in order, or those that are left in cycles.
    fn sort(mut self, count: usize) -> Result<Vec<usize>, Vec<usize>> {
        let free = self.incoming.iter().enumerate().filter(|(_, incoming)| **incoming == 0);
        let mut free: BinaryHeap<Reverse<usize>> = free.map(|(vertex, _)| Reverse(vertex)).collect();
        let mut order = Vec::with_capacity(count);
        while let Some(Reverse(vertex)) = free.pop() {
            if vertex < count {
                order.push(vertex);
            }
            for next in std::mem::take(&mut self.out[vertex]) {
                self.incoming[next] -= 1;
                if self.incoming[next] == 0 {
                    free.push(Reverse(next));
                }
            }
        }
        if order.len() == count { Ok(order) } else { Err((0..count).filter(|at| self.incoming[*at] > 0).collect()) }
    }
}
