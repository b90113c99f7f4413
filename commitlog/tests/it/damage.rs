//! A torn tail is the end of the log; anything else that is missing is damage (rule 12).

use bb_commitlog::{Expect, Log, LogError, LogErrorKind, Lsn, Nonce, Options};
use bb_nvme::{DeviceRef, FaultKind, SimImage};

use crate::common::{
    GROUP, IDENTITY, RING, RING_AT, Received, World, append, commit, format_options, simulate,
};

/// A closed log of a hundred groups, one record each, and the LSN past its last one.
async fn closed_log(world: &World) -> (SimImage, u64, Received) {
    world.format().await;
    let (log, _, _process) = world.open().await.unwrap();
    for i in 0..100_u8 {
        commit(&log, u64::from(i % 2), &[i; 4000]).await;
    }
    log.close().await.unwrap();
    let head = log.head().0;
    assert!(matches!(append(&log, 1, b"late").await, Err(LogError::Closed)));
    drop(log);
    let image = world.disk.image();
    let (_, received, _) = world.open().await.unwrap();
    world.disk.restore(&image);
    (image, head, received)
}

#[test]
fn after_a_graceful_stop_rot_anywhere_is_found_or_harmless() {
    simulate(11, |world| async move {
        let (image, head, whole) = closed_log(&world).await;
        let mut found = 0;
        for block in 0..head / 4096 {
            world.disk.restore(&image);
            world.disk.rot(RING_AT + block * 4096);
            // Looking at it first gives the same answer, and changes nothing.
            let ring = || world.disk.peek(RING_AT, usize::try_from(RING).unwrap());
            let rotten = ring();
            let looked = world.dry_replay().await;
            assert!(rotten == ring(), "rot in block {block}");
            let opened = world.open().await;
            assert_eq!(looked.as_ref().err(), opened.as_ref().err());
            if let (Ok((_, before)), Ok((_, received, _))) = (&looked, &opened) {
                assert_eq!(before, received);
            }
            match opened {
                Ok((_, received, _)) => assert_eq!(received, whole, "rot in block {block}"),
                Err(error) => {
                    assert!(matches!(error, LogError::Damaged { .. }), "{error}");
                    found += 1;
                }
            }
        }
        // All but padding, and the last group, which says only what the one before knew.
        assert!(found >= 100, "{found} of {}", head / 4096);
    });
}

#[test]
fn rule_12_a_hole_of_many_groups_is_damage() {
    simulate(12, |world| async move {
        let (_, _, _) = closed_log(&world).await;
        world.disk.poke(RING_AT + 40 * 4096, &vec![0; 400 << 10]);
        let error = world.open().await.err().unwrap();
        assert!(matches!(error, LogError::Damaged { .. }), "{error}");
        assert_eq!(error.kind(), LogErrorKind::Damaged);
    });
}

#[test]
fn rule_12_a_lost_or_misdirected_group_in_the_middle_is_damage() {
    for kind in [FaultKind::LostWrite, FaultKind::MisdirectedWrite] {
        simulate(13, |world| async move {
            world.format().await;
            let (log, _, process) = world.open().await.unwrap();
            commit(&log, 1, b"before").await;
            world.disk.inject_at(kind, RING_AT, 1 << 20);
            commit(&log, 1, b"never arrives").await;
            assert_eq!(world.disk.fault_counts().get(kind), 1);
            commit(&log, 1, b"after").await;
            world.crash(log, &process);
            let error = world.open().await.err().unwrap();
            assert!(matches!(error, LogError::Damaged { .. }), "{error}");
        });
    }
}

#[test]
fn an_unreadable_block_in_the_log_has_its_own_error() {
    simulate(14, |world| async move {
        let (_, _, whole) = closed_log(&world).await;
        world.disk.break_block(RING_AT + 20 * 4096);
        let error = world.open().await.err().unwrap();
        assert!(matches!(error, LogError::Unreadable { .. }), "{error}");
        // Behind the end it costs nothing, and neither does one error that does not come back.
        let (_, _, whole_again) = {
            let world = &world;
            closed_log(world).await
        };
        assert_eq!(whole, whole_again);
        world.disk.break_block(RING_AT + (1 << 20) + (512 << 10));
        world.disk.inject_at(FaultKind::ReadError, RING_AT, 4096);
        let (_, received, _) = world.open().await.unwrap();
        assert_eq!(received, whole);
    });
}

