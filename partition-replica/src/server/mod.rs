//! Peers' and clients' channels.

pub mod accept;
pub mod client;
pub mod peers;
mod requests;
