//! Who waits for what, and what the core's words mean to a client.

use std::collections::{BTreeMap, VecDeque};

use metadata::codec;
use metadata::footprint::key_inode;
use metadata::outcome::{Done, Outcome};
use metadata::protocol::{Event, Executed, Position, Reply};
use multicast::command::{Command, Key};
use multicast::ids::{CommandId, GroupId, LogIndex, SessionId, VectorClock};
use multicast::record::Rejection;
use multicast::{Applied, Change, Decline, Refusal, Time};

use crate::client::{Connection, Tell, Ticket};
use crate::front::Front;
use crate::interest::{Interest, Learned};
use crate::taught::{self, BatchKeys};

/// What a client is told of a sequence below its session's floor.
pub const STALE: &str = "the client has acknowledged this sequence already";

/// So long a request waits before its client must ask again: longer than the client waits for an answer.
const TICKET_AGE_MAX_MS: u64 = 10_000;

/// Requests under way in one group, of clients that are connected here, and what to tell them.
#[derive(Debug)]
pub struct Waiting<T: Ticket> {
    group: GroupId,
    updates: BTreeMap<CommandId, Place<T>>,
    sessions: BTreeMap<SessionId, Vec<Place<T>>>,
    tells: VecDeque<Tell<T>>,
}

#[derive(Debug)]
struct Place<T> {
    ticket: T,
    since: Time,
}

/// Where a batch of entries has led to. `is_changed`: an entry behind the one that is settled has changed that key, too.
pub struct StepEnd<'a, T: Ticket> {
    pub front: &'a Front,
    pub interest: &'a mut Interest<T::Client>,
    pub is_changed: &'a dyn Fn(Key) -> bool,
}

impl<T: Ticket> Waiting<T> {
    /// Nobody.
    pub fn new(group: GroupId) -> Waiting<T> {
        Waiting { group, updates: BTreeMap::new(), sessions: BTreeMap::new(), tells: VecDeque::new() }
    }

    /// What to tell next.
    pub fn poll_tell(&mut self) -> Option<Tell<T>> {
        self.tells.pop_front()
    }

    /// An answer to somebody who does not wait in here.
    pub fn reply(&mut self, ticket: T, body: Reply) {
        self.tells.push_back(Tell::Reply(ticket, body));
    }

    /// News for a subscriber.
    pub fn tell(&mut self, client: &T::Client, event: Event) {
        self.tells.push_back(Tell::Event(client.clone(), event));
    }

    /// Waits for an update. An earlier request for the same one is not answered any more.
    pub fn add_update(&mut self, now: Time, id: CommandId, ticket: T) {
        self.updates.insert(id, Place { ticket, since: now });
    }

    /// Waits for a session to open or close.
    pub fn add_session(&mut self, now: Time, session: SessionId, ticket: T) {
        self.sessions.entry(session).or_default().push(Place { ticket, since: now });
    }

    /// An update is settled, perhaps long since.
    pub fn settle_update(&mut self, reply: multicast::Reply, dependencies: &VectorClock) {
        let Some(Place { ticket, .. }) = self.updates.remove(&reply.id) else { return };
        let (position, elsewhere) = (position(reply.index, dependencies), reply.elsewhere.clone());
        self.reply(ticket, updated(reply, |outcome| Reply::Updated { outcome, position, is_noted: false, elsewhere }));
    }

    /// An update has executed in this step. If what its outcome says is still so at the step's end, the session may cache it as
    /// it may what it has read there.
    pub fn settle_executed(&mut self, reply: multicast::Reply, command: &Command, step: &mut StepEnd<'_, T>) {
        let Some(Place { ticket, .. }) = self.updates.remove(&reply.id) else { return };
        let StepEnd { front, interest, is_changed } = step;
        let (group, index, session, elsewhere) = (self.group, reply.index, command.id.session, reply.elsewhere.clone());
        let client = ticket.client();
        let tells = &mut self.tells;
        let mut tell = |client: &T::Client, event| tells.push_back(Tell::Event(client.clone(), event));
        let body = updated(reply, |mut outcome| {
            let is_noted = interest.is_subscribed(session, client)
                && match &mut outcome {
                    // Nothing was changed, and nothing is taught.
                    Err(_) => true,
                    Ok(done) => lasting(group, command, done, front, is_changed)
                        .is_some_and(|keys| interest.note(session, client, &keys, front.applied, &mut tell)),
                };
            // What is noted is as of the step's end.
            let index = if is_noted { front.applied } else { index };
            Reply::Updated { outcome, position: front.position_at(index), is_noted, elsewhere }
        });
        self.reply(ticket, body);
    }

