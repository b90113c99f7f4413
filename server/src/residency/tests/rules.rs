//! The rules that residency keeps, one by one.

use crate::files::FileChange;
use crate::partition::region_mutation::ProcessId;
use bb_proto::Code;
use bb_proto::meta::Residency as Op;
use bb_runtime::Rt;

use super::world::{HANDLE, simulate};

fn pattern(seed: u8, len: usize) -> Vec<u8> {
    (0..len).map(|i| seed ^ u8::try_from(i % 251).unwrap()).collect()
}

fn put(model: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    model.resize(model.len().max(offset + bytes.len()), 0);
    model[offset..offset + bytes.len()].copy_from_slice(bytes);
}

fn below(rt: &Rt, bound: u64) -> usize {
    usize::try_from(rt.random_below(bound)).unwrap()
}

#[test]
fn a_sync_of_sparse_overwritten_unaligned_fragments_gives_exactly_these_bytes_durably() {
    for seed in 0..20 {
        simulate(seed, |world| async move {
            let before = pattern(7, 700_000);
            world.bfs.put(HANDLE, &before);
            let life = world.start().await;
            life.meet(&world).await;
            let mut model = before;
            for round in 0..3 {
                for _ in 0..12 {
                    let offset = below(&world.rt, 3 << 20);
                    let room = (1 << 20) - offset % (1 << 20);
                    let len = (1 + below(&world.rt, 200_000)).min(room);
                    let bytes = pattern(u8::try_from(world.next() % 256).unwrap(), len);
                    life.write(&world, offset as u64, &bytes).await;
                    put(&mut model, offset, &bytes);
                }
                let state = life.run(Op::Sync, 0).await.unwrap();
                assert!(state.bytes_done > 0 && state.bytes_done == state.bytes_total);
                let file = world.bfs.get(HANDLE);
                assert!(file.bytes == model, "seed {seed}, round {round}");
                assert!(file.durable == model, "clean bytes are durable there");
                let counts = life.counts().await;
                assert_eq!((counts.dirty, counts.pending), (0, 0));
            }
        });
    }
}

#[test]
fn rule_9_what_is_written_during_a_sync_stays_dirty_and_comes_with_the_next() {
    simulate(1, |world| async move {
        world.bfs.put(HANDLE, b"");
        let life = world.start().await;
        life.meet(&world).await;
        life.write(&world, 0, &[1; 1000]).await;
        world.bfs.shut.set(true);
        let op = life.begin(Op::Sync, 0).await.unwrap();
        world.wait_ms(100).await;
        assert_eq!(life.counts().await.pending, 1000);
        life.write(&world, 100, &[2; 50]).await;
        world.bfs.open_gate();
        assert!(life.status(op, 60_000, false).await.ended);
        let counts = life.counts().await;
        assert_eq!((counts.dirty, counts.clean, counts.pending), (50, 950, 0));
        assert_eq!(world.bfs.get(HANDLE).bytes, [1; 1000]);
        life.run(Op::Sync, 0).await.unwrap();
        assert_eq!(world.bfs.get(HANDLE).bytes[100..150], [2; 50]);
        assert_eq!(life.counts().await.dirty, 0);
    });
}

#[test]
fn rule_10_nothing_is_written_before_the_intent_is_in_the_log() {
    simulate(2, |world| async move {
        world.bfs.put(HANDLE, b"");
        let life = world.start().await;
        life.meet(&world).await;
        life.write(&world, 0, &[1; 1000]).await;
        world.bfs.shut.set(true);
        life.begin(Op::Sync, 0).await.unwrap();
        world.wait_ms(100).await;
        assert!(life.has_intent());
        // The call hangs; after a crash its intent is known.
        world.kill(life, false);
        let life = world.start().await;
        assert!(life.has_intent(), "found in the log");
        assert_eq!(life.counts().await.pending, 1000);
    });
}

