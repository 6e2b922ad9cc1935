//! The edges of each family of operations, one by one.
#![allow(clippy::unwrap_used)]

mod support;

use bytes::Bytes;
use metadata::footprint::{key_births, key_home, key_inode};
use metadata::op::{
    Ancestor, Change, FsOp, LockKind, LockRange, NewNode, RenameMode, SetAttr, SetTime, WriteAt, XattrCondition,
};
use metadata::outcome::{Done, Errno, Fact, OpError, Outcome};
use metadata::read::{ReadAnswer, ReadOp};
use metadata::types::{
    BlobId, BlobRange, Content, Extent, FILE_BYTES_MAX, FileKind, InodeId, LINKS_MAX, NodeRef, TimeNs,
};
use multicast::ids::{GroupId, SessionId};
use support::{Cluster, INLINE_BYTES_MAX, ROOT, create_op, name, node_of, write_op};

const S: SessionId = SessionId(7);
const OTHER: SessionId = SessionId(8);

fn cluster(groups: u16) -> Cluster {
    let mut cluster = Cluster::new(groups);
    cluster.open_session(S);
    cluster
}

fn errno(errno: Errno) -> Outcome {
    Err(OpError::Errno(errno))
}

fn blob(sequence: u64) -> BlobId {
    BlobId { origin: 1, writer: 5, sequence }
}

fn range(sequence: u64, start: u32) -> BlobRange {
    BlobRange { blob: blob(sequence), blob_len: 1000, crc32c: 1, start }
}

fn put_blob(offset: u64, len: u64, sequence: u64) -> Change {
    Change::Blob { offset, len, source: range(sequence, 0), fresh: true }
}

fn inline(offset: u64, len: usize, byte: u8) -> Change {
    Change::Inline { offset, bytes: Bytes::from(vec![byte; len]) }
}

fn content(cluster: &Cluster, node: NodeRef) -> Content {
    match cluster.read(node.home, &ReadOp::Content { ino: node.ino, offset: 0, len: u64::MAX }) {
        Ok(ReadAnswer::Content { content, .. }) => content,
        other => panic!("{other:?}"),
    }
}

fn garbage(cluster: &Cluster, group: u16) -> Vec<u64> {
    match cluster.read(GroupId(group), &ReadOp::Garbage { limit: 1024 }) {
        Ok(ReadAnswer::Garbage(blobs)) => blobs.into_iter().map(|blob| blob.sequence).collect(),
        other => panic!("{other:?}"),
    }
}

fn rename(from: (NodeRef, &str, NodeRef), to: (NodeRef, &str, Option<NodeRef>), ancestors: Vec<Ancestor>) -> FsOp {
    FsOp::Rename {
        from_parent: from.0,
        from_name: name(from.1),
        source: from.2,
        to_parent: to.0,
        to_name: name(to.1),
        target: to.2,
        mode: RenameMode::Replace,
        ancestors,
        keep_open: false,
    }
}

fn with_mode(op: FsOp, to: RenameMode) -> FsOp {
    let FsOp::Rename { from_parent, from_name, source, to_parent, to_name, target, mode: _, ancestors, keep_open } = op
    else {
        panic!()
    };
    FsOp::Rename { from_parent, from_name, source, to_parent, to_name, target, mode: to, ancestors, keep_open }
}

fn unlink(parent: NodeRef, entry: &str, target: NodeRef, keep_open: bool) -> FsOp {
    FsOp::Unlink { parent, name: name(entry), target, keep_open }
}

fn step(dir: NodeRef, parent: NodeRef) -> Ancestor {
    Ancestor { dir, parent: parent.ino }
}

mod create {
    use super::*;

    #[test]
    fn directory_inherits_group_and_bit_of_set_group_id() {
        let mut cluster = cluster(1);
        let dir = cluster.mkdir(S, ROOT, "d");
        let set = SetAttr { mode: Some(0o2775), gid: Some(42), ..SetAttr::default() };
        cluster.submit(S, &FsOp::SetAttr { node: dir, set }).unwrap();
        let child = cluster.mkdir(S, dir, "sub");
        let file = cluster.mkfile(S, dir, "file");
        assert_eq!((cluster.attr(child).gid, cluster.attr(child).mode), (42, 0o2644));
        assert_eq!((cluster.attr(file).gid, cluster.attr(file).mode), (42, 0o644));
    }

    #[test]
    fn names_are_bounded() {
        let mut cluster = cluster(1);
        let long = "x".repeat(256);
        for (entry, expected) in [
            (long.as_str(), Errno::NameTooLong),
            ("", Errno::Invalid),
            (".", Errno::Invalid),
            ("..", Errno::Invalid),
            ("a/b", Errno::Invalid),
            ("a\0", Errno::Invalid),
        ] {
            assert_eq!(cluster.submit(S, &create_op(ROOT, entry, NewNode::File, GroupId(0))), errno(expected));
        }
        cluster.mkfile(S, ROOT, &long[..255]);
    }

    #[test]
    fn symlink_target_is_bounded() {
        let mut cluster = cluster(1);
        for (len, expected) in [(0, Some(Errno::NotFound)), (4095, None), (4096, Some(Errno::NameTooLong))] {
            let target = Bytes::from(vec![b'x'; len]);
            let outcome = cluster.submit(S, &create_op(ROOT, "l", NewNode::Symlink { target }, GroupId(0)));
            assert_eq!(outcome.err(), expected.map(OpError::Errno));
        }
    }

    #[test]
    fn wrong_home_is_stale_with_the_placement() {
        let mut cluster = cluster(2);
        let outcome = cluster.submit(S, &create_op(ROOT, "f", NewNode::File, GroupId(1)));
        let fact = Fact::Placement { dir: ROOT.ino, placement: GroupId(0) };
        assert_eq!(outcome, Err(OpError::Stale(vec![fact])));
    }

    #[test]
    fn placed_directory_is_born_in_its_group_with_a_number_of_its_own() {
        let mut cluster = cluster(2);
        let placed = cluster.mkdir_on(S, ROOT, "eu", 1);
        assert_eq!((placed.home, placed.ino.birth_group()), (GroupId(1), GroupId(1)));
        let inside = cluster.mkfile(S, placed, "f");
        assert_eq!(inside.home, GroupId(1));
        assert_ne!(inside.ino, placed.ino);
        assert_eq!(cluster.attr(ROOT).nlink, 3);
        cluster.check();
    }

    #[test]
    fn unborn_inode_is_asked_for_again() {
        let mut cluster = cluster(2);
        let op = create_op(ROOT, "eu", NewNode::Directory { placement: Some(GroupId(1)) }, GroupId(1));
        let command = cluster.command(S, &op);
        let contributions: multicast::Contributions = [GroupId(0), GroupId(1)]
            .into_iter()
            .map(|group| (group, cluster.on(group, |namespace| namespace.contribute(&command))))
            .collect();
        let now = TimeNs(5000);
        let outcome = cluster.on(GroupId(0), |namespace| namespace.execute(now, &command, &contributions));
        let attr = node_of(&metadata::codec::decode_outcome(&outcome).unwrap());
        let born = NodeRef { ino: attr.ino, kind: attr.kind, home: attr.home };
        // The name is there, the inode not yet: a reader that knows of the command waits for it ...
        let ask = ReadOp::GetAttr { ino: born.ino };
        assert_eq!(cluster.read(GroupId(1), &ask), Err(OpError::Errno(Errno::StaleHandle)));
        let changing = command.footprint(GroupId(1)).unwrap().iter().map(|(key, _)| *key);
        assert!(changing.clone().any(|key| ask.keys_if_missing(GroupId(1)).contains(&key)));
        // ... and an update is to be tried again.
        let set = SetAttr { mode: Some(0o700), ..SetAttr::default() };
        let chmod = FsOp::SetAttr { node: born, set };
        assert_eq!(cluster.submit(S, &chmod), Err(OpError::Stale(Vec::new())));
        cluster.on(GroupId(1), |namespace| namespace.execute(now, &command, &contributions));
        assert_eq!(node_of(&cluster.submit(S, &chmod)).mode, 0o700);
        cluster.check();
    }

