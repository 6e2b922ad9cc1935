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
    pub fn open(path: PathBuf) -> Result<Hosting> {
        let book = sealed::read(&path)?.unwrap_or_default();
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
        let book = Book { groups };
        sealed::write(&self.path, &book)?;
        self.book = book;
        Ok(())
    }
}
