//! Request ids over a channel: pipelined calls with deadlines, and events between the replies.
//!
//! Reading stays with the caller, so that replies and events are handled in the one order in which they came:
//! ```text
//! let (id, reply) = calls.begin()?;
//! sender.send(Message::request(id, body).encode()).await?;
//! // the reading task: for each frame, Message::decode
//! //   Reply{id, body} => calls.complete(id, body), Event{body} => apply
//! let body = reply.within(timeout).await?;
//! ```

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::{Error, Result};

/// Matches a reply to its request within one channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// One frame of a request-reply protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// Wants a reply.
    Request {
        /// Chosen by the sender.
        id: RequestId,
        /// The request.
        body: Bytes,
    },
    /// Answers a request.
    Reply {
        /// As in the request.
        id: RequestId,
        /// The answer.
        body: Bytes,
    },
    /// Wants no reply.
    Event {
        /// The event.
        body: Bytes,
    },
}

const REQUEST: u8 = 0;
const REPLY: u8 = 1;
const EVENT: u8 = 2;

impl Message {
    /// The frame to send.
    pub fn encode(&self) -> Bytes {
        let (tag, id, body) = match self {
            Message::Request { id, body } => (REQUEST, Some(id), body),
            Message::Reply { id, body } => (REPLY, Some(id), body),
            Message::Event { body } => (EVENT, None, body),
        };
        let mut frame = BytesMut::with_capacity(9 + body.len());
        frame.put_u8(tag);
        if let Some(id) = id {
            frame.put_u64_le(id.0);
        }
        frame.extend_from_slice(body);
        frame.freeze()
    }

    /// Reads a frame; the body shares its memory.
    pub fn decode(mut frame: Bytes) -> Result<Self> {
        let tag = frame.try_get_u8().map_err(|_| Error::Decode("empty message".into()))?;
        let mut id = || frame.try_get_u64_le().map(RequestId).map_err(|_| Error::Decode("message without id".into()));
        Ok(match tag {
            REQUEST => Message::Request { id: id()?, body: frame },
            REPLY => Message::Reply { id: id()?, body: frame },
            EVENT => Message::Event { body: frame },
            other => return Err(Error::Decode(format!("message of unknown sort {other}"))),
        })
    }
}

/// Requests that wait for their replies. `T` is what a reply is, after decoding if the reader decodes.
#[derive(Debug)]
pub struct Calls<T> {
    state: Arc<Mutex<State<T>>>,
    waiting_max: usize,
}

#[derive(Debug)]
struct State<T> {
    next: u64,
    waiting: BTreeMap<RequestId, oneshot::Sender<T>>,
    failed: Option<Arc<str>>,
}

/// The reply to come. Dropping it gives up the request's place.
#[derive(Debug)]
pub struct Reply<T> {
    id: RequestId,
    receiver: oneshot::Receiver<T>,
    state: Arc<Mutex<State<T>>>,
}

impl<T> Clone for Calls<T> {
    fn clone(&self) -> Self {
        Calls { state: self.state.clone(), waiting_max: self.waiting_max }
    }
}

impl<T> Calls<T> {
    /// At most `waiting_max` requests at once.
    pub fn new(waiting_max: usize) -> Self {
        let state = State { next: 1, waiting: BTreeMap::new(), failed: None };
        Calls { state: Arc::new(Mutex::new(state)), waiting_max }
    }

    /// An id for a new request, and its reply.
    pub fn begin(&self) -> Result<(RequestId, Reply<T>)> {
        let mut state = self.state.lock();
        if let Some(reason) = &state.failed {
            return Err(Error::Lost(reason.to_string()));
        }
        if state.waiting.len() >= self.waiting_max {
            return Err(Error::Full("the set of waiting requests"));
        }
        let id = RequestId(state.next);
        state.next += 1;
        let (sender, receiver) = oneshot::channel();
        state.waiting.insert(id, sender);
        drop(state);
        Ok((id, Reply { id, receiver, state: self.state.clone() }))
    }

    /// Hands over a reply; false if nobody waits for it any more.
    pub fn complete(&self, id: RequestId, reply: T) -> bool {
        let sender = self.state.lock().waiting.remove(&id);
        sender.is_some_and(|sender| sender.send(reply).is_ok())
    }

    /// The channel is gone: all requests fail, and new ones too.
    pub fn fail(&self, reason: &str) {
        let mut state = self.state.lock();
        state.failed.get_or_insert_with(|| reason.into());
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        drop(waiting);
    }

    /// Requests without a reply so far.
    pub fn waiting(&self) -> usize {
        self.state.lock().waiting.len()
    }
}

impl<T> Reply<T> {
    /// Waits for the reply.
    pub async fn within(mut self, timeout: Duration) -> Result<T> {
        let begun = Instant::now();
        match tokio::time::timeout(timeout, &mut self.receiver).await {
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(_)) => {
                let state = self.state.lock();
                Err(Error::Lost(state.failed.as_deref().unwrap_or("the reply was given up").to_owned()))
            }
            Err(_) => Err(Error::Timeout { elapsed_ms: begun.elapsed().as_millis() as u64 }),
        }
    }

    /// The request's id.
    pub fn id(&self) -> RequestId {
        self.id
    }
}

impl<T> Drop for Reply<T> {
    fn drop(&mut self) {
        self.state.lock().waiting.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn message_round_trips_and_golden_bytes_hold() {
        let body = Bytes::from_static(b"x");
        let request = Message::Request { id: RequestId(258), body: body.clone() };
        assert_eq!(&request.encode()[..], b"\x00\x02\x01\0\0\0\0\0\0x");
        for message in
            [request, Message::Reply { id: RequestId(u64::MAX), body: body.clone() }, Message::Event { body }]
        {
            assert_eq!(Message::decode(message.encode()).unwrap(), message);
        }
    }

    #[test]
    fn reply_nobody_waits_for_is_not_taken() {
        let calls = Calls::<u8>::new(2);
        let (id, reply) = calls.begin().unwrap();
        drop(reply);
        assert!(!calls.complete(id, 1) && !calls.complete(RequestId(99), 1));
        assert_eq!(calls.waiting(), 0);
    }

    proptest! {
        #[test]
        fn message_of_random_bytes_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            let whole = Bytes::from(bytes);
            if let Ok(message) = Message::decode(whole.clone()) {
                prop_assert_eq!(message.encode(), whole);
            }
        }
    }
}
