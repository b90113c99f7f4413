//! A node without devices: blocks are kept in memory, everything else is real.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use bb_cluster::{ClusterMap, DeviceEntry, NodeEntry, PartitionEntry};
use bb_commitlog::{
    ClusterUuid, FormatOptions, Log, LogIdentity, LogUuid, Lsn, Nonce, Options, Replay,
    ReplayError, StreamId,
};
use bb_nvme::{DeviceRef, SimDisk, SimDiskOptions};
use bb_pgio::{Limits, PgIo, Sealed, Shape};
use bb_proto::meta::{
    ByteCounts, FileOperation, FileStat, FileState, Guard, OperationState, OperationStatus,
    ReadThrough, Residency as Op, decode, encode,
};
use bb_proto::{
    Capability, Commit, Failure, Fid, Fragment, GetBlock, GetBlockReply, Header, Incarnation, Kind,
    NodeId, OpId, PartitionId, PgId, PutBlock, RegionIndex, Rights, ServiceClass, SessionId, Tick,
    TruncateEpoch, partition_of,
};
use bb_runtime::{BufPool, Executor, Rt};
use bb_transport::{
    Address, Answer, CallError, CallFuture, Caller, Incoming, Outgoing, Peer, Role, Vitals,
};

use super::fake_bfs::{FakeBfs, Mounted};
use crate::context::{Context, Shared, Stream};
use crate::files::record::HandleKey;
use crate::files::{FileChange, FileMutation, FileService, Parts};
use crate::partition::host::{HostConfig, PartitionHost};
use crate::partition::journal::Journal;
use crate::partition::region_mutation::ProcessId;
use crate::partition::region_mutation::RegionId;
use crate::partition::replay::PartitionReplay;
use crate::partition::{Mutation, Partition};
use crate::residency::{OwnView, Residency};

pub const PARTITIONS: u32 = 4;
pub const REGION_LOG2: u8 = 20;
pub const FID: Fid = Fid(42);
pub const HANDLE: &[u8] = b"handle";
const RING_BYTES: u64 = 32 << 20;

type Blocks = BTreeMap<(u32, PgId, u8), (Vec<u8>, Vec<u32>)>;

/// What one life serves with.
type Services = (Rc<PartitionHost>, Rc<FileService>, Rc<Residency>);

/// What the network reaches.
pub struct Net {
    rt: Rt,
    life: RefCell<Option<Services>>,
    blocks: RefCell<Blocks>,
}

struct ToNet(Rc<Net>);

impl Caller for ToNet {
    fn call(&self, _to: &Address, request: Outgoing) -> CallFuture {
        let (net, deadline) = (self.0.clone(), request.deadline);
        Box::pin(async move {
            net.rt.sleep(Duration::from_micros(net.rt.random_below(500))).await;
            let rt = net.rt.clone();
            // As over a network: the request goes on when its caller stops waiting.
            let work = rt.spawn(async move { net.answer(request).await });
            match rt.timeout(deadline, work).await {
                Ok(Ok(answer)) => answer,
                Ok(Err(_)) => Err(CallError::Disconnected { maybe_sent: true }),
                Err(_) => Err(CallError::TimedOut),
            }
        })
    }
}

fn good(body: Vec<u8>) -> Result<Answer, CallError> {
    Ok(Answer { body, payload: None, vitals: Vitals::default() })
}

