#![allow(clippy::unwrap_used)]

use tokio::time::Instant;

use super::*;
use crate::faulty::{Fault, Faults, Operation, memory_bucket};
use crate::testing::blob;
use crate::{Direct, Region, StoreLimits};

fn uploader(config: UploaderConfig) -> (Uploader, BlobStore, Faults) {
    let (bucket, faults) = memory_bucket("us");
    let limits = StoreLimits { blob_len_bytes_max: 1000, deadline: Duration::from_secs(5), ..StoreLimits::default() };
    let store = BlobStore::new(Region(0), [(Region(0), bucket)], None, Arc::new(Direct), limits).unwrap();
    (Uploader::new(store.clone(), config), store, faults)
}

#[tokio::test(start_paused = true)]
async fn submitted_blobs_are_in_the_bucket_after_flush() {
    let (uploader, store, faults) = uploader(UploaderConfig::default());
    faults.always(Operation::Put, Some(Fault::Delay(Duration::from_secs(1))));
    let started = Instant::now();
    let mut ids = Vec::new();
    for sequence in 0..16 {
        let (blob, data) = blob(0, sequence, 1000);
        assert_eq!(uploader.submit(blob.id, data.clone()).await.unwrap(), blob);
        assert_eq!(uploader.pending(blob.id).unwrap(), data);
        ids.push(blob.id);
    }
    assert_eq!(started.elapsed().as_millis(), 0, "submitting does not wait");
    assert_eq!(uploader.status(), UploaderStatus { pending: 16, failed: 0, bytes: 16_000 });
    uploader.flush(&ids).await.unwrap();
    assert_eq!(started.elapsed().as_secs(), 2, "eight at a time");
    assert_eq!(uploader.status(), UploaderStatus::default());
    for sequence in 0..16 {
        let (blob, data) = blob(0, sequence, 1000);
        assert_eq!(store.get(&blob, 0..1000).await.unwrap(), data);
        assert_eq!(uploader.pending(blob.id), None);
    }
    uploader.flush(&ids).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn full_buffer_makes_writers_wait_and_then_fail() {
    let config = UploaderConfig { buffer_bytes_max: 3000, ..UploaderConfig::default() };
    let (uploader, _store, faults) = uploader(config);
    faults.always(Operation::Put, Some(Fault::Delay(Duration::from_secs(1))));
    let started = Instant::now();
    for sequence in 0..9 {
        let (blob, data) = blob(0, sequence, 1000);
        uploader.submit(blob.id, data).await.unwrap();
        assert!(uploader.status().bytes <= 3000);
    }
    assert_eq!(started.elapsed().as_secs(), 2);
    tokio::time::sleep(Duration::from_secs(2)).await;
    faults.always(Operation::Put, Some(Fault::Fail));
    let blobs: Vec<_> = (100..103).map(|sequence| blob(0, sequence, 1000)).collect();
    let ids: Vec<BlobId> = blobs.iter().map(|(blob, _)| blob.id).collect();
    for (blob, data) in blobs {
        uploader.submit(blob.id, data).await.unwrap();
    }
    let (late, data) = blob(0, 200, 1000);
    let error = uploader.submit(late.id, data.clone()).await.unwrap_err();
    assert!(matches!(error, Error::BufferFull { bytes_max: 3000, failed: 3 }), "{error}");
    uploader.abandon(&ids);
    faults.heal();
    uploader.submit(late.id, data).await.unwrap();
    uploader.flush(&[late.id]).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn failed_blobs_are_kept_and_can_be_tried_again() {
    let (uploader, store, faults) = uploader(UploaderConfig::default());
    let (good, data) = blob(0, 1, 500);
    uploader.submit(good.id, data).await.unwrap();
    uploader.flush(&[good.id]).await.unwrap();
    faults.always(Operation::Put, Some(Fault::Fail));
    let (bad, data) = blob(0, 2, 500);
    uploader.submit(bad.id, data.clone()).await.unwrap();
    for _ in 0..2 {
        let error = uploader.flush(&[good.id, bad.id]).await.unwrap_err();
        assert!(matches!(error, Error::Put { .. }), "{error}");
    }
    assert_eq!(uploader.status(), UploaderStatus { pending: 0, failed: 1, bytes: 500 });
    assert_eq!(uploader.pending(bad.id).unwrap(), data);
    faults.heal();
    uploader.retry(&[good.id, bad.id]);
    assert_eq!(uploader.status(), UploaderStatus { pending: 1, failed: 0, bytes: 500 });
    uploader.flush(&[good.id, bad.id]).await.unwrap();
    assert_eq!(store.get(&bad, 0..500).await.unwrap(), data);
    assert_eq!(uploader.status(), UploaderStatus::default());
}

#[tokio::test(start_paused = true)]
async fn abandoned_blobs_free_their_room_and_wake_those_who_wait() {
    let (uploader, _store, faults) = uploader(UploaderConfig { parallel_max: 1, ..UploaderConfig::default() });
    faults.always(Operation::Put, Some(Fault::Hang));
    let ids: Vec<BlobId> = (0..3).map(|sequence| blob(0, sequence, 100).0.id).collect();
    for (sequence, id) in ids.iter().enumerate() {
        uploader.submit(*id, blob(0, sequence as u64, 100).1).await.unwrap();
    }
    let waiting = tokio::spawn({
        let (uploader, ids) = (uploader.clone(), ids.clone());
        async move { uploader.flush(&ids).await }
    });
    tokio::time::sleep(Duration::from_millis(10)).await;
    uploader.abandon(&ids);
    let error = waiting.await.unwrap().unwrap_err();
    assert!(matches!(error, Error::Abandoned { id } if id == ids[0]), "{error}");
    assert_eq!(uploader.status(), UploaderStatus::default());
    assert_eq!(uploader.shared.buffer.available_permits(), uploader.shared.config.buffer_bytes_max);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(faults.requests(Operation::Put), 1, "what had not begun is not uploaded");
}

#[test]
fn runtime_that_shuts_down_fails_the_uploads() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let (uploader, _store, faults) = uploader(UploaderConfig::default());
    faults.always(Operation::Put, Some(Fault::Hang));
    let (blob, data) = blob(0, 1, 100);
    runtime.block_on(async {
        uploader.submit(blob.id, data).await.unwrap();
        tokio::task::yield_now().await;
    });
    drop(runtime);
    let error = futures::executor::block_on(uploader.flush(&[blob.id])).unwrap_err();
    assert!(matches!(error, Error::ShuttingDown { .. }), "{error}");
}

#[tokio::test(start_paused = true)]
async fn bucket_without_room_is_told_at_once_and_taken_up_again_when_there_is_room() {
    let config = UploaderConfig { buffer_bytes_max: 3000, ..UploaderConfig::default() };
    let (uploader, store, faults) = uploader(config);
    faults.always(Operation::Put, Some(Fault::Full));
    let started = Instant::now();
    let blobs: Vec<_> = (0..4).map(|sequence| blob(0, sequence, 1000)).collect();
    let ids: Vec<BlobId> = blobs.iter().map(|(blob, _)| blob.id).collect();
    for (blob, data) in &blobs[..3] {
        uploader.submit(blob.id, data.clone()).await.unwrap();
    }
    let error = uploader.submit(ids[3], blobs[3].1.clone()).await.unwrap_err();
    assert!(matches!(error, Error::Full { by_quota: false, .. }), "{error}");
    let error = uploader.flush(&ids[..3]).await.unwrap_err();
    assert!(matches!(error, Error::Full { .. }), "{error}");
    assert!(started.elapsed() < Duration::from_millis(100), "nobody waits: {:?}", started.elapsed());
    assert_eq!(uploader.status().failed, 3, "kept");
    // Whoever waits for room brings the others along.
    faults.heal();
    uploader.submit(ids[3], blobs[3].1.clone()).await.unwrap();
    uploader.flush(&ids).await.unwrap();
    for (blob, data) in &blobs {
        assert_eq!(store.get(blob, 0..1000).await.unwrap(), data);
    }
}
