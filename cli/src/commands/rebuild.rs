//! A node whose log or state is damaged begins anew by itself where its groups can do without what it had: as another member, as on
//! a new disk. The damaged files are kept aside.
//!
//! Why nothing acknowledged is lost by that: each of the node's groups has a primary elsewhere that works with a quorum in which
//! this node is not. What was committed is in the log of such a primary. And what this node has promised binds nobody any more:
//! its disk's incarnation never answers again.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use fs_client::{Client, Consistency, OnCut};
use net::Role;
use partition_replica::status::{GroupStatus, NodeStatus};
use partition_replica::{Error, ErrorClass, FirstStart, NodeConfig};
use tokio::runtime::Runtime;

use super::client::Wishes;
use super::place;
use crate::config::{Cluster, Node};
use crate::exit::{Exit, Failure, Result};
use crate::output::tell;
use crate::units::ByteSize;

/// A node that has found its state damaged while it ran notes that in a file of this name, and why.
const MARKER: &str = "damaged";
/// The other nodes may be starting, too.
const PATIENCE: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_secs(1);
/// For one node's answer.
const TIMEOUT: Duration = Duration::from_secs(3);
const MEMORY: ByteSize = ByteSize(8 << 20);

/// Starts the node. If its files are damaged, and nothing that was acknowledged needs them, it begins anew.
pub fn start(cluster: &Cluster, me: &Node, config: NodeConfig, runtime: &Runtime) -> Result<partition_replica::Node> {
    let marker = config.data_dir.join(MARKER);
    let problem = match fs::read_to_string(&marker) {
        Ok(why) => why,
        Err(_) => match partition_replica::Node::start(config.clone()) {
            Ok(node) => return Ok(node),
            Err(error) if is_damage(&error) => error.to_string(),
            Err(error) => return Err(start_failure(error)),
        },
    };
    if let Err(why) = runtime.block_on(wait_until_dispensable(cluster, me)) {
        let what = format!("{problem}. The node does not begin anew by itself: {why}");
        return Err(Failure::new(Exit::Problems, what));
    }
    let aside = set_aside(&config.data_dir)?;
    tell!(
        "globalfs: node {}: {problem}. All its groups go on without it, so it begins anew, as on a new disk; what is damaged is \
         kept in {}",
        me.name,
        aside.display()
    );
    let config = NodeConfig { first_start: FirstStart::NewDisk, ..config };
    partition_replica::Node::start(config).map_err(start_failure)
}

/// The node has ended by itself: if its files are damaged, the next start must know.
pub fn note_failure(data: &Path, failure: &str) {
    if failure.contains(partition_replica::STATE_IS_DAMAGED)
        && let Err(error) = fs::write(data.join(MARKER), failure)
    {
        tracing::error!(%error, "that the state is damaged could not be noted");
    }
}

fn is_damage(error: &Error) -> bool {
    matches!(error, Error::Corrupt { .. } | Error::CorruptState(_) | Error::DamagedState { .. })
}

/// The code for a node that does not start.
pub fn start_failure(error: Error) -> Failure {
    let exit = match error.class() {
        ErrorClass::Caller => Exit::Config,
        ErrorClass::Retry => Exit::Exists,
        ErrorClass::Corrupt => Exit::Problems,
        ErrorClass::Fatal => Exit::Failed,
    };
    Failure { exit, error: error.into() }
}

/// Until each group of this node works without it; says why not if it does not in time.
async fn wait_until_dispensable(cluster: &Cluster, me: &Node) -> std::result::Result<(), String> {
    if let Some(group) = cluster.groups.iter().find(|group| group.voters == [me.name.as_str()]) {
        return Err(format!("it is the only voter of group {}", group.name));
    }
    let wishes = Wishes {
        region: me.region.clone(),
        identity: me.name.clone(),
        role: Role::Node,
        label: format!("node {}", me.name),
        deadline: TIMEOUT,
        on_cut: OnCut::default(),
        consistency: Consistency::default(),
        memory: MEMORY,
        cache: None,
        emulated: true,
    };
    let mine = cluster.groups.iter().filter(|group| group.voters.iter().any(|voter| *voter == me.name));
    let configured: BTreeMap<u16, String> = mine.map(|group| (group.id.0, group.name.clone())).collect();
    let until = Instant::now() + PATIENCE;
    let mut answer = Err(String::new());
    let asked = place::with_client(cluster, &wishes, async |client| {
        loop {
            answer = is_dispensable(me, &configured, &statuses(client, cluster, me).await);
            if answer.is_ok() || Instant::now() >= until {
                return Ok(Exit::Done);
            }
            tokio::time::sleep(PAUSE).await;
        }
    });
    asked.await.map_err(|failure| failure.message())?;
    answer
}

async fn statuses(client: &Client, cluster: &Cluster, me: &Node) -> BTreeMap<u32, NodeStatus> {
    let others = cluster.nodes.iter().filter(|node| node.id != me.id);
    let ask = others.map(|node| async move {
        let document = tokio::time::timeout(TIMEOUT, client.node_status(node.id)).await.ok()?.ok()?;
        Some((node.id.0, serde_json::from_slice::<NodeStatus>(&document).ok()?))
    });
    futures::future::join_all(ask).await.into_iter().flatten().collect()
}

