//! Reads: causal ones of the nearest replica, linearizable ones of the primary.

use std::time::Duration;

use metadata::protocol::{Reply, Request};
use metadata::read::{ReadOp, ReadResult};
use multicast::ids::{GroupId, ReplicaId, VectorClock};
use parking_lot::Mutex;

use super::reach::Purpose;
use super::shared::Expect;
use super::{Engine, Next};
use crate::config::Consistency;
use crate::errno::Errno;
use crate::error::{Error, Result};

/// A read, and what its answer will be.
struct Question {
    request: Request,
    expect: Expect,
}

impl Engine {
    pub(super) async fn read(&self, group: GroupId, op: ReadOp) -> Result<ReadResult> {
        self.read_behind(group, op, None).await
    }

    /// From a state that includes what this session has seen, and also `behind`.
    pub(super) async fn read_behind(
        &self,
        group: GroupId,
        op: ReadOp,
        behind: Option<&VectorClock>,
    ) -> Result<ReadResult> {
        let purpose = match self.config.consistency {
            Consistency::Causal => Purpose::Read,
            Consistency::Linearizable => Purpose::Quorum,
        };
        self.check_reach(&[group], purpose)?;
        let _turn = self.group(group)?.reads.acquire().await.map_err(|_| Error::Closing)?;
        let asking = self.ask(group, op, behind, purpose, None);
        if behind.is_some() {
            // A group that never gets so far is there nevertheless.
            return asking.await;
        }
        self.watched(&[group], purpose, asking).await
    }

    /// One question until it is answered. Whoever has learned by it that the group is there is told.
    pub(super) async fn ask(
        &self,
        group: GroupId,
        op: ReadOp,
        behind: Option<&VectorClock>,
        purpose: Purpose,
        patience: Option<Duration>,
    ) -> Result<ReadResult> {
        let patience = patience.unwrap_or_else(|| self.config.patience());
        let result = match purpose {
            Purpose::Read => self.ask_nearest(group, &op, behind, patience).await,
            Purpose::Quorum => self.ask_quorum(group, &op, behind, patience).await,
        };
        if result.is_ok() {
            self.reach.answered(group, purpose);
        }
        result
    }

    fn question(&self, group: GroupId, op: &ReadOp, behind: Option<&VectorClock>, linearizable: bool) -> Question {
        let mut clock = self.shared.progress.clock();
        if let Some(behind) = behind {
            clock.merge(behind);
        }
        let expect = Expect::Read { group, op: op.clone(), asked: clock.effects(group) };
        let session = self.shared.session;
        Question { expect, request: Request::Read { group, session, clock, linearizable, op: op.clone() } }
    }

    /// Asks the primary, which answers when its quorum has confirmed that it is that still.
    async fn ask_quorum(
        &self,
        group: GroupId,
        op: &ReadOp,
        behind: Option<&VectorClock>,
        patience: Duration,
    ) -> Result<ReadResult> {
        self.until_deadline(group, patience, |tries, until| async move {
            let target = self.target(group, tries)?;
            let Question { request, expect } = self.question(group, op, behind, true);
            match self.link(target)?.call(request, expect, until).await {
                Ok(Reply::Read { result, .. }) => {
                    self.learn_primary(group, target);
                    Ok(Next::Done(result))
                }
                Ok(Reply::UnknownSession { group }) => {
                    self.forget_session(group, None);
                    self.ensure_session(group).await?;
                    Ok(Next::Again("the session had expired".into(), true))
                }
                Ok(reply) => self.obstacle(group, target, reply),
                Err(error) => {
                    self.suspect(group, target);
                    Ok(Next::Again(error.to_string(), false))
                }
            }
        })
        .await
    }

    /// Asks the nearest replica, or another one.
    async fn ask_nearest(
        &self,
        group: GroupId,
        op: &ReadOp,
        behind: Option<&VectorClock>,
        patience: Duration,
    ) -> Result<ReadResult> {
        let elsewhere = &Mutex::new(None);
        self.until_deadline(group, patience, |_, until| async move {
            let aside = elsewhere.lock().take();
            let reader = match aside {
                Some(other) => other,
                None => self.choose_stream(group).ok_or(Error::Posix(Errno::EIO))?,
            };
            if self.link(reader)?.generation().is_none() {
                if let Err(error) = self.link(reader)?.connected(until).await {
                    *elsewhere.lock() = self.other_reader(group, reader);
                    return Ok(Next::Again(error.to_string(), false));
                }
                // The subscription goes first, so that the first answer may be cached.
                self.choose_stream(group);
            }
            let Question { request, expect } = self.question(group, op, behind, false);
            match self.link(reader)?.call(request, expect, until).await {
                Ok(Reply::Read { result, .. }) => Ok(Next::Done(result)),
                Ok(Reply::UnknownSession { group }) => {
                    self.forget_session(group, None);
                    self.ensure_session(group).await?;
                    Ok(Next::Again("the session had expired".into(), true))
                }
                Ok(reply) => {
                    if matches!(reply, Reply::Behind { .. } | Reply::UnknownGroup { .. }) {
                        self.note_ready(group, reader, false);
                        *elsewhere.lock() = self.other_reader(group, reader);
                    }
                    self.obstacle(group, reader, reply)
                }
                Err(error) => {
                    *elsewhere.lock() = self.other_reader(group, reader);
                    Ok(Next::Again(error.to_string(), true))
                }
            }
        })
        .await
    }

    fn other_reader(&self, group: GroupId, instead: ReplicaId) -> Option<ReplicaId> {
        let route = self.shared.groups.get(&group)?.route.lock();
        route.other_reader(instead, |id| self.may_be_up(id)).filter(|id| self.may_be_up(*id))
    }
}
