//! What options change, seen by the servers.

#[expect(dead_code, reason = "each test uses a part of it")]
mod fake;

use std::rc::Rc;

use bb_client::ClientOptions;
use bb_proto::Kind;
use bb_runtime::Executor;
use fake::Fake;

const RDWR_CREATE: i32 = libc::O_RDWR | libc::O_CREAT;
const BLOCK: usize = 100_000;
const BLOCKS: usize = 24;

/// How many of the blocks go to device 0, which says that it is overloaded, and not to device 1.
fn blocks_of_the_loaded_device(deterministic: Option<bool>, map_says: bool) -> usize {
    let executor = Executor::simulated(7);
    let rt = executor.rt();
    let fake = Fake::over(&rt, 1, 2);
    {
        let mut map = fake.map.borrow_mut();
        (map.data, map.parity, map.deterministic) = (1, 0, map_says);
    }
    fake.loads.borrow_mut().insert(0, 1_000);
    let on = fake.clone();
    executor.block_on(async move {
        let options = ClientOptions { deterministic, ..ClientOptions::default() };
        let client = fake.client(options).await;
        let file = client.open(b"/f", RDWR_CREATE, 0o644).await.expect("opens");
        for block in 0..BLOCKS {
            let at = (block * BLOCK) as u64;
            assert_eq!(file.pwrite(&[7; BLOCK], at).await.expect("writes"), BLOCK);
            file.fsync().await.expect("durable");
        }
        file.close().await.expect("closes");
    });
    let state = on.state.borrow();
    assert!(state.blocks.len() >= BLOCKS);
    state.blocks.keys().filter(|(device, ..)| *device == 0).count()
}

#[test]
fn new_blocks_avoid_load_or_go_by_rendezvous_as_the_client_wants_or_else_the_map() {
    for (wanted, map_says) in [(Some(false), true), (Some(false), false), (None, false)] {
        let loaded = blocks_of_the_loaded_device(wanted, map_says);
        assert!(loaded <= 2, "{wanted:?}, {map_says}: {loaded}, once nothing was known");
    }
    for (wanted, map_says) in [(Some(true), false), (Some(true), true), (None, true)] {
        let loaded = blocks_of_the_loaded_device(wanted, map_says);
        assert!((5..=BLOCKS - 5).contains(&loaded), "{wanted:?}, {map_says}: {loaded}");
    }
}

/// Pieces wanted ahead, and requests for blocks, of reading a file in its order.
fn reading_in_order(read_ahead_bytes: u64) -> (u64, u32) {
    let executor = Executor::simulated(8);
    let rt = executor.rt();
    let fake: Rc<Fake> = Fake::new(&rt);
    executor.block_on(async move {
        const LEN: usize = 4 << 20;
        let writer = fake.client(ClientOptions::default()).await;
        let file = writer.open(b"/f", RDWR_CREATE, 0o644).await.expect("opens");
        file.pwrite(&vec![7; LEN], 0).await.expect("writes");
        file.close().await.expect("closes");
        let options = ClientOptions { read_ahead_bytes, ..ClientOptions::default() };
        let reader = fake.client(options).await;
        let file = reader.open(b"/f", libc::O_RDONLY, 0).await.expect("opens");
        let mut out = vec![0; 32 << 10];
        for at in (0..LEN as u64).step_by(out.len()) {
            assert_eq!(file.pread(&mut out, at).await.expect("reads"), out.len());
        }
        file.close().await.expect("closes");
        let gets = fake.state.borrow().served.get(&Kind::GetBlock).copied();
        (reader.counters().read_ahead, gets.unwrap_or(0))
    })
}

#[test]
fn without_read_ahead_each_read_fetches_what_it_was_asked_for_and_nothing_more() {
    let (none, single) = reading_in_order(0);
    assert_eq!(none, 0);
    assert!(single >= 128, "{single} requests for 128 reads");
    let (ahead, fewer) = reading_in_order(8 << 20);
    assert!(ahead > 0 && fewer < single / 2, "{ahead} pieces, {fewer} requests");
}
