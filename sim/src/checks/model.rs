//! The namespace as one sequential program would have it: names, kinds, links, sizes. Every executed command is played here
//! in the one order that was found; what it answered must be what this model answers.

use std::collections::BTreeMap;

use bytes::Bytes;
use metadata::op::{Change, FsOp, NewNode, RenameMode, WriteAt};
use metadata::outcome::{Done, Errno, Fact, OpError, Outcome};
use metadata::types::{Attr, FileKind, InodeId, NodeRef};
use multicast::ids::GroupId;

/// One inode.
#[derive(Clone, Debug)]
pub struct Node {
    /// What it is.
    pub kind: FileKind,
    /// Names that stand for it; for a directory one or, when removed, none.
    pub names: u32,
    /// A file's length.
    pub size: u64,
    /// Where it lives.
    pub home: GroupId,
    placement: GroupId,
    parent: Option<InodeId>,
}

/// The whole tree.
#[derive(Debug)]
pub struct Model {
    /// Inodes, also those without a name.
    pub nodes: BTreeMap<InodeId, Node>,
    /// What names stand for.
    pub entries: BTreeMap<(InodeId, Bytes), InodeId>,
}

impl Default for Model {
    fn default() -> Self {
        let root = Node {
            kind: FileKind::Directory,
            names: 1,
            size: 0,
            home: GroupId::GLOBAL,
            placement: GroupId::GLOBAL,
            parent: Some(InodeId::ROOT),
        };
        Model { nodes: BTreeMap::from([(InodeId::ROOT, root)]), entries: BTreeMap::new() }
    }
}

type Played = Result<(), String>;

fn expect(holds: bool, what: &str) -> Played {
    if holds { Ok(()) } else { Err(what.to_owned()) }
}

impl Model {
    /// Plays one command.
    ///
    /// # Errors
    /// In which way its outcome is not what this state gives.
    pub fn play(&mut self, op: &FsOp, outcome: &Outcome) -> Played {
        match outcome {
            Ok(done) => self.play_done(op, done),
            Err(error) => self.play_refused(op, error),
        }
    }

    fn name(&self, parent: InodeId, name: &Bytes) -> Option<InodeId> {
        self.entries.get(&(parent, name.clone())).copied()
    }

    fn is_alive(&self, ino: InodeId) -> bool {
        self.nodes.get(&ino).is_some_and(|node| node.names > 0)
    }

    fn is_empty(&self, dir: InodeId) -> bool {
        self.entries.range((dir, Bytes::new())..).next().is_none_or(|((parent, _), _)| *parent != dir)
    }

    fn lies_in(&self, dir: InodeId, above: InodeId) -> bool {
        let (mut at, mut steps) = (dir, 0);
        while steps <= self.nodes.len() {
            if at == above {
                return true;
            }
            if at == InodeId::ROOT {
                return false;
            }
            let Some(parent) = self.nodes.get(&at).and_then(|node| node.parent) else { return false };
            at = parent;
            steps += 1;
        }
        true
    }

    /// A directory's links, as `stat` shows them.
    #[must_use]
    pub fn links(&self, ino: InodeId) -> u32 {
        let Some(node) = self.nodes.get(&ino) else { return 0 };
        if node.kind != FileKind::Directory || node.names == 0 {
            return node.names;
        }
        let children = self.entries.range((ino, Bytes::new())..).take_while(|((parent, _), _)| *parent == ino);
        let is_dir = |child: &InodeId| self.nodes.get(child).is_some_and(|node| node.kind == FileKind::Directory);
        2 + children.filter(|(_, child)| is_dir(child)).count() as u32
    }

