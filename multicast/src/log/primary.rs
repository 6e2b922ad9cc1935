//! What a primary does: appends in a pipeline, commits, tells, notices that it is cut off, hands over.

use std::collections::VecDeque;

use super::entries::Entries;
use super::{ReadFor, Replicator, Role};
use crate::core::FollowerStatus;
use crate::ids::{Ballot, LogIndex, ReplicaId};
use crate::message::Message;
use crate::output::{Event, Output};
use crate::record::{Entry, Position, Record};
use crate::time::Time;

#[derive(Debug)]
pub(super) struct Primary {
    pub(super) ballot: Ballot,
    /// The entry that started the ballot: nothing before it is committed before it is.
    pub(super) start: LogIndex,
    followers: Vec<Follower>,
    pub(super) heartbeat_due: Time,
    /// Since when the preferred primary is up to date.
    preferred_since: Option<Time>,
    /// The disk could not read back what some follower needs: no use asking again in this heartbeat.
    read_failed: bool,
}

/// How far one follower is.
#[derive(Debug)]
struct Follower {
    replica: ReplicaId,
    /// Its log equals this one up to here, on its disk.
    matched: LogIndex,
    /// The next entry to send it.
    next: LogIndex,
    /// The position before `next`, if it has left this memory and was read back from disk.
    anchor: Position,
    /// Where its log parts from this one is not known: nothing is sent but questions.
    searching: bool,
    /// Last index and bytes of each append that it has not acknowledged.
    unacknowledged: VecDeque<(LogIndex, usize)>,
    unacknowledged_bytes: usize,
    told_committed: LogIndex,
    /// It lacks what was dropped, and has been told so.
    beyond_help: bool,
    /// When it was last sent anything; `None`: send something at once.
    sent: Option<Time>,
    heard: Time,
}

impl Follower {
    fn acknowledge(&mut self, matched: LogIndex) {
        self.matched = self.matched.max(matched);
        while let Some(&(last, bytes)) = self.unacknowledged.front() {
            if last > self.matched {
                break;
            }
            self.unacknowledged.pop_front();
            self.unacknowledged_bytes -= bytes;
        }
    }

    /// The position before `next`, as far as it is known here.
    fn previous(&self, log: &Entries) -> Option<Position> {
        let before = LogIndex(self.next.0 - 1);
        log.position(before).or(Some(self.anchor).filter(|anchor| anchor.index == before))
    }

    fn restart_at(&mut self, next: LogIndex) {
        self.next = next;
        self.unacknowledged.clear();
        self.unacknowledged_bytes = 0;
    }
}

/// What goes to a follower besides the entries.
#[derive(Clone, Copy)]
struct Told {
    ballot: Ballot,
    committed: LogIndex,
    everywhere: LogIndex,
    now: Time,
}

impl Told {
    fn append(self, follower: &mut Follower, previous: Position, entries: Vec<Entry>) -> Message {
        if let Some(last) = entries.last() {
            let bytes = entries.iter().map(Entry::len_bytes).sum();
            follower.unacknowledged.push_back((last.index, bytes));
            follower.unacknowledged_bytes += bytes;
            follower.next = last.index.next();
            follower.anchor = last.position();
        }
        follower.told_committed = self.committed;
        follower.sent = Some(self.now);
        let Told { ballot, committed, everywhere, .. } = self;
        Message::Append { ballot, previous, entries, committed, everywhere }
    }
}

impl Replicator {
    pub(super) fn become_primary(&mut self, ballot: Ballot) {
        let start = self.entries.last().index.next();
        let others = self.voters.iter().copied().filter(|&voter| voter != self.me);
        let followers = others.map(|replica| Follower {
            replica,
            matched: LogIndex::ZERO,
            // Most likely it has the same log; if not, it says so.
            next: start,
            anchor: Position::default(),
            searching: false,
            unacknowledged: VecDeque::new(),
            unacknowledged_bytes: 0,
            told_committed: LogIndex::ZERO,
            beyond_help: false,
            sent: None,
            heard: self.now,
        });
        let followers = followers.collect();
        let heartbeat_due = self.now.after_ms(self.timing.heartbeat_ms);
        self.role = Role::Primary(Primary {
            ballot,
            start,
            followers,
            heartbeat_due,
            preferred_since: None,
            read_failed: false,
        });
        self.primary = Some(self.me);
        self.outputs.push_back(Output::Event(Event::BecamePrimary { ballot }));
        self.append(Record::Noop);
    }

