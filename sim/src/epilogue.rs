//! What is done to a node when its run is over and judged: each breaks the premise of a rule that
//! random work seldom meets. Directed tests do the same to a node that has done nothing before.

use std::rc::Rc;
use std::time::Duration;

use bb_client::{ClientOptions, File};
use bb_nvme::FaultRates;
use bb_proto::meta::{Lookup, Residency, encode};
use bb_proto::{
    Capability, Code, DeviceId, GetBlock, Kind, PartitionId, PgId, Rights, ServiceClass, SessionId,
};
use bb_runtime::BufPool;
use bb_transport::{CallError, Outgoing};

use crate::bfs::BfsFaults;
use crate::complaints;
use crate::family::Family;
use crate::workload::Bench;
use crate::world::{ClientProcess, World};

/// What breaks a rule's premise; the error says which promise was broken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ordeal {
    /// Rule 4: reads hang while what they read is overwritten, freed, and its space used again.
    SlowReader,
    /// Rule 5: a device comes back that belongs to another format of the cluster.
    ForeignDevice,
    /// Rule 8: the backing file system refuses to remove names.
    FailingUnlink,
    /// Rule 10: writes and creations of a killed process hang in the backing file system and finish
    /// late.
    HungWrite,
    /// Rule 12: the log rots in its middle while nobody runs.
    DamagedLog,
    /// Rule 12: the power fails again and again while long records are written.
    TornLog,
    /// Rule 14: many readers share a few buffers.
    FewBuffers,
    /// Rule 16: fragments that no budget of memory holds.
    ManyFragments,
    /// Rule 17: somebody asks for what was not opened.
    Intruder,
}

impl Ordeal {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::SlowReader,
        Self::ForeignDevice,
        Self::FailingUnlink,
        Self::HungWrite,
        Self::DamagedLog,
        Self::TornLog,
        Self::FewBuffers,
        Self::ManyFragments,
        Self::Intruder,
    ];

    /// Puts a serving node through it.
    ///
    /// # Errors
    /// What must not happen, and did.
    pub async fn inflict(self, world: &Rc<World>) -> Result<(), String> {
        match self {
            Self::SlowReader => slow_reader(world).await,
            Self::ForeignDevice => foreign_device(world).await,
            Self::DamagedLog => damaged_log(world).await,
            Self::FailingUnlink => failing_unlink(world).await,
            Self::HungWrite => {
                hung_write(world).await?;
                hung_creation(world).await
            }
            Self::TornLog => torn_log(world).await,
            Self::FewBuffers => few_buffers(world).await,
            Self::ManyFragments => many_fragments(world).await,
            Self::Intruder => intruder(world).await,
        }
    }
}

/// One ordeal for a node that came well through its run.
pub async fn one_ordeal(bench: &Rc<Bench>) {
    if bench.family == Family::DeviceGone {
        return;
    }
    let at = usize::try_from(bench.world.draw(Ordeal::ALL.len() as u64)).unwrap_or(0);
    // What rots is read from others: how much memory that takes is a question of this family.
    let rots = bench.family == Family::Rot && bench.world.one_in(2);
    let ordeal = if rots { Ordeal::FewBuffers } else { Ordeal::ALL[at] };
    bench.note(|| format!("ordeal: {ordeal:?}"));
    if let Err(why) = ordeal.inflict(&bench.world).await {
        bench.violation(format!("{ordeal:?}: {why}"));
    }
}

/// A node that does not serve by then has refused to.
const REFUSES_AFTER: Duration = Duration::from_secs(4);
const PATH: &[u8] = b"/ordeal";

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

async fn connect(world: &World, pool_bytes: usize) -> Result<Rc<ClientProcess>, String> {
    connect_for(world, pool_bytes, Duration::from_secs(3)).await
}

async fn connect_for(
    world: &World,
    pool_bytes: usize,
    command_timeout: Duration,
) -> Result<Rc<ClientProcess>, String> {
    let options = ClientOptions {
        command_timeout,
        write_back_bytes: 2 << 20,
        read_cache_bytes: 0,
        ..ClientOptions::default()
    };
    world.connect_with(options, pool_bytes).await
}

async fn create(process: &ClientProcess) -> Result<File, String> {
    let flags = libc::O_RDWR | libc::O_CREAT;
    process.client.open(PATH, flags, 0o644).await.map_err(text)
}

