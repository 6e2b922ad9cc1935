//! Turns random numbers into updates that a client could send, most with right guesses, some with wrong ones, and says
//! what the model makes of each.

use std::collections::BTreeMap;

use bytes::Bytes;
use metadata::op::{
    Ancestor, Change, FsOp, LockKind, LockRange, NewNode, RenameMode, SetAttr, SetTime, WriteAt, XattrCondition,
};
use metadata::outcome::{Done, Fact, OpError, Outcome};
use metadata::types::{BlobId, BlobRange, FileKind, NodeRef, TimeNs};
use multicast::ids::{GroupId, SessionId};

use super::model::{Edit, Expected, Id, LOCK_POSITIONS, Model, ROOT};
use super::name;

pub const SESSIONS: [u64; 3] = [11, 22, 33];
const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];
const BLOB_LEN: u32 = 200;
/// How many kinds of updates there are, and which one shares blobs.
pub const KINDS: u8 = 22;
pub const SHARE: u8 = 16;

/// The numbers of one step.
pub type Dice = (u8, u16, u16, u16, u16, u32);
type Effect = Box<dyn FnOnce(&mut Model, i64) -> Expected>;

pub struct Plan {
    pub session: SessionId,
    pub op: FsOp,
    pub effect: Effect,
}

pub struct Planner {
    pub groups: u16,
    pub refs: BTreeMap<Id, NodeRef>,
    pub blobs: u64,
}

impl Planner {
    pub fn new(groups: u16) -> Self {
        Planner { groups, refs: BTreeMap::from([(ROOT, super::ROOT)]), blobs: 0 }
    }

    /// Notes where the model's nodes live now.
    pub fn follow(&mut self, model: &Model) {
        for (id, node_ref) in &mut self.refs {
            if let Some(node) = model.nodes.get(id) {
                node_ref.home = GroupId(node.home);
            }
        }
    }

    fn pick(&self, model: &Model, dice: u16, fits: impl Fn(Id) -> bool) -> Option<Id> {
        let all: Vec<Id> = model.nodes.keys().copied().filter(|id| self.refs.contains_key(id) && fits(*id)).collect();
        if all.is_empty() { None } else { Some(all[usize::from(dice) % all.len()]) }
    }

    fn dir(&self, model: &Model, dice: u16) -> Option<Id> {
        self.pick(model, dice, |id| model.is_dir(id))
    }

    /// A name that is there, mostly, and what it stands for; or what something else stands for.
    fn entry(&self, model: &Model, a: u16, b: u16, wrong: bool) -> Option<(Id, String, Id)> {
        let dir =
            if wrong { self.dir(model, a)? } else { self.pick(model, a, |id| !model.node(id).children.is_empty())? };
        let children: Vec<(&String, &Id)> = model.node(dir).children.iter().collect();
        if wrong || children.is_empty() {
            let guess = self.pick(model, b, |id| id != ROOT)?;
            return Some((dir, NAMES[usize::from(b >> 8) % NAMES.len()].to_owned(), guess));
        }
        let (name, child) = children[usize::from(b) % children.len()];
        self.refs.contains_key(child).then(|| (dir, name.clone(), *child))
    }

    pub fn plan(&mut self, model: &Model, dice: Dice) -> Option<Plan> {
        let (kind, a, b, c, d, e) = dice;
        let session = SESSIONS[usize::from(d >> 8) % SESSIONS.len()];
        let session = if model.sessions.contains(&session) { session } else { *model.sessions.first()? };
        let wrong = e % 11 == 0;
        let (op, effect) = match kind % KINDS {
            0..=2 => self.create(model, a, b, c, d)?,
            3 => self.link(model, a, b, c)?,
            4 | 5 => self.remove(model, session, (a, b, c), wrong)?,
            6..=9 => self.rename(model, session, (a, b, c, d, e), wrong)?,
            10 => self.set_attr(model, (a, b, c, d))?,
            11 => self.truncate(model, a, b)?,
            12..=15 => self.write(model, (a, b, c, d, e))?,
            SHARE => self.share(model, (a, b, c))?,
            17 => self.xattr(model, (a, b, c))?,
            18 => self.lock(model, session, (a, b, c, d))?,
            19 => self.release(model, session, a)?,
            20 => self.place(model, a, b)?,
            _ => self.move_inode(model, (a, b, c), wrong)?,
        };
        Some(Plan { session: SessionId(session), op, effect })
    }

