//! One replica of one group as a value: log, order and sequencer together.
//!
//! # The driver's duties
//! 1. Give every call the time, see [`Time`]. After a restart it must not be earlier than before.
//! 2. Hand in what came: messages (decoded, with the sender that the connection proves), submissions, persisted tokens, and
//!    [`Core::handle_timeout`] when [`Core::poll_timeout`] is due. Many inputs may be handed in before the next step; what
//!    they append goes to disk and to each follower as one batch.
//! 3. Then loop: take [`Core::poll_output`] until there is none and do each; call [`Core::apply_next`] until there is none.
//!    Both may cause more of the other, so repeat until neither gives anything.
//! 4. `Persist`: make durable what it names, in the order of the tokens, beside the loop; then call
//!    [`Core::handle_persisted`]. If the disk fails, stop the process: never tell a token that is not durable.
//! 5. `Send`: encode and send, in order per receiver; messages may be lost, never altered. Nothing needs to be held back.
//! 6. `Reply`, `Declined`, and the reply in an [`Applied`]: to the client's session, if it is connected here.
//! 7. Write the rows of the machine and of [`OrderState::drain_changes`] in one batch, whenever it likes after applying
//!    entries, but whole entries only. The log is kept until that batch is durable.
//! 8. On start: hand back the rows, and the log from disk as [`Durable`]: it must reach back to the applied index. Then call
//!    [`Core::restore_committed`].
//! 9. Drop log entries below [`Core::truncatable_below`] *and* below what the store has flushed, then call
//!    [`Core::truncate_below`]. If what is left pins an old file, call [`Core::rewrite_kept`].
//! 10. `ReadLog`: read entries back and call [`Core::handle_log_read`].
//! 11. `SendSnapshot`, and what comes of it elsewhere: see [`crate::snapshot`].

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use crate::command::Command;
use crate::config::Config;
use crate::error::Error;
use crate::ids::{Ballot, CommandId, GroupId, Incarnation, LogIndex, ReplicaId, SessionId};
use crate::log::Replicator;
use crate::machine::Machine;
use crate::membership::{ChangeRefused, ForceRefused, MemberChange, MemberRole, Membership};
use crate::message::{Message, UNASKED};
use crate::order::OrderState;
use crate::output::{Applied, Change, Decline, Event, Output};
use crate::record::Entry;
use crate::sequencer::{Sequencer, Turn};
use crate::snapshot::{InstallRefused, Snapshot};
use crate::subscribers::Subscribers;
use crate::time::Time;

/// What the disk of a replica holds of its log.
#[derive(Clone, Debug, Default)]
pub struct Durable {
    /// The highest ballot promised.
    pub promised: Ballot,
    /// The oldest entry that can be read back; zero or one if the log was never truncated.
    pub first: LogIndex,
    /// The end of the log, dense: all entries above the applied index at least, and the one at it unless that is zero.
    pub entries: Vec<Entry>,
}

/// A change to the set of open sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionChange {
    /// The client wants to begin. Its id is new: drawn at random and never used before.
    Open(SessionId),
    /// The client is done, or has not been heard of for too long.
    Close(SessionId),
}

/// What need not be handed in at once; see [`Core::unhurried`]. The default: all must.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unhurried {
    /// The own disk's progress: no quorum has followed yet.
    pub persisted: bool,
    /// A follower's [`Message::Appended`] up to here: a quorum had that before.
    pub appended_through: LogIndex,
}

/// One replica of one group.
#[derive(Clone, Debug)]
pub struct Core {
    config: Config,
    pub(crate) now: Time,
    pub(crate) order: OrderState,
    pub(crate) log: Replicator,
    /// While this replica is primary and has applied everything from before.
    pub(crate) sequencer: Option<Sequencer>,
    subscribers: Subscribers,
    /// The members of the other groups, as far as known.
    directory: BTreeMap<GroupId, Membership>,
    pub(crate) outputs: VecDeque<Output>,
    #[cfg(feature = "explore")]
    pub(crate) planted: Option<crate::planted::Planted>,
}

