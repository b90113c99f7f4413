//! What a call promises, over the simulated network.

mod common;

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use bb_proto::{Code, Kind, ServiceClass, Tick};
use bb_runtime::{BufPool, Executor, Rt};
use bb_transport::link::Lane;
use bb_transport::sim::{SimNet, SimNetConfig};
use bb_transport::{
    Address, CallError, Caller, Client, ClientConfig, Outgoing, Role, Server, ServerConfig,
};
use common::{Ask, Echo, holds, identity, pool};

struct World {
    net: SimNet,
    server_rt: Rt,
    server: Server,
    echo: Rc<Echo>,
    client: Client,
    pool: BufPool,
    address: Address,
}

async fn serve(net: &SimNet, rt: &Rt, config: ServerConfig) -> (Server, Rc<Echo>) {
    let network = net.host(rt, "server");
    let listener = network.listen(&"server".into()).await.expect("a free address");
    let echo = Echo::new(rt, &config.pool);
    (Server::start(rt, listener, echo.clone(), config), echo)
}

async fn world(rt: &Rt, config: SimNetConfig) -> World {
    let net = SimNet::new(rt, config);
    let server_rt = rt.new_domain();
    let server_config = ServerConfig::new(identity(Role::Server, "server"), pool(64));
    let (server, echo) = serve(&net, &server_rt, server_config).await;
    let client_rt = rt.new_domain();
    let pool = pool(32);
    let network = net.host(&client_rt, "client");
    let config = ClientConfig::new(identity(Role::Client, "client"), pool.clone());
    let client = Client::new(&client_rt, network, config);
    World { net, server_rt, server, echo, client, pool, address: "server".into() }
}

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn an_answer_brings_body_payload_and_vitals() {
    let executor = Executor::simulated(1);
    let rt = executor.rt();
    executor.block_on(async {
        let w = world(&rt, SimNetConfig::calm()).await;
        let ask = Ask { put_len: 300_000, get_len: 70_000, ..Ask::new(5) };
        let request = ask.request(&w.pool, SECOND).unwrap().to(3, 4);
        let answer = w.client.call(&w.address, request).await.unwrap();
        assert_eq!(answer.body, ask.body());
        let payload = answer.payload.unwrap();
        assert_eq!(payload.len(), 70_000);
        assert!(holds(&payload, !5));
        assert_eq!(
            (answer.vitals.tick, answer.vitals.load, answer.vitals.free_mib),
            (Tick(7), 3, 9)
        );
        assert_eq!(w.echo.peers.borrow()[0].role, Role::Client);
        assert_eq!(&*w.echo.peers.borrow()[0].host, "client");
        drop(payload);
        assert_eq!(w.pool.stats().used_bytes, 0, "nothing is kept behind");
    });
}

#[test]
fn a_refusal_brings_its_reason_and_vitals() {
    let executor = Executor::simulated(1);
    let rt = executor.rt();
    executor.block_on(async {
        let w = world(&rt, SimNetConfig::calm()).await;
        let ask = Ask { refuse: true, ..Ask::new(5) };
        let request = ask.request(&w.pool, SECOND).unwrap();
        match w.client.call(&w.address, request).await {
            Err(CallError::Refused(failure, vitals)) => {
                assert_eq!(failure.kind(), Code::Stale);
                assert_eq!(vitals.free_mib, 9);
            }
            other => panic!("{other:?}"),
        }
    });
}

#[test]
fn answers_come_in_any_order_over_one_connection_per_lane() {
    let executor = Executor::simulated(1);
    let rt = executor.rt();
    executor.block_on(async {
        let w = world(&rt, SimNetConfig::calm()).await;
        let order = Rc::new(RefCell::new(Vec::new()));
        let mut tasks = Vec::new();
        for id in 0..20 {
            let ask = Ask { delay_ms: 500 - 20 * id, ..Ask::new(u64::from(id)) };
            let mut request = ask.request(&w.pool, SECOND).unwrap();
            request.class = if id % 2 == 0 { ServiceClass::Control } else { ServiceClass::Client };
            let (order, call) = (order.clone(), w.client.call(&w.address, request));
            tasks.push(rt.spawn(async move {
                call.await.unwrap();
                order.borrow_mut().push(id);
            }));
        }
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(*order.borrow(), (0..20).rev().collect::<Vec<_>>());
        assert_eq!(w.net.counters().connections, 2);
        assert_eq!(w.server.stats().requests, 20);
    });
}

