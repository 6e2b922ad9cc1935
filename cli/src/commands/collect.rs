//! What a node does about blobs that nobody needs: it deletes those that its groups list as garbage, and, if it is told to,
//! looks through its region's bucket for such that were uploaded and never referred to.
//!
//! The rule by which a blob may go is in `metadata`, where `Collected` is executed: all groups are asked, twice, and have
//! promised before never to refer to it for the first time.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use datastore::{BlobStore, Listed, Region};
use fs_client::Client;
use futures::StreamExt;
use metadata::op::FsOp;
use metadata::read::{ReadAnswer, ReadOp};
use metadata::rows::Moves;
use metadata::types::BlobId;
use multicast::ids::GroupId;
use partition_replica::{BlobDeleter, CollectorTimes, Deleted};
use tokio::runtime::Handle;

use super::client::{self, Wishes};
use super::node;
use crate::config::{Cluster, Node};
use crate::exit::{Exit, Failure, Result};

/// How long a question to a group, or a bucket, may take.
const DEADLINE: Duration = Duration::from_secs(15);
/// Objects that the sweep looks at together.
const SWEEP_BATCH: usize = 256;
/// After a whole round, and after a failure.
const SWEEP_PAUSE: Duration = Duration::from_secs(60);
const SHARDS: u16 = 256;
const INTERVAL: std::ops::RangeInclusive<Duration> = Duration::from_millis(500)..=Duration::from_secs(20);

/// How often a node looks for garbage, how long that stays, and how fast it goes.
pub fn times(cluster: &Cluster) -> CollectorTimes {
    CollectorTimes {
        interval: (cluster.timeouts.collect / 4).clamp(*INTERVAL.start(), *INTERVAL.end()),
        grace: cluster.timeouts.collect,
        blobs_per_second: cluster.limits.collect_rate,
    }
}

/// Deletes blobs for one node.
pub struct Deleter {
    cluster: Cluster,
    wishes: Wishes,
    runtime: Handle,
    strays: AtomicU64,
}

impl Deleter {
    /// For a node; it shows the node's own certificate to the others.
    pub fn new(cluster: &Cluster, node: &Node, runtime: Handle) -> Arc<Deleter> {
        let wishes = Wishes::of_node(node, "collector", DEADLINE);
        Arc::new(Deleter { cluster: cluster.clone(), wishes, runtime, strays: AtomicU64::new(0) })
    }

    /// For whoever looks after the cluster, as a client.
    pub fn tool(cluster: &Cluster, wishes: Wishes, runtime: Handle) -> Deleter {
        Deleter { cluster: cluster.clone(), wishes, runtime, strays: AtomicU64::new(0) }
    }

    /// Deletes those of these blobs that no group refers to, or lists as garbage, or ever will. Returns how many are gone, and
    /// why others are not, if that is known.
    pub async fn delete_strays(&self, blobs: &[BlobId]) -> Result<(usize, Option<String>)> {
        let Outcome { gone, problem, again } = self.delete_free(None, blobs).await?;
        let moving = again.then(|| "files were moving between groups; try again".to_owned());
        Ok((gone.len(), problem.or(moving)))
    }

    /// Deletes those of the blobs that nothing refers to and nothing will; `garbage_of` is the group that lists them as
    /// garbage, if one does. Returns those that are gone.
    async fn delete_free(&self, garbage_of: Option<GroupId>, blobs: &[BlobId]) -> Result<Outcome> {
        let (endpoint, wan) = client::endpoint(&self.cluster, &self.wishes)?;
        let store = client::store_unchecked(&self.cluster, &self.wishes, wan)?;
        let config = client::client_config(&self.cluster, &self.wishes);
        let client = Client::connect(config, endpoint, None).map_err(client::client_failure)?;
        let groups = Groups { client: &client, all: self.cluster.groups.iter().map(|group| group.id).collect() };
        let freed = groups.free(garbage_of, blobs).await;
        // Every open session delays the end of unlinked files.
        if let Err(error) = client.close().await {
            tracing::debug!(%error, "a collector's sessions were not closed");
        }
        let Some(free) = freed? else { return Ok(Outcome { gone: Vec::new(), problem: None, again: true }) };
        Ok(delete(&store, &free).await)
    }
}

