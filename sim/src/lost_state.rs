//! The ordeal of a cluster: more nodes die than it survives, the operator gives them up, and a
//! partition begins anew, empty. What others know must outlive that (rule 1): their blocks' home has
//! lost its state, and must not say of any of them that it is of no use.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use bb_client::ClientOptions;
use bb_cluster::{ClusterMap, NodeEntry};
use bb_proto::{Fid, NodeId, RegionIndex, partition_of};

use crate::world::{ClientProcess, World};

/// Files that are written, until some suit.
const FILES: usize = 40;
/// Bytes on each side of the border between the second and the third region.
const HALF: usize = 20_000;
const REGION_BYTES: u64 = 1 << 20;
/// Until two nodes are down one after the other: the second waits until the first is long gone.
const DOWN_WITHIN: Duration = Duration::from_secs(200);
/// Longer than members take to ask home about all their blocks.
const ASKED_WITHIN: Duration = Duration::from_secs(40);

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

async fn connect(world: &World) -> Result<Rc<ClientProcess>, String> {
    let options =
        ClientOptions { command_timeout: Duration::from_secs(60), ..ClientOptions::default() };
    world.connect(options).await
}

fn path(number: usize) -> Vec<u8> {
    format!("/lost{number}").into_bytes()
}

fn bytes_of(number: usize) -> Vec<u8> {
    (0..2 * HALF).map(|at| u8::try_from((at + number) % 251).unwrap_or(0) + 1).collect()
}

/// True for worlds in which this makes sense: two nodes can go without the quorum.
pub fn fits(world: &World) -> bool {
    world.setup.parity == 1 && world.members().count() >= 5
}

/// Has a partition lose its state.
///
/// # Errors
/// Which promise was broken.
pub async fn lose_state(world: &Rc<World>) -> Result<(), String> {
    let writer = connect(world).await?;
    let mut fids = Vec::new();
    for number in 0..FILES {
        let flags = libc::O_RDWR | libc::O_CREAT;
        let file = writer.client.open(&path(number), flags, 0o644).await.map_err(text)?;
        let at = 2 * REGION_BYTES - HALF as u64;
        file.pwrite(&bytes_of(number), at).await.map_err(text)?;
        file.fsync().await.map_err(text)?;
        fids.push(file.fid());
        file.close().await.map_err(text)?;
    }
    world.kill_client(&writer);
    let map = world.map().ok_or("nobody has a map")?;
    let Some((victims, files)) = choose(&map, &fids) else { return Ok(()) };
    for machine in &world.machines {
        let node = machine.node().map(|node| node.context().shared.node);
        if node.is_some_and(|node| victims.contains(&node.0)) {
            machine.is_kept_up.set(false);
            machine.kill();
        }
    }
    let gone = until_down(world, &victims).await?;
    // Not all had their blocks elsewhere.
    let readable: Vec<usize> = read_all(world, &files).await?;
    for node in &gone {
        world.give_up_node(node, true).await?;
    }
    world.rt.sleep(ASKED_WITHIN).await;
    let still = read_all(world, &readable).await?;
    match readable.iter().find(|number| !still.contains(number)) {
        Some(number) => Err(format!("file {number} lost blocks whose home had lost its state")),
        None => Ok(()),
    }
}

/// Two nodes without which the quorum goes on, and files whose groups have their home there alone,
/// with the rest of their metadata elsewhere, too.
fn choose(map: &ClusterMap, fids: &[Fid]) -> Option<(BTreeSet<u32>, Vec<usize>)> {
    let members = |fid: Fid, region: u32| -> BTreeSet<u32> {
        let partition = partition_of(fid, RegionIndex(region), map.partition_count());
        map.partition(partition).map(|entry| entry.members().collect()).unwrap_or_default()
    };
    let votes = |node: &u32| map.node(NodeId(*node)).is_some_and(|entry| entry.voter != 0);
    let mut by_victims: BTreeMap<BTreeSet<u32>, Vec<usize>> = BTreeMap::new();
    for (number, fid) in fids.iter().enumerate() {
        let home = members(*fid, 1);
        let elsewhere = |region| !members(*fid, region).is_subset(&home);
        if home.iter().filter(|node| votes(node)).count() <= 1 && elsewhere(0) && elsewhere(2) {
            by_victims.entry(home).or_default().push(number);
        }
    }
    by_victims.into_iter().max_by_key(|(_, files)| files.len())
}

async fn until_down(world: &World, victims: &BTreeSet<u32>) -> Result<Vec<NodeEntry>, String> {
    let deadline = world.rt.now() + DOWN_WITHIN;
    loop {
        let map = world.map().ok_or("nobody has a map")?;
        let nodes: Vec<NodeEntry> =
            victims.iter().filter_map(|id| map.node(NodeId(*id))).cloned().collect();
        if nodes.iter().all(|node| !node.is_active()) {
            return Ok(nodes);
        }
        if world.rt.now() >= deadline {
            return Err(format!("nodes {victims:?} are dead, and not taken down"));
        }
        world.rt.sleep(Duration::from_millis(500)).await;
    }
}

/// Those of the files whose third region can be read.
async fn read_all(world: &World, files: &[usize]) -> Result<Vec<usize>, String> {
    let reader = connect(world).await?;
    let mut readable = Vec::new();
    for number in files {
        let file = reader.client.open(&path(*number), libc::O_RDONLY, 0).await.map_err(text)?;
        let mut got = vec![0; HALF];
        match file.pread(&mut got, 2 * REGION_BYTES).await {
            Ok(HALF) if got == bytes_of(*number)[HALF..] => readable.push(*number),
            Ok(len) => return Err(format!("file {number}: {len} bytes, or other ones")),
            Err(error) => tracing::debug!(number, %error, "not readable"),
        }
        file.close().await.map_err(text)?;
    }
    world.kill_client(&reader);
    Ok(readable)
}
