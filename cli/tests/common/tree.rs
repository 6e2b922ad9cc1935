//! Whole trees, compared.

use std::collections::BTreeMap;
use std::fs::{self, Metadata};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

const READERS: usize = 8;

/// Path → kind, mode and content, folded, of everything below a folder. Several at once, as far files are read.
pub fn summary(root: &Path) -> BTreeMap<PathBuf, u64> {
    walk(root, |_, _| {})
}

/// As [`summary`], with everything that `stat` tells and that is the same on all mounts of one volume.
pub fn full_summary(root: &Path) -> BTreeMap<PathBuf, u64> {
    walk(root, |metadata, hasher| {
        let times = [metadata.mtime(), metadata.mtime_nsec(), metadata.ctime(), metadata.ctime_nsec()];
        let rest = [metadata.ino(), metadata.nlink(), metadata.size(), metadata.rdev()];
        (metadata.uid(), metadata.gid(), times, rest).hash(hasher);
    })
}

fn walk(root: &Path, more: impl Fn(&Metadata, &mut DefaultHasher) + Sync) -> BTreeMap<PathBuf, u64> {
    let all = Mutex::new(BTreeMap::new());
    let left = Mutex::new(vec![root.to_owned()]);
    let busy = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..READERS {
            scope.spawn(|| {
                loop {
                    let next = {
                        let mut left = left.lock().unwrap();
                        let next = left.pop();
                        busy.fetch_add(usize::from(next.is_some()), Ordering::SeqCst);
                        next
                    };
                    match next {
                        Some(path) => {
                            summarize(root, &path, &more, &all, &left);
                            busy.fetch_sub(1, Ordering::SeqCst);
                        }
                        None if busy.load(Ordering::SeqCst) == 0 => break,
                        None => thread::sleep(Duration::from_millis(1)),
                    }
                }
            });
        }
    });
    let mut all = all.into_inner().unwrap();
    all.remove(Path::new(""));
    all
}

fn summarize(
    root: &Path,
    path: &Path,
    more: &impl Fn(&Metadata, &mut DefaultHasher),
    all: &Mutex<BTreeMap<PathBuf, u64>>,
    left: &Mutex<Vec<PathBuf>>,
) {
    let metadata = fs::symlink_metadata(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut hasher = DefaultHasher::new();
    metadata.mode().hash(&mut hasher);
    more(&metadata, &mut hasher);
    if metadata.is_dir() {
        let entries = fs::read_dir(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let below: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        left.lock().unwrap().extend(below);
    } else if metadata.is_symlink() {
        fs::read_link(path).unwrap().hash(&mut hasher);
    } else {
        metadata.len().hash(&mut hasher);
        fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).hash(&mut hasher);
    }
    all.lock().unwrap().insert(path.strip_prefix(root).unwrap().to_owned(), hasher.finish());
}
