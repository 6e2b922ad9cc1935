//! Three nodes, four groups with a voter on each.

use std::collections::BTreeMap;
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use metadata::namespace::Genesis;
use metadata::types::TimeNs;
use multicast::ids::{GroupId, ReplicaId};
use net::{ClusterCa, EndpointConfig, Identity, Role};
use parking_lot::{MappedMutexGuard, Mutex, MutexGuard};
use partition_replica::{FirstStart, GroupInfo, GroupStatus, Limits, Node, NodeConfig, NodeInfo, Timeouts};

pub const GROUPS: u16 = 4;
pub const SOON: Duration = Duration::from_secs(30);

pub struct Cluster {
    pub ca: ClusterCa,
    folder: tempfile::TempDir,
    nodes: Mutex<BTreeMap<u32, Node>>,
    infos: Vec<NodeInfo>,
    identities: BTreeMap<u32, Identity>,
    groups: Vec<GroupInfo>,
    pub timeouts: Timeouts,
    pub limits: Limits,
}

impl Cluster {
    /// All nodes running, every group with a primary.
    pub fn start() -> Cluster {
        Cluster::start_with(Timeouts { election: Duration::from_millis(1000), ..Timeouts::default() })
    }

    pub fn start_with(timeouts: Timeouts) -> Cluster {
        let limits = Limits { state_memory_bytes: 16 << 20, log_segment_bytes: 24 << 20, ..Limits::default() };
        Cluster::start_limited(timeouts, limits)
    }

    pub fn start_limited(timeouts: Timeouts, limits: Limits) -> Cluster {
        Cluster::start_with_spares(timeouts, limits, 0)
    }

    /// With so many nodes more, which host nothing.
    pub fn start_with_spares(timeouts: Timeouts, limits: Limits, spares: u32) -> Cluster {
        let cluster = Cluster::stopped(timeouts, limits, spares);
        let started = Instant::now();
        for node in 1..=3 + spares {
            cluster.start_node(node);
            println!("node {node} started after {:?}", started.elapsed());
        }
        cluster.wait_for_primaries();
        println!("primaries after {:?}", started.elapsed());
        cluster
    }

    fn stopped(timeouts: Timeouts, limits: Limits, spares: u32) -> Cluster {
        let ca = ClusterCa::create("test").unwrap();
        // Ports are free as long as the sockets that found them are the only ones to use them.
        let sockets: Vec<UdpSocket> = (0..3 + spares).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
        let info = |number: u32| NodeInfo {
            number: ReplicaId(number),
            name: format!("node-{number}"),
            address: sockets[number as usize - 1].local_addr().unwrap().to_string(),
            region: format!("region-{number}"),
        };
        let infos: Vec<NodeInfo> = (1..=3 + spares).map(info).collect();
        let identities = (1..=3 + spares).map(|n| (n, ca.issue(Role::Node, &format!("node-{n}")).unwrap())).collect();
        let group = |id: u16| GroupInfo {
            id: GroupId(id),
            name: format!("group-{id}"),
            // Primaries are spread over the nodes.
            voters: (0..3).map(|voter| ReplicaId(1 + (u32::from(id) + voter) % 3)).collect(),
        };
        let groups = (0..GROUPS).map(group).collect();
        let folder = tempfile::tempdir().unwrap();
        Cluster { ca, folder, nodes: Mutex::default(), infos, identities, groups, timeouts, limits }
    }

    pub fn config(&self, node: u32) -> NodeConfig {
        let address: SocketAddr = self.infos[node as usize - 1].address.parse().unwrap();
        NodeConfig {
            number: ReplicaId(node),
            data_dir: self.folder.path().join(format!("node-{node}")),
            first_start: FirstStart::Founding,
            listen: address,
            cluster_id: "test-cluster".into(),
            nodes: self.infos.clone(),
            groups: self.groups.clone(),
            genesis: Genesis { inline_bytes_max: 4096, uid: 0, gid: 0, mode: 0o755, time: TimeNs(1) },
            identity: self.identities[&node].clone(),
            wan: None,
            limits: self.limits.clone(),
            timeouts: self.timeouts.clone(),
        }
    }

