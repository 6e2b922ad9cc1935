//! Peers' and clients' channels.

pub mod accept;
pub mod client;
mod operate;
pub mod peers;
mod requests;
pub mod whom;
