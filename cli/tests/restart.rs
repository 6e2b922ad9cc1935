//! What was written is there after the end and a new start.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use common::cluster::{Cluster, Options, REGIONS};
use common::files::{Random, create, exists, names, open_append, text};
use rustix::fs::XattrFlags;

fn fill(cluster: &Cluster, run: u64) {
    let mut random = Random::new(run);
    for (region, home) in [("us", "us"), ("eu", "us"), ("ap", "")] {
        let directory = cluster.path(region, format!("{home}/run-{run}-{region}"));
        fs::create_dir(&directory).unwrap();
        create(&directory.join("small"), format!("small {run}").as_bytes()).unwrap();
        let large = random.bytes(5 << 20);
        create(&directory.join("large"), &large).unwrap();
        fs::write(cluster.folder().join(format!("copy-{run}-{region}")), &large).unwrap();
        symlink("small", directory.join("symlink")).unwrap();
        fs::hard_link(directory.join("small"), cluster.path(region, format!("eu/link-{run}-{region}"))).unwrap();
        fs::set_permissions(directory.join("small"), Permissions::from_mode(0o640)).unwrap();
        rustix::fs::setxattr(directory.join("small"), "user.run", run.to_string().as_bytes(), XattrFlags::empty())
            .unwrap();
        for n in 0..100 {
            File::create(directory.join(format!("many-{n}"))).unwrap();
        }
        let log = cluster.path(region, "log");
        std::io::Write::write_all(&mut open_append(&log).unwrap(), format!("{run} {region}\n").as_bytes()).unwrap();
        // Removed for good, also while it is open at the end.
        create(&directory.join("removed"), &large).unwrap();
        let open = File::open(directory.join("removed")).unwrap();
        fs::remove_file(directory.join("removed")).unwrap();
        drop(open);
        fs::rename(&directory, cluster.path(region, format!("eu/run-{run}-{region}"))).unwrap();
    }
}

fn check(cluster: &Cluster, run: u64) {
    for seen_by in REGIONS {
        for region in REGIONS {
            let directory = cluster.path(seen_by, format!("eu/run-{run}-{region}"));
            assert_eq!(text(&directory.join("small")), format!("small {run}"));
            assert_eq!(text(&directory.join("symlink")), format!("small {run}"));
            let large = fs::read(cluster.folder().join(format!("copy-{run}-{region}"))).unwrap();
            assert!(
                fs::read(directory.join("large")).unwrap() == large,
                "{seen_by} reads another file than {region} wrote"
            );
            let metadata = fs::metadata(directory.join("small")).unwrap();
            assert_eq!((metadata.mode() & 0o7777, metadata.nlink()), (0o640, 2));
            assert_eq!(
                fs::metadata(cluster.path(seen_by, format!("eu/link-{run}-{region}"))).unwrap().ino(),
                metadata.ino()
            );
            let mut value = [0; 20];
            let len = rustix::fs::getxattr(directory.join("small"), "user.run", &mut value).unwrap();
            assert_eq!(value[..len], *run.to_string().as_bytes());
            assert_eq!(names(&directory).len(), 103, "{seen_by}");
            assert!(!exists(&directory.join("removed")));
        }
        let log = text(&cluster.path(seen_by, "log"));
        let of_run = |line: &&str| line.starts_with(&format!("{run} "));
        assert_eq!(log.lines().filter(of_run).count(), 3, "{seen_by}: {log}");
    }
}

fn survives(nodes_per_region: u32) {
    let mut cluster = Cluster::up(Options::default().nodes_per_region(nodes_per_region));
    fill(&cluster, 1);
    cluster.stop();
    assert_eq!(names(&cluster.mount("us")), [""; 0], "the mount point is a plain folder again");
    cluster.start();
    check(&cluster, 1);
    fill(&cluster, 2);
    cluster.stop();
    cluster.start();
    check(&cluster, 1);
    check(&cluster, 2);
    cluster.check_digests();
    fs::remove_dir_all(cluster.path("ap", "eu/run-1-us")).unwrap();
    assert!(!exists(&cluster.seen("us", Path::new(&cluster.path("ap", "eu/run-1-us")))));
}

#[test]
fn data_survive_a_stop_with_one_node_per_region() {
    survives(1);
}

#[test]
fn data_survive_a_stop_with_three_nodes_per_region() {
    survives(3);
}

/// A process that does not outlive the test.
struct Ended(std::process::Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _gone_already = self.0.kill();
        let _waited = self.0.wait();
    }
}

#[test]
fn open_files_and_working_directories_do_not_keep_the_cluster_from_ending() {
    let mut cluster = Cluster::up(Options::default());
    let held = File::create(cluster.path("us", "us/held")).unwrap();
    std::io::Write::write_all(&mut &held, b"not closed").unwrap();
    let mut command = std::process::Command::new("sleep");
    let mut inside = Ended(command.arg("60").current_dir(cluster.path("eu", "eu")).spawn().unwrap());
    let processes = cluster.processes();
    let node = processes.iter().find(|process| matches!(process.part, common::cluster::Part::Node(_))).unwrap();
    cluster.kill(node);
    cluster.stop();
    assert!(inside.0.try_wait().unwrap().is_none(), "the process inside has ended");
    drop((inside, held));
    cluster.start();
    assert!(exists(&cluster.path("ap", "us/held")));
}
