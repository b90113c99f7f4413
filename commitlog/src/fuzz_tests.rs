//! The decoders of the log meet bytes that nobody of ours wrote, under checksums that fit.

use bb_fuzz::{Counting, Target, crc_slot};
use zerocopy::FromBytes;

use crate::error::ReplayError;
use crate::format::{BLOCK, GroupHeader, RecordHeader, RecordType, framed_bytes, size};
use crate::group::{Records, Stamp, header_bytes, parse_header, push_record, seal};
use crate::ids::{ClusterUuid, LogIdentity, LogUuid, Lsn, Nonce, StreamId};
use crate::replay::{Delivery, Replay};
use crate::streams::Start;
use crate::superblock::{Superblock, check};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const IDENTITY: LogIdentity =
    LogIdentity { log: LogUuid([7; 16]), cluster: ClusterUuid([9; 16]), nonce: Nonce(4711) };
const GROUP_MAX: usize = 16 << 10;
const LSN: u64 = 5 << 20;
const HEADER: usize = size_of::<GroupHeader>();
const CRC_OF_HEADER: usize = 104;
const CRC_OF_PAYLOAD: usize = 100;
const CRC_OF_RECORD: usize = 16;

struct Nobody;

impl Replay for Nobody {
    fn snapshot(&mut self, _: StreamId, _: Lsn, _: &[u8]) -> Result<(), ReplayError> {
        Ok(())
    }
    fn record(&mut self, _: StreamId, _: Lsn, _: &[u8]) -> Result<(), ReplayError> {
        Ok(())
    }
    fn retired(&mut self, _: StreamId, _: Lsn) -> Result<(), ReplayError> {
        Ok(())
    }
}

/// A group of these records.
fn group(records: &[(RecordType, u64, Vec<u8>)], externals: &[(u64, u64)]) -> Vec<u8> {
    let head = header_bytes(externals.len());
    let mut bytes = vec![0; head];
    for (record_type, stream, payload) in records {
        push_record(&mut bytes, *record_type, StreamId(*stream), [payload, &[]]);
    }
    let filled = bytes.len();
    bytes.resize(filled.next_multiple_of(BLOCK), 0);
    let stamp = Stamp {
        identity: &IDENTITY,
        incarnation: 3,
        sequence: 17,
        lsn: LSN,
        durable_through: LSN - 4096,
        trim: LSN - 8192,
        span_bytes: bytes.len(),
        record_count: u32::try_from(records.len()).unwrap(),
        previous_crc: 0xABCD,
        external_slots: externals.len(),
    };
    seal(&mut bytes, filled, &stamp, externals.iter().copied());
    bytes
}

fn snapshot_records(stream: u64) -> Vec<(RecordType, u64, Vec<u8>)> {
    let bytes = b"a snapshot".to_vec();
    let begin = LSN + HEADER as u64;
    let chunk = [begin.to_le_bytes().as_slice(), &0_u64.to_le_bytes(), &bytes].concat();
    let len = bytes.len() as u64;
    let crc = crc32c::crc32c(&bytes).to_le_bytes();
    let end = [begin.to_le_bytes().as_slice(), &len.to_le_bytes(), &crc, &[0; 4]].concat();
    vec![
        (RecordType::SnapshotBegin, stream, len.to_le_bytes().to_vec()),
        (RecordType::Data, stream, b"held back".to_vec()),
        (RecordType::SnapshotChunk, stream, chunk),
        (RecordType::SnapshotEnd, stream, end),
    ]
}

