//! A real cluster for one test: `globalfs up` and its processes, found, killed and stopped by their ids.
//!
//! Whatever happens to the test, dropping the [`Cluster`] ends every process, unmounts every mount and removes the folder;
//! `KEEP=1` leaves the folder with its logs. A watchdog ends the mounts when a test takes too long, so that a request that
//! is never answered fails the test instead of hanging it.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// The regions of the default cluster, in the order of the presets' distances.
pub const REGIONS: [&str; 3] = ["us", "eu", "ap"];

/// How a test's cluster differs from the default.
#[derive(Clone)]
pub struct Options {
    pub wan: String,
    pub nodes_per_region: u32,
    /// The test fails when it has not ended by then.
    pub limit: Duration,
    /// Further arguments of `globalfs up`.
    pub extra: Vec<String>,
}

impl Default for Options {
    fn default() -> Self {
        Options { wan: "lan3".into(), nodes_per_region: 1, limit: Duration::from_secs(300), extra: Vec::new() }
    }
}

impl Options {
    pub fn wan(preset: &str) -> Self {
        Options { wan: preset.into(), ..Options::default() }
    }

    pub fn nodes_per_region(mut self, nodes: u32) -> Self {
        self.nodes_per_region = nodes;
        self
    }

    pub fn limit(mut self, seconds: u64) -> Self {
        self.limit = Duration::from_secs(seconds);
        self
    }
}

/// What a process of the cluster is for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    Up,
    Node(String),
    Mount(String),
    Other,
}

/// A process of the cluster.
#[derive(Clone, Debug)]
pub struct Process {
    pub pid: i32,
    pub part: Part,
    argv: Vec<String>,
}

impl Process {
    fn read(pid: i32) -> Option<Process> {
        let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let words = line.split(|byte| *byte == 0).filter(|word| !word.is_empty());
        let argv: Vec<_> = words.map(|word| String::from_utf8_lossy(word).into_owned()).collect();
        let program = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
        if !program.to_string_lossy().trim_end_matches(" (deleted)").ends_with("/globalfs") {
            return None;
        }
        Some(Process { pid, part: part_of(&argv), argv })
    }

    fn signal(&self, signal: Signal) {
        let _gone_already = kill_process(Pid::from_raw(self.pid).unwrap(), signal);
    }

    fn mentions(&self, folder: &Path) -> bool {
        let folder = folder.to_string_lossy();
        self.argv.iter().any(|word| word.contains(&*folder))
    }

    pub fn is_alive(&self) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap_or_default();
        let state = stat.rsplit_once(')').and_then(|(_, rest)| rest.trim_start().chars().next());
        state.is_some_and(|state| state != 'Z' && state != 'X')
    }

    /// Resident memory in KiB.
    pub fn resident_kib(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or("0");
        line.split_whitespace().next().unwrap().parse().unwrap()
    }
}

fn part_of(words: &[String]) -> Part {
    let option = |name: &str| {
        let long = format!("--{name}=");
        let spaced =
            words.iter().position(|word| *word == format!("--{name}")).and_then(|at| words.get(at + 1).cloned());
        spaced.or_else(|| words.iter().find_map(|word| word.strip_prefix(&long).map(str::to_owned)))
    };
    match words.iter().skip(1).find(|word| ["up", "node", "mount"].contains(&word.as_str())).map(String::as_str) {
        Some("up") => Part::Up,
        Some("node") => Part::Node(option("name").unwrap_or_default()),
        Some("mount") => Part::Mount(option("region").unwrap_or_default()),
        _ => Part::Other,
    }
}

/// A running cluster.
pub struct Cluster {
    options: Options,
    folder: PathBuf,
    up: Option<Child>,
    done: Arc<AtomicBool>,
    effects: AtomicU64,
}

impl Cluster {
    /// Starts a cluster and waits until every mount answers.
    pub fn up(options: Options) -> Cluster {
        let folder = tempfile::Builder::new().prefix("gfs").tempdir().unwrap().keep();
        Cluster::up_in(options, folder)
    }

    /// As [`Cluster::up`], in a folder of the caller's choice, which is removed at the end all the same.
    pub fn up_in(options: Options, folder: PathBuf) -> Cluster {
        fs::create_dir_all(&folder).unwrap();
        // Some tests act as other users.
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap();
        let mut cluster = Cluster { options, folder, up: None, done: Arc::default(), effects: AtomicU64::new(0) };
        cluster.watch();
        cluster.start();
        cluster
    }

