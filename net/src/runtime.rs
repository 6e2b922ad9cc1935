//! The tokio runtime that networking runs on.

use std::io;

use tokio::runtime::{Builder, Runtime};

/// A runtime with one worker thread: the right size for endpoints, whatever the number of processors.
///
/// Waking a second worker costs more than it brings: with 2 workers on each side an echo took 75 µs and 75 µs of
/// CPU one at a time and 5.5 µs of CPU with 16 in flight; with one worker 39 µs, 41 µs and 3.1 µs (200-byte
/// frames over loopback, two processors). Keep work that computes or blocks off it: other threads hand frames
/// over by [`crate::FrameSender::try_send`] and [`crate::PeerLink::send`].
pub fn runtime(name: &str) -> io::Result<Runtime> {
    Builder::new_multi_thread().worker_threads(1).thread_name(name).enable_all().build()
}
