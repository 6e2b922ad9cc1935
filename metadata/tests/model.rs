//! Random updates on one group and on several, against a naive model of POSIX.
#![allow(clippy::unwrap_used, clippy::manual_is_multiple_of)]

mod support;

use std::collections::BTreeMap;

use metadata::op::FsOp;
use metadata::read::{ReadAnswer, ReadOp, ReadResult};
use metadata::types::{FileKind, InodeId, NodeRef};
use multicast::command::Command;
use multicast::ids::{GroupId, SessionId};
use proptest::prelude::*;
use support::driver::{Dice, KINDS, Plan, Planner, SESSIONS, SHARE, agree, facts_hold};
use support::model::{Expected, LOCK_POSITIONS, Model};
use support::{Cluster, INLINE_BYTES_MAX, tree};

struct World {
    cluster: Cluster,
    model: Model,
    planner: Planner,
    /// Answers that a client may hold, by where it got them.
    cached: BTreeMap<GroupId, Vec<(ReadOp, ReadResult)>>,
    /// Cookies of names, by directory.
    cookies: BTreeMap<(InodeId, Vec<u8>), u64>,
}

impl World {
    fn new(groups: u16) -> Self {
        let mut world = World {
            cluster: Cluster::new(groups),
            model: Model::new(INLINE_BYTES_MAX as usize),
            planner: Planner::new(groups),
            cached: BTreeMap::new(),
            cookies: BTreeMap::new(),
        };
        for session in SESSIONS {
            world.cluster.open_session(SessionId(session));
            world.model.sessions.insert(session);
        }
        world
    }

    /// As [`World::step`], when everything that is more than a few rows goes in steps. Compares only now and then.
    fn step_patiently(&mut self, dice: Dice) {
        if dice.0 > 250 && self.model.sessions.len() > 1 {
            let session = *self.model.sessions.last().unwrap();
            self.cluster.close_session(SessionId(session));
            self.model.close_session(session);
        } else if dice.0 % KINDS == SHARE {
            // Blobs of deleted files can be shared as long as they are not drained.
            self.cluster.drain();
            tree::compare(&self.cluster, &self.model, &self.planner.refs);
            self.check_locks();
        } else if let Some(Plan { session, op, effect }) = self.planner.plan(&self.model, dice) {
            if matches!(op, FsOp::Rename { .. } | FsOp::MoveInode { .. }) {
                // A file of which something is still to go stays home.
                self.cluster.drain();
            }
            let outcome = self.cluster.submit_patiently(session, &op);
            agree(&outcome, &effect(&mut self.model, self.cluster.now), &mut self.planner.refs);
            self.planner.follow(&self.model);
        }
        self.cluster.check();
    }

    fn step(&mut self, dice: Dice) {
        if dice.0 == 255 && self.model.sessions.len() > 1 {
            let session = *self.model.sessions.last().unwrap();
            self.cluster.close_session(SessionId(session));
            self.model.close_session(session);
            self.verify();
            // What its orphans referred to goes in later entries. Only the last one's changes are known then.
            self.cluster.drain();
            self.cached.clear();
            return;
        }
        let Some(Plan { session, op, effect }) = self.planner.plan(&self.model, dice) else { return };
        let mut before = self.cluster.clone();
        let outcome = self.cluster.submit(session, &op);
        let expected = effect(&mut self.model, self.cluster.now);
        agree(&outcome, &expected, &mut self.planner.refs);
        self.planner.follow(&self.model);
        facts_hold(&outcome, &self.model, &self.planner.refs);
        if !matches!(expected, Expected::Done(_)) {
            // But that every entry goes on with what is removed in steps.
            for destination in op.destinations() {
                before.on(destination.group, |namespace| namespace.tick());
            }
            assert_eq!(before.stores, self.cluster.stores, "a refused update changes nothing: {op:?}");
        }
        self.verify();
    }

    fn verify(&mut self) {
        tree::compare(&self.cluster, &self.model, &self.planner.refs);
        self.cluster.check();
        self.check_invalidations();
        self.check_cookies();
        self.check_garbage();
        self.check_locks();
    }

