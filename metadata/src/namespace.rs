//! The state machine: what a group's log does to its part of the namespace.

use bytes::Bytes;
use multicast::command::{Command, Key};
use multicast::ids::{GroupId, SessionId};
use multicast::{Context, Contributions, Machine};
use serde::de::DeserializeOwned;

pub use crate::answer::read;
use crate::error::Error;
use crate::footprint::key_inode;
use crate::op::FsOp;
use crate::outcome::{Done, Errno, Fact, OpError, Outcome};
use crate::rows::{Counters, InodeRow, Volume};
use crate::store::{Store, StoreMut};
use crate::types::{Attr, FileKind, InodeId, NodeRef, TimeNs};
use crate::validate::validate;
use crate::verdict::{self, Contribution, Rank, Step, Stop};
use crate::{codec, keys, rows};

/// Most rows that one entry of the log makes or removes beyond what it says itself; the rest goes in steps.
pub const STEP_ROWS_MAX: usize = 2048;

/// What executed updates changed, for those who cache it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Keys whose cached answers are void. May repeat.
    pub keys: Vec<Key>,
    /// Inodes that lost their last name and wait for their holders to let go.
    pub orphans: Vec<InodeId>,
}

/// Keys in the order in which they were written, with what each held before.
pub(crate) type Undo = Vec<(Vec<u8>, Option<Vec<u8>>)>;

/// One group's part of the namespace, over a store that is [`crate::Overlay`] in a replica.
///
/// Execution is total: whatever a payload says, there is an outcome. Only the store can fail: then
/// [`Namespace::failure`] says so, and nothing of this batch may be written.
#[derive(Debug)]
pub struct Namespace<S> {
    pub(crate) group: GroupId,
    pub(crate) volume: Volume,
    pub(crate) store: S,
    pub(crate) changes: Changes,
    pub(crate) failure: Option<Error>,
    /// While an update may still be refused after it has written: what was there before.
    pub(crate) undo: Option<Undo>,
    pub(crate) step_rows: usize,
}

impl<S: StoreMut> Namespace<S> {
    /// Over a store that was initialised by [`genesis`].
    pub fn open(group: GroupId, store: S) -> Result<Self, Error> {
        let volume = volume(&store)?;
        if volume.group != group {
            return Err(Error::OtherGroup { found: volume.group, expected: group });
        }
        let (changes, step_rows) = (Changes::default(), STEP_ROWS_MAX);
        Ok(Namespace { group, volume, store, changes, failure: None, undo: None, step_rows })
    }

    /// Smaller steps than [`STEP_ROWS_MAX`], for tests: the same on all replicas of all groups.
    pub fn set_step_rows(&mut self, rows: usize) {
        self.step_rows = rows;
    }

    /// What this group has to say to a command of several groups: its part of the verdict, and what the others need to
    /// know or to take over. Changes nothing. Whether it says yes depends on nothing that the command's footprint does not
    /// protect.
    pub fn contribute(&mut self, command: &Command) -> Bytes {
        self.contribute_beside(false, command)
    }

    /// As [`Namespace::contribute`]. `is_contended`: another unfinished command is about to change something that this one
    /// changes.
    fn contribute_beside(&mut self, is_contended: bool, command: &Command) -> Bytes {
        let contribution = match admit(command) {
            Ok(op) => self.contribution(&op).and_then(|mut part| {
                if part.refusals.is_empty() && !is_contended {
                    part.facts.directories = self.changing_directories(&op)?;
                }
                Ok(part)
            }),
            // Every destination sees that by itself when it executes.
            Err(_) => Ok(Contribution::default()),
        };
        self.settle(contribution.map(|contribution| codec::encode_contribution(&contribution)))
    }

    /// Executes a command and gives its encoded [`Outcome`]. `contributions` holds those of all its destinations if there
    /// are several.
    pub fn execute(&mut self, now: TimeNs, command: &Command, contributions: &Contributions) -> Bytes {
        self.execute_beside(now, false, command, contributions)
    }

