//! Small scopes, all of each: no seed, no sample. docs/protocol.md, section 11, says what is left out and why.
//!
//! The ordinary tests take the smaller scopes; `--ignored` the larger ones, which print what they did.

#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

mod explore;
mod harness;

use explore::actor::{Flush, Identity};
use explore::patterns::{Pattern, Shape, Symmetry};
use explore::search::{Explored, Faults, Reduction, Scope, Violation, explore};
use multicast::planted::Planted;
use rustix::time::{ClockId, clock_gettime};

/// With equal clocks two groups' timestamps may be equal, and ids decide: each command is another.
const EQUAL_CLOCKS: Symmetry = Symmetry { groups: true, commands: false };
/// With clocks that are far apart groups differ, and ids never decide.
const CLOCKS_APART: Symmetry = Symmetry { groups: false, commands: true };
/// Also with equal clocks: for the ordinary tests.
const BOTH: Symmetry = Symmetry { groups: true, commands: true };
const APART: [u64; 3] = [0, 1_000, 2_000];

/// Of CPU, as others may keep the machine busy.
fn seconds() -> f64 {
    let used = clock_gettime(ClockId::ThreadCPUTime);
    used.tv_sec as f64 + used.tv_nsec as f64 / 1e9
}

fn must_hold(scope: &Scope) -> Explored {
    explore(scope).unwrap_or_else(|violation| {
        let Violation { what, trace, states } = violation;
        panic!("{what}, after {states} states of {:?}:\n{trace}", scope.pattern)
    })
}

