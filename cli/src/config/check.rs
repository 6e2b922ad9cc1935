//! From the file as written to the checked type: what keys say together must make sense.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Range, RangeInclusive};
use std::path::Path;
use std::time::Duration;

use datastore::BucketConfig;
use multicast::ids::{GroupId, ReplicaId};
use toml::Spanned;

use super::error::Source;
use super::{Cluster, ConfigError, Group, Limits, Node, Placement, Region, Timeouts, Volume, file};
use crate::hint;
use crate::units::{ByteSize, TimeSpan};

/// Nodes, and whether they have been removed.
type Nodes = Vec<(Node, bool)>;
type Checked<T = ()> = std::result::Result<T, ConfigError>;

/// An even number tolerates no more failures than one voter less; more than five only slow a group down.
const VOTERS: [usize; 3] = [1, 3, 5];
const REGIONS_MAX: usize = 64;
const GROUPS_MAX: usize = 4096;
/// Nanoseconds since 1970 must fit 63 bits.
const CREATED_MAX_S: u64 = 9_000_000_000;
const PATH_LEN_MAX: usize = 4095;

const NODE_MEMORY: RangeInclusive<u64> = 32 << 20..=1 << 40;
/// At least what two segments and the next one take.
const NODE_LOG: RangeInclusive<u64> = 96 << 20..=1 << 44;
const RATE_MAX: u32 = 100_000;
const CLIENT_MEMORY: RangeInclusive<u64> = 16 << 20..=1 << 40;
const INLINE: RangeInclusive<u64> = 0..=64 << 10;
const CACHE: RangeInclusive<u64> = 0..=1 << 50;
const DEADLINE: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(86_400);
const ELECTION: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(600);
const COLLECT: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(90 * 86_400);
const STRAY: RangeInclusive<Duration> = Duration::from_secs(60)..=Duration::from_secs(365 * 86_400);
const SESSION: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(86_400);

pub(super) fn checked(source: &Source<'_>) -> Checked<Cluster> {
    let raw: file::File = toml::from_str(source.text).map_err(|error| source.syntax(&error))?;
    let base = source.file.parent().unwrap_or(Path::new("/"));
    name(source, "cluster", &raw.cluster)?;
    let regions = regions(source, base, raw.region)?;
    let nodes = nodes(source, base, raw.node, &regions)?;
    let groups = groups(source, raw.group, &nodes)?;
    let (removed, nodes): (Vec<_>, Vec<_>) = nodes.into_iter().partition(|(_, is_removed)| *is_removed);
    let bare = |nodes: Vec<(Node, bool)>| nodes.into_iter().map(|(node, _)| node).collect();
    let (removed, nodes): (Vec<Node>, Vec<Node>) = (bare(removed), bare(nodes));
    if nodes.is_empty() {
        return Err(source.error_anywhere("every [[node]] has been removed"));
    }
    let placements = placements(source, raw.placement, &groups)?;
    Ok(Cluster {
        file: source.file.into(),
        name: raw.cluster.into_inner(),
        regions,
        nodes,
        removed,
        groups,
        placements,
        volume: volume(source, raw.volume)?,
        tls: base.join(raw.tls.folder.unwrap_or_else(|| "tls".into())),
        limits: limits(source, raw.limits)?,
        timeouts: timeouts(source, raw.timeouts)?,
        wan: raw.wan.file.map(|file| base.join(file)),
    })
}

fn regions(source: &Source<'_>, base: &Path, raw: Vec<Spanned<file::Region>>) -> Checked<Vec<Region>> {
    if raw.is_empty() || raw.len() > REGIONS_MAX {
        return Err(source.error_anywhere(format!("a cluster has 1 to {REGIONS_MAX} [[region]] sections")));
    }
    let mut names = Unique::new("region", "name");
    let mut regions = Vec::new();
    for (number, raw) in raw.into_iter().enumerate() {
        let section = raw.span();
        let raw = raw.into_inner();
        name(source, "region", &raw.name)?;
        names.insert(source, raw.name.get_ref().clone(), raw.name.span())?;
        let Some(bucket) = raw.bucket else {
            return Err(source.error(section, format!("region {:?} has no `bucket`", raw.name.get_ref())));
        };
        let bucket = bucket_in(source, base, bucket)?;
        // The count is bounded above.
        regions.push(Region { name: raw.name.into_inner(), number: number as u16, bucket });
    }
    Ok(regions)
}

