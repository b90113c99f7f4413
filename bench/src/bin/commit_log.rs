//! Whether the commit log is ever what a large write waits for.
//!
//! `commit_log [directory]`: makes a data device and a log as files there (default: the directory for
//! temporary files; both are removed in the end) and compares, in turns: durable writes of 1 MiB
//! blocks; the same with the records of each made durable in the log afterwards, as a server does it;
//! the records alone. The last gives the rate at which the log alone would carry blocks.

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::rc::Rc;

use bb_commitlog::{
    Class, ClusterUuid, FormatOptions, Log, LogIdentity, LogUuid, Lsn, Nonce, Options, Replay,
    ReplayError, StreamId,
};
use bb_nvme::{DeviceRef, Durability, UringDevice, create_file};
use bb_runtime::uring::{UringOptions, executor};
use bb_runtime::{Buf, BufPool, Rt, ThreadPool};
use futures_util::future::join_all;

const MIB: u64 = 1 << 20;
const DATA_BYTES: u64 = 1 << 30;
const LOG_BYTES: u64 = 1 << 30;
const ROUNDS: usize = 7;
/// Blocks of 1 MiB a round.
const BLOCKS: u64 = 512;
/// Groups of records a round of the log alone.
const APPENDS: u64 = 4_096;
/// Writes under way: what four clients with four parity groups each send to one device of four.
const DEPTH: u64 = 8;
/// What a server's log keeps of a block: the put, 68 bytes and 4 for each of 16 chunks, ...
const PUT_BYTES: usize = 132;
/// ... and its share of a commit with one fragment, which two of four servers log for three blocks.
const COMMIT_BYTES: usize = 281;

type Fallible<T> = Result<T, Box<dyn std::error::Error>>;

#[derive(Clone, Copy, PartialEq, Eq)]
enum What {
    Blocks,
    BlocksAndRecords,
    Records,
}

/// The log is new: there is nothing to take.
struct Empty;

impl Replay for Empty {
    fn snapshot(&mut self, _: StreamId, _: Lsn, _: &[u8]) -> Result<(), ReplayError> {
        Ok(())
    }

    fn record(&mut self, _: StreamId, _: Lsn, _: &[u8]) -> Result<(), ReplayError> {
        Ok(())
    }

    fn retired(&mut self, _: StreamId, _: Lsn) -> Result<(), ReplayError> {
        Ok(())
    }
}

struct Bench {
    rt: Rt,
    data: DeviceRef,
    log: Log,
    block: Buf,
    at: Cell<u64>,
}

impl Bench {
    /// One block, or its records, or both in their order.
    async fn one(&self, number: u64, what: What) -> Fallible<()> {
        if what != What::Records {
            let offset = self.at.replace((self.at.get() + MIB) % DATA_BYTES);
            self.data.write(offset, self.block.clone(), Durability::Durable).await?;
        }
        if what != What::Blocks {
            self.record(1, PUT_BYTES).await?;
            // Two of four servers log the commit of a group of three blocks.
            if number.is_multiple_of(3) {
                self.record(2, COMMIT_BYTES).await?;
                self.record(2, COMMIT_BYTES).await?;
            }
        }
        Ok(())
    }

    async fn record(&self, stream: u64, bytes: usize) -> Fallible<()> {
        let mut room = self.log.admit(Class::Client, bytes).await?;
        let record = [0x5A; COMMIT_BYTES];
        self.log.append(StreamId(stream), &mut room, &record[..bytes])?.durable.await?;
        Ok(())
    }

    /// Blocks (or groups of records) per second.
    async fn round(self: &Rc<Self>, what: What) -> Fallible<f64> {
        let count = if what == What::Records { APPENDS } else { BLOCKS };
        let since = self.rt.now();
        let worker = async |first: u64| -> Fallible<()> {
            for number in (first..count).step_by(usize::try_from(DEPTH)?) {
                self.one(number, what).await?;
            }
            Ok(())
        };
        for result in join_all((0..DEPTH).map(worker)).await {
            result?;
        }
        let rate = count as f64 / self.rt.now().since(since).as_secs_f64();
        // The ring is never full: what it holds is given up between the rounds.
        for stream in [1, 2].map(StreamId) {
            self.log.checkpoint(stream, Vec::new())?.durable.await?;
        }
        Ok(rate)
    }
}

fn median(rates: &mut [f64]) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}

struct Files(PathBuf);

impl Drop for Files {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn run(directory: &Path) -> Fallible<()> {
    let files = Files(directory.join(format!("burstbay-bench-log-{}", std::process::id())));
    std::fs::create_dir(&files.0)?;
    let (data, log) = (files.0.join("data"), files.0.join("log"));
    create_file(&data, DATA_BYTES, true, |_| ())?;
    create_file(&log, LOG_BYTES, false, |_| ())?;
    let (executor, uring) = executor(&UringOptions::for_reactor())?;
    let (rt, pool) = (executor.rt(), BufPool::new(64 << 20, false)?);
    let threads = ThreadPool::new("devices", 2, usize::MAX);
    executor.block_on(async {
        let data: DeviceRef = Rc::new(UringDevice::open(&rt, &uring, &threads, data).await?);
        let log: DeviceRef = Rc::new(UringDevice::open(&rt, &uring, &threads, log).await?);
        let identity =
            LogIdentity { log: LogUuid([1; 16]), cluster: ClusterUuid([2; 16]), nonce: Nonce(3) };
        Log::format(&rt, &pool, &log, &FormatOptions::new(identity), &mut |_, _| ()).await?;
        let log = Log::open(&rt, &pool, &log, Options::default(), &mut Empty).await?;
        let mut block = pool.alloc(usize::try_from(MIB)?).await;
        block.fill(0xA5);
        let bench = Rc::new(Bench { rt, data, log, block: block.freeze(), at: Cell::new(0) });
        let mut rates = [Vec::new(), Vec::new(), Vec::new()];
        let mut shares = Vec::new();
        for _ in 0..ROUNDS {
            let blocks = bench.round(What::Blocks).await?;
            let both = bench.round(What::BlocksAndRecords).await?;
            let records = bench.round(What::Records).await?;
            shares.push(both / blocks);
            for (rates, rate) in rates.iter_mut().zip([blocks, both, records]) {
                rates.push(rate);
            }
        }
        let [blocks, both, records] = rates.each_mut().map(|rates| median(rates));
        let stats = bench.log.stats();
        println!("medians of {ROUNDS} rounds, {DEPTH} blocks of 1 MiB under way, durable:");
        println!("  blocks alone                  {blocks:8.0} MiB/s");
        println!(
            "  blocks, then their records    {both:8.0} MiB/s, {:.2} of the first (per round)",
            median(&mut shares)
        );
        println!("  records alone, for so much    {records:8.0} MiB/s");
        println!(
            "  log: {} records in {} groups, {:.0} bytes a group",
            stats.records,
            stats.groups,
            stats.group_bytes as f64 / stats.groups as f64
        );
        Ok(())
    })
}

fn main() -> ExitCode {
    let directory = std::env::args_os().nth(1).map_or_else(std::env::temp_dir, PathBuf::from);
    match run(&directory) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("commit_log: {error}");
            ExitCode::FAILURE
        }
    }
}
