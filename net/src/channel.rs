//! One bidirectional stream of frames.
//!
//! Waking a sleeping thread costs more than anything else here, so a channel wakes its writer once for a
//! whole batch: senders append to a queue, the writer takes all of it and hands it to QUIC in one write.

use std::{collections::VecDeque, mem, sync::Arc};

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use quinn::{ReadError, RecvStream, SendStream, WriteError};
use tokio::sync::Notify;

use crate::{
    Error, Fingerprint, Result,
    frame::{self, Decoder},
    hello::{self, HELLO_LEN},
};

/// Chunks taken from the stream at once; each is a datagram's worth.
const READ_CHUNKS: usize = 32;

#[derive(Clone, Copy, Debug)]
pub(crate) struct ChannelLimits {
    pub(crate) frame_len_bytes_max: usize,
    pub(crate) queue_frames_max: usize,
    pub(crate) queue_bytes_max: usize,
}

/// Why a frame was not queued.
#[derive(Debug, PartialEq, Eq)]
pub enum TrySendError {
    /// The queue is full; the frame is handed back.
    Full(Bytes),
    /// The frame exceeds the limit.
    TooLong,
    /// The channel is gone.
    Closed,
}

pub(crate) enum Refused {
    Full(Bytes),
    TooLong,
    Closed(Bytes),
}

/// The sending half of a channel. Clones share one queue and keep its order. When the last clone is dropped,
/// what is queued is still sent and the peer then sees the end.
#[derive(Debug)]
pub struct FrameSender {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    queue: Mutex<Queue>,
    work: Notify,
    space: Notify,
    limits: ChannelLimits,
}

#[derive(Debug)]
struct Queue {
    frames: Vec<Bytes>,
    /// Queued or being written.
    frames_held: usize,
    bytes_held: usize,
    writer_idle: bool,
    waiting: usize,
    senders: usize,
    closed: Option<Arc<str>>,
}

impl FrameSender {
    pub(crate) fn spawn(stream: SendStream, first: Bytes, limits: ChannelLimits) -> Self {
        let queue = Queue {
            frames: Vec::new(),
            frames_held: 0,
            bytes_held: 0,
            writer_idle: false,
            waiting: 0,
            senders: 1,
            closed: None,
        };
        let shared = Arc::new(Shared { queue: Mutex::new(queue), work: Notify::new(), space: Notify::new(), limits });
        tokio::spawn(write(shared.clone(), stream, first));
        FrameSender { shared }
    }

    /// Queues a frame, waiting for space. Frames of one task keep their order. An error means that the
    /// channel is gone or the frame too long; success does not mean that the peer got it.
    pub async fn send(&self, frame: Bytes) -> Result<()> {
        let mut frame = frame;
        loop {
            frame = match self.try_send(frame) {
                Ok(()) => return Ok(()),
                Err(TrySendError::Full(frame)) => frame,
                Err(TrySendError::TooLong) => return Err(self.too_long()),
                Err(TrySendError::Closed) => return Err(self.lost()),
            };
            let space = self.shared.space.notified();
            {
                let mut queue = self.shared.queue.lock();
                if queue.has_space(&self.shared.limits, frame.len()) || queue.closed.is_some() {
                    continue;
                }
                queue.waiting += 1;
            }
            // Created before the check under the lock, so a wake-up in between is not missed.
            space.await;
        }
    }

    /// Queues a frame if there is space. Never waits, and may be called from any thread.
    pub fn try_send(&self, frame: Bytes) -> Result<(), TrySendError> {
        self.offer(frame).map_err(|refused| match refused {
            Refused::Full(frame) => TrySendError::Full(frame),
            Refused::TooLong => TrySendError::TooLong,
            Refused::Closed(_) => TrySendError::Closed,
        })
    }

    /// As [`FrameSender::try_send`], but also hands the frame back if the channel is gone.
    pub(crate) fn offer(&self, frame: Bytes) -> Result<(), Refused> {
        let limits = &self.shared.limits;
        if frame.len() > limits.frame_len_bytes_max {
            return Err(Refused::TooLong);
        }
        let mut queue = self.shared.queue.lock();
        if queue.closed.is_some() {
            return Err(Refused::Closed(frame));
        }
        if !queue.has_space(limits, frame.len()) {
            return Err(Refused::Full(frame));
        }
        queue.frames_held += 1;
        queue.bytes_held += frame.len();
        queue.frames.push(frame);
        let wake = mem::replace(&mut queue.writer_idle, false);
        drop(queue);
        if wake {
            self.shared.work.notify_one();
        }
        Ok(())
    }

