//! What an update needs and does, place by place, as far as its client can know: for the black-box search. A register for
//! each name, for the names in a directory, for links, sizes, parents, placements.

use std::collections::BTreeSet;

use bytes::Bytes;
use metadata::op::{Change, FsOp, NewNode, RenameMode, WriteAt};
use metadata::outcome::{Done, Errno, Fact, OpError, Outcome};
use metadata::types::{Attr, FileKind, InodeId, NodeRef};

/// Something that has one value at a time.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// The inode that a name stands for.
    Name(InodeId, Bytes),
    /// How many names a directory has; nothing once it is gone.
    Entries(InodeId),
    /// How many names a file has.
    Links(InodeId),
    /// A file's length.
    Size(InodeId),
    /// A directory's parent.
    Parent(InodeId),
    /// Where a directory's new files live.
    Placement(InodeId),
}

/// What is known of a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value {
    /// No more than that it exists.
    Any,
    /// There is nothing.
    Nothing,
    /// An inode, of which nobody was told.
    Something,
    /// This.
    Is(u64),
}

/// A condition.
#[derive(Clone, Debug)]
pub struct Atom {
    /// Where.
    pub place: Place,
    test: Test,
}

#[derive(Clone, Copy, Debug)]
enum Test {
    Is(Value),
    AtLeast(u64),
}

/// A change.
#[derive(Clone, Copy, Debug)]
pub enum Effect {
    /// It is this from now on.
    Set(Value),
    /// One more, or less.
    Add(i64),
    /// It grows by so much.
    Grow(u64),
    /// It is at least this from now on.
    Reach(u64),
}

/// One update, from call to return.
#[derive(Clone, Debug)]
pub struct Operation {
    /// Its call.
    pub begun: usize,
    /// Its return, if there was one.
    pub ended: Option<usize>,
    /// The inode that it made.
    pub creates: Option<u64>,
    /// What held, each by one of these.
    pub before: Vec<Vec<Atom>>,
    /// What it did.
    pub effects: Vec<(Place, Effect)>,
    /// What held then.
    pub after: Vec<Atom>,
    /// For people.
    pub words: String,
}

impl Operation {
    /// All places that it has to do with.
    pub fn places(&self) -> impl Iterator<Item = &Place> {
        let before = self.before.iter().flatten().chain(&self.after).map(|atom| &atom.place);
        before.chain(self.effects.iter().map(|(place, _)| place))
    }

    fn needs(&mut self, place: Place, test: Test) {
        self.before.push(vec![Atom { place, test }]);
    }

    fn does(&mut self, place: Place, effect: Effect) {
        self.effects.push((place, effect));
    }

    fn leaves(&mut self, place: Place, number: u64) {
        self.after.push(Atom { place, test: Test::Is(Value::Is(number)) });
    }
}

impl Atom {
    /// True if it may hold; what was open is known then. An inode of which nobody was told is none of the `known` ones.
    pub fn bind(&self, value: &mut Value, known: &BTreeSet<u64>) -> bool {
        match (*value, self.test) {
            (Value::Any, Test::Is(wanted)) => {
                *value = wanted;
                true
            }
            (Value::Something, Test::Is(Value::Is(wanted))) if !known.contains(&wanted) => {
                *value = Value::Is(wanted);
                true
            }
            (value, Test::Is(wanted)) => value == wanted,
            (Value::Any, Test::AtLeast(_)) => true,
            (Value::Is(number), Test::AtLeast(least)) => number >= least,
            (Value::Nothing | Value::Something, Test::AtLeast(_)) => false,
        }
    }
}

impl Effect {
    /// What a place has then.
    #[must_use]
    pub fn on(self, value: Value) -> Value {
        match (self, value) {
            (Effect::Set(value), _) => value,
            (Effect::Add(by), Value::Is(number)) => Value::Is(number.saturating_add_signed(by)),
            (Effect::Grow(by), Value::Is(number)) => Value::Is(number + by),
            (Effect::Reach(least), Value::Is(number)) => Value::Is(number.max(least)),
            (Effect::Add(_) | Effect::Grow(_) | Effect::Reach(_), value) => value,
        }
    }
}

/// What a place has before anything happened. Of inodes that are not `known` to have been made nothing is known.
#[must_use]
pub fn begin_with(place: &Place, known: &BTreeSet<u64>) -> Value {
    let (Place::Name(ino, _)
    | Place::Entries(ino)
    | Place::Links(ino)
    | Place::Size(ino)
    | Place::Parent(ino)
    | Place::Placement(ino)) = place;
    match place {
        Place::Name(..) if *ino == InodeId::ROOT => Value::Nothing,
        Place::Entries(_) | Place::Placement(_) if *ino == InodeId::ROOT => Value::Is(0),
        _ if known.contains(&ino.0) => Value::Nothing,
        _ => Value::Any,
    }
}

