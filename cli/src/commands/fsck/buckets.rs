//! What is in the buckets.

use std::time::Duration;

use datastore::{BlobStore, Listed, Region};
use futures::StreamExt;
use metadata::check::Seen;
use metadata::types::BlobId;

use super::look::Look;
use super::report::Stored;
use crate::commands::client::{self, Wishes};
use crate::config::Cluster;
use crate::exit::Result;

/// Lists every region's bucket. Those that cannot be listed come back as text.
pub async fn list(cluster: &Cluster, wishes: &Wishes, look: &mut Look<'_>) -> Result<Vec<String>> {
    let store = client::store_unchecked(cluster, wishes, None)?;
    let mut missing = Vec::new();
    for region in &cluster.regions {
        if let Err(why) = list_one(&store, (region.number, &region.name), cluster.timeouts.stray, look).await {
            missing.push(format!("the bucket of region {}: {why}", region.name));
        }
    }
    Ok(missing)
}

async fn list_one(
    store: &BlobStore,
    (number, region): (u16, &str),
    stray: Duration,
    look: &mut Look<'_>,
) -> std::result::Result<(), String> {
    let mut stored = Stored { number, region: region.to_owned(), ..Stored::default() };
    let mut listing = store.list(Region(number), None);
    while let Some(listed) = listing.next().await {
        let Listed::Blob { id, len_bytes, modified } = listed.map_err(|error| error.to_string())? else { continue };
        // Copies of other regions' blobs are not looked at.
        if id.origin != Region(number) {
            continue;
        }
        stored.blobs += 1;
        stored.bytes += len_bytes;
        let blob = BlobId { origin: id.origin.0, writer: id.writer, sequence: id.sequence };
        let is_new = !modified.elapsed().is_ok_and(|age| age >= stray);
        look.store(Seen::Stored { blob, len: len_bytes, is_new }).map_err(|error| error.to_string())?;
    }
    look.stored(number, stored);
    Ok(())
}
