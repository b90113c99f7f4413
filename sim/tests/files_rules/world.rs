//! A server's partitions, files and sessions over a simulated backing file system, through several
//! lives. The log is a list of records: the engine's own tests use a real one.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use bb_cluster::{ClusterMap, DeviceEntry, NodeEntry, PartitionEntry};
use bb_proto::meta::{
    Credentials, FileHandle, FileRegions, FileSize, FileStat, FileState, Namespace, NamespaceOp,
    NamespaceReply, OpMode, OpOpen, OpPath, OpTwo, RegionOperation, RegionOperationReply,
    SessionOpen, SessionOpenReply, decode, encode,
};
use bb_proto::{
    Capability, Code, Commit, DeviceId, Failure, Fid, Fragment, Header, Incarnation, Kind, Member,
    NodeId, OpId, PartitionId, PgBody, PgDescriptor, PgId, RegionIndex, ServiceClass, SessionId,
    Tick, TruncateEpoch, partition_of, partition_of_session,
};
use bb_runtime::{BufPool, Executor, Rt};
use bb_server::context::Shared;
use bb_server::files::{FileService, Parts};
use bb_server::namespace::{Namespace as _, SessionService, WriteThrough};
use bb_server::partition::host::{HostConfig, HostEnv, PartitionHost};
use bb_server::partition::journal::{FrameTicket, Journal, JournalFuture, Ticket};
use bb_server::partition::region_mutation::ProcessId;
use bb_server::partition::region_mutation::{PurgeMode, Range, RegionId, RegionMutation};
use bb_server::partition::{Mutation, PartitionReplay};
use bb_sim::bfs::{SimBfs, SimProcess};
use bb_transport::{
    Address, Answer, CallError, CallFuture, Caller, Incoming, Outgoing, Peer, Response, Role,
    Vitals,
};

pub const PARTITIONS: u32 = 4;
pub const LEASE: Duration = Duration::from_secs(30);
const BFS: [u8; 16] = [2; 16];

type Records = Rc<RefCell<Vec<(PartitionId, Vec<u8>)>>>;

/// Appended is durable; the answer takes a moment in which the server can die.
struct MemoryJournal {
    rt: Rt,
    records: Records,
}

struct MemoryTicket {
    rt: Rt,
    records: Records,
    partition: PartitionId,
}

impl Ticket for MemoryTicket {
    fn append(self: Box<Self>, record: &[u8]) -> Result<JournalFuture<()>, Failure> {
        self.records.borrow_mut().push((self.partition, record.to_vec()));
        Ok(Box::pin(async move {
            self.rt.sleep(Duration::from_micros(1 + self.rt.random_below(50))).await;
            Ok(())
        }))
    }
}

impl Journal for MemoryJournal {
    fn admit(
        &self,
        partition: PartitionId,
        _: ServiceClass,
        _: usize,
    ) -> JournalFuture<Box<dyn Ticket>> {
        let (rt, records) = (self.rt.clone(), self.records.clone());
        Box::pin(async move { Ok(Box::new(MemoryTicket { rt, records, partition }) as _) })
    }

    fn admit_frame(&self, _: ServiceClass, _: Vec<usize>) -> JournalFuture<Box<dyn FrameTicket>> {
        Box::pin(async { Err(Failure::new(Code::Unsupported, "not in these tests")) })
    }

    fn retire(&self, _: PartitionId) -> Result<JournalFuture<()>, Failure> {
        Err(Failure::new(Code::Unsupported, "not in these tests"))
    }

    fn checkpoint(&self, _: PartitionId, _: Vec<u8>) -> Result<JournalFuture<()>, Failure> {
        Err(Failure::new(Code::Unsupported, "not in these tests"))
    }
}

/// Everything that outlives a server.
pub struct World {
    pub rt: Rt,
    pub bfs: SimBfs,
    records: Records,
    incarnation: Cell<u64>,
    life: RefCell<Option<Rc<Life>>>,
    pool: BufPool,
    pub grace: Cell<Duration>,
}

/// One life of the server.
struct Life {
    domain: Rt,
    process: Rc<SimProcess>,
    host: Rc<PartitionHost>,
    files: Rc<FileService>,
    sessions: Rc<SessionService>,
}

struct ToWorld(std::rc::Weak<World>);

