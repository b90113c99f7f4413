//! What comes from a network, as far as this crate reads it.

use bb_fuzz::{Counting, Target};
use bb_proto::meta::{self, decode, encode};
use bb_proto::{
    Capability, Code, Commit, DeviceId, FLAG_REPLY, Failure, Fid, Fragment, GetBlock,
    GetBlockReply, HEADER_BYTES, Header, Kind, Member, OpId, PartitionId, PgBody, PgDescriptor,
    PgId, PutBlock, Reader, Rights, ServiceClass, SessionId, Tick, TruncateEpoch, Writer,
    frame_crc,
};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const DIR: &str = env!("CARGO_MANIFEST_DIR");

fn sum(seed: u32, bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(seed, bytes)
}

fn frame(kind: Kind, class: ServiceClass, body: &[u8]) -> Vec<u8> {
    let mut header = Header::request(kind, class);
    header.request = 7;
    header.body_len = u32::try_from(body.len()).expect("short");
    [&header.encode(body, &sum)[..], body].concat()
}

fn run_frame(bytes: &[u8]) -> bool {
    let Some((head, rest)) = bytes.split_first_chunk::<HEADER_BYTES>() else { return false };
    let Ok(header) = Header::decode(head) else { return false };
    let body_len = usize::try_from(header.body_len).expect("at most 1 MiB");
    rest.get(..body_len).is_some_and(|body| {
        let whole = Header::verify(head, body, &sum).is_ok();
        // What was read is what would be written.
        assert!(!whole || header.encode(body, &sum) == *head);
        whole
    })
}

