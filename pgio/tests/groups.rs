//! Writing and reading parity groups against members that refuse, lose, damage and stay silent.

#[expect(dead_code, reason = "each test uses a part of it")]
mod world;

use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use bb_erasure::crc32c;
use bb_pgio::{ReadError, ReadOptions, WriteError};
use bb_proto::Capability;
use bb_runtime::Executor;
use world::{Fault, POOL_BYTES, devices, pattern, pg, world};

#[test]
fn any_range_reads_back_also_with_any_k_members_gone() {
    let executor = Executor::simulated(1);
    let rt = executor.rt();
    executor.block_on(async {
        let w = world(&rt, 8);
        let contents = pattern(500_000);
        let d = w.write((4, 2), &contents).await.expect("written");
        let all = devices(&d);
        for (a, b) in [(0, 1), (0, 5), (2, 3), (4, 5), (1, 4)] {
            w.members.faults.borrow_mut().clear();
            w.fault(all[a], Fault::Failed);
            w.fault(all[b], Fault::Failed);
            for (at, len) in
                [(0, 500_000), (1, 1), (131_000, 200), (262_143, 2), (123_456, 300_001)]
            {
                let (got, reconstructed) = w.read(&d, at, len).await.expect("reads");
                assert!(got == contents[at..at + len], "{a} {b} {at} {len}");
                let lost =
                    [a, b].into_iter().filter(|i| (at >> 17..=(at + len - 1) >> 17).contains(i));
                assert_eq!(reconstructed as usize, lost.count());
            }
        }
        assert_eq!(w.pool.stats().used_bytes, 0, "no buffer is left behind");
    });
}

#[test]
fn more_than_k_lost_blocks_are_an_error_and_never_wrong_bytes() {
    let executor = Executor::simulated(2);
    let rt = executor.rt();
    executor.block_on(async {
        let w = world(&rt, 4);
        let d = w.write((2, 1), &pattern(200_000)).await.expect("written");
        let all = devices(&d);
        w.fault(all[0], Fault::Failed);
        w.fault(all[2], Fault::Failed);
        assert!(matches!(w.read(&d, 0, 10).await, Err(ReadError::Lost { missing: 2, parity: 1 })));
        let (got, _) = w.read(&d, 150_000, 10).await.expect("the third block is well");
        assert_eq!(got, &pattern(200_000)[150_000..150_010]);
    });
}

#[test]
fn rot_is_found_by_the_reader_and_made_good() {
    let executor = Executor::simulated(3);
    let rt = executor.rt();
    executor.block_on(async {
        let w = world(&rt, 4);
        let contents = pattern(262_144);
        let d = w.write((2, 1), &contents).await.expect("written");
        // One byte of a chunk, and, in the other block, chunk and checksum alike.
        let first = (devices(&d)[0], pg(1), 0);
        w.members.blocks.borrow_mut().get_mut(&first).expect("held").0[5000] ^= 1;
        let (got, reconstructed) = w.read(&d, 0, 262_144).await.expect("reads");
        assert!(got == contents && reconstructed == 1);
        w.members.blocks.borrow_mut().get_mut(&first).expect("held").0[5000] ^= 1;
        let second = (devices(&d)[1], pg(1), 1);
        {
            let mut blocks = w.members.blocks.borrow_mut();
            let (bytes, crcs) = blocks.get_mut(&second).expect("held");
            bytes[0] ^= 1;
            crcs[0] = crc32c(&bytes[..4096]);
        }
        let (got, reconstructed) = w.read(&d, 0, 262_144).await.expect("reads");
        assert!(got == contents && reconstructed == 1, "the descriptor knows the block's checksum");
    });
}

#[test]
fn a_block_that_is_damaged_on_the_way_is_not_lost() {
    let executor = Executor::simulated(3);
    let rt = executor.rt();
    executor.block_on(async {
        let w = world(&rt, 4);
        let contents = pattern(262_144);
        let d = w.write((2, 1), &contents).await.expect("written");
        let all = devices(&d);
        // One is lost, which is all that parity makes up for.
        w.fault(all[0], Fault::Failed);
        w.fault(all[1], Fault::DamagedOnTheWay(1));
        let (got, reconstructed) = w.read(&d, 0, 262_144).await.expect("reads");
        assert!(got == contents && reconstructed == 1);
    });
}

