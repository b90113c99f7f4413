//! Placement over a map: who may get blocks, and where they go.

#[expect(dead_code, reason = "each test uses a part of it")]
mod common;

use std::collections::BTreeSet;

use bb_cluster::*;
use bb_proto::{DeviceId, PartitionId, PgId, SessionId};
use common::*;
use proptest::prelude::*;

proptest! {
    #[test]
    fn only_active_devices_of_active_nodes_get_blocks_and_nodes_are_not_shared(
        steps in steps(), data in 1_u8..9, parity in 0_u8..4, rendezvous in any::<bool>(),
    ) {
        let mut state = cluster(6, 4, 1);
        for (kind, a, b, c) in steps {
            let next = change(&state, kind, a, b, c);
            run(&mut state, next);
        }
        let map = &state.map;
        let all = candidates(map, None, |_| 0);
        let node_of = |d: DeviceId| map.device(d).expect("known").node;
        for candidate in &all {
            let node = map.node(bb_proto::NodeId(candidate.node)).expect("known");
            prop_assert!(node.is_active() && !node.witness);
            prop_assert_eq!(map.device(candidate.device).expect("known").state, 0);
        }
        let Some(layout) = layout_over(data, parity, &all) else {
            prop_assert!(all.len() <= usize::from(parity));
            return Ok(());
        };
        let placement =
            if rendezvous { Placement::Deterministic } else { Placement::LeastLoaded };
        let pg = PgId {
            slot: bb_proto::Tick(1),
            session: SessionId(2),
            sequence: u32::from(data),
            home: PartitionId(0),
        };
        let total = usize::from(layout.data + layout.parity);
        let mut turn = 0;
        let mut chance = |bound: u64| { turn += 7; turn % bound };
        let members = choose_members(placement, pg, &all, total, &mut chance);
        prop_assert_eq!(members.iter().collect::<BTreeSet<_>>().len(), total);
        let nodes: BTreeSet<u32> = members.iter().map(|d| node_of(*d)).collect();
        if layout.apart == Apart::Nodes {
            prop_assert_eq!(nodes.len(), total);
        }
        // A member that is replaced goes to a node without a block, if there is one.
        let stay: Vec<u32> = members[1..].iter().map(|d| node_of(*d)).collect();
        let rest: Vec<Candidate> =
            all.iter().copied().filter(|c| !members.contains(&c.device)).collect();
        let free = rest.iter().any(|c| !stay.contains(&c.node));
        let other = choose_members_beside(placement, pg, &rest, &stay, 1, &mut chance);
        prop_assert!(!free || other.iter().all(|d| !stay.contains(&node_of(*d))));
    }
}
