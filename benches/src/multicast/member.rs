//! One replica's process.

use std::io::{BufRead, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use metadata::namespace::Genesis;
use metadata::types::TimeNs;
use multicast::ids::{GroupId, ReplicaId};
use net::Identity;
use net::wan::{Matrix, Wan};
use partition_replica::bare::{BareConfig, run_bare};
use partition_replica::{FirstStart, GroupInfo, Limits, NodeConfig, NodeInfo, Timeouts};

use super::load::{Load, Told};
use super::{Plan, Point};
use crate::error::{Error, Result};

/// Plays the member that a line on stdin describes; then stdin says when to begin, and when to end by ending.
///
/// # Errors
/// If that line makes no sense, or the replica fails.
pub fn run_member() -> Result<()> {
    let mut line = String::new();
    let read = std::io::stdin().lock().read_line(&mut line);
    read.map_err(|error| Error::Invalid(format!("no plan on stdin: {error}")))?;
    let plan: Plan = serde_json::from_str(&line).map_err(|error| Error::Invalid(format!("the plan: {error}")))?;
    let (say_go, go) = mpsc::channel();
    std::thread::spawn(move || {
        for _ in std::io::stdin().lock().lines().map_while(std::io::Result::ok) {
            if say_go.send(()).is_err() {
                return;
            }
        }
    });
    let tell = Box::new(|told| {
        let line = match told {
            Told::Ready => Ok("ready".to_owned()),
            Told::Report(report) => serde_json::to_string(&report),
        };
        if let Ok(line) = line {
            // Without a lab there is nobody to tell.
            let mut stdout = std::io::stdout().lock();
            let _ = writeln!(stdout, "{line}").and_then(|()| stdout.flush());
        }
    });
    let node = node_config(&plan)?;
    let sessions = (0..plan.point.groups).map(Load::session).collect();
    let config = BareConfig { node, flush: plan.point.flush, sessions };
    let mut load = Load::new(plan.point.clone(), group_of(&plan.point, plan.number), go, tell);
    run_bare(&config, &mut load).map_err(|error| Error::Invalid(error.to_string()))
}

pub(super) fn name_of(number: u32) -> String {
    format!("member-{number:02}")
}

fn group_of(point: &Point, number: u32) -> u16 {
    ((number - 1) / point.voters) as u16
}

fn region_of(group: u16) -> String {
    ["us", "eu", "ap"].get(usize::from(group)).map_or_else(|| format!("region-{group}"), |name| (*name).to_owned())
}

fn node_config(plan: &Plan) -> Result<NodeConfig> {
    let point = &plan.point;
    let members = point.voters * u32::from(point.groups);
    let loopback = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
    let address = |number: u32| plan.ports.get(number as usize - 1).copied().map(loopback);
    let node = |number: u32| {
        let address =
            address(number).ok_or_else(|| Error::Invalid(format!("member {number} has no port")))?.to_string();
        let region = region_of(group_of(point, number));
        Ok(NodeInfo { number: ReplicaId(number), name: name_of(number), address, region })
    };
    let group = |group: u16| {
        let first = u32::from(group) * point.voters + 1;
        let voters = (first..first + point.voters).map(ReplicaId).collect();
        GroupInfo { id: GroupId(group), name: format!("group-{group}"), voters }
    };
    let failed = |error: net::Error| Error::Invalid(error.to_string());
    let regions: Vec<String> = (0..point.groups).map(region_of).collect();
    let wan =
        point.wan.as_deref().map(|name| Matrix::load(name, &regions).map(Wan::fixed)).transpose().map_err(failed)?;
    let listen = address(plan.number).ok_or_else(|| Error::Invalid("this member has no port".into()))?;
    let timeouts = Timeouts { resend: Duration::from_millis(1_500), ..Timeouts::default() };
    Ok(NodeConfig {
        number: ReplicaId(plan.number),
        data_dir: plan.dir.join("log"),
        first_start: FirstStart::Founding,
        listen,
        cluster_id: "bench".into(),
        nodes: (1..=members).map(node).collect::<Result<_>>()?,
        groups: (0..point.groups).map(group).collect(),
        // Nothing is executed.
        genesis: Genesis { inline_bytes_max: 0, uid: 0, gid: 0, mode: 0o755, time: TimeNs(0) },
        identity: identity(&plan.dir).map_err(failed)?,
        wan,
        limits: Limits::default(),
        timeouts,
    })
}

fn identity(dir: &Path) -> net::Result<Identity> {
    Identity::load(&dir.join("member.pem"), &dir.join("member.key"), &dir.join("ca.pem"))
}
