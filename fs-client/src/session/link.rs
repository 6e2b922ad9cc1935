//! One node: a connection that is kept alive once it was wanted, and the calls under way on it.
//!
//! Replies and events are handled on one task per connection, in the order in which they came; a caller wakes up only
//! after cache and clock know what its reply says.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use metadata::codec::{decode_to_client, encode_to_node};
use metadata::protocol::{CLIENT_CHANNEL_KIND, CLIENT_PROTOCOL_VERSION, Event, Reply, Request, ToClient, ToNode};
use net::{ChannelKind, Endpoint, FrameReceiver, FrameSender, TrySendError};
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use crate::config::NodeInfo;

const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// Handshakes take one or two round trips; what takes longer than this is probably down.
const CONNECT_PATIENCE: Duration = Duration::from_millis(1500);
/// A node that has calls to answer and sends nothing at all, not even an acknowledgement, for this and four round trips is not
/// asked any more while others live. Its connection may go on: it may only be busy.
const SILENCE: Duration = Duration::from_millis(600);
/// How often that is looked at; and one that is silent is sent something to acknowledge.
const LISTEN_INTERVAL: Duration = Duration::from_millis(200);
/// Attempts to connect to one node beside each other are begun this far apart at least.
const ATTEMPT_INTERVAL: Duration = Duration::from_millis(200);
/// Frames handled at one wake-up.
const BATCH_MAX: usize = 256;

/// Which connection to a node: grows with each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Generation(pub u64);

/// What a link tells its owner, always from the connection's own task.
pub trait Handler: Send + Sync + 'static {
    /// What a call expects, handed back with its reply.
    type Expect: Send;

    /// The node can be asked.
    fn handle_connected(&self, link: &Arc<Link<Self>>, generation: Generation)
    where
        Self: Sized;
    /// A reply, before its caller sees it.
    fn handle_reply(&self, link: &Arc<Link<Self>>, generation: Generation, expect: Self::Expect, reply: &Reply)
    where
        Self: Sized;
    /// Calls are under way and nothing comes: something should be sent that the node must acknowledge.
    fn handle_silence(&self, link: &Arc<Link<Self>>)
    where
        Self: Sized;
    /// An event.
    fn handle_event(&self, link: &Arc<Link<Self>>, generation: Generation, event: Event)
    where
        Self: Sized;
    /// The connection is gone.
    fn handle_lost(&self, link: &Arc<Link<Self>>, generation: Generation)
    where
        Self: Sized;
}

/// Why a call brought no reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CallError {
    /// There is no connection; nothing was sent.
    NotConnected(String),
    /// The connection was lost or silent; the node may have got the request.
    Lost(String),
}

impl std::fmt::Display for CallError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            CallError::NotConnected(why) | CallError::Lost(why) => f.write_str(why),
        }
    }
}

/// See the module.
pub struct Link<H: Handler> {
    /// The node.
    pub node: NodeInfo,
    endpoint: Endpoint,
    state: Mutex<State<H>>,
    wanted: Notify,
    vouched: Notify,
    up: watch::Sender<Option<u64>>,
    next_request: AtomicU64,
}

struct State<H: Handler> {
    live: Option<Live>,
    calls: BTreeMap<u64, Call<H::Expect>>,
    generation: u64,
    is_wanted: bool,
    closed: bool,
    /// Attempts to connect that failed since the last success.
    failures: u32,
    /// Since when it tries to connect.
    trying_since: Option<Instant>,
    /// Connected, but nothing comes.
    is_silent: bool,
    /// It was connected, or should have been by now.
    is_doubtful: bool,
    last_error: String,
}

#[derive(Clone)]
struct Live {
    generation: Generation,
    sender: FrameSender,
    connection: net::Connection,
}

struct Call<E> {
    expect: E,
    reply: oneshot::Sender<Reply>,
}

impl<H: Handler> Link<H> {
    /// A link that connects when it is first wanted.
    pub fn spawn(node: NodeInfo, endpoint: Endpoint, handler: Arc<H>) -> Arc<Link<H>> {
        let link = Arc::new(Link {
            node,
            endpoint,
            state: Mutex::new(State {
                live: None,
                calls: BTreeMap::new(),
                generation: 0,
                is_wanted: false,
                closed: false,
                failures: 0,
                trying_since: None,
                is_silent: false,
                is_doubtful: false,
                last_error: "not connected yet".into(),
            }),
            wanted: Notify::new(),
            vouched: Notify::new(),
            up: watch::channel(None).0,
            next_request: AtomicU64::new(1),
        });
        tokio::spawn(run(link.clone(), handler));
        link
    }