#[test]
fn rule_12_a_torn_last_group_is_the_end_of_the_log() {
    simulate(15, |world| async move {
        world.format().await;
        let (log, _, process) = world.open().await.unwrap();
        commit(&log, 1, b"whole").await;
        let lsn = commit(&log, 1, &vec![1; 4000]).await;
        world.crash(log, &process);
        // The second block of the group never made it.
        world.disk.poke(RING_AT + lsn.0 / 4096 * 4096 + 4096 - 16, &[0xEE; 16]);
        let (log, received, process) = world.open().await.unwrap();
        assert_eq!(received.records(1), [b"whole".to_vec()]);
        commit(&log, 1, b"next").await;
        world.crash(log, &process);
        let (_, received, _) = world.open().await.unwrap();
        assert_eq!(received.records(1), [b"whole".to_vec(), b"next".to_vec()]);
    });
}

#[test]
fn the_stale_tail_of_an_earlier_incarnation_never_joins_the_log() {
    simulate(16, |world| async move {
        world.format().await;
        let (log, _, process) = world.open().await.unwrap();
        commit(&log, 1, b"whole").await;
        let old = world.disk.image();
        // Three groups of one block each, on their way at the same time.
        let mut lsns = Vec::new();
        for i in 0..3_u8 {
            lsns.push(append(&log, 1, &[i; 3000]).await.unwrap().lsn);
            world.rt.sleep(std::time::Duration::from_micros(1)).await;
        }
        world.rt.sleep(std::time::Duration::from_millis(5)).await;
        let torn_at = lsns[0].0 / 4096 * 4096;
        assert_eq!(lsns[2].0 / 4096 * 4096, torn_at + 2 * 4096, "a group each");
        world.crash(log, &process);
        // The first of them is torn; the two behind it are whole.
        let was = world.disk.peek(RING_AT + torn_at, 4096);
        world.disk.poke(RING_AT + torn_at, &vec![0; 4096]);
        assert!(was.starts_with(b"BBLOGGR"));
        drop(old);
        let (log, received, process) = world.open().await.unwrap();
        assert_eq!(received.records(1), [b"whole".to_vec()]);
        // The new incarnation's group has taken the torn one's place; the stale one follows it.
        assert_eq!(log.durable_through(), Lsn(torn_at + 4096));
        assert!(world.disk.peek(RING_AT + torn_at + 4096, 8).starts_with(b"BBLOGGR"));
        world.crash(log, &process);
        let (_, received, _) = world.open().await.unwrap();
        assert_eq!(received.records(1), [b"whole".to_vec()]);
    });
}

#[test]
fn one_rotten_superblock_costs_nothing_and_a_torn_one_only_the_newest_trim() {
    simulate(17, |world| async move {
        let (image, _, whole) = closed_log(&world).await;
        for copy in 0..4_u64 {
            world.disk.restore(&image);
            world.disk.rot(copy * (2 << 20));
            let (_, received, _) = world.open().await.unwrap();
            assert_eq!(received, whole);
        }
        world.disk.restore(&image);
        for copy in 0..4_u64 {
            world.disk.poke(copy * (2 << 20) + 100, &[1, 2, 3]);
        }
        assert!(matches!(world.open().await.err(), Some(LogError::SuperblockDamaged { .. })));
    });
}

