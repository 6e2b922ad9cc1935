//! Starts the members, lets them begin together, gathers what they report.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use net::{ClusterCa, Role};

use super::member::name_of;
use super::{Figures, Latency, Plan, Point, Report};
use crate::error::{Error, Result};

const START_TIMEOUT: Duration = Duration::from_secs(60);
const END_TIMEOUT: Duration = Duration::from_secs(30);

/// Measures one point. `program` and `arguments` start a process that plays [`super::run_member`]; `dir` is made, and
/// removed at the end.
///
/// # Errors
/// If the point makes no sense, or a member fails.
pub fn run_point(point: &Point, program: &Path, arguments: &[&str], dir: &Path) -> Result<Figures> {
    check(point)?;
    let folder = Folder::make(dir)?;
    let count = u32::from(point.groups) * point.voters;
    let ports = free_ports(count as usize)?;
    prepare(count, &folder.0)?;
    let (said, hear) = mpsc::channel();
    let mut members = Vec::new();
    for number in 1..=count {
        let plan = Plan { point: point.clone(), number, ports: ports.clone(), dir: dir_of(&folder.0, number) };
        members.push(Member::start(&plan, program, arguments, said.clone())?);
    }
    drop(said);
    wait_ready(point, &hear)?;
    for member in &mut members {
        member.say("go")?;
    }
    let patience = Duration::from_millis(point.warm_up_ms + point.measure_ms) + END_TIMEOUT;
    let reports = gather(count as usize, &hear, Instant::now() + patience)?;
    drop(members);
    Ok(figures(point, &reports))
}

fn check(point: &Point) -> Result<()> {
    let fail = |why: &str| Err(Error::Invalid(why.to_owned()));
    if !(1..=8).contains(&point.groups) || !matches!(point.voters, 1 | 3 | 5) {
        return fail("1 to 8 groups of 1, 3 or 5 voters are possible");
    }
    if point.destinations == 0 || point.destinations > point.groups {
        return fail("commands concern 1 group at least, and no more than there are");
    }
    if point.outstanding == 0 || point.outstanding * point.voters as usize > 3_000 {
        return fail("1 to 1000 outstanding commands per process are possible");
    }
    if point.rate.is_some_and(|rate| rate.is_nan() || rate < 1.0) || point.measure_ms == 0 {
        return fail("the rate must be at least 1 per second, and the time not zero");
    }
    Ok(())
}

/// Removed with all that is in it.
struct Folder(PathBuf);