/// Explores all patterns; prints and returns how much that was.
fn all(name: &str, patterns: &[Pattern], adjust: impl Fn(&mut Scope)) -> Explored {
    let (began, mut total, mut largest) = (seconds(), Explored { is_complete: true, ..Explored::default() }, 0);
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
    let (count, seconds) = (patterns.len(), seconds() - began);
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

/// The same scope with less left out: every order that it shows is, or is part of, one that the reduced exploration shows.
fn loses_nothing(reduced: &Scope, whole: &Scope) -> Explored {
    let (fewer, more) = (must_hold(reduced), must_hold(whole));
    assert!(fewer.is_complete && more.is_complete);
    println!("{} states for {}: {:?}", fewer.states, more.states, reduced.pattern.shapes);
    assert!(fewer.orders.is_subset(&more.orders), "{:?}", reduced.pattern);
    for order in &more.orders {
        let is_part = |larger: &[u8; 4]| order.iter().zip(larger).all(|(row, larger)| row & !larger == 0);
        assert!(fewer.orders.iter().any(is_part), "{order:?} of {:?}", reduced.pattern);
    }
    more
}

/// With nothing left out.
fn unreduced(pattern: &Pattern, flush: Flush) -> Scope {
    let identity = if flush == Flush::Eager { Identity::Behaviour(false) } else { Identity::Whole };
    Scope { flush, identity, reduction: Reduction::None, ..Scope::of(pattern) }
}

fn reductions_lose_nothing(patterns: &[Pattern], flush: Flush) {
    for pattern in patterns {
        // With disks of any speed there is more that an input leaves to be done.
        let tries_both = flush == Flush::Eager;
        loses_nothing(&Scope::of(pattern), &Scope { tries_both, ..unreduced(pattern, flush) });
    }
}

/// A command of three groups with two of one of them, which it conflicts with: the larger of two timestamps may let one of
/// them go, and the smaller one come only after it has been seen.
#[test]
fn reductions_lose_no_order_when_timestamps_come_late() {
    let mut pattern = pattern(3, &[(0b111, 0), (0b100, 2), (0b100, 2)]);
    pattern.conflicts[2] = [0b110, 0b001, 0b001, 0];
    for skew in [[0; 3], APART, [0, 1_000, 0], [1_000, 2_000, 0]] {
        let whole = Scope { skew, ..unreduced(&pattern, Flush::Eager) };
        loses_nothing(&Scope { skew, ..Scope::of(&pattern) }, &whole);
        loses_nothing(&Scope { skew, ..without_clocks(&pattern) }, &whole);
    }
}

/// An exploration that does not look at clocks.
fn without_clocks(pattern: &Pattern) -> Scope {
    Scope { reduction: Reduction::Facts, identity: Identity::Behaviour(false), ..Scope::of(pattern) }
}

/// What clocks allow to leave out shows no other orders; and wherever something is put before the rest, it commutes with it.
fn clocks_lose_nothing(patterns: &[Pattern], adjust: impl Fn(&mut Scope)) {
    let (began, mut total) = (seconds(), Explored::default());
    for pattern in patterns {
        let (mut fewer, mut more) = (Scope::of(pattern), Scope { tries_both: true, ..without_clocks(pattern) });
        adjust(&mut fewer);
        adjust(&mut more);
        let explored = loses_nothing(&fewer, &more);
        total.states += explored.states;
        total.transitions += explored.transitions;
        total.tried += explored.tried;
    }
    let (count, Explored { states, transitions, tried, .. }) = (patterns.len(), total);
    println!(
        "{count} patterns, {states} states, {transitions} transitions, {tried} pairs of inputs commute, {:.1} s",
        seconds() - began
    );
}

#[test]
fn clocks_lose_no_order_and_what_comes_first_commutes() {
    for commands in 1..=3 {
        clocks_lose_nothing(&Pattern::all(2, commands, BOTH), |_| {});
    }
    for commands in 1..=2 {
        clocks_lose_nothing(&Pattern::all(3, commands, BOTH), |_| {});
    }
    clocks_lose_nothing(&Pattern::all(2, 2, CLOCKS_APART), |scope| scope.skew = APART);
    clocks_lose_nothing(&Pattern::all(2, 2, EQUAL_CLOCKS), |scope| scope.faults.jumps = 1);
}

/// Samples of larger scopes, of three groups those in which it is no more than that.
#[test]
#[ignore = "minutes"]
fn clocks_lose_no_order_of_larger_scopes() {
    let mut patterns: Vec<Pattern> = Pattern::all(2, 4, BOTH).into_iter().skip(60).step_by(120).collect();
    let few = Pattern::all(3, 3, BOTH).into_iter().filter(|pattern| pattern.shapes[0].groups != 0b111);
    patterns.extend(few.skip(30).step_by(60));
    for pattern in &patterns {
        loses_nothing(&Scope::of(pattern), &without_clocks(pattern));
    }
}

/// Also where clocks are apart, and in three groups with three commands: there only along what is explored.
#[test]
#[ignore = "minutes"]
fn what_comes_first_commutes_in_larger_scopes() {
    let tries = |pattern: &Pattern, skew: [u64; 3]| {
        let scope = Scope { skew, tries_both: true, ..Scope::of(pattern) };
        must_hold(&scope).tried
    };
    let apart: usize = Pattern::all(2, 3, CLOCKS_APART).iter().map(|pattern| tries(pattern, APART)).sum();
    println!("{apart} pairs of inputs commute, clocks apart");
    let patterns = Pattern::all(3, 3, BOTH);
    let three: usize = patterns.iter().step_by(20).map(|pattern| tries(pattern, [0; 3])).sum();
    println!("{three} pairs of inputs commute, 3 groups");
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
        found(planted, pattern, Scope::of);
        // Also by what becomes of the order alone, without a look at clocks.
        found(planted, pattern, without_clocks);
    }
}

