//! Deliberate errors in the log are found: the tests can fail.

use std::panic::{AssertUnwindSafe, catch_unwind};

use bb_commitlog::{LogError, Options, PlantedLogFaults};

use crate::common::{RING_AT, commit, simulate};
use crate::crash_model::{Shared, lives};

fn with(faults: PlantedLogFaults) -> Options {
    Options { faults, ..Options::default() }
}

#[test]
fn acknowledging_before_the_write_is_found_within_a_few_seeds() {
    let options = with(PlantedLogFaults { ack_before_durable: true, ..Default::default() });
    let found = (0..50).any(|seed| {
        let options = options.clone();
        let run = || simulate(seed, |world| lives(world, options, 8, 20_000, Shared::default()));
        catch_unwind(AssertUnwindSafe(run)).is_err()
    });
    assert!(found);
}

#[test]
fn trusting_a_torn_record_is_found_within_a_few_seeds() {
    let options = with(PlantedLogFaults { trust_torn_record: true, ..Default::default() });
    let found = (0..50).any(|seed| {
        let options = options.clone();
        let run = || simulate(seed, |world| lives(world, options, 8, 20_000, Shared::default()));
        catch_unwind(AssertUnwindSafe(run)).is_err()
    });
    assert!(found);
}

#[test]
fn taking_damage_for_a_torn_tail_loses_what_was_acknowledged() {
    simulate(61, |world| async move {
        world.format().await;
        let (log, _, process) = world.open().await.unwrap();
        for i in 0..20_u8 {
            commit(&log, 1, &[i; 100]).await;
        }
        world.crash(log, &process);
        world.disk.poke(RING_AT + 5 * 4096, &[0; 100]);
        assert!(matches!(world.open().await.err(), Some(LogError::Damaged { .. })));
        let options = with(PlantedLogFaults { ignore_damage: true, ..Default::default() });
        let (_, received, _) = world.open_with(options).await.unwrap();
        assert!(received.records(1).len() < 20, "the planted error does what it says");
    });
}
