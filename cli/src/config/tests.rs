#![allow(clippy::unwrap_used)]
use super::template::{Plan, render};
use super::*;

fn plan(per_region: usize) -> Plan {
    let mut port = 4400;
    let mut addresses = || {
        (0..per_region)
            .map(|_| {
                port += 1;
                format!("127.0.0.1:{port}")
            })
            .collect::<Vec<_>>()
    };
    Plan {
        cluster: "demo".into(),
        regions: ["us", "eu", "ap"].iter().map(|region| ((*region).to_owned(), addresses())).collect(),
        wan_file: Some("net.wan".into()),
        limits: Limits::default(),
        volume: Volume::default(),
    }
}

fn parse(text: &str) -> std::result::Result<Cluster, String> {
    Cluster::parse(Path::new("/c/cluster.toml"), text).map_err(|error| error.to_string())
}

/// What is said about the template after one replacement, which must hit.
fn complaint(from: &str, to: &str) -> String {
    let text = render(&plan(1));
    assert!(text.contains(from), "the template has no {from:?}");
    let text = text.replacen(from, to, 1);
    let message = parse(&text).unwrap_err();
    assert!(message.starts_with("/c/cluster.toml"), "{message}");
    message
}

/// The line of the first occurrence in the template, as messages show it.
fn line_of(needle: &str) -> String {
    let text = render(&plan(1));
    let line = text[..text.find(needle).unwrap()].matches('\n').count() + 1;
    format!("/c/cluster.toml:{line}:")
}

#[test]
fn template_is_a_valid_configuration() {
    for per_region in [1, 3] {
        let cluster = parse(&render(&plan(per_region))).unwrap();
        assert_eq!(cluster.region_names(), ["us", "eu", "ap"]);
        assert_eq!(cluster.nodes.len(), 3 * per_region);
        assert_eq!(cluster.groups[0].name, "global");
        assert_eq!(cluster.groups[0].voters, ["us-1", "eu-1", "ap-1"]);
        assert_eq!(cluster.groups[2].name, "eu");
        assert_eq!(cluster.groups[2].voters.len(), per_region);
        assert_eq!(cluster.placements[1], Placement { path: "/eu".into(), group: GroupId(2) });
        assert_eq!(cluster.region("eu").unwrap().bucket.url, "/c/buckets/eu");
        assert_eq!(cluster.nodes[0].data, Path::new("/c/nodes/us-1"));
        assert_eq!(cluster.wan.as_deref(), Some(Path::new("/c/net.wan")));
        assert_eq!(cluster.timeouts.deadline, Duration::from_secs(30));
    }
}

#[test]
fn every_shape_of_cluster_has_groups_with_a_quorum() {
    for (regions, nodes, global, own) in
        [(1, 1, 1, 1), (2, 1, 1, 1), (2, 3, 3, 3), (3, 2, 3, 1), (4, 1, 3, 1), (9, 1, 5, 1), (3, 6, 3, 5)]
    {
        let regions = (0..regions).map(|region| {
            let address = |node| format!("127.0.0.1:{}", 4400 + region * 10 + node);
            (format!("r{region}"), (0..nodes).map(address).collect())
        });
        let plan = Plan { regions: regions.collect(), ..plan(1) };
        let cluster = parse(&render(&plan)).unwrap();
        assert_eq!((cluster.groups[0].voters.len(), cluster.groups[1].voters.len()), (global, own), "{plan:?}");
    }
}

