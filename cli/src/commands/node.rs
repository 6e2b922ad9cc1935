//! `globalfs node`: one process that hosts replicas.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use clap::Args;
use metadata::namespace::Genesis;
use metadata::types::TimeNs;
use net::Role;
use net::wan::Wan;
use partition_replica::{FirstStart, GroupInfo, Limits, Node, NodeConfig, NodeInfo, Timeouts};
use serde_json::json;
use tokio::runtime::Runtime;

use super::collect::{self, Deleter, Sweep};
use super::node_admin::{self, NodeAction};
use super::rebuild::{self, Started};
use super::service::{self, Parent};
use crate::args::Globals;
use crate::config::{self, Cluster, find};
use crate::exit::{Exit, Failure, OrExit, Result};
use crate::units::ByteSize;

/// How often the node is asked whether it has failed.
const WATCH_INTERVAL: Duration = Duration::from_millis(250);
/// A clean end must not take longer; what is not written then is in the log.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// Options.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
#[command(after_help = "Examples:
  globalfs node --config /etc/globalfs/cluster.toml --name eu-1
  globalfs node --config /etc/globalfs/cluster.toml --name eu-1 --found         at the cluster's very first start
  globalfs node --config /etc/globalfs/cluster.toml --name eu-1 --initialise    once, on a new disk in a running cluster
  RUST_LOG=debug globalfs node --name eu-1 --log-format json
  globalfs node drain eu-1                                                      all its replicas move elsewhere

A line `ready …` on stdout tells that clients can connect. SIGTERM and Ctrl-C end it cleanly; it may be killed at any
moment without loss.")]
pub struct NodeArgs {
    /// Which of the configuration's nodes to be
    #[arg(long, env = "GLOBALFS_NAME", hide_env_values = true, required = true)]
    name: Option<String>,
    /// Where to listen instead of where the configuration says, such as 0.0.0.0:4400
    #[arg(long, env = "GLOBALFS_LISTEN", hide_env_values = true)]
    listen: Option<SocketAddr>,
    /// Where to keep data instead of where the configuration says
    #[arg(long, value_name = "DIR", env = "GLOBALFS_NODE_DATA", hide_env_values = true)]
    data: Option<PathBuf>,
    /// The node's disk is new, the cluster is not: make an empty data directory its own
    ///
    /// The node begins anew. It counts in none of its groups until a quorum of the group's other voters has taken it in as
    /// another member, in place of the one on the lost disk; they do so by themselves. Without this option a node refuses to
    /// start on an empty directory, because its disk may only be missing.
    #[arg(long, conflicts_with = "found")]
    initialise: bool,
    /// The whole cluster starts for the very first time, and this node with it: make an empty data directory its own
    ///
    /// Never use it on a node that has run before: one that has lost its disk would pass for the voter that it was, and what
    /// was acknowledged could be lost. `globalfs init` and `globalfs up` leave a marker in the directories that they make,
    /// which does the same once.
    #[arg(long)]
    found: bool,
    /// Memory, instead of the configuration's limits.node_memory
    #[arg(long, value_name = "SIZE", env = "GLOBALFS_NODE_MEMORY", hide_env_values = true)]
    memory: Option<ByteSize>,
    #[command(flatten)]
    parent: Parent,
    #[command(subcommand)]
    action: Option<NodeAction>,
}

impl NodeArgs {
    /// True if a node is to run, and not to be looked after.
    pub fn is_service(&self) -> bool {
        self.action.is_none()
    }

    fn name(&self) -> Result<&str> {
        self.name.as_deref().ok_or_else(|| Failure::new(Exit::Usage, "which node is not said: give --name"))
    }
}

/// Runs until a signal, or until the node fails; or does something about nodes.
pub fn run(globals: &Globals, args: &NodeArgs) -> Result<Exit> {
    if let Some(action) = &args.action {
        return node_admin::run(globals, action);
    }
    let name = args.name()?;
    args.parent.bind()?;
    let cluster = find::cluster(globals.config.as_deref(), None)?;
    let config = node_config(&cluster, args)?;
    let listen = config.listen;
    let runtime = service::runtime()?;
    let signals = service::Signals::install(&runtime)?;
    let data = config.data_dir.clone();
    let Started { mut node, mut newcomer } = rebuild::start(&cluster, cluster.node(args.name()?)?, config, &runtime)?;
    collect(&cluster, args, &mut node, &runtime, &data)?;
    service::announce(&json!({ "node": name, "listen": listen, "pid": std::process::id() }));
    tracing::info!(node = name, %listen, "ready");
    let mut configuration = Watched::new(&cluster.file);
    let failure = loop {
        if let Some(signal) = signals.wait(&runtime, WATCH_INTERVAL) {
            tracing::info!(signal, "stopping");
            break None;
        }
        if let Some(failure) = node.failure() {
            rebuild::note_failure(&data, &failure);
            break Some(failure);
        }
        if let Some(cluster) = configuration.changed() {
            node.learn_nodes(node_infos(&cluster));
        }
        if let Some(asking) = &mut newcomer
            && asking.settle(name, &node)?
        {
            newcomer = None;
        }
    };
    service::end_within(STOP_TIMEOUT, if failure.is_some() { Exit::Failed } else { Exit::Done });
    node.shutdown();
    match failure {
        Some(failure) => Err(Failure::new(Exit::Failed, format!("node {name} has stopped: {failure}"))),
        None => Ok(Exit::Done),
    }
}

