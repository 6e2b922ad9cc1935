//! The replicas of a node: those that it begins with, and those that begin and end while it runs, as operators want it.
//!
//! What the power going off at any point leaves: [`Hosting`](crate::storage::hosting::Hosting) says which groups have a replica
//! here. Before a new one is written down there, all that an earlier one left is deleted; one that ends is struck out first, and
//! deleted then, or at the next start. Each new one has an incarnation of its own, so that it is never taken for an earlier one,
//! whose promises it does not know.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use metadata::operate::Refusal;
use multicast::Membership;
use multicast::ids::{GroupId, Incarnation};
use parking_lot::{Mutex, RwLock};
use replica::{ReplicaConfig, ReplicaCore};
use tokio::task::AbortHandle;

use crate::clock::Clock;
use crate::config::GroupInfo;
use crate::error::{Error, Result};
use crate::group::mailbox::{Input, Mailbox};
use crate::group::view::View;
use crate::group::{Driver, DriverParts};
use crate::node::{Shared, lease_ms};
use crate::recovery;
use crate::status::GroupStatus;
use crate::storage::hosting::Hosting;
use crate::storage::state::GroupState;

/// Entries applied in one write of the store: readers wait for no more than that.
const APPLY_BATCH_MAX: usize = 512;
/// A replica says within this time whether it may end.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(5);

/// One replica, seen from outside.
pub(crate) struct Group {
    pub id: GroupId,
    /// Which of the replicas that the node has had of the group.
    pub incarnation: Incarnation,
    pub mailbox: Arc<Mailbox>,
    pub view: Arc<View>,
    pub state: GroupState,
    thread: Mutex<Option<JoinHandle<()>>>,
    parked: Mutex<Option<AbortHandle>>,
}

/// All replicas that run.
#[derive(Default)]
pub(crate) struct Replicas(RwLock<BTreeMap<GroupId, Arc<Group>>>);

impl Replicas {
    pub fn get(&self, group: GroupId) -> Option<Arc<Group>> {
        self.0.read().get(&group).cloned()
    }

    pub fn all(&self) -> Vec<Arc<Group>> {
        self.0.read().values().cloned().collect()
    }
}

impl Group {
    pub fn report(&self) -> mpsc::Receiver<GroupStatus> {
        let (report, reported) = mpsc::channel();
        self.mailbox.push(Input::Report(Box::new(move |status| _ = report.send(status))));
        reported
    }

    /// Waits for the end of its thread, which has been told to stop.
    pub fn join(&self) {
        let thread = self.thread.lock().take();
        if let Some(thread) = thread {
            let _ = thread.join();
        }
        self.mailbox.close();
        if let Some(parked) = self.parked.lock().take() {
            parked.abort();
        }
    }
}

impl Shared {
    /// A replica from what is on disk; it does not run yet.
    pub(crate) fn open(&self, info: &GroupInfo, incarnation: Incarnation) -> Result<(Arc<Group>, Driver)> {
        let (config, limits) = (&self.config, &self.config.limits);
        let replica = recovery::open_replica(config, (info, incarnation), &self.state, &self.wal, self.clock)?;
        let view = Arc::new(View::new(info.id, replica.state.clone(), replica.front, limits, self.clock));
        let mailbox = Arc::new(Mailbox::new(info.id, limits.group_submissions_max, limits.group_message_bytes_max));
        let core = ReplicaConfig {
            group: info.id,
            session_lease_ms: lease_ms(config),
            batch_entries_max: APPLY_BATCH_MAX,
            digest_interval: limits.digest_interval,
        };
        let mut core = ReplicaCore::new(core, replica.core);
        if let Some(why) = replica.state.quarantined()? {
            tracing::error!(group = %info.id, why, "this replica's state is not its group's: it stays quarantined");
            core.restore_quarantine(why);
            view.close();
        }
        for (group, members) in self.router.members().all() {
            core.learn_members(self.clock.now(), group, members);
        }
        let parts = DriverParts {
            group: info.id,
            me: (config.number, incarnation),
            info: info.clone(),
            core,
            state: replica.state.clone(),
            view: view.clone(),
            mailbox: mailbox.clone(),
            wal: self.wal.clone(),
            router: self.router.clone(),
            leases: self.leases.clone(),
            copies: self.copy_way.clone(),
            clock: self.clock,
        };
        let group = Group {
            id: info.id,
            incarnation,
            mailbox,
            view,
            state: replica.state,
            thread: Mutex::default(),
            parked: Mutex::default(),
        };
        Ok((Arc::new(group), Driver::new(parts)))
    }

