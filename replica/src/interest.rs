//! Which clients may cache what of a group: whoever has read a key is told when it changes.

use std::collections::{BTreeMap, BTreeSet};

use metadata::protocol::{Event, Executed};
use metadata::types::InodeId;
use multicast::command::Key;
use multicast::ids::{GroupId, LogIndex, SessionId};

use crate::client::Connection;
use crate::front::Front;

/// The subscribers of one group on one node.
///
/// Invariant: as long as a session is subscribed, every key that it was told and that has not been invalidated since is in
/// here. So whatever takes keys out tells the session.
#[derive(Debug)]
pub struct Interest<C> {
    group: GroupId,
    subscribers: BTreeMap<SessionId, Subscriber<C>>,
    /// Who has read what.
    keys: BTreeSet<(Key, SessionId)>,
    keys_max: usize,
}

#[derive(Debug)]
struct Subscriber<C> {
    client: C,
    /// What it has read: the same as in [`Interest::keys`].
    keys: BTreeSet<Key>,
    /// It has asked something since progress was last told to everybody.
    is_active: bool,
    /// It has not been told how far the state is.
    is_behind: bool,
}

/// What an update of a session has done here, and what the session may cache of it: it holds at the end of the step.
#[derive(Clone, Debug)]
pub struct Learned {
    /// Whose update.
    pub session: SessionId,
    /// What it did.
    pub executed: Executed,
    /// Under which keys it is cached.
    pub keys: Vec<Key>,
}

/// Sessions of one connection with a stream of one group. A mount has one.
const SUBSCRIPTIONS_MAX: usize = 16;

/// So long clients that ask nothing wait for news of progress that changes nothing for them. A packet to each of them for
/// each batch would cost the group more than the batch.
pub const PROGRESS_PAUSE_MS: u64 = 20;

impl<C: Connection> Interest<C> {
    /// Nobody yet. At most `keys_max` keys over all sessions.
    #[must_use]
    pub fn new(group: GroupId, keys_max: usize) -> Interest<C> {
        Interest { group, subscribers: BTreeMap::new(), keys: BTreeSet::new(), keys_max }
    }

    /// Subscribers.
    #[must_use]
    pub fn subscribers(&self) -> usize {
        self.subscribers.len()
    }

    /// Keys noted.
    #[must_use]
    pub fn keys(&self) -> usize {
        self.keys.len()
    }

    /// Starts a session's stream. What an earlier connection of it had noted is forgotten: the new one begins empty. False if
    /// the connection has too many.
    pub fn subscribe(&mut self, session: SessionId, client: C) -> bool {
        let others = |(known, subscriber): &(&SessionId, &Subscriber<C>)| {
            **known != session && subscriber.client.number() == client.number()
        };
        if self.subscribers.iter().filter(others).count() >= SUBSCRIPTIONS_MAX {
            return false;
        }
        self.forget(session);
        self.subscribers
            .insert(session, Subscriber { client, keys: BTreeSet::new(), is_active: true, is_behind: false });
        true
    }

    /// Ends the streams of a connection.
    pub fn unsubscribe(&mut self, connection: u64) {
        let ended: Vec<SessionId> = self
            .subscribers
            .iter()
            .filter(|(_, subscriber)| subscriber.client.number() == connection)
            .map(|(&session, _)| session)
            .collect();
        for session in ended {
            self.forget(session);
            self.subscribers.remove(&session);
        }
    }

    /// True if the session's stream runs over that connection.
    #[must_use]
    pub fn is_subscribed(&self, session: SessionId, client: &C) -> bool {
        self.subscribers.get(&session).is_some_and(|subscriber| subscriber.client.number() == client.number())
    }

    /// Notes that a session has read these keys, if it is subscribed through that connection. `applied` is what it reads. Its
    /// answer goes out behind what `tell` is told.
    pub fn note(
        &mut self,
        session: SessionId,
        client: &C,
        keys: &[Key],
        applied: LogIndex,
        tell: &mut impl FnMut(&C, Event),
    ) -> bool {
        if !self.is_subscribed(session, client) {
            return false;
        }
        self.foresee(session, keys, applied, tell);
        let Some(subscriber) = self.subscribers.get_mut(&session) else { return false };
        if std::mem::take(&mut subscriber.is_behind) {
            // Else what it has cached could not be used beside this answer.
            tell(&subscriber.client, Event::quiet(self.group, applied));
        }
        true
    }

    /// Notes these keys for a session that has a stream: another group may tell it what will become of them.
    pub fn foresee(&mut self, session: SessionId, keys: &[Key], applied: LogIndex, tell: &mut impl FnMut(&C, Event)) {
        // Before the keys are noted: their answer comes behind the event and stays cached.
        if self.keys.len() + keys.len() > self.keys_max {
            self.shed(applied, tell);
        }
        let Some(subscriber) = self.subscribers.get_mut(&session) else { return };
        subscriber.is_active = true;
        for &key in keys {
            if self.keys.insert((key, session)) {
                subscriber.keys.insert(key);
            }
        }
    }

