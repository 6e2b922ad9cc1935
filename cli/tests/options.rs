//! What mounts promise by option: linearizable answers, and what becomes of calls that need a region that is cut off.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use common::cluster::{Cluster, Options, eventually};
use common::files::{create, exists, names, text};
use rustix::process::{Pid, Signal, kill_process};

/// What was just done through one mount is seen through the other, by every kind of call.
fn never_stale(writer: &Path, reader: &Path, elsewhere: &Path, rounds: u64) {
    let (file, there) = (writer.join("file"), reader.join("file"));
    create(&file, b"before").unwrap();
    let mut open = File::open(&there).unwrap();
    for round in 0..rounds {
        let content = format!("round {round}").repeat(if round % 3 == 0 { 2000 } else { 1 });
        // In place: the same length as in some earlier round.
        fs::write(&file, &content).unwrap();
        assert_eq!(text(&there), content, "content, round {round}");
        io::Seek::rewind(&mut open).unwrap();
        let mut seen = String::new();
        open.read_to_string(&mut seen).unwrap();
        assert_eq!(seen, content, "content of an open file, round {round}");
        assert_eq!(fs::metadata(&there).unwrap().len(), content.len() as u64, "size, round {round}");

        let mode = 0o600 + u32::try_from(round % 8).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
        assert_eq!(fs::metadata(&there).unwrap().mode() & 0o777, mode, "mode, round {round}");
        rustix::fs::setxattr(&file, "user.round", round.to_string().as_bytes(), rustix::fs::XattrFlags::empty())
            .unwrap();
        let mut value = [0; 32];
        let len = rustix::fs::getxattr(&there, "user.round", &mut value[..]).unwrap();
        assert_eq!(&value[..len], round.to_string().as_bytes(), "xattr, round {round}");

        let name = format!("new-{round}");
        assert!(!exists(&reader.join(&name)), "looked for in vain before");
        create(&writer.join(&name), b"new").unwrap();
        assert!(exists(&reader.join(&name)), "name, round {round}");
        assert!(names(reader).contains(&name), "listing, round {round}");
        // To another group: who asks the one must not miss what was acknowledged by the other.
        let moved = elsewhere.join(format!("{}-{name}", writer.file_name().unwrap().to_string_lossy()));
        fs::rename(writer.join(&name), &moved).unwrap();
        assert!(!exists(&reader.join(&name)), "moved away, round {round}");
        fs::rename(&moved, writer.join(&name)).unwrap();
        assert_eq!(text(&reader.join(&name)), "new", "moved back, round {round}");
        fs::remove_file(writer.join(&name)).unwrap();
        assert!(!names(reader).contains(&name), "removed, round {round}");
        assert!(!exists(&reader.join(&name)), "removed, round {round}");
    }
}

#[test]
fn linearizable_mounts_see_at_once_what_was_done_elsewhere() {
    let cluster = Cluster::up(Options::wan("geo3-fast"));
    let reader = cluster.second_mount("eu", &["-o", "consistency=linearizable"]);
    for home in ["us", "eu", "ap"] {
        fs::create_dir(cluster.path("us", format!("{home}/new"))).unwrap();
    }
    fs::create_dir(cluster.path("us", "new")).unwrap();
    for (home, other) in [("us/new", "eu/new"), ("eu/new", "us/new"), ("new", "ap/new")] {
        eprintln!("{home}");
        let started = Instant::now();
        never_stale(&cluster.path("us", home), &reader.join(home), &cluster.path("us", other), 10);
        eprintln!("{:?}", started.elapsed());
    }
    // It is a mount like others: it writes, and reads what it wrote.
    let own = reader.join("eu/new/own");
    let mut file = File::options().create(true).append(true).open(&own).unwrap();
    file.write_all(b"one").unwrap();
    assert_eq!(text(&own), "one");
    drop(file);
    cluster.check_digests();
}