    /// What sessions with a stream from here learn of what they have done in several groups, and what another one answers:
    /// as far as it is something, and holds at the end of the step.
    pub fn learned(
        &self,
        entries: &[(Applied, usize)],
        changed: &BatchKeys,
        (front, interest): (&Front, &Interest<T::Client>),
    ) -> Vec<Learned> {
        let learned = entries.iter().filter_map(|(applied, end)| {
            let (Change::Executed(command), Some(reply)) = (&applied.change, &applied.reply) else { return None };
            let CommandId { session, sequence } = command.id;
            let is_answered = self.updates.contains_key(&command.id);
            if !command.is_multi_group() || is_answered || !interest.has_stream(session) {
                return None;
            }
            let mut done = codec::decode_outcome(reply.result.as_ref().ok()?).ok()?.ok()?;
            let is_changed = |key| changed.is_changed_behind(*end, key);
            let keys = lasting(self.group, command, &mut done, front, &is_changed)?;
            Some(Learned { session, executed: Executed { sequence, done }, keys })
        });
        learned.collect()
    }

    /// A session is open, or closed.
    pub fn settle_session(&mut self, session: SessionId, index: LogIndex, dependencies: &VectorClock) {
        for Place { ticket, .. } in self.sessions.remove(&session).unwrap_or_default() {
            self.reply(ticket, Reply::Session(position(index, dependencies)));
        }
    }

    /// An update was not taken.
    pub fn decline_update(&mut self, id: CommandId, reason: Decline) {
        if let Some(Place { ticket, .. }) = self.updates.remove(&id) {
            self.decline(ticket, reason);
        }
    }

    /// A session's change was not taken.
    pub fn decline_session(&mut self, session: SessionId, reason: Decline) {
        for Place { ticket, .. } in self.sessions.remove(&session).unwrap_or_default() {
            self.decline(ticket, reason);
        }
    }

    /// Something is not taken.
    pub fn decline(&mut self, ticket: T, reason: Decline) {
        self.reply(ticket, declined(self.group, reason));
    }

    /// Nobody waits here any more: all ask somewhere else.
    pub fn send_away(&mut self, body: impl Fn() -> Reply) {
        let updates = std::mem::take(&mut self.updates).into_values();
        let sessions = std::mem::take(&mut self.sessions).into_values().flatten();
        for Place { ticket, .. } in updates.chain(sessions) {
            self.reply(ticket, body());
        }
    }

    /// Forgets clients that are gone, and answers those that have waited for too long: they ask again if they still want to
    /// know, else their places would be taken for as long as a lock stays. Returns the updates that nobody waits for.
    pub fn forget_old(&mut self, now: Time) -> Vec<CommandId> {
        let is_over =
            |place: &Place<T>| place.ticket.client().is_cut_off() || now.ms_since(place.since) >= TICKET_AGE_MAX_MS;
        let forgotten = self.updates.iter().filter(|(_, place)| is_over(place)).map(|(&id, _)| id);
        let forgotten: Vec<CommandId> = forgotten.collect();
        let mut places: Vec<Place<T>> = forgotten.iter().filter_map(|id| self.updates.remove(id)).collect();
        self.sessions.retain(|_, waiting| {
            places.extend(waiting.extract_if(.., |place| is_over(place)));
            !waiting.is_empty()
        });
        for Place { ticket, .. } in places {
            self.reply(ticket, expired(self.group));
        }
        forgotten
    }
}