/// An update as its client knows it; none if it shows nothing. An outcome that nobody knows is none.
#[must_use]
pub fn operation(op: &FsOp, outcome: Option<&Outcome>, (begun, ended): (usize, Option<usize>)) -> Option<Operation> {
    let mut operation = Operation {
        begun,
        ended,
        creates: None,
        before: Vec::new(),
        effects: Vec::new(),
        after: Vec::new(),
        words: format!("{op:?} that gave {outcome:?}"),
    };
    match outcome {
        Some(Err(error)) => operation.refused(op, error),
        Some(Ok(done)) => operation.done(op, Some(done)),
        None => operation.done(op, None),
    }
    let shows = !operation.before.is_empty() || !operation.after.is_empty();
    (shows || !operation.effects.is_empty()).then_some(operation)
}

fn is(ino: InodeId) -> Test {
    Test::Is(Value::Is(ino.0))
}

fn is_dir(node: &NodeRef) -> bool {
    node.kind == FileKind::Directory
}

impl Operation {
    fn done(&mut self, op: &FsOp, done: Option<&Done>) {
        let told = match done {
            Some(Done::Node { attr, .. } | Done::Removed { attr, .. } | Done::Renamed { attr, .. }) => Some(&**attr),
            _ => None,
        };
        match op {
            FsOp::Create { parent, name, node, home, .. } => {
                if !matches!(node, NewNode::Directory { placement: Some(_) }) {
                    self.needs(Place::Placement(parent.ino), Test::Is(Value::Is(u64::from(home.0))));
                }
                self.name_appears(*parent, name, told.map_or(Value::Something, |attr| Value::Is(attr.ino.0)));
                told.into_iter().for_each(|attr| self.create(*parent, attr, u64::from(home.0)));
            }
            FsOp::Link { node, parent, name } => {
                self.name_appears(*parent, name, Value::Is(node.ino.0));
                self.needs(Place::Links(node.ino), Test::AtLeast(1));
                self.does(Place::Links(node.ino), Effect::Add(1));
                told.into_iter().for_each(|attr| self.leaves(Place::Links(node.ino), u64::from(attr.nlink)));
            }
            FsOp::Unlink { parent, name, target, .. } | FsOp::Rmdir { parent, name, target, .. } => {
                self.needs(Place::Name(parent.ino, name.clone()), is(target.ino));
                self.does(Place::Name(parent.ino, name.clone()), Effect::Set(Value::Nothing));
                self.does(Place::Entries(parent.ino), Effect::Add(-1));
                self.loses_name(target);
                let told = told.filter(|_| !is_dir(target));
                told.into_iter().for_each(|attr| self.leaves(Place::Links(target.ino), u64::from(attr.nlink)));
            }
            FsOp::Rename { .. } => self.rename(op),
            FsOp::Write { node, at, changes, size_min, .. } => {
                let appended_at = match done {
                    Some(Done::Node { appended_at, .. }) => *appended_at,
                    _ => None,
                };
                self.write(*node, *at, (changes, *size_min), appended_at, told);
            }
            FsOp::SetAttr { node, set } if node.kind == FileKind::File => {
                if let Some(size) = set.size {
                    self.does(Place::Size(node.ino), Effect::Set(Value::Is(size)));
                }
                told.into_iter().for_each(|attr| self.leaves(Place::Size(node.ino), attr.size));
            }
            FsOp::SetPlacement { dir, placement } => {
                self.needs(Place::Entries(dir.ino), Test::AtLeast(0));
                self.does(Place::Placement(dir.ino), Effect::Set(Value::Is(u64::from(placement.0))));
            }
            FsOp::MoveInode { parent, name, node, .. } => {
                self.needs(Place::Name(parent.ino, name.clone()), is(node.ino));
            }
            _ => {}
        }
    }

    fn name_appears(&mut self, parent: NodeRef, name: &Bytes, value: Value) {
        self.needs(Place::Name(parent.ino, name.clone()), Test::Is(Value::Nothing));
        self.needs(Place::Entries(parent.ino), Test::AtLeast(0));
        self.does(Place::Name(parent.ino, name.clone()), Effect::Set(value));
        self.does(Place::Entries(parent.ino), Effect::Add(1));
    }

    /// A file has one name less, a directory is gone: it must have been empty.
    fn loses_name(&mut self, node: &NodeRef) {
        if is_dir(node) {
            self.needs(Place::Entries(node.ino), Test::Is(Value::Is(0)));
            self.does(Place::Entries(node.ino), Effect::Set(Value::Nothing));
        } else {
            self.does(Place::Links(node.ino), Effect::Add(-1));
        }
    }

    fn create(&mut self, parent: NodeRef, attr: &Attr, home: u64) {
        let ino = attr.ino;
        self.creates = Some(ino.0);
        if attr.kind == FileKind::Directory {
            self.does(Place::Entries(ino), Effect::Set(Value::Is(0)));
            self.does(Place::Parent(ino), Effect::Set(Value::Is(parent.ino.0)));
            self.does(Place::Placement(ino), Effect::Set(Value::Is(home)));
        } else {
            self.does(Place::Links(ino), Effect::Set(Value::Is(1)));
            self.does(Place::Size(ino), Effect::Set(Value::Is(attr.size)));
        }
    }

