//! Parity groups over several nodes: where blocks go, and what a dead or slow node costs.

#[expect(dead_code, reason = "each test uses a part of it")]
mod world;

use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use bb_erasure::Geometry;
use bb_pgio::{ReadError, WriteError};
use bb_proto::PgDescriptor;
use bb_runtime::{Executor, Rt};
use world::{Fault, World, devices, pattern, world, world_of};

fn run<F: Future<Output = ()>>(seed: u64, test: impl FnOnce(Rt) -> F) {
    let executor = Executor::simulated(seed);
    let rt = executor.rt();
    executor.block_on(test(rt));
}

fn nodes_of(descriptor: &PgDescriptor, nodes: u32) -> BTreeSet<u32> {
    devices(descriptor).into_iter().map(|device| 1 + device % nodes).collect()
}

fn node_fault(w: &World, node: u32, fault: Fault) {
    let map = w.map.now.borrow().clone();
    map.devices.iter().filter(|d| d.node == node).for_each(|d| w.fault(d.id, fault));
}

#[test]
fn blocks_of_a_group_are_on_different_nodes_also_when_members_are_replaced() {
    run(1, |rt| async move {
        for deterministic in [false, true] {
            let w = world_of(&rt, 5, 10);
            let map = w.changed(|map| map.deterministic = deterministic);
            *w.map.now.borrow_mut() = Rc::new(map);
            w.fault(3, Fault::Full);
            w.fault(6, Fault::Busy(u32::MAX));
            for sequence in 0..30 {
                let d = w.write_as(sequence, (3, 1), &pattern(100_000)).await.expect("written");
                assert_eq!(nodes_of(&d, 5).len(), 4, "{:?}", devices(&d));
            }
        }
    });
}

#[test]
fn a_group_that_does_not_fit_the_nodes_that_answer_is_refused_rather_than_doubled_up() {
    run(2, |rt| async move {
        let w = world_of(&rt, 4, 12);
        node_fault(&w, 2, Fault::Unconnected);
        let wanted = Geometry::new(3, 1).expect("valid");
        let started = rt.now();
        let refused = w.write((3, 1), &pattern(100_000)).await;
        assert!(matches!(refused, Err(WriteError::NoSpace { .. })), "{refused:?}");
        assert!(rt.now().since(started) < Duration::from_secs(1), "no waiting for the dead");
        let now = w.io.usable_geometry(wanted).expect("three nodes");
        assert_eq!((now.data(), now.parity()), (2, 1));
        let d = w.write_as(2, (2, 1), &pattern(100_000)).await.expect("written");
        assert_eq!(nodes_of(&d, 4), BTreeSet::from([1, 3, 4]));
        // It comes back by itself.
        w.members.faults.borrow_mut().clear();
        rt.sleep(Duration::from_secs(20)).await;
        assert_eq!(w.io.usable_geometry(wanted), Some(wanted));
        let d = w.write_as(3, (3, 1), &pattern(100_000)).await.expect("written");
        assert_eq!(nodes_of(&d, 4).len(), 4);
    });
}

#[test]
fn with_fewer_than_1_plus_k_nodes_blocks_are_kept_apart_by_devices() {
    run(3, |rt| async move {
        let w = world_of(&rt, 4, 12);
        w.take_down(1);
        w.take_down(2);
        let wanted = Geometry::new(4, 2).expect("valid");
        assert_eq!(w.io.usable_geometry(wanted), Some(wanted), "six devices on two nodes");
        let d = w.write((4, 2), &pattern(100_000)).await.expect("written");
        assert_eq!(devices(&d).into_iter().collect::<BTreeSet<_>>().len(), 6);
        assert_eq!(nodes_of(&d, 4), BTreeSet::from([3, 4]));
    });
}

