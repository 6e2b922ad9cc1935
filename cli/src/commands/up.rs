//! `globalfs up`: an embedded cluster on this machine, kept running.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use net::wan::{self, Matrix};
use serde_json::json;
use tokio::signal::unix::signal;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::{init, service};
use crate::args::{Globals, LogFormat};
use crate::config::{Cluster, find};
use crate::exit::{Exit, Failure, OrExit, Result};
use crate::mounts;
use crate::output::{Table, bold, green, say, tell};
use crate::supervise::child::{self, Kind, Spec};
use crate::supervise::layout::Layout;
use crate::supervise::lock::DataLock;
use crate::supervise::{Hopeless, Supervisor, leftovers};

const REGIONS_DEFAULT: &str = "us,eu,ap";
/// Mounts wait for all nodes, but not for ever: a majority is enough to work.
const NODES_PATIENCE: Duration = Duration::from_secs(10);
/// How often people are told what is still missing.
const REMINDER: Duration = Duration::from_secs(10);
const RETRY_PAUSE: Duration = Duration::from_millis(500);
const LOOK_PAUSE: Duration = Duration::from_millis(100);
/// A thread that looks into a mount that hangs is left behind.
const RUNTIME_END: Duration = Duration::from_millis(100);

/// Options.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  globalfs up                                    three regions in ./globalfs-data and below it, mounted
  globalfs up --data /srv/gfs --mount /mnt/gfs   mounts at /mnt/gfs/us, /mnt/gfs/eu, /mnt/gfs/ap
  globalfs up --wan geo3-fast                    with 7, 8 and 14 ms between the regions
  globalfs up --regions us,eu --nodes-per-region 3
  globalfs up --json                             one JSON line with everything when it is ready

While it runs: `globalfs status`, `globalfs wan cut us eu`, `globalfs explain PATH`. Logs are in DIR/log, pids in DIR/run. \
Ctrl-C or SIGTERM unmounts and ends everything; the next `up` on the same data goes on where this one ended.

FILE describes any distances: a line `regions us eu ap`, then lines such as `rtt us eu 70ms`, `jitter us eu 5ms`, \
`loss us eu 0.1%`, with '*' for every region; times without a unit are milliseconds.")]
pub struct UpArgs {
    /// Where everything is kept: configuration, certificates, data, buckets, logs
    #[arg(long, value_name = "DIR", default_value = find::DATA_DEFAULT, env = "GLOBALFS_DATA", hide_env_values = true)]
    data: PathBuf,
    /// Where the regions are mounted, each in a directory of its name [default: DATA/mnt]
    #[arg(long, value_name = "DIR", env = "GLOBALFS_MOUNT", hide_env_values = true)]
    mount: Option<PathBuf>,
    /// Names of the regions, in their order [default for a new cluster: us,eu,ap]
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    regions: Option<Vec<String>>,
    /// Nodes in each region [default for a new cluster: 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=99))]
    nodes_per_region: Option<u16>,
    /// Emulated distances: lan3, geo3, geo3-fast, ec2-9, none, or a file [default: as before; none for a new cluster]
    #[arg(long, value_name = "PRESET|FILE", env = "GLOBALFS_WAN", hide_env_values = true)]
    wan: Option<String>,
    /// When ready, print one line of JSON instead of tables
    #[arg(long)]
    json: bool,
}

/// Runs until a signal.
pub fn run(globals: &Globals, args: UpArgs) -> Result<Exit> {
    let layout = Layout::prepare(&args.data, args.mount.as_deref())?;
    let _lock = DataLock::take(&layout.run(), &layout.data)?;
    let cluster = cluster(&layout, &args)?;
    leftovers::clear(&layout.run(), &cluster.file);
    emulate(&cluster, args.wan.as_deref())?;
    // One thread: children live as long as the thread that started them.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting the runtime")?;
    let checked = runtime.block_on(check(&layout, &cluster));
    let ended = match checked {
        Ok(()) => runtime.block_on(supervise(globals, &args, &layout, &cluster)),
        Err(failure) => Err(failure),
    };
    runtime.shutdown_timeout(RUNTIME_END);
    ended.map(|()| Exit::Done)
}

