//! What connections' tasks work on: the session's clock, streams and cache, moved on by replies and events in the order in
//! which they come.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use metadata::op::FsOp;
use metadata::protocol::{Event, Reply, Request};
use metadata::read::ReadOp;
use multicast::command::Destination;
use multicast::ids::{GroupId, LogIndex, ReplicaId, SessionId, VectorClock};
use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore};

use super::across::Across;
use super::fill::{self, Kept};
use super::link::{Generation, Handler, Link};
use super::progress::{Progress, StreamId};
use super::route::Route;
use super::window::SequenceWindow;
use crate::cache::Cache;
use crate::volume::OrphanBox;

/// What connections' tasks work on.
pub struct Shared {
    pub(super) session: SessionId,
    pub(super) cache: Arc<Cache>,
    pub(super) progress: Arc<Progress>,
    pub(super) orphans: Arc<OrphanBox>,
    pub(super) window: Arc<Mutex<SequenceWindow>>,
    pub(super) groups: BTreeMap<GroupId, Group>,
    /// Own updates of several groups. Locked before the cache is, and while one is taken into account: each is counted once,
    /// whichever group tells it first.
    pub(super) across: Mutex<Across>,
    /// Somebody was not where he was looked for, or there is somebody new to ask: who belongs to the groups is asked anew.
    pub(super) doubt: Notify,
}

/// One group, seen from this session.
pub struct Group {
    pub(super) route: Mutex<Route>,
    pub(super) stream: Mutex<Stream>,
    /// Registered in this group.
    pub(super) session_open: AtomicBool,
    /// How often it has said that it does not know the session (any more).
    pub(super) registration: AtomicU64,
    /// Taken while someone registers.
    pub(super) opening: tokio::sync::Mutex<()>,
    /// Updates that may be under way. Of each group: those that wait for one must not hold up another's.
    pub(super) updates: Semaphore,
    /// Reads that may be under way.
    pub(super) reads: Semaphore,
}

/// Where a group's news come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stream {
    /// The connection that was asked for the stream.
    pub(super) asked: Option<(ReplicaId, Generation)>,
    /// It has begun.
    pub(super) live: Option<StreamId>,
}

/// What a call's reply will say.
pub enum Expect {
    /// An answer to a read.
    Read {
        /// The group asked.
        group: GroupId,
        /// The question.
        op: ReadOp,
        /// What had been seen of the group when it was asked.
        asked: LogIndex,
    },
    /// An update's outcome.
    Update {
        /// The group asked.
        group: GroupId,
        /// All groups that take part.
        destinations: Arc<[Destination]>,
        /// The update.
        op: Arc<FsOp>,
        /// Its sequence.
        sequence: u64,
        /// What had been seen when it was asked.
        clock: VectorClock,
    },
    /// The beginning of a stream.
    Stream {
        /// Of which group.
        group: GroupId,
    },
    /// A session opened or closed in a group.
    Session {
        /// Which.
        group: GroupId,
    },
    /// Nothing that cache or clock must know.
    Other,
}

impl Shared {
    /// How often each of these groups has forgotten the session, as far as known.
    pub(super) fn registrations(&self, groups: &[GroupId]) -> Vec<u64> {
        let of = |group| self.groups.get(group).map_or(0, |known: &Group| known.registration.load(Ordering::Acquire));
        groups.iter().map(of).collect()
    }

    /// Something was seen that depends on these.
    pub(super) fn depend(&self, dependencies: &VectorClock) {
        let shown = self.progress.depend(dependencies);
        if !shown.is_empty() {
            self.across.lock().forget_open(&self.cache, &shown);
        }
    }

    /// The stream that `(node, generation)` brings news of `group` in, if it does. By the time that it is used it may have
    /// ended: the cache sees to that.
    fn source(&self, group: GroupId, node: ReplicaId, generation: Generation) -> Option<StreamId> {
        let stream = self.groups.get(&group)?.stream.lock();
        stream.live.filter(|_| stream.asked == Some((node, generation)))
    }
}

impl Handler for Shared {
    type Expect = Expect;

    fn handle_connected(&self, link: &Arc<Link<Shared>>, generation: Generation) {
        if generation.0 > 1 {
            // It was away, and its replicas may have missed what has been seen elsewhere since.
            self.groups.values().for_each(|group| group.route.lock().note_ready(link.node.number, false));
        }
        self.doubt.notify_one();
        // Streams of groups that read here begin again; others are chosen at the next read.
        for (&id, group) in &self.groups {
            let mut stream = group.stream.lock();
            // A reader may have been quicker, and subscribed over this connection already.
            let mine = stream.asked.is_some_and(|(node, known)| node == link.node.number && known != generation);
            if mine {
                *stream = Stream { asked: Some((link.node.number, generation)), live: None };
                self.cache.end_stream(id);
                drop(stream);
                self.subscribe(id, link, generation);
            }
        }
    }

