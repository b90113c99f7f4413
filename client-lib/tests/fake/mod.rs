//! A cluster in memory: one server or some, four devices or more, eight partitions, nothing durable,
//! everything naive, and one state that all servers see. Requests arrive, and answers leave, after random delays, so they overtake each other.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use bb_client::{Client, ClientOptions};
use bb_cluster::{ClusterMap, DeviceEntry, NodeEntry, NodeState, PartitionEntry};
use bb_erasure::crc32c;
use bb_proto::meta::{self, NamespaceOp};
use bb_proto::{
    Capability, Code, Commit, DeviceId, Failure, Fid, GetBlock, GetBlockReply, Kind, PartitionId,
    PgBody, PgDescriptor, PgId, PutBlock, Rights, SessionId, Tick, Writer, partition_of,
    partition_of_session,
};
use bb_runtime::{BufMut, BufPool, Rt};
use bb_transport::{Address, Answer, CallError, CallFuture, Caller, Outgoing, Vitals};

pub const PARTITIONS: u32 = 8;
pub const REGION_LOG2: u32 = 20;
pub const FIRST_TICK: u64 = 100;

/// What happens to a request.
#[derive(Clone, Debug)]
pub enum Fate {
    Served,
    /// Never arrives; the caller waits in vain.
    Lost,
    /// Is served, but the answer never comes.
    AnswerLost,
    /// The connection breaks before anything was sent.
    NotConnected,
    Refused(Failure),
    /// Arrives after so long.
    Late(Duration),
    /// Is served at once, and the answer comes after so long.
    AnswerLate(Duration),
}

type Hook = Box<dyn FnMut(&Outgoing) -> Fate>;
/// A block and the CRC32Cs of its chunks.
type Block = (Vec<u8>, Vec<u32>);

#[derive(Clone, Default)]
pub struct FakeFile {
    pub fid: u128,
    pub size: u64,
    pub epoch: u64,
    pub runs: BTreeSet<u32>,
    pub mtime_ns: i64,
    /// Bytes on the backing file system.
    pub backing: Vec<u8>,
    /// Sorted by offset, without overlap: length, group, offset there.
    pub fragments: BTreeMap<u64, (u32, PgId, u32)>,
    pub opens: u32,
    pub durable_names: u32,
}

#[derive(Default)]
pub struct State {
    pub files: BTreeMap<Vec<u8>, FakeFile>,
    pub directories: BTreeSet<Vec<u8>>,
    pub sessions: BTreeSet<u64>,
    pub next_session: u64,
    pub next_fid: u128,
    pub last_open_id: u64,
    pub results: BTreeMap<(u64, u64), Result<Vec<u8>, Failure>>,
    pub blocks: BTreeMap<(u32, PgId, u8), Block>,
    pub groups: BTreeMap<PgId, PgDescriptor>,
    pub inline: BTreeMap<PgId, Vec<u8>>,
    /// (group, partition) in the order of arrival.
    pub applied: Vec<(PgId, PartitionId)>,
    pub cancelled: BTreeSet<PgId>,
    pub horizon: u64,
    pub failed_devices: BTreeSet<u32>,
    pub full: bool,
    pub served: BTreeMap<Kind, u32>,
    pub operations: BTreeMap<u64, u32>,
}

pub struct Fake {
    pub rt: Rt,
    pub state: RefCell<State>,
    pub hook: RefCell<Option<Hook>>,
    pub down: Cell<bool>,
    /// Nodes whose processes are gone: connections to them break.
    pub dead: RefCell<BTreeSet<u32>>,
    /// Nodes that take everything and answer nothing.
    pub mute: RefCell<BTreeSet<u32>>,
    pub map: RefCell<ClusterMap>,
    /// What devices say of their load, in thousandths.
    pub loads: RefCell<BTreeMap<u32, u32>>,
}

/// The address of a node; the first is the seed of every client.
fn address(node: u32) -> String {
    if node == 1 { "server".into() } else { format!("server{node}") }
}