    #[test]
    fn directories_are_told_where_they_live_unless_another_update_is_about_to_change_them() {
        let mut cluster = cluster(2);
        let dir = cluster.mkdir(S, ROOT, "d");
        let told = |cluster: &mut Cluster, group: u16, is_contended: bool| {
            let op = create_op(dir, "sub", NewNode::Directory { placement: Some(GroupId(1)) }, GroupId(1));
            let command = cluster.command(S, &op);
            let groups = [GroupId(0), GroupId(1)];
            let contribute = |group| (group, cluster.on(group, |namespace| namespace.contribute(&command)));
            let contributions = groups.into_iter().map(contribute).collect();
            let stores = cluster.stores.clone();
            let (group, timestamp) = (GroupId(group), multicast::ids::Timestamp(9));
            let context =
                multicast::Context { group, index: multicast::ids::LogIndex(3), timestamp, time_ns: 9, is_contended };
            let outcome = cluster
                .on(group, |namespace| multicast::Machine::execute(namespace, &context, &command, &contributions));
            cluster.stores = stores;
            metadata::codec::decode_outcome(&outcome).unwrap().unwrap().directories().to_vec()
        };
        let exact = told(&mut cluster, 0, false);
        assert_eq!((exact.len(), exact[0].ino, exact[0].size, exact[0].nlink), (1, dir.ino, 1, 3));
        assert_eq!(told(&mut cluster, 1, false), exact, "what becomes of it elsewhere");
        assert_eq!(told(&mut cluster, 1, true), vec![]);
        assert_eq!(told(&mut cluster, 0, true), vec![], "it may miss what its reader has seen elsewhere");
    }

    #[test]
    fn births_in_one_shard_conflict() {
        let op = |entry: &str| create_op(ROOT, entry, NewNode::Directory { placement: Some(GroupId(1)) }, GroupId(1));
        let shard = metadata::birth::BirthShard::of_name(ROOT.ino, b"a");
        let keys = op("a").destinations()[1].footprint.clone();
        assert_eq!(keys[..], [(key_births(GroupId(1), shard), multicast::command::Mode::Write)]);
    }

    #[test]
    fn nothing_is_created_in_a_removed_directory() {
        let mut cluster = cluster(1);
        cluster.open_session(OTHER);
        let dir = cluster.mkdir(S, ROOT, "d");
        let rmdir = FsOp::Rmdir { parent: ROOT, name: name("d"), target: dir, keep_open: true };
        cluster.submit(S, &rmdir).unwrap();
        assert_eq!(cluster.submit(S, &create_op(dir, "f", NewNode::File, GroupId(0))), errno(Errno::NotFound));
    }
}

mod links {
    use super::*;

    #[test]
    fn links_are_bounded() {
        let mut cluster = cluster(1);
        let file = cluster.mkfile(S, ROOT, "f");
        for at in 1..LINKS_MAX {
            cluster.submit(S, &FsOp::Link { node: file, parent: ROOT, name: name(&format!("l{at}")) }).unwrap();
        }
        assert_eq!(cluster.attr(file).nlink, LINKS_MAX);
        let more = FsOp::Link { node: file, parent: ROOT, name: name("more") };
        assert_eq!(cluster.submit(S, &more), errno(Errno::TooManyLinks));
    }

    #[test]
    fn open_unlinked_file_lives_until_its_last_holder_lets_go() {
        let mut cluster = cluster(2);
        cluster.open_session(OTHER);
        let dir = cluster.mkdir_on(S, ROOT, "d", 1);
        let file = cluster.mkfile(S, dir, "f");
        cluster.write(S, file, vec![put_blob(0, 100, 1)]).unwrap();
        cluster.submit(S, &unlink(dir, "f", file, true)).unwrap();
        assert_eq!(cluster.changes[&GroupId(1)].orphans, vec![file.ino]);
        assert_eq!(cluster.attr(file).nlink, 0);
        cluster.write(S, file, vec![inline(0, 5, 1)]).unwrap();
        let release = FsOp::ReleaseOrphans { home: GroupId(1), inodes: vec![file.ino, InodeId(99)] };
        cluster.submit(OTHER, &release).unwrap();
        assert_eq!(cluster.attr(file).nlink, 0);
        cluster.submit(S, &release).unwrap();
        let ask = ReadOp::GetAttr { ino: file.ino };
        assert_eq!(cluster.read(GroupId(1), &ask), Err(OpError::Errno(Errno::StaleHandle)));
        assert!(cluster.changes[&GroupId(1)].keys.contains(&key_inode(file.ino)));
        assert_eq!(garbage(&cluster, 1), vec![1]);
        cluster.check();
    }

    #[test]
    fn closing_sessions_frees_orphans_and_locks() {
        let mut cluster = cluster(1);
        cluster.open_session(OTHER);
        let file = cluster.mkfile(S, ROOT, "f");
        let kept = cluster.mkfile(S, ROOT, "g");
        let whole = LockRange { start: 0, end: u64::MAX };
        let lock = FsOp::Lock { node: kept, owner: 1, flock: true, range: whole, kind: Some(LockKind::Write), pid: 3 };
        cluster.submit(OTHER, &lock).unwrap();
        cluster.submit(S, &unlink(ROOT, "f", file, false)).unwrap();
        let held = OpError::LockHeld { session: OTHER, pid: 3, kind: LockKind::Write, range: whole };
        assert_eq!(cluster.submit(S, &lock), Err(held));
        cluster.close_session(OTHER);
        cluster.check();
        cluster.submit(S, &lock).unwrap();
        let ask = ReadOp::GetAttr { ino: file.ino };
        assert_eq!(cluster.read(GroupId(0), &ask), Err(OpError::Errno(Errno::StaleHandle)));
    }

    #[test]
    fn stale_target_is_answered_with_what_the_name_stands_for() {
        let mut cluster = cluster(1);
        let (a, b) = (cluster.mkfile(S, ROOT, "a"), cluster.mkfile(S, ROOT, "b"));
        let fact = Fact::Name { parent: ROOT.ino, name: name("a"), dirent: Some(a) };
        assert_eq!(cluster.submit(S, &unlink(ROOT, "a", b, false)), Err(OpError::Stale(vec![fact])));
        assert_eq!(cluster.submit(S, &unlink(ROOT, "none", b, false)), errno(Errno::NotFound));
    }
}

mod renames {
    use super::*;

    #[test]
    fn directory_across_groups_keeps_its_home_and_moves_its_parent() {
        let mut cluster = cluster(3);
        let (eu, us) = (cluster.mkdir_on(S, ROOT, "eu", 1), cluster.mkdir_on(S, ROOT, "us", 2));
        let dir = cluster.mkdir(S, eu, "d");
        let inside = cluster.mkfile(S, dir, "f");
        let op = rename((eu, "d", dir), (us, "d", None), vec![step(us, ROOT)]);
        assert_eq!(op.destinations().len(), 2);
        cluster.submit(S, &op).unwrap();
        assert_eq!(cluster.lookup(us, "d"), Some(dir));
        assert_eq!(cluster.lookup(dir, "f"), Some(inside));
        assert_eq!(cluster.attr(dir).parent, Some(us.ino));
        assert_eq!((cluster.attr(eu).nlink, cluster.attr(us).nlink), (2, 3));
        cluster.check();
    }

