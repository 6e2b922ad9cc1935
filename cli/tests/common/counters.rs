//! Counters in files, one for each home, which all workers of all mounts raise under a lock.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};

use super::cluster::eventually;
use super::journal::{HOMES, in_home};

/// What is known of the counters.
#[derive(Default)]
pub struct Counters {
    homes: Mutex<BTreeMap<&'static str, Counter>>,
}

#[derive(Default)]
struct Counter {
    /// A counter is given up when a write to it may still happen, or its holder has died: the next file takes its place.
    generation: u32,
    holder: Option<String>,
    /// The values that somebody was told to have written.
    acknowledged: BTreeSet<u64>,
    /// How often somebody else had the lock.
    refused: u64,
}

impl Counters {
    /// Raises one counter, unless another one holds the lock.
    pub fn increment(&self, mount: &Path, home: &'static str, who: &str) -> io::Result<()> {
        let generation = self.with(home, |counter| counter.generation);
        let file = open(mount, home, generation)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                self.with(home, |counter| counter.refused += 1);
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        }
        let least = self.with(home, |counter| {
            if counter.generation != generation {
                return None;
            }
            let before = counter.holder.replace(who.to_owned());
            assert!(before.is_none(), "{who} and {before:?} hold the lock of /{home} at once");
            Some(counter.acknowledged.last().copied().unwrap_or(0))
        });
        let Some(least) = least else { return Ok(()) };
        let written = raise(&file, home, who, least);
        self.with(home, |counter| {
            counter.holder = None;
            match &written {
                Ok(value) => {
                    assert!(counter.acknowledged.insert(*value), "{who} and another one wrote {value} in /{home}")
                }
                Err(_) => *counter = Counter { generation: counter.generation + 1, ..Counter::default() },
            }
        });
        // Closing the file gives the lock back, after the books say so.
        drop(file);
        written.map(|_| ())
    }

    /// Compares what a mount shows with what was acknowledged. Nobody may be at work.
    pub fn check(&self, mount: &Path) {
        for home in HOMES {
            let (generation, last) =
                self.with(home, |counter| (counter.generation, counter.acknowledged.last().copied()));
            let Some(last) = last else { continue };
            let text = fs::read_to_string(mount.join(name(home, generation))).unwrap();
            let found: u64 = text.trim().parse().unwrap();
            assert_eq!(found, last, "{}: the counter of /{home}", mount.display());
        }
    }

    /// Waits until every lock can be had: those of the dead end with their sessions.
    pub fn check_locks(&self, mount: &Path, patience: Duration) {
        let (started, mut locks, mut refused) = (Instant::now(), 0, 0);
        for home in HOMES {
            let generations = self.with(home, |counter| {
                refused += counter.refused;
                counter.generation
            });
            for generation in 0..=generations {
                let file = open(mount, home, generation).unwrap();
                let left = patience.saturating_sub(started.elapsed());
                eventually(left, &format!("the lock of counter {generation} in /{home}"), || {
                    flock(&file, FlockOperation::NonBlockingLockExclusive).ok()
                });
                locks += 1;
            }
        }
        eprintln!("{locks} locks, refused {refused} times, all free after {:?}", started.elapsed());
    }

    fn with<T>(&self, home: &'static str, act: impl FnOnce(&mut Counter) -> T) -> T {
        act(self.homes.lock().unwrap().entry(home).or_default())
    }
}

fn name(home: &str, generation: u32) -> String {
    in_home(home, &format!("counter-{generation}"))
}

fn open(mount: &Path, home: &str, generation: u32) -> io::Result<File> {
    let path = mount.join(name(home, generation));
    File::options().read(true).write(true).create(true).truncate(false).open(path)
}

/// Under the lock: what was acknowledged before must be there.
fn raise(file: &File, home: &str, who: &str, least: u64) -> io::Result<u64> {
    let mut bytes = [0; 21];
    let len = file.read_at(&mut bytes, 0)?;
    let text = std::str::from_utf8(&bytes[..len]).unwrap();
    let found: u64 = if text.is_empty() { 0 } else { text.trim().parse().unwrap() };
    assert!(found >= least, "{who} reads {found} in /{home} under the lock, but {least} was acknowledged before");
    file.write_at(format!("{:020}\n", found + 1).as_bytes(), 0)?;
    file.sync_all()?;
    Ok(found + 1)
}
