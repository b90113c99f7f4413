//! Who watches whom: a sparse graph, so that heartbeats grow with the nodes and not with their
//! square.

use bb_proto::NodeId;

use crate::hash::{For, weight};
use crate::map::ClusterMap;

/// How many watch each node: two must agree that it is gone, and one of them may be gone too.
pub const WATCHERS: usize = 3;

/// The nodes that watch a node: the active ones that weigh most for it, or all others where there
/// are fewer. Sorted by number. Witnesses watch too.
pub fn watchers(map: &ClusterMap, node: NodeId) -> Vec<NodeId> {
    let mut all: Vec<u32> = map
        .nodes
        .iter()
        .filter(|other| other.is_active() && other.id != node.0)
        .map(|other| other.id)
        .collect();
    all.sort_by_key(|other| std::cmp::Reverse((weight(For::Watch, node.0, *other), *other)));
    all.truncate(WATCHERS);
    all.sort_unstable();
    all.into_iter().map(NodeId).collect()
}

/// The active nodes that `me` watches, in order.
pub fn watched_by(map: &ClusterMap, me: NodeId) -> Vec<NodeId> {
    let active = map.nodes.iter().filter(|node| node.is_active() && node.id != me.0);
    active.map(|node| NodeId(node.id)).filter(|node| watchers(map, *node).contains(&me)).collect()
}
