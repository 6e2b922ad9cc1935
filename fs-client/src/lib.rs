//! The mount: causal cache, routing, write buffering, FUSE.
//!
//! * [`Mount`]: a tree behind a mount point. [`Client`]: the same tree by paths, without FUSE.
//! * `session`: who is asked, in which order, again and again until the deadline; clocks and streams.
//! * `cache`: what may be answered without asking.
//! * `fs`: POSIX operations over inodes. `fuse` is the only module that names fuser.

pub mod config;
pub mod errno;
pub mod error;

pub(crate) mod buffer;
pub(crate) mod cache;
pub(crate) mod content;
pub(crate) mod fs;
mod fuse;
pub(crate) mod listings;
pub(crate) mod session;
mod signals;
pub(crate) mod table;
pub(crate) mod volume;

#[cfg(test)]
pub(crate) mod testing;

mod client;
mod mount;

pub use client::{Client, Explanation, Placed};
pub use config::{
    ClientConfig, Consistency, GroupInfo, KernelCache, Limits, MountConfig, MountOptions, NodeInfo, OnCut, Timeouts,
};
pub use errno::Errno;
pub use error::{Error, ErrorClass, Result};
pub use mount::{Mount, check_mountpoint};
