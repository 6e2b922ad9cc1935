//! What happens to nodes' disks while nobody looks.

use std::path::Path;

use rocksdb::{DB, Options};

/// The key of the row with the digest of all others.
pub const DIGEST: [u8; 1] = [2];

/// Every row of a group in a stopped node's state whose key begins so.
pub fn rows(node: &Path, group: u16, prefix: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
    with_state(node, group, |db, family| {
        let family = db.cf_handle(family).unwrap();
        let all = db.iterator_cf(family, rocksdb::IteratorMode::From(prefix, rocksdb::Direction::Forward));
        let rows = all.map(|row| row.unwrap()).take_while(|(key, _)| key.starts_with(prefix));
        rows.map(|(key, value)| (key.to_vec(), value.to_vec())).collect()
    })
}

/// Writes, or with no value removes, a row of a group in a stopped node's state.
pub fn set_row(node: &Path, group: u16, key: &[u8], value: Option<&[u8]>) {
    with_state(node, group, |db, family| {
        let family = db.cf_handle(family).unwrap();
        match value {
            Some(value) => db.put_cf(family, key, value).unwrap(),
            None => db.delete_cf(family, key).unwrap(),
        }
        db.flush_cf(family).unwrap();
    });
}

fn with_state<T>(node: &Path, group: u16, work: impl FnOnce(&DB, &str) -> T) -> T {
    let (folder, options) = (node.join("state"), Options::default());
    let families = DB::list_cf(&options, &folder).unwrap();
    let db = DB::open_cf(&options, &folder, families).unwrap();
    let live = db.get(format!("state of group {group}")).unwrap();
    let live = live.map_or_else(|| format!("group-{group}"), |name| String::from_utf8(name).unwrap());
    work(&db, &live)
}
