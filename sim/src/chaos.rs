//! What goes wrong while clients are at work.

use std::rc::Rc;
use std::time::Duration;

use bb_nvme::{FaultKind, FaultRates};
use bb_transport::Address;

use crate::bfs::BfsFaults;
use crate::family::Family;
use crate::workload::{Bench, Place, change_from_outside};
use crate::world::{disk_rates, network};

/// A server that does not come back within this has a defect: every outage is shorter.
const START_LIMIT: Duration = Duration::from_secs(90);
/// Longer than W (rule 1) and what a put takes, shorter than the lease of a session.
const AWAY_MAX: Duration = Duration::from_secs(18);
/// After this a client that was away has renewed its session: a request's time, and a back-off.
const HEARD_AGAIN: Duration = Duration::from_secs(4);
/// Superblocks and what belongs to them: damage there is an operator's business.
const DATA_OFFSET: u64 = 2 << 20;

/// Makes things go wrong until the operations of the run are used up.
pub async fn run_chaos(bench: Rc<Bench>, places: Vec<Rc<Place>>) {
    let (world, family) = (&bench.world, bench.family);
    world.net.set_config(network(family));
    let victims = victims(&bench);
    if family.rots() {
        for victim in &victims {
            world.first().disks[*victim].set_rates(disk_rates());
        }
    }
    if family == Family::Power {
        // What is slow is under way when the power fails.
        for disk in &world.first().disks {
            disk.set_rates(FaultRates { slow_ppm: 200_000, ..FaultRates::default() });
        }
        world.first().log_disk.set_rates(FaultRates { slow_ppm: 100_000, ..FaultRates::default() });
    }
    if matches!(family, Family::Mixed | Family::Crash) {
        let slow = FaultRates { slow_ppm: 2_000, ..FaultRates::default() };
        world.first().log_disk.set_rates(slow);
    }
    if family == Family::Hot {
        // One so slow that what is read is often overwritten, freed and used again meanwhile.
        for (number, disk) in world.first().disks.iter().enumerate() {
            let slow_ppm = if number == 0 { 700_000 } else { 50_000 };
            disk.set_rates(FaultRates { slow_ppm, ..FaultRates::default() });
        }
    }
    world.bfs.set_faults(bfs_faults(&bench));
    while bench.left.get() > 0 {
        world.pause(Duration::from_millis(2_500)).await;
        if bench.left.get() == 0 {
            break;
        }
        strike(&bench, &places, &victims).await;
    }
}

/// As many devices as may be hurt.
fn victims(bench: &Bench) -> Vec<usize> {
    let world = &bench.world;
    let first = usize::try_from(world.draw(world.first().disks.len() as u64)).unwrap_or(0);
    (0..usize::from(world.setup.parity)).map(|n| (first + n) % world.first().disks.len()).collect()
}

fn bfs_faults(bench: &Bench) -> BfsFaults {
    let hot = bench.family == Family::Hot;
    let latency_max = Duration::from_millis(if hot { 50 } else { 2 });
    let slow = BfsFaults { latency_max, ..BfsFaults::default() };
    if !bench.family.bad_bfs() {
        return slow;
    }
    let often = if bench.family == Family::Outage { 8 } else { 1 };
    BfsFaults {
        io_error_ppm: 4_000 * often,
        race_ppm: 2_000,
        hang_ppm: 4_000 * often,
        hang_max: Duration::from_secs(6),
        ..slow
    }
}

async fn strike(bench: &Rc<Bench>, places: &[Rc<Place>], victims: &[usize]) {
    let (world, family) = (&bench.world, bench.family);
    change_from_outside(bench);
    match world.draw(8) {
        0..=2 if family.kills() || family.cuts_power() => crash(bench).await,
        3 if family.kills_clients() => kill_client(bench, places),
        0..=2 if family == Family::Away => part(bench, places, AWAY_MAX).await,
        4 if family.rough_network() => part(bench, places, Duration::from_secs(3)).await,
        5 if family.rots() && !victims.is_empty() => rot(bench, victims),
        3..=6 if family == Family::Outage => bfs_outage(bench).await,
        6 if family.bad_bfs() => bfs_outage(bench).await,
        7 if matches!(family, Family::Mixed | Family::Crash | Family::Hot) => stall(bench).await,
        0..=4 if family == Family::DeviceGone => fail_device(bench, victims[0]),
        _ => {}
    }
}

/// Waits, not for long, until a power cut has something to destroy: most moments have not.
async fn aim(bench: &Rc<Bench>) {
    let world = &bench.world;
    for _ in 0..2_000 {
        let disks = world.first().all_disks();
        if disks.map(|disk| disk.unflushed_blocks()).sum::<usize>() > 0 {
            return;
        }
        world.rt.sleep(Duration::from_micros(20)).await;
    }
}

