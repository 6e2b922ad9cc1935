use bytes::Bytes;
use metadata::codec;
use metadata::op::NewNode;
use metadata::protocol::{Request, ToNode};
use metadata::read::ReadOp;
use metadata::types::InodeId;
use multicast::command::{Command, Destination};
use multicast::ids::{CommandId, GroupId, ReplicaId, SessionId, VectorClock};

use crate::client::{Client, ROOT};
use crate::cluster::Cluster;

fn random(seed: &mut u64) -> u64 {
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    *seed
}

#[test]
fn garbage_ends_its_own_connection_and_nothing_else() {
    let cluster = Cluster::start();
    let mut good = Client::open(&cluster, 1);
    let mut seed = 0x1234_5678;
    for round in 0..40 {
        let mut bad = Client::connected_nowhere(&cluster, 100 + round);
        let valid = codec::encode_to_node(&ToNode {
            request: round,
            body: bad.read_request(GroupId::GLOBAL, ReadOp::GetAttr { ino: InodeId::ROOT }, false),
        });
        let mut bytes = valid.to_vec();
        match round % 4 {
            0 => bytes = (0..random(&mut seed) % 5000).map(|_| random(&mut seed) as u8).collect(),
            1 => bytes.truncate(random(&mut seed) as usize % valid.len()),
            2 => bytes.extend_from_slice(&[0xff; 9]),
            _ => {
                let at = random(&mut seed) as usize % valid.len();
                bytes[at] = random(&mut seed) as u8;
            }
        }
        let channel = bad.raw_channel(&cluster, 1 + (round % 3) as u32);
        let _ = channel.try_send(Bytes::from(bytes));
        let _ = channel.try_send(Bytes::from(vec![0xff; 1 << 20]));
    }
    good.create(&cluster, ROOT, "fine", NewNode::File, GroupId::GLOBAL);
    for node in 1..=3 {
        assert_eq!(cluster.node(node).failure(), None);
    }
}

#[test]
fn commands_that_make_no_sense_change_nothing() {
    let cluster = Cluster::start();
    let mut client = Client::open(&cluster, 1);
    let destinations = [
        vec![],
        vec![Destination { group: GroupId(0), footprint: vec![].into() }],
        vec![
            Destination { group: GroupId(0), footprint: vec![].into() },
            Destination { group: GroupId(0), footprint: vec![].into() },
        ],
        vec![
            Destination { group: GroupId(1), footprint: vec![].into() },
            Destination { group: GroupId(0), footprint: vec![].into() },
        ],
        vec![
            Destination { group: GroupId(0), footprint: vec![].into() },
            Destination { group: GroupId(999), footprint: vec![].into() },
        ],
        vec![
            Destination { group: GroupId(0), footprint: vec![].into() },
            Destination { group: GroupId(3), footprint: vec![].into() },
        ],
    ];
    let before = client.lookup(&cluster, 1, ROOT, "x");
    for (sequence, destinations) in (1..).zip(destinations) {
        for payload in [Bytes::new(), Bytes::from_static(&[1, 200, 3]), Bytes::from(vec![9; 100_000])] {
            let command = Command {
                id: CommandId { session: client.session, sequence: sequence * 10 + payload.len() as u64 % 7 },
                acknowledged_below: 0,
                clock: VectorClock::new(),
                destinations: destinations.clone(),
                payload,
            };
            for node in 1..=3 {
                let group = GroupId(0);
                let reply = client.ask(&cluster, ReplicaId(node), Request::Update { group, command: command.clone() });
                assert!(reply.is_some());
            }
        }
    }
    assert_eq!(client.lookup(&cluster, 1, ROOT, "x"), before);
    client.create(&cluster, ROOT, "fine", NewNode::File, GroupId::GLOBAL);
    cluster.check_digests();
}

#[test]
fn made_up_sessions_cannot_subscribe_others_or_exhaust_the_node() {
    let cluster = Cluster::start();
    let mut client = Client::open(&cluster, 1);
    for session in 0..2000 {
        let body = Request::KeepAlive { session: SessionId(session) };
        assert!(client.ask(&cluster, ReplicaId(1), body).is_some());
    }
    client.create(&cluster, ROOT, "fine", NewNode::File, GroupId::GLOBAL);
}
