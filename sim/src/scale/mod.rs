//! How the work of a cluster grows with ranks and servers: counts, from the unchanged client and
//! server code in virtual time. Counts only: simulated devices and networks are as fast as they
//! are, so no speed can be read from this. What follows for clusters that no simulation holds:
//! docs/scale.md.

mod gauge;
mod report;
mod tap;

use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use bb_client::ClientOptions;
use bb_proto::Fid;
use bb_runtime::{Executor, Rt};

pub use self::gauge::{Gauge, Groups};
pub use self::report::print;
pub use self::tap::{Class, From, Tally, Tap, Traffic};
use crate::family::Family;
use crate::world::{ClientProcess, Setup, World};

/// A record of the shared file, as IOR-hard has it.
pub const RECORD_BYTES: u64 = 47_008;
/// A small file, as mdtest-hard has it.
pub const SMALL_BYTES: usize = 3_901;
/// Data of a full parity group.
pub const GROUP_BYTES: u64 = 2 << 20;
/// How long a cluster that does nothing is looked at.
const IDLE: Duration = Duration::from_secs(60);
/// A new cluster goes on to spread roles and replicas for a while.
const SETTLE: Duration = Duration::from_secs(240);
/// When all replicas have applied what was written.
const SETTLED: Duration = Duration::from_secs(1);
const SHARED: &[u8] = b"/shared";

/// What is simulated.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Client processes, each with one rank.
    pub ranks: u64,
    /// Servers, each with two data devices.
    pub servers: usize,
    /// N.
    pub data: u8,
    /// K.
    pub parity: u8,
    /// Metadata partitions.
    pub partitions: u32,
    /// log2 of the region size, in bytes.
    pub region_log2: u32,
    /// Parity groups that each rank writes into the shared file.
    pub groups_each: u64,
    /// Small files that each rank makes.
    pub files_each: u64,
}

impl Default for Shape {
    fn default() -> Self {
        Self {
            ranks: 16,
            servers: 8,
            data: 2,
            parity: 1,
            partitions: 256,
            region_log2: 26,
            groups_each: 8,
            files_each: 50,
        }
    }
}

impl Shape {
    /// Records that each rank writes: the last group is not quite full.
    pub const fn records_each(&self) -> u64 {
        self.groups_each * GROUP_BYTES / RECORD_BYTES
    }

    /// Bytes that all ranks write into the shared file.
    pub const fn shared_bytes(&self) -> u64 {
        self.ranks * self.records_each() * RECORD_BYTES
    }

    fn setup(&self, rt: &Rt) -> Setup {
        let blocks = self.shared_bytes() / u64::from(self.data) + self.shared_bytes();
        let each = 3 * blocks / (2 * self.servers as u64);
        Setup {
            nodes: self.servers,
            devices: 2,
            device_bytes: each.next_multiple_of(8 << 20).max(96 << 20),
            log_bytes: 64 << 20,
            data: self.data,
            parity: self.parity,
            partitions: self.partitions,
            region_log2: self.region_log2,
            window_ticks: 60,
            deterministic: false,
            calls_itself_by_network: false,
            counts_traffic: true,
            ..Setup::draw(rt, Family::NodesCalm)
        }
    }
}

/// What was counted.
#[derive(Clone, Default, Debug)]
pub struct Counted {
    /// While nobody does anything.
    pub idle: Gauge,
    /// While the shared file is written: record `i` by rank `i` mod ranks, then an fsync.
    pub write: Gauge,
    /// Its parity groups.
    pub groups: Groups,
    /// While other ranks read it: each what its neighbour wrote.
    pub read: Gauge,
    /// While small files are made in one directory: created, written, closed.
    pub small: Gauge,
}

/// Simulates `shape`.
///
/// # Errors
/// What did not work.
pub fn run(shape: &Shape) -> Result<Counted, String> {
    let executor = Executor::simulated(1);
    let rt = executor.rt();
    executor.block_on(count(&rt, shape))
}

