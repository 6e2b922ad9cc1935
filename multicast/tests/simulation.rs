//! Whole clusters under random faults: safety while they last, liveness after they end.

#![allow(clippy::unwrap_used)]

mod harness;

use harness::Rnd;
use harness::sim::{Options, Sim};

/// How many seeds run by default; `MULTICAST_SEEDS=from..to` runs others.
const SEEDS: std::ops::Range<u64> = 0..120;

fn seeds() -> std::ops::Range<u64> {
    seeds_or(SEEDS)
}

fn seeds_or(default: std::ops::Range<u64>) -> std::ops::Range<u64> {
    let Ok(text) = std::env::var("MULTICAST_SEEDS") else { return default };
    let (from, to) = text.split_once("..").expect("MULTICAST_SEEDS=from..to");
    from.parse().unwrap()..to.parse().unwrap()
}

fn run(seed: u64, adjust: impl Fn(&mut Options)) -> (u64, usize) {
    let (sim, executed) = run_sim(seed, adjust);
    (sim.trace, executed)
}

fn run_sim(seed: u64, adjust: impl Fn(&mut Options)) -> (Sim, usize) {
    let mut options = Options::draw(&mut Rnd::new(seed ^ 0xabcd));
    adjust(&mut options);
    let describe = format!("seed {seed}: {options:?}");
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let mut sim = Sim::new(seed, options);
        sim.run_to_quiet(400_000);
        let executed = sim.histories().values().map(Vec::len).sum();
        (sim, executed)
    }));
    outcome.unwrap_or_else(|panic| {
        eprintln!("MULTICAST_SEEDS={seed}..{} fails: {describe}", seed + 1);
        std::panic::resume_unwind(panic)
    })
}

#[test]
fn cluster_random_faults_stays_correct_and_recovers() {
    let mut executed = 0;
    for seed in seeds() {
        executed += run(seed, |_| {}).1;
    }
    assert!(executed > 0);
    println!("{executed} executions");
}

/// Many reads at lagging replicas, little else: what a reader has seen must be followed by its causes, across groups.
#[test]
fn cluster_reads_follow_causes() {
    for seed in seeds() {
        run(seed, |options| {
            let groups = options.voters.len().max(3);
            options.voters = vec![3; groups];
            options.mix.groups = groups as u16;
            (options.mix.keys, options.mix.keys_per_group_max) = (2, 1);
            (options.mix.read_per_mille, options.mix.add_per_mille, options.mix.single_per_mille) = (600, 0, 600);
            (options.crash_every_ms, options.cut_every_ms, options.faults_until_ms) = (0, seed % 2 * 400, 6_000);
            (options.clients, options.commands_per_client) = (6, 30);
            (options.near_us, options.wide_us) = (40_000, 5_000);
            options.classic = false;
        });
    }
}

/// Primaries that crash, and primaries that stand still and wake up as if they still were it.
#[test]
fn cluster_struck_primaries_lose_nothing() {
    for seed in seeds_or(0..240) {
        run(seed, |options| {
            let voters = if seed % 3 == 0 { 5 } else { 3 };
            options.voters = vec![voters; options.voters.len().max(2)];
            options.mix.groups = options.voters.len() as u16;
            options.mix.single_per_mille = 400;
            options.primary_every_ms = [400, 1_000, 2_500][(seed / 3 % 3) as usize];
            (options.crash_every_ms, options.faults_until_ms) = (seed % 2 * 3_000, 12_000);
            (options.clients, options.commands_per_client) = (4, 20);
        });
    }
}

/// Members come and go, disks get lost, logs are cut short, while everything else goes wrong, too.
#[test]
fn cluster_members_that_change_lose_nothing() {
    let (mut changes, mut copies) = (0, 0);
    // Seed 567: a log that was cut while the primary looked for where a learner's parts from it.
    let regressions = std::env::var("MULTICAST_SEEDS").is_err().then_some(567);
    for seed in seeds_or(0..90).chain(regressions) {
        let (ran, _) = run_sim(seed, |options| members_change(options, seed));
        changes += ran.changes;
        copies += ran.copies;
    }
    println!("{changes} changes, {copies} copies");
    assert!(std::env::var("MULTICAST_SEEDS").is_ok() || (changes > 500 && copies > 100), "{changes}, {copies}");
}

fn members_change(options: &mut Options, seed: u64) {
    let groups = options.voters.len().min(3);
    options.voters = vec![[3, 3, 1][(seed % 3) as usize]; groups];
    options.mix.groups = groups as u16;
    options.spares = [2, 3, 1][(seed / 3 % 3) as usize];
    options.operator_every_ms = [50, 300, 1_000][(seed / 9 % 3) as usize];
    options.wipes = !seed.is_multiple_of(4);
    options.auto_replace = !seed.is_multiple_of(5);
    options.log_entries_max = [5, 40, 16 << 20][(seed / 2 % 3) as usize];
    options.primary_every_ms = seed % 2 * 2_000;
    (options.clients, options.commands_per_client, options.faults_until_ms) = (4, 25, 12_000);
}

#[test]
fn cluster_same_seed_same_run() {
    for seed in 0..5 {
        assert_eq!(run(seed, |_| {}).0, run(seed, |_| {}).0, "seed {seed}");
    }
}
