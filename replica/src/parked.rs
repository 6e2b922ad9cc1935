//! Reads that wait for the state to move on, and reads that take long while it does.

use std::collections::BTreeSet;

use metadata::protocol::Reply;
use multicast::Time;
use multicast::command::Key;
use multicast::ids::LogIndex;

use crate::client::{Connection, Tell, Ticket};
use crate::front::{Front, PendingRead};

/// Keys remembered of what changes during one read; beyond, everything counts as changed.
const WATCHED_KEYS_MAX: usize = 100_000;

/// Reads that cannot be answered yet.
#[derive(Debug)]
pub struct Parked<T> {
    reads: Vec<PendingRead<T>>,
    reads_max: usize,
}

impl<T: Ticket> Parked<T> {
    /// None; at most so many.
    #[must_use]
    pub fn new(reads_max: usize) -> Parked<T> {
        Parked { reads: Vec::new(), reads_max }
    }

    /// How many wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.reads.len()
    }

    /// True if none waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.reads.is_empty()
    }

    /// Lets a read wait; without room its client hears that this replica is behind.
    pub fn park(&mut self, read: PendingRead<T>, front: &Front) -> Option<Tell<T>> {
        if self.reads.len() >= self.reads_max {
            return Some(behind(read, front.applied));
        }
        self.reads.push(read);
        None
    }

    /// Takes out what is worth a try at this state. Those that have waited for too long are answered.
    pub fn take_ready(&mut self, now: Time, applied: LogIndex, tell: &mut impl FnMut(Tell<T>)) -> Vec<PendingRead<T>> {
        let (ready, rest): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.reads).into_iter().partition(|read| read.index <= applied || read.deadline <= now);
        self.reads = rest;
        let mut left = Vec::with_capacity(ready.len());
        for read in ready {
            if read.deadline <= now {
                tell(behind(read, applied));
            } else if !read.ticket.client().is_cut_off() {
                left.push(read);
            }
        }
        left
    }

    /// When the first of them has waited for too long.
    #[must_use]
    pub fn deadline(&self) -> Option<Time> {
        self.reads.iter().map(|read| read.deadline).min()
    }
}

fn behind<T: Ticket>(read: PendingRead<T>, applied: LogIndex) -> Tell<T> {
    Tell::Reply(read.ticket, Reply::Behind { applied })
}

/// What has changed since a read began.
#[derive(Debug, Default)]
pub struct Watch {
    keys: BTreeSet<Key>,
    is_lost: bool,
}

impl Watch {
    /// The next state differs in these keys.
    pub fn note(&mut self, keys: &[Key]) {
        if self.keys.len() + keys.len() > WATCHED_KEYS_MAX {
            self.note_all();
        } else if !self.is_lost {
            self.keys.extend(keys);
        }
    }

    /// The next state may differ in any key.
    pub fn note_all(&mut self) {
        *self = Watch { keys: BTreeSet::new(), is_lost: true };
    }

    /// True if it has, as far as known.
    #[must_use]
    pub fn is_changed(&self, key: Key) -> bool {
        self.is_lost || self.keys.contains(&key)
    }
}

#[cfg(test)]
mod tests {
    use metadata::read::ReadOp;
    use metadata::types::InodeId;
    use multicast::ids::SessionId;

    use super::*;
    use crate::client::tests::{Asked, Peer};

    fn read(client: u64, request: u64, index: u64, deadline: u64) -> PendingRead<Asked> {
        let (index, deadline) = (LogIndex(index), Time(deadline));
        let op = ReadOp::GetAttr { ino: InodeId::ROOT };
        PendingRead { ticket: Asked(Peer(client), request), session: SessionId(1), index, effects: index, op, deadline }
    }

    #[test]
    fn parked_read_is_tried_when_its_index_is_reached_and_answered_behind_at_its_deadline_or_beyond_the_bound() {
        let front = Front { applied: LogIndex(3), ..Front::default() };
        let mut parked = Parked::new(3);
        for read in [read(1, 1, 5, 50), read(1, 2, 4, 90), read(0, 3, 4, 90)] {
            assert!(parked.park(read, &front).is_none());
        }
        let refused = parked.park(read(1, 4, 9, 90), &front);
        assert!(matches!(refused, Some(Tell::Reply(Asked(_, 4), Reply::Behind { applied: LogIndex(3) }))));
        assert_eq!((parked.len(), parked.deadline()), (3, Some(Time(50))));
        let mut told = Vec::new();
        let ready = parked.take_ready(Time(50), LogIndex(4), &mut |tell| told.push(tell));
        assert!(matches!(&ready[..], [PendingRead { ticket: Asked(_, 2), .. }]), "{ready:?}");
        assert!(matches!(told[..], [Tell::Reply(Asked(_, 1), Reply::Behind { .. })]), "{told:?}");
        assert!(parked.is_empty());
    }

    #[test]
    fn watch_that_is_full_takes_everything_for_changed() {
        let mut watch = Watch::default();
        watch.note(&[Key(1)]);
        assert!(watch.is_changed(Key(1)) && !watch.is_changed(Key(2)));
        let many: Vec<Key> = (10..=WATCHED_KEYS_MAX as u64 + 10).map(Key).collect();
        watch.note(&many);
        assert!(watch.is_changed(Key(2)));
    }
}
