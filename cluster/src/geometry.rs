//! What the nodes that are there permit: which devices may get blocks, and how many of a group.

use bb_proto::{DeviceId, NodeId};

use crate::map::{ClusterMap, DeviceState};
use crate::placement::Candidate;

/// What keeps the blocks of a group apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Apart {
    /// Each on another node: K nodes may die.
    Nodes,
    /// Each on another device only: there are fewer than 1+K nodes, and the death of one may take
    /// more than K blocks. `bbadm cluster status` says so.
    Devices,
}

/// How new groups are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// N: as wanted, or smaller where there are too few places.
    pub data: u8,
    /// K: always as wanted.
    pub parity: u8,
    /// What the blocks are kept apart by.
    pub apart: Apart,
}

/// The layout of new groups of N+K over so many active nodes with so many active devices in all.
/// N shrinks where it must, K stays; `None` where not even 1+K devices are there.
pub fn layout(data: u8, parity: u8, nodes: usize, devices: usize) -> Option<Layout> {
    let needed = 1 + usize::from(parity);
    let (places, apart) =
        if nodes >= needed { (nodes, Apart::Nodes) } else { (devices, Apart::Devices) };
    let room = places.checked_sub(usize::from(parity)).filter(|room| *room > 0)?;
    let data = u8::try_from(room).unwrap_or(u8::MAX).min(data);
    (data > 0).then_some(Layout { data, parity, apart })
}

/// The active devices of active nodes of a slice (`None`: of all). Devices of nodes that are down,
/// joining or left, and of witnesses, are none. `load` is asked for each.
pub fn candidates(
    map: &ClusterMap,
    slice: Option<&str>,
    load: impl Fn(DeviceId) -> u32,
) -> Vec<Candidate> {
    let fits = |node: u32| {
        let node = map.node(NodeId(node)).filter(|node| node.holds_data());
        node.is_some_and(|node| slice.is_none_or(|slice| node.slice == slice))
    };
    map.devices
        .iter()
        .filter(|d| d.state == DeviceState::Active as i32 && fits(d.node))
        .map(|d| Candidate { device: DeviceId(d.id), node: d.node, load: load(DeviceId(d.id)) })
        .collect()
}

/// The layout over the devices that are candidates.
pub fn layout_over(data: u8, parity: u8, candidates: &[Candidate]) -> Option<Layout> {
    let mut nodes: Vec<u32> = candidates.iter().map(|c| c.node).collect();
    nodes.sort_unstable();
    nodes.dedup();
    layout(data, parity, nodes.len(), candidates.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn n_shrinks_and_k_stays_and_too_few_nodes_mean_devices() {
        let over = |nodes, devices| layout(8, 2, nodes, devices).map(|l| (l.data, l.apart));
        assert_eq!(over(12, 24), Some((8, Apart::Nodes)));
        assert_eq!(over(6, 12), Some((4, Apart::Nodes)));
        assert_eq!(over(3, 30), Some((1, Apart::Nodes)));
        assert_eq!(over(2, 30), Some((8, Apart::Devices)));
        assert_eq!(over(2, 5), Some((3, Apart::Devices)));
        assert_eq!(over(2, 2), None);
        assert_eq!(over(0, 0), None);
    }
}
