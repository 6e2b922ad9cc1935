//! Whole clusters in virtual time: the shipped cores, one thread, one seed, faults of every kind, checkers from outside.
//!
//! A run is a function of its seed. [`run::run`] plays one.

mod cache;
pub mod campaign;
pub mod checks;
mod client;
mod clients;
mod clock;
mod copies;
mod damage;
mod desk;
mod disk;
mod executor;
mod faults;
mod forgery;
mod network;
mod nodes;
mod operator;
pub mod options;
pub mod planted;
mod replica;
mod rng;
pub mod run;
mod shelf;
mod trace;
mod view;
mod workload;
mod world;
