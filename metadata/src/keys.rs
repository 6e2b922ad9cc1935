//! The keys of the namespace's rows: one byte for the kind, then big-endian fields, so that rows that belong together lie
//! together and in the order in which they are read.
//!
//! | kind | row | fields of the key | value |
//! | --- | --- | --- | --- |
//! | 01 | volume | | [`Volume`](crate::rows::Volume) |
//! | 02 | digest | | 16 bytes, big-endian; not part of the digest |
//! | 03 | counters | | [`Counters`](crate::rows::Counters) |
//! | 04 | inode | ino | [`InodeRow`](crate::rows::InodeRow) |
//! | 05 | dirent | directory, name | [`DirentRow`](crate::rows::DirentRow) |
//! | 06 | listing | directory, cookie | [`ListingRow`](crate::rows::ListingRow) |
//! | 07 | extent | ino, end (exclusive) | [`ExtentRow`](crate::rows::ExtentRow) |
//! | 08 | symlink | ino | target |
//! | 09 | xattr | ino, name | value |
//! | 0a | orphan | ino | holders: sessions, sorted |
//! | 0b | session | session | |
//! | 0c | locks | ino, lock space | [`LockRow`](crate::rows::LockRow)s |
//! | 0d | locked | session, ino, lock space | |
//! | 0e | blob | origin, writer, sequence | [`BlobRow`](crate::rows::BlobRow) |
//! | 0f | garbage | sequence | blob that nothing refers to |
//! | 10 | doubtful garbage | sequence | blob that nothing in this group refers to, but perhaps another group |
//! | 11 | forward | ino | the group where the inode went |
//! | 12 | births | shard | the last number of an inode born here at the wish of another group |
//! | 13 | retired | writer, origin | [`Retired`](crate::rows::Retired) |
//! | 14 | moves | | [`Moves`](crate::rows::Moves) |
//! | 15 | unfinished | | [`Unfinished`](crate::rows::Unfinished); there if anything goes in steps |
//! | 16 | grave | ino | [`Grave`](crate::rows::Grave) |
//! | 17 | closing session | session | the first inode whose holders were not looked at |
//! | 18 | departing directory | ino | [`Departing`](crate::rows::Departing) |
//! | 19 | stale copy | directory, cookie | |
//! | 1a | arriving directory | ino | [`Arriving`](crate::rows::Arriving) |
//!
//! Extents are keyed by their end: the one that covers an offset is the first that ends behind it, and no backward scan is
//! needed. Kinds from 40 on are free for whoever shares the store.

use multicast::ids::SessionId;

use crate::types::{BlobId, InodeId};

/// The first kind byte that the namespace never uses.
pub const FOREIGN_KIND_MIN: u8 = 0x40;

pub(crate) const INODE: u8 = 0x04;
pub(crate) const DIRENT: u8 = 0x05;
pub(crate) const LISTING: u8 = 0x06;
pub(crate) const EXTENT: u8 = 0x07;
pub(crate) const SYMLINK: u8 = 0x08;
pub(crate) const XATTR: u8 = 0x09;
pub(crate) const ORPHAN: u8 = 0x0a;
pub(crate) const SESSION: u8 = 0x0b;
pub(crate) const LOCKS: u8 = 0x0c;
pub(crate) const LOCKED: u8 = 0x0d;
pub(crate) const BLOB: u8 = 0x0e;
pub(crate) const GARBAGE: u8 = 0x0f;
pub(crate) const DOUBTFUL: u8 = 0x10;
pub(crate) const FORWARD: u8 = 0x11;
pub(crate) const BIRTHS: u8 = 0x12;
pub(crate) const RETIRED: u8 = 0x13;
pub(crate) const GRAVE: u8 = 0x16;
pub(crate) const CLOSING: u8 = 0x17;
pub(crate) const DEPARTING: u8 = 0x18;
pub(crate) const STALE_COPY: u8 = 0x19;
pub(crate) const ARRIVING: u8 = 0x1a;

pub(crate) fn volume() -> Vec<u8> {
    vec![0x01]
}

