//! Directory entries: a name, its place in the listing, and what they do to their directory.

use bytes::Bytes;

use crate::error::Error;
use crate::namespace::{Namespace, touch_modified};
use crate::op::EntryChange;
use crate::outcome::{Errno, Fact, OpError};
use crate::rows::{DirentRow, InodeRow, ListingRow};
use crate::store::StoreMut;
use crate::types::{Dirent, InodeId, NodeRef, TimeNs};
use crate::verdict::{Rank, Refusal, Step, Stop};
use crate::{keys, rows};

impl<S: StoreMut> Namespace<S> {
    pub(super) fn dirent(&self, parent: InodeId, name: &[u8]) -> Result<Option<DirentRow>, Error> {
        self.read(&keys::dirent(parent, name))
    }

    /// The name must stand for what it was taken for.
    pub(super) fn check_name(&self, parent: InodeId, name: &[u8], expected: NodeRef) -> Step<()> {
        match self.dirent(parent, name)? {
            None => Err(Stop::errno(Rank::NameMissing, Errno::NotFound)),
            Some(row) if row.node == expected => Ok(()),
            Some(row) => Err(stale_name(parent, name, Some(row.node))),
        }
    }

    /// The name must be free.
    pub(super) fn check_free(&self, parent: InodeId, name: &[u8]) -> Step<()> {
        match self.dirent(parent, name)? {
            None => Ok(()),
            Some(row) => Err(Stop::Refused(Refusal { rank: Rank::NameTaken, error: OpError::Exists(row.node) })),
        }
    }

    /// A new name at the end of the listing. `links` is what the directory gains in links.
    pub(super) fn insert_entry(
        &mut self,
        parent: InodeId,
        name: &[u8],
        node: Dirent,
        links: i32,
        now: TimeNs,
    ) -> Result<(), Error> {
        let mut dir = self.owned_inode(parent)?;
        EntryChange::Insert.make(&mut dir, links, now);
        self.put_inode(&dir)?;
        let row = DirentRow { node, cookie: dir.cookie_last };
        self.put_new(keys::listing(parent, row.cookie), listing_row(name, row))?;
        self.put(keys::dirent(parent, name), rows::encode(&row))
    }

    /// The name stands for something else now and keeps its place: it was there all the time.
    pub(super) fn replace_entry(
        &mut self,
        parent: InodeId,
        name: &[u8],
        node: Dirent,
        links: i32,
        now: TimeNs,
    ) -> Result<(), Error> {
        let mut dir = self.owned_inode(parent)?;
        EntryChange::Replace.make(&mut dir, links, now);
        self.put_inode(&dir)?;
        self.repoint_entry(parent, name, node)
    }

    /// As [`Namespace::replace_entry`], unseen by the directory: what the name stands for has only moved.
    pub(super) fn repoint_entry(&mut self, parent: InodeId, name: &[u8], node: Dirent) -> Result<(), Error> {
        let key = keys::dirent(parent, name);
        let row: DirentRow = self.read(&key)?.ok_or(Error::CorruptRow { key })?;
        self.note_stale_copy(parent, row.cookie)?;
        self.put_entry(parent, name, DirentRow { node, ..row })
    }

    pub(super) fn remove_entry(&mut self, parent: InodeId, name: &[u8], links: i32, now: TimeNs) -> Result<(), Error> {
        let mut dir = self.owned_inode(parent)?;
        EntryChange::Remove.make(&mut dir, links, now);
        self.put_inode(&dir)?;
        let key = keys::dirent(parent, name);
        let Some(row) = self.read::<DirentRow>(&key)? else { return Err(Error::CorruptRow { key }) };
        self.note_stale_copy(parent, row.cookie)?;
        self.remove(&key)?;
        self.remove(&keys::listing(parent, row.cookie))
    }

    pub(super) fn put_entry(&mut self, parent: InodeId, name: &[u8], row: DirentRow) -> Result<(), Error> {
        self.put(keys::listing(parent, row.cookie), listing_row(name, row))?;
        self.put(keys::dirent(parent, name), rows::encode(&row))
    }
}

fn listing_row(name: &[u8], row: DirentRow) -> Vec<u8> {
    rows::encode(&ListingRow { name: Bytes::copy_from_slice(name), node: row.node })
}

impl EntryChange {
    /// What it does to the directory, which gains `links`.
    pub(crate) fn make(self, dir: &mut InodeRow, links: i32, now: TimeNs) {
        match self {
            EntryChange::Insert => {
                dir.cookie_last += 1;
                dir.attr.size += 1;
                dir.attr.data_version += 1;
            }
            EntryChange::Replace => {}
            EntryChange::Remove => {
                dir.attr.size = dir.attr.size.saturating_sub(1);
                dir.attr.data_version += 1;
            }
        }
        dir.attr.nlink = dir.attr.nlink.saturating_add_signed(links);
        touch_modified(dir, now);
    }
}

pub(super) fn stale_name(parent: InodeId, name: &[u8], dirent: Option<Dirent>) -> Stop {
    Stop::stale(Fact::Name { parent, name: Bytes::copy_from_slice(name), dirent })
}
