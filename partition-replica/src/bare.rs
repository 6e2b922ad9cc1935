//! A replica that orders, logs and tells, and executes nothing: the node's log, links and mailbox around the bare ordering
//! core. For measuring what multicast costs by itself; a node is [`crate::Node`].
//!
//! The core runs on the network's thread: it is quick, and the only one of its process. A follower flushes there, too, and takes
//! nothing in meanwhile. A node's replicas have threads of their own, as they work on a store, too, and must not keep each other
//! or the network waiting.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use multicast::command::Command;
use multicast::core::{Durable, SessionChange};
use multicast::ids::{CommandId, GroupId, Incarnation, LogIndex, SessionId};
use multicast::{Core, Inert, OrderState, Output, Time};
use net::{Endpoint, Role};

use crate::clock::Clock;
use crate::config::NodeConfig;
use crate::error::{Error, Result};
use crate::group::log_records;
use crate::group::mailbox::{Input, Mailbox};
use crate::members::Members;
use crate::node::{endpoint_config, peer_link};
use crate::recovery::core_config;
use crate::server::peers::{Outbox, PEER_CHANNEL, Router};
use crate::storage::disk::{Disk, DiskFile, RealDisk};
use crate::storage::folder::MEMBERS;
use crate::storage::wal::{Wal, WalConfig, WalRecord};

const ROUNDS_MAX: usize = 8;
const TURN_MAX: Duration = Duration::from_millis(500);
const TRIM_EVERY: Duration = Duration::from_secs(1);

/// Who asks for commands, on the replica's own thread.
pub trait Clients {
    /// How things stand, and what was settled since the last turn: executed or not. What is to be asked for now goes to
    /// `commands`; nothing is taken unless the replica is ready. Returns when the next turn must be at the latest, and none
    /// at the end.
    fn turn(
        &mut self,
        is_ready: bool,
        settled: &[(CommandId, bool)],
        commands: &mut Vec<Arc<Command>>,
    ) -> Option<Duration>;
}

/// How a bare replica runs.
#[derive(Clone, Debug)]
pub struct BareConfig {
    /// Numbers, addresses, groups, limits and times, as for a node. The node must have exactly one group; `data_dir` is where
    /// its log goes, and must be empty.
    pub node: NodeConfig,
    /// Whether the log is flushed to the disk before anything is acknowledged. Without, it is only written.
    pub flush: bool,
    /// Opened by the group's primary before it is ready.
    pub sessions: Vec<SessionId>,
}

/// Runs a replica on this thread until its clients end.
///
/// # Errors
/// What the disk or the network says.
pub fn run_bare(config: &BareConfig, clients: &mut dyn Clients) -> Result<()> {
    let node = &config.node;
    let group = node.local_groups().next().map(|group| group.id);
    let group = group.ok_or_else(|| Error::Config("a bare replica needs a group".into()))?;
    let wal = Arc::new(open_log(config)?);
    let mailbox = Arc::new(Mailbox::new(group, 1, node.limits.group_message_bytes_max));
    let me = node.node()?.clone();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|source| Error::Thread { what: "the network's thread", source })?;
    let endpoint = {
        let _inside = runtime.enter();
        Endpoint::bind(endpoint_config(node, &me)?)?
    };
    let members = Members::open(config.node.data_dir.join(MEMBERS))?;
    let router = Arc::new(Router::new(node.number, members));
    router.open(group, mailbox.clone());
    for other in node.nodes.iter().filter(|other| other.number != me.number) {
        let _inside = runtime.enter();
        let (link, receiver) = peer_link(&endpoint, &me.name, other.clone());
        router.connect(other.number, link);
        runtime.spawn(router.clone().receive(other.number, receiver));
    }
    runtime.spawn(accept(endpoint, router.clone(), node.clone(), me.name));
    let clock = Clock::start();
    let order = OrderState::new(group);
    let core = core_config(node, group, Incarnation::GENESIS);
    let core =
        Core::new(clock.now(), core, Durable::default(), order).map_err(|error| Error::State(error.to_string()))?;
    let outbox = Outbox::new(group);
    let settled = Vec::new();
    let mut replica = Bare {
        config,
        group,
        core,
        clock,
        mailbox,
        router,
        wal: wal.clone(),
        outbox,
        settled,
        more: true,
        trimmed_at: Instant::now(),
    };
    let ended = runtime.block_on(replica.run(clients));
    wal.abandon();
    runtime.shutdown_timeout(Duration::from_millis(500));
    ended
}

