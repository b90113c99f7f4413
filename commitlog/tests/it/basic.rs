//! Append, acknowledge, replay.

use crate::common::{append, commit, simulate};
use bb_commitlog::{LogError, StreamId};

#[test]
fn what_was_acknowledged_is_replayed_in_order() {
    simulate(1, |world| async move {
        world.format().await;
        let (log, received, process) = world.open().await.unwrap();
        assert!(received.0.is_empty());
        for i in 0..100_u8 {
            commit(&log, u64::from(i % 3), &[i; 40]).await;
        }
        world.cut(log, &process);
        let (log, received, _) = world.open().await.unwrap();
        for stream in 0..3 {
            let expected: Vec<Vec<u8>> =
                (0..100).filter(|i| u64::from(i % 3) == stream).map(|i| vec![i; 40]).collect();
            assert_eq!(received.records(stream), expected);
        }
        assert_eq!(log.incarnation(), 2);
        assert_eq!(log.oldest().unwrap().0, StreamId(0));
    });
}

#[test]
fn records_appended_together_share_a_write() {
    simulate(2, |world| async move {
        world.format().await;
        let (log, _, _process) = world.open().await.unwrap();
        let before = log.stats().groups;
        let mut waiting = Vec::new();
        for i in 0..50_u8 {
            waiting.push(append(&log, 1, &[i; 100]).await.unwrap());
        }
        for append in waiting {
            append.durable.await.unwrap();
        }
        assert!(log.stats().groups - before <= 4, "{:?}", log.stats());
    });
}

#[test]
fn rule_13_acknowledgements_follow_the_order_of_the_log() {
    simulate(3, |world| async move {
        world.format().await;
        let (log, _, _process) = world.open().await.unwrap();
        for _ in 0..200 {
            let first = append(&log, 1, &[1; 3000]).await.unwrap();
            world.rt.yield_now().await;
            world.rt.yield_now().await;
            let second = append(&log, 1, &[2; 10]).await.unwrap();
            second.durable.await.unwrap();
            assert_eq!(first.durable.peek(), Some(Ok(())));
            assert!(log.durable_through() > second.lsn);
            if log.usage().client_free_bytes < 100_000 {
                log.checkpoint(StreamId(1), vec![3; 10]).unwrap().durable.await.unwrap();
            }
        }
    });
}

#[test]
fn a_snapshot_replaces_what_came_before_and_is_followed_by_what_came_after() {
    simulate(4, |world| async move {
        world.format().await;
        let (log, _, process) = world.open().await.unwrap();
        commit(&log, 1, b"old").await;
        commit(&log, 2, b"other").await;
        let snapshot: Vec<u8> =
            (0..50_000_u32).flat_map(|i| i.to_le_bytes()).take(70_000).collect();
        let checkpoint = log.checkpoint(StreamId(1), snapshot.clone()).unwrap();
        // While its chunks are on their way.
        let during = append(&log, 1, b"during").await.unwrap();
        assert_eq!(
            log.checkpoint(StreamId(1), Vec::new()).err(),
            Some(LogError::CheckpointUnderWay { stream: StreamId(1) })
        );
        during.durable.await.unwrap();
        checkpoint.durable.await.unwrap();
        commit(&log, 1, b"after").await;
        assert_eq!(log.oldest().unwrap().0, StreamId(2));
        world.crash(log, &process);
        let (_, received, _) = world.open().await.unwrap();
        assert_eq!(received.snapshot(1), Some(snapshot));
        assert_eq!(received.records(1), [b"during".to_vec(), b"after".to_vec()]);
        assert_eq!(received.records(2), [b"other".to_vec()]);
    });
}

#[test]
fn a_retired_stream_is_gone_and_can_start_anew() {
    simulate(5, |world| async move {
        world.format().await;
        let (log, _, process) = world.open().await.unwrap();
        commit(&log, 1, b"first life").await;
        commit(&log, 2, b"kept").await;
        log.retire(StreamId(1)).unwrap().durable.await.unwrap();
        assert_eq!(log.oldest().unwrap().0, StreamId(2));
        assert!(log.retire(StreamId(1)).is_err());
        world.crash(log, &process);
        let (log, received, process) = world.open().await.unwrap();
        assert_eq!(received.records(1), Vec::<Vec<u8>>::new());
        commit(&log, 1, b"second life").await;
        world.crash(log, &process);
        let (_, received, _) = world.open().await.unwrap();
        assert_eq!(received.records(1), [b"second life".to_vec()]);
        assert_eq!(received.records(2), [b"kept".to_vec()]);
    });
}
