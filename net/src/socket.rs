//! The UDP socket under QUIC: large buffers and, when asked for, the emulated network.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap, HashMap},
    io::{self, IoSliceMut},
    net::{IpAddr, SocketAddr, UdpSocket},
    pin::Pin,
    sync::{Arc, Weak},
    task::{Context, Poll, Waker, ready},
    time::Instant,
};

use parking_lot::Mutex;
use quinn::{
    AsyncUdpSocket, UdpPoller,
    udp::{EcnCodepoint, RecvMeta, Transmit},
};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::{
    Error, Result,
    wan::{Job, SLACK, WanSide},
};

/// Received datagrams held back; more are dropped like in a full socket buffer.
const INBOX_BYTES_MAX: usize = 32 << 20;

/// Binds a socket and makes its buffers as large as allowed: too small ones cost losses and throughput.
pub(crate) fn bind(address: SocketAddr, buffer_bytes: usize) -> Result<UdpSocket> {
    let make = || -> io::Result<UdpSocket> {
        let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
        if address.is_ipv6() {
            socket.set_only_v6(false)?;
        }
        socket.bind(&address.into())?;
        let socket = UdpSocket::from(socket);
        enlarge(&socket, buffer_bytes);
        socket.set_nonblocking(true)?;
        Ok(socket)
    };
    make().map_err(|source| Error::Socket { address, source })
}

fn enlarge(socket: &UdpSocket, buffer_bytes: usize) {
    use rustix::net::sockopt;
    let handle = SockRef::from(socket);
    // Beyond the system's limit where we are privileged; else up to it.
    if sockopt::set_socket_recv_buffer_size_force(socket, buffer_bytes).is_err() {
        let _ = handle.set_recv_buffer_size(buffer_bytes);
    }
    if sockopt::set_socket_send_buffer_size_force(socket, buffer_bytes).is_err() {
        let _ = handle.set_send_buffer_size(buffer_bytes);
    }
    // The kernel reports twice what was set.
    let granted = handle.recv_buffer_size().unwrap_or(0) / 2;
    if granted < buffer_bytes {
        tracing::debug!(granted, wanted = buffer_bytes, "UDP receive buffer is smaller than wanted");
    }
}

/// A socket inside an emulated network.
#[derive(Debug)]
pub(crate) struct WanSocket {
    inner: Arc<dyn AsyncUdpSocket>,
    side: WanSide,
    own: usize,
    regions: HashMap<SocketAddr, usize>,
    chance: Mutex<Chance>,
    inbox: Mutex<Inbox>,
    this: Weak<WanSocket>,
}

/// Randomness of loss and jitter, and what keeps jitter from reordering.
#[derive(Debug)]
struct Chance {
    seed: u64,
    last_due: BTreeMap<(usize, usize), Instant>,
}

#[derive(Debug, Default)]
struct Inbox {
    held: BinaryHeap<Reverse<Received>>,
    bytes: usize,
    sequence: u64,
    waker: Option<Waker>,
}

/// A received datagram, or several of one size, until it is due.
#[derive(Debug)]
struct Received {
    due: Instant,
    sequence: u64,
    from: usize,
    meta: RecvMeta,
    contents: Box<[u8]>,
}

enum Fate {
    Direct,
    Lost,
    Hold(Instant),
}

impl WanSocket {
    pub(crate) fn new(inner: Arc<dyn AsyncUdpSocket>, side: WanSide) -> Result<Arc<Self>> {
        let matrix = side.wan.matrix();
        let region = |name: &str| {
            let names = || matrix.regions().join(", ");
            let unknown = || Error::Invalid(format!("the emulated network has no region {name:?}, only {}", names()));
            matrix.index(name).ok_or_else(unknown)
        };
        let own = region(&side.region)?;
        let mut regions = HashMap::new();
        for (address, name) in &side.nodes {
            regions.insert(canonical(*address), region(name)?);
        }
        let seed = u64::from(inner.local_addr().map_or(0, |address| address.port())) + 1;
        let chance = Mutex::new(Chance { seed, last_due: BTreeMap::new() });
        Ok(Arc::new_cyclic(|this| WanSocket {
            inner,
            side,
            own,
            regions,
            chance,
            inbox: Mutex::default(),
            this: this.clone(),
        }))
    }