fn collect(cluster: &Cluster, args: &NodeArgs, node: &mut Node, runtime: &Runtime, data: &Path) -> Result {
    let me = cluster.node(args.name()?)?;
    let deleter = Deleter::new(cluster, me, runtime.handle().clone());
    node.collect(deleter.clone(), collect::times(cluster)).map_err(rebuild::start_failure)?;
    if let Some(sweep) = Sweep::of(cluster, me, &deleter, data) {
        let handle = runtime.handle().clone();
        let run = move || handle.block_on(sweep.run());
        std::thread::Builder::new().name("sweep".into()).spawn(run).context("starting the sweep")?;
    }
    Ok(())
}

fn node_config(cluster: &Cluster, args: &NodeArgs) -> Result<NodeConfig> {
    let config = config_of(cluster, cluster.node(args.name()?)?)?;
    let memory = args.memory.unwrap_or(cluster.limits.node_memory);
    Ok(NodeConfig {
        data_dir: args.data.clone().unwrap_or(config.data_dir),
        first_start: match (args.found, args.initialise) {
            (true, _) => FirstStart::Founding,
            (false, true) => FirstStart::NewDisk,
            (false, false) => FirstStart::No,
        },
        listen: args.listen.unwrap_or(config.listen),
        limits: Limits { log_bytes_max: cluster.limits.node_log.0, ..limits(memory, cluster.groups.len()) },
        ..config
    })
}

/// What the configuration says of a node.
pub fn config_of(cluster: &Cluster, node: &crate::config::Node) -> Result<NodeConfig> {
    let groups = cluster.groups.iter().map(|group| GroupInfo {
        id: group.id,
        name: group.name.clone(),
        voters: cluster.voters(group).map(|voter| voter.id).collect(),
    });
    let memory = cluster.limits.node_memory;
    Ok(NodeConfig {
        number: node.id,
        data_dir: node.data.clone(),
        first_start: FirstStart::No,
        listen: node.resolve_listen()?,
        cluster_id: cluster.name.clone(),
        nodes: node_infos(cluster),
        groups: groups.collect(),
        genesis: genesis(cluster),
        identity: cluster.identity(Role::Node, &node.name)?,
        wan: wan(cluster)?,
        limits: Limits { log_bytes_max: cluster.limits.node_log.0, ..limits(memory, cluster.groups.len()) },
        timeouts: Timeouts {
            election: cluster.timeouts.election,
            heartbeat: cluster.timeouts.election / 5,
            session_lease: cluster.timeouts.session,
            ..Timeouts::default()
        },
    })
}

fn node_infos(cluster: &Cluster) -> Vec<NodeInfo> {
    let info = |node: &config::Node| NodeInfo {
        number: node.id,
        name: node.name.clone(),
        address: node.address.clone(),
        region: node.region.clone(),
    };
    cluster.nodes.iter().map(info).collect()
}

/// The configuration's file. Nodes that are added to it are known without a restart; everything else counts from the next start.
struct Watched {
    file: PathBuf,
    seen: Option<SystemTime>,
}

impl Watched {
    fn new(file: &Path) -> Watched {
        Watched { file: file.into(), seen: modified(file) }
    }

    /// As it is now, if it was written since the last call and makes sense.
    fn changed(&mut self) -> Option<Cluster> {
        let now = modified(&self.file);
        if now == self.seen || now.is_none() {
            return None;
        }
        self.seen = now;
        match Cluster::load(&self.file) {
            Ok(cluster) => Some(cluster),
            Err(failure) => {
                tracing::warn!(problem = failure.message(), "the configuration has changed, and makes no sense");
                None
            }
        }
    }
}

fn modified(file: &Path) -> Option<SystemTime> {
    std::fs::metadata(file).and_then(|metadata| metadata.modified()).ok()
}

fn genesis(cluster: &Cluster) -> Genesis {
    let volume = cluster.volume;
    Genesis {
        // Both are bounded by the configuration's check.
        inline_bytes_max: cluster.limits.inline.0 as u32,
        uid: volume.uid,
        gid: volume.gid,
        mode: volume.mode,
        time: TimeNs(volume.created_unix_s as i64 * 1_000_000_000),
    }
}

/// The emulated network, if there is one.
pub fn wan(cluster: &Cluster) -> Result<Option<Arc<Wan>>> {
    cluster.wan.as_deref().map(Wan::watch).transpose().or_exit(Exit::Config)
}

/// Shares a node's memory out: half to the state store, a quarter to recent log entries, the rest to queues and code.
fn limits(memory: ByteSize, groups: usize) -> Limits {
    let default = Limits::default();
    let bytes = usize::try_from(memory.0).unwrap_or(usize::MAX);
    let groups = groups.max(1);
    let log_cache = (bytes / 4 / groups).clamp(1 << 20, 64 << 20);
    let client_queue = (bytes / 16).clamp(8 << 20, default.client_queue_bytes_max.max(8 << 20));
    Limits {
        state_memory_bytes: (bytes / 2).max(8 << 20),
        log_cache_bytes: log_cache,
        client_queue_bytes_max: client_queue,
        ..default
    }
}
