//! What a call promises where one reactor has the connections and another one the service. Two
//! tasks of one executor stand for the two.

mod common;

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use bb_proto::{Kind, Tick};
use bb_runtime::{BufPool, Executor, Order, Rt, VirtualTime};
use bb_transport::link::Lane;
use bb_transport::relay::{self, Host, Relay};
use bb_transport::sim::{SimNet, SimNetConfig};
use bb_transport::{
    Address, CallError, Caller, Client, ClientConfig, HandleFuture, Incoming, Peer, Response, Role,
    Server, ServerConfig, Service, Vitals,
};
use common::{Ask, Echo, holds, identity, pool, relayed};

const SECOND: Duration = Duration::from_secs(1);

struct World {
    server: Server,
    server_pool: BufPool,
    client: Client,
    pool: BufPool,
    address: Address,
}

impl World {
    async fn new(rt: &Rt, service: Rc<dyn Service>, server_pool: BufPool) -> Self {
        let net = SimNet::new(rt, SimNetConfig::calm());
        let address = Address::from("server");
        let listener = net.host(rt, "server").listen(&address).await.expect("free");
        let config = ServerConfig::new(identity(Role::Server, "server"), server_pool.clone());
        let server = Server::start(rt, listener, service, config);
        let pool = pool(32);
        let config = ClientConfig::new(identity(Role::Client, "client"), pool.clone());
        let client = Client::new(rt, net.host(rt, "client"), config);
        Self { server, server_pool, client, pool, address }
    }

    async fn call(&self, ask: Ask, deadline: Duration) -> Result<(), CallError> {
        let request = ask.request(&self.pool, deadline).expect("room").to(3, 4);
        let answer = self.client.call(&self.address, request).await?;
        assert_eq!(answer.body, ask.body());
        assert!(holds(answer.payload.as_deref().unwrap_or(&[]), !ask.id));
        let vitals = answer.vitals;
        assert_eq!((vitals.tick, vitals.load, vitals.free_mib), (Tick(7), 3, 9));
        Ok(())
    }
}

async fn echo_world(rt: &Rt) -> (World, Rc<Echo>, Host) {
    let server_pool = pool(64);
    let echo = Echo::new(rt, &server_pool);
    let (relay, host) = relayed(rt, echo.clone());
    (World::new(rt, relay, server_pool).await, echo, host)
}

#[test]
fn an_answer_brings_body_payload_and_the_vitals_of_the_service() {
    let executor = Executor::simulated(1);
    let rt = executor.rt();
    executor.block_on(async {
        let (w, echo, host) = echo_world(&rt).await;
        let ask = Ask { put_len: 300_000, get_len: 70_000, ..Ask::new(5) };
        w.call(ask, SECOND).await.expect("an answer");
        let refused = Ask { refuse: true, ..Ask::new(6) };
        match w.call(refused, SECOND).await {
            Err(CallError::Refused(_, vitals)) => assert_eq!(vitals.free_mib, 9),
            other => panic!("{other:?}"),
        }
        assert_eq!(&*echo.peers.borrow()[0].host, "client");
        let connections: Vec<u64> = echo.peers.borrow().iter().map(|p| p.connection).collect();
        assert_eq!(connections[0], connections[1], "the peer stays the same one");
        // Buffers, credit and places are back.
        assert_eq!(w.client.credit(&w.address, Lane::Bulk).expect("connected").0, 0);
        assert_eq!((w.pool.stats().used_bytes, w.server_pool.stats().used_bytes), (0, 0));
        assert_eq!((host.stats().requests, host.stats().running), (2, 0));
        assert_eq!(w.server.stats().running, 0);
    });
}

/// Notes in which order it begins; answers at once, but each third after a moment.
struct Noting {
    rt: Rt,
    begun: RefCell<Vec<u64>>,
    ended: RefCell<Vec<u64>>,
}