    /// An update of the session that another group answers has got its place in this group's log: what the answer says of this
    /// group counts once the session knows that the state has come so far.
    pub fn expect(&mut self, session: SessionId) {
        if let Some(subscriber) = self.subscribers.get_mut(&session) {
            subscriber.is_active = true;
        }
    }

    /// True if the session has a stream.
    #[must_use]
    pub fn has_stream(&self, session: SessionId) -> bool {
        self.subscribers.contains_key(&session)
    }

    /// Tells all subscribers how far the log has been applied, what of theirs has changed, and what it has become where that
    /// was their own doing and there is room to note it.
    pub fn publish(
        &mut self,
        front: &Front,
        changed: &[Key],
        orphans: &[InodeId],
        learned: Vec<Learned>,
        tell: &mut impl FnMut(&C, Event),
    ) {
        if self.subscribers.is_empty() {
            return;
        }
        let mut invalidated: BTreeMap<SessionId, Vec<Key>> = BTreeMap::new();
        for &key in changed {
            let range = (key, SessionId(0))..=(key, SessionId(u64::MAX));
            let readers: Vec<SessionId> = self.keys.range(range).map(|&(_, session)| session).collect();
            for session in readers {
                self.keys.remove(&(key, session));
                invalidated.entry(session).or_default().push(key);
            }
        }
        let mut own: BTreeMap<SessionId, Vec<Learned>> = BTreeMap::new();
        for learned in learned {
            own.entry(learned.session).or_default().push(learned);
        }
        for (session, subscriber) in &mut self.subscribers {
            let invalidated = invalidated.remove(session).unwrap_or_default();
            for key in &invalidated {
                subscriber.keys.remove(key);
            }
            let (orphans, settled) = (orphans.to_vec(), front.settled);
            let mut event = Event { invalidated, orphans, settled, ..Event::quiet(self.group, front.applied) };
            for Learned { executed, keys, .. } in own.remove(session).unwrap_or_default() {
                if self.keys.len() + keys.len() > self.keys_max {
                    continue;
                }
                self.keys.extend(keys.iter().map(|&key| (key, *session)));
                subscriber.keys.extend(keys);
                event.dependencies.clone_from(&front.dependencies);
                event.executed.push(executed);
                subscriber.is_active = true;
            }
            let is_quiet = event.invalidated.is_empty() && event.orphans.is_empty() && event.executed.is_empty();
            subscriber.is_behind = is_quiet && !subscriber.is_active;
            if !subscriber.is_behind {
                tell(&subscriber.client, event);
            }
        }
    }

    /// Tells those who were not told how far the state is; to be called [`PROGRESS_PAUSE_MS`] after [`Interest::publish`]. Who
    /// has asked nothing since the last time needs to know only now and then.
    pub fn tell_progress(&mut self, front: &Front, tell: &mut impl FnMut(&C, Event)) {
        for subscriber in self.subscribers.values_mut() {
            subscriber.is_active = false;
            if std::mem::take(&mut subscriber.is_behind) {
                let event = Event { settled: front.settled, ..Event::quiet(self.group, front.applied) };
                tell(&subscriber.client, event);
            }
        }
    }

    /// There will be no news any more: all drop what they have cached.
    pub fn end(&mut self, index: LogIndex, tell: &mut impl FnMut(&C, Event)) {
        self.keys.clear();
        for Subscriber { client, .. } in std::mem::take(&mut self.subscribers).into_values() {
            tell(&client, Event { invalidate_all: true, ..Event::quiet(self.group, index) });
        }
    }

    /// Makes room: the session with the most keys drops all that it has cached.
    fn shed(&mut self, applied: LogIndex, tell: &mut impl FnMut(&C, Event)) {
        let Some((&session, _)) = self.subscribers.iter().max_by_key(|(_, subscriber)| subscriber.keys.len()) else {
            return;
        };
        self.forget(session);
        if let Some(subscriber) = self.subscribers.get_mut(&session) {
            let event = Event { invalidate_all: true, ..Event::quiet(self.group, applied) };
            tell(&subscriber.client, event);
        }
    }

