//! The naive model: nodes in a map, contents byte by byte, link counts by counting. It shares nothing with the namespace
//! but the types of its words.

use std::collections::{BTreeMap, BTreeSet};

use metadata::op::{LockKind, RenameMode, XattrCondition};
use metadata::outcome::Errno;
use metadata::types::FileKind;

pub type Id = usize;
pub type Session = u64;
/// Locks are modelled over so many positions; the last stands for the rest of the range.
pub const LOCK_POSITIONS: usize = 40;

/// How an update must end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expected {
    Done(Option<Id>),
    Errno(Errno),
    Exists(Id),
    Stale,
    LockHeld,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cell {
    Hole,
    Zero,
    Inline(u8),
    Blob(u64, u32),
}

#[derive(Clone, Debug)]
pub struct Node {
    pub kind: FileKind,
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    pub rdev: u32,
    pub atime: i64,
    pub mtime: i64,
    pub ctime: i64,
    pub btime: i64,
    pub home: u16,
    pub placement: u16,
    pub children: BTreeMap<String, Id>,
    pub cells: Vec<Cell>,
    pub size: usize,
    pub target: String,
    pub xattrs: BTreeMap<String, Vec<u8>>,
    pub holders: BTreeSet<Session>,
    pub locks: BTreeMap<(bool, Session, u64), Vec<Option<LockKind>>>,
}

#[derive(Clone, Debug)]
pub enum Edit {
    Inline(usize, Vec<u8>),
    /// Offset, length, blob, offset in the blob, fresh.
    Blob(usize, usize, u64, u32, bool),
    Hole(usize, usize),
    Zero(usize, usize),
    Allocate(usize, usize),
}

pub struct Model {
    pub nodes: BTreeMap<Id, Node>,
    pub sessions: BTreeSet<Session>,
    pub next: Id,
    pub inline_max: usize,
}

pub const ROOT: Id = 0;

impl Model {
    pub fn new(inline_max: usize) -> Self {
        let mut model = Model { nodes: BTreeMap::new(), sessions: BTreeSet::new(), next: 1, inline_max };
        let root = new_node(FileKind::Directory, 0o755, 0, 0, 0, 0, 1000);
        model.nodes.insert(ROOT, root);
        model
    }

    pub fn node(&self, id: Id) -> &Node {
        &self.nodes[&id]
    }

    fn node_mut(&mut self, id: Id) -> &mut Node {
        self.nodes.get_mut(&id).unwrap()
    }

    pub fn is_dir(&self, id: Id) -> bool {
        self.node(id).kind == FileKind::Directory
    }

    /// How many names there are of a node.
    pub fn names(&self, id: Id) -> usize {
        self.nodes.values().map(|node| node.children.values().filter(|child| **child == id).count()).sum()
    }

    pub fn parent(&self, id: Id) -> Option<Id> {
        self.nodes.iter().find(|(_, node)| node.children.values().any(|child| *child == id)).map(|(parent, _)| *parent)
    }

    pub fn is_alive(&self, id: Id) -> bool {
        id == ROOT || self.names(id) > 0
    }

    pub fn nlink(&self, id: Id) -> u32 {
        if !self.is_dir(id) {
            return self.names(id) as u32;
        }
        if !self.is_alive(id) {
            return 0;
        }
        2 + self.node(id).children.values().filter(|child| self.is_dir(**child)).count() as u32
    }

    /// From a directory up to, without, the root.
    pub fn chain(&self, dir: Id) -> Vec<Id> {
        let mut chain = Vec::new();
        let mut at = dir;
        while at != ROOT {
            chain.push(at);
            match self.parent(at) {
                Some(parent) => at = parent,
                None => break,
            }
        }
        chain
    }

    fn touch_dir(&mut self, dir: Id, now: i64) {
        let dir = self.node_mut(dir);
        dir.mtime = now;
        dir.ctime = now;
    }

    fn touch(&mut self, id: Id, now: i64) {
        let node = self.node_mut(id);
        node.ctime = node.ctime.max(now);
    }

