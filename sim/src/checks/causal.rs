//! No client reads backwards; no read misses a write in its causal past; what is read was there. The past of a client goes
//! through its replies and reads, and through what each command depended on in any of its groups.

use std::collections::{BTreeMap, HashMap};

use metadata::op::{FsOp, RenameMode};
use metadata::outcome::{Errno, OpError};
use metadata::read::{ReadAnswer, ReadOp, ReadResult};
use metadata::types::Attr;
use multicast::command::{Key, Mode};
use multicast::ids::GroupId;

use super::history::{History, footprint};
use super::ledger::{Execution, Ledger, Seen, place};

/// A set of commands.
#[derive(Clone, Debug, Default)]
struct Past(Vec<u64>);

impl Past {
    fn add(&mut self, number: usize) {
        if self.0.len() <= number / 64 {
            self.0.resize(number / 64 + 1, 0);
        }
        self.0[number / 64] |= 1 << (number % 64);
    }

    fn has(&self, number: usize) -> bool {
        self.0.get(number / 64).is_some_and(|word| word >> (number % 64) & 1 == 1)
    }

    fn merge(&mut self, other: &Past) {
        if self.0.len() < other.0.len() {
            self.0.resize(other.0.len(), 0);
        }
        self.0.iter_mut().zip(&other.0).for_each(|(own, theirs)| *own |= theirs);
    }
}

/// A change of one key: where in the group's log, by which command.
type Changes = BTreeMap<(GroupId, Key), Vec<(u64, usize)>>;

struct Causes<'a> {
    history: &'a History<'a>,
    /// Commands whose effect each command saw directly.
    saw: Vec<Vec<usize>>,
    /// What its client knew when it first sent it.
    knew: HashMap<usize, Past>,
    closed: HashMap<usize, Past>,
    changes: Changes,
}

/// Checks every read.
///
/// # Errors
/// The first read that shows too little, or what never was.
pub fn check(ledger: &Ledger, history: &History<'_>) -> Result<(), String> {
    let mut causes = Causes::new(ledger, history);
    let mut pasts: BTreeMap<usize, Past> = BTreeMap::new();
    let mut asked: HashMap<(usize, u64), Past> = HashMap::new();
    let mut acknowledged: BTreeMap<GroupId, Vec<(u64, usize)>> = BTreeMap::new();
    for seen in &ledger.seen {
        match seen {
            Seen::Submitted { client, id, .. } => {
                if let Some(&number) = history.numbers.get(id) {
                    let past = pasts.entry(*client).or_default().clone();
                    causes.knew.entry(number).or_insert(past);
                }
            }
            Seen::Replied { at, client, id, group, .. } => {
                let Some(&number) = history.numbers.get(id) else { continue };
                acknowledged.entry(*group).or_default().push((*at, number));
                let closed = causes.close(number);
                pasts.entry(*client).or_default().merge(&closed);
            }
            Seen::Asked { client, ask } => {
                asked.insert((*client, *ask), pasts.entry(*client).or_default().clone());
            }
            Seen::Read { ask, since, client, group, op, result, index, linearizable, .. } => {
                if let Some(answer) = ledger.answer_at(*group, op, index.0) {
                    shows(result, answer).then_some(()).ok_or_else(|| {
                        format!("client {client} read {op:?} of {group} at {index} as {result:?}, it was {answer:?}")
                    })?;
                }
                // What came while the read was under way came beside it.
                let mut past = asked.remove(&(*client, *ask)).unwrap_or_default();
                if let Some((key, missed)) = causes.misses(*group, op, index.0, |number| past.has(number)) {
                    return Err(format!(
                        "client {client} read {op:?} of {group} at {index} and missed its cause {} at {:?} ({key:?})",
                        history.ids[missed],
                        history.index(missed, *group)
                    ));
                }
                if *linearizable {
                    let told = acknowledged.get(group).map_or(&[][..], Vec::as_slice);
                    let before = |number: usize| told.iter().any(|&(at, other)| other == number && at < *since);
                    if let Some((_, missed)) = causes.misses(*group, op, index.0, before) {
                        let id = history.ids[missed];
                        return Err(format!("a linearizable read of {op:?} at {index} of {group} missed {id}"));
                    }
                }
                for number in causes.seen_by(*group, op, index.0) {
                    let closed = causes.close(number);
                    pasts.entry(*client).or_default().merge(&closed);
                    past.merge(&closed);
                }
                // What is attached to the answer must fit to it.
                asked.insert((*client, *ask), past);
            }
        }
    }
    Ok(())
}