#[test]
fn payload_under_way_stays_within_the_window() {
    let executor = Executor::simulated(1);
    let rt = executor.rt();
    executor.block_on(async {
        let net = SimNet::new(&rt, SimNetConfig::calm());
        let mut config = ServerConfig::new(identity(Role::Server, "server"), pool(64));
        config.window_bytes_max = 2 << 20;
        let (server, echo) = serve(&net, &rt, config).await;
        let pool = pool(64);
        let config = ClientConfig::new(identity(Role::Client, "client"), pool.clone());
        let client = Client::new(&rt, net.host(&rt, "client"), config);
        let to = Address::from("server");
        let mut tasks = Vec::new();
        for id in 0..40 {
            let ask = Ask { put_len: 700_000, delay_ms: 10, ..Ask::new(id) };
            let request = ask.request(&pool, 60 * SECOND).unwrap();
            tasks.push(rt.spawn(client.call(&to, request)));
        }
        for task in tasks {
            task.await.unwrap().unwrap();
        }
        let stats = server.stats();
        assert_eq!((stats.bad_peers, stats.requests), (0, 40));
        assert!(stats.under_way_bytes_max <= 2 << 20, "{stats:?}");
        assert_eq!(echo.running_max.get(), 2, "two fit the window, and two were used");
        assert_eq!(client.credit(&to, Lane::Bulk), Some((0, 2 << 20)));
    });
}

#[test]
fn a_request_that_waits_for_credit_can_time_out_without_a_trace() {
    let executor = Executor::simulated(1);
    let rt = executor.rt();
    executor.block_on(async {
        let net = SimNet::new(&rt, SimNetConfig::calm());
        let mut config = ServerConfig::new(identity(Role::Server, "server"), pool(64));
        config.window_bytes_max = 1 << 20;
        let (server, _echo) = serve(&net, &rt, config).await;
        let pool = pool(8);
        let config = ClientConfig::new(identity(Role::Client, "client"), pool.clone());
        let client = Client::new(&rt, net.host(&rt, "client"), config);
        let to = Address::from("server");
        let large = Ask { put_len: 1 << 20, delay_ms: 500, ..Ask::new(1) };
        let first = rt.spawn(client.call(&to, large.request(&pool, SECOND).unwrap()));
        rt.sleep(Duration::from_millis(10)).await;
        let late = large.request(&pool, Duration::from_millis(100)).unwrap();
        assert!(matches!(client.call(&to, late).await, Err(CallError::TimedOut)));
        assert_eq!(pool.stats().used_bytes, 1 << 20, "only the first holds its buffer");
        first.await.unwrap().unwrap();
        assert_eq!(server.stats().requests, 1);
    });
}

#[test]
fn rule_6_buffers_of_a_timed_out_request_are_out_of_use_until_its_answer() {
    let executor = Executor::simulated(1);
    let rt = executor.rt();
    executor.block_on(async {
        let w = world(&rt, SimNetConfig::calm()).await;
        let ask = Ask { put_len: 5000, get_len: 5000, delay_ms: 2000, ..Ask::new(1) };
        let request = ask.request(&w.pool, SECOND).unwrap();
        let held = w.pool.stats().used_bytes;
        assert!(matches!(w.client.call(&w.address, request).await, Err(CallError::TimedOut)));
        assert_eq!(w.pool.stats().used_bytes, held);
        rt.sleep(2 * SECOND).await;
        assert_eq!(w.pool.stats().used_bytes, 0);
    });
}

#[test]
fn buffers_of_a_lost_request_come_back_by_ending_the_connection() {
    let executor = Executor::simulated(1);
    let rt = executor.rt();
    executor.block_on(async {
        let w = world(&rt, SimNetConfig::calm()).await;
        w.client.call(&w.address, Ask::new(0).request(&w.pool, SECOND).unwrap()).await.unwrap();
        w.net.set_config(SimNetConfig { loss_ppm: 1_000_000, ..SimNetConfig::calm() });
        let ask = Ask { put_len: 5000, get_len: 5000, ..Ask::new(1) };
        let request = ask.request(&w.pool, SECOND).unwrap();
        assert!(matches!(w.client.call(&w.address, request).await, Err(CallError::TimedOut)));
        w.net.set_config(SimNetConfig::calm());
        rt.sleep(5 * SECOND).await;
        assert_ne!(w.pool.stats().used_bytes, 0);
        rt.sleep(6 * SECOND).await;
        assert_eq!(w.pool.stats().used_bytes, 0);
        w.client.call(&w.address, Ask::new(2).request(&w.pool, SECOND).unwrap()).await.unwrap();
        assert_eq!(w.net.counters().connections, 2);
    });
}