    fn rename(&mut self, op: &FsOp) {
        let FsOp::Rename { from_parent, from_name, source, to_parent, to_name, target, mode, ancestors, .. } = op
        else {
            return;
        };
        let from = Place::Name(from_parent.ino, from_name.clone());
        let to = Place::Name(to_parent.ino, to_name.clone());
        let wanted = target.filter(|_| *mode != RenameMode::NoReplace);
        self.needs(from.clone(), is(source.ino));
        self.needs(to.clone(), wanted.map_or(Test::Is(Value::Nothing), |target| is(target.ino)));
        if wanted.is_some_and(|target| target.ino == source.ino) {
            return;
        }
        self.needs(Place::Entries(to_parent.ino), Test::AtLeast(0));
        for ancestor in ancestors {
            self.needs(Place::Parent(ancestor.dir.ino), is(ancestor.parent));
        }
        let exchanged = wanted.filter(|_| *mode == RenameMode::Exchange);
        let left = exchanged.map_or(Value::Nothing, |target| Value::Is(target.ino.0));
        self.does(from, Effect::Set(left));
        self.does(to, Effect::Set(Value::Is(source.ino.0)));
        let mut settles = |node: &NodeRef, parent: InodeId| {
            if is_dir(node) {
                self.does(Place::Parent(node.ino), Effect::Set(Value::Is(parent.0)));
            }
        };
        settles(source, to_parent.ino);
        if let Some(target) = exchanged {
            return settles(&target, from_parent.ino);
        }
        self.does(Place::Entries(from_parent.ino), Effect::Add(-1));
        match wanted {
            Some(target) => self.loses_name(&target),
            None => self.does(Place::Entries(to_parent.ino), Effect::Add(1)),
        }
    }

    fn write(
        &mut self,
        node: NodeRef,
        at: WriteAt,
        (changes, size_min): (&[Change], u64),
        appended_at: Option<u64>,
        told: Option<&Attr>,
    ) {
        let size = Place::Size(node.ino);
        let ends = changes.iter().filter_map(|change| {
            let (offset, len) = change.range();
            matches!(change, Change::Inline { .. } | Change::Blob { .. }).then_some(offset + len)
        });
        let end = ends.max().unwrap_or(0).max(size_min);
        if at == WriteAt::End {
            appended_at.into_iter().for_each(|base| self.needs(size.clone(), Test::Is(Value::Is(base))));
            self.does(size.clone(), Effect::Grow(end));
        } else {
            self.does(size.clone(), Effect::Reach(end));
        }
        told.into_iter().for_each(|attr| self.leaves(size.clone(), attr.size));
    }

    fn refused(&mut self, op: &FsOp, error: &OpError) {
        match error {
            OpError::Exists(dirent) => {
                let free = match op {
                    FsOp::Create { parent, name, .. } | FsOp::Link { parent, name, .. } => Some((parent.ino, name)),
                    FsOp::Rename { to_parent, to_name, .. } => Some((to_parent.ino, to_name)),
                    _ => None,
                };
                if let Some((parent, name)) = free {
                    self.needs(Place::Name(parent, name.clone()), is(dirent.ino));
                }
            }
            OpError::Stale(facts) => facts.iter().for_each(|fact| self.fact(fact)),
            OpError::Errno(Errno::NotEmpty) => {
                let dirs: Vec<NodeRef> = match op {
                    FsOp::Rmdir { target, .. } => vec![*target],
                    FsOp::Rename { target, .. } => target.iter().copied().filter(is_dir).collect(),
                    _ => Vec::new(),
                };
                for dir in dirs {
                    self.needs(Place::Entries(dir.ino), Test::AtLeast(1));
                }
            }
            OpError::Errno(_) | OpError::Moved { .. } | OpError::LockHeld { .. } => {}
        }
    }

    fn fact(&mut self, fact: &Fact) {
        match fact {
            Fact::Name { parent, name, dirent } => {
                let test = dirent.map_or(Test::Is(Value::Nothing), |dirent| is(dirent.ino));
                self.needs(Place::Name(*parent, name.clone()), test);
            }
            Fact::Parent { dir, parent } => self.needs(Place::Parent(*dir), is(*parent)),
            Fact::Placement { dir, placement } => {
                self.needs(Place::Placement(*dir), Test::Is(Value::Is(u64::from(placement.0))));
            }
            Fact::Attr(attr) if attr.kind == FileKind::File => {
                self.needs(Place::Size(attr.ino), Test::Is(Value::Is(attr.size)));
            }
            Fact::Attr(_) | Fact::BlobGone(_) => {}
        }
    }
}
