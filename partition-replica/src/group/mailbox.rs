//! The way into a replica's thread or task: one queue, emptied in one go, so that a wake-up serves everything that came.

use std::sync::Arc;
use std::time::{Duration, Instant};

use metadata::protocol::Reply;
use multicast::command::Command;
use multicast::core::{SessionChange, Unhurried};
use multicast::ids::{GroupId, Incarnation, LogIndex, ReplicaId};
use multicast::message::Message;
use multicast::{InstallRefused, MemberChange, Membership};
use parking_lot::{Condvar, Mutex};
use tokio::sync::Notify;
use tokio::sync::oneshot::Sender;

use super::view::PendingRead;
use crate::copy::Prepared;
use crate::server::client::Ticket;
use crate::status::GroupStatus;

/// So many inputs are taken even if all of them could wait.
const WAITING_MAX: usize = 64;
/// So long an update waits for others, if lately more came together than are there: clients that were answered together ask
/// again at about the same time. Waiting for the end of the batch under way instead makes larger batches, but leaves
/// processors idle while the disks flush.
const COLLECT_PATIENCE: Duration = Duration::from_micros(400);
/// What other groups' primaries tell waits up to so long, once so much of it comes together that the work per batch is what
/// counts: each of a command's steps is a batch of every replica.
const TOLD_PATIENCE: Duration = Duration::from_millis(1);
const TOLD_WORTH_WAITING: usize = 16;
const TOLD_MAX: usize = 512;

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
    /// A copy of the state is on its way, which stands there: whether it could be installed.
    CopyOffered {
        /// Where.
        index: LogIndex,
        /// To the thread that receives it.
        reply: Sender<Result<(), InstallRefused>>,
    },
    /// A copy of the state is complete, and is to take the state's place.
    InstallCopy {
        /// What came.
        prepared: Box<Prepared>,
        /// To the thread that received it.
        reply: Sender<Result<(), InstallRefused>>,
    },
    /// A copy that was sent is in place up to that index, or is not.
    CopySent {
        /// At whom.
        to: ReplicaId,
        /// Where.
        installed: Option<LogIndex>,
    },
    /// The node is about to stop: another voter should be primary. The sender is dropped when that is so, or cannot be.
    HandOver(std::sync::mpsc::Sender<()>),
    /// An operator changes the group's members.
    Change {
        /// How.
        change: MemberChange,
        /// Whom to answer.
        ticket: Ticket,
    },
    /// An operator makes this replica its group's only voter.
    Force {
        /// The replica that is meant.
        named: (ReplicaId, Incarnation),
        /// Who may follow it.
        keep: Vec<ReplicaId>,
        /// Whom to answer.
        ticket: Ticket,
    },
    /// An operator wants this replica's state to be replaced by a copy of its group's.
    Rebuild {
        /// The replica that is meant.
        named: (ReplicaId, Incarnation),
        /// Whom to answer.
        ticket: Ticket,
    },
    /// Another replica of this node has learned who belongs to a group.
    Members {
        /// Which group.
        group: GroupId,
        /// Who.
        members: Membership,
    },
    /// This replica is to end, if it is no member of its group.
    Leave {
        /// The group's members, as its primary has told them to an operator.
        members: Membership,
        /// Whether it may.
        reply: std::sync::mpsc::Sender<bool>,
    },
    /// End.
    Stop,
}

impl Input {
    /// True if it comes from another group's primary and is about one command of both.
    fn is_told(&self) -> bool {
        matches!(self, Input::Message { message: Message::Facts(_) | Message::Propose { .. }, .. })
    }

    /// What it counts for; zero if it is no message.
    fn message_bytes(&self) -> usize {
        if let Input::Message { bytes, .. } = self { *bytes } else { 0 }
    }

    fn is_request(&self) -> bool {
        matches!(
            self,
            Input::Submit { .. }
                | Input::Session { .. }
                | Input::Linearize(_)
                | Input::Change { .. }
                | Input::Force { .. }
                | Input::Rebuild { .. }
        )
    }

    /// True if it moves nothing on.
    fn can_wait(&self, unhurried: Unhurried) -> bool {
        match self {
            Input::Persisted(_) => unhurried.persisted,
            Input::Message { message: Message::Appended { matched, .. }, .. } => *matched <= unhurried.appended_through,
            Input::Submit { .. }
            | Input::Message { .. }
            | Input::Session { .. }
            | Input::Linearize(_)
            | Input::Housekeep
            | Input::Report(_)
            | Input::CopyOffered { .. }
            | Input::InstallCopy { .. }
            | Input::CopySent { .. }
            | Input::HandOver(_)
            | Input::Change { .. }
            | Input::Force { .. }
            | Input::Rebuild { .. }
            | Input::Members { .. }
            | Input::Leave { .. }
            | Input::Stop => false,
        }
    }

