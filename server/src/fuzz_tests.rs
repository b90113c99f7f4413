//! What partitions, the map stream and an administrator write, with bytes that nobody of ours
//! wrote. Checksums are put right, so that what is behind them is reached.

use bb_erasure::{crc32c, crc32c_append};
use bb_fuzz::{Counting, Target};
use bb_proto::meta::{self, Guard};
use bb_proto::{
    Capability, ClientSequence, Commit, ConfigNumber, DeviceId, Fid, Fragment, Incarnation, Member,
    NodeId, OpId, PartitionId, PgBody, PgDescriptor, PgId, Reader, RegionIndex, Rights, SessionId,
    Tick, TruncateEpoch, Writer,
};

use crate::config::{Config, parse_bytes};
use crate::council::LocalState;
use crate::files::record::{FileRecord, HandleKey, Run, Truncate};
use crate::files::{FileChange, FileMutation};
use crate::namespace::{Answer, Intent, SessionChange, SessionMutation};
use crate::partition::pg_mutation::{CommitRecord, FreedMembers, InlineBytes, PgMutation};
use crate::partition::record::{Numbers, RECORD_HEADER_BYTES, Record, number_record};
use crate::partition::region_mutation::{
    ProcessId, PurgeMode, Range, RegionId, RegionMutation, Written,
};
use crate::partition::snapshot::{decode_snapshot, encode_snapshot};
use crate::partition::table::Encoded;
use crate::partition::{Mutation, PartitionReplay, PartitionState};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const DIR: &str = env!("CARGO_MANIFEST_DIR");
const HOME: PartitionId = PartitionId(4);
const FID: Fid = Fid(77);
const REGION: RegionId = RegionId { fid: FID, region: RegionIndex(0) };
const EPOCH: TruncateEpoch = TruncateEpoch(5);
const PROCESS: ProcessId = ProcessId { node: NodeId(1), incarnation: Incarnation(3) };
const GUARD: Guard = Guard { size: 9000, mtime_ns: 1_700_000_000 };
const SESSION: SessionId = SessionId(1);

fn pg(sequence: u32) -> PgId {
    PgId { slot: Tick(9), session: SESSION, sequence, home: HOME }
}

fn commit(sequence: u32, body: PgBody, fragments: &[(u64, u32, u32)]) -> PgMutation {
    let capability =
        Capability { session: SESSION, fid: FID, rights: Rights::WRITE, signature: [0; 16] };
    let inline = matches!(body, PgBody::Inline { .. });
    let fragment =
        |&(offset, pg_offset, len): &(u64, u32, u32)| Fragment { offset, pg_offset, len };
    PgMutation::Commit(Box::new(CommitRecord {
        commit: Commit {
            capability,
            epoch: EPOCH,
            size_raise: 0,
            mtime_ns: 0,
            closes: 0,
            stage: OpId(0),
            descriptor: PgDescriptor { pg: pg(sequence), body },
            participants: Vec::new(),
            fragments: fragments.iter().map(fragment).collect(),
        },
        absent_members: 0,
        inline: if inline { [7; 100].as_slice().into() } else { InlineBytes::default() },
    }))
}

fn blocks() -> PgBody {
    let members = (0..3).map(|d| Member { device: DeviceId(d), crc: 0 }).collect();
    PgBody::Blocks { data: 2, parity: 1, codec: 1, block_log2: 16, chunk_log2: 14, members }
}

fn regions() -> Vec<RegionMutation> {
    let range = Range { start: 0, end: 1 << 20 };
    let op = OpId(7);
    let fragment = Fragment { offset: 0, pg_offset: 0, len: 4096 };
    vec![
        RegionMutation::Truncate {
            id: REGION,
            region_log2: 26,
            epoch: EPOCH,
            size: u64::MAX,
            done: true,
        },
        RegionMutation::Open { id: REGION },
        RegionMutation::SyncBegin { id: REGION, op, process: PROCESS, range },
        RegionMutation::SyncEnd { id: REGION, op, written: vec![Written { pg: pg(1), fragment }] },
        RegionMutation::StageBegin { id: REGION, op, process: PROCESS, range, epoch: EPOCH },
        RegionMutation::StageEnd { id: REGION, op },
        RegionMutation::Purge { id: REGION, range, mode: PurgeMode::Clean },
        RegionMutation::TruncateDone { id: REGION, epoch: EPOCH },
        RegionMutation::ProcessGone { process: PROCESS },
        RegionMutation::Drop { id: REGION, tick: Tick(9) },
    ]
}

