#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::time::Instant;

use proptest::prelude::*;

use super::*;
use crate::testing::blob;

fn config(folder: &Path) -> CacheConfig {
    CacheConfig { bytes_max: 1 << 20, blobs_max: 1000, open_files_max: 4, ..CacheConfig::new(folder) }
}

fn disk_bytes(folder: &Path) -> u64 {
    let mut bytes = 0;
    for shard in std::fs::read_dir(folder).unwrap().flatten().filter(|entry| entry.path().is_dir()) {
        bytes +=
            std::fs::read_dir(shard.path()).unwrap().map(|file| file.unwrap().metadata().unwrap().len()).sum::<u64>();
    }
    bytes
}

#[test]
fn cache_inserted_blob_is_read_in_ranges_without_waiting() {
    let folder = tempfile::tempdir().unwrap();
    let cache = Cache::open(config(folder.path())).unwrap();
    let (blob, data) = blob(0, 1, 100_000);
    assert_eq!(cache.read(&blob, 0..10), None);
    cache.insert(&blob, &data).unwrap();
    assert_eq!(cache.read(&blob, 0..100_000).unwrap(), data);
    assert_eq!(cache.read(&blob, 99_990..100_000).unwrap(), data[99_990..]);
    assert_eq!(cache.read(&blob, 99_990..100_001), None);
    assert_eq!(cache.try_read(&blob, 5..5).unwrap(), "");
    let mut buffer = [0; 77];
    // The page cache may drop the page at any time, but hardly at once.
    if cache.try_read_into(&blob, 1000, &mut buffer) {
        assert_eq!(buffer, data[1000..1077]);
    }
    assert_eq!(cache.status().misses, 1);
    cache.remove(blob.id);
    assert!(!cache.contains(&blob));
    assert_eq!(disk_bytes(folder.path()), 0);
}

#[test]
fn cache_other_blob_under_the_same_name_is_a_miss_and_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let cache = Cache::open(config(folder.path())).unwrap();
    let (first, data) = blob(0, 1, 1000);
    cache.insert(&first, &data).unwrap();
    let second = BlobRef::of(first.id, &data[..500]).unwrap();
    assert_eq!(cache.read(&second, 0..10), None);
    assert!(cache.contains(&first));
    cache.insert(&second, &data[..500]).unwrap();
    assert_eq!(cache.read(&second, 0..10).unwrap(), data[..10]);
    assert_eq!(cache.read(&first, 0..10), None);
    assert_eq!((cache.status().bytes, disk_bytes(folder.path())), (500, 500));
}

#[test]
fn cache_restart_keeps_good_files_and_drops_torn_ones() {
    let folder = tempfile::tempdir().unwrap();
    let blobs: Vec<_> = (0..6).map(|n| blob(0, n, 5000)).collect();
    let cache = Cache::open(config(folder.path())).unwrap();
    for (blob, data) in &blobs {
        cache.insert(blob, data).unwrap();
    }
    let path = |n: usize| cache.path(&blobs[n].0);
    OpenOptions::new().write(true).open(path(1)).unwrap().set_len(4999).unwrap();
    OpenOptions::new().write(true).open(path(2)).unwrap().write_all_at(b"?", 2500).unwrap();
    std::fs::write(path(3), vec![0; 5000]).unwrap();
    std::fs::write(folder.path().join(TEMPORARY).join("half"), b"half").unwrap();
    std::fs::write(path(4).with_file_name("no blob"), b"no blob").unwrap();
    drop(cache);
    let cache = Cache::open(config(folder.path())).unwrap();
    assert_eq!((cache.status().blobs, cache.status().torn), (5, 2));
    assert_eq!(std::fs::read_dir(folder.path().join(TEMPORARY)).unwrap().count(), 0);
    assert_eq!(cache.try_read(&blobs[0].0, 0..10), None, "not before it is verified");
    assert_eq!(cache.read(&blobs[0].0, 0..10).unwrap(), blobs[0].1[..10]);
    assert_eq!(cache.read(&blobs[1].0, 0..10), None);
    assert_eq!(cache.read(&blobs[2].0, 0..10), None);
    assert_eq!(cache.read(&blobs[3].0, 0..10), None);
    assert_eq!(cache.read(&blobs[4].0, 0..10).unwrap(), blobs[4].1[..10]);
    assert_eq!((cache.status().blobs, cache.status().torn), (3, 4));
    assert_eq!((cache.status().bytes, disk_bytes(folder.path())), (15_000, 15_000));
}

