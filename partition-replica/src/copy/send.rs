//! The sender's side.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc;

use bytes::{BufMut, Bytes, BytesMut};
use multicast::Snapshot;
use multicast::ids::{GroupId, Incarnation, LogIndex};
use net::{Endpoint, FrameSender, codec};

use super::{CHUNK_BYTES, COPY_CHANNEL, Copies, FRAME_BYTES_MAX, Guard, ToReceiver, ToSender, VERSION};
use crate::config::NodeInfo;
use crate::group::mailbox::{Input, Mailbox};
use crate::storage::state::{CopiedRows, GroupState};

/// What is to be copied where.
pub struct Sending {
    /// Of which group.
    pub group: GroupId,
    /// The receiver's node.
    pub to: NodeInfo,
    /// Its disk.
    pub incarnation: Incarnation,
    /// Where in the log the state stands now.
    pub snapshot: Snapshot,
    /// The state.
    pub state: GroupState,
    /// The sender's replica, which hears how it ended.
    pub mailbox: Arc<Mailbox>,
    /// This node's.
    pub endpoint: Endpoint,
    /// The network's runtime.
    pub runtime: tokio::runtime::Handle,
}

/// Begins a copy; returns once the state may change again. How it ends comes as [`Input::CopySent`]. False if it was not
/// begun.
pub fn send(copies: &Arc<Copies>, sending: Sending) -> bool {
    let Some(guard) = copies.begin(sending.group, sending.to.number, true) else { return false };
    let (taken, is_taken) = mpsc::channel();
    let name = format!("copy-to-{}", sending.to.number);
    let spawned = copies.spawn(name, move || run(&sending, &guard, taken));
    if let Err(error) = &spawned {
        tracing::warn!(%error, "a copy of a state was not begun");
    }
    // Either way: when the thread has the state, or has failed.
    let _ = is_taken.recv();
    spawned.is_ok()
}

fn run(sending: &Sending, guard: &Guard, taken: mpsc::Sender<()>) {
    let (group, to) = (sending.group, sending.to.number);
    let transfer = async {
        tokio::select! {
            sent = transfer(sending, guard, taken) => sent,
            () = guard.copies.cancelled() => Err("the node is stopping".to_owned()),
        }
    };
    let installed = match sending.runtime.block_on(transfer) {
        Ok(index) => {
            tracing::info!(%group, %to, index = index.0, "a copy of the state is in place");
            Some(index)
        }
        Err(problem) => {
            tracing::warn!(%group, %to, problem, "a copy of the state did not get there");
            None
        }
    };
    sending.mailbox.push(Input::CopySent { to, installed });
}

async fn transfer(sending: &Sending, guard: &Guard, taken: mpsc::Sender<()>) -> Result<LogIndex, String> {
    let index = sending.snapshot.entry.index;
    let (group, to) = (sending.group, &sending.to);
    tracing::info!(%group, to = %to.number, index = index.0, "sending a copy of the state");
    let state = &sending.state;
    let snapshot = state.noted(state.snapshot()).map_err(text)?;
    let charter = state.noted(state.charter()).map_err(text)?.ok_or("the group has not been founded here")?;
    if state.noted(state.applied_index()).map_err(text)? != index {
        return Err("the state is not where its replica is".into());
    }
    drop(taken);
    let rows = state.rows_estimate();
    guard.progress.rows_expected.store(rows, Ordering::Relaxed);
    let address = tokio::net::lookup_host(&to.address).await.map_err(text)?.next().ok_or("no such address")?;
    let connection = sending.endpoint.connect(address, &to.name).await.map_err(text)?;
    let (sender, mut receiver) = connection.open(COPY_CHANNEL).await.map_err(text)?;
    let (incarnation, snapshot_bytes) = (sending.incarnation, sending.snapshot.encode());
    let begin = ToReceiver::Begin { group, incarnation, snapshot: snapshot_bytes, charter: charter.into(), rows };
    say(&sender, &begin).await?;
    // What cannot be read ends this node; else the group would ask it for the same copy again and again.
    let all_rows = Box::new(snapshot.all_rows().map(|row| state.noted(row)));
    let sent = send_rows(&sender, all_rows, guard);
    let answer = async { receiver.recv().await.map_err(text)?.ok_or_else(|| "it ended the channel".to_owned()) };
    tokio::pin!(answer);
    // It may refuse at any time.
    let answer = tokio::select! {
        sent = sent => { sent?; answer.await? }
        early = &mut answer => early?,
    };
    connection.close("done");
    match codec::decode(VERSION, &answer, FRAME_BYTES_MAX).map_err(text)? {
        ToSender::Installed { index: found } if found == index => Ok(index),
        ToSender::Installed { .. } => Err("it has installed something else".into()),
        ToSender::Refused { why } => Err(why),
    }
}

async fn send_rows(sender: &FrameSender, rows: CopiedRows<'_>, guard: &Guard) -> Result<(), String> {
    let (mut chunk, mut in_chunk, mut count, mut all) = (BytesMut::new(), 0, 0, 0);
    let mut rows = rows.peekable();
    while let Some(row) = rows.next() {
        let (key, value) = row.map_err(text)?;
        for part in [&key, &value] {
            chunk.put_u32_le(u32::try_from(part.len()).map_err(text)?);
        }
        chunk.put_slice(&key);
        chunk.put_slice(&value);
        in_chunk += 1;
        if chunk.len() < CHUNK_BYTES && rows.peek().is_some() {
            continue;
        }
        let rows = chunk.split().freeze();
        all = crc32c::crc32c_append(all, &rows);
        let (crc, len) = (crc32c::crc32c(&rows), rows.len());
        say(sender, &ToReceiver::Rows { crc, rows }).await?;
        guard.progress.add(in_chunk, len);
        count += std::mem::take(&mut in_chunk);
        // The answer, and the end of the node, are looked for in between.
        tokio::task::yield_now().await;
    }
    say(sender, &ToReceiver::End { rows: count, crc: all }).await
}

async fn say(sender: &FrameSender, message: &ToReceiver) -> Result<(), String> {
    let frame: Bytes = codec::encode(VERSION, message).map_err(text)?;
    sender.send(frame).await.map_err(text)
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}
