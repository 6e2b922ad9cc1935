//! What a primary does: appends in a pipeline, commits, tells, notices that it is cut off, hands over.

use std::collections::VecDeque;

use super::entries::Entries;
use super::members::Transfer;
use super::{ReadFor, Replicator, Role};
use crate::core::{FollowerStatus, Unhurried};
use crate::ids::{Ballot, Incarnation, LogIndex, ReplicaId};
use crate::membership::{Member, MemberRole};
use crate::message::Message;
use crate::output::{Event, Output};
use crate::record::{Entry, Position, Record};
use crate::time::Time;

#[derive(Clone, Debug)]
pub(super) struct Primary {
    pub(super) ballot: Ballot,
    /// The entry that started the ballot: nothing before it is committed before it is.
    pub(super) start: LogIndex,
    pub(super) followers: Vec<Follower>,
    pub(super) heartbeat_due: Time,
    /// Who has been told to take over, and until when nothing is taken for that.
    pub(super) handing_over: Option<(ReplicaId, Time)>,
    /// Since when followers have not been told of a commit, because more is under way that it can go with.
    news_since: Option<Time>,
    /// Since when the preferred primary is up to date.
    preferred_since: Option<Time>,
    /// The disk could not read back what some follower needs: no use asking again in this heartbeat.
    read_failed: bool,
}

/// How far one follower is.
#[derive(Clone, Debug)]
pub(super) struct Follower {
    pub(super) member: Member,
    /// Its log equals this one up to here, on its disk.
    pub(super) matched: LogIndex,
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
    /// Commits do not wait for it at present, as enough others are as fast.
    is_spare: bool,
    /// When it was last sent entries.
    served: Option<Time>,
    /// Until then entries for it are gathered.
    gathering: Option<Time>,
    /// It lacks what was dropped, and has been told so.
    pub(super) beyond_help: bool,
    /// The copy of the state that it needs then.
    pub(super) transfer: Transfer,
    /// Another disk answers in its place, since then.
    pub(super) stranger: Option<(Incarnation, Time)>,
    /// When it was last sent anything; `None`: send something at once.
    sent: Option<Time>,
    pub(super) heard: Time,
}

impl Follower {
    pub(super) fn new(member: Member, next: LogIndex, heard: Time) -> Self {
        Follower {
            member,
            matched: LogIndex::ZERO,
            next,
            anchor: Position::default(),
            searching: false,
            unacknowledged: VecDeque::new(),
            unacknowledged_bytes: 0,
            told_committed: LogIndex::ZERO,
            is_spare: false,
            served: None,
            gathering: None,
            beyond_help: false,
            transfer: Transfer::Possible,
            stranger: None,
            sent: None,
            heard,
        }
    }

    pub(super) fn with_role(mut self, role: MemberRole) -> Self {
        self.member.role = role;
        self
    }

    /// Something else than the next entries is to be tried: does its log have what is before `next`?
    pub(super) fn search_at(&mut self, next: LogIndex) {
        self.restart_at(next);
        (self.searching, self.sent) = (true, None);
    }

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

    fn gather(&mut self, last: LogIndex, now: Time) {
        let until = self.served.map(|served| served.after_ms(SPARE_PAUSE_MS));
        self.gathering = until.filter(|&until| self.is_spare && self.next <= last && until > now);
    }

    fn restart_at(&mut self, next: LogIndex) {
        self.next = next;
        self.unacknowledged.clear();
        self.unacknowledged_bytes = 0;
        (self.served, self.gathering) = (None, None);
    }
}

impl Primary {
    /// Followers learn of a commit at once if it is one entry's and nothing else is under way, so that whoever waits there for
    /// it waits no longer. Where more is going on, the news go with the next entries, or alone when that takes too long.
    fn tells_news(&mut self, committed: LogIndex, last: LogIndex, now: Time) -> bool {
        let is_behind = |follower: &Follower| follower.gathering.is_none() && follower.told_committed < committed;
        let waits = |follower: &Follower| follower.stranger.is_none() && is_behind(follower);
        if !self.followers.iter().any(|follower| !follower.searching && waits(follower)) {
            self.news_since = None;
            return true;
        }
        let since = *self.news_since.get_or_insert(now);
        let told =
            self.followers.iter().filter(|follower| waits(follower)).map(|follower| follower.told_committed).min();
        let is_single = committed == last && told.is_some_and(|told| told.next() == committed);
        let is_due = is_single || now.ms_since(since) >= NEWS_PATIENCE_MS;
        if is_due {
            self.news_since = None;
        }
        is_due
    }