impl Caller for ToWorld {
    fn call(&self, _: &Address, request: Outgoing) -> CallFuture {
        let world = self.0.upgrade().expect("the world outlives its servers");
        Box::pin(async move {
            let Outgoing { kind, target, body, .. } = request;
            world.rt.sleep(Duration::from_micros(1 + world.rt.random_below(20))).await;
            let life = world.life.borrow().clone();
            let life = life.ok_or(CallError::Disconnected { maybe_sent: false })?;
            match life.handle(Role::Server, kind, PartitionId(target), body).await {
                Ok(response) => {
                    Ok(Answer { body: response.body, payload: None, vitals: Vitals::default() })
                }
                Err(failure) => Err(CallError::Refused(failure, Vitals::default())),
            }
        })
    }
}

impl Life {
    async fn handle(
        &self,
        role: Role,
        kind: Kind,
        target: PartitionId,
        body: Vec<u8>,
    ) -> Result<Response, Failure> {
        let header =
            Header { target: target.0, fence: 1, ..Header::request(kind, ServiceClass::Client) };
        let peer = Rc::new(Peer { connection: 1, role, host: "test".into(), proven: None });
        let request = Incoming { header, body, payload: None, peer };
        if kind == Kind::SessionClose && target.0 == bb_server::files::WHOLE_NODE {
            return self.files.end_session_here(self.host.partitions(), &request).await;
        }
        let partition = self.host.partition(target).expect("all are here");
        match kind {
            Kind::SessionOpen => self.sessions.open(&request).await,
            Kind::Namespace | Kind::SessionRenew | Kind::SessionClose => {
                self.sessions.clone().handle(partition, request).await
            }
            Kind::FileOpen
            | Kind::FileClose
            | Kind::FileStat
            | Kind::FileRegions
            | Kind::FileSize
            | Kind::FileTruncate
            | Kind::FileDrop => self.files.clone().handle(partition, request).await,
            Kind::RegionOperation => {
                let ask: RegionOperation = decode(&request.body)?;
                let id = RegionId { fid: ask.fid.into(), region: RegionIndex(ask.region) };
                let range = Range { start: 0, end: u64::MAX };
                let purge = RegionMutation::Purge { id, range, mode: PurgeMode::Clean };
                partition.submit(ServiceClass::Client, Mutation::Region(purge)).await?;
                Ok(Response::body(encode(&RegionOperationReply::default())))
            }
            Kind::FreeBlocks => Ok(Response::default()),
            Kind::Commit => self.files.commit(&self.host, request).await,
            _ => self.host.clone().handle(request).await,
        }
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
    let partition = PartitionEntry { config: 1, primary: 1, ..PartitionEntry::default() };
    ClusterMap {
        format: 1,
        epoch: 1,
        cluster: vec![1; 16],
        bfs: BFS.to_vec(),
        nodes: vec![NodeEntry {
            id: 1,
            address: "n1".into(),
            incarnation: 1,
            ..NodeEntry::default()
        }],
        devices: (0..3).map(device).collect(),
        partitions: vec![partition; PARTITIONS as usize],
        data: 2,
        parity: 1,
        codec: 1,
        region_log2: 20,
        window_ticks: 60,
        deterministic: false,
        ..ClusterMap::default()
    }
}

/// Runs a test in a new world with one running server.
pub fn simulate<F: Future>(seed: u64, test: impl FnOnce(Rc<World>) -> F) -> F::Output {
    let executor = Executor::simulated(seed);
    let rt = executor.rt();
    let world = Rc::new(World {
        bfs: SimBfs::new(&rt, BFS),
        rt,
        records: Records::default(),
        incarnation: Cell::new(0),
        life: RefCell::default(),
        pool: BufPool::new(4 << 20, false).expect("pool"),
        grace: Cell::new(Duration::ZERO),
    });
    executor.block_on(async {
        world.start().await;
        let output = test(world.clone()).await;
        world.kill();
        output
    })
}

impl World {
    /// Starts a server on what the log holds.
    pub async fn start(self: &Rc<Self>) {
        self.incarnation.set(self.incarnation.get() + 1);
        let incarnation = Incarnation(self.incarnation.get());
        let domain = self.rt.new_domain();
        let process = self.bfs.process();
        let bfs: Rc<dyn bb_server::bfs::Bfs> = process.clone();
        bfs.hold(ProcessId::new(1, incarnation.0)).await.expect("lock");
        let address = Address::from("n1");
        let shared =
            Rc::new(Shared::new(&domain, NodeId(1), address, incarnation, map(), Tick(1000)));
        let caller: Rc<dyn Caller> = Rc::new(ToWorld(Rc::downgrade(self)));
        let mut replay = PartitionReplay::new();
        for (partition, record) in self.records.borrow().iter() {
            replay.record(*partition, record).expect("replay");
        }
        let journal: Rc<dyn Journal> =
            Rc::new(MemoryJournal { rt: domain.clone(), records: self.records.clone() });
        let env = HostEnv {
            rt: domain.clone(),
            pool: self.pool.clone(),
            caller: caller.clone(),
            shared: shared.clone(),
        };
        let host = PartitionHost::new(env, &journal, HostConfig::default(), replay.finish());
        let parts = Parts { rt: domain.clone(), caller, bfs, shared };
        let files = FileService::new(parts.clone(), self.grace.get());
        let namespace = WriteThrough::new(parts.clone());
        let finder = host.clone();
        let find = Rc::new(move |id| finder.partition(id));
        let sessions = SessionService::new(parts, find, namespace.clone(), files.clone(), LEASE);
        let life = Life { domain, process, host, files, sessions };
        let partitions: Vec<_> = life.host.partitions().collect();
        *self.life.borrow_mut() = Some(Rc::new(life));
        let life = self.life.borrow().clone().expect("just put there");
        for partition in &partitions {
            life.files.resume(partition);
            namespace.clone().resume(partition);
        }
        drop(life.domain.spawn(life.sessions.clone().expire(move || partitions.clone())));
    }

