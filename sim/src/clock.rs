//! A node's clock: an offset, a drift, jumps forward. Monotonic while the process lives, as the node's own is.

use multicast::Time;

/// Where every node's clock starts, about.
const EPOCH_NS: u64 = 1_700_000_000_000_000_000;

/// Maps the world's time to what a node believes.
#[derive(Clone, Copy, Debug)]
pub struct NodeClock {
    /// The node's time at `since`.
    base_ns: u64,
    since_ns: u64,
    /// Parts per million too fast.
    drift_ppm: i64,
}

impl NodeClock {
    /// A clock that is so far ahead.
    #[must_use]
    pub fn new(ahead_ns: u64, drift_ppm: i64) -> NodeClock {
        NodeClock { base_ns: EPOCH_NS + ahead_ns, since_ns: 0, drift_ppm }
    }

    /// What the node believes.
    #[must_use]
    pub fn time(&self, now_ns: u64) -> Time {
        let elapsed = i128::from(now_ns - self.since_ns);
        let drifted = elapsed + elapsed * i128::from(self.drift_ppm) / 1_000_000;
        Time(self.base_ns + u64::try_from(drifted).unwrap_or(0))
    }

    /// How long until the node believes that it is `due`.
    #[must_use]
    pub fn delay_until(&self, now_ns: u64, due: Time) -> u64 {
        let left = i128::from(due.0.saturating_sub(self.time(now_ns).0));
        let scaled = left * 1_000_000 / (1_000_000 + i128::from(self.drift_ppm));
        // Rounded up: early is harmless but costs another event.
        u64::try_from(scaled).unwrap_or(u64::MAX) + u64::from(left > 0)
    }

    /// The clock is set back, while no process reads it.
    pub fn set_back(&mut self, now_ns: u64, by_ns: u64) {
        self.base_ns = self.time(now_ns).0.saturating_sub(by_ns);
        self.since_ns = now_ns;
    }

    /// The clock is set forward.
    pub fn jump(&mut self, now_ns: u64, by_ns: u64) {
        self.base_ns = self.time(now_ns).0 + by_ns;
        self.since_ns = now_ns;
    }
}
