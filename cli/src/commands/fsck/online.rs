//! A cluster that runs. Its groups are read at different moments while they go on, so what seems wrong is looked at again, and
//! only what stays wrong is said; unless all that was read is of one moment, when there is no doubt.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use fs_client::Client;
use futures::future::join_all;
use indicatif::{ProgressBar, ProgressStyle};
use metadata::check::About;
use metadata::types::BlobId;
use multicast::ids::GroupId;
use net::Endpoint;
use partition_replica::inspect::{self, Standing};
use partition_replica::status::{GroupStatus, NodeStatus};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use super::look::Look;
use super::report::{Looked, Problem, Report};
use super::{FsckArgs, buckets};
use crate::commands::client::{self, Wishes};
use crate::commands::collect::Deleter;
use crate::commands::{place, service};
use crate::config::{Cluster, Node};
use crate::exit::{Exit, Failure, Result};
use crate::units::{ByteSize, TimeSpan};

/// Looks at most.
const LOOKS_MAX: u32 = 5;
/// Between two looks.
const PAUSE: Duration = Duration::from_secs(2);
/// Replicas of one node that are looked through at once: fewer than it allows.
const AT_ONCE: usize = 2;
/// Blobs deleted together.
const DELETE_BATCH: usize = 256;

/// Looks at a running cluster.
pub fn run(cluster: &Cluster, region: Option<&str>, args: &FsckArgs) -> Result<Report> {
    // Who looks after a cluster sees it as it is: an emulated cut does not hide nodes.
    let wishes = Wishes { emulated: false, ..Wishes::tool(cluster, region, args.timeout.0)? };
    let runtime = service::runtime()?;
    let mut report = Report { online: true, ..Report::default() };
    let handle = runtime.handle().clone();
    runtime.block_on(place::with_client(cluster, &wishes, async |client| {
        let check = Check { cluster, wishes: &wishes, args, client };
        check.run(&mut report).await?;
        check.repair(&mut report, handle).await?;
        Ok(Exit::Done)
    }))?;
    Ok(report)
}

pub(super) struct Check<'a> {
    pub(super) cluster: &'a Cluster,
    wishes: &'a Wishes,
    pub(super) args: &'a FsckArgs,
    pub(super) client: &'a Client,
}

/// A replica to be looked through.
struct Job<'a> {
    group: GroupId,
    node: &'a Node,
    facts: bool,
    turns: Arc<Semaphore>,
}

