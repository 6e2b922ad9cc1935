//! What operators ask of a cluster: who belongs to its groups, and changes of that.

use multicast::ids::{GroupId, Incarnation, LogIndex, ReplicaId};
use multicast::membership::{ChangeRefused, ForceRefused, MemberChange, Membership};
use serde::{Deserialize, Serialize};

/// The name in the certificate of those who may operate a cluster.
pub const OPERATOR: &str = "admin";

/// Who belongs to the groups, as far as a node knows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Directory {
    /// The groups of which it knows more than the configuration says, or has a replica.
    pub groups: Vec<GroupMembers>,
    /// The nodes that it knows.
    pub nodes: Vec<NodeAddress>,
}

/// One group's members.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupMembers {
    /// The group.
    pub group: GroupId,
    /// Its members, committed.
    pub members: Membership,
    /// The node that answers has a replica that may be read, which has applied the log up to there.
    pub applied: Option<LogIndex>,
}

/// Where a node is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeAddress {
    /// Its number: that of its replicas.
    pub number: ReplicaId,
    /// Its name, as in its certificate.
    pub name: String,
    /// Its region.
    pub region: String,
    /// `host:port` where it listens.
    pub address: String,
}

/// What an operator wants.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Operation {
    /// The node shall have a replica of the group. It counts nowhere until the group has taken it in. If there is one, nothing
    /// happens.
    Host {
        /// The group.
        group: GroupId,
    },
    /// The node shall have no replica of the group any more: it ends, its data are deleted. Only if it is no member.
    Unhost {
        /// The group.
        group: GroupId,
        /// The group's members as its primary has told them: who was removed has not heard of it by itself, as a rule.
        members: Membership,
    },
    /// The group's members change. Only its primary does it.
    Change {
        /// The group.
        group: GroupId,
        /// How.
        change: MemberChange,
    },
    /// The node's replica becomes the only voter of its group, without asking anybody: see
    /// [`multicast::Core::force_membership`].
    Force {
        /// The group.
        group: GroupId,
        /// The replica that is meant.
        replica: ReplicaId,
        /// On which disk.
        incarnation: Incarnation,
        /// Members that may follow it.
        keep: Vec<ReplicaId>,
    },
    /// The node's replica has rows that are not its group's: it gives its state up, and gets a copy of the group's. Only if the
    /// group goes on without it.
    Rebuild {
        /// The group.
        group: GroupId,
        /// The replica that is meant.
        replica: ReplicaId,
        /// On which disk.
        incarnation: Incarnation,
    },
}

impl Operation {
    /// The group that it is about.
    #[must_use]
    pub fn group(&self) -> GroupId {
        match *self {
            Operation::Host { group }
            | Operation::Unhost { group, .. }
            | Operation::Change { group, .. }
            | Operation::Force { group, .. }
            | Operation::Rebuild { group, .. } => group,
        }
    }
}

/// What came of an [`Operation`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Operated {
    /// There is a replica, with this incarnation.
    Hosted(Incarnation),
    /// There is no replica.
    Unhosted,
    /// The change is logged there. It is done when it is committed, and may be undone by another primary until then.
    Logged(LogIndex),
    /// Nothing was done.
    Refused(Refusal),
    /// The replica has given its state up, and waits for a copy.
    Rebuilding,
}

/// Why nothing was done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    /// The certificate is not an operator's.
    NotPermitted,
    /// There is no such group.
    UnknownGroup,
    /// The replica is a member of its group.
    StillMember,
    /// The replica's state is not its group's; it does nothing.
    Quarantined,
    /// The members were not changed.
    Change(ChangeRefused),
    /// The members were not forced.
    Force(ForceRefused),
    /// Something else; for people.
    Failed(String),
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Refusal::NotPermitted => write!(f, "only the holder of the certificate client.{OPERATOR} may do that"),
            Refusal::UnknownGroup => f.write_str("the node knows no such group"),
            Refusal::StillMember => f.write_str("its replica is a member of the group: remove it first"),
            Refusal::Quarantined => f.write_str("its replica is quarantined"),
            Refusal::Change(refused) => refused.fmt(f),
            Refusal::Force(refused) => refused.fmt(f),
            Refusal::Failed(why) => f.write_str(why),
        }
    }
}
