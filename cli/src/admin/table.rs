//! `bbadm cluster status` for people: one screen for eight nodes.

use std::fmt::Write as _;

use bb_client::DeviceState;
use bb_proto::meta::DeviceStatus;

use super::health::{Health, Node, spread_text};
use crate::output::uuid;

/// The whole text; with a list of devices where it is wanted.
pub fn text(health: &Health<'_>, devices: bool) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = heading(&mut out, health);
    let _ = nodes(&mut out, health);
    if devices {
        let _ = device_list(&mut out, health);
    }
    if !health.problems.is_empty() {
        out.push('\n');
    }
    for (_, problem) in &health.problems {
        let _ = writeln!(out, "! {problem}");
    }
    out
}

fn heading(out: &mut String, health: &Health<'_>) -> std::fmt::Result {
    let map = health.map;
    let placement = if map.deterministic { "deterministic" } else { "least loaded" };
    writeln!(out, "cluster  {}: {}", uuid(&map.cluster), health.verdict().word())?;
    let leader = health.leader.map_or_else(|| "no leader".to_owned(), |id| format!("leader {id}"));
    let voters: Vec<String> = health.voters.iter().map(u32::to_string).collect();
    writeln!(
        out,
        "map      epoch {}, tick {}; Raft term {}, {leader}, voters {}",
        map.epoch,
        health.tick,
        health.term,
        voters.join(" ")
    )?;
    let counts = &health.redundancy;
    writeln!(
        out,
        "metadata {} partitions of {} copies: {} full, {} reduced, {} down, {} lost; {} filling",
        map.partitions.len(),
        counts.possible,
        counts.full,
        counts.reduced,
        counts.down - counts.lost.min(counts.down),
        counts.lost,
        counts.filling
    )?;
    let spread = spread_text(health);
    writeln!(out, "blocks   {}+{}, {placement}; {spread}", map.data, map.parity)?;
    let of = &health.bytes;
    writeln!(
        out,
        "data     {} dirty, {} pending, {} clean, {} deletable; {} groups, {} fragments\n",
        short(of.dirty),
        short(of.pending),
        short(of.clean),
        short(of.deletable),
        of.groups,
        of.fragments
    )
}

fn nodes(out: &mut String, health: &Health<'_>) -> std::fmt::Result {
    let width = |text: &dyn Fn(&Node<'_>) -> usize, least: usize| {
        health.nodes.iter().map(text).max().unwrap_or(0).max(least)
    };
    let address = width(&|node| node.entry.address.len(), 7);
    let role = width(&|node| node.role(health.leader).len(), 4);
    writeln!(
        out,
        "node state       {:<address$} start {:<role$} prim copies fill dev  used  size dirty  \
         pend clean  log clients",
        "address", "raft"
    )?;
    for node in &health.nodes {
        let devices = health.map.devices.iter().filter(|device| {
            device.node == node.entry.id && device.state == DeviceState::Active as i32
        });
        write!(
            out,
            "{:>4} {:<11} {:<address$} {:>5} {:<role$} {:>4} {:>6} {:>4} {:>3}",
            node.entry.id,
            node.state(),
            node.entry.address,
            node.entry.incarnation,
            node.role(health.leader),
            node.primaries,
            node.copies,
            node.filling,
            devices.clone().count(),
        )?;
        let Some(status) = node.status else {
            let size: u64 = devices.map(|device| device.capacity_bytes).sum();
            writeln!(out, "     - {:>5}     -     -     -    -       -", short(size))?;
            continue;
        };
        let used: u64 = status.devices.iter().map(|device| device.used_bytes).sum();
        let well = |device: &&DeviceStatus| device.problem.is_empty();
        let size: u64 = status.devices.iter().filter(well).map(|d| d.capacity_bytes).sum();
        let log = status.log_used_bytes.saturating_mul(100) / status.log_bytes.max(1);
        let of = &status.bytes;
        let (dirty, pending, clean) = (short(of.dirty), short(of.pending), short(of.clean));
        writeln!(
            out,
            " {:>5} {:>5} {dirty:>5} {pending:>5} {clean:>5} {log:>3}% {:>7}",
            short(used),
            short(size),
            status.sessions
        )?;
    }
    Ok(())
}

fn device_list(out: &mut String, health: &Health<'_>) -> std::fmt::Result {
    writeln!(out, "\ndevice node  used  size  blocks unmap  read written flushes state")?;
    for entry in &health.map.devices {
        let status = health.nodes.iter().find(|node| node.entry.id == entry.node);
        let status = status.and_then(|node| node.status);
        let device = status.and_then(|s| s.devices.iter().find(|d| d.device == entry.id));
        let given_up = entry.state == DeviceState::Failed as i32;
        match device {
            Some(device) => {
                let state = if device.problem.is_empty() { "well" } else { &device.problem };
                writeln!(
                    out,
                    "{:>6} {:>4} {:>5} {:>5} {:>7} {:>5} {:>5} {:>7} {:>7} {state} ({})",
                    entry.id,
                    entry.node,
                    short(device.used_bytes),
                    short(device.capacity_bytes),
                    device.blocks,
                    short(device.unmap_bytes),
                    short(device.read_bytes),
                    short(device.written_bytes),
                    device.flushes,
                    device.name
                )?;
            }
            None => {
                let state = if given_up { "given up" } else { "away" };
                let size = short(entry.capacity_bytes);
                let (id, node) = (entry.id, entry.node);
                writeln!(
                    out,
                    "{id:>6} {node:>4}     - {size:>5}       -     -     -       -       - {state}"
                )?;
            }
        }
    }
    writeln!(out, "\n   log node  used  size                 read written flushes")?;
    for node in &health.nodes {
        let Some(status) = node.status else { continue };
        writeln!(
            out,
            "       {:>4} {:>5} {:>5}                {:>5} {:>7} {:>7}",
            node.entry.id,
            short(status.log_used_bytes),
            short(status.log_bytes),
            short(status.log_read_bytes),
            short(status.log_written_bytes),
            status.log_flushes
        )?;
    }
    Ok(())
}

/// Bytes in at most five characters: `512`, `1.5K`, `37M`, `1023G`.
pub fn short(bytes: u64) -> String {
    let units = ["", "K", "M", "G", "T", "P", "E"];
    let (mut unit, mut size) = (0, 1_u64);
    while unit + 1 < units.len() && bytes / size >= 1024 {
        size <<= 10;
        unit += 1;
    }
    let (whole, rest) = (bytes / size, u128::from(bytes % size) * 10 / u128::from(size));
    if unit > 0 && whole < 10 {
        return format!("{whole}.{rest}{}", units[unit]);
    }
    format!("{whole}{}", units[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_short_and_never_more_than_there_is() {
        let cases = [
            (0, "0"),
            (1023, "1023"),
            (1024, "1.0K"),
            (1535, "1.4K"),
            (10 << 20, "10M"),
            ((1 << 30) - 1, "1023M"),
            (u64::MAX, "15E"),
        ];
        for (bytes, text) in cases {
            assert_eq!(short(bytes), text);
        }
    }
}
