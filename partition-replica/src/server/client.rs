//! One client's connection: the ordered queue towards it, and what it has under way.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::SyncSender;

use metadata::codec;
use metadata::operate::OPERATOR;
use metadata::protocol::{Reply, ToClient};
use net::{Connection, FrameSender, PeerName, Role, TrySendError};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// A connected client. All that is sent to it goes through [`Client::push`], in the order of those calls.
pub struct Client {
    number: u64,
    name: String,
    is_operator: bool,
    outlet: Outlet,
    cut_off: AtomicBool,
    updates: InFlight,
    others: InFlight,
    freed: Notify,
}

/// What a client has under way of one kind.
#[derive(Default)]
struct InFlight {
    requests: AtomicUsize,
    bytes: AtomicUsize,
}

impl InFlight {
    fn has_room(&self, bytes: usize, max: InFlightMax) -> bool {
        let (requests, held) = (self.requests.load(Ordering::Acquire), self.bytes.load(Ordering::Acquire));
        requests == 0 || (requests < max.requests && held + bytes <= max.bytes)
    }

    fn add(&self, bytes: usize) {
        self.requests.fetch_add(1, Ordering::AcqRel);
        self.bytes.fetch_add(bytes, Ordering::AcqRel);
    }

    fn remove(&self, bytes: usize) {
        self.requests.fetch_sub(1, Ordering::AcqRel);
        self.bytes.fetch_sub(bytes, Ordering::AcqRel);
    }
}

/// Updates may wait for as long as another group is away; what else is asked meanwhile must not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An update, or a session's beginning or end.
    Update,
    /// Answered soon in any case.
    Other,
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

/// What one client may have under way of each kind.
#[derive(Clone, Copy, Debug)]
pub struct InFlightMax {
    /// Requests.
    pub requests: usize,
    /// Their bytes.
    pub bytes: usize,
}

impl Client {
    /// A client behind a channel. `number` is this connection's own.
    pub fn new(number: u64, peer: PeerName, sender: FrameSender, connection: Connection) -> Arc<Client> {
        let is_operator = peer.role == Role::Client && peer.name == OPERATOR;
        Client::over(number, (peer.name, is_operator), Outlet::Channel { sender, connection })
    }

    /// This node itself.
    pub fn local(number: u64, replies: SyncSender<Reply>) -> Arc<Client> {
        Client::over(number, ("local".into(), false), Outlet::Local(replies))
    }

