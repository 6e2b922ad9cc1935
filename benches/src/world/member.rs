//! One replica: the shipped [`ReplicaCore`] on a store in memory, with what its node's thread does around it in a turn, and
//! the mailbox in front of it.

use std::collections::VecDeque;
use std::sync::Arc;

use metadata::codec::decode_op;
use metadata::namespace::{Genesis, Namespace, genesis};
use metadata::op::{FsOp, NewNode};
use metadata::protocol::{Event, Reply, Request, ToClient};
use metadata::read::ReadOp;
use metadata::types::TimeNs;
use metadata::{MemStore, Overlay, Store};
use multicast::command::Command;
use multicast::core::{Core, Durable, SessionChange, Unhurried};
use multicast::ids::{GroupId, LogIndex, ReplicaId, SessionId, VectorClock};
use multicast::{Applied, Change, Config, Entry, Message, OrderState, Time, Writes};
use replica::{
    Apply, Connection, DIGEST_INTERVAL, Front, Interest, Note, Output, Parked, PendingRead, ReplicaConfig, ReplicaCore,
    Tell, Verdict,
};

use crate::error::{Error, Result};
use crate::spec::Op;

/// Entries applied in one write of the store, as in the node.
const APPLY_BATCH_MAX: usize = 512;
/// Bytes of a file that live in the metadata, as in a new volume.
const INLINE_BYTES_MAX: u32 = 4096;
/// As in a node.
const INTEREST_KEYS_MAX: usize = 1_000_000;
const PARKED_READS_MAX: usize = 10_000;
/// Longer than any run: sessions of the lab live as long as their world, and its reads wait for as long as it takes.
const FOREVER_MS: u64 = 24 * 3_600_000;
/// Inputs that could wait do so until there are that many, as in the node's mailbox.
const WAITING_MAX: usize = 64;
/// So long an update waits for others if lately more came together, as in the node's mailbox.
const COLLECT_NS: u64 = 400_000;

/// A mount's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link(pub usize);

impl Connection for Link {
    fn number(&self) -> u64 {
        self.0 as u64
    }

    fn is_cut_off(&self) -> bool {
        false
    }
}

/// Whom to answer.
#[derive(Clone, Copy, Debug)]
pub struct Ticket {
    /// The mount.
    pub mount: Link,
    /// Its request.
    pub request: u64,
}

impl replica::Ticket for Ticket {
    type Client = Link;

    fn client(&self) -> &Link {
        &self.mount
    }
}

/// What comes into a replica's mailbox.
#[derive(Debug)]
pub enum Input {
    /// From another replica.
    Message((GroupId, ReplicaId), Message),
    /// Durable up to here.
    Persisted(u64),
    /// From a client.
    Request(Ticket, Request),
}

impl Input {
    fn is_update(&self) -> bool {
        matches!(self, Input::Request(_, Request::Update { .. }))
    }

    /// True if it moves nothing on.
    fn can_wait(&self, unhurried: Unhurried) -> bool {
        match self {
            Input::Persisted(_) => unhurried.persisted,
            Input::Message(_, Message::Appended { matched, .. }) => *matched <= unhurried.appended_through,
            Input::Message(..) | Input::Request(..) => false,
        }
    }
}

/// What waits for a replica's next turn, by the rules of the node's mailbox.
#[derive(Default)]
struct Mailbox {
    inputs: Vec<Input>,
    updates: Vec<Input>,
    /// When the first of the updates came.
    since: Option<u64>,
    /// How many updates come together, lately; in quarters.
    expected: usize,
}

impl Mailbox {
    fn updates_due(&self) -> Option<u64> {
        let (since, count) = (self.since?, self.updates.len());
        let is_few = 16 * count < 3 * self.expected && count < WAITING_MAX;
        Some(if is_few { since + COLLECT_NS } else { since })
    }

    fn due(&self, now: u64, unhurried: Unhurried) -> Option<u64> {
        let is_hurried = self.inputs.len() >= WAITING_MAX || !self.inputs.iter().all(|input| input.can_wait(unhurried));
        if is_hurried { Some(now) } else { self.updates_due() }
    }

    fn take(&mut self, now: u64) -> Vec<Input> {
        let mut inputs = std::mem::take(&mut self.inputs);
        if self.updates_due().is_some_and(|due| due <= now) {
            let count = 4 * self.updates.len();
            self.expected = count.max((3 * self.expected + count) / 4);
            self.since = None;
            inputs.append(&mut self.updates);
        }
        inputs
    }
}

