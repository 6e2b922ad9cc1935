//! Who belongs to a group. The membership is part of the log: it holds from the moment that its record is appended.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::ids::{Incarnation, LogIndex, ReplicaId};

/// The most voters of one group.
pub const VOTERS_MAX: usize = 7;

/// The most members of one group.
pub const MEMBERS_MAX: usize = 64;

/// No honest version gets here.
const VERSION_MAX: u64 = u64::MAX / 2;

/// A forced membership is above all that the lost voters may have made: by so much, counted in versions.
const FORCED_VERSIONS: u64 = 1 << 32;

/// What a member does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MemberRole {
    /// Makes quorums, and may lead.
    Voter,
    /// Follows what is committed. Never counts.
    Learner,
    /// A learner that the primary makes a voter as soon as it has caught up.
    Joining,
}

/// One member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Where.
    pub replica: ReplicaId,
    /// On which disk: with another one it is another member.
    pub incarnation: Incarnation,
    /// As what.
    pub role: MemberRole,
}

impl Member {
    /// True if it counts.
    #[must_use]
    pub fn is_voter(&self) -> bool {
        self.role == MemberRole::Voter
    }
}

/// The members of a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Membership {
    /// Grows with each change. Zero: as the configuration says.
    pub version: u64,
    /// Each replica once. The first voter is the preferred primary.
    pub members: Vec<Member>,
}

/// A change of a group's membership. At most one voter comes or goes with each, so that any quorum before shares a voter with
/// any quorum after.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MemberChange {
    /// A replica that follows.
    AddLearner {
        /// Which.
        replica: ReplicaId,
        /// Its disk.
        incarnation: Incarnation,
    },
    /// A replica that follows, and is made a voter by the primary as soon as it has caught up. Of a learner: the same from
    /// now on.
    AddVoter {
        /// Which.
        replica: ReplicaId,
        /// Its disk.
        incarnation: Incarnation,
    },
    /// Makes a learner a voter at once.
    Promote {
        /// Which.
        replica: ReplicaId,
    },
    /// Not a member any more, whatever it was.
    Remove {
        /// Which.
        replica: ReplicaId,
    },
    /// A member has lost its disk: the old one goes, the new one follows; in place of a voter it becomes one again as soon as
    /// it has caught up.
    Replace {
        /// Which.
        replica: ReplicaId,
        /// The new disk.
        incarnation: Incarnation,
    },
}

impl MemberChange {
    /// Whom it concerns.
    #[must_use]
    pub fn replica(&self) -> ReplicaId {
        match *self {
            MemberChange::AddLearner { replica, .. }
            | MemberChange::AddVoter { replica, .. }
            | MemberChange::Promote { replica }
            | MemberChange::Remove { replica }
            | MemberChange::Replace { replica, .. } => replica,
        }
    }
}

/// Why a membership was not changed. Nothing was logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error, Serialize, Deserialize)]
pub enum ChangeRefused {
    /// Only the primary can.
    #[error("this replica is not the group's primary")]
    NotPrimary {
        /// Who may be.
        hint: Option<ReplicaId>,
    },
    /// This primary has not committed anything of its own yet: what went before may still change.
    #[error("the group's new primary is not up to date yet")]
    NotReady,
    /// One at a time.
    #[error("another change of the membership is under way")]
    UnderWay,
    /// It is no member.
    #[error("{0} is not a member of the group")]
    NotAMember(ReplicaId),
    /// It is what it is to become.
    #[error("{0} is that already")]
    AlreadyThere(ReplicaId),
    /// It is a member with another disk.
    #[error("{0} is a member with another disk: replace it")]
    OtherDisk(ReplicaId),
    /// A group without voters is none.
    #[error("it is the group's last voter")]
    LastVoter,
    /// More than [`VOTERS_MAX`], those that are to become voters counted, or [`MEMBERS_MAX`].
    #[error(
        "it would have more than {} voters, those that are to become voters counted, or more than {} members: remove one first",
        VOTERS_MAX,
        MEMBERS_MAX
    )]
    TooMany,
    /// A voter that lacks so much would hold up the group.
    #[error("{behind} entries behind")]
    Lagging {
        /// How many entries.
        behind: u64,
    },
    /// It has not answered lately.
    #[error("{0} does not answer")]
    Silent(ReplicaId),
    /// Those voters that would be left and answer are no quorum: the group would stand still.
    #[error("too few of the voters that would be left answer")]
    NoQuorumLeft,
}

/// Why a membership was not forced. Nothing was logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error, Serialize, Deserialize)]
pub enum ForceRefused {
    /// The operator meant another replica, or another disk of it.
    #[error("this is another replica than the one that was named")]
    OtherReplica,
    /// It never was a member, as far as it knows.
    #[error("this replica is not a member of the group")]
    NotAMember,
    /// A primary was heard of lately, or this is one.
    #[error("the group has a primary")]
    GroupLives,
    /// Ballots have no room left.
    #[error("no higher ballot is possible")]
    Exhausted,
}

