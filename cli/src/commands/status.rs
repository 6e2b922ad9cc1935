//! `globalfs status`: what every node says, and what can be seen from that.

mod metrics;

use std::collections::BTreeMap;
use std::time::Duration;

use clap::Args;
use fs_client::{Client, Error};
use multicast::ids::GroupId;
use partition_replica::status::{GroupStatus, MemberStatus, NodeStatus, UnfinishedStatus};
use serde_json::json;

use super::client::Wishes;
use super::{place, service};
use crate::args::Globals;
use crate::config::{Cluster, Group, find};
use crate::exit::{Exit, Result};
use crate::output::{Table, bold, green, red, say, say_all, yellow};
use crate::units::{ByteSize, TimeSpan};

/// Options.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  globalfs status
  globalfs status --json | jq '.groups[] | {name, primary, lag}'
  globalfs status --metrics >/var/lib/node_exporter/globalfs.prom

Exit code 0 if all is well, 5 if a node is down or a group has no primary, 4 if no node answers.")]
pub struct StatusArgs {
    /// One JSON object: `nodes` with all that each says, `groups` as their primaries see them
    #[arg(long)]
    json: bool,
    /// Figures for a monitoring system, in the text format of Prometheus
    #[arg(long, conflicts_with = "json")]
    metrics: bool,
    /// How long to wait for a node
    #[arg(long, value_name = "TIME", default_value = "3s")]
    timeout: TimeSpan,
}

/// What is known of a node.
struct Seen<'a> {
    name: &'a str,
    region: &'a str,
    address: &'a str,
    answer: std::result::Result<NodeStatus, Down>,
}

/// Why a node has not answered.
struct Down {
    /// In a few words, for the table.
    brief: &'static str,
    /// With all that is known.
    problem: String,
}

impl Down {
    fn new(error: &Error) -> Self {
        let brief = match error {
            Error::Net(error) => match **error {
                net::Error::Refused(_) => "refuses us",
                net::Error::Resolve { .. } => "address unknown",
                net::Error::Timeout { .. } => "no answer",
                _ => "no connection",
            },
            Error::Timeout { .. } => "no answer",
            _ => "cannot be asked",
        };
        Down { brief, problem: error.to_string() }
    }
}

/// A group as its primary, or else its most advanced voter, sees it.
struct View<'a> {
    group: &'a Group,
    best: Option<&'a GroupStatus>,
    has_primary: bool,
    /// Names of the voters, as the group itself has them if it can be asked.
    voters: Vec<String>,
    /// Names of members that do not vote.
    learners: Vec<String>,
    voters_up: usize,
    digests_agree: bool,
}

/// Asks all nodes at once.
pub fn run(globals: &Globals, args: &StatusArgs) -> Result<Exit> {
    let (cluster, region) = find::cluster_and_region(globals.config.as_deref(), None)?;
    // Who looks after a cluster sees it as it is: an emulated cut does not hide nodes.
    let wishes = Wishes { emulated: false, ..Wishes::tool(&cluster, region.as_deref(), args.timeout.0)? };
    let runtime = service::runtime()?;
    runtime.block_on(place::with_client(&cluster, &wishes, async |client| {
        let nodes = ask(client, &cluster, args.timeout.0).await;
        let groups: Vec<View> = cluster.groups.iter().map(|group| view(&cluster, group, &nodes)).collect();
        match (args.json, args.metrics) {
            (true, _) => say!("{}", as_json(&cluster, &nodes, &groups)),
            (false, true) => say_all(&metrics::render(&cluster, &nodes, &groups)),
            (false, false) => say_all(&as_tables(&cluster, &nodes, &groups)),
        }
        Ok(verdict(&nodes, &groups))
    }))
}

async fn ask<'a>(client: &Client, cluster: &'a Cluster, timeout: Duration) -> Vec<Seen<'a>> {
    let mut asked = Vec::new();
    for node in &cluster.nodes {
        let (client, id) = (client.clone(), node.id);
        asked.push(tokio::spawn(async move {
            let answer = tokio::time::timeout(timeout, client.node_status(id)).await;
            let silent = |_| Down { brief: "no answer", problem: format!("no answer within {}", TimeSpan(timeout)) };
            let document = answer.map_err(silent)?.map_err(|error| Down::new(&error))?;
            let unreadable = |error| Down { brief: "another version", problem: format!("unreadable answer: {error}") };
            serde_json::from_slice::<NodeStatus>(&document).map_err(unreadable)
        }));
    }
    let mut seen = Vec::new();
    for (node, asked) in cluster.nodes.iter().zip(asked) {
        let unasked = |error: tokio::task::JoinError| Down { brief: "cannot be asked", problem: error.to_string() };
        let answer = asked.await.unwrap_or_else(|error| Err(unasked(error)));
        seen.push(Seen { name: &node.name, region: &node.region, address: &node.address, answer });
    }
    seen
}

