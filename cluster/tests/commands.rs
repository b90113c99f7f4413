//! Commands: what holds after any of them, in any order.

mod common;

use bb_cluster::*;
use common::*;
use proptest::prelude::*;

fn replay(steps: &[(u8, u32, u32, u32)], each: impl Fn(&ClusterState, &ClusterState, &Command)) {
    let mut state = cluster(4, 12, 1);
    for (kind, a, b, c) in steps {
        let command = Command::of_term(change(&state, *kind, *a, *b, *c), TERM);
        let before = state.clone();
        let executed = state.execute(TERM, &command);
        if !executed.void.is_empty() {
            assert_eq!(before, state, "a void command changed something: {}", executed.void);
        }
        each(&before, &state, &command);
    }
}

proptest! {
    #[test]
    fn invariants_hold_after_every_command(steps in steps()) {
        replay(&steps, check_step);
    }

    #[test]
    fn a_snapshot_survives_and_is_consistent_after_every_command(steps in steps()) {
        replay(&steps, |_, after, _| {
            assert_eq!(ClusterState::decode_snapshot(&after.encode_snapshot()).as_ref(), Ok(after));
        });
    }

    #[test]
    fn a_command_that_is_repeated_changes_nothing(steps in steps()) {
        replay(&steps, |_, after, command| {
            let mut again = after.clone();
            again.execute(TERM, command);
            assert_eq!(&again, after, "{command:?}");
        });
    }

    #[test]
    fn replicas_that_execute_the_same_log_are_equal_byte_for_byte(steps in steps()) {
        let copy = std::cell::RefCell::new(cluster(4, 12, 1));
        replay(&steps, |_, after, command| {
            let sent = Command::decode_command(&command.encode_command()).expect("whole");
            copy.borrow_mut().execute(TERM, &sent);
            assert_eq!(copy.borrow().encode_snapshot(), after.encode_snapshot());
        });
    }

    #[test]
    fn a_delta_leads_from_each_epoch_to_the_present(steps in steps()) {
        let mut first = cluster(4, 12, 1);
        let mut history = MapHistory::new(&first.map);
        let mut old = vec![first.map.clone()];
        for (kind, a, b, c) in steps {
            let before = first.map.clone();
            let next = change(&first, kind, a, b, c);
            run(&mut first, next);
            if first.map != before {
                history.changed(&before, &first.map);
                old.push(first.map.clone());
            }
        }
        for base in &old {
            let got = match history.update(&first.map, base.epoch) {
                MapUpdate::Current => base.clone(),
                MapUpdate::Whole(bytes) => ClusterMap::decode_map(&bytes).expect("whole"),
                MapUpdate::Delta(bytes) => {
                    let delta = MapDelta::decode_delta(&bytes).expect("whole");
                    for other in old.iter().filter(|other| other.epoch != base.epoch) {
                        let refused = matches!(delta.apply(other), Err(MapError::NotTheBase { .. }));
prop_assert!(refused);
                    }
                    delta.apply(base).expect("its base")
                }
            };
            prop_assert_eq!(&got, &first.map);
        }
        prop_assert!(matches!(history.update(&first.map, 1), MapUpdate::Whole(_)) || first.map.epoch == 1);
    }

    #[test]
    fn damaged_bytes_never_panic(steps in steps(), at in any::<usize>(), with in any::<u8>(), cut in any::<usize>()) {
        let mut state = cluster(4, 12, 1);
        let before = state.map.clone();
        let mut history = MapHistory::new(&before);
        let next = change(&state, steps[0].0, steps[0].1, steps[0].2, steps[0].3);
        let command = Command::new(next.clone());
        let gone = Change::Down(name(&state, 3));
        run(&mut state, gone);
        history.changed(&before, &state.map);
        let MapUpdate::Delta(delta) = history.update(&state.map, before.epoch) else {
            panic!("a delta is shorter here");
        };
        for mut bytes in [state.encode_snapshot(), command.encode_command(), delta] {
            let at = at % bytes.len();
            bytes[at] ^= with;
            bytes.truncate(bytes.len() - cut % 3);
            let _ = ClusterMap::decode_map(&bytes);
            let _ = MapDelta::decode_delta(&bytes).and_then(|delta| delta.apply(&before));
            if let Ok(mut damaged) = ClusterState::decode_snapshot(&bytes) {
                run(&mut damaged, next.clone());
            }
            if let Ok(command) = Command::decode_command(&bytes) {
                state.clone().execute(TERM, &command);
            }
        }
    }
}

