//! Many calls while everything goes wrong: seeds instead of examples.

mod common;

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use bb_runtime::{BufMut, BufPool, Executor, Rt};
use bb_transport::sim::{SimNet, SimNetConfig, SimNetCounters};
use bb_transport::{
    Address, CallError, Caller, Client, ClientConfig, Role, Server, ServerConfig, ServerStats,
    Service,
};
use common::{Ask, Echo, holds, identity, pool, relayed};

const CALLS: u64 = 400;
const POISON: u8 = 0xA5;

/// What became of the calls.
#[derive(Default, Clone, Copy, Debug, PartialEq, Eq)]
struct Outcomes {
    answered: u64,
    refused: u64,
    timed_out: u64,
    disconnected: u64,
}

#[derive(Debug, PartialEq, Eq)]
struct Storm {
    outcomes: Outcomes,
    network: SimNetCounters,
    server: ServerStats,
    trace: u64,
}

fn ask(rt: &Rt, id: u64) -> Ask {
    let below = |bound| u32::try_from(rt.random_below(bound)).unwrap_or(0);
    let len = || match below(4) {
        0 => 0,
        1 => below(5000),
        2 => below(100_000),
        _ => 1 << 20 >> below(6),
    };
    Ask {
        id,
        put_len: len(),
        get_len: len(),
        delay_ms: if below(10) == 0 { below(800) } else { 0 },
        refuse: below(20) == 0,
    }
}

/// Takes every free buffer and poisons it: whoever writes to memory that was given back is seen.
fn poison(pool: &BufPool) -> Vec<BufMut> {
    let mut taken = Vec::new();
    let mut len = 1 << 20;
    while len >= 4096 {
        while let Some(mut buf) = pool.try_alloc(len) {
            buf.fill(POISON);
            taken.push(buf);
        }
        len /= 2;
    }
    taken
}

fn is_poison(buf: &BufMut) -> bool {
    buf.first() == Some(&POISON) && buf[1..] == buf[..buf.len() - 1]
}

fn storm(seed: u64, config: &SimNetConfig, is_relayed: bool) -> Storm {
    let executor = Executor::simulated(seed);
    let rt = executor.rt();
    let (outcomes, network, server) = executor.block_on(async {
        let net = SimNet::new(&rt, config.clone());
        let to = Address::from("server");
        let mut server_config = ServerConfig::new(identity(Role::Server, "server"), pool(64));
        // So small that calls wait for it.
        server_config.window_bytes_max = 1 << 20;
        let echo = Echo::new(&rt, &server_config.pool);
        let listener = net.host(&rt, "server").listen(&to).await.expect("free");
        let server_pool = server_config.pool.clone();
        let (service, host): (Rc<dyn Service>, _) = if is_relayed {
            let (relay, host) = relayed(&rt, echo);
            (relay, Some(host))
        } else {
            (echo, None)
        };
        let server = Server::start(&rt, listener, service, server_config);
        let pool = pool(48);
        let client_config = ClientConfig::new(identity(Role::Client, "client"), pool.clone());
        let client = Client::new(&rt, net.host(&rt, "client"), client_config);
        let outcomes = Rc::new(Cell::new(Outcomes::default()));
        let left = Rc::new(Cell::new(CALLS));
        for id in 0..CALLS {
            let (rt, client, to) = (rt.clone(), client.clone(), to.clone());
            let (pool, outcomes, left) = (pool.clone(), outcomes.clone(), left.clone());
            rt.clone().spawn(async move {
                rt.sleep(Duration::from_millis(rt.random_below(20_000))).await;
                let ask = ask(&rt, id);
                // Without buffers there is nothing to test; others have them.
                let deadline = Duration::from_millis(1 + rt.random_below(1000));
                if let Some(request) = ask.request(&pool, deadline) {
                    let began = rt.now();
                    let result = client.call(&to, request).await;
                    assert!(rt.now().since(began) <= deadline, "no call outlives its deadline");
                    note(&outcomes, ask, result.map(|answer| (answer.body, answer.payload)));
                }
                left.set(left.get() - 1);
            });
        }
        while left.get() > 0 {
            rt.sleep(Duration::from_secs(1)).await;
        }
        // Late answers, overdue connections: after that every buffer is back.
        let taken = poison(&pool);
        rt.sleep(Duration::from_secs(60)).await;
        assert!(taken.iter().all(is_poison), "seed {seed}: a buffer was written to after its time");
        drop(taken);
        assert_eq!(pool.stats().used_bytes, 0, "seed {seed}: buffers are lost");
        assert_eq!(server.stats().running, 0);
        assert_eq!(server_pool.stats().used_bytes, 0, "seed {seed}: buffers are lost");
        if let Some(host) = host {
            assert_eq!(host.stats().running, 0);
            assert_eq!(host.stats().requests, server.stats().requests);
        }
        (outcomes.get(), net.counters(), server.stats())
    });
    Storm { outcomes, network, server, trace: executor.trace_hash() }
}

