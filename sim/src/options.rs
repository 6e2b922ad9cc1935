//! What one run is like. One seed draws all of it: each run has some faults and not others, some more than it should have.

use std::collections::BTreeMap;

use multicast::ids::{GroupId, LogIndex, ReplicaId};
use multicast::{Limits, Timing};

use crate::rng::Rnd;

/// A millisecond.
pub const MS: u64 = 1_000_000;
/// A microsecond.
pub const US: u64 = 1_000;

/// No run has so many entries: logs are cut only below what all members have.
const LOG_ENTRIES_MAX: u64 = 1 << 24;

/// Faults of one kind: how often, on average, while faults last. Zero: never.
pub type EveryMs = u64;

/// Everything that a run may do, drawn from its seed.
#[derive(Clone, Debug)]
pub struct Options {
    /// One-way delays between regions, in microseconds; the diagonal is the delay inside a region.
    pub delays_us: Vec<Vec<u64>>,
    /// In which region each node is.
    pub nodes: BTreeMap<ReplicaId, usize>,
    /// The voters of each group.
    pub groups: BTreeMap<GroupId, Vec<ReplicaId>>,
    /// The region of each client.
    pub clients: Vec<usize>,
    /// Operations of each client.
    pub operations: u64,
    /// What clients do.
    pub mix: Mix,
    /// What may go wrong.
    pub faults: Faults,
    /// What operators do meanwhile.
    pub operators: Operators,
    /// When faults end.
    pub faults_until_ms: u64,
    /// Patience of the cores.
    pub timing: Timing,
    /// Bounds of the cores.
    pub limits: Limits,
    /// How long a session may be silent.
    pub session_lease_ms: u64,
    /// How long a read may be parked.
    pub parked_read_ms: u64,
    /// How often the stores are flushed, at most.
    pub store_flush_ms: u64,
    /// How often blobs are collected; zero: never.
    pub collect_every_ms: u64,
    /// Nothing is checked at the end but what clients saw: to see what that finds alone.
    pub only_black_box: bool,
}

/// What clients do.
#[derive(Clone, Debug)]
pub struct Mix {
    /// So many names per directory.
    pub names: u64,
    /// Operations under way at once per client.
    pub concurrency: usize,
    /// Of a thousand operations so many are reads.
    pub reads: u64,
    /// Of a thousand updates so many change names of directories: renames, placements, moves.
    pub structure: u64,
    /// Of a thousand updates so many change content.
    pub content: u64,
    /// Of a thousand reads so many are linearizable.
    pub linearizable: u64,
    /// Of a thousand new directories so many are placed in a group of their own.
    pub placed: u64,
    /// Clients think for so long between operations, at most.
    pub think_ms: u64,
    /// Of a thousand reads so many look at names; the rest at inodes, listings, contents.
    pub lookups: u64,
}

/// What operators do while faults last.
#[derive(Clone, Copy, Debug, Default)]
pub struct Operators {
    /// Members come, go and are promoted, primaries are told to hand over.
    pub change: EveryMs,
    /// Nodes are stopped in order, and started again some time later.
    pub stop: EveryMs,
    /// Primaries replace members by themselves that have lost their disks; else an operator does.
    pub auto_replace: bool,
}

/// What may go wrong while faults last.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// Messages lost, of a thousand.
    pub loss: u64,
    /// Messages delivered twice, of a thousand.
    pub duplication: u64,
    /// Messages overtake each other.
    pub reordering: bool,
    /// Messages ten times slower, of a thousand.
    pub spikes: u64,
    /// Delays vary by so many percent.
    pub jitter_percent: u64,
    /// Nodes crash.
    pub crash: EveryMs,
    /// Nodes crash between two steps of one turn: so many turns of a million.
    pub crash_in_turn: u64,
    /// Nodes crash just after they have promised, of a thousand promises: that is when most is at stake.
    pub crash_after_promise: u64,
    /// Nodes stay down for so long, at most.
    pub down_ms_max: u64,
    /// Nodes are frozen.
    pub pause: EveryMs,
    /// … for so long, at most.
    pub pause_ms_max: u64,
    /// Links are cut.
    pub cut: EveryMs,
    /// … for so long, at most.
    pub cut_ms_max: u64,
    /// Links become slow.
    pub slow_link: EveryMs,
    /// Clocks jump forward.
    pub clock_jump: EveryMs,
    /// … by so much, at most.
    pub clock_jump_ms_max: u64,
    /// Clocks start that far apart, at most.
    pub clock_skew_ms: u64,
    /// Clocks drift by so many parts per million, at most.
    pub drift_ppm: u64,
    /// After a restart the wall clock may be earlier than before by so much.
    pub clock_back_ms: u64,
    /// Flushes fail, of a million.
    pub flush_failure: u64,
    /// Flushes are slow, of a thousand.
    pub slow_flush: u64,
    /// Disks are lost, and nodes begin anew on empty ones; never more than their groups survive.
    pub wipe: EveryMs,
    /// A bit flips in a log; likewise.
    pub flip_log: EveryMs,
    /// A bit flips in a row of a state; likewise.
    pub flip_row: EveryMs,
    /// A disk is full for some time: nothing can be written.
    pub full_disk: EveryMs,
    /// A disk is slow for some time.
    pub slow_disk: EveryMs,
    /// Copies of states that do not get there, of a thousand.
    pub lost_copies: u64,
    /// Connections of clients break.
    pub disconnect: EveryMs,
    /// One voter's state becomes another one behind that index, in a way that only its digest shows.
    pub rot: Option<(GroupId, ReplicaId, LogIndex)>,
}