fn found(planted: Planted, pattern: &Pattern, scope: impl Fn(&Pattern) -> Scope) {
    let (began, mut states) = (seconds(), 0);
    // The same shapes with every choice of conflicts, by clocks that are equal and clocks that are apart.
    let alike = Pattern::all(2, pattern.shapes.len(), EQUAL_CLOCKS).into_iter();
    let alike = alike.filter(|other| other.shapes == pattern.shapes);
    for pattern in std::iter::once(pattern.clone()).chain(alike) {
        for skew in [[0; 3], APART, [1_000, 0, 0]] {
            let scope = Scope { planted: Some(planted), skew, ..scope(&pattern) };
            match explore(&scope) {
                Ok(explored) => states += explored.states,
                Err(Violation { what, states: last, .. }) => {
                    let (states, seconds) = (states + last, seconds() - began);
                    let reduction = scope.reduction;
                    return println!("{planted:?}: {what} after {states} states, {reduction:?}, {seconds:.2} s");
                }
            }
        }
    }
    panic!("{planted:?} was not found in {states} states");
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
    let began = seconds();
    let mut scope = three_voters(commands, faults, None);
    scope.states_max = states_max;
    let explored = must_hold(&scope);
    let Explored { states, transitions, played, ends, is_complete, .. } = explored;
    let Faults { crashes, suspicions, .. } = faults;
    println!(
        "3 voters, {commands} commands, {crashes} crashes, {suspicions} suspicions: {states} states, {transitions} transitions, \
         {played} of them played, {ends} ends, {:.1} s{}",
        seconds() - began,
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
        let (began, mut scope, mut tried) = (seconds(), three_voters(1, faults, Some(planted)), 0);
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
        println!("{planted:?}: {what} after {} states, {:.2} s", tried + states, seconds() - began);
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
#[ignore = "ten minutes"]
fn two_groups_every_pattern_of_four_commands() {
    assert!(all("2 groups", &Pattern::all(2, 4, BOTH), limited).is_complete);
}

#[test]
#[ignore = "a quarter of an hour"]
fn three_groups_every_pattern_of_three_commands() {
    assert!(all("3 groups", &Pattern::all(3, 3, BOTH), limited).is_complete);
}

/// How large the larger scopes are: every so many patterns, `EXHAUSTIVE_EACH`, from `EXHAUSTIVE_FROM` on, of the scope
/// `EXHAUSTIVE_SCOPE` (34: three groups, four commands) in which all commands together have at most
/// `EXHAUSTIVE_DESTINATIONS`; with 1 all of them, one by one.
#[test]
#[ignore = "for estimates"]
fn sample_of_larger_scopes() {
    let number = |name: &str| std::env::var(name).ok().and_then(|value| value.parse::<usize>().ok());
    let (each, from) = (number("EXHAUSTIVE_EACH").unwrap_or(100), number("EXHAUSTIVE_FROM").unwrap_or(0));
    let (only, destinations_max) = (number("EXHAUSTIVE_SCOPE"), number("EXHAUSTIVE_DESTINATIONS"));
    for (groups, commands) in [(2, 4), (3, 3), (3, 4)] {
        if only.is_some_and(|only| only != usize::from(groups) * 10 + commands) {
            continue;
        }
        let destinations =
            |pattern: &Pattern| -> u32 { pattern.shapes.iter().map(|shape| shape.groups.count_ones()).sum() };
        let mut patterns = Pattern::all(groups, commands, BOTH);
        patterns.retain(|pattern| destinations_max.is_none_or(|most| destinations(pattern) as usize <= most));
        println!("{groups} groups, {commands} commands: {} patterns", patterns.len());
        for pattern in patterns.into_iter().skip(from).step_by(each) {
            let shapes: Vec<(u8, u8)> = pattern.shapes.iter().map(|shape| (shape.groups, shape.home)).collect();
            all(&format!("{shapes:?} {:?}", pattern.conflicts), &[pattern], limited);
        }
    }
}

fn limited(scope: &mut Scope) {
    let limit = std::env::var("EXHAUSTIVE_STATES").ok().and_then(|limit| limit.parse().ok());
    scope.states_max = limit.unwrap_or(100_000_000);
}
