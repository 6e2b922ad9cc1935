//! Against a real S3 server over HTTP, with faults on the line and in front.

#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::faulty::{Fault, Operation, with_faults};
use crate::testing::blob;
use crate::{
    BlobStore, Bucket, BucketConfig, Cache, CacheConfig, Direct, Error, ErrorClass, Listed, Region, StoreLimits,
};

const KEY: &str = "GLOBALFSTESTKEY";
const SECRET: &str = "a secret of the tests";

/// A server with the buckets `data-us` and `data-eu`.
struct Server {
    address: SocketAddr,
    folder: tempfile::TempDir,
    _stop: tokio::task::JoinSet<()>,
}

impl Server {
    async fn start() -> Server {
        let folder = tempfile::tempdir().unwrap();
        for bucket in ["data-us", "data-eu"] {
            std::fs::create_dir(folder.path().join(bucket)).unwrap();
        }
        let mut builder = S3ServiceBuilder::new(s3s_fs::FileSystem::new(folder.path()).unwrap());
        builder.set_auth(SimpleAuth::from_single(KEY, SECRET));
        let service = builder.build();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut stop = tokio::task::JoinSet::new();
        stop.spawn(serve(listener, service));
        Server { address, folder, _stop: stop }
    }

    fn config(&self, bucket: &str) -> BucketConfig {
        self.config_at(self.address, bucket, SECRET)
    }

    fn config_at(&self, address: SocketAddr, bucket: &str, secret: &str) -> BucketConfig {
        let file = self.folder.path().join(format!("credentials-{}", secret.len()));
        std::fs::write(&file, format!("[default]\naws_access_key_id = {KEY}\naws_secret_access_key = {secret}\n"))
            .unwrap();
        BucketConfig {
            endpoint: Some(format!("http://{address}")),
            allow_http: true,
            credentials_file: Some(file),
            ..BucketConfig::new(format!("s3://{bucket}/some/prefix"))
        }
    }

    async fn bucket(&self, bucket: &str) -> Bucket {
        Bucket::open(&self.config(bucket)).await.unwrap()
    }
}

