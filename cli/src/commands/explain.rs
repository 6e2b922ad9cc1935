//! `globalfs explain`: what a path costs from each region, and what still works without one.

mod cost;

use std::path::PathBuf;

use clap::Args;
use fs_client::Explanation;
use multicast::ids::GroupId;
use net::wan;
use serde_json::{Value, json};

use self::cost::{Distances, Price};
use super::client::{self, Wishes};
use super::place::{self, Target};
use super::service;
use crate::args::Globals;
use crate::config::Cluster;
use crate::exit::{Exit, Result};
use crate::output::{Table, bold, green, red, say, say_all};
use crate::units::TimeSpan;

/// Options.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  globalfs explain /mnt/globalfs/eu/report.txt
  globalfs --config cluster.toml explain /eu

Costs are round trips to other regions and the time that they take at least, by the emulated network if there is one; \
disk flushes and work come on top. The preferred primaries are assumed to be at work.")]
pub struct ExplainArgs {
    /// A path in a mount, or with --config a path in the volume; it need not exist
    path: PathBuf,
    /// One JSON object
    #[arg(long)]
    json: bool,
    /// How long to wait for nodes
    #[arg(long, value_name = "TIME", default_value = "30s")]
    deadline: TimeSpan,
}

/// Asks the cluster about the path, then counts.
pub fn run(globals: &Globals, args: &ExplainArgs) -> Result<Exit> {
    let target = Target::find(globals, &args.path)?;
    let wishes = Wishes::tool(&target.cluster, target.region.as_deref(), args.deadline.0)?;
    let runtime = service::runtime()?;
    runtime.block_on(place::with_client(&target.cluster, &wishes, async |client| {
        target.await_seen(client).await;
        let facts = client.explain(&target.path).await.map_err(|error| client::path_failure(&target.path, error))?;
        let report = Report::new(&target.cluster, &target.path, facts);
        match args.json {
            true => say!("{}", report.as_json()),
            false => say_all(&report.as_text()),
        }
        Ok(Exit::Done)
    }))
}

struct Report<'a> {
    cluster: &'a Cluster,
    path: &'a str,
    facts: Explanation,
    distances: Distances<'a>,
    emulated: bool,
}

/// The rows of costs: what is done, and which groups take part.
struct Action<'a> {
    what: &'static str,
    key: &'static str,
    groups: &'a [GroupId],
    reads: bool,
}