fn open_log(config: &BareConfig) -> Result<Wal> {
    let path = config.node.data_dir.clone();
    let disk: Arc<dyn Disk> = Arc::new(RealDisk::open(path.clone()).map_err(Error::file(path))?);
    let disk = if config.flush { disk } else { Arc::new(Unflushed(disk)) };
    let limits = &config.node.limits;
    let wal = WalConfig {
        segment_bytes: limits.log_segment_bytes,
        cache_bytes: limits.wal_cache_bytes(),
        stamp: u64::from(config.node.number.0),
        prepare_ahead: true,
    };
    Wal::open(disk, wal, Box::new(|error| tracing::error!(%error, "the log failed")))
}

/// As nodes do it: the one with the smaller name dials.
async fn accept(endpoint: Endpoint, router: Arc<Router>, config: NodeConfig, name: String) {
    while let Some(incoming) = endpoint.accept().await {
        let node = config.nodes.iter().find(|node| node.name == incoming.peer.name);
        match node.and_then(|node| router.link(node.number)) {
            Some(link)
                if incoming.peer.role == Role::Node && incoming.kind == PEER_CHANNEL && incoming.peer.name < name =>
            {
                link.attach(incoming);
            }
            _ => incoming.connection.close("not expected"),
        }
    }
}

struct Bare<'a> {
    config: &'a BareConfig,
    group: GroupId,
    core: Core,
    clock: Clock,
    mailbox: Arc<Mailbox>,
    router: Arc<Router>,
    wal: Arc<Wal>,
    outbox: Outbox,
    settled: Vec<(CommandId, bool)>,
    more: bool,
    trimmed_at: Instant,
}

