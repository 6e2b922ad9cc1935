//! From a bucket's configuration to a store: URLs, credentials, TLS.

use std::path::{Path as FilePath, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use object_store::{BackoffConfig, ClientOptions, ObjectStore, RetryConfig};
use url::Url;

use crate::bucket::explain;
use crate::folder::FolderStore;
use crate::{Bucket, BucketConfig, Error, Result};

/// How long a server may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Idle connections kept to one server.
const IDLE_CONNECTIONS_MAX: usize = 32;
/// Longest credentials file that is read.
const CREDENTIALS_LEN_MAX: u64 = 64 << 10;

/// See [`Bucket::configure`].
pub(crate) fn connect(config: &BucketConfig) -> Result<Bucket> {
    if config.url.is_empty() {
        return Err(invalid("(none)", "the URL is empty; give a folder, s3://, gs:// or az://"));
    }
    if !config.url.contains("://") {
        return folder(config, PathBuf::from(&config.url), &config.url);
    }
    let Ok(url) = Url::parse(&config.url) else {
        return Err(invalid("(unreadable URL)", "not a URL; give a folder, s3://, gs:// or az://"));
    };
    let shown = format!("{}://{}{}", url.scheme(), url.host_str().unwrap_or_default(), url.path());
    if !url.username().is_empty() || url.password().is_some() || url.query().is_some() || url.fragment().is_some() {
        return Err(invalid(
            &shown,
            "credentials and options do not belong into the URL; use the environment or `credentials_file`",
        ));
    }
    if url.scheme() == "file" {
        let path = url.to_file_path().map_err(|()| invalid(&shown, "a file:// URL needs an absolute path"))?;
        return folder(config, path, &shown);
    }
    let Some(host) = url.host_str().filter(|host| !host.is_empty()) else {
        return Err(invalid(&shown, "the bucket's name is missing"));
    };
    check_endpoint(config, &shown)?;
    install_tls_provider();
    let store: Arc<dyn ObjectStore> = match url.scheme() {
        "s3" => s3(config, &shown, host)?,
        "gs" => gs(config, &shown, host)?,
        "az" => az(config, &shown, host)?,
        other => {
            let reason = format!("`{other}://` is not supported; give a folder, s3://, gs:// or az://");
            return Err(invalid(&shown, reason));
        }
    };
    let prefix = Path::from_url_path(url.path()).map_err(|error| invalid(&shown, error.to_string()))?;
    let store = if prefix.as_ref().is_empty() { store } else { Arc::new(PrefixStore::new(store, prefix)) };
    Ok(Bucket::from_store(&shown, store, true))
}

fn folder(config: &BucketConfig, path: PathBuf, shown: &str) -> Result<Bucket> {
    let cannot = |step: &str, error: std::io::Error| invalid(shown, format!("cannot {step} the folder: {error}"));
    if config.create {
        std::fs::create_dir_all(&path).map_err(|error| cannot("create", error))?;
    }
    let metadata = match std::fs::metadata(&path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(invalid(shown, "the folder does not exist; create it (or mount its disk)"));
        }
        Err(error) => return Err(cannot("open", error)),
    };
    if !metadata.is_dir() {
        return Err(invalid(shown, "it is not a folder"));
    }
    let store = FolderStore::open(&path).map_err(|error| cannot("open", error))?;
    Ok(Bucket::from_store(shown, Arc::new(store), false))
}

fn check_endpoint(config: &BucketConfig, shown: &str) -> Result<()> {
    let Some(endpoint) = &config.endpoint else { return Ok(()) };
    let Ok(url) = Url::parse(endpoint) else {
        return Err(invalid(shown, "`endpoint` is not a URL such as https://host:9000"));
    };
    if !url.username().is_empty() || url.password().is_some() {
        return Err(invalid(shown, "credentials do not belong into `endpoint`"));
    }
    match url.scheme() {
        "https" => Ok(()),
        "http" if config.allow_http => Ok(()),
        "http" => {
            Err(invalid(shown, "`endpoint` is http://, not encrypted; if that is meant, set `allow_http = true`"))
        }
        _ => Err(invalid(shown, "`endpoint` must begin with https:// or http://")),
    }
}

/// The HTTP client wants a default provider; another one that the process has chosen already is just as good.
fn install_tls_provider() {
    if rustls::crypto::CryptoProvider::get_default().is_none() {
        let _ = rustls::crypto::ring::default_provider().install_default();
    }
}

fn s3(config: &BucketConfig, shown: &str, bucket: &str) -> Result<Arc<dyn ObjectStore>> {
    let mut builder = if config.anonymous || config.credentials_file.is_some() {
        AmazonS3Builder::new()
    } else {
        AmazonS3Builder::from_env()
    };
    let path_style = config.path_style.unwrap_or(config.endpoint.is_some());
    builder = builder
        .with_bucket_name(bucket)
        .with_virtual_hosted_style_request(!path_style)
        .with_allow_http(config.allow_http)
        .with_retry(no_retries())
        .with_client_options(client_options(config))
        .with_skip_signature(config.anonymous);
    if let Some(endpoint) = &config.endpoint {
        builder = builder.with_endpoint(endpoint);
    }
    if let Some(region) = &config.region {
        builder = builder.with_region(region);
    }
    if let Some(file) = &config.credentials_file {
        let pairs = read_pairs(shown, file, config.profile.as_deref())?;
        require(shown, file, &pairs, &["aws_access_key_id", "aws_secret_access_key"])?;
        for Pair { key, value } in pairs {
            if let Ok(key) = AmazonS3ConfigKey::from_str(&key) {
                builder = builder.with_config(key, value);
            }
        }
    }
    Ok(Arc::new(builder.build().map_err(|error| invalid(shown, explain(&error.to_string())))?))
}

