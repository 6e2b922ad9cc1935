//! What applications do, as seen by one client: POSIX-like operations over what it has come across so far. Each looks, then
//! acts on what it saw, and learns from refusals as a mount does.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use bytes::Bytes;
use metadata::op::{Ancestor, Change, FsOp, NewNode, RenameMode, SetAttr, SetTime, WriteAt, XattrCondition};
use metadata::outcome::{Done, Fact, OpError};
use metadata::read::{ReadAnswer, ReadOp, ReadResult};
use metadata::types::{Attr, BlobRange, Dirent, FileKind, InodeId, NodeRef, TimeNs};
use multicast::ids::GroupId;

use crate::desk::{Hands, Listed};
use crate::options::Mix;

/// Tries of one operation on moving ground.
const TRIES_MAX: usize = 8;
/// Inodes that a client remembers.
const KNOWN_MAX: usize = 24;
/// One more than a client keeps of a directory.
const NAMES_ASKED: u32 = 1001;
/// Blobs of this length.
const BLOB_BYTES: u32 = 1000;

/// The root.
pub const ROOT: NodeRef = NodeRef { ino: InodeId::ROOT, kind: FileKind::Directory, home: GroupId::GLOBAL };

/// What a client has come across.
#[derive(Debug)]
pub struct Memory {
    dirs: Vec<NodeRef>,
    others: Vec<NodeRef>,
    homes: BTreeMap<InodeId, GroupId>,
    placements: BTreeMap<InodeId, GroupId>,
}

impl Default for Memory {
    fn default() -> Self {
        Memory { dirs: vec![ROOT], others: Vec::new(), homes: BTreeMap::new(), placements: BTreeMap::new() }
    }
}

impl Memory {
    fn remember(&mut self, node: NodeRef) {
        self.homes.insert(node.ino, node.home);
        let list = if node.kind == FileKind::Directory { &mut self.dirs } else { &mut self.others };
        match list.iter_mut().find(|known| known.ino == node.ino) {
            Some(known) => *known = node,
            None => list.push(node),
        }
        if list.len() > KNOWN_MAX {
            // The root stays.
            list.remove(1);
        }
    }

    fn note(&mut self, attr: &Attr) {
        if attr.kind == FileKind::Directory {
            self.placements.insert(attr.ino, attr.placement);
        }
        self.remember(NodeRef { ino: attr.ino, kind: attr.kind, home: attr.home });
    }

    fn forget(&mut self, ino: InodeId) {
        self.dirs.retain(|node| node.ino != ino || ino == InodeId::ROOT);
        self.others.retain(|node| node.ino != ino);
    }

    fn at_home(&self, node: NodeRef) -> NodeRef {
        NodeRef { home: self.homes.get(&node.ino).copied().unwrap_or(node.home), ..node }
    }
}

/// A client's applications.
#[derive(Clone, Debug)]
pub struct Application {
    hands: Hands,
    memory: Rc<RefCell<Memory>>,
    mix: Mix,
    groups: u16,
}

impl Application {
    /// With nothing known but the root.
    #[must_use]
    pub fn new(hands: Hands, mix: Mix, groups: u16) -> Application {
        Application { hands, memory: Rc::default(), mix, groups }
    }

    /// One operation, whatever comes of it.
    pub async fn operate(self) {
        if self.chance(self.mix.reads) {
            return self.look().await;
        }
        let dice = self.below(1000);
        if dice < self.mix.structure {
            match self.below(10) {
                0..=5 => self.rename().await,
                6 => self.place().await,
                7 => self.move_inode().await,
                8 => self.link().await,
                _ => self.make_directory().await,
            }
        } else if dice < self.mix.structure + self.mix.content {
            match self.below(8) {
                0..=4 => self.write().await,
                5 => self.set_attr().await,
                6 => self.set_xattr().await,
                _ => self.create_file().await,
            }
        } else {
            match self.below(8) {
                0..=1 => self.create_file().await,
                2..=3 => self.make_directory().await,
                4..=6 => self.remove().await,
                _ => self.link().await,
            }
        }
    }

    /// Deletes garbage of a group, as a primary's collector does.
    pub async fn collect(self, group: GroupId, wrongly: bool) {
        let read = self.hands.read(group, ReadOp::Garbage { limit: 16 }, false).await;
        let Ok(ReadAnswer::Garbage(blobs)) = read else { return };
        if blobs.is_empty() {
            return;
        }
        self.hands.delete(blobs.clone()).await;
        if !wrongly {
            self.hands.update(FsOp::Collected { home: group, blobs }).await;
        }
    }

