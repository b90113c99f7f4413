//! Writing and reading parity groups against members that refuse, lose, damage and stay silent.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use bb_cluster::{ClusterMap, DeviceEntry, NodeEntry, PartitionEntry};
use bb_erasure::{Geometry, crc32c};
use bb_pgio::{Limits, PgIo, ReadError, ReadOptions, Sealed, Shape, View, WriteError};
use bb_proto::{
    Capability, Code, Failure, GetBlock, GetBlockReply, Kind, PartitionId, PgBody, PgDescriptor,
    PgId, PutBlock, SessionId, Tick,
};
use bb_runtime::{Buf, BufPool, Executor, Rt};
use bb_transport::{Address, Answer, CallError, CallFuture, Caller, Outgoing, Vitals};

const POOL_BYTES: usize = 32 << 20;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fault {
    Full,
    Failed,
    Silent,
    /// Says busy so many times.
    Busy(u32),
    /// So many of its blocks are damaged on their way to the reader.
    DamagedOnTheWay(u32),
}

/// A block and the CRC32Cs of its chunks.
type Block = (Vec<u8>, Vec<u32>);

struct Members {
    rt: Rt,
    blocks: RefCell<BTreeMap<(u32, PgId, u8), Block>>,
    faults: RefCell<BTreeMap<u32, Fault>>,
    gets: Cell<u32>,
}

impl Caller for Members {
    fn call(&self, _to: &Address, request: Outgoing) -> CallFuture {
        let result = self.serve(request);
        let rt = self.rt.clone();
        Box::pin(async move {
            rt.sleep(Duration::from_micros(50 + rt.random_below(500))).await;
            if matches!(result, Err(CallError::TimedOut)) {
                rt.sleep(Duration::from_secs(5)).await;
            }
            result
        })
    }
}

impl Members {
    fn serve(&self, request: Outgoing) -> Result<Answer, CallError> {
        let refuse = |code| Err(CallError::Refused(Failure::new(code, ""), Vitals::default()));
        let device = request.target;
        let fault = self.faults.borrow().get(&device).copied();
        match fault {
            Some(Fault::Silent) => return Err(CallError::TimedOut),
            Some(Fault::Failed) => return refuse(Code::DeviceFailed),
            Some(Fault::Full) if request.kind == Kind::PutBlock => return refuse(Code::NoSpace),
            Some(Fault::Busy(n)) if n > 0 => {
                self.faults.borrow_mut().insert(device, Fault::Busy(n - 1));
                return refuse(Code::Busy);
            }
            _ => {}
        }
        let vitals = Vitals { tick: Tick(7), load: 0, free_mib: 1 };
        if request.kind == Kind::PutBlock {
            let put = PutBlock::decode(&request.body).expect("well formed");
            let bytes: Vec<u8> = request.payload.iter().flat_map(|b| b.to_vec()).collect();
            assert_eq!(bytes.len(), put.block_bytes());
            for (chunk, crc) in bytes.chunks(1 << put.chunk_log2).zip(&put.chunk_crcs) {
                assert_eq!(crc32c(chunk), *crc);
            }
            self.blocks.borrow_mut().insert((device, put.pg, put.index), (bytes, put.chunk_crcs));
            return Ok(Answer { body: Vec::new(), payload: None, vitals });
        }
        self.gets.set(self.gets.get() + 1);
        let get = GetBlock::decode(&request.body).expect("well formed");
        let blocks = self.blocks.borrow();
        let Some((bytes, crcs)) = blocks.get(&(device, get.pg, get.index)) else {
            return refuse(Code::Stale);
        };
        let chunks = usize::from(get.chunk_first)..usize::from(get.chunk_first + get.chunk_count);
        let payload = &bytes[chunks.start << get.chunk_log2..chunks.end << get.chunk_log2];
        let mut sink = request.sink.expect("a sink");
        sink.copy_from_slice(payload);
        if let Some(Fault::DamagedOnTheWay(n)) = fault
            && n > 0
        {
            self.faults.borrow_mut().insert(device, Fault::DamagedOnTheWay(n - 1));
            sink[0] ^= 1;
        }
        let body = GetBlockReply { chunk_crcs: crcs[chunks].to_vec() }.encode();
        Ok(Answer { body, payload: Some(sink), vitals })
    }
}

