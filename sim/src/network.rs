//! Links between nodes, and between clients and nodes: delays, jitter, loss, duplication, cuts.

use std::collections::{BTreeMap, BTreeSet};

use multicast::ids::ReplicaId;

use crate::options::{Options, US};
use crate::rng::Rnd;

/// Who may be at the end of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum End {
    /// A node.
    Node(ReplicaId),
    /// A client, by its number.
    Client(usize),
}

impl std::fmt::Display for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            End::Node(id) => write!(f, "n{}", id.0),
            End::Client(number) => write!(f, "c{number}"),
        }
    }
}

/// All links.
#[derive(Debug, Default)]
pub struct Network {
    cuts: BTreeSet<(End, End)>,
    slow: BTreeMap<(End, End), u64>,
    /// When the newest message of an ordered link arrives.
    last_arrival: BTreeMap<(End, End), u64>,
}

impl Network {
    /// True if nothing gets through.
    #[must_use]
    pub fn is_cut(&self, from: End, to: End) -> bool {
        self.cuts.contains(&(from, to))
    }

    /// Nothing gets through from now on.
    pub fn cut(&mut self, from: End, to: End) {
        self.cuts.insert((from, to));
    }

    /// What was cut works again.
    pub fn heal(&mut self, from: End, to: End) {
        self.cuts.remove(&(from, to));
        self.slow.remove(&(from, to));
    }

    /// Everything works, at its usual speed.
    pub fn heal_all(&mut self) {
        self.cuts.clear();
        self.slow.clear();
    }

    /// Messages take so many times as long.
    pub fn slow_down(&mut self, from: End, to: End, factor: u64) {
        self.slow.insert((from, to), factor);
    }

    fn region(options: &Options, end: End) -> usize {
        match end {
            End::Node(id) => options.nodes.get(&id).copied().unwrap_or(0),
            End::Client(number) => options.clients.get(number).copied().unwrap_or(0),
        }
    }

    /// How long a message takes now.
    pub fn delay(&self, rnd: &mut Rnd, options: &Options, faulty: bool, from: End, to: End) -> u64 {
        if from == to {
            return rnd.range(5, 50) * US;
        }
        let base = options.delays_us[Network::region(options, from)][Network::region(options, to)] * US;
        let jitter = options.faults.jitter_percent.min(99);
        let mut delay = base * rnd.range(100, 100 + jitter) / 100 + rnd.below(20 * US);
        if faulty && rnd.chance(options.faults.spikes) {
            delay *= 10;
        }
        delay * self.slow.get(&(from, to)).copied().unwrap_or(1)
    }

    /// When copies of a message between nodes arrive, from now: none if it is lost.
    pub fn datagram(
        &mut self,
        rnd: &mut Rnd,
        options: &Options,
        (now, faulty): (u64, bool),
        from: End,
        to: End,
    ) -> Vec<u64> {
        let remote = from != to;
        if self.is_cut(from, to) || (remote && faulty && rnd.chance(options.faults.loss)) {
            return Vec::new();
        }
        let copies = 1 + usize::from(remote && faulty && rnd.chance(options.faults.duplication));
        let reorders = faulty && options.faults.reordering;
        (0..copies)
            .map(|_| {
                let delay = self.delay(rnd, options, faulty, from, to);
                if reorders { delay } else { self.in_order(now, delay, from, to) }
            })
            .collect()
    }

    /// When a message on an ordered, reliable connection arrives, from now. Lost packets are sent again by the transport.
    pub fn stream(&mut self, rnd: &mut Rnd, options: &Options, (now, faulty): (u64, bool), from: End, to: End) -> u64 {
        let mut delay = self.delay(rnd, options, faulty, from, to);
        if faulty && rnd.chance(options.faults.loss) {
            delay = delay * 3 + 30_000 * US;
        }
        self.in_order(now, delay, from, to)
    }

    fn in_order(&mut self, now: u64, delay: u64, from: End, to: End) -> u64 {
        let last = self.last_arrival.entry((from, to)).or_default();
        *last = (*last).max(now + delay);
        *last - now
    }
}