    fn refuse(self, group: GroupId) {
        let ticket = match self {
            Input::Submit { ticket, .. }
            | Input::Session { ticket, .. }
            | Input::Change { ticket, .. }
            | Input::Force { ticket, .. }
            | Input::Rebuild { ticket, .. } => ticket,
            Input::Linearize(read) => read.ticket,
            _ => return,
        };
        ticket.reply(Reply::Unavailable { group, why: "too much is under way".into() });
    }
}

/// The queue in front of one replica's thread.
pub struct Mailbox {
    group: GroupId,
    queue: Mutex<Queue>,
    work: Condvar,
    /// The same for a task.
    task_work: Notify,
    requests_max: usize,
    message_bytes_max: usize,
}

struct Queue {
    /// What is not gathered.
    inputs: Vec<Input>,
    updates: Gathered,
    /// Facts and proposals of other groups.
    told: Gathered,
    requests: usize,
    message_bytes: usize,
    sleeping: Option<Sleeping>,
    closed: bool,
}

/// The replica's thread sleeps.
#[derive(Clone, Copy)]
struct Sleeping {
    /// This would not be worth waking it for.
    unhurried: Unhurried,
    /// It wakes by itself.
    until: Instant,
}

/// What waits to be taken together.
struct Gathered {
    inputs: Vec<Input>,
    /// When the first of them came.
    since: Option<Instant>,
    /// How many come together, lately; in quarters.
    expected: usize,
    /// So long the first waits for the others, …
    patience: Duration,
    /// … if so many come together, lately, …
    worth_waiting: usize,
    /// … and there are not so many already.
    enough: usize,
}

impl Gathered {
    fn updates() -> Gathered {
        let (patience, worth_waiting, enough) = (COLLECT_PATIENCE, 0, WAITING_MAX);
        Gathered { inputs: Vec::new(), since: None, expected: 0, patience, worth_waiting, enough }
    }

    fn told() -> Gathered {
        let (patience, worth_waiting, enough) = (TOLD_PATIENCE, TOLD_WORTH_WAITING, TOLD_MAX);
        Gathered { inputs: Vec::new(), since: None, expected: 0, patience, worth_waiting, enough }
    }

    fn push(&mut self, input: Input) {
        self.since.get_or_insert_with(Instant::now);
        self.inputs.push(input);
    }

    /// When they are to be taken; none if there are none.
    fn due(&self) -> Option<Instant> {
        let since = self.since?;
        let (count, is_few) = (self.inputs.len(), 16 * self.inputs.len() < 3 * self.expected);
        Some(if is_few && self.is_worth_waiting() && count < self.enough { since + self.patience } else { since })
    }

    fn is_worth_waiting(&self) -> bool {
        self.expected >= 4 * self.worth_waiting
    }

    fn take(&mut self, inputs: &mut Vec<Input>) {
        self.expect(4 * self.inputs.len());
        self.since = None;
        inputs.append(&mut self.inputs);
    }

    fn expect(&mut self, count: usize) {
        self.expected = count.max((3 * self.expected + count) / 4);
    }
}

/// How long a replica sleeps.
struct Nap {
    until: Instant,
    /// It looks whether other groups' primaries still tell things.
    is_watch: bool,
}

impl Queue {
    /// Takes what is there, if it is worth it; else says how long to sleep.
    fn take(&mut self, inputs: &mut Vec<Input>, end: Instant, unhurried: Unhurried) -> Option<Nap> {
        let now = Instant::now();
        let (updates_due, told_due) = (self.updates.due(), self.told.due());
        let is_due = |due: Option<Instant>| due.is_some_and(|due| due <= now);
        let is_hurried = self.inputs.len() >= WAITING_MAX || !self.inputs.iter().all(|input| input.can_wait(unhurried));
        if is_hurried || is_due(updates_due) || is_due(told_due) || now >= end {
            std::mem::swap(&mut self.inputs, inputs);
            if is_due(updates_due) {
                self.updates.take(inputs);
            }
            if is_due(told_due) {
                self.told.take(inputs);
            }
            self.requests = self.updates.inputs.len();
            self.message_bytes = self.told.inputs.iter().map(Input::message_bytes).sum();
            self.sleeping = None;
            return None;
        }
        let mut until = updates_due.into_iter().chain(told_due).fold(end, Instant::min);
        let is_watch = self.told.is_worth_waiting() && self.told.since.is_none();
        if is_watch {
            // Whoever tells something need not wake it only to make it sleep for a shorter time.
            until = until.min(now + self.told.patience);
        }
        self.sleeping = Some(Sleeping { unhurried, until });
        Some(Nap { until, is_watch })
    }

