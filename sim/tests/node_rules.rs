//! Directed tests of DESIGN.md's rules 4, 5, 8, 10, 12, 14, 16 and 17 for a whole node. With the feature
//! `planted`: each finds the error that breaks its rule.

use bb_runtime::Executor;
use bb_sim::epilogue::Ordeal;
use bb_sim::family::Family;
use bb_sim::world::{Setup, World};
use std::time::Duration;

/// What a new node of 2+1 that has done nothing before makes of it.
fn outcome(ordeal: Ordeal, plant: Option<bb_sim::planted::Plant>) -> Result<(), String> {
    let executor = Executor::simulated(1);
    let rt = executor.rt();
    executor.block_on(async {
        let setup = Setup::draw(&rt, Family::Calm);
        let world = World::new(&rt, Setup { data: 2, parity: 1, partitions: 4, plant, ..setup });
        world.format().await.expect("formatted");
        assert!(world.first().start_until_serving(Duration::from_secs(10)).await);
        ordeal.inflict(&world).await
    })
}

#[cfg(not(feature = "planted"))]
fn holds(ordeal: Ordeal, _error: &str) {
    assert_eq!(outcome(ordeal, None), Ok(()));
}

#[cfg(feature = "planted")]
fn holds(ordeal: Ordeal, error: &str) {
    assert_eq!(outcome(ordeal, None), Ok(()));
    let plant = bb_sim::planted::Plant::find(error).expect("planted");
    plant.switch_on();
    let result = outcome(ordeal, Some(plant));
    bb_sim::planted::switch_off();
    assert!(result.is_err(), "{error} is not found");
}

#[test]
fn rule_4_space_is_not_used_again_under_a_reader_however_slow() {
    bb_sim::complaints::listen(false);
    holds(Ordeal::SlowReader, "free-under-reader");
}

#[test]
fn rule_5_a_device_of_another_format_is_refused_at_start() {
    holds(Ordeal::ForeignDevice, "trust-any-device");
}

#[test]
fn rule_8_a_file_that_cannot_be_removed_keeps_its_data() {
    holds(Ordeal::FailingUnlink, "drop-before-bfs-agreed");
}

#[test]
fn rule_10_a_write_that_hung_never_replaces_newer_bytes() {
    holds(Ordeal::HungWrite, "ignore-hung-write");
}

#[test]
fn rule_12_a_log_that_rots_in_its_middle_is_refused_or_harmless() {
    holds(Ordeal::DamagedLog, "ignore-damage");
}

#[test]
fn rule_12_a_torn_record_is_never_trusted() {
    holds(Ordeal::TornLog, "trust-torn-record");
}

#[test]
fn rule_14_readers_that_share_few_buffers_all_end() {
    assert_eq!(outcome(Ordeal::FewBuffers, None), Ok(()));
}

#[test]
fn rule_16_passing_the_budget_of_metadata_is_missing_space_and_space_comes_back() {
    holds(Ordeal::ManyFragments, "ignore-budget");
}

#[test]
fn rule_17_nobody_is_shown_what_was_not_opened_or_takes_the_rights_of_a_server() {
    holds(Ordeal::Intruder, "ignore-capability");
}

#[cfg(not(feature = "planted"))]
/// Longer than a session's lease, which is how long a new process takes each file for open.
const AFTER_GRACE: Duration = Duration::from_secs(60);

#[cfg(not(feature = "planted"))]
#[test]
fn rule_8_a_file_that_is_open_and_idle_is_shown_to_a_new_process_in_time() {
    let executor = Executor::simulated(1);
    let rt = executor.rt();
    executor.block_on(async {
        let world = World::new(&rt, Setup::draw(&rt, Family::Calm));
        world.format().await.expect("formatted");
        assert!(world.first().start_until_serving(Duration::from_secs(10)).await);
        let options = bb_client::ClientOptions::default;
        let idle = world.connect(options()).await.expect("connects");
        let other = world.connect(options()).await.expect("connects");
        let flags = libc::O_RDWR | libc::O_CREAT;
        let file = idle.client.open(b"/f", flags, 0o644).await.expect("opens");
        file.pwrite(&[7; 50_000], 0).await.expect("writes");
        file.fsync().await.expect("fsyncs");
        world.first().kill();
        assert!(world.first().start_until_serving(Duration::from_secs(30)).await);
        rt.sleep(AFTER_GRACE).await;
        other.client.unlink(b"/f").await.expect("removes");
        let mut got = vec![0; 50_000];
        let len = file.pread(&mut got, 0).await.expect("reads what it has open");
        assert!(len == got.len() && got == [7; 50_000]);
        file.close().await.expect("closes");
        rt.sleep(AFTER_GRACE).await;
        assert_eq!(world.bfs.hidden_names().len(), 0, "nobody has it open");
    });
}
