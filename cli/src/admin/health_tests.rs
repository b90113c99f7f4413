use bb_client::{DeviceEntry, PartitionEntry};
use bb_proto::meta::{DeviceStatus, NodeStatus, ReplicaCounts};

use super::*;

/// Three nodes with two devices each, 2+1, each partition with a primary and a backup; all well.
fn view() -> ClusterView {
    let nodes = (1..=3).map(|id| NodeEntry {
        id,
        address: format!("n{id}:1"),
        incarnation: 1,
        voter: id.into(),
        ..NodeEntry::default()
    });
    let devices = (1..=6).map(|id| DeviceEntry {
        id,
        uuid: vec![0; 16],
        incarnation: 1,
        node: id.div_ceil(2),
        state: 0,
        capacity_bytes: 1 << 30,
    });
    let partitions = (0..6).map(|at| PartitionEntry {
        config: 2,
        since: 1,
        primary: at % 3 + 1,
        backups: vec![(at + 1) % 3 + 1],
        ..PartitionEntry::default()
    });
    let map = ClusterMap {
        epoch: 9,
        nodes: nodes.collect(),
        devices: devices.collect(),
        partitions: partitions.collect(),
        data: 2,
        parity: 1,
        backups: 1,
        ..ClusterMap::default()
    };
    let reports = (1..=3).map(|node| NodeReport {
        node,
        address: format!("n{node}:1"),
        status: Ok(NodeStatus {
            node,
            leader: 2,
            term: 4,
            has_lease: true,
            has_joined: true,
            replicas: ReplicaCounts { serving: 2, following: 2, ..ReplicaCounts::default() },
            ..NodeStatus::default()
        }),
    });
    ClusterView { map, reports: reports.collect() }
}

fn silent(view: &mut ClusterView, node: usize) {
    view.reports[node - 1].status = Err(Error::TimedOut { seconds: 2 });
}

/// What a fail-over makes of the map when a node has died.
fn fail_over(view: &mut ClusterView, dead: u32) {
    silent(view, dead as usize);
    view.map.nodes[dead as usize - 1].state = NodeState::Down as i32;
    for entry in &mut view.map.partitions {
        if entry.primary == dead {
            entry.primary = entry.backups[0];
            entry.backups.clear();
        }
        entry.backups.retain(|backup| *backup != dead);
    }
    for report in &mut view.reports {
        let served = view.map.partitions.iter().filter(|p| p.primary == report.node).count();
        if let Ok(status) = &mut report.status {
            status.replicas.serving = u32::try_from(served).expect("few");
        }
    }
}

fn problems(view: &ClusterView) -> (Verdict, String) {
    let health = health(view);
    let all: Vec<&str> = health.problems.iter().map(|(_, text)| text.as_str()).collect();
    (health.verdict(), all.join("\n"))
}

#[test]
fn a_cluster_in_which_nothing_is_missing_is_full() {
    let view = view();
    assert_eq!(problems(&view), (Verdict::Full, String::new()));
    let health = health(&view);
    assert_eq!((health.leader, health.term, health.spread), (Some(2), 4, Spread::OverNodes));
    assert_eq!(health.nodes[1].role(health.leader), "leader");
    let states: Vec<&str> = health.nodes.iter().map(Node::state).collect();
    assert_eq!(states, ["active"; 3]);
}

#[test]
fn a_dead_node_interrupts_until_others_have_its_roles_and_then_reduces() {
    let mut view = view();
    silent(&mut view, 3);
    let (verdict, text) = problems(&view);
    assert_eq!(verdict, Verdict::Interrupted, "{text}");
    assert!(text.contains("2 partitions wait for their primary"), "{text}");
    assert!(text.contains("node 3 is unreachable: no answer for 2 s"), "{text}");
    fail_over(&mut view, 3);
    let (verdict, text) = problems(&view);
    assert_eq!(verdict, Verdict::Reduced, "{text}");
    assert!(text.contains("4 partitions have fewer than 2 live copies"), "{text}");
    assert_eq!(health(&view).spread, Spread::OverFewNodes(1));
}

