//! link(2), unlink(2), rmdir(2).

use multicast::ids::SessionId;

use crate::error::Error;
use crate::namespace::{Namespace, touch_changed};
use crate::outcome::{Done, Errno};
use crate::store::StoreMut;
use crate::types::{Attr, FileKind, LINKS_MAX, NodeRef, TimeNs};
use crate::verdict::{Contribution, Joint, Rank, Step, Stop, note};

impl<S: StoreMut> Namespace<S> {
    pub(crate) fn check_link(
        &self,
        node: NodeRef,
        parent: NodeRef,
        name: &[u8],
        part: &mut Contribution,
    ) -> Result<(), Error> {
        if node.home == self.group {
            let checked = self.check_linkable(node);
            part.facts.nodes.extend(note(&mut part.refusals, checked)?);
        }
        if parent.home == self.group {
            let checked = self.directory(parent).and_then(|_| self.check_free(parent.ino, name));
            note(&mut part.refusals, checked)?;
        }
        Ok(())
    }

    fn check_linkable(&self, node: NodeRef) -> Step<Attr> {
        let row = self.subject(node)?;
        if row.attr.nlink == 0 {
            return Err(Stop::errno(Rank::NameMissing, Errno::NotFound));
        }
        if row.attr.kind == FileKind::Directory {
            return Err(Stop::errno(Rank::Kind, Errno::NotPermitted));
        }
        if row.attr.nlink >= LINKS_MAX {
            return Err(Stop::errno(Rank::Limit, Errno::TooManyLinks));
        }
        Ok(row.attr)
    }

    pub(crate) fn apply_link(
        &mut self,
        node: NodeRef,
        parent: NodeRef,
        name: &[u8],
        joint: &Joint,
    ) -> Result<Option<Done>, Error> {
        let Some(mut attr) = joint.facts.node(node.ino).cloned() else { return Ok(None) };
        attr.nlink += 1;
        touch_changed(&mut attr, joint.time);
        if node.home == self.group {
            let mut row = self.owned_inode(node.ino)?;
            row.attr = beside_steps(&row.attr, &attr);
            self.put_inode(&row)?;
        }
        if parent.home == self.group {
            self.insert_entry(parent.ino, name, node, 0, joint.time)?;
        }
        Ok(Some(Done::node(attr)))
    }

    pub(crate) fn check_unlink(
        &self,
        parent: NodeRef,
        name: &[u8],
        target: NodeRef,
        part: &mut Contribution,
    ) -> Result<(), Error> {
        self.check_removal(parent, name, target, part)?;
        if target.kind == FileKind::Directory {
            note(&mut part.refusals, Err::<(), _>(Stop::errno(Rank::Kind, Errno::IsDirectory)))?;
        }
        Ok(())
    }

    pub(crate) fn check_rmdir(
        &self,
        parent: NodeRef,
        name: &[u8],
        target: NodeRef,
        part: &mut Contribution,
    ) -> Result<(), Error> {
        self.check_removal(parent, name, target, part)?;
        if target.kind != FileKind::Directory {
            note(&mut part.refusals, Err::<(), _>(Stop::errno(Rank::Kind, Errno::NotDirectory)))?;
        }
        Ok(())
    }

    fn check_removal(
        &self,
        parent: NodeRef,
        name: &[u8],
        target: NodeRef,
        part: &mut Contribution,
    ) -> Result<(), Error> {
        if parent.home == self.group {
            let checked = self.directory(parent).and_then(|_| self.check_name(parent.ino, name, target));
            note(&mut part.refusals, checked)?;
        }
        if target.home == self.group {
            let checked = self.check_removable(target);
            part.facts.nodes.extend(note(&mut part.refusals, checked)?);
        }
        Ok(())
    }

    /// What a name that goes stands for: if it is a directory, it must be empty.
    pub(super) fn check_removable(&self, target: NodeRef) -> Step<Attr> {
        let row = self.subject(target)?;
        if row.attr.kind == FileKind::Directory && row.attr.size > 0 {
            return Err(Stop::errno(Rank::NotEmpty, Errno::NotEmpty));
        }
        if row.attr.nlink == 0 {
            return Err(Stop::errno(Rank::Gone, Errno::NotFound));
        }
        Ok(row.attr)
    }

    pub(crate) fn apply_remove(
        &mut self,
        parent: NodeRef,
        name: &[u8],
        target: NodeRef,
        session: SessionId,
        holder: Option<SessionId>,
        joint: &Joint,
    ) -> Result<Option<Done>, Error> {
        let Some(mut attr) = joint.facts.node(target.ino).cloned() else { return Ok(None) };
        unlinked(&mut attr, joint.time);
        if parent.home == self.group {
            let links = -i32::from(target.kind == FileKind::Directory);
            self.remove_entry(parent.ino, name, links, joint.time)?;
        }
        if target.home == self.group {
            self.put_unlinked(&attr, session, holder)?;
        }
        Ok(Some(Done::Removed { attr: Box::new(attr), directories: Vec::new() }))
    }

    /// Writes an inode that has just lost a name, and lets go of it if that was the last.
    pub(super) fn put_unlinked(
        &mut self,
        attr: &Attr,
        session: SessionId,
        holder: Option<SessionId>,
    ) -> Result<(), Error> {
        let mut row = self.owned_inode(attr.ino)?;
        row.attr = beside_steps(&row.attr, attr);
        if attr.nlink > 0 {
            return self.put_inode(&row);
        }
        self.orphan(row, session, holder)
    }
}

/// An inode as the verdict makes it of what it was then; steps may have gone on with the content of a cut file since.
fn beside_steps(now: &Attr, verdict: &Attr) -> Attr {
    Attr { allocated: now.allocated, ..verdict.clone() }
}

/// An inode that loses a name. A directory has only one.
pub(super) fn unlinked(attr: &mut Attr, now: TimeNs) {
    attr.nlink = if attr.kind == FileKind::Directory { 0 } else { attr.nlink.saturating_sub(1) };
    touch_changed(attr, now);
}
