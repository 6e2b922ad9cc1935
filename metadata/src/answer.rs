//! Answers to reads, straight from a group's rows: bounded work, no state of their own, so that many threads may read one
//! store at once.

use bytes::{Bytes, BytesMut};
use multicast::ids::{GroupId, SessionId};

use crate::error::Error;
use crate::op::LockRange;
use crate::ops::{Piece, conflict, moves, open_locks, pieces_from};
use crate::outcome::{Errno, OpError};
use crate::read::{ListEntry, ReadAnswer, ReadOp, ReadResult};
use crate::rows::{self, BlobRow, Counters, DirentRow, InodeRow, ListingRow, LockRow, Source};
use crate::store::Store;
use crate::types::{BlobId, Content, Dirent, Extent, FileKind, InodeId, NodeRef};
use crate::validate::BATCH_MAX;
use crate::verdict::{Rank, Step, Stop};
use crate::{keys, verdict};

/// Most entries of one listing.
pub const ENTRIES_MAX: usize = 1024;
/// Most pieces of one file in one answer.
pub const EXTENTS_MAX: usize = 1024;
/// Most directories of one chain of ancestors.
pub const ANCESTORS_MAX: usize = 1024;
/// Most blobs of garbage in one answer.
pub const GARBAGE_MAX: usize = 1024;
/// A file that is held inline altogether, and not longer than this, is answered whole.
const INLINE_WHOLE_MAX: u64 = 64 << 10;

/// Answers a read.
pub fn read<S: Store + ?Sized>(store: &S, group: GroupId, op: &ReadOp) -> Result<ReadResult, Error> {
    let reader = Reader { store, group };
    let step = match op {
        ReadOp::Lookup { parent, name } => reader.lookup(*parent, name),
        ReadOp::GetAttr { ino } => reader.inode(*ino).map(|row| ReadAnswer::Attr(Box::new(row.attr))),
        ReadOp::ReadDir { dir, after, limit, plus } => reader.list(*dir, *after, *limit, *plus),
        ReadOp::ReadLink { ino } => reader.target(*ino),
        ReadOp::Content { ino, offset, len } => reader.content(*ino, *offset, *len),
        ReadOp::GetXattr { ino, name } => reader.xattr(*ino, name),
        ReadOp::ListXattr { ino } => reader.xattrs(*ino),
        ReadOp::Ancestors { dir } => reader.ancestors(*dir),
        ReadOp::TestLock { ino, owner, flock, range, kind, session } => {
            let wanted = LockRow { range: *range, session: *session, owner: *owner, kind: *kind, pid: 0 };
            reader.test_lock(*ino, *flock, wanted)
        }
        ReadOp::Usage => reader.usage(),
        ReadOp::Garbage { limit } => reader.garbage(*limit),
        ReadOp::BlobsInUse { blobs } => reader.blobs_in_use(blobs),
    };
    match step {
        Ok(answer) => Ok(Ok(answer)),
        Err(Stop::Refused(refusal)) => Ok(Err(refusal.error)),
        // Reads have no parts.
        Err(Stop::Unfinished) => Ok(Err(OpError::Errno(Errno::Busy))),
        Err(Stop::Failed(error)) => Err(error),
    }
}

/// Orphans that a session holds, above `after`, by number; looks at no more than `rows` orphans and says where it stopped if
/// there are more.
pub fn orphans_held<S: Store + ?Sized>(
    store: &S,
    session: SessionId,
    after: Option<InodeId>,
    rows: usize,
) -> Result<(Vec<InodeId>, Option<InodeId>), Error> {
    let Some(from) = after.map_or(Some(0), |ino| ino.0.checked_add(1)) else { return Ok((Vec::new(), None)) };
    let page = store.scan(&[keys::ORPHAN], &keys::of_inode(keys::ORPHAN, InodeId(from)), rows.max(1))?;
    let is_full = page.len() == rows.max(1);
    let (mut held, mut last) = (Vec::new(), None);
    for (key, value) in page {
        let holders: Vec<SessionId> = rows::decode(&key, &value)?;
        let ino = keys::number_at(&key, 1).map(InodeId).ok_or(Error::CorruptRow { key })?;
        held.extend(holders.binary_search(&session).is_ok().then_some(ino));
        last = Some(ino);
    }
    Ok((held, last.filter(|_| is_full)))
}

struct Reader<'s, S: ?Sized> {
    store: &'s S,
    group: GroupId,
}