impl Service for Noting {
    fn handle(self: Rc<Self>, request: Incoming) -> HandleFuture {
        Box::pin(async move {
            let id = Ask::parse(&request.body).id;
            self.begun.borrow_mut().push(id);
            if id.is_multiple_of(3) {
                self.rt.sleep(Duration::from_millis(id % 7)).await;
            }
            self.ended.borrow_mut().push(id);
            Ok(Response::body(request.body))
        })
    }

    fn vitals(&self, _kind: Kind, target: u32) -> Vitals {
        Vitals { tick: Tick(7), load: target, free_mib: 9 }
    }
}

#[test]
fn requests_of_a_connection_begin_in_its_order_and_answers_leave_as_they_are_given() {
    // The order of reactors: first woken, first run.
    let executor = Executor::new(VirtualTime::new(), Order::Fifo, 1);
    let rt = executor.rt();
    executor.block_on(async {
        let (begun, ended) = (RefCell::default(), RefCell::default());
        let service = Rc::new(Noting { rt: rt.clone(), begun, ended });
        let (relay, host) = relayed(&rt, service.clone());
        let w = Rc::new(World::new(&rt, relay, pool(64)).await);
        w.call(Ask::new(0), SECOND).await.expect("connects");
        let answered = Rc::new(RefCell::new(vec![0]));
        let mut calls = Vec::new();
        for id in 1..300 {
            let (w, answered) = (w.clone(), answered.clone());
            calls.push(rt.spawn(async move {
                w.call(Ask::new(id), SECOND).await.expect("an answer");
                answered.borrow_mut().push(id);
            }));
        }
        for call in calls {
            call.await.expect("ends");
        }
        assert_eq!(*service.begun.borrow(), (0..300).collect::<Vec<u64>>());
        assert_eq!(*service.ended.borrow(), *answered.borrow());
        assert_ne!(*service.begun.borrow(), *answered.borrow(), "slow ones hold up nobody");
        assert_eq!(host.stats().requests, 300);
    });
}

#[test]
fn a_request_goes_on_when_its_connection_is_lost_and_everything_comes_back() {
    for seed in 0..20 {
        let executor = Executor::simulated(seed);
        let rt = executor.rt();
        executor.block_on(async {
            let (w, echo, host) = echo_world(&rt).await;
            let slow = Ask { put_len: 300_000, get_len: 5000, delay_ms: 300, ..Ask::new(1) };
            let request = slow.request(&w.pool, SECOND).expect("room");
            let call = rt.spawn(w.client.call(&w.address, request));
            rt.sleep(Duration::from_millis(100)).await;
            assert_eq!((echo.running.get(), host.stats().running), (1, 1));
            w.client.close();
            let call = call.await.expect("ends");
            assert!(matches!(call, Err(CallError::Disconnected { maybe_sent: true })), "{call:?}");
            rt.sleep(Duration::from_millis(100)).await;
            assert_eq!(echo.disconnected.get(), 1, "the service is told at once");
            assert_eq!(echo.running.get(), 1, "and goes on");
            rt.sleep(SECOND).await;
            assert_eq!((echo.running.get(), host.stats().running), (0, 0));
            assert_eq!((w.server.stats().running, w.server.stats().connections), (0, 0));
            assert_eq!((w.pool.stats().used_bytes, w.server_pool.stats().used_bytes), (0, 0));
        });
    }
}

#[test]
fn a_graceful_stop_answers_every_request_that_was_taken() {
    for seed in 0..20 {
        let executor = Executor::simulated(seed);
        let rt = executor.rt();
        executor.block_on(async {
            let (w, echo, host) = echo_world(&rt).await;
            let mut calls = Vec::new();
            for id in 0..50 {
                let ask = Ask { get_len: 9000, delay_ms: 300, ..Ask::new(id) };
                let request = ask.request(&w.pool, SECOND).expect("room");
                calls.push(rt.spawn(w.client.call(&w.address, request)));
            }
            while echo.seen.borrow().len() < 50 {
                rt.sleep(Duration::from_millis(1)).await;
            }
            assert!(w.server.stop(SECOND).await, "all ended within the limit");
            host.stop();
            for call in calls {
                call.await.expect("ends").expect("it was running");
            }
            let call = w.call(Ask::new(50), SECOND).await;
            assert!(matches!(call, Err(CallError::Disconnected { .. })), "{call:?}");
            rt.yield_now().await;
            assert_eq!(w.server_pool.stats().used_bytes, 0);
        });
    }
}

