//! One node: a process's replicas, their log and state, and its face to peers and clients.

use std::collections::BTreeMap;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use metadata::operate::Refusal;
use multicast::Membership;
use multicast::ids::{GroupId, Incarnation, ReplicaId};
use net::wan::WanSide;
use net::{Endpoint, EndpointConfig, LinkConfig, LinkReceiver, PeerLink};
use parking_lot::{Condvar, Mutex};
use replica::Leases;
use tokio::runtime::Runtime;

use crate::clock::Clock;
use crate::collector::{BlobDeleter, Collector, CollectorTimes};
use crate::config::{NodeConfig, NodeInfo};
use crate::copy::Copies;
use crate::error::{Error, Result};
use crate::group::CopyWay;
use crate::group::mailbox::Input;
use crate::members::Members;
use crate::nodes::Nodes;
use crate::recovery;
use crate::replicas::{Group, Replicas};
use crate::server::accept;
use crate::server::client::Clients;
use crate::server::peers::{KNOCK_CHANNEL, PEER_CHANNEL, Router};
use crate::server::whom::Whom;
use crate::status::{CollectorStatus, GroupStatus, NodeStatus, PeerStatus, StorageStatus, why_kept};
use crate::storage::folder::DataFolder;
use crate::storage::hosting::Hosting;
use crate::storage::state::StateDb;
use crate::storage::wal::Wal;

/// Longest frame between nodes: the longest message and what is around it.
const FRAME_BYTES_MAX: usize = multicast::message::MESSAGE_BYTES_MAX + (1 << 20);
const HOUSEKEEPING: Duration = Duration::from_secs(1);
/// A replica's thread that does not say within this time how it is, is late.
const REPORT_TIMEOUT: Duration = Duration::from_secs(1);
/// A log that is too long is told of so often.
const ALARM_PAUSE: Duration = Duration::from_secs(600);
/// A node that stops waits so long for others to take over what it leads.
const HAND_OVER_TIMEOUT: Duration = Duration::from_millis(300);
/// A node that does not answer for so long is not there.
const KNOCK_PATIENCE: Duration = Duration::from_secs(5);
/// What telling peers and clients of a shutdown may take.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(300);
/// What a shutdown may take for flushing; what is not flushed is replayed from the log.
const FLUSH_TIMEOUT: Duration = Duration::from_millis(1200);

/// A running node. Dropping it without [`Node::shutdown`] is a crash as far as its data are concerned.
pub struct Node {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    runtime: NetRuntime,
    endpoint: Endpoint,
}

/// The network's runtime. Tokio's own does not like to be dropped inside a task, where a caller may be.
struct NetRuntime(Option<Runtime>);