impl Core {
    /// A replica as it starts, from what its disk holds.
    ///
    /// # Errors
    /// If the configuration contradicts itself, or the log does not reach the state's applied index.
    pub fn new(now: Time, config: Config, durable: Durable, order: OrderState) -> Result<Self, Error> {
        config.check()?;
        let log = Replicator::new(now, &config, durable, &order)?;
        let subscribers = Subscribers::new(&config);
        let others = config.groups.iter().filter(|(group, _)| **group != config.group);
        let directory = others.map(|(&group, voters)| (group, Membership::genesis(voters))).collect();
        Ok(Core {
            config,
            now,
            order,
            log,
            sequencer: None,
            subscribers,
            directory,
            outputs: VecDeque::new(),
            #[cfg(feature = "explore")]
            planted: None,
        })
    }

    /// A message came. The connection must prove `from`; it is checked here against what is known of the groups.
    pub fn handle_message(&mut self, now: Time, from: (GroupId, ReplicaId), message: Message) {
        self.see_time(now);
        if from.0 == self.config.group {
            self.log.handle_message(self.now, from.1, message);
            return self.follow_role();
        }
        let Some(known) = self.directory.get(&from.0) else {
            let reason = "from a group that does not exist";
            return self.outputs.push_back(Output::Event(Event::IgnoredMessage { from, reason }));
        };
        if let Message::Members(members) = message {
            return self.hear_members(from, members);
        }
        if let Message::AskMembers { version } = message {
            return self.tell_members(from, version);
        }
        if known.member(from.1).is_none() {
            // It says nothing that would not be said again, once it is known.
            let message = Message::AskMembers { version: known.version };
            return self.outputs.push_back(Output::Send { to: from, message });
        }
        if let Message::HowFar { question } = message {
            self.subscribers.subscribe(self.now, from, self.log.committed());
            return self.outputs.push_back(Output::Send { to: from, message: self.reached(question) });
        }
        let is_command = matches!(message, Message::Propose { .. } | Message::Facts(_));
        if self.sequencer.is_some() {
            self.with_sequencer(|sequencer, turn| sequencer.handle_message(turn, from, message));
        } else if is_command && self.log.primary_ballot().is_none() {
            self.tell_members(from, 0);
            let message = Message::NotPrimary { hint: self.primary() };
            self.outputs.push_back(Output::Send { to: from, message });
        }
    }

    /// A replica of another group says who its group's members are. It must be one of them, by either account.
    fn hear_members(&mut self, from: (GroupId, ReplicaId), members: Membership) {
        let known = self.directory.get(&from.0);
        let is_entitled = members.member(from.1).is_some() || known.is_some_and(|known| known.member(from.1).is_some());
        if is_entitled {
            self.learn_members(self.now, from.0, members);
        }
    }

    /// Another group's members, from elsewhere: another replica of this node knows them, or they were kept on disk. Older
    /// ones than known are ignored.
    pub fn learn_members(&mut self, now: Time, group: GroupId, members: Membership) {
        self.see_time(now);
        let is_news = self.directory.get(&group).is_some_and(|known| known.version < members.version);
        if !is_news || !members.is_valid() {
            return;
        }
        let version = members.version;
        self.directory.insert(group, members.clone());
        self.with_sequencer(|sequencer, turn| sequencer.peer_moved(turn, group, &members));
        self.outputs.push_back(Output::Event(Event::PeerMembers { group, version }));
    }

    /// This group's members, from elsewhere: an operator has them of its primary. Whoever is none any more by them is quiet
    /// from now on, as if another member had said so.
    pub fn hear_removal(&mut self, now: Time, members: &Membership) {
        self.see_time(now);
        if members.is_valid() {
            self.log.handle_members(members);
        }
        self.follow_role();
    }

    /// True if this replica is a member, as far as it knows.
    #[must_use]
    pub fn is_member(&self) -> bool {
        !self.log.is_expelled() && self.log.membership().has(self.config.replica, self.config.incarnation)
    }

    /// Who belongs to the other groups, as far as known.
    #[must_use]
    pub fn directory(&self) -> &BTreeMap<GroupId, Membership> {
        &self.directory
    }

    /// Says who belongs to this group, if that is news for somebody who knows this version.
    fn tell_members(&mut self, to: (GroupId, ReplicaId), version: u64) {
        let members = self.log.committed_membership();
        if members.version > version {
            let message = Message::Members(Membership::clone(members));
            self.outputs.push_back(Output::Send { to, message });
        }
    }

    fn tell_members_to_all(&mut self) {
        let others = self.directory.iter().flat_map(|(&group, members)| {
            let replicas = members.members.iter().map(|member| member.replica);
            replicas.map(move |replica| (group, replica)).collect::<Vec<_>>()
        });
        let others: Vec<(GroupId, ReplicaId)> = others.collect();
        for to in others {
            self.tell_members(to, 0);
        }
    }