#[test]
fn unknown_key_names_line_and_nearest() {
    let message = complaint("address = ", "adress = ");
    assert!(message.contains(r#"unknown key "adress"; did you mean "address"?"#), "{message}");
    assert!(message.starts_with(&line_of("address = \"127.0.0.1:4401")), "{message}");
    let message = complaint("[timeouts]", "[timouts]");
    assert!(message.contains(r#"did you mean "timeouts"?"#), "{message}");
    let message = complaint("{ url = ", "{ uri = ");
    assert!(message.contains(r#"did you mean "url"?"#), "{message}");
    let message = complaint("cache = \"1GiB\"", "colour = \"red\"");
    assert!(message.contains("keys here are node_memory"), "{message}");
}

#[test]
fn two_nodes_with_one_address_are_refused() {
    let message = complaint("127.0.0.1:4402", "127.0.0.1:4401");
    assert!(message.contains("two nodes have the address \"127.0.0.1:4401\""), "{message}");
    let first = line_of("address = \"127.0.0.1:4401").replace("/c/cluster.toml:", "").replace(':', "");
    assert!(message.ends_with(&format!("the other is in line {first}")), "{message}");
}

#[test]
fn duplicate_names_and_folders_are_refused() {
    assert!(complaint("name = \"eu-1\"", "name = \"us-1\"").contains("two nodes have the name \"us-1\""));
    assert!(complaint("number = 2", "number = 1").contains("two nodes have the number \"1\""));
    assert!(complaint("nodes/eu-1", "nodes/us-1").contains("two nodes have the data folder"));
    assert!(complaint("name = \"eu\"\nbucket", "name = \"us\"\nbucket").contains("two regions have the name"));
    assert!(complaint("name = \"eu\"\nvoters", "name = \"us\"\nvoters").contains("two groups have the name"));
    assert!(complaint("path = \"/eu\"", "path = \"/us\"").contains("two placements have the path"));
}

#[test]
fn group_without_quorum_is_refused() {
    let message = complaint("voters = [\"eu-1\"]", "voters = []");
    assert!(message.contains("group \"eu\" has no `voters`"), "{message}");
    let message = complaint("voters = [\"eu-1\"]", "voters = [\"eu-2\"]");
    assert!(message.contains(r#"there is no node "eu-2"; did you mean "eu-1"?"#), "{message}");
    let message = complaint("voters = [\"eu-1\"]", "voters = [\"eu-1\", \"eu-1\"]");
    assert!(message.contains("names voter \"eu-1\" twice"), "{message}");
    let message = complaint("voters = [\"eu-1\"]", "voters = [\"eu-1\", \"us-1\"]");
    assert!(message.contains("group \"eu\" has 2 voters; 1, 3 or 5 make sense"), "{message}");
    let message = complaint("name = \"global\"", "name = \"root\"");
    assert!(message.contains("is called \"global\""), "{message}");
}

#[test]
fn region_without_bucket_is_refused() {
    let message = complaint("bucket = { url = \"buckets/eu\", create = true }", "");
    assert!(message.contains("region \"eu\" has no `bucket`"), "{message}");
    let message = complaint("{ url = \"buckets/eu\", create = true }", "{ create = true }");
    assert!(message.contains("`url` is missing"), "{message}");
}

#[test]
fn unknown_region_or_group_is_refused() {
    assert!(complaint("region = \"eu\"", "region = \"uk\"").contains("there is no region \"uk\""));
    assert!(complaint("group = \"eu\"", "group = \"mars\"").contains("there are global, us, eu, ap"));
}

#[test]
fn bad_values_are_refused() {
    assert!(complaint("\"30s\"", "30").contains("\"30\" has no unit"));
    assert!(complaint("\"30s\"", "\"30 seconds\"").contains("is not a time such as 30s"));
    assert!(complaint("\"4KiB\"", "\"4096\"").contains("\"4096\" has no unit"));
    assert!(complaint("\"4KiB\"", "\"4GiB\"").contains("is not between 0B and 64KiB"));
    assert!(complaint("127.0.0.1:4401", "127.0.0.1").contains("is not an address"));
    assert!(complaint("127.0.0.1:4401", "127.0.0.1:0").contains("is not an address"));
    assert!(complaint("127.0.0.1:4401", "bad host:4401").contains("is not an address"));
    assert!(complaint("127.0.0.1:4401", "[::1:4401").contains("is not an address"));
    assert!(parse(&render(&plan(1)).replace("127.0.0.1:4401", "[::1]:4401")).is_ok());
    assert!(complaint("path = \"/eu\"", "path = \"eu/../x\"").contains("is not a path in the volume"));
    assert!(complaint("cluster = \"demo\"", "cluster = \"Demo Cluster\"").contains("lower-case"));
    assert!(complaint("cluster = \"demo\"", "").contains("cluster"));
    assert!(complaint("mode = \"0755\"", "mode = \"rwx\"").contains("is not a mode"));
    assert!(complaint("cluster = \"demo\"", "cluster = demo").contains(":"));
}

#[test]
fn missing_certificate_names_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let cluster = Cluster::parse(&folder.path().join("cluster.toml"), &render(&plan(1))).unwrap();
    let failure = cluster.identity(Role::Node, "us-1").unwrap_err();
    assert_eq!(failure.exit, Exit::Config);
    let message = format!("{:#}", failure.error);
    assert!(message.contains("node.us-1.crt") || message.contains("ca.crt"), "{message}");
}

#[test]
fn missing_file_is_a_configuration_error() {
    let failure = Cluster::load(Path::new("/no/such/cluster.toml")).unwrap_err();
    assert_eq!(failure.exit, Exit::Config);
    assert!(format!("{:#}", failure.error).contains("/no/such/cluster.toml"));
}

#[test]
fn unknown_names_get_a_hint() {
    let cluster = parse(&render(&plan(1))).unwrap();
    let message = format!("{:#}", cluster.node("eu-2").unwrap_err().error);
    assert!(message.contains("did you mean \"eu-1\"?"), "{message}");
    let message = format!("{:#}", cluster.group("moon").unwrap_err().error);
    assert!(message.contains("there are global, us, eu, ap"), "{message}");
}