fn byte_of(at: usize) -> u8 {
    u8::try_from(at % 251).unwrap_or(0) + 1
}

async fn slow_reader(world: &Rc<World>) -> Result<(), String> {
    /// Its blocks share their chunks with others: a free slot of such a chunk is taken first.
    const FILE_BYTES: usize = 200_000;
    const ROUNDS: usize = 8;
    /// Until home has freed what was overwritten and all members know.
    const FREED_WITHIN: Duration = Duration::from_millis(500);
    let fill = |round: usize| vec![byte_of(round); FILE_BYTES];
    let writer = connect_for(world, 16 << 20, PATIENCE).await?;
    let reader = connect_for(world, 16 << 20, PATIENCE).await?;
    let file = create(&writer).await?;
    file.pwrite(&fill(0), 0).await.map_err(text)?;
    file.fsync().await.map_err(text)?;
    let damaged = complaints::damaged_blocks().len();
    world.first().disks.iter().for_each(bb_nvme::SimDisk::stall_reads);
    let other = reader.clone();
    let reading = reader.rt.spawn(async move {
        let file = other.client.open(PATH, libc::O_RDONLY, 0).await.map_err(text)?;
        let mut got = vec![0; FILE_BYTES];
        file.pread(&mut got, 0).await.map_err(text)?;
        Ok::<_, String>(got)
    });
    for round in 1..=ROUNDS {
        world.rt.sleep(FREED_WITHIN).await;
        file.pwrite(&fill(round), 0).await.map_err(text)?;
        file.fsync().await.map_err(text)?;
    }
    world.first().disks.iter().for_each(bb_nvme::SimDisk::release);
    let got = reading.await.map_err(text)??;
    let known = |byte: &u8| (0..=ROUNDS).any(|round| *byte == byte_of(round));
    if let Some(at) = got.iter().position(|byte| !known(byte)) {
        return Err(format!("byte {at} was never written"));
    }
    // Its checksum keeps another's bytes from the reader.
    let found = complaints::damaged_blocks();
    match found.get(damaged) {
        Some(line) if !world.setup.family.damages_blocks() => {
            Err(format!("a read met what took its block's place: {line}"))
        }
        _ => Ok(()),
    }
}

async fn foreign_device(world: &Rc<World>) -> Result<(), String> {
    world.first().stop(Duration::from_secs(5)).await;
    let image = world.first().disks[0].image();
    world.format().await?;
    world.first().disks[0].restore(&image);
    if world.first().start_until_serving(REFUSES_AFTER).await {
        return Err("a device of another format is served from".to_owned());
    }
    Ok(())
}

async fn failing_unlink(world: &Rc<World>) -> Result<(), String> {
    const FILES: usize = 12;
    const FILE_BYTES: usize = 20_000;
    let process = connect_for(world, 8 << 20, PATIENCE).await?;
    let client = &process.client;
    let expected: Vec<u8> = (0..FILE_BYTES).map(byte_of).collect();
    let path = |n: usize| format!("/ordeal{n}").into_bytes();
    for n in 0..FILES {
        let flags = libc::O_RDWR | libc::O_CREAT;
        let file = client.open(&path(n), flags, 0o644).await.map_err(text)?;
        file.pwrite(&expected, 0).await.map_err(text)?;
        file.close().await.map_err(text)?;
    }
    world.bfs.set_faults(BfsFaults { io_error_ppm: 300_000, ..BfsFaults::default() });
    for n in 0..FILES {
        // Done, or not, or both: what counts is what is there afterwards.
        let _ = client.unlink(&path(n)).await;
    }
    world.bfs.set_faults(BfsFaults::default());
    world.rt.sleep(Duration::from_secs(2)).await;
    for n in 0..FILES {
        let file = match client.open(&path(n), libc::O_RDONLY, 0).await {
            Ok(file) => file,
            Err(error) if error.errno() == libc::ENOENT => continue,
            Err(error) => return Err(text(error)),
        };
        let mut got = vec![0; FILE_BYTES];
        let len = file.pread(&mut got, 0).await.map_err(text)?;
        if len != FILE_BYTES || got != expected {
            return Err(format!("a file that could not be removed has {len} bytes of its data"));
        }
        file.close().await.map_err(text)?;
    }
    Ok(())
}

