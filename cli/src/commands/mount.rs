//! `globalfs mount` and `mount.globalfs`.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::Context;
use clap::{Args, ValueEnum};
use fs_client::{Mount, MountConfig, MountOptions};
use serde_json::json;
use tokio::signal::unix::signal;

use super::client::{self, Wishes};
use super::mount_options::{Consistency, OnCut, OptionList};
use super::service::{self, Parent};
use crate::args::{Globals, LogFormat};
use crate::config::{Cluster, find};
use crate::exit::{Exit, Failure, OrExit, Result};
use crate::output::tell;
use crate::units::{ByteSize, TimeSpan};
use crate::{mounts, telemetry};

/// Flushing, unmounting and saying goodbye must not take longer.
const STOP_TIMEOUT: Duration = Duration::from_secs(7);
/// Shorter ones are over before a far region can answer.
const DEADLINE_MIN: Duration = Duration::from_millis(100);
/// Beyond the deadline, until the one who waits for a mount in the background gives up.
const START_GRACE: Duration = Duration::from_secs(15);

/// Options.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  globalfs mount --config /etc/globalfs/cluster.toml --region eu /mnt/globalfs
  globalfs mount --region eu /mnt/globalfs -o ro,deadline=10s
  globalfs mount --region eu /mnt/globalfs -o cache_dir=/var/cache/globalfs,cache_size=20GiB
  globalfs mount --region eu /mnt/globalfs --on-cut block
  globalfs mount --region eu /mnt/globalfs -o on_cut=error,deadline=5s
  globalfs mount --region eu /mnt/globalfs --consistency linearizable
  globalfs mount --region eu /mnt/globalfs --foreground

In /etc/fstab (with a link from /sbin/mount.globalfs to this program):
  eu@/etc/globalfs/cluster.toml  /mnt/globalfs  globalfs  _netdev,nofail  0 0