fn view<'a>(cluster: &Cluster, group: &'a Group, nodes: &'a [Seen<'a>]) -> View<'a> {
    let (numbers, replicas): (Vec<u32>, Vec<&GroupStatus>) = nodes
        .iter()
        .filter_map(|node| node.answer.as_ref().ok())
        .flat_map(|status| status.groups.iter().map(|replica| (status.node, replica)))
        .filter(|(_, replica)| replica.group == group.id.0)
        .unzip();
    let primary =
        replicas.iter().filter(|replica| replica.role == "primary").max_by_key(|replica| replica.ballot_round);
    let best = primary.or_else(|| replicas.iter().max_by_key(|replica| replica.applied_index)).copied();
    let members = best.map(|best| best.members.as_slice()).unwrap_or_default();
    let names = |is_voter: bool| {
        let found = members.iter().filter(|member| (member.role == "voter") == is_voter);
        found.map(|member| node_name(cluster, member.node)).collect::<Vec<_>>()
    };
    // A node with another disk than the group knows is up, but its replica is not.
    let is_up = |member: &&MemberStatus| {
        let mut seen = numbers.iter().zip(&replicas);
        seen.any(|(&node, replica)| node == member.node && replica.incarnation == member.incarnation)
    };
    View {
        group,
        voters: if members.is_empty() { group.voters.clone() } else { names(true) },
        learners: names(false),
        voters_up: members.iter().filter(|member| member.role == "voter").filter(is_up).count(),
        best,
        has_primary: primary.is_some(),
        digests_agree: digests_agree(&replicas),
    }
}

/// Replicas that have applied the same log prefix must have the same state.
fn digests_agree(replicas: &[&GroupStatus]) -> bool {
    let mut seen: BTreeMap<u64, &String> = BTreeMap::new();
    replicas
        .iter()
        .flat_map(|replica| &replica.digests)
        .all(|(index, digest)| *seen.entry(*index).or_insert(digest) == digest)
}

fn verdict(nodes: &[Seen<'_>], groups: &[View<'_>]) -> Exit {
    if nodes.iter().all(|node| node.answer.is_err()) {
        return Exit::Unavailable;
    }
    let node_bad = |node: &Seen<'_>| node.answer.as_ref().map_or(true, |status| status.failure.is_some());
    let quarantined = nodes.iter().any(|node| !quarantined(node).is_empty());
    let bad = quarantined
        || nodes.iter().any(node_bad)
        || groups.iter().any(|group| !group.has_primary || !group.digests_agree);
    if bad { Exit::Problems } else { Exit::Done }
}

fn as_json(cluster: &Cluster, nodes: &[Seen<'_>], groups: &[View<'_>]) -> serde_json::Value {
    let nodes: Vec<_> = nodes
        .iter()
        .map(|node| {
            let (status, problem) = match &node.answer {
                Ok(status) => (Some(status), None),
                Err(down) => (None, Some(&down.problem)),
            };
            json!({
                "name": node.name, "region": node.region, "address": node.address, "up": status.is_some(),
                "pid": status.map(|status| status.pid), "problem": problem, "status": status,
            })
        })
        .collect();
    let groups: Vec<_> = groups
        .iter()
        .map(|view| {
            let best = view.best;
            json!({
                "id": view.group.id.0, "name": view.group.name, "voters": view.voters,
                "members": best.map(|best| &best.members),
                "primary": primary_name(cluster, view), "ballot": best.map(|best| best.ballot_round),
                "committed": best.map(|best| best.committed_index), "executed": best.map(|best| best.applied_index),
                "lag": lag(cluster, view), "voters_up": view.voters_up, "digests_agree": view.digests_agree,
                "unfinished": best.map(|best| &best.unfinished),
                "held": best.map(|best| &best.held), "held_count": best.map(|best| best.held_count),
                "silent_groups": best.map(|best| &best.silent_groups),
            })
        })
        .collect();
    json!({ "schema": 1, "cluster": cluster.name, "nodes": nodes, "groups": groups })
}

