//! The engine: a session's updates and reads over the nodes of a cluster, again and again until they are answered or
//! their deadline has passed.
//!
//! An update goes to the primary of one of its groups under an id that stays the same over all its attempts: it executes
//! once. A read goes to the nearest replica of its group, over the connection whose stream keeps the cache right.

pub mod link;
pub mod pending;
pub mod progress;
pub mod reach;
pub mod route;
pub mod window;

pub(crate) mod across;
mod directory;
pub(crate) mod fill;
mod probing;
mod reads;
mod shared;

use std::collections::BTreeSet;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
#[cfg(test)]
use metadata::op::FsOp;
use metadata::operate::{Directory, Operation};
use metadata::outcome::Outcome;
use metadata::protocol::{Reply, Request};
use metadata::read::{ReadOp, ReadResult};
use multicast::command::Destination;
use multicast::ids::{GroupId, ReplicaId, SessionId, VectorClock};
use net::Endpoint;
use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore};

use crate::cache::Cache;
use crate::config::{ClientConfig, Consistency, OnCut};
use crate::errno::Errno;
use crate::error::{Error, Result};
use crate::volume::{BoxFuture, OrphanBox, Volume};
use directory::Links;
use link::{CallError, Link};
use pending::{Sent, Update};
use progress::Progress;
use reach::{Purpose, Reach};
use route::{Route, Seen};
use shared::{Expect, Group, Shared, Stream};
use window::Turn;

/// Pause between attempts: the first few are short, as a primary that is handed over takes some dozens of milliseconds; then they
/// double up to the second. While a group elects a primary many ask, but nobody shall be late for it.
const PAUSE_MIN: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_millis(200);
const SHORT_PAUSES: u32 = 6;
/// Attempts in a row that news may cause without a pause. Replicas that name each other would else be asked all the time.
const EAGER_MAX: u32 = 2;
/// A replica that takes nothing says so at once.
const SLOW_REFUSAL: Duration = Duration::from_secs(1);

/// One session over one cluster.
pub struct Engine {
    shared: Arc<Shared>,
    links: Arc<Links>,
    reach: Arc<Reach>,
    config: ClientConfig,
}

/// What to do after an attempt.
enum Next<T> {
    Done(T),
    /// Try again; `true` at once, else after a pause.
    Again(String, bool),
}

impl Engine {
    /// An engine with a session of its own. Connects when it is used. Must be called inside a tokio runtime.
    pub fn start(config: ClientConfig, endpoint: &Endpoint) -> Result<Arc<Engine>> {
        config.check()?;
        let session = SessionId(random());
        let progress = Arc::new(Progress::new(session, config.groups.iter().map(|group| group.id)));
        let cache = Cache::new(progress.clone(), config.limits.cache_entries_max);
        let cache = Arc::new(match config.consistency {
            Consistency::Causal => cache,
            Consistency::Linearizable => cache.mute(),
        });
        let is_local =
            |id: &ReplicaId| config.nodes.iter().any(|node| node.number == *id && node.region == config.region);
        let groups = config.groups.iter().map(|group| {
            let seen = |id: &ReplicaId| Seen { id: *id, local: is_local(id) };
            let is_node = |id: &&ReplicaId| config.nodes.iter().any(|node| node.number == **id);
            let mut known: Vec<Seen> = group.voters.iter().filter(is_node).map(seen).collect();
            if known.is_empty() {
                // All founders are gone: anybody may know who has taken their places.
                known = config.nodes.iter().map(|node| seen(&node.number)).collect();
            }
            let route = Mutex::new(Route::new(known));
            let group_state = Group {
                route,
                stream: Mutex::default(),
                session_open: AtomicBool::new(false),
                registration: AtomicU64::new(0),
                opening: tokio::sync::Mutex::new(()),
                updates: Semaphore::new(config.limits.updates_max.clamp(1, Semaphore::MAX_PERMITS)),
                reads: Semaphore::new(config.limits.reads_max.clamp(1, Semaphore::MAX_PERMITS)),
            };
            (group.id, group_state)
        });
        let shared = Arc::new(Shared {
            session,
            cache,
            progress,
            orphans: Arc::default(),
            window: Arc::default(),
            groups: groups.collect(),
            across: Mutex::default(),
            doubt: Notify::new(),
        });
        let links = Arc::new(Links::new(&config.nodes, endpoint.clone(), shared.clone()));
        let engine = Arc::new(Engine { links, reach: Arc::default(), shared, config });
        engine.spawn_keep_alive();
        engine.spawn_directory();
        if engine.config.on_cut == OnCut::Error {
            engine.spawn_prober();
        }
        Ok(engine)
    }

