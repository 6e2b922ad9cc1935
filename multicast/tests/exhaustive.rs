//! Small scopes, all of each: no seed, no sample. docs/protocol.md, section 11, says what is left out and why.
//!
//! The ordinary tests take the smaller scopes; `--ignored` the larger ones, which print what they did.

#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

mod explore;
mod harness;

use std::time::Instant;

use explore::actor::{Flush, Identity};
use explore::patterns::{Pattern, Shape, Symmetry};
use explore::search::{Explored, Faults, Reduction, Scope, Violation, explore};
use multicast::planted::Planted;

/// With equal clocks two groups' timestamps may be equal, and ids decide: each command is another.
const EQUAL_CLOCKS: Symmetry = Symmetry { groups: true, commands: false };
/// With clocks that are far apart groups differ, and ids never decide.
const CLOCKS_APART: Symmetry = Symmetry { groups: false, commands: true };
/// Also with equal clocks: for the ordinary tests.
const BOTH: Symmetry = Symmetry { groups: true, commands: true };
const APART: [u64; 3] = [0, 1_000, 2_000];

fn must_hold(scope: &Scope) -> Explored {
    explore(scope).unwrap_or_else(|violation| {
        let Violation { what, trace, states } = violation;
        panic!("{what}, after {states} states of {:?}:\n{trace}", scope.pattern)
    })
}

/// Explores all patterns; prints and returns how much that was.
fn all(name: &str, patterns: &[Pattern], adjust: impl Fn(&mut Scope)) -> Explored {
    let (began, mut total, mut largest) = (Instant::now(), Explored { is_complete: true, ..Explored::default() }, 0);
    for pattern in patterns {
        let mut scope = Scope::of(pattern);
        adjust(&mut scope);
        let explored = must_hold(&scope);
        total.states += explored.states;
        total.transitions += explored.transitions;
        total.played += explored.played;
        total.ends += explored.ends;
        total.is_complete &= explored.is_complete;
        largest = largest.max(explored.states);
    }
    let Explored { states, transitions, played, ends, is_complete, .. } = total;
    let (count, seconds) = (patterns.len(), began.elapsed().as_secs_f64());
    println!(
        "{name}: {count} patterns, {states} states (at most {largest}), {transitions} transitions, {played} of them played, \
         {ends} ends, {seconds:.1} s{}",
        if is_complete { "" } else { ", not all" }
    );
    total
}

fn pattern(groups: u8, shapes: &[(u8, u8)]) -> Pattern {
    let shapes: Vec<Shape> = shapes.iter().map(|&(groups, home)| Shape { groups, home }).collect();
    let conflicts = (0..groups).map(|group| {
        let visits = |at: usize| shapes[at].groups & (1 << group) != 0;
        let mut rows = [0; 4];
        for (at, row) in rows.iter_mut().enumerate().take(shapes.len()).filter(|(at, _)| visits(*at)) {
            *row =
                (0..shapes.len()).filter(|&other| other != at && visits(other)).fold(0, |row, other| row | 1 << other);
        }
        rows
    });
    Pattern { groups, conflicts: conflicts.collect(), shapes: shapes.clone() }
}

#[test]
fn two_groups_every_pattern_of_up_to_three_commands_has_one_order_and_an_end() {
    for commands in 1..=3 {
        assert!(all("2 groups", &Pattern::all(2, commands, BOTH), |_| {}).is_complete);
    }
}

#[test]
fn three_groups_every_pattern_of_up_to_two_commands_has_one_order_and_an_end() {
    for commands in 1..=2 {
        assert!(all("3 groups", &Pattern::all(3, commands, BOTH), |_| {}).is_complete);
    }
}

#[test]
fn clocks_that_are_apart_or_jump_change_no_rule() {
    all("2 groups, apart", &Pattern::all(2, 2, CLOCKS_APART), |scope| scope.skew = APART);
    all("2 groups, one jump", &Pattern::all(2, 2, EQUAL_CLOCKS), |scope| scope.faults.jumps = 1);
}

/// What is told twice, lost, or asked for again, executes once; a session that one group hears of late means all or nothing.
#[test]
fn faults_at_any_time_make_no_difference() {
    let patterns: Vec<Pattern> = (1..=2).flat_map(|commands| Pattern::all(2, commands, BOTH)).collect();
    let faults = |faults: Faults| {
        move |scope: &mut Scope| {
            (scope.faults, scope.identity, scope.reduction) = (faults, Identity::Behaviour(true), Reduction::Closings);
        }
    };
    all("asked again", &patterns, faults(Faults { retries: 1, ..Faults::default() }));
    all("told twice", &patterns, faults(Faults { duplicates: 1, ..Faults::default() }));
    all("lost", &patterns, faults(Faults { losses: 1, ..Faults::default() }));
    all("late session", &patterns, faults(Faults { late_session: true, ..Faults::default() }));
}