    #[test]
    fn file_across_groups_takes_everything_with_it() {
        let mut cluster = cluster(3);
        let (eu, us) = (cluster.mkdir_on(S, ROOT, "eu", 1), cluster.mkdir_on(S, ROOT, "us", 2));
        let file = cluster.mkfile(S, eu, "f");
        cluster.write(S, file, vec![put_blob(100, 50, 1), inline(0, 10, 9)]).unwrap();
        let (key, value) = (name("user.k"), name("v"));
        let set =
            FsOp::SetXattr { node: file, name: key.clone(), value: value.clone(), condition: XattrCondition::Any };
        cluster.submit(S, &set).unwrap();
        let before = (cluster.attr(file), content(&cluster, file));
        let attr = node_of(&cluster.submit(S, &rename((eu, "f", file), (us, "g", None), vec![])));
        let moved = NodeRef { home: GroupId(2), ..file };
        assert_eq!(attr, cluster.attr(moved));
        assert_eq!((attr.home, attr.placement, attr.data_version), (GroupId(2), GroupId(2), before.0.data_version));
        assert_eq!(content(&cluster, moved), before.1);
        let ask = ReadOp::GetXattr { ino: file.ino, name: key };
        assert_eq!(cluster.read(GroupId(2), &ask), Ok(ReadAnswer::Xattr(value)));
        let gone = OpError::Moved { ino: file.ino, home: GroupId(2) };
        assert_eq!(cluster.read(GroupId(1), &ask), Err(gone.clone()));
        assert_eq!(cluster.submit(S, &set), Err(gone));
        cluster.check();
        // Its blob may be known elsewhere: whoever collects it asks everywhere.
        cluster.submit(S, &unlink(us, "g", moved, false)).unwrap();
        assert_eq!((garbage(&cluster, 1), garbage(&cluster, 2)), (vec![], vec![1]));
        cluster.check();
    }

    #[test]
    fn file_with_other_names_or_locks_or_many_extents_stays_home() {
        let mut cluster = cluster(3);
        let (eu, us) = (cluster.mkdir_on(S, ROOT, "eu", 1), cluster.mkdir_on(S, ROOT, "us", 2));
        let linked = cluster.mkfile(S, eu, "linked");
        cluster.submit(S, &FsOp::Link { node: linked, parent: eu, name: name("other") }).unwrap();
        let locked = cluster.mkfile(S, eu, "locked");
        let range = LockRange { start: 0, end: 1 };
        let lock = FsOp::Lock { node: locked, owner: 1, flock: false, range, kind: Some(LockKind::Read), pid: 3 };
        cluster.submit(S, &lock).unwrap();
        let big = cluster.mkfile(S, eu, "big");
        cluster.write(S, big, (0..1025).map(|at| put_blob(at * 20, 10, at)).collect()).unwrap();
        for (entry, node) in [("linked", linked), ("locked", locked), ("big", big)] {
            let attr = node_of(&cluster.submit(S, &rename((eu, entry, node), (us, entry, None), vec![])));
            assert_eq!(attr.home, GroupId(1));
            assert_eq!(cluster.lookup(us, entry), Some(node));
        }
        cluster.check();
    }

    #[test]
    fn exchange_swaps_directories_of_different_parents() {
        let mut cluster = cluster(3);
        let (eu, us) = (cluster.mkdir_on(S, ROOT, "eu", 1), cluster.mkdir_on(S, ROOT, "us", 2));
        let (dir, file) = (cluster.mkdir(S, eu, "x"), cluster.mkfile(S, us, "y"));
        let swap = |source: NodeRef, target: NodeRef, chain| {
            with_mode(rename((eu, "x", source), (us, "y", Some(target)), chain), RenameMode::Exchange)
        };
        cluster.submit(S, &swap(dir, file, vec![step(us, ROOT)])).unwrap();
        let moved = NodeRef { home: GroupId(1), ..file };
        assert_eq!((cluster.lookup(eu, "x"), cluster.lookup(us, "y")), (Some(moved), Some(dir)));
        assert_eq!((cluster.attr(eu).nlink, cluster.attr(us).nlink), (2, 3));
        cluster.check();
        // Back: the target is the directory now.
        cluster.submit(S, &swap(moved, dir, vec![step(eu, ROOT)])).unwrap();
        assert_eq!((cluster.lookup(eu, "x"), cluster.lookup(us, "y")), (Some(dir), Some(file)));
        let other = cluster.mkdir(S, us, "z");
        let both = vec![step(us, ROOT), step(eu, ROOT)];
        let op = with_mode(rename((eu, "x", dir), (us, "z", Some(other)), both), RenameMode::Exchange);
        cluster.submit(S, &op).unwrap();
        assert_eq!((cluster.attr(dir).parent, cluster.attr(other).parent), (Some(us.ino), Some(eu.ino)));
        cluster.check();
    }

    /// The chain above a directory of a tree that is given as (directory, its parent), without what is in `known`.
    fn chain_above(tree: &[(NodeRef, NodeRef)], dir: NodeRef, known: &[Ancestor]) -> Vec<Ancestor> {
        let mut chain = Vec::new();
        let mut next = dir;
        while next != ROOT && known.iter().all(|step| step.dir != next) {
            let (_, parent) = tree.iter().find(|(dir, _)| *dir == next).unwrap();
            chain.push(step(next, *parent));
            next = *parent;
        }
        chain
    }

    /// Every two entries of a tree, files and directories, beside each other, under each other, far from each other: with
    /// all directories in one group and with all in different ones.
    #[test]
    fn exchange_of_any_two_entries_swaps_them_or_refuses_a_loop() {
        let trees = [[0; 6], [1, 2, 0, 1, 2, 0], [0, 0, 1, 1, 2, 2]];
        for (spread, groups) in trees.into_iter().enumerate() {
            let mut cluster = cluster(3);
            // /a/b/c and /a/d, /e/f: chains that meet in `a`, in the root, and at once.
            let mut tree: Vec<(NodeRef, NodeRef)> = Vec::new();
            let mut entries: Vec<(NodeRef, String, NodeRef)> = Vec::new();
            let shape = [("a", None), ("b", Some(0)), ("c", Some(1)), ("d", Some(0)), ("e", None), ("f", Some(4))];
            for ((entry, above), group) in shape.into_iter().zip(groups) {
                let parent = above.map_or(ROOT, |above: usize| tree[above].0);
                let dir = cluster.mkdir_on(S, parent, entry, group);
                tree.push((dir, parent));
                entries.push((parent, entry.to_owned(), dir));
            }
            for (parent, _) in tree.clone() {
                for (entry, node) in [("x", NewNode::File), ("y", NewNode::Directory { placement: None })] {
                    let node = cluster.create(S, parent, entry, node);
                    entries.push((parent, entry.to_owned(), node));
                    if node.kind == FileKind::Directory {
                        tree.push((node, parent));
                    }
                }
            }
            let mut outcomes = [0; 2];
            for (from, from_name, source) in &entries {
                for (to, to_name, target) in entries.iter().filter(|entry| entry.2 != *source) {
                    let (above_from, above_to) = (chain_above(&tree, *from, &[]), chain_above(&tree, *to, &[]));
                    let is_above = |node: &NodeRef, chain: &[Ancestor]| chain.iter().any(|step| step.dir == *node);
                    let loops = is_above(source, &above_to) || is_above(target, &above_from);
                    let mut chains = Vec::new();
                    if from != to && source.kind == FileKind::Directory {
                        chains = above_to;
                    }
                    if from != to && target.kind == FileKind::Directory {
                        chains.extend(chain_above(&tree, *from, &chains));
                    }
                    let op = rename((*from, from_name, *source), (*to, to_name, Some(*target)), chains);
                    let before = cluster.clone();
                    let outcome = cluster.submit(S, &with_mode(op, RenameMode::Exchange));
                    outcomes[usize::from(loops)] += 1;
                    if loops {
                        assert_eq!(outcome, errno(Errno::Invalid), "{from_name} {to_name}");
                        assert_eq!(cluster.stores, before.stores);
                        continue;
                    }
                    assert!(outcome.is_ok(), "{from_name} {to_name} {spread}: {outcome:?}");
                    let found = (cluster.lookup(*from, from_name).unwrap(), cluster.lookup(*to, to_name).unwrap());
                    assert_eq!((found.0.ino, found.1.ino), (target.ino, source.ino));
                    for (node, parent) in [(found.0, from), (found.1, to)] {
                        let above = (node.kind == FileKind::Directory).then_some(parent.ino);
                        assert_eq!(cluster.attr(node).parent, above);
                    }
                    cluster.check();
                    cluster = before;
                }
            }
            assert!(outcomes[0] > 200 && outcomes[1] > 20, "{outcomes:?}");
        }
    }