#[test]
fn cache_limits_hold_and_the_recently_used_stay() {
    let folder = tempfile::tempdir().unwrap();
    let limits = CacheConfig { bytes_max: 100_000, ..config(folder.path()) };
    let cache = Cache::open(limits.clone()).unwrap();
    let (often, data) = blob(0, 1000, 1000);
    cache.insert(&often, &data).unwrap();
    for n in 0..300 {
        let (blob, data) = blob(0, n, 1000);
        cache.insert(&blob, &data).unwrap();
        assert!(cache.read(&blob, 0..10).is_some());
        assert!(cache.read(&often, 0..10).is_some(), "{n}");
        assert!(disk_bytes(folder.path()) <= 100_000);
        assert!(cache.status().open_files <= 4);
    }
    assert_eq!((cache.status().blobs, cache.status().evicted), (100, 201));
    let (large, data) = blob(0, 2000, 100_001);
    cache.insert(&large, &data).unwrap();
    assert!(!cache.contains(&large));
    assert_eq!(cache.status().blobs, 100);
    drop(cache);
    let cache = Cache::open(CacheConfig { blobs_max: 10, ..limits }).unwrap();
    assert_eq!(cache.status().blobs, 10);
    assert_eq!(disk_bytes(folder.path()), 10_000);
}

#[test]
fn cache_folder_in_use_is_a_clear_error() {
    let folder = tempfile::tempdir().unwrap();
    let _cache = Cache::open(config(folder.path())).unwrap();
    let error = Cache::open(config(folder.path())).unwrap_err();
    assert!(error.to_string().contains("another process uses it"), "{error}");
    assert!(error.to_string().contains(folder.path().to_str().unwrap()), "{error}");
}

#[test]
fn cache_folder_is_free_once_closed_though_a_forked_child_has_its_lock_open() {
    let folder = tempfile::tempdir().unwrap();
    let cache = Cache::open(config(folder.path())).unwrap();
    // As a child has it until it begins its program.
    let _inherited = cache.shared._lock.0.try_clone().unwrap();
    drop(cache);
    Cache::open(config(folder.path())).unwrap();
}

#[test]
fn cache_used_by_many_threads_stays_whole() {
    let folder = tempfile::tempdir().unwrap();
    let cache = Cache::open(CacheConfig { bytes_max: 50_000, ..config(folder.path()) }).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4_u64 {
            let cache = cache.clone();
            scope.spawn(move || {
                for round in 0..500_u64 {
                    let (blob, data) = blob(0, (round * 7 + thread) % 20, 4000);
                    match round % 3 {
                        0 => cache.insert(&blob, &data).unwrap(),
                        1 if round % 50 == 1 => cache.remove(blob.id),
                        _ => {
                            if let Some(read) = cache.read(&blob, 100..3900) {
                                assert_eq!(read, data[100..3900]);
                            }
                        }
                    }
                }
            });
        }
    });
    let status = cache.status();
    assert_eq!(status.bytes, status.blobs as u64 * 4000);
    assert!(status.bytes <= 50_000);
    drop(cache);
    let cache = Cache::open(config(folder.path())).unwrap();
    assert_eq!(cache.status().torn, 0);
}

#[test]
#[ignore = "a measurement"]
fn cache_read_throughput() {
    let folder = tempfile::tempdir().unwrap();
    let cache = Cache::open(CacheConfig { bytes_max: 1 << 30, ..CacheConfig::new(folder.path()) }).unwrap();
    let blobs: Vec<_> = (0..16).map(|n| blob(0, n, 4 << 20)).collect();
    let started = Instant::now();
    for (blob, data) in &blobs {
        cache.insert(blob, data).unwrap();
    }
    println!("insert: {:.2} GiB/s", 0.0625 / started.elapsed().as_secs_f64());
    for (blob, data) in &blobs {
        assert_eq!(cache.try_read(blob, 0..4 << 20).unwrap(), data);
    }
    for step in [4 << 10, 128 << 10, 1 << 20, 4 << 20_u32] {
        // Where a buffer begins in its page matters to this processor's copying.
        let mut memory = vec![0; step as usize + 8192];
        let page = memory.as_ptr().align_offset(4096);
        for begin in [None, Some(0), Some(16), Some(64), Some(2048)] {
            let started = Instant::now();
            let mut bytes = 0_u64;
            while started.elapsed().as_secs_f64() < 0.3 {
                for (blob, _) in &blobs {
                    for offset in (0..4 << 20).step_by(step as usize) {
                        if let Some(begin) = begin {
                            let buffer = &mut memory[page + begin..][..step as usize];
                            assert!(cache.try_read_into(blob, offset, buffer));
                        } else {
                            assert!(cache.try_read(blob, offset..offset + step).is_some());
                        }
                        bytes += u64::from(step);
                    }
                }
            }
            let gib = bytes as f64 / f64::from(1 << 30) / started.elapsed().as_secs_f64();
            println!("{step:>8} bytes, buffer begins at {begin:?}: {gib:.2} GiB/s");
        }
    }
}

