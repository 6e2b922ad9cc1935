//! Real programs on three mounts with distances between them: source packages, git, make and a compiler, sqlite, mv, rm.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::cluster::{Cluster, Options, is_reference, run_ok};
use common::files::{StopAtEnd, exists, names};
use common::tree::summary;

/// Packages that the build has downloaded: thousands of files, one of them with its own makefiles.
const PACKAGES: [&str; 3] = ["librocksdb-sys-", "tokio-1", "lz4-sys-"];
const RESIDENT_KIB_MAX: u64 = 1 << 20;

fn package(prefix: &str) -> PathBuf {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.unwrap_or_else(|| PathBuf::from(std::env::var_os("HOME").unwrap()).join(".cargo"));
    let registries = fs::read_dir(home.join("registry/cache")).unwrap().map(|entry| entry.unwrap().path());
    let crates = registries.flat_map(|registry| fs::read_dir(registry).unwrap()).map(|entry| entry.unwrap().path());
    let mut found: Vec<_> =
        crates.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with(prefix)).collect();
    found.sort();
    found.pop().unwrap_or_else(|| panic!("no package {prefix}* in cargo's cache: build the workspace first"))
}

#[track_caller]
fn same_tree(what: &str, found: &BTreeMap<PathBuf, u64>, expected: &BTreeMap<PathBuf, u64>) {
    let differing: Vec<_> =
        expected.iter().filter(|(path, sum)| found.get(*path) != Some(sum)).map(|(path, _)| path).collect();
    let more: Vec<_> = found.keys().filter(|path| !expected.contains_key(*path)).collect();
    let (few, few_more) = (&differing[..differing.len().min(10)], &more[..more.len().min(10)]);
    assert!(differing.is_empty() && more.is_empty(), "{what}: {} differ {few:?}, more {few_more:?}", differing.len());
}

fn command(folder: &Path, program: &str, arguments: &[&str]) -> String {
    let mut command = Command::new(program);
    command.args(arguments).current_dir(folder).env("HOME", "/nonexistent").env("GIT_CONFIG_NOSYSTEM", "1");
    for (name, value) in [("AUTHOR", "A Tester"), ("COMMITTER", "A Tester")] {
        command.env(format!("GIT_{name}_NAME"), value).env(format!("GIT_{name}_EMAIL"), "tester@example.com");
    }
    let started = Instant::now();
    let output = run_ok(command, Duration::from_secs(300));
    eprintln!("{:>8.2?}  {program} {}", started.elapsed(), arguments.join(" "));
    output
}

fn sqlite(database: &Path, statements: &str) -> String {
    let mut command = Command::new("sqlite3");
    command.args(["-batch", "-cmd", ".timeout 10000"]).arg(database).arg(statements);
    run_ok(command, Duration::from_secs(60)).trim().to_owned()
}

fn unpack(cluster: &Cluster, source: &Path) {
    let local = cluster.folder().join("local");
    fs::create_dir_all(&local).unwrap();
    for prefix in PACKAGES {
        let package = package(prefix);
        for folder in [&local, source] {
            command(folder, "tar", &["xzf", package.to_str().unwrap()]);
        }
    }
    let expected = summary(&local);
    assert!(expected.len() > 2000, "only {} entries", expected.len());
    for region in ["eu", "us", "ap"] {
        let started = Instant::now();
        let path = cluster.seen(region, source);
        same_tree(&format!("unpacked, seen from {region}"), &summary(&path), &expected);
        eprintln!("{:>8.2?}  {} entries compared from {region}", started.elapsed(), expected.len());
    }
}

fn version_control(cluster: &Cluster, source: &Path) {
    command(source, "git", &["init", "-q", "-b", "main"]);
    command(source, "git", &["add", "-A"]);
    command(source, "git", &["commit", "-q", "-m", "everything"]);
    command(source, "git", &["gc", "-q"]);
    command(source, "git", &["fsck", "--full", "--strict"]);
    assert_eq!(command(source, "git", &["status", "--porcelain"]), "");
    // From the other side of the sea.
    let far = cluster.seen("us", source);
    let far_git = |arguments: &[&str]| {
        let mut all = vec!["-c", "safe.directory=*"];
        all.extend(arguments);
        command(&far, "git", &all)
    };
    assert_eq!(far_git(&["status", "--porcelain"]), "");
    far_git(&["fsck"]);
    fs::write(far.join("NOTE"), "written in America\n").unwrap();
    far_git(&["add", "NOTE"]);
    far_git(&["commit", "-q", "-m", "a note"]);
    cluster.sync("us", "eu");
    assert!(command(source, "git", &["log", "--oneline"]).contains("a note"));
    assert_eq!(command(source, "git", &["status", "--porcelain"]), "");
}

fn compile(cluster: &Cluster, source: &Path) {
    let lz4 = names(source).into_iter().find(|name| name.starts_with("lz4-sys-")).unwrap();
    let folder = source.join(lz4).join("liblz4");
    command(&folder, "make", &["-s", "-j2", "lib", "lz4"]);
    // Run what was built, from another region.
    let far = cluster.seen("ap", &folder);
    let input = far.join("lib/lz4.c");
    for step in [["-q", "-9", "-f", "lib/lz4.c", "out.lz4"], ["-q", "-d", "-f", "out.lz4", "out.c"]] {
        command(&far, far.join("programs/lz4").to_str().unwrap(), &step);
    }
    cluster.sync("ap", "eu");
    assert!(fs::read(folder.join("out.c")).unwrap() == fs::read(input).unwrap());
    assert!(
        fs::metadata(folder.join("out.lz4")).unwrap().len() < fs::metadata(folder.join("out.c")).unwrap().len() / 2
    );
    // Up to date, also for the make of another region: times are the same everywhere.
    let again = command(&far, "make", &["-s", "-j2", "lib", "lz4"]);
    assert!(!again.contains("compiling"), "{again}");
}

