//! Who waits for what, and what the core's words mean to a client.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use metadata::codec;
use metadata::footprint::key_inode;
use metadata::outcome::Outcome;
use metadata::protocol::{Position, Reply};
use multicast::command::{Command, Key};
use multicast::ids::{CommandId, GroupId, LogIndex, ReplicaId, SessionId, VectorClock};
use multicast::record::Rejection;
use multicast::{Decline, Refusal};

use super::taught;
use super::view::Advance;
use crate::server::client::Ticket;

/// So long a request waits before its client must ask again: longer than the client waits for an answer.
const TICKET_AGE_MAX: Duration = Duration::from_secs(10);

/// Requests under way in one group, of clients that are connected here.
pub struct Waiting {
    group: GroupId,
    updates: BTreeMap<CommandId, Ticket>,
    sessions: BTreeMap<SessionId, Vec<Ticket>>,
}

impl Waiting {
    /// Nobody.
    pub fn new(group: GroupId) -> Waiting {
        Waiting { group, updates: BTreeMap::new(), sessions: BTreeMap::new() }
    }

    /// Waits for an update. An earlier request for the same one is not answered any more.
    pub fn add_update(&mut self, id: CommandId, ticket: Ticket) {
        self.updates.insert(id, ticket);
    }

    /// Waits for a session to open or close.
    pub fn add_session(&mut self, session: SessionId, ticket: Ticket) {
        self.sessions.entry(session).or_default().push(ticket);
    }

    /// An update is settled, perhaps long since.
    pub fn settle_update(&mut self, reply: multicast::Reply, dependencies: &VectorClock) {
        let Some(ticket) = self.updates.remove(&reply.id) else { return };
        let position = position(reply.index, dependencies);
        ticket.reply(updated(reply, |outcome| Reply::Updated { outcome, position, is_noted: false }));
    }

    /// An update has executed in this step. If what its outcome says is still so at the step's end, the session may cache it as
    /// it may what it has read there. `is_changed`: an entry behind it has changed that key, too.
    pub fn settle_executed(
        &mut self,
        reply: multicast::Reply,
        command: &Command,
        is_changed: &dyn Fn(Key) -> bool,
        step: &Advance<'_>,
    ) {
        let Some(ticket) = self.updates.remove(&reply.id) else { return };
        let (group, index, dependencies) = (self.group, reply.index, &step.front.dependencies);
        let client = ticket.client();
        let body = updated(reply, |mut outcome| {
            let is_noted = step.is_subscribed(command.id.session, client)
                && match (&mut outcome, codec::decode_op(&command.payload)) {
                    // Nothing was changed, and nothing is taught.
                    (Err(_), _) => true,
                    (Ok(done), Ok(op)) => {
                        let is_settled = |&key: &Key| !is_changed(key) && !step.front.locked.contains_key(&key);
                        if !done.directories().iter().all(|attr| is_settled(&key_inode(attr.ino))) {
                            taught::forget_directories(done);
                        }
                        let mut keys = taught::keys(group, &op, done);
                        keys.extend(done.directories().iter().map(|attr| key_inode(attr.ino)));
                        keys.iter().all(is_settled) && step.note(command.id.session, client, &keys)
                    }
                    (Ok(_), Err(_)) => false,
                };
            // What is noted is as of the step's end.
            let index = if is_noted { step.front.applied } else { index };
            Reply::Updated { outcome, position: position(index, dependencies), is_noted }
        });
        ticket.reply(body);
    }

    /// A session is open, or closed.
    pub fn settle_session(&mut self, session: SessionId, index: LogIndex, dependencies: &VectorClock) {
        for ticket in self.sessions.remove(&session).unwrap_or_default() {
            ticket.reply(Reply::Session(position(index, dependencies)));
        }
    }

    /// An update was not taken.
    pub fn decline_update(&mut self, id: CommandId, reason: Decline) {
        if let Some(ticket) = self.updates.remove(&id) {
            ticket.reply(self.declined(reason));
        }
    }

    /// A session's change was not taken.
    pub fn decline_session(&mut self, session: SessionId, reason: Decline) {
        for ticket in self.sessions.remove(&session).unwrap_or_default() {
            ticket.reply(self.declined(reason));
        }
    }

    /// This replica is not primary any more: all ask the new one.
    pub fn send_to_primary(&mut self, primary: Option<ReplicaId>) {
        let updates = std::mem::take(&mut self.updates).into_values();
        let sessions = std::mem::take(&mut self.sessions).into_values().flatten();
        for ticket in updates.chain(sessions) {
            ticket.reply(Reply::NotPrimary { group: self.group, primary });
        }
    }