    /// False if the node could not be reached, or not yet in a time that should have sufficed, or its connection was lost, or
    /// it is silent.
    pub fn may_be_up(&self) -> bool {
        let state = self.state.lock();
        let patient = || state.trying_since.is_none_or(|since| since.elapsed() < CONNECT_PATIENCE);
        if state.live.is_some() { !state.is_silent } else { !state.is_doubtful && patient() }
    }

    /// The present connection.
    pub fn generation(&self) -> Option<Generation> {
        self.state.lock().live.as_ref().map(|live| live.generation)
    }

    /// Connects if not connected.
    pub fn want(&self) {
        let mut state = self.state.lock();
        if !state.is_wanted {
            state.is_wanted = true;
            state.trying_since = Some(Instant::now());
            drop(state);
            self.wanted.notify_one();
        }
    }

    /// Another node says that this one works: what was sent to it while it did not is not waited for.
    pub fn vouch(&self) {
        let state = self.state.lock();
        if state.is_wanted && state.live.is_none() {
            drop(state);
            self.vouched.notify_one();
        }
    }

    /// Ends the link for good.
    pub fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        let live = state.live.take();
        state.calls.clear();
        drop(state);
        if let Some(live) = live {
            live.connection.close("closed");
        }
        self.wanted.notify_one();
        self.up.send_replace(None);
    }

    /// Waits for a connection, at most until `until` and not longer than is reasonable while other nodes live.
    pub async fn connected(&self, until: Instant) -> Result<(), CallError> {
        self.want();
        let mut up = self.up.subscribe();
        let failures = self.state.lock().failures;
        let wait = async {
            loop {
                if up.borrow_and_update().is_some() {
                    return Ok(());
                }
                // Each failed attempt is told as well, so that nobody waits for a dead node while others live.
                if up.changed().await.is_err() || self.state.lock().failures > failures {
                    return Err(self.not_connected());
                }
            }
        };
        let until = until.min(Instant::now() + CONNECT_PATIENCE);
        match tokio::time::timeout_at(until.into(), wait).await {
            Ok(result) => result,
            Err(_) => Err(self.not_connected()),
        }
    }

    /// Sends a request and waits for its reply, at most until `until`.
    pub async fn call(&self, body: Request, expect: H::Expect, until: Instant) -> Result<Reply, CallError> {
        if self.generation().is_none() {
            self.connected(until).await?;
        }
        let request = self.next_request.fetch_add(1, Ordering::Relaxed);
        let frame = encode_to_node(&ToNode { request, body });
        let (reply, answered) = oneshot::channel();
        let sender = {
            let mut state = self.state.lock();
            let Some(live) = &state.live else {
                drop(state);
                return Err(self.not_connected());
            };
            let sender = live.sender.clone();
            state.calls.insert(request, Call { expect, reply });
            sender
        };
        let _withdraw = Withdraw { link: self, request };
        let answer = async {
            send(&sender, frame).await.map_err(|error| CallError::NotConnected(error.to_string()))?;
            answered.await.map_err(|_| CallError::Lost("the connection was lost".into()))
        };
        match tokio::time::timeout_at(until.into(), answer).await {
            Ok(result) => result,
            Err(_) => Err(CallError::Lost("no answer in time".into())),
        }
    }

    /// Sends a request whose reply only the handler wants. False if there is no connection or no room.
    pub fn post(&self, body: Request, expect: H::Expect) -> bool {
        let request = self.next_request.fetch_add(1, Ordering::Relaxed);
        let frame = encode_to_node(&ToNode { request, body });
        let mut state = self.state.lock();
        let Some(live) = &state.live else { return false };
        let is_sent = live.sender.try_send(frame).is_ok();
        if is_sent {
            state.calls.insert(request, Call { expect, reply: oneshot::channel().0 });
        }
        is_sent
    }

    fn not_connected(&self) -> CallError {
        CallError::NotConnected(format!("node {}: {}", self.node.name, self.state.lock().last_error))
    }
}