fn map(nodes: u32, devices: u32) -> ClusterMap {
    let node = |id| NodeEntry { id, address: address(id), incarnation: 1, ..NodeEntry::default() };
    let device = |id| DeviceEntry {
        id,
        uuid: vec![0; 16],
        incarnation: 1,
        node: 1 + id % nodes,
        state: 0,
        capacity_bytes: 1 << 30,
    };
    ClusterMap {
        format: 1,
        epoch: 1,
        cluster: vec![1; 16],
        bfs: vec![2; 16],
        nodes: (1..=nodes).map(node).collect(),
        devices: (0..devices).map(device).collect(),
        partitions: (0..PARTITIONS)
            .map(|id| PartitionEntry {
                config: 1,
                primary: 1 + id % nodes,
                ..PartitionEntry::default()
            })
            .collect(),
        data: 2,
        parity: 1,
        codec: 1,
        region_log2: REGION_LOG2,
        window_ticks: 60,
        deterministic: false,
        ..ClusterMap::default()
    }
}

impl Fake {
    pub fn new(rt: &Rt) -> Rc<Self> {
        Self::over(rt, 1, 4)
    }

    /// A cluster of so many nodes; device d is on node 1 + d % nodes, as are primaries.
    pub fn over(rt: &Rt, nodes: u32, devices: u32) -> Rc<Self> {
        let state = State { next_session: 1, next_fid: 1, ..State::default() };
        Rc::new(Self {
            rt: rt.clone(),
            state: RefCell::new(state),
            hook: RefCell::new(None),
            down: Cell::new(false),
            dead: RefCell::default(),
            mute: RefCell::default(),
            loads: RefCell::default(),
            map: RefCell::new(map(nodes, devices)),
        })
    }

    pub fn caller(self: &Rc<Self>) -> Rc<dyn Caller> {
        Rc::new(Handle(self.clone()))
    }

    /// A client of this cluster.
    pub async fn client(self: &Rc<Self>, options: ClientOptions) -> Client {
        let pool = BufPool::new(64 << 20, false).expect("memory");
        let nodes: Vec<u32> = self.map.borrow().nodes.iter().map(|node| node.id).collect();
        let seeds = nodes.into_iter().map(|node| Address::from(address(node).as_str())).collect();
        Client::connect(self.rt.clone(), pool, self.caller(), seeds, options)
            .await
            .expect("connects")
    }

    pub fn on_request(&self, hook: impl FnMut(&Outgoing) -> Fate + 'static) {
        *self.hook.borrow_mut() = Some(Box::new(hook));
    }

    pub fn no_faults(&self) {
        *self.hook.borrow_mut() = None;
        self.down.set(false);
    }

    /// The map has a node as down, and its partitions at the others.
    pub fn fail_over(&self, node: u32) {
        let map = &mut *self.map.borrow_mut();
        map.epoch += 1;
        let others: Vec<u32> = {
            let at = map.nodes.iter().position(|n| n.id == node).expect("known");
            map.nodes[at].state = NodeState::Down as i32;
            map.nodes.iter().filter(|n| n.is_active()).map(|n| n.id).collect()
        };
        for (at, entry) in map.partitions.iter_mut().enumerate().filter(|(_, e)| e.primary == node)
        {
            entry.config += 1;
            entry.primary = others[at % others.len()];
        }
    }

    /// Changes the map.
    pub fn change_map(&self, change: impl FnOnce(&mut ClusterMap)) {
        let map = &mut *self.map.borrow_mut();
        map.epoch += 1;
        change(map);
    }

    pub fn tick(&self) -> u64 {
        FIRST_TICK + self.rt.now().as_nanos() / 1_000_000_000
    }

    pub fn served(&self, kind: Kind) -> u32 {
        self.state.borrow().served.get(&kind).copied().unwrap_or(0)
    }

    /// What the file's fragments say, straight from the state: zeros where nothing covers.
    pub fn contents(&self, path: &[u8]) -> Vec<u8> {
        let state = self.state.borrow();
        let file = &state.files[path];
        let mut bytes = vec![0; usize::try_from(file.size).expect("small")];
        for (offset, (len, pg, pg_offset)) in &file.fragments {
            let at = usize::try_from(*offset).expect("small");
            let end = bytes.len().min(at + *len as usize);
            if at < end {
                state.copy(*pg, *pg_offset as usize, &mut bytes[at..end]);
            }
        }
        bytes
    }

