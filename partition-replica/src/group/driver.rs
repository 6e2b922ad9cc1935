//! The thread of one replica. It decides nothing: each turn it hands all inputs to the [`ReplicaCore`], makes durable and
//! sends what that says, writes what is committed into the store in one go, and tells the clients.

use std::sync::{Arc, mpsc};
use std::time::Duration;

use metadata::operate::{Operated, Refusal};
use metadata::protocol::Reply;
use multicast::ids::{GroupId, Incarnation, LogIndex, ReplicaId};
use multicast::{Entry, Event, InstallRefused, Time, Writes};
use net::Endpoint;
use parking_lot::Mutex;
use replica::{Leases, Note, Output, Plain, ReplicaCore};

use super::mailbox::{Input, Mailbox};
use super::view::{View, tell};
use crate::clock::Clock;
use crate::config::GroupInfo;
use crate::copy::{self, Copies, Prepared, Sending};
use crate::error::{Error, Result};
use crate::nodes::Nodes;
use crate::recovery::is_member;
use crate::server::client::Ticket;
use crate::server::peers::{Outbox, Router};
use crate::status::GroupStatus;
use crate::storage::state::GroupState;
use crate::storage::wal::{Wal, WalRecord};

/// Rounds of one turn: inputs, heartbeats among them, do not wait for long while much is to be applied.
const ROUNDS_MAX: usize = 8;
/// The thread looks at its timers at least so often.
const TURN_MAX: Duration = Duration::from_secs(1);

/// What a replica's thread works with.
pub struct DriverParts {
    /// Its group.
    pub group: GroupId,
    /// This node, and which of the replicas that it has had of the group this is.
    pub me: (ReplicaId, Incarnation),
    /// The group, as it was founded.
    pub info: GroupInfo,
    /// What decides, as recovered.
    pub core: ReplicaCore<Ticket>,
    /// The state, as recovered.
    pub state: GroupState,
    /// What readers see.
    pub view: Arc<View>,
    /// The way in.
    pub mailbox: Arc<Mailbox>,
    /// The node's log.
    pub wal: Arc<Wal>,
    /// The way to other replicas.
    pub router: Arc<Router>,
    /// When sessions were last heard of.
    pub leases: Arc<Mutex<Leases>>,
    /// The way for copies of the state.
    pub copies: CopyWay,
    /// The node's time.
    pub clock: Clock,
}

/// What it takes to send a copy of the state.
#[derive(Clone)]
pub struct CopyWay {
    /// Those under way.
    pub copies: Arc<Copies>,
    /// All nodes.
    pub nodes: Arc<Nodes>,
    /// This node's.
    pub endpoint: Endpoint,
    /// The network's.
    pub runtime: tokio::runtime::Handle,
}

/// A replica's thread.
pub struct Driver {
    parts: DriverParts,
    outbox: Outbox,
    /// The turn ended before everything was done.
    more: bool,
    stop: bool,
    /// The group has not taken this replica in yet, or has removed it: nobody reads it.
    is_outsider: bool,
    /// The version of the applied membership that was last looked at.
    members_seen: Option<u64>,
    /// Dropped when this replica hears another primary, for somebody waits for that.
    leaving: Option<mpsc::Sender<()>>,
}

impl Driver {
    /// Around a recovered replica.
    pub fn new(parts: DriverParts) -> Driver {
        let is_outsider = parts.view.is_closed() && parts.core.quarantine().is_none();
        let outbox = Outbox::new(parts.group);
        Driver { outbox, more: true, stop: false, is_outsider, members_seen: None, leaving: None, parts }
    }

    /// Runs until told to stop. An error is final for the node.
    pub fn run(mut self) -> Result<()> {
        let mut inputs = Vec::new();
        while !self.stop {
            let timeout = self.timeout();
            self.parts.mailbox.take(&mut inputs, timeout, self.parts.core.ordering().unhurried());
            self.turn(&mut inputs)?;
        }
        Ok(())
    }

