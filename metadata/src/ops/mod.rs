//! What each family of operations does, one file each. Those that may have several destinations come in two halves: a
//! check in each group before the verdict, and each group's own part after it.

mod collect;
mod content;
mod create;
mod entry;
mod freight;
mod grave;
mod link;
mod lock;
mod orphan;
mod placement;
mod rename;
mod setattr;
mod transfer;
mod write;
mod xattr;

pub(crate) use collect::moves;
pub(crate) use content::{Piece, pieces_from};
pub(crate) use lock::{conflict, open_locks};
