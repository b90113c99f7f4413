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
        let rules = Rules { placement, apart: layout.apart };
        let members = choose_members(rules, pg, &all, total, &mut chance);
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
        let other = choose_members_beside(rules, pg, &rest, &stay, 1, &mut chance);
        prop_assert!(!free || other.iter().all(|d| !stay.contains(&node_of(*d))));
    }
}

fn group(sequence: u32) -> PgId {
    let (slot, session) = (bb_proto::Tick(70), SessionId(0x5EED));
    PgId { slot, session, sequence, home: PartitionId(sequence % 64) }
}

fn grid(nodes: u32, per_node: u32) -> Vec<Candidate> {
    let device = |i| Candidate { device: DeviceId(i), node: 1 + i % nodes, load: 0 };
    (0..nodes * per_node).map(device).collect()
}

fn placed(all: &[Candidate], sequence: u32, count: usize) -> BTreeSet<DeviceId> {
    let rules = Rules { placement: Placement::Deterministic, apart: Apart::Nodes };
    choose_members(rules, group(sequence), all, count, &mut |_| 0).into_iter().collect()
}

proptest! {
    #[test]
    fn a_node_that_goes_moves_only_its_share(
        nodes in 4_u32..20, per_node in 1_u32..5, count in 2_usize..4, gone in 0_u32..20,
    ) {
        let (all, gone) = (grid(nodes, per_node), 1 + gone % nodes);
        let left: Vec<Candidate> = all.iter().copied().filter(|c| c.node != gone).collect();
        let mut moved = 0;
        for sequence in 0..400 {
            let (before, after) = (placed(&all, sequence, count), placed(&left, sequence, count));
            let stays: BTreeSet<DeviceId> =
                before.iter().copied().filter(|d| 1 + d.0 % nodes != gone).collect();
            prop_assert!(stays.is_subset(&after));
            prop_assert_eq!(after.len(), count);
            moved += count - stays.len();
        }
        // Its share is count / nodes of the groups.
        let share = 400.0 * f64::from(u32::try_from(count).unwrap()) / f64::from(nodes);
        prop_assert!((f64::from(u32::try_from(moved).unwrap()) - share).abs() < 0.5 * share + 25.0);
    }
}

#[test]
fn blocks_spread_evenly_over_nodes_and_over_their_devices() {
    for (nodes, per_node) in [(4, 1), (7, 4), (12, 2)] {
        let all = grid(nodes, per_node);
        let mut hits = vec![0_u32; all.len()];
        for sequence in 0..12_000 {
            placed(&all, sequence, 3).iter().for_each(|d| hits[d.0 as usize] += 1);
        }
        let even = 36_000 / u32::try_from(all.len()).unwrap();
        let fits = |h: &u32| (even - even / 6..=even + even / 6).contains(h);
        assert!(hits.iter().all(fits), "{nodes}x{per_node}: {hits:?}");
    }
}

#[test]
fn the_least_loaded_of_two_fills_emptier_devices_and_still_uses_all() {
    let mut all = grid(6, 2);
    for (at, candidate) in all.iter_mut().enumerate() {
        candidate.load = if at % 6 == 0 { 600 } else { 100 };
    }
    let rules = Rules { placement: Placement::LeastLoaded, apart: Apart::Nodes };
    let mut state = 7_u64;
    let mut chance = |bound: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 33) % bound
    };
    let mut hits = [0_u32; 6];
    for sequence in 0..6_000 {
        for device in choose_members(rules, group(sequence), &all, 3, &mut chance) {
            hits[(device.0 % 6) as usize] += 1;
        }
    }
    assert!(hits[0] < hits[1] / 4, "the loaded node is spared: {hits:?}");
    let others = &hits[1..];
    assert!(others.iter().all(|h| (3_000..4_200).contains(h)), "{hits:?}");
}
