//! A device made slower, for tests of those who shall avoid slow devices. Never used unless asked for.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;

use bb_runtime::{Buf, BufMut, Rt};
use futures_util::future::join_all;

use crate::device::{
    Device, DeviceError, DeviceInfo, DeviceRef, DeviceStats, Durability, IoFuture,
};

type Started = Pin<Box<dyn Future<Output = Box<dyn FnOnce()>>>>;
/// Begins an operation; what comes of it delivers the answer.
type Waiting = Box<dyn FnOnce() -> Started>;

/// A device whose every operation takes so many times as long, with as many under way.
///
/// All that waits is begun at once. When the last of it has ended, and the rest of so many times that
/// time has passed, it is answered, and the next is begun: so both the time of an operation and the
/// operations per second are those of the device, divided by the factor, at any depth. A wait for each
/// operation by itself would leave a deep queue as fast as it was.
pub struct SlowDevice {
    queue: Rc<Queue>,
    inner: DeviceRef,
}

struct Queue {
    rt: Rt,
    factor: u32,
    waiting: RefCell<Vec<Waiting>>,
    running: Cell<bool>,
}

impl SlowDevice {
    /// `inner`, `factor` times as slow.
    pub fn new(rt: &Rt, inner: DeviceRef, factor: u32) -> Self {
        let (waiting, running) = (RefCell::default(), Cell::new(false));
        Self { queue: Rc::new(Queue { rt: rt.clone(), factor, waiting, running }), inner }
    }

    fn submit<T: 'static>(
        &self,
        begin: impl FnOnce(DeviceRef) -> IoFuture<T> + 'static,
    ) -> IoFuture<T> {
        let (answer, answered) = futures_channel::oneshot::channel();
        let inner = self.inner.clone();
        self.queue.waiting.borrow_mut().push(Box::new(move || {
            let operation = begin(inner);
            Box::pin(async move {
                let result = operation.await;
                // Nobody may be left to hear it.
                Box::new(move || drop(answer.send(result))) as Box<dyn FnOnce()>
            })
        }));
        if !self.queue.running.replace(true) {
            let queue = self.queue.clone();
            // Dropping the handle leaves the task running.
            drop(self.queue.rt.spawn(async move { queue.run().await }));
        }
        Box::pin(async move {
            let ended = || DeviceError::Failed("its reactor has ended".to_owned());
            answered.await.unwrap_or_else(|_| Err(ended()))
        })
    }
}

impl Queue {
    async fn run(&self) {
        loop {
            let batch = self.waiting.take();
            if batch.is_empty() {
                self.running.set(false);
                return;
            }
            let start = self.rt.now();
            let answers = join_all(batch.into_iter().map(|begin| begin())).await;
            let took = self.rt.now() - start;
            self.rt.sleep(took * self.factor.saturating_sub(1)).await;
            answers.into_iter().for_each(|answer| answer());
        }
    }
}

impl Device for SlowDevice {
    fn info(&self) -> &DeviceInfo {
        self.inner.info()
    }

    fn read(&self, offset: u64, buf: BufMut) -> IoFuture<BufMut> {
        self.submit(move |inner| inner.read(offset, buf))
    }

    fn write(&self, offset: u64, buf: Buf, durability: Durability) -> IoFuture<()> {
        self.submit(move |inner| inner.write(offset, buf, durability))
    }

    fn flush(&self) -> IoFuture<()> {
        self.submit(move |inner| inner.flush())
    }

    fn unmap(&self, offset: u64, len: u64) -> IoFuture<()> {
        self.submit(move |inner| inner.unmap(offset, len))
    }

    fn stats(&self) -> DeviceStats {
        self.inner.stats()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bb_runtime::{BufPool, Executor};

    use super::*;
    use crate::sim::{SimDisk, SimDiskOptions, SimLatency};

    /// Time of so many writes that are begun at once, and of a flush after them.
    fn time(factor: u32, writes: u64) -> Duration {
        let executor = Executor::simulated(1);
        let rt = executor.rt();
        let pool = BufPool::new(4 << 20, false).unwrap();
        let latency = SimLatency { jitter: Duration::ZERO, ..SimLatency::default() };
        let options = SimDiskOptions { latency, ..SimDiskOptions::new("d", 4 << 20) };
        let disk = SimDisk::new(&rt, &options);
        executor.block_on(async move {
            let device = SlowDevice::new(&rt, disk.attach(), factor);
            let start = rt.now();
            let write = |i: u64| {
                let buf = pool.try_alloc(4096).unwrap().freeze();
                device.write(i * 4096, buf, Durability::Cached)
            };
            for written in join_all((0..writes).map(write)).await {
                written.unwrap();
            }
            device.flush().await.unwrap();
            let took = rt.now() - start;
            assert!(disk.is_durable(0, writes * 4096), "it is the device's own flush");
            assert_eq!(device.stats().write.count, writes);
            took
        })
    }

    #[test]
    fn a_slow_device_takes_ten_times_as_long_alone_and_with_many_under_way() {
        for writes in [1, 64] {
            let ratio = time(10, writes).as_secs_f64() / time(1, writes).as_secs_f64();
            assert!((9.9..10.1).contains(&ratio), "{writes} writes: {ratio}");
        }
    }

    #[test]
    fn what_comes_while_others_are_waited_for_is_begun_after_them() {
        let executor = Executor::simulated(1);
        let rt = executor.rt();
        let pool = BufPool::new(4 << 20, false).unwrap();
        let disk = SimDisk::new(&rt, &SimDiskOptions::new("d", 4 << 20));
        executor.block_on(async move {
            let device = SlowDevice::new(&rt, disk.attach(), 10);
            let write = |i: u64| {
                let buf = pool.try_alloc(4096).unwrap().freeze();
                device.write(i * 4096, buf, Durability::Cached)
            };
            let first = write(0);
            rt.sleep(Duration::from_micros(100)).await;
            let second = write(1);
            first.await.unwrap();
            assert_eq!(device.stats().write.count, 1, "the second one is not done yet");
            second.await.unwrap();
            assert_eq!(device.stats().write.count, 2);
        });
    }
}
