//! Replicas whose rows are not their group's give them up, and get a copy of the group's state: one after the other, and only
//! while the rest of the group is sound and can go on without it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use metadata::operate::{Operated, Operation, Refusal};
use metadata::protocol::Reply;
use multicast::ChangeRefused;
use multicast::ids::{Incarnation, ReplicaId};
use partition_replica::status::{GroupStatus, NodeStatus};
use tokio::time::Instant;

use super::online::{Check, replicas};
use super::report::Report;
use crate::config::{Group, Node};

/// A primary has so long to let another lead first.
const HAND_OVER_PATIENCE: Duration = Duration::from_secs(20);
/// A copy may be large.
const COPY_PATIENCE: Duration = Duration::from_secs(3600);
const PAUSE: Duration = Duration::from_millis(300);
/// A voter that lacks more entries cannot stand in at once.
const LAG_MAX: u64 = 1000;

impl Check<'_> {
    /// Has all replicas rebuilt that were seen to differ from their groups, or says that it could.
    pub(super) async fn rebuild(&self, report: &mut Report) {
        for group in &self.cluster.groups {
            let of_group = report.problems.iter().filter(|problem| problem.group.as_ref() == Some(&group.name));
            let mut wrong: BTreeSet<String> = of_group.flat_map(|problem| problem.on.iter().cloned()).collect();
            while let Some(name) = self.next(group, &wrong).await {
                let what = format!("the replica of group {} on {name}", group.name);
                let done = self.rebuild_one(group, &name, &wrong, &report.inspected).await;
                report.repairs.push(match &done {
                    Ok(true) => format!("{what} was rebuilt from its group"),
                    Ok(false) => format!("--repair --yes would have {what} rebuilt from its group"),
                    Err(why) => format!("{what} is not rebuilt: {why}"),
                });
                if done != Ok(true) {
                    break;
                }
                wrong.remove(&name);
            }
        }
    }

    /// The primary goes first: copies come from it.
    async fn next(&self, group: &Group, wrong: &BTreeSet<String>) -> Option<String> {
        let first = wrong.first()?;
        let (statuses, _) = self.statuses().await;
        let primary = primary(group, &statuses).and_then(|(node, _)| wrong.get(&node.name));
        Some(primary.unwrap_or(first).clone())
    }

    /// True if it was done, false if it only could be.
    async fn rebuild_one(
        &self,
        group: &Group,
        name: &str,
        wrong: &BTreeSet<String>,
        inspected: &BTreeSet<(String, String)>,
    ) -> Result<bool, String> {
        let node = self.cluster.node(name).map_err(|failure| failure.message())?;
        let until = Instant::now() + HAND_OVER_PATIENCE;
        loop {
            let (statuses, _) = self.statuses().await;
            let is_sound =
                |other: &str| !wrong.contains(other) && inspected.contains(&(group.name.clone(), other.to_owned()));
            let incarnation = may_be_rebuilt(group, node, &statuses, is_sound)?;
            if !self.args.yes {
                return Ok(false);
            }
            let operation = Operation::Rebuild { group: group.id, replica: node.id, incarnation };
            let problem = match self.client.operate(node.id, operation).await.map_err(|error| error.to_string())? {
                Reply::Operated(Operated::Rebuilding) => break,
                Reply::Operated(Operated::Refused(Refusal::Change(ChangeRefused::NotReady))) => {
                    "no other voter has begun to lead in time"
                }
                Reply::Operated(Operated::Refused(refusal)) => return Err(refusal.to_string()),
                _ => "an answer of the wrong kind",
            };
            if Instant::now() >= until {
                return Err(problem.into());
            }
            tokio::time::sleep(PAUSE).await;
        }
        self.await_copy(group, node).await
    }

    async fn await_copy(&self, group: &Group, node: &Node) -> Result<bool, String> {
        let until = Instant::now() + COPY_PATIENCE;
        let bar = ProgressBar::new(100).with_style(
            ProgressStyle::with_template("{spinner} {msg} {bar:30} {percent} % {elapsed}")
                .unwrap_or_else(|_| ProgressStyle::default_bar()),
        );
        bar.set_message(format!("a copy of group {} for {}", group.name, node.name));
        while Instant::now() < until {
            tokio::time::sleep(PAUSE).await;
            let (statuses, _) = self.statuses().await;
            let found = replicas(&statuses, group.id).find(|(status, _)| status.node == node.id.0);
            let Some((_, replica)) = found else { continue };
            if replica.quarantine.is_none() && replica.role == "follower" {
                bar.finish_and_clear();
                return Ok(true);
            }
            if let Some(copy) = replica.copies.iter().find(|copy| !copy.is_sent) {
                bar.set_position(copy.percent.min(100));
            }
            bar.tick();
        }
        bar.finish_and_clear();
        Err("it has given up its state, and has not got a copy in time: it goes on asking for one".into())
    }
}