    /// Adds, promotes, removes or replaces a member. Only a primary can; one change at a time. Gives the entry that says so:
    /// it is done when that is applied ([`Change::Members`]), and may still be undone by another primary until then.
    ///
    /// # Errors
    /// If nothing was logged.
    pub fn change_membership(&mut self, now: Time, change: MemberChange) -> Result<LogIndex, ChangeRefused> {
        self.see_time(now);
        let changed = self.log.change_membership(self.now, change);
        self.follow_role();
        changed
    }

    /// Makes this replica the only voter of its group, without asking anybody: for a group whose quorum is lost for good.
    /// Members in `keep` may follow it, and voters among them become voters again once they have caught up.
    ///
    /// **Unsafe.** What was acknowledged and did not reach this replica is lost, also what other groups have been told of it:
    /// commands of several groups may be executed in one and never in the other. The replica with the most advanced log loses
    /// least. Old voters that are not in `keep` must never run again; if they do, they are told to stop by whoever knows
    /// the new membership, but two of them may have found each other before.
    ///
    /// # Errors
    /// If `replica` and `incarnation`, which the operator names, are not this one's, if a primary is heard of, or if this
    /// replica was never a member. Nothing was logged then.
    pub fn force_membership(
        &mut self,
        now: Time,
        (replica, incarnation): (ReplicaId, Incarnation),
        keep: &[ReplicaId],
    ) -> Result<LogIndex, ForceRefused> {
        self.see_time(now);
        if (replica, incarnation) != (self.config.replica, self.config.incarnation) {
            return Err(ForceRefused::OtherReplica);
        }
        let forced = self.log.force_membership(self.now, keep);
        self.follow_role();
        forced
    }

    /// As primary: the most advanced voter takes over at once, and nothing new is taken here meanwhile. Gives that one; none
    /// if this is not the primary, or nobody can. Before a stop: call it, and go on until [`Event::BecameFollower`], or no
    /// longer than the election timeout.
    pub fn hand_over(&mut self, now: Time) -> Option<ReplicaId> {
        self.see_time(now);
        self.log.hand_over(self.now)
    }

    /// This replica is to lead no more, at once: its state cannot be trusted.
    pub fn step_down(&mut self, now: Time) {
        self.see_time(now);
        self.log.step_down(self.now);
        self.follow_role();
    }

    /// What to send in front of a copy of this state, as it is now; none before the first entry.
    #[must_use]
    pub fn snapshot(&self) -> Option<Snapshot> {
        let entry = self.log.entry(self.order.applied())?;
        Some(Snapshot { ballot: self.log.promised(), entry })
    }

    /// The copy that [`Output::SendSnapshot`] asked for is in place at the receiver, up to that index; or it failed, and may
    /// be asked for again.
    pub fn handle_snapshot_sent(&mut self, now: Time, to: ReplicaId, installed: Option<LogIndex>) {
        self.see_time(now);
        self.log.snapshot_sent(self.now, to, installed);
    }

    /// Whether a copy that stands there could be installed: to be asked before it is fetched, and before it is put in place.
    ///
    /// # Errors
    /// Why not.
    pub fn check_snapshot(&self, copy: LogIndex) -> Result<(), InstallRefused> {
        let applied = self.order.applied();
        if copy <= applied {
            return Err(InstallRefused::Stale { applied, copy });
        }
        if self.log.primary_ballot().is_some() {
            return Err(InstallRefused::Primary);
        }
        Ok(())
    }

    /// Another replica's state is in the place of the own one on this disk, and from now on here: see [`crate::snapshot`].
    /// What the log holds behind it stays, if it follows from it.
    ///
    /// # Errors
    /// If it was not taken over. Nothing was changed here.
    pub fn install_snapshot(&mut self, now: Time, order: OrderState) -> Result<(), InstallRefused> {
        self.see_time(now);
        self.check_snapshot(order.applied())?;
        let copied = order.copied().filter(|copied| copied.entry.index == order.applied());
        let copied = Arc::clone(copied.filter(|_| order.group() == self.config.group).ok_or(InstallRefused::Unfit)?);
        let installed = self.log.install(self.now, &copied, order.membership());
        installed.map_err(|_| InstallRefused::Unfit)?;
        self.order = order;
        self.follow_role();
        Ok(())
    }

