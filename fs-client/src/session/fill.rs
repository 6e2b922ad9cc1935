//! What replies teach the cache. Runs on the connection's task, in the order of the stream.

use std::sync::Arc;

use metadata::op::{FsOp, NewNode, RenameMode};
use metadata::outcome::{Done, OpError, Outcome};
use metadata::read::{ReadAnswer, ReadOp, ReadResult};
use metadata::types::{Attr, Dirent, FileKind, NodeRef};
use multicast::command::Destination;
use multicast::ids::{GroupId, LogIndex};

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

/// An own update's outcome. What it changed in other groups, or what no stream would keep right, is forgotten first.
pub fn update(
    cache: &Cache,
    group: GroupId,
    destinations: &[Destination],
    op: &FsOp,
    outcome: &Outcome,
    as_of: LogIndex,
    kept: Kept,
) {
    // An update waits for every prepared one that it conflicts with and whose effect its client had seen.
    let (stream, asked) = match kept {
        Kept::Noted(stream) => (Some(stream), as_of),
        Kept::Unnoted { asked } => (None, asked),
    };
    for destination in destinations {
        if destination.group != group || stream.is_none() {
            let changed = destination.footprint.iter().filter(|(_, mode)| mode.changes());
            cache.forget(destination.group, changed.map(|(key, _)| *key));
        }
    }
    let Ok(done) = outcome else { return };
    if let Some(fill) = cache.fill(group, stream, as_of, asked) {
        teach(&fill, group, op, done);
    }
}

fn teach(fill: &Fill<'_>, group: GroupId, op: &FsOp, done: &Done) {
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
    teach_names(fill, group, op, done);
}

/// The names that came and went, each with its directory. A name that stands for something else now is neither.
fn teach_names(fill: &Fill<'_>, group: GroupId, op: &FsOp, done: &Done) {
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
        fill.names(dir.ino, &same, now);
    }
}
