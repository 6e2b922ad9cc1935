//! One group's replicated log: Multi-Paxos with a primary per ballot.
//!
//! The promise and the log are one durable thing: a voter answers for them only once they are on disk. A candidate adopts
//! the most advanced log of a quorum of promises, starts its ballot with an entry of its own, and brings the followers'
//! logs in line with its own by matching (ballot, index). An entry is committed when it is on a quorum's disks and an entry
//! of the current ballot behind or at it is too.

mod disk;
mod election;
mod entries;
mod follower;
mod primary;

use std::collections::VecDeque;
use std::sync::Arc;

use crate::config::{Config, Limits, Timing};
use crate::core::Durable;
use crate::error::Error;
use crate::ids::{Ballot, GroupId, LogIndex, ReplicaId};
use crate::message::Message;
use crate::output::{Event, Output};
use crate::random::Random;
use crate::record::{Entry, Position, Record};
use crate::time::Time;
use disk::Disk;
use election::{Candidate, Probing};
use entries::{Entries, Slot};
use primary::Primary;

/// No honest ballot gets here in the life of a universe; one beyond would break arithmetic.
const ROUND_MAX: u64 = u64::MAX / 2;

/// A voter's log and its role in replicating it.
#[derive(Debug)]
pub(crate) struct Replicator {
    group: GroupId,
    me: ReplicaId,
    /// The preferred primary first.
    voters: Vec<ReplicaId>,
    quorum_size: usize,
    timing: Timing,
    limits: Limits,
    random: Random,
    now: Time,
    promised: Ballot,
    /// The highest round that anybody has told of.
    round_seen: u64,
    entries: Entries,
    disk: Disk<HeldBack>,
    first_on_disk: LogIndex,
    committed: LogIndex,
    /// Handed out to be applied.
    applied: LogIndex,
    /// Every voter has the log on disk up to here.
    everywhere: LogIndex,
    role: Role,
    /// The replica that was last seen acting as primary, and when.
    primary: Option<ReplicaId>,
    primary_heard: Option<Time>,
    /// When a voter that hears nothing does something about it.
    election_due: Time,
    /// For whom entries are being read back from disk.
    reading: Option<ReadFor>,
    outputs: VecDeque<Output>,
}

#[derive(Debug)]
enum Role {
    Follower,
    Probing(Probing),
    Candidate(Candidate),
    Primary(Primary),
}

/// What waits for the disk.
#[derive(Debug)]
enum HeldBack {
    Send(ReplicaId, Message),
    /// The own promise of a candidate.
    OwnPromise(Ballot),
}

/// Who needs entries that are no longer in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ReadFor {
    /// Followers of this primary, whichever they help.
    Followers(Ballot),
    /// A candidate that fetches the log behind `after`.
    Candidate { candidate: ReplicaId, ballot: Ballot, after: LogIndex },
}

impl Replicator {
    pub(crate) fn new(now: Time, config: &Config, durable: Durable, applied: LogIndex) -> Result<Self, Error> {
        let first_on_disk = durable.first.max(LogIndex(1));
        let entries = Entries::load(durable.entries, applied)?;
        let last = entries.last();
        let mut replicator = Replicator {
            group: config.group,
            me: config.replica,
            voters: config.voters().to_vec(),
            quorum_size: config.quorum_size(),
            timing: config.timing,
            limits: config.limits,
            random: Random::new(config.seed),
            now,
            promised: durable.promised.max(last.ballot),
            round_seen: 0,
            entries,
            disk: Disk::new(last.index),
            first_on_disk,
            committed: applied,
            applied,
            everywhere: LogIndex::ZERO,
            role: Role::Follower,
            primary: None,
            primary_heard: None,
            election_due: now,
            reading: None,
            outputs: VecDeque::new(),
        };
        // The preferred voter begins at once, the others leave it time.
        let rank = replicator.voters.iter().position(|&voter| voter == config.replica).unwrap_or(0) as u64;
        if rank > 0 {
            replicator.expect_primary();
            replicator.election_due = replicator.election_due.after_ms(rank * config.timing.election_timeout_ms / 2);
        }
        Ok(replicator)
    }