#[test]
fn a_client_writes_into_its_own_slice_and_reads_from_all() {
    run(4, |rt| async move {
        let w = world_of(&rt, 6, 6);
        let map = w.changed(|map| {
            map.nodes.iter_mut().filter(|n| n.id > 3).for_each(|n| n.slice = "b".into());
        });
        *w.map.now.borrow_mut() = Rc::new(map);
        let contents = pattern(100_000);
        let mut written = Vec::new();
        for (sequence, slice, nodes) in [(1, "b", [4, 5, 6]), (2, "", [1, 2, 3])] {
            *w.map.slice.borrow_mut() = Some(slice.into());
            let d = w.write_as(sequence, (2, 1), &contents).await.expect("written");
            assert_eq!(nodes_of(&d, 6), BTreeSet::from(nodes));
            written.push(d);
        }
        let wanted = Geometry::new(4, 1).expect("valid");
        assert_eq!(w.io.usable_geometry(wanted).map(|g| g.data()), Some(2), "of one slice");
        for d in &written {
            assert!(w.read(d, 0, 100_000).await.expect("reads").0 == contents);
        }
        *w.map.slice.borrow_mut() = Some("none".into());
        assert_eq!(w.io.usable_geometry(wanted), None);
    });
}

#[test]
fn a_node_that_dies_under_a_put_is_replaced_long_before_the_put_times_out() {
    run(5, |rt| async move {
        let w = world_of(&rt, 5, 5);
        // No answer at all: not even a broken connection.
        node_fault(&w, 3, Fault::Silent);
        for sequence in 0..20 {
            let started = rt.now();
            let d = w.write_as(sequence, (3, 1), &pattern(100_000)).await.expect("written");
            assert!(!nodes_of(&d, 5).contains(&3));
            assert!(rt.now().since(started) < Duration::from_millis(1_200), "{sequence}");
        }
        assert!(w.io.stats().hedge_puts > 0);
    });
}

/// Blocks on the fourth of four nodes with two devices each, whose puts take so long, after four
/// writers that know nothing have written fifty groups each.
async fn on_a_slow_node(rt: &Rt, slow_ms: u64) -> (Rc<World>, usize) {
    let w = Rc::new(world_of(rt, 4, 8));
    node_fault(&w, 4, Fault::Slow(slow_ms));
    let writers = (0..4).map(|writer| {
        let w = w.clone();
        rt.spawn(async move {
            let mut on_it = 0;
            for sequence in 0..50 {
                let written = w.write_as(100 * writer + sequence, (2, 1), &pattern(100_000)).await;
                let written = written.expect("written");
                on_it += devices(&written).iter().filter(|device| *device % 4 == 3).count();
            }
            on_it
        })
    });
    let mut on_it = 0;
    for writer in writers.collect::<Vec<_>>() {
        on_it += writer.await.expect("runs");
    }
    (w, on_it)
}

#[test]
fn a_slow_node_gets_few_blocks_of_those_who_may_choose() {
    run(20, |rt| async move {
        let (_, on_it) = on_a_slow_node(&rt, 80).await;
        assert!(on_it <= 24, "{on_it} of 600: only until it is known");
    });
}

#[test]
fn nobody_waits_for_a_slow_node_when_others_are_clearly_faster() {
    run(21, |rt| async move {
        let started = rt.now();
        // Not late: it would answer in time.
        let (w, on_it) = on_a_slow_node(&rt, 900).await;
        let took = rt.now().since(started);
        let stats = w.io.stats();
        assert_eq!(on_it, 0);
        assert!(stats.hedge_puts > 0 && stats.hedge_puts <= 16 + 600 / 20, "{stats:?}");
        assert!(took < Duration::from_millis(450), "{took:?}");
        let wanted = Geometry::new(3, 1).expect("valid");
        assert_eq!(w.io.usable_geometry(wanted), Some(wanted), "slow is not silent");
    });
}

#[test]
fn no_put_is_hedged_when_all_are_equally_slow_nor_where_placement_is_fixed() {
    run(22, |rt| async move {
        let w = world_of(&rt, 4, 8);
        (0..8).for_each(|device| w.fault(device, Fault::Slow(600)));
        for sequence in 0..20 {
            w.write_as(sequence, (2, 1), &pattern(100_000)).await.expect("written");
        }
        let map = w.changed(|map| map.deterministic = true);
        *w.map.now.borrow_mut() = Rc::new(map);
        w.members.faults.borrow_mut().clear();
        node_fault(&w, 4, Fault::Slow(600));
        for sequence in 20..40 {
            w.write_as(sequence, (2, 1), &pattern(100_000)).await.expect("written");
        }
        assert_eq!(w.io.stats().hedge_puts, 0);
    });
}

