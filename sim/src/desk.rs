//! Where a client's tasks ask for something and wait: the smallest executor that async code needs. Everything is answered
//! by the world, in virtual time.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use metadata::op::FsOp;
use metadata::outcome::Outcome;
use metadata::read::{ListEntry, ReadOp, ReadResult};
use metadata::types::{BlobId, InodeId};
use multicast::ids::GroupId;

use crate::rng::Rnd;

/// What a task wants.
#[derive(Clone, Debug)]
pub enum Ask {
    /// A read.
    Read {
        /// The group.
        group: GroupId,
        /// The question.
        op: ReadOp,
        /// As of now, not merely of what the client has seen.
        linearizable: bool,
    },
    /// An update.
    Update(FsOp),
    /// A new blob in the bucket.
    Upload,
    /// These blobs out of the bucket.
    Delete(Vec<BlobId>),
    /// Nothing: a directory was listed in pieces.
    Listed(Listed),
}

/// A directory that was listed from its beginning to its end, in pieces of one group.
#[derive(Clone, Debug)]
pub struct Listed {
    /// The group.
    pub group: GroupId,
    /// The directory.
    pub dir: InodeId,
    /// What was asked and answered.
    pub pieces: Vec<(AskId, Vec<ListEntry>)>,
}

/// What it gets.
#[derive(Clone, Debug)]
pub enum Answer {
    /// To a read.
    Read(ReadResult),
    /// To an update; `None`: nobody knows, the session was lost.
    Outcome(Option<Outcome>),
    /// To an upload.
    Uploaded(BlobId),
    /// To a deletion, or to what wants no answer.
    Deleted,
}

/// Names one ask of one client.
pub type AskId = u64;

/// One client's asks.
#[derive(Debug, Default)]
pub struct Desk {
    next: AskId,
    asked: VecDeque<(AskId, Ask)>,
    answered: BTreeMap<AskId, Answer>,
}

impl Desk {
    /// The next ask that nobody has looked at.
    pub fn take(&mut self) -> Option<(AskId, Ask)> {
        self.asked.pop_front()
    }

    /// Answers.
    pub fn answer(&mut self, id: AskId, answer: Answer) {
        self.answered.insert(id, answer);
    }
}

/// A task's way to the desk, and to chance.
#[derive(Clone, Debug)]
pub struct Hands {
    /// The client's desk.
    pub desk: Rc<RefCell<Desk>>,
    /// The client's chance.
    pub rnd: Rc<RefCell<Rnd>>,
}

impl Hands {
    fn ask(&self, ask: Ask) -> Asking {
        let mut desk = self.desk.borrow_mut();
        let id = desk.next;
        desk.next += 1;
        desk.asked.push_back((id, ask));
        Asking { desk: Rc::clone(&self.desk), id }
    }

    /// Reads.
    pub async fn read(&self, group: GroupId, op: ReadOp, linearizable: bool) -> ReadResult {
        match self.ask(Ask::Read { group, op, linearizable }).await {
            Answer::Read(result) => result,
            other => unreachable!("a read is answered by a read, not by {other:?}"),
        }
    }

    /// The same, and under which number it was asked.
    pub async fn read_numbered(&self, group: GroupId, op: ReadOp, linearizable: bool) -> (AskId, ReadResult) {
        let asking = self.ask(Ask::Read { group, op, linearizable });
        let id = asking.id;
        match asking.await {
            Answer::Read(result) => (id, result),
            other => unreachable!("a read is answered by a read, not by {other:?}"),
        }
    }

    /// Says what a directory was listed as.
    pub async fn listed(&self, listed: Listed) {
        self.ask(Ask::Listed(listed)).await;
    }

    /// Updates; `None` if nobody knows whether it happened.
    pub async fn update(&self, op: FsOp) -> Option<Outcome> {
        match self.ask(Ask::Update(op)).await {
            Answer::Outcome(outcome) => outcome,
            other => unreachable!("an update is answered by an outcome, not by {other:?}"),
        }
    }

    /// Puts a new blob into the bucket.
    pub async fn upload(&self) -> BlobId {
        match self.ask(Ask::Upload).await {
            Answer::Uploaded(blob) => blob,
            other => unreachable!("an upload is answered by a name, not by {other:?}"),
        }
    }

    /// Deletes blobs from the bucket.
    pub async fn delete(&self, blobs: Vec<BlobId>) {
        self.ask(Ask::Delete(blobs)).await;
    }

    /// Draws with the client's chance.
    pub fn draw<T>(&self, draw: impl FnOnce(&mut Rnd) -> T) -> T {
        draw(&mut self.rnd.borrow_mut())
    }
}

struct Asking {
    desk: Rc<RefCell<Desk>>,
    id: AskId,
}

impl Future for Asking {
    type Output = Answer;

    fn poll(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<Answer> {
        match self.desk.borrow_mut().answered.remove(&self.id) {
            Some(answer) => Poll::Ready(answer),
            None => Poll::Pending,
        }
    }
}