#[test]
fn full_copies_of_the_metadata_are_not_enough_while_a_node_is_away() {
    let mut view = view();
    fail_over(&mut view, 3);
    for entry in &mut view.map.partitions {
        entry.backups = vec![3 - entry.primary];
    }
    let (verdict, text) = problems(&view);
    assert_eq!((verdict, text.lines().count()), (Verdict::Reduced, 1), "{text}");
}

#[test]
fn a_node_without_a_lease_or_a_group_without_a_leader_interrupts() {
    for breaks in [
        |status: &mut NodeStatus| status.has_lease = false,
        |status: &mut NodeStatus| status.leader = 0,
    ] {
        let mut view = view();
        view.reports.iter_mut().filter_map(|r| r.status.as_mut().ok()).for_each(breaks);
        assert_eq!(problems(&view).0, Verdict::Interrupted);
    }
}

#[test]
fn a_partition_without_a_live_copy_interrupts() {
    let mut view = view();
    fail_over(&mut view, 3);
    view.map.partitions[0].primary = 3;
    view.map.partitions[0].backups.clear();
    let (verdict, text) = problems(&view);
    assert_eq!(verdict, Verdict::Interrupted);
    assert!(text.contains("1 partitions are down"), "{text}");
}

#[test]
fn a_node_alone_says_that_it_protects_against_devices_only() {
    let mut view = view();
    view.map.nodes.truncate(1);
    view.map.devices.truncate(2);
    view.reports.truncate(1);
    for entry in &mut view.map.partitions {
        entry.primary = 1;
        entry.backups.clear();
    }
    if let Ok(status) = &mut view.reports[0].status {
        status.replicas.serving = 6;
    }
    let (verdict, text) = problems(&view);
    assert_eq!(verdict, Verdict::Reduced, "{text}");
    assert!(text.contains("loss of devices only"), "{text}");
    assert!(text.contains("2 copies of each partition are wanted"), "{text}");
}

#[test]
fn devices_and_nodes_that_were_given_up_are_not_forgotten() {
    let mut view = view();
    view.map.devices[0].state = DeviceState::Failed as i32;
    let (verdict, text) = problems(&view);
    assert_eq!((verdict, text.contains("1 (node 1)")), (Verdict::Reduced, true), "{text}");
}

#[test]
fn groups_that_miss_blocks_or_have_two_on_a_node_are_not_full() {
    type Count = fn(&mut NodeStatus) -> &mut u64;
    let counts: [(Count, Verdict, &str); 3] = [
        (|status| &mut status.degraded_groups, Verdict::Reduced, "7 parity groups miss a block"),
        (|status| &mut status.crowded_groups, Verdict::Reduced, "blocks that share a node"),
        (|status| &mut status.unreadable_groups, Verdict::Interrupted, "7 parity groups cannot be"),
    ];
    for (count, expected, words) in counts {
        let mut view = view();
        // Two of the primaries have some.
        for (report, amount) in [(0, 3), (2, 4)] {
            *count(view.reports[report].status.as_mut().expect("it answers")) = amount;
        }
        let (verdict, text) = problems(&view);
        assert_eq!(verdict, expected, "{text}");
        assert!(text.contains(words), "{text}");
    }
}

#[test]
fn devices_and_logs_are_listed_with_what_they_have_done() {
    let mut view = view();
    let status = view.reports[1].status.as_mut().expect("it answers");
    status.devices = vec![DeviceStatus {
        device: 3,
        read_bytes: 5 << 20,
        written_bytes: 77 << 20,
        flushes: 1234,
        ..DeviceStatus::default()
    }];
    (status.log_written_bytes, status.log_flushes) = (33 << 20, 4321);
    let health = health(&view);
    let text = super::super::table::text(&health, true);
    let line = |word: &str| text.lines().find(|line| line.contains(word)).unwrap_or_default();
    assert!(line("1234").contains("77M") && line("1234").contains("5.0M"), "{text}");
    assert!(line("4321").contains("33M"), "{text}");
    let json = super::super::json::object(&health);
    assert_eq!(json["nodes"][1]["log_written_bytes"], 33 << 20);
    assert_eq!(json["nodes"][1]["devices"][0]["flushes"], 1234);
}