    fn create(&self, model: &Model, a: u16, b: u16, c: u16, d: u16) -> Option<(FsOp, Effect)> {
        let parent = self.dir(model, a)?;
        let entry = NAMES[usize::from(b) % NAMES.len()];
        let placed = (c % 4 == 0).then_some(d % self.groups);
        let (node, kind, target, rdev) = match b >> 8 & 7 {
            0..=2 => (NewNode::Directory { placement: placed.map(GroupId) }, FileKind::Directory, "", 0),
            3 => (NewNode::Symlink { target: name("to/there") }, FileKind::Symlink, "to/there", 0),
            4 => (NewNode::CharDevice { rdev: 7 }, FileKind::CharDevice, "", 7),
            _ => (NewNode::File, FileKind::File, "", 0),
        };
        let placed = placed.filter(|_| kind == FileKind::Directory);
        let wrong = c % 17 == 1;
        let home = if wrong { d % self.groups } else { placed.unwrap_or(model.node(parent).placement) };
        let home = placed.unwrap_or(home);
        let owner = (0o644 | (d & 0o1000), u32::from(d % 3), u32::from(d % 5));
        let op = FsOp::Create {
            parent: self.refs[&parent],
            name: name(entry),
            node,
            mode: owner.0,
            uid: owner.1,
            gid: owner.2,
            home: GroupId(home),
        };
        let effect =
            move |model: &mut Model, now| model.create(now, parent, entry, kind, placed, home, owner, target, rdev);
        Some((op, Box::new(effect)))
    }

    fn link(&self, model: &Model, a: u16, b: u16, c: u16) -> Option<(FsOp, Effect)> {
        let (parent, node) = (self.dir(model, a)?, self.pick(model, b, |id| id != ROOT)?);
        let entry = NAMES[usize::from(c) % NAMES.len()];
        let op = FsOp::Link { node: self.refs[&node], parent: self.refs[&parent], name: name(entry) };
        Some((op, Box::new(move |model: &mut Model, now| model.link(now, node, parent, entry))))
    }

    fn remove(&self, model: &Model, session: u64, (a, b, c): (u16, u16, u16), wrong: bool) -> Option<(FsOp, Effect)> {
        let (dir, entry, guess) = self.entry(model, a, b, wrong)?;
        let keep_open = c % 3 == 0;
        let rmdir = model.is_dir(guess) != (c % 7 == 1);
        let (parent, entry_name, target) = (self.refs[&dir], name(&entry), self.refs[&guess]);
        let op = if rmdir {
            FsOp::Rmdir { parent, name: entry_name, target, keep_open }
        } else {
            FsOp::Unlink { parent, name: entry_name, target, keep_open }
        };
        let effect = move |model: &mut Model, now| model.remove(now, session, dir, &entry, guess, rmdir, keep_open);
        Some((op, Box::new(effect)))
    }

    fn rename(
        &self,
        model: &Model,
        session: u64,
        (a, b, c, d, e): (u16, u16, u16, u16, u32),
        wrong: bool,
    ) -> Option<(FsOp, Effect)> {
        let (from_dir, from_name, source) = self.entry(model, a, b, wrong)?;
        let to_dir = self.dir(model, c)?;
        let to_name = NAMES[usize::from(d) % NAMES.len()].to_owned();
        let mode =
            [RenameMode::Replace, RenameMode::Replace, RenameMode::NoReplace, RenameMode::Exchange][e as usize % 4];
        let found = model.node(to_dir).children.get(&to_name).copied();
        let guess = if e % 13 == 1 { self.pick(model, b, |id| id != ROOT) } else { found };
        if guess.is_some_and(|guess| !self.refs.contains_key(&guess)) {
            return None;
        }
        let ancestors = self.ancestors(model, (from_dir, source), (to_dir, guess), mode)?;
        let keep_open = e & 64 == 0;
        let op = FsOp::Rename {
            from_parent: self.refs[&from_dir],
            from_name: name(&from_name),
            source: self.refs[&source],
            to_parent: self.refs[&to_dir],
            to_name: name(&to_name),
            target: guess.map(|guess| self.refs[&guess]),
            mode,
            ancestors,
            keep_open,
        };
        let effect = move |model: &mut Model, now| {
            let (from, to) = ((from_dir, from_name.as_str(), source), (to_dir, to_name.as_str(), guess));
            model.rename(now, session, from, to, mode, keep_open)
        };
        Some((op, Box::new(effect)))
    }

