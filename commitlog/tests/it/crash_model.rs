//! The log against a model, with crashes and power cuts at any moment and a ring that wraps.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use crate::common::{Received, World, simulate};
use bb_commitlog::{Class, Log, LogError, Lsn, Options, StreamId};
use bb_nvme::FaultKind;
use bb_runtime::Rt;
use proptest::prelude::*;

const STREAMS: u64 = 5;

/// A stream's state is the list of its records' numbers; its snapshot spells that list out.
type Ids = Vec<u32>;

#[derive(Clone, Debug)]
enum Change {
    Add(u32),
    Clear,
}

#[derive(Default)]
pub struct Model {
    changes: BTreeMap<(Lsn, StreamId), Change>,
    /// State of each stream as appended, durable or not.
    now: BTreeMap<StreamId, Ids>,
    next_id: u32,
    /// Largest LSN that was acknowledged.
    acknowledged: Option<Lsn>,
    laps: u64,
}

impl Model {
    /// What every stream must be when the log ends at `end`.
    fn as_of(&self, end: Lsn) -> BTreeMap<StreamId, Ids> {
        let mut state: BTreeMap<StreamId, Ids> = BTreeMap::new();
        for ((_, stream), change) in self.changes.range(..(end, StreamId(0))) {
            match change {
                Change::Add(id) => state.entry(*stream).or_default().push(*id),
                Change::Clear => {
                    state.remove(stream);
                }
            }
        }
        state
    }

    /// A crash took what lies past `end`.
    fn cut(&mut self, end: Lsn) {
        let lost = self.acknowledged.is_some_and(|lsn| lsn >= end);
        assert!(!lost, "{:?} was acknowledged, the log ends at {end:?}", self.acknowledged);
        self.now = self.as_of(end);
        self.changes.split_off(&(end, StreamId(0)));
    }
}

fn encode(ids: &Ids) -> Vec<u8> {
    ids.iter().flat_map(|id| id.to_le_bytes()).collect()
}

fn decode(bytes: &[u8]) -> Ids {
    bytes.chunks_exact(4).map(|part| u32::from_le_bytes(part.try_into().unwrap())).collect()
}

fn states(received: &Received) -> BTreeMap<StreamId, Ids> {
    let mut states = BTreeMap::new();
    for (stream, content) in &received.0 {
        let mut ids = content.snapshot.as_ref().map_or_else(Vec::new, |(_, bytes)| decode(bytes));
        for (lsn, bytes) in &content.records {
            let filler = &bytes[4..];
            assert!(filler.iter().all(|byte| *byte == 0xA5), "{lsn} is not what was appended");
            ids.extend(decode(&bytes[..4]));
        }
        if !ids.is_empty() {
            states.insert(*stream, ids);
        }
    }
    states
}

pub type Shared = Rc<RefCell<Model>>;

async fn client(rt: Rt, log: Log, model: Shared) {
    loop {
        let stream = StreamId(rt.random_below(STREAMS));
        let result = match rt.random_below(100) {
            0..2 => retire(&log, &model, stream).await,
            2..5 => checkpoint(&log, &model, stream).await,
            _ => burst(&rt, &log, &model).await,
        };
        match result {
            Ok(()) | Err(LogError::UnknownStream { .. } | LogError::CheckpointUnderWay { .. }) => {}
            Err(LogError::Retired { .. } | LogError::Full { .. }) => {}
            Err(error) => panic!("{error}"),
        }
        rt.sleep(Duration::from_micros(rt.random_below(100))).await;
    }
}

/// Several records in one turn, so that groups have several blocks.
async fn burst(rt: &Rt, log: &Log, model: &Shared) -> Result<(), LogError> {
    for _ in 0..rt.random_below(5) {
        append(rt, log, model, StreamId(rt.random_below(STREAMS)), false).await?;
    }
    let wait = rt.random_below(3) > 0;
    append(rt, log, model, StreamId(rt.random_below(STREAMS)), wait).await
}

async fn append(
    rt: &Rt,
    log: &Log,
    model: &Shared,
    stream: StreamId,
    wait: bool,
) -> Result<(), LogError> {
    let len = match rt.random_below(4) {
        0 => usize::try_from(rt.random_below(4000)).unwrap(),
        _ => usize::try_from(rt.random_below(200)).unwrap(),
    };
    let mut room = log.admit(Class::Client, len + 4).await?;
    let append = {
        let mut model = model.borrow_mut();
        let id = model.next_id;
        model.next_id += 1;
        let mut record = id.to_le_bytes().to_vec();
        record.resize(len + 4, 0xA5);
        let append = log.append(stream, &mut room, &record)?;
        model.changes.insert((append.lsn, stream), Change::Add(id));
        model.now.entry(stream).or_default().push(id);
        append
    };
    if wait {
        append.durable.await?;
        let mut model = model.borrow_mut();
        model.acknowledged = model.acknowledged.max(Some(append.lsn));
        model.laps = model.laps.max(append.lsn.0 / crate::common::RING);
    }
    Ok(())
}

async fn retire(log: &Log, model: &Shared, stream: StreamId) -> Result<(), LogError> {
    let append = log.retire(stream)?;
    {
        let mut model = model.borrow_mut();
        model.changes.insert((append.lsn, stream), Change::Clear);
        model.now.remove(&stream);
    }
    append.durable.await?;
    let mut model = model.borrow_mut();
    model.acknowledged = model.acknowledged.max(Some(append.lsn));
    Ok(())
}

