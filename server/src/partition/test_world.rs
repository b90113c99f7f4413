//! A node with partitions on a simulated disk, for tests. Other parts answer from a script.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use bb_cluster::{ClusterMap, DeviceEntry, NodeEntry, PartitionEntry};
use bb_commitlog::{
    ClusterUuid, FormatOptions, Log, LogIdentity, LogUuid, Lsn, Nonce, Options, Replay,
    ReplayError, StreamId,
};
use bb_nvme::{DeviceRef, SimDisk, SimDiskOptions};
use bb_proto::meta::{FileStat, FileState, FreeBlocks, decode, encode};
use bb_proto::{
    BODY_BYTES_MAX, Capability, Commit, DeviceId, Failure, Fid, Fragment, Header, Incarnation,
    Kind, Member, NodeId, OpId, PartitionId, PgBody, PgDescriptor, PgId, RegionIndex, Rights,
    ServiceClass, SessionId, Tick, TruncateEpoch, partition_of,
};
use bb_runtime::{BufPool, Executor, Rt};
use bb_transport::{
    Address, Answer, CallError, CallFuture, Caller, Incoming, Outgoing, Peer, Response, Role,
    Vitals,
};

use super::host::{HostConfig, HostEnv, PartitionHost};
use super::journal::Journal;
use super::replay::PartitionReplay;
use crate::context::{Shared, Stream};

pub const PARTITIONS: u32 = 8;
pub const WINDOW: u64 = 60;
pub const REGION_LOG2: u8 = 20;
pub const EPOCH: TruncateEpoch = TruncateEpoch(5);
const RING_BYTES: u64 = 32 << 20;

/// What the rest of the cluster says and does.
pub struct Elsewhere {
    rt: Rt,
    host: RefCell<Option<Rc<PartitionHost>>>,
    pub files: RefCell<BTreeMap<Fid, FileState>>,
    /// Blocks freed, with how often.
    pub freed: RefCell<BTreeMap<(PgId, u32), u32>>,
    /// Requests to free, by device.
    pub asked_to_free: RefCell<BTreeMap<DeviceId, u32>>,
    /// Devices that do not answer.
    pub silent_devices: RefCell<BTreeSet<DeviceId>>,
    /// Answers of these kinds are lost, so often.
    pub lost_answers: RefCell<BTreeMap<Kind, u32>>,
}

struct ToElsewhere(Rc<Elsewhere>);

impl Caller for ToElsewhere {
    fn call(&self, _to: &Address, request: Outgoing) -> CallFuture {
        let elsewhere = self.0.clone();
        Box::pin(async move {
            let delay = Duration::from_micros(elsewhere.rt.random_below(2_000));
            elsewhere.rt.sleep(delay).await;
            let kind = request.kind;
            let answer = elsewhere.clone().answer(request).await;
            let lost = match elsewhere.lost_answers.borrow_mut().get_mut(&kind) {
                Some(left) if *left > 0 => {
                    *left -= 1;
                    true
                }
                _ => false,
            };
            if lost { Err(CallError::TimedOut) } else { answer }
        })
    }
}

impl Elsewhere {
    async fn answer(self: Rc<Self>, request: Outgoing) -> Result<Answer, CallError> {
        let good = |body| Ok(Answer { body, payload: None, vitals: Vitals::default() });
        match request.kind {
            Kind::FileStat => {
                let stat: FileStat = decode(&request.body).unwrap();
                let files = self.files.borrow();
                good(encode(&files.get(&stat.fid.into()).cloned().unwrap_or_default()))
            }
            Kind::FreeBlocks => {
                let device = DeviceId(request.target);
                *self.asked_to_free.borrow_mut().entry(device).or_default() += 1;
                if self.silent_devices.borrow().contains(&DeviceId(request.target)) {
                    return Err(CallError::TimedOut);
                }
                let list: FreeBlocks = decode(&request.body).unwrap();
                for block in list.blocks {
                    *self.freed.borrow_mut().entry((block.pg.into(), block.index)).or_default() +=
                        1;
                }
                good(Vec::new())
            }
            _ => {
                let host = self.host.borrow().clone().expect("started");
                let header = Header {
                    target: request.target,
                    fence: request.fence,
                    ..Header::request(request.kind, request.class)
                };
                let (body, peer) = (request.body, peer(Role::Server));
                match host.handle(Incoming { header, body, payload: None, peer }).await {
                    Ok(response) => good(response.body),
                    Err(failure) => Err(CallError::Refused(failure, Vitals::default())),
                }
            }
        }
    }
}