    fn ancestors(
        &self,
        model: &Model,
        from: (Id, Id),
        to: (Id, Option<Id>),
        mode: RenameMode,
    ) -> Option<Vec<Ancestor>> {
        let mut ancestors = Vec::new();
        if from.0 == to.0 {
            return Some(ancestors);
        }
        if model.is_dir(from.1) {
            ancestors.extend(self.chain(model, to.0)?);
        }
        if mode == RenameMode::Exchange && to.1.is_some_and(|target| model.is_dir(target)) {
            for step in self.chain(model, from.0)? {
                if ancestors.iter().all(|known: &Ancestor| known.dir.ino != step.dir.ino) {
                    ancestors.push(step);
                }
            }
        }
        Some(ancestors)
    }

    fn chain(&self, model: &Model, dir: Id) -> Option<Vec<Ancestor>> {
        let step = |id: Id| {
            let parent = model.parent(id)?;
            Some(Ancestor { dir: *self.refs.get(&id)?, parent: self.refs.get(&parent)?.ino })
        };
        model.chain(dir).into_iter().map(step).collect()
    }

    fn set_attr(&self, model: &Model, (a, b, c, d): (u16, u16, u16, u16)) -> Option<(FsOp, Effect)> {
        let id = self.pick(model, a, |_| true)?;
        let node = self.refs[&id];
        if b % 3 == 0 {
            let (atime, mtime) = ((c % 2 == 0).then_some(i64::from(c) * 100), Some(i64::from(d) * 100));
            let time = |time: i64| SetTime::At(TimeNs(time));
            let set = SetAttr { atime: atime.map(time), mtime: mtime.map(time), ..SetAttr::default() };
            let effect = move |model: &mut Model, now| model.set_times(now, id, atime, mtime);
            return Some((FsOp::SetAttr { node, set }, Box::new(effect)));
        }
        let mode = (b % 2 == 0).then_some(c & 0o7777);
        let owner = (b % 5 < 2).then_some((u32::from(c % 4), u32::from(d % 4)));
        let kill = b % 7 == 0 || mode.is_none() && owner.is_none();
        let set = SetAttr {
            mode,
            uid: owner.map(|owner| owner.0),
            gid: owner.map(|owner| owner.1),
            kill_privileges: kill,
            ..SetAttr::default()
        };
        Some((
            FsOp::SetAttr { node, set },
            Box::new(move |model: &mut Model, now| model.set_attr(now, id, mode, owner, kill)),
        ))
    }

    fn truncate(&self, model: &Model, a: u16, b: u16) -> Option<(FsOp, Effect)> {
        let id = self.pick(model, a, |id| model.node(id).kind == FileKind::File || b % 9 == 0)?;
        let size = usize::from(b % 300);
        let set = SetAttr { size: Some(size as u64), ..SetAttr::default() };
        Some((
            FsOp::SetAttr { node: self.refs[&id], set },
            Box::new(move |model: &mut Model, now| model.truncate(now, id, size)),
        ))
    }

