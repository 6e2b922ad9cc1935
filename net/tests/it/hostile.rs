//! Peers that are not members, and members that misbehave.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use net::{ClusterCa, Endpoint, Role};
use quinn::crypto::rustls::QuicClientConfig;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::time::timeout;

use crate::common::{Cluster, LOCAL, frame, open, serve_echo};

const SOON: Duration = Duration::from_secs(10);

/// Trusts anybody, so that only the node's own checks count.
#[derive(Debug)]
struct TrustAll;

impl rustls::client::danger::ServerCertVerifier for TrustAll {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        rustls::crypto::ring::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

/// A raw QUIC client: no hello, no frames, with or without a member's certificate.
async fn raw(
    node: SocketAddr,
    member: Option<(&ClusterCa, Role)>,
    alpn: &[u8],
) -> Result<quinn::Connection, quinn::ConnectionError> {
    let builder = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(TrustAll));
    let mut tls = match member {
        None => builder.with_no_client_auth(),
        Some((ca, role)) => {
            use rustls::pki_types::{PrivateKeyDer, pem::PemObject};
            let directory = tempfile::tempdir().unwrap();
            let (certificate, key) = (directory.path().join("c"), directory.path().join("k"));
            ca.issue(role, "intruder").unwrap().save(&certificate, &key).unwrap();
            let chain = vec![CertificateDer::from_pem_file(&certificate).unwrap()];
            builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_file(&key).unwrap()).unwrap()
        }
    };
    tls.alpn_protocols = vec![alpn.to_vec()];
    let config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()));
    let endpoint = quinn::Endpoint::client(LOCAL).unwrap();
    endpoint.connect_with(config, node, "node.us-1.globalfs").unwrap().await
}

/// Tries to get anything out of the node; true if it got a single byte.
async fn gets_anything(connection: quinn::Connection) -> bool {
    let Ok((mut send, mut receive)) = connection.open_bi().await else { return false };
    let _ = send.write_all(&[0; 100]).await;
    let mut answer = [0; 1];
    timeout(SOON, receive.read(&mut answer)).await.unwrap().is_ok_and(|read| read.is_some())
}

async fn assert_refused(node: &Endpoint, member: Option<(&ClusterCa, Role)>, alpn: &[u8]) {
    match raw(node.local_addr(), member, alpn).await {
        Err(_) => {}
        // In TLS 1.3 a client is done before the server has looked at its certificate.
        Ok(connection) => assert!(!gets_anything(connection).await),
    }
    assert_eq!(node.connections(), 0);
    assert!(timeout(Duration::from_millis(50), node.accept()).await.is_err(), "nothing reaches the application");
}