impl Folder {
    fn make(dir: &Path) -> Result<Folder> {
        let made = std::fs::create_dir_all(dir);
        made.map_err(|error| Error::File { path: dir.to_owned(), problem: error.to_string() })?;
        Ok(Folder(dir.to_owned()))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What is left is a temporary folder.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn dir_of(dir: &Path, number: u32) -> PathBuf {
    dir.join(name_of(number))
}

fn free_ports(count: usize) -> Result<Vec<u16>> {
    let failed = |error: std::io::Error| Error::Invalid(format!("no free port on loopback: {error}"));
    // All are held until the last is known, so that none is given twice.
    let sockets: Vec<UdpSocket> =
        (0..count).map(|_| UdpSocket::bind("127.0.0.1:0")).collect::<std::io::Result<_>>().map_err(failed)?;
    sockets
        .iter()
        .map(|socket| socket.local_addr().map(|address| address.port()))
        .collect::<std::io::Result<_>>()
        .map_err(failed)
}

/// Folders and certificates.
fn prepare(count: u32, dir: &Path) -> Result<()> {
    let failed = |error: net::Error| Error::Invalid(error.to_string());
    let ca = ClusterCa::create("bench").map_err(failed)?;
    for number in 1..=count {
        let dir = dir_of(dir, number);
        let made = std::fs::create_dir_all(&dir);
        made.map_err(|error| Error::File { path: dir.clone(), problem: error.to_string() })?;
        ca.save(&dir.join("ca.pem"), &dir.join("ca.key")).map_err(failed)?;
        let identity = ca.issue(Role::Node, &name_of(number)).map_err(failed)?;
        identity.save(&dir.join("member.pem"), &dir.join("member.key")).map_err(failed)?;
    }
    Ok(())
}

/// What a member has said.
enum Said {
    Line(String),
    Ended(u32),
}

/// A member's process: it ends when its stdin does, at the latest when this is dropped.
struct Member {
    child: Child,
    stdin: Option<ChildStdin>,
}

impl Member {
    fn start(plan: &Plan, program: &Path, arguments: &[&str], said: mpsc::Sender<Said>) -> Result<Member> {
        let failed = |error: std::io::Error| Error::File { path: program.to_owned(), problem: error.to_string() };
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().map_err(failed)?;
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        let mut member = Member { child, stdin };
        let number = plan.number;
        std::thread::spawn(move || {
            for line in
                stdout.into_iter().flat_map(|stdout| BufReader::new(stdout).lines().map_while(std::io::Result::ok))
            {
                if said.send(Said::Line(line)).is_err() {
                    return;
                }
            }
            let _ = said.send(Said::Ended(number));
        });
        let plan = serde_json::to_string(plan).map_err(|error| Error::Invalid(error.to_string()))?;
        member.say(&plan)?;
        Ok(member)
    }

    fn say(&mut self, line: &str) -> Result<()> {
        let stdin = self.stdin.as_mut().ok_or_else(|| Error::Invalid("a member hears nothing".into()))?;
        let said = writeln!(stdin, "{line}").and_then(|()| stdin.flush());
        said.map_err(|error| Error::Invalid(format!("a member has ended: {error}")))
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.stdin = None;
        let deadline = Instant::now() + Duration::from_secs(3);
        while Instant::now() < deadline {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.child.kill().and_then(|()| self.child.wait());
    }
}

fn hear_one(hear: &mpsc::Receiver<Said>, deadline: Instant) -> Result<String> {
    match hear.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
        Ok(Said::Line(line)) => Ok(line),
        Ok(Said::Ended(number)) => Err(Error::Invalid(format!("member {number} has ended"))),
        Err(_) => Err(Error::Invalid("the members do not answer in time".into())),
    }
}

fn wait_ready(point: &Point, hear: &mpsc::Receiver<Said>) -> Result<()> {
    let deadline = Instant::now() + START_TIMEOUT;
    for _ in 0..point.groups {
        hear_one(hear, deadline)?;
    }
    Ok(())
}

fn gather(count: usize, hear: &mpsc::Receiver<Said>, deadline: Instant) -> Result<Vec<Report>> {
    let mut reports = Vec::new();
    while reports.len() < count {
        let line = hear_one(hear, deadline)?;
        // A group that has changed its primary says again that it is ready.
        if line != "ready" {
            reports.push(serde_json::from_str(&line).map_err(|error| Error::Invalid(format!("a report: {error}")))?);
        }
    }
    Ok(reports)
}

fn figures(point: &Point, reports: &[Report]) -> Figures {
    let merged = |of: fn(&Report) -> &Vec<(u64, u64)>| {
        let mut counts: BTreeMap<u64, u64> = BTreeMap::new();
        for &(us, count) in reports.iter().flat_map(of) {
            *counts.entry(us).or_default() += count;
        }
        counts
    };
    let (local, multi) = (merged(|report| &report.local), merged(|report| &report.multi));
    let executed: u64 = local.values().chain(multi.values()).sum();
    let cpu_us: f64 = reports.iter().map(|report| report.cpu_us).sum();
    Figures {
        per_s: executed as f64 * 1e3 / point.measure_ms as f64,
        cpu_us: cpu_us / executed.max(1) as f64,
        local: latency(&local),
        multi: latency(&multi),
        failed: reports.iter().map(|report| report.failed).sum(),
        missed: reports.iter().map(|report| report.missed).sum(),
    }
}

fn latency(counts: &BTreeMap<u64, u64>) -> Option<Latency> {
    let count: u64 = counts.values().sum();
    let quantile = |share: f64| {
        let wanted = ((count as f64 * share).ceil() as u64).max(1);
        let mut below = 0;
        let found = counts.iter().find(|(_, count)| {
            below += **count;
            below >= wanted
        });
        found.map_or(0.0, |(&us, _)| us as f64 / 1e3)
    };
    (count > 0).then(|| Latency { count, p50: quantile(0.5), p95: quantile(0.95), p99: quantile(0.99) })
}
