//! What executes commands: the state machine that a group replicates.

use bytes::Bytes;

use crate::by_group::ByGroup;
use crate::command::Command;
use crate::ids::{GroupId, LogIndex, SessionId, Timestamp};

/// The most bytes of one contribution. A longer one is replaced by an empty one, on every replica: a machine must read an
/// empty contribution where it expects something as a "no".
pub const CONTRIBUTION_BYTES_MAX: usize = 1 << 20;

/// What each destination gives to a command of several groups; no memory of its own for two.
pub type Contributions = ByGroup<Bytes, 2>;

/// Where and when something executes: the same on every replica of the group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Context {
    /// The group whose log this is.
    pub group: GroupId,
    /// The entry that is being applied.
    pub index: LogIndex,
    /// The command's place in the order. For a command of several groups it is the same in each.
    pub timestamp: Timestamp,
    /// The replicated time in nanoseconds since the Unix epoch, chosen by primaries: grows along every key's history and
    /// is the same in every destination of a command. (Timestamps are hybrid clocks, so it is the timestamp's number.)
    pub time_ns: u64,
    /// Another command that is prepared here changes a key that this one changes too: both add to it. What this one reads
    /// of such a key is not the last word for whoever has seen the other's effect in another group. The same for what a
    /// contribution says of it.
    pub is_contended: bool,
}

/// A deterministic state machine. Everything that it does is a function of its state and of these arguments; it is total:
/// a payload that makes no sense gives an outcome that says so, never a panic.
pub trait Machine {
    /// This group's share of what a command of several groups needs to know: may it execute here, what moves. Must not
    /// change the state, depends only on keys of the command's footprint in this group, and may be empty. At most
    /// [`CONTRIBUTION_BYTES_MAX`].
    fn contribute(&mut self, context: &Context, command: &Command) -> Bytes;

    /// Executes a command and returns its encoded outcome. `contributions` is empty for a command of one group; else it
    /// holds those of *all* destinations, this group's own included, and is the same map in every destination.
    fn execute(&mut self, context: &Context, command: &Command, contributions: &Contributions) -> Bytes;

    /// A session was opened in this group.
    fn session_opened(&mut self, context: &Context, session: SessionId);

    /// A session was closed or has expired in this group: what it held is free.
    fn session_closed(&mut self, context: &Context, session: SessionId);

    /// The driver asked for an entry that says nothing but the time: a chance to go on with what takes many entries.
    fn tick(&mut self, _context: &Context) {}
}

/// Executes nothing and keeps nothing: for measuring and testing the order alone.
#[derive(Clone, Copy, Debug, Default)]
pub struct Inert;

impl Machine for Inert {
    fn contribute(&mut self, _: &Context, _: &Command) -> Bytes {
        Bytes::new()
    }

    fn execute(&mut self, _: &Context, _: &Command, _: &Contributions) -> Bytes {
        Bytes::new()
    }

    fn session_opened(&mut self, _: &Context, _: SessionId) {}

    fn session_closed(&mut self, _: &Context, _: SessionId) {}
}
