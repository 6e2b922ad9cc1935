//! The asker's side.

use metadata::check::Seen;
use multicast::ids::GroupId;
use net::{Connection, FrameReceiver, codec};

use super::{FRAME_BYTES_MAX, Failed, INSPECT_CHANNEL, Standing, ToAsker, ToNode, VERSION};

/// Lets a node look at its replica of a group; `begin` hears where that stands, then `see` what is seen there: only what is
/// wrong, or, if `facts`, all that takes part in a check of all groups. The connection is closed at the end.
///
/// # Errors
/// If it came to nothing: the node cannot or will not, the connection broke, or `see` refused.
pub async fn ask(
    connection: &Connection,
    (group, facts): (GroupId, bool),
    see: &mut impl FnMut(Seen) -> Result<(), metadata::Error>,
    begin: impl FnOnce(&Standing),
) -> Result<Standing, Failed> {
    let done = exchange(connection, ToNode::Inspect { group, facts }, see, begin).await;
    connection.close("done");
    done
}

async fn exchange(
    connection: &Connection,
    asked: ToNode,
    see: &mut impl FnMut(Seen) -> Result<(), metadata::Error>,
    begin: impl FnOnce(&Standing),
) -> Result<Standing, Failed> {
    let (sender, mut receiver) = connection.open(INSPECT_CHANNEL).await.map_err(Failed::new)?;
    receiver.limit_frames(FRAME_BYTES_MAX);
    let frame = codec::encode(VERSION, &asked).map_err(Failed::new)?;
    sender.send(frame).await.map_err(Failed::new)?;
    let standing = match next(&mut receiver).await? {
        ToAsker::Begin(standing) => standing,
        ToAsker::Failed { why, is_damage } => return Err(Failed { why, is_damage }),
        ToAsker::Seen(_) | ToAsker::End => return Err(Failed::new("it does not begin")),
    };
    begin(&standing);
    loop {
        match next(&mut receiver).await? {
            ToAsker::Begin(_) => return Err(Failed::new("it begins twice")),
            ToAsker::Seen(bytes) => {
                let mut rest = &bytes[..];
                while !rest.is_empty() {
                    let (seen, left) = postcard::take_from_bytes(rest).map_err(Failed::new)?;
                    see(seen).map_err(Failed::new)?;
                    rest = left;
                }
            }
            ToAsker::End => return Ok(standing),
            ToAsker::Failed { why, is_damage } => return Err(Failed { why, is_damage }),
        }
    }
}

async fn next(receiver: &mut FrameReceiver) -> Result<ToAsker, Failed> {
    let frame = receiver.recv().await.map_err(Failed::new)?.ok_or_else(|| Failed::new("it ended early"))?;
    codec::decode(VERSION, &frame, FRAME_BYTES_MAX).map_err(Failed::new)
}
