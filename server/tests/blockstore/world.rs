//! Two disks that outlive the process, a process on them, and a home partition that says what the
//! test wants.

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
use bb_nvme::{Device, DeviceRef, SimDevice, SimDisk, SimDiskOptions};
use bb_proto::meta::{PgStatus, PgStatusEntry, PgStatusReply, decode, encode};
use bb_proto::{
    Capability, DeviceId, Failure, Fid, GetBlock, GetBlockReply, Incarnation, NodeId, PartitionId,
    PgId, PutBlock, Rights, ServiceClass, SessionId, Tick,
};
use bb_runtime::{Buf, BufPool, Executor, Rt};
use bb_server::blockstore::{
    BlockKey, BlockStore, Config, Env, Expected, Identity, OpenError, Recovery, RecoveryReport,
    Uuid, format_device, read_superblock,
};
use bb_server::context::{Shared, Stream};
use bb_transport::{Address, Answer, CallError, CallFuture, Caller, Outgoing, Vitals};

pub const DEVICE: DeviceId = DeviceId(3);
pub const CLUSTER: Uuid = Uuid([9; 16]);
pub const NONCE: Nonce = Nonce(4711);
pub const SESSION: SessionId = SessionId(77);
pub const WINDOW: u32 = 60;

pub fn identity() -> Identity {
    let uuid = Uuid([5; 16]);
    Identity { device: DEVICE, uuid, incarnation: Incarnation(1), cluster: CLUSTER, nonce: NONCE }
}

fn map() -> ClusterMap {
    ClusterMap {
        format: 1,
        epoch: 1,
        cluster: vec![9; 16],
        bfs: vec![2; 16],
        nodes: vec![NodeEntry {
            id: 1,
            address: "n1".into(),
            incarnation: 1,
            ..NodeEntry::default()
        }],
        devices: vec![DeviceEntry {
            id: DEVICE.0,
            uuid: vec![5; 16],
            incarnation: 1,
            node: 1,
            state: 0,
            capacity_bytes: 0,
        }],
        partitions: vec![PartitionEntry { config: 1, primary: 1, ..PartitionEntry::default() }; 4],
        data: 2,
        parity: 1,
        codec: 1,
        region_log2: 26,
        window_ticks: WINDOW,
        deterministic: false,
        ..ClusterMap::default()
    }
}

/// Answers for every home partition.
#[derive(Default)]
pub struct Home {
    pub answers: RefCell<BTreeMap<PgId, (u32, Vec<u8>)>>,
    pub asked: RefCell<Vec<PgId>>,
    pub silent: Cell<bool>,
}

impl Caller for Home {
    fn call(&self, _: &Address, request: Outgoing) -> CallFuture {
        if self.silent.get() {
            return Box::pin(std::future::ready(Err(CallError::TimedOut)));
        }
        let question: PgStatus = decode(&request.body).unwrap();
        assert!(question.settle, "members ask for good");
        let entries = question.pgs.iter().map(|pg| {
            let pg = PgId::from(*pg);
            self.asked.borrow_mut().push(pg);
            let (state, descriptor) = self.answers.borrow().get(&pg).cloned().unwrap_or_default();
            PgStatusEntry { state, descriptor }
        });
        let body = encode(&PgStatusReply { entries: entries.collect() });
        Box::pin(std::future::ready(Ok(Answer { body, payload: None, vitals: Vitals::default() })))
    }
}

struct Receiver(Recovery);

fn page_of(stream: StreamId) -> u32 {
    match Stream::from_id(stream) {
        Some(Stream::Blocks { device: DEVICE, page }) => page,
        other => panic!("a stream that nobody wrote: {other:?}"),
    }
}

impl Replay for Receiver {
    fn snapshot(&mut self, stream: StreamId, lsn: Lsn, bytes: &[u8]) -> Result<(), ReplayError> {
        let taken = self.0.snapshot(page_of(stream), bytes);
        taken.map_err(|fault| ReplayError { stream, lsn, why: fault.to_string() })
    }
    fn record(&mut self, stream: StreamId, lsn: Lsn, bytes: &[u8]) -> Result<(), ReplayError> {
        let taken = self.0.record(page_of(stream), lsn, bytes);
        taken.map_err(|fault| ReplayError { stream, lsn, why: fault.to_string() })
    }
    fn retired(&mut self, stream: StreamId, lsn: Lsn) -> Result<(), ReplayError> {
        let taken = self.0.retired(page_of(stream));
        taken.map_err(|fault| ReplayError { stream, lsn, why: fault.to_string() })
    }
}

