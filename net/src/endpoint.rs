//! One UDP socket: dials nodes, accepts members of the cluster, hands out channels.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use quinn::{
    AckFrequencyConfig, ClientConfig, EndpointConfig as QuicEndpointConfig, IdleTimeout, MtuDiscoveryConfig, Runtime,
    ServerConfig, TokioRuntime, TransportConfig, VarInt, congestion::CubicConfig,
};
use rustls_pki_types::CertificateDer;
use tokio::sync::{mpsc, watch};

use crate::{
    ChannelKind, Error, Fingerprint, FrameReceiver, FrameSender, Identity, PeerName, Result, Role,
    channel::ChannelLimits,
    hello::{self, HELLO_LEN},
    pki,
    reset::{RandomIds, ResetKey},
    socket::{self, WanSocket},
    tls,
    wan::WanSide,
};

/// Close codes, for the peer's log.
const CLOSED: VarInt = VarInt::from_u32(0);
const REFUSED: VarInt = VarInt::from_u32(1);
const BROKEN: VarInt = VarInt::from_u32(2);
const BUSY: VarInt = VarInt::from_u32(3);

/// The peer may receive so many datagrams before it must acknowledge them at once; fewer it acknowledges within 25 ms.
const ACK_AFTER: VarInt = VarInt::from_u32(10);

/// Accepted channels that the application has not taken yet.
const ACCEPT_QUEUE_MAX: usize = 64;

/// Bounds against exhaustion by peers. Memory: a connection may hold its receive window and, in each of its
/// channels, one frame and one sending queue.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Connections accepted at once. Default 1024.
    pub connections_max: usize,
    /// How many of them may be clients', so that nodes always get through. Default 896.
    pub client_connections_max: usize,
    /// Handshakes in progress. From a quarter of it on, addresses must first prove themselves. Default 256.
    pub handshakes_max: usize,
    /// New connections a second, on average. Default 200.
    pub handshakes_per_s_max: u32,
    /// Time for a handshake, a hello, or a dial. Default 5 s.
    pub handshake_timeout: Duration,
    /// Channels in one connection. Default 16.
    pub channels_max: u32,
    /// Longest frame. Default 16 MiB.
    pub frame_len_bytes_max: usize,
    /// Frames in the sending queue of a channel. Default 65,536.
    pub queue_frames_max: usize,
    /// Bytes in the sending queue of a channel. Default 32 MiB.
    pub queue_bytes_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            connections_max: 1024,
            client_connections_max: 896,
            handshakes_max: 256,
            handshakes_per_s_max: 200,
            handshake_timeout: Duration::from_secs(5),
            channels_max: 16,
            frame_len_bytes_max: 16 << 20,
            queue_frames_max: 1 << 16,
            queue_bytes_max: 32 << 20,
        }
    }
}

/// How connections behave.
#[derive(Clone, Debug)]
pub struct Tuning {
    /// A connection without an answer for so long is lost: this is how a cut is noticed. Default 5 s.
    pub idle_timeout: Duration,
    /// An idle connection is probed so often. Default 1 s.
    pub keep_alive: Duration,
    /// What a node may send unread; at least bandwidth × round trip. Default 32 MiB.
    pub node_window_bytes: u32,
    /// What a client may send unread. Default 4 MiB.
    pub client_window_bytes: u32,
    /// What is sent before the peer has acknowledged it. Default 32 MiB.
    pub send_window_bytes: u64,
    /// Bytes sent in the first round trip. Default 256 KiB.
    pub initial_window_bytes: u64,
    /// Assumed round trip before the first measurement. Default 150 ms.
    pub initial_rtt: Duration,
    /// Largest datagram to look for. Above 6,400 segmentation offload breaks. Default 6,400.
    pub mtu_bytes_max: u16,
    /// Send and receive buffer of the socket; beyond the system's limit only as root. Default 8 MiB.
    pub socket_buffer_bytes: usize,
}

impl Default for Tuning {
    fn default() -> Self {
        Tuning {
            idle_timeout: Duration::from_secs(5),
            keep_alive: Duration::from_secs(1),
            node_window_bytes: 32 << 20,
            client_window_bytes: 4 << 20,
            send_window_bytes: 32 << 20,
            initial_window_bytes: 256 << 10,
            initial_rtt: Duration::from_millis(150),
            mtu_bytes_max: 6400,
            socket_buffer_bytes: 8 << 20,
        }
    }
}

