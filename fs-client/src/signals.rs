//! Whether somebody who waits for us has been interrupted. The kernel's own way of telling (an INTERRUPT request) does not
//! reach us: fuser refuses it. But then the kernel leaves the signal pending until we answer, and there it can be seen.

use std::path::Path;
use std::time::Duration;

/// What is answered sooner is not worth a look; then the looks become rarer.
const LOOK_FIRST: Duration = Duration::from_millis(250);
const LOOK_LAST: Duration = Duration::from_millis(500);

/// Signals by which somebody wants an end. Others (timers, profilers, children) are no reason for a file system to fail;
/// fatal ones are seen as `SIGKILL`.
const ENDING: [i32; 5] = [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM, libc::SIGKILL];

/// Returns once the thread has been told to end. Never for thread 0, which is not known here.
pub async fn interrupted(thread: u32) {
    let mut pause = LOOK_FIRST;
    loop {
        tokio::time::sleep(pause).await;
        if wants_end(pending_signals(thread)) {
            return;
        }
        pause = (pause * 2).min(LOOK_LAST);
    }
}

/// True if the thread has a signal that it does not block, or is gone.
pub fn has_signal(thread: u32) -> bool {
    pending_signals(thread) != 0
}

fn wants_end(signals: u64) -> bool {
    ENDING.iter().any(|signal| signals & (1 << (signal - 1)) != 0)
}

/// Signals that wait for the thread, or its process, and that it does not block: all of them if it is gone.
fn pending_signals(thread: u32) -> u64 {
    if thread == 0 {
        return 0;
    }
    let Ok(status) = std::fs::read_to_string(format!("/proc/{thread}/status")) else {
        // Where there is no /proc nobody seems to be there.
        return if Path::new("/proc/self/status").exists() { u64::MAX } else { 0 };
    };
    let mask = |field: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(field));
        line.and_then(|rest| u64::from_str_radix(rest.trim(), 16).ok()).unwrap_or(0)
    };
    (mask("SigPnd:") | mask("ShdPnd:")) & !mask("SigBlk:")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_signals_that_ask_for_an_end_interrupt() {
        let bit = |signal: i32| 1_u64 << (signal - 1);
        for signal in ENDING {
            assert!(wants_end(bit(signal) | bit(libc::SIGCHLD)), "{signal}");
        }
        for signal in [libc::SIGCHLD, libc::SIGALRM, libc::SIGURG, libc::SIGPROF, libc::SIGWINCH] {
            assert!(!wants_end(bit(signal)), "{signal}");
        }
    }

    #[test]
    fn own_thread_has_no_signal_and_a_strange_one_is_gone() {
        assert!(!has_signal(std::process::id()));
        assert!(!has_signal(0));
        assert!(has_signal(u32::MAX));
    }
}