pub struct World {
    pub rt: Rt,
    pub data: SimDisk,
    pub log: SimDisk,
    pub home: Rc<Home>,
    pub tick: Cell<u64>,
}

/// A running server, as far as these tests need one.
pub struct Process {
    pub rt: Rt,
    pub pool: BufPool,
    pub log: Rc<Log>,
    pub store: Rc<BlockStore>,
    pub shared: Rc<Shared>,
    pub device: Rc<SimDevice>,
    pub report: RecoveryReport,
}

/// Runs `test` with two empty disks; the data disk has room for `chunks` MiB of blocks.
pub fn simulate<F: Future>(seed: u64, chunks: u64, test: impl FnOnce(World) -> F) -> F::Output {
    let executor = Executor::simulated(seed);
    let rt = executor.rt();
    let data = SimDisk::new(&rt, &SimDiskOptions::new("data", (1 + chunks) << 20));
    let log = SimDisk::new(&rt, &SimDiskOptions::new("log", 12 << 20));
    let world = World { rt, data, log, home: Rc::default(), tick: Cell::new(100) };
    executor.block_on(test(world))
}

/// Runs `test` with formatted disks.
pub fn formatted<F: Future>(seed: u64, chunks: u64, test: impl FnOnce(World) -> F) -> F::Output {
    simulate(seed, chunks, |world| async move {
        world.format().await;
        test(world).await
    })
}

pub fn config() -> Config {
    Config { unmap_interval: Duration::from_millis(3), ..Config::default() }
}

impl World {
    pub async fn format(&self) {
        let pool = BufPool::new(8 << 20, false).unwrap();
        let dev: DeviceRef = self.log.attach();
        let log =
            LogIdentity { log: LogUuid([7; 16]), cluster: ClusterUuid(CLUSTER.0), nonce: NONCE };
        let options = FormatOptions {
            group_bytes_max: 64 << 10,
            zero_ring: false,
            ..FormatOptions::new(log)
        };
        Log::format(&self.rt, &pool, &dev, &options, &mut |_, _| ()).await.unwrap();
        let dev: DeviceRef = self.data.attach();
        format_device(&dev, &pool, identity(), false, |_| ()).await.unwrap();
    }

    pub async fn start(&self) -> Process {
        self.try_start().await.unwrap()
    }

    pub async fn try_start(&self) -> Result<Process, OpenError> {
        let rt = self.rt.new_domain();
        let pool = BufPool::new(64 << 20, false).unwrap();
        let device = self.data.attach();
        let dev: DeviceRef = device.clone();
        let superblock = read_superblock(&dev, &pool).await?;
        superblock.check("data", &Expected { cluster: CLUSTER, nonce: NONCE })?;
        let mut receiver = Receiver(Recovery::new(superblock));
        let log_dev: DeviceRef = self.log.attach();
        let opened = Log::open(&rt, &pool, &log_dev, Options::default(), &mut receiver).await;
        let log = Rc::new(opened.unwrap());
        let shared = Rc::new(Shared::new(
            &rt,
            NodeId(1),
            Address::from("n1"),
            Incarnation(1),
            map(),
            Tick(self.tick.get()),
        ));
        let env = Env {
            rt: rt.clone(),
            pool: pool.clone(),
            log: log.clone(),
            caller: self.home.clone(),
            shared: shared.clone(),
        };
        let (store, report) = receiver.0.finish(env, dev, config(), |_| ()).await?;
        store.start();
        let process = Process { rt, pool, log, store, shared, device, report };
        process.rt.spawn(checkpointer(
            process.rt.clone(),
            process.log.clone(),
            process.store.clone(),
        ));
        Ok(process)
    }

    pub fn set_tick(&self, process: &Process, tick: u64) {
        self.tick.set(tick);
        process.shared.set_tick(Tick(tick));
    }

    /// SIGKILL: what was written stays in the disks' caches.
    pub fn kill(&self, process: Process) {
        self.rt.kill(process.rt.domain());
        self.data.process_crash();
        self.log.process_crash();
        drop(process);
    }

