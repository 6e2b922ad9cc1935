//! Replicated logs per group, and a conflict-aware atomic multicast over several groups.
//!
//! This crate is a pure core: no clock, socket, thread or ambient randomness.

pub mod command;
pub mod ids;