    fn vitals(&self, kind: Kind, target: u32) -> Vitals {
        let loads = self.loads.borrow();
        let load = (kind == Kind::PutBlock).then(|| loads.get(&target)).flatten();
        Vitals { tick: Tick(self.tick()), load: load.copied().unwrap_or(0), free_mib: 100 }
    }
}

impl State {
    fn copy(&self, pg: PgId, at: usize, out: &mut [u8]) {
        let len = out.len();
        match &self.groups[&pg].body {
            PgBody::Inline { .. } => out.copy_from_slice(&self.inline[&pg][at..at + len]),
            PgBody::Blocks { block_log2, members, .. } => {
                let mut done = 0;
                while done < len {
                    let (index, from) =
                        ((at + done) >> block_log2, (at + done) % (1 << block_log2));
                    let piece = (len - done).min((1 << block_log2) - from);
                    let key = (members[index].device.0, pg, u8::try_from(index).expect("small"));
                    out[done..done + piece]
                        .copy_from_slice(&self.blocks[&key].0[from..from + piece]);
                    done += piece;
                }
            }
        }
    }

    fn file_by(&mut self, fid: Fid) -> Result<&mut FakeFile, Failure> {
        let found = self.files.values_mut().find(|f| f.fid == fid.0);
        found.ok_or_else(|| Failure::new(Code::StaleFile, "no such file"))
    }

    fn check(&self, capability: &Capability, right: Rights) -> Result<(), Failure> {
        if !self.sessions.contains(&capability.session.0) {
            return Err(Failure::new(Code::NoSession, "unknown session"));
        }
        if !capability.rights.allows(right) {
            return Err(Failure::new(Code::Denied, "rights"));
        }
        Ok(())
    }
}

struct Handle(Rc<Fake>);

impl Caller for Handle {
    fn call(&self, to: &Address, request: Outgoing) -> CallFuture {
        let (fake, to) = (self.0.clone(), to.clone());
        Box::pin(async move {
            let rt = fake.rt.clone();
            let delay = || Duration::from_micros(20 + rt.random_below(2_000));
            let deadline = request.deadline;
            let node = {
                let map = fake.map.borrow();
                map.nodes.iter().find(|n| *n.address == *to.0).map_or(0, |n| n.id)
            };
            let gone = || fake.down.get() || fake.dead.borrow().contains(&node);
            if gone() {
                rt.sleep(delay()).await;
                return Err(CallError::Disconnected { maybe_sent: false });
            }
            if fake.mute.borrow().contains(&node) {
                rt.sleep(deadline).await;
                return Err(CallError::TimedOut);
            }
            if let Some(failure) = fake.misaddressed(node, &request) {
                rt.sleep(delay()).await;
                return Err(CallError::Refused(failure, fake.vitals(request.kind, request.target)));
            }
            let mut hook = fake.hook.borrow_mut().take();
            let fate = hook.as_mut().map_or(Fate::Served, |hook| hook(&request));
            if fake.hook.borrow().is_none() {
                *fake.hook.borrow_mut() = hook;
            }
            match fate {
                Fate::Served => {}
                Fate::Refused(failure) => {
                    rt.sleep(delay()).await;
                    return Err(CallError::Refused(
                        failure,
                        fake.vitals(request.kind, request.target),
                    ));
                }
                Fate::NotConnected => return Err(CallError::Disconnected { maybe_sent: false }),
                Fate::Lost => {
                    rt.sleep(deadline).await;
                    return Err(CallError::TimedOut);
                }
                Fate::AnswerLost => {
                    rt.sleep(delay()).await;
                    let _ = fake.serve(request);
                    rt.sleep(deadline).await;
                    return Err(CallError::TimedOut);
                }
                Fate::AnswerLate(by) => {
                    let result = fake.serve(request);
                    rt.sleep(by).await;
                    return result;
                }
                Fate::Late(by) => {
                    // Arrives whether or not anybody still waits for it.
                    let (late, rt2) = (fake.clone(), rt.clone());
                    let served = rt.spawn(async move {
                        rt2.sleep(by).await;
                        late.serve(request)
                    });
                    return match rt.timeout(deadline, served).await {
                        Ok(Ok(result)) => result,
                        _ => Err(CallError::TimedOut),
                    };
                }
            }
            rt.sleep(delay()).await;
            if gone() {
                return Err(CallError::Disconnected { maybe_sent: true });
            }
            let result = fake.serve(request);
            rt.sleep(delay()).await;
            if gone() {
                return Err(CallError::Disconnected { maybe_sent: true });
            }
            result
        })
    }
}

