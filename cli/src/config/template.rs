//! The `cluster.toml` that `globalfs init` writes.

use std::fmt::Write;

use crate::units::{ByteSize, TimeSpan};

use super::{Limits, Timeouts, Volume};

/// A group has 1, 3 or 5 voters.
const VOTERS_MAX: usize = 5;

/// What a new cluster is to look like.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Its name.
    pub cluster: String,
    /// Regions with the addresses of their nodes.
    pub regions: Vec<(String, Vec<String>)>,
    /// A description of an emulated network, if there is to be one.
    pub wan_file: Option<String>,
    /// Bounds.
    pub limits: Limits,
    /// The root directory.
    pub volume: Volume,
}

impl Plan {
    /// Names and regions of all nodes, in the order of their numbers.
    pub fn nodes(&self) -> Vec<(String, String)> {
        let nodes = self.regions.iter().flat_map(|(region, addresses)| {
            (1..=addresses.len()).map(move |number| (node_name(region, number), region.clone()))
        });
        nodes.collect()
    }
}

/// The global group's voters: one in every region as far as there may be so many, and an odd number of them: with an
/// even number of regions the first one has two if it has the nodes, else the last region has none.
fn global_voters(plan: &Plan) -> Vec<String> {
    let mut voters: Vec<String> =
        plan.regions.iter().take(VOTERS_MAX).map(|(region, _)| node_name(region, 1)).collect();
    if voters.len().is_multiple_of(2) {
        match plan.regions.first() {
            Some((region, nodes)) if nodes.len() > 1 => voters.push(node_name(region, 2)),
            _ => drop(voters.pop()),
        }
    }
    voters
}

/// A region's own group: as many of its nodes as make an odd number.
fn region_voters(region: &str, nodes: usize) -> Vec<String> {
    let odd = if nodes.is_multiple_of(2) { nodes.saturating_sub(1) } else { nodes };
    (1..=odd.min(VOTERS_MAX)).map(|number| node_name(region, number)).collect()
}

fn node_name(region: &str, number: usize) -> String {
    format!("{region}-{number}")
}

/// The text of `cluster.toml`.
pub fn render(plan: &Plan) -> String {
    let mut out = String::new();
    head(&mut out, plan);
    regions(&mut out, plan);
    nodes(&mut out, plan);
    groups(&mut out, plan);
    rest(&mut out, plan);
    out
}

// Writing to a string cannot fail.
macro_rules! put {
    ($out:expr, $($arg:tt)*) => { let _ = writeln!($out, $($arg)*); };
}

fn head(out: &mut String, plan: &Plan) {
    put!(out, "# A GlobalFS cluster. Every node and every mount reads this file; keep it the same everywhere.");
    put!(out, "# Relative paths count from this file's folder. Sizes and times need units: 64MiB, 30s.");
    put!(out, "# An unknown key is an error.");
    put!(out, "");
    put!(out, "# The cluster's name, also in its certificates.");
    put!(out, "cluster = {:?}", plan.cluster);
    put!(out, "");
}

fn regions(out: &mut String, plan: &Plan) {
    put!(out, "# Regions are numbered by their order here: add new ones at the end, never reorder.");
    put!(out, "# A bucket is a folder, s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or az://CONTAINER/PREFIX. Further keys:");
    put!(out, "#   endpoint = \"https://host:9000\"  another server than the cloud's own");
    put!(out, "#   region = \"eu-central-1\"         the cloud's name of the region (s3)");
    put!(out, "#   path_style = true               the bucket's name in the path of requests");
    put!(out, "#   allow_http = true               allow an endpoint without TLS");
    put!(
        out,
        "#   credentials_file = \"FILE\"       instead of the environment (AWS_ACCESS_KEY_ID, ...); `profile` chooses a section"
    );
    put!(out, "#   anonymous = true                requests without a signature");
    put!(out, "#   create = true                   create a missing folder");
    for (region, _) in &plan.regions {
        put!(out, "");
        put!(out, "[[region]]");
        put!(out, "name = {region:?}");
        put!(out, "bucket = {{ url = \"buckets/{region}\", create = true }}");
    }
    put!(out, "");
}

fn nodes(out: &mut String, plan: &Plan) {
    put!(
        out,
        "# Nodes: processes that host replicas (globalfs node --name NAME). One that has lost its disk must stay down: it"
    );
    put!(
        out,
        "# has forgotten what it promised. `listen` is where it listens if not at `address`, such as \"0.0.0.0:4400\"."
    );
    let mut number = 0;
    for (region, addresses) in &plan.regions {
        for (at, address) in addresses.iter().enumerate() {
            number += 1;
            let name = node_name(region, at + 1);
            put!(out, "");
            put!(out, "[[node]]");
            put!(out, "number = {number}");
            put!(out, "name = {name:?}");
            put!(out, "region = {region:?}");
            put!(out, "address = {address:?}");
            put!(out, "data = \"nodes/{name}\"");
        }
    }
    put!(out, "");
}

