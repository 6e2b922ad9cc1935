//! Bytes on the wire and on disk: fixed once and for all, and harmless when they come from strangers.
#![allow(clippy::unwrap_used)]

mod support;

use std::fmt::Write;

use bytes::Bytes;
use metadata::codec::{
    decode_op, decode_outcome, decode_to_client, decode_to_node, encode_op, encode_outcome, encode_to_client,
    encode_to_node,
};
use metadata::namespace::left_for_later;
use metadata::op::{
    Ancestor, Change, FsOp, LockKind, LockRange, NewNode, RenameMode, SetAttr, SetTime, WriteAt, XattrCondition,
};
use metadata::operate::{Directory, GroupMembers, NodeAddress, Operated, Operation, Refusal};
use metadata::outcome::{Done, Errno, Fact, OpError, Outcome};
use metadata::protocol::{Event, Executed, Position, Reply, Request, ToClient, ToNode};
use metadata::read::{ListEntry, ReadAnswer, ReadOp};
use metadata::store::stored_digest;
use metadata::types::{Attr, BlobId, BlobRange, Content, Extent, FileKind, InodeId, NodeRef, TimeNs};
use multicast::command::{Command, Destination, Key, Mode};
use multicast::ids::{CommandId, GroupId, Incarnation, LogIndex, ReplicaId, SessionId, VectorClock};
use multicast::membership::{ChangeRefused, ForceRefused, Member, MemberChange, MemberRole, Membership};
use proptest::prelude::*;
use support::{Cluster, ROOT, name};

const S: SessionId = SessionId(7);
const GOLDEN: &str = include_str!("golden/wire.txt");

fn node(ino: u64) -> NodeRef {
    NodeRef { ino: InodeId(ino), kind: FileKind::File, home: GroupId(1) }
}

fn attr() -> Attr {
    Attr {
        ino: InodeId(5),
        kind: FileKind::Directory,
        mode: 0o755,
        nlink: 2,
        uid: 1,
        gid: 2,
        rdev: 3,
        size: 4,
        allocated: 5,
        atime: TimeNs(-1),
        mtime: TimeNs(2),
        ctime: TimeNs(3),
        btime: TimeNs(4),
        home: GroupId(1),
        placement: GroupId(2),
        parent: Some(InodeId(1)),
        data_version: 9,
        xattrs: 1,
    }
}

fn source() -> BlobRange {
    BlobRange { blob: BlobId { origin: 1, writer: 2, sequence: 3 }, blob_len: 100, crc32c: 0xdead_beef, start: 7 }
}

fn ops() -> Vec<FsOp> {
    let range = LockRange { start: 1, end: 9 };
    let create = |new: NewNode| FsOp::Create {
        parent: ROOT,
        name: name("n"),
        node: new,
        mode: 0o644,
        uid: 1,
        gid: 2,
        home: GroupId(1),
    };
    let changes = vec![
        Change::Inline { offset: 1, bytes: name("xyz") },
        Change::Blob { offset: 2, len: 3, source: source(), fresh: true },
        Change::Hole { offset: 4, len: 5 },
        Change::Zero { offset: 6, len: 7 },
        Change::Allocate { offset: 8, len: 9 },
    ];
    let set = SetAttr {
        mode: Some(0o600),
        uid: Some(1),
        gid: None,
        size: Some(300),
        atime: Some(SetTime::Now),
        mtime: Some(SetTime::At(TimeNs(-3))),
        kill_privileges: true,
    };
    let ancestors = vec![Ancestor { dir: node(8), parent: InodeId(1) }];
    vec![
        create(NewNode::File),
        create(NewNode::Directory { placement: Some(GroupId(2)) }),
        create(NewNode::Symlink { target: name("t") }),
        create(NewNode::Fifo),
        create(NewNode::Socket),
        create(NewNode::CharDevice { rdev: 5 }),
        create(NewNode::BlockDevice { rdev: 6 }),
        FsOp::Link { node: node(3), parent: ROOT, name: name("l") },
        FsOp::Unlink { parent: ROOT, name: name("u"), target: node(3), keep_open: true },
        FsOp::Rmdir { parent: ROOT, name: name("r"), target: ROOT, keep_open: false },
        FsOp::Rename {
            from_parent: ROOT,
            from_name: name("a"),
            source: node(3),
            to_parent: ROOT,
            to_name: name("b"),
            target: Some(node(4)),
            mode: RenameMode::Exchange,
            ancestors,
            keep_open: true,
        },
        FsOp::SetAttr { node: node(3), set },
        FsOp::Write {
            node: node(3),
            at: WriteAt::End,
            changes,
            size_min: 11,
            mtime: Some(TimeNs(5)),
            kill_privileges: true,
        },
        FsOp::SetXattr { node: node(3), name: name("user.x"), value: name("v"), condition: XattrCondition::Replace },
        FsOp::RemoveXattr { node: node(3), name: name("user.x") },
        FsOp::Lock { node: node(3), owner: 4, flock: true, range, kind: Some(LockKind::Write), pid: 9 },
        FsOp::ReleaseOrphans { home: GroupId(1), inodes: vec![InodeId(4)] },
        FsOp::SetPlacement { dir: ROOT, placement: GroupId(3) },
        FsOp::MoveInode { parent: ROOT, name: name("m"), node: node(3), to: GroupId(2) },
        FsOp::Collected { home: GroupId(1), blobs: vec![source().blob] },
        FsOp::StageMove { dir: node(3), to: GroupId(2), transfer: 300, after: 400 },
        FsOp::CancelMove { home: GroupId(1), dir: InodeId(3) },
    ]
}

