//! Nodes on loopback, with real logs, stores and connections.

#![allow(clippy::unwrap_used, missing_docs)]

mod client;
mod cluster;
mod collector;
mod crashes;
mod disks;
mod founding;
mod groups;
mod hostile;
mod measure;
mod members;
mod reads;
