//! What a primary decides: timestamps, who waits for whom, when to log what. Volatile: a new primary rebuilds it from the
//! replicated state, and asks the other groups for their facts again.
//!
//! Everything appended here stands in the log behind everything appended before, so what follows may rely on it before it is
//! committed: if it gets lost, so does what follows. Facts for other groups are taken from the applied state only.

mod conflicts;
mod exchange;
#[cfg(feature = "explore")]
mod explore;
mod multi;
mod peers;
mod proof;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use crate::by_command::ByCommand;
use crate::command::Command;
use crate::config::{COMMAND_BYTES_MAX, Config, Limits, Timing};
use crate::core::{SessionChange, Unfinished, Wait};
use crate::hash::BuildWordHasher;
use crate::ids::{CommandId, GroupId, LogIndex, ReplicaId, Timestamp};
use crate::log::Replicator;
use crate::membership::Membership;
use crate::message::Message;
use crate::order::{OrderState, Standing};
use crate::output::{Applied, Change, Decline, Output};
#[cfg(feature = "explore")]
use crate::planted::Planted;
use crate::record::{Record, Refusal};
use crate::time::Time;
use conflicts::Conflicts;
use exchange::Early;
use multi::Multi;
use peers::Peer;
use proof::{Proof, Unproven};

/// The most destinations of one command: their contributions fit one record.
pub const DESTINATIONS_MAX: usize = 8;

/// Timestamps are nanoseconds; one beyond the year 2262 is a mistake that would spoil every clock that it reaches.
const TIMESTAMP_MAX: Timestamp = Timestamp(u64::MAX / 2);

/// A primary's volatile state. Exists while this replica is primary and has applied all that went before.
#[derive(Clone, Debug)]
pub(crate) struct Sequencer {
    group: GroupId,
    limits: Limits,
    timing: Timing,
    /// At least the largest timestamp in the log. A hybrid clock: at least the time, too.
    clock: Timestamp,
    /// Commands of this group alone that are logged or held, with their bytes.
    singles: HashMap<CommandId, usize, BuildWordHasher>,
    /// Those of them that wait for a conflicting command, with their timestamps. Not logged.
    held: BTreeMap<CommandId, Held>,
    /// Commands whose clients claim to have seen more of another group than is known here.
    unproven: BTreeMap<CommandId, Unproven>,
    proof_due: Option<Time>,
    /// Orders questions and what waits for answers.
    serial: u64,
    conflicts: Conflicts,
    multis: ByCommand<Multi>,
    load: Load,
    /// Timestamps that came before their command.
    early: BTreeMap<CommandId, Early>,
    peers: BTreeMap<GroupId, Peer>,
    /// Commands that may be able to go on.
    awake: VecDeque<CommandId>,
    /// When to ask for what is missing.
    timers: BTreeSet<(Time, CommandId)>,
    forgettable: Vec<CommandId>,
    forget_due: Option<Time>,
    /// Questions of groups that are through with something unknown here.
    closing: VecDeque<Closing>,
    #[cfg(feature = "explore")]
    mistake: explore::Mistake,
}

/// A command of this group alone that waits for one that comes first.
#[derive(Clone, Debug)]
struct Held {
    timestamp: Timestamp,
    command: Arc<Command>,
    since: Time,
}

/// To be answered once it is sure that this was the primary when it was asked.
#[derive(Clone, Debug)]
struct Closing {
    /// An entry that was appended after the question.
    after: LogIndex,
    to: (GroupId, ReplicaId),
    id: CommandId,
    binding: u64,
}

/// Commands taken and not executed.
#[derive(Clone, Copy, Debug, Default)]
struct Load {
    commands: usize,
    bytes: usize,
}

impl Load {
    fn add(&mut self, bytes: usize) {
        self.commands += 1;
        self.bytes += bytes;
    }

    fn remove(&mut self, bytes: usize) {
        self.commands -= 1;
        self.bytes -= bytes;
    }
}

/// What the sequencer works with during one call.
pub(crate) struct Turn<'a> {
    pub(crate) now: Time,
    pub(crate) log: &'a mut Replicator,
    pub(crate) order: &'a OrderState,
    pub(crate) outputs: &'a mut VecDeque<Output>,
}