    /// The group's members by this replica's log, committed or not.
    #[must_use]
    pub fn membership(&self) -> &Membership {
        self.log.membership()
    }

    /// True if others have said that this replica is no member any more.
    #[must_use]
    pub fn is_expelled(&self) -> bool {
        self.log.is_expelled()
    }

    /// A client asks for a command. The reply comes from [`Core::apply_next`], as an [`Output::Reply`] or as an
    /// [`Output::Declined`].
    pub fn handle_submit(&mut self, now: Time, command: Arc<Command>) {
        self.see_time(now);
        let id = command.id;
        if let Some(next) = self.log.handing_over(self.now) {
            let reason = Decline::NotPrimary { hint: Some(next) };
            return self.outputs.push_back(Output::Declined { id, reason });
        }
        if !self.with_sequencer(|sequencer, turn| sequencer.handle_submit(turn, command)) {
            let reason = self.not_ready();
            self.outputs.push_back(Output::Declined { id, reason });
        }
    }

    /// Nobody waits for this command any more: if it is held and not logged, it is dropped without an answer, and makes room.
    /// It may be submitted again.
    pub fn handle_withdraw(&mut self, now: Time, id: CommandId) {
        self.see_time(now);
        self.with_sequencer(|sequencer, turn| sequencer.handle_withdraw(turn, id));
    }

    /// A session is to be opened or closed. [`crate::Change::SessionOpened`] tells when it is done.
    pub fn handle_session(&mut self, now: Time, change: SessionChange) {
        self.see_time(now);
        if !self.with_sequencer(|sequencer, turn| sequencer.handle_session(turn, change)) {
            let (SessionChange::Open(session) | SessionChange::Close(session)) = change;
            let reason = self.not_ready();
            self.outputs.push_back(Output::SessionDeclined { session, reason });
        }
    }

    /// Everything up to this token is durable.
    pub fn handle_persisted(&mut self, now: Time, token: u64) {
        self.see_time(now);
        self.log.handle_persisted(self.now, token);
        self.follow_role();
    }

    /// The entries that [`Output::ReadLog`] asked for.
    pub fn handle_log_read(&mut self, now: Time, entries: Vec<Entry>) {
        self.see_time(now);
        self.log.handle_log_read(self.now, entries);
    }

    /// The time that [`Core::poll_timeout`] named has come. Harmless when early.
    pub fn handle_timeout(&mut self, now: Time) {
        self.see_time(now);
        self.log.handle_timeout(self.now);
        self.follow_role();
        self.with_sequencer(|sequencer, turn| sequencer.handle_timeout(turn));
    }