    /// When something is to be done without being asked.
    pub(super) fn due(&self) -> Time {
        let news_due = self.news_since.map(|since| since.after_ms(NEWS_PATIENCE_MS));
        let gathered = self.followers.iter().filter_map(|follower| follower.gathering);
        news_due.into_iter().chain(gathered).fold(self.heartbeat_due, Time::min)
    }

    /// A commit needs so many followers; the other voters are spare. Each portion of entries costs a follower a flush and several
    /// changes of threads, whether it is long or short, so spare ones get fewer and longer ones.
    pub(super) fn choose_spares(&mut self, needed: usize) {
        let voters = self.followers.iter().filter(|follower| follower.member.is_voter());
        let mut wanted = needed.saturating_sub(voters.filter(|follower| !follower.is_spare).count());
        let mut left = needed;
        for follower in &mut self.followers {
            let is_chosen = follower.member.is_voter() && left > 0 && (!follower.is_spare || wanted > 0);
            wanted -= usize::from(is_chosen && follower.is_spare);
            left -= usize::from(is_chosen);
            follower.is_spare = follower.member.is_voter() && !is_chosen;
        }
    }

    /// A commit came about by a spare follower: it changes places with the slowest of the others.
    fn prefer(&mut self, faster: ReplicaId) {
        let prompt = |follower: &&mut Follower| follower.member.is_voter() && !follower.is_spare;
        let slowest = self.followers.iter_mut().filter(prompt).min_by_key(|follower| follower.matched);
        if let Some(slowest) = slowest {
            slowest.is_spare = true;
        }
        let faster = self.followers.iter_mut().find(|follower| follower.member.replica == faster);
        if let Some(faster) = faster {
            (faster.is_spare, faster.gathering) = (false, None);
        }
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
            follower.served = Some(self.now);
        }
        follower.told_committed = self.committed;
        follower.sent = Some(self.now);
        let Told { ballot, committed, everywhere, .. } = self;
        Message::Append { ballot, previous, entries, committed, everywhere }
    }
}

impl Replicator {
    /// Becomes primary with this record as the first of the ballot.
    pub(super) fn start_ballot(&mut self, ballot: Ballot, first: Record) {
        let start = self.entries.last().index.next();
        let heartbeat_due = self.now.after_ms(self.timing.heartbeat_ms);
        self.role = Role::Primary(Primary {
            ballot,
            start,
            followers: Vec::new(),
            heartbeat_due,
            handing_over: None,
            news_since: None,
            preferred_since: None,
            read_failed: false,
        });
        self.primary = Some(self.me);
        self.follow_membership();
        self.outputs.push_back(Output::Event(Event::BecamePrimary { ballot }));
        self.append(first);
    }

    pub(super) fn handle_appended(&mut self, from: (ReplicaId, Incarnation), ballot: Ballot, matched: LogIndex) {
        let (last, first) = (self.entries.last().index, self.first_on_disk);
        let Some(follower) = self.hear_follower(from, ballot).filter(|_| matched <= last) else { return };
        follower.acknowledge(matched);
        if follower.searching && matched.next() >= follower.next {
            follower.searching = false;
        }
        follower.next = follower.next.max(follower.matched.next());
        let is_matched = follower.matched >= first;
        follower.beyond_help &= !is_matched;
        let (is_spare, committed) = (follower.is_spare, self.committed);
        self.advance_committed();
        if let Role::Primary(primary) = &mut self.role
            && is_spare
            && self.committed > committed
        {
            primary.prefer(from.0);
        }
    }

    pub(super) fn handle_append_refused(
        &mut self,
        from: (ReplicaId, Incarnation),
        ballot: Ballot,
        previous: LogIndex,
        retry_after: LogIndex,
    ) {
        let (last, first) = (self.entries.last().index, self.first_on_disk);
        let Some(follower) = self.hear_follower(from, ballot) else { return };
        // Refusals of what was sent before the search, or before something that has arrived since, are old news.
        let is_old = previous <= follower.matched || (follower.searching && previous.next() != follower.next);
        if is_old {
            return;
        }
        let dropped = if first > LogIndex(1) { first } else { LogIndex::ZERO };
        if previous <= dropped {
            self.send(from.0, Message::TooFarBehind { ballot, first: dropped });
            return self.help(from.0, retry_after.next());
        }
        let retry_after = retry_after.min(last).min(LogIndex(previous.0 - 1)).max(follower.matched).max(dropped);
        follower.search_at(retry_after.next());
    }