fn outcomes() -> Vec<Outcome> {
    let boxed = || Box::new(attr());
    let facts = vec![
        Fact::Name { parent: InodeId(1), name: name("n"), dirent: Some(node(3)) },
        Fact::Parent { dir: InodeId(2), parent: InodeId(1) },
        Fact::Placement { dir: InodeId(2), placement: GroupId(1) },
        Fact::BlobGone(source().blob),
        Fact::Attr(boxed()),
    ];
    vec![
        Ok(Done::Nothing),
        Ok(Done::Node { attr: boxed(), appended_at: Some(4), directories: vec![attr()] }),
        Ok(Done::Removed { attr: boxed(), directories: Vec::new() }),
        Ok(Done::Renamed { attr: boxed(), target: Some(boxed()), directories: vec![attr(), attr()] }),
        Ok(Done::Staged { upto: 300, end: true }),
        Err(OpError::Errno(Errno::NoLocks)),
        Err(OpError::Exists(node(3))),
        Err(OpError::Stale(facts)),
        Err(OpError::Moved { ino: InodeId(3), home: GroupId(2) }),
        Err(OpError::LockHeld { session: S, pid: 1, kind: LockKind::Read, range: LockRange { start: 0, end: 1 } }),
    ]
}

fn reads() -> Vec<ReadOp> {
    let range = LockRange { start: 1, end: 9 };
    let ino = InodeId(3);
    vec![
        ReadOp::Lookup { parent: ino, name: name("n") },
        ReadOp::GetAttr { ino },
        ReadOp::ReadDir { dir: ino, after: 3, limit: 100, plus: true },
        ReadOp::ReadLink { ino },
        ReadOp::Content { ino, offset: 1, len: 2 },
        ReadOp::GetXattr { ino, name: name("x") },
        ReadOp::ListXattr { ino },
        ReadOp::Ancestors { dir: ino },
        ReadOp::TestLock { ino, owner: 1, flock: false, range, kind: LockKind::Read, session: S },
        ReadOp::Usage,
        ReadOp::Garbage { limit: 5 },
        ReadOp::BlobsInUse { blobs: vec![source().blob] },
    ]
}

fn answers() -> Vec<ReadAnswer> {
    let boxed = || Box::new(attr());
    let extents =
        || vec![Extent { offset: 1, len: 2, source: Some(source()) }, Extent { offset: 5, len: 2, source: None }];
    let entry = ListEntry { cookie: 3, name: name("n"), dirent: node(3), attr: Some(boxed()) };
    let content = |content| ReadAnswer::Content { attr: boxed(), content };
    vec![
        ReadAnswer::Lookup(Some((node(3), Some(boxed())))),
        ReadAnswer::Attr(boxed()),
        ReadAnswer::Entries { entries: vec![entry], end: true },
        ReadAnswer::Target(name("t")),
        content(Content::Inline(name("xyz"))),
        content(Content::Extents { extents: extents(), more: true }),
        content(Content::Mixed { extents: extents(), inline: vec![(9, name("xyz"))], more: false }),
        ReadAnswer::Xattr(name("v")),
        ReadAnswer::Xattrs(vec![name("a"), name("b")]),
        ReadAnswer::Ancestors(vec![(ROOT, InodeId(1))]),
        ReadAnswer::Lock(Some((S, 1, LockKind::Write, LockRange { start: 0, end: 1 }))),
        ReadAnswer::Usage { inodes: 1, bytes: 2 },
        ReadAnswer::Garbage(vec![source().blob]),
        ReadAnswer::BlobsInUse {
            used: vec![source().blob],
            garbage: vec![source().blob],
            moves: metadata::rows::Moves { departed: 1, arrived: 2 },
        },
    ]
}