    /// What this session has seen.
    pub fn clock(&self) -> VectorClock {
        self.shared.progress.clock()
    }

    /// Counts as having seen what `clock` has, once the groups named in it have answered from states that include it. If
    /// one does not, nothing has changed: what the token names may not exist here.
    pub async fn adopt(&self, clock: &VectorClock) -> Result<()> {
        let named = clock.iter().chain(clock.iter_effects()).map(|(group, _)| group);
        let groups: BTreeSet<GroupId> = named.filter(|group| self.shared.groups.contains_key(group)).collect();
        for group in groups {
            let _ = self.read_behind(group, ReadOp::Usage, Some(clock)).await?;
        }
        self.shared.depend(clock);
        Ok(())
    }

    fn group(&self, id: GroupId) -> Result<&Group> {
        self.shared.groups.get(&id).ok_or_else(|| Error::Config(format!("group {id} is not configured")))
    }

    fn link(&self, id: ReplicaId) -> Result<Arc<Link<Shared>>> {
        self.links.get(id).ok_or_else(|| Error::Config(format!("node {id} is not configured")))
    }

    fn may_be_up(&self, id: ReplicaId) -> bool {
        self.links.get(id).is_some_and(|link| link.may_be_up())
    }

    fn spawn_keep_alive(&self) {
        let (links, session) = (Arc::downgrade(&self.links), self.shared.session);
        let shared = Arc::downgrade(&self.shared);
        let mut ticks = tokio::time::interval(self.config.timeouts.keep_alive);
        tokio::spawn(async move {
            loop {
                ticks.tick().await;
                let (Some(shared), Some(links)) = (shared.upgrade(), links.upgrade()) else { return };
                for group in shared.groups.values() {
                    // Any voter may become primary, and only who is connected to the primary keeps its session alive.
                    if group.session_open.load(Ordering::Acquire) {
                        let voters = group.route.lock().voters();
                        voters.iter().filter_map(|id| links.get(*id)).for_each(|link| link.want());
                    }
                }
                for link in links.all() {
                    // The next one is soon enough.
                    let _ = link.post(Request::KeepAlive { session }, Expect::Other);
                }
            }
        });
    }

    /// Tries until done or the deadline.
    async fn until_deadline<T, F>(
        &self,
        group: GroupId,
        patience: Duration,
        mut attempt: impl FnMut(u32, Instant) -> F,
    ) -> Result<T>
    where
        F: Future<Output = Result<Next<T>>>,
    {
        let started = Instant::now();
        let deadline = started + patience;
        let mut pause = PAUSE_MIN;
        let (mut tries, mut eager, mut pauses) = (0, 0, 0);
        loop {
            let until = deadline.min(Instant::now() + self.config.timeouts.attempt);
            let (why, at_once) = match attempt(tries, until).await? {
                Next::Done(value) => return Ok(value),
                Next::Again(why, at_once) => (why, at_once),
            };
            tries = tries.saturating_add(1);
            if Instant::now() + pause >= deadline {
                let elapsed_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
                tracing::warn!(%group, why, elapsed_ms, "gave up");
                return Err(Error::Timeout { group, elapsed_ms, why });
            }
            eager = if at_once { eager + 1 } else { 0 };
            if eager == 0 || eager > EAGER_MAX {
                // Many may wait for the same thing: they need not all come back at once.
                tokio::time::sleep(pause.mul_f64(1.0 - jitter() / 2.0)).await;
                pauses += 1;
                pause = if pauses < SHORT_PAUSES { PAUSE_MIN } else { (pause * 2).min(PAUSE_MAX) };
            }
        }
    }

