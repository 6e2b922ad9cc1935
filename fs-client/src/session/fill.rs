//! What replies teach the cache. Runs on the connection's task, in the order of the stream.

use std::sync::Arc;

use metadata::op::{FsOp, NewNode, RenameMode};
use metadata::outcome::{Done, OpError, Outcome};
use metadata::read::{ReadAnswer, ReadOp, ReadResult};
use metadata::types::{Attr, Dirent, FileKind, NodeRef};
use multicast::Elsewhere;
use multicast::command::{Destination, Key};
use multicast::ids::{GroupId, LogIndex, VectorClock};

use crate::cache::{Cache, Fill};
use crate::content::FileMap;
use crate::listings::{ASKED_MAX, NameChange};
use crate::session::progress::StreamId;

/// A question that was asked.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// Of which group.
    pub group: GroupId,
    /// What.
    pub op: &'a ReadOp,
    /// By who had seen these effects of prepared updates of the group.
    pub asked: LogIndex,
}

/// A read's answer, in the stream that keeps the cache right.
pub fn read(cache: &Cache, stream: StreamId, question: &Question<'_>, result: &ReadResult, as_of: LogIndex) {
    let Question { group, op, asked } = *question;
    let Some(fill) = cache.fill(group, Some(stream), as_of, asked) else { return };
    match (op, result) {
        (ReadOp::Lookup { parent, name }, Ok(ReadAnswer::Lookup(found))) => {
            fill.dirent(*parent, name, found.as_ref().map(|(dirent, _)| *dirent));
            if let Some((_, Some(attr))) = found {
                fill.attr(attr);
            }
        }
        (ReadOp::GetAttr { .. }, Ok(ReadAnswer::Attr(attr))) => fill.attr(attr),
        (ReadOp::ReadDir { dir, after, .. }, Ok(ReadAnswer::Entries { entries, end })) => {
            if *after == 0 && *end && entries.len() as u64 <= ASKED_MAX {
                fill.listing(*dir, entries.iter().map(|entry| &entry.name));
            }
            for attr in entries.iter().filter_map(|entry| entry.attr.as_ref()) {
                fill.attr(attr);
            }
        }
        (ReadOp::Content { offset, len, .. }, Ok(ReadAnswer::Content { attr, content })) => {
            fill.attr(attr);
            if let Some(map) = FileMap::new((**attr).clone(), content.clone(), *offset, *len) {
                fill.map(&Arc::new(map));
            }
        }
        (ReadOp::ReadLink { ino }, Ok(ReadAnswer::Target(target))) => fill.target(*ino, target),
        (ReadOp::GetXattr { ino, name }, Ok(ReadAnswer::Xattr(value))) => fill.xattr(*ino, name, Some(value)),
        (ReadOp::GetXattr { ino, name }, Err(OpError::Errno(metadata::outcome::Errno::NoXattr))) => {
            fill.xattr(*ino, name, None);
        }
        _ => {}
    }
}

/// What keeps right what an own outcome teaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// The stream: the replica has noted the outcome's keys for this session as it does for what it reads, and no prepared
    /// update is about to change one of them.
    Noted(StreamId),
    /// Nothing: it answers only until something newer of the group was seen. Asked by who had seen these effects.
    Unnoted {
        /// Of prepared updates of the group.
        asked: LogIndex,
    },
}

/// An own update's outcome, in the group that answers. What it changed there is forgotten first if no stream keeps it right.
/// True if something was learned.
pub fn update(
    cache: &Cache,
    group: GroupId,
    destinations: &[Destination],
    op: &FsOp,
    outcome: &Outcome,
    as_of: LogIndex,
    kept: Kept,
) -> bool {
    // An update waits for every prepared one that it conflicts with and whose effect its client had seen.
    let (stream, asked) = match kept {
        Kept::Noted(stream) => (Some(stream), as_of),
        Kept::Unnoted { asked } => (None, asked),
    };
    if stream.is_none() {
        cache.forget(group, changed(destinations, group));
    }
    let Ok(done) = outcome else { return false };
    let fill = cache.fill(group, stream, as_of, asked);
    if let Some(fill) = &fill {
        teach(fill, group, op, done, false);
    }
    fill.is_some()
}