impl Drop for NetRuntime {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// What a node's tasks and threads share.
pub(crate) struct Shared {
    pub config: NodeConfig,
    pub name: String,
    pub replicas: Replicas,
    pub router: Arc<Router>,
    pub nodes: Arc<Nodes>,
    pub clients: Clients,
    /// Copies of states, from and to this node.
    pub copies: Arc<Copies>,
    pub copy_way: CopyWay,
    /// Held while a replica begins or ends.
    pub hosting: Mutex<Hosting>,
    /// When sessions were last heard of, for whichever replicas are primaries.
    pub leases: Arc<Mutex<Leases>>,
    /// Whose the sessions are.
    pub whom: Whom,
    pub wal: Arc<Wal>,
    pub state: StateDb,
    pub clock: Clock,
    listen: SocketAddr,
    pub ending: Ending,
    /// What the collector has last said of itself.
    pub collector: Mutex<Option<CollectorStatus>>,
    /// Held as long as the node works on its data.
    _folder: DataFolder,
}

/// Whether the node is about to end, and why.
#[derive(Clone, Default)]
pub(crate) struct Ending {
    state: Arc<(Mutex<EndingState>, Condvar)>,
}

#[derive(Default)]
struct EndingState {
    failure: Option<String>,
    stopping: bool,
}

impl Node {
    /// Recovers what is on disk, starts the replicas and listens. Runs on threads of its own, so it may be called from
    /// anywhere. Returns once clients can connect.
    pub fn start(config: NodeConfig) -> Result<Node> {
        config.check()?;
        let me = config.node()?.clone();
        let folder = DataFolder::open(&config.data_dir, &recovery::stamp(&config), config.first_start)?;
        let ending = Ending::default();
        let wal = {
            let ending = ending.clone();
            Arc::new(recovery::open_log(&folder, &config, Box::new(move |error| ending.fail(&error)))?)
        };
        let hosting = Hosting::open(folder.hosting(), folder.incarnation())?;
        let mut hosted = hosting.groups(&config, folder.incarnation());
        hosted.retain(|id, _| config.groups.iter().any(|group| group.id == *id));
        let state = recovery::open_state(&folder, &config, &hosted, (hosting.gone(), &wal))?;
        let members = Members::open(folder.directory())?;
        let runtime = net::runtime("net").map_err(|source| Error::Thread { what: "the network's thread", source })?;
        let handle = runtime.handle().clone();
        let runtime = NetRuntime(Some(runtime));
        let endpoint = {
            let _inside = handle.enter();
            Endpoint::bind(endpoint_config(&config, &me)?)?
        };
        let copy_way = CopyWay {
            copies: Arc::default(),
            nodes: Arc::new(Nodes::new(vec![me.clone()])),
            endpoint: endpoint.clone(),
            runtime: handle,
        };
        if folder.incarnation() != Incarnation::GENESIS {
            let incarnation = folder.incarnation();
            tracing::info!(%incarnation, "this is not the disk of the founding: it counts in groups that have taken it in");
        }
        let shared = Arc::new(Shared {
            router: Arc::new(Router::new(config.number, members)),
            nodes: copy_way.nodes.clone(),
            clients: Clients::new(config.limits.clients_max),
            config,
            name: me.name,
            replicas: Replicas::default(),
            copies: copy_way.copies.clone(),
            copy_way,
            hosting: Mutex::new(hosting),
            leases: Arc::new(Mutex::new(Leases::default())),
            whom: Whom::default(),
            wal,
            state,
            clock: Clock::start(),
            listen: endpoint.local_addr(),
            ending,
            collector: Mutex::default(),
            _folder: folder,
        });
        let mut node = Node { shared, threads: Vec::new(), runtime, endpoint };
        node.learn_nodes(node.shared.config.nodes.clone());
        node.start_replicas(&hosted)?;
        if let Some(runtime) = &node.runtime.0 {
            runtime.spawn(accept::accept(node.endpoint.clone(), node.shared.clone()));
        }
        tracing::info!(node = %node.shared.config.number, name = node.shared.name, listen = %node.shared.listen, "node started");
        Ok(node)
    }

    /// The node's state. Asks every replica's thread, so it takes a moment on a busy node.
    #[must_use]
    pub fn status(&self) -> NodeStatus {
        self.shared.status()
    }

    /// The address bound.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.shared.listen
    }