    fn over(number: u64, (name, is_operator): (String, bool), outlet: Outlet) -> Arc<Client> {
        Arc::new(Client {
            number,
            name,
            is_operator,
            outlet,
            cut_off: AtomicBool::new(false),
            updates: InFlight::default(),
            others: InFlight::default(),
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

    /// May change who belongs to the groups.
    pub fn is_operator(&self) -> bool {
        self.is_operator
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

    /// Ends its connection: it has to begin anew.
    pub fn end(&self, why: &str) {
        self.cut_off();
        if let Outlet::Channel { connection, .. } = &self.outlet {
            connection.close(why);
        }
    }

    /// Frames and bytes that wait for it to read them.
    pub fn queued(&self) -> (usize, usize) {
        match &self.outlet {
            Outlet::Channel { sender, .. } => sender.queued(),
            Outlet::Local(_) => (0, 0),
            #[cfg(test)]
            Outlet::Test(messages) => (messages.lock().len(), 0),
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

    /// Takes a request in; its ticket answers it. The caller is the only one that admits for this client. Beyond the bound an
    /// update is not taken, so that what comes behind it is read; everything else waits for room.
    pub async fn admit(self: &Arc<Client>, request: u64, bytes: usize, kind: Kind, max: InFlightMax) -> Option<Ticket> {
        loop {
            // Created before the look at the counters: a wake-up in between is not lost.
            let freed = self.freed.notified();
            let ticket = self.admit_now(request, bytes, kind, max);
            if ticket.is_some() || kind == Kind::Update {
                return ticket;
            }
            freed.await;
        }
    }

    /// Takes a request in if there is room.
    pub fn admit_now(self: &Arc<Client>, request: u64, bytes: usize, kind: Kind, max: InFlightMax) -> Option<Ticket> {
        self.in_flight(kind).has_room(bytes, max).then(|| self.issue(request, bytes, kind))
    }

    fn in_flight(&self, kind: Kind) -> &InFlight {
        match kind {
            Kind::Update => &self.updates,
            Kind::Other => &self.others,
        }
    }

    fn issue(self: &Arc<Client>, request: u64, bytes: usize, kind: Kind) -> Ticket {
        self.in_flight(kind).add(bytes);
        Ticket { client: self.clone(), request, bytes, kind }
    }
}

impl Client {
    /// A ticket for this node's own request.
    pub fn local_ticket(self: &Arc<Client>) -> Ticket {
        self.issue(0, 0, Kind::Other)
    }
}

/// Reports of a node's state under way; each takes a thread.
const REPORTS_MAX: usize = 4;

/// The clients connected to this node.
pub struct Clients {
    reports: Arc<Semaphore>,
    connected: AtomicUsize,
    connected_max: usize,
    numbers: AtomicU64,
}

impl Clients {
    /// None yet.
    pub fn new(connected_max: usize) -> Clients {
        let reports = Arc::new(Semaphore::new(REPORTS_MAX));
        Clients { reports, connected: AtomicUsize::new(0), connected_max, numbers: AtomicU64::new(0) }
    }

    /// Takes one more in, if there is room.
    pub fn admit(&self) -> bool {
        let admitted = self.connected.fetch_add(1, Ordering::AcqRel) < self.connected_max;
        if !admitted {
            self.release();
        }
        admitted
    }

    /// The right to make a report of the node's state; none if too many are being made.
    pub fn report(&self) -> Option<OwnedSemaphorePermit> {
        self.reports.clone().try_acquire_owned().ok()
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

impl replica::Connection for Client {
    fn number(&self) -> u64 {
        self.number
    }

    fn is_cut_off(&self) -> bool {
        Client::is_cut_off(self)
    }
}

impl replica::Ticket for Ticket {
    type Client = Arc<Client>;

    fn client(&self) -> &Arc<Client> {
        &self.client
    }
}

/// A request under way. Dropped without an answer, the client asks again.
#[derive(Debug)]
pub struct Ticket {
    client: Arc<Client>,
    request: u64,
    bytes: usize,
    kind: Kind,
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
        self.client.in_flight(self.kind).remove(self.bytes);
        self.client.freed.notify_waiters();
    }
}

#[cfg(test)]
impl Client {
    /// A client whose messages are kept.
    pub fn test(number: u64) -> Arc<Client> {
        Client::over(number, ("test".into(), false), Outlet::Test(parking_lot::Mutex::default()))
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
        self.issue(request, 0, Kind::Update)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn client_with_too_many_updates_under_way_may_read_and_gets_its_place_back_with_the_answer() {
        let client = Client::test(1);
        let max = InFlightMax { requests: 1, bytes: 100 };
        let ticket = client.admit(1, 60, Kind::Update, max).await.unwrap();
        assert!(client.admit(2, 60, Kind::Update, max).await.is_none());
        drop(client.admit(3, 60, Kind::Other, max).await.unwrap());
        ticket.reply(Reply::Alive);
        assert!(client.admit(4, 60, Kind::Update, max).await.is_some());
    }

    #[test]
    fn reports_are_made_by_only_so_many_at_once() {
        let clients = Clients::new(1);
        let turns: Vec<_> = (0..REPORTS_MAX).map(|_| clients.report()).collect();
        assert!(turns.iter().all(Option::is_some) && clients.report().is_none());
        drop(turns);
        assert!(clients.report().is_some());
    }
}