/// What another group of an own update has told of its outcome there, in its stream. `is_counted`: the names that came and
/// went are taken into account already. True if something was learned.
pub fn executed(
    cache: &Cache,
    (group, stream): (GroupId, StreamId),
    (op, done): (&FsOp, &Done),
    as_of: LogIndex,
    is_counted: bool,
) -> bool {
    let fill = cache.fill(group, Some(stream), as_of, as_of);
    if let Some(fill) = &fill {
        teach(fill, group, op, done, is_counted);
    }
    fill.is_some()
}

/// What an own update's outcome means in its groups that did not answer. There it has yet to execute; nobody else changes
/// the names and inodes that it has locked, so what will become of them holds until the group's stream tells of their keys,
/// which it has noted since the `Commit`. `asked`: the effects that had been seen of each group when it was asked for.
/// `told`: groups that have told of it already. Returns the groups of which something was learned.
pub fn elsewhere(
    cache: &Cache,
    destinations: &[Destination],
    (op, outcome): (&FsOp, &Outcome),
    elsewhere: &[Elsewhere],
    (asked, told): (&VectorClock, &[GroupId]),
) -> Vec<GroupId> {
    let mut learned = Vec::new();
    for own in elsewhere {
        let before = cache.effects(own.group);
        cache.see_own(own, changed(destinations, own.group));
        // Who asked knew of everything but of what came before the update in its group, and is in what that has contributed.
        let is_news = asked.effects(own.group) >= before && !told.contains(&own.group);
        if let (true, Ok(done)) = (is_news, outcome)
            && let Some(fill) = cache.fill_own(own.group, own.index, changed(destinations, own.group).collect())
        {
            teach(&fill, own.group, op, done, false);
            learned.push(own.group);
        }
    }
    let is_told = |group| elsewhere.iter().any(|own| own.group == group);
    for destination in destinations.iter().filter(|destination| !is_told(destination.group)) {
        cache.forget(destination.group, changed(destinations, destination.group));
    }
    learned
}

/// The keys that an update changes in one of its groups.
pub fn changed(destinations: &[Destination], group: GroupId) -> impl Iterator<Item = Key> {
    let footprints = destinations.iter().filter(move |destination| destination.group == group);
    let keys = footprints.flat_map(|destination| &destination.footprint);
    keys.filter(|(_, mode)| mode.changes()).map(|(key, _)| *key)
}