impl Options {
    /// Draws everything.
    #[must_use]
    pub fn draw(seed: u64) -> Options {
        let rnd = &mut Rnd::new(seed, 1);
        let regions = *rnd.pick(&[1, 1, 2, 2, 3, 3, 4, 5, 7, 9]);
        let delays_us = draw_delays(rnd, regions);
        let (nodes, groups) = draw_groups(rnd, regions);
        let clients = (0..rnd.range(2, 5)).map(|_| rnd.index(regions)).collect();
        let widest_ms = delays_us.iter().flatten().max().copied().unwrap_or(0) / 1000 + 1;
        let mut faults =
            if rnd.chance(900) { Faults::draw(rnd) } else { Faults { jitter_percent: 20, ..Faults::default() } };
        faults.rot = draw_rot(&mut Rnd::new(seed, 3), &groups);
        let mut log_entries_max = *rnd.pick(&[LOG_ENTRIES_MAX, LOG_ENTRIES_MAX, 40, 8]);
        if faults.rot.is_some() {
            // Another disk that goes would be one too many, and a wrong state that is copied a quorum's.
            (faults.wipe, faults.flip_log, faults.flip_row) = (0, 0, 0);
            log_entries_max = LOG_ENTRIES_MAX;
        }
        Options {
            delays_us,
            nodes,
            groups,
            clients,
            operations: rnd.range(20, 90),
            mix: Mix::draw(rnd),
            operators: Operators::draw(rnd, &faults),
            faults,
            faults_until_ms: rnd.range(3_000, 15_000),
            timing: draw_timing(rnd, widest_ms),
            limits: Limits {
                log_tail_bytes: *rnd.pick(&[1, 4_000, 1 << 20]),
                append_batch_bytes: *rnd.pick(&[200, 4_000, 1 << 20]),
                append_window_bytes: *rnd.pick(&[1_000, 1 << 20]),
                log_entries_max,
                ..Limits::default()
            },
            session_lease_ms: *rnd.pick(&[4_000, 10_000, 60_000, 60_000]),
            parked_read_ms: *rnd.pick(&[50, 500, 2_000]),
            store_flush_ms: *rnd.pick(&[200, 1_000, 5_000]),
            collect_every_ms: *rnd.pick(&[0, 500, 2_000]),
            only_black_box: false,
        }
    }

    /// Nothing goes wrong, in a small cluster.
    #[must_use]
    pub fn calm(seed: u64) -> Options {
        let mut options = Options::draw(seed);
        options.faults = Faults { jitter_percent: 10, ..Faults::default() };
        options.operators = Operators::default();
        options
    }

    /// True if logs are cut although somebody may still need what goes.
    #[must_use]
    pub fn cuts_logs(&self) -> bool {
        self.limits.log_entries_max < LOG_ENTRIES_MAX
    }
}

fn draw_delays(rnd: &mut Rnd, regions: usize) -> Vec<Vec<u64>> {
    let wide_us = *rnd.pick(&[2_000, 15_000, 40_000, 100_000]);
    let near_us = *rnd.pick(&[100, 500, 2_000]);
    let mut delays = vec![vec![near_us; regions]; regions];
    let pairs = (0..regions).flat_map(|a| (0..a).map(move |b| (a, b)));
    for (a, b) in pairs {
        let delay = rnd.range(wide_us / 3, wide_us * 2);
        delays[a][b] = delay;
        // Ways differ a little by direction.
        delays[b][a] = delay * rnd.range(90, 110) / 100;
    }
    delays
}

type Placed = (BTreeMap<ReplicaId, usize>, BTreeMap<GroupId, Vec<ReplicaId>>);

