//! The node's side.

use std::sync::Arc;
use std::time::Duration;

use metadata::check::{Seen, check_group};
use net::{Connection, FrameSender, Incoming, codec};
use tokio::runtime::Handle;

use super::{Batch, FRAME_BYTES_MAX, Failed, Standing, ToAsker, ToNode, VERSION};
use crate::error::ErrorClass;
use crate::node::Shared;

/// Whoever opens the channel says at once what it wants.
const PATIENCE: Duration = Duration::from_secs(10);
/// So long an asker may take for a batch: a snapshot that nobody reads on keeps all rows that change from then on.
const BATCH_PATIENCE: Duration = Duration::from_secs(60);

/// Serves one inspection, on a thread of its own. Only so many go on at once.
pub(crate) fn accept(incoming: Incoming, shared: &Arc<Shared>) {
    let Incoming { sender, mut receiver, connection, peer, .. } = incoming;
    let Some(turn) = shared.copies.inspection() else {
        return connection.close("too many look at this node's rows");
    };
    let (node, runtime) = (shared.clone(), Handle::current());
    let spawned = shared.copies.spawn("inspection".into(), move || {
        receiver.limit_frames(FRAME_BYTES_MAX);
        let way = Way { sender, connection, shared: &node, runtime };
        let asked = way.unless_over(async { tokio::time::timeout(PATIENCE, receiver.recv()).await });
        let asked = asked.and_then(|asked| match asked {
            Ok(Ok(Some(frame))) => codec::decode(VERSION, &frame, FRAME_BYTES_MAX).map_err(Failed::new),
            _ => Err(Failed::new("nothing was asked")),
        });
        let done = asked.and_then(|asked| inspect(&asked, &node, &way));
        if let Err(Failed { why, is_damage }) = done {
            tracing::info!(%peer, why, "an inspection came to nothing");
            let _gone_already = way.say(&ToAsker::Failed { why, is_damage });
        }
        // The asker closes the connection once it has read all.
        let _over = way.unless_over(async {
            let _ = tokio::time::timeout(PATIENCE, way.connection.closed()).await;
        });
        drop(turn);
    });
    if let Err(error) = spawned {
        tracing::warn!(%error, "an inspection was not begun");
    }
}

/// To the asker, until it or the node ends.
struct Way<'s> {
    sender: FrameSender,
    connection: Connection,
    shared: &'s Shared,
    runtime: Handle,
}

impl Way<'_> {
    fn unless_over<T>(&self, work: impl Future<Output = T>) -> Result<T, Failed> {
        self.runtime.block_on(async {
            tokio::select! {
                done = work => Ok(done),
                _ = self.connection.closed() => Err(Failed::new("the asker has gone")),
                () = self.shared.copies.cancelled() => Err(Failed::new("the node is stopping")),
            }
        })
    }

    fn say(&self, message: &ToAsker) -> Result<(), Failed> {
        let frame = codec::encode(VERSION, message).map_err(Failed::new)?;
        // Not as soon as the queue is full, but when nothing has been taken from it for so long.
        let sent = self.unless_over(async { tokio::time::timeout(BATCH_PATIENCE, self.sender.send(frame)).await })?;
        sent.map_err(|_| Failed::new("the asker takes too long"))?.map_err(Failed::new)
    }
}

fn inspect(asked: &ToNode, shared: &Shared, way: &Way<'_>) -> Result<(), Failed> {
    let ToNode::Inspect { group, facts } = *asked;
    let replica = shared.replicas.get(group).ok_or_else(|| Failed::new("no replica of that group here"))?;
    let (front, snapshot) = replica.view.snapshot().map_err(of_store)?;
    if front.is_quarantined {
        return Err(Failed::new("this replica is quarantined, or not yet a member of its group"));
    }
    let digest = metadata::store::stored_digest(&snapshot).map_err(Failed::new)?;
    let (index, settled, dependencies) = (front.applied, front.settled, front.dependencies);
    way.say(&ToAsker::Begin(Standing { index, settled, dependencies, digest, rows: replica.state.rows_estimate() }))?;
    let mut batch = Batch::default();
    let mut over = None;
    let mut see = |seen: Seen| {
        batch.add(&seen, facts);
        if batch.is_full()
            && let Err(failed) = way.say(&ToAsker::Seen(batch.take()))
        {
            over = Some(failed);
            return Err(metadata::Error::StoreFailed("nobody listens".into()));
        }
        Ok(())
    };
    let checked = check_group(group, &snapshot, &mut see);
    if let Some(over) = over {
        return Err(over);
    }
    checked.map_err(|error| Failed { why: error.to_string(), is_damage: is_damage(&error) })?;
    way.say(&ToAsker::Seen(batch.take()))?;
    way.say(&ToAsker::End)
}

fn of_store(error: crate::Error) -> Failed {
    Failed { is_damage: error.class() == ErrorClass::Corrupt, why: error.to_string() }
}

pub(super) fn is_damage(error: &metadata::Error) -> bool {
    crate::Error::of_store(error).class() == ErrorClass::Corrupt
}