fn list(path: &Path) -> Child {
    Command::new("ls").arg(path).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

fn ends_within(child: &mut Child, limit: Duration) -> bool {
    let started = Instant::now();
    while started.elapsed() < limit {
        if child.try_wait().unwrap().is_some() {
            return true;
        }
        thread::sleep(Duration::from_millis(20));
    }
    false
}

/// Create, write, rename, list, read, remove where nothing needs the other region.
fn work_at_home(directory: &Path) {
    let started = Instant::now();
    create(&directory.join("one"), b"at home").unwrap();
    fs::rename(directory.join("one"), directory.join("two")).unwrap();
    assert_eq!(text(&directory.join("two")), "at home");
    assert_eq!(names(directory), ["two"]);
    fs::remove_file(directory.join("two")).unwrap();
    assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
}

#[test]
fn calls_that_need_a_cut_off_region_fail_in_time() {
    const DEADLINE: Duration = Duration::from_secs(3);
    let cluster = Cluster::up(Options::wan("geo3-fast"));
    let mount = cluster.second_mount("us", &["--on-cut", "error", "-o", "deadline=3s"]);
    let (home, far) = (mount.join("us/home"), mount.join("eu/far"));
    fs::create_dir(&home).unwrap();
    fs::create_dir(&far).unwrap();
    create(&far.join("file"), b"far").unwrap();
    work_at_home(&home);
    cluster.cut("us", "eu");
    thread::sleep(Duration::from_millis(500));
    let fails = |what: &str, limit: Duration, call: &dyn Fn() -> io::Result<()>| {
        let started = Instant::now();
        let error = call().unwrap_err();
        eprintln!("{what}: {error} after {:?}", started.elapsed());
        let known = [libc::ETIMEDOUT, libc::EHOSTUNREACH];
        assert!(known.contains(&error.raw_os_error().unwrap()), "{what}: {error}");
        assert!(started.elapsed() < limit, "{what}: {:?}", started.elapsed());
    };
    let late = DEADLINE + Duration::from_secs(1);
    fails("create", late, &|| create(&far.join("new"), b"new"));
    thread::sleep(Duration::from_secs(3));
    // By now it is known: nobody waits any more.
    let soon = Duration::from_secs(1);
    for round in 0..5 {
        fails("mkdir", soon, &|| fs::create_dir(far.join(format!("new-{round}"))));
        fails("chmod", soon, &|| fs::set_permissions(far.join("file"), fs::Permissions::from_mode(0o600)));
        fails("rename", soon, &|| fs::rename(far.join("file"), home.join("file")));
        work_at_home(&home);
    }
    cluster.heal();
    eventually(Duration::from_secs(20), "the region to be there again", || create(&far.join("after"), b"after").ok());
    assert_eq!(text(&far.join("after")), "after");
    fs::rename(far.join("file"), home.join("file")).unwrap();
    cluster.check_digests();
}

#[test]
fn calls_that_need_a_cut_off_region_wait_for_it_or_for_ctrl_c() {
    let cluster = Cluster::up(Options::wan("geo3-fast"));
    let mount = cluster.second_mount("us", &["--on-cut", "block", "--deadline", "2s"]);
    let (home, far) = (mount.join("us/home"), mount.join("eu/far"));
    fs::create_dir(&home).unwrap();
    fs::create_dir(&far).unwrap();
    for directory in ["made", "listed"] {
        fs::create_dir(far.join(directory)).unwrap();
    }
    cluster.cut("us", "eu");
    thread::sleep(Duration::from_millis(500));
    let made = far.join("made/during");
    let maker = thread::spawn(move || create(&made, b"during"));
    // A directory that was never listed is not known here.
    let mut lister = list(&far.join("listed"));
    let mut interrupted = list(&far.join("listed"));
    thread::sleep(Duration::from_secs(5));
    assert!(!maker.is_finished(), "waits beyond every deadline");
    assert!(!ends_within(&mut lister, Duration::ZERO) && !ends_within(&mut interrupted, Duration::ZERO));
    work_at_home(&home);
    let pid = Pid::from_child(&interrupted);
    kill_process(pid, Signal::INT).unwrap();
    assert!(ends_within(&mut interrupted, Duration::from_secs(2)), "Ctrl-C ends the wait");
    assert!(!interrupted.wait().unwrap().success());
    assert!(!maker.is_finished() && !ends_within(&mut lister, Duration::ZERO), "the others wait on");
    cluster.heal();
    eventually(Duration::from_secs(20), "what waited to go on", || maker.is_finished().then_some(()));
    maker.join().unwrap().unwrap();
    assert!(ends_within(&mut lister, Duration::from_secs(10)) && lister.wait().unwrap().success());
    assert_eq!(names(&far.join("made")), ["during"], "once");
    assert_eq!(text(&far.join("made/during")), "during");
    cluster.check_digests();
}