    pub(super) fn handle_appended(&mut self, from: ReplicaId, ballot: Ballot, matched: LogIndex) {
        let last = self.entries.last().index;
        let now = self.now;
        let Role::Primary(primary) = &mut self.role else { return };
        if primary.ballot != ballot || matched > last {
            return;
        }
        let Some(follower) = primary.followers.iter_mut().find(|follower| follower.replica == from) else { return };
        follower.heard = now;
        follower.acknowledge(matched);
        if follower.searching && matched.next() >= follower.next {
            follower.searching = false;
        }
        follower.beyond_help &= follower.matched < self.first_on_disk;
        follower.next = follower.next.max(follower.matched.next());
        self.advance_committed();
    }

    pub(super) fn handle_append_refused(
        &mut self,
        from: ReplicaId,
        ballot: Ballot,
        previous: LogIndex,
        retry_after: LogIndex,
    ) {
        let last = self.entries.last().index;
        let now = self.now;
        let Role::Primary(primary) = &mut self.role else { return };
        if primary.ballot != ballot {
            return;
        }
        let Some(follower) = primary.followers.iter_mut().find(|follower| follower.replica == from) else { return };
        follower.heard = now;
        // Refusals of what was sent before the search, or before something that has arrived since, are old news.
        let is_old = previous <= follower.matched || (follower.searching && previous.next() != follower.next);
        if is_old {
            return;
        }
        let dropped = if self.first_on_disk > LogIndex(1) { self.first_on_disk } else { LogIndex::ZERO };
        if previous <= dropped {
            if !std::mem::replace(&mut follower.beyond_help, true) {
                let event = Event::FollowerBeyondHelp { replica: from, from: retry_after.next() };
                self.outputs.push_back(Output::Event(event));
            }
            return self.send(from, Message::TooFarBehind { ballot, first: dropped });
        }
        let retry_after = retry_after.min(last).min(LogIndex(previous.0 - 1)).max(follower.matched).max(dropped);
        follower.restart_at(retry_after.next());
        follower.searching = true;
        follower.sent = None;
    }

    /// Sends each follower what it can take, in one message per turn if it fits, and the news of commits.
    pub(super) fn send_appends(&mut self) {
        let last = self.entries.last().index;
        let Role::Primary(primary) = &mut self.role else { return };
        let told =
            Told { ballot: primary.ballot, committed: self.committed, everywhere: self.everywhere, now: self.now };
        let mut read_from: Option<LogIndex> = None;
        for follower in &mut primary.followers {
            let to = (self.group, follower.replica);
            let mut sent = false;
            let first = self.first_on_disk;
            let is_dropped =
                follower.next < first || (follower.next == first && follower.previous(&self.entries).is_none());
            if !follower.searching && is_dropped {
                // Dropped before it was sent: perhaps the follower has it, else it must learn that it is lost.
                follower.restart_at(first.next());
                (follower.searching, follower.sent) = (true, None);
            }
            while !follower.searching
                && follower.next <= last
                && follower.unacknowledged_bytes < self.limits.append_window_bytes
            {
                let Some(previous) = follower.previous(&self.entries) else {
                    read_from = read_from.or(Some(LogIndex(follower.next.0 - 1)));
                    break;
                };
                let entries = self.entries.batch(follower.next, self.limits.append_batch_bytes);
                if entries.is_empty() {
                    read_from = read_from.or(Some(follower.next));
                    break;
                }
                self.outputs.push_back(Output::Send { to, message: told.append(follower, previous, entries) });
                sent = true;
            }
            if !sent && (follower.sent.is_none() || (!follower.searching && follower.told_committed < told.committed)) {
                // Every log agrees on the beginning, which serves as heartbeat for those far behind.
                let previous = follower.previous(&self.entries);
                if previous.is_none() && follower.searching {
                    read_from = read_from.or(Some(LogIndex(follower.next.0 - 1)));
                }
                let message = told.append(follower, previous.unwrap_or_default(), Vec::new());
                self.outputs.push_back(Output::Send { to, message });
            }
        }
        let may_read = self.reading.is_none() && !primary.read_failed;
        if let Some(from) = read_from.filter(|&from| may_read && from >= self.first_on_disk) {
            self.read_log(ReadFor::Followers(told.ballot), from);
        }
    }