    fn end_nap(&mut self, nap: Nap, timed_out: bool) {
        if nap.is_watch && timed_out && self.told.since.is_none() {
            self.told.expect(0);
        }
    }
}

impl Mailbox {
    /// Empty.
    pub fn new(group: GroupId, requests_max: usize, message_bytes_max: usize) -> Mailbox {
        let queue = Queue {
            inputs: Vec::new(),
            updates: Gathered::updates(),
            told: Gathered::told(),
            requests: 0,
            message_bytes: 0,
            sleeping: None,
            closed: false,
        };
        Mailbox {
            group,
            queue: Mutex::new(queue),
            work: Condvar::new(),
            task_work: Notify::new(),
            requests_max,
            message_bytes_max,
        }
    }

    /// Queues. At its bound a request is answered `Unavailable`; a message is dropped (its sender repeats it). Everything
    /// else is bounded by what it answers to.
    pub fn push(&self, input: Input) {
        if self.put(input) {
            self.wake();
        }
    }

    fn wake(&self) {
        self.work.notify_one();
        self.task_work.notify_one();
    }

    /// True if the thread must be woken for it.
    fn put(&self, input: Input) -> bool {
        let mut queue = self.queue.lock();
        if queue.closed {
            return false;
        }
        if input.is_request() {
            if queue.requests >= self.requests_max {
                drop(queue);
                input.refuse(self.group);
                return false;
            }
            queue.requests += 1;
        }
        let bytes = input.message_bytes();
        if bytes > 0 {
            if queue.message_bytes + bytes > self.message_bytes_max && queue.message_bytes > 0 {
                return false;
            }
            queue.message_bytes += bytes;
        }
        let sleeping = queue.sleeping;
        let wake = if matches!(input, Input::Submit { .. }) || input.is_told() {
            let gathered = if input.is_told() { &mut queue.told } else { &mut queue.updates };
            gathered.push(input);
            // The thread may have to sleep for a shorter time.
            gathered.due().zip(sleeping).is_some_and(|(due, sleeping)| due < sleeping.until)
        } else {
            let can_wait = |unhurried| queue.inputs.len() < WAITING_MAX && input.can_wait(unhurried);
            let wake = sleeping.is_some_and(|sleeping| !can_wait(sleeping.unhurried));
            queue.inputs.push(input);
            wake
        };
        if wake {
            queue.sleeping = None;
        }
        wake
    }

    /// Waits for input, at most so long, and takes it. What can wait does not end the waiting. One thread at a time may wait,
    /// or one task.
    pub fn take(&self, inputs: &mut Vec<Input>, timeout: Duration, unhurried: Unhurried) {
        let end = Instant::now() + timeout;
        let mut queue = self.queue.lock();
        while let Some(nap) = queue.take(inputs, end, unhurried) {
            let timed_out = self.work.wait_until(&mut queue, nap.until).timed_out();
            queue.end_nap(nap, timed_out);
        }
    }

    /// The same in a task, which lets others go first in any case.
    pub async fn take_in_task(&self, inputs: &mut Vec<Input>, timeout: Duration, unhurried: Unhurried) {
        let end = Instant::now() + timeout;
        tokio::task::yield_now().await;
        loop {
            let Some(nap) = self.queue.lock().take(inputs, end, unhurried) else { return };
            let timed_out = tokio::time::timeout_at(nap.until.into(), self.task_work.notified()).await.is_err();
            self.queue.lock().end_nap(nap, timed_out);
        }
    }

    /// Takes nothing in any more. What is queued is dropped.
    pub fn close(&self) {
        let mut queue = self.queue.lock();
        queue.closed = true;
        queue.inputs.clear();
        queue.updates = Gathered::updates();
        queue.told = Gathered::told();
    }
}

/// Inputs that came together: their threads are woken once for all of them, when this is dropped at the latest.
#[derive(Default)]
pub struct Burst(Vec<Arc<Mailbox>>);

impl Burst {
    /// As [`Mailbox::push`], but the thread sleeps on for now.
    pub fn push(&mut self, mailbox: &Arc<Mailbox>, input: Input) {
        if mailbox.put(input) {
            self.0.push(mailbox.clone());
        }
    }

    /// To be called before waiting for anything.
    pub fn wake(&mut self) {
        self.0.drain(..).for_each(|mailbox| mailbox.wake());
    }
}