impl Check<'_> {
    async fn run(&self, report: &mut Report) -> Result<()> {
        let (statuses, silent) = self.statuses().await;
        report.missing.extend(silent);
        if statuses.is_empty() {
            return Err(Failure::new(Exit::Unavailable, "no node answers"));
        }
        self.judge(&statuses, report);
        let (mut certain, mut looked) = self.look(&statuses, report).await?;
        report.looks = 1;
        while !certain && !looked.found.is_empty() && report.looks < LOOKS_MAX {
            tokio::time::sleep(PAUSE).await;
            let again;
            // What cannot be looked at now has been said of the first look.
            (certain, again) = self.look(&statuses, &mut Report::default()).await?;
            looked = still_wrong(&looked, again);
            report.looks += 1;
        }
        report.problems.extend(looked.found.into_iter().map(|(_, problem)| problem));
        for bucket in looked.buckets.iter().filter(|bucket| !bucket.orphans.is_empty()) {
            let (count, size, stray) =
                (bucket.orphans.len(), ByteSize(bucket.orphan_bytes), self.cluster.timeouts.stray);
            let what = format!(
                "{count} blobs ({size}) in the bucket of region {} that nothing refers to, older than {}",
                bucket.region,
                TimeSpan(stray)
            );
            report.problems.push(Problem::new(what));
        }
        for bucket in looked.buckets.iter().filter(|bucket| bucket.undecided > 0) {
            let (count, region) = (bucket.undecided, &bucket.region);
            report.notes.push(format!(
                "bucket of {region}: {count} blobs that nothing refers to, too new to tell whether something will"
            ));
        }
        (report.groups, report.buckets) = (looked.groups, looked.buckets);
        Ok(())
    }

    /// What the nodes say of themselves, and which say nothing, and why.
    pub(super) async fn statuses(&self) -> (BTreeMap<u32, NodeStatus>, Vec<String>) {
        let (mut statuses, mut silent) = (BTreeMap::new(), Vec::new());
        let ask = |node: &Node| {
            let (client, id) = (self.client.clone(), node.id);
            async move { tokio::time::timeout(self.args.timeout.0, client.node_status(id)).await }
        };
        let answers = join_all(self.cluster.nodes.iter().map(ask)).await;
        for (node, answer) in self.cluster.nodes.iter().zip(answers) {
            let answer =
                answer.map_err(|_| "no answer".to_owned()).and_then(|answer| answer.map_err(|e| e.to_string()));
            match answer.and_then(|json| serde_json::from_slice(&json).map_err(|error| error.to_string())) {
                Ok(status) => drop(statuses.insert(node.id.0, status)),
                Err(why) => silent.push(format!("node {}: {why}", node.name)),
            }
        }
        (statuses, silent)
    }

    /// What the nodes say themselves.
    fn judge(&self, statuses: &BTreeMap<u32, NodeStatus>, report: &mut Report) {
        let patience = u64::try_from(self.args.patience.0.as_millis()).unwrap_or(u64::MAX);
        for group in &self.cluster.groups {
            let replicas = || replicas(statuses, group.id);
            let mut digests: BTreeMap<u64, BTreeMap<&str, Vec<&str>>> = BTreeMap::new();
            for (node, replica) in replicas() {
                if let Some(why) = &replica.quarantine {
                    let what = format!("the replica of {} is quarantined: {why}", node.name);
                    report.problems.push(Problem::of(&group.name, what));
                    continue;
                }
                let now = (replica.applied_index, &replica.digest);
                for (index, digest) in replica.digests.iter().map(|(index, digest)| (*index, digest)).chain([now]) {
                    let at = digests.entry(index).or_default().entry(digest.as_str()).or_default();
                    if !at.contains(&node.name.as_str()) {
                        at.push(&node.name);
                    }
                }
            }
            if let Some((index, differ)) = digests.into_iter().find(|(_, at)| at.len() > 1) {
                let voters = replicas().map(|(_, replica)| replica.voters.len()).max().unwrap_or_default();
                let on = outvoted(differ.values(), voters);
                let sides: Vec<String> = differ.into_values().map(|nodes| nodes.join(", ")).collect();
                let what = format!("the states at index {index} differ: {}", sides.join(" from "));
                report.problems.push(Problem { on, ..Problem::of(&group.name, what) });
            }
            let unfinished: BTreeMap<&str, u64> = replicas()
                .flat_map(|(_, replica)| &replica.unfinished)
                .map(|unfinished| (unfinished.command.as_str(), unfinished.elapsed_ms))
                .collect();
            for (command, elapsed_ms) in unfinished.into_iter().filter(|(_, elapsed_ms)| *elapsed_ms >= patience) {
                let since = TimeSpan(Duration::from_secs(elapsed_ms / 1000));
                let what =
                    format!("command {command} is unfinished since {since}: `globalfs status` tells what it waits for");
                report.problems.push(Problem::of(&group.name, what));
            }
        }
    }

    /// One look at everything; true if it is of one moment.
    async fn look(&self, statuses: &BTreeMap<u32, NodeStatus>, report: &mut Report) -> Result<(bool, Looked)> {
        let (endpoint, _) = client::endpoint(self.cluster, self.wishes)?;
        let jobs = self.jobs(statuses, report);
        let bar = ProgressBar::new(0).with_style(
            ProgressStyle::with_template("{spinner} {pos}/~{len} rows {bar:30} {elapsed}")
                .unwrap_or_else(|_| ProgressStyle::default_bar()),
        );
        let look = Mutex::new(Look::new(self.cluster));
        let inspections = jobs.iter().map(|job| self.inspect(job, &endpoint, &look, &bar));
        for (job, done) in jobs.iter().zip(join_all(inspections).await) {
            let (node, group) = (&job.node.name, self.cluster.group_name(job.group));
            match done {
                Ok(()) => drop(report.inspected.insert((group, node.clone()))),
                Err(failure) if failure.is_damage => {
                    let what = format!(
                        "the replica of {node} cannot be read: {}; see \"A node whose disk is lost or damaged\" in docs/operations.md",
                        failure.why
                    );
                    report.problems.push(Problem::of(&group, what));
                }
                Err(failure) => report.missing.push(format!("the replica of group {group} on {node}: {}", failure.why)),
            }
        }
        bar.finish_and_clear();
        let mut look = look.into_inner().unwrap_or_else(PoisonError::into_inner);
        report.missing.extend(buckets::list(self.cluster, self.wishes, &mut look).await?);
        endpoint.close().await;
        let is_certain = look.is_of_one_moment();
        // The runtime has nothing else to do meanwhile.
        Ok((is_certain, look.conclude()?))
    }

    /// All replicas that can be asked; of each group one for the facts, preferably none that leads.
    fn jobs<'c>(&'c self, statuses: &BTreeMap<u32, NodeStatus>, report: &mut Report) -> Vec<Job<'c>> {
        let mut turns: BTreeMap<u32, Arc<Semaphore>> = BTreeMap::new();
        let mut jobs = Vec::new();
        for group in &self.cluster.groups {
            let sound: Vec<_> =
                replicas(statuses, group.id).filter(|(_, replica)| replica.quarantine.is_none()).collect();
            let newest = sound.iter().max_by_key(|(_, replica)| (replica.applied_index, replica.role != "primary"));
            let Some(newest) = newest.map(|(node, _)| node.node) else {
                report.missing.push(format!("group {}: none of its replicas can be asked", group.name));
                continue;
            };
            for (status, _) in sound {
                let Some(node) = self.cluster.nodes.iter().find(|node| node.id.0 == status.node) else { continue };
                let turns = turns.entry(status.node).or_insert_with(|| Arc::new(Semaphore::new(AT_ONCE))).clone();
                jobs.push(Job { group: group.id, node, facts: status.node == newest, turns });
            }
        }
        // Those with facts begin together.
        jobs.sort_by_key(|job| !job.facts);
        jobs
    }

    async fn inspect(
        &self,
        job: &Job<'_>,
        endpoint: &Endpoint,
        look: &Mutex<Look<'_>>,
        bar: &ProgressBar,
    ) -> std::result::Result<(), inspect::Failed> {
        let failed = |why: String| inspect::Failed { why, is_damage: false };
        let _turn = job.turns.acquire().await.map_err(|error| failed(error.to_string()))?;
        let address = job.node.resolve().map_err(|failure| failed(failure.message()))?;
        let connected = tokio::time::timeout(self.args.timeout.0, endpoint.connect(address, &job.node.name)).await;
        let connection =
            connected.map_err(|_| failed("no answer".into()))?.map_err(|error| failed(error.to_string()))?;
        let lock = || look.lock().unwrap_or_else(PoisonError::into_inner);
        let mut see = |seen| {
            if let metadata::check::Seen::Rows(rows) = seen {
                bar.inc(rows);
            }
            lock().see((job.group, &job.node.name), job.facts, seen)
        };
        let begin = |standing: &Standing| bar.inc_length(standing.rows);
        let standing = inspect::ask(&connection, (job.group, job.facts), &mut see, begin).await?;
        if job.facts {
            lock().took(job.group, &job.node.name, standing);
        }
        Ok(())
    }

    /// Mends what can be mended, or says that it could.
    async fn repair(&self, report: &mut Report, runtime: Handle) -> Result<()> {
        if !self.args.repair {
            return Ok(());
        }
        self.rebuild(report).await;
        let orphans: Vec<BlobId> = report.buckets.iter().flat_map(|bucket| bucket.orphans.clone()).collect();
        let with_orphans = report.buckets.iter().filter(|bucket| !bucket.orphans.is_empty()).count();
        let of_replicas = report.problems.iter().filter(|problem| !problem.on.is_empty()).count();
        if with_orphans + of_replicas < report.problems.len() {
            let others = "only blobs that nothing refers to, and replicas that differ from their groups, can be mended from here; \
                          docs/operations.md tells what to do about the rest";
            report.repairs.push(others.to_owned());
        }
        if !self.args.yes {
            report.repairs.push(format!("--repair --yes would delete {} blobs that nothing refers to", orphans.len()));
            return Ok(());
        }
        let deleter = Deleter::tool(self.cluster, self.wishes.clone(), runtime);
        let mut deleted = 0;
        for batch in orphans.chunks(DELETE_BATCH) {
            match deleter.delete_strays(batch).await {
                Ok((gone, problem)) => {
                    deleted += gone;
                    report.missing.extend(problem.map(|problem| format!("not all could be deleted: {problem}")));
                }
                Err(failure) => report.missing.push(format!("not all could be deleted: {}", failure.message())),
            }
        }
        report.repairs.push(format!("{deleted} blobs deleted that nothing referred to"));
        Ok(())
    }
}

