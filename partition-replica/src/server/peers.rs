//! Messages between replicas: on this node from mailbox to mailbox, else many to a frame over one link per node.
//!
//! A frame: version, then for each message receiver's group, sender's group (u16), length (u32, all little-endian) and the
//! encoded message. Which node sent it is what its certificate says.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use multicast::Membership;
use multicast::ids::{GroupId, ReplicaId};
use multicast::message::Message;
use net::{ChannelKind, LinkReceiver, PeerLink};
use parking_lot::RwLock;

use crate::group::mailbox::{Burst, Input, Mailbox};
use crate::members::Members;

/// The channel between nodes.
pub const PEER_CHANNEL: ChannelKind = ChannelKind::new(2, 1);
/// Opened, and nothing more, by a node that has just started, to those that dial it: they need not find out by and by.
pub const KNOCK_CHANNEL: ChannelKind = ChannelKind::new(5, 1);

const FRAME_VERSION: u8 = 1;
const MESSAGE_HEADER_LEN: usize = 8;
/// A frame is sent when it has grown so long, even in the middle of a turn.
const FRAME_BYTES_ENOUGH: usize = 1 << 20;
/// A frame begins with so much room, as it rarely is one message's.
const FRAME_ROOM: usize = 2 << 10;
/// Longer ones grow.
const FRAME_ROOM_MAX: usize = 64 << 10;
/// What a message between replicas of one node counts for; its length is not known.
const LOCAL_MESSAGE_BYTES: usize = 256;
const RECEIVE_FRAMES_MAX: usize = 256;

/// Frames that one replica's thread is filling.
pub struct Outbox {
    from: GroupId,
    frames: BTreeMap<ReplicaId, Frame>,
}

/// What goes to one node.
#[derive(Default)]
struct Frame {
    bytes: BytesMut,
    /// How long frames are, lately: growing step by step is dear.
    expected_len: usize,
}

impl Frame {
    fn take(&mut self) -> Bytes {
        let len = self.bytes.len();
        self.expected_len = len.max((3 * self.expected_len + len) / 4).min(FRAME_ROOM_MAX);
        self.bytes.split().freeze()
    }
}

impl Outbox {
    /// Empty.
    pub fn new(from: GroupId) -> Outbox {
        Outbox { from, frames: BTreeMap::new() }
    }
}

/// The way to every replica of the cluster.
pub struct Router {
    own: ReplicaId,
    mailboxes: RwLock<BTreeMap<GroupId, Arc<Mailbox>>>,
    links: RwLock<BTreeMap<ReplicaId, Arc<PeerLink>>>,
    members: Members,
}

impl Router {
    /// From this node's replicas to each other and over links to other nodes. Neither are known yet.
    pub fn new(own: ReplicaId, members: Members) -> Router {
        Router { own, mailboxes: RwLock::default(), links: RwLock::default(), members }
    }

    /// There is a way to that node from now on.
    pub fn connect(&self, node: ReplicaId, link: PeerLink) {
        self.links.write().insert(node, Arc::new(link));
    }

    /// A replica of that group is here from now on.
    pub fn open(&self, group: GroupId, mailbox: Arc<Mailbox>) {
        self.mailboxes.write().insert(group, mailbox);
    }

    /// No replica of that group is here any more.
    pub fn close(&self, group: GroupId) {
        self.mailboxes.write().remove(&group);
    }

    /// Who belongs to the groups, as far as the replicas here know.
    pub fn members(&self) -> &Members {
        &self.members
    }

    /// The replica of `from` has learned who belongs to a group: the others here are told.
    pub fn learn_members(&self, from: GroupId, group: GroupId, members: &Membership) {
        if !self.members.learn(group, members) {
            return;
        }
        let mailboxes = self.mailboxes.read();
        for mailbox in mailboxes.iter().filter(|(id, _)| **id != from && **id != group).map(|(_, mailbox)| mailbox) {
            mailbox.push(Input::Members { group, members: members.clone() });
        }
    }

    /// Puts a message on its way; it leaves with [`Router::flush`] at the latest.
    pub fn post(&self, outbox: &mut Outbox, to: (GroupId, ReplicaId), message: Message) {
        let (group, replica) = to;
        if replica == self.own {
            if let Some(mailbox) = self.mailboxes.read().get(&group) {
                let from = (outbox.from, self.own);
                mailbox.push(Input::Message { from, message, bytes: LOCAL_MESSAGE_BYTES });
            }
            return;
        }
        let entry = outbox.frames.entry(replica).or_default();
        let frame = &mut entry.bytes;
        if frame.is_empty() {
            frame.reserve(FRAME_ROOM.max(entry.expected_len + entry.expected_len / 4));
            frame.put_u8(FRAME_VERSION);
        }
        frame.put_u16_le(group.0);
        frame.put_u16_le(outbox.from.0);
        frame.put_u32_le(0);
        let start = frame.len();
        message.encode_behind(frame);
        let len = u32::try_from(frame.len() - start).expect("a message is shorter than 4 GiB");
        frame[start - 4..start].copy_from_slice(&len.to_le_bytes());
        if frame.len() > FRAME_BYTES_ENOUGH {
            self.send(replica, entry.take());
        }
    }

    /// Sends what has gathered.
    pub fn flush(&self, outbox: &mut Outbox) {
        for (&replica, frame) in &mut outbox.frames {
            if !frame.bytes.is_empty() {
                self.send(replica, frame.take());
            }
        }
    }

    fn send(&self, to: ReplicaId, frame: Bytes) {
        // What is lost is sent again by whoever waits for its answer.
        if let Some(link) = self.links.read().get(&to) {
            link.send(frame);
        }
    }

    /// The link to a node.
    pub fn link(&self, to: ReplicaId) -> Option<Arc<PeerLink>> {
        self.links.read().get(&to).cloned()
    }

