//! The lab as a whole: the same seed gives the same figures, and these are what the protocol promises.
#![allow(clippy::unwrap_used)]

use std::sync::atomic::AtomicBool;

use geo_bench::costs::Calibration;
use geo_bench::spec::{Experiment, Fault, Op, Ordering, Point, Scope};
use geo_bench::stats::Outcome;
use geo_bench::sweep::{Settings, run};

fn played(point: &Point, seed: u64) -> Outcome {
    geo_bench::world::play(point, &Calibration::checked_in(), seed, &|| false).unwrap().unwrap()
}

fn calm() -> Point {
    Point { clients: 1, mounts: 1, rtt: "80ms".into(), warmup_ms: 1_000, duration_ms: 5_000, ..Point::default() }
}

fn median(point: &Point, op: Op, scope: Scope) -> f64 {
    played(point, 1).of(op, scope).unwrap().latency.p50_ms
}

#[test]
fn same_seed_gives_the_same_bytes_with_any_number_of_threads() {
    let experiment = Experiment::parse(include_str!("../experiments/small.toml")).unwrap();
    let points = experiment.points().unwrap();
    let (costs, stop) = (Calibration::checked_in(), AtomicBool::new(false));
    let bytes = |threads, seed| {
        let settings = Settings { costs: &costs, seed, threads };
        serde_json::to_string(&run(&points, settings, &stop, &|_| {}).unwrap()).unwrap()
    };
    let first = bytes(1, 3);
    assert_eq!(first, bytes(2, 3));
    assert_ne!(first, bytes(2, 4));
}

#[test]
fn every_experiment_can_be_read_and_has_points() {
    for entry in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/experiments")).unwrap() {
        let path = entry.unwrap().path();
        let experiment = Experiment::parse(&std::fs::read_to_string(&path).unwrap()).unwrap();
        assert!(!experiment.points().unwrap().is_empty(), "{}", path.display());
    }
}

#[test]
fn updates_cost_no_distance_at_home_and_one_round_trip_elsewhere() {
    let local = Point { ops: vec![Op::Write], ..calm() };
    assert!(median(&local, Op::Write, Scope::Local) < 5.0);
    let remote = Point { locality: 0.0, ..local.clone() };
    let far = median(&remote, Op::Write, Scope::Remote);
    assert!((80.0..90.0).contains(&far), "{far}");
    // Beside one of two groups: one round trip between them.
    let cross = Point { ops: vec![Op::Move], locality: 0.0, elsewhere: Scope::Cross, ..local };
    let moved = median(&cross, Op::Move, Scope::Cross);
    assert!((80.0..95.0).contains(&moved), "{moved}");
}

#[test]
fn every_operation_works_everywhere() {
    for op in Op::ALL {
        for scope in [Scope::Local, Scope::Remote, Scope::Global] {
            if op == Op::Move {
                continue;
            }
            let locality = if scope == Scope::Local { 1.0 } else { 0.0 };
            let point = Point { ops: vec![op], locality, elsewhere: scope, warmup_ms: 500, duration_ms: 800, ..calm() };
            assert!(played(&point, 1).of(op, scope).is_some_and(|found| found.latency.count > 1), "{op:?} {scope:?}");
        }
    }
}

#[test]
fn local_updates_wait_for_others_in_classic_order_only() {
    let point = Point { clients: 8, ops: vec![Op::Write], think_ms: 20.0, multi_group: 0.1, ..calm() };
    let p95 = |ordering| {
        let point = Point { ordering, ..point.clone() };
        played(&point, 1).of(Op::Write, Scope::Local).unwrap().latency.p95_ms
    };
    let (aware, classic) = (p95(Ordering::ConflictAware), p95(Ordering::Classic));
    assert!(aware < 8.0 && classic > 40.0, "{aware} {classic}");
}

