//! rename(2) and renameat2(2).

use multicast::ids::{GroupId, SessionId};

use super::entry::stale_name;
use super::link::unlinked;
use crate::error::Error;
use crate::namespace::{Namespace, touch_changed};
use crate::op::{Ancestor, FsOp, RenameMode};
use crate::outcome::{Done, Errno, Fact, OpError, Outcome};
use crate::store::StoreMut;
use crate::types::{Attr, FileKind, InodeId, NodeRef, TimeNs};
use crate::validate::rename_chains;
use crate::verdict::{Contribution, Facts, Joint, ParentFacts, Rank, Refusal, Step, Stop, note};

/// A rename, taken out of its operation.
#[derive(Clone, Copy)]
struct Rename<'a> {
    from_parent: NodeRef,
    from_name: &'a [u8],
    source: NodeRef,
    to_parent: NodeRef,
    to_name: &'a [u8],
    target: Option<NodeRef>,
    mode: RenameMode,
    keep_open: bool,
}

impl<'a> Rename<'a> {
    fn of(op: &'a FsOp) -> Option<Self> {
        let FsOp::Rename { from_parent, from_name, source, to_parent, to_name, target, mode, keep_open, .. } = op
        else {
            return None;
        };
        Some(Rename {
            from_parent: *from_parent,
            from_name,
            source: *source,
            to_parent: *to_parent,
            to_name,
            // What the name was taken for does not matter if it must be free.
            target: target.filter(|_| *mode != RenameMode::NoReplace),
            mode: *mode,
            keep_open: *keep_open,
        })
    }

    fn reparents(&self) -> bool {
        self.from_parent.ino != self.to_parent.ino
    }

    fn exchanges(&self) -> bool {
        self.mode == RenameMode::Exchange
    }

    /// Both names stand for the same inode: nothing happens.
    fn is_idle(&self) -> bool {
        self.target.is_some_and(|target| target.ino == self.source.ino)
    }

    /// Files and directories do not replace each other.
    fn check_kinds(&self) -> Step<()> {
        let Some(target) = self.target.filter(|_| !self.exchanges() && !self.is_idle()) else { return Ok(()) };
        match (is_directory(self.source), is_directory(target)) {
            (true, false) => Err(Stop::errno(Rank::Kind, Errno::NotDirectory)),
            (false, true) => Err(Stop::errno(Rank::Kind, Errno::IsDirectory)),
            (true, true) | (false, false) => Ok(()),
        }
    }

    /// The inode under its new name: the same in every group.
    fn renamed(&self, node: NodeRef, parent: NodeRef, facts: &Facts, now: TimeNs) -> Option<Attr> {
        let mut attr = facts.node(node.ino)?.clone();
        touch_changed(&mut attr, now);
        if is_directory(node) {
            attr.parent = Some(parent.ino);
        } else {
            let home = new_home(node, parent, facts);
            attr.home = home;
            attr.placement = home;
        }
        Some(attr)
    }
}

fn is_directory(node: NodeRef) -> bool {
    node.kind == FileKind::Directory
}

/// Where an inode that is not a directory lives under its new name: with its new directory's other children, if it can
/// move at once; else it stays.
fn new_home(node: NodeRef, parent: NodeRef, facts: &Facts) -> GroupId {
    let wanted = facts.parent(parent.ino).is_some_and(|facts| facts.placement == parent.home);
    let can = facts.freight(node.ino).is_some();
    if wanted && can { parent.home } else { node.home }
}

impl<S: StoreMut> Namespace<S> {
    pub(crate) fn check_rename(&self, op: &FsOp, part: &mut Contribution) -> Result<(), Error> {
        let (Some(rename), Some(chains)) = (Rename::of(op), rename_chains(op)) else { return Ok(()) };
        self.check_from(&rename, part)?;
        self.check_to(&rename, part)?;
        self.check_chain(chains.source, &[], rename.source, part)?;
        if let Some(target) = rename.target {
            self.check_chain(chains.target, chains.target_rest, target, part)?;
        }
        note(&mut part.refusals, rename.check_kinds())?;
        self.check_nodes(&rename, part)
    }