impl Membership {
    /// The membership at the founding of a group.
    #[must_use]
    pub fn genesis(voters: &[ReplicaId]) -> Self {
        let member =
            |&replica: &ReplicaId| Member { replica, incarnation: Incarnation::GENESIS, role: MemberRole::Voter };
        Membership { version: 0, members: voters.iter().map(member).collect() }
    }

    /// False for what no group can have.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        let voters = self.voters().count();
        let mut replicas: Vec<ReplicaId> = self.members.iter().map(|member| member.replica).collect();
        replicas.sort_unstable();
        (1..=VOTERS_MAX).contains(&voters)
            && replicas.len() <= MEMBERS_MAX
            && replicas.windows(2).all(|pair| pair[0] != pair[1])
            && self.version <= VERSION_MAX
    }

    /// The voters, in the order of preference.
    pub fn voters(&self) -> impl Iterator<Item = &Member> + '_ {
        self.members.iter().filter(|member| member.is_voter())
    }

    /// How many voters make a quorum: any two quorums share one.
    #[must_use]
    pub fn quorum_size(&self) -> usize {
        self.voters().count() / 2 + 1
    }

    /// The member at that replica.
    #[must_use]
    pub fn member(&self, replica: ReplicaId) -> Option<&Member> {
        self.members.iter().find(|member| member.replica == replica)
    }

    /// True if that replica with that disk is a member.
    #[must_use]
    pub fn has(&self, replica: ReplicaId, incarnation: Incarnation) -> bool {
        self.member(replica).is_some_and(|member| member.incarnation == incarnation)
    }

    /// True if that replica with that disk is a voter.
    #[must_use]
    pub fn is_voter(&self, replica: ReplicaId, incarnation: Incarnation) -> bool {
        self.member(replica).is_some_and(|member| member.incarnation == incarnation && member.is_voter())
    }

    /// What this becomes by a change, as far as the membership alone can tell.
    ///
    /// # Errors
    /// If it makes no sense, or nothing would change.
    pub fn changed(&self, change: MemberChange) -> Result<Membership, ChangeRefused> {
        let replica = change.replica();
        let mut next = Membership { version: self.version.saturating_add(1), members: self.members.clone() };
        let at = self.members.iter().position(|member| member.replica == replica);
        let found = at.map(|at| self.members[at]).ok_or(ChangeRefused::NotAMember(replica));
        match change {
            MemberChange::AddLearner { incarnation, .. } | MemberChange::AddVoter { incarnation, .. } => {
                let is_voter = matches!(change, MemberChange::AddVoter { .. });
                let role = if is_voter { MemberRole::Joining } else { MemberRole::Learner };
                match found {
                    Ok(found) if found.incarnation != incarnation => return Err(ChangeRefused::OtherDisk(replica)),
                    Ok(found) if is_voter && found.role == MemberRole::Learner => next.set_role(replica, role),
                    Ok(_) => return Err(ChangeRefused::AlreadyThere(replica)),
                    Err(_) => next.members.push(Member { replica, incarnation, role }),
                }
            }
            MemberChange::Promote { .. } => {
                if found?.is_voter() {
                    return Err(ChangeRefused::AlreadyThere(replica));
                }
                next.set_role(replica, MemberRole::Voter);
            }
            MemberChange::Remove { .. } => {
                found?;
                next.members.retain(|member| member.replica != replica);
            }
            MemberChange::Replace { incarnation, .. } => {
                let found = found?;
                if found.incarnation == incarnation {
                    return Err(ChangeRefused::AlreadyThere(replica));
                }
                let role = if found.is_voter() { MemberRole::Joining } else { found.role };
                for member in next.members.iter_mut().filter(|member| member.replica == replica) {
                    *member = Member { replica, incarnation, role };
                }
            }
        }
        // One too many would join for ever: it cannot become what it waits for.
        let is_one_too_many = next.voters_to_be() > VOTERS_MAX.max(self.voters_to_be());
        match next.is_valid() && !is_one_too_many {
            true => Ok(next),
            false if next.voters().count() == 0 => Err(ChangeRefused::LastVoter),
            false => Err(ChangeRefused::TooMany),
        }
    }

    /// True if nobody else can become a voter.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.voters_to_be() >= VOTERS_MAX
    }

    /// The membership that an operator forces upon what is left of a group: one voter, and those of `keep` that are members
    /// now, who join again.
    #[must_use]
    pub fn forced(&self, survivor: Member, keep: &[ReplicaId]) -> Membership {
        let rejoin = self.members.iter().filter(|member| member.replica != survivor.replica);
        let rejoin = rejoin.filter(|member| keep.contains(&member.replica)).map(|member| match member.role {
            MemberRole::Voter => Member { role: MemberRole::Joining, ..*member },
            MemberRole::Learner | MemberRole::Joining => *member,
        });
        let survivor = Member { role: MemberRole::Voter, ..survivor };
        let version = (self.version / FORCED_VERSIONS + 1).saturating_mul(FORCED_VERSIONS).min(VERSION_MAX);
        Membership { version, members: std::iter::once(survivor).chain(rejoin).collect() }
    }

    /// The voters, and those that become voters by themselves.
    fn voters_to_be(&self) -> usize {
        self.members.iter().filter(|member| member.role != MemberRole::Learner).count()
    }

    fn set_role(&mut self, replica: ReplicaId, role: MemberRole) {
        for member in self.members.iter_mut().filter(|member| member.replica == replica) {
            member.role = role;
        }
    }
}

