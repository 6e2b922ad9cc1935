//! setxattr(2), removexattr(2).

use bytes::Bytes;

use crate::keys;
use crate::namespace::{Namespace, touch_changed};
use crate::op::XattrCondition;
use crate::outcome::{Done, Errno};
use crate::store::StoreMut;
use crate::types::{NodeRef, TimeNs};
use crate::validate::{XATTRS_BYTES_MAX, XATTRS_MAX};
use crate::verdict::{Rank, Step, Stop};

impl<S: StoreMut> Namespace<S> {
    pub(crate) fn set_xattr(
        &mut self,
        now: TimeNs,
        node: NodeRef,
        name: &Bytes,
        value: &Bytes,
        condition: XattrCondition,
    ) -> Step<Done> {
        let mut row = self.subject(node)?;
        let key = keys::xattr(node.ino, name);
        let before = self.store.get(&key)?;
        match (condition, &before) {
            (XattrCondition::Create, Some(_)) => return Err(Stop::errno(Rank::NameTaken, Errno::Exists)),
            (XattrCondition::Replace, None) => return Err(Stop::errno(Rank::NameMissing, Errno::NoXattr)),
            _ => {}
        }
        let freed = before.as_ref().map_or(0, |before| stored_bytes(name, before));
        let bytes = row.xattr_bytes.saturating_sub(freed).saturating_add(stored_bytes(name, value));
        if bytes > XATTRS_BYTES_MAX || (before.is_none() && row.attr.xattrs >= XATTRS_MAX) {
            return Err(Stop::errno(Rank::Limit, Errno::NoSpace));
        }
        row.xattr_bytes = bytes;
        row.attr.xattrs += u32::from(before.is_none());
        touch_changed(&mut row.attr, now);
        self.put_inode(&row)?;
        self.put(key, value.to_vec())?;
        Ok(Done::node(row.attr))
    }

    pub(crate) fn remove_xattr(&mut self, now: TimeNs, node: NodeRef, name: &Bytes) -> Step<Done> {
        let mut row = self.subject(node)?;
        let key = keys::xattr(node.ino, name);
        let Some(before) = self.store.get(&key)? else {
            return Err(Stop::errno(Rank::NameMissing, Errno::NoXattr));
        };
        row.xattr_bytes = row.xattr_bytes.saturating_sub(stored_bytes(name, &before));
        row.attr.xattrs = row.attr.xattrs.saturating_sub(1);
        touch_changed(&mut row.attr, now);
        self.put_inode(&row)?;
        self.remove(&key)?;
        Ok(Done::node(row.attr))
    }
}

/// What an xattr counts for. Both lengths are bounded far below 32 bits.
pub(crate) fn stored_bytes(name: &[u8], value: &[u8]) -> u32 {
    u32::try_from(name.len() + value.len()).unwrap_or(u32::MAX)
}