type Served = Result<(Vec<u8>, Vec<u8>), Failure>;

fn no_payload(body: Vec<u8>) -> Served {
    Ok((body, Vec::new()))
}

impl Fake {
    /// A request that is not for this node, or for another configuration.
    fn misaddressed(&self, node: u32, request: &Outgoing) -> Option<Failure> {
        let map = self.map.borrow();
        let fits = match request.kind {
            Kind::GetMap | Kind::SessionOpen | Kind::NodeStatus => true,
            Kind::PutBlock | Kind::GetBlock => {
                map.device(DeviceId(request.target)).is_some_and(|d| d.node == node)
            }
            _ => map
                .partition(PartitionId(request.target))
                .is_some_and(|entry| entry.primary == node && entry.config == request.fence),
        };
        (!fits).then(|| Failure::new(Code::Fenced, ""))
    }

    fn serve(&self, mut request: Outgoing) -> Result<Answer, CallError> {
        *self.state.borrow_mut().served.entry(request.kind).or_default() += 1;
        let sink = request.sink.take();
        let vitals = self.vitals(request.kind, request.target);
        match self.answer(&request) {
            Ok((body, payload)) => {
                let payload = sink.map(|mut sink: BufMut| {
                    sink.set_len(payload.len());
                    sink.copy_from_slice(&payload);
                    sink
                });
                Ok(Answer { body, payload, vitals })
            }
            Err(failure) => Err(CallError::Refused(failure, vitals)),
        }
    }

