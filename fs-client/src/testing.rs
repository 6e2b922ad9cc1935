//! A cluster in memory for tests: the real namespace, several groups, any number of clients with real caches; no network,
//! no log. Commands execute one after the other.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use metadata::namespace::{Genesis, genesis, read};
use metadata::op::FsOp;
use metadata::operate::{Directory, Operation};
use metadata::outcome::Outcome;
use metadata::protocol::Reply;
use metadata::read::{ReadOp, ReadResult};
use metadata::types::TimeNs;
use metadata::{MemStore, Namespace, codec};
use multicast::command::Command;
use multicast::ids::{CommandId, GroupId, LogIndex, ReplicaId, SessionId, VectorClock};
use parking_lot::Mutex;

use crate::cache::Cache;
use crate::config::{ClientConfig, Consistency, GroupInfo, NodeInfo};
use crate::errno::Errno;
use crate::error::{Error, Result};
use crate::fs::Fs;
use crate::session::fill;
use crate::session::pending::Sent;
use crate::session::progress::{Progress, StreamId};
use crate::session::window::{SequenceWindow, Turn};
use crate::volume::{BoxFuture, OrphanBox, Update, Volume};

/// The groups' states and the clients that listen.
pub struct MemCluster {
    state: Mutex<State>,
    updates: AtomicU64,
    reads: AtomicU64,
    /// Of clients that come.
    pub consistency: Mutex<Consistency>,
    /// While set, updates fail as if no quorum answered.
    pub cut: AtomicBool,
    /// While set, reads are not answered.
    pub mute: AtomicBool,
    /// What becomes of the next updates.
    fates: Mutex<VecDeque<Fate>>,
    /// What was sent and has not arrived.
    late: Mutex<Vec<(CommandId, Arc<FsOp>)>>,
    /// What clients have asked, in order: every request that leaves one.
    trips: Mutex<Vec<String>>,
}

/// What becomes of an update whose client hears nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is answered.
    Answered,
    /// It is executed, and the answer takes its time.
    AnswerLate,
    /// It is executed, and the answer is lost.
    AnswerLost,
    /// It arrives when [`MemCluster::deliver_late`] says so.
    Late,
    /// The group has forgotten the session.
    SessionLost,
}

struct State {
    groups: BTreeMap<GroupId, (Namespace<MemStore>, u64)>,
    clients: Vec<(SessionId, Arc<Cache>, Arc<OrphanBox>, Streams)>,
    replies: BTreeMap<CommandId, (GroupId, LogIndex, Outcome)>,
    now: i64,
}

type Streams = BTreeMap<GroupId, StreamId>;

/// One client of a [`MemCluster`].
pub struct MemVolume {
    cluster: Arc<MemCluster>,
    session: SessionId,
    cache: Arc<Cache>,
    progress: Arc<Progress>,
    orphans: Arc<OrphanBox>,
    streams: Streams,
    window: Arc<Mutex<SequenceWindow>>,
}

impl MemCluster {
    pub fn new(groups: u16) -> Arc<MemCluster> {
        let seed = Genesis { inline_bytes_max: 4096, uid: 0, gid: 0, mode: 0o755, time: TimeNs(1) };
        let groups = (0..groups).map(|number| {
            let (group, mut store) = (GroupId(number), MemStore::new());
            genesis(&mut store, group, &seed).unwrap();
            (group, (Namespace::open(group, store).unwrap(), 0))
        });
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        let (clients, replies) = (Vec::new(), BTreeMap::new());
        let state = State { groups: groups.collect(), clients, replies, now: now.as_nanos() as i64 };
        Arc::new(MemCluster {
            state: Mutex::new(state),
            updates: AtomicU64::new(0),
            reads: AtomicU64::new(0),
            consistency: Mutex::default(),
            cut: AtomicBool::new(false),
            mute: AtomicBool::new(false),
            fates: Mutex::default(),
            late: Mutex::default(),
            trips: Mutex::default(),
        })
    }

    /// What becomes of the next updates, one each; later ones are answered.
    pub fn doom(&self, fates: impl IntoIterator<Item = Fate>) {
        self.fates.lock().extend(fates);
    }

    /// What was late arrives.
    pub fn deliver_late(&self) {
        let mut state = self.state.lock();
        for (id, op) in self.late.lock().drain(..) {
            let _ = state.execute(id, &op);
        }
    }

    /// The requests since the last call: kind and groups.
    pub fn trips(&self) -> Vec<String> {
        std::mem::take(&mut *self.trips.lock())
    }