/// What became of blobs.
struct Outcome {
    gone: Vec<BlobId>,
    problem: Option<String>,
    /// Files were moving: nothing could be said.
    again: bool,
}

async fn delete(store: &BlobStore, free: &[BlobId]) -> Outcome {
    // Deleting everywhere but where it is would let the blob be forgotten.
    let (known, unknown): (Vec<BlobId>, Vec<BlobId>) = free.iter().partition(|blob| store.knows(Region(blob.origin)));
    let names: Vec<_> = known.iter().map(|blob| name(*blob)).collect();
    let failed = store.delete(&names).await;
    let left: BTreeSet<_> = failed.iter().map(|(id, _)| *id).collect();
    let mut problem = failed.into_iter().next().map(|(_, error)| error.to_string());
    if let Some(blob) = unknown.first() {
        problem = Some(format!("the bucket of region number {} cannot be used from here", blob.origin));
    }
    let gone = known.into_iter().filter(|blob| !left.contains(&name(*blob))).collect();
    Outcome { gone, problem, again: false }
}

fn name(blob: BlobId) -> datastore::BlobId {
    datastore::BlobId::new(Region(blob.origin), blob.writer, blob.sequence)
}

impl BlobDeleter for Deleter {
    fn delete(&self, group: GroupId, blobs: &[BlobId]) -> Deleted {
        match self.runtime.block_on(self.delete_free(Some(group), blobs)) {
            Ok(Outcome { gone, problem, again }) => {
                let again = again || problem.is_some();
                Deleted { gone, problem, again }
            }
            Err(failure) => Deleted { gone: Vec::new(), problem: Some(failure.message()), again: true },
        }
    }

    fn strays(&self) -> u64 {
        self.strays.load(Ordering::Relaxed)
    }
}

/// All groups, to be asked about blobs.
struct Groups<'a> {
    client: &'a Client,
    all: Vec<GroupId>,
}

/// What all groups say.
#[derive(Default)]
struct Answers {
    used: BTreeSet<BlobId>,
    garbage: BTreeSet<BlobId>,
    moves: Moves,
}

impl Groups<'_> {
    /// Those that nothing refers to and nothing will. `None` if files were moving between groups meanwhile.
    async fn free(&self, garbage_of: Option<GroupId>, blobs: &[BlobId]) -> Result<Option<Vec<BlobId>>> {
        // Nothing is logged about what is in use anyway.
        let mut left = self.not_needed(garbage_of, blobs.to_vec()).await?.0;
        if left.is_empty() {
            return Ok(Some(left));
        }
        for &group in self.all.iter().filter(|group| Some(**group) != garbage_of) {
            self.log(group, left.clone()).await?;
        }
        let arrived;
        (left, arrived) = self.not_needed(garbage_of, left).await?;
        for &group in &self.all {
            self.log(group, Vec::new()).await?;
        }
        let departed = self.ask(&[]).await?.moves.departed;
        Ok((departed == arrived).then_some(left))
    }

    /// Those that no group refers to, and how many files had arrived.
    async fn not_needed(&self, garbage_of: Option<GroupId>, mut blobs: Vec<BlobId>) -> Result<(Vec<BlobId>, u64)> {
        let answers = self.ask(&blobs).await?;
        // A stray that is garbage of a group is collected from there, in its time.
        blobs.retain(|blob| !answers.used.contains(blob) && (garbage_of.is_some() || !answers.garbage.contains(blob)));
        Ok((blobs, answers.moves.arrived))
    }

    async fn ask(&self, blobs: &[BlobId]) -> Result<Answers> {
        let mut answers = Answers::default();
        for &group in &self.all {
            let question = ReadOp::BlobsInUse { blobs: blobs.to_vec() };
            match self.client.query(group, question).await.map_err(client::client_failure)? {
                Ok(ReadAnswer::BlobsInUse { used, garbage, moves }) => {
                    answers.used.extend(used);
                    answers.garbage.extend(garbage);
                    answers.moves.departed += moves.departed;
                    answers.moves.arrived += moves.arrived;
                }
                other => return Err(Failure::new(Exit::Failed, format!("group {group} answered {other:?}"))),
            }
        }
        Ok(answers)
    }

    async fn log(&self, home: GroupId, blobs: Vec<BlobId>) -> Result {
        match self.client.update(FsOp::Collected { home, blobs }).await.map_err(client::client_failure)? {
            Ok(_) => Ok(()),
            Err(error) => Err(Failure::new(Exit::Failed, format!("group {home} answered {error:?}"))),
        }
    }
}