    fn answer(&self, request: &Outgoing) -> Served {
        let state = &mut *self.state.borrow_mut();
        match request.kind {
            Kind::GetMap => no_payload(meta::encode(&meta::GetMapReply {
                map: self.map.borrow().encode_map(),
                ..Default::default()
            })),
            Kind::SessionOpen => {
                let session = state.next_session;
                state.next_session += 1;
                state.sessions.insert(session);
                let reply = meta::SessionOpenReply { session, tick: self.tick(), lease_ms: 30_000 };
                no_payload(meta::encode(&reply))
            }
            Kind::SessionRenew | Kind::SessionClose => no_payload(Vec::new()),
            Kind::Namespace => self.namespace(state, request),
            Kind::PutBlock => put(state, request),
            Kind::GetBlock => get(state, request),
            Kind::GetInline => {
                let get: meta::GetInline = meta::decode(&request.body)?;
                state.check(&(&get.capability).into(), Rights::READ)?;
                let bytes = state.inline.get(&get.pg.into());
                let stale = || Failure::new(Code::Stale, "");
                Ok((Vec::new(), bytes.cloned().ok_or_else(stale)?))
            }
            Kind::Commit => self.commit(state, request),
            Kind::CancelCommit => {
                let cancel: meta::CancelCommit = meta::decode(&request.body)?;
                let pg = PgId::from(cancel.pg);
                let committed = state.groups.contains_key(&pg);
                if !committed {
                    state.cancelled.insert(pg);
                }
                no_payload(meta::encode(&meta::CancelCommitReply { committed }))
            }
            Kind::PgStatus => {
                let ask: meta::PgStatus = meta::decode(&request.body)?;
                let entry = |pg: &meta::PPgId| match state.groups.get(&PgId::from(*pg)) {
                    Some(descriptor) => {
                        let mut out = Writer::default();
                        descriptor.encode(&mut out);
                        meta::PgStatusEntry { state: 1, descriptor: out.finish() }
                    }
                    None => meta::PgStatusEntry { state: 2, descriptor: Vec::new() },
                };
                let entries = ask.pgs.iter().map(entry).collect();
                no_payload(meta::encode(&meta::PgStatusReply { entries }))
            }
            Kind::Lookup => lookup(state, request),
            Kind::ReadThrough => {
                let read: meta::ReadThrough = meta::decode(&request.body)?;
                let capability = Capability::from(&read.capability);
                state.check(&capability, Rights::READ)?;
                let file = state.file_by(capability.fid)?;
                let from = usize::try_from(read.offset).expect("small");
                let mut bytes: Vec<u8> =
                    file.backing.iter().skip(from).take(read.len as usize).copied().collect();
                bytes.resize(read.len as usize, 0);
                let reply = meta::ReadThroughReply { crc: crc32c(&bytes) };
                Ok((meta::encode(&reply), bytes))
            }
            Kind::FileRegions => {
                let body: meta::FileRegions = meta::decode(&request.body)?;
                let capability = Capability::from(&body.capability);
                state.check(&capability, Rights::WRITE)?;
                state.file_by(capability.fid)?.runs.insert(body.run);
                no_payload(Vec::new())
            }
            Kind::FileSize | Kind::FileClose => file_size(state, request),
            Kind::FileStat => {
                let body: meta::FileStat = meta::decode(&request.body)?;
                let file = state.file_by(body.fid.into())?;
                let reply = file_state(file, 0);
                no_payload(meta::encode(&reply))
            }
            Kind::FileTruncate => {
                let body: meta::FileTruncate = meta::decode(&request.body)?;
                let capability = Capability::from(&body.capability);
                state.check(&capability, Rights::WRITE)?;
                let key = (body.session, body.sequence);
                if let Some(Ok(before)) = state.results.get(&key) {
                    return no_payload(before.clone());
                }
                let file = state.file_by(capability.fid)?;
                cut(file, body.size);
                let reply = meta::encode(&file_state(file, 0));
                state.results.insert(key, Ok(reply.clone()));
                no_payload(reply)
            }
            Kind::FileOperation => {
                let body: meta::FileOperation = meta::decode(&request.body)?;
                state.operations.insert(body.sequence, 0);
                let op = meta::OperationState { op: body.sequence, ..Default::default() };
                no_payload(meta::encode(&op))
            }
            Kind::OperationStatus => {
                let body: meta::OperationStatus = meta::decode(&request.body)?;
                let Some(asked) = state.operations.get_mut(&body.op) else {
                    let failure = Failure::new(Code::Cancelled, "another process");
                    let reply = meta::OperationState {
                        op: body.op,
                        ended: true,
                        failure: Some(failure.with_value(meta::OPERATION_UNKNOWN)),
                        ..Default::default()
                    };
                    return no_payload(meta::encode(&reply));
                };
                *asked += 1;
                let failure = body.cancel.then(|| Failure::new(Code::Cancelled, ""));
                let reply = meta::OperationState {
                    op: body.op,
                    ended: *asked > 2 || body.cancel,
                    bytes_total: 3,
                    bytes_done: u64::from(*asked),
                    failure,
                };
                no_payload(meta::encode(&reply))
            }
            _ => Err(Failure::new(Code::Unsupported, format!("{:?}", request.kind))),
        }
    }

    fn commit(&self, state: &mut State, request: &Outgoing) -> Served {
        let commit = Commit::decode(&request.body)
            .map_err(|error| Failure::new(Code::Invalid, error.to_string()))?;
        let (pg, partition) = (commit.descriptor.pg, PartitionId(request.target));
        if state.applied.contains(&(pg, partition)) {
            return no_payload(Vec::new());
        }
        state.check(&commit.capability, Rights::WRITE)?;
        if pg.slot.0 <= state.horizon {
            return Err(Failure::new(Code::BehindHorizon, "").with_value(self.tick()));
        }
        if pg.slot.0 > self.tick() {
            return Err(Failure::new(Code::SlotAhead, "").with_value(self.tick()));
        }
        if state.cancelled.contains(&pg) {
            return Err(Failure::new(Code::CommitCancelled, ""));
        }
        if pg.home != partition {
            assert!(state.groups.contains_key(&pg), "home comes first");
        }
        check_stored(state, &commit, request, partition);
        let fid = commit.capability.fid;
        let file = state.file_by(fid)?;
        if commit.epoch.0 < file.epoch {
            return Err(Failure::new(Code::OldTruncateEpoch, "").with_value(file.epoch));
        }
        for fragment in &commit.fragments {
            let region = u32::try_from(fragment.offset >> REGION_LOG2).expect("small");
            assert_eq!(fragment.offset >> REGION_LOG2, (fragment.end() - 1) >> REGION_LOG2);
            assert_eq!(partition_of(fid, bb_proto::RegionIndex(region), PARTITIONS), partition);
            // Where the file's record is, a commit registers its regions itself.
            let record_at = partition_of(fid, bb_proto::RegionIndex(0), PARTITIONS);
            if partition == record_at {
                file.runs.insert(region / 1024);
            } else if !file.runs.contains(&(region / 1024)) {
                return Err(Failure::new(Code::RegionUnknown, ""));
            }
        }
        for fragment in &commit.fragments {
            punch(file, fragment.offset, fragment.end());
            file.fragments.insert(fragment.offset, (fragment.len, pg, fragment.pg_offset));
        }
        file.size = file.size.max(commit.size_raise);
        file.mtime_ns = file.mtime_ns.max(commit.mtime_ns);
        file.opens = file.opens.saturating_sub(u32::from(commit.closes != 0));
        if let PgBody::Inline { .. } = commit.descriptor.body
            && pg.home == partition
        {
            let bytes = request.payload.iter().flat_map(|b| b.to_vec()).collect();
            state.inline.insert(pg, bytes);
        }
        state.groups.insert(pg, commit.descriptor);
        state.applied.push((pg, partition));
        no_payload(Vec::new())
    }

