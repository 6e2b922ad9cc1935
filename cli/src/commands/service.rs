//! What `node` and `mount` share: signals, the ready line, living and dying with a supervisor.

use std::fs::OpenOptions;
use std::io::Write;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::exit::{Exit, Failure, Result};

/// The first word of the line that tells that a service can be used.
pub const READY: &str = "ready";

/// Options that the supervisor gives to its children.
#[derive(Debug, Default, Args)]
pub struct Parent {
    /// End when this process, which must be the parent, does
    #[arg(long, hide = true, value_name = "PID")]
    die_with: Option<i32>,
}

impl Parent {
    /// From now on this process gets SIGTERM when its parent dies, however that happens.
    pub fn bind(&self) -> Result {
        let Some(parent) = self.die_with else { return Ok(()) };
        set_parent_process_death_signal(Some(Signal::TERM)).context("asking to be told of the parent's death")?;
        // It may have died before.
        if getppid().map(Pid::as_raw_pid) != Some(parent) {
            return Err(Failure::new(Exit::Interrupted, "the process that started this one has ended"));
        }
        Ok(())
    }
}

/// Signals that end a service.
pub struct Signals {
    received: std::sync::Mutex<mpsc::Receiver<&'static str>>,
}

impl Signals {
    /// From now on they are noted and kill no more.
    pub fn install(runtime: &Runtime) -> Result<Signals> {
        let (sender, received) = mpsc::channel(4);
        let _inside = runtime.enter();
        for (kind, name) in signals() {
            let mut stream = signal(kind).with_context(|| format!("handling {name}"))?;
            let sender = sender.clone();
            runtime.spawn(async move {
                while stream.recv().await.is_some() {
                    // Full: whoever listens has been told often enough.
                    let _ = sender.try_send(name);
                }
            });
        }
        Ok(Signals { received: received.into() })
    }

    /// The next one, if it comes in time.
    pub fn wait(&self, runtime: &Runtime, patience: Duration) -> Option<&'static str> {
        let mut received = self.received.lock().ok()?;
        runtime.block_on(async { tokio::time::timeout(patience, received.recv()).await.ok().flatten() })
    }
}

/// The signals that end a service, with their names.
pub fn signals() -> [(SignalKind, &'static str); 3] {
    [(SignalKind::terminate(), "SIGTERM"), (SignalKind::interrupt(), "SIGINT"), (SignalKind::hangup(), "SIGHUP")]
}

/// The runtime of whatever talks to nodes.
pub fn runtime() -> Result<Runtime> {
    Ok(net::runtime("globalfs").context("starting the runtime")?)
}

/// Says on stdout that the service can be used. Nobody listening is no reason to fail.
pub fn announce(details: &serde_json::Value) {
    let mut stdout = std::io::stdout().lock();
    let _ = writeln!(stdout, "{READY} {details}").and_then(|()| stdout.flush());
}

/// From now on stdin, stdout and stderr lead nowhere: whoever started this process may go away.
pub fn let_go_of_terminal() -> Result {
    let null = OpenOptions::new().read(true).write(true).open("/dev/null").context("/dev/null")?;
    rustix::stdio::dup2_stdin(&null).context("closing stdin")?;
    rustix::stdio::dup2_stdout(&null).context("closing stdout")?;
    rustix::stdio::dup2_stderr(&null).context("closing stderr")?;
    Ok(())
}

/// Ends the process if a clean end takes too long: whoever waits for it must not wait for ever.
pub fn end_within(patience: Duration, exit: Exit) {
    let ended = std::thread::Builder::new().name("end-within".into()).spawn(move || {
        std::thread::sleep(patience);
        tracing::warn!("a clean end took too long");
        std::process::exit(exit as i32);
    });
    if let Err(error) = ended {
        tracing::warn!(%error, "no watch over the end");
    }
}