    fn note_trip(&self, op: &dyn std::fmt::Debug, groups: &[GroupId]) {
        let op = format!("{op:?}");
        let groups: Vec<String> = groups.iter().map(|group| group.0.to_string()).collect();
        let kind = op.split([' ', '{']).next().unwrap_or_default();
        self.trips.lock().push(format!("{kind} {}", groups.join("+")));
    }

    /// Updates and reads so far.
    pub fn counts(&self) -> (u64, u64) {
        (self.updates.load(Ordering::Relaxed), self.reads.load(Ordering::Relaxed))
    }

    pub fn config(&self) -> ClientConfig {
        let node =
            NodeInfo { number: ReplicaId(1), name: "n1".into(), region: "here".into(), address: "127.0.0.1:1".into() };
        let groups = self.state.lock().groups.keys().copied().collect::<Vec<_>>();
        let groups = groups.into_iter().map(|id| GroupInfo { id, name: id.to_string(), voters: vec![ReplicaId(1)] });
        let mut config = ClientConfig::new("here", vec![node], groups.collect());
        config.timeouts.deadline = Duration::from_secs(5);
        config.consistency = *self.consistency.lock();
        config
    }

    pub fn client(self: &Arc<Self>) -> Arc<MemVolume> {
        let mut state = self.state.lock();
        let session = SessionId(1000 + state.clients.len() as u64);
        let progress = Arc::new(Progress::new(session, state.groups.keys().copied()));
        let cache = Cache::new(progress.clone(), 10_000);
        let cache = Arc::new(match *self.consistency.lock() {
            Consistency::Causal => cache,
            Consistency::Linearizable => cache.mute(),
        });
        let orphans = Arc::new(OrphanBox::default());
        let mut streams = Streams::new();
        for (&group, (namespace, index)) in &mut state.groups {
            namespace.session_opened(session);
            streams.insert(group, cache.begin_stream(group, LogIndex(*index)));
        }
        state.clients.push((session, cache.clone(), orphans.clone(), streams.clone()));
        drop(state);
        let cluster = self.clone();
        Arc::new(MemVolume { cluster, session, cache, progress, orphans, streams, window: Arc::default() })
    }

    /// A file system with a bucket in `folder`.
    pub async fn fs(self: &Arc<Self>, folder: &std::path::Path) -> Arc<Fs> {
        Fs::start(self.client(), &self.config(), Some(store(folder).await))
    }
}

pub async fn store(folder: &std::path::Path) -> datastore::BlobStore {
    use datastore::{BlobStore, Bucket, BucketConfig, Cache, CacheConfig, Direct, Region, StoreLimits};
    let mut bucket = BucketConfig::new(folder.join("bucket").to_str().unwrap());
    bucket.create = true;
    let bucket = Bucket::open(&bucket).await.unwrap();
    let unique = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos();
    let cache = Cache::open(CacheConfig::new(folder.join(format!("cache-{unique}")))).unwrap();
    let buckets = [(Region(0), bucket)];
    BlobStore::new(Region(0), buckets, Some(cache), Arc::new(Direct), StoreLimits::default()).unwrap()
}

impl State {
    /// Once.
    fn execute(&mut self, id: CommandId, op: &FsOp) -> (GroupId, LogIndex, Outcome) {
        if let Some(reply) = self.replies.get(&id) {
            return reply.clone();
        }
        let destinations = op.destinations();
        let command = Command {
            id,
            acknowledged_below: id.sequence,
            clock: VectorClock::new(),
            destinations: destinations.clone(),
            payload: codec::encode_op(op),
        };
        self.now += 1000;
        let mut contributions = multicast::Contributions::new();
        if command.is_multi_group() {
            for group in command.groups() {
                let (namespace, _) = self.groups.get_mut(&group).unwrap();
                contributions.insert(group, namespace.contribute(&command));
            }
        }
        let mut answer = None;
        for group in command.groups() {
            let (namespace, index) = self.groups.get_mut(&group).unwrap();
            *index += 1;
            let bytes = namespace.execute(TimeNs(self.now), &command, &contributions);
            assert_eq!(namespace.failure(), None);
            let changes = namespace.take_changes();
            let at = LogIndex(*index);
            for (_, cache, orphans, streams) in &self.clients {
                cache.invalidate(group, streams[&group], &changes.keys, (at, LogIndex::ZERO));
                orphans.put(group, &changes.orphans);
            }
            answer.get_or_insert((group, at, codec::decode_outcome(&bytes).unwrap()));
        }
        let answer = answer.unwrap();
        self.replies.insert(id, answer.clone());
        answer
    }
}

