//! Time as the driver tells it.

use std::ops::Add;

/// Nanoseconds since the Unix epoch, as the driver reads them. The core never asks a clock.
///
/// The driver reads the wall clock once at start and adds monotonic time to it, so that its `Time` never goes back; the
/// core takes the larger of what it is told and what it was told before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(pub u64);

impl Time {
    /// This time plus so many milliseconds.
    #[must_use]
    pub fn after_ms(self, duration_ms: u64) -> Time {
        self + duration_ms.saturating_mul(1_000_000)
    }

    /// How many whole milliseconds have passed since `earlier`; zero if it is later.
    #[must_use]
    pub fn ms_since(self, earlier: Time) -> u64 {
        self.0.saturating_sub(earlier.0) / 1_000_000
    }
}

impl Add<u64> for Time {
    type Output = Time;

    fn add(self, duration_ns: u64) -> Time {
        Time(self.0.saturating_add(duration_ns))
    }
}