impl Net {
    async fn answer(self: Rc<Self>, request: Outgoing) -> Result<Answer, CallError> {
        let refuse = |failure| Err(CallError::Refused(failure, Vitals::default()));
        match request.kind {
            Kind::PutBlock => {
                let put = PutBlock::decode(&request.body).unwrap();
                let bytes: Vec<u8> = request.payload.iter().flat_map(|b| b.to_vec()).collect();
                let name = (request.target, put.pg, put.index);
                self.blocks.borrow_mut().insert(name, (bytes, put.chunk_crcs));
                good(Vec::new())
            }
            Kind::GetBlock => {
                let get = GetBlock::decode(&request.body).unwrap();
                let blocks = self.blocks.borrow();
                let Some((bytes, crcs)) = blocks.get(&(request.target, get.pg, get.index)) else {
                    return refuse(Failure::new(bb_proto::Code::Stale, ""));
                };
                let of = |run: std::ops::Range<usize>| {
                    &bytes[run.start << get.chunk_log2..run.end << get.chunk_log2]
                };
                let mut sink = request.sink.unwrap();
                sink.copy_from_slice(&get.runs().flat_map(of).copied().collect::<Vec<u8>>());
                let chunk_crcs = get.runs().flat_map(|run| crcs[run].to_vec()).collect();
                let body = GetBlockReply { chunk_crcs }.encode();
                Ok(Answer { body, payload: Some(sink), vitals: Vitals::default() })
            }
            Kind::FreeBlocks => good(Vec::new()),
            kind => {
                let life = self.life.borrow().clone();
                let Some((host, files, residency)) = life else {
                    return Err(CallError::Disconnected { maybe_sent: false });
                };
                let header = Header {
                    target: request.target,
                    fence: request.fence,
                    deadline_ms: u32::try_from(request.deadline.as_millis()).unwrap(),
                    ..Header::request(kind, request.class)
                };
                let peer = Rc::new(Peer {
                    connection: 1,
                    role: Role::Server,
                    host: "test".into(),
                    proven: None,
                });
                let incoming = Incoming { header, body: request.body, payload: None, peer };
                let answer = match kind {
                    Kind::FileOperation
                    | Kind::OperationStatus
                    | Kind::RegionOperation
                    | Kind::ReadThrough => residency.serve(incoming).await,
                    Kind::FileStat | Kind::FileTruncate => {
                        let partition = host.addressed(&incoming.header).unwrap();
                        files.handle(partition, incoming).await
                    }
                    _ => host.handle(incoming).await,
                };
                match answer {
                    Ok(response) => {
                        let payload = request.sink.map(|mut sink| {
                            let bytes: Vec<u8> =
                                response.payload.iter().flat_map(|b| b.to_vec()).collect();
                            sink.set_len(bytes.len());
                            sink.copy_from_slice(&bytes);
                            sink
                        });
                        Ok(Answer { body: response.body, payload, vitals: Vitals::default() })
                    }
                    Err(failure) => refuse(failure),
                }
            }
        }
    }
}

/// One machine through several lives of its server.
pub struct World {
    pub rt: Rt,
    disk: SimDisk,
    pub pool: BufPool,
    pub bfs: Rc<FakeBfs>,
    net: Rc<Net>,
    incarnation: Cell<u64>,
    sequence: Cell<u32>,
}

/// One life.
pub struct Life {
    pub host: Rc<PartitionHost>,
    pub shared: Rc<Shared>,
    pub process: Rt,
    io: PgIo,
    caller: Rc<dyn Caller>,
}

struct OnlyPartitions(PartitionReplay);

fn id(stream: StreamId) -> PartitionId {
    match Stream::from_id(stream) {
        Some(Stream::Partition(id)) => id,
        other => panic!("stream {other:?}"),
    }
}

impl Replay for OnlyPartitions {
    fn snapshot(&mut self, stream: StreamId, _: Lsn, bytes: &[u8]) -> Result<(), ReplayError> {
        self.0.snapshot(id(stream), bytes).unwrap();
        Ok(())
    }
    fn record(&mut self, stream: StreamId, _: Lsn, bytes: &[u8]) -> Result<(), ReplayError> {
        self.0.record(id(stream), bytes).unwrap();
        Ok(())
    }
    fn retired(&mut self, stream: StreamId, _: Lsn) -> Result<(), ReplayError> {
        self.0.retired(id(stream));
        Ok(())
    }
}

fn map() -> ClusterMap {
    let device = |id| DeviceEntry {
        id,
        uuid: vec![9; 16],
        incarnation: 1,
        node: 1,
        state: 0,
        capacity_bytes: 1 << 30,
    };
    ClusterMap {
        format: 1,
        epoch: 1,
        cluster: vec![1; 16],
        bfs: vec![2; 16],
        nodes: vec![NodeEntry {
            id: 1,
            address: "n1".into(),
            incarnation: 1,
            ..NodeEntry::default()
        }],
        devices: (0..4).map(device).collect(),
        partitions: vec![
            PartitionEntry { config: 1, primary: 1, ..PartitionEntry::default() };
            PARTITIONS as usize
        ],
        data: 2,
        parity: 1,
        codec: 0,
        region_log2: u32::from(REGION_LOG2),
        window_ticks: 60,
        deterministic: false,
        ..ClusterMap::default()
    }
}

/// Runs `test` on virtual time, with an empty log and a file that the backing file system has.
pub fn simulate<F: Future>(seed: u64, test: impl FnOnce(Rc<World>) -> F) -> F::Output {
    let executor = Executor::simulated(seed);
    let rt = executor.rt();
    let capacity = bb_commitlog::format::RING_OFFSET + RING_BYTES;
    let world = Rc::new(World {
        rt: rt.clone(),
        disk: SimDisk::new(&rt, &SimDiskOptions::new("log", capacity)),
        pool: BufPool::new(64 << 20, false).unwrap(),
        bfs: FakeBfs::new(&rt),
        net: Rc::new(Net { rt, life: RefCell::default(), blocks: RefCell::default() }),
        incarnation: Cell::new(0),
        sequence: Cell::new(0),
    });
    executor.block_on(async {
        let identity = LogIdentity {
            log: LogUuid([7; 16]),
            cluster: ClusterUuid([1; 16]),
            nonce: Nonce(4711),
        };
        let options = FormatOptions { zero_ring: false, ..FormatOptions::new(identity) };
        let dev: DeviceRef = world.disk.attach();
        Log::format(&world.rt, &world.pool, &dev, &options, &mut |_, _| ()).await.unwrap();
        test(world).await
    })
}

