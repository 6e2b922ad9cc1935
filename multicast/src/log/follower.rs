//! What a follower does with a primary's appends.

use super::{ROUND_MAX, Replicator, Role};
use crate::ids::{Ballot, LogIndex, ReplicaId};
use crate::message::Message;
use crate::output::{Event, Output};
use crate::record::{Entry, Position};

impl Replicator {
    pub(super) fn handle_append(
        &mut self,
        from: ReplicaId,
        ballot: Ballot,
        previous: Position,
        entries: Vec<Entry>,
        committed: LogIndex,
        everywhere: LogIndex,
    ) {
        let is_stale = ballot < self.promised;
        #[cfg(feature = "explore")]
        let is_stale = is_stale && self.planted != Some(crate::planted::Planted::StaleAppends);
        if is_stale {
            let promised = self.promised;
            return self.send_when_durable(from, Message::Outbid { promised });
        }
        if ballot.owner != Some(from) || ballot.round > ROUND_MAX || previous.index.0 > u64::MAX / 2 {
            return self.ignore(from, "appends in a ballot of another, or beyond reason");
        }
        if ballot > self.promised {
            self.promised = ballot;
            self.disk.promise(ballot);
            self.clock_told = None;
        }
        let positions = std::iter::once(previous).chain(entries.iter().map(Entry::position));
        if let Some(index) = self.contradiction(positions) {
            return self.note_contradiction(ballot, index);
        }
        if !matches!(self.role, Role::Follower) || self.primary != Some(from) {
            self.become_follower(Some(from));
        }
        self.primary_heard = Some(self.now);
        self.expect_primary();
        self.tell_clock(from);
        if !self.matches(previous) {
            let last = self.entries.last().index;
            // What was made in the same ballot as the wrong entry is probably wrong too; what is committed is not.
            let retry_after =
                if last < previous.index { last } else { self.entries.before_run(previous.index).max(self.committed) };
            let previous = previous.index;
            let incarnation = self.incarnation;
            self.acknowledged = None;
            let refusal = Message::AppendRefused { ballot, previous, retry_after, incarnation };
            return self.send_when_durable(from, refusal);
        }
        let is_mere_news = entries.is_empty();
        let Some(matched) = self.take_entries(from, previous.index, entries) else { return };
        if self.too_far_behind.is_some_and(|first| matched >= first) {
            self.too_far_behind = None;
        }
        self.committed = self.committed.max(committed.min(matched));
        self.everywhere = self.everywhere.max(everywhere.min(self.committed));
        if is_mere_news && self.has_acknowledged_lately(ballot, matched) {
            return;
        }
        self.acknowledged = Some((ballot, matched, self.now));
        let incarnation = self.incarnation;
        self.send_when_durable(from, Message::Appended { ballot, matched, incarnation });
    }

    /// News of commits need no answer of their own. Heartbeats do: the answer shows that this voter lives, and stands in for
    /// one that was lost.
    fn has_acknowledged_lately(&self, ballot: Ballot, matched: LogIndex) -> bool {
        self.acknowledged.is_some_and(|(told_ballot, told, at)| {
            (told_ballot, told) == (ballot, matched) && self.now.ms_since(at) < self.timing.heartbeat_ms / 2
        })
    }

    pub(super) fn handle_too_far_behind(&mut self, from: ReplicaId, ballot: Ballot, first: LogIndex) {
        // What is here, or is known to be committed and so was here, cannot be lacking.
        if ballot == self.promised && ballot.owner == Some(from) && first > self.committed {
            self.become_too_far_behind(first);
        }
    }

    pub(super) fn become_too_far_behind(&mut self, first: LogIndex) {
        if self.too_far_behind.replace(first).is_none() {
            let event = Event::FollowerBeyondHelp { replica: self.me, from: self.entries.last().index.next() };
            self.outputs.push_back(Output::Event(event));
        }
    }

    /// Where a primary's log is another than what is committed here. No quorum can bring that about: it takes a membership
    /// that was forced upon a replica which had less than this one. What is committed here ends in a ballot that the forced
    /// one is above, so this is seen also where the own entries have left the memory.
    fn contradiction(&self, positions: impl Iterator<Item = Position>) -> Option<LogIndex> {
        let newest = self.entries.position(self.committed)?.ballot;
        let mut committed = positions.filter(|position| position.index <= self.committed);
        let differs = |position: &Position| {
            let known = self.entries.position(position.index);
            position.ballot > newest || known.is_some_and(|known| known != *position)
        };
        // The beginning of all logs goes with every ballot.
        committed.find(|position| position.index > LogIndex::ZERO && differs(position)).map(|position| position.index)
    }

    /// Nothing of it is taken or acknowledged: this replica has what its group does not have any more.
    fn note_contradiction(&mut self, ballot: Ballot, index: LogIndex) {
        if self.contradicted != Some(ballot) {
            self.contradicted = Some(ballot);
            self.outputs.push_back(Output::Event(Event::Contradicted { index }));
        }
    }

    /// True if this log has the primary's entry there: then all before it agree too. Committed entries are the same in all
    /// logs, also those that have left this memory.
    fn matches(&self, previous: Position) -> bool {
        previous.index <= self.committed || self.entries.position(previous.index) == Some(previous)
    }
}
