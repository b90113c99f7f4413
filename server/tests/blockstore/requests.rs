//! What each request answers.

use std::rc::Rc;
use std::time::Duration;

use bb_nvme::FaultKind;
use bb_proto::{Code, GetBlock, GetBlockReply, Rights, ServiceClass, SessionId};

use crate::world::{capability, content, formatted, key, pg, put_of};

#[test]
fn a_block_reads_back_whole_and_in_parts_until_it_is_freed() {
    formatted(1, 8, |world| async move {
        let process = world.start().await;
        let block = key(1, 2);
        process.put(block, 16).await.unwrap();
        assert_eq!(process.get(block, 16).await, Ok(content(block, 16)));
        let part = process.get_chunks(block, 3, 2).await.unwrap();
        assert_eq!(part, content(block, 16)[3 << 12..5 << 12]);
        process.free(block).await.unwrap();
        assert_eq!(process.get(block, 16).await.unwrap_err().kind(), Code::Stale);
        process.free(block).await.unwrap();
        assert_eq!(process.store.status().used_bytes, 0);
    });
}

#[test]
fn a_repeated_put_is_answered_the_same_and_takes_no_more_space() {
    formatted(2, 8, |world| async move {
        let process = Rc::new(world.start().await);
        let block = key(1, 0);
        let both: Vec<_> = (0..2)
            .map(|_| {
                let process = process.clone();
                world.rt.spawn(async move { process.put(block, 14).await })
            })
            .collect();
        for put in both {
            assert_eq!(put.await, Ok(Ok(())));
        }
        process.put(block, 14).await.unwrap();
        assert_eq!(process.store.status().used_bytes, 1 << 14);
        let other = put_of(key(9, 9), 14, 12);
        let lying = bb_proto::PutBlock { pg: block.pg, index: block.index, ..other };
        let payload = process.payload(&content(key(9, 9), 14)).await;
        let answer = process.store.handle_put(lying, payload, ServiceClass::Client).await;
        assert_eq!(answer.unwrap_err().kind(), Code::Invalid);
        assert_eq!(process.get(block, 14).await, Ok(content(block, 14)));
    });
}

#[test]
fn a_block_that_arrives_damaged_changes_nothing() {
    formatted(3, 8, |world| async move {
        let process = world.start().await;
        let block = key(1, 0);
        let mut bytes = content(block, 15);
        bytes[20_000] ^= 1;
        let payload = process.payload(&bytes).await;
        let put = put_of(block, 15, 12);
        let answer = process.store.handle_put(put, payload, ServiceClass::Client).await;
        assert_eq!(answer.unwrap_err().kind(), Code::Corrupt);
        assert_eq!(process.store.status().used_bytes, 0);
        process.put(block, 15).await.unwrap();
    });
}

#[test]
fn rule_17_who_may_not_is_refused() {
    formatted(4, 8, |world| async move {
        let process = world.start().await;
        let block = key(1, 0);
        let attempt = async |change: &dyn Fn(&mut bb_proto::PutBlock)| {
            let mut put = put_of(block, 12, 12);
            change(&mut put);
            let payload = process.payload(&content(block, 12)).await;
            let answer = process.store.handle_put(put, payload, ServiceClass::Client).await;
            answer.unwrap_err()
        };
        assert_eq!(attempt(&|p| p.capability.rights = Rights::READ).await.kind(), Code::Denied);
        let other = |p: &mut bb_proto::PutBlock| p.capability.session = SessionId(8);
        assert_eq!(attempt(&other).await.kind(), Code::Denied);
        let ahead = attempt(&|p| p.pg = pg(101, 1)).await;
        assert_eq!((ahead.kind(), ahead.value), (Code::SlotAhead, 100));
        assert_eq!(attempt(&|p| p.block_log2 = 13).await.kind(), Code::Invalid);
        process.put(block, 14).await.unwrap();
        let get = GetBlock {
            pg: block.pg,
            capability: capability(),
            index: 0,
            chunk_log2: 12,
            chunk_first: 0,
            chunk_count: 1,
            more: Vec::new(),
        };
        let attempt =
            async |get: GetBlock| process.store.handle_get(&get).await.err().unwrap().kind();
        assert_eq!(attempt(GetBlock { chunk_log2: 13, ..get.clone() }).await, Code::Invalid);
        assert_eq!(
            attempt(GetBlock { chunk_first: 3, chunk_count: 2, ..get.clone() }).await,
            Code::Invalid
        );
        let beyond = GetBlock { more: vec![(2, 1), (4, 1)], ..get.clone() };
        assert_eq!(attempt(beyond).await, Code::Invalid);
        assert_eq!(attempt(GetBlock { index: 1, ..get.clone() }).await, Code::Stale);
        let mut cannot = get;
        cannot.capability.rights = Rights::WRITE;
        assert_eq!(attempt(cannot).await, Code::Denied);
    });
}

