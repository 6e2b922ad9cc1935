//! Measures this machine for the lab: the cores by themselves, then a cluster of one node through a mount.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use geo_bench::calibrate;
use geo_bench::costs::Calibration;
use geo_bench::spec::{Op, Point, Scope};
use geo_bench::stats::Latencies;
use serde_json::Value;

use super::geo::{machine, now};
use crate::exit::{Exit, OrExit, Result};

const REGION: &str = "one";
const UP_PATIENCE: Duration = Duration::from_secs(60);
const MEASURED: Duration = Duration::from_secs(3);
const LOADED: usize = 16;
/// The kernel's clock ticks per second in /proc.
const TICKS: f64 = 100.0;
const KNOWN_FILES: usize = 64;

/// Measures everything that this machine lets be measured; the rest stays as it was checked in, and is told.
pub fn measure(disk: &Path, mount: bool) -> Result<(Calibration, Vec<String>)> {
    let mut costs = Calibration::checked_in();
    costs.machine.name = machine();
    costs.machine.date = now();
    costs.machine.cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let cores = calibrate::cores().or_exit(Exit::Failed)?;
    let messages = calibrate::messages().or_exit(Exit::Failed)?;
    let wake = calibrate::wake().or_exit(Exit::Failed)?;
    let (flush, tail) = calibrate::flushes(disk).or_exit(Exit::Failed)?;
    let cpu = &mut costs.cpu_us;
    (cpu.order, cpu.message, cpu.execute) = (cores.order, cores.message, cores.execute);
    (cpu.read, cpu.request) = (cores.read, cores.request);
    (cpu.wake, cpu.frame) = (wake, messages.frame_us);
    cpu.packet = (messages.lone_us - messages.frame_us - wake).max(0.0);
    // What a lone frame takes on its way beside the CPU of both ends.
    costs.network.path_us = (messages.one_way_us - 2.0 * (cpu.packet + cpu.frame) - wake).max(0.0);
    (costs.disk.flush_us, costs.disk.flush_tail_us) = (flush, tail);
    let mut notes = Vec::new();
    if !mount {
        notes.push("no cluster was started: costs of mounts and stores are those that were checked in".into());
    } else if let Err(failure) = through_a_mount(disk, &mut costs) {
        notes.push(format!("costs of mounts and stores are those that were checked in: {}", failure.message()));
    }
    round(&mut costs);
    Ok((costs, notes))
}

fn round(costs: &mut Calibration) {
    let cpu = &mut costs.cpu_us;
    for value in [
        &mut cpu.wake,
        &mut cpu.packet,
        &mut cpu.frame,
        &mut cpu.request,
        &mut cpu.turn,
        &mut cpu.message,
        &mut cpu.order,
        &mut cpu.execute,
        &mut cpu.store_batch,
        &mut cpu.store_update,
        &mut cpu.read,
        &mut cpu.log_batch,
        &mut cpu.fuse,
        &mut cpu.mount_hit,
        &mut cpu.mount_call,
        &mut costs.disk.flush_us,
        &mut costs.disk.flush_tail_us,
        &mut costs.network.path_us,
    ] {
        *value = (*value * 100.0).round() / 100.0;
    }
}

/// What only a whole node and a mount show. One region, one node, no distance: what is compared later is something else.
fn through_a_mount(disk: &Path, costs: &mut Calibration) -> Result {
    let cluster = Cluster::start(disk)?;
    // Alone, every thread sleeps between operations; loaded, batches share what each of them costs.
    let reread = cluster.run(Op::Reread, 1)?;
    let write = cluster.run(Op::Write, 1)?;
    let loaded = cluster.run(Op::Write, LOADED)?;
    let cpu = &mut costs.cpu_us;
    cpu.mount_hit = cpu.request;
    cpu.fuse = (reread.median_us / 5.0).max(1.0);
    // The node's CPU of an update alone is its fixed part and its own; among many the fixed part is shared.
    let own = cpu.order + cpu.execute + cpu.request * 1.5 + 2.0 * cpu.frame;
    let fixed = 2.0 * cpu.packet + 4.0 * cpu.wake;
    let shared = LOADED as f64 / 2.0;
    cpu.store_update = ((loaded.node_cpu_us - own) - (write.node_cpu_us - own) / shared).max(1.0);
    let rest = (write.node_cpu_us - own - fixed - cpu.store_update).max(0.0);
    (cpu.turn, cpu.store_batch, cpu.log_batch) = (rest * 0.2, rest * 0.4, rest * 0.4);
    // What is left of the latency is the mount's.
    cpu.mount_call = 0.0;
    let point = Point {
        regions: 1,
        rtt: "lan3".into(),
        voters: 1,
        clients: 1,
        mounts: 1,
        ops: vec![Op::Write],
        one_machine: true,
        duration_ms: 3_000,
        ..Point::default()
    };
    let played = geo_bench::world::play(&point, costs, 1, &|| false).or_exit(Exit::Failed)?;
    let simulated = played.as_ref().and_then(|outcome| outcome.of(Op::Write, Scope::Local));
    let simulated_us = simulated.map_or(0.0, |found| found.latency.p50_ms * 1_000.0);
    costs.cpu_us.mount_call = (write.median_us - simulated_us).max(0.0);
    Ok(())
}