    #[test]
    fn exchange_names_no_ancestor_twice_and_none_too_few() {
        let mut cluster = cluster(2);
        let a = cluster.mkdir_on(S, ROOT, "a", 1);
        let (b, c) = (cluster.mkdir(S, a, "b"), cluster.mkdir(S, a, "c"));
        let (x, y) = (cluster.mkdir(S, b, "x"), cluster.mkdir(S, c, "y"));
        let swap = |chain| with_mode(rename((b, "x", x), (c, "y", Some(y)), chain), RenameMode::Exchange);
        let (above_b, above_c, above_a) = (step(b, a), step(c, a), step(a, ROOT));
        for bad in [
            vec![above_c, above_a, above_b, above_a],
            vec![above_c, above_a],
            vec![above_b, above_a, above_c],
            vec![above_c, above_b, above_a],
            vec![above_c, above_a, step(b, ROOT), above_a],
        ] {
            assert_eq!(cluster.submit(S, &swap(bad)), errno(Errno::Malformed));
        }
        // What lies about where the chains meet is not believed.
        let lie = cluster.submit(S, &swap(vec![above_c, above_a, step(b, c)]));
        assert_eq!(lie, Err(OpError::Stale(vec![Fact::Parent { dir: b.ino, parent: a.ino }])));
        cluster.submit(S, &swap(vec![above_c, above_a, above_b])).unwrap();
        cluster.check();
    }

    #[test]
    fn directory_does_not_move_into_itself() {
        let mut cluster = cluster(1);
        let a = cluster.mkdir(S, ROOT, "a");
        let b = cluster.mkdir(S, a, "b");
        let c = cluster.mkdir(S, b, "c");
        let chain = vec![step(c, b), step(b, a), step(a, ROOT)];
        assert_eq!(cluster.submit(S, &rename((ROOT, "a", a), (c, "x", None), chain)), errno(Errno::Invalid));
        let under = vec![step(b, a), step(a, ROOT)];
        assert_eq!(
            cluster.submit(S, &rename((b, "c", c), (ROOT, "a", Some(a)), vec![])),
            errno(Errno::NotEmpty),
            "an ancestor is not empty"
        );
        let swap = with_mode(rename((b, "c", c), (ROOT, "a", Some(a)), under), RenameMode::Exchange);
        assert_eq!(cluster.submit(S, &swap), errno(Errno::Invalid));
    }

    #[test]
    fn chain_must_be_complete_and_true() {
        let mut cluster = cluster(2);
        let a = cluster.mkdir_on(S, ROOT, "a", 1);
        let b = cluster.mkdir(S, a, "b");
        let d = cluster.mkdir(S, ROOT, "d");
        for bad in [vec![], vec![step(a, ROOT)], vec![step(b, a)], vec![step(b, a), step(a, ROOT), step(d, ROOT)]] {
            let outcome = cluster.submit(S, &rename((ROOT, "d", d), (b, "d", None), bad));
            assert_eq!(outcome, errno(Errno::Malformed));
        }
        let lie = vec![step(b, ROOT)];
        let fact = Fact::Parent { dir: b.ino, parent: a.ino };
        assert_eq!(cluster.submit(S, &rename((ROOT, "d", d), (b, "d", None), lie)), Err(OpError::Stale(vec![fact])));
        let truth = vec![step(b, a), step(a, ROOT)];
        cluster.submit(S, &rename((ROOT, "d", d), (b, "d", None), truth)).unwrap();
        cluster.check();
    }

    #[test]
    fn two_renames_that_would_make_a_loop_conflict() {
        let mut cluster = cluster(3);
        let (p, r) = (cluster.mkdir_on(S, ROOT, "p", 1), cluster.mkdir_on(S, ROOT, "r", 2));
        let (deep, deep2) = (cluster.mkdir(S, r, "deep"), cluster.mkdir(S, p, "deep2"));
        let first = rename((ROOT, "p", p), (deep, "p", None), vec![step(deep, r), step(r, ROOT)]);
        let second = rename((ROOT, "r", r), (deep2, "r", None), vec![step(deep2, p), step(p, ROOT)]);
        let conflicts = first.destinations().iter().any(|of_first| {
            second.destinations().iter().filter(|of_second| of_second.group == of_first.group).any(|of_second| {
                of_first.footprint.iter().any(|(key, mode)| {
                    of_second.footprint.iter().any(|(other, theirs)| key == other && mode.conflicts(*theirs))
                })
            })
        });
        assert!(conflicts);
        cluster.submit(S, &first).unwrap();
        let stale = cluster.submit(S, &second);
        let fact = Fact::Parent { dir: p.ino, parent: deep.ino };
        assert_eq!(stale, Err(OpError::Stale(vec![fact])));
        cluster.check();
    }

    #[test]
    fn what_goes_on_inside_a_moving_directory_does_not_conflict() {
        let node = |ino, home| NodeRef { ino: InodeId(ino), kind: FileKind::Directory, home: GroupId(home) };
        let (eu, us, dir) = (node(10, 1), node(20, 2), node(30, 1));
        let moving = rename((eu, "d", dir), (us, "d", None), vec![step(us, ROOT)]);
        let inside = create_op(dir, "f", NewNode::File, GroupId(1));
        let keys = moving.destinations().into_iter().find(|to| to.group == GroupId(1)).unwrap().footprint;
        for (key, mode) in &inside.destinations()[0].footprint {
            assert!(keys.iter().all(|(other, theirs)| other != key || !theirs.conflicts(*mode)));
        }
        let lookup = ReadOp::Lookup { parent: dir.ino, name: name("f") };
        assert!(keys.iter().all(|(key, _)| !lookup.keys().contains(key)));
    }

    #[test]
    fn replaced_name_keeps_its_place_in_the_listing() {
        let mut cluster = cluster(1);
        let (a, b) = (cluster.mkfile(S, ROOT, "a"), cluster.mkfile(S, ROOT, "b"));
        let list = |cluster: &Cluster| {
            let op = ReadOp::ReadDir { dir: ROOT.ino, after: 0, limit: 10, plus: false };
            let Ok(ReadAnswer::Entries { entries, end: true }) = cluster.read(GroupId(0), &op) else { panic!() };
            entries.into_iter().map(|entry| (entry.cookie, entry.name, entry.dirent)).collect::<Vec<_>>()
        };
        assert_eq!(list(&cluster), vec![(3, name("a"), a), (4, name("b"), b)]);
        cluster.submit(S, &rename((ROOT, "b", b), (ROOT, "a", Some(a)), vec![])).unwrap();
        assert_eq!(list(&cluster), vec![(3, name("a"), b)]);
        cluster.mkfile(S, ROOT, "b");
        assert_eq!(list(&cluster)[1].0, 5, "cookies are never used again");
        cluster.check();
    }

    #[test]
    fn both_names_of_one_inode_stay() {
        let mut cluster = cluster(1);
        let file = cluster.mkfile(S, ROOT, "a");
        cluster.submit(S, &FsOp::Link { node: file, parent: ROOT, name: name("b") }).unwrap();
        let before = cluster.stores.clone();
        cluster.submit(S, &rename((ROOT, "a", file), (ROOT, "b", Some(file)), vec![])).unwrap();
        assert_eq!(before, cluster.stores);
        assert!(cluster.changes[&GroupId(0)].keys.is_empty());
    }

    #[test]
    fn free_name_is_free_whatever_was_guessed() {
        let mut cluster = cluster(1);
        let (a, b) = (cluster.mkfile(S, ROOT, "a"), cluster.mkfile(S, ROOT, "b"));
        let op = |to, guess| with_mode(rename((ROOT, "a", a), (ROOT, to, guess), vec![]), RenameMode::NoReplace);
        assert_eq!(cluster.submit(S, &op("b", None)), Err(OpError::Exists(b)));
        cluster.submit(S, &op("c", Some(a))).unwrap();
        assert_eq!((cluster.lookup(ROOT, "a"), cluster.lookup(ROOT, "c")), (None, Some(a)));
        cluster.check();
    }
}