    /// Why the node has stopped by itself, if it has: its log failed, its state is damaged. Its process should end.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        self.shared.ending.state.0.lock().failure.clone()
    }

    /// Waits, at most so long, until the node has stopped by itself; says why.
    #[must_use]
    pub fn wait_failed(&self, timeout: Duration) -> Option<String> {
        self.shared.ending.wait(timeout);
        self.failure()
    }

    /// There are these nodes, too: opens ways to those that are not known yet.
    pub fn learn_nodes(&self, nodes: Vec<NodeInfo>) {
        let Some(runtime) = &self.runtime.0 else { return };
        let shared = &self.shared;
        let _inside = runtime.enter();
        for node in nodes {
            let number = node.number;
            if number == shared.config.number || !shared.nodes.add(node.clone()) {
                continue;
            }
            if dials(&node.name, &shared.name) {
                runtime.spawn(knock(self.endpoint.clone(), node.clone()));
            }
            let (link, receiver) = peer_link(&self.endpoint, &shared.name, node);
            shared.router.connect(number, link);
            runtime.spawn(shared.router.clone().receive(number, receiver));
        }
    }

    /// Begins a replica of a group that knows this node as a member, if there is none: what it has had is lost.
    pub fn host(&self, group: GroupId) -> std::result::Result<Incarnation, Refusal> {
        self.shared.host(group)
    }

    /// Ends the replica that only the configuration gives this node, of a group that has others as its `members`, and deletes its
    /// data.
    pub fn unhost_unwanted(&self, group: GroupId, members: Membership) -> std::result::Result<(), Refusal> {
        self.shared.unhost_unwanted(group, members)
    }

    /// Collects blobs of the groups whose primary is on this node, from now on and until the node ends.
    pub fn collect(&mut self, deleter: Arc<dyn BlobDeleter>, times: CollectorTimes) -> Result<()> {
        let collector = Collector::new(self.shared.clone(), deleter, times);
        self.spawn("collector".into(), move || collector.run())
    }

    /// Ends the node in order; takes at most about two seconds. All that was acknowledged is on disk anyway.
    pub fn shutdown(mut self) {
        self.stop(true);
    }

    /// None runs before all can.
    fn start_replicas(&mut self, hosted: &BTreeMap<GroupId, Incarnation>) -> Result<()> {
        let mut opened = Vec::new();
        for (id, &incarnation) in hosted {
            let info = self.shared.config.groups.iter().find(|group| group.id == *id);
            opened.extend(info.map(|info| self.shared.open(info, incarnation)).transpose()?);
        }
        for (group, _) in &opened {
            self.shared.router.open(group.id, group.mailbox.clone());
        }
        for (group, driver) in opened {
            self.shared.run(group, driver)?;
        }
        let shared = self.shared.clone();
        self.spawn("keeper".into(), move || shared.keep_house())
    }

    fn spawn(&mut self, name: String, run: impl FnOnce() + Send + 'static) -> Result<()> {
        let thread = std::thread::Builder::new().name(name).spawn(run);
        self.threads.push(thread.map_err(|source| Error::Thread { what: "a thread", source })?);
        Ok(())
    }

    fn stop(&mut self, orderly: bool) {
        let Some(runtime) = self.runtime.0.take() else { return };
        if orderly {
            self.hand_over();
        }
        self.shared.ending.stop();
        if !orderly {
            self.shared.wal.abandon();
        }
        // From here on no replica begins.
        let hosting = self.shared.hosting.lock();
        let groups = self.shared.replicas.all();
        for group in &groups {
            group.mailbox.push(Input::Stop);
        }
        drop(hosting);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
        for group in &groups {
            group.join();
        }
        self.shared.copies.end();
        if orderly {
            self.close_endpoint(&runtime);
            self.shared.wal.stop();
            self.shared.flush_before(Instant::now() + FLUSH_TIMEOUT);
        }
        self.shared.state.stop_background_work();
        // On a thread of its own, because whoever stops the node may be a task itself. Tasks hold the data directory.
        let end = std::thread::spawn(move || runtime.shutdown_timeout(Duration::from_millis(500)));
        let _ = end.join();
    }

    /// Lets other voters be primaries, so that clients need not wait until an election.
    fn hand_over(&self) {
        let hand_over = |group: &Arc<Group>| {
            let (done, is_done) = mpsc::channel();
            group.mailbox.push(Input::HandOver(done));
            is_done
        };
        let handed_over: Vec<mpsc::Receiver<()>> = self.shared.replicas.all().iter().map(hand_over).collect();
        let deadline = Instant::now() + HAND_OVER_TIMEOUT;
        for is_done in handed_over {
            let _ = is_done.recv_timeout(deadline.saturating_duration_since(Instant::now()));
        }
    }

    /// Peers and clients need not find out by themselves.
    fn close_endpoint(&self, runtime: &Runtime) {
        let endpoint = self.endpoint.clone();
        let (closed, wait) = mpsc::channel();
        runtime.spawn(async move {
            endpoint.close().await;
            let _ = closed.send(());
        });
        let _ = wait.recv_timeout(CLOSE_TIMEOUT);
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.stop(false);
    }
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Node({} {})", self.shared.config.number, self.shared.name)
    }
}

impl Shared {
    pub(crate) fn status(&self) -> NodeStatus {
        let replicas = self.replicas.all();
        let reports: Vec<_> = replicas.iter().map(|group| group.report()).collect();
        let deadline = Instant::now() + REPORT_TIMEOUT;
        let timely = |report: mpsc::Receiver<GroupStatus>| {
            report.recv_timeout(deadline.saturating_duration_since(Instant::now())).ok()
        };
        let mut groups: Vec<GroupStatus> = reports.into_iter().filter_map(timely).collect();
        for group in &mut groups {
            self.whom.name(&mut group.unfinished);
            self.whom.name(&mut group.held);
        }
        let storage = self.storage_status(&groups);
        let is_late = |replica: &&Arc<Group>| groups.iter().all(|group| group.group != replica.id.0);
        let late: Vec<GroupStatus> = replicas.iter().filter(is_late).map(|replica| self.late(replica.id)).collect();
        groups.extend(late);
        NodeStatus {
            node: self.config.number.0,
            name: self.name.clone(),
            region: self.config.node().map(|node| node.region.clone()).unwrap_or_default(),
            pid: std::process::id(),
            listen: self.listen.to_string(),
            uptime_ms: self.clock.uptime_ms(),
            failure: self.ending.state.0.lock().failure.clone(),
            clients: self.clients.connected(),
            storage,
            peers: self
                .nodes
                .all()
                .into_iter()
                .filter_map(|node| Some((node.name.clone(), self.peer_status(&node)?)))
                .collect(),
            collector: self.collector.lock().clone(),
            groups,
        }
    }

