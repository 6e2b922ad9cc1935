//! One replica: the real core, a machine that notes what it executes, and a disk.

use std::collections::{BTreeMap, VecDeque};
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use bytes::Bytes;
use multicast::command::Command;
use multicast::core::{Durable, SessionChange};
use multicast::explore::Kept;
use multicast::ids::{GroupId, LogIndex, ReplicaId, SessionId};
use multicast::planted::Planted;
use multicast::{
    Config, Context, Contributions, Core, Decline, Event, Machine, Message, OrderState, Output, Time, Writes,
};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use super::patterns::{COMMANDS_MAX, SESSION};
use crate::harness::node::Wal;

/// When an actor's disk is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flush {
    /// At once.
    Eager,
    /// Batch by batch, when the exploration says so.
    Lazy,
}

/// What tells two states of an actor apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Identity {
    /// All there is.
    Whole,
    /// What may make a difference, see `Core::hash_behaviour`. The flag: also if others ask again for what is settled.
    Behaviour(bool),
    /// Of that only what may still make one if every message arrives once, and timestamps before contributions: no timestamp
    /// of the own group, and no clock once there is nothing left that would get a timestamp here.
    Future,
}

/// Notes what it executes and what came before. Contributions say the same.
#[derive(Clone, Debug, Default)]
pub struct Notes {
    /// Row `c`: which commands conflict with `c` here.
    conflicts: [u8; COMMANDS_MAX],
    /// Which commands come here.
    visitors: u8,
    pub executed: u8,
    pub history: Vec<(u64, u8)>,
    contributed: BTreeMap<u8, u8>,
    /// Hash of the joint contributions.
    pub verdicts: BTreeMap<u8, u64>,
    pub wrong: Option<String>,
}

impl Notes {
    fn seen(&self, command: u8) -> u8 {
        self.executed & self.conflicts[command as usize]
    }

    fn wrong(&mut self, what: String) {
        self.wrong.get_or_insert(what);
    }
}

impl Machine for Notes {
    fn contribute(&mut self, context: &Context, command: &Command) -> Bytes {
        let at = command.payload[0];
        self.contributed.insert(at, self.seen(at));
        Bytes::copy_from_slice(&[context.group.0 as u8, self.seen(at)])
    }

    fn execute(&mut self, context: &Context, command: &Command, contributions: &Contributions) -> Bytes {
        let at = command.payload[0];
        if self.executed & (1 << at) != 0 {
            self.wrong(format!("command {at} executed twice in {}", context.group));
        }
        if let Some(seen) = self.contributed.remove(&at) {
            if seen != self.seen(at) {
                self.wrong(format!("something came between contribution and execution of command {at}"));
            }
            if !command.groups().all(|group| contributions.get(group).is_some_and(|value| !value.is_empty())) {
                self.wrong(format!("command {at} executed in {} without every contribution", context.group));
            }
            self.verdicts.insert(at, xxh3_64(format!("{contributions:?}").as_bytes()));
        }
        self.executed |= 1 << at;
        self.history.push((context.index.0, at));
        Bytes::copy_from_slice(&[at])
    }

    fn session_opened(&mut self, _context: &Context, _session: SessionId) {}

    fn session_closed(&mut self, _context: &Context, _session: SessionId) {}
}

/// A command has executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Execution {
    pub index: u64,
    pub command: u8,
    /// Hash of the joint contributions; zero if it has none.
    pub verdict: u64,
}

/// Where commands stand that wait in a group, and its clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standings {
    pub clock: u64,
    /// Commands that have got a timestamp here.
    pub known: u8,
    /// Those of them whose final timestamp is known and that have not executed.
    pub ordered: u8,
    /// The largest timestamp known of each that waits, else zero.
    pub bounds: [u64; COMMANDS_MAX],
    /// The groups whose timestamps are missing, as bits.
    pub lacks: [u8; COMMANDS_MAX],
}