    fn write(&mut self, model: &Model, (a, b, c, d, e): (u16, u16, u16, u16, u32)) -> Option<(FsOp, Effect)> {
        let id = self.pick(model, a, |id| model.node(id).kind == FileKind::File)?;
        let mut edits = Vec::new();
        for (turn, dice) in [b, c, d].into_iter().take(1 + usize::from(a >> 8) % 3).enumerate() {
            let (offset, len) = (usize::from(dice % 199), 1 + usize::from(dice >> 8) % 60);
            edits.push(match e >> (4 * turn) & 15 {
                0..=5 => Edit::Inline(offset % 70, vec![dice as u8 | 1; len % 24]),
                6..=9 => {
                    self.blobs += 1;
                    Edit::Blob(offset, len, self.blobs, u32::from(dice % 100), true)
                }
                10 | 11 => Edit::Hole(offset, len),
                12 | 13 => Edit::Zero(offset, len),
                _ => Edit::Allocate(offset, len),
            });
        }
        let append = e & 1 << 20 != 0;
        let size_min = if e & 1 << 21 != 0 { (e >> 22) as usize % 250 } else { 0 };
        let kill = e & 1 << 31 != 0;
        Some(write(self.refs[&id], id, edits, append, size_min, kill))
    }

    /// copy_file_range: a part of a blob that some file has.
    fn share(&self, model: &Model, (a, b, c): (u16, u16, u16)) -> Option<(FsOp, Effect)> {
        let id = self.pick(model, a, |id| model.node(id).kind == FileKind::File)?;
        let blob = 1 + u64::from(b) % self.blobs.max(1);
        let edit = Edit::Blob(usize::from(c % 100), 1 + usize::from(c >> 8) % 50, blob, u32::from(c % 50), false);
        Some(write(self.refs[&id], id, vec![edit], false, 0, false))
    }

    fn xattr(&self, model: &Model, (a, b, c): (u16, u16, u16)) -> Option<(FsOp, Effect)> {
        let id = self.pick(model, a, |_| true)?;
        let node = self.refs[&id];
        let key = NAMES[usize::from(b) % 3];
        if b % 5 == 0 {
            let op = FsOp::RemoveXattr { node, name: name(key) };
            return Some((op, Box::new(move |model: &mut Model, now| model.remove_xattr(now, id, key))));
        }
        let condition = [XattrCondition::Any, XattrCondition::Create, XattrCondition::Replace][usize::from(c) % 3];
        let value = vec![c as u8; usize::from(c >> 8) % 20];
        let op = FsOp::SetXattr { node, name: name(key), value: Bytes::from(value.clone()), condition };
        Some((op, Box::new(move |model: &mut Model, now| model.set_xattr(now, id, key, &value, condition))))
    }

    fn lock(&self, model: &Model, session: u64, (a, b, c, d): (u16, u16, u16, u16)) -> Option<(FsOp, Effect)> {
        let id = self.pick(model, a, |_| true)?;
        let (start, end) = (usize::from(b) % LOCK_POSITIONS, usize::from(b >> 8) % LOCK_POSITIONS);
        let (start, end) = (start.min(end), start.max(end));
        let kind = [None, Some(LockKind::Read), Some(LockKind::Write)][usize::from(c) % 3];
        let (owner, flock) = (u64::from(d % 2), c & 256 != 0);
        let last = if end == LOCK_POSITIONS - 1 { u64::MAX } else { end as u64 };
        let range = LockRange { start: start as u64, end: last };
        let op = FsOp::Lock { node: self.refs[&id], owner, flock, range, kind, pid: 1 };
        Some((op, Box::new(move |model: &mut Model, _| model.lock(id, (flock, session, owner), (start, end), kind))))
    }

    fn release(&self, model: &Model, session: u64, a: u16) -> Option<(FsOp, Effect)> {
        let id = self.pick(model, a, |id| !model.is_alive(id))?;
        let node = self.refs[&id];
        let op = FsOp::ReleaseOrphans { home: node.home, inodes: vec![node.ino] };
        let effect = move |model: &mut Model, _| {
            model.release(session, id);
            Expected::Done(None)
        };
        Some((op, Box::new(effect)))
    }

    fn place(&self, model: &Model, a: u16, b: u16) -> Option<(FsOp, Effect)> {
        let (dir, placement) = (self.dir(model, a)?, b % self.groups);
        let op = FsOp::SetPlacement { dir: self.refs[&dir], placement: GroupId(placement) };
        Some((op, Box::new(move |model: &mut Model, now| model.set_placement(now, dir, placement))))
    }