    fn timeout(&self) -> Duration {
        if self.more {
            return Duration::ZERO;
        }
        let now = self.parts.clock.now();
        let due = self.parts.core.poll_timeout();
        due.map_or(TURN_MAX, |due| Duration::from_nanos(due.0.saturating_sub(now.0))).min(TURN_MAX)
    }

    fn turn(&mut self, inputs: &mut Vec<Input>) -> Result<()> {
        // Readers and copies may have come upon it.
        self.parts.state.check()?;
        let now = self.parts.clock.now();
        for input in inputs.drain(..) {
            self.take_input(now, input)?;
        }
        self.parts.core.handle_turn(now, &self.parts.state).map_err(damaged)?;
        // Applying lets the core say more, and what it says may let more be applied.
        self.more = true;
        for _ in 0..ROUNDS_MAX {
            let said = self.do_outputs()?;
            let applied = self.apply()?;
            if !said && !applied {
                self.more = false;
                break;
            }
        }
        Ok(())
    }

    fn take_input(&mut self, now: Time, input: Input) -> Result<()> {
        let core = &mut self.parts.core;
        match input {
            Input::Message { from, message, .. } => core.handle_message(now, from, message),
            Input::Persisted(token) => core.handle_persisted(now, token),
            Input::Submit { command, ticket } => core.handle_update(now, command, ticket),
            Input::Session { change, ticket } => core.handle_session(now, change, ticket),
            Input::Linearize(read) => core.handle_linearize(read),
            Input::Housekeep => self.housekeep(now),
            Input::Report(report) => report(self.status()),
            // Whoever asked may have ended.
            Input::CopyOffered { index, reply } => _ = reply.send(core.ordering().check_snapshot(index)),
            Input::InstallCopy { prepared, reply } => _ = reply.send(self.install(now, *prepared)?),
            Input::CopySent { to, installed } => core.handle_snapshot_sent(now, to, installed),
            Input::HandOver(done) => self.leaving = core.hand_over(now).map(|_| done),
            Input::Change { change, ticket } => {
                let changed =
                    self.unless_quarantined(|core| core.change_membership(now, change).map_err(Refusal::Change));
                ticket.reply(Reply::Operated(changed.map_or_else(Operated::Refused, Operated::Logged)));
            }
            Input::Force { named, keep, ticket } => {
                tracing::warn!(group = %self.parts.group, ?keep, "an operator makes this replica its group's only voter");
                let forced =
                    self.unless_quarantined(|core| core.force_membership(now, named, &keep).map_err(Refusal::Force));
                ticket.reply(Reply::Operated(forced.map_or_else(Operated::Refused, Operated::Logged)));
            }
            Input::Rebuild { named, ticket } => {
                let rebuilt = core.rebuild(now, named);
                let done = rebuilt.map_or_else(Operated::Refused, |()| Operated::Rebuilding);
                ticket.reply(Reply::Operated(done));
            }
            Input::Members { group, members } => core.learn_members(now, group, members),
            Input::Leave { members, reply } => {
                core.hear_removal(now, &members);
                // One that has just been taken in may not have heard of it.
                let (me, incarnation) = self.parts.me;
                // Whoever asked may have ended.
                let _ = reply.send(!members.has(me, incarnation) && !core.ordering().is_member());
            }
            Input::Stop => self.stop = true,
        }
        Ok(())
    }

    fn unless_quarantined(
        &mut self,
        act: impl FnOnce(&mut ReplicaCore<Ticket>) -> std::result::Result<LogIndex, Refusal>,
    ) -> std::result::Result<LogIndex, Refusal> {
        match self.parts.core.quarantine() {
            Some(_) => Err(Refusal::Quarantined),
            None => act(&mut self.parts.core),
        }
    }

    /// Does what the core wants; true if it wanted anything. What it says once records are durable goes out at once, if they
    /// become so here: a primary waits for it.
    fn do_outputs(&mut self) -> Result<bool> {
        let mut any = false;
        loop {
            let (said, is_persisted) = self.do_outputs_once()?;
            any |= said;
            if !is_persisted {
                return Ok(any);
            }
        }
    }

