//! A node whose log or state is damaged begins anew by itself where its groups can do without what it had: as another member, as on
//! a new disk. The damaged files are kept aside.
//!
//! Why nothing acknowledged is lost by that: each of the node's groups has a primary elsewhere that works with a quorum in which
//! this node is not. What was committed is in the log of such a primary. And what this node has promised binds nobody any more:
//! its disk's incarnation never answers again.
//!
//! Which groups those are, the configuration alone does not tell, for members come and go: the node's own folder does, as long
//! as that can be read, and the other nodes name groups that count on it. Who is a member now, each group's primary says.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use fs_client::{Client, Consistency, OnCut};
use multicast::ids::GroupId;
use net::Role;
use partition_replica::status::{GroupStatus, NodeStatus};
use partition_replica::{Error, ErrorClass, Evidence, FirstStart, NodeConfig};
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
    let wanted = runtime.block_on(wait_until_dispensable(cluster, me, &config)).map_err(|why| {
        let what = format!("{problem}. The node does not begin anew by itself: {why}");
        Failure::new(Exit::Problems, what)
    })?;
    let aside = set_aside(&config.data_dir)?;
    tell!(
        "globalfs: node {}: {problem}. All its groups go on without it, so it begins anew, as on a new disk; what is damaged is \
         kept in {}",
        me.name,
        aside.display()
    );
    let config = NodeConfig { first_start: FirstStart::NewDisk, ..config };
    let node = partition_replica::Node::start(config).map_err(start_failure)?;
    for group in wanted {
        // One that cannot begin is missing as one whose node is down.
        if let Err(why) = node.host(group) {
            tell!("globalfs: node {}: its replica of group {group} does not begin again: {why}", me.name);
        }
    }
    Ok(node)
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

/// Until each group of this node works without it: the groups that have it as a member. Says why not if it does not in time.
async fn wait_until_dispensable(
    cluster: &Cluster,
    me: &Node,
    config: &NodeConfig,
) -> std::result::Result<Vec<GroupId>, String> {
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
    let evidence = Evidence::of(config);
    let mine = groups_on_disk(cluster, me, &evidence);
    let until = Instant::now() + PATIENCE;
    let mut answer = Err(String::new());
    let asked = place::with_client(cluster, &wishes, async |client| {
        loop {
            answer = is_dispensable(me, &mine, &others(client, cluster, me).await);
            if answer.is_ok() || Instant::now() >= until {
                return Ok(Exit::Done);
            }
            tokio::time::sleep(PAUSE).await;
        }
    });
    asked.await.map_err(|failure| failure.message())?;
    answer
}

/// The groups of which the damaged files may hold a replica.
fn groups_on_disk(cluster: &Cluster, me: &Node, evidence: &Evidence) -> BTreeMap<u16, Mine> {
    let mut mine = BTreeMap::new();
    for group in &cluster.groups {
        let members = evidence.members.get(&group.id);
        let is_here = match &evidence.hosted {
            Ok(hosted) => hosted.contains(&group.id) || members.is_some_and(|known| known.member(me.id).is_some()),
            // It may be any.
            Err(_) => true,
        };
        let is_alone = match members {
            Some(known) => known.voters().all(|voter| voter.replica == me.id),
            None => group.voters == [me.name.as_str()],
        };
        if is_here {
            mine.insert(group.id.0, Mine { name: group.name.clone(), is_alone });
        }
    }
    mine
}

/// A group that may need this node.
#[derive(Clone, Debug)]
struct Mine {
    name: String,
    /// It is the only voter, as far as it knew.
    is_alone: bool,
}

/// What another node says.
#[derive(Clone, Debug, Default)]
struct Told {
    status: NodeStatus,
    /// Groups that it knows this node as a member of, without having a replica itself.
    names_me: BTreeSet<u16>,
}

async fn others(client: &Client, cluster: &Cluster, me: &Node) -> BTreeMap<u32, Told> {
    let others = cluster.nodes.iter().filter(|node| node.id != me.id);
    let ask = others.map(|node| async move {
        let document = tokio::time::timeout(TIMEOUT, client.node_status(node.id)).await.ok()?.ok()?;
        let directory = tokio::time::timeout(TIMEOUT, client.node_directory(node.id)).await.ok()?.ok()?;
        let names_me = directory.groups.iter().filter(|known| known.members.member(me.id).is_some());
        let names_me = names_me.map(|known| known.group.0).collect();
        Some((node.id.0, Told { status: serde_json::from_slice::<NodeStatus>(&document).ok()?, names_me }))
    });
    futures::future::join_all(ask).await.into_iter().flatten().collect()
}

