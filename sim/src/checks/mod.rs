//! Checkers that watch from outside.

pub mod ledger;

use crate::world::{Failure, World};

/// Checks all that was written down, when everything is quiet.
pub fn finish(_world: &World) -> Result<(), Failure> {
    Ok(())
}
