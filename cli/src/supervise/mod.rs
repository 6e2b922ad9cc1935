//! Child processes of an embedded cluster: started, started again, ended in order.

pub mod child;
pub mod layout;
pub mod leftovers;
pub mod lock;

use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use crate::exit::Exit;
use crate::output::tell;
use child::{Event, Happened, Kind, Spec, Stop};

/// Mounts flush and unmount while the nodes still run.
const MOUNTS_TIMEOUT: Duration = Duration::from_secs(5);
/// Nodes only have to flush; what they do not is in their logs.
const NODES_TIMEOUT: Duration = Duration::from_secs(3);
/// A killed process is gone at once, unless the disk holds it.
const KILLED_TIMEOUT: Duration = Duration::from_secs(1);
const EVENTS_MAX: usize = 256;

/// How a child is doing.
#[derive(Clone, Debug)]
pub struct ChildState {
    /// What it is.
    pub spec: Spec,
    /// Its process, while it has one.
    pub pid: Option<u32>,
    /// It has said that it can be used.
    pub ready: bool,
    /// It has been ready at some time.
    pub was_ready: bool,
    /// How it ended the last time, if it has not been ready since: what people know already.
    ended: Option<String>,
}

/// The children and what happens to them.
pub struct Supervisor {
    children: Vec<ChildState>,
    events: mpsc::Receiver<Event>,
    sender: mpsc::Sender<Event>,
    stop_nodes: watch::Sender<Stop>,
    stop_mounts: watch::Sender<Stop>,
    nodes: JoinSet<()>,
    mounts: JoinSet<()>,
}

/// A child that cannot run at all: starting it again would not help.
#[derive(Clone, Debug)]
pub struct Hopeless {
    /// Which.
    pub name: String,
    /// Its exit code.
    pub exit: Exit,
    /// Its last words.
    pub complaint: String,
}

impl Supervisor {
    /// Nobody yet. Must be used on the thread that lives as long as the process: children die with the thread that
    /// started them.
    pub fn new() -> Supervisor {
        let (sender, events) = mpsc::channel(EVENTS_MAX);
        Supervisor {
            children: Vec::new(),
            events,
            sender,
            stop_nodes: watch::channel(Stop::Run).0,
            stop_mounts: watch::channel(Stop::Run).0,
            nodes: JoinSet::new(),
            mounts: JoinSet::new(),
        }
    }

    /// Starts a child and keeps it running from now on.
    pub fn start(&mut self, spec: Spec) {
        let number = self.children.len();
        self.children.push(ChildState { spec: spec.clone(), pid: None, ready: false, was_ready: false, ended: None });
        let (stop, tasks) = match spec.kind {
            Kind::Node => (self.stop_nodes.subscribe(), &mut self.nodes),
            Kind::Mount { .. } => (self.stop_mounts.subscribe(), &mut self.mounts),
        };
        // The local set of a current-thread runtime: every child is started by the main thread.
        tasks.spawn(child::keep(number, spec, self.sender.clone(), stop));
    }

    /// The children, in the order in which they were started.
    pub fn children(&self) -> &[ChildState] {
        &self.children
    }

    /// Whether all children of a kind are ready.
    pub fn all_ready(&self, wanted: impl Fn(&Kind) -> bool) -> bool {
        self.children.iter().filter(|child| wanted(&child.spec.kind)).all(|child| child.ready)
    }

    /// Takes part in what happens next: keeps the books and tells people. An error is a child without hope.
    pub async fn next(&mut self) -> Result<(), Hopeless> {
        let Some(Event { child, happened }) = self.events.recv().await else { return Ok(()) };
        let Some(state) = self.children.get_mut(child) else { return Ok(()) };
        let name = state.spec.name.clone();
        match happened {
            Happened::Started { pid } => state.pid = Some(pid),
            Happened::Ready => {
                (state.ready, state.was_ready) = (true, true);
                if state.ended.take().is_some() {
                    tell!("globalfs: {name} is ready again, pid {}", state.pid.unwrap_or_default());
                }
            }
            Happened::Ended { how, exit, complaint, retry_in } => {
                (state.pid, state.ready) = (None, false);
                if let Some(exit) = exit.filter(|exit| !state.was_ready && is_hopeless(*exit)) {
                    return Err(Hopeless { name, exit, complaint });
                }
                let words = if complaint.is_empty() { String::new() } else { format!(": {complaint}") };
                let ended = format!("{how}{words}");
                // A child that fails over and over for one reason is told of once.
                if state.ended.as_ref() != Some(&ended) {
                    let log = state.spec.log.display();
                    tell!("globalfs: {name} {ended} (log: {log}); starting it again in {retry_in:?}, then ever later");
                }
                state.ended = Some(ended);
            }
        }
        Ok(())
    }

    /// Ends everything: mounts first. A second call of people's patience (`hurry`) kills.
    pub async fn stop(&mut self, mut hurry: impl AsyncFnMut()) {
        // Nobody reads events any more; children's tasks must not wait for that.
        self.events.close();
        let points: Vec<_> = self
            .children
            .iter()
            .filter_map(|child| match &child.spec.kind {
                Kind::Mount { point } => Some(point.clone()),
                Kind::Node => None,
            })
            .collect();
        end(&self.stop_mounts, &mut self.mounts, MOUNTS_TIMEOUT, &mut hurry, || {
            for point in &points {
                leftovers::detach(point);
            }
        })
        .await;
        points.iter().for_each(|point| leftovers::detach(point));
        end(&self.stop_nodes, &mut self.nodes, NODES_TIMEOUT, &mut hurry, || {}).await;
    }
}

/// Asks, waits, then kills.
async fn end(
    stop: &watch::Sender<Stop>,
    tasks: &mut JoinSet<()>,
    patience: Duration,
    hurry: &mut impl AsyncFnMut(),
    before_kill: impl FnOnce(),
) {
    stop.send_replace(Stop::Term);
    let until = Instant::now() + patience;
    let ended = tokio::select! {
        ended = timeout_at(until, drain(tasks)) => ended.is_ok(),
        () = hurry() => false,
    };
    if ended {
        return;
    }
    before_kill();
    stop.send_replace(Stop::Kill);
    if timeout_at(Instant::now() + KILLED_TIMEOUT, drain(tasks)).await.is_err() {
        tell!("globalfs: some processes could not be ended");
    }
}

async fn drain(tasks: &mut JoinSet<()>) {
    while tasks.join_next().await.is_some() {}
}

fn is_hopeless(exit: Exit) -> bool {
    matches!(exit, Exit::Usage | Exit::Config | Exit::NotPermitted)
}
