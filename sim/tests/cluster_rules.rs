//! Directed tests of DESIGN.md's rules that need several nodes: real clients and servers in the
//! simulator's world.

use std::rc::Rc;
use std::time::Duration;

use bb_client::ClientOptions;
use bb_proto::meta::Residency;
use bb_proto::{Fid, NodeId, PartitionId, RegionIndex, Tick, partition_of};
use bb_runtime::Executor;
use bb_sim::bfs::BfsFaults;
use bb_sim::family::Family;
use bb_sim::world::{ClientProcess, Machine, Setup, World};
use bb_transport::Address;

/// Bytes of a region in these worlds.
const REGION_BYTES: u64 = 1 << 20;
/// Longer than a fail-over takes.
const FAIL_OVER: Duration = Duration::from_secs(12);

/// Runs a test in a whole cluster of 2+1.
fn in_cluster<F: Future>(nodes: usize, test: impl FnOnce(Rc<World>) -> F) -> F::Output {
    in_cluster_of(nodes, 1, test)
}

fn in_cluster_of<F: Future>(
    nodes: usize,
    parity: u8,
    test: impl FnOnce(Rc<World>) -> F,
) -> F::Output {
    let executor = Executor::simulated(1);
    let rt = executor.rt();
    executor.block_on(async {
        let setup = Setup::draw(&rt, Family::NodesCalm);
        let setup = Setup { nodes, devices: 2, data: 2, parity, partitions: 8, ..setup };
        let world = World::new(&rt, setup);
        world.begin(0).await.expect("a cluster");
        // Until primaries are spread.
        rt.sleep(FAIL_OVER * 2).await;
        test(world).await
    })
}

async fn client(world: &World) -> Rc<ClientProcess> {
    let options =
        ClientOptions { command_timeout: Duration::from_secs(120), ..ClientOptions::default() };
    world.connect(options).await.expect("connected")
}

fn home_of(fid: Fid, region: u32) -> PartitionId {
    partition_of(fid, RegionIndex(region), 8)
}

/// The machine whose node is primary of a partition.
fn primary(world: &World, partition: PartitionId) -> Rc<Machine> {
    let map = world.map().expect("a map");
    let node = NodeId(map.partition(partition).expect("there").primary);
    let is_it = |machine: &&Rc<Machine>| {
        machine.node().is_some_and(|running| running.context().shared.node == node)
    };
    world.machines.iter().find(is_it).cloned().expect("its machine runs")
}

/// It ends, and stays away.
fn take_away(machine: &Machine) {
    machine.is_kept_up.set(false);
    machine.kill();
}

fn bytes_of(len: usize, salt: usize) -> Vec<u8> {
    (0..len).map(|at| u8::try_from((at + salt) % 251).unwrap_or(0) + 1).collect()
}

const FLAGS: i32 = libc::O_RDWR | libc::O_CREAT;

async fn expect_bytes(world: &World, path: &[u8], expected: &[u8]) {
    let reader = client(world).await;
    let file = reader.client.open(path, libc::O_RDONLY, 0).await.expect("opened");
    let mut got = vec![0; expected.len() + 1];
    let len = file.pread(&mut got, 0).await.expect("read");
    assert_eq!(len, expected.len());
    assert!(got[..len] == *expected, "other bytes than were written");
    world.kill_client(&reader);
}

/// A file whose first two regions have different primaries.
async fn spread_file(world: &World, process: &ClientProcess) -> (bb_client::File, Vec<u8>) {
    for n in 0..50 {
        let path = format!("/spread{n}").into_bytes();
        let file = process.client.open(&path, FLAGS, 0o644).await.expect("created");
        let (one, other) = (home_of(file.fid(), 0), home_of(file.fid(), 1));
        if one != other && primary(world, one).address != primary(world, other).address {
            return (file, path);
        }
        file.close().await.expect("closed");
    }
    panic!("no file's regions are apart");
}

#[test]
fn rule_2_half_a_commit_is_made_whole_though_the_participants_primary_died() {
    in_cluster(4, |world| async move {
        let writer = client(&world).await;
        let (file, path) = spread_file(&world, &writer).await;
        let participant = primary(&world, home_of(file.fid(), 1));
        let expected = bytes_of(40_000, 3);
        let zeros = vec![0; usize::try_from(REGION_BYTES).expect("small") - 20_000];
        file.pwrite(&expected, REGION_BYTES - 20_000).await.expect("written");
        // Home commits; the participant never hears of it.
        let own = Address::from("client1");
        world.net.partition(&own, &participant.address);
        let syncing = writer.rt.spawn(async move { file.fsync().await });
        world.rt.sleep(Duration::from_millis(500)).await;
        take_away(&participant);
        world.net.heal_all();
        syncing.await.expect("alive").expect("durable after the fail-over");
        expect_bytes(&world, &path, &[zeros, expected].concat()).await;
    });
}

