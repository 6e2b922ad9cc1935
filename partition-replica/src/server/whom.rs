//! Whose sessions there are, as their clients have said: for people who look at what waits.

use std::collections::BTreeMap;

use multicast::ids::SessionId;
use parking_lot::Mutex;

use crate::status::UnfinishedStatus;

/// A client that makes up more sessions only pushes out what is known of others.
const SESSIONS_MAX: usize = 16_384;
/// What is kept of the label of a session.
const LABEL_CHARS_MAX: usize = 200;

#[derive(Clone, Debug, Default)]
struct Who {
    /// The name in the certificate.
    client: String,
    label: String,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Whom {
    sessions: Mutex<BTreeMap<SessionId, Who>>,
}

impl Whom {
    /// A session is opened, by that client, which calls itself so. Gives what is kept of that.
    pub fn opens(&self, session: SessionId, client: &str, label: &str) -> String {
        let label: String = label.chars().take(LABEL_CHARS_MAX).collect();
        self.put(session, Who { client: client.to_owned(), label: label.clone() });
        label
    }

    /// A session is that client's. Another node may know more of it.
    pub fn lives(&self, session: SessionId, client: &str) {
        let is_known = self.sessions.lock().contains_key(&session);
        if !is_known {
            self.put(session, Who { client: client.to_owned(), label: String::new() });
        }
    }

    /// Nothing comes of it any more.
    pub fn ends(&self, session: SessionId) {
        self.sessions.lock().remove(&session);
    }

    /// Says for whom these commands are, as far as known.
    pub fn name(&self, commands: &mut [UnfinishedStatus]) {
        let sessions = self.sessions.lock();
        for command in commands {
            let session = u64::from_str_radix(&command.session, 16).ok().map(SessionId);
            let Some(who) = session.and_then(|session| sessions.get(&session)) else { continue };
            command.client = Some(who.client.clone());
            command.label = Some(who.label.clone()).filter(|label| !label.is_empty());
        }
    }

    fn put(&self, session: SessionId, who: Who) {
        let mut sessions = self.sessions.lock();
        if sessions.len() >= SESSIONS_MAX && !sessions.contains_key(&session) {
            sessions.pop_first();
        }
        sessions.insert(session, who);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_is_named_after_its_session_s_client_however_many_there_are() {
        let whom = Whom::default();
        whom.lives(SessionId(0xb), "eu");
        assert_eq!(whom.opens(SessionId(0xa), "us", &"x".repeat(300)).len(), LABEL_CHARS_MAX);
        whom.lives(SessionId(0xa), "us");
        let of = |session: u64| UnfinishedStatus { session: SessionId(session).to_string(), ..Default::default() };
        let mut commands = [of(0xa), of(0xb), of(0xc)];
        whom.name(&mut commands);
        let [a, b, c] = &commands;
        assert_eq!((a.client.as_deref(), a.label.as_deref()), (Some("us"), Some(&*"x".repeat(LABEL_CHARS_MAX))));
        assert_eq!((b.client.as_deref(), b.label.as_deref(), c.client.as_deref()), (Some("eu"), None, None));
        for session in 0..2 * SESSIONS_MAX as u64 {
            whom.lives(SessionId(1 << 40 | session), "many");
        }
        assert_eq!(whom.sessions.lock().len(), SESSIONS_MAX);
    }
}
