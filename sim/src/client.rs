//! One client's state: session, clock, connections, and what it is asking for. The thinnest equivalent of a mount's engine;
//! the world moves it on.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Waker};

use metadata::op::FsOp;
use multicast::command::{Command, Destination};
use multicast::ids::{GroupId, LogIndex, ReplicaId, SessionId, VectorClock};

use crate::desk::{Ask, AskId, Desk, Hands};
use crate::kept::Kept;
use crate::planted::Bug;
use crate::rng::Rnd;
use crate::workload::Application;

/// A connection to one node.
#[derive(Clone, Copy, Debug)]
pub struct Connection {
    /// Tells it from earlier ones.
    pub number: u64,
    /// The node has answered.
    pub up: bool,
}

/// What a request was for.
#[derive(Clone, Copy, Debug)]
pub struct Expect {
    /// The ask.
    pub ask: AskId,
    /// Which try of it.
    pub attempt: u64,
    /// Registers the session in this group.
    pub opens: Option<GroupId>,
    /// Asks for the stream of this group.
    pub subscribes: Option<GroupId>,
    /// Of which effects in the group the client knew when it asked.
    pub effects: LogIndex,
}

/// An ask under way.
#[derive(Clone, Debug)]
pub struct Pending {
    /// What is wanted.
    pub ask: Ask,
    /// The groups of an update.
    pub destinations: Vec<Destination>,
    /// The group that is asked.
    pub group: GroupId,
    /// When it was first asked.
    pub since: u64,
    /// Counts tries; answers to earlier ones come too late.
    pub attempt: u64,
    /// The command, once it has an id.
    pub command: Option<Command>,
    /// A try went out and its fate is unknown.
    pub uncertain: bool,
    /// Where to read instead of where it was.
    pub elsewhere: Option<ReplicaId>,
}

impl Pending {
    /// An update, if it is one.
    #[must_use]
    pub fn update(&self) -> Option<&FsOp> {
        match &self.ask {
            Ask::Update(op) => Some(op),
            Ask::Read { .. } | Ask::Upload | Ask::Delete(_) | Ask::Listed(_) => None,
        }
    }
}

type Task = Pin<Box<dyn Future<Output = ()>>>;

/// One client.
pub struct Client {
    /// Its number.
    pub number: usize,
    /// Its session.
    pub session: SessionId,
    /// What it has seen.
    pub clock: VectorClock,
    /// The sequence of its next command.
    pub next_sequence: u64,
    /// Commands under way.
    pub open_sequences: BTreeSet<u64>,
    /// Groups in which its session is registered, as far as it knows.
    pub registered: BTreeSet<GroupId>,
    /// A group has forgotten its session at least once.
    pub was_expired: bool,
    /// What it may answer by itself.
    pub kept: Kept,
    /// Who is primary, as far as it knows.
    pub primaries: BTreeMap<GroupId, ReplicaId>,
    /// Where it reads.
    pub readers: BTreeMap<GroupId, ReplicaId>,
    /// By node.
    pub connections: BTreeMap<ReplicaId, Connection>,
    /// Requests under way: what each is for, and on which connection.
    pub requests: BTreeMap<u64, (Expect, ReplicaId, u64)>,
    /// The next request's number.
    pub next_request: u64,
    /// Asks under way.
    pub pending: BTreeMap<AskId, Pending>,
    /// The next blob's number.
    pub next_blob: u64,
    /// Operations that it will still begin.
    pub left: u64,
    /// Its desk.
    pub desk: Rc<RefCell<Desk>>,
    /// Its applications.
    pub application: Application,
    tasks: Vec<Task>,
}

impl Client {
    /// A client that has seen nothing.
    #[must_use]
    pub fn new(
        number: usize,
        session: SessionId,
        rnd: Rnd,
        operations: u64,
        (groups, bug): (&[GroupId], Option<Bug>),
        application: impl Fn(Hands) -> Application,
    ) -> Client {
        let rnd = Rc::new(RefCell::new(rnd));
        let desk: Rc<RefCell<Desk>> = Rc::default();
        let hands = Hands { desk: Rc::clone(&desk), rnd };
        Client {
            number,
            session,
            clock: VectorClock::new(),
            next_sequence: 1,
            open_sequences: BTreeSet::new(),
            registered: BTreeSet::new(),
            was_expired: false,
            kept: Kept::new(session, groups.iter().copied(), bug),
            primaries: BTreeMap::new(),
            readers: BTreeMap::new(),
            connections: BTreeMap::new(),
            requests: BTreeMap::new(),
            next_request: 1,
            pending: BTreeMap::new(),
            next_blob: 1,
            left: operations,
            desk,
            application: application(hands),
            tasks: Vec::new(),
        }
    }

    /// Begins a task.
    pub fn begin(&mut self, task: impl Future<Output = ()> + 'static) {
        self.tasks.push(Box::pin(task));
    }

    /// Lets all tasks go on as far as they can; says how many have ended.
    pub fn poll(&mut self) -> usize {
        let before = self.tasks.len();
        let mut context = Context::from_waker(Waker::noop());
        self.tasks.retain_mut(|task| task.as_mut().poll(&mut context).is_pending());
        before - self.tasks.len()
    }

    /// Tasks under way.
    #[must_use]
    pub fn busy(&self) -> usize {
        self.tasks.len()
    }

    /// True if it has nothing more to do.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.left == 0 && self.tasks.is_empty()
    }

    /// Below this sequence it needs no replies.
    #[must_use]
    pub fn acknowledged_below(&self) -> u64 {
        self.open_sequences.first().copied().unwrap_or(self.next_sequence)
    }
}
