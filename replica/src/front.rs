//! What may be read of a replica's state, and when. The answers are the namespace's; whether one may be given is said here.

use std::collections::BTreeMap;
use std::sync::Arc;

use metadata::outcome::{Errno, OpError};
use metadata::protocol::{Position, Reply};
use metadata::read::{ReadOp, ReadResult};
use multicast::command::Key;
use multicast::ids::{GroupId, LogIndex, ReplicaId, SessionId, VectorClock};
use multicast::{OrderState, Time};

/// Keys that unfinished commands will change: key → the first log index at which one was prepared.
pub type LockedKeys = BTreeMap<Key, LogIndex>;

/// What goes with the state that can be read.
#[derive(Clone, Debug, Default)]
pub struct Front {
    /// The state reflects the log up to here.
    pub applied: LogIndex,
    /// What it depends on in other groups.
    pub dependencies: VectorClock,
    /// What was prepared up to there has executed in the state.
    pub settled: LogIndex,
    /// What must not be read by those who have seen that it is about to change.
    pub locked: Arc<LockedKeys>,
    /// Who is primary, as far as known.
    pub primary: Option<ReplicaId>,
    /// The state is not the group's: nobody may read it.
    pub is_quarantined: bool,
}

/// A read on its way.
#[derive(Debug)]
pub struct PendingRead<T> {
    /// Whom to answer.
    pub ticket: T,
    /// Whose cache the answer goes into.
    pub session: SessionId,
    /// The reader has seen the group's log up to here.
    pub index: LogIndex,
    /// The reader may have seen effects, elsewhere, of what this group prepared up to here.
    pub effects: LogIndex,
    /// The question.
    pub op: ReadOp,
    /// From then on the answer is `Behind`.
    pub deadline: Time,
}

/// What becomes of a read that was tried.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "an answer leaves at once, and there is one for nearly every question")]
pub enum Verdict {
    /// The state must move on first.
    Wait,
    /// It may be answered, once the reader is noted to know these keys, if there are any.
    Answer(Reply, Option<Vec<Key>>),
}

impl<T> PendingRead<T> {
    /// As asked by somebody who has seen the log up to `index`, and what was prepared up to there at work: it may have executed
    /// in another group already.
    #[must_use]
    pub fn not_before(mut self, index: LogIndex) -> PendingRead<T> {
        self.index = self.index.max(index);
        self.effects = self.effects.max(index);
        self
    }

    /// What the result of a look at the state means for its reader.
    ///
    /// The look began at the state of `before` and ends at that of `now`, since when nothing has moved on; `is_changed` tells
    /// what has changed in between. If the answer's own keys did not, it is as good as one given now, and is noted as such.
    /// Else it shows the state at which it began, and no client caches it: its event of a later state came before. `keys`:
    /// those of the question.
    pub fn conclude(
        &self,
        group: GroupId,
        (before, now): (&Front, &Front),
        is_changed: impl Fn(Key) -> bool,
        mut keys: Vec<Key>,
        mut result: ReadResult,
    ) -> Verdict {
        let missing = matches!(result, Err(OpError::Errno(Errno::StaleHandle)));
        if missing && before.blocks(&self.op.keys_if_missing(group), self.effects) {
            return Verdict::Wait;
        }
        let is_current = !keys.iter().any(|&key| is_changed(key));
        if let Ok(answer) = &mut result {
            // What is attached must not be older than effects that the rest of the answer may show.
            let effects = self.effects.max(before.dependencies.effects(group));
            answer.detach(|key| before.blocks(&[key], effects) || (is_current && is_changed(key)));
            keys.extend(answer.attached());
        }
        // An error may rest on more than the question's keys.
        let is_noted = is_current && (result.is_ok() || now.applied == before.applied);
        let position = if is_noted { now.position() } else { before.position() };
        Verdict::Answer(Reply::Read { result, position }, is_noted.then_some(keys))
    }
}

impl Front {
    /// Of a replica that starts.
    #[must_use]
    pub fn of(order: &OrderState) -> Front {
        let (dependencies, settled) = (order.depends_on().clone(), order.executed_through());
        let locked = Arc::new(locked_keys(order));
        Front { applied: order.applied(), dependencies, settled, locked, primary: None, is_quarantined: false }
    }

    /// What whoever wants to know something hears instead, if nobody may read the state.
    #[must_use]
    pub fn refusal(&self, group: GroupId) -> Option<Reply> {
        self.is_quarantined.then_some(Reply::UnknownGroup { group })
    }

    /// The state as a position.
    #[must_use]
    pub fn position(&self) -> Position {
        Position { index: self.applied, dependencies: self.dependencies.clone(), settled: self.settled }
    }

    /// As of an index up to which was applied.
    #[must_use]
    pub fn position_at(&self, index: LogIndex) -> Position {
        let settled = if index == self.applied { self.settled } else { LogIndex::ZERO };
        Position { index, dependencies: self.dependencies.clone(), settled }
    }

    /// True if a read of these keys must wait until the state has moved on.
    #[must_use]
    pub fn holds_back<T>(&self, read: &PendingRead<T>, keys: &[Key]) -> bool {
        self.applied < read.index || self.blocks(keys, read.effects)
    }

    /// True if whoever may have seen `effects` of prepared commands must not yet look at one of these keys.
    #[must_use]
    pub fn blocks(&self, keys: &[Key], effects: LogIndex) -> bool {
        !self.locked.is_empty() && keys.iter().any(|key| self.locked.get(key).is_some_and(|&at| at <= effects))
    }
}

/// What readers must wait for, the first lock of each key.
pub(crate) fn locked_keys(order: &OrderState) -> LockedKeys {
    let mut locked = LockedKeys::new();
    for (key, index, _) in order.changing_locks() {
        let first = locked.entry(key).or_insert(index);
        *first = index.min(*first);
    }
    locked
}