    /// The group whose primary sees to an update: a near one, so that the first step costs nothing.
    fn coordinator(&self, destinations: &[Destination]) -> Option<GroupId> {
        let is_local = |id: GroupId| self.shared.groups.get(&id).is_some_and(|group| group.route.lock().is_local());
        let own = |id: GroupId| {
            self.shared.groups.get(&id).is_some_and(|group| {
                let primary = group.route.lock().primary();
                primary.is_some_and(|primary| self.is_in_region(primary))
            })
        };
        let groups = || destinations.iter().map(|destination| destination.group);
        groups().find(|id| own(*id)).or_else(|| groups().find(|id| is_local(*id))).or_else(|| groups().next())
    }

    fn is_in_region(&self, id: ReplicaId) -> bool {
        self.links.get(id).is_some_and(|link| link.node.region == self.config.region)
    }

    #[cfg(test)]
    async fn update(&self, op: FsOp) -> Result<Outcome> {
        self.settle(&Update::new(op)).await
    }

    async fn settle(&self, update: &Update) -> Result<Outcome> {
        let group = self.coordinator(&update.destinations).ok_or(Error::Posix(Errno::EINVAL))?;
        let groups = update.groups();
        self.check_reach(&groups, Purpose::Quorum)?;
        // What waits for another group counts there, so that it does not keep the coordinator's own from going out.
        let counted = groups.iter().copied().find(|id| *id != group).unwrap_or(group);
        let _turn = self.group(counted)?.updates.acquire().await.map_err(|_| Error::Closing)?;
        let result = self.watched(&groups, Purpose::Quorum, self.settle_once(group, update)).await;
        if result.is_err() {
            update.rest();
        }
        result
    }

    async fn settle_once(&self, group: GroupId, update: &Update) -> Result<Outcome> {
        let groups = update.groups();
        loop {
            for group in &groups {
                self.ensure_session(*group).await?;
            }
            let shared = &self.shared;
            let sent = update.sent(
                shared.session,
                || shared.progress.clock(),
                || shared.registrations(&groups),
                || Turn::begin(&shared.window, &groups),
            );
            if !sent.resume() {
                update.forget_id();
                return Err(Error::Overtaken { group });
            }
            match self.submit(group, update, &sent).await? {
                Some(outcome) => return Ok(outcome),
                None => update.forget_id(),
            }
            if sent.is_uncertain() {
                return Err(Error::SessionLost { group });
            }
            // The session had expired; nothing was done under the old sequence.
        }
    }

    /// One command until it is answered. `None`: a group does not know the session any more, or has it anew: under this
    /// id nothing will be learned, and if it is asked for again it might be executed again.
    async fn submit(&self, group: GroupId, update: &Update, sent: &Sent) -> Result<Option<Outcome>> {
        let groups = &update.groups();
        self.until_deadline(group, self.config.patience(), |tries, until| async move {
            if self.shared.registrations(groups) != sent.registrations {
                return Ok(Next::Done(None));
            }
            let target = self.target(group, tries)?;
            let (destinations, op) = (update.destinations.clone(), update.op.clone());
            let (sequence, clock) = (sent.command.id.sequence, sent.command.clock.clone());
            self.shared.across.lock().expect(sequence, &op, &destinations);
            let expect = Expect::Update { group, destinations, op, sequence, clock };
            let request = Request::Update { group, command: sent.command.clone() };
            let asked_at = Instant::now();
            let reply = match self.link(target)?.call(request, expect, until).await {
                Ok(reply) => reply,
                Err(error) => {
                    if matches!(error, CallError::Lost(_)) {
                        sent.become_uncertain();
                    }
                    self.suspect(group, target);
                    return Ok(Next::Again(error.to_string(), false));
                }
            };
            match reply {
                Reply::Updated { outcome, .. } => return Ok(Next::Done(Some(outcome))),
                Reply::UnknownSession { group } => {
                    self.forget_session(group, Some(sent.registration(groups, group)));
                    return Ok(Next::Done(None));
                }
                // Also told by a primary that has logged the command and then lost its ballot.
                Reply::NotPrimary { .. } => sent.become_uncertain(),
                // Also told by one that has logged it long since.
                Reply::Unavailable { .. } if asked_at.elapsed() >= SLOW_REFUSAL => sent.become_uncertain(),
                _ => {}
            }
            self.obstacle(group, target, reply)
        })
        .await
    }