fn repair_frame(bytes: &mut [u8]) {
    let Some((head, body)) = bytes.split_first_chunk_mut::<HEADER_BYTES>() else { return };
    let len = u32::from_le_bytes([head[8], head[9], head[10], head[11]]) as usize;
    let body = body.get(..len).unwrap_or(body);
    let crc = frame_crc(head, body, &sum);
    head[HEADER_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
}

#[test]
fn fuzz_frames() {
    let good = frame(Kind::PutBlock, ServiceClass::Client, b"a body");
    let mut rotten = good.clone();
    rotten[HEADER_BYTES] ^= 1;
    let mut reply = frame(Kind::Ping, ServiceClass::Control, b"");
    reply[6] = FLAG_REPLY;
    repair_frame(&mut reply);
    Target {
        name: "frames",
        crate_dir: DIR,
        seeds: vec![
            ("good-put", good),
            ("good-reply", reply),
            ("bad-sum", rotten),
            ("bad-http", b"GET / HTTP/1.1\r\nHost: example.org\r\nAccept: */*\r\n\r\n".repeat(2)),
        ],
        repair: Some(&|bytes| repair_frame(bytes)),
        memory_bytes_max: (4096, 1),
        run: &run_frame,
    }
    .check();
}

fn pg() -> PgId {
    PgId { slot: Tick(3), session: SessionId(9), sequence: 4, home: PartitionId(5) }
}

fn capability() -> Capability {
    Capability { session: SessionId(9), fid: Fid(77), rights: Rights::WRITE, signature: [1; 16] }
}

fn commit(body: PgBody) -> Commit {
    Commit {
        capability: capability(),
        epoch: TruncateEpoch(2),
        size_raise: 1 << 20,
        mtime_ns: 1_700_000_000_000_000_000,
        closes: 11,
        stage: OpId(0),
        descriptor: PgDescriptor { pg: pg(), body },
        participants: vec![PartitionId(5), PartitionId(8)],
        fragments: vec![
            Fragment { offset: 0, pg_offset: 0, len: 4096 },
            Fragment { offset: 8192, pg_offset: 4096, len: 100 },
        ],
    }
}

/// Kind of body, then the body.
fn tagged(tag: u8, body: Vec<u8>) -> Vec<u8> {
    [vec![tag], body].concat()
}

fn run_body(bytes: &[u8]) -> bool {
    let Some((tag, body)) = bytes.split_first() else { return false };
    match tag % 5 {
        0 => PutBlock::decode(body).is_ok_and(|put| PutBlock::decode(&put.encode()) == Ok(put)),
        1 => GetBlock::decode(body).is_ok_and(|get| GetBlock::decode(&get.encode()) == Ok(get)),
        2 => GetBlockReply::decode(body)
            .is_ok_and(|reply| GetBlockReply::decode(&reply.encode()) == Ok(reply)),
        3 => Commit::decode(body).is_ok_and(|commit| {
            assert!(commit.fragments.iter().all(|f| f.end() > f.offset));
            let _ = commit.descriptor.data_bytes();
            Commit::decode(&commit.encode()) == Ok(commit)
        }),
        _ => PgDescriptor::decode(&mut Reader::new(body)).is_ok_and(|found| {
            let mut out = Writer::default();
            found.encode(&mut out);
            PgDescriptor::decode(&mut Reader::new(&out.finish())) == Ok(found)
        }),
    }
}

#[test]
fn fuzz_bodies() {
    let put = PutBlock {
        pg: pg(),
        capability: capability(),
        index: 2,
        block_log2: 14,
        chunk_log2: 12,
        chunk_crcs: vec![1, 2, 3, 4],
    };
    let blocks = PgBody::Blocks {
        data: 2,
        parity: 1,
        codec: 1,
        block_log2: 16,
        chunk_log2: 14,
        members: (0..3).map(|d| Member { device: DeviceId(d), crc: 5 }).collect(),
    };
    let mut descriptor = Writer::default();
    commit(blocks.clone()).descriptor.encode(&mut descriptor);
    let inline = commit(PgBody::Inline { len: 4200, crc: 9 });
    // More fragments than follow: that took the memory of as many once.
    let mut claims_many = inline.encode();
    claims_many[88..92].copy_from_slice(&4096_u32.to_le_bytes());
    Target {
        name: "bodies",
        crate_dir: DIR,
        seeds: vec![
            ("good-put", tagged(0, put.encode())),
            ("good-commit", tagged(3, commit(blocks).encode())),
            ("good-commit-inline", tagged(3, inline.encode())),
            ("good-descriptor", tagged(4, descriptor.finish())),
            ("bad-short", tagged(3, vec![0; 20])),
            ("bad-count", tagged(3, claims_many)),
        ],
        // No checksum of their own: the frame's covers them.
        repair: None,
        memory_bytes_max: (16 << 10, 16),
        run: &run_body,
    }
    .check();
}

/// True if the body is a message of that type, which is then read as it was written.
fn reads<M: prost::Message + Default + PartialEq>(body: &[u8]) -> bool {
    decode::<M>(body).is_ok_and(|message| decode::<M>(&encode(&message)) == Ok(message))
}

const MESSAGES: &[fn(&[u8]) -> bool] = &[
    reads::<Failure>,
    reads::<meta::Hello>,
    reads::<meta::GetMap>,
    reads::<meta::GetMapReply>,
    reads::<meta::SessionOpen>,
    reads::<meta::SessionOpenReply>,
    reads::<meta::SessionRenew>,
    reads::<meta::Done>,
    reads::<meta::FreeBlocks>,
    reads::<meta::CancelCommit>,
    reads::<meta::CancelCommitReply>,
    reads::<meta::PgStatus>,
    reads::<meta::PgStatusReply>,
    reads::<meta::PgList>,
    reads::<meta::PgHoldsReply>,
    reads::<meta::Lookup>,
    reads::<meta::LookupReply>,
    reads::<meta::GetInline>,
    reads::<meta::Binding>,
    reads::<meta::Attributes>,
    reads::<meta::Namespace>,
    reads::<meta::NamespaceReply>,
    reads::<meta::Space>,
    reads::<meta::FileHandle>,
    reads::<meta::FileOpen>,
    reads::<meta::FileSize>,
    reads::<meta::FileState>,
    reads::<meta::FileStat>,
    reads::<meta::FileRegions>,
    reads::<meta::FileTruncate>,
    reads::<meta::FileDrop>,
    reads::<meta::FileOperation>,
    reads::<meta::OperationStatus>,
    reads::<meta::OperationState>,
    reads::<meta::RegionTruncate>,
    reads::<meta::RegionName>,
    reads::<meta::RegionOperation>,
    reads::<meta::RegionOperationReply>,
    reads::<meta::ReadThrough>,
    reads::<meta::ReadThroughReply>,
    reads::<meta::NodeStatus>,
];

#[test]
fn fuzz_messages() {
    let failure = Failure::new(Code::Invalid, "a sentence");
    let entry = meta::DirEntry { name: b"name".to_vec(), ..Default::default() };
    let reply = meta::NamespaceReply { entries: vec![entry; 3], ..Default::default() };
    let list = meta::PgList { pgs: vec![pg().into(); 4], ..Default::default() };
    Target {
        name: "messages",
        crate_dir: DIR,
        seeds: vec![
            ("good-failure", tagged(0, encode(&failure))),
            ("good-nothing", tagged(7, Vec::new())),
            ("good-list", tagged(13, encode(&list))),
            ("good-reply", tagged(21, encode(&reply))),
            ("bad-varint", tagged(1, vec![0xFF; 12])),
        ],
        repair: None,
        // A list grows by doubling, from four entries on; an empty entry is two bytes on the wire.
        memory_bytes_max: (64 << 10, 512),
        run: &|bytes| {
            let Some((tag, body)) = bytes.split_first() else { return false };
            MESSAGES[usize::from(*tag) % MESSAGES.len()](body)
        },
    }
    .check();
}
