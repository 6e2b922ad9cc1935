//! One replica of one group, without threads, sockets, clocks and disks.
//!
//! * [`ReplicaCore`]: the ordering core and everything around it: who waits for an answer, barriers of linearizable reads,
//!   leases of sessions, removals in steps, applying batches of committed entries. `handle_*` in, `poll_*` out.
//! * [`Front`], [`Verdict`], [`Parked`], [`Watch`]: what may be read when, and what of it may be cached.
//! * [`Interest`]: who has read what, and is told when it changes.
//!
//! A node runs the core on a thread and puts the rest behind locks, so that reads go past that thread; the simulator holds
//! all of it as values. Neither decides anything.

mod apply;
mod client;
mod core;
mod digests;
mod front;
mod interest;
mod leases;
mod parked;
mod replies;
mod taught;

pub use crate::core::{DIGEST_INTERVAL, Note, Output, ReplicaConfig, ReplicaCore};
pub use apply::{Apply, Plain, Step};
pub use client::{Connection, Tell, Ticket};
pub use front::{Front, LockedKeys, PendingRead, Verdict};
pub use interest::Interest;
pub use leases::Leases;
pub use parked::{Parked, Watch};
pub use replies::STALE;