impl Drop for Burst {
    fn drop(&mut self) {
        self.wake();
    }
}

#[cfg(test)]
mod tests {
    use multicast::ids::{Ballot, CommandId, Incarnation, LogIndex, SessionId, VectorClock};

    use super::*;
    use crate::server::client::Client;

    const UNHURRIED: Unhurried = Unhurried { persisted: true, appended_through: LogIndex(5) };

    fn submission() -> Input {
        let command = Command {
            id: CommandId { session: SessionId(1), sequence: 1 },
            acknowledged_below: 0,
            clock: VectorClock::new(),
            destinations: Vec::new(),
            payload: bytes::Bytes::new(),
        };
        Input::Submit { command: Arc::new(command), ticket: Client::test(1).ticket(1) }
    }

    fn appended(matched: u64) -> Input {
        let message = Message::Appended {
            ballot: Ballot::default(),
            matched: LogIndex(matched),
            incarnation: Incarnation::default(),
        };
        Input::Message { from: (GroupId(1), ReplicaId(2)), message, bytes: 10 }
    }

    /// How many inputs a thread or a task gets that begins to wait before `push`, and whether it has waited to the end.
    fn taken_by(is_task: bool, unhurried: Unhurried, push: impl FnOnce(&Arc<Mailbox>)) -> (usize, bool) {
        let mailbox = Arc::new(Mailbox::new(GroupId(1), 10, 1 << 20));
        let patience = Duration::from_millis(200);
        let waiting = {
            let mailbox = mailbox.clone();
            std::thread::spawn(move || {
                let (mut inputs, begun) = (Vec::new(), Instant::now());
                if is_task {
                    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
                    let runtime = runtime.expect("a runtime without a network");
                    runtime.block_on(mailbox.take_in_task(&mut inputs, patience, unhurried));
                } else {
                    mailbox.take(&mut inputs, patience, unhurried);
                }
                (inputs.len(), begun.elapsed() >= patience)
            })
        };
        while mailbox.queue.lock().sleeping.is_none() {
            std::thread::yield_now();
        }
        push(&mailbox);
        waiting.join().expect("it does not panic")
    }

    #[test]
    fn sleeper_sleeps_on_for_what_moves_nothing_on_and_gets_it_with_what_does() {
        for is_task in [false, true] {
            let quiet = |mailbox: &Arc<Mailbox>| {
                mailbox.push(Input::Persisted(1));
                mailbox.push(appended(5));
            };
            let is_woken =
                |unhurried, push: &dyn Fn(&Mailbox)| !taken_by(is_task, unhurried, |mailbox| push(mailbox)).1;
            assert_eq!(taken_by(is_task, UNHURRIED, quiet), (2, true));
            let many = |mailbox: &Mailbox| (0..WAITING_MAX + 1).for_each(|_| mailbox.push(appended(5)));
            assert!(is_woken(UNHURRIED, &many));
            assert!(is_woken(UNHURRIED, &|mailbox| mailbox.push(appended(6))));
            assert!(is_woken(UNHURRIED, &|mailbox| mailbox.push(Input::Housekeep)));
            assert!(is_woken(Unhurried::default(), &|mailbox| mailbox.push(Input::Persisted(1))));
            assert!(is_woken(Unhurried::default(), &|mailbox| mailbox.push(appended(1))));
        }
    }

    #[test]
    fn thread_that_comes_later_waits_in_spite_of_what_can_wait() {
        let mailbox = Mailbox::new(GroupId(1), 10, 1 << 20);
        mailbox.push(Input::Persisted(1));
        let (mut inputs, begun, patience) = (Vec::new(), Instant::now(), Duration::from_millis(20));
        mailbox.take(&mut inputs, patience, UNHURRIED);
        assert!(inputs.len() == 1 && begun.elapsed() >= patience);
        mailbox.push(Input::Persisted(2));
        inputs.clear();
        let begun = Instant::now();
        mailbox.take(&mut inputs, 1000 * patience, Unhurried::default());
        assert!(inputs.len() == 1 && begun.elapsed() < 100 * patience);
    }