    /// What is known of a replica whose thread has not said how it is.
    fn late(&self, group: GroupId) -> GroupStatus {
        let info = self.config.groups.iter().find(|info| info.id == group);
        let name = info.map(|info| info.name.clone()).unwrap_or_default();
        GroupStatus { group: group.0, name, role: "late".into(), ..GroupStatus::default() }
    }

    /// Waits, at most so long; true if the node is to end.
    pub(crate) fn wait_for_end(&self, timeout: Duration) -> bool {
        self.ending.wait(timeout)
    }

    fn peer_status(&self, node: &NodeInfo) -> Option<PeerStatus> {
        let status = self.router.link(node.number)?.status();
        Some(PeerStatus {
            connected: status.connected_since.is_some(),
            rtt_us: status.rtt.map(|rtt| u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX)),
            dropped_frames: status.dropped,
            problem: status.last_error,
        })
    }

    fn storage_status(&self, groups: &[GroupStatus]) -> StorageStatus {
        let (log, state) = (self.wal.figures(), self.state.figures());
        let log_bytes_max = self.config.limits.log_bytes_max;
        let name = |number: u32| self.nodes.get(ReplicaId(number)).map_or_else(|| number.to_string(), |node| node.name);
        let why = || log.kept_by.map(|kept| why_kept(kept, groups, name)).unwrap_or_else(|| "it is in use".into());
        let too_long = (log.bytes > log_bytes_max)
            .then(|| format!("the log has {} MiB, more than {} MiB: {}", log.bytes >> 20, log_bytes_max >> 20, why()));
        StorageStatus {
            log_bytes: log.bytes,
            log_segments: log.segments,
            log_flushes: log.flushes,
            log_records: log.records,
            log_cache_bytes: log.cache_bytes,
            state_cache_bytes: state.cache_bytes,
            state_buffer_bytes: state.buffer_bytes,
            state_bytes: state.disk_bytes,
            resident_bytes: resident_bytes(),
            log_bytes_max,
            log_kept_by: log.kept_by.map(|kept| kept.group.0),
            log_problem: too_long,
        }
    }

    /// Flushes the states now and then, so that the log can be cut, and reminds the replicas of their leases.
    fn keep_house(&self) {
        let mut last_flush = Instant::now();
        let mut last_alarm: Option<Instant> = None;
        while !self.ending.wait(HOUSEKEEPING) {
            // Two segments are always there; a third means that entries pile up.
            let log_is_long = self.wal.figures().bytes > 3 * self.config.limits.log_segment_bytes;
            if last_flush.elapsed() >= self.config.timeouts.state_flush || log_is_long {
                if let Err(error) = self.flush_all() {
                    return self.ending.fail(&error);
                }
                last_flush = Instant::now();
            }
            if let Err(error) = self.router.members().save() {
                tracing::warn!(%error, "who belongs to the groups could not be written down");
            }
            if self.wal.figures().bytes > self.config.limits.log_bytes_max
                && last_alarm.is_none_or(|last| last.elapsed() >= ALARM_PAUSE)
            {
                last_alarm = Some(Instant::now());
                if let Some(problem) = self.status().storage.log_problem {
                    tracing::error!(problem, "the log is too long");
                }
            }
            self.wal.mark();
            self.leases.lock().forget_silent(self.clock.now(), 2 * lease_ms(&self.config));
            for group in self.replicas.all() {
                group.mailbox.push(Input::Housekeep);
            }
        }
        if let Err(error) = self.router.members().save() {
            tracing::warn!(%error, "who belongs to the groups could not be written down");
        }
        // A node that failed stops answering, so that clients turn to others.
        for group in self.replicas.all() {
            group.mailbox.push(Input::Stop);
        }
    }

    fn flush_all(&self) -> Result<()> {
        for group in self.replicas.all() {
            // None ends meanwhile, and what has ended is not flushed.
            let _hosting = self.hosting.lock();
            if self.replicas.get(group.id).is_some_and(|found| Arc::ptr_eq(&found, &group)) {
                group.state.flush(group.view.front().applied)?;
            }
        }
        Ok(())
    }

    fn flush_before(&self, deadline: Instant) {
        let (done, wait) = mpsc::channel();
        let groups: Vec<_> =
            self.replicas.all().iter().map(|group| (group.state.clone(), group.view.front().applied)).collect();
        let flush = move || {
            for (state, applied) in groups {
                if let Err(error) = state.flush(applied) {
                    tracing::warn!(%error, "state not flushed at shutdown; the log has it");
                }
            }
            let _ = done.send(());
        };
        if std::thread::Builder::new().name("flush".into()).spawn(flush).is_ok() {
            let _ = wait.recv_timeout(deadline.saturating_duration_since(Instant::now()));
        }
    }
}