#[test]
fn a_deposed_leaders_down_is_void() {
    let mut state = cluster(4, 12, 1);
    let down = Change::Down(name(&state, 3));
    let before = state.clone();
    assert_ne!(state.execute(TERM + 1, &Command::of_term(down.clone(), TERM)).void, "");
    assert_ne!(state.execute(TERM, &Command::new(down.clone())).void, "");
    assert_eq!(state, before);
    assert_eq!(run(&mut state, down).void, "");
}

#[test]
fn no_more_than_k_nodes_go_down_at_a_time() {
    let mut state = cluster(4, 12, 1);
    let downs = [3, 4].map(|id| Change::Down(name(&state, id)));
    assert_eq!(run(&mut state, downs[0].clone()).void, "");
    assert_ne!(run(&mut state, downs[1].clone()).void, "");
    run(&mut state, Change::Tick(Tick { tick: MASS_TICKS + 1 }));
    assert_eq!(run(&mut state, downs[1].clone()).void, "");
}

#[test]
fn the_last_replica_goes_only_by_force_and_the_list_is_given() {
    let mut state = cluster(3, 6, 1);
    let voters = [2, 3].map(|node| Voter { node, seen: 0, votes: true });
    assert_eq!(run(&mut state, Change::Voters(Voters { voters: voters.to_vec() })).void, "");
    let down = Change::Down(name(&state, 1));
    assert_eq!(run(&mut state, down).void, "");
    assert_eq!(redundancy(&state.map).down, 6);
    let NodeName { node, incarnation } = name(&state, 1);
    let leave = |give_up| Change::Leave(Leave { node, incarnation, give_up });
    let refused = run(&mut state, leave(false));
    assert!(!refused.void.is_empty() && refused.last_replicas == [0, 1, 2, 3, 4, 5]);
    assert_eq!(run(&mut state, leave(true)).last_replicas.len(), 6);
    assert_eq!((redundancy(&state.map).down, redundancy(&state.map).given_up), (0, 6));
}

#[test]
fn a_damaged_log_never_comes_back_and_what_only_it_had_is_marked() {
    let mut state = cluster(3, 6, 1);
    let voters = [2, 3].map(|node| Voter { node, seen: 0, votes: true });
    run(&mut state, Change::Voters(Voters { voters: voters.to_vec() }));
    let damaged = Change::Damaged(name(&state, 1));
    assert_eq!(run(&mut state, damaged).void, "");
    assert_eq!(redundancy(&state.map).lost, 6);
    assert_eq!(state.map.nodes[0].voter, 0);
    let again = started(&state, 1);
    assert_ne!(run(&mut state, again).void, "");
    assert_ne!(run(&mut state, join(1, 0, false)).void, "");
}

#[test]
fn a_smaller_lease_counts_only_when_the_longer_ones_are_over() {
    let mut state = cluster(3, 6, 1);
    run(&mut state, Change::Settings(Settings { lease_ms: Some(500), ..Settings::default() }));
    assert_eq!(state.longest_lease_ms(), 3130);
    run(&mut state, Change::Tick(Tick { tick: MASS_TICKS }));
    assert_eq!(state.longest_lease_ms(), 630);
}

#[test]
fn the_map_of_a_large_cluster_changes_in_few_bytes() {
    let mut state = cluster(8, 16_384, 1);
    for (id, entry) in (0_u32..).zip(&mut state.map.partitions) {
        entry.primary = id % 8 + 1;
        entry.backups = vec![(id % 8 + id / 8 % 7 + 1) % 8 + 1];
    }
    let before = state.map.clone();
    let mut history = MapHistory::new(&before);
    let down = Change::Down(name(&state, 5));
    assert_eq!(run(&mut state, down).void, "");
    history.changed(&before, &state.map);
    let MapUpdate::Delta(bytes) = history.update(&state.map, before.epoch) else {
        panic!("a delta is shorter");
    };
    let whole = state.map.encode_map().len();
    println!("one of 8 nodes down, P = 16384: delta {} bytes, whole map {whole}", bytes.len());
    assert!(bytes.len() < 24 << 10, "{}", bytes.len());
}