#[test]
fn work_whose_deadline_has_passed_is_not_begun() {
    let executor = Executor::simulated(1);
    let rt = executor.rt();
    executor.block_on(async {
        let net = SimNet::new(&rt, SimNetConfig::calm());
        let mut config = ServerConfig::new(identity(Role::Server, "server"), pool(64));
        // Two payloads of 1 MiB fit the pot; the third waits for its buffer past its deadline.
        config.budget_bytes = 0;
        config.window_bytes_max = 1 << 20;
        let (server, echo) = serve(&net, &rt, config).await;
        let pool = pool(8);
        let to = Address::from("server");
        let mut tasks = Vec::new();
        for (id, name) in ["client-a", "client-b"].into_iter().enumerate() {
            let config = ClientConfig::new(identity(Role::Client, name), pool.clone());
            let client = Client::new(&rt, net.host(&rt, name), config);
            let ask = Ask { put_len: 1 << 20, delay_ms: 800, ..Ask::new(id as u64) };
            let deadline = if id == 0 { SECOND } else { SECOND / 2 };
            let call = client.call(&to, ask.request(&pool, deadline).unwrap());
            tasks.push(rt.spawn(call));
            rt.sleep(Duration::from_millis(10)).await;
        }
        assert!(tasks.remove(0).await.unwrap().is_ok());
        assert!(matches!(tasks.remove(0).await.unwrap(), Err(CallError::TimedOut)));
        rt.sleep(SECOND).await;
        assert_eq!(server.stats().too_late, 1);
        assert!(!echo.seen.borrow().contains_key(&1));
    });
}

#[test]
fn nobody_listening_is_told_as_not_sent_and_attempts_are_spaced_out() {
    let executor = Executor::simulated(1);
    let rt = executor.rt();
    executor.block_on(async {
        let net = SimNet::new(&rt, SimNetConfig::calm());
        let pool = pool(4);
        let config = ClientConfig::new(identity(Role::Client, "client"), pool.clone());
        let client = Client::new(&rt, net.host(&rt, "client"), config);
        let end = rt.now() + 20 * SECOND;
        let mut calls = 0_u64;
        while rt.now() < end {
            let request = Ask::new(1).request(&pool, 5 * SECOND).unwrap();
            let error = client.call(&"nowhere".into(), request).await.unwrap_err();
            assert!(matches!(error, CallError::Disconnected { maybe_sent: false }), "{error:?}");
            calls += 1;
        }
        assert!((20..60).contains(&calls), "{calls} attempts in 20 s");
    });
}

#[test]
fn a_call_waits_through_a_restart_when_it_is_repeated() {
    let executor = Executor::simulated(3);
    let rt = executor.rt();
    executor.block_on(async {
        let w = world(&rt, SimNetConfig::calm()).await;
        w.client.call(&w.address, Ask::new(0).request(&w.pool, SECOND).unwrap()).await.unwrap();
        let slow = Ask { delay_ms: 400, ..Ask::new(1) };
        let call = rt.spawn(w.client.call(&w.address, slow.request(&w.pool, SECOND).unwrap()));
        rt.sleep(Duration::from_millis(100)).await;
        rt.kill(w.server_rt.domain());
        let error = call.await.unwrap().unwrap_err();
        assert!(matches!(error, CallError::Disconnected { maybe_sent: true }), "{error:?}");
        rt.sleep(Duration::from_millis(300)).await;
        let again = rt.new_domain();
        let config = ServerConfig::new(identity(Role::Server, "server"), pool(64));
        let (_server, echo) = serve(&w.net, &again, config).await;
        let answer = w.client.call(&w.address, Ask::new(2).request(&w.pool, SECOND).unwrap()).await;
        answer.unwrap();
        assert!(echo.seen.borrow().contains_key(&2));
        assert_eq!(w.net.counters().died_loudly, 1);
    });
}

