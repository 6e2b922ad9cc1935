//! Measures this machine for the lab: the cores by themselves, then a cluster of one node through a mount, thread by thread.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Barrier;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use geo_bench::calibrate;
use geo_bench::costs::{AHEAD_MAX, Calibration, Cpu};
use geo_bench::spec::{Op, Point, Scope};
use geo_bench::stats::{Latencies, Part, median};
use rustix::time::{ClockId, clock_gettime};
use serde_json::Value;

use super::geo::{machine, now};
use super::geo_op::perform;
use crate::exit::{Exit, OrExit, Result};

const REGION: &str = "one";
const UP_PATIENCE: Duration = Duration::from_secs(60);
/// Each measurement takes so long, and is repeated so often: medians count.
const MEASURED: Duration = Duration::from_millis(1_500);
const ROUNDS: usize = 3;
const LOADED: usize = 16;
const KNOWN_FILES: usize = 16;
const LEN: usize = 1024;
/// So many are removed one after the other; that is all, if it takes less than [`MEASURED`].
const REMOVED_FILES: usize = 1_000;
/// Threads that work for an operation.
const PARTS: [Part; 5] = [Part::Kernel, Part::MountNetwork, Part::NodeNetwork, Part::Replica, Part::Log];
/// Updates that take a replica longer than an overwrite does, or not as long.
const UPDATES: [Op; 5] = [Op::Create, Op::Mkdir, Op::Chmod, Op::Rename, Op::Unlink];
/// Each halves what is not known of [`geo_bench::costs::Machine::ahead`].
const OVERLAP_STEPS: u32 = 8;
/// What was done before has settled.
const SETTLE: Duration = Duration::from_millis(200);
/// Requests of the kernel when a file two directories below the mount is read again, and when it is overwritten: three names,
/// OPEN, READ or GETXATTR and WRITE, FLUSH, RELEASE, counted on a mount. Nobody waits for the last one.
const REREAD_REQUESTS: f64 = 7.0;
const WRITE_REQUESTS: f64 = 8.0;

/// What was measured.
pub struct Found {
    /// The costs.
    pub costs: Calibration,
    /// What could not be measured, and stays as it was checked in.
    pub missing: Vec<String>,
    /// How well the lab repeats what the costs were taken from.
    pub checks: Vec<String>,
}

/// Measures everything that this machine lets be measured; the rest stays as it was checked in, and is told.
pub fn measure(disk: &Path, mount: bool) -> Result<Found> {
    let mut costs = Calibration::checked_in();
    costs.machine.name = machine();
    costs.machine.date = now();
    costs.machine.cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let cores = calibrate::cores().or_exit(Exit::Failed)?;
    let messages = calibrate::messages().or_exit(Exit::Failed)?;
    let (idle, busy) = calibrate::wake().or_exit(Exit::Failed)?;
    let flushes = calibrate::flushes(disk).or_exit(Exit::Failed)?;
    costs.machine.packs = calibrate::packs().or_exit(Exit::Failed)?;
    let cpu = &mut costs.cpu_us;
    (cpu.order, cpu.message, cpu.execute) = (cores.order, cores.message, cores.execute);
    (cpu.read, cpu.request) = (cores.read, cores.request);
    (cpu.wake, cpu.switch, cpu.frame, cpu.hold) = (idle, busy.min(idle), messages.frame_us, messages.hold_us);
    cpu.packet = (messages.lone_us - messages.frame_us).max(0.0);
    // What a lone frame takes on its way beside the CPU of both ends and the receiver's waking.
    costs.network.path_us = (messages.one_way_us - 2.0 * messages.lone_us - idle).max(0.0);
    costs.network.hold_late_us = messages.hold_late_us;
    (costs.disk.flush_us, costs.disk.flush_tail_us) = (flushes.least_us, flushes.tail_us);
    (costs.disk.flush_stamp_us, costs.disk.flush_beside_us) = (flushes.stamp_us, flushes.beside_us);
    let (mut missing, mut checks) = (Vec::new(), Vec::new());
    if !mount {
        missing.push("no cluster was started: costs of mounts and stores are those that were checked in".into());
    } else {
        match through_a_mount(disk, &mut costs) {
            Ok(told) => checks = told,
            Err(failure) => {
                missing
                    .push(format!("costs of mounts and stores are those that were checked in: {}", failure.message()));
            }
        }
    }
    costs.round();
    Ok(Found { costs, missing, checks })
}

