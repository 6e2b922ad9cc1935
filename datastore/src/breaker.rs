//! A circuit breaker for one bucket: after failures in a row it is left alone for a while, then one request tries.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::backoff::jitter;

/// Failures in a row before a bucket is left alone.
const FAILURES_MAX: u32 = 3;
/// The first pause; doubles while the bucket keeps failing.
const PAUSE_FIRST: Duration = Duration::from_millis(200);
/// The longest pause: an outage is noticed to be over within this time.
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// Whether a bucket is worth asking.
#[derive(Debug)]
pub(crate) struct Breaker {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    failures: u32,
    /// While set, only a probe after this time is admitted.
    closed_until: Option<Instant>,
    /// A probe is under way; nobody else is admitted until it ends.
    probing: bool,
    pause: Duration,
}

/// What [`Breaker::admit`] says.
pub(crate) enum Admission<'a> {
    /// Ask, and report what happened.
    Go(Permit<'a>),
    /// Leave it alone until then.
    Wait(Instant),
}

impl Breaker {
    pub(crate) fn new() -> Breaker {
        Breaker { state: Mutex::new(State { failures: 0, closed_until: None, probing: false, pause: PAUSE_FIRST }) }
    }

    /// May the bucket be asked now?
    pub(crate) fn admit(&self) -> Admission<'_> {
        let mut state = self.state.lock();
        let now = Instant::now();
        match state.closed_until {
            None => Admission::Go(Permit { breaker: self, probe: false }),
            Some(until) if until > now => Admission::Wait(until),
            // The probe's end is not known; look again soon.
            Some(_) if state.probing => Admission::Wait(now + PAUSE_FIRST / 4),
            Some(_) => {
                state.probing = true;
                Admission::Go(Permit { breaker: self, probe: true })
            }
        }
    }

    /// Failures since the last success.
    pub(crate) fn failures(&self) -> u32 {
        self.state.lock().failures
    }

    /// Whether the bucket is left alone at the moment.
    pub(crate) fn is_closed_off(&self) -> bool {
        self.state.lock().closed_until.is_some()
    }
}

/// One admitted request. Dropped without a report (a cancelled request), it says nothing about the bucket.
pub(crate) struct Permit<'a> {
    breaker: &'a Breaker,
    probe: bool,
}

impl Permit<'_> {
    /// The bucket answered, whatever it said.
    pub(crate) fn answered(self) {
        let mut state = self.breaker.state.lock();
        state.failures = 0;
        state.closed_until = None;
        state.pause = PAUSE_FIRST;
    }

    /// The bucket did not answer, or with an error of its own. Slow failures count at once: each costs a timeout.
    pub(crate) fn failed(self, slow: bool) {
        let mut state = self.breaker.state.lock();
        state.failures = state.failures.saturating_add(if slow { FAILURES_MAX } else { 1 });
        // Requests that were under way when the bucket was closed off must not prolong it.
        let first = state.closed_until.is_none();
        if state.failures >= FAILURES_MAX && (first || self.probe) {
            state.closed_until = Some(Instant::now() + jitter(state.pause));
            state.pause = (state.pause * 2).min(PAUSE_MAX);
        }
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        if self.probe {
            self.breaker.state.lock().probing = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn go(breaker: &Breaker) -> Permit<'_> {
        match breaker.admit() {
            Admission::Go(permit) => permit,
            Admission::Wait(_) => panic!("the breaker is closed off"),
        }
    }

    fn waits(breaker: &Breaker) -> bool {
        matches!(breaker.admit(), Admission::Wait(_))
    }

    #[tokio::test(start_paused = true)]
    async fn breaker_failures_in_a_row_close_off_and_one_probe_reopens() {
        let breaker = Breaker::new();
        go(&breaker).failed(false);
        go(&breaker).failed(false);
        go(&breaker).answered();
        go(&breaker).failed(false);
        go(&breaker).failed(false);
        assert!(!waits(&breaker));
        go(&breaker).failed(false);
        assert!(waits(&breaker));
        tokio::time::sleep(PAUSE_FIRST).await;
        let probe = go(&breaker);
        assert!(waits(&breaker), "only one probe at a time");
        drop(probe);
        let probe = go(&breaker);
        probe.failed(false);
        assert!(waits(&breaker));
        tokio::time::sleep(PAUSE_FIRST * 2).await;
        go(&breaker).answered();
        assert!(!breaker.is_closed_off());
        assert_eq!(breaker.failures(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn breaker_long_outage_is_probed_at_least_every_few_seconds() {
        let breaker = Breaker::new();
        for _ in 0..50 {
            while waits(&breaker) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            go(&breaker).failed(true);
        }
        tokio::time::sleep(PAUSE_MAX).await;
        assert!(!waits(&breaker));
    }
}
