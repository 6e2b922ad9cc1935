//! A node whose log or state is damaged begins anew by itself where its groups can do without what it had: as another member, as on
//! a new disk. The damaged files are kept aside.
//!
//! Why nothing acknowledged is lost by that: each of the node's groups has a primary elsewhere that works with a quorum in which
//! this node is not. What was committed is in the log of such a primary. And what this node has promised binds nobody any more:
//! its disk's incarnation never answers again.
//!
//! Which groups those are, the configuration alone does not tell, for members come and go: the node's own folder does, as long
//! as that can be read, and the other nodes name groups that count on it. Who is a member now, each group's primary says.

mod folder;
mod places;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use partition_replica::status::GroupStatus;
use partition_replica::{Error, ErrorClass, Evidence, FirstStart, FolderLock, NodeConfig};
use tokio::runtime::Runtime;

use super::place;
use crate::config::{Cluster, Node};
use crate::exit::{Exit, Failure, Result};
use crate::output::tell;
use folder::Step;
pub use places::Newcomer;
use places::{Told, ask, replicas};

/// A node that has found its state damaged while it ran notes that in a file of this name, and why.
const MARKER: &str = "damaged";
/// The other nodes may be starting, too.
const PATIENCE: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_secs(1);

/// A node that runs.
pub struct Started {
    pub node: partition_replica::Node,
    /// It began on a new disk, and the groups have not all said what it is to them.
    pub newcomer: Option<Newcomer>,
}

/// Starts the node. If its files are damaged, and nothing that was acknowledged needs them, it begins anew.
pub fn start(cluster: &Cluster, me: &Node, config: NodeConfig, runtime: &Runtime) -> Result<Started> {
    let data = &config.data_dir;
    let mut step = folder::step(data)?;
    if let Some(Step::SetAside(into)) = &step {
        let _lock = FolderLock::take(data).map_err(start_failure)?;
        folder::set_aside(data, into)?;
        step = Some(Step::NewDisk);
    } else if step.is_none() && config.first_start == FirstStart::NewDisk && folder::is_empty(data) {
        folder::prepare(data)?;
        step = Some(Step::NewDisk);
    }
    let open = |is_new: bool| {
        let first_start = if is_new { FirstStart::NewDisk } else { config.first_start };
        partition_replica::Node::start(NodeConfig { first_start, ..config.clone() })
    };
    let problem = match fs::read_to_string(data.join(MARKER)) {
        Ok(problem) => problem,
        Err(_) => match open(step.is_some()) {
            Ok(node) => return started(cluster, me, data, (node, step.is_some()), runtime),
            Err(error) if is_damage(&error) => error.to_string(),
            Err(error) => return Err(start_failure(error)),
        },
    };
    begin_anew(cluster, me, &config, runtime, (step, &problem))?;
    let node = open(true).map_err(start_failure)?;
    started(cluster, me, data, (node, true), runtime)
}

fn started(
    cluster: &Cluster,
    me: &Node,
    data: &Path,
    (node, is_new): (partition_replica::Node, bool),
    runtime: &Runtime,
) -> Result<Started> {
    let newcomer = is_new.then(|| Newcomer::begin(cluster, me, data, runtime.handle().clone())).transpose()?;
    Ok(Started { node, newcomer })
}

/// Empties the folder, which was at this `step`, if the node's groups can do without what is in it.
fn begin_anew(
    cluster: &Cluster,
    me: &Node,
    config: &NodeConfig,
    runtime: &Runtime,
    (step, problem): (Option<Step>, &str),
) -> Result {
    let data = &config.data_dir;
    // Until the folder is empty: another process would decide the same, and empty it again when this one's replicas are in it.
    let _lock = FolderLock::take(data).map_err(start_failure)?;
    if folder::step(data)? != step {
        return Err(Failure::new(Exit::Exists, "another process has begun the node anew"));
    }
    runtime.block_on(wait_until_dispensable(cluster, me, config)).map_err(|why| {
        let what = format!("{problem}. The node does not begin anew by itself: {why}");
        Failure::new(Exit::Problems, what)
    })?;
    let into = folder::condemn(data)?;
    let aside = folder::set_aside(data, &into)?;
    tell!(
        "globalfs: node {}: {problem}. All its groups go on without it, so it begins anew, as on a new disk; what is damaged is \
         kept in {}",
        me.name,
        aside.display()
    );
    Ok(())
}

