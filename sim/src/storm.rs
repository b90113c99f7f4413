//! What goes wrong in a cluster while clients are at work: no more than K nodes are hurt at a time,
//! unless all of them lose their power together.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use bb_nvme::FaultRates;
use bb_transport::sim::SimNetConfig;

use crate::bfs::BfsFaults;
use crate::chaos::{bfs_outage, kill_client};
use crate::family::Family;
use crate::workload::{Bench, Place, change_from_outside};
use crate::world::{Machine, network};

/// A cluster whose faults have ended is whole again within this.
const WHOLE_WITHIN: Duration = Duration::from_secs(90);
/// Longer than it takes until a node that does not answer is down, and its partitions are served
/// by others.
const FAIL_OVER: Duration = Duration::from_secs(12);
/// How long an operator waits before looking after a node whose log was damaged.
const OPERATOR: Duration = Duration::from_secs(20);

/// What goes wrong now.
struct Storm {
    bench: Rc<Bench>,
    places: Vec<Rc<Place>>,
    /// Machines that are hurt.
    hurt: RefCell<BTreeSet<usize>>,
    /// A log is to be damaged yet: one is enough for a run.
    damages: Cell<bool>,
}

/// A machine that is hurt, for as long as this lives.
struct Hurt {
    storm: Rc<Storm>,
    at: usize,
}

impl Hurt {
    fn machine(&self) -> &Rc<Machine> {
        &self.storm.bench.world.machines[self.at]
    }
}

impl Drop for Hurt {
    fn drop(&mut self) {
        self.storm.hurt.borrow_mut().remove(&self.at);
    }
}

/// Makes things go wrong until the operations of the run are used up.
pub async fn run_storm(bench: Rc<Bench>, places: Vec<Rc<Place>>) {
    let world = &bench.world;
    let family = bench.family;
    world.net.set_config(network(family));
    if matches!(family, Family::NodesPower | Family::NodesMixed) {
        // What is slow is under way when the power fails.
        let slow = FaultRates { slow_ppm: 100_000, ..FaultRates::default() };
        for disk in world.machines.iter().flat_map(|machine| machine.all_disks()) {
            disk.set_rates(slow);
        }
    }
    let latency_max = Duration::from_millis(2);
    let mut bfs = BfsFaults { latency_max, ..BfsFaults::default() };
    if family.bad_bfs() {
        bfs = BfsFaults {
            io_error_ppm: 4_000,
            race_ppm: 2_000,
            hang_ppm: 4_000,
            hang_max: Duration::from_secs(6),
            ..bfs
        };
    }
    world.bfs.set_faults(bfs);
    let storm = Rc::new(Storm {
        bench: bench.clone(),
        places,
        hurt: RefCell::default(),
        // Not in all: much of such a run is spent on the operator, and few other things go wrong. But
        // in so many that the fault does not depend on luck among the runs of `./x test`.
        damages: Cell::new(
            matches!(family, Family::NodesPower | Family::NodesMixed) && !world.one_in(4),
        ),
    });
    // As many things go wrong at a time as the cluster is to survive.
    let count = if family == Family::NodesMixed { world.setup.spare_nodes() } else { 1 };
    let fronts: Vec<_> = (0..count).map(|_| world.rt.spawn(storm.clone().blow())).collect();
    for front in fronts {
        let _ = front.await;
    }
}

impl Storm {
    async fn blow(self: Rc<Self>) {
        let world = &self.bench.world;
        while self.bench.left.get() > 0 {
            world.pause(Duration::from_millis(2_000)).await;
            if self.bench.left.get() == 0 {
                return;
            }
            change_from_outside(&self.bench);
            self.strike().await;
        }
    }