impl Ending {
    pub(crate) fn fail(&self, reason: &dyn std::fmt::Display) {
        tracing::error!(%reason, "the node stops");
        let (state, changed) = &*self.state;
        state.lock().failure.get_or_insert_with(|| reason.to_string());
        changed.notify_all();
    }

    fn stop(&self) {
        let (state, changed) = &*self.state;
        state.lock().stopping = true;
        changed.notify_all();
    }

    /// True if the node is to end.
    pub(crate) fn is_set(&self) -> bool {
        let state = self.state.0.lock();
        state.stopping || state.failure.is_some()
    }

    /// Waits, at most so long; true if the node is to end.
    fn wait(&self, timeout: Duration) -> bool {
        let (state, changed) = &*self.state;
        let mut state = state.lock();
        let ending = |state: &mut EndingState| state.stopping || state.failure.is_some();
        if !ending(&mut state) {
            changed.wait_while_for(&mut state, |state| !ending(state), timeout);
        }
        ending(&mut state)
    }
}

pub(crate) fn lease_ms(config: &NodeConfig) -> u64 {
    u64::try_from(config.timeouts.session_lease.as_millis()).unwrap_or(u64::MAX)
}

pub(crate) fn endpoint_config(config: &NodeConfig, me: &NodeInfo) -> Result<EndpointConfig> {
    let limits = &config.limits;
    let mut endpoint = EndpointConfig::node(config.listen, config.identity.clone());
    endpoint.limits.frame_len_bytes_max = FRAME_BYTES_MAX;
    endpoint.limits.queue_frames_max = limits.client_queue_frames_max;
    endpoint.limits.queue_bytes_max = limits.client_queue_bytes_max;
    endpoint.limits.client_connections_max = limits.clients_max;
    endpoint.limits.connections_max = limits.clients_max + 4 * config.nodes.len();
    if let Some(wan) = &config.wan {
        let mut nodes = Vec::new();
        for node in &config.nodes {
            let unknown = |error| Error::Config(format!("node {}: address {}: {error}", node.name, node.address));
            let address = node.address.to_socket_addrs().map_err(unknown)?.next();
            nodes.extend(address.map(|address| (address, node.region.clone())));
        }
        endpoint.wan = Some(WanSide::node(wan.clone(), me.region.clone(), nodes));
    }
    Ok(endpoint)
}

/// Which of two nodes opens the connection between them.
fn dials(name: &str, other: &str) -> bool {
    name < other
}

/// Tells a node that dials this one that it can do so now. If it is not there it will dial once it is.
async fn knock(endpoint: Endpoint, node: NodeInfo) {
    let heard = async {
        let address = tokio::net::lookup_host(node.address.as_str()).await.ok()?.next()?;
        let connection = endpoint.connect(address, &node.name).await.ok()?;
        let _channel = connection.open(KNOCK_CHANNEL).await.ok()?;
        connection.closed().await;
        Some(())
    };
    let _ = tokio::time::timeout(KNOCK_PATIENCE, heard).await;
}

/// The way to another node, and what comes from there. One of the two dials.
pub(crate) fn peer_link(endpoint: &Endpoint, own_name: &str, node: NodeInfo) -> (PeerLink, LinkReceiver) {
    // A message that waited long is worth nothing: its sender has repeated it.
    let backlog = LinkConfig { backlog_frames_max: 64, ..LinkConfig::default() };
    if dials(own_name, &node.name) {
        PeerLink::dial(endpoint, node.address, node.name, PEER_CHANNEL, backlog)
    } else {
        PeerLink::passive(node.name, backlog)
    }
}

/// `statm` counts in these.
const PAGE_BYTES: u64 = 4096;

fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: Option<u64> = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok());
    pages.unwrap_or(0) * PAGE_BYTES
}