#[test]
fn rule_3_a_commit_that_comes_again_after_a_fail_over_is_applied_once() {
    in_cluster(4, |world| async move {
        let writer = client(&world).await;
        let file = writer.client.open(b"/again", FLAGS, 0o644).await.expect("created");
        let home = primary(&world, home_of(file.fid(), 0));
        let expected = bytes_of(60_000, 5);
        file.pwrite(&expected, 0).await.expect("written");
        // Home answers, and nobody hears it.
        world.net.block(&home.address, &Address::from("client1"));
        let syncing = writer.rt.spawn(async move { file.fsync().await });
        world.rt.sleep(Duration::from_millis(800)).await;
        take_away(&home);
        world.net.heal_all();
        syncing.await.expect("alive").expect("durable after the fail-over");
        expect_bytes(&world, b"/again", &expected).await;
        let partitions = world.nodes().into_iter().flat_map(|node| node.partitions());
        let dirty: u64 = partitions.map(|p| p.state().regions.totals().dirty).sum();
        assert_eq!(dirty, expected.len() as u64);
    });
}

#[test]
fn rule_1_the_horizon_outlives_its_primary_and_orphans_are_freed_by_the_next() {
    in_cluster(4, |world| async move {
        let writer = client(&world).await;
        let file = writer.client.open(b"/orphan", FLAGS, 0o644).await.expect("created");
        let id = home_of(file.fid(), 0);
        let home = primary(&world, id);
        file.pwrite(&bytes_of(1_000, 1), 0).await.expect("written");
        file.fsync().await.expect("durable: home knows the file and its region");
        file.pwrite(&bytes_of(200_000, 7), 0).await.expect("written");
        // Blocks reach their members, the commit does not reach home, and the writer dies.
        world.net.block(&Address::from("client1"), &home.address);
        let syncing = writer.rt.spawn(async move { drop(file.fsync().await) });
        world.rt.sleep(Duration::from_secs(5)).await;
        world.kill_client(&writer);
        drop(syncing);
        world.net.heal_all();
        // Members ask about what is older than W, and home moves its horizon first.
        world.rt.sleep(Duration::from_secs(40)).await;
        let horizon = |machine: &Machine| {
            let node = machine.node().expect("runs");
            let replica = node.replicas().into_iter().find(|replica| replica.id() == id);
            replica.map_or(Tick(0), |replica| replica.state().horizon())
        };
        let before = horizon(&home);
        assert!(before > Tick(0), "nobody has asked");
        take_away(&home);
        world.rt.sleep(FAIL_OVER).await;
        let next = primary(&world, id);
        assert_ne!(next.address, home.address);
        assert!(horizon(&next) >= before, "the horizon went with its primary");
    });
}

#[test]
fn rule_1_a_partition_that_lost_its_state_never_says_that_a_block_is_of_no_use() {
    in_cluster(5, |world| async move {
        assert!(bb_sim::lost_state::fits(&world));
        bb_sim::lost_state::lose_state(&world).await.expect("what is left is kept");
    });
}

#[test]
fn rule_12_a_site_wide_power_cut_with_one_damaged_log_loses_nothing_acknowledged() {
    in_cluster(4, |world| async move {
        const BLOCK: usize = 4096;
        let writer = client(&world).await;
        let file = writer.client.open(b"/power", FLAGS, 0o644).await.expect("created");
        let victim = primary(&world, home_of(file.fid(), 0));
        let size = usize::try_from(world.setup.log_bytes).expect("small");
        let before = victim.log_disk.peek(0, size);
        let expected = bytes_of(300_000, 11);
        for at in (0..expected.len()).step_by(10_000) {
            file.pwrite(&expected[at..at + 10_000], at as u64).await.expect("written");
            file.fsync().await.expect("durable");
        }
        drop(file);
        for machine in &world.machines {
            machine.is_kept_up.set(false);
            machine.cut_power();
        }
        world.kill_client(&writer);
        let after = victim.log_disk.peek(0, size);
        let changed: Vec<usize> = (0..size / BLOCK)
            .filter(|n| before[n * BLOCK..(n + 1) * BLOCK] != after[n * BLOCK..(n + 1) * BLOCK])
            .collect();
        let at = changed[changed.len() / 2] * BLOCK;
        let rotten: Vec<u8> = after[at..at + 64].iter().map(|byte| !byte).collect();
        victim.log_disk.poke(at as u64, &rotten);
        world.machines.iter().for_each(|machine| machine.is_kept_up.set(true));
        world.rt.sleep(FAIL_OVER * 2).await;
        assert!(!victim.is_serving(), "a damaged log is served from");
        expect_bytes(&world, b"/power", &expected).await;
    });
}

