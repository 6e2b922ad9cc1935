//! One replica: the shipped [`ReplicaCore`] over a store in memory, with everything that touches the world handed back as
//! [`Act`]s. What a node's thread does beside it, this does: write batches, hold what readers see, keep what is not flushed.

use std::collections::BTreeMap;

use ::replica::{Leases, Note, Output, PendingRead, ReplicaConfig, ReplicaCore, Tell};
use bytes::Bytes;
use metadata::keys;
use metadata::namespace::{Genesis, genesis};
use metadata::protocol::{Position, Reply, Request, ToClient};
use metadata::store::stored_digest;
use metadata::types::TimeNs;
use metadata::{Namespace, Overlay, WriteSet, codec};
use multicast::command::{Command, Key};
use multicast::core::{Core, Durable, SessionChange};
use multicast::ids::{CommandId, GroupId, Incarnation, LogIndex, ReplicaId, SessionId};
use multicast::{Config, Contributions, Event, Message, OrderState, Record, Time, Writes};

use crate::checks::ledger::Ledger;
use crate::checks::quorum::Seen;
use crate::disk::Disk;
use crate::executor::Watched;
use crate::options::Options;
use crate::planted::Bug;
use crate::shelf::Shelf;
use crate::view::{Link, View, said};

/// Entries applied in one write of the store.
const APPLY_BATCH_MAX: usize = 64;

/// Runs are short: their replicas compare states often.
const DIGEST_INTERVAL: u64 = 8;

/// Whom to answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    /// The client.
    pub link: Link,
    /// Its request.
    pub request: u64,
}

/// Something for the world to do, in this order.
#[derive(Debug)]
pub enum Act {
    /// Write to the log; tell the token once it is durable.
    Persist(u64, Writes),
    /// Send to another replica.
    Send((GroupId, ReplicaId), Message),
    /// Send to a client, if that connection still is.
    Tell(usize, u64, ToClient),
    /// End this connection.
    CutOff(Link),
    /// Read the log back.
    ReadLog(LogIndex, usize),
    /// Send a copy of the state to that replica with that disk.
    SendCopy(ReplicaId, Incarnation),
    /// The process cannot go on: what is on disk is not what was written.
    Damaged(String),
    /// That replica needs this entry, which was dropped.
    BeyondHelp(ReplicaId, LogIndex),
    /// Its group has found out that its state is another one.
    Quarantined(String),
    /// Worth a line in the trace.
    Note(String),
    /// Must never happen.
    Violation(String),
}

/// What survives the process, beside the log.
#[derive(Debug, Default)]
pub struct Saved {
    /// The namespace's rows.
    pub store: Shelf,
    /// The ordering's.
    pub order: BTreeMap<Vec<u8>, Vec<u8>>,
    quarantine: Option<String>,
}

/// Why a replica does not start.
#[derive(Debug)]
pub enum Broken {
    /// Its disk has gone bad, and it says so.
    Damaged(String),
    /// What is there makes no sense: a violation.
    Senseless(String),
}

/// One replica of one group.
pub struct Replica {
    /// Its core's configuration.
    pub config: Config,
    lease_ms: u64,
    parked_ms: u64,
    /// Behind this index its state becomes another one.
    pub rot_at: Option<LogIndex>,
    /// What is on disk.
    pub saved: Saved,
    /// While its process lives.
    pub live: Option<Live>,
    /// The planted bug.
    pub bug: Option<Bug>,
}

/// What only lives in memory.
pub struct Live {
    /// What decides.
    pub core: ReplicaCore<Ticket>,
    /// The state.
    pub store: Shelf,
    /// Its rows that are not on disk.
    pub unflushed: WriteSet,
    /// The ordering's.
    pub unflushed_order: WriteSet,
    /// Up to where all is on disk.
    pub flushed: LogIndex,
    /// The disk is new, and the group has not taken it in: nobody reads it.
    pub is_outsider: bool,
    /// A copy of its state is on its way.
    pub is_sending: bool,
    /// How far it was looked at as primary.
    pub seen: Seen,
    /// What readers see.
    pub view: View,
    leases: Leases,
    /// The planted bug: updates that are answered when they are logged.
    early: BTreeMap<CommandId, Ticket>,
    /// The planted bug: what was changed and nobody told.
    late: BTreeMap<u64, Vec<Key>>,
    /// A turn is scheduled.
    pub woken: bool,
    /// When the timer that is set goes off.
    pub timer: Option<u64>,
    /// What is to be done next.
    pub acts: Vec<Act>,
}

