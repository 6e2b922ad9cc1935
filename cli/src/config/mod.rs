//! The cluster's configuration: `cluster.toml` turned into a checked type once, at the edge.

mod check;
mod error;
mod file;
pub mod find;
pub mod template;
#[cfg(test)]
mod tests;

use std::fs;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use datastore::BucketConfig;
use multicast::ids::{GroupId, ReplicaId};
use net::{Identity, Role};

pub use error::ConfigError;

use crate::exit::{Exit, Failure, OrExit, Result};
use crate::hint;
use crate::output::tell;
use crate::units::ByteSize;

/// Longest `cluster.toml` that is read: a wrong path must not read a disk image.
const FILE_BYTES_MAX: u64 = 4 << 20;
/// The client certificate that `status` and other tools show.
pub const TOOL_CLIENT: &str = "admin";

/// A cluster, as its file describes it.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// The file, absolute.
    pub file: PathBuf,
    /// The cluster's name: that of its authority.
    pub name: String,
    /// By number.
    pub regions: Vec<Region>,
    /// In the file's order.
    pub nodes: Vec<Node>,
    /// Those that are none any more: groups may have been founded with them, and their names and numbers stay taken.
    pub removed: Vec<Node>,
    /// By id; the first is `global`.
    pub groups: Vec<Group>,
    /// What `up` and `init` place at first.
    pub placements: Vec<Placement>,
    /// The volume's root directory, as it is at first.
    pub volume: Volume,
    /// Folder of certificates and keys, absolute.
    pub tls: PathBuf,
    /// Bounds.
    pub limits: Limits,
    /// Times.
    pub timeouts: Timeouts,
    /// The file that describes an emulated network, absolute.
    pub wan: Option<PathBuf>,
}

/// A region with its bucket.
#[derive(Clone, Debug)]
pub struct Region {
    /// Its name.
    pub name: String,
    /// Its number: the place in the file.
    pub number: u16,
    /// Its bucket; folders are absolute.
    pub bucket: BucketConfig,
}

/// A process that hosts replicas.
#[derive(Clone, Debug)]
pub struct Node {
    /// Its number, that of its replicas too.
    pub id: ReplicaId,
    /// Its name, also in its certificate.
    pub name: String,
    /// Its region's name.
    pub region: String,
    /// Where others reach it, `HOST:PORT`.
    pub address: String,
    /// Where it listens, if elsewhere.
    pub listen: Option<String>,
    /// Its folder, absolute.
    pub data: PathBuf,
}

/// A replica group.
#[derive(Clone, Debug)]
pub struct Group {
    /// Its id: the place in the file.
    pub id: GroupId,
    /// Its name.
    pub name: String,
    /// Names of the nodes that vote, the preferred primary first.
    pub voters: Vec<String>,
}

/// A directory at the top that lives on a group of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// The path in the volume, such as `/eu`.
    pub path: String,
    /// The group.
    pub group: GroupId,
}

/// The root directory of a new volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Volume {
    /// Its birth, in seconds since 1970.
    pub created_unix_s: u64,
    /// Its owner.
    pub uid: u32,
    /// Its owning group.
    pub gid: u32,
    /// Its permissions.
    pub mode: u16,
}

/// Bounds. See the comments that `globalfs init` writes.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Memory of a node.
    pub node_memory: ByteSize,
    /// A node's log, beyond which it says that it is too long.
    pub node_log: ByteSize,
    /// Memory of a mount: caches and buffers.
    pub client_memory: ByteSize,
    /// Longest file whose bytes travel in the metadata.
    pub inline: ByteSize,
    /// A mount's blobs on local disk.
    pub cache: ByteSize,
    /// Unreferenced blobs that a node deletes per second.
    pub collect_rate: u32,
    /// Objects of its bucket that a region looks at per second for such that nothing ever referred to; 0: none.
    pub sweep_rate: u32,
}

/// Times.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// How long a call on a mount may wait for nodes or buckets.
    pub deadline: Duration,
    /// How long a group does without its primary before another voter takes over.
    pub election: Duration,
    /// How long a silent mount keeps its session.
    pub session: Duration,
    /// How long a blob stays after nothing refers to it any more.
    pub collect: Duration,
    /// How long a blob stays that nothing has referred to yet.
    pub stray: Duration,
}

impl Default for Volume {
    fn default() -> Self {
        Volume { created_unix_s: 0, uid: 0, gid: 0, mode: 0o755 }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            node_memory: ByteSize(256 << 20),
            node_log: ByteSize(1 << 30),
            client_memory: ByteSize(256 << 20),
            inline: ByteSize(4 << 10),
            cache: ByteSize(1 << 30),
            collect_rate: 100,
            sweep_rate: 0,
        }
    }
}

impl Default for Timeouts {
    fn default() -> Self {
        Timeouts {
            deadline: Duration::from_secs(30),
            election: Duration::from_millis(600),
            session: Duration::from_secs(60),
            collect: Duration::from_secs(600),
            stray: Duration::from_secs(86_400),
        }
    }
}

