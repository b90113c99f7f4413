//! Measures the log on a real device: `log_speed [DIRECTORY]` makes a file of 1 GiB there and
//! removes it. Appends of several sizes and depths, then the replay of a ring that is nearly full.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use bb_commitlog::format::RING_OFFSET;
use bb_commitlog::{
    Class, ClusterUuid, FormatOptions, Log, LogIdentity, LogUuid, Lsn, Nonce, Options, Replay,
    ReplayError, Reserves, StreamId,
};
use bb_nvme::{DeviceRef, UringDevice, create_file};
use bb_runtime::uring::{UringOptions, executor};
use bb_runtime::{BufPool, Rt, ThreadPool};

const RUN: Duration = Duration::from_secs(2);
const RING_BYTES: u64 = 1 << 30;

#[derive(Default)]
struct Count {
    records: u64,
    bytes: u64,
}

impl Replay for Count {
    fn snapshot(&mut self, _: StreamId, _: Lsn, bytes: &[u8]) -> Result<(), ReplayError> {
        self.bytes += bytes.len() as u64;
        Ok(())
    }
    fn record(&mut self, _: StreamId, _: Lsn, bytes: &[u8]) -> Result<(), ReplayError> {
        self.records += 1;
        self.bytes += bytes.len() as u64;
        Ok(())
    }
    fn retired(&mut self, _: StreamId, _: Lsn) -> Result<(), ReplayError> {
        Ok(())
    }
}

fn main() {
    let directory = PathBuf::from(std::env::args().nth(1).unwrap_or_else(|| ".".to_owned()));
    let path = directory.join("log_speed.tmp");
    create_file(&path, RING_OFFSET + RING_BYTES, true, |_| ()).expect("room for the file");
    measure_all(&path);
    std::fs::remove_file(&path).expect("ours");
}

fn measure_all(path: &Path) {
    let (executor, uring) = executor(&UringOptions::for_reactor()).expect("io_uring");
    let rt = executor.rt();
    let pool = BufPool::new(64 << 20, false).expect("memory");
    uring.register_pool(&pool);
    let threads = ThreadPool::new("speed", 1, 10);
    executor.block_on(async {
        let device = UringDevice::open(&rt, &uring, &threads, path).await;
        let device: DeviceRef = Rc::new(device.expect("a usable file"));
        let identity =
            LogIdentity { log: LogUuid([1; 16]), cluster: ClusterUuid([2; 16]), nonce: Nonce(3) };
        let format = FormatOptions { zero_ring: false, ..FormatOptions::new(identity) };
        Log::format(&rt, &pool, &device, &format, &mut |_, _| ()).await.expect("formats");
        for (len, depth) in [(256, 1), (256, 64), (1024, 256), (16_384, 32), (131_072, 16)] {
            let log = open(&rt, &pool, &device).await.0;
            append_for_a_while(&rt, &log, len, depth).await;
            log.close().await.expect("closes");
        }
        for len in [300, 4096] {
            let log = open(&rt, &pool, &device).await.0;
            fill(&rt, &log, len).await;
            log.close().await.expect("closes");
            drop(log);
            let (start, cpu) = (rt.now(), cpu_seconds());
            let (log, count) = open(&rt, &pool, &device).await;
            let took = rt.now().since(start).as_secs_f64();
            println!(
                "replay of {len} byte records: {} records, {} MiB in {took:.2} s ({:.2} s CPU)",
                count.records,
                count.bytes >> 20,
                cpu_seconds() - cpu
            );
            log.close().await.expect("closes");
        }
    });
}

async fn open(rt: &Rt, pool: &BufPool, device: &DeviceRef) -> (Log, Count) {
    let mut count = Count::default();
    let reserves = Reserves { checkpoint_bytes: 16 << 20, ..Reserves::for_ring(16 << 20) };
    let options = Options { reserves: Some(reserves), ..Options::default() };
    let log = Log::open(rt, pool, device, options, &mut count).await.expect("opens");
    (log, count)
}

async fn append_for_a_while(rt: &Rt, log: &Log, len: usize, depth: u32) {
    let (start, cpu, before) = (rt.now(), cpu_seconds(), log.stats());
    let tasks: Vec<_> = (0..depth)
        .map(|_| {
            let (rt2, log) = (rt.clone(), log.clone());
            rt.spawn(async move {
                let record = vec![7; len];
                while rt2.now().since(start) < RUN {
                    if log.usage().client_free_bytes < RING_BYTES / 2 {
                        let _ = log.checkpoint(StreamId(1), vec![1; 4096]);
                    }
                    let mut room = log.admit(Class::Client, len).await.expect("room");
                    let append = log.append(StreamId(1), &mut room, &record).expect("appends");
                    append.durable.await.expect("durable");
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("not aborted");
    }
    let took = rt.now().since(start).as_secs_f64();
    let after = log.stats();
    let records = per_second(after.records - before.records, took);
    println!(
        "append {len:6} B depth {depth:3}: {records:8.0} rec/s {:7.1} MB/s {:6.1} rec/group {:6.2} us CPU/rec",
        records * f64::from(u32::try_from(len).unwrap_or(u32::MAX)) / 1e6,
        records / per_second(after.groups - before.groups, took),
        (cpu_seconds() - cpu) * 1e6 / (records * took),
    );
}

async fn fill(rt: &Rt, log: &Log, len: usize) {
    let record = vec![9; len];
    log.checkpoint(StreamId(1), vec![1; 4096]).expect("room").durable.await.expect("durable");
    while log.usage().client_free_bytes < RING_BYTES / 2 {
        rt.sleep(Duration::from_millis(1)).await;
    }
    loop {
        let mut last = None;
        for _ in 0..2000 {
            let Some(mut room) = log.try_admit(Class::Client, len).expect("alive") else { break };
            last = Some(log.append(StreamId(1), &mut room, &record).expect("appends"));
        }
        let Some(last) = last else { return };
        last.durable.await.expect("durable");
    }
}

fn per_second(count: u64, seconds: f64) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX)) / seconds
}

/// User and system time of this process, in the kernel's ticks of 10 ms.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let ticks = after_name.split_whitespace().skip(11).take(2);
    ticks.filter_map(|word| word.parse::<f64>().ok()).sum::<f64>() / 100.0
}
