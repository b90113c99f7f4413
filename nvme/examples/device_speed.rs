//! Measures a device through the executor: `device_speed [FILE_OR_DIRECTORY]`. **Overwrites the
//! file**; in a directory it makes one of 1 GiB and removes it. Beside each figure at depth 1
//! stands what plain blocking calls do in the same seconds.

use std::fs::OpenOptions;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use bb_nvme::{DeviceRef, Durability, UringDevice, create_file};
use bb_runtime::uring::{UringOptions, executor};
use bb_runtime::{BufPool, Rt, ThreadPool};

const RUN: Duration = Duration::from_secs(2);
const FILE_BYTES: u64 = 1 << 30;

#[derive(Clone, Copy)]
enum Work {
    Read,
    Write,
    Durable,
}

fn main() {
    let target = PathBuf::from(std::env::args().nth(1).unwrap_or_else(|| ".".to_owned()));
    let made = target.is_dir();
    let path = if made { target.join("device_speed.tmp") } else { target };
    if made {
        create_file(&path, FILE_BYTES, true, |_| ()).expect("room for the file");
    }
    let (executor, uring) = executor(&UringOptions::for_reactor()).expect("io_uring");
    let rt = executor.rt();
    let pool = BufPool::new(64 << 20, false).expect("memory");
    uring.register_pool(&pool);
    let threads = ThreadPool::new("speed", 1, 10);
    for (name, work) in [("write", Work::Write), ("durable", Work::Durable), ("read", Work::Read)] {
        for (len, depth) in [(4096, 1), (4096, 32), (65_536, 32), (1 << 20, 1), (1 << 20, 32)] {
            let (bytes, ops, took) = executor.block_on(async {
                let device = UringDevice::open(&rt, &uring, &threads, &path).await;
                let device: DeviceRef = Rc::new(device.expect("a usable file"));
                measure(&rt, &pool, &device, work, len, depth).await
            });
            let plain = if depth == 1 { plain(&rt, &path, &pool, work, len) } else { None };
            println!(
                "{name:8} {:5} KiB depth {depth:2}: {:8.0} MB/s {:8.0} op/s{}",
                len >> 10,
                mb_per_s(bytes, took),
                rate(ops, took),
                plain.map(|mb| format!("   (blocking calls: {mb:.0} MB/s)")).unwrap_or_default()
            );
        }
    }
    if made {
        std::fs::remove_file(&path).expect("ours");
    }
}

fn rate(count: u64, took: Duration) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX)) / took.as_secs_f64()
}

fn mb_per_s(bytes: u64, took: Duration) -> f64 {
    rate(bytes >> 10, took) * 1024.0 / 1e6
}

/// Runs `depth` tasks that each have one operation under way: bytes, operations, time.
async fn measure(
    rt: &Rt,
    pool: &BufPool,
    device: &DeviceRef,
    work: Work,
    len: usize,
    depth: usize,
) -> (u64, u64, Duration) {
    let start = rt.now();
    let places = device.info().capacity_bytes / len as u64;
    let tasks: Vec<_> = (0..depth)
        .map(|_| {
            let (rt2, device) = (rt.clone(), device.clone());
            let mut buf = pool.try_alloc_zeroed(len).expect("room");
            rt.spawn(async move {
                let mut ops = 0_u64;
                while rt2.now() - start < RUN {
                    let offset = rt2.random_below(places) * len as u64;
                    buf = match work {
                        Work::Read => device.read(offset, buf).await.expect("reads"),
                        Work::Write | Work::Durable => {
                            let shared = buf.freeze();
                            let durability = match work {
                                Work::Durable => Durability::Durable,
                                _ => Durability::Cached,
                            };
                            device.write(offset, shared.clone(), durability).await.expect("writes");
                            shared.try_into_mut().expect("the device is done with it")
                        }
                    };
                    ops += 1;
                }
                ops
            })
        })
        .collect();
    let mut ops = 0;
    for task in tasks {
        ops += task.await.expect("no task is aborted");
    }
    (ops * len as u64, ops, rt.now() - start)
}

/// The same with `pread` and `pwrite`, MB/s.
fn plain(rt: &Rt, path: &Path, pool: &BufPool, work: Work, len: usize) -> Option<f64> {
    let sync = if matches!(work, Work::Durable) { libc::O_DSYNC } else { 0 };
    let mut options = OpenOptions::new();
    let file =
        options.read(true).write(true).custom_flags(libc::O_DIRECT | sync).open(path).ok()?;
    let mut buf = pool.try_alloc_zeroed(len)?;
    let places = file.metadata().ok()?.len() / len as u64;
    let (start, mut bytes) = (rt.now(), 0_u64);
    while rt.now() - start < RUN {
        let offset = rt.random_below(places.max(1)) * len as u64;
        let moved = match work {
            Work::Read => file.read_at(&mut buf, offset),
            Work::Write | Work::Durable => file.write_at(&buf, offset),
        };
        bytes += moved.ok()? as u64;
    }
    Some(mb_per_s(bytes, rt.now() - start))
}