impl Cluster {
    /// Reads and checks a file.
    pub fn load(path: &Path) -> Result<Cluster> {
        let shown = path.display().to_string();
        let file = fs::canonicalize(path).or_exit_with(Exit::Config, || format!("configuration {shown}"))?;
        let length = fs::metadata(&file).map_or(0, |metadata| metadata.len());
        if length > FILE_BYTES_MAX {
            return Err(Failure::new(Exit::Config, format!("configuration {shown} is too long to be one")));
        }
        let text = fs::read_to_string(&file).or_exit_with(Exit::Config, || format!("configuration {shown}"))?;
        Cluster::parse(&file, &text).or_exit(Exit::Config)
    }

    /// Checks a file's text. Relative paths in it count from the file's folder.
    pub fn parse(file: &Path, text: &str) -> std::result::Result<Cluster, ConfigError> {
        check::checked(&error::Source { file, text })
    }

    /// The region of that name.
    pub fn region(&self, name: &str) -> Result<&Region> {
        self.regions.iter().find(|region| region.name == name).ok_or_else(|| {
            self.unknown("region", name, self.regions.iter().map(|region| region.name.as_str()).collect())
        })
    }

    /// The node of that name.
    pub fn node(&self, name: &str) -> Result<&Node> {
        self.nodes
            .iter()
            .find(|node| node.name == name)
            .ok_or_else(|| self.unknown("node", name, self.nodes.iter().map(|node| node.name.as_str()).collect()))
    }

    /// The group of that name.
    pub fn group(&self, name: &str) -> Result<&Group> {
        self.groups
            .iter()
            .find(|group| group.name == name)
            .ok_or_else(|| self.unknown("group", name, self.groups.iter().map(|group| group.name.as_str()).collect()))
    }

    /// A group's name for people.
    pub fn group_name(&self, id: GroupId) -> String {
        self.groups.get(usize::from(id.0)).map_or_else(|| id.to_string(), |group| group.name.clone())
    }

    /// The voters with which a group was founded, the preferred primary first; they may have been removed since.
    pub fn voters<'a>(&'a self, group: &'a Group) -> impl Iterator<Item = &'a Node> {
        group.voters.iter().filter_map(|name| self.nodes.iter().chain(&self.removed).find(|node| node.name == *name))
    }

    /// The regions of a group's voters, each once.
    pub fn group_regions(&self, group: &Group) -> Vec<String> {
        let mut regions: Vec<String> = Vec::new();
        for voter in self.voters(group) {
            if !regions.contains(&voter.region) {
                regions.push(voter.region.clone());
            }
        }
        regions
    }

    /// The number of the region of that name; the check has seen that it exists.
    pub fn region_number(&self, name: &str) -> u16 {
        self.regions.iter().find(|region| region.name == name).map_or(0, |region| region.number)
    }

    /// The regions' names by number.
    pub fn region_names(&self) -> Vec<String> {
        self.regions.iter().map(|region| region.name.clone()).collect()
    }

    /// Certificate, key and authority of a member.
    pub fn identity(&self, role: Role, name: &str) -> Result<Identity> {
        let (certificate, key) = self.identity_files(role, name);
        let identity = Identity::load(&certificate, &key, &self.tls.join("ca.crt"));
        let identity = identity.or_exit_with(Exit::Config, || format!("certificate of {role} {name:?}"))?;
        if fs::metadata(&key).is_ok_and(|metadata| metadata.mode() & 0o077 != 0) {
            tell!("globalfs: {} can be read by other users: chmod 600 it", key.display());
        }
        if identity.cluster() != self.name {
            let problem = format!(
                "{} is of cluster {:?}, but {} describes {:?}",
                certificate.display(),
                identity.cluster(),
                self.file.display(),
                self.name
            );
            return Err(Failure::new(Exit::Config, problem));
        }
        Ok(identity)
    }

    /// Where certificate and key of a member are.
    pub fn identity_files(&self, role: Role, name: &str) -> (PathBuf, PathBuf) {
        (self.tls.join(format!("{role}.{name}.crt")), self.tls.join(format!("{role}.{name}.key")))
    }

    fn unknown(&self, kind: &str, name: &str, known: Vec<&str>) -> Failure {
        let mut hint = hint::suggestion(name, known.iter().copied());
        if hint.is_empty() {
            hint = format!("; there are {}", known.join(", "));
        }
        Failure::new(Exit::Config, format!("{}: no {kind} {name:?}{hint}", self.file.display()))
    }
}

impl Node {
    /// The address as numbers: a host name is looked up.
    pub fn resolve(&self) -> Result<SocketAddr> {
        resolve(&self.address).or_exit_with(Exit::Config, || format!("address of node {:?}", self.name))
    }

    /// Where to listen, as numbers.
    pub fn resolve_listen(&self) -> Result<SocketAddr> {
        match &self.listen {
            Some(listen) => resolve(listen).or_exit_with(Exit::Config, || format!("`listen` of node {:?}", self.name)),
            None => self.resolve(),
        }
    }
}

fn resolve(address: &str) -> anyhow::Result<SocketAddr> {
    let mut found = address.to_socket_addrs().with_context(|| format!("{address:?}"))?;
    found.next().with_context(|| format!("{address:?} stands for no address"))
}