/// Says which group needs this node, if one does, by what the other nodes say. `configured`: the groups that the configuration
/// makes it a voter of; of those no other node may speak, as all their other members may be down.
fn is_dispensable(
    me: &Node,
    configured: &BTreeMap<u16, String>,
    others: &BTreeMap<u32, NodeStatus>,
) -> std::result::Result<(), String> {
    let replicas = |group: u16| {
        let of_group = move |status: &NodeStatus| status.groups.iter().find(|replica| replica.group == group).cloned();
        others.iter().filter_map(move |(node, status)| Some((*node, of_group(status)?)))
    };
    let is_mine = |replica: &&GroupStatus| replica.members.iter().any(|member| member.node == me.id.0);
    let told = others.values().flat_map(|status| &status.groups).filter(is_mine);
    let mut mine = configured.clone();
    mine.extend(told.map(|replica| (replica.group, replica.name.clone())));
    if mine.is_empty() {
        return Err("no other node that answers is in a group with it".into());
    }
    for (group, name) in mine {
        let primary = replicas(group).filter(|(_, replica)| replica.role == "primary").map(|(_, replica)| replica);
        let Some(primary) = primary.max_by_key(|replica| replica.ballot_round) else {
            return Err(format!("group {name} has no primary without it"));
        };
        let voters = || primary.members.iter().filter(|member| member.role == "voter");
        let up = voters().filter(|voter| {
            let mut seen = replicas(group);
            voter.node != me.id.0
                && seen.any(|(node, replica)| {
                    node == voter.node && replica.incarnation == voter.incarnation && replica.quarantine.is_none()
                })
        });
        let (up, all) = (up.count(), voters().count());
        if 2 * up <= all {
            return Err(format!("of the {all} voters of group {name} only {up} others are up, which is no quorum"));
        }
    }
    Ok(())
}

/// Moves log, state and stamp into a folder beside them.
fn set_aside(data: &Path) -> Result<PathBuf> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let aside = data.join(format!("damaged-{now}"));
    let doing = || format!("setting damaged files aside in {}", aside.display());
    fs::create_dir(&aside).with_context(doing)?;
    // The stamp first: data without it are refused, whereas an empty log under the old stamp would pass for one that has
    // promised nothing.
    for name in ["replicas", "stamp", "log", "state", MARKER] {
        let from = data.join(name);
        if from.exists() {
            fs::rename(from, aside.join(name)).with_context(doing)?;
            File::open(data).and_then(|folder| folder.sync_all()).with_context(doing)?;
        }
    }
    Ok(aside)
}

#[cfg(test)]
mod tests {
    use multicast::ids::ReplicaId;
    use partition_replica::status::MemberStatus;

    use super::*;

    fn me() -> Node {
        let text = || "x".to_owned();
        Node { id: ReplicaId(1), name: text(), region: text(), address: text(), listen: None, data: PathBuf::new() }
    }

    fn node(number: u32, role: &str, voters: u32) -> (u32, NodeStatus) {
        let member = |node| MemberStatus { node, role: "voter".into(), incarnation: "0".into() };
        let group = GroupStatus {
            name: "g".into(),
            role: role.into(),
            members: (1..=voters).map(member).collect(),
            incarnation: "0".into(),
            ..GroupStatus::default()
        };
        (number, NodeStatus { node: number, groups: vec![group], ..NodeStatus::default() })
    }

    #[test]
    fn node_begins_anew_only_if_its_groups_have_a_primary_and_a_quorum_without_it() {
        let may = |others: &[(u32, &str)], voters| {
            let others = others.iter().map(|(number, role)| node(*number, role, voters)).collect();
            is_dispensable(&me(), &BTreeMap::new(), &others).is_ok()
        };
        assert!(may(&[(2, "primary"), (3, "follower")], 3));
        assert!(!may(&[(2, "primary")], 3), "the third may be lost, too");
        assert!(!may(&[(2, "follower"), (3, "follower")], 3), "nobody knows what was committed");
        assert!(!may(&[(2, "primary"), (3, "follower")], 5));
        assert!(may(&[(2, "primary"), (3, "follower"), (4, "follower")], 5));
        assert!(!may(&[], 3));
        let mut others = BTreeMap::from([node(2, "primary", 3), node(3, "follower", 3)]);
        if let Some(other) = others.get_mut(&3) {
            other.groups[0].incarnation = "77".into();
        }
        assert!(is_dispensable(&me(), &BTreeMap::new(), &others).is_err(), "another disk than the group knows");
    }

    #[test]
    fn node_is_needed_by_a_group_of_which_nobody_speaks() {
        let others = BTreeMap::from([node(2, "primary", 3), node(3, "follower", 3)]);
        let named = |groups: &[u16]| groups.iter().map(|&group| (group, format!("g{group}"))).collect();
        assert!(is_dispensable(&me(), &named(&[0]), &others).is_ok());
        let why = is_dispensable(&me(), &named(&[0, 1]), &others).expect_err("the members of group 1 are all down");
        assert!(why.contains("g1"), "{why}");
    }

    #[test]
    fn damaged_files_are_kept_aside() -> Result<()> {
        let folder = tempfile::tempdir()?;
        for name in ["stamp", "lock", MARKER] {
            fs::write(folder.path().join(name), name)?;
        }
        fs::create_dir(folder.path().join("log"))?;
        let aside = set_aside(folder.path())?;
        assert!(aside.join("stamp").exists() && aside.join("log").exists() && aside.join(MARKER).exists());
        assert!(folder.path().join("lock").exists() && !folder.path().join("stamp").exists());
        Ok(())
    }
}
