use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use net::{ClusterCa, ErrorClass, Identity, PeerName, Role, pki::check_name};

struct Files {
    _directory: tempfile::TempDir,
    ca: std::path::PathBuf,
    ca_key: std::path::PathBuf,
    certificate: std::path::PathBuf,
    key: std::path::PathBuf,
}

fn files() -> Files {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let files = Files {
        ca: at("ca.pem"),
        ca_key: at("ca.key"),
        certificate: at("node.pem"),
        key: at("node.key"),
        _directory: directory,
    };
    let ca = ClusterCa::create("prod").unwrap();
    ca.save(&files.ca, &files.ca_key).unwrap();
    ca.issue(Role::Node, "us-1").unwrap().save(&files.certificate, &files.key).unwrap();
    files
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn identity_saved_and_loaded_keeps_name_cluster_and_modes() {
    let files = files();
    let identity = Identity::load(&files.certificate, &files.key, &files.ca).unwrap();
    assert_eq!(identity.peer_name(), &PeerName::node("us-1"));
    assert_eq!(identity.peer_name().to_string(), "node.us-1.globalfs");
    assert_eq!(identity.cluster(), "prod");
    assert_eq!((mode(&files.key), mode(&files.ca_key)), (0o600, 0o600));
    assert_eq!((mode(&files.certificate), mode(&files.ca)), (0o644, 0o644));
}

#[test]
fn authority_loaded_again_issues_certificates_that_verify() {
    let files = files();
    let ca = ClusterCa::load(&files.ca, &files.ca_key).unwrap();
    let loaded = Identity::load(&files.certificate, &files.key, &files.ca).unwrap();
    assert_eq!((ca.cluster(), ca.fingerprint()), ("prod", loaded.fingerprint()));
    ca.issue(Role::Client, "laptop").unwrap().save(&files.certificate, &files.key).unwrap();
    let client = Identity::load(&files.certificate, &files.key, &files.ca).unwrap();
    assert_eq!(client.peer_name(), &PeerName::client("laptop"));
    assert_ne!(ClusterCa::create("prod").unwrap().fingerprint(), ca.fingerprint());
}

#[test]
fn authority_is_never_written_over_another() {
    let files = files();
    let before = fs::read(&files.ca).unwrap();
    assert!(ClusterCa::create("prod").unwrap().save(&files.ca, &files.ca_key).is_err());
    assert_eq!(fs::read(&files.ca).unwrap(), before);
}

#[test]
fn identity_with_wrong_files_fails_naming_the_file() {
    let files = files();
    let (other_ca, other_key) = (files.ca.with_extension("other"), files.ca_key.with_extension("other-key"));
    ClusterCa::create("prod").unwrap().save(&other_ca, &other_key).unwrap();
    let empty = files.ca.with_extension("empty");
    fs::write(&empty, "hello").unwrap();
    let missing = files.ca.with_extension("missing");
    for (certificate, key, ca, culprit) in [
        (&missing, &files.key, &files.ca, &missing),
        (&files.certificate, &missing, &files.ca, &missing),
        (&empty, &files.key, &files.ca, &empty),
        (&files.certificate, &empty, &files.ca, &empty),
        (&files.certificate, &files.key, &empty, &empty),
        // Another authority of the same name; a key that does not fit; the authority's own certificate.
        (&files.certificate, &files.key, &other_ca, &files.certificate),
        (&files.certificate, &files.ca_key, &files.ca, &files.certificate),
        (&files.ca, &files.ca_key, &files.ca, &files.ca),
    ] {
        let error = Identity::load(certificate, key, ca).unwrap_err();
        assert_eq!(error.class(), ErrorClass::Caller);
        assert!(error.to_string().contains(culprit.to_str().unwrap()), "{error}");
    }
    assert!(ClusterCa::load(&files.ca, &other_key).is_err());
    assert!(ClusterCa::load(&files.certificate, &files.key).is_err(), "a member is not an authority");
}

#[test]
fn names_that_are_not_one_label_are_refused() {
    for name in ["", "a.b", "A", "-a", "a-", "a_b", "ä", "a b", &"a".repeat(64)] {
        assert!(check_name(name).is_err(), "{name}");
        assert!(ClusterCa::create(name).is_err());
    }
    assert!("node.a.b.globalfs".parse::<PeerName>().is_err());
    assert!("root.a.globalfs".parse::<PeerName>().is_err());
    assert!("node.a.example".parse::<PeerName>().is_err());
    assert_eq!("client.a-1.globalfs".parse::<PeerName>().unwrap(), PeerName::client("a-1"));
}
