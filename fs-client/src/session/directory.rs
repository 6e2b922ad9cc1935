//! Who belongs to the groups, and where their nodes are: the configuration says where to begin to ask, the nodes say what has
//! become of that.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use metadata::operate::{Directory, GroupMembers, NodeAddress};
use metadata::protocol::{Reply, Request};
use multicast::ids::{GroupId, ReplicaId, VectorClock};
use net::Endpoint;
use parking_lot::RwLock;

use super::Engine;
use super::link::Link;
use super::route::Seen;
use super::shared::{Expect, Shared};
use crate::config::NodeInfo;
use crate::error::{Error, Result};

/// In doubt it is asked at once, but not more often than so.
const PAUSE: Duration = Duration::from_millis(500);
/// Without doubt so often.
const INTERVAL: Duration = Duration::from_secs(5);
/// A node has so long to answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// A learner that lacks more entries than that of what this client has seen is not read.
const LAG_MAX: u64 = 1000;
/// More nodes than that no cluster has.
const NODES_MAX: usize = 4096;

/// The ways to all nodes that are known.
pub struct Links {
    endpoint: Endpoint,
    shared: Arc<Shared>,
    links: RwLock<BTreeMap<ReplicaId, Arc<Link<Shared>>>>,
}

impl Links {
    /// To the nodes of the configuration. Must be called inside a tokio runtime.
    pub fn new(nodes: &[NodeInfo], endpoint: Endpoint, shared: Arc<Shared>) -> Links {
        let links = Links { endpoint, shared, links: RwLock::default() };
        nodes.iter().for_each(|node| links.add(node.clone()));
        links
    }

    pub fn get(&self, id: ReplicaId) -> Option<Arc<Link<Shared>>> {
        self.links.read().get(&id).cloned()
    }

    pub fn all(&self) -> Vec<Arc<Link<Shared>>> {
        self.links.read().values().cloned().collect()
    }

    fn add(&self, node: NodeInfo) {
        let mut links = self.links.write();
        if links.len() < NODES_MAX && !links.contains_key(&node.number) {
            let number = node.number;
            links.insert(number, Link::spawn(node, self.endpoint.clone(), self.shared.clone()));
        }
    }
}

impl Engine {
    /// Keeps up with who belongs to the groups.
    pub(super) fn spawn_directory(self: &Arc<Self>) {
        let (weak, shared) = (Arc::downgrade(self), self.shared.clone());
        tokio::spawn(async move {
            let mut interval = INTERVAL;
            loop {
                let in_doubt = tokio::time::timeout(interval, shared.doubt.notified()).await.is_ok();
                if !ask_around(&weak, in_doubt).await {
                    return;
                }
                tokio::time::sleep(PAUSE).await;
                let Some(engine) = weak.upgrade() else { return };
                // Nobody reads a voter that lags, near as it may be, until it is known to have caught up.
                interval = if engine.lagging().is_empty() { INTERVAL } else { PAUSE };
            }
        });
    }

    /// The nodes one is connected to that have a voter which lags.
    fn lagging(&self) -> BTreeSet<ReplicaId> {
        let lagging = self.shared.groups.values().flat_map(|group| group.route.lock().lagging());
        let is_connected = |id: &ReplicaId| self.links.get(*id).is_some_and(|link| link.generation().is_some());
        lagging.filter(is_connected).collect()
    }

    /// Who is to be asked: somebody; the learners nearby and the voters that lag, whether they are ready; in doubt all whom one is
    /// connected to, and every node there is if no voter of a group can be reached.
    fn informants(&self, in_doubt: bool) -> BTreeSet<ReplicaId> {
        let routes = || self.shared.groups.values().map(|group| group.route.lock());
        let mut asked: BTreeSet<ReplicaId> = routes().flat_map(|route| route.near_learners()).collect();
        let links = self.links.all();
        let connected = || links.iter().filter(|link| link.generation().is_some()).map(|link| link.node.number);
        asked.extend(self.lagging());
        if !in_doubt {
            asked.extend(connected().next());
            return asked;
        }
        let is_lost = routes().any(|route| route.voters().iter().all(|id| !self.may_be_up(*id)));
        match is_lost {
            true => asked.extend(links.iter().map(|link| link.node.number)),
            false => asked.extend(connected()),
        }
        asked
    }

    /// What a node says counts as far as it is newer than what is known. When it was asked, so much had been seen.
    pub(super) fn learn_directory(&self, from: ReplicaId, directory: &Directory, seen_before: &VectorClock) {
        for NodeAddress { number, name, region, address } in &directory.nodes {
            let (name, region, address) = (name.clone(), region.clone(), address.clone());
            self.links.add(NodeInfo { number: *number, name, region, address });
        }
        for GroupMembers { group, members, applied } in &directory.groups {
            let Some(known) = self.shared.groups.get(group) else { continue };
            let seen = |voter: bool| {
                let members = members.members.iter().filter(|member| member.is_voter() == voter);
                let ids = members.map(|member| member.replica).filter(|id| self.links.get(*id).is_some());
                ids.map(|id| Seen { id, local: self.is_in_region(id) }).collect::<Vec<_>>()
            };
            let is_news = known.route.lock().learn_members(members.version, seen(true), seen(false));
            if is_news {
                tracing::info!(%group, version = members.version, "the group has other members");
            }
            let is_lagging = known.route.lock().is_lagging(from);
            let needed = match is_lagging {
                // A read would have to wait there else, and that is how it came to be one of these.
                true => seen_before.index(*group).0,
                false => self.shared.progress.seen(*group).0.saturating_sub(LAG_MAX),
            };
            self.note_ready(*group, from, applied.is_some_and(|applied| applied.0 >= needed));
            let has_stream = known.stream.lock().asked.is_some();
            if has_stream {
                self.choose_stream(*group);
            }
        }
    }

    pub(super) fn note_ready(&self, group: GroupId, from: ReplicaId, is_ready: bool) {
        if let Some(known) = self.shared.groups.get(&group) {
            known.route.lock().note_ready(from, is_ready);
        }
    }

    /// A question to one node that it answers by itself.
    pub(super) async fn ask_node(&self, node: ReplicaId, request: Request) -> Result<Reply> {
        let until = Instant::now() + self.config.timeouts.attempt;
        let answer = self.link(node)?.call(request, Expect::Other, until).await;
        answer.map_err(|error| Error::Net(Arc::new(net::Error::Lost(error.to_string()))))
    }
}

/// False if there is nobody any more who wants to know.
async fn ask_around(weak: &Weak<Engine>, in_doubt: bool) -> bool {
    let Some(engine) = weak.upgrade() else { return false };
    let mut asking = Vec::new();
    let seen = engine.clock();
    for link in engine.informants(in_doubt).into_iter().filter_map(|id| engine.links.get(id)) {
        let (weak, seen) = (weak.clone(), seen.clone());
        asking.push(tokio::spawn(async move {
            let answer = link.call(Request::Members, Expect::Other, Instant::now() + PATIENCE).await;
            if let (Ok(Reply::Members(directory)), Some(engine)) = (answer, weak.upgrade()) {
                engine.learn_directory(link.node.number, &directory, &seen);
            }
        }));
    }
    drop(engine);
    for asked in asking {
        let _ = asked.await;
    }
    true
}