Options of -o: region=, config=, identity= (client certificate, the region's name by default), deadline=, on_cut=, \
consistency=, memory=, cache_dir=, cache_size=, log=FILE, threads=, kernel_cache=, ro, nodev, nosuid, noexec, private; those \
of mount(8) are accepted.

on_cut=error (the default): a call that needs a region that cannot be reached fails with ETIMEDOUT after the deadline, later \
ones with EHOSTUNREACH at once, until the region answers again. on_cut=block: they wait until then; Ctrl-C ends the wait.

consistency=linearizable: a call sees everything that was acknowledged on any mount before it began. Each lookup, stat, read and \
listing is then asked of a quorum, in whatever region that is: neither this program nor the kernel answers from memory.

kernel_cache=on (the default): the kernel keeps attributes until it is told that others have changed them. off: it asks each \
time. names: it keeps names too (Linux 6.16 or newer). Mind that a name changed elsewhere then makes it drop all names, and \
what is mounted on top of directories in this mount is unmounted.")]
pub struct MountArgs {
    /// Where to mount: an empty directory
    mountpoint: PathBuf,
    /// The region where this machine is
    #[arg(long, env = "GLOBALFS_REGION", hide_env_values = true)]
    region: Option<String>,
    /// Options, separated by commas
    #[arg(short = 'o', value_name = "OPTIONS")]
    options: Vec<String>,
    /// Stay in the foreground and log to stderr
    #[arg(long, short = 'f')]
    foreground: bool,
    /// How long a call may wait for nodes or buckets [default: timeouts.deadline of the configuration]
    #[arg(long, value_name = "TIME", env = "GLOBALFS_DEADLINE", hide_env_values = true)]
    deadline: Option<TimeSpan>,
    /// What becomes of calls that need a region that cannot be reached [default: error]
    #[arg(long, value_enum, env = "GLOBALFS_ON_CUT", hide_env_values = true)]
    on_cut: Option<OnCut>,
    /// How new answers must be [default: causal]
    #[arg(long, value_enum, env = "GLOBALFS_CONSISTENCY", hide_env_values = true)]
    consistency: Option<Consistency>,
    /// Memory for caches and buffers [default: limits.client_memory of the configuration]
    #[arg(long, value_name = "SIZE", env = "GLOBALFS_MEMORY", hide_env_values = true)]
    memory: Option<ByteSize>,
    /// Where to keep blobs on local disk; no disk cache without it
    #[arg(long, value_name = "DIR", env = "GLOBALFS_CACHE_DIR", hide_env_values = true)]
    cache_dir: Option<PathBuf>,
    /// How much to keep there [default: limits.cache of the configuration]
    #[arg(long, value_name = "SIZE", env = "GLOBALFS_CACHE_SIZE", hide_env_values = true)]
    cache_size: Option<ByteSize>,
    /// Whose client certificate to show [default: the region's]
    #[arg(long, value_name = "NAME", env = "GLOBALFS_IDENTITY", hide_env_values = true)]
    identity: Option<String>,
    /// This is the background process of a mount
    #[arg(long, hide = true)]
    detached: bool,
    #[command(flatten)]
    parent: Parent,
}

/// Everything about a mount, decided.
#[derive(Debug)]
struct Plan {
    cluster: Cluster,
    wishes: Wishes,
    options: MountOptions,
    point: PathBuf,
    log: Option<PathBuf>,
}

/// Mounts; without `--foreground` returns when the mount answers.
pub fn run(globals: &Globals, args: &MountArgs) -> Result<Exit> {
    args.parent.bind()?;
    if args.detached {
        // A session of its own: no terminal's Ctrl-C reaches it.
        rustix::process::setsid().context("leaving the terminal")?;
    }
    let plan = plan(globals, args)?;
    fs_client::check_mountpoint(&plan.point).map_err(client::client_failure)?;
    if args.foreground || args.detached {
        return serve(plan, args.detached);
    }
    background(globals, args, &plan)
}

fn plan(globals: &Globals, args: &MountArgs) -> Result<Plan> {
    let mut list = OptionList::default();
    for options in &args.options {
        list.add(options, false).map_err(|problem| Failure::new(Exit::Usage, problem))?;
    }
    // What -o says goes first: an option beside it may be the environment's.
    let config = list.config.clone().or_else(|| globals.config.clone());
    let cluster = find::cluster(config.as_deref(), None)?;
    let Some(region) = list.region.or_else(|| args.region.clone()) else {
        let regions = cluster.region_names().join(", ");
        return Err(Failure::new(Exit::Usage, format!("--region is missing; there are {regions}")));
    };
    let region = cluster.region(&region)?.name.clone();
    let point = mounts::absolute(&args.mountpoint);
    let cache_size = list.cache_size.or(args.cache_size).unwrap_or(cluster.limits.cache);
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let deadline = list.deadline.or(args.deadline).map_or(cluster.timeouts.deadline, |span| span.0);
    if deadline < DEADLINE_MIN {
        return Err(Failure::new(Exit::Usage, format!("a deadline of at least {DEADLINE_MIN:?} is possible")));
    }
    let wishes = Wishes {
        role: net::Role::Client,
        identity: list.identity.or_else(|| args.identity.clone()).unwrap_or_else(|| region.clone()),
        label: format!("{host}:{} pid {}", point.display(), std::process::id()),
        deadline,
        on_cut: list.on_cut.or(args.on_cut).map(Into::into).unwrap_or_default(),
        consistency: list.consistency.or(args.consistency).map(Into::into).unwrap_or_default(),
        memory: list.memory.or(args.memory).unwrap_or(cluster.limits.client_memory),
        cache: list.cache_dir.or_else(|| args.cache_dir.clone()).map(|folder| (folder, cache_size)),
        region,
        emulated: true,
    };
    let default = MountOptions::default();
    let options = MountOptions {
        source: mounts::source(&wishes.region, &cluster.file),
        allow_other: !list.private,
        read_only: list.read_only,
        dev: !list.no_dev,
        suid: !list.no_suid,
        exec: !list.no_exec,
        threads: list.threads.unwrap_or(default.threads),
        kernel_cache: list.kernel_cache.unwrap_or(default.kernel_cache),
    };
    Ok(Plan { cluster, wishes, options, point, log: list.log })
}

/// Mounts and serves until a signal or an unmount.
fn serve(plan: Plan, detached: bool) -> Result<Exit> {
    let runtime = service::runtime()?;
    let log = plan.log.clone();
    runtime.block_on(async move {
        let [term, int, hup] = service::signals();
        let mut signals = [signal(term.0)?, signal(int.0)?, signal(hup.0)?];
        let [term, int, hup] = &mut signals;
        let ended = async {
            tokio::select! {
                _ = term.recv() => "SIGTERM",
                _ = int.recv() => "SIGINT",
                _ = hup.recv() => "SIGHUP",
            }
        };
        tokio::pin!(ended);
        let mount = tokio::select! {
            mount = start(&plan) => mount?,
            signal = &mut ended => return Err(Failure::new(Exit::Interrupted, format!("{signal} while mounting"))),
        };
        let point = plan.point.display().to_string();
        service::announce(&json!({ "mount": plan.point, "region": plan.wishes.region, "pid": std::process::id() }));
        if detached {
            redirect(log.as_deref())?;
        }
        tracing::info!(region = plan.wishes.region, point, "ready");
        tokio::select! {
            signal = ended => tracing::info!(signal, "unmounting"),
            waited = mount.wait() => match waited {
                Ok(()) => tracing::info!("unmounted"),
                Err(error) => tracing::warn!(%error, "the mount has ended"),
            },
        }
        service::end_within(STOP_TIMEOUT, Exit::Failed);
        mount.unmount().await.map_err(client::client_failure)?;
        Ok(Exit::Done)
    })
}

async fn start(plan: &Plan) -> Result<Mount> {
    let (endpoint, wan) = client::endpoint(&plan.cluster, &plan.wishes)?;
    let store = client::store(&plan.cluster, &plan.wishes, wan).await?;
    let config =
        MountConfig { client: client::client_config(&plan.cluster, &plan.wishes), options: plan.options.clone() };
    let mount = Mount::start(config, endpoint, store, &plan.point).await.map_err(client::client_failure)?;
    if let Err(error) = mount.client().ready().await {
        let unmounted = mount.unmount().await;
        if let Err(error) = unmounted {
            tracing::warn!(%error, "unmounting after a failed start");
        }
        return Err(client::client_failure(error));
    }
    Ok(mount)
}

/// The background process's log goes to a file, or nowhere.
fn redirect(log: Option<&Path>) -> Result {
    let file = match log {
        Some(log) => {
            Some(OpenOptions::new().create(true).append(true).open(log).with_context(|| log.display().to_string())?)
        }
        None => None,
    };
    service::let_go_of_terminal()?;
    if let Some(file) = file {
        rustix::stdio::dup2_stderr(&file).context("redirecting the log")?;
    }
    Ok(())
}

/// Starts this program again as the mount's process and waits until the mount answers.
fn background(globals: &Globals, args: &MountArgs, plan: &Plan) -> Result<Exit> {
    let mut command = Command::new("/proc/self/exe");
    command.arg0("globalfs").arg("mount").arg("--detached").arg("--config").arg(&plan.cluster.file);
    command.arg("--region").arg(&plan.wishes.region);
    command.arg("--identity").arg(&plan.wishes.identity);
    command.arg("--deadline").arg(TimeSpan(plan.wishes.deadline).to_string());
    // What -o says of these goes along.
    if let Some(on_cut) = args.on_cut.and_then(|on_cut| on_cut.to_possible_value()) {
        command.arg("--on-cut").arg(on_cut.get_name());
    }
    if let Some(consistency) = args.consistency.and_then(|consistency| consistency.to_possible_value()) {
        command.arg("--consistency").arg(consistency.get_name());
    }
    command.arg("--memory").arg(format!("{}B", plan.wishes.memory.0));
    if let Some((folder, size)) = &plan.wishes.cache {
        command.arg("--cache-dir").arg(folder).arg("--cache-size").arg(format!("{}B", size.0));
    }
    if globals.log_format == LogFormat::Json {
        command.args(["--log-format", "json"]);
    }
    for options in &args.options {
        command.arg("-o").arg(options);
    }
    command.arg(&plan.point);
    let patience = plan.wishes.deadline + START_GRACE;
    await_ready(command, patience)
}

fn await_ready(mut command: Command, patience: Duration) -> Result<Exit> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("starting the mount's process")?;
    let stdout = child.stdout.take().context("no pipe to the mount's process")?;
    let (sender, line) = std::sync::mpsc::sync_channel(1);
    std::thread::spawn(move || {
        let mut line = String::new();
        let read = BufReader::new(stdout.take(64 << 10)).read_line(&mut line);
        let _ = sender.send(read.map(|_| line));
    });
    match line.recv_timeout(patience) {
        Ok(Ok(line)) if line.starts_with(service::READY) => Ok(Exit::Done),
        Err(_) => {
            let _ = child.kill();
            let _ = child.wait();
            Err(Failure::new(Exit::TimedOut, format!("no answer within {patience:?}")))
        }
        Ok(_) => {
            let mut complaint = String::new();
            if let Some(stderr) = child.stderr.take() {
                let _ = stderr.take(64 << 10).read_to_string(&mut complaint);
            }
            let status = child.wait().context("waiting for the mount's process")?;
            let last =
                complaint.lines().last().unwrap_or("the mount's process has ended").trim_start_matches("globalfs: ");
            let exit = status.code().and_then(Exit::from_code).filter(|exit| *exit != Exit::Done);
            Err(Failure::new(exit.unwrap_or(Exit::Failed), last))
        }
    }
}

