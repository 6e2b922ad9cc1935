//! The globalfs command.
fn main() {}
