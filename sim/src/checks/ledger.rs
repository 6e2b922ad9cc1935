//! What replicas did and what clients saw, written down by the world; what can be compared at once is compared at once.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use metadata::Store;
use metadata::codec;
use metadata::op::FsOp;
use metadata::outcome::{Done, Outcome};
use metadata::read::{ReadOp, ReadResult};
use metadata::types::{BlobId, InodeId};
use multicast::command::Command;
use multicast::ids::{CommandId, GroupId, LogIndex};
use multicast::{Applied, Change};

use crate::desk::Listed;

/// One applied entry, as a replica tells it.
#[derive(Debug)]
pub struct Entry<'a> {
    /// The group.
    pub group: GroupId,
    /// The slot.
    pub index: LogIndex,
    /// Hash of the record.
    pub record: Option<u64>,
    /// Digest of the namespace behind it, if it is as it should be.
    pub digest: Option<u128>,
    /// Digest of the ordering state behind it, if it was computed.
    pub order_digest: Option<u64>,
    /// What it did.
    pub applied: &'a Applied,
}

/// A command as one group executed it.
#[derive(Clone, Debug)]
pub struct Execution {
    /// In which group.
    pub group: GroupId,
    /// Where in its log.
    pub index: LogIndex,
    /// What. As the group got it: its footprint may have been tampered with.
    pub command: Arc<Command>,
    /// The operation.
    pub op: Arc<FsOp>,
    /// The outcome.
    pub outcome: Outcome,
}

/// What a client did or saw, in the order of time.
#[derive(Clone, Debug)]
pub enum Seen {
    /// It sent a command for the first time.
    Submitted {
        /// Who.
        client: usize,
        /// Which update of the client's; tries under several ids share it.
        update: u64,
        /// Under which id.
        id: CommandId,
        /// What.
        op: Arc<FsOp>,
    },
    /// It was told an outcome.
    Replied {
        /// When.
        at: u64,
        /// Who.
        client: usize,
        /// Of which command.
        id: CommandId,
        /// By which group.
        group: GroupId,
        /// What.
        outcome: Outcome,
    },
    /// It asked for a read.
    Asked {
        /// Who.
        client: usize,
        /// Which ask of the client's.
        ask: u64,
    },
    /// It was answered a read.
    Read {
        /// Which ask of the client's.
        ask: u64,
        /// When it asked.
        since: u64,
        /// Who.
        client: usize,
        /// By which group.
        group: GroupId,
        /// The question.
        op: ReadOp,
        /// The answer.
        result: ReadResult,
        /// Of which state. Of what the client has answered itself: the group's newest state then.
        index: LogIndex,
        /// In what way.
        how: How,
    },
    /// It has listed a directory in pieces.
    Listed {
        /// Who.
        client: usize,
        /// What came out.
        listed: Listed,
    },
}

/// How a read came to its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// A replica was asked.
    Asked,
    /// The primary was asked, as of the time of the question.
    AsOfNow,
    /// The client has answered itself, when its stream had told of the group's log up to here.
    Kept {
        /// As it says.
        told: LogIndex,
    },
}

/// A place in a group's state whose history is kept: named by the question that shows it.
pub type Place = (GroupId, Vec<u8>);

/// All that was written down.
#[derive(Debug, Default)]
pub struct Ledger {
    records: HashMap<(GroupId, LogIndex), u64>,
    digests: HashMap<(GroupId, LogIndex), u128>,
    order_digests: HashMap<(GroupId, LogIndex), u64>,
    last: BTreeMap<GroupId, LogIndex>,
    /// Where a group locked the keys of a command of several groups, and said of what state the others may build on.
    pub locked: HashMap<(GroupId, CommandId), LogIndex>,
    /// What each group executed, in its order.
    pub executed: BTreeMap<GroupId, Vec<Execution>>,
    /// Answers to questions about single places, from which index on.
    pub versions: HashMap<Place, Vec<(LogIndex, ReadResult)>>,
    /// Where directories came to or left a group, or could not be looked at: of their names nothing earlier counts.
    pub moved: BTreeMap<(GroupId, InodeId), Vec<LogIndex>>,
    /// What clients did and saw.
    pub seen: Vec<Seen>,
    /// Blobs in the bucket: still there?
    pub blobs: BTreeMap<BlobId, bool>,
    /// What was found wrong at once.
    pub violations: Vec<String>,
}

/// The key of a question.
#[must_use]
pub fn place(group: GroupId, op: &ReadOp) -> Place {
    let question = metadata::protocol::Request::Read {
        group,
        session: multicast::ids::SessionId(0),
        clock: multicast::ids::VectorClock::new(),
        linearizable: false,
        op: op.clone(),
    };
    let bytes = codec::encode_to_node(&metadata::protocol::ToNode { request: 0, body: question });
    (group, bytes.to_vec())
}

impl Ledger {
    /// A replica has applied an entry.
    pub fn applied<S: Store>(&mut self, entry: &Entry<'_>, state: &S) {
        let at = (entry.group, entry.index);
        if let Some(record) = entry.record {
            let known = *self.records.entry(at).or_insert(record);
            self.expect(known == record, || format!("{} has two records at {}", entry.group, entry.index));
        }
        if let Some(digest) = entry.digest {
            let known = *self.digests.entry(at).or_insert(digest);
            self.expect(known == digest, || format!("{} has two states at {}", entry.group, entry.index));
        }
        if let Some(digest) = entry.order_digest {
            let known = *self.order_digests.entry(at).or_insert(digest);
            self.expect(known == digest, || format!("{} has two orders at {}", entry.group, entry.index));
        }
        let last = self.last.entry(entry.group).or_default();
        if entry.index <= *last {
            return;
        }
        *last = entry.index;
        match &entry.applied.change {
            Change::Executed(command) => self.execute(entry, command, state),
            Change::Locked(command) => _ = self.locked.insert((entry.group, command.id), entry.index),
            _ => {}
        }
    }