    fn namespace(&self, state: &mut State, request: &Outgoing) -> Served {
        let body: meta::Namespace = meta::decode(&request.body)?;
        if !state.sessions.contains(&body.session) {
            return Err(Failure::new(Code::NoSession, ""));
        }
        let partition = partition_of_session(SessionId(body.session), PARTITIONS);
        assert_eq!(partition.0, request.target);
        let key = (body.session, body.sequence);
        if let Some(before) = state.results.get(&key) {
            return before.clone().and_then(no_payload);
        }
        let result = operation(state, body.session, body.op.expect("an operation"), self.tick());
        let result = result.map(|reply| meta::encode(&reply));
        state.results.insert(key, result.clone());
        result.and_then(no_payload)
    }
}

/// What rule 4 in the failure model asks of a commit: every member holds its block already.
fn check_stored(state: &State, commit: &Commit, request: &Outgoing, partition: PartitionId) {
    let pg = commit.descriptor.pg;
    match &commit.descriptor.body {
        PgBody::Blocks { members, .. } => {
            for (index, member) in (0_u8..).zip(members) {
                let (_, crcs) = &state.blocks[&(member.device.0, pg, index)];
                let bytes: Vec<u8> = crcs.iter().flat_map(|c| c.to_le_bytes()).collect();
                assert_eq!(crc32c(&bytes), member.crc);
            }
        }
        PgBody::Inline { len, crc } if pg.home == partition => {
            let bytes: Vec<u8> = request.payload.iter().flat_map(|b| b.to_vec()).collect();
            assert_eq!((bytes.len(), crc32c(&bytes)), (*len as usize, *crc));
        }
        PgBody::Inline { .. } => {}
    }
}

fn put(state: &mut State, request: &Outgoing) -> Served {
    let put = PutBlock::decode(&request.body).expect("well formed");
    state.check(&put.capability, Rights::WRITE)?;
    if state.failed_devices.contains(&request.target) {
        return Err(Failure::new(Code::DeviceFailed, ""));
    }
    if state.full {
        return Err(Failure::new(Code::NoSpace, ""));
    }
    let bytes: Vec<u8> = request.payload.iter().flat_map(|b| b.to_vec()).collect();
    assert_eq!(bytes.len(), put.block_bytes());
    for (chunk, crc) in bytes.chunks(1 << put.chunk_log2).zip(&put.chunk_crcs) {
        assert_eq!(crc32c(chunk), *crc);
    }
    state.blocks.insert((request.target, put.pg, put.index), (bytes, put.chunk_crcs));
    no_payload(Vec::new())
}

fn get(state: &State, request: &Outgoing) -> Served {
    let get = GetBlock::decode(&request.body).expect("well formed");
    state.check(&get.capability, Rights::READ)?;
    if state.failed_devices.contains(&request.target) {
        return Err(Failure::new(Code::DeviceFailed, ""));
    }
    let block = state.blocks.get(&(request.target, get.pg, get.index));
    let (bytes, crcs) = block.ok_or_else(|| Failure::new(Code::Stale, ""))?;
    let of = |run: Range<usize>| &bytes[run.start << get.chunk_log2..run.end << get.chunk_log2];
    let payload = get.runs().flat_map(of).copied().collect();
    let chunk_crcs = get.runs().flat_map(|run| crcs[run].to_vec()).collect();
    Ok((GetBlockReply { chunk_crcs }.encode(), payload))
}

