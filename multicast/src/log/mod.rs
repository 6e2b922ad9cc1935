//! One group's replicated log: Multi-Paxos with a primary per ballot.
//!
//! The promise and the log are one durable thing: a voter answers for them only once they are on disk. A candidate adopts
//! the most advanced log of a quorum of promises, starts its ballot with an entry of its own, and brings the followers'
//! logs in line with its own by matching (ballot, index). An entry is committed when it is on a quorum's disks and an entry
//! of the current ballot behind or at it is too.

mod clocks;
mod disk;
mod election;
mod entries;
mod extent;
mod follower;
mod install;
mod members;
mod primary;

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::BytesMut;

use crate::config::{Config, Limits, Timing};
use crate::core::Durable;
use crate::error::Error;
use crate::ids::{Ballot, GroupId, Incarnation, LogIndex, ReplicaId};
use crate::membership::{Membership, Memberships};
use crate::message::Message;
use crate::order::OrderState;
use crate::output::{Event, Output};
#[cfg(feature = "explore")]
use crate::planted::Planted;
use crate::random::Random;
use crate::record::{Entry, Position, Record};
use crate::time::Time;
use clocks::Clocks;
use disk::Disk;
use election::{Candidate, Probing};
use entries::{Entries, Slot};
use extent::Extent;
use primary::Primary;

/// No honest ballot gets here in the life of a universe; one beyond would break arithmetic.
pub(crate) const ROUND_MAX: u64 = u64::MAX / 2;

/// One piece of memory for records, and how much must be left of it for the next.
const RECORD_ROOM: usize = 16 << 10;
const RECORD_ROOM_MIN: usize = 512;

/// A voter's log and its role in replicating it.
#[derive(Clone, Debug)]
pub(crate) struct Replicator {
    group: GroupId,
    me: ReplicaId,
    incarnation: Incarnation,
    memberships: Memberships,
    /// What counts as long as the log says nothing else.
    genesis: Arc<Membership>,
    /// Others say that this replica is no member any more, as of this version of the membership.
    expelled: Option<u64>,
    auto_replace: bool,
    timing: Timing,
    limits: Limits,
    random: Random,
    now: Time,
    promised: Ballot,
    /// The highest round that anybody has told of.
    round_seen: u64,
    entries: Entries,
    /// Where a primary's next records go, many to one piece of memory: they are made together and dropped together.
    room: BytesMut,
    disk: Disk<HeldBack>,
    first_on_disk: LogIndex,
    extent: Extent,
    committed: LogIndex,
    /// Handed out to be applied.
    applied: LogIndex,
    /// Every member has the log on disk up to here.
    everywhere: LogIndex,
    role: Role,
    /// The replica that was last seen acting as primary, and when.
    primary: Option<ReplicaId>,
    primary_heard: Option<Time>,
    /// When a voter that hears nothing does something about it.
    election_due: Time,
    /// What is being read back from disk.
    reading: Option<Reading>,
    clocks: Clocks,
    /// When this voter last told its time, and whom.
    clock_told: Option<(ReplicaId, Time)>,
    /// What this follower last acknowledged, and when.
    acknowledged: Option<(Ballot, LogIndex, Time)>,
    /// What this voter needs was dropped everywhere: the oldest entry that there is.
    too_far_behind: Option<LogIndex>,
    /// The ballot whose log contradicts what is committed here.
    contradicted: Option<Ballot>,
    outputs: VecDeque<Output>,
    #[cfg(feature = "explore")]
    planted: Option<Planted>,
}

#[derive(Clone, Debug)]
enum Role {
    Follower,
    Probing(Probing),
    Candidate(Candidate),
    Primary(Primary),
}

/// What waits for the disk.
#[derive(Clone, Debug)]
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

/// A look at the disk that is under way.
#[derive(Clone, Copy, Debug)]
struct Reading {
    read_for: ReadFor,
    from: LogIndex,
    /// The disk is known to agree with this log up to here since the look began; what it shows behind may be void.
    through: LogIndex,
}