/// Says which group needs this node, if one does, by what the other nodes say; else the groups that have it as a member. `mine`:
/// the groups that it may have a replica of; of those no other node may speak, as all their other members may be down.
fn is_dispensable(
    me: &Node,
    mine: &BTreeMap<u16, Mine>,
    others: &BTreeMap<u32, Told>,
) -> std::result::Result<Vec<GroupId>, String> {
    if others.is_empty() {
        return Err(alone(mine).unwrap_or_else(|| "no other node answers".into()));
    }
    let mut mine = mine.clone();
    for told in others.values() {
        let is_member = |replica: &&GroupStatus| replica.members.iter().any(|member| member.node == me.id.0);
        let in_replicas = told.status.groups.iter().filter(is_member);
        let named = in_replicas.map(|replica| (replica.group, replica.name.clone()));
        for (group, name) in named.chain(told.names_me.iter().map(|&group| (group, group.to_string()))) {
            mine.entry(group).or_insert(Mine { name, is_alone: false });
        }
    }
    let mut members = Vec::new();
    for (&group, Mine { name, is_alone }) in &mine {
        let primary = primary_without(me, (group, name), others);
        let primary = primary.map_err(|why| if *is_alone { only_voter(name) } else { why })?;
        if primary.members.iter().any(|member| member.node == me.id.0) {
            members.push(GroupId(group));
        }
    }
    Ok(members)
}

fn only_voter(group: &str) -> String {
    format!("it is the only voter of group {group}")
}

fn alone(mine: &BTreeMap<u16, Mine>) -> Option<String> {
    mine.values().find(|mine| mine.is_alone).map(|mine| only_voter(&mine.name))
}

/// The group's primary, if it works with a quorum in which this node is not.
fn primary_without<'a>(
    me: &Node,
    (group, name): (u16, &str),
    others: &'a BTreeMap<u32, Told>,
) -> std::result::Result<&'a GroupStatus, String> {
    let replicas = || {
        let of_group = move |told: &'a Told| told.status.groups.iter().find(|replica| replica.group == group);
        others.iter().filter_map(move |(node, told)| Some((*node, of_group(told)?)))
    };
    let primary = replicas().filter(|(_, replica)| replica.role == "primary").map(|(_, replica)| replica);
    let Some(primary) = primary.max_by_key(|replica| replica.ballot_round) else {
        return Err(format!("group {name} has no primary without it"));
    };
    let voters = || primary.members.iter().filter(|member| member.role == "voter");
    let up = voters().filter(|voter| {
        voter.node != me.id.0
            && replicas().any(|(node, replica)| {
                node == voter.node
                    && replica.incarnation == voter.incarnation
                    && replica.quarantine.is_none()
                    // Else it has promised something to a later primary, which may have worked with this node.
                    && replica.ballot_round <= primary.ballot_round
            })
    });
    let (up, all) = (up.count(), voters().count());
    if 2 * up <= all {
        return Err(format!("of the {all} voters of group {name} only {up} others are up, which is no quorum"));
    }
    Ok(primary)
}

