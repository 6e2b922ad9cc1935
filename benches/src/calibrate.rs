//! Measures what work costs on this machine: the cores, the codecs, messages over QUIC, flushes, waking a thread.
//!
//! CPU is counted as the process's own CPU time, so that other work on the machine matters less.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use bytes::Bytes;
use metadata::codec;
use metadata::op::{FsOp, NewNode};
use metadata::protocol::{Request, ToNode};
use metadata::read::ReadOp;
use multicast::command::Command;
use multicast::ids::{CommandId, GroupId, ReplicaId, SessionId, VectorClock};
use multicast::{Config, Time};
use net::wan::{Matrix, Wan, WanSide};
use net::{ChannelKind, ClusterCa, Endpoint, EndpointConfig, Role};
use partition_replica::{Disk, DiskFile, RealDisk};
use rustix::thread::{CpuSet, sched_getcpu as getcpu, sched_setaffinity};
use rustix::time::{ClockId, clock_gettime};

use crate::error::{Error, Result};
use crate::stats::median;
use crate::world::{Input, Link, Member, Ticket, root};

/// Commands of the cores' measurement, in batches as a busy node has them.
const COMMANDS: u64 = 20_000;
const BATCH: u64 = 32;
const WAKES: usize = 20_000;
/// Two threads work so long at a time, with pauses of up to so long, to see whether they get a CPU each; each pause is tried for
/// so long, and halves what is not known so often.
const PACK_WORK: Duration = Duration::from_micros(100);
const PACK_PAUSE_MAX: Duration = Duration::from_millis(1);
const PACK_LASTS: Duration = Duration::from_millis(600);
const PACK_STEPS: usize = 6;
const FRAME_LEN: usize = 200;
const ROUND_TRIPS: usize = 5_000;
const PIPELINE: usize = 256;
/// One way of an emulated distance, long enough for processors to fall asleep meanwhile.
const EMULATED: Duration = Duration::from_micros(3_500);
const FLUSHES: usize = 300;
const FLUSH_LEN: usize = 4096;
/// As many as nodes of a group on one machine.
const LOGS: usize = 3;
const PAUSED_FLUSHES: usize = 60;
/// Longer than the tick of any system's clock: 10 ms at most.
const FLUSH_PAUSE: Duration = Duration::from_millis(11);
const KIND: ChannelKind = ChannelKind::new(200, 1);

/// Per piece of work, in microseconds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cores {
    /// Ordering, at a primary.
    pub order: f64,
    /// A message between replicas: codec and core.
    pub message: f64,
    /// Execution.
    pub execute: f64,
    /// An answer from the state.
    pub read: f64,
    /// Codecs of a request and its reply.
    pub request: f64,
}

/// Messages over the transport.
#[derive(Clone, Copy, Debug, Default)]
pub struct Messages {
    /// CPU of a lone frame at one end.
    pub lone_us: f64,
    /// CPU of a frame among many, at one end.
    pub frame_us: f64,
    /// Half of a lone round trip.
    pub one_way_us: f64,
    /// CPU of holding a frame, as the emulation of distances does.
    pub hold_us: f64,
    /// How much later than asked for it lets go of one.
    pub hold_late_us: f64,
}

fn cpu_us() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 * 1e6 + time.tv_nsec as f64 / 1e3
}

fn thread_cpu_us() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 * 1e6 + time.tv_nsec as f64 / 1e3
}

fn failed(error: impl std::fmt::Display) -> Error {
    Error::Invalid(error.to_string())
}