async fn serve(listener: TcpListener, service: S3Service) {
    let mut connections = tokio::task::JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let service = service.clone();
        connections.spawn(async move {
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

/// What the line to the server does.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Line {
    Good,
    /// Connections end at once.
    Refuse,
    /// Connections end after this many bytes of answers.
    CutAfter(usize),
    /// Nothing more comes after this many bytes of answers.
    StallAfter(usize),
    /// One bit is changed every so many bytes of answers.
    FlipEvery(usize),
}

/// A forwarder with faults between client and server.
struct Proxy {
    address: SocketAddr,
    line: Arc<Mutex<Line>>,
    _stop: tokio::task::JoinSet<()>,
}

impl Proxy {
    async fn start(server: SocketAddr) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let line = Arc::new(Mutex::new(Line::Good));
        let mut stop = tokio::task::JoinSet::new();
        stop.spawn({
            let line = Arc::clone(&line);
            async move {
                let mut connections = tokio::task::JoinSet::new();
                while let Ok((client, _)) = listener.accept().await {
                    connections.spawn(forward(client, server, Arc::clone(&line)));
                }
            }
        });
        Proxy { address, line, _stop: stop }
    }

    fn set(&self, line: Line) {
        *self.line.lock() = line;
    }
}

async fn forward(mut client: TcpStream, server: SocketAddr, line: Arc<Mutex<Line>>) {
    if *line.lock() == Line::Refuse {
        return;
    }
    let mut server = TcpStream::connect(server).await.unwrap();
    let (mut from_client, mut to_client) = client.split();
    let (mut from_server, mut to_server) = server.split();
    let answers = async {
        // Per answer: the server sends nothing before it is asked.
        let mut buffer = vec![0; 16 << 10];
        let mut seen = 0;
        loop {
            let Ok(read @ 1..) = from_server.read(&mut buffer).await else { return };
            let mut piece = buffer[..read].to_vec();
            match *line.lock() {
                Line::Good => {}
                Line::Refuse => return,
                Line::CutAfter(limit) if seen + read > limit => piece.truncate(limit.saturating_sub(seen)),
                Line::StallAfter(limit) if seen + read > limit => piece.truncate(limit.saturating_sub(seen)),
                Line::FlipEvery(step) => {
                    let first = (seen / step + 1) * step;
                    (first..seen + read).step_by(step).for_each(|at| piece[at - seen] ^= 1);
                }
                Line::CutAfter(_) | Line::StallAfter(_) => {}
            }
            seen += read;
            if to_client.write_all(&piece).await.is_err() {
                return;
            }
            let cut = piece.len() < read;
            if cut && matches!(*line.lock(), Line::StallAfter(_)) {
                std::future::pending::<()>().await;
            }
            if cut {
                return;
            }
        }
    };
    tokio::select! {
        () = answers => {}
        _ = tokio::io::copy(&mut from_client, &mut to_server) => {}
    }
}

fn limits() -> StoreLimits {
    StoreLimits {
        deadline: Duration::from_secs(15),
        attempt_timeout: Duration::from_secs(2),
        stall_timeout: Duration::from_millis(700),
        memory_bytes_max: 0,
        ..StoreLimits::default()
    }
}

fn store(local: Region, buckets: [Bucket; 2], cache: Option<Cache>) -> BlobStore {
    BlobStore::new(local, (0..).map(Region).zip(buckets), cache, Arc::new(Direct), limits()).unwrap()
}

#[tokio::test]
async fn s3_put_get_list_delete() {
    let server = Server::start().await;
    let store = store(Region(0), [server.bucket("data-us").await, server.bucket("data-eu").await], None);
    let blobs: Vec<_> = (0..20).map(|sequence| blob(0, sequence, 1 + 10_000 * sequence as usize)).collect();
    for (blob, data) in &blobs {
        assert_eq!(store.put(blob.id, data.clone()).await.unwrap(), blob.crc32c);
        assert_eq!(store.get(blob, 0..blob.len_bytes).await.unwrap(), data);
    }
    let (first, data) = &blobs[1];
    store.put(first.id, data.clone()).await.unwrap();
    let error = store.put(first.id, data.slice(1..)).await.unwrap_err();
    assert!(matches!(error, Error::Conflict { .. }), "{error}");
    assert_eq!(store.get(first, 5000..5010).await.unwrap(), data[5000..5010]);
    let mut listed: Vec<_> = store
        .list(Region(0), None)
        .map(|listed| match listed.unwrap() {
            Listed::Blob { id, len_bytes, .. } => (id, len_bytes),
            Listed::Foreign { path } => panic!("{path}"),
        })
        .collect()
        .await;
    listed.sort_unstable();
    let expected: Vec<_> = blobs.iter().map(|(blob, _)| (blob.id, u64::from(blob.len_bytes))).collect();
    assert_eq!(listed, expected);
    assert_eq!(store.list(Region(1), None).count().await, 0);
    let (gone, kept) = blobs.split_at(12);
    let ids: Vec<_> = gone.iter().map(|(blob, _)| blob.id).collect();
    assert!(store.delete(&ids).await.is_empty());
    assert!(store.delete(&ids).await.is_empty(), "again");
    let error = store.get(first, 0..1).await.unwrap_err();
    assert_eq!(error.class(), ErrorClass::Missing, "{error}");
    assert_eq!(store.list(Region(0), None).count().await, kept.len());
}

#[tokio::test]
async fn s3_large_blobs_in_parallel_and_across_regions() {
    let server = Server::start().await;
    let buckets = [server.bucket("data-us").await, server.bucket("data-eu").await];
    let folder = tempfile::tempdir().unwrap();
    let cache = Cache::open(CacheConfig::new(folder.path())).unwrap();
    let us = store(Region(0), buckets.clone(), None);
    let eu = store(Region(1), buckets, Some(cache));
    let blobs: Vec<_> = (0..6).map(|sequence| blob(0, sequence, 4 << 20)).collect();
    let puts = blobs.iter().map(|(blob, data)| us.put(blob.id, data.clone()));
    futures::future::try_join_all(puts).await.unwrap();
    let gets = blobs.iter().map(|(blob, _)| eu.get(blob, 1000..2_000_000));
    for (got, (_, data)) in futures::future::try_join_all(gets).await.unwrap().iter().zip(&blobs) {
        assert_eq!(got, &data[1000..2_000_000]);
    }
    drop(server);
    for (blob, data) in &blobs {
        assert_eq!(eu.get(blob, 2_000_000..4 << 20).await.unwrap(), data[2_000_000..], "from the cache");
    }
}

#[tokio::test]
async fn s3_unusable_bucket_is_a_clear_error() {
    let server = Server::start().await;
    let wrong = server.config_at(server.address, "data-us", "wrong secret");
    let error = Bucket::open(&wrong).await.unwrap_err();
    assert_eq!(error.class(), ErrorClass::Caller);
    let text = error.to_string();
    assert!(text.contains("s3://data-us/some/prefix") && text.contains("write to it"), "{text}");
    assert!(text.contains("SignatureDoesNotMatch") && text.contains("check the credentials"), "{text}");
    assert!(!text.contains("wrong secret") && !format!("{error:?}").contains("wrong secret"), "{error:?}");
    let error = Bucket::open(&server.config("x")).await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains("InvalidBucketName") && text.contains("create the bucket"), "{text}");
    let proxy = Proxy::start(server.address).await;
    proxy.set(Line::Refuse);
    let error = Bucket::open(&server.config_at(proxy.address, "data-us", SECRET)).await.unwrap_err();
    assert_eq!(error.class(), ErrorClass::Retry);
    assert!(error.to_string().contains("check that the server runs"), "{error}");
    let anonymous = BucketConfig { anonymous: true, credentials_file: None, ..server.config("data-us") };
    let error = Bucket::open(&anonymous).await.unwrap_err();
    assert_eq!(error.class(), ErrorClass::Caller, "{error}");
}