    fn below(&self, end: u64) -> u64 {
        self.hands.draw(|rnd| rnd.below(end))
    }

    fn chance(&self, per_mille: u64) -> bool {
        self.hands.draw(|rnd| rnd.chance(per_mille))
    }

    fn name(&self) -> Bytes {
        Bytes::from(vec![b'a' + self.below(self.mix.names) as u8])
    }

    fn some_dir(&self) -> NodeRef {
        let memory = self.memory.borrow();
        self.hands.draw(|rnd| if rnd.chance(250) { ROOT } else { *rnd.pick(&memory.dirs) })
    }

    fn some_node(&self, files_only: bool) -> Option<NodeRef> {
        let memory = self.memory.borrow();
        let files = memory.others.iter().copied().filter(|node| !files_only || node.kind == FileKind::File);
        let dirs = memory.dirs.iter().copied().filter(|_| !files_only);
        self.hands.draw(|rnd| rnd.choose(files.chain(dirs)))
    }

    fn some_group(&self) -> GroupId {
        GroupId(self.below(u64::from(self.groups)) as u16)
    }

    /// Reads, wherever the inode lives now.
    async fn read(&self, node: NodeRef, op: ReadOp) -> ReadResult {
        let linearizable = self.chance(self.mix.linearizable);
        let mut home = self.memory.borrow().at_home(node).home;
        for _ in 0..TRIES_MAX {
            let result = self.hands.read(home, op.clone(), linearizable).await;
            let Err(OpError::Moved { ino, home: elsewhere }) = result else { return result };
            self.memory.borrow_mut().homes.insert(ino, elsewhere);
            home = elsewhere;
        }
        Err(OpError::Errno(metadata::outcome::Errno::Busy))
    }

    async fn lookup(&self, dir: NodeRef, name: &Bytes) -> Option<Option<Dirent>> {
        match self.read(dir, ReadOp::Lookup { parent: dir.ino, name: name.clone() }).await {
            Ok(ReadAnswer::Lookup(found)) => {
                let dirent = found.map(|(dirent, _)| dirent);
                if let Some(dirent) = dirent {
                    self.memory.borrow_mut().remember(dirent);
                }
                Some(dirent)
            }
            Ok(_) => None,
            Err(_) => {
                self.memory.borrow_mut().forget(dir.ino);
                None
            }
        }
    }

    async fn look(&self) {
        if self.chance(self.mix.lookups) {
            let dir = self.some_dir();
            if self.lookup(dir, &self.name()).await == Some(None) && self.chance(400) {
                self.learn_names(dir).await;
            }
            return;
        }
        let Some(node) = self.some_node(false) else { return };
        let ino = node.ino;
        let op = match (self.below(3), node.kind) {
            (0, FileKind::Directory) if self.chance(500) => return self.list(node).await,
            (0, FileKind::Directory) => ReadOp::ReadDir { dir: ino, after: 0, limit: 100, plus: self.chance(500) },
            (0, FileKind::File) => ReadOp::Content { ino, offset: 0, len: 1 << 20 },
            _ => ReadOp::GetAttr { ino },
        };
        match self.read(node, op).await {
            Ok(ReadAnswer::Attr(attr)) => self.memory.borrow_mut().note(&attr),
            Ok(ReadAnswer::Entries { entries, .. }) => {
                let mut memory = self.memory.borrow_mut();
                entries.iter().for_each(|entry| memory.remember(entry.dirent));
            }
            Ok(_) => {}
            Err(_) => self.memory.borrow_mut().forget(ino),
        }
    }

    /// Lists a directory from its beginning to its end, a few names at a time.
    async fn list(&self, dir: NodeRef) {
        let (limit, plus) = (1 + self.below(3) as u32, self.chance(300));
        let (mut home, mut after) = (self.memory.borrow().at_home(dir).home, 0);
        let mut pieces = Vec::new();
        for _ in 0..4 * TRIES_MAX {
            let op = ReadOp::ReadDir { dir: dir.ino, after, limit, plus };
            match self.hands.read_numbered(home, op, false).await {
                (ask, Ok(ReadAnswer::Entries { entries, end })) => {
                    entries.iter().for_each(|entry| self.memory.borrow_mut().remember(entry.dirent));
                    after = entries.last().map_or(after, |entry| entry.cookie);
                    let is_end = end || entries.is_empty();
                    pieces.push((ask, entries));
                    if is_end {
                        return self.hands.listed(Listed { group: home, dir: dir.ino, pieces }).await;
                    }
                }
                (_, Err(OpError::Moved { ino, home: elsewhere })) => {
                    self.memory.borrow_mut().homes.insert(ino, elsewhere);
                    (home, after) = (elsewhere, 0);
                    pieces.clear();
                }
                _ => return self.memory.borrow_mut().forget(dir.ino),
            }
        }
    }