/// The cores and codecs, in this thread.
///
/// # Errors
/// If the cores do not work.
pub fn cores() -> Result<Cores> {
    let group = GroupId::GLOBAL;
    let groups = BTreeMap::from([(group, vec![ReplicaId(1)])]);
    let mut now = Time(1_700_000_000_000_000_000);
    let mut member = Member::new(now, Config::new(group, ReplicaId(1), groups))?;
    let mut found = Cores::default();
    let settle = |member: &mut Member, now: Time, found: &mut Cores| -> Result<()> {
        loop {
            let begun = cpu_us();
            let round = member.outputs(now)?;
            if let Some((token, _)) = round.persist {
                member.take(now, Input::Persisted(token));
            }
            let ordered = cpu_us();
            let applied = member.apply(now)?;
            found.order += ordered - begun;
            found.execute += cpu_us() - ordered;
            if round.is_empty() && applied.entries == 0 {
                return Ok(());
            }
        }
    };
    for _ in 0..50 {
        now = now.after_ms(100);
        member.begin_turn(now)?;
        settle(&mut member, now, &mut found)?;
    }
    let session = SessionId(7);
    let open = Request::OpenSession { group, session, label: String::new() };
    member.take(now, Input::Request(Ticket { mount: Link(0), request: 0 }, open));
    settle(&mut member, now, &mut found)?;
    found = Cores::default();
    let mut codecs = 0.0;
    for sequence in 1..=COMMANDS {
        let op = FsOp::Create {
            parent: root(),
            name: format!("file-{sequence}").into(),
            node: NewNode::File,
            mode: 0o644,
            uid: 0,
            gid: 0,
            home: group,
        };
        let command = Command {
            id: CommandId { session, sequence },
            acknowledged_below: sequence.saturating_sub(BATCH),
            clock: VectorClock::new(),
            destinations: op.destinations(),
            payload: codec::encode_op(&op),
        };
        let begun = cpu_us();
        let bytes = codec::encode_to_node(&ToNode { request: sequence, body: Request::Update { group, command } });
        let request = codec::decode_to_node(&bytes).map_err(failed)?;
        let decoded = cpu_us();
        codecs += decoded - begun;
        member.take(now, Input::Request(Ticket { mount: Link(0), request: sequence }, request.body));
        found.order += cpu_us() - decoded;
        if sequence.is_multiple_of(BATCH) {
            now = now.after_ms(1);
            settle(&mut member, now, &mut found)?;
            member.housekeep();
        }
    }
    let count = COMMANDS as f64;
    found.order /= count;
    found.execute /= count;
    let begun = cpu_us();
    for number in 1..=COMMANDS {
        let op = ReadOp::Lookup { parent: root().ino, name: format!("file-{number}").into() };
        let ticket = Ticket { mount: Link(0), request: number };
        let answer = member.read(now, ticket, session, &VectorClock::new(), op)?;
        let [message] = answer.as_slice() else { return Err(Error::Broken("a read waits for nothing".into())) };
        let bytes = codec::encode_to_client(message);
        codec::decode_to_client(&bytes).map_err(failed)?;
    }
    found.read = (cpu_us() - begun) / count;
    found.request = codecs / count;
    // A message carries an entry, is encoded once and decoded once, and the core takes as long as for a command.
    found.message = found.order + found.request / 2.0;
    Ok(found)
}

/// How long it takes until a sleeping thread runs, in microseconds: with idle processors, and with one that both share.
///
/// # Errors
/// If a thread dies.
pub fn wake() -> Result<(f64, f64)> {
    let on = |shared: bool| {
        let both = std::thread::spawn(move || {
            if shared {
                let mut one = CpuSet::new();
                one.set(getcpu());
                sched_setaffinity(None, &one).map_err(failed)?;
            }
            ping_pong()
        });
        both.join().map_err(|_| Error::Broken("a thread died".into()))?
    };
    Ok((on(false)?, on(true)?))
}

/// The share of a CPU up to which the kernel leaves a thread that is woken on the CPU of whoever wakes it, though that one works
/// on and another one is idle; zero if it does not do so.
///
/// # Errors
/// If a thread dies.
pub fn packs() -> Result<f64> {
    if std::thread::available_parallelism().map_or(1, usize::from) < 2 {
        return Ok(0.0);
    }
    let (mut idle, mut busy) = (PACK_PAUSE_MAX, Duration::ZERO);
    if !works_beside(idle)?.1 {
        return Ok(0.0);
    }
    let mut load = 1.0;
    for _ in 0..PACK_STEPS {
        let pause = (idle + busy) / 2;
        let (found, is_packed) = works_beside(pause)?;
        if is_packed {
            idle = pause;
        } else {
            (busy, load) = (pause, found);
        }
    }
    Ok(load.min(1.0))
}

/// Two threads work at the same time, if they are let, after a pause of both. The share of one CPU that both use, and whether
/// they have to share it.
fn works_beside(pause: Duration) -> Result<(f64, bool)> {
    let (there, back) = (mpsc::sync_channel::<i32>(1), mpsc::sync_channel::<bool>(1));
    let work = || {
        let until = Instant::now() + PACK_WORK;
        while Instant::now() < until {
            std::hint::spin_loop();
        }
    };
    let other = std::thread::spawn(move || {
        while let Ok(cpu) = there.1.recv() {
            let is_same = getcpu() as i32 == cpu;
            work();
            if back.0.send(is_same).is_err() {
                return;
            }
        }
    });
    let (mut same, mut rounds, mut settled) = (0, 0, None);
    let until = Instant::now() + PACK_LASTS;
    while Instant::now() < until {
        if settled.is_none() && Instant::now() + PACK_LASTS / 2 > until {
            settled = Some((Instant::now(), cpu_us()));
        }
        there.0.send(getcpu() as i32).map_err(failed)?;
        work();
        let is_same = back.1.recv().map_err(failed)?;
        if settled.is_some() {
            rounds += 1;
            same += usize::from(is_same);
        }
        std::thread::sleep(pause);
    }
    drop(there.0);
    other.join().map_err(|_| Error::Broken("a thread died".into()))?;
    let (since, before) = settled.ok_or_else(|| Error::Broken("nothing was measured".into()))?;
    let load = (cpu_us() - before) / 1e6 / since.elapsed().as_secs_f64();
    Ok((load, 2 * same > rounds))
}

