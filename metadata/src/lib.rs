//! Operations, outcomes and the namespace of GlobalFS as a deterministic state machine over a small ordered key-value
//! store.
//!
//! This crate is pure: no clock, thread, I/O or ambient randomness.

pub mod answer;
pub mod birth;
pub mod check;
pub mod codec;
pub mod error;
pub mod footprint;
pub mod keys;
pub mod namespace;
pub mod op;
pub mod operate;
mod ops;
pub mod outcome;
pub mod protocol;
pub mod read;
pub mod rows;
pub mod store;
pub mod types;
pub mod validate;
mod verdict;

pub use error::Error;
pub use namespace::{Changes, Namespace};
pub use store::{MemStore, Overlay, Store, StoreMut, WriteSet};