/// mount(8)'s own exit codes.
mod helper_code {
    pub const USAGE: u8 = 1;
    pub const SYSTEM: u8 = 2;
    pub const INTERRUPTED: u8 = 8;
    pub const MOUNT: u8 = 32;
}

const HELPER_USAGE: &str = "usage: mount.globalfs REGION@CONFIG DIR [-sfnv] [-o OPTIONS]";

/// What mount(8) asked for.
#[derive(Debug, Default, PartialEq, Eq)]
struct HelperCall {
    spec: String,
    dir: PathBuf,
    options: Vec<String>,
    sloppy: bool,
    fake: bool,
}

/// Entry point as `mount.globalfs SPEC DIR -o …`.
pub fn helper(arguments: &[OsString]) -> ExitCode {
    telemetry::init(LogFormat::Text, "warn");
    let call = match parse_helper(arguments) {
        Ok(call) => call,
        Err(problem) => {
            tell!("mount.globalfs: {problem}\n{HELPER_USAGE}");
            return ExitCode::from(helper_code::USAGE);
        }
    };
    match mount_for_helper(&call) {
        Ok(_) => ExitCode::SUCCESS,
        Err(failure) => {
            tell!("mount.globalfs: {}", failure.message());
            ExitCode::from(match failure.exit {
                Exit::Usage => helper_code::USAGE,
                Exit::Interrupted => helper_code::INTERRUPTED,
                Exit::Failed => helper_code::SYSTEM,
                _ => helper_code::MOUNT,
            })
        }
    }
}

