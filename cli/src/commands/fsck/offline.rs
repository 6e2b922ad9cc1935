//! The folders of nodes that do not run.

use std::collections::BTreeMap;
use std::sync::PoisonError;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use multicast::ids::GroupId;
use partition_replica::inspect::{StoppedNode, StoppedReplica};

use super::buckets;
use super::look::Look;
use super::report::{Problem, Report};
use crate::commands::client::Wishes;
use crate::commands::{node, service};
use crate::config::Cluster;
use crate::exit::{Exit, Failure, Result};

/// For a part of a bucket's listing.
const TIMEOUT: Duration = Duration::from_secs(30);
const WHAT_TO_DO: &str = "see \"A node whose disk is lost or damaged\" in docs/operations.md";

/// Looks at the folders of these nodes; without names, of all whose folder is here.
pub fn run(cluster: &Cluster, names: &[String]) -> Result<Report> {
    let mut report = Report { looks: 1, ..Report::default() };
    let mut nodes = Vec::new();
    for node in cluster.nodes.iter().filter(|node| names.is_empty() || names.contains(&node.name)) {
        if !node.data.join("stamp").exists() {
            report.missing.push(format!("node {}: no data in {}", node.name, node.data.display()));
            continue;
        }
        let config = node::config_of(cluster, node)?;
        match StoppedNode::open(config) {
            Ok(stopped) => nodes.push((node.name.as_str(), stopped)),
            Err(error @ partition_replica::Error::Locked { .. }) => {
                return Err(Failure::new(Exit::Exists, format!("{error}; look at a cluster that runs with --online")));
            }
            Err(error) => report.problems.push(Problem::new(format!("node {}: {error}", node.name))),
        }
    }
    if nodes.is_empty() && report.problems.is_empty() {
        return Err(Failure::new(Exit::Config, "none of the nodes' folders is on this machine"));
    }
    let mut replicas = Vec::new();
    for (name, stopped) in &mut nodes {
        if let Err(error) = stopped.check_log() {
            report.problems.push(Problem::new(format!("node {name}: the log is damaged: {error}")));
        }
        match stopped.replicas() {
            Ok(found) => replicas.extend(found.into_iter().map(|replica| (*name, replica))),
            Err(error) => report.problems.push(Problem::new(format!("node {name}: {error}"))),
        }
    }
    look(cluster, &replicas, &mut report)?;
    Ok(report)
}

fn look(cluster: &Cluster, replicas: &[(&str, StoppedReplica)], report: &mut Report) -> Result<()> {
    judge(cluster, replicas, report);
    let bar = ProgressBar::new(replicas.iter().map(|(_, replica)| replica.standing.rows).sum()).with_style(
        ProgressStyle::with_template("{spinner} {pos}/~{len} rows {bar:30} {elapsed}")
            .unwrap_or_else(|_| ProgressStyle::default_bar()),
    );
    let look = std::sync::Mutex::new(Look::new(cluster));
    let lock = || look.lock().unwrap_or_else(PoisonError::into_inner);
    let mut newest: BTreeMap<GroupId, (&str, &StoppedReplica)> = BTreeMap::new();
    for (node, replica) in replicas.iter().filter(|(_, replica)| replica.quarantine.is_none()) {
        let known = newest.get(&replica.group).map(|(_, known)| known.standing.index);
        if known.is_none_or(|known| known < replica.standing.index) {
            newest.insert(replica.group, (node, replica));
        }
    }
    for (node, replica) in replicas {
        let facts = newest.get(&replica.group).is_some_and(|(of, _)| of == node);
        let mut see = |seen| {
            if let metadata::check::Seen::Rows(rows) = seen {
                bar.inc(rows);
            }
            lock().see((replica.group, node), facts, seen)
        };
        match replica.inspect(&mut see) {
            Ok(()) if facts => lock().took(replica.group, node, replica.standing.clone()),
            Ok(()) => {}
            Err(failure) => {
                let group = cluster.group_name(replica.group);
                let what = format!("the replica of {node} cannot be read: {failure}; {WHAT_TO_DO}");
                report.problems.push(Problem::of(&group, what));
            }
        }
    }
    bar.finish_and_clear();
    let mut look = look.into_inner().unwrap_or_else(PoisonError::into_inner);
    let wishes = Wishes { emulated: false, ..Wishes::tool(cluster, None, TIMEOUT)? };
    let runtime = service::runtime()?;
    report.missing.extend(runtime.block_on(buckets::list(cluster, &wishes, &mut look))?);
    for group in cluster.groups.iter().filter(|group| !newest.contains_key(&group.id)) {
        report.missing.push(format!("group {}: none of its replicas is here", group.name));
    }
    let is_certain = look.is_of_one_moment();
    let looked = look.conclude()?;
    (report.groups, report.buckets) = (looked.groups, looked.buckets);
    // Within one replica nothing is half done. Between groups it may be: their states are of different moments.
    for ((_, _), problem) in looked.found {
        let list = if is_certain || !problem.on.is_empty() { &mut report.problems } else { &mut report.uncertain };
        list.push(problem);
    }
    Ok(())
}

/// What the replicas say of themselves and of one another.
fn judge(cluster: &Cluster, replicas: &[(&str, StoppedReplica)], report: &mut Report) {
    for group in &cluster.groups {
        let mut digests: BTreeMap<(u64, u128), Vec<&str>> = BTreeMap::new();
        for (node, replica) in replicas.iter().filter(|(_, replica)| replica.group == group.id) {
            if let Some(why) = &replica.quarantine {
                let what = format!("the replica of {node} is quarantined: {why}; it is rebuilt when its node runs");
                report.problems.push(Problem::of(&group.name, what));
                continue;
            }
            digests.entry((replica.standing.index.0, replica.standing.digest)).or_default().push(node);
            if !replica.unfinished.is_empty() {
                let (count, name) = (replica.unfinished.len(), &group.name);
                report.notes.push(format!("group {name} on {node}: {count} commands go on when the nodes run"));
            }
        }
        let at: Vec<(u64, String)> = digests.into_iter().map(|((index, _), nodes)| (index, nodes.join(", "))).collect();
        for pair in at.windows(2).filter(|pair| pair[0].0 == pair[1].0) {
            let what = format!("the states at index {} differ: {} from {}", pair[0].0, pair[0].1, pair[1].1);
            report.problems.push(Problem::of(&group.name, what));
        }
    }
}