/// The cluster of the data folder; made if there is none.
fn cluster(layout: &Layout, args: &UpArgs) -> Result<Cluster> {
    let file = layout.config();
    if !file.exists() {
        let regions = args.regions.clone().unwrap_or_else(|| REGIONS_DEFAULT.split(',').map(str::to_owned).collect());
        // Without cluster.toml nothing has ever run here: certificates are of a start that was interrupted.
        if let Some(wanted) = args.wan.as_deref() {
            matrix(wanted, &regions)?;
        }
        let tls = layout.data.join("tls");
        if tls.exists() {
            fs::remove_dir_all(&tls).with_context(|| tls.display().to_string())?;
        }
        return init::create(&layout.data, &init::plan_of_one_machine(&regions, args.nodes_per_region.unwrap_or(1))?);
    }
    let cluster = Cluster::load(&file)?;
    let known = cluster.region_names();
    let conflict = |option: &str, has: String| {
        let problem = format!("{} has {has}; {option} is for new clusters: choose another --data", file.display());
        Err(Failure::new(Exit::Exists, problem))
    };
    if args.regions.as_ref().is_some_and(|regions| *regions != known) {
        return conflict("--regions", format!("the regions {}", known.join(",")));
    }
    let per_region = |name: &String| cluster.nodes.iter().filter(|node| node.region == *name).count();
    if args.nodes_per_region.is_some_and(|wanted| known.iter().any(|name| per_region(name) != usize::from(wanted))) {
        return conflict("--nodes-per-region", format!("{} nodes", cluster.nodes.len()));
    }
    Ok(cluster)
}

/// The distances that `--wan` asks for.
fn matrix(wanted: &str, regions: &[String]) -> Result<Matrix> {
    let matrix = match wanted {
        "none" => Matrix::flat(regions),
        name => Matrix::load(name, regions),
    };
    matrix.or_exit_with(Exit::Usage, || "--wan")
}

/// Writes the description of the emulated network: a new one, or the old one with its cuts mended.
fn emulate(cluster: &Cluster, wanted: Option<&str>) -> Result {
    let Some(file) = &cluster.wan else {
        return match wanted {
            None | Some("none") => Ok(()),
            Some(_) => {
                Err(Failure::new(Exit::Config, format!("{}: --wan needs a [wan] section", cluster.file.display())))
            }
        };
    };
    let regions = cluster.region_names();
    let mut matrix = match wanted {
        Some(name) => matrix(name, &regions)?,
        None if file.exists() => wan::read_file(file).or_exit_with(Exit::Config, || "emulated network")?,
        None => matrix("none", &regions)?,
    };
    if wanted.is_none() && !matrix.cuts().is_empty() {
        tell!("globalfs: mending the links that were cut: {:?}", matrix.cuts());
        matrix.heal();
    }
    wan::write_file(file, &matrix).or_exit(Exit::Config)
}

/// Everything that can be wrong is found before anything is started.
async fn check(layout: &Layout, cluster: &Cluster) -> Result {
    if let Err(error) = fs::OpenOptions::new().read(true).write(true).open("/dev/fuse") {
        let exit =
            if error.kind() == std::io::ErrorKind::PermissionDenied { Exit::NotPermitted } else { Exit::Unavailable };
        return Err(anyhow::Error::from(error).context("/dev/fuse, without which nothing can be mounted"))
            .or_exit(exit);
    }
    for region in &cluster.regions {
        let bucket = datastore::Bucket::open(&region.bucket).await;
        bucket.or_exit_with(Exit::Config, || {
            format!("bucket of region {:?} in {}", region.name, cluster.file.display())
        })?;
        cluster.identity(net::Role::Client, &region.name)?;
        let point = layout.mount_point(&region.name);
        if let Some(entry) = mounts::mounted_at(&point)? {
            let problem = format!("mount point {}: {} is mounted there already", point.display(), entry.fs_type);
            return Err(Failure::new(Exit::Exists, problem));
        }
        fs::create_dir_all(&point).with_context(|| format!("mount point {}", point.display()))?;
        if !mounts::is_empty(&point).with_context(|| format!("mount point {}", point.display()))? {
            return Err(Failure::new(Exit::Exists, format!("mount point {} is not empty", point.display())));
        }
    }
    for node in &cluster.nodes {
        cluster.identity(net::Role::Node, &node.name)?;
        fs::create_dir_all(&node.data).with_context(|| node.data.display().to_string())?;
    }
    Ok(())
}

