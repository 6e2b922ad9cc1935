//! Mounts and the applications on them: sessions, clocks, routing and retries as the mount's engine has them, and what each
//! operation asks for.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use metadata::op::{Change, FsOp, NewNode, RenameMode, SetAttr, WriteAt};
use metadata::outcome::Done;
use metadata::read::ReadOp;
use metadata::types::{FileKind, InodeId, NodeRef};
use multicast::command::Command;
use multicast::ids::{GroupId, ReplicaId, SessionId, VectorClock};

use super::Load;
use super::cpu::ThreadId;
use crate::random::Random;
use crate::spec::{Op, Scope};

/// A request that has no answer yet.
#[derive(Clone, Debug)]
pub struct Asked {
    /// Who waits.
    pub client: usize,
    /// Which of its attempts.
    pub attempt: u64,
    /// Which node was asked.
    pub node: ReplicaId,
    /// When.
    pub at: u64,
    /// The session is opened in this group.
    pub opens: Option<GroupId>,
}

/// One mount.
pub(crate) struct Mount {
    /// Its region.
    pub region: usize,
    /// Its network thread.
    pub net: ThreadId,
    /// Its session.
    pub session: SessionId,
    /// What it has seen.
    pub clock: VectorClock,
    /// Where its session is known.
    pub registered: BTreeSet<GroupId>,
    /// Whose streams it has asked for.
    pub subscribed: BTreeSet<GroupId>,
    /// Who is primary, as far as it knows.
    pub primaries: BTreeMap<GroupId, ReplicaId>,
    /// How many applications are in the kernel and in the mount's threads towards it.
    pub in_kernel: usize,
    /// What its network's thread is about to send: the node, how many bytes, what.
    pub outbox: Vec<(usize, usize, Load)>,
    /// Requests under way.
    pub requests: BTreeMap<u64, Asked>,
    next_request: u64,
    next_sequence: u64,
    open: BTreeSet<u64>,
}

impl Mount {
    /// A mount that has seen nothing.
    #[must_use]
    pub fn new(number: usize, region: usize, net: ThreadId) -> Mount {
        Mount {
            region,
            net,
            session: SessionId(number as u64 + 1),
            clock: VectorClock::new(),
            registered: BTreeSet::new(),
            subscribed: BTreeSet::new(),
            primaries: BTreeMap::new(),
            in_kernel: 0,
            outbox: Vec::new(),
            requests: BTreeMap::new(),
            next_request: 1,
            next_sequence: 1,
            open: BTreeSet::new(),
        }
    }

    /// A request's number.
    pub fn note(&mut self, asked: Asked) -> u64 {
        let request = self.next_request;
        self.next_request += 1;
        self.requests.insert(request, asked);
        request
    }

    /// The command of an update.
    pub fn command(&mut self, op: &FsOp) -> Command {
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        self.open.insert(sequence);
        Command {
            id: multicast::ids::CommandId { session: self.session, sequence },
            acknowledged_below: self.open.first().copied().unwrap_or(sequence),
            clock: self.clock.clone(),
            destinations: op.destinations(),
            payload: metadata::codec::encode_op(op),
        }
    }

    /// A command has its answer.
    pub fn settled(&mut self, sequence: u64) {
        self.open.remove(&sequence);
    }
}

/// What a kernel locks exclusively while it waits for a mount: names in a directory change one at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lock {
    /// Renames between two directories, of a whole mount.
    Renames,
    /// A directory.
    Directory(InodeId),
}

/// One thing that an operation asks for.
#[derive(Clone, Debug)]
pub enum Step {
    /// Requests of the kernel that the mount's memory answers.
    Kernel {
        /// How many.
        requests: u32,
        /// Before them the program is told the outcome of the step before.
        returns: bool,
    },
    /// The kernel lets only one of the mount's applications at a time into what follows, until [`Step::Unlock`].
    Lock(Lock),
    /// The next one may.
    Unlock(Lock),
    /// A question.
    Read(GroupId, ReadOp),
    /// An update.
    Update(FsOp),
    /// The content of the file that the step before has made.
    Fill,
}

