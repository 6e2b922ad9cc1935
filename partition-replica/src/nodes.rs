//! The cluster's nodes, as far as this one knows: those of its configuration, and those that were added to that since.

use multicast::ids::ReplicaId;
use parking_lot::RwLock;

use crate::config::NodeInfo;

/// See the module.
#[derive(Debug)]
pub struct Nodes(RwLock<Vec<NodeInfo>>);

impl Nodes {
    /// These.
    pub fn new(nodes: Vec<NodeInfo>) -> Nodes {
        Nodes(RwLock::new(nodes))
    }

    /// All.
    pub fn all(&self) -> Vec<NodeInfo> {
        self.0.read().clone()
    }

    /// The one with that number.
    pub fn get(&self, number: ReplicaId) -> Option<NodeInfo> {
        self.0.read().iter().find(|node| node.number == number).cloned()
    }

    /// The one with that name.
    pub fn named(&self, name: &str) -> Option<NodeInfo> {
        self.0.read().iter().find(|node| node.name == name).cloned()
    }

    /// One more. False, and nothing happens, if its number, name or address is another's.
    pub fn add(&self, node: NodeInfo) -> bool {
        let mut nodes = self.0.write();
        let is_taken = nodes
            .iter()
            .any(|known| known.number == node.number || known.name == node.name || known.address == node.address);
        if !is_taken {
            nodes.push(node);
        }
        !is_taken
    }
}
