//! A cluster of namespaces without a log: one serial order, driven by hand.
#![allow(dead_code, missing_docs, clippy::unwrap_used, clippy::manual_is_multiple_of, clippy::too_many_arguments)]

pub mod driver;
pub mod model;
pub mod tree;

use std::collections::BTreeMap;

use bytes::Bytes;
use metadata::codec::{decode_outcome, encode_op};
use metadata::namespace::{Genesis, STEP_ROWS_MAX, genesis, left_for_later, read};
use metadata::op::{Change, FsOp, NewNode, WriteAt};
use metadata::outcome::{Done, Fact, OpError, Outcome};
use metadata::read::{ReadAnswer, ReadOp, ReadResult};
use metadata::types::{Attr, FileKind, InodeId, NodeRef, TimeNs};
use metadata::{Changes, MemStore, Namespace, Overlay};
use multicast::command::Command;
use multicast::ids::{CommandId, GroupId, SessionId, VectorClock};

pub const INLINE_BYTES_MAX: u32 = 64;
pub const ROOT: NodeRef = NodeRef { ino: InodeId::ROOT, kind: FileKind::Directory, home: GroupId::GLOBAL };

#[derive(Clone)]
pub struct Cluster {
    pub stores: BTreeMap<GroupId, MemStore>,
    /// What the last command changed, by group.
    pub changes: BTreeMap<GroupId, Changes>,
    pub now: i64,
    /// How much one entry does beyond what it says.
    pub step_rows: usize,
    sequence: u64,
    transfer: u64,
}

impl Cluster {
    pub fn new(groups: u16) -> Self {
        let mut cluster = Cluster {
            stores: BTreeMap::new(),
            changes: BTreeMap::new(),
            now: 1000,
            step_rows: STEP_ROWS_MAX,
            sequence: 0,
            transfer: 0,
        };
        for group in (0..groups).map(GroupId) {
            let first = Genesis { inline_bytes_max: INLINE_BYTES_MAX, uid: 0, gid: 0, mode: 0o755, time: TimeNs(1000) };
            let mut store = MemStore::new();
            let mut overlay = Overlay::new(&store).unwrap();
            genesis(&mut overlay, group, &first).unwrap();
            let writes = overlay.into_writes();
            store.apply(writes);
            cluster.stores.insert(group, store);
        }
        cluster
    }