impl Turn<'_> {
    fn append(&mut self, record: Record) {
        let appended = self.log.append(record);
        assert!(appended.is_some(), "a sequencer exists only while its replica is primary");
    }

    fn send(&mut self, to: (GroupId, ReplicaId), message: Message) {
        self.outputs.push_back(Output::Send { to, message });
    }

    fn decline(&mut self, id: CommandId, reason: Decline) {
        self.outputs.push_back(Output::Declined { id, reason });
    }
}

impl Sequencer {
    /// Takes over: `turn.order` has applied everything up to the entry that started the ballot.
    pub(crate) fn new(config: &Config, directory: &BTreeMap<GroupId, Membership>, turn: &mut Turn<'_>) -> Self {
        let mut sequencer = Sequencer {
            group: config.group,
            limits: config.limits,
            timing: config.timing,
            clock: turn.order.clock(),
            singles: HashMap::default(),
            held: BTreeMap::new(),
            unproven: BTreeMap::new(),
            proof_due: None,
            // Later than in any reign before, so that no answer passes for one to a question of this one.
            serial: turn.now.0,
            conflicts: Conflicts::new(config.group, config.classic),
            multis: ByCommand::new(),
            load: Load::default(),
            early: BTreeMap::new(),
            peers: directory.iter().map(|(&group, members)| (group, Peer::new(turn.now, members))).collect(),
            awake: VecDeque::new(),
            timers: BTreeSet::new(),
            forgettable: Vec::new(),
            forget_due: None,
            closing: VecDeque::new(),
            #[cfg(feature = "explore")]
            mistake: explore::Mistake::default(),
        };
        sequencer.rebuild(turn);
        sequencer
    }

    /// Another group has other members than was known.
    pub(crate) fn peer_moved(&mut self, turn: &mut Turn<'_>, group: GroupId, members: &Membership) {
        let Some(peer) = self.peers.get_mut(&group) else { return };
        if peer.moved(turn.now, members) {
            self.ask_again(turn, group);
        }
    }

    /// A client asks for a command.
    pub(crate) fn handle_submit(&mut self, turn: &mut Turn<'_>, command: Arc<Command>) {
        self.submit(turn, command, Proof::Wanted);
        self.run(turn);
    }

    fn submit(&mut self, turn: &mut Turn<'_>, command: Arc<Command>, proof: Proof) {
        let id = command.id;
        if let Err(reason) = self.check_shape(turn, &command) {
            return turn.decline(id, reason);
        }
        let binding = command.binding();
        if let Some(reply) = turn.order.stored_reply(id, binding) {
            return turn.outputs.push_back(Output::Reply(reply));
        }
        if self.singles.contains_key(&id) || self.unproven.contains_key(&id) {
            return;
        }
        if self.multis.contains(id) {
            return self.submitted_again(turn, id, binding);
        }
        match turn.order.standing(id, binding) {
            Standing::New => {}
            Standing::Refused(reason) => return turn.decline(id, Decline::Refused(reason)),
            // Settled here, and the session is gone.
            Standing::Prepared | Standing::Settled | Standing::Executed(_) | Standing::Rejected(_) => {
                return turn.decline(id, Decline::Refused(Refusal::UnknownSession));
            }
        }
        if self.is_overloaded() || turn.order.session_is_full(&command) {
            return turn.decline(id, Decline::Overloaded);
        }
        if proof == Proof::Wanted && !self.prove(turn, &command) {
            return;
        }
        if command.is_multi_group() {
            self.begin_multi(turn, command);
        } else {
            self.take_single(turn, command);
        }
    }

    /// Nobody waits for a command any more: one that is held would keep its room for as long as what it waits for.
    pub(crate) fn handle_withdraw(&mut self, turn: &mut Turn<'_>, id: CommandId) {
        if self.held.remove(&id).is_some() {
            self.release_single(id);
            self.conflicts.remove(id, &mut self.awake);
            self.run(turn);
        }
        self.take_unproven(id);
    }

