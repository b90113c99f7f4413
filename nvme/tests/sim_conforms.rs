//! The simulated disk, without faults, does what every device must do.

use bb_nvme::conformance::{CAPACITY_BYTES_MIN, POOL_BYTES_MIN, Subject, run_all};
use bb_nvme::{SimDisk, SimDiskOptions};
use bb_runtime::{BufPool, Executor};

#[test]
fn a_simulated_disk_conforms_under_many_orders_of_events() {
    for seed in 0..20 {
        let executor = Executor::simulated(seed);
        let rt = executor.rt();
        let pool = BufPool::new(POOL_BYTES_MIN, false).expect("memory");
        let mut options = SimDiskOptions::new("simulated", CAPACITY_BYTES_MIN);
        options.volatile_cache = seed % 2 == 0;
        let device = SimDisk::new(&rt, &options).attach();
        executor.block_on(run_all(&Subject { rt, pool, device }));
    }
}
