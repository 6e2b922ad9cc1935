//! Checkers that watch from outside.

mod causal;
mod footprint;
mod history;
pub mod ledger;
pub mod linear;
mod model;
pub mod quorum;
mod tree;
mod truth;

use history::History;
use ledger::Ledger;
use linear::Searched;
use model::Model;

use crate::world::{Failure, World};

/// Checks all that was written down, when everything is quiet.
///
/// # Errors
/// The first thing that is wrong.
pub fn finish(world: &World) -> Result<Searched, Failure> {
    check_all(world).map_err(Failure::Safety)
}

fn check_all(world: &World) -> Result<Searched, String> {
    let ledger = &world.ledger;
    quorum::check(world)?;
    let history = History::new(ledger)?;
    history.check_once(ledger)?;
    let order = history.order(ledger)?;
    let model = play(ledger, &history, &order)?;
    causal::check(ledger, &history)?;
    tree::check(world, &model)?;
    // Last, though it needs nothing of the rest: what the others find they tell better.
    linear::check(ledger)
}

/// The black box alone: what it finds without the help of the others.
///
/// # Errors
/// If no order explains what clients saw.
pub fn black_box(world: &World) -> Result<Searched, Failure> {
    linear::check(&world.ledger).map_err(Failure::Safety)
}

/// All commands, one after the other.
fn play(_ledger: &Ledger, history: &History<'_>, order: &[usize]) -> Result<Model, String> {
    let mut model = Model::default();
    for &number in order {
        let Some(execution) = history.first(number) else { continue };
        model.play(&execution.op, &execution.outcome).map_err(|why| {
            let id = history.ids[number];
            let (at, group) = (execution.index, execution.group);
            format!("{why}: {id} at {at} of {group}: {:?} gave {:?}", execution.op, execution.outcome)
        })?;
    }
    Ok(model)
}