    /// Starts what [`Cluster::stop`] or [`Cluster::kill_all`] ended, on the same data.
    pub fn start(&mut self) {
        assert!(self.up.is_none(), "the cluster is running");
        if is_reference() {
            return self.bind_local();
        }
        let mut command = Command::new(binary());
        command.arg("up").arg("--data").arg(self.data()).arg("--mount").arg(self.mounts());
        command.args(["--regions", &REGIONS.join(","), "--wan", &self.options.wan]);
        command.args(["--nodes-per-region", &self.options.nodes_per_region.to_string()]);
        command.args(&self.options.extra);
        let log = fs::File::options().create(true).append(true).open(self.folder.join("up.stderr.log")).unwrap();
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
        let mut child = command.spawn().unwrap();
        let ready = wait_for_line(child.stdout.take().unwrap(), "ready", self.folder.join("up.stdout.log"));
        self.up = Some(child);
        let started = Instant::now();
        match ready.recv_timeout(Duration::from_secs(60)) {
            Ok(()) => eprintln!("cluster ready after {:?} in {}", started.elapsed(), self.folder.display()),
            Err(error) => panic!("globalfs up did not say that it is ready: {error}"),
        }
    }

    /// The test of the tests: "mounts" that are one local folder, which must pass all that asks for POSIX alone.
    fn bind_local(&self) {
        for region in REGIONS {
            fs::create_dir_all(self.data().join(region)).unwrap();
            fs::create_dir_all(self.mount(region)).unwrap();
            rustix::mount::mount_bind(self.data(), self.mount(region)).unwrap();
        }
    }