    fn region(&self, address: SocketAddr) -> Option<usize> {
        self.regions.get(&canonical(address)).copied()
    }

    /// What becomes of one datagram.
    fn fate(&self, from: usize, to: usize) -> Fate {
        let matrix = self.side.wan.matrix();
        let shape = *matrix.shape(from, to);
        if shape.cut {
            return Fate::Lost;
        }
        if shape.loss == 0.0 && shape.jitter.is_zero() {
            let hold = matrix.hold(shape.one_way);
            return if hold.is_zero() { Fate::Direct } else { Fate::Hold(Instant::now() + hold) };
        }
        let mut chance = self.chance.lock();
        if chance.unit() < shape.loss {
            return Fate::Lost;
        }
        let hold = matrix.hold(shape.one_way + shape.jitter.mul_f64(chance.unit()));
        if shape.jitter.is_zero() && hold.is_zero() {
            return Fate::Direct;
        }
        let due = Instant::now() + hold;
        if shape.jitter.is_zero() {
            return Fate::Hold(due);
        }
        let last = chance.last_due.entry((from, to)).or_insert(due);
        *last = due.max(*last);
        Fate::Hold(*last)
    }

    fn is_cut(&self, from: usize, to: usize) -> bool {
        self.side.wan.matrix().shape(from, to).cut
    }

    fn is_lossy(&self, to: usize) -> bool {
        self.side.wan.matrix().shape(self.own, to).loss > 0.0
    }

    fn send_one(&self, transmit: &Transmit, to: usize) -> io::Result<()> {
        match self.fate(self.own, to) {
            Fate::Direct => self.inner.try_send(transmit),
            Fate::Lost => Ok(()),
            Fate::Hold(due) => {
                let held = Held {
                    socket: self.this.clone(),
                    to,
                    destination: transmit.destination,
                    ecn: transmit.ecn,
                    segment_size: transmit.segment_size,
                    src_ip: transmit.src_ip,
                    contents: transmit.contents.into(),
                };
                self.side.wan.queue().schedule(due, Box::new(held));
                Ok(())
            }
        }
    }