fn peer(role: Role) -> Rc<Peer> {
    Rc::new(Peer { connection: 1, role, host: "test".into(), proven: None })
}

/// One machine through several lives of its server.
pub struct World {
    pub rt: Rt,
    pub disk: SimDisk,
    pub pool: BufPool,
    pub elsewhere: Rc<Elsewhere>,
    pub map: RefCell<ClusterMap>,
    pub tick: Cell<u64>,
    pub config: HostConfig,
}

/// One life.
pub struct Life {
    pub host: Rc<PartitionHost>,
    pub shared: Rc<Shared>,
    pub log: Log,
    process: Rt,
}

struct OnlyPartitions(PartitionReplay);

impl OnlyPartitions {
    fn id(stream: StreamId) -> PartitionId {
        match Stream::from_id(stream) {
            Some(Stream::Partition(id)) => id,
            other => panic!("stream {other:?}"),
        }
    }
}

impl Replay for OnlyPartitions {
    fn snapshot(&mut self, stream: StreamId, _: Lsn, bytes: &[u8]) -> Result<(), ReplayError> {
        self.0.snapshot(Self::id(stream), bytes).unwrap();
        Ok(())
    }
    fn record(&mut self, stream: StreamId, _: Lsn, bytes: &[u8]) -> Result<(), ReplayError> {
        self.0.record(Self::id(stream), bytes).unwrap();
        Ok(())
    }
    fn retired(&mut self, stream: StreamId, _: Lsn) -> Result<(), ReplayError> {
        self.0.retired(Self::id(stream));
        Ok(())
    }
}

fn sample_map() -> ClusterMap {
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
        devices: (0..4)
            .map(|id| DeviceEntry {
                id,
                uuid: vec![9; 16],
                incarnation: 1,
                node: 1,
                state: 0,
                capacity_bytes: 1 << 30,
            })
            .collect(),
        partitions: vec![
            PartitionEntry { config: 3, primary: 1, ..PartitionEntry::default() };
            PARTITIONS as usize
        ],
        data: 2,
        parity: 1,
        codec: 1,
        region_log2: u32::from(REGION_LOG2),
        window_ticks: u32::try_from(WINDOW).unwrap(),
        deterministic: false,
        ..ClusterMap::default()
    }
}