#[tokio::test]
async fn s3_behind_a_bad_line_never_gives_wrong_data() {
    let server = Server::start().await;
    let proxy = Proxy::start(server.address).await;
    let own = Bucket::configure(&server.config_at(proxy.address, "data-eu", SECRET)).unwrap();
    let writer = store(Region(0), [server.bucket("data-us").await, server.bucket("data-eu").await], None);
    let copier = store(Region(1), [server.bucket("data-us").await, server.bucket("data-eu").await], None);
    let (blob, data) = blob(0, 1, 300_000);
    writer.put(blob.id, data.clone()).await.unwrap();
    copier.put(blob.id, data.clone()).await.unwrap();
    let lines = [
        Line::Refuse,
        Line::CutAfter(100),
        Line::CutAfter(150_000),
        Line::StallAfter(150_000),
        Line::FlipEvery(50_000),
    ];
    for line in lines {
        proxy.set(line);
        // A new one each time: no connection and no opinion of the bucket is left from before.
        let own = Bucket::configure(&server.config_at(proxy.address, "data-eu", SECRET)).unwrap();
        let reader = store(Region(1), [server.bucket("data-us").await, own.clone()], None);
        let got = reader.get(&blob, 10..299_990).await;
        assert_eq!(got.unwrap(), data[10..299_990], "{line:?}: the origin's bucket helps");
        let short = StoreLimits { deadline: Duration::from_secs(1), ..limits() };
        let alone = BlobStore::new(Region(1), [(Region(1), own)], None, Arc::new(Direct), short).unwrap();
        let error = alone.get(&blob, 10..299_990).await.unwrap_err();
        let corrupt = matches!(line, Line::FlipEvery(_));
        assert_eq!(error.class() == ErrorClass::Corrupt, corrupt, "{line:?}: {error}");
        assert!(error.to_string().contains("s3://data-eu/some/prefix"), "{error}");
        proxy.set(Line::Good);
        let healed = async {
            loop {
                if let Ok(got) = alone.get(&blob, 10..299_990).await {
                    break got;
                }
            }
        };
        let healed = tokio::time::timeout(Duration::from_secs(10), healed).await;
        assert_eq!(healed.unwrap(), data[10..299_990], "{line:?}: it recovers by itself");
    }
    proxy.set(Line::Refuse);
    let alone = BlobStore::new(Region(1), [(Region(1), own)], None, Arc::new(Direct), limits()).unwrap();
    let (late, data) = crate::testing::blob(1, 2, 100_000);
    let put = tokio::spawn({
        let (alone, data) = (alone.clone(), data.clone());
        async move { alone.put(late.id, data).await }
    });
    tokio::time::sleep(Duration::from_millis(800)).await;
    proxy.set(Line::Good);
    put.await.unwrap().unwrap();
    assert_eq!(alone.get(&late, 0..100_000).await.unwrap(), data);
}

#[tokio::test]
async fn s3_with_a_faulty_store_in_front_falls_back() {
    let server = Server::start().await;
    let (own, faults) = with_faults(&server.bucket("data-eu").await);
    let us = store(Region(0), [server.bucket("data-us").await, server.bucket("data-eu").await], None);
    let eu = store(Region(1), [server.bucket("data-us").await, own], None);
    for (sequence, fault) in (0..).zip([
        Fault::Fail,
        Fault::Lose,
        Fault::Truncate,
        Fault::Cut,
        Fault::Flip,
        Fault::Grow,
        Fault::Stall,
        Fault::Delay(Duration::from_secs(60)),
        Fault::Deny,
    ]) {
        let (blob, data) = blob(0, sequence, 50_000);
        us.put(blob.id, data.clone()).await.unwrap();
        eu.put(blob.id, data.clone()).await.unwrap();
        faults.always(Operation::Get, Some(fault));
        assert_eq!(eu.get(&blob, 1..49_999).await.unwrap(), data[1..49_999], "{fault:?}");
        faults.heal();
    }
    for (sequence, fault) in (100..).zip([Fault::Fail, Fault::LoseAnswer, Fault::Truncate]) {
        let (blob, data) = blob(1, sequence, 50_000);
        faults.next(Operation::Put, [Some(fault)]);
        eu.put(blob.id, data.clone()).await.unwrap();
        assert_eq!(us.get(&blob, 0..50_000).await.unwrap(), data, "{fault:?}");
    }
    let (blob, _) = blob(1, 200, 10);
    let other = Bytes::from_static(b"0123456789");
    faults.always(Operation::Put, Some(Fault::Deny));
    let error = eu.put(blob.id, other).await.unwrap_err();
    assert_eq!(error.class(), ErrorClass::Caller, "{error}");
}
