//! The POSIX suites `pjdfstest` and `fsx` on a mount. Both come from `./x setup tests`; a missing one is a failure.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use common::cluster::{Cluster, Options, is_reference, run};

/// Test cases of pjdfstest that fail on GlobalFS, each with its reason. There are none; keep it so.
const EXPECTED_FAILURES: &[(&str, &str)] = &[];

/// What pjdfstest 0.2.2 passes here. On ext4 it is one more: `link::link_count_max` asks the C library for the greatest link
/// count, which it knows by file system and for none that is mounted through FUSE, and skips. The others that are skipped
/// need file flags, NFSv4 ACLs, a second file system or a read-only remount, as on ext4.
const PASSED_MIN: u64 = 382;
const SKIPPED_MAX: u64 = 16;

const PJDFSTEST_CONFIG: &str = r#"
[features]
posix_fallocate = {}
rename_ctime = {}
utime_now = {}
utimensat = {}

[settings]
naptime = 0.01
allow_remount = false

[dummy_auth]
entries = [["nobody", "nogroup"], ["tests", "tests"]]
"#;

fn tool(variable: &str, name: &str) -> PathBuf {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.unwrap_or_else(|| PathBuf::from(std::env::var_os("HOME").unwrap()).join(".cache"));
    let path = std::env::var_os(variable).map_or_else(|| cache.join("globalfs/tools/bin").join(name), PathBuf::from);
    assert!(path.is_file(), "{} is missing: run `./x setup tests`, or set {variable}", path.display());
    path
}

/// The suite creates paths of exactly the longest length and cannot when this many characters are left over.
fn check_length(directory: &Path) {
    let len = directory.as_os_str().len();
    assert_ne!(len % 127, 9, "pjdfstest 0.2.2 fails on any file system below a path of {len} characters; rename it");
}

/// A short folder for a cluster: paths below it go to the limits.
fn short_cluster(name: &str, options: Options) -> Cluster {
    let folder = PathBuf::from(format!("/tmp/gfs{name}{}", std::process::id()));
    Cluster::up_in(options, folder)
}

fn pjdfstest(cluster: &Cluster, region: &str, home: &str) {
    let directory = cluster.path(region, home).join("pjdfstest");
    check_length(&directory);
    fs::create_dir(&directory).unwrap();
    fs::set_permissions(&directory, Permissions::from_mode(0o777)).unwrap();
    let expected: Vec<_> = EXPECTED_FAILURES.iter().map(|(name, _)| format!("{name:?}")).collect();
    let config = cluster.folder().join("pjdfstest.toml");
    let settings = format!("[settings]\nexpected_failures = [{}]", expected.join(", "));
    fs::write(&config, PJDFSTEST_CONFIG.replace("[settings]", &settings)).unwrap();
    let started = Instant::now();
    let mut command = Command::new(tool("GLOBALFS_PJDFSTEST", "pjdfstest"));
    command.arg("-c").arg(&config).arg("-p").arg(&directory).current_dir("/").env("NO_COLOR", "1");
    let output = run(command, Duration::from_secs(420));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let summary = text.lines().find(|line| line.starts_with("Summary")).unwrap_or("no summary").to_owned();
    eprintln!("/{home} on {region}: {summary} ({:?})", started.elapsed());
    if !output.status.success() {
        let noise = |line: &&str| !line.trim_end().ends_with(" ok") && !line.trim_end().ends_with("skipped");
        let told: Vec<_> = text.lines().filter(noise).filter(|line| !line.contains("requires")).collect();
        panic!("{}\n{}\n{}", output.status, told.join("\n"), String::from_utf8_lossy(&output.stderr));
    }
    let count = |what: &str| -> u64 {
        let words: Vec<_> = summary.split([' ', ',']).filter(|word| !word.is_empty()).collect();
        let at = words.iter().position(|word| *word == what).unwrap();
        words[at - 1].parse().unwrap()
    };
    assert_eq!(count("failed"), 0, "{summary}");
    assert!(count("passed") >= PASSED_MIN && count("skipped") <= SKIPPED_MAX, "{summary}");
}

