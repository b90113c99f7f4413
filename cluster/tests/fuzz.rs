//! The cluster map, from a log or a peer.

use bb_cluster::{ClusterMap, DeviceEntry, NodeEntry, PartitionEntry};
use bb_fuzz::{Counting, Target};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn map(devices: u32, partitions: usize) -> ClusterMap {
    let entry = PartitionEntry { config: 1, primary: 1, ..PartitionEntry::default() };
    let address = "127.0.0.1:7000".to_owned();
    ClusterMap {
        format: 1,
        epoch: 4,
        cluster: vec![1; 16],
        bfs: vec![2; 16],
        nodes: vec![NodeEntry { id: 1, address, incarnation: 3, ..NodeEntry::default() }],
        devices: (1..=devices)
            .map(|id| DeviceEntry {
                id,
                uuid: vec![3; 16],
                incarnation: 1,
                node: 1,
                state: 0,
                capacity_bytes: 1 << 30,
            })
            .collect(),
        partitions: vec![entry; partitions],
        data: 2,
        parity: 1,
        codec: 1,
        region_log2: 26,
        window_ticks: 60,
        deterministic: false,
        ..ClusterMap::default()
    }
}

#[test]
fn fuzz_maps() {
    let mut newer = map(1, 1);
    newer.format = 2;
    Target {
        name: "maps",
        crate_dir: env!("CARGO_MANIFEST_DIR"),
        seeds: vec![
            ("good-one", map(1, 1).encode_map()),
            ("good-four", map(4, 16).encode_map()),
            ("bad-newer", bb_proto::meta::encode(&newer)),
            ("bad-no-partitions", map(1, 0).encode_map()),
        ],
        repair: None,
        memory_bytes_max: (16 << 10, 128),
        run: &|bytes| {
            ClusterMap::decode_map(bytes).is_ok_and(|map| {
                assert_eq!(
                    ClusterMap::decode_map(&map.encode_map()).map(|m| m.epoch),
                    Ok(map.epoch)
                );
                map.partition_count() > 0
            })
        },
    }
    .check();
}