    /// As [`Namespace::execute`]. `is_contended`: an unfinished command is about to change something that this one changes.
    fn execute_beside(
        &mut self,
        now: TimeNs,
        is_contended: bool,
        command: &Command,
        contributions: &Contributions,
    ) -> Bytes {
        let outcome = self.run(now, is_contended, command, contributions);
        let own = self.changes.keys.len();
        let drained = self.drain();
        self.settle(drained);
        let outcome = outcome.and_then(|outcome| match command.is_multi_group() {
            // All its groups give the same one.
            true => Ok(outcome),
            false => self.behind_steps(outcome, own),
        });
        self.settle(outcome.map(|outcome| codec::encode_outcome(&outcome)))
    }

    /// The outcome with the blocks that the steps behind it have left: its client keeps that, and is not told of them. `own`: so
    /// many of the changes are not those steps'.
    fn behind_steps(&self, mut outcome: Outcome, own: usize) -> Result<Outcome, Error> {
        let stepped = &self.changes.keys[own..];
        if stepped.is_empty() {
            return Ok(outcome);
        }
        for attr in outcome.iter_mut().flat_map(Done::inodes_mut) {
            if stepped.contains(&key_inode(attr.ino))
                && let Some(row) = self.inode(attr.ino)?
            {
                attr.allocated = row.attr.allocated;
            }
        }
        Ok(outcome)
    }

    /// A session was registered in this group.
    pub fn session_opened(&mut self, session: SessionId) {
        let done = self.finish_closing(session);
        self.settle(done);
        let done = self.put(keys::session(session), Vec::new());
        self.settle(done);
    }

    /// A session ended: it holds nothing any more.
    pub fn session_closed(&mut self, session: SessionId) {
        let done = self.forget_session(session);
        self.settle(done);
        let drained = self.drain();
        self.settle(drained);
    }

    /// Nothing happens but that time passes: goes on with what is done in steps.
    pub fn tick(&mut self) {
        let drained = self.drain();
        self.settle(drained);
    }

    /// What was changed since the last call.
    pub fn take_changes(&mut self) -> Changes {
        std::mem::take(&mut self.changes)
    }

    /// Why the store failed, if it did: nothing that was written since [`Namespace::open`] may be kept.
    #[must_use]
    pub fn failure(&self) -> Option<&Error> {
        self.failure.as_ref()
    }

    /// The store, to look at.
    #[must_use]
    pub fn store(&self) -> &S {
        &self.store
    }

    /// The store, with what was written.
    #[must_use]
    pub fn into_store(self) -> S {
        self.store
    }

    fn settle<T: Default>(&mut self, result: Result<T, Error>) -> T {
        result.unwrap_or_else(|error| {
            self.failure.get_or_insert(error);
            T::default()
        })
    }

    fn run(
        &mut self,
        now: TimeNs,
        is_contended: bool,
        command: &Command,
        contributions: &Contributions,
    ) -> Result<Outcome, Error> {
        let op = match admit(command) {
            Ok(op) => op,
            Err(errno) => return Ok(Err(OpError::Errno(errno))),
        };
        let session = command.id.session;
        let mut far = Vec::new();
        let (outcome, unchanged) = if !is_joint(&op) {
            (self.run_alone(now, session, &op)?, false)
        } else if command.is_multi_group() {
            let contributions = received(command, contributions);
            far = contributions.iter().flatten().flat_map(|part| self.far_directories(now, &op, part)).collect();
            self.run_joint(now, session, &op, contributions)?
        } else {
            let contribution = self.contribution(&op)?;
            self.run_joint(now, session, &op, Some(vec![contribution]))?
        };
        if outcome.is_ok() && !unchanged {
            let footprint = command.footprint(self.group).unwrap_or_default();
            self.changes.keys.extend(footprint.iter().filter(|(_, mode)| mode.changes()).map(|(key, _)| *key));
        }
        match outcome {
            Ok(done) if !is_contended => {
                let mut directories = self.directories_of(&op)?;
                if !unchanged {
                    directories.append(&mut far);
                }
                Ok(Ok(done.with_directories(directories)))
            }
            outcome => Ok(outcome),
        }
    }

