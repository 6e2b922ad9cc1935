//! Which clients may cache what of a group: whoever has read a key is told when it changes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use metadata::protocol::{Event, ToClient};
use metadata::types::InodeId;
use multicast::command::Key;
use multicast::ids::{GroupId, LogIndex, SessionId};

use crate::server::client::Client;

/// The subscribers of one group on this node.
///
/// Invariant: as long as a session is subscribed, every key that it was told and that has not been invalidated since is in
/// here. So whatever takes keys out tells the session.
pub struct Interest {
    group: GroupId,
    subscribers: BTreeMap<SessionId, Subscriber>,
    /// Who has read what.
    keys: BTreeSet<(Key, SessionId)>,
    keys_max: usize,
}

struct Subscriber {
    client: Arc<Client>,
    /// What it has read: the same as in [`Interest::keys`].
    keys: BTreeSet<Key>,
}

/// Sessions of one connection with a stream of one group. A mount has one.
const SUBSCRIPTIONS_MAX: usize = 16;

impl Interest {
    /// Nobody yet. At most `keys_max` keys over all sessions.
    pub fn new(group: GroupId, keys_max: usize) -> Interest {
        Interest { group, subscribers: BTreeMap::new(), keys: BTreeSet::new(), keys_max }
    }

    /// Subscribers.
    pub fn subscribers(&self) -> usize {
        self.subscribers.len()
    }

    /// Keys noted.
    pub fn keys(&self) -> usize {
        self.keys.len()
    }

    /// Starts a session's stream. What an earlier connection of it had noted is forgotten: the new one begins empty. False if
    /// the connection has too many.
    pub fn subscribe(&mut self, session: SessionId, client: Arc<Client>) -> bool {
        let others = |(known, subscriber): &(&SessionId, &Subscriber)| {
            **known != session && subscriber.client.number() == client.number()
        };
        if self.subscribers.iter().filter(others).count() >= SUBSCRIPTIONS_MAX {
            return false;
        }
        self.forget(session);
        self.subscribers.insert(session, Subscriber { client, keys: BTreeSet::new() });
        true
    }

    /// Ends the streams of a connection.
    pub fn unsubscribe(&mut self, client: &Client) {
        let ended: Vec<SessionId> = self
            .subscribers
            .iter()
            .filter(|(_, subscriber)| subscriber.client.number() == client.number())
            .map(|(&session, _)| session)
            .collect();
        for session in ended {
            self.forget(session);
            self.subscribers.remove(&session);
        }
    }

    /// True if the session's stream runs over that connection.
    pub fn is_subscribed(&self, session: SessionId, client: &Client) -> bool {
        self.subscribers.get(&session).is_some_and(|subscriber| subscriber.client.number() == client.number())
    }

    /// Notes that a session has read these keys, if it is subscribed through that connection. `applied` is what it reads.
    pub fn note(&mut self, session: SessionId, client: &Client, keys: &[Key], applied: LogIndex) -> bool {
        if !self.is_subscribed(session, client) {
            return false;
        }
        // Before the keys are noted: their answer comes behind the event and stays cached.
        if self.keys.len() + keys.len() > self.keys_max {
            self.shed(applied);
        }
        let Some(subscriber) = self.subscribers.get_mut(&session) else { return false };
        for &key in keys {
            if self.keys.insert((key, session)) {
                subscriber.keys.insert(key);
            }
        }
        true
    }

    /// Tells all subscribers that the log has been applied up to `index`, and what of theirs has changed.
    pub fn publish(&mut self, index: LogIndex, changed: &[Key], orphans: &[InodeId]) {
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
        for (session, subscriber) in &mut self.subscribers {
            let invalidated = invalidated.remove(session).unwrap_or_default();
            for key in &invalidated {
                subscriber.keys.remove(key);
            }
            let orphans = orphans.to_vec();
            let event = Event { group: self.group, index, invalidated, invalidate_all: false, orphans };
            subscriber.client.push(&ToClient::Event(event));
        }
    }