    fn move_inode(&self, model: &Model, (a, b, c): (u16, u16, u16), wrong: bool) -> Option<(FsOp, Effect)> {
        let (dir, entry, guess) = self.entry(model, a, b, wrong)?;
        let to = c % self.groups;
        if to == model.node(guess).home {
            return None;
        }
        let op =
            FsOp::MoveInode { parent: self.refs[&dir], name: name(&entry), node: self.refs[&guess], to: GroupId(to) };
        Some((op, Box::new(move |model: &mut Model, _| model.move_node(dir, &entry, guess, to))))
    }
}

fn write(node: NodeRef, id: Id, edits: Vec<Edit>, append: bool, size_min: usize, kill: bool) -> (FsOp, Effect) {
    let op = FsOp::Write {
        node,
        at: if append { WriteAt::End } else { WriteAt::Offsets },
        changes: edits.iter().map(change).collect(),
        size_min: size_min as u64,
        mtime: None,
        kill_privileges: kill,
    };
    (op, Box::new(move |model: &mut Model, now| model.write(now, id, append, &edits, size_min, kill)))
}

fn change(edit: &Edit) -> Change {
    let wide = |offset: &usize, len: &usize| (*offset as u64, *len as u64);
    match edit {
        Edit::Inline(offset, bytes) => Change::Inline { offset: *offset as u64, bytes: Bytes::from(bytes.clone()) },
        Edit::Blob(offset, len, blob, start, fresh) => {
            let (offset, len) = wide(offset, len);
            let blob = BlobId { origin: 0, writer: 1, sequence: *blob };
            let source = BlobRange { blob, blob_len: BLOB_LEN, crc32c: 0, start: *start };
            Change::Blob { offset, len, source, fresh: *fresh }
        }
        Edit::Hole(offset, len) => {
            let (offset, len) = wide(offset, len);
            Change::Hole { offset, len }
        }
        Edit::Zero(offset, len) => {
            let (offset, len) = wide(offset, len);
            Change::Zero { offset, len }
        }
        Edit::Allocate(offset, len) => {
            let (offset, len) = wide(offset, len);
            Change::Allocate { offset, len }
        }
    }
}

/// An outcome must be what the model expects; a new inode is noted.
pub fn agree(outcome: &Outcome, expected: &Expected, refs: &mut BTreeMap<Id, NodeRef>) {
    match (outcome, expected) {
        (Ok(Done::Nothing), Expected::Done(None)) => {}
        (
            Ok(Done::Node { attr, .. } | Done::Removed { attr, .. } | Done::Renamed { attr, .. }),
            Expected::Done(Some(id)),
        ) => {
            let shown = NodeRef { ino: attr.ino, kind: attr.kind, home: attr.home };
            let known = *refs.entry(*id).or_insert(shown);
            assert_eq!((known.ino, known.kind), (shown.ino, shown.kind), "the inode that was meant");
        }
        (Err(OpError::Errno(errno)), Expected::Errno(wanted)) => assert_eq!(errno, wanted),
        (Err(OpError::Exists(dirent)), Expected::Exists(id)) => assert_eq!(*dirent, refs[id]),
        (Err(OpError::Stale(facts)), Expected::Stale) => assert!(!facts.is_empty()),
        (Err(OpError::LockHeld { .. }), Expected::LockHeld) => {}
        _ => panic!("{outcome:?} instead of {expected:?}"),
    }
}

/// The facts of a refusal must be true.
pub fn facts_hold(outcome: &Outcome, model: &Model, refs: &BTreeMap<Id, NodeRef>) {
    let Err(OpError::Stale(facts)) = outcome else { return };
    let id_of = |ino| refs.iter().find(|(_, node)| node.ino == ino).map(|(id, _)| *id).unwrap();
    for fact in facts {
        match fact {
            Fact::Name { parent, name, dirent } => {
                let children = &model.node(id_of(*parent)).children;
                let held = children.get(std::str::from_utf8(name).unwrap()).map(|id| refs[id]);
                assert_eq!(*dirent, held);
            }
            Fact::Placement { dir, placement } => {
                assert_eq!(placement.0, model.node(id_of(*dir)).placement);
            }
            Fact::Parent { dir, parent } => assert_eq!(model.parent(id_of(*dir)), Some(id_of(*parent))),
            Fact::BlobGone(_) | Fact::Attr(_) => {}
        }
    }
}