fn key() -> HandleKey {
    HandleKey { handle_type: 1, handle: vec![5; 8].into(), birth_ns: 0 }
}

fn files() -> Vec<FileMutation> {
    let of = |change| FileMutation { fid: FID, change };
    let begin = FileChange::TruncateBegin {
        size: 100,
        session: SESSION,
        sequence: ClientSequence(2),
        process: PROCESS,
    };
    let (op, guard) = (OpId(8), Some(GUARD));
    vec![
        of(FileChange::Meet { key: key(), region_log2: 26, tick: Tick(5), guard: GUARD }),
        of(FileChange::Register { run: 0, regions: 64 }),
        of(FileChange::Append { len: 1000 }),
        of(FileChange::Raise { epoch: EPOCH, size: 20_000, mtime_ns: 6 }),
        of(begin),
        of(FileChange::TruncateResume { process: PROCESS }),
        of(FileChange::TruncateDone { epoch: TruncateEpoch(6), guard }),
        of(FileChange::SetGuard { guard: GUARD }),
        of(FileChange::SyncBegin { op, process: PROCESS }),
        of(FileChange::SyncEnd { op, guard: None }),
        of(FileChange::Rebase { guard: GUARD }),
        of(FileChange::SetConflict { conflict: true }),
        of(FileChange::SetPinned { pinned: true }),
        of(FileChange::SetHidden { hidden: true }),
        of(FileChange::DropBegin),
        of(FileChange::DropEnd),
        of(FileChange::Forget),
    ]
}

fn sessions() -> Vec<SessionMutation> {
    let of = |change| SessionMutation { session: SESSION, change };
    let sequence = ClientSequence(1);
    let intent = Intent {
        request: meta::Namespace::default(),
        process: PROCESS,
        at_ns: 5,
        source: Some(meta::Binding::default()),
        victim: None,
    };
    let answer = Answer::Done(Box::default());
    let gone = vec![(FID, meta::Binding::default())];
    vec![
        of(SessionChange::Open(meta::SessionOpen::default())),
        of(SessionChange::Begin {
            sequence,
            acknowledged: ClientSequence(0),
            intent: Box::new(intent),
        }),
        of(SessionChange::Resume { sequence, process: PROCESS }),
        of(SessionChange::End { sequence, answer, gone }),
        of(SessionChange::GoneTold { fid: FID }),
        of(SessionChange::Close),
    ]
}

/// A short life of a partition, with every kind of mutation.
pub(crate) fn life() -> Vec<Mutation> {
    let freed = vec![FreedMembers { pg: pg(1), members: 3 }];
    let mut life: Vec<Mutation> = regions().into_iter().take(1).map(Mutation::Region).collect();
    life.extend(files().into_iter().take(3).map(Mutation::File));
    life.extend([
        Mutation::Pg(commit(1, blocks(), &[(0, 0, 4096), (8192, 4096, 4096)])),
        Mutation::Pg(commit(2, PgBody::Inline { len: 100, crc: 0 }, &[(100, 0, 100)])),
        Mutation::Pg(PgMutation::Cancel { pg: pg(3) }),
    ]);
    life.extend(regions().into_iter().skip(1).take(3).map(Mutation::Region));
    life.extend(sessions().into_iter().take(4).map(Mutation::Session));
    life.extend(regions().into_iter().skip(4).map(Mutation::Region));
    life.extend(files().into_iter().skip(3).map(Mutation::File));
    life.extend([
        Mutation::Pg(PgMutation::Freed { groups: freed }),
        Mutation::Pg(PgMutation::Release { participant: PartitionId(9), pgs: vec![pg(1)] }),
        Mutation::Pg(PgMutation::ReleaseAcked { pgs: vec![pg(2)] }),
        Mutation::Pg(PgMutation::Horizon { slot: Tick(8) }),
    ]);
    life.extend(sessions().into_iter().skip(4).map(Mutation::Session));
    life
}