impl Saved {
    /// Another state takes the place of this one, in one step.
    pub fn place(&mut self, store: Shelf, order: BTreeMap<Vec<u8>, Vec<u8>>) {
        *self = Saved { store, order, quarantine: None };
    }
}

impl Replica {
    /// A replica that has never run.
    #[must_use]
    pub fn new(config: Config, options: &Options, bug: Option<Bug>) -> Replica {
        let (lease_ms, parked_ms) = (options.session_lease_ms, options.parked_read_ms);
        let rot = options.faults.rot.filter(|&(group, id, _)| (group, id) == (config.group, config.replica));
        let rot_at = rot.map(|(_, _, at)| at);
        Replica { config, lease_ms, parked_ms, rot_at, saved: Saved::default(), live: None, bug }
    }

    /// True if its group has found out that its state is another one.
    #[must_use]
    pub fn is_quarantined(&self) -> bool {
        self.saved.quarantine.is_some()
    }

    /// True if its state has become another one.
    #[must_use]
    pub fn is_rotten(&self) -> bool {
        let applied = self.live.as_ref().map(|live| live.ordering().order().applied());
        self.rot_at.is_some_and(|at| applied.is_some_and(|applied| applied >= at))
    }

    /// True if nothing is wrong with its state, nor will be.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        !self.is_quarantined() && self.rot_at.is_none() && !self.saved.store.is_bad()
    }

    /// A bit flips in a row on disk. What was written since is not there yet.
    pub fn flip_row(&mut self, place: u64, is_served: bool) -> Option<Vec<u8>> {
        let key = self.saved.store.key_at(place)?;
        self.saved.store.flip(&key, is_served);
        if let Some(live) = self.live.as_mut().filter(|live| !live.unflushed.contains_key(&key)) {
            live.store.flip(&key, is_served);
        }
        Some(key)
    }

    fn group(&self) -> GroupId {
        self.config.group
    }

    /// Its disk is an empty one from now on.
    pub fn wipe(&mut self, incarnation: Incarnation) {
        self.live = None;
        self.saved = Saved::default();
        self.rot_at = None;
        self.config.incarnation = incarnation;
    }

    /// Starts from what is on disk.
    ///
    /// # Errors
    /// If what is there is damaged, or makes no sense.
    pub fn start(&mut self, now: Time, disk: &Disk) -> Result<(), Broken> {
        let group = self.group();
        let senseless = |error: &dyn std::fmt::Display| Broken::Senseless(error.to_string());
        let mut store = self.saved.store.clone();
        if store.rows.rows().next().is_none() {
            // The founding is durable before anything is logged.
            let first = first_rows(&store, group).map_err(|error| senseless(&error))?;
            store.apply(first);
            self.saved.store = store.clone();
        }
        if let Err(error) = metadata::namespace::volume(&store) {
            let damaged = store.is_bad().then(|| Broken::Damaged(error.to_string()));
            return Err(damaged.unwrap_or_else(|| senseless(&error)));
        }
        let lost = |key: &[u8]| match self.bug {
            Some(Bug::LosePrepared) => key.first() == Some(&b'p'),
            Some(Bug::LoseReplies) => key.first() == Some(&b'r'),
            _ => false,
        };
        let rows = self.saved.order.iter().filter(|(key, _)| !lost(key));
        let rows: Vec<(Vec<u8>, Vec<u8>)> = rows.map(|(key, value)| (key.clone(), value.clone())).collect();
        let order = if rows.is_empty() { Ok(OrderState::new(group)) } else { OrderState::load(group, rows) };
        let order = order.map_err(|error| senseless(&error))?;
        let image = disk.image(group);
        let first = image.entries.first_key_value().map_or(LogIndex::ZERO, |(&index, _)| index);
        let entries = image.entries.range(order.applied()..).map(|(_, entry)| entry.clone()).collect();
        let durable = Durable { promised: image.promised, first, entries };
        self.config.seed = self.config.seed.wrapping_add(1);
        let mut view = View::new(group, &order, self.bug);
        let flushed = order.applied();
        let is_outsider = !is_member(&self.config, &order);
        view.front.is_quarantined = is_outsider;
        let core = Core::new(now, self.config.clone(), durable, order);
        let mut core = core.map_err(|error| senseless(&error))?;
        core.restore_committed(image.committed);
        let config = ReplicaConfig {
            group,
            session_lease_ms: self.lease_ms,
            batch_entries_max: APPLY_BATCH_MAX,
            digest_interval: DIGEST_INTERVAL,
        };
        let mut core = ReplicaCore::new(config, core);
        if let Some(why) = &self.saved.quarantine {
            core.restore_quarantine(why.clone());
            view.front.is_quarantined = true;
        }
        self.live = Some(Live {
            core,
            store,
            unflushed: WriteSet::new(),
            unflushed_order: WriteSet::new(),
            flushed,
            is_outsider,
            is_sending: false,
            seen: Seen::default(),
            view,
            leases: Leases::default(),
            early: BTreeMap::new(),
            late: BTreeMap::new(),
            woken: false,
            timer: None,
            acts: Vec::new(),
        });
        Ok(())
    }

    /// The process is gone.
    pub fn crash(&mut self) {
        self.live = None;
    }

    /// The store makes what was applied durable.
    pub fn flush_store(&mut self) {
        let Some(live) = &mut self.live else { return };
        self.saved.store.apply(std::mem::take(&mut live.unflushed));
        for (key, value) in std::mem::take(&mut live.unflushed_order) {
            match value {
                Some(value) => self.saved.order.insert(key, value),
                None => self.saved.order.remove(&key),
            };
        }
        live.flushed = live.core.ordering().order().applied();
    }

    /// A client's request to this group.
    pub fn handle_request(&mut self, time: Time, ticket: Ticket, request: Request) {
        let (bug, parked_ms) = (self.bug, self.parked_ms);
        let Some(live) = &mut self.live else { return };
        match request {
            Request::OpenSession { session, .. } => {
                live.leases.note(session, time);
                live.core.handle_session(time, SessionChange::Open(session), ticket);
            }
            Request::CloseSession { session, .. } => {
                live.core.handle_session(time, SessionChange::Close(session), ticket);
            }
            Request::Subscribe { session, .. } => live.view.subscribe(session, ticket, &mut live.acts),
            Request::Update { command, .. } => {
                live.leases.note(command.id.session, time);
                if bug == Some(Bug::ReplyBeforeCommit) {
                    live.early.insert(command.id, ticket);
                }
                live.core.handle_update(time, std::sync::Arc::new(strip(command, bug)), ticket);
            }
            Request::Read { session, clock, linearizable, op, group } => {
                let (index, effects) = (clock.index(group), clock.effects(group));
                let deadline = time.after_ms(parked_ms);
                let read = PendingRead { ticket, session, index, effects, op, deadline };
                if linearizable {
                    live.core.handle_linearize(read);
                } else {
                    live.view.serve(&live.store, read, &mut live.acts);
                }
            }
            Request::KeepAlive { .. } | Request::Status | Request::Members | Request::Operate(_) => {}
        }
    }

    /// Notes that a session lives.
    pub fn keep_alive(&mut self, session: SessionId, time: Time) {
        if let Some(live) = &mut self.live {
            live.leases.note(session, time);
        }
    }

    /// A step of what remains to be done: outputs, else one batch of committed entries. `None` if nothing was left.
    pub fn step(&mut self, time: Time, disk: &Disk, ledger: &mut Ledger) -> Option<Vec<Act>> {
        let (bug, group, is_rotten) = (self.bug, self.group(), self.is_rotten());
        let is_last = self.config.voters().iter().max() == Some(&self.config.replica);
        let odd = bug == Some(Bug::Diverge) && self.config.voters().len() > 2 && is_last;
        let rot_at = self.rot_at.filter(|_| !is_rotten);
        let live = self.live.as_mut()?;
        if let Err(error) = live.core.handle_turn(time, &live.store) {
            live.fail(format!("the state of {group} cannot be read: {error}"));
        }
        if let Some(why) = live.do_outputs(group, time, bug) {
            if is_rotten {
                live.view.close(&mut live.acts);
                live.acts.push(Act::Quarantined(why.clone()));
                self.saved.quarantine = Some(why);
            } else {
                // No healthy replica differs.
                live.acts.push(Act::Violation(format!("{group}: quarantined: {why}")));
            }
        }
        let mut watched = Watched { group, disk, ledger, bug, odd, is_rotten };
        let applied = live.acts.is_empty() && live.apply(time, &mut watched, rot_at);
        live.look_at_members(&self.config);
        let acts = std::mem::take(&mut live.acts);
        (applied || !acts.is_empty()).then_some(acts)
    }

    /// Requests that are too old, sessions that are silent, log that nobody needs. Returns where to trim the log.
    pub fn housekeep(&mut self, time: Time, disk: &Disk) -> Option<LogIndex> {
        let (bug, group) = (self.bug, self.group());
        let live = self.live.as_mut()?;
        live.core.handle_housekeeping(time, &live.leases);
        live.view.serve_parked(time, &live.store, &mut live.acts);
        let keep = match bug {
            Some(Bug::TrimTooEarly) => live.flushed,
            Some(Bug::TrimUnflushed) => live.core.log_needed_from(live.ordering().order().applied()),
            _ => live.core.log_needed_from(live.flushed),
        };
        disk.has(group, keep).then(|| {
            live.core.handle_trimmed(keep);
            keep
        })
    }
}

