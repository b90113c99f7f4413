//! A full ring never deadlocks (rule 14).

use std::time::Duration;

use bb_commitlog::{Class, LogError, StreamId};

use crate::common::{append, commit, simulate};

#[test]
fn rule_14_a_ring_full_of_client_records_goes_on_after_a_checkpoint() {
    simulate(31, |world| async move {
        world.format().await;
        let (log, _, process) = world.open().await.unwrap();
        let soon = Duration::from_millis(10);
        let mut acknowledged = 0_u32;
        for _lap in 0..20 {
            // Until admission blocks.
            loop {
                let record = [&acknowledged.to_le_bytes()[..], &[7; 3000]].concat();
                match world.rt.timeout(soon, append(&log, 1, &record)).await {
                    Ok(appended) => appended.unwrap().durable.await.unwrap(),
                    Err(_) => break,
                }
                acknowledged += 1;
            }
            assert!(world.rt.timeout(soon, log.admit(Class::Rebuild, 10)).await.is_err());
            // Every class above still gets through, each into its own reserve.
            for class in [Class::Reclaim, Class::Replication, Class::Control] {
                let mut taken = 0;
                while let Some(mut room) = log.try_admit(class, 3000).unwrap() {
                    let record = [&acknowledged.to_le_bytes()[..], &[8; 2996]].concat();
                    log.append(StreamId(1), &mut room, &record).unwrap().durable.await.unwrap();
                    acknowledged += 1;
                    taken += 1;
                }
                assert!(taken > 3, "{class:?} got {taken}");
            }
            // A client waits while the checkpoint is written, and is served by it.
            let (waiting, log2) = (world.rt.clone(), log.clone());
            let waiter =
                waiting.spawn(async move { append(&log2, 2, b"served").await.map(|a| a.lsn) });
            world.rt.yield_now().await;
            let snapshot = acknowledged.to_le_bytes().repeat(10_000);
            let first = log.checkpoint(StreamId(1), snapshot).unwrap();
            // What the waiter wrote in the lap before keeps the tail, too.
            log.checkpoint(StreamId(2), Vec::new()).unwrap().durable.await.unwrap();
            first.durable.await.unwrap();
            waiter.await.unwrap().unwrap();
        }
        assert!(log.head().0 > 10 * crate::common::RING);
        world.cut(log, &process);
        let (_, received, _) = world.open().await.unwrap();
        let snapshot = received.snapshot(1).unwrap();
        assert_eq!(snapshot, acknowledged.to_le_bytes().repeat(10_000));
        assert!(received.records(1).is_empty());
    });
}

#[test]
fn rule_14_the_more_urgent_class_is_served_first() {
    simulate(32, |world| async move {
        world.format().await;
        let (log, _, _process) = world.open().await.unwrap();
        commit(&log, 1, b"start").await;
        let mut held = Vec::new();
        while let Some(room) = log.try_admit(Class::Control, 3000).unwrap() {
            held.push(room);
        }
        let order = std::rc::Rc::new(std::cell::RefCell::new(Vec::new()));
        let mut tasks = Vec::new();
        for class in [Class::Rebuild, Class::Client, Class::Replication, Class::Control] {
            let (log, order) = (log.clone(), order.clone());
            tasks.push(world.rt.spawn(async move {
                let _room = log.admit(class, 3000).await.unwrap();
                order.borrow_mut().push(class);
            }));
            world.rt.sleep(Duration::from_millis(1)).await;
        }
        while let Some(room) = held.pop() {
            drop(room);
            world.rt.sleep(Duration::from_millis(1)).await;
        }
        for task in tasks {
            task.await.unwrap();
        }
        let expected = [Class::Control, Class::Replication, Class::Client, Class::Rebuild];
        assert_eq!(*order.borrow(), expected);
        assert_eq!(log.usage().reserved_bytes, 0);
    });
}

#[test]
fn what_can_never_fit_is_refused_at_once() {
    simulate(33, |world| async move {
        world.format().await;
        let (log, _, _process) = world.open().await.unwrap();
        let max = log.record_bytes_max();
        assert!(matches!(
            log.admit(Class::Client, max + 1).await.err(),
            Some(LogError::RecordTooLarge { .. })
        ));
        let many = std::iter::repeat_n(max, 10_000);
        assert!(matches!(
            log.admit_all(Class::Client, many).await.err(),
            Some(LogError::Full { .. })
        ));
        let mut small = log.admit(Class::Client, 10).await.unwrap();
        assert!(matches!(
            log.append(StreamId(1), &mut small, &vec![0; max]).err(),
            Some(LogError::Unreserved { .. })
        ));
        let mut large = log.admit(Class::Client, max).await.unwrap();
        log.append(StreamId(1), &mut large, &vec![0; max]).unwrap().durable.await.unwrap();
    });
}

#[test]
fn an_admission_that_gives_up_leaks_nothing() {
    simulate(34, |world| async move {
        world.format().await;
        let (log, _, _process) = world.open().await.unwrap();
        commit(&log, 1, b"keeps the tail").await;
        let mut held = Vec::new();
        while let Some(room) = log.try_admit(Class::Client, 3000).unwrap() {
            held.push(room);
        }
        for _ in 0..10 {
            let wait = log.admit(Class::Client, 3000);
            assert!(world.rt.timeout(Duration::from_millis(1), wait).await.is_err());
        }
        drop(held);
        assert_eq!(log.usage().reserved_bytes, 0);
        assert!(log.try_admit(Class::Client, 3000).unwrap().is_some());
    });
}

#[test]
fn a_checkpoint_lets_other_records_through_between_its_chunks() {
    simulate(35, |world| async move {
        world.format().await;
        let (log, _, _process) = world.open().await.unwrap();
        commit(&log, 1, b"start").await;
        let checkpoint = log.checkpoint(StreamId(1), vec![1; 300_000]).unwrap();
        let mut between = 0;
        while checkpoint.durable.peek().is_none() {
            commit(&log, 2, b"small").await;
            between += 1;
        }
        assert!(between > 10, "{between} records went between the chunks");
    });
}

#[test]
fn asking_without_waiting_moves_the_tail_too() {
    simulate(36, |world| async move {
        world.format().await;
        let (log, _, _process) = world.open().await.unwrap();
        for _ in 0..3 {
            commit(&log, 1, &[1; 100]).await;
        }
        let mut held = Vec::new();
        while let Some(room) = log.try_admit(Class::Client, 100).unwrap() {
            held.push(room);
        }
        // A few blocks: not worth a superblock while nobody lacks room.
        log.checkpoint(StreamId(1), Vec::new()).unwrap().durable.await.unwrap();
        held.truncate(held.len() - 1);
        let used = log.usage().used_bytes;
        while log.try_admit(Class::Client, 4000).unwrap().is_none() {
            world.rt.sleep(Duration::from_millis(1)).await;
        }
        assert!(log.usage().used_bytes < used);
    });
}

#[test]
fn whoever_waits_for_a_log_that_is_dropped_learns_it() {
    simulate(37, |world| async move {
        world.format().await;
        let (log, _, _process) = world.open().await.unwrap();
        let appended = append(&log, 1, b"never leaves").await.unwrap();
        drop(log);
        assert_eq!(appended.durable.await, Err(LogError::Closed));
    });
}