    fn forget(&mut self, session: SessionId) {
        let Some(subscriber) = self.subscribers.get_mut(&session) else { return };
        for key in std::mem::take(&mut subscriber.keys) {
            self.keys.remove(&(key, session));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::tests::Peer;

    const GROUP: GroupId = GroupId(1);
    const ONE: Peer = Peer(1);
    const TWO: Peer = Peer(2);

    /// What each client was told: index, keys, and whether all of them.
    type Told = Vec<(u64, u64, Vec<Key>, bool)>;

    fn teller(told: &mut Told) -> impl FnMut(&Peer, Event) {
        |client, event| told.push((client.0, event.index.0, event.invalidated, event.invalidate_all))
    }

    fn note(interest: &mut Interest<Peer>, session: u64, client: Peer, keys: &[Key]) -> Told {
        let mut told = Told::new();
        interest.note(SessionId(session), &client, keys, LogIndex(5), &mut teller(&mut told));
        told
    }

    fn publish(interest: &mut Interest<Peer>, index: u64, changed: &[Key]) -> Told {
        let mut told = Told::new();
        let front = Front { applied: LogIndex(index), ..Front::default() };
        interest.publish(&front, changed, &[], Vec::new(), &mut teller(&mut told));
        told
    }

    #[test]
    fn subscriber_is_told_once_of_a_key_that_it_read_and_always_of_the_index() {
        let mut interest = Interest::new(GROUP, 100);
        interest.subscribe(SessionId(1), ONE);
        interest.subscribe(SessionId(2), TWO);
        note(&mut interest, 1, ONE, &[Key(7), Key(8)]);
        let told = publish(&mut interest, 1, &[Key(7), Key(9), Key(7)]);
        assert_eq!(told, [(1, 1, vec![Key(7)], false), (2, 1, vec![], false)]);
        assert_eq!(publish(&mut interest, 2, &[Key(7)]), [(1, 2, vec![], false), (2, 2, vec![], false)]);
        assert_eq!(interest.keys(), 1);
    }

    #[test]
    fn subscriber_that_asks_nothing_hears_of_progress_now_and_then() {
        let mut interest = Interest::new(GROUP, 100);
        interest.subscribe(SessionId(1), ONE);
        interest.subscribe(SessionId(2), TWO);
        note(&mut interest, 1, ONE, &[Key(7)]);
        let progress = |interest: &mut Interest<Peer>, index: u64| {
            let mut told = Told::new();
            let front = Front { applied: LogIndex(index), ..Front::default() };
            interest.tell_progress(&front, &mut teller(&mut told));
            told
        };
        assert_eq!(progress(&mut interest, 1), []);
        assert_eq!(publish(&mut interest, 2, &[]), []);
        // What changes something for it comes at once, and is all that it must know.
        assert_eq!(publish(&mut interest, 3, &[Key(7)]), [(1, 3, vec![Key(7)], false)]);
        assert_eq!(progress(&mut interest, 3), [(2, 3, vec![], false)]);
        assert_eq!(progress(&mut interest, 3), []);
        // Who asks hears everything before the answer, and from then on at once.
        publish(&mut interest, 4, &[]);
        let mut told = Told::new();
        interest.note(SessionId(2), &TWO, &[Key(8)], LogIndex(4), &mut teller(&mut told));
        assert_eq!(told, [(2, 4, vec![], false)]);
        assert_eq!(publish(&mut interest, 5, &[]), [(2, 5, vec![], false)]);
    }

    #[test]
    fn session_whose_update_has_its_place_here_is_told_of_that_at_once() {
        let mut interest = Interest::new(GROUP, 100);
        interest.subscribe(SessionId(1), ONE);
        interest.subscribe(SessionId(2), TWO);
        let front = Front { applied: LogIndex(1), ..Front::default() };
        interest.tell_progress(&front, &mut |_, _| {});
        interest.expect(SessionId(2));
        assert_eq!(publish(&mut interest, 2, &[]), [(2, 2, vec![], false)]);
    }

    #[test]
    fn session_is_noted_only_through_the_connection_that_subscribed() {
        let mut interest = Interest::new(GROUP, 100);
        interest.subscribe(SessionId(1), ONE);
        note(&mut interest, 1, TWO, &[Key(7)]);
        assert_eq!(interest.keys(), 0);
        note(&mut interest, 1, ONE, &[Key(7)]);
        interest.unsubscribe(TWO.0);
        assert_eq!((interest.keys(), interest.subscribers()), (1, 1));
        interest.unsubscribe(ONE.0);
        assert_eq!((interest.keys(), interest.subscribers()), (0, 0));
    }

    #[test]
    fn connection_subscribes_only_so_many_sessions_and_any_of_them_again() {
        let mut interest = Interest::new(GROUP, 100);
        let last = SUBSCRIPTIONS_MAX as u64;
        assert!((0..last).all(|session| interest.subscribe(SessionId(session), ONE)));
        assert!(!interest.subscribe(SessionId(last), ONE));
        assert!(interest.subscribe(SessionId(0), ONE) && interest.subscribe(SessionId(last), TWO));
        note(&mut interest, 0, ONE, &[Key(1), Key(2)]);
        note(&mut interest, last, TWO, &[Key(1)]);
        interest.unsubscribe(ONE.0);
        assert_eq!((interest.subscribers(), interest.keys()), (1, 1));
    }

    #[test]
    fn keys_beyond_the_bound_make_the_greediest_session_drop_its_cache() {
        let mut interest = Interest::new(GROUP, 10);
        interest.subscribe(SessionId(1), ONE);
        interest.subscribe(SessionId(2), TWO);
        assert_eq!(note(&mut interest, 2, TWO, &[Key(1)]), []);
        let told: Told = (0..10).flat_map(|key| note(&mut interest, 1, ONE, &[Key(key)])).collect();
        assert_eq!(told, [(1, 5, vec![], true)]);
        // The key whose answer comes behind the event is noted still.
        let told = publish(&mut interest, 6, &[Key(9), Key(0)]);
        assert_eq!(told, [(1, 6, vec![Key(9)], false), (2, 6, vec![], false)]);
    }
}