#[derive(Clone, Debug)]
enum Action {
    Insert(u8),
    Read(u8, u16, u16),
    Remove(u8),
    Restart,
    Flip(u8),
    Truncate(u8),
    Unlink(u8),
}

fn action() -> impl Strategy<Value = Action> {
    let key = 0..12_u8;
    prop_oneof![
        4 => key.clone().prop_map(Action::Insert),
        6 => (key.clone(), any::<u16>(), any::<u16>()).prop_map(|(key, at, len)| Action::Read(key, at, len)),
        1 => key.clone().prop_map(Action::Remove),
        1 => Just(Action::Restart),
        1 => key.clone().prop_map(Action::Flip),
        1 => key.clone().prop_map(Action::Truncate),
        1 => key.prop_map(Action::Unlink),
    ]
}

fn key_blob(key: u8) -> (BlobRef, Bytes) {
    blob(0, u64::from(key), 1 + usize::from(key) * 700)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever happens to the files: the right bytes or nothing; within the limits; and what nobody touched is there.
    #[test]
    fn cache_against_a_map(actions in prop::collection::vec(action(), 1..80), small: bool) {
        let folder = tempfile::tempdir().unwrap();
        let bytes_max = if small { 12_000 } else { 1 << 20 };
        let limits = CacheConfig { bytes_max, ..config(folder.path()) };
        let mut cache = Cache::open(limits.clone()).unwrap();
        // Key → whether its file is known to be good in this process's life (then the disk is not asked again).
        let mut model: BTreeMap<u8, Health> = BTreeMap::new();
        for action in actions {
            match action {
                Action::Insert(key) => {
                    let (blob, data) = key_blob(key);
                    cache.insert(&blob, &data).unwrap();
                    let health = model.entry(key).or_insert(Health::Good);
                    // Inserting a blob that is there and verified does not look at its file.
                    if *health == Health::Unverified { *health = Health::Good; }
                    if *health == Health::Good { prop_assert!(cache.read(&blob, 0..1).is_some()); }
                }
                Action::Read(key, at, len) => {
                    let (blob, data) = key_blob(key);
                    let start = u32::from(at) % blob.len_bytes;
                    let end = (start + u32::from(len)).min(blob.len_bytes);
                    let read = cache.read(&blob, start..end);
                    if let Some(read) = &read {
                        // A file changed under our feet after it was verified is the one thing we do not see.
                        if model.get(&key) != Some(&Health::ChangedLater) {
                            prop_assert_eq!(read, &data[start as usize..end as usize]);
                        }
                    }
                    match model.get(&key) {
                        None => prop_assert!(read.is_none()),
                        Some(Health::Good) if !small => prop_assert!(read.is_some()),
                        Some(Health::Unverified) if !small => {
                            prop_assert!(read.is_some());
                            model.insert(key, Health::Good);
                        }
                        Some(Health::Suspect) => {
                            match read {
                                Some(_) => model.insert(key, Health::Good),
                                None => model.remove(&key),
                            };
                        }
                        _ => {}
                    }
                }
                Action::Remove(key) => {
                    cache.remove(key_blob(key).0.id);
                    model.remove(&key);
                }
                Action::Restart => {
                    drop(cache);
                    cache = Cache::open(limits.clone()).unwrap();
                    for health in model.values_mut() {
                        *health = match health {
                            Health::Good | Health::Unverified => Health::Unverified,
                            Health::ChangedLater | Health::Suspect => Health::Suspect,
                        };
                    }
                }
                Action::Flip(key) => {
                    let path = cache.path(&key_blob(key).0);
                    if let Ok(file) = OpenOptions::new().write(true).read(true).open(path) {
                        let mut byte = [0];
                        // Truncated before: one byte more than nothing is as wrong.
                        let _ = file.read_at(&mut byte, 0).unwrap();
                        file.write_all_at(&[byte[0] ^ 1], 0).unwrap();
                        model.insert(key, Health::ChangedLater);
                    }
                }
                Action::Truncate(key) => {
                    let path = cache.path(&key_blob(key).0);
                    if let Ok(file) = OpenOptions::new().write(true).open(path) {
                        file.set_len(0).unwrap();
                        model.insert(key, Health::ChangedLater);
                    }
                }
                Action::Unlink(key) => {
                    if std::fs::remove_file(cache.path(&key_blob(key).0)).is_ok() {
                        model.insert(key, Health::ChangedLater);
                    }
                }
            }
            prop_assert!(cache.status().bytes <= bytes_max);
            prop_assert!(cache.status().open_files <= 4);
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Health {
    Good,
    /// Good, but not looked at since the restart.
    Unverified,
    /// Changed on the disk after it was verified: any answer goes until the restart.
    ChangedLater,
    /// Changed on the disk before the restart and not looked at since: right or gone.
    Suspect,
}