/// Half a round trip between two threads.
fn ping_pong() -> Result<f64> {
    let (there, back) = (mpsc::sync_channel::<()>(1), mpsc::sync_channel::<()>(1));
    let other = std::thread::spawn(move || {
        while there.1.recv().is_ok() {
            if back.0.send(()).is_err() {
                return;
            }
        }
    });
    let mut each = Vec::with_capacity(WAKES);
    for _ in 0..WAKES {
        let begun = Instant::now();
        there.0.send(()).map_err(failed)?;
        back.1.recv().map_err(failed)?;
        each.push(begun.elapsed().as_secs_f64() * 1e6 / 2.0);
    }
    drop(there.0);
    other.join().map_err(|_| Error::Broken("a thread died".into()))?;
    Ok(median(each))
}

/// Frames over the transport on the loopback, and with an emulated distance.
///
/// # Errors
/// If there is no loopback.
pub fn messages() -> Result<Messages> {
    let direct = over_the_transport(None)?;
    let far = over_the_transport(Some(EMULATED))?;
    let held = [EMULATED; 2].iter().map(Duration::as_secs_f64).sum::<f64>() * 1e6;
    Ok(Messages {
        // There and back again: two are held, and four ends are at work.
        hold_us: (2.0 * (far.lone_us - direct.lone_us)).max(0.0),
        hold_late_us: (far.one_way_us - held / 2.0 - direct.one_way_us).max(0.0),
        ..direct
    })
}

fn over_the_transport(hold: Option<Duration>) -> Result<Messages> {
    let authority = ClusterCa::create("calibration").map_err(failed)?;
    let node = authority.issue(Role::Node, "node").map_err(failed)?;
    let client = authority.issue(Role::Client, "client").map_err(failed)?;
    let serving = net::runtime("node").map_err(failed)?;
    let asking = net::runtime("client").map_err(failed)?;
    let server = serving.block_on(async { Endpoint::bind(EndpointConfig::node(([127, 0, 0, 1], 0).into(), node)) });
    let server = server.map_err(failed)?;
    let address = server.local_addr();
    serving.spawn(async move {
        let Some(mut incoming) = server.accept().await else { return };
        while let Ok(Some(frame)) = incoming.receiver.recv().await {
            if incoming.sender.send(frame).await.is_err() {
                return;
            }
        }
    });
    let found = asking.block_on(async {
        let mut config = EndpointConfig::client(client);
        if let Some(hold) = hold {
            let text = format!("regions a b\noneway a b {0}us\noneway b a {0}us\npath 0\n", hold.as_micros());
            let wan = Wan::fixed(Matrix::parse(&text).map_err(failed)?);
            config.wan = Some(WanSide::client(wan, "a", vec![(address, "b".into())]));
        }
        let rounds = if hold.is_some() { ROUND_TRIPS / 50 } else { ROUND_TRIPS };
        let endpoint = Endpoint::bind(config).map_err(failed)?;
        let connection = endpoint.connect(address, "node").await.map_err(failed)?;
        let (sender, mut receiver) = connection.open(KIND).await.map_err(failed)?;
        let frame = Bytes::from(vec![7; FRAME_LEN]);
        let mut each = Vec::with_capacity(rounds);
        let begun = cpu_us();
        for _ in 0..rounds {
            let asked = Instant::now();
            sender.send(frame.clone()).await.map_err(failed)?;
            receiver.recv().await.map_err(failed)?;
            each.push(asked.elapsed().as_secs_f64() * 1e6);
        }
        let lone_us = (cpu_us() - begun) / rounds as f64 / 4.0;
        let begun = cpu_us();
        let rounds = rounds * 4 / PIPELINE;
        for _ in 0..rounds {
            for _ in 0..PIPELINE {
                sender.send(frame.clone()).await.map_err(failed)?;
            }
            for _ in 0..PIPELINE {
                receiver.recv().await.map_err(failed)?;
            }
        }
        let frame_us = (cpu_us() - begun) / (rounds * PIPELINE).max(1) as f64 / 4.0;
        Ok(Messages { lone_us, frame_us, one_way_us: median(each) / 2.0, ..Messages::default() })
    });
    asking.shutdown_timeout(Duration::from_millis(200));
    serving.shutdown_timeout(Duration::from_millis(200));
    found
}

