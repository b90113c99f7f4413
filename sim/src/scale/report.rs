//! What was counted, for people.

use std::collections::BTreeMap;

use bb_proto::Kind;

use super::tap::{Class, From, Tally};
use super::{Counted, GROUP_BYTES, Gauge, RECORD_BYTES, Shape};

const MIB: f64 = (1 << 20) as f64;
/// Requests that a cluster makes all the time, whoever works.
const STANDING: [Kind; 6] =
    [Kind::Raft, Kind::Lease, Kind::Heartbeat, Kind::GetMap, Kind::SessionRenew, Kind::NodeStatus];

/// Prints it.
pub fn print(shape: &Shape, counted: &Counted) {
    println!(
        "{} ranks, {} servers, {}+{}, {} partitions, regions of {} MiB; {:.0} MiB of records of {} \
         bytes, {} small files",
        shape.ranks,
        shape.servers,
        shape.data,
        shape.parity,
        shape.partitions,
        (1_u64 << shape.region_log2) >> 20,
        shape.shared_bytes() as f64 / MIB,
        RECORD_BYTES,
        shape.ranks * shape.files_each,
    );
    print_write(shape, counted);
    print_read(shape, counted);
    if shape.files_each > 0 {
        print_small(shape, counted);
    }
    print_idle(shape, counted);
}

fn per(count: u64, number: u64) -> f64 {
    count as f64 / number.max(1) as f64
}

/// Most, mean of those that have any, and how many these are.
fn load<K>(tallies: &BTreeMap<K, Tally>) -> (u64, f64, u64) {
    let most = tallies.values().map(|tally| tally.requests).max().unwrap_or(0);
    let sum = tallies.values().map(|tally| tally.requests).sum();
    let number = tallies.len() as u64;
    (most, per(sum, number), number)
}

fn is_standing(kind: Kind) -> bool {
    STANDING.contains(&kind)
}

fn print_kinds(gauge: &Gauge, number: u64, of: &str) {
    let over_net = |class: &Class| (class.from != From::Itself).then_some(class.kind);
    let kinds = gauge.traffic.by(over_net);
    let list: Vec<String> = kinds
        .iter()
        .filter(|(kind, _)| !is_standing(**kind))
        .map(|(kind, tally)| {
            let (requests, bytes) = (per(tally.requests, number), per(tally.bytes, number));
            format!("{kind:?} {requests:.2} ({bytes:.0} bytes)")
        })
        .collect();
    println!("  requests over the network, each {of}: {}", list.join(", "));
    for (kind, why, count) in gauge.traffic.refusals() {
        println!("  {count} of {kind:?} were refused and came again: {why}");
    }
}

fn print_log(gauge: &Gauge, number: u64, of: &str) {
    println!(
        "  log of all servers, each {of}: {:.2} records, {:.0} bytes of records, {:.2} writes, \
         {:.0} bytes written",
        per(gauge.log_records, number),
        per(gauge.log_record_bytes, number),
        per(gauge.log_writes, number),
        per(gauge.log_write_bytes, number),
    );
}

fn print_load(gauge: &Gauge, kind: Kind, partitions: u32) {
    let by_partition = gauge.traffic.by(|class| (class.kind == kind).then_some(class.target));
    let by_server = gauge.traffic.by(|class| (class.kind == kind).then_some(class.server));
    let (most, mean, used) = load(&by_partition);
    let (server_most, server_mean, _) = load(&by_server);
    println!(
        "  {kind:?} by partition: {most} most, {mean:.1} mean of the {used} of {partitions} that \
         have any; by server: {server_most} most, {server_mean:.1} mean"
    );
}

fn print_mutations(gauge: &Gauge, number: u64, of: &str) {
    let sum: u64 = gauge.mutations.values().sum();
    let most = gauge.mutations.values().max().copied().unwrap_or(0);
    println!(
        "  mutations that partitions replicate, each {of}: {:.2}; most of one partition: {most} of \
         {sum}",
        per(sum, number),
    );
}

fn print_write(shape: &Shape, counted: &Counted) {
    let (write, groups) = (&counted.write, &counted.groups);
    let number = groups.spread.len() as u64;
    let (partitions, partitions_most) = groups.participants();
    let (leaders, leaders_most) = groups.leaders();
    println!("shared write: {number} parity groups");
    println!(
        "  a group's {:.1} fragments lie in {partitions:.2} partitions ({partitions_most} most) led \
         by {leaders:.2} servers ({leaders_most} most); {:.2} expected",
        per(groups.fragments, number),
        shape.expected_participants(),
    );
    println!(
        "  the file's bytes lie in {} regions, in {} partitions",
        groups.regions, groups.partitions
    );
    print_kinds(write, number, "group");
    print_mutations(write, number, "group");
    print_log(write, number, "group");
    print_load(write, Kind::Commit, shape.partitions);
    let copies = u64::from(shape.parity) + 1;
    println!(
        "  memory of partitions' tables, as counted: {:.1} bytes for each fragment and copy, groups \
         and stubs included",
        per(write.metadata_bytes, write.fragments * copies),
    );
}

fn print_read(shape: &Shape, counted: &Counted) {
    let groups = shape.shared_bytes() / GROUP_BYTES;
    println!("shared read by neighbours, as many bytes");
    print_kinds(&counted.read, groups, "2 MiB");
    print_load(&counted.read, Kind::Lookup, shape.partitions);
}

fn print_small(shape: &Shape, counted: &Counted) {
    let files = shape.ranks * shape.files_each;
    println!("small files of one directory: {files}");
    print_kinds(&counted.small, files, "file");
    print_mutations(&counted.small, files, "file");
    print_log(&counted.small, files, "file");
    println!(
        "  memory of partitions' tables, as counted: {:.0} bytes for each file and copy, its \
         contents included",
        per(counted.small.metadata_bytes, files * (u64::from(shape.parity) + 1)),
    );
    print_load(&counted.small, Kind::Namespace, shape.partitions);
    print_load(&counted.small, Kind::Commit, shape.partitions);
}

fn print_idle(shape: &Shape, counted: &Counted) {
    let seconds = counted.idle.nanos / 1_000_000_000;
    let each = seconds * shape.servers as u64;
    println!(
        "nothing done for {seconds} s with {} sessions open; of each server, a second",
        shape.ranks
    );
    let kinds = counted.idle.traffic.by(|class| {
        (class.from != From::Itself).then_some((class.kind, class.from == From::Client))
    });
    for ((kind, from_clients), tally) in kinds {
        println!(
            "  {kind:?} from {}: {:.3} requests, {:.0} bytes",
            if from_clients { "clients" } else { "servers" },
            per(tally.requests, each),
            per(tally.bytes, each),
        );
    }
    println!("  log writes: {:.3}", per(counted.idle.log_writes, each));
}

impl Shape {
    /// Partitions that a full group's fragments should lie in: it reaches over `ranks` times its own
    /// size, begins anywhere in a region, and has only so many fragments.
    pub fn expected_participants(&self) -> f64 {
        let reach = (self.ranks * GROUP_BYTES) as f64;
        let records = GROUP_BYTES as f64 / RECORD_BYTES as f64;
        let regions = 1.0 + reach / (1_u64 << self.region_log2) as f64;
        let different = regions.min(records.ceil() + 1.0);
        // Two regions may be in one partition.
        let partitions = f64::from(self.partitions);
        partitions * (1.0 - (1.0 - 1.0 / partitions).powf(different))
    }
}
