//! `globalfs node add|drain|remove`: nodes that come and go.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use multicast::MemberRole;
use multicast::ids::ReplicaId;
use net::{ClusterCa, Role};
use serde_json::json;

use super::client::Wishes;
use super::group::desk::Desk;
use super::{place, service};
use crate::args::Globals;
use crate::config::{Cluster, Group, Node, find};
use crate::exit::{Exit, Failure, OrExit, Result};
use crate::output::{say, tell};
use crate::units::TimeSpan;

const ANSWER_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);

/// What becomes of a node.
#[derive(Debug, Subcommand)]
pub enum NodeAction {
    /// Write a new node's certificate and its entry in the configuration
    #[command(after_help = "Examples:
  globalfs node add eu-4 --region eu --address 10.0.1.4:4400
  globalfs node add eu-4 --region eu --address eu4.example.org:4400 --listen 0.0.0.0:4400 --data /var/lib/globalfs

Needs ca.key. Then copy cluster.toml to all machines (nodes that run read it again by themselves) and the certificate and key to
the new one, start `globalfs node --name eu-4 --initialise` there, and give it replicas with `globalfs group`.")]
    Add(AddArgs),
    /// Move all replicas of a node elsewhere, one group after the other
    #[command(after_help = "Examples:
  globalfs node drain eu-2                   to nodes that are up, those of its region first
  globalfs node drain eu-2 --to eu-4
  globalfs node drain eu-2 --shrink          groups go on with fewer voters where no node can take its place")]
    Drain(DrainArgs),
    /// Take a node that hosts nothing out of the configuration
    #[command(after_help = "Examples:
  globalfs node drain eu-2 && globalfs node remove eu-2

Its entry stays, with `removed = true`: its name and number are never used again. Copy cluster.toml to all machines.")]
    Remove(RemoveArgs),
}

#[derive(Debug, Args)]
pub struct AddArgs {
    /// Its name
    node: String,
    /// Its region
    #[arg(long)]
    region: String,
    /// Where others reach it, HOST:PORT
    #[arg(long, value_name = "HOST:PORT")]
    address: String,
    /// Where it listens, if elsewhere
    #[arg(long, value_name = "HOST:PORT")]
    listen: Option<String>,
    /// Its data folder [default: nodes/NAME]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// What was written, as one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub struct DrainArgs {
    /// The node; it may be down
    node: String,
    /// Nodes that take its replicas, the first that can
    #[arg(long, value_name = "NODE")]
    to: Vec<String>,
    /// Where no node can take its place, let the group go on with one voter less
    #[arg(long)]
    shrink: bool,
    /// How long to wait for each replica to catch up
    #[arg(long, value_name = "TIME", default_value = "1h")]
    timeout: TimeSpan,
    /// What was done, as one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub struct RemoveArgs {
    /// The node
    node: String,
    /// It does not answer, and never will: believe the groups alone that it hosts nothing
    #[arg(long)]
    lost: bool,
    /// What was done, as one JSON object
    #[arg(long)]
    json: bool,
}

/// Does one of them.
pub fn run(globals: &Globals, action: &NodeAction) -> Result<Exit> {
    let cluster = find::cluster(globals.config.as_deref(), None)?;
    match action {
        NodeAction::Add(args) => add(&cluster, args),
        NodeAction::Drain(args) => with_desk(&cluster, args.timeout, !args.json, async |desk| drain(desk, args).await),
        NodeAction::Remove(args) => {
            let timeout = TimeSpan(ANSWER_TIMEOUT);
            with_desk(&cluster, timeout, !args.json, async |desk| remove(desk, args).await)
        }
    }
}