#[test]
fn a_silent_death_is_noticed_by_deadlines_and_by_the_next_life() {
    let executor = Executor::simulated(3);
    let rt = executor.rt();
    executor.block_on(async {
        let config = SimNetConfig { half_open_ppm: 1_000_000, ..SimNetConfig::calm() };
        let w = world(&rt, config).await;
        w.client.call(&w.address, Ask::new(0).request(&w.pool, SECOND).unwrap()).await.unwrap();
        rt.kill(w.server_rt.domain());
        let call = w.client.call(&w.address, Ask::new(1).request(&w.pool, SECOND).unwrap()).await;
        assert!(matches!(call, Err(CallError::TimedOut)));
        let config = ServerConfig::new(identity(Role::Server, "server"), pool(64));
        let (_server, _echo) = serve(&w.net, &rt.new_domain(), config).await;
        let call = w.client.call(&w.address, Ask::new(2).request(&w.pool, SECOND).unwrap()).await;
        assert!(matches!(call, Err(CallError::Disconnected { maybe_sent: true })), "{call:?}");
        w.client.call(&w.address, Ask::new(3).request(&w.pool, SECOND).unwrap()).await.unwrap();
        assert_eq!(w.net.counters().died_silently, 1);
    });
}

#[test]
fn another_cluster_is_rejected_and_says_so() {
    let executor = Executor::simulated(1);
    let rt = executor.rt();
    executor.block_on(async {
        let w = world(&rt, SimNetConfig::calm()).await;
        let call = |cluster: Vec<u8>, role| {
            let mut stranger = identity(role, "stranger");
            stranger.cluster = cluster;
            let config = ClientConfig::new(stranger, w.pool.clone());
            let client = Client::new(&rt, w.net.host(&rt, "stranger"), config);
            client.call(&w.address, Ask::new(1).request(&w.pool, SECOND).unwrap())
        };
        for (cluster, role) in [(vec![9; 16], Role::Client), (Vec::new(), Role::Server)] {
            match call(cluster, role).await {
                Err(CallError::Rejected(why)) => assert!(why.contains("another cluster"), "{why}"),
                other => panic!("{other:?}"),
            }
        }
        call(Vec::new(), Role::Client).await.expect("a client may not know its cluster yet");
    });
}

#[test]
fn a_graceful_stop_answers_what_runs_and_takes_nothing_new() {
    let executor = Executor::simulated(1);
    let rt = executor.rt();
    executor.block_on(async {
        let w = world(&rt, SimNetConfig::calm()).await;
        let slow = Ask { delay_ms: 300, get_len: 9000, ..Ask::new(1) };
        let call = rt.spawn(w.client.call(&w.address, slow.request(&w.pool, SECOND).unwrap()));
        rt.sleep(Duration::from_millis(100)).await;
        assert!(w.server.stop(SECOND).await, "all ended within the limit");
        call.await.unwrap().expect("it was running");
        let call = w.client.call(&w.address, Ask::new(2).request(&w.pool, SECOND).unwrap()).await;
        assert!(matches!(call, Err(CallError::Disconnected { .. })), "{call:?}");
        assert_eq!(w.echo.disconnected.get(), 1);
    });
}

#[test]
fn a_stop_drops_what_does_not_end() {
    let executor = Executor::simulated(1);
    let rt = executor.rt();
    executor.block_on(async {
        let w = world(&rt, SimNetConfig::calm()).await;
        let slow = Ask { delay_ms: 60_000, ..Ask::new(1) };
        let call = rt.spawn(w.client.call(&w.address, slow.request(&w.pool, 90 * SECOND).unwrap()));
        rt.sleep(Duration::from_millis(100)).await;
        assert!(!w.server.stop(SECOND).await);
        let call = call.await.unwrap();
        assert!(matches!(call, Err(CallError::Disconnected { maybe_sent: true })), "{call:?}");
        assert_eq!(w.echo.running.get(), 0);
        assert_eq!(w.server.stats().running, 0);
    });
}

