//! Lets a log execute on a namespace; here sit the planted bugs of execution.

use std::collections::BTreeMap;

use bytes::Bytes;
use metadata::types::TimeNs;
use metadata::{Namespace, StoreMut, codec};
use multicast::command::Command;
use multicast::ids::{GroupId, SessionId};
use multicast::{Context, Machine, Time};

use crate::planted::Bug;

/// The machine of one replica.
pub struct Executor<'a, S> {
    namespace: &'a mut Namespace<S>,
    own_time: Time,
    bug: Option<Bug>,
}

impl<'a, S: StoreMut> Executor<'a, S> {
    /// Around a namespace.
    pub fn new(namespace: &'a mut Namespace<S>, own_time: Time, bug: Option<Bug>) -> Executor<'a, S> {
        Executor { namespace, own_time, bug }
    }

    fn time(&self, context: &Context) -> TimeNs {
        let time_ns = if self.bug == Some(Bug::OwnTime) { self.own_time.0 } else { context.time_ns };
        TimeNs(i64::try_from(time_ns).unwrap_or(i64::MAX))
    }

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

    fn execute(&mut self, context: &Context, command: &Command, contributions: &BTreeMap<GroupId, Bytes>) -> Bytes {
        let command = &self.restored(command);
        let now = self.time(context);
        if self.bug == Some(Bug::ExecuteTwice) && command.id.sequence % 40 == 7 {
            self.namespace.execute(now, command, contributions);
        }
        self.namespace.execute(now, command, contributions)
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