#[test]
fn a_map_that_says_the_node_is_down_ends_the_wait_for_its_put() {
    run(6, |rt| async move {
        let w = world_of(&rt, 4, 4);
        node_fault(&w, 2, Fault::Silent);
        // All nodes are needed, so that no device is left to try meanwhile; the next map says why.
        let next = w.changed(|map| map.nodes[1].state = 1);
        *w.map.next.borrow_mut() = Some(next);
        let started = rt.now();
        let refused = w.write((3, 1), &pattern(100_000)).await;
        assert!(
            matches!(refused, Err(WriteError::NoSpace { usable: 3, needed: 4 })),
            "{refused:?}"
        );
        assert!(rt.now().since(started) < Duration::from_millis(1_500));
    });
}

#[test]
fn a_stalled_member_does_not_stall_the_read() {
    run(7, |rt| async move {
        for (at, len) in [(0, 500_000), (0, 100), (140_000, 300)] {
            let w = world_of(&rt, 6, 6);
            let contents = pattern(500_000);
            let d = w.write((4, 2), &contents).await.expect("written");
            w.fault(devices(&d)[at >> 17], Fault::Slow(4_000));
            let started = rt.now();
            let (got, reconstructed) = w.read(&d, at, len).await.expect("reads");
            assert!(got == contents[at..at + len]);
            assert_eq!(reconstructed, 1);
            let took = rt.now().since(started);
            assert!(took < Duration::from_millis(60), "{took:?}");
            let stats = w.io.stats();
            assert_eq!((stats.hedges, stats.hedges_won), (1, 1), "{stats:?}");
        }
    });
}

#[test]
fn a_member_that_answers_after_all_wins_against_its_reconstruction() {
    run(8, |rt| async move {
        let w = world_of(&rt, 6, 6);
        let contents = pattern(500_000);
        let d = w.write((4, 2), &contents).await.expect("written");
        let all = devices(&d);
        w.fault(all[0], Fault::Slow(25));
        // Who would have to help is slower still.
        (1..6).for_each(|at| w.fault(all[at], Fault::Slow(500)));
        let (got, reconstructed) = w.read(&d, 0, 100).await.expect("reads");
        assert!(got == contents[..100] && reconstructed == 0);
        let stats = w.io.stats();
        assert_eq!((stats.hedges, stats.hedges_won), (1, 0), "{stats:?}");
    });
}

#[test]
fn hedged_reads_stay_within_five_percent_under_a_stalled_device() {
    run(9, |rt| async move {
        let w = Rc::new(world_of(&rt, 6, 6));
        let contents = Rc::new(pattern(500_000));
        let d = Rc::new(w.write((4, 2), &contents).await.expect("written"));
        // Late, but never silent: nothing tells that it is dead.
        w.fault(devices(&d)[0], Fault::Slow(400));
        let readers: Vec<_> = (0..4)
            .map(|reader| {
                let (w, d, contents) = (w.clone(), d.clone(), contents.clone());
                rt.spawn(async move {
                    for turn in 0..250 {
                        let at = ((reader + turn) % 4) << 17;
                        let (got, _) = w.read(&d, at, 4_000).await.expect("reads");
                        assert!(got == contents[at..at + 4_000]);
                    }
                })
            })
            .collect();
        for reader in readers {
            reader.await.expect("runs");
        }
        let stats = w.io.stats();
        assert_eq!(stats.gets, 1_000);
        assert!(stats.hedge_gets > 0 && stats.hedge_gets <= 16 + 1_000 / 20, "{stats:?}");
        assert!(u64::from(w.members.gets.get()) <= stats.gets + stats.hedge_gets);
    });
}

#[test]
fn nobody_is_hedged_when_all_are_equally_slow() {
    run(10, |rt| async move {
        let w = world_of(&rt, 6, 6);
        let contents = pattern(500_000);
        let d = w.write((4, 2), &contents).await.expect("written");
        for _ in 0..20 {
            w.read(&d, 0, 500_000).await.expect("reads");
        }
        // From one moment to the next, and again once that is known.
        (0..6).for_each(|device| w.fault(device, Fault::Slow(300)));
        for _ in 0..20 {
            assert!(w.read(&d, 0, 500_000).await.expect("reads").0 == contents);
        }
        assert_eq!(w.io.stats().hedges, 0);
    });
}