    fn check_from(&self, rename: &Rename<'_>, part: &mut Contribution) -> Result<(), Error> {
        if rename.from_parent.home != self.group {
            return Ok(());
        }
        let checked = self.directory(rename.from_parent);
        let Some(dir) = note(&mut part.refusals, checked)? else { return Ok(()) };
        part.facts.parents.push(parent_facts(&dir.attr));
        let checked = self.check_name(rename.from_parent.ino, rename.from_name, rename.source);
        note(&mut part.refusals, checked)?;
        Ok(())
    }

    fn check_to(&self, rename: &Rename<'_>, part: &mut Contribution) -> Result<(), Error> {
        if rename.to_parent.home != self.group {
            return Ok(());
        }
        let checked = self.directory(rename.to_parent);
        let Some(dir) = note(&mut part.refusals, checked)? else { return Ok(()) };
        part.facts.parents.push(parent_facts(&dir.attr));
        let checked = self.check_target_name(rename);
        note(&mut part.refusals, checked)?;
        Ok(())
    }

    fn check_target_name(&self, rename: &Rename<'_>) -> Step<()> {
        let found = self.dirent(rename.to_parent.ino, rename.to_name)?.map(|row| row.node);
        match (rename.mode, found) {
            (RenameMode::NoReplace, Some(found)) => {
                Err(Stop::Refused(Refusal { rank: Rank::NameTaken, error: OpError::Exists(found) }))
            }
            (RenameMode::Exchange, None) => Err(Stop::errno(Rank::NameMissing, Errno::NotFound)),
            (_, found) if found == rename.target => Ok(()),
            (_, found) => Err(stale_name(rename.to_parent.ino, rename.to_name, found)),
        }
    }

    /// The part of the chain above a directory's new place that lives here must be as it was taken for, and the directory
    /// itself not in it. `rest` is the part of the chain that is looked at as part of another.
    fn check_chain(
        &self,
        chain: &[Ancestor],
        rest: &[Ancestor],
        moved: NodeRef,
        part: &mut Contribution,
    ) -> Result<(), Error> {
        for ancestor in chain.iter().filter(|ancestor| ancestor.dir.home == self.group) {
            let checked = self.check_ancestor(ancestor);
            note(&mut part.refusals, checked)?;
        }
        if chain.iter().chain(rest).any(|ancestor| ancestor.dir.ino == moved.ino) {
            note(&mut part.refusals, Err::<(), _>(Stop::errno(Rank::Loop, Errno::Invalid)))?;
        }
        Ok(())
    }

    fn check_ancestor(&self, ancestor: &Ancestor) -> Step<()> {
        let dir = self.directory(ancestor.dir)?;
        match dir.attr.parent {
            Some(parent) if parent == ancestor.parent => Ok(()),
            parent => {
                let parent = parent.unwrap_or(InodeId::ROOT);
                Err(Stop::stale(Fact::Parent { dir: ancestor.dir.ino, parent }))
            }
        }
    }

    fn check_nodes(&self, rename: &Rename<'_>, part: &mut Contribution) -> Result<(), Error> {
        if rename.source.home == self.group {
            let checked = self.subject(rename.source);
            if let Some(row) = note(&mut part.refusals, checked)? {
                part.facts.nodes.push(row.attr);
                self.load_freight(rename.source, rename.to_parent.home, part)?;
            }
        }
        let Some(target) = rename.target.filter(|target| target.home == self.group && !rename.is_idle()) else {
            return Ok(());
        };
        if rename.exchanges() {
            let checked = self.subject(target);
            if let Some(row) = note(&mut part.refusals, checked)? {
                part.facts.nodes.push(row.attr);
                self.load_freight(target, rename.from_parent.home, part)?;
            }
            return Ok(());
        }
        let checked = self.check_removable(target);
        part.facts.nodes.extend(note(&mut part.refusals, checked)?);
        Ok(())
    }

    fn load_freight(&self, node: NodeRef, to: GroupId, part: &mut Contribution) -> Result<(), Error> {
        if to == self.group || is_directory(node) || !part.refusals.is_empty() {
            return Ok(());
        }
        part.facts.freight.extend(self.freight(node.ino, to)?);
        Ok(())
    }