    /// Forgets clients that are gone, and answers those that have waited for too long: they ask again if they still want to
    /// know, else their places would be taken for as long as a lock stays. Returns the updates that nobody waits for.
    pub fn forget_old(&mut self, now: Instant) -> Vec<CommandId> {
        let group = self.group;
        let is_over = |ticket: &Ticket| {
            ticket.client().is_cut_off() || now.saturating_duration_since(ticket.since()) >= TICKET_AGE_MAX
        };
        let forgotten = self.updates.iter().filter(|(_, ticket)| is_over(ticket)).map(|(&id, _)| id);
        let forgotten: Vec<CommandId> = forgotten.collect();
        for id in &forgotten {
            if let Some(ticket) = self.updates.remove(id) {
                ticket.reply(expired(group));
            }
        }
        self.sessions.retain(|_, tickets| {
            tickets.extract_if(.., |ticket| is_over(ticket)).for_each(|ticket| ticket.reply(expired(group)));
            !tickets.is_empty()
        });
        forgotten
    }

    /// What a client hears when something is not taken.
    pub fn declined(&self, reason: Decline) -> Reply {
        let group = self.group;
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
        Refusal::StaleSequence => Reply::Invalid("the client has acknowledged this sequence already".into()),
        Refusal::IdReused => Reply::Invalid("the command's id was used for something else".into()),
    }
}

fn position(index: LogIndex, dependencies: &VectorClock) -> Position {
    Position { index, dependencies: dependencies.clone() }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use metadata::footprint::{key_dirent, key_home};
    use metadata::op::{FsOp, NewNode};
    use metadata::outcome::{Done, Errno, OpError};
    use metadata::protocol::ToClient;
    use metadata::types::{Attr, FileKind, InodeId, NodeRef, TimeNs};

    use super::super::view::tests::fixture;
    use super::*;
    use crate::config::Limits;
    use crate::server::client::{Client, InFlightMax, Kind};

    const GROUP: GroupId = GroupId::GLOBAL;
    const SESSION: SessionId = SessionId(1);
    const NEW: InodeId = InodeId(7);

    fn attr(ino: InodeId, kind: FileKind) -> Attr {
        let (time, parent) = (TimeNs(1), (kind == FileKind::Directory).then_some(InodeId::ROOT));
        Attr {
            ino,
            kind,
            mode: 0o755,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            size: 0,
            allocated: 0,
            atime: time,
            mtime: time,
            ctime: time,
            btime: time,
            home: GROUP,
            placement: GROUP,
            parent,
            data_version: 0,
            xattrs: 0,
        }
    }

    /// What a client hears of a file that entry 5 of a step to 9 has created: (noted, as of, directories told) and the keys
    /// noted for it. `changed` are the keys that later entries have changed too.
    fn told(
        outcome: &Outcome,
        is_subscribed: bool,
        changed: &[Key],
        locked: &[Key],
    ) -> ((bool, LogIndex, usize), usize) {
        let fixture = fixture(&Limits::default());
        let client = Client::test(1);
        if is_subscribed {
            fixture.view.subscribe(SESSION, client.ticket(1));
            client.taken();
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
        waiting.add_update(id, client.ticket(2));
        let mut step = fixture.view.advance();
        step.front.applied = LogIndex(9);
        step.front.locked = std::sync::Arc::new(locked.iter().map(|&key| (key, LogIndex(3))).collect());
        let reply = multicast::Reply { id, index: LogIndex(5), result: Ok(codec::encode_outcome(outcome)) };
        waiting.settle_executed(reply, &command, &|key| changed.contains(&key), &step);
        step.finish();
        let told = match &client.taken()[..] {
            [ToClient::Reply { request: 2, body: Reply::Updated { outcome, position, is_noted } }] => {
                (*is_noted, position.index, outcome.as_ref().map_or(0, |done| done.directories().len()))
            }
            other => panic!("{other:?}"),
        };
        (told, fixture.view.figures().1)
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

    #[tokio::test]
    async fn client_that_gave_up_gets_its_places_back_and_is_read_meanwhile() {
        let client = Client::test(1);
        let max = InFlightMax { requests: 1, bytes: 100 };
        let mut waiting = Waiting::new(GroupId::GLOBAL);
        let id = CommandId { session: SessionId(1), sequence: 1 };
        waiting.add_update(id, client.admit(1, 60, Kind::Update, max).await.unwrap());
        assert!(client.admit(2, 60, Kind::Update, max).await.is_none());
        drop(client.admit(3, 60, Kind::Other, max).await.unwrap());
        assert_eq!(waiting.forget_old(Instant::now()), []);
        assert_eq!(waiting.forget_old(Instant::now() + TICKET_AGE_MAX), [id]);
        let told = client.taken();
        assert!(matches!(told[..], [ToClient::Reply { request: 1, body: Reply::Unavailable { .. } }]), "{told:?}");
        assert!(client.admit(4, 60, Kind::Update, max).await.is_some());
    }
}