#[test]
fn a_member_on_a_node_that_is_down_is_not_asked_and_not_waited_for() {
    run(11, |rt| async move {
        let w = world_of(&rt, 4, 4);
        let contents = pattern(3 << 17);
        let d = w.write((3, 1), &contents).await.expect("written");
        let first = devices(&d)[0];
        node_fault(&w, 1 + first % 4, Fault::Silent);
        w.take_down(1 + first % 4);
        let before = w.members.gets.get();
        let started = rt.now();
        let (got, reconstructed) = w.read(&d, 0, 3 << 17).await.expect("reads");
        assert!(got == contents && reconstructed == 1);
        assert!(rt.now().since(started) < Duration::from_millis(10));
        assert_eq!(w.members.gets.get() - before, 3);
        assert_eq!(w.io.stats().hedges, 0);
    });
}

#[test]
fn a_group_with_too_many_members_away_waits_and_is_lost_only_when_they_are_given_up() {
    run(12, |rt| async move {
        let w = Rc::new(world_of(&rt, 4, 4));
        let contents = pattern(200_000);
        let d = w.write((2, 1), &contents).await.expect("written");
        let nodes: Vec<u32> = nodes_of(&d, 4).into_iter().collect();
        w.take_down(nodes[0]);
        w.take_down(nodes[1]);
        let (w2, d2) = (w.clone(), d.clone());
        let read = rt.spawn(async move { w2.read(&d2, 0, 200_000).await });
        rt.sleep(Duration::from_secs(30)).await;
        assert!(!read.is_finished(), "they may come back");
        let back = w.changed(|map| map.nodes.iter_mut().for_each(|node| node.state = 0));
        *w.map.next.borrow_mut() = Some(back);
        assert!(read.await.expect("runs").expect("reads").0 == contents);
        let gone = w.changed(|map| {
            map.nodes.iter_mut().filter(|n| nodes[..2].contains(&n.id)).for_each(|n| n.state = 3);
        });
        *w.map.now.borrow_mut() = Rc::new(gone);
        let lost = w.read(&d, 0, 200_000).await;
        assert!(matches!(lost, Err(ReadError::Lost { missing: 2, parity: 1 })), "{lost:?}");
    });
}

#[test]
fn reads_go_round_a_silent_member_until_it_has_had_time_to_come_back() {
    run(13, |rt| async move {
        let w = world_of(&rt, 4, 4);
        let contents = pattern(200_000);
        let d = w.write((2, 1), &contents).await.expect("written");
        let first = devices(&d)[0];
        w.fault(first, Fault::Unconnected);
        w.read(&d, 0, 100).await.expect("reads");
        let asked = w.members.gets.get();
        for _ in 0..10 {
            w.read(&d, 0, 100).await.expect("reads");
        }
        assert_eq!(w.members.gets.get() - asked, 20, "two sources each time, not a third in vain");
        w.members.faults.borrow_mut().clear();
        rt.sleep(Duration::from_secs(2)).await;
        let (_, reconstructed) = w.read(&d, 0, 100).await.expect("reads");
        assert_eq!(reconstructed, 0, "asked again");
    });
}

#[test]
fn rule_14_a_hedge_takes_only_buffers_that_are_free() {
    run(14, |rt| async move {
        let w = world(&rt, 4);
        let contents = pattern(2 << 20);
        let d = w.write((2, 1), &contents).await.expect("written");
        w.fault(devices(&d)[0], Fault::Slow(300));
        let mut held = Vec::new();
        // Room for what is wanted, and for no more.
        while w.pool.stats().used_bytes < world::POOL_BYTES as u64 - (2 << 20) {
            held.push(w.pool.try_alloc(1 << 20).expect("room"));
        }
        let started = rt.now();
        let (got, reconstructed) = w.read(&d, 0, 2 << 20).await.expect("reads");
        assert!(got == contents && reconstructed == 0);
        assert!(rt.now().since(started) >= Duration::from_millis(300));
        assert_eq!(w.io.stats().hedges, 0);
    });
}