fn record(sequence: u64, mutation: &Mutation) -> Vec<u8> {
    let numbers = Numbers { config: ConfigNumber(1), sequence, committed: 0 };
    let mut record = mutation.encode_unnumbered();
    number_record(&mut record, numbers, mutation.table());
    record
}

/// Length before each.
fn joined(records: &[Vec<u8>]) -> Vec<u8> {
    let with_len = |record: &Vec<u8>| {
        let len = u16::try_from(record.len()).expect("short records");
        [&len.to_le_bytes()[..], record].concat()
    };
    records.iter().flat_map(with_len).collect()
}

fn split(mut bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut records = Vec::new();
    while let Some((len, rest)) = bytes.split_first_chunk::<2>() {
        let len = usize::from(u16::from_le_bytes(*len)).min(rest.len());
        records.push(rest[..len].to_vec());
        bytes = &rest[len..];
    }
    records
}

fn repair_record(record: &mut [u8]) {
    let Some(body) = record.len().checked_sub(RECORD_HEADER_BYTES) else { return };
    let body_len = u32::try_from(body).unwrap_or(0).to_le_bytes();
    record[RECORD_HEADER_BYTES - 8..RECORD_HEADER_BYTES - 4].copy_from_slice(&body_len);
    let (head, body) = record.split_at(RECORD_HEADER_BYTES);
    let crc = crc32c_append(crc32c(&head[..RECORD_HEADER_BYTES - 4]), body).to_le_bytes();
    record[RECORD_HEADER_BYTES - 4..RECORD_HEADER_BYTES].copy_from_slice(&crc);
}

/// Records one after the other, as replay gets them: read and applied.
#[test]
fn fuzz_partition_records() {
    let records: Vec<Vec<u8>> = (1..).zip(&life()).map(|(n, m)| record(n, m)).collect();
    let mut rotten = records[..1].to_vec();
    rotten[0][50] ^= 1;
    Target {
        name: "partition-records",
        crate_dir: DIR,
        seeds: vec![
            ("good-life", joined(&records)),
            ("good-beginning", joined(&records[..7])),
            ("bad-sum", joined(&rotten)),
        ],
        repair: Some(&|bytes| {
            let mut records = split(bytes);
            records.iter_mut().for_each(|record| repair_record(record));
            *bytes = joined(&records);
        }),
        memory_bytes_max: (256 << 10, 64),
        run: &|bytes| {
            let mut replay = PartitionReplay::new();
            let records = split(bytes);
            let read = records.iter().filter(|record| Record::decode(record).is_ok()).count();
            let all = records.iter().all(|record| replay.record(HOME, record).is_ok());
            for (id, mut replica) in replay.finish() {
                replica.commit_all();
                let state = replica.state;
                // What replay brought can be checkpointed and read back.
                let snapshot = encode_snapshot(&state, std::iter::empty());
                let (again, _) = decode_snapshot(id, &snapshot).expect("its own snapshot");
                assert_eq!(again.applied(), state.applied());
            }
            all && read > 0
        },
    }
    .check();
}

/// Each kind of mutation by itself: table, then body.
#[test]
fn fuzz_mutations() {
    let all = life();
    let bodies: Vec<Vec<u8>> = all
        .iter()
        .map(|mutation| [vec![mutation.table() as u8], mutation.encode_body()].concat())
        .collect();
    let names: Vec<String> = (0..bodies.len()).map(|n| format!("good-{n:02}")).collect();
    let mut seeds: Vec<(&str, Vec<u8>)> = names.iter().map(String::as_str).zip(bodies).collect();
    seeds.push(("bad-table", vec![9, 1, 2, 3]));
    Target {
        name: "mutations",
        crate_dir: DIR,
        seeds,
        // The record's checksum covers them.
        repair: None,
        memory_bytes_max: (16 << 10, 64),
        run: &|bytes| {
            let Some((table, body)) = bytes.split_first() else { return false };
            Mutation::decode_body(*table, body).is_ok_and(|mutation| {
                Mutation::decode_body(*table, &mutation.encode_body()) == Ok(mutation)
            })
        },
    }
    .check();
}

