//! One replica: a thread that owns its core, a mailbox into it, a view for readers.

mod driver;
mod long;
pub mod mailbox;
pub mod view;

pub(crate) use driver::log_records;
pub use driver::{CopyWay, Driver, DriverParts};