fn bucket_in(source: &Source<'_>, base: &Path, raw: Spanned<BucketConfig>) -> Checked<BucketConfig> {
    let span = raw.span();
    let mut bucket = raw.into_inner();
    if bucket.url.is_empty() {
        return Err(source.error(span, "the bucket's `url` is missing; give a folder, s3://, gs:// or az://"));
    }
    if !bucket.url.contains("://") {
        let folder = base.join(&bucket.url);
        let Some(folder) = folder.to_str() else {
            return Err(source.error(span, "the bucket's folder has a name that is not UTF-8"));
        };
        bucket.url = folder.to_owned();
    }
    bucket.credentials_file = bucket.credentials_file.map(|file| base.join(file));
    Ok(bucket)
}

fn nodes(source: &Source<'_>, base: &Path, raw: Vec<Spanned<file::Node>>, regions: &[Region]) -> Checked<Nodes> {
    if raw.is_empty() {
        return Err(source.error_anywhere("there is no [[node]] section"));
    }
    let mut names = Unique::new("node", "name");
    let mut numbers = Unique::new("node", "number");
    let mut addresses = Unique::new("node", "address");
    let mut folders = Unique::new("node", "data folder");
    let mut nodes = Vec::new();
    for raw in raw {
        let raw = raw.into_inner();
        name(source, "node", &raw.name)?;
        names.insert(source, raw.name.get_ref().clone(), raw.name.span())?;
        numbers.insert(source, raw.number.get_ref().to_string(), raw.number.span())?;
        address(source, &raw.address)?;
        addresses.insert(source, raw.address.get_ref().clone(), raw.address.span())?;
        if let Some(listen) = &raw.listen {
            address(source, listen)?;
        }
        let known = regions.iter().map(|region| region.name.as_str());
        exists(source, "region", raw.region.get_ref(), raw.region.span(), known)?;
        let data = base.join(raw.data.get_ref());
        folders.insert(source, data.display().to_string(), raw.data.span())?;
        let is_removed = raw.removed;
        let node = Node {
            id: ReplicaId(raw.number.into_inner()),
            name: raw.name.into_inner(),
            region: raw.region.into_inner(),
            address: raw.address.into_inner(),
            listen: raw.listen.map(Spanned::into_inner),
            data,
        };
        nodes.push((node, is_removed));
    }
    Ok(nodes)
}

fn groups(source: &Source<'_>, raw: Vec<Spanned<file::Group>>, nodes: &[(Node, bool)]) -> Checked<Vec<Group>> {
    if raw.is_empty() || raw.len() > GROUPS_MAX {
        return Err(source.error_anywhere(format!("a cluster has 1 to {GROUPS_MAX} [[group]] sections")));
    }
    let mut names = Unique::new("group", "name");
    let mut groups = Vec::new();
    for (id, raw) in raw.into_iter().enumerate() {
        let section = raw.span();
        let raw = raw.into_inner();
        name(source, "group", &raw.name)?;
        names.insert(source, raw.name.get_ref().clone(), raw.name.span())?;
        if id == 0 && raw.name.get_ref() != "global" {
            return Err(source.error(raw.name.span(), "the first group holds the root and is called \"global\""));
        }
        let voters = voters(source, section, &raw, nodes)?;
        groups.push(Group { id: GroupId(id as u16), name: raw.name.into_inner(), voters });
    }
    Ok(groups)
}