    /// True if the core wanted anything; and true if what it wanted durable is so.
    fn do_outputs_once(&mut self) -> Result<(bool, bool)> {
        let now = self.parts.clock.now();
        let mut records = Vec::new();
        let mut newest = None;
        let mut any = false;
        while let Some(output) = self.parts.core.poll_output(now) {
            any = true;
            match output {
                Output::Persist { token, writes } => {
                    log_records(self.parts.group, writes, &mut records);
                    newest = Some(token);
                }
                Output::Send { to, message } => self.parts.router.post(&mut self.outbox, to, message),
                Output::ReadLog { from, bytes_max } => self.read_log(from, bytes_max)?,
                Output::SendSnapshot { to, incarnation } => self.send_copy(now, to, incarnation),
                Output::Serve(read) => self.parts.view.serve(read),
                Output::Primary(primary) => self.parts.view.advance(|front, _| front.primary = primary),
                Output::Progress => {
                    let core = &mut self.parts.core;
                    self.parts.view.advance(|front, interest| {
                        core.tell_progress(front, interest);
                        while let Some(said) = core.poll_tell() {
                            tell(said);
                        }
                    });
                }
                Output::Quarantine(why) => self.quarantine(&why)?,
                Output::Note(note) => {
                    self.log_note(&note);
                    self.follow_members(&note);
                    // Until the next primary is heard it may need the end of this log.
                    if matches!(note, Note::Ordering(Event::BecameFollower { primary: Some(_) })) {
                        self.leaving = None;
                    }
                }
            }
        }
        if any {
            self.parts.router.flush(&mut self.outbox);
        }
        while let Some(said) = self.parts.core.poll_tell() {
            tell(said);
        }
        let is_persisted = newest.is_some_and(|token| self.persist(token, records));
        Ok((any, is_persisted))
    }

    /// Makes records durable. A follower does it here if the log is free, which saves two changes of threads per batch; it
    /// has nothing better to do. A primary goes on meanwhile, as others wait for it. True if they are durable now.
    fn persist(&mut self, token: u64, records: Vec<WalRecord>) -> bool {
        let is_primary = self.parts.core.ordering().primary() == Some(self.parts.me.0);
        if !is_primary && self.parts.wal.write_here(&records) {
            self.parts.core.handle_persisted(self.parts.clock.now(), token);
            return true;
        }
        let mailbox = self.parts.mailbox.clone();
        self.parts.wal.submit(records, Box::new(move || mailbox.push(Input::Persisted(token))));
        false
    }

    /// Applies a batch of what is committed; true if there was anything. Nobody reads while the clients are told and the
    /// state is written. They are told first: it is in the log, whatever becomes of this state, and they wait for it.
    fn apply(&mut self) -> Result<bool> {
        let DriverParts { core, state, view, clock, .. } = &mut self.parts;
        let Some(mut step) = core.execute(clock.now(), state, &mut Plain).map_err(damaged)? else { return Ok(false) };
        let (writes, order_rows) = (std::mem::take(&mut step.writes), std::mem::take(&mut step.order_rows));
        let applied = step.applied;
        view.advance(|front, interest| {
            let changed = core.publish(step, front, interest);
            view.note_changed(&changed);
            while let Some(said) = core.poll_tell() {
                tell(said);
            }
            let written = state.write(writes, &order_rows, applied);
            // It is not the state that it was said to be.
            front.is_quarantined |= written.is_err();
            written
        })?;
        self.look_at_members();
        Ok(true)
    }

    /// Begins to send a copy of the state as it is now. What cannot be begun is asked for again.
    fn send_copy(&mut self, now: Time, to: ReplicaId, incarnation: Incarnation) {
        let DriverParts { group, core, state, mailbox, copies: way, .. } = &mut self.parts;
        let node = way.nodes.get(to);
        let is_begun = match (core.ordering().snapshot(), node) {
            (Some(snapshot), Some(node)) => {
                let sending = Sending {
                    group: *group,
                    to: node,
                    incarnation,
                    snapshot,
                    state: state.clone(),
                    mailbox: mailbox.clone(),
                    endpoint: way.endpoint.clone(),
                    runtime: way.runtime.clone(),
                };
                copy::send(&way.copies, sending)
            }
            _ => false,
        };
        if !is_begun {
            core.handle_snapshot_sent(now, to, None);
        }
    }

