//! What is left at the end: a tree, exact counts, nothing dangling, and the same as the sequential model's.

use std::collections::BTreeMap;

use metadata::MemStore;
use metadata::read::{ReadAnswer, ReadOp};
use metadata::types::{BlobId, Content, FileKind, InodeId};
use multicast::ids::GroupId;

use super::model::Model;
use crate::world::World;

/// Checks the final state of all groups.
///
/// # Errors
/// What is wrong.
pub fn check(world: &World, model: &Model) -> Result<(), String> {
    let stores = stores(world);
    let found = metadata::check::check(&stores).map_err(|error| error.to_string())?;
    if let Some(violation) = found.first() {
        return Err(format!("{violation} (and {} more)", found.len() - 1));
    }
    compare(&stores, model)?;
    check_blobs(world, &stores, model)
}

/// The state of each group.
fn stores(world: &World) -> BTreeMap<GroupId, MemStore> {
    let mut stores = BTreeMap::new();
    for replica in world.nodes.values().flat_map(|node| node.replicas.values()) {
        // All have applied the same, but for those that their groups have found out, or will: these go no further.
        let is_sound = !replica.is_rotten() && !replica.is_quarantined();
        let live = replica.live.as_ref().filter(|live| is_sound && !live.view.front.is_quarantined);
        if let Some(live) = live {
            stores.insert(replica.config.group, live.store.rows.clone());
        }
    }
    stores
}

fn read(stores: &BTreeMap<GroupId, MemStore>, home: GroupId, op: &ReadOp) -> Result<ReadAnswer, String> {
    let store = stores.get(&home).ok_or_else(|| format!("{home} has no primary"))?;
    let answer = metadata::answer::read(store, home, op).map_err(|error| error.to_string())?;
    answer.map_err(|error| format!("{op:?} of {home} at the end: {error:?}"))
}

fn compare(stores: &BTreeMap<GroupId, MemStore>, model: &Model) -> Result<(), String> {
    for (&ino, node) in model.nodes.iter().filter(|(_, node)| node.names > 0) {
        let ReadAnswer::Attr(attr) = read(stores, node.home, &ReadOp::GetAttr { ino })? else { continue };
        if attr.nlink != model.links(ino) {
            return Err(format!("inode {ino} has {} links at the end, not {}", attr.nlink, model.links(ino)));
        }
        if node.kind == FileKind::File && attr.size != node.size {
            return Err(format!("inode {ino} has {} bytes at the end, not {}", attr.size, node.size));
        }
        if node.kind == FileKind::Directory {
            compare_directory(stores, model, ino, node.home)?;
        }
    }
    Ok(())
}

fn compare_directory(
    stores: &BTreeMap<GroupId, MemStore>,
    model: &Model,
    dir: InodeId,
    home: GroupId,
) -> Result<(), String> {
    let listing = read(stores, home, &ReadOp::ReadDir { dir, after: 0, limit: 1000, plus: false })?;
    let ReadAnswer::Entries { entries, .. } = listing else { return Ok(()) };
    let expected = model.entries.iter().filter(|((parent, _), _)| *parent == dir).count();
    let agrees = entries.len() == expected
        && entries.iter().all(|entry| model.entries.get(&(dir, entry.name.clone())) == Some(&entry.dirent.ino));
    if agrees { Ok(()) } else { Err(format!("directory {dir} ends with {entries:?}, not with {expected} entries")) }
}

/// Every blob that a file refers to is in the bucket.
fn check_blobs(world: &World, stores: &BTreeMap<GroupId, MemStore>, model: &Model) -> Result<(), String> {
    let there = |blob: BlobId| world.ledger.blobs.get(&blob) == Some(&true);
    for (&ino, node) in model.nodes.iter().filter(|(_, node)| node.names > 0 && node.kind == FileKind::File) {
        let question = ReadOp::Content { ino, offset: 0, len: u64::MAX };
        let ReadAnswer::Content { content, .. } = read(stores, node.home, &question)? else { continue };
        let extents = match content {
            Content::Inline(_) => Vec::new(),
            Content::Extents { extents, .. } | Content::Mixed { extents, .. } => extents,
        };
        if let Some(source) = extents.iter().filter_map(|extent| extent.source).find(|source| !there(source.blob)) {
            return Err(format!("inode {ino} refers to {:?}, which is gone", source.blob));
        }
    }
    Ok(())
}