    pub(crate) fn handle_message(&mut self, now: Time, from: ReplicaId, message: Message) {
        self.now = now;
        if from == self.me || !self.voters.contains(&from) {
            return self.ignore(from, "not from another voter");
        }
        match message {
            Message::Probe { ballot } => self.handle_probe(from, ballot),
            Message::ProbeAnswer { ballot, willing, promised } => {
                self.handle_probe_answer(from, ballot, willing, promised);
            }
            Message::Campaign { ballot } => self.handle_campaign(from, ballot),
            Message::Promise { ballot, last } => self.handle_promise(from, ballot, last),
            Message::Outbid { promised } => self.handle_outbid(from, promised),
            Message::Fetch { ballot, after } => self.handle_fetch(from, ballot, after),
            Message::Fetched { ballot, after, entries } => self.handle_fetched(from, ballot, after, entries),
            Message::Append { ballot, previous, entries, committed, everywhere } => {
                self.handle_append(from, ballot, previous, entries, committed, everywhere);
            }
            Message::Appended { ballot, matched } => self.handle_appended(from, ballot, matched),
            Message::AppendRefused { ballot, previous, retry_after } => {
                self.handle_append_refused(from, ballot, previous, retry_after);
            }
            Message::TakeOver { ballot } => self.handle_take_over(from, ballot),
            Message::Propose { .. } | Message::Facts(_) | Message::NotPrimary { .. } => {
                self.ignore(from, "not a message inside a group");
            }
        }
    }

    /// Appends a record as primary; `None` if this replica is not primary.
    pub(crate) fn append(&mut self, record: Record) -> Option<LogIndex> {
        let Role::Primary(primary) = &self.role else { return None };
        let index = self.entries.last().index.next();
        let entry = Entry { index, ballot: primary.ballot, record: record.encode() };
        self.push(Slot { entry, record: Arc::new(record) });
        Some(index)
    }

    pub(crate) fn handle_persisted(&mut self, now: Time, token: u64) {
        self.now = now;
        for held_back in self.disk.persisted(token) {
            match held_back {
                HeldBack::Send(to, message) => self.send(to, message),
                HeldBack::OwnPromise(ballot) => self.own_promise_is_durable(ballot),
            }
        }
        self.advance_committed();
    }

    pub(crate) fn handle_timeout(&mut self, now: Time) {
        self.now = now;
        match self.role {
            Role::Follower if now >= self.election_due => self.become_probing(),
            Role::Follower => {}
            Role::Probing(_) => self.probing_timeout(),
            Role::Candidate(_) => self.candidate_timeout(),
            Role::Primary(_) => self.primary_timeout(),
        }
    }

    pub(crate) fn poll_timeout(&self) -> Time {
        match &self.role {
            Role::Follower => self.election_due,
            Role::Probing(probing) => self.election_due.min(probing.retry_due),
            Role::Candidate(candidate) => self.election_due.min(candidate.retry_due),
            Role::Primary(primary) => primary.heartbeat_due,
        }
    }

    /// The next thing to do. What the last inputs appended is given out as one batch for the disk and one for each follower.
    pub(crate) fn poll_output(&mut self) -> Option<Output> {
        if self.outputs.is_empty() {
            self.send_appends();
            if let Some((token, writes)) = self.disk.take_batch(self.entries.last().index) {
                self.outputs.push_back(Output::Persist { token, writes });
            }
        }
        self.outputs.pop_front()
    }

    /// The next entry to apply: committed, and on this disk, so that a state never outlives its log.
    pub(crate) fn next_committed(&mut self) -> Option<(LogIndex, Arc<Record>)> {
        let index = self.applied.next();
        if index > self.committed.min(self.disk.durable()) {
            return None;
        }
        let record = Arc::clone(&self.entries.get(index).expect("what is not applied is in memory").record);
        self.applied = index;
        self.entries.trim(index, self.limits.log_tail_bytes);
        Some((index, record))
    }