    /// Sends nothing more after what is queued; the peer then sees the end.
    pub fn finish(&self) {
        self.shared.close("finished");
        self.shared.work.notify_one();
    }

    /// Whether the channel is gone.
    pub fn is_closed(&self) -> bool {
        self.shared.queue.lock().closed.is_some()
    }

    /// Frames and bytes queued or being written.
    pub fn queued(&self) -> (usize, usize) {
        let queue = self.shared.queue.lock();
        (queue.frames_held, queue.bytes_held)
    }

    fn too_long(&self) -> Error {
        let len_bytes_max = self.shared.limits.frame_len_bytes_max;
        Error::FrameTooLong { len_bytes: len_bytes_max + 1, len_bytes_max }
    }

    fn lost(&self) -> Error {
        let queue = self.shared.queue.lock();
        Error::Lost(queue.closed.as_deref().unwrap_or("closed").to_owned())
    }
}

impl Clone for FrameSender {
    fn clone(&self) -> Self {
        self.shared.queue.lock().senders += 1;
        FrameSender { shared: self.shared.clone() }
    }
}

impl Drop for FrameSender {
    fn drop(&mut self) {
        let mut queue = self.shared.queue.lock();
        queue.senders -= 1;
        let last = queue.senders == 0;
        drop(queue);
        if last {
            self.shared.work.notify_one();
        }
    }
}

impl Queue {
    fn has_space(&self, limits: &ChannelLimits, len: usize) -> bool {
        // A frame longer than the whole queue may pass alone.
        self.frames_held == 0
            || (self.frames_held < limits.queue_frames_max && self.bytes_held + len <= limits.queue_bytes_max)
    }
}

impl Shared {
    fn close(&self, reason: &str) {
        let mut queue = self.queue.lock();
        queue.closed.get_or_insert_with(|| reason.into());
        drop(queue);
        self.space.notify_waiters();
    }
}

enum Work {
    Write(Vec<Bytes>),
    Wait,
    Finish,
}

/// The writer task of a channel.
async fn write(shared: Arc<Shared>, mut stream: SendStream, first: Bytes) {
    let result = write_batches(&shared, &mut stream, first).await;
    match result {
        Ok(()) => {
            let _ = stream.finish();
            shared.close("finished");
        }
        Err(error) => shared.close(&error.to_string()),
    }
    let mut queue = shared.queue.lock();
    queue.frames = Vec::new();
    queue.frames_held = 0;
    queue.bytes_held = 0;
}

async fn write_batches(shared: &Shared, stream: &mut SendStream, first: Bytes) -> Result<(), WriteError> {
    let stopped = stream.stopped();
    tokio::pin!(stopped);
    stream.write_all_chunks(&mut [first]).await?;
    let (mut buffer, mut chunks, mut spare) = (BytesMut::new(), Vec::new(), Vec::new());
    loop {
        match next_work(shared, &mut spare) {
            Work::Write(frames) => {
                let bytes: usize = frames.iter().map(Bytes::len).sum();
                frame::coalesce(&frames, &mut buffer, &mut chunks);
                stream.write_all_chunks(&mut chunks).await?;
                chunks.clear();
                spare = release(shared, frames, bytes);
            }
            Work::Wait => tokio::select! {
                // Whoever else is about to send something gets the chance to: one packet costs more than all they say.
                () = shared.work.notified() => tokio::task::yield_now().await,
                stopped = &mut stopped => {
                    return Err(stopped.map_or_else(WriteError::from, |code| {
                        WriteError::Stopped(code.unwrap_or_default())
                    }));
                }
            },
            Work::Finish => return Ok(()),
        }
    }
}

fn next_work(shared: &Shared, spare: &mut Vec<Bytes>) -> Work {
    let mut queue = shared.queue.lock();
    if !queue.frames.is_empty() {
        return Work::Write(mem::replace(&mut queue.frames, mem::take(spare)));
    }
    if queue.senders == 0 || queue.closed.is_some() {
        return Work::Finish;
    }
    queue.writer_idle = true;
    Work::Wait
}