    /// What all calls do about replies that are no answers.
    fn obstacle<T>(&self, group: GroupId, from: ReplicaId, reply: Reply) -> Result<Next<T>> {
        match reply {
            Reply::NotPrimary { group, primary } => {
                let news = match primary {
                    Some(primary) => {
                        let news = self.learn_primary(group, primary);
                        if !news {
                            // It may be one that has joined lately.
                            self.shared.doubt.notify_one();
                        }
                        news
                    }
                    None => {
                        self.suspect(group, from);
                        false
                    }
                };
                Ok(Next::Again(format!("{from} is not the primary of {group}"), news))
            }
            Reply::Unavailable { group, why } => Ok(Next::Again(format!("group {group}: {why}"), false)),
            Reply::Behind { applied } => Ok(Next::Again(format!("{from} has only applied {applied}"), false)),
            Reply::UnknownGroup { group } => {
                self.suspect(group, from);
                self.note_ready(group, from, false);
                Ok(Next::Again(format!("{from} has no replica of {group}"), false))
            }
            Reply::UnknownSession { group } => {
                Ok(Next::Again(format!("group {group} does not know the session"), false))
            }
            Reply::Invalid(why) => {
                let node = self.links.get(from).map_or_else(String::new, |link| link.node.name.clone());
                Err(Error::Refused { node, why })
            }
            Reply::Session(_)
            | Reply::Alive
            | Reply::Updated { .. }
            | Reply::Read { .. }
            | Reply::Status(_)
            | Reply::Members(_)
            | Reply::Operated(_) => Err(Error::Refused {
                node: from.to_string(),
                why: format!("an answer about {group} of the wrong kind"),
            }),
        }
    }

    fn target(&self, group: GroupId, tries: u32) -> Result<ReplicaId> {
        let route = self.group(group)?.route.lock();
        route.target(tries, |id| self.may_be_up(id)).ok_or(Error::Posix(Errno::EIO))
    }

    fn learn_primary(&self, group: GroupId, primary: ReplicaId) -> bool {
        let news = self.shared.groups.get(&group).is_some_and(|known| known.route.lock().learn_primary(primary));
        if news {
            self.choose_stream(group);
        }
        if let Some(link) = self.links.get(primary) {
            link.vouch();
        }
        news
    }

    fn suspect(&self, group: GroupId, primary: ReplicaId) {
        if let Some(known) = self.shared.groups.get(&group) {
            known.route.lock().forget_primary(primary);
        }
        self.shared.doubt.notify_one();
    }

    /// Subscribes to the replica that reads go to, if that is another one than before.
    fn choose_stream(&self, id: GroupId) -> Option<ReplicaId> {
        let group = self.shared.groups.get(&id)?;
        let reader = group.route.lock().reader(|id| self.may_be_up(id))?;
        let link = self.links.get(reader)?;
        link.want();
        let generation = link.generation();
        let Some(generation) = generation else { return Some(reader) };
        let mut stream = group.stream.lock();
        if stream.asked != Some((reader, generation)) {
            *stream = Stream { asked: Some((reader, generation)), live: None };
            // Under the same lock: the new stream must not begin before the old one has ended.
            self.shared.cache.end_stream(id);
            drop(stream);
            self.shared.subscribe(id, &link, generation);
        }
        Some(reader)
    }

    async fn ensure_session(&self, id: GroupId) -> Result<()> {
        let group = self.group(id)?;
        if group.session_open.load(Ordering::Acquire) {
            return Ok(());
        }
        let _turn = group.opening.lock().await;
        if group.session_open.load(Ordering::Acquire) {
            return Ok(());
        }
        let request =
            Request::OpenSession { group: id, session: self.shared.session, label: self.config.label.clone() };
        self.ask_primary(id, &request).await?;
        group.session_open.store(true, Ordering::Release);
        self.choose_stream(id);
        Ok(())
    }

    /// The group does not know the session any more. `registration`: the one of which that was said, if an update was.
    fn forget_session(&self, id: GroupId, registration: Option<u64>) {
        if let Some(group) = self.shared.groups.get(&id) {
            let now = group.registration.load(Ordering::Acquire);
            // Who hears of it late must not undo what others have done about it.
            let known = registration.unwrap_or(now);
            if group
                .registration
                .compare_exchange(known, known.wrapping_add(1), Ordering::AcqRel, Ordering::Acquire)
                .is_ok()
            {
                group.session_open.store(false, Ordering::Release);
            }
        }
    }