/// A file of an application's own.
#[derive(Clone, Debug)]
pub struct File {
    /// The directory that names it.
    pub dir: NodeRef,
    /// Its name.
    pub name: Bytes,
    /// The file.
    pub node: NodeRef,
}

/// What a finished operation leaves.
#[derive(Clone, Debug)]
pub enum Leaves {
    /// Nothing to remember.
    Nothing,
    /// A new file, to be used in that group's subtree.
    New(GroupId, NodeRef, Bytes),
    /// A file has another name.
    Named(GroupId, Bytes),
    /// A file is gone.
    Gone(GroupId),
    /// The file that wanders has this directory and name now.
    Wandered(NodeRef, Bytes),
}

/// An operation under way.
#[derive(Clone, Debug)]
pub struct Doing {
    /// Which.
    pub op: Op,
    /// Where.
    pub scope: Scope,
    /// What is left to ask for.
    pub steps: VecDeque<Step>,
    /// When it began.
    pub since: u64,
    /// Not an operation of the experiment: it makes a file that the next one needs.
    pub prepares: bool,
    /// The command under way.
    pub command: Option<Command>,
    /// What it leaves.
    pub leaves: Leaves,
    /// The newest inode that an update has told of.
    pub told: Option<NodeRef>,
    /// Requests of the kernel for whose answers the program does not wait.
    pub late: u32,
    /// It has slept until a lock was free.
    pub was_locked_out: bool,
}

/// One application: it does one thing at a time.
pub struct Client {
    /// Its mount.
    pub mount: usize,
    /// The kernel's and the mount's thread that serves it.
    pub fuse: ThreadId,
    /// Its chance.
    pub random: Random,
    /// What it does.
    pub doing: Option<Doing>,
    /// What it wants to do when what it needs is there.
    pub wants: Option<(Op, Scope, GroupId)>,
    /// Counts attempts; answers to earlier ones come too late.
    pub attempt: u64,
    /// Attempts of this step that failed.
    pub failures: u32,
    /// It stays in the far region and reads.
    pub far_reader: bool,
    /// It shares its folders with others.
    pub in_one_folder: bool,
    files: BTreeMap<GroupId, File>,
    wanderer: Option<File>,
    number: usize,
    names: u64,
}

/// Where directories are: by the asking region and the group.
pub type Dirs = BTreeMap<(usize, GroupId), NodeRef>;

impl Client {
    /// An application.
    #[must_use]
    pub fn new(number: usize, mount: usize, fuse: ThreadId, random: Random) -> Client {
        Client {
            mount,
            fuse,
            random,
            doing: None,
            wants: None,
            attempt: 0,
            failures: 0,
            far_reader: false,
            in_one_folder: false,
            files: BTreeMap::new(),
            wanderer: None,
            number,
            names: 0,
        }
    }

    fn name(&mut self) -> Bytes {
        self.names += 1;
        format!("c{}-{}", self.number, self.names).into()
    }

