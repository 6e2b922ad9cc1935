#![allow(clippy::unwrap_used)]

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use async_trait::async_trait;
use proptest::prelude::*;

use super::*;
use crate::Tried;
use crate::cache::CacheConfig;
use crate::faulty::{Fault, Faults, Operation, memory_bucket};
use crate::testing::blob;
use crate::{Direct, Unreachable};

const US: Region = Region(0);
const EU: Region = Region(1);
const AP: Region = Region(2);

/// Three regions' buckets in memory and stores that look at them.
struct World {
    buckets: Vec<Bucket>,
    faults: Vec<Faults>,
}

impl World {
    fn new() -> World {
        let (buckets, faults) = ["us", "eu", "ap"].into_iter().map(memory_bucket).unzip();
        World { buckets, faults }
    }

    /// A store without a disk cache.
    fn store(&self, local: Region) -> BlobStore {
        self.store_with(local, None, Arc::new(Direct), limits())
    }

    fn store_with(&self, local: Region, cache: Option<Cache>, link: Arc<dyn Link>, limits: StoreLimits) -> BlobStore {
        let buckets = (0..).map(Region).zip(self.buckets.iter().cloned());
        BlobStore::new(local, buckets, cache, link, limits).unwrap()
    }

    fn gets(&self) -> [u64; 3] {
        [0, 1, 2].map(|region: usize| self.faults[region].requests(Operation::Get))
    }

    /// Puts a blob into the bucket of `region`, whatever its origin.
    async fn place(&self, region: Region, blob: &BlobRef, data: &Bytes) {
        self.store(region).put(blob.id, data.clone()).await.unwrap();
    }
}

/// Nothing stays in memory, so every get shows what the buckets do.
fn limits() -> StoreLimits {
    StoreLimits { memory_bytes_max: 0, ..StoreLimits::default() }
}

fn whole(blob: &BlobRef) -> Range<u32> {
    0..blob.len_bytes
}

fn get_error(error: &Error) -> (&[Tried], ErrorClass) {
    match error {
        Error::Get { tried, class, .. } => (tried, *class),
        other => panic!("{other}"),
    }
}

#[tokio::test(start_paused = true)]
async fn put_then_get_round_trip_and_ranges() {
    let world = World::new();
    let store = world.store(US);
    let (blob, data) = blob(0, 1, 50_000);
    assert_eq!(store.put(blob.id, data.clone()).await.unwrap(), blob.crc32c);
    assert_eq!(store.get(&blob, whole(&blob)).await.unwrap(), data);
    assert_eq!(store.get(&blob, 49_999..50_000).await.unwrap(), data[49_999..]);
    assert_eq!(store.get(&blob, 7..7).await.unwrap(), "");
    for (start, end) in [(0, 50_001), (50_001, 50_001), (2, 1)] {
        let error = store.get(&blob, Range { start, end }).await.unwrap_err();
        assert!(matches!(error, Error::OutOfRange { .. }), "{error}");
        assert_eq!(store.try_get(&blob, Range { start, end }), None);
    }
    let empty = BlobRef::of(BlobId::new(US, 1, 1), b"").unwrap();
    store.put(empty.id, Bytes::new()).await.unwrap();
    assert_eq!(store.get(&empty, 0..0).await.unwrap(), "");
}

