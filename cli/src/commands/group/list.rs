//! `globalfs group list`.

use std::collections::BTreeMap;

use multicast::ids::ReplicaId;
use multicast::{MemberRole, Membership};
use partition_replica::status::{GroupStatus, NodeStatus};
use serde_json::{Value, json};

use super::desk::Desk;
use crate::config::Group;
use crate::exit::{Exit, Result};
use crate::output::{Table, red, say, say_all, yellow};

/// A member, or a node with a replica that is none.
struct Row {
    node: ReplicaId,
    role: String,
    state: String,
    incarnation: String,
    applied: Option<u64>,
    lag: Option<u64>,
    is_well: bool,
}

/// Shows the groups; finds problems if a member is not there.
pub async fn run(desk: &Desk<'_>, only: Option<&str>, json: bool) -> Result<Exit> {
    let groups: Vec<&Group> = match only {
        Some(name) => vec![desk.cluster.group(name)?],
        None => desk.cluster.groups.iter().collect(),
    };
    let nodes: BTreeMap<ReplicaId, NodeStatus> = desk.statuses().await.into_iter().collect();
    let rows: Vec<(&Group, Vec<Row>)> = groups.into_iter().map(|group| (group, rows(group, &nodes))).collect();
    let is_well = rows.iter().all(|(_, rows)| !rows.is_empty() && rows.iter().all(|row| row.is_well));
    match json {
        true => {
            let groups: Vec<Value> = rows.iter().map(|(group, rows)| group_json(desk, group, rows)).collect();
            say!("{}", json!({ "schema": 1, "groups": groups }));
        }
        false => say_all(&table(desk, &rows)),
    }
    Ok(match (nodes.is_empty(), is_well) {
        (true, _) => Exit::Unavailable,
        (false, true) => Exit::Done,
        (false, false) => Exit::Problems,
    })
}

/// The members by the group's most telling replica: its primary, else the one with the latest membership.
fn rows(group: &Group, nodes: &BTreeMap<ReplicaId, NodeStatus>) -> Vec<Row> {
    let replicas: BTreeMap<ReplicaId, &GroupStatus> = nodes
        .iter()
        .flat_map(|(node, status)| status.groups.iter().map(move |replica| (*node, replica)))
        .filter(|(_, replica)| replica.group == group.id.0)
        .collect();
    let is_primary = |status: &GroupStatus| status.role == "primary";
    let best = replicas.values().max_by_key(|status| (is_primary(status), status.ballot_round, status.last_index));
    let Some(best) = best else { return Vec::new() };
    let mut rows: Vec<Row> = best
        .members
        .iter()
        .map(|member| {
            let own = replicas.get(&ReplicaId(member.node)).filter(|own| own.incarnation == member.incarnation);
            let state = match (own, nodes.contains_key(&ReplicaId(member.node))) {
                (Some(own), _) => own.role.clone(),
                (None, true) => "has another disk".into(),
                (None, false) => "down".into(),
            };
            Row {
                node: ReplicaId(member.node),
                role: member.role.clone(),
                is_well: own.is_some_and(|own| own.quarantine.is_none()),
                state,
                incarnation: member.incarnation.clone(),
                applied: own.map(|own| own.applied_index),
                lag: own.map(|own| best.committed_index.saturating_sub(own.applied_index)),
            }
        })
        .collect();
    for (&node, own) in &replicas {
        if best.members.iter().all(|member| member.node != node.0) {
            rows.push(Row {
                node,
                role: "none".into(),
                state: "is no member: remove-learner deletes it".into(),
                incarnation: own.incarnation.clone(),
                applied: None,
                lag: None,
                is_well: true,
            });
        }
    }
    rows
}

fn table(desk: &Desk<'_>, groups: &[(&Group, Vec<Row>)]) -> String {
    let mut table = Table::new(["group", "node", "region", "member", "state", "applied", "lag"]).right(&[5, 6]);
    let number = |value: Option<u64>| value.map_or_else(|| "-".into(), |value| value.to_string());
    for (group, rows) in groups {
        if rows.is_empty() {
            table.row(vec![group.name.clone(), red("no replica answers")]);
        }
        for row in rows {
            let region = desk.cluster.nodes.iter().find(|node| node.id == row.node).map(|node| node.region.clone());
            let state = if row.is_well { row.state.clone() } else { yellow(&row.state) };
            table.row(vec![
                group.name.clone(),
                desk.name(row.node),
                region.unwrap_or_default(),
                row.role.clone(),
                state,
                number(row.applied),
                number(row.lag),
            ]);
        }
    }
    table.render()
}

fn group_json(desk: &Desk<'_>, group: &Group, rows: &[Row]) -> Value {
    let members: Vec<Value> = rows
        .iter()
        .map(|row| {
            json!({
                "node": desk.name(row.node), "role": row.role, "state": row.state, "incarnation": row.incarnation,
                "applied": row.applied, "lag": row.lag,
            })
        })
        .collect();
    json!({ "id": group.id.0, "name": group.name, "members": members })
}

/// Members, for scripts.
pub fn members_json(desk: &Desk<'_>, members: &Membership) -> Vec<Value> {
    let role = |role| match role {
        MemberRole::Voter => "voter",
        MemberRole::Learner => "learner",
        MemberRole::Joining => "joining",
    };
    let member = |member: &multicast::Member| json!({ "node": desk.name(member.replica), "role": role(member.role), "incarnation": member.incarnation.to_string() });
    members.members.iter().map(member).collect()
}