/// A replica's state.
#[derive(Clone, Debug)]
pub struct Actor {
    config: Config,
    /// None while it is down.
    pub core: Option<Core>,
    pub notes: Notes,
    wal: Wal,
    under_way: VecDeque<(u64, Writes)>,
    pub now: u64,
    flush: Flush,
    planted: Option<Planted>,
}

/// What an actor has done with one input.
#[derive(Clone, Debug, Default)]
pub struct Done {
    pub sent: Vec<((GroupId, ReplicaId), Message)>,
    pub executed: Vec<Execution>,
    pub declined: Vec<(u8, Decline)>,
}

impl Actor {
    pub fn new(config: Config, commands: &[Arc<Command>], flush: Flush, planted: Option<Planted>) -> Self {
        let group = config.group;
        let mut conflicts = [0; COMMANDS_MAX];
        for (at, row) in conflicts.iter_mut().enumerate().take(commands.len()) {
            let Some(mine) = commands[at].footprint(group) else { continue };
            let theirs = |other: &usize| commands[*other].footprint(group);
            let others = (0..commands.len()).filter(|&other| other != at);
            let conflicting = others
                .filter(|other| theirs(other).is_some_and(|theirs| crate::harness::checks::conflict(mine, theirs)));
            *row = conflicting.fold(0, |mask, other| mask | 1 << other);
        }
        let is_visitor = |at: &usize| commands[*at].footprint(group).is_some();
        let visitors = (0..commands.len()).filter(is_visitor).fold(0, |mask, at| mask | 1 << at);
        let notes = Notes { conflicts, visitors, ..Notes::default() };
        let (wal, under_way) = (Wal::default(), VecDeque::new());
        let mut actor = Actor { config, core: None, notes, wal, under_way, now: 0, flush, planted };
        actor.start();
        actor
    }

    pub fn address(&self) -> (GroupId, ReplicaId) {
        (self.config.group, self.config.replica)
    }

    pub fn conflicts(&self) -> [u8; COMMANDS_MAX] {
        self.notes.conflicts
    }

    pub fn start(&mut self) {
        let entries = self.wal.entries.values().cloned().collect();
        let durable = Durable { promised: self.wal.promised, first: LogIndex::ZERO, entries };
        let order = OrderState::new(self.config.group);
        let mut core = Core::new(Time(self.now), self.config.clone(), durable, order).unwrap();
        if let Some(planted) = self.planted {
            core.plant(planted);
        }
        core.restore_committed(self.wal.committed);
        self.core = Some(core);
    }

    /// Loses memory and whatever the disk has not done.
    pub fn crash(&mut self) {
        self.core = None;
        self.under_way.clear();
        let Notes { conflicts, visitors, .. } = self.notes;
        self.notes = Notes { conflicts, visitors, ..Notes::default() };
    }

    pub fn visitors(&self) -> u8 {
        self.notes.visitors
    }

    pub fn standings(&self) -> Standings {
        let places = self.core.as_ref().map(Core::places).unwrap_or_default();
        let mut standings = Standings { clock: places.clock.0, known: self.notes.executed, ..Standings::default() };
        for place in places.waiting {
            let at = place.id.sequence as usize - 1;
            standings.known |= 1 << at;
            standings.ordered |= u8::from(place.lacks.is_empty()) << at;
            standings.bounds[at] = place.bound.0;
            standings.lacks[at] = place.lacks.iter().fold(0, |mask, group| mask | 1 << group.0);
        }
        standings
    }

    pub fn is_up(&self) -> bool {
        self.core.is_some()
    }

    pub fn is_ready(&self) -> bool {
        self.core.as_ref().is_some_and(Core::is_ready)
    }

    pub fn has_unflushed(&self) -> bool {
        !self.under_way.is_empty()
    }

    /// Nothing is left to do or to wait for.
    pub fn is_idle(&self) -> bool {
        self.core.as_ref().is_some_and(|core| core.unfinished().is_empty() && core.status().in_flight == 0)
    }

