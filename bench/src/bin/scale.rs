//! What a large cluster costs in map traffic, leases and heartbeats: sizes and processor times
//! are measured with the code that servers run, messages per second follow from the settings.
//!
//! A cluster of NODES nodes with 8 devices each (100 unless given) and 16,384 partitions with one
//! backup is built command by command, as its leader would, then one node is taken down.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bb_cluster::{
    Change, ClusterMap, ClusterState, Command, Join, Known, MapDelta, MapHistory, MapUpdate,
    NewDevice, NodeEntry, NodeName, PartitionEntry, PlanLimits, Reconfigure, Started, plan,
    redundancy, watchers,
};
use bb_proto::cluster::LeaseReply;
use bb_proto::meta::encode;
use bb_proto::{HEADER_BYTES, NodeId, PartitionId, Tick};

const PARTITIONS: usize = 16_384;
const DEVICES_PER_NODE: u32 = 8;
const CLIENTS: u64 = 10_000;
const TERM: u64 = 1;
/// A lease is renewed so many times in its length.
const RENEWALS_PER_LEASE: u64 = 6;
/// Rounds of the planner after which a cluster that is not whole never will be.
const ROUNDS_MAX: usize = 10_000;

/// The wall clock: this program measures the machine, it never runs in simulation.
#[expect(clippy::disallowed_methods, reason = "a benchmark measures real time")]
fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let start = std::time::Instant::now();
    let result = work();
    (result, start.elapsed())
}

fn uuid(kind: u8, number: u32) -> Vec<u8> {
    let mut uuid = vec![kind; 16];
    uuid[..4].copy_from_slice(&number.to_le_bytes());
    uuid
}

fn run(state: &mut ClusterState, change: Change) -> Result<u32, String> {
    let executed = state.execute(TERM, &Command::of_term(change, TERM));
    if executed.void.is_empty() { Ok(executed.node) } else { Err(executed.void) }
}

fn first_map() -> ClusterMap {
    let own = PartitionEntry { config: 1, primary: 1, ..PartitionEntry::default() };
    let (id, voter, log) = (1, 1, uuid(1, 1));
    let address = "192.168.100.101:7200".to_owned();
    ClusterMap {
        epoch: 1,
        cluster: uuid(9, 9),
        bfs: uuid(8, 8),
        nodes: vec![NodeEntry { id, address, log, voter, ..NodeEntry::default() }],
        partitions: vec![own; PARTITIONS],
        data: 8,
        parity: 1,
        codec: 1,
        region_log2: 26,
        window_ticks: 60,
        lease_ms: 3000,
        drift_ms: 130,
        heartbeat_ms: 250,
        suspect_ms: 2000,
        backups: 1,
        ..ClusterMap::default()
    }
}

fn started(state: &ClusterState, id: u32) -> Option<Change> {
    let node = state.map.node(NodeId(id))?;
    Some(Change::Started(Started {
        node: id,
        log: node.log.clone(),
        incarnation: node.incarnation + 1,
        address: node.address.clone(),
    }))
}

/// Fills and balances until nothing is left to do. Returns rounds, and the longest round.
fn settle(state: &mut ClusterState) -> Result<(usize, Duration), String> {
    let long = state.map.nodes.iter().map(|n| (NodeId(n.id), Duration::from_secs(3_600))).collect();
    let limits = PlanLimits::default();
    let mut longest = Duration::ZERO;
    for round in 0..ROUNDS_MAX {
        let filled: BTreeSet<(PartitionId, NodeId)> = (0..)
            .zip(&state.map.partitions)
            .flat_map(|(id, entry)| {
                entry.filling.iter().map(move |node| (PartitionId(id), NodeId(*node)))
            })
            .collect();
        let known = Known {
            leader: NodeId(1),
            for_how_long: &long,
            filled: &filled,
            load: &BTreeMap::new(),
        };
        let (next, took) = timed(|| plan(&state.map, &known, &limits));
        longest = longest.max(took);
        if next.is_empty() {
            return Ok((round, longest));
        }
        for command in next.commands {
            state.execute(TERM, &Command { term: TERM, ..command });
        }
        let changes = next.handovers;
        if !changes.is_empty() {
            run(state, Change::Reconfigure(Reconfigure { changes }))?;
        }
    }
    Err(format!("not whole after {ROUNDS_MAX} rounds of the planner"))
}