fn members() -> Membership {
    let member = |replica, role| Member { replica: ReplicaId(replica), incarnation: Incarnation(300), role };
    let members = vec![member(1, MemberRole::Voter), member(2, MemberRole::Joining), member(3, MemberRole::Learner)];
    Membership { version: 4, members }
}

fn operations() -> Vec<Operation> {
    let (group, replica, incarnation) = (GroupId(1), ReplicaId(2), Incarnation(300));
    let changes = [
        MemberChange::AddLearner { replica, incarnation },
        MemberChange::AddVoter { replica, incarnation },
        MemberChange::Promote { replica },
        MemberChange::Remove { replica },
        MemberChange::Replace { replica, incarnation },
    ];
    let mut operations = vec![
        Operation::Host { group },
        Operation::Unhost { group, members: members() },
        Operation::Force { group, replica, incarnation, keep: vec![ReplicaId(3)] },
        Operation::Rebuild { group, replica, incarnation },
    ];
    operations.extend(changes.map(|change| Operation::Change { group, change }));
    operations
}

fn refusals() -> Vec<Refusal> {
    let replica = ReplicaId(2);
    let changes = [
        ChangeRefused::NotPrimary { hint: Some(replica) },
        ChangeRefused::NotReady,
        ChangeRefused::UnderWay,
        ChangeRefused::NotAMember(replica),
        ChangeRefused::AlreadyThere(replica),
        ChangeRefused::OtherDisk(replica),
        ChangeRefused::LastVoter,
        ChangeRefused::TooMany,
        ChangeRefused::Lagging { behind: 300 },
        ChangeRefused::Silent(replica),
        ChangeRefused::NoQuorumLeft,
    ];
    let forces =
        [ForceRefused::OtherReplica, ForceRefused::NotAMember, ForceRefused::GroupLives, ForceRefused::Exhausted];
    let mut refusals = vec![
        Refusal::NotPermitted,
        Refusal::UnknownGroup,
        Refusal::StillMember,
        Refusal::Quarantined,
        Refusal::Failed("full".into()),
    ];
    refusals.extend(changes.map(Refusal::Change));
    refusals.extend(forces.map(Refusal::Force));
    refusals
}

fn directory() -> Directory {
    let group = GroupMembers { group: GroupId(1), members: members(), applied: Some(LogIndex(300)) };
    let text = |text: &str| text.to_owned();
    let node = NodeAddress { number: ReplicaId(2), name: text("eu-1"), region: text("eu"), address: text("host:4400") };
    Directory { groups: vec![group], nodes: vec![node] }
}

fn requests() -> Vec<Request> {
    let (group, session) = (GroupId(1), S);
    let clock: VectorClock = [(GroupId(0), LogIndex(5))].into_iter().collect();
    let command = Command {
        id: CommandId { session, sequence: 3 },
        acknowledged_below: 2,
        clock: clock.clone(),
        destinations: vec![Destination { group, footprint: vec![(Key(4), Mode::Add)].into() }],
        payload: name("payload"),
    };
    let read = |op| Request::Read { group, session, clock: clock.clone(), linearizable: true, op };
    let mut requests = vec![
        Request::OpenSession { group, session, label: "host".into() },
        Request::CloseSession { group, session },
        Request::KeepAlive { session },
        Request::Subscribe { group, session },
        Request::Update { group, command },
        Request::Status,
    ];
    requests.extend(reads().into_iter().map(read));
    requests.push(Request::Members);
    requests.extend(operations().into_iter().map(Request::Operate));
    requests
}

