//! Exhaustive exploration of small scopes over the real core: every order in which messages, flushes, clients and a few
//! faults can come, not a sample of them.
//!
//! An actor is one replica: the shipped `Core`, a small machine, a disk. What an actor does depends on nothing but itself and
//! what it is given, so each pair of (actor's state, input) is played once on the real core and then looked up; a state of the
//! whole is a few numbers. See docs/protocol.md, section 11.

#![allow(clippy::unwrap_used, dead_code)]

pub mod actor;
pub mod patterns;
pub mod search;
