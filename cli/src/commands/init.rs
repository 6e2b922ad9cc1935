//! `globalfs init`: a new cluster's configuration, authority and certificates.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;
use clap::Args;
use net::{ClusterCa, Role};
use serde_json::json;

use crate::config::template::{self, Plan};
use crate::config::{Cluster, Limits, TOOL_CLIENT, Volume, find};
use crate::exit::{Exit, Failure, OrExit, Result};
use crate::output::say;

const NODES_PER_REGION_MAX: u16 = 99;
/// Below the ports that the kernel gives to clients.
const FREE_PORTS: std::ops::Range<u16> = 20_000..32_000;

/// Options.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  globalfs init /etc/globalfs
  globalfs init ./cluster --regions us,eu --nodes-per-region 3
  globalfs init ./cluster --listen 10.0.0.1 --listen 10.0.1.1 --listen 10.0.2.1 --port 4400

Then adapt the addresses and buckets in cluster.toml, copy it with tls/ca.crt and each machine's own certificate
and key to the machines, and run `globalfs node` and `globalfs mount` there.")]
pub struct InitArgs {
    /// The folder to write to; created if missing
    dir: PathBuf,
    /// The cluster's name
    #[arg(long, default_value = "globalfs")]
    name: String,
    /// Names of the regions, in their order
    #[arg(long, value_delimiter = ',', default_value = "us,eu,ap", value_name = "NAMES")]
    regions: Vec<String>,
    /// Nodes in each region
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=99))]
    nodes_per_region: u16,
    /// A host on which nodes listen; given once for all regions, or once for each in their order
    #[arg(long, default_value = "127.0.0.1", value_name = "HOST")]
    listen: Vec<String>,
    /// The first node's port; the following nodes of one host count up from it
    #[arg(long, default_value_t = 4400, value_parser = clap::value_parser!(u16).range(1..))]
    port: u16,
    /// What was written, as one JSON object
    #[arg(long)]
    json: bool,
}

/// Writes the files and tells what comes next.
pub fn run(args: &InitArgs) -> Result<Exit> {
    let regions = addresses(args)?;
    let limits = Limits::default();
    let plan = Plan { cluster: args.name.clone(), regions, wan_file: None, limits, volume: new_volume() };
    let cluster = create(&args.dir, &plan)?;
    if args.json {
        let nodes: Vec<_> = cluster.nodes.iter().map(|node| &node.name).collect();
        say!("{}", json!({ "schema": 1, "config": cluster.file, "tls": cluster.tls, "nodes": nodes }));
        return Ok(Exit::Done);
    }
    say!("{}", cluster.file.display());
    say!("certificates are in {}; keep ca.key to yourself", cluster.tls.display());
    say!("next: globalfs node --config {} --name {}", cluster.file.display(), cluster.nodes[0].name);
    Ok(Exit::Done)
}

fn addresses(args: &InitArgs) -> Result<Vec<(String, Vec<String>)>> {
    let (hosts, regions) = (args.listen.len(), args.regions.len());
    if hosts != 1 && hosts != regions {
        let problem = format!("{hosts} hosts with --listen for {regions} regions: give one, or one for each");
        return Err(Failure::new(Exit::Usage, problem));
    }
    let mut used = std::collections::BTreeMap::<String, u32>::new();
    let mut planned = Vec::new();
    for (at, region) in args.regions.iter().enumerate() {
        let host = &args.listen[at % hosts];
        let mut nodes = Vec::new();
        for _ in 0..args.nodes_per_region {
            let taken = used.entry(host.clone()).or_default();
            let port = u16::try_from(u32::from(args.port) + *taken)
                .map_err(|_| Failure::new(Exit::Usage, format!("--port {}: too high for all nodes", args.port)))?;
            *taken += 1;
            // An IPv6 host needs brackets.
            let literal_v6 = host.contains(':') && !host.starts_with('[');
            nodes.push(if literal_v6 { format!("[{host}]:{port}") } else { format!("{host}:{port}") });
        }
        planned.push((region.clone(), nodes));
    }
    Ok(planned)
}

/// Creates a cluster in a folder: everything but `cluster.toml` first, so that a half-made cluster is not taken for one.
pub fn create(dir: &Path, plan: &Plan) -> Result<Cluster> {
    let file = dir.join(find::FILE_NAME);
    let tls = dir.join("tls");
    for path in [&file, &tls] {
        if path.symlink_metadata().is_ok() {
            let problem = format!("{} exists already; nothing was changed", path.display());
            return Err(Failure::new(Exit::Exists, problem));
        }
    }
    let text = template::render(plan);
    // What is written must be readable: names and addresses from the command line are checked here.
    Cluster::parse(&file, &text).map_err(|error| {
        let message = error.to_string();
        let problem = message.split_once(": ").map_or(message.as_str(), |(_, problem)| problem);
        // Lines of a file that is never written help nobody.
        let problem = problem.split_once("; the other is in line").map_or(problem, |(problem, _)| problem);
        Failure::new(Exit::Usage, problem)
    })?;
    fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
    certificates(&tls, plan)?;
    for (name, _) in plan.nodes() {
        let data = dir.join("nodes").join(&name);
        fs::create_dir_all(&data).with_context(|| data.display().to_string())?;
        let marker = data.join(partition_replica::INITIALISE_MARKER);
        fs::write(&marker, b"").with_context(|| marker.display().to_string())?;
    }
    write_new(&file, text.as_bytes()).with_context(|| file.display().to_string())?;
    Cluster::load(&file)
}

