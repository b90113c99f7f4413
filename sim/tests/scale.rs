//! The counts of docs/scale.md obey what must hold of any.

use bb_proto::Kind;
use bb_sim::scale::{Counted, From, RECORD_BYTES, Shape, run};

fn small() -> Shape {
    Shape {
        ranks: 4,
        servers: 4,
        partitions: 16,
        region_log2: 20,
        groups_each: 2,
        files_each: 5,
        ..Shape::default()
    }
}

fn requests(gauge: &bb_sim::scale::Gauge, kind: Kind, from: From) -> u64 {
    let tally = gauge.traffic.sum(|class| class.kind == kind && class.from == from);
    assert_eq!(tally.refused, 0, "nothing goes wrong: {kind:?}");
    tally.requests
}

#[test]
fn counts_of_a_small_cluster_are_within_their_bounds() {
    bb_sim::complaints::listen(false);
    let shape = small();
    let counted = run(&shape).unwrap();
    assert!(bb_sim::complaints::errors().is_empty());
    shared_writes(&shape, &counted);
    small_files(&shape, &counted);
    nothing(&shape, &counted);
}

fn shared_writes(shape: &Shape, counted: &Counted) {
    let (write, groups) = (&counted.write, &counted.groups);
    let number = groups.spread.len() as u64;
    let records = shape.ranks * shape.records_each();
    // What is left at the end makes one more of each rank.
    assert!((2 * shape.ranks..=3 * shape.ranks).contains(&number), "{number} groups");
    let borders = shape.shared_bytes() >> shape.region_log2;
    assert!((records..=records + number + borders).contains(&groups.fragments));
    assert_eq!(groups.regions as u64, borders + 1);
    for (partitions, leaders) in &groups.spread {
        assert!(1 <= *leaders && leaders <= partitions && *partitions <= 16);
        assert!(*leaders <= shape.servers);
    }
    let (mean, _) = groups.participants();
    let expected = shape.expected_participants();
    assert!((mean / expected - 1.0).abs() < 0.4, "{mean} of {expected}");

    let participants: u64 = groups.spread.iter().map(|(partitions, _)| *partitions as u64).sum();
    assert_eq!(requests(write, Kind::PutBlock, From::Client), 3 * number);
    assert_eq!(requests(write, Kind::Commit, From::Client), participants);
    let puts = write.traffic.sum(|class| class.kind == Kind::PutBlock);
    assert!(puts.bytes >= shape.shared_bytes() / 2 * 3);
    // A region that is met for the first time is a mutation of its own.
    let mutations: u64 = write.mutations.values().sum();
    assert!(mutations >= participants);
    // However many ranks come to a region first, few of them ask the file's record about it.
    let asked = write.traffic.sum(|class| class.kind == Kind::FileStat).requests;
    assert!(asked <= 3 * groups.regions as u64 + shape.ranks, "{asked} questions");
    // Each block is a record, each mutation one on two servers.
    assert!(write.log_records >= 3 * number + 2 * participants);
    assert!(write.log_writes <= write.log_records && write.log_writes > 0);
    assert!(write.log_write_bytes >= write.log_record_bytes);
    assert!(write.fragments >= records && write.metadata_bytes >= 2 * 24 * records);
    assert_eq!(requests(&counted.read, Kind::Commit, From::Client), 0);
    let read = counted.read.traffic.sum(|class| class.kind == Kind::GetBlock);
    assert!(read.bytes >= records * RECORD_BYTES);
}

fn small_files(shape: &Shape, counted: &Counted) {
    let files = shape.ranks * shape.files_each;
    let small = &counted.small;
    assert!(requests(small, Kind::Namespace, From::Client) >= files);
    assert!(requests(small, Kind::Commit, From::Client) >= files);
    assert_eq!(requests(small, Kind::PutBlock, From::Client), 0, "they travel in their commits");
    assert!(small.mutations.values().sum::<u64>() >= 2 * files);
}

fn nothing(shape: &Shape, counted: &Counted) {
    let idle = &counted.idle;
    for kind in [Kind::Commit, Kind::PutBlock, Kind::Namespace] {
        assert_eq!(requests(idle, kind, From::Client), 0);
    }
    // Leases of three seconds, renewed six times each; everybody watches all three others, four
    // times a second.
    let seconds = idle.nanos / 1_000_000_000;
    let leases = idle.traffic.sum(|class| class.kind == Kind::Lease).requests;
    let servers = shape.servers as u64;
    assert!((servers * seconds..=servers * seconds * 4).contains(&leases), "{leases} leases");
    let beats = idle.traffic.sum(|class| class.kind == Kind::Heartbeat).requests;
    assert!((6 * servers * seconds..=14 * servers * seconds).contains(&beats), "{beats} beats");
}
