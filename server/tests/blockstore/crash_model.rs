//! Random work, cut off at random points, again and again; a model knows what must still be there.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use bb_nvme::FaultRates;
use bb_proto::Code;
use bb_server::blockstore::BlockKey;

use crate::world::{Process, World, content, formatted, key};

/// What is known of a block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fate {
    /// A put is under way or was cut off: it may be there, whole, or not.
    Maybe,
    /// A put was acknowledged, or the block was seen after a restart.
    There,
    /// A free is under way or was cut off: it may still be there, whole, or not.
    MaybeGone,
    /// A free was acknowledged, or the block was seen to be gone.
    Gone,
}

#[derive(Default)]
struct Model {
    blocks: BTreeMap<BlockKey, (u8, Fate)>,
    next: u32,
}

type Shared = Rc<RefCell<Model>>;

const CHUNKS: u64 = 24;

fn pick(process: &Process, model: &Shared, fate: Fate) -> Option<(BlockKey, u8)> {
    let model = model.borrow();
    let of_fate = || model.blocks.iter().filter(move |(_, (_, found))| *found == fate);
    let count = of_fate().count() as u64;
    if count == 0 {
        return None;
    }
    let at = usize::try_from(process.rt.random_below(count)).unwrap();
    of_fate().nth(at).map(|(key, (log2, _))| (*key, *log2))
}

fn set(model: &Shared, key: BlockKey, fate: Fate) {
    model.borrow_mut().blocks.get_mut(&key).unwrap().1 = fate;
}

async fn put_new(process: &Process, model: &Shared) {
    let log2 = u8::try_from(12 + process.rt.random_below(36).isqrt() % 9).unwrap();
    let block = {
        let mut model = model.borrow_mut();
        model.next += 1;
        let block = key(model.next / 3, u8::try_from(model.next % 3).unwrap());
        model.blocks.insert(block, (log2, Fate::Maybe));
        block
    };
    match process.put(block, log2).await {
        Ok(()) => set(model, block, Fate::There),
        Err(failure) => {
            assert!(matches!(failure.kind(), Code::NoSpace | Code::Busy), "{failure}");
            set(model, block, Fate::Gone);
        }
    }
}

/// A client that heard nothing repeats its put; the answer must be the same.
async fn put_again(process: &Process, model: &Shared) {
    let Some((block, log2)) = pick(process, model, Fate::There) else { return };
    match process.put(block, log2).await {
        Ok(()) => {}
        // Somebody freed it meanwhile.
        Err(failure) => {
            let fate = model.borrow().blocks[&block].1;
            assert!(fate != Fate::There, "{block}: {failure}");
        }
    }
    // A repeated put after a free brings the block back: only that home can tell.
    let mut model = model.borrow_mut();
    let entry = model.blocks.get_mut(&block).unwrap();
    if entry.1 != Fate::There {
        entry.1 = Fate::MaybeGone;
    }
}

async fn read(process: &Process, model: &Shared) {
    let Some((block, log2)) = pick(process, model, Fate::There) else { return };
    match process.get(block, log2).await {
        Ok(bytes) => assert!(bytes == content(block, log2), "{block}: other bytes than were put"),
        Err(failure) => {
            let fate = model.borrow().blocks[&block].1;
            assert!(failure.kind() == Code::Stale && fate != Fate::There, "{block}: {failure}");
        }
    }
}

async fn read_gone(process: &Process, model: &Shared) {
    let Some((block, log2)) = pick(process, model, Fate::Gone) else { return };
    let answer = process.get(block, log2).await;
    let fate = model.borrow().blocks[&block].1;
    let stale = answer.as_ref().is_err_and(|failure| failure.kind() == Code::Stale);
    assert!(stale || fate != Fate::Gone, "{block} was freed and is served");
}

async fn free(process: &Process, model: &Shared) {
    let Some((block, log2)) = pick(process, model, Fate::There) else { return };
    set(model, block, Fate::MaybeGone);
    process.free(block).await.unwrap();
    // A repeated put may be under way.
    if process.get(block, log2).await.is_err() {
        set(model, block, Fate::Gone);
    }
}

async fn worker(process: Rc<Process>, model: Shared) {
    loop {
        match process.rt.random_below(20) {
            0..=7 => put_new(&process, &model).await,
            8 => put_again(&process, &model).await,
            9..=13 => read(&process, &model).await,
            14 => read_gone(&process, &model).await,
            _ => free(&process, &model).await,
        }
        let pause = process.rt.random_below(300);
        process.rt.sleep(Duration::from_micros(pause)).await;
    }
}

/// Every block is what the model says; what it left open is now decided.
async fn judge(process: &Process, model: &Shared) {
    let blocks: Vec<_> = model.borrow().blocks.iter().map(|(key, rest)| (*key, *rest)).collect();
    let (mut count, mut bytes) = (0, 0);
    for (block, (log2, fate)) in blocks {
        match process.get(block, log2).await {
            Ok(found) => {
                assert!(found == content(block, log2), "{block} ({fate:?}): other bytes");
                assert!(fate != Fate::Gone, "{block} was freed and came back");
                set(model, block, Fate::There);
                count += 1;
                bytes += 1_u64 << log2;
            }
            Err(failure) => {
                assert_eq!(failure.kind(), Code::Stale, "{block}: {failure}");
                assert!(fate != Fate::There, "{block} was acknowledged and is gone");
                set(model, block, Fate::Gone);
            }
        }
    }
    let status = process.store.status();
    assert_eq!((status.blocks, status.used_bytes), (count, bytes), "space leaked or was lost");
}

async fn live_and_die(world: &World, model: &Shared) {
    let process = Rc::new(world.start().await);
    judge(&process, model).await;
    // Some operations take so long that whole lives of blocks pass meanwhile.
    world.data.set_rates(FaultRates { slow_ppm: 5_000, ..FaultRates::default() });
    let tasks: Vec<_> = (0..1 + world.rt.random_below(12))
        .map(|_| process.rt.spawn(worker(process.clone(), model.clone())))
        .collect();
    let life = world.rt.random_below(60_000);
    world.rt.sleep(Duration::from_micros(life)).await;
    assert!(
        !tasks.iter().any(|task| task.is_finished()) && process.store.problem().is_none(),
        "nothing ends by itself: {:?}",
        process.store.problem()
    );
    world.rt.kill(process.rt.domain());
    let process = Rc::into_inner(process).expect("its tasks are gone");
    world.data.set_rates(FaultRates::default());
    if world.rt.random_below(2) == 0 {
        world.kill(process);
    } else {
        world.cut(process);
    }
}

/// One life of a device, from one seed.
pub fn run(seed: u64) {
    formatted(seed, CHUNKS, |world| async move {
        let model = Shared::default();
        for _ in 0..6 {
            live_and_die(&world, &model).await;
        }
        let process = world.start().await;
        judge(&process, &model).await;
    });
}

#[test]
fn what_was_acknowledged_survives_crashes_and_power_cuts_and_no_space_is_lost() {
    for seed in 0..8 {
        run(seed);
    }
}
