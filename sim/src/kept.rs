//! What a client may answer without asking: the cache that ships, moved on by replies and events as the mount's engine does it.

use std::collections::BTreeMap;
use std::sync::Arc;

use metadata::op::FsOp;
use metadata::outcome::{Errno, OpError, Outcome};
use metadata::protocol::{Event, Position};
use metadata::read::{ReadAnswer, ReadOp, ReadResult};
use multicast::Elsewhere;
use multicast::command::{Command, Destination};
use multicast::ids::{GroupId, LogIndex, ReplicaId, SessionId, VectorClock};

use crate::cache::Cache;
use crate::planted::Bug;
use crate::session::across::Across;
use crate::session::fill::{self, Kept as By};
use crate::session::progress::{Progress, StreamId};

/// More than a run has: what is dropped for want of room depends on how the cache spreads it.
const ENTRIES_MAX: usize = 100_000;

/// From where: a node, and the connection to it.
pub type From = (ReplicaId, u64);

/// Where a group's news come from.
#[derive(Clone, Copy, Debug)]
struct Stream {
    asked: From,
    /// It has begun.
    live: Option<StreamId>,
}

/// An own update that was answered.
#[derive(Clone, Copy, Debug)]
pub struct Answered<'a> {
    /// By which group.
    pub group: GroupId,
    /// What was asked for.
    pub op: &'a FsOp,
    /// What was sent.
    pub command: &'a Command,
    /// What came out.
    pub outcome: &'a Outcome,
    /// As of when.
    pub position: &'a Position,
    /// The replica has noted it for this session.
    pub is_noted: bool,
    /// Its other groups.
    pub elsewhere: &'a [Elsewhere],
}

/// One client's cache.
#[derive(Debug)]
pub struct Kept {
    session: SessionId,
    progress: Arc<Progress>,
    cache: Cache,
    streams: BTreeMap<GroupId, Stream>,
    across: Across,
    bug: Option<Bug>,
}

impl Kept {
    /// Nothing.
    #[must_use]
    pub fn new(session: SessionId, groups: impl IntoIterator<Item = GroupId>, bug: Option<Bug>) -> Kept {
        let progress = Arc::new(Progress::new(session, groups));
        let cache = Cache::new(Arc::clone(&progress), ENTRIES_MAX);
        Kept { session, progress, cache, streams: BTreeMap::new(), across: Across::default(), bug }
    }

    /// What the client has seen.
    #[must_use]
    pub fn clock(&self) -> VectorClock {
        self.progress.clock()
    }

    /// How far its stream has told of a group's log; zero without one.
    #[must_use]
    pub fn position(&self, group: GroupId) -> LogIndex {
        self.progress.stream(group).map_or(LogIndex::ZERO, |(_, position)| position)
    }

    /// True if the group's news come, or will come, from there.
    #[must_use]
    pub fn listens(&self, group: GroupId, from: From) -> bool {
        self.streams.get(&group).is_some_and(|stream| stream.asked == from)
    }

    /// The stream that brings news of the group from there.
    fn source(&self, group: GroupId, from: From) -> Option<StreamId> {
        self.streams.get(&group).filter(|stream| stream.asked == from)?.live
    }

    /// A stream is asked for; an earlier one has ended.
    pub fn ask_stream(&mut self, group: GroupId, from: From) {
        self.streams.insert(group, Stream { asked: from, live: None });
        self.cache.end_stream(group);
    }

    /// A stream begins, complete from there on.
    pub fn begin_stream(&mut self, group: GroupId, from: From, position: &Position) {
        let Some(stream) = self.streams.get_mut(&group).filter(|stream| stream.asked == from) else { return };
        stream.live = Some(self.cache.begin_stream(group, position.index));
        self.progress.settle(group, position.settled);
    }

    /// A connection is gone, and the streams on it.
    pub fn lose(&mut self, from: From) {
        let lost: Vec<GroupId> = self.streams.keys().copied().filter(|&group| self.listens(group, from)).collect();
        for group in lost {
            self.streams.remove(&group);
            self.cache.end_stream(group);
        }
    }

    /// News.
    pub fn apply(&mut self, from: From, event: &Event) {
        let Event { group, index, invalidated, invalidate_all, settled, executed, dependencies, .. } = event;
        let Some(stream) = self.source(*group, from) else { return };
        if *invalidate_all {
            self.cache.invalidate_all(*group, stream, *index);
        }
        for executed in executed {
            self.across.execute(&self.cache, (*group, stream), executed, *index);
        }
        self.cache.invalidate(*group, stream, invalidated, (*index, *settled));
        self.depend(dependencies);
    }