    /// Ends the cluster as Ctrl-C does; it has 10 s.
    pub fn stop(&mut self) {
        let mut up = self.up.take().expect("the cluster is running");
        let asked = Instant::now();
        kill_process(Pid::from_child(&up), Signal::TERM).unwrap();
        let status = loop {
            if let Some(status) = up.try_wait().unwrap() {
                break status;
            }
            if asked.elapsed() > Duration::from_secs(15) {
                self.up = Some(up);
                panic!("globalfs up did not end within 15 s of SIGTERM");
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        assert!(asked.elapsed() < Duration::from_secs(10), "stopping took {:?}", asked.elapsed());
        eprintln!("cluster stopped after {:?}: {status}", asked.elapsed());
        let left = self.processes();
        assert!(left.is_empty(), "left running after the end: {left:?}");
        let mounted = mounted_below(&self.folder);
        assert!(mounted.is_empty(), "left mounted after the end: {mounted:?}");
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    pub fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    pub fn mounts(&self) -> PathBuf {
        self.folder.join("mnt")
    }

    /// The mount point of a region.
    pub fn mount(&self, region: &str) -> PathBuf {
        self.mounts().join(region)
    }

    /// A path of the tree as a region's mount shows it.
    pub fn path(&self, region: &str, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        self.mount(region).join(path.strip_prefix("/").unwrap_or(path))
    }

    /// The same path on another mount, once that mount has learnt of everything the path's own mount knows.
    ///
    /// Reads are causal and not instantaneous: a mount may trail behind another one until it sees an effect of what that one
    /// did. So the test makes such an effect, waits until it shows, and may then rely on the cause.
    pub fn seen(&self, region: &str, path: &Path) -> PathBuf {
        let inside = path.strip_prefix(self.mounts()).unwrap();
        let mut components = inside.components();
        let own = components.next().unwrap().as_os_str().to_str().unwrap();
        let path = self.mount(region).join(components.as_path());
        self.sync(own, region);
        path
    }

    /// Makes one mount learn what another one knows.
    pub fn sync(&self, from: &str, to: &str) {
        if from == to {
            return;
        }
        let effect = format!("{to}/.effect-{}", self.effects.fetch_add(1, Ordering::Relaxed));
        fs::write(self.path(from, &effect), b"").unwrap();
        let here = self.path(to, &effect);
        let started = Instant::now();
        while !here.exists() {
            assert!(
                started.elapsed() < Duration::from_secs(10),
                "{to} did not see /{effect}, made on {from}, within 10 s"
            );
            std::thread::sleep(Duration::from_millis(1));
        }
        fs::remove_file(here).unwrap();
    }

    /// Makes every mount learn what all of them know.
    pub fn sync_all(&self) {
        for from in REGIONS {
            for to in REGIONS {
                self.sync(from, to);
            }
        }
    }

    /// A further mount of a region by a process of its own, with these options of `globalfs mount`.
    pub fn second_mount(&self, region: &str, options: &[&str]) -> PathBuf {
        let point = self.folder.join(format!("second-{region}"));
        fs::create_dir(&point).unwrap();
        let config = self.data().join("cluster.toml");
        let fixed = ["mount", "--config", config.to_str().unwrap(), "--region", region, point.to_str().unwrap()];
        self.globalfs_ok(&[&fixed, options].concat());
        assert!(is_mounted(&point) && point.join(region).is_dir(), "{} is not mounted", point.display());
        point
    }

    /// Runs the `globalfs` command against this cluster.
    pub fn globalfs(&self, arguments: &[&str]) -> Output {
        self.globalfs_within(Duration::from_secs(60), arguments)
    }

    /// As [`Cluster::globalfs`], with patience for what measures.
    pub fn globalfs_within(&self, limit: Duration, arguments: &[&str]) -> Output {
        let mut command = Command::new(binary());
        command.args(arguments).env("GLOBALFS_CONFIG", self.data().join("cluster.toml")).stdin(Stdio::null());
        run(command, limit)
    }

    /// As [`Cluster::globalfs`], and it must succeed.
    pub fn globalfs_ok(&self, arguments: &[&str]) -> String {
        succeeded(arguments, &self.globalfs(arguments))
    }

    /// What `globalfs status --json` says, also when it finds problems.
    pub fn status(&self) -> Value {
        let output = self.globalfs(&["status", "--json", "--timeout", "2s"]);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let problem = |error| panic!("status: {error}: {said} {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_str(&said).unwrap_or_else(problem)
    }

    pub fn cut(&self, one: &str, other: &str) {
        self.globalfs_ok(&["wan", "cut", one, other]);
    }

    pub fn heal(&self) {
        self.globalfs_ok(&["wan", "heal"]);
    }

    /// Every living process of this cluster.
    pub fn processes(&self) -> Vec<Process> {
        let pids = fs::read_dir("/proc").unwrap();
        let pids = pids.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        let ours =
            pids.filter_map(Process::read).filter(|process| process.mentions(&self.folder) && process.is_alive());
        let mut ours: Vec<_> = ours.collect();
        ours.sort_by(|a, b| (&a.part, a.pid).cmp(&(&b.part, b.pid)));
        ours
    }

    pub fn process(&self, part: &Part) -> Process {
        let found = self.processes().into_iter().find(|process| process.part == *part);
        found.unwrap_or_else(|| panic!("{part:?} is not running; running: {:?}", self.processes()))
    }

    /// The node processes, by name.
    pub fn nodes(&self) -> BTreeMap<String, Process> {
        let named = self.processes().into_iter().filter_map(|process| match process.part.clone() {
            Part::Node(name) => Some((name, process)),
            Part::Up | Part::Mount(_) | Part::Other => None,
        });
        named.collect()
    }

    /// Kills one process as `kill -9` does and waits until it is gone. The supervisor starts it again after a moment.
    pub fn kill(&self, process: &Process) {
        process.signal(Signal::KILL);
        eventually(Duration::from_secs(10), "a killed process to end", || (!process.is_alive()).then_some(()));
    }

    /// Kills a process, keeps the supervisor from starting it again for a while, and waits until it is there again.
    pub fn kill_for(&self, part: &Part, down: Duration) {
        let (up, process) = (self.process(&Part::Up), self.process(part));
        up.signal(Signal::STOP);
        process.signal(Signal::KILL);
        std::thread::sleep(down);
        up.signal(Signal::CONT);
        eventually(Duration::from_secs(60), &format!("{part:?} to run again"), || {
            self.processes().into_iter().find(|running| running.part == *part && running.pid != process.pid)
        });
        if let Part::Mount(region) = part {
            // A dead mount fails, and the folder below is no mount.
            let mount = self.mount(region);
            eventually(Duration::from_secs(30), "the mount to answer again", || {
                (is_mounted(&mount) && mount.join(region).is_dir()).then_some(())
            });
        }
    }

    /// Kills these for good: whoever would start them again is stopped until [`Cluster::release_supervisor`].
    pub fn kill_for_good(&self, nodes: &[&str]) {
        self.process(&Part::Up).signal(Signal::STOP);
        for node in nodes {
            let process = self.process(&Part::Node((*node).into()));
            process.signal(Signal::KILL);
            eventually(Duration::from_secs(10), "a killed process to end", || (!process.is_alive()).then_some(()));
        }
    }

    /// What was killed is started again.
    pub fn release_supervisor(&self) {
        self.process(&Part::Up).signal(Signal::CONT);
    }

    /// Kills every process of the cluster at once, `up` first. Dead mounts stay: the next start must cope with them.
    pub fn kill_all(&mut self) {
        let processes = self.processes();
        for process in &processes {
            process.signal(Signal::KILL);
        }
        if let Some(mut up) = self.up.take() {
            up.wait().unwrap();
        }
        eventually(Duration::from_secs(10), "killed processes to end", || self.processes().is_empty().then_some(()));
    }

    /// Waits until the voters of every group have executed the same and agree about the state.
    pub fn check_digests(&self) {
        eventually(Duration::from_secs(30), "the voters of every group to agree", || {
            let status = self.status();
            let replicas = objects_with(&status, &["group", "applied_index", "digest", "digests"]);
            let mut digests: BTreeMap<(u64, u64), Vec<String>> = BTreeMap::new();
            let mut newest: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
            for replica in &replicas {
                let (group, applied) = (replica["group"].as_u64().unwrap(), replica["applied_index"].as_u64().unwrap());
                newest.entry(group).or_default().push(applied);
                let now = replica["digest"].as_str().unwrap().to_owned();
                digests.entry((group, applied)).or_default().push(now);
                for (index, digest) in replica["digests"].as_object().unwrap() {
                    let at = (group, index.parse().unwrap());
                    digests.entry(at).or_default().push(digest.as_str().unwrap().to_owned());
                }
            }
            for ((group, index), found) in &digests {
                assert!(found.windows(2).all(|pair| pair[0] == pair[1]), "group {group} differs at {index}: {found:?}");
            }
            let per_region = self.options.nodes_per_region as usize;
            let complete = newest.len() == 4
                && newest.iter().all(|(group, applied)| {
                    applied.len() == if *group == 0 { 3 } else { per_region }
                        && applied.iter().all(|index| *index == applied[0])
                });
            complete.then_some(())
        });
    }

    /// Whether all groups, of three nodes per region, have all their voters, up and of one mind.
    pub fn is_whole(&self) -> Option<()> {
        let status = self.status();
        let groups = status["groups"].as_array()?;
        let is_whole = |group: &Value| {
            let members = group["members"].as_array().map(Vec::as_slice).unwrap_or_default();
            members.len() == 3
                && members.iter().all(|member| member["role"] == "voter")
                && group["voters_up"] == 3
                && group["primary"].is_string()
                && group["digests_agree"] == true
        };
        let replicas = objects_with(&status, &["quarantine", "applied_index"]);
        let are_sound = replicas.iter().all(|replica| replica["quarantine"].is_null());
        (groups.len() == 4 && groups.iter().all(is_whole) && are_sound).then_some(())
    }

    /// Sum of the resident memory of all processes, KiB, and each one's.
    pub fn resident_kib(&self) -> (u64, Vec<(Part, u64)>) {
        let each: Vec<_> =
            self.processes().iter().map(|process| (process.part.clone(), process.resident_kib())).collect();
        (each.iter().map(|(_, kib)| kib).sum(), each)
    }

    /// The last lines of every log of the cluster.
    pub fn print_logs(&self, lines: usize) {
        let mut logs = Vec::new();
        find_logs(&self.folder, 4, &mut logs);
        logs.sort();
        for log in logs {
            let text = String::from_utf8_lossy(&fs::read(&log).unwrap_or_default()).into_owned();
            let all: Vec<_> = text.lines().collect();
            eprintln!("---- {} ({} lines)", log.display(), all.len());
            for line in &all[all.len().saturating_sub(lines)..] {
                eprintln!("{line}");
            }
        }
    }

    /// Fails the test at its limit by ending its mounts, so that no call stays in the kernel for good.
    fn watch(&self) {
        let (done, limit, folder) = (Arc::clone(&self.done), self.options.limit, self.folder.clone());
        std::thread::spawn(move || {
            let started = Instant::now();
            while started.elapsed() < limit {
                std::thread::sleep(Duration::from_millis(200));
                if done.load(Ordering::Relaxed) {
                    return;
                }
            }
            eprintln!("WATCHDOG: the test did not end within {limit:?}; its processes are killed");
            let watched = Cluster { options: Options::default(), folder, up: None, done, effects: AtomicU64::new(0) };
            watched.print_logs(30);
            for process in watched.processes() {
                process.signal(Signal::KILL);
            }
            std::thread::sleep(Duration::from_secs(20));
            if watched.done.load(Ordering::Relaxed) {
                // The failing test's own value is what cleans up.
                std::mem::forget(watched);
                return;
            }
            eprintln!("WATCHDOG: the test hangs outside of its mounts; it is ended");
            drop(watched);
            std::process::exit(101);
        });
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Relaxed);
        let failed = std::thread::panicking();
        if failed && !is_reference() {
            let status = self.globalfs(&["status"]);
            eprintln!("---- status\n{}", String::from_utf8_lossy(&status.stdout));
            self.print_logs(40);
        }
        if let Some(up) = &self.up {
            let pid = Pid::from_child(up);
            let _gone_already = kill_process(pid, Signal::TERM).and_then(|()| kill_process(pid, Signal::CONT));
        }
        let deadline = Instant::now() + Duration::from_secs(12);
        while let Some(up) = &mut self.up {
            if up.try_wait().is_ok_and(|ended| ended.is_some()) || Instant::now() > deadline {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        for process in self.processes() {
            process.signal(Signal::KILL);
        }
        if let Some(mut up) = self.up.take() {
            let _killed = up.wait();
        }
        for mount in mounted_below(&self.folder) {
            detach(&mount);
        }
        let keep = std::env::var_os("KEEP").is_some();
        if keep {
            eprintln!("kept: {}", self.folder.display());
        } else if mounted_below(&self.folder).is_empty() {
            let _best_effort = fs::remove_dir_all(&self.folder);
        }
    }
}

/// What a command that must have succeeded has printed.
pub fn succeeded(arguments: &[&str], output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "globalfs {arguments:?}: {}\n{text}\n{errors}", output.status);
    text
}

/// Every object of a JSON document that has all of these keys.
pub fn objects_with<'a>(value: &'a Value, keys: &[&str]) -> Vec<&'a serde_json::Map<String, Value>> {
    match value {
        Value::Array(values) => values.iter().flat_map(|value| objects_with(value, keys)).collect(),
        Value::Object(object) => {
            let this = keys.iter().all(|key| object.contains_key(*key)).then_some(object);
            this.into_iter().chain(object.values().flat_map(|value| objects_with(value, keys))).collect()
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => Vec::new(),
    }
}

/// True if the tests run on a local file system instead of a cluster, to check the tests themselves.
pub fn is_reference() -> bool {
    std::env::var_os("GLOBALFS_TEST_REFERENCE").is_some()
}

/// The command under test.
pub fn binary() -> &'static str {
    env!("CARGO_BIN_EXE_globalfs")
}

/// Runs a command to its end, or kills it at the limit and says so.
pub fn run(mut command: Command, limit: Duration) -> Output {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    let pid = Pid::from_child(&child);
    let (done, waiting) = mpsc::channel::<()>();
    let watchdog = std::thread::spawn(move || {
        if waiting.recv_timeout(limit) == Err(mpsc::RecvTimeoutError::Timeout) {
            let _gone_already = kill_process(pid, Signal::KILL);
            eprintln!("killed after {limit:?}: process {}", pid.as_raw_nonzero());
        }
    });
    let output = child.wait_with_output().unwrap();
    drop(done);
    watchdog.join().unwrap();
    output
}

/// Runs a command that must succeed; its output is in the panic's text.
pub fn run_ok(command: Command, limit: Duration) -> String {
    let what = format!("{command:?}");
    let output = run(command, limit);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{what}: {}\n{text}\n{errors}", output.status);
    text
}

/// Waits until `check` answers; the deadline is a failure that names `what`.
pub fn eventually<T>(limit: Duration, what: &str, mut check: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(answer) = check() {
            return answer;
        }
        assert!(started.elapsed() < limit, "waited {limit:?} in vain for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Copies a process's output to a file, and tells when a line with `word` has come.
fn wait_for_line(output: impl std::io::Read + Send + 'static, word: &'static str, copy: PathBuf) -> mpsc::Receiver<()> {
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        use std::io::Write;
        let mut copy = fs::File::options().create(true).append(true).open(copy).unwrap();
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            let _best_effort = writeln!(copy, "{line}");
            if line.contains(word) {
                let _nobody_waits = tell.send(());
            }
        }
    });
    told
}

fn mounted_below(folder: &Path) -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let points = table.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
    points.filter(|point| point.starts_with(folder)).collect()
}

fn is_mounted(point: &Path) -> bool {
    mounted_below(point).iter().any(|mounted| mounted == point)
}

fn detach(point: &Path) {
    while is_mounted(point) {
        if let Err(error) = rustix::mount::unmount(point, rustix::mount::UnmountFlags::DETACH) {
            eprintln!("cannot unmount {}: {error}", point.display());
            return;
        }
    }
}

fn find_logs(folder: &Path, depth: u32, found: &mut Vec<PathBuf>) {
    let mounted = mounted_below(folder);
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if mounted.iter().any(|point| path.starts_with(point) || point.starts_with(&path)) {
            continue;
        }
        if path.is_dir() && depth > 0 {
            find_logs(&path, depth - 1, found);
        } else if path.extension().is_some_and(|extension| extension == "log") {
            found.push(path);
        }
    }
}