struct Map(Rc<ClusterMap>);

impl View for Map {
    fn map(&self) -> Rc<ClusterMap> {
        self.0.clone()
    }
    fn seen(&self, _vitals: Vitals) {}
    fn refresh(&self) -> Pin<Box<dyn Future<Output = ()>>> {
        Box::pin(std::future::ready(()))
    }
}

struct World {
    io: PgIo,
    members: Rc<Members>,
    pool: BufPool,
}

fn world(rt: &Rt, devices: u32) -> World {
    let node = NodeEntry { id: 1, address: "one".into(), incarnation: 1, ..NodeEntry::default() };
    let device = |id| DeviceEntry {
        id,
        uuid: vec![0; 16],
        incarnation: 1,
        node: 1,
        state: 0,
        capacity_bytes: 1 << 30,
    };
    let map = ClusterMap {
        format: 1,
        epoch: 1,
        cluster: vec![1; 16],
        bfs: vec![2; 16],
        nodes: vec![node],
        devices: (0..devices).map(device).collect(),
        partitions: vec![PartitionEntry { config: 1, primary: 1, ..PartitionEntry::default() }],
        data: 2,
        parity: 1,
        codec: 0,
        region_log2: 26,
        window_ticks: 60,
        deterministic: false,
        ..ClusterMap::default()
    };
    let pool = BufPool::new(POOL_BYTES, false).expect("memory");
    let members = Rc::new(Members {
        rt: rt.clone(),
        blocks: RefCell::default(),
        faults: RefCell::default(),
        gets: Cell::new(0),
    });
    let view = Rc::new(Map(Rc::new(map)));
    let io = PgIo::new(rt.clone(), pool.clone(), members.clone(), view, Limits::default());
    World { io, members, pool }
}

fn pg(sequence: u32) -> PgId {
    PgId { slot: Tick(1), session: SessionId(1), sequence, home: PartitionId(0) }
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| u8::try_from((i * 31 + i / 251) % 256).expect("a byte")).collect()
}

impl World {
    async fn sealed(&self, geometry: (u8, u8), contents: &[u8]) -> Sealed {
        let geometry = Geometry::try_from(geometry).expect("valid");
        let shape = Shape::fit(geometry, contents.len(), 12);
        let data: Vec<Buf> = (0..shape.geometry.data())
            .map(|i| {
                let mut buf = self.pool.try_alloc_zeroed(shape.block_bytes()).expect("room");
                let from = (i * shape.block_bytes()).min(contents.len());
                let to = (from + shape.block_bytes()).min(contents.len());
                buf[..to - from].copy_from_slice(&contents[from..to]);
                buf.freeze()
            })
            .collect();
        let parity = self.io.parity_buffers(&shape).await;
        Sealed::new(shape, data, parity).expect("fits")
    }

    async fn write(&self, g: (u8, u8), contents: &[u8]) -> Result<PgDescriptor, WriteError> {
        let sealed = self.sealed(g, contents).await;
        self.io.write(&Capability::default(), pg(1), &sealed).await
    }

    async fn read(
        &self,
        d: &PgDescriptor,
        at: usize,
        len: usize,
    ) -> Result<(Vec<u8>, u32), ReadError> {
        let mut out = vec![0; len];
        let options = ReadOptions::default();
        let report = self.io.read(&Capability::default(), d, at, &mut out, options).await?;
        Ok((out, report.reconstructed))
    }

    fn fault(&self, device: u32, fault: Fault) {
        self.members.faults.borrow_mut().insert(device, fault);
    }
}

fn devices(descriptor: &PgDescriptor) -> Vec<u32> {
    match &descriptor.body {
        PgBody::Blocks { members, .. } => members.iter().map(|m| m.device.0).collect(),
        PgBody::Inline { .. } => Vec::new(),
    }
}

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
