//! The inodes that the kernel knows or that are open: where they live, how often they were handed out, what was written.

use std::collections::HashMap;
use std::hash::BuildHasherDefault;
use std::sync::Arc;

use metadata::types::{Attr, FileKind, InodeId, NodeRef};
use multicast::ids::GroupId;
use parking_lot::Mutex;

use crate::fs::file::OpenFile;

const SHARDS: usize = 32;

/// Inode numbers are counters: spreading their low bits is all that a table needs.
#[derive(Default)]
pub struct InoHasher(u64);

impl std::hash::Hasher for InoHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0.rotate_left(8) ^ u64::from(*byte)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        }
    }

    fn write_u64(&mut self, ino: u64) {
        let mixed = (ino ^ (ino >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = mixed ^ (mixed >> 29);
    }
}

type Shard = HashMap<u64, Entry, BuildHasherDefault<InoHasher>>;

#[derive(Debug)]
struct Entry {
    home: GroupId,
    kind: FileKind,
    /// Where a directory's children were last known to be born.
    placement: GroupId,
    /// How often the kernel was told of it, less what it has forgotten.
    lookups: u64,
    /// Open handles.
    opens: u32,
    /// It has no name any more and is kept for us.
    orphan: bool,
    file: Option<Arc<OpenFile>>,
}

/// See the module. Grows with what the kernel keeps.
#[derive(Debug)]
pub struct Table {
    shards: Box<[Mutex<Shard>]>,
}

/// What the last close leaves to do.
#[derive(Clone, Debug, Default)]
pub struct Closed {
    /// The home of an orphan that nobody here holds any more.
    pub orphan_of: Option<GroupId>,
}

impl Default for Table {
    fn default() -> Self {
        Table { shards: (0..SHARDS).map(|_| Mutex::default()).collect() }
    }
}

impl Table {
    fn shard(&self, ino: InodeId) -> parking_lot::MutexGuard<'_, Shard> {
        self.shards[(ino.0 % SHARDS as u64) as usize].lock()
    }

    /// Where an inode lives, as far as known: where it was born if nothing else is.
    #[must_use]
    pub fn home(&self, ino: InodeId) -> GroupId {
        self.shard(ino).get(&ino.0).map_or(ino.birth_group(), |entry| entry.home)
    }

    /// The inode's kind, if it is known here.
    #[must_use]
    pub fn kind(&self, ino: InodeId) -> Option<FileKind> {
        self.shard(ino).get(&ino.0).map(|entry| entry.kind)
    }

    /// How to name a directory in a request.
    #[must_use]
    pub fn directory(&self, ino: InodeId) -> NodeRef {
        NodeRef { ino, kind: FileKind::Directory, home: self.home(ino) }
    }

    /// The inode has moved.
    pub fn moved(&self, ino: InodeId, home: GroupId) {
        if let Some(entry) = self.shard(ino).get_mut(&ino.0) {
            entry.home = home;
        }
    }

    /// The kernel is told of an inode once more. True if it was told of it before.
    pub fn remember(&self, attr: &Attr) -> bool {
        let mut shard = self.shard(attr.ino);
        let entry = shard.entry(attr.ino.0).or_insert_with(|| Entry::new(attr.kind, attr.home));
        entry.home = attr.home;
        entry.placement = attr.placement;
        entry.lookups += 1;
        entry.lookups > 1
    }

    /// Where a directory's children were last known to be born: a guess that the namespace corrects.
    #[must_use]
    pub fn placement(&self, dir: InodeId) -> Option<GroupId> {
        self.shard(dir).get(&dir.0).filter(|entry| entry.lookups > 0).map(|entry| entry.placement)
    }

    /// The kernel has dropped `count` of what it was told. Answers the inode's home if that was all.
    pub fn forget(&self, ino: InodeId, count: u64) -> Option<GroupId> {
        let mut shard = self.shard(ino);
        let entry = shard.get_mut(&ino.0)?;
        entry.lookups = entry.lookups.saturating_sub(count);
        let home = (entry.lookups == 0).then_some(entry.home);
        if entry.is_unused() {
            shard.remove(&ino.0);
        }
        home
    }

    /// A handle is opened.
    pub fn open(&self, ino: InodeId, kind: FileKind, home: GroupId) {
        let mut shard = self.shard(ino);
        let entry = shard.entry(ino.0).or_insert_with(|| Entry::new(kind, home));
        entry.opens += 1;
        if entry.file.is_none() && kind == FileKind::File {
            entry.file = Some(Arc::new(OpenFile::new(ino)));
        }
    }

    /// A handle is closed, and what was written through it is flushed or given up.
    pub fn close(&self, ino: InodeId) -> Closed {
        let mut shard = self.shard(ino);
        let Some(entry) = shard.get_mut(&ino.0) else { return Closed::default() };
        entry.opens = entry.opens.saturating_sub(1);
        if entry.opens > 0 {
            return Closed::default();
        }
        let orphan_of = std::mem::take(&mut entry.orphan).then_some(entry.home);
        entry.file = None;
        if entry.is_unused() {
            shard.remove(&ino.0);
        }
        Closed { orphan_of }
    }

    /// True if there are open handles.
    #[must_use]
    pub fn is_open(&self, ino: InodeId) -> bool {
        self.shard(ino).get(&ino.0).is_some_and(|entry| entry.opens > 0)
    }

    /// The inode has lost its last name; true if it is open here, and will be released at the last close.
    pub fn become_orphan(&self, ino: InodeId) -> bool {
        match self.shard(ino).get_mut(&ino.0) {
            Some(entry) if entry.opens > 0 => {
                entry.orphan = true;
                true
            }
            _ => false,
        }
    }

    /// The state of an open file.
    #[must_use]
    pub fn file(&self, ino: InodeId) -> Option<Arc<OpenFile>> {
        self.shard(ino).get(&ino.0)?.file.clone()
    }

    /// All open files.
    #[must_use]
    pub fn files(&self) -> Vec<Arc<OpenFile>> {
        let mut files = Vec::new();
        for shard in &self.shards {
            let shard = shard.lock();
            let mut found: Vec<_> = shard.iter().filter_map(|(ino, entry)| Some((*ino, entry.file.clone()?))).collect();
            found.sort_unstable_by_key(|(ino, _)| *ino);
            files.extend(found.into_iter().map(|(_, file)| file));
        }
        files
    }
}

impl Entry {
    fn new(kind: FileKind, home: GroupId) -> Entry {
        Entry { home, kind, placement: home, lookups: 0, opens: 0, orphan: false, file: None }
    }

    fn is_unused(&self) -> bool {
        self.lookups == 0 && self.opens == 0
    }
}
