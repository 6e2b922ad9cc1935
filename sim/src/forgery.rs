//! Planted bugs of membership: what members say to each other is made to look otherwise, as a core without the rule in
//! question would have taken it.

use multicast::{MemberRole, Membership, Message, Record, Writes};

use crate::planted::Bug;
use crate::world::{Address, World};

impl World {
    fn members_at(&self, (group, id): Address) -> Option<&Membership> {
        let replica = self.nodes.get(&id)?.replicas.get(&group)?;
        Some(replica.live.as_ref()?.ordering().membership())
    }

    /// What becomes of a message on its way: as a rule itself.
    pub(crate) fn forge(&self, from: Address, to: Address, message: Message) -> Vec<(Address, Address, Message)> {
        let mut sent = match self.bug {
            Some(Bug::LearnerVotes) => self.let_learners_vote(from, to, &message),
            Some(Bug::PromoteUnready) => self.let_joining_boast(from, to, &message),
            _ => Vec::new(),
        };
        if sent.is_empty() || matches!(message, Message::Campaign { .. } | Message::Probe { .. }) {
            sent.push((from, to, message));
        }
        sent
    }

    /// Learners are asked for their votes, and what they say counts as if a voter said it.
    fn let_learners_vote(&self, from: Address, to: Address, message: &Message) -> Vec<(Address, Address, Message)> {
        if from.0 != to.0 {
            return Vec::new();
        }
        match message {
            Message::Campaign { .. } | Message::Probe { .. } => {
                let members = self.members_at(from).into_iter().flat_map(|members| &members.members);
                let learners = members.filter(|member| member.role == MemberRole::Learner && member.replica != from.1);
                learners.map(|learner| (from, (to.0, learner.replica), message.clone())).collect()
            }
            Message::Promise { .. } | Message::ProbeAnswer { .. } => {
                let Some(members) = self.members_at(to) else { return Vec::new() };
                let is_learner = members.member(from.1).is_some_and(|member| member.role == MemberRole::Learner);
                let voters = members.voters().filter(|voter| is_learner && voter.replica != to.1);
                let mut message = message.clone();
                let disguised = voters.map(|voter| {
                    if let Message::Promise { incarnation, .. } | Message::ProbeAnswer { incarnation, .. } =
                        &mut message
                    {
                        *incarnation = voter.incarnation;
                    }
                    ((from.0, voter.replica), to, message.clone())
                });
                disguised.take(1).collect()
            }
            _ => Vec::new(),
        }
    }

    /// Whoever is about to become a voter passes for one that has all.
    fn let_joining_boast(&self, from: Address, to: Address, message: &Message) -> Vec<(Address, Address, Message)> {
        let Message::Appended { ballot, incarnation, .. } = message else { return Vec::new() };
        let Some(members) = self.members_at(to).filter(|_| from.0 == to.0) else { return Vec::new() };
        let is_joining = members.member(from.1).is_some_and(|member| member.role == MemberRole::Joining);
        let Some(node) = self.nodes.get(&to.1).filter(|_| is_joining) else { return Vec::new() };
        let live = node.replicas.get(&to.0).and_then(|replica| replica.live.as_ref());
        let Some(matched) = live.map(|live| live.ordering().status().last) else { return Vec::new() };
        vec![(from, to, Message::Appended { ballot: *ballot, matched, incarnation: *incarnation })]
    }

    /// A change of members counts as committed as soon as its primary has logged it.
    pub(crate) fn believe_change(&mut self, address: Address, writes: &Writes) {
        let now = self.now;
        let is_change = |record: &[u8]| matches!(Record::decode(record), Ok(Record::Config { .. }));
        let change = writes.append.iter().find(|entry| is_change(&entry.record));
        let Some((ballot, matched)) = change.map(|entry| (entry.ballot, entry.index)) else { return };
        let Some(members) = self.members_at(address).cloned() else { return };
        let Some(node) = self.nodes.get_mut(&address.1) else { return };
        let time = node.clock.time(now);
        let Some(live) = node.replicas.get_mut(&address.0).and_then(|replica| replica.live.as_mut()) else { return };
        for voter in members.voters().filter(|voter| voter.replica != address.1) {
            let message = Message::Appended { ballot, matched, incarnation: voter.incarnation };
            live.core.handle_message(time, (address.0, voter.replica), message);
        }
    }
}