#[test]
fn a_member_that_refuses_is_replaced() {
    let executor = Executor::simulated(4);
    let rt = executor.rt();
    executor.block_on(async {
        for fault in [Fault::Full, Fault::Failed, Fault::Silent, Fault::Busy(u32::MAX)] {
            let w = world(&rt, 4);
            w.fault(2, fault);
            for sequence in 0..5 {
                let sealed = w.sealed((2, 1), &pattern(100_000)).await;
                let cap = Capability::default();
                let started = rt.now();
                let d = w.io.write(&cap, pg(sequence), &sealed).await.expect("written elsewhere");
                let distinct: BTreeSet<u32> = devices(&d).into_iter().collect();
                assert_eq!((distinct.len(), distinct.contains(&2)), (3, false), "{fault:?}");
                assert!(rt.now().since(started) < Duration::from_secs(6));
            }
        }
    });
}

#[test]
fn a_busy_member_is_asked_again_and_a_full_cluster_says_so() {
    let executor = Executor::simulated(5);
    let rt = executor.rt();
    executor.block_on(async {
        let w = world(&rt, 3);
        w.fault(1, Fault::Busy(3));
        w.write((2, 1), &pattern(100_000)).await.expect("busy passes");
        w.fault(1, Fault::Full);
        let full = w.write((2, 1), &pattern(100_000)).await;
        assert!(matches!(full, Err(WriteError::NoSpace { usable: 2, needed: 3 })), "{full:?}");
    });
}

#[test]
fn a_write_outlives_a_restart_of_the_only_server() {
    let executor = Executor::simulated(6);
    let rt = executor.rt();
    executor.block_on(async {
        let w = Rc::new(world(&rt, 3));
        (0..3).for_each(|d| w.fault(d, Fault::Silent));
        let w2 = w.clone();
        let write = rt.spawn(async move { w2.write((2, 1), &pattern(100_000)).await });
        rt.sleep(Duration::from_secs(20)).await;
        assert!(!write.is_finished());
        w.members.faults.borrow_mut().clear();
        write.await.expect("runs").expect("written");
    });
}

#[test]
fn a_stale_member_sends_the_reader_back_to_the_map_unless_home_confirmed_it() {
    let executor = Executor::simulated(7);
    let rt = executor.rt();
    executor.block_on(async {
        let w = world(&rt, 3);
        let contents = pattern(9_000);
        let d = w.write((2, 1), &contents).await.expect("written");
        w.members.blocks.borrow_mut().remove(&(devices(&d)[0], pg(1), 0));
        assert!(matches!(w.read(&d, 0, 9_000).await, Err(ReadError::Stale)));
        let mut out = vec![0; 9_000];
        let confirmed = ReadOptions { stale_is_missing: true };
        let report = w.io.read(&Capability::default(), &d, 0, &mut out, confirmed).await;
        assert_eq!(report.expect("reads").reconstructed, 1);
        assert!(out == contents);
    });
}

#[test]
fn rule_14_degraded_reads_with_short_buffers_end() {
    let executor = Executor::simulated(8);
    let rt = executor.rt();
    executor.block_on(async {
        let w = Rc::new(world(&rt, 4));
        let contents = Rc::new(pattern(2 << 20));
        let d = w.write((2, 1), &contents).await.expect("written");
        w.fault(devices(&d)[0], Fault::Failed);
        // Room for three blocks and a little: two readers cannot both have all they need.
        let mut held = Vec::new();
        while w.pool.stats().used_bytes < (POOL_BYTES as u64) - (4 << 20) {
            held.push(w.pool.try_alloc(1 << 20).expect("room"));
        }
        let readers: Vec<_> = (0..6)
            .map(|_| {
                let (w, d, contents) = (w.clone(), d.clone(), contents.clone());
                rt.spawn(async move {
                    let (got, _) = w.read(&d, 0, 2 << 20).await.expect("reads");
                    assert!(got == contents[..]);
                })
            })
            .collect();
        for reader in readers {
            reader.await.expect("runs");
        }
    });
}

#[test]
fn a_healthy_read_asks_only_the_members_that_hold_the_range() {
    let executor = Executor::simulated(9);
    let rt = executor.rt();
    executor.block_on(async {
        let w = world(&rt, 8);
        let d = w.write((4, 2), &pattern(500_000)).await.expect("written");
        w.read(&d, 200_000, 10).await.expect("reads");
        assert_eq!(w.members.gets.get(), 1);
    });
}