impl<'a> Causes<'a> {
    fn new(ledger: &Ledger, history: &'a History<'a>) -> Causes<'a> {
        let mut saw = vec![Vec::new(); history.ids.len()];
        let mut changes = Changes::new();
        for (&group, executed) in &ledger.executed {
            // Since the last command that depended on the key: earlier ones are causes of that one.
            let mut news: HashMap<Key, Vec<usize>> = HashMap::new();
            for execution in executed {
                let number = history.numbers[&execution.command.id];
                for (key, mode) in footprint(execution) {
                    let before = news.entry(key).or_default();
                    if mode != Mode::Add {
                        saw[number].extend(before.iter().copied());
                    }
                    if mode.changes() && has_changed(execution) {
                        changes.entry((group, key)).or_default().push((execution.index.0, number));
                        if mode == Mode::Write {
                            before.clear();
                        }
                        before.push(number);
                    }
                }
            }
        }
        Causes { history, saw, knew: HashMap::new(), closed: HashMap::new(), changes }
    }

    /// A command with all its causes.
    fn close(&mut self, number: usize) -> Past {
        let mut open = vec![number];
        while let Some(&next) = open.last() {
            if self.closed.contains_key(&next) {
                open.pop();
                continue;
            }
            let missing: Vec<usize> =
                self.saw[next].iter().copied().filter(|saw| !self.closed.contains_key(saw)).collect();
            if !missing.is_empty() && open.len() <= self.saw.len() * 2 {
                open.extend(missing);
                continue;
            }
            let mut past = self.knew.get(&next).cloned().unwrap_or_default();
            past.add(next);
            for saw in &self.saw[next] {
                if let Some(closed) = self.closed.get(saw) {
                    past.merge(closed);
                }
            }
            self.closed.insert(next, past);
            open.pop();
        }
        self.closed.get(&number).cloned().unwrap_or_default()
    }

    /// A change that belongs to a reader's past but came behind what it read.
    fn misses(&self, group: GroupId, op: &ReadOp, index: u64, in_past: impl Fn(usize) -> bool) -> Option<(Key, usize)> {
        for key in op.keys() {
            let changes = self.changes.get(&(group, key)).map_or(&[][..], Vec::as_slice);
            let missed = changes.iter().rev().take_while(|(at, _)| *at > index).find(|(_, number)| in_past(*number));
            if let Some(&(_, number)) = missed {
                return Some((key, number));
            }
        }
        None
    }

    /// The commands whose effect a read at that index shows.
    fn seen_by(&self, group: GroupId, op: &ReadOp, index: u64) -> Vec<usize> {
        let changes = op.keys().into_iter().filter_map(|key| self.changes.get(&(group, key)));
        let seen = changes.flatten().filter(|(at, _)| *at <= index).map(|(_, number)| *number);
        debug_assert!(self.history.ids.len() == self.saw.len(), "one list of causes per command");
        seen.collect()
    }
}

/// False if it was refused, or had nothing to do: two names of one inode stay.
fn has_changed(execution: &Execution) -> bool {
    let idle = match &*execution.op {
        FsOp::Rename { source, target: Some(target), mode, .. } => {
            source.ino == target.ino && *mode != RenameMode::NoReplace
        }
        _ => false,
    };
    execution.outcome.is_ok() && !idle
}

impl Ledger {
    /// What the group's state answered at that index, if anything has ever changed there.
    fn answer_at(&self, group: GroupId, op: &ReadOp, index: u64) -> Option<&ReadResult> {
        if !matches!(op, ReadOp::Lookup { .. } | ReadOp::GetAttr { .. }) {
            return None;
        }
        let versions = self.versions.get(&place(group, op))?;
        let behind = versions.partition_point(|(at, _)| at.0 <= index);
        let (since, answer) = &versions[behind.checked_sub(1)?];
        let moves = match op {
            ReadOp::Lookup { parent, .. } => self.moved.get(&(group, *parent)),
            _ => None,
        };
        let moved = moves.is_some_and(|moves| moves.iter().any(|at| at > since && at.0 <= index));
        (!moved).then_some(answer)
    }
}

/// True if a client's answer is that of the state. Attributes that come with a name may be left out, and belong to another
/// place; what is gone may have gone with a session.
fn shows(told: &ReadResult, was: &ReadResult) -> bool {
    match (told, was) {
        (Ok(ReadAnswer::Lookup(told)), Ok(ReadAnswer::Lookup(was))) => {
            told.as_ref().map(|(dirent, _)| dirent) == was.as_ref().map(|(dirent, _)| dirent)
        }
        (Err(OpError::Errno(Errno::StaleHandle)), _) | (_, Err(OpError::Errno(Errno::StaleHandle))) => true,
        // The blocks of a file that was cut go in steps, after the command.
        (Ok(ReadAnswer::Attr(told)), Ok(ReadAnswer::Attr(was))) => {
            let Attr { allocated, .. } = **was;
            told.allocated <= allocated && Attr { allocated, ..Attr::clone(told) } == **was
        }
        _ => told == was,
    }
}
