//! The crate graph is the architecture: these arrows are checked, not hoped for.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

const OURS: [&str; 8] =
    ["multicast", "metadata", "replica", "net", "partition-replica", "datastore", "fs-client", "cli"];
const PURE: [&str; 3] = ["multicast", "metadata", "replica"];
const TOUCHES_THE_WORLD: [&str; 6] = ["tokio", "quinn", "rocksdb", "fuser", "object_store", "rand"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

/// Crate → its direct normal dependencies, from `cargo metadata`.
fn dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    packages
        .iter()
        .map(|package| {
            let normal = package["dependencies"].as_array().unwrap().iter().filter(|one| one["kind"].is_null());
            let names = normal.map(|one| one["name"].as_str().unwrap().to_owned()).collect();
            (package["name"].as_str().unwrap().to_owned(), names)
        })
        .collect()
}

fn rust_files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn pure_crates_depend_on_nothing_that_touches_the_world() {
    let dependencies = dependencies();
    for pure in PURE {
        for banned in TOUCHES_THE_WORLD {
            assert!(!dependencies[pure].contains(banned), "{pure} must stay pure but depends on {banned}");
        }
    }
}

#[test]
fn crates_depend_only_along_the_arrows() {
    let allowed: BTreeMap<&str, &[&str]> = BTreeMap::from([
        ("multicast", &[][..]),
        ("metadata", &["multicast"][..]),
        ("replica", &["multicast", "metadata"][..]),
        ("net", &[][..]),
        ("datastore", &[][..]),
        ("partition-replica", &["multicast", "metadata", "replica", "net"][..]),
        ("fs-client", &["multicast", "metadata", "net", "datastore"][..]),
    ]);
    let dependencies = dependencies();
    for (name, allowed) in allowed {
        for ours in OURS {
            let depends = dependencies[name].contains(ours);
            assert!(!depends || allowed.contains(&ours), "{name} must not depend on {ours}");
        }
    }
}

/// A library is named in the one folder that wraps it.
#[test]
fn libraries_are_named_only_where_they_are_wrapped() {
    let homes = [
        ("rocksdb::", "partition-replica/src/storage"),
        ("object_store::", "datastore/src"),
        ("fuser::", "fs-client/src/fuse"),
        ("quinn::", "net/src"),
    ];
    for ours in OURS {
        let mut files = Vec::new();
        rust_files(&root().join(ours).join("src"), &mut files);
        assert!(!files.is_empty(), "{ours} has no sources");
        for file in files {
            let text = std::fs::read_to_string(&file).unwrap();
            let path = file.strip_prefix(root()).unwrap().display().to_string();
            for (library, home) in homes {
                assert!(
                    path.starts_with(home) || !text.contains(library),
                    "{path} names {library}: it belongs to {home}"
                );
            }
        }
    }
}