/// What the world looks like every 10 ms while a primary is cut off: when its lease ended, and when
/// somebody else began to serve one of its partitions.
async fn cut_off(world: &Rc<World>, own_drift_ppm: i32) {
    let others: Vec<_> = world.machines.clone();
    let victim = primary(world, PartitionId(0));
    for machine in &world.machines {
        let own = machine.address == victim.address;
        machine.drift_ppm.set(if own { own_drift_ppm } else { -own_drift_ppm });
        machine.kill();
    }
    assert!(world.until_whole(Duration::from_secs(120)).await, "{}", world.what_is_missing());
    let victim_node = victim.node().expect("runs");
    let held: Vec<PartitionId> = victim_node.partitions().map(|p| p.id()).collect();
    assert!(!held.is_empty());
    for other in others.iter().filter(|machine| machine.address != victim.address) {
        world.net.partition(&victim.address, &other.address);
    }
    let (mut ended, mut taken) = (None, None);
    for _ in 0..3_000 {
        let now = world.rt.now();
        if ended.is_none() && !victim_node.has_lease() {
            ended = Some(now);
        }
        let serves = |machine: &&Rc<Machine>| {
            machine.address != victim.address
                && machine.node().is_some_and(|node| {
                    node.has_lease() && node.partitions().any(|p| held.contains(&p.id()))
                })
        };
        if taken.is_none() && world.machines.iter().find(serves).is_some() {
            taken = Some(now);
        }
        world.rt.sleep(Duration::from_millis(10)).await;
    }
    let (ended, taken) = (ended.expect("its lease ends"), taken.expect("somebody takes over"));
    // Both are looked at in one turn: equal means that it had stopped when the other was seen.
    assert!(ended <= taken, "it served until {ended:?}, and another from {taken:?} on");
}

#[test]
fn leases_a_node_cut_off_from_the_quorum_stops_before_anyone_takes_over() {
    in_cluster(4, |world| async move { cut_off(&world, 0).await });
}

#[test]
fn leases_hold_also_where_clocks_drift() {
    // Its clock is slow, the others' are fast: what seems short to them is long to it.
    in_cluster(4, |world| async move { cut_off(&world, -20_000).await });
    in_cluster(4, |world| async move { cut_off(&world, 20_000).await });
}

#[test]
fn fencing_a_node_that_was_taken_down_and_goes_on_changes_nothing() {
    in_cluster(4, |world| async move {
        let writer = client(&world).await;
        let file = Rc::new(writer.client.open(b"/down", FLAGS, 0o644).await.expect("created"));
        file.pwrite(&bytes_of(50_000, 1), 0).await.expect("written");
        file.fsync().await.expect("durable");
        // The other servers don't reach it and it doesn't reach them; the client does.
        let victim = primary(&world, home_of(file.fid(), 0));
        for machine in world.machines.iter().filter(|m| m.address != victim.address) {
            world.net.partition(&victim.address, &machine.address);
        }
        let expected = bytes_of(50_000, 2);
        file.pwrite(&expected, 0).await.expect("written");
        file.fsync().await.expect("durable: by way of the next primary");
        world.net.heal_all();
        world.rt.sleep(FAIL_OVER).await;
        expect_bytes(&world, b"/down", &expected).await;
        assert!(world.until_whole(Duration::from_secs(90)).await, "{}", world.what_is_missing());
        expect_bytes(&world, b"/down", &expected).await;
    });
}