fn lookup(state: &mut State, request: &Outgoing) -> Served {
    let ask: meta::Lookup = meta::decode(&request.body)?;
    let capability = Capability::from(&ask.capability);
    state.check(&capability, Rights::READ)?;
    let groups = state.groups.clone();
    let file = state.file_by(capability.fid)?;
    let end = ask.offset + ask.len;
    let mut reply =
        meta::LookupReply { end, epoch: file.epoch, zeros_from: u64::MAX, ..Default::default() };
    let mut numbers: BTreeMap<PgId, u32> = BTreeMap::new();
    for (offset, (len, pg, pg_offset)) in &file.fragments {
        let (from, to) = ((*offset).max(ask.offset), (offset + u64::from(*len)).min(end));
        if from >= to {
            continue;
        }
        if reply.fragments.len() == 50 {
            // A page of an answer: ask on.
            reply.end = from;
            break;
        }
        let next = u32::try_from(numbers.len()).expect("small");
        let group = *numbers.entry(*pg).or_insert_with(|| {
            let mut out = Writer::default();
            groups[pg].encode(&mut out);
            reply.descriptors.push(out.finish());
            next
        });
        reply.fragments.push(meta::FragmentInfo {
            offset: from,
            len: u32::try_from(to - from).expect("small"),
            group,
            pg_offset: pg_offset + u32::try_from(from - offset).expect("small"),
            state: 0,
        });
    }
    no_payload(meta::encode(&reply))
}

fn file_size(state: &mut State, request: &Outgoing) -> Served {
    let body: meta::FileSize = meta::decode(&request.body)?;
    let capability = Capability::from(&body.capability);
    let changes = body.size > 0 || body.append > 0 || body.mtime_ns != 0;
    let changes = changes && request.kind != Kind::FileClose;
    state.check(&capability, if changes { Rights::WRITE } else { Rights(0) })?;
    let file = state.file_by(capability.fid)?;
    if body.epoch >= file.epoch {
        file.size = file.size.max(body.size);
    }
    file.durable_names += u32::from(body.durable_name);
    file.mtime_ns = file.mtime_ns.max(body.mtime_ns);
    let append_at = file.size;
    file.size += body.append;
    if request.kind == Kind::FileClose {
        // The end of an open may be said twice.
        file.opens = file.opens.saturating_sub(1);
    }
    let reply = file_state(file, append_at);
    no_payload(meta::encode(&reply))
}

fn file_state(file: &FakeFile, append_at: u64) -> meta::FileState {
    let (size, epoch, mtime_ns) = (file.size, file.epoch, file.mtime_ns);
    meta::FileState { size, epoch, mtime_ns, append_at, known: true, ..Default::default() }
}

/// Cuts everything in a range out of the fragments.
fn punch(file: &mut FakeFile, from: u64, to: u64) {
    let old = std::mem::take(&mut file.fragments);
    for (offset, (len, pg, pg_offset)) in old {
        let end = offset + u64::from(len);
        let small = |n: u64| u32::try_from(n).expect("small");
        if end <= from || to <= offset {
            file.fragments.insert(offset, (len, pg, pg_offset));
            continue;
        }
        if offset < from {
            file.fragments.insert(offset, (small(from - offset), pg, pg_offset));
        }
        if to < end {
            file.fragments.insert(to, (small(end - to), pg, pg_offset + small(to - offset)));
        }
    }
}

pub fn cut(file: &mut FakeFile, size: u64) {
    punch(file, size, u64::MAX);
    file.backing.truncate(usize::try_from(size).expect("small"));
    file.size = size;
    file.epoch += 1;
}