/// The group's replicas that answered, with what their nodes say.
pub(super) fn replicas(
    statuses: &BTreeMap<u32, NodeStatus>,
    group: GroupId,
) -> impl Iterator<Item = (&NodeStatus, &GroupStatus)> {
    let of_node = move |status: &'_ NodeStatus| status.groups.iter().position(|replica| replica.group == group.0);
    statuses.values().filter_map(move |status| Some((status, &status.groups[of_node(status)?])))
}

/// Whose state is another than that of most voters. Without a majority nobody knows who is right.
fn outvoted<'a>(sides: impl Iterator<Item = &'a Vec<&'a str>> + Clone, voters: usize) -> Vec<String> {
    let has_majority = |side: &&Vec<&str>| side.len() > voters / 2;
    match sides.clone().any(|side| has_majority(&side)) {
        true => sides.filter(|side| !has_majority(side)).flatten().map(|node| (*node).to_owned()).collect(),
        false => Vec::new(),
    }
}

/// The later look, without what was not wrong in the earlier one.
fn still_wrong(before: &Looked, mut now: Looked) -> Looked {
    let known: BTreeSet<&(GroupId, About)> = before.found.iter().map(|(about, _)| about).collect();
    now.found.retain(|(about, _)| known.contains(about));
    now
}