    /// A session is to be opened or closed.
    pub(crate) fn handle_session(&mut self, turn: &mut Turn<'_>, change: SessionChange) {
        let timestamp = self.next_timestamp(turn);
        let declined = match change {
            SessionChange::Open(session) if turn.order.session_count() >= self.limits.sessions_max => {
                (session, Decline::Overloaded)
            }
            SessionChange::Open(session) => return turn.append(Record::SessionOpen { session, timestamp }),
            SessionChange::Close(session) if !turn.order.knows_session(session) => {
                (session, Decline::Refused(Refusal::UnknownSession))
            }
            SessionChange::Close(session) => {
                return turn.append(Record::SessionClose { sessions: vec![session], timestamp });
            }
        };
        turn.outputs.push_back(Output::SessionDeclined { session: declined.0, reason: declined.1 });
    }

    /// Logs the time.
    pub(crate) fn handle_tick(&mut self, turn: &mut Turn<'_>) {
        let timestamp = self.next_timestamp(turn);
        turn.append(Record::Tick { timestamp });
    }

    /// An entry was applied to the state.
    pub(crate) fn handle_applied(&mut self, turn: &mut Turn<'_>, applied: &Applied) {
        match &applied.change {
            Change::Executed(command) if !command.is_multi_group() => self.release_single(command.id),
            Change::Executed(command) => self.multi_executed(turn, command.id),
            Change::Locked(command) => self.multi_locked(turn, command.id),
            Change::Committed(id) => self.multi_committed(turn, *id),
            Change::Aborted(command) => self.multi_aborted(turn, command.id, applied),
            Change::Refused(id) => self.multi_refused(turn, *id),
            Change::Skipped(id) => {
                self.release_single(*id);
                self.multi_skipped(turn, *id);
            }
            Change::Nothing | Change::SessionOpened(_) | Change::SessionsClosed(_) | Change::Members(_) => {}
        }
        self.close_confirmed(turn);
        self.run(turn);
    }

    pub(crate) fn handle_timeout(&mut self, turn: &mut Turn<'_>) {
        while let Some(&(due, id)) = self.timers.first() {
            if due > turn.now {
                break;
            }
            self.timers.remove(&(due, id));
            if self.is_due(id, turn.now) {
                self.resend(turn, id);
            }
        }
        if self.forget_due.is_some_and(|due| due <= turn.now) {
            self.forget(turn);
        }
        if self.proof_due.is_some_and(|due| due <= turn.now) {
            self.proof_timeout(turn);
        }
    }

    pub(crate) fn poll_timeout(&self) -> Option<Time> {
        let resend = self.timers.first().map(|&(due, _)| due);
        resend.into_iter().chain(self.forget_due).chain(self.proof_due).min()
    }

    /// This replica is no longer primary: what was held was never logged.
    pub(crate) fn abandon(self, hint: Option<ReplicaId>, outputs: &mut VecDeque<Output>) {
        for &id in self.held.keys().chain(self.unproven.keys()) {
            outputs.push_back(Output::Declined { id, reason: Decline::NotPrimary { hint } });
        }
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.load.commands
    }

    pub(crate) fn silent_groups(&self, now: Time) -> Vec<(GroupId, Time)> {
        let since = |(&group, peer): (&GroupId, &Peer)| {
            let since = peer.silent_since().filter(|_| peer.is_silent(now, self.timing.silence_ms));
            since.map(|since| (group, since))
        };
        self.peers.iter().filter_map(since).collect()
    }

    pub(crate) fn unfinished(&self, order: &OrderState) -> Vec<Unfinished> {
        let mut unfinished: Vec<Unfinished> =
            self.multis.unsorted().map(|(id, multi)| multi.describe(id, self.group, &self.conflicts, order)).collect();
        unfinished.sort_by_key(|unfinished| (unfinished.since, unfinished.id));
        unfinished
    }

    /// Commands of this group alone that wait, the oldest first.
    pub(crate) fn held(&self) -> Vec<Unfinished> {
        let describe = |(&id, held): (&CommandId, &Held)| {
            let waits_for = self.conflicts.blocker_of(id).map(Wait::Conflict).into_iter().collect();
            Unfinished { id, groups: vec![self.group], since: held.since, locks_keys: false, waits_for }
        };
        let mut held: Vec<Unfinished> = self.held.iter().map(describe).collect();
        held.sort_by_key(|held| (held.since, held.id));
        held
    }