fn parse_helper(arguments: &[OsString]) -> std::result::Result<HelperCall, String> {
    let mut call = HelperCall::default();
    let mut positional = Vec::new();
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        let text = argument.to_str().ok_or_else(|| format!("{argument:?} is not UTF-8"))?;
        match text {
            "-o" | "-t" | "-N" => {
                let value =
                    rest.next().and_then(|value| value.to_str()).ok_or_else(|| format!("{text} needs a value"))?;
                if text == "-o" {
                    call.options.push(value.into());
                }
            }
            flags if flags.starts_with('-') && flags.len() > 1 => {
                for flag in flags[1..].chars() {
                    match flag {
                        's' => call.sloppy = true,
                        'f' => call.fake = true,
                        'n' | 'v' => {}
                        _ => return Err(format!("flag -{flag} is not known")),
                    }
                }
            }
            _ => positional.push(text.to_owned()),
        }
    }
    let [spec, dir] = positional.try_into().map_err(|_| "a source and a directory are needed".to_owned())?;
    Ok(HelperCall { spec, dir: dir.into(), ..call })
}

fn mount_for_helper(call: &HelperCall) -> Result<Exit> {
    let mut list = OptionList::default();
    for options in &call.options {
        list.add(options, call.sloppy).map_err(|problem| Failure::new(Exit::Usage, problem))?;
    }
    let (region, config) = match mounts::parse_source(&call.spec) {
        Some((region, config)) => (Some(region), config),
        // A bare configuration; the region is an option then.
        None => (None, PathBuf::from(&call.spec)),
    };
    if call.fake {
        return Ok(Exit::Done);
    }
    let globals = Globals { config: Some(config), no_color: true, log_format: LogFormat::Text };
    let known = call.options.iter().map(|options| only_known(options)).collect();
    let args = MountArgs {
        mountpoint: call.dir.clone(),
        region,
        options: known,
        foreground: false,
        deadline: None,
        on_cut: None,
        consistency: None,
        memory: None,
        cache_dir: None,
        cache_size: None,
        identity: None,
        detached: false,
        parent: Parent::default(),
    };
    run(&globals, &args).or_else(|failure| Err(failure.error).or_exit(failure.exit))
}

/// Leaves out what a sloppy call may contain.
fn only_known(options: &str) -> String {
    let known = options.split(',').filter(|option| OptionList::default().add(option, false).is_ok());
    known.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn call(words: &[&str]) -> std::result::Result<HelperCall, String> {
        parse_helper(&words.iter().map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn helper_reads_mounts_arguments() {
        let parsed = call(&["eu@/c.toml", "/mnt", "-sn", "-o", "rw,_netdev"]).unwrap();
        assert_eq!(parsed.spec, "eu@/c.toml");
        assert_eq!(parsed.dir, Path::new("/mnt"));
        assert_eq!(parsed.options, ["rw,_netdev"]);
        assert!(parsed.sloppy && !parsed.fake);
        assert!(call(&["only-one"]).is_err());
        assert!(call(&["a", "b", "-x"]).is_err());
        assert!(call(&["a", "b", "-o"]).is_err());
    }

    #[test]
    fn sloppy_options_are_left_out() {
        assert_eq!(only_known("ro,wild=1,deadline=5s"), "ro,deadline=5s");
    }
}