#[test]
fn rule_10_a_predecessors_hung_write_cannot_replace_newer_bytes_that_count_as_clean() {
    simulate(3, |world| async move {
        world.bfs.put(HANDLE, b"");
        let life = world.start().await;
        life.meet(&world).await;
        life.write(&world, 0, &[1; 1000]).await;
        world.bfs.shut.set(true);
        let old = life.shared.incarnation;
        life.begin(Op::Sync, 0).await.unwrap();
        world.wait_ms(100).await;
        world.kill(life, false);
        let life = world.start().await;
        life.write(&world, 0, &[2; 500]).await;
        let op = life.begin(Op::Sync, 0).await.unwrap();
        world.wait_ms(30_000).await;
        let counts = life.counts().await;
        assert_eq!((counts.clean, world.bfs.writes.borrow().len()), (0, 0), "not proven gone");
        assert!(!life.status(op, 0, false).await.ended || counts.dirty > 0);
        // The hung call finishes late, and only then is its process gone.
        world.bfs.open_gate();
        world.wait_ms(10).await;
        assert_eq!(world.bfs.get(HANDLE).bytes, [1; 1000]);
        world.bfs.alive.borrow_mut().remove(&ProcessId::new(1, old.0));
        world.wait_ms(70_000).await;
        life.run(Op::Sync, 0).await.unwrap();
        let bytes = world.bfs.get(HANDLE).bytes;
        assert_eq!((&bytes[..500], &bytes[500..]), (&[2; 500][..], &[1; 500][..]));
        let counts = life.counts().await;
        assert_eq!((counts.dirty, counts.pending, counts.clean), (0, 0, 1000));
    });
}

#[test]
fn rule_10_a_session_is_not_ended_while_its_process_may_still_change_the_file() {
    simulate(13, |world| async move {
        world.bfs.put(HANDLE, b"");
        let life = world.start().await;
        life.meet(&world).await;
        life.write(&world, 0, &[1; 1000]).await;
        // It ends in bytes that nobody wrote: the session gives the file its size when all is clean.
        life.file(FileChange::Raise { epoch: life.epoch(), size: 5000, mtime_ns: 0 }).await;
        world.bfs.resize_hangs.set(true);
        let old = life.shared.incarnation;
        life.begin(Op::Sync, 0).await.unwrap();
        world.wait_ms(100).await;
        assert!(!world.bfs.resize_hangs.get() && !life.has_intent(), "no region is at work");
        world.kill(life, false);
        let life = world.start().await;
        world.wait_ms(30_000).await;
        // The hung call changes the file late; only then is its process gone.
        world.bfs.open_gate();
        world.wait_ms(10).await;
        world.bfs.alive.borrow_mut().remove(&ProcessId::new(1, old.0));
        life.write(&world, 0, &[2; 500]).await;
        life.run(Op::Sync, 0).await.unwrap();
        let bytes = world.bfs.get(HANDLE).bytes;
        assert_eq!(
            (bytes.len(), &bytes[..500], &bytes[500..1000]),
            (5000, &[2; 500][..], &[1; 500][..])
        );
    });
}

#[test]
fn rule_11_an_unmounted_file_system_cleans_nothing_and_drops_nothing() {
    simulate(4, |world| async move {
        world.bfs.put(HANDLE, b"");
        let life = world.start().await;
        life.meet(&world).await;
        life.write(&world, 0, &[1; 1000]).await;
        life.run(Op::Sync, 0).await.unwrap();
        life.write(&world, 5000, &[2; 1000]).await;
        world.bfs.unmounted.set(true);
        for op in [Op::Sync, Op::Purge, Op::PurgeDirty, Op::Prestage] {
            let failure = life.run(op, 0).await.unwrap_err();
            assert_eq!(failure.kind(), Code::BfsUnavailable, "{op:?}");
        }
        let counts = life.counts().await;
        assert_eq!((counts.dirty, counts.clean), (1000, 1000));
        world.bfs.unmounted.set(false);
        life.run(Op::Sync, 0).await.unwrap();
        assert_eq!(life.counts().await.clean, 2000);
    });
}

#[test]
fn rule_11_it_may_also_vanish_in_the_middle_of_a_sync() {
    simulate(5, |world| async move {
        world.bfs.put(HANDLE, b"");
        let life = world.start().await;
        life.meet(&world).await;
        // More regions than work at once: the last ones find it gone.
        for region in 0..12_u64 {
            life.write(&world, region << 20, &[3; 1000]).await;
        }
        world.bfs.shut.set(true);
        let op = life.begin(Op::Sync, 0).await.unwrap();
        world.wait_ms(100).await;
        world.bfs.unmounted.set(true);
        world.bfs.open_gate();
        let state = life.status(op, 60_000, false).await;
        assert_eq!(state.failure.unwrap().kind(), Code::BfsUnavailable);
        let counts = life.counts().await;
        assert_eq!((counts.dirty + counts.clean, counts.pending), (12_000, 0), "nothing dropped");
        assert!(counts.dirty >= 4_000, "nothing called clean that was not written");
        world.bfs.unmounted.set(false);
        life.run(Op::Sync, 0).await.unwrap();
        assert_eq!(life.counts().await.clean, 12_000);
    });
}