mod contents {
    use super::*;

    #[test]
    fn inline_bytes_and_blobs_live_side_by_side() {
        let mut cluster = cluster(1);
        let file = cluster.mkfile(S, ROOT, "f");
        cluster.write(S, file, vec![inline(0, 60, 1)]).unwrap();
        assert_eq!(content(&cluster, file), Content::Inline(Bytes::from(vec![1; 60])));
        // Too much: the client hears so and sends its own bytes as a blob. Nobody's bytes are lost.
        let grown = cluster.write(S, file, vec![inline(60, 60, 2)]);
        let Err(OpError::Stale(facts)) = grown else { panic!("{grown:?}") };
        assert!(matches!(&facts[..], [Fact::Attr(_)]));
        assert_eq!(content(&cluster, file), Content::Inline(Bytes::from(vec![1; 60])), "nothing has changed");
        cluster.write(S, file, vec![put_blob(50, 70, 1)]).unwrap();
        let extents = vec![Extent { offset: 50, len: 70, source: Some(range(1, 0)) }];
        let mixed = Content::Mixed { extents, inline: vec![(0, Bytes::from(vec![1; 50]))], more: false };
        assert_eq!(content(&cluster, file), mixed);
        // A small append fits again.
        let append = FsOp::Write {
            node: file,
            at: WriteAt::End,
            changes: vec![inline(0, 8, 3)],
            size_min: 0,
            mtime: None,
            kill_privileges: false,
        };
        let Ok(Done::Node { attr, appended_at, .. }) = cluster.submit(S, &append) else { panic!() };
        assert_eq!((appended_at, attr.size, attr.allocated), (Some(120), 128, 128));
        cluster.check();
    }

    #[test]
    fn truncation_keeps_a_sparse_tail_and_forgets_what_it_cuts() {
        let mut cluster = cluster(1);
        let file = cluster.mkfile(S, ROOT, "f");
        cluster.write(S, file, vec![inline(0, 10, 1)]).unwrap();
        let truncate = |size| FsOp::SetAttr { node: file, set: SetAttr { size: Some(size), ..SetAttr::default() } };
        let attr = node_of(&cluster.submit(S, &truncate(1 << 40)));
        assert_eq!((attr.size, attr.allocated), (1 << 40, 10));
        assert_eq!(content(&cluster, file), Content::Inline(Bytes::from(vec![1; 10])));
        cluster.submit(S, &truncate(4)).unwrap();
        cluster.submit(S, &truncate(10)).unwrap();
        assert_eq!(content(&cluster, file), Content::Inline(Bytes::from(vec![1; 4])));
        assert_eq!(cluster.submit(S, &truncate(FILE_BYTES_MAX + 1)), errno(Errno::FileTooBig));
        let dir = cluster.mkdir(S, ROOT, "d");
        let set = SetAttr { size: Some(0), ..SetAttr::default() };
        assert_eq!(cluster.submit(S, &FsOp::SetAttr { node: dir, set }), errno(Errno::IsDirectory));
        cluster.check();
    }

    /// Its client keeps what it is told, and hears nothing of steps in the same entry.
    #[test]
    fn outcome_tells_the_blocks_that_its_own_steps_have_left() {
        let mut cluster = cluster(1);
        cluster.step_rows = 4;
        let file = cluster.mkfile(S, ROOT, "f");
        cluster.write(S, file, (0..6).map(|at| put_blob(at * 20, 10, at)).collect()).unwrap();
        let cut = FsOp::SetAttr { node: file, set: SetAttr { size: Some(15), ..SetAttr::default() } };
        let told = node_of(&cluster.submit(S, &cut));
        assert_eq!(told.allocated, cluster.attr(file).allocated);
    }

    #[test]
    fn split_extents_count_their_blob_and_lose_it_once() {
        let mut cluster = cluster(1);
        let file = cluster.mkfile(S, ROOT, "f");
        cluster.write(S, file, vec![put_blob(0, 300, 1)]).unwrap();
        cluster.write(S, file, vec![Change::Hole { offset: 100, len: 100 }]).unwrap();
        cluster.check();
        let expected = vec![
            Extent { offset: 0, len: 100, source: Some(range(1, 0)) },
            Extent { offset: 200, len: 100, source: Some(range(1, 200)) },
        ];
        assert_eq!(content(&cluster, file), Content::Extents { extents: expected, more: false });
        cluster.write(S, file, vec![put_blob(0, 100, 2)]).unwrap();
        assert_eq!(garbage(&cluster, 0), Vec::<u64>::new());
        cluster.write(S, file, vec![Change::Zero { offset: 200, len: 100 }]).unwrap();
        assert_eq!(garbage(&cluster, 0), vec![1]);
        assert_eq!(cluster.attr(file).allocated, 200);
        cluster.check();
    }

    #[test]
    fn preallocation_holds_space_and_lengthens_only_if_asked() {
        let mut cluster = cluster(1);
        let file = cluster.mkfile(S, ROOT, "f");
        cluster.write(S, file, vec![put_blob(50, 50, 1)]).unwrap();
        cluster.write(S, file, vec![Change::Allocate { offset: 0, len: 1000 }]).unwrap();
        let attr = cluster.attr(file);
        assert_eq!((attr.size, attr.allocated), (100, 1000));
        let mut op = write_op(file, vec![Change::Allocate { offset: 0, len: 1000 }]);
        if let FsOp::Write { size_min, .. } = &mut op {
            *size_min = 1000;
        }
        let attr = node_of(&cluster.submit(S, &op));
        assert_eq!((attr.size, attr.allocated), (1000, 1000));
        cluster.check();
    }

    #[test]
    fn preallocation_across_many_extents_ends() {
        let mut cluster = cluster(1);
        let file = cluster.mkfile(S, ROOT, "f");
        cluster.write(S, file, (0..1000).map(|at| put_blob(at * 20, 10, at)).collect()).unwrap();
        for (offset, len) in [(0, 5000), (5, 10_003), (0, 50_000)] {
            cluster.write(S, file, vec![Change::Allocate { offset, len }]).unwrap();
            cluster.check();
        }
        assert_eq!(cluster.attr(file).allocated, 50_000);
        cluster.write(S, file, vec![Change::Hole { offset: 1, len: 49_998 }]).unwrap();
        assert_eq!(cluster.attr(file).allocated, 2);
        assert_eq!(garbage(&cluster, 0).len(), 999);
        cluster.check();
    }

    #[test]
    fn blobs_are_shared_only_while_something_refers_to_them() {
        let mut cluster = cluster(1);
        let (a, b) = (cluster.mkfile(S, ROOT, "a"), cluster.mkfile(S, ROOT, "b"));
        cluster.write(S, a, vec![put_blob(0, 100, 1)]).unwrap();
        let share = vec![Change::Blob { offset: 0, len: 10, source: range(1, 20), fresh: false }];
        cluster.write(S, b, share.clone()).unwrap();
        cluster.submit(S, &unlink(ROOT, "a", a, false)).unwrap();
        assert_eq!(garbage(&cluster, 0), Vec::<u64>::new());
        cluster.check();
        cluster.write(S, b, vec![Change::Hole { offset: 0, len: 10 }]).unwrap();
        assert_eq!(garbage(&cluster, 0), vec![1]);
        let gone = Err(OpError::Stale(vec![Fact::BlobGone(blob(1))]));
        assert_eq!(cluster.write(S, b, share), gone);
        assert_eq!(cluster.write(S, b, vec![put_blob(0, 5, 1)]), gone, "too late for a fresh one as well");
        let collected = FsOp::Collected { home: GroupId(0), blobs: vec![blob(1), blob(2)] };
        cluster.submit(S, &collected).unwrap();
        assert_eq!(garbage(&cluster, 0), Vec::<u64>::new());
        cluster.check();
    }

    #[test]
    fn blob_overwritten_within_its_own_update_is_garbage() {
        let mut cluster = cluster(1);
        let file = cluster.mkfile(S, ROOT, "f");
        cluster.write(S, file, vec![put_blob(0, 10, 1), put_blob(0, 10, 2)]).unwrap();
        assert_eq!(garbage(&cluster, 0), vec![1]);
        cluster.check();
    }