    /// Hands what a node sends to its receivers, until the link is gone.
    pub async fn receive(self: Arc<Router>, from: ReplicaId, mut receiver: LinkReceiver) {
        let mut frames = Vec::new();
        while receiver.recv_many(&mut frames, RECEIVE_FRAMES_MAX).await > 0 {
            let mut burst = Burst::default();
            for frame in frames.drain(..) {
                if self.deliver(from, frame, &mut burst).is_none() {
                    tracing::warn!(node = %from, "ignored a frame that makes no sense");
                }
            }
            // What has come from other nodes by now goes into the same turn.
            tokio::task::yield_now().await;
        }
    }

    fn deliver(&self, from: ReplicaId, mut frame: Bytes, burst: &mut Burst) -> Option<()> {
        if frame.try_get_u8().ok()? != FRAME_VERSION {
            return None;
        }
        while !frame.is_empty() {
            if frame.len() < MESSAGE_HEADER_LEN {
                return None;
            }
            let (to, sender) = (GroupId(frame.get_u16_le()), GroupId(frame.get_u16_le()));
            let len = frame.get_u32_le() as usize;
            if frame.len() < len {
                return None;
            }
            let message = Message::decode(&frame.split_to(len)).ok()?;
            let mailboxes = self.mailboxes.read();
            match mailboxes.get(&to) {
                // The core checks that the sender's group has a voter on that node.
                Some(mailbox) => burst.push(mailbox, Input::Message { from: (sender, from), message, bytes: len }),
                None => self.send_on(to, (sender, from), &message),
            }
        }
        Some(())
    }

    /// Somebody looks for a member of a group here, where there is none (any more): he is told who they are, if that is known.
    fn send_on(&self, group: GroupId, from: (GroupId, ReplicaId), message: &Message) {
        let is_question = matches!(
            message,
            Message::Probe { .. }
                | Message::Campaign { .. }
                | Message::Propose { .. }
                | Message::Facts(_)
                | Message::HowFar { .. }
                | Message::AskMembers { .. }
        );
        if let Some(members) = self.members.of(group).filter(|_| is_question) {
            let mut outbox = Outbox::new(group);
            self.post(&mut outbox, from, Message::Members(members));
            self.flush(&mut outbox);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::Duration;

    use multicast::core::Unhurried;
    use multicast::ids::Ballot;
    use proptest::prelude::*;

    use super::*;

    fn router() -> (Router, Arc<Mailbox>) {
        let mailbox = Arc::new(Mailbox::new(GroupId(1), 10, 1 << 20));
        let folder = tempfile::tempdir().unwrap();
        let members = Members::open(folder.path().join("members")).unwrap();
        let router = Router::new(ReplicaId(1), members);
        router.open(GroupId(1), mailbox.clone());
        (router, mailbox)
    }

    fn messages(mailbox: &Mailbox) -> Vec<((GroupId, ReplicaId), Message)> {
        let mut inputs = Vec::new();
        mailbox.take(&mut inputs, Duration::ZERO, Unhurried::default());
        let message = |input| match input {
            Input::Message { from, message, .. } => Some((from, message)),
            _ => None,
        };
        inputs.into_iter().filter_map(message).collect()
    }

    #[test]
    fn frame_delivers_its_messages_to_their_groups_in_order() {
        let (router, mailbox) = router();
        let mut outbox = Outbox::new(GroupId(7));
        let message = |round| Message::Campaign { ballot: Ballot { round, owner: None } };
        for round in 1..=3 {
            router.post(&mut outbox, (GroupId(1), ReplicaId(2)), message(round));
        }
        router.post(&mut outbox, (GroupId(2), ReplicaId(2)), message(4));
        let frame = outbox.frames.remove(&ReplicaId(2)).unwrap().take();
        assert_eq!(router.deliver(ReplicaId(9), frame.clone(), &mut Burst::default()), Some(()));
        let from = (GroupId(7), ReplicaId(9));
        assert_eq!(messages(&mailbox), [(from, message(1)), (from, message(2)), (from, message(3))]);
        assert_eq!(router.deliver(ReplicaId(9), frame.slice(..frame.len() - 1), &mut Burst::default()), None);
    }

    #[test]
    fn message_to_a_replica_here_takes_no_link() {
        let (router, mailbox) = router();
        let mut outbox = Outbox::new(GroupId(7));
        let message = Message::NotPrimary { hint: None };
        router.post(&mut outbox, (GroupId(1), ReplicaId(1)), message.clone());
        assert_eq!(messages(&mailbox), [((GroupId(7), ReplicaId(1)), message)]);
    }

    #[test]
    fn replicas_of_a_node_tell_each_other_who_belongs_to_a_group_once() {
        let (router, mailbox) = router();
        let members = Membership { version: 4, ..Membership::genesis(&[ReplicaId(7)]) };
        router.learn_members(GroupId(2), GroupId(3), &members);
        router.learn_members(GroupId(2), GroupId(3), &members);
        // A group's own members it knows from its log.
        router.learn_members(GroupId(2), GroupId(1), &members);
        let mut inputs = Vec::new();
        mailbox.take(&mut inputs, Duration::ZERO, Unhurried::default());
        assert!(matches!(&inputs[..], [Input::Members { group: GroupId(3), members: told }] if *told == members));
        assert_eq!(router.members().of(GroupId(1)), Some(members));
    }

    proptest! {
        #[test]
        fn frame_of_random_bytes_never_panics(bytes in proptest::collection::vec(0u8..12, 0..200)) {
            let (router, _) = router();
            let frame = [vec![FRAME_VERSION], bytes].concat();
            router.deliver(ReplicaId(2), frame.into(), &mut Burst::default());
        }
    }
}