/// What only a whole node and a mount show. One region, one node, no distance: what is compared later is something else.
fn through_a_mount(disk: &Path, costs: &mut Calibration) -> Result<Vec<String>> {
    let cluster = Cluster::start(disk)?;
    let mut rounds = Rounds::default();
    for round in 0..ROUNDS {
        rounds.reread.0.push(cluster.run(Op::Reread, (1, round))?);
        rounds.reread.1.push(cluster.run(Op::Reread, (LOADED, round))?);
        rounds.write.0.push(cluster.run(Op::Write, (1, round))?);
        rounds.write.1.push(cluster.run(Op::Write, (LOADED, round))?);
        rounds.one_folder.push(cluster.run(Op::Create, (LOADED, round))?);
        for op in UPDATES {
            rounds.updates.entry(op).or_default().push(cluster.run(op, (1, round))?);
        }
    }
    drop(cluster);
    work_of_threads(&mut costs.cpu_us, &rounds);
    overlap(costs, rounds.write.alone(|found| found.median_us))?;
    let mut checks = Vec::new();
    for (op, found) in [(Op::Reread, &rounds.reread), (Op::Write, &rounds.write)] {
        checks.extend(check(costs, op, found)?);
    }
    let real = median(rounds.one_folder.iter().map(|found| found.per_second));
    let cpu_us = median(rounds.one_folder.iter().map(|found| found.machine_us));
    let found = played(costs, Op::Create, LOADED)?;
    let (simulated, used) = (found.per_second, found.cpu_us.values().sum::<f64>());
    checks.push(format!(
        "create, {LOADED} in one folder: per second: real {real:.0}, simulated {simulated:.0}; CPU in µs per operation: real {cpu_us:.0}, \
         simulated {used:.0}"
    ));
    for (op, found) in &rounds.updates {
        let (real, played) = (median(found.iter().map(|found| found.median_us)), played(costs, *op, 1)?);
        let (name, simulated) = (op.name(), played.median_us);
        let mut line = format!("{name}, one application: median in µs: real {real:.0}, simulated {simulated:.0}");
        // What the lab's unlinks take is the creates', too.
        for part in PARTS.into_iter().filter(|_| *op != Op::Unlink) {
            let simulated = played.cpu_us.get(&part).copied().unwrap_or(0.0);
            line += &format!("; CPU, {part:?}: {:.0}, {simulated:.0}", Used::median(found, part).cpu_us);
        }
        checks.push(line);
    }
    Ok(checks)
}

/// How well the lab repeats what the costs were taken from.
fn check(costs: &Calibration, op: Op, found: &Pair) -> Result<Vec<String>> {
    let (one, many) = (played(costs, op, 1)?, played(costs, op, LOADED)?);
    let (median_us, name) = (found.alone(|found| found.median_us), op.name());
    let per_second = found.among(|found| found.per_second);
    let mut lines = vec![
        format!("{name}, one application: median in µs: real {median_us:.0}, simulated {:.0}", one.median_us),
        format!("{name}, {LOADED}: per second: real {per_second:.0}, simulated {:.0}", many.per_second),
    ];
    lines.push(format!(
        "{name}, CPU of the machine per operation in µs: {:.0}; {LOADED}: {:.0}",
        found.alone(|found| found.machine_us),
        found.among(|found| found.machine_us)
    ));
    for part in PARTS {
        let told = |real: Used, played: &Played| {
            let of = |costs: &BTreeMap<Part, f64>| costs.get(&part).copied().unwrap_or(0.0);
            let (cpu_us, wakes) = (of(&played.cpu_us), of(&played.wakes));
            format!("real {:.0} ({:.2}), simulated {cpu_us:.0} ({wakes:.2})", real.cpu_us, real.wakes)
        };
        if one.cpu_us.get(&part).is_some_and(|&used| used > 0.0) {
            let (alone, among) = (told(Used::median(&found.0, part), &one), told(Used::median(&found.1, part), &many));
            lines.push(format!("{name}, {part:?}: CPU in µs (wakings) per operation: {alone}; {LOADED}: {among}"));
        }
    }
    Ok(lines)
}

