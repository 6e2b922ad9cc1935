//! The way into a replica's thread: one queue, emptied in one go, so that a wake-up serves everything that came.

use std::sync::Arc;
use std::time::Duration;

use metadata::protocol::Reply;
use multicast::command::Command;
use multicast::core::SessionChange;
use multicast::ids::{GroupId, ReplicaId};
use multicast::message::Message;
use parking_lot::{Condvar, Mutex};

use super::view::PendingRead;
use crate::server::client::Ticket;
use crate::status::GroupStatus;

/// One thing for a replica's thread.
pub enum Input {
    /// From a replica, here or elsewhere.
    Message {
        /// Proven by the connection.
        from: (GroupId, ReplicaId),
        /// What.
        message: Message,
        /// Its encoded length; zero if it never was encoded.
        bytes: usize,
    },
    /// A client's update.
    Submit {
        /// What.
        command: Arc<Command>,
        /// Whom to answer.
        ticket: Ticket,
    },
    /// A client's session begins or ends.
    Session {
        /// Which, and how.
        change: SessionChange,
        /// Whom to answer.
        ticket: Ticket,
    },
    /// A read that must see everything that was executed before now.
    Linearize(PendingRead),
    /// The log is durable up to this token.
    Persisted(u64),
    /// Time to look after leases and the log's end.
    Housekeep,
    /// Somebody wants to know.
    Report(Box<dyn FnOnce(GroupStatus) + Send>),
    /// End.
    Stop,
}

impl Input {
    fn is_request(&self) -> bool {
        matches!(self, Input::Submit { .. } | Input::Session { .. } | Input::Linearize(_))
    }

    fn refuse(self, group: GroupId) {
        let ticket = match self {
            Input::Submit { ticket, .. } | Input::Session { ticket, .. } => ticket,
            Input::Linearize(read) => read.ticket,
            Input::Message { .. } | Input::Persisted(_) | Input::Housekeep | Input::Report(_) | Input::Stop => return,
        };
        ticket.reply(Reply::Unavailable { group, why: "too much is under way".into() });
    }
}

/// The queue in front of one replica's thread.
pub struct Mailbox {
    group: GroupId,
    queue: Mutex<Queue>,
    work: Condvar,
    requests_max: usize,
    message_bytes_max: usize,
}

#[derive(Default)]
struct Queue {
    inputs: Vec<Input>,
    requests: usize,
    message_bytes: usize,
    sleeping: bool,
    closed: bool,
}

impl Mailbox {
    /// Empty.
    pub fn new(group: GroupId, requests_max: usize, message_bytes_max: usize) -> Mailbox {
        Mailbox { group, queue: Mutex::default(), work: Condvar::new(), requests_max, message_bytes_max }
    }

    /// Queues. At its bound a request is answered `Unavailable`; a message is dropped (its sender repeats it). Everything
    /// else is bounded by what it answers to.
    pub fn push(&self, input: Input) {
        let mut queue = self.queue.lock();
        if queue.closed {
            return;
        }
        if input.is_request() {
            if queue.requests >= self.requests_max {
                drop(queue);
                return input.refuse(self.group);
            }
            queue.requests += 1;
        }
        if let Input::Message { bytes, .. } = &input {
            if queue.message_bytes + bytes > self.message_bytes_max && queue.message_bytes > 0 {
                return;
            }
            queue.message_bytes += bytes;
        }
        queue.inputs.push(input);
        let wake = std::mem::take(&mut queue.sleeping);
        drop(queue);
        if wake {
            self.work.notify_one();
        }
    }

    /// Waits for input, at most so long, and takes all of it.
    pub fn take(&self, inputs: &mut Vec<Input>, timeout: Duration) {
        let mut queue = self.queue.lock();
        if queue.inputs.is_empty() && !timeout.is_zero() {
            queue.sleeping = true;
            self.work.wait_for(&mut queue, timeout);
            queue.sleeping = false;
        }
        std::mem::swap(&mut queue.inputs, inputs);
        queue.requests = 0;
        queue.message_bytes = 0;
    }

    /// Takes nothing in any more. What is queued is dropped.
    pub fn close(&self) {
        let mut queue = self.queue.lock();
        queue.closed = true;
        queue.inputs.clear();
    }
}