/// Checksums from the inside out: records, payload, header.
fn repair_group(bytes: &mut [u8]) {
    let Ok((header, _)) = GroupHeader::read_from_prefix(bytes) else { return };
    let head = usize::from(header.header_bytes.get()).max(HEADER);
    let end = head.saturating_add(size(header.payload_bytes)).min(bytes.len());
    let mut at = head;
    while let Some(rest) = bytes.get_mut(at..end) {
        let Ok((record, _)) = RecordHeader::read_from_prefix(rest) else { break };
        let len = size_of::<RecordHeader>() + size(record.payload_bytes);
        let Some(record_bytes) = rest.get_mut(..len) else { break };
        crc_slot(record_bytes, CRC_OF_RECORD, crc32c::crc32c);
        at += framed_bytes(size(record.payload_bytes));
    }
    if let Some(payload) = bytes.get(head..end) {
        let crc = crc32c::crc32c(payload).to_le_bytes();
        bytes[CRC_OF_PAYLOAD..CRC_OF_PAYLOAD + 4].copy_from_slice(&crc);
    }
    if let Some(header) = bytes.get_mut(..head) {
        crc_slot(header, CRC_OF_HEADER, crc32c::crc32c);
    }
}

/// As the pass over the ring does it.
fn run_group(bytes: &[u8]) -> bool {
    let mut block = bytes.to_vec();
    block.resize(bytes.len().next_multiple_of(BLOCK).max(BLOCK), 0);
    let Ok(info) = parse_header(&block[..BLOCK], &IDENTITY, Some(LSN), GROUP_MAX) else {
        return false;
    };
    if info.written_bytes > block.len() {
        return false;
    }
    let _ = (info.end(), info.follows(&info.link()));
    let Ok(payload) = info.payload(&block) else { return false };
    let start = Start { lsn: Lsn(LSN - 100), group: Lsn(LSN - 4096), snapshot: true };
    let mut receiver = Nobody;
    let mut delivery = Delivery::new(&mut receiver, &[(StreamId(9), start)], Lsn(LSN - 4096));
    let delivered = delivery.group(info.incarnation).is_ok()
        && Records::new(&info, payload)
            .all(|record| record.is_ok_and(|record| delivery.record(Lsn(LSN), &record).is_ok()));
    delivery.finish().is_ok() && delivered
}

#[test]
fn fuzz_groups() {
    let records = [
        (RecordType::Data, 1, b"one".to_vec()),
        (RecordType::Data, 2, vec![2; 700]),
        (RecordType::Retire, 1, Vec::new()),
    ];
    let whole = group(&records, &[(1, LSN), (2, 77)]);
    let mut torn = whole.clone();
    torn.truncate(300);
    Target {
        name: "groups",
        crate_dir: env!("CARGO_MANIFEST_DIR"),
        seeds: vec![
            ("good-records", whole),
            ("good-snapshot", group(&snapshot_records(4), &[])),
            ("good-empty", group(&[], &[])),
            ("bad-torn", torn),
            ("bad-zeros", vec![0; 64]),
        ],
        repair: Some(&|bytes| repair_group(bytes)),
        memory_bytes_max: (64 << 10, 8),
        run: &run_group,
    }
    .check();
}

fn superblock(streams: u64) -> Vec<u8> {
    let start =
        |n: u64| Start { lsn: Lsn(LSN + 40 * n), group: Lsn(LSN), snapshot: n.is_multiple_of(2) };
    Superblock {
        identity: IDENTITY,
        generation: 6,
        device_bytes: 64 << 20,
        ring_bytes: 32 << 20,
        group_bytes_max: GROUP_MAX,
        incarnation: 3,
        trim: LSN,
        durable_through: LSN + 8192,
        formatted_at_ns: 1,
        table: (0..streams).map(|n| (StreamId(n), start(n))).collect(),
    }
    .encode()
}

fn run_superblock(bytes: &[u8]) -> bool {
    let Some(found) = Superblock::read(bytes) else { return false };
    if check(&found, 64 << 20).is_err() {
        return false;
    }
    // What a reader of the ring adds up.
    let lap_end = found.trim + found.ring_bytes;
    lap_end >= found.durable_through
}

#[test]
fn fuzz_superblocks() {
    Target {
        name: "superblocks",
        crate_dir: env!("CARGO_MANIFEST_DIR"),
        seeds: vec![
            ("good-empty", superblock(0)),
            ("good-streams", superblock(5)),
            ("bad-zeros", vec![0; 4096]),
        ],
        repair: Some(&|bytes| crc_slot(bytes, 12, crc32c::crc32c)),
        memory_bytes_max: (64 << 10, 8),
        run: &run_superblock,
    }
    .check();
}