fn teach(fill: &Fill<'_>, group: GroupId, op: &FsOp, done: &Done, is_counted: bool) {
    let there = |attr: &Attr| Some(Dirent { ino: attr.ino, kind: attr.kind, home: attr.home });
    match (op, done) {
        (FsOp::Create { parent, name, node, .. }, Done::Node { attr, .. }) => {
            if parent.home == group {
                fill.dirent(parent.ino, name, there(attr));
            }
            fill.replace(attr);
            match node {
                NewNode::Symlink { target } => fill.target(attr.ino, target),
                NewNode::Directory { .. } => fill.empty_directory(attr),
                _ => {}
            }
        }
        (FsOp::Link { parent, name, .. }, Done::Node { attr, .. }) => {
            if parent.home == group {
                fill.dirent(parent.ino, name, there(attr));
            }
            fill.attr(attr);
        }
        (FsOp::Unlink { parent, name, .. } | FsOp::Rmdir { parent, name, .. }, Done::Removed { attr, .. }) => {
            if parent.home == group {
                fill.dirent(parent.ino, name, None);
            }
            if attr.nlink == 0 || attr.kind == FileKind::Directory {
                fill.forget_inode(attr.ino);
            } else {
                fill.attr(attr);
            }
        }
        (FsOp::Rename { from_parent, from_name, to_parent, to_name, .. }, Done::Renamed { attr, target, .. }) => {
            let exchanged = matches!(op, FsOp::Rename { mode: RenameMode::Exchange, .. });
            // Two names of one inode: both stay.
            let idle = target.as_ref().is_some_and(|target| target.ino == attr.ino);
            if from_parent.home == group {
                let back = target.as_deref().filter(|_| exchanged || idle).and_then(there);
                fill.dirent(from_parent.ino, from_name, back);
            }
            if to_parent.home == group {
                fill.dirent(to_parent.ino, to_name, there(attr));
            }
            // What is said of a directory beside `directories` may be older than what is in it.
            if attr.kind == FileKind::Directory {
                fill.forget_inode(attr.ino);
            } else {
                fill.replace(attr);
            }
            if let Some(target) = target
                && !idle
            {
                fill.forget_inode(target.ino);
            }
        }
        (FsOp::SetAttr { set, .. }, Done::Node { attr, .. }) => {
            // A new length makes what is known of the content void.
            if set.size.is_some() { fill.replace(attr) } else { fill.attr(attr) }
        }
        (FsOp::Write { .. } | FsOp::SetXattr { .. } | FsOp::RemoveXattr { .. }, Done::Node { attr, .. }) => {
            fill.replace(attr);
        }
        (FsOp::SetPlacement { .. } | FsOp::MoveInode { .. }, Done::Node { attr, .. }) => fill.replace(attr),
        _ => {}
    }
    for directory in done.directories() {
        fill.attr(directory);
    }
    teach_names(fill, group, op, done, is_counted);
}