#[test]
fn others_go_on_while_a_region_is_cut_and_a_primary_is_replaced() {
    let base = Point { clients: 2, think_ms: 50.0, duration_ms: 36_000, ..calm() };
    let late = |outcome: &Outcome, region: usize, from: f64, to: f64| {
        let moments = outcome.timeline.iter().filter(|moment| moment.region == region);
        moments.filter(|moment| (from..to).contains(&moment.at_s)).map(|moment| moment.per_second).sum::<f64>()
    };
    let cut = played(&Point { fault: Fault::RegionCut, ..base.clone() }, 1);
    assert!(late(&cut, 0, 15.0, 35.0) > 0.9 * late(&cut, 0, 0.0, 10.0) * 2.0);
    assert!(late(&cut, 2, 0.0, 35.0) > 0.0);
    let dies = played(&Point { fault: Fault::PrimaryDies, ..base }, 1);
    assert!(late(&dies, 0, 10.0, 10.5) < 0.2 * late(&dies, 0, 9.0, 9.5));
    assert!(late(&dies, 0, 13.0, 23.0) > 0.8 * late(&dies, 0, 0.0, 10.0));
}

#[test]
fn far_learner_follows_and_serves_and_slows_nobody_down() {
    let alone = Point { regions: 2, rtt: "140ms".into(), ops: vec![Op::Write], think_ms: 5.0, ..calm() };
    let followed = Point { far_readers: 4, ..alone.clone() };
    let usual = median(&alone, Op::Write, Scope::Local);
    let outcome = played(&followed, 1);
    let lag = outcome.lag.as_ref().unwrap();
    // One way, and no quorum waits for it.
    assert!((70.0..75.0).contains(&lag.applied.p50_ms) && lag.reads_per_second > 500.0, "{lag:?}");
    let with = outcome.of(Op::Write, Scope::Local).unwrap().latency.p50_ms;
    assert!(with < 1.1 * usual, "{with} {usual}");
}

#[test]
fn processes_of_one_machine_share_its_processors() {
    let apart = Point { voters: 1, clients: 8, ops: vec![Op::Write], duration_ms: 1_000, ..calm() };
    let together = Point { one_machine: true, ..apart.clone() };
    let (apart, together) = (played(&apart, 1).per_second(), played(&together, 1).per_second());
    assert!(together < 0.6 * apart, "{together} {apart}");
}

#[test]
fn senseless_points_are_refused() {
    let refused = |point: Point| assert!(point.check().is_err(), "{point:?}");
    refused(Point { regions: 0, ..Point::default() });
    refused(Point { voters: 2, ..Point::default() });
    refused(Point { locality: 1.5, ..Point::default() });
    refused(Point { size: 1 << 20, ..Point::default() });
    refused(Point { think_ms: f64::NAN, ..Point::default() });
    assert!(Experiment::parse("name = \"x\"\nunknown = 1").is_err());
}

#[test]
fn changes_of_names_in_one_folder_wait_for_each_other_and_writes_do_not() {
    let apart = Point { clients: 8, locality: 0.0, ops: vec![Op::Mkdir], ..calm() };
    let together = Point { one_folder: true, ..apart.clone() };
    let found = |point: &Point, op| played(point, 1).of(op, Scope::Remote).unwrap().clone();
    assert!((80.0..90.0).contains(&found(&apart, Op::Mkdir).latency.p50_ms));
    // One after the other, in each of two folders per mount.
    let rate = found(&together, Op::Mkdir).per_second;
    assert!((60.0..75.0).contains(&rate), "{rate}");
    let writes = Point { ops: vec![Op::Write], ..together };
    assert!((80.0..90.0).contains(&found(&writes, Op::Write).latency.p50_ms));
}

#[test]
fn making_what_an_operation_needs_is_no_part_of_its_rate() {
    let point = Point { ops: vec![Op::Unlink], locality: 0.0, regions: 2, ..calm() };
    let outcome = played(&point, 1);
    let found = outcome.of(Op::Unlink, Scope::Remote).unwrap();
    assert!((found.per_second * found.latency.mean_ms / 1_000.0 - 2.0).abs() < 0.1, "{found:?}");
    let used = &outcome.cpu_us_per_op;
    assert!(used.values().all(|&used| used > 0.0) && used.contains_key(&geo_bench::stats::Part::Replica), "{used:?}");
}