#[tokio::test(start_paused = true)]
async fn put_again_equal_is_fine_and_different_is_refused() {
    let world = World::new();
    let store = world.store(US);
    let (blob, data) = blob(0, 1, 1000);
    store.put(blob.id, data.clone()).await.unwrap();
    store.put(blob.id, data.clone()).await.unwrap();
    let mut other = data.to_vec();
    other[500] ^= 1;
    for other in [other.into(), data.slice(..999), Bytes::new()] {
        let error = store.put(blob.id, other).await.unwrap_err();
        assert!(matches!(error, Error::Conflict { .. }), "{error}");
        assert_eq!(error.class(), ErrorClass::Corrupt);
    }
    assert_eq!(store.get(&blob, whole(&blob)).await.unwrap(), data);
    // An equal object behind a line that spoils an answer now and then is no conflict.
    world.faults[0].next(Operation::Get, [Some(Fault::Flip)]);
    store.put(blob.id, data).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn too_long_is_refused_before_anything_is_asked() {
    let world = World::new();
    let store = world.store_with(US, None, Arc::new(Direct), StoreLimits { blob_len_bytes_max: 100, ..limits() });
    let (blob, data) = blob(0, 1, 101);
    assert!(matches!(store.put(blob.id, data).await.unwrap_err(), Error::TooLong { .. }));
    assert!(matches!(store.get(&blob, 0..1).await.unwrap_err(), Error::TooLong { .. }));
    store.prefetch(&blob);
    assert_eq!(world.gets(), [0; 3]);
}

#[tokio::test(start_paused = true)]
async fn get_asks_own_region_then_origin_then_the_others() {
    let world = World::new();
    let store = world.store(AP);
    let (own, data) = blob(1, 1, 1000);
    world.place(AP, &own, &data).await;
    let (at_origin, _) = blob(1, 2, 1000);
    world.place(EU, &at_origin, &blob(1, 2, 1000).1).await;
    let (elsewhere, _) = blob(1, 3, 1000);
    world.place(US, &elsewhere, &blob(1, 3, 1000).1).await;
    let mut before = world.gets();
    for (blob, expected) in [(own, [0, 0, 1]), (at_origin, [0, 1, 1]), (elsewhere, [1, 1, 1])] {
        store.get(&blob, 0..10).await.unwrap();
        let after = world.gets();
        assert_eq!([0, 1, 2].map(|region: usize| after[region] - before[region]), expected);
        before = after;
    }
}

#[tokio::test(start_paused = true)]
async fn get_of_a_blob_that_is_nowhere_says_so_at_once() {
    let world = World::new();
    let (blob, _) = blob(1, 1, 1000);
    let started = Instant::now();
    let error = world.store(US).get(&blob, 0..10).await.unwrap_err();
    assert!(started.elapsed() < Duration::from_secs(1));
    let (tried, class) = get_error(&error);
    assert_eq!(class, ErrorClass::Missing);
    assert_eq!(tried.iter().map(|tried| tried.region).collect::<Vec<_>>(), [US, EU, AP]);
    let text = error.to_string();
    assert!(text.contains(&blob.id.to_string()) && text.contains("memory://eu"), "{text}");
    assert!(text.contains("not there"), "{text}");
}

const BAD_ANSWERS: [Fault; 11] = [
    Fault::Fail,
    Fault::LoseAnswer,
    Fault::Deny,
    Fault::Lose,
    Fault::Delay(Duration::from_secs(60)),
    Fault::Hang,
    Fault::Truncate,
    Fault::Cut,
    Fault::Stall,
    Fault::Flip,
    Fault::Grow,
];

#[tokio::test(start_paused = true)]
async fn get_from_a_faulty_bucket_takes_the_next_one() {
    for fault in BAD_ANSWERS {
        let world = World::new();
        let (blob, data) = blob(1, 1, 10_000);
        world.place(US, &blob, &data).await;
        world.place(EU, &blob, &data).await;
        world.faults[0].always_all(Some(fault));
        let started = Instant::now();
        assert_eq!(world.store(US).get(&blob, 5..9_000).await.unwrap(), data[5..9_000], "{fault:?}");
        assert!(started.elapsed() <= Duration::from_secs(10), "{fault:?} {:?}", started.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn get_with_faults_everywhere_ends_by_the_deadline_and_never_in_wrong_data() {
    for fault in BAD_ANSWERS {
        let world = World::new();
        let (blob, data) = blob(1, 1, 10_000);
        for region in [US, EU, AP] {
            world.place(region, &blob, &data).await;
            world.faults[usize::from(region.0)].always_all(Some(fault));
        }
        let started = Instant::now();
        let error = world.store(US).get(&blob, 5..9_000).await.unwrap_err();
        assert!(started.elapsed() <= limits().deadline, "{fault:?} {:?}", started.elapsed());
        let (tried, class) = get_error(&error);
        assert_eq!(tried.len(), 3, "{error}");
        let expected = match fault {
            Fault::Lose => ErrorClass::Missing,
            Fault::Deny => ErrorClass::Caller,
            Fault::Truncate | Fault::Cut | Fault::Flip | Fault::Grow => ErrorClass::Corrupt,
            _ => ErrorClass::Retry,
        };
        assert_eq!(class, expected, "{fault:?} {error}");
    }
}

#[tokio::test(start_paused = true)]
async fn get_started_in_a_short_outage_succeeds_when_it_ends() {
    let world = World::new();
    let (blob, data) = blob(0, 1, 10_000);
    world.place(US, &blob, &data).await;
    let store = world.store(US);
    for faults in &world.faults {
        faults.always_all(Some(Fault::Fail));
    }
    let healing = world.faults.clone();
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_secs(15)).await;
        healing.iter().for_each(Faults::heal);
    });
    let started = Instant::now();
    assert_eq!(store.get(&blob, whole(&blob)).await.unwrap(), data);
    assert!(started.elapsed() < Duration::from_secs(21), "{:?}", started.elapsed());
    assert!(store.status().iter().all(|status| status.region != US || status.failures == 0));
}

#[tokio::test(start_paused = true)]
async fn long_outage_is_reported_and_ends_by_itself() {
    let world = World::new();
    let (blob, data) = blob(0, 1, 10_000);
    world.place(US, &blob, &data).await;
    let store = world.store(US);
    world.faults[0].always_all(Some(Fault::Hang));
    for _ in 0..20 {
        store.get(&blob, 0..1).await.unwrap_err();
        store.put(blob.id, data.clone()).await.unwrap_err();
    }
    assert!(store.status()[0].paused);
    assert!(store.status()[0].last_failure.as_ref().unwrap().contains("no answer"));
    world.faults[0].heal();
    let started = Instant::now();
    assert_eq!(store.get(&blob, whole(&blob)).await.unwrap(), data);
    store.put(blob.id, data.clone()).await.unwrap();
    assert!(started.elapsed() <= Duration::from_secs(6), "{:?}", started.elapsed());
    assert!(!store.status()[0].paused);
}

#[tokio::test(start_paused = true)]
async fn slow_bucket_is_left_alone_while_others_answer() {
    let world = World::new();
    let store = world.store(US);
    world.faults[0].always_all(Some(Fault::Hang));
    let mut slow = 0;
    for sequence in 0..100 {
        let (blob, data) = blob(1, sequence, 1000);
        world.place(EU, &blob, &data).await;
        let started = Instant::now();
        assert_eq!(store.get(&blob, whole(&blob)).await.unwrap(), data);
        slow += u32::from(started.elapsed() > Duration::from_secs(1));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(slow <= 8, "{slow} of 100 reads waited for the hanging bucket");
}

#[tokio::test(start_paused = true)]
async fn many_readers_of_one_blob_ask_once_and_an_interrupted_one_disturbs_nobody() {
    let world = World::new();
    let (blob, data) = blob(0, 1, 10_000);
    world.place(US, &blob, &data).await;
    let store = world.store(US);
    world.faults[0].always(Operation::Get, Some(Fault::Delay(Duration::from_secs(1))));
    let before = world.gets()[0];
    let first = tokio::spawn({
        let store = store.clone();
        async move { store.get(&blob, 0..1).await }
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    let readers: Vec<_> = (0..50_u32)
        .map(|n| {
            let store = store.clone();
            tokio::spawn(async move { store.get(&blob, n * 100..n * 100 + 100).await })
        })
        .collect();
    first.abort();
    for (n, reader) in readers.into_iter().enumerate() {
        assert_eq!(reader.await.unwrap().unwrap(), data[n * 100..n * 100 + 100]);
    }
    assert_eq!(world.gets()[0] - before, 1);
    assert!(store.shared.flights.lock().is_empty());
}

#[tokio::test(start_paused = true)]
async fn fetches_wait_for_their_share_of_memory() {
    let world = World::new();
    let limits = StoreLimits { blob_len_bytes_max: 1000, fetch_bytes_max: 2000, ..limits() };
    let store = world.store_with(US, None, Arc::new(Direct), limits);
    for sequence in 0..10 {
        let (blob, data) = blob(0, sequence, 1000);
        world.place(US, &blob, &data).await;
    }
    world.faults[0].always(Operation::Get, Some(Fault::Delay(Duration::from_secs(1))));
    let started = Instant::now();
    let gets = (0..10).map(|sequence| {
        let store = store.clone();
        async move { store.get(&blob(0, sequence, 1000).0, 0..1).await }
    });
    for got in futures::future::join_all(gets).await {
        got.unwrap();
    }
    assert_eq!(started.elapsed().as_secs(), 5);
}

#[tokio::test(start_paused = true)]
async fn fetched_blob_is_kept_and_prefetch_brings_it_ahead() {
    let world = World::new();
    let folder = tempfile::tempdir().unwrap();
    let cache = Cache::open(CacheConfig::new(folder.path())).unwrap();
    for cache in [None, Some(cache)] {
        let store = world.store_with(EU, cache, Arc::new(Direct), StoreLimits::default());
        let (blob, data) = blob(0, 1, 10_000);
        world.place(US, &blob, &data).await;
        let before = world.gets();
        assert_eq!(store.try_get(&blob, 5..100), None);
        store.prefetch(&blob);
        store.prefetch(&blob);
        while store.try_get(&blob, 5..100).is_none() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        store.prefetch(&blob);
        assert_eq!(store.get(&blob, 5..100).await.unwrap(), data[5..100]);
        assert_eq!(world.gets()[0] - before[0], 1);
    }
}

#[tokio::test(start_paused = true)]
async fn written_blob_is_read_from_the_cache() {
    let world = World::new();
    let folder = tempfile::tempdir().unwrap();
    let cache = Cache::open(CacheConfig::new(folder.path())).unwrap();
    let store = world.store_with(US, Some(cache), Arc::new(Direct), limits());
    let (blob, data) = blob(0, 1, 10_000);
    store.put(blob.id, data.clone()).await.unwrap();
    let before = world.gets();
    assert_eq!(store.get(&blob, whole(&blob)).await.unwrap(), data);
    assert_eq!(world.gets(), before);
}

#[tokio::test(start_paused = true)]
async fn broken_cache_disk_does_not_stop_reads() {
    let world = World::new();
    let folder = tempfile::tempdir().unwrap();
    let cache = Cache::open(CacheConfig::new(folder.path())).unwrap();
    let store = world.store_with(US, Some(cache), Arc::new(Direct), StoreLimits::default());
    std::fs::remove_dir_all(folder.path()).unwrap();
    let (blob, data) = blob(0, 1, 10_000);
    store.put(blob.id, data.clone()).await.unwrap();
    for _ in 0..3 {
        assert_eq!(store.get(&blob, whole(&blob)).await.unwrap(), data);
    }
    assert!(world.gets()[0] <= 2, "memory serves instead of the disk");
}

#[tokio::test(start_paused = true)]
async fn put_survives_lost_answers_and_short_outages() {
    for fault in [Fault::Fail, Fault::LoseAnswer, Fault::Hang] {
        let world = World::new();
        let store = world.store(US);
        world.faults[0].next(Operation::Put, [Some(fault), Some(fault), None]);
        let (blob, data) = blob(0, 1, 1000);
        store.put(blob.id, data.clone()).await.unwrap();
        assert_eq!(world.store(US).get(&blob, whole(&blob)).await.unwrap(), data, "{fault:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn put_that_stored_too_little_is_put_over() {
    let world = World::new();
    let store = world.store(US);
    world.faults[0].next(Operation::Put, [Some(Fault::Truncate)]);
    let (blob, data) = blob(0, 1, 1000);
    store.put(blob.id, data.clone()).await.unwrap();
    assert_eq!(store.get(&blob, whole(&blob)).await.unwrap(), data);
}

#[tokio::test(start_paused = true)]
async fn put_that_failed_does_not_stand_in_the_way_of_the_next() {
    let world = World::new();
    let store = world.store(US);
    world.faults[0].always(Operation::Put, Some(Fault::Grow));
    let (blob, data) = blob(0, 1, 1000);
    assert_eq!(store.put(blob.id, data.clone()).await.unwrap_err().class(), ErrorClass::Corrupt);
    world.faults[0].heal();
    store.put(blob.id, data).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn put_into_a_faulty_bucket_ends_by_the_deadline() {
    for fault in [Fault::Fail, Fault::LoseAnswer, Fault::Deny, Fault::Hang, Fault::Truncate, Fault::Grow] {
        let world = World::new();
        let store = world.store(US);
        world.faults[0].always_all(Some(fault));
        let (blob, data) = blob(0, 1, 1000);
        let started = Instant::now();
        let error = store.put(blob.id, data).await.unwrap_err();
        assert!(started.elapsed() <= limits().deadline, "{fault:?} {:?}", started.elapsed());
        let expected = match fault {
            Fault::Deny => ErrorClass::Caller,
            Fault::Truncate | Fault::Grow => ErrorClass::Corrupt,
            _ => ErrorClass::Retry,
        };
        assert_eq!(error.class(), expected, "{fault:?}: {error}");
        assert!(error.to_string().contains("memory://us"), "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn delete_is_everywhere_and_names_what_failed() {
    let world = World::new();
    let store = world.store(US);
    let blobs: Vec<_> = (0..30).map(|sequence| blob(0, sequence, 100)).collect();
    for (blob, data) in &blobs {
        world.place(US, blob, data).await;
        world.place(AP, blob, data).await;
    }
    let ids: Vec<BlobId> = blobs.iter().map(|(blob, _)| blob.id).collect();
    world.faults[2].always(Operation::Delete, Some(Fault::Fail));
    let failed = store.delete(&ids[..10]).await;
    assert_eq!(failed.iter().map(|(id, _)| *id).collect::<Vec<_>>(), ids[..10]);
    assert!(failed[0].1.to_string().contains("memory://ap"), "{}", failed[0].1);
    world.faults[2].heal();
    world.faults[2].next(Operation::Delete, [Some(Fault::LoseAnswer)]);
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert!(store.delete(&ids).await.is_empty());
    assert!(store.delete(&ids).await.is_empty(), "again");
    for region in [US, EU, AP] {
        assert_eq!(store.list(region, None).count().await, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn list_names_blobs_and_strangers_by_shard() {
    let world = World::new();
    let store = world.store(US);
    for sequence in 0..200 {
        let (blob, data) = blob(0, sequence, 10);
        world.place(US, &blob, &data).await;
    }
    let stranger = Path::from("blobs/00/stranger");
    world.buckets[0].put_new(&stranger, Bytes::from_static(b"?")).await.unwrap();
    world.buckets[0].put_new(&Path::from("probe/other"), Bytes::from_static(b"?")).await.unwrap();
    let mut all = Vec::new();
    for shard in 0..=u8::MAX {
        let listed: Vec<_> = store.list(US, Some(shard)).collect().await;
        for listed in listed {
            match listed.unwrap() {
                Listed::Blob { id, len_bytes, .. } => {
                    assert_eq!((id.shard(), len_bytes), (shard, 10));
                    all.push(id);
                }
                Listed::Foreign { path } => assert_eq!((path.as_str(), shard), ("blobs/00/stranger", 0)),
            }
        }
    }
    assert_eq!(all.len(), 200);
    assert_eq!(store.list(US, None).count().await, 201);
    for fault in [Fault::Fail, Fault::Hang, Fault::LoseAnswer] {
        world.faults[0].always(Operation::List, Some(fault));
        let listed: Vec<_> = store.list(US, None).collect().await;
        assert!(listed.last().unwrap().is_err(), "{fault:?}");
    }
    let listed: Vec<_> = store.list(Region(9), None).collect().await;
    assert!(matches!(listed[..], [Err(Error::NoBucket { .. })]));
}

/// A link that can be cut and counts.
#[derive(Default)]
struct TestLink {
    cut: AtomicBool,
    crossings: AtomicU32,
}

#[async_trait]
impl Link for TestLink {
    async fn cross(&self, from: Region, to: Region, _bytes: usize) -> Result<(), Unreachable> {
        assert_ne!(from, to);
        self.crossings.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(70)).await;
        if self.cut.load(Ordering::Relaxed) { Err(Unreachable { from, to }) } else { Ok(()) }
    }
}

#[tokio::test(start_paused = true)]
async fn link_delays_other_regions_only_and_a_healed_cut_is_noticed() {
    let world = World::new();
    let link = Arc::new(TestLink::default());
    let store = world.store_with(US, None, Arc::clone(&link) as Arc<dyn Link>, limits());
    let (local, data) = blob(0, 1, 1000);
    let started = Instant::now();
    store.put(local.id, data).await.unwrap();
    store.get(&local, 0..10).await.unwrap();
    assert!(started.elapsed() < Duration::from_millis(10));
    assert_eq!(link.crossings.load(Ordering::Relaxed), 0);
    let (remote, data) = blob(1, 2, 1000);
    world.place(EU, &remote, &data).await;
    store.get(&remote, 0..10).await.unwrap();
    assert_eq!(link.crossings.load(Ordering::Relaxed), 1);
    link.cut.store(true, Ordering::Relaxed);
    let error = store.get(&remote, 0..10).await.unwrap_err();
    assert_eq!(error.class(), ErrorClass::Retry);
    assert!(error.to_string().contains("region 1 cannot be reached from region 0"), "{error}");
    assert!(!store.status()[1].paused);
    assert!(store.list(EU, None).next().await.unwrap().is_err());
    assert_eq!(store.delete(&[remote.id]).await.len(), 1);
    link.cut.store(false, Ordering::Relaxed);
    let started = Instant::now();
    store.get(&remote, 0..10).await.unwrap();
    assert!(started.elapsed() < Duration::from_millis(500));
}

#[tokio::test(start_paused = true)]
async fn attempt_that_the_deadline_cuts_short_blames_nobody() {
    let world = World::new();
    let link = Arc::new(TestLink::default());
    // A crossing takes 70 ms; the second one has at most 20.
    let (deadline, pause_first) = (Duration::from_millis(100), Duration::from_millis(20));
    let limits = StoreLimits { deadline, pause_first, ..limits() };
    let store = world.store_with(US, None, Arc::clone(&link) as Arc<dyn Link>, limits);
    link.cut.store(true, Ordering::Relaxed);
    let error = store.get(&blob(1, 1, 1000).0, 0..10).await.unwrap_err();
    let (tried, _) = get_error(&error);
    assert_eq!(tried[1].reason, "region 1 cannot be reached from region 0", "{error}");
    assert!(store.status().iter().all(|bucket| !bucket.paused && bucket.failures == 0), "{:?}", store.status());
}

#[tokio::test(start_paused = true)]
async fn put_that_the_deadline_cuts_short_tells_why_it_failed_when_it_had_time() {
    let world = World::new();
    // The second attempt begins, if at all, when at most 40 ms are left.
    let (deadline, pause_first) = (Duration::from_millis(100), Duration::from_millis(120));
    for sequence in 0..20 {
        // Another one each time: failures of earlier ones would have it leave the bucket alone.
        let store = world.store_with(US, None, Arc::new(Direct), StoreLimits { deadline, pause_first, ..limits() });
        world.faults[0].next(Operation::Put, [Some(Fault::Fail), Some(Fault::Hang)]);
        let (blob, data) = blob(0, sequence, 1000);
        let error = store.put(blob.id, data).await.unwrap_err();
        assert!(!error.to_string().contains("no answer within"), "{error}");
        assert_eq!(error.class(), ErrorClass::Retry);
        world.faults[0].heal();
    }
    let second_attempts = world.faults[0].requests(Operation::Put) - 20;
    assert!(second_attempts > 0, "none of them was cut short");
}

#[test]
fn store_without_a_bucket_of_its_own_region_is_refused() {
    let (bucket, _) = memory_bucket("eu");
    let made = BlobStore::new(US, [(EU, bucket)], None, Arc::new(Direct), limits());
    assert!(matches!(made, Err(Error::NoBucket { region: US })));
}

#[test]
fn runtime_that_shuts_down_leaves_no_flight_behind() {
    let world = World::new();
    let store = world.store(US);
    world.faults[0].always_all(Some(Fault::Hang));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let flight = {
        let _inside = runtime.enter();
        store.shared.fetch(&blob(0, 1, 10).0)
    };
    runtime.block_on(tokio::task::yield_now());
    drop(runtime);
    let error = futures::executor::block_on(flight).unwrap_err();
    assert!(matches!(error, Error::ShuttingDown { .. }), "{error}");
    assert!(store.shared.flights.lock().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn folder_put_throughput() {
    for with_cache in [false, true] {
        let (folder, cache_folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let bucket = Bucket::open(&crate::BucketConfig::new(folder.path().to_str().unwrap())).await.unwrap();
        let cache = with_cache.then(|| Cache::open(CacheConfig::new(cache_folder.path())).unwrap());
        let store = BlobStore::new(US, [(US, bucket)], cache, Arc::new(Direct), limits()).unwrap();
        let uploader = crate::Uploader::new(store, crate::UploaderConfig::default());
        let data = blob(0, 0, 4 << 20).1;
        let started = std::time::Instant::now();
        let ids: Vec<BlobId> = (0..64).map(|sequence| BlobId::new(US, 1, sequence)).collect();
        for id in &ids {
            uploader.submit(*id, data.clone()).await.unwrap();
        }
        uploader.flush(&ids).await.unwrap();
        println!("with cache {with_cache}: {:.0} MiB/s", 256.0 / started.elapsed().as_secs_f64());
    }
}

#[derive(Clone, Debug)]
enum Action {
    Put(u8),
    PutOther(u8),
    Get(u8, u8, u16, u16),
    Delete(u8),
    Always(u8, Operation, Option<Fault>),
    Heal,
    Restart,
    SpoilCache,
    Wait,
}

fn fault() -> impl Strategy<Value = Option<Fault>> {
    prop::option::weighted(0.8, prop::sample::select(BAD_ANSWERS.to_vec()))
}

fn action() -> impl Strategy<Value = Action> {
    let operation = prop::sample::select(vec![Operation::Put, Operation::Get, Operation::Delete]);
    prop_oneof![
        4 => (0..9_u8).prop_map(Action::Put),
        1 => (0..9_u8).prop_map(Action::PutOther),
        8 => (0..9_u8, 0..3_u8, any::<u16>(), any::<u16>()).prop_map(|(key, at, a, b)| Action::Get(key, at, a, b)),
        1 => (0..9_u8).prop_map(Action::Delete),
        4 => (0..3_u8, operation, fault()).prop_map(|(region, operation, fault)| Action::Always(region, operation, fault)),
        1 => Just(Action::Heal),
        1 => Just(Action::Restart),
        1 => Just(Action::SpoilCache),
        1 => Just(Action::Wait),
    ]
}

/// A key's blob; its origin is the region that puts it.
fn key_blob(key: u8) -> (BlobRef, Bytes) {
    blob(u16::from(key % 3), u64::from(key), 100 + usize::from(key) * 1111)
}

/// What the model knows of a blob in its origin's bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    /// A put or delete failed half-way.
    Perhaps,
    Yes,
}

/// Three clients over three buckets.
struct Run {
    world: World,
    folders: Vec<tempfile::TempDir>,
    stores: Vec<BlobStore>,
    /// Which operations of which bucket are faulty.
    faulty: BTreeMap<(u8, Operation), Fault>,
    model: BTreeMap<u8, Known>,
}

impl Run {
    fn new() -> Run {
        let folders: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
        let mut run =
            Run { world: World::new(), folders, stores: Vec::new(), faulty: BTreeMap::new(), model: BTreeMap::new() };
        run.restart();
        run
    }

    fn restart(&mut self) {
        // Drops the caches first: a folder is used by one at a time.
        self.stores.clear();
        for (region, folder) in (0..).map(Region).zip(&self.folders) {
            let cache = Cache::open(CacheConfig { bytes_max: 8000, ..CacheConfig::new(folder.path()) }).unwrap();
            self.stores.push(self.world.store_with(region, Some(cache), Arc::new(Direct), limits()));
        }
    }

    fn is_faulty(&self, region: u8) -> bool {
        self.faulty.keys().any(|(faulty, _)| *faulty == region)
    }

    async fn step(&mut self, action: Action) {
        match action {
            Action::Put(key) => {
                let (blob, data) = key_blob(key);
                let region = key % 3;
                let put = self.stores[usize::from(region)].put(blob.id, data).await;
                match put {
                    Ok(crc32c) => {
                        assert_eq!(crc32c, blob.crc32c);
                        self.model.insert(key, Known::Yes);
                    }
                    Err(error) => {
                        // A bucket may have stored something else and then not deleted it either.
                        let spoilt = matches!(error, Error::Conflict { .. }) && self.model.contains_key(&key);
                        assert!(self.is_faulty(region) || spoilt, "{error}");
                        self.model.entry(key).or_insert(Known::Perhaps);
                    }
                }
            }
            Action::PutOther(key) => {
                let (blob, data) = key_blob(key);
                if self.model.get(&key) == Some(&Known::Yes) {
                    let error = self.stores[usize::from(key % 3)].put(blob.id, data.slice(1..)).await.unwrap_err();
                    let conflict = matches!(error, Error::Conflict { .. });
                    assert!(conflict || self.is_faulty(key % 3), "{error}");
                }
            }
            Action::Get(key, at, a, b) => self.get(key, at, a, b).await,
            Action::Delete(key) => {
                let failed = self.stores[0].delete(&[key_blob(key).0.id]).await;
                if failed.is_empty() {
                    self.model.remove(&key);
                } else {
                    assert!(!self.faulty.is_empty());
                    if let Some(known) = self.model.get_mut(&key) {
                        *known = Known::Perhaps;
                    }
                }
            }
            Action::Always(region, operation, fault) => {
                // A bucket that stores something wrong and says that it did not is beyond what can be promised here.
                let fault = fault.filter(|fault| operation == Operation::Get || *fault != Fault::Flip);
                self.world.faults[usize::from(region)].always(operation, fault);
                match fault {
                    Some(fault) => self.faulty.insert((region, operation), fault),
                    None => self.faulty.remove(&(region, operation)),
                };
            }
            Action::Heal => {
                self.world.faults.iter().for_each(Faults::heal);
                self.faulty.clear();
            }
            Action::Restart => self.restart(),
            Action::SpoilCache => {
                self.stores.clear();
                for folder in &self.folders {
                    spoil_files(folder.path());
                }
                self.restart();
            }
            Action::Wait => tokio::time::sleep(Duration::from_secs(10)).await,
        }
    }

    async fn get(&self, key: u8, at: u8, a: u16, b: u16) {
        let (blob, data) = key_blob(key);
        let (a, b) = (u32::from(a) % blob.len_bytes, u32::from(b) % blob.len_bytes);
        let range = a.min(b)..a.max(b);
        let started = Instant::now();
        let got = self.stores[usize::from(at)].get(&blob, range.clone()).await;
        assert!(started.elapsed() <= limits().deadline + Duration::from_millis(10));
        match got {
            Ok(got) => assert_eq!(got, data[range.start as usize..range.end as usize]),
            Err(error) => {
                // With the origin's bucket in order, nothing else can keep the blob from its reader but time.
                let reachable = self.model.get(&key) == Some(&Known::Yes) && !self.is_faulty(key % 3);
                let out_of_time = error.class() == ErrorClass::Retry && !self.faulty.is_empty();
                assert!(!reachable || out_of_time, "{error}");
            }
        }
    }
}

fn spoil_files(folder: &std::path::Path) {
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        if entry.path().is_dir() {
            spoil_files(&entry.path());
        } else if let Ok(mut data) = std::fs::read(entry.path())
            && let Some(byte) = data.first_mut()
        {
            *byte ^= 1;
            std::fs::write(entry.path(), data).unwrap();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// Three clients with caches, three buckets with all kinds of faults: right data or an error by the deadline, and
    /// no error where a sound bucket has the blob.
    #[test]
    fn stores_against_a_map(actions in prop::collection::vec(action(), 1..60)) {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let mut run = Run::new();
            for action in actions {
                run.step(action).await;
            }
        });
    }
}