impl Replicator {
    pub(crate) fn new(now: Time, config: &Config, durable: Durable, order: &OrderState) -> Result<Self, Error> {
        let applied = order.applied();
        let copied = order.copied().filter(|copied| install::is_unfinished(copied, &durable, applied));
        let first_on_disk = durable.first.max(LogIndex(1));
        let mut extent = Extent::new(config.limits.log_bytes_max, config.limits.log_entries_max);
        durable.entries.iter().for_each(|entry| extent.push(entry.index, entry.len_bytes()));
        let entries = match copied {
            Some(copied) => Entries::load(vec![copied.entry.clone()], applied)?,
            None => Entries::load(durable.entries, applied)?,
        };
        let last = entries.last();
        let genesis = Arc::new(Membership::genesis(config.voters()));
        let membership = Arc::clone(order.membership().unwrap_or(&genesis));
        let mut replicator = Replicator {
            group: config.group,
            me: config.replica,
            incarnation: config.incarnation,
            memberships: Memberships::new(membership, applied),
            genesis,
            expelled: None,
            auto_replace: config.auto_replace,
            timing: config.timing,
            limits: config.limits,
            random: Random::new(config.seed),
            now,
            promised: durable.promised.max(last.ballot),
            round_seen: 0,
            entries,
            room: BytesMut::new(),
            disk: Disk::new(last.index),
            first_on_disk,
            extent,
            committed: applied,
            applied,
            everywhere: LogIndex::ZERO,
            role: Role::Follower,
            primary: None,
            primary_heard: None,
            election_due: now,
            reading: None,
            clocks: Clocks::new(config.limits.skew_ms_max),
            clock_told: None,
            acknowledged: None,
            too_far_behind: None,
            contradicted: None,
            outputs: VecDeque::new(),
            #[cfg(feature = "explore")]
            planted: None,
        };
        replicator.find_memberships();
        if let Some(copied) = copied {
            replicator.finish_install(copied);
        }
        if let Some(copied) = order.copied() {
            replicator.promise_at_least(copied);
        }
        // The preferred voter begins at once, the others leave it time.
        let rank = replicator.membership().voters().position(|voter| voter.replica == config.replica);
        let rank = rank.unwrap_or(1) as u64;
        if rank > 0 {
            replicator.expect_primary();
            replicator.election_due = replicator.election_due.after_ms(rank * config.timing.election_timeout_ms / 2);
        }
        Ok(replicator)
    }

    #[cfg(feature = "explore")]
    pub(crate) fn plant(&mut self, planted: Planted) {
        self.planted = Some(planted);
    }

    pub(crate) fn handle_message(&mut self, now: Time, from: ReplicaId, message: Message) {
        self.now = now;
        if from == self.me {
            return self.ignore(from, "not from another replica");
        }
        match message {
            Message::Probe { ballot, incarnation, version } => self.handle_probe(from, ballot, incarnation, version),
            Message::ProbeAnswer { ballot, willing, promised, incarnation } => {
                self.see_round(promised);
                if willing {
                    self.handle_willing(from, ballot, incarnation);
                }
            }
            Message::Campaign { ballot } => self.handle_campaign(from, ballot),
            Message::Promise { ballot, last, incarnation } => self.handle_promise((from, incarnation), ballot, last),
            Message::Outbid { promised } => self.handle_outbid(from, promised),
            Message::Fetch { ballot, after } => self.handle_fetch(from, ballot, after),
            Message::Fetched { ballot, after, entries } => self.handle_fetched(from, ballot, after, entries),
            Message::Append { ballot, previous, entries, committed, everywhere } => {
                self.handle_append(from, ballot, previous, entries, committed, everywhere);
            }
            Message::Appended { ballot, matched, incarnation } => {
                self.handle_appended((from, incarnation), ballot, matched);
            }
            Message::AppendRefused { ballot, previous, retry_after, incarnation } => {
                self.handle_append_refused((from, incarnation), ballot, previous, retry_after);
            }
            Message::TakeOver { ballot } => self.handle_take_over(from, ballot),
            Message::TooFarBehind { ballot, first } => self.handle_too_far_behind(from, ballot, first),
            Message::Clock { now_ns } if self.membership().member(from).is_some() => {
                self.clocks.learn(from, now, now_ns);
            }
            Message::Clock { .. } => {}
            Message::Members(membership) => self.handle_members(&membership),
            Message::Propose { .. }
            | Message::Facts(_)
            | Message::NotPrimary { .. }
            | Message::Busy { .. }
            | Message::HowFar { .. }
            | Message::Reached { .. }
            | Message::AskMembers { .. }
            | Message::Digest { .. }
            | Message::AskCopy { .. } => {
                self.ignore(from, "not a message inside a group");
            }
        }
    }

