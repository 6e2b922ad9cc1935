//! `cluster.toml` as it is written: strict, positions kept, nothing checked across keys yet.

use std::path::PathBuf;

use datastore::BucketConfig;
use serde::Deserialize;
use toml::Spanned;

use crate::units::{ByteSize, TimeSpan};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    pub cluster: Spanned<String>,
    #[serde(default)]
    pub region: Vec<Spanned<Region>>,
    #[serde(default)]
    pub node: Vec<Spanned<Node>>,
    #[serde(default)]
    pub group: Vec<Spanned<Group>>,
    #[serde(default)]
    pub placement: Vec<Spanned<Placement>>,
    #[serde(default)]
    pub volume: Volume,
    #[serde(default)]
    pub tls: Tls,
    #[serde(default)]
    pub limits: Limits,
    #[serde(default)]
    pub timeouts: Timeouts,
    #[serde(default)]
    pub wan: Wan,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Region {
    pub name: Spanned<String>,
    pub bucket: Option<Spanned<BucketConfig>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Node {
    pub number: Spanned<u32>,
    pub name: Spanned<String>,
    pub region: Spanned<String>,
    pub address: Spanned<String>,
    pub listen: Option<Spanned<String>>,
    pub data: Spanned<PathBuf>,
    #[serde(default)]
    pub removed: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Group {
    pub name: Spanned<String>,
    #[serde(default)]
    pub voters: Vec<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Placement {
    pub path: Spanned<String>,
    pub group: Spanned<String>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Volume {
    pub created_unix_s: Option<Spanned<u64>>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub mode: Option<Spanned<String>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Tls {
    pub folder: Option<PathBuf>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Limits {
    pub node_memory: Option<Spanned<ByteSize>>,
    pub node_log: Option<Spanned<ByteSize>>,
    pub client_memory: Option<Spanned<ByteSize>>,
    pub inline: Option<Spanned<ByteSize>>,
    pub cache: Option<Spanned<ByteSize>>,
    pub collect_rate: Option<Spanned<u32>>,
    pub sweep_rate: Option<Spanned<u32>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Timeouts {
    pub deadline: Option<Spanned<TimeSpan>>,
    pub election: Option<Spanned<TimeSpan>>,
    pub session: Option<Spanned<TimeSpan>>,
    pub collect: Option<Spanned<TimeSpan>>,
    pub stray: Option<Spanned<TimeSpan>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wan {
    pub file: Option<PathBuf>,
}
