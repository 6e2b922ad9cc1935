//! The geo-scalability lab: the shipped cores in virtual time, with costs measured on a machine.
//!
//! [`world::play`] runs one point of an experiment; the same point, costs and seed give the same figures, byte for byte. [`multicast`] measures the
//! ordering protocol alone on real processes.

pub mod calibrate;
pub mod costs;
pub mod distances;
pub mod error;
pub mod experiments;
pub mod merge;
pub mod multicast;
pub mod random;
pub mod report;
pub mod spec;
pub mod stats;
pub mod sweep;
pub mod world;

pub use error::{Error, Result};
