//! What a node and its groups are founded with is written once, and counts from then on.

use std::time::Duration;

use metadata::read::{ReadAnswer, ReadOp};
use metadata::types::InodeId;
use multicast::ids::{GroupId, ReplicaId};
use partition_replica::{Error, ErrorClass, FirstStart, Node, Timeouts};

use crate::client::Client;
use crate::cluster::Cluster;

fn refused(cluster: &Cluster, change: impl FnOnce(&mut partition_replica::NodeConfig)) -> Error {
    let mut config = cluster.config(1);
    change(&mut config);
    Node::start(config).expect_err("the node must not start")
}

#[test]
fn volume_is_what_it_was_founded_with_whatever_is_configured_later() {
    let cluster = Cluster::start();
    cluster.shut_down(1);
    // Nothing has been applied and flushed in groups without a command, which is when this mattered.
    let mut config = cluster.config(1);
    config.genesis.mode = 0o700;
    config.genesis.inline_bytes_max = 1;
    cluster.start_configured(1, config);
    cluster.wait_for_primaries();
    let mut client = Client::open(&cluster, 1);
    let attr = client.read(&cluster, 1, GroupId::GLOBAL, ReadOp::GetAttr { ino: InodeId::ROOT });
    assert!(matches!(attr, Ok(ReadAnswer::Attr(attr)) if attr.mode == 0o755));
    cluster.check_digests();
}

#[test]
fn node_whose_group_has_other_voters_in_the_configuration_is_refused() {
    let timeouts = Timeouts { election: Duration::from_millis(1000), ..Timeouts::default() };
    let cluster = Cluster::start_with(timeouts);
    cluster.crash(1);
    let error = refused(&cluster, |config| config.groups[0].voters = vec![ReplicaId(1)]);
    assert_eq!(error.class(), ErrorClass::Caller);
    assert!(error.to_string().contains("group-0"), "{error}");
    // In another order they are the same voters.
    let mut config = cluster.config(1);
    config.groups[0].voters.reverse();
    cluster.start_configured(1, config);
}

#[test]
fn node_that_lost_its_disk_is_refused_unless_it_is_told_to_begin_anew() {
    let cluster = Cluster::start();
    cluster.crash(1);
    std::fs::remove_dir_all(cluster.config(1).data_dir).unwrap();
    let error = refused(&cluster, |config| config.first_start = FirstStart::No);
    assert!(matches!(error, Error::NotInitialised { .. }), "{error}");
}

#[test]
fn data_of_a_cluster_of_the_same_name_with_another_authority_are_refused() {
    let cluster = Cluster::start();
    cluster.crash(1);
    let other = net::ClusterCa::create("test").unwrap();
    let identity = other.issue(net::Role::Node, "node-1").unwrap();
    let error = refused(&cluster, |config| config.identity = identity);
    assert!(matches!(error, Error::ForeignData { .. }), "{error}");
}