#[test]
fn fuzz_partition_snapshots() {
    let mut state = PartitionState::new(HOME);
    let all = life();
    for mutation in &all[..13] {
        state.apply(mutation);
    }
    let tail = [record(14, &all[13])];
    let whole = encode_snapshot(&state, tail.iter().map(Vec::as_slice));
    let empty = encode_snapshot(&PartitionState::new(HOME), std::iter::empty());
    let other = encode_snapshot(&PartitionState::new(PartitionId(5)), std::iter::empty());
    Target {
        name: "partition-snapshots",
        crate_dir: DIR,
        seeds: vec![("good-full", whole), ("good-empty", empty), ("bad-other", other)],
        repair: Some(&|bytes| {
            // The length of the state is what stands between the magic and everything else.
            let Some(at) = bytes.len().checked_sub(4) else { return };
            let crc = crc32c(&bytes[..at]).to_le_bytes();
            bytes[at..].copy_from_slice(&crc);
        }),
        memory_bytes_max: (256 << 10, 64),
        run: &|bytes| {
            decode_snapshot(HOME, bytes).is_ok_and(|(mut state, _)| {
                for mutation in life() {
                    state.apply(&mutation);
                }
                true
            })
        },
    }
    .check();
}

#[test]
fn fuzz_file_records() {
    let mut record = FileRecord {
        key: key(),
        size: 9000,
        mtime_ns: 5,
        epoch: EPOCH,
        guard: GUARD,
        region_log2: 26,
        runs: vec![Run { run: 0, regions: 1024 }, Run { run: 3, regions: 5 }],
        rare: None,
    };
    let encode = |record: &FileRecord| {
        let mut out = Writer::default();
        record.encode(&mut out);
        out.finish()
    };
    let plain = encode(&record);
    let sequence = ClientSequence(2);
    record.remember(Truncate { epoch: EPOCH, size: 100, session: SESSION, sequence });
    record.change_rare(|rare| (rare.truncating, rare.pinned) = (Some(PROCESS), true));
    Target {
        name: "file-records",
        crate_dir: DIR,
        seeds: vec![
            ("good-plain", plain),
            ("good-rare", encode(&record)),
            ("bad-short", vec![0; 30]),
        ],
        repair: None,
        memory_bytes_max: (16 << 10, 64),
        run: &|bytes| {
            let mut reader = Reader::new(bytes);
            FileRecord::decode(&mut reader).is_ok_and(|found| {
                assert_eq!(FileRecord::decode(&mut Reader::new(&encode(&found))), Ok(found));
                reader.finish().is_ok()
            })
        },
    }
    .check();
}

#[test]
fn fuzz_map_records() {
    let map = bb_cluster::ClusterMap { cluster: vec![1; 16], epoch: 3, ..Default::default() };
    Target {
        name: "map-records",
        crate_dir: DIR,
        seeds: vec![
            ("good-snapshot", LocalState::new(bb_proto::NodeId(1), &map).snapshot()),
            ("good-empty", Vec::new()),
            ("bad-newer", vec![8, 2]),
        ],
        repair: None,
        memory_bytes_max: (16 << 10, 64),
        run: &|bytes| {
            let mut state = LocalState::default();
            let read = state.replay(bytes).is_ok();
            let _ = state.map();
            read
        },
    }
    .check();
}

const CONF: &str = "[node]\nlisten = \"127.0.0.1:7000\"\nbuffers = \"64MiB\"\n\
    [log]\npath = \"/var/lib/log\"\nsize = \"128MiB\"\n\
    [[device]]\npath = \"/dev/a\"\n[[device]]\npath = \"/dev/b\"\nsize = 1073741824\n\
    [[device]]\npath = \"/dev/c\"\n\
    [bfs]\npath = \"/bfs\"\nthreads = 8\n[cluster]\ngeometry = \"2+1\"\npartitions = 16\n";

#[test]
fn fuzz_configurations() {
    Target {
        name: "bb.conf",
        crate_dir: DIR,
        seeds: vec![
            ("good", CONF.as_bytes().to_vec()),
            ("bad-geometry", CONF.replace("2+1", "17+5").into_bytes()),
            ("bad-unknown", format!("{CONF}surprise = 1\n").into_bytes()),
        ],
        repair: None,
        // A parser of text, run once at start: the bound only says that it has one.
        memory_bytes_max: (256 << 10, 1024),
        run: &|bytes| {
            let text = String::from_utf8_lossy(bytes);
            let _ = parse_bytes(&text);
            Config::parse(&text).is_ok()
        },
    }
    .check();
}
