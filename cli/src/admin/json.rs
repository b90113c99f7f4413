//! `bbadm cluster status --json`.

use bb_client::DeviceState;
use serde_json::{Value, json};

use super::health::{Health, Node, spread_text};
use crate::output::uuid;
use crate::statistics::counts;

/// One object.
pub fn object(health: &Health<'_>) -> Value {
    let (map, copies) = (health.map, &health.redundancy);
    let nodes: Vec<Value> = health.nodes.iter().map(|node| node_object(health, node)).collect();
    let problems: Vec<&String> = health.problems.iter().map(|(_, text)| text).collect();
    json!({
        "cluster": uuid(&map.cluster),
        "state": health.verdict().word(),
        "problems": problems,
        "epoch": map.epoch,
        "tick": health.tick,
        "data": map.data,
        "parity": map.parity,
        "deterministic": map.deterministic,
        "spread": spread_text(health),
        "raft": {
            "leader": health.leader, "term": health.term, "voters": health.voters,
        },
        "partitions": {
            "count": map.partitions.len(), "copies_wanted": copies.wanted,
            "copies_possible": copies.possible, "full": copies.full, "reduced": copies.reduced,
            "down": copies.down, "lost": copies.lost, "filling": copies.filling,
            "given_up": copies.given_up,
        },
        "groups": {
            "degraded": health.groups.degraded, "unreadable": health.groups.unreadable,
            "crowded": health.groups.crowded,
        },
        "bytes": counts(&health.bytes),
        "nodes": nodes,
    })
}

fn node_object(health: &Health<'_>, node: &Node<'_>) -> Value {
    let entry = node.entry;
    let mut object = json!({
        "node": entry.id,
        "address": entry.address,
        "state": node.state(),
        "reachable": node.status.is_some(),
        "incarnation": entry.incarnation,
        "raft": node.role(health.leader),
        "witness": entry.witness,
        "primaries": node.primaries,
        "copies": node.copies,
        "filling": node.filling,
        "devices": devices(health, node),
    });
    if !node.silence.is_empty() {
        object["error"] = json!(node.silence);
    }
    let Some(status) = node.status else { return object };
    let replicas = &status.replicas;
    let more = json!({
        "epoch": status.epoch,
        "tick": status.tick,
        "term": status.term,
        "leader": status.leader,
        "has_lease": status.has_lease,
        "bytes": counts(&status.bytes),
        "log_bytes": status.log_bytes,
        "log_used_bytes": status.log_used_bytes,
        "log_read_bytes": status.log_read_bytes,
        "log_written_bytes": status.log_written_bytes,
        "log_flushes": status.log_flushes,
        "bfs_calls": status.bfs_calls,
        "bfs_us": status.bfs_us,
        "metadata_bytes": status.metadata_bytes,
        "metadata_bytes_max": status.metadata_bytes_max,
        "bfs_problem": status.bfs_problem,
        "sessions": status.sessions,
        "reconstructed_blocks": status.reconstructed_blocks,
        "replicas": {
            "serving": replicas.serving, "changing": replicas.changing,
            "following": replicas.following, "filling": replicas.filling,
            "absent": replicas.absent,
        },
    });
    if let (Value::Object(object), Value::Object(more)) = (&mut object, more) {
        object.extend(more);
    }
    object
}

/// All devices of the node by the map, with what the node says where it answers.
fn devices(health: &Health<'_>, node: &Node<'_>) -> Vec<Value> {
    let own = health.map.devices.iter().filter(|device| device.node == node.entry.id);
    own.map(|entry| {
        let given_up = entry.state == DeviceState::Failed as i32;
        let said = node.status.and_then(|s| s.devices.iter().find(|d| d.device == entry.id));
        match said {
            Some(device) => json!({
                "device": entry.id, "given_up": given_up, "name": device.name,
                "problem": device.problem, "capacity_bytes": device.capacity_bytes,
                "used_bytes": device.used_bytes, "unmap_bytes": device.unmap_bytes,
                "blocks": device.blocks, "read_bytes": device.read_bytes,
                "written_bytes": device.written_bytes, "flushes": device.flushes,
            }),
            None => json!({
                "device": entry.id, "given_up": given_up,
                "capacity_bytes": entry.capacity_bytes,
            }),
        }
    })
    .collect()
}
