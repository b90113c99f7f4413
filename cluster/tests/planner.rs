//! The planner: comes to rest from anywhere, and rests where nothing is to do.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bb_cluster::*;
use bb_proto::{NodeId, PartitionId};
use common::*;
use proptest::prelude::*;

/// Plans and obeys until nothing is left to do. Only some fillings are complete after a round,
/// by `chance`. Returns the number of rounds.
fn settle(state: &mut ClusterState, chance: u64) -> usize {
    let long: BTreeMap<NodeId, Duration> =
        state.map.nodes.iter().map(|n| (NodeId(n.id), Duration::from_secs(3600))).collect();
    let leader = state.map.nodes.iter().find(|n| n.is_active() && n.voter != 0).map_or(1, |n| n.id);
    for round in 0..3000 {
        let filling = |part: u64| -> BTreeSet<(PartitionId, NodeId)> {
            let all = (0_u32..).zip(&state.map.partitions);
            all.flat_map(|(id, p)| p.filling.iter().map(move |f| (PartitionId(id), NodeId(*f))))
                .filter(|(p, n)| (u64::from(p.0 * 31 + n.0) + chance + round) % 3 < part)
                .collect()
        };
        let none = BTreeMap::new();
        let filled = filling(1 + chance % 2);
        let leader = NodeId(leader);
        let mut next = plan(
            &state.map,
            &Known { leader, for_how_long: &long, filled: &filled, load: &none },
            &PlanLimits::default(),
        );
        if next.is_empty() {
            let all = filling(3);
            next = plan(
                &state.map,
                &Known { leader, for_how_long: &long, filled: &all, load: &none },
                &PlanLimits::default(),
            );
            if next.is_empty() {
                return usize::try_from(round).expect("small");
            }
        }
        for command in next.commands {
            let before = state.clone();
            let executed = state.execute(TERM, &command);
            assert!(executed.void.is_empty() && executed.not_changed.is_empty(), "{executed:?}");
            check_step(&before, state, &command);
            check_voters(&before.map, &state.map);
        }
        if !next.handovers.is_empty() {
            let executed = run(state, Change::Reconfigure(Reconfigure { changes: next.handovers }));
            assert!(executed.not_changed.is_empty(), "{executed:?}");
        }
    }
    panic!("the planner does not come to rest");
}

/// Additions one by one, then removals: a majority of the voters is active all the way.
fn check_voters(before: &ClusterMap, after: &ClusterMap) {
    let votes = |map: &ClusterMap| -> BTreeSet<u32> {
        map.nodes.iter().filter(|n| n.voter != 0).map(|n| n.id).collect()
    };
    let (old, new) = (votes(before), votes(after));
    if old == new {
        return;
    }
    let mut now = old.clone();
    let mut steps: Vec<(u32, bool)> = new.difference(&old).map(|id| (*id, true)).collect();
    let mut gone: Vec<u32> = old.difference(&new).copied().collect();
    gone.sort_by_key(|id| after.is_active(*id));
    steps.extend(gone.into_iter().map(|id| (id, false)));
    for (id, comes) in steps {
        if comes {
            now.insert(id)
        } else {
            now.remove(&id)
        };
        let alive = now.iter().filter(|id| after.is_active(**id)).count();
        assert!(2 * alive > now.len(), "no majority on the way from {old:?} to {new:?}");
    }
}

fn spread(map: &ClusterMap, count: impl Fn(&PartitionEntry, u32) -> bool) -> (usize, usize) {
    let counts: Vec<usize> = map
        .data_nodes()
        .map(|n| map.partitions.iter().filter(|p| count(p, n.id)).count())
        .collect();
    (counts.iter().copied().min().unwrap_or(0), counts.iter().copied().max().unwrap_or(0))
}

fn is_full_and_even(map: &ClusterMap) {
    let nodes = map.data_nodes().count();
    let wanted = (1 + map.backups as usize).min(nodes);
    let served: Vec<_> = map.partitions.iter().filter(|p| map.is_active(p.primary)).collect();
    assert!(served.iter().all(|p| p.member_count() == wanted && p.filling.is_empty()));
    let (few, many) = spread(map, |p, id| map.is_active(p.primary) && p.names(id));
    assert!(many - few <= 1, "replicas: {few} to {many}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]
    #[test]
    fn planning_comes_to_rest_full_and_even_from_any_state(
        steps in steps(), nodes in 2_u32..8, backups in 0_u32..4, chance in 0_u64..9,
    ) {
        let mut state = cluster(nodes, 40, backups);
        settle(&mut state, chance);
        for (kind, a, b, c) in steps {
            let next = change(&state, kind, a, b, c);
            run(&mut state, next);
        }
        settle(&mut state, chance);
        is_full_and_even(&state.map);
        prop_assert_eq!(settle(&mut state, chance + 1), 0, "at rest it stays");
    }
}

#[test]
fn a_cluster_that_grows_is_spread_and_survives_a_death_and_a_return() {
    let mut state = cluster(5, 320, 2);
    let rounds = settle(&mut state, 1);
    is_full_and_even(&state.map);
    assert_eq!(state.map.nodes.iter().filter(|n| n.voter != 0).count(), 5);
    let (few, many) = spread(&state.map, |p, id| p.primary == id);
    assert!(many - few <= 2, "primaries: {few} to {many}");
    let down = Change::Down(name(&state, 4));
    assert_eq!(run(&mut state, down).void, "");
    assert_eq!(redundancy(&state.map).down, 0);
    let refill = settle(&mut state, 1);
    is_full_and_even(&state.map);
    let back = started(&state, 4);
    assert_eq!(run(&mut state, back).void, "");
    let balance = settle(&mut state, 1);
    is_full_and_even(&state.map);
    assert!(redundancy(&state.map).is_full());
    println!("rounds: growth {rounds}, refill {refill}, balance after the return {balance}");
}

#[test]
fn a_witness_votes_and_holds_nothing_and_two_nodes_alone_both_vote() {
    let mut state = cluster(2, 16, 1);
    settle(&mut state, 0);
    assert_eq!(state.map.nodes.iter().filter(|n| n.voter != 0).count(), 2);
    let id = run(&mut state, join(7, 0, true)).node;
    let change = started(&state, id);
    run(&mut state, change);
    settle(&mut state, 0);
    assert_eq!(state.map.nodes.iter().filter(|n| n.voter != 0).count(), 3);
    assert!(state.map.partitions.iter().all(|p| !p.names(id)));
}

#[test]
fn a_new_node_gets_moves_at_once_and_one_that_was_started_again_a_moment_ago_does_not() {
    let mut state = cluster(3, 30, 1);
    settle(&mut state, 0);
    let id = run(&mut state, join(9, 1, false)).node;
    let change = started(&state, id);
    run(&mut state, change);
    let ages = BTreeMap::new();
    let none = (BTreeSet::new(), BTreeMap::new());
    let known = Known { leader: NodeId(1), for_how_long: &ages, filled: &none.0, load: &none.1 };
    assert!(!plan(&state.map, &known, &PlanLimits::default()).is_empty());
    let change = started(&state, id);
    run(&mut state, change);
    assert!(plan(&state.map, &known, &PlanLimits::default()).is_empty());
}