async fn supervise(globals: &Globals, args: &UpArgs, layout: &Layout, cluster: &Cluster) -> Result {
    let [term, int, hup] = service::signals();
    let mut signals = [signal(term.0)?, signal(int.0)?, signal(hup.0)?];
    let mut told = async move || {
        let [term, int, hup] = &mut signals;
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
            _ = hup.recv() => {}
        }
    };
    let mut supervisor = Supervisor::new();
    let ended = tokio::select! {
        ended = bring_up_and_keep(&mut supervisor, globals, args, layout, cluster) => ended,
        () = told() => Ok(()),
    };
    if ended.is_ok() && !args.json {
        say!("unmounting and ending all processes");
    }
    supervisor.stop(told).await;
    ended
}

async fn bring_up_and_keep(
    supervisor: &mut Supervisor,
    globals: &Globals,
    args: &UpArgs,
    layout: &Layout,
    cluster: &Cluster,
) -> Result {
    let config = cluster.file.clone();
    for node in &cluster.nodes {
        supervisor.start(node_spec(globals, layout, &config, &node.name, &node.region));
    }
    let nodes_up = wait_ready(supervisor, |kind| *kind == Kind::Node, Some(NODES_PATIENCE)).await?;
    if !nodes_up {
        tell!("globalfs: not all nodes are ready; mounting nevertheless");
    }
    for region in cluster.region_names() {
        supervisor.start(mount_spec(globals, layout, cluster, &region));
    }
    wait_ready(supervisor, |kind| matches!(kind, Kind::Mount { .. }), None).await?;
    pump_until(supervisor, place_all(cluster)).await?;
    pump_until(supervisor, see_all(layout, cluster)).await?;
    announce(supervisor, args, layout, cluster)?;
    loop {
        supervisor.next().await.or_else(hopeless)?;
    }
}

fn hopeless(child: Hopeless) -> Result {
    Err(Failure::new(child.exit, format!("{}: {}", child.name, child.complaint)))
}

/// Waits for the children of a kind; answers whether they became ready in time.
async fn wait_ready(
    supervisor: &mut Supervisor,
    kind: impl Fn(&Kind) -> bool,
    patience: Option<Duration>,
) -> Result<bool> {
    let until = patience.map(|patience| Instant::now() + patience);
    let mut reminder = tokio::time::interval_at(Instant::now() + REMINDER, REMINDER);
    while !supervisor.all_ready(&kind) {
        tokio::select! {
            next = supervisor.next() => next.or_else(hopeless)?,
            () = sleep_until(until) => return Ok(false),
            _ = reminder.tick() => {
                let missing = supervisor.children().iter().filter(|child| kind(&child.spec.kind) && !child.ready);
                let names: Vec<_> = missing.map(|child| child.spec.name.as_str()).collect();
                tell!("globalfs: still waiting for {}", names.join(", "));
            }
        }
    }
    Ok(true)
}

async fn sleep_until(until: Option<Instant>) {
    match until {
        Some(until) => tokio::time::sleep_until(until).await,
        None => std::future::pending().await,
    }
}

/// Goes on supervising while something else is done.
async fn pump_until(supervisor: &mut Supervisor, work: impl Future<Output = Result>) -> Result {
    tokio::pin!(work);
    loop {
        tokio::select! {
            done = &mut work => return done,
            next = supervisor.next() => next.or_else(hopeless)?,
        }
    }
}

/// Creates the placed directories by a process of its own: the supervisor stays small.
async fn place_all(cluster: &Cluster) -> Result {
    let mut last = String::new();
    loop {
        let mut command = child::this_program();
        command.args(["place", "apply", "--config"]).arg(&cluster.file);
        command.arg("--die-with").arg(std::process::id().to_string());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
        let output = command.output().await.context("placing the regions' directories")?;
        if output.status.success() {
            return Ok(());
        }
        let complaint = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        if complaint != last {
            tell!(
                "globalfs: placing the regions' directories: {}; trying again",
                complaint.trim_start_matches("globalfs: ")
            );
            last = complaint;
        }
        tokio::time::sleep(RETRY_PAUSE).await;
    }
}

/// Waits until every mount shows every placed directory. All look at once: each look may take several round trips.
async fn see_all(layout: &Layout, cluster: &Cluster) -> Result {
    let mut looks = JoinSet::new();
    for region in cluster.region_names() {
        for placement in &cluster.placements {
            let path = layout.mount_point(&region).join(placement.path.trim_start_matches('/'));
            looks.spawn(async move {
                while !is_dir(path.clone()).await {
                    tokio::time::sleep(LOOK_PAUSE).await;
                }
            });
        }
    }
    while looks.join_next().await.is_some() {}
    Ok(())
}