fn as_tables(cluster: &Cluster, nodes: &[Seen<'_>], groups: &[View<'_>]) -> String {
    let mut text = nodes_table(nodes).render();
    text.push('\n');
    text.push_str(&groups_table(cluster, groups).render());
    let unfinished: Vec<_> = groups
        .iter()
        .filter_map(|view| Some((view, view.best?)))
        .flat_map(|(view, best)| best.unfinished.iter().chain(&best.held).map(move |command| (view, command)))
        .collect();
    if !unfinished.is_empty() {
        text.push_str(&format!("\n{}\n", bold("unfinished multi-group commands, and what waits for them")));
        text.push_str(&unfinished_table(cluster, &unfinished).render());
    }
    text.push_str(&silences(cluster, groups));
    text.push_str(&copies(cluster, nodes));
    text.push_str(&remarks(nodes));
    for view in groups.iter().filter(|view| !view.digests_agree) {
        text.push_str(&red(&format!("group {}: the voters' states differ\n", view.group.name)));
    }
    text
}

/// Commands that are held and not listed, and groups that do not answer others.
fn silences(cluster: &Cluster, groups: &[View<'_>]) -> String {
    let mut text = String::new();
    for (view, best) in groups.iter().filter_map(|view| Some((view, view.best?))) {
        let name = &view.group.name;
        if best.held_count > best.held.len() {
            let more = best.held_count - best.held.len();
            text.push_str(&format!("\ngroup {name}: {more} more commands wait for unfinished ones\n"));
        }
        for silent in &best.silent_groups {
            let (other, since) = (cluster.group_name(GroupId(silent.group)), since(silent.elapsed_ms));
            let refused = "new commands with it are refused, and their clients ask again";
            text.push_str(&yellow(&format!("\ngroup {name}: group {other} has not answered for {since}: {refused}\n")));
        }
    }
    text
}

/// Replicas that do nothing because their state is not their group's: the group's name, and why.
fn quarantined<'a>(node: &'a Seen<'_>) -> Vec<(&'a str, &'a str)> {
    let groups = node.answer.iter().flat_map(|status| &status.groups);
    groups.filter_map(|group| Some((group.name.as_str(), group.quarantine.as_deref()?))).collect()
}