#[test]
fn a_stop_drops_what_does_not_end_in_both_reactors() {
    let executor = Executor::simulated(1);
    let rt = executor.rt();
    executor.block_on(async {
        let (w, echo, host) = echo_world(&rt).await;
        let slow = Ask { put_len: 70_000, delay_ms: 60_000, ..Ask::new(1) };
        let request = slow.request(&w.pool, 90 * SECOND).expect("room");
        let call = rt.spawn(w.client.call(&w.address, request));
        rt.sleep(Duration::from_millis(100)).await;
        assert!(!w.server.stop(SECOND).await);
        let call = call.await.expect("ends");
        assert!(matches!(call, Err(CallError::Disconnected { maybe_sent: true })), "{call:?}");
        assert_eq!((w.server.stats().running, echo.running.get()), (0, 1));
        host.stop();
        rt.sleep(Duration::from_millis(1)).await;
        assert_eq!((echo.running.get(), host.stats().running), (0, 0));
        assert_eq!((w.pool.stats().used_bytes, w.server_pool.stats().used_bytes), (0, 0));
    });
}

#[test]
fn a_host_that_is_gone_never_says_no() {
    let executor = Executor::simulated(1);
    let rt = executor.rt();
    executor.block_on(async {
        let (w, echo, host) = echo_world(&rt).await;
        let slow = Ask { delay_ms: 500, ..Ask::new(1) };
        let call = rt.spawn(w.client.call(&w.address, slow.request(&w.pool, SECOND).unwrap()));
        rt.sleep(Duration::from_millis(100)).await;
        host.stop();
        // The one that ran may have been carried out; nobody knows of the other one either.
        let after = w.call(Ask::new(2), SECOND).await;
        assert!(matches!(after, Err(CallError::TimedOut)), "{after:?}");
        let call = call.await.expect("ends");
        assert!(matches!(call, Err(CallError::TimedOut)), "{call:?}");
        assert!(!echo.seen.borrow().contains_key(&2));
    });
}

#[test]
fn a_request_whose_deadline_passed_in_the_mailbox_is_not_begun() {
    let executor = Executor::simulated(1);
    let rt = executor.rt();
    executor.block_on(async {
        let (relay, at_host) = relay::pair();
        let server_pool = pool(64);
        let echo = Echo::new(&rt, &server_pool);
        let w = World::new(&rt, Relay::start(&rt, relay), server_pool).await;
        let ask = Ask { put_len: 5000, ..Ask::new(1) };
        assert!(matches!(w.call(ask, SECOND).await, Err(CallError::TimedOut)));
        // The reactor of the service was busy for that long.
        let host = Host::start(&rt, echo.clone(), at_host);
        w.call(Ask::new(2), SECOND).await.expect("an answer");
        assert_eq!(host.stats().too_late, 1);
        assert_eq!(echo.seen.borrow().keys().collect::<Vec<_>>(), [&2]);
        assert_eq!((w.pool.stats().used_bytes, w.server_pool.stats().used_bytes), (0, 0));
    });
}

#[test]
fn a_closed_connection_is_told_also_where_it_never_asked() {
    let executor = Executor::simulated(1);
    let rt = executor.rt();
    executor.block_on(async {
        let echo = Echo::new(&rt, &pool(2));
        let (relay, _host) = relayed(&rt, echo.clone());
        let peer = Peer { connection: 1, role: Role::Client, host: "x".into(), proven: None };
        relay.disconnected(&peer);
        rt.sleep(Duration::from_millis(1)).await;
        assert_eq!(echo.disconnected.get(), 1);
    });
}