/// Everything an [`Endpoint`] needs.
#[derive(Clone, Debug)]
pub struct EndpointConfig {
    /// Local address. Port 0 for any.
    pub bind: SocketAddr,
    /// Whether peers may connect. Needs a node's certificate.
    pub accepts: bool,
    /// Certificate, key and authority.
    pub identity: Identity,
    /// Bounds.
    pub limits: Limits,
    /// Behaviour.
    pub tuning: Tuning,
    /// Place in an emulated network.
    pub wan: Option<WanSide>,
}

impl EndpointConfig {
    /// A node's endpoint: accepts and dials.
    pub fn node(bind: SocketAddr, identity: Identity) -> Self {
        EndpointConfig {
            bind,
            accepts: true,
            identity,
            limits: Limits::default(),
            tuning: Tuning::default(),
            wan: None,
        }
    }

    /// A client's endpoint: only dials, from any IPv4 address. Bind to `[::]:0` to reach IPv6 as well.
    pub fn client(identity: Identity) -> Self {
        EndpointConfig { accepts: false, ..Self::node((Ipv4Addr::UNSPECIFIED, 0).into(), identity) }
    }
}

/// One UDP socket of one member. Clones are handles; [`Endpoint::close`] ends all. When the last handle is
/// dropped nothing more is accepted, and the socket is closed with the last connection.
#[derive(Clone, Debug)]
pub struct Endpoint {
    shared: Arc<Shared>,
    /// Ends the accepting tasks when dropped.
    _alive: Arc<watch::Sender<()>>,
}

#[derive(Debug)]
struct Shared {
    quic: quinn::Endpoint,
    client: ClientConfig,
    own: PeerName,
    fingerprint: Fingerprint,
    cluster: String,
    limits: Limits,
    tuning: Tuning,
    incoming: tokio::sync::Mutex<mpsc::Receiver<Incoming>>,
    connections: AtomicUsize,
    client_connections: AtomicUsize,
    handshakes: AtomicUsize,
    local: SocketAddr,
}

impl Endpoint {
    /// Binds the socket and begins to accept. Must be called inside a tokio runtime.
    pub fn bind(config: EndpointConfig) -> Result<Self> {
        let EndpointConfig { bind, accepts, identity, limits, tuning, wan } = config;
        if accepts && identity.peer_name().role != Role::Node {
            return Err(Error::Invalid(format!("{} may not accept connections", identity.peer_name())));
        }
        if limits.frame_len_bytes_max > u32::MAX as usize / 2 {
            return Err(Error::Invalid("frames of 2 GiB and more are not possible".into()));
        }
        let transport = transport(&limits, &tuning)?;
        let mut client = ClientConfig::new(Arc::new(tls::client(&identity)?));
        client.transport_config(transport.clone());
        let server = if accepts { Some(server_config(&identity, &limits, transport)?) } else { None };
        let socket = socket::bind(bind, tuning.socket_buffer_bytes)?;
        let failed = |source| Error::Socket { address: bind, source };
        let mut socket = TokioRuntime.wrap_udp_socket(socket).map_err(failed)?;
        if let Some(side) = wan {
            socket = WanSocket::new(socket, side)?;
        }
        let mut quic = QuicEndpointConfig::new(Arc::new(ResetKey::of(&identity)));
        quic.cid_generator(|| Box::new(RandomIds::new()));
        quic.max_udp_payload_size(tuning.mtu_bytes_max.max(1472)).map_err(|error| Error::Invalid(error.to_string()))?;
        let quic =
            quinn::Endpoint::new_with_abstract_socket(quic, server, socket, Arc::new(TokioRuntime)).map_err(failed)?;
        let (accepted, incoming) = mpsc::channel(ACCEPT_QUEUE_MAX);
        let shared = Arc::new(Shared {
            local: quic.local_addr().map_err(failed)?,
            quic,
            client,
            own: identity.peer_name().clone(),
            fingerprint: identity.fingerprint(),
            cluster: identity.cluster().to_owned(),
            limits,
            tuning,
            incoming: tokio::sync::Mutex::new(incoming),
            connections: AtomicUsize::new(0),
            client_connections: AtomicUsize::new(0),
            handshakes: AtomicUsize::new(0),
        });
        let (alive, ended) = watch::channel(());
        if accepts {
            tokio::spawn(accept_connections(shared.clone(), accepted, ended));
        }
        Ok(Endpoint { shared, _alive: Arc::new(alive) })
    }

