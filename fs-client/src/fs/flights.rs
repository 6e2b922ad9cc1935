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
    /// What its asker had seen of the inode's home: it may answer who has seen no more.
    seen: LogIndex,
    answer: watch::Receiver<Answer>,
}

impl Flights {
    /// Asks, or waits for the answer to the same question.
    pub async fn fly(&self, fs: &Fs, node: NodeRef) -> FsResult<Arc<Attr>> {
        let seen = fs.volume.cache().seen(node.home);
        let (sender, receiver) = watch::channel(None);
        let joined = {
            let mut flying = self.flying.lock();
            match flying.get(&node.ino) {
                Some(flight) if flight.seen >= seen => Some(flight.answer.clone()),
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
    seen: LogIndex,
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