    /// Moves the replicated time of an idle group by a log record. For a driver that needs deadlines in replicated state.
    /// Does nothing on a replica that does not take commands.
    pub fn handle_tick(&mut self, now: Time) {
        self.see_time(now);
        self.with_sequencer(|sequencer, turn| sequencer.handle_tick(turn));
    }

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front().or_else(|| self.log.poll_output()).or_else(|| self.tell_progress())
    }

    /// Tells who wants to know that more is committed.
    fn tell_progress(&mut self) -> Option<Output> {
        let due = self.subscribers.take_due(self.now, self.log.committed(), self.sequencer.is_some());
        for to in due {
            self.outputs.push_back(Output::Send { to, message: self.reached(UNASKED) });
        }
        self.outputs.pop_front()
    }

    fn reached(&self, question: u64) -> Message {
        Message::Reached {
            question,
            committed: self.log.committed(),
            last: self.log.durable(),
            version: self.log.membership().version,
            incarnation: self.config.incarnation,
        }
    }

    /// When to call [`Core::handle_timeout`].
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Time> {
        let sequencer = self.sequencer.as_ref().and_then(Sequencer::poll_timeout);
        let progress = self.subscribers.due(self.log.committed(), self.sequencer.is_some());
        sequencer.into_iter().chain(progress).chain([self.log.poll_timeout()]).min()
    }

    /// What would move nothing on if it came alone, as things stand now: a driver that has nothing else to do may leave it
    /// lying until something else comes, [`Core::poll_timeout`] included. Good until the next input.
    #[must_use]
    pub fn unhurried(&self) -> Unhurried {
        self.log.unhurried()
    }

    /// True if [`Core::apply_next`] would apply something.
    #[must_use]
    pub fn can_apply(&self) -> bool {
        self.log.can_apply()
    }

    /// Applies the next committed entry to the state, if there is one.
    pub fn apply_next(&mut self, now: Time, machine: &mut dyn Machine) -> Option<Applied> {
        self.see_time(now);
        let (index, record) = self.log.next_committed()?;
        let applied = self.order.apply(index, &record, machine);
        self.with_sequencer(|sequencer, turn| sequencer.handle_applied(turn, &applied));
        if matches!(applied.change, Change::Members(_)) && self.sequencer.is_some() {
            self.tell_members_to_all();
        }
        self.follow_role();
        Some(applied)
    }

    fn see_time(&mut self, now: Time) {
        self.now = self.now.max(now);
        self.log.see_time(self.now);
    }

    /// Lets the sequencer do something, if there is one.
    fn with_sequencer(&mut self, act: impl FnOnce(&mut Sequencer, &mut Turn<'_>)) -> bool {
        let Some(sequencer) = &mut self.sequencer else { return false };
        let mut turn = Turn { now: self.now, log: &mut self.log, order: &self.order, outputs: &mut self.outputs };
        act(sequencer, &mut turn);
        true
    }

    /// Begins or ends to take commands, as the role in the log demands. After every call that may change it.
    fn follow_role(&mut self) {
        match self.log.primary_ballot() {
            Some((ballot, start)) => {
                let may_begin = self.sequencer.is_none() && self.order.applied() >= start;
                if may_begin && self.log.trusted_time(self.now).is_some() {
                    let mut turn =
                        Turn { now: self.now, log: &mut self.log, order: &self.order, outputs: &mut self.outputs };
                    let sequencer = Sequencer::new(&self.config, &self.directory, &mut turn);
                    self.sequencer = Some(sequencer);
                    #[cfg(feature = "explore")]
                    self.sequencer.iter_mut().for_each(|sequencer| sequencer.plant(self.planted));
                    self.outputs.push_back(Output::Event(Event::BecameReady { ballot }));
                    self.tell_members_to_all();
                }
            }
            None => {
                if let Some(sequencer) = self.sequencer.take() {
                    sequencer.abandon(self.log.primary(self.now), &mut self.outputs);
                }
            }
        }
    }

    fn not_ready(&self) -> Decline {
        match self.log.primary_ballot() {
            Some(_) => Decline::NotReady,
            None => Decline::NotPrimary { hint: self.primary() },
        }
    }

    /// The replicated state.
    #[must_use]
    pub fn order(&self) -> &OrderState {
        &self.order
    }

    /// The replicated state, to drain its changed rows.
    pub fn order_mut(&mut self) -> &mut OrderState {
        &mut self.order
    }

    /// What this replica is at the moment.
    #[must_use]
    pub fn status(&self) -> Status {
        let role = match (self.log.primary_ballot(), &self.sequencer) {
            (Some(_), Some(_)) => RoleName::Primary,
            (Some(_), None) => RoleName::Recovering,
            (None, _) if self.log.is_candidate() => RoleName::Candidate,
            (None, _) => RoleName::Follower,
        };
        let sequencer = self.sequencer.as_ref();
        Status {
            group: self.config.group,
            replica: self.config.replica,
            incarnation: self.config.incarnation,
            membership: Membership::clone(self.log.membership()),
            is_expelled: self.log.is_expelled(),
            role,
            primary: self.primary(),
            promised: self.log.promised(),
            last: self.log.last().index,
            last_ballot: self.log.last().ballot,
            durable: self.log.durable(),
            committed: self.log.committed(),
            applied: self.order.applied(),
            in_flight: sequencer.map_or(0, Sequencer::in_flight),
            followers: self.log.followers(),
            too_far_behind: self.log.too_far_behind(),
            silent_groups: sequencer.map_or_else(Vec::new, |sequencer| sequencer.silent_groups(self.now)),
        }
    }

    /// Commands of several groups that are not through, the oldest first, with what each waits for. Empty on followers.
    #[must_use]
    pub fn unfinished(&self) -> Vec<Unfinished> {
        self.sequencer.as_ref().map_or_else(Vec::new, |sequencer| sequencer.unfinished(&self.order))
    }

    /// Commands of this group alone that wait for one of those, the oldest first. Empty on followers.
    #[must_use]
    pub fn held(&self) -> Vec<Unfinished> {
        self.sequencer.as_ref().map_or_else(Vec::new, Sequencer::held)
    }

    /// Who is primary, if this replica is sure.
    #[must_use]
    pub fn primary(&self) -> Option<ReplicaId> {
        self.log.primary(self.now)
    }

    /// True if this replica is primary and takes commands.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.sequencer.is_some()
    }

    /// As far as the core is concerned, the log may be dropped below this index: what is there is on every member's disk, or
    /// the log is larger than [`crate::Limits::log_bytes_max`] or [`crate::Limits::log_entries_max`] allow.
    #[must_use]
    pub fn truncatable_below(&self) -> LogIndex {
        self.log.truncatable_below()
    }

    /// On start, before anything else: the newest [`crate::Writes::committed`] that the disk holds. What it covers can be
    /// applied at once.
    pub fn restore_committed(&mut self, committed: LogIndex) {
        self.log.restore_committed(committed);
    }

    /// Asks for everything that is kept on disk to be written again, promise and entries, so that a log of one file after
    /// the other can free an old file which holds nothing but the end of an idle group's log. It comes as
    /// [`crate::Writes::rewrite`]. Call it after [`Core::truncate_below`]. False, and nothing happens, if that would be more
    /// than so many bytes, or is not possible at the moment.
    pub fn rewrite_kept(&mut self, bytes_max: usize) -> bool {
        self.log.rewrite_kept(bytes_max)
    }

    /// The driver has dropped the entries below this index from the disk, or will.
    pub fn truncate_below(&mut self, index: LogIndex) {
        self.log.truncate_below(index);
    }
}