    /// Entries came back from disk, beginning with the one before what some follower needs.
    pub(super) fn send_read_entries(&mut self, ballot: Ballot, read: &[Entry]) {
        let Role::Primary(primary) = &mut self.role else { return };
        if primary.ballot != ballot {
            return;
        }
        primary.read_failed = read.is_empty();
        let told =
            Told { ballot: primary.ballot, committed: self.committed, everywhere: self.everywhere, now: self.now };
        for follower in &mut primary.followers {
            let known = follower.previous(&self.entries);
            if known.is_some() && (follower.searching || self.entries.get(follower.next).is_some()) {
                continue;
            }
            if read.is_empty() {
                if !std::mem::replace(&mut follower.beyond_help, true) {
                    let event = Event::FollowerBeyondHelp { replica: follower.replica, from: follower.next };
                    self.outputs.push_back(Output::Event(event));
                }
                continue;
            }
            let before = LogIndex(follower.next.0 - 1);
            let found = read.iter().find(|entry| entry.index == before).map(Entry::position);
            let Some(previous) = known.or(found) else { continue };
            follower.anchor = previous;
            if follower.searching {
                follower.sent = None;
            } else if let Some(at) = read.iter().position(|entry| entry.index == follower.next) {
                let message = told.append(follower, previous, read[at..].to_vec());
                self.outputs.push_back(Output::Send { to: (self.group, follower.replica), message });
            }
        }
    }

    /// Commits what a quorum has on disk, the own disk counting like any other.
    pub(super) fn advance_committed(&mut self) {
        let Role::Primary(primary) = &self.role else { return };
        let mut matched: Vec<LogIndex> = primary.followers.iter().map(|follower| follower.matched).collect();
        matched.push(self.disk.durable());
        matched.sort_unstable();
        let on_quorum = matched[matched.len() - self.quorum_size];
        // Entries of earlier ballots may still be replaced until one of this ballot is on a quorum.
        if on_quorum >= primary.start && on_quorum > self.committed {
            self.committed = on_quorum;
        }
        self.everywhere = self.everywhere.max(matched[0].min(self.committed));
    }

    pub(super) fn primary_timeout(&mut self) {
        let now = self.now;
        let Role::Primary(primary) = &mut self.role else { return };
        if now < primary.heartbeat_due {
            return;
        }
        primary.heartbeat_due = now.after_ms(self.timing.heartbeat_ms);
        primary.read_failed = false;
        let timeout_ms = self.timing.election_timeout_ms;
        let heard = primary.followers.iter().filter(|follower| now.ms_since(follower.heard) < timeout_ms).count();
        if heard + 1 < self.quorum_size {
            // Cut off: whoever asks here should look elsewhere.
            return self.become_follower(None);
        }
        let heartbeat_ms = self.timing.heartbeat_ms;
        for follower in &mut primary.followers {
            if follower.sent.is_some_and(|sent| now.ms_since(sent) + 1 >= heartbeat_ms) {
                follower.sent = None;
            }
        }
        self.hand_over_if_due();
    }

    /// The first voter of the list is where the operator wants the primary.
    fn hand_over_if_due(&mut self) {
        let last = self.entries.last().index;
        let (now, return_ms, heartbeat_ms) = (self.now, self.timing.return_ms, self.timing.heartbeat_ms);
        let preferred = self.voters[0];
        let Role::Primary(primary) = &mut self.role else { return };
        let Some(follower) = primary.followers.iter().find(|follower| follower.replica == preferred) else { return };
        let is_up_to_date =
            now.ms_since(follower.heard) < 3 * heartbeat_ms && follower.matched.0 + HAND_OVER_LAG_MAX >= last.0;
        if !is_up_to_date || return_ms == 0 {
            primary.preferred_since = None;
            return;
        }
        let since = *primary.preferred_since.get_or_insert(now);
        if now.ms_since(since) >= return_ms {
            primary.preferred_since = Some(now);
            let ballot = primary.ballot;
            self.send(preferred, Message::TakeOver { ballot });
        }
    }

    pub(crate) fn followers(&self) -> Vec<FollowerStatus> {
        let Role::Primary(primary) = &self.role else { return Vec::new() };
        let status = |follower: &Follower| FollowerStatus {
            replica: follower.replica,
            matched: follower.matched,
            heard: follower.heard,
            beyond_help: follower.beyond_help,
        };
        primary.followers.iter().map(status).collect()
    }
}

/// How many entries a preferred primary may be behind when it takes over: it fetches them, so few.
const HAND_OVER_LAG_MAX: u64 = 1000;
