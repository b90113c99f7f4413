//! Members in memory that refuse, lose, damage, dawdle and stay silent, on one node or on many.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use bb_cluster::{ClusterMap, DeviceEntry, NodeEntry, NodeState, PartitionEntry};
use bb_erasure::{Geometry, crc32c};
use bb_pgio::{Limits, PgIo, ReadError, ReadOptions, Sealed, Shape, View, WriteError};
use bb_proto::{
    Capability, Code, Failure, GetBlock, GetBlockReply, Kind, PartitionId, PgBody, PgDescriptor,
    PgId, PutBlock, SessionId, Tick,
};
use bb_runtime::{Buf, BufPool, Rt};
use bb_transport::{Address, Answer, CallError, CallFuture, Caller, Outgoing, Vitals};

pub const POOL_BYTES: usize = 32 << 20;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    Full,
    Failed,
    Silent,
    /// Answers after so many milliseconds more.
    Slow(u64),
    /// No connection to it.
    Unconnected,
    /// Says busy so many times.
    Busy(u32),
    /// So many of its blocks are damaged on their way to the reader.
    DamagedOnTheWay(u32),
}

/// A block and the CRC32Cs of its chunks.
pub type Block = (Vec<u8>, Vec<u32>);

pub struct Members {
    pub rt: Rt,
    pub blocks: RefCell<BTreeMap<(u32, PgId, u8), Block>>,
    pub faults: RefCell<BTreeMap<u32, Fault>>,
    pub gets: Cell<u32>,
    pub puts: Cell<u32>,
    /// Reported by all.
    pub free_mib: Cell<u32>,
}

impl Caller for Members {
    fn call(&self, _to: &Address, request: Outgoing) -> CallFuture {
        let fault = self.faults.borrow().get(&request.target).copied();
        let deadline = request.deadline;
        let result = self.serve(request);
        let rt = self.rt.clone();
        Box::pin(async move {
            let more = match fault {
                Some(Fault::Slow(ms)) => Duration::from_millis(ms),
                _ => Duration::ZERO,
            };
            if more > deadline {
                rt.sleep(deadline).await;
                return Err(CallError::TimedOut);
            }
            rt.sleep(Duration::from_micros(50 + rt.random_below(500)) + more).await;
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
            Some(Fault::Unconnected) => {
                return Err(CallError::Disconnected { maybe_sent: false });
            }
            Some(Fault::Failed) => return refuse(Code::DeviceFailed),
            Some(Fault::Full) if request.kind == Kind::PutBlock => return refuse(Code::NoSpace),
            Some(Fault::Busy(n)) if n > 0 => {
                self.faults.borrow_mut().insert(device, Fault::Busy(n - 1));
                return refuse(Code::Busy);
            }
            _ => {}
        }
        let vitals = Vitals { tick: Tick(7), load: 0, free_mib: self.free_mib.get() };
        if request.kind == Kind::PutBlock {
            self.puts.set(self.puts.get() + 1);
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
        let of = |run: std::ops::Range<usize>| {
            &bytes[run.start << get.chunk_log2..run.end << get.chunk_log2]
        };
        let mut sink = request.sink.expect("a sink");
        sink.copy_from_slice(&get.runs().flat_map(of).copied().collect::<Vec<u8>>());
        if let Some(Fault::DamagedOnTheWay(n)) = fault
            && n > 0
        {
            self.faults.borrow_mut().insert(device, Fault::DamagedOnTheWay(n - 1));
            sink[0] ^= 1;
        }
        let chunk_crcs = get.runs().flat_map(|run| crcs[run].to_vec()).collect();
        let body = GetBlockReply { chunk_crcs }.encode();
        Ok(Answer { body, payload: Some(sink), vitals })
    }
}

pub struct Map {
    pub now: RefCell<Rc<ClusterMap>>,
    /// What the next refresh brings.
    pub next: RefCell<Option<ClusterMap>>,
    pub slice: RefCell<Option<Rc<str>>>,
}

impl View for Map {
    fn map(&self) -> Rc<ClusterMap> {
        self.now.borrow().clone()
    }
    fn seen(&self, _vitals: Vitals) {}
    fn refresh(&self) -> Pin<Box<dyn Future<Output = ()>>> {
        if let Some(next) = self.next.borrow_mut().take() {
            *self.now.borrow_mut() = Rc::new(next);
        }
        Box::pin(std::future::ready(()))
    }
    fn slice(&self) -> Option<Rc<str>> {
        self.slice.borrow().clone()
    }
}

pub struct World {
    pub io: PgIo,
    pub members: Rc<Members>,
    pub pool: BufPool,
    pub map: Rc<Map>,
}

pub fn world(rt: &Rt, devices: u32) -> World {
    world_of(rt, 1, devices)
}

/// Device d is on node 1 + d % nodes.
pub fn world_of(rt: &Rt, nodes: u32, devices: u32) -> World {
    let node = |id: u32| NodeEntry {
        id,
        address: format!("n{id}"),
        incarnation: 1,
        ..NodeEntry::default()
    };
    let device = |id| DeviceEntry {
        id,
        uuid: vec![0; 16],
        incarnation: 1,
        node: 1 + id % nodes,
        state: 0,
        capacity_bytes: 1 << 30,
    };
    let map = ClusterMap {
        format: 1,
        epoch: 1,
        cluster: vec![1; 16],
        bfs: vec![2; 16],
        nodes: (1..=nodes).map(node).collect(),
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
        puts: Cell::new(0),
        free_mib: Cell::new(1024),
    });
    let map = Rc::new(Map {
        now: RefCell::new(Rc::new(map)),
        next: RefCell::default(),
        slice: RefCell::default(),
    });
    let io = PgIo::new(rt.clone(), pool.clone(), members.clone(), map.clone(), Limits::default());
    World { io, members, pool, map }
}

pub fn pg(sequence: u32) -> PgId {
    PgId { slot: Tick(1), session: SessionId(1), sequence, home: PartitionId(0) }
}

pub fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| u8::try_from((i * 31 + i / 251) % 256).expect("a byte")).collect()
}

impl World {
    pub async fn sealed(&self, geometry: (u8, u8), contents: &[u8]) -> Sealed {
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

    pub async fn write(&self, g: (u8, u8), contents: &[u8]) -> Result<PgDescriptor, WriteError> {
        self.write_as(1, g, contents).await
    }

    pub async fn write_as(
        &self,
        sequence: u32,
        g: (u8, u8),
        contents: &[u8],
    ) -> Result<PgDescriptor, WriteError> {
        let sealed = self.sealed(g, contents).await;
        self.io.write(&Capability::default(), pg(sequence), &sealed).await
    }

    pub async fn read(
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

    /// The map as it is, changed.
    pub fn changed(&self, change: impl FnOnce(&mut ClusterMap)) -> ClusterMap {
        let mut map = (**self.map.now.borrow()).clone();
        map.epoch += 1;
        change(&mut map);
        map
    }

    pub fn take_down(&self, node: u32) {
        let map = self.changed(|map| {
            let at = map.nodes.iter().position(|n| n.id == node).expect("known");
            map.nodes[at].state = NodeState::Down as i32;
        });
        *self.map.now.borrow_mut() = Rc::new(map);
    }

    pub fn fault(&self, device: u32, fault: Fault) {
        self.members.faults.borrow_mut().insert(device, fault);
    }
}

pub fn devices(descriptor: &PgDescriptor) -> Vec<u32> {
    match &descriptor.body {
        PgBody::Blocks { members, .. } => members.iter().map(|m| m.device.0).collect(),
        PgBody::Inline { .. } => Vec::new(),
    }
}
