//! Operations, outcomes and the namespace of GlobalFS as a deterministic state machine over a small ordered key-value
//! store.
//!
//! This crate is pure: no clock, thread, I/O or ambient randomness.

pub mod op;
pub mod outcome;
pub mod protocol;
pub mod read;
pub mod types;