fn voters(
    source: &Source<'_>,
    section: Range<usize>,
    raw: &file::Group,
    nodes: &[(Node, bool)],
) -> Checked<Vec<String>> {
    let group = raw.name.get_ref();
    if raw.voters.is_empty() {
        let problem = format!("group {group:?} has no `voters`: without a quorum nothing can be written");
        return Err(source.error(section, problem));
    }
    let mut seen = BTreeSet::new();
    for voter in &raw.voters {
        exists(source, "node", voter.get_ref(), voter.span(), nodes.iter().map(|(node, _)| node.name.as_str()))?;
        if !seen.insert(voter.get_ref()) {
            let problem = format!("group {group:?} names voter {:?} twice: one node has one vote", voter.get_ref());
            return Err(source.error(voter.span(), problem));
        }
    }
    if !VOTERS.contains(&raw.voters.len()) {
        let count = raw.voters.len();
        return Err(source.error(section, format!("group {group:?} has {count} voters; 1, 3 or 5 make sense")));
    }
    Ok(raw.voters.iter().map(|voter| voter.get_ref().clone()).collect())
}

fn placements(source: &Source<'_>, raw: Vec<Spanned<file::Placement>>, groups: &[Group]) -> Checked<Vec<Placement>> {
    let mut paths = Unique::new("placement", "path");
    let mut placements = Vec::new();
    for raw in raw {
        let raw = raw.into_inner();
        let path = raw.path.get_ref();
        if !is_volume_path(path) {
            let problem = format!("{path:?} is not a path in the volume such as \"/eu\"");
            return Err(source.error(raw.path.span(), problem));
        }
        paths.insert(source, path.clone(), raw.path.span())?;
        let known = groups.iter().map(|group| group.name.as_str());
        exists(source, "group", raw.group.get_ref(), raw.group.span(), known)?;
        let group = groups.iter().find(|group| group.name == *raw.group.get_ref()).map_or(GroupId::GLOBAL, |g| g.id);
        placements.push(Placement { path: raw.path.into_inner(), group });
    }
    Ok(placements)
}

fn is_volume_path(path: &str) -> bool {
    path.len() <= PATH_LEN_MAX
        && path.strip_prefix('/').is_some_and(|rest| {
            rest.split('/').all(|name| !name.is_empty() && name != "." && name != ".." && name.len() <= 255)
        })
}

fn volume(source: &Source<'_>, raw: file::Volume) -> Checked<Volume> {
    let default = Volume::default();
    let mode = match &raw.mode {
        None => default.mode,
        Some(text) => {
            let mode = u16::from_str_radix(text.get_ref(), 8).ok().filter(|mode| *mode <= 0o7777);
            let problem = || format!("`mode` = {:?} is not a mode such as \"0755\"", text.get_ref());
            mode.ok_or_else(|| source.error(text.span(), problem()))?
        }
    };
    let created = raw.created_unix_s.map(|created| match *created.get_ref() {
        seconds if seconds <= CREATED_MAX_S => Ok(seconds),
        _ => Err(source.error(created.span(), "`created_unix_s` is not a time of this age")),
    });
    Ok(Volume {
        created_unix_s: created.transpose()?.unwrap_or(default.created_unix_s),
        uid: raw.uid.unwrap_or(default.uid),
        gid: raw.gid.unwrap_or(default.gid),
        mode,
    })
}

fn limits(source: &Source<'_>, raw: file::Limits) -> Checked<Limits> {
    let default = Limits::default();
    let within = |key: &str, value: Option<Spanned<ByteSize>>, default: ByteSize, range: RangeInclusive<u64>| {
        let Some(value) = value else { return Ok(default) };
        if range.contains(&value.get_ref().0) {
            return Ok(value.into_inner());
        }
        let (least, most) = (ByteSize(*range.start()), ByteSize(*range.end()));
        let problem = format!("`{key}` = {} is not between {least} and {most}", value.get_ref());
        Err(source.error(value.span(), problem))
    };
    Ok(Limits {
        node_memory: within("node_memory", raw.node_memory, default.node_memory, NODE_MEMORY)?,
        node_log: within("node_log", raw.node_log, default.node_log, NODE_LOG)?,
        collect_rate: rate(source, "collect_rate", raw.collect_rate, 1, default.collect_rate)?,
        sweep_rate: rate(source, "sweep_rate", raw.sweep_rate, 0, default.sweep_rate)?,
        client_memory: within("client_memory", raw.client_memory, default.client_memory, CLIENT_MEMORY)?,
        inline: within("inline", raw.inline, default.inline, INLINE)?,
        cache: within("cache", raw.cache, default.cache, CACHE)?,
    })
}