    /// The client has seen what depends on these.
    fn depend(&self, dependencies: &VectorClock) {
        let mut told = VectorClock::new();
        if self.bug != Some(Bug::CacheBehindClock) {
            dependencies.iter().for_each(|(group, index)| _ = told.advance(group, index));
        }
        match self.bug {
            Some(Bug::CachePastEffects) => {}
            Some(Bug::OwnHidesOthers) => dependencies.iter_effects().for_each(|(group, index)| {
                let is_own = dependencies.effects_beside(group, self.session) < index;
                told.advance_effects(group, index, if is_own { self.session } else { SessionId(0) });
            }),
            _ => dependencies.iter_effects().for_each(|(group, _)| told.merge_effects(dependencies, group)),
        }
        let shown = self.progress.depend(&told);
        self.across.forget_open(&self.cache, &shown);
    }

    /// The client has seen this state of the group.
    pub fn see(&self, group: GroupId, position: &Position) {
        self.depend(&position.dependencies);
        if self.bug != Some(Bug::CacheBehindClock) {
            self.progress.see(group, position.index);
        }
    }

    /// A read's answer. `asked`: the effects that the client knew of when it asked.
    pub fn read(
        &self,
        from: From,
        (group, op, asked): (GroupId, &ReadOp, LogIndex),
        result: &ReadResult,
        as_of: LogIndex,
    ) {
        let Some(stream) = self.source(group, from) else { return };
        let mut result = result.clone();
        if let (Some(Bug::PieceForWhole), Ok(ReadAnswer::Entries { end, .. })) = (self.bug, &mut result) {
            *end = true;
        }
        fill::read(&self.cache, stream, &fill::Question { group, op, asked }, &result, as_of);
    }

    /// An own update goes out.
    pub fn expect(&mut self, command: &Command, op: &Arc<FsOp>) {
        self.across.expect(command.id.sequence, op, &command.destinations.clone().into());
    }

    /// It was answered.
    pub fn updated(&mut self, from: From, update: &Answered<'_>) {
        let Answered { group, op, command, outcome, position, is_noted, elsewhere } = *update;
        let stream = self.source(group, from).filter(|_| is_noted);
        let by = stream.map_or(By::Unnoted { asked: command.clock.effects(group) }, By::Noted);
        let here = fill::update(&self.cache, group, &command.destinations, op, outcome, position.index, by);
        if command.destinations.len() < 2 {
            return;
        }
        let others = command.destinations.iter().filter(|destination| destination.group != group);
        let mut others: Vec<Destination> = others.cloned().collect();
        let nothing = Err(OpError::Errno(Errno::Busy));
        let outcome = if self.bug == Some(Bug::KeepOwnElsewhere) { &nothing } else { outcome };
        if self.bug == Some(Bug::KeepOwnElsewhere) {
            others.iter_mut().for_each(|other| other.footprint.clear());
        }
        let learned = {
            let told = self.across.counted(command.id.sequence);
            fill::elsewhere(&self.cache, &others, (op, outcome), elsewhere, (&command.clock, told))
        };
        self.across.answer(command.id.sequence, learned.into_iter().chain(here.then_some(group)));
    }

    /// The answer, if the client may give it by itself, and to what: of a file's content only what it says of the file.
    #[must_use]
    pub fn answer(&self, group: GroupId, op: &ReadOp) -> Option<(ReadOp, ReadAnswer)> {
        match op {
            ReadOp::Lookup { parent, name } => {
                let found = self.cache.dirent(group, *parent, name)?;
                Some((op.clone(), ReadAnswer::Lookup(found.map(|dirent| (dirent, None)))))
            }
            ReadOp::GetAttr { ino } => {
                let attr = self.cache.attr(group, *ino)?;
                Some((op.clone(), ReadAnswer::Attr(Box::new((*attr).clone()))))
            }
            ReadOp::Content { ino, .. } => {
                let map = self.cache.map(group, *ino)?;
                Some((ReadOp::GetAttr { ino: *ino }, ReadAnswer::Attr(Box::new(map.attr.clone()))))
            }
            _ => None,
        }
    }
}