/// Of the row with the digest of all others.
pub fn digest() -> Vec<u8> {
    vec![0x02]
}

pub(crate) fn counters() -> Vec<u8> {
    vec![0x03]
}

/// The key of a row that an inode has one of, and the prefix of those that it has several of.
pub(crate) fn of_inode(kind: u8, ino: InodeId) -> Vec<u8> {
    let mut key = Vec::with_capacity(32);
    key.push(kind);
    key.extend_from_slice(&ino.0.to_be_bytes());
    key
}

pub(crate) fn inode(ino: InodeId) -> Vec<u8> {
    of_inode(INODE, ino)
}

pub(crate) fn dirent(dir: InodeId, name: &[u8]) -> Vec<u8> {
    let mut key = of_inode(DIRENT, dir);
    key.extend_from_slice(name);
    key
}

pub(crate) fn listing(dir: InodeId, cookie: u64) -> Vec<u8> {
    let mut key = of_inode(LISTING, dir);
    key.extend_from_slice(&cookie.to_be_bytes());
    key
}

pub(crate) fn extent(ino: InodeId, end: u64) -> Vec<u8> {
    let mut key = of_inode(EXTENT, ino);
    key.extend_from_slice(&end.to_be_bytes());
    key
}

pub(crate) fn xattr(ino: InodeId, name: &[u8]) -> Vec<u8> {
    let mut key = of_inode(XATTR, ino);
    key.extend_from_slice(name);
    key
}

pub(crate) fn session(session: SessionId) -> Vec<u8> {
    let mut key = vec![SESSION];
    key.extend_from_slice(&session.0.to_be_bytes());
    key
}

pub(crate) fn locks(ino: InodeId, flock: bool) -> Vec<u8> {
    let mut key = of_inode(LOCKS, ino);
    key.push(u8::from(flock));
    key
}

/// The prefix of what a session has locked.
pub(crate) fn locked_by(session: SessionId) -> Vec<u8> {
    let mut key = vec![LOCKED];
    key.extend_from_slice(&session.0.to_be_bytes());
    key
}

pub(crate) fn locked(session: SessionId, ino: InodeId, flock: bool) -> Vec<u8> {
    let mut key = locked_by(session);
    key.extend_from_slice(&ino.0.to_be_bytes());
    key.push(u8::from(flock));
    key
}

pub(crate) fn blob(blob: BlobId) -> Vec<u8> {
    let mut key = vec![BLOB];
    key.extend_from_slice(&blob.origin.to_be_bytes());
    key.extend_from_slice(&blob.writer.to_be_bytes());
    key.extend_from_slice(&blob.sequence.to_be_bytes());
    key
}

/// Of all blobs of this one's writer.
pub(crate) fn retired(blob: BlobId) -> Vec<u8> {
    let mut key = numbered(RETIRED, blob.writer);
    key.extend_from_slice(&blob.origin.to_be_bytes());
    key
}

pub(crate) fn moves() -> Vec<u8> {
    vec![0x14]
}

pub(crate) fn births(shard: u8) -> Vec<u8> {
    vec![BIRTHS, shard]
}

pub(crate) fn numbered(kind: u8, sequence: u64) -> Vec<u8> {
    let mut key = vec![kind];
    key.extend_from_slice(&sequence.to_be_bytes());
    key
}

pub(crate) fn unfinished() -> Vec<u8> {
    vec![0x15]
}

pub(crate) fn closing(session: SessionId) -> Vec<u8> {
    numbered(CLOSING, session.0)
}

pub(crate) fn stale_copy(dir: InodeId, cookie: u64) -> Vec<u8> {
    let mut key = of_inode(STALE_COPY, dir);
    key.extend_from_slice(&cookie.to_be_bytes());
    key
}

/// The big-endian number behind the first `at` bytes of a key.
pub(crate) fn number_at(key: &[u8], at: usize) -> Option<u64> {
    let bytes = key.get(at..at + 8)?;
    Some(u64::from_be_bytes(bytes.try_into().ok()?))
}
