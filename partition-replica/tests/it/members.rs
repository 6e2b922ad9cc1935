//! Groups whose members change while they work, as operators want it.

use std::time::Duration;

use metadata::op::NewNode;
use metadata::operate::{OPERATOR, Operated, Operation, Refusal};
use metadata::protocol::{Reply, Request};
use metadata::read::{ReadAnswer, ReadOp};
use metadata::types::InodeId;
use multicast::ids::{GroupId, Incarnation, ReplicaId};
use multicast::{ChangeRefused, MemberChange, Membership};
use partition_replica::{FirstStart, GroupStatus, Limits, NodeConfig, Timeouts};

use crate::client::{Client, ROOT};
use crate::cluster::{Cluster, wait_until};
use crate::crashes::touch_root;

const GROUP: GroupId = GroupId::GLOBAL;

fn cluster(spares: u32) -> Cluster {
    let timeouts = Timeouts {
        election: Duration::from_millis(1000),
        state_flush: Duration::from_millis(300),
        ..Timeouts::default()
    };
    let limits = Limits { state_memory_bytes: 16 << 20, group_log_entries_max: 300, ..Limits::default() };
    Cluster::start_with_spares(timeouts, limits, spares)
}

struct Operator {
    client: Client,
    /// A primary that has just been elected may tell older ones than the one before it.
    newest: Option<Membership>,
}

impl Operator {
    fn new(cluster: &Cluster) -> Operator {
        Operator { client: Client::with_certificate(cluster, 999, OPERATOR), newest: None }
    }

    fn ask(&mut self, cluster: &Cluster, node: u32, operation: Operation) -> Operated {
        let request = Request::Operate(operation);
        // The first try may meet the end of a connection.
        let reply = self.client.ask(cluster, ReplicaId(node), request.clone());
        match reply.or_else(|| self.client.ask(cluster, ReplicaId(node), request)) {
            Some(Reply::Operated(done)) => done,
            other => panic!("{other:?}"),
        }
    }

    fn host(&mut self, cluster: &Cluster, node: u32) -> Incarnation {
        match self.ask(cluster, node, Operation::Host { group: GROUP }) {
            Operated::Hosted(incarnation) => incarnation,
            other => panic!("{other:?}"),
        }
    }

    fn unhost(&mut self, cluster: &Cluster, node: u32) -> Operated {
        let members = self.members(cluster);
        self.ask(cluster, node, Operation::Unhost { group: GROUP, members })
    }

    /// As primaries know them, committed.
    fn members(&mut self, cluster: &Cluster) -> Membership {
        let mut members = None;
        wait_until("the primary tells the members", || {
            let reply = cluster.primary(GROUP).and_then(|primary| self.client.ask(cluster, primary, Request::Members));
            if let Some(Reply::Members(directory)) = reply {
                members = directory.groups.into_iter().find(|found| found.group == GROUP);
            }
            members.is_some()
        });
        let told = members.unwrap().members;
        let newest = self.newest.take().filter(|newest| newest.version > told.version).unwrap_or(told);
        self.newest = Some(newest.clone());
        newest
    }

    /// Until it is committed.
    fn change(&mut self, cluster: &Cluster, change: MemberChange) {
        wait_until("the change is logged", || {
            let Some(primary) = cluster.primary(GROUP) else { return false };
            match self.ask(cluster, primary.0, Operation::Change { group: GROUP, change }) {
                Operated::Logged(_) | Operated::Refused(Refusal::Change(ChangeRefused::AlreadyThere(_))) => true,
                Operated::Refused(Refusal::Change(ChangeRefused::NotAMember(_))) => {
                    assert!(matches!(change, MemberChange::Remove { .. }));
                    true
                }
                Operated::Refused(Refusal::Change(_)) => false,
                other => panic!("{other:?}"),
            }
        });
    }

    fn add_voter(&mut self, cluster: &Cluster, node: u32) {
        let (replica, incarnation) = (ReplicaId(node), self.host(cluster, node));
        self.change(cluster, MemberChange::AddVoter { replica, incarnation });
        wait_until("it is a voter", || is_voter(cluster, node));
    }

    fn remove(&mut self, cluster: &Cluster, node: u32) {
        self.change(cluster, MemberChange::Remove { replica: ReplicaId(node) });
        wait_until("it is no member", || self.members(cluster).member(ReplicaId(node)).is_none());
    }
}