fn replies() -> Vec<Reply> {
    let group = GroupId(1);
    let dependencies = || [(GroupId(2), LogIndex(3))].into_iter().collect();
    let position = || Position { index: LogIndex(9), dependencies: dependencies(), settled: LogIndex(4) };
    let elsewhere = vec![multicast::Elsewhere { group: GroupId(2), index: LogIndex(3) }];
    let mut replies = vec![
        Reply::Session(position()),
        Reply::Alive,
        Reply::Updated { outcome: Ok(Done::Nothing), position: position(), is_noted: true, elsewhere },
        Reply::Status(name("{}")),
        Reply::NotPrimary { group, primary: Some(ReplicaId(2)) },
        Reply::Behind { applied: LogIndex(4) },
        Reply::Unavailable { group, why: "cut".into() },
        Reply::UnknownSession { group },
        Reply::UnknownGroup { group },
        Reply::Invalid("no".into()),
    ];
    replies.extend(answers().into_iter().map(|answer| Reply::Read { result: Ok(answer), position: position() }));
    replies.push(Reply::Members(directory()));
    let operated =
        [Operated::Hosted(Incarnation(300)), Operated::Unhosted, Operated::Logged(LogIndex(300)), Operated::Rebuilding]
            .into_iter();
    let refused = refusals().into_iter().map(Operated::Refused);
    replies.extend(operated.chain(refused).map(Reply::Operated));
    replies
}

fn messages() -> (Vec<ToNode>, Vec<ToClient>) {
    let to_node = requests().into_iter().map(|body| ToNode { request: 300, body }).collect();
    let mut to_client: Vec<ToClient> =
        replies().into_iter().map(|body| ToClient::Reply { request: 300, body }).collect();
    to_client.push(ToClient::Event(Event {
        group: GroupId(1),
        index: LogIndex(300),
        invalidated: vec![Key(1)],
        invalidate_all: true,
        orphans: vec![InodeId(4)],
        settled: LogIndex(299),
        executed: vec![Executed { sequence: 7, done: Done::Nothing }],
        dependencies: [(GroupId(2), LogIndex(3))].into_iter().collect(),
    }));
    (to_node, to_client)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

/// What follows a state that every family of operations had a hand in: the format of the rows.
fn rows_digest() -> u128 {
    let mut cluster = Cluster::new(2);
    cluster.open_session(S);
    cluster.open_session(SessionId(8));
    let dir = cluster.mkdir_on(S, ROOT, "d", 1);
    let file = cluster.mkfile(S, dir, "f");
    let blob = Change::Blob { offset: 100, len: 10, source: source(), fresh: true };
    cluster.write(S, file, vec![Change::Inline { offset: 0, bytes: name("xyz") }, blob]).unwrap();
    cluster.create(S, dir, "l", NewNode::Symlink { target: name("t") });
    let xattr = FsOp::SetXattr { node: file, name: name("user.x"), value: name("v"), condition: XattrCondition::Any };
    cluster.submit(S, &xattr).unwrap();
    let range = LockRange { start: 1, end: 9 };
    let lock = FsOp::Lock { node: file, owner: 4, flock: true, range, kind: Some(LockKind::Write), pid: 9 };
    cluster.submit(S, &lock).unwrap();
    let gone = cluster.mkfile(S, dir, "g");
    cluster.submit(S, &FsOp::Unlink { parent: dir, name: name("g"), target: gone, keep_open: true }).unwrap();
    let moving = cluster.mkfile(S, dir, "m");
    cluster.submit(S, &FsOp::MoveInode { parent: dir, name: name("m"), node: moving, to: GroupId(0) }).unwrap();
    cluster.check();
    digest(&cluster)
}

/// The same of what is left to later steps, and of what is copied ahead.
fn step_rows_digest() -> u128 {
    let mut cluster = Cluster::new(2);
    cluster.step_rows = 4;
    cluster.open_session(S);
    cluster.open_session(SessionId(8));
    let dir = cluster.mkdir(S, ROOT, "d");
    let files: Vec<NodeRef> = (0..9).map(|at| cluster.mkfile(SessionId(8), dir, &format!("f{at}"))).collect();
    let blobs = |count: u64| {
        let blob = |at| Change::Blob { offset: at * 20, len: 10, source: source(), fresh: true };
        (0..count).map(blob).collect()
    };
    cluster.write(S, files[1], blobs(50)).unwrap();
    cluster.write(S, files[2], blobs(50)).unwrap();
    cluster.drain();
    for (at, file) in files.iter().enumerate().skip(3) {
        let range = LockRange { start: 1, end: 9 };
        let lock =
            FsOp::Lock { node: *file, owner: at as u64, flock: false, range, kind: Some(LockKind::Write), pid: 9 };
        cluster.submit(SessionId(8), &lock).unwrap();
    }
    cluster.submit(S, &FsOp::StageMove { dir, to: GroupId(1), transfer: 7, after: 0 }).unwrap();
    cluster.submit(S, &FsOp::Unlink { parent: dir, name: name("f1"), target: files[1], keep_open: false }).unwrap();
    let cut = SetAttr { size: Some(15), ..SetAttr::default() };
    cluster.submit(S, &FsOp::SetAttr { node: files[2], set: cut }).unwrap();
    cluster.close_session(SessionId(8));
    cluster.check();
    assert!(left_for_later(&cluster.stores[&GroupId(0)]).unwrap() > 1);
    digest(&cluster)
}

fn digest(cluster: &Cluster) -> u128 {
    let digests = cluster.stores.values().map(|store| stored_digest(store).unwrap());
    digests.fold(0, |all, digest| all.rotate_left(1) ^ digest)
}

fn golden() -> String {
    let mut text = String::new();
    let mut line = |kind: &str, bytes: &[u8]| writeln!(text, "{kind} {}", hex(bytes)).unwrap();
    for op in ops() {
        line("op", &encode_op(&op));
    }
    for outcome in outcomes() {
        line("outcome", &encode_outcome(&outcome));
    }
    let (to_node, to_client) = messages();
    for message in to_node {
        line("to-node", &encode_to_node(&message));
    }
    for message in to_client {
        line("to-client", &encode_to_client(&message));
    }
    for op in ops() {
        for destination in op.destinations() {
            let keys = destination.footprint.iter().flat_map(|(key, mode)| {
                key.0.to_be_bytes().into_iter().chain([match mode {
                    Mode::Read => 0,
                    Mode::Add => 1,
                    Mode::Write => 2,
                }])
            });
            line("footprint", &keys.collect::<Vec<u8>>());
        }
    }
    line("rows", &rows_digest().to_be_bytes());
    line("rows-of-steps", &step_rows_digest().to_be_bytes());
    text
}

/// A difference means that nodes and clients of two versions, or a node and its own disk, would misunderstand each other.
/// Set `UPDATE_GOLDEN` to write the file anew, and raise the version that belongs to it.
#[test]
fn formats_stay_as_they_are() {
    let now = golden();
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/wire.txt"), &now).unwrap();
        return;
    }
    for (line, (now, then)) in now.lines().zip(GOLDEN.lines()).enumerate() {
        assert_eq!(now, then, "line {}", line + 1);
    }
    assert_eq!(now.lines().count(), GOLDEN.lines().count());
}