fn with_desk(
    cluster: &Cluster,
    timeout: TimeSpan,
    is_chatty: bool,
    work: impl AsyncFnOnce(&Desk<'_>) -> Result<Exit>,
) -> Result<Exit> {
    let wishes = Wishes { emulated: false, ..Wishes::tool(cluster, None, ANSWER_TIMEOUT)? };
    let runtime = service::runtime()?;
    runtime.block_on(place::with_client(cluster, &wishes, async |client| {
        work(&Desk { cluster, client, timeout: timeout.0, is_chatty }).await
    }))
}

/// The certificate first: an entry without one would be of no use.
fn add(cluster: &Cluster, args: &AddArgs) -> Result<Exit> {
    // Another may have added one since this command read the file, and whoever comes next waits.
    let _lock = lock(&cluster.file)?;
    let cluster = &check(cluster, &read(&cluster.file)?)?;
    let all = || cluster.nodes.iter().chain(&cluster.removed);
    if all().any(|node| node.name == args.node) {
        let problem = format!("{}: there is a node {:?} already, or was", cluster.file.display(), args.node);
        return Err(Failure::new(Exit::Exists, problem));
    }
    cluster.region(&args.region)?;
    let number = all().map(|node| node.id.0).max().map_or(1, |most| most.saturating_add(1));
    let text = read(&cluster.file)? + &entry(args, number);
    check(cluster, &text)?;
    let (ca_certificate, ca_key) = (cluster.tls.join("ca.crt"), cluster.tls.join("ca.key"));
    let ca = ClusterCa::load(&ca_certificate, &ca_key);
    let ca = ca.or_exit_with(Exit::Config, || "the cluster's authority, which signs the certificate")?;
    let identity = ca.issue(Role::Node, &args.node).or_exit(Exit::Usage)?;
    let (certificate, key) = cluster.identity_files(Role::Node, &args.node);
    // What an earlier try has left is as good, and may have been copied.
    if !certificate.exists() || !key.exists() {
        identity.save(&certificate, &key).or_exit(Exit::Failed)?;
    }
    replace(&cluster.file, &text)?;
    match args.json {
        true => say!(
            "{}",
            json!({ "schema": 1, "node": args.node, "number": number, "config": cluster.file,
            "certificate": certificate, "key": key })
        ),
        false => {
            say!("{}: node {} has number {number}", cluster.file.display(), args.node);
            say!("{}", certificate.display());
            say!("next: copy both to where they are needed, then globalfs node --name {} --initialise", args.node);
        }
    }
    Ok(Exit::Done)
}

fn entry(args: &AddArgs, number: u32) -> String {
    let data = args.data.clone().unwrap_or_else(|| Path::new("nodes").join(&args.node));
    let mut text = format!("\n[[node]]\nnumber = {number}\nname = {:?}\nregion = {:?}\n", args.node, args.region);
    let _ = writeln!(text, "address = {:?}", args.address);
    if let Some(listen) = &args.listen {
        let _ = writeln!(text, "listen = {listen:?}");
    }
    let _ = writeln!(text, "data = {:?}", data.display().to_string());
    text
}

async fn drain(desk: &Desk<'_>, args: &DrainArgs) -> Result<Exit> {
    let node = desk.cluster.node(&args.node)?;
    let mut targets = Vec::new();
    for name in &args.to {
        targets.push(desk.cluster.node(name)?);
    }
    let mut moved = Vec::new();
    for group in &desk.cluster.groups {
        let done = drain_group(desk, group, node, &targets, args.shrink).await;
        match done {
            Ok(Some(what)) => {
                if desk.is_chatty {
                    tell!("{what}");
                }
                moved.push(json!({ "group": group.name, "done": what }));
            }
            Ok(None) => {}
            Err(failure) if moved.is_empty() => return Err(failure),
            Err(failure) => {
                let problem = format!("{}; the groups before that are done", failure.message());
                return Err(Failure::new(Exit::Partly, problem));
            }
        }
    }
    match args.json {
        true => say!("{}", json!({ "schema": 1, "node": node.name, "moved": moved })),
        false => say!("{} is a member of no group", node.name),
    }
    Ok(Exit::Done)
}

async fn drain_group(
    desk: &Desk<'_>,
    group: &Group,
    node: &Node,
    targets: &[&Node],
    shrink: bool,
) -> Result<Option<String>> {
    let members = desk.members(group).await?;
    let Some(member) = members.member(node.id) else {
        // What an earlier command has left.
        return match desk.replica(group.id, node.id).await {
            Some(_) => desk.unhost(group, node.id, members).await.map(|_| Some(format!("{}: deleted", group.name))),
            None => Ok(None),
        };
    };
    if member.role == MemberRole::Learner {
        desk.remove(group, node.id).await?;
        return Ok(Some(format!("{}: {} follows no more", group.name, node.name)));
    }
    let taken: BTreeSet<ReplicaId> = members.voters().map(|voter| voter.replica).chain([node.id]).collect();
    let Some(target) = target(desk, node, targets, &taken).await else {
        if shrink {
            desk.remove(group, node.id).await?;
            return Ok(Some(format!("{}: goes on with one voter less", group.name)));
        }
        let problem = format!(
            "group {}: no node can take the place of {}: name one with --to, or let the group go on with fewer voters with \
             --shrink",
            group.name, node.name
        );
        return Err(Failure::new(Exit::Unavailable, problem));
    };
    desk.replace(group, node.id, target).await?;
    Ok(Some(format!("{}: {} votes in place of {}", group.name, target.name, node.name)))
}

/// One that is up and no voter: of those named, else of the node's region before others, and the least busy before others.
async fn target<'a>(desk: &Desk<'a>, node: &Node, named: &[&'a Node], taken: &BTreeSet<ReplicaId>) -> Option<&'a Node> {
    let up = desk.statuses().await;
    let replicas = |id: ReplicaId| up.iter().find(|(found, _)| *found == id).map(|(_, status)| status.groups.len());
    let is_free = |candidate: &&&Node| !taken.contains(&candidate.id) && replicas(candidate.id).is_some();
    if !named.is_empty() {
        return named.iter().find(is_free).copied();
    }
    let all: Vec<&Node> = desk.cluster.nodes.iter().collect();
    all.iter().filter(is_free).min_by_key(|free| (free.region != node.region, replicas(free.id), free.id)).copied()
}

async fn remove(desk: &Desk<'_>, args: &RemoveArgs) -> Result<Exit> {
    let node = desk.cluster.node(&args.node)?;
    for group in &desk.cluster.groups {
        if desk.members(group).await?.member(node.id).is_some() {
            let problem = format!("{} is a member of group {}: drain it first", node.name, group.name);
            return Err(Failure::new(Exit::Exists, problem));
        }
    }
    match desk.node_status(node.id).await {
        Some(status) if !status.groups.is_empty() => {
            let names: Vec<&str> = status.groups.iter().map(|group| group.name.as_str()).collect();
            let problem = format!("{} hosts replicas of {}: drain it first", node.name, names.join(", "));
            return Err(Failure::new(Exit::Exists, problem));
        }
        Some(_) => {}
        None if args.lost => {}
        None => {
            let problem = format!(
                "{} does not answer, so whether it hosts anything is not known: start it, or give --lost if it never comes back",
                node.name
            );
            return Err(Failure::new(Exit::Unavailable, problem));
        }
    }
    let _lock = lock(&desk.cluster.file)?;
    let text = marked(&read(&desk.cluster.file)?, &node.name);
    let text = text.filter(|text| check(desk.cluster, text).is_ok_and(|after| after.node(&node.name).is_err()));
    let Some(text) = text else {
        let problem = format!("{}: add `removed = true` to node {:?} by hand", desk.cluster.file.display(), node.name);
        return Err(Failure::new(Exit::Config, problem));
    };
    replace(&desk.cluster.file, &text)?;
    match args.json {
        true => say!("{}", json!({ "schema": 1, "node": node.name, "config": desk.cluster.file })),
        false => say!("{} is no node of the cluster any more: end its process", node.name),
    }
    Ok(Exit::Done)
}

/// The configuration's text with the node's entry marked. None if the entry is not written as this program writes it.
fn marked(text: &str, name: &str) -> Option<String> {
    let (mut out, mut in_node, mut is_marked) = (String::new(), false, false);
    let wanted = format!("name = {name:?}");
    for line in text.lines() {
        if line.trim_start().starts_with('[') {
            in_node = line.trim() == "[[node]]";
        }
        let _ = writeln!(out, "{line}");
        if in_node && !is_marked && line.trim() == wanted {
            out.push_str("removed = true\n");
            is_marked = true;
        }
    }
    is_marked.then_some(out)
}

/// Held while the configuration is changed: changes are made one after the other. It is the folder that is locked, as the file
/// gets replaced.
fn lock(file: &Path) -> Result<File> {
    let lock = || {
        let file = fs::canonicalize(file)?;
        let folder = File::open(file.parent().unwrap_or(Path::new("/")))?;
        rustix::fs::flock(&folder, rustix::fs::FlockOperation::LockExclusive)?;
        Ok::<_, std::io::Error>(folder)
    };
    lock().or_exit_with(Exit::Failed, || file.display().to_string())
}

fn read(file: &Path) -> Result<String> {
    fs::read_to_string(file).or_exit_with(Exit::Config, || file.display().to_string())
}

/// What is written must be readable.
fn check(cluster: &Cluster, text: &str) -> Result<Cluster> {
    Cluster::parse(&cluster.file, text).map_err(|error| Failure::new(Exit::Usage, error))
}

/// In one step, so that nobody reads half of it, and durable. Whoever may read it may do so afterwards; a link stays one.
fn replace(file: &Path, text: &str) -> Result {
    let write = || {
        let file = fs::canonicalize(file)?;
        let unfinished = file.with_extension("toml.new");
        let mut new = OpenOptions::new().write(true).create(true).truncate(true).open(&unfinished)?;
        new.write_all(text.as_bytes())?;
        new.set_permissions(fs::metadata(&file)?.permissions())?;
        new.sync_all()?;
        fs::rename(&unfinished, &file)?;
        file.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
    };
    write().or_exit_with(Exit::Failed, || file.display().to_string())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::commands::init;

    fn cluster() -> (tempfile::TempDir, Cluster) {
        let folder = tempfile::tempdir().unwrap();
        let plan = init::plan_of_one_machine(&["us".into(), "eu".into()], 2).unwrap();
        let cluster = init::create(folder.path(), &plan).unwrap();
        (folder, cluster)
    }

    fn args(node: &str) -> AddArgs {
        let address = "127.0.0.1:19999".into();
        AddArgs { node: node.into(), region: "eu".into(), address, listen: None, data: None, json: true }
    }

    #[test]
    fn added_node_has_a_number_of_its_own_a_certificate_and_an_entry() {
        let (_folder, cluster) = cluster();
        add(&cluster, &args("eu-3")).unwrap();
        let after = Cluster::load(&cluster.file).unwrap();
        let node = after.node("eu-3").unwrap();
        assert_eq!((node.id.0, node.region.as_str()), (5, "eu"));
        after.identity(Role::Node, "eu-3").unwrap();
        assert_eq!(add(&after, &args("eu-3")).unwrap_err().exit, Exit::Exists);
        assert_eq!(add(&after, &args("EU")).unwrap_err().exit, Exit::Usage);
        assert_eq!(add(&after, &AddArgs { region: "mars".into(), ..args("eu-4") }).unwrap_err().exit, Exit::Config);
        // Another address than that of a node that there is.
        assert_eq!(add(&after, &args("eu-4")).unwrap_err().exit, Exit::Usage);
        assert_eq!(Cluster::load(&cluster.file).unwrap().nodes.len(), 5);
    }

    #[test]
    fn nodes_that_are_added_at_once_have_numbers_of_their_own() {
        let (_folder, cluster) = cluster();
        std::thread::scope(|scope| {
            for number in 3..9 {
                let cluster = &cluster;
                let (node, address) = (format!("eu-{number}"), format!("127.0.0.1:2000{number}"));
                scope.spawn(move || add(cluster, &AddArgs { address, ..args(&node) }).unwrap());
            }
        });
        let after = Cluster::load(&cluster.file).unwrap();
        let numbers: BTreeSet<u32> = after.nodes.iter().map(|node| node.id.0).collect();
        assert_eq!((after.nodes.len(), numbers), (10, (1..=10).collect()));
    }

    #[test]
    fn configuration_that_is_replaced_keeps_its_permissions_and_its_place() {
        use std::os::unix::fs::{PermissionsExt, symlink};

        let folder = tempfile::tempdir().unwrap();
        let (file, link) = (folder.path().join("real.toml"), folder.path().join("cluster.toml"));
        fs::write(&file, b"before").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
        symlink("real.toml", &link).unwrap();
        replace(&link, "after").unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read_to_string(&file).unwrap(), "after");
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o640);
    }

    #[test]
    fn removed_node_is_none_any_more_but_its_name_and_number_stay_taken() {
        let (_folder, cluster) = cluster();
        let text = marked(&read(&cluster.file).unwrap(), "eu-2").unwrap();
        replace(&cluster.file, &text).unwrap();
        let after = Cluster::load(&cluster.file).unwrap();
        assert!(after.node("eu-2").is_err() && after.node("eu-1").is_ok());
        assert_eq!(add(&after, &args("eu-2")).unwrap_err().exit, Exit::Exists);
        add(&after, &args("eu-3")).unwrap();
        assert_eq!(Cluster::load(&cluster.file).unwrap().node("eu-3").unwrap().id.0, 5);
        assert_eq!(marked("[[region]]\nname = \"eu-2\"\n", "eu-2"), None);
    }
}