    /// The power fails.
    pub fn cut(&self, process: Process) {
        self.rt.kill(process.rt.domain());
        self.data.power_loss();
        self.log.power_loss();
        drop(process);
    }
}

/// Keeps the ring from filling up, as the server's own does.
async fn checkpointer(rt: Rt, log: Rc<Log>, store: Rc<BlockStore>) {
    loop {
        rt.sleep(Duration::from_millis(2)).await;
        let usage = log.usage();
        if usage.used_bytes < usage.ring_bytes / 8 {
            continue;
        }
        let Some((stream, _)) = log.oldest() else { continue };
        if let Ok(append) = store.checkpoint(page_of(stream)) {
            let _ = append.durable.await;
        }
    }
}

pub fn pg(slot: u64, sequence: u32) -> PgId {
    PgId { slot: Tick(slot), session: SESSION, sequence, home: PartitionId(sequence % 4) }
}

pub fn key(sequence: u32, index: u8) -> BlockKey {
    BlockKey { pg: pg(50, sequence), index }
}

pub fn capability() -> Capability {
    let rights = Rights(Rights::READ.0 | Rights::WRITE.0);
    Capability { session: SESSION, fid: Fid(1), rights, signature: [0; 16] }
}

/// The bytes of a block: nobody else's look the same.
pub fn content(key: BlockKey, block_log2: u8) -> Vec<u8> {
    let seed = u64::from(key.pg.sequence) << 8 | u64::from(key.index);
    let mut rng = fastrand::Rng::with_seed(seed ^ key.pg.slot.0 << 40);
    let mut bytes = vec![0; 1 << block_log2];
    for word in bytes.chunks_exact_mut(8) {
        word.copy_from_slice(&rng.u64(..).to_le_bytes());
    }
    bytes
}

pub fn put_of(key: BlockKey, block_log2: u8, chunk_log2: u8) -> PutBlock {
    let bytes = content(key, block_log2);
    PutBlock {
        pg: key.pg,
        capability: capability(),
        index: key.index,
        block_log2,
        chunk_log2,
        chunk_crcs: bytes.chunks(1 << chunk_log2).map(bb_erasure::crc32c).collect(),
    }
}

impl Process {
    pub async fn payload(&self, bytes: &[u8]) -> Buf {
        let mut buf = self.pool.alloc(bytes.len()).await;
        buf.copy_from_slice(bytes);
        buf.freeze()
    }

    pub async fn put(&self, key: BlockKey, block_log2: u8) -> Result<(), Failure> {
        self.put_as(key, block_log2, ServiceClass::Client).await
    }

    pub async fn put_as(
        &self,
        key: BlockKey,
        block_log2: u8,
        class: ServiceClass,
    ) -> Result<(), Failure> {
        let payload = self.payload(&content(key, block_log2)).await;
        self.store.handle_put(put_of(key, block_log2, 12), payload, class).await
    }

    /// Reads chunks and checks them against their checksums, as a client does.
    pub async fn get_chunks(
        &self,
        key: BlockKey,
        first: u16,
        count: u16,
    ) -> Result<Vec<u8>, Failure> {
        let get = GetBlock {
            pg: key.pg,
            capability: capability(),
            index: key.index,
            chunk_log2: 12,
            chunk_first: first,
            chunk_count: count,
            more: Vec::new(),
        };
        let answer = self.store.handle_get(&get).await?;
        let crcs = GetBlockReply::decode(&answer.body).unwrap().chunk_crcs;
        let bytes: Vec<u8> = answer.payload.iter().flat_map(|buf| buf.to_vec()).collect();
        let found: Vec<u32> = bytes.chunks(4096).map(bb_erasure::crc32c).collect();
        assert_eq!(found, crcs, "{key}: the bytes do not match the checksums that came along");
        Ok(bytes)
    }

    pub async fn get(&self, key: BlockKey, block_log2: u8) -> Result<Vec<u8>, Failure> {
        self.get_chunks(key, 0, 1 << (block_log2 - 12)).await
    }

    pub async fn free(&self, key: BlockKey) -> Result<(), Failure> {
        self.store.handle_free(vec![key]).await
    }

    pub fn flushes(&self) -> u64 {
        self.device.stats().flush.count
    }
}