    /// Whatever a client could have kept and is no longer true has been called back.
    fn check_invalidations(&mut self) {
        for (group, answers) in &self.cached {
            let changed = self.cluster.changes.get(group).map(|changes| changes.keys.clone()).unwrap_or_default();
            for (op, before) in answers {
                let now = self.cluster.read(*group, op);
                if now == *before {
                    continue;
                }
                let mut keys = op.keys();
                keys.extend(before.iter().flat_map(ReadAnswer::attached));
                assert!(
                    keys.iter().any(|key| changed.contains(key)),
                    "{op:?} changed unseen from {before:?} to {now:?}"
                );
            }
        }
        self.cached.clear();
        for group in self.cluster.groups() {
            let answers = self.questions().into_iter().map(|op| (op.clone(), self.cluster.read(group, &op)));
            self.cached.insert(group, answers.collect());
        }
    }

    fn questions(&self) -> Vec<ReadOp> {
        let mut questions = Vec::new();
        for (id, node) in &self.planner.refs {
            let ino = node.ino;
            questions.push(ReadOp::GetAttr { ino });
            if !self.model.nodes.contains_key(id) {
                continue;
            }
            match node.kind {
                FileKind::Directory => {
                    for entry in ["a", "b", "c"] {
                        questions.push(ReadOp::Lookup { parent: ino, name: support::name(entry) });
                    }
                    questions.push(ReadOp::ReadDir { dir: ino, after: 0, limit: 100, plus: true });
                    questions.push(ReadOp::ReadDir { dir: ino, after: 0, limit: 100, plus: false });
                }
                FileKind::File => questions.push(ReadOp::Content { ino, offset: 0, len: 1000 }),
                FileKind::Symlink => questions.push(ReadOp::ReadLink { ino }),
                _ => questions.push(ReadOp::ListXattr { ino }),
            }
        }
        questions
    }

    /// An entry keeps its cookie as long as its name is there.
    fn check_cookies(&mut self) {
        let mut now = BTreeMap::new();
        for (id, node) in &self.planner.refs {
            if !self.model.nodes.contains_key(id) || node.kind != FileKind::Directory {
                continue;
            }
            let op = ReadOp::ReadDir { dir: node.ino, after: 0, limit: 100, plus: false };
            let Ok(ReadAnswer::Entries { entries, .. }) = self.cluster.read(node.home, &op) else { panic!() };
            for entry in entries {
                let key = (node.ino, entry.name.to_vec());
                if let Some(before) = self.cookies.get(&key) {
                    assert_eq!(*before, entry.cookie);
                }
                now.insert(key, entry.cookie);
            }
        }
        self.cookies = now;
    }

    /// With one group garbage is exactly what nothing refers to.
    fn check_garbage(&self) {
        if self.planner.groups > 1 {
            return;
        }
        let Ok(ReadAnswer::Garbage(blobs)) = self.cluster.read(GroupId::GLOBAL, &ReadOp::Garbage { limit: 1000 })
        else {
            panic!()
        };
        for blob in blobs {
            assert!(!self.model.refers(0, blob.sequence));
        }
    }

    fn check_locks(&self) {
        for (id, node) in self.model.nodes.iter().filter(|(_, node)| !node.locks.is_empty()) {
            let node_ref = self.planner.refs[id];
            for flock in [false, true] {
                for at in 0..LOCK_POSITIONS {
                    let end = if at == LOCK_POSITIONS - 1 { u64::MAX } else { at as u64 };
                    let op = ReadOp::TestLock {
                        ino: node_ref.ino,
                        owner: 99,
                        flock,
                        range: metadata::op::LockRange { start: at as u64, end },
                        kind: metadata::op::LockKind::Write,
                        session: SessionId(99),
                    };
                    let Ok(ReadAnswer::Lock(found)) = self.cluster.read(node_ref.home, &op) else { panic!() };
                    let held = node.locks.iter().any(|((space, ..), held)| *space == flock && held[at].is_some());
                    assert_eq!(found.is_some(), held);
                }
            }
        }
    }
}

/// Several multi-group commands under way at once, each group at its own pace; whatever does not conflict goes on. The
/// model executes each at once when it is prepared: if footprints are right, nobody can tell the difference.
struct Concurrent {
    world: World,
    heeds_conflicts: bool,
    pending: Vec<Pending>,
}

struct Pending {
    command: Command,
    now: i64,
    expected: Expected,
    contributions: BTreeMap<GroupId, bytes::Bytes>,
    outcomes: BTreeMap<GroupId, metadata::outcome::Outcome>,
}