    /// The address bound.
    pub fn local_addr(&self) -> SocketAddr {
        self.shared.local
    }

    /// This member's own role and name.
    pub fn peer_name(&self) -> &PeerName {
        &self.shared.own
    }

    /// Connects to a node and checks that it is the one expected. The other side's verdict on our own
    /// certificate comes later, with the first answer on a channel.
    pub async fn connect(&self, address: SocketAddr, node: &str) -> Result<Connection> {
        let shared = &self.shared;
        let expected = PeerName::node(node);
        let failed = |problem: String| Error::Connect { node: node.into(), address, problem };
        let connecting = shared
            .quic
            .connect_with(shared.client.clone(), address, &expected.to_string())
            .map_err(|error| failed(error.to_string()))?;
        let quic = tokio::time::timeout(shared.limits.handshake_timeout, connecting)
            .await
            .map_err(|_| failed(format!("no answer within {:?}", shared.limits.handshake_timeout)))?
            .map_err(|error| failed(error.to_string()))?;
        let peer = shared.verified_peer(&quic).map_err(failed)?;
        if peer != expected {
            quic.close(REFUSED, b"not the node expected");
            return Err(Error::Refused(format!("{address} is {peer}, not {expected}")));
        }
        Ok(shared.connection(quic, peer))
    }

    /// The next channel that a peer has opened; `None` when the endpoint is closed or never accepts.
    pub async fn accept(&self) -> Option<Incoming> {
        self.shared.incoming.lock().await.recv().await
    }

    /// Accepted connections now open.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::Relaxed)
    }

    /// Closes all connections and waits, up to a second, until the peers have been told.
    pub async fn close(&self) {
        self.shared.quic.close(CLOSED, b"closed");
        let _ = tokio::time::timeout(Duration::from_secs(1), self.shared.quic.wait_idle()).await;
    }
}

impl Shared {
    fn verified_peer(&self, quic: &quinn::Connection) -> std::result::Result<PeerName, String> {
        let identity = quic.peer_identity().ok_or("the peer showed no certificate")?;
        let chain = identity.downcast::<Vec<CertificateDer<'static>>>().map_err(|_| "not a certificate")?;
        let (peer, cluster) = pki::verified_name(chain.first().ok_or("the peer showed no certificate")?)?;
        if cluster != self.cluster {
            return Err(format!("{peer} belongs to cluster {cluster:?}"));
        }
        Ok(peer)
    }

    fn connection(&self, quic: quinn::Connection, peer: PeerName) -> Connection {
        if peer.role == Role::Node {
            quic.set_receive_window(self.tuning.node_window_bytes.into());
        }
        let limits = ChannelLimits {
            frame_len_bytes_max: self.limits.frame_len_bytes_max,
            queue_frames_max: self.limits.queue_frames_max,
            queue_bytes_max: self.limits.queue_bytes_max,
        };
        Connection { quic, peer, limits, fingerprint: self.fingerprint, timeout: self.limits.handshake_timeout }
    }
}

/// A verified connection to a peer. Clones are handles; it ends when all handles and channels are gone.
#[derive(Clone, Debug)]
pub struct Connection {
    quic: quinn::Connection,
    peer: PeerName,
    limits: ChannelLimits,
    fingerprint: Fingerprint,
    timeout: Duration,
}

impl Connection {
    /// The peer's verified role and name.
    pub fn peer(&self) -> &PeerName {
        &self.peer
    }

    /// Where the peer is.
    pub fn remote_address(&self) -> SocketAddr {
        self.quic.remote_address()
    }

    /// Current estimate of the round trip.
    pub fn rtt(&self) -> Duration {
        self.quic.rtt()
    }

    /// Datagrams that the peer has sent so far, acknowledgements among them: whoever is asked something and is silent for
    /// much longer than a round trip is probably gone, long before the idle timeout says so.
    pub fn heard(&self) -> u64 {
        self.quic.stats().udp_rx.datagrams
    }

