//! Several servers in network namespaces, and everything that may happen to one of them at a time,
//! under clients that compare what they read. `./x thrash` runs this for as long as one likes.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::harness::{not_run, now, pause, random};
use crate::load::{Stamps, check, check_backing, under_load};
use crate::namespaces::Namespaces;
use crate::several::Servers;

const SERVERS: u32 = 3;

/// What may happen to a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    /// SIGKILL, and a new process a little later.
    Kill,
    /// SIGSTOP for longer than a lease, then SIGCONT.
    Freeze,
    /// Its link goes down, and up again.
    Link,
    /// What it sends to one other server, or to all of them, goes nowhere.
    Blackhole,
    /// SIGTERM, and a new process at once.
    Restart,
}

const FAULTS: [Fault; 5] =
    [Fault::Kill, Fault::Freeze, Fault::Link, Fault::Blackhole, Fault::Restart];

#[test]
fn real_faults_of_one_server_at_a_time_are_pauses_and_no_errors() {
    let net = match Namespaces::new(SERVERS) {
        Ok(net) => net,
        Err(why) => return not_run(&why),
    };
    let mut random = random();
    let minutes: u64 = std::env::var("BB_THRASH_MINUTES")
        .map_or(0, |text| text.parse().expect("BB_THRASH_MINUTES is a number"));
    let only = std::env::var("BB_THRASH_ONLY").unwrap_or_default();
    let is_chosen = |fault: &Fault| only.is_empty() || only.contains(&format!("{fault:?}"));
    let chosen: Vec<Fault> = FAULTS.into_iter().filter(is_chosen).collect();
    assert!(!chosen.is_empty(), "BB_THRASH_ONLY names no fault of {FAULTS:?}");
    let mut servers = Servers::started(SERVERS, "2+1", Some(net));
    let mut counts: BTreeMap<Fault, u32> = BTreeMap::new();
    let start = now();
    let model = under_load(&mut servers, &mut random, |servers, random, stamps| {
        let mut all = chosen.clone();
        random.shuffle(&mut all);
        for fault in all {
            happens(fault, servers, random, stamps);
            *counts.entry(fault).or_default() += 1;
        }
        while start.elapsed() < Duration::from_secs(60 * minutes) {
            let fault = chosen[random.usize(0..chosen.len())];
            happens(fault, servers, random, stamps);
            *counts.entry(fault).or_default() += 1;
        }
    });
    check(&servers, &model);
    check_backing(&servers, &model);
    println!("faults: {counts:?} in {} s", start.elapsed().as_secs());
}

/// One fault, and the time until everything is as it was.
fn happens(fault: Fault, servers: &mut Servers, random: &mut fastrand::Rng, stamps: &Stamps) {
    let victim = random.usize(0..servers.nodes.len());
    let number = servers.nodes[victim].number;
    // Longer than a lease, so that others take over, or shorter, so that they don't.
    let length_ms = if random.u32(0..4) == 0 { random.u64(500..3_000) } else { 6_500 };
    let began = now();
    match fault {
        Fault::Kill => {
            servers.nodes[victim].kill();
            pause(length_ms);
            servers.nodes[victim].start();
        }
        Fault::Freeze => {
            servers.nodes[victim].freeze();
            pause(length_ms);
            servers.nodes[victim].thaw();
        }
        Fault::Link => {
            let net = servers.net.as_ref().expect("a network");
            net.link(number, false);
            pause(length_ms);
            net.link(number, true);
        }
        Fault::Blackhole => {
            let net = servers.net.as_ref().expect("a network");
            let others: Vec<u32> = (1..=SERVERS).filter(|other| *other != number).collect();
            let deaf = if random.bool() { &others[..1] } else { &others[..] };
            deaf.iter().for_each(|other| net.blackhole(number, *other, true));
            pause(length_ms);
            deaf.iter().for_each(|other| net.blackhole(number, *other, false));
        }
        Fault::Restart => {
            servers.nodes[victim].stop();
            servers.nodes[victim].start();
        }
    }
    let over = now();
    servers.wait_until_full(90);
    // Clients go on, too, before the next one.
    while stamps.first_after(over).is_none() {
        assert!(over.elapsed() < Duration::from_secs(60), "no write goes through after {fault:?}");
        pause(20);
    }
    println!(
        "{fault:?} of server {number} for {length_ms} ms: longest write {:.2} s, full redundancy \
         {:.2} s after its end",
        stamps.longest_after(began).as_secs_f64(),
        over.elapsed().as_secs_f64()
    );
}
