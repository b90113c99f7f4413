//! `bbadm cluster status`.

use std::process::ExitCode;

use bb_client::{ClusterMap, DeviceState, NodeReport};
use bb_proto::meta::{DeviceStatus, NodeStatus};
use serde_json::{Value, json};

use crate::arguments::{AdminCommand, Bbadm, ClusterCommand};
use crate::output::{bytes, client_error};
use crate::session::Session;
use crate::statistics::counts;
use crate::{FAILED, documents};

/// Carries out a command of `bbadm`.
pub fn bbadm(arguments: &Bbadm) -> ExitCode {
    let failures = match &arguments.command {
        AdminCommand::Man => return documents::man::<Bbadm>(),
        AdminCommand::Completions { shell } => {
            return documents::completions::<Bbadm>(*shell, "bbadm");
        }
        AdminCommand::Cluster { command: ClusterCommand::Status } => {
            Session::run("bbadm", &arguments.connection, async |session| status(session).await)
        }
    };
    ExitCode::from(if failures == 0 { 0 } else { FAILED })
}

async fn status(session: &Session) -> u64 {
    let reports = session.client.node_reports().await;
    let map = session.client.map();
    if session.json {
        println!("{}", as_json(&map, &reports));
    } else {
        print(&map, &reports);
    }
    for report in &reports {
        if let Err(error) = &report.status {
            session.complain(&format!("node {}: {}", report.node, client_error(error)));
        }
    }
    session.failures()
}

/// What the map and the device itself say, in a few words; empty = well.
fn problem(map: &ClusterMap, device: &DeviceStatus) -> String {
    let entry = map.devices.iter().find(|entry| entry.id == device.device);
    let failed = entry.is_some_and(|entry| entry.state == DeviceState::Failed as i32);
    match (failed, device.problem.is_empty()) {
        (true, true) => "failed".to_owned(),
        _ => device.problem.clone(),
    }
}

fn print(map: &ClusterMap, reports: &[NodeReport]) {
    println!("cluster    {}", uuid(&map.cluster));
    let placement = if map.deterministic { "deterministic" } else { "least loaded" };
    println!("geometry   {}+{}, {placement} placement", map.data, map.parity);
    println!("epoch      {}, {} partitions", map.epoch, map.partitions.len());
    if map.nodes.len() < usize::try_from(map.parity).unwrap_or(0) + 1 && map.parity > 0 {
        println!("note       parity protects against the loss of devices only: too few nodes");
    }
    for report in reports {
        match &report.status {
            Ok(status) => print_node(map, &report.address, status),
            Err(error) => {
                let why = client_error(error);
                println!("\nnode {} ({}): {why}", report.node, report.address);
            }
        }
    }
}

fn print_node(map: &ClusterMap, address: &str, status: &NodeStatus) {
    println!("\nnode {} ({address}), incarnation {}", status.node, status.incarnation);
    let of = &status.bytes;
    println!(
        "  data     {} dirty, {} pending, {} clean, {} deletable",
        bytes(of.dirty),
        bytes(of.pending),
        bytes(of.clean),
        bytes(of.deletable)
    );
    println!("           in {} fragments, {} parity groups", of.fragments, of.groups);
    println!("  log      {} of {} in use", bytes(status.log_used_bytes), bytes(status.log_bytes));
    let (memory, limit) = (bytes(status.metadata_bytes), bytes(status.metadata_bytes_max));
    println!("  memory   {memory} of {limit} for metadata");
    println!("  clients  {} sessions", status.sessions);
    let bfs = if status.bfs_problem.is_empty() { "well" } else { &status.bfs_problem };
    println!("  backing  {bfs}");
    println!("  {:>6} {:>12} {:>12} {:>10}  state", "device", "capacity", "used", "blocks");
    for device in &status.devices {
        let problem = problem(map, device);
        let state = if problem.is_empty() { "well" } else { &problem };
        println!(
            "  {:>6} {:>12} {:>12} {:>10}  {state} ({})",
            device.device,
            bytes(device.capacity_bytes),
            bytes(device.used_bytes),
            device.blocks,
            device.name
        );
    }
}

fn as_json(map: &ClusterMap, reports: &[NodeReport]) -> Value {
    let nodes: Vec<Value> = reports.iter().map(|report| node_json(map, report)).collect();
    json!({
        "cluster": uuid(&map.cluster), "epoch": map.epoch, "data": map.data,
        "parity": map.parity, "deterministic": map.deterministic,
        "partitions": map.partitions.len(), "nodes": nodes,
    })
}

fn node_json(map: &ClusterMap, report: &NodeReport) -> Value {
    let status = match &report.status {
        Ok(status) => status,
        Err(error) => {
            let error = client_error(error);
            return json!({ "node": report.node, "address": report.address, "error": error });
        }
    };
    let device = |device: &DeviceStatus| {
        json!({
            "device": device.device, "name": device.name, "problem": problem(map, device),
            "capacity_bytes": device.capacity_bytes, "used_bytes": device.used_bytes,
            "unmap_bytes": device.unmap_bytes, "blocks": device.blocks,
        })
    };
    json!({
        "node": report.node, "address": report.address, "epoch": status.epoch,
        "incarnation": status.incarnation, "tick": status.tick, "bytes": counts(&status.bytes),
        "log_bytes": status.log_bytes, "log_used_bytes": status.log_used_bytes,
        "metadata_bytes": status.metadata_bytes, "metadata_bytes_max": status.metadata_bytes_max,
        "bfs_problem": status.bfs_problem, "sessions": status.sessions,
        "reconstructed_blocks": status.reconstructed_blocks,
        "devices": status.devices.iter().map(device).collect::<Vec<_>>(),
    })
}

fn uuid(bytes: &[u8]) -> String {
    let mut text = String::new();
    for (at, byte) in bytes.iter().enumerate() {
        if [4, 6, 8, 10].contains(&at) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    text
}