    fn take_single(&mut self, turn: &mut Turn<'_>, command: Arc<Command>) {
        let timestamp = self.next_timestamp(turn);
        let bytes = len_bytes(&command);
        self.load.add(bytes);
        self.singles.insert(command.id, bytes);
        let is_blocked = self.conflicts.blocker(&command, timestamp).is_some();
        #[cfg(feature = "explore")]
        let is_blocked = is_blocked && !self.has(Planted::SinglesOvertake);
        if is_blocked {
            self.conflicts.insert(&command, timestamp);
            self.held.insert(command.id, Held { timestamp, command, since: turn.now });
        } else {
            turn.append(Record::Single { command, timestamp });
        }
    }

    fn release_single(&mut self, id: CommandId) {
        if let Some(bytes) = self.singles.remove(&id) {
            self.load.remove(bytes);
        }
    }

    /// Lets everything go on that can.
    fn run(&mut self, turn: &mut Turn<'_>) {
        #[cfg(feature = "explore")]
        self.prepare_waiting(turn);
        while let Some(id) = self.awake.pop_front() {
            if self.multis.contains(id) {
                self.advance_multi(turn, id);
            } else if self.held.contains_key(&id) && self.conflicts.blocker_of(id).is_none() {
                if let Some(Held { timestamp, command, .. }) = self.held.remove(&id) {
                    turn.append(Record::Single { command, timestamp });
                }
                self.conflicts.remove(id, &mut self.awake);
            }
        }
    }

    /// The next time of a hybrid clock. Whoever makes the record bounds it; whoever applies it takes it as it is.
    fn next_timestamp(&mut self, turn: &Turn<'_>) -> Timestamp {
        let now = turn.log.trusted_time(turn.now).unwrap_or_default();
        self.clock = Timestamp(now.0.min(TIMESTAMP_MAX.0).max(self.clock.0.saturating_add(1)));
        self.clock
    }

    fn is_overloaded(&self) -> bool {
        self.load.commands >= self.limits.in_flight_max || self.load.bytes >= self.limits.in_flight_bytes_max
    }

    /// What a client may not send.
    fn check_shape(&self, turn: &Turn<'_>, command: &Command) -> Result<(), Decline> {
        if command.footprint(self.group).is_none() {
            return Err(Decline::WrongGroup);
        }
        if !self.is_well_formed(command) || len_bytes(command) > self.limits.command_bytes_max {
            return Err(Decline::Malformed);
        }
        // Who has seen what is not here has seen a newer primary's log, of which this one has not heard yet.
        let last = turn.log.last().index;
        let seen = command.clock.index(self.group).max(command.clock.effects(self.group));
        if seen > last {
            return Err(Decline::NotPrimary { hint: None });
        }
        Ok(())
    }

    /// What neither a client nor another primary may send.
    fn is_well_formed(&self, command: &Command) -> bool {
        let destinations = &command.destinations;
        let is_known = |group: GroupId| group == self.group || self.peers.contains_key(&group);
        len_bytes(command) <= COMMAND_BYTES_MAX
            && command.clock.is_sound()
            && command.clock.iter().chain(command.clock.iter_effects()).all(|(group, _)| is_known(group))
            && destinations.len() <= DESTINATIONS_MAX
            && destinations.is_sorted_by(|a, b| a.group < b.group)
            && destinations
                .iter()
                .all(|destination| is_known(destination.group) && destination.footprint.is_sorted_by(|a, b| a.0 < b.0))
    }
}

/// What a command counts for.
fn len_bytes(command: &Command) -> usize {
    let keys: usize = command.destinations.iter().map(|destination| destination.footprint.len()).sum();
    command.payload.len() + keys * KEY_BYTES + COMMAND_BYTES
}

/// A key with its mode, in memory.
const KEY_BYTES: usize = 16;

/// A command beside payload and keys, roughly.
const COMMAND_BYTES: usize = 128;