fn update_bytes(update: &MapUpdate) -> usize {
    match update {
        MapUpdate::Current => 0,
        MapUpdate::Delta(bytes) | MapUpdate::Whole(bytes) => bytes.len(),
    }
}

fn main() -> Result<(), String> {
    let nodes: u32 = match std::env::args().nth(1) {
        Some(word) => word.parse().map_err(|_| format!("'{word}' is no number of nodes"))?,
        None => 100,
    };
    if nodes < 3 {
        return Err("at least three nodes: one goes, and the others are a majority".to_owned());
    }
    let mut state = ClusterState::default();
    run(&mut state, Change::Create(first_map()))?;
    for number in 2..=nodes {
        let disk = |n| NewDevice { uuid: uuid(2, number * 100 + n), capacity_bytes: 4 << 40 };
        let devices = (0..DEVICES_PER_NODE).map(disk).collect();
        let address = format!("192.168.100.{}:7200", 100 + number % 100);
        let (log, slice) = (uuid(1, number), String::new());
        let join = Join { log, address, devices, witness: false, slice };
        let id = run(&mut state, Change::Join(join))?;
        let start = started(&state, id).ok_or("a node that joined is known")?;
        run(&mut state, start)?;
    }
    let ((rounds, longest), built) = {
        let (result, took) = timed(|| settle(&mut state));
        (result?, took)
    };
    let whole = redundancy(&state.map);
    println!("{nodes} nodes with {DEVICES_PER_NODE} devices, {PARTITIONS} partitions: {whole:?}");
    println!("built in {rounds} rounds of the planner, {built:.1?}; longest round {longest:.1?}");

    let map_bytes = state.map.encode_map().len();
    let (copy, decode) = timed(|| ClusterMap::decode_map(&state.map.encode_map()));
    copy.map_err(|error| error.to_string())?;
    let mut history = MapHistory::new(&state.map);
    let before = state.map.clone();
    let victim = state.map.node(NodeId(nodes)).ok_or("the last node is known")?;
    let name = NodeName { node: nodes, incarnation: victim.incarnation };
    state.execute(TERM, &Command::of_term(Change::Tick(bb_cluster::Tick { tick: 100 }), TERM));
    let (down, took) = timed(|| run(&mut state, Change::Down(name)));
    down?;
    history.changed(&before, &state.map);
    let (update, cut) = timed(|| history.update(&state.map, before.epoch));
    let MapUpdate::Delta(delta) = &update else { return Err("not a delta".to_owned()) };
    let (applied, apply) =
        timed(|| MapDelta::decode_delta(delta).map(|delta| delta.apply(&before)));
    applied.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
    println!("map {map_bytes} bytes, encoded and read in {decode:.1?}");
    println!(
        "one node down: decided in {took:.1?}, {} bytes of changes, cut out in {cut:.1?}, applied \
         in {apply:.1?}",
        update_bytes(&update)
    );
    print_traffic(&before, update_bytes(&update) as u64);
    Ok(())
}

fn print_traffic(map: &ClusterMap, delta_bytes: u64) {
    let nodes = map.nodes.len() as u64;
    let watches: u64 = map.nodes.iter().map(|n| watchers(map, NodeId(n.id)).len() as u64).sum();
    let beats = watches * 1_000 / u64::from(map.heartbeat_ms);
    let leases = nodes * RENEWALS_PER_LEASE * 1_000 / u64::from(map.lease_ms);
    let reply = LeaseReply {
        lease_ms: map.lease_ms,
        epoch: map.epoch,
        tick: Tick(1 << 20).0,
        map: None,
        grant: 1 << 20,
    };
    let lease_bytes = 2 * (HEADER_BYTES + encode(&reply).len()) as u64;
    println!("\nper second in the whole cluster, when nothing happens:");
    println!("  {beats} heartbeats and as many answers, {} a node", 2 * beats / nodes);
    println!(
        "  {leases} leases at the leader, {} kB with their requests",
        leases * lease_bytes / 1_000
    );
    println!("  1 tick as an entry of the Raft log of the voters");
    println!("when one node goes down:");
    let (to_nodes, to_clients) = (nodes * delta_bytes, CLIENTS * delta_bytes);
    println!("  {:.1} MB of changes to the nodes with their next lease", to_nodes as f64 / 1e6);
    println!(
        "  {:.1} MB to {CLIENTS} clients that have work for it, {:.1} MB from each node",
        to_clients as f64 / 1e6,
        to_clients as f64 / 1e6 / nodes as f64
    );
}
