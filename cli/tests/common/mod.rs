//! What the end-to-end tests share. Each test is a program of its own and uses a part of it.
#![allow(dead_code, missing_docs, clippy::unwrap_used)]

pub mod cluster;
pub mod counters;
pub mod disk;
pub mod files;
pub mod journal;
pub mod tree;
