//! Disks: the log that all groups of a node share, and their state.

pub mod disk;
pub mod folder;
pub mod hosting;
pub mod sealed;
pub mod state;
pub mod wal;

#[cfg(test)]
mod sim_disk;