impl Concurrent {
    fn step(&mut self, dice: Dice) {
        if !self.pending.is_empty() && dice.5 % 3 != 0 {
            self.advance(usize::from(dice.1), usize::from(dice.2));
        }
        if dice.0 % KINDS == SHARE {
            // The model moves files at once, and their blobs with them: who may share one can tell.
            return;
        }
        let World { cluster, model, planner, .. } = &mut self.world;
        let Some(Plan { session, op, effect }) = planner.plan(model, dice) else { return };
        let command = cluster.command(session, &op);
        if self.heeds_conflicts && self.pending.iter().any(|pending| conflict(&pending.command, &command)) {
            return;
        }
        if !command.is_multi_group() {
            let outcome = cluster.submit(session, &op);
            let expected = effect(model, cluster.now);
            agree(&outcome, &expected, &mut planner.refs);
        } else if self.pending.len() < 4 {
            cluster.now += 1000;
            let now = cluster.now;
            let expected = effect(model, now);
            let (contributions, outcomes) = (BTreeMap::new(), BTreeMap::new());
            self.pending.push(Pending { command, now, expected, contributions, outcomes });
        }
        planner.follow(model);
    }

    /// One group takes one step on one command.
    fn advance(&mut self, which: usize, group: usize) {
        let which = which % self.pending.len();
        let pending = &mut self.pending[which];
        let groups: Vec<GroupId> = pending.command.groups().collect();
        let group = groups[group % groups.len()];
        let World { cluster, model, planner, .. } = &mut self.world;
        if let std::collections::btree_map::Entry::Vacant(entry) = pending.contributions.entry(group) {
            entry.insert(cluster.on(group, |namespace| namespace.contribute(&pending.command)));
        } else if pending.contributions.len() == groups.len() && !pending.outcomes.contains_key(&group) {
            let now = metadata::types::TimeNs(pending.now);
            let (command, contributions) = (&pending.command, &pending.contributions.clone().into_iter().collect());
            let outcome = cluster.on(group, |namespace| namespace.execute(now, command, contributions));
            let mut outcome = metadata::codec::decode_outcome(&outcome).unwrap();
            // Others may have changed those of other groups since they were told of.
            for attr in support::take_directories(&mut outcome).into_iter().filter(|attr| attr.home == group) {
                let node = NodeRef { ino: attr.ino, kind: attr.kind, home: group };
                assert_eq!(cluster.attr(node), attr, "as of this very step");
            }
            pending.outcomes.insert(group, outcome);
        }
        if pending.outcomes.len() == groups.len() {
            let done = self.pending.remove(which);
            let mut outcomes = done.outcomes.into_values();
            let first = outcomes.next().unwrap();
            assert!(outcomes.all(|outcome| outcome == first));
            agree(&first, &done.expected, &mut planner.refs);
            planner.follow(model);
        }
    }

    fn finish(&mut self) {
        let mut turn = 0;
        while !self.pending.is_empty() {
            self.advance(0, turn);
            turn += 1;
        }
        tree::compare(&self.world.cluster, &self.world.model, &self.world.planner.refs);
        self.world.cluster.check();
    }
}

/// The random updates above are worth nothing if most are refused: every kind must succeed often and fail in every way.
#[test]
fn random_updates_reach_every_kind_of_outcome() {
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let mut throw = thrower(7);
    for _ in 0..150 {
        let mut world = World::new(3);
        for _ in 0..100 {
            let Some(Plan { session, op, effect }) = world.planner.plan(&world.model, throw()) else { continue };
            let outcome = world.cluster.submit(session, &op);
            agree(&outcome, &effect(&mut world.model, world.cluster.now), &mut world.planner.refs);
            world.planner.follow(&world.model);
            let wide = if op.destinations().len() > 1 { "wide" } else { "narrow" };
            *seen.entry(format!("{} {wide} {}", label(&format!("{op:?}")), result_label(&outcome))).or_default() += 1;
        }
    }
    let count = |prefix: &str, suffix: &str| -> usize {
        seen.iter().filter(|(key, _)| key.starts_with(prefix) && key.ends_with(suffix)).map(|(_, count)| count).sum()
    };
    for op in ["Create", "Link", "Unlink", "Rmdir", "Rename", "MoveInode"] {
        assert!(count(&format!("{op} narrow"), "done") + count(&format!("{op} wide"), "done") >= 40, "{seen:#?}");
        assert!(count(&format!("{op} wide"), "done") >= 20, "{op}: {seen:#?}");
    }
    for op in ["SetAttr", "Write", "SetXattr", "RemoveXattr", "Lock", "ReleaseOrphans", "SetPlacement"] {
        assert!(count(op, "done") >= 10, "{op}: {seen:#?}");
    }
    let refusals = [
        ("Create", "Exists"),
        ("Create", "Stale"),
        ("Link", "Exists"),
        ("Link", "NotPermitted"),
        ("Unlink", "IsDirectory"),
        ("Unlink", "Stale"),
        ("Unlink", "NotFound"),
        ("Rmdir", "NotEmpty"),
        ("Rmdir", "NotDirectory"),
        ("Rename", "NotEmpty"),
        ("Rename", "IsDirectory"),
        ("Rename", "NotDirectory"),
        ("Rename", "Invalid"),
        ("Rename", "Stale"),
        ("Rename", "Exists"),
        ("Write", "Stale"),
        ("SetXattr", "Exists"),
        ("SetXattr", "NoXattr"),
        ("Lock", "LockHeld"),
        ("MoveInode", "Stale"),
    ];
    for (op, refusal) in refusals {
        assert!(count(op, refusal) >= 3, "{op} {refusal}: {seen:#?}");
    }
}