    pub fn submit(&mut self, command: &Arc<Command>) -> Done {
        let now = Time(self.now);
        self.with_core(|core| core.handle_submit(now, Arc::clone(command)))
    }

    pub fn deliver(&mut self, from: (GroupId, ReplicaId), message: Message) -> Done {
        let now = Time(self.now);
        self.with_core(|core| core.handle_message(now, from, message))
    }

    pub fn open_session(&mut self) -> Done {
        let now = Time(self.now);
        self.with_core(|core| core.handle_session(now, SessionChange::Open(SESSION)))
    }

    /// Time passes, and its timers go off.
    pub fn pass(&mut self, ns: u64) -> Done {
        self.now += ns;
        let now = Time(self.now);
        self.with_core(|core| core.handle_timeout(now))
    }

    /// Goes on to the next timer.
    pub fn next_timer(&mut self) -> Done {
        let due = self.core.as_ref().and_then(Core::poll_timeout).unwrap_or_default();
        self.pass(due.0.saturating_sub(self.now).max(1))
    }

    /// The disk has done its oldest batch.
    pub fn flush_one(&mut self) -> Done {
        let mut done = Done::default();
        if let Some((token, writes)) = self.under_way.pop_front() {
            self.wal.write(writes);
            let now = Time(self.now);
            done = self.with_core(|core| core.handle_persisted(now, token));
        }
        done
    }

    /// Until nothing is left to be done at once.
    fn with_core(&mut self, act: impl FnOnce(&mut Core)) -> Done {
        let mut done = Done::default();
        let now = Time(self.now);
        let Some(core) = &mut self.core else { return done };
        act(core);
        loop {
            let mut busy = false;
            while let Some(output) = core.poll_output() {
                busy = true;
                match output {
                    Output::Persist { token, writes } => self.under_way.push_back((token, writes)),
                    Output::Send { to, message } => done.sent.push((to, message)),
                    Output::Declined { id, reason } => done.declined.push((id.sequence as u8 - 1, reason)),
                    Output::Event(Event::IgnoredMessage { reason, .. }) => {
                        self.notes.wrong(format!("ignored an honest message: {reason}"));
                    }
                    Output::Reply(_) | Output::Event(_) | Output::SessionDeclined { .. } => {}
                    Output::ReadLog { .. } | Output::SendSnapshot { .. } => {
                        self.notes.wrong("asked for something that was never dropped".to_owned());
                    }
                }
            }
            if self.flush == Flush::Eager {
                while let Some((token, _)) = self.under_way.pop_front() {
                    core.handle_persisted(now, token);
                    busy = true;
                }
            }
            let before = self.notes.history.len();
            while core.apply_next(now, &mut self.notes).is_some() {
                busy = true;
            }
            done.executed.extend(self.notes.history[before..].iter().map(|&(index, command)| {
                let verdict = self.notes.verdicts.get(&command).copied().unwrap_or_default();
                Execution { index, command, verdict }
            }));
            core.order_mut().drain_changes();
            if !busy {
                return done;
            }
        }
    }

    pub fn fingerprint(&self, identity: Identity) -> u128 {
        let mut state = Xxh3::new();
        let kept = match identity {
            Identity::Whole => None,
            Identity::Behaviour(settled) => Some(Kept { settled, proposals: true, clock: true }),
            Identity::Future => {
                let clock = self.notes.visitors & !self.standings().known != 0;
                Some(Kept { settled: false, proposals: false, clock })
            }
        };
        match (kept, &self.core) {
            (Some(kept), Some(core)) => {
                core.hash_behaviour(kept, &mut state);
                (self.notes.executed, &self.notes.contributed).hash(&mut state);
            }
            _ => state.write(
                format!(
                    "{:?} {:?} {:?} {:?} {:?} {:?}",
                    self.config.replica, self.core, self.notes, self.wal, self.under_way, self.now
                )
                .as_bytes(),
            ),
        }
        state.digest128()
    }
}