/// Entries that were executed together, and of what kind those are that change something.
#[derive(Debug, Default)]
pub struct Executed {
    /// All.
    pub entries: usize,
    updates: Vec<Arc<Command>>,
}

impl Executed {
    /// Updates, by their kind. They are looked at here, as no replica does that when it executes them.
    pub fn updates(&self) -> impl Iterator<Item = Op> {
        self.updates.iter().filter_map(|command| decode_op(&command.payload).ok()).map(|update| kind(&update))
    }
}

impl Apply for Executed {
    fn apply_next<B: Store>(
        &mut self,
        core: &mut Core,
        now: Time,
        namespace: &mut Namespace<Overlay<'_, B>>,
    ) -> Option<Applied> {
        let applied = core.apply_next(now, namespace)?;
        if let Change::Executed(command) = &applied.change {
            self.updates.push(command.clone());
        }
        Some(applied)
    }
}

/// Which operation an update is for.
fn kind(update: &FsOp) -> Op {
    match update {
        FsOp::Create { node: NewNode::Directory { .. }, .. } => Op::Mkdir,
        FsOp::Create { .. } => Op::Create,
        FsOp::SetAttr { .. } => Op::Chmod,
        FsOp::Unlink { .. } => Op::Unlink,
        FsOp::Rename { .. } => Op::Rename,
        _ => Op::Write,
    }
}

/// What leaves a replica at one moment.
#[derive(Debug, Default)]
pub struct Round {
    /// Whose words these are: the replica's place in the world's list.
    pub from: usize,
    /// For the disk: the newest token and how many bytes.
    pub persist: Option<(u64, usize)>,
    /// For other replicas.
    pub sends: Vec<((GroupId, ReplicaId), Message)>,
    /// For mounts, in order.
    pub tells: Vec<(usize, ToClient)>,
}

impl Round {
    /// Nothing leaves.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.persist.is_none() && self.sends.is_empty() && self.tells.is_empty()
    }
}

/// One replica.
pub struct Member {
    /// Its group.
    pub group: GroupId,
    /// What decides.
    pub core: ReplicaCore<Ticket>,
    store: MemStore,
    front: Front,
    interest: Interest<Link>,
    parked: Parked<Ticket>,
    log: VecDeque<Entry>,
    mailbox: Mailbox,
    out: Round,
}

impl Member {
    /// A replica that starts for the first time.
    ///
    /// # Errors
    /// If the configuration makes no sense.
    pub fn new(now: Time, config: Config) -> Result<Member> {
        let broken = |problem: String| Error::Broken(problem);
        let group = config.group;
        let mut store = MemStore::new();
        let mut overlay = Overlay::new(&store).map_err(|error| broken(error.to_string()))?;
        let start = Genesis { inline_bytes_max: INLINE_BYTES_MAX, uid: 0, gid: 0, mode: 0o755, time: TimeNs(1) };
        genesis(&mut overlay, group, &start).map_err(|error| broken(error.to_string()))?;
        let rows = overlay.into_writes();
        store.apply(rows);
        let core = Core::new(now, config, Durable::default(), OrderState::new(group));
        let core = core.map_err(|error| broken(error.to_string()))?;
        let config = ReplicaConfig {
            group,
            session_lease_ms: FOREVER_MS,
            batch_entries_max: APPLY_BATCH_MAX,
            digest_interval: DIGEST_INTERVAL,
        };
        Ok(Member {
            group,
            front: Front::of(core.order()),
            core: ReplicaCore::new(config, core),
            store,
            interest: Interest::new(group, INTEREST_KEYS_MAX),
            parked: Parked::new(PARKED_READS_MAX),
            log: VecDeque::new(),
            mailbox: Mailbox::default(),
            out: Round::default(),
        })
    }

    /// The ordering core.
    #[must_use]
    pub fn ordering(&self) -> &Core {
        self.core.ordering()
    }

    /// The log has been applied up to here.
    #[must_use]
    pub fn applied(&self) -> LogIndex {
        self.front.applied
    }

    /// Puts something into the mailbox.
    pub fn put(&mut self, now_ns: u64, input: Input) {
        if input.is_update() {
            self.mailbox.since.get_or_insert(now_ns);
            self.mailbox.updates.push(input);
        } else {
            self.mailbox.inputs.push(input);
        }
    }

    /// When what waits in the mailbox is worth a turn, if anything is.
    #[must_use]
    pub fn mail_due(&self, now_ns: u64) -> Option<u64> {
        self.mailbox.due(now_ns, self.ordering().unhurried())
    }

