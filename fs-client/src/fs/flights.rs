//! Many threads that ask for the same attributes at once share one question.

use std::collections::HashMap;
use std::sync::Arc;

use metadata::types::{Attr, InodeId, NodeRef};
use multicast::ids::LogIndex;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::{Fs, FsResult};

type Answer = Option<FsResult<Arc<Attr>>>;

/// Questions under way; as many as callers at most.
#[derive(Debug, Default)]
pub struct Flights {
    flying: Mutex<HashMap<InodeId, Flight>>,
}

#[derive(Debug)]
struct Flight {
    /// What its asker had seen.
    seen: Seen,
    answer: watch::Receiver<Answer>,
}

/// What an asker has seen of an inode's home: the answer may be given to whoever has seen no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    index: LogIndex,
    /// Effects, elsewhere, of what was prepared there up to here. The log may not tell of them yet.
    effects: LogIndex,
}

impl Seen {
    fn covers(self, other: Seen) -> bool {
        self.index >= other.index && self.effects >= other.effects
    }
}

impl Flights {
    /// Asks, or waits for the answer to the same question.
    pub async fn fly(&self, fs: &Fs, node: NodeRef) -> FsResult<Arc<Attr>> {
        let cache = fs.volume.cache();
        let seen = Seen { index: cache.seen(node.home), effects: cache.effects(node.home) };
        let (sender, receiver) = watch::channel(None);
        let joined = {
            let mut flying = self.flying.lock();
            match flying.get(&node.ino) {
                Some(flight) if flight.seen.covers(seen) => Some(flight.answer.clone()),
                _ => {
                    flying.insert(node.ino, Flight { seen, answer: receiver });
                    None
                }
            }
        };
        if let Some(mut answer) = joined {
            let shared = answer.wait_for(Option::is_some).await.ok().and_then(|answer| answer.clone());
            return match shared {
                Some(answer) => answer,
                // The asker was cancelled.
                None => fs.ask_attr(node).await,
            };
        }
        let landing = Landing { flights: self, ino: node.ino, seen };
        let answer = fs.ask_attr(node).await;
        drop(landing);
        sender.send_replace(Some(answer.clone()));
        answer
    }
}

/// Takes a flight off the board, also when its asker is cancelled.
struct Landing<'a> {
    flights: &'a Flights,
    ino: InodeId,
    seen: Seen,
}

impl Drop for Landing<'_> {
    fn drop(&mut self) {
        let mut flying = self.flights.flying.lock();
        // A newer question may have taken its place.
        if flying.get(&self.ino).is_some_and(|flight| flight.seen == self.seen) {
            flying.remove(&self.ino);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::Duration;

    use metadata::types::FileKind;
    use multicast::ids::{GroupId, VectorClock};

    use super::*;
    use crate::testing::MemCluster;

    #[tokio::test]
    async fn question_from_before_an_effect_was_seen_does_not_answer_who_saw_it() {
        let cluster = MemCluster::new(1);
        let client = cluster.client();
        let fs = Fs::start(client.clone(), &cluster.config(), None);
        let root = NodeRef { ino: InodeId::ROOT, kind: FileKind::Directory, home: GroupId::GLOBAL };
        let (_asker, answer) = watch::channel(None);
        let seen = Seen { index: LogIndex(9), effects: LogIndex(0) };
        fs.attr_flights.flying.lock().insert(root.ino, Flight { seen, answer });
        let fly = || tokio::time::timeout(Duration::from_millis(300), fs.attr_flights.fly(&fs, root));
        assert!(fly().await.is_err(), "shares the question");
        let mut clock = VectorClock::new();
        clock.advance_effects(root.home, LogIndex(3), multicast::ids::SessionId(1));
        client.depend(&clock);
        assert!(fly().await.unwrap().is_ok(), "asks its own");
    }
}