    /// Kills the server where it stands.
    pub fn kill(&self) {
        if let Some(life) = self.life.borrow_mut().take() {
            life.process.kill();
            self.rt.kill(life.domain.domain());
        }
    }

    /// Asks as a client does: as long as the server is busy or gone.
    pub async fn ask(
        &self,
        kind: Kind,
        to: PartitionId,
        body: Vec<u8>,
    ) -> Result<Vec<u8>, Failure> {
        loop {
            match self.ask_once(kind, to, body.clone()).await {
                Err(failure) if failure.kind() == Code::Busy => {
                    self.rt.sleep(Duration::from_millis(5)).await;
                }
                result => return result,
            }
        }
    }

    /// Asks once; busy if the server is not there, or dies meanwhile.
    pub async fn ask_once(
        &self,
        kind: Kind,
        to: PartitionId,
        body: Vec<u8>,
    ) -> Result<Vec<u8>, Failure> {
        let gone = || Failure::new(Code::Busy, "no server");
        let life = self.life.borrow().clone().ok_or_else(gone)?;
        let domain = life.domain.clone();
        let answer = domain.spawn(async move { life.handle(Role::Client, kind, to, body).await });
        answer.await.map_err(|_| gone())?.map(|response| response.body)
    }

    /// Asks once, as another server does.
    pub async fn ask_as_server(
        &self,
        kind: Kind,
        to: PartitionId,
        body: Vec<u8>,
    ) -> Result<Vec<u8>, Failure> {
        let life = self.life.borrow().clone().expect("alive");
        life.handle(Role::Server, kind, to, body).await.map(|response| response.body)
    }

    pub async fn session(&self, key: u8) -> Client<'_> {
        let open =
            SessionOpen { key: vec![key; 16], host: "h".into(), pid: 1, job: 0, owner: None };
        let body = self.ask(Kind::SessionOpen, PartitionId(0), encode(&open)).await.expect("open");
        let reply: SessionOpenReply = decode(&body).expect("reply");
        Client { world: self, session: SessionId(reply.session), next: Cell::new(1), uid: 7 }
    }

    pub async fn file(&self, fid: Fid) -> FileState {
        let stat = FileStat { fid: fid.into(), counts: true, truncates_after: None };
        let body = self.ask(Kind::FileStat, home(fid), encode(&stat)).await.expect("stat");
        decode(&body).expect("state")
    }
}

/// Partition of a file's record, and of its region 0.
pub fn home(fid: Fid) -> PartitionId {
    partition_of(fid, RegionIndex(0), PARTITIONS)
}

/// A client.
pub struct Client<'a> {
    pub world: &'a World,
    pub session: SessionId,
    next: Cell<u64>,
    pub uid: u32,
}

