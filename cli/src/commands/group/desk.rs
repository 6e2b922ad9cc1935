//! What operators' commands do, one step after the other: each is found done, or is done again, after whatever interrupted the
//! command before.

use std::time::Duration;

use fs_client::Client;
use metadata::operate::{Operated, Operation, Refusal};
use metadata::protocol::Reply;
use multicast::ids::{GroupId, Incarnation, ReplicaId};
use multicast::{ChangeRefused, MemberChange, MemberRole, Membership};
use partition_replica::status::{GroupStatus, NodeStatus};
use tokio::time::Instant;

use crate::commands::client::client_failure;
use crate::config::{Cluster, Group, Node};
use crate::exit::{Exit, Failure, Result};
use crate::output::tell;
use crate::units::ByteSize;

const PAUSE: Duration = Duration::from_millis(200);
/// A node that does not say how it is within this time is as good as down.
const STATUS_TIMEOUT: Duration = Duration::from_secs(2);
/// What can pass by itself is waited for so long: an election, another change.
const PATIENCE: Duration = Duration::from_secs(30);
/// A learner that lacks no more entries than that has caught up: some are always on their way.
const LAG_MAX: u64 = 100;

/// A command at work.
pub struct Desk<'a> {
    pub cluster: &'a Cluster,
    pub client: &'a Client,
    /// How long to wait for what takes long: copies of states.
    pub timeout: Duration,
    /// Tell how far it is.
    pub is_chatty: bool,
}

/// A group, as its primary has it.
pub struct Primary {
    pub node: ReplicaId,
    pub status: GroupStatus,
}

/// How a member shall be added.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    Learner,
    Voter,
}