    /// Opens a channel. Frames may be sent at once; the peer's acceptance shows at the first receive.
    pub async fn open(&self, kind: ChannelKind) -> Result<(FrameSender, FrameReceiver)> {
        let open = tokio::time::timeout(self.timeout, self.quic.open_bi());
        let (send, receive) = open.await.map_err(|_| Error::Full("the connection's set of channels"))??;
        let first = Bytes::copy_from_slice(&hello::encode(kind, &self.fingerprint));
        Ok((
            FrameSender::spawn(send, first, self.limits),
            FrameReceiver::new(receive, self.limits, Some(self.fingerprint)),
        ))
    }

    /// Waits until the connection is gone and says why.
    pub async fn closed(&self) -> Error {
        self.quic.closed().await.into()
    }

    /// Whether the connection is gone.
    pub fn is_closed(&self) -> bool {
        self.quic.close_reason().is_some()
    }

    /// Ends the connection and all its channels at once.
    pub fn close(&self, reason: &str) {
        self.quic.close(CLOSED, reason.as_bytes());
    }

    /// Whether both are handles of one connection.
    pub fn is_same(&self, other: &Connection) -> bool {
        self.quic.stable_id() == other.quic.stable_id() && self.remote_address() == other.remote_address()
    }

    async fn accept(&self) -> Result<Incoming> {
        let (send, mut receive) = self.quic.accept_bi().await?;
        let mut hello = [0; HELLO_LEN];
        tokio::time::timeout(self.timeout, receive.read_exact(&mut hello))
            .await
            .map_err(|_| Error::Protocol("no hello in time".into()))?
            .map_err(|error| Error::Protocol(format!("no hello: {error}")))?;
        let kind = hello::decode(&hello, &self.fingerprint)?;
        let first = Bytes::copy_from_slice(&hello::encode(kind, &self.fingerprint));
        Ok(Incoming {
            peer: self.peer.clone(),
            kind,
            sender: FrameSender::spawn(send, first, self.limits),
            receiver: FrameReceiver::new(receive, self.limits, None),
            connection: self.clone(),
        })
    }
}

/// A channel opened by a peer.
#[derive(Debug)]
pub struct Incoming {
    /// Who opened it, verified.
    pub peer: PeerName,
    /// What for.
    pub kind: ChannelKind,
    /// Towards the peer.
    pub sender: FrameSender,
    /// From the peer.
    pub receiver: FrameReceiver,
    /// The connection it belongs to.
    pub connection: Connection,
}

/// Takes new connections as fast as the limits allow.
async fn accept_connections(shared: Arc<Shared>, accepted: mpsc::Sender<Incoming>, mut ended: watch::Receiver<()>) {
    let limits = &shared.limits;
    let mut rate = Rate::new(limits.handshakes_per_s_max.into());
    loop {
        let incoming = tokio::select! {
            incoming = shared.quic.accept() => incoming,
            _ = ended.changed() => return,
        };
        let Some(incoming) = incoming else { return };
        let busy = shared.handshakes.load(Ordering::Relaxed);
        let crowded = shared.connections.load(Ordering::Relaxed) + busy >= limits.connections_max;
        // Forged addresses may use up half of the allowance; from then on addresses must prove themselves first,
        // which costs us nothing to remember.
        let strained = busy >= limits.handshakes_max / 4 || rate.is_half_used();
        if busy >= limits.handshakes_max || crowded {
            tracing::debug!(address = %incoming.remote_address(), "connection refused: too many");
            incoming.refuse();
        } else if strained && incoming.may_retry() && !incoming.remote_address_validated() {
            let _ = incoming.retry();
        } else if !rate.take() {
            tracing::debug!(address = %incoming.remote_address(), "connection refused: too fast");
            incoming.refuse();
        } else {
            // Counted here: many may come before the first task runs.
            shared.handshakes.fetch_add(1, Ordering::Relaxed);
            tokio::spawn(serve(shared.clone(), incoming, accepted.clone(), ended.clone()));
        }
    }
}

/// A bucket that holds two seconds' worth, and is full at first: after a restart everybody returns at once.
struct Rate {
    per_s: f64,
    tokens: f64,
    at: Instant,
}

impl Rate {
    fn new(per_s: f64) -> Self {
        Rate { per_s, tokens: 2.0 * per_s, at: Instant::now() }
    }

    fn is_half_used(&mut self) -> bool {
        let now = Instant::now();
        let fresh = now.duration_since(self.at).as_secs_f64() * self.per_s;
        self.tokens = (self.tokens + fresh).min(2.0 * self.per_s);
        self.at = now;
        self.tokens < self.per_s
    }

