//! `globalfs up` and the commands around it, from outside.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::fs::{self, File};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::cluster::{Cluster, Options, Part, binary, eventually, is_reference, run, succeeded};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

const TEN_SECONDS: Duration = Duration::from_secs(10);

#[test]
fn what_one_mount_writes_the_others_read_and_find_again_after_a_restart() {
    let mut cluster = Cluster::up(Options::default());
    let large: Vec<u8> = (0..9_000_000u32).map(|at| (at % 251) as u8).collect();
    fs::write(cluster.path("us", "us/small"), "small").unwrap();
    fs::write(cluster.path("eu", "eu/large"), &large).unwrap();
    fs::create_dir(cluster.path("ap", "top")).unwrap();
    cluster.sync_all();
    let check = |cluster: &Cluster| {
        for region in ["us", "eu", "ap"] {
            assert_eq!(fs::read(cluster.path(region, "us/small")).unwrap(), b"small", "{region}");
            assert!(fs::read(cluster.path(region, "eu/large")).unwrap() == large, "{region}");
            assert!(cluster.path(region, "top").is_dir(), "{region}");
        }
    };
    check(&cluster);
    cluster.stop();
    cluster.start();
    check(&cluster);
}

#[test]
fn killed_processes_come_back_and_a_stopped_one_does_not_hold_up_the_end() {
    if is_reference() {
        return;
    }
    let mut cluster = Cluster::up(Options::default());
    fs::write(cluster.path("us", "us/kept"), "kept").unwrap();
    for part in [Part::Node("eu-1".into()), Part::Mount("ap".into())] {
        let old = cluster.process(&part);
        cluster.kill(&old);
        eventually(Duration::from_secs(30), "a killed process to come back", || {
            cluster.processes().into_iter().find(|process| process.part == part && process.pid != old.pid)
        });
    }
    eventually(Duration::from_secs(40), "the mount to work again", || {
        fs::read(cluster.path("ap", "us/kept")).ok().filter(|bytes| bytes == b"kept")
    });
    let stopped = cluster.process(&Part::Node("us-1".into()));
    kill_process(Pid::from_raw(stopped.pid).unwrap(), Signal::STOP).unwrap();
    cluster.kill(&cluster.process(&Part::Mount("eu".into())));
    cluster.stop();
}

#[test]
fn a_killed_supervisor_takes_its_children_along_and_leaves_usable_data() {
    if is_reference() {
        return;
    }
    let mut cluster = Cluster::up(Options::default());
    fs::write(cluster.path("eu", "eu/kept"), "kept").unwrap();
    cluster.kill(&cluster.process(&Part::Up));
    eventually(TEN_SECONDS, "the children to end", || cluster.processes().is_empty().then_some(()));
    cluster.kill_all();
    cluster.start();
    assert_eq!(fs::read(cluster.path("ap", "eu/kept")).unwrap(), b"kept");
}

#[test]
fn a_second_up_on_the_same_data_is_refused() {
    if is_reference() {
        return;
    }
    let cluster = Cluster::up(Options::default());
    let mut command = Command::new(binary());
    command.args(["up", "--json", "--data"]).arg(cluster.data());
    let output = run(command, TEN_SECONDS);
    assert_eq!(output.status.code(), Some(9));
    let message = String::from_utf8(output.stderr).unwrap();
    let pid = cluster.process(&Part::Up).pid;
    assert!(message.contains(&format!("(pid {pid})")), "{message}");
    assert!(cluster.path("ap", "us").is_dir());
}

#[test]
fn up_tells_its_layout_as_json() {
    if is_reference() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let mut command = Command::new(binary());
    command.args(["up", "--json", "--regions", "here", "--data"]).arg(&data);
    let mut up = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let (sender, line) = std::sync::mpsc::channel();
    let stdout = up.stdout.take().unwrap();
    std::thread::spawn(move || {
        let mut line = String::new();
        let _ = std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut line);
        let _ = sender.send(line);
    });
    let line = line.recv_timeout(Duration::from_secs(60));
    // End it before anything is asserted: nothing may be left mounted.
    let point = data.join("mnt/here");
    let seen = fs::read_dir(&point).map(Iterator::count);
    kill_process(Pid::from_child(&up), Signal::TERM).unwrap();
    let status = up.wait().unwrap();
    let layout: Value = serde_json::from_str(&line.unwrap()).unwrap();
    assert!(status.success(), "{status}");
    assert_eq!(layout["ready"], true);
    assert_eq!(layout["mounts"][0]["path"], point.canonicalize().unwrap().to_str().unwrap());
    assert!(layout["nodes"][0]["pid"].is_u64(), "{layout}");
    assert_eq!(seen.unwrap(), 1, "the placed directory");
}