    fn play_done(&mut self, op: &FsOp, done: &Done) -> Played {
        match (op, done) {
            (FsOp::Create { parent, name, node, home, .. }, Done::Node { attr, .. }) => {
                self.create(*parent, name, node, *home, attr)
            }
            (FsOp::Link { node, parent, name }, Done::Node { attr, .. }) => {
                expect(self.is_alive(parent.ino), "a link was made in a directory that is gone")?;
                expect(self.name(parent.ino, name).is_none(), "a link was made under a name that was taken")?;
                expect(self.is_alive(node.ino), "a link was made to what has no name")?;
                self.entries.insert((parent.ino, name.clone()), node.ino);
                self.change_names(node.ino, 1);
                expect(attr.nlink == self.links(node.ino), "a link tells a wrong number of links")
            }
            (FsOp::Unlink { parent, name, target, .. }, Done::Removed { attr, .. }) => {
                expect(self.name(parent.ino, name) == Some(target.ino), "a name was removed that was not there")?;
                self.entries.remove(&(parent.ino, name.clone()));
                self.change_names(target.ino, -1);
                expect(attr.nlink == self.links(target.ino), "a removal tells a wrong number of links")
            }
            (FsOp::Rmdir { parent, name, target, .. }, Done::Removed { .. }) => {
                expect(self.name(parent.ino, name) == Some(target.ino), "a directory was removed that was not there")?;
                expect(self.is_empty(target.ino), "a directory with entries was removed")?;
                self.entries.remove(&(parent.ino, name.clone()));
                self.change_names(target.ino, -1);
                Ok(())
            }
            (FsOp::Rename { .. }, Done::Renamed { attr, target, .. }) => self.rename(op, attr, target.as_deref()),
            (FsOp::Write { node, at, changes, size_min, .. }, Done::Node { attr, appended_at, .. }) => {
                self.write(*node, *at, changes, *size_min, attr, *appended_at)
            }
            (FsOp::SetAttr { node, set }, Done::Node { attr, .. }) => {
                if let (Some(size), Some(node)) = (set.size, self.nodes.get_mut(&node.ino)) {
                    node.size = size;
                }
                expect(set.mode.is_none_or(|mode| attr.mode == mode), "a mode was not set")?;
                expect(self.nodes.get(&node.ino).is_some_and(|node| same_size(node, attr)), "a size is wrong")
            }
            (FsOp::SetPlacement { dir, placement }, Done::Node { .. }) => {
                expect(self.is_alive(dir.ino), "a directory was placed that is gone")?;
                if let Some(node) = self.nodes.get_mut(&dir.ino) {
                    node.placement = *placement;
                }
                Ok(())
            }
            (FsOp::MoveInode { parent, name, node, to }, Done::Node { attr, .. }) => {
                expect(self.name(parent.ino, name) == Some(node.ino), "an inode moved that was not there")?;
                expect(attr.home == *to, "an inode moved elsewhere")?;
                self.settle(attr);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn change_names(&mut self, ino: InodeId, by: i32) {
        if let Some(node) = self.nodes.get_mut(&ino) {
            node.names = node.names.saturating_add_signed(by);
        }
    }

    /// Where an inode lives after it may have moved.
    fn settle(&mut self, attr: &Attr) {
        if let Some(node) = self.nodes.get_mut(&attr.ino) {
            node.home = attr.home;
            if node.kind != FileKind::Directory {
                node.placement = attr.home;
            }
        }
    }

    fn create(&mut self, parent: NodeRef, name: &Bytes, node: &NewNode, home: GroupId, attr: &Attr) -> Played {
        expect(self.is_alive(parent.ino), "something was created in a directory that is gone")?;
        expect(self.name(parent.ino, name).is_none(), "something was created under a name that was taken")?;
        expect(!self.nodes.contains_key(&attr.ino), "an inode number was given out twice")?;
        let inherits = !matches!(node, NewNode::Directory { placement: Some(_) });
        let placement = self.nodes.get(&parent.ino).map(|node| node.placement);
        expect(!inherits || placement == Some(home), "something was created outside of its directory's placement")?;
        let directory = attr.kind == FileKind::Directory;
        self.entries.insert((parent.ino, name.clone()), attr.ino);
        let parent = directory.then_some(parent.ino);
        let new = Node { kind: attr.kind, names: 1, size: attr.size, home, placement: home, parent };
        self.nodes.insert(attr.ino, new);
        expect(attr.nlink == self.links(attr.ino), "a new inode tells a wrong number of links")
    }

    fn rename(&mut self, op: &FsOp, attr: &Attr, told: Option<&Attr>) -> Played {
        let FsOp::Rename { from_parent, from_name, source, to_parent, to_name, target, mode, .. } = op else {
            return Ok(());
        };
        let (from, to) = ((from_parent.ino, from_name.clone()), (to_parent.ino, to_name.clone()));
        expect(self.entries.get(&from) == Some(&source.ino), "something was renamed that was not there")?;
        let found = self.entries.get(&to).copied();
        let wanted = target.filter(|_| *mode != RenameMode::NoReplace).map(|target| target.ino);
        expect(found == wanted, "something was renamed over what was not expected")?;
        if wanted == Some(source.ino) {
            return Ok(());
        }
        expect(self.is_alive(to_parent.ino), "something was renamed into a directory that is gone")?;
        let is_dir = |ino: InodeId| self.nodes.get(&ino).is_some_and(|node| node.kind == FileKind::Directory);
        let loops = is_dir(source.ino) && self.lies_in(to_parent.ino, source.ino);
        expect(!loops, "a directory was renamed into itself")?;
        if *mode == RenameMode::Exchange {
            let Some(target) = wanted else { return Err("an exchange with nothing".to_owned()) };
            let loops = is_dir(target) && self.lies_in(from_parent.ino, target);
            expect(!loops, "a directory was exchanged into itself")?;
            self.entries.insert(from, target);
            self.reparent(target, from_parent.ino);
            told.into_iter().for_each(|attr| self.settle(attr));
        } else {
            if let Some(target) = wanted {
                expect(!is_dir(target) || self.is_empty(target), "a directory with entries was replaced")?;
                self.change_names(target, -1);
            }
            self.entries.remove(&from);
        }
        self.entries.insert(to, source.ino);
        self.reparent(source.ino, to_parent.ino);
        self.settle(attr);
        expect(attr.ino == source.ino, "a rename tells of another inode")
    }

    fn reparent(&mut self, ino: InodeId, parent: InodeId) {
        if let Some(node) = self.nodes.get_mut(&ino)
            && node.kind == FileKind::Directory
        {
            node.parent = Some(parent);
        }
    }

    fn write(
        &mut self,
        node: NodeRef,
        at: WriteAt,
        changes: &[Change],
        size_min: u64,
        attr: &Attr,
        appended_at: Option<u64>,
    ) -> Played {
        let Some(file) = self.nodes.get_mut(&node.ino) else { return Err("what is gone was written to".to_owned()) };
        let base = if at == WriteAt::End { file.size } else { 0 };
        expect(appended_at == (at == WriteAt::End).then_some(base), "an append went elsewhere than to the end")?;
        for change in changes {
            let (offset, len) = change.range();
            if matches!(change, Change::Inline { .. } | Change::Blob { .. }) {
                file.size = file.size.max(base + offset + len);
            }
        }
        file.size = file.size.max(if size_min > 0 { base + size_min } else { 0 });
        expect(same_size(file, attr), "a write tells a wrong size")
    }

    fn play_refused(&self, op: &FsOp, error: &OpError) -> Played {
        let Named { dirs, nodes, present, free } = Named::of(op);
        let refs = || dirs.iter().chain(&nodes);
        let is_wrong = |node: &&NodeRef| self.nodes.get(&node.ino).is_none_or(|known| known.home != node.home);
        let holds = match error {
            OpError::Exists(dirent) => free.iter().any(|(dir, name)| self.name(*dir, name) == Some(dirent.ino)),
            OpError::Stale(facts) => facts.iter().all(|fact| self.is_true(fact)),
            OpError::Moved { ino, .. } => refs().any(|node| node.ino == *ino && is_wrong(&node)),
            OpError::LockHeld { .. } => true,
            OpError::Errno(Errno::NotFound) => {
                refs().any(|node| !self.is_alive(node.ino))
                    || present.iter().any(|(dir, name)| self.name(*dir, name).is_none())
            }
            OpError::Errno(Errno::NotEmpty) => nodes.iter().any(|node| !self.is_empty(node.ino)),
            OpError::Errno(Errno::StaleHandle) => refs().any(|node| is_wrong(&node) || !self.is_alive(node.ino)),
            OpError::Errno(Errno::Invalid) => self.would_loop(op),
            OpError::Errno(Errno::Malformed) => false,
            OpError::Errno(_) => true,
        };
        expect(holds, "nothing in this state explains the refusal")
    }

    fn would_loop(&self, op: &FsOp) -> bool {
        let FsOp::Rename { from_parent, source, to_parent, target, .. } = op else { return false };
        let back = target.is_some_and(|target| self.lies_in(from_parent.ino, target.ino));
        self.lies_in(to_parent.ino, source.ino) || back
    }

    fn is_true(&self, fact: &Fact) -> bool {
        match fact {
            Fact::Name { parent, name, dirent } => {
                let found = self.name(*parent, name);
                found == dirent.map(|dirent| dirent.ino)
                    && dirent
                        .is_none_or(|dirent| self.nodes.get(&dirent.ino).is_some_and(|node| node.home == dirent.home))
            }
            Fact::Parent { dir, parent } => self.nodes.get(dir).is_some_and(|node| node.parent == Some(*parent)),
            Fact::Placement { dir, placement } => self.nodes.get(dir).is_some_and(|node| node.placement == *placement),
            Fact::Attr(attr) => self.nodes.get(&attr.ino).is_some_and(|node| same_size(node, attr)),
            Fact::BlobGone(_) => true,
        }
    }
}

fn same_size(node: &Node, attr: &Attr) -> bool {
    node.kind == FileKind::Directory || node.size == attr.size
}

/// What an operation names, and what it needs there.
#[derive(Default)]
struct Named {
    dirs: Vec<NodeRef>,
    nodes: Vec<NodeRef>,
    present: Vec<(InodeId, Bytes)>,
    free: Vec<(InodeId, Bytes)>,
}

impl Named {
    fn of(op: &FsOp) -> Named {
        let mut named = Named::default();
        match op {
            FsOp::Create { parent, name, .. } => {
                named.dirs.push(*parent);
                named.free.push((parent.ino, name.clone()));
            }
            FsOp::Link { node, parent, name } => {
                named.dirs.push(*parent);
                named.nodes.push(*node);
                named.free.push((parent.ino, name.clone()));
            }
            FsOp::Unlink { parent, name, target, .. } | FsOp::Rmdir { parent, name, target, .. } => {
                named.dirs.push(*parent);
                named.nodes.push(*target);
                named.present.push((parent.ino, name.clone()));
            }
            FsOp::Rename { from_parent, from_name, source, to_parent, to_name, target, mode, ancestors, .. } => {
                named.dirs.extend([*from_parent, *to_parent]);
                named.dirs.extend(ancestors.iter().map(|ancestor| ancestor.dir));
                named.nodes.push(*source);
                named.nodes.extend(*target);
                named.present.push((from_parent.ino, from_name.clone()));
                match mode {
                    RenameMode::NoReplace => named.free.push((to_parent.ino, to_name.clone())),
                    RenameMode::Exchange => named.present.push((to_parent.ino, to_name.clone())),
                    RenameMode::Replace => {}
                }
            }
            FsOp::MoveInode { parent, name, node, .. } => {
                named.dirs.push(*parent);
                named.nodes.push(*node);
                named.present.push((parent.ino, name.clone()));
            }
            FsOp::SetAttr { node, .. }
            | FsOp::Write { node, .. }
            | FsOp::SetXattr { node, .. }
            | FsOp::RemoveXattr { node, .. }
            | FsOp::Lock { node, .. }
            | FsOp::SetPlacement { dir: node, .. } => named.nodes.push(*node),
            _ => {}
        }
        named
    }
}
