//! One client's connection: the ordered queue towards it, and what it has under way.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::SyncSender;

use metadata::codec;
use metadata::protocol::{Reply, ToClient};
use net::{Connection, FrameSender, TrySendError};
use tokio::sync::Notify;

/// A connected client. All that is sent to it goes through [`Client::push`], in the order of those calls.
pub struct Client {
    number: u64,
    name: String,
    outlet: Outlet,
    cut_off: AtomicBool,
    requests: AtomicUsize,
    request_bytes: AtomicUsize,
    freed: Notify,
}

enum Outlet {
    Channel {
        sender: FrameSender,
        connection: Connection,
    },
    /// This node itself; only replies are of interest.
    Local(SyncSender<Reply>),
    #[cfg(test)]
    Test(parking_lot::Mutex<Vec<ToClient>>),
}

/// What one client may have under way.
#[derive(Clone, Copy, Debug)]
pub struct InFlightMax {
    /// Requests.
    pub requests: usize,
    /// Their bytes.
    pub bytes: usize,
}

impl Client {
    /// A client behind a channel. `number` is this connection's own.
    pub fn new(number: u64, name: String, sender: FrameSender, connection: Connection) -> Arc<Client> {
        Client::over(number, name, Outlet::Channel { sender, connection })
    }

    /// This node itself.
    pub fn local(number: u64, replies: SyncSender<Reply>) -> Arc<Client> {
        Client::over(number, "local".into(), Outlet::Local(replies))
    }

    fn over(number: u64, name: String, outlet: Outlet) -> Arc<Client> {
        Arc::new(Client {
            number,
            name,
            outlet,
            cut_off: AtomicBool::new(false),
            requests: AtomicUsize::new(0),
            request_bytes: AtomicUsize::new(0),
            freed: Notify::new(),
        })
    }

    /// Tells connections apart.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// The name in its certificate.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Queues a message. A client that does not read is cut off: what it misses it could never make up.
    pub fn push(&self, message: &ToClient) {
        match &self.outlet {
            Outlet::Channel { sender, connection } => {
                if self.is_cut_off() {
                    return;
                }
                match sender.try_send(codec::encode_to_client(message)) {
                    Ok(()) => {}
                    Err(TrySendError::Closed) => self.cut_off.store(true, Ordering::Relaxed),
                    Err(TrySendError::Full(_) | TrySendError::TooLong) => {
                        self.cut_off.store(true, Ordering::Relaxed);
                        tracing::warn!(client = self.name, "cutting off a client that does not read");
                        connection.close("too much unread");
                    }
                }
            }
            Outlet::Local(replies) => {
                if let ToClient::Reply { body, .. } = message {
                    let _ = replies.try_send(body.clone());
                }
            }
            #[cfg(test)]
            Outlet::Test(messages) => messages.lock().push(message.clone()),
        }
    }

    /// Nothing reaches it from now on: its connection has ended.
    pub fn cut_off(&self) {
        self.cut_off.store(true, Ordering::Relaxed);
    }

    /// True if nothing reaches it any more.
    pub fn is_cut_off(&self) -> bool {
        self.cut_off.load(Ordering::Relaxed)
    }

    /// Takes a request in; its ticket answers it. The caller is the only one that admits for this client.
    pub async fn admit(self: &Arc<Client>, request: u64, bytes: usize, max: InFlightMax) -> Ticket {
        loop {
            let freed = self.freed.notified();
            let requests = self.requests.load(Ordering::Acquire);
            let held = self.request_bytes.load(Ordering::Acquire);
            if requests == 0 || (requests < max.requests && held + bytes <= max.bytes) {
                break;
            }
            // Created before the look at the counters: a wake-up in between is not lost.
            freed.await;
        }
        self.requests.fetch_add(1, Ordering::AcqRel);
        self.request_bytes.fetch_add(bytes, Ordering::AcqRel);
        Ticket { client: self.clone(), request, bytes }
    }
}

impl Client {
    /// A ticket for this node's own request.
    pub fn local_ticket(self: &Arc<Client>) -> Ticket {
        self.requests.fetch_add(1, Ordering::AcqRel);
        Ticket { client: self.clone(), request: 0, bytes: 0 }
    }
}

/// The clients connected to this node.
pub struct Clients {
    connected: AtomicUsize,
    connected_max: usize,
    numbers: AtomicU64,
}

impl Clients {
    /// None yet.
    pub fn new(connected_max: usize) -> Clients {
        Clients { connected: AtomicUsize::new(0), connected_max, numbers: AtomicU64::new(0) }
    }

    /// Takes one more in, if there is room.
    pub fn admit(&self) -> bool {
        let admitted = self.connected.fetch_add(1, Ordering::AcqRel) < self.connected_max;
        if !admitted {
            self.release();
        }
        admitted
    }

    /// One is gone.
    pub fn release(&self) {
        self.connected.fetch_sub(1, Ordering::AcqRel);
    }

    /// A number for a connection.
    pub fn next_number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    /// How many are connected.
    pub fn connected(&self) -> usize {
        self.connected.load(Ordering::Relaxed)
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Client({}, {})", self.number, self.name)
    }
}

/// A request under way. Dropped without an answer, the client asks again.
#[derive(Debug)]
pub struct Ticket {
    client: Arc<Client>,
    request: u64,
    bytes: usize,
}

impl Ticket {
    /// Answers.
    pub fn reply(self, body: Reply) {
        self.client.push(&ToClient::Reply { request: self.request, body });
    }

    /// Who asked.
    pub fn client(&self) -> &Arc<Client> {
        &self.client
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.client.requests.fetch_sub(1, Ordering::AcqRel);
        self.client.request_bytes.fetch_sub(self.bytes, Ordering::AcqRel);
        self.client.freed.notify_waiters();
    }
}

#[cfg(test)]
impl Client {
    /// A client whose messages are kept.
    pub fn test(number: u64) -> Arc<Client> {
        Client::over(number, "test".into(), Outlet::Test(parking_lot::Mutex::default()))
    }

    /// What has been pushed since the last call.
    pub fn taken(&self) -> Vec<ToClient> {
        match &self.outlet {
            Outlet::Test(messages) => std::mem::take(&mut *messages.lock()),
            Outlet::Channel { .. } | Outlet::Local(_) => Vec::new(),
        }
    }

    /// A ticket without limits.
    pub fn ticket(self: &Arc<Client>, request: u64) -> Ticket {
        self.requests.fetch_add(1, Ordering::AcqRel);
        Ticket { client: self.clone(), request, bytes: 0 }
    }
}