impl Desk<'_> {
    /// The name of a node.
    pub fn name(&self, node: ReplicaId) -> String {
        let found = self.cluster.nodes.iter().chain(&self.cluster.removed).find(|known| known.id == node);
        found.map_or_else(|| node.to_string(), |node| node.name.clone())
    }

    /// How a node is; none if it does not answer.
    pub async fn node_status(&self, node: ReplicaId) -> Option<NodeStatus> {
        let asked = tokio::time::timeout(STATUS_TIMEOUT, self.client.node_status(node)).await;
        serde_json::from_slice(&asked.ok()?.ok()?).ok()
    }

    /// How all nodes are that answer.
    pub async fn statuses(&self) -> Vec<(ReplicaId, NodeStatus)> {
        let asked: Vec<_> = self
            .cluster
            .nodes
            .iter()
            .map(|node| {
                let (client, id) = (self.client.clone(), node.id);
                (id, tokio::spawn(async move { tokio::time::timeout(STATUS_TIMEOUT, client.node_status(id)).await }))
            })
            .collect();
        let mut found = Vec::new();
        for (id, asked) in asked {
            if let Ok(Ok(Ok(document))) = asked.await
                && let Ok(status) = serde_json::from_slice(&document)
            {
                found.push((id, status));
            }
        }
        found
    }

    /// A replica, as its own node has it.
    pub async fn replica(&self, group: GroupId, node: ReplicaId) -> Option<GroupStatus> {
        self.node_status(node).await?.groups.into_iter().find(|found| found.group == group.0)
    }

    /// The group's primary, waited for if there is none just now.
    pub async fn primary(&self, group: &Group) -> Result<Primary> {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(primary) = primary_of(group.id, self.statuses().await) {
                return Ok(primary);
            }
            if Instant::now() >= until {
                let problem = format!(
                    "group {} has no primary: start its nodes; if a quorum of its disks is lost for good, see `globalfs \
                     group recover --help`",
                    group.name
                );
                return Err(Failure::new(Exit::Unavailable, problem));
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// The group's members, committed, as its primary tells them.
    pub async fn members(&self, group: &Group) -> Result<Membership> {
        let until = Instant::now() + PATIENCE;
        loop {
            let primary = self.primary(group).await?;
            let directory = self.client.node_directory(primary.node).await;
            let found = directory.map(|known| known.groups.into_iter().find(|known| known.group == group.id));
            match found {
                Ok(Some(found)) => return Ok(found.members),
                Err(error) if Instant::now() >= until => return Err(client_failure(error)),
                _ => tokio::time::sleep(PAUSE).await,
            }
        }
    }

    /// Changes the members, once nothing stands in the way that passes by itself, and waits until `is_done` of the committed ones.
    pub async fn change(
        &self,
        group: &Group,
        change: MemberChange,
        is_done: impl Fn(&Membership) -> bool,
    ) -> Result<Membership> {
        let until = Instant::now() + PATIENCE;
        loop {
            let primary = self.primary(group).await?;
            let answer = self.client.operate(primary.node, Operation::Change { group: group.id, change }).await;
            let problem = match answer {
                Ok(Reply::Operated(Operated::Logged(_))) => {
                    if let Some(members) = self.await_members(group, &is_done).await? {
                        return Ok(members);
                    }
                    "another primary has undone it".to_owned()
                }
                Ok(Reply::Operated(Operated::Refused(Refusal::Change(refused)))) if passes(refused) => {
                    refused.to_string()
                }
                // As a rule by this command, whose answer was lost.
                Ok(Reply::Operated(Operated::Refused(refusal))) => {
                    let members = self.members(group).await?;
                    return if is_done(&members) { Ok(members) } else { Err(self.refused(group, change, &refusal)) };
                }
                Ok(_) => "its primary has changed".to_owned(),
                Err(error) => error.to_string(),
            };
            if Instant::now() >= until {
                let problem = format!("the members of group {} were not changed: {problem}", group.name);
                return Err(Failure::new(Exit::Unavailable, problem));
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// None if what was logged has not been committed for long.
    async fn await_members(&self, group: &Group, is_done: impl Fn(&Membership) -> bool) -> Result<Option<Membership>> {
        let until = Instant::now() + PATIENCE / 3;
        while Instant::now() < until {
            let members = self.members(group).await?;
            if is_done(&members) {
                return Ok(Some(members));
            }
            tokio::time::sleep(PAUSE).await;
        }
        Ok(None)
    }

    fn refused(&self, group: &Group, change: MemberChange, refusal: &Refusal) -> Failure {
        let (name, group) = (self.name(change.replica()), &group.name);
        let exit = match refusal {
            Refusal::NotPermitted => Exit::NotPermitted,
            Refusal::UnknownGroup => Exit::Config,
            Refusal::Change(ChangeRefused::NoQuorumLeft | ChangeRefused::Silent(_) | ChangeRefused::Lagging { .. })
            | Refusal::Quarantined
            | Refusal::Failed(_) => Exit::Unavailable,
            Refusal::Change(_) | Refusal::StillMember | Refusal::Force(_) => Exit::Exists,
        };
        let problem = match refusal {
            Refusal::Change(ChangeRefused::NoQuorumLeft) => {
                "too few of the voters that would be left answer: the group would stand still".to_owned()
            }
            Refusal::Change(ChangeRefused::LastVoter) => format!("{name} is its last voter"),
            Refusal::Change(ChangeRefused::AlreadyThere(_)) => format!("{name} is that already"),
            Refusal::Change(ChangeRefused::NotAMember(_)) => format!("{name} is no member of it"),
            refusal => refusal.to_string(),
        };
        Failure::new(exit, format!("group {group}: {problem}; nothing was changed"))
    }

    /// A replica of the group begins on the node, if there is none; its incarnation.
    pub async fn host(&self, group: &Group, node: &Node) -> Result<Incarnation> {
        let answer = self.client.operate(node.id, Operation::Host { group: group.id }).await;
        match answer.map_err(|error| self.unreachable(node, &error))? {
            Reply::Operated(Operated::Hosted(incarnation)) => Ok(incarnation),
            other => Err(self.not_done(node, other)),
        }
    }

    /// The node's replica of the group ends, and its data are deleted. `members`: the group's, committed, without the node: it has
    /// not heard of them, as a rule. False if the node cannot be reached.
    pub async fn unhost(&self, group: &Group, node: ReplicaId, members: Membership) -> Result<bool> {
        match self.client.operate(node, Operation::Unhost { group: group.id, members }).await {
            Ok(Reply::Operated(Operated::Unhosted)) => Ok(true),
            Ok(Reply::Operated(Operated::Refused(refusal))) => {
                Err(Failure::new(Exit::Exists, format!("{}: group {}: {refusal}", self.name(node), group.name)))
            }
            Ok(_) | Err(_) => Ok(false),
        }
    }

    fn unreachable(&self, node: &Node, error: &fs_client::Error) -> Failure {
        Failure::new(Exit::Unavailable, format!("node {} does not answer: {error}", node.name))
    }

    fn not_done(&self, node: &Node, reply: Reply) -> Failure {
        match reply {
            Reply::Operated(Operated::Refused(Refusal::NotPermitted)) => {
                Failure::new(Exit::NotPermitted, format!("{}: {}", node.name, Refusal::NotPermitted))
            }
            Reply::Operated(Operated::Refused(refusal)) => {
                Failure::new(Exit::Failed, format!("{}: {refusal}", node.name))
            }
            other => Failure::new(Exit::Failed, format!("{}: an answer of the wrong kind: {other:?}", node.name)),
        }
    }

    /// The node is, or is to be, a member of that kind.
    pub async fn add(&self, group: &Group, node: &Node, wanted: Wanted) -> Result {
        let members = self.members(group).await?;
        let incarnation = self.host(group, node).await?;
        let replica = node.id;
        let known = members.member(replica);
        let change = match (known.map(|member| (member.role, member.incarnation == incarnation)), wanted) {
            (Some((MemberRole::Voter, true)), _) | (Some((MemberRole::Learner, true)), Wanted::Learner) => {
                let role = if known.is_some_and(|member| member.is_voter()) { "voter" } else { "learner" };
                let problem = format!("{} is a {role} of group {} already", node.name, group.name);
                return Err(Failure::new(Exit::Exists, problem));
            }
            (Some((MemberRole::Joining, true)), Wanted::Voter) => return Ok(()),
            (Some((_, false)), _) => MemberChange::Replace { replica, incarnation },
            (_, Wanted::Learner) => MemberChange::AddLearner { replica, incarnation },
            (_, Wanted::Voter) => MemberChange::AddVoter { replica, incarnation },
        };
        let is_in = |members: &Membership| {
            members.member(replica).is_some_and(|member| {
                member.incarnation == incarnation && (wanted == Wanted::Learner || member.role != MemberRole::Learner)
            })
        };
        let changed = self.change(group, change, is_in).await;
        if changed.is_err() && known.is_none() {
            // It has begun for nothing, unless the change came through after all.
            if let Ok(members) = self.members(group).await {
                let _ = self.unhost(group, node.id, members).await;
            }
        }
        let members = changed?;
        let is_learner = members.member(replica).is_some_and(|member| member.role == MemberRole::Learner);
        if is_learner && wanted == Wanted::Voter {
            let is_in =
                |members: &Membership| members.member(replica).is_some_and(|member| member.role != MemberRole::Learner);
            self.change(group, MemberChange::AddVoter { replica, incarnation }, is_in).await?;
        }
        Ok(())
    }

    /// Waits until the new member is what it is to be: has caught up, and votes if it is to.
    pub async fn await_member(&self, group: &Group, node: &Node, wanted: Wanted) -> Result {
        let until = Instant::now() + self.timeout;
        let mut goal = None;
        let mut told = String::new();
        loop {
            let primary = self.primary(group).await?;
            let goal = *goal.get_or_insert(primary.status.committed_index);
            let own = self.replica(group.id, node.id).await;
            let role = primary.status.members.iter().find(|member| member.node == node.id.0).map(|found| &*found.role);
            let applied = own.as_ref().map_or(0, |own| own.applied_index);
            let is_there = match wanted {
                Wanted::Voter => role == Some("voter"),
                Wanted::Learner => role.is_some(),
            };
            if is_there && applied + LAG_MAX >= goal.max(primary.status.committed_index) && applied >= goal {
                return Ok(());
            }
            if Instant::now() >= until {
                let problem = format!(
                    "{} has not caught up with group {} in time: it goes on by itself, `globalfs group list` shows how far",
                    node.name, group.name
                );
                return Err(Failure::new(Exit::TimedOut, problem));
            }
            let progress = progress(&node.name, own.as_ref(), primary.status.committed_index);
            if self.is_chatty && progress != told {
                tell!("{progress}");
                told = progress;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// A node votes in the place of another. Gives whether the other's replica could be ended.
    ///
    /// In a group that has as many voters as there can be the new one follows at first, and votes when the other has gone. There
    /// is a voter less in between, no longer than it takes to promote one that has caught up; the group's primary does not let
    /// the other go unless a quorum of those that are left answers.
    pub async fn replace(&self, group: &Group, old: ReplicaId, new: &Node) -> Result<bool> {
        let members = self.members(group).await?;
        let known = members.member(new.id);
        let is_full = members.is_full() && known.is_none_or(|known| known.role == MemberRole::Learner);
        let mut is_deleted = None;
        if is_full && members.member(old).is_some_and(|old| old.role != MemberRole::Learner) {
            if known.is_none() {
                self.add(group, new, Wanted::Learner).await?;
            }
            self.await_member(group, new, Wanted::Learner).await?;
            is_deleted = Some(self.remove(group, old).await?);
        }
        if known.is_none_or(|known| !known.is_voter()) {
            self.add(group, new, Wanted::Voter).await?;
        }
        self.await_member(group, new, Wanted::Voter).await?;
        match is_deleted {
            Some(is_deleted) => Ok(is_deleted),
            None => self.remove(group, old).await,
        }
    }

    /// The node is no member any more, and its replica has ended: false if that one cannot be reached.
    pub async fn remove(&self, group: &Group, node: ReplicaId) -> Result<bool> {
        let mut members = self.members(group).await?;
        if members.member(node).is_some() {
            let change = MemberChange::Remove { replica: node };
            // Not asked for once more: a primary that has just been elected may still tell older ones.
            members = self.change(group, change, |members| members.member(node).is_none()).await?;
        }
        self.unhost(group, node, members).await
    }
}

/// What passes by itself.
fn passes(refused: ChangeRefused) -> bool {
    matches!(refused, ChangeRefused::NotPrimary { .. } | ChangeRefused::NotReady | ChangeRefused::UnderWay)
}

/// A group's primary, among what nodes say.
pub fn primary_of(group: GroupId, statuses: Vec<(ReplicaId, NodeStatus)>) -> Option<Primary> {
    let replicas = statuses.into_iter().flat_map(|(node, status)| {
        status.groups.into_iter().filter(move |found| found.group == group.0).map(move |found| (node, found))
    });
    let primaries = replicas.filter(|(_, status)| status.role == "primary");
    let newest = primaries.max_by_key(|(_, status)| status.ballot_round)?;
    Some(Primary { node: newest.0, status: newest.1 })
}

fn progress(name: &str, own: Option<&GroupStatus>, committed: u64) -> String {
    let Some(own) = own else { return format!("{name} does not answer") };
    match own.copies.iter().find(|copy| !copy.is_sent) {
        Some(copy) => {
            format!("{name} gets a copy of the state: {}, about {} %", ByteSize(copy.bytes), copy.percent)
        }
        None => format!("{name} lacks {} of {committed} entries", committed.saturating_sub(own.applied_index)),
    }
}
