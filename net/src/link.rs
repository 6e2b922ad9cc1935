//! A channel to one node that is kept alive. Sending never blocks; what cannot be sent is dropped and counted.

use std::{
    collections::VecDeque,
    hash::{BuildHasher, RandomState},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use crate::{
    ChannelKind, Connection, Endpoint, Error, FrameReceiver, FrameSender, Incoming, PeerName, Result, channel::Refused,
};

/// How a [`PeerLink`] behaves.
#[derive(Clone, Debug)]
pub struct LinkConfig {
    /// Frames kept while there is no connection; the oldest give way. Default 1,024.
    pub backlog_frames_max: usize,
    /// Bytes kept while there is no connection; the oldest give way. Default 4 MiB.
    pub backlog_bytes_max: usize,
    /// An attempt to connect is given up after so long: after a cut a new one is faster than the old one's
    /// next retransmission. Default 2 s.
    pub connect_timeout: Duration,
    /// First pause between attempts to connect. Default 50 ms.
    pub pause_min: Duration,
    /// Longest pause between attempts. Default 1 s.
    pub pause_max: Duration,
}

impl Default for LinkConfig {
    fn default() -> Self {
        LinkConfig {
            backlog_frames_max: 1024,
            backlog_bytes_max: 4 << 20,
            connect_timeout: Duration::from_secs(2),
            pause_min: Duration::from_millis(50),
            pause_max: Duration::from_secs(1),
        }
    }
}

/// State of a link, for status displays and metrics.
#[derive(Clone, Debug, Default)]
pub struct LinkStatus {
    /// Since when it is connected.
    pub connected_since: Option<Instant>,
    /// Estimate of the round trip, if connected.
    pub rtt: Option<Duration>,
    /// How often it has connected.
    pub connects: u64,
    /// Frames dropped because there was no connection or the peer was too slow.
    pub dropped: u64,
    /// Frames and bytes waiting.
    pub queued: (usize, usize),
    /// Why it is not connected.
    pub last_error: Option<String>,
}

/// A link to one node, in both directions, over one connection at a time. Dropping it closes the connection.
///
/// Either it dials ([`PeerLink::dial`]) or it is fed with channels that the other side opened
/// ([`PeerLink::passive`], [`PeerLink::attach`]). One connection for both directions needs fewer datagrams than
/// two: let the smaller name dial.
///
/// Within one connection frames arrive in order and complete. When it is lost, frames may be lost; none is
/// ever doubled or reordered. The protocol above sends again.
#[derive(Debug)]
pub struct PeerLink {
    shared: Arc<Shared>,
    /// Ends the task when dropped.
    _alive: watch::Sender<()>,
}

/// Frames that arrive on a [`PeerLink`], across connections.
#[derive(Debug)]
pub struct LinkReceiver {
    shared: Arc<Shared>,
    current: Option<FrameReceiver>,
    ended: watch::Receiver<()>,
}

#[derive(Debug)]
struct Shared {
    node: String,
    config: LinkConfig,
    state: Mutex<State>,
    dropped: AtomicU64,
    /// Wakes the [`LinkReceiver`] for a new connection.
    next: Notify,
    /// Ends an attempt to connect, or the pause after one: a new one is to be made.
    redial: Notify,
}

#[derive(Debug, Default)]
struct State {
    current: Option<(FrameSender, Connection)>,
    backlog: VecDeque<Bytes>,
    backlog_bytes: usize,
    since: Option<Instant>,
    connects: u64,
    last_error: Option<String>,
    /// The newest connection's frames, until the [`LinkReceiver`] takes them.
    receiver: Option<FrameReceiver>,
    /// There is no [`LinkReceiver`] any more.
    unread: bool,
}

impl PeerLink {
    /// A link that dials `address` (`host:port`), expects `node` there and opens a channel of `kind`.
    pub fn dial(
        endpoint: &Endpoint,
        address: impl Into<String>,
        node: impl Into<String>,
        kind: ChannelKind,
        config: LinkConfig,
    ) -> (PeerLink, LinkReceiver) {
        let (link, receiver, ended) = PeerLink::new(node.into(), config);
        tokio::spawn(run(link.shared.clone(), endpoint.clone(), address.into(), kind, ended));
        (link, receiver)
    }

    /// A link whose connections are opened by the other side; see [`PeerLink::attach`].
    pub fn passive(node: impl Into<String>, config: LinkConfig) -> (PeerLink, LinkReceiver) {
        let (link, receiver, _) = PeerLink::new(node.into(), config);
        (link, receiver)
    }

    /// Takes over a channel opened by the peer, in place of the one before. False, and the connection is
    /// closed, if the peer is not this link's node.
    pub fn attach(&self, incoming: Incoming) -> bool {
        let Incoming { peer, sender, receiver, connection, .. } = incoming;
        if peer != PeerName::node(&self.shared.node) {
            tracing::warn!(peer = self.shared.node, found = %peer, "channel of another member refused");
            connection.close("not the node expected");
            return false;
        }
        self.shared.become_connected(sender, receiver, &connection);
        let (shared, mut ended) = (self.shared.clone(), self._alive.subscribe());
        tokio::spawn(async move {
            tokio::select! {
                error = connection.closed() => shared.become_disconnected(&connection, &error),
                _ = ended.changed() => connection.close("link dropped"),
            }
        });
        true
    }

    /// Sends a frame, or keeps it until there is a connection. Never blocks. False if a frame was dropped: this
    /// one because the queue is full, or, without a connection, the oldest in favour of this one.
    pub fn send(&self, frame: Bytes) -> bool {
        let mut state = self.shared.state.lock();
        let frame = match &state.current {
            None => frame,
            Some((sender, _)) => match sender.offer(frame) {
                Ok(()) => return true,
                // The connection's end has not been noticed yet.
                Err(Refused::Closed(frame)) => frame,
                Err(Refused::Full(_) | Refused::TooLong) => {
                    self.shared.dropped.fetch_add(1, Ordering::Relaxed);
                    return false;
                }
            },
        };
        let dropped = state.keep(frame, &self.shared.config);
        self.shared.dropped.fetch_add(dropped, Ordering::Relaxed);
        dropped == 0
    }

    /// The peer is known to be there, as of now: a link that dials and is not connected begins anew at once. An attempt that
    /// met a dead peer would go on in vain for seconds.
    pub fn redial(&self) {
        self.shared.redial.notify_waiters();
    }

    /// The node at the other end.
    pub fn node(&self) -> &str {
        &self.shared.node
    }

    /// Whether there is a connection now.
    pub fn is_connected(&self) -> bool {
        self.shared.state.lock().current.is_some()
    }

    /// State and counters.
    pub fn status(&self) -> LinkStatus {
        let state = self.shared.state.lock();
        LinkStatus {
            connected_since: state.since,
            rtt: state.current.as_ref().map(|(_, connection)| connection.rtt()),
            connects: state.connects,
            dropped: self.shared.dropped.load(Ordering::Relaxed),
            queued: match &state.current {
                Some((sender, _)) => sender.queued(),
                None => (state.backlog.len(), state.backlog_bytes),
            },
            last_error: state.last_error.clone(),
        }
    }

    fn new(node: String, config: LinkConfig) -> (PeerLink, LinkReceiver, watch::Receiver<()>) {
        let (alive, ended) = watch::channel(());
        let (state, dropped, next, redial) = (Mutex::default(), AtomicU64::new(0), Notify::new(), Notify::new());
        let shared = Arc::new(Shared { node, config, state, dropped, next, redial });
        let receiver = LinkReceiver { shared: shared.clone(), current: None, ended: ended.clone() };
        (PeerLink { shared, _alive: alive }, receiver, ended)
    }
}

impl LinkReceiver {
    /// Waits for at least one frame and appends what is there, up to `count_max`; returns how many, 0 when the
    /// link has been dropped. Safe to cancel.
    pub async fn recv_many(&mut self, frames: &mut Vec<Bytes>, count_max: usize) -> usize {
        loop {
            let Some(current) = &mut self.current else {
                self.current = self.shared.state.lock().receiver.take();
                if self.current.is_none() {
                    tokio::select! {
                        () = self.shared.next.notified() => {}
                        _ = self.ended.changed() => return 0,
                    }
                }
                continue;
            };
            match current.recv_many(frames, count_max).await {
                Ok(count) if count > 0 => return count,
                Ok(_) => self.current = None,
                Err(error) => {
                    tracing::debug!(%error, "link interrupted");
                    self.current = None;
                }
            }
        }
    }

    /// The next frame; `None` when the link has been dropped. Safe to cancel.
    pub async fn recv(&mut self) -> Option<Bytes> {
        if let Some(frame) = self.current.as_mut().and_then(FrameReceiver::try_recv) {
            return Some(frame);
        }
        let mut frames = Vec::with_capacity(1);
        self.recv_many(&mut frames, 1).await;
        frames.pop()
    }
}

impl Drop for LinkReceiver {
    fn drop(&mut self) {
        // Unread frames would fill the peer's queue: tell it to stop instead.
        let mut state = self.shared.state.lock();
        state.unread = true;
        state.receiver = None;
    }
}

impl Shared {
    fn become_connected(&self, sender: FrameSender, receiver: FrameReceiver, connection: &Connection) {
        let mut state = self.state.lock();
        state.backlog_bytes = 0;
        for frame in std::mem::take(&mut state.backlog) {
            if sender.try_send(frame).is_err() {
                self.dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
        state.since = Some(Instant::now());
        state.connects += 1;
        state.last_error = None;
        state.receiver = (!state.unread).then_some(receiver);
        let previous = state.current.replace((sender, connection.clone()));
        drop(state);
        if let Some((_, previous)) = previous {
            previous.close("replaced by a newer connection");
        }
        self.next.notify_one();
        tracing::info!(peer = self.node, address = %connection.remote_address(), "link connected");
    }

    fn become_disconnected(&self, connection: &Connection, error: &Error) {
        let mut state = self.state.lock();
        // An older connection's end does not concern the one in use.
        if state.current.as_ref().is_some_and(|(_, current)| current.is_same(connection)) {
            state.current = None;
            state.since = None;
            state.last_error = Some(error.to_string());
            drop(state);
            tracing::info!(peer = self.node, %error, "link lost");
        }
    }
}

impl State {
    /// Keeps a frame for later; returns how many were dropped for it.
    fn keep(&mut self, frame: Bytes, config: &LinkConfig) -> u64 {
        self.backlog_bytes += frame.len();
        self.backlog.push_back(frame);
        let mut dropped = 0;
        while self.backlog.len() > config.backlog_frames_max || self.backlog_bytes > config.backlog_bytes_max {
            let Some(oldest) = self.backlog.pop_front() else { break };
            self.backlog_bytes -= oldest.len();
            dropped += 1;
        }
        dropped
    }
}

/// The task of a dialling link.
async fn run(
    shared: Arc<Shared>,
    endpoint: Endpoint,
    address: String,
    kind: ChannelKind,
    mut ended: watch::Receiver<()>,
) {
    let seed = RandomState::new().hash_one(&address);
    let mut failures = 0u32;
    loop {
        let error = tokio::select! {
            result = establish(&shared, &endpoint, &address, kind) => match result {
                Ok(connection) => {
                    failures = 0;
                    let error = tokio::select! {
                        error = connection.closed() => error,
                        _ = ended.changed() => return connection.close("link dropped"),
                    };
                    shared.become_disconnected(&connection, &error);
                    error
                }
                Err(error) => error,
            },
            () = shared.redial.notified() => continue,
            _ = ended.changed() => return,
        };
        failures += 1;
        if failures == 1 || failures.is_power_of_two() {
            tracing::debug!(peer = shared.node, %error, failures, "link not connected");
        }
        shared.state.lock().last_error = Some(error.to_string());
        let pause = pause(&shared.config, failures, seed);
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = shared.redial.notified() => {}
            _ = ended.changed() => return,
        }
    }
}

async fn establish(shared: &Shared, endpoint: &Endpoint, address: &str, kind: ChannelKind) -> Result<Connection> {
    let address = resolve(address, endpoint.local_addr()).await?;
    let timeout = shared.config.connect_timeout;
    let connect = async {
        let connection = endpoint.connect(address, &shared.node).await?;
        let (sender, mut receiver) = connection.open(kind).await?;
        // Only the acceptor's answer shows that it accepts our certificate.
        receiver.established().await?;
        Ok((connection, sender, receiver))
    };
    let (connection, sender, receiver) = tokio::time::timeout(timeout, connect).await.unwrap_or_else(|_| {
        let problem = format!("no answer within {timeout:?}");
        Err(Error::Connect { node: shared.node.clone(), address, problem })
    })?;
    shared.become_connected(sender, receiver, &connection);
    Ok(connection)
}

/// Resolves `host:port` to an address that a socket bound to `local` can reach.
async fn resolve(address: &str, local: SocketAddr) -> Result<SocketAddr> {
    let failed = |source| Error::Resolve { address: address.into(), source };
    let mut found = tokio::net::lookup_host(address).await.map_err(failed)?;
    found
        .find(|address| local.is_ipv6() || address.is_ipv4())
        .ok_or_else(|| failed(std::io::Error::new(std::io::ErrorKind::NotFound, "no address of the socket's family")))
}

/// Doubles with each failure; half of it is random, so that peers do not return in step.
fn pause(config: &LinkConfig, failures: u32, seed: u64) -> Duration {
    let doubled = config.pause_min.saturating_mul(1 << (failures - 1).min(16)).min(config.pause_max);
    let chance = (crate::mix(seed.wrapping_add(failures.into())) >> 11) as f64 / (1u64 << 53) as f64;
    doubled.mul_f64(0.5 + 0.5 * chance)
}