fn certificates(tls: &Path, plan: &Plan) -> Result {
    let mut builder = fs::DirBuilder::new();
    builder.mode(0o700).create(tls).with_context(|| tls.display().to_string())?;
    let ca = ClusterCa::create(&plan.cluster).or_exit(Exit::Usage)?;
    ca.save(&tls.join("ca.crt"), &tls.join("ca.key")).or_exit(Exit::Failed)?;
    let nodes = plan.nodes().into_iter().map(|(name, _)| (Role::Node, name));
    let mounts = plan.regions.iter().map(|(region, _)| (Role::Client, region.clone()));
    for (role, name) in nodes.chain(mounts).chain([(Role::Client, TOOL_CLIENT.to_owned())]) {
        let identity = ca.issue(role, &name).or_exit(Exit::Usage)?;
        let (certificate, key) = (tls.join(format!("{role}.{name}.crt")), tls.join(format!("{role}.{name}.key")));
        identity.save(&certificate, &key).or_exit(Exit::Failed)?;
    }
    Ok(())
}

fn write_new(file: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).open(file)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Addresses on the loopback interface whose ports nobody uses now.
pub fn free_addresses(count: usize) -> Result<Vec<String>> {
    let span = FREE_PORTS.end - FREE_PORTS.start;
    // Any start will do; one by the clock keeps clusters made one after the other apart.
    let nanos = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.subsec_nanos());
    let start = (nanos / 1_000 + std::process::id()) % u32::from(span);
    let mut held = Vec::new();
    for offset in 0..span {
        if held.len() == count {
            break;
        }
        let port = FREE_PORTS.start + (start as u16 + offset) % span;
        if let Ok(socket) = UdpSocket::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port))) {
            held.push((socket, port));
        }
    }
    if held.len() < count {
        return Err(Failure::new(Exit::Unavailable, format!("no {count} free UDP ports in {FREE_PORTS:?}")));
    }
    Ok(held.iter().map(|(_, port)| format!("127.0.0.1:{port}")).collect())
}

/// The root directory belongs to whoever makes the cluster.
fn new_volume() -> Volume {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    Volume { created_unix_s: since.as_secs(), uid, gid, ..Volume::default() }
}

/// A plan for one machine: addresses of this moment's free ports.
pub fn plan_of_one_machine(regions: &[String], nodes_per_region: u16) -> Result<Plan> {
    if nodes_per_region == 0 || nodes_per_region > NODES_PER_REGION_MAX {
        let problem = format!("--nodes-per-region must be 1 to {NODES_PER_REGION_MAX}");
        return Err(Failure::new(Exit::Usage, problem));
    }
    let per_region = usize::from(nodes_per_region);
    let addresses = free_addresses(per_region * regions.len())?;
    let regions = regions.iter().cloned().zip(addresses.chunks(per_region).map(<[String]>::to_vec)).collect();
    Ok(Plan {
        cluster: "globalfs".into(),
        regions,
        wan_file: Some("net.wan".into()),
        limits: template::limits_of_one_machine(),
        volume: new_volume(),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn created_cluster_has_identities_and_is_not_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let plan = plan_of_one_machine(&["us".into(), "eu".into()], 2).unwrap();
        let cluster = create(folder.path(), &plan).unwrap();
        assert_eq!(cluster.nodes.len(), 4);
        for node in &cluster.nodes {
            assert_eq!(cluster.identity(Role::Node, &node.name).unwrap().peer_name().name, node.name);
        }
        for client in ["us", "eu", TOOL_CLIENT] {
            cluster.identity(Role::Client, client).unwrap();
        }
        let before = fs::read(&cluster.file).unwrap();
        assert_eq!(create(folder.path(), &plan).unwrap_err().exit, Exit::Exists);
        assert_eq!(fs::read(&cluster.file).unwrap(), before);
    }

    #[test]
    fn bad_names_are_wrong_usage_and_leave_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("new");
        let plan = plan_of_one_machine(&["US".into()], 1).unwrap();
        assert_eq!(create(&dir, &plan).unwrap_err().exit, Exit::Usage);
        assert!(!dir.exists());
    }

    #[test]
    fn free_addresses_differ() {
        let addresses = free_addresses(9).unwrap();
        let distinct: std::collections::BTreeSet<_> = addresses.iter().collect();
        assert_eq!(distinct.len(), 9);
    }
}
