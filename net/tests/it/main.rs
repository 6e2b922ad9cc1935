//! The crate from outside: certificates, channels, links, hostile peers and emulated distances, over loopback.
#![allow(clippy::unwrap_used)]

mod channels;
mod common;
mod hostile;
mod links;
mod measure;
mod pki;
mod wan;
