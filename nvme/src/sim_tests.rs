//! The simulated disk does what its faults say, and nothing else.

use std::cell::RefCell;
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use bb_runtime::{Buf, BufPool, Executor, Rt};

use crate::device::{BLOCK_BYTES, Device, DeviceError, Durability};
use crate::sim::{SimDisk, SimDiskOptions, SimEvent};
use crate::sim_device::SimDevice;
use crate::sim_faults::{FaultKind, FaultRates};

const CAPACITY: u64 = 4 << 20;

struct World {
    rt: Rt,
    pool: BufPool,
    disk: SimDisk,
}

impl World {
    fn buf(&self, len: usize, byte: u8) -> Buf {
        let mut buf = self.pool.try_alloc(len).unwrap();
        buf.fill(byte);
        buf.freeze()
    }

    async fn read(&self, dev: &SimDevice, offset: u64, len: usize) -> Result<Vec<u8>, DeviceError> {
        dev.read(offset, self.pool.try_alloc(len).unwrap()).await.map(|buf| buf.to_vec())
    }
}

fn simulate<F: Future>(seed: u64, test: impl FnOnce(World) -> F) -> F::Output {
    let executor = Executor::simulated(seed);
    let rt = executor.rt();
    let pool = BufPool::new(4 << 20, false).unwrap();
    let disk = SimDisk::new(&rt, &SimDiskOptions::new("d", CAPACITY));
    executor.block_on(test(World { rt, pool, disk }))
}

#[test]
fn a_cached_write_survives_its_process_and_a_flushed_one_the_power() {
    let mut lost = 0;
    for seed in 0..20 {
        lost += simulate(seed, |world| async move {
            let dev = world.disk.attach();
            dev.write(0, world.buf(4096, 1), Durability::Cached).await.unwrap();
            assert!(!world.disk.is_durable(0, 4096));
            dev.flush().await.unwrap();
            assert!(world.disk.is_durable(0, 4096));
            dev.write(8192, world.buf(4096, 2), Durability::Durable).await.unwrap();
            assert!(world.disk.is_durable(8192, 4096));
            dev.write(4096, world.buf(4096, 3), Durability::Cached).await.unwrap();
            let dev = world.disk.attach();
            assert_eq!(world.read(&dev, 4096, 4096).await.unwrap(), [3; 4096]);
            world.disk.power_loss();
            let dev = world.disk.attach();
            assert_eq!(world.read(&dev, 0, 4096).await.unwrap(), [1; 4096]);
            assert_eq!(world.read(&dev, 8192, 4096).await.unwrap(), [2; 4096]);
            let unflushed = world.read(&dev, 4096, 4096).await.unwrap();
            assert!(unflushed == [3; 4096] || unflushed == [0; 4096]);
            let counted = world.disk.fault_counts().get(FaultKind::LostUnflushed);
            assert_eq!(counted, u64::from(unflushed[0] == 0));
            counted
        });
    }
    assert!((1..20).contains(&lost), "{lost} of 20 unflushed writes were lost");
}

#[test]
fn a_flush_covers_what_had_completed_when_it_was_submitted_and_no_more() {
    simulate(1, |world| async move {
        let dev = world.disk.attach();
        dev.write(0, world.buf(4096, 1), Durability::Cached).await.unwrap();
        // Both under way at once; the write may well complete first.
        let flush = dev.flush();
        let write = dev.write(4096, world.buf(4096, 2), Durability::Cached);
        write.await.unwrap();
        flush.await.unwrap();
        assert!(world.disk.is_durable(0, 4096));
        assert!(!world.disk.is_durable(4096, 4096));
    });
}