/// Looks through a region's bucket, over and over, at a bounded rate; goes on where it was after a restart.
pub struct Sweep {
    deleter: Arc<Deleter>,
    region: Region,
    rate: u32,
    age: Duration,
    /// Holds the next shard's number.
    progress: PathBuf,
}

impl Sweep {
    /// One node of each region does it: the first in the configuration. `None` for the others, or if it is turned off.
    pub fn of(cluster: &Cluster, node: &Node, deleter: &Arc<Deleter>, data: &std::path::Path) -> Option<Sweep> {
        let first = cluster.nodes.iter().find(|other| other.region == node.region)?;
        (first.name == node.name && cluster.limits.sweep_rate > 0).then(|| Sweep {
            deleter: deleter.clone(),
            region: Region(cluster.region_number(&node.region)),
            rate: cluster.limits.sweep_rate,
            age: cluster.timeouts.stray,
            progress: data.join("sweep"),
        })
    }

    /// Until the runtime ends.
    pub async fn run(self) {
        loop {
            let from = fs::read_to_string(&self.progress).ok().and_then(|text| text.trim().parse().ok());
            for shard in from.filter(|shard| *shard < SHARDS).unwrap_or(0)..SHARDS {
                while let Err(failure) = self.sweep_shard(shard as u8).await {
                    tracing::info!(shard, why = failure.message(), "sweeping the bucket is put off");
                    tokio::time::sleep(SWEEP_PAUSE).await;
                }
                if let Err(error) = fs::write(&self.progress, (shard + 1).to_string()) {
                    tracing::warn!(%error, "how far the bucket was swept is not noted");
                }
            }
            if let Err(error) = fs::write(&self.progress, "0") {
                tracing::warn!(%error, "how far the bucket was swept is not noted");
            }
            tokio::time::sleep(SWEEP_PAUSE).await;
        }
    }

    async fn sweep_shard(&self, shard: u8) -> Result {
        let deleter = &self.deleter;
        let wan = node::wan(&deleter.cluster)?;
        let store = client::store_unchecked(&deleter.cluster, &deleter.wishes, wan)?;
        let mut listing = store.list(self.region, Some(shard));
        let (mut old, mut looked_at) = (Vec::new(), 0_u32);
        while let Some(listed) = listing.next().await {
            looked_at += 1;
            match listed.map_err(|error| Failure::new(Exit::Failed, error.to_string()))? {
                Listed::Blob { id, modified, .. } if self.is_old(modified) => {
                    old.push(BlobId { origin: id.origin.0, writer: id.writer, sequence: id.sequence });
                }
                Listed::Blob { .. } => {}
                Listed::Foreign { path } => tracing::debug!(path, "no blob"),
            }
            if old.len() == SWEEP_BATCH {
                self.delete(std::mem::take(&mut old)).await?;
            }
            if looked_at.is_multiple_of(SWEEP_BATCH as u32) {
                tokio::time::sleep(Duration::from_secs(1) * SWEEP_BATCH as u32 / self.rate).await;
            }
        }
        self.delete(old).await?;
        // At least one request was made, also if there was nothing.
        let rest = (looked_at % SWEEP_BATCH as u32).max(1);
        tokio::time::sleep(Duration::from_secs(1) * rest / self.rate).await;
        Ok(())
    }

    fn is_old(&self, modified: SystemTime) -> bool {
        modified.elapsed().is_ok_and(|age| age >= self.age)
    }

    async fn delete(&self, blobs: Vec<BlobId>) -> Result {
        if blobs.is_empty() {
            return Ok(());
        }
        let Outcome { gone, problem, .. } = self.deleter.delete_free(None, &blobs).await?;
        if !gone.is_empty() {
            self.deleter.strays.fetch_add(gone.len() as u64, Ordering::Relaxed);
            tracing::info!(count = gone.len(), "blobs deleted that nothing ever referred to");
        }
        problem.map_or(Ok(()), |problem| Err(Failure::new(Exit::Failed, problem)))
    }
}