#[test]
fn a_superblock_that_fell_back_behind_the_tail_is_damage() {
    simulate(18, |world| async move {
        world.format().await;
        let (log, _, process) = world.open().await.unwrap();
        let old: Vec<Vec<u8>> = (0..4).map(|c| world.disk.peek(c * (2 << 20), 8192)).collect();
        while log.head().0 < 2 * RING {
            commit(&log, 1, &[5; 4000]).await;
            if log.usage().client_free_bytes < 200_000 {
                log.checkpoint(bb_commitlog::StreamId(1), vec![1]).unwrap().durable.await.unwrap();
            }
        }
        world.crash(log, &process);
        for (copy, bytes) in (0..4).zip(&old) {
            world.disk.poke(copy * (2 << 20), bytes);
        }
        let error = world.open().await.err().unwrap();
        assert!(matches!(error, LogError::Damaged { .. }), "{error}");
    });
}

#[test]
fn what_is_not_this_log_is_refused_by_name() {
    simulate(19, |world| async move {
        let dev: DeviceRef = world.disk.attach();
        let open = |options: Options| world.open_with(options);
        assert!(matches!(open(Options::default()).await.err(), Some(LogError::NotALog { .. })));
        let mut large = format_options();
        large.ring_bytes = Some(1 << 30);
        let formatted = Log::format(&world.rt, &world.pool, &dev, &large, &mut |_, _| ()).await;
        assert!(matches!(formatted.err(), Some(LogError::DeviceTooSmall { .. })));
        world.format().await;
        let expect = |expect: Expect| Options { expect, ..Options::default() };
        let nonce = expect(Expect { nonce: Some(Nonce(1)), ..Expect::default() });
        assert!(matches!(open(nonce).await.err(), Some(LogError::WrongNonce { .. })));
        let log = expect(Expect { log: Some(bb_commitlog::LogUuid([1; 16])), ..Expect::default() });
        assert!(matches!(open(log).await.err(), Some(LogError::WrongLog { .. })));
        let cluster = expect(Expect {
            cluster: Some(bb_commitlog::ClusterUuid([1; 16])),
            ..Expect::default()
        });
        assert!(matches!(open(cluster).await.err(), Some(LogError::WrongCluster { .. })));
        let right = expect(Expect {
            log: Some(IDENTITY.log),
            cluster: Some(IDENTITY.cluster),
            nonce: Some(IDENTITY.nonce),
        });
        assert!(open(right).await.is_ok());
        world.disk.poke(8, &[2]);
        let newer = open(Options::default()).await.err();
        assert_eq!(newer, Some(LogError::NewerVersion { found: 2, supported: 1 }));
    });
}

#[test]
fn a_failed_write_fails_the_log_and_everybody_who_waits() {
    simulate(20, |world| async move {
        world.format().await;
        let (log, _, process) = world.open().await.unwrap();
        commit(&log, 1, b"before").await;
        world.disk.inject(FaultKind::WriteError);
        let mut waiting = Vec::new();
        for i in 0..20_u8 {
            waiting.push(append(&log, 1, &vec![i; GROUP / 8]).await.unwrap());
        }
        let mut failures = 0;
        for append in waiting {
            failures += u64::from(append.durable.await.is_err());
        }
        assert!(failures >= 1);
        assert!(matches!(log.failed().await, LogError::Failed(_)));
        assert!(matches!(append(&log, 1, b"x").await, Err(LogError::Failed(_))));
        assert!(log.close().await.is_err());
        world.crash(log, &process);
        assert!(world.open().await.is_ok(), "what is on the device is still a log");
    });
}

#[test]
fn external_marks_survive_and_never_reach_past_the_end() {
    simulate(21, |world| async move {
        world.format().await;
        let (log, _, process) = world.open().await.unwrap();
        let lsn = commit(&log, 1, b"a").await;
        log.note_external_durable(3, lsn).unwrap();
        log.note_external_durable(4, Lsn(u64::MAX)).unwrap();
        commit(&log, 1, b"b").await;
        let end = log.durable_through();
        world.crash(log, &process);
        let (log, _, _) = world.open().await.unwrap();
        assert_eq!(log.external_durable(3), Some(lsn));
        assert_eq!(log.external_durable(4), Some(end));
        assert_eq!(log.external_durable(5), None);
    });
}
