//! `globalfs group recover`: what is left of a group goes on, at the price of what did not reach it.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use clap::Args;
use metadata::operate::{Operated, Operation};
use metadata::protocol::Reply;
use multicast::ids::{Incarnation, ReplicaId};
use partition_replica::status::{GroupStatus, NodeStatus};
use serde_json::json;
use tokio::time::Instant;

use super::desk::{Desk, primary_of};
use crate::commands::client::client_failure;
use crate::config::{Group, Node};
use crate::exit::{Exit, Failure, Result};
use crate::output::{say, tell};

pub const HELP: &str = "Examples:
  globalfs group recover eu --from ap-1            says what may be lost, and asks
  globalfs group recover eu --from ap-1 --yes      for scripts
  globalfs group recover eu --from eu-3 --keep ap-1 --yes

For a group of which a quorum of the disks is lost for good, and for nothing else. The replica that is named, a voter or
a learner, becomes the only voter; members that are kept (those that answer now, if none are named) follow it, and those
that voted vote again once they have caught up. Whatever was acknowledged and did not reach that replica is lost. A voter
that is not kept must never run again with its old disk.";

const PATIENCE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(200);

#[derive(Debug, Args)]
pub struct RecoverArgs {
    /// The group
    group: String,
    /// The node whose replica goes on
    #[arg(long, value_name = "NODE")]
    from: String,
    /// Members that may follow it [default: those that answer now]
    #[arg(long, value_name = "NODE")]
    keep: Vec<String>,
    /// Do not ask
    #[arg(long)]
    yes: bool,
    /// What was done, as one JSON object
    #[arg(long)]
    json: bool,
}

/// Says what may be lost, asks, does it.
pub async fn run(desk: &Desk<'_>, args: &RecoverArgs) -> Result<Exit> {
    let (group, from) = (desk.cluster.group(&args.group)?, desk.cluster.node(&args.from)?);
    let statuses = desk.statuses().await;
    let survivor = survivor(group, from, &statuses)?;
    let keep = keep(desk, args, (group, from), &survivor, &statuses)?;
    let warning = warning(desk, (group, from), &survivor, &keep, &statuses);
    if primary_of(group.id, statuses).is_some() {
        let problem = format!(
            "group {} has a primary: it lives. Lost voters are replaced with `globalfs group replace`; nothing was changed",
            group.name
        );
        return Err(Failure::new(Exit::Exists, problem));
    }
    tell!("{warning}");
    confirm(group, args.yes)?;
    let incarnation = u64::from_str_radix(&survivor.incarnation, 16).map(Incarnation);
    let incarnation = incarnation.map_err(|_| Failure::new(Exit::Failed, "the node names no incarnation"))?;
    let force =
        Operation::Force { group: group.id, replica: from.id, incarnation, keep: keep.iter().map(|n| n.id).collect() };
    match desk.client.operate(from.id, force).await.map_err(client_failure)? {
        Reply::Operated(Operated::Logged(_)) => {}
        Reply::Operated(Operated::Refused(refusal)) => {
            return Err(Failure::new(Exit::Exists, format!("group {}: {refusal}; nothing was changed", group.name)));
        }
        other => return Err(Failure::new(Exit::Failed, format!("an answer of the wrong kind: {other:?}"))),
    }
    await_primary(desk, group, from).await?;
    let kept: Vec<&String> = keep.iter().map(|node| &node.name).collect();
    match args.json {
        true => say!(
            "{}",
            json!({ "schema": 1, "group": group.name, "from": from.name, "kept": kept,
            "lost_behind": survivor.last_index })
        ),
        false => say!("group {} goes on with {} as its only voter", group.name, from.name),
    }
    Ok(Exit::Done)
}

fn survivor(group: &Group, from: &Node, statuses: &[(ReplicaId, NodeStatus)]) -> Result<GroupStatus> {
    let Some((_, status)) = statuses.iter().find(|(id, _)| *id == from.id) else {
        return Err(Failure::new(Exit::Unavailable, format!("node {} does not answer", from.name)));
    };
    let found = status.groups.iter().find(|found| found.group == group.id.0);
    let problem = || format!("{} has no replica of group {}", from.name, group.name);
    found.cloned().ok_or_else(|| Failure::new(Exit::Exists, problem()))
}