/// Runs `test` on virtual time with a formatted, empty log.
pub fn simulate<F: Future>(seed: u64, test: impl FnOnce(Rc<World>) -> F) -> F::Output {
    let executor = Executor::simulated(seed);
    let rt = executor.rt();
    let pool = BufPool::new(16 << 20, false).unwrap();
    let capacity = bb_commitlog::format::RING_OFFSET + RING_BYTES;
    let disk = SimDisk::new(&rt, &SimDiskOptions::new("log", capacity));
    let elsewhere = Rc::new(Elsewhere {
        rt: rt.clone(),
        host: RefCell::default(),
        files: RefCell::default(),
        freed: RefCell::default(),
        asked_to_free: RefCell::default(),
        silent_devices: RefCell::default(),
        lost_answers: RefCell::default(),
    });
    let world = Rc::new(World {
        rt,
        disk,
        pool,
        elsewhere,
        map: RefCell::new(sample_map()),
        tick: Cell::new(1000),
        config: HostConfig::default(),
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
    /// Starts a server on what the log holds.
    pub async fn start(&self) -> Life {
        let process = self.rt.new_domain();
        let dev: DeviceRef = self.disk.attach();
        let mut replay = OnlyPartitions(PartitionReplay::new());
        let log =
            Log::open(&process, &self.pool, &dev, Options::default(), &mut replay).await.unwrap();
        let shared = Rc::new(Shared::new(
            &process,
            NodeId(1),
            Address::from("n1"),
            Incarnation(1),
            self.map.borrow().clone(),
            Tick(self.tick.get()),
        ));
        let env = HostEnv {
            rt: process.clone(),
            pool: self.pool.clone(),
            caller: Rc::new(ToElsewhere(self.elsewhere.clone())),
            shared: shared.clone(),
        };
        let journal: Rc<dyn Journal> = Rc::new(log.clone());
        let host = PartitionHost::new(env, &journal, self.config, replay.0.finish());
        *self.elsewhere.host.borrow_mut() = Some(host.clone());
        process.spawn(super::background::run(Rc::downgrade(&host)));
        Life { host, shared, log, process }
    }

    /// Cuts the power.
    pub fn cut(&self, life: Life) {
        self.tick.set(life.shared.tick().0);
        *self.elsewhere.host.borrow_mut() = None;
        self.rt.kill(life.process.domain());
        self.disk.power_loss();
        drop(life);
    }

    /// Lets time pass, for the background.
    pub async fn wait_s(&self, seconds: u64) {
        self.rt.sleep(Duration::from_secs(seconds)).await;
    }

    /// A file of which all regions are registered.
    pub fn add_file(&self, fid: Fid, epoch: TruncateEpoch) {
        let state = FileState {
            known: true,
            epoch: epoch.0,
            size: u64::MAX,
            region_log2: u32::from(REGION_LOG2),
            runs: vec![0],
            ..FileState::default()
        };
        self.elsewhere.files.borrow_mut().insert(fid, state);
    }

    /// Changes what the file record says.
    pub fn change_file(&self, fid: Fid, change: impl FnOnce(&mut FileState)) {
        change(self.elsewhere.files.borrow_mut().get_mut(&fid).expect("added"));
    }

    /// How often a block was freed.
    pub fn freed(&self, pg: PgId, index: u32) -> u32 {
        self.elsewhere.freed.borrow().get(&(pg, index)).copied().unwrap_or(0)
    }
}

impl Life {
    /// Another handle of the same life, for tasks.
    pub fn clone_for_test(life: &Self) -> Self {
        Self {
            host: life.host.clone(),
            shared: life.shared.clone(),
            log: life.log.clone(),
            process: life.process.clone(),
        }
    }

    /// Sends a request as a client (or a server) would.
    pub async fn send(
        &self,
        role: Role,
        kind: Kind,
        target: PartitionId,
        body: Vec<u8>,
        payload: Option<Vec<u8>>,
    ) -> Result<Response, Failure> {
        self.deliver(3, role, kind, target, body, payload).await
    }

    /// The same under another configuration than the first.
    pub async fn send_as(
        &self,
        config: u64,
        role: Role,
        kind: Kind,
        target: PartitionId,
        body: Vec<u8>,
    ) -> Result<Response, Failure> {
        self.deliver(config, role, kind, target, body, None).await
    }

    async fn deliver(
        &self,
        fence: u64,
        role: Role,
        kind: Kind,
        target: PartitionId,
        body: Vec<u8>,
        payload: Option<Vec<u8>>,
    ) -> Result<Response, Failure> {
        assert!(body.len() <= BODY_BYTES_MAX as usize);
        let header =
            Header { target: target.0, fence, ..Header::request(kind, ServiceClass::Client) };
        let pool = BufPool::new(1 << 20, false).unwrap();
        let payload = payload.map(|bytes| {
            let mut buf = pool.try_alloc(bytes.len()).unwrap();
            buf.set_len(bytes.len());
            buf.copy_from_slice(&bytes);
            buf.freeze()
        });
        self.host.clone().handle(Incoming { header, body, payload, peer: peer(role) }).await
    }

    pub async fn commit(&self, to: PartitionId, commit: &Commit) -> Result<Response, Failure> {
        self.send(Role::Client, Kind::Commit, to, commit.encode(), None).await
    }
}

/// A region that does not share its partition with its file's record.
pub fn far_region(number: u64) -> (Fid, RegionIndex, PartitionId) {
    (0..u128::MAX)
        .map(|seed| Fid(u128::from(number) << 64 | seed))
        .map(|fid| (fid, RegionIndex(1), partition_of(fid, RegionIndex(1), PARTITIONS)))
        .find(|(fid, _, at)| partition_of(*fid, RegionIndex(0), PARTITIONS) != *at)
        .expect("one of them")
}

pub fn pg_at(home: PartitionId, slot: u64, sequence: u32) -> PgId {
    PgId { slot: Tick(slot), session: SessionId(1), sequence, home }
}

/// A commit of `len` bytes at `at` in region 1.
pub fn commit_of(fid: Fid, pg: PgId, at: u64, len: u32) -> Commit {
    Commit {
        capability: Capability {
            session: SessionId(1),
            fid,
            rights: Rights(Rights::READ.0 | Rights::WRITE.0),
            signature: [0; 16],
        },
        epoch: EPOCH,
        size_raise: 0,
        mtime_ns: 0,
        closes: 0,
        stage: OpId(0),
        descriptor: PgDescriptor {
            pg,
            body: PgBody::Blocks {
                data: 2,
                parity: 1,
                codec: 1,
                block_log2: 16,
                chunk_log2: 14,
                members: (0..3).map(|d| Member { device: DeviceId(d), crc: 0 }).collect(),
            },
        },
        participants: Vec::new(),
        fragments: vec![Fragment { offset: (1 << REGION_LOG2) + at, pg_offset: 0, len }],
    }
}
