//! All groups' rows together: names and inodes, parents and children.

use std::collections::{BTreeMap, BTreeSet};

use multicast::ids::GroupId;

use super::Violation;
use super::group::GroupRows;
use crate::rows::InodeRow;
use crate::types::{FileKind, InodeId};

pub(super) fn check(groups: &BTreeMap<GroupId, GroupRows>, found: &mut Vec<Violation>) {
    let names = check_names(groups, found);
    check_links(groups, &names, found);
    check_parents(groups, found);
    check_garbage(groups, found);
}

/// Every name stands for an inode at its home. Gives the directories in which each inode has names.
fn check_names(groups: &BTreeMap<GroupId, GroupRows>, found: &mut Vec<Violation>) -> BTreeMap<InodeId, Vec<InodeId>> {
    let mut names: BTreeMap<InodeId, Vec<InodeId>> = BTreeMap::new();
    for rows in groups.values() {
        for ((dir, name), entry) in &rows.dirents {
            names.entry(entry.node.ino).or_default().push(*dir);
            let inode = groups.get(&entry.node.home).and_then(|home| home.inodes.get(&entry.node.ino));
            if inode.is_none_or(|inode| inode.attr.kind != entry.node.kind) {
                let name = name.escape_ascii();
                let what = format!("the name {name} in {dir} stands for {:?}, which is not there", entry.node);
                found.push(Violation { group: rows.group, what });
            }
        }
    }
    names
}

fn check_links(
    groups: &BTreeMap<GroupId, GroupRows>,
    names: &BTreeMap<InodeId, Vec<InodeId>>,
    found: &mut Vec<Violation>,
) {
    let mut homes = BTreeSet::new();
    let none = Vec::new();
    for rows in groups.values() {
        for InodeRow { attr, .. } in rows.inodes.values() {
            let mut note = |what: String| found.push(Violation { group: rows.group, what });
            let ino = attr.ino;
            if !homes.insert(ino) {
                note(format!("inode {ino} lives in two groups"));
            }
            let dirs = names.get(&ino).unwrap_or(&none);
            let expected = match attr.kind {
                FileKind::Directory => usize::from(attr.nlink > 0 && ino != InodeId::ROOT),
                _ => attr.nlink as usize,
            };
            if dirs.len() != expected {
                note(format!("inode {ino} has {} links but {} names", attr.nlink, dirs.len()));
            }
            if let (FileKind::Directory, [dir]) = (attr.kind, dirs.as_slice())
                && attr.parent != Some(*dir)
            {
                note(format!("directory {ino} is in {dir} but says {:?}", attr.parent));
            }
        }
    }
}

/// Every directory that has a name hangs below the root.
fn check_parents(groups: &BTreeMap<GroupId, GroupRows>, found: &mut Vec<Violation>) {
    let mut parents = BTreeMap::new();
    for rows in groups.values() {
        let dirs = rows.inodes.values().filter(|row| row.attr.kind == FileKind::Directory && row.attr.nlink > 0);
        parents.extend(dirs.map(|row| (row.attr.ino, (rows.group, row.attr.parent))));
    }
    if !parents.contains_key(&InodeId::ROOT) {
        found.push(Violation { group: GroupId::GLOBAL, what: "there is no root".to_owned() });
    }
    for (&ino, &(group, _)) in &parents {
        let (mut at, mut steps) = (ino, 0);
        while at != InodeId::ROOT && steps <= parents.len() {
            steps += 1;
            match parents.get(&at) {
                Some((_, Some(parent))) => at = *parent,
                _ => break,
            }
        }
        if at != InodeId::ROOT {
            found.push(Violation { group, what: format!("directory {ino} does not hang below the root") });
        }
    }
}

/// What one group calls garbage no other group may refer to.
fn check_garbage(groups: &BTreeMap<GroupId, GroupRows>, found: &mut Vec<Violation>) {
    for rows in groups.values() {
        for blob in rows.garbage.values() {
            if groups.values().any(|other| other.references.contains_key(blob)) {
                found.push(Violation { group: rows.group, what: format!("{blob:?} is garbage, but referred to") });
            }
        }
    }
}
