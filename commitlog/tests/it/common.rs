//! What the tests of the log share: a simulated world, and a receiver that remembers.

use std::collections::BTreeMap;
use std::future::Future;

use bb_commitlog::{
    Append, Class, ClusterUuid, FormatOptions, Log, LogError, LogIdentity, LogUuid, Lsn, Nonce,
    Options, Replay, ReplayError, StreamId,
};
use bb_nvme::{DeviceRef, SimDisk, SimDiskOptions};
use bb_runtime::{BufPool, Executor, Rt};

pub const GROUP: usize = 16 << 10;
pub const RING: u64 = 2 << 20;
pub const RING_AT: u64 = bb_commitlog::format::RING_OFFSET;

pub const IDENTITY: LogIdentity =
    LogIdentity { log: LogUuid([7; 16]), cluster: ClusterUuid([9; 16]), nonce: Nonce(4711) };

/// What one stream got back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Content {
    pub snapshot: Option<(Lsn, Vec<u8>)>,
    pub records: Vec<(Lsn, Vec<u8>)>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Received(pub BTreeMap<StreamId, Content>);

impl Replay for Received {
    fn snapshot(&mut self, stream: StreamId, lsn: Lsn, bytes: &[u8]) -> Result<(), ReplayError> {
        let content = Content { snapshot: Some((lsn, bytes.to_vec())), records: Vec::new() };
        self.0.insert(stream, content);
        Ok(())
    }
    fn record(&mut self, stream: StreamId, lsn: Lsn, bytes: &[u8]) -> Result<(), ReplayError> {
        let content = self.0.entry(stream).or_default();
        let last = content.records.last().map_or(Lsn(0), |(lsn, _)| *lsn);
        assert!(content.records.is_empty() || last < lsn, "records come in order");
        content.records.push((lsn, bytes.to_vec()));
        Ok(())
    }
    fn retired(&mut self, stream: StreamId, _: Lsn) -> Result<(), ReplayError> {
        self.0.remove(&stream);
        Ok(())
    }
}

impl Received {
    pub fn records(&self, stream: u64) -> Vec<Vec<u8>> {
        let content = self.0.get(&StreamId(stream));
        content.map_or_else(Vec::new, |c| c.records.iter().map(|(_, b)| b.clone()).collect())
    }
    pub fn snapshot(&self, stream: u64) -> Option<Vec<u8>> {
        self.0.get(&StreamId(stream))?.snapshot.as_ref().map(|(_, bytes)| bytes.clone())
    }
}

pub struct World {
    pub rt: Rt,
    pub pool: BufPool,
    pub disk: SimDisk,
}

/// Runs `test` on virtual time with an empty disk that has room for a small log.
pub fn simulate<F: Future>(seed: u64, test: impl FnOnce(World) -> F) -> F::Output {
    let executor = Executor::simulated(seed);
    let rt = executor.rt();
    let pool = BufPool::new(16 << 20, false).unwrap();
    let disk = SimDisk::new(&rt, &SimDiskOptions::new("log", RING_AT + RING));
    executor.block_on(test(World { rt, pool, disk }))
}

pub fn format_options() -> FormatOptions {
    FormatOptions { group_bytes_max: GROUP, ..FormatOptions::new(IDENTITY) }
}

impl World {
    pub async fn format(&self) {
        let dev: DeviceRef = self.disk.attach();
        Log::format(&self.rt, &self.pool, &dev, &format_options(), &mut |_, _| ()).await.unwrap();
    }

    /// Opens the log in a new process.
    pub async fn open(&self) -> Result<(Log, Received, Rt), LogError> {
        self.open_with(Options::default()).await
    }

    pub async fn open_with(&self, options: Options) -> Result<(Log, Received, Rt), LogError> {
        let process = self.rt.new_domain();
        let dev: DeviceRef = self.disk.attach();
        let mut received = Received::default();
        let log = Log::open(&process, &self.pool, &dev, options, &mut received).await?;
        Ok((log, received, process))
    }

    /// What opening it would give.
    pub async fn dry_replay(&self) -> Result<(Lsn, Received), LogError> {
        let dev: DeviceRef = self.disk.attach();
        let mut received = Received::default();
        let options = Options::default();
        let end =
            bb_commitlog::dry_replay(&self.rt, &self.pool, &dev, &options, &mut received).await?;
        Ok((end, received))
    }

    /// Ends a process without warning.
    pub fn crash(&self, log: Log, process: &Rt) {
        self.rt.kill(process.domain());
        self.disk.process_crash();
        drop(log);
    }

    /// Cuts the power.
    pub fn cut(&self, log: Log, process: &Rt) {
        self.rt.kill(process.domain());
        self.disk.power_loss();
        drop(log);
    }
}

/// Appends one record of the client class.
pub async fn append(log: &Log, stream: u64, record: &[u8]) -> Result<Append, LogError> {
    let mut room = log.admit(Class::Client, record.len()).await?;
    log.append(StreamId(stream), &mut room, record)
}

/// Appends one record and waits until it is durable.
pub async fn commit(log: &Log, stream: u64, record: &[u8]) -> Lsn {
    let append = append(log, stream, record).await.unwrap();
    append.durable.await.unwrap();
    append.lsn
}