fn keep<'a>(
    desk: &Desk<'a>,
    args: &RecoverArgs,
    (group, from): (&Group, &Node),
    survivor: &GroupStatus,
    statuses: &[(ReplicaId, NodeStatus)],
) -> Result<Vec<&'a Node>> {
    let mut keep = Vec::new();
    if !args.keep.is_empty() {
        for name in &args.keep {
            let node = desk.cluster.node(name)?;
            // It would be passed over, and the operator believe that it follows.
            if survivor.members.iter().all(|member| member.node != node.id.0) {
                let problem = format!(
                    "{name} is no member of group {}: it can be added once the group goes on; nothing was changed",
                    group.name
                );
                return Err(Failure::new(Exit::Exists, problem));
            }
            keep.push(node);
        }
        return Ok(keep);
    }
    let answers = |node: &Node| {
        let status = statuses.iter().find(|(id, _)| *id == node.id).map(|(_, status)| status);
        let replica = status.and_then(|status| status.groups.iter().find(|found| found.group == group.id.0));
        let member = survivor.members.iter().find(|member| member.node == node.id.0);
        replica.zip(member).is_some_and(|(replica, member)| replica.incarnation == member.incarnation)
    };
    keep.extend(desk.cluster.nodes.iter().filter(|node| node.id != from.id && answers(node)));
    Ok(keep)
}

fn warning(
    desk: &Desk<'_>,
    (group, from): (&Group, &Node),
    survivor: &GroupStatus,
    keep: &[&Node],
    statuses: &[(ReplicaId, NodeStatus)],
) -> String {
    let GroupStatus { last_index, committed_index, .. } = survivor;
    let own_end = log_end(survivor);
    let names = |names: Vec<String>| if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    let voters = survivor.members.iter().filter(|member| member.role == "voter");
    let given_up = voters
        .map(|voter| ReplicaId(voter.node))
        .filter(|voter| *voter != from.id && keep.iter().all(|kept| kept.id != *voter));
    let kept = names(keep.iter().map(|node| node.name.clone()).collect());
    let given_up = names(given_up.map(|voter| desk.name(voter)).collect());
    let further = statuses.iter().filter_map(|(id, status)| {
        let replica = status.groups.iter().find(|found| found.group == group.id.0)?;
        (*id != from.id && log_end(replica) > own_end).then(|| {
            let (name, end) = (desk.name(*id), replica.last_index);
            format!("\n  {name} has a log up to {end}, of a later ballot or longer: it loses less, name it instead.")
        })
    });
    let further: String = further.collect();
    let (group, from) = (&group.name, &from.name);
    format!(
        "Group {group} goes on from the replica on {from}, whose log ends at entry {last_index} (it knows {committed_index} to be \
         committed).{further}
What may be lost:
  - every update of group {group} that was acknowledged and did not reach {from}: of a voter's log that may be some, of a
    learner's all that was committed within its lag;
  - the other half of updates of several groups that other groups have executed: they end there and not here;
  - mounts that have seen what is lost wait for it until they are mounted anew.
Members that follow: {kept}. Voters that are given up: {given_up}. Those must never run again with their old disks;
what they have on them and {from} has not is lost to the group."
    )
}

/// Of two logs the one whose end is greater has everything that is committed in the other. A longer one of an earlier ballot may
/// end in what was given up.
fn log_end(replica: &GroupStatus) -> (u64, Option<u32>, u64) {
    (replica.last_ballot_round, replica.last_ballot_owner, replica.last_index)
}

fn confirm(group: &Group, yes: bool) -> Result {
    if yes {
        return Ok(());
    }
    if !std::io::stdin().is_terminal() {
        let problem = "nothing was changed: nobody is there to confirm it; give --yes if you mean it";
        return Err(Failure::new(Exit::Usage, problem));
    }
    let mut stderr = std::io::stderr();
    let _ = write!(stderr, "Type the group's name to go on: ").and_then(|()| stderr.flush());
    let mut typed = String::new();
    std::io::stdin().read_line(&mut typed)?;
    if typed.trim() != group.name {
        return Err(Failure::new(Exit::Interrupted, "nothing was changed"));
    }
    Ok(())
}

async fn await_primary(desk: &Desk<'_>, group: &Group, from: &Node) -> Result {
    let until = Instant::now() + PATIENCE;
    while Instant::now() < until {
        if desk.replica(group.id, from.id).await.is_some_and(|status| status.role == "primary") {
            return Ok(());
        }
        tokio::time::sleep(PAUSE).await;
    }
    let problem = format!("group {} was told to go on from {}, but has no primary yet", group.name, from.name);
    Err(Failure::new(Exit::Unavailable, problem))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_of_a_later_ballot_is_ahead_of_a_longer_one() {
        let end = |last_ballot_round, last_index| {
            log_end(&GroupStatus { last_ballot_round, last_index, ..GroupStatus::default() })
        };
        assert!(end(3, 90) > end(2, 100));
        assert!(end(3, 91) > end(3, 90));
    }
}