#[test]
fn status_and_explain_tell_about_the_running_cluster() {
    if is_reference() {
        return;
    }
    let cluster = Cluster::up(Options::wan("geo3-fast"));
    let status = cluster.status();
    for node in status["nodes"].as_array().unwrap() {
        let part = Part::Node(node["name"].as_str().unwrap().into());
        assert_eq!(node["up"], true, "{node}");
        assert_eq!(node["pid"], cluster.process(&part).pid, "{node}");
    }
    for group in status["groups"].as_array().unwrap() {
        assert!(group["primary"].is_string(), "{group}");
    }
    assert!(cluster.globalfs_ok(&["place", "list"]).contains("/eu"));

    let path = cluster.path("us", "eu/absent");
    let explained = cluster.globalfs_ok(&["explain", path.to_str().unwrap(), "--json"]);
    let explained: Value = serde_json::from_str(&explained).unwrap();
    assert_eq!((&explained["exists"], &explained["placement"]), (&false.into(), &"eu".into()), "{explained}");
    let create = explained["actions"].as_array().unwrap().iter().find(|action| action["action"] == "name").unwrap();
    assert_eq!(create["groups"], serde_json::json!(["eu"]), "{explained}");
    let trips = |from: &str| {
        create["costs"].as_array().unwrap().iter().find(|cost| cost["from"] == from).unwrap()["round_trips"].clone()
    };
    assert_eq!((trips("eu"), trips("us")), (0.into(), 1.into()), "{explained}");

    let stopped = cluster.process(&Part::Node("eu-1".into()));
    let stopped = Pid::from_raw(stopped.pid).unwrap();
    kill_process(stopped, Signal::STOP).unwrap();
    let begun = Instant::now();
    let output = cluster.globalfs(&["status", "--json", "--timeout", "1s"]);
    kill_process(stopped, Signal::CONT).unwrap();
    assert_eq!(output.status.code(), Some(5), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(begun.elapsed() < Duration::from_secs(6), "{:?}", begun.elapsed());
    let status: Value = serde_json::from_slice(&output.stdout).unwrap();
    let down: Vec<_> = status["nodes"].as_array().unwrap().iter().filter(|node| node["up"] == false).collect();
    assert_eq!(down.len(), 1, "{status}");
    assert_eq!(down[0]["name"], "eu-1");
}

#[test]
fn a_file_describes_distances_jitter_and_loss() {
    if is_reference() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("network");
    let network =
        "regions us eu ap # three places\nrtt us eu 30ms\nrtt * ap 10\njitter us eu 5ms\nloss us eu 3%\nlocal 0.1";
    fs::write(&file, network).unwrap();
    let cluster = Cluster::up(Options::wan(file.to_str().unwrap()));
    let shown: Value = serde_json::from_str(&cluster.globalfs_ok(&["wan", "show", "--json"])).unwrap();
    let link = shown["links"].as_array().unwrap().iter().find(|link| link["a"] == "us" && link["b"] == "eu").unwrap();
    let is = [&link["rtt_ms"], &link["jitter_ms"], &link["loss_percent"]].map(|number| number.as_f64().unwrap());
    assert_eq!(is, [30.0, 5.0, 3.0], "{shown}");
    let begun = Instant::now();
    for n in 0..10 {
        fs::write(cluster.path("us", format!("eu/file-{n}")), n.to_string()).unwrap();
    }
    assert!(begun.elapsed() >= Duration::from_millis(10 * 30), "{:?}: no distance", begun.elapsed());
    cluster.sync_all();
    for n in 0..10 {
        assert_eq!(fs::read_to_string(cluster.path("ap", format!("eu/file-{n}"))).unwrap(), n.to_string());
    }
    // What is changed while it runs is followed.
    cluster.globalfs_ok(&["wan", "loss", "*", "*", "0"]);
    cluster.globalfs_ok(&["wan", "delay", "us", "eu", "120ms"]);
    std::thread::sleep(Duration::from_millis(500));
    let begun = Instant::now();
    fs::write(cluster.path("us", "eu/later"), "later").unwrap();
    assert!(begun.elapsed() >= Duration::from_millis(120), "{:?}", begun.elapsed());
}

#[test]
fn separate_commands_mount_and_unmount_and_refuse_what_is_in_the_way() {
    if is_reference() {
        return;
    }
    let cluster = Cluster::up(Options::default());
    let point = cluster.folder().join("point");
    fs::create_dir(&point).unwrap();
    let shown = point.to_str().unwrap();
    let code = |arguments: &[&str]| cluster.globalfs(arguments).status.code();

    fs::write(point.join("in-the-way"), "").unwrap();
    assert_eq!(code(&["mount", "--region", "eu", shown]), Some(9));
    fs::remove_file(point.join("in-the-way")).unwrap();

    cluster.globalfs_ok(&["mount", "--region", "eu", shown]);
    assert!(point.join("eu").is_dir());
    assert_eq!(code(&["mount", "--region", "eu", shown]), Some(9));

    let busy = File::create(point.join("eu/open")).unwrap();
    assert_eq!(code(&["umount", shown]), Some(9));
    drop(busy);
    // The kernel lets go of a closed file a moment later.
    eventually(TEN_SECONDS, "the unmount", || (code(&["umount", shown]) == Some(0)).then_some(()));
    assert_eq!(fs::read_dir(&point).unwrap().count(), 0);
    assert_eq!(code(&["umount", shown]), Some(1));

    cluster.globalfs_ok(&["mount", "--region", "eu", shown, "-o", "ro,deadline=10s"]);
    let refused = File::create(point.join("eu/refused")).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(rustix::io::Errno::ROFS.raw_os_error()));
    let _busy = File::open(point.join("eu/open")).unwrap();
    cluster.globalfs_ok(&["umount", "--force", shown]);
    assert_eq!(fs::read_dir(&point).unwrap().count(), 0);
    assert_eq!(code(&["mount", "--region", "eu", &format!("{shown}-absent")]), Some(1));

    // As mount(8) calls it.
    let helper = cluster.folder().join("mount.globalfs");
    std::os::unix::fs::symlink(binary(), &helper).unwrap();
    let source = format!("ap@{}", cluster.data().join("cluster.toml").display());
    let mount = || {
        let mut command = Command::new(&helper);
        command.args([&source, shown, "-s", "-o", "rw,noexec,_netdev,nofail,x-systemd.automount,deadline=10s"]);
        run(command, Duration::from_secs(30)).status.code()
    };
    assert_eq!(mount(), Some(0));
    assert_eq!(mount(), Some(32), "mounted already");
    fs::write(point.join("ap/by-fstab"), "").unwrap();
    let table = fs::read_to_string("/proc/mounts").unwrap();
    let line = table.lines().find(|line| line.contains(shown)).unwrap();
    assert!(line.starts_with(&source) && line.contains("fuse.globalfs") && line.contains("noexec"), "{line}");
    eventually(TEN_SECONDS, "the unmount", || (code(&["umount", shown]) == Some(0)).then_some(()));

    // Mistakes about paths name the path.
    let output = cluster.globalfs(&["place", "set", "/nowhere", "--group", "eu"]);
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(1) && told.contains("/nowhere: No such file"), "{told}");
}