/// A replica's state for display.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Its group.
    pub group: GroupId,
    /// Its number.
    pub replica: ReplicaId,
    /// Its disk.
    pub incarnation: Incarnation,
    /// The group's members by its log, committed or not.
    pub membership: Membership,
    /// Others say that it is no member any more.
    pub is_expelled: bool,
    /// What it is.
    pub role: RoleName,
    /// Who is primary, as far as it knows.
    pub primary: Option<ReplicaId>,
    /// The highest ballot it promised.
    pub promised: Ballot,
    /// The end of its log …
    pub last: LogIndex,
    /// … and the ballot of the entry there: of two logs that with the higher one is ahead, whichever is longer.
    pub last_ballot: Ballot,
    /// … on its disk.
    pub durable: LogIndex,
    /// … on a quorum.
    pub committed: LogIndex,
    /// … in its state.
    pub applied: LogIndex,
    /// Commands taken and not executed (primary only).
    pub in_flight: usize,
    /// How far each other member is (primary only).
    pub followers: Vec<FollowerStatus>,
    /// Set while this voter lags so far behind that what it needs was dropped: the oldest entry that the primary has.
    pub too_far_behind: Option<LogIndex>,
    /// Groups that leave questions unanswered, since when (primary only).
    pub silent_groups: Vec<(GroupId, Time)>,
}

/// How far a follower is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FollowerStatus {
    /// The member.
    pub replica: ReplicaId,
    /// Its disk.
    pub incarnation: Incarnation,
    /// What it is.
    pub role: MemberRole,
    /// Its log equals the primary's up to here, on disk.
    pub matched: LogIndex,
    /// When it last answered.
    pub heard: Time,
    /// It lacks entries that were dropped: only a copy of the state can help it …
    pub beyond_help: bool,
    /// … which is under way.
    pub is_copying: bool,
    /// It came back with this other disk.
    pub other_disk: Option<Incarnation>,
}

/// What a replica is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RoleName {
    /// Follows a primary, or waits for one.
    Follower,
    /// Wants to be primary.
    Candidate,
    /// Is primary but has not applied everything from before.
    Recovering,
    /// Is primary and takes commands.
    Primary,
}

/// A command that is not through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unfinished {
    /// The command.
    pub id: CommandId,
    /// Its destinations.
    pub groups: Vec<GroupId>,
    /// Since when this primary knows it.
    pub since: Time,
    /// True while its keys are locked here.
    pub locks_keys: bool,
    /// What it waits for.
    pub waits_for: Vec<Wait>,
}

/// What an unfinished command waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// A record of it to be committed in this group.
    OwnLog,
    /// That group's timestamp.
    Timestamp(GroupId),
    /// A conflicting command that comes first.
    Conflict(CommandId),
    /// That group's contribution.
    Contribution(GroupId),
    /// That group's word that it is through.
    Close(GroupId),
}
