//! How a bucket is configured.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// A region's bucket, as it stands in a configuration file. Secrets are never part of it: they come from the
/// environment or from `credentials_file`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BucketConfig {
    /// A folder (a path or `file:///path`), `s3://bucket/prefix`, `gs://bucket/prefix` or `az://container/prefix`.
    pub url: String,
    /// Server to talk to instead of the cloud's own, for example `http://127.0.0.1:9000`.
    pub endpoint: Option<String>,
    /// The cloud's name of the region, for example `eu-central-1`. Only `s3://` uses it.
    pub region: Option<String>,
    /// Name the bucket in the path of requests and not in the host name. Default: yes with an `endpoint`, no without.
    pub path_style: Option<bool>,
    /// Allow `http://` endpoints. Default: no.
    pub allow_http: bool,
    /// File with the credentials instead of the environment: `key = value` lines, as in `~/.aws/credentials`
    /// (`aws_access_key_id`, `aws_secret_access_key`, `azure_storage_account_name`, …), or for `gs://` the JSON key of
    /// a service account.
    pub credentials_file: Option<PathBuf>,
    /// Section of the credentials file. Default: `default`, or what stands before the first section.
    pub profile: Option<String>,
    /// Send requests without a signature (public buckets).
    pub anonymous: bool,
    /// Create the folder when it is missing. Default: no, because a missing folder is often a disk that is not mounted.
    pub create: bool,
}

impl BucketConfig {
    /// The bucket at `url` with everything else as by default.
    #[must_use]
    pub fn new(url: impl Into<String>) -> BucketConfig {
        BucketConfig { url: url.into(), ..BucketConfig::default() }
    }
}
