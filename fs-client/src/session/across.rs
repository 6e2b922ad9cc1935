//! A client's own updates of several groups. Each of these groups executes one by itself: what one of them shows, another may
//! have yet to do.

use std::collections::BTreeMap;
use std::sync::Arc;

use metadata::op::FsOp;
use metadata::protocol::Executed;
use multicast::command::Destination;
use multicast::ids::{GroupId, LogIndex};

use crate::cache::Cache;
use crate::session::fill;
use crate::session::progress::StreamId;

/// So many that were answered are remembered until all their groups have told of them; of older ones that is not learned.
const ANSWERED_MAX: usize = 256;
/// More than can be under way: of others nobody will ever know what became of them.
const OPEN_MAX: usize = 1 << 14;

/// See the module.
#[derive(Debug, Default)]
pub struct Across {
    answered: BTreeMap<u64, Own>,
    /// Those that nobody has answered yet.
    open: BTreeMap<u64, Own>,
}

#[derive(Debug)]
struct Own {
    op: Arc<FsOp>,
    destinations: Arc<[Destination]>,
    /// Groups of which its answer or its execution has taught something.
    counted: Vec<GroupId>,
}

impl Across {
    /// One is asked for, perhaps again.
    pub fn expect(&mut self, sequence: u64, op: &Arc<FsOp>, destinations: &Arc<[Destination]>) {
        if destinations.len() < 2 || self.answered.contains_key(&sequence) {
            return;
        }
        let own = || Own { op: op.clone(), destinations: destinations.clone(), counted: Vec::new() };
        self.open.entry(sequence).or_insert_with(own);
        if self.open.len() > OPEN_MAX {
            self.open.pop_first();
        }
    }

    /// The groups that have told of it already, or of which an answer has.
    pub fn counted(&self, sequence: u64) -> &[GroupId] {
        let own = self.open.get(&sequence).or_else(|| self.answered.get(&sequence));
        own.map_or(&[], |own| &own.counted)
    }

    /// It was answered, and of these groups that has taught something.
    pub fn answer(&mut self, sequence: u64, learned: impl IntoIterator<Item = GroupId>) {
        if let Some(own) = self.open.remove(&sequence) {
            self.answered.insert(sequence, own);
        }
        if let Some(own) = self.answered.get_mut(&sequence) {
            own.counted.extend(learned);
        }
        if self.answered.len() > ANSWERED_MAX {
            self.answered.pop_first();
        }
    }

    /// A group has executed one, as its stream tells.
    pub fn execute(
        &mut self,
        cache: &Cache,
        (group, stream): (GroupId, StreamId),
        executed: &Executed,
        index: LogIndex,
    ) {
        let Executed { sequence, done } = executed;
        let Some(own) = self.answered.get_mut(sequence).or_else(|| self.open.get_mut(sequence)) else { return };
        let is_counted = own.counted.contains(&group);
        // A replica that a later stream comes from may have yet to execute it.
        if fill::executed(cache, (group, stream), (&own.op, done), index, is_counted) && !is_counted {
            own.counted.push(group);
        }
    }

    /// What was seen may show what some of those without an answer have done: what they change in these groups is forgotten.
    pub fn forget_open(&self, cache: &Cache, groups: &[GroupId]) {
        for &group in groups {
            for own in self.open.values() {
                let keys: Vec<_> = fill::changed(&own.destinations, group).collect();
                if !keys.is_empty() {
                    cache.forget(group, keys);
                }
            }
        }
    }
}
