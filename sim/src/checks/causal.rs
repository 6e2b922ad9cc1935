//! No client reads backwards; no read misses a write in its causal past; what is read was there. The past of a client goes
//! through its replies and reads, and through what each command depended on in any of its groups.

use std::collections::{BTreeMap, HashMap};

use metadata::op::{FsOp, RenameMode};
use metadata::outcome::Done;
use metadata::read::{ReadAnswer, ReadOp, ReadResult};
use metadata::types::Attr;
use multicast::command::{Key, Mode};
use multicast::ids::GroupId;

use super::history::{History, footprint};
use super::ledger::{Execution, How, Ledger, Seen};
use super::truth::{Span, fits};

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

/// What a client's own update, executed elsewhere, said of a directory: as it will be in its group once the update has executed
/// there too, if nobody else changes it meanwhile. Where somebody does, adding what commutes with it, no state of the group
/// was ever so: the client sees its own update before one that it knows nothing of, and that the group put before it.
struct Foretold {
    attr: Attr,
    number: usize,
}

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
    let mut listed_at: HashMap<(usize, u64), u64> = HashMap::new();
    let mut foretold: HashMap<usize, Vec<Foretold>> = HashMap::new();
    // A later stream may begin with less than what an earlier one has told.
    let mut told_most: HashMap<(usize, GroupId), u64> = HashMap::new();
    for seen in &ledger.seen {
        match seen {
            Seen::Submitted { client, id, .. } => {
                if let Some(&number) = history.numbers.get(id) {
                    let past = pasts.entry(*client).or_default().clone();
                    causes.knew.entry(number).or_insert(past);
                }
            }
            Seen::Replied { at, client, id, group, outcome } => {
                let Some(&number) = history.numbers.get(id) else { continue };
                let directories = outcome.as_ref().map_or(&[][..], Done::directories).iter();
                let elsewhere = directories.filter(|attr| attr.home != *group);
                let told = elsewhere.map(|attr| Foretold { attr: attr.clone(), number });
                foretold.entry(*client).or_default().extend(told);
                acknowledged.entry(*group).or_default().push((*at, number));
                let closed = causes.close(number);
                pasts.entry(*client).or_default().merge(&closed);
            }
            Seen::Asked { client, ask } => {
                asked.insert((*client, *ask), pasts.entry(*client).or_default().clone());
            }
            Seen::Listed { client, listed } => {
                let indexes: Vec<u64> =
                    listed.pieces.iter().filter_map(|(ask, _)| listed_at.get(&(*client, *ask)).copied()).collect();
                ledger.check_listed(listed, &indexes).map_err(|what| {
                    format!("client {client} listed {} of {} at {indexes:?}: {what}", listed.dir, listed.group)
                })?;
            }
            Seen::Read { ask, client, group, op, result, index, how: How::Kept { told }, .. } => {
                let past = asked.remove(&(*client, *ask)).unwrap_or_default();
                // The earliest that its past allows: of what came later it need not know.
                let spans = ledger.when_true(*group, op, result, index.0);
                let misses = |span: &Span| causes.misses(*group, op, span.until, |number| past.has(number));
                let shown = spans.iter().find(|span| misses(span).is_none()).map(|span| span.from);
                let own = foretold.get(client).map_or(&[][..], Vec::as_slice);
                let position = told_most.entry((*client, *group)).or_default();
                *position = told.0.max(*position);
                let position = *position;
                let pending = || causes.foretold(ledger, (*group, op, position), result, own, &past);
                let Some(shown) = shown.or_else(pending) else {
                    let why = match spans.last().and_then(misses) {
                        Some((_, missed)) => format!("{} at {:?}", history.ids[missed], history.index(missed, *group)),
                        None => "that it never was so".to_owned(),
                    };
                    return Err(format!(
                        "client {client} answered {op:?} of {group} itself, at {index}: {result:?}, and missed {why}"
                    ));
                };
                for number in causes.seen_by(*group, op, shown) {
                    let closed = causes.close(number);
                    pasts.entry(*client).or_default().merge(&closed);
                }
            }
            Seen::Read { ask, since, client, group, op, result, index, how } => {
                if let Some(answer) = ledger.answer_at(*group, op, index.0) {
                    fits(op, result, answer).then_some(()).ok_or_else(|| {
                        format!("client {client} read {op:?} of {group} at {index} as {result:?}, it was {answer:?}")
                    })?;
                }
                if let ReadOp::ReadDir { .. } = op {
                    listed_at.insert((*client, *ask), index.0);
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
                if *how == How::AsOfNow {
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

    /// The state of the group behind what the client's own update, of whose execution there its stream has not told up to
    /// `position`, has foretold of a directory, if that is what it read, and nothing else of its past came later.
    fn foretold(
        &self,
        ledger: &Ledger,
        (group, op, position): (GroupId, &ReadOp, u64),
        result: &ReadResult,
        foretold: &[Foretold],
        past: &Past,
    ) -> Option<u64> {
        foretold.iter().find_map(|Foretold { attr, number }| {
            // Without another update between the two, the group's own state must have been so.
            let executed = self.history.index(*number, group).unwrap_or(u64::MAX);
            let locked = ledger.locked.get(&(group, self.history.ids[*number]))?.0;
            let is_changed_until = |end: u64| {
                op.keys().into_iter().any(|key| {
                    let changes = self.changes.get(&(group, key)).map_or(&[][..], Vec::as_slice);
                    changes.iter().any(|(at, _)| *at > locked && *at < end)
                })
            };
            // A change that its stream has told of ends what was foretold.
            let is_beside_another = is_changed_until(executed) && !is_changed_until(position + 1);
            let was = Ok(ReadAnswer::Attr(Box::new(attr.clone())));
            let shows = attr.home == group && *op == ReadOp::GetAttr { ino: attr.ino } && fits(op, result, &was);
            let missed = |other: usize| other != *number && past.has(other);
            (executed > position && is_beside_another && shows && self.misses(group, op, locked, missed).is_none())
                .then_some(locked)
        })
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