    /// Puts a copy in the place of the state.
    fn install(&mut self, now: Time, prepared: Prepared) -> Result<std::result::Result<(), InstallRefused>> {
        let DriverParts { group, core, state, view, .. } = &mut self.parts;
        let Prepared { staged, order } = prepared;
        let index = order.applied();
        // The state may have moved on by itself meanwhile.
        if let Err(refused) = core.ordering().check_snapshot(index) {
            return Ok(Err(refused));
        }
        view.replace(|front| {
            state.replace_by(&staged)?;
            let installed = core.install_snapshot(now, order, front);
            // The disk has it already: the next start begins with it.
            installed.map_err(|refused| state.damaged(format!("a copy took its place, but {refused}")))
        })?;
        tracing::info!(%group, index = index.0, "a copy has taken the place of the state");
        (self.is_outsider, self.members_seen) = (false, None);
        self.look_at_members();
        Ok(Ok(()))
    }

    /// The group's own members may have changed with what was applied: the node's other replicas hear of it, and this one has
    /// something to show while it is a member.
    fn look_at_members(&mut self) {
        let DriverParts { group, me, info, core, router, view, .. } = &mut self.parts;
        let order = core.ordering().order();
        let Some(members) = order.membership().filter(|members| self.members_seen != Some(members.version)) else {
            return;
        };
        self.members_seen = Some(members.version);
        router.learn_members(*group, *group, members);
        // The state may lag behind what others have said.
        let is_outsider = !is_member(order, info, *me) || core.ordering().is_expelled();
        if is_outsider == std::mem::replace(&mut self.is_outsider, is_outsider) || core.quarantine().is_some() {
            return;
        }
        if is_outsider {
            tracing::warn!(%group, "this replica is no member of its group any more");
            view.close();
        } else {
            tracing::info!(%group, "this replica is a member of its group now");
            view.advance(|front, _| front.is_quarantined = false);
        }
    }

    /// What the core has learned of members that is not in the state.
    fn follow_members(&mut self, note: &Note) {
        let DriverParts { group, core, router, view, .. } = &mut self.parts;
        match note {
            Note::Ordering(Event::PeerMembers { group: other, .. }) => {
                if let Some(members) = core.ordering().directory().get(other) {
                    router.learn_members(*group, *other, members);
                }
            }
            // Its own log does not say so: as a rule it gets no entries any more.
            Note::Ordering(Event::Expelled { .. }) => {
                (self.is_outsider, self.members_seen) = (true, None);
                view.close();
            }
            Note::Ordering(_) | Note::SessionExpired(_) => {}
        }
    }

    fn read_log(&mut self, from: LogIndex, bytes_max: usize) -> Result<()> {
        let (group, now) = (self.parts.group, self.parts.clock.now());
        let last = self.parts.wal.state(group).last.0;
        let entries = self.parts.wal.read(group, from, last, bytes_max)?;
        let entries =
            entries.into_iter().map(|entry| Entry { index: entry.index, ballot: entry.ballot, record: entry.bytes });
        self.parts.core.handle_log_read(now, entries.collect());
        Ok(())
    }

    /// Nobody reads this state from now on, nor after a restart.
    fn quarantine(&self, why: &str) -> Result<()> {
        tracing::error!(group = %self.parts.group, why, "this replica's state is not its group's: it is quarantined");
        self.parts.view.close();
        self.parts.state.quarantine(why)
    }