/// The same scopes with nothing left out: every order that they show is, or is part of, one that the reduced exploration shows.
fn reductions_lose_nothing(patterns: &[Pattern], flush: Flush) {
    for pattern in patterns {
        let reduced = must_hold(&Scope::of(pattern));
        let mut scope = Scope::of(pattern);
        (scope.flush, scope.identity, scope.reduction) = (flush, Identity::Whole, Reduction::None);
        if flush == Flush::Eager {
            scope.identity = Identity::Behaviour(false);
        }
        let whole = must_hold(&scope);
        assert!(reduced.is_complete && whole.is_complete);
        println!("{} states for {}: {:?}", reduced.states, whole.states, pattern.shapes);
        assert!(reduced.orders.is_subset(&whole.orders), "{pattern:?}");
        for order in &whole.orders {
            let is_part = |larger: &[u8; 4]| order.iter().zip(larger).all(|(row, larger)| row & !larger == 0);
            assert!(reduced.orders.iter().any(is_part), "{order:?} of {pattern:?}");
        }
    }
}

#[test]
fn reductions_lose_no_order_of_two_commands() {
    reductions_lose_nothing(&Pattern::all(2, 2, BOTH), Flush::Eager);
}

#[test]
#[ignore = "a minute"]
fn reductions_lose_no_order_of_two_commands_with_disks_of_any_speed() {
    reductions_lose_nothing(&Pattern::all(2, 2, BOTH), Flush::Lazy);
}

#[test]
#[ignore = "minutes"]
fn reductions_lose_no_order_of_three_groups() {
    reductions_lose_nothing(&Pattern::all(3, 2, BOTH), Flush::Eager);
}

#[test]
#[ignore = "minutes"]
fn reductions_lose_no_order_of_three_commands() {
    reductions_lose_nothing(&Pattern::all(2, 3, BOTH), Flush::Eager);
}

/// Each planted mistake must be found. The scopes are the smallest in which it can be.
#[test]
fn planted_mistakes_of_ordering_are_found() {
    let crossing = pattern(2, &[(0b11, 0), (0b11, 1)]);
    let two_and_one = pattern(2, &[(0b11, 0), (0b11, 1), (0b01, 0)]);
    let causes = pattern(2, &[(0b11, 0), (0b10, 1)]);
    let mistakes = [
        (Planted::ClockStays, &causes),
        (Planted::FinishEarly, &crossing),
        (Planted::PrepareWaits, &crossing),
        (Planted::ReadsIgnored, &two_and_one),
        (Planted::SinglesOvertake, &two_and_one),
        (Planted::CommitOvertakes, &crossing),
        (Planted::OwnTimestamp, &crossing),
    ];
    for (planted, pattern) in mistakes {
        let began = Instant::now();
        let mut found = None;
        // The same shapes with every choice of conflicts, by clocks that are equal and clocks that are apart.
        let alike = Pattern::all(2, pattern.shapes.len(), EQUAL_CLOCKS).into_iter();
        let alike = alike.filter(|other| other.shapes == pattern.shapes);
        let mut states = 0;
        for pattern in std::iter::once(pattern.clone()).chain(alike) {
            for skew in [[0; 3], APART, [1_000, 0, 0]] {
                let scope = Scope { planted: Some(planted), skew, ..Scope::of(&pattern) };
                match explore(&scope) {
                    Ok(explored) => states += explored.states,
                    Err(violation) => {
                        states += violation.states;
                        found.get_or_insert((violation, states));
                    }
                }
            }
            if found.is_some() {
                break;
            }
        }
        let Some((violation, states)) = found else { panic!("{planted:?} was not found in {states} states") };
        println!("{planted:?}: {} after {states} states, {:.2} s", violation.what, began.elapsed().as_secs_f64());
    }
}

/// One group of three voters, so many commands of which each two conflict.
fn three_voters(commands: usize, faults: Faults, planted: Option<Planted>) -> Scope {
    let pattern = pattern(1, &vec![(0b1, 0); commands]);
    let (voters, flush, identity, reduction) = (3, Flush::Lazy, Identity::Whole, Reduction::None);
    Scope { voters, faults, flush, identity, reduction, planted, ordered_links: true, ..Scope::of(&pattern) }
}

const CALM: Faults =
    Faults { retries: 0, duplicates: 0, losses: 0, jumps: 0, late_session: false, crashes: 0, suspicions: 0 };