    #[test]
    fn refused_write_undoes_all_its_changes() {
        let mut cluster = cluster(1);
        let file = cluster.mkfile(S, ROOT, "f");
        cluster.write(S, file, vec![put_blob(0, 100, 1), inline(200, 20, 1)]).unwrap();
        let before = cluster.stores.clone();
        let outcome = cluster.write(S, file, vec![Change::Hole { offset: 0, len: 150 }, inline(0, 65, 1)]);
        assert!(matches!(outcome, Err(OpError::Stale(_))));
        assert_eq!(before, cluster.stores);
    }

    #[test]
    fn inline_neighbours_become_one() {
        let mut cluster = cluster(1);
        let file = cluster.mkfile(S, ROOT, "f");
        for (offset, byte) in [(0, 1), (8, 2), (4, 3), (2, 4)] {
            cluster.write(S, file, vec![inline(offset, 4, byte)]).unwrap();
        }
        let bytes = Bytes::from_static(&[1, 1, 4, 4, 4, 4, 3, 3, 2, 2, 2, 2]);
        assert_eq!(content(&cluster, file), Content::Inline(bytes));
        let count = cluster.stores[&GroupId(0)].rows().filter(|(key, _)| key[0] == 7).count();
        assert_eq!(count, 1);
        cluster.check();
    }

    #[test]
    fn absurd_changes_are_refused() {
        let mut cluster = cluster(1);
        let file = cluster.mkfile(S, ROOT, "f");
        let wide = BlobRange { blob_len: 5 << 20, ..range(1, 0) };
        let absurd = [
            (Change::Blob { offset: 0, len: 0, source: range(1, 0), fresh: true }, Errno::Malformed),
            (Change::Blob { offset: 0, len: 1001, source: range(1, 0), fresh: true }, Errno::Malformed),
            (Change::Blob { offset: 0, len: 2, source: range(1, u32::MAX), fresh: true }, Errno::Malformed),
            (Change::Blob { offset: 0, len: 2, source: wide, fresh: true }, Errno::Malformed),
            (Change::Hole { offset: u64::MAX, len: 2 }, Errno::FileTooBig),
            (Change::Zero { offset: 0, len: u64::MAX }, Errno::FileTooBig),
            (Change::Allocate { offset: 0, len: 0 }, Errno::Invalid),
            (inline(FILE_BYTES_MAX, 1, 1), Errno::FileTooBig),
        ];
        for (change, expected) in absurd {
            assert_eq!(cluster.write(S, file, vec![change]), errno(expected));
        }
        assert_eq!(cluster.write(S, file, vec![Change::Hole { offset: 0, len: 1 }; 4097]), errno(Errno::Malformed));
        let set = SetAttr { size: Some(FILE_BYTES_MAX), ..SetAttr::default() };
        cluster.submit(S, &FsOp::SetAttr { node: file, set }).unwrap();
        let append = FsOp::Write {
            node: file,
            at: WriteAt::End,
            changes: vec![inline(0, 1, 1)],
            size_min: 0,
            mtime: None,
            kill_privileges: false,
        };
        assert_eq!(cluster.submit(S, &append), errno(Errno::FileTooBig));
        let link = cluster.create(S, ROOT, "l", NewNode::Symlink { target: name("x") });
        assert_eq!(cluster.write(S, link, vec![inline(0, 1, 1)]), errno(Errno::Invalid));
        assert!(u64::from(INLINE_BYTES_MAX) < 4096);
    }

    #[test]
    fn long_content_is_read_in_pieces() {
        let mut cluster = cluster(1);
        let file = cluster.mkfile(S, ROOT, "f");
        cluster.write(S, file, (0..1500).map(|at| put_blob(at * 20, 10, at)).collect()).unwrap();
        let ask = |offset, len| match cluster.read(GroupId(0), &ReadOp::Content { ino: file.ino, offset, len }) {
            Ok(ReadAnswer::Content { content: Content::Extents { extents, more }, .. }) => (extents, more),
            other => panic!("{other:?}"),
        };
        let (first, more) = ask(0, u64::MAX);
        assert_eq!((first.len(), more), (1024, true));
        let last = first.last().unwrap();
        let (second, more) = ask(last.offset + last.len, u64::MAX);
        assert_eq!((second.len(), more), (476, false));
        assert_eq!(ask(15, 10).0, vec![first[1]], "what touches the range");
        assert!(ask(10, 10).0.is_empty(), "a hole");
    }
}

mod attributes {
    use super::*;

    #[test]
    fn times_are_set_as_asked() {
        let mut cluster = cluster(1);
        let file = cluster.mkfile(S, ROOT, "f");
        let set = SetAttr { atime: Some(SetTime::At(TimeNs(-5))), mtime: Some(SetTime::Now), ..SetAttr::default() };
        let attr = node_of(&cluster.submit(S, &FsOp::SetAttr { node: file, set }));
        assert_eq!((attr.atime, attr.mtime, attr.ctime), (TimeNs(-5), TimeNs(cluster.now), TimeNs(cluster.now)));
        let far = SetAttr { mtime: Some(SetTime::At(TimeNs(i64::MAX))), ..SetAttr::default() };
        cluster.submit(S, &FsOp::SetAttr { node: ROOT, set: far }).unwrap();
        assert_eq!(cluster.attr(ROOT).mtime, TimeNs(i64::MAX));
        cluster.mkfile(S, ROOT, "g");
        assert_eq!(cluster.attr(ROOT).mtime, TimeNs(cluster.now), "a time from the future does not stay");
    }

    #[test]
    fn privileges_are_cleared_as_a_write_does() {
        let mut cluster = cluster(1);
        let file = cluster.mkfile(S, ROOT, "f");
        for (mode, expected) in [(0o6755, 0o755), (0o6745, 0o2745), (0o1777, 0o1777)] {
            let set = SetAttr { mode: Some(mode), ..SetAttr::default() };
            cluster.submit(S, &FsOp::SetAttr { node: file, set }).unwrap();
            let mut op = write_op(file, vec![inline(0, 1, 1)]);
            if let FsOp::Write { kill_privileges, .. } = &mut op {
                *kill_privileges = true;
            }
            assert_eq!(node_of(&cluster.submit(S, &op)).mode, expected);
        }
    }

    #[test]
    fn xattrs_are_bounded() {
        let mut cluster = cluster(1);
        let file = cluster.mkfile(S, ROOT, "f");
        let set = |key: &str, len| FsOp::SetXattr {
            node: file,
            name: name(key),
            value: Bytes::from(vec![1; len]),
            condition: XattrCondition::Any,
        };
        assert_eq!(cluster.submit(S, &set(&"x".repeat(256), 1)), errno(Errno::OutOfRange));
        assert_eq!(cluster.submit(S, &set("", 1)), errno(Errno::OutOfRange));
        assert_eq!(cluster.submit(S, &set("user.a", (64 << 10) + 1)), errno(Errno::TooBig));
        for key in ["user.a", "user.b", "user.c"] {
            cluster.submit(S, &set(key, 64 << 10)).unwrap();
        }
        assert_eq!(cluster.submit(S, &set("user.d", 64 << 10)), errno(Errno::NoSpace));
        cluster.submit(S, &set("user.d", 1000)).unwrap();
        assert_eq!(cluster.attr(file).xattrs, 4);
        cluster.submit(S, &unlink(ROOT, "f", file, false)).unwrap();
        cluster.check();
    }
}

mod locks {
    use super::*;

    fn lock(node: NodeRef, owner: u64, start: u64, end: u64, kind: Option<LockKind>) -> FsOp {
        FsOp::Lock { node, owner, flock: false, range: LockRange { start, end }, kind, pid: 1 }
    }

