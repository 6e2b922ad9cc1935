//! What connections' tasks work on: the session's clock, streams and cache, moved on by replies and events in the order in
//! which they come.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use metadata::op::FsOp;
use metadata::protocol::{Event, Reply, Request};
use metadata::read::ReadOp;
use multicast::command::Destination;
use multicast::ids::{GroupId, LogIndex, ReplicaId, SessionId};
use parking_lot::Mutex;

use super::fill::{self, Kept};
use super::link::{Generation, Handler, Link};
use super::progress::Progress;
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
    pub(super) window: Mutex<SequenceWindow>,
    pub(super) groups: BTreeMap<GroupId, Group>,
}

/// One group, seen from this session.
pub struct Group {
    pub(super) route: Mutex<Route>,
    pub(super) stream: Mutex<Stream>,
    /// Registered in this group.
    pub(super) session_open: AtomicBool,
    /// Taken while someone registers.
    pub(super) opening: tokio::sync::Mutex<()>,
}

/// Where a group's news come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stream {
    /// The connection that was asked for the stream.
    pub(super) asked: Option<(ReplicaId, Generation)>,
    /// It has begun.
    pub(super) live: bool,
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
        /// The effects that had been seen of the group when it was asked.
        asked: LogIndex,
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

/// A command under way; dropping it finishes it.
pub struct Turn<'a> {
    pub(super) shared: &'a Shared,
    pub(super) sequence: u64,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.shared.window.lock().finish(self.sequence);
    }
}

impl Shared {
    pub fn begin(&self) -> Turn<'_> {
        Turn { shared: self, sequence: self.window.lock().begin() }
    }

    /// True if `(node, generation)` is where the news of `group` come from, and they do come.
    fn is_source(&self, group: GroupId, node: ReplicaId, generation: Generation) -> bool {
        self.groups.get(&group).is_some_and(|group| {
            let stream = group.stream.lock();
            stream.live && stream.asked == Some((node, generation))
        })
    }
}

impl Handler for Shared {
    type Expect = Expect;

    fn handle_connected(&self, link: &Arc<Link<Shared>>, generation: Generation) {
        // Streams of groups that read here begin again; others are chosen at the next read.
        for (&id, group) in &self.groups {
            let mut stream = group.stream.lock();
            let mine = stream.asked.is_some_and(|(node, _)| node == link.node.number);
            if mine {
                *stream = Stream { asked: Some((link.node.number, generation)), live: false };
                drop(stream);
                link.post(Request::Subscribe { group: id, session: self.session }, Expect::Stream { group: id });
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
                    stream.live = true;
                    drop(stream);
                    self.cache.begin_stream(group, position.index);
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
            (Expect::Session { group }, Reply::Session(position)) => {
                self.learn_served(group, node);
                self.progress.depend(&position.dependencies);
                self.progress.see(group, position.index);
            }
            (Expect::Read { group, op, asked }, Reply::Read { result, position }) => {
                if self.is_source(group, node, generation) {
                    fill::read(&self.cache, group, &op, result, position.index, asked);
                }
                self.progress.depend(&position.dependencies);
                self.progress.see(group, position.index);
            }
            (Expect::Update { group, destinations, op, asked }, Reply::Updated { outcome, position, is_noted }) => {
                self.learn_served(group, node);
                let is_kept = *is_noted && self.is_source(group, node, generation);
                let kept = if is_kept { Kept::Noted } else { Kept::Unnoted { asked } };
                fill::update(&self.cache, group, &destinations, &op, outcome, position.index, kept);
                self.progress.depend(&position.dependencies);
                self.progress.see(group, position.index);
            }
            (Expect::Session { .. } | Expect::Read { .. } | Expect::Update { .. } | Expect::Other, _) => {}
        }
    }

    fn handle_event(&self, link: &Arc<Link<Shared>>, generation: Generation, event: Event) {
        let Event { group, index, invalidated, invalidate_all, orphans } = event;
        if !self.is_source(group, link.node.number, generation) {
            return;
        }
        if invalidate_all {
            self.cache.invalidate_all(group);
        }
        self.cache.invalidate(group, &invalidated, index);
        self.orphans.put(group, &orphans);
    }

    fn handle_lost(&self, link: &Arc<Link<Shared>>, generation: Generation) {
        for (&id, group) in &self.groups {
            let mut stream = group.stream.lock();
            if stream.asked == Some((link.node.number, generation)) {
                *stream = Stream::default();
                drop(stream);
                self.cache.end_stream(id);
            }
        }
    }
}

impl Shared {
    /// Who has served what only a primary serves is the primary.
    fn learn_served(&self, group: GroupId, node: ReplicaId) {
        if let Some(known) = self.groups.get(&group) {
            known.route.lock().learn_primary(node);
        }
    }
}