    /// A name was looked for in vain: all names of the directory are worth knowing, as a mount has it.
    async fn learn_names(&self, dir: NodeRef) {
        if self.read(dir, ReadOp::GetAttr { ino: dir.ino }).await.is_ok() {
            let all = ReadOp::ReadDir { dir: dir.ino, after: 0, limit: NAMES_ASKED, plus: false };
            if self.read(dir, all).await.is_ok() {
                self.lookup(dir, &self.name()).await;
            }
        }
    }

    /// Updates until an outcome is final: `build` names what it touches anew each time, from what refusals have taught.
    async fn update(&self, learned: &mut Learned, op: FsOp) -> Step {
        let Some(outcome) = self.hands.update(op).await else { return Step::Over };
        match outcome {
            Ok(done) => {
                if let Done::Node { attr, .. } | Done::Renamed { attr, .. } = &done {
                    self.memory.borrow_mut().note(attr);
                }
                if let Done::Removed { attr, .. } = &done {
                    self.memory.borrow_mut().forget(attr.ino);
                }
                Step::Over
            }
            Err(OpError::Stale(facts)) => {
                learned.learn(facts, &mut self.memory.borrow_mut());
                Step::Again
            }
            Err(OpError::Moved { ino, home }) => {
                self.memory.borrow_mut().homes.insert(ino, home);
                learned.moved(ino, home);
                Step::Again
            }
            Err(OpError::Exists(dirent)) => {
                self.memory.borrow_mut().remember(dirent);
                Step::Over
            }
            Err(OpError::Errno(_) | OpError::LockHeld { .. }) => Step::Over,
        }
    }

    async fn make_directory(&self) {
        let placement = self.chance(self.mix.placed).then(|| self.some_group());
        self.create(NewNode::Directory { placement }).await;
    }

    async fn create_file(&self) {
        let symlink = self.chance(100);
        let node = if symlink { NewNode::Symlink { target: Bytes::from_static(b"x") } } else { NewNode::File };
        self.create(node).await;
    }

    async fn create(&self, node: NewNode) {
        let (dir, name) = (self.some_dir(), self.name());
        if self.chance(300) && self.lookup(dir, &name).await.is_none() {
            return;
        }
        let mut learned = Learned::default();
        for _ in 0..TRIES_MAX {
            let (parent, inherited) = {
                let memory = self.memory.borrow();
                let parent = memory.at_home(dir);
                (parent, memory.placements.get(&dir.ino).copied().unwrap_or(parent.home))
            };
            let home = match &node {
                NewNode::Directory { placement: Some(placement) } => *placement,
                _ => inherited,
            };
            let op = FsOp::Create { parent, name: name.clone(), node: node.clone(), mode: 0o755, uid: 1, gid: 1, home };
            if let Step::Over = self.update(&mut learned, op).await {
                return;
            }
        }
    }

    async fn link(&self) {
        let Some(node) = self.some_node(true) else { return };
        let (dir, name) = (self.some_dir(), self.name());
        let mut learned = Learned::default();
        for _ in 0..TRIES_MAX {
            let (node, parent) = {
                let memory = self.memory.borrow();
                (memory.at_home(node), memory.at_home(dir))
            };
            let op = FsOp::Link { node, parent, name: name.clone() };
            if let Step::Over = self.update(&mut learned, op).await {
                return;
            }
        }
    }

    async fn remove(&self) {
        let (dir, name) = (self.some_dir(), self.name());
        let keep_open = self.chance(200);
        let mut learned = Learned::default();
        for _ in 0..TRIES_MAX {
            let Some(Some(target)) = self.found(&learned, dir, &name).await else { return };
            let (target, parent) = {
                let memory = self.memory.borrow();
                (learned.at_home(target), memory.at_home(dir))
            };
            let name = name.clone();
            let op = if target.kind == FileKind::Directory {
                FsOp::Rmdir { parent, name, target, keep_open }
            } else {
                FsOp::Unlink { parent, name, target, keep_open }
            };
            if let Step::Over = self.update(&mut learned, op).await {
                return;
            }
        }
    }