async fn crash(bench: &Rc<Bench>) {
    let world = &bench.world;
    let power = bench.family.cuts_power() && world.one_in(2);
    let gently = !power && world.one_in(6);
    bench.note(|| format!("the server ends; power: {power}, in good order: {gently}"));
    if gently {
        world.first().stop(Duration::from_secs(5)).await;
    } else if power {
        aim(bench).await;
        world.first().cut_power();
    } else {
        world.first().kill();
    }
    world.pause(Duration::from_millis(1_500)).await;
    // Now and then it dies again before it serves.
    while world.one_in(4) {
        world.first().start();
        world.pause(Duration::from_millis(30)).await;
        if world.one_in(2) && bench.family.cuts_power() {
            world.first().cut_power();
        } else {
            world.first().kill();
        }
    }
    restart(bench).await;
}

async fn restart(bench: &Rc<Bench>) {
    let world = &bench.world;
    if !world.first().start_until_serving(START_LIMIT).await {
        bench.violation(format!("the server does not start: {:?}", world.first().start_mistake()));
    }
    bench.note(|| "the server serves".to_owned());
}

/// A client process dies.
pub fn kill_client(bench: &Bench, places: &[Rc<Place>]) {
    let at = usize::try_from(bench.world.draw(places.len() as u64)).unwrap_or(0);
    let process = places[at].process.borrow_mut().take();
    if let Some(process) = process {
        bench.note(|| format!("c{} is killed", process.actor.0));
        bench.world.tally.borrow_mut().client_kills += 1;
        bench.world.kill_client(&process);
        bench.world.kill_client(&process);
    }
}

/// A client and the server do not reach each other, in one direction or both.
async fn part(bench: &Bench, places: &[Rc<Place>], longest: Duration) {
    let world = &bench.world;
    let at = usize::try_from(world.draw(places.len() as u64)).unwrap_or(0);
    let number = places[at].process.borrow().as_ref().map(|process| process.actor.0);
    let Some(number) = number else { return };
    let client = Address::from(format!("client{number}").as_str());
    let way = world.draw(3);
    bench.note(|| format!("partition of c{number}, way {way}"));
    world.tally.borrow_mut().partitions += 1;
    match way {
        0 => world.net.block(&client, &world.first().address),
        1 => world.net.block(&world.first().address, &client),
        _ => world.net.partition(&client, &world.first().address),
    }
    world.pause(longest).await;
    world.net.heal(&client, &world.first().address);
    if longest >= AWAY_MAX {
        // Two of these in a row would outlast a session's lease.
        world.rt.sleep(HEARD_AGAIN).await;
    }
}

/// The device goes away, or fails at its next write or flush: the server may not use it again
/// (rule 13).
fn fail_device(bench: &Bench, victim: usize) {
    let disk = &bench.world.first().disks[victim];
    let way = bench.world.draw(3);
    bench.note(|| format!("disk {victim} fails, way {way}"));
    match way {
        0 => disk.set_gone(true),
        1 => disk.inject(FaultKind::WriteError),
        _ => disk.inject(FaultKind::FailedFlush),
    }
}

fn rot(bench: &Bench, victims: &[usize]) {
    let world = &bench.world;
    let at = usize::try_from(world.draw(victims.len() as u64)).unwrap_or(0);
    let disk = &world.first().disks[victims[at]];
    let used: Vec<u64> =
        disk.blocks_in_use().into_iter().filter(|offset| *offset >= DATA_OFFSET).collect();
    for _ in 0..used.len().min(20) {
        let block = used[usize::try_from(world.draw(used.len() as u64)).unwrap_or(0)];
        disk.rot(block);
    }
    bench.note(|| format!("disk {} rots", victims[at]));
}

/// The backing file system is full, or away, for a while.
pub async fn bfs_outage(bench: &Bench) {
    let world = &bench.world;
    if world.one_in(2) {
        bench.note(|| "the backing file system is full".to_owned());
        world.bfs.set_capacity(0);
        world.pause(Duration::from_secs(3)).await;
        world.bfs.set_capacity(1 << 40);
    } else {
        bench.note(|| "the backing file system is away".to_owned());
        world.tally.borrow_mut().unmounts += 1;
        world.bfs.set_mounted(false);
        world.pause(Duration::from_secs(3)).await;
        world.bfs.set_mounted(true);
    }
    bench.note(|| "the backing file system is well".to_owned());
}

/// A device hangs for a while.
async fn stall(bench: &Bench) {
    let world = &bench.world;
    let at = usize::try_from(world.draw(world.first().disks.len() as u64 + 1)).unwrap_or(0);
    let disk = world.first().disks.get(at).unwrap_or(&world.first().log_disk);
    bench.note(|| format!("disk {at} stalls"));
    disk.stall();
    world.pause(Duration::from_secs(2)).await;
    disk.release();
}

/// Nothing goes wrong any more.
pub async fn heal(bench: &Rc<Bench>) {
    let world = &bench.world;
    let calm = bb_transport::sim::SimNetConfig::calm();
    world.net.set_config(calm);
    world.net.heal_all();
    world.bfs.set_faults(BfsFaults::default());
    world.bfs.set_capacity(1 << 40);
    world.bfs.set_mounted(true);
    for disk in world.first().all_disks() {
        disk.set_rates(FaultRates::default());
        disk.release();
    }
    bench.note(|| "everything is healed".to_owned());
    restart(bench).await;
}
