//! Replicas under crashes, lost messages, cut-off nodes and changes of the map.

#![expect(clippy::cast_possible_truncation, reason = "small numbers, drawn by lot")]

mod world;

use std::rc::Rc;
use std::time::Duration;

use bb_proto::{NodeId, PartitionId};
use bb_runtime::Executor;

use self::world::{PARTITIONS, World};

fn simulate<F: Future<Output = ()>>(seed: u64, run: impl FnOnce(bb_runtime::Rt) -> F) -> u64 {
    let executor = Executor::simulated(seed);
    let rt = executor.rt();
    executor.block_on(run(rt));
    executor.trace_hash()
}

/// Waits until every partition has all its copies and nothing is under way.
async fn settle(world: &Rc<World>, copies: usize) {
    for _ in 0..2_000 {
        world.refill(copies);
        world.rt.sleep(Duration::from_millis(100)).await;
        let whole = world
            .map
            .borrow()
            .partitions
            .iter()
            .all(|entry| entry.backups.len() + 1 == copies && entry.filling.is_empty());
        let served = (0..PARTITIONS).map(PartitionId).all(|at| {
            let primary = NodeId(world.map.borrow().partitions[at.0 as usize].primary);
            world.life(primary).is_some_and(|life| life.host.partition(at).is_some())
        });
        if whole && served {
            world.rt.sleep(Duration::from_secs(10)).await;
            return;
        }
    }
    panic!("the cluster does not become whole: {}", world.describe());
}

fn check(world: &World, seed: u64) {
    assert_eq!(*world.problems.borrow(), Vec::<String>::new(), "seed {seed}");
    assert_eq!(world.lost(), [], "seed {seed}: acknowledged, and not known");
    for (at, entry) in (0..).map(PartitionId).zip(&world.map.borrow().partitions) {
        let bytes = |node: u32| {
            let life = world.life(NodeId(node)).expect("all are up");
            let replica = life.host.replica(at).expect("a member has a replica");
            let applied = replica.state().applied();
            (applied, replica.state_bytes())
        };
        let primary = bytes(entry.primary);
        for backup in &entry.backups {
            let other = bytes(*backup);
            let text = || world.describe();
            assert_eq!(other.0, primary.0, "seed {seed}: {at}, node {backup} lags: {}", text());
            assert!(other == primary, "seed {seed}: partition {at}: node {backup} differs");
        }
    }
}

/// Writers at work for as long as `chaos` runs.
async fn with_writers<F: Future<Output = ()>>(world: &Rc<World>, chaos: F) {
    let stop = Rc::new(std::cell::Cell::new(false));
    let writers: Vec<_> = (0..6)
        .map(|n| {
            let (world, stop) = (world.clone(), stop.clone());
            world.rt.clone().spawn(async move {
                while !stop.get() {
                    world.write(PartitionId(n % PARTITIONS)).await;
                    let pause = world.rt.random_below(10_000);
                    world.rt.sleep(Duration::from_micros(pause)).await;
                }
            })
        })
        .collect();
    chaos.await;
    stop.set(true);
    for writer in writers {
        let _ = writer.await;
    }
}

#[test]
fn replicas_that_nothing_happens_to_are_equal() {
    simulate(1, |rt| async move {
        let world = World::new(&rt, 3, 3);
        with_writers(&world, rt.sleep(Duration::from_secs(5))).await;
        settle(&world, 3).await;
        assert!(world.acked.borrow().len() > 500, "{}", world.acked.borrow().len());
        check(&world, 1);
    });
}

/// One thing that goes wrong, and what a cluster does about it.
async fn one_fault(world: &Rc<World>, copies: usize) {
    let rt = &world.rt;
    let node = NodeId(1 + rt.random_below(u64::from(world.node_count())) as u32);
    match rt.random_below(4) {
        0 => {
            // Faster than anybody notices.
            world.kill(node);
            rt.sleep(Duration::from_millis(rt.random_below(50))).await;
            world.start(node);
        }
        1 => {
            world.kill(node);
            rt.sleep(Duration::from_millis(rt.random_below(500))).await;
            world.take_down(node);
            rt.sleep(Duration::from_millis(rt.random_below(1_000))).await;
            world.start(node);
        }
        2 => {
            // Goes on working for itself, and comes back as another process.
            world.cut_off.borrow_mut().insert(node);
            rt.sleep(Duration::from_millis(rt.random_below(500))).await;
            world.take_down(node);
            rt.sleep(Duration::from_millis(rt.random_below(1_000))).await;
            if rt.random_below(2) == 0 {
                world.cut_off.borrow_mut().remove(&node);
                rt.sleep(Duration::from_millis(rt.random_below(300))).await;
            }
            world.kill(node);
            world.cut_off.borrow_mut().remove(&node);
            world.start(node);
        }
        _ => {
            // All at once.
            let all: Vec<NodeId> = (1..=world.node_count()).map(NodeId).collect();
            all.iter().for_each(|node| world.kill(*node));
            for node in all {
                rt.sleep(Duration::from_millis(rt.random_below(300))).await;
                world.start(node);
            }
        }
    }
    world.refill(copies);
    if rt.random_below(2) == 0 {
        settle_roughly(world).await;
    }
}

async fn settle_roughly(world: &Rc<World>) {
    world.rt.sleep(Duration::from_millis(world.rt.random_below(4_000))).await;
}

fn storm(seed: u64) -> u64 {
    simulate(seed, |rt| async move {
        let nodes = 3 + rt.random_below(3) as u32;
        let copies = 2 + rt.random_below(2) as usize;
        let world = World::new(&rt, nodes, copies as u32);
        world.rough.set(true);
        with_writers(&world, async {
            for _ in 0..8 {
                rt.sleep(Duration::from_millis(rt.random_below(1_500))).await;
                one_fault(&world, copies).await;
                // At most one node is down at a time: K is at least one.
                settle_members(&world, copies).await;
            }
        })
        .await;
        world.rough.set(false);
        settle(&world, copies).await;
        check(&world, seed);
    })
}

/// Waits until the next fault cannot take the last copy.
async fn settle_members(world: &Rc<World>, copies: usize) {
    for _ in 0..3_000 {
        let enough = world.map.borrow().partitions.iter().all(|entry| !entry.backups.is_empty());
        if enough {
            return;
        }
        world.refill(copies);
        world.rt.sleep(Duration::from_millis(50)).await;
    }
    panic!("no second copies: {}", world.describe());
}

#[test]
fn replicas_survive_storms() {
    let seeds = std::env::var("BB_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(25);
    let first = std::env::var("BB_SEED").ok().and_then(|n| n.parse().ok()).unwrap_or(0);
    (first..first + seeds).for_each(|seed| {
        storm(seed);
    });
}

#[test]
fn the_same_storm_runs_the_same_way() {
    assert_eq!(storm(3), storm(3));
}