    /// Appends a record as primary; `None` if this replica is not primary.
    pub(crate) fn append(&mut self, record: Record) -> Option<LogIndex> {
        let Role::Primary(primary) = &self.role else { return None };
        let index = self.entries.last().index.next();
        if self.room.capacity() < RECORD_ROOM_MIN {
            self.room = BytesMut::with_capacity(RECORD_ROOM);
        }
        let entry = Entry { index, ballot: primary.ballot, record: record.encode_in(&mut self.room) };
        self.push(Slot { entry, record });
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
            Role::Follower if now >= self.election_due && self.may_lead() => self.become_probing(),
            Role::Follower if now >= self.election_due => self.ask_whether_member(),
            Role::Follower => {}
            Role::Probing(_) => self.probing_timeout(),
            Role::Candidate(_) => self.candidate_timeout(),
            Role::Primary(_) => self.primary_timeout(),
        }
    }

    pub(crate) fn see_time(&mut self, now: Time) {
        self.now = now;
    }

    pub(crate) fn poll_timeout(&self) -> Time {
        match &self.role {
            Role::Follower => self.election_due,
            Role::Probing(probing) => self.election_due.min(probing.retry_due),
            Role::Candidate(candidate) => self.election_due.min(candidate.retry_due),
            Role::Primary(primary) => primary.due(),
        }
    }

    /// The next thing to do. What the last inputs appended is given out as one batch for the disk and one for each follower.
    pub(crate) fn poll_output(&mut self) -> Option<Output> {
        if self.outputs.is_empty() {
            self.send_appends();
            let last = self.entries.last().index;
            if let Some((token, writes)) = self.disk.take_batch(last, self.promised, self.committed) {
                self.outputs.push_back(Output::Persist { token, writes });
            }
        }
        self.outputs.pop_front()
    }

    pub(crate) fn can_apply(&self) -> bool {
        self.applied < self.committed.min(self.disk.durable())
    }

    /// The next entry to apply: committed, and on this disk, so that a state never outlives its log.
    pub(crate) fn next_committed(&mut self) -> Option<(LogIndex, Record)> {
        let index = self.applied.next();
        if index > self.committed.min(self.disk.durable()) {
            return None;
        }
        let record = self.entries.take_record().expect("what is not applied is in memory");
        self.applied = index;
        self.memberships.applied(index);
        self.entries.trim(index, self.everywhere, self.limits.log_tail_bytes);
        Some((index, record))
    }

    pub(crate) fn handle_log_read(&mut self, now: Time, entries: Vec<Entry>) {
        self.now = now;
        let Some(reading) = self.reading.take() else { return };
        let entries = self.valid(&reading, entries);
        match reading.read_for {
            ReadFor::Followers(ballot) => self.send_read_entries(ballot, &entries),
            ReadFor::Candidate { candidate, ballot, after } if ballot == self.promised => {
                self.send(candidate, Message::Fetched { ballot, after, entries });
            }
            ReadFor::Candidate { .. } => {}
        }
    }

    /// What was read, as far as it is this log: the disk may still show what has been cut off in memory.
    fn valid(&self, reading: &Reading, mut entries: Vec<Entry>) -> Vec<Entry> {
        let is_valid = |(index, entry): (u64, &Entry)| {
            let known = self.entries.position(entry.index);
            entry.index.0 == index
                && entry.index <= reading.through
                && known.is_none_or(|known| known == entry.position())
        };
        let valid = (reading.from.0..).zip(&entries).take_while(|&pair| is_valid(pair)).count();
        entries.truncate(valid);
        entries
    }

    fn read_log(&mut self, read_for: ReadFor, from: LogIndex) {
        self.reading = Some(Reading { read_for, from, through: self.disk.durable() });
        self.outputs.push_back(Output::ReadLog { from, bytes_max: self.limits.append_batch_bytes });
    }

    /// Puts an entry at the end of the log, in memory and on its way to the disk.
    fn push(&mut self, slot: Slot) {
        self.disk.append(slot.entry.clone());
        self.extent.push(slot.entry.index, slot.entry.len_bytes());
        let members = match &slot.record {
            Record::Config { membership } => Some((slot.entry.index, Arc::clone(membership))),
            _ => None,
        };
        self.entries.push(slot);
        if let Some((index, membership)) = members {
            self.memberships.push(index, membership);
            self.follow_membership();
        }
    }

    /// Voids the log from here on, in memory and on its way to the disk.
    fn truncate_from(&mut self, index: LogIndex) {
        let dropped_bytes = self.entries.truncate_from(index);
        self.extent.truncate_from(index, dropped_bytes);
        self.disk.truncate_from(index);
        if self.memberships.truncate_from(index) {
            self.follow_membership();
        }
        if let Some(reading) = &mut self.reading {
            reading.through = reading.through.min(LogIndex(index.0 - 1));
        }
    }

    /// Tells the primary, or who wants to be, the time: now and then, and at once if it is another than before.
    fn tell_clock(&mut self, to: ReplicaId) {
        let is_news =
            self.clock_told.is_none_or(|(told, at)| told != to || self.now.ms_since(at) >= clocks::CLOCK_INTERVAL_MS);
        if is_news {
            self.clock_told = Some((to, self.now));
            self.send(to, Message::Clock { now_ns: self.now.0 });
        }
    }

    /// Leads, or tries to, no more.
    pub(crate) fn step_down(&mut self, now: Time) {
        self.now = now;
        if !matches!(self.role, Role::Follower) {
            self.become_follower(None);
        }
    }

    fn become_follower(&mut self, primary: Option<ReplicaId>) {
        let was_primary = matches!(self.role, Role::Primary(_));
        let had_hint = matches!(self.role, Role::Follower);
        let news = primary.is_some() && (primary != self.primary || !had_hint);
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
        for voter in self.other_voters() {
            self.send(voter, message.clone());
        }
    }

    fn other_voters(&self) -> Vec<ReplicaId> {
        self.membership().voters().map(|voter| voter.replica).filter(|&voter| voter != self.me).collect()
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

    /// Who is primary, if this replica is sure: it has heard it lately, in the highest ballot that it has promised. Whoever
    /// is sent on so comes to ever higher ballots, and so never in a circle.
    pub(crate) fn primary(&self, now: Time) -> Option<ReplicaId> {
        match self.role {
            Role::Primary(_) => Some(self.me),
            Role::Follower => {
                let is_heard =
                    self.primary_heard.is_some_and(|heard| now.ms_since(heard) < self.timing.election_timeout_ms);
                self.primary.filter(|_| is_heard && self.primary == self.promised.owner)
            }
            Role::Probing(_) | Role::Candidate(_) => None,
        }
    }

    /// The time to give to what is logged. None while too few voters' clocks are known.
    pub(crate) fn trusted_time(&self, now: Time) -> Option<Time> {
        self.clocks.trusted(now)
    }

    /// What this voter needs was dropped everywhere: the oldest entry that there is.
    pub(crate) fn too_far_behind(&self) -> Option<LogIndex> {
        self.too_far_behind
    }

    /// The disk knew so much to be committed.
    pub(crate) fn restore_committed(&mut self, committed: LogIndex) {
        self.committed = self.committed.max(committed.min(self.disk.durable()));
        self.disk.restore_committed(committed);
    }

    pub(crate) fn promised(&self) -> Ballot {
        self.promised
    }

    pub(crate) fn last(&self) -> Position {
        self.entries.last()
    }

    /// The entry at that index, if it is in memory: the last one applied is.
    pub(crate) fn entry(&self, index: LogIndex) -> Option<Entry> {
        self.entries.get(index).cloned()
    }

    pub(crate) fn durable(&self) -> LogIndex {
        self.disk.durable()
    }

    pub(crate) fn committed(&self) -> LogIndex {
        self.committed
    }

    /// Entries below this one are on every member's disk, or too many. The one at it must stay: it is what others match
    /// against.
    pub(crate) fn truncatable_below(&self) -> LogIndex {
        self.everywhere.max(self.extent.cut(self.entries.last().index)).min(self.applied)
    }

    pub(crate) fn truncate_below(&mut self, index: LogIndex) {
        self.first_on_disk = self.first_on_disk.max(index);
        self.extent.drop_below(index);
    }

    /// Writes all that is kept again, if it is in memory and not more than so many bytes.
    pub(crate) fn rewrite_kept(&mut self, bytes_max: usize) -> bool {
        let last = self.entries.last().index;
        let kept = self.entries.batch(self.first_on_disk, bytes_max);
        let is_all = kept.last().is_some_and(|entry| entry.index == last);
        let len_bytes: usize = kept.iter().map(Entry::len_bytes).sum();
        is_all && len_bytes <= bytes_max && self.disk.rewrite(self.promised, kept)
    }
}