    async fn strike(self: &Rc<Self>) {
        let world = &self.bench.world;
        // As early as it can be: there is no log to be damaged once a group lacks a block.
        if self.damages.get() && self.hurt.borrow().is_empty() && !self.has_degraded_groups() {
            return self.site_power_cut(true).await;
        }
        match self.bench.family {
            Family::NodesCalm => self.late_join().await,
            Family::NodesCrash => self.crash(world.setup.spare_nodes()).await,
            Family::NodesPower => match world.draw(4) {
                0 => self.crash(1).await,
                _ => self.site_power_cut(false).await,
            },
            Family::NodesNet => match world.draw(6) {
                0 => self.crash(1).await,
                1 => self.part_client().await,
                2 | 3 => self.part_servers().await,
                _ => self.cut_off().await,
            },
            Family::NodesSlow => match world.draw(6) {
                0 => self.crash(1).await,
                1 | 2 => self.stall().await,
                _ => self.slow_down().await,
            },
            Family::NodesDrift => match world.draw(4) {
                0 => self.crash(1).await,
                1 => self.part_servers().await,
                _ => self.cut_off().await,
            },
            _ => match world.draw(9) {
                0 | 1 => self.crash(1).await,
                2 => self.part_client().await,
                3 => self.part_servers().await,
                4 => self.cut_off().await,
                5 => self.slow_down().await,
                6 => kill_client(&self.bench, &self.places),
                7 => bfs_outage(&self.bench).await,
                _ => self.site_power_cut(false).await,
            },
        }
    }

    /// A machine that is well, to be hurt; none where K are hurt already.
    fn victim(self: &Rc<Self>) -> Option<Hurt> {
        let world = &self.bench.world;
        let mut hurt = self.hurt.borrow_mut();
        if hurt.len() >= world.setup.spare_nodes() {
            return None;
        }
        let well: Vec<usize> = (0..world.machines.len()).filter(|at| !hurt.contains(at)).collect();
        let at = well[usize::try_from(world.draw(well.len() as u64)).unwrap_or(0)];
        hurt.insert(at);
        Some(Hurt { storm: self.clone(), at })
    }

    /// All machines, to be hurt together.
    fn everybody(self: &Rc<Self>) -> Option<Vec<Hurt>> {
        let mut hurt = self.hurt.borrow_mut();
        if !hurt.is_empty() {
            return None;
        }
        let all = 0..self.bench.world.machines.len();
        hurt.extend(all.clone());
        Some(all.map(|at| Hurt { storm: self.clone(), at }).collect())
    }

    /// For a moment, or until the others have gone on without them.
    async fn outage(&self) {
        let world = &self.bench.world;
        if world.one_in(3) {
            world.rt.sleep(FAIL_OVER / 3).await;
            world.pause(FAIL_OVER).await;
        } else {
            world.pause(Duration::from_millis(2_500)).await;
        }
    }

    async fn whole_again(&self) {
        let world = &self.bench.world;
        if !world.until_whole(WHOLE_WITHIN).await {
            let missing = world.what_is_missing();
            self.bench.violation(format!("the cluster does not become whole: {missing}"));
        }
    }

    /// True if a group on record was committed without one of its members.
    fn has_degraded_groups(&self) -> bool {
        let nodes = self.bench.world.machines.iter().filter_map(|machine| machine.node());
        nodes.flat_map(|node| node.partitions().collect::<Vec<_>>()).any(|partition| {
            let state = partition.state();
            state.pgs.iter().any(|(_, pg)| pg.home.as_ref().is_some_and(|h| h.absent_members != 0))
        })
    }

    async fn late_join(&self) {
        let world = &self.bench.world;
        let Some(machine) = world.machines.iter().find(|machine| !machine.is_member.get()) else {
            return;
        };
        self.bench.note(|| format!("{:?} joins", machine.address));
        world.tally.borrow_mut().joined += 1;
        if let Err(why) = world.take_in(machine).await {
            return self.bench.violation(why);
        }
        self.whole_again().await;
    }