    /// Begins what it wants, or what must be there before: `own` and `other` are the directories at both ends.
    pub fn plan(&mut self, now: u64, size: usize, own: NodeRef, dir: NodeRef) -> Option<Doing> {
        let (op, scope, group) = self.wants?;
        let in_one_folder = self.in_one_folder;
        let doing = |op, steps: Vec<Step>, leaves, prepares| {
            let locks = locks(steps.first(), in_one_folder);
            let (steps, late) = through_the_kernel(op, group, steps, &locks);
            let (command, told, was_locked_out) = (None, None, false);
            Doing { op, scope, steps, since: now, prepares, command, leaves, told, late, was_locked_out }
        };
        let create = |name: &Bytes, parent: NodeRef| {
            let (name, node) = (name.clone(), NewNode::File);
            Step::Update(FsOp::Create { parent, name, node, mode: 0o644, uid: 0, gid: 0, home: parent.home })
        };
        if op == Op::Move {
            let Some(file) = self.wanderer.clone() else {
                let name = self.name();
                let leaves = Leaves::Wandered(own, name.clone());
                return Some(doing(Op::Create, vec![create(&name, own), Step::Fill], leaves, true));
            };
            let to_name = self.name();
            let to_parent = if file.dir == own { dir } else { own };
            let steps = vec![rename(&file, to_parent, to_name.clone())];
            return Some(doing(op, steps, Leaves::Wandered(to_parent, to_name), false));
        }
        let needs_file = !matches!(op, Op::Create | Op::Mkdir);
        let file = self.files.get(&group).cloned();
        let name = self.name();
        let Some(file) = file.filter(|_| needs_file) else {
            if op == Op::Mkdir {
                let node = NewNode::Directory { placement: None };
                let home = dir.home;
                let step = FsOp::Create { parent: dir, name, node, mode: 0o755, uid: 0, gid: 0, home };
                return Some(doing(op, vec![Step::Update(step)], Leaves::Nothing, false));
            }
            let steps = vec![create(&name, dir), Step::Fill];
            let leaves = if needs_file { Leaves::New(group, dir, name) } else { Leaves::Nothing };
            return Some(doing(Op::Create, steps, leaves, needs_file));
        };
        let (steps, leaves) = with_file(op, group, &file, name, size);
        Some(doing(op, steps, leaves, false))
    }

    /// The operation is done.
    pub fn finish(&mut self, doing: &Doing) {
        let told = doing.told;
        match &doing.leaves {
            Leaves::Nothing => {}
            Leaves::New(group, dir, name) => {
                if let Some(node) = told {
                    self.files.insert(*group, File { dir: *dir, name: name.clone(), node });
                }
            }
            Leaves::Named(group, name) => {
                if let Some(file) = self.files.get_mut(group) {
                    file.name.clone_from(name);
                }
            }
            Leaves::Gone(group) => {
                self.files.remove(group);
            }
            Leaves::Wandered(dir, name) => {
                if let Some(node) = told {
                    self.wanderer = Some(File { dir: *dir, name: name.clone(), node });
                }
            }
        }
    }
}

/// What the kernel locks around the first step of an operation, in this order.
fn locks(step: Option<&Step>, in_one_folder: bool) -> Vec<Lock> {
    let mut locks = match step {
        Some(Step::Update(FsOp::Create { parent, .. } | FsOp::Unlink { parent, .. })) => {
            vec![Lock::Directory(parent.ino)]
        }
        Some(Step::Update(FsOp::Rename { from_parent, to_parent, .. })) if from_parent.ino != to_parent.ino => {
            vec![Lock::Renames, Lock::Directory(from_parent.ino), Lock::Directory(to_parent.ino)]
        }
        Some(Step::Update(FsOp::Rename { to_parent, .. })) => vec![Lock::Directory(to_parent.ino)],
        _ => Vec::new(),
    };
    locks.retain(|lock| in_one_folder || *lock == Lock::Renames);
    locks.sort_unstable();
    locks
}