#[test]
fn a_crash_tears_what_is_in_flight() {
    let torn = Rc::new(RefCell::new(0));
    for seed in 0..20 {
        let torn = torn.clone();
        simulate(seed, |world| async move {
            let dev = world.disk.attach();
            drop(dev.write(0, world.buf(65536, 7), Durability::Durable));
            world.rt.sleep(Duration::from_micros(1)).await;
            world.disk.power_loss();
            let blocks = (0..16).filter(|i| world.disk.peek(i * BLOCK_BYTES, 1)[0] == 7).count();
            let counts = world.disk.fault_counts();
            let counted = counts.get(FaultKind::TornWrite) + counts.get(FaultKind::LostUnflushed);
            assert!(blocks == 0 || blocks == 16 || counted > 0);
            *torn.borrow_mut() += u64::from((1..16).contains(&blocks));
            // What the dead process had submitted changes nothing any more.
            let before = world.disk.peek(0, 65536);
            world.rt.sleep(Duration::from_secs(1)).await;
            assert_eq!(world.disk.peek(0, 65536), before);
            let late = dev.write(0, world.buf(4096, 9), Durability::Durable).await;
            assert!(matches!(late, Err(DeviceError::Failed(_))));
        });
    }
    assert!(*torn.borrow() > 5);
}

#[test]
fn a_killed_process_does_not_stop_what_it_submitted() {
    simulate(2, |world| async move {
        let dev = world.disk.attach();
        let process = world.rt.new_domain();
        let write = dev.write(0, world.buf(4096, 5), Durability::Durable);
        process.spawn(async move { write.await.unwrap() });
        world.rt.yield_now().await;
        world.rt.kill(process.domain());
        world.rt.sleep(Duration::from_millis(10)).await;
        assert!(world.disk.is_durable(0, 4096));
        assert_eq!(world.disk.peek(0, 4096), [5; 4096]);
    });
}

#[test]
fn injected_faults_happen_once_and_are_counted() {
    simulate(3, |world| async move {
        let dev = world.disk.attach();
        let disk = &world.disk;
        disk.inject(FaultKind::LostWrite);
        dev.write(0, world.buf(4096, 1), Durability::Durable).await.unwrap();
        assert_eq!(world.read(&dev, 0, 4096).await.unwrap(), [0; 4096]);
        disk.inject_at(FaultKind::MisdirectedWrite, 8192, 4096);
        dev.write(0, world.buf(4096, 2), Durability::Durable).await.unwrap();
        dev.write(8192, world.buf(4096, 3), Durability::Durable).await.unwrap();
        assert_eq!(world.read(&dev, 0, 4096).await.unwrap(), [2; 4096]);
        let landed = disk.blocks_in_use().into_iter().filter(|at| disk.peek(*at, 1)[0] == 3);
        assert_eq!(landed.count(), 1);
        disk.inject(FaultKind::ReadError);
        assert!(matches!(world.read(&dev, 0, 4096).await, Err(DeviceError::Io { .. })));
        assert!(world.read(&dev, 0, 4096).await.is_ok());
        disk.break_block(4096);
        assert!(matches!(
            world.read(&dev, 0, 8192).await,
            Err(DeviceError::Io { offset: 4096, .. })
        ));
        dev.write(4096, world.buf(4096, 4), Durability::Durable).await.unwrap();
        assert!(world.read(&dev, 0, 8192).await.is_ok());
        disk.rot(0);
        let rotten = world.read(&dev, 0, 4096).await.unwrap();
        assert_eq!(rotten.iter().map(|byte| (byte ^ 2).count_ones()).sum::<u32>(), 1);
        disk.inject(FaultKind::WriteError);
        let failed = dev.write(0, world.buf(4096, 6), Durability::Durable).await;
        assert!(matches!(failed, Err(DeviceError::Io { .. })));
        let started = world.rt.now();
        disk.inject(FaultKind::Slow);
        dev.flush().await.unwrap();
        assert!(world.rt.now().since(started) > Duration::from_millis(5));
        disk.inject(FaultKind::FailedFlush);
        assert!(matches!(dev.flush().await, Err(DeviceError::Failed(_))));
        assert!(matches!(world.read(&dev, 0, 4096).await, Err(DeviceError::Failed(_))));
        let dev = disk.attach();
        disk.inject(FaultKind::FailedFlush);
        let failed = dev.write(0, world.buf(4096, 7), Durability::Durable).await;
        assert!(matches!(failed, Err(DeviceError::Failed(_))), "it has a flush in it");
        let dev = disk.attach();
        assert!(world.read(&dev, 0, 4096).await.is_ok());
        disk.set_gone(true);
        assert!(matches!(world.read(&dev, 0, 4096).await, Err(DeviceError::Failed(_))));
        disk.set_gone(false);
        disk.stall();
        let hung = world.read(&dev, 0, 4096);
        assert!(world.rt.timeout(Duration::from_secs(60), hung).await.is_err());
        disk.release();
        assert!(world.read(&dev, 0, 4096).await.is_ok());
        let counts = disk.fault_counts();
        for kind in FaultKind::ALL {
            let by_crash = matches!(kind, FaultKind::TornWrite | FaultKind::LostUnflushed);
            assert!(by_crash || counts.get(kind) > 0, "{kind:?}");
        }
        assert_eq!(counts.get(FaultKind::LostWrite), 1);
        assert_eq!(counts.get(FaultKind::BitRot), 1);
    });
}