    /// Up to `most` servers end, together or not, and start again.
    async fn crash(self: &Rc<Self>, most: usize) {
        let world = &self.bench.world;
        let all = world.one_in(12);
        let count = 1 + usize::try_from(world.draw(most as u64)).unwrap_or(0);
        let victims = if all {
            self.everybody().unwrap_or_default()
        } else {
            (0..count).filter_map(|_| self.victim()).collect()
        };
        for hurt in &victims {
            let machine = hurt.machine();
            machine.is_kept_up.set(false);
            let gently = world.one_in(6);
            let address = &machine.address;
            self.bench.note(|| format!("{address:?} ends; in good order: {gently}"));
            if gently {
                machine.stop(Duration::from_secs(5)).await;
            } else {
                machine.kill();
            }
            if world.one_in(2) {
                world.pause(Duration::from_secs(3)).await;
            }
        }
        self.outage().await;
        for hurt in &victims {
            let machine = hurt.machine();
            // Now and then it dies again before it serves.
            while world.one_in(5) {
                machine.start();
                world.pause(Duration::from_millis(200)).await;
                machine.kill();
            }
            self.bench.note(|| format!("{:?} starts", machine.address));
            machine.is_kept_up.set(true);
        }
        if world.one_in(2) {
            self.whole_again().await;
        }
    }

    /// Waits, not for long, until a power cut has something to destroy.
    async fn aim(&self) {
        let world = &self.bench.world;
        for _ in 0..2_000 {
            let disks = world.machines.iter().flat_map(|machine| machine.all_disks());
            if disks.map(|disk| disk.unflushed_blocks()).sum::<usize>() > 0 {
                return;
            }
            world.rt.sleep(Duration::from_micros(20)).await;
        }
    }

    /// All machines lose their power, or one of them alone; where it `damages`, a log with it.
    async fn site_power_cut(self: &Rc<Self>, mut damages: bool) {
        let world = &self.bench.world;
        if !damages && world.one_in(3) {
            // One machine alone.
            let Some(hurt) = self.victim() else { return };
            hurt.machine().is_kept_up.set(false);
            self.aim().await;
            self.bench.note(|| format!("{:?} loses its power", hurt.machine().address));
            hurt.machine().cut_power();
            self.outage().await;
            hurt.machine().is_kept_up.set(true);
            return;
        }
        if damages {
            // What only one log holds no damage may hit; and what was written while a node was away
            // lacks a block until there is a rebuild.
            self.whole_again().await;
            damages = self.damages.get() && !self.has_degraded_groups();
        }
        let Some(all) = self.everybody() else { return };
        let at = usize::try_from(world.draw(all.len() as u64)).unwrap_or(0);
        let before = if damages { Some(all[at].machine().log_disk.image()) } else { None };
        if damages {
            world.pause(Duration::from_millis(400)).await;
        }
        self.aim().await;
        self.bench.note(|| "the whole site loses its power".to_owned());
        world.tally.borrow_mut().site_power_cuts += 1;
        for hurt in &all {
            let machine = hurt.machine();
            machine.note_devices();
            machine.is_kept_up.set(false);
            machine.cut_power();
        }
        let hit = before.is_some_and(|before| self.damage_log(all[at].machine(), &before));
        for hurt in &all {
            // With a damaged log nobody else may be missed: that would be a second loss.
            let longest = Duration::from_millis(if hit { 50 } else { 1_000 });
            world.pause(longest).await;
            if !hit && world.one_in(8) {
                world.pause(FAIL_OVER).await;
            }
            hurt.machine().is_kept_up.set(true);
        }
        if hit {
            self.look_after(all[at].machine()).await;
        }
        drop(all);
    }