/// One operation, alone and among many.
#[derive(Default)]
struct Pair(Vec<Measured>, Vec<Measured>);

impl Pair {
    fn alone(&self, of: impl Fn(&Measured) -> f64) -> f64 {
        median(self.0.iter().map(of))
    }

    fn among(&self, of: impl Fn(&Measured) -> f64) -> f64 {
        median(self.1.iter().map(of))
    }

    /// What threads of one kind take for an operation that is alone: each time that they are woken, all in all, and for the
    /// operation itself. Among many, fewer wakings are left for each.
    fn split(&self, part: Part) -> (f64, f64) {
        let alone = self.alone(|found| found.of(part).cpu_us);
        let among = self.among(|found| found.of(part).cpu_us);
        let fewer = 1.0 - self.among(|found| found.of(part).wakes) / self.alone(|found| found.of(part).wakes).max(1e-9);
        let fixed = if fewer > 0.05 { ((alone - among) / fewer).clamp(0.0, alone) } else { 0.0 };
        (fixed, alone - fixed)
    }
}

#[derive(Default)]
struct Rounds {
    reread: Pair,
    write: Pair,
    /// Alone.
    updates: BTreeMap<Op, Vec<Measured>>,
    /// Creates, all in one folder: nothing is taken from them, but the lab is compared with them.
    one_folder: Vec<Measured>,
}

/// What work takes while the processors are busy. What it takes longer while they sleep in between is the price of waking them.
fn work_of_threads(cpu: &mut Cpu, rounds: &Rounds) {
    let Rounds { reread, write, updates, .. } = rounds;
    cpu.fuse = reread.among(|found| found.of(Part::Kernel).cpu_us) / REREAD_REQUESTS;
    cpu.fuse_idle = (reread.alone(|found| found.median_us) / (REREAD_REQUESTS - 1.0) - cpu.fuse).max(0.0);
    cpu.fuse_cold = (reread.alone(|found| found.of(Part::Kernel).cpu_us) / REREAD_REQUESTS - cpu.fuse).max(0.0);
    let face = write.among(|found| found.of(Part::Kernel).cpu_us);
    cpu.fuse_call = (face - (WRITE_REQUESTS - 1.0) * cpu.fuse - cpu.switch).max(cpu.fuse);
    cpu.lent = write.among(|found| found.mount.of("fuse-lent").cpu_us);
    // A thread's own switches are in what it takes; the lab adds them.
    let without = |fixed: f64, times: f64| (fixed / times - cpu.switch).max(0.0);
    // A node's network thread takes a packet in and sends one, each with a frame, a request and its answer.
    let (fixed, own) = write.split(Part::NodeNetwork);
    cpu.packet = without(fixed, 2.0);
    cpu.request = ((own - 2.0 * cpu.frame) / 1.5).max(cpu.request);
    let alone = write.alone(|found| found.of(Part::MountNetwork).cpu_us);
    cpu.mount_call = (alone - 2.0 * (cpu.packet + cpu.switch) - 3.0 * cpu.frame - 2.0 * cpu.request).max(0.0);
    // Alone, each operation is one batch.
    let batches =
        write.among(|found| found.of(Part::Log).wakes) / write.alone(|found| found.of(Part::Log).wakes).max(1e-9);
    cpu.log_batch = without(write.among(|found| found.of(Part::Log).cpu_us), batches.max(1e-9));
    let (fixed, own) = write.split(Part::Replica);
    cpu.store_update = (own - cpu.order - cpu.execute).max(0.0);
    // Alone, they differ by what they change, as far as the lab knows: what one takes less than an overwrite beyond that is left out. A
    // create is followed by a write.
    let overwrite = write.alone(|found| found.of(Part::Replica).cpu_us);
    cpu.store_updates = updates
        .iter()
        .map(|(&op, found)| {
            let others = if op == Op::Create { overwrite } else { 0.0 };
            let replica = median(found.iter().map(|found| found.of(Part::Replica).cpu_us)) - others;
            (op, (cpu.store_update + replica - overwrite).max(0.0))
        })
        .collect();
    // Two turns and a write of the store: they cannot be told apart.
    (cpu.turn, cpu.store_batch) = (without(fixed, 3.0), fixed / 3.0);
}