    /// What a name stands for, as a refusal told or as a read tells.
    async fn found(&self, learned: &Learned, dir: NodeRef, name: &Bytes) -> Option<Option<Dirent>> {
        match learned.names.get(&(dir.ino, name.clone())) {
            Some(dirent) => Some(*dirent),
            None => self.lookup(dir, name).await,
        }
    }

    async fn rename(&self) {
        let (from, to) = (self.some_dir(), self.some_dir());
        let (from_name, to_name) = (self.name(), self.name());
        let mode = self.hands.draw(|rnd| {
            *rnd.pick(&[RenameMode::Replace, RenameMode::Replace, RenameMode::NoReplace, RenameMode::Exchange])
        });
        let mut learned = Learned::default();
        for _ in 0..TRIES_MAX {
            let Some(Some(source)) = self.found(&learned, from, &from_name).await else { return };
            let Some(target) = self.found(&learned, to, &to_name).await else { return };
            if mode == RenameMode::Exchange && target.is_none() {
                return;
            }
            let (source, target) = (learned.at_home(source), target.map(|target| learned.at_home(target)));
            let Some(ancestors) = self.ancestors(&learned, (from, source), (to, target), mode).await else { return };
            let (from_parent, to_parent) = {
                let memory = self.memory.borrow();
                (memory.at_home(from), memory.at_home(to))
            };
            let op = FsOp::Rename {
                from_parent,
                from_name: from_name.clone(),
                source,
                to_parent,
                to_name: to_name.clone(),
                target,
                mode,
                ancestors,
                keep_open: false,
            };
            if let Step::Over = self.update(&mut learned, op).await {
                return;
            }
        }
    }

    async fn ancestors(
        &self,
        learned: &Learned,
        (from, source): (NodeRef, NodeRef),
        (to, target): (NodeRef, Option<NodeRef>),
        mode: RenameMode,
    ) -> Option<Vec<Ancestor>> {
        let mut ancestors = Vec::new();
        if from.ino == to.ino {
            return Some(ancestors);
        }
        if source.kind == FileKind::Directory {
            ancestors = self.chain(learned, to).await?;
        }
        let back = target.is_some_and(|target| target.kind == FileKind::Directory) && mode == RenameMode::Exchange;
        if back {
            let other = self.chain(learned, from).await?;
            // From the first that both have on, the way is the same; another look may have found it otherwise.
            let is_new = |step: &Ancestor| ancestors.iter().all(|known| known.dir.ino != step.dir.ino);
            let own: Vec<Ancestor> = other.into_iter().take_while(is_new).collect();
            ancestors.extend(own);
        }
        Some(ancestors)
    }

    /// The chain from a directory up to the root, group by group.
    async fn chain(&self, learned: &Learned, dir: NodeRef) -> Option<Vec<Ancestor>> {
        let mut chain: Vec<Ancestor> = Vec::new();
        let mut at = dir.ino;
        for _ in 0..32 {
            if at == InodeId::ROOT {
                return Some(chain);
            }
            let home = self.memory.borrow().homes.get(&at).copied().unwrap_or(at.birth_group());
            let asked = NodeRef { ino: at, kind: FileKind::Directory, home };
            let read = self.read(asked, ReadOp::Ancestors { dir: at }).await;
            let Ok(ReadAnswer::Ancestors(found)) = read else { return None };
            for (dir, parent) in found {
                if dir.ino == InodeId::ROOT || dir.ino != at {
                    // The root, or not the way that an outcome has told: asks from there.
                    break;
                }
                if chain.iter().any(|known| known.dir.ino == dir.ino) {
                    // Seen while others were moving it about.
                    return None;
                }
                self.memory.borrow_mut().homes.insert(dir.ino, dir.home);
                let parent = learned.parents.get(&dir.ino).copied().unwrap_or(parent);
                chain.push(Ancestor { dir, parent });
                at = parent;
            }
        }
        None
    }

    async fn place(&self) {
        let (dir, placement) = (self.some_dir(), self.some_group());
        let mut learned = Learned::default();
        for _ in 0..TRIES_MAX {
            let dir = self.memory.borrow().at_home(dir);
            if let Step::Over = self.update(&mut learned, FsOp::SetPlacement { dir, placement }).await {
                return;
            }
        }
    }

