//! How often the kernel has asked what.

use std::sync::atomic::{AtomicU64, Ordering};

/// A kind of request.
#[derive(Clone, Copy, Debug)]
pub enum Asked {
    Lookup,
    Forget,
    GetAttr,
    SetAttr,
    Create,
    Make,
    Remove,
    Rename,
    Link,
    Open,
    Read,
    Write,
    Flush,
    Release,
    Fsync,
    OpenDir,
    ReadDir,
    Xattr,
    Lock,
    Other,
}

const NAMES: [&str; 20] = [
    "lookup", "forget", "getattr", "setattr", "create", "make", "remove", "rename", "link", "open", "read", "write",
    "flush", "release", "fsync", "opendir", "readdir", "xattr", "lock", "other",
];

/// See the module.
#[derive(Debug, Default)]
pub struct Counts([AtomicU64; NAMES.len()]);

impl Counts {
    /// One more.
    pub fn add(&self, asked: Asked) {
        if let Some(count) = self.0.get(asked as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// So far.
    #[cfg(test)]
    pub fn get(&self, asked: Asked) -> u64 {
        self.0.get(asked as usize).map_or(0, |count| count.load(Ordering::Relaxed))
    }
}

impl std::fmt::Display for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let counts = NAMES.iter().zip(&self.0).map(|(name, count)| (name, count.load(Ordering::Relaxed)));
        for (name, count) in counts.filter(|(_, count)| *count > 0) {
            write!(f, "{name}={count} ")?;
        }
        Ok(())
    }
}
