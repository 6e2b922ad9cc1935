//! What must hold for the rows of all groups together when no update is under way: the tree is a tree, counts are exact,
//! nothing dangles. Reads everything into memory: for tests, simulation, and an operator's check of a copy.

mod group;
mod tree;

use std::collections::BTreeMap;
use std::fmt;

use multicast::ids::GroupId;

use crate::error::Error;
use crate::store::Store;

/// Something that must never be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// In which group's rows.
    pub group: GroupId,
    /// What.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.group, self.what)
    }
}

/// Looks at everything. An empty answer is a clean bill.
pub fn check<S: Store>(stores: &BTreeMap<GroupId, S>) -> Result<Vec<Violation>, Error> {
    let mut found = Vec::new();
    let mut groups = BTreeMap::new();
    for (&group, store) in stores {
        let mut rows = group::GroupRows::load(group, store)?;
        rows.count_references();
        rows.check(&mut found);
        groups.insert(group, rows);
    }
    tree::check(&groups, &mut found);
    Ok(found)
}
