//! A device that is not what it should be is refused, and the error says what it is instead.

use bb_commitlog::Nonce;
use bb_nvme::DeviceRef;
use bb_runtime::BufPool;
use bb_server::blockstore::{
    Expected, OpenError, Superblock, Uuid, VERSION, format_device, read_superblock,
};

use crate::world::{CLUSTER, NONCE, World, formatted, identity, simulate};

const COPIES: [u64; 2] = [0, 512 << 10];

async fn open(world: &World) -> Result<Superblock, OpenError> {
    let pool = BufPool::new(4 << 20, false).unwrap();
    let dev: DeviceRef = world.data.attach();
    read_superblock(&dev, &pool).await
}

#[test]
fn a_device_that_was_never_formatted_is_refused() {
    simulate(1, 4, |world| async move {
        assert!(matches!(open(&world).await, Err(OpenError::NotFormatted { .. })));
    });
}

#[test]
fn a_device_overwritten_with_garbage_is_refused() {
    formatted(1, 4, |world| async move {
        world.data.poke(0, &vec![0xA5; 1 << 20]);
        assert!(matches!(open(&world).await, Err(OpenError::NotFormatted { .. })));
    });
}

#[test]
fn one_damaged_copy_is_repaired_and_two_are_refused() {
    formatted(1, 4, |world| async move {
        let good = open(&world).await.unwrap();
        world.data.poke(20, b"rot");
        assert_eq!(open(&world).await, Ok(good));
        world.data.poke(COPIES[1] + 20, b"rot");
        assert_eq!(open(&world).await, Ok(good), "the first copy was repaired");
        for at in COPIES {
            world.data.poke(at + 20, b"rot");
        }
        assert!(matches!(open(&world).await, Err(OpenError::Damaged { .. })));
    });
}

#[test]
fn a_newer_format_is_refused() {
    formatted(1, 4, |world| async move {
        world.data.poke(8, &(VERSION + 1).to_le_bytes());
        let refused = Err(OpenError::NewerVersion {
            device: "data".into(),
            found: VERSION + 1,
            supported: VERSION,
        });
        assert_eq!(open(&world).await, refused);
    });
}

#[test]
fn a_truncated_device_is_refused() {
    formatted(1, 8, |world| async move {
        let head = world.data.peek(0, 4096);
        let smaller = simulated_with(&world, 4 << 20, &head);
        assert!(matches!(open(&smaller).await, Err(OpenError::Truncated { .. })));
    });
}

fn simulated_with(world: &World, capacity_bytes: u64, head: &[u8]) -> World {
    let options = bb_nvme::SimDiskOptions::new("data", capacity_bytes);
    let data = bb_nvme::SimDisk::new(&world.rt, &options);
    data.poke(0, head);
    World {
        rt: world.rt.clone(),
        data,
        log: world.log.clone(),
        home: world.home.clone(),
        tick: world.tick.clone(),
    }
}

#[test]
fn rule_5_the_device_of_another_cluster_or_another_log_is_refused() {
    formatted(1, 4, |world| async move {
        let found = open(&world).await.unwrap();
        let check = |cluster, nonce| found.check("data", &Expected { cluster, nonce });
        assert_eq!(check(CLUSTER, NONCE), Ok(()));
        assert!(matches!(check(Uuid([1; 16]), NONCE), Err(OpenError::OtherCluster { .. })));
        assert!(matches!(check(CLUSTER, Nonce(1)), Err(OpenError::OtherLog { .. })));
    });
}

#[test]
fn a_format_that_is_cut_off_leaves_no_device() {
    for seed in 0..20 {
        formatted(seed, 4, |world| async move {
            let process = world.rt.new_domain();
            let dev: DeviceRef = world.data.attach();
            process.spawn(async move {
                let pool = BufPool::new(4 << 20, false).unwrap();
                let _ = format_device(&dev, &pool, identity(), true, |_| ()).await;
            });
            let life = 300 + world.rt.random_below(1500);
            world.rt.sleep(std::time::Duration::from_micros(life)).await;
            world.rt.kill(process.domain());
            world.data.power_loss();
            assert!(
                matches!(open(&world).await, Err(OpenError::NotFormatted { .. })),
                "seed {seed}"
            );
        });
    }
}