/// A mount that does not answer must not hold the supervisor's thread.
async fn is_dir(path: PathBuf) -> bool {
    tokio::task::spawn_blocking(move || path.is_dir()).await.unwrap_or(false)
}

fn node_spec(globals: &Globals, layout: &Layout, config: &Path, name: &str, region: &str) -> Spec {
    let mut args: Vec<OsString> = ["node", "--name", name, "--config"].map(OsString::from).to_vec();
    args.push(config.into());
    log_format(globals, &mut args);
    Spec {
        name: name.into(),
        kind: Kind::Node,
        region: region.into(),
        args,
        log: layout.log(name),
        pid_file: layout.pid_file(name),
    }
}

fn mount_spec(globals: &Globals, layout: &Layout, cluster: &Cluster, region: &str) -> Spec {
    let point = layout.mount_point(region);
    let mut args: Vec<OsString> =
        ["mount", "--foreground", "--region", region, "--config"].map(OsString::from).to_vec();
    args.push(cluster.file.clone().into());
    args.push("--cache-dir".into());
    args.push(layout.cache(region).into());
    log_format(globals, &mut args);
    args.push(point.clone().into());
    let name = format!("mount-{region}");
    Spec {
        kind: Kind::Mount { point },
        region: region.into(),
        args,
        log: layout.log(&name),
        pid_file: layout.pid_file(&name),
        name,
    }
}

fn log_format(globals: &Globals, args: &mut Vec<OsString>) {
    if globals.log_format == LogFormat::Json {
        args.extend(["--log-format", "json"].map(OsString::from));
    }
}

fn announce(supervisor: &Supervisor, args: &UpArgs, layout: &Layout, cluster: &Cluster) -> Result {
    use std::io::Write;
    let text = if args.json {
        format!("{}\n", as_json(supervisor, layout, cluster))
    } else {
        as_table(supervisor, layout, cluster)
    };
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).context("stdout")?;
    Ok(())
}

fn as_json(supervisor: &Supervisor, layout: &Layout, cluster: &Cluster) -> serde_json::Value {
    let child = |kind: &Kind, name: &str| {
        supervisor
            .children()
            .iter()
            .find(|child| child.spec.kind == *kind && child.spec.name == name)
            .and_then(|child| child.pid)
    };
    let nodes: Vec<_> = cluster
        .nodes
        .iter()
        .map(|node| {
            json!({
                "name": node.name, "number": node.id.0, "region": node.region, "address": node.address,
                "pid": child(&Kind::Node, &node.name), "data": node.data, "log": layout.log(&node.name),
            })
        })
        .collect();
    let mounts: Vec<_> = cluster
        .regions
        .iter()
        .map(|region| {
            let (name, point) = (format!("mount-{}", region.name), layout.mount_point(&region.name));
            json!({
                "region": region.name, "path": point, "pid": child(&Kind::Mount { point: point.clone() }, &name),
                "log": layout.log(&name), "bucket": region.bucket.url,
            })
        })
        .collect();
    json!({
        "schema": 1, "ready": true, "pid": std::process::id(), "data": layout.data, "config": cluster.file,
        "wan": cluster.wan, "nodes": nodes, "mounts": mounts,
    })
}

fn as_table(supervisor: &Supervisor, layout: &Layout, cluster: &Cluster) -> String {
    let mut table = Table::new(["process", "region", "pid", "where"]).right(&[2]);
    for child in supervisor.children() {
        let place = match &child.spec.kind {
            Kind::Node => cluster
                .nodes
                .iter()
                .find(|node| node.name == child.spec.name)
                .map_or_else(String::new, |node| node.address.clone()),
            Kind::Mount { point } => bold(&point.display().to_string()),
        };
        let pid = child.pid.map_or_else(|| "-".into(), |pid| pid.to_string());
        table.row(vec![child.spec.name.clone(), child.spec.region.clone(), pid, place]);
    }
    let mut text = table.render();
    for placement in &cluster.placements {
        text.push_str(&format!("{} is placed on group {}\n", placement.path, cluster.group_name(placement.group)));
    }
    text.push_str(&format!("configuration {}, logs {}\n", cluster.file.display(), layout.data.join("log").display()));
    let mounts = match cluster.regions.len() {
        1 => "the mount answers".to_owned(),
        mounts => format!("{mounts} mounts answer"),
    };
    text.push_str(&format!("{}: {mounts}; Ctrl-C ends everything\n", green("ready")));
    text
}