    /// What is worth a turn now, and whatever waits beside it.
    pub fn take_mail(&mut self, now_ns: u64) -> Vec<Input> {
        self.mailbox.take(now_ns)
    }

    /// The process is gone.
    pub fn drop_mail(&mut self) {
        self.mailbox = Mailbox::default();
    }

    /// Takes in one thing; true if it was a client's command.
    pub fn take(&mut self, now: Time, input: Input) -> bool {
        match input {
            Input::Message(from, message) => self.core.handle_message(now, from, message),
            Input::Persisted(token) => self.core.handle_persisted(now, token),
            Input::Request(ticket, request) => return self.request(now, ticket, request),
        }
        false
    }

    fn request(&mut self, now: Time, ticket: Ticket, request: Request) -> bool {
        match request {
            Request::OpenSession { session, .. } => {
                self.core.handle_session(now, SessionChange::Open(session), ticket);
            }
            Request::Update { command, .. } => {
                self.core.handle_update(now, Arc::new(command), ticket);
                return true;
            }
            // Sessions of the lab live as long as their world; streams and reads go past the thread.
            Request::CloseSession { .. }
            | Request::KeepAlive { .. }
            | Request::Status
            | Request::Members
            | Request::Operate(_)
            | Request::Subscribe { .. }
            | Request::Read { .. } => {}
        }
        false
    }

    /// All that came is in: what is due.
    ///
    /// # Errors
    /// If the state is damaged.
    pub fn begin_turn(&mut self, now: Time) -> Result<()> {
        self.core.handle_turn(now, &self.store).map_err(|error| Error::Broken(error.to_string()))
    }

    /// Does what the core says.
    ///
    /// # Errors
    /// If it says what it never may.
    pub fn outputs(&mut self, now: Time) -> Result<Round> {
        while let Some(output) = self.core.poll_output(now) {
            match output {
                Output::Persist { token, writes } => {
                    let bytes = self.log(writes);
                    let before = self.out.persist.map_or(0, |(_, bytes)| bytes);
                    self.out.persist = Some((token, before + bytes));
                }
                Output::Send { to, message } => self.out.sends.push((to, message)),
                Output::ReadLog { from, bytes_max } => {
                    let entries = self.read_log(from, bytes_max);
                    self.core.handle_log_read(now, entries);
                }
                Output::SendSnapshot { to, .. } => {
                    return Err(Error::Broken(format!("{to} of {} lacks a log that nobody cut", self.group)));
                }
                Output::Serve(read) => self.serve(read)?,
                Output::Primary(primary) => self.front.primary = primary,
                Output::Progress => self.core.tell_progress(&self.front, &mut self.interest),
                Output::Quarantine(why) => return Err(Error::Broken(format!("{}: {why}", self.group))),
                Output::Note(note) => self.note(note)?,
            }
        }
        self.tell();
        Ok(std::mem::take(&mut self.out))
    }

    /// What clients were told since the last outputs.
    pub fn told(&mut self) -> Round {
        std::mem::take(&mut self.out)
    }

    fn log(&mut self, writes: Writes) -> usize {
        if let Some(from) = writes.truncate_from {
            while self.log.back().is_some_and(|entry| entry.index >= from) {
                self.log.pop_back();
            }
        }
        let mut bytes = 32;
        for entry in writes.append {
            bytes += entry.len_bytes();
            self.log.push_back(entry);
        }
        bytes
    }

    fn read_log(&self, from: LogIndex, bytes_max: usize) -> Vec<Entry> {
        let Some(first) = self.log.front().map(|entry| entry.index) else { return Vec::new() };
        let skip = usize::try_from(from.0.saturating_sub(first.0)).unwrap_or(usize::MAX);
        if from < first {
            return Vec::new();
        }
        let (mut entries, mut bytes) = (Vec::new(), 0);
        for entry in self.log.iter().skip(skip) {
            if bytes > 0 && bytes + entry.len_bytes() > bytes_max {
                break;
            }
            bytes += entry.len_bytes();
            entries.push(entry.clone());
        }
        entries
    }

    fn note(&self, note: Note) -> Result<()> {
        use multicast::Event;
        let group = self.group;
        let broken = |problem: String| Err(Error::Broken(problem));
        match note {
            Note::Ordering(Event::IgnoredMessage { from, reason }) => {
                broken(format!("{group} ignored a message of {from:?}: {reason}"))
            }
            Note::Ordering(Event::FollowerBeyondHelp { replica, from }) => {
                broken(format!("{replica} of {group} lacks the log from {from}"))
            }
            Note::Ordering(Event::Expelled { .. } | Event::DiskReplaced { .. } | Event::Contradicted { .. }) => {
                broken(format!("the members of {group} changed by themselves"))
            }
            Note::SessionExpired(session) => broken(format!("{group} closed {session:?}")),
            Note::Ordering(
                Event::PeerMembers { .. }
                | Event::BecamePrimary { .. }
                | Event::BecameReady { .. }
                | Event::BecameFollower { .. },
            ) => Ok(()),
        }
    }

