//! A batch of committed entries: executed in memory, written by the driver in one go, then told to clients.

use metadata::types::InodeId;
use metadata::{Namespace, Overlay, Store, WriteSet};
use multicast::ids::LogIndex;
use multicast::{Applied, Change, Core, Time};

use crate::taught::BatchKeys;

/// How one entry is executed. Nodes do it the [`Plain`] way; a simulator looks on, and plants its bugs here.
pub trait Apply {
    /// Lets the core execute its next entry, if there is one.
    fn apply_next<B: Store>(
        &mut self,
        core: &mut Core,
        now: Time,
        namespace: &mut Namespace<Overlay<'_, B>>,
    ) -> Option<Applied> {
        core.apply_next(now, namespace)
    }
}

/// The way in which entries are executed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Plain;

impl Apply for Plain {}

/// What a batch has led to. To be written before it is published.
#[derive(Debug)]
pub struct Step {
    /// The namespace's rows.
    pub writes: WriteSet,
    /// The ordering's rows.
    pub order_rows: Vec<(Vec<u8>, Option<Vec<u8>>)>,
    /// The log up to here is in them.
    pub applied: LogIndex,
    pub(crate) batch: Batch,
}

/// Entries that are applied in one step, each with its end in the keys that they changed.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    pub entries: Vec<(Applied, usize)>,
    pub changed: BatchKeys,
    pub orphans: Vec<InodeId>,
}

impl Batch {
    pub fn push(&mut self, applied: Applied, changes: metadata::Changes) {
        self.orphans.extend(changes.orphans);
        self.entries.push((applied, self.changed.push(changes.keys)));
    }
}

/// True if readers must know which keys are locked now.
pub(crate) fn changes_locks(entries: &[(Applied, usize)]) -> bool {
    entries.iter().any(|(applied, _)| match &applied.change {
        Change::Locked(_) | Change::Aborted(_) => true,
        Change::Executed(command) => command.is_multi_group(),
        Change::Nothing
        | Change::Committed(_)
        | Change::Refused(_)
        | Change::Skipped(_)
        | Change::SessionOpened(_)
        | Change::SessionsClosed(_)
        | Change::Members(_) => false,
    })
}