fn draw_groups(rnd: &mut Rnd, regions: usize) -> Placed {
    let count = *rnd.pick(&[1, 2, 2, 3, 3, 4, 5]);
    let spare = rnd.range(0, 2) as usize;
    let largest = if regions > 3 { 5 } else { 3 + 2 * usize::from(rnd.chance(250)) };
    let per_region = largest.div_ceil(regions) + usize::from(spare == 2);
    let mut nodes = BTreeMap::new();
    for region in 0..regions {
        for at in 0..per_region {
            nodes.insert(ReplicaId((region * 10 + at + 1) as u32), region);
        }
    }
    let mut groups = BTreeMap::new();
    for group in 0..count {
        let mut all: Vec<ReplicaId> = nodes.keys().copied().collect();
        rnd.shuffle(&mut all);
        if rnd.chance(600) {
            // At home in one region, as far as it has nodes.
            let home = rnd.index(regions);
            all.sort_by_key(|id| nodes[id] != home);
        }
        let voters = *rnd.pick(&[1, 3, 3, 3, 5]);
        all.truncate(if voters <= all.len() { voters } else { 3.min(all.len() - 1 + all.len() % 2) });
        groups.insert(GroupId(group), all);
    }
    (nodes, groups)
}

#[allow(clippy::needless_update, reason = "what is not drawn keeps its default, also what is added later")]
fn draw_timing(rnd: &mut Rnd, widest_ms: u64) -> Timing {
    let election_timeout_ms = rnd.range(600, 1_500).max(widest_ms * 5);
    let resend_ms = rnd.range(300, 800).max(widest_ms * 3);
    Timing {
        heartbeat_ms: 100,
        election_timeout_ms,
        resend_ms,
        resend_ms_max: 5_000,
        silence_ms: *rnd.pick(&[2_000, 5_000]),
        return_ms: *rnd.pick(&[0, 2_000, 10_000]),
        forget_ms: *rnd.pick(&[50, 200, 1_000]),
        ..Timing::default()
    }
}

/// In one run of ten.
fn draw_rot(rnd: &mut Rnd, groups: &BTreeMap<GroupId, Vec<ReplicaId>>) -> Option<(GroupId, ReplicaId, LogIndex)> {
    let (&group, voters) = rnd.choose(groups.iter())?;
    // Alone nobody can tell.
    let has_quorum = voters.len() > 2 && rnd.chance(100);
    has_quorum.then(|| (group, *rnd.pick(voters), LogIndex(rnd.range(5, 60))))
}

impl Operators {
    fn draw(rnd: &mut Rnd, faults: &Faults) -> Operators {
        let mut some = |rates: &[u64]| if rnd.chance(400) { *rnd.pick(rates) } else { 0 };
        let (change, stop) = (some(&[200, 700, 2_000]), some(&[1_500, 4_000]));
        // A state that is another one takes away from what the group survives as soon as that shows.
        let change = if faults.rot.is_some() { 0 } else { change };
        Operators { change, stop, auto_replace: rnd.chance(800) }
    }
}

impl Mix {
    fn draw(rnd: &mut Rnd) -> Mix {
        Mix {
            names: *rnd.pick(&[2, 3, 5]),
            concurrency: *rnd.pick(&[1, 1, 2, 4]),
            reads: *rnd.pick(&[150, 400, 700]),
            structure: *rnd.pick(&[100, 300, 700]),
            content: *rnd.pick(&[100, 300, 600]),
            linearizable: *rnd.pick(&[0, 0, 200]),
            placed: *rnd.pick(&[200, 500, 900]),
            think_ms: *rnd.pick(&[5, 50, 300]),
            lookups: *rnd.pick(&[200, 500]),
        }
    }
}

impl Faults {
    fn draw(rnd: &mut Rnd) -> Faults {
        // Each kind is in about half of the runs: too many at once hide each other.
        let mut some = |rates: &[u64]| if rnd.chance(500) { *rnd.pick(rates) } else { 0 };
        Faults {
            loss: some(&[5, 30, 150]),
            duplication: some(&[20, 200]),
            reordering: some(&[1]) == 1,
            spikes: some(&[10, 50]),
            jitter_percent: 10 + some(&[30, 90]),
            crash: some(&[500, 1_500, 4_000]),
            crash_in_turn: some(&[200, 2_000]),
            crash_after_promise: some(&[100, 400]),
            down_ms_max: 200 + some(&[1_000, 5_000]),
            pause: some(&[1_000, 4_000]),
            pause_ms_max: 500 + some(&[3_000, 8_000]),
            cut: some(&[500, 2_000]),
            cut_ms_max: 300 + some(&[2_000, 7_000]),
            slow_link: some(&[1_000]),
            clock_jump: some(&[2_000]),
            clock_jump_ms_max: 50 + some(&[20_000]),
            clock_skew_ms: 1 + some(&[50, 5_000, 100_000]),
            drift_ppm: some(&[100, 20_000]),
            clock_back_ms: some(&[1_000, 30_000]),
            flush_failure: some(&[300, 3_000]),
            slow_flush: some(&[20, 100]),
            wipe: some(&[1_000, 3_000]),
            flip_log: some(&[3_000]),
            flip_row: some(&[3_000]),
            full_disk: some(&[3_000]),
            slow_disk: some(&[2_000]),
            lost_copies: 10 + some(&[300]),
            disconnect: some(&[500, 3_000]),
            rot: None,
        }
    }
}