/// The node has ended by itself: if its files are damaged, the next start must know.
pub fn note_failure(data: &Path, failure: &str) {
    if failure.contains(partition_replica::STATE_IS_DAMAGED)
        && let Err(error) = folder::mark(data, failure)
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
async fn wait_until_dispensable(cluster: &Cluster, me: &Node, config: &NodeConfig) -> std::result::Result<(), String> {
    let evidence = Evidence::of(config);
    let mine = groups_on_disk(cluster, me, &evidence);
    let until = Instant::now() + PATIENCE;
    let mut answer = Err(String::new());
    let wishes = places::wishes(me);
    let asked = place::with_client(cluster, &wishes, async |client| {
        loop {
            let others = cluster.nodes.iter().filter(|node| node.id != me.id);
            answer = is_dispensable(me, &mine, &ask(client, others).await);
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

/// Says which group needs this node, if one does, by what the other nodes say. `mine`: the groups that it may have a replica of;
/// of those no other node may speak, as all their other members may be down.
fn is_dispensable(
    me: &Node,
    mine: &BTreeMap<u16, Mine>,
    others: &BTreeMap<u32, Told>,
) -> std::result::Result<(), String> {
    if others.is_empty() {
        return Err(alone(mine).unwrap_or_else(|| "no other node answers".into()));
    }
    let mut mine = mine.clone();
    for told in others.values() {
        let is_member = |replica: &&GroupStatus| replica.members.iter().any(|member| member.node == me.id.0);
        let in_replicas = told.status.groups.iter().filter(is_member);
        let in_replicas = in_replicas.map(|replica| (replica.group, replica.name.clone()));
        let in_directory = told.directory.groups.iter().filter(|known| known.members.member(me.id).is_some());
        let in_directory = in_directory.map(|known| (known.group.0, known.group.to_string()));
        for (group, name) in in_replicas.chain(in_directory) {
            mine.entry(group).or_insert(Mine { name, is_alone: false });
        }
    }
    for (&group, Mine { name, is_alone }) in &mine {
        works_without(me, (group, name), others).map_err(|why| if *is_alone { only_voter(name) } else { why })?;
    }
    Ok(())
}

fn only_voter(group: &str) -> String {
    format!("it is the only voter of group {group}")
}

fn alone(mine: &BTreeMap<u16, Mine>) -> Option<String> {
    mine.values().find(|mine| mine.is_alone).map(|mine| only_voter(&mine.name))
}

/// Says why not if the group has no primary that works with a quorum in which this node is not.
fn works_without(
    me: &Node,
    (group, name): (u16, &str),
    others: &BTreeMap<u32, Told>,
) -> std::result::Result<(), String> {
    let Some(primary) = places::primary(group, others) else {
        return Err(format!("group {name} has no primary without it"));
    };
    let voters = || primary.members.iter().filter(|member| member.role == "voter");
    let up = voters().filter(|voter| {
        voter.node != me.id.0
            && replicas(group, others).any(|(node, replica)| {
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
    Ok(())
}

#[cfg(test)]
mod tests {
    use multicast::Membership;
    use multicast::ids::GroupId;

    use super::places::tests::{me, members, node};
    use super::*;
    use crate::commands::{init, node as node_command};

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
        assert_eq!(with_third(&|_| {}), Ok(()));
        assert!(with_third(&|third| third.incarnation = "77".into()).is_err(), "another disk than the group knows");
        assert!(with_third(&|third| third.ballot_round = 7).is_err(), "it knows of a later primary");
    }

    #[test]
    fn node_is_needed_by_a_group_of_which_nobody_speaks() {
        let mut others = BTreeMap::from([node(2, "primary", &[1, 2, 3]), node(3, "follower", &[1, 2, 3])]);
        assert!(is_dispensable(&me(), &named(&[0]), &others).is_ok());
        let why = is_dispensable(&me(), &named(&[0, 1]), &others).expect_err("the members of group 1 are all down");
        assert!(why.contains("g1"), "{why}");
        others.get_mut(&2).into_iter().for_each(|told| told.directory.groups.push(members(1, &[1])));
        assert!(is_dispensable(&me(), &BTreeMap::new(), &others).is_err(), "another node knows it as a member");
    }

    #[test]
    fn node_that_was_replaced_is_needed_no_more_once_the_group_says_so() {
        let of_others = BTreeMap::from([node(2, "primary", &[2])]);
        assert_eq!(is_dispensable(&me(), &named(&[0]), &of_others), Ok(()));
        let stopped = BTreeMap::from([node(2, "follower", &[2])]);
        assert!(is_dispensable(&me(), &named(&[0]), &stopped).is_err(), "it may have been taken in again since");
        assert!(is_dispensable(&me(), &BTreeMap::new(), &BTreeMap::new()).is_err(), "nobody to ask");
        assert_eq!(is_dispensable(&me(), &BTreeMap::new(), &stopped), Ok(()), "it hosts nothing");
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
    fn start_goes_on_wherever_beginning_anew_was_interrupted() -> Result<()> {
        let plan = init::plan_of_one_machine(&["us".into(), "eu".into()], 1).expect("a plan");
        let runtime = crate::commands::service::runtime()?;
        let begun = |data: &Path| folder::condemn(data).map(drop);
        let halfway = |data: &Path| {
            let aside = data.join(folder::condemn(data)?);
            fs::create_dir(&aside)?;
            Ok(fs::rename(data.join("stamp"), aside.join("stamp"))?)
        };
        let emptied = |data: &Path| folder::set_aside(data, &folder::condemn(data)?).map(drop);
        let interrupted: [&dyn Fn(&Path) -> Result; 3] = [&begun, &halfway, &emptied];
        for (at, interrupt) in interrupted.into_iter().enumerate() {
            let place = tempfile::tempdir()?;
            let cluster = Cluster { wan: None, ..init::create(place.path(), &plan).expect("a cluster") };
            let me = &cluster.nodes[0];
            let mut config = node_command::config_of(&cluster, me)?;
            config.listen.set_port(0);
            // A node of the founding, whose log is damaged.
            partition_replica::Node::start(config.clone()).map_err(start_failure)?.shutdown();
            interrupt(&config.data_dir)?;
            let Started { node, newcomer } = start(&cluster, me, config.clone(), &runtime)?;
            assert!(newcomer.is_some(), "{at}: nobody has said what it is to its groups");
            let incarnations = node.status().groups.into_iter().map(|group| group.incarnation).collect::<Vec<_>>();
            assert!(!incarnations.is_empty() && incarnations.iter().all(|disk| *disk != "0"), "{at}: {incarnations:?}");
            assert_eq!(folder::step(&config.data_dir)?, Some(Step::NewDisk));
            node.shutdown();
            // Killed before the groups have spoken, it asks again, and is on the same disk.
            let Started { node, newcomer } = start(&cluster, me, config, &runtime)?;
            let again = node.status().groups.into_iter().map(|group| group.incarnation).collect::<Vec<_>>();
            assert!(newcomer.is_some() && again == incarnations, "{at}: {again:?}");
            node.shutdown();
        }
        Ok(())
    }
}