    fn check_parent(&self, parent: Id) -> Result<(), Expected> {
        if !self.is_alive(parent) {
            return Err(Expected::Errno(Errno::NotFound));
        }
        Ok(())
    }

    fn check_entry(&self, parent: Id, name: &str, guess: Id) -> Result<(), Expected> {
        match self.node(parent).children.get(name) {
            None => Err(Expected::Errno(Errno::NotFound)),
            Some(found) if *found != guess => Err(Expected::Stale),
            Some(_) => Ok(()),
        }
    }
}

/// Names.
impl Model {
    #[allow(clippy::too_many_arguments)]
    pub fn create(
        &mut self,
        now: i64,
        parent: Id,
        name: &str,
        kind: FileKind,
        placement: Option<u16>,
        home: u16,
        owner: (u16, u32, u32),
        target: &str,
        rdev: u32,
    ) -> Expected {
        if let Err(expected) = self.check_parent(parent) {
            return expected;
        }
        if let Some(found) = self.node(parent).children.get(name) {
            return Expected::Exists(*found);
        }
        if placement.unwrap_or(self.node(parent).placement) != home {
            return Expected::Stale;
        }
        let (mut mode, uid, mut gid) = owner;
        if self.node(parent).mode & 0o2000 != 0 {
            gid = self.node(parent).gid;
            if kind == FileKind::Directory {
                mode |= 0o2000;
            }
        }
        let mut node = new_node(kind, mode, uid, gid, rdev, home, now);
        node.target = target.to_owned();
        node.size = target.len();
        let id = self.next;
        self.next += 1;
        self.nodes.insert(id, node);
        self.node_mut(parent).children.insert(name.to_owned(), id);
        self.touch_dir(parent, now);
        Expected::Done(Some(id))
    }

    pub fn link(&mut self, now: i64, node: Id, parent: Id, name: &str) -> Expected {
        if let Err(expected) = self.check_parent(parent) {
            return expected;
        }
        if !self.is_alive(node) {
            return Expected::Errno(Errno::NotFound);
        }
        if let Some(found) = self.node(parent).children.get(name) {
            return Expected::Exists(*found);
        }
        if self.is_dir(node) {
            return Expected::Errno(Errno::NotPermitted);
        }
        self.node_mut(parent).children.insert(name.to_owned(), node);
        self.touch_dir(parent, now);
        self.touch(node, now);
        Expected::Done(Some(node))
    }

    /// unlink or rmdir.
    pub fn remove(
        &mut self,
        now: i64,
        asker: Session,
        parent: Id,
        name: &str,
        guess: Id,
        rmdir: bool,
        keep_open: bool,
    ) -> Expected {
        if let Err(expected) = self.check_parent(parent).and_then(|()| self.check_entry(parent, name, guess)) {
            return expected;
        }
        match (rmdir, self.is_dir(guess)) {
            (true, false) => return Expected::Errno(Errno::NotDirectory),
            (false, true) => return Expected::Errno(Errno::IsDirectory),
            _ => {}
        }
        if rmdir && !self.node(guess).children.is_empty() {
            return Expected::Errno(Errno::NotEmpty);
        }
        self.node_mut(parent).children.remove(name);
        self.touch_dir(parent, now);
        self.touch(guess, now);
        self.let_go(asker, guess, keep_open);
        Expected::Done(Some(guess))
    }

    fn let_go(&mut self, asker: Session, id: Id, keep_open: bool) {
        if self.names(id) > 0 {
            return;
        }
        let holders = self.sessions.iter().copied().filter(|session| *session != asker || keep_open).collect();
        self.node_mut(id).holders = holders;
        self.reap(id);
    }

    fn reap(&mut self, id: Id) {
        if id != ROOT && self.names(id) == 0 && self.node(id).holders.is_empty() {
            self.nodes.remove(&id);
        }
    }