/// A round trip takes less than the work of all its threads, one after the other, with waking them: each does a part of its
/// work when the next one is under way already. How large a part, is what makes the whole take as long as it does.
fn overlap(costs: &mut Calibration, median_us: f64) -> Result<()> {
    let (mut least, mut most) = (0.0, AHEAD_MAX);
    for _ in 0..OVERLAP_STEPS {
        costs.machine.ahead = f64::midpoint(least, most);
        let is_slower = played(costs, Op::Write, 1)?.median_us > median_us;
        if is_slower { least = costs.machine.ahead } else { most = costs.machine.ahead }
    }
    costs.machine.ahead = f64::midpoint(least, most);
    Ok(())
}

/// The same in the lab.
struct Played {
    per_second: f64,
    median_us: f64,
    cpu_us: BTreeMap<Part, f64>,
    wakes: BTreeMap<Part, f64>,
}

fn played(costs: &Calibration, op: Op, clients: usize) -> Result<Played> {
    let point = Point {
        regions: 1,
        rtt: "lan3".into(),
        voters: 1,
        clients,
        mounts: 1,
        ops: vec![op],
        one_machine: true,
        one_folder: true,
        duration_ms: 3_000,
        ..Point::default()
    };
    let outcome = geo_bench::world::play(&point, costs, 1, &|| false).or_exit(Exit::Failed)?;
    let outcome = outcome.ok_or_else(|| anyhow!("the simulation was stopped"))?;
    let found = outcome.of(op, Scope::Local).ok_or_else(|| anyhow!("nothing was simulated"))?;
    let (per_second, median_us) = (found.per_second, found.latency.p50_ms * 1_000.0);
    Ok(Played { per_second, median_us, cpu_us: outcome.cpu_us_per_op, wakes: outcome.wakes_per_op })
}

/// A cluster of one node with a mount, in a folder of its own.
struct Cluster {
    child: Child,
    folder: PathBuf,
    mount: PathBuf,
    node: i32,
    mounter: i32,
}

/// Per operation.
struct Measured {
    median_us: f64,
    per_second: f64,
    program_us: f64,
    /// CPU of the whole machine.
    machine_us: f64,
    node: Threads,
    mount: Threads,
}

impl Measured {
    fn of(&self, part: Part) -> Used {
        match part {
            Part::Kernel => {
                let used = self.mount.of("fuser");
                Used { cpu_us: used.cpu_us + self.program_us, ..used }
            }
            Part::MountNetwork => self.mount.of("globalfs"),
            Part::NodeNetwork => self.node.of("net"),
            Part::Replica => self.node.of("group"),
            Part::Log => self.node.of("log"),
            Part::Emulation => Used::default(),
        }
    }
}

/// What a thread has used.
#[derive(Clone, Copy, Default)]
struct Used {
    cpu_us: f64,
    /// How often it went to sleep.
    wakes: f64,
}