fn note(outcomes: &Cell<Outcomes>, ask: Ask, result: Result<(Vec<u8>, Option<BufMut>), CallError>) {
    let mut so_far = outcomes.get();
    match result {
        Ok((body, payload)) => {
            so_far.answered += 1;
            assert_eq!(body, ask.body(), "an answer belongs to its request");
            let payload = payload.as_deref().unwrap_or(&[]);
            assert_eq!(payload.len(), ask.get_len as usize);
            assert!(holds(payload, !ask.id));
        }
        Err(CallError::Refused(..)) => so_far.refused += 1,
        Err(CallError::TimedOut) => so_far.timed_out += 1,
        Err(CallError::Disconnected { .. }) => so_far.disconnected += 1,
        Err(CallError::Rejected(why)) => panic!("{why}"),
    }
    outcomes.set(so_far);
}

fn seeds() -> u64 {
    std::env::var("BB_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(10)
}

#[test]
fn every_call_ends_whatever_the_network_does() {
    let mut total = SimNetCounters::default();
    let mut outcomes = Outcomes::default();
    for seed in 0..seeds() {
        let storm = storm(seed, &SimNetConfig::rough(), false);
        let (o, n) = (storm.outcomes, storm.network);
        assert!(o.answered > CALLS / 4, "seed {seed}: {storm:?}");
        outcomes.answered += o.answered;
        outcomes.timed_out += o.timed_out;
        outcomes.disconnected += o.disconnected;
        total.lost += n.lost;
        total.duplicated += n.duplicated;
        total.reordered += n.reordered;
        total.late += n.late;
        total.resets += n.resets;
        total.corrupted += n.corrupted;
        total.slow += n.slow;
    }
    // A fault that never happened tested nothing.
    for (what, count) in [
        ("lost", total.lost),
        ("duplicated", total.duplicated),
        ("reordered", total.reordered),
        ("late", total.late),
        ("resets", total.resets),
        ("corrupted", total.corrupted),
        ("slow", total.slow),
        ("timed out", outcomes.timed_out),
        ("disconnected", outcomes.disconnected),
    ] {
        assert!(count > 0, "{what} never happened: {total:?} {outcomes:?}");
    }
}

#[test]
fn calls_end_alike_where_another_reactor_answers_them() {
    for seed in 0..seeds() {
        let storm = storm(seed, &SimNetConfig::rough(), true);
        assert!(storm.outcomes.answered > CALLS / 4, "seed {seed}: {storm:?}");
        assert!(storm.outcomes.refused > 0, "seed {seed}: {storm:?}");
    }
}

#[test]
fn an_honest_client_never_overruns_its_window() {
    // Without duplicates, which TCP does not make either: a payload that comes twice is charged
    // twice.
    let config = SimNetConfig { duplicate_ppm: 0, corrupt_ppm: 0, ..SimNetConfig::rough() };
    let mut most = 0;
    for seed in 0..seeds() {
        let storm = storm(seed, &config, seed % 2 == 1);
        assert_eq!(storm.server.bad_peers, 0, "seed {seed}: {storm:?}");
        most = most.max(storm.server.under_way_bytes_max);
    }
    assert!((900_000..=1 << 20).contains(&most), "the window was never full: {most} bytes");
}

/// Server lives follow each other, partitions come and go, and clients die in the middle.
fn upheaval(seed: u64) -> (Outcomes, SimNetCounters, u64) {
    let executor = Executor::simulated(seed);
    let rt = executor.rt();
    let (outcomes, network) = executor.block_on(async {
        let net = SimNet::new(&rt, SimNetConfig::rough());
        let (to, from) = (Address::from("server"), Address::from("client"));
        let pool = pool(16);
        let outcomes = Rc::new(Cell::new(Outcomes::default()));
        let mut client_rt = rt.new_domain();
        for round in 0..12 {
            let server_rt = rt.new_domain();
            let config = ServerConfig::new(identity(Role::Server, "server"), common::pool(64));
            let echo = Echo::new(&server_rt, &config.pool);
            let listener = net.host(&server_rt, "server").listen(&to).await.expect("free");
            let server = Server::start(&server_rt, listener, echo, config);
            if round % 3 == 0 {
                client_rt = rt.new_domain();
            }
            let config = ClientConfig::new(identity(Role::Client, "client"), pool.clone());
            let client = Client::new(&client_rt, net.host(&client_rt, "client"), config);
            for id in 0..60 {
                let (task_rt, client, to) = (client_rt.clone(), client.clone(), to.clone());
                let (pool, outcomes) = (pool.clone(), outcomes.clone());
                client_rt.spawn(async move {
                    let rt = task_rt;
                    rt.sleep(Duration::from_millis(rt.random_below(4000))).await;
                    let ask = ask(&rt, id);
                    if let Some(request) = ask.request(&pool, Duration::from_secs(1)) {
                        let result = client.call(&to, request).await;
                        note(&outcomes, ask, result.map(|a| (a.body, a.payload)));
                    }
                });
            }
            rt.sleep(Duration::from_millis(rt.random_below(3000))).await;
            match rt.random_below(3) {
                0 => net.partition(&to, &from),
                1 => net.block(&from, &to),
                _ => net.reset_between(&to, &from),
            }
            rt.sleep(Duration::from_millis(rt.random_below(3000))).await;
            net.heal_all();
            if round % 3 == 2 {
                rt.kill(client_rt.domain());
            }
            if rt.random_below(2) == 0 {
                server.stop(Duration::from_millis(100)).await;
            }
            rt.kill(server_rt.domain());
        }
        drop(client_rt);
        rt.sleep(Duration::from_secs(60)).await;
        assert_eq!(pool.stats().used_bytes, 0, "seed {seed}: buffers are lost");
        (outcomes.get(), net.counters())
    });
    (outcomes, network, executor.trace_hash())
}

#[test]
fn processes_that_die_at_any_await_take_nothing_with_them() {
    let mut total = SimNetCounters::default();
    let mut answered = 0;
    for seed in 0..seeds() {
        let (outcomes, network, trace) = upheaval(seed);
        assert!(outcomes.answered > 0, "seed {seed}: {outcomes:?} {network:?}");
        answered += outcomes.answered;
        total.swallowed += network.swallowed;
        total.died_loudly += network.died_loudly;
        total.died_silently += network.died_silently;
        total.connects_failed += network.connects_failed;
        if seed == 0 {
            assert_eq!((outcomes, network, trace), upheaval(seed), "one seed, one course");
        }
    }
    assert!(answered > 100 * seeds(), "{answered} answers");
    for count in [total.swallowed, total.died_loudly, total.died_silently, total.connects_failed] {
        assert!(count > 0, "a fault never happened: {total:?}");
    }
}

#[test]
fn one_seed_gives_one_storm() {
    let rough = SimNetConfig::rough();
    assert_eq!(storm(5, &rough, true), storm(5, &rough, true));
    assert_ne!(storm(5, &rough, true).trace, storm(6, &rough, true).trace);
}

/// A late answer to a request that timed out, while its sink's memory is somebody else's.
/// True if that memory was written to.
fn late_answer_hits_foreign_memory() -> bool {
    let executor = Executor::simulated(1);
    let rt = executor.rt();
    executor.block_on(async {
        let net = SimNet::new(&rt, SimNetConfig::calm());
        let to = Address::from("server");
        let server_config = ServerConfig::new(identity(Role::Server, "server"), pool(64));
        let echo = Echo::new(&rt, &server_config.pool);
        let listener = net.host(&rt, "server").listen(&to).await.expect("free");
        let server = Server::start(&rt, listener, echo, server_config);
        let pool = pool(4);
        let client_config = ClientConfig::new(identity(Role::Client, "client"), pool.clone());
        let client = Client::new(&rt, net.host(&rt, "client"), client_config);
        let ask = Ask { get_len: 8192, delay_ms: 500, ..Ask::new(1) };
        let request = ask.request(&pool, Duration::from_millis(100)).expect("room");
        let outcome = client.call(&to, request).await;
        assert!(matches!(outcome, Err(CallError::TimedOut)));
        // Leave some for the transport.
        let mut taken = poison(&pool);
        let spare = taken.iter().rposition(|buf| buf.len() == 1 << 20);
        drop(spare.map(|at| taken.remove(at)));
        rt.sleep(Duration::from_secs(1)).await;
        assert_eq!(server.stats().requests, 1);
        !taken.iter().all(is_poison)
    })
}

#[test]
fn rule_6_a_late_answer_never_lands_in_a_buffer_that_was_given_back() {
    assert!(!late_answer_hits_foreign_memory());
}

#[cfg(feature = "planted")]
#[test]
fn the_planted_reuse_of_a_timed_out_buffer_is_seen() {
    bb_transport::planted::reuse_timed_out_buffer(true);
    let hit = late_answer_hits_foreign_memory();
    bb_transport::planted::reuse_timed_out_buffer(false);
    assert!(hit);
}