impl MemVolume {
    /// Its stream of a group is behind everything that was prepared up to there.
    pub fn settle_stream(&self, group: GroupId, index: LogIndex) {
        self.cache.invalidate(group, self.streams[&group], &[], (index, index));
    }

    /// Has seen what `clock` says.
    pub fn depend(&self, clock: &VectorClock) {
        // Its updates are answered at once.
        let _ = self.progress.depend(clock);
    }

    fn attempt(&self, update: &Update, sent: &Sent) -> Result<Outcome> {
        let groups = update.groups();
        self.cluster.note_trip(&*update.op, &groups);
        let timeout = || {
            sent.become_uncertain();
            Error::Timeout { group: groups[0], elapsed_ms: 0, why: "nobody answers".into() }
        };
        if self.cluster.cut.load(Ordering::Relaxed) {
            return Err(timeout());
        }
        let fate = self.cluster.fates.lock().pop_front().unwrap_or(Fate::Answered);
        match fate {
            Fate::Late => {
                self.cluster.late.lock().push((sent.command.id, update.op.clone()));
                return Err(timeout());
            }
            Fate::SessionLost => {
                update.forget_id();
                return Err(Error::SessionLost { group: groups[0] });
            }
            Fate::Answered | Fate::AnswerLate | Fate::AnswerLost => {}
        }
        self.cluster.updates.fetch_add(1, Ordering::Relaxed);
        let mut state = self.cluster.state.lock();
        let (group, index, outcome) = state.execute(sent.command.id, &update.op);
        if fate == Fate::AnswerLost {
            return Err(timeout());
        }
        let kept = fill::Kept::Noted(self.streams[&group]);
        fill::update(&self.cache, group, &update.destinations, &update.op, &outcome, index, kept);
        self.progress.see(group, index);
        Ok(outcome)
    }
}

impl Volume for MemVolume {
    fn settle<'a>(&'a self, update: &'a Update) -> BoxFuture<'a, Result<Outcome>> {
        Box::pin(async move {
            // Elsewhere: an answer never comes on the asker's own stack.
            tokio::task::yield_now().await;
            let groups = update.groups();
            let registrations = || vec![0; groups.len()];
            let begin = || Turn::begin(&self.window, &groups);
            let sent = update.sent(self.session, VectorClock::new, registrations, begin);
            if !sent.resume() {
                update.forget_id();
                return Err(Error::Overtaken { group: groups[0] });
            }
            let is_late = self.cluster.fates.lock().front() == Some(&Fate::AnswerLate);
            let result = self.attempt(update, &sent);
            if is_late {
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
            if result.is_err() {
                update.rest();
            }
            result
        })
    }

    fn read(&self, group: GroupId, op: ReadOp) -> BoxFuture<'_, Result<ReadResult>> {
        Box::pin(async move {
            tokio::task::yield_now().await;
            self.cluster.reads.fetch_add(1, Ordering::Relaxed);
            self.cluster.note_trip(&op, &[group]);
            if self.cluster.mute.load(Ordering::Relaxed) {
                std::future::pending::<()>().await;
            }
            let state = self.cluster.state.lock();
            let Some((namespace, index)) = state.groups.get(&group) else { return Err(Errno::EIO.into()) };
            let result = read(namespace.store(), group, &op).unwrap();
            let question = fill::Question { group, op: &op, asked: LogIndex(*index) };
            fill::read(&self.cache, self.streams[&group], &question, &result, LogIndex(*index));
            self.progress.see(group, LogIndex(*index));
            Ok(result)
        })
    }

    fn cache(&self) -> &Arc<Cache> {
        &self.cache
    }

    fn session(&self) -> SessionId {
        self.session
    }

    fn orphans(&self) -> &Arc<OrphanBox> {
        &self.orphans
    }

    fn open_session(&self, _group: GroupId) -> BoxFuture<'_, Result<()>> {
        Box::pin(async {
            while self.cluster.cut.load(Ordering::Relaxed) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            Ok(())
        })
    }

    fn is_session_open(&self, _group: GroupId) -> bool {
        true
    }

    fn may_hold(&self, _group: GroupId) -> bool {
        true
    }

    fn operate(&self, _node: ReplicaId, _operation: Operation) -> BoxFuture<'_, Result<Reply>> {
        Box::pin(async { Err(Error::Closing) })
    }

    fn node_directory(&self, _node: ReplicaId) -> BoxFuture<'_, Result<Directory>> {
        Box::pin(async { Err(Error::Closing) })
    }

    fn node_status(&self, _node: ReplicaId) -> BoxFuture<'_, Result<Bytes>> {
        Box::pin(async { Err(Error::Closing) })
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }
}