impl World {
    pub async fn start(&self) -> Life {
        let process = self.rt.new_domain();
        self.incarnation.set(self.incarnation.get() + 1);
        let incarnation = Incarnation(self.incarnation.get());
        let dev: DeviceRef = self.disk.attach();
        let mut replay = OnlyPartitions(PartitionReplay::new());
        let log =
            Log::open(&process, &self.pool, &dev, Options::default(), &mut replay).await.unwrap();
        let tick = Tick(1000 * incarnation.0);
        let shared = Rc::new(Shared::new(
            &process,
            NodeId(1),
            Address::from("n1"),
            incarnation,
            map(),
            tick,
        ));
        self.bfs.alive.borrow_mut().insert(ProcessId::new(1, incarnation.0));
        let ctx = Context {
            rt: process.clone(),
            pool: self.pool.clone(),
            log: Rc::new(log.clone()),
            caller: Rc::new(ToNet(self.net.clone())),
            bfs: Rc::new(Mounted(self.bfs.clone())),
            shared: shared.clone(),
        };
        let journal: Rc<dyn Journal> = Rc::new(log);
        let config = HostConfig::default();
        let host = PartitionHost::new((&ctx).into(), &journal, config, replay.0.finish());
        let files = FileService::new(Parts::from(&ctx), Duration::from_secs(1));
        let residency = Residency::new(ctx.clone(), host.clone(), files.clone());
        *self.net.life.borrow_mut() = Some((host.clone(), files, residency.clone()));
        residency.start();
        let view = Rc::new(OwnView(shared.clone()));
        let caller = ctx.caller.clone();
        let io = PgIo::new(process.clone(), ctx.pool, caller.clone(), view, Limits::default());
        Life { host, shared, process, io, caller }
    }

    /// Kills the process. `gone`: and nothing of it is left in a kernel.
    pub fn kill(&self, life: Life, gone: bool) {
        *self.net.life.borrow_mut() = None;
        self.rt.kill(life.process.domain());
        self.disk.power_loss();
        if gone {
            self.bfs.alive.borrow_mut().remove(&ProcessId::new(1, life.shared.incarnation.0));
        }
        drop(life);
    }

    pub async fn wait_ms(&self, ms: u64) {
        self.rt.sleep(Duration::from_millis(ms)).await;
    }

    pub fn next(&self) -> u32 {
        self.sequence.set(self.sequence.get() + 1);
        self.sequence.get()
    }
}

fn server() -> Capability {
    Capability { session: SessionId(7), fid: FID, rights: Rights::SERVER, signature: [0; 16] }
}

impl Life {
    pub fn partition(&self, region: u32) -> Rc<Partition> {
        self.host.partition(partition_of(FID, RegionIndex(region), PARTITIONS)).unwrap()
    }

    pub async fn file(&self, change: FileChange) {
        let mutation = Mutation::File(FileMutation { fid: FID, change });
        self.partition(0).submit(ServiceClass::Client, mutation).await.unwrap();
    }

    /// The file is opened for the first time.
    pub async fn meet(&self, world: &World) {
        let found = world.bfs.get(HANDLE);
        let guard = Guard { size: found.bytes.len() as u64, mtime_ns: found.mtime_ns };
        let key = HandleKey { handle_type: 1, handle: HANDLE.into(), birth_ns: 0 };
        self.file(FileChange::Meet { key, region_log2: REGION_LOG2, tick: Tick(5), guard }).await;
        self.file(FileChange::Register { run: 0, regions: 1024 }).await;
    }

    pub fn epoch(&self) -> TruncateEpoch {
        self.partition(0).state().files.get(FID).unwrap().epoch
    }

    pub async fn call(&self, kind: Kind, region: u32, body: Vec<u8>) -> Result<Answer, Failure> {
        self.call_with(kind, region, body, None).await
    }