    /// The directories of this group whose entries an update is about to change.
    fn changing_directories(&self, op: &FsOp) -> Result<Vec<InodeRow>, Error> {
        let here = op.entry_changes().into_iter().map(|(dir, ..)| dir).filter(|dir| dir.home == self.group);
        let mut rows: Vec<InodeRow> = Vec::new();
        for dir in here {
            if rows.iter().all(|row| row.attr.ino != dir.ino) {
                rows.extend(self.inode(dir.ino)?);
            }
        }
        Ok(rows)
    }

    /// What becomes of the directories that another group has told of.
    fn far_directories(&self, now: TimeNs, op: &FsOp, part: &Contribution) -> Vec<Attr> {
        let told = part.facts.directories.iter().filter(|row| row.attr.home != self.group);
        let after = |row: &InodeRow| {
            let mut row = row.clone();
            for (dir, change, links) in op.entry_changes() {
                if dir.ino == row.attr.ino {
                    change.make(&mut row, links, now);
                }
            }
            row.attr
        };
        told.map(after).collect()
    }

    /// The directories that an update which has executed may have changed, as they are now.
    fn directories_of(&self, op: &FsOp) -> Result<Vec<Attr>, Error> {
        let mut found: Vec<Attr> = Vec::new();
        for node in op.directories() {
            if node.home == self.group
                && found.iter().all(|attr| attr.ino != node.ino)
                && let Some(row) = self.inode(node.ino)?
            {
                found.push(row.attr);
            }
        }
        Ok(found)
    }

    /// Decides on an update that may have several destinations, and does this group's part of it. Also says whether it
    /// succeeded without changing anything.
    fn run_joint(
        &mut self,
        now: TimeNs,
        session: SessionId,
        op: &FsOp,
        contributions: Option<Vec<Contribution>>,
    ) -> Result<(Outcome, bool), Error> {
        let verdict = match contributions {
            Some(contributions) => verdict::join(now, contributions),
            None => Err(OpError::Errno(Errno::Malformed)),
        };
        let joint = match verdict {
            Ok(joint) => joint,
            Err(error) => return Ok((Err(error), false)),
        };
        let done = match op {
            FsOp::Create { .. } => self.apply_create(op, &joint)?,
            FsOp::Link { node, parent, name } => self.apply_link(*node, *parent, name, &joint)?,
            FsOp::Unlink { parent, name, target, keep_open } | FsOp::Rmdir { parent, name, target, keep_open } => {
                let holder = keep_open.then_some(session);
                self.apply_remove(*parent, name, *target, session, holder, &joint)?
            }
            FsOp::Rename { .. } => return self.apply_rename(op, session, &joint),
            FsOp::MoveInode { parent, name, node, to } => {
                return Ok((self.apply_move(*parent, name, *node, *to, &joint)?, false));
            }
            FsOp::StageMove { .. } => self.apply_stage(op, &joint)?,
            FsOp::SetAttr { .. }
            | FsOp::Write { .. }
            | FsOp::SetXattr { .. }
            | FsOp::RemoveXattr { .. }
            | FsOp::Lock { .. }
            | FsOp::ReleaseOrphans { .. }
            | FsOp::SetPlacement { .. }
            | FsOp::CancelMove { .. }
            | FsOp::Collected { .. } => None,
        };
        // A contribution that lacks what its group owes can only come from a group that disagrees on the rules.
        Ok((done.ok_or(OpError::Errno(Errno::Malformed)), false))
    }

