//! Another replica's state in the place of the own one: where the log begins then.

use std::sync::Arc;

use super::entries::Entries;
use super::extent::Extent;
use super::{Replicator, Role};
use crate::core::Durable;
use crate::error::Error;
use crate::ids::LogIndex;
use crate::membership::{Membership, Memberships};
use crate::record::Record;
use crate::snapshot::Snapshot;
use crate::time::Time;

/// True if the state was copied, and the power went before the log was made to begin there.
pub(super) fn is_unfinished(copied: &Snapshot, durable: &Durable, applied: LogIndex) -> bool {
    let position = copied.entry.position();
    copied.entry.index == applied && !durable.entries.iter().any(|entry| entry.position() == position)
}

impl Replicator {
    /// On start: the state is a copy, and the log does not have its last entry.
    pub(super) fn finish_install(&mut self, copied: &Snapshot) {
        self.first_on_disk = copied.entry.index;
        self.disk.begin_at(copied.entry.clone());
        self.extent = Extent::new(self.limits.log_bytes_max, self.limits.log_entries_max);
        self.extent.push(copied.entry.index, copied.entry.len_bytes());
    }

    /// The sender knew in this ballot what is committed. Whoever knows it too must not help a lower one to decide otherwise.
    pub(super) fn promise_at_least(&mut self, copied: &Snapshot) {
        if copied.ballot > self.promised {
            self.promised = copied.ballot;
            self.disk.promise(copied.ballot);
            self.clock_told = None;
        }
    }

    /// The state is that of the snapshot from now on. What of the log agrees with it is kept.
    pub(crate) fn install(
        &mut self,
        now: Time,
        copied: &Snapshot,
        membership: Option<&Arc<Membership>>,
    ) -> Result<(), Error> {
        self.now = now;
        let index = copied.entry.index;
        if self.entries.position(index) != Some(copied.entry.position()) {
            Record::decode(&copied.entry.record)?;
            self.entries = Entries::begin_at(copied.entry.clone());
            self.finish_install(copied);
            if let Some(reading) = &mut self.reading {
                reading.through = LogIndex::ZERO;
            }
        }
        if !matches!(self.role, Role::Follower) {
            self.become_follower(None);
        }
        self.promise_at_least(copied);
        self.committed = self.committed.max(index);
        self.applied = index;
        self.entries.skip_applied(index);
        self.too_far_behind = None;
        self.entries.trim(index, self.everywhere, self.limits.log_tail_bytes);
        self.memberships = Memberships::new(Arc::clone(membership.unwrap_or(&self.genesis)), index);
        self.find_memberships();
        Ok(())
    }

    /// Learns the memberships that the log holds behind the applied state.
    pub(super) fn find_memberships(&mut self) {
        for (index, record) in self.entries.unapplied() {
            if let Record::Config { membership } = record {
                self.memberships.push(index, Arc::clone(membership));
            }
        }
        self.follow_membership();
    }
}
