//! A cluster in memory for tests: the real namespace, several groups, any number of clients with real caches; no network,
//! no log. Commands execute one after the other.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use metadata::namespace::{Genesis, genesis, read};
use metadata::op::FsOp;
use metadata::outcome::Outcome;
use metadata::read::{ReadOp, ReadResult};
use metadata::types::TimeNs;
use metadata::{MemStore, Namespace, codec};
use multicast::command::Command;
use multicast::ids::{CommandId, GroupId, LogIndex, ReplicaId, SessionId, VectorClock};
use parking_lot::Mutex;

use crate::cache::Cache;
use crate::config::{ClientConfig, GroupInfo, NodeInfo};
use crate::errno::Errno;
use crate::error::{Error, Result};
use crate::fs::Fs;
use crate::session::fill;
use crate::session::progress::Progress;
use crate::volume::{BoxFuture, OrphanBox, Volume};

/// The groups' states and the clients that listen.
pub struct MemCluster {
    state: Mutex<State>,
    updates: AtomicU64,
    reads: AtomicU64,
    /// While set, updates fail as if no quorum answered.
    pub cut: AtomicBool,
}

struct State {
    groups: BTreeMap<GroupId, (Namespace<MemStore>, u64)>,
    clients: Vec<(SessionId, Arc<Cache>, Arc<OrphanBox>)>,
    now: i64,
}

/// One client of a [`MemCluster`].
pub struct MemVolume {
    cluster: Arc<MemCluster>,
    session: SessionId,
    cache: Arc<Cache>,
    progress: Arc<Progress>,
    orphans: Arc<OrphanBox>,
    sequence: AtomicU64,
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
        let state = State { groups: groups.collect(), clients: Vec::new(), now: now.as_nanos() as i64 };
        Arc::new(MemCluster {
            state: Mutex::new(state),
            updates: AtomicU64::new(0),
            reads: AtomicU64::new(0),
            cut: AtomicBool::new(false),
        })
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
        config.timeouts.deadline = std::time::Duration::from_secs(5);
        config
    }

    pub fn client(self: &Arc<Self>) -> Arc<MemVolume> {
        let mut state = self.state.lock();
        let session = SessionId(1000 + state.clients.len() as u64);
        let progress = Arc::new(Progress::new(state.groups.keys().copied()));
        let cache = Arc::new(Cache::new(progress.clone(), 10_000));
        let orphans = Arc::new(OrphanBox::default());
        for (&group, (namespace, index)) in &mut state.groups {
            namespace.session_opened(session);
            cache.begin_stream(group, LogIndex(*index));
        }
        state.clients.push((session, cache.clone(), orphans.clone()));
        drop(state);
        let cluster = self.clone();
        Arc::new(MemVolume { cluster, session, cache, progress, orphans, sequence: AtomicU64::new(1) })
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
    fn execute(&mut self, session: SessionId, sequence: u64, op: &FsOp) -> (GroupId, LogIndex, Outcome) {
        let destinations = op.destinations();
        let command = Command {
            id: CommandId { session, sequence },
            acknowledged_below: sequence,
            clock: VectorClock::new(),
            destinations: destinations.clone(),
            payload: codec::encode_op(op),
        };
        self.now += 1000;
        let mut contributions = BTreeMap::new();
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
            for (_, cache, orphans) in &self.clients {
                cache.invalidate(group, &changes.keys, at);
                orphans.put(group, &changes.orphans);
            }
            answer.get_or_insert((group, at, codec::decode_outcome(&bytes).unwrap()));
        }
        answer.unwrap()
    }
}

impl Volume for MemVolume {
    fn update(&self, op: FsOp) -> BoxFuture<'_, Result<Outcome>> {
        Box::pin(async move {
            // Elsewhere: an answer never comes on the asker's own stack.
            tokio::task::yield_now().await;
            let sequence = self.sequence.fetch_add(1, Ordering::Relaxed);
            if self.cluster.cut.load(Ordering::Relaxed) {
                return Err(Error::Timeout { group: GroupId::GLOBAL, elapsed_ms: 0, why: "cut".into() });
            }
            self.cluster.updates.fetch_add(1, Ordering::Relaxed);
            let mut state = self.cluster.state.lock();
            let (group, index, outcome) = state.execute(self.session, sequence, &op);
            fill::update(&self.cache, group, &op.destinations(), &op, &outcome, index, fill::Kept::Noted);
            self.progress.see(group, index);
            Ok(outcome)
        })
    }

    fn read(&self, group: GroupId, op: ReadOp) -> BoxFuture<'_, Result<ReadResult>> {
        Box::pin(async move {
            tokio::task::yield_now().await;
            self.cluster.reads.fetch_add(1, Ordering::Relaxed);
            let state = self.cluster.state.lock();
            let Some((namespace, index)) = state.groups.get(&group) else { return Err(Errno::EIO.into()) };
            let result = read(namespace.store(), group, &op).unwrap();
            fill::read(&self.cache, group, &op, &result, LogIndex(*index), LogIndex(*index));
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
        Box::pin(async { Ok(()) })
    }

    fn is_session_open(&self, _group: GroupId) -> bool {
        true
    }

    fn may_hold(&self, _group: GroupId) -> bool {
        true
    }

    fn node_status(&self, _node: ReplicaId) -> BoxFuture<'_, Result<Bytes>> {
        Box::pin(async { Err(Error::Closing) })
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }
}
