//! Settings of one replica's core.

use std::collections::BTreeMap;

use crate::error::Error;
use crate::ids::{GroupId, Incarnation, ReplicaId};
use crate::membership::VOTERS_MAX;

/// The most bytes of payload and footprint that any replica takes, whatever its limits say.
pub const COMMAND_BYTES_MAX: usize = 4 << 20;

/// Who a replica is, whom it knows, and how patient it is.
#[derive(Clone, Debug)]
pub struct Config {
    /// The group that this replica belongs to.
    pub group: GroupId,
    /// This replica.
    pub replica: ReplicaId,
    /// Its disk.
    pub incarnation: Incarnation,
    /// The voters of every group of the cluster, this one included, the preferred primary first: as they were at the founding
    /// of this group, and as far as known of the others. This one's members since then are in its log.
    pub groups: BTreeMap<GroupId, Vec<ReplicaId>>,
    /// A voter that comes back with an empty disk is replaced by itself: it follows, and becomes a voter again once it has
    /// caught up. Default true.
    pub auto_replace: bool,
    /// Classic atomic multicast: every command conflicts with every other. For comparison and tests. Must be the same on
    /// all voters of all groups.
    pub classic: bool,
    /// Seed of the jitter of election timeouts. Should differ between replicas.
    pub seed: u64,
    /// Patience.
    pub timing: Timing,
    /// Bounds.
    pub limits: Limits,
}

/// How long things may take. All in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// A primary that has nothing to say says so this often. Default 100.
    pub heartbeat_ms: u64,
    /// A follower that has heard nothing from a primary for this long, plus up to as much again (drawn anew each time),
    /// campaigns. At least three heartbeats and well above the round trip between voters. Default 1000.
    pub election_timeout_ms: u64,
    /// What another group's primary has not answered is sent again after this long, then after twice as long, and so on.
    /// Must exceed the round trip between groups, else everything is sent twice. Default 600.
    pub resend_ms: u64,
    /// … but never more seldom than this. Default 5000.
    pub resend_ms_max: u64,
    /// A group whose primary has left questions unanswered for this long gets no new commands from here. Default 5000.
    pub silence_ms: u64,
    /// A primary that is not the first in the group's list hands over to the first one once that has been up to date for
    /// this long. Zero: never. Default 10000.
    pub return_ms: u64,
    /// Ids that every destination has finished are forgotten by a log record at most this often. Default 200.
    pub forget_ms: u64,
    /// Another group's primary that asks how far this group is hears of its progress for so long. It asks again after half of
    /// its own, if need be. Must exceed the resend interval, and should be the same everywhere. Default 10000.
    pub subscription_ms: u64,
    /// … but at most this often, or, from a primary, once in as many milliseconds as there are subscribers if that is sooner.
    /// Commands of clients that have just seen this group's state wait about so long elsewhere. Default 10.
    pub progress_ms: u64,
}

/// The most of each thing. Together they bound a core's memory to roughly `log_tail_bytes + in_flight_bytes × 2 +
/// append_window_bytes × followers`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Payload and footprint of one command. Default 1 MiB.
    pub command_bytes_max: usize,
    /// Commands accepted here and not executed yet; more are declined as overload. Default 16384.
    pub in_flight_max: usize,
    /// Their bytes. Default 64 MiB.
    pub in_flight_bytes_max: usize,
    /// Unfinished commands that concern one other group; more are declined as overload. Default 4096.
    pub unfinished_per_group_max: usize,
    /// Entries in one append, catch-up or log read. Default 1 MiB (one entry may exceed it).
    pub append_batch_bytes: usize,
    /// Appends that one follower has not acknowledged. Default 8 MiB.
    pub append_window_bytes: usize,
    /// Applied entries kept in memory as long as some member lacks them; older ones are read back from disk. Default 32 MiB.
    pub log_tail_bytes: usize,
    /// Open sessions of the group. Default 65536.
    pub sessions_max: usize,
    /// The log on disk, in bytes since the start of the process: beyond, its oldest applied part is dropped although some
    /// voter may still lack it, which then is beyond help. Default 4 GiB.
    pub log_bytes_max: u64,
    /// The same in entries, of which also those from before a restart count. Default 16 Mi.
    pub log_entries_max: u64,
    /// How far the time that a primary gives may be ahead of what a quorum's clocks say, in milliseconds. Default 10000.
    pub skew_ms_max: u64,
    /// Replicas of other groups that hear of this group's progress; more must ask each time. Default 256.
    pub subscribers_max: usize,
}

impl Default for Timing {
    fn default() -> Self {
        Timing {
            heartbeat_ms: 100,
            election_timeout_ms: 1000,
            resend_ms: 600,
            resend_ms_max: 5000,
            silence_ms: 5000,
            return_ms: 10_000,
            forget_ms: 200,
            subscription_ms: 10_000,
            progress_ms: 10,
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            command_bytes_max: 1 << 20,
            in_flight_max: 16_384,
            in_flight_bytes_max: 64 << 20,
            unfinished_per_group_max: 4096,
            append_batch_bytes: 1 << 20,
            append_window_bytes: 8 << 20,
            log_tail_bytes: 32 << 20,
            sessions_max: 65_536,
            log_bytes_max: 4 << 30,
            log_entries_max: 16 << 20,
            skew_ms_max: 10_000,
            subscribers_max: 256,
        }
    }
}

impl Config {
    /// A configuration with default timing and limits; the seed is the replica's number.
    #[must_use]
    pub fn new(group: GroupId, replica: ReplicaId, groups: BTreeMap<GroupId, Vec<ReplicaId>>) -> Self {
        Config {
            group,
            replica,
            incarnation: Incarnation::GENESIS,
            groups,
            auto_replace: true,
            classic: false,
            seed: (u64::from(group.0) << 32) | u64::from(replica.0),
            timing: Timing::default(),
            limits: Limits::default(),
        }
    }

    /// The voters of this group at its founding.
    #[must_use]
    pub fn voters(&self) -> &[ReplicaId] {
        self.groups.get(&self.group).map_or(&[], Vec::as_slice)
    }

    /// Checks what the types cannot.
    ///
    /// # Errors
    /// [`Error::Configuration`] with the first contradiction.
    pub fn check(&self) -> Result<(), Error> {
        let fail = |reason: String| Err(Error::Configuration(reason));
        if self.voters().is_empty() {
            return fail(format!("{} is not among the groups", self.group));
        }
        for (group, voters) in &self.groups {
            let mut distinct = voters.clone();
            distinct.sort_unstable();
            distinct.dedup();
            if distinct.len() != voters.len() || !(1..=VOTERS_MAX).contains(&voters.len()) {
                let count = voters.len();
                return fail(format!("{group} has {count} voters: 1 to {VOTERS_MAX} different ones are possible"));
            }
        }
        let timing = &self.timing;
        if timing.heartbeat_ms == 0 || timing.election_timeout_ms < timing.heartbeat_ms.saturating_mul(3) {
            return fail("the election timeout must be at least three heartbeats".to_owned());
        }
        if timing.resend_ms == 0 || timing.resend_ms_max < timing.resend_ms || timing.forget_ms == 0 {
            return fail("resend and forget intervals must not be zero, nor the longest below the first".to_owned());
        }
        if timing.progress_ms == 0 || timing.subscription_ms <= timing.resend_ms {
            return fail("progress must not be told all the time, nor for less than the resend interval".to_owned());
        }
        if self.limits.command_bytes_max > COMMAND_BYTES_MAX {
            return fail(format!("commands of more than {COMMAND_BYTES_MAX} bytes do not fit the protocol"));
        }
        Ok(())
    }
}