fn explore_log(commands: usize, faults: Faults, states_max: usize) -> Explored {
    let began = Instant::now();
    let mut scope = three_voters(commands, faults, None);
    scope.states_max = states_max;
    let explored = must_hold(&scope);
    let Explored { states, transitions, played, ends, is_complete, .. } = explored;
    let Faults { crashes, suspicions, .. } = faults;
    println!(
        "3 voters, {commands} commands, {crashes} crashes, {suspicions} suspicions: {states} states, {transitions} transitions, \
         {played} of them played, {ends} ends, {:.1} s{}",
        began.elapsed().as_secs_f64(),
        if is_complete { "" } else { ", not all" }
    );
    explored
}

/// Whatever comes when: one log, nothing acknowledged is lost, and everything executes once when clients ask again.
#[test]
fn three_voters_lose_nothing_by_one_crash_or_one_change_of_primary() {
    assert!(explore_log(2, CALM, usize::MAX).is_complete);
    assert!(explore_log(1, Faults { crashes: 1, ..CALM }, usize::MAX).is_complete);
    assert!(explore_log(1, Faults { suspicions: 1, ..CALM }, usize::MAX).is_complete);
}

#[test]
#[ignore = "minutes"]
fn three_voters_more_of_it() {
    explore_log(2, Faults { crashes: 1, ..CALM }, 30_000_000);
    explore_log(2, Faults { suspicions: 1, ..CALM }, 30_000_000);
    explore_log(1, Faults { suspicions: 2, ..CALM }, 30_000_000);
    explore_log(1, Faults { crashes: 1, suspicions: 1, ..CALM }, 30_000_000);
}

#[test]
fn planted_mistakes_of_the_log_are_found() {
    let mistakes = [
        (Planted::OwnLogWins, Faults { suspicions: 2, ..CALM }),
        (Planted::StaleAppends, Faults { suspicions: 2, ..CALM }),
    ];
    for (planted, faults) in mistakes {
        let (began, mut scope, mut tried) = (Instant::now(), three_voters(1, faults, Some(planted)), 0);
        // From many sides: one search would stay long where it began.
        let found = (1..=400).find_map(|seed| {
            (scope.states_max, scope.shuffle) = (20_000, Some(seed));
            match explore(&scope) {
                Ok(explored) => {
                    tried += explored.states;
                    None
                }
                Err(violation) => Some(violation),
            }
        });
        let Some(Violation { what, states, .. }) = found else { panic!("{planted:?} was not found in {tried} states") };
        println!("{planted:?}: {what} after {} states, {:.2} s", tried + states, began.elapsed().as_secs_f64());
    }
}

/// Larger scopes, hours of them; `EXHAUSTIVE_STATES` limits each pattern.
#[test]
#[ignore = "long"]
fn two_groups_three_commands_with_every_order_of_ids_and_clocks_apart() {
    all("2 groups, equal clocks, every order of ids", &Pattern::all(2, 3, EQUAL_CLOCKS), |_| {});
    all("2 groups, apart", &Pattern::all(2, 3, CLOCKS_APART), |scope| scope.skew = APART);
    all("2 groups, one jump", &Pattern::all(2, 3, BOTH), |scope| scope.faults.jumps = 1);
}

#[test]
#[ignore = "long"]
fn two_groups_every_pattern_of_four_commands() {
    all("2 groups", &Pattern::all(2, 4, BOTH), limited);
}

#[test]
#[ignore = "long"]
fn three_groups_every_pattern_of_three_commands() {
    all("3 groups", &Pattern::all(3, 3, BOTH), limited);
}

/// How large the larger scopes are: every so many patterns, `EXHAUSTIVE_EACH`, from `EXHAUSTIVE_FROM` on, of scopes with
/// `EXHAUSTIVE_GROUPS`; with 1 all of them, one by one.
#[test]
#[ignore = "for estimates"]
fn sample_of_larger_scopes() {
    let number = |name: &str| std::env::var(name).ok().and_then(|value| value.parse::<usize>().ok());
    let (each, from) = (number("EXHAUSTIVE_EACH").unwrap_or(100), number("EXHAUSTIVE_FROM").unwrap_or(0));
    let only = number("EXHAUSTIVE_GROUPS");
    for (groups, commands) in [(2, 4), (3, 3)] {
        if only.is_some_and(|only| only != usize::from(groups)) {
            continue;
        }
        for pattern in Pattern::all(groups, commands, BOTH).into_iter().skip(from).step_by(each) {
            let shapes: Vec<(u8, u8)> = pattern.shapes.iter().map(|shape| (shape.groups, shape.home)).collect();
            all(&format!("{shapes:?} {:?}", pattern.conflicts), &[pattern], limited);
        }
    }
}

fn limited(scope: &mut Scope) {
    let limit = std::env::var("EXHAUSTIVE_STATES").ok().and_then(|limit| limit.parse().ok());
    scope.states_max = limit.unwrap_or(100_000_000);
}
