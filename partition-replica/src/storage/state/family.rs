//! The column families: how they are called, which one is a group's, and how RocksDB keeps them.

use std::path::Path;

use multicast::ids::GroupId;
use rocksdb::{BlockBasedOptions, Cache as BlockCache, DBCompressionType, Options};

use super::{BUFFER_SHARE, Db, failed};
use crate::error::Result;

pub(super) fn family_options(cache: &BlockCache, memory_bytes: usize) -> Options {
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(cache);
    table.set_block_size(8 << 10);
    table.set_bloom_filter(10.0, false);
    // Index and filters count within the cache's bound too.
    table.set_cache_index_and_filter_blocks(true);
    table.set_pin_l0_filter_and_index_blocks_in_cache(true);
    table.set_format_version(5);
    let mut options = Options::default();
    options.set_block_based_table_factory(&table);
    options.set_compression_type(DBCompressionType::Lz4);
    options.set_write_buffer_size((memory_bytes / BUFFER_SHARE / 2).clamp(1 << 20, 64 << 20));
    // Most rows that are looked for here are new names and inodes: the filter says so without a search.
    options.set_memtable_prefix_bloom_ratio(0.05);
    options.set_memtable_whole_key_filtering(true);
    options.set_max_write_buffer_number(3);
    options.set_level_compaction_dynamic_level_bytes(true);
    options
}

pub(super) fn known_families(options: &Options, folder: &Path) -> Vec<String> {
    // Fails if there is no database yet; a damaged one makes the opening itself fail, with a better message.
    Db::list_cf(options, folder).unwrap_or_default()
}

/// The row of the default column family that names a group's own, once that is not the first.
pub(super) fn pointer(group: GroupId) -> String {
    format!("state of group {}", group.0)
}

pub(super) fn live_family(db: &Db, group: GroupId) -> Result<String> {
    let name = db.get(pointer(group)).map_err(failed)?;
    Ok(name.map_or_else(|| family_name(group), |name| String::from_utf8_lossy(&name).into_owned()))
}

pub(super) fn family_name(group: GroupId) -> String {
    format!("group-{}", group.0)
}

/// True for a column family that has, or had, that group's state.
pub(super) fn is_of_group(name: &str, group: GroupId) -> bool {
    name.strip_prefix(&family_name(group)).is_some_and(|end| end.is_empty() || end.starts_with('-'))
}