/// True if the replica is a member, as of that state. Before that it may be empty, afterwards it stands still: nobody reads it.
fn is_member(config: &Config, order: &OrderState) -> bool {
    match order.membership() {
        Some(members) => members.has(config.replica, config.incarnation),
        None => config.incarnation == Incarnation::GENESIS && config.voters().contains(&config.replica),
    }
}

/// The first rows of a group: the same on all its replicas.
fn first_rows(store: &Shelf, group: GroupId) -> Result<WriteSet, metadata::Error> {
    let mut overlay = Overlay::new(store)?;
    let start = Genesis { inline_bytes_max: 64, uid: 0, gid: 0, mode: 0o755, time: TimeNs(1) };
    genesis(&mut overlay, group, &start)?;
    Ok(overlay.into_writes())
}

/// What a client that forgets keys would send.
fn strip(mut command: Command, bug: Option<Bug>) -> Command {
    for destination in &mut command.destinations {
        match bug {
            Some(Bug::IgnoreReadKeys) => destination.footprint.retain(|(_, mode)| mode.changes()),
            Some(Bug::IgnoreConflicts) => destination.footprint.clear(),
            _ => {}
        }
    }
    command
}

impl Live {
    /// The ordering core.
    #[must_use]
    pub fn ordering(&self) -> &Core {
        self.core.ordering()
    }

