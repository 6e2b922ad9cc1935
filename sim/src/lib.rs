//! Whole clusters in virtual time: the shipped cores, one thread, one seed, faults of every kind, checkers from outside.
//!
//! A run is a function of its seed. [`run::run`] plays one.

mod cache;
pub mod campaign;
mod checks;
mod client;
mod clients;
mod clock;
mod desk;
mod disk;
mod executor;
mod faults;
mod network;
mod nodes;
pub mod options;
pub mod planted;
mod replica;
mod rng;
pub mod run;
mod trace;
mod view;
mod workload;
mod world;