    /// The hash of what a group has applied there.
    #[must_use]
    pub fn record(&self, group: GroupId, index: LogIndex) -> Option<u64> {
        self.records.get(&(group, index)).copied()
    }

    /// A replica has taken over another one's state.
    pub fn installed(&mut self, group: GroupId, index: LogIndex, digest: u128, order_digest: u64) {
        if let Some(&known) = self.digests.get(&(group, index)) {
            self.expect(known == digest, || format!("a copy of {group} at {index} has another state"));
        }
        if let Some(&known) = self.order_digests.get(&(group, index)) {
            self.expect(known == order_digest, || format!("a copy of {group} at {index} has another order"));
        }
    }

    fn execute<S: Store>(&mut self, entry: &Entry<'_>, command: &Arc<Command>, state: &S) {
        let reply = entry.applied.reply.as_ref().and_then(|reply| reply.result.as_ref().ok());
        let outcome = reply.and_then(|bytes: &Bytes| codec::decode_outcome(bytes).ok());
        let op = codec::decode_op(&command.payload);
        let (Some(outcome), Ok(op)) = (outcome, op) else {
            return self.violations.push(format!("{} executed without an outcome", command.id));
        };
        for question in touched(&op, &outcome) {
            if let Ok(answer) = metadata::answer::read(state, entry.group, &question) {
                let versions = self.versions.entry(place(entry.group, &question)).or_default();
                if versions.last().is_none_or(|(_, last)| *last != answer) {
                    versions.push((entry.index, answer));
                }
            } else if let ReadOp::ReadDir { dir, .. } = question {
                // A row that has gone bad, and that the update itself does not need: nothing is known of the names.
                self.moved.entry((entry.group, dir)).or_default().push(entry.index);
            }
        }
        if let (FsOp::MoveInode { node, .. }, Ok(_)) = (&op, &outcome) {
            self.moved.entry((entry.group, node.ino)).or_default().push(entry.index);
        }
        let execution = Execution {
            group: entry.group,
            index: entry.index,
            command: Arc::clone(command),
            op: Arc::new(op),
            outcome,
        };
        self.executed.entry(entry.group).or_default().push(execution);
    }

    /// How far a group has come.
    #[must_use]
    pub fn last(&self, group: GroupId) -> LogIndex {
        self.last.get(&group).copied().unwrap_or_default()
    }

    fn expect(&mut self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            self.violations.push(what());
        }
    }

    /// How many reads were answered.
    #[must_use]
    pub fn reads(&self) -> u64 {
        self.seen.iter().filter(|seen| matches!(seen, Seen::Read { .. })).count() as u64
    }
}

/// The question for all names of a directory.
#[must_use]
pub fn all_names(dir: InodeId) -> ReadOp {
    ReadOp::ReadDir { dir, after: 0, limit: 1000, plus: false }
}

/// Questions whose answers an update may have changed.
fn touched(op: &FsOp, outcome: &Outcome) -> Vec<ReadOp> {
    let mut inodes: Vec<InodeId> = Vec::new();
    let mut names: Vec<(InodeId, Bytes)> = Vec::new();
    match op {
        FsOp::Create { parent, name, .. } => names.push((parent.ino, name.clone())),
        FsOp::Link { node, parent, name } => {
            inodes.push(node.ino);
            names.push((parent.ino, name.clone()));
        }
        FsOp::Unlink { parent, name, target, .. } | FsOp::Rmdir { parent, name, target, .. } => {
            inodes.push(target.ino);
            names.push((parent.ino, name.clone()));
        }
        FsOp::Rename { from_parent, from_name, source, to_parent, to_name, target, .. } => {
            inodes.push(source.ino);
            inodes.extend(target.map(|target| target.ino));
            names.push((from_parent.ino, from_name.clone()));
            names.push((to_parent.ino, to_name.clone()));
        }
        FsOp::MoveInode { parent, name, node, .. } => {
            inodes.push(node.ino);
            names.push((parent.ino, name.clone()));
        }
        FsOp::SetAttr { node, .. }
        | FsOp::Write { node, .. }
        | FsOp::SetXattr { node, .. }
        | FsOp::RemoveXattr { node, .. }
        | FsOp::SetPlacement { dir: node, .. } => inodes.push(node.ino),
        FsOp::ReleaseOrphans { inodes: released, .. } => inodes.extend(released),
        _ => {}
    }
    if let Ok(Done::Node { attr, .. }) = outcome {
        inodes.push(attr.ino);
    }
    inodes.extend(names.iter().map(|(parent, _)| *parent));
    inodes.sort_unstable();
    inodes.dedup();
    let mut dirs: Vec<InodeId> = names.iter().map(|(parent, _)| *parent).collect();
    dirs.sort_unstable();
    dirs.dedup();
    let of_inodes = inodes.into_iter().map(|ino| ReadOp::GetAttr { ino }).chain(dirs.into_iter().map(all_names));
    of_inodes.chain(names.into_iter().map(|(parent, name)| ReadOp::Lookup { parent, name })).collect()
}