    /// This group's part of the verdict on an update that may have several destinations.
    fn contribution(&self, op: &FsOp) -> Result<Contribution, Error> {
        let mut part = Contribution::default();
        match op {
            FsOp::Create { .. } => self.check_create(op, &mut part)?,
            FsOp::Link { node, parent, name } => self.check_link(*node, *parent, name, &mut part)?,
            FsOp::Unlink { parent, name, target, .. } => self.check_unlink(*parent, name, *target, &mut part)?,
            FsOp::Rmdir { parent, name, target, .. } => self.check_rmdir(*parent, name, *target, &mut part)?,
            FsOp::Rename { .. } => self.check_rename(op, &mut part)?,
            FsOp::MoveInode { parent, name, node, to } => self.check_move(*parent, name, *node, *to, &mut part)?,
            FsOp::StageMove { .. } => self.check_stage(op, &mut part)?,
            FsOp::SetAttr { .. }
            | FsOp::Write { .. }
            | FsOp::SetXattr { .. }
            | FsOp::RemoveXattr { .. }
            | FsOp::Lock { .. }
            | FsOp::ReleaseOrphans { .. }
            | FsOp::SetPlacement { .. }
            | FsOp::CancelMove { .. }
            | FsOp::Collected { .. } => {}
        }
        if !part.refusals.is_empty() {
            part.facts = verdict::Facts::default();
        }
        Ok(part)
    }

    /// Executes an update that has one destination by its nature. A refused one leaves nothing behind.
    fn run_alone(&mut self, now: TimeNs, session: SessionId, op: &FsOp) -> Result<Outcome, Error> {
        self.undo = Some(Vec::new());
        let step = match op {
            FsOp::SetAttr { node, set } => self.set_attr(now, *node, set),
            FsOp::Write { .. } => self.write(now, op),
            FsOp::SetXattr { node, name, value, condition } => self.set_xattr(now, *node, name, value, *condition),
            FsOp::RemoveXattr { node, name } => self.remove_xattr(now, *node, name),
            FsOp::Lock { .. } => self.lock(session, op),
            FsOp::ReleaseOrphans { inodes, .. } => self.release_orphans(session, inodes),
            FsOp::SetPlacement { dir, placement } => self.set_placement(now, *dir, *placement),
            FsOp::Collected { blobs, .. } => self.collected(blobs),
            FsOp::CancelMove { dir, .. } => self.cancel_move(*dir),
            FsOp::Create { .. }
            | FsOp::Link { .. }
            | FsOp::Unlink { .. }
            | FsOp::Rmdir { .. }
            | FsOp::Rename { .. }
            | FsOp::StageMove { .. }
            | FsOp::MoveInode { .. } => Err(Stop::errno(Rank::Malformed, Errno::Malformed)),
        };
        let before = self.undo.take().unwrap_or_default();
        match step {
            Ok(done) => Ok(Ok(done)),
            Err(Stop::Failed(error)) => Err(error),
            Err(Stop::Unfinished) => {
                let touched = op.destinations().into_iter().flat_map(|destination| destination.footprint);
                self.changes.keys.extend(touched.filter(|(_, mode)| mode.changes()).map(|(key, _)| key));
                Ok(Err(OpError::Stale(Vec::new())))
            }
            Err(Stop::Refused(refusal)) => {
                for (key, value) in before.into_iter().rev() {
                    match value {
                        Some(value) => self.store.put(key, value)?,
                        None => self.store.delete(&key)?,
                    }
                }
                Ok(Err(refusal.error))
            }
        }
    }
}

/// How many inodes and closed sessions have rows that go in later steps.
pub fn left_for_later(store: &(impl Store + ?Sized)) -> Result<u64, Error> {
    Ok(rows::read(store, &keys::unfinished())?.map_or(0, |unfinished: rows::Unfinished| unfinished.count))
}

impl<S: StoreMut> Machine for Namespace<S> {
    fn contribute(&mut self, context: &Context, command: &Command) -> Bytes {
        self.contribute_beside(context.is_contended, command)
    }

    fn execute(&mut self, context: &Context, command: &Command, contributions: &Contributions) -> Bytes {
        let now = TimeNs(i64::try_from(context.time_ns).unwrap_or(i64::MAX));
        self.execute_beside(now, context.is_contended, command, contributions)
    }

    fn session_opened(&mut self, _context: &Context, session: SessionId) {
        Namespace::session_opened(self, session);
    }

    fn session_closed(&mut self, _context: &Context, session: SessionId) {
        Namespace::session_closed(self, session);
    }

