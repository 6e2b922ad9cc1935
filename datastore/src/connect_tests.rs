#![allow(clippy::unwrap_used)]

use super::*;
use crate::ErrorClass;

fn refused(config: &BucketConfig) -> String {
    let error = connect(config).unwrap_err();
    assert_eq!(error.class(), ErrorClass::Caller);
    error.to_string()
}

fn with_credentials(text: &str, url: &str) -> (tempfile::NamedTempFile, BucketConfig) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    let config = BucketConfig { credentials_file: Some(file.path().to_path_buf()), ..BucketConfig::new(url) };
    (file, config)
}

#[test]
fn url_that_cannot_work_is_refused_with_the_remedy() {
    for (url, remedy) in [
        ("", "give a folder"),
        ("ftp://host/x", "`ftp://` is not supported"),
        ("s3://", "name is missing"),
        ("s3:///prefix", "name is missing"),
        ("http://[", "not a URL"),
        ("file://host/relative", "absolute path"),
        ("/no/such/folder", "does not exist"),
    ] {
        let text = refused(&BucketConfig::new(url));
        assert!(text.contains(remedy), "{url}: {text}");
    }
}

#[test]
fn secrets_in_urls_are_refused_and_not_repeated() {
    for url in ["s3://key:hunter2@bucket", "s3://bucket?secret=hunter2", "az://container#hunter2", "s3://hunter2@b"] {
        let text = refused(&BucketConfig::new(url));
        assert!(!text.contains("hunter2"), "{text}");
        assert!(text.contains("credentials"), "{text}");
    }
    let config = BucketConfig { endpoint: Some("https://key:hunter2@host".to_owned()), ..BucketConfig::new("s3://b") };
    let text = refused(&config);
    assert!(!text.contains("hunter2"), "{text}");
}

#[test]
fn endpoint_without_encryption_must_be_meant() {
    let mut config = BucketConfig::new("s3://bucket/a/prefix");
    config.endpoint = Some("http://127.0.0.1:1".to_owned());
    assert!(refused(&config).contains("allow_http = true"));
    config.allow_http = true;
    assert_eq!(connect(&config).unwrap().url(), "s3://bucket/a/prefix");
    config.endpoint = Some("127.0.0.1:1".to_owned());
    assert!(refused(&config).contains("endpoint"));
}

#[test]
fn buckets_of_all_clouds_are_configured_without_asking_them() {
    for url in ["s3://bucket", "gs://bucket/prefix"] {
        connect(&BucketConfig { anonymous: true, ..BucketConfig::new(url) }).unwrap();
    }
    let (_file, config) = with_credentials(
        "azure_storage_account_name = account\nazure_storage_account_key = c2VjcmV0\n",
        "az://container/prefix",
    );
    connect(&config).unwrap();
}

#[test]
fn credentials_file_sections_and_mistakes() {
    let good = "# ours\n[default]\naws_access_key_id = a\naws_secret_access_key = hunter2\n\n[other]\nregion = x\n";
    let (_file, mut config) = with_credentials(good, "s3://bucket");
    connect(&config).unwrap();
    config.profile = Some("other".to_owned());
    assert!(refused(&config).contains("no `aws_access_key_id`"));
    config.profile = Some("third".to_owned());
    assert!(refused(&config).contains("no section [third]"));
    let (_file, config) = with_credentials("aws_access_key_id = a\nhunter2\n", "s3://bucket");
    let text = refused(&config);
    assert!(text.contains("line 2") && !text.contains("hunter2"), "{text}");
    let (_file, config) = with_credentials("not json hunter2", "gs://bucket");
    let text = refused(&config);
    assert!(!text.contains("hunter2"), "{text}");
    let missing = BucketConfig { credentials_file: Some("/no/such/file".into()), ..BucketConfig::new("s3://bucket") };
    assert!(refused(&missing).contains("/no/such/file"));
}

#[test]
fn errors_of_stores_are_shortened_and_stripped_of_queries() {
    let xml = "Client error: <?xml?><Error><Code>SlowDown</Code><Message>Please reduce\n your rate</Message>\
               <StringToSign>x</StringToSign></Error>";
    assert_eq!(explain(xml), "SlowDown: Please reduce your rate");
    assert_eq!(explain("error at https://host/path?sig=hunter2 happened"), "error at https://host/path happened");
    assert!(explain(&"ü".repeat(1000)).chars().count() <= 301);
    assert_eq!(explain("</Code><Code>"), "</Code><Code>");
}

#[test]
fn bucket_without_room_is_told_from_one_that_fails() {
    let answer = |code: &str| {
        let text = format!("Error performing PUT: <Error><Code>{code}</Code><Message>x</Message></Error>");
        crate::bucket::Failure::from(object_store::Error::Generic { store: "S3", source: text.into() }).kind
    };
    assert_eq!(answer("XMinioStorageFull"), crate::bucket::FailureKind::Full);
    assert_eq!(answer("QuotaExceeded"), crate::bucket::FailureKind::OverQuota);
    assert_eq!(answer("SlowDown"), crate::bucket::FailureKind::Transient);
    let system = |kind: std::io::ErrorKind| {
        let source = std::io::Error::from(kind).into();
        crate::bucket::Failure::from(object_store::Error::Generic { store: "folder", source }).kind
    };
    assert_eq!(system(std::io::ErrorKind::StorageFull), crate::bucket::FailureKind::Full);
    assert_eq!(system(std::io::ErrorKind::QuotaExceeded), crate::bucket::FailureKind::OverQuota);
    assert_eq!(system(std::io::ErrorKind::PermissionDenied), crate::bucket::FailureKind::Denied);
}
