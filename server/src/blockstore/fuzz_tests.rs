//! The block store's records and superblocks, with bytes that nobody of ours wrote.

use bb_fuzz::{Target, crc_slot};
use bb_proto::{PartitionId, PgId, SessionId, Tick};

use super::record::{
    PageRecord, decode_confirmed, decode_page, decode_record, encode_confirmed, encode_free,
    encode_page, encode_put, kind_name,
};
use super::space::Address;
use super::superblock::for_fuzz;
use super::table::{BlockKey, Entry, Logs, Standing, State};

const DIR: &str = env!("CARGO_MANIFEST_DIR");

fn entry(sequence: u32, logs: Logs) -> Entry {
    let (slot, session, home) = (Tick(3), SessionId(9), PartitionId(2));
    let key = BlockKey { pg: PgId { slot, session, sequence, home }, index: 1 };
    let crcs: Vec<u32> = (0..1 << (logs.block - logs.chunk)).collect();
    let address = Address { chunk: 7, slot: 1 };
    let mut entry = Entry::new(key, address, logs, crcs.as_slice().into());
    entry.standing = Standing::Confirmed;
    entry.state = State::Live;
    entry
}

fn run_record(bytes: &[u8]) -> bool {
    let _ = kind_name(bytes);
    let record = decode_record(bytes).is_ok_and(|record| {
        // What is read is what would be written.
        let again = match record {
            PageRecord::Put(entry) => encode_put(&entry),
            PageRecord::Free(keys) => encode_free(&keys),
        };
        again.len() == bytes.len()
    });
    let page = decode_page(bytes).is_ok_and(|entries| {
        assert_eq!(encode_page(entries.iter()).len(), bytes.len());
        true
    });
    record || page || decode_confirmed(bytes).is_ok()
}

#[test]
fn fuzz_block_records() {
    let small = Logs { block: 12, chunk: 12 };
    let large = Logs { block: 18, chunk: 14 };
    let put = encode_put(&entry(1, large));
    let mut newer = put.clone();
    newer[0] = 2;
    let page = encode_page([entry(1, small), entry(2, large)].iter());
    Target {
        name: "block-records",
        crate_dir: DIR,
        seeds: vec![
            ("good-put", put),
            ("good-free", encode_free(&[entry(1, small).key(), entry(2, small).key()])),
            ("good-confirmed", encode_confirmed(Tick(6))),
            ("good-page", page),
            ("bad-newer", newer),
        ],
        // The log's checksum covers them.
        repair: None,
        memory_bytes_max: (8 << 10, 16),
        run: &run_record,
    }
    .check();
}

#[test]
fn fuzz_device_superblocks() {
    Target {
        name: "device-superblocks",
        crate_dir: DIR,
        seeds: vec![("good-64-mib", for_fuzz::example()), ("bad-zeros", vec![0; 100])],
        repair: Some(&|bytes| {
            if let Some(wire) = bytes.get_mut(..for_fuzz::BYTES) {
                let sum = |all: &[u8]| bb_erasure::crc32c(&all[..for_fuzz::BYTES - 4]);
                crc_slot(wire, for_fuzz::BYTES - 4, sum);
            }
        }),
        memory_bytes_max: (4096, 1),
        run: &for_fuzz::accepts,
    }
    .check();
}