/// A cluster of one node with a mount, in a folder of its own.
struct Cluster {
    child: Child,
    folder: PathBuf,
    mount: PathBuf,
    node: i32,
}

struct Measured {
    median_us: f64,
    node_cpu_us: f64,
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
        let mut cluster = Cluster { child, mount: folder.join("mnt").join(REGION), folder, node: 0 };
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
        cluster.node = find_pid(&ready).or_else(|| node_below(cluster.child.id())).unwrap_or(0);
        Ok(cluster)
    }

    fn run(&self, op: Op, threads: usize) -> Result<Measured> {
        let folder = self.mount.join(REGION).join(format!("{}-{threads}", op.name()));
        fs::create_dir(&folder).with_context(|| folder.display().to_string())?;
        let before = cpu_of(self.node);
        let results: Vec<std::io::Result<Latencies>> = std::thread::scope(|scope| {
            let work = |number: usize| {
                let folder = &folder;
                scope.spawn(move || work(op, folder, number))
            };
            let handles: Vec<_> = (0..threads).map(work).collect();
            let joined = handles.into_iter().map(|handle| handle.join());
            joined.map(|result| result.unwrap_or_else(|_| Err(std::io::Error::other("a thread panicked")))).collect()
        });
        let used_us = (cpu_of(self.node) - before) * 1e6 / TICKS;
        let mut all = Latencies::default();
        for result in results {
            all.add(&result.with_context(|| folder.display().to_string())?);
        }
        let node_cpu_us = used_us / all.count().max(1) as f64;
        Ok(Measured { median_us: all.quantile_ms(0.5) * 1_000.0, node_cpu_us })
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

fn work(op: Op, folder: &Path, number: usize) -> std::io::Result<Latencies> {
    let bytes = vec![b'x'; 1024];
    let paths: Vec<PathBuf> = (0..KNOWN_FILES).map(|at| folder.join(format!("{number}-{at}"))).collect();
    for path in paths.iter().take(if op == Op::Reread { KNOWN_FILES } else { 1 }) {
        fs::write(path, &bytes)?;
        fs::read(path)?;
    }
    let mut latencies = Latencies::default();
    let until = Instant::now() + MEASURED;
    let mut content = Vec::new();
    for at in 0.. {
        let since = Instant::now();
        if since >= until {
            break;
        }
        if op == Op::Reread {
            content.clear();
            File::open(&paths[at % KNOWN_FILES])?.read_to_end(&mut content)?;
        } else {
            OpenOptions::new().write(true).open(&paths[0])?.write_all(&bytes)?;
        }
        latencies.record(since.elapsed().as_nanos() as u64);
    }
    Ok(latencies)
}

/// The node's process, if what `up` says of itself names it.
fn find_pid(ready: &Value) -> Option<i32> {
    let nodes = ready.get("nodes")?.as_array()?;
    nodes.first()?.get("pid")?.as_i64()?.try_into().ok()
}

/// … else the child whose command line says that it is one.
fn node_below(parent: u32) -> Option<i32> {
    let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).ok()?;
    children.split_whitespace().find_map(|pid| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let is_node = line.split(|&byte| byte == 0).any(|word| word == b"node");
        if is_node { pid.parse().ok() } else { None }
    })
}

/// CPU of a process so far, in ticks.
fn cpu_of(pid: i32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<f64>().ok()).unwrap_or(0.0);
    ticks(11) + ticks(12)
}