    /// Of what the log got since `before`, either a record in the middle rots, or the last records
    /// are gone, acknowledged or not. False if there is nothing.
    fn damage_log(&self, machine: &Machine, before: &bb_nvme::SimImage) -> bool {
        const BLOCK: usize = 4096;
        /// What every group of records has at its beginning.
        const HEAD_BYTES: usize = 64;
        let (world, disk) = (&self.bench.world, &machine.log_disk);
        let bytes = usize::try_from(world.setup.log_bytes).unwrap_or(0);
        let (after, now) = (disk.image(), disk.peek(0, bytes));
        disk.restore(before);
        let then = disk.peek(0, bytes);
        let changed: Vec<usize> = (0..bytes / BLOCK)
            .filter(|n| now[n * BLOCK..(n + 1) * BLOCK] != then[n * BLOCK..(n + 1) * BLOCK])
            .collect();
        let Some(victim) = changed.get(changed.len() / 2) else { return false };
        let address = &machine.address;
        if world.one_in(2) {
            self.bench.note(|| format!("the log of {address:?} has lost {} blocks", changed.len()));
            let devices = machine.devices.borrow();
            world.lost_blocks.borrow_mut().extend(devices.iter());
        } else {
            self.bench.note(|| format!("the log of {address:?} rots at block {victim}"));
            disk.restore(&after);
            let at = victim * BLOCK;
            let rotten: Vec<u8> = now[at..at + HEAD_BYTES].iter().map(|byte| !byte).collect();
            disk.poke(at as u64, &rotten);
        }
        world.tally.borrow_mut().logs_damaged += 1;
        self.damages.set(false);
        true
    }

    /// What an operator does about a node whose log is damaged: where it does not come back by
    /// itself, it is formatted, and joins as a new one.
    async fn look_after(&self, machine: &Rc<Machine>) {
        let world = &self.bench.world;
        world.rt.sleep(OPERATOR).await;
        if machine.is_serving() {
            return self.bench.note(|| format!("{:?} serves all the same", machine.address));
        }
        machine.is_kept_up.set(false);
        machine.kill();
        self.bench.note(|| format!("{:?} is given up and replaced", machine.address));
        world.tally.borrow_mut().replaced += 1;
        let entry = world.map().and_then(|map| {
            let mut nodes = map.nodes.iter().filter(|node| !node.has_left());
            nodes.find(|node| node.address == *machine.address.0).cloned()
        });
        let Some(entry) = entry else {
            return self.bench.violation("nobody knows the damaged node".to_owned());
        };
        if let Err(why) = world.give_up_node(&entry, false).await {
            return self.bench.violation(format!("the damaged node cannot be given up: {why}"));
        }
        if let Err(why) = world.take_in(machine).await {
            return self.bench.violation(why);
        }
        self.whole_again().await;
    }

    /// Two servers do not reach each other, in one direction or both.
    async fn part_servers(self: &Rc<Self>) {
        let world = &self.bench.world;
        let Some(one) = self.victim() else { return };
        let other = self.another_than(one.at);
        let (a, b) = (&one.machine().address, &world.machines[other].address);
        let both = world.one_in(2);
        self.bench.note(|| format!("from {a:?} nothing reaches {b:?}; both ways: {both}"));
        if both {
            world.tally.borrow_mut().parted_two_ways += 1;
            world.net.partition(a, b);
        } else {
            world.tally.borrow_mut().parted_one_way += 1;
            world.net.block(a, b);
        }
        self.outage().await;
        world.net.heal(a, b);
        self.bench.note(|| format!("{a:?} and {b:?} reach each other"));
    }

    fn another_than(&self, at: usize) -> usize {
        let count = self.bench.world.machines.len();
        let other = usize::try_from(self.bench.world.draw(count as u64 - 1)).unwrap_or(0);
        if other < at { other } else { other + 1 }
    }