    fn take(&mut self) -> bool {
        if self.tokens < 1.0 {
            return false;
        }
        self.tokens -= 1.0;
        true
    }
}

/// One of a count; taken off when dropped.
struct Counted<'a>(&'a AtomicUsize);

impl<'a> Counted<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Counted(count)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One accepted connection, from handshake to end.
async fn serve(
    shared: Arc<Shared>,
    incoming: quinn::Incoming,
    accepted: mpsc::Sender<Incoming>,
    mut ended: watch::Receiver<()>,
) {
    let address = incoming.remote_address();
    let handshake = Counted(&shared.handshakes);
    let connected = async { incoming.accept()?.await };
    let quic = match tokio::time::timeout(shared.limits.handshake_timeout, connected).await {
        Ok(Ok(quic)) => quic,
        Ok(Err(error)) => return tracing::debug!(%address, %error, "handshake failed"),
        Err(_) => return tracing::debug!(%address, "handshake took too long"),
    };
    let peer = match shared.verified_peer(&quic) {
        Ok(peer) => peer,
        Err(problem) => {
            tracing::warn!(%address, problem, "connection refused");
            return quic.close(REFUSED, problem.as_bytes());
        }
    };
    drop(handshake);
    let _counted = Counted::new(&shared.connections);
    let is_client = peer.role == Role::Client;
    let _client = is_client.then(|| Counted::new(&shared.client_connections));
    if is_client && shared.client_connections.load(Ordering::Relaxed) > shared.limits.client_connections_max {
        tracing::warn!(%address, %peer, "connection refused: too many clients");
        return quic.close(BUSY, b"too many clients");
    }
    let connection = shared.connection(quic, peer);
    tokio::select! {
        error = accept_channels(&connection, &accepted) => {
            let peer = &connection.peer;
            if connection.is_closed() {
                return tracing::debug!(%address, %peer, %error, "connection ended");
            }
            tracing::warn!(%address, %peer, %error, "connection dropped");
            connection.quic.close(BROKEN, error.to_string().as_bytes());
        }
        _ = ended.changed() => {}
    }
}

/// Hands over the channels of a connection until it ends or the peer breaks the rules.
async fn accept_channels(connection: &Connection, accepted: &mpsc::Sender<Incoming>) -> Error {
    loop {
        match connection.accept().await {
            Ok(incoming) => {
                if accepted.send(incoming).await.is_err() {
                    return Error::Lost("endpoint closed".into());
                }
            }
            Err(error) => return error,
        }
    }
}

fn server_config(identity: &Identity, limits: &Limits, transport: Arc<TransportConfig>) -> Result<ServerConfig> {
    let mut config = ServerConfig::with_crypto(Arc::new(tls::server(identity)?));
    config.transport_config(transport);
    config.max_incoming(limits.handshakes_max);
    // What may come before a handshake is looked at: one flight.
    config.incoming_buffer_size(64 << 10);
    config.incoming_buffer_size_total(8 << 20);
    Ok(config)
}

fn transport(limits: &Limits, tuning: &Tuning) -> Result<Arc<TransportConfig>> {
    let mut cubic = CubicConfig::default();
    cubic.initial_window(tuning.initial_window_bytes);
    let mut mtu = MtuDiscoveryConfig::default();
    mtu.upper_bound(tuning.mtu_bytes_max);
    let mut transport = TransportConfig::default();
    let idle = IdleTimeout::try_from(tuning.idle_timeout).map_err(|error| Error::Invalid(error.to_string()))?;
    // Most datagrams are answered by something that the acknowledgement can go with.
    let mut acknowledgements = AckFrequencyConfig::default();
    acknowledgements.ack_eliciting_threshold(ACK_AFTER);
    transport
        .ack_frequency_config(Some(acknowledgements))
        .max_idle_timeout(Some(idle))
        .keep_alive_interval(Some(tuning.keep_alive))
        .max_concurrent_bidi_streams(limits.channels_max.into())
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None)
        .stream_receive_window(tuning.node_window_bytes.into())
        // Until the peer has shown to be a node.
        .receive_window(tuning.client_window_bytes.into())
        .send_window(tuning.send_window_bytes)
        .initial_rtt(tuning.initial_rtt)
        .mtu_discovery_config((tuning.mtu_bytes_max > 1200).then_some(mtu))
        .congestion_controller_factory(Arc::new(cubic));
    Ok(Arc::new(transport))
}