fn primary<'s>(group: &Group, statuses: &'s BTreeMap<u32, NodeStatus>) -> Option<(&'s NodeStatus, &'s GroupStatus)> {
    let primaries = replicas(statuses, group.id).filter(|(_, replica)| replica.role == "primary");
    primaries.max_by_key(|(_, replica)| replica.ballot_round)
}

/// Its disk, if the group goes on without it, from a state that is right; else why not.
fn may_be_rebuilt(
    group: &Group,
    node: &Node,
    statuses: &BTreeMap<u32, NodeStatus>,
    is_sound: impl Fn(&str) -> bool,
) -> Result<Incarnation, String> {
    let (leads, best) = primary(group, statuses).ok_or("its group has no primary")?;
    let own = replicas(statuses, group.id).find(|(status, _)| status.node == node.id.0);
    let (_, own) = own.ok_or("its node does not answer")?;
    if leads.node != node.id.0 && !is_sound(&leads.name) {
        return Err(format!(
            "{}, which leads the group and would send it a copy, is not known to be sound",
            leads.name
        ));
    }
    let can_stand_in = |voter: &&u32| {
        let found = replicas(statuses, group.id).find(|(status, _)| status.node == **voter);
        let lag = best.lag.get(*voter).copied().unwrap_or_default();
        found.is_some_and(|(status, replica)| {
            **voter != node.id.0 && replica.quarantine.is_none() && lag <= LAG_MAX && is_sound(&status.name)
        })
    };
    let (sound, needed) = (best.voters.iter().filter(can_stand_in).count(), best.voters.len() / 2 + 1);
    if sound < needed {
        return Err(format!("the group needs {needed} sound voters to go on without it, and has {sound}"));
    }
    let incarnation = u64::from_str_radix(&own.incarnation, 16).map(Incarnation);
    let is_member =
        best.members.iter().any(|member| ReplicaId(member.node) == node.id && member.incarnation == own.incarnation);
    incarnation.ok().filter(|_| is_member).ok_or_else(|| "it is no member of its group".into())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::commands::init;
    use partition_replica::status::MemberStatus;

    fn statuses(of: impl Fn(u32) -> GroupStatus) -> BTreeMap<u32, NodeStatus> {
        let node = |node| {
            (node, NodeStatus { node, name: format!("us-{node}"), groups: vec![of(node)], ..NodeStatus::default() })
        };
        (1..=3).map(node).collect()
    }

    #[test]
    fn replica_is_given_up_only_if_a_sound_primary_and_a_quorum_of_sound_voters_are_left() {
        let folder = tempfile::tempdir().unwrap();
        let cluster = init::create(folder.path(), &init::plan_of_one_machine(&["us".into()], 3).unwrap()).unwrap();
        let (group, node) = (cluster.group("us").unwrap(), cluster.node("us-2").unwrap());
        let member = |node| MemberStatus { node, role: "voter".into(), incarnation: "0".into() };
        let replica = |node: u32| GroupStatus {
            group: group.id.0,
            role: if node == 1 { "primary" } else { "follower" }.into(),
            voters: vec![1, 2, 3],
            members: (1..=3).map(member).collect(),
            incarnation: "0".into(),
            ..GroupStatus::default()
        };
        let all = statuses(replica);
        assert_eq!(may_be_rebuilt(group, node, &all, |name| name != "us-2"), Ok(Incarnation(0)));
        let refused = |statuses: &BTreeMap<u32, NodeStatus>, sound: &[&str]| {
            may_be_rebuilt(group, node, statuses, |name| sound.contains(&name)).unwrap_err()
        };
        assert!(refused(&all, &["us-3"]).contains("us-1, which leads"));
        assert!(refused(&all, &["us-1"]).contains("needs 2 sound voters"));
        let lagging = statuses(|number| GroupStatus { lag: BTreeMap::from([(3, 2000)]), ..replica(number) });
        assert!(refused(&lagging, &["us-1", "us-3"]).contains("needs 2 sound voters"));
        let mut down = all.clone();
        down.remove(&3);
        assert!(refused(&down, &["us-1", "us-3"]).contains("needs 2 sound voters"));
        let headless = statuses(|number| GroupStatus { role: "follower".into(), ..replica(number) });
        assert!(refused(&headless, &["us-1", "us-3"]).contains("no primary"));
    }
}
