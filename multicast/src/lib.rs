//! Replicated logs per group, and a conflict-aware atomic multicast over several groups.
//!
//! This crate is a pure core: no clock, socket, thread or ambient randomness. [`core::Core`] is one group's replica as a
//! value: `handle_*` puts something in, `poll_output` takes out what the driver must do, `apply_next` executes what is
//! committed. Everything that decides is here; the driver, or the simulator, only carries.

mod by_command;
mod by_group;
pub mod command;
pub mod config;
pub mod core;
pub mod error;
#[cfg(feature = "explore")]
pub mod explore;
mod hash;
pub mod ids;
mod log;
pub mod machine;
pub mod membership;
pub mod message;
pub mod order;
pub mod output;
#[cfg(feature = "explore")]
pub mod planted;
mod random;
pub mod record;
mod sequencer;
pub mod snapshot;
mod subscribers;
pub mod time;

pub use crate::core::Core;
pub use by_group::ByGroup;
pub use config::{Config, Limits, Timing};
pub use error::{Error, ErrorClass};
pub use machine::{Context, Contributions, Inert, Machine};
pub use membership::{ChangeRefused, ForceRefused, Member, MemberChange, MemberRole, Membership};
pub use message::Message;
pub use order::OrderState;
pub use output::{Applied, Change, Decline, Elsewhere, Event, Output, Reply, Writes};
pub use record::{Entry, Position, Record, Refusal, Rejection};
pub use sequencer::DESTINATIONS_MAX;
pub use snapshot::{InstallRefused, Snapshot};
pub use time::Time;