/// Copies of states under way, as their receivers see them.
fn copies(cluster: &Cluster, nodes: &[Seen<'_>]) -> String {
    let mut text = String::new();
    for node in nodes {
        for group in node.answer.iter().flat_map(|status| &status.groups) {
            for copy in group.copies.iter().filter(|copy| !copy.is_sent) {
                let (name, from) = (&group.name, node_name(cluster, copy.peer));
                let (size, percent) = (ByteSize(copy.bytes), copy.percent);
                text.push_str(&format!(
                    "\n{}: its replica of group {name} gets a copy of the state from {from}: {size}, about {percent} %\n",
                    node.name
                ));
            }
        }
    }
    text
}

/// What else nodes have to say.
fn remarks(nodes: &[Seen<'_>]) -> String {
    let mut text = String::new();
    for node in nodes {
        let late = node.answer.iter().flat_map(|status| &status.groups).filter(|group| group.role == "late");
        for group in late {
            let name = &group.name;
            text.push_str(&yellow(&format!(
                "\n{}: its replica of group {name} has not said in time how it is\n",
                node.name
            )));
        }
        for (group, why) in quarantined(node) {
            text.push_str(&red(&format!("\n{}: its replica of group {group} is quarantined: {why}\n", node.name)));
        }
        let Ok(status) = &node.answer else { continue };
        if let Some(problem) = &status.storage.log_problem {
            text.push_str(&format!("\n{}: {}\n", node.name, yellow(problem)));
        }
        let Some(collector) = &status.collector else { continue };
        if collector.waiting > 0 || collector.problem.is_some() {
            let (waiting, collected) = (collector.waiting, collector.collected);
            text.push_str(&format!("\n{}: {waiting} blobs wait for their deletion, {collected} deleted\n", node.name));
        }
        if let Some(problem) = &collector.problem {
            text.push_str(&yellow(&format!("{}: collection of blobs: {problem}\n", node.name)));
        }
    }
    text
}

fn nodes_table(nodes: &[Seen<'_>]) -> Table {
    let mut table = Table::new([
        "node",
        "region",
        "address",
        "state",
        "pid",
        "up for",
        "clients",
        "memory",
        "log",
        "state on disk",
    ])
    .right(&[4, 5, 6, 7, 8, 9]);
    for node in nodes {
        let mut row = vec![node.name.to_owned(), node.region.to_owned(), node.address.to_owned()];
        match &node.answer {
            Ok(status) => row.extend([
                status.failure.as_ref().map_or_else(|| green("up"), |failure| red(&format!("failed: {failure}"))),
                status.pid.to_string(),
                TimeSpan(Duration::from_secs(status.uptime_ms / 1000)).to_string(),
                status.clients.to_string(),
                ByteSize(status.storage.resident_bytes).to_string(),
                ByteSize(status.storage.log_bytes).to_string(),
                ByteSize(status.storage.state_bytes).to_string(),
            ]),
            Err(down) => row.push(red(&format!("down: {}", down.brief))),
        }
        table.row(row);
    }
    table
}

fn groups_table(cluster: &Cluster, groups: &[View<'_>]) -> Table {
    let mut table = Table::new([
        "group",
        "voters",
        "learners",
        "up",
        "primary",
        "ballot",
        "committed",
        "executed",
        "lag",
        "unfinished",
    ])
    .right(&[3, 5, 6, 7, 9]);
    for view in groups {
        let number = |value: Option<u64>| value.map_or_else(|| "-".into(), |value| value.to_string());
        let up = format!("{}/{}", view.voters_up, view.voters.len());
        let lag = lag(cluster, view).iter().map(|(node, lag)| format!("{node} {lag}")).collect::<Vec<_>>();
        table.row(vec![
            view.group.name.clone(),
            view.voters.join(","),
            view.learners.join(","),
            if view.voters_up == view.voters.len() { up } else { yellow(&up) },
            primary_name(cluster, view).unwrap_or_else(|| red("none")),
            number(view.best.map(|best| best.ballot_round)),
            number(view.best.map(|best| best.committed_index)),
            number(view.best.map(|best| best.applied_index)),
            lag.join(", "),
            number(view.best.map(|best| best.unfinished.len() as u64)),
        ]);
    }
    table
}

fn unfinished_table(cluster: &Cluster, unfinished: &[(&View<'_>, &UnfinishedStatus)]) -> Table {
    let mut table = Table::new(["group", "command", "of groups", "stage", "waits for", "since", "for"]).right(&[5]);
    let names = |groups: &[u16]| groups.iter().map(|id| cluster.group_name(GroupId(*id))).collect::<Vec<_>>().join(",");
    for (view, command) in unfinished {
        table.row(vec![
            view.group.name.clone(),
            command.command.clone(),
            names(&command.destinations),
            command.stage.clone(),
            names(&command.waiting_for),
            since(command.elapsed_ms),
            for_whom(command),
        ]);
    }
    table
}

fn since(elapsed_ms: u64) -> String {
    TimeSpan(Duration::from_millis(elapsed_ms)).to_string()
}

/// The client whose command it is, with what it says of itself; else its session.
fn for_whom(command: &UnfinishedStatus) -> String {
    match (&command.client, &command.label) {
        (Some(client), Some(label)) => format!("{client} ({label})"),
        (Some(client), None) => client.clone(),
        (None, _) => format!("session {}", command.session),
    }
}

fn primary_name(cluster: &Cluster, view: &View<'_>) -> Option<String> {
    let primary = view.best.filter(|_| view.has_primary)?.primary?;
    Some(node_name(cluster, primary))
}

/// Entries behind the primary, by voter; those that are not behind are left out.
fn lag(cluster: &Cluster, view: &View<'_>) -> BTreeMap<String, u64> {
    let lags = view.best.map(|best| &best.lag).into_iter().flatten();
    lags.filter(|(_, lag)| **lag > 0).map(|(node, lag)| (node_name(cluster, *node), *lag)).collect()
}

fn node_name(cluster: &Cluster, id: u32) -> String {
    let mut nodes = cluster.nodes.iter().chain(&cluster.removed);
    nodes.find(|node| node.id.0 == id).map_or_else(|| format!("r{id}"), |node| node.name.clone())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn replica(digests: &[(u64, &str)]) -> GroupStatus {
        let digests = digests.iter().map(|(index, digest)| (*index, (*digest).to_owned())).collect();
        GroupStatus { digests, ..GroupStatus::default() }
    }

    #[test]
    fn table_says_in_few_words_why_a_node_is_down() {
        let lost = net::Error::Lost("node us-1: not connected yet".into());
        let down = Down::new(&Error::Net(Arc::new(lost)));
        let seen = Seen { name: "us-1", region: "us", address: "localhost:1", answer: Err(down) };
        let table = nodes_table(&[seen]).render();
        assert!(table.contains("down: no connection") && !table.contains("lost"), "{table}");
    }

    #[test]
    fn digests_are_compared_at_common_indexes_only() {
        let (a, b) = (replica(&[(1000, "aa"), (2000, "bb")]), replica(&[(2000, "bb"), (3000, "cc")]));
        assert!(digests_agree(&[&a, &b]));
        let c = replica(&[(1000, "ab")]);
        assert!(!digests_agree(&[&a, &b, &c]));
        assert!(digests_agree(&[]));
    }
}
