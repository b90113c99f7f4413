//! Rule 1: what nobody committed is freed, but only after home has said so for good.

use bb_proto::{Code, DeviceId, Member, PgBody, PgDescriptor, PgId, Writer};
use bb_server::blockstore::BlockKey;

use crate::world::{DEVICE, World, content, formatted, key, pg};

fn committed(pg: PgId, devices: [DeviceId; 3]) -> Vec<u8> {
    let body = PgBody::Blocks {
        data: 2,
        parity: 1,
        codec: 1,
        block_log2: 12,
        chunk_log2: 12,
        members: devices.map(|device| Member { device, crc: 0 }).to_vec(),
    };
    let mut out = Writer::default();
    PgDescriptor { pg, body }.encode(&mut out);
    out.finish()
}

fn answer(world: &World, block: BlockKey, state: u32, descriptor: Vec<u8>) {
    world.home.answers.borrow_mut().insert(block.pg, (state, descriptor));
}

#[test]
fn home_decides_what_becomes_of_a_block() {
    formatted(1, 8, |world| async move {
        let process = world.start().await;
        let [unknown, dead, ours, moved, undecided] = [1, 2, 3, 4, 5].map(|n| key(n, 1));
        let elsewhere = DeviceId(9);
        for block in [unknown, dead, ours, moved, undecided] {
            process.put(block, 12).await.unwrap();
        }
        answer(&world, dead, 2, vec![]);
        answer(&world, ours, 1, committed(ours.pg, [elsewhere, DEVICE, elsewhere]));
        answer(&world, moved, 1, committed(moved.pg, [DEVICE, elsewhere, DEVICE]));
        answer(&world, undecided, 3, vec![]);
        let report = process.store.settle_orphans().await;
        assert_eq!(report.asked, 0, "slot 50 is not older than tick 100 - 60");
        world.set_tick(&process, 111);
        world.home.silent.set(true);
        let report = process.store.settle_orphans().await;
        assert_eq!((report.confirmed, report.freed), (0, 0), "no answer is no verdict");
        world.home.silent.set(false);
        let report = process.store.settle_orphans().await;
        assert_eq!((report.asked, report.confirmed, report.freed), (5, 1, 3));
        for gone in [unknown, dead, moved] {
            assert_eq!(process.get(gone, 12).await.unwrap_err().kind(), Code::Stale);
        }
        for here in [ours, undecided] {
            assert_eq!(process.get(here, 12).await, Ok(content(here, 12)));
        }
        assert_eq!(process.store.settle_orphans().await.asked, 1, "the undecided one");
    });
}

#[test]
fn a_restart_asks_only_about_what_was_not_confirmed() {
    formatted(2, 8, |world| async move {
        let process = world.start().await;
        let old: Vec<BlockKey> = (0..10).map(|n| BlockKey { pg: pg(20, n), index: 1 }).collect();
        let new = BlockKey { pg: pg(50, 1), index: 1 };
        for block in &old {
            answer(&world, *block, 1, committed(block.pg, [DEVICE; 3]));
            process.put(*block, 12).await.unwrap();
        }
        answer(&world, new, 1, committed(new.pg, [DEVICE; 3]));
        process.put(new, 12).await.unwrap();
        assert_eq!(process.store.settle_orphans().await.confirmed, 10);
        // A put that comes after its slot was confirmed through must be asked about all the same.
        let late = BlockKey { pg: pg(19, 99), index: 1 };
        answer(&world, late, 3, vec![]);
        process.put(late, 12).await.unwrap();
        world.cut(process);
        world.home.asked.borrow_mut().clear();
        world.tick.set(150);
        let process = world.start().await;
        process.store.settle_orphans().await;
        let mut asked = world.home.asked.borrow().clone();
        asked.sort();
        assert_eq!(asked, [late.pg, new.pg]);
    });
}

#[test]
fn rule_4_what_home_freed_stays_freed_after_a_power_cut() {
    formatted(3, 8, |world| async move {
        let process = world.start().await;
        let block = key(1, 0);
        process.put(block, 13).await.unwrap();
        world.set_tick(&process, 200);
        assert_eq!(process.store.settle_orphans().await.freed, 1);
        world.cut(process);
        let process = world.start().await;
        assert_eq!(process.store.status().blocks, 0);
        assert_eq!(process.get(block, 13).await.unwrap_err().kind(), Code::Stale);
    });
}