    #[allow(clippy::too_many_arguments)]
    pub fn rename(
        &mut self,
        now: i64,
        asker: Session,
        from: (Id, &str, Id),
        to: (Id, &str, Option<Id>),
        mode: RenameMode,
        keep_open: bool,
    ) -> Expected {
        let found = self.node(to.0).children.get(to.1).copied();
        if let Some(expected) = self.refuse_rename(from, to, found, mode) {
            return expected;
        }
        let source = from.2;
        if found == Some(source) {
            return Expected::Done(Some(source));
        }
        let (source_home, target_home) =
            (self.new_home(source, to.0), found.map(|target| self.new_home(target, from.0)));
        self.node_mut(from.0).children.remove(from.1);
        self.node_mut(to.0).children.insert(to.1.to_owned(), source);
        self.touch_dir(from.0, now);
        self.touch_dir(to.0, now);
        self.touch(source, now);
        self.settle(source, source_home);
        let Some(target) = found else { return Expected::Done(Some(source)) };
        self.touch(target, now);
        if mode == RenameMode::Exchange {
            self.node_mut(from.0).children.insert(from.1.to_owned(), target);
            self.settle(target, target_home.unwrap());
        } else {
            self.let_go(asker, target, keep_open);
        }
        Expected::Done(Some(source))
    }

    fn refuse_rename(
        &self,
        from: (Id, &str, Id),
        to: (Id, &str, Option<Id>),
        found: Option<Id>,
        mode: RenameMode,
    ) -> Option<Expected> {
        let errno = |errno| Some(Expected::Errno(errno));
        let at_source = self.node(from.0).children.get(from.1).copied();
        if !self.is_alive(from.0) || !self.is_alive(to.0) || at_source.is_none() {
            return errno(Errno::NotFound);
        }
        match (mode, found) {
            (RenameMode::Exchange, None) => return errno(Errno::NotFound),
            (RenameMode::NoReplace, Some(found)) => return Some(Expected::Exists(found)),
            _ => {}
        }
        if at_source != Some(from.2) || mode != RenameMode::NoReplace && found != to.2 {
            return Some(Expected::Stale);
        }
        let source = from.2;
        let reparents = from.0 != to.0;
        if reparents && self.is_dir(source) && self.chain(to.0).contains(&source) {
            return errno(Errno::Invalid);
        }
        let target = found.filter(|target| *target != source)?;
        if mode == RenameMode::Exchange {
            if reparents && self.is_dir(target) && self.chain(from.0).contains(&target) {
                return errno(Errno::Invalid);
            }
            return None;
        }
        match (self.is_dir(source), self.is_dir(target)) {
            (true, false) => errno(Errno::NotDirectory),
            (false, true) => errno(Errno::IsDirectory),
            (true, true) if !self.node(target).children.is_empty() => errno(Errno::NotEmpty),
            _ => None,
        }
    }

    /// Where a node lives when it gets a name in `dir`.
    fn new_home(&self, id: Id, dir: Id) -> u16 {
        let (node, dir) = (self.node(id), self.node(dir));
        let moves = node.kind != FileKind::Directory
            && self.names(id) == 1
            && node.locks.is_empty()
            && dir.placement == dir.home;
        if moves { dir.home } else { node.home }
    }

    fn settle(&mut self, id: Id, home: u16) {
        let node = self.node_mut(id);
        node.home = home;
        if node.kind != FileKind::Directory {
            node.placement = home;
        }
    }

    pub fn move_node(&mut self, parent: Id, name: &str, guess: Id, to: u16) -> Expected {
        if let Err(expected) = self.check_parent(parent).and_then(|()| self.check_entry(parent, name, guess)) {
            return expected;
        }
        let node = self.node(guess);
        if node.kind != FileKind::Directory && self.names(guess) > 1 || !node.locks.is_empty() {
            return Expected::Stale;
        }
        self.settle(guess, to);
        Expected::Done(Some(guess))
    }

    pub fn set_placement(&mut self, now: i64, dir: Id, placement: u16) -> Expected {
        if !self.is_alive(dir) {
            return Expected::Errno(Errno::NotFound);
        }
        if self.node(dir).placement != placement {
            self.node_mut(dir).placement = placement;
            self.touch(dir, now);
        }
        Expected::Done(Some(dir))
    }
}

