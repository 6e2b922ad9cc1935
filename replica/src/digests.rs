//! Whether the group's states are one: each member tells the others what its own came to at every so many entries.

use std::collections::BTreeMap;

use multicast::ids::{LogIndex, ReplicaId};

/// Digests kept for comparison, of each member.
const DIGESTS_MAX: usize = 64;

/// A replica whose state is not what a quorum of its group's voters has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Divergence {
    /// At which index.
    pub index: LogIndex,
    /// Its own digest there.
    pub own: u128,
    /// That of the others.
    pub others: u128,
}

/// Digests at the same indexes on all members.
#[derive(Debug, Default)]
pub struct Digests {
    own: BTreeMap<u64, u128>,
    others: BTreeMap<ReplicaId, BTreeMap<u64, u128>>,
}

impl Digests {
    /// The own ones.
    pub fn own(&self) -> &BTreeMap<u64, u128> {
        &self.own
    }

    /// The own state at an index.
    pub fn note(&mut self, index: LogIndex, digest: u128) {
        keep(&mut self.own, index, digest);
    }

    /// What another member says of its state.
    pub fn hear(&mut self, from: ReplicaId, index: LogIndex, digest: u128) {
        keep(self.others.entry(from).or_default(), index, digest);
    }

    /// Forgets who is no voter any more.
    pub fn retain(&mut self, is_voter: impl Fn(ReplicaId) -> bool) {
        self.others.retain(|&replica, _| is_voter(replica));
    }

    /// Forgets the own ones: the state is another one now.
    pub fn begin_anew(&mut self) {
        self.own.clear();
    }

    /// What a quorum of others agrees upon, where the own state differs. Who merely differs from some says nothing: it may be
    /// they who are wrong.
    pub fn divergence(&self, quorum_size: usize) -> Option<Divergence> {
        self.own.iter().find_map(|(&index, &own)| {
            let mut counts: BTreeMap<u128, usize> = BTreeMap::new();
            for digest in self.others.values().filter_map(|digests| digests.get(&index)) {
                *counts.entry(*digest).or_default() += 1;
            }
            let found = counts.into_iter().find(|&(digest, count)| digest != own && count >= quorum_size);
            found.map(|(others, _)| Divergence { index: LogIndex(index), own, others })
        })
    }
}

fn keep(digests: &mut BTreeMap<u64, u128>, index: LogIndex, digest: u128) {
    digests.insert(index.0, digest);
    while digests.len() > DIGESTS_MAX {
        digests.pop_first();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replica_differs_only_from_a_quorum_that_agrees_at_an_index_of_its_own() {
        let mut digests = Digests::default();
        digests.note(LogIndex(8), 1);
        digests.note(LogIndex(16), 2);
        digests.hear(ReplicaId(2), LogIndex(16), 3);
        assert_eq!(digests.divergence(2), None, "one other may be wrong itself");
        digests.hear(ReplicaId(3), LogIndex(16), 4);
        assert_eq!(digests.divergence(2), None, "they do not agree");
        digests.hear(ReplicaId(3), LogIndex(24), 9);
        digests.hear(ReplicaId(2), LogIndex(24), 9);
        assert_eq!(digests.divergence(2), None, "not there yet");
        digests.note(LogIndex(24), 8);
        assert_eq!(digests.divergence(2), Some(Divergence { index: LogIndex(24), own: 8, others: 9 }));
        digests.retain(|replica| replica == ReplicaId(2));
        assert_eq!(digests.divergence(2), None);
    }

    #[test]
    fn only_so_many_digests_are_kept_of_each() {
        let mut digests = Digests::default();
        for index in 0..1000 {
            digests.hear(ReplicaId(2), LogIndex(index), 1);
        }
        assert_eq!(digests.others[&ReplicaId(2)].len(), DIGESTS_MAX);
    }
}
