//! The same for a monitoring system, in the text format of Prometheus.

use std::collections::BTreeMap;
use std::fmt::Write;

use multicast::ids::GroupId;

use super::{Seen, View, lag};
use crate::config::Cluster;

/// One figure of one thing.
struct Sample {
    labels: String,
    value: f64,
}

/// All that can be told in numbers.
pub fn render(cluster: &Cluster, nodes: &[Seen<'_>], groups: &[View<'_>]) -> String {
    let mut text = String::new();
    let up = nodes.iter().map(|node| {
        let labels = labels(&[("node", node.name), ("region", node.region)]);
        Sample { labels, value: f64::from(u8::from(node.answer.is_ok())) }
    });
    put(&mut text, "node_up", "1 if the node answers", up);
    let of_group = |value: fn(&View<'_>) -> f64| {
        groups.iter().map(move |view| Sample { labels: labels(&[("group", &view.group.name)]), value: value(view) })
    };
    let has_primary = of_group(|view| f64::from(u8::from(view.has_primary)));
    put(&mut text, "group_has_primary", "1 if a primary of the group answers", has_primary);
    let voters_up = of_group(|view| view.voters_up as f64);
    put(&mut text, "group_voters_up", "Voters that answer, on the disks that the group knows", voters_up);
    let agree = of_group(|view| f64::from(u8::from(view.digests_agree)));
    put(&mut text, "group_digests_agree", "0 if the voters' states differ", agree);
    let lags = groups.iter().flat_map(|view| {
        let behind = lag(cluster, view).into_iter();
        behind.map(|(node, lag)| {
            let labels = labels(&[("group", &view.group.name), ("node", &node)]);
            Sample { labels, value: lag as f64 }
        })
    });
    put(&mut text, "group_lag_entries", "Log entries that a member is behind, if any", lags);
    waiting(&mut text, cluster, groups);
    text
}

/// Commands that wait for other groups: how many, and for how long the oldest, by group, whom they wait for, and client.
fn waiting(text: &mut String, cluster: &Cluster, groups: &[View<'_>]) {
    let mut waiting: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    let mut silent = Vec::new();
    for (view, best) in groups.iter().filter_map(|view| Some((view, view.best?))) {
        let name = &view.group.name;
        for command in best.unfinished.iter().chain(&best.held) {
            for other in &command.waiting_for {
                let other = cluster.group_name(GroupId(*other));
                let client = command.client.as_deref().unwrap_or_default();
                let client = [("group", name.as_str()), ("waits_for", &other), ("client", client)];
                let label = [("label", command.label.as_deref().unwrap_or_default())];
                let (count, oldest_ms) = waiting.entry(labels(&[&client[..], &label].concat())).or_default();
                *count += 1;
                *oldest_ms = command.elapsed_ms.max(*oldest_ms);
            }
        }
        silent.extend(best.silent_groups.iter().map(|silent| {
            let other = cluster.group_name(GroupId(silent.group));
            Sample { labels: labels(&[("group", name), ("silent", &other)]), value: seconds(silent.elapsed_ms) }
        }));
    }
    let count = waiting.iter().map(|(labels, (count, _))| Sample { labels: labels.clone(), value: *count as f64 });
    put(text, "commands_waiting", "Commands that wait for another group", count);
    let oldest = waiting.iter().map(|(labels, (_, ms))| Sample { labels: labels.clone(), value: seconds(*ms) });
    put(text, "commands_waiting_seconds_max", "For how long the oldest of them has waited", oldest);
    put(text, "group_silent_seconds", "For how long a group has not answered another one", silent.into_iter());
}

fn seconds(ms: u64) -> f64 {
    ms as f64 / 1000.0
}

fn put(text: &mut String, name: &str, help: &str, samples: impl Iterator<Item = Sample>) {
    // Writing to a string cannot fail.
    let _ = writeln!(text, "# HELP globalfs_{name} {help}\n# TYPE globalfs_{name} gauge");
    for Sample { labels, value } in samples {
        let _ = writeln!(text, "globalfs_{name}{{{labels}}} {value}");
    }
}

fn labels(pairs: &[(&str, &str)]) -> String {
    let escaped = |value: &str| value.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n");
    pairs.iter().map(|(name, value)| format!("{name}=\"{}\"", escaped(value))).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_escaped_as_the_format_wants() {
        assert_eq!(labels(&[("a", "b"), ("c", "x\"y\\z\n")]), r#"a="b",c="x\"y\\z\n""#);
        let mut text = String::new();
        let samples = [Sample { labels: labels(&[("group", "us")]), value: 2.5 }];
        put(&mut text, "up", "Whether", samples.into_iter());
        let expected = "# HELP globalfs_up Whether\n# TYPE globalfs_up gauge\nglobalfs_up{group=\"us\"} 2.5\n";
        assert_eq!(text, expected);
    }
}
