//! Strangers on the network: whoever the cluster's own authority does not vouch for gets nothing, and harms nobody.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::fs;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::cluster::{Cluster, Options, Part, binary, eventually, run};
use common::files::{Random, create, text};
use metadata::protocol::{CLIENT_CHANNEL_KIND, CLIENT_PROTOCOL_VERSION};
use net::{ChannelKind, ClusterCa, Endpoint, EndpointConfig, Identity, Role};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};

const CLIENT_CHANNEL: ChannelKind = ChannelKind::new(CLIENT_CHANNEL_KIND, CLIENT_PROTOCOL_VERSION as u8);
/// What nodes talk to each other on.
const PEER_CHANNEL: ChannelKind = ChannelKind::new(2, 1);

/// The nodes' names and addresses, as the configuration has them.
fn nodes(cluster: &Cluster) -> Vec<(String, SocketAddr)> {
    let config: toml::Table = toml::from_str(&text(&cluster.data().join("cluster.toml"))).unwrap();
    let nodes = config["node"].as_array().unwrap().iter();
    nodes
        .map(|node| (node["name"].as_str().unwrap().into(), node["address"].as_str().unwrap().parse().unwrap()))
        .collect()
}

/// A client that believes every server.
#[derive(Debug)]
struct Credulous;

impl ServerCertVerifier for Credulous {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        rustls::crypto::ring::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

/// A certificate with its key.
type Shown = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn load(certificate: &std::path::Path, key: &std::path::Path) -> Shown {
    let chain = CertificateDer::pem_file_iter(certificate).unwrap().map(Result::unwrap).collect();
    (chain, PrivateKeyDer::from_pem_file(key).unwrap())
}

/// Does all that a client does, with a certificate of the caller's choice, and answers how many bytes a node gave for it.
async fn try_in(address: SocketAddr, node: &str, hello: &[u8], shown: Option<Shown>) -> Result<usize, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder =
        ClientConfig::builder_with_provider(provider).with_protocol_versions(&[&rustls::version::TLS13]).unwrap();
    let builder = builder.dangerous().with_custom_certificate_verifier(Arc::new(Credulous));
    let mut config = match shown {
        Some((chain, key)) => builder.with_client_auth_cert(chain, key).unwrap(),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"globalfs/1".to_vec()];
    let config = quinn::crypto::rustls::QuicClientConfig::try_from(config).unwrap();
    let mut endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    endpoint.set_default_client_config(quinn::ClientConfig::new(Arc::new(config)));
    let talk = async {
        let connecting =
            endpoint.connect(address, &format!("node.{node}.globalfs")).map_err(|error| error.to_string())?;
        let connection = connecting.await.map_err(|error| error.to_string())?;
        let (mut send, mut receive) = connection.open_bi().await.map_err(|error| error.to_string())?;
        send.write_all(hello).await.map_err(|error| error.to_string())?;
        let mut answer = [0; 1000];
        let answered = receive.read(&mut answer).await.map_err(|error| error.to_string())?;
        Ok(answered.unwrap_or(0))
    };
    match tokio::time::timeout(Duration::from_secs(8), talk).await {
        Ok(answered) => answered,
        Err(_) => Err("no answer".into()),
    }
}

