//! How the engine of a mount moves its cache: the shipped files.

#[path = "../../fs-client/src/session/across.rs"]
pub mod across;
#[path = "../../fs-client/src/session/fill.rs"]
pub mod fill;
#[path = "../../fs-client/src/session/progress.rs"]
pub mod progress;
