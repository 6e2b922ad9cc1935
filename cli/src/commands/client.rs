//! From the configuration to a client of the cluster, for mounts and tools.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use datastore::{BlobStore, Bucket, Cache, CacheConfig, Direct, Link, Region, StoreLimits, Unreachable};
use fs_client::{Client, ClientConfig, Consistency, GroupInfo, Limits, NodeInfo, OnCut, Timeouts};
use net::wan::{Wan, WanSide};
use net::{Endpoint, EndpointConfig, Role};

use super::node;
use crate::config::{Cluster, Node, TOOL_CLIENT};
use crate::exit::{Exit, Failure, OrExit, Result};
use crate::units::ByteSize;

/// What the metadata cache takes for one entry, in bytes.
const CACHE_ENTRY_BYTES: u64 = 300;
/// Flushing and saying goodbye, also to nodes that are not there.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(3);
/// Nodes ask for little.
const NODE_MEMORY: ByteSize = ByteSize(8 << 20);
/// A mount keeps alive well within the session's time.
const KEEP_ALIVES_PER_SESSION: u32 = 5;

/// What a client may differ in from the configuration.
#[derive(Clone, Debug)]
pub struct Wishes {
    /// Where it runs.
    pub region: String,
    /// Whose certificate it shows.
    pub identity: String,
    /// What the certificate is for.
    pub role: Role,
    /// For people who look at sessions.
    pub label: String,
    /// How long a call may wait.
    pub deadline: Duration,
    /// What becomes of calls that need a region that cannot be reached.
    pub on_cut: OnCut,
    /// How new answers must be.
    pub consistency: Consistency,
    /// Memory for caches and buffers.
    pub memory: ByteSize,
    /// Blobs on local disk.
    pub cache: Option<(PathBuf, ByteSize)>,
    /// Whether emulated distances and cuts hold for it.
    pub emulated: bool,
}

impl Wishes {
    /// A tool's: no disk cache, little memory.
    pub fn tool(cluster: &Cluster, region: Option<&str>, deadline: Duration) -> Result<Wishes> {
        let region = match region {
            Some(name) => cluster.region(name)?.name.clone(),
            None => cluster.regions[0].name.clone(),
        };
        Ok(Wishes {
            region,
            identity: TOOL_CLIENT.into(),
            role: Role::Client,
            label: format!("globalfs tool, pid {}", std::process::id()),
            deadline,
            on_cut: OnCut::default(),
            consistency: Consistency::default(),
            memory: ByteSize(32 << 20),
            cache: None,
            emulated: true,
        })
    }

    /// A node's that asks the others something, as what `part` of it: it shows its own certificate.
    pub fn of_node(node: &Node, part: &str, deadline: Duration) -> Wishes {
        Wishes {
            region: node.region.clone(),
            identity: node.name.clone(),
            role: Role::Node,
            label: format!("{part} of node {}", node.name),
            deadline,
            on_cut: OnCut::default(),
            consistency: Consistency::default(),
            memory: NODE_MEMORY,
            cache: None,
            emulated: true,
        }
    }
}

/// A socket in the client's region. Must be called inside a runtime.
pub fn endpoint(cluster: &Cluster, wishes: &Wishes) -> Result<(Endpoint, Option<Arc<Wan>>)> {
    let identity = cluster.identity(wishes.role, &wishes.identity)?;
    let mut config = EndpointConfig::client(identity);
    let wan = if wishes.emulated { node::wan(cluster)? } else { None };
    if let Some(wan) = &wan {
        let mut nodes = Vec::new();
        for node in &cluster.nodes {
            nodes.push((node.resolve()?, node.region.clone()));
        }
        config.wan = Some(WanSide::client(wan.clone(), wishes.region.clone(), nodes));
    }
    if cluster.nodes.iter().filter_map(|node| node.resolve().ok()).any(|address| address.is_ipv6()) {
        config.bind = (std::net::Ipv6Addr::UNSPECIFIED, 0).into();
    }
    Ok((Endpoint::bind(config).or_exit(Exit::Failed)?, wan))
}

/// A client for tools: paths and placement, no file contents.
pub fn connect(cluster: &Cluster, wishes: &Wishes) -> Result<Client> {
    let (endpoint, _) = endpoint(cluster, wishes)?;
    Client::connect(client_config(cluster, wishes), endpoint, None).map_err(client_failure)
}

/// The client's view of the cluster.
pub fn client_config(cluster: &Cluster, wishes: &Wishes) -> ClientConfig {
    let nodes = cluster.nodes.iter().map(|node| NodeInfo {
        number: node.id,
        name: node.name.clone(),
        region: node.region.clone(),
        address: node.address.clone(),
    });
    let groups = cluster.groups.iter().map(|group| GroupInfo {
        id: group.id,
        name: group.name.clone(),
        voters: cluster.voters(group).map(|voter| voter.id).collect(),
    });
    let (default_limits, default_times) = (Limits::default(), Timeouts::default());
    let dirty = (wishes.memory.0 / 4).clamp(8 << 20, 256 << 20);
    let entries = (wishes.memory.0 / 4 / CACHE_ENTRY_BYTES).clamp(1_000, 10_000_000);
    ClientConfig {
        label: wishes.label.clone(),
        limits: Limits {
            dirty_bytes_max: usize::try_from(dirty).unwrap_or(usize::MAX),
            cache_entries_max: usize::try_from(entries).unwrap_or(usize::MAX),
            inline_bytes_max: u32::try_from(cluster.limits.inline.0).unwrap_or(u32::MAX),
            ..default_limits
        },
        timeouts: Timeouts {
            deadline: wishes.deadline,
            attempt: default_times.attempt.min(wishes.deadline),
            keep_alive: cluster.timeouts.session / KEEP_ALIVES_PER_SESSION,
            close: CLOSE_TIMEOUT,
            ..default_times
        },
        on_cut: wishes.on_cut,
        consistency: wishes.consistency,
        ..ClientConfig::new(wishes.region.clone(), nodes.collect(), groups.collect())
    }
}