    /// The follower that has answered in this ballot, if it is the member and not what came in its place.
    fn hear_follower(
        &mut self,
        (from, incarnation): (ReplicaId, Incarnation),
        ballot: Ballot,
    ) -> Option<&mut Follower> {
        let now = self.now;
        let Role::Primary(primary) = &mut self.role else { return None };
        let mut followers = primary.followers.iter_mut().filter(|_| primary.ballot == ballot);
        let follower = followers.find(|follower| follower.member.replica == from)?;
        if follower.member.incarnation != incarnation {
            if follower.stranger.is_none_or(|(known, _)| known != incarnation) {
                follower.stranger = Some((incarnation, now));
                self.outputs.push_back(Output::Event(Event::DiskReplaced { replica: from, incarnation }));
            }
            return None;
        }
        follower.stranger = None;
        follower.heard = now;
        Some(follower)
    }

    /// Sends each follower what it can take, in one message per turn if it fits, and the news of commits.
    pub(super) fn send_appends(&mut self) {
        let last = self.entries.last().index;
        let Role::Primary(primary) = &mut self.role else { return };
        let told =
            Told { ballot: primary.ballot, committed: self.committed, everywhere: self.everywhere, now: self.now };
        let is_handing_over = primary.handing_over.is_some();
        for follower in &mut primary.followers {
            follower.gather(last, self.now);
            follower.gathering = follower.gathering.filter(|_| !is_handing_over);
        }
        let tells_news = primary.tells_news(self.committed, last, self.now);
        let mut read_from: Option<LogIndex> = None;
        for follower in &mut primary.followers {
            let to = (self.group, follower.member.replica);
            let mut sent = false;
            let first = self.first_on_disk;
            // What is not committed may still be voided: only voters need it. Whoever lost its disk gets no more than a sign.
            let last = if follower.member.is_voter() { last } else { self.committed };
            let is_member = follower.stranger.is_none();
            let is_unknown = follower.previous(&self.entries).is_none();
            let is_dropped = if follower.searching {
                follower.next <= first && is_unknown
            } else {
                follower.next < first || (follower.next == first && is_unknown)
            };
            if is_member && is_dropped {
                // Dropped before it was sent, or while it was looked for: perhaps the follower has it, else it must learn
                // that it is lost.
                follower.search_at(first.next());
            }
            while !follower.searching
                && is_member
                && follower.gathering.is_none()
                && follower.next <= last
                && follower.unacknowledged_bytes < self.limits.append_window_bytes
            {
                let Some(previous) = follower.previous(&self.entries) else {
                    read_from = read_from.or(Some(LogIndex(follower.next.0 - 1)));
                    break;
                };
                let mut entries = self.entries.batch(follower.next, self.limits.append_batch_bytes);
                entries.retain(|entry| entry.index <= last);
                if entries.is_empty() {
                    read_from = read_from.or(Some(follower.next));
                    break;
                }
                self.outputs.push_back(Output::Send { to, message: told.append(follower, previous, entries) });
                sent = true;
            }
            let is_behind = follower.gathering.is_none() && follower.told_committed < told.committed;
            let is_news = !follower.searching && is_member && is_behind;
            if !sent && (follower.sent.is_none() || (is_news && tells_news)) {
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
        let last = self.entries.last().index;
        let mut helpless = Vec::new();
        let told =
            Told { ballot: primary.ballot, committed: self.committed, everywhere: self.everywhere, now: self.now };
        for follower in &mut primary.followers {
            let known = follower.previous(&self.entries);
            // What was read is not for whoever lacks nothing, or nothing that is not in memory.
            let lacks = !follower.searching && follower.next <= last && self.entries.get(follower.next).is_none();
            if known.is_some() && !lacks {
                continue;
            }
            if follower.stranger.is_some() {
                continue;
            }
            if read.is_empty() {
                helpless.push((follower.member.replica, follower.next));
                continue;
            }
            let before = LogIndex(follower.next.0 - 1);
            let found = read.iter().find(|entry| entry.index == before).map(Entry::position);
            let Some(previous) = known.or(found) else { continue };
            follower.anchor = previous;
            if follower.searching {
                follower.sent = None;
            } else if let Some(at) = read.iter().position(|entry| entry.index == follower.next) {
                let mut entries = read[at..].to_vec();
                entries.retain(|entry| follower.member.is_voter() || entry.index <= told.committed);
                let message = told.append(follower, previous, entries);
                self.outputs.push_back(Output::Send { to: (self.group, follower.member.replica), message });
            }
        }
        for (replica, from) in helpless {
            self.help(replica, from);
        }
    }

    /// Commits what a quorum has on disk, the own disk counting like any other.
    pub(super) fn advance_committed(&mut self) {
        let Role::Primary(primary) = &self.role else { return };
        let durable = self.disk.durable();
        let on_quorum = self.on_quorum(primary, durable);
        // Entries of earlier ballots may still be replaced until one of this ballot is on a quorum.
        let on_quorum = on_quorum.filter(|&index| index >= primary.start && index > self.committed);
        let everywhere = primary.followers.iter().map(|follower| follower.matched).chain([durable]).min();
        self.committed = on_quorum.unwrap_or(self.committed);
        self.everywhere = self.everywhere.max(everywhere.unwrap_or_default().min(self.committed));
        if on_quorum.is_some() {
            self.leave_if_removed();
        }
    }

    /// What a quorum has on disk, the own disk being so far.
    fn on_quorum(&self, primary: &Primary, own: LogIndex) -> Option<LogIndex> {
        let membership = self.memberships.latest();
        let voters = primary.followers.iter().filter(|follower| follower.member.is_voter());
        let mut matched: Vec<LogIndex> = voters.map(|follower| follower.matched).collect();
        if membership.is_voter(self.me, self.incarnation) {
            matched.push(own);
        }
        matched.sort_unstable();
        matched.len().checked_sub(membership.quorum_size()).map(|at| matched[at])
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
        let voters = primary.followers.iter().filter(|follower| follower.member.is_voter());
        let heard = voters.filter(|follower| now.ms_since(follower.heard) < timeout_ms).count();
        let membership = self.memberships.latest();
        let own = usize::from(membership.is_voter(self.me, self.incarnation));
        if heard + own < membership.quorum_size() {
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
        self.maintain_membership();
    }

    /// The first voter of the list is where the operator wants the primary.
    fn hand_over_if_due(&mut self) {
        let last = self.entries.last().index;
        let (now, return_ms, heartbeat_ms) = (self.now, self.timing.return_ms, self.timing.heartbeat_ms);
        let Some(preferred) = self.membership().voters().next().map(|voter| voter.replica) else { return };
        let Role::Primary(primary) = &mut self.role else { return };
        let mut followers = primary.followers.iter();
        let Some(follower) = followers.find(|follower| follower.member.replica == preferred) else { return };
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

    /// See [`crate::core::Core::unhurried`].
    pub(crate) fn unhurried(&self) -> Unhurried {
        let Role::Primary(primary) = &self.role else { return Unhurried::default() };
        let last = self.entries.last().index;
        let would_commit = self.on_quorum(primary, last).is_some_and(|index| index > self.committed);
        let persisted = !would_commit && self.committed <= self.disk.durable() && self.disk.holds_nothing_back();
        let is_quiet = |follower: &Follower| {
            let goes_on = !follower.searching && !follower.beyond_help && follower.stranger.is_none();
            goes_on && follower.member.is_voter() && (follower.next > last || follower.gathering.is_some())
        };
        let all_quiet = primary.handing_over.is_none() && primary.followers.iter().all(is_quiet);
        let appended_through = if all_quiet { self.committed } else { LogIndex::ZERO };
        Unhurried { persisted, appended_through }
    }

    pub(crate) fn followers(&self) -> Vec<FollowerStatus> {
        let Role::Primary(primary) = &self.role else { return Vec::new() };
        let status = |follower: &Follower| FollowerStatus {
            replica: follower.member.replica,
            incarnation: follower.member.incarnation,
            role: follower.member.role,
            matched: follower.matched,
            heard: follower.heard,
            beyond_help: follower.beyond_help,
            is_copying: follower.transfer == Transfer::UnderWay,
            other_disk: follower.stranger.map(|(incarnation, _)| incarnation),
        };
        primary.followers.iter().map(status).collect()
    }
}

/// A spare follower is sent entries this far apart at least.
const SPARE_PAUSE_MS: u64 = 5;

/// So long news of a commit wait for entries to go with, while more is under way.
const NEWS_PATIENCE_MS: u64 = 2;

/// How many entries a preferred primary may be behind when it takes over: it fetches them, so few.
const HAND_OVER_LAG_MAX: u64 = 1000;