    /// Moves what is due from the inbox into the buffers; registers for the rest.
    fn take_due(&self, waker: &Waker, bufs: &mut [IoSliceMut<'_>], meta: &mut [RecvMeta]) -> usize {
        let mut inbox = self.inbox.lock();
        if inbox.waker.as_ref().is_none_or(|known| !known.will_wake(waker)) {
            inbox.waker = Some(waker.clone());
        }
        // The same slack as the timer that wakes us: what it counted as due must be due here.
        let (horizon, mut count) = (Instant::now() + SLACK, 0);
        while count < bufs.len() && inbox.held.peek().is_some_and(|Reverse(first)| first.due <= horizon) {
            let Some(Reverse(received)) = inbox.held.pop() else { break };
            inbox.bytes -= received.contents.len();
            let fits = received.contents.len() <= bufs[count].len();
            if fits && !self.is_cut(received.from, self.own) {
                bufs[count][..received.contents.len()].copy_from_slice(&received.contents);
                meta[count] = received.meta;
                count += 1;
            }
        }
        count
    }

    /// Holds back what comes from far; leaves the rest in front and returns how many that are.
    fn sift(&self, bufs: &mut [IoSliceMut<'_>], meta: &mut [RecvMeta], count: usize) -> usize {
        let mut kept = 0;
        for at in 0..count {
            let Some(from) = self.region(meta[at].addr) else {
                bufs.swap(kept, at);
                meta.swap(kept, at);
                kept += 1;
                continue;
            };
            match self.fate(from, self.own) {
                Fate::Direct => {
                    bufs.swap(kept, at);
                    meta.swap(kept, at);
                    kept += 1;
                }
                Fate::Lost => {}
                Fate::Hold(due) => self.hold(due, from, &bufs[at][..meta[at].len], meta[at]),
            }
        }
        kept
    }

    fn hold(&self, due: Instant, from: usize, contents: &[u8], meta: RecvMeta) {
        let mut inbox = self.inbox.lock();
        if inbox.bytes + contents.len() > INBOX_BYTES_MAX {
            return;
        }
        inbox.bytes += contents.len();
        inbox.sequence += 1;
        let sequence = inbox.sequence;
        inbox.held.push(Reverse(Received { due, sequence, from, meta, contents: contents.into() }));
        drop(inbox);
        self.side.wan.queue().schedule(due, Box::new(WakeUp(self.this.clone())));
    }
}

impl AsyncUdpSocket for WanSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.inner.clone().create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit) -> io::Result<()> {
        let Some(to) = self.region(transmit.destination) else { return self.inner.try_send(transmit) };
        let segment = transmit.segment_size.unwrap_or(transmit.contents.len()).max(1);
        if segment >= transmit.contents.len() || !self.is_lossy(to) {
            return self.send_one(transmit, to);
        }
        // Datagrams handed over together are lost one by one.
        for contents in transmit.contents.chunks(segment) {
            let part = Transmit {
                destination: transmit.destination,
                ecn: transmit.ecn,
                contents,
                segment_size: None,
                src_ip: transmit.src_ip,
            };
            // A full socket buffer in the middle is one more loss.
            let _ = self.send_one(&part, to);
        }
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        if !self.side.both_ways {
            return self.inner.poll_recv(cx, bufs, meta);
        }
        let due = self.take_due(cx.waker(), bufs, meta);
        if due > 0 {
            return Poll::Ready(Ok(due));
        }
        loop {
            let count = ready!(self.inner.poll_recv(cx, bufs, meta))?;
            let kept = self.sift(bufs, meta, count);
            if kept > 0 {
                return Poll::Ready(Ok(kept));
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.inner.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.inner.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.inner.may_fragment()
    }
}

impl Chance {
    /// Uniform in 0..1.
    fn unit(&mut self) -> f64 {
        self.seed = self.seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        (crate::mix(self.seed) >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// A datagram on its way.
struct Held {
    socket: Weak<WanSocket>,
    to: usize,
    destination: SocketAddr,
    ecn: Option<EcnCodepoint>,
    segment_size: Option<usize>,
    src_ip: Option<IpAddr>,
    contents: Box<[u8]>,
}

impl Job for Held {
    fn run(self: Box<Self>) {
        let Some(socket) = self.socket.upgrade() else { return };
        if socket.is_cut(socket.own, self.to) {
            return;
        }
        let transmit = Transmit {
            destination: self.destination,
            ecn: self.ecn,
            contents: &self.contents,
            segment_size: self.segment_size,
            src_ip: self.src_ip,
        };
        // A full socket buffer loses it, as a network would; QUIC sends it again.
        let _ = socket.inner.try_send(&transmit);
    }

    fn len_bytes(&self) -> usize {
        self.contents.len()
    }
}

/// Makes the receiver look at its inbox.
struct WakeUp(Weak<WanSocket>);

impl Job for WakeUp {
    fn run(self: Box<Self>) {
        let waker = self.0.upgrade().and_then(|socket| socket.inbox.lock().waker.take());
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Nothing: a wake-up that does not fit would leave a datagram behind.
    fn len_bytes(&self) -> usize {
        0
    }
}

impl PartialEq for Received {
    fn eq(&self, other: &Self) -> bool {
        (self.due, self.sequence) == (other.due, other.sequence)
    }
}

impl Eq for Received {}

impl PartialOrd for Received {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Received {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.due, self.sequence).cmp(&(other.due, other.sequence))
    }
}

/// One form for an IPv4 address, whether the socket is IPv4 or IPv6.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