async fn checkpoint(log: &Log, model: &Shared, stream: StreamId) -> Result<(), LogError> {
    let snapshot = encode(model.borrow().now.get(&stream).unwrap_or(&Vec::new()));
    log.checkpoint(stream, snapshot)?.durable.await
}

/// What a server does: writes a checkpoint of whatever keeps the tail.
async fn keep_room(rt: Rt, log: Log, model: Shared) {
    loop {
        let usage = log.usage();
        if usage.client_free_bytes < usage.ring_bytes / 4
            && let Some((stream, _)) = log.oldest()
        {
            match checkpoint(&log, &model, stream).await {
                Ok(()) => {}
                Err(LogError::Retired { .. } | LogError::CheckpointUnderWay { .. }) => {}
                Err(error) => panic!("{error}"),
            }
        }
        rt.sleep(Duration::from_micros(200)).await;
    }
}

pub async fn lives(world: World, options: Options, rounds: u64, round_us: u64, model: Shared) {
    world.format().await;
    let mut deaths_in_recovery = 0;
    for _ in 0..rounds {
        let (log, received, process) = world.open_with(options.clone()).await.unwrap();
        // The end of what was recovered: the group of the new incarnation follows, and before it
        // perhaps that of one that died while it recovered.
        let last_end = log.durable_through().0 - 4096;
        let ends = (0..=deaths_in_recovery).map(|groups| Lsn(last_end - groups * 4096));
        let mut ends = ends.filter(|end| states(&received) == model.borrow().as_of(*end));
        let end = ends.next().unwrap_or_else(|| {
            let expected = model.borrow().as_of(Lsn(last_end));
            panic!("log ends at {last_end}: {:?}, expected {expected:?}", states(&received))
        });
        model.borrow_mut().cut(end);
        deaths_in_recovery = 0;
        for _ in 0..4 {
            process.spawn(client(process.clone(), log.clone(), model.clone()));
        }
        process.spawn(keep_room(process.clone(), log.clone(), model.clone()));
        let life_us = world.rt.random_below(round_us);
        world.rt.sleep(Duration::from_micros(life_us)).await;
        if world.rt.random_below(2) == 0 {
            world.crash(log, &process);
        } else {
            world.cut(log, &process);
        }
        // Now and then the next process dies while it recovers.
        if world.rt.random_below(3) == 0 {
            let process = world.rt.new_domain();
            let dev: bb_nvme::DeviceRef = world.disk.attach();
            let (rt, pool) = (process.clone(), world.pool.clone());
            process.spawn(async move {
                let mut ignored = Received::default();
                let _ = Log::open(&rt, &pool, &dev, Default::default(), &mut ignored).await;
            });
            world.rt.sleep(Duration::from_micros(world.rt.random_below(2000))).await;
            world.rt.kill(process.domain());
            world.disk.power_loss();
            deaths_in_recovery += 1;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn acknowledged_records_survive_crashes_and_nothing_else_appears(
        seed: u64,
        rounds in 2_u64..8,
        round_us in 500_u64..30_000,
    ) {
        let model = Shared::default();
        simulate(seed, |world| lives(world, Options::default(), rounds, round_us, model.clone()));
    }
}

#[test]
fn long_lives_wrap_the_ring_many_times_and_tear_writes() {
    let model = Shared::default();
    let counts = simulate(77, |world| {
        let model = model.clone();
        async move {
            let disk = world.disk.clone();
            lives(world, Options::default(), 30, 200_000, model).await;
            disk.fault_counts()
        }
    });
    assert!(model.borrow().laps >= 10, "{} laps", model.borrow().laps);
    assert!(counts.get(FaultKind::TornWrite) > 0, "{counts:?}");
}

/// One life, then damage anywhere in the ring. The next start sees it, or what it delivers is what
/// was appended up to some point.
async fn damaged_life(world: World, model: Shared) -> bool {
    world.format().await;
    let (log, _, process) = world.open().await.unwrap();
    for _ in 0..4 {
        process.spawn(client(process.clone(), log.clone(), model.clone()));
    }
    process.spawn(keep_room(process.clone(), log.clone(), model.clone()));
    world.rt.sleep(Duration::from_micros(world.rt.random_below(60_000))).await;
    world.crash(log, &process);
    for _ in 0..=world.rt.random_below(3) {
        let offset =
            || crate::common::RING_AT + world.rt.random_below(crate::common::RING / 4096) * 4096;
        let (at, from) = (offset(), offset());
        match world.rt.random_below(4) {
            0 => world.disk.rot(at),
            1 => world.disk.poke(at, &[0; 4096]),
            2 => world.disk.poke(at, &world.disk.peek(from, 4096)),
            _ => world.disk.break_block(at),
        }
    }
    match world.open().await {
        Ok((log, received, _)) => {
            let end = Lsn(log.durable_through().0 - 4096);
            assert_eq!(states(&received), model.borrow().as_of(end));
            // What was acknowledged is there, but for groups that none after them vouches for.
            let lost = model.borrow().acknowledged.filter(|lsn| *lsn >= end);
            assert!(lost.is_none_or(|lsn| lsn.0 - end.0 < 8 * 16_384), "{lost:?} from {end:?}");
            false
        }
        Err(LogError::Damaged { .. } | LogError::Unreadable { .. }) => true,
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn damage_anywhere_is_found_or_the_log_is_still_true() {
    let seen = (0..60)
        .filter(|seed| simulate(*seed, |world| damaged_life(world, Shared::default())))
        .count();
    assert!((8..60).contains(&seen), "{seen} of 60 were seen as damage");
}