fn database(cluster: &Cluster) {
    let here = cluster.path("eu", "eu/data.sqlite");
    let started = Instant::now();
    sqlite(&here, "create table numbers(n integer primary key, square integer, text text);");
    sqlite(
        &here,
        "begin; with recursive upto(n) as (select 1 union all select n + 1 from upto where n < 5000)
         insert into numbers select n, n * n, hex(randomblob(30)) from upto; commit;",
    );
    let far = cluster.seen("us", &here);
    assert_eq!(sqlite(&far, "select count(*), sum(square) from numbers;"), "5000|41679167500");
    assert_eq!(sqlite(&far, "pragma integrity_check;"), "ok");
    // Written from all mounts at the same time: sqlite's locks hold between them.
    thread::scope(|scope| {
        for region in ["us", "eu", "ap"] {
            let database = cluster.path(region, "eu/data.sqlite");
            scope.spawn(move || {
                for _ in 0..10 {
                    sqlite(&database, "update numbers set square = square + 1 where n = 1;");
                }
            });
        }
    });
    cluster.sync_all();
    for region in ["us", "eu", "ap"] {
        let database = cluster.path(region, "eu/data.sqlite");
        assert_eq!(sqlite(&database, "select square from numbers where n = 1;"), "31", "{region}");
        assert_eq!(sqlite(&database, "pragma integrity_check;"), "ok", "{region}");
    }
    eprintln!("{:>8.2?}  sqlite", started.elapsed());
}

/// `mv` of the whole tree to America and back, while Asia looks.
fn move_there_and_back(cluster: &Cluster, source: &Path) {
    let expected = summary(source);
    let inode = fs::metadata(source).unwrap().ino();
    let mover = cluster.mount("eu");
    let stops = ["eu/src", "us/src", "eu/src-again", "us/src-again", "eu/src-home"];
    cluster.sync_all();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let _stop = StopAtEnd(&stop);
        let looking = stops.map(|path| cluster.path("ap", path));
        let stop = &stop;
        scope.spawn(move || {
            let mut rounds = 0;
            while !stop.load(Ordering::Relaxed) {
                rounds += 1;
                let found: Vec<_> = looking.iter().filter(|path| exists(path)).collect();
                assert!(!found.is_empty(), "the tree is nowhere");
                let found: Vec<_> = looking.iter().rev().filter(|path| exists(path)).collect();
                assert!(found.len() <= 1, "the tree is at {found:?}");
                if let Some(Ok(entries)) = found.first().map(fs::read_dir) {
                    let listed = entries.filter(Result::is_ok).count();
                    assert!(listed >= 5, "{listed} entries at {found:?}");
                }
            }
            eprintln!("ap looked {rounds} times");
        });
        for step in stops.windows(2) {
            let started = Instant::now();
            command(&mover, "mv", &["-T", step[0], step[1]]);
            assert!(started.elapsed() < Duration::from_secs(10), "a move took {:?}", started.elapsed());
            let kept = fs::metadata(mover.join(step[1])).unwrap().ino();
            assert!(is_reference() || kept == inode, "mv has copied instead of renamed");
            thread::sleep(Duration::from_millis(300));
        }
        cluster.sync_all();
    });
    let home = cluster.path("eu", "eu/src-home");
    same_tree("moved there and back", &summary(&cluster.seen("us", &home)), &expected);
    command(&home, "git", &["fsck"]);
    // And all of it away: a part from another region, the rest from its own.
    let part = names(&home).into_iter().find(|name| name.starts_with("lz4-sys-")).unwrap();
    let far = cluster.seen("us", &home);
    command(&far, "rm", &["-rf", &part]);
    cluster.sync("us", "eu");
    command(&mover, "rm", &["-rf", home.to_str().unwrap()]);
    cluster.sync_all();
    for region in ["us", "eu", "ap"] {
        for path in stops {
            assert!(!exists(&cluster.path(region, path)), "{region}: /{path}");
        }
        assert_eq!(fs::metadata(cluster.path(region, "eu")).unwrap().nlink(), 2, "{region}");
    }
}

#[test]
fn real_programs_work_on_three_mounts() {
    let cluster = Cluster::up(Options::wan("geo3-fast").limit(800));
    let source = cluster.path("eu", "eu/src");
    fs::create_dir(&source).unwrap();
    unpack(&cluster, &source);
    version_control(&cluster, &source);
    compile(&cluster, &source);
    database(&cluster);
    move_there_and_back(&cluster, &source);
    if is_reference() {
        return;
    }
    let (sum, each) = cluster.resident_kib();
    eprintln!("resident memory: {} MiB in all", sum >> 10);
    for (part, kib) in each {
        eprintln!("  {part:?}: {} MiB", kib >> 10);
    }
    assert!(sum < RESIDENT_KIB_MAX, "{sum} KiB resident");
    cluster.check_digests();
}