    fn log_note(&self, note: &Note) {
        let group = self.parts.group;
        match note {
            Note::Ordering(Event::BecamePrimary { ballot }) => {
                tracing::info!(%group, ballot = ballot.round, "primary");
            }
            Note::Ordering(Event::BecameReady { ballot }) => {
                tracing::info!(%group, ballot = ballot.round, "primary, up to date");
            }
            Note::Ordering(Event::BecameFollower { primary }) => {
                tracing::info!(%group, primary = primary.map(|primary| primary.0), "follower");
            }
            Note::Ordering(Event::IgnoredMessage { from, reason }) => {
                tracing::debug!(%group, from_group = %from.0, replica = %from.1, reason, "ignored a message");
            }
            Note::Ordering(Event::FollowerBeyondHelp { replica, from }) => {
                tracing::error!(%group, %replica, index = from.0, "a follower needs log entries that are gone");
            }
            Note::Ordering(Event::DiskReplaced { replica, incarnation }) => {
                tracing::warn!(%group, %replica, %incarnation, "a member came back with another disk");
            }
            Note::Ordering(Event::PeerMembers { group: other, version }) => {
                tracing::info!(%group, %other, version, "another group has other members");
            }
            Note::Ordering(Event::Contradicted { index }) => tracing::error!(
                %group, index = index.0,
                "the group was forced to go on without what this replica has: it must begin again with an empty disk"
            ),
            Note::Ordering(Event::Expelled { version }) => {
                tracing::warn!(%group, version, "this replica is no member any more");
            }
            Note::SessionExpired(session) => tracing::info!(%group, %session, "session expired"),
        }
    }

    fn housekeep(&mut self, now: Time) {
        self.parts.core.handle_housekeeping(now, &self.parts.leases.lock());
        let keep = self.parts.core.log_needed_from(self.parts.state.flushed_index());
        let trimmed = self.parts.wal.state(self.parts.group).trimmed.0;
        if keep.0 <= trimmed.0 + 1 {
            return;
        }
        let through = LogIndex(keep.0 - 1);
        let Some(ballot) = self.parts.wal.ballot(self.parts.group, through) else { return };
        let record = WalRecord::Trim { group: self.parts.group, through, ballot };
        self.parts.wal.submit(vec![record], Box::new(|| {}));
        self.parts.core.handle_trimmed(keep);
    }

    fn status(&self) -> GroupStatus {
        let core = &self.parts.core;
        let mut status = crate::status::of_core(core.ordering(), self.parts.clock.now());
        status.name.clone_from(&self.parts.info.name);
        status.copies = self.parts.copies.copies.status(self.parts.group.0);
        status.flushed_index = self.parts.state.flushed_index().0;
        status.first_index = self.parts.wal.state(self.parts.group).trimmed.0.0 + 1;
        let digest = metadata::store::stored_digest(&self.parts.state).unwrap_or_default();
        status.digest = format!("{digest:032x}");
        status.digests = core.digests().iter().map(|(&index, digest)| (index, format!("{digest:032x}"))).collect();
        (status.subscribers, status.interest_keys, status.parked_reads) = self.parts.view.figures();
        status.executed = core.executed();
        status.quarantine = core.quarantine().map(str::to_owned);
        if core.quarantine().is_some() {
            status.role = "quarantined".into();
        }
        status.removals_left = metadata::namespace::left_for_later(&self.parts.state).unwrap_or_default();
        status
    }
}

fn damaged(error: metadata::Error) -> Error {
    Error::of_store(&error)
}

pub(crate) fn log_records(group: GroupId, writes: Writes, records: &mut Vec<WalRecord>) {
    if let Some((promised, committed)) = writes.committed {
        records.push(WalRecord::HardState { group, promised, committed });
    } else if let Some(promised) = writes.promised {
        records.push(WalRecord::HardState { group, promised, committed: LogIndex::ZERO });
    }
    if let Some(first) = writes.begin_at {
        // What follows here is the first entry, which voids whatever was there or behind it.
        let through = LogIndex(first.0 - 1);
        records.push(WalRecord::Trim { group, through, ballot: multicast::ids::Ballot::default() });
    }
    if let Some(from) = writes.truncate_from {
        records.push(WalRecord::Truncate { group, from });
    }
    records.extend(writes.rewrite.into_iter().chain(writes.append).map(|entry| WalRecord::Append {
        group,
        index: entry.index,
        ballot: entry.ballot,
        bytes: entry.record,
    }));
}
