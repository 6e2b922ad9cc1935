//! Who belongs to the groups, as far as this node's replicas have learned: kept over a restart, for by then those whom the
//! configuration names may all be others. A hint, never counted with: what is lost of it is asked for again.

use std::collections::BTreeMap;
use std::path::PathBuf;

use multicast::Membership;
use multicast::ids::GroupId;
use parking_lot::Mutex;

use crate::error::{Error, Result};
use crate::storage::sealed;

/// See the module.
#[derive(Debug)]
pub struct Members {
    path: PathBuf,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    groups: BTreeMap<GroupId, Membership>,
    is_saved: bool,
}

impl Members {
    /// As they were kept. A file that is damaged is as good as none.
    pub fn open(path: PathBuf) -> Result<Members> {
        let groups = match sealed::read(&path) {
            Ok(found) => found.unwrap_or_default(),
            Err(error @ Error::Corrupt { .. }) => {
                tracing::warn!(%error, "the groups' members are asked for anew");
                BTreeMap::new()
            }
            Err(error) => return Err(error),
        };
        let mut groups: BTreeMap<GroupId, Membership> = groups;
        groups.retain(|_, members| members.is_valid());
        Ok(Members { path, known: Mutex::new(Known { groups, is_saved: true }) })
    }

    /// True if that was news. A membership of the founding is none.
    pub fn learn(&self, group: GroupId, members: &Membership) -> bool {
        let mut known = self.known.lock();
        let is_news = members.version > known.groups.get(&group).map_or(0, |known| known.version);
        if is_news {
            known.groups.insert(group, members.clone());
            known.is_saved = false;
        }
        is_news
    }

    /// A group's, if they are others than at the founding.
    pub fn of(&self, group: GroupId) -> Option<Membership> {
        self.known.lock().groups.get(&group).cloned()
    }

    /// All that differ from the founding.
    pub fn all(&self) -> BTreeMap<GroupId, Membership> {
        self.known.lock().groups.clone()
    }

    /// Writes them down, if there is news.
    pub fn save(&self) -> Result<()> {
        let groups = {
            let mut known = self.known.lock();
            if std::mem::replace(&mut known.is_saved, true) {
                return Ok(());
            }
            known.groups.clone()
        };
        let saved = sealed::write(&self.path, &groups);
        if saved.is_err() {
            self.known.lock().is_saved = false;
        }
        saved
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use multicast::ids::ReplicaId;

    use super::*;

    fn version(version: u64) -> Membership {
        Membership { version, ..Membership::genesis(&[ReplicaId(1)]) }
    }

    #[test]
    fn members_are_kept_and_never_replaced_by_older_ones() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("members");
        let members = Members::open(path.clone()).unwrap();
        assert!(!members.learn(GroupId(1), &version(0)));
        assert!(members.learn(GroupId(1), &version(3)));
        assert!(!members.learn(GroupId(1), &version(2)));
        members.save().unwrap();
        assert_eq!(Members::open(path.clone()).unwrap().all(), BTreeMap::from([(GroupId(1), version(3))]));
        std::fs::write(&path, b"damaged").unwrap();
        assert_eq!(Members::open(path).unwrap().of(GroupId(1)), None);
    }
}