/// Flushes of a log, in microseconds beside the log's thread's CPU.
#[derive(Clone, Copy, Debug, Default)]
pub struct Flushes {
    /// What each takes at least, …
    pub least_us: f64,
    /// … how much longer on average, …
    pub tail_us: f64,
    /// … how much longer after a pause in which the system's clock has ticked, …
    pub stamp_us: f64,
    /// … and how much longer for each other one that goes on beside it on the same disk.
    pub beside_us: f64,
}

/// Flushes of logs in this folder.
///
/// # Errors
/// If nothing can be written there.
pub fn flushes(folder: &Path) -> Result<Flushes> {
    let path = folder.join(format!("globalfs-calibration-{}", std::process::id()));
    let measured = measure_flushes(&path);
    // It may never have been made.
    let _ = std::fs::remove_dir_all(&path);
    measured.map_err(|error| Error::File { path, problem: error.to_string() })
}

fn measure_flushes(path: &Path) -> io::Result<Flushes> {
    let disk = RealDisk::open(path.into())?;
    let log = |name: String| disk.create(&name, &[], (FLUSHES * FLUSH_LEN) as u64);
    let logs = (0..LOGS).map(|number| log(number.to_string())).collect::<io::Result<Vec<_>>>()?;
    let alone = sorted(flush_all(&*logs[0], FLUSHES, Duration::ZERO)?);
    let paused = sorted(flush_all(&*logs[0], PAUSED_FLUSHES, FLUSH_PAUSE)?);
    let beside = std::thread::scope(|scope| {
        let flush = |log: &Arc<dyn DiskFile>| flush_all(&**log, FLUSHES, Duration::ZERO);
        let threads: Vec<_> = logs.iter().map(|log| scope.spawn(move || flush(log))).collect();
        let ended = threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|_| Err(io::Error::other("a thread panicked"))));
        ended.collect::<io::Result<Vec<_>>>()
    })?;
    let beside = sorted(beside.concat());
    let middle = |each: &[f64]| each[each.len() / 2];
    // As of an exponential tail, by its faster half: stalls of a shared disk are no part of it.
    let tenth = alone[FLUSHES / 10];
    let tail_us = (middle(&alone) - tenth) / (0.9 / 0.5_f64).ln();
    Ok(Flushes {
        least_us: (tenth + tail_us * 0.9_f64.ln()).max(0.0),
        tail_us,
        stamp_us: (middle(&paused) - middle(&alone)).max(0.0),
        beside_us: ((middle(&beside) - middle(&alone)) / (LOGS - 1) as f64).max(0.0),
    })
}

/// As the log does it; what each took beside the thread's CPU, for that is counted apart.
fn flush_all(log: &dyn DiskFile, count: usize, pause: Duration) -> io::Result<Vec<f64>> {
    let block = vec![9; FLUSH_LEN];
    let flush = |number: usize| {
        std::thread::sleep(pause);
        let (begun, used) = (Instant::now(), thread_cpu_us());
        log.write_durably((number * FLUSH_LEN) as u64, &block)?;
        Ok(begun.elapsed().as_secs_f64() * 1e6 - (thread_cpu_us() - used))
    };
    (0..count).map(flush).collect()
}

fn sorted(mut each: Vec<f64>) -> Vec<f64> {
    each.sort_by(f64::total_cmp);
    each
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn everything_can_be_measured() {
        let cores = cores().unwrap();
        assert!([cores.order, cores.execute, cores.read, cores.request].iter().all(|&cost| cost > 0.0), "{cores:?}");
        let (idle, busy) = wake().unwrap();
        assert!(idle > 0.0 && busy > 0.0);
        assert!((0.0..=1.0).contains(&packs().unwrap()));
        // Two threads that work a tenth of the time, one after the other or not, use something between a tenth and a half.
        let (load, _) = works_beside(PACK_PAUSE_MAX).unwrap();
        assert!((0.05..0.5).contains(&load), "{load}");
        let messages = messages().unwrap();
        let all = [messages.lone_us, messages.frame_us, messages.hold_us, messages.hold_late_us];
        assert!(all.iter().all(|&cost| cost > 0.0), "{messages:?}");
        let folder = tempfile::tempdir().unwrap();
        let found = flushes(folder.path()).unwrap();
        assert!(found.least_us + found.tail_us > 0.0, "{found:?}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