#[test]
fn chunks_that_lie_apart_come_in_one_answer_in_their_order() {
    formatted(4, 8, |world| async move {
        let process = world.start().await;
        let block = key(1, 0);
        process.put(block, 16).await.unwrap();
        let get = GetBlock {
            pg: block.pg,
            capability: capability(),
            index: 0,
            chunk_log2: 12,
            chunk_first: 1,
            chunk_count: 2,
            more: vec![(5, 1), (6, 3), (15, 1)],
        };
        let get = GetBlock::decode(&get.encode()).expect("well formed");
        let answer = process.store.handle_get(&get).await.unwrap();
        let bytes: Vec<u8> = answer.payload.iter().flat_map(|buf| buf.to_vec()).collect();
        let all = content(block, 16);
        let wanted: Vec<u8> =
            get.runs().flat_map(|run| all[run.start << 12..run.end << 12].to_vec()).collect();
        assert!(bytes == wanted && bytes.len() == 7 << 12);
        let crcs = GetBlockReply::decode(&answer.body).unwrap().chunk_crcs;
        assert_eq!(crcs, bytes.chunks(4096).map(bb_erasure::crc32c).collect::<Vec<_>>());
        for more in [vec![(0, 1)], vec![(2, 1)], vec![(5, 0)], vec![(6, 1), (5, 1)]] {
            let body = GetBlock { more: more.clone(), ..get.clone() }.encode();
            assert!(GetBlock::decode(&body).is_err(), "{more:?} is in no order, or empty");
        }
    });
}

#[test]
fn a_full_device_says_so_and_everything_else_goes_on() {
    formatted(5, 8, |world| async move {
        let process = world.start().await;
        let mut held = Vec::new();
        for sequence in 0.. {
            match process.put(key(sequence, 0), 18).await {
                Ok(()) => held.push(key(sequence, 0)),
                Err(failure) => {
                    assert_eq!(failure.kind(), Code::NoSpace);
                    break;
                }
            }
        }
        assert_eq!(held.len(), 7 * 4, "all but the reserve");
        assert_eq!(process.store.vitals().free_mib, 0);
        process.put_as(key(900, 0), 20, ServiceClass::Reclaim).await.unwrap();
        for block in &held {
            assert_eq!(process.get(*block, 18).await, Ok(content(*block, 18)));
        }
        process.free(held[5]).await.unwrap();
        process.put(key(901, 0), 18).await.unwrap();
        let again = process.put(key(902, 0), 18).await;
        assert_eq!(again.unwrap_err().kind(), Code::NoSpace);
        world.cut(process);
        let process = world.start().await;
        assert_eq!(process.get(key(901, 0), 18).await, Ok(content(key(901, 0), 18)));
        assert_eq!(process.store.status().blocks, 29);
    });
}

#[test]
fn rule_13_puts_at_the_same_time_share_a_flush_and_a_lone_one_needs_none() {
    formatted(6, 24, |world| async move {
        let process = Rc::new(world.start().await);
        let before = process.flushes();
        process.put(key(1000, 0), 16).await.unwrap();
        assert_eq!(process.flushes(), before, "a durable write");
        let puts: Vec<_> = (0..64)
            .map(|sequence| {
                let process = process.clone();
                world.rt.spawn(async move {
                    process.put(key(sequence, 0), 16).await.unwrap();
                })
            })
            .collect();
        for put in puts {
            put.await.unwrap();
        }
        assert!(world.data.is_durable(0, world.data.capacity_bytes()));
        let flushes = process.flushes() - before;
        assert!((1..=16).contains(&flushes), "{flushes} flushes for 64 puts");
    });
}

#[test]
fn a_failed_flush_fails_the_device_for_good() {
    formatted(7, 8, |world| async move {
        let process = Rc::new(world.start().await);
        process.put(key(0, 0), 12).await.unwrap();
        let heard = Rc::new(std::cell::RefCell::new(Vec::new()));
        let heard_2 = heard.clone();
        process.store.on_failure(move |why| heard_2.borrow_mut().push(why.to_owned()));
        world.data.inject(FaultKind::FailedFlush);
        let puts: Vec<_> = (1..9)
            .map(|sequence| {
                let process = process.clone();
                world.rt.spawn(async move { process.put(key(sequence, 0), 14).await })
            })
            .collect();
        let mut failed = 0;
        for put in puts {
            if let Err(failure) = put.await.unwrap() {
                assert_eq!(failure.kind(), Code::DeviceFailed);
                failed += 1;
            }
        }
        assert!(failed > 0);
        assert_eq!(heard.borrow().len(), 1, "told once");
        let kinds = [
            process.put(key(20, 0), 12).await.unwrap_err().kind(),
            process.get(key(0, 0), 12).await.unwrap_err().kind(),
            process.free(key(0, 0)).await.unwrap_err().kind(),
        ];
        assert_eq!(kinds, [Code::DeviceFailed; 3]);
        assert!(!process.store.status().problem.is_empty());
        assert_eq!((process.store.vitals().load, process.store.vitals().free_mib), (1000, 0));
    });
}

