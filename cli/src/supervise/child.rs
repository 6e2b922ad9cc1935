//! One child process: started, watched, started again after a pause.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::commands::service::READY;
use crate::exit::Exit;

const PAUSE_FIRST: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// A child that lived so long is not in a loop of failures.
const LIFE_LONG: Duration = Duration::from_secs(20);
/// A log longer than that at a start makes room for a new one.
const LOG_BYTES_MAX: u64 = 64 << 20;
const COMPLAINT_BYTES_MAX: u64 = 8 << 10;
/// How the program begins its messages.
const MESSAGE_PREFIX: &str = "globalfs: ";

/// What a child is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Hosts replicas.
    Node,
    /// Mounts the volume.
    Mount {
        /// Where.
        point: PathBuf,
    },
}

/// How to start a child.
#[derive(Clone, Debug)]
pub struct Spec {
    /// For people, and for the names of files: `us-1`, `mount-us`.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// Its region.
    pub region: String,
    /// Arguments of this program.
    pub args: Vec<OsString>,
    /// Its stderr.
    pub log: PathBuf,
    /// Where its pid is written.
    pub pid_file: PathBuf,
}

/// Whether a child shall live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Yes.
    Run,
    /// It is asked to end.
    Term,
    /// It is ended.
    Kill,
}

/// What happened to which child.
#[derive(Debug)]
pub struct Event {
    /// Its number at the supervisor.
    pub child: usize,
    /// What.
    pub happened: Happened,
}

/// What happened.
#[derive(Debug)]
pub enum Happened {
    /// It has a process.
    Started {
        /// Which.
        pid: u32,
    },
    /// It said that it can be used.
    Ready,
    /// Its process ended unasked.
    Ended {
        /// In words.
        how: String,
        /// Its exit code, if it is one of ours.
        exit: Option<Exit>,
        /// The last message in its log.
        complaint: String,
        /// When it is started again.
        retry_in: Duration,
    },
}

/// Keeps a child running until it shall stop.
pub async fn keep(child: usize, spec: Spec, events: mpsc::Sender<Event>, mut stop: watch::Receiver<Stop>) {
    let mut pause = PAUSE_FIRST;
    let mut again = false;
    while *stop.borrow_and_update() == Stop::Run {
        let born = Instant::now();
        if let (true, Kind::Mount { point }) = (again, &spec.kind) {
            super::leftovers::detach(point);
        }
        let ended = match spawn(&spec) {
            Ok(process) => {
                let started = Happened::Started { pid: process.id().unwrap_or(0) };
                let _ = events.send(Event { child, happened: started }).await;
                watch_over(child, process, &events, &mut stop).await
            }
            Err(error) => Err(error),
        };
        let _ = fs::remove_file(&spec.pid_file);
        if *stop.borrow() != Stop::Run {
            return;
        }
        again = true;
        pause = if born.elapsed() >= LIFE_LONG { PAUSE_FIRST } else { pause };
        let happened = obituary(&spec, ended, pause);
        let _ = events.send(Event { child, happened }).await;
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = stop.changed() => return,
        }
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// This very program, also if its file has been replaced by another version meanwhile.
pub fn this_program() -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.arg0("globalfs");
    command
}

fn spawn(spec: &Spec) -> io::Result<Child> {
    let mut command = this_program();
    command.args(&spec.args).arg("--die-with").arg(std::process::id().to_string());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(open_log(&spec.log)?);
    // A group of its own: a terminal's Ctrl-C reaches the supervisor alone, which ends children in order.
    command.process_group(0);
    // Few arenas: the allocator's default of eight per CPU costs memory and brings nothing to these processes.
    if std::env::var_os("MALLOC_ARENA_MAX").is_none() {
        command.env("MALLOC_ARENA_MAX", "2");
    }
    let child = command.spawn()?;
    if let Some(pid) = child.id() {
        fs::write(&spec.pid_file, format!("{pid}\n"))?;
    }
    Ok(child)
}

fn open_log(log: &Path) -> io::Result<File> {
    if fs::metadata(log).is_ok_and(|metadata| metadata.len() > LOG_BYTES_MAX) {
        fs::rename(log, log.with_extension("log.1"))?;
    }
    OpenOptions::new().create(true).append(true).open(log)
}

/// Until the process has ended.
async fn watch_over(
    child: usize,
    mut process: Child,
    events: &mpsc::Sender<Event>,
    stop: &mut watch::Receiver<Stop>,
) -> io::Result<ExitStatus> {
    let pid = process.id().and_then(|pid| Pid::from_raw(pid.cast_signed()));
    let mut lines = process.stdout.take().map(|stdout| BufReader::new(stdout).lines());
    loop {
        tokio::select! {
            status = process.wait() => return status,
            line = next_line(&mut lines) => match line {
                Some(line) if line.starts_with(READY) => {
                    let _ = events.send(Event { child, happened: Happened::Ready }).await;
                }
                Some(_) => {}
                None => lines = None,
            },
            changed = stop.changed() => {
                let wish = if changed.is_err() { Stop::Kill } else { *stop.borrow_and_update() };
                if let Some(pid) = pid {
                    signal(pid, wish);
                }
            }
        }
    }
}

/// Waits for ever when there is nothing more to read.
async fn next_line(lines: &mut Option<tokio::io::Lines<BufReader<tokio::process::ChildStdout>>>) -> Option<String> {
    match lines {
        Some(lines) => lines.next_line().await.ok().flatten(),
        None => std::future::pending().await,
    }
}

fn signal(pid: Pid, wish: Stop) {
    // The process is our child and not yet waited for: the number is still its own. It may have ended already.
    let _ = match wish {
        Stop::Run => Ok(()),
        // A stopped process must run to end in order.
        Stop::Term => kill_process(pid, Signal::TERM).and_then(|()| kill_process(pid, Signal::CONT)),
        Stop::Kill => kill_process(pid, Signal::KILL),
    };
}

fn obituary(spec: &Spec, ended: io::Result<ExitStatus>, retry_in: Duration) -> Happened {
    let (how, exit) = match &ended {
        Err(error) => (format!("cannot be started: {error}"), None),
        Ok(status) => match (status.code(), status.signal()) {
            (Some(code), _) => (format!("ended with exit code {code}"), Exit::from_code(code)),
            (None, signal) => (format!("was ended by signal {}", signal.unwrap_or(0)), None),
        },
    };
    // Who was killed has no last words.
    let failed = exit.is_some_and(|exit| exit != Exit::Done);
    let complaint = if failed { last_words(&spec.log).unwrap_or_default() } else { String::new() };
    Happened::Ended { how, exit, complaint, retry_in }
}

/// The last message that was meant for people, if it stands near the log's end.
fn last_words(log: &Path) -> io::Result<String> {
    let mut file = File::open(log)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(COMPLAINT_BYTES_MAX)))?;
    let mut tail = Vec::new();
    file.take(COMPLAINT_BYTES_MAX).read_to_end(&mut tail)?;
    let tail = String::from_utf8_lossy(&tail);
    let words = tail.lines().rev().find_map(|line| line.strip_prefix(MESSAGE_PREFIX));
    Ok(words.unwrap_or_default().trim().to_owned())
}