impl Used {
    /// What threads of a kind have used for an operation.
    fn median(found: &[Measured], part: Part) -> Used {
        let of = |what: &dyn Fn(Used) -> f64| median(found.iter().map(|found| what(found.of(part))));
        Used { cpu_us: of(&|used| used.cpu_us), wakes: of(&|used| used.wakes) }
    }
}

/// A process's threads by name.
#[derive(Clone, Default)]
struct Threads(BTreeMap<String, Used>);

impl Threads {
    /// As of now, since they began.
    fn now(process: i32) -> Threads {
        let mut threads = Threads::default();
        let Ok(tasks) = fs::read_dir(format!("/proc/{process}/task")) else { return threads };
        for task in tasks.flatten() {
            // It may have ended.
            let read = |file: &str| fs::read_to_string(task.path().join(file)).unwrap_or_default();
            let cpu_ns = read("schedstat").split_whitespace().next().and_then(|word| word.parse::<f64>().ok());
            let status = read("status");
            let wakes = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
            let used = threads.0.entry(read("comm").trim().to_owned()).or_default();
            used.cpu_us += cpu_ns.unwrap_or(0.0) / 1e3;
            used.wakes += wakes.and_then(|word| word.trim().parse().ok()).unwrap_or(0.0);
        }
        threads
    }

    /// What has been used since, for each of so many operations.
    fn since(&self, before: &Threads, count: f64) -> Threads {
        let each = self.0.iter().map(|(name, used)| {
            let before = before.0.get(name).copied().unwrap_or_default();
            let used = Used { cpu_us: used.cpu_us - before.cpu_us, wakes: used.wakes - before.wakes };
            (name.clone(), Used { cpu_us: used.cpu_us / count, wakes: used.wakes / count })
        });
        Threads(each.collect())
    }

    /// All whose names begin like this.
    fn of(&self, name: &str) -> Used {
        let own = self.0.iter().filter(|(found, _)| found.starts_with(name));
        own.fold(Used::default(), |sum, (_, used)| Used {
            cpu_us: sum.cpu_us + used.cpu_us,
            wakes: sum.wakes + used.wakes,
        })
    }
}

