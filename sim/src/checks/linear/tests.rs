#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use bytes::Bytes;
use metadata::op::{Change, FsOp, NewNode, WriteAt};
use metadata::outcome::{Done, OpError, Outcome};
use metadata::types::{Attr, Dirent, FileKind, InodeId, NodeRef};
use multicast::ids::{CommandId, GroupId, SessionId};

use super::*;

const ROOT: NodeRef = NodeRef { ino: InodeId::ROOT, kind: FileKind::Directory, home: GroupId::GLOBAL };
const ONE: NodeRef = NodeRef { ino: InodeId(101), kind: FileKind::File, home: GroupId::GLOBAL };
const TWO: NodeRef = NodeRef { ino: InodeId(102), kind: FileKind::File, home: GroupId::GLOBAL };

fn create() -> FsOp {
    let (name, node) = (Bytes::from_static(b"a"), NewNode::File);
    FsOp::Create { parent: ROOT, name, node, mode: 0, uid: 0, gid: 0, home: GroupId::GLOBAL }
}

fn created(node: NodeRef) -> Outcome {
    wrote(node, 0, None)
}

fn unlink(target: NodeRef) -> FsOp {
    FsOp::Unlink { parent: ROOT, name: Bytes::from_static(b"a"), target, keep_open: false }
}

fn unlinked(node: NodeRef) -> Outcome {
    let attr = Box::new(Attr { nlink: 0, ..Attr::blank(node) });
    Ok(Done::Removed { attr, directories: Vec::new() })
}

fn exists(node: NodeRef) -> Outcome {
    let NodeRef { ino, kind, home } = node;
    Err(OpError::Exists(Dirent { ino, kind, home }))
}

fn append(node: NodeRef) -> FsOp {
    let changes = vec![Change::Inline { offset: 0, bytes: Bytes::from_static(b"12345") }];
    FsOp::Write { node, at: WriteAt::End, changes, size_min: 0, mtime: None, kill_privileges: false }
}

fn wrote(node: NodeRef, size: u64, appended_at: Option<u64>) -> Outcome {
    let attr = Box::new(Attr { size, nlink: 1, ..Attr::blank(node) });
    Ok(Done::Node { attr, appended_at, directories: Vec::new() })
}

/// Calls and returns in their order: an update's number with what it is, or with what it gave.
enum Moment {
    Call(u64, FsOp),
    Return(u64, Outcome),
}
use Moment::{Call, Return};

fn history(moments: Vec<Moment>) -> Result<Searched, String> {
    let mut ledger = Ledger::default();
    for moment in moments {
        let id = |sequence| CommandId { session: SessionId(1), sequence };
        ledger.seen.push(match moment {
            Call(update, op) => Seen::Submitted { client: 0, update, id: id(update), op: Arc::new(op) },
            Return(update, outcome) => {
                Seen::Replied { at: 0, client: 0, id: id(update), group: GroupId::GLOBAL, outcome }
            }
        });
    }
    check(&ledger)
}

#[test]
fn what_has_an_order_is_linearizable() {
    let searched = history(vec![
        Call(1, create()),
        Call(2, create()),
        Return(2, exists(ONE)),
        Return(1, created(ONE)),
        Call(3, append(ONE)),
        Call(4, append(ONE)),
        Return(4, wrote(ONE, 5, Some(0))),
        Return(3, wrote(ONE, 10, Some(5))),
        Call(5, unlink(ONE)),
        Return(5, unlinked(ONE)),
        Call(6, create()),
        Return(6, created(TWO)),
    ]);
    assert_eq!(searched, Ok(Searched { whole: 1, pieces: 0, too_big: 0 }));
}

#[test]
fn name_that_two_get_at_once_is_not() {
    let both = vec![Call(1, create()), Call(2, create()), Return(1, created(ONE)), Return(2, created(TWO))];
    assert!(history(both).is_err());
}

#[test]
fn append_that_comes_before_an_earlier_one_is_not() {
    let beginning = || vec![Call(1, create()), Return(1, created(ONE)), Call(2, append(ONE))];
    let late = || vec![Return(2, wrote(ONE, 10, Some(5)))];
    let early = || vec![Call(3, append(ONE)), Return(3, wrote(ONE, 5, Some(0)))];
    // Beside each other any order is right; one behind the other only one is.
    assert!(history(beginning().into_iter().chain(early()).chain(late()).collect()).is_ok());
    assert!(history(beginning().into_iter().chain(late()).chain(early()).collect()).is_err());
}

#[test]
fn acknowledged_update_that_is_lost_is_found() {
    let lost = vec![Call(1, create()), Return(1, created(ONE)), Call(2, create()), Return(2, created(TWO))];
    assert!(history(lost).is_err());
}

#[test]
fn update_of_which_nobody_knows_may_have_happened_at_any_later_time_or_never() {
    let with = |rest: Vec<Moment>| {
        let begun = vec![Call(1, create()), Return(1, created(ONE)), Call(2, unlink(ONE))];
        history(begun.into_iter().chain(rest).collect())
    };
    assert!(with(vec![Call(3, create()), Return(3, created(TWO))]).is_ok(), "it was removed before");
    assert!(with(vec![Call(3, create()), Return(3, exists(ONE))]).is_ok(), "not yet, or never");
    let again = vec![Call(3, create()), Return(3, created(TWO)), Call(4, create()), Return(4, exists(ONE))];
    assert!(with(again).is_err(), "it cannot come back");
    // What is never answered may have made an inode that others come across.
    let stranger = vec![Call(1, create()), Call(2, create()), Return(2, exists(TWO))];
    assert!(history(stranger).is_ok());
}

#[test]
fn too_big_a_history_is_searched_in_pieces() {
    // So many at once that the order of all of them is not found in time, and one place that has none.
    let mut moments = vec![Call(0, create()), Return(0, created(ONE))];
    moments.extend((1..=14).map(|update| Call(update, append(ONE))));
    moments.extend((1..=14).map(|update| Return(update, wrote(ONE, 5 * (15 - update), Some(5 * (14 - update))))));
    let searched = history(moments).unwrap();
    assert!(searched.whole == 1 || searched.pieces > 0 || searched.too_big > 0);
}
