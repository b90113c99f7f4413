//! A log image of version 1 that must replay forever, and what `inspect` says about it.
//!
//! The image lists the blocks that are not all zeros: `offset`, then runs of `count`x`byte` or
//! `=hex`. To make one for a new version of the format, run the ignored test and keep the old ones.

use std::fmt::Write;

use bb_commitlog::inspect::{Ending, Finding, inspect};
use bb_commitlog::{Log, Lsn, StreamId};
use bb_nvme::{DeviceRef, SimDisk};

use crate::common::{IDENTITY, World, append, commit, format_options, simulate};

const V1: &str = include_str!("../fixtures/v1.log.txt");
/// The smallest ring.
const RING: u64 = 256 << 10;

fn dump(disk: &SimDisk) -> String {
    let mut text = String::new();
    for offset in disk.blocks_in_use() {
        write!(text, "{offset}").unwrap();
        let block = disk.peek(offset, 4096);
        let mut literal = String::new();
        for run in block.chunk_by(|a, b| a == b) {
            if run.len() < 5 {
                run.iter().for_each(|byte| write!(literal, "{byte:02x}").unwrap());
                continue;
            }
            if !literal.is_empty() {
                write!(text, " ={literal}").unwrap();
                literal.clear();
            }
            write!(text, " {}x{:02x}", run.len(), run[0]).unwrap();
        }
        if !literal.is_empty() {
            write!(text, " ={literal}").unwrap();
        }
        text.push('\n');
    }
    text
}

fn load(disk: &SimDisk, text: &str) {
    let hex = |text: &str| u8::from_str_radix(text, 16).unwrap();
    for line in text.lines() {
        let mut words = line.split(' ');
        let offset: u64 = words.next().unwrap().parse().unwrap();
        let mut block = Vec::new();
        for word in words {
            match word.strip_prefix('=') {
                Some(literal) => {
                    block.extend((0..literal.len() / 2).map(|i| hex(&literal[2 * i..2 * i + 2])));
                }
                None => {
                    let (count, byte) = word.split_once('x').unwrap();
                    block.resize(block.len() + count.parse::<usize>().unwrap(), hex(byte));
                }
            }
        }
        assert_eq!(block.len(), 4096);
        disk.poke(offset, &block);
    }
}

/// Two incarnations, a second lap, a snapshot, a retired stream, marks, a gap at the end of a lap.
async fn write_image(world: &World) {
    let dev: DeviceRef = world.disk.attach();
    let mut options = format_options();
    options.ring_bytes = Some(RING);
    Log::format(&world.rt, &world.pool, &dev, &options, &mut |_, _| ()).await.unwrap();
    let small = bb_commitlog::Options {
        reserves: Some(bb_commitlog::Reserves::for_ring(64 << 10)),
        ..Default::default()
    };
    let (log, _, process) = world.open_with(small.clone()).await.unwrap();
    commit(&log, 3, b"of a stream that is retired").await;
    log.retire(StreamId(3)).unwrap().durable.await.unwrap();
    while log.head().0 < RING - (8 << 10) {
        commit(&log, 1, &[0x11; 2500]).await;
        if log.usage().client_free_bytes < 20_000 {
            log.checkpoint(StreamId(1), vec![0x22; 9000]).unwrap().durable.await.unwrap();
        }
    }
    commit(&log, 2, &[0x33; 3000]).await;
    world.crash(log, &process);
    let (log, _, process) = world.open_with(small).await.unwrap();
    log.note_external_durable(5, Lsn(RING)).unwrap();
    let checkpoint = log.checkpoint(StreamId(1), vec![0x44; 7000]).unwrap();
    append(&log, 1, b"during the checkpoint").await.unwrap().durable.await.unwrap();
    checkpoint.durable.await.unwrap();
    log.checkpoint(StreamId(2), b"two".to_vec()).unwrap().durable.await.unwrap();
    for i in 0..6_u8 {
        commit(&log, 1, &vec![i; 4000]).await;
        commit(&log, 2, &[i; 3]).await;
    }
    assert!(log.head().0 > RING, "a second lap");
    world.crash(log, &process);
}

#[test]
#[ignore = "prints a new fixture"]
fn print_a_fixture() {
    let image = simulate(1, |world| async move {
        write_image(&world).await;
        dump(&world.disk)
    });
    print!("{image}");
}

#[test]
fn an_image_of_version_1_replays() {
    simulate(51, |world| async move {
        load(&world.disk, V1);
        let (log, received, _) = world.open().await.unwrap();
        assert_eq!(log.identity(), IDENTITY);
        assert_eq!(log.incarnation(), 3);
        assert_eq!(log.external_durable(5), Some(Lsn(RING)));
        assert_eq!(received.snapshot(1), Some(vec![0x44; 7000]));
        assert_eq!(received.snapshot(2), Some(b"two".to_vec()));
        let mut one = vec![b"during the checkpoint".to_vec()];
        one.extend((0..6_u8).map(|i| vec![i; 4000]));
        assert_eq!(received.records(1), one);
        assert_eq!(received.records(2), (0..6_u8).map(|i| vec![i; 3]).collect::<Vec<_>>());
        assert_eq!(received.0.len(), 2);
    });
}

#[test]
fn inspect_reads_the_image_and_changes_nothing() {
    simulate(52, |world| async move {
        load(&world.disk, V1);
        let before = dump(&world.disk);
        let dev: DeviceRef = world.disk.attach();
        let mut findings = Vec::new();
        let mut visit = |finding| findings.push(finding);
        let superblock = inspect(&world.rt, &world.pool, &dev, &mut visit).await.unwrap();
        assert_eq!(superblock.copies_whole, 4);
        assert_eq!(superblock.incarnation, 2);
        let records: usize = findings
            .iter()
            .map(|finding| match finding {
                Finding::Group(group) => group.records.len(),
                _ => 0,
            })
            .sum();
        assert!(records > 12, "{records}");
        let last = findings.last().unwrap();
        assert!(matches!(last, Finding::End { ending: Ending::TornTail { .. }, .. }), "{last:?}");
        let json = serde_json::to_value(&findings[0]).unwrap();
        assert_eq!(json["Group"]["lsn"], serde_json::json!(superblock.trim));
        assert_eq!(dump(&world.disk), before);
    });
}