fn primary_status(cluster: &Cluster) -> Option<GroupStatus> {
    let primary = cluster.primary(GROUP)?;
    cluster.statuses(GROUP).remove(&primary.0)
}

fn is_voter(cluster: &Cluster, node: u32) -> bool {
    primary_status(cluster).is_some_and(|status| status.voters.contains(&node))
}

fn status(cluster: &Cluster, node: u32) -> Option<GroupStatus> {
    cluster.statuses(GROUP).remove(&node)
}

fn restart(cluster: &Cluster, node: u32) {
    cluster.crash(node);
    cluster.start_configured(node, NodeConfig { first_start: FirstStart::No, ..cluster.config(node) });
}

fn root_of(cluster: &Cluster, node: u32, client: &mut Client) -> Reply {
    let (session, clock) = (client.session, client.clock.clone());
    let op = ReadOp::GetAttr { ino: InodeId::ROOT };
    let request = Request::Read { group: GROUP, session, clock, linearizable: false, op };
    let mut reply = None;
    wait_until("the node answers", || {
        reply = client.ask(cluster, ReplicaId(node), request.clone());
        reply.is_some()
    });
    reply.unwrap()
}

/// All members that run have applied the same and are equal.
fn check_digests(cluster: &Cluster) {
    let mut seen = Vec::new();
    wait_until("members are equal", || {
        let statuses = cluster.statuses(GROUP);
        let last = statuses.values().map(|status| status.last_index).max();
        seen = statuses.values().map(|status| (status.applied_index, status.digest.clone())).collect();
        statuses.values().all(|status| Some(status.applied_index) == last)
    });
    assert!(seen.windows(2).all(|pair| pair[0] == pair[1]), "{seen:?}");
}

#[test]
fn replica_that_was_never_taken_in_shows_nothing_disturbs_nobody_and_may_go() {
    let cluster = cluster(1);
    let (mut operator, mut client) = (Operator::new(&cluster), Client::open(&cluster, 1));
    let incarnation = operator.host(&cluster, 4);
    assert_eq!(operator.host(&cluster, 4), incarnation, "asked again it is the same one");
    for _ in 0..2 {
        let reply = root_of(&cluster, 4, &mut client);
        assert!(matches!(reply, Reply::UnknownGroup { .. }), "{reply:?}");
        let ballot = primary_status(&cluster).unwrap().ballot_round;
        std::thread::sleep(3 * cluster.timeouts.election);
        assert_eq!(primary_status(&cluster).unwrap().ballot_round, ballot);
        let found = status(&cluster, 4).unwrap();
        assert_eq!((found.incarnation, found.last_index), (incarnation.to_string(), 0));
        // Written down: it begins again after the power was off.
        restart(&cluster, 4);
    }
    assert_eq!(operator.unhost(&cluster, 4), Operated::Unhosted);
    assert_eq!(operator.unhost(&cluster, 4), Operated::Unhosted);
    assert!(status(&cluster, 4).is_none());
    restart(&cluster, 4);
    assert!(status(&cluster, 4).is_none());
}

#[test]
fn learner_follows_by_log_or_copy_is_read_and_leaves_nothing_when_removed() {
    let cluster = cluster(1);
    let (mut operator, mut client) = (Operator::new(&cluster), Client::open(&cluster, 1));
    touch_root(&cluster, &mut client, 700);
    let primary = cluster.primary(GROUP).unwrap().0;
    wait_until("the log was cut", || status(&cluster, primary).unwrap().first_index > 300);
    let mut incarnations = Vec::new();
    for round in 0..2 {
        let (replica, incarnation) = (ReplicaId(4), operator.host(&cluster, 4));
        assert!(!incarnations.contains(&incarnation), "what has promised before is somebody else");
        incarnations.push(incarnation);
        operator.change(&cluster, MemberChange::AddLearner { replica, incarnation });
        wait_until("that is committed", || operator.members(&cluster).member(replica).is_some());
        let refused = operator.unhost(&cluster, 4);
        assert_eq!(refused, Operated::Refused(Refusal::StillMember));
        // Whatever the copy had come to.
        restart(&cluster, 4);
        let name = format!("file-{round}");
        let file = client.create(&cluster, ROOT, &name, NewNode::File, GROUP);
        wait_until("the learner shows it", || {
            matches!(root_of(&cluster, 4, &mut client), Reply::Read { result: Ok(ReadAnswer::Attr(_)), .. })
        });
        assert_eq!(client.lookup(&cluster, 4, ROOT, &name), Some(file));
        let members = primary_status(&cluster).unwrap().members;
        assert!(members.iter().any(|member| member.node == 4 && member.role == "learner"), "{members:?}");
        check_digests(&cluster);
        operator.remove(&cluster, 4);
        if round == 0 {
            // It has not heard of it: it comes back, and nobody takes notice.
            restart(&cluster, 4);
        }
        client.create(&cluster, ROOT, &format!("without-{round}"), NewNode::File, GROUP);
        assert_eq!(operator.unhost(&cluster, 4), Operated::Unhosted);
        assert!(matches!(root_of(&cluster, 4, &mut client), Reply::UnknownGroup { .. }));
        restart(&cluster, 4);
        assert!(status(&cluster, 4).is_none());
    }
}