/// The first bytes of a channel, as the protocol has them.
fn hello(kind: u8, version: u8, identity: &Identity) -> Vec<u8> {
    [b"GlFS\x01\x00", &[kind, version][..], &identity.fingerprint().0[..16]].concat()
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

fn own_identity(cluster: &Cluster) -> Identity {
    let tls = cluster.data().join("tls");
    Identity::load(&tls.join("client.us.crt"), &tls.join("client.us.key"), &tls.join("ca.crt")).unwrap()
}

#[test]
fn strangers_get_nothing() {
    let cluster = Cluster::up(Options::wan("none"));
    create(&cluster.path("us", "us/secret"), b"secret").unwrap();
    let tls = cluster.data().join("tls");
    let identity = own_identity(&cluster);
    let opening = hello(CLIENT_CHANNEL.kind, CLIENT_CHANNEL.version, &identity);

    // Another cluster of the same name, with members of the same names.
    let other = ClusterCa::create(identity.cluster()).unwrap();
    let foreign = cluster.folder().join("foreign");
    fs::create_dir(&foreign).unwrap();
    let strangers: Vec<(&str, Option<Shown>)> = [("client", Role::Client), ("node", Role::Node)]
        .map(|(what, role)| {
            let name = if role == Role::Node { "us-1" } else { "us" };
            let [certificate, key] = ["crt", "key"].map(|end| foreign.join(format!("{what}.{end}")));
            other.issue(role, name).unwrap().save(&certificate, &key).unwrap();
            (what, Some(load(&certificate, &key)))
        })
        .into_iter()
        .chain([("nobody", None)])
        .collect();
    let runtime = runtime();
    for (node, address) in nodes(&cluster) {
        // The same steps with the right certificate are answered: what is refused is the stranger.
        let right = load(&tls.join("client.us.crt"), &tls.join("client.us.key"));
        let answered = runtime.block_on(try_in(address, &node, &opening, Some(right)));
        assert!(answered.as_ref().is_ok_and(|bytes| *bytes > 0), "{node} refused a member: {answered:?}");
        for (what, shown) in &strangers {
            let shown = shown.as_ref().map(|(chain, key)| (chain.clone(), key.clone_key()));
            let answered = runtime.block_on(try_in(address, &node, &opening, shown));
            eprintln!("{node} to a foreign {what}: {answered:?}");
            assert!(
                answered.as_ref().is_err_and(|error| error != "no answer"),
                "{node} answered a {what}: {answered:?}"
            );
        }
    }

    // The command with another cluster's certificates: a message and no mount.
    let config = text(&cluster.data().join("cluster.toml"));
    let copy = foreign.join("cluster.toml");
    let data = cluster.data();
    let absolute = config.replace("\"buckets/", &format!("\"{}/buckets/", data.display()));
    let absolute = absolute.replace("\"net.wan\"", &format!("\"{}/net.wan\"", data.display()));
    fs::write(&copy, absolute).unwrap();
    fs::create_dir(foreign.join("tls")).unwrap();
    other.save(&foreign.join("tls/ca.crt"), &foreign.join("tls/ca.key")).unwrap();
    let issued = other.issue(Role::Client, "us").unwrap();
    issued.save(&foreign.join("tls/client.us.crt"), &foreign.join("tls/client.us.key")).unwrap();
    let point = foreign.join("mnt");
    fs::create_dir(&point).unwrap();
    let mut command = std::process::Command::new(binary());
    command.args(["mount", "--region", "us", "--deadline", "3s", "--config"]).arg(&copy).arg(&point);
    let output = run(command, Duration::from_secs(40));
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    eprintln!("mount with foreign certificates: {}: {told}", output.status);
    assert!(!output.status.success() && !told.trim().is_empty(), "{}: {told}", output.status);
    assert!(fs::read_dir(&point).unwrap().next().is_none());
    assert_eq!(text(&cluster.path("ap", "us/secret")), "secret");
}

#[test]
fn a_client_cannot_speak_as_a_node() {
    let cluster = Cluster::up(Options::wan("none"));
    let before = cluster.status();
    let runtime = runtime();
    runtime.block_on(async {
        let endpoint = Endpoint::bind(EndpointConfig::client(own_identity(&cluster))).unwrap();
        for (node, address) in nodes(&cluster) {
            let connection = endpoint.connect(address, &node).await.unwrap();
            let (sender, mut receiver) = connection.open(PEER_CHANNEL).await.unwrap();
            for _ in 0..20 {
                let _refused = sender.send(vec![1, 2, 3].into()).await;
            }
            let answer = tokio::time::timeout(Duration::from_secs(5), receiver.recv()).await;
            assert!(!matches!(answer, Ok(Ok(Some(_)))), "{node} answered a client as if it were a node: {answer:?}");
        }
        endpoint.close().await;
    });
    create(&cluster.path("us", "us/after"), b"after").unwrap();
    let pids = |status: &serde_json::Value| {
        let nodes = status["nodes"].as_array().unwrap().iter();
        nodes.map(|node| node["pid"].as_u64().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(pids(&before), pids(&cluster.status()), "a node has crashed");
    cluster.check_digests();
}

#[test]
fn garbage_hurts_nobody() {
    let cluster = Cluster::up(Options::wan("none"));
    let pids: Vec<_> = cluster.nodes().values().map(|process| process.pid).collect();
    let memory = |cluster: &Cluster| cluster.nodes().values().map(|process| process.resident_kib()).max().unwrap();
    let before = memory(&cluster);
    let mut random = Random::new(40);

    // Datagrams: noise, and what begins like QUIC.
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let started = Instant::now();
    let mut sent = 0;
    while started.elapsed() < Duration::from_secs(4) {
        for (_, address) in nodes(&cluster) {
            for _ in 0..50 {
                let mut datagram = {
                    let len = random.below(1500) as usize;
                    random.bytes(len)
                };
                if datagram.len() > 30 && random.below(2) == 0 {
                    datagram[0] = 0xc0 | (datagram[0] & 0x3f);
                    datagram[1..5].copy_from_slice(&1_u32.to_be_bytes());
                    datagram[5] = 8;
                    datagram[14] = 8;
                }
                let _full = socket.send_to(&datagram, address);
                sent += 1;
            }
        }
        // The cluster works meanwhile.
        create(&cluster.path("us", format!("us/during-{sent}")), b"during").unwrap();
    }
    eprintln!("{sent} datagrams");

    // Frames from a member that has gone mad: random ones, far too long ones, and channels without end.
    let runtime = runtime();
    runtime.block_on(async {
        let endpoint = Endpoint::bind(EndpointConfig::client(own_identity(&cluster))).unwrap();
        for (node, address) in nodes(&cluster) {
            for round in 0..60_u64 {
                let connection = endpoint.connect(address, &node).await.unwrap();
                let kind = if round % 5 == 4 { ChannelKind::new(round as u8, 1) } else { CLIENT_CHANNEL };
                for _ in 0..1 + random.below(3) {
                    let Ok((sender, _receiver)) = connection.open(kind).await else { continue };
                    for _ in 0..random.below(20) {
                        let len = if random.below(10) == 0 { random.below(200_000) } else { random.below(60) };
                        let _refused = sender.try_send(random.bytes(len as usize).into());
                    }
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                connection.close("done");
            }
        }
        endpoint.close().await;
        // Raw bytes where frames are expected: lengths beyond every limit.
        let identity = own_identity(&cluster);
        let mut bytes = hello(CLIENT_CHANNEL.kind, CLIENT_CHANNEL.version, &identity);
        bytes.extend([0xff; 600]);
        for (node, address) in nodes(&cluster) {
            let shown = load(&cluster.data().join("tls/client.eu.crt"), &cluster.data().join("tls/client.eu.key"));
            let answered = try_in(address, &node, &bytes, Some(shown)).await;
            eprintln!("{node} to endless lengths: {answered:?}");
        }
    });
    let after: Vec<_> = cluster.nodes().values().map(|process| process.pid).collect();
    assert_eq!(pids, after, "a node has crashed");
    let grown = eventually(Duration::from_secs(10), "memory to be released", || {
        let grown = memory(&cluster).saturating_sub(before) >> 10;
        (grown < 128).then_some(grown)
    });
    eprintln!("a node has grown by {grown} MiB");
    for region in ["us", "eu", "ap"] {
        assert!(cluster.process(&Part::Mount(region.into())).is_alive());
        create(&cluster.path(region, format!("{region}/after")), b"after").unwrap();
    }
    cluster.check_digests();
}