    pub(crate) fn handle_log_read(&mut self, now: Time, entries: Vec<Entry>) {
        self.now = now;
        match self.reading.take() {
            Some(ReadFor::Followers(ballot)) => self.send_read_entries(ballot, &entries),
            Some(ReadFor::Candidate { candidate, ballot, after }) if ballot == self.promised => {
                self.send(candidate, Message::Fetched { ballot, after, entries });
            }
            Some(ReadFor::Candidate { .. }) | None => {}
        }
    }

    fn read_log(&mut self, read_for: ReadFor, from: LogIndex) {
        self.reading = Some(read_for);
        self.outputs.push_back(Output::ReadLog { from, bytes_max: self.limits.append_batch_bytes });
    }

    /// Puts an entry at the end of the log, in memory and on its way to the disk.
    fn push(&mut self, slot: Slot) {
        self.disk.append(slot.entry.clone());
        self.entries.push(slot);
    }

    fn become_follower(&mut self, primary: Option<ReplicaId>) {
        let was_primary = matches!(self.role, Role::Primary(_));
        let news = primary.is_some() && primary != self.primary;
        self.role = Role::Follower;
        if primary.is_some() || self.primary == Some(self.me) {
            self.primary = primary;
        }
        self.expect_primary();
        if was_primary || news {
            self.outputs.push_back(Output::Event(Event::BecameFollower { primary }));
        }
    }

    /// Starts the time within which a primary should be heard, jittered so that voters do not campaign together.
    fn expect_primary(&mut self) {
        let timeout_ms = self.timing.election_timeout_ms;
        let jitter_ms = self.random.below(timeout_ms);
        self.election_due = self.now.after_ms(timeout_ms + jitter_ms);
    }

    fn send(&mut self, to: ReplicaId, message: Message) {
        self.outputs.push_back(Output::Send { to: (self.group, to), message });
    }

    /// Sends once everything written so far is durable.
    fn send_when_durable(&mut self, to: ReplicaId, message: Message) {
        if let Some(HeldBack::Send(to, message)) = self.disk.hold_back(HeldBack::Send(to, message)) {
            self.send(to, message);
        }
    }

    fn send_to_others(&mut self, message: &Message) {
        for at in 0..self.voters.len() {
            let voter = self.voters[at];
            if voter != self.me {
                self.send(voter, message.clone());
            }
        }
    }

    fn ignore(&mut self, from: ReplicaId, reason: &'static str) {
        self.outputs.push_back(Output::Event(Event::IgnoredMessage { from: (self.group, from), reason }));
    }

    /// The ballot in which this replica is primary, with the index of the entry that started it.
    pub(crate) fn primary_ballot(&self) -> Option<(Ballot, LogIndex)> {
        match &self.role {
            Role::Primary(primary) => Some((primary.ballot, primary.start)),
            Role::Follower | Role::Probing(_) | Role::Candidate(_) => None,
        }
    }

    pub(crate) fn is_candidate(&self) -> bool {
        matches!(self.role, Role::Probing(_) | Role::Candidate(_))
    }

    /// Who is primary, as far as this replica knows.
    pub(crate) fn primary(&self) -> Option<ReplicaId> {
        match self.role {
            Role::Primary(_) => Some(self.me),
            Role::Follower | Role::Probing(_) | Role::Candidate(_) => self.primary.filter(|&voter| voter != self.me),
        }
    }

    pub(crate) fn promised(&self) -> Ballot {
        self.promised
    }

    pub(crate) fn last(&self) -> Position {
        self.entries.last()
    }

    pub(crate) fn durable(&self) -> LogIndex {
        self.disk.durable()
    }

    pub(crate) fn committed(&self) -> LogIndex {
        self.committed
    }

    /// Entries below this one are on every voter's disk. The one at it must stay: it is what followers match against.
    pub(crate) fn everywhere(&self) -> LogIndex {
        self.everywhere
    }

    pub(crate) fn truncate_below(&mut self, index: LogIndex) {
        self.first_on_disk = self.first_on_disk.max(index);
    }
}