    /// Runs it, on a thread of its own.
    pub(crate) fn run(&self, group: Arc<Group>, driver: Driver) -> Result<()> {
        let (id, ending) = (group.id, self.ending.clone());
        let run = move || {
            // A panic is a broken invariant: the other replicas of this node may go on no more than this one.
            match catch_unwind(AssertUnwindSafe(|| driver.run())) {
                Ok(Ok(())) => {}
                Ok(Err(error)) => ending.fail(&error),
                Err(_) => ending.fail(&format!("the thread of group {id} panicked")),
            }
        };
        self.router.open(id, group.mailbox.clone());
        let thread = std::thread::Builder::new().name(format!("group-{}", id.0)).spawn(run);
        let thread = thread.map_err(|source| Error::Thread { what: "a replica's thread", source })?;
        *group.thread.lock() = Some(thread);
        let parked = self.copy_way.runtime.spawn(serve_parked(group.view.clone(), self.clock));
        *group.parked.lock() = Some(parked.abort_handle());
        self.replicas.0.write().insert(id, group);
        Ok(())
    }

    /// Begins a replica of a group, if there is none; its incarnation. It is nobody until the group takes it in.
    pub(crate) fn host(&self, group: GroupId) -> Result<Incarnation, Refusal> {
        let info = self.config.groups.iter().find(|info| info.id == group).ok_or(Refusal::UnknownGroup)?;
        let mut hosting = self.hosting.lock();
        if self.ending.is_set() {
            return Err(Refusal::Failed(Error::Stopping.to_string()));
        }
        if let Some(found) = self.replicas.get(group) {
            if !hosting.is_wanted(group) {
                hosting.begin(group, found.incarnation).map_err(failed)?;
            }
            return Ok(found.incarnation);
        }
        let incarnation = Incarnation(crate::random_u64().max(1));
        let mut begin = || {
            self.delete_left(group)?;
            hosting.begin(group, incarnation)?;
            self.state.add(group)?;
            let (group, driver) = self.open(info, incarnation)?;
            self.run(group, driver)
        };
        begin().map_err(failed)?;
        tracing::warn!(%group, %incarnation, "a replica is wanted here: it has begun");
        Ok(incarnation)
    }

    /// Ends the replica of a group and deletes its data, if it is no member.
    pub(crate) fn unhost(&self, group: GroupId, members: Membership) -> Result<(), Refusal> {
        self.end_replica(&mut self.hosting.lock(), group, members)
    }

    /// The same, unless somebody has wanted the replica since the disk was formatted: the group may be taking it in.
    pub(crate) fn unhost_unwanted(&self, group: GroupId, members: Membership) -> Result<(), Refusal> {
        let mut hosting = self.hosting.lock();
        if hosting.is_wanted(group) { Ok(()) } else { self.end_replica(&mut hosting, group, members) }
    }

    fn end_replica(&self, hosting: &mut Hosting, group: GroupId, members: Membership) -> Result<(), Refusal> {
        if self.ending.is_set() {
            return Err(Refusal::Failed(Error::Stopping.to_string()));
        }
        let Some(found) = self.replicas.get(group) else { return Ok(()) };
        // Who looks for them here later is sent on to these.
        self.router.learn_members(group, group, &members);
        let (reply, may_leave) = mpsc::channel();
        found.mailbox.push(Input::Leave { members, reply });
        match may_leave.recv_timeout(LEAVE_TIMEOUT) {
            Ok(true) => {}
            Ok(false) => return Err(Refusal::StillMember),
            Err(_) => return Err(Refusal::Failed("the replica does not answer".into())),
        }
        hosting.end(group).map_err(failed)?;
        self.replicas.0.write().remove(&group);
        self.router.close(group);
        found.view.close();
        found.mailbox.push(Input::Stop);
        found.join();
        // What fails from here on is made up for at the next start.
        self.delete_left(group).map_err(failed)?;
        tracing::warn!(%group, "no replica is wanted here any more: it has ended, its data are deleted");
        Ok(())
    }

    /// Deletes what a replica that has ended has left.
    fn delete_left(&self, group: GroupId) -> Result<()> {
        if !self.wal.end_group(group) {
            return Err(Error::Stopping);
        }
        self.state.remove(group)
    }
}

fn failed(error: Error) -> Refusal {
    Refusal::Failed(error.to_string())
}

async fn serve_parked(view: Arc<View>, clock: Clock) {
    loop {
        match view.serve_parked() {
            None => view.progress.notified().await,
            Some(deadline) => {
                let left = Duration::from_nanos(deadline.0.saturating_sub(clock.now().0));
                let _ = tokio::time::timeout(left, view.progress.notified()).await;
            }
        }
    }
}