    /// Runs one thing on one group's namespace, as one batch.
    pub fn on<T>(&mut self, group: GroupId, run: impl FnOnce(&mut Namespace<Overlay<'_, MemStore>>) -> T) -> T {
        let store = &self.stores[&group];
        let mut namespace = Namespace::open(group, Overlay::new(store).unwrap()).unwrap();
        namespace.set_step_rows(self.step_rows);
        let result = run(&mut namespace);
        assert_eq!(namespace.failure(), None);
        self.changes.insert(group, namespace.take_changes());
        let writes = namespace.into_store().into_writes();
        self.stores.get_mut(&group).unwrap().apply(writes);
        result
    }

    pub fn open_session(&mut self, session: SessionId) {
        for group in self.groups() {
            self.on(group, |namespace| namespace.session_opened(session));
        }
    }

    pub fn close_session(&mut self, session: SessionId) {
        self.changes.clear();
        for group in self.groups() {
            self.on(group, |namespace| namespace.session_closed(session));
        }
    }

    pub fn groups(&self) -> Vec<GroupId> {
        self.stores.keys().copied().collect()
    }

    pub fn command(&mut self, session: SessionId, op: &FsOp) -> Command {
        self.sequence += 1;
        Command {
            id: CommandId { session, sequence: self.sequence },
            acknowledged_below: 0,
            clock: VectorClock::new(),
            destinations: op.destinations(),
            payload: encode_op(op),
        }
    }

    /// Executes an update in all its groups, at a time of its own.
    pub fn submit(&mut self, session: SessionId, op: &FsOp) -> Outcome {
        self.now += 1000;
        let command = self.command(session, op);
        self.changes.clear();
        let groups: Vec<GroupId> = command.groups().collect();
        let mut contributions = multicast::Contributions::new();
        if command.is_multi_group() {
            for &group in &groups {
                let before = self.stores[&group].clone();
                contributions.insert(group, self.on(group, |namespace| namespace.contribute(&command)));
                assert_eq!(before, self.stores[&group], "a contribution changes nothing");
            }
        }
        let now = TimeNs(self.now);
        let (mut outcomes, mut far) = (Vec::new(), Vec::new());
        for &group in &groups {
            let outcome = self.on(group, |namespace| namespace.execute(now, &command, &contributions));
            let mut outcome = decode_outcome(&outcome).unwrap();
            far.extend(self.check_directories(group, op, &mut outcome));
            outcomes.push(outcome);
        }
        for told in far {
            self.check_directory(&told);
        }
        assert!(outcomes.iter().all(|outcome| *outcome == outcomes[0]), "every group answers alike");
        outcomes.swap_remove(0)
    }

    /// As a client does it: asks again when told to, and copies ahead what does not move at once.
    pub fn submit_patiently(&mut self, session: SessionId, op: &FsOp) -> Outcome {
        for round in 0..10_000 {
            let outcome = self.submit(session, op);
            match (&outcome, op) {
                (Err(OpError::Stale(facts)), _) if facts.is_empty() => {}
                (Err(OpError::Stale(facts)), FsOp::MoveInode { node, to, .. })
                    if node.kind == FileKind::Directory && matches!(facts.as_slice(), [Fact::Attr(_)]) =>
                {
                    // It may have locks: then no copying ahead will help.
                    if round > 8 || !self.stage(session, *node, *to) {
                        self.cancel(session, *node, *to);
                        return outcome;
                    }
                }
                _ => return outcome,
            }
        }
        panic!("{op:?} never ends")
    }

    /// Copies a directory's entries ahead; false if it may not be.
    fn stage(&mut self, session: SessionId, dir: NodeRef, to: GroupId) -> bool {
        let mut after = 0;
        for _ in 0..10_000 {
            if after == 0 {
                self.transfer = self.sequence;
            }
            match self.submit(session, &FsOp::StageMove { dir, to, transfer: self.transfer, after }) {
                Ok(Done::Staged { end: true, .. }) => return true,
                Ok(Done::Staged { upto, .. }) => after = upto,
                Err(OpError::Stale(facts)) if facts.is_empty() => {}
                Err(OpError::Errno(metadata::outcome::Errno::Busy)) if dir != ROOT => {
                    self.cancel(session, dir, to);
                    after = 0;
                }
                _ => return false,
            }
        }
        panic!("{dir:?} is never copied")
    }

    fn cancel(&mut self, session: SessionId, dir: NodeRef, to: GroupId) {
        for home in [dir.home, to] {
            self.submit(session, &FsOp::CancelMove { home, dir: dir.ino }).unwrap();
        }
    }

    /// Nothing is left to later steps, though nobody asks for anything.
    pub fn drain(&mut self) {
        for home in self.groups() {
            let mut ticks = 0;
            while left_for_later(&self.stores[&home]).unwrap() > 0 {
                let before = self.stores[&home].rows().count();
                self.on(home, |namespace| namespace.tick());
                let removed = before.saturating_sub(self.stores[&home].rows().count());
                assert!(removed <= 4 * self.step_rows + 8, "{removed} rows in one step");
                ticks += 1;
                assert!(ticks < 100_000, "there is no end");
            }
        }
    }

    /// The directories that an outcome tells of are as the group has them, and all that live there and whose entries
    /// changed are told. Takes them out, and returns those that live elsewhere: so they will be there.
    fn check_directories(&self, group: GroupId, op: &FsOp, outcome: &mut Outcome) -> Vec<Attr> {
        let directories = take_directories(outcome);
        if outcome.is_err() {
            return Vec::new();
        }
        let (here, far): (Vec<Attr>, Vec<Attr>) = directories.into_iter().partition(|attr| attr.home == group);
        here.iter().for_each(|told| self.check_directory(told));
        let parents = match op {
            FsOp::Create { parent, .. }
            | FsOp::Link { parent, .. }
            | FsOp::Unlink { parent, .. }
            | FsOp::Rmdir { parent, .. } => vec![*parent],
            FsOp::Rename { from_parent, to_parent, .. } => vec![*from_parent, *to_parent],
            _ => Vec::new(),
        };
        for parent in parents.iter().filter(|parent| parent.home == group) {
            assert!(here.iter().any(|attr| attr.ino == parent.ino), "{op:?} does not tell of {parent:?}");
        }
        far
    }

    fn check_directory(&self, told: &Attr) {
        let Ok(ReadAnswer::Attr(attr)) = self.read(told.home, &ReadOp::GetAttr { ino: told.ino }) else { panic!() };
        assert_eq!(*attr, *told);
    }

    pub fn read(&self, group: GroupId, op: &ReadOp) -> ReadResult {
        match self.stores.get(&group) {
            Some(store) => read(store, group, op).unwrap(),
            None => Err(OpError::Errno(metadata::outcome::Errno::StaleHandle)),
        }
    }

    pub fn attr(&self, node: NodeRef) -> Attr {
        match self.read(node.home, &ReadOp::GetAttr { ino: node.ino }) {
            Ok(ReadAnswer::Attr(attr)) => *attr,
            other => panic!("no attributes of {node:?}: {other:?}"),
        }
    }

    pub fn lookup(&self, parent: NodeRef, name: &str) -> Option<NodeRef> {
        let name = Bytes::copy_from_slice(name.as_bytes());
        match self.read(parent.home, &ReadOp::Lookup { parent: parent.ino, name }) {
            Ok(ReadAnswer::Lookup(found)) => found.map(|(dirent, _)| dirent),
            other => panic!("no lookup in {parent:?}: {other:?}"),
        }
    }

    pub fn check(&self) {
        let stores: BTreeMap<GroupId, &MemStore> = self.stores.iter().map(|(group, store)| (*group, store)).collect();
        let found = metadata::check::check(&stores).unwrap();
        assert!(found.is_empty(), "{}", found.iter().map(|violation| format!("{violation}\n")).collect::<String>());
    }
}

/// Shorter ways to say what tests do most.
impl Cluster {
    pub fn create(&mut self, session: SessionId, parent: NodeRef, name: &str, node: NewNode) -> NodeRef {
        let home = match node {
            NewNode::Directory { placement: Some(placement) } => placement,
            _ => self.attr(parent).placement,
        };
        let done = self.submit(session, &create_op(parent, name, node, home));
        let attr = node_of(&done);
        NodeRef { ino: attr.ino, kind: attr.kind, home: attr.home }
    }