impl<'a> Report<'a> {
    fn new(cluster: &'a Cluster, path: &'a str, facts: Explanation) -> Report<'a> {
        let matrix = cluster.wan.as_deref().and_then(|file| wan::read_file(file).ok());
        let emulated = matrix.is_some();
        Report { cluster, path, facts, distances: Distances::new(cluster, matrix), emulated }
    }

    fn actions(&self) -> Vec<Action<'_>> {
        let facts = &self.facts;
        let mut actions =
            vec![Action { what: "look up, read", key: "read", groups: &facts.lookup_groups, reads: true }];
        if facts.attr.is_some() {
            actions.push(Action {
                what: "write, chmod, truncate",
                key: "change",
                groups: &facts.write_groups,
                reads: false,
            });
        }
        let what = if facts.attr.is_some() { "unlink, rename in place" } else { "create" };
        actions.push(Action { what, key: "name", groups: &facts.name_groups, reads: false });
        actions
    }

    fn price(&self, action: &Action<'_>, from: &str) -> Option<Price> {
        if action.reads { self.distances.read(action.groups, from) } else { self.distances.update(action.groups, from) }
    }

    /// Whether an action is possible without a region, from the others.
    fn works_without(&self, action: &Action<'_>, lost: &str) -> bool {
        let possible = |group: &GroupId| {
            if action.reads {
                self.distances.readable_without(*group, lost)
            } else {
                self.distances.quorum_without(*group, lost)
            }
        };
        action.groups.iter().all(possible)
    }

    fn names(&self, groups: &[GroupId]) -> String {
        groups.iter().map(|group| self.cluster.group_name(*group)).collect::<Vec<_>>().join(", ")
    }

    fn lives(&self) -> String {
        let facts = &self.facts;
        let describe = |group: GroupId| {
            let found = self.cluster.groups.get(usize::from(group.0));
            let regions = found.map(|group| self.cluster.group_regions(group).join(",")).unwrap_or_default();
            format!("group {} ({regions})", self.cluster.group_name(group))
        };
        match &facts.attr {
            Some(attr) if attr.placement != attr.home => {
                format!("lives on {}; what is created in it lives on {}", describe(attr.home), describe(attr.placement))
            }
            Some(attr) => format!("lives on {}", describe(attr.home)),
            None => format!("does not exist; created there it would live on {}", describe(facts.parent.placement)),
        }
    }

    fn as_text(&self) -> String {
        let mut text = format!("{}  {}\n\n", bold(self.path), self.lives());
        let regions = self.cluster.region_names();
        let heading: Vec<String> = regions.iter().map(|region| format!("from {region}")).collect();
        let mut costs =
            Table::with_heading(["action", "groups"].map(String::from).into_iter().chain(heading).collect());
        for action in self.actions() {
            let mut row = vec![action.what.to_owned(), self.names(action.groups)];
            row.extend(regions.iter().map(|region| match self.price(&action, region) {
                None => red("cut off"),
                Some(price) if price.round_trips == 0 => green("local"),
                Some(price) => self.shown(price),
            }));
            costs.row(row);
        }
        text.push_str(&costs.render());
        text.push_str(&format!("\n{}\n", bold("if a region is lost, elsewhere")));
        let mut losses = Table::with_heading(
            std::iter::once("action".to_owned())
                .chain(regions.iter().map(|region| format!("without {region}")))
                .collect(),
        );
        for action in self.actions() {
            let mut row = vec![action.what.to_owned()];
            row.extend(
                regions.iter().map(
                    |lost| {
                        if self.works_without(&action, lost) { green("works") } else { red("waits") }
                    },
                ),
            );
            losses.row(row);
        }
        text.push_str(&losses.render());
        text.push_str("\nContent beyond the inline limit is read from its writer's region unless it is cached.\n");
        if !self.emulated {
            text.push_str("Distances are not known: there is no emulated network.\n");
        }
        text
    }

    fn shown(&self, price: Price) -> String {
        let plural = if price.round_trips == 1 { "" } else { "s" };
        match self.emulated {
            true => format!("{} round trip{plural}, {:.1} ms", price.round_trips, price.ms),
            false => format!("{} round trip{plural}", price.round_trips),
        }
    }

    fn as_json(&self) -> Value {
        let regions = self.cluster.region_names();
        let names = |groups: &[GroupId]| groups.iter().map(|group| self.cluster.group_name(*group)).collect::<Vec<_>>();
        let actions: Vec<Value> = self
            .actions()
            .iter()
            .map(|action| {
                let costs: Vec<Value> = regions
                    .iter()
                    .map(|region| {
                        let price = self.price(action, region);
                        json!({
                            "from": region, "reachable": price.is_some(),
                            "round_trips": price.map(|price| price.round_trips),
                            "ms": price.filter(|_| self.emulated).map(|price| price.ms),
                        })
                    })
                    .collect();
                let works: Vec<Value> = regions
                    .iter()
                    .map(|lost| json!({ "lost": lost, "works": self.works_without(action, lost) }))
                    .collect();
                json!({ "action": action.key, "groups": names(action.groups), "costs": costs, "without": works })
            })
            .collect();
        let attr = self.facts.attr.as_ref();
        json!({
            "schema": 1, "path": self.path, "exists": attr.is_some(),
            "home": attr.map(|attr| self.cluster.group_name(attr.home)),
            "placement": self.cluster.group_name(attr.map_or(self.facts.parent.placement, |attr| attr.placement)),
            "actions": actions,
        })
    }
}