#[test]
fn group_whose_founders_have_all_been_replaced_is_found_by_those_who_restart() {
    let cluster = cluster(3);
    let (mut operator, mut client) = (Operator::new(&cluster), Client::open(&cluster, 1));
    let dir = client.placed_directory(&cluster, 2);
    let mut made = vec![client.create(&cluster, ROOT, "before", NewNode::File, GROUP)];
    for (new, old) in [(4, 1), (5, 2), (6, 3)] {
        operator.add_voter(&cluster, new);
        operator.remove(&cluster, old);
        assert_eq!(operator.unhost(&cluster, old), Operated::Unhosted);
    }
    wait_until("the new voters lead", || cluster.primary(GROUP).is_some_and(|primary| primary.0 > 3));
    check_digests(&cluster);
    // Those who host the other groups know by what they have kept.
    for node in 1..=3 {
        wait_until("it is written down", || {
            std::fs::read_to_string(cluster.config(node).data_dir.join("members")).is_ok_and(|kept| {
                let newest = operator.members(&cluster).version;
                kept.contains(&format!("\"version\": {newest}"))
            })
        });
    }
    for node in 1..=6 {
        cluster.crash(node);
    }
    for node in 1..=6 {
        cluster.start_configured(node, NodeConfig { first_start: FirstStart::No, ..cluster.config(node) });
    }
    cluster.wait_for_primaries();
    for node in 1..=3 {
        assert!(status(&cluster, node).is_none(), "a founder that was removed does not come back");
    }
    made.push(client.create(&cluster, ROOT, "after", NewNode::File, GROUP));
    // Over two groups: the other one asks those whom it knows.
    let placed =
        client.create(&cluster, ROOT, "across", NewNode::Directory { placement: Some(GroupId(3)) }, GroupId(3));
    assert_eq!(client.lookup(&cluster, 4, ROOT, "across").map(|found| found.ino), Some(placed.ino));
    for (name, file) in ["before", "after"].into_iter().zip(&made) {
        assert_eq!(client.lookup(&cluster, 5, ROOT, name).map(|found| found.ino), Some(file.ino));
    }
    client.create(&cluster, dir, "elsewhere", NewNode::File, dir.home);
    check_digests(&cluster);
}

#[test]
fn only_operators_change_members_and_nonsense_is_refused() {
    let cluster = cluster(1);
    let (mut operator, mut client) = (Operator::new(&cluster), Client::open(&cluster, 1));
    let primary = cluster.primary(GROUP).unwrap();
    let remove = Operation::Change { group: GROUP, change: MemberChange::Remove { replica: ReplicaId(1) } };
    for operation in [remove, Operation::Host { group: GROUP }] {
        let reply = client.ask(&cluster, primary, Request::Operate(operation));
        assert!(matches!(reply, Some(Reply::Operated(Operated::Refused(Refusal::NotPermitted)))), "{reply:?}");
    }
    let unknown = operator.ask(&cluster, 4, Operation::Host { group: GroupId(77) });
    assert_eq!(unknown, Operated::Refused(Refusal::UnknownGroup));
    let force = Operation::Force {
        group: GROUP,
        replica: primary,
        incarnation: Incarnation::GENESIS,
        keep: vec![ReplicaId(1), ReplicaId(2)],
    };
    assert!(matches!(operator.ask(&cluster, primary.0, force), Operated::Refused(Refusal::Force(_))));
    // A member's replica does not end.
    let other = (1..=3).find(|node| *node != primary.0).unwrap();
    assert_eq!(operator.unhost(&cluster, other), Operated::Refused(Refusal::StillMember));
}