/// The regions' buckets as a client sees them. Its own must be usable now; others may be out of reach.
pub async fn store(cluster: &Cluster, wishes: &Wishes, wan: Option<Arc<Wan>>) -> Result<BlobStore> {
    let own = cluster.region(&wishes.region)?;
    let doing = || format!("bucket of region {:?} in {}", own.name, cluster.file.display());
    Bucket::open(&own.bucket).await.or_exit_with(Exit::Config, doing)?;
    store_unchecked(cluster, wishes, wan)
}

/// As [`store`], of buckets that may all be out of reach just now.
pub fn store_unchecked(cluster: &Cluster, wishes: &Wishes, wan: Option<Arc<Wan>>) -> Result<BlobStore> {
    let mut buckets = Vec::new();
    for region in &cluster.regions {
        match Bucket::configure(&region.bucket) {
            Ok(bucket) => buckets.push((Region(region.number), bucket)),
            Err(error) => tracing::warn!(region = region.name, %error, "bucket not usable from here"),
        }
    }
    let cache = match &wishes.cache {
        Some((folder, size)) if size.0 > 0 => {
            let config = CacheConfig { bytes_max: size.0, ..CacheConfig::new(folder) };
            let cache = Cache::open(config);
            Some(cache.or_exit_with(Exit::Config, || format!("cache folder {}", folder.display()))?)
        }
        _ => None,
    };
    let link: Arc<dyn Link> = match wan {
        Some(wan) => Arc::new(EmulatedLink { wan, regions: cluster.region_names() }),
        None => Arc::new(Direct),
    };
    let memory = usize::try_from(wishes.memory.0).unwrap_or(usize::MAX);
    let limits = StoreLimits {
        deadline: wishes.deadline,
        fetch_bytes_max: (memory / 4).clamp(8 << 20, 256 << 20),
        memory_bytes_max: memory / 16,
        ..StoreLimits::default()
    };
    let local = Region(cluster.region_number(&wishes.region));
    BlobStore::new(local, buckets, cache, link, limits).or_exit(Exit::Config)
}

/// A client's error, with the code for it.
pub fn client_failure(error: fs_client::Error) -> Failure {
    use fs_client::Error;
    let exit = match &error {
        Error::Timeout { .. } | Error::Unreachable { .. } => Exit::Unavailable,
        Error::SessionLost { .. } | Error::Overtaken { .. } | Error::Net(_) | Error::Closing => Exit::Unavailable,
        Error::Config(_) | Error::Refused { .. } | Error::Data(_) => Exit::Config,
        // The system's own complaint: there is no such directory. Otherwise something is in the way.
        Error::MountPoint { why, .. } if why.contains("os error") => Exit::Failed,
        Error::MountPoint { .. } => Exit::Exists,
        Error::Posix(errno) => return posix_failure(*errno, error),
        Error::Kernel { .. } => return Failure::from(error),
    };
    Failure { exit, error: error.into() }
}

/// A client's error about a path of the volume.
pub fn path_failure(path: &str, error: fs_client::Error) -> Failure {
    let errno = match &error {
        fs_client::Error::Posix(errno) if ![libc::ETIMEDOUT, libc::EHOSTUNREACH].contains(&errno.0) => *errno,
        _ => return client_failure(error),
    };
    let exit = posix_failure(errno, error).exit;
    Failure::new(exit, format!("{path}: {}", std::io::Error::from_raw_os_error(errno.0)))
}

fn posix_failure(errno: fs_client::Errno, error: fs_client::Error) -> Failure {
    let exit = match errno.0 {
        libc::EPERM | libc::EACCES | libc::EROFS => Exit::NotPermitted,
        libc::EEXIST | libc::EBUSY | libc::ENOTEMPTY => Exit::Exists,
        libc::ETIMEDOUT | libc::EHOSTUNREACH => {
            let problem = "no answer before the deadline: the nodes that are needed cannot be reached, or a quorum of them is \
                           missing; `globalfs status` tells which";
            return Failure::new(Exit::Unavailable, problem);
        }
        _ => Exit::Failed,
    };
    Failure { exit, error: error.into() }
}

/// Distances to buckets, as they are emulated between processes.
struct EmulatedLink {
    wan: Arc<Wan>,
    regions: Vec<String>,
}

#[async_trait]
impl Link for EmulatedLink {
    async fn cross(&self, from: Region, to: Region, _bytes: usize) -> std::result::Result<(), Unreachable> {
        let name = |region: Region| self.regions.get(usize::from(region.0)).map_or("", String::as_str);
        let there = self.wan.one_way(name(from), name(to));
        let back = self.wan.one_way(name(to), name(from));
        let (Some(there), Some(back)) = (there, back) else { return Err(Unreachable { from, to }) };
        tokio::time::sleep(there + back).await;
        Ok(())
    }
}
