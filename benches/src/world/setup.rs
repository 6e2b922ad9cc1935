//! Builds the cluster: machines, nodes, groups, mounts, and the directories in which applications work.

use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};

use bytes::Bytes;
use metadata::op::{FsOp, NewNode};
use metadata::types::NodeRef;
use multicast::ids::{GroupId, Incarnation, ReplicaId};
use multicast::{ChangeRefused, Config, MemberChange, Timing};

use super::cpu::Machines;
use super::member::Member;
use super::mount::{Client, Doing, Leaves, Mount, Step, root};
use super::{EPOCH_NS, Event, HOUSEKEEP_NS, MS, MemberThread, Node, World};
use crate::costs::Calibration;
use crate::distances::Distances;
use crate::error::{Error, Result};
use crate::random::Random;
use crate::spec::{Fault, Op, Ordering, Point, Scope};
use crate::stats::Recorder;

/// Between two tries to have a learner taken in.
const LEARN_NS: u64 = 100 * MS;
/// Threads of a mount that serve the kernel.
const FUSE_THREADS: usize = 2;
/// Regions with a voter of the global group, at most.
const GLOBAL_VOTERS_MAX: usize = 5;

/// Directories to make, one after the other, before applications begin.
#[derive(Default)]
pub struct Script {
    left: VecDeque<(Option<usize>, usize, GroupId)>,
    /// Each region's subtree.
    subtrees: Vec<NodeRef>,
    now: Option<(Option<usize>, usize, GroupId)>,
}

type Voters = BTreeMap<GroupId, Vec<ReplicaId>>;

fn node_id(region: usize, at: usize) -> ReplicaId {
    ReplicaId((region * 10 + at + 1) as u32)
}

/// As `globalfs init` has it: a group per region on its own nodes, and a global one with a voter in as many regions as make
/// an odd number up to five.
fn voters(point: &Point) -> Voters {
    let mut groups = Voters::new();
    let regions = point.regions.min(GLOBAL_VOTERS_MAX);
    let mut global: Vec<ReplicaId> = (0..regions).map(|region| node_id(region, 0)).collect();
    if global.len().is_multiple_of(2) {
        match point.voters {
            1 => drop(global.pop()),
            _ => global.push(node_id(0, 1)),
        }
    }
    groups.insert(GroupId::GLOBAL, global);
    for region in 0..point.regions {
        let own = (0..point.voters).map(|at| node_id(region, at)).collect();
        groups.insert(group_of(region), own);
    }
    groups
}

/// Who follows a group without being asked to agree: for far readers, the node of their region that leads nothing.
fn learners(point: &Point) -> Voters {
    let far = (point.far_readers > 0).then(|| (group_of(0), vec![node_id(point.regions - 1, point.voters - 1)]));
    far.into_iter().collect()
}

/// The disk of a replica that is added later.
const ADDED: Incarnation = Incarnation(1);

/// The group of a region's subtree.
pub(super) fn group_of(region: usize) -> GroupId {
    GroupId(region as u16 + 1)
}

