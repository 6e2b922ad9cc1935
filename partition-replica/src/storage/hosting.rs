//! Which groups a node has replicas of, where that is not what the configuration made it at the founding: written down before a
//! replica begins, and before anything of one that has ended is deleted.
//!
//! A replica that begins at run time draws an incarnation of its own: it is nobody whom the group ever knew, also if the node
//! has had a replica of that group before, which had promised what this one does not know of.

use std::collections::BTreeMap;
use std::path::PathBuf;

use multicast::ids::{GroupId, Incarnation};
use serde::{Deserialize, Serialize};

use super::sealed;
use crate::config::NodeConfig;
use crate::error::Result;

/// What is written down.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Book {
    /// The disk's incarnation: on another disk nothing of this is true, also if the file has been carried over.
    disk: u64,
    groups: BTreeMap<u16, Hosted>,
}

/// What the node has of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Hosted {
    /// A replica with this incarnation.
    Here(u64),
    /// None any more, whatever the configuration says. What is left of one is to be deleted.
    Gone,
}

/// See the module.
#[derive(Debug)]
pub struct Hosting {
    path: PathBuf,
    book: Book,
}

impl Hosting {
    /// As it was written down.
    pub fn open(path: PathBuf, disk: Incarnation) -> Result<Hosting> {
        let found: Option<Book> = sealed::read(&path)?;
        let fresh = || Book { disk: disk.0, groups: BTreeMap::new() };
        let book = found.filter(|book| book.disk == disk.0).unwrap_or_else(fresh);
        Ok(Hosting { path, book })
    }

    /// The groups with a replica here, with its incarnation: those of the configuration have the disk's.
    pub fn groups(&self, config: &NodeConfig, disk: Incarnation) -> BTreeMap<GroupId, Incarnation> {
        let founded = config.local_groups().map(|group| (group.id, disk));
        let mut groups: BTreeMap<GroupId, Incarnation> = founded.collect();
        for (&group, hosted) in &self.book.groups {
            match *hosted {
                Hosted::Here(incarnation) => groups.insert(GroupId(group), Incarnation(incarnation)),
                Hosted::Gone => groups.remove(&GroupId(group)),
            };
        }
        groups
    }

    /// The groups of which nothing is to be here.
    pub fn gone(&self) -> impl Iterator<Item = GroupId> + '_ {
        self.book.groups.iter().filter(|(_, hosted)| **hosted == Hosted::Gone).map(|(&group, _)| GroupId(group))
    }

    /// True if somebody has said so of the group's replica here: else at most the configuration has.
    pub fn is_wanted(&self, group: GroupId) -> bool {
        matches!(self.book.groups.get(&group.0), Some(Hosted::Here(_)))
    }

    /// From now on there is a replica of that group. Durable on return.
    pub fn begin(&mut self, group: GroupId, incarnation: Incarnation) -> Result<()> {
        self.note(group, Hosted::Here(incarnation.0))
    }

    /// From now on there is none. Durable on return.
    pub fn end(&mut self, group: GroupId) -> Result<()> {
        self.note(group, Hosted::Gone)
    }

    fn note(&mut self, group: GroupId, hosted: Hosted) -> Result<()> {
        let mut groups = self.book.groups.clone();
        groups.insert(group.0, hosted);
        let book = Book { disk: self.book.disk, groups };
        sealed::write(&self.path, &book)?;
        self.book = book;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_was_hosted_on_another_disk_is_not_hosted_on_this_one() {
        let folder = tempfile::tempdir().unwrap();
        let open = |disk| Hosting::open(folder.path().join("replicas"), Incarnation(disk)).unwrap();
        open(0).begin(GroupId(3), Incarnation(9)).unwrap();
        open(0).end(GroupId(4)).unwrap();
        assert!(open(0).is_wanted(GroupId(3)) && !open(0).is_wanted(GroupId(4)) && !open(0).is_wanted(GroupId(5)));
        assert_eq!(open(0).gone().collect::<Vec<_>>(), [GroupId(4)]);
        assert_eq!(open(0).book.groups.len(), 2);
        assert!(open(7).book.groups.is_empty(), "its log and promises are gone");
    }
}