#[test]
fn everything_survives_the_way_there_and_back() {
    for op in ops() {
        assert_eq!(decode_op(&encode_op(&op)).unwrap(), op);
    }
    for outcome in outcomes() {
        assert_eq!(decode_outcome(&encode_outcome(&outcome)).unwrap(), outcome);
    }
    let (to_node, to_client) = messages();
    for message in to_node {
        assert_eq!(decode_to_node(&encode_to_node(&message)).unwrap(), message);
    }
    for message in to_client {
        assert_eq!(decode_to_client(&encode_to_client(&message)).unwrap(), message);
    }
}

#[test]
fn leftovers_and_unknown_versions_are_errors() {
    let bytes = encode_op(&ops()[0]);
    let mut longer = bytes.to_vec();
    longer.push(0);
    assert!(decode_op(&longer).is_err());
    let mut newer = bytes.to_vec();
    newer[0] = 2;
    assert!(decode_op(&newer).is_err());
    assert!(decode_op(&[]).is_err());
    assert!(decode_op(&vec![1; (1 << 20) + 2]).is_err());
}

#[test]
fn understated_footprint_is_malformed() {
    let mut cluster = Cluster::new(1);
    cluster.open_session(S);
    let op = support::create_op(ROOT, "f", NewNode::File, GroupId(0));
    let mut command = cluster.command(S, &op);
    command.destinations[0].footprint.pop();
    let before = cluster.stores.clone();
    let outcome =
        cluster.on(GroupId(0), |namespace| namespace.execute(TimeNs(1), &command, &multicast::Contributions::new()));
    assert_eq!(decode_outcome(&outcome).unwrap(), Err(OpError::Errno(Errno::Malformed)));
    assert_eq!(before, cluster.stores);
}

