//! What a supervisor that was killed may have left: processes and dead mounts.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};

use crate::output::tell;
use crate::{exit, mounts};

/// Children of a dead supervisor have been told already and end by themselves.
const PATIENCE: Duration = Duration::from_secs(8);
const PAUSE: Duration = Duration::from_millis(50);

/// Ends processes and takes off mounts of this configuration. The data folder's lock must be held: then nobody else's
/// processes can be meant.
pub fn clear(run: &Path, config: &Path) {
    let left: Vec<Pid> = fs::read_dir(run)
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let is_pid_file = path.extension().is_some_and(|extension| extension == "pid");
            if !is_pid_file || path.file_stem().is_some_and(|stem| stem == "up") {
                return None;
            }
            let pid = fs::read_to_string(&path).ok()?.trim().parse().ok().and_then(Pid::from_raw);
            let _ = fs::remove_file(&path);
            pid.filter(|pid| is_ours(*pid, config))
        })
        .collect();
    if !left.is_empty() {
        tell!("globalfs: ending {} processes of a former `globalfs up`", left.len());
        end(&left, config);
    }
    let stale = mounts::table().unwrap_or_default();
    for entry in stale.iter().filter(|entry| entry.origin().is_some_and(|(_, file)| file == config)) {
        tell!("globalfs: unmounting {}, left by a former `globalfs up`", entry.point.display());
        detach(&entry.point);
    }
}

/// Takes off whatever of ours is mounted there, with a message if that fails.
pub fn detach(point: &Path) {
    if let Err(error) = mounts::detach_all(point) {
        tell!("globalfs: {}", exit::message(&error));
    }
}

fn end(left: &[Pid], config: &Path) {
    for pid in left {
        let _ = kill_process(*pid, Signal::TERM).and_then(|()| kill_process(*pid, Signal::CONT));
    }
    let until = Instant::now() + PATIENCE;
    let alive = |pid: &&Pid| test_kill_process(**pid).is_ok() && is_ours(**pid, config);
    while left.iter().any(|pid| alive(&pid)) {
        if Instant::now() >= until {
            for pid in left.iter().filter(alive) {
                let _ = kill_process(*pid, Signal::KILL);
            }
            std::thread::sleep(PAUSE);
            return;
        }
        std::thread::sleep(PAUSE);
    }
}

/// Numbers are used again: it must be this program with this configuration.
fn is_ours(pid: Pid, config: &Path) -> bool {
    let Ok(command) = fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())) else { return false };
    let mut words = command.split(|&byte| byte == 0);
    let program = words.next().unwrap_or_default();
    let config = config.as_os_str().as_encoded_bytes();
    program.ends_with(b"globalfs") && words.any(|word| word == config)
}