    /// The group may have taken this replica in, or removed it.
    pub fn look_at_members(&mut self, config: &Config) {
        let core = self.core.ordering();
        let is_outsider = !is_member(config, core.order()) || core.is_expelled();
        if is_outsider == std::mem::replace(&mut self.is_outsider, is_outsider) || self.core.quarantine().is_some() {
            return;
        }
        if is_outsider {
            self.view.close(&mut self.acts);
        } else {
            self.view.front.is_quarantined = false;
        }
        self.acts.push(Act::Note(format!("is a member: {}", !is_outsider)));
    }

    /// Says why the replica is quarantined, if it is now.
    fn do_outputs(&mut self, group: GroupId, time: Time, bug: Option<Bug>) -> Option<String> {
        let mut quarantine = None;
        while let Some(output) = self.core.poll_output(time) {
            match output {
                Output::Persist { token, writes } => {
                    if bug == Some(Bug::ReplyBeforeCommit) {
                        self.reply_early(group, &writes);
                    }
                    self.acts.push(Act::Persist(token, writes));
                }
                Output::Send { to, message } => self.acts.push(Act::Send(to, message)),
                Output::ReadLog { from, bytes_max } => self.acts.push(Act::ReadLog(from, bytes_max)),
                Output::SendSnapshot { to, incarnation } => self.acts.push(Act::SendCopy(to, incarnation)),
                Output::Serve(read) => self.view.serve(&self.store, read, &mut self.acts),
                Output::Primary(primary) => self.view.front.primary = primary,
                Output::Progress => self.core.tell_progress(&self.view.front, &mut self.view.interest),
                Output::Quarantine(why) => quarantine = Some(why),
                Output::Note(note) => self.note(group, &note),
            }
        }
        self.tell(bug);
        quarantine
    }