async fn send(sender: &FrameSender, frame: Bytes) -> net::Result<()> {
    match sender.try_send(frame) {
        Ok(()) => Ok(()),
        Err(TrySendError::Full(frame)) => sender.send(frame).await,
        Err(TrySendError::TooLong) => Err(net::Error::Encode("the request exceeds the frame limit".into())),
        Err(TrySendError::Closed) => Err(net::Error::Lost("closed".into())),
    }
}

/// Nobody waits for the reply any more; it is still handled if it comes, so what it expects stays until then.
struct Withdraw<'a, H: Handler> {
    link: &'a Link<H>,
    request: u64,
}

impl<H: Handler> Drop for Withdraw<'_, H> {
    fn drop(&mut self) {
        self.link.state.lock().calls.remove(&self.request);
    }
}

async fn run<H: Handler>(link: Arc<Link<H>>, handler: Arc<H>) {
    let mut pause = PAUSE_MIN;
    loop {
        let (closed, is_wanted) = {
            let state = link.state.lock();
            (state.closed, state.is_wanted)
        };
        if closed {
            return;
        }
        if !is_wanted {
            link.wanted.notified().await;
            continue;
        }
        match connect_soon(&link).await {
            Ok((sender, receiver, connection)) => {
                pause = PAUSE_MIN;
                serve(&link, &handler, sender, receiver, connection).await;
            }
            Err(error) => {
                link.become_unreachable(&error);
                let _slept_or_vouched = tokio::time::timeout(pause, link.vouched.notified()).await;
                pause = (pause * 2).min(PAUSE_MAX);
            }
        }
    }
}

type Channel = (FrameSender, FrameReceiver, net::Connection);

/// One attempt, and another beside it when somebody says that the node works: a handshake whose first datagrams met a dead node
/// repeats them at growing intervals only.
async fn connect_soon<H: Handler>(link: &Arc<Link<H>>) -> net::Result<Channel> {
    let mut attempts = JoinSet::new();
    attempts.spawn(connect(link.clone()));
    let mut newest = Instant::now();
    loop {
        tokio::select! {
            ended = attempts.join_next() => match ended {
                Some(Ok(Err(_))) if !attempts.is_empty() => {}
                Some(Ok(result)) => return result,
                Some(Err(_)) | None => return Err(net::Error::Lost("the attempt to connect was ended".into())),
            },
            () = link.vouched.notified() => {
                if newest.elapsed() >= ATTEMPT_INTERVAL {
                    let attempt = tokio::time::timeout(CONNECT_PATIENCE, connect(link.clone()));
                    let too_long = net::Error::Lost("no answer to another attempt to connect".into());
                    attempts.spawn(async move { attempt.await.unwrap_or(Err(too_long)) });
                    newest = Instant::now();
                }
            }
        }
    }
}

async fn connect<H: Handler>(link: Arc<Link<H>>) -> net::Result<Channel> {
    let address = &link.node.address;
    let failed = |source| net::Error::Resolve { address: address.clone(), source };
    let mut addresses = tokio::net::lookup_host(address.as_str()).await.map_err(failed)?;
    let found = addresses.next().ok_or_else(|| failed(std::io::Error::other("no address")))?;
    let connection = link.endpoint.connect(found, &link.node.name).await?;
    let version = u8::try_from(CLIENT_PROTOCOL_VERSION).unwrap_or(u8::MAX);
    let (sender, receiver) = connection.open(ChannelKind::new(CLIENT_CHANNEL_KIND, version)).await?;
    Ok((sender, receiver, connection))
}

/// Handles one connection until it ends.
async fn serve<H: Handler>(
    link: &Arc<Link<H>>,
    handler: &Arc<H>,
    sender: FrameSender,
    mut receiver: FrameReceiver,
    connection: net::Connection,
) {
    let Some(generation) = link.become_live(sender, connection.clone()) else {
        connection.close("closed");
        return;
    };
    handler.handle_connected(link, generation);
    let why = tokio::select! {
        biased;
        why = receive(link, handler, generation, &mut receiver) => why,
        never = listen(link, handler, &connection) => match never {},
    };
    connection.close("done");
    link.become_lost(&why);
    handler.handle_lost(link, generation);
}