async fn count(rt: &Rt, shape: &Shape) -> Result<Counted, String> {
    let world = World::new(rt, shape.setup(rt));
    world.metadata_bytes_max.set(1 << 30);
    world.begin(0).await?;
    rt.sleep(SETTLE).await;
    let mut ranks = Vec::new();
    for _ in 0..shape.ranks {
        let options =
            ClientOptions { request_timeout: Duration::from_secs(60), ..ClientOptions::default() };
        ranks.push(world.connect(options).await?);
    }
    make_shared(&ranks[0]).await?;
    let mut counted = Counted {
        idle: measure(&world, async {
            rt.sleep(IDLE).await;
            Ok(())
        })
        .await?,
        ..Counted::default()
    };
    let shape = *shape;
    counted.write =
        measure(&world, each(rt, &ranks, move |rank, me| write_records(me, rank, shape))).await?;
    let fid = fid_of(&ranks[0]).await?;
    counted.groups = Groups::of(&world.nodes(), fid);
    counted.read =
        measure(&world, each(rt, &ranks, move |rank, me| read_records(me, rank, shape))).await?;
    counted.small =
        measure(&world, each(rt, &ranks, move |rank, me| make_small(me, rank, shape))).await?;
    for rank in &ranks {
        world.kill_client(rank);
    }
    Ok(counted)
}

async fn measure(
    world: &World,
    work: impl Future<Output = Result<(), String>>,
) -> Result<Gauge, String> {
    let before = Gauge::of(world);
    work.await?;
    // Backups hear a little later of what is committed.
    world.rt.sleep(SETTLED).await;
    Ok(Gauge::of(world).since(&before))
}

/// All ranks at once.
async fn each<F: Future<Output = Result<(), bb_client::Error>> + 'static>(
    rt: &Rt,
    ranks: &[Rc<ClientProcess>],
    work: impl Fn(u64, Rc<ClientProcess>) -> F,
) -> Result<(), String> {
    let begun: Vec<_> =
        (0..).zip(ranks).map(|(rank, me)| rt.spawn(work(rank, me.clone()))).collect();
    for (rank, ended) in begun.into_iter().enumerate() {
        let result = ended.await.map_err(|error| format!("rank {rank}: {error}"))?;
        result.map_err(|error| format!("rank {rank}: {error}"))?;
    }
    Ok(())
}

async fn make_shared(first: &ClientProcess) -> Result<(), String> {
    let make = async {
        first.client.mkdir(b"/small", 0o755).await?;
        let file = first.client.open(SHARED, libc::O_CREAT | libc::O_RDWR, 0o644).await?;
        file.close().await
    };
    make.await.map_err(|error| format!("cannot make the shared file: {error}"))
}

async fn fid_of(first: &ClientProcess) -> Result<Fid, String> {
    let file = first.client.open(SHARED, libc::O_RDWR, 0).await.map_err(|e| e.to_string())?;
    let fid = file.fid();
    file.close().await.map_err(|error| error.to_string())?;
    Ok(fid)
}

async fn write_records(
    me: Rc<ClientProcess>,
    rank: u64,
    shape: Shape,
) -> Result<(), bb_client::Error> {
    let file = me.client.open(SHARED, libc::O_RDWR, 0).await?;
    let record = vec![0x5A; usize::try_from(RECORD_BYTES).unwrap_or(0)];
    for number in 0..shape.records_each() {
        file.pwrite(&record, (number * shape.ranks + rank) * RECORD_BYTES).await?;
    }
    file.fsync().await?;
    file.close().await
}

async fn read_records(
    me: Rc<ClientProcess>,
    rank: u64,
    shape: Shape,
) -> Result<(), bb_client::Error> {
    let file = me.client.open(SHARED, libc::O_RDONLY, 0).await?;
    let mut record = vec![0; usize::try_from(RECORD_BYTES).unwrap_or(0)];
    let neighbour = (rank + 1) % shape.ranks;
    for number in 0..shape.records_each() {
        let offset = (number * shape.ranks + neighbour) * RECORD_BYTES;
        file.pread(&mut record, offset).await?;
        assert!(record.iter().all(|byte| *byte == 0x5A), "what the neighbour wrote");
    }
    file.close().await
}

async fn make_small(
    me: Rc<ClientProcess>,
    rank: u64,
    shape: Shape,
) -> Result<(), bb_client::Error> {
    let flags = libc::O_CREAT | libc::O_EXCL | libc::O_WRONLY;
    for number in 0..shape.files_each {
        let name = format!("/small/{rank}.{number}");
        let file = me.client.open(name.as_bytes(), flags, 0o644).await?;
        file.pwrite(&[0x5A; SMALL_BYTES], 0).await?;
        file.close().await?;
    }
    Ok(())
}