    fn first(cluster: &Cluster, node: NodeRef, start: u64, end: u64) -> Option<(LockKind, u64, u64)> {
        let range = LockRange { start, end };
        let op =
            ReadOp::TestLock { ino: node.ino, owner: 9, flock: false, range, kind: LockKind::Write, session: OTHER };
        match cluster.read(node.home, &op) {
            Ok(ReadAnswer::Lock(found)) => found.map(|(_, _, kind, range)| (kind, range.start, range.end)),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn ranges_split_join_and_change_kind() {
        let mut cluster = cluster(1);
        let file = cluster.mkfile(S, ROOT, "f");
        let (read, write) = (Some(LockKind::Read), Some(LockKind::Write));
        cluster.submit(S, &lock(file, 1, 0, u64::MAX, write)).unwrap();
        cluster.submit(S, &lock(file, 1, 100, 199, None)).unwrap();
        assert_eq!(first(&cluster, file, 0, 0), Some((LockKind::Write, 0, 99)));
        assert_eq!(first(&cluster, file, 100, 199), None);
        assert_eq!(first(&cluster, file, 150, 200), Some((LockKind::Write, 200, u64::MAX)));
        cluster.submit(S, &lock(file, 1, 100, 199, write)).unwrap();
        assert_eq!(first(&cluster, file, 5, 5), Some((LockKind::Write, 0, u64::MAX)), "joined again");
        cluster.submit(S, &lock(file, 1, 10, 19, read)).unwrap();
        assert_eq!(first(&cluster, file, 10, 10), Some((LockKind::Read, 10, 19)));
        assert!(cluster.submit(S, &lock(file, 2, 10, 19, read)).is_ok());
        let held = OpError::LockHeld {
            session: S,
            pid: 1,
            kind: LockKind::Write,
            range: LockRange { start: 20, end: u64::MAX },
        };
        assert_eq!(cluster.submit(S, &lock(file, 2, 19, 20, read)), Err(held));
        assert_eq!(cluster.submit(S, &lock(file, 1, 2, 1, read)), errno(Errno::Invalid));
        cluster.check();
    }

    #[test]
    fn locks_are_bounded_and_need_a_session() {
        let mut cluster = cluster(1);
        let file = cluster.mkfile(S, ROOT, "f");
        assert_eq!(cluster.submit(OTHER, &lock(file, 1, 0, 1, Some(LockKind::Read))), errno(Errno::NoLocks));
        for at in 0..1024 {
            cluster.submit(S, &lock(file, 1, at * 2, at * 2, Some(LockKind::Read))).unwrap();
        }
        let before = cluster.stores.clone();
        assert_eq!(cluster.submit(S, &lock(file, 1, 5000, 5000, Some(LockKind::Read))), errno(Errno::NoLocks));
        assert_eq!(before, cluster.stores);
        cluster.submit(S, &lock(file, 1, 0, u64::MAX, Some(LockKind::Read))).unwrap();
        assert_eq!(first(&cluster, file, 7, 7), Some((LockKind::Read, 0, u64::MAX)));
        cluster.check();
    }
}

mod placement {
    use super::*;

    fn move_op(parent: NodeRef, entry: &str, node: NodeRef, to: u16) -> FsOp {
        FsOp::MoveInode { parent, name: name(entry), node, to: GroupId(to) }
    }

    #[test]
    fn directory_moves_with_its_entries_and_leaves_a_forward() {
        let mut cluster = cluster(3);
        let dir = cluster.mkdir_on(S, ROOT, "d", 1);
        let file = cluster.mkfile(S, dir, "f");
        let sub = cluster.mkdir(S, dir, "s");
        cluster.submit(S, &FsOp::SetPlacement { dir, placement: GroupId(2) }).unwrap();
        let op = move_op(ROOT, "d", dir, 2);
        assert_eq!(op.destinations().len(), 3);
        cluster.submit(S, &op).unwrap();
        assert!(cluster.changes[&GroupId(1)].keys.contains(&key_home(dir.ino)));
        let moved = NodeRef { home: GroupId(2), ..dir };
        assert_eq!(cluster.lookup(ROOT, "d"), Some(moved));
        assert_eq!((cluster.lookup(moved, "f"), cluster.lookup(moved, "s")), (Some(file), Some(sub)));
        let gone = Err(OpError::Moved { ino: dir.ino, home: GroupId(2) });
        assert_eq!(cluster.submit(S, &create_op(dir, "g", NewNode::File, GroupId(2))), gone);
        let born = cluster.mkfile(S, moved, "g");
        assert_eq!(born.home, GroupId(2));
        cluster.check();
        // And back: no forward may stay where the inode lives.
        cluster.submit(S, &move_op(ROOT, "d", moved, 1)).unwrap();
        assert_eq!(cluster.lookup(dir, "g"), Some(born));
        cluster.check();
    }

    #[test]
    fn children_follow_the_placement_even_before_their_directory() {
        let mut cluster = cluster(3);
        let dir = cluster.mkdir_on(S, ROOT, "d", 1);
        cluster.submit(S, &FsOp::SetPlacement { dir, placement: GroupId(2) }).unwrap();
        let file = cluster.mkfile(S, dir, "f");
        assert_eq!((file.home, file.ino.birth_group()), (GroupId(2), GroupId(2)));
        let back = cluster.mkdir_on(S, dir, "s", 1);
        assert_eq!(back.home, GroupId(1));
        cluster.check();
    }

    #[test]
    fn root_and_linked_files_do_not_move() {
        let mut cluster = cluster(2);
        let file = cluster.mkfile(S, ROOT, "a");
        cluster.submit(S, &FsOp::Link { node: file, parent: ROOT, name: name("b") }).unwrap();
        let outcome = cluster.submit(S, &move_op(ROOT, "a", file, 1));
        let fact = Fact::Attr(Box::new(cluster.attr(file)));
        assert_eq!(outcome, Err(OpError::Stale(vec![fact])));
        assert_eq!(cluster.submit(S, &move_op(ROOT, "a", file, 0)), errno(Errno::Invalid));
    }

    #[test]
    fn ancestors_end_where_another_group_begins() {
        let mut cluster = cluster(2);
        let dir = cluster.mkdir_on(S, ROOT, "d", 1);
        let sub = cluster.mkdir(S, dir, "s");
        let chain = cluster.read(GroupId(1), &ReadOp::Ancestors { dir: sub.ino });
        assert_eq!(chain, Ok(ReadAnswer::Ancestors(vec![(sub, dir.ino), (dir, ROOT.ino)])));
        let chain = cluster.read(GroupId(0), &ReadOp::Ancestors { dir: ROOT.ino });
        assert_eq!(chain, Ok(ReadAnswer::Ancestors(vec![(ROOT, ROOT.ino)])));
    }
}

mod steps {
    use super::*;

    #[test]
    fn directory_of_twenty_thousand_entries_moves_while_it_changes() {
        let mut cluster = cluster(2);
        let dir = cluster.mkdir(S, ROOT, "d");
        let files: Vec<NodeRef> = (0..20_000).map(|at| cluster.mkfile(S, dir, &format!("f{at}"))).collect();
        let to = GroupId(1);
        let mut after = 0;
        for step in 0.. {
            let Done::Staged { upto, end } =
                cluster.submit(S, &FsOp::StageMove { dir, to, transfer: 7, after }).unwrap()
            else {
                panic!()
            };
            after = upto;
            // Nobody sees it there, and its updates go on here: on what was copied and on what was not.
            let ask = ReadOp::Lookup { parent: dir.ino, name: name("f0") };
            assert_eq!(cluster.read(to, &ask), Err(OpError::Errno(Errno::StaleHandle)));
            cluster.submit(S, &unlink(dir, &format!("f{step}"), files[step], false)).unwrap();
            cluster.mkfile(S, dir, &format!("f{step}"));
            cluster.submit(S, &unlink(dir, &format!("f{}", 19_000 + step), files[19_000 + step], false)).unwrap();
            if end {
                assert!((5..20).contains(&step), "{step} steps");
                break;
            }
        }
        let page = |cluster: &Cluster, home, after| match cluster
            .read(home, &ReadOp::ReadDir { dir: dir.ino, after, limit: 1000, plus: false })
        {
            Ok(ReadAnswer::Entries { entries, .. }) => entries,
            other => panic!("{other:?}"),
        };
        let list = |cluster: &Cluster, home| {
            let mut all = page(cluster, home, 0);
            loop {
                let more = page(cluster, home, all.last().unwrap().cookie);
                if more.is_empty() {
                    return all;
                }
                all.extend(more);
            }
        };
        let before = list(&cluster, dir.home);
        let op = FsOp::MoveInode { parent: ROOT, name: name("d"), node: dir, to };
        cluster.submit(S, &op).unwrap();
        assert_eq!(list(&cluster, to), before, "the same names under the same cookies");
        cluster.check();
        // Its entries leave their old home in steps; it may come back when they are gone.
        let rows = cluster.stores[&GroupId(0)].rows().count();
        assert!(rows > 30_000, "{rows}");
        let back = FsOp::MoveInode { parent: ROOT, name: name("d"), node: NodeRef { home: to, ..dir }, to: dir.home };
        cluster.submit_patiently(S, &back).unwrap();
        assert_eq!(list(&cluster, dir.home), before);
        cluster.drain();
        cluster.check();
    }

    /// Whether bytes fit shows at the end of a write; a part of it must not have been done by then.
    #[test]
    fn refused_inline_write_changes_nothing_of_a_file_of_many_extents() {
        let mut cluster = cluster(1);
        cluster.step_rows = 1;
        let file = cluster.mkfile(S, ROOT, "f");
        cluster.write(S, file, (0..40).map(|at| put_blob(at * 2, 1, at)).collect()).unwrap();
        cluster.drain();
        let before = cluster.stores.clone();
        let bytes = Bytes::from(vec![7; INLINE_BYTES_MAX as usize]);
        let long = Change::Inline { offset: 0, bytes: bytes.clone() };
        let further = Change::Inline { offset: 1 + bytes.len() as u64, bytes: bytes.slice(..1) };
        for changes in [vec![long.clone(), further.clone()], vec![Change::Hole { offset: 0, len: 12 }, long, further]] {
            let refused = cluster.submit_patiently(S, &write_op(file, changes));
            assert!(
                matches!(&refused, Err(OpError::Stale(facts)) if matches!(facts[..], [Fact::Attr(_)])),
                "{refused:?}"
            );
            assert_eq!(cluster.stores, before);
        }
        // One that fits replaces any number of pieces at once.
        cluster.write(S, file, vec![Change::Inline { offset: 0, bytes }]).unwrap();
        cluster.check();
    }

    #[test]
    fn file_of_many_extents_is_deleted_cut_and_punched_in_steps() {
        let mut cluster = cluster(1);
        cluster.step_rows = 16;
        let put = |cluster: &mut Cluster, entry: &str, first: u64| {
            let file = cluster.mkfile(S, ROOT, entry);
            let changes = (0..1000).map(|at| put_blob(at * 20, 10, first + at)).collect();
            cluster.write(S, file, changes).unwrap();
            cluster.drain();
            file
        };
        let rows = |cluster: &Cluster| cluster.stores[&GroupId(0)].rows().count();
        let deleted = put(&mut cluster, "deleted", 1);
        let before = rows(&cluster);
        cluster.submit(S, &unlink(ROOT, "deleted", deleted, false)).unwrap();
        assert!(before - rows(&cluster) < 50, "one entry removes a bounded number of rows");
        assert_eq!(
            cluster.read(GroupId(0), &ReadOp::GetAttr { ino: deleted.ino }),
            Err(OpError::Errno(Errno::StaleHandle))
        );
        cluster.check();
        cluster.drain();
        assert_eq!(garbage(&cluster, 0).len(), 1000);

        let cut = put(&mut cluster, "cut", 2001);
        let to = |size| FsOp::SetAttr { node: cut, set: SetAttr { size: Some(size), ..SetAttr::default() } };
        assert_eq!(node_of(&cluster.submit(S, &to(15))).size, 15);
        let shown = Content::Extents {
            extents: vec![Extent { offset: 0, len: 10, source: Some(range(2001, 0)) }],
            more: false,
        };
        assert_eq!(content(&cluster, cut), shown, "what is cut off is seen by nobody");
        let blocks = cluster.attr(cut).allocated;
        cluster.on(GroupId(0), |namespace| namespace.tick());
        assert!(cluster.attr(cut).allocated < blocks);
        let told = cluster.changes[&GroupId(0)].keys.contains(&metadata::footprint::key_inode(cut.ino));
        assert!(told, "its cached attributes are void");
        cluster.check();
        assert_eq!(cluster.submit(S, &to(500)), Err(OpError::Stale(Vec::new())), "it must be gone first");
        cluster.submit_patiently(S, &to(500)).unwrap();
        assert_eq!(content(&cluster, cut), shown);
        cluster.check();

        let punched = put(&mut cluster, "punched", 4001);
        let hole = write_op(punched, vec![Change::Hole { offset: 5, len: 19_000 }]);
        assert_eq!(cluster.submit(S, &hole), Err(OpError::Stale(Vec::new())));
        cluster.submit_patiently(S, &hole).unwrap();
        assert_eq!(cluster.attr(punched).allocated, 500);
        cluster.check();
    }

    #[test]
    fn cut_file_gets_and_loses_names_of_other_groups_while_its_content_goes_in_steps() {
        let mut cluster = cluster(2);
        cluster.step_rows = 16;
        let eu = cluster.create(S, ROOT, "eu", NewNode::Directory { placement: Some(GroupId(1)) });
        let file = cluster.mkfile(S, ROOT, "f");
        let changes = (0..200).map(|at| put_blob(at * 20, 10, 1 + at)).collect();
        cluster.write(S, file, changes).unwrap();
        let cut = FsOp::SetAttr { node: file, set: SetAttr { size: Some(15), ..SetAttr::default() } };
        cluster.submit(S, &cut).unwrap();
        let link = FsOp::Link { node: file, parent: eu, name: name("g") };
        for op in [link, unlink(eu, "g", file, false)] {
            let command = cluster.command(S, &op);
            let groups: Vec<GroupId> = command.groups().collect();
            let contribute = |group: GroupId| (group, cluster.on(group, |namespace| namespace.contribute(&command)));
            let contributions = groups.iter().copied().map(contribute).collect();
            // Between the verdict and the execution.
            cluster.on(GroupId(0), |namespace| namespace.tick());
            for group in groups {
                let outcome = cluster.on(group, |namespace| namespace.execute(TimeNs(9000), &command, &contributions));
                assert!(metadata::codec::decode_outcome(&outcome).unwrap().is_ok());
            }
            cluster.check();
        }
    }

    #[test]
    fn session_with_many_locks_and_orphans_ends_in_steps() {
        let mut cluster = cluster(1);
        cluster.open_session(OTHER);
        cluster.step_rows = 16;
        for at in 0..200 {
            let file = cluster.mkfile(S, ROOT, &format!("f{at}"));
            let range = LockRange { start: 0, end: 9 };
            let lock = FsOp::Lock { node: file, owner: 1, flock: false, range, kind: Some(LockKind::Write), pid: 3 };
            cluster.submit(OTHER, &lock).unwrap();
            if at % 2 == 0 {
                cluster.submit(S, &unlink(ROOT, &format!("f{at}"), file, false)).unwrap();
            }
        }
        let before = cluster.stores[&GroupId(0)].rows().count();
        cluster.close_session(OTHER);
        assert!(before - cluster.stores[&GroupId(0)].rows().count() < 100);
        cluster.check();
        // What it had locked is free at once.
        let last = cluster.lookup(ROOT, "f199").unwrap();
        let range = LockRange { start: 0, end: 9 };
        let lock = FsOp::Lock { node: last, owner: 1, flock: false, range, kind: Some(LockKind::Write), pid: 3 };
        cluster.submit(S, &lock).unwrap();
        cluster.drain();
        cluster.check();
        assert_eq!(cluster.read(GroupId(0), &ReadOp::Usage), Ok(ReadAnswer::Usage { inodes: 101, bytes: 0 }));
    }
}