#[test]
fn rates_make_faults_happen_about_as_often() {
    simulate(4, |world| async move {
        let dev = world.disk.attach();
        world.disk.set_rates(FaultRates { read_error_ppm: 100_000, ..FaultRates::default() });
        let mut errors = 0;
        for _ in 0..1000 {
            errors += u64::from(world.read(&dev, 0, 4096).await.is_err());
        }
        assert!((50..200).contains(&errors), "{errors} of 1000 at 10 %");
        assert_eq!(world.disk.fault_counts().get(FaultKind::ReadError), errors);
        let stats = dev.stats();
        assert_eq!((stats.read.count, stats.read.errors), (1000 - errors, errors));
        assert_eq!(stats.read.latency_us_log2.iter().sum::<u64>(), 1000);
    });
}

#[test]
fn the_trace_tells_when_a_write_became_durable() {
    simulate(5, |world| async move {
        let dev = world.disk.attach();
        world.disk.start_trace();
        dev.write(4096, world.buf(4096, 1), Durability::Cached).await.unwrap();
        dev.flush().await.unwrap();
        let events: Vec<SimEvent> = world.disk.take_trace().iter().map(|t| t.event).collect();
        let expected = [
            SimEvent::WriteSubmitted,
            SimEvent::WriteCompleted,
            SimEvent::FlushSubmitted,
            SimEvent::Durable,
            SimEvent::FlushCompleted,
        ];
        assert_eq!(events, expected);
        assert!(world.disk.take_trace().is_empty());
    });
}

#[test]
fn one_seed_gives_one_history() {
    let run = |seed| {
        let executor = Executor::simulated(seed);
        let rt = executor.rt();
        let pool = BufPool::new(4 << 20, false).unwrap();
        let disk = SimDisk::new(&rt, &SimDiskOptions::new("d", CAPACITY));
        executor.block_on(async {
            for round in 0..20_u8 {
                let dev = disk.attach();
                for _ in 0..8 {
                    let mut buf = pool.try_alloc(16384).unwrap();
                    buf.fill(round);
                    let offset = rt.random_below(CAPACITY / 4096 - 4) * 4096;
                    drop(dev.write(offset, buf.freeze(), Durability::Cached));
                }
                rt.sleep(Duration::from_micros(40)).await;
                disk.power_loss();
            }
        });
        (executor.trace_hash(), disk.peek(0, usize::try_from(CAPACITY).unwrap()))
    };
    assert!(run(1) == run(1));
    assert!(run(1) != run(2));
}

#[test]
fn what_is_not_aligned_is_refused() {
    simulate(6, |world| async move {
        let dev = world.disk.attach();
        let refused = |result: Result<(), DeviceError>| {
            assert!(matches!(result, Err(DeviceError::Range { .. })), "{result:?}");
        };
        refused(dev.write(1, world.buf(4096, 0), Durability::Cached).await);
        refused(dev.write(CAPACITY, world.buf(4096, 0), Durability::Cached).await);
        refused(dev.write(0, world.buf(4000, 0), Durability::Cached).await);
        refused(dev.write(0, world.buf(8192, 0).slice(8..4104), Durability::Cached).await);
        refused(dev.unmap(100, 4096).await);
        refused(world.read(&dev, CAPACITY - 4096, 8192).await.map(|_| ()));
    });
}