    pub fn mkdir(&mut self, session: SessionId, parent: NodeRef, name: &str) -> NodeRef {
        self.create(session, parent, name, NewNode::Directory { placement: None })
    }

    pub fn mkdir_on(&mut self, session: SessionId, parent: NodeRef, name: &str, group: u16) -> NodeRef {
        self.create(session, parent, name, NewNode::Directory { placement: Some(GroupId(group)) })
    }

    pub fn mkfile(&mut self, session: SessionId, parent: NodeRef, name: &str) -> NodeRef {
        self.create(session, parent, name, NewNode::File)
    }

    pub fn write(&mut self, session: SessionId, node: NodeRef, changes: Vec<Change>) -> Outcome {
        self.submit(session, &write_op(node, changes))
    }
}

pub fn create_op(parent: NodeRef, name: &str, node: NewNode, home: GroupId) -> FsOp {
    let name = Bytes::copy_from_slice(name.as_bytes());
    FsOp::Create { parent, name, node, mode: 0o644, uid: 1, gid: 2, home }
}

pub fn write_op(node: NodeRef, changes: Vec<Change>) -> FsOp {
    FsOp::Write { node, at: WriteAt::Offsets, changes, size_min: 0, mtime: None, kill_privileges: false }
}

/// The attributes of the inode that an update was about.
pub fn node_of(outcome: &Outcome) -> Attr {
    match outcome {
        Ok(Done::Node { attr, .. } | Done::Removed { attr, .. } | Done::Renamed { attr, .. }) => (**attr).clone(),
        other => panic!("not about an inode: {other:?}"),
    }
}

/// Takes out what each group tells for itself.
pub fn take_directories(outcome: &mut Outcome) -> Vec<Attr> {
    match outcome {
        Ok(Done::Node { directories, .. } | Done::Removed { directories, .. } | Done::Renamed { directories, .. }) => {
            std::mem::take(directories)
        }
        Ok(Done::Nothing | Done::Staged { .. }) | Err(_) => Vec::new(),
    }
}

pub fn name(name: &str) -> Bytes {
    Bytes::copy_from_slice(name.as_bytes())
}