    pub fn start_node(&self, node: u32) {
        self.start_configured(node, self.config(node));
    }

    pub fn start_configured(&self, node: u32, config: NodeConfig) {
        let deadline = Instant::now() + SOON;
        let started = loop {
            match Node::start(config.clone()) {
                Ok(started) => break started,
                // The socket of the one before lingers a moment.
                Err(partition_replica::Error::Net(_)) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                Err(error) => panic!("node {node}: {error}"),
            }
        };
        self.nodes.lock().insert(node, started);
    }

    /// As `kill -9` does, as far as one process can tell.
    pub fn crash(&self, node: u32) {
        let node = self.nodes.lock().remove(&node).unwrap();
        drop(node);
    }

    pub fn shut_down(&self, node: u32) {
        let started = Instant::now();
        let node = self.nodes.lock().remove(&node).unwrap();
        node.shutdown();
        assert!(started.elapsed() < Duration::from_secs(3), "took {:?}", started.elapsed());
        println!("shut down in {:?}", started.elapsed());
    }

    pub fn node(&self, node: u32) -> MappedMutexGuard<'_, Node> {
        MutexGuard::map(self.nodes.lock(), |nodes| nodes.get_mut(&node).unwrap())
    }

    pub fn address(&self, node: ReplicaId) -> SocketAddr {
        self.infos[node.0 as usize - 1].address.parse().unwrap()
    }

    pub fn voters(&self, group: GroupId) -> Vec<ReplicaId> {
        self.groups[usize::from(group.0)].voters.clone()
    }

    /// The founding voters, then all others.
    pub fn nodes_to_ask(&self, group: GroupId) -> Vec<ReplicaId> {
        let mut nodes = self.voters(group);
        nodes.extend(self.infos.iter().map(|info| info.number).filter(|number| number.0 > 3));
        nodes
    }

    pub fn client_endpoint(&self, name: &str) -> EndpointConfig {
        let identity = self.ca.issue(Role::Client, name).unwrap();
        EndpointConfig { bind: "127.0.0.1:0".parse().unwrap(), ..EndpointConfig::client(identity) }
    }

    /// Each running node's view of a group.
    pub fn statuses(&self, group: GroupId) -> BTreeMap<u32, GroupStatus> {
        let status = |(&number, node): (&u32, &Node)| {
            let found = node.status().groups.into_iter().find(|status| status.group == group.0);
            found.map(|status| (number, status))
        };
        self.nodes.lock().iter().filter_map(status).collect()
    }

    pub fn primary(&self, group: GroupId) -> Option<ReplicaId> {
        let statuses = self.statuses(group);
        statuses.iter().find(|(_, status)| status.role == "primary").map(|(&node, _)| ReplicaId(node))
    }

    pub fn wait_for_primaries(&self) {
        wait_until("every group has a primary", || (0..GROUPS).all(|group| self.primary(GroupId(group)).is_some()));
    }

    /// All running voters have applied everything and are equal.
    pub fn check_digests(&self) {
        for group in (0..GROUPS).map(GroupId) {
            let mut seen = String::new();
            wait_until("voters are equal", || {
                let statuses = self.statuses(group);
                seen = format!("{statuses:#?}");
                let last = statuses.values().map(|status| status.last_index).max();
                statuses.len() == self.nodes.lock().len()
                    && statuses.values().all(|status| Some(status.applied_index) == last)
            });
            let digests: Vec<_> = self.statuses(group).into_values().collect();
            for pair in digests.windows(2) {
                if pair[0].applied_index == pair[1].applied_index {
                    assert_eq!(pair[0].digest, pair[1].digest, "group {group}: {seen}");
                }
                for (index, digest) in &pair[0].digests {
                    assert!(pair[1].digests.get(index).is_none_or(|other| other == digest), "group {group} at {index}");
                }
            }
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let started = Instant::now();
        self.nodes.lock().clear();
        println!("crashed in {:?}", started.elapsed());
    }
}

pub fn wait_until(what: &str, mut true_now: impl FnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !true_now() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