impl Cluster {
    fn start(disk: &Path) -> Result<Cluster> {
        let folder = disk.join(format!("globalfs-calibration-{}", std::process::id()));
        let program = std::env::current_exe().context("finding this program")?;
        let mut child = Command::new(program)
            .args(["up", "--json", "--regions", REGION, "--data"])
            .arg(&folder)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("starting a cluster")?;
        let out = child.stdout.take();
        let mut cluster = Cluster { child, mount: folder.join("mnt").join(REGION), folder, node: 0, mounter: 0 };
        let (told, tells) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let mut line = String::new();
            if out.is_some_and(|out| BufReader::new(out).read_line(&mut line).is_ok()) {
                // Nobody may be waiting any more.
                let _ = told.send(line);
            }
        });
        let line = tells.recv_timeout(UP_PATIENCE).map_err(|_| anyhow!("a cluster with a mount did not come up"))?;
        let ready: Value =
            serde_json::from_str(&line).map_err(|_| anyhow!("a cluster with a mount did not come up"))?;
        let pid = |of| find_pid(&ready, of).ok_or_else(|| anyhow!("it is not known which processes the cluster has"));
        (cluster.node, cluster.mounter) = (pid("nodes")?, pid("mounts")?);
        Ok(cluster)
    }

    fn run(&self, op: Op, (threads, round): (usize, usize)) -> Result<Measured> {
        let folder = self.mount.join(REGION).join(format!("{}-{threads}-{round}", op.name()));
        fs::create_dir(&folder).with_context(|| folder.display().to_string())?;
        // What they need is no part of what is measured.
        let (made, start) = (Barrier::new(threads + 1), Barrier::new(threads + 1));
        let now = || (Threads::now(self.node), Threads::now(self.mounter), machine_cpu_us());
        let (results, before, after) = std::thread::scope(|scope| {
            let work = |number: usize| {
                let (folder, made, start) = (&folder, &made, &start);
                scope.spawn(move || {
                    let paths = prepare(op, folder, number);
                    made.wait();
                    start.wait();
                    work(op, paths?)
                })
            };
            let handles: Vec<_> = (0..threads).map(work).collect();
            made.wait();
            std::thread::sleep(SETTLE);
            let before = now();
            start.wait();
            let joined = handles.into_iter().map(|handle| handle.join());
            let results: Vec<std::io::Result<(Latencies, f64, Duration)>> = joined
                .map(|result| result.unwrap_or_else(|_| Err(std::io::Error::other("a thread panicked"))))
                .collect();
            (results, before, now())
        });
        let (mut all, mut program_us, mut lasted) = (Latencies::default(), 0.0, Duration::ZERO);
        for result in results {
            let (own, used_us, took) = result.with_context(|| folder.display().to_string())?;
            all.add(&own);
            program_us += used_us;
            lasted = lasted.max(took);
        }
        let count = all.count().max(1) as f64;
        Ok(Measured {
            median_us: all.quantile_ms(0.5) * 1_000.0,
            per_second: count / lasted.as_secs_f64().max(1e-6),
            program_us: program_us / count,
            machine_us: (after.2 - before.2) / count,
            node: after.0.since(&before.0, count),
            mount: after.1.since(&before.1, count),
        })
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // SIGTERM unmounts and ends everything that it started.
        if let Some(pid) = rustix::process::Pid::from_raw(self.child.id() as i32) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// What all processors have been busy with, interrupts and what the host has taken included, in microseconds of one CPU.
fn machine_cpu_us() -> f64 {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let fields = stat.lines().next().unwrap_or_default().split_whitespace().skip(1);
    let ticks: Vec<f64> = fields.map(|field| field.parse().unwrap_or(0.0)).collect();
    // user, nice, system, idle, iowait, irq, softirq, steal; what guests take is in user.
    let busy: f64 =
        ticks.iter().take(8).enumerate().filter(|(at, _)| ![3, 4].contains(at)).map(|(_, ticks)| ticks).sum();
    busy * 1e6 / rustix::param::clock_ticks_per_second() as f64
}

/// The calling thread's CPU so far.
fn own_cpu_us() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 * 1e6 + time.tv_nsec as f64 / 1e3
}

fn prepare(op: Op, folder: &Path, number: usize) -> std::io::Result<Vec<PathBuf>> {
    let count = match op {
        Op::Reread => KNOWN_FILES,
        Op::Unlink => REMOVED_FILES,
        _ => 1,
    };
    let paths: Vec<PathBuf> = (0..count).map(|at| folder.join(format!("{number}-{at}"))).collect();
    for path in &paths {
        fs::write(path, [b'x'; LEN])?;
        fs::read(path)?;
    }
    Ok(paths)
}

/// What it took, CPU, and how long it lasted.
fn work(op: Op, mut paths: Vec<PathBuf>) -> std::io::Result<(Latencies, f64, Duration)> {
    let bytes = vec![b'x'; LEN];
    let (mut latencies, used, begun) = (Latencies::default(), own_cpu_us(), Instant::now());
    let (first, count) = (paths[0].clone(), paths.len());
    for number in 0.. {
        let since = Instant::now();
        if since >= begun + MEASURED || (op == Op::Unlink && number >= count) {
            break;
        }
        let fresh = first.with_extension(number.to_string());
        perform(op, &paths[number % count], &fresh, (number, &bytes))?;
        latencies.record(since.elapsed().as_nanos() as u64);
        if op == Op::Rename {
            paths[0] = fresh;
        }
    }
    Ok((latencies, own_cpu_us() - used, begun.elapsed()))
}

/// The first of these processes, as `up` names them.
fn find_pid(ready: &Value, of: &str) -> Option<i32> {
    ready.get(of)?.as_array()?.first()?.get("pid")?.as_i64()?.try_into().ok()
}