impl<S: Store + ?Sized> Reader<'_, S> {
    fn find(&self, ino: InodeId) -> Result<Option<InodeRow>, Error> {
        rows::read(self.store, &keys::inode(ino))
    }

    fn inode(&self, ino: InodeId) -> Step<InodeRow> {
        if let Some(row) = self.find(ino)? {
            return Ok(row);
        }
        match rows::read(self.store, &keys::of_inode(keys::FORWARD, ino))? {
            Some(home) => {
                let error = OpError::Moved { ino, home };
                Err(Stop::Refused(verdict::Refusal { rank: Rank::Moved, error }))
            }
            None => Err(Stop::errno(Rank::Gone, Errno::StaleHandle)),
        }
    }

    fn of_kind(&self, ino: InodeId, kind: FileKind, otherwise: Errno) -> Step<InodeRow> {
        let row = self.inode(ino)?;
        if row.attr.kind == kind { Ok(row) } else { Err(Stop::errno(Rank::Kind, otherwise)) }
    }

    fn lookup(&self, parent: InodeId, name: &[u8]) -> Step<ReadAnswer> {
        self.of_kind(parent, FileKind::Directory, Errno::NotDirectory)?;
        let Some(row) = rows::read::<DirentRow, _>(self.store, &keys::dirent(parent, name))? else {
            return Ok(ReadAnswer::Lookup(None));
        };
        let attr = self.attached(row.node)?;
        Ok(ReadAnswer::Lookup(Some((row.node, attr))))
    }

    fn attached(&self, node: Dirent) -> Result<Option<Box<crate::types::Attr>>, Error> {
        if node.home != self.group {
            return Ok(None);
        }
        Ok(self.find(node.ino)?.map(|row| Box::new(row.attr)))
    }

    fn list(&self, dir: InodeId, after: u64, limit: u32, plus: bool) -> Step<ReadAnswer> {
        self.of_kind(dir, FileKind::Directory, Errno::NotDirectory)?;
        let limit = usize::try_from(limit).unwrap_or(usize::MAX).clamp(1, ENTRIES_MAX);
        let prefix = keys::of_inode(keys::LISTING, dir);
        let Some(from) = after.checked_add(1) else {
            return Ok(ReadAnswer::Entries { entries: Vec::new(), end: true });
        };
        let page = self.store.scan(&prefix, &keys::listing(dir, from), limit)?;
        let end = page.len() < limit;
        let mut entries = Vec::with_capacity(page.len());
        for (key, value) in page {
            let row: ListingRow = rows::decode(&key, &value)?;
            let attr = if plus { self.attached(row.node)? } else { None };
            let cookie = keys::number_at(&key, prefix.len()).ok_or(Error::CorruptRow { key })?;
            entries.push(ListEntry { cookie, name: row.name, dirent: row.node, attr });
        }
        Ok(ReadAnswer::Entries { entries, end })
    }

    fn target(&self, ino: InodeId) -> Step<ReadAnswer> {
        self.of_kind(ino, FileKind::Symlink, Errno::Invalid)?;
        let key = keys::of_inode(keys::SYMLINK, ino);
        let target = rows::read(self.store, &key)?.ok_or(Error::CorruptRow { key })?;
        Ok(ReadAnswer::Target(target))
    }

    fn content(&self, ino: InodeId, offset: u64, len: u64) -> Step<ReadAnswer> {
        let row = self.inode(ino)?;
        if row.attr.kind != FileKind::File {
            let directory = row.attr.kind == FileKind::Directory;
            return Err(Stop::errno(Rank::Kind, if directory { Errno::IsDirectory } else { Errno::Invalid }));
        }
        let content = match self.whole_inline(&row)? {
            Some(bytes) => Content::Inline(bytes),
            // What lies behind the end may be on its way out.
            None => self.pieces(ino, offset, offset.saturating_add(len).min(row.attr.size))?,
        };
        Ok(ReadAnswer::Content { attr: Box::new(row.attr), content })
    }

    /// All bytes of a file that has no others than inline ones.
    fn whole_inline(&self, row: &InodeRow) -> Result<Option<Bytes>, Error> {
        if row.attr.allocated != u64::from(row.inline_bytes) || u64::from(row.inline_bytes) > INLINE_WHOLE_MAX {
            return Ok(None);
        }
        if row.extents == 0 {
            return Ok(Some(Bytes::new()));
        }
        let mut whole = BytesMut::new();
        for piece in pieces_from(self.store, row.attr.ino, 0, usize::MAX)? {
            if piece.start >= row.attr.size {
                break;
            }
            let Source::Inline(bytes) = piece.source else { return Ok(None) };
            if piece.end > INLINE_WHOLE_MAX {
                return Ok(None);
            }
            whole.resize(usize::try_from(piece.start).unwrap_or(usize::MAX), 0);
            whole.extend_from_slice(&bytes);
        }
        Ok(Some(whole.freeze()))
    }

    fn pieces(&self, ino: InodeId, start: u64, end: u64) -> Result<Content, Error> {
        let pieces = pieces_from(self.store, ino, start, EXTENTS_MAX)?;
        let cut = pieces.len() == EXTENTS_MAX && pieces.last().is_some_and(|piece| piece.end < end);
        let mut extents = Vec::new();
        let mut inline = Vec::new();
        for Piece { start, end, source } in pieces.into_iter().take_while(|piece| piece.start < end) {
            let len = end - start;
            match source {
                Source::Zero => extents.push(Extent { offset: start, len, source: None }),
                Source::Blob(range) => extents.push(Extent { offset: start, len, source: Some(range) }),
                Source::Inline(bytes) => inline.push((start, bytes)),
            }
        }
        if inline.is_empty() {
            return Ok(Content::Extents { extents, more: cut });
        }
        Ok(Content::Mixed { extents, inline, more: cut })
    }

    fn xattr(&self, ino: InodeId, name: &[u8]) -> Step<ReadAnswer> {
        self.inode(ino)?;
        match self.store.get(&keys::xattr(ino, name))? {
            Some(value) => Ok(ReadAnswer::Xattr(Bytes::from(value))),
            None => Err(Stop::errno(Rank::NameMissing, Errno::NoXattr)),
        }
    }

    fn xattrs(&self, ino: InodeId) -> Step<ReadAnswer> {
        if self.inode(ino)?.attr.xattrs == 0 {
            return Ok(ReadAnswer::Xattrs(Vec::new()));
        }
        let prefix = keys::of_inode(keys::XATTR, ino);
        let rows = self.store.scan(&prefix, &prefix, usize::MAX)?;
        let names = rows.iter().map(|(key, _)| Bytes::copy_from_slice(&key[prefix.len()..]));
        Ok(ReadAnswer::Xattrs(names.collect()))
    }

    fn ancestors(&self, dir: InodeId) -> Step<ReadAnswer> {
        let mut row = self.of_kind(dir, FileKind::Directory, Errno::NotDirectory)?;
        let mut chain = Vec::new();
        loop {
            let InodeRow { attr, .. } = row;
            let parent = attr.parent.unwrap_or(InodeId::ROOT);
            chain.push((NodeRef { ino: attr.ino, kind: attr.kind, home: attr.home }, parent));
            if attr.ino == InodeId::ROOT || chain.len() == ANCESTORS_MAX {
                return Ok(ReadAnswer::Ancestors(chain));
            }
            match self.find(parent)? {
                Some(next) => row = next,
                None => return Ok(ReadAnswer::Ancestors(chain)),
            }
        }
    }

    fn test_lock(&self, ino: InodeId, flock: bool, wanted: LockRow) -> Step<ReadAnswer> {
        self.inode(ino)?;
        let held: Vec<LockRow> = open_locks(self.store, &keys::locks(ino, flock))?;
        let found: Option<(SessionId, u32, _, LockRange)> =
            conflict(&held, &wanted).map(|lock| (lock.session, lock.pid, lock.kind, lock.range));
        Ok(ReadAnswer::Lock(found))
    }

    fn usage(&self) -> Step<ReadAnswer> {
        let Counters { inodes, bytes, .. } = rows::read(self.store, &keys::counters())?.unwrap_or_default();
        Ok(ReadAnswer::Usage { inodes, bytes })
    }

    fn garbage(&self, limit: u32) -> Step<ReadAnswer> {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX).min(GARBAGE_MAX);
        let mut rows = self.store.scan(&[keys::GARBAGE], &[], limit)?;
        rows.extend(self.store.scan(&[keys::DOUBTFUL], &[], limit - rows.len())?);
        let blobs: Result<Vec<BlobId>, Error> = rows.iter().map(|(key, value)| rows::decode(key, value)).collect();
        Ok(ReadAnswer::Garbage(blobs?))
    }

    fn blobs_in_use(&self, blobs: &[BlobId]) -> Step<ReadAnswer> {
        if blobs.len() > BATCH_MAX {
            return Err(Stop::errno(Rank::Malformed, Errno::Malformed));
        }
        let (mut used, mut garbage) = (Vec::new(), Vec::new());
        for &blob in blobs {
            match rows::read::<BlobRow, _>(self.store, &keys::blob(blob))? {
                Some(row) if row.references > 0 => used.push(blob),
                Some(_) => garbage.push(blob),
                None => {}
            }
        }
        Ok(ReadAnswer::BlobsInUse { used, garbage, moves: moves(self.store)? })
    }
}
