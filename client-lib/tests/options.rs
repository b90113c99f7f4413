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

/// A file `/f` of so many bytes, each of them 7.
async fn write_sevens(fake: &Rc<Fake>, len: usize) {
    let writer = fake.client(ClientOptions::default()).await;
    let file = writer.open(b"/f", RDWR_CREATE, 0o644).await.expect("opens");
    file.pwrite(&vec![7; len], 0).await.expect("writes");
    file.close().await.expect("closes");
}

/// Pieces wanted ahead, and requests for blocks, of reading a file in its order.
fn reading_in_order(read_ahead_bytes: u64) -> (u64, u32) {
    let executor = Executor::simulated(8);
    let rt = executor.rt();
    let fake: Rc<Fake> = Fake::new(&rt);
    executor.block_on(async move {
        const LEN: usize = 4 << 20;
        write_sevens(&fake, LEN).await;
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

/// Reads a file of 4 MiB twice in its order: requests for blocks after each time, and the most that
/// was kept.
fn reading_twice(read_cache_bytes: u64) -> (u64, u64, u64) {
    let executor = Executor::simulated(10);
    let rt = executor.rt();
    let fake: Rc<Fake> = Fake::new(&rt);
    executor.block_on(async move {
        const LEN: usize = 4 << 20;
        write_sevens(&fake, LEN).await;
        let options =
            ClientOptions { read_cache_bytes, read_ahead_bytes: 1 << 20, ..Default::default() };
        let reader = fake.client(options).await;
        let file = reader.open(b"/f", libc::O_RDONLY, 0).await.expect("opens");
        let mut out = vec![0; 50_000];
        let mut gets = Vec::new();
        for _ in 0..2 {
            for at in (0..LEN as u64).step_by(out.len()) {
                assert!(file.pread(&mut out, at).await.expect("reads") > 0);
                assert!(out.iter().all(|b| *b == 7));
            }
            gets.push(reader.counters().gets);
        }
        file.close().await.expect("closes");
        (gets[0], gets[1], reader.counters().kept_bytes_max)
    })
}

#[test]
fn a_file_that_the_cache_cannot_hold_is_read_through_it_and_each_segment_is_fetched_once() {
    let (once, twice, kept) = reading_twice(3 << 20);
    assert!((16..=18).contains(&once), "{once} requests for 16 segments");
    assert!((32..=36).contains(&twice), "{twice} requests for 32 segments");
    assert!(kept < 2 << 20, "{kept} bytes, of which a window of 1 MiB is wanted");
    let (once, twice, kept) = reading_twice(8 << 20);
    assert!(once <= 18 && twice == once, "{once} and {twice} requests: it is all here");
    assert!(kept >= 4 << 20, "{kept}");
}

const RECORD: usize = 47_008;
const RECORDS: usize = 384;

/// Requests for blocks of a new client that reads records of a file in which two clients wrote every
/// other one, in this order.
fn reading_records(order: impl Iterator<Item = usize> + 'static) -> u64 {
    let executor = Executor::simulated(9);
    let rt = executor.rt();
    let fake: Rc<Fake> = Fake::new(&rt);
    executor.block_on(async move {
        for writer in 0..2 {
            let client = fake.client(ClientOptions::default()).await;
            let file = client.open(b"/f", RDWR_CREATE, 0o644).await.expect("opens");
            for record in (writer..RECORDS).step_by(2) {
                let byte = u8::try_from(record % 251).expect("small");
                let at = (record * RECORD) as u64;
                assert_eq!(file.pwrite(&[byte; RECORD], at).await.expect("writes"), RECORD);
            }
            file.close().await.expect("closes");
        }
        let reader = fake.client(ClientOptions::default()).await;
        let file = reader.open(b"/f", libc::O_RDONLY, 0).await.expect("opens");
        let mut out = vec![0; RECORD];
        for record in order {
            let at = (record * RECORD) as u64;
            assert_eq!(file.pread(&mut out, at).await.expect("reads"), RECORD);
            let byte = u8::try_from(record % 251).expect("small");
            assert!(out.iter().all(|b| *b == byte), "record {record}");
        }
        file.close().await.expect("closes");
        reader.counters().gets
    })
}

/// Requests that as many bytes take in segments of 256 KiB, each in one block, and a few for the
/// first reads, which follow nothing yet.
const fn in_segments(records: usize) -> u64 {
    ((records * RECORD).div_ceil(256 << 10) + 16) as u64
}

#[test]
fn records_at_an_even_distance_that_one_client_wrote_come_in_whole_segments() {
    let gets = reading_records((0..RECORDS).step_by(2));
    assert!(gets <= in_segments(RECORDS / 2), "{gets} requests");
}

#[test]
fn records_in_the_order_of_writing_come_in_whole_segments_where_their_distances_are_uneven() {
    // Now and then one is left out: no distance lasts, and each gap begins anew.
    let gets = reading_records((0..RECORDS).filter(|record| record % 2 == 0 && record % 7 != 6));
    assert!(gets <= in_segments(RECORDS / 2) + 64, "{gets} requests");
}

#[test]
fn of_records_that_lie_apart_in_their_groups_only_themselves_are_fetched_a_block_at_a_time() {
    let reads = (RECORDS / 8) as u64;
    let gets = reading_records((0..RECORDS).step_by(8));
    assert!(gets <= reads * 3 / 4, "{gets} requests for {reads} reads");
}