/// For calls that wait for a killed process's calls to end.
const PATIENCE: Duration = Duration::from_secs(100);

async fn hung_creation(world: &Rc<World>) -> Result<(), String> {
    const ROUNDS: usize = 4;
    const HANG_MAX: Duration = Duration::from_secs(8);
    for round in 0..ROUNDS {
        let process = connect_for(world, 8 << 20, PATIENCE).await?;
        let path = format!("/ordeal-made{round}").into_bytes();
        let hang = BfsFaults { hang_ppm: 600_000, hang_max: HANG_MAX, ..BfsFaults::default() };
        world.bfs.set_faults(hang);
        let (client, name) = (process.client.clone(), path.clone());
        let flags = libc::O_RDWR | libc::O_CREAT;
        let making = process.rt.spawn(async move { client.open(&name, flags, 0o644).await });
        world.pause(Duration::from_millis(100)).await;
        world.first().kill();
        world.bfs.set_faults(BfsFaults::default());
        if !world.first().start_until_serving(PATIENCE).await {
            return Err(format!("does not start: {:?}", world.first().start_mistake()));
        }
        let file = making.await.map_err(text)?.map_err(text)?;
        file.close().await.map_err(text)?;
        process.client.unlink(&path).await.map_err(text)?;
        world.rt.sleep(HANG_MAX).await;
        if world.bfs.files().contains_key(&path) {
            return Err("a file that was removed is there again".to_owned());
        }
        world.kill_client(&process);
    }
    Ok(())
}

async fn hung_write(world: &Rc<World>) -> Result<(), String> {
    const ROUNDS: usize = 6;
    const FILE_BYTES: usize = 50_000;
    const HANG_MAX: Duration = Duration::from_secs(8);
    for round in 0..ROUNDS {
        let process = connect_for(world, 8 << 20, PATIENCE).await?;
        let file = create(&process).await?;
        let fill = |salt: usize| -> Vec<u8> {
            (0..FILE_BYTES).map(|at| byte_of(at + 10 * round + salt)).collect()
        };
        file.pwrite(&fill(0), 0).await.map_err(text)?;
        file.fsync().await.map_err(text)?;
        let hang = BfsFaults { hang_ppm: 250_000, hang_max: HANG_MAX, ..BfsFaults::default() };
        world.bfs.set_faults(hang);
        let syncing = process.rt.spawn(async move {
            if let Ok(operation) = file.start(Residency::Sync, 0, 0, 0).await {
                let _ = operation.wait(|_| {}).await;
            }
        });
        world.pause(HANG_MAX).await;
        world.first().kill();
        world.kill_client(&process);
        drop(syncing);
        world.bfs.set_faults(BfsFaults::default());
        if !world.first().start_until_serving(PATIENCE).await {
            return Err(format!("does not start: {:?}", world.first().start_mistake()));
        }
        let process = connect_for(world, 8 << 20, PATIENCE).await?;
        let file = create(&process).await?;
        let newer = fill(5);
        file.pwrite(&newer, 0).await.map_err(text)?;
        file.fsync().await.map_err(text)?;
        for kind in [Residency::Sync, Residency::Purge] {
            let operation = file.start(kind, 0, 0, 0).await.map_err(text)?;
            operation.wait(|_| {}).await.map_err(|error| format!("{kind:?}: {error}"))?;
        }
        world.rt.sleep(HANG_MAX).await;
        let file = process.client.open(PATH, libc::O_RDONLY, 0).await.map_err(text)?;
        let mut got = vec![0; FILE_BYTES];
        file.pread(&mut got, 0).await.map_err(text)?;
        if got != newer {
            return Err("a write that hung has replaced newer bytes that counted as clean".into());
        }
        world.kill_client(&process);
    }
    Ok(())
}

/// Bytes that the log holds at the most, superblocks included.
fn whole(world: &World) -> Vec<u8> {
    let bytes = usize::try_from(world.setup.log_bytes).unwrap_or(0);
    world.first().log_disk.peek(0, bytes)
}