#[test]
fn a_full_file_system_is_named_and_pending_bytes_are_dirty_again() {
    simulate(6, |world| async move {
        world.bfs.put(HANDLE, b"");
        let life = world.start().await;
        life.meet(&world).await;
        life.write(&world, 10, &pattern(1, 100_000)).await;
        world.bfs.no_space.set(true);
        let failure = life.run(Op::Sync, 0).await.unwrap_err();
        assert_eq!((failure.kind(), failure.errno), (Code::Errno, libc::ENOSPC));
        let counts = life.counts().await;
        assert_eq!((counts.dirty, counts.pending, counts.clean), (100_000, 0, 0));
        world.bfs.no_space.set(false);
        life.run(Op::Sync, 0).await.unwrap();
        assert_eq!(world.bfs.get(HANDLE).bytes[10..], pattern(1, 100_000));
    });
}

#[test]
fn bytes_are_clean_only_when_the_file_system_has_made_them_durable() {
    simulate(12, |world| async move {
        world.bfs.put(HANDLE, b"");
        let life = world.start().await;
        life.meet(&world).await;
        life.write(&world, 0, &[1; 1000]).await;
        world.bfs.fsync_fails.set(true);
        let failure = life.run(Op::Sync, 0).await.unwrap_err();
        assert_eq!((failure.kind(), failure.errno), (Code::Errno, libc::EIO));
        let counts = life.counts().await;
        assert_eq!((counts.dirty, counts.pending, counts.clean), (1000, 0, 0));
    });
}

#[test]
fn a_prestage_brings_the_file_and_never_replaces_newer_bytes() {
    let mut met = 0;
    for step in 0..30 {
        met += simulate(step, |world| async move {
            let before = pattern(9, 2_500_001);
            world.bfs.put(HANDLE, &before);
            let life = world.start().await;
            life.meet(&world).await;
            life.write(&world, 1000, &[5; 3000]).await;
            let op = life.begin(Op::Prestage, 0).await.unwrap();
            world.rt.sleep(std::time::Duration::from_micros(250 * step)).await;
            let ended = life.status(op, 0, false).await.ended;
            life.write(&world, 1_200_000, &[6; 100]).await;
            let met = !ended && life.status(op, 0, false).await.ended;
            let state = life.status(op, 60_000, false).await;
            assert!(state.ended && state.failure.is_none(), "{state:?}");
            let counts = life.counts().await;
            assert_eq!((counts.dirty, counts.clean), (3100, 2_500_001 - 3100), "step {step}");
            // Every byte is held: a sync of the dirty ones gives the newest of each.
            life.run(Op::Sync, 0).await.unwrap();
            let mut model = before;
            put(&mut model, 1000, &[5; 3000]);
            put(&mut model, 1_200_000, &[6; 100]);
            assert!(world.bfs.get(HANDLE).bytes == model);
            u32::from(met || !ended)
        });
    }
    assert!(met > 0, "no write fell into a prestage");
}

#[test]
fn a_change_behind_our_back_is_a_conflict_until_somebody_decides() {
    for force in [1, 2] {
        simulate(8, |world| async move {
            world.bfs.put(HANDLE, &[1; 100]);
            let life = world.start().await;
            life.meet(&world).await;
            life.write(&world, 0, &[2; 10]).await;
            world.bfs.put(HANDLE, &[3; 100]);
            let failure = life.run(Op::Sync, 0).await.unwrap_err();
            assert_eq!(failure.kind(), Code::Conflict);
            assert_eq!(world.bfs.get(HANDLE).bytes, [3; 100]);
            assert!(life.stat().await.conflict && life.counts().await.dirty == 10);
            life.run(Op::Sync, force).await.unwrap();
            let expected: &[u8] = if force == 1 { &[2; 10] } else { &[3; 10] };
            assert_eq!(&world.bfs.get(HANDLE).bytes[..10], expected);
            let after = life.stat().await;
            assert_eq!((after.conflict, after.bytes.unwrap().dirty, after.size), (false, 0, 100));
            // Our own write does not look like somebody else's.
            life.write(&world, 50, &[4; 10]).await;
            life.run(Op::Sync, 0).await.unwrap();
        });
    }
}