/// Handles what comes until the channel ends; says why.
async fn receive<H: Handler>(
    link: &Arc<Link<H>>,
    handler: &Arc<H>,
    generation: Generation,
    receiver: &mut FrameReceiver,
) -> String {
    let mut frames = Vec::with_capacity(BATCH_MAX);
    loop {
        match receiver.recv_many(&mut frames, BATCH_MAX).await {
            Ok(0) => return "the node has ended the channel".to_owned(),
            Ok(_) => {}
            Err(error) => return error.to_string(),
        }
        let mut bad = None;
        for frame in frames.drain(..) {
            match decode_to_client(&frame) {
                Ok(ToClient::Reply { request, body }) => link.complete(handler, generation, request, body),
                Ok(ToClient::Event(event)) => handler.handle_event(link, generation, event),
                Err(error) => bad = Some(error.to_string()),
            }
        }
        if let Some(error) = bad {
            return error;
        }
    }
}

/// Notices a node that is silent while calls are under way. Never ends.
async fn listen<H: Handler>(link: &Arc<Link<H>>, handler: &Arc<H>, connection: &net::Connection) -> Infallible {
    let (mut heard, mut since) = (connection.heard(), Instant::now());
    let mut ticks = tokio::time::interval(LISTEN_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let asleep = Instant::now();
        ticks.tick().await;
        let now = connection.heard();
        // Who has not been awake itself knows nothing.
        let is_owed = link.has_calls() && asleep.elapsed() < 2 * LISTEN_INTERVAL;
        if now != heard {
            (heard, since) = (now, Instant::now());
            link.note_silence(false);
        } else if !is_owed {
            since = Instant::now();
        } else if since.elapsed() >= SILENCE + 4 * connection.rtt() {
            link.note_silence(true);
            // Who asks it nevertheless, as there is nobody else, has as long.
            since = Instant::now();
        } else {
            handler.handle_silence(link);
        }
    }
}

impl<H: Handler> Link<H> {
    fn become_live(&self, sender: FrameSender, connection: net::Connection) -> Option<Generation> {
        let mut state = self.state.lock();
        if state.closed {
            return None;
        }
        state.generation += 1;
        state.failures = 0;
        (state.is_silent, state.is_doubtful) = (false, false);
        let generation = Generation(state.generation);
        state.live = Some(Live { generation, sender, connection });
        drop(state);
        self.up.send_replace(Some(generation.0));
        tracing::info!(peer = self.node.name, "connected");
        Some(generation)
    }

    fn has_calls(&self) -> bool {
        !self.state.lock().calls.is_empty()
    }

    /// Whether nothing comes. Who waits for an answer then shall ask others.
    fn note_silence(&self, is_silent: bool) {
        let mut state = self.state.lock();
        let calls = if is_silent { std::mem::take(&mut state.calls) } else { BTreeMap::new() };
        let is_news = std::mem::replace(&mut state.is_silent, is_silent) != is_silent;
        drop(state);
        if is_news {
            tracing::info!(peer = self.node.name, is_silent, calls = calls.len(), "the node's silence");
        }
    }

    fn become_lost(&self, why: &str) {
        let mut state = self.state.lock();
        state.live = None;
        state.trying_since = Some(Instant::now());
        state.is_doubtful = true;
        state.last_error = why.to_owned();
        // Dropping the calls tells their callers.
        let calls = std::mem::take(&mut state.calls);
        drop(state);
        self.up.send_replace(None);
        tracing::info!(peer = self.node.name, why, calls = calls.len(), "connection lost");
    }

    fn become_unreachable(&self, error: &net::Error) {
        let mut state = self.state.lock();
        state.failures = state.failures.saturating_add(1);
        state.is_doubtful = true;
        state.last_error = error.to_string();
        let first = state.failures == 1;
        drop(state);
        self.up.send_replace(None);
        if first {
            tracing::warn!(peer = self.node.name, %error, "cannot connect");
        }
    }

    fn complete(self: &Arc<Self>, handler: &Arc<H>, generation: Generation, request: u64, reply: Reply) {
        let call = self.state.lock().calls.remove(&request);
        // A reply to a call that has been given up teaches nothing that is needed.
        if let Some(Call { expect, reply: caller }) = call {
            handler.handle_reply(self, generation, expect, &reply);
            let _ = caller.send(reply);
        }
    }
}
