//! Where directories' children live, and moving inodes there.

use multicast::ids::GroupId;

use super::transfer::is_copied_alike;
use crate::error::Error;
use crate::namespace::{Namespace, touch_changed};
use crate::outcome::{Done, Errno, Fact, OpError, Outcome};
use crate::store::StoreMut;
use crate::types::{FileKind, NodeRef, TimeNs};
use crate::verdict::{Contribution, Joint, Step, Stop, note};

impl<S: StoreMut> Namespace<S> {
    pub(crate) fn set_placement(&mut self, now: TimeNs, dir: NodeRef, placement: GroupId) -> Step<Done> {
        let mut row = self.directory(dir)?;
        if row.attr.placement != placement {
            row.attr.placement = placement;
            touch_changed(&mut row.attr, now);
            self.put_inode(&row)?;
        }
        Ok(Done::node(row.attr))
    }

    pub(crate) fn check_move(
        &self,
        parent: NodeRef,
        name: &[u8],
        node: NodeRef,
        to: GroupId,
        part: &mut Contribution,
    ) -> Result<(), Error> {
        if parent.home == self.group {
            let checked = self.directory(parent).and_then(|_| self.check_name(parent.ino, name, node));
            note(&mut part.refusals, checked)?;
        }
        if to == self.group {
            let checked = self.arrived_ahead(node.ino);
            part.facts.ahead = note(&mut part.refusals, checked)?.flatten();
        }
        if node.home != self.group {
            return Ok(());
        }
        let checked = self.subject(node);
        let Some(row) = note(&mut part.refusals, checked)? else { return Ok(()) };
        if !part.refusals.is_empty() {
            return Ok(());
        }
        match self.freight(node.ino, to)? {
            Some(freight) => part.facts.freight.push(freight),
            // It has other names or locks, or is too big to move at once.
            None => {
                note(&mut part.refusals, Err::<(), _>(Stop::stale(Fact::Attr(Box::new(row.attr)))))?;
            }
        }
        Ok(())
    }

    pub(crate) fn apply_move(
        &mut self,
        parent: NodeRef,
        name: &[u8],
        node: NodeRef,
        to: GroupId,
        joint: &Joint,
    ) -> Result<Outcome, Error> {
        let Some(freight) = joint.facts.freight(node.ino) else { return Ok(Err(OpError::Errno(Errno::Malformed))) };
        if !is_copied_alike(freight, joint.facts.ahead) {
            // Of two transfers, or of one that was given up in one of the groups.
            return Ok(Err(OpError::Errno(Errno::Busy)));
        }
        let mut attr = freight.row.attr.clone();
        attr.home = to;
        if attr.kind != FileKind::Directory {
            attr.placement = to;
        }
        if parent.home == self.group {
            self.repoint_entry(parent.ino, name, NodeRef { home: to, ..node })?;
        }
        if node.home == self.group {
            self.depart(node.ino, to)?;
        }
        if to == self.group {
            self.arrive(freight, attr.clone())?;
        }
        Ok(Ok(Done::node(attr)))
    }
}