    fn tick(&mut self, _context: &Context) {
        Namespace::tick(self);
    }
}

/// Access to rows, for the families of operations.
impl<S: StoreMut> Namespace<S> {
    pub(crate) fn read<T: DeserializeOwned>(&self, key: &[u8]) -> Result<Option<T>, Error> {
        rows::read(&self.store, key)
    }

    pub(crate) fn put(&mut self, key: Vec<u8>, value: Vec<u8>) -> Result<(), Error> {
        if let Some(undo) = &mut self.undo {
            undo.push((key.clone(), self.store.get(&key)?));
        }
        self.store.put(key, value)
    }

    /// A row of which none has ever had the key: its number was given out just now.
    pub(crate) fn put_new(&mut self, key: Vec<u8>, value: Vec<u8>) -> Result<(), Error> {
        if let Some(undo) = &mut self.undo {
            undo.push((key.clone(), None));
        }
        self.store.put_new(key, value)
    }

    pub(crate) fn remove(&mut self, key: &[u8]) -> Result<(), Error> {
        if let Some(undo) = &mut self.undo {
            undo.push((key.to_vec(), self.store.get(key)?));
        }
        self.store.delete(key)
    }

    pub(crate) fn inode(&self, ino: InodeId) -> Result<Option<InodeRow>, Error> {
        self.read(&keys::inode(ino))
    }

    /// An inode that a verdict has found here, or that a row here refers to.
    pub(crate) fn owned_inode(&self, ino: InodeId) -> Result<InodeRow, Error> {
        let key = keys::inode(ino);
        self.read(&key)?.ok_or(Error::CorruptRow { key })
    }

    pub(crate) fn put_inode(&mut self, row: &InodeRow) -> Result<(), Error> {
        self.put(keys::inode(row.attr.ino), rows::encode(row))
    }

    /// The inode that an update names, if it is here and what it was taken for.
    pub(crate) fn subject(&self, node: NodeRef) -> Step<InodeRow> {
        match self.inode(node.ino)? {
            Some(row) if row.attr.kind == node.kind => Ok(row),
            Some(row) => Err(Stop::stale(Fact::Attr(Box::new(row.attr)))),
            None => Err(self.absent(node.ino)?),
        }
    }

    /// The directory that an update names.
    pub(crate) fn directory(&self, dir: NodeRef) -> Step<InodeRow> {
        let row = self.subject(dir)?;
        if row.attr.kind != FileKind::Directory {
            return Err(Stop::errno(Rank::NameMissing, Errno::NotDirectory));
        }
        if row.attr.nlink == 0 {
            return Err(Stop::errno(Rank::NameMissing, Errno::NotFound));
        }
        Ok(row)
    }

    fn absent(&self, ino: InodeId) -> Result<Stop, Error> {
        if let Some(home) = self.read(&keys::of_inode(keys::FORWARD, ino))? {
            let error = OpError::Moved { ino, home };
            return Ok(Stop::Refused(verdict::Refusal { rank: Rank::Moved, error }));
        }
        if self.is_unborn(ino)? {
            // Its creation may have executed elsewhere and be about to here: ask again.
            return Ok(Stop::Refused(verdict::Refusal { rank: Rank::Stale, error: OpError::Stale(Vec::new()) }));
        }
        Ok(Stop::errno(Rank::Gone, Errno::StaleHandle))
    }

    pub(crate) fn counters(&self) -> Result<Counters, Error> {
        Ok(self.read(&keys::counters())?.unwrap_or_default())
    }

    pub(crate) fn put_counters(&mut self, counters: &Counters) -> Result<(), Error> {
        self.put(keys::counters(), rows::encode(counters))
    }

    /// Adds to the totals of what is at home here.
    pub(crate) fn account(&mut self, inodes: i64, bytes: i64) -> Result<(), Error> {
        if inodes == 0 && bytes == 0 {
            return Ok(());
        }
        let mut counters = self.counters()?;
        counters.inodes = counters.inodes.saturating_add_signed(inodes);
        counters.bytes = counters.bytes.saturating_add_signed(bytes);
        self.put_counters(&counters)
    }
}