async fn assert_still_serves(cluster: &Cluster, node: &Endpoint) {
    let client = cluster.client("laptop");
    let (_connection, sender, mut receiver) = open(&client, node, "us-1").await;
    sender.send(frame("still here?")).await.unwrap();
    assert_eq!(timeout(SOON, receiver.recv()).await.unwrap().unwrap().unwrap(), frame("still here?"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stranger_gets_nothing() {
    let cluster = Cluster::new();
    let node = cluster.node("us-1");
    let same_name = ClusterCa::create("test").unwrap();
    assert_refused(&node, None, b"globalfs/1").await;
    assert_refused(&node, Some((&same_name, Role::Client)), b"globalfs/1").await;
    assert_refused(&node, Some((&same_name, Role::Node)), b"globalfs/1").await;
    assert_refused(&node, Some((&cluster.ca, Role::Client)), b"globalfs/2").await;
    assert_refused(&node, Some((&cluster.ca, Role::Client)), b"h3").await;
    serve_echo(node.clone());
    assert_still_serves(&cluster, &node).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dialler_refuses_other_cluster_other_name_and_client_as_server() {
    let cluster = Cluster::new();
    let client = cluster.client("laptop");
    let other = Cluster::new();
    let foreign = other.echo("us-1");
    let error = client.connect(foreign.local_addr(), "us-1").await.unwrap_err();
    assert!(error.to_string().contains("us-1"), "{error}");
    let node = cluster.echo("us-2");
    assert!(client.connect(node.local_addr(), "us-1").await.is_err());
    assert!(client.connect(node.local_addr(), "not a name").await.is_err());
    assert!(client.connect(node.local_addr(), "us-2").await.is_ok());
    // A client of the cluster that pretends to be a node.
    let server = impersonate(&cluster.ca);
    let address = server.local_addr().unwrap();
    tokio::spawn(async move {
        while let Some(incoming) = server.accept().await {
            let _ = incoming.await;
        }
    });
    assert!(client.connect(address, "laptop").await.is_err());
    assert!(client.connect(address, "us-2").await.is_err());
}

/// A server with a client's certificate.
fn impersonate(ca: &ClusterCa) -> quinn::Endpoint {
    use rustls::pki_types::{PrivateKeyDer, pem::PemObject};
    let directory = tempfile::tempdir().unwrap();
    let (certificate, key) = (directory.path().join("c"), directory.path().join("k"));
    ca.issue(Role::Client, "laptop").unwrap().save(&certificate, &key).unwrap();
    let mut tls = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![CertificateDer::from_pem_file(&certificate).unwrap()],
            PrivateKeyDer::from_pem_file(&key).unwrap(),
        )
        .unwrap();
    tls.alpn_protocols = vec![b"globalfs/1".to_vec()];
    let crypto = quinn::crypto::rustls::QuicServerConfig::try_from(tls).unwrap();
    quinn::Endpoint::server(quinn::ServerConfig::with_crypto(Arc::new(crypto)), LOCAL).unwrap()
}

/// A valid hello of this cluster.
fn hello(cluster: &Cluster) -> Vec<u8> {
    let mut hello = b"GlFS\x01\x00\x07\x01".to_vec();
    hello.extend_from_slice(&cluster.ca.fingerprint().0[..16]);
    hello
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn member_that_sends_garbage_is_dropped_and_harms_nobody() {
    let cluster = Cluster::new();
    let node = cluster.echo("us-1");
    let hello = hello(&cluster);
    let with_hello = |rest: &[u8]| [&hello[..], rest].concat();
    let mut other_version = hello.clone();
    other_version[4] = 9;
    let mut random = vec![0; 100_000];
    let mut seed = 1u64;
    random.iter_mut().for_each(|byte| {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1);
        *byte = (seed >> 56) as u8;
    });
    let attacks = [
        vec![0; 10],
        random.clone(),
        hello[..10].to_vec(),
        other_version,
        with_hello(&u32::MAX.to_le_bytes()),
        with_hello(&(16u32 << 20).to_le_bytes()),
        with_hello(&[5, 0, 0, 0, 1, 2]),
        with_hello(&[3, 0]),
        with_hello(&random),
        with_hello(&vec![0; 100_000]),
    ];
    for attack in attacks {
        let intruder = raw(node.local_addr(), Some((&cluster.ca, Role::Client)), b"globalfs/1").await.unwrap();
        let (mut send, mut receive) = intruder.open_bi().await.unwrap();
        let _ = send.write_all(&attack).await;
        let _ = send.finish();
        let _ = timeout(SOON, receive.read_to_end(1 << 20)).await.unwrap();
    }
    assert_still_serves(&cluster, &node).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn member_that_opens_everything_and_says_nothing_is_bounded() {
    let cluster = Cluster::new();
    let mut config = cluster.node_config("us-1");
    config.limits.handshake_timeout = Duration::from_millis(500);
    let node = Endpoint::bind(config).unwrap();
    serve_echo(node.clone());
    let intruder = raw(node.local_addr(), Some((&cluster.ca, Role::Client)), b"globalfs/1").await.unwrap();
    assert!(timeout(Duration::from_millis(50), intruder.open_uni()).await.is_err(), "no unidirectional streams");
    assert!(intruder.send_datagram(Bytes::from_static(b"x")).is_err(), "no datagrams");
    let mut streams = Vec::new();
    while let Ok(Ok((mut send, receive))) = timeout(Duration::from_millis(100), intruder.open_bi()).await {
        send.write_all(b"G").await.unwrap();
        streams.push((send, receive));
        assert!(streams.len() <= 16);
    }
    assert_eq!(streams.len(), 16);
    timeout(SOON, intruder.closed()).await.expect("no hello in time ends the connection");
    assert_still_serves(&cluster, &node).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn datagrams_that_are_no_quic_are_ignored() {
    let cluster = Cluster::new();
    let node = cluster.echo("us-1");
    let socket = std::net::UdpSocket::bind(LOCAL).unwrap();
    let mut seed = 7u64;
    for length in 0..1400usize {
        let datagram: Vec<u8> = (0..length)
            .map(|_| {
                seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1);
                (seed >> 56) as u8
            })
            .collect();
        let _ = socket.send_to(&datagram, node.local_addr());
    }
    assert_still_serves(&cluster, &node).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handshakes_beyond_the_rate_are_refused_and_recover() {
    let cluster = Cluster::new();
    let mut config = cluster.node_config("us-1");
    config.limits.handshakes_per_s_max = 5;
    let node = Endpoint::bind(config).unwrap();
    serve_echo(node.clone());
    let client = cluster.client("laptop");
    let mut connected = Vec::new();
    let mut refused = 0;
    for _ in 0..20 {
        match client.connect(node.local_addr(), "us-1").await {
            Ok(connection) => connected.push(connection),
            Err(_) => refused += 1,
        }
    }
    assert!(refused > 0 && connected.len() >= 10, "{refused} refused");
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_still_serves(&cluster, &node).await;
}