fn timeouts(source: &Source<'_>, raw: file::Timeouts) -> Checked<Timeouts> {
    let default = Timeouts::default();
    let within = |key: &str, value: Option<Spanned<TimeSpan>>, default: Duration, range: RangeInclusive<Duration>| {
        let Some(value) = value else { return Ok(default) };
        if range.contains(&value.get_ref().0) {
            return Ok(value.get_ref().0);
        }
        let (least, most) = (TimeSpan(*range.start()), TimeSpan(*range.end()));
        let problem = format!("`{key}` = {} is not between {least} and {most}", value.get_ref());
        Err(source.error(value.span(), problem))
    };
    Ok(Timeouts {
        deadline: within("deadline", raw.deadline, default.deadline, DEADLINE)?,
        election: within("election", raw.election, default.election, ELECTION)?,
        session: within("session", raw.session, default.session, SESSION)?,
        collect: within("collect", raw.collect, default.collect, COLLECT)?,
        stray: within("stray", raw.stray, default.stray, STRAY)?,
    })
}

fn rate(source: &Source<'_>, key: &str, value: Option<Spanned<u32>>, least: u32, default: u32) -> Checked<u32> {
    let Some(value) = value else { return Ok(default) };
    if (least..=RATE_MAX).contains(value.get_ref()) {
        return Ok(value.into_inner());
    }
    Err(source.error(value.span(), format!("`{key}` = {} is not between {least} and {RATE_MAX}", value.get_ref())))
}

fn name(source: &Source<'_>, kind: &str, name: &Spanned<String>) -> Checked {
    net::pki::check_name(name.get_ref()).map_err(|error| source.error(name.span(), format!("{kind}: {error}")))
}

fn address(source: &Source<'_>, address: &Spanned<String>) -> Checked {
    let text = address.get_ref();
    let port = text.rsplit_once(':').filter(|(host, _)| is_host(host)).and_then(|(_, port)| port.parse::<u16>().ok());
    match port {
        Some(port) if port != 0 => Ok(()),
        _ => Err(source.error(address.span(), format!("{text:?} is not an address such as 192.0.2.7:4400"))),
    }
}

/// A name, IPv4 in digits or IPv6 in brackets; whether there is such a host is found out when it is used.
fn is_host(host: &str) -> bool {
    match host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(literal) => literal.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            !host.is_empty()
                && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_'))
        }
    }
}

fn exists<'a>(
    source: &Source<'_>,
    kind: &str,
    wanted: &str,
    span: Range<usize>,
    known: impl Iterator<Item = &'a str>,
) -> Checked {
    let known: Vec<&str> = known.collect();
    if known.contains(&wanted) {
        return Ok(());
    }
    let mut hint = hint::suggestion(wanted, known.iter().copied());
    if hint.is_empty() {
        hint = format!("; there are {}", known.join(", "));
    }
    Err(source.error(span, format!("there is no {kind} {wanted:?}{hint}")))
}

/// Finds values given twice.
struct Unique {
    kind: &'static str,
    what: &'static str,
    seen: BTreeMap<String, Range<usize>>,
}

impl Unique {
    fn new(kind: &'static str, what: &'static str) -> Self {
        Unique { kind, what, seen: BTreeMap::new() }
    }

    fn insert(&mut self, source: &Source<'_>, value: String, span: Range<usize>) -> Checked {
        if let Some(first) = self.seen.get(&value) {
            let (kind, what, line) = (self.kind, self.what, source.line(first));
            return Err(
                source.error(span, format!("two {kind}s have the {what} {value:?}; the other is in line {line}"))
            );
        }
        self.seen.insert(value, span);
        Ok(())
    }
}
