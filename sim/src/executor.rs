//! Lets a log execute on a namespace: what is applied is written down, and here sit the planted bugs of execution.

use ::replica::Apply;
use bytes::Bytes;
use metadata::{Namespace, Overlay, Store, StoreMut, codec};
use multicast::command::Command;
use multicast::ids::{GroupId, SessionId};
use multicast::{Applied, Context, Contributions, Core, Machine, Time};
use xxhash_rust::xxh3::xxh3_64;

use crate::checks::ledger::{Entry, Ledger};
use crate::disk::Disk;
use crate::planted::Bug;

/// The digest of the ordering state costs a walk over all of it.
const ORDER_DIGEST_INTERVAL: u64 = 8;
/// Few rows go in one entry, so that many need ticks.
const STEP_ROWS: usize = 3;

/// How a simulated replica applies entries: as any other, looked at from outside.
pub struct Watched<'a> {
    /// Its group.
    pub group: GroupId,
    /// Its log.
    pub disk: &'a Disk,
    /// Where it is written down.
    pub ledger: &'a mut Ledger,
    /// The planted bug.
    pub bug: Option<Bug>,
    /// The planted bug: this replica's executions go another way, and nobody looks on.
    pub odd: bool,
    /// The fault: this replica's digests are others'.
    pub is_rotten: bool,
}

impl Apply for Watched<'_> {
    fn apply_next<B: Store>(
        &mut self,
        core: &mut Core,
        now: Time,
        namespace: &mut Namespace<Overlay<'_, B>>,
    ) -> Option<Applied> {
        namespace.set_step_rows(STEP_ROWS);
        let mut executor = Executor { namespace, own_time: now, bug: self.bug, odd: self.odd };
        let applied = core.apply_next(now, &mut executor)?;
        // What a bad row led to is neither written nor told.
        if self.odd || namespace.failure().is_some() {
            return Some(applied);
        }
        let (group, index) = (self.group, applied.index);
        let entry = Entry {
            group,
            index,
            record: self.disk.record(group, index).map(|record| xxh3_64(&record)),
            digest: (!self.is_rotten).then(|| namespace.store().digest()),
            order_digest: index.0.is_multiple_of(ORDER_DIGEST_INTERVAL).then(|| core.order().digest()),
            applied: &applied,
        };
        self.ledger.applied(&entry, namespace.store());
        Some(applied)
    }
}

/// The machine of one replica.
struct Executor<'a, S> {
    namespace: &'a mut Namespace<S>,
    own_time: Time,
    bug: Option<Bug>,
    odd: bool,
}

impl<S: StoreMut> Executor<'_, S> {
    /// A command that went out without some of its keys, whole again: the namespace checks them.
    fn restored(&self, command: &Command) -> Command {
        let mut command = command.clone();
        let strips = matches!(self.bug, Some(Bug::IgnoreReadKeys | Bug::IgnoreConflicts));
        if strips && let Ok(op) = codec::decode_op(&command.payload) {
            command.destinations = op.destinations();
        }
        command
    }
}

impl<S: StoreMut> Machine for Executor<'_, S> {
    fn contribute(&mut self, _context: &Context, command: &Command) -> Bytes {
        self.namespace.contribute(&self.restored(command))
    }

    fn execute(&mut self, context: &Context, command: &Command, contributions: &Contributions) -> Bytes {
        let command = &self.restored(command);
        let mut context = *context;
        if self.bug == Some(Bug::OwnTime) {
            context.time_ns = self.own_time.0;
        }
        context.time_ns += u64::from(self.odd && command.id.sequence % 10 == 7);
        if self.bug == Some(Bug::ExecuteTwice) && command.id.sequence % 40 == 7 {
            Machine::execute(self.namespace, &context, command, contributions);
        }
        Machine::execute(self.namespace, &context, command, contributions)
    }

    fn session_opened(&mut self, _context: &Context, session: SessionId) {
        self.namespace.session_opened(session);
    }

    fn session_closed(&mut self, _context: &Context, session: SessionId) {
        self.namespace.session_closed(session);
    }

    fn tick(&mut self, _context: &Context) {
        self.namespace.tick();
    }
}