/// Some operation, with every number small enough to mean something or large enough to hurt.
fn mangled() -> impl Strategy<Value = Vec<u8>> {
    let all: Vec<Bytes> = ops().iter().map(encode_op).collect();
    let flips = proptest::collection::vec((any::<u16>(), any::<u8>()), 0..6);
    (0..all.len(), flips, any::<u8>()).prop_map(move |(which, flips, cut)| {
        let mut bytes = all[which].to_vec();
        for (at, byte) in flips {
            let at = usize::from(at) % bytes.len();
            bytes[at] = byte;
        }
        if cut < 20 {
            bytes.truncate(usize::from(cut));
        }
        bytes
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn strangers_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = decode_op(&bytes);
        let _ = decode_outcome(&bytes);
        let _ = decode_to_node(&bytes);
        let _ = decode_to_client(&bytes);
        let mut versioned = vec![1];
        versioned.extend_from_slice(&bytes);
        let _ = decode_op(&versioned);
        versioned[0] = 2;
        let _ = decode_outcome(&versioned);
    }

    /// Whatever an operation says, with whatever contributions, execution answers and the tree stays a tree.
    #[test]
    fn mangled_operations_have_outcomes(payload in mangled(), junk in proptest::collection::vec(any::<u8>(), 0..40), honest: bool) {
        let mut cluster = Cluster::new(4);
        cluster.open_session(S);
        let dir = cluster.mkdir_on(S, ROOT, "d", 1);
        let file = cluster.mkfile(S, ROOT, "n");
        cluster.mkfile(S, dir, "a");
        cluster.write(S, file, vec![Change::Inline { offset: 0, bytes: name("abc") }]).unwrap();
        let mut command = cluster.command(S, &ops()[0]);
        command.destinations = match decode_op(&payload) {
            Ok(op) => op.destinations(),
            Err(_) => command.destinations,
        };
        command.payload = Bytes::from(payload);
        if command.destinations.is_empty() || command.groups().any(|group| group.0 >= 4) {
            return Ok(());
        }
        let groups: Vec<GroupId> = command.groups().collect();
        let mut contributions = multicast::Contributions::new();
        for &group in groups.iter().filter(|_| groups.len() > 1) {
            let own = cluster.on(group, |namespace| namespace.contribute(&command));
            contributions.insert(group, if honest { own } else { Bytes::from(junk.clone()) });
        }
        let mut outcomes = Vec::new();
        for group in groups {
            let outcome = cluster.on(group, |namespace| namespace.execute(TimeNs(9), &command, &contributions));
            let mut outcome = decode_outcome(&outcome).unwrap();
            support::take_directories(&mut outcome);
            outcomes.push(outcome);
        }
        prop_assert!(outcomes.iter().all(|outcome| *outcome == outcomes[0]));
        cluster.check();
    }

    #[test]
    fn reads_of_anything_have_answers(ino in any::<u64>(), at in any::<u64>(), len in any::<u64>(), which in 0usize..10) {
        let mut cluster = Cluster::new(1);
        cluster.open_session(S);
        let file = cluster.mkfile(S, ROOT, "n");
        let blob = Change::Blob { offset: 9, len: 9, source: source(), fresh: true };
        cluster.write(S, file, vec![blob]).unwrap();
        for ino in [InodeId(ino), ROOT.ino, file.ino] {
            let op = match which {
                0 => ReadOp::Lookup { parent: ino, name: name("n") },
                1 => ReadOp::ReadDir { dir: ino, after: at, limit: len as u32, plus: true },
                2 => ReadOp::ReadLink { ino },
                3 => ReadOp::Content { ino, offset: at, len },
                4 => ReadOp::GetXattr { ino, name: Bytes::new() },
                5 => ReadOp::ListXattr { ino },
                6 => ReadOp::Ancestors { dir: ino },
                7 => ReadOp::Garbage { limit: at as u32 },
                8 => ReadOp::BlobsInUse { blobs: vec![BlobId { origin: len as u16, writer: at, sequence: len }] },
                _ => ReadOp::GetAttr { ino },
            };
            let _ = cluster.read(GroupId(0), &op);
            let _ = (op.keys(), op.keys_if_missing(GroupId(0)));
        }
    }
}