/// Inodes.
impl Model {
    pub fn set_attr(&mut self, now: i64, id: Id, mode: Option<u16>, owner: Option<(u32, u32)>, kill: bool) -> Expected {
        let node = self.node_mut(id);
        if kill {
            kill_privileges(node);
        }
        if let Some(mode) = mode {
            node.mode = mode;
        }
        if let Some((uid, gid)) = owner {
            (node.uid, node.gid) = (uid, gid);
        }
        self.touch(id, now);
        Expected::Done(Some(id))
    }

    pub fn set_times(&mut self, now: i64, id: Id, atime: Option<i64>, mtime: Option<i64>) -> Expected {
        let node = self.node_mut(id);
        node.atime = atime.unwrap_or(node.atime);
        node.mtime = mtime.unwrap_or(node.mtime);
        self.touch(id, now);
        Expected::Done(Some(id))
    }

    pub fn truncate(&mut self, now: i64, id: Id, size: usize) -> Expected {
        if let Some(expected) = self.refuse_content(id) {
            return expected;
        }
        let node = self.node_mut(id);
        node.cells.truncate(size);
        node.size = size;
        node.mtime = now;
        self.touch(id, now);
        Expected::Done(Some(id))
    }

    fn refuse_content(&self, id: Id) -> Option<Expected> {
        match self.node(id).kind {
            FileKind::File => None,
            FileKind::Directory => Some(Expected::Errno(Errno::IsDirectory)),
            _ => Some(Expected::Errno(Errno::Invalid)),
        }
    }

    pub fn write(&mut self, now: i64, id: Id, append: bool, edits: &[Edit], size_min: usize, kill: bool) -> Expected {
        if let Some(expected) = self.refuse_content(id) {
            return expected;
        }
        let mut node = self.node(id).clone();
        let base = if append { node.size } else { 0 };
        let size_before = node.size;
        node.size = node.size.max(base + size_min);
        for edit in edits {
            if let Edit::Blob(_, _, blob, _, false) = edit
                && !self.refers(node.home, *blob)
            {
                return Expected::Stale;
            }
            apply_edit(&mut node, base, edit);
        }
        let inline = node.cells.iter().filter(|cell| matches!(cell, Cell::Inline(_))).count();
        if inline > self.inline_max {
            return Expected::Stale;
        }
        if !edits.is_empty() || node.size != size_before {
            node.mtime = now;
            node.ctime = now;
        }
        if kill {
            kill_privileges(&mut node);
            node.ctime = now;
        }
        self.nodes.insert(id, node);
        Expected::Done(Some(id))
    }

    /// True if a file of the group has bytes in the blob.
    pub fn refers(&self, group: u16, blob: u64) -> bool {
        let of_group = self.nodes.values().filter(|node| node.home == group);
        of_group.flat_map(|node| &node.cells).any(|cell| matches!(cell, Cell::Blob(found, _) if *found == blob))
    }

    pub fn set_xattr(&mut self, now: i64, id: Id, name: &str, value: &[u8], condition: XattrCondition) -> Expected {
        let exists = self.node(id).xattrs.contains_key(name);
        match (condition, exists) {
            (XattrCondition::Create, true) => return Expected::Errno(Errno::Exists),
            (XattrCondition::Replace, false) => return Expected::Errno(Errno::NoXattr),
            _ => {}
        }
        self.node_mut(id).xattrs.insert(name.to_owned(), value.to_vec());
        self.touch(id, now);
        Expected::Done(Some(id))
    }

    pub fn remove_xattr(&mut self, now: i64, id: Id, name: &str) -> Expected {
        if self.node_mut(id).xattrs.remove(name).is_none() {
            return Expected::Errno(Errno::NoXattr);
        }
        self.touch(id, now);
        Expected::Done(Some(id))
    }