#[test]
fn rule_10_the_old_primarys_last_write_never_replaces_newer_bytes() {
    in_cluster(4, |world| async move {
        const HANG_MAX: Duration = Duration::from_secs(8);
        let writer = client(&world).await;
        let file = writer.client.open(b"/last", FLAGS, 0o644).await.expect("created");
        let id = home_of(file.fid(), 0);
        file.pwrite(&bytes_of(50_000, 1), 0).await.expect("written");
        file.fsync().await.expect("durable");
        let hang = BfsFaults { hang_ppm: 600_000, hang_max: HANG_MAX, ..BfsFaults::default() };
        world.bfs.set_faults(hang);
        let syncing = writer.rt.spawn(async move {
            if let Ok(operation) = file.start(Residency::Sync, 0, 0, 0).await {
                let _ = operation.wait(|_| {}).await;
            }
        });
        world.rt.sleep(Duration::from_secs(2)).await;
        take_away(&primary(&world, id));
        world.kill_client(&writer);
        drop(syncing);
        world.bfs.set_faults(BfsFaults::default());
        let writer = client(&world).await;
        let file = writer.client.open(b"/last", FLAGS, 0o644).await.expect("opened");
        let newer = bytes_of(50_000, 9);
        file.pwrite(&newer, 0).await.expect("written");
        file.fsync().await.expect("durable");
        for kind in [Residency::Sync, Residency::Purge] {
            let operation = file.start(kind, 0, 0, 0).await.expect("begun");
            operation.wait(|_| {}).await.expect("done");
        }
        world.rt.sleep(HANG_MAX).await;
        expect_bytes(&world, b"/last", &newer).await;
        assert_eq!(world.bfs.files().get(&b"/last"[..]), Some(&newer));
    });
}

#[test]
fn rule_10_a_creation_that_hangs_in_a_dead_primary_does_not_bring_a_removed_file_back() {
    in_cluster(4, |world| async move {
        const HANG_MAX: Duration = Duration::from_secs(90);
        let maker = client(&world).await;
        let mut replicas = world.nodes().into_iter().flat_map(|node| node.partitions());
        let home = replicas.find(|p| p.state().sessions.iter().next().is_some());
        let home = home.expect("its session is somewhere").id();
        let hang = BfsFaults { hang_ppm: 1_000_000, hang_max: HANG_MAX, ..BfsFaults::default() };
        world.bfs.set_faults(hang);
        let opening = maker.client.clone();
        let making = maker.rt.spawn(async move { opening.open(b"/made", FLAGS, 0o644).await });
        world.rt.sleep(Duration::from_millis(200)).await;
        take_away(&primary(&world, home));
        world.bfs.set_faults(BfsFaults::default());
        let file = making.await.expect("alive").expect("made in the end");
        file.close().await.expect("closed");
        maker.client.unlink(b"/made").await.expect("removed");
        world.rt.sleep(HANG_MAX).await;
        assert!(world.bfs.files().is_empty(), "it is there again");
    });
}

/// The longest that a write with its fsync took while a server ended in good order.
async fn longest_pause(world: &Rc<World>, victim: &Rc<Machine>) -> Duration {
    let writer = client(world).await;
    let ended = Rc::new(std::cell::Cell::new(false));
    let mut files = Vec::new();
    for n in 0..8 {
        let path = format!("/pause{n}").into_bytes();
        files.push(writer.client.open(&path, FLAGS, 0o644).await.expect("created"));
    }
    let (rt, over) = (world.rt.clone(), ended.clone());
    let writing = writer.rt.spawn(async move {
        let mut longest = Duration::ZERO;
        loop {
            for file in &files {
                rt.sleep(Duration::from_millis(20)).await;
                let began = rt.now();
                file.pwrite(&bytes_of(40_000, 7), 0).await.expect("written");
                file.fsync().await.expect("durable");
                longest = longest.max(rt.now().since(began));
            }
            if over.get() {
                break;
            }
        }
        longest
    });
    world.rt.sleep(Duration::from_secs(1)).await;
    victim.is_kept_up.set(false);
    let began = world.rt.now();
    victim.stop(Duration::from_secs(10)).await;
    assert!(world.rt.now().since(began) < Duration::from_secs(8), "the end is bounded");
    world.rt.sleep(FAIL_OVER).await;
    ended.set(true);
    let longest = writing.await.expect("alive");
    world.kill_client(&writer);
    longest
}