/// The keys under which a client may cache what an outcome says of this group, if all of that holds at the end of the step.
/// Takes out what it says of directories if that does not.
fn lasting(
    group: GroupId,
    command: &Command,
    done: &mut Done,
    front: &Front,
    is_changed: &dyn Fn(Key) -> bool,
) -> Option<Vec<Key>> {
    let op = codec::decode_op(&command.payload).ok()?;
    let is_settled = |&key: &Key| !is_changed(key) && !front.locked.contains_key(&key);
    let directories = |done: &Done| -> Vec<Key> {
        done.directories().iter().filter(|attr| attr.home == group).map(|attr| key_inode(attr.ino)).collect()
    };
    if !directories(done).iter().all(is_settled) {
        taught::forget_directories(done);
    }
    let mut keys = taught::keys(group, &op, done);
    keys.extend(directories(done));
    keys.iter().all(is_settled).then_some(keys)
}

/// What a client hears when something is not taken.
fn declined(group: GroupId, reason: Decline) -> Reply {
    let unavailable = |group, why: &str| Reply::Unavailable { group, why: why.into() };
    match reason {
        Decline::NotPrimary { hint } => Reply::NotPrimary { group, primary: hint },
        Decline::NotReady => unavailable(group, "the group's new primary is not up to date yet"),
        Decline::Overloaded => unavailable(group, "too much is under way"),
        Decline::Unavailable { group } => unavailable(group, "the group does not answer"),
        Decline::WrongGroup => Reply::Invalid("the group is not among the command's destinations".into()),
        Decline::Malformed => Reply::Invalid("the command's destinations make no sense".into()),
        Decline::Refused(reason) => refused(Rejection { by: group, reason }),
    }
}

fn updated(reply: multicast::Reply, body: impl FnOnce(Outcome) -> Reply) -> Reply {
    match reply.result.map(|outcome| codec::decode_outcome(&outcome)) {
        Ok(Ok(outcome)) => body(outcome),
        Ok(Err(error)) => Reply::Invalid(format!("the stored outcome cannot be read: {error}")),
        Err(rejection) => refused(rejection),
    }
}

fn expired(group: GroupId) -> Reply {
    Reply::Unavailable { group, why: "the update waits for others".into() }
}

fn refused(rejection: Rejection) -> Reply {
    match rejection.reason {
        // Nothing was done, and never will be under this sequence: the client asks that group for its session and takes
        // another sequence, which acknowledges more.
        Refusal::UnknownSession | Refusal::BeyondWindow => Reply::UnknownSession { group: rejection.by },
        Refusal::StaleSequence => Reply::Invalid(STALE.into()),
        Refusal::IdReused => Reply::Invalid("the command's id was used for something else".into()),
    }
}

fn position(index: LogIndex, dependencies: &VectorClock) -> Position {
    Position { index, dependencies: dependencies.clone(), settled: LogIndex::ZERO }
}

#[cfg(test)]
mod tests {
    use metadata::footprint::{key_dirent, key_home};
    use metadata::op::{FsOp, NewNode};
    use metadata::outcome::{Done, Errno, OpError};
    use metadata::types::{Attr, FileKind, InodeId, NodeRef};

    use super::*;
    use crate::client::tests::{Asked, Peer};

    const GROUP: GroupId = GroupId::GLOBAL;
    const SESSION: SessionId = SessionId(1);
    const NEW: InodeId = InodeId(7);

    fn attr(ino: InodeId, kind: FileKind) -> Attr {
        let parent = (kind == FileKind::Directory).then_some(InodeId::ROOT);
        Attr { parent, ..Attr::blank(NodeRef { ino, kind, home: GROUP }) }
    }