/// An update whose content and footprint agree with its rules.
fn admit(command: &Command) -> Result<FsOp, Errno> {
    let op = codec::decode_op(&command.payload).map_err(|_| Errno::Malformed)?;
    validate(&op)?;
    // What it touches beyond what it says would escape ordering.
    if op.destinations() == command.destinations { Ok(op) } else { Err(Errno::Malformed) }
}

/// Decodes every destination's contribution; `None` if one is missing or makes no sense.
fn received(command: &Command, contributions: &Contributions) -> Option<Vec<Contribution>> {
    let decode = |group| codec::decode_contribution(contributions.get(group)?).ok();
    command.groups().map(decode).collect()
}

/// True for updates that may have several destinations.
fn is_joint(op: &FsOp) -> bool {
    match op {
        FsOp::Create { .. }
        | FsOp::Link { .. }
        | FsOp::Unlink { .. }
        | FsOp::Rmdir { .. }
        | FsOp::Rename { .. }
        | FsOp::StageMove { .. }
        | FsOp::MoveInode { .. } => true,
        FsOp::SetAttr { .. }
        | FsOp::Write { .. }
        | FsOp::SetXattr { .. }
        | FsOp::RemoveXattr { .. }
        | FsOp::Lock { .. }
        | FsOp::ReleaseOrphans { .. }
        | FsOp::SetPlacement { .. }
        | FsOp::CancelMove { .. }
        | FsOp::Collected { .. } => false,
    }
}

/// Marks a change of anything.
pub(crate) fn touch_changed(attr: &mut Attr, now: TimeNs) {
    attr.ctime = attr.ctime.max(now);
}

/// Marks a change of content.
pub(crate) fn touch_modified(row: &mut InodeRow, now: TimeNs) {
    if now >= row.modified {
        row.attr.mtime = now;
        row.modified = now;
    }
    touch_changed(&mut row.attr, now);
}

/// What a new volume starts with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Genesis {
    /// Most bytes of one file that live in the metadata.
    pub inline_bytes_max: u32,
    /// The root directory's owner.
    pub uid: u32,
    /// The root directory's owning group.
    pub gid: u32,
    /// The root directory's permissions.
    pub mode: u16,
    /// The root directory's times. Equal on all replicas.
    pub time: TimeNs,
}

/// Writes the first rows of `group` into an empty store: in the global group the root directory, elsewhere none but the
/// volume's own.
pub fn genesis<S: StoreMut>(store: &mut S, group: GroupId, genesis: &Genesis) -> Result<(), Error> {
    let volume = Volume { group, inline_bytes_max: genesis.inline_bytes_max };
    store.put(keys::volume(), rows::encode(&volume))?;
    let mut counters = Counters::default();
    if group == GroupId::GLOBAL {
        let root = InodeRow::new(root(genesis));
        store.put(keys::inode(InodeId::ROOT), rows::encode(&root))?;
        counters = Counters { inode_last: 1, inodes: 1, ..counters };
    }
    store.put(keys::counters(), rows::encode(&counters))
}

fn root(genesis: &Genesis) -> Attr {
    Attr {
        ino: InodeId::ROOT,
        kind: FileKind::Directory,
        mode: genesis.mode & 0o7777,
        nlink: 2,
        uid: genesis.uid,
        gid: genesis.gid,
        rdev: 0,
        size: 0,
        allocated: 0,
        atime: genesis.time,
        mtime: genesis.time,
        ctime: genesis.time,
        btime: genesis.time,
        home: GroupId::GLOBAL,
        placement: GroupId::GLOBAL,
        parent: Some(InodeId::ROOT),
        data_version: 0,
        xattrs: 0,
    }
}

/// What holds for the whole volume.
pub fn volume<S: Store + ?Sized>(store: &S) -> Result<Volume, Error> {
    rows::read(store, &keys::volume())?.ok_or(Error::NoVolume)
}