#[test]
fn a_server_that_ends_in_good_order_makes_writers_wait_for_less_than_a_lease() {
    for lead in [false, true] {
        in_cluster(4, |world| async move {
            let leader = world.nodes()[0].council().leader().expect("somebody leads");
            let is_it = |machine: &&Rc<Machine>| {
                let node = machine.node().expect("it runs").context().shared.node;
                (node == leader) == lead
            };
            let victim = world.machines.iter().find(is_it).expect("there are several").clone();
            let longest = longest_pause(&world, &victim).await;
            assert!(longest < Duration::from_millis(500), "{longest:?}, leader: {lead}");
            // What it had is elsewhere, and it comes back.
            victim.is_kept_up.set(true);
            assert!(world.until_whole(FAIL_OVER * 5).await, "{}", world.what_is_missing());
        });
    }
}

#[test]
fn a_primary_that_had_no_time_to_hand_over_is_asked_again() {
    let executor = Executor::simulated(1);
    let rt = executor.rt();
    executor.block_on(async {
        let setup = Setup::draw(&rt, Family::NodesCalm);
        let setup = Setup { nodes: 4, devices: 2, data: 2, parity: 1, partitions: 8, ..setup };
        let world = World::new(&rt, setup);
        world.begin(1).await.expect("a cluster of three");
        rt.sleep(FAIL_OVER * 2).await;
        let writer = client(&world).await;
        let hang_max = Duration::from_secs(25);
        for n in 0..40 {
            let path = format!("/busy{n}").into_bytes();
            let file = writer.client.open(&path, FLAGS, 0o644).await.expect("created");
            file.pwrite(&bytes_of(30_000, n), 0).await.expect("written");
            file.fsync().await.expect("durable");
            // Each partition is at work on the backing file system, which hangs.
            let hang = BfsFaults { hang_ppm: 1_000_000, hang_max, ..BfsFaults::default() };
            let clock = writer.rt.clone();
            drop(writer.rt.spawn(async move {
                sync_on(&clock, &file).await;
            }));
            if n == 39 {
                world.bfs.set_faults(hang);
            }
        }
        let machine = world.machines[3].clone();
        world.take_in(&machine).await.expect("joins");
        rt.sleep(hang_max * 2).await;
        world.bfs.set_faults(BfsFaults::default());
        rt.sleep(Duration::from_secs(90)).await;
        let map = world.map().expect("a map");
        let node = machine.node().expect("it runs").context().shared.node.0;
        let primaries = map.partitions.iter().filter(|entry| entry.primary == node).count();
        assert_eq!(primaries, 2, "an even share of eight partitions");
    });
}

/// Synchronizes a file again and again.
async fn sync_on(rt: &bb_runtime::Rt, file: &bb_client::File) {
    loop {
        rt.sleep(Duration::from_millis(200)).await;
        let _ = file.pwrite(&bytes_of(100, 1), 0).await;
        if let Ok(operation) = file.start(Residency::Sync, 0, 0, 0).await {
            let _ = operation.wait(|_| {}).await;
        }
    }
}

#[test]
fn a_voter_that_was_left_out_and_votes_again_under_another_number_starts_again() {
    const WHOLE_WITHIN: Duration = Duration::from_secs(90);
    in_cluster_of(5, 2, |world| async move {
        let replaced = &world.machines[1];
        replaced.is_kept_up.set(false);
        replaced.kill();
        world.rt.sleep(FAIL_OVER).await;
        let entry = world.map().and_then(|map| {
            let mut nodes = map.nodes.iter().filter(|node| !node.has_left());
            nodes.find(|node| node.address == *replaced.address.0).cloned()
        });
        // Of four nodes three vote, of five all: one of the others is left out, and comes back.
        world.give_up_node(&entry.expect("known"), false).await.expect("given up");
        let voters = || {
            let map = world.map().expect("a map");
            map.nodes.iter().map(|node| node.voter).collect::<Vec<_>>()
        };
        for _ in 0..60 {
            if voters().iter().filter(|voter| **voter > 0).count() > 3 {
                world.rt.sleep(FAIL_OVER).await;
            }
        }
        world.take_in(replaced).await.expect("joined");
        assert!(world.until_whole(WHOLE_WITHIN).await, "{}", world.what_is_missing());
        let new = || voters().into_iter().filter(|voter| *voter > 5).count();
        for _ in 0..60 {
            if new() < 2 {
                world.rt.sleep(FAIL_OVER).await;
            }
        }
        assert_eq!(new(), 2, "new numbers: {:?}", voters());
        for machine in &world.machines {
            machine.is_kept_up.set(false);
            machine.kill();
            machine.is_kept_up.set(true);
            world.rt.sleep(FAIL_OVER).await;
            assert!(world.until_whole(WHOLE_WITHIN).await, "{}", world.what_is_missing());
        }
    });
}
