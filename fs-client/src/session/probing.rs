//! Silent groups are asked on the side, and those who would wait for them in vain are refused.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use metadata::read::ReadOp;
use multicast::ids::GroupId;
use tokio::task::JoinHandle;

use super::Engine;
use super::reach::Purpose;
use crate::config::OnCut;
use crate::error::{Error, Result};

/// Whether a group that has not answered for so long is there at all is asked on the side.
const SUSPICIOUS: Duration = Duration::from_secs(1);
/// Groups that are silent are asked so often on the side, and their answer is waited for so long.
const PROBE_PAUSE: Duration = Duration::from_millis(250);
const PROBE_PATIENCE: Duration = Duration::from_secs(2);

impl Engine {
    /// Asks silent groups until they answer, each at its own pace.
    pub(super) fn spawn_prober(self: &Arc<Self>) {
        let (weak, reach) = (Arc::downgrade(self), self.reach.clone());
        tokio::spawn(async move {
            let mut probed = BTreeMap::<_, JoinHandle<()>>::new();
            while weak.strong_count() > 0 {
                let _ = tokio::time::timeout(PROBE_PATIENCE, reach.news.notified()).await;
                probed.retain(|_, probing| !probing.is_finished());
                for (group, purpose) in reach.silent() {
                    let weak = weak.clone();
                    let spawn = || tokio::spawn(probe_until_answered(weak, group, purpose));
                    probed.entry((group, purpose)).or_insert_with(spawn);
                }
            }
        });
    }

    /// Refuses what would wait in vain.
    pub(super) fn check_reach(&self, groups: &[GroupId], purpose: Purpose) -> Result<()> {
        let (patience, now) = (self.config.timeouts.deadline, Instant::now());
        for &group in groups {
            if let Some(silent) = self.reach.silent_for(group, purpose, patience, now) {
                let silent_ms = u64::try_from(silent.as_millis()).unwrap_or(u64::MAX);
                return Err(Error::Unreachable { group, silent_ms });
            }
        }
        Ok(())
    }

    /// As `asking`, and whether its groups are there is asked on the side if that takes long.
    pub(super) async fn watched<T>(
        &self,
        groups: &[GroupId],
        purpose: Purpose,
        asking: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        if self.config.on_cut == OnCut::Block {
            return asking.await;
        }
        let since = Instant::now();
        let patience = SUSPICIOUS.min(self.config.timeouts.deadline / 4);
        tokio::pin!(asking);
        let result = match tokio::time::timeout(patience, &mut asking).await {
            Ok(result) => result,
            Err(_) => {
                groups.iter().for_each(|group| self.reach.miss(*group, purpose, since));
                asking.await
            }
        };
        if result.is_ok() {
            groups.iter().for_each(|group| self.reach.answered(*group, purpose));
        }
        result
    }
}

async fn probe_until_answered(weak: Weak<Engine>, group: GroupId, purpose: Purpose) {
    let mut is_first = true;
    while let Some(engine) = weak.upgrade() {
        if !engine.reach.silent().contains(&(group, purpose)) {
            return;
        }
        // The first one tells those who wait before their deadline; the later ones give a far group the time that it needs.
        let first = PROBE_PATIENCE.min(engine.config.timeouts.deadline / 2);
        let patience = if is_first { first } else { PROBE_PATIENCE };
        is_first = false;
        match engine.ask(group, ReadOp::Usage, None, purpose, Some(patience)).await {
            // Noted already.
            Ok(_) => return,
            Err(error) => {
                tracing::debug!(%group, %error, "does not answer");
                engine.reach.confirm(group, purpose);
            }
        }
        drop(engine);
        tokio::time::sleep(PROBE_PAUSE).await;
    }
}