    fn handle_reply(&self, link: &Arc<Link<Shared>>, generation: Generation, expect: Expect, reply: &Reply) {
        let node = link.node.number;
        match (expect, reply) {
            (Expect::Stream { group }, Reply::Session(position)) => {
                let Some(known) = self.groups.get(&group) else { return };
                let mut stream = known.stream.lock();
                if stream.asked == Some((node, generation)) {
                    stream.live = Some(self.cache.begin_stream(group, position.index));
                    self.progress.settle(group, position.settled);
                }
            }
            (Expect::Stream { group }, _) => {
                // Refused: asked again at the next read.
                if let Some(known) = self.groups.get(&group) {
                    let mut stream = known.stream.lock();
                    if stream.asked == Some((node, generation)) {
                        *stream = Stream::default();
                    }
                }
            }
            // Nobody sees a registration: reads need not wait until their replica has it, and could not while that is cut off.
            (Expect::Session { group }, Reply::Session(_)) => self.learn_served(group, node),
            (Expect::Read { group, op, asked }, Reply::Read { result, position }) => {
                if let Some(stream) = self.source(group, node, generation) {
                    let question = fill::Question { group, op: &op, asked };
                    fill::read(&self.cache, stream, &question, result, position.index);
                }
                self.depend(&position.dependencies);
                self.progress.see(group, position.index);
            }
            (
                Expect::Update { group, destinations, op, sequence, clock },
                Reply::Updated { outcome, position, is_noted, elsewhere },
            ) => {
                self.learn_served(group, node);
                let stream = self.source(group, node, generation).filter(|_| *is_noted);
                let kept = stream.map_or(Kept::Unnoted { asked: clock.effects(group) }, Kept::Noted);
                if destinations.len() > 1 {
                    let mut across = self.across.lock();
                    let (others, done) = (others(&destinations, group), (&*op, outcome));
                    let here = fill::update(&self.cache, group, &destinations, &op, outcome, position.index, kept);
                    let told = across.counted(sequence);
                    let learned = fill::elsewhere(&self.cache, &others, done, elsewhere, (&clock, told));
                    across.answer(sequence, learned.into_iter().chain(here.then_some(group)));
                } else {
                    fill::update(&self.cache, group, &destinations, &op, outcome, position.index, kept);
                }
                self.depend(&position.dependencies);
                self.progress.see(group, position.index);
            }
            (Expect::Session { .. } | Expect::Read { .. } | Expect::Update { .. } | Expect::Other, _) => {}
        }
    }

    fn handle_silence(&self, link: &Arc<Link<Shared>>) {
        let _ = link.post(Request::KeepAlive { session: self.session }, Expect::Other);
    }

    fn handle_event(&self, link: &Arc<Link<Shared>>, generation: Generation, event: Event) {
        let Event { group, index, invalidated, invalidate_all, orphans, settled, executed, dependencies } = event;
        let Some(stream) = self.source(group, link.node.number, generation) else { return };
        if invalidate_all {
            self.cache.invalidate_all(group, stream, index);
        }
        // Before that these keys have changed, so that they are never missed.
        for executed in &executed {
            self.across.lock().execute(&self.cache, (group, stream), executed, index);
        }
        self.cache.invalidate(group, stream, &invalidated, (index, settled));
        self.depend(&dependencies);
        self.orphans.put(group, &orphans);
    }

    fn handle_lost(&self, link: &Arc<Link<Shared>>, generation: Generation) {
        for (&id, group) in &self.groups {
            let mut stream = group.stream.lock();
            if stream.asked == Some((link.node.number, generation)) {
                *stream = Stream::default();
                // Under the same lock: a new one must not begin before.
                self.cache.end_stream(id);
            }
        }
    }
}

/// What an update names beside the group that answers.
fn others(destinations: &[Destination], group: GroupId) -> Vec<Destination> {
    destinations.iter().filter(|destination| destination.group != group).cloned().collect()
}

impl Shared {
    /// Asks for the stream of a group, as its state says by now. If there is no room to ask, the next read does.
    pub(super) fn subscribe(&self, group: GroupId, link: &Link<Shared>, generation: Generation) {
        let request = Request::Subscribe { group, session: self.session };
        if link.post(request, Expect::Stream { group }) {
            return;
        }
        if let Some(known) = self.groups.get(&group) {
            let mut stream = known.stream.lock();
            if stream.asked == Some((link.node.number, generation)) {
                *stream = Stream::default();
            }
        }
    }

    /// Who has served what only a primary serves is the primary.
    fn learn_served(&self, group: GroupId, node: ReplicaId) {
        if let Some(known) = self.groups.get(&group) {
            known.route.lock().learn_primary(node);
        }
    }
}
