//! Inodes that move to another group, with all their rows.

use std::collections::BTreeMap;

use bytes::Bytes;
use multicast::ids::GroupId;

use crate::error::Error;
use crate::namespace::Namespace;
use crate::rows::{BlobRow, ExtentRow, InodeRow, Source};
use crate::store::{Row, StoreMut};
use crate::types::{Attr, BlobId, FileKind, InodeId};
use crate::verdict::Freight;
use crate::{keys, rows};

/// Most extents of a file that moves at once.
pub const MOVE_EXTENTS_MAX: u64 = 1024;
/// Most bytes of xattrs of an inode that moves at once.
pub const MOVE_XATTR_BYTES_MAX: u32 = 64 << 10;

impl<S: StoreMut> Namespace<S> {
    /// Everything about an inode that could move: if it has one name, no locks, and is not too big.
    pub(super) fn freight(&self, ino: InodeId, to: GroupId) -> Result<Option<Freight>, Error> {
        let row = self.owned_inode(ino)?;
        if !self.is_movable(&row)? {
            return Ok(None);
        }
        let extents = self.all_extents(ino, row.extents)?;
        let mut freight = Freight {
            row,
            extents,
            target: None,
            xattrs: Vec::new(),
            entries: Vec::new(),
            copied: None,
            corrected: Vec::new(),
        };
        freight.target = self.read(&keys::of_inode(keys::SYMLINK, ino))?;
        if freight.row.attr.xattrs > 0 {
            for (key, value) in self.rows_of(keys::XATTR, ino)? {
                freight.xattrs.push((Bytes::copy_from_slice(&key[9..]), Bytes::from(value)));
            }
        }
        if freight.row.attr.kind == FileKind::Directory && self.load_entries(&mut freight, to)?.is_none() {
            return Ok(None);
        }
        Ok(Some(freight))
    }

    fn is_movable(&self, row: &InodeRow) -> Result<bool, Error> {
        let attr = &row.attr;
        let bounded = if attr.kind == FileKind::Directory {
            attr.nlink > 0
        } else {
            row.extents <= MOVE_EXTENTS_MAX && attr.nlink == 1 && self.grave(attr.ino)?.is_none()
        };
        // Sessions that hold locks need not be known where the inode would go.
        let mut locked = false;
        for flock in [false, true] {
            locked |= self.store.get(&keys::locks(attr.ino, flock))?.is_some();
        }
        Ok(bounded && row.xattr_bytes <= MOVE_XATTR_BYTES_MAX && !locked)
    }

    /// Drops an inode that lives in another group from now on.
    pub(super) fn depart(&mut self, ino: InodeId, to: GroupId) -> Result<(), Error> {
        let row = self.owned_inode(ino)?;
        let extents = self.all_extents(ino, row.extents)?;
        for (end, _) in &extents {
            self.remove(&keys::extent(ino, *end))?;
        }
        let blobs = blob_counts(&extents);
        for (&blob, &references) in &blobs {
            let key = keys::blob(blob);
            let counted: BlobRow = self.read(&key)?.unwrap_or_default();
            let left = counted.references.saturating_sub(references);
            if left == 0 {
                self.remove(&key)?;
            } else {
                self.put(key, rows::encode(&BlobRow { references: left, beyond: true, ..counted }))?;
            }
        }
        if !blobs.is_empty() {
            self.note_departure()?;
        }
        for kind in [keys::SYMLINK, keys::XATTR] {
            for (key, _) in self.rows_of(kind, ino)? {
                self.remove(&key)?;
            }
        }
        if row.attr.kind == FileKind::Directory {
            self.drop_entries(ino, row.attr.size)?;
        }
        self.remove(&keys::inode(ino))?;
        self.put(keys::of_inode(keys::FORWARD, ino), rows::encode(&to))?;
        self.account(-1, -i64::try_from(row.attr.allocated).unwrap_or(i64::MAX))
    }

    /// Takes in an inode that lives here from now on.
    pub(super) fn arrive(&mut self, freight: &Freight, attr: Attr) -> Result<(), Error> {
        let ino = attr.ino;
        let allocated = i64::try_from(attr.allocated).unwrap_or(i64::MAX);
        for (end, extent) in &freight.extents {
            self.put(keys::extent(ino, *end), rows::encode(extent))?;
        }
        let blobs = blob_counts(&freight.extents);
        for (&blob, &references) in &blobs {
            self.add_references(blob, i64::try_from(references).unwrap_or_default(), true)?;
        }
        if !blobs.is_empty() {
            self.note_arrival()?;
        }
        if let Some(target) = &freight.target {
            self.put(keys::of_inode(keys::SYMLINK, ino), rows::encode(target))?;
        }
        for (name, value) in &freight.xattrs {
            self.put(keys::xattr(ino, name), value.to_vec())?;
        }
        if attr.kind == FileKind::Directory {
            self.unload_entries(freight)?;
        }
        self.remove(&keys::of_inode(keys::FORWARD, ino))?;
        self.put_inode(&InodeRow { attr, ..freight.row.clone() })?;
        self.account(1, allocated)
    }

    fn all_extents(&self, ino: InodeId, count: u64) -> Result<Vec<(u64, ExtentRow)>, Error> {
        if count == 0 {
            return Ok(Vec::new());
        }
        let decode = |(key, value): Row| {
            let end = keys::number_at(&key, 9).ok_or_else(|| Error::CorruptRow { key: key.clone() })?;
            Ok((end, rows::decode(&key, &value)?))
        };
        self.rows_of(keys::EXTENT, ino)?.into_iter().map(decode).collect()
    }

    pub(super) fn rows_of(&self, kind: u8, ino: InodeId) -> Result<Vec<Row>, Error> {
        let prefix = keys::of_inode(kind, ino);
        self.store.scan(&prefix, &prefix, usize::MAX)
    }
}

fn blob_counts(extents: &[(u64, ExtentRow)]) -> BTreeMap<BlobId, u64> {
    let mut counts = BTreeMap::new();
    for (_, extent) in extents {
        match &extent.source {
            Source::Blob(range) => *counts.entry(range.blob).or_default() += 1,
            Source::Zero | Source::Inline(_) => {}
        }
    }
    counts
}