    async fn call_with(
        &self,
        kind: Kind,
        region: u32,
        body: Vec<u8>,
        sink: Option<bb_runtime::BufMut>,
    ) -> Result<Answer, Failure> {
        let target = partition_of(FID, RegionIndex(region), PARTITIONS).0;
        let deadline = Duration::from_secs(100);
        let mut request = Outgoing::new(kind, ServiceClass::Client, deadline, body).to(target, 1);
        request.sink = sink;
        match self.caller.call(&Address::from("n1"), request).await {
            Ok(answer) => Ok(answer),
            Err(CallError::Refused(failure, _)) => Err(failure),
            Err(error) => panic!("{error}"),
        }
    }

    /// What an application writes, as one group of one region.
    pub async fn write(&self, world: &World, offset: u64, bytes: &[u8]) {
        let region = u32::try_from(offset >> REGION_LOG2).unwrap();
        let geometry = bb_erasure::Geometry::new(2, 1).unwrap();
        let shape = Shape::fit(geometry, bytes.len(), 12);
        let block = shape.block_bytes();
        let total = shape.geometry.total();
        let mut data = self.io.take_buffers(&vec![block; total]).await;
        let parity = data.split_off(shape.geometry.data());
        let mut blocks = Vec::new();
        for (index, mut buffer) in data.into_iter().enumerate() {
            buffer.set_len(block);
            buffer.fill(0);
            let from = (index * block).min(bytes.len());
            let part = &bytes[from..bytes.len().min(from + block)];
            buffer[..part.len()].copy_from_slice(part);
            blocks.push(buffer.freeze());
        }
        let sealed = Sealed::new(shape, blocks, parity).unwrap();
        let home = partition_of(FID, RegionIndex(region), PARTITIONS);
        let (slot, sequence) = (self.shared.tick(), world.next());
        let pg = PgId { slot, session: SessionId(7), sequence, home };
        let descriptor = self.io.write(&server(), pg, &sealed).await.unwrap();
        let len = u32::try_from(bytes.len()).unwrap();
        let commit = Commit {
            capability: server(),
            epoch: self.epoch(),
            size_raise: 0,
            mtime_ns: 0,
            closes: 0,
            stage: OpId(0),
            descriptor,
            participants: Vec::new(),
            fragments: vec![Fragment { offset, pg_offset: 0, len }],
        };
        self.call(Kind::Commit, region, commit.encode()).await.unwrap();
        let size = offset + bytes.len() as u64;
        let raise = FileChange::Raise { epoch: self.epoch(), size, mtime_ns: 0 };
        self.file(raise).await;
    }

    /// Starts an operation; gives its number.
    pub async fn begin(&self, residency: Op, force: u32) -> Result<OpId, Failure> {
        let ask = FileOperation {
            capability: (&server()).into(),
            residency: residency.into(),
            offset: 0,
            len: 0,
            force,
            session: 0,
            sequence: 0,
        };
        let answer = self.call(Kind::FileOperation, 0, encode(&ask)).await?;
        let state: OperationState = decode(&answer.body).unwrap();
        Ok(OpId(state.op))
    }

    pub async fn status(&self, op: OpId, wait_ms: u32, cancel: bool) -> OperationState {
        let ask = OperationStatus { op: op.0, wait_ms, cancel };
        let answer = self.call(Kind::OperationStatus, 0, encode(&ask)).await.unwrap();
        decode(&answer.body).unwrap()
    }

    /// Runs an operation to its end.
    pub async fn run(&self, residency: Op, force: u32) -> Result<OperationState, Failure> {
        let op = self.begin(residency, force).await?;
        loop {
            let state = self.status(op, 60_000, false).await;
            if let Some(failure) = state.failure {
                return Err(failure);
            }
            if state.ended {
                return Ok(state);
            }
        }
    }

    pub async fn stat(&self) -> FileState {
        let ask = FileStat { fid: FID.into(), counts: true, truncates_after: None };
        decode(&self.call(Kind::FileStat, 0, encode(&ask)).await.unwrap().body).unwrap()
    }

    pub async fn counts(&self) -> ByteCounts {
        self.stat().await.bytes.unwrap()
    }

    /// Bytes that no fragment covers.
    pub async fn read_through(&self, world: &World, offset: u64, len: u32) -> Vec<u8> {
        let region = u32::try_from(offset >> REGION_LOG2).unwrap();
        let ask = ReadThrough { capability: (&server()).into(), offset, len };
        let sink = world.pool.alloc(len as usize).await;
        let answer = self.call_with(Kind::ReadThrough, region, encode(&ask), Some(sink)).await;
        answer.unwrap().payload.unwrap().to_vec()
    }

    /// True if something of region 0 is under an intent.
    pub fn has_intent(&self) -> bool {
        let partition = self.partition(0);
        let state = partition.state();
        let region = state.regions.get(RegionId { fid: FID, region: RegionIndex(0) });
        region.is_some_and(|region| !region.intents().is_empty())
    }
}