fn operation(
    state: &mut State,
    session: u64,
    op: NamespaceOp,
    tick: u64,
) -> Result<meta::NamespaceReply, Failure> {
    let mut reply = meta::NamespaceReply::default();
    let missing = || Failure::errno(libc::ENOENT, "");
    match op {
        NamespaceOp::Open(open) => {
            if state.directories.contains(&open.path) {
                reply.attributes = Some(attributes(0, libc::S_IFDIR));
                return Ok(reply);
            }
            let exists = state.files.contains_key(&open.path);
            if exists && open.flags & libc::O_EXCL != 0 {
                return Err(Failure::errno(libc::EEXIST, ""));
            }
            if !exists && open.flags & libc::O_CREAT == 0 {
                return Err(missing());
            }
            if !exists {
                let fid = state.next_fid;
                state.next_fid += 1;
                let file = FakeFile { fid, epoch: tick, ..FakeFile::default() };
                state.files.insert(open.path.clone(), file);
            }
            let file = state.files.get_mut(&open.path).ok_or_else(missing)?;
            if open.flags & libc::O_TRUNC != 0 {
                cut(file, 0);
            }
            file.opens += 1;
            state.last_open_id += 1;
            let rights = match open.flags & libc::O_ACCMODE {
                libc::O_RDONLY => Rights::READ.0,
                libc::O_WRONLY => Rights::WRITE.0,
                _ => Rights::READ.0 | Rights::WRITE.0,
            };
            let capability = Capability {
                session: SessionId(session),
                fid: Fid(file.fid),
                rights: Rights(rights),
                signature: [0; 16],
            };
            reply.attributes = Some(attributes_of(file));
            reply.file = Some(meta::FileHandle {
                capability: (&capability).into(),
                region_log2: REGION_LOG2,
                epoch: file.epoch,
                size: file.size,
                open_id: state.last_open_id,
                runs: file.runs.iter().copied().collect(),
            });
        }
        NamespaceOp::Stat(stat) if state.directories.contains(&stat.path) => {
            reply.attributes = Some(attributes(0, libc::S_IFDIR));
        }
        NamespaceOp::Stat(stat) => {
            let file = state.files.get(&stat.path).ok_or_else(missing)?;
            reply.attributes = Some(attributes_of(file));
            reply.file = Some(name_of(file));
        }
        NamespaceOp::Mkdir(mkdir) => {
            let new = state.directories.insert(mkdir.path);
            new.then_some(()).ok_or_else(|| Failure::errno(libc::EEXIST, ""))?;
        }
        NamespaceOp::Rmdir(rmdir) => {
            state.directories.remove(&rmdir.path).then_some(()).ok_or_else(missing)?;
        }
        NamespaceOp::Unlink(unlink) => {
            state.files.remove(&unlink.path).ok_or_else(missing)?;
        }
        NamespaceOp::Rename(rename) => {
            let file = state.files.remove(&rename.from).ok_or_else(missing)?;
            state.files.insert(rename.to, file);
        }
        NamespaceOp::Readdir(readdir) => {
            let names = state.files.keys().filter(|n| **n > readdir.after);
            let entry = |name: &Vec<u8>| meta::DirEntry { name: name.clone(), inode: 1, kind: 8 };
            reply.entries = names.take(3).map(entry).collect();
            reply.last = reply.entries.len() < 3;
        }
        NamespaceOp::Truncate(truncate) => {
            cut(state.files.get_mut(&truncate.path).ok_or_else(missing)?, truncate.size);
        }
        NamespaceOp::Statvfs(_) => reply.space = Some(meta::Space::default()),
        _ => {}
    }
    Ok(reply)
}

fn attributes(inode: u64, mode: u32) -> meta::Attributes {
    meta::Attributes { inode, mode, ..Default::default() }
}

/// Which file it is, without any rights.
fn name_of(file: &FakeFile) -> meta::FileHandle {
    let capability = Capability {
        session: SessionId(0),
        fid: Fid(file.fid),
        rights: Rights(0),
        signature: [0; 16],
    };
    meta::FileHandle {
        capability: (&capability).into(),
        region_log2: REGION_LOG2,
        epoch: file.epoch,
        size: file.size,
        open_id: 0,
        runs: Vec::new(),
    }
}

fn attributes_of(file: &FakeFile) -> meta::Attributes {
    let inode = u64::try_from(file.fid).expect("small");
    meta::Attributes { size: file.size, ..attributes(inode, libc::S_IFREG | 0o644) }
}