/// The memberships that a log holds: the one of the applied state, and those behind it, which may still be voided.
#[derive(Clone, Debug)]
pub(crate) struct Memberships {
    applied: Arc<Membership>,
    /// Where it came in, or later.
    applied_at: LogIndex,
    newer: Vec<(LogIndex, Arc<Membership>)>,
}

impl Memberships {
    pub(crate) fn new(applied: Arc<Membership>, applied_at: LogIndex) -> Self {
        Memberships { applied, applied_at, newer: Vec::new() }
    }

    /// Whose log reaches this far has the latest.
    pub(crate) fn latest_at(&self) -> LogIndex {
        self.newer.last().map_or(self.applied_at, |(index, _)| *index)
    }

    /// The one that counts.
    pub(crate) fn latest(&self) -> &Arc<Membership> {
        self.newer.last().map_or(&self.applied, |(_, membership)| membership)
    }

    /// The latest that is committed, if the log is up to `committed`.
    pub(crate) fn committed(&self, committed: LogIndex) -> &Arc<Membership> {
        let newest = self.newer.iter().rev().find(|(index, _)| *index <= committed);
        newest.map_or(&self.applied, |(_, membership)| membership)
    }

    /// True if the latest is not committed.
    pub(crate) fn is_changing(&self, committed: LogIndex) -> bool {
        self.newer.last().is_some_and(|(index, _)| *index > committed)
    }

    pub(crate) fn push(&mut self, index: LogIndex, membership: Arc<Membership>) {
        self.newer.push((index, membership));
    }

    /// Voids those from `index` on. True if there were any.
    pub(crate) fn truncate_from(&mut self, index: LogIndex) -> bool {
        let before = self.newer.len();
        self.newer.retain(|(at, _)| *at < index);
        self.newer.len() < before
    }

    /// The log is applied up to `index`.
    pub(crate) fn applied(&mut self, index: LogIndex) {
        let count = self.newer.iter().take_while(|(at, _)| *at <= index).count();
        if let Some((at, membership)) = self.newer.drain(..count).next_back() {
            (self.applied, self.applied_at) = (membership, at);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn members(roles: &[MemberRole]) -> Membership {
        let member = |(replica, &role)| Member { replica: ReplicaId(replica), incarnation: Incarnation::GENESIS, role };
        Membership { version: 5, members: (1..).zip(roles).map(member).collect() }
    }

    #[test]
    fn nobody_joins_who_could_never_vote() {
        use MemberRole::{Joining, Learner, Voter};
        let (replica, incarnation) = (ReplicaId(8), Incarnation(9));
        let add = MemberChange::AddVoter { replica, incarnation };
        let follow = MemberChange::AddLearner { replica, incarnation };
        let full = [[Voter; 7], [Voter, Voter, Voter, Voter, Voter, Voter, Joining]].map(|roles| members(&roles));
        for full in &full {
            assert_eq!(full.changed(add), Err(ChangeRefused::TooMany));
            let with_learner = full.changed(follow).unwrap();
            for change in [add, MemberChange::Promote { replica }] {
                assert_eq!(with_learner.changed(change), Err(ChangeRefused::TooMany));
            }
            let others_place = MemberChange::Replace { replica: ReplicaId(7), incarnation };
            assert!(full.changed(others_place).is_ok(), "on a new disk it takes its own place");
            let one_less = full.changed(MemberChange::Remove { replica: ReplicaId(1) }).unwrap();
            assert!(one_less.changed(add).is_ok());
        }
        assert!(full[1].changed(MemberChange::Promote { replica: ReplicaId(7) }).is_ok());
        assert!(members(&[Voter, Voter, Voter, Voter, Voter, Voter, Learner]).changed(add).is_ok());
        // As it could be made before.
        let too_many = members(&[Voter, Voter, Voter, Voter, Voter, Voter, Voter, Joining, Joining]);
        assert!(too_many.changed(MemberChange::Remove { replica: ReplicaId(8) }).is_ok());
    }
}
