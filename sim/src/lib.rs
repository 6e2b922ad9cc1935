//! Whole clusters in virtual time: the shipped cores, one thread, one seed, faults of every kind, checkers from outside.
//!
//! A run is a function of its seed. [`run::run`] plays one.

#[path = "../../fs-client/src/cache.rs"]
#[allow(dead_code, reason = "the client's cache as it ships, of which not all is simulated; its crate needs sockets")]
mod cache;
pub mod campaign;
pub mod checks;
mod client;
mod clients;
mod clock;
#[path = "../../fs-client/src/content.rs"]
#[allow(dead_code, reason = "see above")]
mod content;
mod copies;
mod damage;
mod desk;
mod disk;
mod executor;
mod faults;
mod forgery;
mod kept;
#[path = "../../fs-client/src/listings.rs"]
#[allow(dead_code, reason = "see above")]
mod listings;
mod network;
mod nodes;
mod operator;
pub mod options;
pub mod planted;
mod replica;
mod rng;
pub mod run;
#[allow(dead_code, reason = "see above")]
mod session;
mod shelf;
mod trace;
mod view;
mod workload;
mod world;
