//! The program from outside where no cluster is needed: help, exit codes, messages.
#![allow(clippy::unwrap_used)]

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

const GLOBALFS: &str = env!("CARGO_BIN_EXE_globalfs");

fn globalfs<S: AsRef<OsStr>>(args: &[S]) -> Output {
    let folder = std::env::temp_dir();
    Command::new(GLOBALFS)
        .args(args)
        .env_remove("GLOBALFS_CONFIG")
        .current_dir(folder)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn every_command_has_help_with_examples() {
    let top = globalfs(&["--help"]);
    assert!(stdout(&top).contains("Exit codes"));
    let mut seen = 0;
    let mut commands = vec![Vec::new()];
    while let Some(command) = commands.pop() {
        let output = globalfs(&[&command[..], &["--help".to_owned()]].concat());
        let help = stdout(&output);
        assert!(output.status.success(), "{command:?}");
        let examples = help.split("Examples:\n").nth(1).or_else(|| help.split("Start here:\n").nth(1));
        let examples = examples.unwrap_or_else(|| panic!("{command:?} has no examples: {help}"));
        assert!(examples.trim_start().starts_with("globalfs"), "{command:?}: {examples}");
        assert!(examples.contains(&command.join(" ")) || command == ["place", "apply"], "{command:?}: {examples}");
        seen += 1;
        let below = help.split("Commands:\n").nth(1).unwrap_or_default().lines().take_while(|line| !line.is_empty());
        let names = below.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
        for name in names.filter_map(|line| line.split_whitespace().next()).filter(|name| *name != "help") {
            commands.push([&command[..], &[name.to_owned()]].concat());
        }
    }
    assert!(seen > 20, "{seen}");
}

#[test]
fn wrong_usage_ends_with_2_and_a_hint() {
    assert_eq!(globalfs::<&str>(&[]).status.code(), Some(2));
    let output = globalfs(&["statsu"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("status"), "{}", stderr(&output));
    assert_eq!(globalfs(&["wan", "delay", "us", "eu", "80"]).status.code(), Some(2));
}

#[test]
fn missing_cluster_ends_with_3_and_says_what_to_do() {
    let output = globalfs(&["status"]);
    assert_eq!(output.status.code(), Some(3));
    assert!(stderr(&output).contains("--config"), "{}", stderr(&output));
    let output = globalfs(&["--config", "/no/such/file.toml", "node", "--name", "x"]);
    assert_eq!(output.status.code(), Some(3));
    assert!(stderr(&output).contains("/no/such/file.toml"));
}

fn init(folder: &Path, more: &[&str]) -> Output {
    globalfs(&[&["init", folder.to_str().unwrap()], more].concat())
}

#[test]
fn init_writes_a_cluster_once() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("cluster");
    let output = init(&dir, &["--regions", "us,eu", "--nodes-per-region", "3", "--json"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let written: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(written["nodes"].as_array().unwrap().len(), 6);
    for file in
        ["cluster.toml", "tls/ca.crt", "tls/ca.key", "tls/node.eu-3.key", "tls/client.us.crt", "tls/client.admin.key"]
    {
        assert!(dir.join(file).exists(), "{file}");
    }
    let output = init(&folder.path().join("other"), &["--regions", "us,us"]);
    assert_eq!((output.status.code(), &*stderr(&output)), (Some(2), "globalfs: two regions have the name \"us\"\n"));
    let config = dir.join("cluster.toml");
    let status = || stderr(&globalfs(&["--config", config.to_str().unwrap(), "status", "--timeout", "100ms"]));
    assert_eq!(status(), "");
    let key = dir.join("tls/client.admin.key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).unwrap();
    assert!(status().contains("can be read by other users"), "{}", status());
    let before = fs::read(dir.join("cluster.toml")).unwrap();
    let output = init(&dir, &[]);
    assert_eq!(output.status.code(), Some(9));
    assert_eq!(fs::read(dir.join("cluster.toml")).unwrap(), before);
}

#[test]
fn node_and_mount_name_what_is_wrong_with_their_configuration() {
    let folder = tempfile::tempdir().unwrap();
    assert!(init(folder.path(), &[]).status.success());
    let config = folder.path().join("cluster.toml");
    let shown = config.to_str().unwrap();

    let output = globalfs(&["--config", shown, "node", "--name", "us-2"]);
    assert_eq!(output.status.code(), Some(3));
    assert!(stderr(&output).contains("did you mean \"us-1\"?"), "{}", stderr(&output));

    fs::remove_file(folder.path().join("tls/node.eu-1.key")).unwrap();
    let output = globalfs(&["--config", shown, "node", "--name", "eu-1"]);
    assert_eq!(output.status.code(), Some(3));
    assert!(stderr(&output).contains("node.eu-1.key"), "{}", stderr(&output));

    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace("[limits]", "[limits]\nnode_memry = \"1GiB\"")).unwrap();
    let output = globalfs(&["--config", shown, "status"]);
    assert_eq!(output.status.code(), Some(3));
    let message = stderr(&output);
    assert!(message.contains("cluster.toml:") && message.contains("did you mean \"node_memory\"?"), "{message}");
}

#[test]
fn mount_refuses_an_unusable_bucket_and_a_full_mount_point() {
    let folder = tempfile::tempdir().unwrap();
    assert!(init(folder.path(), &[]).status.success());
    let config = folder.path().join("cluster.toml");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace("{ url = \"buckets/eu\", create = true }", "{ url = \"not-there\" }")).unwrap();
    let point = folder.path().join("point");
    fs::create_dir(&point).unwrap();
    let mount = |region: &str| {
        globalfs(&["--config", config.to_str().unwrap(), "mount", "--region", region, point.to_str().unwrap()])
    };

    let output = mount("eu");
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
    assert!(stderr(&output).contains("not-there"), "{}", stderr(&output));
    fs::write(point.join("file"), "").unwrap();
    let output = mount("us");
    assert_eq!(output.status.code(), Some(9), "{}", stderr(&output));
    assert!(stderr(&output).contains("not empty"), "{}", stderr(&output));
}

#[test]
fn up_refuses_what_cannot_work_before_it_starts_anything() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let mount = folder.path().join("mount");
    fs::create_dir_all(mount.join("eu")).unwrap();
    fs::write(mount.join("eu/file"), "").unwrap();
    let up = |more: &[&str]| {
        globalfs(&[&["up", "--data", data.to_str().unwrap(), "--mount", mount.to_str().unwrap()], more].concat())
    };
    let output = up(&[]);
    assert_eq!(output.status.code(), Some(9), "{}", stderr(&output));
    assert!(stderr(&output).contains("mount/eu is not empty"), "{}", stderr(&output));
    assert!(!data.join("run/us-1.pid").exists());

    let output = up(&["--regions", "us,uk"]);
    assert_eq!(output.status.code(), Some(9));
    assert!(stderr(&output).contains("us,eu,ap"), "{}", stderr(&output));
    let output = up(&["--wan", "geo4"]);
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    assert!(stderr(&output).contains("geo3-fast"), "{}", stderr(&output));
}

#[test]
fn nobody_reading_and_a_full_disk_end_nothing_by_a_panic() {
    // `globalfs completion bash | head -1`
    let mut gone = Command::new(GLOBALFS)
        .args(["completion", "bash"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(gone.stdout.take());
    let output = gone.wait_with_output().unwrap();
    assert_eq!((output.status.code(), stderr(&output)), (Some(0), String::new()));
    // A full disk behind stdout is an error, one behind stderr is not.
    let full = || Stdio::from(fs::File::options().write(true).open("/dev/full").unwrap());
    let output = Command::new(GLOBALFS).args(["version"]).stdout(full()).stderr(Stdio::piped()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("No space left"), "{}", stderr(&output));
    let output = Command::new(GLOBALFS).args(["status", "--config", "/none"]).stderr(full()).output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    // The log of a node.
    let folder = tempfile::tempdir().unwrap();
    assert!(init(folder.path(), &["--regions", "here"]).status.success());
    let config = folder.path().join("cluster.toml");
    let text = fs::read_to_string(&config).unwrap();
    let port = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    fs::write(&config, text.replace(":4400", &format!(":{port}"))).unwrap();
    let mut node = Command::new(GLOBALFS);
    node.args(["node", "--name", "here-1", "--config"]).arg(&config).env("RUST_LOG", "debug");
    let mut node = node.stdout(Stdio::piped()).stderr(full()).spawn().unwrap();
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(node.stdout.take().unwrap()), &mut line).unwrap();
    assert!(line.starts_with("ready "), "{line}");
    rustix::process::kill_process(rustix::process::Pid::from_child(&node), rustix::process::Signal::TERM).unwrap();
    assert_eq!(node.wait().unwrap().code(), Some(0));
}

#[test]
fn placing_the_root_with_everything_in_it_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    assert!(init(folder.path(), &[]).status.success());
    let config = folder.path().join("cluster.toml");
    let output = globalfs(&["--config", config.to_str().unwrap(), "place", "set", "/", "--group", "eu"]);
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    assert!(stderr(&output).contains("--no-move"), "{}", stderr(&output));
}

#[test]
fn without_nodes_tools_end_with_4_and_one_line() {
    let folder = tempfile::tempdir().unwrap();
    // Ports that nobody listens on.
    assert!(init(folder.path(), &["--port", "1"]).status.success());
    let config = folder.path().join("cluster.toml");
    let point = folder.path().join("point");
    fs::create_dir(&point).unwrap();
    for command in [
        &["place", "list", "--deadline", "300ms"][..],
        &["explain", "/us", "--deadline", "300ms"],
        &["status", "--timeout", "300ms"],
        &["mount", "--region", "us", "--deadline", "300ms", point.to_str().unwrap()],
    ] {
        let output = globalfs(&[&["--config", config.to_str().unwrap()], command].concat());
        let told = stderr(&output);
        assert_eq!(output.status.code(), Some(4), "{command:?}: {told}");
        assert!(command[0] == "status" || told.contains("globalfs status"), "{command:?}: {told}");
        assert!(told.lines().count() <= 1, "{command:?}: {told}");
    }
}

#[test]
fn mount_helper_has_mounts_exit_codes() {
    let folder = tempfile::tempdir().unwrap();
    let helper = folder.path().join("mount.globalfs");
    std::os::unix::fs::symlink(GLOBALFS, &helper).unwrap();
    let run = |args: &[&str]| Command::new(&helper).args(args).output().unwrap();
    assert_eq!(run(&["only-one"]).status.code(), Some(1));
    assert_eq!(run(&["eu@/no/such.toml", "/mnt", "-o", "wild=1"]).status.code(), Some(1));
    assert_eq!(run(&["eu@/no/such.toml", "/mnt"]).status.code(), Some(32));
    assert_eq!(run(&["eu@/no/such.toml", "/mnt", "-f"]).status.code(), Some(0));
}

#[test]
fn bench_measures_any_directory() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().to_str().unwrap();
    let output = globalfs(&[
        "bench",
        "fs",
        dir,
        "--time",
        "50ms",
        "--count",
        "20",
        "--size",
        "1MiB",
        "--threads",
        "1,2",
        "--json",
    ]);
    assert!(output.status.success(), "{}", stderr(&output));
    let report: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
    let rows = report["rows"].as_array().unwrap();
    assert!(rows.iter().any(|row| row["workload"] == "create" && row["threads"] == 2));
    assert!(rows.iter().all(|row| row["ops_per_s"].as_f64().unwrap() > 0.0));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    let output = globalfs(&["bench", "fs", dir, "--only", "crate"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("did you mean \"create\"?"));
}

#[test]
fn bench_multicast_orders_commands_on_real_processes() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().to_str().unwrap();
    let output = globalfs(&[
        "bench",
        "multicast",
        "--groups",
        "2",
        "--destinations",
        "1,2",
        "--outstanding",
        "4",
        "--runs",
        "1",
        "--time",
        "500ms",
        "--warm-up",
        "300ms",
        "--dir",
        dir,
        "--json",
    ]);
    assert!(output.status.success(), "{}", stderr(&output));
    let report: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
    let rows = report["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 2);
    assert!(rows.iter().all(|row| row["median"]["per_s"].as_f64().unwrap() > 0.0), "{report}");
    assert!(rows.iter().all(|row| row["median"]["failed"] == 0), "{report}");
    assert!(rows[0]["median"]["local"]["p50"].as_f64().unwrap() > 0.0 && rows[0]["median"]["multi"].is_null());
    assert!(rows[1]["median"]["multi"]["p50"].as_f64().unwrap() > 0.0);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    assert_eq!(globalfs(&["bench", "multicast", "--groups", "2", "--destinations", "3"]).status.code(), Some(1));
}

#[test]
fn version_and_completion_write_to_stdout() {
    let output = globalfs(&["version", "--json"]);
    let version: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(version["version"], env!("CARGO_PKG_VERSION"));
    for shell in ["bash", "zsh", "fish"] {
        assert!(stdout(&globalfs(&["completion", shell])).contains("globalfs"));
    }
}

#[test]
fn interrupted_sweep_keeps_what_is_done() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().to_str().unwrap();
    let mut sweep = Command::new(GLOBALFS)
        .args(["bench", "geo", "--experiment", "small,c", "--out", out, "--quiet"])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let report = folder.path().join("report.json");
    let begun = Instant::now();
    // Written when the first experiment is done; the second one takes minutes.
    while !report.exists() {
        assert!(begun.elapsed() < Duration::from_secs(120) && sweep.try_wait().unwrap().is_none());
        std::thread::sleep(Duration::from_millis(100));
    }
    std::thread::sleep(Duration::from_secs(2));
    kill_process(Pid::from_child(&sweep), Signal::INT).unwrap();
    assert_eq!(sweep.wait().unwrap().code(), Some(130));
    let report: Value = serde_json::from_slice(&fs::read(report).unwrap()).unwrap();
    assert_eq!(report["conditions"]["interrupted"], true);
    assert_eq!(report["parts"][0]["outcomes"].as_array().unwrap().len(), 8, "the small sweep is whole");
    assert!(fs::read_to_string(folder.path().join("report.html")).unwrap().contains("<svg"));
}
