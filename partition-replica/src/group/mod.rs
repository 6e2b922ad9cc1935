//! One replica: a thread that owns its ordering core and its namespace, a mailbox into it, a view for readers.

mod driver;
mod interest;
mod long;
pub mod mailbox;
mod replies;
mod session;
mod taught;
pub mod view;

pub use driver::{Driver, DriverParts, locked_keys};
pub use session::KeepAlives;
