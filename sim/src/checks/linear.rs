//! A black box: is there an order of the clients' updates, each at some moment between its call and its return, in which one
//! tree gives every answer that they got? Nothing is known but calls and answers; what was never answered may have happened at
//! any moment after its call, or never.
//!
//! The search is that of Wing and Gong, with Lowe's memory of what was tried: what has been placed, and the state that this
//! led to. It is bounded. A history that is too big for it is searched in pieces: what one place, or the places of one rename,
//! show of it must have an order too.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use xxhash_rust::xxh3::xxh3_128;

use super::footprint::{Atom, Effect, Operation, Place, Value, begin_with, operation};
use super::ledger::{Ledger, Seen};

/// Tries of one search.
const TRIES_MAX: usize = 20_000;
/// Pieces of one history.
const PIECES_MAX: usize = 80;

/// What was searched of one history.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Searched {
    /// Histories that were decided as a whole.
    pub whole: u64,
    /// Pieces of others that were decided.
    pub pieces: u64,
    /// Pieces that were not.
    pub too_big: u64,
}

/// Searches a run's history.
///
/// # Errors
/// If no order explains it.
pub fn check(ledger: &Ledger) -> Result<Searched, String> {
    let operations = operations(ledger);
    let everything: BTreeSet<&Place> = operations.iter().flat_map(Operation::places).collect();
    let mut searched = Searched::default();
    match search(&operations, &everything)? {
        true => searched.whole = 1,
        false => {
            for places in pieces(&operations) {
                match search(&operations, &places)? {
                    true => searched.pieces += 1,
                    false => searched.too_big += 1,
                }
            }
        }
    }
    Ok(searched)
}

/// What clients did, as they saw it.
fn operations(ledger: &Ledger) -> Vec<Operation> {
    let mut begun = BTreeMap::new();
    let mut by_id = BTreeMap::new();
    let mut ended = BTreeMap::new();
    for (moment, seen) in ledger.seen.iter().enumerate() {
        match seen {
            Seen::Submitted { client, update, id, op } => {
                begun.entry((*client, *update)).or_insert((moment, op));
                by_id.insert(*id, (*client, *update));
            }
            Seen::Replied { id, outcome, .. } => {
                if let Some(&update) = by_id.get(id) {
                    ended.entry(update).or_insert((moment, outcome));
                }
            }
            Seen::Asked { .. } | Seen::Read { .. } | Seen::Listed { .. } => {}
        }
    }
    let mut operations: Vec<Operation> = Vec::new();
    for (update, (moment, op)) in begun {
        let end = ended.get(&update);
        let outcome = end.map(|(_, outcome)| *outcome);
        operations.extend(operation(op, outcome, (moment, end.map(|(moment, _)| *moment))));
    }
    operations.sort_by_key(|operation| operation.begun);
    operations
}

/// Small connected sets of places: each alone, and those of each operation that touches several.
fn pieces(operations: &[Operation]) -> Vec<BTreeSet<&Place>> {
    let mut pieces: BTreeSet<BTreeSet<&Place>> = BTreeSet::new();
    for operation in operations {
        let places: BTreeSet<&Place> = operation.places().collect();
        pieces.extend(places.iter().map(|place| BTreeSet::from([*place])));
        pieces.insert(places);
    }
    pieces.into_iter().filter(|places| !places.is_empty()).take(PIECES_MAX).collect()
}

/// True if there is an order, as far as these places show; false if the search was given up.
fn search(operations: &[Operation], places: &BTreeSet<&Place>) -> Result<bool, String> {
    let numbers: BTreeMap<&Place, usize> = places.iter().enumerate().map(|(number, place)| (*place, number)).collect();
    let known: BTreeSet<u64> = operations.iter().filter_map(|operation| operation.creates).collect();
    let steps: Vec<Step<'_>> = operations.iter().filter_map(|operation| Step::new(operation, &numbers)).collect();
    let values = places.iter().map(|place| begin_with(place, &known)).collect();
    let mut search = Search {
        known,
        placed: vec![false; steps.len()],
        values,
        tried: HashSet::new(),
        left: TRIES_MAX,
        deepest: (0, String::new()),
        steps,
    };
    match search.go_on(0) {
        Some(true) => Ok(true),
        None => Ok(false),
        Some(false) => {
            let (placed, blocked) = search.deepest;
            let all = search.steps.len();
            Err(format!("no order explains what clients were told: of {all} updates {placed} fit, not {blocked}"))
        }
    }
}