impl Client<'_> {
    pub fn number(&self) -> u64 {
        self.next.replace(self.next.get() + 1)
    }

    pub fn request(&self, sequence: u64, op: NamespaceOp) -> Vec<u8> {
        let uid = self.uid;
        let credentials = Credentials { uid, gid: uid, groups: vec![], umask: 0 };
        let (session, op) = (self.session.0, Some(op));
        encode(&Namespace { session, sequence, acknowledged: 0, credentials, owner: None, op })
    }

    pub fn home(&self) -> PartitionId {
        partition_of_session(self.session, PARTITIONS)
    }

    /// One operation, repeated under its number until it is answered.
    pub async fn op(&self, op: NamespaceOp) -> Result<NamespaceReply, Failure> {
        let body = self.request(self.number(), op);
        decode(&self.world.ask(Kind::Namespace, self.home(), body).await?)
    }

    pub async fn open(&self, path: &str, flags: i32) -> Result<(Fid, FileHandle), Failure> {
        let handle = self.op(open(path, flags)).await?.file.expect("a regular file");
        Ok((Capability::from(&handle.capability).fid, handle))
    }

    /// Commits `len` bytes at the start of a file, and says so.
    pub async fn write(&self, fid: Fid, handle: &FileHandle, len: u32) -> Result<(), Failure> {
        let regions = FileRegions { capability: handle.capability.clone(), run: 0, regions: 1024 };
        self.world.ask(Kind::FileRegions, home(fid), encode(&regions)).await?;
        self.commit(fid, handle, len).await?;
        self.tell(fid, handle, u64::from(len), Kind::FileSize).await.map(drop)
    }

    pub async fn commit(&self, fid: Fid, handle: &FileHandle, len: u32) -> Result<(), Failure> {
        self.commit_and(fid, handle, len, 0, 0).await
    }

    /// Commits the last bytes of an open, which ends with them.
    pub async fn commit_last(
        &self,
        fid: Fid,
        handle: &FileHandle,
        len: u32,
    ) -> Result<(), Failure> {
        self.commit_and(fid, handle, len, u64::from(len), handle.open_id).await
    }

    async fn commit_and(
        &self,
        fid: Fid,
        handle: &FileHandle,
        len: u32,
        size_raise: u64,
        closes: u64,
    ) -> Result<(), Failure> {
        let sequence = u32::try_from(self.number()).expect("few");
        let pg = PgId { slot: Tick(1000), session: self.session, sequence, home: home(fid) };
        let members = (0..3).map(|d| Member { device: DeviceId(d), crc: 0 }).collect();
        let body = PgBody::Blocks {
            data: 2,
            parity: 1,
            codec: 1,
            block_log2: 16,
            chunk_log2: 14,
            members,
        };
        let commit = Commit {
            capability: (&handle.capability).into(),
            epoch: TruncateEpoch(handle.epoch),
            size_raise,
            mtime_ns: 0,
            closes,
            stage: OpId(0),
            descriptor: PgDescriptor { pg, body },
            participants: Vec::new(),
            fragments: vec![Fragment { offset: 0, pg_offset: 0, len }],
        };
        self.world.ask(Kind::Commit, home(fid), commit.encode()).await.map(drop)
    }

    pub async fn tell(
        &self,
        fid: Fid,
        handle: &FileHandle,
        size: u64,
        kind: Kind,
    ) -> Result<FileState, Failure> {
        let ask = FileSize {
            capability: handle.capability.clone(),
            epoch: handle.epoch,
            size,
            append: 0,
            durable_name: false,
            open_id: handle.open_id,
            mtime_ns: 0,
        };
        decode(&self.world.ask(kind, home(fid), encode(&ask)).await?)
    }
}

pub fn open(path: &str, flags: i32) -> NamespaceOp {
    NamespaceOp::Open(OpOpen { path: path.into(), flags, mode: 0o644 })
}

pub fn at(path: &str) -> OpPath {
    OpPath { path: path.into(), no_follow: true }
}

pub fn mkdir(path: &str) -> NamespaceOp {
    NamespaceOp::Mkdir(OpMode { path: path.into(), mode: 0o755 })
}

pub fn rename(from: &str, to: &str) -> NamespaceOp {
    NamespaceOp::Rename(OpTwo { from: from.into(), to: to.into(), flags: 0 })
}