#[test]
fn lab_agrees_with_a_cluster_on_what_distance_costs() {
    if is_reference() {
        return;
    }
    let cluster = Cluster::up(Options::wan("geo3"));
    let (mounts, out) = (["us", "eu", "ap"].map(|region| cluster.mount(region)), cluster.folder().join("report"));
    let mounts = mounts.map(|mount| mount.to_str().unwrap().to_owned()).join(",");
    let place = out.to_str().unwrap();
    let asked = ["--rtt", "geo3", "--voters", "1", "--ops", "write,stat", "--duration", "1s", "--out", place];
    let arguments = [&["bench", "geo", "--real", &mounts], &asked[..]].concat();
    // It lets everything come to rest several times.
    succeeded(&arguments, &cluster.globalfs_within(Duration::from_secs(300), &arguments));
    let report: Value = serde_json::from_slice(&fs::read(out.join("report.json")).unwrap()).unwrap();
    let lines = report["validation"].as_array().unwrap();
    assert!(lines.len() >= 8, "{report}");
    for line in lines {
        let (real, simulated) = (line["real_ms"].as_f64().unwrap(), line["simulated_ms"].as_f64().unwrap());
        assert!(real > 0.0 && simulated > 0.0, "{line}");
        // The costs are another machine's: what distance decides must agree nevertheless.
        let is_far = line["scope"] == "remote" || (line["scope"] == "global" && line["op"] != "stat");
        if is_far && line["clients"] == 1 {
            assert!((0.85..1.15).contains(&(simulated / real)), "{line}");
        }
    }
    let json = out.join("report.json");
    let json = json.to_str().unwrap();
    cluster.globalfs_ok(&["bench", "geo", "--regions", "1,3", "--ops", "create", "--clients", "2", "--out", place]);
    cluster.globalfs_ok(&["bench", "report", json, json]);
    let wrong = cluster.globalfs(&["bench", "geo", "--ops", "creates", "--out", place]);
    assert!(wrong.status.code() == Some(2) && String::from_utf8_lossy(&wrong.stderr).contains("create"));
}