/// If conflicts are not heeded, the model must notice: else it would prove nothing about footprints.
#[test]
fn ignored_conflicts_are_noticed() {
    std::panic::set_hook(Box::new(|_| {}));
    let runs = |heeds_conflicts| {
        let wrong = (0..100).filter(|seed| {
            let run = || {
                let mut throw = thrower(*seed);
                let mut concurrent = Concurrent { world: World::new(3), heeds_conflicts, pending: Vec::new() };
                for _ in 0..150 {
                    concurrent.step(throw());
                }
                concurrent.finish();
            };
            std::panic::catch_unwind(run).is_err()
        });
        wrong.count()
    };
    let (heeded, ignored) = (runs(true), runs(false));
    let _ = std::panic::take_hook();
    assert_eq!(heeded, 0);
    assert!(ignored > 50, "only {ignored} of 100 runs went wrong");
}

/// Random numbers from a seed.
fn thrower(seed: u64) -> impl FnMut() -> Dice {
    let mut state = seed;
    let mut roll = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state >> 24
    };
    move || (roll() as u8, roll() as u16, roll() as u16, roll() as u16, roll() as u16, roll() as u32)
}

fn label(debug: &str) -> String {
    debug.chars().take_while(|letter| letter.is_alphabetic()).collect()
}

fn result_label(outcome: &metadata::outcome::Outcome) -> String {
    match outcome {
        Ok(_) => "done".to_owned(),
        Err(metadata::outcome::OpError::Errno(errno)) => label(&format!("{errno:?}")),
        Err(error) => label(&format!("{error:?}")),
    }
}

fn conflict(a: &Command, b: &Command) -> bool {
    a.destinations.iter().any(|of_a| {
        let other = b.footprint(of_a.group).unwrap_or_default();
        of_a.footprint
            .iter()
            .any(|(key, mode)| other.iter().any(|(other, other_mode)| key == other && mode.conflicts(*other_mode)))
    })
}

fn dice(steps: usize) -> impl Strategy<Value = Vec<Dice>> {
    let one = (any::<u8>(), any::<u16>(), any::<u16>(), any::<u16>(), any::<u16>(), any::<u32>());
    proptest::collection::vec(one, 1..steps)
}

fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(96)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), max_shrink_iters: 4000, ..ProptestConfig::default() })]

    #[test]
    fn one_group_agrees_with_the_model(steps in dice(80)) {
        let mut world = World::new(1);
        for step in steps {
            world.step(step);
        }
    }

    #[test]
    fn three_groups_agree_with_the_model(steps in dice(80)) {
        let mut world = World::new(3);
        for step in steps {
            world.step(step);
        }
    }

    #[test]
    fn concurrent_commands_agree_with_the_model(steps in dice(250)) {
        let mut concurrent = Concurrent { world: World::new(3), heeds_conflicts: true, pending: Vec::new() };
        for step in steps {
            concurrent.step(step);
        }
        concurrent.finish();
    }

    #[test]
    fn groups_that_do_everything_in_steps_agree_with_the_model(steps in dice(120), step_rows in 1usize..5) {
        let mut world = World::new(3);
        world.cluster.step_rows = step_rows;
        for step in steps {
            world.step_patiently(step);
        }
        world.cluster.drain();
        tree::compare(&world.cluster, &world.model, &world.planner.refs);
        world.cluster.check();
    }
}
