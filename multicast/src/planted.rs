//! Mistakes planted on purpose, one at a time: an exploration that cannot fail is worthless. Only built for this crate's tests.

/// A known way to get the protocol wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Planted {
    /// The clock stays where it is when a final timestamp becomes known.
    ClockStays,
    /// A command of several groups executes before every contribution is in.
    FinishEarly,
    /// A command of several groups waits for conflicting ones before its `Prepare`.
    PrepareWaits,
    /// What is only read conflicts with nothing.
    ReadsIgnored,
    /// Commands of one group do not wait for smaller conflicting ones.
    SinglesOvertake,
    /// `Commit` is logged without waiting for smaller conflicting commands.
    CommitOvertakes,
    /// Each group orders by its own proposal instead of the largest.
    OwnTimestamp,
    /// A candidate begins with its own log, whatever those have that promised.
    OwnLogWins,
    /// A voter that has promised a higher ballot still takes a lower one's appends.
    StaleAppends,
}