fn gs(config: &BucketConfig, shown: &str, bucket: &str) -> Result<Arc<dyn ObjectStore>> {
    let mut builder = if config.anonymous || config.credentials_file.is_some() {
        GoogleCloudStorageBuilder::new()
    } else {
        GoogleCloudStorageBuilder::from_env()
    };
    builder = builder
        .with_bucket_name(bucket)
        .with_retry(no_retries())
        .with_client_options(client_options(config))
        .with_skip_signature(config.anonymous);
    if let Some(endpoint) = &config.endpoint {
        builder = builder.with_base_url(endpoint);
    }
    if let Some(file) = &config.credentials_file {
        // Read here, so that a missing file is our clear error and not a later one.
        builder = builder.with_service_account_key(read_credentials(shown, file)?);
    }
    Ok(Arc::new(builder.build().map_err(|error| invalid(shown, explain(&error.to_string())))?))
}

fn az(config: &BucketConfig, shown: &str, container: &str) -> Result<Arc<dyn ObjectStore>> {
    let mut builder = if config.anonymous || config.credentials_file.is_some() {
        MicrosoftAzureBuilder::new()
    } else {
        MicrosoftAzureBuilder::from_env()
    };
    builder = builder
        .with_container_name(container)
        .with_allow_http(config.allow_http)
        .with_retry(no_retries())
        .with_client_options(client_options(config))
        .with_skip_signature(config.anonymous);
    if let Some(endpoint) = &config.endpoint {
        builder = builder.with_endpoint(endpoint.clone());
    }
    if let Some(file) = &config.credentials_file {
        let pairs = read_pairs(shown, file, config.profile.as_deref())?;
        require(shown, file, &pairs, &["azure_storage_account_name"])?;
        for Pair { key, value } in pairs {
            if let Ok(key) = AzureConfigKey::from_str(&key) {
                builder = builder.with_config(key, value);
            }
        }
    }
    Ok(Arc::new(builder.build().map_err(|error| invalid(shown, explain(&error.to_string())))?))
}

/// One attempt is one request: retries, deadlines and back-off are in one place, the blob store.
fn no_retries() -> RetryConfig {
    RetryConfig { backoff: BackoffConfig::default(), max_retries: 0, retry_timeout: Duration::from_secs(60) }
}

fn client_options(config: &BucketConfig) -> ClientOptions {
    ClientOptions::new()
        .with_allow_http(config.allow_http)
        .with_connect_timeout(CONNECT_TIMEOUT)
        .with_timeout_disabled()
        .with_pool_max_idle_per_host(IDLE_CONNECTIONS_MAX)
}

/// No `Debug`: the value may be a secret.
struct Pair {
    key: String,
    value: String,
}

fn read_credentials(shown: &str, file: &FilePath) -> Result<String> {
    let cannot = |reason: &dyn std::fmt::Display| {
        invalid(shown, format!("cannot read credentials file {}: {reason}", file.display()))
    };
    let metadata = std::fs::metadata(file).map_err(|error| cannot(&error))?;
    if metadata.len() > CREDENTIALS_LEN_MAX {
        return Err(cannot(&"it is too long to be one"));
    }
    std::fs::read_to_string(file).map_err(|error| cannot(&error))
}

/// The `key = value` lines of the wanted section, keys in lower case.
fn read_pairs(shown: &str, file: &FilePath, profile: Option<&str>) -> Result<Vec<Pair>> {
    let text = read_credentials(shown, file)?;
    let wanted = profile.unwrap_or("default");
    let mut section = "default";
    let mut found = profile.is_none();
    let mut pairs = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with(['#', ';']) {
            continue;
        }
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            section = name.trim();
            found |= section == wanted;
            continue;
        }
        let Some((key, value)) = line.split_once('=') else {
            // The line may be a secret: only its number is told.
            let reason = format!("credentials file {} line {}: not `key = value`", file.display(), number + 1);
            return Err(invalid(shown, reason));
        };
        if section == wanted {
            pairs.push(Pair { key: key.trim().to_lowercase(), value: value.trim().trim_matches('"').to_owned() });
        }
    }
    if found {
        return Ok(pairs);
    }
    Err(invalid(shown, format!("credentials file {} has no section [{wanted}]", file.display())))
}

fn require(shown: &str, file: &FilePath, pairs: &[Pair], keys: &[&str]) -> Result<()> {
    for key in keys {
        if !pairs.iter().any(|pair| pair.key == *key && !pair.value.is_empty()) {
            return Err(invalid(shown, format!("credentials file {} has no `{key}`", file.display())));
        }
    }
    Ok(())
}

fn invalid(shown: &str, reason: impl Into<String>) -> Error {
    Error::Config { url: shown.to_owned(), reason: reason.into() }
}

#[cfg(test)]
#[path = "connect_tests.rs"]
mod tests;