    async fn move_inode(&self) {
        let (dir, name, to) = (self.some_dir(), self.name(), self.some_group());
        let mut learned = Learned::default();
        for _ in 0..TRIES_MAX {
            let Some(Some(node)) = self.found(&learned, dir, &name).await else { return };
            let node = learned.at_home(node);
            if node.home == to {
                return;
            }
            let parent = self.memory.borrow().at_home(dir);
            let op = FsOp::MoveInode { parent, name: name.clone(), node, to };
            match self.update(&mut learned, op).await {
                Step::Over => return,
                // It has other names, or is held: it stays.
                Step::Again if learned.attr_refused => return,
                Step::Again => {}
            }
        }
    }

    async fn write(&self) {
        let Some(node) = self.some_node(true) else { return };
        let blob = if self.chance(500) { Some(self.hands.upload().await) } else { None };
        let at = if self.chance(400) { WriteAt::End } else { WriteAt::Offsets };
        let offset = if at == WriteAt::End { 0 } else { self.below(40) };
        let len = 1 + self.below(20);
        let byte = b'a' + self.below(26) as u8;
        let mut learned = Learned::default();
        for _ in 0..TRIES_MAX {
            let change = match blob {
                Some(blob) => {
                    let source = BlobRange { blob, blob_len: BLOB_BYTES, crc32c: 0, start: 0 };
                    Change::Blob { offset, len, source, fresh: true }
                }
                None => Change::Inline { offset, bytes: Bytes::from(vec![byte; len as usize]) },
            };
            let node = self.memory.borrow().at_home(node);
            let op = FsOp::Write { node, at, changes: vec![change], size_min: 0, mtime: None, kill_privileges: false };
            match self.update(&mut learned, op).await {
                Step::Over => return,
                // Too much for the metadata; others write blobs.
                Step::Again if learned.attr_refused => return,
                Step::Again => {}
            }
        }
    }

    async fn set_attr(&self) {
        let Some(node) = self.some_node(false) else { return };
        let mut set = SetAttr::default();
        match self.below(3) {
            0 if node.kind == FileKind::File => set.size = Some(self.below(60)),
            1 => set.mode = Some(self.below(0o1000) as u16),
            _ => set.mtime = Some(SetTime::At(TimeNs(self.below(1 << 40) as i64))),
        }
        let mut learned = Learned::default();
        for _ in 0..TRIES_MAX {
            let node = self.memory.borrow().at_home(node);
            if let Step::Over = self.update(&mut learned, FsOp::SetAttr { node, set: set.clone() }).await {
                return;
            }
        }
    }

    async fn set_xattr(&self) {
        let Some(node) = self.some_node(false) else { return };
        let value = Bytes::from(vec![b'v'; self.below(4) as usize]);
        let mut learned = Learned::default();
        for _ in 0..TRIES_MAX {
            let node = self.memory.borrow().at_home(node);
            let name = Bytes::from_static(b"user.x");
            let op = FsOp::SetXattr { node, name, value: value.clone(), condition: XattrCondition::Any };
            if let Step::Over = self.update(&mut learned, op).await {
                return;
            }
        }
    }
}

enum Step {
    Over,
    Again,
}

/// What refusals have taught one operation.
#[derive(Debug, Default)]
struct Learned {
    names: BTreeMap<(InodeId, Bytes), Option<Dirent>>,
    parents: BTreeMap<InodeId, InodeId>,
    homes: BTreeMap<InodeId, GroupId>,
    attr_refused: bool,
}

impl Learned {
    fn learn(&mut self, facts: Vec<Fact>, memory: &mut Memory) {
        for fact in facts {
            match fact {
                Fact::Name { parent, name, dirent } => {
                    if let Some(dirent) = dirent {
                        memory.remember(dirent);
                    }
                    self.names.insert((parent, name), dirent);
                }
                Fact::Parent { dir, parent } => drop(self.parents.insert(dir, parent)),
                Fact::Placement { dir, placement } => drop(memory.placements.insert(dir, placement)),
                Fact::Attr(attr) => {
                    memory.note(&attr);
                    self.attr_refused = true;
                }
                Fact::BlobGone(_) => {}
            }
        }
    }

    fn moved(&mut self, ino: InodeId, home: GroupId) {
        self.homes.insert(ino, home);
    }

    fn at_home(&self, node: NodeRef) -> NodeRef {
        NodeRef { home: self.homes.get(&node.ino).copied().unwrap_or(node.home), ..node }
    }
}