#[test]
fn a_bad_place_on_the_medium_costs_one_block_only() {
    formatted(8, 8, |world| async move {
        let process = world.start().await;
        process.put(key(1, 0), 12).await.unwrap();
        process.put(key(2, 0), 12).await.unwrap();
        world.data.break_block(1 << 20);
        let failure = process.get(key(1, 0), 12).await.unwrap_err();
        assert_eq!(failure.kind(), Code::DeviceFailed);
        assert_eq!(process.get(key(2, 0), 12).await, Ok(content(key(2, 0), 12)));
        assert_eq!(process.store.problem(), None);
    });
}

#[test]
fn rot_is_passed_on_with_the_checksum_that_shows_it() {
    formatted(9, 8, |world| async move {
        let process = world.start().await;
        let block = key(1, 0);
        process.put(block, 12).await.unwrap();
        world.data.rot(1 << 20);
        let get = GetBlock {
            pg: block.pg,
            capability: capability(),
            index: 0,
            chunk_log2: 12,
            chunk_first: 0,
            chunk_count: 1,
            more: Vec::new(),
        };
        let answer = process.store.handle_get(&get).await.unwrap();
        let crcs = bb_proto::GetBlockReply::decode(&answer.body).unwrap().chunk_crcs;
        assert_eq!(crcs, put_of(block, 12, 12).chunk_crcs);
        assert_ne!(bb_erasure::crc32c(&answer.payload[0]), crcs[0]);
    });
}

#[test]
fn rule_4_space_is_not_used_again_while_it_is_read() {
    formatted(10, 2, |world| async move {
        let process = Rc::new(world.start().await);
        // One chunk for clients: the block fills it.
        let block = key(1, 0);
        process.put(block, 20).await.unwrap();
        world.data.stall();
        let reader = process.clone();
        let reading = world.rt.spawn(async move { reader.get(block, 20).await });
        world.rt.sleep(Duration::from_millis(1)).await;
        process.free(block).await.unwrap();
        let refused = process.put(key(2, 0), 20).await.unwrap_err();
        assert_eq!(refused.kind(), Code::NoSpace);
        world.data.release();
        assert_eq!(reading.await, Ok(Ok(content(block, 20))));
        process.put(key(2, 0), 20).await.unwrap();
    });
}

#[test]
fn rule_15_freed_chunks_are_unmapped_when_nobody_needs_the_device() {
    formatted(11, 8, |world| async move {
        let process = world.start().await;
        for sequence in 0..4 {
            process.put(key(sequence, 0), 20).await.unwrap();
        }
        for sequence in 0..4 {
            process.free(key(sequence, 0)).await.unwrap();
        }
        assert!(process.store.status().unmap_bytes > 0);
        world.rt.sleep(Duration::from_millis(20)).await;
        assert_eq!(process.store.status().unmap_bytes, 0);
        use bb_nvme::Device;
        assert_eq!(process.device.stats().unmap.bytes, 4 << 20);
        for sequence in 10..17 {
            process.put(key(sequence, 0), 20).await.unwrap();
        }
    });
}

#[test]
fn rule_12_a_restart_checks_only_what_may_be_torn() {
    formatted(12, 24, |world| async move {
        let process = world.start().await;
        for sequence in 0..200 {
            process.put(key(sequence, 0), 14).await.unwrap();
        }
        world.cut(process);
        let process = world.start().await;
        assert_eq!(process.report.blocks, 200);
        assert!(process.report.checked <= 4, "{:?}", process.report);
        assert_eq!(process.report.torn, 0);
    });
}

#[test]
fn memory_per_block_is_what_the_documentation_says() {
    formatted(13, 256, |world| async move {
        let process = world.start().await;
        let before = process.store.memory_bytes();
        let count: u32 = 20_000;
        for sequence in 0..count {
            process.put(key(sequence, 0), 12).await.unwrap();
        }
        let small = (process.store.memory_bytes() - before) / count as usize;
        println!("bytes of memory per 4 KiB block: {small}");
        assert!(small <= 120, "{small} bytes");
    });
}