    /// Does this group's part. Also says whether nothing had to be done.
    pub(crate) fn apply_rename(
        &mut self,
        op: &FsOp,
        session: SessionId,
        joint: &Joint,
    ) -> Result<(Outcome, bool), Error> {
        let malformed = (Err(OpError::Errno(Errno::Malformed)), false);
        let Some(rename) = Rename::of(op) else { return Ok(malformed) };
        if rename.is_idle() {
            let Some(attr) = joint.facts.node(rename.source.ino) else { return Ok(malformed) };
            let attr = Box::new(attr.clone());
            return Ok((Ok(Done::Renamed { target: Some(attr.clone()), attr, directories: Vec::new() }), true));
        }
        let Some(source) = rename.renamed(rename.source, rename.to_parent, &joint.facts, joint.time) else {
            return Ok(malformed);
        };
        let done = if rename.exchanges() {
            self.apply_exchange(&rename, source, joint)?
        } else {
            self.apply_replace(&rename, source, session, joint)?
        };
        Ok(done.map_or(malformed, |done| (Ok(done), false)))
    }

    fn apply_replace(
        &mut self,
        rename: &Rename<'_>,
        source: Attr,
        session: SessionId,
        joint: &Joint,
    ) -> Result<Option<Done>, Error> {
        let target = match rename.target {
            Some(target) => match joint.facts.node(target.ino) {
                Some(attr) => Some(attr.clone()),
                None => return Ok(None),
            },
            None => None,
        };
        let arrives = i32::from(is_directory(rename.source) && rename.reparents());
        let goes = i32::from(target.as_ref().is_some_and(|attr| attr.kind == FileKind::Directory));
        if rename.from_parent.home == self.group {
            self.remove_entry(rename.from_parent.ino, rename.from_name, -arrives, joint.time)?;
        }
        if rename.to_parent.home == self.group {
            let entry = NodeRef { home: source.home, ..rename.source };
            let (dir, name) = (rename.to_parent.ino, rename.to_name);
            if target.is_some() {
                self.replace_entry(dir, name, entry, arrives - goes, joint.time)?;
            } else {
                self.insert_entry(dir, name, entry, arrives, joint.time)?;
            }
        }
        self.put_renamed(rename.source, &source, joint)?;
        let target = match target {
            None => None,
            Some(mut attr) => {
                unlinked(&mut attr, joint.time);
                if rename.target.is_some_and(|target| target.home == self.group) {
                    self.put_unlinked(&attr, session, rename.keep_open.then_some(session))?;
                }
                Some(Box::new(attr))
            }
        };
        Ok(Some(Done::Renamed { attr: Box::new(source), target, directories: Vec::new() }))
    }

    fn apply_exchange(&mut self, rename: &Rename<'_>, source: Attr, joint: &Joint) -> Result<Option<Done>, Error> {
        let Some(node) = rename.target else { return Ok(None) };
        let Some(target) = rename.renamed(node, rename.from_parent, &joint.facts, joint.time) else { return Ok(None) };
        let links =
            if rename.reparents() { i32::from(is_directory(rename.source)) - i32::from(is_directory(node)) } else { 0 };
        if rename.from_parent.home == self.group {
            let entry = NodeRef { home: target.home, ..node };
            self.replace_entry(rename.from_parent.ino, rename.from_name, entry, -links, joint.time)?;
        }
        if rename.to_parent.home == self.group {
            let entry = NodeRef { home: source.home, ..rename.source };
            self.replace_entry(rename.to_parent.ino, rename.to_name, entry, links, joint.time)?;
        }
        self.put_renamed(rename.source, &source, joint)?;
        self.put_renamed(node, &target, joint)?;
        let (attr, target) = (Box::new(source), Some(Box::new(target)));
        Ok(Some(Done::Renamed { attr, target, directories: Vec::new() }))
    }

    /// Writes an inode under its new name, in its home or out of the old into the new one.
    fn put_renamed(&mut self, node: NodeRef, attr: &Attr, joint: &Joint) -> Result<(), Error> {
        if attr.home != node.home {
            if node.home == self.group {
                self.depart(node.ino, attr.home)?;
            }
            if let Some(freight) = joint.facts.freight(node.ino).filter(|_| attr.home == self.group) {
                self.arrive(freight, attr.clone())?;
            }
            return Ok(());
        }
        if node.home != self.group {
            return Ok(());
        }
        // A directory's entries may have changed since the verdict: only what a rename changes is written.
        let mut row = self.owned_inode(node.ino)?;
        row.attr.parent = attr.parent;
        touch_changed(&mut row.attr, joint.time);
        self.put_inode(&row)
    }
}

fn parent_facts(attr: &Attr) -> ParentFacts {
    ParentFacts { ino: attr.ino, mode: attr.mode, gid: attr.gid, placement: attr.placement }
}