    /// Makes room: the session with the most keys drops all that it has cached.
    fn shed(&mut self, applied: LogIndex) {
        let Some((&session, _)) = self.subscribers.iter().max_by_key(|(_, subscriber)| subscriber.keys.len()) else {
            return;
        };
        self.forget(session);
        if let Some(subscriber) = self.subscribers.get_mut(&session) {
            let (invalidated, orphans) = (Vec::new(), Vec::new());
            let event = Event { group: self.group, index: applied, invalidated, invalidate_all: true, orphans };
            subscriber.client.push(&ToClient::Event(event));
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
    #![allow(clippy::unwrap_used)]
    use super::*;

    const GROUP: GroupId = GroupId(1);

    fn events(client: &Client) -> Vec<(u64, Vec<Key>, bool)> {
        let event = |message| match message {
            ToClient::Event(event) => (event.index.0, event.invalidated, event.invalidate_all),
            ToClient::Reply { .. } => panic!("no reply was asked for"),
        };
        client.taken().into_iter().map(event).collect()
    }

    #[test]
    fn subscriber_is_told_once_of_a_key_that_it_read_and_always_of_the_index() {
        let (reader, other) = (Client::test(1), Client::test(2));
        let mut interest = Interest::new(GROUP, 100);
        interest.subscribe(SessionId(1), reader.clone());
        interest.subscribe(SessionId(2), other.clone());
        interest.note(SessionId(1), &reader, &[Key(7), Key(8)], LogIndex(0));
        interest.publish(LogIndex(1), &[Key(7), Key(9), Key(7)], &[]);
        interest.publish(LogIndex(2), &[Key(7)], &[]);
        assert_eq!(events(&reader), [(1, vec![Key(7)], false), (2, vec![], false)]);
        assert_eq!(events(&other), [(1, vec![], false), (2, vec![], false)]);
        assert_eq!(interest.keys(), 1);
    }

    #[test]
    fn session_is_noted_only_through_the_connection_that_subscribed() {
        let (reader, impostor) = (Client::test(1), Client::test(2));
        let mut interest = Interest::new(GROUP, 100);
        interest.subscribe(SessionId(1), reader.clone());
        interest.note(SessionId(1), &impostor, &[Key(7)], LogIndex(0));
        assert_eq!(interest.keys(), 0);
        interest.note(SessionId(1), &reader, &[Key(7)], LogIndex(0));
        interest.unsubscribe(&impostor);
        assert_eq!((interest.keys(), interest.subscribers()), (1, 1));
        interest.unsubscribe(&reader);
        assert_eq!((interest.keys(), interest.subscribers()), (0, 0));
    }

    #[test]
    fn connection_subscribes_only_so_many_sessions_and_any_of_them_again() {
        let (client, other) = (Client::test(1), Client::test(2));
        let mut interest = Interest::new(GROUP, 100);
        let last = SUBSCRIPTIONS_MAX as u64;
        assert!((0..last).all(|session| interest.subscribe(SessionId(session), client.clone())));
        assert!(!interest.subscribe(SessionId(last), client.clone()));
        assert!(interest.subscribe(SessionId(0), client.clone()) && interest.subscribe(SessionId(last), other.clone()));
        interest.note(SessionId(0), &client, &[Key(1), Key(2)], LogIndex(0));
        interest.note(SessionId(last), &other, &[Key(1)], LogIndex(0));
        interest.unsubscribe(&client);
        assert_eq!((interest.subscribers(), interest.keys()), (1, 1));
    }

    #[test]
    fn keys_beyond_the_bound_make_the_greediest_session_drop_its_cache() {
        let (greedy, modest) = (Client::test(1), Client::test(2));
        let mut interest = Interest::new(GROUP, 10);
        interest.subscribe(SessionId(1), greedy.clone());
        interest.subscribe(SessionId(2), modest.clone());
        interest.note(SessionId(2), &modest, &[Key(1)], LogIndex(5));
        for key in 0..10 {
            interest.note(SessionId(1), &greedy, &[Key(key)], LogIndex(5));
        }
        assert_eq!(events(&greedy), [(5, vec![], true)]);
        assert_eq!(events(&modest), []);
        // The key whose answer comes behind the event is noted still.
        interest.publish(LogIndex(6), &[Key(9), Key(0)], &[]);
        assert_eq!(events(&greedy), [(6, vec![Key(9)], false)]);
    }
}
