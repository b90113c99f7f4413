//! The ways to other nodes: one replicator each, made when there is something to send.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::{Rc, Weak};

use bb_proto::{ConfigNumber, NodeId, PartitionId};

use super::engine::Outbox;
use super::host::PartitionHost;
use super::replicator::Replicator;

/// All replicators of a node.
#[derive(Default)]
pub(super) struct Senders {
    host: RefCell<Weak<PartitionHost>>,
    replicators: RefCell<BTreeMap<NodeId, Rc<Replicator>>>,
}

impl Senders {
    /// The host whose records are sent.
    pub(super) fn belong_to(&self, host: &Rc<PartitionHost>) {
        *self.host.borrow_mut() = Rc::downgrade(host);
    }

    fn to(&self, node: NodeId) -> Option<Rc<Replicator>> {
        if let Some(known) = self.replicators.borrow().get(&node) {
            return Some(known.clone());
        }
        let host = self.host.borrow().upgrade()?;
        let new = Replicator::start(&host, node);
        self.replicators.borrow_mut().insert(node, new.clone());
        Some(new)
    }

    /// Something is there for a node.
    pub(super) fn ready_for(&self, partition: PartitionId, node: NodeId) {
        if let Some(replicator) = self.to(node) {
            replicator.mark(partition);
        }
    }

    /// Only these nodes get anything from now on.
    pub(super) fn keep(&self, wanted: impl Fn(NodeId) -> bool) {
        self.replicators.borrow_mut().retain(|node, replicator| {
            let wanted = wanted(*node);
            if !wanted {
                replicator.end();
            }
            wanted
        });
    }
}

impl Outbox for Senders {
    fn ready(&self, partition: PartitionId, node: NodeId) {
        self.ready_for(partition, node);
    }

    fn committed(&self, partition: PartitionId, node: NodeId) {
        if let Some(replicator) = self.to(node) {
            replicator.note(partition);
        }
    }
}

/// What replicas ask of those who keep the map.
pub trait Council {
    /// A node's log has lost what it had acknowledged (rule 12).
    fn damaged(&self, node: NodeId, why: &str);

    /// A filling node has everything and counts already: it shall become a backup. To be repeated
    /// until the partition's configuration is another one.
    fn filled(&self, partition: PartitionId, config: ConfigNumber, node: NodeId);

    /// Somebody knows a newer map.
    fn refresh_map(&self, from: Option<NodeId>);
}

/// Keeps to itself: for a node without others.
pub struct NoCouncil;

impl Council for NoCouncil {
    fn damaged(&self, _: NodeId, _: &str) {}
    fn filled(&self, _: PartitionId, _: ConfigNumber, _: NodeId) {}
    fn refresh_map(&self, _: Option<NodeId>) {}
}
