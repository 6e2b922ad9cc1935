//! The node's time: the wall clock once, then monotonic.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use multicast::Time;

/// Never goes back while the process lives.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: Instant,
    start_ns: u64,
}

impl Clock {
    /// Reads the wall clock.
    pub fn start() -> Clock {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Clock { start: Instant::now(), start_ns: u64::try_from(since.as_nanos()).unwrap_or(u64::MAX) }
    }

    /// Now.
    pub fn now(&self) -> Time {
        let elapsed = u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        Time(self.start_ns.saturating_add(elapsed))
    }

    /// Since the start.
    pub fn uptime_ms(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}
