//! The state machine: what a group's log does to its part of the namespace.

use std::collections::BTreeMap;

use bytes::Bytes;
use multicast::command::{Command, Key};
use multicast::ids::{GroupId, SessionId};

use crate::error::Error;
use crate::outcome::{Errno, OpError};
use crate::rows::{self, Volume};
use crate::store::{Store, StoreMut};
use crate::types::{InodeId, TimeNs};
use crate::{codec, keys};

/// What executed updates changed, for those who cache it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Keys whose cached answers are void. May repeat.
    pub keys: Vec<Key>,
    /// Inodes that lost their last name and wait for their holders to let go.
    pub orphans: Vec<InodeId>,
}

/// One group's part of the namespace, over a store that is [`crate::Overlay`] in a replica.
///
/// Execution is total: whatever a payload says, there is an outcome. Only the store can fail: then
/// [`Namespace::failure`] says so, and nothing of this batch may be written.
#[derive(Debug)]
pub struct Namespace<S> {
    pub(crate) group: GroupId,
    pub(crate) volume: Volume,
    pub(crate) store: S,
    pub(crate) changes: Changes,
    pub(crate) failure: Option<Error>,
}

impl<S: StoreMut> Namespace<S> {
    /// Over a store that was initialised by [`genesis`].
    pub fn open(group: GroupId, store: S) -> Result<Self, Error> {
        let volume = volume(&store)?;
        if volume.group != group {
            return Err(Error::OtherGroup { found: volume.group, expected: group });
        }
        Ok(Namespace { group, volume, store, changes: Changes::default(), failure: None })
    }

    /// What this group has to say to a command of several groups; see [`Namespace::execute`].
    pub fn contribute(&mut self, _now: TimeNs, _command: &Command) -> Bytes {
        Bytes::new()
    }

    /// Executes a command and gives its encoded [`crate::outcome::Outcome`]. `contributions` holds those of all its
    /// destinations if there are several.
    pub fn execute(&mut self, _now: TimeNs, _command: &Command, _contributions: &BTreeMap<GroupId, Bytes>) -> Bytes {
        codec::encode_outcome(&Err(OpError::Errno(Errno::NotSupported)))
    }

    /// A session was registered in this group.
    pub fn session_opened(&mut self, _now: TimeNs, _session: SessionId) {}

    /// A session ended: it holds nothing any more.
    pub fn session_closed(&mut self, _now: TimeNs, _session: SessionId) {}

    /// What was changed since the last call.
    pub fn take_changes(&mut self) -> Changes {
        std::mem::take(&mut self.changes)
    }

    /// Why the store failed, if it did: nothing that was written since [`Namespace::open`] may be kept.
    #[must_use]
    pub fn failure(&self) -> Option<&Error> {
        self.failure.as_ref()
    }

    /// The store, to look at.
    #[must_use]
    pub fn store(&self) -> &S {
        &self.store
    }

    /// The store, with what was written.
    #[must_use]
    pub fn into_store(self) -> S {
        self.store
    }
}

/// What a new volume starts with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Genesis {
    /// Most bytes of one file that live in the metadata.
    pub inline_bytes_max: u32,
    /// The root directory's owner.
    pub uid: u32,
    /// The root directory's owning group.
    pub gid: u32,
    /// The root directory's permissions.
    pub mode: u16,
    /// The root directory's times. Equal on all replicas.
    pub time: TimeNs,
}

/// Writes the first rows of `group` into an empty store: in the global group the root directory, elsewhere none but the
/// volume's own.
pub fn genesis<S: StoreMut>(store: &mut S, group: GroupId, genesis: &Genesis) -> Result<(), Error> {
    let volume = Volume { group, inline_bytes_max: genesis.inline_bytes_max };
    store.put(keys::volume(), rows::encode(&volume))?;
    Ok(())
}

/// What holds for the whole volume.
pub fn volume<S: Store + ?Sized>(store: &S) -> Result<Volume, Error> {
    rows::read(store, &keys::volume())?.ok_or(Error::NoVolume)
}