impl Bare<'_> {
    async fn run(&mut self, clients: &mut dyn Clients) -> Result<()> {
        let (mut inputs, mut commands) = (Vec::new(), Vec::new());
        loop {
            let now = self.clock.now();
            for input in inputs.drain(..) {
                match input {
                    Input::Message { from, message, .. } => self.core.handle_message(now, from, message),
                    Input::Persisted(token) => self.core.handle_persisted(now, token),
                    _ => {}
                }
            }
            if self.core.poll_timeout().is_some_and(|due| due <= now) {
                self.core.handle_timeout(now);
            }
            self.apply(now);
            let is_ready = self.core.is_ready() && self.has_sessions(now);
            let Some(wait) = clients.turn(is_ready, &self.settled, &mut commands) else { return Ok(()) };
            self.settled.clear();
            for command in commands.drain(..) {
                self.core.handle_submit(now, command);
            }
            self.more = true;
            for _ in 0..ROUNDS_MAX {
                let said = self.do_outputs()?;
                if !self.apply(self.clock.now()) && !said {
                    self.more = false;
                    break;
                }
            }
            self.trim();
            let timeout = self.timeout().min(wait);
            self.mailbox.take_in_task(&mut inputs, timeout, self.core.unhurried()).await;
        }
    }

    fn timeout(&self) -> Duration {
        if self.more || !self.settled.is_empty() {
            return Duration::ZERO;
        }
        let now = self.clock.now();
        let due = self.core.poll_timeout();
        due.map_or(TURN_MAX, |due: Time| Duration::from_nanos(due.0.saturating_sub(now.0))).min(TURN_MAX)
    }

    /// True if all sessions are open; else asks for them.
    fn has_sessions(&mut self, now: Time) -> bool {
        let order = self.core.order();
        let missing: Vec<SessionId> =
            self.config.sessions.iter().copied().filter(|&session| !order.knows_session(session)).collect();
        for &session in &missing {
            self.core.handle_session(now, SessionChange::Open(session));
        }
        missing.is_empty()
    }

    fn do_outputs(&mut self) -> Result<bool> {
        let (mut records, mut newest, mut any) = (Vec::new(), None, false);
        while let Some(output) = self.core.poll_output() {
            any = true;
            match output {
                Output::Persist { token, writes } => {
                    log_records(self.group, writes, &mut records);
                    newest = Some(token);
                }
                Output::Send { to, message } => self.router.post(&mut self.outbox, to, message),
                Output::ReadLog { from, bytes_max } => self.read_log(from, bytes_max)?,
                Output::Reply(reply) => self.settled.push((reply.id, reply.result.is_ok())),
                Output::Declined { id, .. } => self.settled.push((id, false)),
                Output::Event(event) => tracing::info!(group = %self.group, ?event, "replica"),
                Output::SessionDeclined { .. } | Output::SendSnapshot { .. } => {}
            }
        }
        if any {
            self.router.flush(&mut self.outbox);
        }
        if let Some(token) = newest {
            self.persist(token, records);
        }
        Ok(any)
    }

    /// As a node does it: a follower writes in its own thread, which saves changes of threads. A primary has better to do while the disk
    /// flushes.
    fn persist(&mut self, token: u64, records: Vec<WalRecord>) {
        let waits = self.config.flush && self.core.primary() == Some(self.config.node.number);
        if !waits && self.wal.write_here(&records) {
            return self.core.handle_persisted(self.clock.now(), token);
        }
        let mailbox = self.mailbox.clone();
        self.wal.submit(records, Box::new(move || mailbox.push(Input::Persisted(token))));
    }

    fn apply(&mut self, now: Time) -> bool {
        let mut any = false;
        let tells = self.core.is_ready();
        while let Some(applied) = self.core.apply_next(now, &mut Inert) {
            any = true;
            if let Some(reply) = applied.reply.filter(|_| tells) {
                self.settled.push((reply.id, reply.result.is_ok()));
            }
        }
        if any {
            self.core.order_mut().discard_changes();
        }
        any
    }

    fn read_log(&mut self, from: LogIndex, bytes_max: usize) -> Result<()> {
        let last = self.wal.state(self.group).last.0;
        let entries = self.wal.read(self.group, from, last, bytes_max)?.into_iter();
        let entries =
            entries.map(|entry| multicast::Entry { index: entry.index, ballot: entry.ballot, record: entry.bytes });
        self.core.handle_log_read(self.clock.now(), entries.collect());
        Ok(())
    }

    /// What everybody has is dropped.
    fn trim(&mut self) {
        if self.trimmed_at.elapsed() < TRIM_EVERY {
            return;
        }
        self.trimmed_at = Instant::now();
        let keep = self.core.truncatable_below().min(self.core.order().applied());
        let through = LogIndex(keep.0.saturating_sub(1));
        let Some(ballot) = self.wal.ballot(self.group, through) else { return };
        self.wal.submit(vec![WalRecord::Trim { group: self.group, through, ballot }], Box::new(|| {}));
        self.core.truncate_below(keep);
    }
}

/// A folder whose files are written and not flushed.
struct Unflushed(Arc<dyn Disk>);

struct UnflushedFile(Arc<dyn DiskFile>);

impl Disk for Unflushed {
    fn list(&self) -> io::Result<Vec<String>> {
        self.0.list()
    }

    fn create(&self, name: &str, head: &[u8], len: u64) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(UnflushedFile(self.0.create(name, head, len)?)))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(UnflushedFile(self.0.open(name)?)))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.0.remove(name)
    }
}

impl DiskFile for UnflushedFile {
    fn len_bytes(&self) -> u64 {
        self.0.len_bytes()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.0.read_at(offset, buffer)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write_at(offset, bytes)
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}