async fn damaged_log(world: &Rc<World>) -> Result<(), String> {
    const BLOCK: usize = 4096;
    let process = connect(world, 8 << 20).await?;
    let file = create(&process).await?;
    let before = whole(world);
    let mut expected = vec![0; 64 * 1000];
    for at in 0..64 {
        let part = at * 1000..(at + 1) * 1000;
        expected[part.clone()].iter_mut().enumerate().for_each(|(n, b)| *b = byte_of(at + n));
        file.pwrite(&expected[part], at as u64 * 1000).await.map_err(text)?;
        file.fsync().await.map_err(text)?;
    }
    drop(file);
    world.first().kill();
    world.kill_client(&process);
    let after = whole(world);
    let changed: Vec<usize> = (0..after.len() / BLOCK)
        .filter(|n| before[n * BLOCK..(n + 1) * BLOCK] != after[n * BLOCK..(n + 1) * BLOCK])
        .collect();
    let victim = changed.get(changed.len() / 2).copied().ok_or("nothing was logged")?;
    world.first().log_disk.rot((victim * BLOCK) as u64);
    if !world.first().start_until_serving(REFUSES_AFTER).await {
        return Ok(());
    }
    // It may be a part of the log that nobody needs any more.
    let process = connect(world, 8 << 20).await?;
    let file = process.client.open(PATH, libc::O_RDONLY, 0).await.map_err(text)?;
    let mut got = vec![0; expected.len()];
    let len = file.pread(&mut got, 0).await.map_err(text)?;
    if len == expected.len() && got == expected {
        return Ok(());
    }
    Err("with a log that is damaged in its middle it serves, and fsynced bytes are lost".to_owned())
}

async fn torn_log(world: &Rc<World>) -> Result<(), String> {
    const ROUNDS: usize = 10;
    const FRAGMENTS: usize = 400;
    world.first().log_disk.set_rates(FaultRates { slow_ppm: 1_000_000, ..FaultRates::default() });
    for _ in 0..ROUNDS {
        let process = connect(world, 8 << 20).await?;
        let file = create(&process).await?;
        for at in (0..FRAGMENTS).map(|n| n * 64) {
            file.pwrite(&[byte_of(at); 16], at as u64).await.map_err(text)?;
        }
        let syncing = process.rt.spawn(async move { drop(file.fsync().await) });
        world.pause(Duration::from_millis(12)).await;
        world.first().cut_power();
        world.kill_client(&process);
        drop(syncing);
        if !world.first().start_until_serving(REFUSES_AFTER).await {
            return Err(format!("after a power cut: {:?}", world.first().start_mistake()));
        }
    }
    world.first().log_disk.set_rates(FaultRates::default());
    let process = connect(world, 8 << 20).await?;
    let file = process.client.open(PATH, libc::O_RDONLY, 0).await.map_err(text)?;
    let mut got = vec![0; FRAGMENTS * 64];
    let len = file.pread(&mut got, 0).await.map_err(text)?;
    let wrong = |at: &usize| {
        let start = at - at % 64;
        got[*at] != 0 && (at % 64 >= 16 || got[*at] != byte_of(start))
    };
    (0..len).find(wrong).map_or(Ok(()), |at| Err(format!("byte {at} was never written")))
}

async fn few_buffers(world: &Rc<World>) -> Result<(), String> {
    const FILE_BYTES: usize = 8 << 20;
    /// What groups hold while they wait for more must be several times the memory of the reader.
    const READERS: usize = 24;
    const PART_BYTES: usize = 4 << 20;
    const POOL_BYTES: usize = 5 << 20;
    let writer = connect_for(world, 32 << 20, PATIENCE).await?;
    let file = create(&writer).await?;
    let expected: Rc<Vec<u8>> = Rc::new((0..FILE_BYTES).map(byte_of).collect());
    file.pwrite(&expected, 0).await.map_err(text)?;
    file.fsync().await.map_err(text)?;
    // Every read of this device fails: all its blocks are computed from others. One that rots, unlike
    // one that fails, is asked again and again.
    let rates = if world.setup.family.damages_blocks() {
        FaultRates { bit_rot_ppm: 1_000_000, ..FaultRates::default() }
    } else {
        FaultRates { read_error_ppm: 1_000_000, ..FaultRates::default() }
    };
    world.first().disks[0].set_rates(rates);
    let reader = connect_for(world, POOL_BYTES, PATIENCE).await?;
    let tasks: Vec<_> = (0..READERS)
        .map(|n| {
            let (process, expected) = (reader.clone(), expected.clone());
            reader.rt.spawn(async move {
                // A file of its own for each, and nothing that looks like reading on: whole groups
                // are asked for, each in one go.
                let at = ((n % 4) << 20) + ((n + 1) << 12);
                let file = process.client.open(PATH, libc::O_RDONLY, 0).await.map_err(text)?;
                let mut got = vec![0; PART_BYTES];
                let len = file.pread(&mut got, at as u64).await.map_err(text)?;
                let right = len == PART_BYTES && got == expected[at..at + len];
                if right { Ok(()) } else { Err("wrong bytes".to_owned()) }
            })
        })
        .collect();
    let all = async {
        for task in tasks {
            task.await.map_err(text)??;
        }
        Ok(())
    };
    let ended = world.rt.timeout(Duration::from_secs(60), all).await;
    world.first().disks[0].set_rates(FaultRates::default());
    ended.unwrap_or_else(|_| Err("readers wait for each other's buffers".to_owned()))
}