fn release(shared: &Shared, mut frames: Vec<Bytes>, bytes: usize) -> Vec<Bytes> {
    let mut queue = shared.queue.lock();
    queue.frames_held -= frames.len();
    queue.bytes_held -= bytes;
    let wake = mem::take(&mut queue.waiting) > 0;
    drop(queue);
    if wake {
        shared.space.notify_waiters();
    }
    frames.clear();
    frames
}

/// The receiving half of a channel. Dropping it tells the peer to stop sending.
#[derive(Debug)]
pub struct FrameReceiver {
    stream: RecvStream,
    decoder: Decoder,
    ready: VecDeque<Bytes>,
    /// The answer to our hello, until it has come.
    hello: Option<Hello>,
}

#[derive(Debug)]
struct Hello {
    expected: Fingerprint,
    received: BytesMut,
}

impl std::fmt::Debug for Decoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Decoder")
    }
}

impl FrameReceiver {
    pub(crate) fn new(stream: RecvStream, limits: ChannelLimits, expect_hello: Option<Fingerprint>) -> Self {
        FrameReceiver {
            stream,
            decoder: Decoder::new(limits.frame_len_bytes_max),
            ready: VecDeque::new(),
            hello: expect_hello.map(|expected| Hello { expected, received: BytesMut::new() }),
        }
    }

    /// Takes no longer frames than this, whatever the endpoint would. Call it before the first frame is received.
    pub fn limit_frames(&mut self, len_bytes_max: usize) {
        self.decoder.limit(len_bytes_max);
    }

    /// The next frame; `None` when the peer has finished. Safe to cancel. A frame may share memory with its
    /// neighbours: copy what is to be kept for long.
    pub async fn recv(&mut self) -> Result<Option<Bytes>> {
        loop {
            if let Some(frame) = self.ready.pop_front() {
                return Ok(Some(frame));
            }
            if !self.fill().await? {
                return Ok(None);
            }
        }
    }

    /// Waits for at least one frame and appends all that are there, up to `count_max`; returns how many, 0
    /// when the peer has finished. One wake-up for a batch. Safe to cancel.
    pub async fn recv_many(&mut self, frames: &mut Vec<Bytes>, count_max: usize) -> Result<usize> {
        while self.ready.is_empty() {
            if !self.fill().await? {
                return Ok(0);
            }
        }
        let count = self.ready.len().min(count_max);
        frames.extend(self.ready.drain(..count));
        Ok(count)
    }

    /// A frame that has been read already, without waiting.
    pub fn try_recv(&mut self) -> Option<Bytes> {
        self.ready.pop_front()
    }

    /// Waits until the acceptor has answered the hello: from then on it is known to have taken the channel.
    pub(crate) async fn established(&mut self) -> Result<()> {
        while self.hello.is_some() {
            if !self.fill().await? {
                return Err(Error::Protocol("the channel ended before its hello".into()));
            }
        }
        Ok(())
    }

    /// Reads what there is, at least one chunk; false at the end of the stream.
    async fn fill(&mut self) -> Result<bool> {
        let mut chunks: [Bytes; READ_CHUNKS] = Default::default();
        let read = self.stream.read_chunks(&mut chunks).await.map_err(|error| match error {
            ReadError::Reset(code) => Error::Lost(format!("channel reset by the peer, code {code}")),
            other => Error::Lost(other.to_string()),
        })?;
        let Some(count) = read else {
            let whole = self.decoder.is_between_frames() && self.hello.is_none();
            return if whole { Ok(false) } else { Err(Error::Protocol("the stream ended inside a frame".into())) };
        };
        for chunk in &mut chunks[..count] {
            let mut chunk = mem::take(chunk);
            if let Some(hello) = &mut self.hello {
                let missing = (HELLO_LEN - hello.received.len()).min(chunk.len());
                hello.received.extend_from_slice(&chunk.split_to(missing));
                let Ok(whole) = <&[u8; HELLO_LEN]>::try_from(&hello.received[..]) else { continue };
                hello::decode(whole, &hello.expected)?;
                self.hello = None;
            }
            self.decoder.push(chunk, &mut self.ready)?;
        }
        Ok(true)
    }
}
