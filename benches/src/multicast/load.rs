//! Clients of one group: closed loop or open loop.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hdrhistogram::Histogram;
use multicast::command::{Command, Destination, Key, Mode};
use multicast::ids::{CommandId, GroupId, SessionId, VectorClock};
use partition_replica::bare::Clients;
use rustix::time::{ClockId, clock_gettime};

use super::{Point, Report};
use crate::random::Random;

/// Open loop: more than so many under way are not asked for; a group keeps as many replies for a session.
const UNDER_WAY_MAX: usize = 3_500;
const WAIT_MAX: Duration = Duration::from_millis(20);
const LATENCY_US_MAX: u64 = 60_000_000;

/// Where in the run the clients are.
#[derive(Clone, Copy, Debug)]
enum Stage {
    Waiting,
    Running { since: Instant },
    Reported,
}

/// The clients beside one replica. They ask only if it is primary.
pub(super) struct Load {
    point: Point,
    group: u16,
    random: Random,
    /// Says when to begin; hung up: the end.
    go: Receiver<()>,
    /// Told once when the replica takes commands, and at the end.
    tell: Box<dyn FnMut(Told)>,
    is_ready_told: bool,
    stage: Stage,
    next: u64,
    asked: u64,
    under_way: BTreeMap<u64, (Instant, bool)>,
    cpu_before_us: Option<f64>,
    local: Histogram<u64>,
    multi: Histogram<u64>,
    report: Report,
}

/// What the lab hears.
pub(super) enum Told {
    Ready,
    Report(Report),
}

impl Load {
    pub(super) fn new(point: Point, group: u16, go: Receiver<()>, tell: Box<dyn FnMut(Told)>) -> Load {
        let histogram = || Histogram::new_with_bounds(1, LATENCY_US_MAX, 3).expect("these bounds are possible");
        Load {
            random: Random::new(u64::from(group), 1),
            point,
            group,
            go,
            tell,
            is_ready_told: false,
            stage: Stage::Waiting,
            next: 1,
            asked: 0,
            under_way: BTreeMap::new(),
            cpu_before_us: None,
            local: histogram(),
            multi: histogram(),
            report: Report::default(),
        }
    }

    pub(super) fn session(group: u16) -> SessionId {
        SessionId(u64::from(group) + 1)
    }

    fn settle(&mut self, settled: &[(CommandId, bool)], now: Instant, is_measured: bool) {
        let session = Load::session(self.group);
        for &(id, is_ok) in settled.iter().filter(|(id, _)| id.session == session) {
            let Some((since, is_multi)) = self.under_way.remove(&id.sequence) else { continue };
            if !is_measured {
                continue;
            }
            if !is_ok {
                self.report.failed += 1;
                continue;
            }
            let us = u64::try_from(now.duration_since(since).as_micros()).unwrap_or(u64::MAX);
            let histogram = if is_multi { &mut self.multi } else { &mut self.local };
            histogram.saturating_record(us.max(1));
        }
    }

    /// Asks for what is due; says when the next is.
    fn ask(&mut self, since: Instant, now: Instant, commands: &mut Vec<Arc<Command>>) -> Duration {
        let Some(rate) = self.point.rate else {
            let wanted = self.point.outstanding * self.point.voters as usize;
            while self.under_way.len() < wanted {
                self.ask_one(now, commands);
            }
            return WAIT_MAX;
        };
        let due = (now.duration_since(since).as_secs_f64() * rate) as u64;
        while self.asked < due {
            if self.under_way.len() < UNDER_WAY_MAX {
                self.ask_one(since + Duration::from_secs_f64(self.asked as f64 / rate), commands);
            } else {
                self.report.missed += 1;
            }
            self.asked += 1;
        }
        let next = since + Duration::from_secs_f64((self.asked + 1) as f64 / rate);
        next.saturating_duration_since(Instant::now()).min(WAIT_MAX)
    }

    fn ask_one(&mut self, due: Instant, commands: &mut Vec<Arc<Command>>) {
        let sequence = self.next;
        self.next += 1;
        let is_multi = self.point.destinations > 1 && self.random.unit() < self.point.multi_share;
        self.under_way.insert(sequence, (due, is_multi));
        let key = match self.point.keys {
            Some(keys) => Key(self.random.below(keys)),
            None => Key((u64::from(self.group) + 1) << 48 | sequence),
        };
        let count = if is_multi { self.point.destinations } else { 1 };
        let others = self.point.groups.saturating_sub(1).max(1);
        let first = self.random.below(u64::from(others)) as u16;
        let mut groups: Vec<u16> =
            (1..count).map(|at| (self.group + 1 + (first + at - 1) % others) % self.point.groups).collect();
        groups.push(self.group);
        groups.sort_unstable();
        let destination = |group| Destination { group: GroupId(group), footprint: vec![(key, Mode::Write)].into() };
        commands.push(Arc::new(Command {
            id: CommandId { session: Load::session(self.group), sequence },
            acknowledged_below: self.under_way.first_key_value().map_or(sequence, |(&first, _)| first),
            clock: VectorClock::new(),
            destinations: groups.into_iter().map(destination).collect(),
            payload: Bytes::from(vec![7; self.point.payload]),
        }));
    }

    fn end(&mut self) {
        self.stage = Stage::Reported;
        let mut report = std::mem::take(&mut self.report);
        report.cpu_us = cpu_us() - self.cpu_before_us.unwrap_or_default();
        let counts = |histogram: &Histogram<u64>| {
            histogram.iter_recorded().map(|value| (value.value_iterated_to(), value.count_at_value())).collect()
        };
        (report.local, report.multi) = (counts(&self.local), counts(&self.multi));
        (self.tell)(Told::Report(report));
    }
}

impl Clients for Load {
    fn turn(
        &mut self,
        is_ready: bool,
        settled: &[(CommandId, bool)],
        commands: &mut Vec<Arc<Command>>,
    ) -> Option<Duration> {
        let now = Instant::now();
        match self.go.try_recv() {
            Ok(()) => self.stage = Stage::Running { since: now },
            Err(TryRecvError::Empty) => {}
            Err(TryRecvError::Disconnected) => return None,
        }
        if is_ready && !self.is_ready_told {
            self.is_ready_told = true;
            (self.tell)(Told::Ready);
        }
        let Stage::Running { since } = self.stage else { return Some(WAIT_MAX) };
        let elapsed_ms = now.duration_since(since).as_millis() as u64;
        let end_ms = self.point.warm_up_ms + self.point.measure_ms;
        let is_measured = (self.point.warm_up_ms..end_ms).contains(&elapsed_ms);
        self.settle(settled, now, is_measured);
        if elapsed_ms >= self.point.warm_up_ms && self.cpu_before_us.is_none() {
            self.cpu_before_us = Some(cpu_us());
            self.report = Report::default();
        }
        if elapsed_ms >= end_ms {
            self.end();
            return Some(WAIT_MAX);
        }
        Some(if is_ready { self.ask(since, now, commands) } else { WAIT_MAX })
    }
}

/// What this process has used so far, all threads.
fn cpu_us() -> f64 {
    let used = clock_gettime(ClockId::ProcessCPUTime);
    used.tv_sec as f64 * 1e6 + used.tv_nsec as f64 / 1e3
}