/// What the kernel asks of the mount around the steps that need a node: as counted on a mount, with files two directories
/// below it, or one in the global subtree. Each name of a path is looked up each time; the last one under the directory's
/// lock, if the operation takes that.
fn through_the_kernel(op: Op, group: GroupId, steps: Vec<Step>, locks: &[Lock]) -> (VecDeque<Step>, u32) {
    let names = if group == GroupId::GLOBAL { 2 } else { 3 };
    // Requests before the first step and after each step, and those that nobody waits for.
    let (before, after, late): (u32, &[u32], u32) = match op {
        // The names, OPEN, READ, FLUSH; RELEASE.
        Op::Reread => (names + 3, &[], 1),
        // The directories' names | the own name | GETATTR, OPEN | READ | FLUSH; RELEASE.
        Op::Read => (names - 1, &[2, 1], 1),
        // The directories' names | the own name | GETATTR.
        Op::Stat => (names - 1, &[1], 0),
        // The names | CREATE | WRITE, past the page cache | FLUSH; RELEASE.
        Op::Create => (names, &[1, 0], 1),
        // The names, OPEN, GETXATTR, WRITE | FLUSH; RELEASE.
        Op::Write => (names + 3, &[0], 1),
        // The names | SETATTR, MKDIR.
        Op::Chmod | Op::Mkdir => (names, &[0], 0),
        // The names | UNLINK; FORGET.
        Op::Unlink => (names, &[0], 1),
        // Both paths' names | RENAME.
        Op::Rename | Op::Move => (2 * names, &[0], 0),
    };
    // The names that it changes.
    let locked = match op {
        _ if locks.is_empty() => 0,
        Op::Rename | Op::Move => 2,
        _ => 1,
    };
    let kernel = |requests, returns| Step::Kernel { requests, returns };
    let mut all = VecDeque::from([kernel(before - locked, false)]);
    for (at, step) in steps.into_iter().enumerate() {
        let then = after.get(at).copied().unwrap_or(0);
        if at == 0 && locked > 0 {
            all.extend(locks.iter().copied().map(Step::Lock));
            all.extend([kernel(locked, false), step, kernel(0, true)]);
            all.extend(locks.iter().rev().copied().map(Step::Unlock));
            all.extend((then > 0).then(|| kernel(then, false)));
        } else {
            all.extend([step, kernel(then, true)]);
        }
    }
    (all, late)
}

fn rename(file: &File, to_parent: NodeRef, to_name: Bytes) -> Step {
    Step::Update(FsOp::Rename {
        from_parent: file.dir,
        from_name: file.name.clone(),
        source: file.node,
        to_parent,
        to_name,
        target: None,
        mode: RenameMode::NoReplace,
        ancestors: Vec::new(),
        keep_open: false,
    })
}

fn with_file(op: Op, group: GroupId, file: &File, name: Bytes, size: usize) -> (Vec<Step>, Leaves) {
    let lookup = Step::Read(file.dir.home, ReadOp::Lookup { parent: file.dir.ino, name: file.name.clone() });
    let nothing = Leaves::Nothing;
    match op {
        Op::Read => {
            let content = ReadOp::Content { ino: file.node.ino, offset: 0, len: size as u64 };
            (vec![lookup, Step::Read(file.node.home, content)], nothing)
        }
        Op::Stat => (vec![lookup], nothing),
        Op::Reread => (Vec::new(), nothing),
        Op::Write => (vec![write(file.node, size)], nothing),
        Op::Chmod => {
            let set = SetAttr { mode: Some(0o600), ..SetAttr::default() };
            (vec![Step::Update(FsOp::SetAttr { node: file.node, set })], nothing)
        }
        Op::Rename => (vec![rename(file, file.dir, name.clone())], Leaves::Named(group, name)),
        Op::Unlink => {
            let (parent, name, target) = (file.dir, file.name.clone(), file.node);
            let unlink = FsOp::Unlink { parent, name, target, keep_open: false };
            (vec![Step::Update(unlink)], Leaves::Gone(group))
        }
        // They need no file.
        Op::Create | Op::Mkdir | Op::Move => (Vec::new(), nothing),
    }
}

/// The content of a small file.
#[must_use]
pub fn write(node: NodeRef, size: usize) -> Step {
    Step::Update(FsOp::Write {
        node,
        at: WriteAt::Offsets,
        changes: vec![Change::Inline { offset: 0, bytes: vec![b'x'; size].into() }],
        size_min: 0,
        mtime: None,
        kill_privileges: false,
    })
}

/// The inode that an outcome tells of.
#[must_use]
pub fn told(done: &Done) -> Option<NodeRef> {
    match done {
        Done::Node { attr, .. } | Done::Renamed { attr, .. } => {
            Some(NodeRef { ino: attr.ino, kind: attr.kind, home: attr.home })
        }
        Done::Removed { .. } | Done::Nothing | Done::Staged { .. } => None,
    }
}

/// A directory as one names it.
#[must_use]
pub fn root() -> NodeRef {
    NodeRef { ino: metadata::types::InodeId::ROOT, kind: FileKind::Directory, home: GroupId::GLOBAL }
}