    /// What a client hears of a file that entry 5 of a step to 9 has created: (noted, as of, directories told) and the keys
    /// noted for it. `changed` are the keys that later entries have changed too.
    fn told(
        outcome: &Outcome,
        is_subscribed: bool,
        changed: &[Key],
        locked: &[Key],
    ) -> ((bool, LogIndex, usize), usize) {
        let (client, mut interest) = (Peer(1), Interest::new(GROUP, 100));
        if is_subscribed {
            interest.subscribe(SESSION, client);
        }
        let parent = NodeRef { ino: InodeId::ROOT, kind: FileKind::Directory, home: GROUP };
        let op =
            FsOp::Create { parent, name: "n".into(), node: NewNode::File, mode: 0o644, uid: 0, gid: 0, home: GROUP };
        let id = CommandId { session: SESSION, sequence: 1 };
        let command = Command {
            id,
            acknowledged_below: 1,
            clock: VectorClock::new(),
            destinations: op.destinations(),
            payload: codec::encode_op(&op),
        };
        let mut waiting = Waiting::new(GROUP);
        waiting.add_update(Time(1), id, Asked(client, 2));
        let locked = locked.iter().map(|&key| (key, LogIndex(3))).collect();
        let front = Front { applied: LogIndex(9), locked: std::sync::Arc::new(locked), ..Front::default() };
        let result = Ok(codec::encode_outcome(outcome));
        let reply = multicast::Reply { id, index: LogIndex(5), result, elsewhere: Vec::new() };
        let is_changed = |key| changed.contains(&key);
        let mut end = StepEnd { front: &front, interest: &mut interest, is_changed: &is_changed };
        waiting.settle_executed(reply, &command, &mut end);
        let told = match waiting.poll_tell() {
            Some(Tell::Reply(Asked(_, 2), Reply::Updated { outcome, position, is_noted, .. })) => {
                (is_noted, position.index, outcome.as_ref().map_or(0, |done| done.directories().len()))
            }
            other => panic!("{other:?}"),
        };
        (told, interest.keys())
    }

    #[test]
    fn outcome_is_noted_as_of_the_step_s_end_unless_a_later_entry_or_a_lock_makes_it_untrue() {
        let directories = vec![attr(InodeId::ROOT, FileKind::Directory)];
        let created = Ok(Done::Node { attr: Box::new(attr(NEW, FileKind::File)), appended_at: None, directories });
        let name = key_dirent(InodeId::ROOT, b"n");
        let (root, home, file) = (key_inode(InodeId::ROOT), key_home(InodeId::ROOT), key_inode(NEW));
        let (own, end) = (LogIndex(5), LogIndex(9));
        assert_eq!(told(&created, true, &[], &[]), ((true, end, 1), 4));
        assert_eq!(told(&created, false, &[], &[]), ((false, own, 1), 0));
        // Of the directory nothing is said; the file is known all the same.
        assert_eq!(told(&created, true, &[root], &[]), ((true, end, 0), 3));
        assert_eq!(told(&created, true, &[], &[root]), ((true, end, 0), 3));
        for key in [name, home, file] {
            assert!(!told(&created, true, &[key], &[]).0.0);
            assert_eq!(told(&created, true, &[], &[key]), ((false, own, 1), 0));
        }
        assert_eq!(told(&Err(OpError::Errno(Errno::NotFound)), true, &[name], &[name]), ((true, end, 0), 0));
    }

    #[test]
    fn window_that_is_full_elsewhere_makes_the_client_take_another_sequence() {
        let rejection = Rejection { by: GroupId(3), reason: Refusal::BeyondWindow };
        assert!(matches!(refused(rejection), Reply::UnknownSession { group: GroupId(3) }));
    }

    #[test]
    fn request_that_has_waited_for_too_long_is_answered_and_so_is_that_of_a_client_that_is_gone() {
        let mut waiting = Waiting::new(GROUP);
        let id = |sequence| CommandId { session: SESSION, sequence };
        waiting.add_update(Time(0), id(1), Asked(Peer(1), 1));
        waiting.add_update(Time(0).after_ms(1), id(2), Asked(Peer(1), 2));
        waiting.add_session(Time(0), SESSION, Asked(Peer(1), 3));
        assert_eq!(waiting.forget_old(Time(5)), []);
        assert_eq!(waiting.forget_old(Time(0).after_ms(TICKET_AGE_MAX_MS)), [id(1)]);
        for request in [1, 3] {
            let told = waiting.poll_tell();
            assert!(matches!(told, Some(Tell::Reply(Asked(_, at), Reply::Unavailable { .. })) if at == request));
        }
        waiting.add_update(Time(0).after_ms(1), id(4), Asked(Peer(0), 4));
        assert_eq!(waiting.forget_old(Time(0).after_ms(2)), [id(4)]);
    }
}