    /// Applies a batch of what is committed; tells what that was.
    ///
    /// # Errors
    /// If the state is damaged.
    pub fn apply(&mut self, now: Time) -> Result<Executed> {
        let mut executed = Executed::default();
        let step = self.core.execute(now, &self.store, &mut executed);
        let Some(mut step) = step.map_err(|error| Error::Broken(error.to_string()))? else { return Ok(executed) };
        let before = self.front.applied;
        self.store.apply(std::mem::take(&mut step.writes));
        self.core.publish(step, &mut self.front, &mut self.interest);
        self.tell();
        let ready = self.parked.take_ready(now, self.front.applied, &mut |told| say(&mut self.out, told));
        for read in ready {
            self.serve(read)?;
        }
        executed.entries = usize::try_from(self.front.applied.0 - before.0).unwrap_or(usize::MAX);
        Ok(executed)
    }

    fn tell(&mut self) {
        while let Some(told) = self.core.poll_tell() {
            say(&mut self.out, told);
        }
    }

    fn serve(&mut self, read: PendingRead<Ticket>) -> Result<()> {
        let mut out = std::mem::take(&mut self.out.tells);
        let served = self.answer(read, &mut out);
        self.out.tells = out;
        served
    }

    /// Answers a read at once if that is possible, as the node's network thread does; else it is parked until a turn.
    ///
    /// # Errors
    /// If the state is damaged.
    pub fn read(
        &mut self,
        now: Time,
        ticket: Ticket,
        session: SessionId,
        clock: &VectorClock,
        op: ReadOp,
    ) -> Result<Vec<ToClient>> {
        let (index, effects) = (clock.index(self.group), clock.effects(self.group));
        let read = PendingRead { ticket, session, index, effects, op, deadline: now.after_ms(FOREVER_MS) };
        let mut out = Vec::new();
        self.answer(read, &mut out)?;
        Ok(out.into_iter().map(|(_, message)| message).collect())
    }

    fn answer(&mut self, read: PendingRead<Ticket>, out: &mut Vec<(usize, ToClient)>) -> Result<()> {
        let keys = read.op.keys();
        let verdict = if self.front.holds_back(&read, &keys) {
            Verdict::Wait
        } else {
            let result = metadata::answer::read(&self.store, self.group, &read.op);
            let result = result.map_err(|error| Error::Broken(error.to_string()))?;
            read.conclude(self.group, (&self.front, &self.front), |_| false, keys, result)
        };
        let Verdict::Answer(body, noted) = verdict else {
            let behind = self.parked.park(read, &self.front);
            return behind.map_or(Ok(()), |_| Err(Error::Broken("too many reads wait".into())));
        };
        if let Some(keys) = noted {
            let tell = &mut |link: &Link, event: Event| out.push((link.0, ToClient::Event(event)));
            self.interest.note(read.session, &read.ticket.mount, &keys, self.front.applied, tell);
        }
        out.push((read.ticket.mount.0, reply(read.ticket, body)));
        Ok(())
    }

    /// Starts a session's stream.
    pub fn subscribe(&mut self, session: SessionId, mount: usize) {
        self.interest.subscribe(session, Link(mount));
    }

    /// Forgets the log that nobody needs.
    pub fn housekeep(&mut self) {
        let keep = self.core.log_needed_from(self.front.applied);
        let holds = |entry: Option<&Entry>| entry.map(|entry| entry.index);
        let (first, last) = (holds(self.log.front()), holds(self.log.back()));
        if first.is_some_and(|first| first < keep) && last.is_some_and(|last| last >= keep) {
            self.core.handle_trimmed(keep);
            while self.log.front().is_some_and(|entry| entry.index < keep) {
                self.log.pop_front();
            }
        }
    }
}

fn reply(ticket: Ticket, body: Reply) -> ToClient {
    ToClient::Reply { request: ticket.request, body }
}

fn say(out: &mut Round, told: Tell<Ticket>) {
    out.tells.push(match told {
        Tell::Reply(ticket, body) => (ticket.mount.0, reply(ticket, body)),
        Tell::Event(link, event) => (link.0, ToClient::Event(event)),
    });
}