    /// The state cannot be read: the process ends.
    fn fail(&mut self, why: String) {
        self.acts.push(if self.store.is_bad() { Act::Damaged(why) } else { Act::Violation(why) });
    }

    fn note(&mut self, group: GroupId, note: &Note) {
        match note {
            // Honest replicas may be late, never wrong.
            Note::Ordering(Event::IgnoredMessage { from, reason }) => {
                self.acts.push(Act::Violation(format!("{group} ignored a message from {from:?}: {reason}")));
            }
            Note::Ordering(Event::Contradicted { index }) => {
                self.acts.push(Act::Violation(format!("{group} has something else committed at {index}")));
            }
            Note::Ordering(Event::FollowerBeyondHelp { replica, from }) => {
                self.acts.push(Act::BeyondHelp(*replica, *from));
            }
            Note::Ordering(
                Event::BecamePrimary { .. }
                | Event::BecameReady { .. }
                | Event::BecameFollower { .. }
                | Event::PeerMembers { .. }
                | Event::DiskReplaced { .. }
                | Event::Expelled { .. },
            )
            | Note::SessionExpired(_) => {}
        }
        self.acts.push(Act::Note(format!("{note:?}")));
    }

    fn apply(&mut self, time: Time, watched: &mut Watched<'_>, rot_at: Option<LogIndex>) -> bool {
        let group = watched.group;
        let mut step = match self.core.execute(time, &self.store, watched) {
            Ok(Some(step)) => step,
            Ok(None) => return false,
            Err(error) => {
                self.fail(format!("the namespace of {group} failed: {error}"));
                return false;
            }
        };
        let mut writes = std::mem::take(&mut step.writes);
        if rot_at.is_some_and(|at| step.applied >= at) {
            let digest = match writes.get(&keys::digest()) {
                Some(Some(row)) => row.iter().fold(0, |digest, byte| digest << 8 | u128::from(*byte)),
                _ => stored_digest(&self.store).unwrap_or_default(),
            };
            writes.insert(keys::digest(), Some(digest.wrapping_add(1).to_be_bytes().to_vec()));
        }
        self.unflushed.extend(writes.clone());
        self.store.apply(writes);
        self.unflushed_order.extend(std::mem::take(&mut step.order_rows));
        self.core.publish(step, &mut self.view.front, &mut self.view.interest);
        self.tell(watched.bug);
        self.view.serve_parked(time, &self.store, &mut self.acts);
        true
    }

    fn tell(&mut self, bug: Option<Bug>) {
        while let Some(mut told) = self.core.poll_tell() {
            if let (Some(Bug::InvalidateLate), Tell::Event(link, event)) = (bug, &mut told) {
                std::mem::swap(self.late.entry(link.connection).or_default(), &mut event.invalidated);
            }
            self.acts.push(said(told));
        }
    }

    /// The planted bug: what is logged is executed on the side and answered.
    fn reply_early(&mut self, group: GroupId, writes: &Writes) {
        for entry in &writes.append {
            let Ok(Record::Single { command, timestamp }) = Record::decode(&entry.record) else { continue };
            let Some(ticket) = self.early.remove(&command.id) else { continue };
            let Ok(overlay) = Overlay::new(&self.store) else { continue };
            let Ok(mut namespace) = Namespace::open(group, overlay) else { continue };
            let now = TimeNs(i64::try_from(timestamp.0).unwrap_or(i64::MAX));
            let outcome: Bytes = namespace.execute(now, &command, &Contributions::new());
            if let Ok(outcome) = codec::decode_outcome(&outcome) {
                let dependencies = self.core.ordering().order().depends_on().clone();
                let position = Position { index: entry.index, dependencies, settled: LogIndex::ZERO };
                let body = Reply::Updated { outcome, position, is_noted: false, elsewhere: Vec::new() };
                self.acts.push(tell(ticket, body));
            }
        }
    }
}

/// A reply to a client.
pub fn tell(ticket: Ticket, body: Reply) -> Act {
    let Link { client, connection } = ticket.link;
    Act::Tell(client, connection, ToClient::Reply { request: ticket.request, body })
}