#[test]
fn a_partition_lets_nothing_through_and_heals() {
    let executor = Executor::simulated(1);
    let rt = executor.rt();
    executor.block_on(async {
        let w = world(&rt, SimNetConfig::calm()).await;
        w.client.call(&w.address, Ask::new(0).request(&w.pool, SECOND).unwrap()).await.unwrap();
        // One way: the request arrives, its answer does not.
        w.net.block(&w.address, &"client".into());
        let call = w.client.call(&w.address, Ask::new(1).request(&w.pool, SECOND).unwrap()).await;
        assert!(matches!(call, Err(CallError::TimedOut)));
        assert!(w.echo.seen.borrow().contains_key(&1));
        w.net.partition(&w.address, &"client".into());
        let call = w.client.call(&w.address, Ask::new(2).request(&w.pool, SECOND).unwrap()).await;
        assert!(matches!(call, Err(CallError::TimedOut)));
        assert!(!w.echo.seen.borrow().contains_key(&2));
        w.net.heal(&w.address, &"client".into());
        w.client.call(&w.address, Ask::new(3).request(&w.pool, SECOND).unwrap()).await.unwrap();
    });
}

#[test]
fn a_call_to_the_own_service_copies_no_payload() {
    let executor = Executor::simulated(1);
    let rt = executor.rt();
    executor.block_on(async {
        let w = world(&rt, SimNetConfig::calm()).await;
        w.client.set_local("self".into(), w.echo.clone());
        let to = Address::from("self");
        for cut in [false, true] {
            let ask = Ask { put_len: 300_000, get_len: 70_000, ..Ask::new(5) };
            let mut request = ask.request(&w.pool, SECOND).unwrap();
            if !cut {
                let whole = common_whole(&w.pool, 300_000, 5);
                request = Outgoing { payload: vec![whole], ..request };
            }
            let answer = w.client.call(&to, request).await.unwrap();
            assert!(holds(&answer.payload.unwrap(), !5));
            assert_eq!(answer.vitals.free_mib, 9);
        }
        let slow = Ask { delay_ms: 3000, ..Ask::new(6) };
        let call = w.client.call(&to, slow.request(&w.pool, SECOND).unwrap()).await;
        assert!(matches!(call, Err(CallError::TimedOut)));
        let refused = Ask { refuse: true, ..Ask::new(7) };
        let call = w.client.call(&to, refused.request(&w.pool, SECOND).unwrap()).await;
        assert!(matches!(call, Err(CallError::Refused(..))));
        assert_eq!(w.net.counters().connections, 0);
        assert_eq!(w.client.stats().local_calls, 4);
    });
}

#[test]
fn a_connection_closed_behind_a_partition_is_noticed_at_the_next_request() {
    let executor = Executor::simulated(1);
    let rt = executor.rt();
    executor.block_on(async {
        let w = world(&rt, SimNetConfig::calm()).await;
        w.client.call(&w.address, Ask::new(0).request(&w.pool, SECOND).unwrap()).await.unwrap();
        w.net.partition(&w.address, &"client".into());
        assert!(w.server.stop(SECOND).await);
        w.net.heal_all();
        let call = w.client.call(&w.address, Ask::new(1).request(&w.pool, SECOND).unwrap()).await;
        assert!(matches!(call, Err(CallError::Disconnected { maybe_sent: true })), "{call:?}");
    });
}

#[test]
fn the_last_handle_takes_its_connections_with_it() {
    let executor = Executor::simulated(1);
    let rt = executor.rt();
    executor.block_on(async {
        let w = world(&rt, SimNetConfig::calm()).await;
        w.client.call(&w.address, Ask::new(0).request(&w.pool, SECOND).unwrap()).await.unwrap();
        assert_eq!(w.server.stats().connections, 1);
        drop(w.client);
        rt.sleep(SECOND).await;
        assert_eq!((w.server.stats().connections, w.echo.disconnected.get()), (0, 1));
    });
}

fn common_whole(pool: &BufPool, len: usize, id: u64) -> bb_runtime::Buf {
    let mut buf = pool.try_alloc(len).expect("room");
    common::fill(&mut buf, id);
    buf.freeze()
}

#[test]
fn what_no_frame_can_carry_is_refused_before_it_is_sent() {
    let executor = Executor::simulated(1);
    let rt = executor.rt();
    executor.block_on(async {
        let w = world(&rt, SimNetConfig::calm()).await;
        let body = vec![0; (1 << 20) + 1];
        let request = Outgoing::new(Kind::Ping, ServiceClass::Client, SECOND, body);
        let call = w.client.call(&w.address, request).await;
        assert!(matches!(call, Err(CallError::Refused(..))), "{call:?}");
    });
}