/// The names that came and went, each with its directory. A name that stands for something else now is neither.
fn teach_names(fill: &Fill<'_>, group: GroupId, op: &FsOp, done: &Done, is_counted: bool) {
    let mut changes: Vec<(NodeRef, NameChange<'_>)> = Vec::new();
    let came = |name| NameChange { name, is_there: true };
    let went = |name| NameChange { name, is_there: false };
    match (op, done) {
        (FsOp::Create { parent, name, .. } | FsOp::Link { parent, name, .. }, Done::Node { .. }) => {
            changes.push((*parent, came(name)));
        }
        (FsOp::Unlink { parent, name, .. } | FsOp::Rmdir { parent, name, .. }, Done::Removed { .. }) => {
            changes.push((*parent, went(name)));
        }
        (FsOp::Rename { from_parent, from_name, to_parent, to_name, mode, .. }, Done::Renamed { attr, target, .. })
            if *mode != RenameMode::Exchange && target.as_ref().is_none_or(|target| target.ino != attr.ino) =>
        {
            changes.push((*from_parent, went(from_name)));
            if target.is_none() {
                changes.push((*to_parent, came(to_name)));
            }
        }
        _ => {}
    }
    changes.retain(|(dir, _)| dir.home == group);
    while let Some((dir, _)) = changes.first().copied() {
        let same: Vec<_> =
            changes.extract_if(.., |(other, _)| other.ino == dir.ino).map(|(_, change)| change).collect();
        let now = done.directories().iter().find(|attr| attr.ino == dir.ino);
        // Counted twice they would stand for somebody else's.
        let news = if is_counted { &[][..] } else { &same[..] };
        fill.names(dir.ino, news, now);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use metadata::footprint::key_inode;
    use metadata::types::InodeId;
    use multicast::ids::SessionId;

    use super::*;
    use crate::session::progress::Progress;

    const HERE: GroupId = GroupId(1);
    const THERE: GroupId = GroupId(2);
    const OWN: SessionId = SessionId(5);

    fn attr(ino: u64, kind: FileKind, home: GroupId) -> Attr {
        Attr::blank(NodeRef { ino: InodeId(ino), kind, home })
    }

    fn told(cache: &Cache, stream: StreamId, attr: &Attr) {
        let op = ReadOp::GetAttr { ino: attr.ino };
        let question = Question { group: THERE, op: &op, asked: LogIndex::ZERO };
        read(cache, stream, &question, &Ok(ReadAnswer::Attr(Box::new(attr.clone()))), LogIndex(10));
    }

    /// A file is renamed into a directory of another group, which prepared that at or before 12. `prior`: other effects that
    /// the answer shows. `before`: what its stream tells before the answer. What the cache knows of that group then: a bystander,
    /// the directory's size, the new name.
    fn renamed_after(
        prior: u64,
        before: impl FnOnce(&Cache, StreamId),
        then: impl FnOnce(&Cache, StreamId, &FsOp, &Done),
    ) -> (bool, Option<u64>, bool) {
        let cache = Cache::new(Arc::new(Progress::new(OWN, [HERE, THERE])), 100);
        let stream = cache.begin_stream(THERE, LogIndex(10));
        let (dir, bystander) = (attr(7, FileKind::Directory, THERE), attr(8, FileKind::File, THERE));
        told(&cache, stream, &dir);
        told(&cache, stream, &bystander);
        let node = |ino, kind, home| NodeRef { ino: InodeId(ino), kind, home };
        let op = FsOp::Rename {
            from_parent: node(5, FileKind::Directory, HERE),
            from_name: "f".into(),
            source: node(6, FileKind::File, HERE),
            to_parent: node(7, FileKind::Directory, THERE),
            to_name: "g".into(),
            target: None,
            mode: RenameMode::Replace,
            ancestors: Vec::new(),
            keep_open: false,
        };
        let grown = Attr { size: 1, data_version: 1, ..dir };
        let moved = Box::new(attr(6, FileKind::File, THERE));
        let done = Done::Renamed { attr: moved, target: None, directories: vec![grown] };
        let mut dependencies = VectorClock::new();
        dependencies.advance_effects(THERE, LogIndex(12), OWN);
        dependencies.advance_effects(THERE, LogIndex(prior), SessionId(9));
        cache.invalidate(THERE, stream, &[], (LogIndex(12), LogIndex(10)));
        before(&cache, stream);
        let own = [Elsewhere { group: THERE, index: LogIndex(12) }];
        let others: Vec<Destination> = op.destinations().into_iter().filter(|to| to.group == THERE).collect();
        elsewhere(&cache, &others, (&op, &Ok(done.clone())), &own, (&VectorClock::new(), &[]));
        let _ = cache.progress().depend(&dependencies);
        then(&cache, stream, &op, &done);
        let is_named = cache.dirent(THERE, InodeId(7), b"g").is_some();
        (cache.attr(THERE, InodeId(8)).is_some(), cache.attr(THERE, InodeId(7)).map(|dir| dir.size), is_named)
    }

    fn renamed(prior: u64, then: impl FnOnce(&Cache, StreamId, &FsOp, &Done)) -> (bool, Option<u64>, bool) {
        renamed_after(prior, |_, _| {}, then)
    }

    #[test]
    fn own_rename_is_known_in_the_other_group_before_it_executes_there() {
        assert_eq!(renamed(0, |_, _, _, _| {}), (true, Some(1), true));
        // The stream had passed everything up to 10.
        assert_eq!(renamed(10, |_, _, _, _| {}), (true, Some(1), true));
        assert_eq!(renamed(11, |_, _, _, _| {}), (false, Some(1), true), "another's effect came before it");
    }

    #[test]
    fn own_rename_stays_known_until_the_stream_tells_otherwise_if_it_began_before() {
        let later = |tells: fn(&Cache, StreamId)| move |cache: &Cache, stream, _: &FsOp, _: &Done| tells(cache, stream);
        let others = |cache: &Cache, stream: StreamId| {
            cache.invalidate(THERE, stream, &[Key(99)], (LogIndex(13), LogIndex(10)));
        };
        let the_directory = |cache: &Cache, stream: StreamId| {
            cache.invalidate(THERE, stream, &[key_inode(InodeId(7))], (LogIndex(13), LogIndex(10)));
        };
        assert_eq!(renamed(0, later(others)), (true, Some(1), true));
        assert_eq!(renamed(0, later(the_directory)), (true, None, true));
        // The same, told before the answer.
        assert_eq!(renamed_after(0, others, |_, _, _, _| {}), (true, Some(1), true));
        assert_eq!(renamed_after(0, the_directory, |_, _, _, _| {}), (true, None, true));
        // The replica has forgotten what it had noted.
        let anew = |cache: &Cache, stream: StreamId| cache.invalidate_all(THERE, stream, LogIndex(12));
        assert_eq!(renamed_after(0, anew, |_, _, _, _| {}), (false, Some(1), true));
        assert_eq!(renamed_after(0, anew, later(others)), (false, None, false));
    }

    /// A directory with no names is known as a whole; then an own name comes, and a stranger's before it. The answer could not
    /// tell of the directory, the stream does. True if a third name is taken for absent.
    fn is_absent_beside_a_stranger(is_counted: bool) -> bool {
        let cache = Cache::new(Arc::new(Progress::new(OWN, [HERE, THERE])), 100);
        let stream = cache.begin_stream(THERE, LogIndex(10));
        let dir = attr(7, FileKind::Directory, THERE);
        told(&cache, stream, &dir);
        let op = ReadOp::ReadDir { dir: dir.ino, after: 0, limit: 1000, plus: false };
        let question = Question { group: THERE, op: &op, asked: LogIndex::ZERO };
        let nothing = Ok(ReadAnswer::Entries { entries: Vec::new(), end: true });
        read(&cache, stream, &question, &nothing, LogIndex(10));
        assert_eq!(cache.dirent(THERE, dir.ino, b"x"), Some(None));
        let node = NodeRef { ino: InodeId(6), kind: FileKind::File, home: HERE };
        let parent = NodeRef { ino: dir.ino, kind: dir.kind, home: THERE };
        let op = FsOp::Link { node, parent, name: "g".into() };
        let link =
            |directories| Done::Node { attr: Box::new(attr(6, node.kind, HERE)), appended_at: None, directories };
        cache.invalidate(THERE, stream, &[], (LogIndex(12), LogIndex(10)));
        let own = [Elsewhere { group: THERE, index: LogIndex(12) }];
        let others: Vec<Destination> = op.destinations().into_iter().filter(|to| to.group == THERE).collect();
        let outcome = Ok(link(Vec::new()));
        let learned = elsewhere(&cache, &others, (&op, &outcome), &own, (&VectorClock::new(), &[]));
        assert_eq!(learned, [THERE]);
        let grown = Attr { size: 2, data_version: 2, ..dir };
        executed(&cache, (THERE, stream), (&op, &link(vec![grown])), LogIndex(14), is_counted);
        cache.invalidate(THERE, stream, &[], (LogIndex(14), LogIndex(14)));
        cache.dirent(THERE, InodeId(7), b"x").is_some()
    }

    #[test]
    fn own_name_that_is_told_twice_does_not_hide_a_stranger_s() {
        assert!(!is_absent_beside_a_stranger(true));
        assert!(is_absent_beside_a_stranger(false), "this is what must not be");
    }

    #[test]
    fn own_rename_is_kept_right_once_the_other_group_has_told_it() {
        let told = |cache: &Cache, stream, op: &FsOp, done: &Done| {
            let keys: Vec<Key> = changed(&op.destinations(), THERE).collect();
            executed(cache, (THERE, stream), (op, done), LogIndex(14), true);
            cache.invalidate(THERE, stream, &keys, (LogIndex(14), LogIndex(14)));
            cache.invalidate(THERE, stream, &[], (LogIndex(15), LogIndex(15)));
        };
        assert_eq!(renamed(0, told), (true, Some(1), true));
    }
}