#[test]
fn a_purge_drops_clean_bytes_only_and_reads_go_through() {
    simulate(9, |world| async move {
        world.bfs.put(HANDLE, b"");
        let life = world.start().await;
        life.meet(&world).await;
        life.write(&world, 0, &[1; 1000]).await;
        life.run(Op::Sync, 0).await.unwrap();
        life.write(&world, 2000, &[2; 1000]).await;
        life.run(Op::Purge, 0).await.unwrap();
        let counts = life.counts().await;
        assert_eq!((counts.dirty, counts.clean), (1000, 0));
        let read = life.read_through(&world, 500, 1000).await;
        assert_eq!((&read[..500], &read[500..]), (&[1; 500][..], &[0; 500][..]));
        life.run(Op::PurgeDirty, 0).await.unwrap();
        assert_eq!((life.counts().await.dirty, life.stat().await.size), (0, 1000));
        life.run(Op::Pin, 0).await.unwrap();
        assert!(life.stat().await.pinned);
        life.run(Op::Unpin, 0).await.unwrap();
        assert!(!life.stat().await.pinned);
    });
}

#[test]
fn a_cancelled_sync_leaves_nothing_pending() {
    simulate(10, |world| async move {
        world.bfs.put(HANDLE, b"");
        let life = world.start().await;
        life.meet(&world).await;
        life.write(&world, 0, &[1; 1000]).await;
        world.bfs.shut.set(true);
        let op = life.begin(Op::Sync, 0).await.unwrap();
        world.wait_ms(100).await;
        assert!(!life.status(op, 0, true).await.ended, "a write is under way");
        world.bfs.open_gate();
        let state = life.status(op, 60_000, false).await;
        assert!(state.ended);
        assert_eq!(life.counts().await.pending, 0);
        life.run(Op::Sync, 0).await.unwrap();
        assert_eq!(life.counts().await.clean, 1000);
    });
}

#[test]
fn a_sync_session_is_resumed_after_a_crash_and_its_writes_are_nobody_elses() {
    simulate(11, |world| async move {
        world.bfs.put(HANDLE, b"");
        let life = world.start().await;
        life.meet(&world).await;
        life.write(&world, 0, &[1; 1000]).await;
        world.bfs.shut.set(true);
        let op = life.begin(Op::Sync, 0).await.unwrap();
        world.wait_ms(100).await;
        world.kill(life, true);
        world.bfs.open_gate();
        let life = world.start().await;
        let state = life.status(op, 60_000, false).await;
        assert!(state.ended && state.failure.is_none(), "{state:?}");
        let after = life.stat().await;
        assert_eq!((after.bytes.unwrap().clean, after.conflict), (1000, false));
        life.write(&world, 0, &[2; 10]).await;
        life.run(Op::Sync, 0).await.unwrap();
    });
}

/// Each planted error of residency is found by the test of its rule.
#[cfg(feature = "planted")]
mod planted_errors {
    use crate::planted::{Planted, set};

    fn found_by(planted: Planted, test: fn()) {
        set(Some(planted));
        let result = std::panic::catch_unwind(test);
        set(None);
        assert!(result.is_err(), "{planted:?} is not found");
    }

    #[test]
    fn are_found() {
        use super as rules;
        found_by(
            Planted::SyncWithoutIntent,
            rules::rule_10_nothing_is_written_before_the_intent_is_in_the_log,
        );
        found_by(
            Planted::CleanBeforeBfsFsync,
            rules::bytes_are_clean_only_when_the_file_system_has_made_them_durable,
        );
        found_by(
            Planted::IgnoreHungWrite,
            rules::rule_10_a_predecessors_hung_write_cannot_replace_newer_bytes_that_count_as_clean,
        );
        found_by(
            Planted::DropDirtyUnmounted,
            rules::rule_11_it_may_also_vanish_in_the_middle_of_a_sync,
        );
        found_by(
            Planted::MarkCleanChanged,
            rules::rule_9_what_is_written_during_a_sync_stays_dirty_and_comes_with_the_next,
        );
        found_by(
            Planted::PrestageOverwrites,
            rules::a_prestage_brings_the_file_and_never_replaces_newer_bytes,
        );
        found_by(
            Planted::IgnoreGuard,
            rules::a_change_behind_our_back_is_a_conflict_until_somebody_decides,
        );
    }
}