/// Moves log, state and stamp into a folder beside them.
fn set_aside(data: &Path) -> Result<PathBuf> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let aside = data.join(format!("damaged-{now}"));
    let doing = || format!("setting damaged files aside in {}", aside.display());
    fs::create_dir(&aside).with_context(doing)?;
    // The stamp first: data without it are refused, whereas an empty log under the old stamp would pass for one that has
    // promised nothing.
    // What the folder held is known until all of it is gone.
    for name in ["stamp", "log", "state", "replicas", MARKER] {
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
    use multicast::Membership;
    use multicast::ids::ReplicaId;
    use partition_replica::status::MemberStatus;

    use super::*;
    use crate::commands::init;

    fn me() -> Node {
        let text = || "x".to_owned();
        Node { id: ReplicaId(1), name: text(), region: text(), address: text(), listen: None, data: PathBuf::new() }
    }

    fn node(number: u32, role: &str, voters: &[u32]) -> (u32, Told) {
        let member = |&node: &u32| MemberStatus { node, role: "voter".into(), incarnation: "0".into() };
        let group = GroupStatus {
            name: "g".into(),
            role: role.into(),
            members: voters.iter().map(member).collect(),
            incarnation: "0".into(),
            ..GroupStatus::default()
        };
        let status = NodeStatus { node: number, groups: vec![group], ..NodeStatus::default() };
        (number, Told { status, names_me: BTreeSet::new() })
    }

    fn named(groups: &[u16]) -> BTreeMap<u16, Mine> {
        groups.iter().map(|&group| (group, Mine { name: format!("g{group}"), is_alone: false })).collect()
    }

    #[test]
    fn node_begins_anew_only_if_its_groups_have_a_primary_and_a_quorum_without_it() {
        let may = |others: &[(u32, &str)], voters: &[u32]| {
            let others = others.iter().map(|(number, role)| node(*number, role, voters)).collect();
            is_dispensable(&me(), &BTreeMap::new(), &others).is_ok()
        };
        let (three, five) = ([1, 2, 3], [1, 2, 3, 4, 5]);
        assert!(may(&[(2, "primary"), (3, "follower")], &three));
        assert!(!may(&[(2, "primary")], &three), "the third may be lost, too");
        assert!(!may(&[(2, "follower"), (3, "follower")], &three), "nobody knows what was committed");
        assert!(!may(&[(2, "primary"), (3, "follower")], &five));
        assert!(may(&[(2, "primary"), (3, "follower"), (4, "follower")], &five));
        assert!(!may(&[], &three));
        let good = BTreeMap::from([node(2, "primary", &three), node(3, "follower", &three)]);
        let with_third = |change: &dyn Fn(&mut GroupStatus)| {
            let mut others = good.clone();
            others.get_mut(&3).into_iter().for_each(|told| change(&mut told.status.groups[0]));
            is_dispensable(&me(), &BTreeMap::new(), &others)
        };
        assert_eq!(with_third(&|_| {}), Ok(vec![GroupId(0)]));
        assert!(with_third(&|third| third.incarnation = "77".into()).is_err(), "another disk than the group knows");
        assert!(with_third(&|third| third.ballot_round = 7).is_err(), "it knows of a later primary");
    }

    #[test]
    fn node_is_needed_by_a_group_of_which_nobody_speaks() {
        let mut others = BTreeMap::from([node(2, "primary", &[1, 2, 3]), node(3, "follower", &[1, 2, 3])]);
        assert!(is_dispensable(&me(), &named(&[0]), &others).is_ok());
        let why = is_dispensable(&me(), &named(&[0, 1]), &others).expect_err("the members of group 1 are all down");
        assert!(why.contains("g1"), "{why}");
        others.get_mut(&2).into_iter().for_each(|told| _ = told.names_me.insert(1));
        assert!(is_dispensable(&me(), &BTreeMap::new(), &others).is_err(), "another node knows it as a member");
    }

    #[test]
    fn node_that_was_replaced_is_needed_no_more_once_the_group_says_so() {
        let of_others = BTreeMap::from([node(2, "primary", &[2])]);
        assert_eq!(is_dispensable(&me(), &named(&[0]), &of_others), Ok(Vec::new()));
        let stopped = BTreeMap::from([node(2, "follower", &[2])]);
        assert!(is_dispensable(&me(), &named(&[0]), &stopped).is_err(), "it may have been taken in again since");
        assert!(is_dispensable(&me(), &BTreeMap::new(), &BTreeMap::new()).is_err(), "nobody to ask");
        assert_eq!(is_dispensable(&me(), &BTreeMap::new(), &stopped), Ok(Vec::new()), "it hosts nothing");
    }

    #[test]
    fn groups_on_a_damaged_disk_are_those_that_its_own_folder_names() {
        let folder = tempfile::tempdir().expect("a folder");
        let plan = init::plan_of_one_machine(&["us".into(), "eu".into()], 2).expect("a plan");
        let cluster = init::create(folder.path(), &plan).expect("a cluster");
        let me = cluster.nodes[0].clone();
        let groups = |hosted: &[GroupId], members| {
            let hosted = Ok(hosted.iter().copied().collect());
            groups_on_disk(&cluster, &me, &Evidence { hosted, members }).into_keys().collect::<Vec<u16>>()
        };
        let all: Vec<u16> = cluster.groups.iter().map(|group| group.id.0).collect();
        let last = cluster.groups[cluster.groups.len() - 1].id;
        assert_eq!(
            groups(&[], BTreeMap::new()),
            Vec::<u16>::new(),
            "it was replaced everywhere, whatever the configuration says"
        );
        assert_eq!(groups(&[last], BTreeMap::new()), [last.0], "nor does that know of it");
        let known = BTreeMap::from([(last, Membership::genesis(&[me.id]))]);
        assert_eq!(groups(&[], known), [last.0]);
        let unreadable = Err(Error::Stopping);
        let found = groups_on_disk(&cluster, &me, &Evidence { hosted: unreadable, members: BTreeMap::new() });
        assert_eq!(found.into_keys().collect::<Vec<u16>>(), all, "it may be any");
    }

    #[test]
    fn damaged_files_are_kept_aside() -> Result<()> {
        let folder = tempfile::tempdir()?;
        for name in ["stamp", "lock", "replicas", "members", MARKER] {
            fs::write(folder.path().join(name), name)?;
        }
        fs::create_dir(folder.path().join("log"))?;
        let aside = set_aside(folder.path())?;
        assert!(aside.join("stamp").exists() && aside.join("log").exists() && aside.join(MARKER).exists());
        assert!(aside.join("replicas").exists() && folder.path().join("members").exists());
        assert!(folder.path().join("lock").exists() && !folder.path().join("stamp").exists());
        Ok(())
    }
}