fn groups(out: &mut String, plan: &Plan) {
    put!(
        out,
        "# Replica groups, numbered by their order here: add new ones at the end. The first is \"global\" and holds the root."
    );
    put!(out, "# 1, 3 or 5 voters; a majority of them must be up for updates. The first one is the preferred primary.");
    put!(out, "");
    put!(out, "[[group]]");
    put!(out, "name = \"global\"");
    put!(out, "voters = {:?}", global_voters(plan));
    for (region, addresses) in &plan.regions {
        put!(out, "");
        put!(out, "[[group]]");
        put!(out, "name = {region:?}");
        put!(out, "voters = {:?}", region_voters(region, addresses.len()));
    }
    put!(out, "");
    put!(
        out,
        "# Top-level directories that `globalfs up` creates on a group of their own. Afterwards placement belongs to the"
    );
    put!(out, "# directory and is changed with `globalfs place set`.");
    for (region, _) in &plan.regions {
        put!(out, "");
        put!(out, "[[placement]]");
        put!(out, "path = \"/{region}\"");
        put!(out, "group = {region:?}");
    }
    put!(out, "");
}

fn rest(out: &mut String, plan: &Plan) {
    let (limits, times) = (plan.limits, Timeouts::default());
    put!(
        out,
        "# The root directory of the volume when it is started for the first time; later changes here count for nothing."
    );
    put!(out, "[volume]");
    put!(out, "created_unix_s = {}", plan.volume.created_unix_s);
    put!(out, "uid = {}", plan.volume.uid);
    put!(out, "gid = {}", plan.volume.gid);
    put!(out, "mode = \"{:04o}\"", plan.volume.mode);
    put!(out, "");
    put!(
        out,
        "# Certificates and keys: ca.crt, node.NAME.crt and .key, client.NAME.crt and .key. A machine needs ca.crt and its"
    );
    put!(out, "# own; ca.key signs new ones and is best kept elsewhere.");
    put!(out, "[tls]");
    put!(out, "folder = \"tls\"");
    put!(out, "");
    put!(out, "[limits]");
    put!(out, "# Memory of a node, whatever the number of files.");
    put!(out, "node_memory = \"{}\"", limits.node_memory);
    put!(
        out,
        "# A node's log on disk: beyond it `globalfs status` says what keeps it (as a rule a voter that is away)."
    );
    put!(out, "node_log = \"{}\"", limits.node_log);
    put!(out, "# Memory of a mount for caches and buffers.");
    put!(out, "client_memory = \"{}\"", limits.client_memory);
    put!(
        out,
        "# Files up to this length travel in the metadata, without a bucket. Fixed when the volume is first started."
    );
    put!(out, "inline = \"{}\"", limits.inline);
    put!(out, "# A mount's cache of blobs on its local disk; 0 turns it off.");
    put!(out, "cache = \"{}\"", limits.cache);
    put!(out, "# Blobs that a node deletes per second, at most, once nothing refers to them any more.");
    put!(out, "collect_rate = {}", limits.collect_rate);
    put!(
        out,
        "# Objects of its bucket that a region looks at per second, to find those that were uploaded and never referred to;"
    );
    put!(out, "# 0 turns it off.");
    put!(out, "sweep_rate = {}", limits.sweep_rate);
    put!(out, "");
    put!(out, "[timeouts]");
    put!(out, "# How long a call on a mount waits for nodes or buckets before it fails with ETIMEDOUT or EIO.");
    put!(out, "deadline = \"{}\"", TimeSpan(times.deadline));
    put!(out, "# How long a group does without its primary before another voter takes over.");
    put!(out, "election = \"{}\"", TimeSpan(times.election));
    put!(out, "# How long a mount that is not heard of keeps its locks and open files.");
    put!(out, "session = \"{}\"", TimeSpan(times.session));
    put!(out, "# How long a blob stays in its bucket after nothing refers to it any more: readers may still be at it.");
    put!(out, "collect = \"{}\"", TimeSpan(times.collect));
    put!(out, "# How long a blob stays that was uploaded and never referred to (see sweep_rate).");
    put!(out, "stray = \"{}\"", TimeSpan(times.stray));
    put!(out, "");
    put!(
        out,
        "# Emulates distances between regions on one machine (globalfs wan --help). Leave it out on real networks."
    );
    match &plan.wan_file {
        Some(file) => {
            put!(out, "[wan]");
            put!(out, "file = {file:?}");
        }
        None => {
            put!(out, "# [wan]");
            put!(out, "# file = \"net.wan\"");
        }
    }
}

/// Bounds for a whole cluster on one machine: small, because seven processes share it.
pub fn limits_of_one_machine() -> Limits {
    Limits { node_memory: ByteSize(128 << 20), client_memory: ByteSize(96 << 20), ..Limits::default() }
}