    pub fn lock(
        &mut self,
        id: Id,
        owner: (bool, Session, u64),
        range: (usize, usize),
        kind: Option<LockKind>,
    ) -> Expected {
        let node = self.node_mut(id);
        let clashes = |held: LockKind| kind == Some(LockKind::Write) || kind.is_some() && held == LockKind::Write;
        for (other, held) in &node.locks {
            let others = other.0 == owner.0 && *other != owner;
            if others && held[range.0..=range.1].iter().flatten().any(|held| clashes(*held)) {
                return Expected::LockHeld;
            }
        }
        let held = node.locks.entry(owner).or_insert_with(|| vec![None; LOCK_POSITIONS]);
        held[range.0..=range.1].fill(kind);
        node.locks.retain(|_, held| held.iter().any(Option::is_some));
        Expected::Done(None)
    }

    pub fn release(&mut self, session: Session, id: Id) {
        self.node_mut(id).holders.remove(&session);
        self.reap(id);
    }

    pub fn close_session(&mut self, session: Session) {
        self.sessions.remove(&session);
        for id in self.nodes.keys().copied().collect::<Vec<_>>() {
            self.node_mut(id).locks.retain(|(_, holder, _), _| *holder != session);
            self.release(session, id);
        }
    }
}

fn new_node(kind: FileKind, mode: u16, uid: u32, gid: u32, rdev: u32, home: u16, now: i64) -> Node {
    Node {
        kind,
        mode,
        uid,
        gid,
        rdev,
        atime: now,
        mtime: now,
        ctime: now,
        btime: now,
        home,
        placement: home,
        children: BTreeMap::new(),
        cells: Vec::new(),
        size: 0,
        target: String::new(),
        xattrs: BTreeMap::new(),
        holders: BTreeSet::new(),
        locks: BTreeMap::new(),
    }
}

fn kill_privileges(node: &mut Node) {
    if node.kind != FileKind::Directory {
        let group_executes = node.mode & 0o10 != 0;
        node.mode &= if group_executes { !0o6000 } else { !0o4000 };
    }
}

fn apply_edit(node: &mut Node, base: usize, edit: &Edit) {
    let (start, len) = match edit {
        Edit::Inline(offset, bytes) => (base + offset, bytes.len()),
        Edit::Blob(offset, len, ..)
        | Edit::Hole(offset, len)
        | Edit::Zero(offset, len)
        | Edit::Allocate(offset, len) => (base + offset, *len),
    };
    let end = start + len;
    if node.cells.len() < end {
        node.cells.resize(end, Cell::Hole);
    }
    for at in start..end {
        let old = node.cells[at];
        node.cells[at] = match edit {
            Edit::Inline(_, bytes) => Cell::Inline(bytes[at - start]),
            Edit::Blob(_, _, blob, from, _) => Cell::Blob(*blob, from + (at - start) as u32),
            Edit::Hole(..) => Cell::Hole,
            Edit::Zero(..) => Cell::Zero,
            Edit::Allocate(..) if old == Cell::Hole => Cell::Zero,
            Edit::Allocate(..) => old,
        };
    }
    if matches!(edit, Edit::Inline(..) | Edit::Blob(..)) && len > 0 {
        node.size = node.size.max(end);
    }
}

/// The byte of a blob at a place.
pub fn blob_byte(blob: u64, at: u32) -> u8 {
    (blob as u8).wrapping_mul(37).wrapping_add(at as u8).wrapping_mul(11) | 1
}

pub fn bytes_of(node: &Node) -> Vec<u8> {
    let mut bytes = vec![0; node.size];
    for (byte, cell) in bytes.iter_mut().zip(&node.cells) {
        *byte = match cell {
            Cell::Hole | Cell::Zero => 0,
            Cell::Inline(byte) => *byte,
            Cell::Blob(blob, at) => blob_byte(*blob, *at),
        };
    }
    bytes
}

pub fn allocated(node: &Node) -> usize {
    node.cells.iter().filter(|cell| **cell != Cell::Hole).count()
}