/// An operation, as far as the searched places show it.
struct Step<'a> {
    operation: &'a Operation,
    before: Vec<Vec<(usize, &'a Atom)>>,
    effects: Vec<(usize, Effect)>,
    after: Vec<(usize, &'a Atom)>,
}

impl<'a> Step<'a> {
    /// None if they show nothing of it.
    fn new(operation: &'a Operation, numbers: &BTreeMap<&Place, usize>) -> Option<Step<'a>> {
        let number = |place: &Place| numbers.get(place).copied();
        // Of a choice everything must be in sight, else it may be explained by what is not.
        let clause = |atoms: &'a Vec<Atom>| {
            let seen: Vec<_> = atoms.iter().filter_map(|atom| Some((number(&atom.place)?, atom))).collect();
            (seen.len() == atoms.len()).then_some(seen)
        };
        let before: Vec<Vec<(usize, &Atom)>> = operation.before.iter().filter_map(clause).collect();
        let effects: Vec<(usize, Effect)> =
            operation.effects.iter().filter_map(|(place, effect)| Some((number(place)?, *effect))).collect();
        let after: Vec<(usize, &Atom)> =
            operation.after.iter().filter_map(|atom| Some((number(&atom.place)?, atom))).collect();
        let shows = !before.is_empty() || !effects.is_empty() || !after.is_empty();
        shows.then_some(Step { operation, before, effects, after })
    }
}

struct Search<'a> {
    steps: Vec<Step<'a>>,
    /// Inodes that are known to have been created.
    known: BTreeSet<u64>,
    placed: Vec<bool>,
    values: Vec<Value>,
    tried: HashSet<u128>,
    left: usize,
    deepest: (usize, String),
}

impl Search<'_> {
    /// Places the rest; none if it took too long.
    fn go_on(&mut self, count: usize) -> Option<bool> {
        let open = || self.steps.iter().zip(&self.placed).filter(|(_, placed)| !**placed);
        let Some(deadline) = open().filter_map(|(step, _)| step.operation.ended).min() else { return Some(true) };
        if !self.tried.insert(self.fingerprint()) {
            return Some(false);
        }
        self.left = self.left.checked_sub(1)?;
        let is_next = |at: &usize| !self.placed[*at] && self.steps[*at].operation.begun < deadline;
        let mut next: Vec<usize> = (0..self.steps.len()).filter(is_next).collect();
        // Whatever returned first was most likely first; what nobody knows of comes when nothing else fits.
        next.sort_by_key(|&at| self.steps[at].operation.ended.unwrap_or(usize::MAX));
        if self.deepest.0 <= count {
            let blocked: Vec<&str> = next.iter().take(3).map(|&at| self.steps[at].operation.words.as_str()).collect();
            self.deepest = (count, blocked.join(" nor "));
        }
        for at in next {
            let before = self.values.clone();
            if self.take(at) {
                self.placed[at] = true;
                match self.go_on(count + 1) {
                    Some(false) => self.placed[at] = false,
                    end => return end,
                }
            }
            self.values = before;
        }
        Some(false)
    }

    /// Applies a step; false if it cannot be here.
    fn take(&mut self, at: usize) -> bool {
        let Search { steps, known, values, .. } = self;
        let step = &steps[at];
        let holds = step.before.iter().all(|clause| match clause.as_slice() {
            [(place, atom)] => atom.bind(&mut values[*place], known),
            atoms => atoms.iter().any(|(place, atom)| atom.bind(&mut values[*place].clone(), known)),
        });
        if !holds {
            return false;
        }
        for (place, effect) in &step.effects {
            values[*place] = effect.on(values[*place]);
        }
        step.after.iter().all(|(place, atom)| atom.bind(&mut values[*place], known))
    }

    fn fingerprint(&self) -> u128 {
        let mut bytes = Vec::with_capacity(self.placed.len() + self.values.len() * 9);
        bytes.extend(self.placed.iter().map(|&placed| u8::from(placed)));
        for value in &self.values {
            let (kind, number) = match value {
                Value::Any => (0, 0),
                Value::Nothing => (1, 0),
                Value::Something => (2, 0),
                Value::Is(number) => (3, *number),
            };
            bytes.push(kind);
            bytes.extend(number.to_le_bytes());
        }
        xxh3_128(&bytes)
    }
}

#[cfg(test)]
mod tests;