impl<'a> World<'a> {
    pub(super) fn new(point: &'a Point, costs: &'a Calibration, seed: u64) -> Result<World<'a>> {
        if point.ordering == Ordering::DeterministicMerge {
            return Err(Error::Invalid("the deterministic merge is a model of its own".into()));
        }
        let with_timeline = point.fault != Fault::None;
        let mut world = World {
            point,
            costs,
            distances: Distances::load(&point.rtt, point.regions)?,
            now: 0,
            queue: BinaryHeap::new(),
            scheduled: 0,
            random: Random::new(seed, 1),
            // Only the machine that costs are measured on is known to pack: it is what a cluster on one machine is compared on.
            machines: Machines::new(if point.one_machine { costs.machine.packs } else { 0.0 }),
            waker: None,
            nodes: Vec::new(),
            disks: Vec::new(),
            node_of: BTreeMap::new(),
            members: Vec::new(),
            member_at: Vec::new(),
            member_of: BTreeMap::new(),
            threads: Vec::new(),
            groups: voters(point),
            learners: learners(point),
            left_to_add: learners(point),
            emulation: None,
            mounts: Vec::new(),
            clients: Vec::new(),
            locks: BTreeMap::new(),
            dirs: BTreeMap::new(),
            script: Script::default(),
            sent_until: BTreeMap::new(),
            runs: BTreeMap::new(),
            arrived: BTreeMap::new(),
            cut: None,
            stopped: vec![false; point.regions],
            down_since: 0,
            recorder: Recorder::new(point.regions, with_timeline),
            failure: None,
            tokens: VecDeque::new(),
            token: 0,
            finished: false,
        };
        let shared = point.one_machine.then(|| world.machines.add_machine(costs.machine.cpus));
        world.emulation = shared.map(|machine| world.machines.add_thread(machine));
        world.add_nodes(shared, seed)?;
        world.add_mounts(shared, seed);
        world.begin_script();
        Ok(world)
    }

    fn machine(&mut self, shared: Option<usize>) -> usize {
        shared.unwrap_or_else(|| self.machines.add_machine(self.costs.machine.cpus))
    }

    fn add_nodes(&mut self, shared: Option<usize>, seed: u64) -> Result<()> {
        let groups = self.groups.clone();
        for region in 0..self.point.regions {
            for at in 0..self.point.voters {
                let machine = self.machine(shared);
                let (net, log) = (self.machines.add_thread(machine), self.machines.add_thread(machine));
                let (id, number) = (node_id(region, at), self.nodes.len());
                let disk = if shared.is_some() { 0 } else { number };
                self.disks.resize(disk + 1, 0);
                let mut members = Vec::new();
                let learners = self.learners.clone();
                let hosts = |group: &GroupId, members: &Voters| members.get(group).is_some_and(|all| all.contains(&id));
                for &group in groups.keys().filter(|group| hosts(group, &groups) || hosts(group, &learners)) {
                    let member = self.members.len();
                    let mut config = Config::new(group, id, groups.clone());
                    if hosts(&group, &learners) {
                        config.incarnation = ADDED;
                    }
                    config.seed = Random::new(seed, 1_000 + member as u64).draw();
                    config.classic = self.point.ordering == Ordering::Classic;
                    // As nodes have it by default.
                    (config.timing.election_timeout_ms, config.timing.heartbeat_ms) = (600, 120);
                    // The preferred primary takes over at once, else experiments begin with chance's choice.
                    config.timing.return_ms = 500;
                    self.members.push(Member::new(multicast::Time(EPOCH_NS), config)?);
                    let thread = self.machines.add_thread(machine);
                    self.member_at.push((number, thread));
                    self.member_of.insert((group, id), member);
                    self.threads.push(MemberThread::default());
                    members.push(member);
                }
                self.node_of.insert(id, number);
                self.nodes.push(Node {
                    id,
                    region,
                    up: true,
                    net,
                    log,
                    members,
                    unflushed: Vec::new(),
                    flushing: Vec::new(),
                    is_logging: false,
                    disk,
                    flushed: 0,
                    burst: BTreeSet::new(),
                });
            }
        }
        for member in self.nodes.iter().flat_map(|node| node.members.clone()).collect::<Vec<_>>() {
            self.rest(member);
        }
        Ok(())
    }

    /// The first mount only makes directories.
    fn add_mounts(&mut self, shared: Option<usize>, seed: u64) {
        let total = self.point.regions * self.point.mounts + usize::from(self.point.far_readers > 0);
        for number in 0..=total {
            let machine = self.machine(shared);
            let net = self.machines.add_thread(machine);
            let far = number > self.point.regions * self.point.mounts;
            let region = match number {
                0 => 0,
                _ if far => self.point.regions - 1,
                _ => (number - 1) / self.point.mounts,
            };
            let mut mount = Mount::new(number, region, net);
            mount.primaries = self.groups.iter().map(|(&group, voters)| (group, voters[0])).collect();
            self.mounts.push(mount);
            let fuse: Vec<_> = (0..FUSE_THREADS).map(|_| self.machines.add_thread(machine)).collect();
            let count = match number {
                0 => 1,
                _ if far => self.point.far_readers,
                _ => {
                    let at = (number - 1) % self.point.mounts;
                    (self.point.clients + self.point.mounts - 1 - at) / self.point.mounts
                }
            };
            for at in 0..count {
                let client = self.clients.len();
                let random = Random::new(seed, 1_000_000 + client as u64);
                let mut client = Client::new(client, number, fuse[at % FUSE_THREADS], random);
                client.far_reader = far;
                client.in_one_folder = self.point.one_folder;
                self.clients.push(client);
            }
        }
    }

    fn begin_script(&mut self) {
        let regions = self.point.regions;
        self.script.left.extend((0..regions).map(|region| (None, region, group_of(region))));
        for asks in 0..regions {
            self.script.left.extend((0..regions).map(|region| (Some(asks), region, group_of(region))));
            self.script.left.push_back((Some(asks), 0, GroupId::GLOBAL));
        }
        // Groups need their primaries first.
        self.after(2_000 * MS, Event::Begin(0));
    }

    /// Has the next learner taken in; false once there is none left.
    fn add_learner(&mut self) -> Result<bool> {
        let Some((&group, _)) = self.left_to_add.first_key_value() else { return Ok(false) };
        let Some(&replica) = self.left_to_add.get(&group).and_then(|left| left.last()) else {
            self.left_to_add.remove(&group);
            return Ok(true);
        };
        let time = self.time();
        let found = self.members.iter().position(|member| member.group == group && member.ordering().is_ready());
        let Some(primary) = found else { return Ok(true) };
        let change = MemberChange::AddLearner { replica, incarnation: ADDED };
        match self.members[primary].core.change_membership(time, change) {
            Ok(_) => drop(self.left_to_add.get_mut(&group).and_then(Vec::pop)),
            // Soon.
            Err(ChangeRefused::NotReady | ChangeRefused::UnderWay) => {}
            Err(refused) => return Err(Error::Broken(refused.to_string())),
        }
        self.wake(primary);
        Ok(true)
    }

    /// The next directory; when all are there applications begin.
    pub(super) fn next_dir(&mut self) {
        match self.add_learner() {
            Ok(false) => {}
            Ok(true) => return self.after(LEARN_NS, Event::Begin(0)),
            Err(error) => return self.broke(error),
        }
        let Some(next) = self.script.left.pop_front() else { return self.begin_all() };
        self.script.now = Some(next);
        let (asks, region, group) = next;
        let (parent, placement, name) = match asks {
            None => (root(), Some(group), format!("region-{region}")),
            Some(asks) if group == GroupId::GLOBAL => (root(), None, format!("shared-{asks}")),
            Some(asks) => (self.script.subtrees[region], None, format!("of-{asks}")),
        };
        let name = Bytes::from(name);
        let node = NewNode::Directory { placement };
        let op = FsOp::Create { parent, name, node, mode: 0o755, uid: 0, gid: 0, home: group };
        let doing = Doing {
            op: Op::Mkdir,
            scope: Scope::Global,
            steps: [Step::Update(op)].into(),
            since: self.now,
            prepares: true,
            command: None,
            leaves: Leaves::Nothing,
            told: None,
            late: 0,
            was_locked_out: false,
        };
        self.clients[0].doing = Some(doing);
        self.ask(0);
    }

    /// A directory is there.
    pub(super) fn made_dir(&mut self, made: Option<NodeRef>) {
        let Some((asks, _, group)) = self.script.now.take() else { return };
        let Some(node) = made else { return self.broke(Error::Broken("a directory was not made".into())) };
        match asks {
            None => self.script.subtrees.push(node),
            Some(asks) => drop(self.dirs.insert((asks, group), node)),
        }
        self.next_dir();
    }

    fn begin_all(&mut self) {
        // Not before: who follows from the log's beginning must find it.
        self.after(HOUSEKEEP_NS, Event::Housekeep);
        // Beyond the time after which the preferred primaries are back, and so long after the directories were made that no
        // group tells others of its progress only because one mount has asked all of them in turn.
        let quiet = 1_000 * MS + Timing::default().subscription_ms * MS;
        let spread = 20 * MS;
        for client in 1..self.clients.len() {
            let delay = quiet + self.random.below(spread);
            self.after(delay, Event::Begin(client));
        }
        self.after(quiet + spread + self.point.warmup_ms * MS, Event::Measure);
    }
}