    /// A request about the session that only a primary can answer.
    async fn ask_primary(&self, group: GroupId, request: &Request) -> Result<()> {
        self.until_deadline(group, self.config.patience(), |tries, until| async move {
            let target = self.target(group, tries)?;
            match self.link(target)?.call(request.clone(), Expect::Session { group }, until).await {
                Ok(Reply::Session(_)) => Ok(Next::Done(())),
                Ok(reply) => self.obstacle(group, target, reply),
                Err(error) => {
                    self.suspect(group, target);
                    Ok(Next::Again(error.to_string(), false))
                }
            }
        })
        .await
    }

    async fn close_all(&self) {
        for group in self.shared.groups.values() {
            group.updates.close();
            group.reads.close();
        }
        let mut closing = Vec::new();
        for (&id, group) in &self.shared.groups {
            let registered = group.session_open.load(Ordering::Acquire);
            let target = group.route.lock().primary().and_then(|primary| self.links.get(primary));
            if let (true, Some(link)) = (registered, target) {
                let request = Request::CloseSession { group: id, session: self.shared.session };
                let until = Instant::now() + self.config.timeouts.close.min(Duration::from_secs(2));
                closing.push(tokio::spawn(async move {
                    if link.generation().is_some() {
                        let _ = link.call(request, Expect::Other, until).await;
                    }
                }));
            }
        }
        for task in closing {
            let _ = task.await;
        }
        for link in self.links.all() {
            link.close();
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        for link in self.links.all() {
            link.close();
        }
    }
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("session", &self.shared.session).finish_non_exhaustive()
    }
}

impl Volume for Engine {
    fn settle<'a>(&'a self, update: &'a Update) -> BoxFuture<'a, Result<Outcome>> {
        Box::pin(Engine::settle(self, update))
    }

    fn read(&self, group: GroupId, op: ReadOp) -> BoxFuture<'_, Result<ReadResult>> {
        Box::pin(Engine::read(self, group, op))
    }

    fn cache(&self) -> &Arc<Cache> {
        &self.shared.cache
    }

    fn session(&self) -> SessionId {
        self.shared.session
    }

    fn orphans(&self) -> &Arc<OrphanBox> {
        &self.shared.orphans
    }

    fn open_session(&self, group: GroupId) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            self.check_reach(&[group], Purpose::Quorum)?;
            self.ensure_session(group).await
        })
    }

    fn is_session_open(&self, group: GroupId) -> bool {
        self.shared.groups.get(&group).is_some_and(|group| group.session_open.load(Ordering::Acquire))
    }

    fn may_hold(&self, group: GroupId) -> bool {
        self.shared
            .groups
            .get(&group)
            .is_some_and(|group| group.session_open.load(Ordering::Acquire) || group.opening.try_lock().is_err())
    }

    fn operate(&self, node: ReplicaId, operation: Operation) -> BoxFuture<'_, Result<Reply>> {
        Box::pin(self.ask_node(node, Request::Operate(operation)))
    }

    fn node_directory(&self, node: ReplicaId) -> BoxFuture<'_, Result<Directory>> {
        Box::pin(async move {
            match self.ask_node(node, Request::Members).await? {
                Reply::Members(directory) => Ok(directory),
                _ => Err(Error::Refused { node: node.to_string(), why: "no members".into() }),
            }
        })
    }

    fn node_status(&self, node: ReplicaId) -> BoxFuture<'_, Result<Bytes>> {
        Box::pin(async move {
            match self.ask_node(node, Request::Status).await? {
                Reply::Status(document) => Ok(document),
                _ => Err(Error::Refused { node: node.to_string(), why: "no status".into() }),
            }
        })
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.close_all())
    }
}

/// From 0 to 1.
fn jitter() -> f64 {
    f64::from(random() as u32) / f64::from(u32::MAX)
}

/// A number that no other client draws.
pub(crate) fn random() -> u64 {
    // The standard library seeds its hashers from the system's generator.
    let id = RandomState::new().hash_one(std::process::id());
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    RandomState::new().hash_one((id, now.as_nanos()))
}

#[cfg(test)]
mod tests;