    /// A server reaches none of the others, or is not reached by them, or both.
    async fn cut_off(self: &Rc<Self>) {
        let world = &self.bench.world;
        let Some(hurt) = self.victim() else { return };
        let own = &hurt.machine().address;
        let way = world.draw(4);
        self.bench.note(|| format!("{own:?} is cut off from the others, way {way}"));
        world.tally.borrow_mut().cut_off += 1;
        for other in world.machines.iter().map(|machine| &machine.address).filter(|a| *a != own) {
            match way {
                0 => world.net.block(own, other),
                1 => world.net.block(other, own),
                _ => world.net.partition(own, other),
            }
        }
        self.outage().await;
        for other in world.machines.iter().map(|machine| &machine.address) {
            world.net.heal(own, other);
        }
        self.bench.note(|| format!("{own:?} reaches the others again"));
    }

    /// A client and a server do not reach each other, in one direction or both.
    async fn part_client(self: &Rc<Self>) {
        let world = &self.bench.world;
        let at = usize::try_from(world.draw(self.places.len() as u64)).unwrap_or(0);
        let number = self.places[at].process.borrow().as_ref().map(|process| process.actor.0);
        let Some(number) = number else { return };
        let client = bb_transport::Address::from(format!("client{number}").as_str());
        let at = usize::try_from(world.draw(world.machines.len() as u64)).unwrap_or(0);
        let server = &world.machines[at].address;
        let way = world.draw(3);
        self.bench.note(|| format!("partition of c{number} and {server:?}, way {way}"));
        world.tally.borrow_mut().partitions += 1;
        match way {
            0 => world.net.block(&client, server),
            1 => world.net.block(server, &client),
            _ => world.net.partition(&client, server),
        }
        world.pause(Duration::from_secs(4)).await;
        world.net.heal(&client, server);
    }

    /// A machine's disks or its network are slow for a while.
    async fn slow_down(self: &Rc<Self>) {
        let world = &self.bench.world;
        let Some(hurt) = self.victim() else { return };
        let machine = hurt.machine();
        let way = world.draw(3);
        self.bench.note(|| format!("{:?} is slow, way {way}", machine.address));
        world.tally.borrow_mut().slow_machines += 1;
        let slow = FaultRates { slow_ppm: 700_000, ..FaultRates::default() };
        if way != 1 {
            machine.all_disks().for_each(|disk| disk.set_rates(slow));
        }
        if way != 0 {
            world.net.slow_down(&machine.address, Duration::from_millis(40));
        }
        world.pause(Duration::from_secs(10)).await;
        machine.all_disks().for_each(|disk| disk.set_rates(FaultRates::default()));
        world.net.slow_down(&machine.address, Duration::ZERO);
    }

    /// A disk hangs for a while.
    async fn stall(self: &Rc<Self>) {
        let world = &self.bench.world;
        let Some(hurt) = self.victim() else { return };
        let machine = hurt.machine();
        let at = usize::try_from(world.draw(machine.disks.len() as u64 + 1)).unwrap_or(0);
        let disk = machine.disks.get(at).unwrap_or(&machine.log_disk);
        self.bench.note(|| format!("disk {at} of {:?} stalls", machine.address));
        world.tally.borrow_mut().slow_machines += 1;
        disk.stall();
        world.pause(Duration::from_secs(6)).await;
        disk.release();
    }
}

/// Nothing goes wrong any more, and the cluster becomes whole.
pub async fn calm_down(bench: &Rc<Bench>) {
    let world = &bench.world;
    world.net.set_config(SimNetConfig::calm());
    world.net.heal_all();
    world.bfs.set_faults(BfsFaults::default());
    world.bfs.set_capacity(1 << 40);
    world.bfs.set_mounted(true);
    for machine in &world.machines {
        for disk in machine.all_disks() {
            disk.set_rates(FaultRates::default());
            disk.release();
        }
        world.net.slow_down(&machine.address, Duration::ZERO);
        machine.is_kept_up.set(machine.is_member.get());
    }
    bench.note(|| "everything is healed".to_owned());
    if !world.until_whole(WHOLE_WITHIN).await {
        let missing = world.what_is_missing();
        bench.violation(format!("the cluster does not become whole: {missing}"));
    }
    bench.note(|| "the cluster is whole".to_owned());
}