async fn many_fragments(world: &Rc<World>) -> Result<(), String> {
    /// Fragments of the file, and the memory that there is for them: a quarter of what they need.
    const FRAGMENTS: u64 = 16_000;
    const BUDGET_BYTES: u64 = 256 << 10;
    world.first().stop(Duration::from_secs(5)).await;
    world.metadata_bytes_max.set(BUDGET_BYTES);
    if !world.first().start_until_serving(REFUSES_AFTER).await {
        return Err(format!("does not start: {:?}", world.first().start_mistake()));
    }
    let process = connect(world, 16 << 20).await?;
    let file = create(&process).await?;
    let mut refused = None;
    for at in 0..FRAGMENTS {
        let mut result = file.pwrite(&[1; 16], at * 64).await.map(drop);
        if result.is_ok() && at % 500 == 499 {
            result = file.fsync().await;
        }
        if let Err(error) = result {
            refused = Some(error);
            break;
        }
    }
    match refused {
        Some(error) if error.errno() == libc::ENOSPC => {}
        Some(error) => return Err(format!("the memory for metadata is used up: {error}")),
        None => return Err(format!("{FRAGMENTS} fragments fit in {BUDGET_BYTES} bytes")),
    }
    drop(file);
    world.kill_client(&process);
    let other = connect(world, 16 << 20).await?;
    let flags = libc::O_RDWR | libc::O_TRUNC;
    let file = other.client.open(PATH, flags, 0).await.map_err(|error| {
        format!("cut to nothing while the memory for metadata is used up: {error}")
    })?;
    file.pwrite(b"again", 0).await.map_err(|error| format!("with memory again: {error}"))?;
    file.fsync().await.map_err(|error| format!("with memory again: {error}"))
}

async fn intruder(world: &Rc<World>) -> Result<(), String> {
    let process = connect(world, 8 << 20).await?;
    let context = world.first().node().ok_or("no node")?.context().shared.clone();
    let (address, incarnation) = context.driver(DeviceId(1)).ok_or("no device 1")?;
    let config = context.map().partition(PartitionId(0)).ok_or("no partition 0")?.config;
    let pool = BufPool::new(1 << 20, false).map_err(text)?;
    for rights in [Rights(0), Rights::WRITE, Rights::SERVER] {
        let session = SessionId(0);
        let capability = Capability { session, rights, ..Capability::default() };
        let get = GetBlock {
            pg: PgId::default(),
            capability,
            index: 0,
            chunk_log2: 12,
            chunk_first: 0,
            chunk_count: 1,
            more: Vec::new(),
        }
        .encode();
        let second = Duration::from_secs(1);
        let block = Outgoing::new(Kind::GetBlock, ServiceClass::Client, second, get)
            .to(1, incarnation)
            .with_sink(pool.alloc(4096).await);
        let look = encode(&Lookup { capability: (&capability).into(), offset: 0, len: 1 });
        let map = Outgoing::new(Kind::Lookup, ServiceClass::Client, second, look);
        let map = map.to(0, config);
        for (what, request) in [("a block", block), ("a fragment map", map)] {
            match process.caller.call(&address, request).await {
                Err(CallError::Refused(failure, _)) if failure.kind() == Code::Denied => {}
                Err(CallError::Refused(failure, _)) => {
                    return Err(format!("asking for {what} with {rights:?}: {failure}"));
                }
                Err(error) => return Err(format!("asking for {what}: {error}")),
                Ok(_) => return Err(format!("{what} is shown to somebody with {rights:?}")),
            }
        }
    }
    Ok(())
}
