//! The receiver's side.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::{Buf, Bytes};
use metadata::namespace::volume;
use multicast::ids::{GroupId, LogIndex, ReplicaId};
use multicast::{OrderState, Snapshot};
use net::{FrameReceiver, Incoming, codec};
use tokio::sync::oneshot;

use super::{FRAME_BYTES_MAX, Guard, ToReceiver, ToSender, VERSION};
use crate::group::mailbox::{Input, Mailbox};
use crate::node::Shared;
use crate::recovery::Charter;
use crate::storage::state::{GroupState, StagedState};

/// A copy that is complete and on disk, beside the state that it is to replace.
pub struct Prepared {
    /// The rows.
    pub staged: StagedState,
    /// The ordering's part of them.
    pub order: OrderState,
}

/// Takes a copy that another node offers.
pub fn accept(incoming: Incoming, from: ReplicaId, shared: &Arc<Shared>) {
    let (node, runtime) = (shared.clone(), tokio::runtime::Handle::current());
    let spawned = shared.copies.spawn(format!("copy-from-{from}"), move || {
        let Incoming { sender, mut receiver, connection, .. } = incoming;
        receiver.limit_frames(FRAME_BYTES_MAX);
        let run = async {
            tokio::select! {
                done = receive(&mut receiver, from, &node) => done,
                () = node.copies.cancelled() => Err("the node is stopping".into()),
            }
        };
        let answer = match runtime.block_on(run) {
            Ok(index) => ToSender::Installed { index },
            Err(why) => {
                tracing::warn!(%from, why, "a copy of a state was not taken");
                ToSender::Refused { why }
            }
        };
        if let Ok(frame) = codec::encode(VERSION, &answer) {
            // The sender closes the connection once it has read that.
            let _ = sender.try_send(frame);
            let goodbye = async {
                tokio::select! {
                    _ = connection.closed() => {}
                    () = node.copies.cancelled() => {}
                }
            };
            runtime.block_on(goodbye);
        }
    });
    if let Err(error) = spawned {
        tracing::warn!(%from, %error, "a copy of a state was not taken");
    }
}

async fn receive(receiver: &mut FrameReceiver, from: ReplicaId, shared: &Arc<Shared>) -> Result<LogIndex, String> {
    let ToReceiver::Begin { group, incarnation, snapshot, charter, rows } = next(receiver).await? else {
        return Err("it does not begin".into());
    };
    let replica = shared.replicas.get(group).ok_or("no replica of that group here")?;
    if incarnation != replica.incarnation {
        return Err("this is another replica".into());
    }
    let snapshot = Snapshot::decode(&snapshot).map_err(text)?;
    serde_json::from_slice::<Charter>(&charter).map_err(text)?;
    let guard = shared.copies.begin(group, from, false).ok_or("another copy is under way")?;
    guard.progress.rows_expected.store(rows, Ordering::Relaxed);
    let index = snapshot.entry.index;
    let (reply, answer) = oneshot::channel();
    ask(&replica.mailbox, Input::CopyOffered { index, reply }, answer).await?;
    tracing::info!(%group, %from, index = index.0, "receiving a copy of the state");
    let staged = replica.state.stage().map_err(text)?;
    receive_rows(receiver, &staged, &guard).await?;
    let order = complete(group, &replica.state, &staged, snapshot, &charter)?;
    let (reply, answer) = oneshot::channel();
    let prepared = Box::new(Prepared { staged, order });
    ask(&replica.mailbox, Input::InstallCopy { prepared, reply }, answer).await?;
    // What went wrong here is made up for at the next start.
    if let Err(error) = replica.state.drop_replaced() {
        tracing::warn!(%group, %error, "the state that was replaced is still there");
    }
    Ok(index)
}

async fn receive_rows(receiver: &mut FrameReceiver, staged: &StagedState, guard: &Guard) -> Result<(), String> {
    let (mut count, mut all) = (0, 0);
    loop {
        match next(receiver).await? {
            ToReceiver::Begin { .. } => return Err("it begins twice".into()),
            ToReceiver::Rows { crc, rows } => {
                if crc32c::crc32c(&rows) != crc {
                    return Err("a chunk is not what was sent".into());
                }
                all = crc32c::crc32c_append(all, &rows);
                let len = rows.len();
                let rows = unpack(rows).ok_or("a chunk makes no sense")?;
                staged.put(&rows).map_err(text)?;
                count += rows.len() as u64;
                guard.progress.add(rows.len() as u64, len);
            }
            ToReceiver::End { rows, crc } if rows == count && crc == all => return Ok(()),
            ToReceiver::End { .. } => return Err("something is missing".into()),
        }
        // The end of the node is looked for in between.
        tokio::task::yield_now().await;
    }
}

/// All rows are there: checks that they are a state of the group, and writes what is this replica's own. Durable on return.
fn complete(
    group: GroupId,
    own: &GroupState,
    staged: &StagedState,
    snapshot: Snapshot,
    charter: &[u8],
) -> Result<OrderState, String> {
    let found = volume(staged.state()).map_err(text)?;
    if found.group != group {
        return Err(format!("its rows are of group {}", found.group));
    }
    let index = snapshot.entry.index;
    let mut order = OrderState::load(group, staged.state().order_rows().map_err(text)?).map_err(text)?;
    order.begin_at(snapshot).map_err(text)?;
    staged.finish(&order.drain_changes(), charter, index).map_err(text)?;
    tracing::debug!(%group, index = index.0, own = ?own.flushed_index(), "a copy is complete");
    Ok(order)
}

async fn ask(
    mailbox: &Mailbox,
    input: Input,
    answer: oneshot::Receiver<Result<(), multicast::InstallRefused>>,
) -> Result<(), String> {
    mailbox.push(input);
    answer.await.map_err(|_| "the replica has ended".to_owned())?.map_err(text)
}

async fn next(receiver: &mut FrameReceiver) -> Result<ToReceiver, String> {
    let frame = receiver.recv().await.map_err(text)?.ok_or("it ended early")?;
    codec::decode(VERSION, &frame, FRAME_BYTES_MAX).map_err(text)
}

/// None if the bytes are no rows, or rows that are no part of a copy.
fn unpack(mut bytes: Bytes) -> Option<Vec<(Bytes, Bytes)>> {
    let mut rows = Vec::new();
    while !bytes.is_empty() {
        let key = bytes.try_get_u32_le().ok()? as usize;
        let value = bytes.try_get_u32_le().ok()? as usize;
        if bytes.len() < key.checked_add(value)? || key == 0 {
            return None;
        }
        let key = bytes.split_to(key);
        if GroupState::is_own_key(&key) {
            return None;
        }
        rows.push((key, bytes.split_to(value)));
    }
    Some(rows)
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn rows_of_random_bytes_never_panic(bytes in proptest::collection::vec(0u8..8, 0..100)) {
            unpack(bytes.into());
        }
    }
}