    #[test]
    fn update_waits_a_moment_for_as_many_as_came_together_lately() {
        let mailbox = Mailbox::new(GroupId(1), 100, 1 << 20);
        let taken = |count: usize| {
            let (mut inputs, begun) = (Vec::new(), Instant::now());
            (0..count).for_each(|_| mailbox.push(submission()));
            mailbox.take(&mut inputs, Duration::from_secs(60), UNHURRIED);
            (inputs.len(), begun.elapsed() >= COLLECT_PATIENCE)
        };
        assert_eq!(taken(8).0, 8);
        assert_eq!(taken(1), (1, true));
        assert_eq!(taken(8).0, 8);
        assert_eq!(mailbox.queue.lock().updates.expected, 32);
        // Others are not waited for when most are there, nor for long when they come no more.
        (0..6).for_each(|_| mailbox.push(submission()));
        assert!(mailbox.queue.lock().updates.due().is_some_and(|due| due <= Instant::now()));
        mailbox.take(&mut Vec::new(), Duration::ZERO, UNHURRIED);
        (0..12).for_each(|_| _ = taken(1));
        mailbox.push(submission());
        assert!(mailbox.queue.lock().updates.due().is_some_and(|due| due <= Instant::now()));
    }

    fn told() -> Input {
        let id = CommandId { session: SessionId(1), sequence: 1 };
        let facts = multicast::message::Facts {
            id,
            binding: 0,
            timestamp: None,
            contribution: None,
            refused: None,
            closed: true,
            ask: false,
        };
        Input::Message { from: (GroupId(2), ReplicaId(7)), message: Message::Facts(facts), bytes: 10 }
    }

    #[test]
    fn facts_wait_for_others_only_where_many_come_together() {
        let mailbox = Mailbox::new(GroupId(1), 100, 1 << 20);
        let taken = |count: usize| {
            let (mut inputs, begun) = (Vec::new(), Instant::now());
            (0..count).for_each(|_| mailbox.push(told()));
            mailbox.take(&mut inputs, Duration::from_secs(60), UNHURRIED);
            (inputs.len(), begun.elapsed() >= TOLD_PATIENCE)
        };
        assert_eq!(taken(8).0, 8);
        assert!(mailbox.queue.lock().told.due().is_none());
        mailbox.push(told());
        assert!(mailbox.queue.lock().told.due().is_some_and(|due| due <= Instant::now()));
        assert_eq!(taken(40).0, 41);
        assert_eq!(taken(1), (1, true));
        // Something else is not kept waiting, and they are not taken with it.
        mailbox.push(told());
        mailbox.push(Input::Housekeep);
        let mut inputs = Vec::new();
        mailbox.take(&mut inputs, Duration::from_secs(60), UNHURRIED);
        assert!(matches!(inputs[..], [Input::Housekeep]));
        assert_eq!(mailbox.queue.lock().message_bytes, 10);
    }

    #[test]
    fn thread_that_watches_for_facts_is_not_woken_by_the_first() {
        let mailbox = Arc::new(Mailbox::new(GroupId(1), 100, 1 << 20));
        mailbox.queue.lock().told.expected = 400;
        let until = Instant::now() + Duration::from_secs(1);
        mailbox.queue.lock().sleeping = Some(Sleeping { unhurried: UNHURRIED, until: Instant::now() });
        assert!(!mailbox.put(told()));
        mailbox.queue.lock().sleeping = Some(Sleeping { unhurried: UNHURRIED, until });
        assert!(mailbox.put(told()));
        // It gives up watching when nothing comes.
        let idle = Mailbox::new(GroupId(1), 100, 1 << 20);
        idle.queue.lock().told.expected = 400;
        idle.take(&mut Vec::new(), Duration::from_millis(60), UNHURRIED);
        assert!(!idle.queue.lock().told.is_worth_waiting());
    }

    #[test]
    fn update_that_is_not_due_stays_while_something_else_is_taken() {
        let mailbox = Mailbox::new(GroupId(1), 2, 1 << 20);
        mailbox.queue.lock().updates.expected = 40;
        mailbox.push(submission());
        mailbox.push(Input::Housekeep);
        let mut inputs = Vec::new();
        mailbox.take(&mut inputs, Duration::from_secs(60), UNHURRIED);
        assert!(matches!(inputs[..], [Input::Housekeep]));
        // It is still counted: the second one after it is refused.
        (0..2).for_each(|_| mailbox.push(submission()));
        inputs.clear();
        mailbox.take(&mut inputs, Duration::from_secs(60), UNHURRIED);
        assert_eq!(inputs.len(), 2);
    }

    #[test]
    fn burst_wakes_a_thread_once_and_when_dropped_at_the_latest() {
        let (count, is_late) = taken_by(false, Unhurried::default(), |mailbox| {
            let mut burst = Burst::default();
            (0..3).for_each(|token| burst.push(mailbox, Input::Persisted(token)));
            assert_eq!(burst.0.len(), 1);
        });
        assert_eq!((count, is_late), (3, false));
    }
}