#[test]
fn pjdfstest_passes_in_a_placed_subtree() {
    let cluster = short_cluster("p", Options::default().limit(500));
    pjdfstest(&cluster, "us", "us");
}

#[test]
fn pjdfstest_passes_in_the_root_and_in_a_far_subtree() {
    let cluster = short_cluster("r", Options::default().limit(800));
    pjdfstest(&cluster, "eu", "");
    pjdfstest(&cluster, "us", "ap");
}

/// Every kind of operation, small and large, short and long files.
fn fsx_config(file_len: u64, operation_len: u64) -> String {
    format!(
        "flen = {file_len}
nomsyncafterwrite = false
nosizechecks = false
blockmode = false

[opsize]
max = {operation_len}
min = 0
align = 1

[weights]
close_open = 2
read = 10
write = 10
mapread = 10
mapwrite = 10
invalidate = 2
truncate = 5
fsync = 1
fdatasync = 1
posix_fallocate = 3
punch_hole = 5
sendfile = 3
posix_fadvise = 1
copy_file_range = 5
"
    )
}

fn fsx(cluster: &Cluster, region: &str, home: &str, seed: u64, operations: u64, lens: (u64, u64)) {
    let config = cluster.folder().join(format!("fsx-{}-{}.toml", lens.0, lens.1));
    fs::write(&config, fsx_config(lens.0, lens.1)).unwrap();
    let artifacts = cluster.folder().join(format!("fsx-{region}-{seed}"));
    fs::create_dir_all(&artifacts).unwrap();
    let file = cluster.path(region, home).join(format!("fsx-{seed}-{}", lens.1));
    let started = Instant::now();
    let mut command = Command::new(tool("GLOBALFS_FSX", "fsx"));
    command.arg("-f").arg(&config).args(["-N", &operations.to_string(), "-S", &seed.to_string(), "-P"]);
    command.arg(&artifacts).arg(&file).current_dir("/");
    let output = run(command, Duration::from_secs(120));
    let told = [output.stdout, output.stderr].concat();
    let told = String::from_utf8_lossy(&told);
    let tail: Vec<_> = told.lines().rev().take(60).collect();
    let tail: Vec<_> = tail.into_iter().rev().collect();
    assert!(output.status.success(), "seed {seed}, {lens:?} in /{home}: {}\n{}", output.status, tail.join("\n"));
    eprintln!("{operations} operations, seed {seed}, {lens:?} in /{home} on {region}: {:?}", started.elapsed());
    // What is left is the same for everybody.
    let here = fs::read(&file).unwrap();
    let there = fs::read(cluster.seen(if region == "us" { "ap" } else { "us" }, &file)).unwrap();
    assert!(here == there, "seed {seed}: another mount reads {} bytes instead of {}", there.len(), here.len());
}

#[test]
fn fsx_finds_no_difference() {
    let cluster = short_cluster("x", Options::default().limit(600));
    for seed in [1, 2, 3] {
        fsx(&cluster, "us", "us", seed, 3000, (262_144, 65_536));
    }
    // All inline; across the limit of inline files; long files of several blobs.
    fsx(&cluster, "us", "us", 4, 4000, (4096, 700));
    fsx(&cluster, "us", "us", 5, 3000, (20_000, 6000));
    fsx(&cluster, "us", "us", 6, 600, (12 << 20, 6 << 20));
    // In another region's group, and in the root's.
    fsx(&cluster, "eu", "us", 7, 1500, (262_144, 65_536));
    fsx(&cluster, "ap", "", 8, 1500, (262_144, 65_536));
}

#[test]
fn suites_of_the_pinned_versions_are_here() {
    for (variable, name, version) in [("GLOBALFS_PJDFSTEST", "pjdfstest", "0.2.2"), ("GLOBALFS_FSX", "fsx", "0.3.2")] {
        let mut command = Command::new(tool(variable, name));
        command.arg("--version");
        let output = run(command, Duration::from_secs(10));
        let told = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(told.contains(version), "{name}: {told}");
    }
    assert!(is_reference() || EXPECTED_FAILURES.iter().all(|(_, reason)| !reason.is_empty()));
}
