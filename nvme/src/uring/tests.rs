use std::fs::OpenOptions;
use std::io as std_io;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use bb_runtime::uring::{UringOptions, executor};
use bb_runtime::{BufPool, Executor};

use super::*;
use crate::conformance::{self, CAPACITY_BYTES_MIN, POOL_BYTES_MIN, Subject};
use crate::device::OpStats;

/// A directory that goes away with its test.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("bb-nvme-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a temporary directory");
        Self(path)
    }

    fn file(&self, bytes: u64) -> PathBuf {
        let path = self.0.join("device");
        create_file(&path, bytes, false, |_| ()).expect("room");
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

struct World {
    executor: Executor,
    rt: Rt,
    uring: Uring,
    threads: ThreadPool,
    pool: BufPool,
}

impl World {
    fn new() -> Self {
        let (executor, uring) = executor(&UringOptions::for_reactor()).expect("ring");
        let pool = BufPool::new(POOL_BYTES_MIN, false).expect("memory");
        let threads = ThreadPool::new("test", 1, 100);
        Self { rt: executor.rt(), executor, uring, threads, pool }
    }

    fn open(&self, path: &Path) -> Result<UringDevice, OpenError> {
        self.executor.block_on(UringDevice::open(&self.rt, &self.uring, &self.threads, path))
    }

    fn conforms(&self, path: &Path) {
        let device = Rc::new(self.open(path).expect("opens"));
        let (rt, pool) = (self.rt.clone(), self.pool.clone());
        self.executor.block_on(conformance::run_all(&Subject { rt, pool, device }));
    }

    /// A device over a descriptor that `open` would refuse.
    fn device_over(&self, fd: impl Into<std::os::fd::OwnedFd>) -> UringDevice {
        let core = Rc::new(Core {
            rt: self.rt.clone(),
            uring: self.uring.clone(),
            fd: self.uring.adopt(fd.into()),
            threads: self.threads.clone(),
            path: PathBuf::from("broken"),
            info: DeviceInfo {
                name: "broken".to_owned(),
                capacity_bytes: 1 << 20,
                volatile_cache: true,
            },
            is_block_device: false,
            stats: RefCell::default(),
            failed: RefCell::default(),
        });
        UringDevice { flusher: Rc::new(flush::Flusher::new(core.clone())), core }
    }

    fn block(&self) -> Buf {
        self.pool.try_alloc_zeroed(4096).expect("room").freeze()
    }
}

#[test]
fn a_file_conforms() {
    let scratch = Scratch::new("file");
    World::new().conforms(&scratch.file(CAPACITY_BYTES_MIN + 1000));
}

#[test]
fn a_file_conforms_with_registered_buffers() {
    let scratch = Scratch::new("registered");
    let world = World::new();
    world.uring.register_pool(&world.pool);
    world.conforms(&scratch.file(CAPACITY_BYTES_MIN));
}

/// Loop devices need root: without, this test says so and shows nothing.
struct Loop(String);

impl Loop {
    fn over(path: &Path) -> Option<Self> {
        let made = Command::new("losetup").args(["--find", "--show"]).arg(path).output();
        match made {
            Ok(output) if output.status.success() => {
                Some(Self(String::from_utf8_lossy(&output.stdout).trim().to_owned()))
            }
            other => {
                eprintln!("no loop device here, block devices are not tested: {other:?}");
                None
            }
        }
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", &self.0]).status();
    }
}

#[test]
fn a_block_device_conforms_and_is_claimed() {
    let scratch = Scratch::new("loop");
    let Some(device) = Loop::over(&scratch.file(CAPACITY_BYTES_MIN)) else { return };
    let world = World::new();
    world.conforms(Path::new(&device.0));
    let path = Path::new(&device.0);
    let held = world.open(path).expect("opens again");
    assert!(held.core.is_block_device);
    assert_eq!(held.info().capacity_bytes, CAPACITY_BYTES_MIN);
    let name = path.file_name().expect("a device").to_string_lossy();
    let mode = std::fs::read_to_string(format!("/sys/block/{name}/queue/write_cache"));
    assert_eq!(held.info().volatile_cache, mode.expect("sysfs").trim() != "write through");
    assert!(matches!(world.open(path), Err(OpenError::InUse { .. })));
}

#[test]
fn a_device_has_one_user() {
    let scratch = Scratch::new("lock");
    let path = scratch.file(1 << 20);
    let world = World::new();
    let first = world.open(&path).expect("opens");
    assert!(matches!(world.open(&path), Err(OpenError::InUse { .. })));
    drop(first);
    world.open(&path).expect("the lock went with the device");
}

#[test]
fn what_is_no_device_is_refused_with_a_reason() {
    let scratch = Scratch::new("kinds");
    let world = World::new();
    assert!(matches!(world.open(&scratch.0), Err(OpenError::Kind { .. })));
    assert!(matches!(world.open(Path::new("/dev/null")), Err(OpenError::Kind { .. })));
    let missing = world.open(&scratch.0.join("missing")).map(drop).expect_err("missing");
    assert!(
        matches!(missing, OpenError::Io { source, .. } if source.kind() == std_io::ErrorKind::NotFound)
    );
    let path = scratch.0.join("small");
    std::fs::write(&path, [0; 4095]).expect("room");
    assert!(matches!(world.open(&path), Err(OpenError::TooSmall { bytes: 4095, .. })));
}

#[test]
fn a_truncated_file_fails_its_device_and_says_why() {
    for by_read in [true, false] {
        let scratch = Scratch::new("truncated");
        let path = scratch.file(1 << 20);
        let world = World::new();
        let device = world.open(&path).expect("opens");
        let file = OpenOptions::new().write(true).open(&path).expect("opens");
        file.set_len(10_000).expect("truncates");
        world.executor.block_on(async {
            let error = if by_read {
                let buf = world.pool.try_alloc(16_384).expect("room");
                device.read(0, buf).await.map(drop).expect_err("not all there")
            } else {
                device.flush().await.expect_err("not all there")
            };
            let said = error.to_string();
            assert!(said.contains("truncated") && said.contains("10000 of 1048576"), "{said}");
            let later = device.write(0, world.block(), Durability::Cached).await;
            assert_eq!(later, Err(error));
        });
    }
}

#[test]
fn a_failed_flush_fails_the_device_for_good() {
    let world = World::new();
    let (reader, _writer) = std_io::pipe().expect("pipe");
    // A pipe has nothing to flush: EINVAL.
    let device = world.device_over(reader);
    world.executor.block_on(async {
        let (one, two) = (device.flush(), device.flush());
        let error = one.await.expect_err("fails");
        assert!(matches!(&error, DeviceError::Failed(why) if why.starts_with("flush: ")));
        assert_eq!(two.await, Err(error.clone()), "they shared it");
        assert_eq!(device.flush().await, Err(error.clone()));
        assert_eq!(device.write(0, world.block(), Durability::Cached).await, Err(error.clone()));
        let buf = world.pool.try_alloc(4096).expect("room");
        assert_eq!(device.read(0, buf).await.map(drop), Err(error.clone()));
        assert_eq!(device.unmap(0, 4096).await, Err(error));
    });
    assert_eq!(device.stats().flush.errors, 1, "and was not tried again");
}

#[test]
fn a_failed_durable_write_fails_the_device_and_a_failed_cached_one_does_not() {
    let scratch = Scratch::new("dsync");
    let world = World::new();
    let read_only = std::fs::File::open(scratch.file(1 << 20)).expect("opens");
    let device = world.device_over(read_only);
    world.executor.block_on(async {
        let cached = device.write(8192, world.block(), Durability::Cached).await;
        assert_eq!(cached, Err(DeviceError::Io { errno: libc::EBADF, offset: 8192 }));
        let buf = world.pool.try_alloc(4096).expect("room");
        device.read(0, buf).await.expect("reads go on");
        let durable = device.write(0, world.block(), Durability::Durable).await;
        assert!(matches!(durable, Err(DeviceError::Failed(_))));
        let buf = world.pool.try_alloc(4096).expect("room");
        assert!(matches!(device.read(0, buf).await, Err(DeviceError::Failed(_))));
    });
    assert_eq!(device.stats().write, OpStats { errors: 2, ..device.stats().write });
}

#[test]
fn rule_13_flushes_of_one_moment_are_one_and_a_later_caller_gets_a_later_one() {
    let scratch = Scratch::new("flush");
    let world = World::new();
    let device = world.open(&scratch.file(1 << 20)).expect("opens");
    world.executor.block_on(async {
        let all: Vec<_> = (0..100).map(|_| device.flush()).collect();
        for flush in all {
            flush.await.expect("flushes");
        }
        assert_eq!(device.stats().flush.count, 1);

        let first = device.flush();
        while device.flusher.begun() < 2 {
            world.rt.yield_now().await;
        }
        // The first one has begun, so it doesn't cover what completes from now on.
        let (second, third) = (device.flush(), device.flush());
        first.await.expect("flushes");
        second.await.expect("flushes");
        third.await.expect("flushes");
        assert_eq!(device.stats().flush.count, 3);
    });
}

#[test]
fn a_flush_whose_first_caller_has_gone_still_serves_the_others() {
    let scratch = Scratch::new("gone");
    let world = World::new();
    let device = world.open(&scratch.file(1 << 20)).expect("opens");
    world.executor.block_on(async {
        drop(device.flush());
        let other = device.flush();
        let answer = world.rt.timeout(Duration::from_secs(30), other).await;
        answer.expect("in time").expect("flushes");
    });
}

#[test]
fn short_and_interrupted_transfers_go_on_where_they_stopped() {
    let world = World::new();
    let file = std::fs::File::open("/dev/zero").expect("opens");
    let device = world.device_over(file);
    world.executor.block_on(async {
        let mut progress = device.core.progress(4096, 12_288);
        let interrupted = || Err(std_io::Error::from_raw_os_error(libc::EINTR));
        let at = |next| match next {
            Ok(io::Next::At(at)) => at,
            Ok(io::Next::Finished) => 12_288,
            Err(error) => panic!("{error}"),
        };
        assert_eq!(at(progress.after(Ok(5000)).await), 4096);
        assert_eq!(at(progress.after(interrupted()).await), 4096);
        let again = Err(std_io::Error::from_raw_os_error(libc::EAGAIN));
        assert_eq!(at(progress.after(again).await), 4096);
        assert_eq!(at(progress.after(Ok(8192)).await), 12_288);
    });
}

#[test]
fn a_created_file_is_whole_allocated_and_never_overwrites() {
    let scratch = Scratch::new("create");
    for zero in [true, false] {
        let path = scratch.0.join(format!("zero-{zero}"));
        let mut told = Vec::new();
        create_file(&path, (3 << 20) + 4096, zero, |done| told.push(done)).expect("room");
        assert_eq!(told.last(), Some(&((3 << 20) + 4096)));
        assert_eq!(told.len(), if zero { 4 } else { 1 });
        let metadata = std::fs::metadata(&path).expect("exists");
        assert_eq!(metadata.len(), (3 << 20) + 4096);
        assert!(std::os::unix::fs::MetadataExt::blocks(&metadata) * 512 >= 3 << 20, "allocated");
        assert!(std::fs::read(&path).expect("reads").iter().all(|byte| *byte == 0));
        std::fs::write(&path, b"precious").expect("room");
        let error = create_file(&path, 1 << 20, zero, |_| ()).expect_err("exists");
        assert_eq!(error.kind(), std_io::ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read(&path).expect("reads"), b"precious");
    }
    let path = scratch.0.join("huge");
    create_file(&path, 1 << 60, false, |_| ()).expect_err("larger than any disk");
    assert!(!path.exists(), "nothing half done stays");
}
